//! Blobs in memory, for tests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use oci::{Algorithm, Digest};

use crate::blob::{BlobReader, BlobStore, NamedUpload, Stored, Upload};
use crate::rows::BlobRows;
use crate::{Result, StoreError};

/// A store that forgets everything with its last clone.
#[derive(Clone)]
pub struct MemoryStore {
    rows: BlobRows,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    blobs: HashMap<Digest, Bytes>,
    uploads: HashMap<String, BytesMut>,
}

impl MemoryStore {
    pub async fn open(db: db::Db) -> Result<Self> {
        Ok(Self { rows: BlobRows::open(db).await?, shared: Arc::default() })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Shared) -> T) -> T {
        work(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Breaks a blob as a bad disk would: it has these bytes from now on, or none.
    pub fn damage(&self, digest: &Digest, bytes: Option<Bytes>) {
        self.with(|shared| match bytes {
            Some(bytes) => shared.blobs.insert(digest.clone(), bytes),
            None => shared.blobs.remove(digest),
        });
    }

    /// The bytes of a blob that is listed and that `is_whole` accepts for its size; one that
    /// it does not counts as lost from then on.
    async fn look_at(
        &self,
        digest: &Digest,
        is_whole: impl Fn(&Bytes, u64) -> bool + Send,
    ) -> Result<Option<Bytes>> {
        let _exclusive = self.rows.lock(digest).await;
        let Some(size) = self.rows.size(digest).await? else { return Ok(None) };
        let bytes = self.with(|shared| shared.blobs.get(digest).cloned());
        let whole = bytes.filter(|bytes| is_whole(bytes, size));
        if whole.is_none() {
            self.rows.lose(digest).await?;
            self.damage(digest, None);
        }
        Ok(whole)
    }

    async fn publish(
        &self,
        bytes: Bytes,
        algorithm: Algorithm,
        expected: Option<&Digest>,
    ) -> Result<Stored> {
        let digest = Digest::with(algorithm, &bytes);
        if let Some(expected) = expected
            && *expected != digest
        {
            return Err(StoreError::DigestMismatch { expected: expected.clone(), actual: digest });
        }
        let size = bytes.len() as u64;
        let _exclusive = self.rows.lock(&digest).await;
        self.with(|shared| shared.blobs.insert(digest.clone(), bytes));
        self.rows.insert(&digest, size).await?;
        Ok(Stored { digest, size })
    }
}

#[async_trait]
impl BlobStore for MemoryStore {
    async fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        self.rows.size(digest).await
    }

    async fn stat(&self, digest: &Digest) -> Result<Option<u64>> {
        let whole = self.look_at(digest, |bytes, size| bytes.len() as u64 == size).await?;
        Ok(whole.map(|bytes| bytes.len() as u64))
    }

    async fn verify(&self, digest: &Digest) -> Result<bool> {
        let is_same = |bytes: &Bytes, _| Digest::with(digest.algorithm(), bytes) == *digest;
        Ok(self.look_at(digest, is_same).await?.is_some())
    }

    async fn open(&self, digest: &Digest, offset: u64) -> Result<BlobReader> {
        let bytes = self.look_at(digest, |bytes, size| bytes.len() as u64 == size).await?;
        let bytes = bytes.ok_or_else(|| StoreError::NotFound { what: format!("blob {digest}") })?;
        // An offset past the end reads nothing, as of a file.
        let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        Ok(BlobReader::from_bytes(bytes.slice(offset..)))
    }

    async fn begin_upload(&self, algorithm: Algorithm) -> Result<Box<dyn Upload>> {
        let store = self.clone();
        Ok(Box::new(MemoryUpload { store, algorithm, bytes: BytesMut::new() }))
    }

    async fn resume_upload(&self, name: &str) -> Result<Box<dyn NamedUpload>> {
        let bytes = self.with(|shared| shared.uploads.entry(name.to_owned()).or_default().clone());
        let (store, name) = (self.clone(), name.to_owned());
        Ok(Box::new(MemoryNamedUpload { store, name, bytes }))
    }

    async fn discard_upload(&self, name: &str) -> Result<()> {
        self.with(|shared| shared.uploads.remove(name));
        Ok(())
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        let _exclusive = self.rows.lock(digest).await;
        if self.rows.is_listed(digest).await? {
            return Ok(());
        }
        self.rows.evict(digest);
        self.with(|shared| shared.blobs.remove(digest));
        self.rows.forget(digest).await
    }
}

struct MemoryUpload {
    store: MemoryStore,
    algorithm: Algorithm,
    bytes: BytesMut,
}

#[async_trait]
impl Upload for MemoryUpload {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        self.bytes.extend_from_slice(&chunk);
        Ok(())
    }

    async fn commit(self: Box<Self>, expected: Option<&Digest>) -> Result<Stored> {
        let algorithm = expected.map_or(self.algorithm, Digest::algorithm);
        self.store.publish(self.bytes.freeze(), algorithm, expected).await
    }
}

struct MemoryNamedUpload {
    store: MemoryStore,
    name: String,
    bytes: BytesMut,
}

#[async_trait]
impl NamedUpload for MemoryNamedUpload {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        self.bytes.extend_from_slice(&chunk);
        Ok(())
    }

    async fn expect(&mut self, _algorithm: Algorithm) -> Result<()> {
        Ok(()) // Hashed at the end.
    }

    async fn sync(&mut self) -> Result<()> {
        self.store.with(|shared| shared.uploads.insert(self.name.clone(), self.bytes.clone()));
        Ok(())
    }

    async fn commit(&mut self, expected: &Digest) -> Result<Stored> {
        let bytes = self.bytes.clone().freeze();
        let stored = self.store.publish(bytes, expected.algorithm(), Some(expected)).await?;
        self.store.discard_upload(&self.name).await?;
        Ok(stored)
    }
}
