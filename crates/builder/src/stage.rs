//! One stage: its base, then its instructions in order.
//!
//! For each instruction that makes a layer: say everything that the result depends on in a
//! cache key, look it up, and only else do it. The keys of `RUN` hold the layers below it;
//! those of `COPY` and `WORKDIR` hold what the instruction saw of the image instead, so that
//! their layers are found again on another base.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use container::Network;
use dockerfile::{
    CopyOperation, CopySource, Operation, OperationKind, RunOperation, Source, Span, StageId,
};
use oci::Digest;
use serde::{Deserialize, Serialize};
use store::CacheEntry;
use tokio::io::AsyncReadExt;
use tokio::sync::{OnceCell, OwnedMutexGuard};

use crate::archive;
use crate::assemble::{ImageLayer, StageImage};
use crate::build::{Build, NamedContext, blocking, milliseconds};
use crate::cache::KeyHasher;
use crate::context::BuildContext;
use crate::copy::{CopyError, CopyPlan, CopyRequest, plan, plan_folder};
use crate::download::{self, Downloads, Place, is_download};
use crate::error::BuildError;
use crate::event::{StepEnd, StepNumber};
use crate::exchange::ImportedResult;
use crate::explain::{
    Base, CacheCause, CacheExplanation, Detail, Earlier, InputKind, Missed, Trail, TrailBuild,
    TrailStep, base_cause,
};
use crate::layers::{self, EarlierBlocks, LayerPlace, NewLayer, compressor};
use crate::memo::{self, Memo, Remembered};
use crate::mounts::Sources;
use crate::proof::{LayerKey, Proof};
use crate::record::{BaseRole, RecordedLine, RecordedStep, StepCost, StepResult};
use crate::run;
use crate::secret_scan::HeldSecret;
use crate::tree::{NoFiles, Tree, check_read, resolve};
use crate::user::{AccountFiles, Accounts, Owner};

/// Executes a stage to its end.
pub(crate) async fn execute(build: &Build<'_>, id: StageId) -> Result<StageImage, BuildError> {
    let mut stage = Stage::start(build, id).await?;
    let planned = build.stage_plan(id).operations(&stage.image.config, &stage.image.args)?;
    let makes_layer = |op: &&Operation| op.kind != OperationKind::Config;
    stage.texts = planned.operations.iter().filter(makes_layer).map(|op| op.text.clone()).collect();
    let mut done = Ok(());
    for operation in &planned.operations {
        done = stage.operation(operation).await;
        if done.is_err() {
            break;
        }
    }
    // What was made before a failure is compared with all the same.
    let kept = stage.keep_trail().await;
    done?;
    kept?;
    stage.image.args = planned.args;
    Ok(stage.image)
}

/// A stage under way.
struct Stage<'a> {
    build: &'a Build<'a>,
    id: StageId,
    image: StageImage,
    /// The image's files so far, made when an instruction needs to look at them.
    view: Option<Arc<dyn Tree>>,
    /// `build 2/5`: what steps are called.
    label: String,
    position: usize,
    total: usize,
    /// Nothing of this stage is taken from the cache.
    no_cache: bool,
    /// The instructions that may make layers, as written.
    texts: Vec<String>,
    base: Option<Base>,
    /// The names of the steps that made the layers on the base.
    made_by: Vec<String>,
    trail: Mutex<TrailUnderWay>,
    /// Those of the trail, once they were asked for.
    earlier_builds: OnceCell<Trail>,
}

/// What becomes a build of the stage's [`Trail`].
#[derive(Default)]
struct TrailUnderWay {
    steps: Vec<TrailStep>,
    /// The stored trail may not have it yet.
    is_new: bool,
}

/// What a cache entry says.
#[derive(Serialize, Deserialize)]
struct CachedLayer {
    layer: oci::Descriptor,
    diff_id: Digest,
    /// Seconds since 1970.
    created: i64,
    /// Names the layers that it was made on, of a key that does not hold them. Absent in entries of
    /// older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made_on: Option<Digest>,
    /// The blob that tells of its compressed blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blocks: Option<Digest>,
    /// Absent in entries of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<Origin>,
}

/// How an entry came to be: only for explanations.
#[derive(Serialize, Deserialize)]
struct Origin {
    run: String,
    /// Seconds since 1970.
    at: i64,
    /// The key of the trail that has it.
    trail: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    detail: Option<Detail>,
    /// The blob with the detail, if that is large.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    detail_blob: Option<Digest>,
}

/// What a trail is worth when the cache is full, in milliseconds: it is small, and without it
/// nothing can be explained.
const TRAIL_COST: u64 = 1000;

/// No detail is larger, in bytes: some ten times what a full listing has.
const DETAIL_SIZE_MAX: u64 = 64 << 20;

/// A larger detail goes into a blob, so that a hit does not read it. In bytes of JSON.
const DETAIL_INLINE_MAX: usize = 4 << 10;

/// What the cache has for a key.
enum Found {
    Layer(Box<Made>),
    Nothing(Miss),
}

/// A key whose result is to be made, by nobody else at the same time.
struct Miss {
    key: LayerKey,
    why: WhyMissed,
    _alone: OwnedMutexGuard<()>,
}

