//! What a run is asked to do: build an image, or carry out the steps of a task file.

use std::fmt;
use std::time::Duration;

use oci::{Digest, Platform};
use serde::{Deserialize, Serialize};

use crate::run::{BuildRequest, ContextSource, RemoteSource, RunKind};
use crate::{Logins, PoolName, Result, RunCause, SecretKeys, TaskName};

/// A run to be queued.
#[derive(Debug, Clone, PartialEq)]
pub struct NewRun {
    pub kind: RunKind,
    pub request: RunRequest,
    /// The stored task that it is a run of.
    pub task: Option<TaskName>,
    /// Of the task's definition.
    pub definition: Option<Digest>,
    /// What the task's owner wants to hear again of the run.
    pub update_trigger_token: Option<String>,
    /// Whose agents execute it; absent: the server does.
    pub pool: Option<PoolName>,
    pub lane: Lane,
    /// Who asked for it.
    pub started_by: Option<String>,
    /// What started it, if nobody asked for it.
    pub cause: Option<RunCause>,
    /// Processors that its containers have together.
    pub cpu: Option<u32>,
    /// Name that its log is to have as an artifact of its registry, with run variables; none if empty.
    pub log_template: Option<String>,
    /// What its log begins with.
    pub warnings: Vec<String>,
}

/// Which runs go before which, whenever they were queued.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Somebody asked for it, and may be waiting.
    #[default]
    People,
    /// A commit, a timer, an update of one image.
    Triggers,
    /// One of the many that follow from one event.
    Waves,
}

impl Lane {
    /// As the table has it: the lower one goes first.
    pub(crate) fn number(self) -> i64 {
        match self {
            Self::People => 0,
            Self::Triggers => 1,
            Self::Waves => 2,
        }
    }
}

impl NewRun {
    /// What runs have in common that reuse each other's snapshots: the task, or the repository that a
    /// build is for.
    pub(crate) fn affinity(&self) -> Option<String> {
        if let Some(task) = &self.task {
            return Some(format!("task/{}", task.as_str().to_ascii_lowercase()));
        }
        let image = self.request.build()?.image_names.first()?;
        let name_at = image.rfind('/').map_or(0, |slash| slash + 1);
        let tag_at = image[name_at..].find([':', '@']).map_or(image.len(), |at| name_at + at);
        Some(format!("image/{}", &image[..tag_at]))
    }
}

impl<R: Into<RunRequest>> From<R> for NewRun {
    /// A run that somebody asked for.
    fn from(request: R) -> Self {
        let request = request.into();
        Self {
            kind: request.kind(),
            request,
            task: None,
            definition: None,
            update_trigger_token: None,
            pool: None,
            lane: Lane::People,
            started_by: None,
            cause: None,
            cpu: None,
            log_template: None,
            warnings: Vec::new(),
        }
    }
}

/// What a run is asked to do, checked.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
#[expect(clippy::large_enum_variant, reason = "builds, the larger ones, are most of them")]
pub enum RunRequest {
    Build(BuildRequest),
    Task(TaskRequest),
}

/// The steps of a task file, once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskRequest {
    pub file: TaskText,
    pub values_file: Option<TaskText>,
    /// Each name once; over what the values file says.
    pub values: Vec<TaskValue>,
    /// Absent: the workspace is empty.
    pub context: Option<ContextSource>,
    pub timeout: Duration,
    pub platform: Platform,
    pub archived: bool,
    #[serde(default, skip_serializing_if = "Logins::is_default")]
    pub logins: Logins,
    /// Where its containers may connect to, as somebody wrote it; empty: where they are let.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<String>,
}

/// The text of a task file or of its values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskText {
    Inline(String),
    /// The path of a file inside the context.
    InContext(String),
}

/// A value that is set for one run.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskValue {
    pub name: String,
    pub value: String,
    pub secret: bool,
}

impl TaskValue {
    /// Forgets a value that must not be seen.
    pub(crate) fn hide(&mut self) {
        if self.secret {
            self.value.clear();
        }
    }
}

impl fmt::Debug for TaskValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = if self.secret { "(hidden)" } else { &self.value };
        write!(f, "{}={value}", self.name)
    }
}

impl From<BuildRequest> for RunRequest {
    fn from(request: BuildRequest) -> Self {
        Self::Build(request)
    }
}

