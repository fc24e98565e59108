//! Pulls an image and believes nothing.

use std::collections::BTreeMap;
use std::io::Read as _;

use flate2::read::MultiGzDecoder;
use oci::{Descriptor, Digest, ImageConfig, ImageManifest, Manifest, media_type};

use crate::RegistryClient;

/// An image that was pulled whole and found right.
pub struct ValidImage {
    pub digest: Digest,
    pub manifest: ImageManifest,
    pub config: ImageConfig,
    /// Unpacked layers.
    pub layers: Vec<Vec<u8>>,
}

/// Pulls an image and checks every digest, size, diff ID and media type.
#[track_caller]
pub fn validate(registry: &RegistryClient, repository: &str, reference: &str) -> ValidImage {
    let (bytes, media_type) = registry.manifest(repository, reference);
    let digest = Digest::of(&bytes);
    if reference.contains(':') {
        assert_eq!(digest.as_str(), reference, "the manifest is not what was asked for");
    }
    assert!(media_type::is_image_manifest(&media_type), "`{media_type}` is no image");
    let parsed = Manifest::parse(&bytes, Some(&media_type));
    let Manifest::Image(manifest) = parsed.unwrap_or_else(|error| panic!("{error}")) else {
        panic!("`{media_type}` is no image manifest");
    };
    if let Some(inner) = &manifest.media_type {
        assert_eq!(*inner, media_type, "manifest and answer name different media types");
    }
    let is_oci = media_type == media_type::OCI_MANIFEST;
    let expected = if is_oci { media_type::OCI_CONFIG } else { media_type::DOCKER_CONFIG };
    assert_eq!(manifest.config.media_type, expected);
    let config = blob(registry, repository, &manifest.config);
    let config: ImageConfig = serde_json::from_slice(&config).expect("an image config is JSON");
    right(oci::check_image_config(&config));
    right(oci::check_layer_count(&manifest, &config));
    let mut layers = Vec::new();
    for (index, layer) in manifest.layers.iter().enumerate() {
        let unpacked = unpacked(&layer.media_type, &blob(registry, repository, layer));
        let actual = Digest::of(&unpacked);
        assert_eq!(actual, config.rootfs.diff_ids[index], "diff ID of layer {index}");
        layers.push(unpacked);
    }
    ValidImage { digest, manifest: *manifest, config, layers }
}

#[track_caller]
fn blob(registry: &RegistryClient, repository: &str, descriptor: &Descriptor) -> Vec<u8> {
    let bytes = registry.blob(repository, &descriptor.digest);
    right(oci::check_blob(descriptor, &bytes));
    bytes
}

#[track_caller]
fn right(checked: Result<(), oci::ImageProblem>) {
    if let Err(problem) = checked {
        panic!("{problem}");
    }
}

#[track_caller]
fn unpacked(media_type: &str, blob: &[u8]) -> Vec<u8> {
    match media_type {
        media_type::OCI_LAYER_TAR | media_type::DOCKER_LAYER_TAR => blob.to_vec(),
        media_type::OCI_LAYER_GZIP | media_type::DOCKER_LAYER_GZIP => {
            let mut tar = Vec::new();
            MultiGzDecoder::new(blob).read_to_end(&mut tar).expect("a layer is gzip");
            tar
        }
        media_type::OCI_LAYER_ZSTD | media_type::DOCKER_LAYER_ZSTD => {
            zstd::decode_all(blob).expect("a layer is zstd")
        }
        other => panic!("`{other}` is not the media type of a layer"),
    }
}

impl ValidImage {
    /// The files that a container would see: path to content, for regular files.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::<String, Vec<u8>>::new();
        for layer in &self.layers {
            let mut archive = tar::Archive::new(layer.as_slice());
            for entry in archive.entries().expect("a layer is a tar") {
                let mut entry = entry.expect("a layer is a tar");
                let path = entry.path().expect("a path is text").to_string_lossy().into_owned();
                let path = path.trim_start_matches("./").trim_end_matches('/').to_owned();
                let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
                let beside = |name: &str| match folder {
                    "" => name.to_owned(),
                    folder => format!("{folder}/{name}"),
                };
                if name == ".wh..wh..opq" {
                    files.retain(|file, _| !file.starts_with(&beside("")));
                } else if let Some(gone) = name.strip_prefix(".wh.") {
                    let gone = beside(gone);
                    let below = format!("{gone}/");
                    files.retain(|file, _| *file != gone && !file.starts_with(&below));
                } else if entry.header().entry_type() == tar::EntryType::Regular {
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content).expect("a file comes whole");
                    files.insert(path, content);
                }
            }
        }
        files
    }

    /// The text of one file.
    #[track_caller]
    pub fn text(&self, path: &str) -> String {
        let files = self.files();
        let found = files.get(path);
        let found = found.unwrap_or_else(|| panic!("no `{path}` in {:?}", files.keys()));
        String::from_utf8_lossy(found).into_owned()
    }
}
