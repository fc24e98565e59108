//! Stored tasks.

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use control::{
    AccountKind, AccountName, AssignedAccount, ControlError, Identity, Operation, OwnIdentity,
    RegistryLogin, StoredTask, TaskDefinition, TaskIdentity, TaskName, TaskStep,
};
use oci::RegistryName;
use serde::Deserialize;
use serde_json::Value;
use utoipa::IntoParams;
use uuid::Uuid;

use super::{Json, Query};
use crate::access::{Needs, Principal};
use crate::error::ApiError;
use crate::openapi::Refusal;
use crate::state::Shared;
use crate::{from_api, log_artifacts, to_api};

/// Tasks on one page.
const PAGE_DEFAULT: usize = 100;
const PAGE_MAX: usize = 1000;

/// The only system task.
const SYSTEM_TASK: &str = "quicktask";

/// How often a change is tried when others change the same task.
const CHANGE_ATTEMPTS: u32 = 5;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// How many on one page, at most 1000; 100 if absent.
    #[serde(rename = "$top")]
    top: Option<usize>,
    /// The name of the last one on the page before.
    #[serde(rename = "$skiptoken")]
    pub(crate) skip_token: Option<String>,
}

impl ListQuery {
    pub(crate) fn page_size(&self) -> usize {
        self.top.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX)
    }
}

/// Lists tasks by name.
#[utoipa::path(
    get, path = "/tasks", operation_id = "listTasks", tag = "Tasks",
    params(ListQuery),
    responses((status = OK, body = api::Page<api::Task>)),
)]
pub(crate) async fn list(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<api::Page<api::Task>>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let after = query.skip_token.as_deref().map(from_api::task_name).transpose()?;
    let top = query.page_size();
    let mut tasks = state.tasks.list(&registry, after.as_ref(), top + 1).await?;
    let more = tasks.len() > top;
    tasks.truncate(top);
    let next_link = tasks.last().filter(|_| more).map(|last| {
        format!("/api/v1/registries/{registry}/tasks?%24top={top}&%24skiptoken={}", last.name)
    });
    Ok(axum::Json(api::Page { value: tasks.iter().map(to_api::task).collect(), next_link }))
}

/// A task without its secrets. A `PUT` of the answer keeps them.
#[utoipa::path(
    get, path = "/tasks/{name}", operation_id = "getTask", tag = "Tasks",
    responses((status = OK, body = api::Task)),
)]
pub(crate) async fn show(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
) -> Result<axum::Json<api::Task>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let task = find(&state, &registry, &from_api::task_name(&name)?).await?;
    let next = state.triggers.next_of(&task).await?;
    Ok(axum::Json(to_api::with_next(to_api::task(&task), &task, &next, state.clock.now())))
}

/// The task with the user names of its logins. Nobody is shown a password or another secret.
#[utoipa::path(
    post, path = "/tasks/{name}/listDetails", operation_id = "getTaskDetails", tag = "Tasks",
    responses((status = OK, body = api::Task)),
)]
pub(crate) async fn details(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
) -> Result<axum::Json<api::Task>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let task = find(&state, &registry, &from_api::task_name(&name)?).await?;
    Ok(axum::Json(to_api::task_details(&task)))
}

/// Creates a task or replaces it.
#[utoipa::path(
    put, path = "/tasks/{name}", operation_id = "putTask", tag = "Tasks",
    request_body = api::Task,
    responses((status = OK, body = api::Task), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn put(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
    Extension(principal): Extension<Principal>,
    Json(body): Json<api::Task>,
) -> Result<axum::Json<api::Task>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let name = from_api::task_name(&name)?;
    for attempt in 1.. {
        let known = state.tasks.get(&registry, &name).await?;
        let definition =
            from_api::task_definition(body.clone(), known.as_ref(), &state.build_defaults)?;
        let wanted = body.identity.as_ref();
        let identity = identity(&state, &principal, wanted, known.as_ref()).await?;
        let definition = TaskDefinition { identity, ..definition };
        let definition = checked(&state, &registry, &name, definition).await?;
        match state.tasks.put(&registry, &name, &definition, known.as_ref()).await {
            Ok(task) => {
                forget_lost(&state, &registry, &name, task.definition.identity.system).await;
                return Ok(axum::Json(to_api::task(&task)));
            }
            Err(ControlError::Conflict { .. }) if attempt < CHANGE_ATTEMPTS => (),
            Err(error) => return Err(error.into()),
        }
    }
    unreachable!("the loop ends by returning")
}

