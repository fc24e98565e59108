//! Reading stored content again: how far that is, and beginning anew.

use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::Json;
use crate::error::ApiError;
use crate::state::{Shared, State as ServerState};
use crate::to_api;

/// How far reading all stored content again is, and what is damaged.
#[utoipa::path(
    get, path = "/api/v1/scrub", operation_id = "getServerScrub", tag = "Maintenance",
    responses((status = OK, body = api::ScrubReport)),
)]
pub(crate) async fn report(
    State(state): State<Shared>,
) -> Result<axum::Json<api::ScrubReport>, ApiError> {
    Ok(axum::Json(current(&state).await?))
}

/// Begins to read all stored content again, which goes on after the answer.
#[utoipa::path(
    post, path = "/api/v1/scrub", operation_id = "beginServerScrub", tag = "Maintenance",
    request_body = api::ScrubRequest,
    responses((status = ACCEPTED, body = api::ScrubReport)),
)]
pub(crate) async fn begin(
    State(state): State<Shared>,
    Json(request): Json<api::ScrubRequest>,
) -> Result<(StatusCode, axum::Json<api::ScrubReport>), ApiError> {
    state.catalog.begin_scrub(request.rate).await?;
    state.scrub.notify_one();
    Ok((StatusCode::ACCEPTED, axum::Json(current(&state).await?)))
}

/// The same as for the server: registries share one store.
#[utoipa::path(
    get, path = "/scrub", operation_id = "getScrub", tag = "Maintenance",
    responses((status = OK, body = api::ScrubReport)),
)]
pub(crate) async fn of_registry(
    state: State<Shared>,
    Path(registry): Path<String>,
) -> Result<axum::Json<api::ScrubReport>, ApiError> {
    state.registry(&registry)?;
    report(state).await
}

/// The same as for the server: registries share one store.
#[utoipa::path(
    post, path = "/scrub", operation_id = "beginScrub", tag = "Maintenance",
    request_body = api::ScrubRequest,
    responses((status = ACCEPTED, body = api::ScrubReport)),
)]
pub(crate) async fn begin_for_registry(
    state: State<Shared>,
    Path(registry): Path<String>,
    body: Json<api::ScrubRequest>,
) -> Result<(StatusCode, axum::Json<api::ScrubReport>), ApiError> {
    state.registry(&registry)?;
    begin(state, body).await
}

async fn current(state: &ServerState) -> Result<api::ScrubReport, ApiError> {
    let pass = state.catalog.scrub_pass().await?;
    let (stored, lost) = (state.catalog.stored_size().await?, state.catalog.lost_blobs().await?);
    Ok(to_api::scrub(pass.as_ref(), stored, &lost))
}
