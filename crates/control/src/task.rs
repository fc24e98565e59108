//! What a stored task is: a definition that runs are made from.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use oci::{Compression, Digest, Platform, RegistryName};
use serde::{Deserialize, Serialize};
use store::Millis;
use url::form_urlencoded;
use uuid::Uuid;

use crate::run::{BuildArgument, BuildOptions, BuildRequest, ContextSource, RemoteSource, RunKind};
use crate::{
    AccountName, Lane, Logins, NewRun, OutputRetention, PoolName, TaskName, TaskRequest, TaskText,
    TaskTriggers, TaskValue,
};

/// A stored task.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTask {
    pub registry: RegistryName,
    pub name: TaskName,
    pub definition: TaskDefinition,
    pub created_at: Millis,
    pub updated_at: Millis,
    /// Changes whenever the task does.
    pub revision: u64,
    /// What the images of its last successful run were made of: a JSON list (runs.md section 4.1).
    pub dependencies: Option<serde_json::Value>,
}

/// What a task is to do, and for whom (runs.md section 2), checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskDefinition {
    /// One that is not starts no runs.
    pub enabled: bool,
    pub platform: Platform,
    /// Processors that the containers of a run have together.
    pub cpu: Option<u32>,
    pub timeout: Duration,
    /// Absent: the workspace is empty.
    pub context: Option<TaskContext>,
    pub step: TaskStep,
    /// Who answers for it.
    pub owner: Option<String>,
    pub description: Option<String>,
    /// From then on it starts no runs.
    pub expires_at: Option<Millis>,
    /// Texts of whoever manages it.
    pub tags: BTreeMap<String, String>,
    /// Whose agents execute its runs; absent: the server itself does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    #[serde(default, skip_serializing_if = "Logins::is_default")]
    pub logins: Logins,
    /// Name that the log of each run is to have as an artifact, with run variables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_template: Option<String>,
    /// Absent: what its runs push stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_retention: Option<OutputRetention>,
    #[serde(default, skip_serializing_if = "TaskIdentity::is_none")]
    pub identity: TaskIdentity,
    /// Where containers of its runs may connect to, as somebody wrote it; empty: where they are let.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<String>,
    /// What starts its runs without anybody asking.
    #[serde(default, skip_serializing_if = "TaskTriggers::is_empty")]
    pub triggers: TaskTriggers,
    #[serde(default, skip_serializing_if = "PromotionRules::is_none")]
    pub promotion: PromotionRules,
}

/// What an image that runs of a task have made needs before a tag is [promoted](crate::Promotion) to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromotionRules {
    /// Tasks that look at the image; each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<TaskName>,
    /// Whether somebody has to approve it.
    #[serde(default)]
    pub approval: bool,
}

impl PromotionRules {
    pub(crate) fn is_none(&self) -> bool {
        self.checks.is_empty() && !self.approval
    }
}

/// Whom the runs of a task can be for others (identity-and-secrets.md section 3).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskIdentity {
    /// Whether they can be the task itself: the id of that identity, which is another one each time
    /// that the task is given it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<Uuid>,
    /// Service principals of the server; each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accounts: Vec<AssignedAccount>,
}

/// An account that a task can be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedAccount {
    pub name: AccountName,
    /// [`crate::Account::id`]: a later account of the same name is another one.
    pub id: Uuid,
}

impl TaskIdentity {
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Which identity is meant by an id. Without one it is the task itself, or the only account
    /// that it can be.
    pub fn chosen(&self, id: Option<Uuid>) -> Option<ChosenIdentity<'_>> {
        match (id, &*self.accounts) {
            (Some(id), _) if self.system == Some(id) => Some(ChosenIdentity::System(id)),
            (Some(id), accounts) => {
                accounts.iter().find(|account| account.id == id).map(ChosenIdentity::Account)
            }
            (None, [only]) if self.system.is_none() => Some(ChosenIdentity::Account(only)),
            (None, _) => self.system.map(ChosenIdentity::System),
        }
    }
}

