//! Scope maps, tokens, accounts and roles, from the wire.

use control::{
    AccountKind, AccountName, BadAccountName, BadHolder, BadScopeMapName, BadTokenName, Holder,
    PasswordSlot, Role, Scope, ScopeMapName, TokenName, TokenProperties, read_scopes,
};
use oci::RegistryName;
use store::Millis;

use super::cut;
use crate::error::ApiError;

pub(crate) fn scope_map_name(text: &str) -> Result<ScopeMapName, ApiError> {
    text.parse().map_err(|error: BadScopeMapName| ApiError::invalid(error.to_string()))
}

pub(crate) fn token_name(text: &str) -> Result<TokenName, ApiError> {
    text.parse().map_err(|error: BadTokenName| ApiError::invalid(error.to_string()))
}

pub(crate) fn account_name(text: &str) -> Result<AccountName, ApiError> {
    text.parse().map_err(|error: BadAccountName| ApiError::invalid(error.to_string()))
}

pub(crate) fn holder(text: &str) -> Result<Holder, ApiError> {
    text.parse().map_err(|error: BadHolder| ApiError::invalid(error.to_string()))
}

pub(crate) fn role(body: &api::RoleRequest) -> Result<Role, ApiError> {
    let role = body.role.parse();
    role.map_err(|error: control::BadRole| ApiError::invalid(error.to_string()).at("role"))
}

/// Description and scopes.
pub(crate) fn scope_map(body: api::ScopeMap) -> Result<(String, Vec<Scope>), ApiError> {
    let api::ScopeMapProperties { description, actions, .. } = body.properties;
    let actions = actions.ok_or_else(|| {
        ApiError::invalid("a scope map needs actions")
            .at("properties.actions")
            .hint("`repositories/REPOSITORY/content/read` is one")
    })?;
    let scopes = read_scopes(&actions).map_err(ApiError::from);
    let scopes = scopes.map_err(|error| error.at("properties.actions"))?;
    Ok((description.unwrap_or_default(), scopes))
}

pub(crate) fn token(
    body: api::Token,
    registry: &RegistryName,
) -> Result<TokenProperties, ApiError> {
    let api::TokenProperties { scope_map_id, status, credentials, .. } = body.properties;
    let id = scope_map_id.ok_or_else(|| {
        let error = ApiError::invalid("a token needs a scope map").at("properties.scopeMapId");
        error.hint("`_repositories_pull` is one that every registry has")
    })?;
    let name = named(&id, "scopeMaps", registry, "properties.scopeMapId")?;
    let scope_map = scope_map_name(name).map_err(|error| error.at("properties.scopeMapId"))?;
    let enabled = enabled(status.as_deref()).map_err(|error| error.at("properties.status"))?;
    let slot = |password: &api::TokenPassword| slot(&password.name);
    let kept = credentials.and_then(|credentials| credentials.passwords);
    let keep = kept.map(|kept| kept.iter().map(slot).collect());
    let keep = keep.transpose().map_err(|error: ApiError| error.at("properties.credentials"))?;
    Ok(TokenProperties { scope_map, enabled, keep })
}

/// Token, which passwords, and until when they are good.
pub(crate) fn passwords(
    body: &api::GenerateCredentialsRequest,
    registry: &RegistryName,
) -> Result<(TokenName, Vec<PasswordSlot>, Option<Millis>), ApiError> {
    let name = named(&body.token_id, "tokens", registry, "tokenId")?;
    let token = token_name(name).map_err(|error| error.at("tokenId"))?;
    let slots = match &body.name {
        Some(name) => vec![slot(name).map_err(|error| error.at("name"))?],
        None => PasswordSlot::ALL.to_vec(),
    };
    let expiry = body.expiry.as_deref().map(|text| {
        text.parse::<jiff::Timestamp>().map(jiff::Timestamp::as_millisecond).map_err(|_| {
            ApiError::invalid(format!("`{}` is not a time", cut(text)))
                .at("expiry")
                .hint("write it as `2030-01-31T00:00:00Z`")
        })
    });
    Ok((token, slots, expiry.transpose()?))
}

pub(crate) fn account_kind(text: Option<&str>) -> Result<AccountKind, ApiError> {
    let Some(text) = text else { return Ok(AccountKind::User) };
    text.parse().map_err(|error: control::BadKind| ApiError::invalid(error.to_string()).at("kind"))
}

/// What a status says; absent: it is enabled.
pub(crate) fn enabled(status: Option<&str>) -> Result<bool, ApiError> {
    match status {
        None => Ok(true),
        Some(status) if status.eq_ignore_ascii_case("enabled") => Ok(true),
        Some(status) if status.eq_ignore_ascii_case("disabled") => Ok(false),
        Some(status) => {
            let message = format!("`{}` is not a status", cut(status));
            Err(ApiError::invalid(message).at("status").hint("use `enabled` or `disabled`"))
        }
    }
}

fn slot(name: &str) -> Result<PasswordSlot, ApiError> {
    name.parse().map_err(|error: control::BadSlot| ApiError::invalid(error.to_string()))
}

/// The name that a resource id ends with, or that stands for it.
fn named<'a>(
    id: &'a str,
    kind: &str,
    registry: &RegistryName,
    member: &str,
) -> Result<&'a str, ApiError> {
    let mut parts = id.rsplit('/');
    let name = parts.next().unwrap_or_default();
    let is_of = |expected: &str, part: Option<&str>| {
        part.is_some_and(|part| part.eq_ignore_ascii_case(expected))
    };
    match !id.contains('/') || (is_of(kind, parts.next()) && is_of(registry.as_str(), parts.next()))
    {
        true => Ok(name),
        false => {
            let message = format!("`{}` is not an id of {kind} of this registry", cut(id));
            Err(ApiError::invalid(message).at(member))
        }
    }
}
