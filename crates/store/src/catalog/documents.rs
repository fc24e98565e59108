//! Leases, and small documents that belong to content.

use std::time::Duration;

use oci::{Digest, RegistryName};
use sqlx::SqliteConnection;

use super::{Catalog, parsed};
use crate::error::database;
use crate::model::{Millis, ReadLayer};
use crate::{Result, StoreError, gc, now};

/// When a lease that is taken now ends.
fn end(keep: Duration) -> Millis {
    now().saturating_add(i64::try_from(keep.as_millis()).unwrap_or(Millis::MAX))
}

/// As [`Catalog::lease_blobs`], in a transaction of the catalog's database: the leases are there
/// when, and only if, what else is written in it is. After an error it must be rolled back.
pub async fn lease_within(
    connection: &mut SqliteConnection,
    owner: &str,
    digests: &[Digest],
    keep: Duration,
) -> Result<()> {
    let ends_at = end(keep);
    for digest in digests {
        let taken = sqlx::query(
            "INSERT INTO leases (owner, digest, ends_at)
             SELECT $1, digest, $3 FROM blobs WHERE digest = $2 AND location <> 'lost'
             ON CONFLICT (owner, digest) DO UPDATE SET ends_at = excluded.ends_at",
        )
        .bind(owner)
        .bind(digest.as_str())
        .bind(ends_at)
        .execute(&mut *connection)
        .await
        .map_err(database("lease a blob"))?;
        if taken.rows_affected() == 0 {
            return Err(StoreError::NotFound { what: format!("blob {digest}") });
        }
    }
    Ok(())
}

/// As [`Catalog::release_leases`], in a transaction of the catalog's database.
pub async fn release_within(connection: &mut SqliteConnection, owner: &str) -> Result<()> {
    let digests: Vec<String> =
        sqlx::query_scalar("DELETE FROM leases WHERE owner = $1 RETURNING digest")
            .bind(owner)
            .fetch_all(&mut *connection)
            .await
            .map_err(database("release leases"))?;
    let at = now();
    for digest in digests {
        gc::add_candidate(connection, &digest, at).await?;
    }
    Ok(())
}

/// Adds what a run came to, as JSON, to the build record of a manifest that it made, and to those of
/// the manifests that are in it as an index of `repository`; in a transaction of the catalog's
/// database. What an earlier run made keeps what that came to.
pub async fn note_run_within(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: Option<&str>,
    manifest: &Digest,
    run: &str,
) -> Result<()> {
    sqlx::query(
        "UPDATE build_records SET run = $3
         WHERE registry = $1 AND run IS NULL AND manifest IN (
            SELECT CAST($2 AS TEXT)
            UNION ALL
            SELECT target FROM manifest_references
            WHERE registry = $1 AND repository = $4 AND manifest = $2)",
    )
    .bind(registry.as_str())
    .bind(manifest.as_str())
    .bind(run)
    .bind(repository)
    .execute(connection)
    .await
    .map_err(database("add a run to a build record"))?;
    Ok(())
}

/// How a manifest was built, as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildRecordText {
    pub record: String,
    /// What the run came to that built it; absent while that is under way.
    pub run: Option<String>,
}

impl Catalog {
    /// Keeps a blob from collection until the lease ends or is released. `owner` groups
    /// leases, such as a run id; taking the same lease again extends it. `NotFound` when the
    /// blob is not stored.
    pub async fn lease_blob(&self, owner: &str, digest: &Digest, keep: Duration) -> Result<()> {
        self.lease_blobs(owner, std::slice::from_ref(digest), keep).await
    }

    /// As [`Self::lease_blob`], all of them or none.
    pub async fn lease_blobs(&self, owner: &str, digests: &[Digest], keep: Duration) -> Result<()> {
        let (owner, digests) = (owner.to_owned(), digests.to_vec());
        self.write(move |connection| {
            Box::pin(async move { lease_within(connection, &owner, &digests, keep).await })
        })
        .await
    }

