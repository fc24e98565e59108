use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{BuildOptions, ImageUpdateCause, SourceTriggerCause, TaskRunRequest, TimerCause};

pub(crate) fn yes() -> bool {
    true
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

pub(crate) fn is_false(value: &bool) -> bool {
    !value
}

/// Body of `POST .../scheduleRun`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type")]
#[expect(clippy::large_enum_variant, reason = "builds, the larger ones, are most of them")]
pub enum RunRequest {
    DockerBuildRequest(DockerBuildRequest),
    FileTaskRunRequest(FileTaskRunRequest),
    EncodedTaskRunRequest(EncodedTaskRunRequest),
    TaskRunRequest(TaskRunRequest),
}

/// One Dockerfile build, and what Refit adds to it.
// Runs.md section 1.2.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DockerBuildRequest {
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
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<Argument>,
    /// Seconds, 300 to 28800; 3600 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
    pub platform: PlatformProperties,
    /// The `relativePath` of an upload, or an absolute URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_location: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_pool_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_configuration: Option<AgentProperties>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
    /// Name that the log is to have as an artifact of the registry, such as `logs:{{.Run.ID}}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_template: Option<String>,
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_archive_enabled: bool,
    /// Ours: the time for `SOURCE_DATE_EPOCH`, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_date_epoch: Option<i64>,
    /// Ours: `none`, `default` or (under policy) `host`, for all `RUN`s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Ours: the Dockerfile's name as the user gave it, for messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker_file_name: Option<String>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub build_options: BuildOptions,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Argument {
    pub name: String,
    /// Every request has it; what is shown of one leaves out that of a secret.
    #[schema(required = false)]
    pub value: String,
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_secret: bool,
}

/// A task file inside the context.
// Runs.md section 1.3.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileTaskRunRequest {
    pub task_file_path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values_file_path: Option<String>,
    #[serde(flatten)]
    pub options: TaskRunOptions,
}

/// A task file that comes with the request, in Base64.
// Runs.md section 1.3.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EncodedTaskRunRequest {
    pub encoded_task_content: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoded_values_content: Option<String>,
    #[serde(flatten)]
    pub options: TaskRunOptions,
}

/// What runs of task files have in common, wherever the file is.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskRunOptions {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<SetValue>,
    /// Seconds, 300 to 28800; 3600 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
    pub platform: PlatformProperties,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_configuration: Option<AgentProperties>,
    /// The `relativePath` of an upload, or an absolute URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_location: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_pool_name: Option<String>,
    /// Name that the log is to have as an artifact of the registry, such as `logs:{{.Run.ID}}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_template: Option<String>,
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_archive_enabled: bool,
}

/// A value for a task file.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SetValue {
    pub name: String,
    /// Absent means that the client forgot it, and is refused.
    #[serde(default)]
    pub value: Option<String>,
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_secret: bool,
}

impl fmt::Debug for SetValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = if self.is_secret { Some("(hidden)") } else { self.value.as_deref() };
        write!(f, "{}={}", self.name, value.unwrap_or_default())
    }
}

/// What the containers of a run may have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentProperties {
    /// Processors that each of them has at most. Absent: as many as the server gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u32>,
    /// Where they may connect to: names such as `pypi.org:443` or `*.debian.org`, addresses, ranges,
    /// and the words `registry`, `open` and `none`. Absent: where the server lets them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<String>,
}

/// How a run logs in to registries.
// Identity-and-secrets.md sections 1 and 2.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Credentials {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_registry: Option<SourceRegistryCredentials>,
    /// By login server, such as `ghcr.io`. In a change of a task, `null` removes a login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<BTreeMap<String, CustomRegistryCredentials>>)]
    pub custom_registries: Option<BTreeMap<String, Option<CustomRegistryCredentials>>>,
}

/// A login to another registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CustomRegistryCredentials {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_name: Option<SecretObject>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretObject>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
}

/// A part of a login.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretObject {
    /// Never shown of a password. Absent, it stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// `Opaque`: the value itself; `Vaultsecret`: the address of a secret in a vault.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

impl fmt::Debug for SecretObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretObject").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// The login to the run's own registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceRegistryCredentials {
    /// `Default`, which is also meant if it is absent, or `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login_mode: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlatformProperties {
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Body of `PATCH .../runs/{id}`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunUpdate {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_archive_enabled: Option<bool>,
}

/// Answer of `POST .../listBuildSourceUploadUrl`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceUpload {
    pub upload_url: String,
    pub relative_path: String,
}

/// A line of the list that is the body of `POST .../sources`: what is at one path of a context.
/// Folders come before what is in them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SourceEntry {
    /// Relative to the context, without `.` and `..`.
    pub path: String,
    #[serde(flatten)]
    pub kind: SourceEntryKind,
    /// Seconds since 1970.
    pub mtime: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum SourceEntryKind {
    Directory {
        mode: u32,
    },
    File {
        mode: u32,
        size: u64,
        /// Its sha256, as `sha256:HEX`.
        digest: String,
        /// A number that all names of one file (hard links) have in common.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        link: Option<u64>,
    },
    Symlink {
        target: String,
    },
}

