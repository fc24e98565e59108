//! A run of a task: its steps, each as soon as those it waits for are done.
//!
//! What may start is decided by [`schedule`]; this module brings what all steps share (the
//! workspace with the context, the task file, volumes) and sees the steps to their end.

mod attempts;
mod build;
mod build_cache;
mod built_in;
mod cmd;
mod command_line;
mod containers;
mod events;
mod identity;
mod images;
mod push;
mod schedule;
mod secrets;
mod shell;
mod workspace;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use builder::{BuildCost, Builder, ContextFiles, KnownSecrets, RecordedRepository};
use container::{PeerNetwork, Private, Usage};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use oci::{Digest, Platform, Reference, RepositoryName, Tag};
use remote::Download;
use task::{
    Action, AliasSource, Cmd, RunDefaults, SecretText, Seed, Step, Task, TaskError, TaskFile,
    Values, Variables,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::context::{ContextLoader, ContextSource, list_failure};
use crate::dependencies::{Dependencies, report};
use crate::execute::{Engine, Failure, Outcome, RunEvents, Workspace, blocking};
use crate::logins::{RunLogins, read_logins};
use crate::platforms::BuiltImages;
use crate::publish::{Lease, PublishError, abandon};
use crate::variables::RunFacts;
use cmd::VolumeFiles;
use containers::Containers;
use events::Numbers;
use images::RunImages;
use schedule::{Schedule, StepState};
use workspace::read_text;

pub use identity::Identities;
pub(crate) use push::{may_send, send};
pub use secrets::{SecretError, SecretSource};
pub use shell::{SHELL_CLIENT_ARG, shell_client};

/// Where the home folder of all steps is in containers.
const HOME: &str = "/acb/home";
/// A task file has at most this many bytes, and so has a file of values or of aliases.
const FILE_SIZE_MAX: u64 = 1 << 20;
/// How long an address with aliases may take to answer (task-yaml.md section 5.1).
const ALIASES_TIMEOUT: Duration = Duration::from_secs(2);
/// Steps that go on at once, for each processor.
const STEPS_PER_CPU: usize = 4;
/// Services of one run.
const SERVICES_MAX: usize = 50;
/// Containers at once that shells of one run have asked for; further ones wait.
const SHELL_CONTAINERS_MAX: usize = 32;
/// How long steps may take to end when they are told to.
const END_WAIT: Duration = Duration::from_secs(10);
/// Bytes of a rendered task file that are kept, and images.
const PLAN_TEXT_MAX: usize = 256 << 10;
const PLAN_IMAGES_MAX: usize = 1000;
/// How long images of a run are kept that nothing else keeps.
const IMAGES_KEEP: Duration = Duration::from_secs(24 * 60 * 60);

/// A task to run.
#[derive(Debug, Clone)]
pub struct TaskRequest {
    /// The run's id.
    pub run: String,
    /// The name of the stored task; empty: there is none.
    pub task_name: String,
    pub file: TaskText,
    pub values_file: Option<TaskText>,
    pub values: Vec<SetValue>,
    /// `None`: an empty workspace.
    pub context: Option<ContextSource>,
    pub platform: Platform,
    /// Bound on all of it, from now on.
    pub timeout: Duration,
    /// Seconds since 1970; the same in each attempt, as the seed.
    pub now: i64,
    /// What random texts of the file begin from.
    pub seed: Seed,
    pub logins: RunLogins,
    /// What no image may hold. A secret that becomes known while the run goes on is added to it.
    pub known_secrets: KnownSecrets,
    /// Where the secrets come from that the file lists.
    pub secrets: Arc<dyn SecretSource>,
    /// Absent: the run has no identity that its commands could ask tokens of.
    pub identities: Option<Arc<dyn Identities>>,
}

/// A text of the request, or where it is in the context.
#[derive(Clone, PartialEq, Eq)]
pub enum TaskText {
    Inline(String),
    InContext(String),
}

/// The path only: a text may hold what is nobody's business.
impl std::fmt::Debug for TaskText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inline(text) => write!(f, "{} bytes", text.len()),
            Self::InContext(path) => f.write_str(path),
        }
    }
}

