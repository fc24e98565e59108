//! Webhooks, to the wire.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use control::{
    Delivery, DeliveryAttempt, DeliveryOutcome, DeliveryState, PostedAnswer, Webhook, WebhookFormat,
};
use url::Url;

use super::time;

const HIDDEN: &str = "***";

/// Without what is secret of it.
pub(crate) fn webhook(webhook: &Webhook) -> api::Webhook {
    let properties = &webhook.properties;
    let format = match properties.format {
        WebhookFormat::Acr => "acr",
        WebhookFormat::CloudEvents => "cloudevents",
    };
    api::Webhook {
        id: format!("/api/v1/registries/{}/webhooks/{}", webhook.registry, webhook.name),
        name: webhook.name.to_string(),
        kind: "Microsoft.ContainerRegistry/registries/webhooks".into(),
        properties: api::WebhookProperties {
            actions: Some(properties.actions.iter().map(ToString::to_string).collect()),
            status: Some(if properties.enabled { "enabled" } else { "disabled" }.into()),
            scope: Some(properties.scope.to_string()),
            format: Some(format.into()),
            overdue_days: properties.overdue_days,
            is_signed: Some(properties.signing_secret.is_some()),
            provisioning_state: Some("Succeeded".into()),
            ..api::WebhookProperties::default()
        },
    }
}

pub(crate) fn callback_config(webhook: &Webhook) -> api::CallbackConfig {
    let names = webhook.properties.headers.keys();
    api::CallbackConfig {
        service_uri: shown(&webhook.properties.address),
        custom_headers: names.map(|name| (name.clone(), HIDDEN.to_owned())).collect(),
    }
}

pub(crate) fn webhook_event(delivery: &Delivery, webhook: &Webhook) -> api::WebhookEvent {
    let last = delivery.attempts.last();
    let mut headers = last.map(|attempt| attempt.headers.clone()).unwrap_or_default();
    headers.entry("Content-Type".to_owned()).or_insert_with(|| delivery.content_type.clone());
    let (state, next_attempt) = match delivery.state {
        DeliveryState::Waits(at) => ("Waiting", Some(time(at))),
        DeliveryState::Delivered => ("Delivered", None),
        DeliveryState::Failed => ("Failed", None),
    };
    api::WebhookEvent {
        id: delivery.id.to_string(),
        event_request_message: api::WebhookRequestMessage {
            content: serde_json::from_str(&delivery.body).unwrap_or_default(),
            headers,
            method: "POST".into(),
            request_uri: shown(&webhook.properties.address),
            version: "1.1".into(),
        },
        event_response_message: last.and_then(answer).map(response),
        state: state.into(),
        next_attempt,
        attempts: delivery.attempts.iter().map(attempt).collect(),
    }
}

fn answer(attempt: &DeliveryAttempt) -> Option<&PostedAnswer> {
    match &attempt.outcome {
        DeliveryOutcome::Answered(answer) => Some(answer),
        DeliveryOutcome::Failed { .. } => None,
    }
}

fn response(answer: &PostedAnswer) -> api::WebhookResponseMessage {
    let status = StatusCode::from_u16(answer.status).ok();
    let reason = status.and_then(|status| status.canonical_reason()).unwrap_or_default();
    api::WebhookResponseMessage {
        content: answer.body.clone(),
        headers: answer.headers.iter().cloned().collect::<BTreeMap<_, _>>(),
        reason_phrase: reason.into(),
        status_code: answer.status.to_string(),
        version: "1.1".into(),
    }
}

fn attempt(attempt: &DeliveryAttempt) -> api::WebhookAttempt {
    let error = match &attempt.outcome {
        DeliveryOutcome::Answered(_) => None,
        DeliveryOutcome::Failed { reason, .. } => Some(reason.clone()),
    };
    let status_code = answer(attempt).map(|answer| answer.status);
    api::WebhookAttempt { time: time(attempt.at), status_code, error }
}

/// An address without the password in it.
fn shown(address: &str) -> String {
    match Url::parse(address) {
        Ok(mut url) if url.password().is_some() => {
            // Neither can fail for an address that has a password.
            let _ = url.set_password(Some(HIDDEN));
            url.to_string()
        }
        _ => address.to_owned(),
    }
}
