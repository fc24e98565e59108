//! The client: flags, packing a context, progress, output.
//!
//! Start with [`Command`] and [`run`]. A command receives a [`Connection`] to a server and
//! writes through a [`Printer`]; where the server is, in another machine or in this process,
//! is the caller's business ([`select()`]).
//!
//! Invariants:
//! - Speaks only the API. Nothing here knows what is behind it; of images it knows what `oci` does,
//!   of task files what `task` does.
//! - Results go to stdout, all else to stderr.
//! - Text from elsewhere reaches a terminal only through `sanitize`.

mod commands;
mod connection;
mod context;
mod environment;
mod error;
mod export;
mod follow;
mod interrupt;
mod logins;
mod printer;
mod progress;
mod prompt;
mod sanitize;
mod select;
mod sign_in;
mod ssh;

pub use commands::{Command, run};
pub use connection::Connection;
pub use environment::Environment;
pub use error::{Error, ErrorKind, Result};
pub use export::{Export, ImageForm, Place};
pub use interrupt::Interrupts;
pub use printer::{Output, OutputFormat, Printer};
pub use select::{
    AGENT_TOKEN_VARIABLE, AgentServer, GlobalArgs, Selected, agent_server, connect, select,
};
