//! The worker: takes runs from the queue and sees each to its end.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::executor::{Attempt, Executor, Outcome};
use crate::leases::status_of;
use crate::{End, Result, RunStatus};

/// A worker that does not renew its lease for this long has lost its runs.
pub(crate) const LEASE: Duration = Duration::from_secs(60);

/// How often a lease is renewed, and the table looked at without a signal.
const PERIOD: Duration = Duration::from_secs(10);

/// How long attempts that were dropped may take to leave nothing behind.
const IDLE_WAIT: Duration = Duration::from_secs(15);

/// Where a worker has its runs from: the table, or a server that has it.
#[async_trait]
pub trait Queue: Send + Sync {
    /// Takes a run that may be begun now, if there is one.
    async fn claim(&self) -> Result<Option<Attempt>>;

    /// Returns when a claim may find something. Dropping this loses nothing.
    async fn changed(&self);

    /// How often a claim is tried without [`Self::changed`].
    fn period(&self) -> Duration {
        PERIOD
    }

    /// Extends a lease, and learns whether the user wants the run stopped. `None`: lost.
    async fn renew(&self, attempt: &Attempt) -> Result<Option<bool>>;

    /// Whether the lease still holds.
    async fn holds(&self, attempt: &Attempt) -> Result<bool>;

    /// `Started` becomes `Running`. `false`: the lease is lost, nothing was changed.
    async fn set_running(&self, attempt: &Attempt, repeatable: bool) -> Result<bool>;

    /// Ends a run under its lease. `false`: another attempt has it, nothing was changed.
    async fn finish(
        &self,
        attempt: &Attempt,
        status: RunStatus,
        error: Option<&str>,
        outcome: &Outcome,
    ) -> Result<bool>;

    /// Gives a run back that this process cannot finish; it does not count as an attempt.
    async fn give_back(&self, attempt: &Attempt) -> Result<()>;

    /// Nothing more is said of this attempt.
    fn forget(&self, attempt: &Attempt);
}

#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// Runs executed at once, over all registries.
    pub concurrency: u32,
    /// How long runs may go on after the signal to stop.
    pub shutdown_grace: Duration,
    /// How long an executor may take to obey a cancel before it is dropped.
    pub cancel_grace: Duration,
}

/// Claims runs and executes them, a bounded number at once.
pub struct Worker {
    queue: Arc<dyn Queue>,
    executor: Arc<dyn Executor>,
    settings: WorkerSettings,
}

impl Worker {
    pub fn new(
        queue: Arc<dyn Queue>,
        executor: Arc<dyn Executor>,
        settings: WorkerSettings,
    ) -> Self {
        Self { queue, executor, settings }
    }

    /// Works until `shutdown`. Runs that are then not done within the grace are given back,
    /// and a later worker begins them again; tasks whose commands are under way end.
    pub async fn run(self, shutdown: CancellationToken) {
        let stop = CancellationToken::new();
        let mut attempts = JoinSet::new();
        while !shutdown.is_cancelled() {
            self.fill(&mut attempts, &stop).await;
            tokio::select! {
                () = shutdown.cancelled() => (),
                () = self.queue.changed(), if attempts.len() < self.settings.concurrency as usize => (),
                () = tokio::time::sleep(self.queue.period()) => (),
                Some(_) = attempts.join_next() => (),
            }
            while attempts.try_join_next().is_some() {}
        }
        let drained = async { while attempts.join_next().await.is_some() {} };
        if tokio::time::timeout(self.settings.shutdown_grace, drained).await.is_err() {
            stop.cancel();
            while attempts.join_next().await.is_some() {}
        }
        // Soon the program ends, and would cut off what clears away.
        if tokio::time::timeout(IDLE_WAIT, self.executor.idle()).await.is_err() {
            tracing::warn!("what runs left behind is not cleared away; the next start does it");
        }
    }

    /// Claims as many runs as there are places.
    async fn fill(&self, attempts: &mut JoinSet<()>, stop: &CancellationToken) {
        while attempts.len() < self.settings.concurrency as usize {
            match self.queue.claim().await {
                Ok(Some(attempt)) => {
                    let executor = Arc::clone(&self.executor);
                    let cancel_grace = self.settings.cancel_grace;
                    attempts.spawn(work(executor, attempt, stop.clone(), cancel_grace));
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "no run could be claimed; the next pass will try again");
                    break;
                }
            }
        }
    }
}

/// Why an attempt was told to stop.
enum Stop {
    Canceled,
    TimeIsUp,
    /// Another attempt has the run.
    LeaseLost,
    /// The server leaves.
    Shutdown,
}

