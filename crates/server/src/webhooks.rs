//! Tells webhooks what has happened, for as long as a server runs.

use std::sync::Arc;
use std::time::Duration;

use control::{DeliveryOutcome, PostedAnswer, ToDeliver, WebhookProperties};
use oci::RegistryName;
use remote::{Post, PostError, Poster};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::ApiError;
use crate::state::Shared;

/// How long nothing is looked at, though nobody has said anything.
const PERIOD: Duration = Duration::from_secs(30);
/// After something failed that is ours.
const RETRY: Duration = Duration::from_secs(5);
/// What is due is looked for again no sooner.
const PAUSE: Duration = Duration::from_millis(50);
/// How often tasks are looked at that have not succeeded for long.
const TASKS_PERIOD: Duration = Duration::from_secs(600);
/// For how long a server that stops waits for receivers.
const GRACE: Duration = Duration::from_secs(2);

/// Whether a webhook can be told anything, as far as can be known before.
pub(crate) fn check(poster: &Poster, properties: &WebhookProperties) -> Result<(), ApiError> {
    let headers = properties.headers.clone().into_iter().collect::<Vec<_>>();
    poster.check(&properties.address, &headers).map_err(|error| {
        let member = match error {
            PostError::BadHeader { .. } | PostError::HeadersTooLarge { .. } => "customHeaders",
            _ => "serviceUri",
        };
        let told = ApiError::invalid(error.to_string()).at(format!("properties.{member}"));
        error.hint().into_iter().fold(told, ApiError::hint)
    })
}

/// The login servers of registries.
pub(crate) fn host_of(state: &Shared) -> impl Fn(&RegistryName) -> String + Send + Sync + use<> {
    let state = Arc::clone(state);
    move |registry: &RegistryName| {
        let own = state.registries.get(registry);
        own.map_or_else(|| registry.to_string(), |own| own.login_server.clone())
    }
}

/// Makes deliveries of what happens, and delivers them, until `shutdown`. Commands that serve
/// themselves do not: what is to be told then is the next server's to tell.
pub(crate) async fn deliver(state: Shared, shutdown: CancellationToken) {
    let (mut content, mut ended) = (state.catalog.content_changed(), state.runs.ends());
    let mut queued = state.runs.queue_changes();
    let mut sending = JoinSet::new();
    while !shutdown.is_cancelled() {
        content.mark_unchanged();
        ended.mark_unchanged();
        queued.mark_unchanged();
        let wait = match look(&state, &mut sending).await {
            Ok(wait) => wait,
            Err(error) => {
                tracing::error!(%error, "webhooks could not be looked after");
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => (),
            Some(_) = sending.join_next() => (),
            _ = content.changed() => (),
            _ = ended.changed() => (),
            _ = queued.changed() => (),
            () = state.webhooks.changed() => (),
            () = shutdown.cancelled() => (),
        }
    }
    // What is not told by then is told again by the next start.
    let told = async { while sending.join_next().await.is_some() {} };
    let _late = tokio::time::timeout(GRACE, told).await;
}

/// Looks for tasks that have not succeeded for long, until `shutdown`.
pub(crate) async fn watch_tasks(state: Shared, shutdown: CancellationToken) {
    while !shutdown.is_cancelled() {
        if let Err(error) = state.webhooks.tell_overdue(&host_of(&state)).await {
            tracing::error!(%error, "tasks that have not succeeded could not be looked for");
        }
        tokio::select! {
            () = tokio::time::sleep(TASKS_PERIOD) => (),
            () = shutdown.cancelled() => (),
        }
    }
}

/// Begins to deliver what is due, and says when to look again.
async fn look(state: &Shared, sending: &mut JoinSet<()>) -> control::Result<Duration> {
    if let Err(error) = state.webhooks.follow(&host_of(state)).await {
        tracing::error!(%error, "what has happened does not become deliveries");
    }
    for delivery in state.webhooks.claim().await? {
        sending.spawn(send(Arc::clone(state), delivery));
    }
    let next = state.webhooks.next_delivery().await?;
    let until = next.map(|next| u64::try_from(next - state.clock.now()).unwrap_or_default());
    Ok(match until.map(Duration::from_millis) {
        None => PERIOD,
        // It waits for one that is under way.
        Some(Duration::ZERO) if !sending.is_empty() => PERIOD,
        Some(until) => until.clamp(PAUSE, PERIOD),
    })
}

async fn send(state: Shared, delivery: ToDeliver) {
    let post = Post {
        address: delivery.address.clone(),
        headers: delivery.headers.clone(),
        body: delivery.body.clone().into(),
    };
    let outcome = match state.poster.post(&post).await {
        Ok(answer) => DeliveryOutcome::Answered(PostedAnswer {
            status: answer.status,
            headers: answer.headers,
            body: String::from_utf8_lossy(&answer.body).into_owned(),
            retry_after: answer.retry_after,
        }),
        Err(error) => {
            DeliveryOutcome::Failed { reason: error.to_string(), is_final: !error.is_transient() }
        }
    };
    if let Err(error) = state.webhooks.note(&delivery, outcome).await {
        tracing::error!(%error, "what came of a delivery could not be written down");
        // It is due again.
        tokio::time::sleep(RETRY).await;
    }
}
