//! The containers of a run that are there now, for those who ask by name.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

/// What is kept of a container's output, in bytes.
const RECENT_SIZE_MAX: usize = 256 << 10;
/// Containers that have ended whose output is kept.
const ENDED_MAX: usize = 50;

/// A container, as it is listed.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    pub(crate) name: String,
    pub(crate) image: String,
    /// Ends it; `None`: a step is at its end when it is, so nobody may.
    pub(crate) stop: Option<CancellationToken>,
}

/// The end of what a container has printed.
#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<VecDeque<u8>>);

impl Recent {
    pub(crate) fn add(&self, bytes: &[u8]) {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = &bytes[bytes.len().saturating_sub(RECENT_SIZE_MAX)..];
        let too_many = (recent.len() + new.len()).saturating_sub(RECENT_SIZE_MAX);
        recent.drain(..too_many);
        recent.extend(new);
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
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
    all: Mutex<All>,
}

#[derive(Default)]
struct All {
    next: u64,
    running: BTreeMap<u64, Entry>,
    /// The output of those that could be ended and have ended, the oldest first.
    ended: VecDeque<(String, Arc<Recent>)>,
}

struct Entry {
    running: Running,
    since: Instant,
    recent: Arc<Recent>,
    gone: CancellationToken,
}

impl Containers {
    /// Lists a container until the guard is dropped.
    pub(crate) fn add(&self, running: Running) -> Listed<'_> {
        let (gone, recent) = (CancellationToken::new(), Arc::<Recent>::default());
        let can_end = running.stop.is_some();
        let (since, kept) = (Instant::now(), Arc::clone(&recent));
        let mut all = self.lock();
        let number = all.next;
        all.next += 1;
        all.running.insert(number, Entry { running, since, recent: kept, gone: gone.clone() });
        Listed { containers: self, number, recent: can_end.then_some(recent), gone }
    }

    /// The end of what a container has printed that can be ended, or that has ended.
    pub(crate) fn recent(&self, name: &str) -> Option<Vec<u8>> {
        let all = self.lock();
        let is_meant = |entry: &&Entry| entry.running.name == name && entry.running.stop.is_some();
        let running = all.running.values().rev().find(is_meant).map(|entry| &entry.recent);
        let ended = all.ended.iter().rev().find(|(ended, _)| ended == name);
        running.or(ended.map(|(_, recent)| recent)).map(|recent| recent.bytes())
    }

    /// All that are there, with their ages.
    pub(crate) fn list(&self) -> Vec<(Running, Duration)> {
        let all = self.lock();
        all.running.values().map(|entry| (entry.running.clone(), entry.since.elapsed())).collect()
    }

    /// Ends the containers of a name, and waits until they are gone.
    pub(crate) async fn end(&self, name: &str) -> Ended {
        let found: Vec<_> = {
            let all = self.lock();
            let found = all.running.values().filter(|entry| entry.running.name == name);
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

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A container is listed while this is there.
pub(crate) struct Listed<'a> {
    containers: &'a Containers,
    number: u64,
    /// Takes its output, if that is to be kept.
    pub(crate) recent: Option<Arc<Recent>>,
    gone: CancellationToken,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let mut all = self.containers.lock();
        if let Some(Entry { running, recent, .. }) = all.running.remove(&self.number)
            && running.stop.is_some()
        {
            if all.ended.len() >= ENDED_MAX {
                all.ended.pop_front();
            }
            all.ended.push_back((running.name, recent));
        }
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

    #[test]
    fn the_end_of_the_output_is_kept_of_what_can_be_ended() {
        let containers = Containers::default();
        let add = |name: &str, stop: Option<CancellationToken>| {
            let (name, image) = (name.to_owned(), "i".to_owned());
            containers.add(Running { name, image, stop })
        };
        assert!(add("step", None).recent.is_none());
        assert_eq!(containers.recent("step"), None);
        for _ in 0..ENDED_MAX {
            add("other", Some(CancellationToken::new()));
        }
        let service = add("service", Some(CancellationToken::new()));
        let recent = service.recent.clone().unwrap();
        recent.add(b"first");
        assert_eq!(containers.recent("service").unwrap(), b"first");
        recent.add(&vec![b'x'; RECENT_SIZE_MAX - 3]);
        recent.add(b"y");
        drop(service);
        let kept = containers.recent("service").unwrap();
        assert_eq!(
            (kept.len(), &kept[..2], kept.last()),
            (RECENT_SIZE_MAX, &b"st"[..], Some(&b'y'))
        );
        assert_eq!(containers.lock().ended.len(), ENDED_MAX);
    }
}
