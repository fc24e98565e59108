//! `build` steps: a Dockerfile build whose image the rest of the run has at once.

mod secrets;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use builder::{ContextAddress, ContextFiles, ContextOptions, LazyFolder, SshAgents, parse_size};
use container::Network;
use oci::{Annotations, Compression, Platform, Reference};
use task::{Build, BuildArguments, BuildOption, Step};

use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use super::attempts::Attempt;
use super::build_cache::StepCache;
use super::cmd;
use super::events::{StepEvents, Watch};
use super::workspace::{OpenFolder, WORKSPACE, make_empty_folder, path_in, read_text};
use super::{StepUsage, TaskContext, Work, attempts, unless_stopped};
use crate::context::{ContextLoader, ContextSource, LoadedRepository};
use crate::dependencies::dependencies;
use crate::execute::{
    Argument, BuildOptions, BuildStep, DOCKERFILE_SIZE_MAX, Failure, NamedContext, NamedDockerfile,
    RunRequest, blocking, build_images, build_request,
};
use crate::logins::RunLogins;
use crate::platforms::BuiltImages;

/// Where the Dockerfile is that nobody names.
const DOCKERFILE: &str = "Dockerfile";
/// Longer than any run: the step's own time counts.
const NO_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Builds as often as the step asks, and gives the image its names in this run.
pub(crate) async fn execute(
    context: &TaskContext<'_>,
    step: &Step,
    build: &Build,
) -> Result<(), Failure> {
    let Parts { names, mut request, address } = parts(context, build)?;
    request.step.options.secrets = secrets::secrets(context, build).await?;
    request.step.options.ssh_agents = secrets::ssh_agents(context, build).await?;
    know_volumes(context);
    let cache = match build.cache {
        true => StepCache::of(context, &step.id, &build.arguments.tags).await?,
        false => None,
    };
    if let Some(cache) = &cache {
        request.step.options.cache_from.extend(cache.to_import(context).await?);
        request.step.options.shares_results = true;
    }
    let cache = cache.as_ref();
    let (request, names) = (&request, names.as_slice());
    // What is fetched from elsewhere is fetched once.
    let fetched = OnceCell::new();
    let (address, fetched) = (address.as_ref(), &fetched);
    let attempt = |(watch, stop): Attempt| -> Work<'_> {
        Box::pin(async move {
            let built = async {
                let Some(address) = address else {
                    let source = local(context, build).await?;
                    return build_once(context, step, &source, request, names, (&watch, &stop))
                        .await;
                };
                let agents = request.step.options.ssh_agents.as_ref();
                let fetch = || remote(context, step, &build.arguments, (address, agents), &stop);
                let source = unless_stopped(&stop, fetched.get_or_try_init(fetch)).await?;
                build_once(context, step, source, request, names, (&watch, &stop)).await
            };
            let built = match (built.await, cache) {
                (Ok(built), Some(cache)) => cache.export(context, &step.id, &built, &stop).await,
                (built, _) => built.map(drop),
            };
            // A tool that builds would have printed it.
            if let Err(failure) = &built {
                watch.look(container::Stream::Stderr, failure.first_line().as_bytes());
            }
            built
        })
    };
    attempts::execute(step, &build.attempts, context, attempt).await
}

/// What the arguments of a step say.
struct Parts {
    names: Vec<Reference>,
    request: RunRequest,
    /// Where the context is, if it is not in the workspace.
    address: Option<ContextSource>,
}

fn parts(context: &TaskContext<'_>, build: &Build) -> Result<Parts, Failure> {
    let names =
        build.arguments.tags.iter().map(|tag| {
            tag.parse::<Reference>().map_err(|error| Failure::user(&error, error.hint()))
        });
    Ok(Parts {
        names: names.collect::<Result<_, _>>()?,
        request: run_request(context, build)?,
        address: address(&build.arguments.context)?,
    })
}

/// Finds what is wrong with a step before any step has begun.
pub(crate) fn check(context: &TaskContext<'_>, build: &Build) -> Result<(), Failure> {
    parts(context, build)?;
    secrets::check(context, build)
}

/// Files of volumes are secrets of the run, whichever steps have them.
fn know_volumes(context: &TaskContext<'_>) {
    for (volume, files) in &context.volumes {
        for (name, content) in files {
            let name = format!("file `{name}` of volume `{volume}`");
            context.request.known_secrets.add(name, content.reveal());
        }
    }
}

