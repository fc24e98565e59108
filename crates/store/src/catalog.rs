//! Which repositories, tags and manifests there are, and what they refer to.

mod aged;
mod artifacts;
pub(crate) mod cache;
pub(crate) mod changes;
mod copies;
mod documents;
mod hot;
mod locks;
pub(crate) mod manifests;
mod policies;
mod repositories;
mod retention;
mod sessions;
mod soft_delete;
mod tags;

use std::sync::{Arc, OnceLock};

use db::Db;
use futures_util::future::BoxFuture;
use sqlx::SqliteConnection;
use tokio::sync::{mpsc, watch};

pub use artifacts::NewArtifact;
pub use changes::{follow_content_within, take_content_changes_within};
pub use documents::{BuildRecordText, lease_within, note_run_within, release_within};
pub use sessions::UploadSession;

use crate::blob::BlobStore;
use crate::gc::Seen;
use crate::model::Removal;
use crate::{Result, StoreError, schema};
use hot::{Hot, Linked};
use sessions::Sessions;

/// The registry's memory over blobs: repositories, tags, manifests and their references,
/// referrers, uploads, leases, build records, cache entries. One per data folder; cheap to
/// clone.
///
/// Reads that serve a `GET` of a manifest are answered from memory when warm. All writers go
/// through this value and its clones, so what it remembers is never stale.
#[derive(Clone)]
pub struct Catalog {
    pub(crate) db: Db,
    pub(crate) blobs: Arc<dyn BlobStore>,
    hot: Arc<Hot>,
    linked: Arc<Linked>,
    sessions: Arc<Sessions>,
    moved: Arc<watch::Sender<()>>,
    changed: Arc<watch::Sender<()>>,
    removed: Arc<OnceLock<mpsc::UnboundedSender<Removal>>>,
    /// Blobs that clients were told of lately.
    pub(crate) seen: Arc<Seen>,
}

impl Catalog {
    pub async fn open(db: Db, blobs: Arc<dyn BlobStore>) -> Result<Self> {
        schema::migrate(&db).await?;
        let (hot, linked, sessions) = (Arc::default(), Arc::default(), Arc::default());
        let [moved, changed] = std::array::from_fn(|_| Arc::new(watch::Sender::new(())));
        let (removed, seen) = (Arc::default(), Arc::default());
        Ok(Self { db, blobs, hot, linked, sessions, moved, changed, removed, seen })
    }

    /// The bytes behind this catalog.
    pub fn blobs(&self) -> &Arc<dyn BlobStore> {
        &self.blobs
    }

    /// Tells what is removed from now on, whoever removes it. For one listener: a second one hears
    /// nothing. As many wait as were removed; each took a write to the disk.
    pub fn removals(&self) -> mpsc::UnboundedReceiver<Removal> {
        let (sender, receiver) = mpsc::unbounded_channel();
        // Dropped, the sender of a second one ends it.
        let _ = self.removed.set(sender);
        receiver
    }

    fn tell(&self, removal: Removal) {
        if let Some(listener) = self.removed.get() {
            // It may have gone, with the server.
            let _ = listener.send(removal);
        }
    }

    /// After collection has removed manifests.
    pub(crate) fn forget_manifests(&self) {
        self.hot.forget_all();
    }

    /// After collection has removed blobs.
    pub(crate) fn forget_blobs(&self) {
        self.linked.forget_all();
    }

    /// Runs one write, then brings what is remembered in step with it. Goes on to its end
    /// when the caller goes away: else the memory would stay behind the database.
    pub(crate) async fn write_then<T, F>(
        &self,
        job: F,
        then: impl FnOnce(&Self, &T) + Send + 'static,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        let catalog = self.clone();
        let joined = tokio::spawn(async move {
            let value = catalog.write(job).await?;
            then(&catalog, &value);
            Ok(value)
        })
        .await;
        joined.unwrap_or_else(|error| {
            Err(StoreError::Database { doing: "write".to_owned(), source: error.into() })
        })
    }

    /// Runs one write; it is on disk when this answers.
    pub(crate) async fn write<T, F>(&self, job: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        self.db.write::<T, StoreError, F>(job).await
    }
}

/// Gives a closure the type of a write, which the compiler finds only where one is expected.
pub(crate) fn job<T, F>(job: F) -> F
where
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>>,
{
    job
}

/// Reads a name or digest that this program wrote; a damaged one is an error, not a panic.
pub(crate) fn parsed<T: std::str::FromStr>(text: &str) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().map_err(|error: T::Err| StoreError::Database {
        doing: format!("read `{text}`, which is damaged"),
        source: Box::new(error),
    })
}
