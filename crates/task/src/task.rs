//! A task in which every field holds, and how a file becomes one.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use oci::{Reference, Tag};
use uuid::Uuid;

use crate::build_arguments::BuildArguments;
use crate::environment::{self, Environment};
use crate::graph::{self, Graph, GraphBuilder};
use crate::path;
use crate::schema::{self, Int, Text};
use crate::secret::SecretText;
use crate::secret_address::{SecretAddress, SecretAddressError};
use crate::span::{Span, TaskError};

/// The versions of task files; the last one has aliases.
pub(crate) const VERSIONS: [&str; 3] = ["1.0-preview-1", "v1.0.0", "v1.1.0"];
/// What a file without `version` has.
const DEFAULT_VERSION: &str = VERSIONS[1];

const STEP_TIMEOUT_DEFAULT: Duration = Duration::from_secs(600);
const RETRY_DELAY_DEFAULT: Duration = Duration::from_secs(5);
/// Steps of one task.
const STEPS_MAX: usize = 500;
/// Secrets of one task; and its networks, and its volumes.
const SECRETS_MAX: usize = 100;
const NETWORKS_MAX: usize = 100;
const VOLUMES_MAX: usize = 100;
/// The folder in containers that all steps share.
const WORKSPACE: &str = "/workspace";
/// The network of steps whose task lists none.
const DEFAULT_NETWORK: &str = "acb_default_network";

/// A task file that is valid.
#[derive(Debug, Clone)]
pub struct Task {
    pub version: String,
    /// Ours: whether it may begin again when what executed it was lost, though its commands may
    /// have done something already (runs.md section 7).
    pub retryable: bool,
    pub secrets: Vec<Secret>,
    pub networks: Vec<Network>,
    pub volumes: Vec<Volume>,
    pub steps: Vec<Step>,
    pub graph: Graph,
}

/// What a run brings along, and the task and its steps may override.
#[derive(Debug, Clone, Default)]
pub struct RunDefaults {
    /// `NAME=VALUE`, split at commas.
    pub env: Vec<String>,
    /// A network that exists; it becomes the default one.
    pub network: Option<String>,
    pub working_directory: Option<String>,
}

/// A secret to fetch from a vault before the task file can be rendered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    pub id: String,
    pub address: SecretAddress,
    /// The identity to use; none is the default one.
    pub client_id: Option<Uuid>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub name: String,
    pub driver: Option<String>,
    pub ipv6: bool,
    /// Whether it exists already, and is neither created nor deleted.
    pub skip_creation: bool,
    pub is_default: bool,
}

/// Files with secret content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    /// By file name, in Base64.
    files: BTreeMap<String, SecretText>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub volume: String,
    pub path: String,
}

#[derive(Debug, Clone)]
pub struct Step {
    /// Unique in the task, and without white space; else any text, so not a safe path.
    pub id: String,
    pub action: Action,
    pub timeout: Duration,
    pub start_delay: Duration,
    pub ignore_errors: bool,
}

#[derive(Debug, Clone)]
pub enum Action {
    Build(Build),
    Cmd(Cmd),
    Push(Push),
}

#[derive(Debug, Clone)]
pub struct Build {
    pub arguments: BuildArguments,
    /// Whether to keep a build cache in the registry.
    pub cache: bool,
    pub attempts: Attempts,
    pub container: Container,
}

#[derive(Debug, Clone)]
pub struct Cmd {
    /// An image, and what the agent's shell is to make of the rest.
    pub command: String,
    pub entry_point: Option<String>,
    /// How to pull the image first, if at all.
    pub pull: Option<Pull>,
    pub attempts: Attempts,
    pub container: Container,
}

#[derive(Debug, Clone)]
pub struct Push {
    /// With tag or digest, each once.
    pub images: Vec<Reference>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pull {
    pub retries: u32,
    pub retry_delay: Duration,
}

/// How often a step is tried, and how often it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempts {
    pub retries: u32,
    pub retry_delay: Duration,
    /// If any: retry only after output that contains one of them.
    pub retry_on_errors: Vec<String>,
    /// Repetitions after the first one.
    pub repeat: u32,
}

