//! Secrets that a registry keeps for its runs (identity-and-secrets.md section 4).

use oci::RegistryName;
use sqlx::sqlite::SqliteRow;
use store::Millis;
use task::SecretText;

use crate::access::check_description;
use crate::sealing::beside;
use crate::table::{column, from_json, parsed, to_json};
use crate::{ControlError, Result, Runs, SecretName, TaskName, table};

const SCHEMA: &[&str] = &["CREATE TABLE secrets (
        registry TEXT NOT NULL,
        name_key TEXT NOT NULL,
        name TEXT NOT NULL,
        description TEXT NOT NULL,
        tasks TEXT,
        value TEXT NOT NULL,
        created_at BIGINT NOT NULL,
        updated_at BIGINT NOT NULL,
        PRIMARY KEY (registry, name_key)
    )"];

/// Secrets of one registry.
const SECRETS_MAX: i64 = 10_000;
/// Bytes of a value.
const VALUE_MAX: usize = 64 << 10;
/// Tasks that one secret may be for.
const TASKS_MAX: usize = 1000;

/// What is known of a secret, without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSecret {
    pub registry: RegistryName,
    pub name: SecretName,
    pub description: String,
    pub runs: SecretRuns,
    pub created_at: Millis,
    pub updated_at: Millis,
}

/// Which runs may have a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretRuns {
    /// Those of the registry.
    All,
    /// Those of these stored tasks.
    Of(Vec<TaskName>),
}

/// What is to be another one; the rest stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretChange {
    pub description: Option<String>,
    pub runs: Option<SecretRuns>,
    pub value: Option<SecretText>,
}

impl StoredSecret {
    /// Whether the runs of a task may have it, or those of none.
    pub fn is_for(&self, task: Option<&TaskName>) -> bool {
        match &self.runs {
            SecretRuns::All => true,
            SecretRuns::Of(tasks) => task.is_some_and(|task| tasks.contains(task)),
        }
    }
}

/// All secrets of a server. Cheap to clone.
#[derive(Clone)]
pub struct Secrets {
    runs: Runs,
}

impl Secrets {
    pub async fn open(runs: Runs) -> Result<Self> {
        let failed = "prepare the table of secrets";
        runs.shared.db.migrate("secrets", SCHEMA).await.map_err(ControlError::database(failed))?;
        let secrets = Self { runs };
        secrets.seal_again().await?;
        Ok(secrets)
    }

    pub async fn get(
        &self,
        registry: &RegistryName,
        name: &SecretName,
    ) -> Result<Option<StoredSecret>> {
        self.row(registry, name).await?.map(|row| secret_of(&row)).transpose()
    }

    /// What it is, and its value.
    pub async fn reveal(
        &self,
        registry: &RegistryName,
        name: &SecretName,
    ) -> Result<Option<(StoredSecret, SecretText)>> {
        let Some(row) = self.row(registry, name).await? else { return Ok(None) };
        let value = String::from_utf8_lossy(&self.open_row(&row)?).into_owned();
        Ok(Some((secret_of(&row)?, SecretText::new(value))))
    }

    /// By name, those after `after`, at most `limit`.
    pub async fn list(
        &self,
        registry: &RegistryName,
        after: Option<&SecretName>,
        limit: usize,
    ) -> Result<Vec<StoredSecret>> {
        let rows = sqlx::query(
            "SELECT * FROM secrets WHERE registry = $1 AND name_key > $2
             ORDER BY name_key LIMIT $3",
        )
        .bind(registry.as_str())
        .bind(after.map(SecretName::key).unwrap_or_default())
        .bind(limit as i64)
        .fetch_all(self.runs.shared.db.reads())
        .await
        .map_err(ControlError::database("list secrets"))?;
        rows.iter().map(secret_of).collect()
    }

