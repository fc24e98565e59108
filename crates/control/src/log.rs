//! A run's log: records as they come, and the text that people read.
//!
//! Two files per run: the records (one JSON text per line) and their rendering. Writers
//! append to memory and one loop per run writes to the files; any number of readers read
//! the files and are woken when these have grown, so that a slow reader slows nobody. When
//! the run ends both files are compressed.
//!
//! Invariants:
//! - A record that a reader has seen is in the file, and on disk within a second.
//! - The text is exactly the rendering of the records; after a crash it is made again.
//! - The last record of a log that has ended is `Finished`, and nothing follows it.

mod event;
mod file;
mod mask;
mod packed;
mod read;

pub use event::{Event, EventKind, Proof, Sent, Stream};
pub use mask::Mask;
pub use read::{EventReader, TextReader};

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oci::{Digest, Hasher, RegistryName};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use self::event::TextRenderer;
use self::file::Files;
use crate::{Clock, ControlError, Result, RunId, RunStatus};

/// Records are on disk after this long.
const SYNC_PERIOD: Duration = Duration::from_millis(500);

/// How long is waited for what was appended to be in the file.
const WRITTEN_WAIT: Duration = Duration::from_secs(5);

/// Bytes that may wait for the disk before writers have to.
const PENDING_MAX: usize = 1 << 20;

/// Bytes of records that are no output, beyond the bound of a log, if an agent sends them.
const EXCESS_MAX: u64 = 64 << 20;

/// A single text in a record; longer ones are cut.
const TEXT_LEN_MAX: usize = 256 << 10;

/// Whose log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LogKey {
    pub registry: RegistryName,
    pub run: RunId,
}

/// All logs of a data folder. Cheap to clone.
#[derive(Clone)]
pub struct Logs {
    shared: Arc<LogsShared>,
}

struct LogsShared {
    folder: PathBuf,
    /// Bytes of one log.
    size_max: u64,
    clock: Clock,
    live: Mutex<HashMap<LogKey, Arc<Live>>>,
}

/// A log that has not ended.
struct Live {
    key: LogKey,
    size_max: u64,
    clock: Clock,
    /// Replaced as a whole when the run gets more secrets.
    mask: Mutex<Arc<Mask>>,
    pending: Mutex<Pending>,
    /// There is something to write.
    wake: Notify,
    /// There is room to append.
    space: Notify,
    progress: watch::Sender<Progress>,
    /// Its last record is written and its files are compressed: nobody writes them any more.
    at_rest: CancellationToken,
}

/// What waits to be written.
struct Pending {
    next_id: u64,
    renderer: TextRenderer,
    events: Vec<u8>,
    text: String,
    /// Bytes of records in this log so far.
    size: u64,
    /// What came last from an agent.
    sent: Option<Sent>,
    /// Of the text so far.
    hasher: Hasher,
    /// Ends of output that may be the beginnings of secrets, by step and stream.
    held: BTreeMap<(u32, Stream), String>,
    dropping: bool,
    finished: bool,
}

/// How much of a log can be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Progress {
    events: u64,
    text: u64,
    /// Bytes of records that were written, or could not be.
    handled: u64,
    /// Nothing follows.
    done: bool,
}

impl Logs {
    /// `size_max` bounds the records of one log in bytes.
    pub fn new(folder: PathBuf, size_max: u64, clock: Clock) -> Self {
        let live = Mutex::default();
        Self { shared: Arc::new(LogsShared { folder, size_max, clock, live }) }
    }

