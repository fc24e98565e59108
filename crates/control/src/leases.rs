//! Who executes which run: the table as a queue of leases.
//!
//! A lease is held under an epoch. A later claim has a higher one, and whatever an earlier one
//! still wants to change is refused.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use oci::RegistryName;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use store::{Millis, note_run_within, release_within};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::executor::Attempt;
use crate::pools::Pool;
use crate::queue::{LEASE, Queue};
use crate::runs::{Active, Output, lease_owner, log_key};
use crate::table::{column, from_json, to_json};
use crate::{
    ControlError, End, EventKind, LogKey, Outcome, OutputImage, Result, Run, RunId, RunStatus,
    Runs, table, tasks,
};

/// Bytes of the plan of a run, as JSON.
const PLAN_SIZE_MAX: usize = 1 << 20;

/// So long a run waits for the agent that has its snapshots, if that one is free.
pub const WARM_WAIT: Duration = Duration::from_secs(1);

/// The pool whose agents execute what names no pool.
pub(crate) const DEFAULT_POOL: &str = "default";

/// Who wants a run.
#[derive(Debug, Clone, Copy)]
enum Claimant<'a> {
    /// This process.
    Here,
    Agent(&'a AgentClaim<'a>),
    /// Nobody executes what an agent has lost and no other may begin again: it is ended.
    Nobody,
}

/// An agent that asks for a run.
#[derive(Debug, Clone, Copy)]
pub struct AgentClaim<'a> {
    pub pool: &'a Pool,
    pub agent: &'a str,
    /// As [`Platform`](oci::Platform) has it: of the runs that name no pool an agent gets those for
    /// its own machine.
    pub platform: &'a str,
    /// Agents of the pool that wait for a run, too. Whichever of them had the last run of a task, or
    /// the last build for a repository, is to get the next one ([`WARM_WAIT`]).
    pub waiting: &'a [String],
}

#[async_trait]
impl Queue for Runs {
    async fn claim(&self) -> Result<Option<Attempt>> {
        self.next(Claimant::Here).await
    }

    async fn changed(&self) {
        self.shared.wake.notified().await;
    }

    async fn renew(&self, attempt: &Attempt) -> Result<Option<bool>> {
        let statement = sqlx::query(
            "UPDATE runs SET lease_until = $4
             WHERE registry = $1 AND number = $2 AND epoch = $3
                AND status IN ('Started', 'Running')
             RETURNING cancel_requested",
        )
        .bind(attempt.run.registry.as_str())
        .bind(attempt.run.id.number())
        .bind(attempt.epoch)
        .bind(until(self.shared.clock.now(), LEASE));
        let rows = table::returning(&self.shared.db, "renew a lease", statement).await?;
        rows.first().map(|row| column(row, "cancel_requested")).transpose()
    }

    async fn holds(&self, attempt: &Attempt) -> Result<bool> {
        self.holds_lease(&attempt.run.registry, attempt.run.id, attempt.epoch).await
    }

    /// A later attempt finds a run that is running, and says anew whether it may be repeated.
    async fn set_running(&self, attempt: &Attempt, repeatable: bool) -> Result<bool> {
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
        if changed == 1 && attempt.run.status != RunStatus::Running {
            attempt.log.append(EventKind::Status { status: RunStatus::Running }).await;
        }
        Ok(changed == 1)
    }

