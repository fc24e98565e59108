//! What agents ask for: runs of their pool, and what belongs to a run under its lease.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use container::Stream as OutputStream;
use control::{AgentClaim, Attempt, Event, EventKind, Pool, Sent, WARM_WAIT, run_user};
use engine::{
    AcrCommand, AcrError, Housekeeper, Lines, LocalHousekeeper, PublishError, Release, SecretError,
};
use futures_util::{StreamExt as _, stream};
use housekeeping::{MayUse as _, Use};
use oci::{Algorithm, Digest, RepositoryName};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;

use super::runs::{NDJSON, stream_response};
use super::sources::chunks;
use super::{Json, Path, Query};
use crate::agent_wire::{
    AcrRecord, Blobs, Claim, EventsTaken, Finish, Lease, LeaseNews, LeasedRun, QueueNews,
    RunningSteps, SecretAnswer, SecretWanted, TokenAnswer, VERSION, WAIT_SECONDS,
};
use crate::error::ApiError;
use crate::executor::AttemptLease;
use crate::from_api::{self, cut};
use crate::identity::TokenWanted;
use crate::presence::Seen;
use crate::state::Shared;

/// A body that is no blob: an image of many platforms with its records.
pub(super) const BODY_SIZE_MAX: usize = 64 << 20;

/// What becomes of a run is told in at most so many bytes: listings read it.
pub(super) const FINISH_SIZE_MAX: usize = 8 << 20;
const ERROR_SIZE_MAX: usize = 64 << 10;

/// Bytes of the name of an agent.
const NAME_MAX: usize = 100;

/// Bytes of a context that are sent at once.
const CHUNK: usize = 256 << 10;

/// How often it is looked for runs whose lease has ended, of which nobody tells.
const PERIOD: Duration = Duration::from_secs(5);

/// How long blobs are kept for an attempt that sends them.
const SENT_KEEP: Duration = Duration::from_secs(24 * 60 * 60);

/// Lines of `acr` that wait to be sent.
const LINES_MAX: usize = 256;

impl Claim {
    fn of<'a>(&'a self, pool: &'a Pool, waiting: &'a [String]) -> AgentClaim<'a> {
        AgentClaim { pool, agent: &self.agent, platform: &self.platform, waiting }
    }
}

/// Where an attempt is, in a path.
#[derive(Deserialize)]
pub(crate) struct AttemptPath {
    registry: String,
    #[serde(rename = "name")]
    pool: String,
    run: String,
    epoch: i64,
}

/// `POST .../agentPools/{pool}/claim`: a run of the pool, if there is one.
pub(crate) async fn claim(
    State(state): State<Shared>,
    Path((registry, pool)): Path<(String, String)>,
    headers: HeaderMap,
    Json(body): Json<Claim>,
) -> Result<Response, ApiError> {
    let pool = joined(&state, &registry, &pool, &headers).await?;
    note(&state, &pool, &body)?;
    if state.leaving.is_cancelled() {
        return Err(ApiError::leaving());
    }
    let now = state.clock.now();
    let waiting = state.presence.waiting(&pool, now);
    let claimed = state.runs.claim_for(&body.of(&pool, &waiting)).await?;
    state.presence.came(&pool, &body.agent, claimed.is_some(), now);
    match claimed {
        None => Ok(StatusCode::NO_CONTENT.into_response()),
        Some(attempt) => {
            // Whether it has one is asked again with each token.
            let identity = state.identities.runs.identity_of(&attempt.run).await;
            let has_identity = identity.map_or(true, |identity| !identity.is_none());
            Ok(axum::Json(lease(&state, &pool, &attempt, has_identity)?).into_response())
        }
    }
}

