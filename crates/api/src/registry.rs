//! What a registry holds (registry.md section 2), as our client and UI read it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A repository and how much is in it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Repository {
    /// Login server of the registry.
    pub registry: String,
    pub image_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub created_time: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub last_update_time: Option<String>,
    pub manifest_count: u64,
    pub tag_count: u64,
    #[serde(default)]
    pub changeable_attributes: Attributes,
}

/// What may be done to a repository, a tag or a manifest, each for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attributes {
    /// Of a repository: it as a whole. What is in it may be deleted even so.
    pub delete_enabled: bool,
    /// If false, nothing is deleted either. Of a repository: whatever is in it.
    pub write_enabled: bool,
    /// Of a repository: whatever is in it.
    pub read_enabled: bool,
    /// If false, it is in no list.
    pub list_enabled: bool,
}

impl Default for Attributes {
    fn default() -> Self {
        Self { delete_enabled: true, write_enabled: true, read_enabled: true, list_enabled: true }
    }
}

/// Body of `PATCH .../repositories/{name}` and of what is below it. A member that is not known is
/// refused: it may have been meant to lock something.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateAttributes {
    pub changeable_attributes: AttributesChange,
}

/// What is absent stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttributesChange {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete_enabled: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_enabled: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_enabled: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list_enabled: Option<bool>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TagAttributes {
    pub name: String,
    pub digest: String,
    #[schema(format = DateTime)]
    pub created_time: String,
    /// When it was moved or its attributes were changed last.
    #[schema(format = DateTime)]
    pub last_update_time: String,
    #[serde(default)]
    pub changeable_attributes: Attributes,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ManifestAttributes {
    pub digest: String,
    /// Config plus layers, in bytes.
    pub image_size: u64,
    #[schema(format = DateTime)]
    pub created_time: String,
    #[schema(format = DateTime)]
    pub last_update_time: String,
    pub media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    #[serde(default)]
    pub changeable_attributes: Attributes,
}

/// One manifest with its bytes: the answer of `GET .../repositories/{name}/manifests/{ref}`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ManifestDocument {
    pub digest: String,
    pub media_type: String,
    pub size: u64,
    /// The manifest as it was pushed, read as JSON. Absent if it is not to be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub manifest: Option<serde_json::Value>,
    #[serde(default)]
    pub changeable_attributes: Attributes,
}

/// What a deletion removed.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Deleted {
    pub manifests_deleted: u64,
    pub tags_deleted: u64,
}

/// A repository of which something can be restored.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeletedRepository {
    pub image_name: String,
    /// How many of its manifests can be.
    pub manifest_count: u64,
    pub tag_count: u64,
}

/// A manifest that can be restored.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeletedManifest {
    pub digest: String,
    /// Config plus layers, in bytes.
    pub image_size: u64,
    #[schema(format = DateTime)]
    pub created_time: String,
    #[schema(format = DateTime)]
    pub deleted_time: String,
    /// Until when it can be restored, as long as the policy is not changed.
    #[schema(format = DateTime)]
    pub expiry_time: String,
    pub media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// What it refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Those that it can be restored with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

/// A tag that can be restored, to one of the manifests that it pointed at when it was removed.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeletedTag {
    pub name: String,
    pub digest: String,
    #[schema(format = DateTime)]
    pub created_time: String,
    #[schema(format = DateTime)]
    pub deleted_time: String,
    /// Until when it can be restored, as long as the policy is not changed.
    #[schema(format = DateTime)]
    pub expiry_time: String,
}

/// Body of `POST .../repositories/{name}/restore`: a tag, a digest, or both.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestoreRequest {
    /// With its manifest, if that was deleted too. Absent: the manifest alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Absent: whatever the tag pointed at when it was removed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Take the tag from what it points at by now, which can be restored in turn.
    #[serde(default)]
    pub force: bool,
}

/// What was restored.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Restored {
    pub digest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Whether the manifest had been deleted too.
    pub manifest_restored: bool,
    /// Manifests that it lists as an index, and that are to be restored for themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deleted_members: Vec<String>,
}

/// Body of `POST .../gc`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct GarbageRequest {
    /// Report what would be deleted, delete nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What garbage collection deleted, or would delete.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct GarbageReport {
    pub dry_run: bool,
    /// Referrers of deleted subjects. What only they needed is for a later pass.
    #[serde(default)]
    pub manifests: Vec<GarbageManifest>,
    pub blobs: Vec<GarbageBlob>,
    pub cache_entries: u64,
    pub uploads: u64,
    pub bytes: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct GarbageManifest {
    pub registry: String,
    pub repository: String,
    pub digest: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct GarbageBlob {
    pub digest: String,
    pub size: u64,
}

/// Body of `POST .../scrub`: read all content again, from the start.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScrubRequest {
    /// Bytes a second at most, 0 for no bound; the server's setting if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
}

/// Answer of `GET .../scrub` and `POST .../scrub`: how far the pass over stored content is that is
/// under way or was the last, and what is damaged.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScrubReport {
    /// Absent if there was no pass yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub started_time: Option<String>,
    /// Absent while it is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub finished_time: Option<String>,
    /// What the pass has read.
    pub blobs: u64,
    pub bytes: u64,
    /// How many of these were damaged.
    pub found: u64,
    /// What the store holds now.
    pub stored_blobs: u64,
    pub stored_bytes: u64,
    /// What is damaged now, by whomever it was found.
    pub damaged: Vec<DamagedBlob>,
}

/// A blob that counts as not stored until somebody stores it again.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DamagedBlob {
    pub digest: String,
    pub size: u64,
    /// Some of the repositories that miss it.
    pub repositories: Vec<RepositoryRef>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RepositoryRef {
    pub registry: String,
    pub repository: String,
}

/// Answer of `GET /api/v1/version`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    pub version: String,
    /// The registries of this server: name and login server.
    pub registries: Vec<RegistryInfo>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegistryInfo {
    pub name: String,
    pub login_server: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
}
