//! What an update of a base touches, written down, carried out, and put back.

use axum::Extension;
use axum::extract::State;
use control::{Plan, PlanId, PlanRequest};
use oci::RegistryName;
use serde::Deserialize;
use store::ManifestRef;
use utoipa::IntoParams;

use super::triggers::{digest, image_tag, not_there};
use super::{Json, Path, Query};
use crate::access::Principal;
use crate::audit::Detail;
use crate::error::ApiError;
use crate::openapi::Refusal;
use crate::state::Shared;
use crate::{from_api, to_api};

const CANARY_DEFAULT: u8 = 10;
const LISTED_DEFAULT: usize = 50;
const LISTED_MAX: usize = 1_000;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PlansQuery {
    /// How many at most, up to 1000; 50 if absent.
    #[serde(rename = "$top")]
    top: Option<usize>,
}

/// Lists plans without their tasks, the newest first.
#[utoipa::path(
    get, path = "/plans", operation_id = "listPlans", tag = "Plans",
    params(PlansQuery),
    responses((status = OK, body = api::Page<api::Plan>)),
)]
pub(crate) async fn list(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Query(query): Query<PlansQuery>,
) -> Result<axum::Json<api::Page<api::Plan>>, ApiError> {
    let (registry, names) = state.registry(&registry)?;
    let top = query.top.unwrap_or(LISTED_DEFAULT).clamp(1, LISTED_MAX);
    let plans = state.triggers.plans(&registry, top).await?;
    let value = plans.iter().map(|plan| to_api::listed_plan(plan, &names.login_server)).collect();
    Ok(axum::Json(api::Page { value, next_link: None }))
}

/// Draws a plan and keeps it. Nothing is built, and nothing moves.
#[utoipa::path(
    post, path = "/plans", operation_id = "makePlan", tag = "Plans",
    request_body = api::PlanRequest,
    responses((status = OK, body = api::Plan)),
)]
pub(crate) async fn make(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Extension(principal): Extension<Principal>,
    Json(body): Json<api::PlanRequest>,
) -> Result<(Extension<Detail>, axum::Json<api::Plan>), ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let base = image_tag(&state, &registry, &body.base)?;
    let canary = body.canary_percent.unwrap_or(CANARY_DEFAULT);
    if canary > 100 {
        let message = "a part is 0 to 100 percent";
        return Err(ApiError::invalid(message).at("canaryPercent"));
    }
    let to = body.digest.as_deref().map(|text| digest(text, "digest")).transpose()?;
    let members = match &to {
        Some(to) if base.host.is_none() => {
            let repository = base.repository.parse().map_err(|_| not_there(&body.base))?;
            let reference = ManifestRef::Digest(to.clone());
            if state.catalog.digest_of(&registry, &repository, &reference).await?.is_none() {
                let message = format!("`{to}` is not in repository `{repository}`");
                let hint = "push or import the image first, under any tag of that repository";
                return Err(ApiError::invalid(message).at("digest").hint(hint));
            }
            state.catalog.members(&registry, &repository, to).await?
        }
        _ => Vec::new(),
    };
    let request = PlanRequest { base, to, members, canary };
    let own = crate::triggers::own_names(&state);
    let plan = state.triggers.plan(&registry, &own, &request, &principal.name()).await?;
    shown(&state, "make", &plan)
}

/// A plan with its tasks.
#[utoipa::path(
    get, path = "/plans/{plan}", operation_id = "getPlan", tag = "Plans",
    responses((status = OK, body = api::Plan)),
)]
pub(crate) async fn show(
    State(state): State<Shared>,
    Path((registry, plan)): Path<(String, String)>,
) -> Result<axum::Json<api::Plan>, ApiError> {
    let (registry, names) = state.registry(&registry)?;
    let id = plan_id(&plan)?;
    let plan = state.triggers.find_plan(&registry, id).await?;
    let plan = plan.ok_or_else(|| ApiError::not_found(format!("plan `{id}`")))?;
    Ok(axum::Json(to_api::plan(&plan, &names.login_server)))
}

/// Carries out a plan, or goes on with one that has stopped. Refused if another one would be made now.
#[utoipa::path(
    post, path = "/plans/{plan}/apply", operation_id = "applyPlan", tag = "Plans",
    responses((status = OK, body = api::Plan), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn apply(
    State(state): State<Shared>,
    Path((registry, plan)): Path<(String, String)>,
    Extension(principal): Extension<Principal>,
) -> Result<(Extension<Detail>, axum::Json<api::Plan>), ApiError> {
    let (registry, id) = place(&state, &registry, &plan)?;
    let own = crate::triggers::own_names(&state);
    let plan = state.triggers.apply_plan(&registry, &own, id, &principal.name()).await?;
    shown(&state, "apply", &plan)
}

/// Starts no more of a plan; what runs goes on to its end.
#[utoipa::path(
    post, path = "/plans/{plan}/stop", operation_id = "stopPlan", tag = "Plans",
    responses((status = OK, body = api::Plan), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn stop(
    State(state): State<Shared>,
    Path((registry, plan)): Path<(String, String)>,
    Extension(principal): Extension<Principal>,
) -> Result<(Extension<Detail>, axum::Json<api::Plan>), ApiError> {
    let (registry, id) = place(&state, &registry, &plan)?;
    shown(&state, "stop", &state.triggers.stop_plan(&registry, id, &principal.name()).await?)
}

/// Gives up a plan that is not carried out: its tasks follow their triggers again.
#[utoipa::path(
    post, path = "/plans/{plan}/close", operation_id = "closePlan", tag = "Plans",
    responses((status = OK, body = api::Plan), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn close(
    State(state): State<Shared>,
    Path((registry, plan)): Path<(String, String)>,
) -> Result<(Extension<Detail>, axum::Json<api::Plan>), ApiError> {
    let (registry, id) = place(&state, &registry, &plan)?;
    shown(&state, "close", &state.triggers.close_plan(&registry, id).await?)
}

/// Puts back the tags that a plan has moved, but for those that somebody has moved since. Its runs are canceled.
#[utoipa::path(
    post, path = "/plans/{plan}/rollback", operation_id = "rollBackPlan", tag = "Plans",
    responses((status = OK, body = api::Plan), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn roll_back(
    State(state): State<Shared>,
    Path((registry, plan)): Path<(String, String)>,
) -> Result<(Extension<Detail>, axum::Json<api::Plan>), ApiError> {
    let (registry, id) = place(&state, &registry, &plan)?;
    shown(&state, "roll back", &state.triggers.roll_back_plan(&registry, id).await?)
}

fn place(state: &Shared, registry: &str, plan: &str) -> Result<(RegistryName, PlanId), ApiError> {
    let (registry, _) = state.registry(registry)?;
    Ok((registry, plan_id(plan)?))
}

fn plan_id(text: &str) -> Result<PlanId, ApiError> {
    text.parse().map_err(|error| {
        ApiError::invalid(format!("`{}` is no plan: {error}", from_api::cut(text))).at("plan")
    })
}

/// The answer about a plan, and what the audit log has of it.
fn shown(
    state: &Shared,
    what: &str,
    plan: &Plan,
) -> Result<(Extension<Detail>, axum::Json<api::Plan>), ApiError> {
    let (_, names) = state.registry(plan.registry.as_str())?;
    let detail = Detail(format!("{what} plan {} of {}", plan.id, plan.request.base));
    Ok((Extension(detail), axum::Json(to_api::plan(plan, &names.login_server))))
}
