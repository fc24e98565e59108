//! A context on its way: written on one thread, sent on another, a bounded queue between.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::stream;
use reqwest::{Body, Method, RequestBuilder, Response, header};
use tokio::sync::mpsc;

use super::Source;
use super::files::upload_files;
use super::layout::Layout;
use crate::connection::Connection;
use crate::error::{Error, Result, could_not};

const CHUNK_SIZE: usize = 256 << 10;
/// Chunks waiting to be sent: enough to keep both sides busy.
const CHUNKS_MAX: usize = 8;
/// Paths that are told one by one.
const SKIPPED_MAX: usize = 100;

/// What a context holds, for the user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) files: u64,
    /// Bytes in files; of a file with several names, once.
    pub(crate) size: u64,
    /// Sockets, pipes and devices, which no context holds; the first [`SKIPPED_MAX`] of them.
    pub(crate) skipped: Vec<String>,
    /// How many more there are.
    pub(crate) skipped_more: u64,
}

impl Summary {
    pub(super) fn skip(&mut self, path: &Path) {
        match self.skipped.len() < SKIPPED_MAX {
            true => self.skipped.push(path.to_string_lossy().into_owned()),
            false => self.skipped_more += 1,
        }
    }
}

/// An upload that is done.
pub(crate) struct Upload {
    pub(crate) relative_path: String,
    pub(crate) summary: Summary,
    /// Files and their bytes that travelled, if not all did.
    pub(crate) travelled: Option<(u64, u64)>,
}

/// What an upload is made of.
pub(crate) enum Content {
    Folder(Source),
    Layout(Layout),
    /// An archive that is there already.
    File(PathBuf),
}

/// Sends a context; `sent` counts bytes as they leave. In `cache` is remembered what a server has.
pub(crate) async fn upload(
    connection: &Connection,
    content: Content,
    cache: Option<&Path>,
    sent: Arc<AtomicU64>,
) -> Result<Upload> {
    match content {
        Content::Folder(source) => upload_files(connection, &Arc::new(source), cache, &sent).await,
        Content::Layout(layout) => {
            upload_archive(connection, &sent, move |out| layout.pack(out)).await
        }
        Content::File(path) => {
            upload_archive(connection, &sent, move |out| copy_file(&path, out)).await
        }
    }
}

fn copy_file(path: &Path, out: &mut Chunks) -> Result<Summary> {
    let reading = || could_not(format!("read `{}`", path.display()));
    let mut file = File::open(path).map_err(reading())?;
    let size = io::copy(&mut file, out).map_err(reading())?;
    Ok(Summary { files: 1, size, ..Summary::default() })
}

/// Sends all of an archive, whatever the server has.
async fn upload_archive(
    connection: &Connection,
    sent: &Arc<AtomicU64>,
    write: impl FnOnce(&mut Chunks) -> Result<Summary> + Send + 'static,
) -> Result<Upload> {
    let route = connection.route(&["listBuildSourceUploadUrl"]);
    let place: api::SourceUpload = connection.post(route, &serde_json::json!({})).await?;
    let url = connection.resolve(&place.upload_url)?;
    let request = connection
        .request(Method::PUT, url)
        .header(header::CONTENT_TYPE, "application/gzip")
        // What the managed service's storage asks of every upload.
        .header("x-ms-blob-type", "BlockBlob");
    let (_, summary) = send(connection, request, sent, write).await?;
    Ok(Upload { relative_path: place.relative_path, summary, travelled: None })
}

/// Sends a body while it is written.
pub(super) async fn send<T: Send + 'static>(
    connection: &Connection,
    request: RequestBuilder,
    sent: &Arc<AtomicU64>,
    write: impl FnOnce(&mut Chunks) -> Result<T> + Send + 'static,
) -> Result<(Response, T)> {
    let (sender, chunks) = mpsc::channel(CHUNKS_MAX);
    let writing = tokio::task::spawn_blocking(move || {
        let mut out = Chunks { sender, pending: Vec::with_capacity(CHUNK_SIZE) };
        let written = write(&mut out);
        // A body that is not whole must not look so: the request ends in an error.
        let ended = match &written {
            Ok(_) => out.flush(),
            Err(_) => {
                out.sender.blocking_send(Err(io::ErrorKind::Interrupted.into())).map_err(|_| gone())
            }
        };
        written.and_then(|value| ended.map(|()| value).map_err(could_not("send the context")))
    });
    let answered = connection.stream(request.body(body(chunks, Arc::clone(sent)))).await;
    let written = writing.await.map_err(could_not("pack the context"))?;
    match (written, answered) {
        // A refusal explains why nobody took the rest of the body.
        (Err(_), Err(refused)) if refused.kind() != crate::ErrorKind::Unreachable => Err(refused),
        (Err(error), Err(unreachable)) => Err(worse(error, unreachable)),
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
        (Ok(value), Ok(response)) => Ok((response, value)),
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
pub(super) struct Chunks {
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
