//! The table of stored tasks.

use oci::RegistryName;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Sqlite, SqliteConnection};
use store::Millis;
use tokio::sync::watch;

use crate::runs::Shared;
use crate::table::{column, from_json, parsed, to_json};
use crate::{
    ControlError, Outcome, Result, Run, RunCause, Runs, SecretKeys, StoredTask, TaskDefinition,
    TaskName, TaskOverrides, table, triggers,
};

const SCHEMA: &[&str] = &[
    "CREATE TABLE tasks (
        registry TEXT NOT NULL,
        name_key TEXT NOT NULL,
        name TEXT NOT NULL,
        definition TEXT NOT NULL,
        dependencies TEXT,
        created_at BIGINT NOT NULL,
        updated_at BIGINT NOT NULL,
        revision BIGINT NOT NULL,
        PRIMARY KEY (registry, name_key)
    )",
    // What is secret in the definition, sealed.
    "ALTER TABLE tasks ADD COLUMN secrets TEXT",
];

/// Tasks of one registry.
const TASKS_MAX: i64 = 10_000;

/// All stored tasks of a server. Cheap to clone.
#[derive(Clone)]
pub struct Tasks {
    pub(crate) runs: Runs,
    /// Marked whenever a task has other triggers.
    pub(crate) triggers_changed: watch::Sender<()>,
}

