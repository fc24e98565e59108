//! Words of the API become words of the domain, checked.

mod access;
mod logins;
mod policies;
mod pools;
mod run_filter;
mod secrets;
mod stored_tasks;
mod task_runs;
mod tasks;
mod triggers;
mod webhooks;

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use builder::OwnNames;
use control::{
    BuildArgument, BuildOptions, BuildRequest, BuildSecret, CacheExport, ContextSource,
    NamedContext, RemoteSource,
};
use dockerfile::ContextAddress;
use engine::Destination;
use housekeeping::{AnnotateOptions, PurgeOptions};
use oci::{
    Annotations, Compression, CompressionError, Digest, Platform, Reference, RegistryName,
    RepositoryName,
};
use store::AttributesChange;

pub(crate) use access::{
    account_kind, account_name, enabled, holder, passwords, role, scope_map, scope_map_name, token,
    token_name,
};
use logins::logins_of_run;
pub(crate) use logins::name_hosts;
pub(crate) use policies::policies;
pub(crate) use pools::{pool, pool_name, pool_of_run};
pub(crate) use run_filter::run_filter;
pub(crate) use secrets::{secret, secret_name};
pub(crate) use stored_tasks::{
    merge, refuse_identity, task_definition, task_of_run, task_overrides, time, wanted_identity,
};
pub(crate) use task_runs::{lacks_secrets, without_secrets};
pub(crate) use tasks::{cpu, egress, encoded_task_request, file_task_request, task_name};
pub(crate) use triggers::{loosen_sources, source_trigger};
pub(crate) use webhooks::{webhook, webhook_name};

use crate::error::ApiError;

/// Names, arguments or values of one request.
const ITEMS_MAX: usize = 1000;

/// Named contexts of one build; each may be an upload.
const CONTEXTS_MAX: usize = 100;

/// Ssh agents of one build, and bytes of the id of one.
const SSH_AGENTS_MAX: usize = 16;
const SSH_ID_LEN_MAX: usize = 64;

/// Caches that one build takes results from, and as many that it is put into.
const CACHES_MAX: usize = 16;

/// Platforms of one build, all of which are built at once.
const PLATFORMS_MAX: usize = 16;

/// An address of a context, in bytes.
const ADDRESS_SIZE_MAX: usize = 8 << 10;

/// A secret of a build, in bytes.
const SECRET_SIZE_MAX: usize = 500 << 10;

/// Runs.md section 1.2.
const TIMEOUT_SECONDS: std::ops::RangeInclusive<u32> = 300..=28_800;

/// Uploads by the locations that a request gives for them.
pub(crate) type Uploads = BTreeMap<String, ContextSource>;

/// What a build request needs besides what the client says.
pub(crate) struct BuildDefaults {
    pub(crate) timeout: Duration,
    pub(crate) allow_host_network: bool,
    pub(crate) compression: Compression,
}

pub(crate) fn build_request(
    body: api::DockerBuildRequest,
    context: ContextSource,
    uploads: &Uploads,
    defaults: &BuildDefaults,
) -> Result<BuildRequest, ApiError> {
    if body.image_names.len() > ITEMS_MAX || body.arguments.len() > ITEMS_MAX {
        let message = format!("more than {ITEMS_MAX} image names or arguments");
        return Err(ApiError::invalid(message));
    }
    for name in &body.image_names {
        image_name(name)?;
    }
    Ok(BuildRequest {
        logins: logins_of_run(body.credentials)?,
        push: body.is_push_enabled,
        no_cache: body.no_cache,
        dockerfile: path_in_source(body.docker_file_path, "dockerFilePath")?,
        dockerfile_name: body.docker_file_name,
        target: body.target.filter(|target| !target.is_empty()),
        arguments: body.arguments.into_iter().map(argument).collect::<Result<_, _>>()?,
        timeout: timeout(body.timeout, defaults.timeout)?,
        platform: platform(&body.platform)?,
        context,
        source_date_epoch: body.source_date_epoch,
        network: network(body.network, defaults.allow_host_network)?,
        archived: body.is_archive_enabled,
        options: build_options(body.build_options, uploads, defaults.compression)?,
        image_names: body.image_names,
        egress: Vec::new(),
    })
}