/// A value that is set for the run.
#[derive(Clone, PartialEq, Eq)]
pub struct SetValue {
    pub name: String,
    pub value: String,
    pub secret: bool,
}

impl std::fmt::Debug for SetValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = if self.secret { "***" } else { &self.value };
        write!(f, "{}={value}", self.name)
    }
}

/// What a run of a task has made.
#[derive(Debug, Default)]
pub struct TaskOutput {
    /// In the order in which they were pushed.
    pub pushed: Vec<PushedImage>,
    /// The git repository that was the context.
    pub repository: Option<RecordedRepository>,
    /// What each step took.
    pub steps: Vec<StepCost>,
    /// Once the task file is understood.
    pub plan: Option<TaskPlan>,
    /// Of all build steps, in the order of the file.
    pub dependencies: Vec<Dependencies>,
}

/// What a task was made of, and what it came to (architecture.md decision 1).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskPlan {
    /// The task file as it was written.
    pub task_file: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values_file: Option<Digest>,
    /// An uploaded context: its archive, or the list of its files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<Digest>,
    /// The images of `cmd` steps, as they were when a step began.
    pub images: Vec<InputImage>,
    /// The task file with its aliases and templates replaced, as if all secrets were `***` and with
    /// other random texts, at most 256 KiB; absent if it cannot be rendered so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// An image that a run was made of.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct InputImage {
    pub reference: String,
    pub digest: Digest,
}

/// An image that a run has pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushedImage {
    /// `None`: the run's own registry.
    pub host: Option<String>,
    pub repository: RepositoryName,
    pub tag: Option<Tag>,
    pub digest: Digest,
}

/// How a step ended, and how long it took.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StepCost {
    pub id: String,
    /// `successful`, `failed` (also if it was killed), `skipped`, or `inprogress` if the run was
    /// canceled meanwhile.
    pub state: &'static str,
    pub milliseconds: u64,
    #[serde(flatten)]
    pub usage: StepUsage,
}

/// What the containers and builds of a step used, all its attempts together. Builds that failed are
/// not in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StepUsage {
    /// Processor time of what has ended.
    pub cpu_milliseconds: u64,
    /// Largest memory of one container, in bytes.
    pub memory_peak: u64,
    /// Bytes of base images that had to be fetched.
    pub pulled: u64,
    /// Bytes of images that had to be sent to other registries.
    pub pushed: u64,
    /// Bytes of new layers.
    pub written: u64,
    pub cache_hits: u32,
    pub cache_misses: u32,
    /// What the hits would have cost again.
    pub saved_milliseconds: u64,
}

impl StepUsage {
    fn add(&mut self, other: &Self) {
        self.cpu_milliseconds += other.cpu_milliseconds;
        self.memory_peak = self.memory_peak.max(other.memory_peak);
        self.pulled += other.pulled;
        self.pushed += other.pushed;
        self.written += other.written;
        self.cache_hits += other.cache_hits;
        self.cache_misses += other.cache_misses;
        self.saved_milliseconds += other.saved_milliseconds;
    }
}

impl From<Usage> for StepUsage {
    fn from(usage: Usage) -> Self {
        let cpu_milliseconds = u64::try_from(usage.cpu.as_millis()).unwrap_or(u64::MAX);
        Self { cpu_milliseconds, memory_peak: usage.memory_peak, ..Self::default() }
    }
}

impl From<&BuildCost> for StepUsage {
    fn from(cost: &BuildCost) -> Self {
        Self {
            cpu_milliseconds: cost.cpu_milliseconds,
            memory_peak: cost.memory_peak,
            pulled: cost.pulled,
            pushed: 0,
            written: cost.written,
            cache_hits: cost.cache_hits,
            cache_misses: cost.cache_misses,
            saved_milliseconds: cost.saved_milliseconds,
        }
    }
}

/// How a run of a task ended. What it had made by then, it has made, however it ended.
#[derive(Debug)]
pub struct TaskEnd {
    pub outcome: Outcome<()>,
    pub output: TaskOutput,
}

