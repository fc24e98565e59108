//! Retention: manifests that lost their last tag go after some days (registry.md section 6).
//!
//! When a manifest goes is written down in the transaction that takes its last tag, if its registry
//! wants that then; whether it goes is asked again when the time has come.

use oci::{Digest, RegistryName, RepositoryName};
use sqlx::SqliteConnection;

use super::manifests::Condition;
use super::{Catalog, parsed};
use crate::error::database;
use crate::model::{Cause, Millis, Retention, RetentionChange};
use crate::{Result, StoreError, now};

/// Manifests listed at once.
const BATCH: i64 = 1000;

const DAY: Millis = 24 * 60 * 60 * 1000;

/// When a manifest was to go, and its registry, repository and digest.
type Row = (Millis, String, String, String);

impl Catalog {
    /// Removes the manifests that were to go by `now`, with those that only they listed. Says how
    /// many. What is locked, or needed by now, stays; one that cannot be removed does not keep the
    /// others, and is left to the next pass.
    pub async fn remove_due(&self, now: Millis) -> Result<u64> {
        let (mut removed, mut failure) = (0, None);
        loop {
            let before = removed;
            let mut last = Row::default();
            loop {
                let rows = self.due(now, &last).await?;
                let Some(end) = rows.last() else { break };
                last = end.clone();
                for (_, registry, repository, digest) in &rows {
                    match self.remove_one(registry, repository, digest, now).await {
                        Ok(is_gone) => removed += u64::from(is_gone),
                        Err(StoreError::Locked(_)) => (),
                        Err(error) => failure = failure.or(Some(error)),
                    }
                }
            }
            // What an index listed comes after it, and is due by now.
            if removed == before {
                return failure.map_or(Ok(removed), Err);
            }
        }
    }

    /// What is to go, without what stays for now: nothing is written for that, pass after pass.
    async fn due(&self, now: Millis, last: &Row) -> Result<Vec<Row>> {
        sqlx::query_as(
            "SELECT due_at, registry, repository, digest FROM manifests m
             WHERE due_at <= $1 AND (due_at, registry, repository, digest) > ($2, $3, $4, $5)
               AND (m.locked & 3) = 0
               AND NOT EXISTS (SELECT 1 FROM repository_locks l WHERE l.registry = m.registry
                 AND l.repository = m.repository AND (l.locked & 2) <> 0)
               AND NOT EXISTS (SELECT 1 FROM tags t WHERE t.registry = m.registry
                 AND t.repository = m.repository AND t.digest = m.digest)
               AND NOT EXISTS (SELECT 1 FROM manifest_references r WHERE r.target = m.digest
                 AND r.registry || '' = m.registry AND r.repository || '' = m.repository)
             ORDER BY due_at, registry, repository, digest LIMIT $6",
        )
        .bind(now)
        .bind(last.0)
        .bind(&last.1)
        .bind(&last.2)
        .bind(&last.3)
        .bind(BATCH)
        .fetch_all(self.db.reads())
        .await
        .map_err(database("list manifests that are to go"))
    }

    async fn remove_one(
        &self,
        registry: &str,
        repository: &str,
        digest: &str,
        now: Millis,
    ) -> Result<bool> {
        let (registry, repository) = (parsed(registry)?, parsed(repository)?);
        let principal = Some("retention of untagged manifests".to_owned());
        let cause = Cause::Purge { run: None, principal };
        let (digest, condition) = (parsed(digest)?, Condition::Due(now));
        let deleted = self.delete_if(&registry, &repository, &digest, condition, &cause).await?;
        Ok(deleted.is_some())
    }
}

impl RetentionChange {
    pub(super) fn of(self, old: Retention) -> Retention {
        Retention {
            enabled: self.enabled.unwrap_or(old.enabled),
            days: self.days.unwrap_or(old.days),
            updated_at: Some(now()),
        }
    }
}

pub(super) async fn of(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
) -> Result<Retention> {
    let row: Option<(bool, i64, Millis)> = sqlx::query_as(
        "SELECT enabled <> 0, days, updated_at FROM retention_policies WHERE registry = $1",
    )
    .bind(registry.as_str())
    .fetch_optional(connection)
    .await
    .map_err(database("look up retention"))?;
    Ok(row.map_or_else(Retention::default, |(enabled, days, updated_at)| Retention {
        enabled,
        // Written from `u32`.
        days: days as u32,
        updated_at: Some(updated_at),
    }))
}

/// Changes it. Switched off, it forgets what was to go; switched on, it begins with what loses its last
/// tag from then on, for which other days count too.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    retention: Retention,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO retention_policies (registry, enabled, days, updated_at)
         VALUES ($1, $2, $3, $4) ON CONFLICT (registry) DO UPDATE
         SET enabled = excluded.enabled, days = excluded.days, updated_at = excluded.updated_at",
    )
    .bind(registry.as_str())
    .bind(i64::from(retention.enabled))
    .bind(i64::from(retention.days))
    .bind(retention.updated_at)
    .execute(&mut *connection)
    .await
    .map_err(database("change retention"))?;
    match retention.enabled {
        true => Ok(()),
        false => forget_due(connection, registry).await,
    }
}

async fn forget_due(connection: &mut SqliteConnection, registry: &RegistryName) -> Result<()> {
    sqlx::query("UPDATE manifests SET due_at = NULL WHERE registry = $1 AND due_at IS NOT NULL")
        .bind(registry.as_str())
        .execute(connection)
        .await
        .map_err(database("change retention"))?;
    Ok(())
}

