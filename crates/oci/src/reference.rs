//! References: what a person types to name an image.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::digest::quoted;

/// The registry a bare name such as `debian` belongs to, as everywhere.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Repositories of the default registry without a namespace live here.
const DEFAULT_NAMESPACE: &str = "library/";

macro_rules! text_newtype {
    ($name:ident) => {
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = ReferenceError;

            fn try_from(text: String) -> Result<Self, ReferenceError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0.into()
            }
        }
    };
}

/// The name of a repository inside a registry: `team/app` (distribution-spec, *Pulling
/// manifests*), at most 255 characters. Safe as a relative path: no empty, `.` or `..` part.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepositoryName(Box<str>);

/// A movable name for a manifest: `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(Box<str>);

/// The name of one of the registries that a server hosts, such as `local`: 5 to 50
/// lower-case letters and digits (runs.md section 2).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RegistryName(Box<str>);

text_newtype!(RepositoryName);
text_newtype!(Tag);
text_newtype!(RegistryName);

/// Why a text is not a reference or a part of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("reference is empty")]
    Empty,
    #[error(
        "repository name `{0}` may have only lower-case letters, digits, single `.` `_` `__` or `-` between them, and `/`"
    )]
    BadRepository(String),
    #[error("repository name `{0}` is longer than 255 characters")]
    LongRepository(String),
    #[error(
        "tag `{0}` may have only letters, digits, `_`, `.` and `-`, at most 128 of them, not starting with `.` or `-`"
    )]
    BadTag(String),
    #[error("registry name `{0}` must be 5 to 50 lower-case letters and digits")]
    BadRegistryName(String),
    #[error("registry host `{0}` is not a host name with an optional port")]
    BadHost(String),
    #[error(transparent)]
    BadDigest(#[from] crate::DigestError),
}

impl ReferenceError {
    /// What the user can do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::BadRepository(name) if name.chars().any(char::is_uppercase) => {
                Some(format!("write it in lower case: `{}`", name.to_lowercase()))
            }
            _ => None,
        }
    }
}

const REPOSITORY_LEN_MAX: usize = 255;

/// Whether `part` is `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_path_component(part: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(*first) || !alphanumeric(*last) {
        return false;
    }
    part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .filter(|separator| !separator.is_empty())
        .all(|separator| {
            matches!(separator, "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
        })
}

impl FromStr for RepositoryName {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.len() > REPOSITORY_LEN_MAX {
            return Err(ReferenceError::LongRepository(quoted(text)));
        }
        match text.split('/').all(is_path_component) {
            true => Ok(Self(text.into())),
            false => Err(ReferenceError::BadRepository(quoted(text))),
        }
    }
}

impl FromStr for Tag {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let bytes = text.as_bytes();
        let valid = (1..=128).contains(&bytes.len())
            && word(bytes[0])
            && bytes.iter().all(|&byte| word(byte) || matches!(byte, b'.' | b'-'));
        match valid {
            true => Ok(Self(text.into())),
            false => Err(ReferenceError::BadTag(quoted(text))),
        }
    }
}

impl Tag {
    /// `latest`: the tag of a reference that names none.
    pub fn latest() -> Self {
        Self("latest".into())
    }
}

impl FromStr for RegistryName {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let valid = (5..=50).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        match valid {
            true => Ok(Self(text.into())),
            false => Err(ReferenceError::BadRegistryName(quoted(text))),
        }
    }
}

impl Default for RegistryName {
    /// `local`: the one registry of a server that was configured with none.
    fn default() -> Self {
        Self("local".into())
    }
}

/// A parsed image name: registry host, repository, and a tag or digest or both.
///
/// Follows the rules that docker established: the first part is a host if it has a dot or
/// a colon, is `localhost`, or has upper-case letters; everything else is on Docker Hub.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// Host with optional port, `docker.io` for bare names.
    pub host: String,
    pub repository: RepositoryName,
    pub tag: Option<Tag>,
    pub digest: Option<Digest>,
    /// Whether the text named the host itself.
    pub has_host: bool,
}

impl Reference {
    /// The tag to use: the one given, or `latest` when there is neither tag nor digest.
    pub fn tag_or_latest(&self) -> Option<Tag> {
        match (&self.tag, &self.digest) {
            (Some(tag), _) => Some(tag.clone()),
            (None, Some(_)) => None,
            (None, None) => Some(Tag::latest()),
        }
    }

