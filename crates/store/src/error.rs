use oci::{Digest, RepositoryName, Tag};

use crate::model::{Lock, Policy};

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
    /// It was deleted and can be restored, which pushing it is no way to do.
    #[error("manifest {digest} of repository `{repository}` is soft-deleted")]
    SoftDeleted { repository: RepositoryName, digest: Digest },
    /// A referrer is restored after its subject.
    #[error("the subject {subject} of manifest {digest} is soft-deleted")]
    SubjectDeleted { repository: RepositoryName, digest: Digest, subject: Digest },
    /// The tag to be restored is there.
    #[error("there is a `{repository}:{tag}` by now")]
    TagExists { repository: RepositoryName, tag: Tag },
    /// Two policies that are not enabled together.
    #[error("{wanted} cannot be enabled while {enabled} is")]
    Exclusive { wanted: Policy, enabled: Policy },
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
            Self::SoftDeleted { repository, digest } => {
                Some(format!("`refit manifest restore {repository}@{digest}` brings it back"))
            }
            Self::SubjectDeleted { repository, subject, .. } => {
                Some(format!("restore it first: `refit manifest restore {repository}@{subject}`"))
            }
            Self::TagExists { .. } => Some(
                "`--force` moves it; what it points at now can then be restored in turn".to_owned(),
            ),
            Self::Exclusive { enabled, .. } => {
                let command = enabled.command();
                Some(format!("`refit config {command} update --status disabled` comes first"))
            }
            _ => None,
        }
    }

    /// Whether it is as somebody wanted it to be, and for people to change.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Locked(_) | Self::SoftDeleted { .. })
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
