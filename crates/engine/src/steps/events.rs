//! What the steps of a task tell, numbered through over the whole run.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use builder::{BuildEvents, CacheExplanation, StepEnd, StepNumber};
use bytes::Bytes;
use container::Stream;

use crate::execute::RunEvents;
use crate::platforms::named;

/// Gives out the numbers of a run.
#[derive(Default)]
pub(crate) struct Numbers(AtomicU32);

impl Numbers {
    pub(crate) fn next(&self) -> StepNumber {
        StepNumber(self.0.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// Tells the events of one step's build among those of the others: under its id, and with numbers
/// that nothing else has.
pub(crate) struct StepEvents<'a> {
    pub(crate) events: &'a dyn RunEvents,
    numbers: &'a Numbers,
    step: &'a str,
    watch: &'a Watch,
    given: Mutex<HashMap<StepNumber, StepNumber>>,
}

impl<'a> StepEvents<'a> {
    pub(crate) fn new(
        events: &'a dyn RunEvents,
        numbers: &'a Numbers,
        step: &'a str,
        watch: &'a Watch,
    ) -> Self {
        Self { events, numbers, step, watch, given: Mutex::default() }
    }

    fn number(&self, step: StepNumber) -> StepNumber {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        *given.entry(step).or_insert_with(|| self.numbers.next())
    }
}

#[async_trait]
impl BuildEvents for StepEvents<'_> {
    async fn step_started(&self, step: StepNumber, name: &str) {
        self.events.step_started(self.number(step), &named(name, &self.step)).await;
    }

    async fn output(&self, step: StepNumber, stream: Stream, bytes: Bytes) {
        self.watch.look(stream, &bytes);
        self.events.output(self.number(step), stream, bytes).await;
    }

    async fn progress(&self, step: StepNumber, current: u64, total: Option<u64>) {
        self.events.progress(self.number(step), current, total).await;
    }

    async fn explained(&self, step: StepNumber, explanation: &CacheExplanation) {
        self.events.explained(self.number(step), explanation).await;
    }

    async fn step_finished(&self, step: StepNumber, end: StepEnd) {
        self.events.step_finished(self.number(step), end).await;
    }

    async fn warning(&self, text: &str) {
        self.events.warning(&format!("{}: {text}", self.step)).await;
    }
}

/// Looks for texts in what a step prints, of each stream on its own.
pub(crate) struct Watch {
    wanted: Vec<Vec<u8>>,
    /// The longest of them, in bytes.
    longest: usize,
    /// The ends of stdout and of stderr, in which one may begin.
    ends: Mutex<[Vec<u8>; 2]>,
    found: std::sync::atomic::AtomicBool,
}

impl Watch {
    pub(crate) fn new(wanted: &[String]) -> Self {
        let wanted: Vec<_> = wanted.iter().map(|text| text.as_bytes().to_vec()).collect();
        let longest = wanted.iter().map(Vec::len).max().unwrap_or_default();
        Self { wanted, longest, ends: Mutex::default(), found: false.into() }
    }

    pub(crate) fn look(&self, stream: Stream, bytes: &[u8]) {
        if self.wanted.is_empty() || self.has_found() {
            return;
        }
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let end = &mut ends[usize::from(stream == Stream::Stderr)];
        end.extend_from_slice(bytes);
        let is_in = |wanted: &Vec<u8>| {
            wanted.is_empty() || end.windows(wanted.len()).any(|window| window == *wanted)
        };
        if self.wanted.iter().any(is_in) {
            self.found.store(true, Ordering::Relaxed);
        }
        let keep = self.longest.saturating_sub(1).min(end.len());
        end.drain(..end.len() - keep);
    }

    pub(crate) fn has_found(&self) -> bool {
        self.found.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_across_pieces_of_one_stream_only() {
        let watch = || Watch::new(&["timed out".to_owned(), "reset".to_owned()]);
        let split = watch();
        split.look(Stream::Stdout, b"it tim");
        split.look(Stream::Stderr, b"ed out");
        assert!(!split.has_found());
        split.look(Stream::Stdout, b"ed out again");
        assert!(split.has_found());
        let second = watch();
        second.look(Stream::Stderr, b"connection reset by peer\n");
        assert!(second.has_found());
        let none = Watch::new(&[]);
        none.look(Stream::Stdout, b"reset");
        assert!(!none.has_found());
    }
}
