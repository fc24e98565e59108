//! The ledger of triggers: what was seen, what was decided, and why.

use axum::Extension;
use axum::extract::State;
use control::{ImageTag, LedgerFilter, Pause, PauseScope, SourceGuess};
use oci::{Digest, Reference, RegistryName};
use serde::Deserialize;
use store::Millis;
use utoipa::IntoParams;

use super::{Json, Path, Query};
use crate::access::Principal;
use crate::audit::Detail;
use crate::error::ApiError;
use crate::state::Shared;
use crate::{from_api, to_api};

const PAGE_DEFAULT: usize = 100;
const PAGE_MAX: usize = 1_000;

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(crate) struct LedgerQuery {
    /// Only events of this task.
    task_name: Option<String>,
    /// Only events with this decision: `Fired`, `Joined`, `Skipped`, `Suppressed` or `Waits`.
    decision: Option<String>,
    /// How many at most, up to 1000; 100 if absent.
    #[serde(rename = "$top")]
    top: Option<usize>,
    /// Goes on after the event with this number.
    #[serde(rename = "$skiptoken")]
    skip: Option<i64>,
}

/// Characters of the reason of a pause.
const REASON_MAX: usize = 500;

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(crate) struct PausesQuery {
    /// Only those that hold triggers of this task.
    task_name: Option<String>,
}

/// The triggers that are held.
#[utoipa::path(
    get, path = "/triggerPauses", operation_id = "listTriggerPauses", tag = "Triggers",
    params(PausesQuery),
    responses((status = OK, body = api::Page<api::TriggerPause>)),
)]
pub(crate) async fn pauses(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Query(query): Query<PausesQuery>,
) -> Result<axum::Json<api::Page<api::TriggerPause>>, ApiError> {
    let (registry, names) = state.registry(&registry)?;
    let pauses = match query.task_name.as_deref().map(from_api::task_name).transpose()? {
        Some(task) => {
            let own = crate::triggers::own_names(&state);
            state.triggers.pauses_of(&registry, &own, &task).await?
        }
        None => state.triggers.pauses(&registry).await?,
    };
    Ok(axum::Json(pauses_page(&pauses, &names.login_server)))
}

fn pauses_page(pauses: &[Pause], own_host: &str) -> api::Page<api::TriggerPause> {
    let value = pauses.iter().map(|pause| to_api::trigger_pause(pause, own_host)).collect();
    api::Page { value, next_link: None }
}

/// Holds triggers. A pause of the same takes the place of the one before.
#[utoipa::path(
    post, path = "/pauseTriggers", operation_id = "pauseTriggers", tag = "Triggers",
    request_body = api::PauseTriggersRequest,
    responses((status = OK, body = api::TriggerPause)),
)]
pub(crate) async fn pause(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Extension(principal): Extension<Principal>,
    Json(body): Json<api::PauseTriggersRequest>,
) -> Result<(Extension<Detail>, axum::Json<api::TriggerPause>), ApiError> {
    let (registry, names) = state.registry(&registry)?;
    let scope = scope(&state, &registry, body.task.as_deref(), body.base.as_deref())?;
    if let PauseScope::Task(name) = &scope {
        super::tasks::find(&state, &registry, name).await?;
    }
    let length = body.reason.trim().chars().count();
    if length == 0 || length > REASON_MAX {
        let message = format!("the reason of a pause has 1 to {REASON_MAX} characters");
        return Err(ApiError::invalid(message).at("reason"));
    }
    let now = state.clock.now();
    let ends_at = body.end_time.as_deref().map(|end| from_api::time(end, "endTime")).transpose()?;
    if ends_at.is_some_and(|end| end <= now) {
        return Err(ApiError::invalid("that is over already").at("endTime"));
    }
    let by = principal.name();
    let reason = body.reason.trim().to_owned();
    let pause = Pause { scope, reason, ends_at, by, since: now };
    state.triggers.pause(&registry, &pause).await?;
    let detail = Detail(format!("pause {}", pause.scope));
    Ok((Extension(detail), axum::Json(to_api::trigger_pause(&pause, &names.login_server))))
}

