//! `refit build`: context up, run queued, events followed, result told.

mod cache;
mod check;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::{
    Argument, BuildOptions, BuildSecret, DockerBuildRequest, ImageDescriptor, NamedContextContent,
    PlatformProperties, Run, RunRequest, RunStatus,
};
use base64::Engine as _;
use tokio::time::{MissedTickBehavior, interval};

use super::Session;
use crate::OutputFormat;
use crate::connection::Connection;
use crate::context::{self, Content, Context, NamedContent, NamedContext, Upload};
use crate::error::{Error, ErrorKind, Result, could_not};
use crate::export::{self, BuiltImage, Exports, can_write};
use crate::follow::{self, Followed};
use crate::interrupt::Interrupts;
use crate::printer::Table;
use crate::progress::{Display, ProgressMode, size};
use crate::ssh::{Agents, Forwarding};

/// A secret has at most this many bytes.
const SECRET_SIZE_MAX: usize = 500 << 10;

/// How often a display is redrawn.
const TICK: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder to build from; or address of a git repository or an archive, which the server
    /// fetches; or /dev/null for none
    #[arg(default_value = ".", value_name = "CONTEXT")]
    context: String,

    /// Name for the image, with or without a tag; may be given several times
    #[arg(long = "image", short = 't', visible_alias = "tag", value_name = "NAME:TAG")]
    images: Vec<String>,

    /// Dockerfile, relative to the working directory, or to the root of a context that is
    /// elsewhere [default: CONTEXT/Dockerfile]
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Value for an `ARG`; without =VALUE it comes from the environment
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    build_args: Vec<String>,

    /// As --build-arg, with a value that logs do not show
    #[arg(long = "secret-build-arg", value_name = "NAME[=VALUE]")]
    secret_build_args: Vec<String>,

    /// Value for `RUN --mount=type=secret`: a file, or a variable of the environment
    #[arg(long = "secret", value_name = "id=ID[,src=FILE|,env=NAME]")]
    secrets: Vec<String>,

    /// Agent for `RUN --mount=type=ssh`: that of SSH_AUTH_SOCK, or one by its socket, or one that
    /// is started for private keys; may be given several times
    #[arg(long = "ssh", value_name = "default|ID[=SOCKET|KEY[,KEY]]")]
    ssh: Vec<String>,

    /// Line for /etc/hosts of every `RUN`
    #[arg(long = "add-host", value_name = "NAME=ADDRESS")]
    extra_hosts: Vec<String>,

    /// Limit of every process, such as nofile=1024:2048
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]")]
    ulimits: Vec<String>,

    /// Size of /dev/shm, such as 128m
    #[arg(long, value_name = "SIZE")]
    shm_size: Option<String>,

    /// Label to add to the image
    #[arg(long = "label", value_name = "NAME[=VALUE]")]
    labels: Vec<String>,

    /// Annotation to add to the image's manifest, or to what TYPE names
    #[arg(long = "annotation", value_name = "[TYPE:]NAME=VALUE")]
    annotations: Vec<String>,

    /// Name that stands for a folder, a git repository, an archive, an image, or an image in an
    /// OCI layout
    #[arg(
        long = "build-context",
        value_name = "NAME=PATH|ADDRESS|docker-image://IMAGE|oci-layout://PATH[:TAG]"
    )]
    build_contexts: Vec<String>,

    /// Stage to stop at
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,

    /// Platforms to build for, OS[/ARCHITECTURE[/VARIANT]]; several, also after commas, give one
    /// index
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<String>,

    /// Execute every instruction again
    #[arg(long)]
    no_cache: bool,

    /// Execute every instruction of these stages again
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    no_cache_filter: Vec<String>,

    /// Image with a build cache, of any registry, to take results from that are not in the own cache;
    /// may be given several times
    #[arg(long = "cache-from", value_name = "type=registry,ref=IMAGE|IMAGE")]
    cache_from: Vec<String>,

    /// Image of the registry to put the build's results into, for builds of other servers: those of
    /// the image, or all with mode=max
    #[arg(long = "cache-to", value_name = "type=registry,ref=IMAGE[,mode=min|max]|IMAGE")]
    cache_to: Vec<String>,

    /// Tell for each instruction why the cache had its result, or what changed
    #[arg(long)]
    cache_explain: bool,

    /// Ask for base images again; this is always done
    #[arg(long)]
    pull: bool,

    /// Keep the image out of the registry
    #[arg(long)]
    no_push: bool,

    /// Show no log; only the result
    #[arg(long)]
    no_logs: bool,

    /// Print the run once it is queued, and leave
    #[arg(long)]
    no_wait: bool,

    /// Seconds until the run is ended, 300 to 28800
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,

    /// Network of `RUN`: default or none
    #[arg(long, value_name = "MODE")]
    network: Option<String>,

    /// File to write what was built to, as JSON
    #[arg(long, value_name = "FILE")]
    metadata_file: Option<PathBuf>,

    /// Tell what the Dockerfile says that is seldom meant, and build nothing
    #[arg(long)]
    check: bool,

    /// How progress is shown
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    progress: ProgressMode,

    #[command(flatten)]
    unsupported: Unsupported,
}

