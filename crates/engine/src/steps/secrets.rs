//! The secrets that a task file lists, fetched before it is rendered (identity-and-secrets.md
//! section 4).

use std::time::Duration;

use async_trait::async_trait;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use task::{Secret, SecretText, Secrets};

use crate::execute::{Failure, RunEvents};

/// Secrets that are fetched at once.
const AT_ONCE: usize = 5;
/// For one secret.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Knows the values of secrets that a run may have.
#[async_trait]
pub trait SecretSource: Send + Sync + std::fmt::Debug {
    /// The value of one secret.
    async fn fetch(&self, secret: &Secret) -> Result<SecretText, SecretError>;
}

/// Why a run does not get a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// It is not there, or not for this run: by the user's doing.
    #[error("{0}")]
    Refused(String),
    /// Trying again may help.
    #[error("{0}")]
    Unavailable(String),
}

/// Fetches all of them; the first one that cannot be had is the end of the run. None is in the log
/// from then on.
pub(super) async fn fetch(
    source: &dyn SecretSource,
    listed: &[Secret],
    events: &dyn RunEvents,
) -> Result<Secrets, Failure> {
    let all: Vec<_> = listed.iter().map(|secret| one(source, secret, events).boxed()).collect();
    stream::iter(all).buffer_unordered(AT_ONCE).try_collect().await
}

async fn one(
    source: &dyn SecretSource,
    secret: &Secret,
    events: &dyn RunEvents,
) -> Result<(String, SecretText), Failure> {
    let Secret { id, address, .. } = secret;
    events.message(&format!("Fetching secret `{id}` from {address}")).await;
    let fetched = tokio::time::timeout(TIMEOUT, source.fetch(secret)).await;
    let fetched = fetched.unwrap_or_else(|_| {
        Err(SecretError::Unavailable(format!("no answer within {} s", TIMEOUT.as_secs())))
    });
    let told = |reason: String| format!("error: secret `{id}` cannot be had: {reason}");
    match fetched {
        Ok(value) => {
            events.hide(value.expose());
            Ok((id.clone(), value))
        }
        Err(SecretError::Refused(reason)) => Err(Failure::User(told(reason))),
        Err(SecretError::Unavailable(reason)) => Err(Failure::Ours(told(reason))),
    }
}
