//! Webhooks: who is told of what happens in a registry (registry.md section 5).
//!
//! What happens is written down in the transaction in which it happens: manifests by the catalog,
//! runs here. From there it becomes a [delivery](Delivery) for each webhook that is about it, which
//! is tried until the receiver takes it or it was tried often enough. All of it is rows, so that
//! nothing is lost when the server ends; a delivery may be sent twice then, under one id.
//!
//! Nothing here knows HTTP: the server takes [what is due](Webhooks::claim), posts it, and
//! [says](Webhooks::note) what came of it.

mod deliveries;
mod event;
mod overdue;
mod scope;
mod signature;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex};

use oci::RegistryName;
use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use store::{Millis, follow_content_within};
use tokio::sync::Notify;

pub use deliveries::{
    Delivery, DeliveryAttempt, DeliveryOutcome, DeliveryState, HostOf, PostedAnswer, ToDeliver,
};
pub use event::{BadWebhookAction, WebhookAction, WebhookFormat};
pub use scope::{BadWebhookScope, WebhookScope};
pub use signature::{BadSigningSecret, SigningSecret};

use crate::table::{column, parsed};
use crate::{ControlError, NewRun, Result, Run, RunId, RunStatus, Runs, WebhookName, table};
use deliveries::InFlight;
use event::ToldRun;
use signature::SIGNED_HEADERS;

/// Of tables that runs write to as well.
pub(crate) const SCHEMA: &[&str] = &[
    "CREATE TABLE webhooks (
        registry TEXT NOT NULL,
        name_key TEXT NOT NULL,
        name TEXT NOT NULL,
        enabled BOOLEAN NOT NULL,
        properties TEXT NOT NULL,
        secrets TEXT,
        created_at BIGINT NOT NULL,
        updated_at BIGINT NOT NULL,
        PRIMARY KEY (registry, name_key)
    )",
    // Runs that were queued by triggers or have ended, until webhooks are told.
    "CREATE TABLE webhook_runs (
        number BIGINT NOT NULL PRIMARY KEY,
        registry TEXT NOT NULL,
        actions TEXT NOT NULL,
        run TEXT NOT NULL,
        at BIGINT NOT NULL
    )",
    deliveries::TABLE,
    "CREATE INDEX webhook_deliveries_by_webhook
        ON webhook_deliveries (registry, name_key, number)",
    "CREATE INDEX webhook_deliveries_due
        ON webhook_deliveries (registry, name_key, next_at) WHERE next_at IS NOT NULL",
    "CREATE INDEX webhook_deliveries_by_time ON webhook_deliveries (created_at)",
    overdue::TABLE,
];

/// Webhooks of one registry.
const WEBHOOKS_MAX: i64 = 100;

/// A receiver, and what it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    pub registry: RegistryName,
    pub name: WebhookName,
    pub properties: WebhookProperties,
    pub created_at: Millis,
    pub updated_at: Millis,
}

/// What a webhook is. Where it goes, with what headers and signature, is nobody's to read: many
/// receivers know their friends by it.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookProperties {
    pub address: String,
    pub headers: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_secret: Option<SigningSecret>,
    pub actions: BTreeSet<WebhookAction>,
    pub enabled: bool,
    pub scope: WebhookScope,
    pub format: WebhookFormat,
    /// How long a task may not succeed until this is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overdue_days: Option<u32>,
}

impl fmt::Debug for WebhookProperties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookProperties")
            .field("headers", &self.headers.keys())
            .field("actions", &self.actions)
            .field("enabled", &self.enabled)
            .field("scope", &self.scope)
            .field("format", &self.format)
            .field("overdue_days", &self.overdue_days)
            .finish_non_exhaustive()
    }
}

impl WebhookProperties {
    fn without_secrets(&self) -> Self {
        Self {
            address: String::new(),
            headers: BTreeMap::new(),
            signing_secret: None,
            ..self.clone()
        }
    }

    fn check(&self) -> Result<()> {
        let invalid = |message: &str, hint: &str| ControlError::Invalid {
            message: message.to_owned(),
            hint: Some(hint.to_owned()),
        };
        if self.actions.is_empty() || self.actions.contains(&WebhookAction::Ping) {
            return Err(invalid(
                "a webhook needs actions, and `ping` is none to wait for",
                "say `push`, `delete`, `run_finished`, `run_failed`, `run_fired` or `task_overdue`",
            ));
        }
        if self.overdue_days.is_some_and(|days| !(1..=overdue::DAYS_MAX).contains(&days)) {
            return Err(invalid(
                &format!("a task is overdue after 1 to {} days", overdue::DAYS_MAX),
                "say how many days a task may not succeed",
            ));
        }
        let is_ours =
            |name: &String| SIGNED_HEADERS.iter().any(|own| own.eq_ignore_ascii_case(name));
        if self.signing_secret.is_some() && self.headers.keys().any(is_ours) {
            return Err(invalid(
                "a webhook that signs sets its headers `webhook-id`, `webhook-timestamp` and \
                 `webhook-signature` itself",
                "leave them out",
            ));
        }
        let of_none = [WebhookAction::RunFired, WebhookAction::TaskOverdue];
        let of_none = of_none.into_iter().find(|action| self.actions.contains(action));
        if let Some(action) = of_none.filter(|_| self.scope != WebhookScope::All) {
            return Err(invalid(
                &format!("`{action}` is about no image: no scope holds it"),
                "leave the scope empty, or make a webhook of its own for it",
            ));
        }
        Ok(())
    }
}