async fn build_once(
    context: &TaskContext<'_>,
    step: &Step,
    source: &Source,
    request: &RunRequest,
    names: &[Reference],
    (watch, stop): (&Watch, &CancellationToken),
) -> Result<Arc<BuiltImages>, Failure> {
    let engine = &context.engine;
    let Source { folder, dockerfile_path, dockerfile, repository } = source;
    let private = context.private_folder();
    let mut options = ContextOptions::of(ContextFiles::Shared {
        root: folder.path(),
        folder: Arc::new(LazyFolder::new(&private)),
    });
    options.dockerfile.clone_from(dockerfile_path);
    options.entries_max = engine.context_limits.entries_max;
    let dockerfile = dockerfile.clone();
    let mut wanted = build_request(engine, request, options, BTreeMap::new(), dockerfile);
    if let Some(LoadedRepository { record, time }) = repository {
        // What a commit holds is as old as the commit (architecture.md decision 12).
        wanted.source_date_epoch = wanted.source_date_epoch.or(Some(*time));
        wanted.repository = Some(record.clone());
    }
    let events = StepEvents::new(context.events, context.numbers, &step.id, watch);
    let built = build_images(engine, &wanted, &request.step, &events, stop).await;
    // At most a bind mount of the context made one; what is left of it goes with the workspace.
    if let Err(error) = blocking(move || container::remove_tree(&private)).await? {
        tracing::warn!(%error, run = context.request.run, "a context's copy was not removed");
    }
    let built = Arc::new(built?);
    let costs = built.images.iter().map(|image| StepUsage::from(&image.cost));
    costs.for_each(|used| context.note_usage(&step.id, used));
    context.keep(&built).await?;
    context.images.add(names, &built);
    let commit = repository.as_ref().map(|repository| repository.record.commit.as_str());
    let dependencies = dependencies(names, &built, commit.or(context.commit));
    context.note_dependencies(&step.id, dependencies);
    let digest = built.descriptor().digest.clone();
    context.events.message(&format!("Step `{}` built {digest}", step.id)).await;
    Ok(built)
}

/// What a build reads.
struct Source {
    folder: OpenFolder,
    /// Where in the folder the Dockerfile is, if it is there.
    dockerfile_path: Option<String>,
    dockerfile: NamedDockerfile,
    /// If it is a git repository.
    repository: Option<LoadedRepository>,
}

/// Where a context is that is not in the workspace.
fn address(context: &str) -> Result<Option<ContextSource>, Failure> {
    Ok(match ContextAddress::of(context) {
        ContextAddress::Local => None,
        ContextAddress::Git(Ok(address)) => Some(ContextSource::Repository(address)),
        ContextAddress::Git(Err(error)) => return Err(Failure::user(&error, None)),
        ContextAddress::Archive(address) => Some(ContextSource::Address(address)),
        ContextAddress::Nothing => {
            return Err(Failure::User("error: a `build` step needs a context".to_owned()));
        }
        ContextAddress::Artifact(Ok(reference)) => Some(ContextSource::Artifact(reference)),
        ContextAddress::Artifact(Err(error)) => {
            return Err(Failure::user(&error, Some(error.hint())));
        }
    })
}

/// A folder of the workspace.
async fn local(context: &TaskContext<'_>, build: &Build) -> Result<Source, Failure> {
    let base = build.container.working_directory.as_deref().unwrap_or(WORKSPACE);
    let BuildArguments { context: named, file, .. } = &build.arguments;
    let place = |path: &str, what: &str| {
        path_in(base, path)
            .ok_or_else(|| Failure::User(format!("error: {what} `{path}` is not in the workspace")))
    };
    let folder = place(named, "the context")?;
    let dockerfile = match file {
        Some(file) => place(file, "the Dockerfile")?,
        None if folder.is_empty() => DOCKERFILE.to_owned(),
        None => format!("{folder}/{DOCKERFILE}"),
    };
    let (root, named) = (context.workspace.clone(), named.clone());
    blocking(move || open_source(&root, &folder, &named, dockerfile)).await?
}

fn open_source(
    root: &Path,
    folder: &str,
    named: &str,
    dockerfile: String,
) -> Result<Source, Failure> {
    let text = read_text(root, &dockerfile, "Dockerfile", DOCKERFILE_SIZE_MAX)?;
    let opened = OpenFolder::open(root, folder).map_err(|error| {
        Failure::User(format!(
            "error: the context `{named}` is no folder of the workspace: {error}"
        ))
    })?;
    let dockerfile_path = match folder.is_empty() {
        true => Some(dockerfile.clone()),
        false => dockerfile.strip_prefix(&format!("{folder}/")).map(str::to_owned),
    };
    let dockerfile = NamedDockerfile { name: dockerfile, text };
    Ok(Source { folder: opened, dockerfile_path, dockerfile, repository: None })
}

/// What is elsewhere, and the ssh agents with which it may be fetched.
type Remote<'a> = (&'a ContextSource, Option<&'a Arc<dyn SshAgents>>);

