//! Runs and their logs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use builder::{BuildError, FilesOf};
use bytes::BytesMut;
use control::{
    BuildRequest, ContextSource, EventReader, LogKey, NewRun, NoRun, Operation, PoolName, Run,
    RunId, RunStatus, TaskContext,
};
use futures_util::{Stream, StreamExt, stream};
use oci::{Descriptor, Digest, ImageManifest, Manifest, RegistryName};
use serde::Deserialize;
use store::{ManifestRef, StoreError};
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;
use utoipa::IntoParams;

use super::{Json, Query};
use crate::access::{Needs, Principal};
use crate::error::ApiError;
use crate::from_api::SourceLocation;
use crate::line_filter::LineFilter;
use crate::openapi::{Binary, Refusal};
use crate::state::Shared;
use crate::{from_api, log_artifacts, to_api};

/// Runs on one page.
const PAGE_DEFAULT: usize = 100;
const PAGE_MAX: usize = 1000;

/// Bytes of a blob that are sent at once.
const BLOB_CHUNK: usize = 256 << 10;

/// A stream that has nothing to say says so, for proxies that would cut it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Queues a run and answers at once; the client then follows its log.
#[utoipa::path(
    post, path = "/scheduleRun", operation_id = "scheduleRun", tag = "Runs",
    request_body = api::RunRequest,
    responses(
        (status = CREATED, body = api::Run),
        (status = CONFLICT, response = Refusal),
        (status = TOO_MANY_REQUESTS, response = Refusal),
        (status = SERVICE_UNAVAILABLE, response = Refusal),
    ),
)]
pub(crate) async fn schedule(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Extension(principal): Extension<Principal>,
    Json(body): Json<api::RunRequest>,
) -> Result<(StatusCode, axum::Json<api::Run>), ApiError> {
    let (registry, _) = state.registry(&registry)?;
    if state.leaving.is_cancelled() {
        return Err(ApiError::leaving());
    }
    if !is_task_as_it_is(&body) {
        let needs = Needs::May(Operation::Write);
        state.access.require(&principal, Some(&registry), None, needs).await?;
    }
    let mut run = new_run(&state, &registry, body).await?;
    run.started_by = Some(principal.name());
    let run = state.runs.submit(&registry, run).await?;
    state.metrics.runs_submitted.fetch_add(1, Ordering::Relaxed);
    Ok((StatusCode::CREATED, axum::Json(to_api::run(&run))))
}

/// Whether a stored task is to run as those who write tasks have written it: whatever is put into it,
/// runs with all that the task may.
fn is_task_as_it_is(body: &api::RunRequest) -> bool {
    let api::RunRequest::TaskRunRequest(body) = body else { return false };
    let told = |given: &api::OverrideTaskStepProperties| {
        let api::OverrideTaskStepProperties {
            context_path,
            file,
            target,
            arguments,
            values,
            update_trigger_token: _,
        } = given;
        context_path.is_some()
            || file.is_some()
            || target.is_some()
            || !arguments.is_empty()
            || !values.is_empty()
    };
    !body.override_task_step_properties.as_ref().is_some_and(told)
        && body.agent_pool_name.is_none()
        && body.log_template.is_none()
}

