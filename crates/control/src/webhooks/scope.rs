//! Which images a webhook is about (registry.md section 5).

use std::fmt;
use std::str::FromStr;

use oci::{RepositoryName, Tag};
use serde::{Deserialize, Serialize};

/// Bytes of a scope.
const LEN_MAX: usize = 400;

/// Which images a webhook is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum WebhookScope {
    /// All of the registry.
    #[default]
    All,
    /// `app:*`: all of a repository.
    Repository(RepositoryName),
    /// `app:v1`; `app` alone is `app:latest`.
    Tag(RepositoryName, Tag),
    /// `app*`: all of the repositories whose names begin so.
    Prefix(String),
}

impl WebhookScope {
    /// Whether a manifest is in it that has these tags in a repository.
    pub(super) fn holds<'a>(
        &self,
        repository: &str,
        tags: impl IntoIterator<Item = &'a str>,
    ) -> bool {
        match self {
            Self::All => true,
            Self::Repository(own) => own.as_str() == repository,
            Self::Tag(own, tag) => {
                own.as_str() == repository && tags.into_iter().any(|other| tag.as_str() == other)
            }
            Self::Prefix(start) => repository.starts_with(start.as_str()),
        }
    }
}

/// A text that is no scope of a webhook.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no scope of a webhook: it is empty, `app:*`, `app:tag`, `app` for `app:latest`, or \
     `app*` for all repositories whose names begin so"
)]
pub struct BadWebhookScope(String);

impl FromStr for WebhookScope {
    type Err = BadWebhookScope;

    fn from_str(text: &str) -> Result<Self, BadWebhookScope> {
        let bad = || BadWebhookScope(text.chars().filter(|c| !c.is_control()).take(60).collect());
        if text.len() > LEN_MAX {
            return Err(bad());
        }
        if text.is_empty() {
            return Ok(Self::All);
        }
        if let Some(start) = text.strip_suffix('*').filter(|start| !start.ends_with(':')) {
            let is_fine =
                |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/".contains(c);
            let begins = start.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
            return match begins && start.chars().all(is_fine) {
                true => Ok(Self::Prefix(start.to_owned())),
                false => Err(bad()),
            };
        }
        let (repository, tag) = text.split_once(':').unwrap_or((text, "latest"));
        let repository = repository.parse().map_err(|_| bad())?;
        match tag {
            "*" => Ok(Self::Repository(repository)),
            _ => Ok(Self::Tag(repository, tag.parse().map_err(|_| bad())?)),
        }
    }
}

impl fmt::Display for WebhookScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => Ok(()),
            Self::Repository(repository) => write!(f, "{repository}:*"),
            Self::Tag(repository, tag) => write!(f, "{repository}:{tag}"),
            Self::Prefix(start) => write!(f, "{start}*"),
        }
    }
}

impl From<WebhookScope> for String {
    fn from(scope: WebhookScope) -> Self {
        scope.to_string()
    }
}

impl TryFrom<String> for WebhookScope {
    type Error = BadWebhookScope;

    fn try_from(text: String) -> Result<Self, BadWebhookScope> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_holds_what_it_says() {
        for (scope, image, expected) in [
            ("", "any/thing:v1", true),
            ("", "any/thing", true),
            ("foo:*", "foo:v1", true),
            ("foo:*", "foo", true),
            ("foo:*", "foobar:v1", false),
            ("foo:bar", "foo:bar", true),
            ("foo:bar", "foo:v2", false),
            ("foo:bar", "foo", false),
            ("foo", "foo:latest", true),
            ("foo", "foo:v2", false),
            ("foo*", "foo:v2", true),
            ("foo*", "foobar/x", true),
            ("foo*", "barfoo:v2", false),
            ("team/*", "team/app:1", true),
            ("team/*", "teams/app:1", false),
        ] {
            let (repository, tag) = match image.split_once(':') {
                Some((repository, tag)) => (repository, Some(tag)),
                None => (image, None),
            };
            let parsed: WebhookScope = scope.parse().unwrap();
            assert_eq!(parsed.holds(repository, tag), expected, "{scope} {image}");
            assert_eq!(parsed.to_string().parse::<WebhookScope>().unwrap(), parsed);
        }
    }

    #[test]
    fn what_is_no_scope_is_refused() {
        for bad in ["*", "*:*", "foo:*bar", "f*o:*", "foo:v*", "Foo", "foo:", ":v1", "foo@x", "f**"]
        {
            let error = bad.parse::<WebhookScope>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{bad}` is no scope")), "{error}");
        }
        assert!("x".repeat(500).parse::<WebhookScope>().is_err());
    }
}
