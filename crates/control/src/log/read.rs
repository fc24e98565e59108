//! Reading a log: from the files, at the reader's own pace.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::event::{Event, EventKind};
use super::file::{LINE_LEN_MAX, Part, path};
use super::packed::{Start, unpack};
use super::{LogKey, Logs, Progress, blocking};
use crate::{ControlError, Result};

/// Read from a file at once.
const CHUNK: usize = 64 << 10;

/// Bytes of a log's text, in order.
pub struct TextReader {
    bytes: ByteReader,
}

impl TextReader {
    /// Waits for more only until `stopping`; what is there by then is still read.
    #[must_use]
    pub fn until(mut self, stopping: CancellationToken) -> Self {
        self.bytes.until(stopping);
        self
    }

    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        self.bytes.next().await
    }
}

/// Records of a log, in order.
pub struct EventReader {
    bytes: ByteReader,
    rest: BytesMut,
    after: u64,
}

impl EventReader {
    /// Waits for more only until `stopping`; what is there by then is still read.
    #[must_use]
    pub fn until(mut self, stopping: CancellationToken) -> Self {
        self.bytes.until(stopping);
        self
    }

    /// The next records, at least one; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<Event>>> {
        while let Some(chunk) = self.bytes.next().await? {
            self.rest.extend_from_slice(&chunk);
            let events = self.take_lines()?;
            if !events.is_empty() {
                return Ok(Some(events));
            }
        }
        Ok(None)
    }

    fn take_lines(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line = self.rest.split_to(end + 1);
            let event: Event =
                serde_json::from_slice(&line).map_err(|error| damaged(error.into()))?;
            if event.id > self.after {
                events.push(event);
            }
        }
        match self.rest.len() as u64 > LINE_LEN_MAX {
            true => Err(damaged(io::Error::other("a line is too long"))),
            false => Ok(events),
        }
    }

    /// Whether `event` is the last one of its log.
    pub fn is_last(event: &Event) -> bool {
        matches!(event.kind, EventKind::Finished { .. })
    }
}

impl Part {
    fn len(self, progress: &Progress) -> u64 {
        match self {
            Self::Events => progress.events,
            Self::Text => progress.text,
        }
    }
}

fn damaged(source: io::Error) -> ControlError {
    ControlError::Io { doing: "read a log".into(), source }
}

pub(super) async fn text(
    logs: &Logs,
    key: &LogKey,
    offset: u64,
    follow: bool,
) -> Result<TextReader> {
    Ok(TextReader { bytes: open(logs, key, Part::Text, Start::Offset(offset), follow).await? })
}

pub(super) async fn events(
    logs: &Logs,
    key: &LogKey,
    after: u64,
    follow: bool,
) -> Result<EventReader> {
    let bytes = open(logs, key, Part::Events, Start::After(after), follow).await?;
    Ok(EventReader { bytes, rest: BytesMut::new(), after })
}

/// One file of a log: growing, or whole and compressed.
enum ByteReader {
    Growing {
        file: Arc<File>,
        part: Part,
        at: u64,
        follow: Follow,
        progress: watch::Receiver<Progress>,
    },
    Whole(mpsc::Receiver<io::Result<Bytes>>),
}

/// How long to wait for more of a log.
enum Follow {
    No,
    /// Until the log ends, or the token says that nobody may wait any more.
    Until(CancellationToken),
}

async fn open(
    logs: &Logs,
    key: &LogKey,
    part: Part,
    start: Start,
    follow: bool,
) -> Result<ByteReader> {
    let folder = logs.shared.folder.clone();
    if let Some(live) = logs.live(key) {
        let progress = live.progress.subscribe();
        let plain = path(&folder, key, part, false);
        let len = part.len(&progress.borrow());
        let open = move || missing_is_none(open_plain(&plain, start, len));
        if let Some((file, at)) = blocking("open a log", open).await? {
            let file = Arc::new(file);
            let follow = if follow { Follow::Until(CancellationToken::new()) } else { Follow::No };
            return Ok(ByteReader::Growing { file, part, at, follow, progress });
        }
        // It has ended this moment: then it is there compressed.
    }
    let compressed = path(&folder, key, part, true);
    match blocking("open a log", move || missing_is_none(File::open(compressed))).await? {
        Some(file) => Ok(ByteReader::Whole(send_chunks(move || unpack(file, start)))),
        None => whole_plain(&folder, key, part, start).await,
    }
}

