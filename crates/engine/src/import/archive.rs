//! Images in archives: an OCI layout, or what `docker save` writes (image-spec, *OCI Image
//! Layout Specification*; Docker's image specification 1.2, *Combined Image JSON + Filesystem
//! Changeset Format*).
//!
//! The archive is untrusted and read once, whatever the order of its files: each goes into the
//! store as a blob, and what the image does not need of them is collected later. An image may
//! use none but those that its archive had.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use builder::{ContextLimits, TarKind};
use bytes::Bytes;
use oci::{
    Descriptor, Digest, Hasher, ImageConfig, ImageManifest, MANIFEST_SIZE_MAX, Manifest, media_type,
};
use remote::RemoteManifest;
use serde::Deserialize;
use store::{Catalog, StoreError, Stored};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use super::{ImportError, LEASE_OWNER};
use crate::layout::{LayoutError, blob_name, read_archive, store_blob};
use crate::unpack::{UnpackError, decompress};

/// An image config is at most this large.
const CONFIG_SIZE_MAX: u64 = 8 << 20;
/// Names of files at the top of an archive that say what is in it.
const INDEX: &str = "index.json";
const DOCKER: &str = "manifest.json";
const LAYOUT: &str = "oci-layout";
/// The annotation that holds the tag of an image in a layout's index.
const TAG: &str = "org.opencontainers.image.ref.name";

/// An image whose blobs are in the store.
#[derive(Debug)]
pub struct ImageArchive {
    top: RemoteManifest,
    blobs: BTreeMap<Digest, u64>,
}

/// Why an archive holds no image that can be used. `Display` is the user's sentence.
#[derive(Debug, thiserror::Error)]
pub enum ImageArchiveError {
    #[error("it is no tar archive, plain or compressed with gzip, bzip2, xz or zstd")]
    NoArchive,
    #[error("the archive is damaged: {0}")]
    Damaged(String),
    #[error("the archive has more than {max} files")]
    TooManyEntries { max: usize },
    #[error("the archive unpacks to more than {max} bytes")]
    TooLarge { max: u64 },
    #[error(
        "the archive is neither an OCI layout nor of `docker save`: it has no `{}` and no `{}`",
        INDEX,
        DOCKER
    )]
    NoImage,
    #[error("the archive holds {} images", names.len())]
    Several { names: Vec<String> },
    #[error("`{path}` of the archive cannot be used: {reason}")]
    BadFile { path: String, reason: String },
    #[error("blob {expected} of the archive is damaged: its bytes are {actual}")]
    WrongDigest { expected: Digest, actual: Digest },
    #[error("`{path}` of the archive is not the layer {expected} that its config names")]
    WrongLayer { path: String, expected: Digest },
    #[error("the import was given up")]
    Canceled,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ImageArchiveError {
    pub(super) fn hint(&self) -> Option<String> {
        match self {
            Self::Several { names } => Some(format!(
                "write one of them to an archive of its own; it has {}",
                names.join(", ")
            )),
            _ => None,
        }
    }

    fn of_file(path: &str, reason: impl ToString) -> Self {
        Self::BadFile { path: path.to_owned(), reason: reason.to_string() }
    }
}

impl From<UnpackError> for ImageArchiveError {
    fn from(error: UnpackError) -> Self {
        match error {
            UnpackError::NotAnArchive => Self::NoArchive,
            UnpackError::TooManyEntries { max } => Self::TooManyEntries { max },
            UnpackError::TooLarge { max } => Self::TooLarge { max },
            UnpackError::Canceled => Self::Canceled,
            UnpackError::Damaged(reason) => Self::Damaged(reason),
            error => Self::Damaged(error.to_string()),
        }
    }
}