/// Answer of `POST .../sources`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListedSource {
    pub id: String,
    /// The files that the server lacks, each content once: rows of them, each with the number of its
    /// first file and how many there are. Files are counted from 0, in the order of the list.
    #[schema(value_type = Vec<[u64; 2]>)]
    pub missing: Vec<(u64, u64)>,
}

/// One file of a pack. A line with a list of them is in front of their bytes in the body of
/// `POST .../sources/{id}/packs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PackedFile {
    pub digest: String,
    pub size: u64,
}

/// At most so many files are in one pack.
pub const PACK_FILES_MAX: usize = 65_536;

/// Bytes of the files of a pack, unless it is one file.
pub const PACK_SIZE_MAX: u64 = 64 << 20;

/// Body of `POST .../sources/{id}/commit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SourceCommit {
    /// The digest of the list.
    pub digest: String,
}

/// Answer of `POST .../sources/{id}/commit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommittedSource {
    pub relative_path: String,
}

/// A run as the managed service shows it: an id envelope around `properties`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Run {
    pub id: String,
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub properties: RunProperties,
}

/// Forward only; the last five are final.
// Runs.md section 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum RunStatus {
    Queued,
    Started,
    Running,
    Succeeded,
    Failed,
    Canceled,
    Error,
    Timeout,
}

impl RunStatus {
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Started | Self::Running)
    }
}

/// Why a run that is `Queued` waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// For people, such as ``2 of 2 runs of registry `local` are under way``.
    pub reason: String,
    /// How manieth it is in line; the first one is next.
    pub position: u64,
    /// Seconds until it begins, if it goes on as the last runs went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_seconds: Option<u64>,
}

/// Why there is a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RunCause {
    /// `Manual`: somebody asked for it. `Timer`: see `timerTrigger`. `Image Update`: see
    /// `imageUpdateTrigger`. `Commit` and `Pull Request`: see `sourceTrigger`. `Plan`: see `fleetPlan`.
    /// `Check`: see `promotion`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Who did, as the server knows them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
}

/// The run record.
// Runs.md section 4.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunProperties {
    pub run_id: String,
    pub status: RunStatus,
    pub run_type: String,
    /// The stored task that it is a run of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// What a run of a task was given to be told again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_trigger_token: Option<String>,
    /// Ours: the `definitionDigest` that the task had when the run was queued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition_digest: Option<String>,
    /// Ours: the plan for an update of a base that has started the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet_plan: Option<String>,
    /// Ours: the promotion whose image the run looks at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promotion: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_pool_name: Option<String>,
    /// Ours: the agent that executes the run, or did so last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_configuration: Option<AgentProperties>,
    /// Ours: why there is this run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<RunCause>,
    /// The images that started it, if some did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_update_trigger: Option<ImageUpdateCause>,
    /// The commit or the pull request that started it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_trigger: Option<SourceTriggerCause>,
    /// The timer that started it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timer_trigger: Option<TimerCause>,
    #[schema(format = DateTime)]
    pub create_time: String,
    #[schema(format = DateTime)]
    pub last_updated_time: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub start_time: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub finish_time: Option<String>,
    /// The other registries that it logs in to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub custom_registries: Vec<String>,
    /// How it logs in to its own registry: `Default` or `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_registry_auth: Option<String>,
    #[serde(default)]
    pub output_images: Vec<ImageDescriptor>,
    pub platform: PlatformProperties,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_error_message: Option<String>,
    #[serde(default)]
    pub is_archive_enabled: bool,
    pub provisioning_state: String,
    /// Ours, while it is `Queued` and is asked for alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// Ours: the manifest that the build made, also when it has no tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_digest: Option<String>,
    /// Ours: the commit that was built, if the context was a git repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit_id: Option<String>,
    /// Ours: its branch, if it was named by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch_name: Option<String>,
    /// Ours: what the images were made of, for each build and name `image`, `runtime-dependency`,
    /// `buildtime-dependency` and `git`.
    // Runs.md section 4.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub dependencies: Option<serde_json::Value>,
    /// The artifact that the log is, if the run has a `logTemplate`, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_artifact: Option<ImageDescriptor>,
    /// Ours: why the log is no artifact, though the run has a `logTemplate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_artifact_error: Option<String>,
    /// Ours: the digest of the text of the log, up to where that says how the run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_digest: Option<String>,
    /// Ours, when it has ended and is asked for alone: what it was made of, by digests, and what its
    /// task file came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub plan: Option<serde_json::Value>,
    /// Ours: what the run cost.
    // Architecture.md decision 13.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub cost: Option<serde_json::Value>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageDescriptor {
    pub registry: String,
    pub repository: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    pub digest: String,
}

/// A page of a listing.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Page<T> {
    pub value: Vec<T>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_link: Option<String>,
}

/// A `dockerFilePath` whose last part begins so names a file that travels along with the
/// context and is no part of it: no instruction sees it.
pub const HIDDEN_DOCKERFILE_PREFIX: &str = ".refit-dockerfile-";

/// What a request to `.../runs/{id}/agents/{agent}` upgrades its connection to. It waits then until
/// a `RUN` has something to ask; from there on the server passes on the messages of one connection
/// to an ssh agent, as they are, and the client answers. It opens the next connection as soon as
/// the first byte comes.
pub const AGENT_PROTOCOL: &str = "refit-ssh-agent";