/// Lets triggers go on that were held, and says which ones are still. What has waited is answered then.
#[utoipa::path(
    post, path = "/resumeTriggers", operation_id = "resumeTriggers", tag = "Triggers",
    request_body = api::ResumeTriggersRequest,
    responses((status = OK, body = api::Page<api::TriggerPause>)),
)]
pub(crate) async fn resume(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Json(body): Json<api::ResumeTriggersRequest>,
) -> Result<(Extension<Detail>, axum::Json<api::Page<api::TriggerPause>>), ApiError> {
    let (registry, names) = state.registry(&registry)?;
    let scope = scope(&state, &registry, body.task.as_deref(), body.base.as_deref())?;
    if !state.triggers.resume(&registry, &scope).await? {
        let hint = "`refit trigger pauses` lists what is paused";
        return Err(ApiError::not_found(format!("a pause of {scope}")).hint(hint));
    }
    let pauses = state.triggers.pauses(&registry).await?;
    let detail = Detail(format!("resume {scope}"));
    Ok((Extension(detail), axum::Json(pauses_page(&pauses, &names.login_server))))
}

/// Timers that are foreseen at most, and for how long: a year.
const SIMULATED_MAX: usize = 1_000;
const SIMULATED_SPAN: Millis = 366 * 24 * 60 * 60 * 1_000;

/// Tells what an event would start, and starts nothing.
#[utoipa::path(
    post, path = "/simulateTrigger", operation_id = "simulateTrigger", tag = "Triggers",
    request_body = api::SimulateTriggerRequest,
    responses((status = OK, body = api::Page<api::SimulatedDecision>)),
)]
pub(crate) async fn simulate(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Json(body): Json<api::SimulateTriggerRequest>,
) -> Result<axum::Json<api::Page<api::SimulatedDecision>>, ApiError> {
    let (registry, names) = state.registry(&registry)?;
    let task = body.task.as_deref().map(from_api::task_name).transpose()?;
    if let Some(task) = &task {
        super::tasks::find(&state, &registry, task).await?;
    }
    let own = crate::triggers::own_names(&state);
    let triggers = &state.triggers;
    let mut foreseen = match (&body.base, &body.branch, &body.until) {
        (Some(base), None, None) => {
            let image = image_tag(&state, &registry, base)?;
            let digest = body.digest.as_deref().map(|text| digest(text, "digest")).transpose()?;
            let members = match &digest {
                Some(digest) if image.host.is_none() => {
                    let repository = image.repository.parse().map_err(|_| not_there(base))?;
                    state.catalog.members(&registry, &repository, digest).await?
                }
                _ => Vec::new(),
            };
            let to = digest.as_ref().map(|digest| (digest, &*members));
            triggers.foresee_base(&registry, &own, &image, to).await?
        }
        (None, Some(branch), None) => {
            let guess = SourceGuess {
                branch: branch.clone(),
                pull_request: body.pull_request_number,
                from_fork: body.fork.unwrap_or_default(),
            };
            triggers.foresee_source(&registry, &own, task.as_ref(), &guess).await?
        }
        (None, None, Some(until)) => {
            let (now, until) = (state.clock.now(), from_api::time(until, "until")?);
            if until < now || until - now > SIMULATED_SPAN {
                let message = "timers are foreseen from now on, for a year at most";
                return Err(ApiError::invalid(message).at("until"));
            }
            triggers.foresee_timers(&registry, &own, (now, until), SIMULATED_MAX).await?
        }
        _ => {
            let message = "an event is one of `base`, `branch` and `until`";
            return Err(ApiError::invalid(message));
        }
    };
    if let Some(task) = &task {
        foreseen.retain(|foreseen| foreseen.task == *task);
    }
    let simulated = |foreseen| to_api::simulated(foreseen, &names.login_server);
    let value = foreseen.iter().map(simulated).collect();
    Ok(axum::Json(api::Page { value, next_link: None }))
}

