//! The queue of a pool, seen from an agent: a server has it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use control::{
    Attempt, Clock, Event, LogKey, Logs, Mask, Outcome, Queue, Result, RunLog, RunStatus,
};
use oci::RegistryName;
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::LAST_WORDS;
use super::client::{AskError, AttemptClient, Client, answered, persistently};
use crate::agent_wire::{BadLease, EventsTaken, Finish, Lease, LeaseNews, RunningSteps};

/// How long it is waited after a run that could not even be begun.
const FAILED_PAUSE: Duration = Duration::from_secs(30);

/// Records that are sent at once, in bytes; a single one may be larger.
const BATCH: usize = 256 << 10;

/// How long a batch of records may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a run is asked for although the server tells of none.
const PERIOD: Duration = Duration::from_secs(300);

/// How long it is waited when the server cannot be reached.
const PAUSE: Duration = Duration::from_secs(2);

/// What a run is executed with besides what it asks for.
pub(super) struct Leased {
    pub(super) seed: [u8; 32],
    pub(super) hosts: Vec<(String, RegistryName)>,
    pub(super) limits: (u32, u64),
    pub(super) user: String,
    pub(super) password: String,
    pub(super) token: String,
    pub(super) has_identity: bool,
}

/// Claims runs of a pool. Cheap to clone.
#[derive(Clone)]
pub(super) struct AgentQueue {
    client: Client,
    logs: Logs,
    clock: Clock,
    /// By the fences of their attempts.
    held: Arc<Mutex<HashMap<String, Held>>>,
    /// Logs that are being removed.
    removals: Arc<Mutex<HashMap<LogKey, JoinHandle<()>>>>,
}

/// What goes on beside an attempt.
struct Held {
    key: LogKey,
    leased: Arc<Leased>,
    /// How much of the log the server has.
    sent: watch::Receiver<u64>,
    /// Ends what goes on when this is gone.
    _ends: DropGuard,
}

impl AgentQueue {
    pub(super) fn new(client: Client, logs: Logs, clock: Clock) -> Self {
        Self { client, logs, clock, held: Arc::default(), removals: Arc::default() }
    }