    /// Makes a secret, which needs a value and somebody who may have it, or changes one.
    pub async fn put(
        &self,
        registry: &RegistryName,
        name: &SecretName,
        change: SecretChange,
    ) -> Result<StoredSecret> {
        let failed = "keep a secret";
        let shared = &self.runs.shared;
        let mut transaction = shared.db.begin().await.map_err(ControlError::database(failed))?;
        let row = sqlx::query("SELECT * FROM secrets WHERE registry = $1 AND name_key = $2")
            .bind(registry.as_str())
            .bind(name.key())
            .fetch_optional(&mut *transaction)
            .await
            .map_err(ControlError::database(failed))?;
        let known = row.as_ref().map(secret_of).transpose()?;
        let description = change.description.or_else(|| Some(known.as_ref()?.description.clone()));
        let description = description.unwrap_or_default();
        check_description(&description)?;
        let runs = change.runs.or_else(|| Some(known.as_ref()?.runs.clone()));
        let runs = runs.ok_or_else(|| lacks(name, "nobody may have it"))?;
        let tasks = text_of(&runs)?;
        let value = match (&change.value, &row) {
            (Some(value), _) => checked(value)?.as_bytes().to_vec(),
            // It is sealed beside who may have it.
            (None, Some(row)) => self.open_row(row)?,
            (None, None) => return Err(lacks(name, "it has no value")),
        };
        let sealed = shared.keys.seal(&place(registry, name, tasks.as_deref()), &value)?;
        let row = sqlx::query(
            "INSERT INTO secrets (registry, name_key, name, description, tasks, created_at,
                updated_at, value)
             SELECT $1, $2, $3, $4, $5, $6, $6, $7
             WHERE (SELECT COUNT(*) FROM secrets WHERE registry = $1 AND name_key <> $2) < $8
             ON CONFLICT (registry, name_key) DO UPDATE SET description = $4, tasks = $5,
                updated_at = $6, value = $7
             RETURNING *",
        )
        .bind(registry.as_str())
        .bind(name.key())
        .bind(name.as_str())
        .bind(&description)
        .bind(&tasks)
        .bind(shared.clock.now())
        .bind(sealed)
        .bind(SECRETS_MAX)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        transaction.commit().await.map_err(ControlError::database(failed))?;
        let too_many = || {
            let message = format!("a registry has at most {SECRETS_MAX} secrets");
            ControlError::Conflict { message }
        };
        row.map_or_else(|| Err(too_many()), |row| secret_of(&row))
    }

    /// Deletes a secret; runs that have it keep it.
    pub async fn delete(&self, registry: &RegistryName, name: &SecretName) -> Result<()> {
        let statement = sqlx::query("DELETE FROM secrets WHERE registry = $1 AND name_key = $2")
            .bind(registry.as_str())
            .bind(name.key());
        match table::execute(&self.runs.shared.db, "delete a secret", statement).await? {
            0 => Err(ControlError::NotFound { what: format!("secret `{name}`") }),
            _ => Ok(()),
        }
    }

    async fn row(&self, registry: &RegistryName, name: &SecretName) -> Result<Option<SqliteRow>> {
        sqlx::query("SELECT * FROM secrets WHERE registry = $1 AND name_key = $2")
            .bind(registry.as_str())
            .bind(name.key())
            .fetch_optional(self.runs.shared.db.reads())
            .await
            .map_err(ControlError::database("read a secret"))
    }

    fn open_row(&self, row: &SqliteRow) -> Result<Vec<u8>> {
        let (registry, name) = (parsed(column(row, "registry")?)?, parsed(column(row, "name")?)?);
        let place = place(&registry, &name, column(row, "tasks")?);
        self.runs.shared.keys.open(&place, column(row, "value")?)
    }

    /// Seals with the key of today what is sealed with an older one.
    async fn seal_again(&self) -> Result<()> {
        let rows = sqlx::query("SELECT * FROM secrets")
            .fetch_all(self.runs.shared.db.reads())
            .await
            .map_err(ControlError::database("list secrets"))?;
        let keys = &self.runs.shared.keys;
        for row in &rows {
            let sealed: &str = column(row, "value")?;
            if keys.is_current(sealed) {
                continue;
            }
            let StoredSecret { registry, name, .. } = secret_of(row)?;
            let place = place(&registry, &name, column(row, "tasks")?);
            let again = keys.seal(&place, &self.open_row(row)?)?;
            let statement =
                sqlx::query("UPDATE secrets SET value = $3 WHERE registry = $1 AND name_key = $2")
                    .bind(registry.as_str())
                    .bind(name.key())
                    .bind(again);
            table::execute(&self.runs.shared.db, "seal a secret again", statement).await?;
        }
        Ok(())
    }
}

/// Where the value of a secret is at home, beside who may have it.
fn place(registry: &RegistryName, name: &SecretName, tasks: Option<&str>) -> String {
    let runs = tasks.map_or_else(|| "all".to_owned(), |tasks| format!("of {tasks}"));
    beside(&format!("secret {registry}/{}", name.key()), &runs)
}

/// As the table has it: `NULL` for all.
fn text_of(runs: &SecretRuns) -> Result<Option<String>> {
    match runs {
        SecretRuns::All => Ok(None),
        SecretRuns::Of(tasks) if (1..=TASKS_MAX).contains(&tasks.len()) => to_json(tasks).map(Some),
        SecretRuns::Of(_) => {
            let message = format!("a secret is for 1 to {TASKS_MAX} tasks, or for all runs");
            Err(ControlError::Invalid { message, hint: None })
        }
    }
}

fn checked(value: &SecretText) -> Result<&str> {
    let text = value.expose();
    match (1..=VALUE_MAX).contains(&text.len()) {
        true => Ok(text),
        false => {
            let message = format!("the value of a secret has 1 to {VALUE_MAX} bytes");
            Err(ControlError::Invalid { message, hint: None })
        }
    }
}

fn lacks(name: &SecretName, what: &str) -> ControlError {
    let message = format!("secret `{name}` is not there yet, and {what}");
    let hint = "a new one needs a value, and tasks or all runs that may have it";
    ControlError::Invalid { message, hint: Some(hint.into()) }
}

fn secret_of(row: &SqliteRow) -> Result<StoredSecret> {
    let tasks: Option<&str> = column(row, "tasks")?;
    Ok(StoredSecret {
        registry: parsed(column(row, "registry")?)?,
        name: parsed(column(row, "name")?)?,
        description: column(row, "description")?,
        runs: match tasks {
            Some(tasks) => SecretRuns::Of(from_json(tasks)?),
            None => SecretRuns::All,
        },
        created_at: column(row, "created_at")?,
        updated_at: column(row, "updated_at")?,
    })
}
