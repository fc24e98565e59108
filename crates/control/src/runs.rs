//! The table of runs, which is also their queue.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use db::Db;
use oci::{Digest, RegistryName, RepositoryName};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use store::{Catalog, Millis, lease_within, release_within};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::executor::Attempt;
use crate::table::{column, from_json, not_json, parsed, to_json};
use crate::{
    Clock, ControlError, End, EventKind, LogKey, Logs, Mask, NewRun, Outcome, Result, Run, RunId,
    RunKind, RunLog, RunRequest, RunStatus, TaskName, table, tasks,
};

const SCHEMA: &[&str] = &[
    "CREATE TABLE runs (
        registry TEXT NOT NULL,
        number BIGINT NOT NULL,
        kind TEXT NOT NULL,
        status TEXT NOT NULL,
        request TEXT NOT NULL,
        created_at BIGINT NOT NULL,
        updated_at BIGINT NOT NULL,
        started_at BIGINT,
        finished_at BIGINT,
        attempts BIGINT NOT NULL,
        epoch BIGINT NOT NULL,
        lease_until BIGINT NOT NULL,
        cancel_requested BOOLEAN NOT NULL,
        archived BOOLEAN NOT NULL,
        log_kept BOOLEAN NOT NULL,
        error TEXT,
        output TEXT,
        cost TEXT,
        PRIMARY KEY (registry, number)
    )",
    "CREATE INDEX runs_by_status ON runs (status, created_at)",
    "CREATE INDEX runs_by_end ON runs (finished_at)",
    "CREATE TABLE run_counters (registry TEXT NOT NULL PRIMARY KEY, last BIGINT NOT NULL)",
    "ALTER TABLE runs ADD COLUMN repeatable BOOLEAN NOT NULL DEFAULT TRUE",
    // What the steps of these may have done is not known.
    "UPDATE runs SET repeatable = FALSE WHERE status = 'Running' AND kind = 'QuickRun'",
    "ALTER TABLE runs ADD COLUMN task TEXT",
    "ALTER TABLE runs ADD COLUMN definition TEXT",
    "ALTER TABLE runs ADD COLUMN update_trigger_token TEXT",
    "CREATE INDEX runs_by_task ON runs (registry, LOWER(task), number)",
    "CREATE TABLE run_images (
        registry TEXT NOT NULL,
        number BIGINT NOT NULL,
        repository TEXT NOT NULL,
        digest TEXT NOT NULL,
        PRIMARY KEY (registry, number, repository, digest)
    )",
    "CREATE INDEX run_images_by_digest ON run_images (registry, digest, repository)",
];

/// Keeps what a run needs beyond its time limit, so that a retry finds it.
const LEASE_SLACK: Duration = Duration::from_secs(24 * 3600);

/// Bounds of the queue and the history.
#[derive(Debug, Clone)]
pub struct RunSettings {
    /// Runs executed at once, per registry.
    pub concurrency: u32,
    /// Runs executed at once, over all registries: what [`Worker`](crate::Worker)s do together.
    pub workers: u32,
    pub attempts_max: u32,
    pub queue_length_max: u32,
    /// A run that waits longer ends as `Error`.
    pub queue_keep: Duration,
    pub log_keep: Duration,
    pub run_keep: Duration,
}

/// Which runs to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunFilter {
    pub status: Option<RunStatus>,
    pub id: Option<RunId>,
    pub kind: Option<RunKind>,
    pub task: Option<TaskName>,
    pub archived: Option<bool>,
    pub created: TimeRange,
    pub finished: TimeRange,
    /// Only runs that pushed this manifest into this repository.
    pub image: Option<(RepositoryName, Digest)>,
    /// Only runs older than this one: how a listing goes on.
    pub before: Option<RunId>,
}

/// A span of time; without bounds it also holds what has no time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TimeRange {
    pub from: Option<Millis>,
    /// Itself not in it.
    pub until: Option<Millis>,
}

/// What a sweep removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    pub overdue: u64,
    pub logs: u64,
    pub runs: u64,
}

