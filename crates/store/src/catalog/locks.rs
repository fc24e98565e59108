//! Locks: what may not be done to repositories, tags and manifests (registry.md section 3).
//!
//! They are asked in the transactions in which tags move and manifests come and go, whoever is
//! behind them: pushes, builds, imports, rules. Changing them is never locked.

use oci::{RegistryName, RepositoryName};
use sqlx::SqliteConnection;

use super::Catalog;
use crate::error::database;
use crate::model::{Attribute, Attributes, AttributesChange, Lock, ManifestRef, Millis};
use crate::{Result, StoreError, now};

// The values of the column `locked`; queries have them as numbers.
const DELETE: i64 = 1;
const WRITE: i64 = 2;
const READ: i64 = 4;
const LIST: i64 = 8;

pub(super) fn attributes(locked: i64) -> Attributes {
    Attributes {
        delete_enabled: locked & DELETE == 0,
        write_enabled: locked & WRITE == 0,
        read_enabled: locked & READ == 0,
        list_enabled: locked & LIST == 0,
    }
}

/// Those of which one keeps an index from giving up its members.
pub(super) fn keeping_members(even_locked: bool) -> i64 {
    if even_locked { LIST } else { DELETE | WRITE | READ | LIST }
}

fn locked(attributes: Attributes) -> i64 {
    let bit = |enabled: bool, bit: i64| if enabled { 0 } else { bit };
    bit(attributes.delete_enabled, DELETE)
        | bit(attributes.write_enabled, WRITE)
        | bit(attributes.read_enabled, READ)
        | bit(attributes.list_enabled, LIST)
}

impl AttributesChange {
    fn of(self, old: Attributes) -> Attributes {
        Attributes {
            delete_enabled: self.delete_enabled.unwrap_or(old.delete_enabled),
            write_enabled: self.write_enabled.unwrap_or(old.write_enabled),
            read_enabled: self.read_enabled.unwrap_or(old.read_enabled),
            list_enabled: self.list_enabled.unwrap_or(old.list_enabled),
        }
    }
}

impl Attribute {
    fn is_enabled(self, attributes: Attributes) -> bool {
        match self {
            Self::DeleteEnabled => attributes.delete_enabled,
            Self::WriteEnabled => attributes.write_enabled,
            Self::ReadEnabled => attributes.read_enabled,
        }
    }
}

impl Catalog {
    /// Changes what may be done to a tag, a manifest or, without a reference, a repository; gives
    /// what may be done from now on. `NotFound` if it is not there.
    pub async fn change_attributes(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        reference: Option<&ManifestRef>,
        change: AttributesChange,
    ) -> Result<Attributes> {
        let (registry, repository) = (registry.clone(), repository.clone());
        let reference = reference.cloned();
        self.write_then(
            move |connection| {
                Box::pin(async move {
                    let reference = reference.as_ref();
                    let old = match reference {
                        Some(reference) => {
                            of(connection, &registry, &repository, reference).await?
                        }
                        None if is_there(connection, &registry, &repository).await? => {
                            Some(of_repository(connection, &registry, &repository).await?)
                        }
                        None => None,
                    };
                    let Some(old) = old else { return Err(missing(&repository, reference)) };
                    let new = change.of(old);
                    write(connection, &registry, &repository, reference, locked(new)).await?;
                    note_orphans(connection, &registry, &repository).await?;
                    Ok(new)
                })
            },
            |catalog, _| {
                catalog.hot.forget_all();
                catalog.linked.forget_all();
            },
        )
        .await
    }

    /// `Locked` if a repository, or a tag or manifest of it, is not to be read.
    pub async fn require_readable(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        reference: Option<&ManifestRef>,
    ) -> Result<()> {
        let connection = self.db.reads().acquire().await;
        let mut connection = connection.map_err(database("look up locks"))?;
        let needed = [Attribute::ReadEnabled];
        require(&mut connection, registry, repository, reference, &needed).await
    }
}

/// Refuses what a lock forbids. `needed` is asked of a tag or manifest, if it is there, and of its
/// repository; whether that may be deleted, only of the repository as a whole.
pub(super) async fn require(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    reference: Option<&ManifestRef>,
    needed: &[Attribute],
) -> Result<()> {
    let refused = |reference: Option<&ManifestRef>, attribute: &Attribute| {
        let (repository, reference) = (repository.clone(), reference.cloned());
        StoreError::Locked(Lock { repository, reference, attribute: *attribute })
    };
    let of_all = of_repository(connection, registry, repository).await?;
    let asked =
        |attribute: &&Attribute| reference.is_none() || **attribute != Attribute::DeleteEnabled;
    if let Some(first) = needed.iter().filter(asked).find(|needed| !needed.is_enabled(of_all)) {
        return Err(refused(None, first));
    }
    let Some(reference) = reference else { return Ok(()) };
    let Some(own) = of(connection, registry, repository, reference).await? else { return Ok(()) };
    match needed.iter().find(|needed| !needed.is_enabled(own)) {
        Some(first) => Err(refused(Some(reference), first)),
        None => Ok(()),
    }
}

