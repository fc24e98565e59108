//! One run, from start to end.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use builder::{
    BaseImages, BuildError, BuildEvents, BuildRequest, Builder, CacheImports, ContextFiles,
    ContextLimits, ContextOptions, ImageError, KnownSecrets, ListError, OwnNames,
    RecordedRepository, Secrets, SshAgents, StoredImage,
};
use container::{Egress, Limits, Network, Peers, Removals};
use oci::{Annotations, Compression, Digest, Platform, Reference, RegistryName, RepositoryName};
use remote::Remote;
use store::Catalog;
use task::AliasImages;
use tokio_util::sync::CancellationToken;

use crate::cache::{CacheExport, NamedCache, cache_of};
use crate::context::{ContextLoader, ContextSource, Loaded, list_failure};
use crate::dependencies::{Dependencies, dependencies, report};
use crate::housekeeper::Housekeeper;
use crate::layout::{LayoutError, store_layout};
use crate::logins::RunLogins;
use crate::name::Destination;
use crate::platforms::{BuiltImages, PlatformEvents, ToldWarnings};
use crate::publish::{Lease, Publication, PublishError, Publisher, abandon};
use crate::steps::{may_send, send};
use crate::unpack::{UnpackError, Unpacked, after};
use crate::variables::{self, has_variables};

/// What runs need of the machine; shared by all runs of a registry.
#[derive(Clone)]
pub struct Engine {
    pub builder: Arc<Builder>,
    pub catalog: Catalog,
    pub registry: RegistryName,
    pub own: OwnNames,
    /// Folder for the workspaces of runs.
    pub workspaces: PathBuf,
    pub context_limits: ContextLimits,
    /// Bounds on each `RUN`.
    pub container_limits: Limits,
    /// Whether the policy lets builds and commands use the host's network.
    pub allow_host_network: bool,
    /// Other registries, to push to.
    pub remote: Remote,
    /// Where base images come from, with access to other registries.
    pub images: Arc<ImagesOf>,
    pub pushes: PushPolicy,
    /// Of the registry.
    pub publisher: Arc<dyn Publisher>,
    /// Carries out commands of `acr`, which work on the registry.
    pub housekeeper: Arc<dyn Housekeeper>,
    /// The images of the aliases that task files have without saying so.
    pub alias_images: AliasImages,
    /// The image with `sh` in which lines of `cmd` are carried out that are more than words.
    pub shell_image: String,
}

impl Engine {
    /// Bounds where containers connect to, besides where they may not anyway.
    pub fn bound_egress(&mut self, egress: &Egress) {
        let limits = &mut self.container_limits;
        limits.egress = std::mem::take(&mut limits.egress).and(egress);
    }

    /// Bounds what all containers of a run have together, by a name of its attempt; and each of them,
    /// so that it does not run at all where there can be no such bounds, and its errors name the limit.
    pub fn bound(&mut self, attempt: &str, cpus: u32, memory: Option<u64>) {
        let limits = &mut self.container_limits;
        let cpus = f64::from(cpus);
        limits.bound_cpus(cpus);
        if let Some(memory) = memory {
            limits.memory = Some(limits.memory.map_or(memory, |max| max.min(memory)));
        }
        let Some(runtime) = &self.builder.runtime else { return };
        let shared = Limits { memory, cpus: Some(cpus), ..Limits::default() };
        match runtime.bound(&format!("run-{attempt}"), &shared) {
            Ok(bound) => limits.within = bound,
            Err(error) => tracing::warn!(%error, attempt, "a run has no bound of its own"),
        }
    }
}

/// Base images, given access to other registries.
pub type ImagesOf = dyn Fn(&Remote) -> Arc<dyn BaseImages> + Send + Sync;

/// Where runs may push to.
#[derive(Clone)]
pub struct PushPolicy {
    /// Other registries, by host.
    pub hosts: Arc<BTreeSet<String>>,
    /// Asked for repositories of the own registry.
    pub refused: Arc<RefusePush>,
}

/// Says why a repository takes no pushes, if it takes none.
pub type RefusePush = dyn Fn(&RepositoryName) -> Option<String> + Send + Sync;

