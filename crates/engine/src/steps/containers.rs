//! The containers of a run that are there now, for those who ask by name.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use container::Exit;
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
    /// Whether it is listed until the run ends, or somebody removes it.
    pub(crate) keep: bool,
}

impl Running {
    fn has_output(&self) -> bool {
        self.stop.is_some() || self.keep
    }
}

/// A container, as those who ask for it see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// For how long.
    Up(Duration),
    Exited {
        code: i32,
        ago: Duration,
    },
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
    /// Those that have ended and whose output is kept, the oldest first.
    ended: VecDeque<Past>,
}

struct Entry {
    running: Running,
    since: Instant,
    recent: Arc<Recent>,
    gone: CancellationToken,
    /// Once it has ended.
    code: Option<i32>,
}

struct Past {
    running: Running,
    recent: Arc<Recent>,
    code: i32,
    at: Instant,
}

/// What is told of a container that has ended otherwise than by itself.
const KILLED: i32 = 137;

impl Containers {
    /// Lists a container until the guard is dropped.
    pub(crate) fn add(&self, running: Running) -> Listed<'_> {
        let (gone, recent) = (CancellationToken::new(), Arc::<Recent>::default());
        let has_output = running.has_output();
        let (since, kept) = (Instant::now(), Arc::clone(&recent));
        let mut all = self.lock();
        let number = all.next;
        all.next += 1;
        let (kept_gone, code) = (gone.clone(), None);
        all.running.insert(number, Entry { running, since, recent: kept, gone: kept_gone, code });
        Listed { containers: self, number, recent: has_output.then_some(recent), gone }
    }

    /// The end of what a container has printed whose output is kept.
    pub(crate) fn recent(&self, name: &str) -> Option<Vec<u8>> {
        let all = self.lock();
        let is_meant = |entry: &&Entry| entry.running.name == name && entry.running.has_output();
        let running = all.running.values().rev().find(is_meant).map(|entry| &entry.recent);
        let ended = all.ended.iter().rev().find(|past| past.running.name == name);
        running.or(ended.map(|past| &past.recent)).map(|recent| recent.bytes())
    }

    /// Those that are there, and with `ended` those that are kept.
    pub(crate) fn list(&self, ended: bool) -> Vec<Shown> {
        let all = self.lock();
        let past = all.ended.iter().filter(|past| ended && past.running.keep).map(Past::shown);
        past.chain(all.running.values().map(Entry::shown)).collect()
    }

    /// The last one of a name that is there or kept.
    pub(crate) fn find(&self, name: &str) -> Option<Shown> {
        self.list(true).into_iter().rev().find(|shown| shown.name == name)
    }

    /// Forgets those of a name that are kept; whether there were any.
    pub(crate) fn remove(&self, name: &str) -> bool {
        let mut all = self.lock();
        let before = all.ended.len();
        all.ended.retain(|past| !past.running.keep || past.running.name != name);
        all.ended.len() < before
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

impl Entry {
    fn shown(&self) -> Shown {
        let (name, image) = (self.running.name.clone(), self.running.image.clone());
        Shown { name, image, state: State::Up(self.since.elapsed()) }
    }
}

impl Past {
    fn shown(&self) -> Shown {
        let (name, image) = (self.running.name.clone(), self.running.image.clone());
        Shown { name, image, state: State::Exited { code: self.code, ago: self.at.elapsed() } }
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

impl Listed<'_> {
    /// Notes how it has ended.
    pub(crate) fn note_exit(&self, exit: Exit) {
        let code = match exit {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal,
            Exit::Canceled
            | Exit::OutOfMemory
            | Exit::OutOfDisk
            | Exit::DiskFull
            | Exit::TimedOut => KILLED,
        };
        if let Some(entry) = self.containers.lock().running.get_mut(&self.number) {
            entry.code = Some(code);
        }
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let mut all = self.containers.lock();
        if let Some(Entry { running, recent, code, .. }) = all.running.remove(&self.number)
            && running.has_output()
        {
            if all.ended.len() >= ENDED_MAX {
                all.ended.pop_front();
            }
            let (code, at) = (code.unwrap_or(KILLED), Instant::now());
            all.ended.push_back(Past { running, recent, code, at });
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
            keep: false,
        };
        let stop = CancellationToken::new();
        let _step = containers.add(running("step", None));
        let service = containers.add(running("service", Some(&stop)));
        assert_eq!(containers.list(true).len(), 2);
        assert_eq!(containers.end("none").await, Ended::Unknown);
        assert_eq!(containers.end("step").await, Ended::Awaited);
        let process = async {
            stop.cancelled().await;
            drop(service);
        };
        let (ended, ()) = tokio::join!(containers.end("service"), process);
        assert_eq!(ended, Ended::Yes);
        assert_eq!(containers.list(true).len(), 1);
    }

    #[test]
    fn what_is_to_be_kept_is_there_until_somebody_removes_it() {
        let containers = Containers::default();
        let add = |name: &str, keep| {
            let (name, image) = (name.to_owned(), "i".to_owned());
            containers.add(Running { name, image, stop: None, keep })
        };
        add("other", false).note_exit(Exit::Code(0));
        let kept = add("kept", true);
        kept.recent.as_ref().unwrap().add(b"output");
        assert!(matches!(containers.find("kept").unwrap().state, State::Up(_)));
        assert!(!containers.remove("kept"), "it is running");
        kept.note_exit(Exit::Code(3));
        drop(kept);
        assert_eq!(containers.list(false), []);
        let [found] = &containers.list(true)[..] else { panic!("it is the only one") };
        assert!(matches!(found.state, State::Exited { code: 3, .. }), "{found:?}");
        assert_eq!(containers.recent("kept").unwrap(), b"output");
        assert_eq!(containers.find("other"), None);
        assert!(containers.remove("kept") && !containers.remove("kept"));
        assert_eq!(containers.recent("kept"), None);
    }

    #[test]
    fn the_end_of_the_output_is_kept_of_what_can_be_ended() {
        let containers = Containers::default();
        let add = |name: &str, stop: Option<CancellationToken>| {
            let (name, image) = (name.to_owned(), "i".to_owned());
            containers.add(Running { name, image, stop, keep: false })
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