/// One identity of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChosenIdentity<'a> {
    /// The task itself, by the id of that identity.
    System(Uuid),
    Account(&'a AssignedAccount),
}

impl ChosenIdentity<'_> {
    pub fn id(&self) -> Uuid {
        match self {
            Self::System(id) => *id,
            Self::Account(account) => account.id,
        }
    }
}

/// A git repository, or an archive somewhere else, that a task works on.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskContext {
    /// Without credentials.
    pub address: String,
    /// What stands in front of the host: a user and password, or a token.
    pub token: Option<String>,
}

impl fmt::Debug for TaskContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = if self.token.is_some() { " (with a token)" } else { "" };
        write!(f, "{}{token}", self.address)
    }
}

impl TaskContext {
    /// Whether both are in one place, so that the token of one may be shown to the other.
    pub fn is_same_place(&self, address: &str) -> bool {
        place(&self.address) == place(address)
    }

    /// The repository or archive, whatever part of it is meant.
    pub fn place(&self) -> &str {
        place(&self.address)
    }

    /// The branch, tag or commit of a repository that is meant; nothing where it is the server's to say.
    pub fn reference(&self) -> Option<String> {
        let (before, fragment) = self.address.split_once('#').unwrap_or((&self.address, ""));
        let named = fragment.split(':').next().filter(|name| !name.is_empty());
        named.map(str::to_owned).or_else(|| {
            let mut query = query_of(before);
            let (key, value) = query.find(|(key, _)| is_reference(key))?;
            // A branch may have the name of a tag.
            Some(if key == "tag" { format!("refs/tags/{value}") } else { value.into_owned() })
        })
    }

    /// The same folder of a repository as of another commit, branch or tag.
    pub fn at(&self, reference: &str) -> Self {
        let (before, fragment) = self.address.split_once('#').unwrap_or((&self.address, ""));
        let folder = fragment.split_once(':').map_or("", |(_, folder)| folder);
        let mut query = form_urlencoded::Serializer::new(String::new());
        let rest = query_of(before).filter(|(key, _)| !is_reference(key) && !is_commit(key));
        query.extend_pairs(rest);
        let mut address = place(before).to_owned();
        match &*query.finish() {
            "" => (),
            query => address.push_str(&format!("?{query}")),
        }
        address.push_str(&format!("#{reference}"));
        if !folder.is_empty() {
            address.push_str(&format!(":{folder}"));
        }
        Self { address, token: self.token.clone() }
    }

    /// As a run has it.
    pub fn source(&self) -> ContextSource {
        self.source_on(None)
    }

    /// As a run has it. `branch`: of which the commit is that the address names.
    pub fn source_on(&self, branch: Option<String>) -> ContextSource {
        let Some(token) = &self.token else {
            let (address, shown) = (self.address.clone(), self.address.clone());
            let secrets = Vec::new();
            return ContextSource::Remote(RemoteSource { address, shown, secrets, branch });
        };
        let with = |credentials: &str| match self.address.split_once("://") {
            Some((scheme, rest)) => format!("{scheme}://{credentials}@{rest}"),
            // `github.com/OWNER/NAME`, which is a repository only in that form or by its ending.
            None => {
                let (path, rest) = self.address.split_at(place(&self.address).len());
                let ending = if path.ends_with(".git") { "" } else { ".git" };
                format!("https://{credentials}@{path}{ending}{rest}")
            }
        };
        let decoded = percent_encoding::percent_decode_str(token).decode_utf8_lossy();
        let mut secrets = vec![token.clone(), decoded.clone().into_owned()];
        // Each part alone too: a token may stand in the place of either.
        if let Some((user, password)) = decoded.split_once(':') {
            secrets.push(password.to_owned());
            secrets.extend((user.len() >= TOKEN_LEN_MIN).then(|| user.to_owned()));
        }
        secrets.retain(|secret| !secret.is_empty());
        secrets.dedup();
        let (address, shown) = (with(token), with("***"));
        ContextSource::Remote(RemoteSource { address, shown, secrets, branch })
    }
}

