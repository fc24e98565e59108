//! Upload of build contexts.

use std::io::{BufRead, BufReader, Read};
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use oci::Digest;
use serde::Deserialize;
use tokio_util::io::{StreamReader, SyncIoBridge};
use utoipa::IntoParams;

use super::{Json, Path, Query};
use crate::error::ApiError;
use crate::openapi::{Binary, Refusal};
use crate::state::Shared;

/// Where to put a context, as a tar archive, and its name for a run.
#[utoipa::path(
    post, path = "/listBuildSourceUploadUrl", operation_id = "createSourceUpload", tag = "Sources",
    responses((status = OK, body = api::SourceUpload)),
)]
pub(crate) async fn create(
    State(state): State<Shared>,
    Path(registry): Path<String>,
) -> Result<axum::Json<api::SourceUpload>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let source = state.sources.create(&registry).await?;
    let upload_url = format!(
        "/api/v1/registries/{registry}/sources/upload/{}?sig={}",
        source.id, source.signature
    );
    Ok(axum::Json(api::SourceUpload { upload_url, relative_path: source.relative_path }))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct UploadQuery {
    /// As it stands in the address.
    #[serde(default)]
    sig: String,
}

/// A context's tar archive, which may be compressed.
///
/// The address comes from `listBuildSourceUploadUrl` and is its own permission.
#[utoipa::path(
    put, path = "/sources/upload/{id}", operation_id = "uploadSource", tag = "Sources",
    params(UploadQuery),
    request_body(content = inline(Binary), content_type = "application/octet-stream"),
    responses(
        (status = CREATED),
        (status = CONFLICT, response = Refusal),
        (status = INSUFFICIENT_STORAGE, response = Refusal),
    ),
)]
pub(crate) async fn upload(
    State(state): State<Shared>,
    Path((registry, id)): Path<(String, String)>,
    Query(query): Query<UploadQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let announced = headers.get(CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse().ok());
    let chunks = chunks(body, state.body_stall);
    state.sources.upload(&registry, &id, &query.sig, announced, chunks).await?;
    state.metrics.source_uploads.fetch_add(1, Ordering::Relaxed);
    Ok(StatusCode::CREATED)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct BaseQuery {
    /// The `id` of a source whose files are not missing.
    base: Option<String>,
}

/// The list of a context's files; tells which of them are missing.
///
/// The body may have the `Content-Encoding` `gzip`.
#[utoipa::path(
    post, path = "/sources", operation_id = "createSource", tag = "Sources",
    params(BaseQuery),
    request_body(content = api::SourceEntry, content_type = "application/x-ndjson", description = "Lines, each an entry"),
    responses((status = CREATED, body = api::ListedSource)),
)]
pub(crate) async fn create_listed(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Query(query): Query<BaseQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, axum::Json<api::ListedSource>), ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let list = plain_body(&headers, body, state.body_stall)?;
    let source = state.sources.create_listed(&registry, query.base.as_deref(), list).await?;
    let control::ListedSource { id, missing } = source;
    Ok((StatusCode::CREATED, axum::Json(api::ListedSource { id, missing })))
}

