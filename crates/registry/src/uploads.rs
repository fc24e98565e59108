//! Pushing blobs: in one request, in chunks, streamed, or by mounting one that is there.

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderName, LOCATION, RANGE, RETRY_AFTER};
use oci::{Algorithm, Digest, DigestError, RepositoryName};
use serde_json::json;
use store::{StoreError, UploadSession};
use tokio::sync::OwnedSemaphorePermit;

use crate::access::{Actions, Resource};
use crate::blobs::{CONTENT_DIGEST, respond};
use crate::body::{self, Incoming, Sink};
use crate::error::{ApiError, Code};
use crate::range::{self, Chunk};
use crate::router::Call;

const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const CHUNK_MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");

/// Repositories looked through for a blob to mount when the client names none.
const MOUNT_SOURCES_MAX: usize = 64;

/// `POST /v2/<name>/blobs/uploads/`: mounts a blob, takes one whole, or opens a session.
pub(crate) async fn start(
    call: &Call<'_>,
    name: &RepositoryName,
    body: Body,
) -> Result<Response, ApiError> {
    if let Some(digest) = call.parameter("mount") {
        let digest = digest.parse()?;
        let from = call.parameter("from").filter(|from| !from.is_empty());
        return match mount(call, name, &digest, from.as_deref()).await? {
            true => created(name, &digest),
            false => open(call, name, digest.algorithm()).await,
        };
    }
    if let Some(digest) = call.parameter("digest") {
        return take_whole(call, name, &digest.parse()?, body).await;
    }
    let algorithm = match call.parameter("digest-algorithm") {
        Some(algorithm) => known_algorithm(&algorithm)?,
        None => Algorithm::Sha256,
    };
    open(call, name, algorithm).await
}

fn known_algorithm(name: &str) -> Result<Algorithm, ApiError> {
    let known =
        [Algorithm::Sha256, Algorithm::Sha512].into_iter().find(|known| known.name() == name);
    known.ok_or_else(|| DigestError::UnknownAlgorithm(name.chars().take(64).collect()).into())
}

/// Makes a blob of another repository part of this one. Only repositories that the caller
/// may pull count, so a digest alone opens nothing; whether another one has the blob cannot
/// be told from the answer. A token without the scope to pull from `from` is answered with a
/// challenge if its principal may.
async fn mount(
    call: &Call<'_>,
    name: &RepositoryName,
    digest: &Digest,
    from: Option<&str>,
) -> Result<bool, ApiError> {
    let catalog = call.catalog();
    let failed = |error| ApiError::from_store(error, Code::BlobUnknown);
    let mut sources: Vec<RepositoryName> = Vec::new();
    match from.map(|from| from.parse().map(|from| call.server.full_name(from))) {
        // Before it is looked for there, so that the challenge does not tell what is there.
        Some(Ok(from)) if call.gate.may_mount(call.caller, name, &from).await? => {
            sources.push(from);
        }
        Some(_) => (),
        None => {
            let found = catalog.repositories_with_blob(call.registry, digest, MOUNT_SOURCES_MAX);
            for source in found.await.map_err(failed)? {
                let resource = Resource::Repository(source.clone());
                if call.gate.may(call.caller, &resource, Actions::PULL).await {
                    sources.push(source);
                }
            }
        }
    }
    for source in sources {
        let size = match catalog.blob_size(call.registry, &source, digest).await {
            Err(StoreError::Locked(_)) => None, // As if it were not there.
            size => size.map_err(failed)?,
        };
        if size.is_some() {
            return match catalog.link_blob(call.registry, name, digest).await {
                Ok(()) => Ok(true),
                Err(StoreError::NotFound { .. }) => Ok(false), // Collected meanwhile.
                Err(error) => Err(failed(error)),
            };
        }
    }
    Ok(false)
}

/// Opens an upload session (distribution-spec, *Pushing a blob in chunks*).
async fn open(
    call: &Call<'_>,
    name: &RepositoryName,
    algorithm: Algorithm,
) -> Result<Response, ApiError> {
    let failed = |error| ApiError::from_store(error, Code::NameUnknown);
    let session = call.catalog().begin_session(call.registry, name).await;
    let mut session = session.map_err(failed)?;
    session.expect(algorithm).await.map_err(failed)?;
    let head = in_progress(StatusCode::ACCEPTED, name, session.id(), session.size())
        .header(CHUNK_MIN_LENGTH, call.limits().chunk_size_advised);
    respond(head, Body::empty())
}

