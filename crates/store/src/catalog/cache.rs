//! The build cache: bounded entries, each a root for the blobs it names.

use oci::Digest;
use sqlx::{Row, SqliteConnection};

use super::{Catalog, parsed};
use crate::error::database;
use crate::model::CacheEntry;
use crate::{Result, StoreError, gc, now};

/// An entry's own size in the bound, besides its blobs and its value: the row.
const ENTRY_SIZE: i64 = 1024;

impl Catalog {
    /// Looks up a cache entry and notes its use. `namespace` is registry + trust domain.
    pub async fn cache_get(&self, namespace: &str, key: &Digest) -> Result<Option<CacheEntry>> {
        let failed = || database("look up a cache entry");
        let row = sqlx::query(
            "SELECT value, cost, used_at FROM cache_entries WHERE namespace = $1 AND key = $2",
        )
        .bind(namespace)
        .bind(key.as_str())
        .fetch_optional(self.db.reads())
        .await
        .map_err(failed())?;
        let Some(row) = row else { return Ok(None) };
        let blobs: Vec<String> = sqlx::query_scalar(
            "SELECT digest FROM cache_blobs WHERE namespace = $1 AND key = $2 ORDER BY digest",
        )
        .bind(namespace)
        .bind(key.as_str())
        .fetch_all(self.db.reads())
        .await
        .map_err(failed())?;
        let used_at: i64 = row.try_get("used_at").map_err(failed())?;
        if now() - used_at > USE_NOTED_EVERY {
            self.note_use(namespace, key).await?;
        }
        Ok(Some(CacheEntry {
            value: row.try_get("value").map_err(failed())?,
            blobs: blobs.iter().map(|digest| parsed(digest)).collect::<Result<_>>()?,
            cost: row.try_get::<i64, _>("cost").map_err(failed())? as u64,
        }))
    }

    async fn note_use(&self, namespace: &str, key: &Digest) -> Result<()> {
        let (namespace, key) = (namespace.to_owned(), key.to_string());
        self.write(move |connection| {
            Box::pin(async move {
                sqlx::query(
                    "UPDATE cache_entries SET used_at = $3 WHERE namespace = $1 AND key = $2",
                )
                .bind(namespace)
                .bind(key)
                .bind(now())
                .execute(connection)
                .await
                .map_err(database("note a cache hit"))?;
                Ok(())
            })
        })
        .await
    }

    /// Keeps an entry; one that is there is replaced. `NotFound` when one of its blobs is
    /// not stored.
    pub async fn cache_put(&self, namespace: &str, key: &Digest, entry: &CacheEntry) -> Result<()> {
        let (namespace, key, entry) = (namespace.to_owned(), key.to_string(), entry.clone());
        self.write(move |connection| {
            Box::pin(async move {
                let failed = || database("keep a cache entry");
                drop_entry(connection, &namespace, &key).await?;
                sqlx::query(
                    "INSERT INTO cache_entries (namespace, key, value, cost, size, used_at)
                     VALUES ($1, $2, $3, $4, $5, $6)",
                )
                .bind(&namespace)
                .bind(&key)
                .bind(&entry.value)
                .bind(i64::try_from(entry.cost).unwrap_or(i64::MAX))
                .bind(ENTRY_SIZE.saturating_add(entry.value.len() as i64))
                .bind(now())
                .execute(&mut *connection)
                .await
                .map_err(failed())?;
                for digest in &entry.blobs {
                    let kept = sqlx::query(
                        "INSERT INTO cache_blobs (namespace, key, digest)
                         SELECT $1, $2, digest FROM blobs WHERE digest = $3 AND location <> 'lost'
                         ON CONFLICT DO UPDATE SET digest = excluded.digest",
                    )
                    .bind(&namespace)
                    .bind(&key)
                    .bind(digest.as_str())
                    .execute(&mut *connection)
                    .await
                    .map_err(failed())?;
                    if kept.rows_affected() == 0 {
                        return Err(StoreError::NotFound { what: format!("blob {digest}") });
                    }
                }
                sqlx::query(
                    "UPDATE cache_entries SET size = size + (SELECT COALESCE(SUM(b.size), 0)
                       FROM cache_blobs c JOIN blobs b USING (digest)
                       WHERE c.namespace = $1 AND c.key = $2)
                     WHERE namespace = $1 AND key = $2",
                )
                .bind(&namespace)
                .bind(&key)
                .execute(&mut *connection)
                .await
                .map_err(failed())?;
                Ok(())
            })
        })
        .await
    }
}

/// A hit within this time of the last noted one is not noted: a warm build writes nothing.
const USE_NOTED_EVERY: i64 = 10 * 60 * 1000;

/// Removes an entry; its blobs become candidates for collection.
async fn drop_entry(connection: &mut SqliteConnection, namespace: &str, key: &str) -> Result<()> {
    let failed = || database("drop a cache entry");
    let digests: Vec<String> = sqlx::query_scalar(
        "DELETE FROM cache_blobs WHERE namespace = $1 AND key = $2 RETURNING digest",
    )
    .bind(namespace)
    .bind(key)
    .fetch_all(&mut *connection)
    .await
    .map_err(failed())?;
    sqlx::query("DELETE FROM cache_entries WHERE namespace = $1 AND key = $2")
        .bind(namespace)
        .bind(key)
        .execute(&mut *connection)
        .await
        .map_err(failed())?;
    let at = now();
    for digest in digests {
        gc::add_candidate(connection, &digest, at).await?;
    }
    Ok(())
}

/// Brings the cache under its bound; those entries go first that save the least time for
/// their bytes, weighed by how long they were not used. Returns how many went.
pub(crate) async fn evict(
    connection: &mut SqliteConnection,
    size_max: u64,
    dry_run: bool,
) -> Result<u64> {
    let failed = || database("bound the cache");
    let total: i64 = sqlx::query_scalar("SELECT COALESCE(SUM(size), 0) FROM cache_entries")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed())?;
    let mut excess = total.saturating_sub(i64::try_from(size_max).unwrap_or(i64::MAX));
    if excess <= 0 {
        return Ok(0);
    }
    let rows = sqlx::query(
        "SELECT namespace, key, size FROM cache_entries
         ORDER BY (cost + 1.0) / size / (1.0 + ($1 - used_at) / 3600000.0), used_at, key",
    )
    .bind(now())
    .fetch_all(&mut *connection)
    .await
    .map_err(failed())?;
    let mut evicted = 0;
    for row in rows {
        if excess <= 0 {
            break;
        }
        excess -= row.try_get::<i64, _>("size").map_err(failed())?;
        evicted += 1;
        if !dry_run {
            let namespace: String = row.try_get("namespace").map_err(failed())?;
            let key: String = row.try_get("key").map_err(failed())?;
            drop_entry(connection, &namespace, &key).await?;
        }
    }
    Ok(evicted)
}
