//! Blobs on their way from an upstream, given to clients while they are stored.
//!
//! A *flight* brings one blob, once for all who want it, and goes on when they leave. The bytes
//! go into an upload, and clients read them from its file at their own pace: as far as they are
//! written, and the last ones only when all of them were found to be what the digest says. A
//! client of a flight that fails has its connection broken, and no client gets a blob to its end
//! that is not right.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, OnceLock};

use axum::body::Body;
use bytes::Bytes;
use oci::{Digest, RegistryName, RepositoryName};
use remote::{RemoteError, SizeRule};
use store::{ManifestRef, StoreError};
use tokio::sync::watch;

use super::{PullThrough, Source, lock};

/// Read from the file at once.
const READ_CHUNK: u64 = 256 << 10;
/// Repositories looked at for a blob that is here already.
const SIBLINGS_MAX: usize = 64;

type Key = (RegistryName, RepositoryName, Digest);

/// Those under way.
#[derive(Default)]
pub(super) struct Flights {
    by_blob: Mutex<HashMap<Key, Arc<Flight>>>,
}

pub(super) struct Flight {
    state: watch::Sender<State>,
    /// Where the bytes are while they come.
    file: OnceLock<File>,
}

#[derive(Clone)]
enum State {
    /// The upstream has not answered yet, or not said how long the blob is.
    Asked,
    /// So many bytes can be read of so many.
    Coming {
        readable: u64,
        size: u64,
    },
    /// It is in the store and in the repository.
    Stored,
    Failed(Arc<RemoteError>),
}

/// How a blob is to be had.
pub(crate) enum Coming {
    /// From the store.
    Stored,
    /// While it comes.
    Flight(Following),
}

/// A client's view of a flight.
pub(crate) struct Following {
    flight: Arc<Flight>,
    state: watch::Receiver<State>,
    pub(crate) size: u64,
}

impl PullThrough {
    /// The size of a blob that only the upstream has.
    pub(crate) async fn blob_size(
        &self,
        source: &Source,
        digest: &Digest,
    ) -> Result<Option<u64>, RemoteError> {
        self.check_limit(&source.host)?;
        let reference = source.reference(&ManifestRef::Digest(digest.clone()));
        let size = self.remote.blob_size(&reference, digest).await;
        self.learn(&source.host, &size);
        size
    }

    /// Has a blob fetched; answers when the upstream has.
    pub(crate) async fn fetch(
        self: &Arc<Self>,
        registry: &RegistryName,
        source: &Source,
        digest: &Digest,
    ) -> Result<Coming, Arc<RemoteError>> {
        let flight = self.join(registry, source, digest);
        let mut state = flight.state.subscribe();
        loop {
            let now = state.borrow_and_update().clone();
            match now {
                State::Coming { size, .. } if flight.file.get().is_some() => {
                    return Ok(Coming::Flight(Following { flight, state, size }));
                }
                State::Stored => return Ok(Coming::Stored),
                State::Failed(error) => return Err(error),
                State::Asked | State::Coming { .. } => (),
            }
            if state.changed().await.is_err() {
                let reason = "the download was interrupted".to_owned();
                let host = source.host.clone();
                return Err(Arc::new(RemoteError::Unreachable { host, reason }));
            }
        }
    }

    /// The flight that brings a blob; a new one if there is none.
    fn join(
        self: &Arc<Self>,
        registry: &RegistryName,
        source: &Source,
        digest: &Digest,
    ) -> Arc<Flight> {
        let key = (registry.clone(), source.local.clone(), digest.clone());
        let mut flights = lock(&self.flights.by_blob);
        if let Some(flight) = flights.get(&key) {
            return Arc::clone(flight);
        }
        let state = watch::Sender::new(State::Asked);
        let flight = Arc::new(Flight { state, file: OnceLock::new() });
        flights.insert(key.clone(), Arc::clone(&flight));
        drop(flights);
        let (kept, source, flown) = (Arc::clone(self), source.clone(), Arc::clone(&flight));
        tokio::spawn(async move {
            let landing = Landing { kept: Arc::clone(&kept), key: key.clone() };
            let (registry, _, digest) = &key;
            let ended = kept.fly(registry, &source, digest, &flown).await;
            // From here on others find it in the store, or try anew.
            drop(landing);
            flown.state.send_replace(match ended {
                Ok(()) => State::Stored,
                Err(error) => {
                    tracing::warn!(%digest, %error, "a blob was not fetched");
                    State::Failed(Arc::new(error))
                }
            });
        });
        flight
    }

