//! Upload of build contexts.

use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderMap, StatusCode};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;

use super::Query;
use crate::error::ApiError;
use crate::state::Shared;

/// `POST .../listBuildSourceUploadUrl`: where to put a context, and its name for a run.
pub(crate) async fn create(
    State(state): State<Shared>,
    Path(registry): Path<String>,
) -> Result<axum::Json<api::SourceUpload>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let source = state.sources.create(&registry).await?;
    let upload_url = format!(
        "/api/v1/registries/{registry}/sources/upload/{}?sig={}",
        source.id, source.signature
    );
    Ok(axum::Json(api::SourceUpload { upload_url, relative_path: source.relative_path }))
}

#[derive(Deserialize)]
pub(crate) struct UploadQuery {
    #[serde(default)]
    sig: String,
}

/// The tar archive itself, streamed into the store.
pub(crate) async fn upload(
    State(state): State<Shared>,
    Path((registry, id)): Path<(String, String)>,
    Query(query): Query<UploadQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let announced = headers.get(CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse().ok());
    let stall = state.body_stall;
    let chunks = body.into_data_stream().map_err(std::io::Error::other);
    let chunks = stream::unfold(Box::pin(chunks), move |mut chunks| async move {
        match tokio::time::timeout(stall, chunks.next()).await {
            Ok(chunk) => Some((chunk?, chunks)),
            Err(_) => Some((Err(std::io::Error::other("nothing came for too long")), chunks)),
        }
    });
    state.sources.upload(&registry, &id, &query.sig, announced, chunks).await?;
    state.metrics.source_uploads.fetch_add(1, Ordering::Relaxed);
    Ok(StatusCode::CREATED)
}