    /// As the person wrote it, without what the rules added.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let short = match self.has_host {
            true => full.as_str(),
            false => full.strip_prefix("docker.io/").unwrap_or(&full),
        };
        match self.has_host {
            true => short.to_owned(),
            false => short.strip_prefix(DEFAULT_NAMESPACE).unwrap_or(short).to_owned(),
        }
    }

    /// The shortest text that means the same, whoever wrote it: `app` is also `app:latest` and
    /// `docker.io/library/app`.
    pub fn shortest(&self) -> String {
        let is_hub = self.host == "docker.io";
        let short = Self { has_host: self.has_host && !is_hub, ..self.clone() }.familiar();
        short.strip_suffix(":latest").map_or(short.clone(), str::to_owned)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn looks_like_host(part: &str) -> bool {
    part.contains(['.', ':']) || part == "localhost" || part.chars().any(char::is_uppercase)
}

/// Whether `text` is a host name, IPv4 address or bracketed IPv6 address, with an optional port.
fn is_host(text: &str) -> bool {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, port)) => match port.strip_prefix(':') {
                Some(port) => (address, Some(port)),
                None => return false,
            },
            None => return false,
        },
        None => match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        },
    };
    let name_valid = match text.starts_with('[') {
        true => name.parse::<std::net::Ipv6Addr>().is_ok(),
        false => name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        }),
    };
    let port_valid = port.is_none_or(|port| {
        !port.is_empty()
            && port.bytes().all(|byte| byte.is_ascii_digit())
            && port.parse::<u16>().is_ok()
    });
    name_valid && port_valid
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (host, path) = match name.split_once('/') {
            Some((first, rest)) if looks_like_host(first) => (Some(first), rest),
            _ => (None, name),
        };
        let (path, tag) = match path.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag.parse::<Tag>()?)),
            _ => (path, None),
        };
        if let Some(host) = host
            && !is_host(host)
        {
            return Err(ReferenceError::BadHost(quoted(host)));
        }
        let has_host = host.is_some();
        let host = match host {
            None | Some("index.docker.io") => DEFAULT_REGISTRY.to_owned(),
            // Only by its upper-case letters is it known as a host.
            Some(host) if !host.contains(['.', ':']) && host != "localhost" => host.to_owned(),
            Some(host) => host.to_ascii_lowercase(),
        };
        let repository = match host == DEFAULT_REGISTRY && !path.contains('/') {
            true => format!("{DEFAULT_NAMESPACE}{path}").parse(),
            false => path.parse(),
        };
        // The error repeats what was written, not what we made of it.
        let repository = repository.map_err(|_| ReferenceError::BadRepository(quoted(path)))?;
        Ok(Self { host, repository, tag, digest, has_host })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn references_follow_the_rules_of_docker() {
        let cases = [
            ("debian", "docker.io/library/debian"),
            ("debian:12", "docker.io/library/debian:12"),
            ("me/app", "docker.io/me/app"),
            ("localhost/app", "localhost/app"),
            ("localhost:5000/team/app:v1", "localhost:5000/team/app:v1"),
            ("index.docker.io/debian", "docker.io/library/debian"),
            ("example.com/app:v1", "example.com/app:v1"),
            ("[::1]:5000/app", "[::1]:5000/app"),
        ];
        for (text, full) in cases {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), full);
        }
        let digest = Digest::of(b"x");
        let pinned: Reference = format!("example.com/app:v1@{digest}").parse().unwrap();
        assert_eq!((pinned.tag.unwrap().as_str(), pinned.digest.unwrap()), ("v1", digest));
    }

    #[test]
    fn wrong_references_are_refused_by_name() {
        let cases = [
            ("", "reference is empty"),
            ("App/x", "registry host"),
            ("team/App", "repository name `team/App`"),
            ("a//b", "repository name `a//b`"),
            ("a:b:c", "repository name `a:b`"),
            ("a:.x", "tag `.x`"),
            ("a@sha256:1", "digest `sha256:1`"),
            ("x_.y", "repository name `x_.y`"),
            ("-x.com/a", "registry host `-x.com`"),
            ("a.com:99999/a", "registry host `a.com:99999`"),
        ];
        for (text, start) in cases {
            match text.parse::<Reference>() {
                // An upper-case first part reads as a host, as it does for docker.
                Ok(reference) => assert_eq!(text, "App/x", "{reference}"),
                Err(error) => assert!(error.to_string().starts_with(start), "{text}: {error}"),
            }
        }
    }

    #[test]
    fn repository_components_follow_the_grammar() {
        for good in ["a", "a/b", "a.b", "a__b", "a---b", "0/1"] {
            assert!(good.parse::<RepositoryName>().is_ok(), "{good}");
        }
        for bad in ["", "/a", "a/", "A", "a..b", "a___b", ".a", "a.", "a-", "..", "a/../b", "é"] {
            assert!(bad.parse::<RepositoryName>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in "\\PC{0,80}") {
            crate::fuzz::reference(text.as_bytes());
        }

        #[test]
        fn text_like_a_reference_parses_or_is_refused(text in "[a-zA-Z0-9]{0,3}([./:@_-]{1,2}[a-zA-Z0-9]{0,3}){0,6}") {
            crate::fuzz::reference(text.as_bytes());
        }

        #[test]
        fn a_reference_survives_its_text(
            text in "([a-z]{1,5}\\.[a-z]{2}(:[1-9][0-9]{1,3})?/)?[a-z0-9]{1,8}(/[a-z]{1,4})?(:[A-Z]{1,3})?"
        ) {
            let reference: Reference = text.parse().unwrap();
            let again: Reference = reference.to_string().parse().unwrap();
            prop_assert_eq!(reference.to_string(), again.to_string());
            prop_assert_eq!(reference.familiar(), text);
        }
    }
}