/// One attempt, from claim to end.
async fn work(
    executor: Arc<dyn Executor>,
    attempt: Attempt,
    stop: CancellationToken,
    cancel_grace: Duration,
) {
    let attempt = Arc::new(attempt);
    let mut execution = tokio::spawn({
        let attempt = Arc::clone(&attempt);
        async move { executor.execute(&attempt).await }
    });
    let stopped = tokio::select! {
        joined = &mut execution => return end(&attempt, outcome_of(joined), None).await,
        stopped = watch(&attempt, &stop) => stopped,
    };
    let grace = match stopped {
        // Not told to cancel: an end that only this caused would be recorded as the run's.
        Stop::Shutdown | Stop::LeaseLost => Duration::ZERO,
        Stop::Canceled | Stop::TimeIsUp => {
            attempt.cancel.cancel();
            cancel_grace
        }
    };
    let joined = renewing(&attempt, tokio::time::timeout(grace, &mut execution)).await;
    if joined.is_err() {
        execution.abort();
        // Its containers are gone when it is.
        let _ = (&mut execution).await;
    }
    match (stopped, joined) {
        (Stop::LeaseLost, _) => {
            tracing::warn!(run = %attempt.run.id, "the lease was lost; this attempt is dropped");
            attempt.queue.forget(&attempt);
        }
        (Stop::Shutdown, Ok(joined)) => end(&attempt, outcome_of(joined), None).await,
        (Stop::Shutdown, Err(_)) => {
            if let Err(error) = renewing(&attempt, attempt.queue.give_back(&attempt)).await {
                tracing::error!(run = %attempt.run.id, %error, "a run could not be given back");
            }
        }
        (stopped, joined) => {
            let outcome = joined.map_or_else(|_| Outcome::of(End::Canceled), outcome_of);
            end(&attempt, outcome, Some(stopped)).await;
        }
    }
}

/// Renews the lease until there is a reason to stop.
async fn watch(attempt: &Attempt, stop: &CancellationToken) -> Stop {
    let time_is_up = tokio::time::sleep(attempt.run.request.timeout());
    tokio::pin!(time_is_up);
    let mut renewed_at = tokio::time::Instant::now();
    loop {
        let renewed = async {
            tokio::time::sleep(PERIOD).await;
            attempt.queue.renew(attempt).await
        };
        let renewed = tokio::select! {
            () = attempt.cancel.cancelled() => return Stop::Canceled,
            () = &mut time_is_up => return Stop::TimeIsUp,
            () = stop.cancelled() => return Stop::Shutdown,
            renewed = renewed => renewed,
        };
        match renewed {
            Ok(Some(false)) => renewed_at = tokio::time::Instant::now(),
            Ok(Some(true)) => return Stop::Canceled,
            Ok(None) => return Stop::LeaseLost,
            // A moment without the database is no reason to give up, the lease's end is.
            Err(error) if renewed_at.elapsed() < LEASE => {
                tracing::warn!(run = %attempt.run.id, %error, "a lease could not be renewed");
            }
            Err(_) => return Stop::LeaseLost,
        }
    }
}

/// Keeps the lease while something else is done that takes its time.
async fn renewing<T>(attempt: &Attempt, work: impl Future<Output = T>) -> T {
    let renewals = async {
        loop {
            tokio::time::sleep(PERIOD).await;
            if let Err(error) = attempt.queue.renew(attempt).await {
                tracing::warn!(run = %attempt.run.id, %error, "a lease could not be renewed");
            }
        }
    };
    tokio::select! {
        done = work => done,
        never = renewals => never,
    }
}

/// A panic is our bug: the run ends as `Error`.
fn outcome_of(joined: Result<Outcome, tokio::task::JoinError>) -> Outcome {
    joined.unwrap_or_else(|error| {
        tracing::error!(%error, "an executor panicked");
        Outcome::of(End::Error("the server failed while it executed the run".into()))
    })
}

/// Records an end and, after it, the log's last line.
async fn end(attempt: &Attempt, outcome: Outcome, stopped: Option<Stop>) {
    let (mut status, mut error) = status_of(&outcome.end);
    // What succeeded in spite of the signal has succeeded.
    if status != RunStatus::Succeeded {
        (status, error) = match stopped {
            Some(Stop::Canceled) => (RunStatus::Canceled, None),
            Some(Stop::TimeIsUp) => {
                let seconds = attempt.run.request.timeout().as_secs();
                let message = format!("the run reached its time limit of {seconds} s");
                (RunStatus::Timeout, Some(message))
            }
            _ => (status, error),
        };
    }
    let told = attempt.queue.finish(attempt, status, error.as_deref(), &outcome);
    match renewing(attempt, told).await {
        Ok(true) => (),
        Ok(false) => {
            tracing::warn!(run = %attempt.run.id, "the end of an attempt came too late and was dropped");
        }
        Err(error) => {
            tracing::error!(run = %attempt.run.id, %error, "the end of a run could not be recorded");
        }
    }
}
