//! One build: parse, plan, execute.
//!
//! Parsing and planning are pure and live in `dockerfile`. Execution is one future per
//! stage, all polled together; a stage waits for another only where it reads from it, and
//! everything that takes long happens in blocking threads or in containers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use container::{Limits, Network, Peers, Runtime};
use dockerfile::{DockerfileError, Plan, PlanOptions, Source, Span, StageId, StagePlan};
use oci::{Compression, Descriptor, Digest, Platform, Reference};
use store::{BlobStore, CacheEntry};
use tokio::sync::{OnceCell, Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::agents::SshAgents;
use crate::assemble::{ImageLayer, StageImage, assemble};
use crate::cache::{BuildCache, KeyHasher};
use crate::caches::CacheFolders;
use crate::checks::Checks;
use crate::context::{BuildContext, ContextError, ContextOptions};
use crate::error::BuildError;
use crate::event::{BuildEvents, StepEnd, StepNumber};
use crate::exchange::CacheImports;
use crate::explain::CacheExplanation;
use crate::image::{BaseImage, BaseImages, ImageError, StoredImage, stored_image};
use crate::layers::Layers;
use crate::record::{
    BaseRole, BuildCost, BuildRecord, RECORD_VERSION, RecordedBase, RecordedDownload, RecordedLine,
    RecordedOutput, RecordedRepository, RecordedStep, StepResult,
};
use crate::secret::{KnownSecrets, Secrets};
use crate::secret_scan::SecretScan;
use crate::{run, stage};

/// Shorter secret arguments are found everywhere, and references are to stay what they are.
const RECORDED_SECRET_MIN: usize = 4;

/// What builds need of the machine they run on; shared by all builds of a process.
#[derive(Clone)]
pub struct Builder {
    pub blobs: Arc<dyn BlobStore>,
    pub images: Arc<dyn BaseImages>,
    pub cache: Arc<dyn BuildCache>,
    pub layers: Arc<Layers>,
    /// Without one `RUN` is refused.
    pub runtime: Option<Arc<Runtime>>,
    /// How many `RUN`s go on at once.
    pub runs: Arc<Semaphore>,
    /// Folders of `RUN --mount=type=cache`.
    pub cache_folders: Arc<CacheFolders>,
    /// Fetches what `ADD` names by address.
    pub downloads: Arc<remote::Downloads>,
    pub policy: RunPolicy,
    /// Keys whose results are being made, so that each is made once.
    pub in_flight: Arc<InFlight>,
}

/// What a `RUN` may ask for besides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunPolicy {
    /// `--network=host`.
    pub host_network: bool,
    /// `--security=insecure`: root of the machine, in fact.
    pub insecure: bool,
}

/// What to build. Everything that can change the result is in here, in the base images, and
/// in what `RUN`s fetch.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// Names the build's containers: letters, digits and `-`, such as a run id.
    pub name: String,
    pub dockerfile: String,
    /// The Dockerfile's name in messages.
    pub dockerfile_name: String,
    /// `None`: nothing to copy from.
    pub context: Option<ContextOptions>,
    /// The git repository that the context comes from, for the record.
    pub repository: Option<RecordedRepository>,
    /// Further ones, by the names that they take from stages and images.
    pub named_contexts: BTreeMap<String, NamedContext>,
    pub build_args: BTreeMap<String, String>,
    /// Build arguments whose values are not to be shown or recorded.
    pub secret_args: BTreeSet<String>,
    pub target: Option<String>,
    pub platform: Platform,
    /// Use no results of earlier builds; the new ones are kept all the same.
    pub no_cache: bool,
    /// The same for these stages only, by name or number.
    pub no_cache_stages: BTreeSet<String>,
    /// Tell for each step why the cache had its result or not.
    pub explain_cache: bool,
    /// Caches of others, besides the own one.
    pub imports: Arc<CacheImports>,
    /// Builds of one project are compared for that.
    pub project: String,
    /// What `RUN --mount=type=secret` may use.
    pub secrets: Secrets,
    /// What no layer may hold, besides those and secret build arguments.
    pub known_secrets: KnownSecrets,
    /// Whether others may be given [`Built::results`] of all stages.
    pub shares_results: bool,
    /// What `RUN --mount=type=ssh` may use.
    pub ssh_agents: Option<Arc<dyn SshAgents>>,
    /// Added to `/etc/hosts` of every `RUN`.
    pub extra_hosts: Vec<(String, IpAddr)>,
    pub network: Network,
    /// What `RUN`s of the isolated network also reach.
    pub peers: Option<Peers>,
    pub limits: Limits,
    /// How new layers are compressed.
    pub compression: Compression,
    /// Layers of base images too, those apart that are compressed so already.
    pub force_compression: bool,
    /// Added to the image after all instructions.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
    /// Time of everything that is made, in seconds since 1970; files are no younger.
    pub source_date_epoch: Option<i64>,
    /// Seconds since 1970.
    pub now: i64,
}

