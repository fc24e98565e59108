//! The containers of a run that are there now, for those who ask by name.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

/// A container, as it is listed.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    pub(crate) name: String,
    pub(crate) image: String,
    /// Ends it; `None`: a step is at its end when it is, so nobody may.
    pub(crate) stop: Option<CancellationToken>,
}

/// What can be ended of a name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It has ended.
    Yes,
    /// There is none of this name.
    Unknown,
    /// Others wait for its end.
    Awaited,
}

#[derive(Default)]
pub(crate) struct Containers {
    all: Mutex<(u64, BTreeMap<u64, Entry>)>,
}

struct Entry {
    running: Running,
    since: Instant,
    gone: CancellationToken,
}

impl Containers {
    /// Lists a container until the guard is dropped.
    pub(crate) fn add(&self, running: Running) -> Listed<'_> {
        let gone = CancellationToken::new();
        let entry = Entry { running, since: Instant::now(), gone: gone.clone() };
        let mut all = self.lock();
        let number = all.0;
        all.0 += 1;
        all.1.insert(number, entry);
        Listed { containers: self, number, gone }
    }

    /// All that are there, with their ages.
    pub(crate) fn list(&self) -> Vec<(Running, Duration)> {
        let all = self.lock();
        all.1.values().map(|entry| (entry.running.clone(), entry.since.elapsed())).collect()
    }

    /// Ends the containers of a name, and waits until they are gone.
    pub(crate) async fn end(&self, name: &str) -> Ended {
        let found: Vec<_> = {
            let all = self.lock();
            let found = all.1.values().filter(|entry| entry.running.name == name);
            found.map(|entry| (entry.running.stop.clone(), entry.gone.clone())).collect()
        };
        if found.is_empty() {
            return Ended::Unknown;
        }
        let mut ended = Ended::Awaited;
        for (stop, gone) in found {
            if let Some(stop) = stop {
                stop.cancel();
                gone.cancelled().await;
                ended = Ended::Yes;
            }
        }
        ended
    }

    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Entry>)> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A container is listed while this is there.
pub(crate) struct Listed<'a> {
    containers: &'a Containers,
    number: u64,
    gone: CancellationToken,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.containers.lock().1.remove(&self.number);
        self.gone.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_nobody_waits_for_is_ended_by_name() {
        let containers = Containers::default();
        let running = |name: &str, stop: Option<&CancellationToken>| Running {
            name: name.to_owned(),
            image: "i".to_owned(),
            stop: stop.cloned(),
        };
        let stop = CancellationToken::new();
        let _step = containers.add(running("step", None));
        let service = containers.add(running("service", Some(&stop)));
        assert_eq!(containers.list().len(), 2);
        assert_eq!(containers.end("none").await, Ended::Unknown);
        assert_eq!(containers.end("step").await, Ended::Awaited);
        let process = async {
            stop.cancelled().await;
            drop(service);
        };
        let (ended, ()) = tokio::join!(containers.end("service"), process);
        assert_eq!(ended, Ended::Yes);
        assert_eq!(containers.list().len(), 1);
    }
}
