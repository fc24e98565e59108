//! What executes a run: the builder in a server, something simple in a test.

use std::sync::Arc;

use async_trait::async_trait;
use oci::Digest;
use serde::{Deserialize, Serialize};
use store::Millis;
use tokio_util::sync::CancellationToken;

use crate::queue::Queue;
use crate::{Commit, OutputImage, Result, Run, RunLog};

/// Executes runs, one attempt at a time. Knows nothing of the queue.
#[async_trait]
pub trait Executor: Send + Sync {
    /// Executes one attempt to its end. Returns soon after `attempt.cancel` is cancelled;
    /// if it does not, it is dropped, and must soon leave nothing running then.
    async fn execute(&self, attempt: &Attempt) -> Outcome;

    /// Waits until what attempts have left behind is cleared away, also those that were
    /// dropped.
    async fn idle(&self) {}
}

/// One try at a run, held by a lease.
pub struct Attempt {
    pub run: Run,
    pub log: RunLog,
    /// Cancelled when the user cancels, the time is up or the lease is lost.
    pub cancel: CancellationToken,
    /// Of the lease: a later attempt has a higher one.
    pub epoch: i64,
    /// When this attempt began.
    pub started_at: Millis,
    /// Where it is from.
    pub queue: Arc<dyn Queue>,
    /// Gone when the attempt is: tells that it goes on.
    pub alive: Arc<()>,
}

/// Another attempt has the run, or it has ended: nothing may be published any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the run has been taken over by another attempt")]
pub struct LeaseLost;

impl Attempt {
    /// Preparation is over: `Started` becomes `Running`. `repeatable`: what follows can be seen
    /// outside only by what it publishes, so that another attempt may do it again.
    pub async fn running(&self, repeatable: bool) -> Result<Result<(), LeaseLost>> {
        let held = self.queue.set_running(self, repeatable).await?;
        Ok(if held { Ok(()) } else { Err(LeaseLost) })
    }

    /// Whether this attempt still holds the run. Ask right before anything is published
    /// (architecture.md decision 3).
    pub async fn confirm(&self) -> Result<Result<(), LeaseLost>> {
        let held = self.queue.holds(self).await?;
        Ok(if held { Ok(()) } else { Err(LeaseLost) })
    }

    /// The lease as text, for the record of what was published under it.
    pub fn fence(&self) -> String {
        format!("{}/{}/{}", self.run.registry, self.run.id, self.epoch)
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub end: End,
    /// What was pushed.
    pub images: Vec<OutputImage>,
    pub digest: Option<Digest>,
    /// What was built of a git repository.
    pub commit: Option<Commit>,
    /// What the images were made of: a JSON list (runs.md section 4.1).
    pub dependencies: Option<serde_json::Value>,
    /// A JSON object.
    pub cost: Option<serde_json::Value>,
    /// What the run was made of and came to, a JSON object.
    #[serde(default)]
    pub plan: Option<serde_json::Value>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    Succeeded,
    /// The user's doing: a step, a login, a check failed.
    Failed(String),
    /// Ours.
    Error(String),
    /// `cancel` was cancelled; why, the worker knows.
    Canceled,
}

impl Outcome {
    /// An end without anything to show.
    pub fn of(end: End) -> Self {
        let images = Vec::new();
        Self { end, images, digest: None, commit: None, dependencies: None, cost: None, plan: None }
    }
}
