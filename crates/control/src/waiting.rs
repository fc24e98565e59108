//! Why a run waits, and how long it probably will.

use std::time::Duration;

use oci::RegistryName;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use crate::{ControlError, PoolName, Result, Run, RunId, RunStatus, Runs};

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
    /// So many runs of its agent pool are, which is as many as may be.
    PoolBusy { running: u32 },
    /// Its agent pool may execute none.
    PoolEmpty,
    /// An agent of its pool would take it, but none has.
    NoAgent,
    /// None: it begins at any moment.
    Starting,
}

impl Runs {
    /// Why a run waits; nothing if it does not, or is not there.
    pub async fn waiting(&self, registry: &RegistryName, id: RunId) -> Result<Option<Waiting>> {
        let Some(run) = self.get(registry, id).await?.filter(|run| run.status == RunStatus::Queued)
        else {
            return Ok(None);
        };
        match &run.pool {
            Some(pool) => self.waiting_in_pool(&run, pool).await.map(Some),
            None => self.waiting_here(&run).await.map(Some),
        }
    }

    /// For a run that this server executes.
    async fn waiting_here(&self, run: &Run) -> Result<Waiting> {
        let failed = "look at the queue";
        let row = sqlx::query(
            "SELECT
                SUM(CASE WHEN status != 'Queued' THEN 1 ELSE 0 END) AS running,
                SUM(CASE WHEN status != 'Queued' AND registry = $1 THEN 1 ELSE 0 END)
                    AS running_here,
                SUM(CASE WHEN status = 'Queued' AND (lane, created_at, registry, number)
                    < (SELECT lane, $2, $1, $3 FROM runs WHERE registry = $1 AND number = $3)
                    THEN 1 ELSE 0 END) AS ahead,
                SUM(CASE WHEN status = 'Queued' AND registry = $1 AND (lane, created_at, number)
                    < (SELECT lane, $2, $3 FROM runs WHERE registry = $1 AND number = $3)
                    THEN 1 ELSE 0 END) AS ahead_here
             FROM runs
             WHERE status IN ('Queued', 'Started', 'Running') AND pool IS NULL
                AND agent IS NULL",
        )
        .bind(run.registry.as_str())
        .bind(run.created_at)
        .bind(run.id.number())
        .fetch_one(self.shared.db.reads())
        .await
        .map_err(ControlError::database(failed))?;
        let settings = &self.shared.settings;
        let running_here = count(&row, "running_here")? as u32;
        let running = count(&row, "running")? as u32;
        let (reason, ahead, places) = if running_here >= settings.concurrency {
            let reason = WaitReason::RegistryBusy { running: running_here };
            (reason, count(&row, "ahead_here")?, settings.concurrency)
        } else if running >= settings.workers {
            (WaitReason::WorkersBusy { running }, count(&row, "ahead")?, settings.workers)
        } else {
            (WaitReason::Starting, count(&row, "ahead_here")?, settings.concurrency)
        };
        self.waiting_for(run, reason, ahead, places).await
    }

    /// For a run that agents execute.
    async fn waiting_in_pool(&self, run: &Run, pool: &PoolName) -> Result<Waiting> {
        let failed = "look at the queue of a pool";
        let row = sqlx::query(
            "SELECT
                (SELECT count FROM agent_pools WHERE registry = $1 AND name_key = $4) AS places,
                SUM(CASE WHEN status != 'Queued' THEN 1 ELSE 0 END) AS running,
                SUM(CASE WHEN status = 'Queued' AND (lane, created_at, number)
                    < (SELECT lane, $2, $3 FROM runs WHERE registry = $1 AND number = $3)
                    THEN 1 ELSE 0 END) AS ahead
             FROM runs
             WHERE status IN ('Queued', 'Started', 'Running') AND registry = $1
                AND LOWER(pool) = $4",
        )
        .bind(run.registry.as_str())
        .bind(run.created_at)
        .bind(run.id.number())
        .bind(pool.key())
        .fetch_one(self.shared.db.reads())
        .await
        .map_err(ControlError::database(failed))?;
        let (places, running) = (count(&row, "places")? as u32, count(&row, "running")? as u32);
        let reason = match places {
            0 => WaitReason::PoolEmpty,
            places if running >= places => WaitReason::PoolBusy { running },
            _ => WaitReason::NoAgent,
        };
        self.waiting_for(run, reason, count(&row, "ahead")?, places).await
    }

    async fn waiting_for(
        &self,
        run: &Run,
        reason: WaitReason,
        ahead: u64,
        places: u32,
    ) -> Result<Waiting> {
        let position = ahead + 1;
        let expected = match reason {
            WaitReason::Starting | WaitReason::PoolEmpty | WaitReason::NoAgent => None,
            // In turn, each place gets free once in the time that a run takes.
            _ => self
                .usual_duration(&run.registry)
                .await?
                .map(|usual| usual.mul_f64((position as f64 / f64::from(places.max(1))).min(1e6))),
        };
        Ok(Waiting { reason, position, expected })
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

/// A count, which is nothing where there are no rows.
fn count(row: &SqliteRow, name: &str) -> Result<u64> {
    let count: Option<i64> =
        row.try_get(name).map_err(ControlError::database("look at the queue"))?;
    Ok(count.unwrap_or(0).max(0) as u64)
}
