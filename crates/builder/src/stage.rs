//! One stage: its base, then its instructions in order.
//!
//! For each instruction that makes a layer: say everything that the result depends on in a
//! cache key, look it up, and only else do it. The keys of `RUN` hold the layers below it;
//! those of `COPY` and `WORKDIR` hold what the instruction saw of the image instead, so that
//! their layers are found again on another base.

use std::sync::Arc;
use std::time::Instant;

use container::Network;
use dockerfile::{
    CopyOperation, CopySource, Operation, OperationKind, RunOperation, Source, Span, StageId,
};
use oci::Digest;
use serde::{Deserialize, Serialize};
use store::CacheEntry;

use crate::archive;
use crate::assemble::{ImageLayer, StageImage};
use crate::build::{Build, blocking, milliseconds};
use crate::cache::KeyHasher;
use crate::context::BuildContext;
use crate::copy::{CopyError, CopyPlan, CopyRequest, plan, plan_folder};
use crate::download::{self, Downloads, Place, is_download};
use crate::error::BuildError;
use crate::event::{StepEnd, StepNumber};
use crate::layers::{self, NewLayer};
use crate::mounts::Sources;
use crate::record::{BaseRole, RecordedStep, StepCost};
use crate::run;
use crate::tree::{NoFiles, Tree, resolve};
use crate::user::{Accounts, Owner};

/// Executes a stage to its end.
pub(crate) async fn execute(build: &Build<'_>, id: StageId) -> Result<StageImage, BuildError> {
    let mut stage = Stage::start(build, id).await?;
    let planned = build.stage_plan(id).operations(&stage.image.config, &stage.image.args)?;
    for operation in &planned.operations {
        stage.operation(operation).await?;
    }
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
}

/// What a cache entry says.
#[derive(Serialize, Deserialize)]
struct CachedLayer {
    layer: oci::Descriptor,
    diff_id: Digest,
    /// Seconds since 1970.
    created: i64,
}

