//! Which blobs there are: the catalog's rows that a blob store keeps in step with its bytes.
//!
//! A blob exists when it is listed here. Storing lists it after its bytes are in place;
//! collection first takes it off the list and then removes the bytes, unless it was listed
//! again meanwhile. Both hold the digest's lock while they look at the bytes.
//!
//! A blob whose bytes turn out to be gone or damaged keeps its row, since manifests and other
//! rows refer to it, but its location is `lost`: it counts as not listed until it is stored
//! again.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, RwLock};

use db::Db;
use oci::Digest;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::error::database;
use crate::{Result, now, schema};

/// Digests share locks; more of them than cores is enough.
const LOCKS: usize = 64;
/// Sizes remembered, so that a warm `HEAD` of a blob costs no query.
const SIZES_MAX: usize = 16_384;

/// The rows of blobs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct BlobRows {
    db: Db,
    shared: Arc<Shared>,
}

struct Shared {
    locks: Vec<Arc<Mutex<()>>>,
    hash: RandomState,
    sizes: RwLock<HashMap<Digest, u64>>,
}

impl BlobRows {
    pub(crate) async fn open(db: Db) -> Result<Self> {
        schema::migrate(&db).await?;
        let locks = (0..LOCKS).map(|_| Arc::default()).collect();
        let shared = Shared { locks, hash: RandomState::new(), sizes: RwLock::default() };
        Ok(Self { db, shared: Arc::new(shared) })
    }

    /// Keeps others from placing or removing the bytes of this digest.
    pub(crate) async fn lock(&self, digest: &Digest) -> OwnedMutexGuard<()> {
        let at = self.shared.hash.hash_one(digest) as usize % LOCKS;
        Arc::clone(&self.shared.locks[at]).lock_owned().await
    }

    pub(crate) async fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        let remembered = self.shared.sizes.read().map_or(None, |sizes| sizes.get(digest).copied());
        if remembered.is_some() {
            return Ok(remembered);
        }
        let size: Option<i64> =
            sqlx::query_scalar("SELECT size FROM blobs WHERE digest = $1 AND location <> 'lost'")
                .bind(digest.as_str())
                .fetch_optional(self.db.reads())
                .await
                .map_err(database("look up a blob"))?;
        // Sizes are stored from `u64` and never negative. They are remembered only by those
        // who list a blob: a reader's memory could outlive the row.
        Ok(size.map(|size| size as u64))
    }

    pub(crate) async fn is_listed(&self, digest: &Digest) -> Result<bool> {
        let found: Option<i64> =
            sqlx::query_scalar("SELECT 1 FROM blobs WHERE digest = $1 AND location <> 'lost'")
                .bind(digest.as_str())
                .fetch_optional(self.db.reads())
                .await
                .map_err(database("look up a blob"))?;
        Ok(found.is_some())
    }

    /// Lists a blob whose bytes are in place; storing it again makes it young again. It is a
    /// candidate for collection until something refers to it.
    pub(crate) async fn insert(&self, digest: &Digest, size: u64) -> Result<()> {
        let (text, bytes, at) = (digest.to_string(), size as i64, now());
        self.db
            .write::<_, crate::StoreError, _>(move |connection| {
                Box::pin(async move {
                    sqlx::query(
                        "INSERT INTO blobs (digest, size, location, stored_at)
                         VALUES ($1, $2, 'file', $3)
                         ON CONFLICT (digest) DO UPDATE
                         SET stored_at = excluded.stored_at, location = excluded.location",
                    )
                    .bind(&text)
                    .bind(bytes)
                    .bind(at)
                    .execute(&mut *connection)
                    .await
                    .map_err(database("list a blob"))?;
                    sqlx::query("DELETE FROM unlisted_blobs WHERE digest = $1")
                        .bind(&text)
                        .execute(&mut *connection)
                        .await
                        .map_err(database("list a blob"))?;
                    crate::gc::add_candidate(connection, &text, at).await
                })
            })
            .await?;
        if let Ok(mut sizes) = self.shared.sizes.write() {
            if sizes.len() >= SIZES_MAX {
                sizes.clear();
            }
            sizes.insert(digest.clone(), size);
        }
        Ok(())
    }

    /// Notes that the bytes of a blob are gone or damaged.
    pub(crate) async fn lose(&self, digest: &Digest) -> Result<()> {
        let text = digest.to_string();
        self.db
            .write::<_, crate::StoreError, _>(move |connection| {
                Box::pin(async move {
                    sqlx::query("UPDATE blobs SET location = 'lost' WHERE digest = $1")
                        .bind(text)
                        .execute(connection)
                        .await
                        .map_err(database("note a lost blob"))?;
                    Ok(())
                })
            })
            .await?;
        self.evict(digest);
        Ok(())
    }

    /// Forgets a remembered size, after the row is gone.
    pub(crate) fn evict(&self, digest: &Digest) {
        if let Ok(mut sizes) = self.shared.sizes.write() {
            sizes.remove(digest);
        }
    }

    /// Blobs taken off the list whose bytes may still be there.
    pub(crate) async fn unlisted(&self) -> Result<Vec<Digest>> {
        let rows: Vec<String> = sqlx::query_scalar("SELECT digest FROM unlisted_blobs")
            .fetch_all(self.db.reads())
            .await
            .map_err(database("list deleted blobs"))?;
        Ok(rows.iter().filter_map(|text| text.parse().ok()).collect())
    }

    /// Names of the uploads that may still be taken up.
    pub(crate) async fn uploads(&self) -> Result<HashSet<String>> {
        let ids: Vec<String> = sqlx::query_scalar("SELECT id FROM uploads")
            .fetch_all(self.db.reads())
            .await
            .map_err(database("list uploads"))?;
        Ok(ids.into_iter().collect())
    }

    /// The bytes of an unlisted blob are gone.
    pub(crate) async fn forget(&self, digest: &Digest) -> Result<()> {
        let text = digest.to_string();
        self.db
            .write::<_, crate::StoreError, _>(move |connection| {
                Box::pin(async move {
                    sqlx::query("DELETE FROM unlisted_blobs WHERE digest = $1")
                        .bind(text)
                        .execute(connection)
                        .await
                        .map_err(database("forget a blob"))?;
                    Ok(())
                })
            })
            .await
    }
}
