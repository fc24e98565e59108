//! Blobs: pulling them, whole or in part, and taking them out of a repository.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName,
    HeaderValue, IF_NONE_MATCH, IF_RANGE, RANGE,
};
use http::{Method, StatusCode};
use oci::{Digest, RepositoryName};
use serde_json::json;
use store::StoreError;

use crate::body::BlobBody;
use crate::error::{ApiError, Code};
use crate::pull_through::{Coming, PullThrough, Source};
use crate::range::{self, ByteRange};
use crate::router::Call;

pub(crate) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// `GET` and `HEAD /v2/<name>/blobs/<digest>` (distribution-spec, *Pulling blobs*).
pub(crate) async fn get(
    call: &Call<'_>,
    name: &RepositoryName,
    digest: &str,
) -> Result<Response, ApiError> {
    let digest: Digest = digest.parse()?;
    match (stored(call, name, &digest).await, &call.copy) {
        (Err(error), Some((pull_through, source))) if error.code() == Code::BlobUnknown => {
            pulled(call, name, &digest, pull_through, source).await
        }
        (answer, _) => answer,
    }
}

/// A blob of the store.
async fn stored(
    call: &Call<'_>,
    name: &RepositoryName,
    digest: &Digest,
) -> Result<Response, ApiError> {
    let is_head = call.head.method == Method::HEAD;
    let size = match call.catalog().blob_size(call.registry, name, digest).await {
        // Asked before a push: what is not to be read may still be written.
        Err(StoreError::Locked(_)) if is_head => Ok(None),
        size => size,
    };
    let size = size.map_err(|error| ApiError::from_store(error, Code::BlobUnknown))?;
    let size = size.ok_or_else(|| unknown(name, digest))?;
    if matches_etag(call, digest) {
        return respond(not_modified(digest), Body::empty());
    }
    if is_head {
        // A client that is told that the blob is there will not push it.
        let there = call.catalog().blobs().stat(digest).await;
        let there = there.map_err(|error| ApiError::from_store(error, Code::BlobUnknown))?;
        there.ok_or_else(|| unknown(name, digest))?;
    }
    let (start, len, head) = blob_part(call, digest, size)?;
    if is_head || len == 0 {
        return respond(head, Body::empty());
    }
    let blob = call.catalog().blobs().open(digest, start).await;
    let blob = blob.map_err(|error| ApiError::from_store(error, Code::BlobUnknown))?;
    let body = BlobBody::new(blob, len, Arc::clone(&call.server.buffers)).map_err(|source| {
        let doing = "read a blob".to_owned();
        ApiError::from_store(StoreError::Io { doing, source }, Code::BlobUnknown)
    })?;
    respond(head, Body::new(body))
}

/// A blob that only the upstream has: given out while it comes.
async fn pulled(
    call: &Call<'_>,
    name: &RepositoryName,
    digest: &Digest,
    pull_through: &Arc<PullThrough>,
    source: &Source,
) -> Result<Response, ApiError> {
    if call.head.method == Method::HEAD {
        let size = pull_through.blob_size(source, digest).await;
        let size = size.map_err(|error| ApiError::from_remote(&error, Code::BlobUnknown))?;
        if let Some(size) = size {
            let (_, _, head) = blob_part(call, digest, size)?;
            return respond(head, Body::empty());
        }
        // It does not say how long the blob is.
    }
    let coming = pull_through.fetch(call.registry, source, digest).await;
    match coming.map_err(|error| ApiError::from_remote(&error, Code::BlobUnknown))? {
        Coming::Stored => stored(call, name, digest).await,
        Coming::Flight(following) => {
            let (start, len, head) = blob_part(call, digest, following.size)?;
            respond(head, following.body(start, len))
        }
    }
}

/// As [`part`], with what is said of blobs.
fn blob_part(
    call: &Call<'_>,
    digest: &Digest,
    size: u64,
) -> Result<(u64, u64, http::response::Builder), ApiError> {
    let (start, len, head) = part(call, digest, size)?;
    let head = head
        .header(CACHE_CONTROL, HeaderValue::from_static("private, max-age=31536000, immutable"))
        .header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
        .header(CONTENT_LENGTH, len);
    Ok((start, len, head))
}

/// `DELETE /v2/<name>/blobs/<digest>`: only this repository loses it.
pub(crate) async fn delete(
    call: &Call<'_>,
    name: &RepositoryName,
    digest: &str,
) -> Result<Response, ApiError> {
    let digest: Digest = digest.parse()?;
    let unlinked = call.catalog().unlink_blob(call.registry, name, &digest).await;
    unlinked.map_err(|error| ApiError::from_store(error, Code::BlobUnknown))?;
    let head = Response::builder().status(StatusCode::ACCEPTED).header(CONTENT_LENGTH, 0);
    respond(head, Body::empty())
}

/// Which part of immutable content of `size` bytes is asked for: where it starts, how long it
/// is, and the head of the answer (RFC 9110 section 14).
pub(crate) fn part(
    call: &Call<'_>,
    digest: &Digest,
    size: u64,
) -> Result<(u64, u64, http::response::Builder), ApiError> {
    // Another content than the client has a part of is sent whole.
    let is_same = call.head.headers.get(IF_RANGE).is_none_or(|tag| tag == &*etag(digest));
    let is_get = call.head.method == Method::GET;
    let asked = call.header(RANGE).filter(|_| is_get && is_same);
    let (start, len, head) = match range::requested(asked, size) {
        ByteRange::Whole => (0, size, Response::builder().status(StatusCode::OK)),
        ByteRange::Part { start, end } => {
            let head = Response::builder()
                .status(StatusCode::PARTIAL_CONTENT)
                .header(CONTENT_RANGE, format!("bytes {start}-{end}/{size}"));
            (start, end - start + 1, head)
        }
        ByteRange::Unsatisfiable => {
            return Err(ApiError::new(Code::SizeInvalid, "range is outside of the content")
                .status(StatusCode::RANGE_NOT_SATISFIABLE)
                .detail(json!({ "size": size }))
                .header(CONTENT_RANGE, &format!("bytes */{size}")));
        }
    };
    Ok((start, len, tagged(head, digest).header(ACCEPT_RANGES, HeaderValue::from_static("bytes"))))
}

fn unknown(name: &RepositoryName, digest: &Digest) -> ApiError {
    ApiError::new(Code::BlobUnknown, "the repository has no such blob")
        .detail(json!({ "name": name, "digest": digest }))
}

/// Whether `If-None-Match` names this digest: what is immutable is never modified.
pub(crate) fn matches_etag(call: &Call<'_>, digest: &Digest) -> bool {
    call.header(IF_NONE_MATCH).is_some_and(|tags| {
        tags.split(',')
            .map(|tag| tag.trim().trim_start_matches("W/"))
            .any(|tag| tag == "*" || tag.trim_matches('"') == digest.as_str())
    })
}

pub(crate) fn not_modified(digest: &Digest) -> http::response::Builder {
    tagged(Response::builder().status(StatusCode::NOT_MODIFIED), digest)
}

/// Adds the digest, under both of its header names.
pub(crate) fn tagged(head: http::response::Builder, digest: &Digest) -> http::response::Builder {
    head.header(CONTENT_DIGEST, digest.as_str()).header(ETAG, etag(digest))
}

fn etag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

/// Puts head and body together; a head that is no head is our fault.
pub(crate) fn respond(head: http::response::Builder, body: Body) -> Result<Response, ApiError> {
    head.body(body).map_err(|error| {
        tracing::error!(%error, "a response could not be written");
        ApiError::new(Code::Unknown, "the response could not be written")
    })
}
