//! Timers: which are due, and the runs that they start (triggers.md section 2).
//!
//! What a server that did not run has missed is made up by one run, late, for the last of the times;
//! the run and the ledger say so.

use std::sync::atomic::Ordering;

use jiff::Timestamp;
use oci::RegistryName;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use store::Millis;

use super::ledger::{self, Line};
use super::{
    Decision, Fired, Queued, RunCause, TimerTrigger, TriggerKind, Triggers, pauses, why_not,
};
use crate::table::{column, parsed};
use crate::{ControlError, Result, StoredTask, TaskDefinition, TaskOverrides};

pub(super) const SCHEMA: &[&str] = &[
    "CREATE TABLE trigger_timers (
        registry TEXT NOT NULL,
        name_key TEXT NOT NULL,
        timer TEXT NOT NULL,
        next_at BIGINT NOT NULL,
        PRIMARY KEY (registry, name_key, timer)
    )",
    "CREATE INDEX trigger_timers_by_time ON trigger_timers (next_at, registry, name_key, timer)",
];

/// Timers that are looked at within one transaction.
const BATCH: i64 = 100;

/// Missed times that are counted.
const MISSED_MAX: usize = 100;

/// A timer that is due later than it would be from now on, by this much, was written while the clock
/// was wrong.
const ASTRAY: Millis = 24 * 60 * 60 * 1000;

/// A run that begins later than this was late.
const LATE: Millis = 60_000;

impl Triggers {
    /// When the next timer is due.
    pub async fn next_timer(&self) -> Result<Option<Millis>> {
        sqlx::query_scalar("SELECT MIN(next_at) FROM trigger_timers")
            .fetch_one(self.tasks.runs.shared.db.reads())
            .await
            .map_err(ControlError::database("find the next timer"))
    }

    /// When a timer of a task is due, by its name.
    pub async fn next_of(&self, task: &StoredTask) -> Result<Vec<(String, Millis)>> {
        sqlx::query_as(
            "SELECT timer, next_at FROM trigger_timers WHERE registry = $1 AND name_key = $2",
        )
        .bind(task.registry.as_str())
        .bind(task.name.key())
        .fetch_all(self.tasks.runs.shared.db.reads())
        .await
        .map_err(ControlError::database("list the timers of a task"))
    }

    /// Queues a run for each timer that is due.
    pub async fn fire_timers(&self) -> Result<Fired> {
        let failed = "fire timers";
        let now = self.tasks.runs.shared.clock.now();
        // Also at the first look: nobody knows what the clock said before.
        if self.looked_at.swap(now, Ordering::Relaxed) > now + LATE {
            self.find_astray(now).await?;
        }
        if self.next_timer().await?.is_none_or(|next| next > now) {
            return Ok(Fired::default());
        }
        let mut fired = Fired::default();
        let mut last = (Millis::MIN, String::new(), String::new(), String::new());
        loop {
            let now = self.tasks.runs.shared.clock.now();
            let mut transaction =
                self.tasks.runs.shared.db.begin().await.map_err(ControlError::database(failed))?;
            // Those that wait stay due: the next ones come after them.
            let rows = sqlx::query(
                "SELECT next_at, registry, name_key, timer FROM trigger_timers
                 WHERE next_at <= $1 AND (next_at, registry, name_key, timer) > ($2, $3, $4, $5)
                 ORDER BY next_at, registry, name_key, timer LIMIT $6",
            )
            .bind(now)
            .bind(last.0)
            .bind(&last.1)
            .bind(&last.2)
            .bind(&last.3)
            .bind(BATCH)
            .fetch_all(&mut *transaction)
            .await
            .map_err(ControlError::database(failed))?;
            let Some(end) = rows.last() else { return Ok(fired) };
            last = key(end)?;
            let mut queued = Vec::new();
            for row in &rows {
                match self.fire_timer(&mut transaction, row, now).await? {
                    Looked::Queued(run) => queued.push(run),
                    Looked::Waits => fired.waits = true,
                    Looked::Nothing => (),
                }
            }
            transaction.commit().await.map_err(ControlError::database(failed))?;
            fired.runs += queued.len();
            self.after(queued).await;
        }
    }

    /// Finds timers that are due in a far future in which the clock once was.
    async fn find_astray(&self, now: Millis) -> Result<()> {
        let failed = "find timers that went astray";
        let db = &self.tasks.runs.shared.db;
        let rows = sqlx::query("SELECT * FROM trigger_timers WHERE next_at > $1")
            .bind(now + ASTRAY)
            .fetch_all(db.reads())
            .await
            .map_err(ControlError::database(failed))?;
        for row in &rows {
            let (due, registry, name_key, name) = key(row)?;
            // Of many that are due in a year, few went astray: only those are written.
            let task = self.tasks.get(&parsed(&registry)?, &parsed(&name_key)?).await;
            let task = task.ok().flatten();
            let timer = task.as_ref().and_then(|task| timer(&task.definition, &name));
            let next = timer.and_then(|timer| timer.schedule.next_after(now));
            if let Some(next) = next.filter(|next| due - next > ASTRAY) {
                tracing::warn!(%registry, task = %name_key, timer = %name, "the clock was wrong");
                let statement = sqlx::query(
                    "UPDATE trigger_timers SET next_at = $5
                     WHERE registry = $1 AND name_key = $2 AND timer = $3 AND next_at = $4",
                );
                let statement =
                    statement.bind(registry).bind(name_key).bind(name).bind(due).bind(next);
                crate::table::execute(db, failed, statement).await?;
            }
        }
        Ok(())
    }