/// A log that has ended but could not be compressed.
async fn whole_plain(folder: &Path, key: &LogKey, part: Part, start: Start) -> Result<ByteReader> {
    let plain = path(folder, key, part, false);
    let open = move || missing_is_none(open_plain(&plain, start, u64::MAX));
    let Some((mut file, at)) = blocking("open a log", open).await? else {
        return Err(ControlError::NotFound { what: format!("the log of run `{}`", key.run) });
    };
    Ok(ByteReader::Whole(send_chunks(move || {
        file.seek(SeekFrom::Start(at))?;
        Ok(file)
    })))
}

/// A file that is not compressed, with where to begin in the first `len` bytes of it.
fn open_plain(path: &Path, start: Start, len: u64) -> io::Result<(File, u64)> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len().min(len);
    // What does not exist yet is waited for.
    let at = match start {
        Start::Offset(offset) => offset,
        Start::After(_) => start.offset(&mut file, len)?,
    };
    Ok((file, at))
}

fn missing_is_none<T>(opened: io::Result<T>) -> io::Result<Option<T>> {
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads on a blocking thread, a few chunks ahead of who receives them.
fn send_chunks<R: Read>(
    open: impl FnOnce() -> io::Result<R> + Send + 'static,
) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        let send = || -> io::Result<()> {
            let mut reader = open()?;
            loop {
                let mut chunk = Vec::with_capacity(CHUNK);
                let read = reader.by_ref().take(CHUNK as u64).read_to_end(&mut chunk)?;
                // An error: nobody listens any more.
                if read == 0 || sender.blocking_send(Ok(chunk.into())).is_err() {
                    return Ok(());
                }
            }
        };
        if let Err(error) = send() {
            let _ = sender.blocking_send(Err(error));
        }
    });
    receiver
}

impl ByteReader {
    fn until(&mut self, stopping: CancellationToken) {
        if let Self::Growing { follow: Follow::Until(token), .. } = self {
            *token = stopping;
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        match self {
            Self::Whole(receiver) => receiver.recv().await.transpose().map_err(damaged),
            Self::Growing { file, part, at, follow, progress } => {
                let Some(available) = wait_for(progress, *part, *at, follow).await else {
                    return Ok(None);
                };
                let len = (available - *at).min(CHUNK as u64) as usize;
                let (file, from) = (Arc::clone(file), *at);
                let chunk = blocking("read a log", move || {
                    let mut chunk = vec![0; len];
                    file.read_exact_at(&mut chunk, from)?;
                    Ok(chunk)
                })
                .await?;
                *at += len as u64;
                Ok(Some(chunk.into()))
            }
        }
    }
}

/// The length of the file once it is beyond `at`; `None` when it never will be.
async fn wait_for(
    progress: &mut watch::Receiver<Progress>,
    part: Part,
    at: u64,
    follow: &Follow,
) -> Option<u64> {
    let len = |progress: &Progress| part.len(progress);
    loop {
        let now = *progress.borrow_and_update();
        if len(&now) > at {
            return Some(len(&now));
        }
        let may_grow = match follow {
            Follow::Until(stopping) if !now.done => tokio::select! {
                changed = progress.changed() => changed.is_ok(),
                () = stopping.cancelled() => false,
            },
            _ => false,
        };
        if !may_grow {
            // Without a writer no more will come; what came last still counts.
            let last = *progress.borrow();
            return Some(len(&last)).filter(|len| *len > at);
        }
    }
}
