//! One process over a root filesystem: what `RUN` and `cmd` steps use.
//!
//! Untrusted code runs only here: own user, mount, pid, ipc, uts, net and cgroup namespaces,
//! seccomp, dropped capabilities, masked paths, limits, and a time-out that kills the whole
//! tree. The server never forks into a namespace itself: it starts the same binary again as
//! a single-threaded helper ([`helper_main`]), which makes the namespaces and executes.
//!
//! Containers that are to reach each other by name share a [`PeerNetwork`].
//!
//! Start with [`Runtime::run`], whose [`OutputSink`] learns when the process has started and what
//! it writes; `linux` is the helper's side of it. [`enter`] is for a program that is not root: all
//! else then goes on as for root.
//!
//! Invariants:
//! - Nothing but exec after a fork of the server.
//! - A container that was started is gone, with all its processes, mounts, cgroups and
//!   network devices, when [`Runtime::run`] returns, and soon after its future is dropped.
//! - When the server is killed, its containers die with it; the rest is removed by the next
//!   [`Runtime::new`].
//! - Device files work only where the runtime itself put them.
//! - Knows nothing of images and registries.

mod output;
mod process;
mod program;
mod remove;
mod rootless;
mod runtime;

mod bundle;
mod cgroup;
mod diagnose;
mod disk;
mod egress;
mod emulation;
mod hosts;
mod linux;
mod lock;
mod network;
mod owner;
mod seccomp;
mod users;

pub use cgroup::Bound;
pub use diagnose::{Check, Verdict, diagnose};
pub use disk::{DiskLimit, size_of};
pub use egress::{DESTINATIONS_MAX, Destination, DestinationError, Egress};
pub use linux::helper_main;
pub use network::{BRIDGES, PeerNetwork};
pub use output::{OutputSink, Stream};
pub use process::{
    Exit, Limits, LocalServer, LocalService, Mount, MountKind, Network, Peers, Private,
    ProcessSpec, Rootfs, User, is_host_name,
};
pub use program::{ProgramFiles, program, program_files};
pub use remove::{Removals, remove_tree};
pub use rootless::{enter, ids, is_rootless};
pub use runtime::{ContainerError, ExternalRuntime, HELPER_ARG, Runtime, RuntimeSettings, Usage};
