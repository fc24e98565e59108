use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A secret that a registry keeps for its runs. Requests leave the envelope out.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Secret {
    #[serde(default)]
    #[schema(read_only)]
    pub id: String,
    #[serde(default)]
    #[schema(read_only)]
    pub name: String,
    #[serde(default)]
    pub properties: SecretProperties,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretProperties {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Only runs of these tasks have it. With `allRuns` absent or false too, this stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<Vec<String>>,
    /// All runs of the registry have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all_runs: Option<bool>,
    /// Never told. Absent: the one that it has stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only, value_type = Option<String>)]
    pub value: Option<SecretValue>,
    /// Read-only, a time in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only, format = DateTime)]
    pub creation_date: Option<String>,
    /// Read-only, a time in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only, format = DateTime)]
    pub last_update_date: Option<String>,
}

/// A text that does not print.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretValue(pub String);

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