/// `GET .../agentPools/{pool}/queue`: answers when there may be a run, and after a while anyhow.
pub(crate) async fn queue(
    State(state): State<Shared>,
    Path((registry, pool)): Path<(String, String)>,
    headers: HeaderMap,
    Query(query): Query<Claim>,
) -> Result<axum::Json<QueueNews>, ApiError> {
    let pool = joined(&state, &registry, &pool, &headers).await?;
    note(&state, &pool, &query)?;
    let end = tokio::time::Instant::now() + Duration::from_secs(WAIT_SECONDS);
    let mut changes = state.runs.queue_changes();
    let _waits = state.presence.waits(&pool, &query.agent, &state.clock);
    let mut period = PERIOD;
    loop {
        changes.borrow_and_update();
        let waiting = state.presence.waiting(&pool, state.clock.now());
        let has_work = state.runs.has_work_for(&query.of(&pool, &waiting)).await?;
        if has_work || tokio::time::Instant::now() >= end {
            return Ok(axum::Json(QueueNews { has_work }));
        }
        tokio::select! {
            // Another agent may be preferred, and not take it.
            _ = changes.changed() => period = WARM_WAIT,
            () = tokio::time::sleep_until(end.min(tokio::time::Instant::now() + period)) => {
                period = PERIOD;
            }
            () = state.leaving.cancelled() => return Err(ApiError::leaving()),
        }
    }
}

/// An agent of the same version is there.
fn note(state: &Shared, pool: &Pool, claim: &Claim) -> Result<(), ApiError> {
    let Claim { agent, platform, version } = claim;
    let is_fine = |text: &str| !text.is_empty() && !text.chars().any(char::is_control);
    if agent.len() > NAME_MAX || !is_fine(agent) {
        let message = format!("the name of an agent has 1 to {NAME_MAX} printable characters");
        return Err(ApiError::invalid(message).at("agent"));
    }
    if version != VERSION {
        let version = cut(version);
        return Err(ApiError::conflict(format!(
            "the agent is of version {version}, and the server of version {VERSION}"
        ))
        .hint("run the same version on both"));
    }
    let (platform, version) = (cut(platform), version.clone());
    state.presence.note(pool, agent, Seen { at: state.clock.now(), platform, version });
    Ok(())
}

fn lease(
    state: &Shared,
    pool: &Pool,
    attempt: &Attempt,
    has_identity: bool,
) -> Result<Lease, ApiError> {
    let user = run_user(&attempt.run.registry, attempt.run.id, attempt.epoch);
    let run = LeasedRun::of(&attempt.run).map_err(|error| ApiError::interrupted(&error))?;
    let seed = state.keys.seed(&attempt.run);
    let (cpus, memory) = pool.properties.tier.limits();
    Ok(Lease {
        run,
        epoch: attempt.epoch,
        started_at: attempt.started_at,
        seed: crate::keys::hexadecimal(&seed.0),
        hosts: state.registries.own_names(),
        limits: (attempt.run.cpu.map_or(cpus, |cpu| cpus.min(cpu)), memory),
        password: state.keys.run_password(&user),
        token: state.keys.attempt_token(&user),
        has_identity,
        user,
    })
}

/// The pool whose token a request has.
async fn joined(
    state: &Shared,
    registry: &str,
    pool: &str,
    headers: &HeaderMap,
) -> Result<Pool, ApiError> {
    let refused = || {
        ApiError::unauthorized("this is not the token of the agent pool")
            .hint("`refit agentpool token POOL` prints it")
    };
    let (registry, _) = state.registry(registry).map_err(|_| refused())?;
    let name = from_api::pool_name(pool).map_err(|_| refused())?;
    let pool = state.pools.get(&registry, &name).await?;
    pool.filter(|pool| state.keys.is_pool_token(pool, bearer(headers))).ok_or_else(refused)
}

/// The attempt that a path names, if the request has its token and its agent still has it. The
/// token of the pool does not matter: it may be another one by now, or none.
async fn held(
    state: &Shared,
    path: &AttemptPath,
    headers: &HeaderMap,
) -> Result<Attempt, ApiError> {
    let lost = || ApiError::gone("the run is not this agent's any more");
    let (registry, _) = state.registry(&path.registry).map_err(|_| lost())?;
    let id = path.run.parse().map_err(|_| lost())?;
    let user = run_user(&registry, id, path.epoch);
    if !state.keys.is_attempt_token(&user, bearer(headers)) {
        return Err(ApiError::unauthorized("this is not the token of the attempt"));
    }
    let attempt = state.runs.attempt_of(&registry, id, path.epoch).await?.ok_or_else(lost)?;
    // Its steps have the one, and what the agent says may have either.
    attempt.log.hide([&*state.keys.run_password(&user), bearer(headers)]);
    Ok(attempt)
}

