use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::null::null_is_default;
use crate::{Descriptor, Digest, media_type};

/// The largest manifest that is accepted, in bytes (registry.md section 1).
pub const MANIFEST_SIZE_MAX: usize = 4 << 20;

/// A manifest that lists at most this many other things; more is an attack.
const ENTRIES_MAX: usize = 10_000;

/// The blob that lists an image's config and layers (image-spec, *Image Manifest*).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    pub config: Descriptor,
    #[serde(deserialize_with = "null_is_default")]
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
}

/// A manifest of manifests, mostly one per platform (image-spec, *Image Index*).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageIndex {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
}

/// The withdrawn artifact manifest: blobs without a config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArtifactManifest {
    pub media_type: String,
    #[serde(default)]
    pub artifact_type: Option<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub blobs: Vec<Descriptor>,
    #[serde(default)]
    pub subject: Option<Descriptor>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub annotations: BTreeMap<String, String>,
}

/// What a `PUT` of a manifest may carry, told apart by its media type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    Image(Box<ImageManifest>),
    Index(ImageIndex),
    Artifact(ArtifactManifest),
}

/// Why bytes are not a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("manifest of {size} bytes is larger than the limit of {MANIFEST_SIZE_MAX}")]
    TooLarge { size: usize },
    #[error("manifest lists {count} things, more than the limit of {ENTRIES_MAX}")]
    TooManyEntries { count: usize },
    #[error("manifest media type `{0}` is not supported")]
    UnknownMediaType(String),
    #[error("Docker schema 1 manifests are not supported")]
    SchemaOne,
    #[error("manifest says media type `{inside}` but was sent as `{outside}`")]
    MediaTypeMismatch { inside: String, outside: String },
    #[error("manifest has schemaVersion {0}, expected 2")]
    BadSchemaVersion(u32),
    #[error("manifest is not valid JSON of its media type: {0}")]
    BadJson(String),
}

/// The digests that a manifest needs, by role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References {
    /// Config and layers, which must be in the repository first.
    pub blobs: Vec<Descriptor>,
    /// Manifests of an index, which must be in the repository first.
    pub manifests: Vec<Descriptor>,
    /// The manifest that this one is about; it need not exist (yet).
    pub subject: Option<Digest>,
}

