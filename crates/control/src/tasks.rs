//! The table of stored tasks.

use oci::RegistryName;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

use crate::runs::note_ends;
use crate::table::{column, from_json, parsed, to_json};
use crate::{
    ControlError, Result, Run, Runs, StoredTask, TaskDefinition, TaskName, TaskOverrides, table,
};

const SCHEMA: &[&str] = &["CREATE TABLE tasks (
        registry TEXT NOT NULL,
        name_key TEXT NOT NULL,
        name TEXT NOT NULL,
        definition TEXT NOT NULL,
        dependencies TEXT,
        created_at BIGINT NOT NULL,
        updated_at BIGINT NOT NULL,
        revision BIGINT NOT NULL,
        PRIMARY KEY (registry, name_key)
    )"];

/// Tasks of one registry.
const TASKS_MAX: i64 = 10_000;

/// All stored tasks of a server. Cheap to clone.
#[derive(Clone)]
pub struct Tasks {
    pub(crate) runs: Runs,
}

impl Tasks {
    pub async fn open(runs: Runs) -> Result<Self> {
        let failed = "prepare the table of tasks";
        runs.shared.db.migrate("tasks", SCHEMA).await.map_err(ControlError::database(failed))?;
        Ok(Self { runs })
    }

    pub async fn get(
        &self,
        registry: &RegistryName,
        name: &TaskName,
    ) -> Result<Option<StoredTask>> {
        let row = sqlx::query("SELECT * FROM tasks WHERE registry = $1 AND name_key = $2")
            .bind(registry.as_str())
            .bind(name.key())
            .fetch_optional(self.runs.shared.db.reads())
            .await
            .map_err(ControlError::database("read a task"))?;
        row.map(|row| task_of(&row)).transpose()
    }

    /// By name, those after `after`, at most `limit`.
    pub async fn list(
        &self,
        registry: &RegistryName,
        after: Option<&TaskName>,
        limit: usize,
    ) -> Result<Vec<StoredTask>> {
        let rows = sqlx::query(
            "SELECT * FROM tasks WHERE registry = $1 AND name_key > $2
             ORDER BY name_key LIMIT $3",
        )
        .bind(registry.as_str())
        .bind(after.map(TaskName::key).unwrap_or_default())
        .bind(limit as i64)
        .fetch_all(self.runs.shared.db.reads())
        .await
        .map_err(ControlError::database("list tasks"))?;
        rows.iter().map(task_of).collect()
    }

    /// Creates a task, or replaces its definition. `known` is what the caller has read: if the
    /// task has changed since then, this is a `Conflict` and nothing is changed.
    pub async fn put(
        &self,
        registry: &RegistryName,
        name: &TaskName,
        definition: &TaskDefinition,
        known: Option<&StoredTask>,
    ) -> Result<StoredTask> {
        match known {
            Some(known) => self.replace(known, definition).await,
            None => self.create(registry, name, definition).await,
        }
    }

