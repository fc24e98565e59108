//! Deleting by rule, in the words of `acr purge` (builtin-commands.md section 2).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ErrorDetail;

/// Body of `POST .../purge`. A member that is not known is refused: it may have been meant to keep
/// something.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PurgeRequest {
    /// `REPOSITORY:TAG`, both as regular expressions.
    #[serde(default)]
    pub filters: Vec<String>,
    /// Such as `30d`, or `1d12h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ago: Option<String>,
    /// How many of the newest stay in each repository.
    #[serde(default)]
    pub keep: u64,
    #[serde(default)]
    pub untagged: bool,
    #[serde(default)]
    pub untagged_only: bool,
    #[serde(default)]
    pub dry_run: bool,
    #[serde(default)]
    pub include_locked: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter_timeout_seconds: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository_page_size: Option<i64>,
}

/// A line of the answer of `POST .../purge` or `.../annotate`, which comes while that goes on. The last one is
/// `finished` or `failed`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum PurgeRecord {
    /// A line for people.
    Note(String),
    Warning(String),
    /// Deleted or annotated, or in a dry run what would be.
    Item(PurgedItem),
    Finished(PurgeSummary),
    Failed(PurgeFailure),
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PurgedItem {
    /// `HOST/REPOSITORY:TAG`, or `HOST/REPOSITORY@DIGEST`.
    pub name: String,
    pub repository: String,
    /// Absent: it is the manifest itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    pub digest: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PurgeSummary {
    pub dry_run: bool,
    pub tags: u64,
    pub manifests: u64,
    /// Tags that were not annotated because they are locked.
    #[serde(default)]
    pub locked: u64,
}

/// What the answer would have been, had it not begun.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PurgeFailure {
    pub status: u16,
    pub error: ErrorDetail,
}
