//! Base images from other registries, kept for a while.

use std::time::Duration;

use async_trait::async_trait;
use builder::{BaseImage, BaseImages, ImageError, RemoteImages};
use oci::{Platform, Reference};
use store::Catalog;

/// How long a base image's blobs are kept after a build used them: longer than a build can
/// last, and the next build of the day finds them here.
const KEEP: Duration = Duration::from_secs(24 * 60 * 60);

/// Owner of the leases on them.
const LEASE_OWNER: &str = "base-images";

/// Pulls images and leases what they are made of: no manifest of ours names it.
pub(super) struct KeptImages {
    remote: RemoteImages,
    catalog: Catalog,
}

impl KeptImages {
    pub(super) fn new(remote: RemoteImages, catalog: Catalog) -> Self {
        Self { remote, catalog }
    }
}

#[async_trait]
impl BaseImages for KeptImages {
    async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<BaseImage, ImageError> {
        let image = self.remote.resolve(reference, platform, progress).await?;
        for descriptor in image.manifest.layers.iter().chain([&image.manifest.config]) {
            let leased = self.catalog.lease_blob(LEASE_OWNER, &descriptor.digest, KEEP).await;
            let reference = || reference.familiar();
            leased.map_err(|source| ImageError::Store { reference: reference(), source })?;
        }
        Ok(image)
    }
}
