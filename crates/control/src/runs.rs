//! The table of runs, which is also their queue.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use db::Db;
use oci::{Digest, RegistryName, RepositoryName};
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use store::{Catalog, Millis, lease_within};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::table::{column, from_json, parsed, to_json};
use crate::{
    AuditEntry, Clock, ControlError, EventKind, LogArtifact, LogKey, Logs, Mask, NewRun, PoolName,
    Result, Run, RunId, RunKind, RunLog, RunRequest, RunStatus, SecretKeys, TaskName, audit, pools,
    table, tasks, webhooks,
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
    "ALTER TABLE runs ADD COLUMN pool TEXT",
    "ALTER TABLE runs ADD COLUMN agent TEXT",
    "ALTER TABLE runs ADD COLUMN lane BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE runs ADD COLUMN suits TEXT",
    "CREATE TABLE run_plans (
        registry TEXT NOT NULL,
        number BIGINT NOT NULL,
        plan TEXT NOT NULL,
        PRIMARY KEY (registry, number)
    )",
    "ALTER TABLE runs ADD COLUMN started_by TEXT",
    "ALTER TABLE runs ADD COLUMN cpu BIGINT",
    "ALTER TABLE runs ADD COLUMN log_template TEXT",
    "ALTER TABLE runs ADD COLUMN log_artifact TEXT",
    "CREATE INDEX runs_by_log_to_store ON runs (finished_at)
        WHERE log_template IS NOT NULL AND log_artifact IS NULL",
    "ALTER TABLE runs ADD COLUMN outputs_kept BOOLEAN NOT NULL DEFAULT TRUE",
    "ALTER TABLE runs ADD COLUMN affinity TEXT",
    "CREATE INDEX runs_by_affinity ON runs (registry, affinity, number)
        WHERE affinity IS NOT NULL AND agent IS NOT NULL",
    // What is secret in the request, sealed, until the run has ended.
    "ALTER TABLE runs ADD COLUMN secrets TEXT",
    "CREATE INDEX runs_by_secrets ON runs (finished_at) WHERE secrets IS NOT NULL",
    // What started the run, if nobody asked for it.
    "ALTER TABLE runs ADD COLUMN cause TEXT",
    "CREATE INDEX runs_waiting ON runs (registry, LOWER(task)) WHERE status = 'Queued'",
    "CREATE INDEX runs_unfinished ON runs (registry, LOWER(task)) WHERE finished_at IS NULL",
];

/// Not empty while something may be left of secrets that were not sealed.
const TRACES: &[&str] = &["CREATE TABLE traces (id BIGINT NOT NULL PRIMARY KEY)"];

/// Who has queued a run that nobody asked for.
const SERVER: &str = "server";

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
    pub pool: Option<PoolName>,
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
    pub(crate) catalog: Option<Catalog>,
    logs: Logs,
    pub(crate) clock: Clock,
    pub(crate) keys: SecretKeys,
    pub(crate) settings: RunSettings,
    /// A run was queued or a place became free; a hint, the table decides.
    pub(crate) wake: Notify,
    /// The same, for those that ask on behalf of agents.
    pub(crate) queued: watch::Sender<u64>,
    /// Runs being executed in this process, and how to stop them.
    active: Mutex<HashMap<LogKey, Active>>,
    /// Changes when a run ends.
    ended: watch::Sender<u64>,
}

/// An attempt that this process knows of.
pub(crate) struct Active {
    pub(crate) epoch: i64,
    pub(crate) started_at: Millis,
    pub(crate) cancel: CancellationToken,
    /// Gone with the attempt; an agent's is never here.
    pub(crate) alive: Weak<()>,
}

impl Runs {
    /// `catalog` keeps the contexts of runs from being collected.
    pub async fn open(
        db: Db,
        catalog: Option<Catalog>,
        logs: Logs,
        clock: Clock,
        keys: SecretKeys,
        settings: RunSettings,
    ) -> Result<Self> {
        let failed = "prepare the table of runs";
        db.migrate("runs", SCHEMA).await.map_err(ControlError::database(failed))?;
        // The queue asks whether a pool is there.
        db.migrate("agent_pools", pools::SCHEMA).await.map_err(ControlError::database(failed))?;
        db.migrate("traces", TRACES).await.map_err(ControlError::database(failed))?;
        db.migrate("audit", audit::SCHEMA).await.map_err(ControlError::database(failed))?;
        db.migrate("webhooks", webhooks::SCHEMA).await.map_err(ControlError::database(failed))?;
        let shared = Shared {
            db,
            catalog,
            logs,
            clock,
            keys,
            settings,
            wake: Notify::new(),
            queued: watch::Sender::new(0),
            active: Mutex::default(),
            ended: watch::Sender::new(0),
        };
        let runs = Self { shared: Arc::new(shared) };
        runs.seal_again().await?;
        Ok(runs)
    }

