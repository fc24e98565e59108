//! Whether the server lives, and a few figures.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use crate::state::Shared;
use crate::to_api;

/// The version of the server, and its registries.
#[utoipa::path(
    get, path = "/api/v1/version", operation_id = "getVersion", tag = "Server",
    responses((status = OK, body = api::Version)),
)]
pub(crate) async fn version(State(state): State<Shared>) -> axum::Json<api::Version> {
    axum::Json(to_api::version(&state.registries))
}

/// Whether the server lives.
#[utoipa::path(
    get, path = "/healthz", operation_id = "checkHealth", tag = "Server",
    responses((status = OK, body = String)),
)]
pub(crate) async fn alive() -> &'static str {
    "ok\n"
}

/// Ready: the database answers, and the server is not about to stop.
#[utoipa::path(
    get, path = "/readyz", operation_id = "checkReadiness", tag = "Server",
    responses((status = OK, body = String), (status = SERVICE_UNAVAILABLE, body = String)),
)]
pub(crate) async fn ready(State(state): State<Shared>) -> (StatusCode, &'static str) {
    if state.leaving.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n");
    }
    match state.runs.unfinished().await {
        Ok(_) => (StatusCode::OK, "ready\n"),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n"),
    }
}

/// A few figures in the text format of Prometheus.
// Text exposition format, version 0.0.4.
#[utoipa::path(
    get, path = "/metrics", operation_id = "getMetrics", tag = "Server",
    responses((status = OK, body = String, content_type = "text/plain; version=0.0.4")),
)]
pub(crate) async fn metrics(State(state): State<Shared>) -> Response {
    let mut text = String::new();
    let metrics = &state.metrics;
    let counters = [
        ("refit_requests_total", "Requests to the REST API.", &metrics.requests),
        ("refit_request_errors_total", "Requests that failed by our fault.", &metrics.errors),
        ("refit_runs_submitted_total", "Runs queued.", &metrics.runs_submitted),
        ("refit_source_uploads_total", "Build contexts received.", &metrics.source_uploads),
    ];
    let counters = counters.map(|(name, help, value)| (name, help, value.load(Ordering::Relaxed)));
    let refused = ("refit_requests_refused_total", "Requests refused for coming too often.");
    let refused = (refused.0, refused.1, state.access.rates.refused());
    for (name, help, value) in counters.into_iter().chain([refused]) {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}\n");
    }
    if let Ok(unfinished) = state.runs.unfinished().await {
        let queued = unfinished.iter().filter(|run| run.started_at.is_none()).count();
        let gauges = [
            ("refit_runs_queued", "Runs waiting.", queued),
            ("refit_runs_running", "Runs under way.", unfinished.len() - queued),
        ];
        for (name, help, value) in gauges {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
        }
    }
    if let Ok(lost) = state.catalog.lost_count().await {
        let (name, help) = ("refit_blobs_damaged", "Blobs found damaged and not stored again.");
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {lost}\n");
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}
