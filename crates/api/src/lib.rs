//! The JSON of our REST API: the resource model of runs.md, and what we add to it.
//!
//! Wire types only. Servers translate them to and from their own; nothing here computes.
//! Members are camelCase; times are RFC 3339 in UTC; enumerations compare without case.

mod access;
mod annotate;
mod build_options;
mod error;
mod event;
mod import;
mod plan;
mod policy;
mod pool;
mod promotion;
mod purge;
mod registry;
mod run;
mod secret;
mod task;
mod trigger;
mod webhook;

pub use access::*;
pub use annotate::*;
pub use build_options::{
    BuildOptions, BuildSecret, CacheExport, CacheMode, NamedContext, NamedContextContent,
};
pub use error::{ErrorBody, ErrorDetail};
pub use event::{Event, EventKind, OutputStream, Proof};
pub use import::*;
pub use plan::*;
pub use policy::*;
pub use pool::*;
pub use promotion::*;
pub use purge::*;
pub use registry::*;
pub use run::*;
pub use secret::*;
pub use task::*;
pub use trigger::*;
pub use webhook::*;

/// The file that holds a server's API token, in the folder for tokens of the user that
/// started it: `host` is `HOST:PORT` as in the server's URL.
///
/// The folder is `$XDG_RUNTIME_DIR/refit`; without that variable `/run/refit` for root and
/// `/tmp/refit-UID` for others.
pub fn token_file_name(host: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '_' };
    format!("{}.token", host.chars().map(safe).collect::<String>())
}
