//! What an update of a base touches, written down before it happens.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What to plan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanRequest {
    /// The image that becomes another one, as a Dockerfile names it.
    pub base: String,
    /// Which one it becomes. An image of the registry itself is moved there when the plan is applied; without it,
    /// and in other registries, the base is taken as it is by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The part of each level that is built first, in percent, 0 to 100: the rest waits until it has succeeded.
    /// 10 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary_percent: Option<u8>,
}

/// What an update of a base touches, level by level.
///
/// `Planned`: nothing is done yet. `Applying`: it is carried out. `Stopping`: nothing more is started, what runs
/// goes on to its end. `Stopped`: it can go on, be rolled back, or be closed. `Succeeded`. `RollingBack`: what it
/// has moved is put back. `RolledBack`. `Closed`: given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// `p` and a number.
    pub name: String,
    /// Digest of what the plan does: equal ones do the same.
    pub hash: String,
    pub status: String,
    /// Why it has stopped, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub base: String,
    /// What the base was when the plan was made, if that was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_digest: Option<String>,
    /// What it becomes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    pub canary_percent: u8,
    pub created_by: String,
    #[schema(format = DateTime)]
    pub create_time: String,
    /// Who has applied it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_by: Option<String>,
    /// When it was applied first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub apply_time: Option<String>,
    #[schema(format = DateTime)]
    pub last_update_time: String,
    /// The move of the base itself, if the plan has made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_move: Option<PlanMove>,
    /// Absent in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<PlanTime>,
    /// By level and name; absent in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<Vec<PlanTask>>,
}

/// How long a plan may take, as runs of its tasks have taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanTime {
    /// Milliseconds of all tasks together, one after another.
    pub sum: u64,
    /// The tasks that follow from each other and take longest, the first one first.
    pub critical_path: Vec<String>,
    /// Milliseconds of those: with any number of workers it does not take less.
    pub critical: ExpectedTime,
    /// Tasks that are not counted: no run of them has succeeded.
    pub unknown: u64,
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExpectedTime {
    pub min: u64,
    pub median: u64,
    pub max: u64,
}

/// A task of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanTask {
    pub task: String,
    /// 1 for what is built on the base itself; more for what is built on that.
    pub level: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// `Rebuild`: its commands run again. `Reuse`: by its last run it has none, and layers that see nothing of the
    /// change are used again. `Nothing`: for `reason`.
    pub method: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether it is built before the others of its level.
    pub canary: bool,
    /// The images that move, and that it is built on.
    pub bases: Vec<String>,
    /// Tasks of the plan that are built before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<String>,
    /// The images that its last run has pushed: they move.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// As its last runs have taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<ExpectedTime>,
    /// `Waiting`, `Running`, `Succeeded`, `Failed`, `Nothing` or `RolledBack`.
    pub status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The tags that it has moved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moves: Vec<PlanMove>,
}

/// A tag that a plan has moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanMove {
    pub image: String,
    /// Absent if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_digest: Option<String>,
    pub digest: String,
    /// Of a plan that was rolled back: whether it is what it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returned: Option<bool>,
    /// Why it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