/// Flags of later versions: refused, never ignored.
#[derive(Debug, clap::Args)]
struct Unsupported {
    #[arg(long, hide = true)]
    agent_pool: Option<String>,
    #[arg(long, hide = true)]
    log_template: Option<String>,
    #[arg(long, hide = true)]
    auth_mode: Option<String>,
    #[arg(long, hide = true)]
    source_acr_auth_id: Option<String>,
}

impl Unsupported {
    fn refuse(&self) -> Result<()> {
        let given = [
            ("--agent-pool", self.agent_pool.is_some()),
            ("--log-template", self.log_template.is_some()),
            ("--auth-mode", self.auth_mode.is_some()),
            ("--source-acr-auth-id", self.source_acr_auth_id.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(Error::usage(format!("`{flag}` is not supported yet"))),
            None => Ok(()),
        }
    }
}

impl Args {
    pub(super) fn needs_server(&self) -> bool {
        !self.check
    }
}

pub(super) async fn run(
    session: &Session<'_>,
    args: Args,
    interrupts: &mut Interrupts,
) -> Result<()> {
    args.unsupported.refuse()?;
    if args.check {
        return check::run(session, &args);
    }
    let platforms = platforms(&args)?;
    let exports = Exports::prepare(session.global.exports(), &args.images, platforms.len())?;
    if args.no_wait && !args.ssh.is_empty() {
        return Err(Error::usage("`--ssh` needs this command until the run's end")
            .with_hint("leave `--no-wait` away"));
    }
    if args.no_wait && exports.are_written() {
        return Err(Error::usage("`--output type=…` needs the end of the run")
            .with_hint("leave `--no-wait` away"));
    }
    if let Some(file) = &args.metadata_file {
        if args.no_wait {
            return Err(Error::usage("`--metadata-file` needs the end of the run")
                .with_hint("leave `--no-wait` away"));
        }
        can_write(file)?;
    }
    let connection = session.connection()?;
    let mut request = request(&args, &exports, platforms, session)?;
    let context = Context::find(&args.context, args.file.as_deref())?;
    let contexts = NamedContext::find_all(&args.build_contexts)?;
    match &context {
        Context::Local(source) => {
            request.docker_file_path.clone_from(&source.dockerfile_path);
            request.docker_file_name = Some(source.dockerfile_name.clone());
        }
        Context::Remote(remote) => request.docker_file_path.clone_from(&remote.dockerfile_path),
    }
    let agents = tokio::select! {
        agents = Agents::open(&args.ssh, session.environment) => agents?,
        () = interrupts.next() => return Err(Error::interrupted()),
    };
    request.build_options.ssh = agents.ids();
    if !args.no_push && args.images.is_empty() && exports.is_empty() {
        session.printer.note("The image gets no name (`-t`), so it is not pushed");
    }
    let mode = if args.no_logs { ProgressMode::None } else { args.progress };
    let mut display = Display::new(mode, session.printer, session.environment);

    let uploading = async {
        let location = match context {
            Context::Local(source) => {
                let content = Content::Folder(source);
                upload(connection, session, "the context", content, &mut display).await?
            }
            Context::Remote(remote) => remote.address,
        };
        let mut named = Vec::new();
        for context in contexts {
            named.push(upload_named(connection, session, context, &mut display).await?);
        }
        Ok::<_, Error>((location, named))
    };
    let (location, named) = tokio::select! {
        uploaded = uploading => uploaded?,
        // Nothing is queued yet; the server sweeps what it received.
        () = interrupts.next() => return Err(Error::interrupted()),
    };
    request.source_location = Some(location);
    request.build_options.contexts = named;

    let route = connection.route(&["scheduleRun"]);
    let run: Run = connection.post(route, &RunRequest::DockerBuildRequest(request)).await?;
    let id = run.properties.run_id.clone();
    if args.no_wait {
        return session.printer.result(&run, &Table::lines([id]));
    }
    display.note(&format!("Queued a build with ID: {id}"));
    let ended = match agents.forward(connection, &id) {
        Ok(forwarding) => wait(connection, &id, &mut display, interrupts, forwarding).await,
        Err(error) => Err(error),
    };
    drop(agents);
    display.close();
    let ended = ended?;
    let run = match connection.get(connection.route(&["runs", &id])).await {
        // A server that was told to stop stays for the end of a run, and not much longer.
        Err(error) if error.kind() == ErrorKind::Unreachable => as_told(run, &ended),
        asked => asked?,
    };
    let written = tokio::select! {
        written = write(&args, &exports, connection, session, &run) => written,
        () = interrupts.next() => Err(Error::interrupted()),
    };
    // What was built is told even so.
    report(session, &run, ended, exports.take_stdout()).and(written)
}

/// Writes what was built to where the flags say.
async fn write(
    args: &Args,
    exports: &Exports,
    connection: &Connection,
    session: &Session<'_>,
    run: &Run,
) -> Result<()> {
    let properties = &run.properties;
    let is_wanted = exports.are_written() || args.metadata_file.is_some();
    let image = match properties.status {
        RunStatus::Succeeded if is_wanted => {
            let digest = properties.output_digest.as_deref();
            match BuiltImage::find(connection, &properties.run_id, digest).await {
                // A server that was told to stop; the digest is known even so.
                Err(error) if error.kind() == ErrorKind::Unreachable && !exports.are_written() => {
                    None
                }
                found => Some(found?),
            }
        }
        _ => None,
    };
    if let Some(image) = &image {
        exports.write(image, |what| session.printer.note(&what)).await?;
    }
    match &args.metadata_file {
        Some(file) => write_metadata(file, run, image.as_ref(), &args.images),
        None => Ok(()),
    }
}

/// What the flags ask for; the source is not known yet.
fn request(
    args: &Args,
    exports: &Exports,
    mut platforms: Vec<PlatformProperties>,
    session: &Session<'_>,
) -> Result<DockerBuildRequest> {
    let names = exports.pushed_names();
    let platform = platforms[0].clone();
    if platforms.len() == 1 {
        platforms.clear();
    }
    if let Some(timeout) = args.timeout
        && !(300..=28_800).contains(&timeout)
    {
        return Err(Error::usage(format!("`--timeout {timeout}` is not between 300 and 28800")));
    }
    Ok(DockerBuildRequest {
        is_push_enabled: !args.no_push && !names.is_empty(),
        image_names: names,
        no_cache: args.no_cache,
        docker_file_path: String::new(),
        target: args.target.clone(),
        arguments: arguments(args, session)?,
        timeout: args.timeout,
        platform,
        source_location: None,
        agent_pool_name: None,
        is_archive_enabled: false,
        source_date_epoch: source_date_epoch(session)?,
        network: args.network.clone(),
        docker_file_name: None,
        build_options: build_options(args, exports, platforms, session)?,
    })
}

/// At least one; each once.
fn platforms(args: &Args) -> Result<Vec<PlatformProperties>> {
    if args.platform.is_empty() {
        return Ok(vec![parse_platform("linux")?]);
    }
    let mut platforms = Vec::new();
    for text in &args.platform {
        let platform = parse_platform(text)?;
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    Ok(platforms)
}

/// The values for `ARG`s.
fn arguments(args: &Args, session: &Session<'_>) -> Result<Vec<Argument>> {
    let plain = args.build_args.iter().map(|text| (text, false));
    let secret = args.secret_build_args.iter().map(|text| (text, true));
    let arguments = plain.chain(secret).filter_map(|(text, is_secret)| {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text.as_str(), session.environment.variable(text)),
        };
        if name.is_empty() {
            return Some(Err(Error::usage(format!("the build argument `{text}` has no name"))));
        }
        // A variable that is not set leaves the default of the `ARG`.
        Some(Ok(Argument { name: name.into(), value: value?.into(), is_secret }))
    });
    arguments.collect()
}