/// What a request proves itself with.
fn bearer(headers: &HeaderMap) -> &str {
    let header = headers.get(AUTHORIZATION).and_then(|header| header.to_str().ok());
    header.and_then(|header| header.strip_prefix("Bearer ")).unwrap_or_default()
}

pub(crate) async fn renew(
    State(state): State<Shared>,
    Path(path): Path<AttemptPath>,
    headers: HeaderMap,
) -> Result<axum::Json<LeaseNews>, ApiError> {
    let attempt = held(&state, &path, &headers).await?;
    let renewed = attempt.queue.renew(&attempt).await?;
    let agent = attempt.run.agent.as_deref().unwrap_or_default();
    state.presence.touch(&attempt.run.registry, &path.pool, agent, state.clock.now());
    let canceled = renewed.ok_or_else(|| ApiError::gone("the lease of the run is lost"))?;
    Ok(axum::Json(LeaseNews { canceled }))
}

/// `GET .../canceled`: answers when the run is canceled, and after a while anyhow.
pub(crate) async fn canceled(
    State(state): State<Shared>,
    Path(path): Path<AttemptPath>,
    headers: HeaderMap,
) -> Result<axum::Json<LeaseNews>, ApiError> {
    let attempt = held(&state, &path, &headers).await?;
    let canceled = tokio::select! {
        () = attempt.cancel.cancelled() => true,
        () = tokio::time::sleep(Duration::from_secs(WAIT_SECONDS)) => false,
        () = state.leaving.cancelled() => return Err(ApiError::leaving()),
    };
    Ok(axum::Json(LeaseNews { canceled }))
}

