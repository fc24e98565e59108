//! What webhooks were told and are still to be told.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oci::RegistryName;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use store::{Millis, take_content_changes_within};
use url::Url;
use uuid::Uuid;

use super::event::Event;
use super::{ToldRun, Webhook, WebhookAction, WebhookProperties, Webhooks, shown_webhook_of};
use crate::table::{column, from_json, parsed, to_json};
use crate::{ControlError, Mask, Result, WebhookName, table};

/// `next_at`: when it is tried next; `NULL` once it has come to its end.
pub(super) const TABLE: &str = "CREATE TABLE webhook_deliveries (
        id TEXT NOT NULL PRIMARY KEY,
        number BIGINT NOT NULL,
        registry TEXT NOT NULL,
        name_key TEXT NOT NULL,
        action TEXT NOT NULL,
        body TEXT NOT NULL,
        content_type TEXT NOT NULL,
        created_at BIGINT NOT NULL,
        next_at BIGINT,
        is_delivered BOOLEAN NOT NULL,
        attempts TEXT NOT NULL
    )";

/// Changes that become deliveries within one transaction.
const BATCH: usize = 200;
/// Attempts of one delivery.
const ATTEMPTS_MAX: usize = 3;
/// Between attempts, unless the receiver asks for more or less.
const PAUSES: [Millis; ATTEMPTS_MAX - 1] = [5_000, 60_000];
/// What a receiver may ask for.
const PAUSE_MAX: Duration = Duration::from_secs(600);
/// How long deliveries are kept.
const KEEP: Millis = 7 * 24 * 60 * 60 * 1000;
/// Deliveries of one webhook that have come to their end and are kept.
const KEPT_MAX: i64 = 1_000;
/// Deliveries of one webhook that wait.
const WAITING_MAX: i64 = 10_000;
/// Deliveries of one webhook that are under way at once, of one registry, and of all.
const AT_ONCE: usize = 4;
const REGISTRY_AT_ONCE: usize = 24;
const ALL_AT_ONCE: usize = 32;
/// Of an answer is kept, in bytes: its body, and its headers.
const ANSWER_KEPT: usize = 4 << 10;

/// The login server of a registry.
pub type HostOf<'a> = &'a (dyn Fn(&RegistryName) -> String + Send + Sync);

/// Something that a webhook was told, or is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub id: Uuid,
    pub action: WebhookAction,
    pub body: String,
    pub content_type: String,
    pub created_at: Millis,
    pub state: DeliveryState,
    /// The oldest first.
    pub attempts: Vec<DeliveryAttempt>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryState {
    /// It is tried then.
    Waits(Millis),
    Delivered,
    Failed,
}

/// An attempt, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryAttempt {
    pub at: Millis,
    /// As they were sent, secrets hidden.
    pub headers: BTreeMap<String, String>,
    pub outcome: DeliveryOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DeliveryOutcome {
    Answered(PostedAnswer),
    /// There was no answer. `is_final`: there never will be.
    Failed {
        reason: String,
        is_final: bool,
    },
}

/// What a receiver said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostedAnswer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
    /// How long it asks not to be asked again.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
}

/// A delivery that is to be tried now. As long as it is there, nobody else has it.
pub struct ToDeliver {
    pub address: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
    id: Uuid,
    webhook: Key,
    mask: Mask,
    shown: BTreeMap<String, String>,
    earlier: Vec<DeliveryAttempt>,
    in_flight: Arc<Mutex<InFlight>>,
}

/// A webhook.
type Key = (String, String);

/// What is under way in this process.
#[derive(Default)]
pub(super) struct InFlight {
    deliveries: BTreeMap<Uuid, Key>,
    /// When each webhook had its last turn, of those that have something to be told.
    served: HashMap<Key, u64>,
    turns: u64,
}

impl Drop for ToDeliver {
    fn drop(&mut self) {
        lock(&self.in_flight).deliveries.remove(&self.id);
    }
}

fn lock(in_flight: &Mutex<InFlight>) -> MutexGuard<'_, InFlight> {
    in_flight.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Webhooks of registries, while changes become deliveries.
type Receivers = HashMap<RegistryName, Vec<Webhook>>;

impl Webhooks {
    /// Makes deliveries of all that has happened.
    pub async fn follow(&self, host_of: HostOf<'_>) -> Result<()> {
        while self.follow_some(host_of).await? {}
        Ok(())
    }