fn build_options(
    args: &Args,
    exports: &Exports,
    platforms: Vec<PlatformProperties>,
    session: &Session<'_>,
) -> Result<BuildOptions> {
    let layers = exports.layers()?;
    let secret = |text: &String| secret(text, session);
    let pair = |text: &String| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        (name.to_owned(), value.to_owned())
    };
    let shm_size = match &args.shm_size {
        None => None,
        Some(text) => Some(dockerfile::bytes(text).ok_or_else(|| {
            Error::usage(format!("`--shm-size {text}` is not a size")).with_hint("such as `128m`")
        })?),
    };
    if let Some(text) = args.annotations.iter().find(|text| !text.contains('=')) {
        return Err(Error::usage(format!("the annotation `{text}` has no value")));
    }
    Ok(BuildOptions {
        secrets: args.secrets.iter().map(secret).collect::<Result<_>>()?,
        ssh: Vec::new(),
        extra_hosts: args.extra_hosts.clone(),
        ulimits: args.ulimits.clone(),
        shm_size,
        labels: args.labels.iter().map(pair).collect(),
        annotations: args.annotations.iter().map(pair).collect(),
        no_cache_stages: args.no_cache_filter.iter().map(|stage| stage.to_lowercase()).collect(),
        explain_cache: args.cache_explain,
        cache_from: args
            .cache_from
            .iter()
            .map(|text| cache::import(text))
            .collect::<Result<_>>()?,
        cache_to: args.cache_to.iter().map(|text| cache::export(text)).collect::<Result<_>>()?,
        compression: layers.compression.map(|format| format.as_str().to_owned()),
        compression_level: layers.level,
        force_compression: layers.force,
        contexts: Vec::new(),
        platforms,
    })
}

