//! What a registry holds: repositories, tags, manifests; and garbage collection.

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use oci::{RegistryName, RepositoryName, Tag};
use serde::Deserialize;
use store::{Cause, Expected, GcOptions, ManifestRef};
use utoipa::IntoParams;

use super::Query;
use crate::access::Principal;
use crate::error::ApiError;
use crate::from_api::cut;
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
    last: Option<String>,
}

impl PageQuery {
    fn limit(&self) -> usize {
        self.n.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX)
    }

    /// Cuts one item too many off, and names the page that begins with it.
    fn page<T>(&self, route: &str, mut value: Vec<T>, name: impl Fn(&T) -> String) -> api::Page<T> {
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
        repositories.push(describe(&state, &registry, &own.login_server, name).await?);
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
    let (_, own) = state.registry(registry.as_str())?;
    Ok(axum::Json(describe(&state, &registry, &own.login_server, &name).await?))
}

/// Deletes a repository with all that is in it.
#[utoipa::path(
    delete, path = "/repositories/{name}", operation_id = "deleteRepository", tag = "Repositories",
    responses((status = ACCEPTED, body = api::Deleted), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn delete_repository(
    State(state): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path((registry, name)): Path<(String, String)>,
) -> Result<(StatusCode, axum::Json<api::Deleted>), ApiError> {
    let (registry, name) = existing(&state, &registry, &name).await?;
    let deleted = state.catalog.delete_repository(&registry, &name, &cause(&principal)).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(to_api::deleted(deleted))))
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

/// Removes a tag; the manifest stays.
#[utoipa::path(
    delete,
    path = "/repositories/{name}/tags/{tag}",
    operation_id = "deleteTag",
    tag = "Repositories",
    responses((status = ACCEPTED, body = api::Deleted), (status = CONFLICT, response = Refusal)),
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
    let entry = find_manifest(&state, &registry, &name, &reference).await?;
    Ok(axum::Json(to_api::manifest_document(&entry)))
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
    let digest = find_manifest(&state, &registry, &name, &reference).await?.digest;
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
    responses((status = ACCEPTED, body = api::Deleted), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn delete_manifest(
    State(state): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path((registry, name, reference)): Path<(String, String, String)>,
) -> Result<(StatusCode, axum::Json<api::Deleted>), ApiError> {
    let (registry, name) = existing(&state, &registry, &name).await?;
    let digest = find_manifest(&state, &registry, &name, &reference).await?.digest;
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

/// Counts what is in a repository, page by page.
async fn describe(
    state: &ServerState,
    registry: &RegistryName,
    login_server: &str,
    name: &RepositoryName,
) -> Result<api::Repository, ApiError> {
    let mut manifest_count = 0;
    let mut tag_count = 0;
    let (mut created, mut updated) = (None::<i64>, None::<i64>);
    let mut last = None;
    loop {
        let page = state.catalog.manifests(registry, name, last.as_ref(), PAGE_MAX).await?;
        for manifest in &page {
            manifest_count += 1;
            tag_count += manifest.tags.len() as u64;
            let at = manifest.pushed_at;
            created = Some(created.map_or(at, |created| created.min(at)));
            updated = Some(updated.map_or(at, |updated| updated.max(at)));
        }
        match page.last() {
            Some(manifest) if page.len() == PAGE_MAX => last = Some(manifest.digest.clone()),
            _ => break,
        }
    }
    Ok(api::Repository {
        registry: login_server.to_owned(),
        image_name: name.to_string(),
        created_time: created.map(to_api::time),
        last_update_time: updated.map(to_api::time),
        manifest_count,
        tag_count,
    })
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

/// The tag's attributes: the first tag not before it in a listing.
async fn find_tag(
    state: &ServerState,
    registry: &RegistryName,
    name: &RepositoryName,
    tag: &Tag,
) -> Result<store::TagInfo, ApiError> {
    let missing = || ApiError::not_found(format!("tag `{tag}` of repository `{name}`"));
    let reference = ManifestRef::Tag(tag.clone());
    let entry = state.catalog.manifest(registry, name, &reference).await?;
    let digest = entry.ok_or_else(missing)?.digest;
    let mut last: Option<String> = None;
    loop {
        let page = state.catalog.tags(registry, name, last.as_deref(), PAGE_MAX).await?;
        if let Some(found) = page.iter().find(|found| found.tag == *tag && found.digest == digest) {
            return Ok(found.clone());
        }
        match page.last() {
            Some(end) if page.len() == PAGE_MAX => last = Some(end.tag.to_string()),
            _ => return Err(missing()),
        }
    }
}

async fn find_manifest(
    state: &ServerState,
    registry: &RegistryName,
    name: &RepositoryName,
    reference: &str,
) -> Result<store::ManifestEntry, ApiError> {
    let missing =
        || ApiError::not_found(format!("manifest `{}` of repository `{name}`", cut(reference)));
    let parsed = match reference.contains(':') {
        true => ManifestRef::Digest(reference.parse().map_err(|_| missing())?),
        false => ManifestRef::Tag(reference.parse().map_err(|_| missing())?),
    };
    state.catalog.manifest(registry, name, &parsed).await?.ok_or_else(missing)
}

fn cause(principal: &Principal) -> Cause {
    Cause::Delete { principal: principal.name() }
}

/// A repository's name as one segment of a path.
fn escaped(name: &RepositoryName) -> String {
    name.as_str().replace('/', "%2F")
}
