//! Scope maps and tokens of a registry.

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use control::{ScopeMap, Token};
use oci::RegistryName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::tasks::ListQuery;
use super::{Json, Query};
use crate::audit::Detail;
use crate::error::ApiError;
use crate::openapi::Refusal;
use crate::state::Shared;
use crate::{from_api, to_api};

/// Lists scope maps by name, those that every registry has included.
#[utoipa::path(
    get, path = "/scopeMaps", operation_id = "listScopeMaps", tag = "Access",
    params(ListQuery),
    responses((status = OK, body = api::Page<api::ScopeMap>)),
)]
pub(crate) async fn list_maps(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<api::Page<api::ScopeMap>>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let after = query.skip_token.as_deref().map(from_api::scope_map_name).transpose()?;
    let top = query.page_size();
    let maps = state.access.permissions.scope_maps(&registry, after.as_ref(), top + 1).await?;
    let route = format!("/api/v1/registries/{registry}/scopeMaps");
    let maps = maps.iter().map(to_api::scope_map).collect();
    Ok(axum::Json(page(&route, top, maps, |map: &api::ScopeMap| &map.name)))
}

/// What a scope map allows.
#[utoipa::path(
    get, path = "/scopeMaps/{name}", operation_id = "getScopeMap", tag = "Access",
    responses((status = OK, body = api::ScopeMap)),
)]
pub(crate) async fn show_map(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
) -> Result<axum::Json<api::ScopeMap>, ApiError> {
    Ok(axum::Json(to_api::scope_map(&find_map(&state, &registry, &name).await?)))
}

/// Makes a scope map, or gives it other actions.
#[utoipa::path(
    put, path = "/scopeMaps/{name}", operation_id = "putScopeMap", tag = "Access",
    request_body = api::ScopeMap,
    responses((status = OK, body = api::ScopeMap), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn put_map(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
    Json(body): Json<api::ScopeMap>,
) -> Result<axum::Json<api::ScopeMap>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    save_map(&state, &registry, &from_api::scope_map_name(&name)?, body, None).await
}

/// Changes description and actions; the latter as a whole.
#[utoipa::path(
    patch, path = "/scopeMaps/{name}", operation_id = "updateScopeMap", tag = "Access",
    request_body(content = Object, description = "Any members of a `ScopeMap`; `null` takes one away", content_type = "application/json"),
    responses((status = OK, body = api::ScopeMap), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn update_map(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
    Json(patch): Json<Value>,
) -> Result<axum::Json<api::ScopeMap>, ApiError> {
    let map = find_map(&state, &registry, &name).await?;
    let body = patched(to_api::scope_map(&map), patch)?;
    save_map(&state, &map.registry, &map.name, body, Some(&map)).await
}

async fn save_map(
    state: &Shared,
    registry: &RegistryName,
    name: &control::ScopeMapName,
    body: api::ScopeMap,
    known: Option<&ScopeMap>,
) -> Result<axum::Json<api::ScopeMap>, ApiError> {
    let (description, scopes) = from_api::scope_map(body)?;
    let permissions = &state.access.permissions;
    let map = permissions.put_scope_map(registry, name, &description, &scopes, known).await?;
    Ok(axum::Json(to_api::scope_map(&map)))
}

/// Deletes a scope map that no token has.
#[utoipa::path(
    delete, path = "/scopeMaps/{name}", operation_id = "deleteScopeMap", tag = "Access",
    responses((status = NO_CONTENT), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn delete_map(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let name = from_api::scope_map_name(&name)?;
    state.access.permissions.delete_scope_map(&registry, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists tokens by name.
#[utoipa::path(
    get, path = "/tokens", operation_id = "listTokens", tag = "Access",
    params(ListQuery),
    responses((status = OK, body = api::Page<api::Token>)),
)]
pub(crate) async fn list(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<api::Page<api::Token>>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let after = query.skip_token.as_deref().map(from_api::token_name).transpose()?;
    let top = query.page_size();
    let tokens = state.access.permissions.tokens(&registry, after.as_ref(), top + 1).await?;
    let route = format!("/api/v1/registries/{registry}/tokens");
    let tokens = tokens.iter().map(to_api::token).collect();
    Ok(axum::Json(page(&route, top, tokens, |token: &api::Token| &token.name)))
}

/// A token; its passwords are not told.
#[utoipa::path(
    get, path = "/tokens/{name}", operation_id = "getToken", tag = "Access",
    responses((status = OK, body = api::Token)),
)]
pub(crate) async fn show(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
) -> Result<axum::Json<api::Token>, ApiError> {
    Ok(axum::Json(to_api::token(&find(&state, &registry, &name).await?)))
}

