//! Repositories, and which blobs are in them.

use std::collections::BTreeMap;

use oci::{Digest, RegistryName, RepositoryName, Tag};
use sqlx::SqliteConnection;

use super::manifests::remove;
use super::{Catalog, job, locks, parsed};
use crate::error::database;
use crate::model::{Attribute, Cause, DeletedContent, Millis, Removal, Removed, RepositoryInfo};
use crate::{Result, StoreError, gc, now};

/// Makes stored blobs part of a repository; after an error the caller undoes what was done.
pub(super) async fn link(
    connection: &mut SqliteConnection,
    registry: &str,
    repository: &str,
    digests: &[Digest],
) -> Result<()> {
    let at = now();
    for digest in digests {
        let linked = sqlx::query(
            "INSERT INTO repository_blobs (registry, repository, digest, linked_at)
             SELECT $1, $2, digest, $4 FROM blobs
             WHERE digest = $3 AND location <> 'lost'
             ON CONFLICT DO UPDATE SET linked_at = excluded.linked_at",
        )
        .bind(registry)
        .bind(repository)
        .bind(digest.as_str())
        .bind(at)
        .execute(&mut *connection)
        .await
        .map_err(database("link a blob"))?;
        if linked.rows_affected() == 0 {
            return Err(StoreError::NotFound { what: format!("blob {digest}") });
        }
        gc::add_candidate(connection, digest.as_str(), at).await?;
    }
    Ok(())
}

impl Catalog {
    /// Names after `last` in byte order, at most `limit`: those that have a manifest and are not
    /// hidden.
    pub async fn repositories(
        &self,
        registry: &RegistryName,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Vec<RepositoryName>> {
        let names: Vec<String> = sqlx::query_scalar(
            "SELECT DISTINCT repository FROM manifests
             WHERE registry = $1 AND repository > $2 AND NOT EXISTS (
               SELECT 1 FROM repository_locks l WHERE l.registry = manifests.registry
                 AND l.repository = manifests.repository AND (l.locked & 8) <> 0)
             ORDER BY repository LIMIT $3",
        )
        .bind(registry.as_str())
        .bind(last.unwrap_or(""))
        .bind(count(limit))
        .fetch_all(self.db.reads())
        .await
        .map_err(database("list repositories"))?;
        names.iter().map(|name| parsed(name)).collect()
    }

    pub async fn repository_exists(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
    ) -> Result<bool> {
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT 1 FROM manifests WHERE registry = $1 AND repository = $2 LIMIT 1",
        )
        .bind(registry.as_str())
        .bind(repository.as_str())
        .fetch_optional(self.db.reads())
        .await
        .map_err(database("look up a repository"))?;
        Ok(found.is_some())
    }

    /// How much is in a repository, and what may be done to it. `None` if there is none.
    pub async fn repository(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
    ) -> Result<Option<RepositoryInfo>> {
        let failed = || database("look up a repository");
        let row: (i64, Option<Millis>, Option<Millis>, i64) = sqlx::query_as(
            "SELECT COUNT(*), MIN(pushed_at), MAX(pushed_at),
                (SELECT COUNT(*) FROM tags WHERE registry = $1 AND repository = $2)
             FROM manifests WHERE registry = $1 AND repository = $2",
        )
        .bind(registry.as_str())
        .bind(repository.as_str())
        .fetch_one(self.db.reads())
        .await
        .map_err(failed())?;
        let (manifests, Some(created_at), Some(updated_at), tags) = row else { return Ok(None) };
        let mut connection = self.db.reads().acquire().await.map_err(failed())?;
        let attributes = locks::of_repository(&mut connection, registry, repository).await?;
        let (manifests, tags) = (manifests as u64, tags as u64);
        Ok(Some(RepositoryInfo { manifests, tags, created_at, updated_at, attributes }))
    }