/// The container that a command, or the tool of a build, runs in.
#[derive(Debug, Clone)]
pub struct Container {
    pub env: Environment,
    /// Absolute; none is the image's own.
    pub working_directory: Option<String>,
    /// The name of a network; none is the container engine's default.
    pub network: Option<String>,
    pub mounts: Vec<Mount>,
    pub ports: Vec<String>,
    pub expose: Vec<String>,
    pub user: Option<String>,
    pub privileged: bool,
    pub detach: bool,
    pub keep: bool,
    pub isolation: Option<String>,
    pub cpus: Option<String>,
}

impl Volume {
    /// The files' content. This is when a text that is not Base64 is found.
    pub fn files(&self) -> Result<Vec<(&str, Vec<u8>)>, TaskError> {
        let decode = |(name, text): (&'_ String, &SecretText)| {
            BASE64_STANDARD.decode(text.expose()).map_err(|_| {
                let message = format!("file `{name}` of volume `{}` is not Base64", self.name);
                TaskError::new(message).with_hint("encode it, for example with `b64enc`")
            })
        };
        self.files.iter().map(|(name, text)| Ok((name.as_str(), decode((name, text))?))).collect()
    }
}

/// The secrets that a file lists, checked.
pub(crate) fn secrets(file: &schema::Task) -> Result<Vec<Secret>, TaskError> {
    check_count("secrets", file.secrets.get(SECRETS_MAX).map(|more| more.at), SECRETS_MAX)?;
    let secrets = file.secrets.iter().map(secret).collect::<Result<Vec<_>, _>>()?;
    let mut ids = HashSet::new();
    for (secret, written) in secrets.iter().zip(&file.secrets) {
        if !ids.insert(&secret.id) {
            let message = format!("two secrets have the id `{}`", secret.id);
            return Err(TaskError::at(written.at, message));
        }
    }
    Ok(secrets)
}

/// Fails at the first of those that are too many.
fn check_count(what: &str, more: Option<Span>, max: usize) -> Result<(), TaskError> {
    match more {
        None => Ok(()),
        Some(at) => Err(TaskError::at(at, format!("a task may have {max} {what} at most"))),
    }
}

fn secret(written: &schema::Secret) -> Result<Secret, TaskError> {
    let Some(id) = &written.id else {
        return Err(TaskError::at(written.at, "a secret needs an `id`"));
    };
    if id.text.contains(char::is_whitespace) {
        return Err(TaskError::at(id.at, format!("the secret id `{}` has white space", id.text)));
    }
    let Some(key_vault) = &written.key_vault else {
        let message = format!("secret `{}` needs a `keyvault`", id.text);
        return Err(TaskError::at(written.at, message)
            .with_hint("the address of the secret: `keyvault: https://VAULT/secrets/NAME`"));
    };
    let address = key_vault.text.parse().map_err(|error: SecretAddressError| {
        let message =
            format!("secret `{}` cannot be in the vault `{}`: {error}", id.text, key_vault.text);
        TaskError::at(key_vault.at, message).with_hint(error.hint())
    })?;
    let client_id = written.client_id.as_ref().map(|text| {
        Uuid::try_parse(&text.text).map_err(|_| {
            let message =
                format!("`clientID` of secret `{}` is not a UUID: `{}`", id.text, text.text);
            TaskError::at(text.at, message)
        })
    });
    Ok(Secret { id: id.text.clone(), address, client_id: client_id.transpose()? })
}

/// Everything of task-yaml.md section 2 from the validation of secrets to the step graph.
pub(crate) fn task(file: &schema::Task, run: &RunDefaults) -> Result<Task, TaskError> {
    let version = version(file)?;
    let secrets = secrets(file)?;
    let volumes = volumes(file)?;
    check_count("steps", file.steps.get(STEPS_MAX).map(|more| more.at), STEPS_MAX)?;
    check_mounted_volumes(file, &volumes)?;
    let networks = networks(file, run)?;
    let defaults = Defaults {
        env: environment::merge(&file.env, &run_entries(run))?,
        timeout: seconds(file.step_timeout, STEP_TIMEOUT_DEFAULT),
        working_directory: (file.working_directory.as_ref().map(|text| text.text.as_str()))
            .or(run.working_directory.as_deref()),
        network: networks.iter().rfind(|network| network.is_default),
    };
    let envs = file.steps.iter().map(|step| environment::merge(&step.env, &defaults.env));
    let envs = envs.collect::<Result<Vec<_>, _>>()?;
    let mut steps = Vec::new();
    let mut graph = GraphBuilder::default();
    for (number, (written, env)) in file.steps.iter().zip(&envs).enumerate() {
        let generated = Text { text: format!("acb_step_{number}"), at: written.at };
        let id = written.id.as_ref().unwrap_or(&generated);
        steps.push(step(written, id, env, &defaults)?);
        graph.add(&id.text, id.at, &written.when)?;
    }
    let retryable = file.retryable;
    Ok(Task { version, retryable, secrets, networks, volumes, steps, graph: graph.finish() })
}