/// The run that is asked for, checked.
pub(crate) async fn new_run(
    state: &Shared,
    registry: &RegistryName,
    mut body: api::RunRequest,
) -> Result<NewRun, ApiError> {
    let quick = match &mut body {
        api::RunRequest::DockerBuildRequest(body) => Some(Quick {
            pool: &body.agent_pool_name,
            agent: &body.agent_configuration,
            log_template: &mut body.log_template,
            timeout: &mut body.timeout,
        }),
        api::RunRequest::FileTaskRunRequest(body) => Some(Quick::of(&mut body.options)),
        api::RunRequest::EncodedTaskRunRequest(body) => Some(Quick::of(&mut body.options)),
        // Its task says it.
        api::RunRequest::TaskRunRequest(_) => None,
    };
    let (pool, cpu, log_template, egress) = match quick {
        Some(quick) => quick.checked(state, registry).await?,
        None => (None, None, None, Vec::new()),
    };
    let run: NewRun = match body {
        api::RunRequest::DockerBuildRequest(body) => {
            if pool.is_some() && !body.build_options.ssh.is_empty() {
                let message = "an agent cannot reach the ssh agents of a client";
                let hint = "build without a pool, or in a `build` step of a task, which can be \
                            given a key: `--ssh ID=KEY`";
                return Err(ApiError::invalid(message).at("agentPoolName").hint(hint));
            }
            build_request(state, registry, body).await?.into()
        }
        api::RunRequest::FileTaskRunRequest(body) => {
            let location = body.options.source_location.as_deref();
            let location = SourceLocation::needed("a task file", location)?;
            let context = resolve(state, registry, location).await?;
            from_api::file_task_request(body, context, state.build_defaults.timeout)?.into()
        }
        api::RunRequest::EncodedTaskRunRequest(body) => {
            let context = match SourceLocation::of(body.options.source_location.as_deref())? {
                Some(location) => Some(resolve(state, registry, location).await?),
                None => None,
            };
            from_api::encoded_task_request(body, context, state.build_defaults.timeout)?.into()
        }
        api::RunRequest::TaskRunRequest(body) => return task_run(state, registry, body).await,
    };
    state.refuse_own_logins(run.request.logins())?;
    let request = run.request.clone().with_egress(egress);
    Ok(NewRun { pool, cpu, log_template, request, ..run })
}

/// What quick builds and quick runs have in common.
struct Quick<'a> {
    pool: &'a Option<String>,
    agent: &'a Option<api::AgentProperties>,
    log_template: &'a mut Option<String>,
    timeout: &'a mut Option<u32>,
}

impl<'a> Quick<'a> {
    fn of(options: &'a mut api::TaskRunOptions) -> Self {
        Self {
            pool: &options.agent_pool_name,
            agent: &options.agent_configuration,
            log_template: &mut options.log_template,
            timeout: &mut options.timeout,
        }
    }

    /// The pool, the processors, the log template and the places of the run. What it does not say itself, the
    /// system task of the registry says.
    async fn checked(
        self,
        state: &Shared,
        registry: &RegistryName,
    ) -> Result<(Option<PoolName>, Option<u32>, Option<String>, Vec<String>), ApiError> {
        let mut template = self.log_template.take();
        if let Some(defaults) = super::tasks::of_quick_runs(state, registry).await? {
            template = template.or(defaults.log_template);
            self.timeout.get_or_insert(defaults.timeout.as_secs() as u32);
        }
        log_artifacts::check(state, registry, template.as_deref())?;
        Ok((
            from_api::pool_of_run(self.pool.as_deref())?,
            from_api::cpu(self.agent.as_ref())?,
            template,
            from_api::egress(self.agent.as_ref())?,
        ))
    }
}

/// A run of a stored task.
async fn task_run(
    state: &Shared,
    registry: &RegistryName,
    body: api::TaskRunRequest,
) -> Result<NewRun, ApiError> {
    let name = from_api::task_of_run(&body.task_id, registry)?;
    let task = super::tasks::find(state, registry, &name).await?;
    if let Some(why) = task.definition.asleep(state.clock.now()) {
        return Err(ApiError::conflict(format!("task `{}` {why}", task.name))
            .hint("`refit task update` changes its `--status` and its `--expires-on`"));
    }
    let given = body.override_task_step_properties.as_ref();
    let location = given.and_then(|given| given.context_path.as_deref());
    let context = match SourceLocation::of(location).map_err(|error| error.at("contextPath"))? {
        Some(SourceLocation::Remote(remote)) => {
            // The token is for this place, and nobody needs to send it again.
            let stored = task.definition.context.as_ref();
            match stored.filter(|stored| stored.is_same_place(&remote.address)) {
                Some(stored) if remote.secrets.is_empty() => {
                    let address = remote.address;
                    Some(TaskContext { address, token: stored.token.clone() }.source())
                }
                _ => Some(ContextSource::Remote(remote)),
            }
        }
        Some(upload) => Some(resolve(state, registry, upload).await?),
        None => None,
    };
    let overrides = from_api::task_overrides(body, context)?;
    log_artifacts::check(state, registry, overrides.log_template.as_deref())?;
    let compression = state.build_defaults.compression;
    let run = task.definition.run(&task.name, overrides, compression);
    run.map_err(|error| {
        let refused = ApiError::invalid(error.to_string());
        match error {
            NoRun::NoContext => refused.at("contextPath"),
            NoRun::System => refused.at("taskId"),
        }
    })
}