    /// Opens the log of a run that has not ended, for appending; what a crash left half
    /// written is put right first. Opening it again gives the same log.
    pub async fn open(&self, key: &LogKey, mask: Mask) -> Result<RunLog> {
        if let Some(live) = self.live(key) {
            return Ok(RunLog { live });
        }
        let (folder, owned) = (self.shared.folder.clone(), key.clone());
        let (files, found) = blocking("open a log", move || Files::open(&folder, &owned)).await?;
        let progress = Progress {
            events: files.events_len,
            text: files.text_len,
            handled: files.events_len,
            done: found.finished,
        };
        let pending = Pending {
            next_id: found.last_id + 1,
            renderer: found.renderer,
            events: Vec::new(),
            text: String::new(),
            size: files.events_len,
            sent: found.sent,
            hasher: found.hasher,
            held: BTreeMap::new(),
            dropping: false,
            finished: found.finished,
        };
        let live = Arc::new(Live {
            key: key.clone(),
            size_max: self.shared.size_max,
            clock: self.shared.clock.clone(),
            mask: Mutex::new(Arc::new(mask)),
            pending: Mutex::new(pending),
            wake: Notify::new(),
            space: Notify::new(),
            progress: watch::Sender::new(progress),
            at_rest: CancellationToken::new(),
        });
        let mut all = lock(&self.shared.live);
        if let Some(other) = all.get(key) {
            return Ok(RunLog { live: Arc::clone(other) });
        }
        all.insert(key.clone(), Arc::clone(&live));
        drop(all);
        tokio::spawn(write_loop(self.clone(), Arc::clone(&live), files));
        if found.finished {
            live.wake.notify_one();
        }
        Ok(RunLog { live })
    }

    /// Reads text from a byte offset on; `follow` waits for more until the run ends.
    pub async fn read_text(&self, key: &LogKey, offset: u64, follow: bool) -> Result<TextReader> {
        read::text(self, key, offset, follow).await
    }

    /// Reads the records after id `after`; `follow` waits for more until the run ends.
    pub async fn read_events(&self, key: &LogKey, after: u64, follow: bool) -> Result<EventReader> {
        read::events(self, key, after, follow).await
    }

    /// Removes a log that has ended, after its compression if that is under way. Idempotent.
    pub async fn delete(&self, key: &LogKey) -> Result<()> {
        if let Some(live) = self.live(key).filter(|live| live.progress.borrow().done) {
            live.at_rest.cancelled().await;
        }
        let (folder, key) = (self.shared.folder.clone(), key.clone());
        blocking("delete a log", move || file::delete(&folder, &key)).await
    }

    /// Logs that no `Finished` has closed, or whose compression was interrupted.
    pub(crate) async fn unended(&self) -> Result<Vec<LogKey>> {
        let folder = self.shared.folder.clone();
        blocking("list the logs", move || file::plain_logs(&folder)).await
    }

    fn live(&self, key: &LogKey) -> Option<Arc<Live>> {
        lock(&self.shared.live).get(key).cloned()
    }
}

/// The writing end of one log. Cheap to clone.
#[derive(Clone)]
pub struct RunLog {
    live: Arc<Live>,
}

impl RunLog {
    /// A text without the secrets of its run.
    pub fn masked(&self, text: &str) -> String {
        let mut text = text.to_owned();
        self.live.mask().apply(&mut text);
        text
    }