/// All webhooks of a server. Cheap to clone.
#[derive(Clone)]
pub struct Webhooks {
    runs: Runs,
    changed: Arc<Notify>,
    in_flight: Arc<Mutex<InFlight>>,
}

impl Webhooks {
    pub async fn open(runs: Runs) -> Result<Self> {
        let webhooks = Self { runs, changed: Arc::default(), in_flight: Arc::default() };
        webhooks.seal_again().await?;
        Ok(webhooks)
    }

    /// Waits until there is something to deliver that was not there before.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    pub async fn get(
        &self,
        registry: &RegistryName,
        name: &WebhookName,
    ) -> Result<Option<Webhook>> {
        let row = sqlx::query("SELECT * FROM webhooks WHERE registry = $1 AND name_key = $2")
            .bind(registry.as_str())
            .bind(name.key())
            .fetch_optional(self.runs.shared.db.reads())
            .await
            .map_err(ControlError::database("read a webhook"))?;
        row.map(|row| self.webhook_of(&row)).transpose()
    }

    /// By name, those after `after`, at most `limit`.
    pub async fn list(
        &self,
        registry: &RegistryName,
        after: Option<&WebhookName>,
        limit: usize,
    ) -> Result<Vec<Webhook>> {
        let rows = sqlx::query(
            "SELECT * FROM webhooks WHERE registry = $1 AND name_key > $2
             ORDER BY name_key LIMIT $3",
        )
        .bind(registry.as_str())
        .bind(after.map(WebhookName::key).unwrap_or_default())
        .bind(limit as i64)
        .fetch_all(self.runs.shared.db.reads())
        .await
        .map_err(ControlError::database("list webhooks"))?;
        rows.iter().map(|row| self.webhook_of(row)).collect()
    }

    /// Makes a webhook or gives it other properties. `Conflict` if it is not `known` any more.
    /// What waits for one that is disabled is not delivered.
    pub async fn put(
        &self,
        registry: &RegistryName,
        name: &WebhookName,
        properties: &WebhookProperties,
        known: Option<&Webhook>,
    ) -> Result<Webhook> {
        properties.check()?;
        let failed = "keep a webhook";
        let shared = &self.runs.shared;
        let (text, secrets) = shared.keys.divide(
            &place(registry, name),
            properties,
            &properties.without_secrets(),
        )?;
        let now = shared.clock.now();
        let mut transaction = shared.db.begin().await.map_err(ControlError::database(failed))?;
        let row = sqlx::query(
            "INSERT INTO webhooks (registry, name_key, name, enabled, properties, secrets,
                created_at, updated_at)
             SELECT $1, $2, $3, $4, $5, $6, $7, $7
             WHERE (SELECT COUNT(*) FROM webhooks WHERE registry = $1 AND name_key <> $2) < $8
                AND ($9 IS NULL OR EXISTS
                    (SELECT 1 FROM webhooks WHERE registry = $1 AND name_key = $2))
             ON CONFLICT (registry, name_key) DO UPDATE SET enabled = $4, properties = $5,
                secrets = $6, updated_at = $7
             WHERE $9 IS NULL OR webhooks.updated_at = $9
             RETURNING *",
        )
        .bind(registry.as_str())
        .bind(name.key())
        .bind(name.as_str())
        .bind(properties.enabled)
        .bind(text)
        .bind(secrets)
        .bind(known.map_or(now, |known| now.max(known.updated_at + 1)))
        .bind(WEBHOOKS_MAX)
        .bind(known.map(|known| known.updated_at))
        .fetch_optional(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        let Some(row) = row else {
            let message = match known {
                Some(_) => format!("webhook `{name}` was changed meanwhile"),
                None => format!("a registry has at most {WEBHOOKS_MAX} webhooks"),
            };
            return Err(ControlError::Conflict { message });
        };
        if !properties.enabled {
            deliveries::give_up_within(&mut transaction, registry, name, now).await?;
        }
        self.follow_within(&mut transaction, registry).await?;
        transaction.commit().await.map_err(ControlError::database(failed))?;
        self.webhook_of(&row)
    }

    /// Deletes a webhook with all that was told it.
    pub async fn delete(&self, registry: &RegistryName, name: &WebhookName) -> Result<()> {
        let failed = "delete a webhook";
        let db = &self.runs.shared.db;
        let mut transaction = db.begin().await.map_err(ControlError::database(failed))?;
        let deleted = sqlx::query("DELETE FROM webhooks WHERE registry = $1 AND name_key = $2")
            .bind(registry.as_str())
            .bind(name.key())
            .execute(&mut *transaction)
            .await
            .map_err(ControlError::database(failed))?;
        if deleted.rows_affected() == 0 {
            return Err(ControlError::NotFound { what: format!("webhook `{name}`") });
        }
        deliveries::forget_within(&mut transaction, registry, name).await?;
        overdue::forget_within(&mut transaction, registry, name).await?;
        self.follow_within(&mut transaction, registry).await?;
        transaction.commit().await.map_err(ControlError::database(failed))
    }

    /// Has the catalog write down what happens, if some webhook may be told of it.
    async fn follow_within(
        &self,
        connection: &mut SqliteConnection,
        registry: &RegistryName,
    ) -> Result<()> {
        let enabled: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM webhooks WHERE registry = $1 AND enabled")
                .bind(registry.as_str())
                .fetch_one(&mut *connection)
                .await
                .map_err(ControlError::database("count webhooks"))?;
        if self.runs.shared.catalog.is_some() {
            follow_content_within(connection, registry, enabled > 0).await?;
        }
        Ok(())
    }

    fn webhook_of(&self, row: &SqliteRow) -> Result<Webhook> {
        let webhook = shown_webhook_of(row)?;
        let place = place(&webhook.registry, &webhook.name);
        let (open, secrets) = (column(row, "properties")?, column(row, "secrets")?);
        Ok(Webhook { properties: self.runs.shared.keys.join(&place, open, secrets)?, ..webhook })
    }

    /// Seals with the key of today what is sealed with an older one.
    async fn seal_again(&self) -> Result<()> {
        let shared = &self.runs.shared;
        let rows = sqlx::query("SELECT * FROM webhooks")
            .fetch_all(shared.db.reads())
            .await
            .map_err(ControlError::database("list webhooks"))?;
        for row in &rows {
            let sealed: Option<&str> = column(row, "secrets")?;
            if sealed.is_none_or(|sealed| shared.keys.is_current(sealed)) {
                continue;
            }
            let Webhook { registry, name, properties, .. } = self.webhook_of(row)?;
            let (text, secrets) = shared.keys.divide(
                &place(&registry, &name),
                &properties,
                &properties.without_secrets(),
            )?;
            let statement = sqlx::query(
                "UPDATE webhooks SET properties = $3, secrets = $4
                 WHERE registry = $1 AND name_key = $2",
            )
            .bind(registry.as_str())
            .bind(name.key())
            .bind(text)
            .bind(secrets);
            table::execute(&shared.db, "seal a webhook again", statement).await?;
        }
        Ok(())
    }
}