/// Files, each compared with its digest as it comes.
///
/// A line of JSON, a list of `PackedFile`, and then the bytes of these files one after the other. The
/// body may have the `Content-Encoding` `gzip`.
#[utoipa::path(
    post, path = "/sources/{id}/packs", operation_id = "addSourcePack", tag = "Sources",
    request_body(content = inline(Binary), content_type = "application/octet-stream"),
    responses(
        (status = CREATED),
        (status = CONFLICT, response = Refusal),
        (status = INSUFFICIENT_STORAGE, response = Refusal),
    ),
)]
pub(crate) async fn add_pack(
    State(state): State<Shared>,
    Path((registry, id)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let pack = plain_body(&headers, body, state.body_stall)?;
    state.sources.add_pack(&registry, &id, BufReader::with_capacity(BUFFER_SIZE, pack)).await?;
    Ok(StatusCode::CREATED)
}

/// One file, with its `Content-Length`.
#[utoipa::path(
    put, path = "/sources/{id}/blobs/{digest}", operation_id = "addSourceFile", tag = "Sources",
    request_body(content = inline(Binary), content_type = "application/octet-stream"),
    responses(
        (status = CREATED),
        (status = CONFLICT, response = Refusal),
        (status = INSUFFICIENT_STORAGE, response = Refusal),
    ),
)]
pub(crate) async fn add_file(
    State(state): State<Shared>,
    Path((registry, id, digest)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let digest: Digest =
        digest.parse().map_err(|error: oci::DigestError| ApiError::invalid(error.to_string()))?;
    let size = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let (Some(size), None) = (size, headers.get(CONTENT_ENCODING)) else {
        return Err(ApiError::invalid("a file needs a `Content-Length`, and no encoding")
            .hint("send it in a pack: `POST .../packs`"));
    };
    let file = store::PackedFile { digest, size };
    let content = plain_body(&headers, body, state.body_stall)?;
    state.sources.add_file(&registry, &id, file, content).await?;
    Ok(StatusCode::CREATED)
}

/// The source's name for a run.
#[utoipa::path(
    post, path = "/sources/{id}/commit", operation_id = "commitSource", tag = "Sources",
    request_body = api::SourceCommit,
    responses((status = OK, body = api::CommittedSource), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn commit(
    State(state): State<Shared>,
    Path((registry, id)): Path<(String, String)>,
    Json(body): Json<api::SourceCommit>,
) -> Result<axum::Json<api::CommittedSource>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let list: Digest = (body.digest.parse())
        .map_err(|error: oci::DigestError| ApiError::invalid(error.to_string()).at("digest"))?;
    let relative_path = state.sources.commit_listed(&registry, &id, &list).await?;
    state.metrics.source_uploads.fetch_add(1, Ordering::Relaxed);
    Ok(axum::Json(api::CommittedSource { relative_path }))
}

/// The pieces of a body; an error when none comes for too long.
pub(super) fn chunks(
    body: Body,
    stall: Duration,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let chunks = body.into_data_stream().map_err(std::io::Error::other);
    stream::unfold(Box::pin(chunks), move |mut chunks| async move {
        match tokio::time::timeout(stall, chunks.next()).await {
            Ok(chunk) => Some((chunk?, chunks)),
            Err(_) => Some((Err(std::io::Error::other("nothing came for too long")), chunks)),
        }
    })
}

/// Read at once from a body.
const BUFFER_SIZE: usize = 256 << 10;

/// A body for blocking code, without the encoding in which it travelled.
fn plain_body(
    headers: &HeaderMap,
    body: Body,
    stall: Duration,
) -> Result<Box<dyn Read + Send>, ApiError> {
    let body = SyncIoBridge::new(StreamReader::new(Box::pin(chunks(body, stall))));
    match headers.get(CONTENT_ENCODING).map(|encoding| encoding.as_bytes()) {
        None => Ok(Box::new(body)),
        Some(b"gzip") => {
            let body = BufReader::with_capacity(BUFFER_SIZE, body);
            Ok(Box::new(Gunzip { body: Some(body), decoder: None }))
        }
        Some(_) => Err(ApiError::invalid("the only encoding of a body is `gzip`")),
    }
}

/// What a gzip stream holds. The decoder reads from the body already where it is made, so that it
/// is made where the body may block.
struct Gunzip<R> {
    body: Option<R>,
    decoder: Option<MultiGzDecoder<R>>,
}

impl<R: BufRead> Read for Gunzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if let Some(body) = self.body.take() {
            self.decoder = Some(MultiGzDecoder::new(body));
        }
        self.decoder.as_mut().map_or(Ok(0), |decoder| decoder.read(buffer))
    }
}