/// Runs a task to its end. When this returns its containers are gone and its workspace is removed;
/// soon after, if it was canceled, took too long or was dropped.
pub async fn execute_task(
    engine: &Engine,
    request: &TaskRequest,
    events: &dyn RunEvents,
    lease: &dyn Lease,
    cancel: &CancellationToken,
) -> TaskEnd {
    // Fires also when this future is dropped: blocking threads look at it.
    let stop = cancel.child_token();
    let _stop_at_end = stop.clone().drop_guard();
    let output = Mutex::new(TaskOutput::default());
    let work = run(engine, request, events, lease, &stop, &output);
    let outcome = tokio::select! {
        outcome = tokio::time::timeout(request.timeout, work) => match outcome {
            Ok(Ok(())) => Outcome::Succeeded(Box::new(())),
            Ok(Err(failure)) => failure.outcome(),
            Err(_) => Outcome::TimedOut,
        },
        () = cancel.cancelled() => Outcome::Canceled,
    };
    // What another attempt holds by now is not ours to release.
    if lease.holds().await {
        abandon(&engine.catalog, &engine.registry, &request.run).await;
        release_images(engine, &request.run).await;
    }
    TaskEnd { outcome, output: output.into_inner().unwrap_or_else(PoisonError::into_inner) }
}

/// What the steps of a run share.
struct TaskContext<'a> {
    /// Its builder sees the images of the run.
    engine: Engine,
    images: Arc<RunImages>,
    request: &'a TaskRequest,
    /// Those that the task file lists.
    secrets: task::Secrets,
    workspace: PathBuf,
    home: PathBuf,
    volumes: BTreeMap<&'a str, VolumeFiles>,
    /// In which containers reach each other, by name. They are gone when this is.
    networks: Networks<'a>,
    events: &'a dyn RunEvents,
    numbers: &'a Numbers,
    lease: &'a dyn Lease,
    /// The commit that is the context.
    commit: Option<&'a str>,
    /// Ends all that runs.
    kill: CancellationToken,
    /// What is known of the run so far.
    output: &'a Mutex<TaskOutput>,
    /// Folders of builds, so far.
    private_folders: AtomicU32,
    /// What build steps have made, by their ids.
    dependencies: Mutex<BTreeMap<String, Vec<Dependencies>>>,
    /// By step.
    usage: Mutex<BTreeMap<String, StepUsage>>,
    /// Those that are there now.
    containers: Containers,
    /// Places for containers that shells ask for.
    shell_containers: Semaphore,
    /// Held by who takes over logins.
    logins: tokio::sync::Mutex<()>,
}

impl TaskContext<'_> {
    fn output(&self) -> MutexGuard<'_, TaskOutput> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The path of a folder that no step sees and nothing else has.
    fn private_folder(&self) -> PathBuf {
        let number = self.private_folders.fetch_add(1, Ordering::Relaxed);
        self.home.with_file_name(format!("build-{number}"))
    }

    /// Takes over the logins that commands have made or given up.
    async fn refresh_logins(&self) {
        // Whoever reads last has read what is newest.
        let _one_at_a_time = self.logins.lock().await;
        let (home, own) = (self.home.clone(), self.engine.own.clone());
        if let Ok(Some(logins)) = blocking(move || read_logins(&home, &own)).await {
            self.engine.remote.set_logins(logins);
        }
    }

    fn note_pushed(&self, image: PushedImage) {
        self.output().pushed.push(image);
    }

    /// Notes what an image of a command was.
    fn note_image(&self, reference: &Reference, digest: &Digest) {
        if let Some(plan) = &mut self.output().plan {
            let named = Reference { tag: reference.tag_or_latest(), ..reference.clone() };
            let image = InputImage { reference: named.to_string(), digest: digest.clone() };
            if plan.images.len() < PLAN_IMAGES_MAX && !plan.images.contains(&image) {
                plan.images.push(image);
            }
        }
    }

    /// Adds what a container or a build of a step used.
    fn note_usage(&self, step: &str, used: StepUsage) {
        let mut all = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(step.to_owned()).or_default().add(&used);
    }

    /// A step that is done again has made another image.
    fn note_dependencies(&self, step: &str, of: Vec<Dependencies>) {
        let mut all = self.dependencies.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(step.to_owned(), of);
    }

    /// Keeps an image from being collected while the run goes on.
    async fn keep(&self, built: &BuiltImages) -> Result<(), Failure> {
        let owner = images_owner(&self.engine, &self.request.run);
        let blobs: BTreeSet<Digest> = built.blobs();
        let blobs: Vec<Digest> = blobs.into_iter().collect();
        let kept = self.engine.catalog.lease_blobs(&owner, &blobs, IMAGES_KEEP).await;
        kept.map_err(|error| Failure::ours(&error))
    }
}