/// Enough of any manifest to tell what it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    schema_version: Option<u32>,
    #[serde(default)]
    config: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Manifest {
    /// Reads a manifest. `content_type` is the media type it was sent as, if any; it must
    /// agree with the one inside, if any, and decides where there is none.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        if bytes.len() > MANIFEST_SIZE_MAX {
            return Err(ManifestError::TooLarge { size: bytes.len() });
        }
        let bad_json = |error: serde_json::Error| ManifestError::BadJson(error.to_string());
        let head: Head = serde_json::from_slice(bytes).map_err(bad_json)?;
        let outside = content_type.map(|text| text.split(';').next().unwrap_or(text).trim());
        let outside = outside.filter(|text| !text.is_empty() && *text != "application/json");
        let kind = match (head.media_type.as_deref(), outside) {
            (Some(inside), Some(outside)) if inside != outside => {
                return Err(ManifestError::MediaTypeMismatch {
                    inside: crate::digest::quoted(inside),
                    outside: crate::digest::quoted(outside),
                });
            }
            (Some(kind), _) | (None, Some(kind)) => kind.to_owned(),
            (None, None) if head.fs_layers.is_some() => return Err(ManifestError::SchemaOne),
            (None, None) if head.manifests.is_some() => media_type::OCI_INDEX.to_owned(),
            (None, None) if head.config.is_some() => media_type::OCI_MANIFEST.to_owned(),
            (None, None) => return Err(ManifestError::UnknownMediaType(String::new())),
        };
        let check_version = || match head.schema_version {
            Some(2) => Ok(()),
            other => Err(ManifestError::BadSchemaVersion(other.unwrap_or(0))),
        };
        let manifest = match kind.as_str() {
            media_type::OCI_MANIFEST | media_type::DOCKER_MANIFEST => {
                check_version()?;
                Self::Image(Box::new(serde_json::from_slice(bytes).map_err(bad_json)?))
            }
            media_type::OCI_INDEX | media_type::DOCKER_MANIFEST_LIST => {
                check_version()?;
                Self::Index(serde_json::from_slice(bytes).map_err(bad_json)?)
            }
            media_type::OCI_ARTIFACT => {
                Self::Artifact(serde_json::from_slice(bytes).map_err(bad_json)?)
            }
            media_type::DOCKER_MANIFEST_V1 | media_type::DOCKER_MANIFEST_V1_SIGNED => {
                return Err(ManifestError::SchemaOne);
            }
            other => return Err(ManifestError::UnknownMediaType(crate::digest::quoted(other))),
        };
        match manifest.entry_count() {
            count if count > ENTRIES_MAX => Err(ManifestError::TooManyEntries { count }),
            _ => Ok(manifest),
        }
    }

    fn entry_count(&self) -> usize {
        match self {
            Self::Image(image) => image.layers.len(),
            Self::Index(index) => index.manifests.len(),
            Self::Artifact(artifact) => artifact.blobs.len(),
        }
    }

    /// What must be present for this manifest to be complete. Layers that a registry may
    /// not distribute are left out.
    pub fn references(&self) -> References {
        match self {
            Self::Image(image) => {
                let layers =
                    image.layers.iter().filter(|l| !media_type::is_foreign_layer(&l.media_type));
                References {
                    blobs: std::iter::once(&image.config).chain(layers).cloned().collect(),
                    manifests: Vec::new(),
                    subject: image.subject.as_ref().map(|subject| subject.digest.clone()),
                }
            }
            Self::Index(index) => References {
                blobs: Vec::new(),
                manifests: index.manifests.clone(),
                subject: index.subject.as_ref().map(|subject| subject.digest.clone()),
            },
            Self::Artifact(artifact) => References {
                blobs: artifact.blobs.clone(),
                manifests: Vec::new(),
                subject: artifact.subject.as_ref().map(|subject| subject.digest.clone()),
            },
        }
    }

    /// The artifact type that referrers list: the member, else the config's media type
    /// (distribution-spec, *Listing Referrers*).
    pub fn artifact_type(&self) -> Option<&str> {
        match self {
            Self::Image(image) => {
                let own = image.artifact_type.as_deref().filter(|kind| !kind.is_empty());
                own.or(Some(&image.config.media_type))
            }
            Self::Index(index) => index.artifact_type.as_deref(),
            Self::Artifact(artifact) => artifact.artifact_type.as_deref(),
        }
    }

    /// The manifest that this one is about, if it is.
    pub fn subject(&self) -> Option<&Descriptor> {
        match self {
            Self::Image(image) => image.subject.as_ref(),
            Self::Index(index) => index.subject.as_ref(),
            Self::Artifact(artifact) => artifact.subject.as_ref(),
        }
    }

    pub fn annotations(&self) -> &BTreeMap<String, String> {
        match self {
            Self::Image(image) => &image.annotations,
            Self::Index(index) => &index.annotations,
            Self::Artifact(artifact) => &artifact.annotations,
        }
    }

    /// The media type to serve it with.
    pub fn media_type(&self) -> &str {
        match self {
            Self::Image(image) => image.media_type.as_deref().unwrap_or(media_type::OCI_MANIFEST),
            Self::Index(index) => index.media_type.as_deref().unwrap_or(media_type::OCI_INDEX),
            Self::Artifact(artifact) => &artifact.media_type,
        }
    }
}