async fn build_request(
    state: &Shared,
    registry: &RegistryName,
    body: api::DockerBuildRequest,
) -> Result<BuildRequest, ApiError> {
    let location = SourceLocation::needed("a build", body.source_location.as_deref())?;
    let context = resolve(state, registry, location).await?;
    let mut uploads = BTreeMap::new();
    for location in from_api::named_uploads(&body)? {
        let digest = state.sources.resolve(registry, location).await?;
        uploads.insert(location.to_owned(), digest);
    }
    state.refuse_copies(registry, &body.image_names)?;
    from_api::build_request(body, context, &uploads, &state.build_defaults)
}

/// Finds the upload that a location names.
async fn resolve(
    state: &Shared,
    registry: &RegistryName,
    location: SourceLocation<'_>,
) -> Result<ContextSource, ApiError> {
    match location {
        SourceLocation::Upload(location) => Ok(state.sources.resolve(registry, location).await?),
        SourceLocation::Remote(remote) => Ok(ContextSource::Remote(remote)),
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// How many there may be, over all pages; a page has at most 1000.
    #[serde(rename = "$top")]
    top: Option<usize>,
    /// Conditions such as `Status eq 'Failed'`, joined by `and`.
    #[serde(rename = "$filter", default)]
    filter: String,
    /// The last run of the page before.
    #[serde(rename = "$skiptoken")]
    skip_token: Option<String>,
}

/// Lists runs, the newest first, and why those wait that do.
#[utoipa::path(
    get, path = "/runs", operation_id = "listRuns", tag = "Runs",
    params(ListQuery),
    responses((status = OK, body = api::Page<api::Run>)),
)]
pub(crate) async fn list(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<api::Page<api::Run>>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let mut filter = from_api::run_filter(&query.filter)?;
    if let Some(token) = &query.skip_token {
        filter.before = Some(run_id(token)?);
    }
    let page = query.top.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX);
    let mut runs = state.runs.list(&registry, &filter, page + 1).await?;
    let more = runs.len() > page;
    runs.truncate(page);
    // Whoever says how many wants no more than that.
    let rest = query.top.map(|top| top.saturating_sub(page));
    let next_link = runs.last().filter(|_| more && rest != Some(0)).map(|last| {
        let mut link = url::form_urlencoded::Serializer::new(String::new());
        if let Some(rest) = rest {
            link.append_pair("$top", &rest.to_string());
        }
        link.append_pair("$filter", &query.filter);
        link.append_pair("$skiptoken", last.id.as_str());
        format!("/api/v1/registries/{registry}/runs?{}", link.finish())
    });
    let mut value = Vec::with_capacity(runs.len());
    for run in &runs {
        value.push(with_waiting(&state, run).await?);
    }
    Ok(axum::Json(api::Page { value, next_link }))
}

/// A run, and why it waits if it does.
async fn with_waiting(state: &Shared, run: &Run) -> Result<api::Run, ApiError> {
    let mut shown = to_api::run(run);
    if run.status == RunStatus::Queued {
        let waiting = state.runs.waiting(&run.registry, run.id).await?;
        shown.properties.waiting =
            waiting.map(|waiting| to_api::waiting(&waiting, run, state.run_bounds));
    }
    Ok(shown)
}

