//! The helper: what happens between the server's request and the process' first instruction.
//!
//! One container is three processes. The *server* starts the *helper* (this binary again,
//! freshly executed, single-threaded), which mounts the root in a mount namespace of its own
//! and forks the *init*; the init enters the remaining namespaces, gives up every right that the
//! container shall not have, and becomes the container's process.
//!
//! Invariants:
//! - The helper has one thread, so forking it is safe, and nothing that it does to itself
//!   (working directory, namespaces, limits) is seen by the server.
//! - The helper ends the container when its control socket closes; the kernel ends the init
//!   when the helper dies.

mod external;
mod helper;
mod init;
mod mounts;
mod overlay;
mod points;
mod report;
mod root;
mod sandbox;
mod uplink;
mod users;

pub use helper::helper_main;
pub(crate) use overlay::{mount_overlay, takes_single_layers};
pub(crate) use report::{Ending, Message, Report};
pub(crate) use sandbox::{Keeper, read_only_copy};
pub(crate) use users::{start as start_keeper, try_out as try_users};
