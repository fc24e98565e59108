//! The archive on its way: packed on one thread, sent on another, a bounded queue between.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use flate2::Compression;
use futures_util::stream;
use reqwest::{Body, Method, header};
use tokio::sync::mpsc;

use super::Source;
use super::layout::Layout;
use super::pack::{PackSummary, pack};
use crate::connection::Connection;
use crate::error::{Error, Result, could_not};

const CHUNK_SIZE: usize = 256 << 10;
/// Chunks waiting to be sent: enough to keep both sides busy.
const CHUNKS_MAX: usize = 8;

/// An upload that is done.
pub(crate) struct Upload {
    pub(crate) relative_path: String,
    pub(crate) summary: PackSummary,
}

/// What an upload is made of.
pub(crate) enum Archive {
    Folder(Source),
    Layout(Layout),
}

impl Archive {
    fn pack(&self, compression: Compression, out: impl Write) -> Result<PackSummary> {
        match self {
            Self::Folder(source) => pack(source, compression, out),
            Self::Layout(layout) => layout.pack(out),
        }
    }
}

/// Sends a context; `sent` counts bytes as they leave.
pub(crate) async fn upload(
    connection: &Connection,
    archive: Archive,
    sent: Arc<AtomicU64>,
) -> Result<Upload> {
    let route = connection.route(&["listBuildSourceUploadUrl"]);
    let place: api::SourceUpload = connection.post(route, &serde_json::json!({})).await?;
    // On this machine the bytes only change hands.
    let compression = if connection.is_local() { Compression::none() } else { Compression::fast() };
    let (sender, chunks) = mpsc::channel(CHUNKS_MAX);
    let packing = tokio::task::spawn_blocking(move || {
        let mut out = Chunks { sender, pending: Vec::with_capacity(CHUNK_SIZE) };
        let packed = archive.pack(compression, &mut out);
        // An archive that is not whole must not look so: the request ends in an error.
        let ended = match &packed {
            Ok(_) => out.flush(),
            Err(_) => {
                out.sender.blocking_send(Err(io::ErrorKind::Interrupted.into())).map_err(|_| gone())
            }
        };
        packed.and_then(|summary| ended.map(|()| summary).map_err(could_not("send the context")))
    });
    let url = connection.resolve(&place.upload_url)?;
    let request = connection
        .request(Method::PUT, url)
        .header(header::CONTENT_TYPE, "application/gzip")
        // What the managed service's storage asks of every upload.
        .header("x-ms-blob-type", "BlockBlob")
        .body(body(chunks, sent));
    let answered = connection.stream(request).await;
    let packed = packing.await.map_err(could_not("pack the context"))?;
    match (packed, answered) {
        // A refusal explains why nobody took the rest of the archive.
        (Err(_), Err(refused)) if refused.kind() != crate::ErrorKind::Unreachable => Err(refused),
        (Err(error), Err(unreachable)) => Err(worse(error, unreachable)),
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
        (Ok(summary), Ok(_)) => Ok(Upload { relative_path: place.relative_path, summary }),
    }
}

/// When both sides failed: packing, if it is the cause, else the connection.
fn worse(packing: Error, connection: Error) -> Error {
    match packing.to_string().contains(GONE) {
        true => connection,
        false => packing,
    }
}

fn body(chunks: mpsc::Receiver<io::Result<Bytes>>, sent: Arc<AtomicU64>) -> Body {
    Body::wrap_stream(stream::unfold((chunks, sent), async |(mut chunks, sent)| {
        let chunk = chunks.recv().await?;
        let size = chunk.as_ref().map_or(0, Bytes::len);
        sent.fetch_add(size as u64, Ordering::Relaxed);
        Some((chunk, (chunks, sent)))
    }))
}

const GONE: &str = "the server takes no more of it";

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, GONE)
}

/// A writer whose bytes go to the sender in chunks. Waits while the queue is full.
struct Chunks {
    sender: mpsc::Sender<io::Result<Bytes>>,
    pending: Vec<u8>,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= CHUNK_SIZE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.pending, Vec::with_capacity(CHUNK_SIZE));
        self.sender.blocking_send(Ok(chunk.into())).map_err(|_| gone())
    }
}
