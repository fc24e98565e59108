//! The users and groups of an image, without unpacking it: its two files are read from the blob of
//! their layer once, and remembered by their digests. So on a base that has moved and has the same
//! users nothing is read.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oci::{Digest, Hasher};
use tokio_util::sync::CancellationToken;

use super::files::each_file;
use super::index::{Merged, Placed};
use super::unpack::read_plain;
use super::{Layers, failed, open_unpacked};
use crate::assemble::ImageLayer;
use crate::build::blocking;
use crate::error::BuildError;
use crate::tree::{NodeKind, resolve};
use crate::user::Accounts;

/// What is beyond so many bytes of a file is not looked at.
const FILE_SIZE_MAX: u64 = 16 << 20;
/// Bytes of files that are remembered at once; the others are read again.
const REMEMBERED_MAX: usize = 4 << 20;

/// Files by their digests.
#[derive(Default)]
pub(super) struct RecentFiles(Mutex<Remembered>);

#[derive(Default)]
struct Remembered {
    files: HashMap<Digest, Arc<[u8]>>,
    size: usize,
}

impl RecentFiles {
    fn get(&self, digest: &Digest) -> Option<Arc<[u8]>> {
        self.remembered().files.get(digest).cloned()
    }

    fn put(&self, digest: &Digest, bytes: &Arc<[u8]>) {
        if bytes.len() > REMEMBERED_MAX {
            return;
        }
        let mut remembered = self.remembered();
        if remembered.size + bytes.len() > REMEMBERED_MAX {
            *remembered = Remembered::default();
        }
        if remembered.files.insert(digest.clone(), Arc::clone(bytes)).is_none() {
            remembered.size += bytes.len();
        }
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file of an image that is to be read.
struct Wanted {
    path: String,
    digest: Digest,
    placed: Placed,
}

impl Layers {
    /// The users and groups of an image.
    pub(crate) async fn accounts(
        &self,
        layers: &[ImageLayer],
        stop: &CancellationToken,
    ) -> Result<Accounts, BuildError> {
        let merged = self.merged(layers, stop).await?;
        let passwd = self.account_file(&merged, layers, "etc/passwd", stop).await?;
        let group = self.account_file(&merged, layers, "etc/group", stop).await?;
        merged
            .failure()
            .map_or(Ok(()), |error| Err(failed("read which files there are")(error)))?;
        Ok(Accounts::parse(&passwd, &group))
    }

    /// A file; empty if the image has none.
    async fn account_file(
        &self,
        merged: &Merged,
        layers: &[ImageLayer],
        path: &str,
        stop: &CancellationToken,
    ) -> Result<Arc<[u8]>, BuildError> {
        let Some(wanted) = find(merged, path) else { return Ok(Arc::default()) };
        let remembered = || self.inner.account_files.get(&wanted.digest);
        if let Some(bytes) = remembered() {
            return Ok(bytes);
        }
        let _alone = self.inner.reading.enter(&wanted.digest).await;
        if let Some(bytes) = remembered() {
            return Ok(bytes);
        }
        let layer = &layers[wanted.placed.layer];
        let folder = self.layer_folder(&layer.diff_id);
        let (path, digest) = (wanted.path.clone(), wanted.digest.clone());
        let unpacked = blocking(move || read_unpacked(&folder, &path, &digest)).await;
        let bytes = match unpacked {
            Some(bytes) => bytes,
            None => self.packed_file(merged, layer, &wanted, stop).await?,
        };
        let bytes: Arc<[u8]> = bytes.into();
        self.inner.account_files.put(&wanted.digest, &bytes);
        Ok(bytes)
    }

    /// Reads a file from the blob of its layer.
    async fn packed_file(
        &self,
        merged: &Merged,
        layer: &ImageLayer,
        wanted: &Wanted,
        stop: &CancellationToken,
    ) -> Result<Vec<u8>, BuildError> {
        let blob = self.open_layer(layer).await?;
        let index = Arc::clone(&merged.layers()[wanted.placed.layer]);
        let (descriptor, diff_id) = (layer.descriptor.clone(), layer.diff_id.clone());
        let (entry, digest) = (wanted.placed.entry, wanted.digest.clone());
        let stopped = stop.clone();
        let read = blocking(move || {
            let mut found = None;
            read_plain(blob, &descriptor, &diff_id, |tar| {
                each_file(&index, tar, &stopped, &mut |number, _, _, content| {
                    if Some(number) == entry {
                        found = read_checked(content, &digest)?;
                    }
                    Ok(())
                })
            })?;
            found.ok_or_else(|| io::Error::other("a file is not what the layer's index says"))
        });
        self.was_read(layer, read.await, "read the image's users", stop).await
    }
}

/// What a path of an image leads to, if that is a file.
fn find(merged: &Merged, path: &str) -> Option<Wanted> {
    let node = |path: &str| merged.get(path).map(|placed| placed.node);
    let path = resolve(&node, path, true).ok()?;
    let placed = merged.get(&path)?;
    let NodeKind::File { digest, .. } = &placed.node.kind else { return None };
    Some(Wanted { path, digest: digest.clone(), placed })
}

/// Reads a file of a layer that was unpacked, if it was and the file is still as it was.
fn read_unpacked(folder: &Path, path: &str, digest: &Digest) -> Option<Vec<u8>> {
    read_checked(&mut open_unpacked(folder, path).ok()?, digest).ok()?
}

/// The bytes of a file; none if they are not of its digest.
fn read_checked(content: &mut dyn Read, digest: &Digest) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    content.take(FILE_SIZE_MAX).read_to_end(&mut bytes)?;
    let mut hasher = Hasher::new(digest.algorithm());
    hasher.update(&bytes);
    let mut rest = [0; 64 << 10];
    loop {
        match content.read(&mut rest)? {
            0 => break,
            read => hasher.update(&rest[..read]),
        }
    }
    Ok((hasher.finish() == *digest).then_some(bytes))
}
