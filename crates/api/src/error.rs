use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What every refused request is answered with.
// The management envelope, runs.md section 5.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    /// For programs, such as `NotFound`.
    pub code: String,
    /// For people.
    pub message: String,
    /// The member of the request that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(no_recursion)]
    pub details: Vec<ErrorDetail>,
    /// What the user can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}
