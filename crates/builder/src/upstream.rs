//! Base images from other registries.

use async_trait::async_trait;
use oci::{Descriptor, Digest, Manifest, Platform, Reference};
use remote::{Remote, RemoteError};
use store::Catalog;

use crate::image::{BaseImage, BaseImages, ImageError, parse_config};

/// Pulls images into the store. What the same repository has sent before is not fetched again,
/// but the registry is asked each time what a tag means.
pub struct RemoteImages {
    remote: Remote,
    catalog: Catalog,
}

impl RemoteImages {
    pub fn new(remote: Remote, catalog: Catalog) -> Self {
        Self { remote, catalog }
    }
}

#[async_trait]
impl BaseImages for RemoteImages {
    async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<BaseImage, ImageError> {
        let name = reference.familiar();
        let pulled = self.remote.pull(reference, platform, &self.catalog, progress).await;
        let pulled = pulled.map_err(|error| translate(&name, error))?;
        let config = parse_config(&name, &pulled.resolved.manifest, &pulled.config)?;
        let (top, digest) = (pulled.resolved.top, pulled.resolved.digest);
        Ok(BaseImage { top, digest, manifest: pulled.resolved.manifest, config })
    }

    async fn manifest(&self, reference: &Reference) -> Result<(Digest, Manifest), ImageError> {
        let fetched = self.remote.fetch_manifest(reference).await;
        let fetched = fetched.map_err(|error| translate(&reference.familiar(), error))?;
        Ok((fetched.digest, fetched.manifest))
    }

    async fn fetch(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), ImageError> {
        let fetched = self.remote.fetch_blobs(reference, [blob], &self.catalog, progress).await;
        fetched.map(|_| ()).map_err(|error| translate(&reference.familiar(), error))
    }

    async fn referrers(
        &self,
        repository: &Reference,
        subject: &Digest,
        artifact_types: &[&str],
    ) -> Result<Vec<Descriptor>, ImageError> {
        let listed = self.remote.referrers(repository, subject).await;
        let mut listed = listed.map_err(|error| translate(&repository.familiar(), error))?;
        listed.retain(|referrer| {
            let artifact_type = referrer.artifact_type.as_deref();
            artifact_type.is_some_and(|artifact_type| artifact_types.contains(&artifact_type))
        });
        Ok(listed)
    }
}

fn translate(name: &str, error: RemoteError) -> ImageError {
    let reference = name.to_owned();
    match error {
        RemoteError::NoPlatform { wanted, offered, .. } => {
            ImageError::NoPlatform { reference, wanted, offered }
        }
        RemoteError::BadManifest { reason, .. } => ImageError::Unusable { reference, reason },
        RemoteError::Store(source) => ImageError::Store { reference, source },
        error => {
            let refused = matches!(
                error,
                RemoteError::NotFound { .. }
                    | RemoteError::Denied { .. }
                    | RemoteError::Forbidden { .. }
            );
            let (reason, hint) = (error.to_string(), error.hint());
            ImageError::Pull { reference, reason, hint, refused }
        }
    }
}