/// What is elsewhere is brought into a folder of the workspace that is named for the step.
async fn remote(
    context: &TaskContext<'_>,
    step: &Step,
    arguments: &BuildArguments,
    address: Remote<'_>,
    stop: &CancellationToken,
) -> Result<Source, Failure> {
    let id = &step.id;
    if id.contains('/') || matches!(id.as_str(), "." | "..") {
        return Err(Failure::User(format!(
            "error: the id `{id}` cannot name the folder of the step's context"
        )));
    }
    let root = context.workspace.clone();
    make_empty_folder(&root, id).map_err(|error| {
        Failure::User(format!(
            "error: the context cannot be put into `{id}` of the workspace: {error}\n\
             hint: a remote context needs a folder of its own; give the step another `id`"
        ))
    })?;
    let fetched = fetch(context, arguments, address, OpenFolder::open(&root, id), stop).await;
    if fetched.is_err() {
        // For another try; and what cannot be removed refuses it.
        let folder = root.join(id);
        let _kept = blocking(move || container::remove_tree(&folder)).await?;
    }
    fetched
}

async fn fetch(
    context: &TaskContext<'_>,
    arguments: &BuildArguments,
    (address, ssh_agents): Remote<'_>,
    folder: std::io::Result<OpenFolder>,
    stop: &CancellationToken,
) -> Result<Source, Failure> {
    let folder = folder.map_err(|error| Failure::ours(&error))?;
    let engine = &context.engine;
    let no_cache = arguments.has("no-cache");
    let loader = ContextLoader {
        engine,
        no_cache,
        is_workspace: true,
        ssh_agents,
        events: context.events,
        stop,
    };
    // Of a repository all is in the step's folder, whatever is built of it (contexts.md section 8).
    let mut whole = address.clone();
    let inside = match &mut whole {
        ContextSource::Repository(address) => address.folder.take(),
        _ => None,
    };
    let mut loaded = loader.load(&whole, folder.path(), engine.context_limits).await?;
    let folder = match inside {
        Some(inside) => OpenFolder::open(&folder.path(), &inside).map_err(|error| {
            let text = format!("error: the repository has no folder `{inside}`: {error}");
            Failure::User(text)
        })?,
        None => folder,
    };
    if let (Some(repository), ContextSource::Repository(address)) =
        (&mut loaded.repository, address)
    {
        repository.record.address = address.to_string();
    }
    let file = arguments.file.clone().unwrap_or_else(|| DOCKERFILE.to_owned());
    let path = folder.path();
    let (text, name) = blocking(move || {
        read_text(&path, &file, "Dockerfile", DOCKERFILE_SIZE_MAX).map(|text| (text, file))
    })
    .await??;
    let repository = loaded.repository;
    let (dockerfile_path, dockerfile) = (Some(name.clone()), NamedDockerfile { name, text });
    Ok(Source { folder, dockerfile_path, dockerfile, repository })
}

/// What the arguments of the step mean to the builder.
fn run_request(context: &TaskContext<'_>, build: &Build) -> Result<RunRequest, Failure> {
    let BuildArguments { tags, target, build_args, options: more, .. } = &build.arguments;
    let value_of = |name: &str| build.container.env.get(name).unwrap_or_default().to_owned();
    let secrets = context.request.values.iter().filter(|value| value.secret);
    let fetched = context.secrets.values().map(task::SecretText::expose);
    let secrets: Vec<_> = secrets.map(|value| value.value.as_str()).chain(fetched).collect();
    let arguments = build_args.iter().map(|(name, value)| {
        let (name, value) = (name.clone(), value.clone().unwrap_or_else(|| value_of(name)));
        let secret = secrets.iter().any(|secret| may_hold(&value, secret));
        Argument { name, value, secret }
    });
    let mut step = BuildStep {
        image_names: tags.clone(),
        push: false,
        no_cache: build.arguments.has("no-cache"),
        context: None,
        dockerfile_path: DOCKERFILE.to_owned(),
        dockerfile_name: None,
        target: target.clone(),
        arguments: arguments.collect(),
        platforms: vec![context.request.platform.clone()],
        network: Network::default(),
        source_date_epoch: None,
        compression: Compression::default(),
        options: BuildOptions::default(),
    };
    let mut annotations = BTreeMap::new();
    let mut platforms = Vec::new();
    let mut network = build.container.network.as_deref();
    for option in more {
        match (option.name, option.value.as_deref()) {
            ("network", Some(value)) => network = Some(value),
            ("platform", Some(value)) => platforms.extend(several_platforms(value)?),
            ("annotation", Some(value)) => {
                let (name, value) =
                    value.split_once('=').ok_or_else(|| malformed(option, "NAME=VALUE"))?;
                annotations.insert(name.to_owned(), value.to_owned());
            }
            _ => apply(&mut step, option)?,
        }
    }
    if !platforms.is_empty() {
        step.platforms = platforms;
    }
    step.options.annotations =
        Annotations::parse(&annotations).map_err(|error| Failure::user(&error, None))?;
    // `docker build` calls the usual one so.
    let network = network.filter(|network| *network != "default");
    step.network = cmd::network(context, network)?;
    step.options.peers = cmd::peers(context, network, None)?;
    let (run, now) = (context.request.run.clone(), context.request.now);
    // The step has the engine of its run, which is logged in.
    let logins = RunLogins::default();
    let (task_name, timeout) = (String::new(), NO_TIMEOUT);
    let known_secrets = context.request.known_secrets.clone();
    Ok(RunRequest { run, task_name, step, logins, known_secrets, timeout, now })
}