/// Reads a secret: `id=ID,src=FILE`, `id=ID,env=NAME`, or `id=ID`, which is the variable of that
/// name if there is one, and else the file.
fn secret(text: &str, session: &Session<'_>) -> Result<BuildSecret> {
    let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
    let fields = dockerfile::comma_separated(text).map_err(Error::usage)?;
    for field in &fields {
        let place = match field.split_once('=') {
            Some(("id", value)) => (&mut id, value),
            Some(("src" | "source", value)) => (&mut file, value),
            Some(("env", value)) => (&mut variable, value),
            Some(("type", value @ ("file" | "env"))) => (&mut kind, value),
            _ => {
                let error = Error::usage(format!("`{field}` is no part of a secret"));
                return Err(error.with_hint("a secret is `id=ID,src=FILE` or `id=ID,env=NAME`"));
            }
        };
        *place.0 = Some(place.1);
    }
    let Some(id) = id.filter(|id| !id.is_empty()) else {
        let error = Error::usage(format!("the secret `{text}` has no id"));
        return Err(error.with_hint("begin it with `id=ID`"));
    };
    let environment = |name: &str| session.environment.variable(name);
    // `type=env,src=NAME` is another way to name a variable.
    if kind == Some("env") && variable.is_none() {
        variable = Some(file.take().unwrap_or(id));
    }
    if variable.is_none() && file.is_none() && environment(id).is_some() && kind.is_none() {
        variable = Some(id);
    }
    let value = match variable {
        Some(name) => match environment(name) {
            Some(value) => value.as_bytes().to_vec(),
            None => {
                let message = format!("the variable `{name}` of secret `{id}` is not set");
                return Err(Error::usage(message));
            }
        },
        None => {
            let file = file.unwrap_or(id);
            std::fs::read(file).map_err(|error| {
                Error::usage(format!("secret `{id}` cannot be read from `{file}`: {error}"))
            })?
        }
    };
    if value.len() > SECRET_SIZE_MAX {
        return Err(Error::usage(format!("secret `{id}` is larger than 500 KiB")));
    }
    let value = base64::engine::general_purpose::STANDARD.encode(value);
    Ok(BuildSecret { id: id.to_owned(), value })
}

