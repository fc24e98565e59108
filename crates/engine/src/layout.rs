//! An image that comes along with a build: the blobs of an OCI layout, in an archive, go
//! straight into the store (image-spec, *OCI Image Layout Specification*).
//!
//! The archive is untrusted. A blob is stored only if its bytes are those that its name says,
//! and the image may use none but those that the archive had.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::time::Duration;

use builder::{ContextLimits, TarEntry, TarKind, TarReader};
use oci::{Algorithm, Digest, Hasher};
use store::{BlobWriter, Catalog, StoreError, Stored};
use tokio_util::sync::CancellationToken;

use crate::unpack::{Counted, UnpackError, Unpacked, decompress};

/// How long the blobs are kept after a build used them: longer than a build or an import can
/// last, and the next build of the day need not store them again.
pub(crate) const KEEP: Duration = Duration::from_secs(24 * 60 * 60);

/// Owner of the leases on them.
const LEASE_OWNER: &str = "layouts";

/// Why a layout was refused. `Display` is the user's sentence.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    #[error(transparent)]
    Archive(#[from] UnpackError),
    #[error("`{path}` has no place in the blobs of an OCI layout")]
    NoBlob { path: String },
    #[error("blob {expected} of the OCI layout is damaged: its bytes are {actual}")]
    WrongDigest { expected: Digest, actual: Digest },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Stores the blobs of a layout, and tells which they are. Blocking, in a thread of a runtime.
pub fn store_layout(
    archive: impl Read + Send,
    catalog: &Catalog,
    limits: ContextLimits,
    cancel: &CancellationToken,
) -> Result<(BTreeSet<Digest>, Unpacked), LayoutError> {
    let mut blobs = BTreeSet::new();
    let unpacked = read_archive(archive, limits, cancel, |entry, content| {
        if matches!(entry.kind, TarKind::Directory | TarKind::Other) {
            return Ok(());
        }
        let path = String::from_utf8_lossy(&entry.path);
        let Some(digest) = blob_name(&path).filter(|_| entry.kind == TarKind::File) else {
            return Err(LayoutError::NoBlob { path: path.into_owned() });
        };
        store_blob(content, entry.size, Some(&digest), catalog, LEASE_OWNER)?;
        blobs.insert(digest);
        Ok(())
    })?;
    Ok((blobs, unpacked))
}

/// The digest that a path says: `blobs/ALGORITHM/HEX`.
pub(crate) fn blob_name(path: &str) -> Option<Digest> {
    let (algorithm, hex) = path.strip_prefix("blobs/")?.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// Gives `each` the entries of an archive, and the bytes of those that are files. Blocking.
pub(crate) fn read_archive<E: From<UnpackError>>(
    archive: impl Read + Send,
    limits: ContextLimits,
    cancel: &CancellationToken,
    mut each: impl FnMut(&TarEntry, &mut Content<'_>) -> Result<(), E>,
) -> Result<Unpacked, E> {
    let mut counted = Counted { inner: decompress(archive)?, read: 0, max: limits.bytes_max };
    let mut tar = TarReader::new(&mut counted);
    let (mut entries, mut size) = (0, 0_u64);
    while let Some(entry) = tar.next_entry().map_err(|error| failed(error, limits))? {
        if entries >= limits.entries_max {
            return Err(UnpackError::TooManyEntries { max: limits.entries_max }.into());
        }
        entries += 1;
        // Sparse files are larger than what the archive has of them.
        size = size.saturating_add(entry.size);
        if size > limits.bytes_max {
            return Err(UnpackError::TooLarge { max: limits.bytes_max }.into());
        }
        each(&entry, &mut Content { inner: &mut tar, limits, cancel })?;
    }
    Ok(Unpacked { bytes: counted.read.max(size), entries })
}

fn failed(error: io::Error, limits: ContextLimits) -> UnpackError {
    match error.kind() {
        io::ErrorKind::QuotaExceeded => UnpackError::TooLarge { max: limits.bytes_max },
        _ => UnpackError::Damaged(error.to_string()),
    }
}

/// The bytes of one file of an archive, until whoever wants them gives up.
pub(crate) struct Content<'a> {
    inner: &'a mut dyn Read,
    limits: ContextLimits,
    cancel: &'a CancellationToken,
}

/// Read at once.
const CHUNK: usize = 256 << 10;

impl Content<'_> {
    /// Whatever is left; `take` says what becomes of it.
    fn read<E: From<UnpackError>>(
        &mut self,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut buffer = vec![0; CHUNK];
        loop {
            if self.cancel.is_cancelled() {
                return Err(UnpackError::Canceled.into());
            }
            match self.inner.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => take(&buffer[..count])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(failed(error, self.limits).into()),
            }
        }
    }

    /// All of it, in memory: for files whose size was looked at.
    pub(crate) fn read_all(&mut self) -> Result<Vec<u8>, UnpackError> {
        let mut bytes = Vec::new();
        self.read::<UnpackError>(|chunk| {
            bytes.extend_from_slice(chunk);
            Ok(())
        })?;
        Ok(bytes)
    }
}

/// Stores a file of `size` bytes under a lease. `expected` is the digest that its name says.
pub(crate) fn store_blob(
    content: &mut Content<'_>,
    size: u64,
    expected: Option<&Digest>,
    catalog: &Catalog,
    owner: &str,
) -> Result<Stored, LayoutError> {
    let runtime = tokio::runtime::Handle::current();
    let blobs = catalog.blobs();
    let lease = |digest: &Digest| runtime.block_on(catalog.lease_blob(owner, digest, KEEP));
    if let Some(digest) = expected
        && runtime.block_on(blobs.stat(digest))? == Some(size)
    {
        // It need not be written again, but whoever sends it must have it.
        lease(digest)?;
        let mut hasher = Hasher::new(digest.algorithm());
        content.read::<LayoutError>(|chunk| {
            hasher.update(chunk);
            Ok(())
        })?;
        let (expected, actual) = (digest.clone(), hasher.finish());
        return match actual == expected {
            true => Ok(Stored { digest: expected, size }),
            false => Err(LayoutError::WrongDigest { expected, actual }),
        };
    }
    let algorithm = expected.map_or(Algorithm::Sha256, Digest::algorithm);
    let mut writer = BlobWriter::new(runtime.block_on(blobs.begin_upload(algorithm))?);
    content.read::<LayoutError>(|chunk| Ok(writer.write_all(chunk).map_err(not_written)?))?;
    let stored = match writer.commit(expected) {
        Err(StoreError::DigestMismatch { expected, actual }) => {
            return Err(LayoutError::WrongDigest { expected, actual });
        }
        stored => stored?,
    };
    lease(&stored.digest)?;
    Ok(stored)
}

/// What the store said, when it took bytes as a writer.
fn not_written(error: io::Error) -> StoreError {
    let other = |source| StoreError::Io { doing: "store a blob".to_owned(), source };
    error.downcast::<StoreError>().unwrap_or_else(other)
}