impl From<TaskRequest> for RunRequest {
    fn from(request: TaskRequest) -> Self {
        Self::Task(request)
    }
}

impl RunRequest {
    /// The kind of a run that does this because somebody asked for it.
    pub fn kind(&self) -> RunKind {
        match self {
            Self::Build(_) => RunKind::QuickBuild,
            Self::Task(_) => RunKind::QuickRun,
        }
    }

    /// The build, if it is one.
    pub fn build(&self) -> Option<&BuildRequest> {
        match self {
            Self::Build(build) => Some(build),
            Self::Task(_) => None,
        }
    }

    /// The task, if it is one.
    pub fn task(&self) -> Option<&TaskRequest> {
        match self {
            Self::Build(_) => None,
            Self::Task(task) => Some(task),
        }
    }

    pub fn timeout(&self) -> Duration {
        match self {
            Self::Build(build) => build.timeout,
            Self::Task(task) => task.timeout,
        }
    }

    pub fn platform(&self) -> &Platform {
        match self {
            Self::Build(build) => &build.platform,
            Self::Task(task) => &task.platform,
        }
    }

    /// The platform of agents that may execute it although it names no pool; none: only the server
    /// may, which has what it needs.
    pub(crate) fn suits(&self) -> Option<&Platform> {
        let needs_client = self.build().is_some_and(|build| !build.options.ssh.is_empty());
        (!needs_client).then(|| self.platform())
    }

    /// The registries that it is logged in to.
    pub fn logins(&self) -> &Logins {
        match self {
            Self::Build(build) => &build.logins,
            Self::Task(task) => &task.logins,
        }
    }

    /// Whether run and log are kept for ever.
    pub fn archived(&self) -> bool {
        match self {
            Self::Build(build) => build.archived,
            Self::Task(task) => task.archived,
        }
    }

    /// The blobs of uploads that the run reads.
    pub fn blobs(&self) -> Vec<Digest> {
        match self {
            Self::Build(build) => build.blobs(),
            Self::Task(task) => task.blobs(),
        }
    }

    /// The values that must not be seen.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        let build = self.build().into_iter().flat_map(BuildRequest::secrets);
        build.chain(self.task().into_iter().flat_map(TaskRequest::secrets))
    }

    /// The addresses of contexts elsewhere, without what is secret in them.
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        let build = self.build().into_iter().flat_map(BuildRequest::remotes);
        let task = self.task().and_then(|task| task.context.as_ref()?.remote());
        build.chain(task).map(|remote| &*remote.shown)
    }

    /// Forgets them.
    pub(crate) fn without_secrets(self) -> Self {
        match self {
            Self::Build(build) => build.without_secrets().into(),
            Self::Task(task) => task.without_secrets().into(),
        }
    }

    /// With its secrets; the kind of the run stands beside it.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    /// Reads what the table has of a run of this kind.
    pub(crate) fn join(
        keys: &SecretKeys,
        kind: RunKind,
        place: &str,
        open: &str,
        secrets: Option<&str>,
    ) -> Result<Self> {
        Ok(match kind {
            RunKind::QuickBuild | RunKind::AutoBuild => {
                Self::Build(keys.join(place, open, secrets)?)
            }
            RunKind::QuickRun | RunKind::AutoRun => Self::Task(keys.join(place, open, secrets)?),
        })
    }

    /// Where its containers may connect to, as somebody wrote it.
    pub fn egress(&self) -> &[String] {
        match self {
            Self::Build(build) => &build.egress,
            Self::Task(task) => &task.egress,
        }
    }

    /// Says where its containers may connect to.
    #[must_use]
    pub fn with_egress(mut self, places: Vec<String>) -> Self {
        match &mut self {
            Self::Build(build) => build.egress = places,
            Self::Task(task) => task.egress = places,
        }
        self
    }

    /// Reads the request of a run of this kind.
    pub fn from_json(kind: RunKind, text: &str) -> serde_json::Result<Self> {
        Ok(match kind {
            RunKind::QuickBuild | RunKind::AutoBuild => Self::Build(serde_json::from_str(text)?),
            RunKind::QuickRun | RunKind::AutoRun => Self::Task(serde_json::from_str(text)?),
        })
    }
}

impl TaskRequest {
    fn blobs(&self) -> Vec<Digest> {
        self.context.iter().flat_map(ContextSource::blobs).cloned().collect()
    }