fn version(file: &schema::Task) -> Result<String, TaskError> {
    let Some(version) = &file.version else { return Ok(DEFAULT_VERSION.to_owned()) };
    let known = VERSIONS.iter().find(|known| known.eq_ignore_ascii_case(&version.text));
    known.map(|known| (*known).to_owned()).ok_or_else(|| {
        let message = format!("`{}` is not a version of task files", version.text);
        let newest = VERSIONS[VERSIONS.len() - 1];
        TaskError::at(version.at, message).with_hint(format!("the current version is `{newest}`"))
    })
}

fn volumes(file: &schema::Task) -> Result<Vec<Volume>, TaskError> {
    check_count("volumes", file.volumes.get(VOLUMES_MAX).map(|more| more.at), VOLUMES_MAX)?;
    let volumes = file.volumes.iter().map(volume).collect::<Result<Vec<_>, _>>()?;
    let mut names = HashSet::new();
    for (volume, written) in volumes.iter().zip(&file.volumes) {
        if !names.insert(&volume.name) {
            let message = format!("two volumes have the name `{}`", volume.name);
            return Err(TaskError::at(written.at, message));
        }
    }
    Ok(volumes)
}

fn volume(written: &schema::Volume) -> Result<Volume, TaskError> {
    let Some(name) = &written.name else {
        return Err(TaskError::at(written.at, "a volume needs a `name`"));
    };
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !name.text.chars().all(word) {
        let message =
            format!("the volume name `{}` may have only letters, digits, `_` and `-`", name.text);
        return Err(TaskError::at(name.at, message));
    }
    let Some(secret) = &written.secret else {
        let message = format!("volume `{}` has no source", name.text);
        return Err(TaskError::at(written.at, message)
            .with_hint("give it files: `secret: { FILE: BASE64 }`"));
    };
    if secret.is_empty() {
        let message = format!("`secret` of volume `{}` has no files", name.text);
        return Err(TaskError::at(written.at, message));
    }
    for (file, _) in secret {
        let is_folder = matches!(file.text.as_str(), "" | "." | "..");
        if is_folder || !file.text.chars().all(|c| word(c) || c == '.') {
            let message = format!(
                "`{}` in volume `{}` is not a file name of letters, digits, `_`, `-` and `.`",
                file.text, name.text
            );
            return Err(TaskError::at(file.at, message));
        }
    }
    let files = secret.iter().map(|(file, text)| (file.text.clone(), SecretText::new(text)));
    Ok(Volume { name: name.text.clone(), files: files.collect() })
}

/// Every mount names a volume of the task.
fn check_mounted_volumes(file: &schema::Task, volumes: &[Volume]) -> Result<(), TaskError> {
    let names: BTreeSet<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
    for mount in file.steps.iter().flat_map(|step| &step.volume_mounts) {
        let name = mount.name.as_ref().map_or("", |name| &name.text);
        if !names.contains(name) {
            let at = mount.name.as_ref().map_or(mount.at, |name| name.at);
            let message = match name {
                "" => "a volume mount needs the `name` of a volume".to_owned(),
                name => format!("`{name}` is mounted, which is not a volume of this task"),
            };
            return Err(TaskError::at(at, message).with_nearest(name, names));
        }
    }
    Ok(())
}

