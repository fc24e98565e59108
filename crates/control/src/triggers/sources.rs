//! Commits and pull requests, and the runs that they start (triggers.md section 1).
//!
//! Of each branch and each pull request the last commit that was decided on is a row, so that a commit has
//! one run, however often and by whom it is told. A delivery counts once, in the transaction that decides.

use oci::RegistryName;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use store::Millis;
use uuid::Uuid;

use super::ledger::{self, Line};
use super::{
    Decision, Fired, PullRequest, Queued, RunCause, SourceCause, SourceDelivery, SourceEvent,
    SourceHost, SourceTrigger, TriggerKind, Triggers, why_not,
};
use super::{pauses, reports};
use crate::table::{column, from_json, to_json};
use crate::{
    ControlError, Result, RunId, StoredTask, TaskContext, TaskDefinition, TaskName, TaskOverrides,
};

pub(super) const SCHEMA: &[&str] = &[
    // The last commit of each branch and pull request, and what could not be answered yet.
    "CREATE TABLE trigger_sources (
        registry TEXT NOT NULL,
        name_key TEXT NOT NULL,
        trigger_name TEXT NOT NULL,
        subject TEXT NOT NULL,
        commit_id TEXT,
        waiting TEXT,
        at BIGINT NOT NULL,
        PRIMARY KEY (registry, name_key, trigger_name, subject)
    )",
    "CREATE INDEX trigger_sources_waiting ON trigger_sources (at) WHERE waiting IS NOT NULL",
    // Deliveries that were taken.
    "CREATE TABLE trigger_deliveries (
        registry TEXT NOT NULL,
        name_key TEXT NOT NULL,
        trigger_name TEXT NOT NULL,
        delivery TEXT NOT NULL,
        at BIGINT NOT NULL,
        PRIMARY KEY (registry, name_key, trigger_name, delivery)
    )",
    "CREATE INDEX trigger_deliveries_by_time ON trigger_deliveries (at)",
    // When repositories are asked for the commits of their branches.
    "CREATE TABLE trigger_polls (
        registry TEXT NOT NULL,
        name_key TEXT NOT NULL,
        trigger_name TEXT NOT NULL,
        next_at BIGINT NOT NULL,
        failures BIGINT NOT NULL DEFAULT 0,
        default_branch TEXT,
        PRIMARY KEY (registry, name_key, trigger_name)
    )",
    "CREATE INDEX trigger_polls_by_time ON trigger_polls (next_at)",
];

/// Events that are looked at again within one transaction.
const BATCH: i64 = 100;

/// What became of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    pub decision: Decision,
    pub reason: Option<String>,
    pub run: Option<RunId>,
}

/// An event that concerns a trigger, or may.
pub(super) struct Told<'a> {
    pub(super) task: &'a StoredTask,
    pub(super) trigger: &'a SourceTrigger,
    pub(super) event: &'a SourceEvent,
    /// Nobody has told it who was not asked.
    pub(super) host: Option<SourceHost>,
    /// The branch that is followed, where it is known.
    pub(super) branch: Option<&'a str>,
}

/// An event that waits for room in the queue.
#[derive(Serialize, Deserialize)]
struct Waiting {
    event: SourceEvent,
    host: Option<SourceHost>,
    branch: String,
}

/// A decision in a transaction that goes on, and what is to be done after it.
pub(super) struct Decided {
    pub(super) delivered: Delivered,
    queued: Option<Queued>,
    superseded: Vec<SqliteRow>,
}

impl Decided {
    fn without_run(decision: Decision, reason: impl Into<String>) -> Self {
        let delivered = Delivered { decision, reason: Some(reason.into()), run: None };
        Self { delivered, queued: None, superseded: Vec::new() }
    }

    fn skipped(reason: impl Into<String>) -> Self {
        Self::without_run(Decision::Skipped, reason)
    }
}

impl SourceTrigger {
    /// Its name as tables have it, however it is written.
    pub(super) fn key(&self) -> String {
        self.name.to_ascii_lowercase()
    }

