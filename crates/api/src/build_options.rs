use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::PlatformProperties;

/// Ours: what a build may be told beyond the managed service's members. Every member may be
/// absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BuildOptions {
    /// What `RUN --mount=type=secret` may use. Never shown again, and forgotten with the run's
    /// end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<BuildSecret>,
    /// Ids of the ssh agents that the client has for `RUN --mount=type=ssh`. It keeps a connection
    /// to `GET .../runs/{id}/agents/{agent}` open for each, with `Upgrade: refit-ssh-agent`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ssh: Vec<String>,
    /// `name=address` lines for `/etc/hosts` of every `RUN`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_hosts: Vec<String>,
    /// `name=soft[:hard]`, such as `nofile=1024:2048`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ulimits: Vec<String>,
    /// Size of `/dev/shm` in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<u64>,
    /// Added to the image after all instructions.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the manifest; with `index:` or the like before the name, of that.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Stages, by name or number, of which every instruction is executed again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub no_cache_stages: Vec<String>,
    /// Tell for each step why the cache had its result or not: in events of the kind
    /// `explained`, and in the run's cost.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub explain_cache: bool,
    /// Images of any registry that hold build caches to take results from, besides the server's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cache_from: Vec<String>,
    /// Images of the server's own registry to put a build cache into.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cache_to: Vec<CacheExport>,
    /// How new layers are compressed: `uncompressed`, `gzip` or `zstd`; else as the server is
    /// set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<String>,
    /// gzip: 0 to 9, zstd: 1 to 22.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression_level: Option<u32>,
    /// Layers of base images are compressed so too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub force_compression: bool,
    /// What names stand for instead of stages and images; of several with one name the last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub contexts: Vec<NamedContext>,
    /// Build for these instead of the request's `platform`, and make one index of the images.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<PlatformProperties>,
}

/// Where to put what a build found or made, for builds of other servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CacheExport {
    pub image: String,
    #[serde(default)]
    pub mode: CacheMode,
}

/// What is put there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// The steps whose layers are in the image.
    #[default]
    Min,
    /// All steps, of all stages.
    Max,
}

/// One name of a `--build-context`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NamedContext {
    pub name: String,
    #[serde(flatten)]
    pub content: NamedContextContent,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum NamedContextContent {
    /// The files of an upload, by its `relativePath`, or of a git repository or an archive at
    /// an address.
    #[serde(rename_all = "camelCase")]
    Files { source_location: String },
    /// An image of any registry.
    Image { image: String },
    /// An image of an OCI layout: an upload that has the layout's `blobs`, and the digest of
    /// the manifest or index that is meant.
    #[serde(rename_all = "camelCase")]
    Layout { source_location: String, digest: String },
}

impl NamedContextContent {
    /// The upload or address that it needs.
    pub fn source_location(&self) -> Option<&str> {
        match self {
            Self::Files { source_location } | Self::Layout { source_location, .. } => {
                Some(source_location)
            }
            Self::Image { .. } => None,
        }
    }
}

/// A value that builds may use and nobody may see.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildSecret {
    pub id: String,
    /// In base64.
    #[schema(write_only)]
    pub value: String,
}

impl std::fmt::Debug for BuildSecret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}=***", self.id)
    }
}