/// A run, and while it is queued why it waits; of one that has ended also its plan.
#[utoipa::path(
    get, path = "/runs/{id}", operation_id = "getRun", tag = "Runs",
    responses((status = OK, body = api::Run)),
)]
pub(crate) async fn show(
    State(state): State<Shared>,
    Path((registry, id)): Path<(String, String)>,
) -> Result<axum::Json<api::Run>, ApiError> {
    let run = find(&state, &registry, &id).await?;
    let mut shown = with_waiting(&state, &run).await?;
    if run.status.is_final() {
        shown.properties.plan = state.runs.plan(&run.registry, run.id).await?;
    }
    Ok(axum::Json(shown))
}

/// Changes whether a run is archived, and nothing else.
#[utoipa::path(
    patch, path = "/runs/{id}", operation_id = "updateRun", tag = "Runs",
    request_body = api::RunUpdate,
    responses((status = OK, body = api::Run)),
)]
pub(crate) async fn update(
    State(state): State<Shared>,
    Path((registry, id)): Path<(String, String)>,
    Json(body): Json<api::RunUpdate>,
) -> Result<axum::Json<api::Run>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let Some(archived) = body.is_archive_enabled else {
        return Err(ApiError::invalid("only `isArchiveEnabled` of a run can be changed"));
    };
    let run = state.runs.set_archived(&registry, run_id(&id)?, archived).await?;
    Ok(axum::Json(to_api::run(&run)))
}

/// Asks a run to end. One that has ended already is a conflict.
#[utoipa::path(
    post, path = "/runs/{id}/cancel", operation_id = "cancelRun", tag = "Runs",
    responses((status = ACCEPTED, body = api::Run), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn cancel(
    State(state): State<Shared>,
    Path((registry, id)): Path<(String, String)>,
) -> Result<(StatusCode, axum::Json<api::Run>), ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let run = state.runs.cancel(&registry, run_id(&id)?).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(to_api::run(&run))))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct LogQuery {
    /// Bytes of the text to leave out.
    #[serde(default)]
    offset: u64,
    /// Goes on until the run has ended.
    #[serde(default)]
    follow: bool,
    /// Of server-sent events, the id of the last one that is known.
    #[serde(default)]
    after: u64,
    /// Only lines in which this regular expression is found.
    grep: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventQuery {
    /// The id of the last record that is known.
    #[serde(default)]
    after: u64,
    /// Goes on until the run has ended.
    #[serde(default)]
    follow: bool,
}

/// The log as text from a byte offset, or as server-sent events for clients that accept those.
///
/// An event has the `id` of its record, which is its `data`; the last one is named `finished` and
/// carries the final status. A client that lost the connection goes on with `Last-Event-ID`.
#[utoipa::path(
    get, path = "/runs/{id}/logs", operation_id = "getRunLog", tag = "Runs",
    params(LogQuery, ("last-event-id" = Option<u64>, Header, description = "As `after`")),
    responses((status = OK, content((String = "text/plain"), (String = "text/event-stream")))),
)]
pub(crate) async fn logs(
    State(state): State<Shared>,
    Path((registry, id)): Path<(String, String)>,
    Query(query): Query<LogQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let run = find(&state, &registry, &id).await?;
    if accepts(&headers, "text/event-stream") {
        return server_sent_events(&state, &run, &query, &headers).await;
    }
    let lines = query.grep.as_deref().map(LineFilter::new).transpose()?;
    let reader = state.runs.logs().read_text(&log_key(&run), query.offset, query.follow).await?;
    let reader = reader.until(state.stopping.clone());
    if let Some(lines) = lines {
        let chunks = stream::unfold((reader, Some(lines)), async |(mut reader, lines)| {
            let mut lines = lines?;
            let chunk = match reader.next().await {
                Ok(chunk) => chunk,
                Err(error) => return Some((Err(std::io::Error::other(error)), (reader, None))),
            };
            let is_last = chunk.is_none();
            // A pattern may take its time.
            let search = tokio::task::spawn_blocking(move || match chunk {
                Some(chunk) => (lines.push(&chunk), lines),
                None => (lines.finish(), lines),
            });
            match search.await {
                Ok((found, lines)) => Some((Ok(found), (reader, Some(lines).filter(|_| !is_last)))),
                Err(error) => Some((Err(std::io::Error::other(error)), (reader, None))),
            }
        });
        // An empty piece would end a chunked body.
        let chunks = chunks.filter(|chunk| {
            std::future::ready(
                chunk.as_ref().is_ok_and(|chunk| !chunk.is_empty()) || chunk.is_err(),
            )
        });
        return Ok(stream_response("text/plain; charset=utf-8", chunks));
    }
    let chunks = stream::unfold(reader, async |mut reader| {
        let chunk = reader.next().await.transpose()?;
        Some((chunk, reader))
    });
    Ok(stream_response("text/plain; charset=utf-8", chunks))
}