/// Makes a token without passwords, or gives it another scope map and status.
#[utoipa::path(
    put, path = "/tokens/{name}", operation_id = "putToken", tag = "Access",
    request_body = api::Token,
    responses((status = OK, body = api::Token), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn put(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
    Json(body): Json<api::Token>,
) -> Result<axum::Json<api::Token>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    save(&state, &registry, &from_api::token_name(&name)?, body, None).await
}

/// Changes scope map and status; of its passwords, those go that `credentials` does not name.
#[utoipa::path(
    patch, path = "/tokens/{name}", operation_id = "updateToken", tag = "Access",
    request_body(content = Object, description = "Any members of a `Token`", content_type = "application/json"),
    responses((status = OK, body = api::Token), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn update(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
    Json(patch): Json<Value>,
) -> Result<axum::Json<api::Token>, ApiError> {
    let token = find(&state, &registry, &name).await?;
    let mut known = to_api::token(&token);
    // One that is made meanwhile stays.
    known.properties.credentials = None;
    let status = known.properties.status.clone();
    let mut body = patched(known, patch)?;
    // Taking it away switches nothing on.
    body.properties.status = body.properties.status.or(status);
    save(&state, &token.registry, &token.name, body, Some(&token)).await
}

async fn save(
    state: &Shared,
    registry: &RegistryName,
    name: &control::TokenName,
    body: api::Token,
    known: Option<&Token>,
) -> Result<axum::Json<api::Token>, ApiError> {
    let properties = from_api::token(body, registry)?;
    let token = state.access.permissions.put_token(registry, name, &properties, known).await?;
    Ok(axum::Json(to_api::token(&token)))
}

/// Deletes a token; whoever uses it is shut out.
#[utoipa::path(
    delete, path = "/tokens/{name}", operation_id = "deleteToken", tag = "Access",
    responses((status = NO_CONTENT), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn delete(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    state.access.permissions.delete_token(&registry, &from_api::token_name(&name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes new passwords for a token, and tells them this once.
#[utoipa::path(
    post, path = "/generateCredentials", operation_id = "generateCredentials", tag = "Access",
    request_body = api::GenerateCredentialsRequest,
    responses((status = OK, body = api::GeneratedCredentials)),
)]
pub(crate) async fn generate(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Json(body): Json<api::GenerateCredentialsRequest>,
) -> Result<(Extension<Detail>, axum::Json<api::GeneratedCredentials>), ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let (name, slots, expiry) = from_api::passwords(&body, &registry)?;
    let made = state.access.permissions.make_passwords(&registry, &name, &slots, expiry).await?;
    let slots: Vec<&str> = slots.iter().map(|slot| slot.as_str()).collect();
    let detail = Detail(format!("{} of {name}", slots.join(" and ")));
    Ok((Extension(detail), axum::Json(to_api::passwords(name.as_str(), made))))
}

async fn find_map(state: &Shared, registry: &str, name: &str) -> Result<ScopeMap, ApiError> {
    let (registry, _) = state.registry(registry)?;
    let name = from_api::scope_map_name(name)?;
    let map = state.access.permissions.scope_map(&registry, &name).await?;
    map.ok_or_else(|| ApiError::not_found(format!("scope map `{name}`")))
}

async fn find(state: &Shared, registry: &str, name: &str) -> Result<Token, ApiError> {
    let (registry, _) = state.registry(registry)?;
    let name = from_api::token_name(name)?;
    let token = state.access.permissions.token(&registry, &name).await?;
    token.ok_or_else(|| ApiError::not_found(format!("token `{name}`")))
}

/// What is known, with the members of a change instead of its own.
fn patched<T: Serialize + DeserializeOwned>(known: T, patch: Value) -> Result<T, ApiError> {
    if !patch.is_object() {
        return Err(ApiError::invalid("a change is an object"));
    }
    let mut whole = serde_json::to_value(known).map_err(|error| ApiError::interrupted(&error))?;
    from_api::merge(&mut whole, patch);
    serde_json::from_value(whole)
        .map_err(|error| ApiError::invalid(format!("the change is not right: {error}")))
}

/// Cuts one item too many off, and names the page that begins with it.
pub(super) fn page<T>(
    route: &str,
    top: usize,
    mut value: Vec<T>,
    name: impl Fn(&T) -> &str,
) -> api::Page<T> {
    let more = value.len() > top;
    value.truncate(top);
    let next_link = value.last().filter(|_| more).map(|last| {
        let mut link = url::form_urlencoded::Serializer::new(String::new());
        link.append_pair("$top", &top.to_string()).append_pair("$skiptoken", name(last));
        format!("{route}?{}", link.finish())
    });
    api::Page { value, next_link }
}