    /// Hides more secrets from now on.
    pub fn hide<'a>(&self, values: impl IntoIterator<Item = &'a str>) {
        let mut mask = lock(&self.live.mask);
        let new: Vec<&str> = values.into_iter().filter(|value| !mask.has(value)).collect();
        if !new.is_empty() {
            *mask = Arc::new(mask.with(new));
        }
    }

    /// Appends a record. Waits only when the disk is far behind; records after the last one
    /// are dropped.
    pub async fn append(&self, kind: EventKind) {
        self.append_sent(kind, None).await;
    }

    /// Appends a record that an agent has sent, unless it, or a later one, is here already.
    pub async fn append_sent(&self, kind: EventKind, sent: Option<Sent>) {
        loop {
            let space = self.live.space.notified();
            tokio::pin!(space);
            space.as_mut().enable();
            {
                let mut pending = lock(&self.live.pending);
                if pending.events.len() < PENDING_MAX || pending.finished {
                    self.live.push(&mut pending, kind, sent);
                    break;
                }
            }
            space.await;
        }
        self.live.wake.notify_one();
    }

    /// What came last from an agent.
    pub fn last_sent(&self) -> Option<Sent> {
        lock(&self.live.pending).sent
    }

    /// The digest of all lines of the text so far, when no output follows.
    pub(crate) fn digest(&self) -> Digest {
        let pending = lock(&self.live.pending);
        let (mut renderer, mut hasher) = (pending.renderer.clone(), pending.hasher.clone());
        let mut rest = String::new();
        let has_room = pending.size < self.live.size_max;
        for text in pending.held.values().filter(|_| has_room) {
            let mut text = text.clone();
            self.live.mask().apply(&mut text);
            renderer.output(&text, &mut rest);
        }
        rest.push_str(renderer.line_end());
        hasher.update(rest.as_bytes());
        hasher.finish()
    }

    /// Appends what waits to be known as no secret: no output follows.
    pub fn release_held(&self) {
        self.live.release(&mut lock(&self.live.pending), |_| true);
        self.live.wake.notify_one();
    }

    /// The id of the last record that was appended; 0: none was.
    pub fn last_id(&self) -> u64 {
        lock(&self.live.pending).next_id - 1
    }

    /// Returns when all that was appended is in the file; after a while anyhow, for the disk may be
    /// full.
    pub async fn written(&self) {
        let size = lock(&self.live.pending).size;
        let mut progress = self.live.progress.subscribe();
        let written = progress.wait_for(|progress| progress.handled >= size || progress.done);
        let _late = tokio::time::timeout(WRITTEN_WAIT, written).await;
    }

    /// Appends a line of the executor's own.
    pub async fn message(&self, text: impl Into<String>) {
        self.append(EventKind::Message { text: text.into() }).await;
    }

    /// Appends the last record and returns once all is on disk.
    pub async fn finish(&self, status: RunStatus, error: Option<String>, elapsed: Duration) {
        let milliseconds = elapsed.as_millis() as u64;
        self.append(EventKind::Finished { status, error, milliseconds }).await;
        let mut progress = self.live.progress.subscribe();
        // The sender is in `self`, so this cannot fail.
        let _ = progress.wait_for(|progress| progress.done).await;
    }
}

impl Live {
    fn mask(&self) -> Arc<Mask> {
        Arc::clone(&lock(&self.mask))
    }

    fn push(&self, pending: &mut Pending, mut kind: EventKind, sent: Option<Sent>) {
        if pending.finished || sent.is_some_and(|sent| pending.sent >= Some(sent)) {
            return;
        }
        pending.sent = sent.or(pending.sent);
        match &mut kind {
            // An agent has held back what is to be held, and is told what has come.
            EventKind::Output { step, stream, text } if sent.is_none() => {
                if let Some(held) = pending.held.remove(&(*step, *stream)) {
                    text.insert_str(0, &held);
                }
                let held = self.mask().take_begun(text);
                if !held.is_empty() {
                    pending.held.insert((*step, *stream), held);
                }
                if text.is_empty() {
                    return;
                }
            }
            EventKind::StepStarted { step, .. } | EventKind::StepFinished { step, .. } => {
                let step = *step;
                self.release(pending, |of| of == step);
            }
            EventKind::Finished { .. } => self.release(pending, |_| true),
            _ => (),
        }
        self.record(pending, kind, sent);
    }

    /// What was held of the output of steps was no beginning of a secret.
    fn release(&self, pending: &mut Pending, of: impl Fn(u32) -> bool) {
        let released = pending.held.extract_if(.., |&(step, _), _| of(step));
        let released: Vec<_> = released.collect();
        for ((step, stream), text) in released {
            self.record(pending, EventKind::Output { step, stream, text }, None);
        }
    }