/// A blob in the body of one `POST`: no session, hashed by its own algorithm at once.
async fn take_whole(
    call: &Call<'_>,
    name: &RepositoryName,
    digest: &Digest,
    body: Body,
) -> Result<Response, ApiError> {
    let failed = |error| ApiError::from_store(error, Code::BlobUploadUnknown);
    let permit = turn(call).await?;
    let incoming = bounded(call, body, None)?;
    let upload = call.catalog().blobs().begin_upload(digest.algorithm()).await.map_err(failed)?;
    let upload = receive(permit, incoming, upload).await?;
    upload.commit(Some(digest)).await.map_err(failed)?;
    call.catalog().link_blob(call.registry, name, digest).await.map_err(failed)?;
    created(name, digest)
}

/// `GET /v2/<name>/blobs/uploads/<id>`: how far it got.
pub(crate) async fn status(
    call: &Call<'_>,
    name: &RepositoryName,
    id: &str,
) -> Result<Response, ApiError> {
    let size = call.catalog().session_size(call.registry, name, id).await.map_err(session_error)?;
    respond(in_progress(StatusCode::NO_CONTENT, name, id, size), Body::empty())
}

/// `PATCH /v2/<name>/blobs/uploads/<id>`: a chunk if it has a `Content-Range`, else a stream
/// as docker sends it.
pub(crate) async fn append(
    call: &Call<'_>,
    name: &RepositoryName,
    id: &str,
    body: Body,
) -> Result<Response, ApiError> {
    let mut session = continue_with(call, name, id, body, None).await?;
    let synced = session.sync().await;
    synced.map_err(|error| ApiError::from_store(error, Code::BlobUploadUnknown))?;
    respond(in_progress(StatusCode::ACCEPTED, name, id, session.size()), Body::empty())
}

/// `PUT /v2/<name>/blobs/uploads/<id>?digest=<digest>`: the last chunk, if any, and the end.
pub(crate) async fn finish(
    call: &Call<'_>,
    name: &RepositoryName,
    id: &str,
    body: Body,
) -> Result<Response, ApiError> {
    let digest = call
        .parameter("digest")
        .ok_or_else(|| ApiError::new(Code::DigestInvalid, "query parameter `digest` is missing"))?;
    let digest: Digest = digest.parse()?;
    let session = continue_with(call, name, id, body, Some(digest.algorithm())).await?;
    let committed = session.commit(&digest).await;
    committed.map_err(|error| ApiError::from_store(error, Code::BlobUploadUnknown))?;
    created(name, &digest)
}

/// `DELETE /v2/<name>/blobs/uploads/<id>`: throws the session away.
pub(crate) async fn cancel(
    call: &Call<'_>,
    name: &RepositoryName,
    id: &str,
) -> Result<Response, ApiError> {
    let aborted = call.catalog().abort_session(call.registry, name, id).await;
    aborted.map_err(session_error)?;
    respond(Response::builder().status(StatusCode::NO_CONTENT), Body::empty())
}

/// Takes up a session and appends the body, after checking that it starts where the session
/// ends.
async fn continue_with(
    call: &Call<'_>,
    name: &RepositoryName,
    id: &str,
    body: Body,
    expected: Option<Algorithm>,
) -> Result<UploadSession, ApiError> {
    let permit = turn(call).await?;
    let session = call.catalog().resume_session(call.registry, name, id).await;
    let mut session = session.map_err(session_error)?;
    if let Some(algorithm) = expected {
        session.expect(algorithm).await.map_err(session_error)?;
    }
    let chunk = match check_chunk(call, &session) {
        Ok(chunk) => chunk,
        Err(error) => {
            let have = range::received(session.size());
            return Err(error.header(LOCATION, &location(name, id)).header(RANGE, &have));
        }
    };
    let left = call.limits().blob_size_max.saturating_sub(session.size());
    let size_max = chunk.map_or(left, |chunk| left.min(chunk.len));
    let incoming = bounded(call, body, Some(size_max))?.yield_if(session.wanted());
    let before = session.size();
    let session = receive(permit, incoming, session).await?;
    match chunk {
        Some(chunk) if session.size() - before != chunk.len => Err(wrong_size(chunk)),
        _ => Ok(session),
    }
}