/// Where a client says that the files of a context are.
pub(crate) enum SourceLocation<'a> {
    /// The path that an upload gave.
    Upload(&'a str),
    Remote(RemoteSource),
}

impl<'a> SourceLocation<'a> {
    pub(crate) fn parse(location: &'a str) -> Result<Self, ApiError> {
        if location.len() > ADDRESS_SIZE_MAX {
            let message = format!("an address with more than {ADDRESS_SIZE_MAX} bytes");
            return Err(ApiError::invalid(message).at("sourceLocation"));
        }
        let (shown, secret) = match ContextAddress::of(location) {
            ContextAddress::Git(Ok(address)) => {
                (address.to_string(), address.secret().map(str::to_owned))
            }
            ContextAddress::Git(Err(error)) => {
                return Err(ApiError::invalid(error.to_string()).at("sourceLocation"));
            }
            ContextAddress::Archive(address) => {
                (address.to_string(), address.secret().map(str::to_owned))
            }
            ContextAddress::Artifact(Ok(_)) => (location.to_owned(), None),
            ContextAddress::Artifact(Err(error)) => {
                let refused = ApiError::invalid(error.to_string()).at("sourceLocation");
                return Err(refused.hint(error.hint()));
            }
            ContextAddress::Nothing | ContextAddress::Local => return Ok(Self::Upload(location)),
        };
        // The password alone too: it may be seen without its user.
        let decoded = secret.as_deref().map(|secret| {
            percent_encoding::percent_decode_str(secret).decode_utf8_lossy().into_owned()
        });
        let mut secrets = Vec::new();
        for secret in secret.into_iter().chain(decoded) {
            let password = secret.split_once(':').map(|(_, password)| password.to_owned());
            for secret in std::iter::once(secret).chain(password) {
                if !secret.is_empty() && !secrets.contains(&secret) {
                    secrets.push(secret);
                }
            }
        }
        let address = location.to_owned();
        Ok(Self::Remote(RemoteSource { address, shown, secrets, branch: None }))
    }

    /// Where the context of a run is, if it has one.
    pub(crate) fn of(location: Option<&'a str>) -> Result<Option<Self>, ApiError> {
        let location = location.filter(|location| !location.is_empty());
        match location.map(|location| (location, ContextAddress::of(location))) {
            None | Some((_, ContextAddress::Nothing)) => Ok(None),
            Some((location, _)) => Self::parse(location).map(Some),
        }
    }

    /// The same for what cannot be without one.
    pub(crate) fn needed(what: &str, location: Option<&'a str>) -> Result<Self, ApiError> {
        Self::of(location)?.ok_or_else(|| {
            ApiError::invalid(format!("{what} needs a source"))
                .at("sourceLocation")
                .hint("upload a context and give its `relativePath`, or give an address")
        })
    }
}

fn image_name(name: &str) -> Result<(), ApiError> {
    if name.contains("{{") {
        // What it comes to is known only in the run.
        let rendered = task::render(name, &sample_variables(), &task::Secrets::new());
        let refuse =
            |error| ApiError::invalid(format!("`{}`: {error}", cut(name))).at("imageNames");
        return rendered.map(drop).map_err(refuse);
    }
    let reference = name.parse::<Reference>().map_err(|error| {
        let refused = ApiError::invalid(error.to_string()).at("imageNames");
        match error.hint() {
            Some(hint) => refused.hint(hint),
            None => refused,
        }
    })?;
    match reference.digest {
        Some(_) => {
            Err(ApiError::invalid(format!("`{name}` names a digest, which only content can have"))
                .at("imageNames")
                .hint("name a tag instead"))
        }
        None => Ok(()),
    }
}

