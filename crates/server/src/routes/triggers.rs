//! The ledger of triggers: what was seen, what was decided, and why.

use axum::extract::State;
use control::LedgerFilter;
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Path, Query};
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
