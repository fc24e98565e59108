//! Making a built image visible: the last thing a run does, and the only one that others see.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use builder::CacheImage;
use bytes::Bytes;
use oci::{Descriptor, Digest, Manifest, RegistryName};
use store::{Catalog, Cause, Expected, NewManifest, StoreError};

use crate::{BuiltImages, Destination, NamedCache};

/// The right of an attempt to publish: held by one attempt of a run at a time.
#[async_trait]
pub trait Lease: Send + Sync {
    /// Whether this attempt is still the one that may publish.
    async fn holds(&self) -> bool;

    /// The same, asked before the first step of a task. Unless it is `repeatable`, something outside
    /// may have seen this attempt from then on.
    async fn begin_steps(&self, _repeatable: bool) -> bool {
        self.holds().await
    }
}

/// Where a built image goes.
pub struct Publication<'a> {
    pub run: &'a str,
    pub registry: &'a RegistryName,
    /// Empty: nowhere; the image is kept for a day by a lease.
    pub names: &'a [Destination],
    /// Published after the image, each on its own.
    pub caches: &'a [NamedCache],
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

/// Publishes an image under its names: blobs first, then the manifest together with its tags; of
/// several platforms the manifests first, and then the index.
///
/// Repeating it is harmless. The lease is asked again before each repository.
pub async fn publish(
    catalog: &Catalog,
    built: &BuiltImages,
    publication: &Publication<'_>,
    lease: &dyn Lease,
) -> Result<(), PublishError> {
    let registry = publication.registry;
    let cause = Cause::Build { run: publication.run.to_owned() };
    for NamedCache { image, .. } in publication.caches {
        store_blob(catalog, &image.config, &image.config_descriptor.digest).await?;
    }
    // Nothing is collected while it is on its way, nor for a day if it has no name.
    let owner = lease_owner(registry, publication.run);
    let manifests = manifests_of(built);
    let repositories: BTreeSet<_> = publication.names.iter().map(|name| &name.repository).collect();
    // One manifest in one repository comes with its blobs, or not at all.
    let is_one_write = (manifests.len(), repositories.len(), publication.caches.len()) == (1, 1, 0);
    if !is_one_write {
        let of_caches = publication.caches.iter().flat_map(|cache| cache_blobs(&cache.image));
        let held: Vec<Digest> = built.blobs().into_iter().chain(of_caches.cloned()).collect();
        catalog.lease_blobs(&owner, &held, UNNAMED_KEEP).await?;
    }
    if publication.names.is_empty() {
        keep_unnamed(catalog, &manifests, &owner).await?;
    }
    for repository in repositories {
        if !lease.holds().await {
            return Err(PublishError::LeaseLost);
        }
        for (descriptor, bytes) in &manifests {
            let manifest = Manifest::parse(bytes, Some(&descriptor.media_type))
                .expect("the builder writes valid manifests");
            let is_named = *descriptor == built.descriptor();
            let tags: Vec<_> = (publication.names.iter())
                .filter(|name| is_named && name.repository == *repository)
                .map(|name| (name.tag.clone(), Expected::Any))
                .collect();
            let new = new_manifest(descriptor, bytes, &manifest);
            let put = match built.images.iter().find(|image| image.descriptor == **descriptor) {
                Some(image) => {
                    let record = &image.record;
                    let record = serde_json::to_string(record).expect("plain structs serialize");
                    catalog.put_built(registry, repository, new, &record, &tags, &cause).await
                }
                None => catalog.put_manifest(registry, repository, new, &tags, &cause).await,
            };
            put?;
        }
    }
    for cache in publication.caches {
        if !lease.holds().await {
            return Err(PublishError::LeaseLost);
        }
        publish_cache(catalog, registry, cache, &cause).await?;
    }
    // Without a name the image has nothing else that keeps it.
    if !publication.names.is_empty() && !is_one_write {
        catalog.release_leases(&owner).await?;
    }
    Ok(())
}

/// Publishes a cache whose blobs are stored, as an image is.
async fn publish_cache(
    catalog: &Catalog,
    registry: &RegistryName,
    cache: &NamedCache,
    cause: &Cause,
) -> Result<(), PublishError> {
    let NamedCache { name, image } = cache;
    catalog.link_blobs(registry, &name.repository, cache_blobs(image)).await?;
    let descriptor = &image.descriptor;
    let manifest = Manifest::parse(&image.manifest, Some(&descriptor.media_type))
        .expect("the builder writes valid manifests");
    let new = new_manifest(descriptor, &image.manifest, &manifest);
    let tags = [(name.tag.clone(), Expected::Any)];
    catalog.put_manifest(registry, &name.repository, new, &tags, cause).await?;
    Ok(())
}

fn new_manifest<'a>(
    descriptor: &'a Descriptor,
    bytes: &Bytes,
    manifest: &'a Manifest,
) -> NewManifest<'a> {
    let (digest, media_type) = (&descriptor.digest, descriptor.media_type.as_str());
    NewManifest { digest, media_type, bytes: bytes.clone(), manifest }
}

fn cache_blobs(image: &CacheImage) -> impl Iterator<Item = &Digest> {
    image.layers.iter().chain([&image.config_descriptor]).map(|descriptor| &descriptor.digest)
}

async fn store_blob(catalog: &Catalog, bytes: &Bytes, digest: &Digest) -> store::Result<()> {
    let mut upload = catalog.blobs().begin_upload(oci::Algorithm::Sha256).await?;
    upload.write(bytes.clone()).await?;
    upload.commit(Some(digest)).await?;
    Ok(())
}

/// Ends what [`publish`] holds if it was cut off.
pub(crate) async fn abandon(catalog: &Catalog, registry: &RegistryName, run: &str) {
    let owner = lease_owner(registry, run);
    if let Err(error) = catalog.release_leases(&owner).await {
        tracing::warn!(%error, owner, "leases not released; they end within a day");
    }
}

/// Runs have their numbers from their registry.
fn lease_owner(registry: &RegistryName, run: &str) -> String {
    format!("publish/{registry}/{run}")
}

/// Keeps manifests as blobs under the lease that their layers have already.
async fn keep_unnamed(
    catalog: &Catalog,
    manifests: &[(&Descriptor, Bytes)],
    owner: &str,
) -> Result<(), PublishError> {
    for (descriptor, bytes) in manifests {
        store_blob(catalog, bytes, &descriptor.digest).await?;
        catalog.lease_blob(owner, &descriptor.digest, UNNAMED_KEEP).await?;
    }
    Ok(())
}

/// The manifests of the images; last, if there is one, the index, which needs the others.
pub(crate) fn manifests_of(built: &BuiltImages) -> Vec<(&Descriptor, Bytes)> {
    let images = built.images.iter().map(|image| (&image.descriptor, image.manifest.clone()));
    let index = built.index.iter().map(|index| (&index.descriptor, index.bytes.clone()));
    images.chain(index).collect()
}
