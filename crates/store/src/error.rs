use oci::{Digest, RepositoryName, Tag};

use crate::model::Lock;

/// Why the store could not do something. `Display` is safe to show to a client; paths and
/// database details are in the source, for the operator's log.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such blob, manifest, tag, repository or upload.
    #[error("{what} not found")]
    NotFound { what: String },
    /// The bytes written are not those that their digest names.
    #[error("content has digest {actual}, but {expected} was announced")]
    DigestMismatch { expected: Digest, actual: Digest },
    /// A compare-and-swap lost: the tag is not where the caller thought it was.
    #[error("tag `{tag}` has moved meanwhile")]
    TagMoved { tag: Tag, found: Option<Digest> },
    /// A manifest names things that its repository does not have.
    #[error("manifest needs {digest}, which is not in repository `{repository}`")]
    MissingReference { repository: RepositoryName, digest: Digest },
    /// A chunk does not start where the upload ends.
    #[error("upload has {have} bytes, the chunk starts at {start}")]
    OutOfOrder { have: u64, start: u64 },
    /// Still needed: a blob that a manifest of the repository uses.
    #[error("{what} is in use")]
    InUse { what: String },
    /// Somebody has locked it, or the repository that it is in.
    #[error("{0}")]
    Locked(Lock),
    #[error("no space left in the store")]
    NoSpace(#[source] std::io::Error),
    #[error("the store could not {doing}")]
    Io {
        doing: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the catalog could not {doing}")]
    Database {
        doing: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// What the user can do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Locked(locked) => Some(locked.hint()),
            _ => None,
        }
    }
}

impl From<db::DbError> for StoreError {
    fn from(error: db::DbError) -> Self {
        match error.is_full() {
            true => Self::NoSpace(std::io::Error::other(error)),
            false => Self::Database { doing: "write".to_owned(), source: error.into() },
        }
    }
}

/// Names what failed in the database.
pub(crate) fn database(doing: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |error| match db::is_full(&error) {
        true => StoreError::NoSpace(std::io::Error::other(error)),
        false => StoreError::Database { doing: doing.to_owned(), source: error.into() },
    }
}