/// Such as a run may have: a template that fits them is taken.
fn sample_variables() -> task::Variables {
    let text = |text: &str| text.to_owned();
    let run = task::RunVariables {
        id: text("ca1"),
        registry: text("localhost:5000"),
        commit: "0123456789".repeat(4),
        branch: text("main"),
        repository: text("https://example.com/app.git"),
        git_tag: text("v1.0"),
        triggered_by: text("example"),
        task_name: text("example"),
        shared_volume: text("workspace_ca1"),
        os: text("linux"),
        architecture: text("amd64"),
        ..task::RunVariables::default()
    };
    task::Variables { run, ..task::Variables::default() }
}

/// An import as it was asked for.
pub(crate) struct Import {
    pub(crate) from: ImportedFrom,
    pub(crate) tags: Vec<Destination>,
    pub(crate) untagged: Vec<RepositoryName>,
    pub(crate) force: bool,
    pub(crate) platform: Option<Platform>,
}

pub(crate) enum ImportedFrom {
    Image {
        reference: Reference,
        credentials: Option<api::ImportCredentials>,
    },
    /// An upload, and which image of it.
    Archive {
        location: String,
        digest: Option<Digest>,
    },
}

impl std::fmt::Display for ImportedFrom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Image { reference, .. } => write!(f, "{reference}"),
            Self::Archive { .. } => f.write_str("an archive"),
        }
    }
}

pub(crate) fn import_request(
    body: api::ImportRequest,
    registry: &RegistryName,
    own: &OwnNames,
) -> Result<Import, ApiError> {
    if body.target_tags.len() + body.untagged_target_repositories.len() > ITEMS_MAX {
        return Err(ApiError::invalid(format!("more than {ITEMS_MAX} names")));
    }
    if body.target_tags.is_empty() && body.untagged_target_repositories.is_empty() {
        return Err(ApiError::invalid("the image would have no name").at("targetTags"));
    }
    let tag = |name: &String| {
        Destination::parse(name, registry, own).map_err(|error| {
            let refused = ApiError::invalid(error.to_string()).at("targetTags");
            match error.hint() {
                Some(hint) => refused.hint(hint),
                None => refused,
            }
        })
    };
    let repository = |name: &String| {
        name.parse::<RepositoryName>()
            .map_err(|error| ApiError::invalid(error.to_string()).at("untaggedTargetRepositories"))
    };
    let platform = body.platform.as_deref().map(str::parse::<Platform>).transpose();
    let platform = platform.map_err(|error| ApiError::invalid(error.to_string()).at("platform"))?;
    Ok(Import {
        from: imported_from(body.source)?,
        tags: body.target_tags.iter().map(tag).collect::<Result<_, _>>()?,
        untagged: body
            .untagged_target_repositories
            .iter()
            .map(repository)
            .collect::<Result<_, _>>()?,
        force: body.mode == api::ImportMode::Force,
        platform,
    })
}

pub(crate) fn imported_from(source: api::ImportSource) -> Result<ImportedFrom, ApiError> {
    let refuse = |message: String| ApiError::invalid(message).at("source");
    match (source.source_image, source.source_location) {
        (Some(image), None) => {
            let name = match &source.registry_uri {
                Some(host) => format!("{host}/{image}"),
                None => image,
            };
            let reference = name.parse::<Reference>().map_err(|error| refuse(error.to_string()))?;
            Ok(ImportedFrom::Image { reference, credentials: source.credentials })
        }
        (None, Some(location)) => {
            let digest = source.digest.as_deref().map(str::parse::<Digest>).transpose();
            let digest = digest.map_err(|error| refuse(error.to_string()))?;
            Ok(ImportedFrom::Archive { location, digest })
        }
        _ => Err(refuse("either `sourceImage` or `sourceLocation` names the image".to_owned())),
    }
}

