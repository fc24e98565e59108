//! What a registry holds: repositories, tags, manifests; and garbage collection.

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use oci::{Digest, RegistryName, RepositoryName, Tag};
use serde::Deserialize;
use store::{AttributesChange, Cause, Expected, GcOptions, ManifestRef, StoreError};
use utoipa::IntoParams;

use super::{Json, Query};
use crate::access::Principal;
use crate::audit::Detail;
use crate::error::ApiError;
use crate::from_api::{self, cut};
use crate::openapi::Refusal;
use crate::state::{Shared, State as ServerState};
use crate::to_api;

const PAGE_DEFAULT: usize = 100;
const PAGE_MAX: usize = 1000;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageQuery {
    /// How many on one page, at most 1000; 100 if absent.
    n: Option<usize>,
    /// The last one on the page before.
    pub(super) last: Option<String>,
}

impl PageQuery {
    pub(super) fn limit(&self) -> usize {
        self.n.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX)
    }

    /// Cuts one item too many off, and names the page that begins with it.
    pub(super) fn page<T>(
        &self,
        route: &str,
        mut value: Vec<T>,
        name: impl Fn(&T) -> String,
    ) -> api::Page<T> {
        let limit = self.limit();
        let more = value.len() > limit;
        value.truncate(limit);
        let next_link = value.last().filter(|_| more).map(|last| {
            let mut link = url::form_urlencoded::Serializer::new(String::new());
            link.append_pair("n", &limit.to_string()).append_pair("last", &name(last));
            format!("{route}?{}", link.finish())
        });
        api::Page { value, next_link }
    }
}

/// Lists repositories by name.
#[utoipa::path(
    get, path = "/repositories", operation_id = "listRepositories", tag = "Repositories",
    params(PageQuery),
    responses((status = OK, body = api::Page<api::Repository>)),
)]
pub(crate) async fn repositories(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<api::Page<api::Repository>>, ApiError> {
    let (registry, own) = state.registry(&registry)?;
    let names =
        state.catalog.repositories(&registry, query.last.as_deref(), query.limit() + 1).await?;
    let mut repositories = Vec::new();
    for name in &names {
        // One may have gone since.
        repositories.extend(describe(&state, &registry, &own.login_server, name).await?);
    }
    let route = format!("/api/v1/registries/{registry}/repositories");
    Ok(axum::Json(query.page(&route, repositories, |repository| repository.image_name.clone())))
}

/// A repository and how much is in it.
#[utoipa::path(
    get, path = "/repositories/{name}", operation_id = "getRepository", tag = "Repositories",
    responses((status = OK, body = api::Repository)),
)]
pub(crate) async fn repository(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
) -> Result<axum::Json<api::Repository>, ApiError> {
    let (registry, name) = existing(&state, &registry, &name).await?;
    shown(&state, &registry, &name).await
}

async fn shown(
    state: &ServerState,
    registry: &RegistryName,
    name: &RepositoryName,
) -> Result<axum::Json<api::Repository>, ApiError> {
    let (_, own) = state.registry(registry.as_str())?;
    let shown = describe(state, registry, &own.login_server, name).await?;
    shown.map(axum::Json).ok_or_else(|| ApiError::not_found(format!("repository `{name}`")))
}

/// Locks a repository, or unlocks it.
///
/// With `writeEnabled` or `readEnabled` false, all that is in it is locked.
#[utoipa::path(
    patch, path = "/repositories/{name}", operation_id = "updateRepository", tag = "Repositories",
    request_body = api::UpdateAttributes,
    responses((status = OK, body = api::Repository)),
)]
pub(crate) async fn update_repository(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
    Json(body): Json<api::UpdateAttributes>,
) -> Result<(Extension<Detail>, axum::Json<api::Repository>), ApiError> {
    let (registry, name) = existing(&state, &registry, &name).await?;
    let detail = change(&state, &registry, &name, None, &body).await?;
    Ok((detail, shown(&state, &registry, &name).await?))
}

/// Changes attributes; gives what the audit log is to say of it.
async fn change(
    state: &ServerState,
    registry: &RegistryName,
    name: &RepositoryName,
    reference: Option<&ManifestRef>,
    body: &api::UpdateAttributes,
) -> Result<Extension<Detail>, ApiError> {
    let change = from_api::attributes(body);
    state.catalog.change_attributes(registry, name, reference, change).await?;
    let AttributesChange { delete_enabled, write_enabled, read_enabled, list_enabled } = change;
    let pairs = [
        ("deleteEnabled", delete_enabled),
        ("writeEnabled", write_enabled),
        ("readEnabled", read_enabled),
        ("listEnabled", list_enabled),
    ];
    let told = pairs.iter().filter_map(|(name, value)| Some(format!("{name}: {}", (*value)?)));
    Ok(Extension(Detail(told.collect::<Vec<_>>().join(", "))))
}

