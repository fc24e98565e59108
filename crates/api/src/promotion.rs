//! A tag that moves to an image after checks and, where a task asks for it, an approval.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What to promote.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PromotionRequest {
    /// An image of the registry, with a tag or a digest. What a tag is now is promoted, wherever it moves later.
    pub image: String,
    /// A tag of the same repository; a name with a tag, `NAME:TAG`, with a registry's host before it or without; or
    /// another registry, `HOST/`, where it gets the same name.
    pub to: String,
    /// Tasks that look at the image, besides those that the tasks ask for that have made it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<String>,
}

/// A tag that moves, has moved or could not.
///
/// `Checking`: runs look at the image. `AwaitingApproval`: they have passed, and somebody has to approve. `Moving`.
/// `Succeeded`. `Failed`: for `error`. `Rejected`. `RolledBack`: the tag is what it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Promotion {
    /// `m` and a number.
    pub name: String,
    pub status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// As it was named.
    pub image: String,
    pub digest: String,
    /// What moves.
    pub to: String,
    /// What that was; absent if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_digest: Option<String>,
    #[serde(default)]
    pub checks: Vec<PromotionCheck>,
    /// Whether somebody has to approve it.
    pub approval_required: bool,
    pub created_by: String,
    #[schema(format = DateTime)]
    pub create_time: String,
    /// Who has approved or rejected it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub decide_time: Option<String>,
    #[schema(format = DateTime)]
    pub last_update_time: String,
}

/// A task that looks at an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PromotionCheck {
    pub task: String,
    pub run_id: String,
    /// Of the run.
    pub status: String,
}

/// What an image needs before a tag is promoted to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PromotionRules {
    /// Tasks that look at it: each run gets the image as the value `image`, or as the argument `IMAGE` if the task
    /// builds a Dockerfile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<String>,
    /// Whether somebody else has to approve it.
    #[serde(default)]
    pub approval_required: bool,
}
