//! Bodies in both directions: streams with bounds, in pieces large enough to be cheap.

use std::fs::File;
use std::future::Future;
use std::io::{self, IoSliceMut, Read, Seek};
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use rustix::fs::{Advice, fadvise};
use rustix::io::{ReadWriteFlags, preadv2};
use store::{BlobReader, Upload, UploadSession};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::{ApiError, Code};
use crate::router::Limits;

/// What the store is handed at once: hashing and writing small pieces costs more.
const WRITE_CHUNK: usize = 512 << 10;
/// What is read from the store at once. Fits the second-level cache.
const READ_CHUNK: usize = 256 << 10;
/// Bytes received wait this long for more before the store is handed them: a client that asks
/// how far it got is told of all that came.
const GATHER: Duration = Duration::from_millis(100);
/// A body that brought nothing for this long leaves its upload to another request.
const YIELD_AFTER: Duration = Duration::from_secs(1);
/// Read buffers kept for the next download.
const BUFFERS_MAX: usize = 16;

/// A request body that is received in large pieces, with bounds on its size, on how long it
/// may bring nothing, and on how slow it may be.
pub(crate) struct Incoming {
    body: Body,
    stall: Duration,
    pace: Pace,
    /// How many more bytes are acceptable.
    left: u64,
    buffer: BytesMut,
    /// For how long nothing has come.
    idle: Duration,
    /// Whether another request wants the upload that this body is for.
    wanted: Box<dyn Fn() -> bool + Send + Sync>,
    state: Flow,
}

/// What a short wait for a body brought.
enum Received {
    Bytes(Bytes),
    Nothing,
    End,
}

enum Flow {
    Open,
    Ended,
    /// Told after the bytes that came before it.
    Failed(BodyError),
}

/// How fast a body comes. Only time spent waiting for it counts, not that of the store.
struct Pace {
    window: Duration,
    rate_min: u64,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Judges whenever a window of waiting is over, then begins a new one.
    fn took(&mut self, bytes: u64, waited: Duration) -> Result<(), BodyError> {
        self.bytes += bytes;
        self.waited += waited;
        if self.waited < self.window {
            return Ok(());
        }
        let least = u128::from(self.rate_min) * self.waited.as_millis() / 1000;
        let enough = u128::from(self.bytes) >= least;
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        if enough { Ok(()) } else { Err(BodyError::Stalled) }
    }
}

/// Why a body ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyError {
    TooLarge,
    Stalled,
    /// Nothing came, and another request took the upload up.
    Superseded,
    Broken,
}

impl From<BodyError> for ApiError {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLarge => ApiError::new(Code::SizeInvalid, "body is larger than allowed")
                .status(StatusCode::PAYLOAD_TOO_LARGE),
            BodyError::Stalled => {
                ApiError::new(Code::BlobUploadInvalid, "body came too slowly or not at all")
                    .status(StatusCode::REQUEST_TIMEOUT)
            }
            BodyError::Superseded => {
                ApiError::new(Code::BlobUploadInvalid, "another request took up the upload")
                    .status(StatusCode::CONFLICT)
            }
            BodyError::Broken => {
                ApiError::new(Code::BlobUploadInvalid, "body ended before its announced end")
            }
        }
    }
}

impl Incoming {
    pub(crate) fn new(body: Body, size_max: u64, limits: &Limits) -> Self {
        let (stall, rate_min) = (limits.stall, limits.rate_min);
        Self {
            body,
            stall,
            pace: Pace { window: stall, rate_min, waited: Duration::ZERO, bytes: 0 },
            left: size_max,
            buffer: BytesMut::new(),
            idle: Duration::ZERO,
            wanted: Box::new(|| false),
            state: Flow::Open,
        }
    }

    /// Ends the body if it brings nothing while somebody wants its upload.
    pub(crate) fn yield_if(mut self, wanted: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.wanted = Box::new(wanted);
        self
    }