pub(super) async fn of_repository(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
) -> Result<Attributes> {
    let row: Option<i64> = sqlx::query_scalar(
        "SELECT locked FROM repository_locks WHERE registry = $1 AND repository = $2",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .fetch_optional(connection)
    .await
    .map_err(database("look up locks"))?;
    Ok(attributes(row.unwrap_or_default()))
}

/// `None` if it is not there.
async fn of(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    reference: &ManifestRef,
) -> Result<Option<Attributes>> {
    let (query, name) = match reference {
        ManifestRef::Tag(tag) => (
            "SELECT locked FROM tags WHERE registry = $1 AND repository = $2 AND name = $3",
            tag.as_str(),
        ),
        ManifestRef::Digest(digest) => (
            "SELECT locked FROM manifests WHERE registry = $1 AND repository = $2 AND digest = $3",
            digest.as_str(),
        ),
    };
    let row: Option<i64> = sqlx::query_scalar(query)
        .bind(registry.as_str())
        .bind(repository.as_str())
        .bind(name)
        .fetch_optional(connection)
        .await
        .map_err(database("look up locks"))?;
    Ok(row.map(attributes))
}

async fn is_there(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
) -> Result<bool> {
    let found: Option<i64> = sqlx::query_scalar(
        "SELECT 1 FROM manifests WHERE registry = $1 AND repository = $2 LIMIT 1",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .fetch_optional(connection)
    .await
    .map_err(database("look up a repository"))?;
    Ok(found.is_some())
}

fn missing(repository: &RepositoryName, reference: Option<&ManifestRef>) -> StoreError {
    let what = match reference {
        None => format!("repository `{repository}`"),
        Some(ManifestRef::Tag(tag)) => format!("tag `{tag}`"),
        Some(ManifestRef::Digest(digest)) => format!("manifest {digest}"),
    };
    StoreError::NotFound { what }
}

async fn write(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    reference: Option<&ManifestRef>,
    locked: i64,
) -> Result<()> {
    let query = match reference {
        None => sqlx::query(
            "INSERT INTO repository_locks (registry, repository, locked) VALUES ($1, $2, $3)
             ON CONFLICT (registry, repository) DO UPDATE SET locked = excluded.locked",
        )
        .bind(registry.as_str())
        .bind(repository.as_str())
        .bind(locked),
        Some(ManifestRef::Tag(tag)) => sqlx::query(
            "UPDATE tags SET locked = $3, updated_at = $5
             WHERE registry = $1 AND repository = $2 AND name = $4",
        )
        .bind(registry.as_str())
        .bind(repository.as_str())
        .bind(locked)
        .bind(tag.as_str())
        .bind(now()),
        Some(ManifestRef::Digest(digest)) => sqlx::query(
            "UPDATE manifests SET locked = $3
             WHERE registry = $1 AND repository = $2 AND digest = $4",
        )
        .bind(registry.as_str())
        .bind(repository.as_str())
        .bind(locked)
        .bind(digest.as_str()),
    };
    query.execute(connection).await.map_err(database("change locks"))?;
    Ok(())
}

/// Lets a tag or manifest be deleted in the same transaction. Who restores it finds it hidden and not
/// to be read as it was.
pub(super) async fn lift(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    reference: &ManifestRef,
) -> Result<()> {
    let (query, name) = match reference {
        ManifestRef::Tag(tag) => (
            "UPDATE tags SET locked = locked & 12
             WHERE registry = $1 AND repository = $2 AND name = $3",
            tag.as_str(),
        ),
        ManifestRef::Digest(digest) => (
            "UPDATE manifests SET locked = locked & 12
             WHERE registry = $1 AND repository = $2 AND digest = $3",
            digest.as_str(),
        ),
    };
    sqlx::query(query)
        .bind(registry.as_str())
        .bind(repository.as_str())
        .bind(name)
        .execute(connection)
        .await
        .map_err(database("lift a lock"))?;
    Ok(())
}

/// What a lock has kept from collection, collection looks at again.
async fn note_orphans(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
) -> Result<()> {
    let since: Millis = now();
    sqlx::query(
        "INSERT INTO gc_candidates (digest, since) SELECT digest, $3 FROM orphans
         WHERE registry = $1 AND repository = $2
         ON CONFLICT (digest) DO UPDATE SET since = excluded.since",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(since)
    .execute(connection)
    .await
    .map_err(database("note candidates for collection"))?;
    Ok(())
}

/// The attributes of a repository go with its last manifest, as it does, once none can be restored.
pub(super) async fn forget_repository(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
) -> Result<()> {
    sqlx::query(
        "DELETE FROM repository_locks WHERE registry = $1 AND repository = $2 AND NOT EXISTS (
           SELECT 1 FROM manifests WHERE registry = $1 AND repository = $2)
         AND NOT EXISTS (
           SELECT 1 FROM deleted_manifests WHERE registry = $1 AND repository = $2)",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .execute(connection)
    .await
    .map_err(database("forget locks"))?;
    Ok(())
}
