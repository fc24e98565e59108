//! Importing an image of another registry, of this server or of an uploaded archive.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use builder::OwnNames;
use bytes::Bytes;
use control::{ContextSource, Rights};
use engine::{ImportSource, ImportTarget};
use futures_util::{Stream, stream};
use oci::{Digest, Reference, RegistryName};
use remote::{Credentials, Remote};
use store::{Cause, ManifestRef};
use tokio_util::sync::CancellationToken;

use super::Json;
use super::runs::{NDJSON, accepts, stream_response};
use crate::access::{Needs, Principal};
use crate::audit::Detail;
use crate::error::ApiError;
use crate::from_api::{self, Import, ImportedFrom};
use crate::openapi::Refusal;
use crate::state::{Shared, State as ServerState};
use crate::to_api;

/// More tags of a repository of this server are not imported at once.
const TAGS_MAX: usize = 10_000;
/// How often a client that wants to know hears how much has come.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// Imports an image, and answers when it is here; whoever leaves before gives it up.
///
/// Clients that accept lines of JSON are told meanwhile how much has come.
#[utoipa::path(
    post, path = "/import", operation_id = "importImage", tag = "Repositories",
    request_body = api::ImportRequest,
    responses(
        (status = OK, content((api::ImportReport = "application/json"), (api::ImportProgress = "application/x-ndjson"))),
        (status = CONFLICT, response = Refusal),
        (status = TOO_MANY_REQUESTS, response = Refusal),
        (status = BAD_GATEWAY, response = Refusal),
        (status = INSUFFICIENT_STORAGE, response = Refusal),
    ),
)]
pub(crate) async fn import(
    State(state): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path(registry): Path<String>,
    headers: HeaderMap,
    Json(body): Json<api::ImportRequest>,
) -> Result<Response, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let request = from_api::import_request(body, &registry, &state.own_names())?;
    for destination in &request.tags {
        state.refuse_copy(&destination.repository)?;
    }
    for repository in &request.untagged {
        state.refuse_copy(repository)?;
    }
    if let ImportedFrom::Image { reference, .. } = &request.from {
        let place = Place::of(&state, &state.own_names(), reference, None);
        place.check(&state, &principal, Rights::CONTENT_READ).await?;
    }
    tracing::info!(source = %request.from, principal = principal.name(), "import");
    let detail = Extension(Detail(format!("from {}", request.from)));
    let fetched = Arc::new(AtomicU64::new(0));
    let importing = bring(state, registry, request, Arc::clone(&fetched));
    match accepts(&headers, NDJSON) {
        true => Ok((detail, stream_response(NDJSON, lines(importing, fetched))).into_response()),
        false => Ok((detail, axum::Json(importing.await?)).into_response()),
    }
}

async fn bring(
    state: Shared,
    registry: RegistryName,
    request: Import,
    fetched: Arc<AtomicU64>,
) -> Result<api::ImportReport, ApiError> {
    let own = state.own_names();
    let tags: Vec<_> =
        request.tags.iter().map(|at| (at.repository.clone(), at.tag.clone())).collect();
    let target = ImportTarget {
        registry: &registry,
        tags: &tags,
        untagged: &request.untagged,
        force: request.force,
        platform: request.platform.as_ref(),
        cause: &Cause::Import { source: request.from.to_string() },
    };
    let progress = |bytes| {
        fetched.fetch_add(bytes, Ordering::Relaxed);
    };
    let imported = match &request.from {
        ImportedFrom::Image { reference, credentials } => {
            let wanted = wanted(reference);
            let place = Place::of(&state, &own, reference, credentials.clone());
            engine::import(&state.catalog, &place.source(&wanted), &target, &progress).await
        }
        ImportedFrom::Archive { location, digest } => {
            let archive = read_archive(&state, &registry, location, digest.clone()).await?;
            let source = ImportSource::Archive(&archive);
            engine::import(&state.catalog, &source, &target, &progress).await
        }
    };
    Ok(to_api::import(&imported?, &request, own.host(&registry).unwrap_or_default()))
}

/// The course of an import, one JSON text per line.
fn lines(
    importing: impl Future<Output = Result<api::ImportReport, ApiError>> + Send + 'static,
    fetched: Arc<AtomicU64>,
) -> impl Stream<Item = serde_json::Result<Bytes>> + Send {
    let first = tokio::time::Instant::now() + TOLD_EVERY;
    let ticks = tokio::time::interval_at(first, TOLD_EVERY);
    stream::unfold(Some((Box::pin(importing), ticks)), move |under_way| {
        let fetched = Arc::clone(&fetched);
        async move {
            let (mut importing, mut ticks) = under_way?;
            let (line, under_way) = tokio::select! {
                ended = &mut importing => (ended_line(ended), None),
                _ = ticks.tick() => {
                    let fetched = fetched.load(Ordering::Relaxed);
                    (api::ImportProgress::Fetched(fetched), Some((importing, ticks)))
                }
            };
            let line = serde_json::to_string(&line).map(|line| Bytes::from(line + "\n"));
            Some((line, under_way))
        }
    })
}

