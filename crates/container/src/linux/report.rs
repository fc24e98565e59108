//! What the helper tells the server, as one JSON value per line.

use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

use crate::ContainerError;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Message {
    /// The container's process has been executed.
    Started,
    /// The last.
    Over(Report),
}

/// What became of the container.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Report {
    Failed(ContainerError),
    /// The process is gone, and so are its mounts.
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

/// Nobody listens if the server is gone, and then nothing depends on it: only a message that
/// cannot be put into words is an error.
pub(super) fn tell(mut control: &UnixStream, message: &Message) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    let _gone = control.write_all(&line);
    Ok(())
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
