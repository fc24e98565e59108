//! What starts runs of tasks, and what became of it.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ImageDescriptor;

/// What starts runs of a task without anybody asking. A `PATCH` merges timers and source triggers by name,
/// and removes none.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskTriggers {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timer_triggers: Option<Vec<TimerTrigger>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_triggers: Option<Vec<SourceTrigger>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_image_trigger: Option<BaseImageTrigger>,
}

/// Starts a run when an image is another one that the task was built on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BaseImageTrigger {
    pub name: String,
    /// `Runtime`: the image that the result stands on. `All`: also those that only helped.
    pub base_image_trigger_type: String,
    /// `Enabled` or `Disabled`; enabled if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Ours: whether it does not wait until an image of another registry is certain to stay what it is;
    /// `false` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub urgent: Option<bool>,
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

/// Starts a run when the repository of the task's context has other commits.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceTrigger {
    pub name: String,
    /// `Enabled` or `Disabled`; enabled if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// `commit`, `pullrequest` or both.
    #[serde(default)]
    pub source_trigger_events: Vec<String>,
    #[serde(default)]
    pub source_repository: SourceRepository,
    /// Ours: what deliveries of the host prove themselves with, 16 to 256 bytes. `generateSecret` makes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only)]
    pub webhook_secret: Option<String>,
    /// Ours, read-only: where the host sends its deliveries to, below the address of this server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub webhook_path: Option<String>,
    /// Ours, read-only: whether deliveries can prove themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub has_webhook_secret: Option<bool>,
    /// Ours: seconds between two looks at the branch, 30 to 86400; 0: the host is never asked. As the server
    /// does if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_seconds: Option<u32>,
}

impl fmt::Debug for SourceTrigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceTrigger").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The repository of a source trigger.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceRepository {
    /// `Github`, `VisualStudioTeamService`, or of ours `GitLab`, `Gitea`, `Bitbucket`, `Generic`; generic if
    /// absent. It is for people: a delivery says itself whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_control_type: Option<String>,
    /// That of the task's context, which it is if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository_url: Option<String>,
    /// That of the context if absent, which may be the repository's default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_control_auth_properties: Option<SourceControlAuth>,
}

/// A token for a host.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceControlAuth {
    /// `PAT` or `OAuth`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_type: Option<String>,
    /// The stored one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only)]
    pub token: Option<String>,
    /// Refused: tokens are not renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only)]
    pub refresh_token: Option<String>,
    /// Not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u64>,
}

impl fmt::Debug for SourceControlAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceControlAuth").finish_non_exhaustive()
    }
}

/// The commit or the pull request that started a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceTriggerCause {
    pub id: String,
    /// `commit` or `pullrequest`.
    pub event_type: String,
    /// Of a pull request as the host told it.
    pub commit_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_request_id: Option<String>,
    pub repository_url: String,
    /// The branch that is followed.
    pub branch_name: String,
    /// Who told it; absent if the repository was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_type: Option<String>,
    /// Ours: name of the trigger.
    pub source_trigger_name: String,
}

/// Which source trigger is to have a new secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct GenerateWebhookSecretRequest {
    /// The only one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_trigger_name: Option<String>,
}

/// A new secret of a source trigger, and where it belongs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookSecret {
    /// Where the host sends its deliveries to, below the address of this server.
    pub webhook_path: String,
    /// The whole address, if the server knows its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook_url: Option<String>,
    /// Shown this once.
    pub secret: String,
}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookSecret")
            .field("webhook_path", &self.webhook_path)
            .finish_non_exhaustive()
    }
}

/// What became of a delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryAnswer {
    /// As in the ledger: `Fired`, `Skipped` or `Waits`.
    pub decision: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
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

/// Triggers that are held: commits and bases that move wait until it ends, times of timers are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TriggerPause {
    /// Whose triggers; all of the registry if neither this nor a base is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// What follows from this image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    pub reason: String,
    #[schema(format = DateTime)]
    pub start_time: String,
    /// Absent: until somebody ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub end_time: Option<String>,
    /// Who has paused them.
    pub principal: String,
}

/// Which triggers to hold: those of a task, what follows from a base, or all of the registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PauseTriggersRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// An image, as a Dockerfile names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Why, for whoever wonders; 1 to 500 characters.
    pub reason: String,
    /// When it ends by itself; never if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub end_time: Option<String>,
}

/// An event that might come: a base that moves, a commit, a pull request, or time that passes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SimulateTriggerRequest {
    /// An image that becomes another one, as a Dockerfile names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Which one it becomes; without it the platforms of its images are not compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// A branch that has another commit, or that a pull request is to become a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_request_number: Option<u64>,
    /// Whether the pull request comes from a fork.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork: Option<bool>,
    /// What timers start from now until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub until: Option<String>,
    /// Only what concerns this task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
}

/// What an event would come to for a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SimulatedDecision {
    pub task: String,
    /// As in `TriggerEvent`.
    pub kind: String,
    pub trigger: String,
    /// 1 for what the event itself starts, more for what follows from that.
    pub level: u64,
    /// As in `TriggerEvent`.
    pub decision: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The images that would have moved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
}

/// Which pause to end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResumeTriggersRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
}

/// A tag of another registry that tasks are built on, and that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TriggerWatch {
    /// `HOST/REPOSITORY:TAG`.
    pub image: String,
    /// What it was last, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// What it is now, as long as it is not certain to stay so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settling_digest: Option<String>,
    /// When it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub last_time: Option<String>,
    /// When it is asked for next.
    #[schema(format = DateTime)]
    pub next_time: String,
    /// Why it was not told last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
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
    /// `Timer`, `BaseImage` or `Source`.
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