/// The pairs of an address without a fragment.
fn query_of(address: &str) -> form_urlencoded::Parse<'_> {
    let query = address.split_once('?').map_or("", |(_, query)| query);
    form_urlencoded::parse(query.as_bytes())
}

/// Whether a member of a query says which branch, tag or commit is meant.
fn is_reference(key: &str) -> bool {
    matches!(key, "ref" | "branch" | "tag")
}

/// Whether a member of a query says what the commit must be.
fn is_commit(key: &str) -> bool {
    matches!(key, "commit" | "checksum")
}

/// A shorter user name is no token.
const TOKEN_LEN_MIN: usize = 20;

/// The repository or archive of an address, whatever part of it is meant.
fn place(address: &str) -> &str {
    let end = address.find(['#', '?']).unwrap_or(address.len());
    &address[..end]
}

/// The one step of a task (runs.md section 2.1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum TaskStep {
    /// Builds a Dockerfile.
    Docker {
        /// They may have run variables.
        image_names: Vec<String>,
        push: bool,
        no_cache: bool,
        dockerfile: String,
        target: Option<String>,
        /// Each name once.
        arguments: Vec<BuildArgument>,
    },
    /// Runs a task file of the context or of the definition.
    File {
        file: TaskText,
        values_file: Option<TaskText>,
        /// Each name once.
        values: Vec<TaskValue>,
    },
    /// Nothing of its own: it says how quick runs are carried out that do not say it themselves.
    System,
}

/// What one run of a task does otherwise (runs.md section 1.4), checked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TaskOverrides {
    pub context: Option<ContextSource>,
    /// Of the Dockerfile, or of the task file in the context.
    pub file: Option<String>,
    pub target: Option<String>,
    pub arguments: Vec<BuildArgument>,
    pub values: Vec<TaskValue>,
    pub update_trigger_token: Option<String>,
    pub pool: Option<PoolName>,
    pub log_template: Option<String>,
    pub archived: bool,
}

impl TaskDefinition {
    /// Of a task that does this step when somebody asks, and no more.
    pub fn new(platform: Platform, timeout: Duration, step: TaskStep) -> Self {
        Self {
            enabled: true,
            platform,
            cpu: None,
            timeout,
            context: None,
            step,
            owner: None,
            description: None,
            expires_at: None,
            tags: BTreeMap::new(),
            pool: None,
            logins: Logins::default(),
            log_template: None,
            output_retention: None,
            identity: TaskIdentity::default(),
            egress: Vec::new(),
            triggers: TaskTriggers::default(),
            promotion: PromotionRules::default(),
        }
    }

    /// Tells this definition from others, whatever its secrets are, whatever starts its runs, and whatever
    /// becomes of the images.
    pub fn digest(&self) -> Digest {
        let definition = Self {
            triggers: TaskTriggers::default(),
            promotion: PromotionRules::default(),
            ..self.clone()
        };
        let text = serde_json::to_vec(&definition.without_secrets());
        Digest::of(&text.unwrap_or_default())
    }

