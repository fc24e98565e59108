//! Base images that are named by their copies here.

use std::sync::Arc;

use async_trait::async_trait;
use builder::{BaseImage, BaseImages, CatalogImages, ImageError, OwnNames};
use oci::{Descriptor, Digest, Manifest, Platform, Reference};
use registry::PullThrough;

/// A copy may lack what nobody has pulled yet, so its image comes from where it is a copy of;
/// from here if that gives no answer.
pub(super) struct CopiedImages {
    pub(super) images: CatalogImages,
    pub(super) own: OwnNames,
    pub(super) pull_through: Arc<PullThrough>,
}

impl CopiedImages {
    /// What a reference is a copy of, if it is one.
    fn origin(&self, reference: &Reference) -> Option<Reference> {
        let own = self.own.registry(reference);
        own.and_then(|_| self.pull_through.origin(reference))
    }
}

#[async_trait]
impl BaseImages for CopiedImages {
    async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<BaseImage, ImageError> {
        let Some(origin) = self.origin(reference) else {
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

    async fn manifest(&self, reference: &Reference) -> Result<(Digest, Manifest), ImageError> {
        let origin = self.origin(reference);
        self.images.manifest(origin.as_ref().unwrap_or(reference)).await
    }

    async fn fetch(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), ImageError> {
        let origin = self.origin(reference);
        self.images.fetch(origin.as_ref().unwrap_or(reference), blob, progress).await
    }

    async fn referrers(
        &self,
        repository: &Reference,
        subject: &Digest,
        artifact_types: &[&str],
    ) -> Result<Vec<Descriptor>, ImageError> {
        let origin = self.origin(repository);
        let repository = origin.as_ref().unwrap_or(repository);
        self.images.referrers(repository, subject, artifact_types).await
    }
}
