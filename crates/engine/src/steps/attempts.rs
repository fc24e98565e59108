//! How often a step is tried and done, within its time (task-yaml.md section 7.2).

use std::sync::Arc;
use std::time::Duration;

use task::{Attempts, Step};

use super::Work;
use super::events::Watch;
use crate::execute::{Failure, RunEvents};

/// Does a step's work as often as the step asks for it, within its time.
///
/// `attempt` gets what looks at its output, and is dropped when the time is up.
pub(crate) async fn execute<'c>(
    step: &Step,
    attempts: &Attempts,
    events: &dyn RunEvents,
    attempt: impl Fn(Arc<Watch>) -> Work<'c>,
) -> Result<(), Failure> {
    let all = repeated(attempts, events, &step.id, attempt);
    match tokio::time::timeout(step.timeout, all).await {
        Ok(result) => result,
        Err(_) => Err(time_is_up(step.timeout)),
    }
}

pub(crate) fn time_is_up(timeout: Duration) -> Failure {
    Failure::User(format!("error: it took longer than its limit of {} s", timeout.as_secs()))
}

/// A repetition that failed does not keep later ones from being done.
async fn repeated<'c>(
    attempts: &Attempts,
    events: &dyn RunEvents,
    id: &str,
    attempt: impl Fn(Arc<Watch>) -> Work<'c>,
) -> Result<(), Failure> {
    let mut failures = Vec::new();
    for number in 0..=attempts.repeat {
        if attempts.repeat > 0 {
            let count = u64::from(attempts.repeat) + 1;
            let text = format!("Repetition {} of {count} of step `{id}`", u64::from(number) + 1);
            events.message(&text).await;
        }
        match retried(attempts, events, id, &attempt).await {
            Ok(()) => (),
            Err(failure @ (Failure::Canceled | Failure::Superseded)) => return Err(failure),
            Err(failure) => failures.push(failure),
        }
    }
    match failures.len() {
        0 => Ok(()),
        1 => Err(failures.remove(0)),
        _ => Err(combined(failures)),
    }
}

/// All of them in one text. It is the user's fault only if each is.
fn combined(failures: Vec<Failure>) -> Failure {
    let mut texts = Vec::new();
    let mut is_ours = false;
    for failure in failures {
        match failure {
            Failure::User(text) => texts.push(text),
            Failure::Ours(text) => {
                is_ours = true;
                texts.push(text);
            }
            Failure::Canceled | Failure::Superseded => (),
        }
    }
    texts.dedup();
    let text = texts.join("\n");
    if is_ours { Failure::Ours(text) } else { Failure::User(text) }
}

async fn retried<'c>(
    attempts: &Attempts,
    events: &dyn RunEvents,
    id: &str,
    attempt: &impl Fn(Arc<Watch>) -> Work<'c>,
) -> Result<(), Failure> {
    let mut left = attempts.retries;
    loop {
        let watch = Arc::new(Watch::new(&attempts.retry_on_errors));
        let failure = match attempt(Arc::clone(&watch)).await {
            Ok(()) => return Ok(()),
            Err(failure @ (Failure::Canceled | Failure::Superseded)) => return Err(failure),
            Err(failure) => failure,
        };
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
        tokio::time::sleep(attempts.retry_delay).await;
    }
}