    /// The values that must not be seen.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        let values = self.values.iter().filter(|value| value.secret);
        let remote = self.context.iter().filter_map(ContextSource::remote);
        let remote = remote.flat_map(RemoteSource::secret_parts);
        values.map(|value| &*value.value).chain(remote).chain(self.logins.secrets())
    }

    fn without_secrets(mut self) -> Self {
        self.values.iter_mut().for_each(TaskValue::hide);
        if let Some(remote) = self.context.as_mut().and_then(ContextSource::remote_mut) {
            remote.forget_secrets();
        }
        self.logins.hide();
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::RegistryLogin;

    fn task() -> TaskRequest {
        let value = |name: &str, value: &str, secret| TaskValue {
            name: name.to_owned(),
            value: value.to_owned(),
            secret,
        };
        TaskRequest {
            file: TaskText::InContext("acb.yaml".into()),
            values_file: Some(TaskText::Inline("a: 1".into())),
            values: vec![value("a", "plain", false), value("b", "hunter2", true)],
            context: Some(ContextSource::Remote(RemoteSource {
                address: "https://token@h/r.git".into(),
                shown: "https://***@h/r.git".into(),
                secrets: vec!["token".into()],
                branch: None,
            })),
            timeout: Duration::from_secs(600),
            platform: Platform::new("linux", "arm64", None),
            archived: true,
            logins: logins(),
            egress: Vec::new(),
        }
    }

    fn logins() -> Logins {
        let login = RegistryLogin::of("me", "hunter3");
        Logins { others: BTreeMap::from([("r.example".into(), login)]), ..Logins::default() }
    }

    #[test]
    fn secrets_of_a_task_are_not_printed() {
        let shown = format!("{:?}", task());
        assert!(shown.contains("a=plain") && shown.contains("b=(hidden)"), "{shown}");
        assert!(!shown.contains("hunter") && !shown.contains("token"), "{shown}");
        assert!(shown.contains("r.example") && shown.contains("(hidden)"), "{shown}");
    }

    #[test]
    fn a_task_forgets_its_secrets_and_nothing_else() {
        let request = RunRequest::from(task());
        assert_eq!(request.secrets().collect::<Vec<_>>(), ["hunter2", "token", "hunter3"]);
        let forgotten = request.clone().without_secrets();
        let text = forgotten.to_json().unwrap();
        assert!(!text.contains("hunter") && !text.contains("token"), "{text}");
        assert!(text.contains("r.example"), "{text}");
        assert!(text.contains("plain") && text.contains("https://***@h/r.git"), "{text}");
        let uploaded =
            TaskRequest { context: Some(ContextSource::Upload(Digest::of(b"context"))), ..task() };
        assert_eq!(RunRequest::from(uploaded).without_secrets().blobs(), [Digest::of(b"context")]);
    }

    #[test]
    fn a_request_comes_back_from_the_table_as_the_kind_says() {
        let request = RunRequest::from(task());
        assert_eq!(request.kind(), RunKind::QuickRun);
        assert_eq!(request.timeout(), Duration::from_secs(600));
        assert_eq!(request.platform().to_string(), "linux/arm64");
        assert!(request.archived());
        let text = request.to_json().unwrap();
        assert_eq!(RunRequest::from_json(RunKind::QuickRun, &text).unwrap(), request);
        assert!(RunRequest::from_json(RunKind::QuickBuild, &text).is_err());
    }

    #[test]
    fn rows_from_before_there_were_tasks_are_read() {
        let text = r#"{"image_names": ["app:1"], "push": true, "no_cache": false,
            "dockerfile": "Dockerfile", "dockerfile_name": null, "target": null, "arguments": [],
            "timeout": {"secs": 3600, "nanos": 0},
            "platform": {"architecture": "amd64", "os": "linux"},
            "context": "sha256:a157d36a739191c1826419da5c87aedf3dd0cd6828565ada2a38a6b68ed741e5",
            "source_date_epoch": null, "network": null, "archived": false}"#;
        let kind = "QuickBuild".parse().unwrap();
        let request = RunRequest::from_json(kind, text).unwrap();
        assert_eq!(request.build().unwrap().image_names, ["app:1"]);
        assert_eq!(request.timeout(), Duration::from_secs(3600));
        let error = "Slow".parse::<RunKind>().unwrap_err();
        assert!(error.to_string().starts_with("`Slow` is not a kind of run"), "{error}");
    }
}
