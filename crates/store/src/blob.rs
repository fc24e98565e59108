//! Immutable bytes named by their digest.

use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use oci::{Algorithm, Digest};

use crate::Result;

/// Immutable bytes named by their digest.
///
/// Methods are idempotent: storing what is there, or deleting what is not, succeeds.
/// This trait knows no repositories and no permissions; [`crate::Catalog`] does.
#[async_trait]
pub trait BlobStore: Send + Sync {
    /// The size of a blob in bytes, or `None` if the store does not hold it.
    async fn size(&self, digest: &Digest) -> Result<Option<u64>>;

    /// The size of a blob after a look at its bytes: that they are there, and as many as were
    /// stored. Ask this, and not [`Self::size`], before a blob is used again instead of being
    /// stored.
    ///
    /// One whose bytes are gone or damaged, which [`Self::verify`] and [`Self::open`] find out
    /// too, is from then on a blob that the store does not hold: whoever has it stores it
    /// again, and all that refers to it is whole again.
    async fn stat(&self, digest: &Digest) -> Result<Option<u64>>;

    /// Whether the store holds a blob whose bytes are those that its digest names. Reads all
    /// of them.
    async fn verify(&self, digest: &Digest) -> Result<bool>;

    /// Reads a blob from `offset` to its end. `NotFound` if the store does not hold it. The
    /// bytes are as many as were stored; whether they are the same is for the reader to check.
    async fn open(&self, digest: &Digest, offset: u64) -> Result<BlobReader>;

    /// Starts a new blob, hashed by `algorithm` as it is written. Its bytes stay invisible
    /// until [`Upload::commit`]; dropping the upload throws them away.
    async fn begin_upload(&self, algorithm: Algorithm) -> Result<Box<dyn Upload>>;

    /// Takes up the named upload where it stopped, or starts it. Unlike other uploads its
    /// bytes outlive this value and the process, until it is committed or discarded. The
    /// caller sees to it that there is one at a time of a name.
    async fn resume_upload(&self, name: &str) -> Result<Box<dyn NamedUpload>>;

    /// Throws a named upload away.
    async fn discard_upload(&self, name: &str) -> Result<()>;

    /// Removes the bytes of a blob that the catalog no longer lists; one that was stored
    /// again meanwhile stays. Only garbage collection calls this.
    async fn delete(&self, digest: &Digest) -> Result<()>;

    /// Makes room for noting what goes, if the store has none left. Before a deletion. Nothing
    /// new is stored from then on until there is space again.
    async fn make_room(&self) -> Result<()> {
        Ok(())
    }

    /// The opposite of [`Self::make_room`], after a deletion; without effect if there still is
    /// no space.
    async fn keep_room(&self) -> Result<()> {
        Ok(())
    }
}

/// An upload that survives its connection and the process.
#[async_trait]
pub trait NamedUpload: Send {
    /// Bytes taken so far.
    fn size(&self) -> u64;

    /// Appends bytes.
    async fn write(&mut self, chunk: Bytes) -> Result<()>;

    /// Tells of which kind the digest at the end will be. Known before the first byte, the
    /// upload is hashed while it is written; else it may have to be read again.
    async fn expect(&mut self, algorithm: Algorithm) -> Result<()>;

    /// Waits until all that was written would survive a restart.
    async fn sync(&mut self) -> Result<()>;

    /// Makes the blob durable and visible if it matches; else the upload stays as it is.
    async fn commit(&mut self, expected: &Digest) -> Result<Stored>;
}

/// One blob being written.
#[async_trait]
pub trait Upload: Send {
    /// Appends bytes. Returns when the store has taken them, so a slow disk slows the writer.
    async fn write(&mut self, chunk: Bytes) -> Result<()>;

    /// The bytes as a file that grows, if the store has such: what was written before the last
    /// chunk is in it, and it stays readable when the upload has become a blob.
    async fn file(&mut self) -> Result<Option<std::fs::File>> {
        Ok(None)
    }

