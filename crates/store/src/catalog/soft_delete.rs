//! Soft delete: what is deleted can be restored for some days (registry.md section 7).
//!
//! The rows of manifests and tags go to tables of their own in the transaction that deletes them,
//! whoever is behind it. So nobody who looks for manifests and tags finds them, and nothing that serves
//! them looks at more than before; only collection asks these tables too. Blobs leave the repository as
//! those of any deleted manifest do, and their bytes stay: who restores the manifest gets them back.
//!
//! The times of one repository or tag are looked up by its name: `+ 0` keeps the database from walking
//! through those of the whole registry instead, which are in order.

use oci::{Digest, RegistryName, RepositoryName, Tag};
use sqlx::{Row, SqliteConnection};

use super::manifests::{NewRow, forgotten};
use super::repositories::count;
use super::{Catalog, job, locks, parsed, tags};
use crate::error::database;
use crate::model::{
    Attribute, Cause, Deleted, DeletedManifest, DeletedRepository, DeletedTag, ManifestRef, Millis,
    Restored, SoftDelete, SoftDeleteChange, ToRestore,
};
use crate::{Result, StoreError, gc, now};

/// What is removed in one transaction; in tests each is one.
const BATCH: i64 = if cfg!(test) { 1 } else { 100 };

const DAY: Millis = 24 * 60 * 60 * 1000;

/// A repository, how many manifests and tags can be restored, and when such were deleted last.
type RepositoryRow = (String, i64, i64, Option<Millis>, Option<Millis>);

impl Catalog {
    /// Repositories of which something can be restored, after `last` in byte order, at most `limit`.
    /// None that are hidden.
    pub async fn deleted_repositories(
        &self,
        registry: &RegistryName,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeletedRepository>> {
        let rows: Vec<RepositoryRow> = sqlx::query_as(
            "SELECT found.repository,
                (SELECT COUNT(*) FROM deleted_manifests m
                 WHERE m.registry = $1 AND m.repository = found.repository),
                (SELECT COUNT(*) FROM deleted_tags t
                 WHERE t.registry = $1 AND t.repository = found.repository),
                (SELECT MAX(m.deleted_at + 0) FROM deleted_manifests m
                 WHERE m.registry = $1 AND m.repository = found.repository),
                (SELECT MAX(t.deleted_at + 0) FROM deleted_tags t
                 WHERE t.registry = $1 AND t.repository = found.repository)
             FROM (
               SELECT repository FROM (
                 SELECT DISTINCT m.repository FROM deleted_manifests m
                 WHERE m.registry = $1 AND m.repository > $2 AND NOT EXISTS (
                   SELECT 1 FROM repository_locks l WHERE l.registry = m.registry
                     AND l.repository = m.repository AND (l.locked & 8) <> 0)
                 ORDER BY m.repository LIMIT $3) AS of_manifests
               UNION
               SELECT repository FROM (
                 SELECT DISTINCT t.repository FROM deleted_tags t
                 WHERE t.registry = $1 AND t.repository > $2 AND NOT EXISTS (
                   SELECT 1 FROM repository_locks l WHERE l.registry = t.registry
                     AND l.repository = t.repository AND (l.locked & 8) <> 0)
                 ORDER BY t.repository LIMIT $3) AS of_tags) AS found
             ORDER BY found.repository LIMIT $3",
        )
        .bind(registry.as_str())
        .bind(last.unwrap_or(""))
        .bind(count(limit))
        .fetch_all(self.db.reads())
        .await
        .map_err(database("list deleted repositories"))?;
        let found = rows.into_iter().map(|(name, manifests, tags, of_manifests, of_tags)| {
            Ok(DeletedRepository {
                repository: parsed(&name)?,
                manifests: manifests as u64,
                tags: tags as u64,
                deleted_at: of_manifests.max(of_tags).unwrap_or_default(),
            })
        });
        found.collect()
    }

    /// Manifests that can be restored, after `last` in order of their digests, at most `limit`. None
    /// that are hidden.
    pub async fn deleted_manifests(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        last: Option<&Digest>,
        limit: usize,
    ) -> Result<Vec<DeletedManifest>> {
        let failed = || database("list deleted manifests");
        let rows = sqlx::query(
            "SELECT digest, media_type, image_size, artifact_type, subject, pushed_at, deleted_at
             FROM deleted_manifests
             WHERE registry = $1 AND repository = $2 AND digest > $3 AND (locked & 8) = 0
             ORDER BY digest LIMIT $4",
        )
        .bind(registry.as_str())
        .bind(repository.as_str())
        .bind(last.map_or("", Digest::as_str))
        .bind(count(limit))
        .fetch_all(self.db.reads())
        .await
        .map_err(failed())?;
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            let digest: String = row.try_get("digest").map_err(failed())?;
            let tags: Vec<String> = sqlx::query_scalar(
                "SELECT name FROM deleted_tags
                 WHERE registry = $1 AND repository = $2 AND digest = $3 AND (locked & 8) = 0
                 ORDER BY name || ''",
            )
            .bind(registry.as_str())
            .bind(repository.as_str())
            .bind(&digest)
            .fetch_all(self.db.reads())
            .await
            .map_err(failed())?;
            let subject: Option<String> = row.try_get("subject").map_err(failed())?;
            let image_size: i64 = row.try_get("image_size").map_err(failed())?;
            found.push(DeletedManifest {
                digest: parsed(&digest)?,
                media_type: row.try_get("media_type").map_err(failed())?,
                image_size: image_size as u64,
                artifact_type: row.try_get("artifact_type").map_err(failed())?,
                subject: subject.as_deref().map(parsed).transpose()?,
                pushed_at: row.try_get("pushed_at").map_err(failed())?,
                deleted_at: row.try_get("deleted_at").map_err(failed())?,
                tags: tags.iter().map(|tag| parsed(tag)).collect::<Result<_>>()?,
            });
        }
        Ok(found)
    }