fn images_owner(engine: &Engine, run: &str) -> String {
    format!("images/{}/{run}", engine.registry)
}

async fn release_images(engine: &Engine, run: &str) {
    let owner = images_owner(engine, run);
    if let Err(error) = engine.catalog.release_leases(&owner).await {
        tracing::warn!(%error, owner, "leases not released; they end within a day");
    }
}

/// Refuses what the server's policy does not have before any step has begun, also where errors of the
/// step would not matter.
async fn check_policy(context: &TaskContext<'_>, task: &Task) -> Result<(), Failure> {
    let built: Vec<Reference> = task.steps.iter().flat_map(built_names).collect();
    // Lines of a shell may build images of any name.
    let has_shell = task.steps.iter().any(cmd::is_shell);
    for step in &task.steps {
        let Action::Cmd(cmd) = &step.action else { continue };
        cmd::check_policy(context, cmd, (!has_shell).then_some(&*built))
            .await
            .map_err(|failure| failure.of(format_args!("step `{}`", step.id)))?;
    }
    Ok(())
}

/// What images a step makes are called.
fn built_names(step: &Step) -> Vec<Reference> {
    let Action::Build(build) = &step.action else { return Vec::new() };
    build.arguments.tags.iter().filter_map(|name| name.parse().ok()).collect()
}

async fn run(
    engine: &Engine,
    request: &TaskRequest,
    events: &dyn RunEvents,
    lease: &dyn Lease,
    stop: &CancellationToken,
    output: &Mutex<TaskOutput>,
) -> Result<(), Failure> {
    let engine = &request.logins.engine(engine);
    let workspace = Workspace::create(engine, &request.run).map_err(|error| {
        tracing::error!(%error, run = request.run, "could not make a workspace");
        Failure::ours(&error)
    })?;
    let root = workspace.path().join("context");
    let home = workspace.path().join("home");
    std::fs::create_dir(&home).map_err(|error| Failure::ours(&error))?;
    request.logins.write_to(&home, engine).map_err(|error| Failure::ours(&error))?;
    let repository = load(engine, request, root.clone(), events, stop).await?;
    let reader =
        TaskReader { engine, request, root: root.clone(), repository: repository.as_ref() };
    let (task, plan, secrets) = reader.read(events).await?;
    {
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        output.plan = Some(plan);
        output.repository.clone_from(&repository);
    }
    let volumes = volumes(&task)?;
    let networks = networks(engine, &task, events).await?;
    request.logins.check(engine, events, stop).await?;
    let images = Arc::new(RunImages::new(Arc::clone(&engine.builder.images), engine.own.clone()));
    let builder = Builder { images: Arc::clone(&images) as _, ..Builder::clone(&engine.builder) };
    let context = TaskContext {
        engine: Engine { builder: Arc::new(builder), ..engine.clone() },
        images,
        request,
        secrets,
        workspace: root,
        home,
        volumes,
        networks,
        events,
        numbers: &Numbers::default(),
        lease,
        commit: repository.as_ref().map(|repository| repository.commit.as_str()),
        kill: stop.child_token(),
        output,
        private_folders: AtomicU32::new(0),
        dependencies: Mutex::default(),
        usage: Mutex::default(),
        containers: Containers::default(),
        shell_containers: Semaphore::new(SHELL_CONTAINERS_MAX),
        logins: tokio::sync::Mutex::default(),
    };
    unless_stopped(&context.kill, check_policy(&context, &task)).await?;
    for step in &task.steps {
        // Where errors do not matter, that is one when the step begins.
        if let (Action::Build(build), false) = (&step.action, step.ignore_errors) {
            build::check(&context, build)
                .map_err(|failure| failure.of(format_args!("step `{}`", step.id)))?;
        }
    }
    let repeatable = task.retryable || is_repeatable(&task, engine);
    lease.begin_steps(repeatable).await.map_err(PublishError::failure)?;
    run_steps(&context, &task).await?;
    let mut found =
        std::mem::take(&mut *context.dependencies.lock().unwrap_or_else(PoisonError::into_inner));
    let of_steps = task.steps.iter().filter_map(|step| found.remove(&step.id));
    let dependencies: Vec<_> = of_steps.flatten().collect();
    if !dependencies.is_empty() {
        events.message(&report(&dependencies)).await;
    }
    context.output().dependencies = dependencies;
    Ok(())
}

