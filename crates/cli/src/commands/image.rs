//! How commands name a repository, and an image in it.

use crate::error::{Error, Result};
use crate::prompt;

/// `REPOSITORY[:TAG|@DIGEST]`, as typed. The server knows the grammar.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NamedImage {
    pub(super) repository: String,
    /// A tag or a digest.
    pub(super) reference: Option<String>,
}

impl NamedImage {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let (repository, reference) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => match text.rsplit_once(':') {
                // A colon before a slash parts host and port.
                Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
                _ => (text, None),
            },
        };
        if repository.is_empty() || reference.is_some_and(str::is_empty) {
            return Err(Error::usage(format!("`{text}` does not name an image"))
                .with_hint("it looks like `app`, `app:1.0` or `app@sha256:...`"));
        }
        // A tag beside a digest says nothing more.
        let repository = match (text.contains('@'), repository.rsplit_once(':')) {
            (true, Some((name, tag))) if !tag.contains('/') => name,
            _ => repository,
        };
        Ok(Self { repository: repository.to_owned(), reference: reference.map(str::to_owned) })
    }

    /// The reference, which this command cannot do without.
    pub(super) fn required_reference(&self) -> Result<&str> {
        self.reference.as_deref().ok_or_else(|| {
            let name = &self.repository;
            Error::usage(format!("`{name}` names a repository, not an image"))
                .with_hint(format!("add a tag or a digest: `{name}:latest`"))
        })
    }
}

/// A name given as an argument or, as `az acr` has it, by a flag.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct RepositoryArg {
    /// Repository
    #[arg(value_name = "REPOSITORY")]
    repository: Option<String>,
    #[arg(long = "repository", hide = true, alias = "name", short_alias = 'n')]
    repository_flag: Option<String>,
}

impl RepositoryArg {
    pub(super) fn name(self) -> String {
        self.repository.or(self.repository_flag).unwrap_or_default()
    }
}

/// An image given as an argument or by a flag.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct ImageArg {
    /// Image, REPOSITORY:TAG or REPOSITORY@DIGEST
    #[arg(value_name = "IMAGE")]
    image: Option<String>,
    #[arg(long, short, hide = true)]
    name: Option<String>,
}

impl ImageArg {
    pub(super) fn name(&self) -> Result<NamedImage> {
        let text = self.image.as_deref().or(self.name.as_deref()).unwrap_or_default();
        NamedImage::parse(text)
    }
}

/// Asks before something is gone for good.
pub(super) async fn confirm(question: &str, yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !prompt::is_possible() {
        return Err(Error::usage("this deletes for good, and nobody is there to ask")
            .with_hint("add `--yes`"));
    }
    let answer = prompt::ask(&format!("{question} (y/n): ")).await?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Error::failed("nothing was deleted")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        for (text, repository, reference) in [
            ("app", "app", None),
            ("team/app:1.0", "team/app", Some("1.0")),
            ("app@sha256:ab", "app", Some("sha256:ab")),
            ("app:1@sha256:ab", "app", Some("sha256:ab")),
            ("localhost:5000/app", "localhost:5000/app", None),
        ] {
            let name = NamedImage::parse(text).unwrap();
            assert_eq!((&*name.repository, name.reference.as_deref()), (repository, reference));
        }
        for bad in ["", ":tag", "app:", "@sha256:ab", "app@"] {
            assert!(NamedImage::parse(bad).is_err(), "{bad}");
        }
    }
}