    /// Whether there is more.
    async fn follow_some(&self, host_of: HostOf<'_>) -> Result<bool> {
        let failed = "make deliveries";
        let shared = &self.runs.shared;
        if !self.has_news().await? {
            return Ok(false);
        }
        let mut transaction = shared.db.begin().await.map_err(ControlError::database(failed))?;
        let changes = match shared.catalog {
            Some(_) => take_content_changes_within(&mut transaction, BATCH).await?,
            None => Vec::new(),
        };
        let runs = take_runs(&mut transaction).await?;
        let is_full = changes.len() >= BATCH || runs.len() >= BATCH;
        let mut receivers = Receivers::new();
        let changes = changes.iter().flat_map(|change| {
            Event::of_change(change).into_iter().map(|event| (change.registry.clone(), event))
        });
        for (registry, event) in changes.chain(runs) {
            self.deliver_within(&mut transaction, &mut receivers, &registry, &event, host_of)
                .await?;
        }
        transaction.commit().await.map_err(ControlError::database(failed))?;
        Ok(is_full)
    }

    /// Most of the time nothing has happened: then nothing is written.
    async fn has_news(&self) -> Result<bool> {
        let reads = self.runs.shared.db.reads();
        let mut queries = vec!["SELECT EXISTS (SELECT 1 FROM webhook_runs)"];
        if self.runs.shared.catalog.is_some() {
            queries.push("SELECT EXISTS (SELECT 1 FROM content_changes)");
        }
        for query in queries {
            let found: bool = sqlx::query_scalar(query)
                .fetch_one(reads)
                .await
                .map_err(ControlError::database("look for what happened"))?;
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn deliver_within(
        &self,
        connection: &mut SqliteConnection,
        receivers: &mut Receivers,
        registry: &RegistryName,
        event: &Event,
        host_of: HostOf<'_>,
    ) -> Result<()> {
        if !receivers.contains_key(registry) {
            let found = self.receivers(connection, registry).await?;
            receivers.insert(registry.clone(), found);
        }
        let now = self.runs.shared.clock.now();
        for webhook in receivers.get(registry).into_iter().flatten() {
            let properties = &webhook.properties;
            if properties.actions.contains(&event.action) && event.is_in(&properties.scope) {
                add(connection, webhook, event, &host_of(registry), now).await?;
            }
        }
        Ok(())
    }

    async fn receivers(
        &self,
        connection: &mut SqliteConnection,
        registry: &RegistryName,
    ) -> Result<Vec<Webhook>> {
        let rows =
            sqlx::query("SELECT * FROM webhooks WHERE registry = $1 AND enabled ORDER BY name_key")
                .bind(registry.as_str())
                .fetch_all(connection)
                .await
                .map_err(ControlError::database("list webhooks"))?;
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            match shown_webhook_of(row) {
                Ok(webhook) => found.push(webhook),
                // It keeps no other from what happened.
                Err(error) => tracing::error!(%error, %registry, "a webhook cannot be read"),
            }
        }
        Ok(found)
    }

    /// Tells a webhook that it is there, whatever it is about and even if it is disabled.
    pub async fn ping(&self, webhook: &Webhook, host_of: HostOf<'_>) -> Result<Uuid> {
        let failed = "ping a webhook";
        let shared = &self.runs.shared;
        let now = shared.clock.now();
        let mut transaction = shared.db.begin().await.map_err(ControlError::database(failed))?;
        let (event, host) = (Event::ping(now), host_of(&webhook.registry));
        let id = add(&mut transaction, webhook, &event, &host, now).await?;
        transaction.commit().await.map_err(ControlError::database(failed))?;
        self.changed.notify_one();
        Ok(id)
    }

    /// When something is to be delivered next that is not under way.
    pub async fn next_delivery(&self) -> Result<Option<Millis>> {
        let busy = lock(&self.in_flight).deliveries.len() as i64;
        let times: Vec<(String, Millis)> = sqlx::query_as(
            "SELECT id, next_at FROM webhook_deliveries WHERE next_at IS NOT NULL
             ORDER BY next_at LIMIT $1",
        )
        .bind(busy + 1)
        .fetch_all(self.runs.shared.db.reads())
        .await
        .map_err(ControlError::database("find the next delivery"))?;
        let in_flight = lock(&self.in_flight);
        let is_free =
            |id: &str| id.parse().is_ok_and(|id: Uuid| !in_flight.deliveries.contains_key(&id));
        Ok(times.into_iter().find(|(id, _)| is_free(id)).map(|(_, at)| at))
    }

    /// Takes what is due, as much as may be under way at once: of the webhooks with the fewest
    /// first, so that slow receivers hold up nobody else. For one caller at a time.
    pub async fn claim(&self) -> Result<Vec<ToDeliver>> {
        let now = self.runs.shared.clock.now();
        let mut due: Vec<Key> = sqlx::query_as(
            "SELECT DISTINCT registry, name_key FROM webhook_deliveries WHERE next_at <= $1",
        )
        .bind(now)
        .fetch_all(self.runs.shared.db.reads())
        .await
        .map_err(ControlError::database("find deliveries"))?;
        // Looked at before the rows are: one whose attempt ends meanwhile is not what its row said.
        let (mut in_flight, served) = {
            let mut in_flight = lock(&self.in_flight);
            in_flight.served.retain(|key, _| due.contains(key));
            (in_flight.deliveries.clone(), in_flight.served.clone())
        };
        // Whoever has the least under way goes first, and then whoever has waited longest for a turn.
        due.sort_by_key(|key| {
            let busy = in_flight.values().filter(|busy| *busy == key).count();
            (busy, served.get(key).copied())
        });
        let mut claimed: Vec<ToDeliver> = Vec::new();
        // One each, so that a receiver that is slow leaves room for others.
        for _ in 0..AT_ONCE {
            for key in &due {
                if !has_room(&in_flight, key) {
                    continue;
                }
                let more = match self.claim_of(key, &in_flight, now).await {
                    Ok(more) => more,
                    // It keeps no other from being told.
                    Err(error) => {
                        tracing::error!(%error, registry = %key.0, webhook = %key.1, "not delivered");
                        continue;
                    }
                };
                in_flight.extend(more.iter().map(|delivery| (delivery.id, key.clone())));
                claimed.extend(more);
            }
        }
        Ok(claimed)
    }

    async fn claim_of(
        &self,
        key: &Key,
        in_flight: &BTreeMap<Uuid, Key>,
        now: Millis,
    ) -> Result<Option<ToDeliver>> {
        let failed = "read deliveries";
        let (registry, name): (RegistryName, WebhookName) = (parsed(&key.0)?, parsed(&key.1)?);
        let webhook = match self.get(&registry, &name).await {
            Ok(Some(webhook)) => webhook,
            Ok(None) => return Ok(None),
            Err(error @ ControlError::Unsealable { .. }) => {
                tracing::error!(%error, %registry, webhook = %name, "a webhook cannot be read");
                let statement = sqlx::query(
                    "UPDATE webhook_deliveries SET next_at = $3
                     WHERE registry = $1 AND name_key = $2 AND next_at <= $4",
                );
                let later = now + PAUSE_MAX.as_millis() as Millis;
                let statement = statement.bind(&key.0).bind(&key.1).bind(later).bind(now);
                table::execute(&self.runs.shared.db, failed, statement).await?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let rows = sqlx::query(
            "SELECT * FROM webhook_deliveries
             WHERE registry = $1 AND name_key = $2 AND next_at <= $3
             ORDER BY next_at, number LIMIT $4",
        )
        .bind(&key.0)
        .bind(&key.1)
        .bind(now)
        .bind(1 + AT_ONCE as i64)
        .fetch_all(self.runs.shared.db.reads())
        .await
        .map_err(ControlError::database(failed))?;
        let deliveries: Vec<Delivery> = rows.iter().map(delivery_of).collect::<Result<_>>()?;
        let mut free = deliveries.into_iter().filter(|found| !in_flight.contains_key(&found.id));
        let claimed = free.next().map(|delivery| {
            let mut in_flight = lock(&self.in_flight);
            in_flight.deliveries.insert(delivery.id, key.clone());
            in_flight.turns += 1;
            let turn = in_flight.turns;
            in_flight.served.insert(key.clone(), turn);
            drop(in_flight);
            self.to_deliver(&webhook.properties, key, delivery, now)
        });
        Ok(claimed)
    }

    fn to_deliver(
        &self,
        properties: &WebhookProperties,
        key: &Key,
        delivery: Delivery,
        now: Millis,
    ) -> ToDeliver {
        let Delivery { id, body, content_type, attempts, .. } = delivery;
        let secret = properties.signing_secret.as_ref();
        let signed = secret.map(|secret| secret.headers(&id.to_string(), now / 1000, &body));
        let mut headers: Vec<(String, String)> = signed.into_iter().flatten().collect();
        let own_type =
            properties.headers.keys().any(|name| name.eq_ignore_ascii_case("content-type"));
        if !own_type {
            headers.push(("Content-Type".to_owned(), content_type));
        }
        let mut shown: BTreeMap<String, String> = headers.iter().cloned().collect();
        shown.extend(properties.headers.keys().map(|name| (name.clone(), "***".to_owned())));
        headers.extend(properties.headers.clone());
        ToDeliver {
            address: properties.address.clone(),
            headers,
            body,
            id,
            webhook: key.clone(),
            mask: mask_of(properties),
            shown,
            earlier: attempts,
            in_flight: Arc::clone(&self.in_flight),
        }
    }

    /// Writes down what came of an attempt. It is tried again later, if it may be.
    pub async fn note(&self, delivery: &ToDeliver, outcome: DeliveryOutcome) -> Result<()> {
        let now = self.runs.shared.clock.now();
        let (is_delivered, is_final, pause) = match &outcome {
            DeliveryOutcome::Answered(answer) => {
                let asked = answer.retry_after.map(|asked| asked.min(PAUSE_MAX).as_millis());
                ((200..300).contains(&answer.status), false, asked)
            }
            DeliveryOutcome::Failed { is_final, .. } => (false, *is_final, None),
        };
        let number = delivery.earlier.len();
        let pause = pause.map(|pause| pause as Millis).or(PAUSES.get(number).copied());
        let goes_on = !is_delivered && !is_final && number + 1 < ATTEMPTS_MAX;
        let next_at = pause.filter(|_| goes_on).map(|pause| now + pause.max(1));
        let mut attempts = delivery.earlier.clone();
        let outcome = kept(outcome, &delivery.mask);
        attempts.push(DeliveryAttempt { at: now, headers: delivery.shown.clone(), outcome });
        // One that was given up meanwhile stays so.
        let statement = sqlx::query(
            "UPDATE webhook_deliveries SET attempts = $2, is_delivered = $3,
                next_at = CASE WHEN next_at IS NULL THEN NULL ELSE $4 END
             WHERE id = $1",
        )
        .bind(delivery.id.to_string())
        .bind(to_json(&attempts)?)
        .bind(is_delivered)
        .bind(next_at);
        table::execute(&self.runs.shared.db, "write down a delivery", statement).await?;
        if !is_delivered && next_at.is_none() {
            let (registry, webhook) = &delivery.webhook;
            tracing::warn!(%registry, %webhook, delivery = %delivery.id, "not delivered");
        }
        Ok(())
    }

    /// What a webhook was told, the newest first, at most `limit`.
    pub async fn deliveries(
        &self,
        registry: &RegistryName,
        name: &WebhookName,
        limit: usize,
    ) -> Result<Vec<Delivery>> {
        let rows = sqlx::query(
            "SELECT * FROM webhook_deliveries WHERE registry = $1 AND name_key = $2
             ORDER BY number DESC LIMIT $3",
        )
        .bind(registry.as_str())
        .bind(name.key())
        .bind(limit as i64)
        .fetch_all(self.runs.shared.db.reads())
        .await
        .map_err(ControlError::database("list deliveries"))?;
        rows.iter().map(delivery_of).collect()
    }

    /// Forgets deliveries that are old or too many.
    pub async fn sweep(&self) -> Result<()> {
        let shared = &self.runs.shared;
        let old = sqlx::query("DELETE FROM webhook_deliveries WHERE created_at < $1")
            .bind(shared.clock.now() - KEEP);
        table::execute(&shared.db, "forget deliveries", old).await?;
        let webhooks: Vec<Key> = sqlx::query_as(
            "SELECT registry, name_key FROM webhook_deliveries WHERE next_at IS NULL
             GROUP BY registry, name_key HAVING COUNT(*) > $1",
        )
        .bind(KEPT_MAX)
        .fetch_all(shared.db.reads())
        .await
        .map_err(ControlError::database("count deliveries"))?;
        for (registry, name_key) in webhooks {
            let more = sqlx::query(
                "DELETE FROM webhook_deliveries
                 WHERE registry = $1 AND name_key = $2 AND next_at IS NULL AND number <=
                    (SELECT number FROM webhook_deliveries
                     WHERE registry = $1 AND name_key = $2 AND next_at IS NULL
                     ORDER BY number DESC LIMIT 1 OFFSET $3)",
            )
            .bind(registry)
            .bind(name_key)
            .bind(KEPT_MAX);
            table::execute(&shared.db, "forget deliveries", more).await?;
        }
        Ok(())
    }
}

/// Whether one more delivery of a webhook may be under way: of one webhook, of its registry, and of all.
fn has_room(in_flight: &BTreeMap<Uuid, Key>, key: &Key) -> bool {
    let count =
        |is_it: &dyn Fn(&Key) -> bool| in_flight.values().filter(|busy| is_it(busy)).count();
    count(&|busy| busy == key) < AT_ONCE
        && count(&|busy| busy.0 == key.0) < REGISTRY_AT_ONCE
        && in_flight.len() < ALL_AT_ONCE
}

/// Runs that webhooks are to be told of.
async fn take_runs(connection: &mut SqliteConnection) -> Result<Vec<(RegistryName, Event)>> {
    let failed = "read runs for webhooks";
    let rows = sqlx::query("SELECT * FROM webhook_runs ORDER BY number LIMIT $1")
        .bind(BATCH as i64)
        .fetch_all(&mut *connection)
        .await
        .map_err(ControlError::database(failed))?;
    let Some(last) = rows.last() else { return Ok(Vec::new()) };
    sqlx::query("DELETE FROM webhook_runs WHERE number <= $1")
        .bind(column::<i64>(last, "number")?)
        .execute(connection)
        .await
        .map_err(ControlError::database(failed))?;
    let mut events = Vec::new();
    for row in &rows {
        match events_of(row) {
            Ok(more) => events.extend(more),
            // It keeps no other from being told.
            Err(error) => tracing::error!(%error, "what happened to a run cannot be read"),
        }
    }
    Ok(events)
}

fn events_of(row: &SqliteRow) -> Result<Vec<(RegistryName, Event)>> {
    let registry: RegistryName = parsed(column(row, "registry")?)?;
    let run: ToldRun = from_json(column(row, "run")?)?;
    let at = column(row, "at")?;
    let actions: Vec<WebhookAction> = from_json(column(row, "actions")?)?;
    let event = |action| (registry.clone(), Event::of_run(action, run.clone(), at));
    Ok(actions.into_iter().map(event).collect())
}

/// Has a webhook told of an event. If too many wait already, it is not even tried.
pub(super) async fn add(
    connection: &mut SqliteConnection,
    webhook: &Webhook,
    event: &Event,
    host: &str,
    now: Millis,
) -> Result<Uuid> {
    let (id, format) = (Uuid::new_v4(), webhook.properties.format);
    let reason = format!("{WAITING_MAX} deliveries wait already");
    let outcome = DeliveryOutcome::Failed { reason, is_final: true };
    let late = [DeliveryAttempt { at: now, headers: BTreeMap::new(), outcome }];
    sqlx::query(
        "INSERT INTO webhook_deliveries (id, number, registry, name_key, action, body,
            content_type, created_at, next_at, is_delivered, attempts)
         SELECT $1, number, $2, $3, $4, $5, $6, $7, CASE WHEN is_late THEN NULL ELSE $7 END, FALSE,
            CASE WHEN is_late THEN $8 ELSE '[]' END
         FROM (SELECT
            (SELECT COALESCE(MAX(number), 0) + 1 FROM webhook_deliveries
             WHERE registry = $2 AND name_key = $3) AS number,
            (SELECT COUNT(*) FROM webhook_deliveries
             WHERE registry = $2 AND name_key = $3 AND next_at IS NOT NULL) >= $9 AS is_late)
            AS known",
    )
    .bind(id.to_string())
    .bind(webhook.registry.as_str())
    .bind(webhook.name.key())
    .bind(event.action.as_str())
    .bind(event.body(format, id, host))
    .bind(format.content_type())
    .bind(now)
    .bind(to_json(&late)?)
    .bind(WAITING_MAX)
    .execute(connection)
    .await
    .map_err(ControlError::database("write a delivery"))?;
    Ok(id)
}

/// Gives up what waits for a webhook that is disabled.
pub(super) async fn give_up_within(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    name: &WebhookName,
    now: Millis,
) -> Result<()> {
    let rows = sqlx::query(
        "SELECT * FROM webhook_deliveries
         WHERE registry = $1 AND name_key = $2 AND next_at IS NOT NULL",
    )
    .bind(registry.as_str())
    .bind(name.key())
    .fetch_all(&mut *connection)
    .await
    .map_err(ControlError::database("give deliveries up"))?;
    for row in &rows {
        let Delivery { id, mut attempts, .. } = delivery_of(row)?;
        let reason = "the webhook was disabled".to_owned();
        let outcome = DeliveryOutcome::Failed { reason, is_final: true };
        attempts.push(DeliveryAttempt { at: now, headers: BTreeMap::new(), outcome });
        sqlx::query("UPDATE webhook_deliveries SET next_at = NULL, attempts = $2 WHERE id = $1")
            .bind(id.to_string())
            .bind(to_json(&attempts)?)
            .execute(&mut *connection)
            .await
            .map_err(ControlError::database("give deliveries up"))?;
    }
    Ok(())
}

pub(super) async fn forget_within(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    name: &WebhookName,
) -> Result<()> {
    sqlx::query("DELETE FROM webhook_deliveries WHERE registry = $1 AND name_key = $2")
        .bind(registry.as_str())
        .bind(name.key())
        .execute(connection)
        .await
        .map_err(ControlError::database("forget deliveries"))?;
    Ok(())
}

/// What a receiver may repeat and nobody is to read.
fn mask_of(properties: &WebhookProperties) -> Mask {
    let mut secrets: Vec<String> = properties.headers.values().cloned().collect();
    // `Bearer TOKEN`: the token alone too.
    let alone = properties.headers.values().filter_map(|value| value.trim().split_once(' '));
    secrets.extend(alone.map(|(_, token)| token.to_owned()));
    secrets.extend(properties.signing_secret.as_ref().map(|secret| secret.expose().to_owned()));
    if let Ok(address) = Url::parse(&properties.address) {
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let user = decoded(address.username());
        match address.password().map(decoded) {
            Some(password) => secrets.extend([format!("{user}:{password}"), password]),
            // A token may stand in its place, and is sent with a colon.
            None => secrets.extend([format!("{user}:"), user]),
        }
    }
    Mask::new(secrets.iter().map(String::as_str))
}

/// As much of an outcome as is kept, without the secrets that a receiver repeats.
fn kept(outcome: DeliveryOutcome, mask: &Mask) -> DeliveryOutcome {
    let hidden = |text: &str| {
        let mut text = text.to_owned();
        mask.apply(&mut text);
        text
    };
    match outcome {
        DeliveryOutcome::Answered(PostedAnswer { status, headers, body, retry_after }) => {
            let mut left = ANSWER_KEPT;
            let headers = headers.into_iter().take_while(|(name, value)| {
                let rest = left.checked_sub(name.len() + value.len());
                left = rest.unwrap_or_default();
                rest.is_some()
            });
            let headers = headers.map(|(name, value)| (name, hidden(&value))).collect();
            let body = hidden(&body);
            let end = body.floor_char_boundary(ANSWER_KEPT);
            let body = body[..end].to_owned();
            DeliveryOutcome::Answered(PostedAnswer { status, headers, body, retry_after })
        }
        DeliveryOutcome::Failed { reason, is_final } => {
            DeliveryOutcome::Failed { reason: hidden(&reason), is_final }
        }
    }
}

fn delivery_of(row: &SqliteRow) -> Result<Delivery> {
    let next_at: Option<Millis> = column(row, "next_at")?;
    Ok(Delivery {
        id: parsed(column(row, "id")?)?,
        action: parsed(column(row, "action")?)?,
        body: column(row, "body")?,
        content_type: column(row, "content_type")?,
        created_at: column(row, "created_at")?,
        state: match (next_at, column(row, "is_delivered")?) {
            (Some(at), _) => DeliveryState::Waits(at),
            (None, true) => DeliveryState::Delivered,
            (None, false) => DeliveryState::Failed,
        },
        attempts: from_json(column(row, "attempts")?)?,
    })
}
