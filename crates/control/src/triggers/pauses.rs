//! Triggers that are held by people for a while: all of a registry, those of a task, or whatever follows
//! from a base.
//!
//! Commits and moves of bases wait, and are answered when the pause ends; times of timers that come
//! meanwhile are left out. Runs that somebody starts are not concerned.

use std::fmt;

use oci::RegistryName;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use store::Millis;
use tokio::sync::watch;

use super::{ImageTag, OwnRegistry, Triggers};
use crate::table::{column, parsed};
use crate::{ControlError, Result, TaskName};

pub(super) const SCHEMA: &[&str] = &[
    "CREATE TABLE trigger_pauses (
        registry TEXT NOT NULL,
        kind TEXT NOT NULL,
        subject TEXT NOT NULL,
        shown TEXT NOT NULL,
        reason TEXT NOT NULL,
        ends_at BIGINT,
        paused_by TEXT NOT NULL,
        at BIGINT NOT NULL,
        PRIMARY KEY (registry, kind, subject)
    )",
    // Images of the registry itself begin with the slash; before, one was told by a first part that is no host.
    "UPDATE trigger_pauses SET subject = '/' || subject, shown = '/' || shown
     WHERE kind = 'Base' AND (subject NOT LIKE '%/%' OR NOT (subject LIKE 'localhost/%'
        OR substr(subject, 1, instr(subject, '/')) LIKE '%.%'
        OR substr(subject, 1, instr(subject, '/')) LIKE '%:%'))",
];

/// Pauses of one registry.
const PAUSES_MAX: i64 = 1_000;

/// What is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PauseScope {
    All,
    Task(TaskName),
    Base(ImageTag),
}

/// Triggers that are held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    pub scope: PauseScope,
    pub reason: String,
    /// Nothing if it lasts until somebody ends it.
    pub ends_at: Option<Millis>,
    /// Who has paused them, and when.
    pub by: String,
    pub since: Millis,
}

impl PauseScope {
    fn kind(&self) -> &'static str {
        match self {
            Self::All => "All",
            Self::Task(_) => "Task",
            Self::Base(_) => "Base",
        }
    }

    /// The same for whatever is the same.
    fn key(&self) -> String {
        match self {
            Self::All => String::new(),
            Self::Task(task) => task.key(),
            // An own repository may begin as a host does.
            Self::Base(base) => {
                let host = base.host.as_deref().unwrap_or_default();
                format!("{host}/{}:{}", base.repository, base.tag)
            }
        }
    }
}

impl fmt::Display for PauseScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all triggers"),
            Self::Task(task) => write!(f, "the triggers of task `{task}`"),
            Self::Base(base) => write!(f, "what follows from `{base}`"),
        }
    }
}

impl Pause {
    /// Why something does not start, for people.
    pub(super) fn why(&self) -> String {
        let until = match self.ends_at.and_then(|at| jiff::Timestamp::from_millisecond(at).ok()) {
            Some(end) => format!(" until {end}"),
            None => String::new(),
        };
        let is_one = !matches!(self.scope, PauseScope::All | PauseScope::Task(_));
        let verb = if is_one { "is" } else { "are" };
        format!("{} {verb} paused{until}, by {}: {}", self.scope, self.by, self.reason)
    }

    /// Whether it has not ended at a time.
    pub(super) fn lasts(&self, time: Millis) -> bool {
        self.ends_at.is_none_or(|end| end > time)
    }

    fn is_of(&self, task: &TaskName) -> bool {
        match &self.scope {
            PauseScope::All => true,
            PauseScope::Task(paused) => paused == task,
            PauseScope::Base(_) => false,
        }
    }
}