    /// The next piece, or `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        while matches!(self.state, Flow::Open) && self.buffer.len() < WRITE_CHUNK {
            match self.frame().await {
                Ok(Received::Bytes(bytes))
                    if self.buffer.is_empty() && bytes.len() >= WRITE_CHUNK / 2 =>
                {
                    return Ok(Some(bytes));
                }
                Ok(Received::Bytes(bytes)) => {
                    if self.buffer.capacity() == 0 {
                        self.buffer.reserve(WRITE_CHUNK);
                    }
                    self.buffer.extend_from_slice(&bytes);
                }
                Ok(Received::Nothing) if self.buffer.is_empty() => (),
                Ok(Received::Nothing) => break,
                Ok(Received::End) => self.state = Flow::Ended,
                Err(error) => self.state = Flow::Failed(error),
            }
        }
        match self.state {
            _ if !self.buffer.is_empty() => Ok(Some(self.buffer.split().freeze())),
            Flow::Failed(error) => Err(error),
            Flow::Open | Flow::Ended => Ok(None),
        }
    }

    /// The whole body, for small ones.
    pub(crate) async fn whole(&mut self) -> Result<Bytes, BodyError> {
        let announced = self.body.size_hint().exact().unwrap_or(0).min(self.left);
        let mut whole = BytesMut::with_capacity(usize::try_from(announced).unwrap_or(0));
        loop {
            match self.frame().await? {
                Received::Bytes(bytes) => whole.extend_from_slice(&bytes),
                Received::Nothing => (),
                Received::End => return Ok(whole.freeze()),
            }
        }
    }

    /// What comes within a short while.
    async fn frame(&mut self) -> Result<Received, BodyError> {
        loop {
            let start = Instant::now();
            let patience = GATHER.min(self.stall.saturating_sub(self.idle));
            let frame = tokio::time::timeout(patience, self.body.frame()).await;
            self.idle += start.elapsed();
            match frame {
                Err(_) if self.idle >= self.stall => return Err(BodyError::Stalled),
                Err(_) if self.idle >= YIELD_AFTER && (self.wanted)() => {
                    return Err(BodyError::Superseded);
                }
                Err(_) => return Ok(Received::Nothing),
                Ok(None) => return Ok(Received::End),
                Ok(Some(Err(_))) => return Err(BodyError::Broken),
                Ok(Some(Ok(frame))) => {
                    let Ok(bytes) = frame.into_data() else { continue };
                    let left = self.left.checked_sub(bytes.len() as u64);
                    self.left = left.ok_or(BodyError::TooLarge)?;
                    self.pace.took(bytes.len() as u64, std::mem::take(&mut self.idle))?;
                    return Ok(Received::Bytes(bytes));
                }
            }
        }
    }
}

/// What a handler leaves unread of a body.
pub(crate) struct Rest(Arc<Mutex<Unread>>);

struct Unread {
    body: Body,
    is_begun: bool,
    is_ended: bool,
}

/// Splits a body into the one that a handler reads and what that leaves.
pub(crate) fn with_rest(body: Body) -> (Body, Rest) {
    let is_ended = body.is_end_stream();
    let unread = Arc::new(Mutex::new(Unread { body, is_begun: false, is_ended }));
    (Body::new(Reader(Arc::clone(&unread))), Rest(unread))
}

