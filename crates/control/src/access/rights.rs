//! What may be done in repositories, and which repositories a scope map means (registry.md
//! section 4.1).

use std::fmt;
use std::ops::{BitAnd, BitOr};
use std::str::FromStr;

use oci::RepositoryName;

/// A set of things that may be done in a repository.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Rights(u8);

impl Rights {
    pub const NONE: Self = Self(0);
    /// Pull.
    pub const CONTENT_READ: Self = Self(1);
    /// Push; who pushes also needs to read.
    pub const CONTENT_WRITE: Self = Self(1 << 1);
    pub const CONTENT_DELETE: Self = Self(1 << 2);
    /// List tags and manifests.
    pub const METADATA_READ: Self = Self(1 << 3);
    /// Change attributes, such as locks.
    pub const METADATA_WRITE: Self = Self(1 << 4);
    pub const ALL: Self = Self((1 << 5) - 1);

    /// Each of them alone, as scope maps write it.
    const NAMES: [(&'static str, Self); 5] = [
        ("content/read", Self::CONTENT_READ),
        ("content/write", Self::CONTENT_WRITE),
        ("content/delete", Self::CONTENT_DELETE),
        ("metadata/read", Self::METADATA_READ),
        ("metadata/write", Self::METADATA_WRITE),
    ];

    /// Both sets together; as `|`, which constants cannot call.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Their names, as scope maps write them.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES
            .into_iter()
            .filter(move |(_, right)| self.contains(*right))
            .map(|(name, _)| name)
    }
}

impl BitOr for Rights {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Rights {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// Which repositories a scope is about, those to come included.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RepositoryPattern {
    /// `*`
    All,
    /// `team/*`: what is below `team`, not `team` itself.
    Below(RepositoryName),
    Exactly(RepositoryName),
}

impl RepositoryPattern {
    pub fn matches(&self, repository: &RepositoryName) -> bool {
        match self {
            Self::All => true,
            Self::Below(folder) => {
                let below = repository.as_str().strip_prefix(folder.as_str());
                below.is_some_and(|below| below.starts_with('/'))
            }
            Self::Exactly(name) => name == repository,
        }
    }
}

impl fmt::Display for RepositoryPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Below(folder) => write!(f, "{folder}/*"),
            Self::Exactly(name) => write!(f, "{name}"),
        }
    }
}

impl FromStr for RepositoryPattern {
    type Err = BadScope;

    fn from_str(text: &str) -> Result<Self, BadScope> {
        if text == "*" {
            return Ok(Self::All);
        }
        let (name, is_folder) = match text.strip_suffix("/*") {
            Some(folder) => (folder, true),
            None => (text, false),
        };
        if name.contains('*') {
            return Err(BadScope::Wildcard(shown(text)));
        }
        let name = name.parse().map_err(|_| BadScope::Repository(shown(text)))?;
        Ok(if is_folder { Self::Below(name) } else { Self::Exactly(name) })
    }
}

/// One line of a scope map: `repositories/team/*/content/read`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    Repository {
        repositories: RepositoryPattern,
        right: Rights,
    },
    /// `gateway/NAME/config/read`: kept for whoever manages the registry; it means nothing here.
    Gateway(String),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repository { repositories, right } => {
                let right = right.names().next().unwrap_or_default();
                write!(f, "repositories/{repositories}/{right}")
            }
            Self::Gateway(text) => f.write_str(text),
        }
    }
}

impl FromStr for Scope {
    type Err = BadScope;

    /// Names compare in lower case.
    fn from_str(text: &str) -> Result<Self, BadScope> {
        let text = text.to_ascii_lowercase();
        if let Some(gateway) = text.strip_prefix("gateway/") {
            let name = ["/config/read", "/config/write", "/message/read", "/message/write"];
            let name = name.into_iter().find_map(|action| gateway.strip_suffix(action));
            return match name.is_some_and(|name| name.parse::<RepositoryPattern>().is_ok()) {
                true => Ok(Self::Gateway(text)),
                false => Err(BadScope::Action(shown(&text))),
            };
        }
        let rest = text.strip_prefix("repositories/");
        let rest = rest.ok_or_else(|| BadScope::Action(shown(&text)))?;
        let found = Rights::NAMES.into_iter().find_map(|(name, right)| {
            let repositories = rest.strip_suffix(name)?.strip_suffix('/')?;
            Some((repositories, right))
        });
        let (repositories, right) = found.ok_or_else(|| BadScope::Action(shown(&text)))?;
        Ok(Self::Repository { repositories: repositories.parse()?, right })
    }
}