fn source_date_epoch(session: &Session<'_>) -> Result<Option<i64>> {
    let Some(text) = &session.environment.source_date_epoch else { return Ok(None) };
    match text.parse::<i64>() {
        Ok(seconds) if seconds >= 0 => Ok(Some(seconds)),
        _ => Err(Error::usage(format!("`SOURCE_DATE_EPOCH` is `{text}`, not a count of seconds"))),
    }
}

/// `OS[/ARCHITECTURE[/VARIANT]]`; the server knows which there are.
fn parse_platform(text: &str) -> Result<PlatformProperties> {
    let lower = text.to_ascii_lowercase();
    let mut parts = lower.split('/').map(|part| part.trim().to_owned());
    let (os, architecture, variant) = (parts.next(), parts.next(), parts.next());
    match os {
        Some(os) if !os.is_empty() && parts.next().is_none() => {
            Ok(PlatformProperties { os, architecture, variant })
        }
        _ => Err(Error::usage(format!("`{text}` is not a platform"))
            .with_hint("it looks like `linux/amd64`")),
    }
}

/// Sends what a named context needs.
async fn upload_named(
    connection: &Connection,
    session: &Session<'_>,
    context: NamedContext,
    display: &mut Display,
) -> Result<api::NamedContext> {
    let what = format!("context `{}`", context.name);
    let content = match context.content {
        NamedContent::Image(image) => NamedContextContent::Image { image },
        NamedContent::Remote(address) => NamedContextContent::Files { source_location: address },
        NamedContent::Folder(source) => {
            let content = Content::Folder(source);
            let source_location = upload(connection, session, &what, content, display).await?;
            NamedContextContent::Files { source_location }
        }
        NamedContent::Layout(layout) => {
            let digest = layout.digest.clone();
            let content = Content::Layout(layout);
            let source_location = upload(connection, session, &what, content, display).await?;
            NamedContextContent::Layout { source_location, digest }
        }
    };
    Ok(api::NamedContext { name: context.name, content })
}

/// Sends an archive, and tells where the server has it.
async fn upload(
    connection: &Connection,
    session: &Session<'_>,
    what: &str,
    content: Content,
    display: &mut Display,
) -> Result<String> {
    let sent = Arc::new(AtomicU64::new(0));
    let cache = session.environment.cache_folder.as_deref();
    let uploading = context::upload(connection, content, cache, Arc::clone(&sent));
    tokio::pin!(uploading);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let uploaded = loop {
        tokio::select! {
            uploaded = &mut uploading => break uploaded,
            _ = ticks.tick() => display.uploading(sent.load(Ordering::Relaxed)),
        }
    };
    display.uploaded();
    let Upload { relative_path, summary, travelled } = uploaded?;
    let files = if summary.files == 1 { "file" } else { "files" };
    let sent = match travelled {
        Some((0, _)) => ", none of which changed".to_owned(),
        Some((count, bytes)) if bytes < summary.size => format!(" ({count} new, {})", size(bytes)),
        _ => String::new(),
    };
    display.note(&format!("Sent {what}: {} {files}, {}{sent}", summary.files, size(summary.size)));
    for path in &summary.skipped {
        session.printer.warning(&format!("`{path}` is no file, folder or link, and is left out"));
    }
    if summary.skipped_more > 0 {
        let count = summary.skipped_more;
        session.printer.warning(&format!("{count} more like these are left out"));
    }
    Ok(relative_path)
}

/// How following a run ended.
struct Ended {
    status: RunStatus,
    error: Option<String>,
    /// References, as far as there are, and digests.
    images: Vec<(Option<String>, String)>,
    /// The user asked for it.
    interrupted: bool,
}

/// How long a second interrupt waits for the server to hear of the first.
const CANCEL_WAIT: std::time::Duration = std::time::Duration::from_secs(2);