/// Deletes a repository with all that is in it.
#[utoipa::path(
    delete, path = "/repositories/{name}", operation_id = "deleteRepository", tag = "Repositories",
    responses(
        (status = ACCEPTED, body = api::Deleted),
        (status = CONFLICT, response = Refusal),
        (status = METHOD_NOT_ALLOWED, response = Refusal),
    ),
)]
pub(crate) async fn delete_repository(
    State(state): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path((registry, name)): Path<(String, String)>,
) -> Result<(StatusCode, axum::Json<api::Deleted>), ApiError> {
    let (registry, name) = existing(&state, &registry, &name).await?;
    let deleted = state.catalog.delete_repository(&registry, &name, &cause(&principal)).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(to_api::deleted(deleted.count()))))
}

/// Lists the tags of a repository by name.
#[utoipa::path(
    get, path = "/repositories/{name}/tags", operation_id = "listTags", tag = "Repositories",
    params(PageQuery),
    responses((status = OK, body = api::Page<api::TagAttributes>)),
)]
pub(crate) async fn tags(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<api::Page<api::TagAttributes>>, ApiError> {
    let (registry, name) = existing(&state, &registry, &name).await?;
    let last = query.last.as_deref();
    let tags = state.catalog.tags(&registry, &name, last, query.limit() + 1).await?;
    let tags = tags.iter().map(to_api::tag).collect();
    let route = format!("/api/v1/registries/{registry}/repositories/{}/tags", escaped(&name));
    Ok(axum::Json(query.page(&route, tags, |tag: &api::TagAttributes| tag.name.clone())))
}

/// A tag and what it points at.
#[utoipa::path(
    get, path = "/repositories/{name}/tags/{tag}", operation_id = "getTag", tag = "Repositories",
    responses((status = OK, body = api::TagAttributes)),
)]
pub(crate) async fn tag(
    State(state): State<Shared>,
    Path((registry, name, tag)): Path<(String, String, String)>,
) -> Result<axum::Json<api::TagAttributes>, ApiError> {
    let (registry, name) = existing(&state, &registry, &name).await?;
    let tag = parse_tag(&tag)?;
    let found = find_tag(&state, &registry, &name, &tag).await?;
    Ok(axum::Json(to_api::tag(&found)))
}

/// Locks a tag, or unlocks it. The manifest that it points at has attributes of its own.
#[utoipa::path(
    patch,
    path = "/repositories/{name}/tags/{tag}",
    operation_id = "updateTag",
    tag = "Repositories",
    request_body = api::UpdateAttributes,
    responses((status = OK, body = api::TagAttributes)),
)]
pub(crate) async fn update_tag(
    State(state): State<Shared>,
    Path((registry, name, tag)): Path<(String, String, String)>,
    Json(body): Json<api::UpdateAttributes>,
) -> Result<(Extension<Detail>, axum::Json<api::TagAttributes>), ApiError> {
    let (registry, name) = existing(&state, &registry, &name).await?;
    let tag = parse_tag(&tag)?;
    let own = ManifestRef::Tag(tag.clone());
    let detail = change(&state, &registry, &name, Some(&own), &body).await?;
    let found = find_tag(&state, &registry, &name, &tag).await?;
    Ok((detail, axum::Json(to_api::tag(&found))))
}

/// Removes a tag; the manifest stays.
#[utoipa::path(
    delete,
    path = "/repositories/{name}/tags/{tag}",
    operation_id = "deleteTag",
    tag = "Repositories",
    responses(
        (status = ACCEPTED, body = api::Deleted),
        (status = CONFLICT, response = Refusal),
        (status = METHOD_NOT_ALLOWED, response = Refusal),
    ),
)]
pub(crate) async fn untag(
    State(state): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path((registry, name, tag)): Path<(String, String, String)>,
) -> Result<(StatusCode, axum::Json<api::Deleted>), ApiError> {
    let (registry, name) = existing(&state, &registry, &name).await?;
    let tag = parse_tag(&tag)?;
    find_tag(&state, &registry, &name, &tag).await?;
    let cause = cause(&principal);
    state.catalog.move_tag(&registry, &name, &tag, &Expected::Any, None, &cause).await?;
    let deleted = api::Deleted { manifests_deleted: 0, tags_deleted: 1 };
    Ok((StatusCode::ACCEPTED, axum::Json(deleted)))
}

