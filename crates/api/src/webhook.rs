//! Who is told of what happens in a registry, and what they were told.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::SecretValue;

/// Somebody who is told of what happens in a registry. Requests leave the envelope out.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Webhook {
    #[serde(default)]
    #[schema(read_only)]
    pub id: String,
    #[serde(default)]
    #[schema(read_only)]
    pub name: String,
    #[serde(default, rename = "type")]
    #[schema(read_only)]
    pub kind: String,
    #[serde(default)]
    pub properties: WebhookProperties,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WebhookProperties {
    /// Where it is posted to, `http` or `https`. Told by `getCallbackConfig` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only, value_type = Option<String>)]
    pub service_uri: Option<SecretValue>,
    /// What is sent along, all of it. Values are never told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only, value_type = Option<BTreeMap<String, String>>)]
    pub custom_headers: Option<BTreeMap<String, SecretValue>>,
    /// Ours: signs what is posted, as Standard Webhooks does; never told. Empty takes it away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only, value_type = Option<String>)]
    pub signing_secret: Option<SecretValue>,
    /// `push`, `delete`; ours: `run_finished`, `run_failed`, `run_fired`, `task_overdue`.
    /// `quarantine`, `chart_push` and `chart_delete` are taken, and never happen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actions: Option<Vec<String>>,
    /// `enabled` or `disabled`; enabled if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Images that it is about: `app:*`, `app:tag`, `app` for `app:latest`, `app*`; all if empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Ours: `acr`, or `cloudevents` for CloudEvents 1.0; `acr` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Ours: how long a task with triggers may not succeed until `task_overdue` is told, 1 to 365
    /// days; 7 if nobody has said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overdue_days: Option<u32>,
    /// Ours: whether it has a signing secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub is_signed: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub provisioning_state: Option<String>,
}

/// Where a webhook is posted to.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CallbackConfig {
    /// A password in it is hidden.
    pub service_uri: String,
    /// By name; values are hidden.
    pub custom_headers: BTreeMap<String, String>,
}

/// The delivery that a ping makes.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WebhookPing {
    pub id: String,
}

/// Something that a webhook was told, or is to be told.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookEvent {
    pub id: String,
    pub event_request_message: WebhookRequestMessage,
    /// What the receiver said last, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_response_message: Option<WebhookResponseMessage>,
    /// Ours: `Waiting`, `Delivered` or `Failed`.
    pub state: String,
    /// Ours: when it is tried next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub next_attempt: Option<String>,
    /// Ours: the oldest first.
    #[serde(default)]
    pub attempts: Vec<WebhookAttempt>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookRequestMessage {
    /// The body.
    #[schema(value_type = Object)]
    pub content: serde_json::Value,
    /// As they were sent last; values of the webhook's own are hidden.
    pub headers: BTreeMap<String, String>,
    pub method: String,
    /// A password in it is hidden.
    pub request_uri: String,
    pub version: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookResponseMessage {
    /// As much of the body as is kept.
    pub content: String,
    pub headers: BTreeMap<String, String>,
    pub reason_phrase: String,
    pub status_code: String,
    pub version: String,
}

/// One time that a delivery was tried.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookAttempt {
    #[schema(format = DateTime)]
    pub time: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u16>,
    /// Why there was no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
