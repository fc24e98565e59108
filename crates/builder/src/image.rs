//! Base images: what a `FROM` or a `COPY --from` names.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use oci::{
    Descriptor, Digest, ImageConfig, ImageIndex, ImageManifest, MANIFEST_SIZE_MAX, Manifest,
    Platform, Reference, RegistryName, media_type,
};
use store::{BlobStore, Catalog, ManifestRef, StoreError};

/// An image whose config and layers can be read through the blob store.
#[derive(Debug, Clone)]
pub struct BaseImage {
    /// What the reference itself points at: an index, or the manifest.
    pub top: Digest,
    /// The manifest of the platform.
    pub digest: Digest,
    pub manifest: ImageManifest,
    pub config: ImageConfig,
}

/// Why an image cannot be used as a base.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("image `{reference}` is not in this registry")]
    NotFound { reference: String },
    #[error("image `{reference}` is not in this registry and pulling is not configured")]
    NoPulling { reference: String, own: Option<String> },
    #[error("image `{reference}` is not made for {wanted}")]
    NoPlatform { reference: String, wanted: String, offered: Vec<String> },
    #[error("`{reference}` is not an image that can be built upon: {reason}")]
    Unusable { reference: String, reason: String },
    /// The registry it should come from did not give it. `refused`: it answered that it does
    /// not have it or that we may not have it, and another attempt would not help.
    #[error("image `{reference}` could not be pulled: {reason}")]
    Pull { reference: String, reason: String, hint: Option<String>, refused: bool },
    /// An image of the own registry that the store did not keep whole.
    #[error("image `{reference}` is damaged: the store has lost {what} of it")]
    Damaged { reference: String, what: String },
    /// The server's policy does not have it.
    #[error("image `{reference}` is not one that runs may use here")]
    NotAllowed { reference: String, allowed: Vec<String> },
    /// The server's policy has it only with a signature by one of these keys.
    #[error("image `{reference}` is not signed by {keys}, and runs may use it here only if it is")]
    NotSigned { reference: String, keys: String, hint: String },
    #[error("image `{reference}` could not be read from the store")]
    Store {
        reference: String,
        #[source]
        source: StoreError,
    },
}

impl ImageError {
    /// What the user can do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoPulling { own: Some(own), .. } => Some(own_hint(own)),
            Self::NoPlatform { offered, .. } if !offered.is_empty() => {
                Some(format!("it is there for {}", offered.join(", ")))
            }
            Self::Pull { hint, .. } => hint.clone(),
            Self::NotSigned { hint, .. } => Some(hint.clone()),
            Self::NotAllowed { allowed, .. } => Some(format!(
                "these are `{}`; the operator of this server can add to `build.images`",
                allowed.join("`, `")
            )),
            Self::Damaged { .. } => Some("push that image again, or build it again".to_owned()),
            _ => None,
        }
    }
}

fn own_hint(own: &str) -> String {
    format!("this registry has that image under its own name: `{own}`")
}

/// Finds images and brings them where the blob store can read them.
#[async_trait]
pub trait BaseImages: Send + Sync {
    /// Refuses an image that may not be used, before anything is done for it. One that cannot be
    /// looked at yet is refused when it is used.
    async fn check(&self, _reference: &Reference) -> Result<(), ImageError> {
        Ok(())
    }

    /// The image that a reference means on a platform. `progress` is told of bytes that had
    /// to be fetched, as they come.
    async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<BaseImage, ImageError>;

    /// The manifest that a reference names, of whatever kind, with its digest.
    async fn manifest(&self, reference: &Reference) -> Result<(Digest, Manifest), ImageError>;

    /// Brings a blob of such a manifest where the blob store can read it, under the same rules as
    /// those of images.
    async fn fetch(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), ImageError>;

