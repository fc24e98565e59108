//! What a registry does by itself, in the words of the managed service.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer of `GET` and `PATCH .../policies`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Policies {
    pub retention_policy: RetentionPolicy,
    pub soft_delete_policy: SoftDeletePolicy,
}

/// What becomes of manifests that lose their last tag.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetentionPolicy {
    /// `UntaggedManifests`
    #[serde(rename = "type")]
    pub kind: String,
    /// `enabled` or `disabled`
    pub status: String,
    /// After how many days they go.
    pub days: u32,
    /// Absent: nobody has changed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub last_updated_time: Option<String>,
}

/// Whether what is deleted can be restored.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SoftDeletePolicy {
    /// `enabled` or `disabled`
    pub status: String,
    /// For how many days it can be.
    pub retention_days: u32,
    /// Absent: nobody has changed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub last_updated_time: Option<String>,
}

/// Body of `PATCH .../policies`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdatePolicies {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_policy: Option<UpdateRetentionPolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft_delete_policy: Option<UpdateSoftDeletePolicy>,
}

/// What is absent stays as it is.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateRetentionPolicy {
    /// `UntaggedManifests`, if it is there.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// `enabled` or `disabled`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// 0 to 365; 0: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days: Option<i64>,
}

/// What is absent stays as it is.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateSoftDeletePolicy {
    /// `enabled` or `disabled`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// 1 to 90, also for what is deleted already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_days: Option<i64>,
}