/// A relative path that stays inside the context.
fn path_in_source(path: String, member: &str) -> Result<String, ApiError> {
    let inside = !path.is_empty()
        && path.len() <= 4096
        && !path.starts_with('/')
        && !path.contains('\0')
        && path.split('/').all(|part| part != "..");
    match inside {
        true => Ok(path),
        false => {
            let message = format!("`{}` is not a path inside the source", cut(&path));
            Err(ApiError::invalid(message).at(member))
        }
    }
}

fn argument(argument: api::Argument) -> Result<BuildArgument, ApiError> {
    let api::Argument { name, value, is_secret } = argument;
    let legal = !name.is_empty() && !name.contains(['=', '\0', '\n']) && !value.contains('\0');
    match legal {
        true => Ok(BuildArgument { name, value, secret: is_secret }),
        false => Err(ApiError::invalid(format!("`{}` is not the name of an argument", cut(&name)))
            .at("arguments")),
    }
}

/// The uploads that named contexts need.
pub(crate) fn named_uploads(body: &api::DockerBuildRequest) -> Result<Vec<&str>, ApiError> {
    let contexts = &body.build_options.contexts;
    if contexts.len() > CONTEXTS_MAX {
        let message = format!("more than {CONTEXTS_MAX} named contexts");
        return Err(ApiError::invalid(message).at("buildOptions"));
    }
    let locations = contexts.iter().filter_map(|context| context.content.source_location());
    let uploads = locations.filter_map(|location| match SourceLocation::parse(location) {
        Ok(SourceLocation::Upload(location)) => Some(Ok(location)),
        Ok(SourceLocation::Remote(_)) => None,
        Err(error) => Some(Err(error)),
    });
    uploads.collect()
}

/// Names of one image are one name; of several contexts with it the last counts.
fn named_context(
    context: api::NamedContext,
    uploads: &Uploads,
) -> Result<(String, NamedContext), ApiError> {
    use api::NamedContextContent as Content;
    let refuse = |message: String| ApiError::invalid(message).at("buildOptions");
    let shown = cut(&context.name);
    let parsed = context.name.parse::<Reference>().ok().filter(|name| name.digest.is_none());
    let parsed = parsed.ok_or_else(|| {
        refuse(format!("`{shown}` cannot name a context"))
            .hint("a context has the name of a stage or an image")
    })?;
    let name = parsed.shortest();
    if matches!(name.as_str(), "scratch" | "context") {
        return Err(refuse(format!("no context can be named `{name}`")));
    }
    let upload = |location: &str| {
        let upload = uploads.get(location).cloned();
        upload.ok_or_else(|| refuse(format!("context `{name}` has no uploaded source")))
    };
    let content = match context.content {
        Content::Files { source_location } => {
            let source = match SourceLocation::parse(&source_location)? {
                SourceLocation::Upload(location) => upload(location)?,
                SourceLocation::Remote(remote) => ContextSource::Remote(remote),
            };
            NamedContext::Files { source }
        }
        Content::Layout { source_location, digest } => {
            let manifest = digest.parse::<Digest>();
            let manifest =
                manifest.map_err(|error| refuse(format!("context `{name}`: {error}")))?;
            match upload(&source_location)? {
                ContextSource::Upload(source) => NamedContext::Layout { source, manifest },
                ContextSource::Listed { .. } | ContextSource::Remote(_) => {
                    let message = format!("context `{name}`: a layout is uploaded as an archive");
                    return Err(refuse(message));
                }
            }
        }
        Content::Image { image } => {
            let parsed = image.parse::<Reference>();
            parsed.map_err(|error| refuse(format!("context `{name}`: {error}")))?;
            NamedContext::Image { reference: image }
        }
    };
    Ok((name, content))
}