impl From<LayoutError> for ImageArchiveError {
    fn from(error: LayoutError) -> Self {
        match error {
            LayoutError::Archive(error) => error.into(),
            LayoutError::NoBlob { path } => Self::of_file(&path, "it is no blob"),
            LayoutError::WrongDigest { expected, actual } => Self::WrongDigest { expected, actual },
            LayoutError::Store(error) => Self::Store(error),
        }
    }
}

/// What an archive had.
#[derive(Default)]
struct Files {
    /// Those that went into the store.
    stored: BTreeMap<String, Stored>,
    /// Where links lead.
    links: BTreeMap<String, String>,
    /// Those that say what is in it.
    notes: BTreeMap<String, Bytes>,
}

/// Stores what an archive holds, and finds the image in it: the one with `wanted`, or the only
/// one. Blocking, in a thread of a runtime.
pub fn read_image_archive(
    archive: impl Read + Send,
    catalog: &Catalog,
    wanted: Option<&Digest>,
    limits: ContextLimits,
    cancel: &CancellationToken,
) -> Result<ImageArchive, ImageArchiveError> {
    let files = Files::read(archive, catalog, limits, cancel)?;
    let blobs = files.stored.values().map(|stored| (stored.digest.clone(), stored.size)).collect();
    let (top, blobs) = match (wanted, files.notes.get(INDEX), files.notes.get(DOCKER)) {
        (Some(digest), ..) => (layout_manifest(catalog, &blobs, digest, None)?, blobs),
        (None, Some(index), _) => {
            let named = only_image(index)?;
            let kind = Some(named.media_type.as_str());
            (layout_manifest(catalog, &blobs, &named.digest, kind)?, blobs)
        }
        (None, None, Some(list)) => (docker_manifest(catalog, &files, list)?, blobs),
        (None, None, None) => return Err(ImageArchiveError::NoImage),
    };
    Ok(ImageArchive { top, blobs })
}

impl Files {
    fn read(
        archive: impl Read + Send,
        catalog: &Catalog,
        limits: ContextLimits,
        cancel: &CancellationToken,
    ) -> Result<Self, ImageArchiveError> {
        let mut files = Self::default();
        read_archive(archive, limits, cancel, |entry, content| {
            let path = clean("", &String::from_utf8_lossy(&entry.path));
            let link = String::from_utf8_lossy(&entry.link).into_owned();
            match entry.kind {
                TarKind::File if [INDEX, DOCKER, LAYOUT].contains(&path.as_str()) => {
                    if entry.size > MANIFEST_SIZE_MAX as u64 {
                        return Err(ImageArchiveError::of_file(&path, "it is larger than 4 MiB"));
                    }
                    files.notes.insert(path, content.read_all()?.into());
                }
                TarKind::File => {
                    let expected = blob_name(&path);
                    let (size, expected) = (entry.size, expected.as_ref());
                    let stored = store_blob(content, size, expected, catalog, LEASE_OWNER)?;
                    files.stored.insert(path, stored);
                }
                TarKind::HardLink => drop(files.links.insert(path, clean("", &link))),
                TarKind::Symlink => {
                    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
                    let target = clean(folder, &link);
                    files.links.insert(path, target);
                }
                _ => (),
            }
            Ok(())
        })?;
        Ok(files)
    }

    /// A stored file, through one link: Docker writes a layer once and links to it.
    fn find(&self, path: &str) -> Result<&Stored, ImageArchiveError> {
        let path = clean("", path);
        let found = self.stored.get(&path).or_else(|| self.stored.get(self.links.get(&path)?));
        found.ok_or_else(|| ImageArchiveError::of_file(&path, "it is not there"))
    }
}

