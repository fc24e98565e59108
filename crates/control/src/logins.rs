//! The registries that a run or a task is to be logged in to.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Logins to registries (identity-and-secrets.md sections 1 and 2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logins {
    /// Whether the run may not use its own registry.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_own: bool,
    /// Other registries, by host with optional port, in lower case; Docker Hub is `docker.io`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub others: BTreeMap<String, RegistryLogin>,
}

/// A user name and a password, or a token in its place.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryLogin {
    pub username: String,
    pub password: String,
}

/// Hides the password.
impl fmt::Debug for RegistryLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:(hidden)", self.username)
    }
}

impl Logins {
    /// Whether it says nothing.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The values that must not be seen.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = &str> {
        self.others.values().map(|login| &*login.password)
    }

    /// Forgets them; which registries there were is kept.
    pub(crate) fn hide(&mut self) {
        self.others.values_mut().for_each(|login| login.password.clear());
    }
}