/// A step that has been announced.
struct Step {
    number: StepNumber,
    name: String,
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
        let mut stage = Self { build, id, image: scratch, view, label, position, total, no_cache };
        let role = match id == build.plan.target {
            true => BaseRole::Runtime,
            false => BaseRole::Buildtime,
        };
        stage.image = match &plan.base {
            Source::Image { reference, .. } => {
                let step = stage.begin(&format!("FROM {}", reference.familiar())).await;
                let number = step.number;
                let base = build.source_image(&plan.base, plan, plan.at, role, number).await;
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
                        let base = stage.end(step, base).await?;
                        StageImage::clone(&base)
                    }
                    Ok(Some(files)) => {
                        let layer = stage.files_layer(files, plan.at, &step).await;
                        let mut image = stage.image.clone();
                        if let Some(layer) = stage.end_with(step, layer).await? {
                            image.record(&from, Some(layer));
                        }
                        image
                    }
                    Err(error) => return stage.end(step, Err(error)).await,
                }
            }
            other => {
                let base = build.source_image(other, plan, plan.at, role, StepNumber(0)).await?;
                StageImage::clone(&base)
            }
        };
        Ok(stage)
    }

    async fn operation(&mut self, operation: &Operation) -> Result<(), BuildError> {
        let layer = match &operation.kind {
            OperationKind::Config => None,
            OperationKind::Run(run) => self.run(operation, run).await?,
            OperationKind::Copy(copy) => self.copy(operation, copy).await?,
            OperationKind::Workdir { path } => self.workdir(operation, path).await?,
        };
        if layer.is_some() {
            self.view = None;
        }
        let created_by = self.hide_secrets(&operation.created_by);
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
        &self,
        operation: &Operation,
        run: &RunOperation,
        step: &Step,
    ) -> Result<Made, BuildError> {
        let (policy, at) = (self.build.builder.policy, operation.at);
        let network = run::network(run, self.build.request);
        let (flag, setting) = match (network, run.insecure) {
            (Network::Host, _) if !policy.host_network => {
                ("--network=host", "build.allow_host_network")
            }
            (_, true) if !policy.insecure => ("--security=insecure", "build.allow_insecure"),
            _ => ("", ""),
        };
        if !flag.is_empty() {
            return Err(BuildError::NotAllowed { flag, setting, at });
        }
        let sources = Sources::find(self.build, self.id, run, step.number).await?;
        let key = self.run_key(run, &sources);
        let work = self.execute_run(operation, run, sources, step.number);
        self.make(at, step, &key, work).await
    }

    fn run_key(&self, run: &RunOperation, sources: &Sources) -> Digest {
        let mut key = self.key("run");
        let below: Vec<&str> = self.image.layers.iter().map(|l| l.diff_id.as_str()).collect();
        key.list("layers", &below);
        key.text("platform", &self.build.request.platform.to_string());
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
            match run::network(run, self.build.request) {
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
        sources.add_to(run, &mut key);
        key.finish()
    }

    async fn execute_run(
        &self,
        operation: &Operation,
        run: &RunOperation,
        sources: Sources,
        step: StepNumber,
    ) -> Result<NewLayer, BuildError> {
        let at = operation.at;
        let accounts = self.accounts().await?;
        let identity = accounts.identity(&run.user);
        let identity = identity.map_err(|error| BuildError::User { error, at })?;
        let mounts = sources.prepare(self.build, run, at).await?;
        run::execute(self.build, &self.image.layers, operation, run, identity, mounts, step).await
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
        let context = match &copy.from {
            // Nothing is read from a context that nothing is copied from.
            None if copy.sources.iter().all(|source| source.address.is_some()) => None,
            None => Some(build.context().await?),
            Some(from) => build.named_files(from).await?,
        };
        let source: Arc<dyn Tree> = match (&context, &copy.from) {
            (Some(context), _) => Arc::clone(context) as Arc<dyn Tree>,
            (None, None) => Arc::new(NoFiles),
            (None, Some(from)) => {
                let stage = build.stage_plan(self.id);
                let role = BaseRole::Buildtime;
                let image = build.source_image(from, stage, at, role, step.number).await?;
                self.view_of(&image.layers).await?
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
            let (cloned, image) = (copy.clone(), Arc::clone(&image));
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
                    image: &*image,
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
                plan(&request).map(|plan| (plan, source))
            });
            match planned.await {
                Ok(planned) => planned,
                Err(error) => {
                    return Err(name_download(copy_error(error, context.as_deref(), at), copy));
                }
            }
        };
        for pattern in &plan.unmatched {
            let text = format!("`{pattern}` of line {} matches nothing", at.line);
            build.events.warning(&text).await;
        }
        let key = self.copy_key("copy", &plan, owner);
        let write = layers::write_copy(build, plan, source, image, owner, at);
        self.make(at, step, &key, write).await.map_err(|error| name_download(error, copy))
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
            plan(&request).map(|plan| (plan, source))
        });
        let (plan, source) = planned.await.map_err(|error| BuildError::Copy { error, at })?;
        if plan.entries.is_empty() {
            return Ok(None);
        }
        let key = self.copy_key("copy", &plan, None);
        let write = layers::write_copy(self.build, plan, source, Arc::new(NoFiles), None, at);
        self.make(at, step, &key, write).await.map(Some)
    }

    /// A key of what a layer will hold. The layers below count only where archives are
    /// unpacked, since what they meet there is known only when they are read.
    fn copy_key(&self, kind: &str, plan: &CopyPlan, owner: Option<Owner>) -> Digest {
        let mut key = self.key(kind);
        plan.add_to(&mut key);
        if !plan.archives.is_empty() {
            let below: Vec<&str> = self.image.layers.iter().map(|l| l.diff_id.as_str()).collect();
            key.list("layers", &below);
            let owner = owner.map(|owner| format!("{}:{}", owner.uid, owner.gid));
            key.optional("owner", owner.as_deref());
        }
        key.finish()
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
        let plan = plan.map_err(|error| BuildError::Copy { error, at })?;
        if plan.entries.is_empty() {
            return Ok(None);
        }
        let key = self.copy_key("workdir", &plan, owner);
        let source = Arc::clone(&image);
        let write = layers::write_copy(self.build, plan, source, image, owner, at);
        self.make(at, step, &key, write).await.map(Some)
    }

    /// Who owns a folder that `WORKDIR` makes: the stage's user.
    async fn user_owner(&self, user: &str) -> Result<Owner, BuildError> {
        // A user that the image does not have yet owns nothing: root does.
        Ok(self.accounts().await?.owner(user).unwrap_or(Owner { uid: 0, gid: 0 }))
    }

    async fn owner(&mut self, chown: Option<&str>, at: Span) -> Result<Option<Owner>, BuildError> {
        let Some(chown) = chown else { return Ok(None) };
        let owner = self.accounts().await?.owner(chown);
        owner.map(Some).map_err(|error| BuildError::User { error, at })
    }

    /// Starts a cache key with what counts for every layer.
    fn key(&self, kind: &str) -> KeyHasher {
        let request = self.build.request;
        let mut key = KeyHasher::new(kind);
        key.text("compressor", request.compression.id());
        let time = request.source_date_epoch.map(|time| time.to_string());
        key.optional("time", time.as_deref());
        key
    }

    /// Finds a layer in the cache, or makes it and puts it there.
    async fn make(
        &self,
        at: Span,
        step: &Step,
        key: &Digest,
        work: impl Future<Output = Result<NewLayer, BuildError>>,
    ) -> Result<Made, BuildError> {
        let build = self.build;
        let _alone = build.builder.in_flight.enter(key).await;
        let cached = match build.request.no_cache || self.no_cache {
            true => None,
            false => self.cached(key).await?,
        };
        let made = match cached {
            Some((cached, cost)) => {
                let layer = ImageLayer { descriptor: cached.layer, diff_id: cached.diff_id };
                let mut notes = build.notes();
                notes.cost.cache_hits += 1;
                notes.cost.saved_milliseconds += cost;
                Made { layer, created: cached.created, cached: true, cpu: 0 }
            }
            None => {
                let new = work.await?;
                let created = build.request.layer_time();
                let took = milliseconds(step.started.elapsed());
                self.keep(key, &new, created, took).await?;
                let mut notes = build.notes();
                notes.made.insert(new.layer.descriptor.digest.clone());
                notes.cost.cache_misses += 1;
                notes.cost.written += new.layer.descriptor.size;
                let cpu = milliseconds(new.usage.cpu);
                notes.cost.cpu_milliseconds += cpu;
                notes.cost.memory_peak = notes.cost.memory_peak.max(new.usage.memory_peak);
                Made { layer: new.layer, created, cached: false, cpu }
            }
        };
        build.notes().steps.push(RecordedStep {
            stage: build.stage_plan(self.id).number,
            line: at.line,
            key: key.clone(),
            layer: made.layer.descriptor.digest.clone(),
            diff_id: made.layer.diff_id.clone(),
        });
        Ok(made)
    }

    /// A cached layer and what making it cost. A damaged entry is no entry; the next result
    /// replaces it.
    async fn cached(&self, key: &Digest) -> Result<Option<(CachedLayer, u64)>, BuildError> {
        let builder = self.build.builder;
        let Some(entry) = builder.cache.get(key).await? else { return Ok(None) };
        let Ok(cached) = serde_json::from_str::<CachedLayer>(&entry.value) else {
            tracing::warn!(%key, "cache entry is not readable, building again");
            return Ok(None);
        };
        match builder.layers.is_there(&cached.layer).await? {
            true => Ok(Some((cached, entry.cost))),
            false => Ok(None),
        }
    }

    async fn keep(
        &self,
        key: &Digest,
        new: &NewLayer,
        created: i64,
        cost: u64,
    ) -> Result<(), BuildError> {
        let (layer, diff_id) = (new.layer.descriptor.clone(), new.layer.diff_id.clone());
        let mut blobs = vec![layer.digest.clone()];
        blobs.extend(new.index.clone());
        let value = CachedLayer { layer, diff_id, created };
        let value = serde_json::to_string(&value).expect("plain structs serialize");
        self.build.builder.cache.put(key, &CacheEntry { value, blobs, cost }).await?;
        Ok(())
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

    /// The users and groups of the image as it is now.
    async fn accounts(&self) -> Result<Accounts, BuildError> {
        let view = match &self.view {
            Some(view) => Arc::clone(view),
            None => self.view_of(&self.image.layers).await?,
        };
        let read = blocking(move || {
            let file = |path| read_account_file(&*view, path);
            Ok(Accounts::parse(&file("etc/passwd")?, &file("etc/group")?))
        });
        read.await.map_err(|source: std::io::Error| {
            let doing = "read the image's users".to_owned();
            BuildError::Io { doing, source }
        })
    }

    /// History is public: values of secret build arguments stay out of it.
    fn hide_secrets(&self, created_by: &str) -> String {
        let request = self.build.request;
        let secrets = request.build_args.iter().filter(|(n, _)| request.secret_args.contains(*n));
        let mut text = created_by.to_owned();
        let mut values: Vec<_> =
            secrets.map(|(_, value)| value).filter(|v| !v.is_empty()).collect();
        // The longest first: one may be a part of another.
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        for value in values {
            text = text.replace(value.as_str(), "***");
        }
        text
    }

    /// Announces a step: `[build 2/5] RUN make`.
    async fn begin(&mut self, text: &str) -> Step {
        self.position += 1;
        let (label, position, total) = (&self.label, self.position, self.total);
        let name = format!("[{label}{position}/{total}] {text}");
        let number = self.build.next_step();
        self.build.events.step_started(number, &name).await;
        Step { number, name, started: Instant::now() }
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
                let end = if made.cached { StepEnd::Cached } else { StepEnd::Done };
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
        let cached = end == StepEnd::Cached;
        let cost = StepCost { name: step.name, cached, milliseconds, cpu_milliseconds };
        self.build.notes().cost.steps.push(cost);
        self.build.events.step_finished(step.number, end).await;
    }
}

/// A layer, from the cache or new.
struct Made {
    layer: ImageLayer,
    created: i64,
    cached: bool,
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
    Ok(bytes)
}
