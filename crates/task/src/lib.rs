//! Task files: YAML with aliases and templates, to a valid task and the graph of its steps.
//!
//! [`TaskFile::read`] takes the text, and each step gives what the next one needs, in the
//! order of task-yaml.md section 2. This crate does not fetch anything: it says which alias
//! sources ([`TaskFile::alias_sources`]) and which secrets ([`ExpandedFile::secrets`]) are
//! wanted, and the caller brings them.
//!
//! ```text
//! TaskFile ── alias sources ──▶ ExpandedFile ── secrets ──▶ RenderedFile ──▶ Task
//! text without comments         aliases replaced            templates rendered
//! ```
//!
//! Invariants:
//! - No disk, network, clock or randomness of its own: time and seed are [`Variables`].
//! - Any text gives a value or an error, never a panic, within bounds of time and memory.
//! - No error or warning shows a secret.

mod alias;
mod build_arguments;
mod environment;
mod graph;
mod path;
mod pipeline;
mod schema;
mod secret;
mod secret_address;
mod span;
mod task;
mod template;
mod text;
mod vault;
mod yaml;

#[doc(hidden)]
pub mod fuzz;

pub use alias::{AliasImages, AliasSource, BUILT_IN_ACR};
pub use build_arguments::{BuildArguments, BuildOption};
pub use environment::Environment;
pub use graph::Graph;
pub use path::absolute;
pub use pipeline::{ExpandedFile, RenderedFile, TaskFile};
pub use secret::{SecretText, Seed};
pub use secret_address::{SecretAddress, SecretAddressError, VaultField};
pub use span::{Span, TaskError, Warning};
pub use task::*;
pub use template::{RunVariables, Secrets, Values, Variables, render, render_json};
pub use text::{DEFAULT_FILE, is_task_file};
pub use vault::{VaultAddressError, VaultSecret};
