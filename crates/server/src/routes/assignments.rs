//! Scope maps of accounts and of tasks themselves.

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use control::{Assignment, Holder};
use oci::RegistryName;
use uuid::Uuid;

use super::tasks::{self, ListQuery};
use super::tokens::page;
use super::{Json, Query, accounts};
use crate::audit::Detail;
use crate::error::ApiError;
use crate::state::Shared;
use crate::{from_api, to_api};

/// Lists which accounts and tasks have scope maps.
#[utoipa::path(
    get, path = "/scopeMapAssignments", operation_id = "listScopeMapAssignments", tag = "Access",
    params(ListQuery),
    responses((status = OK, body = api::Page<api::ScopeMapAssignment>)),
)]
pub(crate) async fn list(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<api::Page<api::ScopeMapAssignment>>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let after = query.skip_token.as_deref().map(from_api::holder).transpose()?;
    let top = query.page_size();
    let permissions = &state.access.permissions;
    let found = permissions.scope_map_assignments(&registry, after.as_ref(), top + 1).await?;
    let route = format!("/api/v1/registries/{registry}/scopeMapAssignments");
    let found = found.iter().map(to_api::assignment).collect();
    Ok(axum::Json(page(&route, top, found, |found: &api::ScopeMapAssignment| &found.holder)))
}

/// Gives an account or a task a scope map, instead of the one that it has in the registry.
///
/// A task has it as itself: it needs that identity (`[system]`).
#[utoipa::path(
    put, path = "/scopeMapAssignments/{holder}", operation_id = "assignScopeMap", tag = "Access",
    request_body = api::ScopeMapAssignmentRequest,
    responses((status = OK, body = api::ScopeMapAssignment)),
)]
pub(crate) async fn put(
    State(state): State<Shared>,
    Path((registry, holder)): Path<(String, String)>,
    Json(body): Json<api::ScopeMapAssignmentRequest>,
) -> Result<(Extension<Detail>, axum::Json<api::ScopeMapAssignment>), ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let holder = from_api::holder(&holder)?;
    let scope_map = from_api::scope_map_name(&body.scope_map)?;
    let principal = principal(&state, &registry, &holder).await?;
    let assignment = Assignment { holder, principal, scope_map };
    state.access.permissions.assign_scope_map(&registry, &assignment).await?;
    let detail = Extension(Detail(assignment.scope_map.to_string()));
    Ok((detail, axum::Json(to_api::assignment(&assignment))))
}

/// Takes the scope map away that an account or a task has in the registry.
#[utoipa::path(
    delete, path = "/scopeMapAssignments/{holder}", operation_id = "unassignScopeMap", tag = "Access",
    responses((status = NO_CONTENT)),
)]
pub(crate) async fn delete(
    State(state): State<Shared>,
    Path((registry, holder)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let holder = from_api::holder(&holder)?;
    match state.access.permissions.unassign_scope_map(&registry, &holder).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(ApiError::not_found(format!("a scope map of `{holder}`"))),
    }
}

/// The id of whoever is meant, which nobody else ever has.
async fn principal(
    state: &Shared,
    registry: &RegistryName,
    holder: &Holder,
) -> Result<Uuid, ApiError> {
    match holder {
        Holder::Account(name) => Ok(accounts::find(state, name.as_str()).await?.id()),
        Holder::Task(name) => {
            let found = tasks::find(state, registry, name).await?;
            found.definition.identity.system.ok_or_else(|| {
                ApiError::invalid(format!("task `{name}` has no identity of its own"))
                    .hint(format!("`refit task identity assign {name}` gives it one"))
            })
        }
    }
}