/// A text that is no [`Scope`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadScope {
    #[error("`{0}` is not an action of a scope map")]
    Action(String),
    #[error("`{0}` cannot name a repository")]
    Repository(String),
    #[error("`{0}`: `*` stands alone, or once, as the end of a name after `/`")]
    Wildcard(String),
}

impl BadScope {
    /// What the user can do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Action(_) => Some(format!(
                "an action is `repositories/REPOSITORY/` with one of `{}`",
                Rights::ALL.names().collect::<Vec<_>>().join("`, `")
            )),
            Self::Repository(_) | Self::Wildcard(_) => None,
        }
    }
}

/// As much of a text as an error may repeat.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

/// What scopes allow together in a repository; `None`: in every one, those to come included.
pub(super) fn rights_of<'a>(
    scopes: impl IntoIterator<Item = &'a Scope>,
    repository: Option<&RepositoryName>,
) -> Rights {
    scopes.into_iter().fold(Rights::NONE, |rights, scope| match scope {
        Scope::Repository { repositories, right } => {
            let matches = match repository {
                Some(name) => repositories.matches(name),
                None => *repositories == RepositoryPattern::All,
            };
            if matches { rights | *right } else { rights }
        }
        Scope::Gateway(_) => rights,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights(scopes: &[&str], repository: &str) -> Vec<&'static str> {
        let scopes: Vec<Scope> = scopes.iter().map(|text| text.parse().unwrap()).collect();
        rights_of(&scopes, Some(&repository.parse().unwrap())).names().collect()
    }

    #[test]
    fn case_n4_and_n5_rules_add_up() {
        let read = "repositories/a/*/content/read";
        assert_eq!(rights(&[read], "a/b"), ["content/read"]);
        let both = [read, "repositories/a/b/content/write"];
        assert_eq!(rights(&both, "a/b"), ["content/read", "content/write"]);
        assert_eq!(rights(&both, "a/c"), ["content/read"]);
        // What is below a folder is not the folder, nor what only begins with its name.
        assert!(rights(&both, "a").is_empty() && rights(&both, "ab/c").is_empty());
    }

    #[test]
    fn case_n6_a_wildcard_is_a_whole_end_of_a_name() {
        for bad in ["a*", "a/*/b", "a/*/b/*", "*/*", "**", "/*", "*a", "a/*b"] {
            let error = bad.parse::<RepositoryPattern>().unwrap_err();
            assert!(!matches!(error, BadScope::Action(_)), "{bad}: {error}");
        }
        let error = "repositories/a*/content/read".parse::<Scope>().unwrap_err();
        assert!(error.to_string().starts_with("`a*`: `*` stands alone"), "{error}");
    }

    #[test]
    fn scopes_are_read_in_any_case_and_written_in_lower_case() {
        for (text, written) in [
            ("repositories/*/content/read", "repositories/*/content/read"),
            ("Repositories/Team/App/Metadata/WRITE", "repositories/team/app/metadata/write"),
            ("repositories/team/*/content/delete", "repositories/team/*/content/delete"),
            ("gateway/box-1/config/read", "gateway/box-1/config/read"),
        ] {
            assert_eq!(text.parse::<Scope>().unwrap().to_string(), written);
        }
        for bad in [
            "",
            "repositories",
            "repositories/app",
            "repositories/app/content",
            "repositories/app/content/fly",
            "repositories/content/read",
            "repositories//content/read",
            "repositories/a b/content/read",
            "repositories/appcontent/read",
            "registry/catalog/read",
            "gateway/x/content/read",
        ] {
            assert!(bad.parse::<Scope>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_repository_may_be_called_as_an_action_is() {
        let scope = "repositories/content/read/content/read".parse::<Scope>().unwrap();
        assert_eq!(
            rights_of([&scope], Some(&"content/read".parse().unwrap())),
            Rights::CONTENT_READ
        );
    }

    #[test]
    fn only_a_star_means_every_repository() {
        let scopes = ["repositories/a/*/content/read", "repositories/*/content/write"]
            .map(|text| text.parse::<Scope>().unwrap());
        assert_eq!(rights_of(&scopes, None), Rights::CONTENT_WRITE);
    }
}
