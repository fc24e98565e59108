//! Accounts of a server, and their roles.

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use control::{Account, AccountProperties};
use oci::RegistryName;

use super::tasks::ListQuery;
use super::tokens::page;
use super::{Json, Query};
use crate::audit::Detail;
use crate::error::ApiError;
use crate::openapi::Refusal;
use crate::state::Shared;
use crate::{from_api, to_api};

/// Lists accounts by name, with their roles.
#[utoipa::path(
    get, path = "/api/v1/accounts", operation_id = "listAccounts", tag = "Access",
    params(ListQuery),
    responses((status = OK, body = api::Page<api::Account>)),
)]
pub(crate) async fn list(
    State(state): State<Shared>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<api::Page<api::Account>>, ApiError> {
    let after = query.skip_token.as_deref().map(from_api::account_name).transpose()?;
    let top = query.page_size();
    let accounts = state.access.permissions.accounts(after.as_ref(), top + 1).await?;
    let accounts = accounts.iter().map(|account| to_api::account(account, None)).collect();
    Ok(axum::Json(page("/api/v1/accounts", top, accounts, |account: &api::Account| &account.name)))
}

/// An account with its roles.
#[utoipa::path(
    get, path = "/api/v1/accounts/{name}", operation_id = "getAccount", tag = "Access",
    responses((status = OK, body = api::Account)),
)]
pub(crate) async fn show(
    State(state): State<Shared>,
    Path(name): Path<String>,
) -> Result<axum::Json<api::Account>, ApiError> {
    Ok(axum::Json(to_api::account(&find(&state, &name).await?, None)))
}

/// Makes an account.
///
/// Without a password in the request a random one is made, and told this once.
#[utoipa::path(
    put, path = "/api/v1/accounts/{name}", operation_id = "createAccount", tag = "Access",
    request_body = api::AccountRequest,
    responses((status = CREATED, body = api::Account), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn put(
    State(state): State<Shared>,
    Path(name): Path<String>,
    Json(body): Json<api::AccountRequest>,
) -> Result<(StatusCode, axum::Json<api::Account>), ApiError> {
    let name = from_api::account_name(&name)?;
    let properties = AccountProperties {
        kind: from_api::account_kind(body.kind.as_deref())?,
        enabled: from_api::enabled(body.status.as_deref())?,
        description: body.description.unwrap_or_default(),
    };
    let password = body.password.map(|password| password.0);
    let permissions = &state.access.permissions;
    let (account, made) = permissions.create_account(&name, &properties, password).await?;
    Ok((StatusCode::CREATED, axum::Json(to_api::account(&account, made))))
}

/// Changes status and description.
#[utoipa::path(
    patch, path = "/api/v1/accounts/{name}", operation_id = "updateAccount", tag = "Access",
    request_body = api::AccountRequest,
    responses((status = OK, body = api::Account)),
)]
pub(crate) async fn update(
    State(state): State<Shared>,
    Path(name): Path<String>,
    Json(body): Json<api::AccountRequest>,
) -> Result<axum::Json<api::Account>, ApiError> {
    if body.kind.is_some() || body.password.is_some() {
        let error = ApiError::invalid("only status and description change so");
        return Err(error.hint("`setPassword` gives an account another password"));
    }
    let name = from_api::account_name(&name)?;
    let enabled = body.status.map(|status| from_api::enabled(Some(&status))).transpose()?;
    let permissions = &state.access.permissions;
    let account = permissions.update_account(&name, enabled, body.description.as_deref()).await?;
    Ok(axum::Json(to_api::account(&account, None)))
}

/// Gives an account another password.
///
/// Without one in the request a random one is made, and told this once.
#[utoipa::path(
    post,
    path = "/api/v1/accounts/{name}/setPassword",
    operation_id = "setAccountPassword",
    tag = "Access",
    request_body = api::PasswordRequest,
    responses((status = OK, body = api::Account)),
)]
pub(crate) async fn set_password(
    State(state): State<Shared>,
    Path(name): Path<String>,
    Json(body): Json<api::PasswordRequest>,
) -> Result<axum::Json<api::Account>, ApiError> {
    let name = from_api::account_name(&name)?;
    let password = body.password.map(|password| password.0);
    let made = state.access.permissions.set_password(&name, password).await?;
    let account = find(&state, name.as_str()).await?;
    Ok(axum::Json(to_api::account(&account, made)))
}