/// What an ssh agent is called.
fn ssh_id(id: String) -> Result<String, ApiError> {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    let starts_well = id.starts_with(|first: char| first.is_ascii_alphanumeric());
    match starts_well && id.len() <= SSH_ID_LEN_MAX && id.bytes().all(is_fine) {
        true => Ok(id),
        false => {
            let message = format!("`{}` is not the id of an ssh agent", cut(&id));
            Err(ApiError::invalid(message).at("buildOptions").hint(format!(
                "an id has at most {SSH_ID_LEN_MAX} letters, digits, `_`, `-` and `.`, and begins \
                 with one of the first two"
            )))
        }
    }
}

fn build_options(
    options: api::BuildOptions,
    uploads: &Uploads,
    usual: Compression,
) -> Result<BuildOptions, ApiError> {
    let refuse = |message: String| ApiError::invalid(message).at("buildOptions");
    let counts = [
        options.secrets.len(),
        options.extra_hosts.len(),
        options.ulimits.len(),
        options.labels.len(),
        options.annotations.len(),
        options.no_cache_stages.len(),
    ];
    if counts.into_iter().any(|count| count > ITEMS_MAX) {
        return Err(refuse(format!("more than {ITEMS_MAX} of one option")));
    }
    let mut secrets = Vec::with_capacity(options.secrets.len());
    for secret in options.secrets {
        let value = base64::engine::general_purpose::STANDARD.decode(&secret.value);
        let id = cut(&secret.id);
        let value = value.map_err(|_| refuse(format!("secret `{id}` is not in base64")))?;
        if value.len() > SECRET_SIZE_MAX {
            return Err(refuse(format!("secret `{id}` is larger than {SECRET_SIZE_MAX} bytes")));
        }
        secrets.push(BuildSecret { id: secret.id, value });
    }
    let host = |text: &String| {
        let parts = text.split_once('=').or_else(|| text.split_once(':'));
        let parsed = parts.and_then(|(name, address)| {
            let address = address.trim_start_matches('[').trim_end_matches(']');
            Some((name.to_owned(), address.parse().ok()?))
        });
        let wrong = || refuse(format!("`{}` is not of the form `NAME=ADDRESS`", cut(text)));
        parsed.filter(|(name, _)| !name.is_empty()).ok_or_else(wrong)
    };
    let ulimit = |text: &String| {
        let number = |text: &str| match text {
            "-1" | "unlimited" => Some(u64::MAX),
            text => text.parse::<u64>().ok(),
        };
        let parsed = text.split_once('=').and_then(|(name, limits)| {
            let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
            Some((name.to_ascii_lowercase(), number(soft)?, number(hard)?))
        });
        let wrong = || refuse(format!("`{}` is not of the form `NAME=SOFT[:HARD]`", cut(text)));
        parsed.ok_or_else(wrong)
    };
    if options.platforms.len() > PLATFORMS_MAX {
        return Err(refuse(format!("more than {PLATFORMS_MAX} platforms")));
    }
    let mut platforms = Vec::new();
    for wanted in &options.platforms {
        let wanted = platform(wanted)?;
        if !platforms.contains(&wanted) {
            platforms.push(wanted);
        }
    }
    let format = options.compression.as_deref().map(str::parse).transpose();
    let compression =
        format.and_then(|format| Compression::new(format, options.compression_level, usual));
    let compression = compression.map_err(|error: CompressionError| refuse(error.to_string()))?;
    let annotations = Annotations::parse(&options.annotations);
    let annotations = annotations.map_err(|error| refuse(error.to_string()))?;
    if annotations.need_index() && platforms.len() < 2 {
        let message = "annotations of an index need several platforms".to_owned();
        return Err(refuse(message).hint("without a type they are the manifest's"));
    }
    if options.ssh.len() > SSH_AGENTS_MAX {
        return Err(refuse(format!("more than {SSH_AGENTS_MAX} ssh agents")));
    }
    if options.cache_from.len() > CACHES_MAX || options.cache_to.len() > CACHES_MAX {
        return Err(refuse(format!("more than {CACHES_MAX} caches")));
    }
    for image in &options.cache_from {
        image.parse::<Reference>().map_err(|error| refuse(format!("cache: {error}")))?;
    }
    let cache_export = |export: api::CacheExport| {
        image_name(&export.image)?;
        let all_steps = export.mode == api::CacheMode::Max;
        Ok::<_, ApiError>(CacheExport { image_name: export.image, all_steps })
    };
    Ok(BuildOptions {
        platforms,
        secrets,
        ssh: options.ssh.into_iter().map(ssh_id).collect::<Result<_, _>>()?,
        extra_hosts: options.extra_hosts.iter().map(host).collect::<Result<_, _>>()?,
        ulimits: options.ulimits.iter().map(ulimit).collect::<Result<_, _>>()?,
        shm_size: options.shm_size,
        labels: options.labels,
        annotations: options.annotations,
        no_cache_stages: options.no_cache_stages.into_iter().collect(),
        explain_cache: options.explain_cache,
        cache_from: options.cache_from,
        cache_to: options.cache_to.into_iter().map(cache_export).collect::<Result<_, _>>()?,
        compression,
        force_compression: options.force_compression,
        contexts: (options.contexts.into_iter())
            .map(|context| named_context(context, uploads))
            .collect::<Result<_, _>>()?,
    })
}