/// Whether all that is seen of a task is what it publishes here, under the attempt's lease.
fn is_repeatable(task: &Task, engine: &Engine) -> bool {
    let is_own = |image: &Reference| engine.own.registry(image) == Some(&engine.registry);
    task.steps.iter().all(|step| match &step.action {
        Action::Build(_) => true,
        Action::Push(push) => push.images.iter().all(is_own),
        Action::Cmd(_) => false,
    })
}

/// Brings the context into the workspace.
async fn load(
    engine: &Engine,
    request: &TaskRequest,
    root: PathBuf,
    events: &dyn RunEvents,
    stop: &CancellationToken,
) -> Result<Option<RecordedRepository>, Failure> {
    let Some(source) = &request.context else { return Ok(None) };
    let loader = ContextLoader {
        engine,
        no_cache: false,
        is_workspace: true,
        ssh_agents: None,
        events,
        stop,
    };
    let loaded = loader.load(source, root.clone(), engine.context_limits).await?;
    if let ContextFiles::Listed { files, .. } = loaded.files {
        let (limits, stop) = (engine.context_limits, stop.clone());
        let written = blocking(move || files.write_to(&root, &|| stop.is_cancelled())).await?;
        written.map_err(|error| list_failure(error, limits))?;
    }
    Ok(loaded.repository.map(|repository| repository.record))
}

/// Makes a task of its file.
struct TaskReader<'a> {
    engine: &'a Engine,
    request: &'a TaskRequest,
    root: PathBuf,
    repository: Option<&'a RecordedRepository>,
}

/// Which secrets a template gets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Real,
    /// None of them, and no random text that is used.
    Hidden,
}

