//! Manifests and the tags that point at them.

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, LOCATION, RETRY_AFTER};
use oci::{Algorithm, Digest, MANIFEST_SIZE_MAX, Manifest, ReferenceError, RepositoryName, Tag};
use serde_json::json;
use store::{Expected, ManifestRef, NewManifest};

use crate::blobs::{CONTENT_DIGEST, matches_etag, not_modified, part, respond};
use crate::body::Incoming;
use crate::error::{ApiError, Code};
use crate::router::Call;

const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");

/// What follows `/manifests/`: a tag has no colon, a digest has one.
fn parse_reference(text: &str) -> Result<ManifestRef, ReferenceError> {
    match text.contains(':') {
        true => Ok(ManifestRef::Digest(text.parse()?)),
        false => Ok(ManifestRef::Tag(text.parse()?)),
    }
}

/// For a manifest that is only looked for: what cannot be a tag is a tag that is not there.
fn find_reference(name: &RepositoryName, text: &str) -> Result<ManifestRef, ApiError> {
    parse_reference(text).map_err(|error| match error {
        ReferenceError::BadTag(_) => {
            unknown(name, text).detail(json!({ "hint": error.to_string() }))
        }
        error => error.into(),
    })
}

fn unknown(name: &RepositoryName, reference: &str) -> ApiError {
    let reference: String = reference.chars().take(160).collect();
    ApiError::new(Code::ManifestUnknown, "the repository has no such manifest")
        .detail(json!({ "name": name, "reference": reference }))
}

/// `GET` and `HEAD /v2/<name>/manifests/<reference>`: the bytes as they were pushed, whatever
/// `Accept` says, since another form would have another digest.
pub(crate) async fn get(
    call: &Call<'_>,
    name: &RepositoryName,
    reference: &str,
) -> Result<Response, ApiError> {
    let wanted = find_reference(name, reference)?;
    if let Some((pull_through, source)) = &call.copy {
        let refreshed = pull_through.refresh(call.registry, source, &wanted).await;
        refreshed.map_err(|error| ApiError::from_remote(&error, Code::ManifestUnknown))?;
    }
    let found = call.catalog().manifest(call.registry, name, &wanted).await;
    let found = found.map_err(|error| ApiError::from_store(error, Code::ManifestUnknown))?;
    let manifest = found.ok_or_else(|| unknown(name, reference))?;
    if matches_etag(call, &manifest.digest) {
        return respond(not_modified(&manifest.digest), Body::empty());
    }
    let (start, len, head) = part(call, &manifest.digest, manifest.bytes.len() as u64)?;
    let head = head.header(CONTENT_TYPE, manifest.media_type).header(CONTENT_LENGTH, len);
    // The part lies within the bytes, which are in memory.
    let bytes = manifest.bytes.slice(start as usize..(start + len) as usize);
    respond(head, Body::from(bytes))
}

/// `PUT /v2/<name>/manifests/<reference>` (distribution-spec, *Pushing Manifests*).
pub(crate) async fn put(
    call: &Call<'_>,
    name: &RepositoryName,
    reference: &str,
    body: Body,
) -> Result<Response, ApiError> {
    let reference = parse_reference(reference)?;
    let (tags, announced) = match reference {
        ManifestRef::Tag(tag) => (vec![tag], None),
        ManifestRef::Digest(digest) => (tag_parameters(call)?, Some(digest)),
    };
    let announced_size = call.header(CONTENT_LENGTH).and_then(|text| text.parse().ok());
    let size_max = announced_size.unwrap_or(MANIFEST_SIZE_MAX).min(MANIFEST_SIZE_MAX);
    let _room =
        call.server.manifests.take(size_max, call.limits().stall).await.ok_or_else(|| {
            ApiError::new(Code::TooManyRequests, "too many manifests at once")
                .header(RETRY_AFTER, "5")
        })?;
    let mut incoming = Incoming::new(body, MANIFEST_SIZE_MAX as u64, call.limits());
    let bytes = incoming.whole().await?;
    let content_type = call.header(CONTENT_TYPE).map(without_parameters);
    let manifest = Manifest::parse(&bytes, content_type)?;
    let algorithm = announced.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
    let digest = Digest::with(algorithm, &bytes);
    if let Some(announced) = announced.as_ref().filter(|announced| **announced != digest) {
        return Err(ApiError::new(Code::DigestInvalid, "manifest has another digest")
            .detail(json!({ "expected": announced, "actual": digest })));
    }
    let media_type = match content_type {
        Some(outside) if !outside.is_empty() && outside != "application/json" => outside,
        _ => manifest.media_type(),
    };
    let new = NewManifest { digest: &digest, media_type, bytes, manifest: &manifest };
    let moves: Vec<_> = tags.iter().map(|tag| (tag.clone(), Expected::Any)).collect();
    let stored = call.catalog().put_manifest(call.registry, name, new, &moves, &call.push()).await;
    stored.map_err(|error| ApiError::from_store(error, Code::ManifestUnknown))?;
    let mut head = Response::builder()
        .status(StatusCode::CREATED)
        .header(LOCATION, format!("/v2/{name}/manifests/{digest}"))
        .header(CONTENT_DIGEST, digest.as_str())
        .header(CONTENT_LENGTH, 0);
    if let Some(subject) = manifest.subject() {
        head = head.header(OCI_SUBJECT, subject.digest.as_str());
    }
    if announced.is_some() {
        head = tags.iter().fold(head, |head, tag| head.header(OCI_TAG, tag.as_str()));
    }
    respond(head, Body::empty())
}

/// The tags of a push by digest: `?tag=1.2&tag=latest`.
fn tag_parameters(call: &Call<'_>) -> Result<Vec<Tag>, ApiError> {
    let texts = call.query().filter(|(key, _)| key == "tag").map(|(_, value)| value.parse());
    let mut tags = texts.collect::<Result<Vec<Tag>, _>>()?;
    tags.sort_unstable();
    tags.dedup();
    match tags.len() <= call.limits().tags_per_push_max {
        true => Ok(tags),
        false => Err(ApiError::new(Code::TagInvalid, "too many tags in one request")
            .status(StatusCode::URI_TOO_LONG)
            .detail(json!({ "limit": call.limits().tags_per_push_max }))),
    }
}

fn without_parameters(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// `DELETE /v2/<name>/manifests/<reference>`: by tag only the tag goes, by digest the
/// manifest and all its tags (registry.md section 1).
pub(crate) async fn delete(
    call: &Call<'_>,
    name: &RepositoryName,
    reference: &str,
) -> Result<Response, ApiError> {
    let (catalog, registry, cause) = (call.catalog(), call.registry, call.delete());
    let failed = |error| ApiError::from_store(error, Code::ManifestUnknown);
    match find_reference(name, reference)? {
        ManifestRef::Digest(digest) => {
            catalog.delete_manifest(registry, name, &digest, &cause).await.map_err(failed)?;
        }
        ManifestRef::Tag(tag) => {
            let found = catalog.digest_of(registry, name, &ManifestRef::Tag(tag.clone())).await;
            if found.map_err(failed)?.is_none() {
                return Err(unknown(name, reference));
            }
            let removed = catalog.move_tag(registry, name, &tag, &Expected::Any, None, &cause);
            removed.await.map_err(failed)?;
        }
    }
    let head = Response::builder().status(StatusCode::ACCEPTED).header(CONTENT_LENGTH, 0);
    respond(head, Body::empty())
}
