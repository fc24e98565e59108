//! What a run is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use oci::{Compression, Digest, Platform, RegistryName};
use serde::{Deserialize, Serialize};
use store::Millis;

use crate::{Logins, PoolName, RunCause, RunRequest, TaskName};

/// `c` and a number in base 36, at least two digits: unique in a registry for ever, and
/// later ones are never shorter (runs.md section 4). Usable as a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId {
    number: u64,
    text: RunIdText,
}

/// `c` and up to 13 digits, kept inline so that ids are cheap to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct RunIdText {
    bytes: [u8; 14],
    len: u8,
}

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

impl RunId {
    pub(crate) fn from_number(number: u64) -> Self {
        let mut reversed = Vec::with_capacity(14);
        let mut rest = number;
        while rest > 0 || reversed.len() < 2 {
            reversed.push(DIGITS[(rest % 36) as usize]);
            rest /= 36;
        }
        reversed.push(b'c');
        let mut text = RunIdText { bytes: [0; 14], len: reversed.len() as u8 };
        for (to, from) in text.bytes.iter_mut().zip(reversed.iter().rev()) {
            *to = *from;
        }
        Self { number, text }
    }

    pub(crate) fn number(self) -> i64 {
        self.number as i64
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text.bytes[..usize::from(self.text.len)])
            .expect("it was made of ASCII digits")
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<RunId> for String {
    fn from(id: RunId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for RunId {
    type Error = BadRunId;

    fn try_from(text: String) -> Result<Self, BadRunId> {
        text.parse()
    }
}

/// The user that an attempt is for its registry.
pub fn run_user(registry: &RegistryName, run: RunId, epoch: i64) -> String {
    format!("run/{registry}/{run}/{epoch}")
}

/// The attempt that a user is, if it is one.
pub fn attempt_of_user(user: &str) -> Option<(RegistryName, RunId, i64)> {
    let mut parts = user.strip_prefix("run/")?.split('/');
    let (registry, run, epoch) = (parts.next()?, parts.next()?, parts.next()?);
    let attempt = (registry.parse().ok()?, run.parse().ok()?, epoch.parse().ok()?);
    parts.next().is_none().then_some(attempt)
}

/// A text that no run has as its id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not the id of a run")]
pub struct BadRunId;

impl FromStr for RunId {
    type Err = BadRunId;

    fn from_str(text: &str) -> Result<Self, BadRunId> {
        let digits = text.strip_prefix('c').ok_or(BadRunId)?;
        let number = u64::from_str_radix(digits, 36).map_err(|_| BadRunId)?;
        let id = Self::from_number(number);
        // One text per run: no `c001`, no `cAB`, nothing beyond the database's numbers.
        let canonical = id.as_str() == text && i64::try_from(number).is_ok();
        if canonical { Ok(id) } else { Err(BadRunId) }
    }
}

/// Runs.md section 3. Forward only; the last five are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunStatus {
    Queued,
    /// Claimed by a worker, which prepares it.
    Started,
    Running,
    Succeeded,
    /// The user's task failed.
    Failed,
    Canceled,
    /// Our fault, not the user's task.
    Error,
    Timeout,
}

impl RunStatus {
    const ALL: [Self; 8] = [
        Self::Queued,
        Self::Started,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Canceled,
        Self::Error,
        Self::Timeout,
    ];

    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Started | Self::Running)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "Queued",
            Self::Started => "Started",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Canceled => "Canceled",
            Self::Error => "Error",
            Self::Timeout => "Timeout",
        }
    }
}

impl fmt::Display for RunStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a run status: Queued, Started, Running, Succeeded, Failed, Canceled, Error or Timeout"
)]
pub struct UnknownStatus(String);

impl FromStr for RunStatus {
    type Err = UnknownStatus;

    /// Enumerations compare without case.
    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        let found = Self::ALL.into_iter().find(|status| status.as_str().eq_ignore_ascii_case(text));
        found.ok_or_else(|| UnknownStatus(text.chars().take(40).collect()))
    }
}

/// Runs.md section 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunKind {
    /// One Dockerfile.
    QuickBuild,
    /// A task file that is not stored.
    QuickRun,
    /// A stored task that builds a Dockerfile, whoever or whatever started it.
    AutoBuild,
    /// A stored task with a task file.
    AutoRun,
}