fn timeout(seconds: Option<u32>, otherwise: Duration) -> Result<Duration, ApiError> {
    match seconds {
        None => Ok(otherwise),
        Some(seconds) if TIMEOUT_SECONDS.contains(&seconds) => {
            Ok(Duration::from_secs(seconds.into()))
        }
        Some(seconds) => Err(ApiError::invalid(format!(
            "timeout {seconds} is not between {} and {} seconds",
            TIMEOUT_SECONDS.start(),
            TIMEOUT_SECONDS.end()
        ))
        .at("timeout")),
    }
}

/// Runs.md section 8.
fn platform(platform: &api::PlatformProperties) -> Result<Platform, ApiError> {
    let refuse = |message: String| ApiError::invalid(message).at("platform");
    match platform.os.to_ascii_lowercase().as_str() {
        "linux" => (),
        "windows" => {
            return Err(refuse("this server has no agent that runs Windows".into()));
        }
        other => {
            let message = format!("os `{}` is neither `Linux` nor `Windows`", cut(other));
            return Err(refuse(message));
        }
    }
    let Some(architecture) = platform.architecture.as_deref().map(str::to_ascii_lowercase) else {
        return Ok(Platform::host());
    };
    // The last three are ours; `buildOptions.platforms` is likelier to name them.
    let known = ["amd64", "x86", "386", "arm", "arm64", "ppc64le", "riscv64", "s390x"];
    if !known.contains(&architecture.as_str()) {
        let message =
            format!("architecture `{}` is not one of `{}`", cut(&architecture), known.join("`, `"));
        return Err(refuse(message));
    }
    let variant = platform.variant.as_deref().map(str::to_ascii_lowercase);
    if let Some(variant) =
        variant.as_deref().filter(|variant| !["v6", "v7", "v8"].contains(variant))
    {
        return Err(refuse(format!("variant `{}` is not one of `v6`, `v7`, `v8`", cut(variant))));
    }
    Ok(Platform::new("linux", &architecture, variant.as_deref()))
}

fn network(network: Option<String>, allow_host: bool) -> Result<Option<String>, ApiError> {
    match network.as_deref() {
        None | Some("" | "default") => Ok(None),
        Some("none") => Ok(network),
        Some("host") if allow_host => Ok(network),
        Some("host") => Err(ApiError::invalid("the host's network is not allowed on this server")
            .at("network")
            .hint("its policy is `build.allow_host_network`")),
        Some(other) => {
            let message =
                format!("network `{}` is not one of `default`, `none`, `host`", cut(other));
            Err(ApiError::invalid(message).at("network"))
        }
    }
}

/// A piece of the client's text, short enough for a message and without control characters.
pub(crate) fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

