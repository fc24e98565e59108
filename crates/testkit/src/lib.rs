//! What whole-program tests stand on: the real binary as server and client, images made from
//! nothing, and a validator that trusts nobody.
//!
//! Start with [`Server::start`], or with [`Sandbox`]: a folder of its own for one test, in which
//! [`Sandbox::refit`] runs a command and [`Sandbox::server`] a server. For tests only: a failure is
//! a panic that tells all there is to know.

mod command;
mod filters;
mod git;
mod image;
mod memory;
mod registry;
mod sandbox;
mod server;
mod ssh;
mod terminal;
mod tree;
mod user;
mod validate;

pub use command::{Invocation, Outcome, Running, until};
pub use filters::filtered;
pub use git::{COMMIT_TIME, GitHost, GitRepository};
pub use image::{Image, Layer, busybox, busybox_layer};
pub use memory::{MemoryBound, peak_memory, resident_memory};
pub use registry::RegistryClient;
pub use sandbox::Sandbox;
pub use server::Server;
pub use ssh::{SshAgent, SshKey, SshServer, image_with, ssh_image, verify_ssh_signature};
pub use terminal::Terminal;
pub use tree::{ImageTree, Node, tar_nodes};
pub use user::UserMachine;
pub use validate::{ValidImage, validate};

/// Runs a future to its end on a small runtime of its own, so that tests are plain functions.
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made")
        .block_on(future)
}
