//! Tasks that have not succeeded for long.

use std::collections::HashMap;

use oci::RegistryName;
use serde::Deserialize;
use sqlx::SqliteConnection;
use store::Millis;

use super::event::Event;
use super::{HostOf, Webhook, WebhookAction, Webhooks, deliveries, shown_webhook_of};
use crate::table::{column, from_json, parsed};
use crate::{ControlError, Result, TaskName, TaskTriggers, WebhookName};

/// What was told, and since when the task had not succeeded then.
pub(super) const TABLE: &str = "CREATE TABLE webhook_overdue (
        registry TEXT NOT NULL,
        name_key TEXT NOT NULL,
        task_key TEXT NOT NULL,
        since BIGINT NOT NULL,
        PRIMARY KEY (registry, name_key, task_key)
    )";

/// If a webhook does not say.
pub(super) const DAYS: u32 = 7;
pub(super) const DAYS_MAX: u32 = 365;
const DAY: Millis = 24 * 60 * 60 * 1000;

/// A task that something starts.
struct Task {
    name: TaskName,
    created_at: Millis,
    last_success: Option<Millis>,
}

/// As much of a definition as matters here.
#[derive(Deserialize)]
struct Definition {
    enabled: bool,
    #[serde(default)]
    expires_at: Option<Millis>,
    #[serde(default)]
    triggers: TaskTriggers,
}

impl Webhooks {
    /// Tells webhooks of tasks with triggers that have not succeeded for as many days as they say:
    /// once, until the task has succeeded again.
    pub async fn tell_overdue(&self, host_of: HostOf<'_>) -> Result<()> {
        let failed = "look for tasks that have not succeeded";
        let rows = sqlx::query("SELECT * FROM webhooks WHERE enabled")
            .fetch_all(self.runs.shared.db.reads())
            .await
            .map_err(ControlError::database(failed))?;
        let mut tasks: HashMap<RegistryName, Vec<Task>> = HashMap::new();
        for row in &rows {
            let webhook = match shown_webhook_of(row) {
                Ok(webhook) => webhook,
                Err(error) => {
                    tracing::error!(%error, "a webhook cannot be read");
                    continue;
                }
            };
            if webhook.properties.actions.contains(&WebhookAction::TaskOverdue) {
                let registry = &webhook.registry;
                if !tasks.contains_key(registry) {
                    tasks.insert(registry.clone(), self.tasks_of(registry).await?);
                }
                let of_registry = tasks.get(registry).map_or(&[][..], Vec::as_slice);
                self.tell_overdue_to(&webhook, of_registry, host_of).await?;
            }
        }
        Ok(())
    }

    async fn tasks_of(&self, registry: &RegistryName) -> Result<Vec<Task>> {
        let failed = "look for tasks that have not succeeded";
        let shared = &self.runs.shared;
        let successes: Vec<(String, Millis)> = sqlx::query_as(
            "SELECT LOWER(task), MAX(finished_at) FROM runs
             WHERE registry = $1 AND status = 'Succeeded' AND task IS NOT NULL
                AND finished_at IS NOT NULL
             GROUP BY LOWER(task)",
        )
        .bind(registry.as_str())
        .fetch_all(shared.db.reads())
        .await
        .map_err(ControlError::database(failed))?;
        let successes: HashMap<String, Millis> = successes.into_iter().collect();
        let rows =
            sqlx::query("SELECT name, created_at, definition FROM tasks WHERE registry = $1")
                .bind(registry.as_str())
                .fetch_all(shared.db.reads())
                .await
                .map_err(ControlError::database(failed))?;
        let now = shared.clock.now();
        let mut tasks = Vec::new();
        for row in &rows {
            let name: TaskName = parsed(column(row, "name")?)?;
            let definition: Definition = match from_json(column(row, "definition")?) {
                Ok(definition) => definition,
                // It keeps no other from being told of.
                Err(error) => {
                    tracing::error!(%error, %registry, task = %name, "a task cannot be read");
                    continue;
                }
            };
            let is_over = definition.expires_at.is_some_and(|end| end <= now);
            if definition.enabled && !is_over && !definition.triggers.is_empty() {
                let last_success = successes.get(&name.key()).copied();
                tasks.push(Task { name, created_at: column(row, "created_at")?, last_success });
            }
        }
        Ok(tasks)
    }

    async fn tell_overdue_to(
        &self,
        webhook: &Webhook,
        tasks: &[Task],
        host_of: HostOf<'_>,
    ) -> Result<()> {
        let failed = "tell of tasks that have not succeeded";
        let shared = &self.runs.shared;
        let now = shared.clock.now();
        let days = webhook.properties.overdue_days.unwrap_or(DAYS);
        for task in tasks {
            let since = task.last_success.unwrap_or_default().max(task.created_at);
            if now - since < Millis::from(days) * DAY {
                continue;
            }
            let db = &shared.db;
            let mut transaction = db.begin().await.map_err(ControlError::database(failed))?;
            if note(&mut transaction, webhook, &task.name, since).await? {
                let event = Event::overdue(&task.name, task.last_success, days, now);
                let host = host_of(&webhook.registry);
                deliveries::add(&mut transaction, webhook, &event, &host, now).await?;
                self.changed.notify_one();
            }
            transaction.commit().await.map_err(ControlError::database(failed))?;
        }
        Ok(())
    }
}

/// Notes that a webhook is told; whether it was not.
async fn note(
    connection: &mut SqliteConnection,
    webhook: &Webhook,
    task: &TaskName,
    since: Millis,
) -> Result<bool> {
    let noted = sqlx::query(
        "INSERT INTO webhook_overdue (registry, name_key, task_key, since)
         VALUES ($1, $2, $3, $4) ON CONFLICT (registry, name_key, task_key)
         DO UPDATE SET since = excluded.since WHERE webhook_overdue.since <> excluded.since",
    )
    .bind(webhook.registry.as_str())
    .bind(webhook.name.key())
    .bind(task.key())
    .bind(since)
    .execute(connection)
    .await
    .map_err(ControlError::database("note what a webhook is told"))?;
    Ok(noted.rows_affected() > 0)
}

/// Forgets what a webhook was told.
pub(super) async fn forget_within(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    name: &WebhookName,
) -> Result<()> {
    sqlx::query("DELETE FROM webhook_overdue WHERE registry = $1 AND name_key = $2")
        .bind(registry.as_str())
        .bind(name.key())
        .execute(connection)
        .await
        .map_err(ControlError::database("forget what a webhook was told"))?;
    Ok(())
}