impl TaskReader<'_> {
    async fn read(
        &self,
        events: &dyn RunEvents,
    ) -> Result<(Task, TaskPlan, task::Secrets), Failure> {
        let name = match &self.request.file {
            TaskText::Inline(_) => "the task file",
            TaskText::InContext(path) => path,
        };
        let text = self.text(&self.request.file, "the task file").await?;
        let show = |error: TaskError| Failure::User(error.render(name, &text));
        let values = match &self.request.values_file {
            Some(file) => Some(self.text(file, "the values file").await?),
            None => None,
        };
        let variables = self.variables(values.as_deref(), Shown::Real)?;
        let file = TaskFile::read(&text, &variables).map_err(show)?;
        if file.has_aliases() {
            events.message("Aliases are replaced, since the version is v1.1.0 or later").await;
        }
        if !file.alias_sources().is_empty() {
            events.message("Loading alias sources").await;
        }
        let sources = self.aliases(file.alias_sources()).await?;
        let file = file.expand(&sources, &self.engine.alias_images, &variables).map_err(show)?;
        let listed = file.secrets(&variables).map_err(show)?;
        let secrets = secrets::fetch(&*self.request.secrets, &listed, events).await?;
        for (id, value) in &secrets {
            self.request.known_secrets.add(format!("secret `{id}`"), value.expose());
        }
        let file = file.render(&variables, &secrets).map_err(show)?;
        let plan = TaskPlan {
            task_file: Digest::of(text.as_bytes()),
            values_file: values.as_ref().map(|values| Digest::of(values.as_bytes())),
            context: self.request.context.as_ref().and_then(ContextSource::digest),
            images: Vec::new(),
            text: self.text_without_secrets(&text, values.as_deref(), &sources, &listed),
        };
        let (task, warnings) = file.task(&RunDefaults::default()).map_err(show)?;
        for warning in &warnings {
            events
                .warning(
                    warning.render_warning(name, &text).trim_start_matches("warning: ").trim_end(),
                )
                .await;
        }
        Ok((task, plan, secrets))
    }

    /// What the file comes to if nothing in it is secret.
    fn text_without_secrets(
        &self,
        text: &str,
        values: Option<&str>,
        sources: &BTreeMap<AliasSource, String>,
        listed: &[task::Secret],
    ) -> Option<String> {
        let variables = self.variables(values, Shown::Hidden).ok()?;
        let file = TaskFile::read(text, &variables).ok()?;
        let file = file.expand(sources, &self.engine.alias_images, &variables).ok()?;
        let hidden = listed.iter().map(|secret| (secret.id.clone(), SecretText::new("***")));
        let file = file.render(&variables, &hidden.collect()).ok()?;
        let text = file.text();
        Some(text[..text.floor_char_boundary(PLAN_TEXT_MAX)].to_owned())
    }

    async fn text(&self, text: &TaskText, what: &'static str) -> Result<String, Failure> {
        match text {
            TaskText::Inline(text) => Ok(text.clone()),
            TaskText::InContext(path) => {
                let (root, path) = (self.root.clone(), path.clone());
                blocking(move || read_text(&root, &path, what, FILE_SIZE_MAX)).await?
            }
        }
    }

    /// What templates may use; `values` is the text of the values file.
    fn variables(&self, values: Option<&str>, shown: Shown) -> Result<Variables, Failure> {
        let request = self.request;
        let user = |error: TaskError| Failure::User(error.render("the values", ""));
        let mut values = match values {
            Some(text) => Values::from_file(text).map_err(user)?,
            None => Values::default(),
        };
        for SetValue { name, value, secret } in &request.values {
            let set = match secret {
                true if shown == Shown::Hidden => values.set_secret(name, &SecretText::new("***")),
                true => values.set_secret(name, &SecretText::new(value)),
                false => values.set_value(name, value),
            };
            set.map_err(user)?;
        }
        let facts = RunFacts {
            run: &request.run,
            task_name: &request.task_name,
            platform: &request.platform,
            now: request.now,
            repository: self.repository,
        };
        let run = facts.variables(self.engine);
        let seed = if shown == Shown::Hidden { Seed([0; 32]) } else { request.seed };
        Ok(Variables { now: run.started, run, values, seed })
    }

    async fn aliases(
        &self,
        sources: &[AliasSource],
    ) -> Result<BTreeMap<AliasSource, String>, Failure> {
        let mut loaded = BTreeMap::new();
        for source in sources {
            let text = match source {
                AliasSource::File(path) => {
                    let (root, path) = (self.root.clone(), path.clone());
                    blocking(move || read_text(&root, &path, "the alias file", FILE_SIZE_MAX))
                        .await??
                }
                AliasSource::Url(address) => self.fetch(address).await?,
            };
            loaded.insert(source.clone(), text);
        }
        Ok(loaded)
    }

    async fn fetch(&self, address: &str) -> Result<String, Failure> {
        let builder = &self.engine.builder;
        let download = Download { address, known: None, expected: None };
        let fetch = builder.downloads.fetch(&download, &*builder.blobs, &|_| ());
        // Without what may be secret in it.
        let shown = builder::Address::new(address).map(|address| address.to_string());
        let user = |reason: String| {
            let shown = shown.as_deref().unwrap_or_default();
            Failure::User(format!("error: the aliases at `{shown}` cannot be had: {reason}"))
        };
        let Ok(fetched) = tokio::time::timeout(ALIASES_TIMEOUT, fetch).await else {
            return Err(user(format!("no answer within {} s", ALIASES_TIMEOUT.as_secs())));
        };
        let fetched = fetched.map_err(|error| user(error.to_string()))?;
        let Some(fetched) = fetched else { unreachable!("only what is known can be unchanged") };
        if fetched.size > FILE_SIZE_MAX {
            return Err(user(format!("they have more than {FILE_SIZE_MAX} bytes")));
        }
        let reader = builder.blobs.open(&fetched.digest, 0).await;
        let mut reader = reader.map_err(|error| Failure::ours(&error))?.into_blocking();
        let read = move || {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut bytes).map(|_| bytes)
        };
        let bytes = blocking(read).await?.map_err(|error| Failure::ours(&error))?;
        String::from_utf8(bytes).map_err(|_| user("they are not UTF-8 text".to_owned()))
    }
}

