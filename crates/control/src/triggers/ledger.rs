//! The ledger: what triggers have seen, what was decided, and why.

use std::fmt;
use std::str::FromStr;

use oci::RegistryName;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, SqliteConnection};
use store::Millis;

use super::Triggers;
use crate::table::{column, parsed};
use crate::{ControlError, Result, RunId, TaskName};

pub(super) const SCHEMA: &[&str] = &[
    "CREATE TABLE trigger_ledger (
        number BIGINT NOT NULL PRIMARY KEY,
        registry TEXT NOT NULL,
        task TEXT NOT NULL,
        task_key TEXT NOT NULL,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        event TEXT NOT NULL,
        decision TEXT NOT NULL,
        reason TEXT,
        run BIGINT,
        since BIGINT NOT NULL,
        at BIGINT NOT NULL,
        count BIGINT NOT NULL
    )",
    "CREATE INDEX trigger_ledger_by_registry ON trigger_ledger (registry, number)",
    "CREATE INDEX trigger_ledger_by_task ON trigger_ledger (registry, task_key, number)",
    "CREATE INDEX trigger_ledger_by_name
        ON trigger_ledger (registry, task_key, kind, name, number)",
    "CREATE INDEX trigger_ledger_by_time ON trigger_ledger (at)",
];

/// How long it is remembered at least which deliveries were taken.
const DELIVERIES_KEEP: Millis = 90 * 24 * 60 * 60 * 1000;

/// Bytes of what was seen, and of a reason.
const TEXT_MAX: usize = 2_000;

/// What kind of event a trigger waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TriggerKind {
    Timer,
    BaseImage,
    Source,
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// A run was queued.
    Fired,
    /// A run that waits already does it too.
    Joined,
    /// Nothing is to be done.
    Skipped,
    /// A run would start what it follows from.
    Suppressed,
    /// Something is to be done, and is tried again.
    Waits,
}

/// A line of the ledger. The same decision for the same reason, one after another, is one line, so that
/// a timer of a disabled task does not fill it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerEntry {
    pub number: i64,
    pub registry: RegistryName,
    pub task: TaskName,
    pub kind: TriggerKind,
    /// Of the trigger.
    pub name: String,
    /// What was seen, for people; the last of it.
    pub event: String,
    pub decision: Decision,
    pub reason: Option<String>,
    pub run: Option<RunId>,
    /// Of the first event of the line, and of the last.
    pub since: Millis,
    pub at: Millis,
    /// Events of the line.
    pub count: u64,
}

/// Which lines to list.
#[derive(Debug, Clone, Default)]
pub struct LedgerFilter {
    pub task: Option<TaskName>,
    pub decision: Option<Decision>,
    /// Only lines before this one: how a listing goes on.
    pub before: Option<i64>,
}

/// What is to be written.
pub(super) struct Line<'a> {
    pub(super) registry: &'a RegistryName,
    pub(super) task: &'a TaskName,
    pub(super) kind: TriggerKind,
    pub(super) name: &'a str,
    pub(super) event: String,
    pub(super) decision: Decision,
    pub(super) reason: Option<String>,
    pub(super) run: Option<RunId>,
}

impl TriggerKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timer => "Timer",
            Self::BaseImage => "BaseImage",
            Self::Source => "Source",
        }
    }
}

impl Decision {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fired => "Fired",
            Self::Joined => "Joined",
            Self::Skipped => "Skipped",
            Self::Suppressed => "Suppressed",
            Self::Waits => "Waits",
        }
    }
}

/// A text that is none of the known ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not known")]
pub struct Unknown(String);

impl FromStr for TriggerKind {
    type Err = Unknown;

    fn from_str(text: &str) -> Result<Self, Unknown> {
        let all = [Self::Timer, Self::BaseImage, Self::Source];
        let found = all.into_iter().find(|kind| kind.as_str().eq_ignore_ascii_case(text));
        found.ok_or_else(|| Unknown(text.to_owned()))
    }
}

impl FromStr for Decision {
    type Err = Unknown;

    fn from_str(text: &str) -> Result<Self, Unknown> {
        let all = [Self::Fired, Self::Joined, Self::Skipped, Self::Suppressed, Self::Waits];
        let found = all.into_iter().find(|decision| decision.as_str().eq_ignore_ascii_case(text));
        found.ok_or_else(|| Unknown(text.to_owned()))
    }
}

