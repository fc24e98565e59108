//! Secrets that a registry keeps for its runs.

use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::tasks::ListQuery;
use super::tokens::page;
use super::{Json, Query};
use crate::error::ApiError;
use crate::state::Shared;
use crate::{from_api, to_api};

/// Lists secrets by name; values are not told.
#[utoipa::path(
    get, path = "/secrets", operation_id = "listSecrets", tag = "Secrets",
    params(ListQuery),
    responses((status = OK, body = api::Page<api::Secret>)),
)]
pub(crate) async fn list(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<api::Page<api::Secret>>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let after = query.skip_token.as_deref().map(from_api::secret_name).transpose()?;
    let top = query.page_size();
    let secrets = state.secrets.list(&registry, after.as_ref(), top + 1).await?;
    let route = format!("/api/v1/registries/{registry}/secrets");
    let secrets = secrets.iter().map(to_api::secret).collect();
    Ok(axum::Json(page(&route, top, secrets, |secret: &api::Secret| &secret.name)))
}

/// A secret without its value.
#[utoipa::path(
    get, path = "/secrets/{name}", operation_id = "getSecret", tag = "Secrets",
    responses((status = OK, body = api::Secret)),
)]
pub(crate) async fn show(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
) -> Result<axum::Json<api::Secret>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let name = from_api::secret_name(&name)?;
    let secret = state.secrets.get(&registry, &name).await?;
    let secret = secret.ok_or_else(|| ApiError::not_found(format!("secret `{name}`")))?;
    Ok(axum::Json(to_api::secret(&secret)))
}

/// Keeps a secret, or gives it another value.
#[utoipa::path(
    put, path = "/secrets/{name}", operation_id = "putSecret", tag = "Secrets",
    request_body = api::Secret,
    responses((status = OK, body = api::Secret)),
)]
pub(crate) async fn put(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
    Json(body): Json<api::Secret>,
) -> Result<axum::Json<api::Secret>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let name = from_api::secret_name(&name)?;
    let secret = state.secrets.put(&registry, &name, from_api::secret(body)?).await?;
    Ok(axum::Json(to_api::secret(&secret)))
}

/// Deletes a secret; runs that have it keep it.
#[utoipa::path(
    delete, path = "/secrets/{name}", operation_id = "deleteSecret", tag = "Secrets",
    responses((status = NO_CONTENT)),
)]
pub(crate) async fn delete(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    state.secrets.delete(&registry, &from_api::secret_name(&name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}