impl RunKind {
    const ALL: [Self; 4] = [Self::QuickBuild, Self::QuickRun, Self::AutoBuild, Self::AutoRun];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::QuickBuild => "QuickBuild",
            Self::QuickRun => "QuickRun",
            Self::AutoBuild => "AutoBuild",
            Self::AutoRun => "AutoRun",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a kind of run: QuickBuild, QuickRun, AutoBuild or AutoRun")]
pub struct UnknownKind(String);

impl FromStr for RunKind {
    type Err = UnknownKind;

    /// Enumerations compare without case.
    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str().eq_ignore_ascii_case(text));
        found.ok_or_else(|| UnknownKind(text.chars().take(40).collect()))
    }
}

/// One Dockerfile build, checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildRequest {
    /// References as the user wrote them.
    pub image_names: Vec<String>,
    pub push: bool,
    pub no_cache: bool,
    /// Path of the Dockerfile inside the context.
    pub dockerfile: String,
    /// Its name as the user gave it, for messages.
    pub dockerfile_name: Option<String>,
    pub target: Option<String>,
    pub arguments: Vec<BuildArgument>,
    pub timeout: Duration,
    pub platform: Platform,
    pub context: ContextSource,
    pub source_date_epoch: Option<i64>,
    pub network: Option<String>,
    pub archived: bool,
    #[serde(default)]
    pub options: BuildOptions,
    #[serde(default, skip_serializing_if = "Logins::is_default")]
    pub logins: Logins,
    /// Where its containers may connect to, as somebody wrote it; empty: where they are let.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<String>,
}

/// What a build was told besides.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BuildOptions {
    pub secrets: Vec<BuildSecret>,
    /// Ids of the ssh agents that the client has.
    #[serde(default)]
    pub ssh: BTreeSet<String>,
    /// Names with their addresses.
    pub extra_hosts: Vec<(String, IpAddr)>,
    /// Name, soft and hard limit.
    pub ulimits: Vec<(String, u64, u64)>,
    /// In bytes.
    pub shm_size: Option<u64>,
    pub labels: BTreeMap<String, String>,
    /// With the types that say where they go ([`oci::Annotations`]).
    pub annotations: BTreeMap<String, String>,
    pub no_cache_stages: BTreeSet<String>,
    #[serde(default)]
    pub explain_cache: bool,
    /// References of images that hold build caches.
    #[serde(default)]
    pub cache_from: Vec<String>,
    #[serde(default)]
    pub cache_to: Vec<CacheExport>,
    /// How new layers are compressed.
    #[serde(default)]
    pub compression: Compression,
    /// Layers of base images too.
    #[serde(default)]
    pub force_compression: bool,
    /// By the names that they take from stages and images.
    #[serde(default)]
    pub contexts: BTreeMap<String, NamedContext>,
    /// Instead of the request's one, if there are several.
    #[serde(default)]
    pub platforms: Vec<Platform>,
}

/// Where a build cache is put.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheExport {
    /// As the user wrote it.
    pub image_name: String,
    /// Also the steps whose layers are not in the image.
    pub all_steps: bool,
}

/// What a name stands for in a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamedContext {
    Files {
        source: ContextSource,
    },
    /// The reference as the user wrote it.
    Image {
        reference: String,
    },
    /// An image whose blobs are in an upload.
    Layout {
        source: Digest,
        manifest: Digest,
    },
}

impl NamedContext {
    fn blobs(&self) -> Vec<&Digest> {
        match self {
            Self::Files { source } => source.blobs(),
            Self::Layout { source, .. } => vec![source],
            Self::Image { .. } => Vec::new(),
        }
    }

    fn remote(&self) -> Option<&RemoteSource> {
        match self {
            Self::Files { source } => source.remote(),
            Self::Layout { .. } | Self::Image { .. } => None,
        }
    }
}

/// Where the files of a context are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ContextSource {
    /// The blob of an uploaded tar archive.
    Upload(Digest),
    /// The blob of an uploaded list, and packs that hold its files.
    Listed {
        list: Digest,
        packs: Vec<Digest>,
    },
    Remote(RemoteSource),
}

impl ContextSource {
    /// The blobs of an upload.
    pub(crate) fn blobs(&self) -> Vec<&Digest> {
        match self {
            Self::Upload(archive) => vec![archive],
            Self::Listed { list, packs } => std::iter::once(list).chain(packs).collect(),
            Self::Remote(_) => Vec::new(),
        }
    }

