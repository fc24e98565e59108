//! Work that nobody asks for: collecting garbage and forgetting what is old.
//!
//! Each pass compares what is there with what settings keep, and takes no input, so that a
//! restart or a missed pass costs only time.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::state::Shared;

/// How often old logs, runs and upload addresses are looked for.
const SWEEP_PERIOD: Duration = Duration::from_secs(60);

/// Sweeps until `shutdown`.
pub(crate) async fn sweep(state: Shared, shutdown: CancellationToken) {
    while !shutdown.is_cancelled() {
        match state.runs.sweep().await {
            Ok(swept) if swept == control::Swept::default() => (),
            Ok(swept) => tracing::info!(?swept, "old runs swept"),
            Err(error) => tracing::error!(%error, "old runs could not be swept"),
        }
        if let Err(error) = state.sources.sweep().await {
            tracing::error!(%error, "old upload addresses could not be swept");
        }
        pause(SWEEP_PERIOD, &shutdown).await;
    }
}

/// Collects garbage until `shutdown`. First when nothing counts any more that clients were told
/// by an earlier process to be there, since who was told is not remembered.
pub(crate) async fn collect_garbage(state: Shared, period: Duration, shutdown: CancellationToken) {
    let mut wait = period.max(state.garbage.grace);
    loop {
        pause(wait, &shutdown).await;
        wait = period;
        if shutdown.is_cancelled() {
            return;
        }
        match state.catalog.collect_garbage(&state.garbage).await {
            Ok(report) if report.blobs.is_empty() => (),
            Ok(report) => {
                tracing::info!(
                    blobs = report.blobs.len(),
                    bytes = report.bytes,
                    "garbage collected"
                );
            }
            Err(error) => tracing::error!(%error, "garbage could not be collected"),
        }
    }
}

async fn pause(period: Duration, shutdown: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(period) => (),
        () = shutdown.cancelled() => (),
    }
}
