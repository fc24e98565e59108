//! Ctrl-C: the first asks, the second insists.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Result, could_not};

/// Waits for the user, or whoever ends processes here, to ask for an end.
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    count: u32,
}

impl Interrupts {
    /// From now on signals no longer end the process by themselves.
    pub fn catch() -> Result<Self> {
        let doing = || could_not("watch for signals");
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(doing())?,
            terminate: signal(SignalKind::terminate()).map_err(doing())?,
            hang_up: signal(SignalKind::hangup()).map_err(doing())?,
            count: 0,
        })
    }

    /// The next request to stop. Safe to drop and wait again.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => (),
            _ = self.terminate.recv() => (),
            _ = self.hang_up.recv() => (),
        }
        self.count += 1;
    }

    /// How often the user has asked.
    pub fn count(&self) -> u32 {
        self.count
    }
}
