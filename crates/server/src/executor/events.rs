//! What a build tells becomes the run's log.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use builder::{
    BuildEvents, CacheExplanation, Proof, RecordedRepository, StepCost, StepEnd, StepNumber,
};
use bytes::Bytes;
use control::{Commit, EventKind, Outcome, RunLog, Stream};
use engine::RunEvents;
use oci::Digest;

/// A transfer is told of this often.
const PROGRESS_PERIOD: Duration = Duration::from_millis(250);

/// Appends a build's events to a log.
pub(super) struct LogEvents {
    log: RunLog,
    steps: Mutex<HashMap<StepNumber, Step>>,
    so_far: Mutex<SoFar>,
}

/// What is known of a build that does not come to its end.
#[derive(Default)]
struct SoFar {
    commit: Option<Commit>,
    steps: Vec<StepCost>,
}

/// A step under way.
struct Step {
    name: String,
    started: Instant,
    told: Option<Instant>,
    /// The start of a character whose end has not come yet: of stdout and of stderr.
    partial: [Vec<u8>; 2],
}

impl LogEvents {
    pub(super) fn new(log: RunLog) -> Self {
        Self { log, steps: Mutex::default(), so_far: Mutex::default() }
    }

    /// An outcome with what is known also of a build that has made nothing: its commit, and how
    /// long the steps took that ended.
    pub(super) fn completed(self, outcome: Outcome) -> Outcome {
        let SoFar { commit, steps } =
            self.so_far.into_inner().unwrap_or_else(PoisonError::into_inner);
        let hits = steps.iter().filter(|step| step.cached).count();
        let cost = || {
            serde_json::json!({
                "cacheHits": hits,
                "cacheMisses": steps.len() - hits,
                "steps": steps,
            })
        };
        Outcome {
            commit: outcome.commit.or(commit),
            cost: outcome.cost.or_else(|| Some(cost())),
            ..outcome
        }
    }

    fn steps(&self) -> MutexGuard<'_, HashMap<StepNumber, Step>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Output as text; a character cut in two waits for its rest.
    fn text(&self, step: StepNumber, stream: container::Stream, bytes: &[u8]) -> String {
        let mut steps = self.steps();
        let Some(step) = steps.get_mut(&step) else {
            return String::from_utf8_lossy(bytes).into_owned();
        };
        let partial = &mut step.partial[usize::from(stream == container::Stream::Stderr)];
        partial.extend_from_slice(bytes);
        let whole = whole_characters(partial);
        let text = String::from_utf8_lossy(&partial[..whole]).into_owned();
        partial.drain(..whole);
        text
    }
}

/// How many bytes there are before a character that is cut at the end.
fn whole_characters(bytes: &[u8]) -> usize {
    let from = bytes.len().saturating_sub(3);
    for at in (from..bytes.len()).rev() {
        let needed = match bytes[at] {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0x80..=0xbf => continue,
            _ => break,
        };
        if bytes.len() - at < needed {
            return at;
        }
        break;
    }
    bytes.len()
}

#[async_trait]
impl BuildEvents for LogEvents {
    async fn step_started(&self, step: StepNumber, name: &str) {
        let (name_of, now) = (name.to_owned(), Instant::now());
        let started = Step { name: name_of, started: now, told: None, partial: Default::default() };
        self.steps().insert(step, started);
        self.log.append(EventKind::StepStarted { step: step.0, name: name.to_owned() }).await;
    }

    async fn output(&self, step: StepNumber, stream: container::Stream, bytes: Bytes) {
        let text = self.text(step, stream, &bytes);
        if text.is_empty() {
            return;
        }
        let stream = match stream {
            container::Stream::Stdout => Stream::Stdout,
            container::Stream::Stderr => Stream::Stderr,
        };
        self.log.append(EventKind::Output { step: step.0, stream, text }).await;
    }

    async fn progress(&self, step: StepNumber, current: u64, total: Option<u64>) {
        let due = match self.steps().get_mut(&step) {
            Some(known) => {
                let now = Instant::now();
                let due = known.told.is_none_or(|told| now - told >= PROGRESS_PERIOD);
                if due {
                    known.told = Some(now);
                }
                due
            }
            None => false,
        };
        if due || total == Some(current) {
            self.log.append(EventKind::Progress { step: step.0, current, total }).await;
        }
    }

    async fn explained(&self, step: StepNumber, explanation: &CacheExplanation) {
        let text = explanation.text.clone();
        self.log.append(EventKind::Explained { step: step.0, text }).await;
    }

    async fn step_finished(&self, step: StepNumber, end: StepEnd) {
        let ended = self.steps().remove(&step);
        let milliseconds =
            ended.as_ref().map_or(0, |step| step.started.elapsed().as_millis() as u64);
        let (proof, error) = match end {
            StepEnd::Done => (None, None),
            StepEnd::Cached { proof } => (Some(proof), None),
            StepEnd::Failed { error } => (None, Some(error)),
        };
        if let Some(Step { name, .. }) = ended {
            let mut so_far = self.so_far.lock().unwrap_or_else(PoisonError::into_inner);
            let (cached, cpu_milliseconds, cache) = (proof.is_some(), 0, None);
            let cost = StepCost { name, cached, proof, milliseconds, cpu_milliseconds, cache };
            so_far.steps.push(cost);
        }
        let proof = proof.map(|proof| match proof {
            Proof::Nothing => control::Proof::Nothing,
            Proof::Seen => control::Proof::Seen,
            Proof::Layers => control::Proof::Layers,
        });
        let step = step.0;
        self.log.append(EventKind::StepFinished { step, proof, milliseconds, error }).await;
    }

    async fn warning(&self, text: &str) {
        self.log.append(EventKind::Warning { text: text.to_owned() }).await;
    }
}

#[async_trait]
impl RunEvents for LogEvents {
    async fn message(&self, text: &str) {
        self.log.message(text).await;
    }

    fn hide(&self, secret: &str) {
        self.log.hide([secret]);
    }

    async fn image(&self, reference: Option<&str>, digest: &Digest) {
        let reference = reference.map(str::to_owned);
        self.log.append(EventKind::Image { reference, digest: digest.to_string() }).await;
    }

    async fn repository(&self, repository: &RecordedRepository) {
        let commit = Commit { id: repository.commit.clone(), branch: repository.branch.clone() };
        self.so_far.lock().unwrap_or_else(PoisonError::into_inner).commit = Some(commit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_cut_in_two_waits_for_its_rest() {
        for (bytes, whole) in [
            (&b"abc"[..], 3),
            ("aé".as_bytes(), 3),
            (&"aé".as_bytes()[..2], 1),
            (&"a€".as_bytes()[..3], 1),
            (&"a😀".as_bytes()[..4], 1),
            (&"a😀".as_bytes()[..2], 1),
            (b"a\xff", 2),
            (b"a\x80\x80\x80\x80", 5),
            (b"", 0),
        ] {
            assert_eq!(whole_characters(bytes), whole, "{bytes:?}");
        }
    }
}
