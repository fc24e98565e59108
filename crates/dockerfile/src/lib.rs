//! Dockerfile text, to typed instructions, to stages, to the operations of a build.
//!
//! Three steps, each a pure function: [`parse()`] gives instructions with source positions,
//! [`plan()`] keeps the stages that the target needs and says which wait for which,
//! [`StagePlan::operations`] expands variables over the base image's config and gives what
//! is to be executed. [`ignore`] matches `.dockerignore` patterns, [`glob`] those of `COPY`.
//!
//! Invariants:
//! - Knows neither where files are nor how anything runs.
//! - Any text gives a value or an error with a position, never a panic.
//! - An instruction or flag that is not supported is refused by name, never ignored.

mod address;
mod git;
mod heredoc;
mod instruction;
mod mode;
mod mount;
mod operation;
mod parse;
mod plan;
mod scan;
mod span;
mod statement;
mod word;

#[doc(hidden)]
pub mod cases;
#[doc(hidden)]
pub mod fuzz;
pub mod glob;
pub mod ignore;
pub mod lint;
pub mod path;

pub use address::{Address, without_credentials};
pub use git::{ArtifactAddressError, ContextAddress, GitAddress, GitAddressError};
pub use heredoc::HereDocument;
pub use instruction::*;
pub use mode::ModeChange;
pub use mount::{FileOwner, Mount, MountKind, Sharing, bytes};
pub use oci::Platform;
pub use operation::*;
pub use parse::{Dockerfile, comma_separated, parse};
pub use plan::{
    NamedContext, OperationsError, Plan, PlanOptions, Source, StageId, StagePlan, plan,
};
pub use span::*;