impl Tasks {
    pub async fn open(runs: Runs) -> Result<Self> {
        let failed = "prepare the table of tasks";
        for (owner, schema) in [("tasks", SCHEMA)].into_iter().chain(triggers::OF_TASKS) {
            runs.shared.db.migrate(owner, schema).await.map_err(ControlError::database(failed))?;
        }
        let tasks = Self { runs, triggers_changed: watch::Sender::default() };
        tasks.seal_again().await?;
        Ok(tasks)
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
        row.map(|row| self.task_of(&row)).transpose()
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
        rows.iter().map(|row| self.task_of(row)).collect()
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
        let (text, secrets) = self.divide(registry, name, definition)?;
        let now = self.runs.shared.clock.now();
        let statement = sqlx::query(
            "INSERT INTO tasks (registry, name_key, name, definition, created_at, updated_at,
                revision, secrets)
             SELECT $1, $2, $3, $4, $5, $5, 1, $6
             WHERE (SELECT COUNT(*) FROM tasks WHERE registry = $1) < $7
             ON CONFLICT DO NOTHING RETURNING *",
        )
        .bind(registry.as_str())
        .bind(name.key())
        .bind(name.as_str())
        .bind(text)
        .bind(now)
        .bind(secrets)
        .bind(TASKS_MAX);
        match self.written("create a task", statement, None, now).await? {
            Some(task) => Ok(task),
            None if self.get(registry, name).await?.is_some() => Err(changed(name)),
            None => {
                let message = format!("a registry has at most {TASKS_MAX} tasks");
                Err(ControlError::Conflict { message })
            }
        }
    }

    async fn replace(&self, known: &StoredTask, definition: &TaskDefinition) -> Result<StoredTask> {
        let (text, secrets) = self.divide(&known.registry, &known.name, definition)?;
        let now = self.runs.shared.clock.now();
        let statement = sqlx::query(
            "UPDATE tasks SET definition = $4, updated_at = $5, secrets = $6,
                revision = revision + 1
             WHERE registry = $1 AND name_key = $2 AND revision = $3 RETURNING *",
        )
        .bind(known.registry.as_str())
        .bind(known.name.key())
        .bind(known.revision as i64)
        .bind(text)
        .bind(now)
        .bind(secrets);
        let written = self.written("change a task", statement, Some(&known.definition), now);
        written.await?.ok_or_else(|| changed(&known.name))
    }

    /// Carries out what writes a task, and writes what follows from it; says whether there is one.
    async fn written(
        &self,
        doing: &'static str,
        statement: Query<'_, Sqlite, SqliteArguments>,
        before: Option<&TaskDefinition>,
        now: Millis,
    ) -> Result<Option<StoredTask>> {
        let mut transaction =
            self.runs.shared.db.begin().await.map_err(ControlError::database(doing))?;
        let row = statement
            .fetch_optional(&mut *transaction)
            .await
            .map_err(ControlError::database(doing))?;
        let Some(task) = row.map(|row| self.task_of(&row)).transpose()? else { return Ok(None) };
        triggers::write_within(&mut transaction, &task, before, now).await?;
        transaction.commit().await.map_err(ControlError::database(doing))?;
        self.triggers_changed.send_replace(());
        Ok(Some(task))
    }

    /// A definition as the table keeps it: what may be read, and what is sealed.
    fn divide(
        &self,
        registry: &RegistryName,
        name: &TaskName,
        definition: &TaskDefinition,
    ) -> Result<(String, Option<String>)> {
        let open = definition.clone().without_secrets();
        self.runs.shared.keys.divide(&place(registry, name), definition, &open)
    }

    pub(crate) fn task_of(&self, row: &SqliteRow) -> Result<StoredTask> {
        task_of(&self.runs.shared.keys, row)
    }

    /// Seals what is not sealed with the key of today: a key was changed, or an older version kept
    /// secrets in the open.
    async fn seal_again(&self) -> Result<()> {
        let rows = sqlx::query("SELECT * FROM tasks")
            .fetch_all(self.runs.shared.db.reads())
            .await
            .map_err(ControlError::database("list tasks"))?;
        for row in &rows {
            let sealed: Option<&str> = column(row, "secrets")?;
            if sealed.is_some_and(|sealed| self.runs.shared.keys.is_current(sealed)) {
                continue;
            }
            let task = self.task_of(row)?;
            let (text, secrets) = self.divide(&task.registry, &task.name, &task.definition)?;
            if secrets.is_none() {
                continue;
            }
            self.runs.shared.note_traces(sealed).await?;
            let statement = sqlx::query(
                "UPDATE tasks SET definition = $3, secrets = $4
                 WHERE registry = $1 AND name_key = $2",
            )
            .bind(task.registry.as_str())
            .bind(task.name.key())
            .bind(text)
            .bind(secrets);
            let sealing = "seal the secrets of a task";
            table::execute(&self.runs.shared.db, sealing, statement).await?;
        }
        self.runs.shared.remove_traces().await
    }

    /// Writes down the bases of tasks whose runs have told them, where that is not done: an older version
    /// has not.
    pub(crate) async fn learn_again(&self) -> Result<()> {
        let failed = "note what tasks are built on";
        let rows: Vec<(String, String, String)> = sqlx::query_as(
            "SELECT registry, name_key, dependencies FROM tasks t
             WHERE dependencies IS NOT NULL AND NOT EXISTS (SELECT 1 FROM trigger_bases b
                WHERE b.registry = t.registry AND b.name_key = t.name_key)",
        )
        .fetch_all(self.runs.shared.db.reads())
        .await
        .map_err(ControlError::database(failed))?;
        if rows.is_empty() {
            return Ok(());
        }
        let mut transaction =
            self.runs.shared.db.begin().await.map_err(ControlError::database(failed))?;
        for (registry, name_key, dependencies) in rows {
            let report = from_json(&dependencies)?;
            triggers::learn_within(&mut transaction, &parsed(&registry)?, &name_key, &report)
                .await?;
        }
        transaction.commit().await.map_err(ControlError::database(failed))
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
        triggers::forget_within(&mut transaction, registry, &name.key()).await?;
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
        self.runs
            .shared
            .note_ends(&mut transaction, &canceled, self.runs.shared.clock.now())
            .await?;
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
    shared: &Shared,
    connection: &mut SqliteConnection,
    run: &Run,
    name: &TaskName,
    outcome: &Outcome,
) -> Result<()> {
    let dependencies = outcome.dependencies.as_ref();
    let row = sqlx::query("SELECT * FROM tasks WHERE registry = $1 AND name_key = $2")
        .bind(run.registry.as_str())
        .bind(name.key())
        .fetch_optional(&mut *connection)
        .await
        .map_err(ControlError::database("read a task"))?;
    let Some(task) = row.map(|row| task_of(&shared.keys, &row)).transpose()? else { return Ok(()) };
    let build = run.request.build();
    let compression = build.map(|build| build.options.compression).unwrap_or_default();
    let archived = run.request.archived();
    // A commit of its branch is what the task says then; a pull request is not.
    let context = match (&run.cause, &task.definition.context) {
        (Some(RunCause::Source(cause)), Some(context)) if cause.pull_request.is_none() => {
            Some(triggers::pinned(context, &cause.commit, &cause.branch))
        }
        _ => None,
    };
    let overrides = TaskOverrides { context, archived, ..TaskOverrides::default() };
    let plain = task.definition.run(name, overrides, compression);
    if plain.is_ok_and(|plain| plain.request == run.request) {
        let none = serde_json::Value::Null;
        let report = dependencies.unwrap_or(&none);
        let (registry, name_key) = (&run.registry, name.key());
        triggers::learn_within(connection, registry, &name_key, report).await?;
        triggers::note_outputs_within(connection, registry, &name_key, &outcome.images).await?;
        // What has built nothing says nothing of images.
        let Some(dependencies) = dependencies else { return Ok(()) };
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

/// Where the secrets of a task are at home.
fn place(registry: &RegistryName, name: &TaskName) -> String {
    format!("task {registry}/{}", name.key())
}

fn not_found(name: &TaskName) -> ControlError {
    ControlError::NotFound { what: format!("task `{name}`") }
}

fn changed(name: &TaskName) -> ControlError {
    let message = format!("task `{name}` was changed by somebody else at the same time");
    ControlError::Conflict { message }
}

fn task_of(keys: &SecretKeys, row: &SqliteRow) -> Result<StoredTask> {
    let registry: RegistryName = parsed(column(row, "registry")?)?;
    let name: TaskName = parsed(column(row, "name")?)?;
    let (definition, secrets) = (column(row, "definition")?, column(row, "secrets")?);
    let definition = keys.join(&place(&registry, &name), definition, secrets)?;
    let dependencies: Option<&str> = column(row, "dependencies")?;
    Ok(StoredTask {
        registry,
        name,
        definition,
        created_at: column(row, "created_at")?,
        updated_at: column(row, "updated_at")?,
        revision: column::<i64>(row, "revision")? as u64,
        dependencies: dependencies.map(from_json).transpose()?,
    })
}