pub(crate) fn attributes(body: &api::UpdateAttributes) -> AttributesChange {
    let api::AttributesChange { delete_enabled, write_enabled, read_enabled, list_enabled } =
        body.changeable_attributes;
    AttributesChange { delete_enabled, write_enabled, read_enabled, list_enabled }
}

/// What is wrong with them is found when a purge is made of them.
pub(crate) fn purge_options(body: api::PurgeRequest) -> PurgeOptions {
    PurgeOptions {
        filters: body.filters,
        ago: body.ago,
        keep: body.keep,
        untagged: body.untagged,
        untagged_only: body.untagged_only,
        dry_run: body.dry_run,
        include_locked: body.include_locked,
        concurrency: body.concurrency,
        filter_timeout_seconds: body.filter_timeout_seconds,
        repository_page_size: body.repository_page_size,
    }
}

/// As with [`purge_options`]. It does one after the other.
pub(crate) fn annotate_options(body: api::AnnotateRequest) -> AnnotateOptions {
    AnnotateOptions {
        filters: body.filters,
        artifact_type: body.artifact_type,
        annotations: body.annotations,
        untagged: body.untagged,
        dry_run: body.dry_run,
        include_locked: body.include_locked,
        filter_timeout_seconds: body.filter_timeout_seconds,
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;

    fn parse(body: serde_json::Value) -> Result<BuildRequest, ApiError> {
        let mut whole = json!({
            "dockerFilePath": "Dockerfile",
            "platform": { "os": "Linux" },
            "sourceLocation": "source/x.tar.gz",
        });
        for (key, value) in body.as_object().unwrap() {
            whole[key] = value.clone();
        }
        let body: api::DockerBuildRequest = serde_json::from_value(whole).unwrap();
        let location = body.source_location.as_deref();
        let context = match SourceLocation::needed("a build", location)? {
            SourceLocation::Upload(_) => ContextSource::Upload(Digest::of(b"")),
            SourceLocation::Remote(remote) => ContextSource::Remote(remote),
        };
        let defaults = BuildDefaults {
            timeout: Duration::from_secs(3600),
            allow_host_network: false,
            compression: Compression::default(),
        };
        let named = ContextSource::Upload(Digest::of(b"named"));
        let uploads = [("source/named.tar.gz".to_owned(), named)].into();
        assert!(named_uploads(&body)?.len() <= 1);
        build_request(body, context, &uploads, &defaults)
    }

    #[track_caller]
    fn check_refused(body: serde_json::Value, expected: Expect) {
        let error = parse(body).unwrap_err();
        let target = error.target.unwrap_or_default();
        let hint = error.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
        expected.assert_eq(&format!("{target}: {}{hint}", error.message));
    }

    #[test]
    fn absent_members_have_defaults() {
        let request = parse(json!({})).unwrap();
        assert!(request.push && !request.no_cache && !request.archived);
        assert_eq!(request.timeout, Duration::from_secs(3600));
        assert_eq!(request.platform, Platform::host());
    }

    #[test]
    fn enumerations_compare_without_case() {
        let body =
            json!({ "platform": { "os": "LINUX", "architecture": "ARM64", "variant": "V8" } });
        assert_eq!(parse(body).unwrap().platform.to_string(), "linux/arm64");
    }

    #[test]
    fn what_cannot_be_right_is_refused_by_name() {
        check_refused(
            json!({ "timeout": 299 }),
            expect!["timeout: timeout 299 is not between 300 and 28800 seconds"],
        );
        check_refused(
            json!({ "platform": { "os": "Windows" } }),
            expect!["platform: this server has no agent that runs Windows"],
        );
        check_refused(
            json!({ "platform": { "os": "linux", "architecture": "sparc" } }),
            expect![
                "platform: architecture `sparc` is not one of `amd64`, `x86`, `386`, `arm`, `arm64`, `ppc64le`, `riscv64`, `s390x`"
            ],
        );
        check_refused(
            json!({ "dockerFilePath": "../../etc/passwd" }),
            expect!["dockerFilePath: `../../etc/passwd` is not a path inside the source"],
        );
        check_refused(
            json!({ "imageNames": ["App"] }),
            expect![
                "imageNames: repository name `App` may have only lower-case letters, digits, single `.` `_` `__` or `-` between them, and `/` (write it in lower case: `app`)"
            ],
        );
        check_refused(
            json!({ "imageNames": ["app:{{.Run.ID"] }),
            expect!["imageNames: `app:{{.Run.ID`: template: unclosed action"],
        );
        check_refused(
            json!({ "network": "host" }),
            expect![
                "network: the host's network is not allowed on this server (its policy is `build.allow_host_network`)"
            ],
        );
        check_refused(
            json!({ "sourceLocation": "ssh://git:pw@example.com/x.git" }),
            expect![
                "sourceLocation: the git address `ssh://***@example.com/x.git` cannot be used: over SSH there are no passwords"
            ],
        );
        check_refused(
            json!({ "sourceLocation": "oci://x" }),
            expect![
                "sourceLocation: the address `oci://x` of an artifact cannot be used: it names no registry (write it like `oci://REGISTRY/REPOSITORY:TAG`; the login is that of the registry)"
            ],
        );
        check_refused(
            json!({ "arguments": [{ "name": "A=B", "value": "" }] }),
            expect!["arguments: `A=B` is not the name of an argument"],
        );
    }

    #[test]
    fn sources_from_elsewhere_are_shown_without_their_secrets() {
        let request = parse(json!({ "sourceLocation": "https://me:pw@example.com/x.git#main" }));
        let request = request.unwrap();
        assert_eq!(request.secrets().collect::<Vec<_>>(), ["me:pw", "pw"]);
        let shown = format!("{:?}", request.context);
        assert_eq!(shown, "Remote(https://***@example.com/x.git#main)");
        let request = parse(json!({ "sourceLocation": "https://example.com/x.tar.gz" })).unwrap();
        assert_eq!(request.secrets().count(), 0);
    }

    #[test]
    fn contexts_have_the_names_of_images() {
        let contexts = json!([
            { "name": "docker.io/library/app:latest", "kind": "image", "image": "debian:12" },
            { "name": "files", "kind": "files", "sourceLocation": "source/named.tar.gz" },
            { "name": "app", "kind": "image", "image": "debian:13" },
        ]);
        let request = parse(json!({ "buildOptions": { "contexts": contexts } })).unwrap();
        let named: Vec<_> = request.options.contexts.iter().collect();
        expect![[r#"[("app", Image { reference: "debian:13" }), ("files", Files { source: Upload(sha256:a157d36a739191c1826419da5c87aedf3dd0cd6828565ada2a38a6b68ed741e5) })]"#]]
            .assert_eq(&format!("{named:?}"));
        let refused = |context: serde_json::Value, expected| {
            check_refused(json!({ "buildOptions": { "contexts": [context] } }), expected);
        };
        refused(
            json!({ "name": "scratch", "kind": "image", "image": "a" }),
            expect!["buildOptions: no context can be named `scratch`"],
        );
        refused(
            json!({ "name": "a::linux/arm64", "kind": "image", "image": "a" }),
            expect![
                "buildOptions: `a::linux/arm64` cannot name a context (a context has the name of a stage or an image)"
            ],
        );
        refused(
            json!({ "name": "a", "kind": "files", "sourceLocation": "source/other.tar.gz" }),
            expect!["buildOptions: context `a` has no uploaded source"],
        );
        refused(
            json!({ "name": "a", "kind": "layout", "sourceLocation": "source/named.tar.gz", "digest": "sha256:ab" }),
            expect![
                "buildOptions: context `a`: digest `sha256:ab` needs 64 lower-case hex digits after the colon"
            ],
        );
    }
}