    /// Extends a lease to `keep` if less than half of that is left; says whether the owner has it.
    pub async fn renew_lease(&self, owner: &str, digest: &Digest, keep: Duration) -> Result<bool> {
        let (owner, digest) = (owner.to_owned(), digest.to_string());
        let query = "SELECT ends_at FROM leases WHERE owner = $1 AND digest = $2";
        let query = sqlx::query_scalar(query).bind(&owner).bind(&digest);
        let ends_at: Option<Millis> =
            query.fetch_optional(self.db.reads()).await.map_err(database("look up a lease"))?;
        match ends_at {
            None => return Ok(false),
            Some(ends_at) if ends_at >= end(keep / 2) => return Ok(true),
            Some(_) => (),
        }
        self.write(move |connection| {
            Box::pin(async move {
                let renewed =
                    sqlx::query("UPDATE leases SET ends_at = $3 WHERE owner = $1 AND digest = $2")
                        .bind(owner)
                        .bind(digest)
                        .bind(end(keep))
                        .execute(&mut *connection)
                        .await
                        .map_err(database("renew a lease"))?;
                Ok(renewed.rows_affected() > 0)
            })
        })
        .await
    }

    /// Ends all leases of an owner; what they kept becomes a candidate for collection.
    pub async fn release_leases(&self, owner: &str) -> Result<()> {
        let owner = owner.to_owned();
        self.write(move |connection| {
            Box::pin(async move { release_within(connection, &owner).await })
        })
        .await
    }

    /// Build record of a manifest, kept by [`Self::put_built`].
    pub async fn build_record(
        &self,
        registry: &RegistryName,
        manifest: &Digest,
    ) -> Result<Option<BuildRecordText>> {
        let row: Option<(String, Option<String>)> = sqlx::query_as(
            "SELECT record, run FROM build_records WHERE registry = $1 AND manifest = $2",
        )
        .bind(registry.as_str())
        .bind(manifest.as_str())
        .fetch_optional(self.db.reads())
        .await
        .map_err(database("look up a build record"))?;
        Ok(row.map(|(record, run)| BuildRecordText { record, run }))
    }

    /// Keeps what reading a layer has shown; lives as long as the layer.
    pub async fn put_read_layer(&self, layer: &Digest, read: &ReadLayer) -> Result<()> {
        let (layer, read) = (layer.to_string(), read.clone());
        self.write(move |connection| {
            Box::pin(async move {
                let failed = || database("keep a layer index");
                let replaced: Option<String> = sqlx::query_scalar(
                    "DELETE FROM layer_indexes WHERE layer = $1 RETURNING path_index",
                )
                .bind(&layer)
                .fetch_optional(&mut *connection)
                .await
                .map_err(failed())?;
                if let Some(replaced) = replaced {
                    gc::add_candidate(connection, &replaced, now()).await?;
                }
                sqlx::query(
                    "INSERT INTO layer_indexes (layer, path_index, diff_id) VALUES ($1, $2, $3)",
                )
                .bind(layer)
                .bind(read.index.as_str())
                .bind(read.diff_id.as_str())
                .execute(connection)
                .await
                .map_err(failed())?;
                Ok(())
            })
        })
        .await
    }

    /// What is known of a layer, if it was read.
    pub async fn read_layer(&self, layer: &Digest) -> Result<Option<ReadLayer>> {
        let row: Option<(String, String)> = sqlx::query_as(
            "SELECT path_index, diff_id FROM layer_indexes
             WHERE layer = $1 AND diff_id IS NOT NULL",
        )
        .bind(layer.as_str())
        .fetch_optional(self.db.reads())
        .await
        .map_err(database("look up a layer index"))?;
        let Some((index, diff_id)) = row else { return Ok(None) };
        Ok(Some(ReadLayer { index: parsed(&index)?, diff_id: parsed(&diff_id)? }))
    }
}