/// The records of a run, one JSON text per line.
#[utoipa::path(
    get, path = "/runs/{id}/events", operation_id = "getRunEvents", tag = "Runs",
    params(EventQuery),
    responses(
        (status = OK, description = "Lines, each a record", body = api::Event, content_type = "application/x-ndjson"),
    ),
)]
pub(crate) async fn events(
    State(state): State<Shared>,
    Path((registry, id)): Path<(String, String)>,
    Query(query): Query<EventQuery>,
) -> Result<Response, ApiError> {
    let run = find(&state, &registry, &id).await?;
    let reader = state.runs.logs().read_events(&log_key(&run), query.after, query.follow).await?;
    let lines = event_stream(reader.until(state.stopping.clone())).map(|events| {
        let mut lines = Vec::new();
        for event in events? {
            serde_json::to_writer(&mut lines, &event).map_err(std::io::Error::other)?;
            lines.push(b'\n');
        }
        Ok::<_, std::io::Error>(Bytes::from(lines))
    });
    Ok(stream_response(NDJSON, lines))
}

/// The same as events with ids; the last one carries the final status. A client that lost
/// the connection goes on with `Last-Event-ID`.
async fn server_sent_events(
    state: &Shared,
    run: &Run,
    query: &LogQuery,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let last_seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let after = last_seen.unwrap_or(query.after);
    let reader = state.runs.logs().read_events(&log_key(run), after, query.follow).await?;
    let texts = event_stream(reader.until(state.stopping.clone())).map(|events| {
        let mut text = String::new();
        for event in events? {
            let data = serde_json::to_string(&event).map_err(std::io::Error::other)?;
            let name = match event.kind {
                api::EventKind::Finished { .. } => "finished",
                _ => "record",
            };
            text.push_str(&format!("id: {}\nevent: {name}\ndata: {data}\n\n", event.id));
        }
        Ok::<_, std::io::Error>(Bytes::from(text))
    });
    Ok(stream_response("text/event-stream", with_keep_alive(texts)))
}

fn event_stream(
    reader: EventReader,
) -> impl Stream<Item = Result<Vec<api::Event>, std::io::Error>> + Send {
    stream::unfold(reader, async |mut reader| {
        let events = reader.next().await.map_err(std::io::Error::other).transpose()?;
        let events = events.map(|events| events.into_iter().map(to_api::event).collect());
        Some((events, reader))
    })
}

/// Adds a comment whenever nothing came for a while.
fn with_keep_alive<S>(texts: S) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send
where
    S: Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static,
{
    stream::unfold(Box::pin(texts), async |mut texts| {
        match tokio::time::timeout(KEEP_ALIVE, texts.next()).await {
            Ok(text) => Some((text?, texts)),
            Err(_) => Some((Ok(Bytes::from_static(b": still here\n\n")), texts)),
        }
    })
}

