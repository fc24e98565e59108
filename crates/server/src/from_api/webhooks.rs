//! Webhooks, from the wire.

use std::collections::BTreeSet;

use control::{
    BadSigningSecret, BadWebhookAction, BadWebhookName, BadWebhookScope, SigningSecret,
    WebhookAction, WebhookFormat, WebhookName, WebhookProperties,
};

use super::{cut, enabled};
use crate::error::ApiError;

pub(crate) fn webhook_name(text: &str) -> Result<WebhookName, ApiError> {
    text.parse().map_err(|error: BadWebhookName| ApiError::invalid(error.to_string()))
}

/// What a webhook is to be: what a request leaves out is as it was, or has its default.
pub(crate) fn webhook(
    body: api::Webhook,
    known: Option<&WebhookProperties>,
) -> Result<WebhookProperties, ApiError> {
    let given = body.properties;
    let at = |member: &str| format!("properties.{member}");
    let mut webhook = match known {
        Some(known) => known.clone(),
        None => WebhookProperties { enabled: true, ..WebhookProperties::default() },
    };
    match given.service_uri {
        Some(address) => {
            // Values that nobody may read are not for another receiver.
            let is_other =
                !webhook.headers.is_empty() && origin(&address.0) != origin(&webhook.address);
            if is_other && given.custom_headers.is_none() {
                let message = "another receiver does not get the headers of the one before";
                return Err(ApiError::invalid(message)
                    .at(at("serviceUri"))
                    .hint("give the headers again with the address, or none: `customHeaders`"));
            }
            webhook.address = address.0;
        }
        None if known.is_some() => (),
        None => {
            let error = ApiError::invalid("a webhook needs the address that is posted to");
            return Err(error.at(at("serviceUri")));
        }
    }
    if let Some(headers) = given.custom_headers {
        webhook.headers = headers.into_iter().map(|(name, value)| (name, value.0)).collect();
    }
    if let Some(secret) = given.signing_secret {
        let secret = (!secret.0.is_empty()).then(|| SigningSecret::new(secret.0)).transpose();
        let bad = |error: BadSigningSecret| ApiError::invalid(error.to_string());
        webhook.signing_secret = secret.map_err(|error| bad(error).at(at("signingSecret")))?;
    }
    if let Some(actions) = given.actions {
        webhook.actions = self::actions(&actions).map_err(|error| error.at(at("actions")))?;
    }
    if let Some(status) = given.status {
        webhook.enabled = enabled(Some(&status)).map_err(|error| error.at(at("status")))?;
    }
    if let Some(scope) = given.scope {
        let scope = scope.parse();
        let bad = |error: BadWebhookScope| ApiError::invalid(error.to_string()).at(at("scope"));
        webhook.scope = scope.map_err(bad)?;
    }
    if let Some(format) = given.format {
        webhook.format = self::format(&format).map_err(|error| error.at(at("format")))?;
    }
    webhook.overdue_days = given.overdue_days.or(webhook.overdue_days);
    Ok(webhook)
}

/// Scheme, host and port of an address.
fn origin(address: &str) -> Option<url::Origin> {
    url::Url::parse(address).ok().map(|address| address.origin())
}

fn actions(texts: &[String]) -> Result<BTreeSet<WebhookAction>, ApiError> {
    let actions = texts.iter().map(|text| {
        text.to_ascii_lowercase().parse().map_err(|error: BadWebhookAction| {
            ApiError::invalid(error.to_string()).hint(
                "say `push`, `delete`, `run_finished`, `run_failed`, `run_fired` or \
                     `task_overdue`",
            )
        })
    });
    actions.collect()
}

fn format(text: &str) -> Result<WebhookFormat, ApiError> {
    match text.to_ascii_lowercase().as_str() {
        "acr" => Ok(WebhookFormat::Acr),
        "cloudevents" => Ok(WebhookFormat::CloudEvents),
        _ => Err(ApiError::invalid(format!("`{}` is not `acr` or `cloudevents`", cut(text)))),
    }
}
