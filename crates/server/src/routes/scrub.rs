//! Reading stored content again: how far that is, and beginning anew.

use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::Json;
use crate::error::ApiError;
use crate::state::{Shared, State as ServerState};
use crate::to_api;

pub(crate) async fn report(
    State(state): State<Shared>,
) -> Result<axum::Json<api::ScrubReport>, ApiError> {
    Ok(axum::Json(current(&state).await?))
}

/// Begins a pass, which goes on after the answer.
pub(crate) async fn begin(
    State(state): State<Shared>,
    Json(request): Json<api::ScrubRequest>,
) -> Result<(StatusCode, axum::Json<api::ScrubReport>), ApiError> {
    state.catalog.begin_scrub(request.rate).await?;
    state.scrub.notify_one();
    Ok((StatusCode::ACCEPTED, axum::Json(current(&state).await?)))
}

/// The same by the name of a registry: registries share one store.
pub(crate) async fn of_registry(
    state: State<Shared>,
    Path(registry): Path<String>,
) -> Result<axum::Json<api::ScrubReport>, ApiError> {
    state.registry(&registry)?;
    report(state).await
}

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
