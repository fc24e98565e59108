//! The images of a run: those that its steps have built are there at once, without a push.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use builder::{BaseImage, BaseImages, Built, ImageError, OwnNames, parse_config};
use oci::{Descriptor, Manifest, Platform, Reference};

use crate::platforms::BuiltImages;

/// Images of the run by name, and all others where they are.
pub(crate) struct RunImages {
    others: Arc<dyn BaseImages>,
    own: OwnNames,
    built: Mutex<BTreeMap<String, Arc<BuiltImages>>>,
}

impl RunImages {
    pub(crate) fn new(others: Arc<dyn BaseImages>, own: OwnNames) -> Self {
        Self { others, own, built: Mutex::default() }
    }

    /// A step has built an image. A name that was another's is this one's from now on.
    pub(crate) fn add(&self, names: &[Reference], built: &Arc<BuiltImages>) {
        let mut all = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        for name in names {
            all.insert(self.key(name), Arc::clone(built));
        }
    }

    /// What a step of this run has built under a name.
    pub(crate) fn built(&self, reference: &Reference) -> Option<Arc<BuiltImages>> {
        let all = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        let found = all.get(&self.key(reference)).cloned()?;
        match &reference.digest {
            Some(digest) if found.descriptor().digest != *digest => None,
            _ => Some(found),
        }
    }

    /// The same text for all names of an image: an own registry may have several hosts.
    fn key(&self, reference: &Reference) -> String {
        let Reference { host, repository, tag, .. } = reference;
        let host = match self.own.registry(reference) {
            Some(registry) => format!("={registry}"),
            None => host.to_ascii_lowercase(),
        };
        let tag = tag.as_ref().map_or("latest", |tag| tag.as_str());
        format!("{host}/{repository}:{tag}")
    }
}

/// The image for a platform, of several.
fn for_platform<'a>(
    name: &str,
    built: &'a BuiltImages,
    wanted: &Platform,
) -> Result<&'a Built, ImageError> {
    let fits = |image: &&Built| {
        image.platform.os == wanted.os && image.platform.architecture == wanted.architecture
    };
    match built.images.as_slice() {
        // As docker does: what was built for another platform on purpose may be tried.
        [only] => Ok(only),
        several => several.iter().find(fits).ok_or_else(|| ImageError::NoPlatform {
            reference: name.to_owned(),
            wanted: wanted.to_string(),
            offered: several.iter().map(|image| image.platform.to_string()).collect(),
        }),
    }
}

fn base_image(name: &str, built: &BuiltImages, image: &Built) -> Result<BaseImage, ImageError> {
    let unusable = |reason: String| ImageError::Unusable { reference: name.to_owned(), reason };
    let manifest = Manifest::parse(&image.manifest, Some(&image.descriptor.media_type))
        .map_err(|error| unusable(error.to_string()))?;
    let Manifest::Image(manifest) = manifest else {
        return Err(unusable("it is not an image".to_owned()));
    };
    let config = parse_config(name, &manifest, &image.config)?;
    let (top, digest) = (built.descriptor().digest.clone(), image.descriptor.digest.clone());
    Ok(BaseImage { top, digest, manifest: *manifest, config })
}

#[async_trait]
impl BaseImages for RunImages {
    async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<BaseImage, ImageError> {
        let Some(built) = self.built(reference) else {
            return self.others.resolve(reference, platform, progress).await;
        };
        let name = reference.familiar();
        base_image(&name, &built, for_platform(&name, &built, platform)?)
    }

    async fn manifest(&self, reference: &Reference) -> Result<Manifest, ImageError> {
        let Some(built) = self.built(reference) else {
            return self.others.manifest(reference).await;
        };
        let bytes = match &built.index {
            Some(index) => &index.bytes,
            None => &built.images[0].manifest,
        };
        let parsed = Manifest::parse(bytes, Some(&built.descriptor().media_type));
        parsed.map_err(|error| ImageError::Unusable {
            reference: reference.familiar(),
            reason: error.to_string(),
        })
    }

    /// What a step has built is in the store.
    async fn fetch(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), ImageError> {
        // The manifest that names it may be from before a step took over the name.
        match self.built(reference) {
            Some(built) if built.blobs().contains(&blob.digest) => Ok(()),
            _ => self.others.fetch(reference, blob, progress).await,
        }
    }
}
