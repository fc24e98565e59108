//! Task runs: runs that are declared by name (runs.md section 2.3).

use oci::RegistryName;
use serde_json::Value;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use store::Millis;

use crate::table::{column, from_json, parsed, to_json};
use crate::{ControlError, NewRun, Result, Run, RunId, Runs, TaskRunName, table};

const SCHEMA: &[&str] = &["CREATE TABLE task_runs (
        registry TEXT NOT NULL,
        name_key TEXT NOT NULL,
        name TEXT NOT NULL,
        request TEXT NOT NULL,
        force_update_tag TEXT,
        number BIGINT NOT NULL,
        created_at BIGINT NOT NULL,
        updated_at BIGINT NOT NULL,
        PRIMARY KEY (registry, name_key)
    )"];

/// Task runs of one registry.
const TASK_RUNS_MAX: i64 = 10_000;

/// A run that is declared by name.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskRun {
    pub registry: RegistryName,
    pub name: TaskRunName,
    /// What was asked for, without its secrets: a JSON object that nobody here looks into.
    pub request: Value,
    /// Another one makes another run of the same request.
    pub force_update_tag: Option<String>,
    pub run: RunId,
    pub created_at: Millis,
    pub updated_at: Millis,
}

/// What a task run is to be.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskRunDeclaration {
    /// As [`TaskRun::request`].
    pub request: Value,
    pub force_update_tag: Option<String>,
    /// The run, if it needs a new one.
    pub run: NewRun,
}

/// All task runs of a server. Cheap to clone.
#[derive(Clone)]
pub struct TaskRuns {
    runs: Runs,
}

impl TaskRuns {
    pub async fn open(runs: Runs) -> Result<Self> {
        let failed = "prepare the table of task runs";
        runs.shared
            .db
            .migrate("task_runs", SCHEMA)
            .await
            .map_err(ControlError::database(failed))?;
        Ok(Self { runs })
    }

    /// Queues the run that is declared, unless the task run has one of the same request and tag.
    /// The run and the task run are durable together.
    pub async fn put(
        &self,
        registry: &RegistryName,
        name: &TaskRunName,
        declared: TaskRunDeclaration,
    ) -> Result<TaskRun> {
        let failed = "declare a run";
        // The writer: of two that declare the same, the second one finds the first one's run.
        let mut transaction =
            self.runs.shared.db.begin().await.map_err(ControlError::database(failed))?;
        let known = read(&mut transaction, registry, name).await?;
        let TaskRunDeclaration { request, force_update_tag, run: new } = declared;
        if let Some(known) = known
            .as_ref()
            .filter(|known| known.request == request && known.force_update_tag == force_update_tag)
        {
            return Ok(known.clone());
        }
        if known.is_none() {
            check_count(&mut transaction, registry).await?;
        }
        let now = self.runs.shared.clock.now();
        let run = self.runs.insert_within(&mut transaction, registry, &new, now).await?;
        let row = sqlx::query(
            "INSERT INTO task_runs (registry, name_key, name, request, force_update_tag, number,
                created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $7)
             ON CONFLICT (registry, name_key) DO UPDATE SET request = $4, force_update_tag = $5,
                number = $6, updated_at = $7
             RETURNING *",
        )
        .bind(registry.as_str())
        .bind(name.key())
        .bind(name.as_str())
        .bind(to_json(&request)?)
        .bind(&force_update_tag)
        .bind(run.number())
        .bind(now)
        .fetch_one(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        transaction.commit().await.map_err(ControlError::database(failed))?;
        self.runs.after_insert(registry, run, new.warnings).await?;
        task_run_of(&row)
    }

    pub async fn get(
        &self,
        registry: &RegistryName,
        name: &TaskRunName,
    ) -> Result<Option<TaskRun>> {
        let reader = self.runs.shared.db.reads().acquire().await;
        let mut reader = reader.map_err(ControlError::database("read a task run"))?;
        read(&mut reader, registry, name).await
    }

    /// By name, those after `after`, at most `limit`.
    pub async fn list(
        &self,
        registry: &RegistryName,
        after: Option<&TaskRunName>,
        limit: usize,
    ) -> Result<Vec<TaskRun>> {
        let rows = sqlx::query(
            "SELECT * FROM task_runs WHERE registry = $1 AND name_key > $2
             ORDER BY name_key LIMIT $3",
        )
        .bind(registry.as_str())
        .bind(after.map(TaskRunName::key).unwrap_or_default())
        .bind(limit as i64)
        .fetch_all(self.runs.shared.db.reads())
        .await
        .map_err(ControlError::database("list task runs"))?;
        rows.iter().map(task_run_of).collect()
    }

    /// The run of a task run, if its record is still kept.
    pub async fn run_of(&self, task_run: &TaskRun) -> Result<Option<Run>> {
        self.runs.get(&task_run.registry, task_run.run).await
    }

    /// Deletes the task run; its run goes on.
    pub async fn delete(&self, registry: &RegistryName, name: &TaskRunName) -> Result<()> {
        let statement = sqlx::query("DELETE FROM task_runs WHERE registry = $1 AND name_key = $2")
            .bind(registry.as_str())
            .bind(name.key());
        match table::execute(&self.runs.shared.db, "delete a task run", statement).await? {
            0 => Err(ControlError::NotFound { what: format!("task run `{name}`") }),
            _ => Ok(()),
        }
    }
}

async fn read(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    name: &TaskRunName,
) -> Result<Option<TaskRun>> {
    let row = sqlx::query("SELECT * FROM task_runs WHERE registry = $1 AND name_key = $2")
        .bind(registry.as_str())
        .bind(name.key())
        .fetch_optional(connection)
        .await
        .map_err(ControlError::database("read a task run"))?;
    row.map(|row| task_run_of(&row)).transpose()
}

async fn check_count(connection: &mut SqliteConnection, registry: &RegistryName) -> Result<()> {
    let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM task_runs WHERE registry = $1")
        .bind(registry.as_str())
        .fetch_one(connection)
        .await
        .map_err(ControlError::database("count task runs"))?;
    match count < TASK_RUNS_MAX {
        true => Ok(()),
        false => {
            let message = format!("a registry has at most {TASK_RUNS_MAX} task runs");
            Err(ControlError::Conflict { message })
        }
    }
}

fn task_run_of(row: &SqliteRow) -> Result<TaskRun> {
    Ok(TaskRun {
        registry: parsed(column(row, "registry")?)?,
        name: parsed(column(row, "name")?)?,
        request: from_json(column(row, "request")?)?,
        force_update_tag: column(row, "force_update_tag")?,
        run: RunId::from_number(column::<i64>(row, "number")? as u64),
        created_at: column(row, "created_at")?,
        updated_at: column(row, "updated_at")?,
    })
}
