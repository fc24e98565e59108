//! The worker: takes runs from the queue and sees each to its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::executor::{Attempt, Executor, Outcome};
use crate::runs::status_of;
use crate::{End, EventKind, RunStatus, Runs};

/// A worker that does not renew its lease for this long has lost its runs.
const LEASE: Duration = Duration::from_secs(60);

/// How often a lease is renewed, and the table looked at without a signal.
const PERIOD: Duration = Duration::from_secs(10);

/// How long attempts that were dropped may take to leave nothing behind.
const IDLE_WAIT: Duration = Duration::from_secs(15);

/// Why a task whose commands were under way when the server stopped has ended.
const LOST_TASK: &str = "the server stopped while this run was under way, and a task with commands \
                         is not begun again";

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
    runs: Runs,
    executor: Arc<dyn Executor>,
    settings: WorkerSettings,
}

impl Worker {
    pub fn new(runs: Runs, executor: Arc<dyn Executor>, settings: WorkerSettings) -> Self {
        Self { runs, executor, settings }
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
                () = self.runs.shared.wake.notified() => (),
                () = tokio::time::sleep(PERIOD) => (),
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
            match self.runs.claim(LEASE).await {
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
    if let Some(outcome) = refuse(&attempt).await {
        return end(&attempt, outcome, None).await;
    }
    // A first one has those that came with the run.
    if attempt.is_repeated()
        && let Err(error) = attempt.runs.keep_context(&attempt.run).await
    {
        tracing::error!(run = %attempt.run.id, %error, "the context could not be leased");
        return end(&attempt, Outcome::of(End::Error("the build context is gone".into())), None)
            .await;
    }
    attempt.log.append(EventKind::Status { status: attempt.run.status }).await;
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
    let joined = tokio::time::timeout(grace, &mut execution).await;
    if joined.is_err() {
        execution.abort();
        // Its containers are gone when it is.
        let _ = (&mut execution).await;
    }
    match (stopped, joined) {
        (Stop::LeaseLost, _) => {
            tracing::warn!(run = %attempt.run.id, "the lease was lost; this attempt is dropped");
            attempt.runs.forget(&attempt);
        }
        (Stop::Shutdown, Ok(joined)) => end(&attempt, outcome_of(joined), None).await,
        (Stop::Shutdown, Err(_)) => give_back(&attempt).await,
        (stopped, joined) => {
            let outcome = joined.map_or_else(|_| Outcome::of(End::Canceled), outcome_of);
            end(&attempt, outcome, Some(stopped)).await;
        }
    }
}

/// Ends runs that should not be begun (again), and says in the log when one is.
async fn refuse(attempt: &Attempt) -> Option<Outcome> {
    let run = &attempt.run;
    if attempt.cancel.is_cancelled() {
        return Some(Outcome::of(End::Canceled));
    }
    if !run.may_begin_again() {
        return Some(Outcome::of(End::Error(LOST_TASK.into())));
    }
    let attempts_max = attempt.runs.attempts_max();
    if run.attempts > attempts_max {
        let message = format!(
            "the server stopped while the run was under way, in each of {attempts_max} attempts"
        );
        return Some(Outcome::of(End::Error(message)));
    }
    if attempt.is_repeated() {
        let message = format!(
            "the server stopped while this run was under way; attempt {} of {attempts_max} begins",
            run.attempts
        );
        attempt.log.message(message).await;
    }
    None
}

/// Renews the lease until there is a reason to stop.
async fn watch(attempt: &Attempt, stop: &CancellationToken) -> Stop {
    let time_is_up = tokio::time::sleep(attempt.run.request.timeout());
    tokio::pin!(time_is_up);
    let mut renewed_at = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = attempt.cancel.cancelled() => return Stop::Canceled,
            () = &mut time_is_up => return Stop::TimeIsUp,
            () = stop.cancelled() => return Stop::Shutdown,
            () = tokio::time::sleep(PERIOD) => (),
        }
        match attempt.runs.renew(attempt, LEASE).await {
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
    match attempt.runs.finish(attempt, status, error.as_deref(), &outcome).await {
        Ok(true) => (),
        Ok(false) => {
            tracing::warn!(run = %attempt.run.id, "the end of an attempt came too late and was dropped");
        }
        Err(error) => {
            tracing::error!(run = %attempt.run.id, %error, "the end of a run could not be recorded");
        }
    }
}

/// The server leaves: the run waits for the next one, if it may begin again.
async fn give_back(attempt: &Attempt) {
    let run = &attempt.run;
    // Only the table knows how far it has come; if it does not answer, the next server asks.
    if let Ok(Some(now)) = attempt.runs.get(&run.registry, run.id).await
        && !now.may_begin_again()
    {
        return end(attempt, Outcome::of(End::Error(LOST_TASK.into())), None).await;
    }
    attempt.log.message("the server stops; the run begins again with the next start").await;
    if let Err(error) = attempt.runs.release(attempt).await {
        tracing::error!(run = %attempt.run.id, %error, "a run could not be given back");
    }
}
