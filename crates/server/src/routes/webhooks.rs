//! Webhooks of a registry, and what they were told.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use control::{Webhook, WebhookName, WebhookProperties};
use oci::RegistryName;
use serde::Deserialize;
use utoipa::IntoParams;

use super::tasks::ListQuery;
use super::tokens::page;
use super::{Json, Query};
use crate::error::ApiError;
use crate::openapi::Refusal;
use crate::state::Shared;
use crate::{from_api, to_api, webhooks};

const EVENTS_DEFAULT: usize = 100;
const EVENTS_MAX: usize = 1_000;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventsQuery {
    /// How many at most, up to 1000; 100 if absent.
    #[serde(rename = "$top")]
    top: Option<usize>,
}

/// Lists webhooks by name.
#[utoipa::path(
    get, path = "/webhooks", operation_id = "listWebhooks", tag = "Webhooks",
    params(ListQuery),
    responses((status = OK, body = api::Page<api::Webhook>)),
)]
pub(crate) async fn list(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<api::Page<api::Webhook>>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let after = query.skip_token.as_deref().map(from_api::webhook_name).transpose()?;
    let top = query.page_size();
    let webhooks = state.webhooks.list(&registry, after.as_ref(), top + 1).await?;
    let route = format!("/api/v1/registries/{registry}/webhooks");
    let webhooks = webhooks.iter().map(to_api::webhook).collect();
    Ok(axum::Json(page(&route, top, webhooks, |webhook: &api::Webhook| &webhook.name)))
}

/// A webhook, without where it is posted to.
#[utoipa::path(
    get, path = "/webhooks/{name}", operation_id = "getWebhook", tag = "Webhooks",
    responses((status = OK, body = api::Webhook)),
)]
pub(crate) async fn show(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
) -> Result<axum::Json<api::Webhook>, ApiError> {
    Ok(axum::Json(to_api::webhook(&find(&state, &registry, &name).await?)))
}

/// Makes a webhook, or another one of the same name.
#[utoipa::path(
    put, path = "/webhooks/{name}", operation_id = "putWebhook", tag = "Webhooks",
    request_body = api::Webhook,
    responses((status = OK, body = api::Webhook), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn put(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
    Json(body): Json<api::Webhook>,
) -> Result<axum::Json<api::Webhook>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let name = from_api::webhook_name(&name)?;
    let properties = from_api::webhook(body, None)?;
    save(&state, &registry, &name, &properties, None).await
}

/// Changes what is given of a webhook. Disabled, it is not told what waits for it.
#[utoipa::path(
    patch, path = "/webhooks/{name}", operation_id = "updateWebhook", tag = "Webhooks",
    request_body = api::Webhook,
    responses((status = OK, body = api::Webhook), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn update(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
    Json(body): Json<api::Webhook>,
) -> Result<axum::Json<api::Webhook>, ApiError> {
    let webhook = find(&state, &registry, &name).await?;
    let properties = from_api::webhook(body, Some(&webhook.properties))?;
    save(&state, &webhook.registry, &webhook.name, &properties, Some(&webhook)).await
}

async fn save(
    state: &Shared,
    registry: &RegistryName,
    name: &WebhookName,
    properties: &WebhookProperties,
    known: Option<&Webhook>,
) -> Result<axum::Json<api::Webhook>, ApiError> {
    webhooks::check(&state.poster, properties)?;
    let webhook = state.webhooks.put(registry, name, properties, known).await?;
    Ok(axum::Json(to_api::webhook(&webhook)))
}

/// Deletes a webhook, with what it was told.
#[utoipa::path(
    delete, path = "/webhooks/{name}", operation_id = "deleteWebhook", tag = "Webhooks",
    responses((status = NO_CONTENT)),
)]
pub(crate) async fn delete(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    state.webhooks.delete(&registry, &from_api::webhook_name(&name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tells a webhook that it is there; what it said is among its events.
#[utoipa::path(
    post, path = "/webhooks/{name}/ping", operation_id = "pingWebhook", tag = "Webhooks",
    responses((status = OK, body = api::WebhookPing)),
)]
pub(crate) async fn ping(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
) -> Result<axum::Json<api::WebhookPing>, ApiError> {
    let webhook = find(&state, &registry, &name).await?;
    let id = state.webhooks.ping(&webhook, &webhooks::host_of(&state)).await?;
    Ok(axum::Json(api::WebhookPing { id: id.to_string() }))
}

/// What a webhook was told within a week, the newest first.
#[utoipa::path(
    post, path = "/webhooks/{name}/listEvents", operation_id = "listWebhookEvents",
    tag = "Webhooks", params(EventsQuery),
    responses((status = OK, body = api::Page<api::WebhookEvent>)),
)]
pub(crate) async fn list_events(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
    Query(query): Query<EventsQuery>,
) -> Result<axum::Json<api::Page<api::WebhookEvent>>, ApiError> {
    let webhook = find(&state, &registry, &name).await?;
    let top = query.top.unwrap_or(EVENTS_DEFAULT).clamp(1, EVENTS_MAX);
    let deliveries = state.webhooks.deliveries(&webhook.registry, &webhook.name, top).await?;
    let value = deliveries.iter().map(|event| to_api::webhook_event(event, &webhook)).collect();
    Ok(axum::Json(api::Page { value, next_link: None }))
}

/// Where a webhook is posted to.
#[utoipa::path(
    post, path = "/webhooks/{name}/getCallbackConfig", operation_id = "getWebhookCallbackConfig",
    tag = "Webhooks",
    responses((status = OK, body = api::CallbackConfig)),
)]
pub(crate) async fn callback_config(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
) -> Result<axum::Json<api::CallbackConfig>, ApiError> {
    Ok(axum::Json(to_api::callback_config(&find(&state, &registry, &name).await?)))
}

async fn find(state: &Shared, registry: &str, name: &str) -> Result<Webhook, ApiError> {
    let (registry, _) = state.registry(registry)?;
    let name = from_api::webhook_name(name)?;
    let webhook = state.webhooks.get(&registry, &name).await?;
    webhook.ok_or_else(|| ApiError::not_found(format!("webhook `{name}`")))
}