    /// What came with the lease of an attempt.
    pub(super) fn lease(&self, attempt: &Attempt) -> Option<Arc<Leased>> {
        self.held().get(&attempt.fence()).map(|held| Arc::clone(&held.leased))
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn removals(&self) -> MutexGuard<'_, HashMap<LogKey, JoinHandle<()>>> {
        self.removals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the log and listens for a cancel as long as the attempt is held.
    fn hold(&self, attempt: &Attempt, leased: Leased) {
        let end = CancellationToken::new();
        let (progress, sent) = watch::channel(0);
        let client = self.client.attempt(attempt.run.id, attempt.epoch, &leased.token);
        let sending = send_log(client.clone(), self.logs.clone(), log_key(attempt), progress);
        let listening = listen(client, attempt.cancel.clone());
        for task in
            [Box::pin(sending) as futures_util::future::BoxFuture<'static, ()>, Box::pin(listening)]
        {
            tokio::spawn(end.clone().run_until_cancelled_owned(task));
        }
        let key = log_key(attempt);
        let held = Held { key, leased: Arc::new(leased), sent, _ends: end.drop_guard() };
        self.held().insert(attempt.fence(), held);
    }

    /// Begins an attempt; not while an earlier one of the run is still here, which has not noticed
    /// yet that it lost the run.
    async fn begin(&self, lease: Lease) -> Result<Option<Attempt>> {
        let run = lease.run.into_run().map_err(|error| AskError::Refused(error.to_string()))?;
        let key = LogKey { registry: run.registry.clone(), run: run.id };
        if self.held().values().any(|held| held.key == key) {
            return Ok(None);
        }
        let removal = self.removals().remove(&key);
        if let Some(removal) = removal {
            // An earlier attempt was here, too.
            let _it_has_told = removal.await;
        }
        let log: RunLog = self.logs.open(&key, Mask::new(run.request.secrets())).await?;
        let attempt = Attempt {
            run,
            log,
            cancel: CancellationToken::new(),
            epoch: lease.epoch,
            started_at: self.clock.now(),
            queue: Arc::new(self.clone()),
            alive: Arc::new(()),
        };
        let seed = seed(&lease.seed).ok_or_else(|| AskError::Refused("a bad lease".to_owned()))?;
        let (hosts, limits) = (lease.hosts, lease.limits);
        let (user, password, token) = (lease.user, lease.password, lease.token);
        let has_identity = lease.has_identity;
        self.hold(&attempt, Leased { seed, hosts, limits, user, password, token, has_identity });
        Ok(Some(attempt))
    }

    /// What is asked for under an attempt's lease.
    pub(super) fn client(&self, attempt: &Attempt) -> AttemptClient {
        let lease = self.lease(attempt);
        let token = lease.as_ref().map(|lease| lease.token.as_str()).unwrap_or_default();
        self.client.attempt(attempt.run.id, attempt.epoch, token)
    }

    /// Waits until the server has all that the log has now.
    async fn flush(&self, attempt: &Attempt) {
        let sent = self.held().get(&attempt.fence()).map(|held| held.sent.clone());
        let Some(mut sent) = sent else { return };
        attempt.log.release_held();
        let last = attempt.log.last_id();
        let all = sent.wait_for(|sent| *sent >= last);
        if tokio::time::timeout(LAST_WORDS, all).await.is_err() {
            tracing::warn!(run = %attempt.run.id, "the end of a log did not get to the server");
        }
    }

    /// The log of an attempt that is over is of no use here.
    fn let_go(&self, attempt: &Attempt) {
        let (logs, log, key) = (self.logs.clone(), attempt.log.clone(), log_key(attempt));
        let removal = tokio::spawn(async move {
            log.finish(RunStatus::Canceled, None, Duration::ZERO).await;
            if let Err(error) = logs.delete(&key).await {
                tracing::warn!(%error, run = %key.run, "a log that was sent is still here");
            }
        });
        let mut removals = self.removals();
        removals.retain(|_, removal| !removal.is_finished());
        removals.insert(log_key(attempt), removal);
        drop(removals);
        // Only now may the run begin here again.
        self.held().remove(&attempt.fence());
    }
}

fn log_key(attempt: &Attempt) -> LogKey {
    LogKey { registry: attempt.run.registry.clone(), run: attempt.run.id }
}

#[async_trait]
impl Queue for AgentQueue {
    async fn claim(&self) -> Result<Option<Attempt>> {
        let Some(lease) = self.client.claim().await? else { return Ok(None) };
        let (epoch, token) = (lease.epoch, lease.token.clone());
        let run = lease.run.id().ok_or_else(|| AskError::Refused(BadLease.to_string()))?;
        let begun = self.begin(lease).await;
        if !matches!(begun, Ok(Some(_))) {
            // Another agent may have more luck; and this one after a while.
            let pause = if begun.is_err() { FAILED_PAUSE } else { PAUSE };
            let client = self.client.attempt(run, epoch, &token);
            if let Err(error) = client.tell(&["giveBack"], &()).await {
                tracing::warn!(%run, %error, "a run could not be given back");
            }
            tokio::time::sleep(pause).await;
        }
        begun
    }

    async fn changed(&self) {
        loop {
            match self.client.wait().await {
                Ok(true) => return,
                Ok(false) => (),
                Err(AskError::Refused(reason)) => {
                    tracing::error!(reason, "the server does not let this agent join");
                    tokio::time::sleep(PAUSE * 5).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "no news from the server; it is asked again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// The server tells when there is something.
    fn period(&self) -> Duration {
        PERIOD
    }

    async fn renew(&self, attempt: &Attempt) -> Result<Option<bool>> {
        match self.client(attempt).ask::<LeaseNews>(&["renew"], &()).await {
            Ok(news) => Ok(Some(news.canceled)),
            Err(AskError::Gone) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn holds(&self, attempt: &Attempt) -> Result<bool> {
        let client = self.client(attempt);
        let request = || answered(client.request(Method::GET, &["lease"]).timeout(SEND_TIMEOUT));
        match persistently(SEND_TIMEOUT, request).await {
            Ok(_) => Ok(true),
            Err(AskError::Gone) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn set_running(&self, attempt: &Attempt, repeatable: bool) -> Result<bool> {
        let (client, body) = (self.client(attempt), RunningSteps { repeatable });
        match persistently(SEND_TIMEOUT, || client.tell(&["running"], &body)).await {
            Ok(()) => Ok(true),
            Err(AskError::Gone) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn finish(
        &self,
        attempt: &Attempt,
        status: RunStatus,
        error: Option<&str>,
        outcome: &Outcome,
    ) -> Result<bool> {
        self.flush(attempt).await;
        // Only this log knows the secrets that steps were given here.
        let masked = |text: &str| attempt.log.masked(text);
        let mut outcome = outcome.clone();
        if let control::End::Failed(text) | control::End::Error(text) = &mut outcome.end {
            *text = masked(text);
        }
        let body = Finish { status, error: error.map(masked), outcome };
        let client = self.client(attempt);
        let told = persistently(LAST_WORDS, || client.tell(&["finish"], &body)).await;
        self.let_go(attempt);
        match told {
            Ok(()) => Ok(true),
            Err(AskError::Gone) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn give_back(&self, attempt: &Attempt) -> Result<()> {
        self.flush(attempt).await;
        let told = self.client(attempt).tell(&["giveBack"], &()).await;
        self.let_go(attempt);
        match told {
            // Somebody has it already.
            Ok(()) | Err(AskError::Gone) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn forget(&self, attempt: &Attempt) {
        self.let_go(attempt);
    }
}

fn seed(hex: &str) -> Option<[u8; 32]> {
    let mut seed = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (byte, at) in seed.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&hex[at..at + 2], 16).ok()?;
    }
    Some(seed)
}

/// Cancels an attempt when its run is.
async fn listen(client: AttemptClient, cancel: CancellationToken) {
    loop {
        match client.get::<LeaseNews>(&["canceled"]).await {
            Ok(LeaseNews { canceled: true }) => return cancel.cancel(),
            Ok(LeaseNews { canceled: false }) => (),
            // Renewing the lease tells, too, and what follows from it.
            Err(AskError::Gone) => return,
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Sends records as they come. What was sent before an answer got lost is sent again, and passed
/// over there.
async fn send_log(client: AttemptClient, logs: Logs, key: LogKey, progress: watch::Sender<u64>) {
    let mut reader = match logs.read_events(&key, 0, true).await {
        Ok(reader) => reader,
        Err(error) => return tracing::error!(%error, run = %key.run, "a log cannot be sent"),
    };
    loop {
        let events = match reader.next().await {
            Ok(Some(events)) => events,
            Ok(None) => return,
            Err(error) => return tracing::error!(%error, run = %key.run, "a log cannot be sent"),
        };
        for (last, batch) in batches(&events) {
            let send = || send_batch(&client, batch.clone());
            loop {
                match persistently(SEND_TIMEOUT, send).await {
                    Ok(_) => break,
                    Err(AskError::Unreachable(_)) => (),
                    // Nobody waits for the rest.
                    Err(AskError::Gone) => {
                        progress.send_replace(u64::MAX);
                        return;
                    }
                    Err(error) => {
                        tracing::error!(%error, run = %key.run, "a part of a log was not taken");
                        break;
                    }
                }
            }
            progress.send_replace(last);
        }
    }
}

/// Records as they travel, with the id of the last one of each batch.
fn batches(events: &[Event]) -> Vec<(u64, bytes::Bytes)> {
    let mut batches: Vec<(u64, Vec<u8>)> = Vec::new();
    for event in events {
        let Ok(line) = serde_json::to_vec(event) else { continue };
        match batches.last_mut() {
            Some((last, batch)) if batch.len() + line.len() < BATCH => {
                *last = event.id;
                batch.extend_from_slice(&line);
                batch.push(b'\n');
            }
            _ => batches.push((event.id, [&*line, b"\n"].concat())),
        }
    }
    batches.into_iter().map(|(last, batch)| (last, batch.into())).collect()
}

async fn send_batch(client: &AttemptClient, batch: bytes::Bytes) -> Result<EventsTaken, AskError> {
    let request = client.request(Method::POST, &["events"]).timeout(SEND_TIMEOUT);
    let request = request.header(CONTENT_TYPE, "application/x-ndjson").body(batch);
    let taken = answered(request).await?.json().await;
    taken.map_err(|error| AskError::Unreachable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use control::EventKind;

    use super::*;

    #[test]
    fn a_seed_comes_back() {
        let text: String = (0..32u8).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(seed(&text).unwrap()[31], 31);
        for bad in ["", "00", &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(seed(bad), None, "{bad}");
        }
    }

    #[test]
    fn batches_are_bounded_and_hold_every_record() {
        let event = |id, len| {
            let kind = EventKind::Message { text: "x".repeat(len) };
            Event { id, at: 0, sent: None, kind }
        };
        let events = [event(1, 10), event(2, BATCH), event(3, 10), event(4, 10)];
        let found = batches(&events);
        assert_eq!(found.iter().map(|(last, _)| *last).collect::<Vec<_>>(), [1, 2, 4]);
        let lines = found.iter().flat_map(|(_, batch)| batch.split(|byte| *byte == b'\n'));
        let read: Vec<Event> = lines
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        assert_eq!(read, events);
        assert!(batches(&[]).is_empty());
    }
}