/// A path within an archive, without `.`; `..` leads to the folder above, and never out.
fn clean(folder: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in folder.split('/').chain(path.split('/')) {
        match part {
            "" | "." => (),
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The image of a layout's index.
fn only_image(index: &Bytes) -> Result<Descriptor, ImageArchiveError> {
    #[derive(Deserialize)]
    struct Index {
        #[serde(default)]
        manifests: Vec<Descriptor>,
    }
    let index: Index =
        serde_json::from_slice(index).map_err(|error| ImageArchiveError::of_file(INDEX, error))?;
    match <[Descriptor; 1]>::try_from(index.manifests) {
        Ok([only]) => Ok(only),
        Err(all) if all.is_empty() => Err(ImageArchiveError::NoImage),
        Err(all) => {
            let name = |one: &Descriptor| {
                one.annotations.get(TAG).cloned().unwrap_or_else(|| one.digest.to_string())
            };
            // The same image under two names is one.
            let digests: BTreeSet<&Digest> = all.iter().map(|one| &one.digest).collect();
            match digests.len() {
                1 => Ok(all[0].clone()),
                _ => Err(ImageArchiveError::Several { names: all.iter().map(name).collect() }),
            }
        }
    }
}

/// A manifest among the blobs of a layout.
fn layout_manifest(
    catalog: &Catalog,
    blobs: &BTreeMap<Digest, u64>,
    digest: &Digest,
    kind: Option<&str>,
) -> Result<RemoteManifest, ImageArchiveError> {
    let path = format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
    match blobs.get(digest) {
        Some(size) if *size <= MANIFEST_SIZE_MAX as u64 => (),
        Some(_) => return Err(ImageArchiveError::of_file(&path, "it is larger than 4 MiB")),
        None => return Err(ImageArchiveError::of_file(&path, "it is not there")),
    }
    let runtime = tokio::runtime::Handle::current();
    let bytes = runtime.block_on(read_blob(catalog, digest))?;
    let manifest =
        Manifest::parse(&bytes, kind).map_err(|error| ImageArchiveError::of_file(&path, error))?;
    let media_type = kind.unwrap_or(manifest.media_type()).to_owned();
    Ok(RemoteManifest { digest: digest.clone(), media_type, bytes, manifest })
}

/// A blob whose size was looked at.
async fn read_blob(catalog: &Catalog, digest: &Digest) -> Result<Bytes, StoreError> {
    let mut bytes = Vec::new();
    let mut reader = catalog.blobs().open(digest, 0).await?.into_async();
    let read = reader.read_to_end(&mut bytes).await;
    read.map_err(|source| StoreError::Io { doing: format!("read {digest}"), source })?;
    Ok(bytes.into())
}

/// An image as `docker save` lists it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// A manifest for an image that has none. Its layers stay as they are, so that its config, and
/// with it what Docker calls the image's id, does.
fn docker_manifest(
    catalog: &Catalog,
    files: &Files,
    list: &Bytes,
) -> Result<RemoteManifest, ImageArchiveError> {
    let images: Vec<DockerImage> =
        serde_json::from_slice(list).map_err(|error| ImageArchiveError::of_file(DOCKER, error))?;
    let image = match images.as_slice() {
        [] => return Err(ImageArchiveError::NoImage),
        [only] => only,
        several => {
            let name = |image: &DockerImage| match image.repo_tags.as_deref() {
                Some([first, ..]) => first.clone(),
                _ => image.config.clone(),
            };
            return Err(ImageArchiveError::Several { names: several.iter().map(name).collect() });
        }
    };
    let stored = files.find(&image.config)?;
    if stored.size > CONFIG_SIZE_MAX {
        return Err(ImageArchiveError::of_file(&image.config, "it is larger than 8 MiB"));
    }
    let runtime = tokio::runtime::Handle::current();
    let bytes = runtime.block_on(read_blob(catalog, &stored.digest))?;
    let config: ImageConfig = serde_json::from_slice(&bytes)
        .map_err(|error| ImageArchiveError::of_file(&image.config, error))?;
    if config.rootfs.diff_ids.len() != image.layers.len() {
        let reason = "it names another number of layers than its config";
        return Err(ImageArchiveError::of_file(DOCKER, reason));
    }
    let layers = image.layers.iter().zip(&config.rootfs.diff_ids);
    let layers = layers.map(|(path, diff_id)| {
        let layer = files.find(path)?;
        let kind = layer_type(catalog, path, layer, diff_id)?;
        Ok(Descriptor::new(kind.to_owned(), layer.digest.clone(), layer.size))
    });
    let layers = layers.collect::<Result<Vec<_>, ImageArchiveError>>()?;
    let manifest = ImageManifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: Descriptor::new(
            media_type::OCI_CONFIG.to_owned(),
            stored.digest.clone(),
            stored.size,
        ),
        layers,
        subject: None,
        annotations: BTreeMap::new(),
    };
    let bytes: Bytes = serde_json::to_vec(&manifest)
        .map_err(|error| ImageArchiveError::of_file(DOCKER, error))?
        .into();
    let (digest, media_type) = (Digest::of(&bytes), media_type::OCI_MANIFEST.to_owned());
    Ok(RemoteManifest { digest, media_type, bytes, manifest: Manifest::Image(Box::new(manifest)) })
}

/// How a layer is compressed, after a look whether it is the one that the config names.
fn layer_type(
    catalog: &Catalog,
    path: &str,
    layer: &Stored,
    diff_id: &Digest,
) -> Result<&'static str, ImageArchiveError> {
    if layer.digest == *diff_id {
        return Ok(media_type::OCI_LAYER_TAR);
    }
    let wrong =
        || ImageArchiveError::WrongLayer { path: path.to_owned(), expected: diff_id.clone() };
    let runtime = tokio::runtime::Handle::current();
    let open = || {
        let opened = runtime.block_on(catalog.blobs().open(&layer.digest, 0));
        opened.map(store::BlobReader::into_blocking)
    };
    let mut magic = [0; 4];
    open()?.read_exact(&mut magic).map_err(|_| wrong())?;
    let mut content = decompress(open()?).map_err(|_| wrong())?;
    let mut hasher = Hasher::new(diff_id.algorithm());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match content.read(&mut buffer).map_err(|_| wrong())? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    match (hasher.finish() == *diff_id, magic) {
        (true, [0x1f, 0x8b, ..]) => Ok(media_type::OCI_LAYER_GZIP),
        (true, _) => Ok(media_type::OCI_LAYER_ZSTD),
        (false, _) => Err(wrong()),
    }
}

impl ImageArchive {
    pub(super) fn top(&self) -> &RemoteManifest {
        &self.top
    }

    /// Whether the archive had a blob.
    pub(super) fn require(&self, wanted: &Descriptor) -> Result<(), ImportError> {
        match self.blobs.get(&wanted.digest) {
            Some(size) if *size == wanted.size => Ok(()),
            _ => Err(ImportError::Missing { what: format!("blob {}", wanted.digest) }),
        }
    }

    pub(super) async fn manifest(
        &self,
        catalog: &Catalog,
        named: &Descriptor,
    ) -> Result<RemoteManifest, ImportError> {
        self.require(named)?;
        if named.size > MANIFEST_SIZE_MAX as u64 {
            return Err(ImportError::BadManifest { reason: "it is larger than 4 MiB".to_owned() });
        }
        let bytes = read_blob(catalog, &named.digest).await?;
        let manifest = Manifest::parse(&bytes, Some(&named.media_type));
        let manifest =
            manifest.map_err(|error| ImportError::BadManifest { reason: error.to_string() })?;
        let (digest, media_type) = (named.digest.clone(), named.media_type.clone());
        Ok(RemoteManifest { digest, media_type, bytes, manifest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_within_the_archive() {
        assert_eq!(clean("", "./blobs//sha256/ab"), "blobs/sha256/ab");
        assert_eq!(clean("aa", "../bb/layer.tar"), "bb/layer.tar");
        assert_eq!(clean("aa", "../../../etc/passwd"), "etc/passwd");
        assert_eq!(clean("", "/manifest.json"), "manifest.json");
    }
}