impl fmt::Display for TriggerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Triggers {
    /// Lines of a registry, the newest first, at most `limit`.
    pub async fn ledger(
        &self,
        registry: &RegistryName,
        filter: &LedgerFilter,
        limit: usize,
    ) -> Result<Vec<LedgerEntry>> {
        let mut query = QueryBuilder::new("SELECT * FROM trigger_ledger WHERE registry = ");
        query.push_bind(registry.as_str());
        if let Some(task) = &filter.task {
            query.push(" AND task_key = ").push_bind(task.key());
        }
        if let Some(decision) = filter.decision {
            query.push(" AND decision = ").push_bind(decision.as_str());
        }
        if let Some(before) = filter.before {
            query.push(" AND number < ").push_bind(before);
        }
        query.push(" ORDER BY number DESC LIMIT ").push_bind(limit as i64);
        let rows = query
            .build()
            .fetch_all(self.tasks.runs.shared.db.reads())
            .await
            .map_err(ControlError::database("read the ledger of triggers"))?;
        rows.iter().map(entry_of).collect()
    }

    /// Removes what is as old as runs may be.
    pub async fn sweep(&self) -> Result<u64> {
        let shared = &self.tasks.runs.shared;
        let keep = shared.settings.run_keep.as_millis() as u64;
        let before = shared.clock.now().saturating_sub_unsigned(keep);
        let failed = "shorten the ledger of triggers";
        // Whoever kept a delivery for longer than that is too late with it as well.
        let of_deliveries = before.min(shared.clock.now() - DELIVERIES_KEEP);
        for statement in [
            "DELETE FROM trigger_deliveries WHERE at < $1",
            "DELETE FROM trigger_sources
             WHERE at < $1 AND waiting IS NULL AND subject LIKE 'pull request %'",
        ] {
            let statement = sqlx::query(statement).bind(of_deliveries);
            crate::table::execute(&shared.db, failed, statement).await?;
        }
        let statement = sqlx::query("DELETE FROM trigger_ledger WHERE at < $1").bind(before);
        crate::table::execute(&shared.db, failed, statement).await
    }
}

/// Adds a line in a transaction of the caller, or an event to the last line of the trigger.
pub(super) async fn append_within(
    connection: &mut SqliteConnection,
    line: &Line<'_>,
    now: Millis,
) -> Result<()> {
    let failed = "write the ledger of triggers";
    let cut = |text: &str| text.chars().take(TEXT_MAX).collect::<String>();
    let (event, reason) = (cut(&line.event), line.reason.as_deref().map(cut));
    if line.run.is_none() {
        let last = sqlx::query(
            "SELECT * FROM trigger_ledger
             WHERE registry = $1 AND task_key = $2 AND kind = $3 AND name = $4
             ORDER BY number DESC LIMIT 1",
        )
        .bind(line.registry.as_str())
        .bind(line.task.key())
        .bind(line.kind.as_str())
        .bind(line.name)
        .fetch_optional(&mut *connection)
        .await
        .map_err(ControlError::database(failed))?;
        let last = last.as_ref().map(entry_of).transpose()?;
        let same = last.filter(|last| {
            (last.decision, last.run, &last.reason) == (line.decision, None, &reason)
        });
        if let Some(same) = same {
            // What waits is looked at again and again, and was seen once.
            if line.decision == Decision::Waits && same.event == event {
                return Ok(());
            }
            sqlx::query(
                "UPDATE trigger_ledger SET count = count + 1, at = $2, event = $3
                 WHERE number = $1",
            )
            .bind(same.number)
            .bind(now)
            .bind(event)
            .execute(connection)
            .await
            .map_err(ControlError::database(failed))?;
            return Ok(());
        }
    }
    sqlx::query(
        "INSERT INTO trigger_ledger (number, registry, task, task_key, kind, name, event, decision,
            reason, run, since, at, count)
         SELECT COALESCE(MAX(number), 0) + 1, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10, 1
         FROM trigger_ledger",
    )
    .bind(line.registry.as_str())
    .bind(line.task.as_str())
    .bind(line.task.key())
    .bind(line.kind.as_str())
    .bind(line.name)
    .bind(event)
    .bind(line.decision.as_str())
    .bind(reason)
    .bind(line.run.map(|run| run.number()))
    .bind(now)
    .execute(connection)
    .await
    .map_err(ControlError::database(failed))?;
    Ok(())
}

fn entry_of(row: &SqliteRow) -> Result<LedgerEntry> {
    let run: Option<i64> = column(row, "run")?;
    Ok(LedgerEntry {
        number: column(row, "number")?,
        registry: parsed(column(row, "registry")?)?,
        task: parsed(column(row, "task")?)?,
        kind: parsed(column(row, "kind")?)?,
        name: column(row, "name")?,
        event: column(row, "event")?,
        decision: parsed(column(row, "decision")?)?,
        reason: column(row, "reason")?,
        run: run.map(|number| RunId::from_number(number as u64)),
        since: column(row, "since")?,
        at: column(row, "at")?,
        count: column::<i64>(row, "count")? as u64,
    })
}