/// Deletes an account with its roles.
#[utoipa::path(
    delete, path = "/api/v1/accounts/{name}", operation_id = "deleteAccount", tag = "Access",
    responses((status = NO_CONTENT)),
)]
pub(crate) async fn delete(
    State(state): State<Shared>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    state.access.permissions.delete_account(&from_api::account_name(&name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the accounts that have a role in the registry, in all registries or in this one.
#[utoipa::path(
    get, path = "/roleAssignments", operation_id = "listRoleAssignments", tag = "Access",
    params(ListQuery),
    responses((status = OK, body = api::Page<api::Account>)),
)]
pub(crate) async fn list_roles(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<api::Page<api::Account>>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let after = query.skip_token.as_deref().map(from_api::account_name).transpose()?;
    let top = query.page_size();
    let permissions = &state.access.permissions;
    let accounts = permissions.accounts_of(&registry, after.as_ref(), top + 1).await?;
    let route = format!("/api/v1/registries/{registry}/roleAssignments");
    let accounts = accounts.iter().map(|account| seen_from(&registry, account)).collect();
    Ok(axum::Json(page(&route, top, accounts, |account: &api::Account| &account.name)))
}

/// Gives an account a role in the registry, instead of the one that it has there.
#[utoipa::path(
    put, path = "/roleAssignments/{account}", operation_id = "assignRole", tag = "Access",
    request_body = api::RoleRequest,
    responses((status = OK, body = api::Account)),
)]
pub(crate) async fn assign(
    State(state): State<Shared>,
    Path((registry, account)): Path<(String, String)>,
    Json(body): Json<api::RoleRequest>,
) -> Result<(Extension<Detail>, axum::Json<api::Account>), ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let (name, role) = (from_api::account_name(&account)?, from_api::role(&body)?);
    let permissions = &state.access.permissions;
    let account = permissions.assign_role(&name, Some(&registry), Some(role)).await?;
    let detail = Extension(Detail(role.to_string()));
    Ok((detail, axum::Json(seen_from(&registry, &account))))
}

/// Takes the role away that an account has in the registry.
#[utoipa::path(
    delete, path = "/roleAssignments/{account}", operation_id = "removeRole", tag = "Access",
    responses((status = NO_CONTENT)),
)]
pub(crate) async fn remove(
    State(state): State<Shared>,
    Path((registry, account)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let name = from_api::account_name(&account)?;
    state.access.permissions.assign_role(&name, Some(&registry), None).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Gives an account a role in all registries, those to come included.
#[utoipa::path(
    put,
    path = "/api/v1/roleAssignments/{account}",
    operation_id = "assignServerRole",
    tag = "Access",
    request_body = api::RoleRequest,
    responses((status = OK, body = api::Account)),
)]
pub(crate) async fn assign_everywhere(
    State(state): State<Shared>,
    Path(account): Path<String>,
    Json(body): Json<api::RoleRequest>,
) -> Result<(Extension<Detail>, axum::Json<api::Account>), ApiError> {
    let (name, role) = (from_api::account_name(&account)?, from_api::role(&body)?);
    let account = state.access.permissions.assign_role(&name, None, Some(role)).await?;
    let detail = Extension(Detail(role.to_string()));
    Ok((detail, axum::Json(to_api::account(&account, None))))
}

/// Takes the role away that an account has in all registries.
#[utoipa::path(
    delete,
    path = "/api/v1/roleAssignments/{account}",
    operation_id = "removeServerRole",
    tag = "Access",
    responses((status = NO_CONTENT)),
)]
pub(crate) async fn remove_everywhere(
    State(state): State<Shared>,
    Path(account): Path<String>,
) -> Result<StatusCode, ApiError> {
    let name = from_api::account_name(&account)?;
    state.access.permissions.assign_role(&name, None, None).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What an account is elsewhere is nobody's business in a registry.
fn seen_from(registry: &RegistryName, account: &Account) -> api::Account {
    let mut seen = to_api::account(account, None);
    seen.roles.retain(|role| role.registry.as_deref().is_none_or(|name| name == registry.as_str()));
    seen
}

pub(super) async fn find(state: &Shared, name: &str) -> Result<Account, ApiError> {
    let name = from_api::account_name(name)?;
    let account = state.access.permissions.account(&name).await?;
    account.ok_or_else(|| ApiError::not_found(format!("account `{name}`")))
}