    async fn finish(
        &self,
        attempt: &Attempt,
        status: RunStatus,
        error: Option<&str>,
        outcome: &Outcome,
    ) -> Result<bool> {
        let now = self.shared.clock.now();
        let output = Output {
            images: outcome.images.clone(),
            digest: outcome.digest.clone(),
            commit: outcome.commit.clone(),
            dependencies: outcome.dependencies.clone(),
            log_digest: Some(attempt.log.digest()),
        };
        let cost = cost_of(&attempt.run, outcome, attempt.started_at, now);
        // It lives longer than the log, and a user's text may be in it.
        let error = error.map(|error| attempt.log.masked(error));
        let statement = sqlx::query(
            "UPDATE runs SET status = $4, error = $5, output = $6, cost = $7, secrets = NULL,
                updated_at = $8, finished_at = $8
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
        .bind(now);
        let plan = plan_of(attempt, outcome)?;
        let failed = "end a run";
        let mut transaction =
            self.shared.db.begin().await.map_err(ControlError::database(failed))?;
        let row = statement.fetch_optional(&mut *transaction).await;
        let row = row.map_err(ControlError::database(failed))?;
        if row.is_some() && self.shared.catalog.is_some() {
            let owner = lease_owner(&attempt.run.registry, attempt.run.id);
            release_within(&mut transaction, &owner).await?;
        }
        if let (Some(plan), true) = (&plan, row.is_some()) {
            note_plan(&mut transaction, attempt, plan).await?;
        }
        if row.is_some() {
            let (run, images) = (&attempt.run, &outcome.images);
            if self.shared.catalog.is_some() {
                let made = made_by(attempt, outcome, plan.as_deref(), now)?;
                let own = images.iter().filter(|image| !image.elsewhere);
                let named = own.map(|image| (&image.digest, Some(image.repository.as_str())));
                let built = outcome.digest.iter().map(|digest| (digest, None));
                for (manifest, repository) in named.chain(built).collect::<BTreeSet<_>>() {
                    let registry = &run.registry;
                    note_run_within(&mut transaction, registry, repository, manifest, &made)
                        .await?;
                }
            }
            note_images(&mut transaction, run, images)
                .await
                .map_err(ControlError::database(failed))?;
            if let Some(task) = &run.task
                && status == RunStatus::Succeeded
            {
                tasks::note_dependencies(&self.shared, &mut transaction, run, task, outcome)
                    .await?;
            }
        }
        if let Some(row) = &row {
            self.shared.note_ends(&mut transaction, std::slice::from_ref(row), now).await?;
        }
        transaction.commit().await.map_err(ControlError::database(failed))?;
        self.forget(attempt);
        let Some(row) = row else { return Ok(false) };
        self.after_end(&self.shared.run_of(&row)?).await?;
        Ok(true)
    }

    /// Where commands are under way the run ends instead.
    async fn give_back(&self, attempt: &Attempt) -> Result<()> {
        let run = &attempt.run;
        // Only the table knows how far it has come; if it does not answer, the next claim asks.
        if let Ok(Some(now)) = self.get(&run.registry, run.id).await
            && !now.may_begin_again()
        {
            return self.refuse(attempt, End::Error(lost_task(run))).await;
        }
        let text = match run.agent {
            Some(_) => "the agent stops; the run begins again with the next one",
            None => "the server stops; the run begins again with the next start",
        };
        attempt.log.message(text).await;
        self.release(attempt).await
    }

    /// The attempt is over, and no later one of its run is meant.
    fn forget(&self, attempt: &Attempt) {
        let key = log_key(&attempt.run);
        let mut all = self.active();
        if all.get(&key).is_some_and(|active| active.epoch == attempt.epoch) {
            all.remove(&key);
        }
    }
}

impl Runs {
    /// Takes a run for an agent of a pool; its lease must be renewed within a minute.
    pub async fn claim_for(&self, claim: &AgentClaim<'_>) -> Result<Option<Attempt>> {
        self.next(Claimant::Agent(claim)).await
    }

    /// Whether [`Self::claim_for`] would find a run.
    pub async fn has_work_for(&self, claim: &AgentClaim<'_>) -> Result<bool> {
        let mut query = QueryBuilder::new("");
        let now = self.shared.clock.now();
        self.push_claimable(&mut query, Claimant::Agent(claim), now);
        let found = query.build().fetch_optional(self.shared.db.reads()).await;
        Ok(found.map_err(ControlError::database("look for a run"))?.is_some())
    }

    /// Changes when [`Self::has_work_for`] may have.
    pub fn queue_changes(&self) -> watch::Receiver<u64> {
        self.shared.queued.subscribe()
    }

    /// An attempt that an agent still holds, by what the agent knows of it.
    pub async fn attempt_of(
        &self,
        registry: &RegistryName,
        id: RunId,
        epoch: i64,
    ) -> Result<Option<Attempt>> {
        let row = sqlx::query(
            "SELECT * FROM runs WHERE registry = $1 AND number = $2 AND epoch = $3
                AND agent IS NOT NULL AND status IN ('Started', 'Running')",
        )
        .bind(registry.as_str())
        .bind(id.number())
        .bind(epoch)
        .fetch_optional(self.shared.db.reads())
        .await
        .map_err(ControlError::database("read a run"))?;
        let Some(row) = row else { return Ok(None) };
        let (run, is_canceled) = (self.shared.run_of(&row)?, column(&row, "cancel_requested")?);
        let started_at = run.updated_at;
        self.attempt(run, epoch, started_at, is_canceled).await.map(Some)
    }