    /// Tags that can be restored, by name and those of one name in the order in which they were removed,
    /// after `last`: its name, when it was removed, and its digest. At most `limit`. None that are hidden.
    pub async fn deleted_tags(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        last: Option<(&Tag, Millis, &Digest)>,
        limit: usize,
    ) -> Result<Vec<DeletedTag>> {
        let (name, at, digest) =
            last.map_or(("", 0, ""), |(tag, at, digest)| (tag.as_str(), at, digest.as_str()));
        let rows: Vec<(String, String, Millis, Millis)> = sqlx::query_as(
            "SELECT name, digest, created_at, deleted_at FROM deleted_tags
             WHERE registry = $1 AND repository = $2 AND name >= $3
               AND (name, deleted_at, digest) > ($3, $4, $5) AND (locked & 8) = 0
             ORDER BY name, deleted_at, digest LIMIT $6",
        )
        .bind(registry.as_str())
        .bind(repository.as_str())
        .bind(name)
        .bind(at)
        .bind(digest)
        .bind(count(limit))
        .fetch_all(self.db.reads())
        .await
        .map_err(database("list deleted tags"))?;
        let tag = |(tag, digest, created_at, deleted_at): &(String, String, Millis, Millis)| {
            let (tag, digest) = (parsed(tag)?, parsed(digest)?);
            Ok(DeletedTag { tag, digest, created_at: *created_at, deleted_at: *deleted_at })
        };
        rows.iter().map(tag).collect()
    }

    /// Brings back what was deleted; a tag moves as by a push. `NotFound` if there is no such thing,
    /// `TagExists` if the tag points at something else by now and that is not to be forced,
    /// `SubjectDeleted` if it refers to what can be restored itself.
    ///
    /// A manifest is as young as if it had been pushed then. Of an index the members stay deleted that
    /// are.
    pub async fn restore(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        wanted: &ToRestore,
        cause: &Cause,
    ) -> Result<Restored> {
        let (owned, name) = (registry.clone(), repository.clone());
        let (wanted, cause) = (wanted.clone(), cause.clone());
        let job = job(move |connection| {
            Box::pin(async move {
                let (digest, tag) = match wanted {
                    ToRestore::Manifest(digest) => (digest, None),
                    ToRestore::Tag { tag, digest, force } => {
                        let found = find_tag(connection, &owned, &name, &tag, digest).await?;
                        (found.digest.clone(), Some((tag, found, force)))
                    }
                };
                let with_manifest = restore_manifest(connection, &owned, &name, &digest).await?;
                if let Some((tag, found, force)) = &tag {
                    restore_tag(connection, &owned, &name, tag, found, *force, &cause).await?;
                } else if !with_manifest {
                    return Err(StoreError::NotFound {
                        what: format!("deleted manifest {digest}"),
                    });
                }
                let deleted_members = deleted_members(connection, &owned, &name, &digest).await?;
                let tag = tag.map(|(tag, ..)| tag);
                Ok(Restored { digest, tag, with_manifest, deleted_members })
            })
        });
        let (owned, name) = (registry.clone(), repository.clone());
        self.write_then(job, move |catalog, restored: &Restored| {
            let keys = forgotten(&owned, &name, &restored.digest, restored.tag.iter());
            keys.iter().for_each(|key| catalog.hot.forget(key));
            if restored.tag.is_some() {
                catalog.announce();
            }
        })
        .await
    }

