//! Putting a registry in order by rule: the commands of `acr`, over the catalog.
//!
//! [`purge()`] deletes tags by name and age, and manifests that nobody needs; [`annotate()`] says
//! something about images; [`acr`] reads command lines of the managed service's program and carries
//! them out. What a command tells comes as [`Record`]s while it goes on, and it can be canceled at
//! any of them.
//!
//! Invariants:
//! - A registry is read in pages; what is in memory does not grow with it.
//! - Tags move through the journal, and only if they still are where they were seen.
//! - A manifest goes only if nobody needs it when it goes, whatever was true when it was found.
//! - Nothing here knows tasks, HTTP or the clock.

pub mod acr;
mod annotate;
mod duration;
mod error;
mod filter;
mod output;
mod purge;
mod record;
mod registry;
mod untagged;

pub use annotate::{Annotate, AnnotateOptions, Annotated, annotate};
pub use duration::{AGE_MAX, Age, DurationError, parse_age};
pub use error::{HousekeepingError, OptionsError};
pub use filter::{FilterError, Filters, MatchError};
pub use output::{remove_output, untag_output};
pub use purge::{Purge, PurgeOptions, Purged, purge};
pub use record::{Item, Record, Records, Verb};
pub use registry::{MayAll, MayUse, RefusePush, Registry, Use};