    /// Removes every manifest and tag of a repository, in one transaction; nothing, if any of them
    /// is locked. Says what was in it.
    pub async fn delete_repository(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        cause: &Cause,
    ) -> Result<DeletedContent> {
        self.blobs.make_room().await?;
        let (owned, name, because) = (registry.clone(), repository.clone(), cause.clone());
        let job = job(move |connection| {
            Box::pin(async move {
                let failed = || database("delete a repository");
                let needed = [Attribute::WriteEnabled, Attribute::DeleteEnabled];
                locks::require(connection, &owned, &name, None, &needed).await?;
                let tags: Vec<(String, String)> = sqlx::query_as(
                    "SELECT name, digest FROM tags WHERE registry = $1 AND repository = $2
                     ORDER BY name",
                )
                .bind(owned.as_str())
                .bind(name.as_str())
                .fetch_all(&mut *connection)
                .await
                .map_err(failed())?;
                let mut tags_of: BTreeMap<String, Vec<Tag>> = BTreeMap::new();
                for (tag, digest) in &tags {
                    let tag = parsed(tag)?;
                    super::tags::write(connection, &owned, &name, &tag, None, &because).await?;
                    tags_of.entry(digest.clone()).or_default().push(tag);
                }
                let manifests: Vec<String> = sqlx::query_scalar(
                    "SELECT digest FROM manifests WHERE registry = $1 AND repository = $2",
                )
                .bind(owned.as_str())
                .bind(name.as_str())
                .fetch_all(&mut *connection)
                .await
                .map_err(failed())?;
                for manifest in &manifests {
                    let tags = tags_of.get(manifest).map_or(&[][..], Vec::as_slice);
                    remove(connection, &owned, &name, manifest, tags, &because).await?;
                }
                if manifests.is_empty() {
                    return Err(StoreError::NotFound { what: format!("repository `{name}`") });
                }
                let manifests = manifests.iter().map(|digest| parsed(digest));
                let tags = tags.iter().map(|(tag, _)| parsed(tag)).collect::<Result<_>>()?;
                Ok(DeletedContent { manifests: manifests.collect::<Result<_>>()?, tags })
            })
        });
        let mut removal = Removal {
            registry: registry.clone(),
            repository: repository.clone(),
            what: Removed::Repository,
            tags: Vec::new(),
            cause: cause.clone(),
        };
        let deleted = self.write_then(job, |catalog, deleted: &DeletedContent| {
            catalog.hot.forget_all();
            catalog.announce();
            removal.tags.clone_from(&deleted.tags);
            catalog.tell(removal);
        });
        deleted.await
    }

