//! Annotating by rule, in the words of `acr annotate` (builtin-commands.md section 4).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST .../annotate`, whose answer has the form of that of a purge. A member that is not
/// known is refused.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AnnotateRequest {
    /// `REPOSITORY:TAG`, both as regular expressions.
    #[serde(default)]
    pub filters: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// `KEY=VALUE[,KEY=VALUE]`
    #[serde(default)]
    pub annotations: Vec<String>,
    #[serde(default)]
    pub untagged: bool,
    #[serde(default)]
    pub dry_run: bool,
    #[serde(default)]
    pub include_locked: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter_timeout_seconds: Option<i64>,
}