    fn record(&self, pending: &mut Pending, mut kind: EventKind, sent: Option<Sent>) {
        // An agent is not asked how much it has to say.
        let is_excess = sent.is_some() && pending.size >= self.size_max.saturating_add(EXCESS_MAX);
        if is_excess || (pending.size >= self.size_max && kind.is_bulk()) {
            if pending.dropping {
                return;
            }
            pending.dropping = true;
            let text = format!(
                "the log is larger than {} bytes, further output is dropped",
                self.size_max
            );
            kind = EventKind::Warning { text };
        }
        for text in kind.texts_mut() {
            self.mask().apply(text);
            cut(text, TEXT_LEN_MAX);
        }
        let event = Event { id: pending.next_id, at: self.clock.now(), sent, kind };
        let Ok(line) = serde_json::to_vec(&event) else { return };
        pending.next_id += 1;
        pending.size += line.len() as u64 + 1;
        pending.events.extend_from_slice(&line);
        pending.events.push(b'\n');
        let Pending { renderer, text, hasher, .. } = pending;
        let rendered_from = text.len();
        renderer.render(&event, text);
        hasher.update(&text.as_bytes()[rendered_from..]);
        pending.finished = matches!(event.kind, EventKind::Finished { .. });
    }

    fn take(&self) -> Batch {
        let mut pending = lock(&self.pending);
        Batch {
            events: std::mem::take(&mut pending.events),
            text: std::mem::take(&mut pending.text),
            last: pending.finished,
        }
    }
}

struct Batch {
    events: Vec<u8>,
    text: String,
    last: bool,
}

/// Writes what is appended until the log ends, then compresses it.
async fn write_loop(logs: Logs, live: Arc<Live>, mut files: Files) {
    let mut sync_at: Option<tokio::time::Instant> = None;
    let mut handled = files.events_len;
    loop {
        match sync_at {
            None => live.wake.notified().await,
            Some(at) => tokio::select! {
                () = live.wake.notified() => (),
                () = tokio::time::sleep_until(at) => (),
            },
        }
        let batch = live.take();
        let last = batch.last;
        handled += batch.events.len() as u64;
        let sync = last || sync_at.is_some_and(|at| at <= tokio::time::Instant::now());
        let written = tokio::task::spawn_blocking(move || {
            let result = files
                .append(&batch.events, batch.text.as_bytes())
                .and_then(|()| if sync { files.sync() } else { Ok(()) });
            (files, result)
        });
        let Ok((back, result)) = written.await else { break };
        files = back;
        if let Err(error) = result {
            // The run goes on: it will meet the same disk, and say so.
            tracing::error!(run = %live.key.run, %error, "part of a run's log could not be written");
        }
        sync_at = match (sync, sync_at) {
            (true, _) => None,
            (false, at) => at.or_else(|| Some(tokio::time::Instant::now() + SYNC_PERIOD)),
        };
        let (events, text) = (files.events_len, files.text_len);
        let now = Progress { events, text, handled, done: last };
        live.progress.send_if_modified(|progress| std::mem::replace(progress, now) != now);
        live.space.notify_waiters();
        if last {
            break;
        }
    }
    let _at_rest = live.at_rest.clone().drop_guard();
    let (folder, key) = (logs.shared.folder.clone(), live.key.clone());
    let compressed = blocking("compress a log", move || file::compress(&folder, &key)).await;
    lock(&logs.shared.live).remove(&live.key);
    let (folder, key) = (logs.shared.folder.clone(), live.key.clone());
    let result = match compressed {
        // Only now: who found the log live may still open the plain files.
        Ok(()) => blocking("compress a log", move || file::delete_plain(&folder, &key)).await,
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        tracing::warn!(run = %live.key.run, %error, "a log stays uncompressed");
    }
}

/// Cuts at a character boundary.
fn cut(text: &mut String, len_max: usize) {
    if text.len() > len_max {
        text.truncate(text.floor_char_boundary(len_max));
        text.push_str(" [cut]\n");
    }
}

/// Runs file work on a blocking thread; its errors say what was being done.
async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T> {
    let result = tokio::task::spawn_blocking(work).await;
    result
        .unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
        .map_err(|source| ControlError::Io { doing: doing.to_owned(), source })
}

/// A lock that is only ever held for plain moves of values, so a poisoned one is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
