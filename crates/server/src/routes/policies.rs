//! What a registry does by itself.

use axum::Extension;
use axum::extract::{Path, State};

use super::Json;
use crate::audit::Detail;
use crate::error::ApiError;
use crate::openapi::Refusal;
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
    Ok(axum::Json(to_api::policies(&state.catalog.policies(&registry).await?)))
}

/// Changes what the registry does by itself, all that is given or nothing.
///
/// With `retentionPolicy`, manifests that lose their last tag from then on go after some days. Switched
/// off, it leaves those that are still there. With `softDeletePolicy`, what is deleted from then on can be
/// restored for some days. Switched off, it leaves what can be. Both are not enabled together.
#[utoipa::path(
    patch, path = "/policies", operation_id = "updatePolicies", tag = "Maintenance",
    request_body = api::UpdatePolicies,
    responses((status = OK, body = api::Policies), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn update(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Json(body): Json<api::UpdatePolicies>,
) -> Result<(Extension<Detail>, axum::Json<api::Policies>), ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let change = from_api::policies(&body)?;
    let policies = to_api::policies(&state.catalog.change_policies(&registry, change).await?);
    let mut told = Vec::new();
    if change.retention.is_some() {
        let api::RetentionPolicy { status, days, .. } = &policies.retention_policy;
        told.push(format!("retention of untagged manifests {status}, {days} days"));
    }
    if change.soft_delete.is_some() {
        let api::SoftDeletePolicy { status, retention_days, .. } = &policies.soft_delete_policy;
        told.push(format!("soft delete {status}, {retention_days} days"));
    }
    Ok((Extension(Detail(told.join("; "))), axum::Json(policies)))
}
