//! Where git hosts tell of commits and pull requests.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode};
use control::{ControlError, Decision, SourceDelivery, StoredTask, TaskDefinition};
use oci::RegistryName;
use registry::{Class, Peer};

use super::{Json, Path};
use crate::access::Principal;
use crate::audit::{Act, Detail, Route};
use crate::error::ApiError;
use crate::hooks;
use crate::state::Shared;
use crate::{from_api, to_api};

/// How often a task is read again that somebody else has changed.
const CHANGE_ATTEMPTS: usize = 5;

/// Takes a delivery of a git host for a source trigger of a task.
///
/// GitHub, GitLab, Gitea, Forgejo, Bitbucket and Azure DevOps send what they send; others sign a body of
/// ours. It is proven by the secret of the trigger: signed with it (`X-Hub-Signature-256`, `X-Hub-Signature`,
/// `X-Gitea-Signature`, `webhook-signature`), or with it as `X-Gitlab-Token` or as the password of HTTP's
/// basic authentication.
#[utoipa::path(
    post, path = "/hooks/{registry}/{task}/{trigger}", operation_id = "deliver", tag = "Triggers",
    request_body(content = Object, description = "As the host has it", content_type = "application/json"),
    responses((status = OK, body = api::DeliveryAnswer)),
)]
pub(crate) async fn deliver(
    State(state): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path((registry, task, trigger)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<axum::Json<api::DeliveryAnswer>, ApiError> {
    state.access.count(&Principal::Anonymous, peer, Class::Write)?;
    let place = format!("/hooks/{registry}/{task}/{trigger}");
    let answer = take(&state, peer, (&registry, &task, &trigger), &headers, &body).await;
    if let Err(error) = &answer
        && matches!(error.status, StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND)
    {
        let act = Act {
            registry: state.registry(&registry).ok().map(|(registry, _)| registry),
            principal: None,
            peer,
            method: Method::POST,
            path: place,
            route: Route::Other,
            detail: None,
        };
        state.auditor.note(act, error.status).await;
    }
    answer
}

async fn take(
    state: &Shared,
    peer: Peer,
    (registry, task, trigger): (&str, &str, &str),
    headers: &HeaderMap,
    body: &[u8],
) -> Result<axum::Json<api::DeliveryAnswer>, ApiError> {
    let found = find(state, (registry, task, trigger)).await;
    let (registry, task, name, secret) = match found {
        Ok(found) => found,
        Err(error) => {
            // Names are not to be guessed either.
            state.access.was_wrong(peer)?;
            return Err(error);
        }
    };
    let secret = secret.ok_or_else(|| {
        ApiError::unauthorized("the trigger takes no deliveries: it has no secret")
            .hint("`refit task webhook` makes one")
    })?;
    let now = state.clock.now() / 1000;
    let proven = match hooks::prove(headers, body, &secret, now) {
        Ok(proven) => proven,
        Err(error) => {
            state.access.was_wrong(peer)?;
            return Err(ApiError::unauthorized(error.to_string())
                .hint("`refit task webhook` makes a new secret, which the host has to be given"));
        }
    };
    if state.leaving.is_cancelled() {
        return Err(ApiError::leaving());
    }
    let content = hooks::content(headers, body);
    let (host, event) = hooks::sender(headers, &content);
    let delivery = SourceDelivery::parse(host, &event, &content)
        .map_err(|error| ApiError::invalid(error.to_string()))?;
    let delivered =
        state.triggers.deliver(&registry, &task.name, &name, &delivery, &proven.key).await?;
    if delivered.decision == Decision::Fired {
        tracing::info!(%registry, task = %task.name, "a delivery has started a run");
    }
    Ok(axum::Json(api::DeliveryAnswer {
        decision: delivered.decision.as_str().into(),
        reason: delivered.reason,
        run_id: delivered.run.map(|run| run.to_string()),
    }))
}

/// The task and the name of its trigger, and the secret.
async fn find(
    state: &Shared,
    (registry, task, trigger): (&str, &str, &str),
) -> Result<(RegistryName, StoredTask, String, Option<String>), ApiError> {
    let none = || ApiError::not_found("a source trigger of that name");
    let (registry, _) = state.registry(registry).map_err(|_| none())?;
    let task = from_api::task_name(task).map_err(|_| none())?;
    let task = state.tasks.get(&registry, &task).await?.ok_or_else(none)?;
    let found = task.definition.triggers.source(trigger).ok_or_else(none)?;
    let (name, secret) = (found.name.clone(), found.secret.clone());
    Ok((registry, task, name, secret))
}

/// Makes a new secret for a source trigger, and tells it this once. The one before means nothing any more.
#[utoipa::path(
    post, path = "/tasks/{name}/generateWebhookSecret", operation_id = "generateWebhookSecret",
    tag = "Triggers",
    request_body = api::GenerateWebhookSecretRequest,
    responses((status = OK, body = api::WebhookSecret)),
)]
pub(crate) async fn generate(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
    Json(body): Json<api::GenerateWebhookSecretRequest>,
) -> Result<(Extension<Detail>, axum::Json<api::WebhookSecret>), ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let name = from_api::task_name(&name)?;
    let secret = crate::keys::random_secret().map_err(|error| ApiError::interrupted(&error))?;
    for attempt in 1.. {
        let known = super::tasks::find(&state, &registry, &name).await?;
        let mut definition: TaskDefinition = known.definition.clone();
        let wanted = body.source_trigger_name.as_deref();
        let trigger = from_api::source_trigger(&mut definition.triggers.sources, wanted)?;
        trigger.secret = Some(secret.clone());
        let path = to_api::webhook_path(&registry, &name, &trigger.name);
        let detail = Detail(format!("secret of source trigger {}", trigger.name));
        match state.tasks.put(&registry, &name, &definition, Some(&known)).await {
            Ok(_) => {
                let url = state
                    .public_url
                    .as_ref()
                    .map(|url| format!("{}{path}", url.trim_end_matches('/')));
                let made = api::WebhookSecret { webhook_path: path, webhook_url: url, secret };
                return Ok((Extension(detail), axum::Json(made)));
            }
            Err(ControlError::Conflict { .. }) if attempt < CHANGE_ATTEMPTS => (),
            Err(error) => return Err(error.into()),
        }
    }
    unreachable!("the loop ends by returning")
}
