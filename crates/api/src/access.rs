//! Scope maps, tokens, accounts and roles (registry.md section 4, azure-api.md section 8).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What may be done in which repositories. Requests leave the envelope out.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ScopeMap {
    #[serde(default)]
    #[schema(read_only)]
    pub id: String,
    #[serde(default)]
    #[schema(read_only)]
    pub name: String,
    #[serde(rename = "type", default)]
    #[schema(read_only)]
    pub kind: String,
    #[serde(default)]
    pub properties: ScopeMapProperties,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScopeMapProperties {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// `repositories/REPOSITORY/ACTION`: a repository, `FOLDER/*` or `*`; `content/read`,
    /// `content/write`, `content/delete`, `metadata/read` or `metadata/write`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actions: Option<Vec<String>>,
    /// Read-only: `UserDefined` or `SystemDefined`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub kind: Option<String>,
    /// Read-only, a time in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only, format = DateTime)]
    pub creation_date: Option<String>,
    /// Read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub provisioning_state: Option<String>,
}

/// A user name of one registry. Requests leave the envelope out.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Token {
    #[serde(default)]
    #[schema(read_only)]
    pub id: String,
    #[serde(default)]
    #[schema(read_only)]
    pub name: String,
    #[serde(rename = "type", default)]
    #[schema(read_only)]
    pub kind: String,
    #[serde(default)]
    pub properties: TokenProperties,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenProperties {
    /// Name or id of its scope map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope_map_id: Option<String>,
    /// `enabled` or `disabled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<TokenCredentials>,
    /// Read-only, a time in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only, format = DateTime)]
    pub creation_date: Option<String>,
    /// Read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub provisioning_state: Option<String>,
}

/// The passwords of a token. In a request, those that are not named go.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct TokenCredentials {
    /// Absent: all stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passwords: Option<Vec<TokenPassword>>,
}

/// What is known of a password of a token.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenPassword {
    /// `password1` or `password2`.
    pub name: String,
    /// Read-only, a time in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only, format = DateTime)]
    pub creation_time: Option<String>,
    /// A time in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only, format = DateTime)]
    pub expiry: Option<String>,
    /// Only where it was just made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub value: Option<String>,
}

/// The password does not print.
impl std::fmt::Debug for TokenPassword {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenPassword").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Which passwords are to be made.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct GenerateCredentialsRequest {
    /// Name or id of the token.
    pub token_id: String,
    /// `password1` or `password2`; both if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Until when they are good, a time in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub expiry: Option<String>,
}

/// Passwords that were made; they are told this once.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct GeneratedCredentials {
    pub username: String,
    pub passwords: Vec<TokenPassword>,
}

/// Somebody who has a password for the server.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    pub name: String,
    /// `user` or `servicePrincipal`.
    pub kind: String,
    /// `enabled` or `disabled`.
    pub status: String,
    pub description: String,
    pub roles: Vec<Role>,
    /// When its password was set, a time in RFC 3339.
    #[schema(format = DateTime)]
    pub password_time: String,
    /// A time in RFC 3339.
    #[schema(format = DateTime)]
    pub creation_time: String,
    /// Only where it was just made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<AccountPassword>,
}

/// A role of an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Role {
    /// Absent: in all registries of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
    /// `reader`, `runner`, `author`, `owner` or `admin`.
    pub role: String,
}

/// A password, which does not print.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct AccountPassword(pub String);

impl std::fmt::Debug for AccountPassword {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccountPassword(hidden)")
    }
}

/// An account to be made, or what is to be changed of one.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccountRequest {
    /// `user` or `servicePrincipal`; `user` if absent. It does not change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// `enabled` or `disabled`; `enabled` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// At least 12 bytes; absent: a random one is made for a new account, and told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<AccountPassword>,
}

/// Another password for an account.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PasswordRequest {
    /// At least 12 bytes; absent: a random one is made, and told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<AccountPassword>,
}

/// The role that an account is to have.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RoleRequest {
    /// `reader`, `runner`, `author`, `owner` or `admin`.
    pub role: String,
}

/// The scope map that an account has in a registry, or a task as itself.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScopeMapAssignment {
    /// `account:NAME` or `task:NAME`.
    pub holder: String,
    /// The id of the account, or of the identity of the task. Others of that name have nothing by it.
    pub principal_id: String,
    /// Name of the scope map.
    pub scope_map: String,
}

/// The scope map that an account or a task is to have.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScopeMapAssignmentRequest {
    /// Name of the scope map.
    pub scope_map: String,
}

/// Where people sign in: an OpenID Connect provider.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SignInOffer {
    /// Its address, which its documents are below.
    pub issuer: String,
    /// As which program it knows this server's clients: a public one, with PKCE.
    pub client_id: String,
    /// What it is to be asked for.
    pub scopes: Vec<String>,
}

/// What the provider says of somebody.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SignInRequest {
    /// An identity token of the provider, from just now.
    pub id_token: String,
}

/// A session that was begun.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SignedIn {
    /// The account that it is of.
    pub account: String,
    /// As good as the password of the account until the session is over.
    pub token: String,
    /// A time in RFC 3339.
    pub expires_at: String,
}

/// A line of the audit log.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditRecord {
    /// Each is one more than that of the record before it.
    pub number: i64,
    /// A time in RFC 3339.
    #[schema(format = DateTime)]
    pub time: String,
    pub registry: Option<String>,
    /// Who did it; an address, where nobody has proven who they are.
    pub principal: String,
    /// `request` (a change over the API), `push`, `delete`, `login`, `refused`, `run.queued` or
    /// `run.ended`.
    pub action: String,
    pub target: String,
    pub outcome: String,
    /// The `digest` of the record before it.
    pub previous: Option<String>,
    /// SHA-256 of the line without this member.
    pub digest: String,
}