/// The files of all volumes. A text that is not Base64 is found here.
fn volumes(task: &Task) -> Result<BTreeMap<&str, VolumeFiles>, Failure> {
    let mut volumes = BTreeMap::new();
    for volume in &task.volumes {
        let files = volume.files();
        let files = files.map_err(|error| Failure::User(error.render("the task file", "")))?;
        let file = |(name, bytes): (&str, Vec<u8>)| (name.to_owned(), Private::new(&bytes));
        volumes.insert(volume.name.as_str(), files.into_iter().map(file).collect());
    }
    Ok(volumes)
}

/// The networks of a task by name; those that are not made are `None`.
type Networks<'a> = BTreeMap<&'a str, Option<PeerNetwork>>;

/// Makes the networks of a task. Those that no command uses are not made: nobody would be there.
async fn networks<'a>(
    engine: &Engine,
    task: &'a Task,
    events: &dyn RunEvents,
) -> Result<Networks<'a>, Failure> {
    let mut networks = BTreeMap::new();
    let Some(runtime) = &engine.builder.runtime else { return Ok(networks) };
    let used: BTreeSet<&str> = (task.steps.iter())
        .filter_map(|step| match &step.action {
            Action::Cmd(cmd) => cmd.container.network.as_deref(),
            Action::Build(_) | Action::Push(_) => None,
        })
        .collect();
    for network in task.networks.iter().filter(|network| !network.skip_creation) {
        let mut made = None;
        if used.contains(network.name.as_str()) {
            events.message(&format!("Creating network: {}", network.name)).await;
            let network = runtime.peer_network().await;
            made = Some(network.map_err(|error| Failure::ours(&error))?);
        }
        networks.insert(network.name.as_str(), made);
    }
    Ok(networks)
}

/// A step's work, or a process that goes on while other steps do.
type Work<'c> = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'c>>;

/// How a step is done with.
enum Done<'c> {
    Ended,
    /// Its container has started and is not waited for.
    Detached(Work<'c>),
}

/// Sees all steps to their end, or the run to its first failure.
async fn run_steps<'c>(context: &'c TaskContext<'_>, task: &'c Task) -> Result<(), Failure> {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut schedule = Schedule::new(&task.graph, cpus * STEPS_PER_CPU);
    let mut took = vec![Duration::ZERO; task.steps.len()];
    context.output().steps = costs(context, task, &schedule, &took);
    let mut running = FuturesUnordered::new();
    let mut services = FuturesUnordered::new();
    let mut failure = None;
    while failure.is_none() {
        for number in schedule.take_ready() {
            let started = Instant::now();
            let step = async move {
                let result = run_step(context, &task.steps[number]).await;
                (number, result, started.elapsed())
            };
            running.push(step.boxed());
        }
        let (number, result, elapsed) = tokio::select! {
            ended = running.next() => match ended {
                Some(ended) => ended,
                None => break,
            },
            // How a service ends is nobody's business.
            Some(_) = services.next(), if !services.is_empty() => continue,
        };
        took[number] = elapsed;
        schedule.record(number, result.is_ok());
        context.output().steps = costs(context, task, &schedule, &took);
        match result {
            Ok(Done::Ended) => (),
            Ok(Done::Detached(_)) if services.len() >= SERVICES_MAX => {
                let text = format!("error: more than {SERVICES_MAX} steps are detached at once");
                failure = Some(Failure::User(text));
            }
            Ok(Done::Detached(service)) => services.push(service),
            Err(error) => failure = Some(error),
        }
    }
    context.kill.cancel();
    let rest = async {
        while let Some((number, result, elapsed)) = running.next().await {
            took[number] = elapsed;
            schedule.record(number, result.is_ok());
        }
        while services.next().await.is_some() {}
    };
    if tokio::time::timeout(END_WAIT, rest).await.is_err() {
        tracing::warn!(run = context.request.run, "steps did not end when they were told to");
    }
    context.output().steps = costs(context, task, &schedule, &took);
    failure.map_or(Ok(()), Err)
}

