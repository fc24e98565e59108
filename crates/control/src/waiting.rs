//! Why a run waits, and how long it probably will.

use std::time::Duration;

use oci::RegistryName;
use sqlx::Row as _;

use crate::{ControlError, Result, RunId, RunStatus, Runs};

/// Of so many runs, the last ones of a registry, it is known how long they took.
const KNOWN_RUNS: i64 = 20;

/// What a run waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub reason: WaitReason,
    /// How manieth it is in line; the first one is next.
    pub position: u64,
    /// Until it begins, if it goes on as the last runs of the registry went.
    pub expected: Option<Duration>,
}

/// Which bound keeps a run from beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitReason {
    /// So many runs of its registry are under way, which is as many as may be.
    RegistryBusy { running: u32 },
    /// So many runs of all registries are.
    WorkersBusy { running: u32 },
    /// None: it begins at any moment.
    Starting,
}

impl Runs {
    /// Why a run waits; nothing if it does not, or is not there.
    pub async fn waiting(&self, registry: &RegistryName, id: RunId) -> Result<Option<Waiting>> {
        let failed = "look at the queue";
        let Some(run) = self.get(registry, id).await?.filter(|run| run.status == RunStatus::Queued)
        else {
            return Ok(None);
        };
        let row = sqlx::query(
            "SELECT
                SUM(CASE WHEN status != 'Queued' THEN 1 ELSE 0 END) AS running,
                SUM(CASE WHEN status != 'Queued' AND registry = $1 THEN 1 ELSE 0 END)
                    AS running_here,
                SUM(CASE WHEN status = 'Queued' AND (created_at, registry, number) < ($2, $1, $3)
                    THEN 1 ELSE 0 END) AS ahead,
                SUM(CASE WHEN status = 'Queued' AND registry = $1
                    AND (created_at, number) < ($2, $3) THEN 1 ELSE 0 END) AS ahead_here
             FROM runs WHERE status IN ('Queued', 'Started', 'Running')",
        )
        .bind(registry.as_str())
        .bind(run.created_at)
        .bind(id.number())
        .fetch_one(self.shared.db.reads())
        .await
        .map_err(ControlError::database(failed))?;
        let count = |name: &str| -> Result<u64> {
            let count: Option<i64> = row.try_get(name).map_err(ControlError::database(failed))?;
            Ok(count.unwrap_or(0).max(0) as u64)
        };
        let settings = &self.shared.settings;
        let (running, running_here) = (count("running")? as u32, count("running_here")? as u32);
        let (reason, ahead, places) = if running_here >= settings.concurrency {
            let reason = WaitReason::RegistryBusy { running: running_here };
            (reason, count("ahead_here")?, settings.concurrency)
        } else if running >= settings.workers {
            (WaitReason::WorkersBusy { running }, count("ahead")?, settings.workers)
        } else {
            (WaitReason::Starting, count("ahead_here")?, settings.concurrency)
        };
        let position = ahead + 1;
        let expected = match reason {
            WaitReason::Starting => None,
            // In turn, each place gets free once in the time that a run takes.
            _ => self
                .usual_duration(registry)
                .await?
                .map(|usual| usual.mul_f64((position as f64 / f64::from(places.max(1))).min(1e6))),
        };
        Ok(Some(Waiting { reason, position, expected }))
    }

    /// How long the last runs of a registry took, on average.
    async fn usual_duration(&self, registry: &RegistryName) -> Result<Option<Duration>> {
        let average: Option<f64> = sqlx::query_scalar(
            "SELECT AVG(CAST(finished_at - started_at AS DOUBLE PRECISION)) FROM (
                SELECT finished_at, started_at FROM runs
                WHERE registry = $1 AND finished_at IS NOT NULL AND started_at IS NOT NULL
                ORDER BY number DESC LIMIT $2) AS last",
        )
        .bind(registry.as_str())
        .bind(KNOWN_RUNS)
        .fetch_one(self.shared.db.reads())
        .await
        .map_err(ControlError::database("look at the last runs"))?;
        Ok(average.map(|milliseconds| Duration::from_millis(milliseconds.max(0.0) as u64)))
    }
}