/// The task's networks; that of the run, if there is one; the default one if there are none.
fn networks(file: &schema::Task, run: &RunDefaults) -> Result<Vec<Network>, TaskError> {
    check_count("networks", file.networks.get(NETWORKS_MAX).map(|more| more.at), NETWORKS_MAX)?;
    let mut networks = Vec::new();
    for written in &file.networks {
        let Some(name) = &written.name else {
            return Err(TaskError::at(written.at, "a network needs a `name`"));
        };
        networks.push(Network {
            name: name.text.clone(),
            driver: written.driver.as_ref().map(|text| text.text.clone()),
            ipv6: written.ipv6,
            skip_creation: written.skip_creation,
            is_default: written.is_default,
        });
    }
    let network = |name: &str, driver: Option<&str>, skip_creation| Network {
        name: name.to_owned(),
        driver: driver.map(str::to_owned),
        ipv6: false,
        skip_creation,
        is_default: true,
    };
    if let Some(name) = &run.network {
        networks.push(network(name, None, true));
    }
    if networks.is_empty() {
        networks.push(network(DEFAULT_NETWORK, Some("bridge"), false));
    }
    Ok(networks)
}

fn run_entries(run: &RunDefaults) -> Vec<Text> {
    run.env.iter().map(|entry| Text { text: entry.clone(), at: Span::default() }).collect()
}

/// What the task gives to steps that say nothing themselves.
struct Defaults<'a> {
    env: Vec<Text>,
    timeout: Duration,
    working_directory: Option<&'a str>,
    network: Option<&'a Network>,
}

/// Checks in the order of task-yaml.md section 4.2, so that the first error is the same one.
fn step(
    written: &schema::Step,
    id: &Text,
    env: &[Text],
    defaults: &Defaults<'_>,
) -> Result<Step, TaskError> {
    let retries = count(written.retries, "retries", id)?;
    let repeat = count(written.repeat, "repeat", id)?;
    let kind = kind(written, id)?;
    let mounts = mounts(written, id, kind)?;
    graph::check_when(&id.text, &written.when)?;
    let cache = cache(written, id)?;
    let text = |text: &Option<Text>| text.as_ref().map(|text| text.text.clone());
    let texts = |list: &[Text]| list.iter().map(|text| text.text.clone()).collect();
    let attempts = Attempts {
        retries,
        retry_delay: seconds(written.retry_delay, RETRY_DELAY_DEFAULT),
        retry_on_errors: texts(&written.retry_on_errors),
        repeat,
    };
    let container = Container {
        env: Environment::for_container(env),
        working_directory: working_directory(written, defaults),
        network: text(&written.network)
            .or_else(|| defaults.network.map(|network| network.name.clone())),
        mounts,
        ports: texts(&written.ports),
        expose: texts(&written.expose),
        user: text(&written.user),
        privileged: written.privileged,
        detach: written.detach,
        keep: written.keep,
        isolation: text(&written.isolation),
        cpus: text(&written.cpus),
    };
    let action = match kind {
        Kind::Cmd(command) => Action::Cmd(Cmd {
            command: command.text.clone(),
            entry_point: text(&written.entry_point),
            pull: pull(written, id)?,
            attempts,
            container,
        }),
        Kind::Build(arguments) => Action::Build(Build {
            arguments: BuildArguments::parse(&arguments.text)
                .map_err(|error| TaskError { at: Some(arguments.at), ..error })?,
            cache,
            attempts,
            container,
        }),
        Kind::Push(images) => Action::Push(Push { images: references(images)? }),
    };
    Ok(Step {
        id: id.text.clone(),
        action,
        timeout: seconds(written.timeout, defaults.timeout),
        start_delay: seconds(written.start_delay, Duration::ZERO),
        ignore_errors: written.ignore_errors,
    })
}

#[derive(Clone, Copy)]
enum Kind<'a> {
    Cmd(&'a Text),
    Build(&'a Text),
    Push(&'a [Text]),
}

fn kind<'a>(written: &'a schema::Step, id: &Text) -> Result<Kind<'a>, TaskError> {
    let cmd = written.cmd.as_ref().map(|text| ("cmd", text.at, Kind::Cmd(text)));
    let build = written.build.as_ref().map(|text| ("build", text.at, Kind::Build(text)));
    let push = written.push.first().map(|first| ("push", first.at, Kind::Push(&written.push)));
    let mut kinds = [cmd, build, push].into_iter().flatten();
    let first = kinds.next();
    if let (Some((first, ..)), Some((second, at, _))) = (&first, kinds.next()) {
        let message = format!("step `{}` has both `{first}` and `{second}`", id.text);
        let hint = format!("move `{second}` to its own step");
        return Err(TaskError::at(at, message).with_hint(hint));
    }
    if id.text.contains(char::is_whitespace) {
        return Err(TaskError::at(id.at, format!("the step id `{}` has white space", id.text)));
    }
    first.map(|(_, _, kind)| kind).ok_or_else(|| {
        TaskError::at(
            written.at,
            format!("step `{}` has neither `cmd`, `build` nor `push`", id.text),
        )
    })
}

