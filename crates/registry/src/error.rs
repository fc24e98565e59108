//! What went wrong, in the words of the specification: one table of codes and statuses.

use std::error::Error;

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use oci::{DigestError, ManifestError, ReferenceError};
use remote::RemoteError;
use serde_json::{Value, json};
use store::StoreError;

use crate::access::Busy;

/// The error codes of distribution-spec 1.1, *Error Codes*, and some that its ancestor and the managed
/// service have and clients know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    PaginationNumberInvalid,
    SizeInvalid,
    TagInvalid,
    TagUnknown,
    Unauthorized,
    Denied,
    Unsupported,
    TooManyRequests,
    Unknown,
}

impl Code {
    fn as_str(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::PaginationNumberInvalid => "PAGINATION_NUMBER_INVALID",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::TagInvalid => "TAG_INVALID",
            Self::TagUnknown => "TAG_UNKNOWN",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Denied => "DENIED",
            Self::Unsupported => "UNSUPPORTED",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// The status that goes with a code unless an error says otherwise.
    fn status(self) -> StatusCode {
        match self {
            Self::BlobUnknown
            | Self::BlobUploadUnknown
            | Self::ManifestUnknown
            | Self::NameUnknown
            | Self::TagUnknown => StatusCode::NOT_FOUND,
            Self::BlobUploadInvalid
            | Self::DigestInvalid
            | Self::ManifestBlobUnknown
            | Self::ManifestInvalid
            | Self::NameInvalid
            | Self::PaginationNumberInvalid
            | Self::SizeInvalid
            | Self::TagInvalid => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::Unsupported => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// An answer that is an error. Boxed, since results carry it everywhere.
#[derive(Debug)]
pub(crate) struct ApiError(Box<Inner>);

#[derive(Debug)]
struct Inner {
    status: StatusCode,
    code: Code,
    message: String,
    detail: Option<Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl ApiError {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        let (status, message) = (code.status(), message.into());
        Self(Box::new(Inner { status, code, message, detail: None, headers: Vec::new() }))
    }

    pub(crate) fn status(mut self, status: StatusCode) -> Self {
        self.0.status = status;
        self
    }

    pub(crate) fn detail(mut self, detail: Value) -> Self {
        self.0.detail = Some(detail);
        self
    }

    /// Adds a header, unless the text cannot be one.
    pub(crate) fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.0.headers.push((name, value));
        }
        self
    }

    pub(crate) fn code(&self) -> Code {
        self.0.code
    }

    /// Another registry's error; `unknown` says what was looked for.
    pub(crate) fn from_remote(error: &RemoteError, unknown: Code) -> Self {
        let answer = match error {
            RemoteError::NotFound { .. } | RemoteError::Store(StoreError::NotFound { .. }) => {
                Self::new(unknown, error.to_string())
            }
            RemoteError::Denied { .. } => Self::new(Code::Denied, error.to_string()),
            RemoteError::RateLimited { retry_after, .. } => {
                let answer = Self::new(Code::TooManyRequests, error.to_string());
                match retry_after {
                    Some(pause) => answer.header(RETRY_AFTER, &pause.as_secs().max(1).to_string()),
                    None => answer,
                }
            }
            RemoteError::Store(StoreError::NoSpace(_)) => {
                Self::new(Code::Unknown, error.to_string()).status(StatusCode::INSUFFICIENT_STORAGE)
            }
            RemoteError::Store(StoreError::Locked(locked)) => {
                return Self::from_store(StoreError::Locked(locked.clone()), unknown);
            }
            RemoteError::Store(error) => {
                log(error);
                Self::new(Code::Unknown, error.to_string())
            }
            error => Self::new(Code::Unknown, error.to_string()).status(StatusCode::BAD_GATEWAY),
        };
        match error.hint() {
            Some(hint) => answer.detail(json!({ "hint": hint })),
            None => answer,
        }
    }

    /// The store's error; `unknown` says what was looked for.
    pub(crate) fn from_store(error: StoreError, unknown: Code) -> Self {
        let message = error.to_string();
        match error {
            StoreError::NotFound { .. } => Self::new(unknown, message),
            StoreError::DigestMismatch { expected, actual } => {
                Self::new(Code::DigestInvalid, message)
                    .detail(json!({ "expected": expected, "actual": actual }))
            }
            StoreError::TagMoved { tag, found } => Self::new(Code::Denied, message)
                .status(StatusCode::CONFLICT)
                .detail(json!({ "tag": tag, "found": found })),
            StoreError::MissingReference { digest, .. } => {
                Self::new(Code::ManifestBlobUnknown, message).detail(json!({ "digest": digest }))
            }
            StoreError::OutOfOrder { have, start } => Self::new(Code::BlobUploadInvalid, message)
                .status(StatusCode::RANGE_NOT_SATISFIABLE)
                .detail(json!({ "have": have, "start": start })),
            StoreError::InUse { .. } => Self::new(Code::Unsupported, message),
            // Clients show the message, and few of them more.
            StoreError::Locked(locked) => {
                Self::new(Code::Denied, format!("{message}; {}", locked.hint()))
                    .status(StatusCode::METHOD_NOT_ALLOWED)
                    .detail(json!({
                        "name": locked.repository, "attribute": locked.attribute.name(),
                    }))
            }
            StoreError::TagExists { .. } | StoreError::SubjectDeleted { .. } => {
                let answer = Self::new(Code::Denied, message).status(StatusCode::CONFLICT);
                match error.hint() {
                    Some(hint) => answer.detail(json!({ "hint": hint })),
                    None => answer,
                }
            }
            // As above.
            StoreError::SoftDeleted { ref digest, .. } => {
                let hint = error.hint().unwrap_or_default();
                Self::new(Code::Denied, format!("{message}; {hint}"))
                    .status(StatusCode::CONFLICT)
                    .detail(json!({ "digest": digest }))
            }
            error @ StoreError::NoSpace(_) => {
                log(&error);
                Self::new(Code::Unknown, message).status(StatusCode::INSUFFICIENT_STORAGE)
            }
            error => {
                log(&error);
                Self::new(Code::Unknown, message)
            }
        }
    }
}

/// For the operator: what the client is not told.
fn log(error: &StoreError) {
    let source = error.source().map(|source| source.to_string());
    tracing::error!(%error, source = source.as_deref().unwrap_or_default(), "request failed");
}

impl From<Busy> for ApiError {
    fn from(Busy { what, retry_after }: Busy) -> Self {
        let seconds = retry_after.as_millis().div_ceil(1000).max(1).to_string();
        Self::new(Code::TooManyRequests, what).header(RETRY_AFTER, &seconds)
    }
}

impl From<DigestError> for ApiError {
    fn from(error: DigestError) -> Self {
        Self::new(Code::DigestInvalid, error.to_string())
    }
}

impl From<ManifestError> for ApiError {
    fn from(error: ManifestError) -> Self {
        let answer = Self::new(Code::ManifestInvalid, error.to_string());
        match error {
            ManifestError::TooLarge { .. } => answer.status(StatusCode::PAYLOAD_TOO_LARGE),
            _ => answer,
        }
    }
}

impl From<ReferenceError> for ApiError {
    fn from(error: ReferenceError) -> Self {
        let code = match error {
            ReferenceError::BadTag(_) => Code::TagInvalid,
            ReferenceError::BadDigest(_) => Code::DigestInvalid,
            _ => Code::NameInvalid,
        };
        let answer = Self::new(code, error.to_string());
        match error.hint() {
            Some(hint) => answer.detail(json!({ "hint": hint })),
            None => answer,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Inner { status, code, message, detail, headers } = *self.0;
        let mut error = json!({ "code": code.as_str(), "message": message });
        if let Some(detail) = detail {
            error["detail"] = detail;
        }
        let body = json!({ "errors": [error] }).to_string();
        let content_type = (CONTENT_TYPE, "application/json; charset=utf-8");
        let mut response = (status, [content_type], body).into_response();
        response.headers_mut().extend(headers);
        response
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use expect_test::expect;

    use super::*;

    #[test]
    fn errors_of_the_store_have_their_codes() {
        let digest = oci::Digest::of(b"");
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let errors = [
            StoreError::NotFound { what: "blob".to_owned() },
            StoreError::DigestMismatch { expected: digest.clone(), actual: oci::Digest::of(b"x") },
            StoreError::TagMoved { tag: oci::Tag::latest(), found: None },
            StoreError::MissingReference { repository: "app".parse().unwrap(), digest },
            StoreError::OutOfOrder { have: 5, start: 0 },
            StoreError::InUse { what: "blob".to_owned() },
            StoreError::Locked(store::Lock {
                repository: "app".parse().unwrap(),
                reference: Some(store::ManifestRef::Tag(oci::Tag::latest())),
                attribute: store::Attribute::WriteEnabled,
            }),
            StoreError::SoftDeleted {
                repository: "app".parse().unwrap(),
                digest: oci::Digest::of(b""),
            },
            StoreError::NoSpace(full()),
            StoreError::Io { doing: "read a blob".to_owned(), source: full() },
        ];
        let line = |error| {
            let answer = ApiError::from_store(error, Code::BlobUnknown).0;
            let message = answer.message.replace(oci::Digest::of(b"").as_str(), "DIGEST");
            let message = message.replace(oci::Digest::of(b"x").as_str(), "OTHER");
            format!("{} {} {message}\n", answer.status.as_u16(), answer.code.as_str())
        };
        expect![[r#"
            404 BLOB_UNKNOWN blob not found
            400 DIGEST_INVALID content has digest OTHER, but DIGEST was announced
            409 DENIED tag `latest` has moved meanwhile
            400 MANIFEST_BLOB_UNKNOWN manifest needs DIGEST, which is not in repository `app`
            416 BLOB_UPLOAD_INVALID upload has 5 bytes, the chunk starts at 0
            405 UNSUPPORTED blob is in use
            405 DENIED tag `app:latest` is locked: its `writeEnabled` is false; `refit repository update --image app:latest --write-enabled true` unlocks it
            409 DENIED manifest DIGEST of repository `app` is soft-deleted; `refit manifest restore app@DIGEST` brings it back
            507 UNKNOWN no space left in the store
            500 UNKNOWN the store could not read a blob
        "#]]
        .assert_eq(&errors.into_iter().map(line).collect::<String>());
    }
}