/// Lists the manifests of a repository by digest.
#[utoipa::path(
    get,
    path = "/repositories/{name}/manifests",
    operation_id = "listManifests",
    tag = "Repositories",
    params(PageQuery),
    responses((status = OK, body = api::Page<api::ManifestAttributes>)),
)]
pub(crate) async fn manifests(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<api::Page<api::ManifestAttributes>>, ApiError> {
    let (registry, name) = existing(&state, &registry, &name).await?;
    let last = query.last.as_deref().map(str::parse).transpose();
    let last =
        last.map_err(|error: oci::DigestError| ApiError::invalid(error.to_string()).at("last"))?;
    let found = state.catalog.manifests(&registry, &name, last.as_ref(), query.limit() + 1).await?;
    let manifests = found.iter().map(to_api::manifest).collect();
    let route = format!("/api/v1/registries/{registry}/repositories/{}/manifests", escaped(&name));
    let digest = |manifest: &api::ManifestAttributes| manifest.digest.clone();
    Ok(axum::Json(query.page(&route, manifests, digest)))
}

/// A manifest by tag or digest, with its bytes read as JSON.
#[utoipa::path(
    get,
    path = "/repositories/{name}/manifests/{reference}",
    operation_id = "getManifest",
    tag = "Repositories",
    responses((status = OK, body = api::ManifestDocument)),
)]
pub(crate) async fn manifest(
    State(state): State<Shared>,
    Path((registry, name, reference)): Path<(String, String, String)>,
) -> Result<axum::Json<api::ManifestDocument>, ApiError> {
    let (registry, name) = existing(&state, &registry, &name).await?;
    let digest = find_manifest(&state, &registry, &name, &reference).await?;
    document(&state, &registry, &name, digest).await
}

/// What there is to say of a manifest, and its text, if that may be read.
async fn document(
    state: &ServerState,
    registry: &RegistryName,
    name: &RepositoryName,
    digest: Digest,
) -> Result<axum::Json<api::ManifestDocument>, ApiError> {
    let missing = || ApiError::not_found(format!("manifest `{digest}` of repository `{name}`"));
    let info = state.catalog.manifest_info(registry, name, &digest).await?.ok_or_else(missing)?;
    let reference = ManifestRef::Digest(digest.clone());
    let bytes = match state.catalog.manifest(registry, name, &reference).await {
        Err(StoreError::Locked(_)) => None,
        entry => Some(entry?.ok_or_else(missing)?.bytes),
    };
    Ok(axum::Json(to_api::manifest_document(&info, bytes.as_deref())))
}

/// Locks a manifest, by tag or digest, or unlocks it. Its tags have attributes of their own.
#[utoipa::path(
    patch,
    path = "/repositories/{name}/manifests/{reference}",
    operation_id = "updateManifest",
    tag = "Repositories",
    request_body = api::UpdateAttributes,
    responses((status = OK, body = api::ManifestDocument)),
)]
pub(crate) async fn update_manifest(
    State(state): State<Shared>,
    Path((registry, name, reference)): Path<(String, String, String)>,
    Json(body): Json<api::UpdateAttributes>,
) -> Result<(Extension<Detail>, axum::Json<api::ManifestDocument>), ApiError> {
    let (registry, name) = existing(&state, &registry, &name).await?;
    let digest = find_manifest(&state, &registry, &name, &reference).await?;
    let own = ManifestRef::Digest(digest.clone());
    let detail = change(&state, &registry, &name, Some(&own), &body).await?;
    Ok((detail, document(&state, &registry, &name, digest).await?))
}

/// How a manifest was built here, and what the run came to that built it: `run`.
// Architecture.md decision 1.
#[utoipa::path(
    get,
    path = "/repositories/{name}/manifests/{reference}/record",
    operation_id = "getBuildRecord",
    tag = "Repositories",
    responses((status = OK, body = Object)),
)]
pub(crate) async fn build_record(
    State(state): State<Shared>,
    Path((registry, name, reference)): Path<(String, String, String)>,
) -> Result<axum::Json<serde_json::Value>, ApiError> {
    let (registry, name) = existing(&state, &registry, &name).await?;
    let digest = find_manifest(&state, &registry, &name, &reference).await?;
    let record = state.catalog.build_record(&registry, &digest).await?;
    let Some(record) = record else {
        return Err(ApiError::not_found(format!("the build record of `{name}@{digest}`"))
            .hint("only what was built here has one; of several platforms, each by its digest"));
    };
    let read = |text: &str| {
        serde_json::from_str::<serde_json::Value>(text).map_err(|error| ApiError::internal(&error))
    };
    let mut shown = read(&record.record)?;
    if let Some(run) = &record.run {
        shown["run"] = read(run)?;
    }
    Ok(axum::Json(shown))
}