/// A session that another request holds is a conflict, not something in use for good.
fn session_error(error: StoreError) -> ApiError {
    let is_held = matches!(error, StoreError::InUse { .. });
    match is_held {
        true => ApiError::new(Code::BlobUploadInvalid, error.to_string())
            .status(StatusCode::CONFLICT)
            .header(RETRY_AFTER, "1"),
        false => ApiError::from_store(error, Code::BlobUploadUnknown),
    }
}

/// The chunk that the headers announce, if they do.
fn check_chunk(call: &Call<'_>, session: &UploadSession) -> Result<Option<Chunk>, ApiError> {
    let Some(header) = call.head.headers.get(CONTENT_RANGE) else { return Ok(None) };
    let chunk = header.to_str().ok().and_then(range::chunk).ok_or_else(|| {
        ApiError::new(Code::BlobUploadInvalid, "Content-Range is not of the form `first-last`")
            .status(StatusCode::RANGE_NOT_SATISFIABLE)
    })?;
    let have = session.size();
    if chunk.start != have {
        let error = StoreError::OutOfOrder { have, start: chunk.start };
        return Err(ApiError::from_store(error, Code::BlobUploadUnknown));
    }
    let announced = call.header(CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
    match announced {
        Some(len) if len != chunk.len => Err(wrong_size(chunk)),
        _ => Ok(Some(chunk)),
    }
}

fn wrong_size(chunk: Chunk) -> ApiError {
    ApiError::new(Code::SizeInvalid, "body and Content-Range differ in length")
        .detail(json!({ "rangeLength": chunk.len }))
}

/// Waits for a turn among the bodies being received.
async fn turn(call: &Call<'_>) -> Result<OwnedSemaphorePermit, ApiError> {
    let turn = std::sync::Arc::clone(&call.server.uploads).acquire_owned();
    match tokio::time::timeout(call.limits().stall, turn).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(ApiError::new(Code::TooManyRequests, "too many uploads at once")
            .header(RETRY_AFTER, "5")),
    }
}

/// Bounds a body. One that announces more than it may have is refused before it is read.
fn bounded(call: &Call<'_>, body: Body, size_max: Option<u64>) -> Result<Incoming, ApiError> {
    let limits = call.limits();
    let size_max = size_max.unwrap_or(limits.blob_size_max);
    let announced = call.header(CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
    match announced.is_some_and(|len| len > size_max) {
        true => Err(ApiError::new(Code::SizeInvalid, "blob is larger than allowed")
            .status(StatusCode::PAYLOAD_TOO_LARGE)
            .detail(json!({ "limit": limits.blob_size_max }))),
        false => Ok(Incoming::new(body, size_max, limits)),
    }
}

/// Receives a body into a sink and gives the sink back. What came before an error is kept.
async fn receive<S: Sink>(
    permit: OwnedSemaphorePermit,
    mut incoming: Incoming,
    mut sink: S,
) -> Result<S, ApiError> {
    let received = body::receive(&mut incoming, &mut sink).await;
    drop(permit);
    if received.is_err()
        && let Err(error) = sink.keep().await
    {
        tracing::warn!(%error, "what was received of an upload may be lost");
    }
    received.map(|()| sink)
}

fn location(name: &RepositoryName, id: &str) -> String {
    format!("/v2/{name}/blobs/uploads/{id}")
}

fn in_progress(
    status: StatusCode,
    name: &RepositoryName,
    id: &str,
    size: u64,
) -> http::response::Builder {
    Response::builder()
        .status(status)
        .header(LOCATION, location(name, id))
        .header(RANGE, range::received(size))
        .header(UPLOAD_UUID, id)
}

/// 201: the repository has the blob now.
fn created(name: &RepositoryName, digest: &Digest) -> Result<Response, ApiError> {
    let head = Response::builder()
        .status(StatusCode::CREATED)
        .header(LOCATION, format!("/v2/{name}/blobs/{digest}"))
        .header(CONTENT_DIGEST, digest.as_str())
        .header(CONTENT_LENGTH, 0);
    respond(head, Body::empty())
}
