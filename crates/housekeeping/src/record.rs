//! What a command tells while it goes on.

use async_trait::async_trait;
use oci::{Digest, RepositoryName, Tag};

/// One thing that a command tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A line for people.
    Line(String),
    Warning(String),
    Item {
        verb: Verb,
        item: Item,
    },
}

/// What was done to an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Deleted,
    WouldDelete,
    Annotated,
    WouldAnnotate,
}

/// A tag, or a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub repository: RepositoryName,
    /// `None`: it is the manifest itself that is meant.
    pub tag: Option<Tag>,
    pub digest: Digest,
}

impl Item {
    /// `HOST/REPOSITORY:TAG`, or `HOST/REPOSITORY@DIGEST`.
    pub fn name(&self, login_server: &str) -> String {
        match &self.tag {
            Some(tag) => format!("{login_server}/{}:{tag}", self.repository),
            None => format!("{login_server}/{}@{}", self.repository, self.digest),
        }
    }
}

impl Record {
    /// The line that `acr` prints for it.
    pub fn text(&self, login_server: &str) -> String {
        match self {
            Self::Line(text) => text.clone(),
            Self::Warning(text) => format!("warning: {text}"),
            Self::Item { verb, item } => {
                let name = item.name(login_server);
                match verb {
                    Verb::Deleted => format!("Deleted {name}"),
                    Verb::WouldDelete => format!("Would delete: {name}"),
                    Verb::Annotated => format!("Annotated {name}"),
                    Verb::WouldAnnotate => format!("Would annotate: {name}"),
                }
            }
        }
    }
}

/// Receives what a command tells. A command waits until each record is taken.
#[async_trait]
pub trait Records: Send + Sync {
    async fn take(&self, record: Record);
}