    /// Why it starts no runs at a time, if it does not.
    pub fn asleep(&self, now: Millis) -> Option<&'static str> {
        match self.expires_at {
            _ if !self.enabled => Some("is disabled"),
            Some(expires_at) if expires_at <= now => Some("has expired"),
            _ => None,
        }
    }

    /// Forgets the values that must not be seen.
    pub(crate) fn without_secrets(mut self) -> Self {
        if let Some(context) = &mut self.context {
            context.token = None;
        }
        self.logins.hide();
        self.triggers.hide();
        match &mut self.step {
            TaskStep::Docker { arguments, .. } => {
                arguments.iter_mut().for_each(BuildArgument::hide)
            }
            TaskStep::File { values, .. } => values.iter_mut().for_each(TaskValue::hide),
            TaskStep::System => (),
        }
        self
    }

    /// A run of the task, with what its log is to warn of.
    pub fn run(
        &self,
        name: &TaskName,
        overrides: TaskOverrides,
        compression: Compression,
    ) -> Result<NewRun, NoRun> {
        let warnings = self.ignored(&overrides);
        let context = overrides.context.or_else(|| self.context.as_ref().map(TaskContext::source));
        let request = match &self.step {
            TaskStep::Docker { image_names, push, no_cache, dockerfile, target, arguments } => {
                BuildRequest {
                    image_names: image_names.clone(),
                    push: *push,
                    no_cache: *no_cache,
                    dockerfile: overrides.file.unwrap_or_else(|| dockerfile.clone()),
                    dockerfile_name: None,
                    target: overrides.target.or_else(|| target.clone()),
                    arguments: merged(arguments, overrides.arguments, |argument| &argument.name),
                    timeout: self.timeout,
                    platform: self.platform.clone(),
                    context: context.ok_or(NoRun::NoContext)?,
                    source_date_epoch: None,
                    network: None,
                    archived: overrides.archived,
                    options: BuildOptions { compression, ..BuildOptions::default() },
                    logins: self.logins.clone(),
                    egress: self.egress.clone(),
                }
                .into()
            }
            TaskStep::File { file, values_file, values } => TaskRequest {
                file: match (file, overrides.file) {
                    (TaskText::InContext(_), Some(other)) => TaskText::InContext(other),
                    (file, _) => file.clone(),
                },
                values_file: values_file.clone(),
                values: merged(values, overrides.values, |value| &value.name),
                context,
                timeout: self.timeout,
                platform: self.platform.clone(),
                archived: overrides.archived,
                logins: self.logins.clone(),
                egress: self.egress.clone(),
            }
            .into(),
            TaskStep::System => return Err(NoRun::System),
        };
        Ok(NewRun {
            kind: match &self.step {
                TaskStep::Docker { .. } => RunKind::AutoBuild,
                TaskStep::File { .. } | TaskStep::System => RunKind::AutoRun,
            },
            request,
            task: Some(name.clone()),
            definition: Some(self.digest()),
            update_trigger_token: overrides.update_trigger_token,
            pool: overrides.pool.or_else(|| self.pool.clone()),
            lane: Lane::People,
            started_by: None,
            cause: None,
            cpu: self.cpu,
            log_template: overrides.log_template.or_else(|| self.log_template.clone()),
            warnings,
        })
    }

    /// What of the overrides means nothing to this step.
    fn ignored(&self, overrides: &TaskOverrides) -> Vec<String> {
        let is_docker = matches!(self.step, TaskStep::Docker { .. });
        let is_inline = matches!(self.step, TaskStep::File { file: TaskText::Inline(_), .. });
        let given = [
            ("file", is_inline && overrides.file.is_some()),
            ("target", !is_docker && overrides.target.is_some()),
            ("arguments", !is_docker && !overrides.arguments.is_empty()),
            ("values", is_docker && !overrides.values.is_empty()),
        ];
        let ignored = given.into_iter().filter(|(_, ignored)| *ignored);
        ignored
            .map(|(what, _)| format!("`{what}` of this run is ignored: the task has no use for it"))
            .collect()
    }
}

/// Why a task has no run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoRun {
    /// It builds an image, and has no context for it.
    #[error("the task has no context")]
    NoContext,
    #[error("a system task has no runs: it says how quick runs are carried out")]
    System,
}

