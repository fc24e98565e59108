//! What was deleted and can be restored (registry.md section 7).

use axum::Extension;
use axum::extract::{Path, State};
use oci::{Digest, RegistryName, RepositoryName, Tag};
use store::{Cause, DeletedTag, Millis, ToRestore};

use super::content::{PageQuery, escaped};
use super::{Json, Query};
use crate::access::Principal;
use crate::audit::Detail;
use crate::error::ApiError;
use crate::from_api::cut;
use crate::openapi::Refusal;
use crate::state::{Shared, State as ServerState};
use crate::to_api;

/// Lists repositories of which something can be restored, by name.
#[utoipa::path(
    get,
    path = "/deletedRepositories",
    operation_id = "listDeletedRepositories",
    tag = "Repositories",
    params(PageQuery),
    responses((status = OK, body = api::Page<api::DeletedRepository>)),
)]
pub(crate) async fn repositories(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<api::Page<api::DeletedRepository>>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let last = query.last.as_deref();
    let found = state.catalog.deleted_repositories(&registry, last, query.limit() + 1).await?;
    let found = found.iter().map(to_api::deleted_repository).collect();
    let route = format!("/api/v1/registries/{registry}/deletedRepositories");
    let name = |found: &api::DeletedRepository| found.image_name.clone();
    Ok(axum::Json(query.page(&route, found, name)))
}

/// Lists the manifests of a repository that can be restored, by digest.
#[utoipa::path(
    get,
    path = "/repositories/{name}/deletedManifests",
    operation_id = "listDeletedManifests",
    tag = "Repositories",
    params(PageQuery),
    responses((status = OK, body = api::Page<api::DeletedManifest>)),
)]
pub(crate) async fn manifests(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<api::Page<api::DeletedManifest>>, ApiError> {
    let (registry, name) = parse_name(&state, &registry, &name)?;
    let last = query.last.as_deref().map(parse_last).transpose()?;
    let found =
        state.catalog.deleted_manifests(&registry, &name, last.as_ref(), query.limit() + 1).await?;
    require_known(&state, &registry, &name, found.is_empty()).await?;
    let days = state.catalog.policies(&registry).await?.soft_delete.days;
    let found = found.iter().map(|found| to_api::deleted_manifest(found, days)).collect();
    let route =
        format!("/api/v1/registries/{registry}/repositories/{}/deletedManifests", escaped(&name));
    Ok(axum::Json(query.page(&route, found, |found: &api::DeletedManifest| found.digest.clone())))
}

/// Lists the tags of a repository that can be restored, by name.
///
/// One that was removed from several manifests is there once for each, the last one at the end. The
/// `last` of a page is in the `nextLink` of the one before.
#[utoipa::path(
    get,
    path = "/repositories/{name}/deletedTags",
    operation_id = "listDeletedTags",
    tag = "Repositories",
    params(PageQuery),
    responses((status = OK, body = api::Page<api::DeletedTag>)),
)]
pub(crate) async fn tags(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<api::Page<api::DeletedTag>>, ApiError> {
    let (registry, name) = parse_name(&state, &registry, &name)?;
    let last = query.last.as_deref().map(parse_last_tag).transpose()?;
    let last = last.as_ref().map(|(tag, at, digest)| (tag, *at, digest));
    let found = state.catalog.deleted_tags(&registry, &name, last, query.limit() + 1).await?;
    require_known(&state, &registry, &name, found.is_empty()).await?;
    let days = state.catalog.policies(&registry).await?.soft_delete.days;
    let found =
        found.iter().map(|found| (last_tag(found), to_api::deleted_tag(found, days))).collect();
    let route =
        format!("/api/v1/registries/{registry}/repositories/{}/deletedTags", escaped(&name));
    let page = query.page(&route, found, |(last, _): &(String, _)| last.clone());
    let value = page.value.into_iter().map(|(_, found)| found).collect();
    Ok(axum::Json(api::Page { value, next_link: page.next_link }))
}

/// Restores a tag with its manifest, or a manifest without a tag.
///
/// What a restored index lists stays deleted if it is, and what a manifest refers to comes before it.
#[utoipa::path(
    post,
    path = "/repositories/{name}/restore",
    operation_id = "restoreManifest",
    tag = "Repositories",
    request_body = api::RestoreRequest,
    responses(
        (status = OK, body = api::Restored),
        (status = CONFLICT, response = Refusal),
        (status = METHOD_NOT_ALLOWED, response = Refusal),
    ),
)]
pub(crate) async fn restore(
    State(state): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path((registry, name)): Path<(String, String)>,
    Json(body): Json<api::RestoreRequest>,
) -> Result<(Extension<Detail>, axum::Json<api::Restored>), ApiError> {
    let (registry, name) = parse_name(&state, &registry, &name)?;
    let wanted = wanted(&name, body)?;
    let cause = Cause::Restore { principal: principal.name() };
    let restored = state.catalog.restore(&registry, &name, &wanted, &cause).await?;
    let tag = restored.tag.as_ref().map(|tag| format!("tag {tag} of "));
    let detail = Detail(format!("{}{}", tag.unwrap_or_default(), restored.digest));
    Ok((Extension(detail), axum::Json(to_api::restored(&restored))))
}

