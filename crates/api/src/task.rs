//! Stored tasks (runs.md section 2) and how a run of one is asked for.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::run::{is_false, yes};
use crate::{AgentProperties, Credentials, PlatformProperties, Run, SetValue, TaskTriggers};

/// A task as the managed service shows it: an id envelope around `properties`. Requests leave the
/// envelope out, except for `tags`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Task {
    #[serde(default)]
    #[schema(read_only)]
    pub id: String,
    #[serde(default)]
    #[schema(read_only)]
    pub name: String,
    #[serde(rename = "type", default)]
    #[schema(read_only)]
    pub kind: String,
    /// Inert.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// Texts of whoever manages the task.
    #[serde(default)]
    pub tags: Option<BTreeMap<String, String>>,
    /// Absent: its runs can be nobody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<IdentityProperties>,
    pub properties: TaskProperties,
}

/// Whom the runs of a task can be for others.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct IdentityProperties {
    /// `None`, `SystemAssigned`, `UserAssigned` or `SystemAssigned, UserAssigned`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Read-only: the client id of the identity of the task itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub principal_id: Option<String>,
    /// Service principals, by name, or by an id that ends with it; one that is `null` is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<BTreeMap<String, UserAssignedIdentity>>)]
    pub user_assigned_identities: Option<BTreeMap<String, Option<UserAssignedIdentity>>>,
}

/// An account that a task can be.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UserAssignedIdentity {
    /// Read-only; the same as the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub principal_id: Option<String>,
    /// Read-only: by which commands ask for its tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub client_id: Option<String>,
}

/// What a task is to do.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskProperties {
    /// Read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub provisioning_state: Option<String>,
    /// Read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only, format = DateTime)]
    pub creation_date: Option<String>,
    /// Ours, read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only, format = DateTime)]
    pub last_updated_time: Option<String>,
    /// `Enabled` or `Disabled`; enabled if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Every task but a system task has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<PlatformProperties>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_configuration: Option<AgentProperties>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_pool_name: Option<String>,
    /// Seconds, 300 to 28800; 3600 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<TaskStep>,
    /// What starts its runs without anybody asking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<TaskTriggers>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
    /// Name that the log of each run is to have as an artifact, such as `logs:{{.Run.ID}}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_template: Option<String>,
    /// Only of the task `quicktask`, which has no step: its time limit and log template are those
    /// of quick builds and quick runs that have none themselves.
    #[serde(default)]
    pub is_system_task: bool,
    /// Ours: who answers for the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Ours: a time in RFC 3339, from which on the task starts no runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub expires_on: Option<String>,
    /// Ours: how long images stay that runs of the task pushed. Absent: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_retention: Option<OutputRetention>,
    /// Ours: what images of the task need before a tag is promoted to them. Absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promotion: Option<crate::PromotionRules>,
    /// Ours, read-only: tells this definition from others. Runs have that of their task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub definition_digest: Option<String>,
}

/// Which images that the runs of a task pushed stay: those that are young enough, and those of the
/// last runs. Those of archived runs do too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OutputRetention {
    /// Days after the end of the run, 0 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days: Option<u32>,
    /// Of so many of the last runs that pushed any, 0 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<u32>,
}

/// The one step of a task.
// Runs.md section 2.1.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type")]
pub enum TaskStep {
    Docker(DockerStep),
    FileTask(FileTaskStep),
    EncodedTask(EncodedTaskStep),
}

/// What a step of every kind has.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepContext {
    /// Address of a git repository or an archive; absent or `/dev/null`: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_path: Option<String>,
    /// Never shown. Absent: the token stays as it is if the context is in the same place; empty:
    /// there is none any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only)]
    pub context_access_token: Option<String>,
    /// Read-only: what the images of its last successful run were made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_image_dependencies: Option<Vec<BaseImageDependency>>,
}

impl fmt::Debug for StepContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepContext").finish_non_exhaustive()
    }
}

/// An image that others are made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BaseImageDependency {
    /// `BuildTime` or `RunTime`.
    #[serde(rename = "type")]
    pub kind: String,
    pub registry: String,
    pub repository: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// Builds a Dockerfile.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DockerStep {
    #[serde(flatten)]
    pub context: StepContext,
    /// They may have run variables, such as `app:{{.Run.ID}}`.
    #[serde(default)]
    pub image_names: Vec<String>,
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub is_push_enabled: bool,
    #[serde(default)]
    pub no_cache: bool,
    pub docker_file_path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The value of a secret one is never shown; absent, it stays as it is.
    #[serde(default)]
    pub arguments: Vec<SetValue>,
}

/// Runs a task file that is in the context.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileTaskStep {
    #[serde(flatten)]
    pub context: StepContext,
    pub task_file_path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values_file_path: Option<String>,
    /// As `arguments` of a `DockerStep`.
    #[serde(default)]
    pub values: Vec<SetValue>,
}

/// Runs a task file that is stored, in Base64.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EncodedTaskStep {
    #[serde(flatten)]
    pub context: StepContext,
    pub encoded_task_content: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoded_values_content: Option<String>,
    /// As `arguments` of a `DockerStep`.
    #[serde(default)]
    pub values: Vec<SetValue>,
}

/// A run of a stored task.
// Runs.md section 1.4.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskRunRequest {
    /// The task's `id`, or its name.
    pub task_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub override_task_step_properties: Option<OverrideTaskStepProperties>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_pool_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_template: Option<String>,
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_archive_enabled: bool,
}

/// What one run does otherwise than its task says.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OverrideTaskStepProperties {
    /// The `relativePath` of an upload, or an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_path: Option<String>,
    /// Path of another Dockerfile or task file in the context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Each replaces the one of its name, or is added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<SetValue>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<SetValue>,
    /// Told again with the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_trigger_token: Option<String>,
}

/// A run that is declared by name. Requests leave the envelope out.
// Runs.md section 2.3.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TaskRun {
    #[serde(default)]
    #[schema(read_only)]
    pub id: String,
    #[serde(default)]
    #[schema(read_only)]
    pub name: String,
    #[serde(rename = "type", default)]
    #[schema(read_only)]
    pub kind: String,
    /// Inert.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub identity: Option<serde_json::Value>,
    pub properties: TaskRunProperties,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskRunProperties {
    /// Read-only: that of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub provisioning_state: Option<String>,
    /// A `RunRequest`. Answers leave its secrets out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<crate::RunRequest>)]
    pub run_request: Option<serde_json::Value>,
    /// Read-only: the run, as long as its record is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub run_result: Option<Run>,
    /// Another one makes another run of the same request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force_update_tag: Option<String>,
}

/// Body of `PATCH .../taskRuns/{name}`: what is given replaces.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct TaskRunUpdate {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub identity: Option<serde_json::Value>,
    #[serde(default)]
    pub properties: TaskRunProperties,
}
