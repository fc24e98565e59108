//! Importing an image, in the words of the managed service (azure-api.md section 4.4).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ErrorDetail;

/// Body of `POST .../import`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportRequest {
    pub source: ImportSource,
    /// `REPOSITORY:TAG`
    #[serde(default)]
    pub target_tags: Vec<String>,
    /// Repositories that get the image without a tag.
    #[serde(default)]
    pub untagged_target_repositories: Vec<String>,
    #[serde(default)]
    pub mode: ImportMode,
    /// Of an image for several platforms only that for this one. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
}

/// An image of a registry, or an uploaded archive.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportSource {
    /// Host of the registry; without it the image names its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_uri: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_image: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<ImportCredentials>,
    /// The `relativePath` of an upload: an OCI layout or what `docker save` writes, as a tar
    /// archive. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_location: Option<String>,
    /// Which image of the archive, if it does not say that itself. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// For the registry that an image comes from. Does not print.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct ImportCredentials {
    #[serde(default)]
    pub username: String,
    #[schema(write_only)]
    pub password: String,
}

impl std::fmt::Debug for ImportCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImportCredentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ImportMode {
    /// Refuses to move tags that are there.
    #[default]
    NoForce,
    Force,
}

/// What was imported.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportReport {
    pub digest: String,
    pub media_type: String,
    /// Of all platforms.
    pub manifests: usize,
    /// What belongs to them: signatures and the like.
    pub referrers: usize,
    /// Bytes that had to be fetched.
    pub fetched: u64,
    /// The image's names, with the login server.
    pub images: Vec<String>,
}

/// Answer of `POST .../import/tags`: the tags of the source's repository.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ImportTags {
    pub tags: Vec<String>,
}

/// A line of the answer of `POST .../import` for clients that accept `application/x-ndjson`. The
/// last one is `imported` or `failed`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum ImportProgress {
    /// Bytes, so far.
    Fetched(u64),
    Imported(ImportReport),
    Failed(ImportFailure),
}

/// What the answer would have been, had it not begun.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ImportFailure {
    pub status: u16,
    pub error: ErrorDetail,
}