    /// Removes for good what could be restored until `now`, by the days that count now. Says how much.
    pub async fn remove_deleted(&self, now: Millis) -> Result<Deleted> {
        let failed = || database("look up soft delete");
        let rows: Vec<(String, i64)> =
            sqlx::query_as("SELECT registry, days FROM soft_delete_policies ORDER BY registry")
                .fetch_all(self.db.reads())
                .await
                .map_err(failed())?;
        let mut removed = Deleted::default();
        for (registry, days) in rows {
            let (registry, until) = (parsed(&registry)?, now.saturating_sub(days * DAY));
            removed.manifests += self.remove_manifests(&registry, until).await?;
            removed.tags += self.remove_tags(&registry, until).await?;
        }
        Ok(removed)
    }

    async fn remove_manifests(&self, registry: &RegistryName, until: Millis) -> Result<u64> {
        let mut removed = 0;
        loop {
            let rows: Vec<(String, String)> = sqlx::query_as(
                "SELECT repository, digest FROM deleted_manifests
                 WHERE registry = $1 AND deleted_at <= $2 ORDER BY deleted_at LIMIT $3",
            )
            .bind(registry.as_str())
            .bind(until)
            .bind(BATCH)
            .fetch_all(self.db.reads())
            .await
            .map_err(database("list what was deleted long ago"))?;
            if rows.is_empty() {
                return Ok(removed);
            }
            self.blobs.make_room().await?;
            let registry = registry.clone();
            removed += self
                .write(move |connection| {
                    Box::pin(async move {
                        let mut removed = 0;
                        for (repository, digest) in rows {
                            let repository = parsed(&repository)?;
                            // It may have been restored meanwhile, and deleted again.
                            let until = Some(until);
                            let is_gone =
                                forget_manifest(connection, &registry, &repository, &digest, until);
                            removed += u64::from(is_gone.await?);
                            locks::forget_repository(connection, &registry, &repository).await?;
                        }
                        Ok(removed)
                    })
                })
                .await?;
        }
    }

    async fn remove_tags(&self, registry: &RegistryName, until: Millis) -> Result<u64> {
        let mut removed = 0;
        loop {
            let failed = || database("remove deleted tags");
            let rows: Vec<(String, String, String)> = sqlx::query_as(
                "SELECT repository, name, digest FROM deleted_tags
                 WHERE registry = $1 AND deleted_at <= $2 ORDER BY deleted_at LIMIT $3",
            )
            .bind(registry.as_str())
            .bind(until)
            .bind(BATCH)
            .fetch_all(self.db.reads())
            .await
            .map_err(failed())?;
            if rows.is_empty() {
                return Ok(removed);
            }
            self.blobs.make_room().await?;
            let registry = registry.to_string();
            removed += self
                .write(move |connection| {
                    Box::pin(async move {
                        let mut removed = 0;
                        for (repository, name, digest) in rows {
                            let gone = sqlx::query(
                                "DELETE FROM deleted_tags WHERE registry = $1 AND repository = $2
                                   AND name = $3 AND digest = $4 AND deleted_at <= $5",
                            )
                            .bind(&registry)
                            .bind(repository)
                            .bind(name)
                            .bind(digest)
                            .bind(until)
                            .execute(&mut *connection)
                            .await
                            .map_err(failed())?;
                            removed += gone.rows_affected();
                        }
                        Ok(removed)
                    })
                })
                .await?;
        }
    }
}

impl SoftDeleteChange {
    pub(super) fn of(self, old: SoftDelete) -> SoftDelete {
        SoftDelete {
            enabled: self.enabled.unwrap_or(old.enabled),
            days: self.days.unwrap_or(old.days),
            updated_at: Some(now()),
        }
    }
}

