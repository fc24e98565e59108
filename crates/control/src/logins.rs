//! The registries that a run or a task is to be logged in to.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Logins to registries (identity-and-secrets.md sections 1 and 2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logins {
    /// Whether the run may not use its own registry.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_own: bool,
    /// As whom it uses that one; counts where registries let runs do no more than that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_identity: Option<OwnIdentity>,
    /// Other registries, by host with optional port, in lower case; Docker Hub is `docker.io`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub others: BTreeMap<String, RegistryLogin>,
}

/// As whom a run uses its own registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OwnIdentity {
    /// Whoever started it.
    Caller,
    /// The task itself.
    System,
    /// What its task can be, by its id.
    Of(Uuid),
}

/// How a run proves itself to a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RegistryLogin {
    /// By a user name and a password, or a token in its place.
    Password {
        username: LoginText,
        password: LoginText,
        /// As which client a vault's directory knows whoever may read the secrets; absent: as the
        /// server's settings say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client_id: Option<Uuid>,
    },
    /// By a token of an identity of its task, which the registry exchanges.
    Identity {
        /// Absent: of the task itself.
        identity: Option<Uuid>,
    },
}

/// A part of a login.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LoginText {
    Plain(String),
    /// Kept elsewhere, and fetched when a run begins.
    Secret {
        /// An address of a secret, as task files have them.
        secret: String,
    },
}

impl LoginText {
    /// Where it is kept, if it is elsewhere.
    pub fn address(&self) -> Option<&str> {
        match self {
            Self::Plain(_) => None,
            Self::Secret { secret } => Some(secret),
        }
    }

    pub fn plain(&self) -> Option<&str> {
        match self {
            Self::Plain(text) => Some(text),
            Self::Secret { .. } => None,
        }
    }
}

impl From<&str> for LoginText {
    fn from(text: &str) -> Self {
        Self::Plain(text.to_owned())
    }
}

/// Hides what it is, and shows where it is.
impl fmt::Debug for LoginText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.address().unwrap_or("(hidden)"))
    }
}

impl RegistryLogin {
    pub fn of(username: &str, password: &str) -> Self {
        Self::Password { username: username.into(), password: password.into(), client_id: None }
    }

    /// The password, unless it is kept elsewhere.
    pub fn password(&self) -> Option<&str> {
        match self {
            Self::Password { password, .. } => password.plain(),
            Self::Identity { .. } => None,
        }
    }
}

impl Logins {
    /// Whether it says nothing.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a part of a login is a secret with this address.
    pub fn is_kept_at(&self, address: &str) -> bool {
        let mut parts = self.others.values().flat_map(|login| match login {
            RegistryLogin::Password { username, password, .. } => vec![username, password],
            RegistryLogin::Identity { .. } => Vec::new(),
        });
        parts.any(|part| part.address() == Some(address))
    }

    /// The values that must not be seen.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = &str> {
        self.others.values().filter_map(RegistryLogin::password)
    }

    /// Forgets them; which registries there were is kept.
    pub(crate) fn hide(&mut self) {
        for login in self.others.values_mut() {
            if let RegistryLogin::Password { password: LoginText::Plain(text), .. } = login {
                text.clear();
            }
        }
    }
}
