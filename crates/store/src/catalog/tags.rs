//! Tags, and the journal of their moves.

use oci::{Digest, RegistryName, RepositoryName, Tag};
use sqlx::{Row, SqliteConnection};
use tokio::sync::watch;

use super::changes::Deed;
use super::repositories::count;
use super::{Catalog, changes, locks, parsed, retention, soft_delete};
use crate::error::database;
use crate::model::{
    Attribute, Cause, ContentDeed, Expected, ManifestRef, Millis, Removal, Removed, TagInfo,
    TagMove,
};
use crate::{Result, StoreError, now};

/// A move of one tag.
struct Move<'a> {
    tag: &'a Tag,
    expected: &'a Expected,
    new: Option<&'a Digest>,
    even_locked: bool,
}

impl Catalog {
    /// Moves a tag (`new: None` removes it) and appends to the journal in one transaction.
    /// Nothing is appended when the tag already is where it should go. `NotFound` when the
    /// manifest is not in the repository, or the tag to remove is not there.
    pub async fn move_tag(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        tag: &Tag,
        expected: &Expected,
        new: Option<&Digest>,
        cause: &Cause,
    ) -> Result<()> {
        if new.is_none() {
            self.blobs.make_room().await?;
        }
        let moved = Move { tag, expected, new, even_locked: false };
        self.carry_out(registry, repository, moved, cause).await
    }

    /// Removes a tag though it is locked itself; what keeps it in a locked repository is not lifted.
    pub async fn remove_locked_tag(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        tag: &Tag,
        expected: &Expected,
        cause: &Cause,
    ) -> Result<()> {
        self.blobs.make_room().await?;
        let moved = Move { tag, expected, new: None, even_locked: true };
        self.carry_out(registry, repository, moved, cause).await
    }

    async fn carry_out(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        Move { tag, expected, new, even_locked }: Move<'_>,
        cause: &Cause,
    ) -> Result<()> {
        let (owned, name, moved) = (registry.clone(), repository.clone(), tag.clone());
        let (expected, new, cause) = (expected.clone(), new.cloned(), cause.clone());
        let key = (registry.clone(), repository.clone(), ManifestRef::Tag(tag.clone()));
        let removal = new.is_none().then(|| Removal {
            registry: registry.clone(),
            repository: repository.clone(),
            what: Removed::Tag,
            tags: vec![tag.clone()],
            cause: cause.clone(),
        });
        self.write_then(
            move |connection| {
                Box::pin(async move {
                    check(connection, &owned, &name, &moved, &expected).await?;
                    if let Some(new) = &new {
                        require_manifest(connection, &owned, &name, new).await?;
                    }
                    if even_locked {
                        let own = ManifestRef::Tag(moved.clone());
                        locks::lift(connection, &owned, &name, &own).await?;
                    }
                    write(connection, &owned, &name, &moved, new.as_ref(), &cause).await?;
                    let Some(new) = &new else { return Ok(()) };
                    let kind = ContentDeed::Pushed;
                    let deed = Deed { kind, tags: &[moved], cause: &cause };
                    changes::note(connection, &owned, &name, new.as_str(), &deed).await
                })
            },
            move |catalog, ()| {
                catalog.hot.forget(&key);
                catalog.announce();
                removal.into_iter().for_each(|removal| catalog.tell(removal));
            },
        )
        .await
    }

