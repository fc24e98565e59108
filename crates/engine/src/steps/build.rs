//! `build` steps: a Dockerfile build whose image the rest of the run has at once.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use builder::{ContextAddress, ContextFiles, ContextOptions, parse_size};
use container::Network;
use oci::{Annotations, Compression, Platform, Reference};
use task::{Build, BuildArguments, BuildOption, Container, Step};

use super::events::{StepEvents, Watch};
use super::workspace::{OpenFolder, WORKSPACE, make_empty_folder, path_in, read_text};
use super::{TaskContext, Work, attempts};
use crate::context::{ContextLoader, ContextSource};
use crate::execute::{
    Argument, BuildOptions, BuildStep, Failure, NamedContext, NamedDockerfile, RunRequest,
    blocking, build_images, build_request,
};

/// Where the Dockerfile is that nobody names.
const DOCKERFILE: &str = "Dockerfile";
/// A Dockerfile is at most this large, in bytes.
const DOCKERFILE_SIZE_MAX: u64 = 1 << 20;
/// Longer than any run: the step's own time counts.
const NO_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Builds as often as the step asks, and gives the image its names in this run.
pub(crate) async fn execute(
    context: &TaskContext<'_>,
    step: &Step,
    build: &Build,
) -> Result<(), Failure> {
    let names =
        build.arguments.tags.iter().map(|tag| {
            tag.parse::<Reference>().map_err(|error| Failure::user(&error, error.hint()))
        });
    let names = names.collect::<Result<Vec<_>, _>>()?;
    let request = run_request(context, build)?;
    let (request, names) = (&request, names.as_slice());
    let attempt =
        |_: Arc<Watch>| -> Work<'_> { Box::pin(build_once(context, step, build, request, names)) };
    attempts::execute(step, &build.attempts, context.events, attempt).await
}

async fn build_once(
    context: &TaskContext<'_>,
    step: &Step,
    build: &Build,
    request: &RunRequest,
    names: &[Reference],
) -> Result<(), Failure> {
    let engine = &context.engine;
    let Source { options, dockerfile, time, _folder } = source(context, step, build).await?;
    let mut wanted = build_request(engine, request, options, BTreeMap::new(), dockerfile);
    wanted.source_date_epoch = wanted.source_date_epoch.or(time);
    let events = StepEvents::new(context.events, context.numbers, &step.id);
    let built = build_images(engine, &wanted, &request.step, &events, &context.kill).await?;
    let built = Arc::new(built);
    context.keep(&built).await?;
    context.images.add(names, &built);
    let digest = built.descriptor().digest.clone();
    context.events.message(&format!("Step `{}` built {digest}", step.id)).await;
    Ok(())
}

/// What a build reads.
struct Source {
    options: ContextOptions,
    dockerfile: NamedDockerfile,
    /// When the commit was made that is built, in seconds since 1970.
    time: Option<i64>,
    /// Kept open while the build goes on.
    _folder: OpenFolder,
}

async fn source(context: &TaskContext<'_>, step: &Step, build: &Build) -> Result<Source, Failure> {
    let arguments = &build.arguments;
    let address = match ContextAddress::of(&arguments.context) {
        ContextAddress::Local => return local(context, build).await,
        ContextAddress::Git(Ok(address)) => ContextSource::Repository(address),
        ContextAddress::Git(Err(error)) => return Err(Failure::user(&error, error.hint())),
        ContextAddress::Archive(address) => ContextSource::Address(address),
        ContextAddress::Nothing => {
            return Err(Failure::User("error: a `build` step needs a context".to_owned()));
        }
        ContextAddress::Artifact => {
            return Err(Failure::User(
                "error: artifacts of registries cannot be contexts yet\n\
                 hint: a git repository, an archive at an address, or a folder can"
                    .to_owned(),
            ));
        }
    };
    remote(context, step, arguments, &address).await
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
    let entries_max = context.engine.context_limits.entries_max;
    blocking(move || open_source(&root, &folder, &named, dockerfile, entries_max)).await?
}

fn open_source(
    root: &Path,
    folder: &str,
    named: &str,
    dockerfile: String,
    entries_max: usize,
) -> Result<Source, Failure> {
    let text = read_text(root, &dockerfile, "Dockerfile", DOCKERFILE_SIZE_MAX)?;
    let opened = OpenFolder::open(root, folder).map_err(|error| {
        Failure::User(format!(
            "error: the context `{named}` is no folder of the workspace: {error}"
        ))
    })?;
    let mut options = ContextOptions::of(ContextFiles::Folder(opened.path()));
    options.dockerfile = match folder.is_empty() {
        true => Some(dockerfile.clone()),
        false => dockerfile.strip_prefix(&format!("{folder}/")).map(str::to_owned),
    };
    options.entries_max = entries_max;
    let dockerfile = NamedDockerfile { name: dockerfile, text };
    Ok(Source { options, dockerfile, time: None, _folder: opened })
}