    pub(crate) fn remote(&self) -> Option<&RemoteSource> {
        match self {
            Self::Upload(_) | Self::Listed { .. } => None,
            Self::Remote(remote) => Some(remote),
        }
    }

    pub(crate) fn remote_mut(&mut self) -> Option<&mut RemoteSource> {
        match self {
            Self::Upload(_) | Self::Listed { .. } => None,
            Self::Remote(remote) => Some(remote),
        }
    }
}

/// A git repository, or an archive somewhere else.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteSource {
    /// All of the address; empty when the run has ended and it has secrets.
    pub address: String,
    /// Without what is secret in it.
    pub shown: String,
    /// The parts that must not be seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// Of a repository the branch that the commit is of which the address names, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
}

impl RemoteSource {
    pub(crate) fn secret_parts(&self) -> impl Iterator<Item = &str> {
        self.secrets.iter().map(String::as_str)
    }

    /// Forgets the address too if anything in it is secret.
    pub(crate) fn forget_secrets(&mut self) {
        if !self.secrets.is_empty() {
            self.address.clear();
            self.secrets.clear();
        }
    }
}

impl fmt::Debug for RemoteSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// A value for `RUN --mount=type=secret`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildSecret {
    pub id: String,
    #[serde(with = "base64_bytes")]
    pub value: Vec<u8>,
}

/// Bytes as one text.
mod base64_bytes {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    /// As rows of earlier versions have them, too.
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Text(String),
        Numbers(Vec<u8>),
    }

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        match Form::deserialize(from)? {
            Form::Text(text) => BASE64_STANDARD.decode(text).map_err(D::Error::custom),
            Form::Numbers(bytes) => Ok(bytes),
        }
    }
}

impl fmt::Debug for BuildSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=(hidden)", self.id)
    }
}

impl BuildRequest {
    /// The blobs of uploads that the build reads.
    pub(crate) fn blobs(&self) -> Vec<Digest> {
        let named = self.options.contexts.values().flat_map(NamedContext::blobs);
        self.context.blobs().into_iter().chain(named).cloned().collect()
    }

    pub(crate) fn remotes(&self) -> impl Iterator<Item = &RemoteSource> {
        let named = self.options.contexts.values().filter_map(NamedContext::remote);
        self.context.remote().into_iter().chain(named)
    }

    /// The values that must not be seen.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        let arguments = self.arguments.iter().filter(|argument| argument.secret);
        let secrets = self.options.secrets.iter();
        // What is not text cannot be in a log.
        let secrets = secrets.filter_map(|secret| std::str::from_utf8(&secret.value).ok());
        let remotes = self.remotes().flat_map(RemoteSource::secret_parts);
        let logins = self.logins.secrets();
        arguments.map(|argument| &*argument.value).chain(secrets).chain(remotes).chain(logins)
    }

    /// Forgets them.
    pub(crate) fn without_secrets(mut self) -> Self {
        self.arguments.iter_mut().for_each(BuildArgument::hide);
        for secret in &mut self.options.secrets {
            secret.value.clear();
        }
        let named = self.options.contexts.values_mut().filter_map(|named| match named {
            NamedContext::Files { source } => source.remote_mut(),
            NamedContext::Layout { .. } | NamedContext::Image { .. } => None,
        });
        for remote in self.context.remote_mut().into_iter().chain(named) {
            remote.forget_secrets();
        }
        self.logins.hide();
        self
    }
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildArgument {
    pub name: String,
    pub value: String,
    pub secret: bool,
}

impl BuildArgument {
    /// Forgets a value that must not be seen.
    pub(crate) fn hide(&mut self) {
        if self.secret {
            self.value.clear();
        }
    }
}

impl fmt::Debug for BuildArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = if self.secret { "(hidden)" } else { &self.value };
        write!(f, "{}={value}", self.name)
    }
}

/// An image that a run pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputImage {
    /// Login server.
    pub registry: String,
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Digest,
    /// In another registry than the run's own, whatever that is called now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub elsewhere: bool,
}

/// What became of a log that was to be an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LogArtifact {
    Stored(OutputImage),
    /// Why it is none.
    Refused(String),
}

/// A commit of a git repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    pub id: String,
    pub branch: Option<String>,
}