    /// The manifests of these artifact types whose subject is this one of a repository. Only the
    /// policy asks, so what is in front of it has nothing to say.
    async fn referrers(
        &self,
        _repository: &Reference,
        _subject: &Digest,
        _artifact_types: &[&str],
    ) -> Result<Vec<Descriptor>, ImageError> {
        Ok(Vec::new())
    }
}

/// Which host names mean a registry of this server (architecture.md, *Several registries*).
#[derive(Debug, Clone, Default)]
pub struct OwnNames {
    names: Vec<(String, RegistryName)>,
}

impl OwnNames {
    pub fn new(names: impl IntoIterator<Item = (String, RegistryName)>) -> Self {
        let names = names.into_iter().map(|(host, name)| (host.to_ascii_lowercase(), name));
        Self { names: names.collect() }
    }

    /// The registry that a reference's host names, if it is one of ours.
    pub fn registry(&self, reference: &Reference) -> Option<&RegistryName> {
        let host = reference.host.to_ascii_lowercase();
        self.names.iter().find(|(own, _)| *own == host).map(|(_, registry)| registry)
    }

    /// The host names of a registry, the one to show first.
    pub fn hosts<'a>(&'a self, registry: &'a RegistryName) -> impl Iterator<Item = &'a str> {
        let own = self.names.iter().filter(move |(_, name)| name == registry);
        own.map(|(host, _)| host.as_str())
    }

    /// The host names of all registries.
    pub fn all_hosts(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|(host, _)| host.as_str())
    }

    /// The first host name of a registry, to be shown to people.
    pub fn host(&self, registry: &RegistryName) -> Option<&str> {
        self.names.iter().find(|(_, name)| name == registry).map(|(host, _)| host.as_str())
    }
}

/// So many of one artifact type are looked at.
const REFERRERS_MAX: usize = 100;

/// Images of the own registry, straight from the catalog; all others through `upstream`.
pub struct CatalogImages {
    catalog: Catalog,
    /// The registry that the build runs for: a bare name is looked up there for a hint.
    registry: RegistryName,
    own: OwnNames,
    upstream: Option<Arc<dyn BaseImages>>,
}

impl CatalogImages {
    pub fn new(
        catalog: Catalog,
        registry: RegistryName,
        own: OwnNames,
        upstream: Option<Arc<dyn BaseImages>>,
    ) -> Self {
        Self { catalog, registry, own, upstream }
    }

    /// A manifest of one of our registries. A run sees its own registry only: the name of
    /// another one on this server finds nothing (decision 7).
    async fn own_manifest(
        &self,
        registry: &RegistryName,
        reference: &Reference,
    ) -> Result<(Digest, Manifest), ImageError> {
        let name = reference.familiar();
        if *registry != self.registry {
            return Err(ImageError::NotFound { reference: name });
        }
        let wanted = match (&reference.digest, reference.tag_or_latest()) {
            (Some(digest), _) => ManifestRef::Digest(digest.clone()),
            (None, Some(tag)) => ManifestRef::Tag(tag),
            (None, None) => ManifestRef::Tag(oci::Tag::latest()),
        };
        let entry = self.catalog.manifest(registry, &reference.repository, &wanted).await;
        let entry = entry.map_err(|source| match source {
            // The catalog knows the manifest, and its bytes are gone.
            StoreError::NotFound { what } => damaged(&name, what),
            source => unread(&name, source),
        })?;
        let Some(entry) = entry else { return Err(ImageError::NotFound { reference: name }) };
        let manifest = parse(&name, &entry.bytes, &entry.media_type)?;
        Ok((entry.digest, manifest))
    }

