//! Scope maps, tokens and accounts, to the wire.

use control::{Account, Assignment, NewPassword, ScopeMap, Token};

use super::time;

pub(crate) fn assignment(assignment: &Assignment) -> api::ScopeMapAssignment {
    api::ScopeMapAssignment {
        holder: assignment.holder.to_string(),
        principal_id: assignment.principal.to_string(),
        scope_map: assignment.scope_map.to_string(),
    }
}

pub(crate) fn scope_map(map: &ScopeMap) -> api::ScopeMap {
    let kind = if map.is_system { "SystemDefined" } else { "UserDefined" };
    api::ScopeMap {
        id: format!("/api/v1/registries/{}/scopeMaps/{}", map.registry, map.name),
        name: map.name.to_string(),
        kind: "Microsoft.ContainerRegistry/registries/scopeMaps".into(),
        properties: api::ScopeMapProperties {
            description: Some(map.description.clone()),
            actions: Some(map.scopes.iter().map(ToString::to_string).collect()),
            kind: Some(kind.into()),
            creation_date: Some(time(map.created_at)),
            provisioning_state: Some("Succeeded".into()),
        },
    }
}

pub(crate) fn token(token: &Token) -> api::Token {
    let registry = &token.registry;
    let passwords = token.passwords.iter().map(|password| api::TokenPassword {
        name: password.slot.to_string(),
        creation_time: Some(time(password.created_at)),
        expiry: password.expires_at.map(time),
        value: None,
    });
    api::Token {
        id: format!("/api/v1/registries/{registry}/tokens/{}", token.name),
        name: token.name.to_string(),
        kind: "Microsoft.ContainerRegistry/registries/tokens".into(),
        properties: api::TokenProperties {
            scope_map_id: Some(format!(
                "/api/v1/registries/{registry}/scopeMaps/{}",
                token.scope_map
            )),
            status: Some(status(token.enabled)),
            credentials: Some(api::TokenCredentials { passwords: Some(passwords.collect()) }),
            creation_date: Some(time(token.created_at)),
            provisioning_state: Some("Succeeded".into()),
        },
    }
}

/// The one time that the passwords are told.
pub(crate) fn passwords(username: &str, made: Vec<NewPassword>) -> api::GeneratedCredentials {
    let passwords = made.into_iter().map(|made| api::TokenPassword {
        name: made.slot.to_string(),
        creation_time: Some(time(made.created_at)),
        expiry: made.expires_at.map(time),
        value: Some(made.password),
    });
    api::GeneratedCredentials { username: username.to_owned(), passwords: passwords.collect() }
}

/// `password`: one that was just made.
pub(crate) fn account(account: &Account, password: Option<String>) -> api::Account {
    let roles = account.roles.iter().map(|(registry, role)| api::Role {
        registry: registry.as_ref().map(ToString::to_string),
        role: role.to_string(),
    });
    api::Account {
        name: account.name.to_string(),
        kind: account.kind.to_string(),
        status: status(account.enabled),
        description: account.description.clone(),
        roles: roles.collect(),
        password_time: time(account.password_at),
        creation_time: time(account.created_at),
        password: password.map(api::AccountPassword),
    }
}

fn status(enabled: bool) -> String {
    if enabled { "enabled".into() } else { "disabled".into() }
}