fn mounts(written: &schema::Step, id: &Text, kind: Kind<'_>) -> Result<Vec<Mount>, TaskError> {
    let mut mounts: Vec<Mount> = Vec::new();
    if let (Kind::Push(_), Some(mount)) = (kind, written.volume_mounts.first()) {
        let message =
            format!("`volumeMounts` of step `{}` work only with `cmd` and `build`", id.text);
        return Err(TaskError::at(mount.at, message));
    }
    for mount in &written.volume_mounts {
        let (Some(name), Some(path)) = (&mount.name, &mount.mount_path) else {
            let message =
                format!("a volume mount of step `{}` needs `name` and `mountPath`", id.text);
            return Err(TaskError::at(mount.at, message));
        };
        if !path.text.starts_with('/') {
            let message =
                format!("`mountPath: {}` of step `{}` is not an absolute path", path.text, id.text);
            return Err(TaskError::at(path.at, message));
        }
        mounts.push(Mount { volume: name.text.clone(), path: path.text.clone() });
    }
    let mut paths = HashSet::new();
    for (mount, written) in mounts.iter().zip(&written.volume_mounts) {
        if !paths.insert(&mount.path) {
            let message = format!("step `{}` mounts two volumes at `{}`", id.text, mount.path);
            return Err(TaskError::at(written.at, message));
        }
    }
    Ok(mounts)
}

fn cache(written: &schema::Step, id: &Text) -> Result<bool, TaskError> {
    let Some(cache) = &written.cache else { return Ok(false) };
    match cache.text.to_ascii_lowercase().as_str() {
        "enabled" => Ok(true),
        "disabled" => Ok(false),
        _ => {
            let message = format!("`cache` of step `{}` must be `enabled` or `disabled`", id.text);
            Err(TaskError::at(cache.at, message))
        }
    }
}

fn pull(written: &schema::Step, id: &Text) -> Result<Option<Pull>, TaskError> {
    let retries = count(written.cmd_download_retries, "cmdDownloadRetries", id)?;
    let retry_delay = seconds(written.cmd_download_retry_delay, Duration::ZERO);
    Ok(written.pull.then_some(Pull { retries, retry_delay }))
}

/// References with `latest` where they have neither tag nor digest, each once.
fn references(images: &[Text]) -> Result<Vec<Reference>, TaskError> {
    let mut references: Vec<Reference> = Vec::new();
    let mut seen = HashSet::new();
    for image in images {
        let mut reference = image.text.parse::<Reference>().map_err(|error| {
            let hint = error.hint();
            TaskError { hint, ..TaskError::at(image.at, format!("`push`: {error}")) }
        })?;
        if reference.tag.is_none() && reference.digest.is_none() {
            reference.tag = Some(Tag::latest());
        }
        if seen.insert(reference.to_string()) {
            references.push(reference);
        }
    }
    Ok(references)
}

fn working_directory(written: &schema::Step, defaults: &Defaults<'_>) -> Option<String> {
    if written.disable_working_directory_override {
        return None;
    }
    let own = written.working_directory.as_ref().map(|text| text.text.as_str());
    Some(path::absolute(WORKSPACE, own.or(defaults.working_directory).unwrap_or_default()))
}

/// A number of times, which cannot be negative.
fn count(number: Option<Int>, name: &str, id: &Text) -> Result<u32, TaskError> {
    let Some(number) = number else { return Ok(0) };
    u32::try_from(number.value).map_err(|_| {
        let message = format!("`{name}` of step `{}` must be from 0 to {}", id.text, u32::MAX);
        TaskError::at(number.at, message)
    })
}

/// A time in seconds; zero and less mean the default. More than a century is a century or
/// so, with which one can still calculate.
fn seconds(number: Option<Int>, default: Duration) -> Duration {
    match number {
        Some(number) if number.value > 0 => {
            Duration::from_secs(u32::try_from(number.value).unwrap_or(u32::MAX).into())
        }
        _ => default,
    }
}