    /// An image of one of our registries.
    async fn own_image(
        &self,
        registry: &RegistryName,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<BaseImage, ImageError> {
        let name = reference.familiar();
        let failed = |source| ImageError::Store { reference: name.clone(), source };
        let (top, mut manifest) = self.own_manifest(registry, reference).await?;
        let mut digest = top.clone();
        if let Manifest::Index(index) = &manifest {
            digest = for_platform(&name, index, platform)?.digest.clone();
            let chosen = Reference { digest: Some(digest.clone()), ..reference.clone() };
            (_, manifest) = self.own_manifest(registry, &chosen).await?;
        }
        let Manifest::Image(manifest) = manifest else {
            return Err(unusable(&name, "it is an index inside an index, or an artifact"));
        };
        let blobs = &**self.catalog.blobs();
        let config = read_config(&name, &manifest, blobs).await?;
        for layer in &manifest.layers {
            if blobs.stat(&layer.digest).await.map_err(failed)?.is_none() {
                return Err(damaged(&name, format!("layer {}", layer.digest)));
            }
        }
        Ok(BaseImage { top, digest, manifest: *manifest, config })
    }

    /// Says so if the own registry has what a bare name was meant to be.
    async fn with_namesake(&self, reference: &Reference, error: ImageError) -> ImageError {
        match error {
            ImageError::Pull { reference: name, reason, hint, refused } => {
                let own = self.own_namesake(reference).await;
                let hint = own.map(|own| own_hint(&own)).or(hint);
                ImageError::Pull { reference: name, reason, hint, refused }
            }
            error => error,
        }
    }

    /// Where images of other registries come from.
    async fn upstream(&self, reference: &Reference) -> Result<&dyn BaseImages, ImageError> {
        match &self.upstream {
            Some(upstream) => Ok(&**upstream),
            None => {
                let own = self.own_namesake(reference).await;
                Err(ImageError::NoPulling { reference: reference.familiar(), own })
            }
        }
    }

    /// The name under which the own registry has what a bare name was meant to be.
    async fn own_namesake(&self, reference: &Reference) -> Option<String> {
        if reference.has_host {
            return None;
        }
        let familiar = reference.familiar();
        let host = self.own.host(&self.registry)?;
        let own: Reference = format!("{host}/{familiar}").parse().ok()?;
        let tag = own.tag_or_latest()?;
        let tag = ManifestRef::Tag(tag);
        let found = self.catalog.manifest(&self.registry, &own.repository, &tag).await;
        found.ok().flatten().map(|_| own.familiar())
    }
}

#[async_trait]
impl BaseImages for CatalogImages {
    async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<BaseImage, ImageError> {
        if let Some(registry) = self.own.registry(reference) {
            return self.own_image(registry, reference, platform).await;
        }
        let resolved = self.upstream(reference).await?.resolve(reference, platform, progress).await;
        match resolved {
            Err(error) => Err(self.with_namesake(reference, error).await),
            resolved => resolved,
        }
    }

    async fn manifest(&self, reference: &Reference) -> Result<(Digest, Manifest), ImageError> {
        if let Some(registry) = self.own.registry(reference) {
            return self.own_manifest(registry, reference).await;
        }
        match self.upstream(reference).await?.manifest(reference).await {
            Err(error) => Err(self.with_namesake(reference, error).await),
            manifest => manifest,
        }
    }

    /// What the own registry has is there already; the repository must have it.
    async fn fetch(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), ImageError> {
        let Some(registry) = self.own.registry(reference) else {
            return self.upstream(reference).await?.fetch(reference, blob, progress).await;
        };
        let name = reference.familiar();
        let size = match *registry == self.registry {
            true => {
                let repository = &reference.repository;
                self.catalog.blob_size(registry, repository, &blob.digest).await
            }
            false => Ok(None),
        };
        match size {
            Ok(Some(size)) if size == blob.size => Ok(()),
            Ok(_) => Err(damaged(&name, format!("blob {}", blob.digest))),
            Err(source) => Err(unread(&name, source)),
        }
    }

