//! Making a built image visible: the last thing a run does, and the only one that others see.

use std::time::Duration;

use async_trait::async_trait;
use builder::Built;
use bytes::Bytes;
use oci::{Digest, Manifest, RegistryName};
use store::{Catalog, Cause, Expected, NewManifest, StoreError};

use crate::Destination;

/// The right of an attempt to publish: held by one attempt of a run at a time.
#[async_trait]
pub trait Lease: Send + Sync {
    /// Whether this attempt is still the one that may publish.
    async fn holds(&self) -> bool;
}

/// Where a built image goes.
pub struct Publication<'a> {
    pub run: &'a str,
    pub registry: &'a RegistryName,
    /// Empty: nowhere; the image is kept for a day by a lease.
    pub names: &'a [Destination],
}

#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("another attempt of this run has taken over")]
    LeaseLost,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How long an image that nothing names is kept.
const UNNAMED_KEEP: Duration = Duration::from_secs(24 * 60 * 60);

/// Publishes an image under its names: blobs first, then the manifest together with its tags.
///
/// Repeating it is harmless. The lease is asked again before each repository.
pub async fn publish(
    catalog: &Catalog,
    built: &Built,
    publication: &Publication<'_>,
    lease: &dyn Lease,
) -> Result<(), PublishError> {
    let registry = publication.registry;
    let cause = Cause::Build { run: publication.run.to_owned() };
    let blobs = blobs_of(built);
    // Nothing is collected while it is on its way, nor for a day if it has no name.
    let owner = format!("publish:{}", publication.run);
    for digest in &blobs {
        catalog.lease_blob(&owner, digest, UNNAMED_KEEP).await?;
    }
    if publication.names.is_empty() {
        return keep_unnamed(catalog, built, &owner).await;
    }
    let manifest = Manifest::parse(&built.manifest, Some(&built.descriptor.media_type))
        .expect("the builder writes valid manifests");
    let mut repositories: Vec<_> = publication.names.iter().map(|name| &name.repository).collect();
    repositories.sort();
    repositories.dedup();
    for repository in repositories {
        for digest in &blobs {
            catalog.link_blob(registry, repository, digest).await?;
        }
        let tags: Vec<_> = (publication.names.iter())
            .filter(|name| name.repository == *repository)
            .map(|name| (name.tag.clone(), Expected::Any))
            .collect();
        if !lease.holds().await {
            return Err(PublishError::LeaseLost);
        }
        let new = NewManifest {
            digest: &built.descriptor.digest,
            media_type: &built.descriptor.media_type,
            bytes: built.manifest.clone(),
            manifest: &manifest,
        };
        catalog.put_manifest(registry, repository, new, &tags, &cause).await?;
    }
    let record = serde_json::to_string(&built.record).expect("plain structs serialize");
    catalog.put_build_record(registry, &built.descriptor.digest, &record).await?;
    catalog.release_leases(&owner).await?;
    Ok(())
}

/// Keeps the manifest as a blob under the lease that its layers have already.
async fn keep_unnamed(catalog: &Catalog, built: &Built, owner: &str) -> Result<(), PublishError> {
    let bytes: Bytes = built.manifest.clone();
    let mut upload = catalog.blobs().begin_upload(oci::Algorithm::Sha256).await?;
    upload.write(bytes).await?;
    upload.commit(Some(&built.descriptor.digest)).await?;
    catalog.lease_blob(owner, &built.descriptor.digest, UNNAMED_KEEP).await?;
    Ok(())
}

fn blobs_of(built: &Built) -> Vec<Digest> {
    let layers = built.layers.iter().map(|layer| layer.descriptor.digest.clone());
    let mut blobs: Vec<Digest> = layers.chain([built.record.output.config.clone()]).collect();
    blobs.sort();
    blobs.dedup();
    blobs
}
