//! What a registry does by itself.

use axum::Extension;
use axum::extract::{Path, State};

use super::Json;
use crate::audit::Detail;
use crate::error::ApiError;
use crate::state::Shared;
use crate::{from_api, to_api};

/// What the registry does by itself.
#[utoipa::path(
    get, path = "/policies", operation_id = "getPolicies", tag = "Maintenance",
    responses((status = OK, body = api::Policies)),
)]
pub(crate) async fn show(
    State(state): State<Shared>,
    Path(registry): Path<String>,
) -> Result<axum::Json<api::Policies>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    Ok(axum::Json(to_api::policies(state.catalog.retention(&registry).await?)))
}

/// Changes what the registry does by itself.
///
/// With `retentionPolicy`, manifests that lose their last tag from then on go after some days. Switched
/// off, it leaves those that are still there.
#[utoipa::path(
    patch, path = "/policies", operation_id = "updatePolicies", tag = "Maintenance",
    request_body = api::UpdatePolicies,
    responses((status = OK, body = api::Policies)),
)]
pub(crate) async fn update(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Json(body): Json<api::UpdatePolicies>,
) -> Result<(Extension<Detail>, axum::Json<api::Policies>), ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let retention = match &body.retention_policy {
        None => state.catalog.retention(&registry).await?,
        Some(policy) => {
            let change = from_api::retention(policy)?;
            state.catalog.change_retention(&registry, change).await?
        }
    };
    let policies = to_api::policies(retention);
    let api::RetentionPolicy { status, days, .. } = &policies.retention_policy;
    let detail = Detail(format!("retention of untagged manifests {status}, {days} days"));
    Ok((Extension(detail), axum::Json(policies)))
}