/// Follows a run to its end. The first interrupt cancels it, the second leaves it.
async fn wait(
    connection: &Connection,
    id: &str,
    display: &mut Display,
    interrupts: &mut Interrupts,
    mut forwarding: Forwarding,
) -> Result<Ended> {
    let mut events = follow::events(connection.clone(), id.to_owned());
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut canceling: Option<tokio::task::JoinHandle<Result<()>>> = None;
    let mut images = Vec::new();
    loop {
        tokio::select! {
            followed = events.recv() => match take(followed, id, display)? {
                Some(api::EventKind::Image { reference, digest }) => {
                    images.push((reference, digest));
                }
                Some(api::EventKind::Finished { status, error }) => {
                    let interrupted = canceling.is_some();
                    return Ok(Ended { status, error, images, interrupted });
                }
                _ => (),
            },
            _ = ticks.tick() => display.tick(),
            Some(note) = forwarding.note() => display.note(&note),
            () = interrupts.next() => {
                if let Some(asked) = canceling {
                    // At once, but not before the server knows: the next owner of the data
                    // folder would take the run up again.
                    let answer = tokio::time::timeout(CANCEL_WAIT, asked).await;
                    return Err(match answer {
                        Ok(Ok(Ok(()))) => Error::interrupted(),
                        _ => Error::interrupted().with_hint(format!(
                            "the run may go on; `refit task cancel-run --run-id {id}` ends it"
                        )),
                    });
                }
                display.note("Canceling the build; interrupt again to leave at once");
                canceling = Some(tokio::spawn(cancel(connection.clone(), id.to_owned())));
            }
        }
    }
}

/// Shows what was told, and gives it back.
fn take(
    followed: Option<Followed>,
    id: &str,
    display: &mut Display,
) -> Result<Option<api::EventKind>> {
    match followed {
        Some(Followed::Event(event)) => {
            display.event(&event);
            Ok(Some(event.kind))
        }
        Some(Followed::Lost(why)) => {
            display.note(&format!("Lost the server, trying again: {why}"));
            Ok(None)
        }
        Some(Followed::Failed(error)) => {
            Err(error.with_hint(format!("see how it goes on with `refit task logs --run-id {id}`")))
        }
        None => Err(Error::failed("following the run ended early")),
    }
}

async fn cancel(connection: Connection, id: String) -> Result<()> {
    let url = connection.route(&["runs", &id, "cancel"]);
    match connection.send(reqwest::Method::POST, url).await {
        // It has ended by itself; following tells how.
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(()),
        other => other,
    }
}

/// The record of a run as its events told it, which is all but its times and its cost.
fn as_told(mut run: Run, ended: &Ended) -> Run {
    let properties = &mut run.properties;
    properties.status = ended.status;
    properties.provisioning_state = match ended.status {
        RunStatus::Succeeded => "Succeeded",
        RunStatus::Canceled => "Canceled",
        _ => "Failed",
    }
    .to_owned();
    properties.run_error_message.clone_from(&ended.error);
    for (reference, digest) in &ended.images {
        properties.output_digest = Some(digest.clone());
        let named = reference.as_deref().and_then(|reference| reference.split_once('/'));
        let Some((registry, name)) = named else { continue };
        let (repository, tag) = match name.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag.to_owned())),
            None => (name, None),
        };
        let image = ImageDescriptor {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            tag,
            digest: digest.clone(),
        };
        // Told again by a later attempt.
        if !properties.output_images.contains(&image) {
            properties.output_images.push(image);
        }
    }
    run
}

