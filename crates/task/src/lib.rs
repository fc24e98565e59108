//! Task files. So far: the templates in them, by [`render`], and [`BuildArguments`].
//!
//! Invariants:
//! - No disk, network, clock or randomness of its own: time and seed are [`Variables`].
//! - Any text gives a value or an error, never a panic, within bounds of time and memory.
//! - No error shows a secret.

#![expect(dead_code, reason = "what reads task files comes in the next commits")]

mod build_arguments;
mod path;
mod secret;
mod span;
mod template;
mod yaml;

pub use build_arguments::{BuildArguments, BuildOption};
pub use secret::{SecretText, Seed};
pub use span::{Span, TaskError, Warning};
pub use template::{RunVariables, Secrets, Values, Variables, render};