/// One execution: what was asked for, where it stands, what came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub registry: RegistryName,
    pub id: RunId,
    pub kind: RunKind,
    pub status: RunStatus,
    pub request: RunRequest,
    /// The stored task that it is a run of.
    pub task: Option<TaskName>,
    /// Of the task's definition, as it was then.
    pub definition: Option<Digest>,
    /// What the task's owner wants to hear again of the run.
    pub update_trigger_token: Option<String>,
    /// Whose agents execute it; absent: the server does.
    pub pool: Option<PoolName>,
    /// The agent that has it, or had it last.
    pub agent: Option<String>,
    /// Who asked for it, if anybody did and it is known.
    pub started_by: Option<String>,
    /// What started it, if nobody asked for it.
    pub cause: Option<RunCause>,
    /// Processors that its containers have together.
    pub cpu: Option<u32>,
    /// Name that its log is to have as an artifact of its registry, with run variables.
    pub log_template: Option<String>,
    /// What became of that, once it has ended.
    pub log_artifact: Option<LogArtifact>,
    /// Whether run and log are kept for ever.
    pub archived: bool,
    pub created_at: Millis,
    pub updated_at: Millis,
    pub started_at: Option<Millis>,
    pub finished_at: Option<Millis>,
    /// How often it was begun.
    pub attempts: u32,
    /// Of a run that is `Running`: another attempt may begin it again.
    pub repeatable: bool,
    /// Why it did not succeed.
    pub error: Option<String>,
    pub images: Vec<OutputImage>,
    /// The manifest that was built, also when it has no tag.
    pub digest: Option<Digest>,
    /// The commit that was built, if the context was a git repository.
    pub commit: Option<Commit>,
    /// What the images were made of: a JSON list (runs.md section 4.1).
    pub dependencies: Option<serde_json::Value>,
    /// The digest of the text of its log, up to where that says how the run ended.
    pub log_digest: Option<Digest>,
    /// What the run cost (architecture.md decision 13), a JSON object.
    pub cost: Option<serde_json::Value>,
}

impl Run {
    /// Whether another attempt may follow one that was lost (runs.md section 7). The commands of a
    /// task may have changed something that a second one finds changed; a build only publishes.
    pub(crate) fn may_begin_again(&self) -> bool {
        self.repeatable || self.status != RunStatus::Running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_ids_never_get_shorter() {
        for (number, text) in [(1, "c01"), (35, "c0z"), (36, "c10"), (1295, "czz"), (1296, "c100")]
        {
            assert_eq!(RunId::from_number(number).as_str(), text);
            assert_eq!(text.parse::<RunId>().unwrap().number(), number as i64);
        }
        for bad in [
            "",
            "c",
            "c1",
            "c001",
            "cAB",
            "d01",
            "c-1",
            "c+1",
            "c 1",
            "czzzzzzzzzzzzz",
            "czzzzzzzzzzzzzzzz",
        ] {
            assert!(bad.parse::<RunId>().is_err(), "{bad}");
        }
        assert_eq!(RunId::from_number(u64::MAX).as_str().len(), 14);
    }

    #[test]
    fn statuses_compare_without_case() {
        assert_eq!("succeeded".parse::<RunStatus>().unwrap(), RunStatus::Succeeded);
        assert!("done".parse::<RunStatus>().is_err());
    }

    #[test]
    fn where_a_context_comes_from_is_kept_without_its_secrets() {
        let upload = ContextSource::Upload(Digest::of(b"x"));
        let text = serde_json::to_string(&upload).unwrap();
        assert_eq!(text, format!("\"{}\"", Digest::of(b"x")));
        assert_eq!(serde_json::from_str::<ContextSource>(&text).unwrap(), upload);
        let packs = vec![Digest::of(b"p")];
        let listed = ContextSource::Listed { list: Digest::of(b"l"), packs };
        let text = serde_json::to_string(&listed).unwrap();
        assert_eq!(serde_json::from_str::<ContextSource>(&text).unwrap(), listed);
        let remote = ContextSource::Remote(RemoteSource {
            address: "https://token@h/r.git".into(),
            shown: "https://***@h/r.git".into(),
            secrets: vec!["token".into()],
            branch: None,
        });
        let text = serde_json::to_string(&remote).unwrap();
        assert_eq!(serde_json::from_str::<ContextSource>(&text).unwrap(), remote);
        assert_eq!(format!("{remote:?}"), "Remote(https://***@h/r.git)");
    }

    #[test]
    fn secret_arguments_are_not_printed() {
        let argument = BuildArgument { name: "T".into(), value: "hunter2".into(), secret: true };
        assert_eq!(format!("{argument:?}"), "T=(hidden)");
    }
}
