//! One run, from its context to what it publishes.
//!
//! A run has a workspace folder, a time-out, a cancel token and receivers for what it says.
//! It is one build ([`execute()`]: bring the context, build, publish), or the steps of a task
//! ([`execute_task`]).
//! Beside it stand [`import()`], which publishes what was built elsewhere, and [`export()`].
//!
//! Invariants:
//! - Attempts may repeat, publishing may not: nothing is published unless the [`Lease`] of
//!   the attempt still holds (architecture.md decision 3).
//! - The time-out covers everything, and whatever way a run ends, its containers are gone
//!   and its workspace is removed.
//! - Knows neither queue, database nor triggers.

mod artifact;
mod cache;
mod context;
mod dependencies;
mod execute;
mod housekeeper;
mod import;
mod layout;
mod logins;
mod name;
mod platforms;
mod publish;
mod steps;
mod unpack;
mod variables;

pub use builder::{ContextLimits, ContextList, KnownSecrets, ListError, without_credentials};
pub use cache::{CacheExport, NamedCache};
pub use context::ContextSource;
pub use dependencies::{Dependencies, GitDependency, ImageDependency};
pub use execute::{
    Argument, BuildOptions, BuildStep, Engine, ImagesOf, NamedContext, Outcome, Output, PushPolicy,
    RefusePush, RunEvents, RunRequest, execute,
};
pub use housekeeper::{AcrCommand, AcrError, Housekeeper, Lines, LocalHousekeeper, RunRights};
pub use import::{
    ExportError, ImageArchive, ImageArchiveError, ImportError, ImportSource, ImportTarget,
    Imported, digest_there, export, import, move_there, read_image_archive,
};
pub use layout::{LayoutError, store_layout};
pub use logins::{OwnLogin, RunLogins, leads_here};
pub use name::{Destination, NameError};
pub use platforms::BuiltImages;
pub use publish::{
    Lease, LocalPublisher, Publication, PublishError, Publisher, Release, ReleasedManifest,
    ReleasedName,
};
pub use steps::{
    Identities, InputImage, PushedImage, SHELL_CLIENT_ARG, SecretError, SecretSource, SetValue,
    StepCost, StepUsage, TaskEnd, TaskOutput, TaskPlan, TaskRequest, TaskText, execute_task,
    shell_client,
};
pub use unpack::{UnpackError, Unpacked, unpack};