    async fn create(
        &self,
        registry: &RegistryName,
        name: &TaskName,
        definition: &TaskDefinition,
    ) -> Result<StoredTask> {
        let statement = sqlx::query(
            "INSERT INTO tasks (registry, name_key, name, definition, created_at, updated_at,
                revision)
             SELECT $1, $2, $3, $4, $5, $5, 1
             WHERE (SELECT COUNT(*) FROM tasks WHERE registry = $1) < $6
             ON CONFLICT DO NOTHING RETURNING *",
        )
        .bind(registry.as_str())
        .bind(name.key())
        .bind(name.as_str())
        .bind(to_json(definition)?)
        .bind(self.runs.shared.clock.now())
        .bind(TASKS_MAX);
        let rows = table::returning(&self.runs.shared.db, "create a task", statement).await?;
        match rows.first() {
            Some(row) => task_of(row),
            None if self.get(registry, name).await?.is_some() => Err(changed(name)),
            None => {
                let message = format!("a registry has at most {TASKS_MAX} tasks");
                Err(ControlError::Conflict { message })
            }
        }
    }

    async fn replace(&self, known: &StoredTask, definition: &TaskDefinition) -> Result<StoredTask> {
        let statement = sqlx::query(
            "UPDATE tasks SET definition = $4, updated_at = $5, revision = revision + 1
             WHERE registry = $1 AND name_key = $2 AND revision = $3 RETURNING *",
        )
        .bind(known.registry.as_str())
        .bind(known.name.key())
        .bind(known.revision as i64)
        .bind(to_json(definition)?)
        .bind(self.runs.shared.clock.now());
        let rows = table::returning(&self.runs.shared.db, "change a task", statement).await?;
        rows.first().map_or_else(|| Err(changed(&known.name)), task_of)
    }

    /// Deletes a task; its runs that wait are canceled, the others stay as they are.
    pub async fn delete(&self, registry: &RegistryName, name: &TaskName) -> Result<()> {
        let failed = "delete a task";
        let mut transaction =
            self.runs.shared.db.begin().await.map_err(ControlError::database(failed))?;
        let deleted = sqlx::query("DELETE FROM tasks WHERE registry = $1 AND name_key = $2")
            .bind(registry.as_str())
            .bind(name.key())
            .execute(&mut *transaction)
            .await
            .map_err(ControlError::database(failed))?;
        if deleted.rows_affected() == 0 {
            return Err(not_found(name));
        }
        let canceled = sqlx::query(
            "UPDATE runs SET status = 'Canceled', error = 'the task was deleted',
                cancel_requested = TRUE, updated_at = $3, finished_at = $3
             WHERE registry = $1 AND LOWER(task) = $2 AND status = 'Queued' RETURNING *",
        )
        .bind(registry.as_str())
        .bind(name.key())
        .bind(self.runs.shared.clock.now())
        .fetch_all(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        note_ends(&mut transaction, &canceled, self.runs.shared.clock.now()).await?;
        transaction.commit().await.map_err(ControlError::database(failed))?;
        self.runs.after_ends(&canceled).await
    }
}

/// That a task is there, where a run of it is queued.
pub(crate) async fn check(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    name: &TaskName,
) -> Result<()> {
    let found: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM tasks WHERE registry = $1 AND name_key = $2")
            .bind(registry.as_str())
            .bind(name.key())
            .fetch_one(connection)
            .await
            .map_err(ControlError::database("find a task"))?;
    if found == 1 { Ok(()) } else { Err(not_found(name)) }
}

/// Keeps what the images of a run were made of with its task, if the run was what the task says
/// now: not of an older definition, and without overrides.
pub(crate) async fn note_dependencies(
    connection: &mut SqliteConnection,
    run: &Run,
    name: &TaskName,
    dependencies: &serde_json::Value,
) -> Result<()> {
    let row = sqlx::query("SELECT * FROM tasks WHERE registry = $1 AND name_key = $2")
        .bind(run.registry.as_str())
        .bind(name.key())
        .fetch_optional(&mut *connection)
        .await
        .map_err(ControlError::database("read a task"))?;
    let Some(task) = row.map(|row| task_of(&row)).transpose()? else { return Ok(()) };
    let build = run.request.build();
    let compression = build.map(|build| build.options.compression).unwrap_or_default();
    let archived = run.request.archived();
    let overrides = TaskOverrides { archived, ..TaskOverrides::default() };
    let plain = task.definition.run(name, overrides, compression);
    if plain.is_ok_and(|plain| plain.request == run.request) {
        sqlx::query("UPDATE tasks SET dependencies = $3 WHERE registry = $1 AND name_key = $2")
            .bind(run.registry.as_str())
            .bind(name.key())
            .bind(to_json(dependencies)?)
            .execute(connection)
            .await
            .map_err(ControlError::database("note what a task depends on"))?;
    }
    Ok(())
}

fn not_found(name: &TaskName) -> ControlError {
    ControlError::NotFound { what: format!("task `{name}`") }
}

fn changed(name: &TaskName) -> ControlError {
    let message = format!("task `{name}` was changed by somebody else at the same time");
    ControlError::Conflict { message }
}

pub(crate) fn task_of(row: &SqliteRow) -> Result<StoredTask> {
    let dependencies: Option<&str> = column(row, "dependencies")?;
    Ok(StoredTask {
        registry: parsed(column(row, "registry")?)?,
        name: parsed(column(row, "name")?)?,
        definition: from_json(column(row, "definition")?)?,
        created_at: column(row, "created_at")?,
        updated_at: column(row, "updated_at")?,
        revision: column::<i64>(row, "revision")? as u64,
        dependencies: dependencies.map(from_json).transpose()?,
    })
}
