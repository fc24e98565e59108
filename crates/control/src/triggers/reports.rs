//! Hosts that are told how the runs of their commits stand (triggers.md section 1).
//!
//! A row for each run that its host hears of, until it has heard the end: what was told is compared with how
//! the run stands, so that a restart tells what is missing.

use std::time::Duration;

use oci::RegistryName;
use percent_encoding::percent_decode_str;
use sqlx::SqliteConnection;
use store::Millis;

use super::ledger::{self, Line};
use super::{
    Decision, RunCause, SourceCause, SourceControl, SourceHost, SourceTrigger, TriggerKind,
    Triggers,
};
use crate::table::{from_json, parsed};
use crate::{ControlError, Result, RunId, RunStatus, StoredTask, TaskContext, TaskName};

pub(super) const SCHEMA: &[&str] = &[
    "CREATE TABLE trigger_reports (
        registry TEXT NOT NULL,
        number BIGINT NOT NULL,
        told TEXT,
        failures BIGINT NOT NULL DEFAULT 0,
        next_at BIGINT NOT NULL,
        PRIMARY KEY (registry, number)
    )",
    "CREATE INDEX trigger_reports_by_time ON trigger_reports (next_at)",
];

/// Runs that are looked at at once.
const BATCH: i64 = 200;
/// How often a host is told something that it does not take.
const ATTEMPTS_MAX: i64 = 8;
/// Between the first two attempts, and at most.
const PAUSE: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_secs(10 * 60);
/// What a host may ask for.
const ASKED_MAX: Duration = Duration::from_secs(60 * 60);

/// How a run stands, as hosts have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitState {
    /// It waits, or goes on.
    Pending,
    Success,
    Failure,
    /// It was ended before it came to anything.
    Canceled,
}

/// What a host is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitReport {
    pub registry: RegistryName,
    pub run: RunId,
    pub task: TaskName,
    pub host: SourceHost,
    /// Without credentials.
    pub repository: String,
    pub commit: String,
    pub is_pull_request: bool,
    pub state: CommitState,
    pub token: ReportToken,
    /// Name of the trigger.
    pub trigger: String,
}

/// A token that does not show itself.
#[derive(Clone, PartialEq, Eq)]
pub struct ReportToken(pub String);

impl std::fmt::Debug for ReportToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Why a host has not taken a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotReported {
    /// For people.
    pub reason: String,
    /// Another time it is the same.
    pub is_final: bool,
    /// For how long the host asks to be left alone.
    pub pause: Option<Duration>,
}

impl CommitState {
    fn of(status: RunStatus) -> Self {
        match status {
            RunStatus::Queued | RunStatus::Started | RunStatus::Running => Self::Pending,
            RunStatus::Succeeded => Self::Success,
            RunStatus::Failed | RunStatus::Timeout => Self::Failure,
            RunStatus::Canceled => Self::Canceled,
            RunStatus::Error => Self::Failure,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Canceled => "canceled",
        }
    }
}

/// Who is told of a run, if anybody is.
fn host_of(cause: &SourceCause, trigger: &SourceTrigger) -> Option<SourceHost> {
    let host = cause.host.or(match trigger.control_type {
        SourceControl::Github => Some(SourceHost::GitHub),
        SourceControl::GitLab => Some(SourceHost::GitLab),
        SourceControl::Gitea => Some(SourceHost::Gitea),
        _ => None,
    });
    let is_told = [SourceHost::GitHub, SourceHost::GitLab, SourceHost::Gitea];
    host.filter(|host| is_told.contains(host))
}

/// The token alone: in an address it may have a user before it.
fn token_of(trigger: &SourceTrigger, context: &TaskContext) -> Option<ReportToken> {
    let token = trigger.token.as_ref().or(context.token.as_ref())?;
    let token = match token.split_once(':') {
        None => token,
        // A form of GitHub's.
        Some((user, "" | "x-oauth-basic")) => user,
        Some((_, password)) => password,
    };
    Some(ReportToken(percent_decode_str(token).decode_utf8_lossy().into_owned()))
}

/// Notes that the host of a run is to hear of it, if there is what it takes.
pub(super) async fn begin_within(
    connection: &mut SqliteConnection,
    task: &StoredTask,
    trigger: &SourceTrigger,
    cause: &SourceCause,
    run: RunId,
    now: Millis,
) -> Result<()> {
    let token = task.definition.context.as_ref().and_then(|context| token_of(trigger, context));
    if token.is_none() || host_of(cause, trigger).is_none() || cause.commit.len() != 40 {
        return Ok(());
    }
    sqlx::query("INSERT INTO trigger_reports (registry, number, next_at) VALUES ($1, $2, $3)")
        .bind(task.registry.as_str())
        .bind(run.number())
        .bind(now)
        .execute(connection)
        .await
        .map_err(ControlError::database("note whom to tell of a run"))?;
    Ok(())
}

/// Registry and number of a run, what was told, and its status, task and cause, if it is still there.
type DueRow = (String, i64, Option<String>, Option<String>, Option<String>, Option<String>);

impl Triggers {
    /// What hosts are to be told now.
    pub async fn due_reports(&self) -> Result<Vec<CommitReport>> {
        let failed = "list what hosts are to be told";
        let shared = &self.tasks.runs.shared;
        let rows: Vec<DueRow> = sqlx::query_as(
            "SELECT t.registry, t.number, t.told, r.status, r.task, r.cause
             FROM trigger_reports t
             LEFT JOIN runs r ON r.registry = t.registry AND r.number = t.number
             WHERE t.next_at <= $1 AND (t.told IS NULL OR r.status IS NULL
                OR r.status NOT IN ('Queued', 'Started', 'Running'))
             ORDER BY t.next_at LIMIT $2",
        )
        .bind(shared.clock.now())
        .bind(BATCH)
        .fetch_all(shared.db.reads())
        .await
        .map_err(ControlError::database(failed))?;
        let mut reports = Vec::new();
        for row in rows {
            let place = format!("{}/{}", row.0, row.1);
            match self.due_report(row).await {
                Ok(report) => reports.extend(report),
                // It keeps no other from being told.
                Err(error) => tracing::error!(%error, run = place, "its host is not told of it"),
            }
        }
        Ok(reports)
    }