    /// Whether the attempt with this epoch is the one that may publish.
    pub async fn holds_lease(
        &self,
        registry: &RegistryName,
        id: RunId,
        epoch: i64,
    ) -> Result<bool> {
        let held: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM runs
             WHERE registry = $1 AND number = $2 AND epoch = $3
                AND status IN ('Started', 'Running')",
        )
        .bind(registry.as_str())
        .bind(id.number())
        .bind(epoch)
        .fetch_one(self.shared.db.reads())
        .await
        .map_err(ControlError::database("check a lease"))?;
        Ok(held == 1)
    }

    /// Takes the next run that may be begun, and ends those before it that may not.
    async fn next(&self, claimant: Claimant<'_>) -> Result<Option<Attempt>> {
        loop {
            let Some(attempt) = self.take(claimant).await? else { return Ok(None) };
            let run = &attempt.run;
            if let Some(end) = self.reason_to_end(&attempt, claimant) {
                self.refuse(&attempt, end).await?;
                continue;
            }
            // A first one has the contexts that came with the run.
            if attempt.epoch > 1
                && let Err(error) = self.keep_context(run).await
            {
                tracing::error!(run = %run.id, %error, "the context could not be leased");
                self.refuse(&attempt, End::Error("the build context is gone".into())).await?;
                continue;
            }
            if attempt.epoch > 1 {
                let (who, max) = (executor_of(run), self.shared.settings.attempts_max);
                let number = run.attempts;
                let text = format!(
                    "{who} stopped while this run was under way; attempt {number} of {max} begins"
                );
                attempt.log.message(text).await;
            }
            attempt.log.append(EventKind::Status { status: run.status }).await;
            return Ok(Some(attempt));
        }
    }

