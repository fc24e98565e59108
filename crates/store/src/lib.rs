//! Content store: the bytes a registry keeps, and the names that point at them.
//!
//! Two ideas carry the crate. *Blobs* never change and are named by their digest;
//! *tags* are names that move. Garbage collection and blob mounts follow from them.
//!
//! Start with [`BlobStore`] and [`Catalog`]. The server runs [`disk`], tests run
//! [`memory`]; both pass `tests/suite.rs`.
//!
//! Invariants:
//! - A blob is visible only once its bytes match its digest, and then it is durable.
//! - Moving a tag is an event, whoever moves it: [`Catalog::move_tag`] changes the tag and
//!   appends to the journal in one transaction. So is a manifest that comes or goes, in a
//!   registry that [somebody follows](follow_content_within). Nothing here knows who listens.
//! - No HTTP: status codes live in the `registry` crate.

mod blob;
mod catalog;
mod data_dir;
pub mod disk;
mod error;
mod gc;
pub mod memory;
mod model;
mod pack;
mod reserve;
mod rows;
mod schema;
mod scrub;

pub use blob::{BlobReader, BlobStore, BlobWriter, NamedUpload, Stored, Upload};
pub use catalog::{
    BuildRecordText, Catalog, NewArtifact, UploadSession, follow_content_within, lease_within,
    note_run_within, release_within, take_content_changes_within,
};
pub use data_dir::{DataDir, DataDirError, Locked, socket_path};
pub use disk::DiskStore;
pub use error::StoreError;
pub use memory::MemoryStore;
pub use model::*;
pub use pack::{PACK_FILES_MAX, PACK_SIZE_MAX, PackError, PackedFile, Packs, copy_pack, pack_head};

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Milliseconds since 1970: the catalog stamps what it writes.
#[expect(clippy::disallowed_methods, reason = "the one clock of this crate")]
pub(crate) fn now() -> Millis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
