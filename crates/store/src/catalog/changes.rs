//! Manifests that come and go, written down for those who tell others of it.
//!
//! Only of registries that somebody follows, in the transaction of the change itself: so who
//! follows misses nothing, and who does not pays nothing. Copies of other registries' manifests
//! are nobody's pushes.

use oci::{RegistryName, RepositoryName, Tag};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use tokio::sync::watch;

use super::repositories::count;
use super::{Catalog, parsed};
use crate::error::database;
use crate::model::{Cause, ContentChange, ContentDeed};
use crate::{Result, StoreError, now};

impl Catalog {
    /// Wakes when content may have changed; a hint only, what is written down decides.
    pub fn content_changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(super) fn announce_change(&self) {
        self.changed.send_replace(());
    }
}

/// Writes changes of a registry down from now on, or no more; in a transaction of the catalog's
/// database.
pub async fn follow_content_within(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    follows: bool,
) -> Result<()> {
    let statements: &[&'static str] = match follows {
        true => &["INSERT INTO content_followers (registry) VALUES ($1) ON CONFLICT DO NOTHING"],
        false => &[
            "DELETE FROM content_followers WHERE registry = $1",
            "DELETE FROM content_changes WHERE registry = $1",
        ],
    };
    for statement in statements {
        sqlx::query(*statement)
            .bind(registry.as_str())
            .execute(&mut *connection)
            .await
            .map_err(database("follow a registry"))?;
    }
    Ok(())
}

/// The oldest changes that are written down, at most `limit`; in a transaction of the catalog's
/// database, which forgets them.
pub async fn take_content_changes_within(
    connection: &mut SqliteConnection,
    limit: usize,
) -> Result<Vec<ContentChange>> {
    let failed = || database("read changes of content");
    let rows = sqlx::query("SELECT * FROM content_changes ORDER BY sequence LIMIT $1")
        .bind(count(limit))
        .fetch_all(&mut *connection)
        .await
        .map_err(failed())?;
    let changes = rows.iter().filter_map(|row| {
        // One that cannot be read keeps no other from being told.
        let read = change(row);
        read.inspect_err(|error| tracing::error!(%error, "a change of content cannot be read")).ok()
    });
    let changes = changes.collect();
    if let Some(last) = rows.last() {
        let last: i64 = last.try_get("sequence").map_err(failed())?;
        sqlx::query("DELETE FROM content_changes WHERE sequence <= $1")
            .bind(last)
            .execute(connection)
            .await
            .map_err(failed())?;
    }
    Ok(changes)
}

/// What is done to a manifest.
pub(crate) struct Deed<'a> {
    pub(crate) kind: ContentDeed,
    /// Those that point at it from now on, or did.
    pub(crate) tags: &'a [Tag],
    pub(crate) cause: &'a Cause,
}

/// Writes down what is done to a manifest that is there, if somebody follows.
pub(crate) async fn note(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    digest: &str,
    deed: &Deed<'_>,
) -> Result<()> {
    let tags: Vec<&str> = deed.tags.iter().map(Tag::as_str).collect();
    sqlx::query(
        "INSERT INTO content_changes (registry, repository, digest, media_type, size, deed, tags,
            cause, at)
         SELECT registry, repository, digest, media_type, size, $4, $5, $6, $7 FROM manifests
         WHERE registry = $1 AND repository = $2 AND digest = $3 AND used_at IS NULL
           AND EXISTS (SELECT 1 FROM content_followers WHERE registry = $1)",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(digest)
    .bind(serde_json::json!(deed.kind).to_string())
    .bind(serde_json::json!(tags).to_string())
    .bind(serde_json::json!(deed.cause).to_string())
    .bind(now())
    .execute(connection)
    .await
    .map_err(database("write down a change of content"))?;
    Ok(())
}

fn change(row: &SqliteRow) -> Result<ContentChange> {
    let failed = || database("read changes of content");
    let text = |name: &str| row.try_get::<&str, _>(name).map_err(failed());
    let size: i64 = row.try_get("size").map_err(failed())?;
    Ok(ContentChange {
        registry: parsed(text("registry")?)?,
        repository: parsed(text("repository")?)?,
        digest: parsed(text("digest")?)?,
        media_type: text("media_type")?.to_owned(),
        size: size as u64,
        deed: read(text("deed")?)?,
        tags: read::<Vec<&str>>(text("tags")?)?.into_iter().map(parsed).collect::<Result<_>>()?,
        cause: read(text("cause")?)?,
        at: row.try_get("at").map_err(failed())?,
    })
}

fn read<'a, T: serde::Deserialize<'a>>(text: &'a str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| StoreError::Database {
        doing: "read changes of content".to_owned(),
        source: error.into(),
    })
}
