//! What starts runs of stored tasks without anybody asking (triggers.md).
//!
//! State decides: when a timer is due, and which base a task was built on, are rows. A decision, its
//! line in the [ledger](LedgerEntry) and the run that follows are written together, so that each event has
//! one run, whenever the server ends.

mod cause;
mod ledger;
mod schedule;
mod timers;

use std::sync::Arc;

use oci::Compression;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

pub use cause::RunCause;
pub use ledger::{Decision, LedgerEntry, LedgerFilter, TriggerKind};
pub use schedule::{BadSchedule, Schedule};
pub use timers::Fired;
pub(crate) use timers::{SCHEMA as TIMERS, forget_within, write_within};

use crate::{ControlError, Result, Tasks};

/// What starts runs of a task. Each name is there once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskTriggers {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timers: Vec<TimerTrigger>,
}

impl TaskTriggers {
    pub fn is_empty(&self) -> bool {
        self.timers.is_empty()
    }
}

/// Starts a run at each time of a schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerTrigger {
    pub name: String,
    pub enabled: bool,
    pub schedule: Schedule,
}

/// All triggers of a server. Cheap to clone.
#[derive(Clone)]
pub struct Triggers {
    tasks: Tasks,
    /// Of images that runs build.
    compression: Compression,
    changed: Arc<Notify>,
}

impl Triggers {
    pub async fn open(tasks: Tasks, compression: Compression) -> Result<Self> {
        let db = &tasks.runs.shared.db;
        let failed = ControlError::database("prepare the tables of triggers");
        db.migrate("ledger", ledger::SCHEMA).await.map_err(failed)?;
        let changed = Arc::clone(&tasks.timers_changed);
        Ok(Self { tasks, compression, changed })
    }

    /// Waits until a task has other timers than before.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}
