//! Why a command did not do what it was asked for.

use oci::RepositoryName;
use store::StoreError;

use crate::duration::DurationError;
use crate::filter::{FilterError, MatchError};

/// Why a command is refused before it does anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    #[error("there is no `--filter`")]
    NoFilter,
    #[error("there is no `--ago`")]
    NoAge,
    #[error("`--untagged` and `--untagged-only` exclude each other")]
    BothUntagged,
    #[error(transparent)]
    Age(#[from] DurationError),
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error("there is no `--artifact-type`")]
    NoArtifactType,
    #[error("`{0}` is not an artifact type")]
    BadArtifactType(String),
    #[error("there is no `--annotations`")]
    NoAnnotations,
    #[error("the annotation `{0}` is not `KEY=VALUE`")]
    BadAnnotation(String),
    #[error("there are more than {0} annotations, or they are too long")]
    TooManyAnnotations(usize),
}

impl OptionsError {
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoFilter => {
                Some("`--filter 'REPOSITORY:TAG'`, both as regular expressions".into())
            }
            Self::NoAge => Some("`--ago 30d` is what is older than 30 days, `--ago 0d` all".into()),
            Self::Age(error) => Some(error.hint()),
            Self::Filter(error) => error.hint(),
            Self::NoArtifactType | Self::BadArtifactType(_) => {
                Some("it is a media type such as `application/vnd.example.note`".into())
            }
            _ => None,
        }
    }
}

/// Why a command stopped.
#[derive(Debug, thiserror::Error)]
pub enum HousekeepingError {
    #[error(transparent)]
    Match(#[from] MatchError),
    #[error("{what} of repository `{repository}` not found")]
    NotFound { repository: RepositoryName, what: String },
    #[error("repository `{0}` not found")]
    NoRepository(String),
    /// Repositories of copies take nothing from us; the sentence says so.
    #[error("{0}")]
    Refused(String),
    #[error("it was canceled")]
    Canceled,
    #[error("`--include-locked` needs the right to unlock, `metadata/write`")]
    MayNotUnlock,
    /// Somebody has locked what was to be changed, or deleted it.
    #[error("{0}")]
    Forbidden(StoreError),
    #[error("the registry could not go on")]
    Store(#[source] StoreError),
}

impl From<StoreError> for HousekeepingError {
    fn from(error: StoreError) -> Self {
        match error {
            error if error.is_refusal() => Self::Forbidden(error),
            error => Self::Store(error),
        }
    }
}

impl HousekeepingError {
    /// Whether it is the user's to mend.
    pub fn is_users(&self) -> bool {
        !matches!(self, Self::Store(_) | Self::Canceled)
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Match(_) => Some(
                "write it without look-around and references to groups, or give it more \
                 `--filter-timeout-seconds`"
                    .to_owned(),
            ),
            Self::Forbidden(error) => error.hint(),
            _ => None,
        }
    }
}