pub(super) async fn of(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
) -> Result<SoftDelete> {
    let row: Option<(bool, i64, Millis)> = sqlx::query_as(
        "SELECT enabled <> 0, days, updated_at FROM soft_delete_policies WHERE registry = $1",
    )
    .bind(registry.as_str())
    .fetch_optional(connection)
    .await
    .map_err(database("look up soft delete"))?;
    Ok(row.map_or_else(SoftDelete::default, |(enabled, days, updated_at)| SoftDelete {
        enabled,
        // Written from `u32`.
        days: days as u32,
        updated_at: Some(updated_at),
    }))
}

pub(super) async fn write(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    soft_delete: SoftDelete,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO soft_delete_policies (registry, enabled, days, updated_at)
         VALUES ($1, $2, $3, $4) ON CONFLICT (registry) DO UPDATE
         SET enabled = excluded.enabled, days = excluded.days, updated_at = excluded.updated_at",
    )
    .bind(registry.as_str())
    .bind(i64::from(soft_delete.enabled))
    .bind(i64::from(soft_delete.days))
    .bind(soft_delete.updated_at)
    .execute(connection)
    .await
    .map_err(database("change soft delete"))?;
    Ok(())
}

/// Keeps a tag that is about to be removed, or moved by what is restored, if its registry wants that.
/// Copies of other registries' manifests come again when they are pulled, and so do their tags.
pub(super) async fn keep_tag(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    tag: &Tag,
    at: Millis,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO deleted_tags (registry, repository, name, digest, created_at, locked, deleted_at)
         SELECT t.registry, t.repository, t.name, t.digest, t.created_at, t.locked & 12, $4
         FROM tags t JOIN manifests m
           ON m.registry = t.registry AND m.repository = t.repository AND m.digest = t.digest
         WHERE t.registry = $1 AND t.repository = $2 AND t.name = $3 AND m.used_at IS NULL
           AND EXISTS (
             SELECT 1 FROM soft_delete_policies p WHERE p.registry = $1 AND p.enabled <> 0)
         ON CONFLICT (registry, repository, name, digest) DO UPDATE
         SET created_at = excluded.created_at, locked = excluded.locked,
            deleted_at = excluded.deleted_at",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(tag.as_str())
    .bind(at)
    .execute(connection)
    .await
    .map_err(database("keep a deleted tag"))?;
    Ok(())
}