/// Changes of a task what is named.
#[utoipa::path(
    patch, path = "/tasks/{name}", operation_id = "updateTask", tag = "Tasks",
    request_body(content = Object, description = "Any members of a `Task`; `null` takes one away", content_type = "application/json"),
    responses((status = OK, body = api::Task), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn update(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
    Extension(principal): Extension<Principal>,
    Json(mut patch): Json<Value>,
) -> Result<axum::Json<api::Task>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let name = from_api::task_name(&name)?;
    if !patch.is_object() {
        return Err(ApiError::invalid("a change of a task is an object"));
    }
    if let Some(registries) = patch.pointer_mut("/properties/credentials/customRegistries") {
        from_api::name_hosts(registries);
    }
    for attempt in 1.. {
        let known = find(&state, &registry, &name).await?;
        let mut whole = serde_json::to_value(to_api::task(&known))
            .map_err(|error| ApiError::interrupted(&error))?;
        from_api::loosen_sources(&mut whole, &known);
        from_api::merge(&mut whole, patch.clone());
        let body: api::Task = serde_json::from_value(whole)
            .map_err(|error| ApiError::invalid(format!("the change is not right: {error}")))?;
        let wanted = body.identity.as_ref();
        let identity = identity(&state, &principal, wanted, Some(&known)).await?;
        let definition = from_api::task_definition(body, Some(&known), &state.build_defaults)?;
        let definition = TaskDefinition { identity, ..definition };
        let definition = checked(&state, &registry, &name, definition).await?;
        match state.tasks.put(&registry, &name, &definition, Some(&known)).await {
            Ok(task) => {
                forget_lost(&state, &registry, &name, task.definition.identity.system).await;
                return Ok(axum::Json(to_api::task(&task)));
            }
            Err(ControlError::Conflict { .. }) if attempt < CHANGE_ATTEMPTS => (),
            Err(error) => return Err(error.into()),
        }
    }
    unreachable!("the loop ends by returning")
}

/// Deletes a task. Its runs stay.
#[utoipa::path(
    delete, path = "/tasks/{name}", operation_id = "deleteTask", tag = "Tasks",
    responses((status = NO_CONTENT)),
)]
pub(crate) async fn delete(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let name = from_api::task_name(&name)?;
    state.tasks.delete(&registry, &name).await?;
    forget_lost(&state, &registry, &name, None).await;
    Ok(StatusCode::NO_CONTENT)
}

/// Forgets what a task had as itself, if that is somebody else by now. Nobody else would have it; it
/// would only be listed.
async fn forget_lost(
    state: &Shared,
    registry: &RegistryName,
    name: &TaskName,
    identity: Option<Uuid>,
) {
    if let Err(error) = state.access.permissions.forget_task(registry, name, identity).await {
        tracing::warn!(%error, task = %name, "its scope map is still listed");
    }
}

/// A task that is there.
pub(crate) async fn find(
    state: &Shared,
    registry: &RegistryName,
    name: &TaskName,
) -> Result<StoredTask, ApiError> {
    let task = state.tasks.get(registry, name).await?;
    task.ok_or_else(|| ApiError::not_found(format!("task `{name}`")))
}

/// A definition that can be stored under a name, as far as only the server knows.
async fn checked(
    state: &Shared,
    registry: &RegistryName,
    name: &TaskName,
    definition: TaskDefinition,
) -> Result<TaskDefinition, ApiError> {
    let own = crate::triggers::own_names(state);
    if let Some(circle) = state.triggers.circle_of(registry, &own, name, &definition).await? {
        let path = circle.iter().map(|task| format!("`{task}`")).collect::<Vec<_>>().join(" -> ");
        let message = format!("these tasks would start each other for ever: {path}");
        return Err(ApiError::invalid(message).at("trigger.baseImageTrigger").hint(
            "each makes what the next one is built on; disable the base-image trigger of one of them",
        ));
    }
    let is_system = definition.step == TaskStep::System;
    if is_system && *name != from_api::task_name(SYSTEM_TASK)? {
        let message = format!("only the task `{SYSTEM_TASK}` can be a system task");
        return Err(ApiError::invalid(message).at("isSystemTask"));
    }
    refuse_copies(state, registry, &definition)?;
    state.refuse_own_logins(&definition.logins)?;
    check_login_identities(&definition)?;
    check_pool(state, registry, &definition).await?;
    log_artifacts::check(state, registry, definition.log_template.as_deref())?;
    Ok(definition)
}

/// The identities that a request asks for. Those that the task has already stay the same.
async fn identity(
    state: &Shared,
    principal: &Principal,
    wanted: Option<&api::IdentityProperties>,
    known: Option<&StoredTask>,
) -> Result<TaskIdentity, ApiError> {
    let wanted = from_api::wanted_identity(wanted)?;
    let known = known.map(|task| task.definition.identity.clone()).unwrap_or_default();
    let system = wanted.system.then(|| known.system.unwrap_or_else(Uuid::new_v4));
    let mut accounts = Vec::with_capacity(wanted.accounts.len());
    for name in wanted.accounts {
        accounts.push(match known.accounts.iter().find(|account| account.name == name) {
            // One that was made anew is another one, for who may say so.
            Some(known) => match assigned(state, principal, name).await {
                Ok(assigned) => assigned,
                Err(_) => known.clone(),
            },
            None => assigned(state, principal, name).await?,
        });
    }
    Ok(TaskIdentity { system, accounts })
}