    /// Tags after `last` in byte order, at most `limit`, without those that are hidden.
    pub async fn tags(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Vec<TagInfo>> {
        let failed = || database("list tags");
        let rows = sqlx::query(
            "SELECT name, digest, created_at, updated_at, locked FROM tags
             WHERE registry = $1 AND repository = $2 AND name > $3 AND (locked & 8) = 0
             ORDER BY name LIMIT $4",
        )
        .bind(registry.as_str())
        .bind(repository.as_str())
        .bind(last.unwrap_or(""))
        .bind(count(limit))
        .fetch_all(self.db.reads())
        .await
        .map_err(failed())?;
        rows.iter().map(tag_info).collect()
    }

    /// One tag, hidden or not.
    pub async fn tag(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<TagInfo>> {
        let failed = || database("look up a tag");
        let mut connection = self.db.reads().acquire().await.map_err(failed())?;
        current(&mut connection, registry, repository, tag).await
    }

    /// The journal after a cursor, oldest first, at most `limit`.
    pub async fn tag_moves(&self, after: i64, limit: usize) -> Result<Vec<TagMove>> {
        let failed = || database("read the tag journal");
        let rows =
            sqlx::query("SELECT * FROM tag_moves WHERE sequence > $1 ORDER BY sequence LIMIT $2")
                .bind(after)
                .bind(count(limit))
                .fetch_all(self.db.reads())
                .await
                .map_err(failed())?;
        rows.iter().map(tag_move).collect()
    }

    /// The last move of a tag, if it ever moved.
    pub async fn last_move_of(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<TagMove>> {
        let row = sqlx::query(
            "SELECT * FROM tag_moves WHERE registry = $1 AND repository = $2 AND tag = $3
             ORDER BY sequence DESC LIMIT 1",
        )
        .bind(registry.as_str())
        .bind(repository.as_str())
        .bind(tag.as_str())
        .fetch_optional(self.db.reads())
        .await
        .map_err(database("read the tag journal"))?;
        row.as_ref().map(tag_move).transpose()
    }

    /// The cursor at the end of the journal.
    pub async fn last_move(&self) -> Result<i64> {
        sqlx::query_scalar("SELECT COALESCE(MAX(sequence), 0) FROM tag_moves")
            .fetch_one(self.db.reads())
            .await
            .map_err(database("read the tag journal"))
    }

    /// Wakes when the journal has grown; a hint only, the journal decides.
    pub fn tag_moved(&self) -> watch::Receiver<()> {
        self.moved.subscribe()
    }

    pub(super) fn announce(&self) {
        self.moved.send_replace(());
        self.announce_change();
    }
}

/// A line of the journal.
fn tag_move(row: &sqlx::sqlite::SqliteRow) -> Result<TagMove> {
    let failed = || database("read the tag journal");
    let text = |name: &str| row.try_get::<String, _>(name).map_err(failed());
    let digest = |name: &str| {
        let text: Option<String> = row.try_get(name).map_err(failed())?;
        text.as_deref().map(parsed).transpose()
    };
    let cause = serde_json::from_str(&text("cause")?).map_err(|error| {
        let doing = "read the tag journal".to_owned();
        StoreError::Database { doing, source: error.into() }
    });
    Ok(TagMove {
        sequence: row.try_get("sequence").map_err(failed())?,
        registry: parsed(&text("registry")?)?,
        repository: parsed(&text("repository")?)?,
        tag: parsed(&text("tag")?)?,
        old: digest("old")?,
        new: digest("new")?,
        cause: cause?,
        at: row.try_get("at").map_err(failed())?,
    })
}

/// A row of `tags` with what listings say of it.
pub(super) fn tag_info(row: &sqlx::sqlite::SqliteRow) -> Result<TagInfo> {
    let failed = || database("list tags");
    Ok(TagInfo {
        tag: parsed(row.try_get("name").map_err(failed())?)?,
        digest: parsed(row.try_get("digest").map_err(failed())?)?,
        created_at: row.try_get("created_at").map_err(failed())?,
        updated_at: row.try_get("updated_at").map_err(failed())?,
        attributes: locks::attributes(row.try_get("locked").map_err(failed())?),
    })
}

pub(super) async fn current(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    tag: &Tag,
) -> Result<Option<TagInfo>> {
    let row = sqlx::query(
        "SELECT name, digest, created_at, updated_at, locked FROM tags
         WHERE registry = $1 AND repository = $2 AND name = $3",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(tag.as_str())
    .fetch_optional(connection)
    .await
    .map_err(database("look up a tag"))?;
    row.map(|row| tag_info(&row)).transpose()
}

/// The compare of compare-and-swap.
pub(super) async fn check(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    tag: &Tag,
    expected: &Expected,
) -> Result<()> {
    let found = current(connection, registry, repository, tag).await?;
    let found_at = |digest: &Digest| found.as_ref().is_some_and(|row| row.digest == *digest);
    let holds = match expected {
        Expected::Any => true,
        Expected::Absent => found.is_none(),
        Expected::At(digest) => found_at(digest),
        Expected::AtBefore { digest, updated_before } => {
            found_at(digest) && found.as_ref().is_some_and(|row| row.updated_at < *updated_before)
        }
    };
    let found = found.map(|row| row.digest);
    match holds {
        true => Ok(()),
        false => Err(StoreError::TagMoved { tag: tag.clone(), found }),
    }
}

pub(super) async fn require_manifest(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    digest: &Digest,
) -> Result<()> {
    let found: Option<i64> = sqlx::query_scalar(
        "SELECT 1 FROM manifests WHERE registry = $1 AND repository = $2 AND digest = $3",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(digest.as_str())
    .fetch_optional(connection)
    .await
    .map_err(database("look up a manifest"))?;
    match found {
        Some(_) => Ok(()),
        None => Err(StoreError::NotFound { what: format!("manifest {digest}") }),
    }
}

/// The swap: the tag's row and the journal's line. The one place that moves tags, so that no lock is
/// passed by and what can be restored is kept.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    tag: &Tag,
    new: Option<&Digest>,
    cause: &Cause,
) -> Result<()> {
    let failed = || database("move a tag");
    let own = ManifestRef::Tag(tag.clone());
    let needed: &[_] = match new {
        Some(_) => &[Attribute::WriteEnabled],
        None => &[Attribute::WriteEnabled, Attribute::DeleteEnabled],
    };
    locks::require(connection, registry, repository, Some(&own), needed).await?;
    if let Some(new) = new {
        let new = ManifestRef::Digest(new.clone());
        locks::require(connection, registry, repository, Some(&new), needed).await?;
    }
    let old = current(connection, registry, repository, tag).await?.map(|row| row.digest);
    let at = now();
    // What is purged grows no younger by it.
    if !matches!(cause, Cause::Purge { .. }) {
        renew(connection, registry, repository, [old.as_ref(), new], at).await?;
    }
    if old.as_ref() == new {
        return match new {
            Some(_) => touch(connection, registry, repository, tag, at).await,
            None => Err(StoreError::NotFound { what: format!("tag `{tag}`") }),
        };
    }
    if new.is_none() || matches!(cause, Cause::Restore { .. }) {
        soft_delete::keep_tag(connection, registry, repository, tag, at).await?;
    }
    match new {
        Some(new) => sqlx::query(
            "INSERT INTO tags (registry, repository, name, digest, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $5) ON CONFLICT (registry, repository, name)
             DO UPDATE SET digest = excluded.digest, updated_at = excluded.updated_at",
        )
        .bind(registry.as_str())
        .bind(repository.as_str())
        .bind(tag.as_str())
        .bind(new.as_str())
        .bind(at)
        .execute(&mut *connection)
        .await
        .map_err(failed())?,
        None => {
            sqlx::query("DELETE FROM tags WHERE registry = $1 AND repository = $2 AND name = $3")
                .bind(registry.as_str())
                .bind(repository.as_str())
                .bind(tag.as_str())
                .execute(&mut *connection)
                .await
                .map_err(failed())?
        }
    };
    if let Some(old) = &old {
        note_orphan(connection, registry, repository, old, at).await?;
        retention::note_untagged(connection, registry, repository, old, at).await?;
    }
    if let Some(new) = new {
        retention::note_tagged(connection, registry, repository, new).await?;
        soft_delete::forget_tag(connection, registry, repository, tag, new).await?;
    }
    sqlx::query(
        "INSERT INTO tag_moves (registry, repository, tag, old, new, cause, at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(tag.as_str())
    .bind(old.as_ref().map(Digest::as_str))
    .bind(new.map(Digest::as_str))
    .bind(serde_json::json!(cause).to_string())
    .bind(at)
    .execute(connection)
    .await
    .map_err(failed())?;
    Ok(())
}

/// Notes that manifests are tagged or untagged.
async fn renew(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    digests: [Option<&Digest>; 2],
    at: Millis,
) -> Result<()> {
    sqlx::query(
        "UPDATE manifests SET updated_at = $5
         WHERE registry = $1 AND repository = $2 AND digest IN ($3, $4)",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(digests[0].map(Digest::as_str))
    .bind(digests[1].map(Digest::as_str))
    .bind(at)
    .execute(connection)
    .await
    .map_err(database("move a tag"))?;
    Ok(())
}

/// A tag that is pushed where it is has not moved, but is as young as if it had.
async fn touch(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    tag: &Tag,
    at: Millis,
) -> Result<()> {
    sqlx::query(
        "UPDATE tags SET updated_at = $4 WHERE registry = $1 AND repository = $2 AND name = $3",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(tag.as_str())
    .bind(at)
    .execute(connection)
    .await
    .map_err(database("move a tag"))?;
    Ok(())
}

/// A tag keeps a referrer whose subject is gone; without it, collection looks again.
async fn note_orphan(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    digest: &Digest,
    at: Millis,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO gc_candidates (digest, since) SELECT digest, $4 FROM orphans
         WHERE registry = $1 AND repository = $2 AND digest = $3
         ON CONFLICT (digest) DO UPDATE SET since = excluded.since",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(digest.as_str())
    .bind(at)
    .execute(connection)
    .await
    .map_err(database("note a candidate for collection"))?;
    Ok(())
}
