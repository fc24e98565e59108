//! Base images from other registries.

use async_trait::async_trait;
use oci::{Platform, Reference};
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
        let pulled = pulled.map_err(|error| translate(&name, platform, error))?;
        let config = parse_config(&name, &pulled.resolved.manifest, &pulled.config)?;
        let (top, digest) = (pulled.resolved.top, pulled.resolved.digest);
        Ok(BaseImage { top, digest, manifest: pulled.resolved.manifest, config })
    }
}

fn translate(name: &str, platform: &Platform, error: RemoteError) -> ImageError {
    let reference = name.to_owned();
    match error {
        RemoteError::NoPlatform { offered, .. } => {
            ImageError::NoPlatform { reference, wanted: platform.to_string(), offered }
        }
        RemoteError::BadManifest { reason, .. } => ImageError::Unusable { reference, reason },
        RemoteError::Store(source) => ImageError::Store { reference, source },
        error => {
            let refused =
                matches!(error, RemoteError::NotFound { .. } | RemoteError::Denied { .. });
            let (reason, hint) = (error.to_string(), error.hint());
            ImageError::Pull { reference, reason, hint, refused }
        }
    }
}
