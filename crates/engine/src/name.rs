//! The names that `-t` gives to what is built.

use builder::OwnNames;
use oci::{Reference, ReferenceError, RegistryName, RepositoryName, Tag};

/// A tag of the run's own registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    pub repository: RepositoryName,
    pub tag: Tag,
    /// `host/repository:tag`, for people and records.
    pub reference: String,
}

/// Why something cannot be the name of what is built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("`{name}` is not an image name")]
    Malformed {
        name: String,
        #[source]
        source: ReferenceError,
    },
    #[error("`{name}` names a digest, which an image has only when it is built")]
    Digest { name: String },
    #[error("`{name}` is in registry `{host}`, which the run is not logged in to")]
    OtherRegistry { name: String, host: String },
}

impl NameError {
    /// What the user can do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Malformed { source, .. } => source.hint(),
            Self::Digest { .. } => Some("give a tag, such as `app:1.0`".to_owned()),
            Self::OtherRegistry { host, .. } => Some(format!(
                "give the task a login, `refit task credential add --login-server {host}`, or build \
                 without a host in the name and copy the image there"
            )),
        }
    }
}

impl Destination {
    /// Reads the name that a user gave. A name without a host is in the run's own registry,
    /// also when it has several parts (task-yaml.md section 7.5).
    pub fn parse(name: &str, registry: &RegistryName, own: &OwnNames) -> Result<Self, NameError> {
        let malformed = |source| NameError::Malformed { name: name.to_owned(), source };
        let reference: Reference = name.parse().map_err(malformed)?;
        if reference.digest.is_some() {
            return Err(NameError::Digest { name: name.to_owned() });
        }
        let repository = match reference.has_host {
            true if own.registry(&reference) == Some(registry) => reference.repository,
            true => {
                let host = reference.host;
                return Err(NameError::OtherRegistry { name: name.to_owned(), host });
            }
            // The namespace that Docker Hub adds to bare names is not ours.
            false => Self::repository(name).map_err(malformed)?,
        };
        let tag = reference.tag.unwrap_or_else(Tag::latest);
        let host = own.host(registry).unwrap_or(registry.as_str());
        let reference = format!("{host}/{repository}:{tag}");
        Ok(Self { repository, tag, reference })
    }

    /// The repository in the run's own registry of a name without a host.
    pub(crate) fn repository(name: &str) -> Result<RepositoryName, ReferenceError> {
        let end = name.find('@').unwrap_or(name.len());
        let end = name[..end].rfind(':').unwrap_or(end);
        name[..end].parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str) -> Result<String, String> {
        let registry = RegistryName::default();
        let own = OwnNames::new([("localhost:5000".to_owned(), registry.clone())]);
        Destination::parse(name, &registry, &own)
            .map(|name| name.reference)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn names_without_a_host_are_in_the_own_registry() {
        let ok = |text: &str| Ok(text.to_owned());
        assert_eq!(check("app"), ok("localhost:5000/app:latest"));
        assert_eq!(check("team/app:1"), ok("localhost:5000/team/app:1"));
        assert_eq!(check("localhost:5000/app"), ok("localhost:5000/app:latest"));
        assert_eq!(check("library/app"), ok("localhost:5000/library/app:latest"));
    }

    #[test]
    fn other_registries_and_digests_are_refused_by_name() {
        let error = check("ghcr.io/app:1").unwrap_err();
        assert_eq!(
            error,
            "`ghcr.io/app:1` is in registry `ghcr.io`, which the run is not logged in to"
        );
        assert!(check("App").unwrap_err().contains("is not an image name"));
        let digest = format!("app@sha256:{}", "a".repeat(64));
        assert!(check(&digest).unwrap_err().contains("names a digest"));
    }
}
