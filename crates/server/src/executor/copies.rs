//! Base images that are named by their copies here.

use std::sync::Arc;

use async_trait::async_trait;
use builder::{BaseImage, BaseImages, CatalogImages, ImageError, OwnNames};
use oci::{Platform, Reference};
use registry::PullThrough;

/// A copy may lack what nobody has pulled yet, so its image comes from where it is a copy of;
/// from here if that gives no answer.
pub(super) struct CopiedImages {
    pub(super) images: CatalogImages,
    pub(super) own: OwnNames,
    pub(super) pull_through: Arc<PullThrough>,
}

#[async_trait]
impl BaseImages for CopiedImages {
    async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<BaseImage, ImageError> {
        let own = self.own.registry(reference);
        let Some(origin) = own.and_then(|_| self.pull_through.origin(reference)) else {
            return self.images.resolve(reference, platform, progress).await;
        };
        match self.images.resolve(&origin, platform, progress).await {
            Err(ImageError::Pull { refused: false, reference: name, reason, hint }) => {
                let kept = self.images.resolve(reference, platform, progress).await;
                let refused = false;
                kept.map_err(|_| ImageError::Pull { refused, reference: name, reason, hint })
            }
            resolved => resolved,
        }
    }
}
