//! An image that comes along with a build: the blobs of an OCI layout, in an archive, go
//! straight into the store (image-spec, *OCI Image Layout Specification*).
//!
//! The archive is untrusted. A blob is stored only if its bytes are those that its name says,
//! and the image may use none but those that the archive had.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::time::Duration;

use builder::{ContextLimits, TarEntry, TarKind, TarReader};
use oci::{Digest, Hasher};
use store::{BlobWriter, Catalog, StoreError};
use tokio_util::sync::CancellationToken;

use crate::unpack::{Counted, UnpackError, Unpacked, decompress};

/// How long the blobs are kept after a build used them: longer than a build can last, and the
/// next build of the day need not store them again.
const KEEP: Duration = Duration::from_secs(24 * 60 * 60);

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
    let mut counted = Counted { inner: decompress(archive)?, read: 0, max: limits.bytes_max };
    let mut tar = TarReader::new(&mut counted);
    let mut blobs = BTreeSet::new();
    let mut entries = 0;
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::QuotaExceeded => UnpackError::TooLarge { max: limits.bytes_max },
        _ if cancel.is_cancelled() => UnpackError::Canceled,
        _ => UnpackError::Damaged(error.to_string()),
    };
    while let Some(entry) = tar.next_entry().map_err(failed)? {
        if entries >= limits.entries_max {
            return Err(UnpackError::TooManyEntries { max: limits.entries_max }.into());
        }
        entries += 1;
        // A sparse blob is larger than what the archive has of it.
        if entry.size > limits.bytes_max {
            return Err(UnpackError::TooLarge { max: limits.bytes_max }.into());
        }
        if matches!(entry.kind, TarKind::Directory | TarKind::Other) {
            continue;
        }
        let digest = blob_name(&entry)?;
        let mut content = Stoppable { inner: &mut tar, cancel };
        store_blob(&mut content, entry.size, &digest, catalog, &failed)?;
        blobs.insert(digest);
    }
    let bytes = counted.read;
    Ok((blobs, Unpacked { bytes, entries }))
}

/// The digest that an entry's path says: `blobs/ALGORITHM/HEX`.
fn blob_name(entry: &TarEntry) -> Result<Digest, LayoutError> {
    let path = String::from_utf8_lossy(&entry.path);
    let name = path.strip_prefix("blobs/").and_then(|name| name.split_once('/'));
    let digest = name.and_then(|(algorithm, hex)| format!("{algorithm}:{hex}").parse().ok());
    match digest {
        Some(digest) if entry.kind == TarKind::File => Ok(digest),
        _ => Err(LayoutError::NoBlob { path: path.into_owned() }),
    }
}

fn store_blob(
    content: &mut impl Read,
    size: u64,
    digest: &Digest,
    catalog: &Catalog,
    failed: &dyn Fn(io::Error) -> UnpackError,
) -> Result<(), LayoutError> {
    let runtime = tokio::runtime::Handle::current();
    let blobs = catalog.blobs();
    let lease = || runtime.block_on(catalog.lease_blob(LEASE_OWNER, digest, KEEP));
    if runtime.block_on(blobs.stat(digest))? == Some(size) {
        // It need not be written again, but whoever sends it must have it.
        lease()?;
        let mut hasher = Hashing(Hasher::new(digest.algorithm()));
        io::copy(content, &mut hasher).map_err(failed)?;
        let actual = hasher.0.finish();
        return match actual == *digest {
            true => Ok(()),
            false => Err(LayoutError::WrongDigest { expected: digest.clone(), actual }),
        };
    }
    let upload = runtime.block_on(blobs.begin_upload(digest.algorithm()))?;
    let mut writer = BlobWriter::new(upload);
    io::copy(content, &mut writer).map_err(failed)?;
    match writer.commit(Some(digest)) {
        Ok(_) => Ok(lease()?),
        Err(StoreError::DigestMismatch { expected, actual }) => {
            Err(LayoutError::WrongDigest { expected, actual })
        }
        Err(error) => Err(error.into()),
    }
}

struct Hashing(Hasher);

impl io::Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads until a run ends.
struct Stoppable<'a, R> {
    inner: R,
    cancel: &'a CancellationToken,
}

impl<R: Read> Read for Stoppable<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.cancel.is_cancelled() {
            // Copying tries again what was only interrupted.
            true => Err(io::Error::other("the run has ended")),
            false => self.inner.read(buffer),
        }
    }
}