/// What a name stands for instead of a stage or an image.
#[derive(Debug, Clone)]
pub enum NamedContext {
    /// The files of a folder.
    Files(ContextOptions),
    /// An image under another name.
    Image(Reference),
    /// An image that came along with the request.
    Stored(StoredImage),
}

impl BuildRequest {
    /// A text that is kept, without the values of secret arguments of at least so many bytes.
    pub(crate) fn without_secret_args(&self, text: &str, len_min: usize) -> String {
        let values = self.secret_args.iter().filter_map(|name| self.build_args.get(name));
        let mut values: Vec<_> = values.filter(|value| value.len() >= len_min).collect();
        // The longest first: one may be a part of another.
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        values.into_iter().fold(text.to_owned(), |text, value| text.replace(value.as_str(), "***"))
    }

    /// A build of a Dockerfile for this machine, with nothing else set.
    pub fn new(dockerfile: impl Into<String>, now: i64) -> Self {
        Self {
            name: "build".to_owned(),
            dockerfile: dockerfile.into(),
            dockerfile_name: "Dockerfile".to_owned(),
            context: None,
            repository: None,
            named_contexts: BTreeMap::new(),
            build_args: BTreeMap::new(),
            secret_args: BTreeSet::new(),
            target: None,
            platform: Platform::host(),
            no_cache: false,
            no_cache_stages: BTreeSet::new(),
            explain_cache: false,
            imports: Arc::default(),
            project: String::new(),
            secrets: Secrets::new(),
            known_secrets: KnownSecrets::default(),
            shares_results: false,
            ssh_agents: None,
            extra_hosts: Vec::new(),
            network: Network::default(),
            peers: None,
            limits: Limits::default(),
            compression: Compression::default(),
            force_compression: false,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            source_date_epoch: None,
            now,
        }
    }

    /// The time that new layers carry.
    pub(crate) fn layer_time(&self) -> i64 {
        self.source_date_epoch.unwrap_or(self.now)
    }
}

/// An image whose layers and config are in the blob store. Nothing names it yet.
#[derive(Debug, Clone)]
pub struct Built {
    pub descriptor: Descriptor,
    pub manifest: Bytes,
    pub config: Bytes,
    /// What the config says it is for.
    pub platform: Platform,
    pub layers: Vec<ImageLayer>,
    pub record: BuildRecord,
    /// Of all stages; without those that hold a secret, and those that a secret build argument may
    /// have had a part in: a key must not help to guess its value.
    pub results: Vec<StepResult>,
    pub cost: BuildCost,
}

