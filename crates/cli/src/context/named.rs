//! `--build-context NAME=...`: what a name stands for instead of a stage or an image.

use std::path::Path;

use super::layout::Layout;
use super::{Source, remote_address};
use crate::error::{Error, Result};

/// One `--build-context`.
pub(crate) struct NamedContext {
    pub(crate) name: String,
    pub(crate) content: NamedContent,
}

pub(crate) enum NamedContent {
    Folder(Source),
    /// The address of a git repository, an archive or an artifact; the server fetches it.
    Remote(String),
    /// A reference; the server knows what it means.
    Image(String),
    Layout(Layout),
}

impl NamedContext {
    /// Reads the flags. Of several with one name the last counts.
    pub(crate) fn find_all(flags: &[String]) -> Result<Vec<Self>> {
        let mut all: Vec<Self> = Vec::new();
        for flag in flags {
            let named = Self::find(flag)?;
            all.retain(|other| other.name != named.name);
            all.push(named);
        }
        Ok(all)
    }

    fn find(flag: &str) -> Result<Self> {
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) if !name.is_empty() && !value.is_empty() => (name, value),
            _ => {
                return Err(Error::usage(format!("the context `{flag}` has no name or no value"))
                    .with_hint("write it like `--build-context NAME=PATH`"));
            }
        };
        let content = match value.split_once("://") {
            Some(("docker-image", image)) => NamedContent::Image(image.to_owned()),
            Some(("oci-layout", layout)) => NamedContent::Layout(find_layout(name, layout)?),
            _ => Self::find_files(name, value)?,
        };
        Ok(Self { name: name.to_owned(), content })
    }

    fn find_files(name: &str, value: &str) -> Result<NamedContent> {
        Ok(match remote_address(value)? {
            Some(address) => NamedContent::Remote(address),
            None if value.contains("://") => {
                let message = format!("the context `{name}`: `{value}` is not supported yet");
                return Err(Error::usage(message).with_hint(
                    "a folder, a git repository, an archive at an address, `oci://`, `docker-image://` and \
                     `oci-layout://` can be used",
                ));
            }
            None => {
                let folder = Path::new(value);
                if !folder.is_dir() {
                    let message = format!("the context `{name}`: `{value}` is not a folder");
                    return Err(Error::usage(message));
                }
                NamedContent::Folder(Source::of_folder(folder)?)
            }
        })
    }
}

fn find_layout(name: &str, text: &str) -> Result<Layout> {
    Layout::parse(text).map_err(|error| Error::usage(format!("the context `{name}`: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_that_cannot_be_used_is_refused_by_name() {
        let refused = |flag: &str| match NamedContext::find(flag) {
            Ok(_) => panic!("{flag}"),
            Err(error) => error.to_string(),
        };
        assert_eq!(refused("a"), "the context `a` has no name or no value");
        assert_eq!(refused("=b"), "the context `=b` has no name or no value");
        assert_eq!(refused("a=/no/such"), "the context `a`: `/no/such` is not a folder");
        assert_eq!(
            refused("a=git://me@github.com/u/r"),
            "the git address `git://***@github.com/u/r` cannot be used: git's own protocol has no \
             users and passwords"
        );
        assert!(refused("a=oci://x").contains("names no registry"));
        assert!(refused("a=target:b://").contains("not supported yet"));
        assert!(refused("a=oci-layout:///no/such").starts_with("the context `a`: `/no/such`"));
    }

    #[test]
    fn what_the_server_fetches_is_an_address() {
        for address in [
            "https://token@h/x.git#main:app",
            "github.com/u/r",
            "git@h:u/r.git",
            "http://h/x.tar.gz",
            "oci://h.x/y:1",
        ] {
            let found = NamedContext::find(&format!("a={address}")).unwrap().content;
            assert!(matches!(&found, NamedContent::Remote(found) if found == address), "{address}");
        }
    }

    #[test]
    fn the_last_context_of_a_name_counts() {
        let flags = ["a=docker-image://one", "b=docker-image://two", "a=docker-image://three"];
        let all = NamedContext::find_all(&flags.map(str::to_owned)).unwrap();
        let images: Vec<_> = (all.iter())
            .map(|named| match &named.content {
                NamedContent::Image(image) => (named.name.as_str(), image.as_str()),
                _ => panic!("not an image"),
            })
            .collect();
        assert_eq!(images, [("b", "two"), ("a", "three")]);
    }
}
