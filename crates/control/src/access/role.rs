//! Roles of accounts, and what each may do (identity-and-secrets.md section 7).

use std::fmt;
use std::str::FromStr;

use super::Rights;

/// What an account is in a registry. Each may do all that those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Sees images, tasks, runs and logs.
    Reader,
    /// Starts stored tasks, and stops runs.
    Runner,
    /// Pushes and deletes images, builds, writes tasks.
    Author,
    /// Has the registry: pools, tokens, locks, garbage.
    Owner,
    /// Says who may do what.
    Admin,
}

impl Role {
    pub const ALL: [Self; 5] = [Self::Reader, Self::Runner, Self::Author, Self::Owner, Self::Admin];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Runner => "runner",
            Self::Author => "author",
            Self::Owner => "owner",
            Self::Admin => "admin",
        }
    }

    pub fn may(self, operation: Operation) -> bool {
        self >= operation.needs()
    }

    /// What it may do in every repository of its registry.
    pub fn rights(self) -> Rights {
        let read = Rights::CONTENT_READ | Rights::METADATA_READ;
        match self {
            Self::Reader | Self::Runner => read,
            Self::Author => read | Rights::CONTENT_WRITE | Rights::CONTENT_DELETE,
            Self::Owner | Self::Admin => Rights::ALL,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = BadRole;

    fn from_str(text: &str) -> Result<Self, BadRole> {
        let found = Self::ALL.into_iter().find(|role| role.as_str().eq_ignore_ascii_case(text));
        found.ok_or_else(|| BadRole(text.chars().filter(|c| !c.is_control()).take(60).collect()))
    }
}

/// A text that is no [`Role`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a role: roles are `reader`, `runner`, `author`, `owner` and `admin`")]
pub struct BadRole(String);

/// What somebody asks the API for. What is in a repository is a matter of [`Rights`] besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// See tasks, runs, logs, pools, and what a registry holds.
    Read,
    /// Start a stored task, cancel a run, keep a run.
    Run,
    /// Change tasks, build, upload what is built, import images, delete images.
    Write,
    /// Agent pools, tokens and scope maps; repair and garbage of a registry.
    Manage,
    /// See and change who has which role.
    Govern,
}

impl Operation {
    pub const ALL: [Self; 5] = [Self::Read, Self::Run, Self::Write, Self::Manage, Self::Govern];

    /// The least role that may.
    pub fn needs(self) -> Role {
        match self {
            Self::Read => Role::Reader,
            Self::Run => Role::Runner,
            Self::Write => Role::Author,
            Self::Manage => Role::Owner,
            Self::Govern => Role::Admin,
        }
    }
}
