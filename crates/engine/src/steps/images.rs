//! The images of a run: those that its steps have built are there at once, without a push.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use builder::{BaseImage, BaseImages, Built, ImageError, OwnNames, parse_config};
use oci::{Descriptor, Digest, Manifest, Platform, Reference};

use crate::platforms::BuiltImages;

/// Names that commands of a run may give, in all.
const NAMES_MAX: usize = 1000;

/// Images of the run by name, and all others where they are.
pub(crate) struct RunImages {
    others: Arc<dyn BaseImages>,
    own: OwnNames,
    named: Mutex<BTreeMap<String, Named>>,
    /// What commands have fetched from elsewhere, as it was then.
    pulled: Mutex<BTreeMap<String, Reference>>,
}

struct Named {
    name: Reference,
    image: RunImage,
}

/// What a name stands for in a run.
#[derive(Debug, Clone)]
pub(crate) enum RunImage {
    /// What a step of the run has built.
    Built(Arc<BuiltImages>),
    /// An image of elsewhere that a command gave another name; with its digest.
    Other(Box<Reference>),
}

impl RunImage {
    /// What the name points at.
    pub(crate) fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Built(built) => Some(&built.descriptor().digest),
            Self::Other(reference) => reference.digest.as_ref(),
        }
    }
}

impl RunImages {
    pub(crate) fn new(others: Arc<dyn BaseImages>, own: OwnNames) -> Self {
        Self { others, own, named: Mutex::default(), pulled: Mutex::default() }
    }

    /// A step has built an image. A name that was another's is this one's from now on.
    pub(crate) fn add(&self, names: &[Reference], built: &Arc<BuiltImages>) {
        let mut all = self.lock();
        for name in names {
            let image = RunImage::Built(Arc::clone(built));
            all.insert(self.key(name), Named { name: name.clone(), image });
        }
    }

    /// Gives an image another name; `false` if there are too many.
    pub(crate) fn add_name(&self, name: Reference, image: RunImage) -> bool {
        let (key, mut all) = (self.key(&name), self.lock());
        let has_room = all.len() < NAMES_MAX || all.contains_key(&key);
        if has_room {
            all.insert(key, Named { name, image });
        }
        has_room
    }

    /// Whether there was such a name.
    pub(crate) fn remove_name(&self, name: &Reference) -> bool {
        self.find(name).is_some() && self.lock().remove(&self.key(name)).is_some()
    }

    /// A command has fetched an image. Of too many the last ones are not remembered.
    pub(crate) fn note_pulled(&self, name: &Reference, digest: &Digest) {
        if self.find(name).is_some() {
            return;
        }
        let (key, mut pulled) = (self.pulled_key(name), lock(&self.pulled));
        if pulled.len() < NAMES_MAX || pulled.contains_key(&key) {
            let image = Reference { tag: None, digest: Some(digest.clone()), ..name.clone() };
            pulled.insert(key, image);
        }
    }

    /// What a command has fetched under a name that the run has given to nothing.
    pub(crate) fn pulled(&self, name: &Reference) -> Option<RunImage> {
        let image = lock(&self.pulled).get(&self.pulled_key(name)).cloned()?;
        Some(RunImage::Other(Box::new(image)))
    }

    /// What was fetched by its digest says nothing of a tag.
    fn pulled_key(&self, name: &Reference) -> String {
        match &name.digest {
            Some(digest) => format!("{}@{digest}", self.key(name)),
            None => self.key(name),
        }
    }

    /// All names that the run has given.
    pub(crate) fn names(&self) -> Vec<(Reference, RunImage)> {
        self.lock().values().map(|named| (named.name.clone(), named.image.clone())).collect()
    }

    /// What a name stands for, if the run has given it.
    pub(crate) fn find(&self, reference: &Reference) -> Option<RunImage> {
        let found = self.lock().get(&self.key(reference)).map(|named| named.image.clone())?;
        match &reference.digest {
            Some(digest) if found.digest() != Some(digest) => None,
            _ => Some(found),
        }
    }

    /// What a step of this run has built under a name, or where else the image is.
    fn built(&self, reference: &Reference) -> Result<Arc<BuiltImages>, Reference> {
        match self.find(reference) {
            Some(RunImage::Built(built)) => Ok(built),
            Some(RunImage::Other(other)) => Err(*other),
            None => Err(reference.clone()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Named>> {
        lock(&self.named)
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    async fn check(&self, reference: &Reference) -> Result<(), ImageError> {
        match self.built(reference) {
            Ok(_) => Ok(()),
            Err(other) => self.others.check(&other).await,
        }
    }

    async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<BaseImage, ImageError> {
        let built = match self.built(reference) {
            Ok(built) => built,
            Err(other) => return self.others.resolve(&other, platform, progress).await,
        };
        let name = reference.familiar();
        base_image(&name, &built, for_platform(&name, &built, platform)?)
    }

    async fn manifest(&self, reference: &Reference) -> Result<(Digest, Manifest), ImageError> {
        let built = match self.built(reference) {
            Ok(built) => built,
            Err(other) => return self.others.manifest(&other).await,
        };
        let bytes = match &built.index {
            Some(index) => &index.bytes,
            None => &built.images[0].manifest,
        };
        let parsed = Manifest::parse(bytes, Some(&built.descriptor().media_type));
        let parsed = parsed.map_err(|error| ImageError::Unusable {
            reference: reference.familiar(),
            reason: error.to_string(),
        })?;
        Ok((built.descriptor().digest.clone(), parsed))
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
            Ok(built) if built.blobs().contains(&blob.digest) => Ok(()),
            Ok(_) => self.others.fetch(reference, blob, progress).await,
            Err(other) => self.others.fetch(&other, blob, progress).await,
        }
    }
}