/// All runs of a server. Cheap to clone.
#[derive(Clone)]
pub struct Runs {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) db: Db,
    catalog: Option<Catalog>,
    logs: Logs,
    pub(crate) clock: Clock,
    pub(crate) settings: RunSettings,
    /// A run was queued or a place became free; a hint, the table decides.
    pub(crate) wake: Notify,
    /// Runs being executed in this process, and how to stop them.
    active: Mutex<HashMap<LogKey, Active>>,
    /// Changes when a run ends.
    ended: watch::Sender<u64>,
}

/// An attempt of this process.
struct Active {
    epoch: i64,
    cancel: CancellationToken,
    /// Gone with the attempt.
    alive: Weak<()>,
}

impl Runs {
    /// `catalog` keeps the contexts of runs from being collected.
    pub async fn open(
        db: Db,
        catalog: Option<Catalog>,
        logs: Logs,
        clock: Clock,
        settings: RunSettings,
    ) -> Result<Self> {
        let failed = "prepare the table of runs";
        db.migrate("runs", SCHEMA).await.map_err(ControlError::database(failed))?;
        let shared = Shared {
            db,
            catalog,
            logs,
            clock,
            settings,
            wake: Notify::new(),
            active: Mutex::default(),
            ended: watch::Sender::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Queues a run. When this returns, a crash cannot lose it.
    pub async fn submit(&self, registry: &RegistryName, run: impl Into<NewRun>) -> Result<Run> {
        let (new, failed) = (run.into(), ControlError::database("queue a run"));
        let mut transaction = self.shared.db.begin().await.map_err(failed)?;
        let now = self.shared.clock.now();
        let id = self.insert_within(&mut transaction, registry, &new, now).await?;
        transaction.commit().await.map_err(ControlError::database("queue a run"))?;
        self.after_insert(registry, id, new.warnings).await
    }

    /// What follows once a run is queued.
    pub(crate) async fn after_insert(
        &self,
        registry: &RegistryName,
        id: RunId,
        warnings: Vec<String>,
    ) -> Result<Run> {
        let run = self.get(registry, id).await?.ok_or_else(|| run_not_found(id))?;
        let log = self.log(&run).await?;
        log.append(EventKind::Status { status: RunStatus::Queued }).await;
        for text in warnings {
            log.append(EventKind::Warning { text }).await;
        }
        self.shared.wake.notify_one();
        Ok(run)
    }

    async fn check_queue(
        &self,
        connection: &mut SqliteConnection,
        registry: &RegistryName,
    ) -> Result<()> {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM runs WHERE registry = $1 AND status = 'Queued'",
        )
        .bind(registry.as_str())
        .fetch_one(connection)
        .await
        .map_err(ControlError::database("count the queue"))?;
        match waiting < i64::from(self.shared.settings.queue_length_max) {
            true => Ok(()),
            false => Err(ControlError::QueueFull { waiting: waiting as u64 }),
        }
    }

    /// Queues a run in a transaction of the caller.
    pub(crate) async fn insert_within(
        &self,
        transaction: &mut SqliteConnection,
        registry: &RegistryName,
        new: &NewRun,
        now: Millis,
    ) -> Result<RunId> {
        let (failed, request) = ("queue a run", &new.request);
        self.check_queue(transaction, registry).await?;
        if let Some(task) = &new.task {
            // It may have been deleted since it was read.
            tasks::check(transaction, registry, task).await?;
        }
        let number: i64 = sqlx::query_scalar(
            "INSERT INTO run_counters (registry, last) VALUES ($1, 1)
             ON CONFLICT (registry) DO UPDATE SET last = run_counters.last + 1
             RETURNING last",
        )
        .bind(registry.as_str())
        .fetch_one(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        sqlx::query(
            "INSERT INTO runs (registry, number, kind, status, request, created_at, updated_at,
                attempts, epoch, lease_until, cancel_requested, archived, log_kept, task,
                definition, update_trigger_token)
             VALUES ($1, $2, $3, 'Queued', $4, $5, $5, 0, 0, 0, FALSE, $6, TRUE, $7, $8, $9)",
        )
        .bind(registry.as_str())
        .bind(number)
        .bind(new.kind.as_str())
        .bind(request_json(request)?)
        .bind(now)
        .bind(request.archived())
        .bind(new.task.as_ref().map(TaskName::as_str))
        .bind(new.definition.as_ref().map(ToString::to_string))
        .bind(&new.update_trigger_token)
        .execute(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        let id = RunId::from_number(number as u64);
        if self.shared.catalog.is_some() {
            let (owner, keep) = (lease_owner(registry, id), self.context_keep(request));
            lease_within(transaction, &owner, &request.blobs(), keep).await?;
        }
        Ok(id)
    }

    pub async fn get(&self, registry: &RegistryName, id: RunId) -> Result<Option<Run>> {
        let row = sqlx::query("SELECT * FROM runs WHERE registry = $1 AND number = $2")
            .bind(registry.as_str())
            .bind(id.number())
            .fetch_optional(self.shared.db.reads())
            .await
            .map_err(ControlError::database("read a run"))?;
        row.map(|row| run_of(&row)).transpose()
    }

    /// Newest first, at most `limit`.
    pub async fn list(
        &self,
        registry: &RegistryName,
        filter: &RunFilter,
        limit: usize,
    ) -> Result<Vec<Run>> {
        let rows = listing(registry, filter, limit)
            .build()
            .fetch_all(self.shared.db.reads())
            .await
            .map_err(ControlError::database("list runs"))?;
        rows.iter().map(run_of).collect()
    }

    /// Keeps run and log for ever, or as long as others again.
    pub async fn set_archived(
        &self,
        registry: &RegistryName,
        id: RunId,
        archived: bool,
    ) -> Result<Run> {
        let statement = sqlx::query(
            "UPDATE runs SET archived = $3, updated_at = $4
             WHERE registry = $1 AND number = $2 RETURNING *",
        )
        .bind(registry.as_str())
        .bind(id.number())
        .bind(archived)
        .bind(self.shared.clock.now());
        let rows = table::returning(&self.shared.db, "change a run", statement).await?;
        rows.first().map_or_else(|| Err(run_not_found(id)), run_of)
    }

    /// Stops a run: one that waits ends at once, one under way soon. `Conflict` if it has
    /// ended already.
    pub async fn cancel(&self, registry: &RegistryName, id: RunId) -> Result<Run> {
        let failed = "cancel a run";
        let now = self.shared.clock.now();
        let statement = sqlx::query(
            "UPDATE runs SET
                cancel_requested = TRUE,
                updated_at = $3,
                finished_at = CASE WHEN status = 'Queued' THEN $3 ELSE finished_at END,
                status = CASE WHEN status = 'Queued' THEN 'Canceled' ELSE status END
             WHERE registry = $1 AND number = $2 AND status IN ('Queued', 'Started', 'Running')
             RETURNING *",
        )
        .bind(registry.as_str())
        .bind(id.number())
        .bind(now);
        let rows = table::returning(&self.shared.db, failed, statement).await?;
        let Some(row) = rows.first() else {
            let run = self.get(registry, id).await?.ok_or_else(|| run_not_found(id))?;
            let message = format!("run `{id}` has ended already: {}", run.status);
            return Err(ControlError::Conflict { message });
        };
        let run = run_of(row)?;
        if run.status == RunStatus::Canceled {
            self.after_end(&run).await?;
            return Ok(run);
        }
        if let Some(active) = self.active().get(&log_key(&run)) {
            active.cancel.cancel();
        }
        // Nobody may be executing it: then the next claim ends it.
        self.shared.wake.notify_one();
        Ok(run)
    }

    /// The log of a run, for reading.
    pub fn logs(&self) -> &Logs {
        &self.shared.logs
    }

    /// Returns once no run waits or is under way.
    pub async fn idle(&self) -> Result<()> {
        let mut ended = self.shared.ended.subscribe();
        loop {
            ended.borrow_and_update();
            if self.unfinished().await?.is_empty() {
                return Ok(());
            }
            // The sender lives as long as `self`.
            let _ = ended.changed().await;
        }
    }

    /// Returns once a run has ended, or is no more.
    pub async fn ended(&self, registry: &RegistryName, id: RunId) -> Result<()> {
        let mut ended = self.shared.ended.subscribe();
        loop {
            ended.borrow_and_update();
            if self.get(registry, id).await?.is_none_or(|run| run.status.is_final()) {
                return Ok(());
            }
            // The sender lives as long as `self`.
            let _ = ended.changed().await;
        }
    }

    /// Runs that wait or are under way, oldest first.
    pub async fn unfinished(&self) -> Result<Vec<Run>> {
        let rows = sqlx::query(
            "SELECT * FROM runs WHERE status IN ('Queued', 'Started', 'Running')
             ORDER BY created_at, registry, number",
        )
        .fetch_all(self.shared.db.reads())
        .await
        .map_err(ControlError::database("list runs"))?;
        rows.iter().map(run_of).collect()
    }

    /// For the only owner of a data folder, before its worker starts: what was under way
    /// when the last owner died may be claimed at once, and logs are put right. Returns
    /// those runs.
    pub async fn take_over(&self) -> Result<Vec<Run>> {
        let statement = sqlx::query(
            "UPDATE runs SET lease_until = 0 WHERE status IN ('Started', 'Running') RETURNING *",
        );
        let rows = table::returning(&self.shared.db, "take over runs", statement).await?;
        for run in self.unfinished().await? {
            self.log(&run).await?;
        }
        self.end_logs().await?;
        rows.iter().map(run_of).collect()
    }

    /// Logs of runs that had ended when the server died before it could say so in the log.
    async fn end_logs(&self) -> Result<()> {
        for key in self.shared.logs.unended().await? {
            match self.get(&key.registry, key.run).await? {
                Some(run) if run.status.is_final() => self.after_end(&run).await?,
                Some(_) => (),
                None => self.shared.logs.delete(&key).await?,
            }
        }
        Ok(())
    }

    /// Removes what is older than the settings keep, and ends runs that waited too long.
    pub async fn sweep(&self) -> Result<Swept> {
        let now = self.shared.clock.now();
        let before = |keep: Duration| now.saturating_sub_unsigned(keep.as_millis() as u64);
        Ok(Swept {
            overdue: self.end_overdue(before(self.shared.settings.queue_keep)).await?,
            logs: self.delete_logs(before(self.shared.settings.log_keep)).await?,
            runs: self.delete_runs(before(self.shared.settings.run_keep)).await?,
        })
    }

    async fn end_overdue(&self, before: Millis) -> Result<u64> {
        let statement = sqlx::query(
            "UPDATE runs SET status = 'Error', error = 'the run waited too long for a worker',
                updated_at = $2, finished_at = $2
             WHERE status = 'Queued' AND created_at < $1 RETURNING *",
        )
        .bind(before)
        .bind(self.shared.clock.now());
        let rows = table::returning(&self.shared.db, "end overdue runs", statement).await?;
        for row in &rows {
            self.after_end(&run_of(row)?).await?;
        }
        Ok(rows.len() as u64)
    }

    async fn delete_logs(&self, before: Millis) -> Result<u64> {
        let rows = sqlx::query(
            "SELECT * FROM runs WHERE finished_at < $1 AND log_kept AND NOT archived LIMIT 1000",
        )
        .bind(before)
        .fetch_all(self.shared.db.reads())
        .await
        .map_err(ControlError::database("find old logs"))?;
        for row in &rows {
            let run = run_of(row)?;
            // Somebody may have archived it since.
            let statement = sqlx::query(
                "UPDATE runs SET log_kept = FALSE
                 WHERE registry = $1 AND number = $2 AND log_kept AND NOT archived",
            )
            .bind(run.registry.as_str())
            .bind(run.id.number());
            if table::execute(&self.shared.db, "note that a log goes", statement).await? == 1 {
                self.shared.logs.delete(&log_key(&run)).await?;
            }
        }
        Ok(rows.len() as u64)
    }

    async fn delete_runs(&self, before: Millis) -> Result<u64> {
        let failed = "delete old runs";
        let mut transaction =
            self.shared.db.begin().await.map_err(ControlError::database(failed))?;
        let rows = sqlx::query(
            "DELETE FROM runs WHERE (registry, number) IN (
                SELECT registry, number FROM runs WHERE finished_at < $1 AND NOT archived
                LIMIT 1000)
             RETURNING *",
        )
        .bind(before)
        .fetch_all(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        for row in &rows {
            sqlx::query("DELETE FROM run_images WHERE registry = $1 AND number = $2")
                .bind(column::<&str>(row, "registry")?)
                .bind(column::<i64>(row, "number")?)
                .execute(&mut *transaction)
                .await
                .map_err(ControlError::database(failed))?;
        }
        transaction.commit().await.map_err(ControlError::database(failed))?;
        for row in &rows {
            let run = run_of(row)?;
            if let Err(error) = self.shared.logs.delete(&log_key(&run)).await {
                tracing::warn!(%error, run = %run.id, "the log of a deleted run stays");
            }
        }
        Ok(rows.len() as u64)
    }

    /// Takes the oldest run that may be executed now: one that waits, or one whose attempt
    /// was lost. One statement, so that two workers never get the same run.
    pub(crate) async fn claim(&self, lease: Duration) -> Result<Option<Attempt>> {
        let now = self.shared.clock.now();
        self.keep_own(now, lease).await?;
        let statement = sqlx::query(
            "UPDATE runs SET
                status = CASE WHEN status = 'Queued' THEN 'Started' ELSE status END,
                started_at = COALESCE(started_at, $1),
                updated_at = $1,
                attempts = attempts + 1,
                epoch = epoch + 1,
                lease_until = $2
             WHERE (registry, number) = (
                SELECT r.registry, r.number FROM runs r
                WHERE (r.status = 'Queued'
                        OR (r.status IN ('Started', 'Running') AND r.lease_until < $1))
                    AND $3 > (SELECT COUNT(*) FROM runs o
                        WHERE o.registry = r.registry AND o.status IN ('Started', 'Running')
                            AND o.lease_until >= $1)
                ORDER BY r.created_at, r.registry, r.number LIMIT 1)
             RETURNING *",
        )
        .bind(now)
        .bind(until(now, lease))
        .bind(i64::from(self.shared.settings.concurrency));
        let rows = table::returning(&self.shared.db, "claim a run", statement).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let run = run_of(row)?;
        let epoch = column(row, "epoch")?;
        let cancel = CancellationToken::new();
        if column(row, "cancel_requested")? {
            cancel.cancel();
        }
        let log = self.log(&run).await?;
        let alive = Arc::new(());
        let active = Active { epoch, cancel: cancel.clone(), alive: Arc::downgrade(&alive) };
        self.active().insert(log_key(&run), active);
        let runs = self.clone();
        Ok(Some(Attempt { run, log, cancel, runs, epoch, started_at: now, _alive: alive }))
    }

    /// Extends expired leases of attempts that go on in this process: the machine was asleep,
    /// or its clock was set. Only who claimed a run since then has taken it over.
    async fn keep_own(&self, now: Millis, lease: Duration) -> Result<()> {
        let own: Vec<(LogKey, i64)> = (self.active().iter())
            .filter(|(_, active)| active.alive.strong_count() > 0)
            .map(|(key, active)| (key.clone(), active.epoch))
            .collect();
        for (key, epoch) in own {
            let statement = sqlx::query(
                "UPDATE runs SET lease_until = $5
                 WHERE registry = $1 AND number = $2 AND epoch = $3 AND lease_until < $4
                    AND status IN ('Started', 'Running')",
            )
            .bind(key.registry.as_str())
            .bind(key.run.number())
            .bind(epoch)
            .bind(now)
            .bind(until(now, lease));
            table::execute(&self.shared.db, "keep a run", statement).await?;
        }
        Ok(())
    }

    pub(crate) fn attempts_max(&self) -> u32 {
        self.shared.settings.attempts_max
    }

    /// Extends a lease, and learns whether the user wants the run stopped. `None`: lost.
    pub(crate) async fn renew(&self, attempt: &Attempt, lease: Duration) -> Result<Option<bool>> {
        let statement = sqlx::query(
            "UPDATE runs SET lease_until = $4
             WHERE registry = $1 AND number = $2 AND epoch = $3
                AND status IN ('Started', 'Running')
             RETURNING cancel_requested",
        )
        .bind(attempt.run.registry.as_str())
        .bind(attempt.run.id.number())
        .bind(attempt.epoch)
        .bind(until(self.shared.clock.now(), lease));
        let rows = table::returning(&self.shared.db, "renew a lease", statement).await?;
        rows.first().map(|row| column(row, "cancel_requested")).transpose()
    }

    pub(crate) async fn holds_lease(&self, attempt: &Attempt) -> Result<bool> {
        let held: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM runs
             WHERE registry = $1 AND number = $2 AND epoch = $3
                AND status IN ('Started', 'Running')",
        )
        .bind(attempt.run.registry.as_str())
        .bind(attempt.run.id.number())
        .bind(attempt.epoch)
        .fetch_one(self.shared.db.reads())
        .await
        .map_err(ControlError::database("check a lease"))?;
        Ok(held == 1)
    }

    /// `Started` becomes `Running`; whether it did. A later attempt finds it so, and says anew
    /// whether it may be repeated.
    pub(crate) async fn set_running(&self, attempt: &Attempt, repeatable: bool) -> Result<bool> {
        let statement = sqlx::query(
            "UPDATE runs SET status = 'Running', updated_at = $4, repeatable = $5
             WHERE registry = $1 AND number = $2 AND epoch = $3
                AND status IN ('Started', 'Running')",
        )
        .bind(attempt.run.registry.as_str())
        .bind(attempt.run.id.number())
        .bind(attempt.epoch)
        .bind(self.shared.clock.now())
        .bind(repeatable);
        let changed =
            table::execute(&self.shared.db, "note that a run is running", statement).await?;
        Ok(changed == 1 && attempt.run.status != RunStatus::Running)
    }

    /// Ends a run under its lease. `false`: another attempt has it, nothing was changed.
    pub(crate) async fn finish(
        &self,
        attempt: &Attempt,
        status: RunStatus,
        error: Option<&str>,
        outcome: &Outcome,
    ) -> Result<bool> {
        let now = self.shared.clock.now();
        let request = attempt.run.request.clone().without_secrets();
        let output = Output {
            images: outcome.images.clone(),
            digest: outcome.digest.clone(),
            commit: outcome.commit.clone(),
            dependencies: outcome.dependencies.clone(),
        };
        let cost = cost_of(&attempt.run, outcome, attempt.started_at, now);
        // It lives longer than the log, and a user's text may be in it.
        let error = error.map(|error| attempt.log.masked(error));
        let statement = sqlx::query(
            "UPDATE runs SET status = $4, error = $5, output = $6, cost = $7, request = $8,
                updated_at = $9, finished_at = $9
             WHERE registry = $1 AND number = $2 AND epoch = $3
                AND status IN ('Started', 'Running')
             RETURNING *",
        )
        .bind(attempt.run.registry.as_str())
        .bind(attempt.run.id.number())
        .bind(attempt.epoch)
        .bind(status.as_str())
        .bind(error)
        .bind(to_json(&output)?)
        .bind(to_json(&cost)?)
        .bind(request_json(&request)?)
        .bind(now);
        let failed = "end a run";
        let mut transaction =
            self.shared.db.begin().await.map_err(ControlError::database(failed))?;
        let row = statement.fetch_optional(&mut *transaction).await;
        let row = row.map_err(ControlError::database(failed))?;
        if row.is_some() && self.shared.catalog.is_some() {
            let owner = lease_owner(&attempt.run.registry, attempt.run.id);
            release_within(&mut transaction, &owner).await?;
        }
        if row.is_some() {
            let (run, images) = (&attempt.run, &outcome.images);
            note_images(&mut transaction, run, images)
                .await
                .map_err(ControlError::database(failed))?;
            if let (Some(task), Some(made_of)) = (&run.task, &outcome.dependencies)
                && status == RunStatus::Succeeded
            {
                tasks::note_dependencies(&mut transaction, run, task, made_of).await?;
            }
        }
        transaction.commit().await.map_err(ControlError::database(failed))?;
        self.forget(attempt);
        let Some(row) = row else { return Ok(false) };
        self.after_end(&run_of(&row)?).await?;
        Ok(true)
    }

    /// Gives a run back that this process cannot finish; it does not count as an attempt.
    pub(crate) async fn release(&self, attempt: &Attempt) -> Result<()> {
        self.forget(attempt);
        let statement = sqlx::query(
            "UPDATE runs SET lease_until = 0, attempts = attempts - 1
             WHERE registry = $1 AND number = $2 AND epoch = $3
                AND status IN ('Started', 'Running')",
        )
        .bind(attempt.run.registry.as_str())
        .bind(attempt.run.id.number())
        .bind(attempt.epoch);
        table::execute(&self.shared.db, "give a run back", statement).await?;
        Ok(())
    }

    /// What follows from an end that is recorded: the log's last line, and no more leases.
    pub(crate) async fn after_end(&self, run: &Run) -> Result<()> {
        if run.request.secrets().next().is_some() {
            self.forget_secrets(run).await?;
        }
        let begun = run.started_at.unwrap_or(run.created_at);
        let elapsed = run.finished_at.unwrap_or(run.updated_at) - begun;
        let elapsed = Duration::from_millis(elapsed.max(0) as u64);
        let log = self.log(run).await?;
        log.finish(run.status, run.error.clone(), elapsed).await;
        if let Some(catalog) = &self.shared.catalog {
            catalog.release_leases(&lease_owner(&run.registry, run.id)).await?;
        }
        self.shared.ended.send_modify(|count| *count += 1);
        self.shared.wake.notify_one();
        Ok(())
    }

    async fn forget_secrets(&self, run: &Run) -> Result<()> {
        let statement =
            sqlx::query("UPDATE runs SET request = $3 WHERE registry = $1 AND number = $2")
                .bind(run.registry.as_str())
                .bind(run.id.number())
                .bind(request_json(&run.request.clone().without_secrets())?);
        table::execute(&self.shared.db, "forget the secrets of a run", statement).await?;
        Ok(())
    }

    async fn log(&self, run: &Run) -> Result<RunLog> {
        self.shared.logs.open(&log_key(run), Mask::new(run.request.secrets())).await
    }

    /// Keeps the contexts of a run from being collected for another attempt.
    pub(crate) async fn keep_context(&self, run: &Run) -> Result<()> {
        let Some(catalog) = &self.shared.catalog else { return Ok(()) };
        let (owner, keep) = (lease_owner(&run.registry, run.id), self.context_keep(&run.request));
        Ok(catalog.lease_blobs(&owner, &run.request.blobs(), keep).await?)
    }

    /// How long a run that is queued now may need its contexts, if it is not begun again.
    fn context_keep(&self, request: &RunRequest) -> Duration {
        self.shared.settings.queue_keep + request.timeout() + LEASE_SLACK
    }

    /// The attempt is over, and no later one of its run is meant.
    pub(crate) fn forget(&self, attempt: &Attempt) {
        let key = log_key(&attempt.run);
        let mut all = self.active();
        if all.get(&key).is_some_and(|active| active.epoch == attempt.epoch) {
            all.remove(&key);
        }
    }

    fn active(&self) -> std::sync::MutexGuard<'_, HashMap<LogKey, Active>> {
        self.shared.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The statement that lists runs, the newest first.
fn listing(registry: &RegistryName, filter: &RunFilter, limit: usize) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new("SELECT * FROM runs WHERE registry = ");
    query.push_bind(registry.as_str());
    if let Some(status) = filter.status {
        query.push(" AND status = ").push_bind(status.as_str());
    }
    if let Some(id) = filter.id {
        query.push(" AND number = ").push_bind(id.number());
    }
    if let Some(kind) = filter.kind {
        query.push(" AND kind = ").push_bind(kind.as_str());
    }
    if let Some(task) = &filter.task {
        query.push(" AND LOWER(task) = ").push_bind(task.key());
    }
    if let Some(archived) = filter.archived {
        query.push(" AND archived = ").push_bind(archived);
    }
    for (column, range) in [("created_at", filter.created), ("finished_at", filter.finished)] {
        if let Some(from) = range.from {
            query.push(format!(" AND {column} >= ")).push_bind(from);
        }
        if let Some(until) = range.until {
            query.push(format!(" AND {column} < ")).push_bind(until);
        }
    }
    if let Some((repository, digest)) = &filter.image {
        query.push(" AND number IN (SELECT number FROM run_images WHERE registry = ");
        query.push_bind(registry.as_str()).push(" AND repository = ");
        query.push_bind(repository.as_str()).push(" AND digest = ");
        query.push_bind(digest.to_string()).push(")");
    }
    if let Some(before) = filter.before {
        query.push(" AND number < ").push_bind(before.number());
    }
    query.push(" ORDER BY number DESC LIMIT ").push_bind(limit as i64);
    query
}

/// So that runs are found by what they pushed.
async fn note_images(
    connection: &mut SqliteConnection,
    run: &Run,
    images: &[crate::OutputImage],
) -> sqlx::Result<()> {
    for image in images {
        sqlx::query(
            "INSERT INTO run_images (registry, number, repository, digest)
             VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
        )
        .bind(run.registry.as_str())
        .bind(run.id.number())
        .bind(&image.repository)
        .bind(image.digest.to_string())
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Owner of the leases that a run holds in the store.
fn lease_owner(registry: &RegistryName, run: RunId) -> String {
    format!("run/{registry}/{run}")
}

fn log_key(run: &Run) -> LogKey {
    LogKey { registry: run.registry.clone(), run: run.id }
}

fn run_not_found(id: RunId) -> ControlError {
    ControlError::NotFound { what: format!("run `{id}`") }
}

fn until(now: Millis, lease: Duration) -> Millis {
    now.saturating_add_unsigned(lease.as_millis() as u64)
}

/// What the queue itself knows of a run's cost, added to what the executor says.
fn cost_of(run: &Run, outcome: &Outcome, started_at: Millis, now: Millis) -> serde_json::Value {
    let mut cost = match &outcome.cost {
        Some(serde_json::Value::Object(cost)) => cost.clone(),
        _ => serde_json::Map::new(),
    };
    let first_start = run.started_at.unwrap_or(started_at);
    cost.insert("queueMilliseconds".into(), (first_start - run.created_at).max(0).into());
    cost.insert("milliseconds".into(), (now - started_at).max(0).into());
    cost.insert("attempts".into(), run.attempts.into());
    cost.into()
}

/// The status that an attempt's end gives its run, and why.
pub(crate) fn status_of(end: &End) -> (RunStatus, Option<String>) {
    match end {
        End::Succeeded => (RunStatus::Succeeded, None),
        End::Failed(message) => (RunStatus::Failed, Some(message.clone())),
        End::Error(message) => (RunStatus::Error, Some(message.clone())),
        End::Canceled => (RunStatus::Canceled, None),
    }
}

#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Output {
    images: Vec<crate::OutputImage>,
    digest: Option<oci::Digest>,
    #[serde(default)]
    commit: Option<crate::Commit>,
    #[serde(default)]
    dependencies: Option<serde_json::Value>,
}

fn request_json(request: &RunRequest) -> Result<String> {
    request.to_json().map_err(|source| not_json("write a run", source))
}

pub(crate) fn run_of(row: &SqliteRow) -> Result<Run> {
    let output: Option<&str> = column(row, "output")?;
    let output: Output = output.map(from_json).transpose()?.unwrap_or_default();
    let cost: Option<&str> = column(row, "cost")?;
    let kind: RunKind = parsed(column(row, "kind")?)?;
    let request = RunRequest::from_json(kind, column(row, "request")?);
    let task: Option<&str> = column(row, "task")?;
    let definition: Option<&str> = column(row, "definition")?;
    Ok(Run {
        registry: parsed(column(row, "registry")?)?,
        id: RunId::from_number(column::<i64>(row, "number")? as u64),
        kind,
        status: parsed(column(row, "status")?)?,
        request: request.map_err(|source| not_json("read a run", source))?,
        task: task.map(parsed).transpose()?,
        definition: definition.map(parsed).transpose()?,
        update_trigger_token: column(row, "update_trigger_token")?,
        archived: column(row, "archived")?,
        created_at: column(row, "created_at")?,
        updated_at: column(row, "updated_at")?,
        started_at: column(row, "started_at")?,
        finished_at: column(row, "finished_at")?,
        attempts: column::<i64>(row, "attempts")? as u32,
        repeatable: column(row, "repeatable")?,
        error: column(row, "error")?,
        images: output.images,
        digest: output.digest,
        commit: output.commit,
        dependencies: output.dependencies,
        cost: cost.map(from_json).transpose()?,
    })
}