fn wanted(name: &RepositoryName, body: api::RestoreRequest) -> Result<ToRestore, ApiError> {
    let api::RestoreRequest { tag, digest, force } = body;
    let missing = |text: &str| ApiError::not_found(format!("deleted `{}` of `{name}`", cut(text)));
    let digest = match &digest {
        None => None,
        Some(text) => Some(text.parse::<Digest>().map_err(|_| missing(text))?),
    };
    match (tag, digest) {
        (Some(text), digest) => {
            let tag = text.parse().map_err(|_| missing(&text))?;
            Ok(ToRestore::Tag { tag, digest, force })
        }
        (None, Some(digest)) => Ok(ToRestore::Manifest(digest)),
        (None, None) => Err(ApiError::invalid("there is neither a tag nor a digest to restore")),
    }
}

/// A repository that may have nothing in it any more.
fn parse_name(
    state: &ServerState,
    registry: &str,
    name: &str,
) -> Result<(RegistryName, RepositoryName), ApiError> {
    let (registry, _) = state.registry(registry)?;
    let missing = |_| ApiError::not_found(format!("repository `{}`", cut(name)));
    Ok((registry, name.parse().map_err(missing)?))
}

fn parse_last(text: &str) -> Result<Digest, ApiError> {
    text.parse().map_err(|error: oci::DigestError| ApiError::invalid(error.to_string()).at("last"))
}

/// Where a page ends: tag, time of its removal and digest, as [`parse_last_tag`] reads them.
fn last_tag(found: &DeletedTag) -> String {
    format!("{}@{}@{}", found.tag, found.deleted_at, found.digest)
}

fn parse_last_tag(text: &str) -> Result<(Tag, Millis, Digest), ApiError> {
    let malformed = || ApiError::invalid("it is not of a `nextLink`").at("last");
    let mut parts = text.splitn(3, '@');
    let mut part = || parts.next().ok_or_else(malformed);
    let (tag, at, digest) = (part()?, part()?, part()?);
    let (tag, at) = (tag.parse().map_err(|_| malformed())?, at.parse().map_err(|_| malformed())?);
    Ok((tag, at, parse_last(digest)?))
}

/// An empty list is one of a repository that is there.
async fn require_known(
    state: &ServerState,
    registry: &RegistryName,
    name: &RepositoryName,
    is_empty: bool,
) -> Result<(), ApiError> {
    if !is_empty || state.catalog.repository_exists(registry, name).await? {
        return Ok(());
    }
    Err(ApiError::not_found(format!("repository `{name}`")))
}