/// What is elsewhere is brought into a folder of the workspace that is named for the step.
async fn remote(
    context: &TaskContext<'_>,
    step: &Step,
    arguments: &BuildArguments,
    address: &ContextSource,
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
    let folder = OpenFolder::open(&root, id).map_err(|error| Failure::ours(&error))?;
    let engine = &context.engine;
    let no_cache = arguments.has("no-cache");
    let loader = ContextLoader { engine, no_cache, events: context.events, stop: &context.kill };
    let loaded = loader.load(address, folder.path(), engine.context_limits).await?;
    let file = arguments.file.clone().unwrap_or_else(|| DOCKERFILE.to_owned());
    let path = folder.path();
    let (text, file) = blocking(move || {
        read_text(&path, &file, "Dockerfile", DOCKERFILE_SIZE_MAX).map(|text| (text, file))
    })
    .await??;
    let mut options = ContextOptions::of(loaded.files);
    options.dockerfile = Some(file.clone());
    options.entries_max = engine.context_limits.entries_max;
    let time = loaded.repository.map(|repository| repository.time);
    let dockerfile = NamedDockerfile { name: file, text };
    Ok(Source { options, dockerfile, time, _folder: folder })
}

/// What the arguments of the step mean to the builder.
fn run_request(context: &TaskContext<'_>, build: &Build) -> Result<RunRequest, Failure> {
    let BuildArguments { tags, target, build_args, options: more, .. } = &build.arguments;
    let value_of = |name: &str| build.container.env.get(name).unwrap_or_default().to_owned();
    let secrets = context.request.values.iter().filter(|value| value.secret);
    let secrets: Vec<&str> =
        secrets.map(|value| value.value.as_str()).filter(|value| !value.is_empty()).collect();
    let arguments = build_args.iter().map(|(name, value)| {
        let (name, value) = (name.clone(), value.clone().unwrap_or_else(|| value_of(name)));
        let secret = secrets.iter().any(|secret| value.contains(secret));
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
        network: default_network(&build.container),
        source_date_epoch: None,
        compression: Compression::default(),
        options: BuildOptions::default(),
    };
    let mut annotations = BTreeMap::new();
    let mut platforms = Vec::new();
    for option in more {
        match (option.name, option.value.as_deref()) {
            ("platform", Some(value)) => platforms.extend(several_platforms(value)?),
            ("annotation", Some(value)) => {
                let (name, value) = pair(value);
                annotations.insert(name, value);
            }
            _ => apply(&mut step, option)?,
        }
    }
    if !platforms.is_empty() {
        step.platforms = platforms;
    }
    step.options.annotations =
        Annotations::parse(&annotations).map_err(|error| Failure::user(&error, None))?;
    if step.network == Network::Host && !context.engine.allow_host_network {
        return Err(Failure::User(
            "error: this server does not let builds use the host's network\n\
             hint: an administrator can allow it with `build.allow_host_network`"
                .to_owned(),
        ));
    }
    let (run, now) = (context.request.run.clone(), context.request.now);
    Ok(RunRequest { run, step, timeout: NO_TIMEOUT, now })
}

/// A step's network is that of its build's `RUN`s.
fn default_network(container: &Container) -> Network {
    match container.network.as_deref() {
        Some("none") => Network::None,
        Some("host") => Network::Host,
        _ => Network::Isolated,
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
    let malformed = |form: &str| {
        let text = format!("error: `--{} {value}` is not of the form `{form}`", option.name);
        Failure::User(text)
    };
    match option.name {
        "label" => {
            let (name, value) = pair(value);
            options.labels.insert(name, value);
        }
        "network" => {
            step.network = match value {
                "none" => Network::None,
                "host" => Network::Host,
                _ => Network::Isolated,
            };
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
        // They choose how the reference's tools work, not what comes out.
        "builder" | "cgroup-parent" | "isolation" | "progress" | "provenance" | "sbom"
        | "attest" | "security-opt" | "allow" | "false" => (),
        name => return Err(unsupported(name)),
    }
    Ok(())
}

fn unsupported(option: &str) -> Failure {
    Failure::User(format!("error: `--{option}` is not possible in a `build` step"))
}