/// A webhook without its secrets, which says what it is about though they cannot be opened.
fn shown_webhook_of(row: &SqliteRow) -> Result<Webhook> {
    Ok(Webhook {
        registry: parsed(column(row, "registry")?)?,
        name: parsed(column(row, "name")?)?,
        properties: table::from_json(column(row, "properties")?)?,
        created_at: column(row, "created_at")?,
        updated_at: column(row, "updated_at")?,
    })
}

/// Where the secrets of a webhook are at home.
fn place(registry: &RegistryName, name: &WebhookName) -> String {
    format!("webhook {registry}/{}", name.key())
}

/// Writes down that a run has ended, in the transaction that ends it.
pub(crate) async fn note_end_within(
    connection: &mut SqliteConnection,
    run: &Run,
    now: Millis,
) -> Result<()> {
    let mut actions = vec![WebhookAction::RunFinished];
    if matches!(run.status, RunStatus::Failed | RunStatus::Error | RunStatus::Timeout) {
        actions.push(WebhookAction::RunFailed);
    }
    note_run(connection, &run.registry, &actions, &ToldRun::ended(run), now).await
}

/// Writes down that a trigger has queued a run, in the transaction that queues it.
pub(crate) async fn note_fired_within(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    id: RunId,
    new: &NewRun,
    now: Millis,
) -> Result<()> {
    if new.cause.is_none() {
        return Ok(());
    }
    let run = ToldRun::fired(id, new, now);
    note_run(connection, registry, &[WebhookAction::RunFired], &run, now).await
}

/// Only where a webhook may be told.
async fn note_run(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    actions: &[WebhookAction],
    run: &ToldRun,
    now: Millis,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO webhook_runs (number, registry, actions, run, at)
         SELECT (SELECT COALESCE(MAX(number), 0) + 1 FROM webhook_runs), $1, $2, $3, $4
         WHERE EXISTS (SELECT 1 FROM webhooks WHERE registry = $1 AND enabled)",
    )
    .bind(registry.as_str())
    .bind(table::to_json(&actions)?)
    .bind(table::to_json(run)?)
    .bind(now)
    .execute(connection)
    .await
    .map_err(ControlError::database("write down a run for webhooks"))?;
    Ok(())
}
