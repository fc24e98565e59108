//! Why something about runs could not be done.

use db::DbError;

pub type Result<T, E = ControlError> = std::result::Result<T, E>;

/// `Display` is safe to show to a client; details for operators are in the source.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("{what} not found")]
    NotFound { what: String },
    /// The request is against the state things are in.
    #[error("{message}")]
    Conflict { message: String },
    /// The request cannot be right.
    #[error("{message}")]
    Invalid { message: String, hint: Option<String> },
    /// What was sent did not come to its end; to send it again may help.
    #[error("the upload broke off: {source}")]
    BrokenOff { source: std::io::Error, hint: &'static str },
    #[error("{waiting} runs are waiting already")]
    QueueFull { waiting: u64 },
    #[error("too many passwords are being checked")]
    TooManyLogins,
    #[error("{what} is larger than {max} bytes")]
    TooLarge { what: String, max: u64 },
    /// The server that the run is from could not be asked, or did not know what to do.
    #[error("{0}")]
    Server(String),
    /// A key was lost, or somebody has changed what was sealed with it.
    #[error(
        "what is sealed of {place} cannot be opened: {}",
        key.as_ref().map_or_else(
            || "they are damaged".to_owned(),
            |key| format!("key `{key}` is not in the file of keys of secrets")
        )
    )]
    Unsealable { place: String, key: Option<String> },
    #[error(transparent)]
    Store(#[from] store::StoreError),
    #[error("the server could not {doing}")]
    Io {
        doing: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the server could not {doing}")]
    Database {
        doing: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ControlError {
    /// What the user can do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Invalid { hint, .. } => hint.clone(),
            Self::BrokenOff { hint, .. } => Some((*hint).into()),
            Self::QueueFull { .. } => {
                Some("try again later, or raise `limits.queue_length_max`".into())
            }
            Self::TooManyLogins => Some("try again in a minute".into()),
            Self::TooLarge { .. } => Some(
                "leave files out with `.dockerignore`, or raise `limits.source_size_max`".into(),
            ),
            Self::Unsealable { key: Some(_), .. } => {
                Some("put the key back as a line of the file of keys of secrets".into())
            }
            _ => None,
        }
    }

    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::Conflict { message: message.into() }
    }

    pub(crate) fn database<E: Into<DbError>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| match source.into() {
            full if full.is_full() => {
                Self::Store(store::StoreError::NoSpace(std::io::Error::other(full)))
            }
            source => Self::Database { doing: doing.into(), source: Box::new(source) },
        }
    }
}
