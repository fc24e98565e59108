//! What is old: tags and manifests in order of their age, and what of it nobody needs.
//!
//! What is above a manifest is looked up by what lists it, and its tags by its digest: `|| ''` keeps
//! the database from reading all references or tags of the repository instead, which share its key
//! and come in order.

use oci::{Digest, RegistryName, RepositoryName, Tag};
use sqlx::SqliteConnection;

use super::manifests::Condition;
use super::repositories::count;
use super::tags::tag_info;
use super::{Catalog, locks};
use crate::Result;
use crate::error::database;
use crate::model::{Cause, ManifestInfo, Millis, Order, TagInfo, Unneeded};

impl Catalog {
    /// Tags by the time of their last move; at most `limit`, of those that come after `after`. Those of
    /// one time are by name, newest first from `a` and oldest first from `z`. None that are hidden.
    pub async fn tags_by_age(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        order: Order,
        after: Option<(Millis, &Tag)>,
        limit: usize,
    ) -> Result<Vec<TagInfo>> {
        let query = match order {
            Order::NewestFirst => {
                "SELECT name, digest, created_at, updated_at, locked FROM tags
                 WHERE registry = $1 AND repository = $2 AND (locked & 8) = 0
                   AND updated_at <= $3 AND (updated_at < $3 OR name > $4)
                 ORDER BY updated_at DESC, name LIMIT $5"
            }
            Order::OldestFirst => {
                "SELECT name, digest, created_at, updated_at, locked FROM tags
                 WHERE registry = $1 AND repository = $2 AND (locked & 8) = 0
                   AND updated_at >= $3 AND (updated_at > $3 OR name < $4)
                 ORDER BY updated_at, name DESC LIMIT $5"
            }
        };
        let (at, name) = after.map_or((order.start(), ""), |(at, tag)| (at, tag.as_str()));
        let rows = sqlx::query(query)
            .bind(registry.as_str())
            .bind(repository.as_str())
            .bind(at)
            .bind(name)
            .bind(count(limit))
            .fetch_all(self.db.reads())
            .await
            .map_err(database("list tags"))?;
        rows.iter().map(tag_info).collect()
    }

    /// The tags of a manifest, by name.
    pub async fn tags_of(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Vec<TagInfo>> {
        let rows = sqlx::query(
            "SELECT name, digest, created_at, updated_at, locked FROM tags
             WHERE registry = $1 AND repository = $2 AND digest = $3 ORDER BY name || ''",
        )
        .bind(registry.as_str())
        .bind(repository.as_str())
        .bind(digest.as_str())
        .fetch_all(self.db.reads())
        .await
        .map_err(database("list tags"))?;
        rows.iter().map(tag_info).collect()
    }

    /// Manifests by the time of their last push, tagging or untagging; at most `limit`, of those that
    /// come after `after`. Those of one time are by digest, as tags are by name. None that are hidden.
    pub async fn manifests_by_age(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        order: Order,
        after: Option<(Millis, &Digest)>,
        limit: usize,
    ) -> Result<Vec<ManifestInfo>> {
        let query = match order {
            Order::NewestFirst => {
                "SELECT digest, media_type, size, image_size, artifact_type, config_media_type,
                    subject, pushed_at, updated_at, locked
                 FROM manifests WHERE registry = $1 AND repository = $2 AND (locked & 8) = 0
                   AND updated_at <= $3 AND (updated_at < $3 OR digest > $4)
                 ORDER BY updated_at DESC, digest LIMIT $5"
            }
            Order::OldestFirst => {
                "SELECT digest, media_type, size, image_size, artifact_type, config_media_type,
                    subject, pushed_at, updated_at, locked
                 FROM manifests WHERE registry = $1 AND repository = $2 AND (locked & 8) = 0
                   AND updated_at >= $3 AND (updated_at > $3 OR digest < $4)
                 ORDER BY updated_at, digest DESC LIMIT $5"
            }
        };
        let (at, digest) = after.map_or((order.start(), ""), |(at, digest)| (at, digest.as_str()));
        let rows = sqlx::query(query)
            .bind(registry.as_str())
            .bind(repository.as_str())
            .bind(at)
            .bind(digest)
            .bind(count(limit))
            .fetch_all(self.db.reads())
            .await
            .map_err(database("list manifests"))?;
        self.with_tags(registry, repository, rows).await
    }

    /// The manifests of a repository that list this one, and those that list them, and so on; at
    /// most `limit`.
    pub async fn indexes_above(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        digest: &Digest,
        limit: usize,
    ) -> Result<Vec<ManifestInfo>> {
        let rows = sqlx::query(
            "WITH RECURSIVE above (digest) AS (
               SELECT manifest FROM manifest_references
               WHERE registry || '' = $1 AND repository || '' = $2 AND target = $3
               UNION
               SELECT r.manifest FROM manifest_references r JOIN above ON r.target = above.digest
               WHERE r.registry || '' = $1 AND r.repository || '' = $2)
             SELECT digest, media_type, size, image_size, artifact_type, config_media_type, subject,
                pushed_at, updated_at, locked
             FROM manifests JOIN above USING (digest)
             WHERE registry = $1 AND repository = $2 LIMIT $4",
        )
        .bind(registry.as_str())
        .bind(repository.as_str())
        .bind(digest.as_str())
        .bind(count(limit))
        .fetch_all(self.db.reads())
        .await
        .map_err(database("look up indexes"))?;
        self.with_tags(registry, repository, rows).await
    }

    /// Removes a manifest unless it is needed by now; says whether it did. What was asked before
    /// may no longer be true: somebody may have tagged it.
    pub async fn delete_unneeded(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        digest: &Digest,
        unneeded: Unneeded,
        cause: &Cause,
    ) -> Result<bool> {
        let deleted = self
            .delete_if(registry, repository, digest, Condition::Unneeded(unneeded), cause)
            .await?;
        Ok(deleted.is_some())
    }
}

impl Order {
    /// A time before all others.
    fn start(self) -> Millis {
        match self {
            Self::OldestFirst => Millis::MIN,
            Self::NewestFirst => Millis::MAX,
        }
    }
}

/// Whether a manifest or an index that lists it, at any depth, is anything but [`Unneeded`].
pub(super) async fn is_needed(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    digest: &Digest,
    unneeded: Unneeded,
) -> Result<bool> {
    let found: Option<i64> = sqlx::query_scalar(
        "WITH RECURSIVE above (digest) AS (
           SELECT CAST($3 AS TEXT)
           UNION
           SELECT r.manifest FROM manifest_references r JOIN above ON r.target = above.digest
           WHERE r.registry || '' = $1 AND r.repository || '' = $2)
         SELECT 1 FROM manifests m JOIN above ON m.digest = above.digest
         WHERE m.registry = $1 AND m.repository = $2
           AND (m.subject IS NOT NULL OR m.updated_at > $4
             OR m.digest <> $3 AND (m.locked & $5) <> 0
             OR EXISTS (SELECT 1 FROM tags t WHERE t.registry = $1 AND t.repository = $2
               AND t.digest = m.digest))
         LIMIT 1",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(digest.as_str())
    .bind(unneeded.updated_until)
    .bind(locks::keeping_members(unneeded.even_locked))
    .fetch_optional(connection)
    .await
    .map_err(database("look up what needs a manifest"))?;
    Ok(found.is_some())
}