fn ended_line(ended: Result<api::ImportReport, ApiError>) -> api::ImportProgress {
    match ended {
        Ok(report) => api::ImportProgress::Imported(report),
        Err(error) => {
            let (status, error) = (error.status.as_u16(), error.into());
            api::ImportProgress::Failed(api::ImportFailure { status, error })
        }
    }
}

/// Lists the tags of the repository that a source names.
///
/// Whoever wants all of them imports one after the other.
#[utoipa::path(
    post, path = "/import/tags", operation_id = "listImportTags", tag = "Repositories",
    request_body = api::ImportSource,
    responses(
        (status = OK, body = api::ImportTags),
        (status = TOO_MANY_REQUESTS, response = Refusal),
        (status = BAD_GATEWAY, response = Refusal),
    ),
)]
pub(crate) async fn tags(
    State(state): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path(registry): Path<String>,
    Json(source): Json<api::ImportSource>,
) -> Result<axum::Json<api::ImportTags>, ApiError> {
    state.registry(&registry)?;
    let ImportedFrom::Image { reference, credentials } = from_api::imported_from(source)? else {
        return Err(ApiError::invalid("an archive has no list of tags").at("source"));
    };
    let place = Place::of(&state, &state.own_names(), &reference, credentials);
    place.check(&state, &principal, Rights::METADATA_READ).await?;
    let tags = match place {
        Place::Own(registry, reference) => {
            let repository = &reference.repository;
            let tags = state.catalog.tags(&registry, repository, None, TAGS_MAX).await?;
            tags.into_iter().map(|found| found.tag.into()).collect()
        }
        Place::Remote(remote, reference) => {
            remote.tags(&reference).await.map_err(engine::ImportError::from)?
        }
    };
    Ok(axum::Json(api::ImportTags { tags }))
}

/// Where an image is.
enum Place {
    Own(RegistryName, Reference),
    Remote(Remote, Reference),
}

impl Place {
    fn of(
        state: &ServerState,
        own: &OwnNames,
        reference: &Reference,
        credentials: Option<api::ImportCredentials>,
    ) -> Self {
        let reference = state.origin(own, reference);
        match (own.registry(&reference), credentials) {
            (Some(registry), _) => Self::Own(registry.clone(), reference),
            (None, None) => Self::Remote(state.remote.clone(), reference),
            (None, Some(api::ImportCredentials { username, password })) => {
                let credentials = Credentials { username, password };
                let remote = state.remote.with_credentials(&reference.host, credentials);
                Self::Remote(remote, reference)
            }
        }
    }

    /// What is in another registry of this server is not for whoever may do something in this one.
    async fn check(
        &self,
        state: &ServerState,
        principal: &Principal,
        rights: Rights,
    ) -> Result<(), ApiError> {
        let Self::Own(registry, reference) = self else { return Ok(()) };
        let (repository, needs) = (reference.repository.as_str(), Needs::Rights(rights));
        state.access.require(principal, Some(registry), Some(repository), needs).await
    }

    fn source<'a>(&'a self, wanted: &'a ManifestRef) -> ImportSource<'a> {
        match self {
            Self::Own(registry, reference) => {
                ImportSource::Own { registry, repository: &reference.repository, wanted }
            }
            Self::Remote(remote, reference) => ImportSource::Remote { remote, reference },
        }
    }
}

/// What a reference names, `latest` if it does not say.
pub(super) fn wanted(reference: &Reference) -> ManifestRef {
    match (&reference.digest, reference.tag_or_latest()) {
        (Some(digest), _) => ManifestRef::Digest(digest.clone()),
        (None, tag) => ManifestRef::Tag(tag.unwrap_or_else(oci::Tag::latest)),
    }
}

/// Stores what an uploaded archive holds.
async fn read_archive(
    state: &ServerState,
    registry: &RegistryName,
    location: &str,
    wanted: Option<Digest>,
) -> Result<engine::ImageArchive, ApiError> {
    let source = state.sources.resolve(registry, location).await?;
    let ContextSource::Upload(upload) = source else {
        return Err(ApiError::invalid("the upload is no archive").at("source.sourceLocation"));
    };
    let archive = state.catalog.blobs().open(&upload, 0).await?.into_blocking();
    let (catalog, limits) = (state.catalog.clone(), state.archive_limits);
    let cancel = CancellationToken::new();
    // Dropped with the request.
    let _given_up = cancel.clone().drop_guard();
    let read =
        move || engine::read_image_archive(archive, &catalog, wanted.as_ref(), limits, &cancel);
    let read = tokio::task::spawn_blocking(read).await;
    let archive = read.map_err(|error| ApiError::interrupted(&error))?;
    Ok(archive.map_err(engine::ImportError::from)?)
}