/// A blob of the image that a run has built: its manifest, its config or a layer.
///
/// Also of an image that has no name.
#[utoipa::path(
    get, path = "/runs/{id}/blobs/{digest}", operation_id = "getRunBlob", tag = "Runs",
    responses((status = OK, body = inline(Binary), content_type = "application/octet-stream")),
)]
pub(crate) async fn blob(
    State(state): State<Shared>,
    Path((registry, id, digest)): Path<(String, String, String)>,
) -> Result<Response, ApiError> {
    let run = find(&state, &registry, &id).await?;
    let missing =
        || ApiError::not_found(format!("blob `{}` of run `{}`", from_api::cut(&digest), run.id));
    let wanted: Digest = digest.parse().map_err(|_| missing())?;
    let built = run.digest.clone().ok_or_else(missing)?;
    require_readable(&state, &run).await?;
    if wanted != built && !is_part(&state, &built, &wanted).await? {
        return Err(missing());
    }
    let blob = state.catalog.blobs().open(&wanted, 0).await?;
    let size = blob.remaining();
    let chunks = ReaderStream::with_capacity(blob.into_async(), BLOB_CHUNK);
    let mut response = stream_response("application/octet-stream", chunks);
    response.headers_mut().insert(CONTENT_LENGTH, size.into());
    Ok(response)
}

/// What somebody has locked against reading where a run has pushed it, is not read here either.
async fn require_readable(state: &Shared, run: &Run) -> Result<(), ApiError> {
    for image in run.images.iter().filter(|image| !image.elsewhere) {
        let Ok(repository) = image.repository.parse() else { continue };
        let reference = ManifestRef::Digest(image.digest.clone());
        state.catalog.require_readable(&run.registry, &repository, Some(&reference)).await?;
    }
    Ok(())
}