/// An account that a task is to be from now on. Whoever may change the task can then be it.
async fn assigned(
    state: &Shared,
    principal: &Principal,
    name: AccountName,
) -> Result<AssignedAccount, ApiError> {
    const MEMBER: &str = "identity.userAssignedIdentities";
    let is_itself =
        matches!(principal, Principal::Known(Identity::Account(account)) if *account == name);
    if !is_itself {
        let needs = Needs::May(Operation::Govern);
        // An account may be more elsewhere than here.
        state.access.require(principal, None, None, needs).await?;
    }
    let found = state.access.permissions.account(&name).await?;
    match found {
        Some(account) if account.kind == AccountKind::ServicePrincipal => {
            Ok(AssignedAccount { id: account.id(), name: account.name })
        }
        Some(_) => {
            let message =
                format!("account `{name}` is a person's: a task can be a service principal");
            Err(ApiError::invalid(message).at(MEMBER))
        }
        None => Err(ApiError::invalid(format!("there is no account `{name}`"))
            .at(MEMBER)
            .hint("`refit account create NAME --service-principal` makes one")),
    }
}

const ASSIGN_HINT: &str = "`refit task identity assign` gives it one";

/// A login by an identity that the task does not have would fail with each run.
fn check_login_identities(definition: &TaskDefinition) -> Result<(), ApiError> {
    let TaskDefinition { logins, identity, .. } = definition;
    let own = match logins.own_identity {
        None => Ok(()),
        Some(OwnIdentity::Caller) => {
            Err(("a task has no caller: triggers start it too".to_owned(), "say `[system]`"))
        }
        Some(OwnIdentity::System) if identity.system.is_some() => Ok(()),
        Some(OwnIdentity::System) => {
            Err(("the task has no identity of its own".to_owned(), ASSIGN_HINT))
        }
        Some(OwnIdentity::Of(id)) => match identity.chosen(Some(id)) {
            Some(_) => Ok(()),
            None => Err((format!("the task has no identity `{id}`"), ASSIGN_HINT)),
        },
    };
    own.map_err(|(message, hint)| {
        ApiError::invalid(message).at("credentials.sourceRegistry.identity").hint(hint)
    })?;
    for (host, login) in &logins.others {
        let RegistryLogin::Identity { identity: wanted } = login else { continue };
        let has_it = match wanted {
            None => identity.system.is_some(),
            Some(id) => identity.chosen(Some(*id)).is_some(),
        };
        if !has_it {
            let message = match wanted {
                None => "the task has no identity of its own".to_owned(),
                Some(id) => format!("the task has no identity `{id}`"),
            };
            return Err(ApiError::invalid(message)
                .at(format!("credentials.customRegistries.{host}"))
                .hint(ASSIGN_HINT));
        }
    }
    Ok(())
}

/// What quick builds and quick runs of a registry are to have that say nothing else, if anybody
/// has said so.
pub(crate) async fn of_quick_runs(
    state: &Shared,
    registry: &RegistryName,
) -> Result<Option<TaskDefinition>, ApiError> {
    let task = state.tasks.get(registry, &from_api::task_name(SYSTEM_TASK)?).await?;
    let definition = task.map(|task| task.definition);
    let now = state.clock.now();
    Ok(definition.filter(|definition| {
        definition.step == TaskStep::System && definition.asleep(now).is_none()
    }))
}

/// An image that is named at once is refused at once.
fn refuse_copies(
    state: &Shared,
    registry: &RegistryName,
    definition: &control::TaskDefinition,
) -> Result<(), ApiError> {
    match &definition.step {
        TaskStep::Docker { image_names, .. } => state.refuse_copies(registry, image_names),
        TaskStep::File { .. } | TaskStep::System => Ok(()),
    }
}

/// Runs of a task whose pool is not there could not be queued.
async fn check_pool(
    state: &Shared,
    registry: &RegistryName,
    definition: &control::TaskDefinition,
) -> Result<(), ApiError> {
    let Some(pool) = &definition.pool else { return Ok(()) };
    match state.pools.get(registry, pool).await? {
        Some(_) => Ok(()),
        None => Err(ApiError::invalid(format!("there is no agent pool `{pool}`"))
            .at("agentPoolName")
            .hint("`refit agentpool create` makes it")),
    }
}