    /// The branch that it follows; nothing where that is the repository's default one.
    pub fn branch_of(&self, context: &TaskContext) -> Option<String> {
        let named = self.branch.clone().or_else(|| context.reference());
        named.map(|name| name.strip_prefix("refs/heads/").unwrap_or(&name).to_owned())
    }
}

impl Triggers {
    /// Takes what a host tells a trigger, once. `key` tells the delivery from others.
    pub async fn deliver(
        &self,
        registry: &RegistryName,
        task: &TaskName,
        trigger: &str,
        delivery: &SourceDelivery,
        key: &str,
    ) -> Result<Delivered> {
        let failed = "take a delivery";
        let now = self.tasks.runs.shared.clock.now();
        let db = &self.tasks.runs.shared.db;
        let mut transaction = db.begin().await.map_err(ControlError::database(failed))?;
        let read = self.read(&mut transaction, registry.as_str(), &task.key()).await?;
        let found = read.ok().flatten();
        let none = || ControlError::NotFound { what: format!("source trigger `{trigger}`") };
        let task = found.ok_or_else(none)?;
        let trigger = task.definition.triggers.source(trigger).ok_or_else(none)?.clone();
        let taken = sqlx::query(
            "INSERT INTO trigger_deliveries (registry, name_key, trigger_name, delivery, at)
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        )
        .bind(registry.as_str())
        .bind(task.name.key())
        .bind(trigger.key())
        .bind(key)
        .bind(now)
        .execute(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        let is_new = taken.rows_affected() == 1;
        let decided = self.take(&mut transaction, &task, &trigger, (delivery, is_new), now).await?;
        transaction.commit().await.map_err(ControlError::database(failed))?;
        Ok(self.after_decision(decided).await)
    }

    async fn take(
        &self,
        connection: &mut SqliteConnection,
        task: &StoredTask,
        trigger: &SourceTrigger,
        (delivery, is_new): (&SourceDelivery, bool),
        now: Millis,
    ) -> Result<Decided> {
        let nothing = SourceEvent::Other("nothing".to_owned());
        let branch = match trigger_branch(task, trigger).or_else(|| delivery.default_branch.clone())
        {
            Some(branch) => Some(branch),
            None => default_branch(connection, task, trigger).await?,
        };
        let told = |event| {
            let (host, branch) = (Some(delivery.host), branch.as_deref());
            Told { task, trigger, event, host, branch }
        };
        let first = told(delivery.events.first().unwrap_or(&nothing));
        if !is_new {
            let known = Decided::skipped("this delivery was taken before");
            return self.written(connection, &first, known, now).await;
        }
        let path = task.definition.context.as_ref().map(path_of).unwrap_or_default();
        if !delivery.is_about(&path) {
            let of = delivery.repositories.first().map_or("", String::as_str);
            let of = of.chars().take(100).collect::<String>();
            let other = Decided::skipped(format!("it is about another repository, `{of}`"));
            return self.written(connection, &first, other, now).await;
        }
        // Of several branches one is followed.
        let fitting = delivery.events.iter().map(told).find(|told| unfit(told).is_none());
        self.decide(connection, &fitting.unwrap_or(first), now).await
    }

    /// Decides on an event, and writes it down.
    pub(super) async fn decide(
        &self,
        connection: &mut SqliteConnection,
        told: &Told<'_>,
        now: Millis,
    ) -> Result<Decided> {
        let decided = match unfit(told) {
            Some(reason) => Decided::skipped(reason),
            None => self.start_source(connection, told, now).await?,
        };
        self.written(connection, told, decided, now).await
    }

    async fn start_source(
        &self,
        connection: &mut SqliteConnection,
        told: &Told<'_>,
        now: Millis,
    ) -> Result<Decided> {
        let Told { task, trigger, event, host, branch } = told;
        let Some(start) = Start::of(told) else { return Ok(Decided::skipped("it has no context")) };
        let (seen, is_waiting) = seen(connection, task, trigger, &start.subject).await?;
        if start.is_once && seen.as_deref() == Some(&*start.commit) {
            // What came between, and waits, is gone again.
            if is_waiting {
                let note = Noted { commit: seen.as_deref(), waiting: None };
                note_seen(connection, (task, trigger), &start.subject, note, now).await?;
            }
            return Ok(Decided::skipped("the trigger has seen this commit already"));
        }
        if let Some(why) = task.definition.asleep(now) {
            return Ok(Decided::skipped(format!("the task {why}")));
        }
        let cause = RunCause::Source(start.cause.clone());
        let run = (cause, start.overrides);
        let paused = pauses::paused_within(connection, &task.registry, &task.name, now).await?;
        let queued = match paused {
            Some(why) => Err((Decision::Waits, why)),
            None => match self.queue(connection, task, run, None, now).await {
                Ok(queued) => Ok(queued),
                Err(error) => Err(why_not(error)?),
            },
        };
        match queued {
            Ok(queued) => {
                let superseded =
                    self.supersede(connection, task, &start.cause, queued.run, now).await?;
                let note = Noted { commit: Some(&start.commit), waiting: None };
                note_seen(connection, (task, trigger), &start.subject, note, now).await?;
                reports::begin_within(connection, task, trigger, &start.cause, queued.run, now)
                    .await?;
                let is_next = match event {
                    SourceEvent::Commit { before, .. } => before.is_some() && *before == seen,
                    _ => true,
                };
                if host.is_some() && seen.is_some() && !is_next {
                    self.ask_now(connection, task, trigger, now).await?;
                }
                let instead = superseded.iter().map(|row| column(row, "number"));
                let instead: Vec<i64> = instead.collect::<Result<_>>()?;
                let names = instead.iter().map(|number| RunId::from_number(*number as u64));
                let names: Vec<String> = names.map(|run| format!("`{run}`")).collect();
                let reason = (!names.is_empty())
                    .then(|| format!("in place of run {}, which had not begun", names.join(", ")));
                let delivered =
                    Delivered { decision: Decision::Fired, reason, run: Some(queued.run) };
                Ok(Decided { delivered, queued: Some(queued), superseded })
            }
            Err((decision, reason)) => {
                if decision == Decision::Waits {
                    let branch = branch.unwrap_or_default().to_owned();
                    let waiting = Waiting { event: (*event).clone(), host: *host, branch };
                    let waiting = to_json(&waiting)?;
                    let note = Noted { commit: seen.as_deref(), waiting: Some(&waiting) };
                    note_seen(connection, (task, trigger), &start.subject, note, now).await?;
                } else if is_waiting {
                    let note = Noted { commit: seen.as_deref(), waiting: None };
                    note_seen(connection, (task, trigger), &start.subject, note, now).await?;
                }
                Ok(Decided::without_run(decision, reason))
            }
        }
    }

    /// Has the repository asked where its branch is: hosts do not promise that they tell commits in order.
    async fn ask_now(
        &self,
        connection: &mut SqliteConnection,
        task: &StoredTask,
        trigger: &SourceTrigger,
        now: Millis,
    ) -> Result<()> {
        sqlx::query(
            "UPDATE trigger_polls SET next_at = $4
             WHERE registry = $1 AND name_key = $2 AND trigger_name = $3 AND next_at > $4",
        )
        .bind(task.registry.as_str())
        .bind(task.name.key())
        .bind(trigger.key())
        .bind(now)
        .execute(connection)
        .await
        .map_err(ControlError::database("have a repository asked"))?;
        Ok(())
    }

    /// Writes a decision to the ledger.
    async fn written(
        &self,
        connection: &mut SqliteConnection,
        told: &Told<'_>,
        decided: Decided,
        now: Millis,
    ) -> Result<Decided> {
        let by = told.host.map_or("found at", |_| "told by");
        let place = match told.host {
            Some(host) => host.as_str().to_owned(),
            None => shown_place(told.task),
        };
        let line = Line {
            registry: &told.task.registry,
            task: &told.task.name,
            kind: TriggerKind::Source,
            name: &told.trigger.name,
            event: format!("{}, {by} {place}", described(told.event)),
            decision: decided.delivered.decision,
            reason: decided.delivered.reason.clone(),
            run: decided.delivered.run,
        };
        ledger::append_within(connection, &line, now).await?;
        Ok(decided)
    }

    /// Cancels runs of the same branch or pull request that have not begun: nobody needs them any more.
    async fn supersede(
        &self,
        connection: &mut SqliteConnection,
        task: &StoredTask,
        cause: &SourceCause,
        run: RunId,
        now: Millis,
    ) -> Result<Vec<SqliteRow>> {
        let failed = "cancel runs that nobody needs any more";
        let waiting: Vec<(i64, String)> = sqlx::query_as(
            "SELECT number, cause FROM runs
             WHERE registry = $1 AND LOWER(task) = $2 AND status = 'Queued' AND cause IS NOT NULL
               AND number <> $3",
        )
        .bind(task.registry.as_str())
        .bind(task.name.key())
        .bind(run.number())
        .fetch_all(&mut *connection)
        .await
        .map_err(ControlError::database(failed))?;
        let mut canceled = Vec::new();
        for (number, text) in waiting {
            let RunCause::Source(other) = from_json(&text)? else { continue };
            let subject = |cause: &SourceCause| (cause.branch.clone(), cause.pull_request);
            if !other.name.eq_ignore_ascii_case(&cause.name) || subject(&other) != subject(cause) {
                continue;
            }
            let row = sqlx::query(
                "UPDATE runs SET status = 'Canceled', error = $3, cancel_requested = TRUE,
                    updated_at = $4, finished_at = $4
                 WHERE registry = $1 AND number = $2 AND status = 'Queued' RETURNING *",
            )
            .bind(task.registry.as_str())
            .bind(number)
            .bind(format!("run `{run}` does it with a newer commit"))
            .bind(now)
            .fetch_optional(&mut *connection)
            .await
            .map_err(ControlError::database(failed))?;
            canceled.extend(row);
        }
        self.tasks.runs.shared.note_ends(connection, &canceled, now).await?;
        Ok(canceled)
    }

    /// What follows from a decision that is durable.
    pub(super) async fn after_decision(&self, decided: Decided) -> Delivered {
        let Decided { delivered, queued, superseded } = decided;
        // A repository may be due to be asked.
        self.tasks.triggers_changed.send_replace(());
        self.after(queued.into_iter().collect()).await;
        if let Err(error) = self.tasks.runs.after_ends(&superseded).await {
            tracing::error!(%error, "the logs of canceled runs could not be ended");
        }
        delivered
    }

    /// Decides again on what had to wait.
    pub async fn fire_sources(&self) -> Result<Fired> {
        let failed = "answer commits that had to wait";
        let mut fired = Fired::default();
        let (mut last, end) = (Millis::MIN, self.tasks.runs.shared.clock.now());
        loop {
            let now = self.tasks.runs.shared.clock.now();
            let db = &self.tasks.runs.shared.db;
            let rows: Vec<WaitingRow> = sqlx::query_as(
                "SELECT registry, name_key, trigger_name, subject, waiting, at FROM trigger_sources
                 WHERE waiting IS NOT NULL AND at > $1 AND at <= $2 ORDER BY at LIMIT $3",
            )
            .bind(last)
            .bind(end)
            .bind(BATCH)
            .fetch_all(db.reads())
            .await
            .map_err(ControlError::database(failed))?;
            let Some((.., at)) = rows.last() else { return Ok(fired) };
            last = *at;
            for row in &rows {
                // One that cannot be answered keeps no other from its run.
                let answered = self.answer_again(row, now).await.unwrap_or_else(|error| {
                    tracing::error!(%error, task = %row.1, "a commit that waits is not answered");
                    Fired { runs: 0, waits: true }
                });
                fired.runs += answered.runs;
                fired.waits |= answered.waits;
            }
        }
    }

    async fn answer_again(&self, row: &WaitingRow, now: Millis) -> Result<Fired> {
        let failed = "answer a commit that had to wait";
        let (registry, name_key, name, subject, waiting, _) = row;
        let db = &self.tasks.runs.shared.db;
        let mut transaction = db.begin().await.map_err(ControlError::database(failed))?;
        let Ok(task) = self.read(&mut transaction, registry, name_key).await? else {
            return Ok(Fired { runs: 0, waits: true });
        };
        let trigger = task.as_ref().and_then(|task| {
            let trigger = task.definition.triggers.source(name)?;
            Some((task, trigger))
        });
        let Some((task, trigger)) = trigger else {
            forget_trigger(&mut transaction, registry, name_key, name).await?;
            transaction.commit().await.map_err(ControlError::database(failed))?;
            return Ok(Fired::default());
        };
        let Waiting { event, host, branch } = from_json(waiting)?;
        let told = Told { task, trigger, event: &event, host, branch: Some(branch.as_str()) };
        let decided = self.decide(&mut transaction, &told, now).await?;
        if decided.delivered.decision == Decision::Skipped {
            let (commit, _) = seen(&mut transaction, task, trigger, subject).await?;
            let note = Noted { commit: commit.as_deref(), waiting: None };
            note_seen(&mut transaction, (task, trigger), subject, note, now).await?;
        }
        transaction.commit().await.map_err(ControlError::database(failed))?;
        let waits = decided.delivered.decision == Decision::Waits;
        let fired = Fired { runs: usize::from(decided.queued.is_some()), waits };
        self.after_decision(decided).await;
        Ok(fired)
    }
}

/// Registry, task, trigger, subject, what waits, and since when.
type WaitingRow = (String, String, String, String, String, Millis);

/// What an event that fits would start.
struct Start {
    subject: String,
    commit: String,
    /// The same commit again is nothing new.
    is_once: bool,
    cause: SourceCause,
    overrides: TaskOverrides,
}

impl Start {
    fn of(told: &Told<'_>) -> Option<Self> {
        let context = told.task.definition.context.as_ref()?;
        let branch = told.branch?.to_owned();
        let (commit, is_once, pull_request, source) = match told.event {
            SourceEvent::Other(_) => return None,
            SourceEvent::Commit { commit, .. } => {
                (commit, true, None, pinned(context, commit, &branch))
            }
            SourceEvent::PullRequest(request) => {
                let source = context.at(&request.reference).source();
                (&request.commit, request.may_be_known, Some(request.number), source)
            }
        };
        let cause = SourceCause {
            id: Uuid::new_v4(),
            name: told.trigger.name.clone(),
            host: told.host,
            repository: context.place().to_owned(),
            branch,
            commit: commit.clone(),
            pull_request,
        };
        Some(Self {
            subject: subject(told.event)?,
            commit: commit.clone(),
            is_once,
            cause,
            overrides: TaskOverrides { context: Some(source), ..TaskOverrides::default() },
        })
    }
}

/// A commit of a branch, as a run has it.
pub(crate) fn pinned(context: &TaskContext, commit: &str, branch: &str) -> crate::ContextSource {
    context.at(commit).source_on(Some(branch.to_owned()))
}

/// What an event is about, of which only the newest counts.
fn subject(event: &SourceEvent) -> Option<String> {
    match event {
        SourceEvent::Commit { branch, .. } => Some(format!("branch {branch}")),
        SourceEvent::PullRequest(request) => Some(format!("pull request {}", request.number)),
        SourceEvent::Other(_) => None,
    }
}

/// Why an event starts nothing, whatever was before, if it does not.
pub(super) fn unfit(told: &Told<'_>) -> Option<String> {
    let trigger = told.trigger;
    let (is_waited_for, what, into) = match told.event {
        SourceEvent::Other(_) => return Some("it starts no runs".to_owned()),
        SourceEvent::Commit { branch, .. } => (trigger.commits, "commits", branch),
        SourceEvent::PullRequest(request) => {
            (trigger.pull_requests, "pull requests", &request.into)
        }
    };
    if !trigger.enabled {
        return Some("the trigger is disabled".to_owned());
    }
    if !is_waited_for {
        return Some(format!("the trigger does not wait for {what}"));
    }
    match told.branch {
        None => Some(
            "the host does not tell which branch is the default one, and the trigger names none"
                .to_owned(),
        ),
        Some(branch) if branch != into => {
            Some(format!("the trigger follows branch `{branch}`, not `{into}`"))
        }
        Some(_) => match told.event {
            SourceEvent::PullRequest(request) if request.from_fork => {
                Some("pull requests from forks start no runs".to_owned())
            }
            _ => None,
        },
    }
}

/// For people.
fn described(event: &SourceEvent) -> String {
    let short = |commit: &str| commit.chars().take(7).collect::<String>();
    match event {
        SourceEvent::Commit { branch, commit, .. } => {
            format!("commit `{}` of branch `{branch}`", short(commit))
        }
        SourceEvent::PullRequest(PullRequest { number, into, commit, .. }) => {
            format!("pull request {number} into `{into}`, at `{}`", short(commit))
        }
        SourceEvent::Other(what) => what.clone(),
    }
}

pub(super) fn trigger_branch(task: &StoredTask, trigger: &SourceTrigger) -> Option<String> {
    trigger.branch_of(task.definition.context.as_ref()?)
}

/// The default branch, if the repository was asked for it.
pub(super) async fn default_branch(
    connection: &mut SqliteConnection,
    task: &StoredTask,
    trigger: &SourceTrigger,
) -> Result<Option<String>> {
    let found: Option<Option<String>> = sqlx::query_scalar(
        "SELECT default_branch FROM trigger_polls
         WHERE registry = $1 AND name_key = $2 AND trigger_name = $3",
    )
    .bind(task.registry.as_str())
    .bind(task.name.key())
    .bind(trigger.key())
    .fetch_optional(connection)
    .await
    .map_err(ControlError::database("find the default branch of a repository"))?;
    Ok(found.flatten())
}

/// The path of a repository, as its host has it.
fn path_of(context: &TaskContext) -> String {
    let place = context.place();
    let place = place.split_once("://").map_or(place, |(_, rest)| rest);
    let path = place.split_once('/').map_or("", |(_, path)| path);
    format!("/{}", percent_decode_str(path).decode_utf8_lossy())
}

/// The repository of a task for people. The address has no credentials.
pub(super) fn shown_place(task: &StoredTask) -> String {
    let context = task.definition.context.as_ref();
    context.map(|context| context.place().to_owned()).unwrap_or_default()
}

/// The last commit of a branch or pull request, and whether an event of it waits.
pub(super) async fn seen(
    connection: &mut SqliteConnection,
    task: &StoredTask,
    trigger: &SourceTrigger,
    subject: &str,
) -> Result<(Option<String>, bool)> {
    let row: Option<(Option<String>, bool)> = sqlx::query_as(
        "SELECT commit_id, waiting IS NOT NULL FROM trigger_sources
         WHERE registry = $1 AND name_key = $2 AND trigger_name = $3 AND subject = $4",
    )
    .bind(task.registry.as_str())
    .bind(task.name.key())
    .bind(trigger.key())
    .bind(subject)
    .fetch_optional(connection)
    .await
    .map_err(ControlError::database("find the last commit of a branch"))?;
    Ok(row.unwrap_or_default())
}

/// What is written down of a branch or pull request.
pub(super) struct Noted<'a> {
    pub(super) commit: Option<&'a str>,
    pub(super) waiting: Option<&'a str>,
}

