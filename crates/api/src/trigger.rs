//! What starts runs of tasks, and what became of it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ImageDescriptor;

/// What starts runs of a task without anybody asking. A `PATCH` merges timers by name, and removes none.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskTriggers {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timer_triggers: Option<Vec<TimerTrigger>>,
    /// Not there yet: refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub source_triggers: Option<Vec<serde_json::Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_image_trigger: Option<BaseImageTrigger>,
}

/// Starts a run when an image of a registry of this server is another one that the task was built on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BaseImageTrigger {
    pub name: String,
    /// `Runtime`: the image that the result stands on. `All`: also those that only helped.
    pub base_image_trigger_type: String,
    /// `Enabled` or `Disabled`; enabled if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Not there yet: refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_trigger_endpoint: Option<String>,
    /// Of what is sent there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_trigger_payload_type: Option<String>,
}

/// The bases that started a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageUpdateCause {
    pub id: String,
    /// When the first of them moved.
    #[schema(format = DateTime)]
    pub timestamp: String,
    /// What they are now.
    pub images: Vec<ImageDescriptor>,
    /// Ours: the runs that they follow from, each of another task, the last one last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<CauseLink>,
}

/// A run that another follows from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CauseLink {
    pub registry: String,
    pub task: String,
    pub run_id: String,
}

/// Starts a run at each time of a schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TimerTrigger {
    pub name: String,
    /// Minute, hour, day of the month, month and day of the week, such as `0 5 * * Mon-Fri`. Days of the
    /// month and of the week both have to fit.
    pub schedule: String,
    /// `Enabled` or `Disabled`; enabled if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Ours: a name of the IANA database, such as `Europe/Berlin`; UTC if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// Ours, read-only, where one task is asked for: when it starts the next run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only, format = DateTime)]
    pub next_occurrence: Option<String>,
}

/// The timer that started a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TimerCause {
    pub timer_trigger_name: String,
    /// The time of the schedule, whenever the run was queued.
    #[schema(format = DateTime)]
    pub schedule_occurrence: String,
    /// Ours: earlier times that no run was queued for, as the server was not running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed_occurrences: Option<u64>,
}

/// What a trigger has seen, and what was decided.
///
/// The same decision for the same reason, one after another, is one event with a `count`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TriggerEvent {
    /// Grows from event to event.
    pub number: i64,
    /// When it was seen, of several the last one.
    #[schema(format = DateTime)]
    pub time: String,
    /// Of several, when the first one was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub first_time: Option<String>,
    pub count: u64,
    pub task: String,
    /// `Timer` or `BaseImage`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Name of the trigger.
    pub trigger: String,
    /// What was seen, for people.
    pub event: String,
    /// `Fired`: a run was queued. `Joined`: one that waits does it too. `Skipped`: there is nothing to do.
    /// `Suppressed`: a run would start what it follows from. `Waits`: it is tried again.
    pub decision: String,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
}