    /// Seals what is not sealed with the key of today: a key was changed, or an older version kept
    /// secrets in the open.
    async fn seal_again(&self) -> Result<()> {
        // Of runs that had ended when the server died.
        let statement = sqlx::query(
            "UPDATE runs SET secrets = NULL WHERE secrets IS NOT NULL AND finished_at IS NOT NULL",
        );
        table::execute(&self.shared.db, "forget the secrets of runs", statement).await?;
        for row in self.unfinished_rows().await? {
            let sealed: Option<&str> = column(&row, "secrets")?;
            if sealed.is_some_and(|sealed| self.shared.keys.is_current(sealed)) {
                continue;
            }
            let run = self.shared.run_of(&row)?;
            let (text, secrets) = self.shared.divide(&run.registry, run.id, &run.request)?;
            if secrets.is_none() {
                continue;
            }
            self.shared.note_traces(sealed).await?;
            let statement = sqlx::query(
                "UPDATE runs SET request = $3, secrets = $4 WHERE registry = $1 AND number = $2",
            )
            .bind(run.registry.as_str())
            .bind(run.id.number())
            .bind(text)
            .bind(secrets);
            table::execute(&self.shared.db, "seal the secrets of a run", statement).await?;
        }
        self.shared.remove_traces().await
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

    /// What a run that has ended was made of and came to, a JSON object.
    pub async fn plan(
        &self,
        registry: &RegistryName,
        id: RunId,
    ) -> Result<Option<serde_json::Value>> {
        let plan: Option<String> =
            sqlx::query_scalar("SELECT plan FROM run_plans WHERE registry = $1 AND number = $2")
                .bind(registry.as_str())
                .bind(id.number())
                .fetch_optional(self.shared.db.reads())
                .await
                .map_err(ControlError::database("look up the plan of a run"))?;
        plan.as_deref().map(from_json).transpose()
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
        if run.request.secrets().any(|secret| !secret.is_empty() && !Mask::hides(secret)) {
            let text = format!("a secret of fewer than {} characters", Mask::SECRET_LEN_MIN);
            let text = format!("{text} is not hidden in the log");
            log.append(EventKind::Warning { text }).await;
        }
        self.queue_has_changed();
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
        if let Some(pool) = &new.pool {
            pools::check(transaction, registry, pool).await?;
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
        let id = RunId::from_number(number as u64);
        let (text, secrets) = self.shared.divide(registry, id, request)?;
        sqlx::query(
            "INSERT INTO runs (registry, number, kind, status, request, created_at, updated_at,
                attempts, epoch, lease_until, cancel_requested, archived, log_kept, task,
                definition, update_trigger_token, pool, lane, suits, started_by, cpu, log_template,
                affinity, secrets, cause)
             VALUES ($1, $2, $3, 'Queued', $4, $5, $5, 0, 0, 0, FALSE, $6, TRUE, $7, $8, $9, $10,
                $11, $12, $13, $14, $15, $16, $17, $18)",
        )
        .bind(registry.as_str())
        .bind(number)
        .bind(new.kind.as_str())
        .bind(text)
        .bind(now)
        .bind(request.archived())
        .bind(new.task.as_ref().map(TaskName::as_str))
        .bind(new.definition.as_ref().map(ToString::to_string))
        .bind(&new.update_trigger_token)
        .bind(new.pool.as_ref().map(PoolName::as_str))
        .bind(new.lane.number())
        .bind(request.suits().map(|platform| platform.to_string()))
        .bind(&new.started_by)
        .bind(new.cpu)
        .bind(new.log_template.as_ref().filter(|template| !template.is_empty()))
        .bind(new.affinity())
        .bind(secrets)
        .bind(new.cause.as_ref().map(to_json).transpose()?)
        .execute(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        if self.shared.catalog.is_some() {
            let (owner, keep) = (lease_owner(registry, id), self.context_keep(request));
            lease_within(transaction, &owner, &request.blobs(), keep).await?;
        }
        let what = new.task.as_ref().map_or(new.kind.as_str(), TaskName::as_str);
        let entry = AuditEntry {
            registry: Some(registry.clone()),
            principal: new.started_by.clone().unwrap_or_else(|| SERVER.to_owned()),
            action: "run.queued".to_owned(),
            target: id.to_string(),
            outcome: what.to_owned(),
        };
        audit::append_within(transaction, &entry, now).await?;
        webhooks::note_fired_within(transaction, registry, id, new, now).await?;
        Ok(id)
    }

    pub async fn get(&self, registry: &RegistryName, id: RunId) -> Result<Option<Run>> {
        let row = sqlx::query("SELECT * FROM runs WHERE registry = $1 AND number = $2")
            .bind(registry.as_str())
            .bind(id.number())
            .fetch_optional(self.shared.db.reads())
            .await
            .map_err(ControlError::database("read a run"))?;
        row.map(|row| self.shared.run_of(&row)).transpose()
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
        rows.iter().map(|row| self.shared.run_of(row)).collect()
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
        match rows.first() {
            Some(row) => self.shared.run_of(row),
            None => Err(run_not_found(id)),
        }
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
        let rows = self.ending(failed, statement).await?;
        let Some(row) = rows.first() else {
            let run = self.get(registry, id).await?.ok_or_else(|| run_not_found(id))?;
            let message = format!("run `{id}` has ended already: {}", run.status);
            return Err(ControlError::Conflict { message });
        };
        let run = self.shared.run_of(row)?;
        if run.status == RunStatus::Canceled {
            self.after_end(&run).await?;
            return Ok(run);
        }
        if let Some(active) = self.active().get(&log_key(&run)) {
            active.cancel.cancel();
        }
        // Nobody may be executing it: then the next claim ends it.
        self.queue_has_changed();
        Ok(run)
    }

    /// Runs a statement that ends runs, and returns their rows.
    async fn ending(
        &self,
        failed: &'static str,
        statement: Query<'_, Sqlite, SqliteArguments>,
    ) -> Result<Vec<SqliteRow>> {
        let mut transaction =
            self.shared.db.begin().await.map_err(ControlError::database(failed))?;
        let rows = statement.fetch_all(&mut *transaction).await;
        let rows = rows.map_err(ControlError::database(failed))?;
        self.shared.note_ends(&mut transaction, &rows, self.shared.clock.now()).await?;
        transaction.commit().await.map_err(ControlError::database(failed))?;
        Ok(rows)
    }

    /// The log of a run, for reading.
    pub fn logs(&self) -> &Logs {
        &self.shared.logs
    }

    /// Returns once no run waits or is under way, and no log is to be stored.
    pub async fn idle(&self) -> Result<()> {
        let mut ended = self.ends();
        loop {
            ended.borrow_and_update();
            if self.unfinished().await?.is_empty() && self.logs_to_store(1).await?.is_empty() {
                return Ok(());
            }
            // The sender lives as long as `self`.
            let _ = ended.changed().await;
        }
    }

    /// Returns once a run has ended, or is no more.
    pub async fn ended(&self, registry: &RegistryName, id: RunId) -> Result<()> {
        let mut ended = self.ends();
        loop {
            ended.borrow_and_update();
            if self.get(registry, id).await?.is_none_or(|run| run.status.is_final()) {
                return Ok(());
            }
            // The sender lives as long as `self`.
            let _ = ended.changed().await;
        }
    }

    /// Changes whenever a run ends, or the log of one is stored.
    pub fn ends(&self) -> watch::Receiver<u64> {
        self.shared.ended.subscribe()
    }

    /// Runs that have ended and whose logs are to be artifacts of their registries, at most
    /// `limit`, those that ended first.
    pub async fn logs_to_store(&self, limit: usize) -> Result<Vec<Run>> {
        let rows = sqlx::query(
            "SELECT * FROM runs
             WHERE log_template IS NOT NULL AND log_artifact IS NULL AND finished_at IS NOT NULL
             ORDER BY finished_at LIMIT $1",
        )
        .bind(limit as i64)
        .fetch_all(self.shared.db.reads())
        .await
        .map_err(ControlError::database("find logs to store"))?;
        rows.iter().map(|row| self.shared.run_of(row)).collect()
    }

    /// What became of the log of a run, which is not to be stored any more.
    pub async fn note_log_artifact(&self, run: &Run, artifact: &LogArtifact) -> Result<()> {
        let statement =
            sqlx::query("UPDATE runs SET log_artifact = $3 WHERE registry = $1 AND number = $2")
                .bind(run.registry.as_str())
                .bind(run.id.number())
                .bind(to_json(artifact)?);
        table::execute(&self.shared.db, "note where a log is stored", statement).await?;
        self.shared.ended.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Runs that wait or are under way, oldest first.
    pub async fn unfinished(&self) -> Result<Vec<Run>> {
        let rows = self.unfinished_rows().await?;
        rows.iter().map(|row| self.shared.run_of(row)).collect()
    }

    async fn unfinished_rows(&self) -> Result<Vec<SqliteRow>> {
        sqlx::query(
            "SELECT * FROM runs WHERE status IN ('Queued', 'Started', 'Running')
             ORDER BY created_at, registry, number",
        )
        .fetch_all(self.shared.db.reads())
        .await
        .map_err(ControlError::database("list runs"))
    }

    /// For the only owner of a data folder, before its worker starts: what was under way
    /// when the last owner died may be claimed at once, and logs are put right. Returns
    /// those runs. Agents go on with theirs.
    pub async fn take_over(&self) -> Result<Vec<Run>> {
        let statement = sqlx::query(
            "UPDATE runs SET lease_until = 0
             WHERE agent IS NULL AND status IN ('Started', 'Running') RETURNING *",
        );
        let rows = table::returning(&self.shared.db, "take over runs", statement).await?;
        for run in self.unfinished().await? {
            self.log(&run).await?;
        }
        self.end_logs().await?;
        rows.iter().map(|row| self.shared.run_of(row)).collect()
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
        self.end_lost().await?;
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
            "UPDATE runs SET status = 'Error', updated_at = $2, finished_at = $2,
                error = CASE WHEN status = 'Queued' THEN 'the run waited too long for a worker'
                    ELSE 'its agent was lost, and no other came' END
             WHERE (status = 'Queued' AND created_at < $1)
                OR (status IN ('Started', 'Running') AND agent IS NOT NULL AND lease_until < $1)
             RETURNING *",
        )
        .bind(before)
        .bind(self.shared.clock.now());
        let rows = self.ending("end overdue runs", statement).await?;
        self.after_ends(&rows).await?;
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
            let run = self.shared.run_of(row)?;
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
            for statement in [
                "DELETE FROM run_images WHERE registry = $1 AND number = $2",
                "DELETE FROM run_plans WHERE registry = $1 AND number = $2",
            ] {
                sqlx::query(statement)
                    .bind(column::<&str>(row, "registry")?)
                    .bind(column::<i64>(row, "number")?)
                    .execute(&mut *transaction)
                    .await
                    .map_err(ControlError::database(failed))?;
            }
        }
        transaction.commit().await.map_err(ControlError::database(failed))?;
        for row in &rows {
            let run = self.shared.run_of(row)?;
            if let Err(error) = self.shared.logs.delete(&log_key(&run)).await {
                tracing::warn!(%error, run = %run.id, "the log of a deleted run stays");
            }
        }
        Ok(rows.len() as u64)
    }

    /// What follows from an end that is recorded: the log's last line, and no more leases.
    pub(crate) async fn after_end(&self, run: &Run) -> Result<()> {
        if let Some(active) = self.active().remove(&log_key(run)) {
            active.cancel.cancel();
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
        self.queue_has_changed();
        Ok(())
    }

    /// The same for many rows: all of them, whatever becomes of one, since followers wait for the
    /// end of each log.
    pub(crate) async fn after_ends(&self, rows: &[SqliteRow]) -> Result<()> {
        let mut result = Ok(());
        for row in rows {
            let ended = match self.shared.run_of(row) {
                Ok(run) => self.after_end(&run).await,
                Err(error) => Err(error),
            };
            result = result.and(ended);
        }
        result
    }

    /// A run was queued, or a place became free.
    pub(crate) fn queue_has_changed(&self) {
        self.shared.wake.notify_one();
        self.shared.queued.send_modify(|count| *count += 1);
    }

    pub(crate) async fn log(&self, run: &Run) -> Result<RunLog> {
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

    pub(crate) fn active(&self) -> std::sync::MutexGuard<'_, HashMap<LogKey, Active>> {
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
    if let Some(pool) = &filter.pool {
        query.push(" AND LOWER(pool) = ").push_bind(pool.key());
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

/// Where the secrets of a run are at home.
fn place(registry: &RegistryName, id: RunId) -> String {
    format!("run {registry}/{id}")
}

/// Owner of the leases that a run holds in the store.
pub(crate) fn lease_owner(registry: &RegistryName, run: RunId) -> String {
    format!("run/{registry}/{run}")
}

pub(crate) fn log_key(run: &Run) -> LogKey {
    LogKey { registry: run.registry.clone(), run: run.id }
}

fn run_not_found(id: RunId) -> ControlError {
    ControlError::NotFound { what: format!("run `{id}`") }
}

#[derive(Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Output {
    pub(crate) images: Vec<crate::OutputImage>,
    pub(crate) digest: Option<oci::Digest>,
    #[serde(default)]
    pub(crate) commit: Option<crate::Commit>,
    #[serde(default)]
    pub(crate) dependencies: Option<serde_json::Value>,
    #[serde(default)]
    pub(crate) log_digest: Option<oci::Digest>,
}

impl Shared {
    /// Remembers, before it is sealed, that a secret was in the open: what was there before is left
    /// in the file, and in its log.
    pub(crate) async fn note_traces(&self, sealed: Option<&str>) -> Result<()> {
        if sealed.is_some() {
            return Ok(());
        }
        let statement = sqlx::query("INSERT INTO traces (id) VALUES (1) ON CONFLICT DO NOTHING");
        table::execute(&self.db, "note that secrets are in the open", statement).await?;
        Ok(())
    }

    /// Leaves nothing of secrets that were in the open.
    pub(crate) async fn remove_traces(&self) -> Result<()> {
        let failed = "remove what is left of secrets";
        let traces: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM traces")
            .fetch_one(self.db.reads())
            .await
            .map_err(ControlError::database(failed))?;
        if traces > 0 {
            if let Err(error) = self.db.scrape().await {
                // The next start tries it again.
                tracing::error!(%error, "secrets that were in the open may be left in the database");
                return Ok(());
            }
            table::execute(&self.db, failed, sqlx::query("DELETE FROM traces")).await?;
        }
        Ok(())
    }

    /// Writes to the audit log which of these runs have ended, and what they pushed; has webhooks
    /// told of them; and forgets their secrets.
    pub(crate) async fn note_ends(
        &self,
        connection: &mut SqliteConnection,
        rows: &[SqliteRow],
        now: Millis,
    ) -> Result<()> {
        for row in rows {
            let run = self.run_of(row)?;
            if !run.status.is_final() {
                continue;
            }
            if column::<Option<&str>>(row, "secrets")?.is_some() {
                sqlx::query("UPDATE runs SET secrets = NULL WHERE registry = $1 AND number = $2")
                    .bind(run.registry.as_str())
                    .bind(run.id.number())
                    .execute(&mut *connection)
                    .await
                    .map_err(ControlError::database("forget the secrets of a run"))?;
            }
            webhooks::note_end_within(connection, &run, now).await?;
            let images = run.images.iter();
            let images = images.map(|image| format!(" {}@{}", image.repository, image.digest));
            let entry = AuditEntry {
                target: format!("{}{}", run.id, images.collect::<String>()),
                registry: Some(run.registry),
                principal: run.started_by.unwrap_or_else(|| SERVER.to_owned()),
                action: "run.ended".to_owned(),
                outcome: run.status.to_string(),
            };
            audit::append_within(connection, &entry, now).await?;
        }
        Ok(())
    }

    /// A request as the table keeps it: what may be read, and what is sealed.
    fn divide(
        &self,
        registry: &RegistryName,
        id: RunId,
        request: &RunRequest,
    ) -> Result<(String, Option<String>)> {
        let open = request.clone().without_secrets();
        self.keys.divide(&place(registry, id), request, &open)
    }

    /// A run as its row has it, with its secrets if it still needs them.
    pub(crate) fn run_of(&self, row: &SqliteRow) -> Result<Run> {
        let output: Option<&str> = column(row, "output")?;
        let output: Output = output.map(from_json).transpose()?.unwrap_or_default();
        let cost: Option<&str> = column(row, "cost")?;
        let log_artifact: Option<&str> = column(row, "log_artifact")?;
        let kind: RunKind = parsed(column(row, "kind")?)?;
        let registry: RegistryName = parsed(column(row, "registry")?)?;
        let id = RunId::from_number(column::<i64>(row, "number")? as u64);
        let (place, secrets) = (place(&registry, id), column(row, "secrets")?);
        let request = RunRequest::join(&self.keys, kind, &place, column(row, "request")?, secrets)?;
        let task: Option<&str> = column(row, "task")?;
        let definition: Option<&str> = column(row, "definition")?;
        let pool: Option<&str> = column(row, "pool")?;
        let cause: Option<&str> = column(row, "cause")?;
        Ok(Run {
            registry,
            id,
            kind,
            status: parsed(column(row, "status")?)?,
            request,
            task: task.map(parsed).transpose()?,
            definition: definition.map(parsed).transpose()?,
            update_trigger_token: column(row, "update_trigger_token")?,
            pool: pool.map(parsed).transpose()?,
            agent: column(row, "agent")?,
            started_by: column(row, "started_by")?,
            cause: cause.map(from_json).transpose()?,
            cpu: column(row, "cpu")?,
            log_template: column(row, "log_template")?,
            log_artifact: log_artifact.map(from_json).transpose()?,
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
            log_digest: output.log_digest,
            cost: cost.map(from_json).transpose()?,
        })
    }
}
