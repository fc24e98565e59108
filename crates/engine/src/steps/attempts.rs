//! How often a step is tried and done, within its time (task-yaml.md section 7.2).

use std::sync::Arc;
use std::time::Duration;

use task::{Attempts, Step};
use tokio_util::sync::CancellationToken;

use super::events::Watch;
use super::{END_WAIT, TaskContext, Work, unless_stopped};
use crate::execute::{Failure, RunEvents};

/// What an attempt gets: what looks at its output, and what ends it.
pub(crate) type Attempt = (Arc<Watch>, CancellationToken);

/// Failures of a step that are told; there may be as many as repetitions.
const FAILURES_MAX: usize = 10;

/// Does a step's work as often as the step asks for it, within its time. What runs when that is up
/// has ended when this returns, unless it does not obey.
pub(crate) async fn execute<'c>(
    step: &Step,
    attempts: &Attempts,
    context: &TaskContext<'_>,
    attempt: impl Fn(Attempt) -> Work<'c>,
) -> Result<(), Failure> {
    let stop = context.kill.child_token();
    let all = repeated(attempts, context.events, &step.id, &stop, attempt);
    tokio::pin!(all);
    tokio::select! {
        result = &mut all => return result,
        () = tokio::time::sleep(step.timeout) => stop.cancel(),
    }
    let _it_was_told_to_end = tokio::time::timeout(END_WAIT, all).await;
    Err(time_is_up(step.timeout))
}

/// Waits, unless there is nothing to wait for any more.
pub(crate) async fn sleep(duration: Duration, stop: &CancellationToken) -> Result<(), Failure> {
    let wait = async {
        tokio::time::sleep(duration).await;
        Ok(())
    };
    unless_stopped(stop, wait).await
}

pub(crate) fn time_is_up(timeout: Duration) -> Failure {
    Failure::User(format!("error: it took longer than its limit of {} s", timeout.as_secs()))
}

/// A repetition that failed does not keep later ones from being done.
async fn repeated<'c>(
    attempts: &Attempts,
    events: &dyn RunEvents,
    id: &str,
    stop: &CancellationToken,
    attempt: impl Fn(Attempt) -> Work<'c>,
) -> Result<(), Failure> {
    let (mut failures, mut count) = (Vec::new(), 0_usize);
    for number in 0..=attempts.repeat {
        if attempts.repeat > 0 {
            let all = u64::from(attempts.repeat) + 1;
            let text = format!("Repetition {} of {all} of step `{id}`", u64::from(number) + 1);
            events.message(&text).await;
        }
        match retried(attempts, events, id, stop, &attempt).await {
            Ok(()) => (),
            Err(failure @ (Failure::Canceled | Failure::Superseded)) => return Err(failure),
            Err(failure) => {
                count += 1;
                if failures.len() < FAILURES_MAX && !failures.contains(&failure) {
                    failures.push(failure);
                }
            }
        }
    }
    match failures.len() {
        0 => Ok(()),
        1 => Err(failures.remove(0)),
        _ => Err(combined(failures, count)),
    }
}

/// Different failures in one text. It is the user's fault only if each is.
fn combined(failures: Vec<Failure>, count: usize) -> Failure {
    let is_ours = failures.iter().any(|failure| matches!(failure, Failure::Ours(_)));
    let lines = failures.iter().map(Failure::first_line).collect::<Vec<_>>().join("; ");
    let text = format!("error: {count} repetitions failed: {lines}");
    if is_ours { Failure::Ours(text) } else { Failure::User(text) }
}

async fn retried<'c>(
    attempts: &Attempts,
    events: &dyn RunEvents,
    id: &str,
    stop: &CancellationToken,
    attempt: &impl Fn(Attempt) -> Work<'c>,
) -> Result<(), Failure> {
    let mut left = attempts.retries;
    loop {
        let watch = Arc::new(Watch::new(&attempts.retry_on_errors));
        let failure = match attempt((Arc::clone(&watch), stop.clone())).await {
            Ok(()) => return Ok(()),
            Err(failure @ (Failure::Canceled | Failure::Superseded)) => return Err(failure),
            Err(failure) => failure,
        };
        if stop.is_cancelled() {
            return Err(Failure::Canceled);
        }
        if left == 0 {
            return Err(failure);
        }
        if !attempts.retry_on_errors.is_empty() && !watch.has_found() {
            events.message(&format!("Step `{id}` is not tried again: its output has none of the texts in `retryOnErrors`")).await;
            return Err(failure);
        }
        left -= 1;
        let seconds = attempts.retry_delay.as_secs();
        let text = format!(
            "Step `{id}` failed and is tried again in {seconds} s ({})",
            failure.first_line()
        );
        events.warning(&text).await;
        sleep(attempts.retry_delay, stop).await?;
    }
}
