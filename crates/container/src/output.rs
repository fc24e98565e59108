//! Where the output of a container goes.

use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::{Instant, timeout_at};

/// The most that is handed over at once.
const PIECE_SIZE_MAX: usize = 64 << 10;

/// How long a line without its end is held back.
const PARTIAL_LINE_WAIT: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Receives output as it comes. A slow sink slows the process, nothing is dropped.
#[async_trait]
pub trait OutputSink: Send + Sync {
    /// A piece of output: whole lines where possible, else what is there after a moment
    /// (a prompt), at most 64 KiB at once. Not necessarily UTF-8.
    async fn write(&self, stream: Stream, bytes: Bytes);

    /// Called once, when the container's process has been executed, and before any of its output
    /// is handed over; never if the program could not be executed.
    ///
    /// Another runtime is asked for it: then this is called when it first says that the container
    /// runs, which may be after the first output, or at the end of a process that ended before.
    /// Such a runtime may say so a moment before it executes, and fail then.
    async fn started(&self) {}
}

/// Hands everything from `pipe` to `sink`, until the last writer has closed it.
pub(crate) async fn forward(
    mut pipe: impl AsyncRead + Unpin,
    stream: Stream,
    sink: &dyn OutputSink,
) {
    let mut held = BytesMut::new();
    let mut flush_at: Option<Instant> = None;
    loop {
        held.reserve(PIECE_SIZE_MAX - held.len());
        let mut bounded = (&mut pipe).take((PIECE_SIZE_MAX - held.len()) as u64);
        let read = bounded.read_buf(&mut held);
        let read = match flush_at {
            None => read.await,
            Some(moment) => match timeout_at(moment, read).await {
                Ok(read) => read,
                Err(_elapsed) => {
                    sink.write(stream, held.split().freeze()).await;
                    flush_at = None;
                    continue;
                }
            },
        };
        if matches!(read, Ok(0) | Err(_)) {
            break;
        }
        let lines = held.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let ready = if held.len() == PIECE_SIZE_MAX && lines == 0 { held.len() } else { lines };
        if ready > 0 {
            sink.write(stream, held.split_to(ready).freeze()).await;
            flush_at = None;
        }
        if !held.is_empty() && flush_at.is_none() {
            flush_at = Some(Instant::now() + PARTIAL_LINE_WAIT);
        }
    }
    if !held.is_empty() {
        sink.write(stream, held.freeze()).await;
    }
}