/// Whether a blob belongs to what was built: an image, or an index over images.
async fn is_part(state: &Shared, built: &Digest, wanted: &Digest) -> Result<bool, ApiError> {
    let has =
        |manifest: &Manifest| manifest.references().blobs.iter().any(|blob| blob.digest == *wanted);
    let manifest = read_manifest(state, built).await?;
    let Manifest::Index(index) = &manifest else { return Ok(has(&manifest)) };
    for image in &index.manifests {
        if image.digest == *wanted || has(&read_manifest(state, &image.digest).await?) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// All files of the image that a run has built, as a tar.
///
/// Of an index those of every image, in folders with the names of their platforms. It ends early,
/// with an error of the connection, if something is wrong with them.
#[utoipa::path(
    get, path = "/runs/{id}/files", operation_id = "getRunFiles", tag = "Runs",
    responses((status = OK, body = inline(Binary), content_type = "application/x-tar")),
)]
pub(crate) async fn files(
    State(state): State<Shared>,
    Path((registry, id)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let run = find(&state, &registry, &id).await?;
    let missing = |what: &str| ApiError::not_found(format!("{what} of run `{}`", run.id));
    let built = run.digest.clone().ok_or_else(|| missing("an image"))?;
    require_readable(&state, &run).await?;
    let images = match read_manifest(&state, &built).await? {
        Manifest::Image(manifest) => vec![files_of(&state, &built, manifest, None).await?],
        Manifest::Index(index) => {
            let mut images = Vec::with_capacity(index.manifests.len());
            for Descriptor { digest, platform, .. } in index.manifests {
                let Manifest::Image(manifest) = read_manifest(&state, &digest).await? else {
                    return Err(missing("an index of images"));
                };
                let platform = platform.ok_or_else(|| missing("an index of platforms"))?;
                let folder = platform.to_string().replace('/', "_");
                images.push(files_of(&state, &digest, manifest, Some(folder)).await?);
            }
            images
        }
        Manifest::Artifact(_) => return Err(missing("an image")),
    };
    let (sender, receiver) = mpsc::channel(FILE_CHUNKS);
    let stop = CancellationToken::new();
    let out = Chunks { sender, stop: stop.clone(), buffer: BytesMut::new() };
    let layers = Arc::clone(&state.layers);
    tokio::spawn(async move {
        let written = layers.write_files(&images, out, &stop).await;
        match written {
            Ok(out) => out.finish().await,
            Err(BuildError::Canceled) => (),
            Err(error) => {
                tracing::warn!(%error, run = %run.id, "files of an image were not sent whole");
            }
        }
    });
    let chunks = stream::unfold(Some(receiver), async |receiver| {
        let mut receiver: mpsc::Receiver<std::io::Result<Bytes>> = receiver?;
        match receiver.recv().await {
            // The mark of the end.
            Some(Ok(chunk)) if chunk.is_empty() => None,
            Some(chunk) => Some((chunk, Some(receiver))),
            None => Some((Err(std::io::ErrorKind::UnexpectedEof.into()), None)),
        }
    });
    Ok(stream_response("application/x-tar", chunks))
}

async fn files_of(
    state: &Shared,
    digest: &Digest,
    manifest: Box<ImageManifest>,
    folder: Option<String>,
) -> Result<FilesOf, ApiError> {
    let config = builder::read_config(digest.as_str(), &manifest, &**state.catalog.blobs()).await;
    let config =
        config.map_err(|_| ApiError::not_found(format!("a readable image config of {digest}")))?;
    Ok(FilesOf { manifest: *manifest, config, folder })
}

/// Chunks of files on their way, of [`BLOB_CHUNK`] bytes each.
const FILE_CHUNKS: usize = 4;

/// What is written in a blocking thread becomes the body of a response.
struct Chunks {
    sender: mpsc::Sender<std::io::Result<Bytes>>,
    /// Fires when nobody takes the body any more.
    stop: CancellationToken,
    buffer: BytesMut,
}

impl Chunks {
    /// Sends the rest and the mark of the end, an empty chunk.
    async fn finish(mut self) {
        let last = self.buffer.split().freeze();
        for chunk in [last, Bytes::new()] {
            // Whoever asked may be gone.
            let _ = self.sender.send(Ok(chunk)).await;
        }
    }
}

impl std::io::Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BLOB_CHUNK {
            let chunk = self.buffer.split().freeze();
            if self.sender.blocking_send(Ok(chunk)).is_err() {
                self.stop.cancel();
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn read_manifest(state: &Shared, digest: &Digest) -> Result<Manifest, ApiError> {
    let blob = state.catalog.blobs().open(digest, 0).await?;
    let mut bytes = Vec::new();
    let mut reader = blob.into_async().take(oci::MANIFEST_SIZE_MAX as u64);
    let read = reader.read_to_end(&mut bytes).await;
    read.map_err(|source| StoreError::Io { doing: format!("read manifest {digest}"), source })?;
    Manifest::parse(&bytes, None)
        .map_err(|_| ApiError::not_found(format!("a readable manifest {digest}")))
}

/// JSON texts, one per line.
pub(super) const NDJSON: &str = "application/x-ndjson";

/// Whether a client names a form of answer that is not the usual one.
pub(super) fn accepts(headers: &HeaderMap, form: &str) -> bool {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| accept.contains(form))
}

pub(super) fn stream_response<S, E>(content_type: &'static str, chunks: S) -> Response
where
    S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: Into<axum::BoxError> + Send + 'static,
{
    let headers = [(CONTENT_TYPE, content_type), (CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(chunks)).into_response()
}

pub(super) async fn find(state: &Shared, registry: &str, id: &str) -> Result<Run, ApiError> {
    let (registry, _): (RegistryName, _) = state.registry(registry)?;
    let run = state.runs.get(&registry, run_id(id)?).await?;
    run.ok_or_else(|| ApiError::not_found(format!("run `{id}`")))
}

fn run_id(text: &str) -> Result<RunId, ApiError> {
    text.parse().map_err(|_| ApiError::not_found(format!("run `{}`", from_api::cut(text))))
}

fn log_key(run: &Run) -> LogKey {
    LogKey { registry: run.registry.clone(), run: run.id }
}