/// Builds an image. Ends early, with nothing left running, when `cancel` fires or the future
/// is dropped.
pub async fn build(
    builder: &Builder,
    request: &BuildRequest,
    events: &dyn BuildEvents,
    cancel: &CancellationToken,
) -> Result<Built, BuildError> {
    let started = Instant::now();
    let dockerfile = dockerfile::parse(&request.dockerfile)?;
    // Triggers of base images may read from stages that nothing else needs. Those are known
    // only once the bases are; what was done until then is found in the cache.
    let mut also = BTreeSet::new();
    // Layers that are found damaged count as missing from then on: beginning again fetches
    // them, executes their instructions, or says whose they are.
    let mut damaged = BTreeSet::new();
    let options = plan_options(request, &also);
    let checks = Checks::new(&dockerfile, &request.dockerfile_name, options, events);
    let scan = SecretScan::of(request);
    checks.tell().await?;
    loop {
        let plan = dockerfile::plan(&dockerfile, &plan_options(request, &also))?;
        if also.is_empty() && damaged.is_empty() {
            warn(&plan, events).await;
            tokio::select! {
                checked = check_policy(&plan, builder, request) => checked?,
                () = cancel.cancelled() => return Err(BuildError::Canceled),
            }
        }
        let build = Build::new(builder, request, &plan, &checks, scan.clone(), events, cancel);
        let built = tokio::select! {
            built = build.execute(started) => built,
            () = cancel.cancelled() => Err(BuildError::Canceled),
        };
        let error = match built {
            Ok(built) => return Ok(built),
            Err(BuildError::NeedsStage(number)) if also.insert(number) => continue,
            Err(error) => error,
        };
        match error.damaged_layer() {
            Some(layer) if damaged.insert(layer.clone()) => {
                events
                    .warning(&format!("layer {layer} is damaged in the store: beginning again"))
                    .await;
            }
            _ => return Err(error),
        }
    }
}

fn plan_options(request: &BuildRequest, also: &BTreeSet<usize>) -> PlanOptions {
    PlanOptions {
        build_args: request.build_args.clone(),
        target: request.target.clone(),
        platform: request.platform.clone(),
        build_platform: Platform::host(),
        contexts: request.named_contexts.iter().map(planned_context).collect(),
        also: also.clone(),
    }
}

fn planned_context(
    (name, context): (&String, &NamedContext),
) -> (String, dockerfile::NamedContext) {
    let planned = match context {
        NamedContext::Image(reference) => dockerfile::NamedContext::Image(reference.clone()),
        NamedContext::Files(_) | NamedContext::Stored(_) => dockerfile::NamedContext::Own,
    };
    (name.clone(), planned)
}

/// Refuses what the server does not let a build have, before its first instruction: images, and
/// rights of `RUN`s.
async fn check_policy(
    plan: &Plan,
    builder: &Builder,
    request: &BuildRequest,
) -> Result<(), BuildError> {
    let mut asked = BTreeSet::new();
    for stage in &plan.stages {
        for source in [&stage.base].into_iter().chain(&stage.sources) {
            if let Source::Image { reference, .. } = source
                && asked.insert(reference.to_string())
            {
                let checked = builder.images.check(reference).await;
                checked.map_err(|error| BuildError::Image { error, at: stage.at })?;
            }
        }
        for (run, at) in stage.runs() {
            let rights = (run::network(run.network, request), run.insecure);
            run::check_policy(builder.policy, &request.limits.egress, rights, at)?;
        }
    }
    Ok(())
}

async fn warn(plan: &Plan, events: &dyn BuildEvents) {
    for name in &plan.unused_args {
        let text = format!("build argument `{name}` is not used: no `ARG {name}` declares it");
        events.warning(&text).await;
    }
}

type BaseCell = OnceCell<Arc<BaseImage>>;