/// Whether a text is a secret or has it somewhere, as it is or in Base64.
fn may_hold(text: &str, secret: &str) -> bool {
    // Shorter ones are found everywhere.
    const LENGTH_MIN: usize = 4;
    match secret.len() {
        0 => false,
        1..LENGTH_MIN => text == secret || text == BASE64_STANDARD.encode(secret),
        _ => text.contains(secret) || text.contains(&BASE64_STANDARD.encode(secret)),
    }
}

fn several_platforms(text: &str) -> Result<Vec<Platform>, Failure> {
    let mut platforms = Vec::new();
    for one in text.split(',').map(str::trim) {
        let platform =
            one.parse().map_err(|error: oci::PlatformError| Failure::user(&error, None))?;
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    Ok(platforms)
}

fn pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (name.to_owned(), value.to_owned())
}

/// An option of `docker build` that says something about the image or its making.
fn apply(step: &mut BuildStep, option: &BuildOption) -> Result<(), Failure> {
    let options = &mut step.options;
    let Some(value) = option.value.as_deref() else {
        // Switches are read where they matter; the others change nothing about an image.
        return match option.name {
            "squash" | "check" | "push" => Err(unsupported(option.name)),
            _ => Ok(()),
        };
    };
    let malformed = |form: &str| malformed(option, form);
    match option.name {
        "label" => {
            let (name, value) = pair(value);
            options.labels.insert(name, value);
        }
        "add-host" => {
            let parts = value.split_once('=').or_else(|| value.split_once(':'));
            let host = parts.and_then(|(name, address)| {
                let address = address.trim_start_matches('[').trim_end_matches(']');
                Some((name.to_owned(), address.parse().ok()?))
            });
            options.extra_hosts.push(host.ok_or_else(|| malformed("NAME:ADDRESS"))?);
        }
        "ulimit" => {
            let number = |text: &str| match text {
                "-1" | "unlimited" => Some(u64::MAX),
                text => text.parse().ok(),
            };
            let limit = value.split_once('=').and_then(|(name, limits)| {
                let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
                Some((name.to_ascii_lowercase(), number(soft)?, number(hard)?))
            });
            options.ulimits.push(limit.ok_or_else(|| malformed("NAME=SOFT[:HARD]"))?);
        }
        "shm-size" => {
            let size = parse_size(value).ok_or_else(|| malformed("128m"))?;
            options.shm_size = Some(size);
        }
        "no-cache-filter" => {
            options.no_cache_stages.extend(value.split(',').map(str::to_owned));
        }
        "cache-from" => {
            // A bare reference, as the classic builder takes it.
            let image = value.strip_prefix("type=registry,ref=").unwrap_or(value);
            let image = image.parse().map_err(|_| malformed("IMAGE"))?;
            options.cache_from.push(image);
        }
        "build-context" => {
            let (name, image) = pair(value);
            let Some(image) = image.strip_prefix("docker-image://") else {
                return Err(malformed("NAME=docker-image://IMAGE"));
            };
            let image = image.parse().map_err(|_| malformed("NAME=docker-image://IMAGE"))?;
            options.contexts.insert(name, NamedContext::Image(image));
        }
        // Their files are read when the step begins.
        "secret" | "ssh" => (),
        // They choose how the reference's tools work, not what comes out.
        "builder" | "cgroup-parent" | "isolation" | "progress" | "provenance" | "sbom"
        | "attest" | "security-opt" | "allow" => (),
        // Switches that are off.
        "check"
        | "compress"
        | "disable-content-trust"
        | "force-rm"
        | "load"
        | "no-cache"
        | "pull"
        | "push"
        | "quiet"
        | "rm"
        | "squash"
            if value == "false" => {}
        name => return Err(unsupported(name)),
    }
    Ok(())
}

fn malformed(option: &BuildOption, form: &str) -> Failure {
    let (name, value) = (option.name, option.value.as_deref().unwrap_or_default());
    Failure::User(format!("error: `--{name} {value}` is not of the form `{form}`"))
}

fn unsupported(option: &str) -> Failure {
    Failure::User(format!("error: `--{option}` is not possible in a `build` step"))
}
