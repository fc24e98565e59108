//! `refit build`: context up, run queued, events followed, result told.

mod cache;
mod check;

use std::path::{Path, PathBuf};

use api::{
    Argument, BuildOptions, BuildSecret, DockerBuildRequest, NamedContextContent,
    PlatformProperties, Run, RunRequest, RunStatus, SetValue,
};
use base64::Engine as _;

use super::Session;
use super::quick_task::{
    AuthArgs, EgressArgs, LogArgs, PoolArgs, ProgressArgs, check_timeout, own_platform,
    parse_platform, report, see_to_end, upload,
};
use super::task_input::named_values;
use crate::connection::Connection;
use crate::context::{Content, Context, NamedContent, NamedContext};
use crate::error::{Error, ErrorKind, Result, could_not};
use crate::export::{self, BuiltImage, Exports, can_write};
use crate::interrupt::Interrupts;
use crate::printer::Table;
use crate::progress::Display;
use crate::ssh::Agents;

/// A secret has at most this many bytes.
const SECRET_SIZE_MAX: usize = 500 << 10;

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

    #[command(flatten)]
    progress: ProgressArgs,

    #[command(flatten)]
    pool: PoolArgs,

    #[command(flatten)]
    egress: EgressArgs,

    #[command(flatten)]
    auth: AuthArgs,

    #[command(flatten)]
    log: LogArgs,
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
    let mut display = Display::new(args.progress.mode(), session.printer, session.environment);

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
    let seen = see_to_end(connection, run, &agents, display, interrupts).await;
    drop(agents);
    let (run, ended) = seen?;
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
    check_timeout(args.timeout)?;
    Ok(DockerBuildRequest {
        agent_configuration: args.egress.agent_configuration(),
        credentials: args.auth.credentials(),
        log_template: args.log.template.clone(),
        is_push_enabled: !args.no_push && !names.is_empty(),
        image_names: names,
        no_cache: args.no_cache,
        docker_file_path: String::new(),
        target: args.target.clone(),
        arguments: arguments(args, session)?,
        timeout: args.timeout,
        platform,
        source_location: None,
        agent_pool_name: args.pool.pool.clone(),
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
        return Ok(vec![own_platform()]);
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
    let values = named_values(&args.build_args, &args.secret_build_args, session.environment)?;
    let arguments = values.into_iter().map(|SetValue { name, value, is_secret }| Argument {
        name,
        value: value.unwrap_or_default(),
        is_secret,
    });
    Ok(arguments.collect())
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