/// A build under way.
pub(crate) struct Build<'a> {
    pub(crate) builder: &'a Builder,
    pub(crate) request: &'a BuildRequest,
    pub(crate) plan: &'a Plan,
    checks: &'a Checks<'a>,
    /// Finds secrets in layers, if there are any.
    pub(crate) scan: Option<Arc<SecretScan>>,
    pub(crate) events: &'a dyn BuildEvents,
    pub(crate) cancel: &'a CancellationToken,
    /// Fires when the build ends, however it ends: blocking threads look at it.
    pub(crate) stop: CancellationToken,
    _stop_at_end: DropGuard,
    /// What each stage has become, once it has.
    finished: Vec<watch::Sender<Option<Arc<StageImage>>>>,
    /// Base images by reference and platform, each resolved once.
    bases: Mutex<HashMap<(String, String), Arc<BaseCell>>>,
    context: OnceCell<Arc<BuildContext>>,
    /// Those of the request that are files, by name.
    named_contexts: BTreeMap<&'a str, OnceCell<Arc<BuildContext>>>,
    steps: AtomicU32,
    notes: Mutex<Notes>,
}

/// What is noted on the way, for the record and the costs.
#[derive(Default)]
pub(crate) struct Notes {
    pub(crate) bases: Vec<RecordedBase>,
    pub(crate) steps: Vec<RecordedStep>,
    pub(crate) evaluated: Vec<RecordedLine>,
    pub(crate) results: Vec<StepResult>,
    pub(crate) downloads: Vec<RecordedDownload>,
    /// Digests of contexts, by name, that were read by an earlier build.
    pub(crate) remembered_contexts: BTreeMap<Option<String>, Digest>,
    /// Layers that this build has written.
    pub(crate) made: BTreeSet<Digest>,
    /// Layers that instructions made, now or before, and where those are.
    pub(crate) layers: Vec<(ImageLayer, Span)>,
    pub(crate) cost: BuildCost,
    /// Entries of the build cache that are to be written with the image.
    pub(crate) memos: Vec<(Digest, CacheEntry)>,
    /// Of steps that have not finished.
    pub(crate) explanations: HashMap<StepNumber, CacheExplanation>,
}

impl<'a> Build<'a> {
    fn new(
        builder: &'a Builder,
        request: &'a BuildRequest,
        plan: &'a Plan,
        checks: &'a Checks<'a>,
        scan: Option<Arc<SecretScan>>,
        events: &'a dyn BuildEvents,
        cancel: &'a CancellationToken,
    ) -> Self {
        let stop = cancel.child_token();
        Self {
            builder,
            request,
            plan,
            checks,
            scan,
            events,
            cancel,
            _stop_at_end: stop.clone().drop_guard(),
            stop,
            finished: plan.stages.iter().map(|_| watch::Sender::new(None)).collect(),
            bases: Mutex::default(),
            context: OnceCell::new(),
            named_contexts: (request.named_contexts.keys())
                .map(|name| (name.as_str(), OnceCell::new()))
                .collect(),
            steps: AtomicU32::new(0),
            notes: Mutex::default(),
        }
    }

    /// Builds all stages, and writes the image.
    async fn execute(&self, started: Instant) -> Result<Built, BuildError> {
        let stages = (0..self.plan.stages.len()).map(|index| self.stage(StageId(index)));
        futures_util::future::try_join_all(stages).await?;
        self.finish(started).await
    }

    /// Builds one stage and tells those that wait for it.
    async fn stage(&self, id: StageId) -> Result<(), BuildError> {
        let image = stage::execute(self, id).await?;
        self.finished[id.0].send_replace(Some(Arc::new(image)));
        Ok(())
    }