/// How far each step is.
fn costs(
    context: &TaskContext<'_>,
    task: &Task,
    schedule: &Schedule<'_>,
    took: &[Duration],
) -> Vec<StepCost> {
    let usage = context.usage.lock().unwrap_or_else(PoisonError::into_inner);
    let costs = task.steps.iter().zip(took).enumerate().map(|(number, (step, took))| StepCost {
        id: step.id.clone(),
        state: match schedule.state(number) {
            StepState::Skipped => "skipped",
            StepState::InProgress => "inprogress",
            StepState::Successful => "successful",
            StepState::Failed => "failed",
        },
        milliseconds: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        usage: usage.get(&step.id).copied().unwrap_or_default(),
    });
    costs.collect()
}

/// One step, with the lines of the log about it.
async fn run_step<'c>(context: &'c TaskContext<'_>, step: &'c Step) -> Result<Done<'c>, Failure> {
    attempts::sleep(step.start_delay, &context.kill).await?;
    context.refresh_logins().await;
    let id = &step.id;
    context.events.message(&introduction(step)).await;
    if let Action::Cmd(Cmd { container, .. }) = &step.action
        && !container.ports.is_empty()
    {
        let text = format!(
            "`ports` of step `{id}` are not published on the server's own addresses; other steps of \
             its network reach it by its id"
        );
        context.events.warning(&text).await;
    }
    let started = Instant::now();
    let result = act(context, step).await;
    let failure = match result {
        Ok(done) => {
            say_end(context, id, "successful", started).await;
            return Ok(done);
        }
        Err(failure @ (Failure::Canceled | Failure::Superseded)) => return Err(failure),
        Err(failure) => failure.of(format_args!("step `{id}`")),
    };
    if step.ignore_errors {
        let text = format!("{} (ignored)", failure.first_line());
        context.events.warning(&text).await;
        say_end(context, id, "successful", started).await;
        return Ok(Done::Ended);
    }
    say_end(context, id, "failed", started).await;
    Err(failure)
}

async fn say_end(context: &TaskContext<'_>, id: &str, state: &str, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    let text = format!("Step ID: {id} marked as {state} (elapsed time in seconds: {seconds:.3})");
    context.events.message(&text).await;
}

fn introduction(step: &Step) -> String {
    let container = match &step.action {
        Action::Build(build) => Some(&build.container),
        Action::Cmd(cmd) => Some(&cmd.container),
        Action::Push(_) => None,
    };
    let folder = container.and_then(|container| container.working_directory.as_deref());
    let network = container.and_then(|container| container.network.as_deref());
    format!(
        "Executing step ID: {}. Timeout(sec): {}, Working directory: '{}', Network: '{}'",
        step.id,
        step.timeout.as_secs(),
        folder.unwrap_or_default(),
        network.unwrap_or_default(),
    )
}

/// What the step is there for.
async fn act<'c>(context: &'c TaskContext<'_>, step: &'c Step) -> Result<Done<'c>, Failure> {
    match &step.action {
        Action::Build(build) => build::execute(context, step, build).await?,
        Action::Cmd(cmd) => {
            // A pull that the step asks for does not count against its time.
            let pulled = match &cmd.pull {
                Some(_) => Some(unless_stopped(&context.kill, cmd::prepare(context, cmd)).await?),
                None => None,
            };
            if cmd.container.detach {
                let service = cmd::detach(context, step, cmd, pulled).await?;
                return Ok(Done::Detached(service));
            }
            cmd::execute(context, step, cmd, pulled.as_ref()).await?;
        }
        Action::Push(push) => {
            let stop = context.kill.child_token();
            let all = push::execute(context, &step.id, &push.images, &stop);
            tokio::pin!(all);
            tokio::select! {
                result = &mut all => result?,
                () = tokio::time::sleep(step.timeout) => {
                    stop.cancel();
                    // What is being published is seen to its end, and noted.
                    let _ended = tokio::time::timeout(END_WAIT, all).await;
                    return Err(attempts::time_is_up(step.timeout));
                }
            }
        }
    }
    Ok(Done::Ended)
}

/// Work that is dropped when the run has no use for it any more.
pub(crate) async fn unless_stopped<T>(
    stop: &CancellationToken,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(Failure::Canceled),
        result = work => result,
    }
}