/// `GET .../lease`: whether it is held.
pub(crate) async fn holds(
    State(state): State<Shared>,
    Path(path): Path<AttemptPath>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    held(&state, &path, &headers).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn running(
    State(state): State<Shared>,
    Path(path): Path<AttemptPath>,
    headers: HeaderMap,
    Json(body): Json<RunningSteps>,
) -> Result<StatusCode, ApiError> {
    let attempt = held(&state, &path, &headers).await?;
    attempt.running(body.repeatable).await?.map_err(|lost| ApiError::gone(lost.to_string()))?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST .../events`: records of the agent's own log, one JSON text per line. Those that are here
/// already are passed over, so that a request may be sent again.
pub(crate) async fn events(
    State(state): State<Shared>,
    Path(path): Path<AttemptPath>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<axum::Json<EventsTaken>, ApiError> {
    let attempt = held(&state, &path, &headers).await?;
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    for line in lines {
        let event: Event = serde_json::from_slice(line)
            .map_err(|error| ApiError::invalid(format!("a record cannot be read: {error}")))?;
        // What becomes of the run only the server says.
        if !matches!(event.kind, EventKind::Status { .. } | EventKind::Finished { .. }) {
            let sent = Sent { epoch: attempt.epoch, id: event.id };
            attempt.log.append_sent(event.kind, Some(sent)).await;
        }
    }
    // What is answered for is not lost with this process.
    attempt.log.written().await;
    let last = attempt.log.last_sent().filter(|sent| sent.epoch == attempt.epoch);
    Ok(axum::Json(EventsTaken { last: last.map_or(0, |sent| sent.id) }))
}

/// `GET .../context/{digest}`: a part of what was uploaded for the run.
pub(crate) async fn context(
    State(state): State<Shared>,
    Path(path): Path<BlobPath>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (path, digest) = path.read()?;
    let attempt = held(&state, &path, &headers).await?;
    if !attempt.run.request.blobs().contains(&digest) {
        return Err(ApiError::not_found(format!("a part {digest} of the context")));
    }
    let blob = state.catalog.blobs().open(&digest, 0).await?;
    let size = blob.remaining();
    let chunks = ReaderStream::with_capacity(blob.into_async(), CHUNK);
    let mut response = stream_response("application/octet-stream", chunks);
    response.headers_mut().insert(CONTENT_LENGTH, size.into());
    Ok(response)
}

/// A blob of an attempt, in a path.
#[derive(Deserialize)]
pub(crate) struct BlobPath {
    registry: String,
    #[serde(rename = "name")]
    pool: String,
    run: String,
    epoch: i64,
    digest: String,
}

impl BlobPath {
    fn read(self) -> Result<(AttemptPath, Digest), ApiError> {
        let Self { registry, pool, run, epoch, digest } = self;
        let digest = digest
            .parse()
            .map_err(|error: oci::DigestError| ApiError::invalid(error.to_string()))?;
        Ok((AttemptPath { registry, pool, run, epoch }, digest))
    }
}

/// Owner of the leases on what an attempt sends.
fn sent_owner(attempt: &Attempt) -> String {
    format!("sent/{}", attempt.fence())
}

/// Repositories that are looked at for a blob.
const SOURCES_MAX: usize = 64;

/// `POST .../blobs`: which blobs are to be sent. What the registry has in one of its repositories
/// that the run may pull from it has; of all other blobs whoever publishes them must have the bytes.
pub(crate) async fn missing(
    State(state): State<Shared>,
    Path(path): Path<AttemptPath>,
    headers: HeaderMap,
    Json(body): Json<Blobs>,
) -> Result<axum::Json<Blobs>, ApiError> {
    let attempt = held(&state, &path, &headers).await?;
    let owner = sent_owner(&attempt);
    let own = state.access.of_runs.of(&attempt.run).await?;
    let may_pull = |repository: &RepositoryName| {
        own.as_ref().is_none_or(|own| own.refused(repository, Use::Pull).is_none())
    };
    let (mut there, mut digests) = (Vec::new(), Vec::new());
    for digest in body.digests {
        if state.catalog.renew_lease(&owner, &digest, SENT_KEEP).await? {
            continue;
        }
        let registry = &attempt.run.registry;
        let found = state.catalog.repositories_with_blob(registry, &digest, SOURCES_MAX).await?;
        let is_whole = state.catalog.blobs().stat(&digest).await?.is_some();
        match found.iter().any(may_pull) && is_whole {
            true => there.push(digest),
            false => digests.push(digest),
        }
    }
    state.catalog.lease_blobs(&owner, &there, SENT_KEEP).await?;
    Ok(axum::Json(Blobs { digests }))
}

/// `PUT .../blobs/{digest}`
pub(crate) async fn put_blob(
    State(state): State<Shared>,
    Path(path): Path<BlobPath>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let (path, digest) = path.read()?;
    let attempt = held(&state, &path, &headers).await?;
    let mut upload = state.catalog.blobs().begin_upload(Algorithm::Sha256).await?;
    let (mut size, size_max) = (0, state.archive_limits.bytes_max);
    let mut chunks = Box::pin(chunks(body, state.body_stall));
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| ApiError::late(error.to_string()))?;
        size += chunk.len() as u64;
        if size > size_max {
            let message = format!("a blob has at most {size_max} bytes");
            return Err(
                ApiError::too_large(message).hint("raise `limits.blob_size_max` of the server")
            );
        }
        upload.write(chunk).await?;
    }
    upload.commit(Some(&digest)).await?;
    state.catalog.lease_blob(&sent_owner(&attempt), &digest, SENT_KEEP).await?;
    Ok(StatusCode::CREATED)
}

/// `POST .../publish`: images whose blobs were sent get their names.
pub(crate) async fn publish(
    State(state): State<Shared>,
    Path(path): Path<AttemptPath>,
    headers: HeaderMap,
    Json(release): Json<Release>,
) -> Result<StatusCode, ApiError> {
    let attempt = held(&state, &path, &headers).await?;
    if !release.names.is_empty() || !release.caches.is_empty() {
        refuse_without_login(&attempt)?;
        let of_runs = &state.access.of_runs;
        if let Some(own) = of_runs.of(&attempt.run).await? {
            release.refuse(&own).map_err(refusal)?;
        }
    }
    let owner = sent_owner(&attempt);
    for digest in release.blobs().map_err(refusal)? {
        if !state.catalog.renew_lease(&owner, &digest, SENT_KEEP).await? {
            let message = format!("blob {digest} of the image was not sent");
            return Err(ApiError::invalid(message));
        }
    }
    let of_caches = release.caches.iter().map(|(name, _)| name);
    for name in release.names.iter().chain(of_caches) {
        let repository = name.repository.parse();
        let repository = repository
            .map_err(|error: oci::ReferenceError| ApiError::invalid(error.to_string()))?;
        state.refuse_copy(&repository)?;
    }
    // Begun, it is not left half done when the agent is gone.
    let publishing = tokio::spawn(async move {
        let (run, lease) = (attempt.run.id.to_string(), AttemptLease(&attempt));
        release.publish(&state.catalog, &attempt.run.registry, &run, &lease).await
    });
    let published = publishing.await.map_err(|error| ApiError::interrupted(&error))?;
    published.map_err(refusal)?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a run here could not do in its own registry, an agent does not do for it either.
fn refuse_without_login(attempt: &Attempt) -> Result<(), ApiError> {
    match attempt.run.request.logins().without_own {
        true => Err(ApiError::invalid("the run is not logged in to its own registry")),
        false => Ok(()),
    }
}

fn refusal(error: PublishError) -> ApiError {
    match error {
        PublishError::LeaseLost => ApiError::gone(error.to_string()),
        PublishError::Refused(reason) => ApiError::invalid(reason),
        PublishError::Server(_) => ApiError::interrupted(&error),
        PublishError::Store(error) => error.into(),
    }
}

/// `POST .../secret`: the value of a secret that the run may have. What its task file lists only the
/// agent knows: pools are trusted with all secrets of the runs that they may claim.
pub(crate) async fn secret(
    State(state): State<Shared>,
    Path(path): Path<AttemptPath>,
    headers: HeaderMap,
    Json(wanted): Json<SecretWanted>,
) -> Result<axum::Json<SecretAnswer>, ApiError> {
    let attempt = held(&state, &path, &headers).await?;
    let request = &attempt.run.request;
    if request.task().is_none() && !request.logins().is_kept_at(&wanted.address) {
        return Err(ApiError::invalid("only tasks and logins have secrets by address"));
    }
    let secret = wanted.read().ok_or_else(|| ApiError::invalid("not a secret of a task file"))?;
    let value = state.providers.fetch((&attempt.run, attempt.epoch, &attempt.log), &secret).await;
    Ok(axum::Json(match value {
        Ok(value) => {
            attempt.log.hide([value.expose()]);
            SecretAnswer::Value(value.expose().to_owned())
        }
        Err(SecretError::Refused(reason)) => SecretAnswer::Refused(reason),
        Err(SecretError::Unavailable(reason)) => SecretAnswer::Unavailable(reason),
    }))
}

/// `POST .../identityToken`: a token of an identity of the run's task.
pub(crate) async fn identity_token(
    State(state): State<Shared>,
    Path(path): Path<AttemptPath>,
    headers: HeaderMap,
    Json(wanted): Json<TokenWanted>,
) -> Result<axum::Json<TokenAnswer>, ApiError> {
    let attempt = held(&state, &path, &headers).await?;
    let attempt = (&attempt.run, attempt.epoch, &attempt.log);
    Ok(axum::Json(match state.identities.token(attempt, &wanted).await {
        Ok(given) => TokenAnswer::Given(given),
        Err(SecretError::Refused(reason)) => TokenAnswer::Refused(reason),
        Err(SecretError::Unavailable(reason)) => TokenAnswer::Unavailable(reason),
    }))
}

/// `POST .../acr`: a command on the registry, which tells what it does while it goes on. It ends
/// with the request.
pub(crate) async fn acr(
    State(state): State<Shared>,
    Path(path): Path<AttemptPath>,
    headers: HeaderMap,
    Json(command): Json<AcrCommand>,
) -> Result<Response, ApiError> {
    let attempt = held(&state, &path, &headers).await?;
    // What a build could not do here, its agent cannot either.
    if attempt.run.request.task().is_none() {
        return Err(ApiError::invalid("only the steps of a task have commands of `acr`"));
    }
    refuse_without_login(&attempt)?;
    tracing::info!(run = %attempt.run.id, agent = attempt.run.agent, ?command, "`acr` for an agent");
    let housekeeper = LocalHousekeeper {
        catalog: state.catalog.clone(),
        registry: attempt.run.registry.clone(),
        own: state.own_names(),
        pushes: crate::executor::own_pushes(&state),
        rights: Arc::new(state.access.of_runs.clone()),
    };
    let stop = CancellationToken::new();
    let (sender, receiver) = mpsc::channel(LINES_MAX);
    let stopping = stop.clone().drop_guard();
    tokio::spawn(async move {
        let (run, lines) = (attempt.run.id.to_string(), Sender(sender));
        let work = housekeeper.run(&run, &command, &lines, &stop);
        tokio::pin!(work);
        let ended = tokio::select! {
            ended = &mut work => ended,
            () = no_longer(&state, &attempt) => {
                stop.cancel();
                work.await
            }
        };
        // Nobody has canceled the run because the server stops.
        let ended = match ended {
            Err(AcrError::Canceled) if !attempt.cancel.is_cancelled() => {
                Err(AcrError::Failed("the server stopped before the command had ended".into()))
            }
            ended => ended,
        };
        let record = match ended {
            Ok(()) => AcrRecord::Done,
            Err(AcrError::Canceled) => AcrRecord::Canceled,
            Err(AcrError::Refused { message, hint }) => AcrRecord::Refused { message, hint },
            Err(AcrError::Failed(message)) => AcrRecord::Failed(message),
        };
        lines.send(record).await;
    });
    let records = stream::unfold((receiver, stopping), |(mut receiver, stopping)| async move {
        let record = receiver.recv().await?;
        let line = serde_json::to_vec(&record).map(|mut line| {
            line.push(b'\n');
            Bytes::from(line)
        });
        Some((line, (receiver, stopping)))
    });
    Ok(stream_response(NDJSON, records))
}

/// Returns when nothing more is to be done for an attempt.
async fn no_longer(state: &Shared, attempt: &Attempt) {
    let lost = async {
        while !matches!(attempt.confirm().await, Ok(Err(_))) {
            tokio::time::sleep(PERIOD).await;
        }
    };
    tokio::select! {
        () = attempt.cancel.cancelled() => (),
        () = state.stopping.cancelled() => (),
        () = lost => (),
    }
}

struct Sender(mpsc::Sender<AcrRecord>);

impl Sender {
    async fn send(&self, record: AcrRecord) {
        // Who does not listen any more has stopped the command.
        let _ = self.0.send(record).await;
    }
}

#[async_trait]
impl Lines for Sender {
    async fn line(&self, stream: OutputStream, text: &str) {
        let text = text.to_owned();
        self.send(match stream {
            OutputStream::Stdout => AcrRecord::Stdout(text),
            OutputStream::Stderr => AcrRecord::Stderr(text),
        })
        .await;
    }
}

pub(crate) async fn finish(
    State(state): State<Shared>,
    Path(path): Path<AttemptPath>,
    headers: HeaderMap,
    Json(body): Json<Finish>,
) -> Result<StatusCode, ApiError> {
    let attempt = held(&state, &path, &headers).await?;
    if !body.status.is_final() {
        return Err(ApiError::invalid("that is no end of a run").at("status"));
    }
    let Finish { status, mut error, outcome } = body;
    if let Some(error) = &mut error {
        error.truncate(error.floor_char_boundary(ERROR_SIZE_MAX));
    }
    // Who waits for the end may begin the next one at once.
    let agent = attempt.run.agent.as_deref().unwrap_or_default();
    state.presence.ends(&attempt.run.registry, &path.pool, agent, state.clock.now());
    let recorded = attempt.queue.finish(&attempt, status, error.as_deref(), &outcome).await?;
    release_sent(&state, &attempt).await;
    match recorded {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(ApiError::gone("another attempt has the run")),
    }
}

pub(crate) async fn give_back(
    State(state): State<Shared>,
    Path(path): Path<AttemptPath>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let attempt = held(&state, &path, &headers).await?;
    attempt.queue.give_back(&attempt).await?;
    release_sent(&state, &attempt).await;
    Ok(StatusCode::NO_CONTENT)
}

/// What was sent is either published by now, or wanted by nobody.
async fn release_sent(state: &Shared, attempt: &Attempt) {
    let owner = sent_owner(attempt);
    if let Err(error) = state.catalog.release_leases(&owner).await {
        tracing::warn!(%error, owner, "leases not released; they end within a day");
    }
}