impl ImageIndex {
    /// The manifest for a platform: the first whose platform matches.
    pub fn for_platform(&self, wanted: &crate::Platform) -> Option<&Descriptor> {
        self.manifests.iter().find(|manifest| {
            manifest.platform.as_ref().is_some_and(|platform| platform.satisfies(wanted))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image() -> ImageManifest {
        ImageManifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.to_owned()),
            artifact_type: None,
            config: Descriptor::of(media_type::OCI_CONFIG, b"{}"),
            layers: vec![
                Descriptor::of(media_type::OCI_LAYER_GZIP, b"layer"),
                Descriptor::of("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", b"f"),
            ],
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn an_image_manifest_needs_config_and_own_layers() {
        let bytes = serde_json::to_vec(&image()).unwrap();
        let manifest = Manifest::parse(&bytes, Some(media_type::OCI_MANIFEST)).unwrap();
        assert_eq!(manifest.references().blobs.len(), 2);
        assert_eq!(manifest.artifact_type(), Some(media_type::OCI_CONFIG));
    }

    #[test]
    fn the_media_type_inside_must_agree_with_the_one_outside() {
        let bytes = serde_json::to_vec(&image()).unwrap();
        let error = Manifest::parse(&bytes, Some(media_type::OCI_INDEX)).unwrap_err();
        assert!(matches!(error, ManifestError::MediaTypeMismatch { .. }), "{error}");
    }

    #[test]
    fn null_is_an_empty_list_or_map() {
        let config = r#"{"mediaType":"x","digest":"D","size":2,"urls":null,"annotations":null,
            "platform":{"os":"linux","architecture":"amd64","os.features":null}}"#;
        let config = config.replace('D', Digest::of(b"{}").as_str());
        let outside = [media_type::OCI_MANIFEST, media_type::OCI_INDEX];
        for (text, outside) in [
            (format!(r#"{{"schemaVersion":2,"config":{config},"layers":null}}"#), outside[0]),
            (
                format!(
                    r#"{{"schemaVersion":2,"config":{config},"layers":[],"annotations":null}}"#
                ),
                outside[0],
            ),
            (format!(r#"{{"schemaVersion":2,"manifests":[{config}]}}"#), outside[1]),
            (r#"{"schemaVersion":2,"manifests":null,"annotations":null}"#.to_owned(), outside[1]),
        ] {
            let manifest = Manifest::parse(text.as_bytes(), Some(outside)).unwrap();
            assert_eq!(manifest.media_type(), outside, "{text}");
            assert!(manifest.annotations().is_empty(), "{text}");
        }
        let missing = format!(r#"{{"schemaVersion":2,"config":{config}}}"#);
        assert!(Manifest::parse(missing.as_bytes(), Some(outside[0])).is_err());
    }

    #[test]
    fn bombs_and_old_schemas_are_refused() {
        let mut many = image();
        many.layers = vec![many.config.clone(); ENTRIES_MAX + 1];
        let bytes = serde_json::to_vec(&many).unwrap();
        assert!(matches!(Manifest::parse(&bytes, None), Err(ManifestError::TooManyEntries { .. })));
        let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
        assert!(matches!(Manifest::parse(&deep, None), Err(ManifestError::BadJson(_))));
        let huge = vec![b' '; MANIFEST_SIZE_MAX + 1];
        assert!(matches!(Manifest::parse(&huge, None), Err(ManifestError::TooLarge { .. })));
        let old = br#"{"schemaVersion":1,"fsLayers":[]}"#;
        assert_eq!(Manifest::parse(old, None), Err(ManifestError::SchemaOne));
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes: Vec<u8>) {
            crate::fuzz::manifest(&bytes);
        }

        #[test]
        fn a_manifest_with_some_bytes_changed_parses_or_is_refused(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), "[]\\[{}:,\"0-9a-z]{0,9}"), 1..5),
        ) {
            let mut text = serde_json::to_string(&image()).unwrap();
            for (place, insert) in changes {
                let at = place.index(text.len());
                let end = text.len().min(at + insert.len());
                text.replace_range(at..end, &insert);
            }
            crate::fuzz::manifest(text.as_bytes());
        }
    }
}