/// A tag that points at a manifest cannot be restored to it.
pub(super) async fn forget_tag(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    tag: &Tag,
    digest: &Digest,
) -> Result<()> {
    sqlx::query(
        "DELETE FROM deleted_tags
         WHERE registry = $1 AND repository = $2 AND name = $3 AND digest = $4",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(tag.as_str())
    .bind(digest.as_str())
    .execute(connection)
    .await
    .map_err(database("forget a deleted tag"))?;
    Ok(())
}

/// Keeps a manifest that is about to be deleted, as [`keep_tag`] does. If it goes for good, what could
/// be restored to it cannot be any more.
pub(super) async fn keep_manifest(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    digest: &str,
    at: Millis,
) -> Result<()> {
    let failed = || database("keep a deleted manifest");
    let kept = sqlx::query(
        "INSERT INTO deleted_manifests (registry, repository, digest, media_type, size, image_size,
            artifact_type, config_media_type, subject, annotations, pushed_at, locked, deleted_at)
         SELECT registry, repository, digest, media_type, size, image_size,
            artifact_type, config_media_type, subject, annotations, pushed_at, locked & 12, $4
         FROM manifests
         WHERE registry = $1 AND repository = $2 AND digest = $3 AND used_at IS NULL
           AND EXISTS (
             SELECT 1 FROM soft_delete_policies p WHERE p.registry = $1 AND p.enabled <> 0)",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(digest)
    .bind(at)
    .execute(&mut *connection)
    .await
    .map_err(failed())?;
    let query = match kept.rows_affected() {
        0 => "DELETE FROM deleted_tags WHERE registry = $1 AND repository = $2 AND digest = $3",
        _ => {
            "INSERT INTO deleted_references (registry, repository, manifest, target, kind)
             SELECT registry, repository, manifest, target, kind FROM manifest_references
             WHERE registry = $1 AND repository = $2 AND manifest = $3"
        }
    };
    sqlx::query(query)
        .bind(registry.as_str())
        .bind(repository.as_str())
        .bind(digest)
        .execute(connection)
        .await
        .map_err(failed())?;
    Ok(())
}

/// Refuses a manifest that can be restored, so that nothing is there twice. A copy of another
/// registry's takes its place.
pub(super) async fn make_way(connection: &mut SqliteConnection, row: &NewRow) -> Result<()> {
    let NewRow { registry, repository, digest, used_at, .. } = row;
    match used_at {
        None => refuse(connection, registry, repository, digest).await,
        Some(_) => {
            forget_manifest(connection, registry, repository, digest.as_str(), None).await.map(drop)
        }
    }
}

/// `SoftDeleted` if a manifest can be restored.
pub(super) async fn refuse(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    digest: &Digest,
) -> Result<()> {
    match is_deleted(connection, registry, repository, digest.as_str()).await? {
        false => Ok(()),
        true => {
            Err(StoreError::SoftDeleted { repository: repository.clone(), digest: digest.clone() })
        }
    }
}

async fn is_deleted(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    digest: &str,
) -> Result<bool> {
    let found: Option<i64> = sqlx::query_scalar(
        "SELECT 1 FROM deleted_manifests WHERE registry = $1 AND repository = $2 AND digest = $3",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(digest)
    .fetch_optional(connection)
    .await
    .map_err(database("look up a deleted manifest"))?;
    Ok(found.is_some())
}

/// A deleted tag as it was.
struct Kept {
    digest: Digest,
    created_at: Millis,
    locked: i64,
}

/// The tag that was removed last, of those that pointed at `digest` if there is one.
async fn find_tag(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    tag: &Tag,
    digest: Option<Digest>,
) -> Result<Kept> {
    let row: Option<(String, Millis, i64)> = sqlx::query_as(
        "SELECT digest, created_at, locked FROM deleted_tags
         WHERE registry = $1 AND repository = $2 AND name = $3 AND ($4 IS NULL OR digest = $4)
         ORDER BY deleted_at + 0 DESC, digest LIMIT 1",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(tag.as_str())
    .bind(digest.as_ref().map(Digest::as_str))
    .fetch_optional(connection)
    .await
    .map_err(database("look up a deleted tag"))?;
    let Some((found, created_at, locked)) = row else {
        let at = digest.map(|digest| format!(" of {digest}")).unwrap_or_default();
        return Err(StoreError::NotFound { what: format!("deleted tag `{repository}:{tag}`{at}") });
    };
    Ok(Kept { digest: parsed(&found)?, created_at, locked })
}

async fn restore_tag(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    tag: &Tag,
    kept: &Kept,
    force: bool,
    cause: &Cause,
) -> Result<()> {
    let is_there = tags::current(connection, registry, repository, tag).await?.is_some();
    if is_there && !force {
        let (repository, tag) = (repository.clone(), tag.clone());
        return Err(StoreError::TagExists { repository, tag });
    }
    tags::require_manifest(connection, registry, repository, &kept.digest).await?;
    tags::write(connection, registry, repository, tag, Some(&kept.digest), cause).await?;
    if is_there {
        // It goes on as what it is.
        return Ok(());
    }
    sqlx::query(
        "UPDATE tags SET created_at = $4, locked = $5
         WHERE registry = $1 AND repository = $2 AND name = $3",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(tag.as_str())
    .bind(kept.created_at)
    .bind(kept.locked)
    .execute(connection)
    .await
    .map_err(database("restore a tag"))?;
    Ok(())
}

/// Brings a deleted manifest back; says whether there was one.
async fn restore_manifest(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    digest: &Digest,
) -> Result<bool> {
    let failed = || database("restore a manifest");
    let row: Option<(Option<String>,)> = sqlx::query_as(
        "SELECT subject FROM deleted_manifests
         WHERE registry = $1 AND repository = $2 AND digest = $3",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(digest.as_str())
    .fetch_optional(&mut *connection)
    .await
    .map_err(failed())?;
    let Some((subject,)) = row else { return Ok(false) };
    if let Some(subject) = subject
        && is_deleted(connection, registry, repository, &subject).await?
    {
        let (repository, digest) = (repository.clone(), digest.clone());
        return Err(StoreError::SubjectDeleted { repository, digest, subject: parsed(&subject)? });
    }
    let needed = [Attribute::WriteEnabled];
    let own = ManifestRef::Digest(digest.clone());
    locks::require(connection, registry, repository, Some(&own), &needed).await?;
    let at = now();
    for query in [
        "INSERT INTO manifests (registry, repository, digest, media_type, size, image_size,
            artifact_type, config_media_type, subject, annotations, pushed_at, locked, updated_at)
         SELECT registry, repository, digest, media_type, size, image_size,
            artifact_type, config_media_type, subject, annotations, pushed_at, locked, $4
         FROM deleted_manifests WHERE registry = $1 AND repository = $2 AND digest = $3",
        // Damaged ones too, which count as missing until somebody stores them again.
        "INSERT INTO repository_blobs (registry, repository, digest, linked_at)
         SELECT r.registry, r.repository, r.target, $4
         FROM deleted_references r JOIN blobs b ON b.digest = r.target
         WHERE r.registry = $1 AND r.repository = $2 AND r.manifest = $3 AND r.kind = 'blob'
         ON CONFLICT (registry, repository, digest) DO UPDATE SET linked_at = excluded.linked_at",
    ] {
        sqlx::query(query)
            .bind(registry.as_str())
            .bind(repository.as_str())
            .bind(digest.as_str())
            .bind(at)
            .execute(&mut *connection)
            .await
            .map_err(failed())?;
    }
    sqlx::query(
        "INSERT INTO manifest_references (registry, repository, manifest, target, kind)
         SELECT registry, repository, manifest, target, kind FROM deleted_references
         WHERE registry = $1 AND repository = $2 AND manifest = $3",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(digest.as_str())
    .execute(&mut *connection)
    .await
    .map_err(failed())?;
    remove_rows(connection, registry, repository, digest.as_str()).await?;
    Ok(true)
}

/// What an index lists and can be restored itself.
async fn deleted_members(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    index: &Digest,
) -> Result<Vec<Digest>> {
    let members: Vec<String> = sqlx::query_scalar(
        "SELECT r.target FROM manifest_references r JOIN deleted_manifests d
           ON d.registry = r.registry AND d.repository = r.repository AND d.digest = r.target
         WHERE r.registry = $1 AND r.repository = $2 AND r.manifest = $3 ORDER BY r.target",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(index.as_str())
    .fetch_all(connection)
    .await
    .map_err(database("look up deleted members"))?;
    members.iter().map(|digest| parsed(digest)).collect()
}

/// Removes for good a deleted manifest and the tags that could be restored to it, if it was deleted by
/// `until`; says whether it did. What it needed becomes a candidate for collection.
async fn forget_manifest(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    digest: &str,
    until: Option<Millis>,
) -> Result<bool> {
    let failed = || database("remove a deleted manifest");
    let deleted_at: Option<Millis> = sqlx::query_scalar(
        "SELECT deleted_at FROM deleted_manifests
         WHERE registry = $1 AND repository = $2 AND digest = $3",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(digest)
    .fetch_optional(&mut *connection)
    .await
    .map_err(failed())?;
    if deleted_at.is_none_or(|at| until.is_some_and(|until| at > until)) {
        return Ok(false);
    }
    let needed: Vec<String> = sqlx::query_scalar(
        "SELECT target FROM deleted_references
         WHERE registry = $1 AND repository = $2 AND manifest = $3",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(digest)
    .fetch_all(&mut *connection)
    .await
    .map_err(failed())?;
    sqlx::query("DELETE FROM deleted_tags WHERE registry = $1 AND repository = $2 AND digest = $3")
        .bind(registry.as_str())
        .bind(repository.as_str())
        .bind(digest)
        .execute(&mut *connection)
        .await
        .map_err(failed())?;
    remove_rows(connection, registry, repository, digest).await?;
    let at = now();
    for target in needed.iter().map(String::as_str).chain([digest]) {
        gc::add_candidate(connection, target, at).await?;
    }
    Ok(true)
}

/// The rows of a deleted manifest; its tags are another matter.
async fn remove_rows(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    digest: &str,
) -> Result<()> {
    for query in [
        "DELETE FROM deleted_references WHERE registry = $1 AND repository = $2 AND manifest = $3",
        "DELETE FROM deleted_manifests WHERE registry = $1 AND repository = $2 AND digest = $3",
    ] {
        sqlx::query(query)
            .bind(registry.as_str())
            .bind(repository.as_str())
            .bind(digest)
            .execute(&mut *connection)
            .await
            .map_err(database("remove a deleted manifest"))?;
    }
    Ok(())
}