/// What an entry was found to be.
enum Lookup {
    Hit(Box<CachedLayer>, u64),
    Nothing(WhyMissed),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum WhyMissed {
    NotAsked(&'static str),
    Absent,
    Damaged,
}

/// A step that has been announced.
struct Step {
    number: StepNumber,
    name: String,
    text: String,
    started: Instant,
}

impl<'a> Stage<'a> {
    /// Resolves the base.
    async fn start(build: &'a Build<'a>, id: StageId) -> Result<Self, BuildError> {
        let plan = build.stage_plan(id);
        let is_step = matches!(plan.base, Source::Image { .. } | Source::Context { .. });
        // How many steps there will be does not depend on the base. An error in here comes
        // again when the base is known.
        let scratch = StageImage::scratch(&build.request.platform);
        let planned = plan.operations(&scratch.config, &[]).unwrap_or_default();
        let steps = planned.operations.iter().filter(|op| op.kind != OperationKind::Config).count();
        let label = match (&plan.name, build.plan.stages.len()) {
            (_, 1) => String::new(),
            (Some(name), _) => format!("{name} "),
            (None, _) => format!("stage-{} ", plan.number),
        };
        let total = steps + usize::from(is_step);
        let stages = &build.request.no_cache_stages;
        let no_cache = stages.contains(&plan.number.to_string())
            || plan.name.as_ref().is_some_and(|name| stages.contains(name));
        let (view, position) = (None, 0);
        let mut stage = Self {
            build,
            id,
            image: scratch,
            view,
            label,
            position,
            total,
            no_cache,
            texts: Vec::new(),
            base: None,
            made_by: Vec::new(),
            trail: Mutex::default(),
            earlier_builds: OnceCell::new(),
        };
        let role = match build.plan.result_stands_on(id) {
            true => BaseRole::Runtime,
            false => BaseRole::Buildtime,
        };
        stage.image = match &plan.base {
            Source::Image { reference, .. } => {
                let step = stage.begin(&format!("FROM {}", reference.familiar())).await;
                let number = step.number;
                let base = build.source_image(&plan.base, plan, plan.at, role, number).await;
                if let Ok(base) = &base {
                    stage.set_base(reference.familiar(), base);
                    stage.explain_base(number).await?;
                }
                let base = stage.end(step, base).await?;
                StageImage::clone(&base)
            }
            Source::Context { name, .. } => {
                let from = format!("FROM {name}");
                let step = stage.begin(&from).await;
                match stage.build.named_files(&plan.base).await {
                    Ok(None) => {
                        let number = step.number;
                        let base = build.source_image(&plan.base, plan, plan.at, role, number);
                        let base = base.await;
                        if let Ok(base) = &base {
                            stage.set_base(name.clone(), base);
                            stage.explain_base(number).await?;
                        }
                        let base = stage.end(step, base).await?;
                        StageImage::clone(&base)
                    }
                    Ok(Some(files)) => {
                        let layer = stage.files_layer(files, plan.at, &step).await;
                        let mut image = stage.image.clone();
                        if let Some(layer) = stage.end_with(step, layer).await? {
                            image.record(&from, Some(layer));
                        }
                        stage.base = Some(Base {
                            name: name.clone(),
                            digest: None,
                            layers: image.layers.len(),
                        });
                        image
                    }
                    Err(error) => return stage.end(step, Err(error)).await,
                }
            }
            other => {
                let base = build.source_image(other, plan, plan.at, role, StepNumber(0)).await?;
                let (name, layers) = (stage.source_name(other), base.layers.len());
                stage.base = Some(Base { name, digest: None, layers });
                StageImage::clone(&base)
            }
        };
        Ok(stage)
    }

    fn source_name(&self, source: &Source) -> String {
        match source {
            Source::Stage(id) => {
                let plan = self.build.stage_plan(*id);
                plan.name.clone().unwrap_or_else(|| plan.number.to_string())
            }
            _ => "scratch".to_owned(),
        }
    }

    /// Notes what the stage stands on: an image that was just found.
    fn set_base(&mut self, name: String, image: &StageImage) {
        let number = self.build.stage_plan(self.id).number;
        let notes = self.build.notes();
        let recorded = notes.bases.iter().find(|base| base.stage == number);
        let digest = recorded.map(|base| base.digest.to_string());
        self.base = Some(Base { name, digest, layers: image.layers.len() });
    }

    async fn operation(&mut self, operation: &Operation) -> Result<(), BuildError> {
        let secrets = &self.build.request.secret_args;
        self.image.has_secret |= operation.args.iter().any(|name| secrets.contains(name));
        let layer = match &operation.kind {
            OperationKind::Config => None,
            OperationKind::Run(run) => self.run(operation, run).await?,
            OperationKind::Copy(copy) => self.copy(operation, copy).await?,
            OperationKind::Workdir { path } => self.workdir(operation, path).await?,
        };
        let plan = self.build.stage_plan(self.id);
        if layer.is_some() {
            self.view = None;
            self.made_by.push(self.step_name(&operation.text));
        } else if operation.at != plan.at {
            // One of the base's triggers has no line of its own.
            let line = RecordedLine { stage: plan.number, line: operation.at.line };
            self.build.notes().evaluated.push(line);
        }
        let created_by = self.build.request.without_secret_args(&operation.created_by, 1);
        self.image.record(&created_by, layer);
        self.image.set_config(&operation.config, operation.author.as_deref());
        Ok(())
    }

    /// `RUN`.
    async fn run(
        &mut self,
        operation: &Operation,
        run: &RunOperation,
    ) -> Result<Option<(ImageLayer, i64)>, BuildError> {
        let step = self.begin(&operation.text).await;
        let made = self.run_layer(operation, run, &step).await;
        self.end_with(step, made.map(Some)).await
    }

    async fn run_layer(
        &mut self,
        operation: &Operation,
        run: &RunOperation,
        step: &Step,
    ) -> Result<Made, BuildError> {
        let at = operation.at;
        let rights = (run::network(run.network, self.build.request), run.insecure);
        let egress = &self.build.request.limits.egress;
        run::check_policy(self.build.builder.policy, egress, rights, at)?;
        let sources = Sources::find(self.build, self.id, run, step.number).await?;
        self.image.has_secret |= sources.have_secret();
        // Their diff IDs are in the key.
        self.build.builder.layers.prove(&self.image.layers, &self.build.stop).await?;
        let key = self.run_key(run, &sources);
        sources.check_read()?;
        let miss = match self.find(at, step, key).await? {
            Found::Layer(made) => return Ok(*made),
            Found::Nothing(miss) => miss,
        };
        let detail = self.run_detail(run, &sources);
        let work = |earlier| self.execute_run(operation, run, sources, step.number, earlier);
        self.make(at, step, miss, detail, work).await
    }

    /// What [`Self::run_key`] is made of.
    fn run_detail(&self, run: &RunOperation, sources: &Sources) -> Detail {
        let mut detail = self.detail();
        let request = self.build.request;
        detail.set_layers(self.base.as_ref(), self.image.layers.iter().map(|l| &l.diff_id));
        for (name, value) in &run.arg_values {
            match request.secret_args.contains(name) {
                true => detail.input(InputKind::Secret, name, b""),
                false => self.input(&mut detail, InputKind::Argument, name, value),
            }
        }
        for entry in &run.env {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            self.input(&mut detail, InputKind::Variable, name, value);
        }
        for (target, digest) in sources.digests(run, self.are_times_promised()) {
            self.input(&mut detail, InputKind::Mount, &target, digest.as_str());
        }
        let platform = self.image.config.platform().to_string();
        self.input(&mut detail, InputKind::Platform, "platform", &platform);
        let hosts = format!("{:?}", request.extra_hosts);
        let network = format!("{:?} {}", run::network(run.network, request), run.insecure);
        for (name, value) in [
            ("the shell", run.args.join("\0")),
            ("the script", run.script.as_ref().map_or("", |script| &script.text).to_owned()),
            ("the user", run.user.clone()),
            ("the working directory", run.cwd.clone()),
            ("the network mode", network),
            ("the list of hosts", hosts),
        ] {
            self.input(&mut detail, InputKind::Other, name, &value);
        }
        detail
    }

    /// What [`Self::key`] is made of.
    fn detail(&self) -> Detail {
        let (mut detail, request) = (Detail::default(), self.build.request);
        let time = request.source_date_epoch.map(|time| time.to_string());
        let time = time.unwrap_or_default();
        detail.input(
            InputKind::Other,
            "the compressor",
            compressor(request.compression).as_bytes(),
        );
        detail.input(InputKind::Other, "`SOURCE_DATE_EPOCH`", time.as_bytes());
        detail
    }

    /// Notes an input. Not even a digest is kept of what has a secret in it.
    fn input(&self, detail: &mut Detail, kind: InputKind, name: &str, value: &str) {
        match self.build.request.without_secret_args(value, 1) == value {
            true => detail.input(kind, name, value.as_bytes()),
            false => detail.input(InputKind::Secret, name, b""),
        }
    }

    fn run_key(&self, run: &RunOperation, sources: &Sources) -> LayerKey {
        let mut key = self.key("run");
        let below: Vec<&str> = self.image.layers.iter().map(|l| l.diff_id.as_str()).collect();
        key.list("layers", &below);
        // The stage's own one: a stage for the building machine is the same for every target.
        key.text("platform", &self.image.config.platform().to_string());
        key.list("args", &run.args);
        key.list("env", &run.env);
        for (name, value) in &run.arg_values {
            key.text("argument", name);
            key.text("value", value);
        }
        key.text("user", &run.user);
        key.text("cwd", &run.cwd);
        key.text(
            "network",
            match run::network(run.network, self.build.request) {
                Network::Isolated => "isolated",
                Network::None => "none",
                Network::Host => "host",
            },
        );
        key.number("insecure", u64::from(run.insecure));
        if let Some(script) = &run.script {
            key.text("script", &script.name);
            key.text("text", &script.text);
        }
        for (name, address) in &self.build.request.extra_hosts {
            key.text("host", name);
            key.text("address", &address.to_string());
        }
        sources.add_to(run, self.are_times_promised(), &mut key);
        LayerKey::of_layers(key.finish())
    }

    async fn execute_run(
        &self,
        operation: &Operation,
        run: &RunOperation,
        sources: Sources,
        step: StepNumber,
        earlier: Option<Arc<EarlierBlocks>>,
    ) -> Result<NewLayer, BuildError> {
        let at = operation.at;
        let accounts = self.accounts(AccountFiles::BOTH).await?;
        let identity = accounts.identity(&run.user);
        let identity = identity.map_err(|error| BuildError::User { error, at })?;
        let mounts = sources.prepare(self.build, run).await?;
        let below = &self.image.layers;
        let place = self.place(at);
        run::execute(self.build, below, operation, run, identity, mounts, step, earlier, place)
            .await
    }

    /// `COPY` and `ADD`.
    async fn copy(
        &mut self,
        operation: &Operation,
        copy: &CopyOperation,
    ) -> Result<Option<(ImageLayer, i64)>, BuildError> {
        let step = self.begin(&operation.text).await;
        let made = self.copy_layer(operation, copy, &step).await;
        self.end_with(step, made.map(Some)).await
    }

    async fn copy_layer(
        &mut self,
        operation: &Operation,
        copy: &CopyOperation,
        step: &Step,
    ) -> Result<Made, BuildError> {
        let (build, at) = (self.build, operation.at);
        let memo = self.memo(copy);
        if let Some(memo) = &memo
            && let Some(made) = self.remembered(memo, at, step).await?
        {
            return Ok(made);
        }
        let context = match &copy.from {
            // Nothing is read from a context that nothing is copied from.
            None if copy.sources.iter().all(|source| source.address.is_some()) => None,
            None => Some(build.context().await?),
            Some(from) => build.named_files(from).await?,
        };
        let mut copied_image = None;
        let source: Arc<dyn Tree> = match (&context, &copy.from) {
            (Some(context), _) => Arc::clone(context) as Arc<dyn Tree>,
            (None, None) => Arc::new(NoFiles),
            (None, Some(from)) => {
                let stage = build.stage_plan(self.id);
                let role = BaseRole::Buildtime;
                let image = build.source_image(from, stage, at, role, step.number).await?;
                self.image.has_secret |= image.has_secret;
                self.view_of(&copied_image.insert(image).layers).await?
            }
        };
        let source = self.with_downloads(copy, source, at, step).await?;
        // What stands by itself does not look at what is below.
        let image: Arc<dyn Tree> = match copy.link {
            true => Arc::new(NoFiles),
            false => self.view().await?,
        };
        let owner = self.owner(copy.chown.as_deref(), at).await?;
        let folder_time = self.folder_time();
        let (plan, source) = {
            let (cloned, below) = (copy.clone(), Arc::clone(&image));
            let planned = blocking(move || {
                let copy = cloned;
                let is_archive = |path: &str| {
                    let unpack = match is_download(path) {
                        true => copy.unpack_downloads,
                        false => copy.unpack,
                    };
                    if unpack { archive::is_archive(&*source, path) } else { Ok(false) }
                };
                let request = CopyRequest {
                    source: &*source,
                    image: &*below,
                    sources: &copy.sources,
                    documents: &copy.documents,
                    destination: &copy.destination,
                    owner,
                    mode: copy.chmod.as_ref(),
                    parents: copy.parents,
                    excludes: &copy.excludes,
                    is_archive: &is_archive,
                    folder_time,
                };
                let planned = plan(&request);
                (planned, source)
            });
            let (planned, source) = planned.await;
            check_read(&*source)?;
            check_read(&*image)?;
            match planned {
                Ok(plan) => (plan, source),
                Err(error) => {
                    return Err(name_download(copy_error(error, context.as_deref(), at), copy));
                }
            }
        };
        for pattern in &plan.unmatched {
            let text = format!("`{pattern}` of line {} matches nothing", at.line);
            build.events.warning(&text).await;
        }
        let below = memo::looks_below(copy).then_some(&self.image.layers[..]);
        let images = below.into_iter().chain(copied_image.as_ref().map(|image| &image.layers[..]));
        let images: Vec<_> = images.collect();
        let (key, plan) = self.copy_key("copy", plan, &source, owner, &images, copy.link).await?;
        let memo = memo.filter(|_| memo::is_all_of(&plan));
        let made = self.write_layer(key.clone(), plan, source, image, owner, at, step);
        let made = made.await.map_err(|error| name_download(error, copy))?;
        if let (Some(memo), Some(context)) = (&memo, &context) {
            self.remember(memo, key.digest, context);
        }
        Ok(made)
    }

    /// What is copied from, with the files that the instruction fetches.
    async fn with_downloads(
        &self,
        copy: &CopyOperation,
        source: Arc<dyn Tree>,
        at: Span,
        step: &Step,
    ) -> Result<Arc<dyn Tree>, BuildError> {
        if copy.sources.iter().all(|source| source.address.is_none()) {
            return Ok(source);
        }
        let place = Place {
            stage: self.build.stage_plan(self.id).number,
            step: step.number,
            no_cache: self.build.request.no_cache || self.no_cache,
        };
        Ok(Arc::new(Downloads::fetch(self.build, copy, source, at, &place).await?))
    }

    /// All files of a context as a layer; none if it has none.
    async fn files_layer(
        &self,
        files: Arc<BuildContext>,
        at: Span,
        step: &Step,
    ) -> Result<Option<Made>, BuildError> {
        let (source, folder_time) = (Arc::clone(&files) as Arc<dyn Tree>, self.folder_time());
        let planned = blocking(move || {
            let request = CopyRequest {
                source: &*source,
                image: &NoFiles,
                sources: &[CopySource {
                    pattern: String::new(),
                    pivot: String::new(),
                    address: None,
                }],
                documents: &[],
                destination: "/",
                owner: None,
                mode: None,
                parents: false,
                excludes: &[],
                is_archive: &|_| Ok(false),
                folder_time,
            };
            let planned = plan(&request);
            (planned, source)
        });
        let (plan, source) = planned.await;
        check_read(&*source)?;
        let plan = plan.map_err(|error| BuildError::Copy { error, at })?;
        if plan.is_empty() {
            return Ok(None);
        }
        let image = Arc::new(NoFiles);
        let (key, plan) = self.copy_key("copy", plan, &source, None, &[], true).await?;
        self.write_layer(key, plan, source, image, None, at, step).await.map(Some)
    }

    /// Finds the layer of a plan, or writes it.
    #[expect(clippy::too_many_arguments, reason = "all that a layer is written from")]
    async fn write_layer(
        &self,
        key: LayerKey,
        plan: CopyPlan,
        source: Arc<dyn Tree>,
        image: Arc<dyn Tree>,
        owner: Option<Owner>,
        at: Span,
        step: &Step,
    ) -> Result<Made, BuildError> {
        let proof = key.proof;
        let miss = match self.find(at, step, key).await? {
            Found::Layer(made) => return Ok(*made),
            Found::Nothing(miss) => miss,
        };
        let (mut detail, listed) = (self.detail(), Arc::clone(&source));
        let time_max = self.build.request.source_date_epoch;
        let listing = blocking(move || {
            detail.set_files(&plan, &*listed, time_max);
            (detail, plan)
        });
        let (mut detail, plan) = listing.await;
        if proof == Proof::Layers {
            detail.set_layers(self.base.as_ref(), self.image.layers.iter().map(|l| &l.diff_id));
        }
        if !plan.archives.is_empty() {
            self.input(&mut detail, InputKind::Other, "the owner", &format!("{owner:?}"));
        }
        let build = self.build;
        let place = self.place(at);
        let write = |earlier| layers::write_copy(build, plan, source, image, place, earlier);
        self.make(at, step, miss, detail, write).await
    }

    /// A key of what a layer will hold, and the plan again. The layers below count only where
    /// archives are unpacked, since what they meet there is known only when they are read; and not
    /// `alone`, where nothing is below. `images` are those that were looked at.
    async fn copy_key(
        &self,
        kind: &str,
        plan: CopyPlan,
        source: &Arc<dyn Tree>,
        owner: Option<Owner>,
        images: &[&[ImageLayer]],
        alone: bool,
    ) -> Result<(LayerKey, CopyPlan), BuildError> {
        let (mut key, source) = (self.key(kind), Arc::clone(source));
        let time_max = self.build.request.source_date_epoch;
        let planned = blocking(move || {
            plan.add_to(&*source, time_max, &mut key)?;
            Ok((key, plan))
        });
        let doing = || "read what an instruction copies".to_owned();
        let planned: std::io::Result<_> = planned.await;
        let (mut key, plan) =
            planned.map_err(|source| BuildError::Io { doing: doing(), source })?;
        if plan.archives.is_empty() {
            return Ok((LayerKey::of_seen(key.finish(), images), plan));
        }
        if !alone {
            let below = self.image.layers.iter().map(|layer| layer.diff_id.as_str());
            key.list("layers", &below.collect::<Vec<_>>());
        }
        let owner = owner.map(|owner| format!("{}:{}", owner.uid, owner.gid));
        key.optional("owner", owner.as_deref());
        let key = match alone {
            true => LayerKey::of_seen(key.finish(), images),
            false => LayerKey::of_layers(key.finish()),
        };
        Ok((key, plan))
    }

    /// `WORKDIR`: a layer only if the folder is not there.
    async fn workdir(
        &mut self,
        operation: &Operation,
        path: &str,
    ) -> Result<Option<(ImageLayer, i64)>, BuildError> {
        let step = self.begin(&operation.text).await;
        let made = self.workdir_layer(operation, path, &step).await;
        self.end_with(step, made).await
    }

    async fn workdir_layer(
        &mut self,
        operation: &Operation,
        path: &str,
        step: &Step,
    ) -> Result<Option<Made>, BuildError> {
        let at = operation.at;
        let image = self.view().await?;
        let user = operation.config.user.clone();
        let owner = match user.is_empty() {
            true => None,
            false => Some(self.user_owner(&user).await?),
        };
        let plan = plan_folder(&*image, path, owner, self.folder_time());
        check_read(&*image)?;
        let plan = plan.map_err(|error| BuildError::Copy { error, at })?;
        if plan.is_empty() {
            return Ok(None);
        }
        let source = Arc::clone(&image);
        let images = [&self.image.layers[..]];
        let key = self.copy_key("workdir", plan, &source, owner, &images, false);
        let (key, plan) = key.await?;
        self.write_layer(key, plan, source, image, owner, at, step).await.map(Some)
    }

    /// Who owns a folder that `WORKDIR` makes: the stage's user.
    async fn user_owner(&self, user: &str) -> Result<Owner, BuildError> {
        // A user that the image does not have yet owns nothing: root does.
        let accounts = self.accounts(AccountFiles::of_owner(user)).await?;
        Ok(accounts.owner(user).unwrap_or(Owner { uid: 0, gid: 0 }))
    }

    async fn owner(&mut self, chown: Option<&str>, at: Span) -> Result<Option<Owner>, BuildError> {
        let Some(chown) = chown else { return Ok(None) };
        let owner = self.accounts(AccountFiles::of_owner(chown)).await?.owner(chown);
        owner.map(Some).map_err(|error| BuildError::User { error, at })
    }

    /// Starts a cache key with what counts for every layer.
    fn key(&self, kind: &str) -> KeyHasher {
        let request = self.build.request;
        let mut key = KeyHasher::new(kind);
        key.text("compressor", &compressor(request.compression));
        let time = request.source_date_epoch.map(|time| time.to_string());
        key.optional("time", time.as_deref());
        key
    }

    /// Finds a layer in the cache.
    async fn find(&self, at: Span, step: &Step, key: LayerKey) -> Result<Found, BuildError> {
        let (build, digest) = (self.build, &key.digest);
        let mut alone = build.builder.in_flight.enter(digest).await;
        self.trail().steps.push(TrailStep::new(
            &self.build.request.without_secret_args(&step.text, 1),
            digest.clone(),
        ));
        let mut found = match self.cache_is_off() {
            Some(flag) => Lookup::Nothing(WhyMissed::NotAsked(flag)),
            None => self.cached(digest).await?,
        };
        if let Lookup::Nothing(WhyMissed::Absent | WhyMissed::Damaged) = found
            && !build.request.imports.is_empty()
        {
            // A registry of this build's choice may take its time, and others want this key too.
            drop(alone);
            if let Some(imported) = build.imported(digest, step.number).await? {
                return Ok(Found::Layer(Box::new(
                    self.take_imported(at, step, key, imported).await,
                )));
            }
            alone = build.builder.in_flight.enter(digest).await;
            found = self.cached(digest).await?;
        }
        match found {
            Lookup::Hit(cached, cost) => {
                Ok(Found::Layer(Box::new(self.hit(at, step, key, *cached, cost).await)))
            }
            Lookup::Nothing(why) => Ok(Found::Nothing(Miss { key, why, _alone: alone })),
        }
    }

    /// The flag by which nothing is looked for.
    fn cache_is_off(&self) -> Option<&'static str> {
        match (self.build.request.no_cache, self.no_cache) {
            (true, _) => Some("--no-cache"),
            (_, true) => Some("--no-cache-filter"),
            _ => None,
        }
    }

    /// Notes what was found, after its step was added to the trail.
    async fn hit(
        &self,
        at: Span,
        step: &Step,
        key: LayerKey,
        cached: CachedLayer,
        cost: u64,
    ) -> Made {
        let proof = key.proof_of(cached.made_on.as_ref());
        self.note_hit(&cached, proof, step).await;
        let layer = ImageLayer { descriptor: cached.layer, diff_id: cached.diff_id };
        {
            let mut notes = self.build.notes();
            notes.cost.cache_hits += 1;
            notes.cost.saved_milliseconds += cost;
        }
        self.record(at, key, &layer, cached.created, true);
        Made { layer, created: cached.created, proof: Some(proof), cpu: 0 }
    }

    /// The layer of a `COPY` that was planned before from the same list, on the same layers.
    async fn remembered(
        &self,
        memo: &Memo,
        at: Span,
        step: &Step,
    ) -> Result<Option<Made>, BuildError> {
        if self.cache_is_off().is_some() {
            return Ok(None);
        }
        let Some(entry) = self.build.builder.cache.get(&memo.key).await? else { return Ok(None) };
        let Some(remembered) = Remembered::parse(&entry.value) else { return Ok(None) };
        if memo.looks_below {
            // Their diff IDs are in the key.
            self.build.builder.layers.prove(&self.image.layers, &self.build.stop).await?;
        }
        let Lookup::Hit(cached, cost) = self.cached(&remembered.layer).await? else {
            return Ok(None);
        };
        // There is a memo only of what has no archive and is copied from a context.
        let images = [&self.image.layers[..]];
        let images = if memo.looks_below { &images[..] } else { &[] };
        let key = LayerKey::of_seen(remembered.layer, images);
        self.trail().steps.push(TrailStep::new(
            &self.build.request.without_secret_args(&step.text, 1),
            key.digest.clone(),
        ));
        let context = memo.context.clone();
        self.build.notes().remembered_contexts.insert(context, remembered.context);
        Ok(Some(self.hit(at, step, key, *cached, cost).await))
    }

    /// Where the key of a `COPY`'s layer is remembered, if it can be.
    fn memo(&self, copy: &CopyOperation) -> Option<Memo> {
        let request = self.build.request;
        let (options, context) = match &copy.from {
            None => (request.context.as_ref()?, None),
            Some(Source::Context { name, .. }) => match request.named_contexts.get(name)? {
                NamedContext::Files(options) => (options, Some(name.clone())),
                _ => return None,
            },
            Some(_) => return None,
        };
        let layers = self.image.layers.iter().map(|layer| &layer.diff_id);
        let key = memo::key(self.key("memo"), copy, options, layers, request.source_date_epoch)?;
        Some(Memo { key, context, looks_below: memo::looks_below(copy) })
    }

    /// The memo is written with the image: no build waits for it alone.
    fn remember(&self, memo: &Memo, layer: Digest, context: &BuildContext) {
        let value = Remembered { layer, context: context.digest() }.to_json();
        let entry = CacheEntry { value, blobs: Vec::new(), cost: TRAIL_COST };
        self.build.notes().memos.push((memo.key.clone(), entry));
    }

    /// Uses a result of another cache. The own one does not hear of it.
    async fn take_imported(
        &self,
        at: Span,
        step: &Step,
        key: LayerKey,
        imported: ImportedResult,
    ) -> Made {
        let ImportedResult { layer, created, from } = imported;
        // Only what is in the own cache can be evicted from it.
        self.trail().steps.pop();
        if self.build.request.explain_cache {
            let cause = CacheCause::Imported { from, at: created };
            self.explain(step.number, CacheExplanation::hit(cause)).await;
        }
        self.build.notes().cost.cache_hits += 1;
        let proof = Some(key.proof);
        self.record(at, key, &layer, created, true);
        Made { layer, created, proof, cpu: 0 }
    }

    /// Makes a layer and puts it into the cache.
    async fn make<W: Future<Output = Result<NewLayer, BuildError>>>(
        &self,
        at: Span,
        step: &Step,
        miss: Miss,
        detail: Detail,
        work: impl FnOnce(Option<Arc<EarlierBlocks>>) -> W,
    ) -> Result<Made, BuildError> {
        let build = self.build;
        if build.request.explain_cache {
            let cause = self.why_missed(&miss, &detail).await?;
            self.explain(step.number, CacheExplanation::miss(cause)).await;
        }
        self.trail().is_new = true;
        let earlier = self.earlier_blocks(&detail).await?;
        let new = match work(earlier).await {
            Ok(new) => new,
            Err(error) => {
                // Only what was made can have been evicted.
                self.trail().steps.pop();
                return Err(error);
            }
        };
        let created = build.request.layer_time();
        let took = milliseconds(step.started.elapsed());
        let held = build.held_secret(&new);
        match &held {
            None => self.keep(&miss.key, &new, created, took, detail).await?,
            Some(held) => self.keep_apart(&new, held, at).await?,
        }
        let cpu = milliseconds(new.usage.cpu);
        {
            let mut notes = build.notes();
            notes.made.insert(new.layer.descriptor.digest.clone());
            notes.cost.cache_misses += 1;
            notes.cost.written += new.layer.descriptor.size;
            notes.cost.reused += new.reused;
            notes.cost.cpu_milliseconds += cpu;
            notes.cost.memory_peak = notes.cost.memory_peak.max(new.usage.memory_peak);
        }
        self.record(at, miss.key, &new.layer, created, held.is_none());
        Ok(Made { layer: new.layer, created, proof: None, cpu })
    }

    /// Notes the layer of an instruction, and whether others may have it.
    fn record(&self, at: Span, key: LayerKey, layer: &ImageLayer, created: i64, is_shared: bool) {
        let LayerKey { digest: key, proof, .. } = key;
        let mut notes = self.build.notes();
        notes.layers.push((layer.clone(), at));
        if is_shared && !self.image.has_secret {
            notes.results.push(StepResult { key: key.clone(), layer: layer.clone(), created });
        }
        notes.steps.push(RecordedStep {
            stage: self.build.stage_plan(self.id).number,
            line: at.line,
            key,
            layer: layer.descriptor.digest.clone(),
            diff_id: layer.diff_id.clone(),
            proof: Some(proof),
        });
    }

    /// A cached layer and what making it cost. A damaged entry is no entry; the next result
    /// replaces it.
    async fn cached(&self, key: &Digest) -> Result<Lookup, BuildError> {
        let builder = self.build.builder;
        let Some(entry) = builder.cache.get(key).await? else {
            return Ok(Lookup::Nothing(WhyMissed::Absent));
        };
        let Ok(cached) = serde_json::from_str::<CachedLayer>(&entry.value) else {
            tracing::warn!(%key, "cache entry is not readable, building again");
            return Ok(Lookup::Nothing(WhyMissed::Damaged));
        };
        Ok(match builder.layers.is_there(&cached.layer).await? {
            true => Lookup::Hit(Box::new(cached), entry.cost),
            false => Lookup::Nothing(WhyMissed::Damaged),
        })
    }

    async fn keep(
        &self,
        key: &LayerKey,
        new: &NewLayer,
        created: i64,
        cost: u64,
        detail: Detail,
    ) -> Result<(), BuildError> {
        let builder = self.build.builder;
        let (layer, diff_id) = (new.layer.descriptor.clone(), new.layer.diff_id.clone());
        let mut blobs = vec![layer.digest.clone()];
        blobs.extend(new.index.clone());
        blobs.extend(new.blocks.clone());
        let json = serde_json::to_vec(&detail).expect("plain structs serialize");
        let (detail, detail_blob) = match json.len() <= DETAIL_INLINE_MAX {
            true => (Some(detail), None),
            false => {
                let digest = Digest::of(&json);
                let mut upload = builder.blobs.begin_upload(oci::Algorithm::Sha256).await?;
                upload.write(json.into()).await?;
                upload.commit(Some(&digest)).await?;
                blobs.push(digest.clone());
                (None, Some(digest))
            }
        };
        let request = self.build.request;
        let (run, trail) = (request.name.clone(), self.trail_key());
        let origin = Some(Origin { run, at: request.now, trail, detail, detail_blob });
        let blocks = new.blocks.clone();
        let made_on = key.layers.clone();
        let value = CachedLayer { layer, diff_id, created, made_on, blocks, origin };
        let value = serde_json::to_string(&value).expect("plain structs serialize");
        let entry = CacheEntry { value, blobs, cost };
        // At once: then both are in one commit of the database.
        let put = async { Ok(builder.cache.put(&key.digest, &entry).await?) };
        let read = async {
            match &new.index {
                Some(index) => builder.layers.keep_read(&new.layer, index).await,
                None => Ok(()),
            }
        };
        tokio::try_join!(put, read).map(drop)
    }

    /// Keeps a layer with a secret for this build only, and for stages that the image does not have:
    /// no other build is given it, with whatever secrets, and each makes its own.
    async fn keep_apart(
        &self,
        new: &NewLayer,
        held: &HeldSecret,
        at: Span,
    ) -> Result<(), BuildError> {
        self.trail().steps.pop();
        self.build.warn_of(held, at, "so the build cache does not keep it").await;
        match &new.index {
            Some(index) => self.build.builder.layers.keep_read(&new.layer, index).await,
            None => Ok(()),
        }
    }

    fn place(&self, at: Span) -> LayerPlace {
        LayerPlace { at, is_in_result: self.build.plan.result_stands_on(self.id) }
    }

    fn trail(&self) -> MutexGuard<'_, TrailUnderWay> {
        self.trail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names the stage among all that share the cache, whatever is in it.
    fn trail_key(&self) -> Digest {
        let (request, plan) = (self.build.request, self.build.stage_plan(self.id));
        let mut key = KeyHasher::new("trail");
        key.text("project", &request.project);
        key.text("dockerfile", &request.dockerfile_name);
        match &plan.name {
            Some(name) => key.text("stage", name),
            None => key.number("stage", plan.number as u64),
        }
        key.finish()
    }

    /// Adds this build to the stage's trail, unless it only repeated another one.
    async fn keep_trail(&self) -> Result<(), BuildError> {
        let under_way = std::mem::take(&mut *self.trail());
        if !under_way.is_new || under_way.steps.is_empty() {
            return Ok(());
        }
        let build = TrailBuild { base: self.base.clone(), steps: under_way.steps };
        let mut trail = self.read_trail().await?;
        if trail.builds.contains(&build) {
            return Ok(());
        }
        trail.add(build);
        let entry = CacheEntry { value: trail.to_json(), blobs: Vec::new(), cost: TRAIL_COST };
        self.build.builder.cache.put(&self.trail_key(), &entry).await?;
        Ok(())
    }

    /// The builds before, as they were when the stage first asked for them.
    async fn earlier_builds(&self) -> Result<&Trail, BuildError> {
        self.earlier_builds.get_or_try_init(|| self.read_trail()).await
    }

    async fn read_trail(&self) -> Result<Trail, BuildError> {
        let entry = self.build.builder.cache.get(&self.trail_key()).await?;
        Ok(entry.map(|entry| Trail::parse(&entry.value)).unwrap_or_default())
    }

    async fn note_hit(&self, cached: &CachedLayer, proof: Proof, step: &Step) {
        let origin = cached.origin.as_ref();
        if origin.is_none_or(|origin| origin.trail != self.trail_key()) {
            self.trail().is_new = true;
        }
        if self.build.request.explain_cache {
            let cause = match origin {
                Some(Origin { run, at, .. }) => {
                    CacheCause::MadeBy { run: run.clone(), at: *at, proof: Some(proof) }
                }
                None => CacheCause::OlderVersion,
            };
            self.explain(step.number, CacheExplanation::hit(cause)).await;
        }
    }

    async fn explain(&self, step: StepNumber, explanation: CacheExplanation) {
        self.build.events.explained(step, &explanation).await;
        self.build.notes().explanations.insert(step, explanation);
    }

    /// Tells if the base is another one than in the build before.
    async fn explain_base(&self, step: StepNumber) -> Result<(), BuildError> {
        if !self.build.request.explain_cache {
            return Ok(());
        }
        let trail = self.earlier_builds().await?;
        let Some(before) = trail.builds.first() else { return Ok(()) };
        let is_same = |a: &Base, b: &Base| a.name == b.name && a.digest == b.digest;
        if let (Some(before), Some(after)) = (&before.base, &self.base)
            && !is_same(before, after)
        {
            let cause = base_cause(Some(before), Some(after));
            self.explain(step, CacheExplanation::miss(cause)).await;
        }
        Ok(())
    }

    async fn why_missed(&self, miss: &Miss, detail: &Detail) -> Result<CacheCause, BuildError> {
        match miss.why {
            WhyMissed::NotAsked(flag) => {
                return Ok(CacheCause::NotAsked { flag: flag.to_owned() });
            }
            WhyMissed::Damaged => return Ok(CacheCause::Damaged),
            WhyMissed::Absent => (),
        }
        let trail = self.earlier_builds().await?;
        let steps = self.trail().steps.clone();
        let (texts, made_by) = (&self.texts, &self.made_by);
        let missed = Missed { steps: &steps, texts, detail, made_by };
        let mut nearest: Option<(usize, CacheCause)> = None;
        for build in &trail.builds {
            if build.steps.iter().any(|step| step.key == miss.key.digest) {
                return Ok(CacheCause::Evicted);
            }
            let Some(earlier) = missed.earlier(build) else { continue };
            let compared = match &earlier {
                Earlier::Same(step) => match self.earlier_detail(&step.key).await? {
                    // Nothing to compare with.
                    None => continue,
                    Some(was) => missed.compare(&earlier, was.as_ref()),
                },
                Earlier::Other(_) => missed.compare(&earlier, None),
            };
            if nearest.as_ref().is_none_or(|(count, _)| compared.0 < *count) {
                nearest = Some(compared);
            }
        }
        Ok(nearest.map_or(CacheCause::NeverBuilt, |(_, cause)| cause))
    }

    /// The blocks of the layer that the step under way made in the newest build before.
    async fn earlier_blocks(
        &self,
        detail: &Detail,
    ) -> Result<Option<Arc<EarlierBlocks>>, BuildError> {
        let builder = self.build.builder;
        let trail = self.earlier_builds().await?;
        let steps = self.trail().steps.clone();
        let (texts, made_by) = (&self.texts, &self.made_by);
        let missed = Missed { steps: &steps, texts, detail, made_by };
        for build in &trail.builds {
            let Some(Earlier::Same(step) | Earlier::Other(step)) = missed.earlier(build) else {
                continue;
            };
            let Some(entry) = builder.cache.get(&step.key).await? else { continue };
            let Ok(CachedLayer { layer, blocks: Some(blocks), .. }) =
                serde_json::from_str(&entry.value)
            else {
                continue;
            };
            let compression = self.build.request.compression;
            let found = builder.layers.earlier_blocks(&layer, &blocks, compression).await;
            if let Some(found) = found {
                return Ok(Some(Arc::new(found)));
            }
        }
        Ok(None)
    }

    /// The detail of an entry, if that has one; `None` if there is no such entry any more.
    async fn earlier_detail(&self, key: &Digest) -> Result<Option<Option<Detail>>, BuildError> {
        let builder = self.build.builder;
        let Some(entry) = builder.cache.get(key).await? else { return Ok(None) };
        let Ok(cached) = serde_json::from_str::<CachedLayer>(&entry.value) else {
            return Ok(None);
        };
        let Some(origin) = cached.origin else { return Ok(Some(None)) };
        let Some(digest) = origin.detail_blob else { return Ok(Some(origin.detail)) };
        // An explanation is not worth a build: what cannot be read is not there.
        let Ok(blob) = builder.blobs.open(&digest, 0).await else { return Ok(None) };
        let mut json = Vec::new();
        let read = blob.into_async().take(DETAIL_SIZE_MAX).read_to_end(&mut json).await;
        Ok(read.is_ok().then(|| serde_json::from_slice(&json).ok()))
    }

    /// Whether the digest of a layer, and so each time in it, is the same whether it is cached or not.
    fn are_times_promised(&self) -> bool {
        self.build.request.source_date_epoch.is_some()
    }

    /// The time of folders that instructions make on their way: fixed, so that the same
    /// files give the same layer whenever and on whatever base they are copied.
    fn folder_time(&self) -> i64 {
        self.build.request.source_date_epoch.unwrap_or(layers::FOLDER_TIME)
    }

    async fn view(&mut self) -> Result<Arc<dyn Tree>, BuildError> {
        if let Some(view) = &self.view {
            return Ok(Arc::clone(view));
        }
        let view = self.view_of(&self.image.layers).await?;
        self.view = Some(Arc::clone(&view));
        Ok(view)
    }

    async fn view_of(&self, layers: &[ImageLayer]) -> Result<Arc<dyn Tree>, BuildError> {
        self.build.builder.layers.view(layers, &self.build.stop).await
    }

    /// The users and groups of the image as it is now, as far as these files tell of them.
    async fn accounts(&self, files: AccountFiles) -> Result<Accounts, BuildError> {
        if files.are_none() {
            return Ok(Accounts::default());
        }
        let view = match &self.view {
            Some(view) => Arc::clone(view),
            None => self.view_of(&self.image.layers).await?,
        };
        let read = blocking(move || read_accounts(&*view, files));
        read.await.map_err(|source: std::io::Error| {
            let doing = "read the image's users".to_owned();
            BuildError::Io { doing, source }
        })
    }

    /// The name of the step under way: `[build 2/5] RUN make`.
    fn step_name(&self, text: &str) -> String {
        let (label, position, total) = (&self.label, self.position, self.total);
        format!("[{label}{position}/{total}] {text}")
    }

    /// Announces a step.
    async fn begin(&mut self, text: &str) -> Step {
        self.position += 1;
        let name = self.step_name(text);
        let number = self.build.next_step();
        self.build.events.step_started(number, &name).await;
        Step { number, name, text: text.to_owned(), started: Instant::now() }
    }

    /// Ends a step that made a layer, if it did.
    async fn end_with(
        &self,
        step: Step,
        made: Result<Option<Made>, BuildError>,
    ) -> Result<Option<(ImageLayer, i64)>, BuildError> {
        match made {
            Ok(None) => {
                self.finish(step, StepEnd::Done, 0).await;
                Ok(None)
            }
            Ok(Some(made)) => {
                let end = made.proof.map_or(StepEnd::Done, |proof| StepEnd::Cached { proof });
                self.finish(step, end, made.cpu).await;
                Ok(Some((made.layer, made.created)))
            }
            Err(error) => self.end(step, Err(error)).await,
        }
    }

    async fn end<T>(&self, step: Step, result: Result<T, BuildError>) -> Result<T, BuildError> {
        let end = match &result {
            Ok(_) => StepEnd::Done,
            Err(error) => StepEnd::Failed { error: error.to_string() },
        };
        self.finish(step, end, 0).await;
        result
    }

    async fn finish(&self, step: Step, end: StepEnd, cpu_milliseconds: u64) {
        let milliseconds = milliseconds(step.started.elapsed());
        let proof = match &end {
            StepEnd::Cached { proof } => Some(*proof),
            _ => None,
        };
        {
            let mut notes = self.build.notes();
            let cache = notes.explanations.remove(&step.number);
            let (name, cached) = (step.name, proof.is_some());
            notes.cost.steps.push(StepCost {
                name,
                cached,
                proof,
                milliseconds,
                cpu_milliseconds,
                cache,
            });
        }
        self.build.events.step_finished(step.number, end).await;
    }
}

/// A layer, from the cache or new.
struct Made {
    layer: ImageLayer,
    created: i64,
    /// Why it is right here, if it is from the cache.
    proof: Option<Proof>,
    cpu: u64,
}

/// Shows the address of a fetched file where an error has a path.
fn name_download(mut error: BuildError, copy: &CopyOperation) -> BuildError {
    if let BuildError::Copy { error: CopyError::Archive { path, .. }, .. }
    | BuildError::Changed { path, .. } = &mut error
        && let Some(address) = download::named(path, copy)
    {
        *path = address;
    }
    error
}

/// Says which ignore file keeps a path away, if that is why it was not found.
fn copy_error(mut error: CopyError, context: Option<&BuildContext>, at: Span) -> BuildError {
    if let (CopyError::NotFound { path, ignored_by, .. }, Some(context)) = (&mut error, context) {
        *ignored_by = context.excluded_by(path).map(str::to_owned);
    }
    BuildError::Copy { error, at }
}

/// An account file is at most this large, in bytes.
const ACCOUNT_FILE_MAX: u64 = 16 << 20;

/// The users and groups of an image, as far as these files tell of them. Blocking.
pub(crate) fn read_accounts(view: &dyn Tree, files: AccountFiles) -> std::io::Result<Accounts> {
    let file = |path, is_asked| match is_asked {
        true => read_account_file(view, path),
        false => Ok(Vec::new()),
    };
    Ok(Accounts::parse(&file("etc/passwd", files.passwd)?, &file("etc/group", files.group)?))
}

/// `/etc/passwd` or `/etc/group`; empty if the image has none.
fn read_account_file(view: &dyn Tree, path: &str) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let node = |path: &str| view.node(path);
    let mut bytes = Vec::new();
    if let Ok(path) = resolve(&node, path, true)
        && matches!(view.node(&path).map(|n| n.kind), Some(crate::tree::NodeKind::File { .. }))
    {
        view.open(&path)?.take(ACCOUNT_FILE_MAX).read_to_end(&mut bytes)?;
    }
    view.failure().map_or(Ok(bytes), Err)
}