/// One run: for now, one build step.
#[derive(Debug, Clone)]
pub struct RunRequest {
    /// The run's id.
    pub run: String,
    /// The name of the stored task; empty: there is none.
    pub task_name: String,
    pub step: BuildStep,
    pub logins: RunLogins,
    /// What no image may hold.
    pub known_secrets: KnownSecrets,
    /// Bound on all of it, from now on.
    pub timeout: Duration,
    /// Seconds since 1970.
    pub now: i64,
}

/// Build an image, and publish it under its names.
#[derive(Debug, Clone)]
pub struct BuildStep {
    /// As the user gave them; empty: none.
    pub image_names: Vec<String>,
    pub push: bool,
    pub no_cache: bool,
    /// `None`: an empty context.
    pub context: Option<ContextSource>,
    /// Where in the context the Dockerfile is.
    pub dockerfile_path: String,
    /// The Dockerfile's name as the user gave it. If it is another one than the path, the
    /// Dockerfile only travels in the context and is not part of it.
    pub dockerfile_name: Option<String>,
    pub target: Option<String>,
    pub arguments: Vec<Argument>,
    /// At least one; of several the result is an index.
    pub platforms: Vec<Platform>,
    pub network: Network,
    pub source_date_epoch: Option<i64>,
    pub compression: Compression,
    pub options: BuildOptions,
}

/// What a build is told besides.
#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    pub secrets: Secrets,
    pub ssh_agents: Option<Arc<dyn SshAgents>>,
    /// What `RUN`s of the isolated network also reach.
    pub peers: Option<Peers>,
    pub extra_hosts: Vec<(String, IpAddr)>,
    /// Name, soft and hard limit.
    pub ulimits: Vec<(String, u64, u64)>,
    /// In bytes.
    pub shm_size: Option<u64>,
    pub labels: BTreeMap<String, String>,
    pub annotations: Annotations,
    /// By name or number.
    pub no_cache_stages: BTreeSet<String>,
    pub explain_cache: bool,
    /// Images that hold caches of others.
    pub cache_from: Vec<Reference>,
    pub cache_to: Vec<CacheExport>,
    /// Whether results of all stages are put somewhere else too.
    pub shares_results: bool,
    /// Also of layers of base images.
    pub force_compression: bool,
    /// By the names that they take from stages and images.
    pub contexts: BTreeMap<String, NamedContext>,
}

/// What a name stands for in a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedContext {
    Files {
        source: ContextSource,
    },
    Image(Reference),
    /// An image whose blobs are in an uploaded archive.
    Layout {
        source: Digest,
        manifest: Digest,
    },
}

#[derive(Clone, PartialEq, Eq)]
pub struct Argument {
    pub name: String,
    pub value: String,
    pub secret: bool,
}

impl std::fmt::Debug for Argument {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = if self.secret { "***" } else { &self.value };
        write!(f, "{}={value}", self.name)
    }
}

/// Receives what a run says: its build's events, and lines of its own.
#[async_trait]
pub trait RunEvents: BuildEvents {
    async fn message(&self, text: &str);

    /// A value must not be seen from now on.
    fn hide(&self, secret: &str);

    /// An image exists; `reference` is `host/repository:tag` if it has a name.
    async fn image(&self, reference: Option<&str>, digest: &Digest);

    /// The context of a build has come from a git repository.
    async fn repository(&self, repository: &RecordedRepository);
}

/// How a run ended, and what it made.
#[derive(Debug)]
pub enum Outcome<T = Output> {
    Succeeded(Box<T>),
    /// By the user's doing; the text is rendered for people, with file and line.
    Failed {
        error: String,
    },
    Canceled,
    TimedOut,
    /// By ours: trying again may help.
    Error {
        error: String,
    },
    /// Another attempt has taken over; this one has published nothing since.
    Superseded,
}

/// What a run that succeeded has made.
#[derive(Debug)]
pub struct Output {
    pub built: BuiltImages,
    /// Names that now point at the image; empty if it was not pushed.
    pub pushed: Vec<Destination>,
    /// Names in other registries that do, too.
    pub sent: Vec<Reference>,
    /// What had to be sent for that.
    pub sent_bytes: u64,
    /// The git repository that was the context.
    pub repository: Option<RecordedRepository>,
    pub dependencies: Vec<Dependencies>,
}