    /// Makes a stored blob part of a repository (end of a push, a blob mount, a built
    /// layer). It is protected from collection for the grace period even while no manifest
    /// names it. `NotFound` when the bytes are gone.
    pub async fn link_blob(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<()> {
        self.link_blobs(registry, repository, [digest]).await
    }

    /// As [`Self::link_blob`], all of them or none.
    pub async fn link_blobs(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        digests: impl IntoIterator<Item = &Digest>,
    ) -> Result<()> {
        let (registry, repository) = (registry.to_string(), repository.to_string());
        let digests: Vec<Digest> = digests.into_iter().cloned().collect();
        self.write(move |connection| {
            Box::pin(async move { link(connection, &registry, &repository, &digests).await })
        })
        .await
    }

    /// Size of a blob if this repository has it: the only question that serving may ask. `Locked`
    /// if nothing is to be read from the repository.
    ///
    /// Asking keeps a blob that no manifest names yet from collection for another grace
    /// period: a client that is told that a blob is there will not send it again.
    pub async fn blob_size(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<u64>> {
        // Noted before the look: collection either sees the note or is seen by us.
        if self.seen.note(digest, now()) {
            let (registry, repository) = (registry.clone(), repository.clone());
            let digest = digest.to_string();
            return self
                .write(move |connection| {
                    Box::pin(async move {
                        let needed = [Attribute::ReadEnabled];
                        locks::require(connection, &registry, &repository, None, &needed).await?;
                        let (registry, repository) = (registry.as_str(), repository.as_str());
                        linked_size(&mut *connection, registry, repository, &digest).await
                    })
                })
                .await;
        }
        let key = (registry.clone(), repository.clone(), digest.clone());
        let before = match self.linked.get(&key) {
            Ok(size) => return Ok(Some(size)),
            Err(before) => before,
        };
        self.require_readable(registry, repository, None).await?;
        let (registry, repository) = (registry.as_str(), repository.as_str());
        let size = linked_size(self.db.reads(), registry, repository, digest.as_str()).await?;
        if let Some(size) = size {
            self.linked.remember(key, size, before);
        }
        Ok(size)
    }

    /// Repositories of the registry that have the blob (automatic content discovery for
    /// mounts; the caller keeps those that the principal may pull), of which nothing keeps it from
    /// being read. At most `limit`.
    pub async fn repositories_with_blob(
        &self,
        registry: &RegistryName,
        digest: &Digest,
        limit: usize,
    ) -> Result<Vec<RepositoryName>> {
        let names: Vec<String> = sqlx::query_scalar(
            "SELECT repository FROM repository_blobs b
             WHERE registry = $1 AND digest = $2 AND NOT EXISTS (
               SELECT 1 FROM repository_locks l WHERE l.registry = b.registry
                 AND l.repository = b.repository AND (l.locked & 4) <> 0)
             ORDER BY repository LIMIT $3",
        )
        .bind(registry.as_str())
        .bind(digest.as_str())
        .bind(count(limit))
        .fetch_all(self.db.reads())
        .await
        .map_err(database("look up a blob"))?;
        names.iter().map(|name| parsed(name)).collect()
    }

    /// Takes a blob out of a repository. `NotFound` if it is not in; `InUse` if a manifest
    /// of the repository needs it.
    pub async fn unlink_blob(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<()> {
        self.blobs.make_room().await?;
        let key = (registry.clone(), repository.clone(), digest.clone());
        let (registry, repository) = (registry.clone(), repository.clone());
        let digest = digest.to_string();
        let job = job(move |connection| {
            Box::pin(async move {
                let needed = [Attribute::WriteEnabled];
                locks::require(connection, &registry, &repository, None, &needed).await?;
                let used: Option<i64> = sqlx::query_scalar(
                    "SELECT 1 FROM manifest_references
                     WHERE registry = $1 AND repository = $2 AND target = $3 LIMIT 1",
                )
                .bind(registry.as_str())
                .bind(repository.as_str())
                .bind(&digest)
                .fetch_optional(&mut *connection)
                .await
                .map_err(database("unlink a blob"))?;
                if used.is_some() {
                    return Err(StoreError::InUse { what: format!("blob {digest}") });
                }
                let removed = sqlx::query(
                    "DELETE FROM repository_blobs
                     WHERE registry = $1 AND repository = $2 AND digest = $3",
                )
                .bind(registry.as_str())
                .bind(repository.as_str())
                .bind(&digest)
                .execute(&mut *connection)
                .await
                .map_err(database("unlink a blob"))?;
                if removed.rows_affected() == 0 {
                    return Err(StoreError::NotFound { what: format!("blob {digest}") });
                }
                gc::add_candidate(connection, &digest, now()).await
            })
        });
        self.write_then(job, move |catalog, ()| catalog.linked.forget(&key)).await
    }
}

async fn linked_size<'e>(
    executor: impl sqlx::Executor<'e, Database = sqlx::Sqlite>,
    registry: &str,
    repository: &str,
    digest: &str,
) -> Result<Option<u64>> {
    let size: Option<i64> = sqlx::query_scalar(
        "SELECT size FROM repository_blobs JOIN blobs USING (digest)
         WHERE registry = $1 AND repository = $2 AND digest = $3 AND location <> 'lost'",
    )
    .bind(registry)
    .bind(repository)
    .bind(digest)
    .fetch_optional(executor)
    .await
    .map_err(database("look up a blob"))?;
    // Sizes are stored from `u64` and never negative.
    Ok(size.map(|size| size as u64))
}

/// A limit as the database takes it.
pub(super) fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