    /// Makes the blob durable and visible, after checking it against `expected` if given.
    async fn commit(self: Box<Self>, expected: Option<&Digest>) -> Result<Stored>;
}

/// What a finished upload has become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub digest: Digest,
    pub size: u64,
}

/// An open blob: its bytes as async reader, or as a plain one for code that runs in
/// `spawn_blocking` (hashing, decompression, tar).
pub struct BlobReader {
    inner: Source,
    /// Bytes from here to the end.
    remaining: u64,
}

enum Source {
    File(std::fs::File),
    Memory(std::io::Cursor<Bytes>),
    Stream(Pin<Box<dyn tokio::io::AsyncRead + Send>>),
}

impl BlobReader {
    pub fn from_file(file: std::fs::File, remaining: u64) -> Self {
        Self { inner: Source::File(file), remaining }
    }

    pub fn from_bytes(bytes: Bytes) -> Self {
        let remaining = bytes.len() as u64;
        Self { inner: Source::Memory(std::io::Cursor::new(bytes)), remaining }
    }

    /// For stores whose bytes come over a network.
    pub fn from_stream(stream: Pin<Box<dyn tokio::io::AsyncRead + Send>>, remaining: u64) -> Self {
        Self { inner: Source::Stream(stream), remaining }
    }

    /// Bytes from the offset it was opened at to the blob's end.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// The blob as a file, positioned at its offset, if it is one: for callers that know a
    /// faster way to read files.
    pub fn into_file(self) -> std::result::Result<std::fs::File, Self> {
        match self.inner {
            Source::File(file) => Ok(file),
            inner => Err(Self { inner, remaining: self.remaining }),
        }
    }

    /// For async code: copying to a socket, for one.
    pub fn into_async(self) -> Pin<Box<dyn tokio::io::AsyncRead + Send>> {
        match self.inner {
            Source::File(file) => Box::pin(tokio::fs::File::from_std(file)),
            Source::Memory(bytes) => Box::pin(bytes),
            Source::Stream(stream) => stream,
        }
    }

    /// For blocking code. Must be called inside a tokio runtime; the reader is then used
    /// from a blocking thread.
    pub fn into_blocking(self) -> Box<dyn std::io::Read + Send> {
        match self.inner {
            Source::File(file) => Box::new(file),
            Source::Memory(bytes) => Box::new(bytes),
            Source::Stream(stream) => Box::new(tokio_util::io::SyncIoBridge::new(stream)),
        }
    }
}

/// Lets blocking code (tar, compression) write a blob: [`std::io::Write`] over an upload.
///
/// Made in async code, used and finished in `spawn_blocking`.
pub struct BlobWriter {
    upload: Box<dyn Upload>,
    runtime: tokio::runtime::Handle,
    buffer: bytes::BytesMut,
}

/// Chunks handed to the store by a [`BlobWriter`].
const CHUNK: usize = 1 << 20;

impl BlobWriter {
    /// Must be called inside a tokio runtime.
    pub fn new(upload: Box<dyn Upload>) -> Self {
        Self {
            upload,
            runtime: tokio::runtime::Handle::current(),
            buffer: bytes::BytesMut::with_capacity(CHUNK),
        }
    }

    /// Makes the blob durable and visible. Call from a blocking thread.
    pub fn commit(mut self, expected: Option<&Digest>) -> Result<Stored> {
        let rest = self.buffer.split().freeze();
        self.runtime.block_on(async {
            if !rest.is_empty() {
                self.upload.write(rest).await?;
            }
            self.upload.commit(expected).await
        })
    }

    fn send(&mut self) -> std::io::Result<()> {
        let chunk = self.buffer.split().freeze();
        self.buffer.reserve(CHUNK);
        self.runtime.block_on(self.upload.write(chunk)).map_err(std::io::Error::other)
    }
}

impl std::io::Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let taken = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == CHUNK {
            self.send()?;
        }
        Ok(taken)
    }

    /// Nothing: bytes are durable only after [`Self::commit`].
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
