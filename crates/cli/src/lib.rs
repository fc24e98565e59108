//! The client: flags, packing a context, progress, output.
//!
//! Start with [`Command`] and [`run`]. A command receives a [`Connection`] to a server and
//! writes through a [`Printer`]; where the server is, in another machine or in this process,
//! is the caller's business ([`select()`]).
//!
//! Invariants:
//! - Speaks only the API. Nothing here knows what is behind it.
//! - Results go to stdout, all else to stderr.
//! - Text from elsewhere reaches a terminal only through `sanitize`.

mod commands;
mod connection;
mod context;
mod environment;
mod error;
mod follow;
mod interrupt;
mod logins;
mod printer;
mod progress;
mod prompt;
mod sanitize;
mod select;

pub use commands::{Command, run};
pub use connection::Connection;
pub use environment::Environment;
pub use error::{Error, ErrorKind, Result};
pub use interrupt::Interrupts;
pub use printer::{OutputFormat, Printer};
pub use select::{GlobalArgs, Selected, connect, select};