/// Executes a run. When this returns its containers are gone and its workspace is removed; soon
/// after, if it was canceled, took too long or was dropped ([`container::Runtime::idle`]).
pub async fn execute(
    engine: &Engine,
    request: &RunRequest,
    events: &dyn RunEvents,
    lease: &dyn Lease,
    cancel: &CancellationToken,
) -> Outcome {
    // Fires also when this future is dropped: blocking threads look at it.
    let stop = cancel.child_token();
    let _stop_at_end = stop.clone().drop_guard();
    let work = run(engine, request, events, lease, &stop);
    let outcome = tokio::select! {
        outcome = tokio::time::timeout(request.timeout, work) => match outcome {
            Ok(Ok(output)) => return Outcome::Succeeded(Box::new(output)),
            Ok(Err(failure)) => failure.outcome(),
            Err(_) => Outcome::TimedOut,
        },
        () = cancel.cancelled() => Outcome::Canceled,
    };
    // What another attempt holds by now is not ours to release.
    if lease.holds().await {
        abandon(&engine.catalog, &engine.registry, &request.run).await;
    }
    outcome
}

/// Why a run did not succeed, before it is put into words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    User(String),
    Ours(String),
    Canceled,
    Superseded,
}

impl Failure {
    pub(crate) fn outcome<T>(self) -> Outcome<T> {
        match self {
            Self::User(error) => Outcome::Failed { error },
            Self::Ours(error) => Outcome::Error { error },
            Self::Canceled => Outcome::Canceled,
            Self::Superseded => Outcome::Superseded,
        }
    }

    /// The sentence, without what comes in front of it and after it.
    pub(crate) fn first_line(&self) -> &str {
        match self {
            Self::User(text) | Self::Ours(text) => {
                let line = text.lines().next().unwrap_or_default();
                line.strip_prefix("error: ").unwrap_or(line)
            }
            Self::Canceled => "it was canceled",
            Self::Superseded => "another attempt has taken over",
        }
    }

    /// Says what is meant: a context, a platform, a step.
    pub(crate) fn of(self, what: impl std::fmt::Display) -> Self {
        let say = |text: String| match text.strip_prefix("error: ") {
            Some(text) => format!("error: {what}: {text}"),
            None => text,
        };
        match self {
            Self::User(text) => Self::User(say(text)),
            Self::Ours(text) => Self::Ours(say(text)),
            other => other,
        }
    }

    pub(crate) fn user(error: &dyn std::error::Error, hint: Option<String>) -> Self {
        Self::User(with_hint(error, hint))
    }

    pub(crate) fn ours(error: &dyn std::error::Error) -> Self {
        Self::Ours(with_hint(error, None))
    }
}

/// An error with its causes, and what to do about it.
pub(crate) fn with_hint(error: &dyn std::error::Error, hint: Option<String>) -> String {
    let mut text = format!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    if let Some(hint) = hint {
        text.push_str(&format!("\nhint: {hint}"));
    }
    text
}

