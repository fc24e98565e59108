//! Looks after triggers for as long as a server runs.

use std::collections::BTreeMap;
use std::time::Duration;

use oci::RegistryName;
use store::Millis;
use tokio_util::sync::CancellationToken;

use crate::state::Shared;

/// How long nothing is looked at, though nothing is due: clocks are set.
const PERIOD: Duration = Duration::from_secs(30);
/// Until what waits is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Fires timers until `shutdown`. Commands that serve themselves do not: what is due then is the
/// next server's to do.
pub(crate) async fn fire_timers(state: Shared, shutdown: CancellationToken) {
    while !shutdown.is_cancelled() {
        let wait = match look(&state).await {
            Ok(wait) => wait,
            Err(error) => {
                tracing::error!(%error, "timers could not be looked at");
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => (),
            () = state.triggers.changed() => (),
            () = shutdown.cancelled() => return,
        }
    }
}

/// Starts what has to follow from bases that move, until `shutdown`.
pub(crate) async fn fire_bases(state: Shared, shutdown: CancellationToken) {
    let names = state.registries.own_names();
    let names = names.into_iter().map(|(host, registry)| (host.to_ascii_lowercase(), registry));
    let names: BTreeMap<String, RegistryName> = names.collect();
    let own = move |host: &str| names.get(&host.to_ascii_lowercase()).cloned();
    let (mut moved, mut ended) = (state.catalog.tag_moved(), state.runs.ends());
    while !shutdown.is_cancelled() {
        moved.mark_unchanged();
        ended.mark_unchanged();
        let wait = match state.triggers.fire_bases(&own).await {
            Ok(fired) => {
                if fired.runs > 0 {
                    tracing::info!(runs = fired.runs, "bases that moved have started runs");
                }
                if fired.waits { RETRY } else { PERIOD }
            }
            Err(error) => {
                tracing::error!(%error, "the journal of tags could not be followed");
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => (),
            _ = moved.changed() => (),
            // It may have told what its task is built on.
            _ = ended.changed() => (),
            () = shutdown.cancelled() => return,
        }
    }
}

/// Fires what is due, and says when to look again.
async fn look(state: &Shared) -> control::Result<Duration> {
    let fired = state.triggers.fire_timers().await?;
    if fired.runs > 0 {
        tracing::info!(runs = fired.runs, "timers have started runs");
    }
    let next = state.triggers.next_timer().await?;
    let wait = next.map_or(PERIOD, |next| until(next, state.clock.now()));
    Ok(if fired.waits { RETRY } else { wait.min(PERIOD) })
}

fn until(time: Millis, now: Millis) -> Duration {
    Duration::from_millis(u64::try_from(time - now).unwrap_or_default())
}