/// The result on stdout, or why there is none. Something else may be on stdout already.
fn report(session: &Session<'_>, run: &Run, ended: Ended, is_taken: bool) -> Result<()> {
    let id = &run.properties.run_id;
    match ended.status {
        RunStatus::Succeeded if is_taken => {
            images(run).iter().for_each(|image| session.printer.note(image));
            Ok(())
        }
        RunStatus::Succeeded => session.printer.result(run, &Table::lines(images(run))),
        _ => {
            let is_json =
                matches!(session.printer.format(), OutputFormat::Json | OutputFormat::Yaml);
            if is_json && !is_taken {
                session.printer.result(run, &Table::default())?;
            }
            let told = ended.error.or_else(|| run.properties.run_error_message.clone());
            Err(match (ended.status, ended.interrupted) {
                (RunStatus::Canceled, true) => {
                    Error::new(ErrorKind::Interrupted, format!("run `{id}` was canceled"))
                }
                (RunStatus::Canceled, false) => Error::failed(format!("run `{id}` was canceled")),
                (status, _) => {
                    let how = match status {
                        RunStatus::Timeout => "timed out",
                        RunStatus::Error => "met an error of the server",
                        _ => "failed",
                    };
                    let why = told.map(|told| format!(": {told}")).unwrap_or_default();
                    Error::failed(format!("run `{id}` {how}{why}"))
                }
            })
        }
    }
}

/// `repository@digest` per tag; the digest alone if there is none.
fn images(run: &Run) -> Vec<String> {
    let tagged = run.properties.output_images.iter();
    let tagged: Vec<_> =
        tagged.map(|image| format!("{}@{}", image.repository, image.digest)).collect();
    match tagged.is_empty() {
        true => run.properties.output_digest.iter().cloned().collect(),
        false => tagged,
    }
}

/// What other programs want to know, under the names that BuildKit's clients gave it.
fn write_metadata(
    file: &Path,
    run: &Run,
    image: Option<&BuiltImage<'_>>,
    named: &[String],
) -> Result<()> {
    let properties = &run.properties;
    let names = properties.output_images.iter().map(|image| match &image.tag {
        Some(tag) => format!("{}/{}:{tag}", image.registry, image.repository),
        None => format!("{}/{}", image.registry, image.repository),
    });
    let mut names: Vec<String> = names.collect();
    if names.is_empty() {
        names = named.to_vec();
    }
    let mut metadata = serde_json::json!({
        "containerimage.digest": properties.output_digest,
        "image.name": names.join(","),
        "refit.run": properties.run_id,
        "refit.status": properties.status,
    });
    if let Some(image) = image {
        if let Some(config) = image.config() {
            metadata["containerimage.config.digest"] = config.digest.as_str().into();
        }
        metadata["containerimage.descriptor"] = export::descriptor(&image.top.descriptor);
    }
    std::fs::write(file, format!("{metadata:#}\n"))
        .map_err(could_not(format!("write `{}`", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_can_be_told_from_its_events() {
        let queued = r#"{"id": "/c01", "name": "c01", "type": "runs", "properties": {
            "runId": "c01", "status": "Queued", "runType": "QuickBuild", "createTime": "",
            "lastUpdatedTime": "", "platform": {"os": "linux"}, "provisioningState": "Creating"}}"#;
        let image =
            |reference: Option<&str>| (reference.map(str::to_owned), "sha256:ab".to_owned());
        let told = |images| {
            let status = RunStatus::Succeeded;
            let ended = Ended { status, error: None, images, interrupted: false };
            as_told(serde_json::from_str(queued).unwrap(), &ended)
        };
        let run = told(vec![image(Some("localhost:5000/team/app:1")), image(Some("h:1/b:2"))]);
        assert_eq!(images(&run), ["team/app@sha256:ab", "b@sha256:ab"]);
        assert_eq!(run.properties.output_images[0].registry, "localhost:5000");
        assert_eq!(run.properties.output_images[1].tag.as_deref(), Some("2"));
        assert_eq!(run.properties.provisioning_state, "Succeeded");
        assert_eq!(images(&told(vec![image(None)])), ["sha256:ab"]);
    }

    #[test]
    fn a_platform_has_up_to_three_parts() {
        let parsed = parse_platform("Linux/ARM/v7").unwrap();
        assert_eq!(parsed.os, "linux");
        assert_eq!(parsed.architecture.as_deref(), Some("arm"));
        assert_eq!(parsed.variant.as_deref(), Some("v7"));
        assert_eq!(parse_platform("linux").unwrap().architecture, None);
        for bad in ["", "a/b/c/d", "/amd64"] {
            assert_eq!(parse_platform(bad).unwrap_err().kind(), ErrorKind::Usage, "{bad}");
        }
    }
}
