//! From a Dockerfile and a context to an image in the store.
//!
//! Three phases: `dockerfile` parses and plans, and [`build()`] executes. Execution is the
//! only one that touches disk, network or kernel. Every instruction that makes a layer has a
//! cache key of all that its result depends on; its layer goes straight into the blob store,
//! written once. What a build used is in its [`BuildRecord`].
//!
//! Start with [`build()`], then read `stage`, which executes instructions.
//!
//! Invariants:
//! - Images are read only from the store; [`BaseImages`] brings them there.
//! - Nothing here names or publishes an image: [`Built`] is bytes and digests.
//! - `COPY` never follows a link out of its source or its destination, whatever changes on
//!   disk meanwhile: links are resolved over listings, not by the kernel.
//! - No layer that a build makes has a secret of its run in it.
//! - Untrusted code runs only through `container`.
//! - Knows no tasks, runs, tags or HTTP.

mod build;
mod command;
mod stage;

mod agents;
mod archive;
mod context;
mod copy;
mod download;
mod image_key;
mod lines;
mod listed;
mod memo;
mod mounts;
mod name;
mod path_map;
mod permitted;
mod repository;
mod run;
mod signatures;
mod tar_reader;
mod tree;
mod user;

mod cache;
mod caches;
mod checks;
mod exchange;
mod image;
mod layers;
mod upstream;

#[doc(hidden)]
pub mod fuzz;

mod assemble;
mod error;
mod event;
mod explain;
mod proof;
mod recompress;
mod record;
mod secret;
mod secret_check;
mod secret_scan;

pub use agents::{AgentConnection, KeyAgents, SshAgents, SshKey, SshKeyError};
pub use archive::ArchiveFormat;
pub use assemble::{ImageIndexBytes, ImageLayer, index_of};
pub use build::{BuildRequest, Builder, Built, InFlight, NamedContext, RunPolicy, build};
pub use cache::{BuildCache, CatalogCache, TrustDomain};
pub use caches::CacheFolders;
pub use command::{Command, CommandError, run_command};
pub use context::{ContextError, ContextFiles, ContextOptions, LazyFolder};
pub use copy::CopyError;
pub use dockerfile::{
    Address, ContextAddress, GitAddress, bytes as parse_size, without_credentials,
};
pub use error::{BuildError, RunLimits, describe_exit};
pub use event::{BuildEvents, NoEvents, StepEnd, StepNumber};
pub use exchange::{CacheImage, CacheImports, cache_image};
pub use explain::{BaseName, CacheCause, CacheExplanation, FileChange, FilePart};
pub use image::{
    BaseImage, BaseImages, CatalogImages, ImageError, OwnNames, StoredImage, parse_config,
    read_config,
};
pub use image_key::ImageKey;
pub use layers::{FilesOf, LayerIndexes, Layers};
pub use listed::{ContextLimits, ContextList, LIMITS_HINT, ListError, ListedFiles};
pub use permitted::{ImagePattern, ImagePolicy, PermittedImages};
pub use proof::Proof;
pub use record::*;
pub use remote::{DownloadError, GitError, GitLimits};
pub use repository::{Repository, RepositoryOptions};
pub use secret::{KnownSecrets, Secret, Secrets};
pub use secret_scan::HeldSecret;
pub use tar_reader::{TarEntry, TarKind, TarNumbers, TarReader};
pub use upstream::RemoteImages;
pub use user::UserError;
