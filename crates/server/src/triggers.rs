//! Looks after triggers for as long as a server runs.

use std::time::Duration;

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