    async fn due_report(&self, row: DueRow) -> Result<Option<CommitReport>> {
        let (registry, number, told, status, task, cause) = row;
        let (registry, run) = (parsed(&registry)?, RunId::from_number(number as u64));
        let (Some(status), Some(task), Some(cause)) = (status, task, cause) else {
            self.forget_report(&registry, run).await?;
            return Ok(None);
        };
        let state = CommitState::of(parsed(&status)?);
        if told.as_deref() == Some(state.as_str()) {
            return Ok(None);
        }
        let report = self.report(&registry, run, &parsed(&task)?, &cause, state).await?;
        if report.is_none() {
            self.forget_report(&registry, run).await?;
        }
        Ok(report)
    }

    async fn report(
        &self,
        registry: &RegistryName,
        run: RunId,
        task: &TaskName,
        cause: &str,
        state: CommitState,
    ) -> Result<Option<CommitReport>> {
        let RunCause::Source(cause) = from_json(cause)? else { return Ok(None) };
        let Some(stored) = self.tasks.get(registry, task).await? else { return Ok(None) };
        let trigger = stored.definition.triggers.source(&cause.name);
        let (Some(trigger), Some(context)) = (trigger, &stored.definition.context) else {
            return Ok(None);
        };
        // A token is for its own repository.
        let is_same = context.place() == cause.repository;
        let (Some(host), Some(token), true) =
            (host_of(&cause, trigger), token_of(trigger, context), is_same)
        else {
            return Ok(None);
        };
        Ok(Some(CommitReport {
            registry: registry.clone(),
            run,
            task: stored.name.clone(),
            host,
            repository: cause.repository,
            is_pull_request: cause.pull_request.is_some(),
            commit: cause.commit,
            state,
            token,
            trigger: cause.name,
        }))
    }

    /// Notes what a host has said to a report.
    pub async fn reported(
        &self,
        report: &CommitReport,
        answer: std::result::Result<(), NotReported>,
    ) -> Result<()> {
        let failed = "note what a host was told";
        let shared = &self.tasks.runs.shared;
        let now = shared.clock.now();
        let NotReported { reason, is_final, pause } = match answer {
            Ok(()) if report.state != CommitState::Pending => {
                return self.forget_report(&report.registry, report.run).await;
            }
            Ok(()) => {
                let statement = sqlx::query(
                    "UPDATE trigger_reports SET told = $3, failures = 0
                     WHERE registry = $1 AND number = $2",
                )
                .bind(report.registry.as_str())
                .bind(report.run.number())
                .bind(report.state.as_str());
                crate::table::execute(&shared.db, failed, statement).await?;
                return Ok(());
            }
            Err(why) => why,
        };
        let mut transaction = shared.db.begin().await.map_err(ControlError::database(failed))?;
        let row: Option<(i64, Option<String>)> = sqlx::query_as(
            "UPDATE trigger_reports SET failures = failures + 1, next_at = $3
             WHERE registry = $1 AND number = $2 RETURNING failures, told",
        )
        .bind(report.registry.as_str())
        .bind(report.run.number())
        .bind(now)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        let (failures, told) = row.unwrap_or((ATTEMPTS_MAX, None));
        // What has begun to wait at a host would do so for ever.
        let gives_up = is_final && told.is_none();
        if gives_up || failures >= ATTEMPTS_MAX {
            sqlx::query("DELETE FROM trigger_reports WHERE registry = $1 AND number = $2")
                .bind(report.registry.as_str())
                .bind(report.run.number())
                .execute(&mut *transaction)
                .await
                .map_err(ControlError::database(failed))?;
            let line = Line {
                registry: &report.registry,
                task: &report.task,
                kind: TriggerKind::Source,
                name: &report.trigger,
                event: format!("{} was to hear of run `{}`", report.host.as_str(), report.run),
                decision: Decision::Skipped,
                reason: Some(reason),
                run: None,
            };
            ledger::append_within(&mut transaction, &line, now).await?;
        } else {
            let doubled = PAUSE.saturating_mul(1 << failures.clamp(0, 10)).min(PAUSE_MAX);
            let doubled = doubled.max(pause.unwrap_or_default().min(ASKED_MAX));
            sqlx::query(
                "UPDATE trigger_reports SET next_at = $3 WHERE registry = $1 AND number = $2",
            )
            .bind(report.registry.as_str())
            .bind(report.run.number())
            .bind(now + Millis::try_from(doubled.as_millis()).unwrap_or_default())
            .execute(&mut *transaction)
            .await
            .map_err(ControlError::database(failed))?;
        }
        transaction.commit().await.map_err(ControlError::database(failed))
    }

    async fn forget_report(&self, registry: &RegistryName, run: RunId) -> Result<()> {
        let statement =
            sqlx::query("DELETE FROM trigger_reports WHERE registry = $1 AND number = $2")
                .bind(registry.as_str())
                .bind(run.number());
        let doing = "forget what a host was to be told";
        crate::table::execute(&self.tasks.runs.shared.db, doing, statement).await?;
        Ok(())
    }
}
