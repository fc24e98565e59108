//! The audit log, to be read and kept elsewhere.

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Query;
use super::runs::NDJSON;
use crate::error::ApiError;
use crate::state::Shared;

const PAGE_DEFAULT: usize = 1_000;
const PAGE_MAX: usize = 10_000;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct AuditQuery {
    /// Only records after the one with this number; else the last ones.
    after: Option<i64>,
    /// How many at most, up to 10000; 1000 if absent.
    n: Option<usize>,
}

/// Records of the audit log, oldest first, each a line of JSON.
///
/// `digest` is the SHA-256 of the line without this member; `previous` is that of the record before it.
#[utoipa::path(
    get, path = "/api/v1/audit", operation_id = "getAuditLog", tag = "Access",
    params(AuditQuery),
    responses((status = OK, body = api::AuditRecord, content_type = "application/x-ndjson")),
)]
pub(crate) async fn show(
    State(state): State<Shared>,
    Query(query): Query<AuditQuery>,
) -> Result<Response, ApiError> {
    let limit = query.n.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX);
    let log = &state.auditor.log;
    let records = match query.after {
        Some(after) => log.list(after, limit).await?,
        None => log.last(limit).await?,
    };
    let mut lines = String::new();
    for record in records {
        let open = record.line.strip_suffix('}').unwrap_or(&record.line);
        lines.push_str(&format!("{open},\"digest\":\"{}\"}}\n", record.digest));
    }
    Ok(([(CONTENT_TYPE, NDJSON)], lines).into_response())
}