pub(super) fn digest(text: &str, member: &'static str) -> Result<Digest, ApiError> {
    text.parse().map_err(|_| {
        ApiError::invalid(format!("`{}` is no digest", from_api::cut(text))).at(member)
    })
}

pub(super) fn not_there(base: &str) -> ApiError {
    ApiError::invalid(format!("`{}` is no image", from_api::cut(base))).at("base")
}

/// An image as a Dockerfile names it.
pub(super) fn image_tag(
    state: &Shared,
    registry: &RegistryName,
    base: &str,
) -> Result<ImageTag, ApiError> {
    let reference: Reference = base.parse().map_err(|_| not_there(base))?;
    let (None, Some(tag)) = (&reference.digest, reference.tag_or_latest()) else {
        let message = "an image that is named by its digest never moves";
        return Err(ApiError::invalid(message).at("base"));
    };
    let is_own = state.own_names().registry(&reference) == Some(registry);
    Ok(ImageTag {
        host: (!is_own).then(|| reference.host.clone()),
        repository: reference.repository.to_string(),
        tag: tag.to_string(),
    })
}

fn scope(
    state: &Shared,
    registry: &RegistryName,
    task: Option<&str>,
    base: Option<&str>,
) -> Result<PauseScope, ApiError> {
    match (task, base) {
        (None, None) => Ok(PauseScope::All),
        (Some(task), None) => Ok(PauseScope::Task(from_api::task_name(task)?)),
        (None, Some(base)) => Ok(PauseScope::Base(image_tag(state, registry, base)?)),
        (Some(_), Some(_)) => {
            Err(ApiError::invalid("a pause is of a task or of a base").at("base"))
        }
    }
}

/// Tags of other registries that are listed at most.
const WATCHES_MAX: usize = 10_000;

/// The tags of other registries that tasks are built on, and that are asked for.
#[utoipa::path(
    get, path = "/triggerWatches", operation_id = "listTriggerWatches", tag = "Triggers",
    responses((status = OK, body = api::Page<api::TriggerWatch>)),
)]
pub(crate) async fn watches(
    State(state): State<Shared>,
    Path(registry): Path<String>,
) -> Result<axum::Json<api::Page<api::TriggerWatch>>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let watches = state.triggers.watches(&registry, WATCHES_MAX).await?;
    let value = watches.iter().map(to_api::trigger_watch).collect();
    Ok(axum::Json(api::Page { value, next_link: None }))
}

/// What triggers have seen and decided, the newest first.
#[utoipa::path(
    get, path = "/triggerEvents", operation_id = "listTriggerEvents", tag = "Triggers",
    params(LedgerQuery),
    responses((status = OK, body = api::Page<api::TriggerEvent>)),
)]
pub(crate) async fn list(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Query(query): Query<LedgerQuery>,
) -> Result<axum::Json<api::Page<api::TriggerEvent>>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let decision = query.decision.as_deref().map(|text| {
        let wrong = || format!("`{}` is no decision of a trigger", from_api::cut(text));
        text.parse().map_err(|_| ApiError::invalid(wrong()).at("decision"))
    });
    let filter = LedgerFilter {
        task: query.task_name.as_deref().map(from_api::task_name).transpose()?,
        decision: decision.transpose()?,
        before: query.skip,
    };
    let limit = query.top.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX);
    let mut entries = state.triggers.ledger(&registry, &filter, limit + 1).await?;
    let more = entries.len() > limit;
    entries.truncate(limit);
    let next = entries.last().filter(|_| more).map(|last| {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("$top", &limit.to_string());
        query.append_pair("$skiptoken", &last.number.to_string());
        if let Some(task) = &filter.task {
            query.append_pair("taskName", task.as_str());
        }
        if let Some(decision) = filter.decision {
            query.append_pair("decision", decision.as_str());
        }
        format!("/api/v1/registries/{registry}/triggerEvents?{}", query.finish())
    });
    let value = entries.iter().map(to_api::trigger_event).collect();
    Ok(axum::Json(api::Page { value, next_link: next }))
}
