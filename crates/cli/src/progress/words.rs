//! How figures and endings are told, in both forms.

use api::RunStatus;

/// Why a result is right that was made on other layers.
pub(super) const SEEN: &str = "what it sees of the image is the same";

/// `0.1s`, `75.0s`, `12m05s`.
pub(super) fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..600 => format!("{seconds}.{}s", milliseconds % 1000 / 100),
        _ => format!("{}m{:02}s", seconds / 60, seconds % 60),
    }
}

/// `12 B`, `3.4 MB`: powers of ten, as registries tell sizes.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut tenths = u128::from(bytes) / 100;
    let mut unit = 0;
    while tenths >= 10_000 && unit + 1 < units.len() {
        tenths /= 1000;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, units[unit])
}

pub(super) fn transfer(current: u64, total: Option<u64>) -> String {
    match total {
        Some(total) => format!("{} / {}", size(current), size(total)),
        None => size(current),
    }
}

pub(super) fn ending(status: RunStatus) -> &'static str {
    match status {
        RunStatus::Succeeded => "succeeded",
        RunStatus::Failed => "failed",
        RunStatus::Canceled => "was canceled",
        RunStatus::Timeout => "timed out",
        RunStatus::Error => "ended in an error of the server",
        RunStatus::Queued | RunStatus::Started | RunStatus::Running => "is under way",
    }
}

/// Counts steps for the last line.
#[derive(Debug, Default)]
pub(super) struct Tally {
    first_at: Option<i64>,
    pub(super) started: u32,
    pub(super) finished: u32,
    cached: u32,
}

impl Tally {
    pub(super) fn count(&mut self, event: &api::Event) {
        self.first_at.get_or_insert(event.at);
        match &event.kind {
            api::EventKind::StepStarted { .. } => self.started += 1,
            api::EventKind::StepFinished { cached, .. } => {
                self.finished += 1;
                self.cached += u32::from(*cached);
            }
            _ => (),
        }
    }

    pub(super) fn elapsed(&self, now: i64) -> u64 {
        self.first_at.map_or(0, |first| u64::try_from(now.saturating_sub(first)).unwrap_or(0))
    }

    pub(super) fn summary(&self, status: RunStatus, now: i64) -> String {
        let steps = match self.finished {
            1 => "1 step".to_owned(),
            count => format!("{count} steps"),
        };
        let cached = match self.cached {
            0 => String::new(),
            count => format!(", {count} cached"),
        };
        format!("Run {} after {}: {steps}{cached}", ending(status), duration(self.elapsed(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        let sizes = [0, 999, 1000, 12_345, 999_999, 1_000_000, 3_456_000_000].map(size);
        assert_eq!(sizes, ["0 B", "999 B", "1.0 kB", "12.3 kB", "999.9 kB", "1.0 MB", "3.4 GB"]);
        let durations = [0, 99, 1234, 75_000, 725_000].map(duration);
        assert_eq!(durations, ["0.0s", "0.0s", "1.2s", "75.0s", "12m05s"]);
        assert_eq!(size(u64::MAX), "18.4 EB");
    }
}