/// What has the same name replaces, what has a new one comes after.
fn merged<T: Clone>(stored: &[T], given: Vec<T>, name: impl Fn(&T) -> &String) -> Vec<T> {
    let mut all = stored.to_vec();
    for one in given {
        match all.iter_mut().find(|known| name(known) == name(&one)) {
            Some(known) => *known = one,
            None => all.push(one),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(name: &str, value: &str, secret: bool) -> TaskValue {
        TaskValue { name: name.into(), value: value.into(), secret }
    }

    fn definition(step: TaskStep) -> TaskDefinition {
        let platform = Platform::new("linux", "amd64", None);
        let context = TaskContext {
            address: "https://example.com/app.git#main:src".into(),
            token: Some("hunter2".into()),
        };
        TaskDefinition {
            context: Some(context),
            ..TaskDefinition::new(platform, Duration::from_secs(600), step)
        }
    }

    fn docker() -> TaskStep {
        let argument = |name: &str, value: &str, secret| BuildArgument {
            name: name.into(),
            value: value.into(),
            secret,
        };
        TaskStep::Docker {
            image_names: vec!["app:{{.Run.ID}}".into()],
            push: true,
            no_cache: false,
            dockerfile: "Dockerfile".into(),
            target: None,
            arguments: vec![argument("A", "1", false), argument("B", "hunter3", true)],
        }
    }

    fn file(file: TaskText) -> TaskStep {
        TaskStep::File { file, values_file: None, values: vec![value("a", "hunter4", true)] }
    }

    fn name() -> TaskName {
        "nightly".parse().unwrap()
    }

    #[test]
    fn l9_names_have_5_to_50_letters_digits_and_two_signs() {
        for good in ["abcde", "A-_09", &"x".repeat(50)] {
            assert_eq!(good.parse::<TaskName>().unwrap().as_str(), good);
        }
        for bad in ["abcd", "", &"x".repeat(51), "with space", "pünkt", "a/bcd", "a.bcd"] {
            assert!(bad.parse::<TaskName>().is_err(), "{bad}");
        }
        let error = "abcd".parse::<TaskName>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "`abcd` cannot name a task: a name has 5 to 50 letters, digits, `_` and `-`"
        );
        assert_eq!("NIGHTLY".parse::<TaskName>().unwrap(), name());
    }

    #[test]
    fn overrides_replace_by_name_and_add_what_is_new() {
        let given = |name: &str, value: &str| BuildArgument {
            name: name.into(),
            value: value.into(),
            secret: false,
        };
        let overrides = TaskOverrides {
            arguments: vec![given("C", "3"), given("A", "2")],
            target: Some("test".into()),
            file: Some("Other".into()),
            ..TaskOverrides::default()
        };
        let task = definition(docker());
        let run = task.run(&name(), overrides, Compression::default()).unwrap();
        assert_eq!((run.kind, run.warnings.len()), (RunKind::AutoBuild, 0));
        let build = run.request.build().unwrap();
        assert_eq!(format!("{:?}", build.arguments), "[A=2, B=(hidden), C=3]");
        assert_eq!((build.target.as_deref(), &*build.dockerfile), (Some("test"), "Other"));
        // They last for one run only.
        let run = task.run(&name(), TaskOverrides::default(), Compression::default()).unwrap();
        assert_eq!(run.request.build().unwrap().arguments.len(), 2);
    }

    #[test]
    fn what_means_nothing_to_a_task_is_told() {
        let overrides = TaskOverrides {
            file: Some("other.yaml".into()),
            target: Some("test".into()),
            values: vec![value("b", "2", false), value("a", "1", false)],
            ..TaskOverrides::default()
        };
        let task = definition(file(TaskText::Inline("steps: []".into())));
        let run = task.run(&name(), overrides.clone(), Compression::default()).unwrap();
        assert_eq!(
            run.warnings,
            [
                "`file` of this run is ignored: the task has no use for it",
                "`target` of this run is ignored: the task has no use for it",
            ]
        );
        let request = run.request.task().unwrap();
        assert_eq!(request.file, TaskText::Inline("steps: []".into()));
        assert_eq!(format!("{:?}", request.values), "[a=1, b=2]");
        let task = definition(file(TaskText::InContext("acb.yaml".into())));
        let run = task.run(&name(), overrides.clone(), Compression::default()).unwrap();
        assert_eq!(run.warnings.len(), 1);
        assert_eq!(run.request.task().unwrap().file, TaskText::InContext("other.yaml".into()));
        let run = definition(docker()).run(&name(), overrides, Compression::default()).unwrap();
        assert_eq!(run.warnings, ["`values` of this run is ignored: the task has no use for it"]);
    }

    #[test]
    fn a_token_is_for_the_place_that_it_was_given_for() {
        let context = definition(docker()).context.unwrap();
        let ContextSource::Remote(remote) = context.source() else { panic!("it is remote") };
        assert_eq!(remote.address, "https://hunter2@example.com/app.git#main:src");
        assert_eq!(remote.shown, "https://***@example.com/app.git#main:src");
        assert_eq!(remote.secrets, ["hunter2"]);
        assert!(context.is_same_place("https://example.com/app.git#other"));
        assert!(!context.is_same_place("https://example.com/app.git.evil"));
        assert!(!context.is_same_place("https://example.org/app.git"));
        let github = TaskContext { address: "github.com/o/n#main:a".into(), ..context.clone() };
        let ContextSource::Remote(remote) = github.source() else { panic!("it is remote") };
        assert_eq!(remote.address, "https://hunter2@github.com/o/n.git#main:a");
        let context = TaskContext { token: Some("me:p%40ss".into()), ..context };
        let ContextSource::Remote(remote) = context.source() else { panic!("it is remote") };
        assert_eq!(remote.secrets, ["me:p%40ss", "me:p@ss", "p@ss"]);
    }

    #[test]
    fn secrets_neither_show_nor_count() {
        for step in [docker(), file(TaskText::InContext("acb.yaml".into()))] {
            let task = definition(step);
            assert!(!format!("{task:?}").contains("hunter"), "{task:?}");
            let forgotten = task.clone().without_secrets();
            assert!(!serde_json::to_string(&forgotten).unwrap().contains("hunter"));
            assert_eq!(task.digest(), forgotten.digest());
            let other = TaskDefinition { timeout: Duration::from_secs(601), ..task.clone() };
            assert_ne!(task.digest(), other.digest());
        }
    }

    #[test]
    fn a_task_sleeps_when_it_is_disabled_or_over() {
        let task = definition(docker());
        assert_eq!(task.asleep(0), None);
        let over = TaskDefinition { expires_at: Some(10), ..task.clone() };
        assert_eq!((over.asleep(9), over.asleep(10)), (None, Some("has expired")));
        let disabled = TaskDefinition { enabled: false, ..task };
        assert_eq!(disabled.asleep(0), Some("is disabled"));
    }

    #[test]
    fn an_identity_is_meant_by_its_id_or_by_being_the_usual_one() {
        let account = |name: &str, id| AssignedAccount {
            name: name.parse().unwrap(),
            id: Uuid::from_u128(id),
        };
        let chosen = |identity: &TaskIdentity, id: Option<u128>| {
            identity.chosen(id.map(Uuid::from_u128)).map(|chosen| chosen.id().as_u128())
        };
        let none = TaskIdentity::default();
        assert_eq!(
            (none.is_none(), chosen(&none, None), chosen(&none, Some(1))),
            (true, None, None)
        );
        let one = TaskIdentity { system: None, accounts: vec![account("one", 1)] };
        assert_eq!((chosen(&one, None), chosen(&one, Some(1))), (Some(1), Some(1)));
        let two = TaskIdentity { accounts: vec![account("one", 1), account("two", 2)], ..one };
        assert_eq!((chosen(&two, None), chosen(&two, Some(2))), (None, Some(2)));
        let all = TaskIdentity { system: Some(Uuid::from_u128(3)), ..two };
        assert_eq!(
            (chosen(&all, None), chosen(&all, Some(3)), chosen(&all, Some(4))),
            (Some(3), Some(3), None)
        );
    }

    #[test]
    fn an_image_cannot_be_built_without_a_context() {
        let task = TaskDefinition { context: None, ..definition(docker()) };
        assert_eq!(
            task.run(&name(), TaskOverrides::default(), Compression::default()),
            Err(NoRun::NoContext)
        );
    }
}