    pub(crate) fn stage_plan(&self, id: StageId) -> &'a StagePlan {
        &self.plan.stages[id.0]
    }

    /// What another stage has become, as soon as it is finished.
    pub(crate) async fn finished_stage(&self, id: StageId) -> Arc<StageImage> {
        let mut receiver = self.finished[id.0].subscribe();
        let image = receiver.wait_for(Option::is_some).await.expect("the build keeps the sender");
        Arc::clone(image.as_ref().expect("waited until it is there"))
    }

    /// What a source has become: a stage, or an image, which is pulled at need.
    pub(crate) async fn source_image(
        &self,
        source: &Source,
        stage: &StagePlan,
        at: Span,
        role: BaseRole,
        step: StepNumber,
    ) -> Result<Arc<StageImage>, BuildError> {
        match source {
            Source::Scratch => Ok(Arc::new(StageImage::scratch(&self.request.platform))),
            Source::Stage(id) => Ok(self.finished_stage(*id).await),
            Source::Context { name, platform } => {
                let Some(NamedContext::Stored(image)) = self.request.named_contexts.get(name)
                else {
                    let message = format!("context `{name}` is no image");
                    return Err(DockerfileError { message, at, hint: None }.into());
                };
                let platform = platform.as_ref().unwrap_or(&self.request.platform);
                let base = stored_image(&*self.builder.blobs, name, image, platform).await;
                let base = base.map_err(|error| BuildError::Image { error, at })?;
                self.checks.image_is_known(at, &base).await?;
                self.image_on(&base, name, format!("oci-layout://{name}"), stage, at, role)
            }
            Source::Image { reference, platform } => {
                let platform = platform.as_ref().unwrap_or(&self.request.platform);
                let base = self.base(reference, platform, step).await;
                let base = base.map_err(|error| BuildError::Image { error, at })?;
                self.checks.image_is_known(at, &base).await?;
                let name = reference.familiar();
                self.image_on(&base, &name, full_reference(reference), stage, at, role)
            }
        }
    }

    /// Notes that a stage uses an image.
    fn image_on(
        &self,
        base: &BaseImage,
        name: &str,
        recorded: String,
        stage: &StagePlan,
        at: Span,
        role: BaseRole,
    ) -> Result<Arc<StageImage>, BuildError> {
        self.notes().bases.push(RecordedBase {
            stage: stage.number,
            role,
            reference: recorded,
            digest: base.top.clone(),
            manifest: base.digest.clone(),
        });
        let image = StageImage::on(base).map_err(|reason| {
            let reference = name.to_owned();
            BuildError::Image { error: ImageError::Unusable { reference, reason }, at }
        })?;
        Ok(Arc::new(image))
    }

    async fn base(
        &self,
        reference: &Reference,
        platform: &Platform,
        step: StepNumber,
    ) -> Result<Arc<BaseImage>, ImageError> {
        let cell = {
            let mut bases = self.bases.lock().unwrap_or_else(PoisonError::into_inner);
            let key = (reference.to_string(), platform.to_string());
            Arc::clone(bases.entry(key).or_default())
        };
        let resolve = async {
            let fetched = std::sync::atomic::AtomicU64::new(0);
            let progress = |bytes| {
                fetched.fetch_add(bytes, Ordering::Relaxed);
            };
            let resolving = self.builder.images.resolve(reference, platform, &progress);
            let told = tell_progress(resolving, self.events, step, &fetched);
            let base = told.await?;
            self.notes().cost.pulled += fetched.load(Ordering::Relaxed);
            Ok(Arc::new(base))
        };
        cell.get_or_try_init(|| resolve).await.cloned()
    }

    /// The context, listed and hashed when the first instruction reads from it.
    pub(crate) async fn context(&self) -> Result<Arc<BuildContext>, BuildError> {
        let open = async {
            let Some(options) = &self.request.context else {
                let source = std::io::Error::new(std::io::ErrorKind::NotFound, "no context");
                return Err(BuildError::Io { doing: "read the build context".into(), source });
            };
            Ok(self.open_context("load build context", options).await?)
        };
        self.context.get_or_try_init(|| open).await.cloned()
    }

    /// The files of a named context, if that is what a source is.
    pub(crate) async fn named_files(
        &self,
        source: &Source,
    ) -> Result<Option<Arc<BuildContext>>, BuildError> {
        let Source::Context { name, .. } = source else { return Ok(None) };
        let (Some(NamedContext::Files(options)), Some(cell)) =
            (self.request.named_contexts.get(name), self.named_contexts.get(name.as_str()))
        else {
            return Ok(None);
        };
        let open = async {
            let opened = self.open_context(&format!("load context {name}"), options).await;
            opened.map_err(|error| BuildError::NamedContext { name: name.clone(), error })
        };
        cell.get_or_try_init(|| open).await.cloned().map(Some)
    }

    async fn open_context(
        &self,
        step_name: &str,
        options: &ContextOptions,
    ) -> Result<Arc<BuildContext>, ContextError> {
        let step = self.next_step();
        self.events.step_started(step, step_name).await;
        let (options, stop) = (options.clone(), self.stop.clone());
        let opened = blocking(move || BuildContext::open(&options, &stop)).await;
        let end = match &opened {
            Ok(_) => StepEnd::Done,
            Err(error) => StepEnd::Failed { error: error.to_string() },
        };
        self.events.step_finished(step, end).await;
        opened.map(Arc::new)
    }

    pub(crate) fn next_step(&self) -> StepNumber {
        StepNumber(self.steps.fetch_add(1, Ordering::Relaxed) + 1)
    }

    pub(crate) fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the image of the target stage, and what there is to say of the build.
    async fn finish(&self, started: Instant) -> Result<Built, BuildError> {
        let stage = self.finished_stage(self.plan.target).await;
        let made = self.notes().made.clone();
        self.builder.layers.check(&stage.layers, &made).await?;
        self.search_layers(&stage.layers).await?;
        let mut stage = StageImage::clone(&stage);
        if self.request.force_compression {
            self.recompress(&mut stage.layers).await?;
        }
        let labels = self.request.labels.clone();
        stage.config.config.labels.extend(labels);
        let annotations = self.request.annotations.clone();
        let (fixed, now) = (self.request.source_date_epoch, self.request.now);
        let image = assemble(&stage, annotations, fixed, now);
        let config_digest = Digest::of(&image.config);
        let mut notes = std::mem::take(&mut *self.notes());
        // At once, since all of it is waiting for the disk.
        tokio::try_join!(
            self.store(&image.config, &config_digest),
            self.store(&image.manifest, &image.descriptor.digest),
            self.keep_memos(&notes.memos),
        )?;
        // Stages end in any order; the record is the same each time.
        notes.bases.sort_by(|a, b| (a.stage, &a.reference).cmp(&(b.stage, &b.reference)));
        notes.bases.dedup();
        notes.steps.sort_by_key(|step| (step.stage, step.line));
        notes.evaluated.sort_by_key(|line| (line.stage, line.line));
        notes
            .downloads
            .sort_by(|a, b| (a.stage, a.line, &a.address).cmp(&(b.stage, b.line, &b.address)));
        notes.cost.milliseconds = milliseconds(started.elapsed());
        let bases = notes.bases.iter_mut().map(|base| &mut base.reference);
        let downloads = notes.downloads.iter_mut().map(|download| &mut download.address);
        for text in bases.chain(downloads) {
            *text = self.request.without_secret_args(text, RECORDED_SECRET_MIN);
        }
        let layer_sizes = stage.layers.iter().map(|layer| layer.descriptor.size);
        let record = BuildRecord {
            version: RECORD_VERSION,
            builder: env!("CARGO_PKG_VERSION").to_owned(),
            platform: self.request.platform.to_string(),
            definition: definition(self.request),
            context: context_digest(None, &self.context, &notes),
            repository: self.request.repository.clone(),
            named_contexts: (self.named_contexts.iter())
                .filter_map(|(name, files)| {
                    let digest = context_digest(Some(*name), files, &notes)?;
                    Some(((*name).to_owned(), digest))
                })
                .collect(),
            source_date_epoch: self.request.source_date_epoch,
            bases: notes.bases,
            steps: notes.steps,
            evaluated: notes.evaluated,
            downloads: notes.downloads,
            output: RecordedOutput {
                manifest: image.descriptor.digest.clone(),
                config: config_digest,
                layers: stage.layers.iter().map(|layer| layer.descriptor.digest.clone()).collect(),
                size: layer_sizes.sum::<u64>() + image.config.len() as u64,
            },
        };
        Ok(Built {
            descriptor: image.descriptor,
            manifest: image.manifest,
            config: image.config,
            platform: stage.config.platform(),
            layers: stage.layers,
            record,
            results: notes.results,
            cost: notes.cost,
        })
    }

    /// Stores a small blob.
    async fn store(&self, bytes: &Bytes, digest: &Digest) -> Result<(), BuildError> {
        let mut upload = self.builder.blobs.begin_upload(digest.algorithm()).await?;
        upload.write(bytes.clone()).await?;
        upload.commit(Some(digest)).await?;
        Ok(())
    }

    async fn keep_memos(&self, memos: &[(Digest, CacheEntry)]) -> Result<(), BuildError> {
        let puts = memos.iter().map(|(key, entry)| self.builder.cache.put(key, entry));
        futures_util::future::try_join_all(puts).await?;
        Ok(())
    }
}

