//! Uploads that survive their connection and the process.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use oci::{Algorithm, Digest, RegistryName, RepositoryName};
use tokio::sync::OwnedMutexGuard;

use super::{Catalog, locks};
use crate::blob::{NamedUpload, Stored};
use crate::error::database;
use crate::model::Attribute;
use crate::{Result, StoreError, now};

/// How long a second request for one upload waits for the first.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a question for the size of an upload waits for who is writing to it: long enough
/// for what came in before its connection broke.
const SIZE_TIMEOUT: Duration = Duration::from_millis(500);

/// Uploads whose file and running hash are kept between requests.
const OPEN_MAX: usize = 512;

/// An upload's open file and running hash, if this process has taken it up.
type Upload = Option<Box<dyn NamedUpload>>;

/// An upload during and between requests.
struct Slot {
    upload: Arc<tokio::sync::Mutex<Upload>>,
    /// Bytes taken so far, for those who only ask; `SIZE_UNKNOWN` if the file has to say.
    size: AtomicU64,
    /// Requests that wait for their turn.
    waiting: AtomicUsize,
}

const SIZE_UNKNOWN: u64 = u64::MAX;

impl Default for Slot {
    fn default() -> Self {
        let size = AtomicU64::new(SIZE_UNKNOWN);
        Self { upload: Arc::default(), size, waiting: AtomicUsize::new(0) }
    }
}

/// A request that waits for its turn.
struct Waiting<'a>(&'a Slot);

