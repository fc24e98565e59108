//! Ctrl-C: the first asks, the second insists.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Result, could_not};

/// Waits for the user, or whoever ends processes here, to ask for an end.
pub struct Interrupts {
    interrupt: Option<Signal>,
    terminate: Signal,
    hang_up: Option<Signal>,
    count: u32,
}

impl Interrupts {
    /// From now on signals no longer end the process by themselves. What the program was told
    /// to ignore, as `nohup` and shells in the background do, stays ignored.
    pub fn catch() -> Result<Self> {
        let doing = || could_not("watch for signals");
        let ignored = Ignored::now();
        let unless_ignored = |kind: SignalKind| match ignored.has(kind) {
            true => Ok(None),
            false => signal(kind).map(Some).map_err(doing()),
        };
        Ok(Self {
            interrupt: unless_ignored(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate()).map_err(doing())?,
            hang_up: unless_ignored(SignalKind::hangup())?,
            count: 0,
        })
    }

    /// The next request to stop. Safe to drop and wait again.
    pub async fn next(&mut self) {
        tokio::select! {
            () = received(self.interrupt.as_mut()) => (),
            _ = self.terminate.recv() => (),
            () = received(self.hang_up.as_mut()) => (),
        }
        self.count += 1;
    }

    /// How often the user has asked.
    pub fn count(&self) -> u32 {
        self.count
    }
}

async fn received(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// The signals that this process was started to ignore: a bit each, the first for number 1.
struct Ignored(u64);

impl Ignored {
    /// None, if the kernel does not tell.
    fn now() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    fn parse(status: &str) -> Self {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        Self(mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0))
    }

    fn has(&self, kind: SignalKind) -> bool {
        let bit = u32::try_from(kind.as_raw_value() - 1).unwrap_or(u32::MAX);
        self.0.checked_shr(bit).is_some_and(|mask| mask & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_kernels_words() {
        let ignored = Ignored::parse("Name:\trefit\nSigIgn:\t0000000000001001\nSigCgt:\t3\n");
        assert!(ignored.has(SignalKind::hangup()));
        assert!(!ignored.has(SignalKind::interrupt()));
        assert!(!Ignored::parse("").has(SignalKind::hangup()));
    }
}