pub(super) async fn note_seen(
    connection: &mut SqliteConnection,
    (task, trigger): (&StoredTask, &SourceTrigger),
    subject: &str,
    note: Noted<'_>,
    now: Millis,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO trigger_sources
            (registry, name_key, trigger_name, subject, commit_id, waiting, at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (registry, name_key, trigger_name, subject) DO UPDATE SET
            commit_id = excluded.commit_id, waiting = excluded.waiting, at = excluded.at",
    )
    .bind(task.registry.as_str())
    .bind(task.name.key())
    .bind(trigger.key())
    .bind(subject)
    .bind(note.commit)
    .bind(note.waiting)
    .bind(now)
    .execute(connection)
    .await
    .map_err(ControlError::database("note the commit of a branch"))?;
    Ok(())
}

/// Brings what is known of repositories in step with a task. Of a trigger that is new, was switched on, or
/// follows something else now, nothing is known: what was before does not start it.
pub(super) async fn write_within(
    connection: &mut SqliteConnection,
    task: &StoredTask,
    before: Option<&TaskDefinition>,
    now: Millis,
) -> Result<()> {
    let key = task.name.key();
    let none = Vec::new();
    let old = before.map_or(&none, |before| &before.triggers.sources);
    let is_same = |trigger: &SourceTrigger| {
        let other = before.and_then(|before| {
            let other = before.triggers.source(&trigger.name)?;
            Some((Followed::by(other, before), other.poll))
        });
        let (followed, poll) = other.unzip();
        let is_followed = followed == Some(Followed::by(trigger, &task.definition));
        (is_followed, is_followed && poll == Some(trigger.poll))
    };
    let registry = task.registry.as_str();
    for gone in old.iter().filter(|old| task.definition.triggers.source(&old.name).is_none()) {
        forget_trigger(connection, registry, &key, &gone.key()).await?;
    }
    for trigger in &task.definition.triggers.sources {
        let (is_followed, is_polled) = is_same(trigger);
        if !is_followed {
            forget_trigger(connection, registry, &key, &trigger.key()).await?;
        }
        if !is_polled {
            begin_to_poll(connection, task, trigger, now).await?;
        }
    }
    Ok(())
}