    /// Takes the first run in line: one that waits, or one whose attempt was lost. One statement,
    /// so that two workers never get the same run.
    async fn take(&self, claimant: Claimant<'_>) -> Result<Option<Attempt>> {
        let now = self.shared.clock.now();
        let agent = match claimant {
            Claimant::Here => {
                self.keep_own(now).await?;
                None
            }
            Claimant::Agent(claim) => Some(claim.agent),
            Claimant::Nobody => None,
        };
        let mut query = QueryBuilder::new(
            "UPDATE runs SET
                status = CASE WHEN status = 'Queued' THEN 'Started' ELSE status END,
                attempts = attempts + 1, epoch = epoch + 1, started_at = COALESCE(started_at, ",
        );
        query.push_bind(now).push("), updated_at = ").push_bind(now);
        query.push(", lease_until = ").push_bind(until(now, LEASE));
        query.push(", agent = ").push_bind(agent);
        query.push(" WHERE (registry, number) = (");
        self.push_claimable(&mut query, claimant, now);
        query.push(") RETURNING *");
        let rows = table::returning(&self.shared.db, "claim a run", query.build()).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let run = self.shared.run_of(row)?;
        let (epoch, is_canceled) = (column(row, "epoch")?, column(row, "cancel_requested")?);
        self.attempt(run, epoch, now, is_canceled).await.map(Some)
    }

    /// Adds the statement that finds the first run in line for somebody.
    fn push_claimable(
        &self,
        query: &mut QueryBuilder<Sqlite>,
        claimant: Claimant<'_>,
        now: Millis,
    ) {
        let settings = &self.shared.settings;
        query.push(
            "SELECT r.registry, r.number FROM runs r
             WHERE (r.status = 'Queued'
                OR (r.status IN ('Started', 'Running') AND r.lease_until < ",
        );
        query.push_bind(now).push(")) AND ");
        match claimant {
            Claimant::Here => {
                query.push("r.pool IS NULL AND ").push_bind(i64::from(settings.concurrency));
                query.push(
                    " > (SELECT COUNT(*) FROM runs o WHERE o.registry = r.registry
                        AND o.agent IS NULL AND o.status IN ('Started', 'Running')
                        AND o.lease_until >= ",
                );
                query.push_bind(now).push(")");
            }
            Claimant::Nobody => {
                query.push(
                    "r.pool IS NOT NULL AND r.status != 'Queued' AND (r.cancel_requested
                        OR (r.status = 'Running' AND NOT r.repeatable)
                        OR NOT EXISTS (SELECT 1 FROM agent_pools p
                            WHERE p.registry = r.registry AND p.name_key = LOWER(r.pool))
                        OR r.attempts >= ",
                );
                query.push_bind(i64::from(settings.attempts_max)).push(")");
            }
            Claimant::Agent(claim @ AgentClaim { pool, platform, .. }) => {
                query.push("r.registry = ").push_bind(pool.registry.as_str());
                query.push(" AND COALESCE(LOWER(r.pool), 'default') = ");
                query.push_bind(pool.name.key());
                query.push(" AND (r.pool IS NOT NULL OR r.suits = ").push_bind(*platform);
                query.push(") AND ").push_bind(i64::from(pool.count));
                query.push(
                    " > (SELECT COUNT(*) FROM runs o WHERE o.registry = r.registry
                        AND o.agent IS NOT NULL AND o.status IN ('Started', 'Running')
                        AND COALESCE(LOWER(o.pool), 'default') = COALESCE(LOWER(r.pool), 'default')
                        AND o.lease_until >= ",
                );
                query.push_bind(now).push(")");
                push_not_for_others(query, claim, now);
            }
        }
        query.push(" ORDER BY r.lane, r.created_at, r.registry, r.number LIMIT 1");
    }

    async fn attempt(
        &self,
        run: Run,
        epoch: i64,
        started_at: Millis,
        is_canceled: bool,
    ) -> Result<Attempt> {
        let log = self.log(&run).await?;
        let alive = Arc::new(());
        let (cancel, started_at) = {
            let mut active = self.active();
            match active.get(&log_key(&run)) {
                Some(known) if known.epoch == epoch => (known.cancel.clone(), known.started_at),
                // It was taken over meanwhile, and will find that its lease is lost.
                Some(known) if known.epoch > epoch => (CancellationToken::new(), started_at),
                _ => {
                    let (cancel, alive) = (CancellationToken::new(), Arc::downgrade(&alive));
                    let new = Active { epoch, started_at, cancel: cancel.clone(), alive };
                    active.insert(log_key(&run), new);
                    (cancel, started_at)
                }
            }
        };
        if is_canceled {
            cancel.cancel();
        }
        let queue = Arc::new(self.clone());
        Ok(Attempt { run, log, cancel, epoch, started_at, queue, alive })
    }

    /// Ends what agents have lost and no other may begin again.
    pub(crate) async fn end_lost(&self) -> Result<()> {
        // All that it takes it ends.
        self.next(Claimant::Nobody).await.map(drop)
    }

    /// Why an attempt should not be made (again).
    fn reason_to_end(&self, attempt: &Attempt, claimant: Claimant<'_>) -> Option<End> {
        let (run, attempts_max) = (&attempt.run, self.shared.settings.attempts_max);
        if attempt.cancel.is_cancelled() {
            return Some(End::Canceled);
        }
        if !run.may_begin_again() {
            return Some(End::Error(lost_task(run)));
        }
        if run.attempts > attempts_max {
            let who = executor_of(run);
            return Some(End::Error(format!(
                "{who} stopped while the run was under way, in each of {attempts_max} attempts"
            )));
        }
        matches!(claimant, Claimant::Nobody)
            .then(|| End::Error("its agent stopped, and its agent pool is gone".into()))
    }

    /// Ends a run that nobody executes.
    async fn refuse(&self, attempt: &Attempt, end: End) -> Result<()> {
        let (status, error) = status_of(&end);
        let outcome = Outcome::of(end);
        if !self.finish(attempt, status, error.as_deref(), &outcome).await? {
            tracing::warn!(run = %attempt.run.id, "a run was taken over before it was ended");
        }
        Ok(())
    }

    /// Extends expired leases of attempts that go on in this process: the machine was asleep,
    /// or its clock was set. Only who claimed a run since then has taken it over.
    async fn keep_own(&self, now: Millis) -> Result<()> {
        let own: Vec<(LogKey, i64)> = (self.active().iter())
            .filter(|(_, active)| active.alive.strong_count() > 0)
            .map(|(key, active)| (key.clone(), active.epoch))
            .collect();
        for (key, epoch) in own {
            let statement = sqlx::query(
                "UPDATE runs SET lease_until = $5
                 WHERE registry = $1 AND number = $2 AND epoch = $3 AND lease_until < $4
                    AND agent IS NULL AND status IN ('Started', 'Running')",
            )
            .bind(key.registry.as_str())
            .bind(key.run.number())
            .bind(epoch)
            .bind(now)
            .bind(until(now, LEASE));
            table::execute(&self.shared.db, "keep a run", statement).await?;
        }
        Ok(())
    }

    /// Another attempt may have the run at once; this one does not count, nor what is still on its way
    /// from it.
    async fn release(&self, attempt: &Attempt) -> Result<()> {
        self.forget(attempt);
        let statement = sqlx::query(
            "UPDATE runs SET lease_until = $4, attempts = attempts - 1, epoch = epoch + 1
             WHERE registry = $1 AND number = $2 AND epoch = $3
                AND status IN ('Started', 'Running')",
        )
        .bind(attempt.run.registry.as_str())
        .bind(attempt.run.id.number())
        .bind(attempt.epoch)
        .bind(self.shared.clock.now() - 1);
        table::execute(&self.shared.db, "give a run back", statement).await?;
        self.queue_has_changed();
        Ok(())
    }
}

/// Leaves out what another agent, which waits for it, has the snapshots for.
fn push_not_for_others(query: &mut QueryBuilder<Sqlite>, claim: &AgentClaim<'_>, now: Millis) {
    let mut others = claim.waiting.iter().filter(|other| *other != claim.agent).peekable();
    if others.peek().is_none() {
        return;
    }
    query.push(" AND (r.status != 'Queued' OR r.affinity IS NULL OR r.created_at <= ");
    query.push_bind(now.saturating_sub_unsigned(WARM_WAIT.as_millis() as u64));
    query.push(
        " OR COALESCE((SELECT had.agent FROM runs had WHERE had.registry = r.registry
            AND had.affinity = r.affinity AND had.agent IS NOT NULL
            ORDER BY had.number DESC LIMIT 1) NOT IN (",
    );
    let mut names = query.separated(", ");
    for other in others {
        names.push_bind(other);
    }
    query.push("), TRUE))");
}

/// What executes a run.
fn executor_of(run: &Run) -> &'static str {
    match run.pool {
        Some(_) => "its agent",
        None => "the server",
    }
}

/// Why a task whose commands were under way has ended.
fn lost_task(run: &Run) -> String {
    let who = executor_of(run);
    format!(
        "{who} stopped while this run was under way, and a task with commands is not begun again"
    )
}

fn until(now: Millis, lease: Duration) -> Millis {
    now.saturating_add_unsigned(lease.as_millis() as u64)
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

/// What a run was made of, as it is kept: without its secrets. An agent could say anything.
fn plan_of(attempt: &Attempt, outcome: &Outcome) -> Result<Option<String>> {
    let Some(mut plan) = outcome.plan.clone() else { return Ok(None) };
    mask_texts(&mut plan, &|text| attempt.log.masked(text));
    let text = to_json(&plan)?;
    Ok(Some(text).filter(|text| text.len() <= PLAN_SIZE_MAX))
}

async fn note_plan(connection: &mut SqliteConnection, attempt: &Attempt, plan: &str) -> Result<()> {
    let noted = sqlx::query(
        "INSERT INTO run_plans (registry, number, plan) VALUES ($1, $2, $3)
         ON CONFLICT (registry, number) DO UPDATE SET plan = excluded.plan",
    )
    .bind(attempt.run.registry.as_str())
    .bind(attempt.run.id.number())
    .bind(plan)
    .execute(connection)
    .await;
    noted.map(drop).map_err(ControlError::database("keep the plan of a run"))
}

fn mask_texts(value: &mut serde_json::Value, masked: &impl Fn(&str) -> String) {
    match value {
        serde_json::Value::String(text) => *text = masked(text),
        serde_json::Value::Array(values) => {
            values.iter_mut().for_each(|value| mask_texts(value, masked));
        }
        serde_json::Value::Object(members) => {
            let all = std::mem::take(members).into_iter();
            members.extend(all.map(|(name, mut value)| {
                mask_texts(&mut value, masked);
                (masked(&name), value)
            }));
        }
        _ => (),
    }
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

/// What the build records of its images keep of a run, which outlive it (architecture.md decision 1).
fn made_by(
    attempt: &Attempt,
    outcome: &Outcome,
    plan: Option<&str>,
    now: Millis,
) -> Result<String> {
    let run = &attempt.run;
    let time = |at| jiff::Timestamp::from_millisecond(at).unwrap_or_default().to_string();
    to_json(&serde_json::json!({
        "id": run.id.as_str(),
        "type": run.kind.as_str(),
        "task": run.task,
        "definitionDigest": run.definition,
        "principal": run.started_by,
        "startTime": time(run.started_at.unwrap_or(attempt.started_at)),
        "finishTime": time(now),
        "commitId": outcome.commit.as_ref().map(|commit| &commit.id),
        "plan": plan.map(from_json::<serde_json::Value>).transpose()?,
        "logDigest": attempt.log.digest(),
    }))
}

/// So that runs are found by what they pushed.
async fn note_images(
    connection: &mut SqliteConnection,
    run: &Run,
    images: &[OutputImage],
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