async fn run(
    engine: &Engine,
    request: &RunRequest,
    events: &dyn RunEvents,
    lease: &dyn Lease,
    stop: &CancellationToken,
) -> Result<Output, Failure> {
    let engine = &request.logins.engine(engine);
    let step = &request.step;
    // Whatever can be refused is refused before anything is done.
    let known_names = match has_variables(step) {
        true => None,
        false => Some(Names::of(engine, step)?),
    };
    if step.network == Network::Host && !engine.allow_host_network {
        return Err(Failure::User(
            "error: this server does not let builds use the host's network\n\
             hint: an administrator can allow it with `build.allow_host_network`"
                .to_owned(),
        ));
    }
    let workspace = Workspace::create(engine, &request.run).map_err(|error| {
        tracing::error!(%error, run = request.run, "could not make a workspace");
        Failure::ours(&error)
    })?;
    let loader = ContextLoader {
        engine,
        no_cache: step.no_cache,
        is_workspace: false,
        ssh_agents: step.options.ssh_agents.as_ref(),
        events,
        stop,
    };
    let folder = workspace.path().join("context");
    let loaded = match &step.context {
        Some(context) => loader.load(context, folder, engine.context_limits).await?,
        None => Loaded::empty(folder),
    };
    if let Some(repository) = &loaded.repository {
        events.repository(&repository.record).await;
    }
    let named = load_named_contexts(&loader, step, workspace.path(), &loaded).await?;
    request.logins.check(engine, events, stop).await?;
    let text = read_dockerfile(step, &loaded.files, engine.context_limits).await?;
    let (context, name) = context_options(engine, step, loaded.files)?;
    let dockerfile = NamedDockerfile { name, text };
    let repository = loaded.repository.as_ref().map(|repository| &repository.record);
    let (names, request) = match known_names {
        Some(names) => (names, Cow::Borrowed(request)),
        // By now all is known.
        None => {
            let step = variables::render(engine, request, repository)?;
            (Names::of(engine, &step)?, Cow::Owned(RunRequest { step, ..request.clone() }))
        }
    };
    let step = &request.step;
    let Names { images: names, others, caches: cache_names } = names;
    let mut build = build_request(engine, &request, context, named, dockerfile);
    let repository = loaded.repository.map(|repository| {
        // What a commit holds is as old as the commit (architecture.md decision 12).
        build.source_date_epoch = build.source_date_epoch.or(Some(repository.time));
        repository.record
    });
    build.repository.clone_from(&repository);
    lease.begin_steps(true).await.map_err(PublishError::failure)?;
    let started = Instant::now();
    let built = build_images(engine, &build, step, events, stop).await?;
    tracing::debug!(run = request.run, elapsed = ?started.elapsed(), "built");
    for unused in build.imports.unused() {
        events.warning(&unused).await;
    }
    let caches = caches(engine, step, cache_names, &built, events).await?;
    let named = names.iter().filter_map(|name| name.reference.parse().ok());
    let named: Vec<Reference> = named.chain(others.iter().cloned()).collect();
    let pushed = if step.push { names } else { Vec::new() };
    let (run, registry) = (request.run.as_str(), &engine.registry);
    let publication = Publication { run, registry, names: &pushed, caches: &caches };
    let published =
        engine.publisher.publish(&engine.catalog, Some(&built), &publication, lease).await;
    published.map_err(PublishError::failure)?;
    let digest = &built.descriptor().digest;
    for name in &pushed {
        events.image(Some(&name.reference), digest).await;
    }
    let (mut sent, mut sent_bytes) = (Vec::new(), 0);
    for reference in others {
        if step.push {
            send(engine, lease, &reference, &built, stop, &mut sent_bytes).await?;
            events.image(Some(&reference.to_string()), digest).await;
            sent.push(reference);
        }
    }
    if pushed.is_empty() && sent.is_empty() {
        events.image(None, digest).await;
    }
    for NamedCache { name, image } in &caches {
        let (digest, count) = (&image.descriptor.digest, image.results);
        let results = if count == 1 { "result" } else { "results" };
        let text = format!("Put {count} {results} into cache `{}@{digest}`", name.reference);
        events.message(&text).await;
        if image.left_out > 0 {
            let text =
                format!("cache `{}` has no room for {} more", name.reference, image.left_out);
            events.warning(&text).await;
        }
    }
    let commit = repository.as_ref().map(|repository| repository.commit.as_str());
    let dependencies = dependencies(&named, &built, commit);
    events.message(&report(&dependencies)).await;
    Ok(Output { built, pushed, sent, sent_bytes, repository, dependencies })
}

