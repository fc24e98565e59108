//! Task runs: runs that are declared by name (runs.md section 2.3).

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use control::{TaskRun, TaskRunDeclaration, TaskRunName};
use oci::RegistryName;
use serde_json::Value;

use super::tasks::ListQuery;
use super::{Json, Query, runs};
use crate::access::Principal;
use crate::error::ApiError;
use crate::openapi::Refusal;
use crate::state::Shared;
use crate::{from_api, to_api};

/// Bytes of a `forceUpdateTag`.
const TAG_MAX: usize = 256;

/// Lists task runs by name.
#[utoipa::path(
    get, path = "/taskRuns", operation_id = "listTaskRuns", tag = "Task runs",
    params(ListQuery),
    responses((status = OK, body = api::Page<api::TaskRun>)),
)]
pub(crate) async fn list(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<api::Page<api::TaskRun>>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let after = query.skip_token.as_deref().map(name).transpose()?;
    let top = query.page_size();
    let mut found = state.task_runs.list(&registry, after.as_ref(), top + 1).await?;
    let more = found.len() > top;
    found.truncate(top);
    let next_link = found.last().filter(|_| more).map(|last| {
        format!("/api/v1/registries/{registry}/taskRuns?%24top={top}&%24skiptoken={}", last.name)
    });
    let mut value = Vec::with_capacity(found.len());
    for task_run in &found {
        value.push(shown(&state, task_run).await?);
    }
    Ok(axum::Json(api::Page { value, next_link }))
}

/// A task run with its run, as long as the record of that is kept.
#[utoipa::path(
    get, path = "/taskRuns/{name}", operation_id = "getTaskRun", tag = "Task runs",
    responses((status = OK, body = api::TaskRun)),
)]
pub(crate) async fn show(
    State(state): State<Shared>,
    Path((registry, text)): Path<(String, String)>,
) -> Result<axum::Json<api::TaskRun>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let task_run = find(&state, &registry, &name(&text)?).await?;
    Ok(axum::Json(shown(&state, &task_run).await?))
}

/// The same as the task run itself: nobody is shown a secret.
#[utoipa::path(
    post, path = "/taskRuns/{name}/listDetails", operation_id = "getTaskRunDetails",
    tag = "Task runs",
    responses((status = OK, body = api::TaskRun)),
)]
pub(crate) async fn details(
    state: State<Shared>,
    path: Path<(String, String)>,
) -> Result<axum::Json<api::TaskRun>, ApiError> {
    show(state, path).await
}

/// Declares a run: it is queued unless the same one was declared before.
#[utoipa::path(
    put, path = "/taskRuns/{name}", operation_id = "putTaskRun", tag = "Task runs",
    request_body = api::TaskRun,
    responses(
        (status = OK, body = api::TaskRun),
        (status = CONFLICT, response = Refusal),
        (status = TOO_MANY_REQUESTS, response = Refusal),
        (status = SERVICE_UNAVAILABLE, response = Refusal),
    ),
)]
pub(crate) async fn put(
    State(state): State<Shared>,
    Path((registry, text)): Path<(String, String)>,
    Extension(principal): Extension<Principal>,
    Json(body): Json<api::TaskRun>,
) -> Result<axum::Json<api::TaskRun>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let properties = body.properties;
    from_api::refuse_identity(body.identity.as_ref())?;
    let Some(request) = properties.run_request else {
        return Err(ApiError::invalid("a task run needs a run request").at("runRequest"));
    };
    let by = principal.name();
    declare(&state, &registry, name(&text)?, request, properties.force_update_tag, by).await
}

/// Changes the request or the tag, which makes another run.
#[utoipa::path(
    patch, path = "/taskRuns/{name}", operation_id = "updateTaskRun", tag = "Task runs",
    request_body = api::TaskRunUpdate,
    responses(
        (status = OK, body = api::TaskRun),
        (status = CONFLICT, response = Refusal),
        (status = TOO_MANY_REQUESTS, response = Refusal),
        (status = SERVICE_UNAVAILABLE, response = Refusal),
    ),
)]
pub(crate) async fn update(
    State(state): State<Shared>,
    Path((registry, text)): Path<(String, String)>,
    Extension(principal): Extension<Principal>,
    Json(patch): Json<api::TaskRunUpdate>,
) -> Result<axum::Json<api::TaskRun>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let known = find(&state, &registry, &name(&text)?).await?;
    from_api::refuse_identity(patch.identity.as_ref())?;
    let tag = patch.properties.force_update_tag.or_else(|| known.force_update_tag.clone());
    let request = match patch.properties.run_request {
        Some(request) => request,
        None if from_api::lacks_secrets(&known.request) => {
            return Err(ApiError::invalid("the secrets of the run request are not kept")
                .at("runRequest")
                .hint("give the run request again"));
        }
        None => known.request.clone(),
    };
    declare(&state, &registry, known.name, request, tag, principal.name()).await
}

async fn declare(
    state: &Shared,
    registry: &RegistryName,
    name: TaskRunName,
    request: Value,
    force_update_tag: Option<String>,
    started_by: String,
) -> Result<axum::Json<api::TaskRun>, ApiError> {
    if state.leaving.is_cancelled() {
        return Err(ApiError::leaving());
    }
    let tag = force_update_tag.filter(|tag| !tag.is_empty());
    if tag.as_ref().is_some_and(|tag| tag.len() > TAG_MAX) {
        let message = format!("it has more than {TAG_MAX} bytes");
        return Err(ApiError::invalid(message).at("forceUpdateTag"));
    }
    let body: api::RunRequest = serde_json::from_value(request)
        .map_err(|error| ApiError::invalid(error.to_string()).at("runRequest"))?;
    // Without members that mean nothing, in which somebody may have put a secret.
    let kept = serde_json::to_value(&body).map_err(|error| ApiError::interrupted(&error))?;
    let kept = from_api::without_secrets(kept);
    // An unchanged one needs nothing that its run needed, such as an upload that is gone by now.
    if let Some(known) = state.task_runs.get(registry, &name).await?
        && known.request == kept
        && known.force_update_tag == tag
    {
        return Ok(axum::Json(shown(state, &known).await?));
    }
    let mut run = runs::new_run(state, registry, body).await?;
    run.started_by = Some(started_by);
    let declared = TaskRunDeclaration { request: kept, force_update_tag: tag, run };
    let task_run = state.task_runs.put(registry, &name, declared).await?;
    Ok(axum::Json(shown(state, &task_run).await?))
}

/// Deletes a task run. Its run stays.
#[utoipa::path(
    delete, path = "/taskRuns/{name}", operation_id = "deleteTaskRun", tag = "Task runs",
    responses((status = NO_CONTENT)),
)]
pub(crate) async fn delete(
    State(state): State<Shared>,
    Path((registry, text)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    state.task_runs.delete(&registry, &name(&text)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn find(
    state: &Shared,
    registry: &RegistryName,
    name: &TaskRunName,
) -> Result<TaskRun, ApiError> {
    let found = state.task_runs.get(registry, name).await?;
    found.ok_or_else(|| ApiError::not_found(format!("task run `{name}`")))
}

async fn shown(state: &Shared, task_run: &TaskRun) -> Result<api::TaskRun, ApiError> {
    let run = state.task_runs.run_of(task_run).await?;
    Ok(to_api::task_run(task_run, run.as_ref()))
}

fn name(text: &str) -> Result<TaskRunName, ApiError> {
    text.parse().map_err(|error: control::BadTaskRunName| ApiError::invalid(error.to_string()))
}