impl Triggers {
    /// Holds triggers; a pause of the same takes the place of the one before.
    pub async fn pause(&self, registry: &RegistryName, pause: &Pause) -> Result<()> {
        let (db, failed) = (&self.tasks.runs.shared.db, "pause triggers");
        let mut transaction = db.begin().await.map_err(ControlError::database(failed))?;
        let count: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM trigger_pauses
             WHERE registry = $1 AND NOT (kind = $2 AND subject = $3)",
        )
        .bind(registry.as_str())
        .bind(pause.scope.kind())
        .bind(pause.scope.key())
        .fetch_one(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        if count >= PAUSES_MAX {
            let message = format!("registry `{registry}` has {PAUSES_MAX} pauses already");
            return Err(ControlError::Conflict { message });
        }
        let shown = match &pause.scope {
            PauseScope::Task(task) => task.to_string(),
            scope => scope.key(),
        };
        sqlx::query(
            "INSERT INTO trigger_pauses (registry, kind, subject, shown, reason, ends_at, paused_by, at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
             ON CONFLICT (registry, kind, subject) DO UPDATE SET shown = excluded.shown,
                reason = excluded.reason, ends_at = excluded.ends_at,
                paused_by = excluded.paused_by, at = excluded.at",
        )
        .bind(registry.as_str())
        .bind(pause.scope.kind())
        .bind(pause.scope.key())
        .bind(shown)
        .bind(&pause.reason)
        .bind(pause.ends_at)
        .bind(&pause.by)
        .bind(pause.since)
        .execute(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        transaction.commit().await.map_err(ControlError::database(failed))
    }

    /// Ends a pause; `false` if there is none. What has waited is answered at the next look.
    pub async fn resume(&self, registry: &RegistryName, scope: &PauseScope) -> Result<bool> {
        let (db, failed) = (&self.tasks.runs.shared.db, "resume triggers");
        let mut transaction = db.begin().await.map_err(ControlError::database(failed))?;
        let ended = sqlx::query(
            "DELETE FROM trigger_pauses WHERE registry = $1 AND kind = $2 AND subject = $3",
        )
        .bind(registry.as_str())
        .bind(scope.kind())
        .bind(scope.key())
        .execute(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        release(&mut transaction, registry.as_str()).await?;
        transaction.commit().await.map_err(ControlError::database(failed))?;
        self.resumed.send_replace(());
        Ok(ended.rows_affected() > 0)
    }

    /// What is held in a registry now.
    pub async fn pauses(&self, registry: &RegistryName) -> Result<Vec<Pause>> {
        let shared = &self.tasks.runs.shared;
        let connection = shared.db.reads().acquire().await;
        let mut connection = connection.map_err(ControlError::database("list pauses"))?;
        pauses_within(&mut connection, registry, shared.clock.now()).await
    }

    /// What is held in a registry that concerns a task.
    pub async fn pauses_of(
        &self,
        registry: &RegistryName,
        own: OwnRegistry<'_>,
        task: &TaskName,
    ) -> Result<Vec<Pause>> {
        let mut pauses = self.pauses(registry).await?;
        let bases: Vec<(String, String, String)> = sqlx::query_as(
            "SELECT host, repository, tag FROM trigger_bases WHERE registry = $1 AND name_key = $2",
        )
        .bind(registry.as_str())
        .bind(task.key())
        .fetch_all(self.tasks.runs.shared.db.reads())
        .await
        .map_err(ControlError::database("list pauses"))?;
        let image = |(host, repository, tag): (String, String, String)| {
            let is_own = own(&host).as_ref() == Some(registry);
            ImageTag { host: (!is_own).then_some(host), repository, tag }
        };
        let bases: Vec<ImageTag> = bases.into_iter().map(image).collect();
        pauses.retain(|pause| match &pause.scope {
            PauseScope::Base(base) => bases.contains(base),
            _ => pause.is_of(task),
        });
        Ok(pauses)
    }

    /// Changes whenever something may go on that was held, or another registry's image has moved.
    pub fn resumed(&self) -> watch::Receiver<()> {
        self.resumed.subscribe()
    }

    /// When the next pause ends.
    pub async fn next_resume(&self) -> Result<Option<Millis>> {
        sqlx::query_scalar("SELECT MIN(ends_at) FROM trigger_pauses")
            .fetch_one(self.tasks.runs.shared.db.reads())
            .await
            .map_err(ControlError::database("find the next end of a pause"))
    }

    /// Ends the pauses whose time has come.
    pub(super) async fn end_pauses(&self) -> Result<()> {
        let now = self.tasks.runs.shared.clock.now();
        if self.next_resume().await?.is_none_or(|end| end > now) {
            return Ok(());
        }
        let (db, failed) = (&self.tasks.runs.shared.db, "end pauses");
        let mut transaction = db.begin().await.map_err(ControlError::database(failed))?;
        let registries: Vec<(String,)> =
            sqlx::query_as("DELETE FROM trigger_pauses WHERE ends_at <= $1 RETURNING registry")
                .bind(now)
                .fetch_all(&mut *transaction)
                .await
                .map_err(ControlError::database(failed))?;
        for (registry,) in registries {
            release(&mut transaction, &registry).await?;
        }
        transaction.commit().await.map_err(ControlError::database(failed))
    }
}

/// Has the moves looked at again that were held.
async fn release(connection: &mut SqliteConnection, registry: &str) -> Result<()> {
    sqlx::query("UPDATE trigger_moves SET held = FALSE WHERE registry = $1 AND held")
        .bind(registry)
        .execute(connection)
        .await
        .map_err(ControlError::database("let moves go on that were held"))?;
    Ok(())
}

/// What is held in a registry.
pub(super) async fn pauses_within(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    now: Millis,
) -> Result<Vec<Pause>> {
    let rows = sqlx::query(
        "SELECT * FROM trigger_pauses WHERE registry = $1 AND (ends_at IS NULL OR ends_at > $2)
         ORDER BY kind, subject",
    )
    .bind(registry.as_str())
    .bind(now)
    .fetch_all(connection)
    .await
    .map_err(ControlError::database("list pauses"))?;
    rows.iter().map(pause_of).collect()
}

/// Why the triggers of a task are held, if they are.
pub(super) async fn paused_within(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    task: &TaskName,
    now: Millis,
) -> Result<Option<String>> {
    let pauses = pauses_within(connection, registry, now).await?;
    Ok(paused(&pauses, task))
}

/// The same, of what is held in the registry.
pub(super) fn paused(pauses: &[Pause], task: &TaskName) -> Option<String> {
    pauses.iter().find(|pause| pause.is_of(task)).map(Pause::why)
}

/// Why a move of a base is held, if it is.
pub(super) fn paused_base(pauses: &[Pause], base: &ImageTag) -> Option<String> {
    let is_of = |pause: &&Pause| matches!(&pause.scope, PauseScope::Base(paused) if paused == base);
    pauses.iter().find(is_of).map(Pause::why)
}

fn pause_of(row: &SqliteRow) -> Result<Pause> {
    let shown: &str = column(row, "shown")?;
    let scope = match column(row, "kind")? {
        "Task" => PauseScope::Task(parsed(shown)?),
        "Base" => {
            let unknown = || ControlError::Conflict { message: format!("`{shown}` is no image") };
            PauseScope::Base(ImageTag::of(shown).ok_or_else(unknown)?)
        }
        _ => PauseScope::All,
    };
    Ok(Pause {
        scope,
        reason: column(row, "reason")?,
        ends_at: column(row, "ends_at")?,
        by: column(row, "paused_by")?,
        since: column(row, "at")?,
    })
}