    async fn fire_timer(
        &self,
        connection: &mut SqliteConnection,
        row: &SqliteRow,
        now: Millis,
    ) -> Result<Looked> {
        let (due, registry, name_key, name) = key(row)?;
        let Ok(task) = self.read(connection, &registry, &name_key).await? else {
            return Ok(Looked::Waits);
        };
        let timer = task.as_ref().and_then(|task| timer(&task.definition, &name));
        let (Some(task), Some(timer)) = (&task, timer) else {
            set(connection, &registry, &name_key, &name, None).await?;
            return Ok(Looked::Nothing);
        };
        let (occurrence, count) =
            timer.schedule.last_within(due - 1, now, MISSED_MAX).unwrap_or((due, 1));
        let missed = count - 1;
        let cause = RunCause::Timer { name: name.clone(), occurrence, missed };
        let mut line = Line {
            registry: &task.registry,
            task: &task.name,
            kind: TriggerKind::Timer,
            name: &name,
            event: format!("{} was due at {}", timer.schedule, shown(occurrence)),
            decision: Decision::Fired,
            reason: late(occurrence, missed, now),
            run: None,
        };
        let asleep = task.definition.asleep(now).map(|why| format!("the task {why}"));
        let why_not_now = match asleep {
            Some(why) => Some(why),
            None => pauses::paused_within(connection, &task.registry, &task.name, now).await?,
        };
        let queued = match why_not_now {
            Some(message) => Err(ControlError::Conflict { message }),
            None => {
                let run = (cause, TaskOverrides::default());
                self.queue(connection, task, run, line.reason.as_deref(), now).await
            }
        };
        let looked = match queued {
            Ok(queued) => {
                line.run = Some(queued.run);
                Looked::Queued(queued)
            }
            Err(error) => {
                let (decision, why) = why_not(error)?;
                (line.decision, line.reason) = (decision, Some(why));
                if decision == Decision::Waits { Looked::Waits } else { Looked::Nothing }
            }
        };
        ledger::append_within(connection, &line, now).await?;
        if !matches!(looked, Looked::Waits) {
            let next = timer.schedule.next_after(now);
            set(connection, &registry, &name_key, &name, next).await?;
        }
        Ok(looked)
    }
}

enum Looked {
    Queued(Queued),
    Waits,
    Nothing,
}

fn timer<'a>(definition: &'a TaskDefinition, name: &str) -> Option<&'a TimerTrigger> {
    definition.triggers.timers.iter().find(|timer| timer.name == name && timer.enabled)
}

fn key(row: &SqliteRow) -> Result<(Millis, String, String, String)> {
    let text = |name| column::<String>(row, name);
    Ok((column(row, "next_at")?, text("registry")?, text("name_key")?, text("timer")?))
}

/// What is told of a run that does not begin in time.
fn late(occurrence: Millis, missed: usize, now: Millis) -> Option<String> {
    if missed == 0 && now - occurrence <= LATE {
        return None;
    }
    let due = shown(occurrence);
    Some(match missed {
        0 => format!("it was due at {due}"),
        _ => {
            let at_least = if missed + 1 >= MISSED_MAX { "at least " } else { "" };
            format!(
                "it was due at {due}, and {at_least}{missed} times before that, for which no run is \
                 made up"
            )
        }
    })
}

pub(super) fn shown(time: Millis) -> String {
    Timestamp::from_millisecond(time).unwrap_or_default().to_string()
}

/// Writes down when a timer is due, or that it never is.
async fn set(
    connection: &mut SqliteConnection,
    registry: &str,
    name_key: &str,
    timer: &str,
    next: Option<Millis>,
) -> Result<()> {
    let statement = match next {
        Some(_) => {
            "INSERT INTO trigger_timers (registry, name_key, timer, next_at)
             VALUES ($1, $2, $3, $4)
             ON CONFLICT (registry, name_key, timer) DO UPDATE SET next_at = excluded.next_at"
        }
        None => {
            "DELETE FROM trigger_timers
             WHERE registry = $1 AND name_key = $2 AND timer = $3 AND $4 IS NULL"
        }
    };
    sqlx::query(statement)
        .bind(registry)
        .bind(name_key)
        .bind(timer)
        .bind(next)
        .execute(connection)
        .await
        .map_err(ControlError::database("write when a timer is due"))?;
    Ok(())
}

/// Brings the timers of a task in step with its definition. One that is as before stays due when it
/// was; others are from now on.
pub(super) async fn write_within(
    connection: &mut SqliteConnection,
    task: &StoredTask,
    before: Option<&TaskDefinition>,
    now: Millis,
) -> Result<()> {
    let registry = task.registry.as_str();
    let old = before.map_or(&[][..], |before| &before.triggers.timers);
    let timers = &task.definition.triggers.timers;
    for gone in old.iter().filter(|old| timer(&task.definition, &old.name).is_none()) {
        set(connection, registry, &task.name.key(), &gone.name, None).await?;
    }
    for timer in timers.iter().filter(|timer| timer.enabled && !old.contains(timer)) {
        let next = timer.schedule.next_after(now);
        set(connection, registry, &task.name.key(), &timer.name, next).await?;
    }
    Ok(())
}

/// Forgets the timers of a task that is deleted.
pub(super) async fn forget_within(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    name_key: &str,
) -> Result<()> {
    sqlx::query("DELETE FROM trigger_timers WHERE registry = $1 AND name_key = $2")
        .bind(registry.as_str())
        .bind(name_key)
        .execute(connection)
        .await
        .map_err(ControlError::database("forget the timers of a task"))?;
    Ok(())
}