    async fn referrers(
        &self,
        repository: &Reference,
        subject: &Digest,
        artifact_types: &[&str],
    ) -> Result<Vec<Descriptor>, ImageError> {
        let Some(registry) = self.own.registry(repository) else {
            let upstream = self.upstream(repository).await?;
            return upstream.referrers(repository, subject, artifact_types).await;
        };
        let mut all = Vec::new();
        if *registry != self.registry {
            return Ok(all);
        }
        for artifact_type in artifact_types {
            let listed = self.catalog.referrers(
                registry,
                &repository.repository,
                subject,
                Some(artifact_type),
                None,
                REFERRERS_MAX,
            );
            let (listed, _) =
                listed.await.map_err(|source| unread(&repository.familiar(), source))?;
            all.extend(listed.into_iter().map(|referrer| referrer.descriptor));
        }
        Ok(all)
    }
}

/// What the own registry does not give.
fn unread(name: &str, source: StoreError) -> ImageError {
    let reference = name.to_owned();
    match source {
        StoreError::Locked(locked) => {
            let (reason, hint) = (locked.to_string(), Some(locked.hint()));
            ImageError::Pull { reference, reason, hint, refused: true }
        }
        source => ImageError::Store { reference, source },
    }
}

/// An image that somebody handed in with a build, as a set of blobs that the store has now.
///
/// Only those blobs belong to it: that the store has a blob is no reason to give it to whoever
/// knows its digest (architecture.md decision 7).
#[derive(Debug, Clone)]
pub struct StoredImage {
    /// The manifest or index.
    pub top: Digest,
    pub blobs: BTreeSet<Digest>,
}

/// Finds the manifest of a platform in an image that was handed in.
pub(crate) async fn stored_image(
    blobs: &dyn BlobStore,
    name: &str,
    image: &StoredImage,
    platform: &Platform,
) -> Result<BaseImage, ImageError> {
    let top = image.top.clone();
    let mut digest = top.clone();
    let mut manifest = stored_manifest(blobs, name, image, &digest).await?;
    if let Manifest::Index(index) = &manifest {
        digest = for_platform(name, index, platform)?.digest.clone();
        manifest = stored_manifest(blobs, name, image, &digest).await?;
    }
    let Manifest::Image(manifest) = manifest else {
        return Err(unusable(name, "it is an index inside an index, or an artifact"));
    };
    for descriptor in manifest.layers.iter().chain([&manifest.config]) {
        image.check_has(name, &descriptor.digest)?;
        let failed = |source| ImageError::Store { reference: name.to_owned(), source };
        match blobs.stat(&descriptor.digest).await.map_err(failed)? {
            Some(size) if size == descriptor.size => (),
            Some(size) => {
                let (digest, said) = (&descriptor.digest, descriptor.size);
                let reason = format!("{digest} has {size} bytes, and its manifest says {said}");
                return Err(unusable(name, &reason));
            }
            None => return Err(damaged(name, descriptor.digest.to_string())),
        }
    }
    let config = read_config(name, &manifest, blobs).await?;
    Ok(BaseImage { top, digest, manifest: *manifest, config })
}

impl StoredImage {
    fn check_has(&self, name: &str, digest: &Digest) -> Result<(), ImageError> {
        match self.blobs.contains(digest) {
            true => Ok(()),
            false => Err(unusable(name, &format!("it lacks blob {digest}"))),
        }
    }
}

async fn stored_manifest(
    blobs: &dyn BlobStore,
    name: &str,
    image: &StoredImage,
    digest: &Digest,
) -> Result<Manifest, ImageError> {
    image.check_has(name, digest)?;
    let failed = |source| ImageError::Store { reference: name.to_owned(), source };
    let size = blobs.stat(digest).await.map_err(failed)?;
    let size = size.ok_or_else(|| damaged(name, format!("manifest {digest}")))?;
    if size > MANIFEST_SIZE_MAX as u64 {
        return Err(unusable(name, &format!("its manifest {digest} is too large")));
    }
    let bytes = store_read(blobs, digest, size).await.map_err(failed)?;
    if Digest::with(digest.algorithm(), &bytes) != *digest {
        return Err(damaged(name, format!("manifest {digest}")));
    }
    Manifest::parse(&bytes, None).map_err(|error| unusable(name, &error.to_string()))
}

fn for_platform<'a>(
    name: &str,
    index: &'a ImageIndex,
    platform: &Platform,
) -> Result<&'a oci::Descriptor, ImageError> {
    index.for_platform(platform).ok_or_else(|| {
        let offered: BTreeSet<String> = (index.manifests.iter())
            .filter_map(|manifest| manifest.platform.as_ref())
            .map(Platform::to_string)
            .collect();
        let (wanted, offered) = (platform.to_string(), offered.into_iter().collect());
        ImageError::NoPlatform { reference: name.to_owned(), wanted, offered }
    })
}

