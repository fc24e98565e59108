use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One structured record of a run: a line of `GET .../runs/{id}/events` (NDJSON).
///
/// Progress displays draw from these; the text log is their rendering. Unknown kinds are to
/// be ignored by readers.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Grows by one from 1 within a run; give the last one seen as `after` to go on.
    pub id: u64,
    /// Milliseconds since 1970.
    pub at: i64,
    #[serde(flatten)]
    pub kind: EventKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OutputStream {
    Stdout,
    Stderr,
}

/// What was found to be the same of the images that a step looks at, so that a result that was
/// there already is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Proof {
    /// It looks at none.
    Nothing,
    /// What it sees; the layers are others than those that the result was made on.
    Seen,
    /// Every layer.
    Layers,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum EventKind {
    /// The run has a new status.
    Status {
        status: crate::RunStatus,
    },
    /// A line of the executor's own.
    Message {
        text: String,
    },
    Warning {
        text: String,
    },
    /// A numbered piece of work begins: `[build 2/5] RUN make`, `load context`, ...
    /// `step` counts from 1 in a run and names the piece in later events.
    StepStarted {
        step: u32,
        name: String,
    },
    /// Output of a step; text with invalid UTF-8 replaced, line ends kept.
    Output {
        step: u32,
        stream: OutputStream,
        text: String,
    },
    /// How far a transfer is, in bytes.
    Progress {
        step: u32,
        current: u64,
        #[serde(default)]
        total: Option<u64>,
    },
    /// Why the cache had the result of a step, or not: `hit: ...` or `miss: ...`.
    Explained {
        step: u32,
        text: String,
    },
    /// A step ended. `cached`: its result was there already, and is right by `proof`, which servers
    /// of older versions do not tell.
    StepFinished {
        step: u32,
        cached: bool,
        #[serde(default)]
        proof: Option<Proof>,
        milliseconds: u64,
        #[serde(default)]
        error: Option<String>,
    },
    /// An image exists: `reference` is `host/repository:tag` if it has a tag.
    Image {
        #[serde(default)]
        reference: Option<String>,
        digest: String,
    },
    /// The last event.
    Finished {
        status: crate::RunStatus,
        #[serde(default)]
        error: Option<String>,
    },
}