/// Removes the manifest behind a tag or digest, and every tag that points at it.
// What the client of the managed service means, registry.md section 1.
#[utoipa::path(
    delete,
    path = "/repositories/{name}/manifests/{reference}",
    operation_id = "deleteManifest",
    tag = "Repositories",
    responses(
        (status = ACCEPTED, body = api::Deleted),
        (status = CONFLICT, response = Refusal),
        (status = METHOD_NOT_ALLOWED, response = Refusal),
    ),
)]
pub(crate) async fn delete_manifest(
    State(state): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path((registry, name, reference)): Path<(String, String, String)>,
) -> Result<(StatusCode, axum::Json<api::Deleted>), ApiError> {
    let (registry, name) = existing(&state, &registry, &name).await?;
    let digest = find_manifest(&state, &registry, &name, &reference).await?;
    let cause = cause(&principal);
    let deleted = state.catalog.delete_manifest(&registry, &name, &digest, &cause).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(to_api::deleted(deleted))))
}

/// Collects garbage of the whole store, as registries share one, or says what it would collect.
#[utoipa::path(
    post, path = "/gc", operation_id = "collectGarbage", tag = "Maintenance",
    request_body(content = api::GarbageRequest, description = "May be left out"),
    responses((status = OK, body = api::GarbageReport)),
)]
pub(crate) async fn collect_garbage(
    state: State<Shared>,
    Path(registry): Path<String>,
    body: axum::body::Bytes,
) -> Result<axum::Json<api::GarbageReport>, ApiError> {
    state.registry(&registry)?;
    collect_garbage_of_server(state, body).await
}

/// Collects garbage of the whole store, or says what it would collect.
#[utoipa::path(
    post, path = "/api/v1/gc", operation_id = "collectServerGarbage", tag = "Maintenance",
    request_body(content = api::GarbageRequest, description = "May be left out"),
    responses((status = OK, body = api::GarbageReport)),
)]
pub(crate) async fn collect_garbage_of_server(
    State(state): State<Shared>,
    body: axum::body::Bytes,
) -> Result<axum::Json<api::GarbageReport>, ApiError> {
    let request: api::GarbageRequest = match body.is_empty() {
        true => api::GarbageRequest::default(),
        false => serde_json::from_slice(&body)
            .map_err(|error| ApiError::invalid(format!("the body is not understood: {error}")))?,
    };
    let options = GcOptions { dry_run: request.dry_run, ..state.garbage.clone() };
    let report = state.catalog.collect_garbage(&options).await?;
    Ok(axum::Json(to_api::garbage(&report, request.dry_run)))
}

/// A repository as lists show it.
async fn describe(
    state: &ServerState,
    registry: &RegistryName,
    login_server: &str,
    name: &RepositoryName,
) -> Result<Option<api::Repository>, ApiError> {
    let info = state.catalog.repository(registry, name).await?;
    Ok(info.map(|info| to_api::repository(login_server, name, &info)))
}

async fn existing(
    state: &ServerState,
    registry: &str,
    name: &str,
) -> Result<(RegistryName, RepositoryName), ApiError> {
    let (registry, _) = state.registry(registry)?;
    let missing = || ApiError::not_found(format!("repository `{}`", cut(name)));
    let parsed = name.parse::<RepositoryName>().map_err(|_| missing())?;
    match state.catalog.repository_exists(&registry, &parsed).await? {
        true => Ok((registry, parsed)),
        false => Err(missing()),
    }
}

fn parse_tag(tag: &str) -> Result<Tag, ApiError> {
    tag.parse().map_err(|_| ApiError::not_found(format!("tag `{}`", cut(tag))))
}

async fn find_tag(
    state: &ServerState,
    registry: &RegistryName,
    name: &RepositoryName,
    tag: &Tag,
) -> Result<store::TagInfo, ApiError> {
    let found = state.catalog.tag(registry, name, tag).await?;
    found.ok_or_else(|| ApiError::not_found(format!("tag `{tag}` of repository `{name}`")))
}

/// The digest behind a tag or digest.
async fn find_manifest(
    state: &ServerState,
    registry: &RegistryName,
    name: &RepositoryName,
    reference: &str,
) -> Result<Digest, ApiError> {
    let missing =
        || ApiError::not_found(format!("manifest `{}` of repository `{name}`", cut(reference)));
    let parsed = match reference.contains(':') {
        true => ManifestRef::Digest(reference.parse().map_err(|_| missing())?),
        false => ManifestRef::Tag(reference.parse().map_err(|_| missing())?),
    };
    state.catalog.digest_of(registry, name, &parsed).await?.ok_or_else(missing)
}

fn cause(principal: &Principal) -> Cause {
    Cause::Delete { principal: principal.name() }
}

/// A repository's name as one segment of a path.
pub(super) fn escaped(name: &RepositoryName) -> String {
    name.as_str().replace('/', "%2F")
}