impl Rest {
    /// Reads on within bounds and throws it away, so that a client in the middle of sending
    /// gets to see the answer instead of a reset connection. One that waits to be told to
    /// send (`Expect`) needs nothing.
    pub(crate) async fn drain(self, is_awaited: bool) {
        const SIZE_MAX: usize = 64 << 20;
        const TIME_MAX: Duration = Duration::from_secs(2);
        let mut reader = Reader(self.0);
        let is_needed = |unread: &Unread| !unread.is_ended && (unread.is_begun || !is_awaited);
        if !is_needed(&reader.unread()) {
            return;
        }
        let rest = async {
            let mut size = 0;
            while let Some(Ok(frame)) = reader.frame().await {
                size += frame.data_ref().map_or(0, Bytes::len);
                if size > SIZE_MAX {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(TIME_MAX, rest).await;
    }
}

/// Reads a body, of which others may read the rest.
struct Reader(Arc<Mutex<Unread>>);

impl Reader {
    fn unread(&self) -> MutexGuard<'_, Unread> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl http_body::Body for Reader {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut unread = self.unread();
        unread.is_begun = true;
        let polled = Pin::new(&mut unread.body).poll_frame(cx);
        unread.is_ended |= matches!(polled, Poll::Ready(None | Some(Err(_))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.unread().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.unread().body.size_hint()
    }
}

/// Where the bytes of a blob go: a resumable session, or an upload of one request.
#[async_trait]
pub(crate) trait Sink: Send {
    async fn put(&mut self, chunk: Bytes) -> store::Result<()>;

    /// After a body that broke off: what came before stays if the sink can be taken up.
    async fn keep(&mut self) -> store::Result<()>;
}

#[async_trait]
impl Sink for UploadSession {
    async fn put(&mut self, chunk: Bytes) -> store::Result<()> {
        self.write(chunk).await
    }

    async fn keep(&mut self) -> store::Result<()> {
        self.sync().await
    }
}

#[async_trait]
impl Sink for Box<dyn Upload> {
    async fn put(&mut self, chunk: Bytes) -> store::Result<()> {
        self.as_mut().write(chunk).await
    }

    async fn keep(&mut self) -> store::Result<()> {
        Ok(())
    }
}

/// Writes a body to a sink. Receiving goes on while the store hashes and writes, two pieces
/// ahead. What came before an error is written all the same.
pub(crate) async fn receive(incoming: &mut Incoming, sink: &mut impl Sink) -> Result<(), ApiError> {
    let (sender, mut receiver) = mpsc::channel(2);
    let read = async move {
        while let Some(chunk) = incoming.next().await? {
            if sender.send(chunk).await.is_err() {
                break; // The writer failed and says why.
            }
        }
        Ok::<_, BodyError>(())
    };
    let write = async move {
        while let Some(chunk) = receiver.recv().await {
            sink.put(chunk).await?;
        }
        Ok(())
    };
    let (read, written) = tokio::join!(read, write);
    written.map_err(|error| ApiError::from_store(error, Code::BlobUploadUnknown))?;
    Ok(read?)
}

/// Read buffers between downloads: fresh memory for every piece would cost page faults.
#[derive(Default)]
pub(crate) struct Buffers(Mutex<Vec<Box<[u8]>>>);

impl Buffers {
    fn take(&self) -> Box<[u8]> {
        let kept = self.0.lock().ok().and_then(|mut kept| kept.pop());
        kept.unwrap_or_else(|| vec![0; READ_CHUNK].into_boxed_slice())
    }

    fn give(&self, buffer: Box<[u8]>) {
        if let Ok(mut kept) = self.0.lock()
            && kept.len() < BUFFERS_MAX
        {
            kept.push(buffer);
        }
    }
}

/// Bytes on their way to a socket, whose buffer returns to the pool when they are sent.
struct Lent {
    buffer: Box<[u8]>,
    len: usize,
    home: Arc<Buffers>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.home.give(std::mem::take(&mut self.buffer));
    }
}

/// Where the bytes of a download come from.
enum Source {
    /// A file is read at once as long as the kernel has its pages, which saves two changes
    /// of thread per piece; only what must come from the disk is left to another thread.
    File {
        file: File,
        offset: u64,
    },
    Other(Box<dyn Read + Send>),
}

impl Source {
    fn new(blob: BlobReader) -> io::Result<Self> {
        match blob.into_file() {
            Ok(mut file) => {
                let offset = file.stream_position()?;
                // Only advice: reads are right without it.
                let _ = fadvise(&file, offset, None, Advice::Sequential);
                Ok(Self::File { file, offset })
            }
            Err(blob) => Ok(Self::Other(blob.into_blocking())),
        }
    }

    /// Reads what is there without waiting; 0 if nothing is, or not in this way.
    fn read_now(&mut self, buffer: &mut [u8]) -> usize {
        let Self::File { file, offset } = self else { return 0 };
        let mut buffers = [IoSliceMut::new(buffer)];
        let read = preadv2(file, &mut buffers, *offset, ReadWriteFlags::NOWAIT).unwrap_or(0);
        *offset += read as u64;
        read
    }

    /// Fills the buffer. Blocks.
    fn read_all(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Self::File { file, offset } => {
                file.read_exact_at(buffer, *offset)?;
                *offset += buffer.len() as u64;
                Ok(())
            }
            Self::Other(source) => source.read_exact(buffer),
        }
    }
}

/// A part of a blob as a response body.
pub(crate) struct BlobBody {
    reading: Reading,
    /// Bytes not handed out yet.
    left: u64,
    buffers: Arc<Buffers>,
}

enum Reading {
    Idle(Source),
    Busy(JoinHandle<io::Result<(Source, Bytes)>>),
    Over,
}

impl BlobBody {
    /// The next `len` bytes of `blob`.
    pub(crate) fn new(blob: BlobReader, len: u64, buffers: Arc<Buffers>) -> io::Result<Self> {
        Ok(Self { reading: Reading::Idle(Source::new(blob)?), left: len, buffers })
    }

    /// The next piece, or the worker that waits for the disk.
    fn read_on(&self, mut source: Source) -> Result<(Source, Bytes), Reading> {
        let len = usize::try_from(self.left).unwrap_or(READ_CHUNK).min(READ_CHUNK);
        let home = Arc::clone(&self.buffers);
        let mut lent = Lent { buffer: home.take(), len, home };
        lent.len = source.read_now(&mut lent.buffer[..len]);
        if lent.len > 0 {
            return Ok((source, Bytes::from_owner(lent)));
        }
        Err(Reading::Busy(tokio::task::spawn_blocking(move || {
            lent.len = len;
            source.read_all(&mut lent.buffer[..len])?;
            Ok((source, Bytes::from_owner(lent)))
        })))
    }
}

impl http_body::Body for BlobBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let read = loop {
            match std::mem::replace(&mut self.reading, Reading::Over) {
                Reading::Idle(source) => match self.read_on(source) {
                    Ok(read) => break read,
                    Err(busy) => self.reading = busy,
                },
                Reading::Busy(mut worker) => match Pin::new(&mut worker).poll(cx) {
                    Poll::Pending => {
                        self.reading = Reading::Busy(worker);
                        return Poll::Pending;
                    }
                    Poll::Ready(read) => match read.map_err(io::Error::other).flatten() {
                        Ok(read) => break read,
                        // The connection breaks: the client must not take this for the end.
                        Err(error) => {
                            tracing::error!(%error, "a blob could not be read to its end");
                            return Poll::Ready(Some(Err(error)));
                        }
                    },
                },
                Reading::Over => return Poll::Ready(None),
            }
        };
        let (source, bytes) = read;
        self.reading = Reading::Idle(source);
        self.left -= bytes.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