    /// Brings a blob that nobody waits for.
    pub(super) async fn bring(
        &self,
        registry: &RegistryName,
        source: &Source,
        digest: &Digest,
    ) -> Result<(), RemoteError> {
        let flight = Flight { state: watch::Sender::new(State::Asked), file: OnceLock::new() };
        self.fly(registry, source, digest, &flight).await
    }

    async fn fly(
        &self,
        registry: &RegistryName,
        source: &Source,
        digest: &Digest,
        flight: &Flight,
    ) -> Result<(), RemoteError> {
        let _permit = self.fetches.acquire().await;
        if !self.share(registry, source, digest).await? {
            self.check_limit(&source.host)?;
            let downloaded = self.download(source, digest, flight).await;
            self.learn(&source.host, &downloaded);
            downloaded?;
        }
        Ok(self.catalog.link_blob(registry, &source.local, digest).await?)
    }

    /// Whether another repository of the same upstream has brought the blob already, and this
    /// one has it there too. Of other repositories it would have to be proven by its bytes.
    async fn share(
        &self,
        registry: &RegistryName,
        source: &Source,
        digest: &Digest,
    ) -> Result<bool, RemoteError> {
        let siblings = self.catalog.repositories_with_blob(registry, digest, SIBLINGS_MAX).await?;
        let is_sibling = |name: &RepositoryName| {
            self.source(name).is_some_and(|other| other.prefix == source.prefix)
        };
        if !siblings.iter().any(is_sibling) || !self.catalog.blobs().verify(digest).await? {
            return Ok(false);
        }
        self.blob_size(source, digest).await.map(|_| true)
    }

    async fn download(
        &self,
        source: &Source,
        digest: &Digest,
        flight: &Flight,
    ) -> Result<(), RemoteError> {
        let reference = source.reference(&ManifestRef::Digest(digest.clone()));
        let rule = SizeRule::AtMost(self.settings.blob_size_max);
        let mut blob = self.remote.open_blob(&reference, digest, rule).await?;
        let mut upload = self.catalog.blobs().begin_upload(digest.algorithm()).await?;
        if let (Some(file), Some(_)) = (upload.file().await?, blob.size()) {
            // It is set once.
            let _ = flight.file.set(file);
        }
        let size = blob.size();
        let tell = |readable| {
            if let Some(size) = size {
                flight.state.send_replace(State::Coming { readable, size });
            }
        };
        tell(0);
        while let Some(chunk) = blob.chunk().await? {
            // What came before is written when the store takes this.
            let written = blob.got() - chunk.len() as u64;
            upload.write(chunk).await?;
            tell(written);
        }
        match upload.commit(Some(digest)).await {
            Err(StoreError::DigestMismatch { expected, actual }) => {
                Err(RemoteError::WrongDigest { host: source.host.clone(), expected, actual })
            }
            stored => Ok(stored.map(drop)?),
        }
    }
}

/// Takes a flight off the list, whatever became of it.
struct Landing {
    kept: Arc<PullThrough>,
    key: Key,
}

impl Drop for Landing {
    fn drop(&mut self) {
        lock(&self.kept.flights.by_blob).remove(&self.key);
    }
}

impl Following {
    /// `len` bytes from `start`, as they come.
    pub(crate) fn body(self, start: u64, len: u64) -> Body {
        let end = start + len;
        Body::from_stream(futures_util::stream::try_unfold(
            (self, start),
            move |(mut at, position)| async move {
                if position == end {
                    return Ok::<_, io::Error>(None);
                }
                let readable = at.readable(position).await?;
                let count = READ_CHUNK.min(readable - position).min(end - position);
                let flight = Arc::clone(&at.flight);
                let read = move || flight.read(position, count);
                let chunk = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??;
                let next = position + chunk.len() as u64;
                Ok(Some((chunk, (at, next))))
            },
        ))
    }

    /// Waits until there is something to read at a position; up to where.
    async fn readable(&mut self, position: u64) -> io::Result<u64> {
        loop {
            let readable = match &*self.state.borrow_and_update() {
                State::Asked => 0,
                State::Coming { readable, .. } => *readable,
                State::Stored => self.size,
                State::Failed(error) => return Err(io::Error::other(error.to_string())),
            };
            if readable > position {
                return Ok(readable);
            }
            self.state.changed().await.map_err(io::Error::other)?;
        }
    }
}

impl Flight {
    fn read(&self, position: u64, count: u64) -> io::Result<Bytes> {
        let file = self.file.get().ok_or(io::ErrorKind::UnexpectedEof)?;
        // A chunk fits into memory.
        let mut buffer = vec![0; count as usize];
        file.read_exact_at(&mut buffer, position)?;
        Ok(buffer.into())
    }
}