fn parse(name: &str, bytes: &[u8], media_type: &str) -> Result<Manifest, ImageError> {
    Manifest::parse(bytes, Some(media_type)).map_err(|error| unusable(name, &error.to_string()))
}

fn unusable(name: &str, reason: &str) -> ImageError {
    ImageError::Unusable { reference: name.to_owned(), reason: reason.to_owned() }
}

fn damaged(name: &str, what: String) -> ImageError {
    ImageError::Damaged { reference: name.to_owned(), what }
}

/// An image config is at most this large, in bytes.
const CONFIG_SIZE_MAX: u64 = 8 << 20;

/// Reads an image's config and checks that it and the manifest tell of the same layers.
pub async fn read_config(
    name: &str,
    manifest: &ImageManifest,
    blobs: &dyn BlobStore,
) -> Result<ImageConfig, ImageError> {
    let descriptor = &manifest.config;
    if !matches!(descriptor.media_type.as_str(), media_type::OCI_CONFIG | media_type::DOCKER_CONFIG)
    {
        return Err(unusable(name, "it is an artifact, it has no image config"));
    }
    if descriptor.size > CONFIG_SIZE_MAX {
        return Err(unusable(name, "its image config is too large"));
    }
    let failed = |source| ImageError::Store { reference: name.to_owned(), source };
    let damaged = || damaged(name, format!("image config {}", descriptor.digest));
    let bytes = match store_read(blobs, &descriptor.digest, descriptor.size).await {
        Err(StoreError::NotFound { .. }) => return Err(damaged()),
        result => result.map_err(failed)?,
    };
    if oci::check_blob(descriptor, &bytes).is_err()
        && !blobs.verify(&descriptor.digest).await.map_err(failed)?
    {
        return Err(damaged());
    }
    parse_config(name, manifest, &bytes)
}

/// Reads an image config's bytes for a manifest; also for implementations of [`BaseImages`]
/// that fetched both from elsewhere.
pub fn parse_config(
    name: &str,
    manifest: &ImageManifest,
    bytes: &[u8],
) -> Result<ImageConfig, ImageError> {
    oci::check_blob(&manifest.config, bytes).map_err(|e| unusable(name, &e.to_string()))?;
    let config: ImageConfig = serde_json::from_slice(bytes)
        .map_err(|error| unusable(name, &format!("its image config is not valid: {error}")))?;
    oci::check_layer_count(manifest, &config).map_err(|e| unusable(name, &e.to_string()))?;
    if let Some(layer) =
        manifest.layers.iter().find(|layer| media_type::is_foreign_layer(&layer.media_type))
    {
        let reason = format!("layer {} must be fetched elsewhere", layer.digest);
        return Err(unusable(name, &reason));
    }
    Ok(config)
}

/// Reads a small blob whole.
pub(crate) async fn store_read(
    blobs: &dyn BlobStore,
    digest: &Digest,
    size: u64,
) -> store::Result<Vec<u8>> {
    use tokio::io::AsyncReadExt;
    let mut bytes = Vec::new();
    let reader = blobs.open(digest, 0).await?.into_async();
    let read = reader.take(size + 1).read_to_end(&mut bytes).await;
    read.map_err(|source| StoreError::Io { doing: "read an image".to_owned(), source })?;
    Ok(bytes)
}