/// The digest of what the build may read of a context; none if nothing was read of it.
fn context_digest(
    name: Option<&str>,
    context: &OnceCell<Arc<BuildContext>>,
    notes: &Notes,
) -> Option<Digest> {
    match context.get() {
        Some(context) => Some(context.digest()),
        None => notes.remembered_contexts.get(&name.map(str::to_owned)).cloned(),
    }
}

pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The reference with the tag that it means.
fn full_reference(reference: &Reference) -> String {
    Reference { tag: reference.tag_or_latest(), ..reference.clone() }.to_string()
}

/// The digest of what was asked for. Of a secret argument only its name counts: a digest
/// must not help to guess the value.
fn definition(request: &BuildRequest) -> Digest {
    let mut key = KeyHasher::new("definition");
    key.text("dockerfile", &request.dockerfile);
    key.optional("target", request.target.as_deref());
    key.text("platform", &request.platform.to_string());
    for (name, value) in &request.build_args {
        let secret = request.secret_args.contains(name);
        key.text("argument", name);
        key.optional("value", Some(value.as_str()).filter(|_| !secret));
    }
    for (name, context) in &request.named_contexts {
        key.text("context", name);
        match context {
            NamedContext::Files(_) => key.text("is", "files"),
            NamedContext::Image(reference) => key.text("is image", &full_reference(reference)),
            NamedContext::Stored(_) => key.text("is", "stored image"),
        }
    }
    for (name, value) in &request.labels {
        key.text("label", name);
        key.text("value", value);
    }
    key.finish()
}

/// How often a transfer's progress is told.
const PROGRESS_PERIOD: Duration = Duration::from_millis(500);

/// Tells how far a transfer is while it goes on.
pub(crate) async fn tell_progress<T>(
    transfer: impl Future<Output = T>,
    events: &dyn BuildEvents,
    step: StepNumber,
    moved: &std::sync::atomic::AtomicU64,
) -> T {
    let mut transfer = std::pin::pin!(transfer);
    let mut told = 0;
    loop {
        if let Ok(done) = tokio::time::timeout(PROGRESS_PERIOD, &mut transfer).await {
            return done;
        }
        let now = moved.load(Ordering::Relaxed);
        if now > told {
            events.progress(step, now, None).await;
            told = now;
        }
    }
}

/// Runs blocking code in a thread of its own; a panic there is a panic here.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down: nobody will ask again.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Keys whose results are being made just now: whoever comes second waits, and then finds
/// the result in the cache.
#[derive(Default)]
pub struct InFlight {
    keys: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

impl InFlight {
    pub(crate) async fn enter(&self, key: &Digest) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
            // Nobody else can be at a lock that only the map holds.
            keys.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(keys.entry(key.clone()).or_default())
        };
        lock.lock_owned().await
    }
}
