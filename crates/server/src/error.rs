//! Errors as the REST API tells them: one place where they get a status code.

use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::{HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use control::ControlError;
use engine::{ImageArchiveError, ImportError};
use housekeeping::{HousekeepingError, OptionsError};
use remote::RemoteError;
use store::StoreError;

use crate::rates;

/// By then some of the passwords that are being compared will have been.
const LOGINS_PAUSE: Duration = Duration::from_secs(1);
/// By then some run may have ended.
const QUEUE_PAUSE: Duration = Duration::from_secs(10);

/// What a handler may fail with. `code` is for programs, `message` and `hint` for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) target: Option<String>,
    pub(crate) hint: Option<String>,
    /// When another try makes sense.
    pub(crate) retry_after: Option<Duration>,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), target: None, hint: None, retry_after: None }
    }

    /// The request cannot be right.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidRequest", message)
    }

    pub(crate) fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", format!("{what} not found"))
    }

    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "TooLarge", message)
    }

    /// The request is against the state things are in.
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "Conflict", message)
    }

    /// What the request is about was there, and is not any more.
    pub(crate) fn gone(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Gone", message)
    }

    pub(crate) fn too_often(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message)
    }

    /// The request did not arrive in time.
    pub(crate) fn late(message: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "RequestTimeout", message)
    }

    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", message)
    }

    /// It is known who asks, and that they may not.
    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    /// Nothing new is begun by a server that was told to stop.
    pub(crate) fn leaving() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServerStopping", "the server is stopping")
            .hint("try again once it has been started again")
    }

    /// The member of the request that is wrong.
    pub(crate) fn at(mut self, target: impl Into<String>) -> Self {
        self.target = Some(target.into());
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Work that did not come to its end.
    pub(crate) fn interrupted(error: &dyn std::error::Error) -> Self {
        Self::internal(error)
    }

    /// Ours: the client learns that much, the operator's log the rest.
    pub(crate) fn internal(error: &dyn std::error::Error) -> Self {
        let mut chain = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            chain.push_str(": ");
            chain.push_str(&cause.to_string());
            source = cause.source();
        }
        tracing::error!(error = chain, "a request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", error.to_string())
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        let (status, code) = match &error {
            ControlError::NotFound { .. } => (StatusCode::NOT_FOUND, "NotFound"),
            ControlError::Conflict { .. } => (StatusCode::CONFLICT, "Conflict"),
            ControlError::Invalid { .. } => (StatusCode::BAD_REQUEST, "InvalidRequest"),
            ControlError::BrokenOff { .. } => (StatusCode::REQUEST_TIMEOUT, "UploadBrokeOff"),
            ControlError::QueueFull { .. } => (StatusCode::TOO_MANY_REQUESTS, "QueueFull"),
            ControlError::TooManyLogins => (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
            ControlError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "TooLarge"),
            ControlError::Store(_) => {
                let ControlError::Store(error) = error else { unreachable!("matched above") };
                return error.into();
            }
            ControlError::Io { .. }
            | ControlError::Database { .. }
            | ControlError::Unsealable { .. }
            | ControlError::Server(_) => {
                return Self::internal(&error);
            }
        };
        let retry_after = match error {
            ControlError::TooManyLogins => Some(LOGINS_PAUSE),
            ControlError::QueueFull { .. } => Some(QUEUE_PAUSE),
            _ => None,
        };
        let hint = error.hint();
        Self { status, code, message: error.to_string(), target: None, hint, retry_after }
    }
}

impl From<ImportError> for ApiError {
    fn from(error: ImportError) -> Self {
        let (status, code) = match error {
            ImportError::Store(error) | ImportError::Archive(ImageArchiveError::Store(error)) => {
                return error.into();
            }
            ImportError::TagExists { .. } => (StatusCode::CONFLICT, "Conflict"),
            ImportError::Remote(RemoteError::NotFound { .. }) => {
                (StatusCode::NOT_FOUND, "NotFound")
            }
            ImportError::Remote(RemoteError::RateLimited { .. }) => {
                (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests")
            }
            ImportError::Remote(RemoteError::Forbidden { .. }) => {
                (StatusCode::BAD_REQUEST, "InvalidRequest")
            }
            ImportError::Remote(_) => (StatusCode::BAD_GATEWAY, "UpstreamFailed"),
            _ => (StatusCode::BAD_REQUEST, "InvalidRequest"),
        };
        let hint = error.hint();
        Self { status, code, message: error.to_string(), target: None, hint, retry_after: None }
    }
}

impl From<OptionsError> for ApiError {
    fn from(error: OptionsError) -> Self {
        Self { hint: error.hint(), ..Self::invalid(error.to_string()) }
    }
}

impl From<HousekeepingError> for ApiError {
    fn from(error: HousekeepingError) -> Self {
        let hint = error.hint();
        match error {
            HousekeepingError::Store(error) => error.into(),
            HousekeepingError::MayNotUnlock => Self::forbidden(error.to_string()),
            HousekeepingError::Forbidden(error) => error.into(),
            // Only the server's own end does that while somebody listens.
            HousekeepingError::Canceled => Self::leaving(),
            HousekeepingError::NotFound { .. } | HousekeepingError::NoRepository(_) => {
                Self { message: error.to_string(), hint, ..Self::not_found("") }
            }
            HousekeepingError::Match(_) | HousekeepingError::Refused(_) => {
                Self { hint, ..Self::invalid(error.to_string()) }
            }
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let (status, code) = match &error {
            StoreError::NotFound { .. } => (StatusCode::NOT_FOUND, "NotFound"),
            StoreError::InUse { .. }
            | StoreError::TagMoved { .. }
            | StoreError::SoftDeleted { .. }
            | StoreError::SubjectDeleted { .. }
            | StoreError::TagExists { .. }
            | StoreError::Exclusive { .. } => (StatusCode::CONFLICT, "Conflict"),
            StoreError::DigestMismatch { .. }
            | StoreError::MissingReference { .. }
            | StoreError::OutOfOrder { .. } => (StatusCode::BAD_REQUEST, "InvalidRequest"),
            StoreError::Locked(_) => (StatusCode::METHOD_NOT_ALLOWED, "Locked"),
            StoreError::NoSpace(_) => (StatusCode::INSUFFICIENT_STORAGE, "NoSpace"),
            _ => return Self::internal(&error),
        };
        let hint = error.hint();
        Self { status, code, message: error.to_string(), target: None, hint, retry_after: None }
    }
}

impl From<ApiError> for api::ErrorDetail {
    fn from(error: ApiError) -> Self {
        Self {
            code: error.code.to_owned(),
            message: error.message,
            target: error.target,
            details: Vec::new(),
            hint: error.hint,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, retry_after) = (self.status, self.retry_after);
        let mut response = (status, Json(api::ErrorBody { error: self.into() })).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"refit\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        if let Some(wait) = retry_after {
            response.headers_mut().insert(RETRY_AFTER, rates::seconds(wait).into());
        }
        response
    }
}