/// Has the repository of a trigger asked from now on, if it is to be.
async fn begin_to_poll(
    connection: &mut SqliteConnection,
    task: &StoredTask,
    trigger: &SourceTrigger,
    now: Millis,
) -> Result<()> {
    let is_never = trigger.poll.is_some_and(|poll| poll.is_zero());
    let statement = match trigger.enabled && trigger.commits && !is_never {
        true => {
            "INSERT INTO trigger_polls (registry, name_key, trigger_name, next_at)
             VALUES ($1, $2, $3, $4)
             ON CONFLICT (registry, name_key, trigger_name) DO UPDATE SET next_at = $4"
        }
        false => {
            "DELETE FROM trigger_polls
             WHERE registry = $1 AND name_key = $2 AND trigger_name = $3 AND $4 IS NOT NULL"
        }
    };
    sqlx::query(statement)
        .bind(task.registry.as_str())
        .bind(task.name.key())
        .bind(trigger.key())
        .bind(now)
        .execute(connection)
        .await
        .map_err(ControlError::database("write when a repository is asked"))?;
    Ok(())
}

/// What decides whether what is known of a repository still means something.
#[derive(PartialEq)]
struct Followed {
    is_on: bool,
    commits: bool,
    repository: Option<String>,
    branch: Option<String>,
}

