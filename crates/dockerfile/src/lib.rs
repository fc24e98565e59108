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

mod instruction;
mod operation;
mod parse;
mod plan;
mod scan;
mod span;
mod word;

#[doc(hidden)]
pub mod fuzz;
pub mod glob;
pub mod ignore;
pub mod path;

pub use instruction::*;
pub use operation::*;
pub use parse::{Dockerfile, parse};
pub use plan::{Plan, PlanOptions, Source, StageId, StagePlan, plan};
pub use span::*;
