//! What a build tells while it goes on.

use async_trait::async_trait;
use bytes::Bytes;
use container::Stream;

use crate::explain::CacheExplanation;
use crate::proof::Proof;

/// Number of a step within one build, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StepNumber(pub u32);

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepEnd {
    Done,
    /// Its result was in the build cache, and is right here by this.
    Cached {
        proof: Proof,
    },
    Failed {
        error: String,
    },
}

/// Receives the progress of a build. Steps of different stages interleave.
///
/// A slow receiver slows the build; nothing is dropped and nothing is queued.
#[async_trait]
pub trait BuildEvents: Send + Sync {
    /// A step begins: `[build 2/5] RUN make`.
    async fn step_started(&self, step: StepNumber, name: &str);

    /// Output of a step, as it comes; not necessarily UTF-8 or whole lines.
    async fn output(&self, step: StepNumber, stream: Stream, bytes: Bytes);

    /// How many bytes a transfer has moved so far.
    async fn progress(&self, step: StepNumber, current: u64, total: Option<u64>);

    /// Why the cache had the result of a step or not, when the request asks for it.
    async fn explained(&self, step: StepNumber, explanation: &CacheExplanation);

    async fn step_finished(&self, step: StepNumber, end: StepEnd);

    /// Something that the user should know and that does not end the build, already rendered
    /// with its position where it has one.
    async fn warning(&self, text: &str);
}

/// Receives nothing: for callers that only want the result.
pub struct NoEvents;

#[async_trait]
impl BuildEvents for NoEvents {
    async fn step_started(&self, _: StepNumber, _: &str) {}
    async fn output(&self, _: StepNumber, _: Stream, _: Bytes) {}
    async fn progress(&self, _: StepNumber, _: u64, _: Option<u64>) {}
    async fn explained(&self, _: StepNumber, _: &CacheExplanation) {}
    async fn step_finished(&self, _: StepNumber, _: StepEnd) {}
    async fn warning(&self, _: &str) {}
}