/// Notes that a tag has left a manifest: without another one it is to go, if that is wanted.
/// Referrers stay with their subjects, and copies have a rule of their own.
pub(super) async fn note_untagged(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    digest: &Digest,
    at: Millis,
) -> Result<()> {
    let retention = of(connection, registry).await?;
    if !retention.enabled {
        return Ok(());
    }
    sqlx::query(
        "UPDATE manifests SET due_at = $4
         WHERE registry = $1 AND repository = $2 AND digest = $3
           AND subject IS NULL AND used_at IS NULL AND NOT EXISTS (
             SELECT 1 FROM tags t WHERE t.registry = $1 AND t.repository = $2 AND t.digest = $3)",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(digest.as_str())
    .bind(at.saturating_add(Millis::from(retention.days) * DAY))
    .execute(connection)
    .await
    .map_err(database("note that a manifest is to go"))?;
    Ok(())
}

/// Notes that a manifest has a tag, and stays.
pub(super) async fn note_tagged(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    digest: &Digest,
) -> Result<()> {
    sqlx::query(
        "UPDATE manifests SET due_at = NULL
         WHERE registry = $1 AND repository = $2 AND digest = $3 AND due_at IS NOT NULL",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(digest.as_str())
    .execute(connection)
    .await
    .map_err(database("note that a manifest stays"))?;
    Ok(())
}

/// Whether a manifest is to go by now: it is due, and it has no tag, no subject and no index.
pub(super) async fn is_due(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    digest: &Digest,
    now: Millis,
) -> Result<bool> {
    let found: Option<i64> = sqlx::query_scalar(
        "SELECT 1 FROM manifests m
         WHERE m.registry = $1 AND m.repository = $2 AND m.digest = $3 AND m.due_at <= $4
           AND m.subject IS NULL
           AND NOT EXISTS (SELECT 1 FROM tags t WHERE t.registry = $1 AND t.repository = $2
             AND t.digest = $3)
           AND NOT EXISTS (SELECT 1 FROM manifest_references r WHERE r.target = $3
             AND r.registry || '' = $1 AND r.repository || '' = $2)",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(digest.as_str())
    .bind(now)
    .fetch_optional(connection)
    .await
    .map_err(database("look up whether a manifest is to go"))?;
    Ok(found.is_some())
}

/// What an index lists goes with it, unless something else needs it: it is due from now on. What is
/// in another index too goes with the last one, and what has a time of its own then.
pub(super) async fn note_members(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    index: &Digest,
    now: Millis,
) -> Result<()> {
    sqlx::query(
        "UPDATE manifests SET due_at = $4
         WHERE registry = $1 AND repository = $2 AND subject IS NULL AND used_at IS NULL
           AND due_at IS NULL
           AND digest IN (SELECT target FROM manifest_references
             WHERE registry = $1 AND repository = $2 AND manifest = $3 AND kind = 'manifest')
           AND NOT EXISTS (SELECT 1 FROM manifest_references r WHERE r.target = manifests.digest
             AND r.registry || '' = $1 AND r.repository || '' = $2 AND r.manifest <> $3)
           AND NOT EXISTS (SELECT 1 FROM tags t WHERE t.registry = manifests.registry
             AND t.repository = manifests.repository AND t.digest = manifests.digest)",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(index.as_str())
    .bind(now)
    .execute(connection)
    .await
    .map_err(database("note what goes with an index"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use oci::Manifest;

    use super::*;
    use crate::MemoryStore;
    use crate::model::NewManifest;

    async fn run(catalog: &Catalog, statement: &str) {
        let statement = statement.to_owned();
        let job = catalog.write(move |connection| {
            Box::pin(async move {
                sqlx::query(sqlx::AssertSqlSafe(statement)).execute(connection).await.unwrap();
                Ok(())
            })
        });
        job.await.unwrap();
    }

    #[tokio::test]
    async fn what_stays_for_now_is_not_tried_again_and_again() {
        let db = db::Db::in_memory().await.unwrap();
        let blobs = Arc::new(MemoryStore::open(db.clone()).await.unwrap());
        let catalog = Catalog::open(db, blobs).await.unwrap();
        let (registry, name) = (RegistryName::default(), "app".parse().unwrap());
        let bytes = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json",
            "manifests":[]}"#;
        let manifest = Manifest::parse(bytes.as_bytes(), None).unwrap();
        let digest = Digest::of(bytes.as_bytes());
        let new = NewManifest {
            digest: &digest,
            media_type: manifest.media_type(),
            bytes: bytes.into(),
            manifest: &manifest,
        };
        let cause = Cause::Import { source: "test".to_owned() };
        catalog.put_manifest(&registry, &name, new, &[], &cause).await.unwrap();
        run(&catalog, "UPDATE manifests SET due_at = 5").await;
        let is_due = async |now| catalog.due(now, &Row::default()).await.unwrap().len() == 1;
        assert!(!is_due(4).await && is_due(5).await);
        let reference = format!(
            "INSERT INTO manifest_references VALUES ('{registry}', 'app', 'index', '{digest}', 'manifest')"
        );
        let tag = format!(
            "INSERT INTO tags (registry, repository, name, digest, created_at, updated_at)
             VALUES ('{registry}', 'app', 'v1', '{digest}', 0, 0)"
        );
        let lock = format!("INSERT INTO repository_locks VALUES ('{registry}', 'app', 2)");
        for (stays, goes) in [
            ("UPDATE manifests SET locked = 1", "UPDATE manifests SET locked = 0"),
            ("UPDATE manifests SET locked = 2", "UPDATE manifests SET locked = 12"),
            (&*reference, "DELETE FROM manifest_references"),
            (&*tag, "DELETE FROM tags"),
            (&*lock, "UPDATE repository_locks SET locked = 1"),
        ] {
            run(&catalog, stays).await;
            assert!(!is_due(9).await, "{stays}");
            run(&catalog, goes).await;
            assert!(is_due(9).await, "{goes}");
        }
    }
}