impl<'a> Waiting<'a> {
    fn new(slot: &'a Slot) -> Self {
        slot.waiting.fetch_add(1, Ordering::Relaxed);
        Self(slot)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The uploads of this process by id.
#[derive(Default)]
pub(super) struct Sessions {
    slots: Mutex<HashMap<String, Arc<Slot>>>,
}

impl Sessions {
    fn slot(&self, id: &str) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= OPEN_MAX {
            // Idle ones are taken up from their files if they are ever used again.
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        Arc::clone(slots.entry(id.to_owned()).or_default())
    }

    fn remove(&self, id: &str) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

/// An upload that survives a restart: append in order, then commit.
///
/// Dropping it keeps the bytes for a later [`Catalog::resume_session`].
pub struct UploadSession {
    catalog: Catalog,
    registry: RegistryName,
    repository: RepositoryName,
    id: String,
    size: u64,
    slot: Arc<Slot>,
    upload: OwnedMutexGuard<Upload>,
}

impl Catalog {
    /// Starts an upload session in a repository; its id is an unguessable UUID. `Locked` if nothing
    /// is to be written to the repository.
    pub async fn begin_session(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
    ) -> Result<UploadSession> {
        let id = uuid::Uuid::new_v4().to_string();
        let (row, owned, name) = (id.clone(), registry.clone(), repository.clone());
        self.write(move |connection| {
            Box::pin(async move {
                // Nothing could be made of the bytes.
                let needed = [Attribute::WriteEnabled];
                locks::require(connection, &owned, &name, None, &needed).await?;
                sqlx::query(
                    "INSERT INTO uploads (id, registry, repository, used_at)
                     VALUES ($1, $2, $3, $4)",
                )
                .bind(row)
                .bind(owned.as_str())
                .bind(name.as_str())
                .bind(now())
                .execute(connection)
                .await
                .map_err(database("start an upload"))?;
                Ok(())
            })
        })
        .await?;
        self.take_up(registry, repository, id).await
    }

    /// Takes up a session where it stopped. One at a time: a second caller waits for the
    /// first or gets `InUse`. `NotFound` when unknown, expired or of another repository.
    pub async fn resume_session(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        id: &str,
    ) -> Result<UploadSession> {
        self.require_session(registry, repository, id).await?;
        let session = self.take_up(registry, repository, id.to_owned()).await?;
        // It may have been committed or aborted while we waited for our turn.
        match self.require_session(registry, repository, id).await {
            Ok(()) => Ok(session),
            Err(error) => {
                drop(session);
                self.sessions.remove(id);
                self.blobs.discard_upload(id).await?;
                Err(error)
            }
        }
    }

    /// How many bytes a session has, without taking it from whoever writes to it; what is on
    /// its way just now may not be counted. `NotFound` as for [`Self::resume_session`].
    pub async fn session_size(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        id: &str,
    ) -> Result<u64> {
        self.require_session(registry, repository, id).await?;
        let slot = self.sessions.slot(id);
        drop(tokio::time::timeout(SIZE_TIMEOUT, slot.upload.lock()).await);
        match slot.size.load(Ordering::Relaxed) {
            SIZE_UNKNOWN => Ok(self.resume_session(registry, repository, id).await?.size()),
            size => Ok(size),
        }
    }

    pub async fn abort_session(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        id: &str,
    ) -> Result<()> {
        self.blobs.make_room().await?;
        self.require_session(registry, repository, id).await?;
        // Taken without looking at its file, which may be long and would be hashed.
        let (_, mut upload) = self.turn(id).await?;
        let ended = self.require_session(registry, repository, id).await;
        *upload = None;
        self.end_session(id).await?;
        self.blobs.discard_upload(id).await?;
        ended
    }

    async fn require_session(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        id: &str,
    ) -> Result<()> {
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT 1 FROM uploads WHERE id = $1 AND registry = $2 AND repository = $3",
        )
        .bind(id)
        .bind(registry.as_str())
        .bind(repository.as_str())
        .fetch_optional(self.db.reads())
        .await
        .map_err(database("look up an upload"))?;
        match found {
            Some(_) => Ok(()),
            None => Err(StoreError::NotFound { what: "upload".to_owned() }),
        }
    }

    /// Waits until no other request holds the upload.
    async fn turn(&self, id: &str) -> Result<(Arc<Slot>, OwnedMutexGuard<Upload>)> {
        let slot = self.sessions.slot(id);
        let waiting = Waiting::new(&slot);
        let turn = Arc::clone(&slot.upload).lock_owned();
        let Ok(upload) = tokio::time::timeout(TURN_TIMEOUT, turn).await else {
            return Err(StoreError::InUse { what: "upload".to_owned() });
        };
        drop(waiting);
        Ok((slot, upload))
    }

    /// A session is over: its row and its slot go.
    async fn end_session(&self, id: &str) -> Result<()> {
        let row = id.to_owned();
        self.write(move |connection| {
            Box::pin(async move {
                sqlx::query("DELETE FROM uploads WHERE id = $1")
                    .bind(row)
                    .execute(connection)
                    .await
                    .map_err(database("end an upload"))?;
                Ok(())
            })
        })
        .await?;
        self.sessions.remove(id);
        Ok(())
    }

    async fn take_up(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        id: String,
    ) -> Result<UploadSession> {
        let (slot, mut upload) = self.turn(&id).await?;
        let size = match &*upload {
            Some(upload) => upload.size(),
            None => upload.insert(self.blobs.resume_upload(&id).await?).size(),
        };
        slot.size.store(size, Ordering::Relaxed);
        let (registry, repository) = (registry.clone(), repository.clone());
        Ok(UploadSession { catalog: self.clone(), registry, repository, id, size, slot, upload })
    }
}

impl UploadSession {
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Bytes taken so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Tells, whenever it is asked, whether another request waits for this session. A holder
    /// to whom nothing is sent should leave it to that one: its client may have come back on
    /// a new connection, and the old one never breaks.
    pub fn wanted(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let slot = Arc::clone(&self.slot);
        move || slot.waiting.load(Ordering::Relaxed) > 0
    }

    /// Tells of which kind the digest at the end will be; best before the first byte.
    pub async fn expect(&mut self, algorithm: Algorithm) -> Result<()> {
        let expected = match &mut *self.upload {
            Some(upload) => upload.expect(algorithm).await,
            None => Err(StoreError::NotFound { what: "upload".to_owned() }),
        };
        self.after(expected)
    }

    /// Appends a chunk. After an error the session goes on from what is on disk.
    pub async fn write(&mut self, chunk: Bytes) -> Result<()> {
        let length = chunk.len() as u64;
        let written = match &mut *self.upload {
            Some(upload) => upload.write(chunk).await,
            None => Err(StoreError::NotFound { what: "upload".to_owned() }),
        };
        self.after(written)?;
        self.size += length;
        self.slot.size.store(self.size, Ordering::Relaxed);
        Ok(())
    }

    /// Makes what was written so far survive a restart; before answering a chunk.
    pub async fn sync(&mut self) -> Result<()> {
        let synced = match &mut *self.upload {
            Some(upload) => upload.sync().await,
            None => Err(StoreError::NotFound { what: "upload".to_owned() }),
        };
        self.after(synced)?;
        let id = self.id.clone();
        self.catalog
            .write(move |connection| {
                Box::pin(async move {
                    sqlx::query("UPDATE uploads SET used_at = $2 WHERE id = $1")
                        .bind(id)
                        .bind(now())
                        .execute(connection)
                        .await
                        .map_err(database("note an upload"))?;
                    Ok(())
                })
            })
            .await
    }

    /// Checks the digest, makes the blob visible, links it to the repository. Goes on to its
    /// end when the caller goes away.
    pub async fn commit(self, expected: &Digest) -> Result<Stored> {
        let expected = expected.clone();
        let joined = tokio::spawn(self.finish(expected)).await;
        joined.unwrap_or_else(|error| {
            Err(StoreError::Io { doing: "finish an upload".to_owned(), source: error.into() })
        })
    }

    async fn finish(mut self, expected: Digest) -> Result<Stored> {
        // Taken out: once the file is a blob, no later request may write to it.
        let Some(mut upload) = self.upload.take() else {
            return Err(StoreError::NotFound { what: "upload".to_owned() });
        };
        let stored = match upload.commit(&expected).await {
            Ok(stored) => stored,
            Err(error @ StoreError::DigestMismatch { .. }) => {
                *self.upload = Some(upload);
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        drop(upload);
        self.catalog.link_blob(&self.registry, &self.repository, &expected).await?;
        self.catalog.end_session(&self.id).await?;
        Ok(stored)
    }

    /// Forgets what this process knows of the file after a failed write: how much of the
    /// chunk arrived is for the file to say.
    fn after(&mut self, result: Result<()>) -> Result<()> {
        if result.is_err() {
            *self.upload = None;
            self.slot.size.store(SIZE_UNKNOWN, Ordering::Relaxed);
        }
        result
    }
}