impl Followed {
    fn by(trigger: &SourceTrigger, definition: &TaskDefinition) -> Self {
        let context = definition.context.as_ref();
        Self {
            is_on: definition.enabled && trigger.enabled,
            commits: trigger.commits,
            repository: context.map(|context| context.place().to_owned()),
            branch: context.and_then(|context| trigger.branch_of(context)),
        }
    }
}

/// Forgets what is known for a trigger; not which deliveries were taken.
async fn forget_trigger(
    connection: &mut SqliteConnection,
    registry: &str,
    name_key: &str,
    name: &str,
) -> Result<()> {
    for statement in [
        "DELETE FROM trigger_sources WHERE registry = $1 AND name_key = $2 AND trigger_name = $3",
        "DELETE FROM trigger_polls WHERE registry = $1 AND name_key = $2 AND trigger_name = $3",
    ] {
        sqlx::query(statement)
            .bind(registry)
            .bind(name_key)
            .bind(name)
            .execute(&mut *connection)
            .await
            .map_err(ControlError::database("forget a source trigger"))?;
    }
    Ok(())
}

/// Forgets what is known for a task that is deleted; not which deliveries were taken.
pub(super) async fn forget_within(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    name_key: &str,
) -> Result<()> {
    for statement in [
        "DELETE FROM trigger_sources WHERE registry = $1 AND name_key = $2",
        "DELETE FROM trigger_polls WHERE registry = $1 AND name_key = $2",
    ] {
        sqlx::query(statement)
            .bind(registry.as_str())
            .bind(name_key)
            .execute(&mut *connection)
            .await
            .map_err(ControlError::database("forget the source triggers of a task"))?;
    }
    Ok(())
}
