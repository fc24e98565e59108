//! What a registry holds (registry.md section 2), as our client and UI read it.

use serde::{Deserialize, Serialize};

/// A repository and how much is in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Repository {
    /// Login server of the registry.
    pub registry: String,
    pub image_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_time: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_update_time: Option<String>,
    pub manifest_count: u64,
    pub tag_count: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TagAttributes {
    pub name: String,
    pub digest: String,
    pub created_time: String,
    pub last_update_time: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestAttributes {
    pub digest: String,
    /// Config plus layers, in bytes.
    pub image_size: u64,
    pub created_time: String,
    pub last_update_time: String,
    pub media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

/// One manifest with its bytes: the answer of `GET .../repositories/{name}/manifests/{ref}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestDocument {
    pub digest: String,
    pub media_type: String,
    pub size: u64,
    /// The manifest as it was pushed, read as JSON.
    pub manifest: serde_json::Value,
}

/// What a deletion removed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deleted {
    pub manifests_deleted: u64,
    pub tags_deleted: u64,
}

/// Body of `POST .../gc`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GarbageRequest {
    /// Report what would be deleted, delete nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What garbage collection deleted, or would delete.
#[derive(Debug, Clone, Serialize, Deserialize)]
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

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GarbageManifest {
    pub registry: String,
    pub repository: String,
    pub digest: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GarbageBlob {
    pub digest: String,
    pub size: u64,
}

/// Answer of `GET /api/v1/version`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    pub version: String,
    /// The registries of this server: name and login server.
    pub registries: Vec<RegistryInfo>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryInfo {
    pub name: String,
    pub login_server: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
}