/// Builds for all platforms at once, and makes an index if there are several.
pub(crate) async fn build_images(
    engine: &Engine,
    request: &BuildRequest,
    step: &BuildStep,
    events: &dyn BuildEvents,
    stop: &CancellationToken,
) -> Result<BuiltImages, Failure> {
    let (platforms, annotations) = (step.platforms.as_slice(), &step.options.annotations);
    let request_for = |platform: &Platform| BuildRequest {
        platform: platform.clone(),
        annotations: annotations.of_manifest(platform),
        ..request.clone()
    };
    if let [platform] = platforms {
        let request = request_for(platform);
        let built = builder::build(&engine.builder, &request, events, stop).await;
        let image = built.map_err(|error| build_failure(&error, &request))?;
        return Ok(BuiltImages { images: vec![image], index: None });
    }
    let told = ToldWarnings::default();
    let count = u32::try_from(platforms.len()).unwrap_or(u32::MAX);
    let build = async |(place, platform): (u32, &Platform)| {
        let project = format!("{} {platform}", request.project);
        let request = BuildRequest { project, ..request_for(platform) };
        let events = PlatformEvents { events, platform, place: (place, count), told: &told };
        let built = builder::build(&engine.builder, &request, &events, stop).await;
        built.map_err(|error| build_failure(&error, &request).of(platform))
    };
    let images = futures_util::future::try_join_all((0..).zip(platforms).map(build)).await?;
    let index = builder::index_of(&images, annotations);
    Ok(BuiltImages { images, index: Some(index) })
}

/// The names that a build gives to what it makes.
struct Names {
    images: Vec<Destination>,
    /// In other registries that the run may push to.
    others: Vec<Reference>,
    caches: Vec<Destination>,
}

impl Names {
    fn of(engine: &Engine, step: &BuildStep) -> Result<Self, Failure> {
        let destination = |name: &String, pushed: bool| {
            let parsed = Destination::parse(name, &engine.registry, &engine.own);
            let parsed = parsed.map_err(|error| Failure::user(&error, error.hint()))?;
            match (engine.pushes.refused)(&parsed.repository).filter(|_| pushed) {
                None => Ok(parsed),
                Some(reason) => Err(Failure::User(format!("error: {reason}"))),
            }
        };
        let (mut images, mut others) = (Vec::new(), Vec::new());
        for name in &step.image_names {
            match destination(name, step.push) {
                Ok(own) => images.push(own),
                Err(refused) => others.push(elsewhere(engine, name, step.push).ok_or(refused)?),
            }
        }
        let exports = step.options.cache_to.iter();
        let caches = exports.map(|export| {
            let name = &export.image_name;
            match elsewhere(engine, name, false) {
                None => destination(name, true),
                Some(_) => Err(Failure::User(format!(
                    "error: cache `{name}` is in another registry, and builds put caches only into \
                     their own\n\
                     hint: `cache: enabled` of a `build` step of a task puts them elsewhere too"
                ))),
            }
        });
        let caches: Vec<_> = caches.collect::<Result<_, _>>()?;
        match caches.iter().find(|name| step.push && images.contains(name)) {
            None => Ok(Self { images, others, caches }),
            Some(name) => Err(Failure::User(format!(
                "error: `{}` cannot name both the image and a cache\n\
                 hint: give the cache a tag of its own",
                name.reference
            ))),
        }
    }
}

/// A name in another registry. If it is to be pushed there, the run must be allowed to.
fn elsewhere(engine: &Engine, name: &str, pushed: bool) -> Option<Reference> {
    let reference: Reference = name.parse().ok()?;
    let is_other = reference.has_host && engine.own.registry(&reference).is_none();
    let is_allowed = !pushed || may_send(engine, &reference.host).is_ok();
    let is_fine = is_other && reference.digest.is_none() && is_allowed;
    is_fine.then(|| Reference { tag: reference.tag_or_latest(), ..reference })
}

/// What is to be put into caches.
async fn caches(
    engine: &Engine,
    step: &BuildStep,
    names: Vec<Destination>,
    built: &BuiltImages,
    events: &dyn RunEvents,
) -> Result<Vec<NamedCache>, Failure> {
    let mut caches = Vec::new();
    for (name, export) in names.into_iter().zip(&step.options.cache_to) {
        let image = cache_of(&engine.catalog, built, export.all_steps).await;
        match image.map_err(|error| Failure::ours(&error))? {
            Some(image) => caches.push(NamedCache { name, image }),
            None => {
                let told = format!("no step has a result for cache `{}`", name.reference);
                events.warning(&told).await;
            }
        }
    }
    Ok(caches)
}

