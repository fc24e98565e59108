//! What the helper tells the server, as one JSON object per line.

use serde::{Deserialize, Serialize};

use crate::ContainerError;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Report {
    Failed(ContainerError),
    /// The last report: the process is gone, and so are its mounts.
    Ended {
        ending: Ending,
        cpu_microseconds: u64,
        memory_peak: u64,
    },
}

/// How the kernel says the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Ending {
    Code(i32),
    Signal(i32),
}

/// Says what was being done when the kernel refused.
pub(super) trait Doing<T> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, ContainerError>;
}

impl<T, E: std::fmt::Display> Doing<T> for Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, ContainerError> {
        self.map_err(|error| ContainerError::Setup { doing: doing(), reason: error.to_string() })
    }
}
