//! Copies of other registries' manifests: their blobs may not be here yet, and they go when
//! nobody has pulled them for long.

use std::time::Duration;

use oci::{Digest, RegistryName, RepositoryName, Tag};

use super::{Catalog, parsed};
use crate::error::database;
use crate::model::{Cause, Expected, Millis, NewManifest};
use crate::{Result, StoreError, now};

/// Copies listed at once; in tests every copy is a batch.
const BATCH: i64 = if cfg!(test) { 1 } else { 1000 };

/// When a copy was last used, and its registry, repository and digest.
type Row = (Millis, String, String, String);

impl Catalog {
    /// As [`Catalog::put_manifest`], but what it refers to need not be there.
    pub async fn put_copy(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        new: NewManifest<'_>,
        tag: Option<&Tag>,
        cause: &Cause,
    ) -> Result<()> {
        let tags: Vec<_> = tag.map(|tag| (tag.clone(), Expected::Any)).into_iter().collect();
        self.put_as_copy(registry, repository, new, &tags, cause).await
    }

    /// Notes that a copy was pulled.
    pub async fn note_copy_use(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<()> {
        let (registry, repository) = (registry.to_string(), repository.to_string());
        let digest = digest.to_string();
        self.write(move |connection| {
            Box::pin(async move {
                sqlx::query(
                    "UPDATE manifests SET used_at = $4 WHERE registry = $1 AND repository = $2
                       AND digest = $3 AND used_at IS NOT NULL",
                )
                .bind(registry)
                .bind(repository)
                .bind(digest)
                .bind(now())
                .execute(connection)
                .await
                .map_err(database("note a pull"))?;
                Ok(())
            })
        })
        .await
    }

    /// Removes copies that were not pulled for `keep`, with their tags. Says how many. One that
    /// cannot be removed does not keep the others, and is left to the next pass.
    pub async fn expire_copies(&self, keep: Duration) -> Result<u64> {
        let keep = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
        let until = now().saturating_sub(keep);
        let (mut removed, mut last, mut failure) = (0, Row::default(), None);
        loop {
            let rows = self.copies_unused_since(until, &last).await?;
            let Some(end) = rows.last() else { return failure.map_or(Ok(removed), Err) };
            // Forward, whatever becomes of these: none is looked at twice.
            last = end.clone();
            for (_, registry, repository, digest) in &rows {
                match self.expire_copy(registry, repository, digest).await {
                    // Somebody else deleted it, or it is to stay.
                    Err(StoreError::NotFound { .. } | StoreError::Locked(_)) => (),
                    Err(error) => failure = failure.or(Some(error)),
                    Ok(()) => removed += 1,
                }
            }
        }
    }

    async fn copies_unused_since(&self, until: Millis, last: &Row) -> Result<Vec<Row>> {
        sqlx::query_as(
            "SELECT used_at, registry, repository, digest FROM manifests
             WHERE used_at < $1 AND (used_at, registry, repository, digest) > ($2, $3, $4, $5)
             ORDER BY used_at, registry, repository, digest LIMIT $6",
        )
        .bind(until)
        .bind(last.0)
        .bind(&last.1)
        .bind(&last.2)
        .bind(&last.3)
        .bind(BATCH)
        .fetch_all(self.db.reads())
        .await
        .map_err(database("list old copies"))
    }

    async fn expire_copy(&self, registry: &str, repository: &str, digest: &str) -> Result<()> {
        let (registry, repository) = (parsed(registry)?, parsed(repository)?);
        let cause = Cause::Purge { run: None, principal: None };
        self.delete_manifest(&registry, &repository, &parsed(digest)?, &cause).await.map(drop)
    }

    /// Whether a repository has a manifest of this digest, be it damaged or not.
    pub async fn is_manifest(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<bool> {
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT 1 FROM manifests WHERE registry = $1 AND repository = $2 AND digest = $3",
        )
        .bind(registry.as_str())
        .bind(repository.as_str())
        .bind(digest.as_str())
        .fetch_optional(self.db.reads())
        .await
        .map_err(database("look up a manifest"))?;
        Ok(found.is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use oci::Manifest;

    use super::*;
    use crate::MemoryStore;

    /// Puts a copy with a layer that is not here, last used at `used_at`; its digest.
    async fn put_copy(catalog: &Catalog, used_at: Millis) -> Digest {
        let (config, layer) = (Digest::of(b"{}"), Digest::of(&used_at.to_le_bytes()));
        let bytes = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
            "config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}",
            "size":2}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar",
            "digest":"{layer}","size":8}}]}}"#
        );
        let manifest = Manifest::parse(bytes.as_bytes(), None).unwrap();
        let digest = Digest::of(bytes.as_bytes());
        let new = NewManifest {
            digest: &digest,
            media_type: manifest.media_type(),
            bytes: bytes.into(),
            manifest: &manifest,
        };
        let (registry, name) = (RegistryName::default(), "copies".parse().unwrap());
        let cause = Cause::Import { source: "test".to_owned() };
        catalog.put_copy(&registry, &name, new, None, &cause).await.unwrap();
        run(catalog, format!("UPDATE manifests SET used_at = {used_at} WHERE digest = '{digest}'"))
            .await;
        digest
    }

    async fn run(catalog: &Catalog, statement: String) {
        let job = catalog.write(move |connection| {
            Box::pin(async move {
                sqlx::query(sqlx::AssertSqlSafe(statement)).execute(connection).await.unwrap();
                Ok(())
            })
        });
        job.await.unwrap();
    }

    #[tokio::test]
    async fn a_copy_that_cannot_be_removed_does_not_keep_the_others() {
        let db = db::Db::in_memory().await.unwrap();
        let blobs = Arc::new(MemoryStore::open(db.clone()).await.unwrap());
        let catalog = Catalog::open(db, blobs).await.unwrap();
        let stuck = put_copy(&catalog, 1).await;
        let gone = [put_copy(&catalog, 2).await, put_copy(&catalog, 3).await];
        let used = put_copy(&catalog, now()).await;
        let trigger = format!(
            "CREATE TRIGGER stuck BEFORE DELETE ON manifests WHEN OLD.digest = '{stuck}'
             BEGIN SELECT RAISE(ABORT, 'stuck'); END"
        );
        run(&catalog, trigger).await;
        let (registry, name) = (RegistryName::default(), "copies".parse().unwrap());
        let is_there = async |digest| catalog.is_manifest(&registry, &name, digest).await.unwrap();
        let day = Duration::from_secs(24 * 60 * 60);
        for _ in 0..2 {
            let expiring = catalog.expire_copies(day);
            let expired = tokio::time::timeout(Duration::from_secs(60), expiring).await;
            assert!(expired.expect("it ends").is_err());
            assert!(is_there(&stuck).await && is_there(&used).await);
            assert!(!is_there(&gone[0]).await && !is_there(&gone[1]).await);
        }
        run(&catalog, "DROP TRIGGER stuck".to_owned()).await;
        assert_eq!(catalog.expire_copies(day).await.unwrap(), 1);
        assert!(!is_there(&stuck).await && is_there(&used).await);
    }
}