/// A run's own folder, gone when the run is.
pub(crate) struct Workspace {
    path: PathBuf,
    removals: Removals,
}

impl Workspace {
    pub(crate) fn create(engine: &Engine, run: &str) -> std::io::Result<Self> {
        let parent = &engine.workspaces;
        let safe = !run.is_empty() && run.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !safe {
            return Err(std::io::Error::other("the run's id is not a file name"));
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        let path = parent.join(run);
        // What a killed server left behind belongs to an earlier attempt of this run.
        container::remove_tree(&path)?;
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        make_context_folder(&path.join("context"))?;
        Ok(Self { path, removals: engine.builder.layers.removals().clone() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

pub(crate) fn make_context_folder(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().mode(0o755).create(path)
}

impl Drop for Workspace {
    fn drop(&mut self) {
        self.removals.remove(std::mem::take(&mut self.path));
    }
}

/// Brings named contexts where the builder can read them. All contexts of a build together
/// have the bounds of one.
async fn load_named_contexts(
    loader: &ContextLoader<'_>,
    step: &BuildStep,
    workspace: &Path,
    main: &Loaded,
) -> Result<BTreeMap<String, builder::NamedContext>, Failure> {
    let ContextLoader { engine, stop, .. } = *loader;
    let mut named = BTreeMap::new();
    if step.options.contexts.is_empty() {
        return Ok(named);
    }
    let mut used = main.used(engine.context_limits).await?;
    for (number, (name, context)) in step.options.contexts.iter().enumerate() {
        let limits = after(engine.context_limits, used);
        let of_context = |failure: Failure| failure.of(format_args!("context `{name}`"));
        let loaded = match context {
            NamedContext::Image(reference) => builder::NamedContext::Image(reference.clone()),
            NamedContext::Files { source } => {
                let root = workspace.join(format!("context-{number}"));
                make_context_folder(&root).map_err(|error| Failure::ours(&error))?;
                let loaded = loader.load(source, root, limits).await.map_err(of_context)?;
                let its_size = loaded.used(engine.context_limits).await.map_err(of_context)?;
                used.bytes += its_size.bytes;
                used.entries += its_size.entries;
                let mut options = ContextOptions::of(loaded.files);
                options.dockerfile = None;
                options.entries_max = engine.context_limits.entries_max;
                builder::NamedContext::Files(options)
            }
            NamedContext::Layout { source, manifest } => {
                let loaded = load_layout(engine, source, limits, stop).await;
                let (blobs, loaded) = loaded.map_err(of_context)?;
                used.bytes += loaded.bytes;
                used.entries += loaded.entries;
                builder::NamedContext::Stored(StoredImage { top: manifest.clone(), blobs })
            }
        };
        named.insert(name.clone(), loaded);
    }
    Ok(named)
}

async fn load_layout(
    engine: &Engine,
    blob: &Digest,
    limits: ContextLimits,
    stop: &CancellationToken,
) -> Result<(BTreeSet<Digest>, Unpacked), Failure> {
    let reader = open_source(engine, blob).await?;
    let (catalog, stop) = (engine.catalog.clone(), stop.clone());
    let stored = blocking(move || store_layout(reader, &catalog, limits, &stop)).await?;
    stored.map_err(|error| match error {
        LayoutError::Archive(error) => unpack_failure(error, engine.context_limits),
        LayoutError::Store(error) => Failure::ours(&error),
        error => Failure::user(&error, None),
    })
}

pub(crate) async fn open_source(
    engine: &Engine,
    blob: &Digest,
) -> Result<Box<dyn Read + Send>, Failure> {
    let reader = engine.catalog.blobs().open(blob, 0).await;
    Ok(reader.map_err(|error| Failure::ours(&error))?.into_blocking())
}

pub(crate) fn image_failure(error: &ImageError) -> Failure {
    match error {
        ImageError::Store { .. } | ImageError::Damaged { .. } => Failure::ours(error),
        error => Failure::user(error, error.hint()),
    }
}

pub(crate) fn unpack_failure(mut error: UnpackError, limits: ContextLimits) -> Failure {
    // What was left for one context is nobody's setting.
    match &mut error {
        UnpackError::TooLarge { max } => *max = limits.bytes_max,
        UnpackError::TooManyEntries { max } => *max = limits.entries_max,
        _ => (),
    }
    match error {
        UnpackError::Canceled => Failure::Canceled,
        error if error.is_users() => Failure::user(&error, error.hint()),
        error => Failure::ours(&error),
    }
}

/// Runs blocking code in a thread of its own; a panic there is a panic here.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(Failure::ours(&error)),
    }
}

/// A Dockerfile is at most this large, in bytes.
pub(crate) const DOCKERFILE_SIZE_MAX: u64 = 1 << 20;

/// How a context is read, and what its Dockerfile is called.
fn context_options(
    engine: &Engine,
    step: &BuildStep,
    files: ContextFiles,
) -> Result<(ContextOptions, String), Failure> {
    let (path, name) = dockerfile_names(step)?;
    let mut context = ContextOptions::of(files);
    let only_travels = is_travel_name(&path) || clean_path(&name).as_ref() != Some(&path);
    context.dockerfile = clean_path(&name).or_else(|| Some(path.clone()));
    if only_travels {
        context.hidden.push(path);
    }
    context.entries_max = engine.context_limits.entries_max;
    Ok((context, name))
}

/// A Dockerfile, and what it is called.
#[derive(Clone)]
pub(crate) struct NamedDockerfile {
    pub(crate) name: String,
    pub(crate) text: String,
}

pub(crate) fn build_request(
    engine: &Engine,
    request: &RunRequest,
    context: ContextOptions,
    named_contexts: BTreeMap<String, builder::NamedContext>,
    dockerfile: NamedDockerfile,
) -> BuildRequest {
    let step = &request.step;
    let arguments = step.arguments.iter();
    let build_args: BTreeMap<_, _> =
        arguments.clone().map(|arg| (arg.name.clone(), arg.value.clone())).collect();
    let secret_args: BTreeSet<_> =
        arguments.filter(|arg| arg.secret).map(|arg| arg.name.clone()).collect();
    let options = &step.options;
    let mut limits = engine.container_limits.clone();
    limits.shm_size = options.shm_size.or(limits.shm_size);
    limits.ulimits.extend(options.ulimits.iter().cloned());
    BuildRequest {
        name: request.run.clone(),
        dockerfile_name: dockerfile.name,
        context: Some(context),
        named_contexts,
        build_args,
        secret_args,
        target: step.target.clone(),
        no_cache: step.no_cache,
        network: step.network,
        peers: options.peers.clone(),
        limits,
        secrets: options.secrets.clone(),
        known_secrets: request.known_secrets.clone(),
        shares_results: options.shares_results
            || options.cache_to.iter().any(|export| export.all_steps),
        ssh_agents: options.ssh_agents.clone(),
        extra_hosts: options.extra_hosts.clone(),
        labels: options.labels.clone(),
        no_cache_stages: options.no_cache_stages.clone(),
        explain_cache: options.explain_cache,
        imports: Arc::new(CacheImports::new(options.cache_from.iter().cloned())),
        project: step.image_names.first().map_or("", |name| project(name)).to_owned(),
        compression: step.compression,
        force_compression: options.force_compression,
        source_date_epoch: step.source_date_epoch,
        ..BuildRequest::new(dockerfile.text, request.now)
    }
}

/// What images of one project have in common: the name without the tag.
fn project(image_name: &str) -> &str {
    match image_name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => image_name,
    }
}

/// A relative path without `.` and `..`, or nothing.
pub(crate) fn clean_path(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    let inside = !path.starts_with('/') && !parts.is_empty() && !parts.contains(&"..");
    inside.then(|| parts.join("/"))
}

/// Whether clients of the managed service have put a Dockerfile into the archive under this
/// name: 32 hex digits, `_`, and its own name.
fn is_travel_name(path: &str) -> bool {
    match path.split_once('_') {
        Some((id, _)) => id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => false,
    }
}

fn no_dockerfile(path: &str, reason: &str) -> Failure {
    Failure::User(format!("error: Dockerfile `{path}` cannot be read: {reason}"))
}

/// The Dockerfile's path in the context, and its name for the user.
fn dockerfile_names(step: &BuildStep) -> Result<(String, String), Failure> {
    let path = clean_path(&step.dockerfile_path)
        .ok_or_else(|| no_dockerfile(&step.dockerfile_path, "it is not in the context"))?;
    let name = step.dockerfile_name.clone().unwrap_or_else(|| path.clone());
    Ok((path, name))
}

/// Reads the Dockerfile. A link is followed inside the context only.
async fn read_dockerfile(
    step: &BuildStep,
    context: &ContextFiles,
    limits: ContextLimits,
) -> Result<String, Failure> {
    let (path, name) = dockerfile_names(step)?;
    let context = context.clone();
    let read = move || {
        let file = match &context {
            ContextFiles::Folder(root) | ContextFiles::Shared { root, .. } => {
                let file = open_in_folder(root, &path);
                Box::new(file.map_err(|error| cannot_open(&name, &error))?)
            }
            ContextFiles::Listed { files, .. } => {
                files.open_path(&path).map_err(|error| match error {
                    ListError::Io(error) => cannot_open(&name, &error),
                    error => list_failure(error, limits),
                })?
            }
        };
        read_text(file, &name)
    };
    blocking(read).await?
}

fn cannot_open(name: &str, error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::NotFound => no_dockerfile(name, "there is no such file"),
        _ => no_dockerfile(name, &error.to_string()),
    }
}

/// Opens a file of a folder. Links are followed inside the folder only.
pub(crate) fn open_in_folder(root: &Path, path: &str) -> std::io::Result<std::fs::File> {
    use rustix::fs::{Mode, OFlags, ResolveFlags};
    let root = rustix::fs::open(root, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = std::fs::File::from(rustix::fs::openat2(&root, path, flags, Mode::empty(), inside)?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(std::io::Error::other("it is not a file")),
    }
}

fn read_text(file: Box<dyn Read + Send>, name: &str) -> Result<String, Failure> {
    let refused = |reason: &str| no_dockerfile(name, reason);
    let mut bytes = Vec::new();
    let read = file.take(DOCKERFILE_SIZE_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| Failure::ours(&error))?;
    if bytes.len() as u64 > DOCKERFILE_SIZE_MAX {
        return Err(refused(&format!("it is larger than {DOCKERFILE_SIZE_MAX} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| refused("it is not UTF-8 text"))
}

fn build_failure(error: &BuildError, request: &BuildRequest) -> Failure {
    let mut text = error.render(&request.dockerfile_name, &request.dockerfile);
    if error.hint().is_none() {
        let is_root = rustix::process::geteuid().is_root();
        text.extend(root_hint(error, is_root).map(|hint| format!("hint: {hint}\n")));
    }
    match error {
        BuildError::Canceled => Failure::Canceled,
        error if error.is_users() => Failure::User(text),
        error => {
            let source = std::error::Error::source(error);
            tracing::error!(%error, ?source, "a build failed by our fault");
            Failure::Ours(text)
        }
    }
}

/// What to do when a process without root was refused something.
fn root_hint(error: &(dyn std::error::Error + 'static), is_root: bool) -> Option<&'static str> {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let is_refused = causes.any(|cause| {
        let cause = cause.downcast_ref::<std::io::Error>();
        cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::PermissionDenied)
    });
    (is_refused && !is_root).then_some(
        "the server is neither root nor in a user namespace, as `RUN` and whatever else needs \
         the files of an image must be; `refit doctor` tells what to change",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_without_root_learns_what_is_needed() {
        let error = |errno: rustix::io::Errno| BuildError::Io {
            doing: "unpack a layer".into(),
            source: errno.into(),
        };
        assert!(
            root_hint(&error(rustix::io::Errno::PERM), false).unwrap().contains("refit doctor")
        );
        assert_eq!(root_hint(&error(rustix::io::Errno::PERM), true), None);
        assert_eq!(root_hint(&error(rustix::io::Errno::NOSPC), false), None);
    }
}
