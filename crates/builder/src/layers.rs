//! Layers: written once into the store, looked at through their indexes, and unpacked only
//! when a process or a copy needs their bytes.
//!
//! An unpacked layer is a folder named by its diff ID that overlayfs stacks; it holds the
//! image's own uids (architecture.md decision 10). All of it is a cache: removing it while
//! no build goes on costs time and nothing else.
//!
//! What an image says of a layer's diff ID counts only once the layer was read and unpacked to
//! it: cache keys, folders and views are made from diff IDs, and are shared by all builds.

mod blocks;
mod diff;
mod files;
mod index;
mod recent;
mod searched;
mod tar_entry;
mod unpack;
mod writer;

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use container::{Removals, Usage};
use dockerfile::Span;
use futures_util::StreamExt;
use oci::{Compression, Descriptor, Digest, Hasher};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use store::{BlobStore, BlobWriter, Catalog, ReadLayer, StoreError};
use tokio_util::sync::CancellationToken;

use crate::archive::{self, ArchiveLimits};
use crate::assemble::ImageLayer;
use crate::build::{Build, InFlight, blocking};
use crate::copy::{Content, CopyPlan, PlannedEntry, add_archive};
use crate::error::BuildError;
use crate::name::{bytes_of, shown};
use crate::secret_scan::{Findings, LayerSearch};
use crate::tree::{Node, NodeKind, Tree, ancestors, check_read};
use blocks::{BlockMap, BlockWriter};
pub(crate) use blocks::{EarlierBlocks, compressor};
use diff::{NotInLayer, write_diff};
pub use files::FilesOf;
pub(crate) use index::LayerIndex;
use index::Merged;
use recent::RecentIndexes;
use searched::Searched;
pub(crate) use unpack::read_layer;
use unpack::{Hashed, read_plain};
use writer::{LayerWriter, Written};

/// The time of folders that instructions make or pass through, when the user gives none:
/// the earliest that zip files can hold, 1980-01-01.
pub(crate) const FOLDER_TIME: i64 = 315_532_800;

/// What reading layers has shown, by the layer's blob.
#[async_trait]
pub trait LayerIndexes: Send + Sync {
    async fn get(&self, layer: &Digest) -> store::Result<Option<ReadLayer>>;

    async fn put(&self, layer: &Digest, read: &ReadLayer) -> store::Result<()>;
}

#[async_trait]
impl LayerIndexes for Catalog {
    async fn get(&self, layer: &Digest) -> store::Result<Option<ReadLayer>> {
        self.read_layer(layer).await
    }

    async fn put(&self, layer: &Digest, read: &ReadLayer) -> store::Result<()> {
        self.put_read_layer(layer, read).await
    }
}

/// The layers of a machine. One per data folder; cheap to clone.
#[derive(Clone)]
pub struct Layers {
    inner: Arc<Inner>,
}

struct Inner {
    blobs: Arc<dyn BlobStore>,
    indexes: Arc<dyn LayerIndexes>,
    folder: PathBuf,
    recent: Mutex<RecentIndexes>,
    /// Layers that are being unpacked just now.
    unpacking: InFlight,
    /// Blobs that are being read just now for what is to be known of them.
    reading: InFlight,
    /// When this process has read a layer's blob whole and found it right.
    verified: Mutex<HashMap<Digest, Instant>>,
    /// What layers unpack to, by their blobs: those that this process has asked for.
    diff_ids: Mutex<HashMap<Digest, Digest>>,
    searched: Searched,
    removals: Removals,
}

/// Layers of at most this many bytes are read whole before an image that uses them again is
/// given out; reading larger ones would take longer than builds do.
const VERIFY_SIZE_MAX: u64 = 64 << 20;
/// Bytes read for that in one build, smaller layers first.
const VERIFY_BUILD_MAX: u64 = 256 << 20;
/// How long a layer need not be read again.
const VERIFIED_KEEP: Duration = Duration::from_secs(24 * 60 * 60);
/// Verified layers remembered at once; the others are read again.
const VERIFIED_MAX: usize = 16_384;
/// Diff IDs remembered at once; the others are looked up again.
const DIFF_IDS_MAX: usize = 16_384;
/// Layers verified at once.
const VERIFY_PARALLEL: usize = 4;
/// How hard what is noted of layers is compressed, by zstd.
const PACKED_LEVEL: i32 = 3;
/// Changes when layers are unpacked otherwise; those of another version are removed.
const UNPACKED_FORMAT: u32 = 2;

/// A layer that an instruction has made.
pub(crate) struct NewLayer {
    pub(crate) layer: ImageLayer,
    pub(crate) index: Option<Digest>,
    /// The blob with its [`BlockMap`], if it is worth one.
    pub(crate) blocks: Option<Digest>,
    /// Bytes that came from an earlier layer.
    pub(crate) reused: u64,
    pub(crate) usage: Usage,
    /// Secrets that are in it.
    pub(crate) found: Findings,
}

/// For which instruction a layer is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerPlace {
    pub(crate) at: Span,
    /// Whether the image will have it.
    pub(crate) is_in_result: bool,
}

impl Layers {
    /// Opens the folder of unpacked layers, making it if there is none, and removes what a
    /// killed process has left half done.
    pub fn open(
        blobs: Arc<dyn BlobStore>,
        indexes: Arc<dyn LayerIndexes>,
        folder: &Path,
    ) -> io::Result<Self> {
        // Unpacked layers are not synced: after a crash of the machine none is trusted.
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let boot = format!("{boot}format {UNPACKED_FORMAT}\n");
        let same_boot = std::fs::read_to_string(folder.join("boot")).is_ok_and(|last| last == boot);
        let stale: &[&str] =
            if same_boot { &["changes", "partial"] } else { &["changes", "partial", "layers"] };
        // Owners of files mean others for another user, and so do the marks of overlays.
        let ids = container::ids();
        let last = std::fs::read_to_string(folder.join("ids")).unwrap_or_default();
        let stale = if last == ids { stale } else { &["changes", "partial", "layers", "mounts"] };
        discard(folder, stale)?;
        for name in ["changes", "layers", "partial"] {
            std::fs::create_dir_all(folder.join(name))?;
        }
        std::fs::write(folder.join("boot"), boot)?;
        std::fs::write(folder.join("ids"), ids)?;
        // Image files keep their own owners and set-user-ID bits: nobody else may get there.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(folder, private)?;
        Ok(Self {
            inner: Arc::new(Inner {
                blobs,
                indexes,
                folder: folder.to_owned(),
                recent: Mutex::default(),
                unpacking: InFlight::default(),
                reading: InFlight::default(),
                verified: Mutex::default(),
                diff_ids: Mutex::default(),
                searched: Searched::default(),
                removals: Removals::default(),
            }),
        })
    }

    /// Of the folders that builds are done with.
    pub fn removals(&self) -> &Removals {
        &self.inner.removals
    }

    /// The files of an image, from the indexes of its layers.
    pub(crate) async fn view(
        &self,
        layers: &[ImageLayer],
        stop: &CancellationToken,
    ) -> Result<Arc<dyn Tree>, BuildError> {
        Ok(Arc::new(View {
            merged: self.merged(layers, stop).await?,
            image: layers.to_vec(),
            layers: self.clone(),
            stop: stop.clone(),
            runtime: tokio::runtime::Handle::current(),
        }))
    }

    async fn merged(
        &self,
        layers: &[ImageLayer],
        stop: &CancellationToken,
    ) -> Result<Merged, BuildError> {
        let mut indexes = Vec::with_capacity(layers.len());
        for layer in layers {
            indexes.push(self.index(layer, stop).await?);
        }
        Ok(Merged::new(indexes))
    }

    /// What is in a layer: its index as it was stored, else read from the layer and stored.
    async fn index(
        &self,
        layer: &ImageLayer,
        stop: &CancellationToken,
    ) -> Result<Arc<LayerIndex>, BuildError> {
        // Of layers that were read; but this one may claim to be another.
        let recent = self.recent().get(&layer.diff_id);
        // What could not be read once may be readable from another copy.
        if let Some(index) = recent.filter(|index| !index.has_failed()) {
            self.prove(std::slice::from_ref(layer), stop).await?;
            return Ok(index);
        }
        if let Some(index) = self.kept_index(layer).await? {
            return Ok(index);
        }
        let _alone = self.inner.reading.enter(&layer.descriptor.digest).await;
        // Somebody may have read the layer meanwhile.
        match self.kept_index(layer).await? {
            Some(index) => Ok(index),
            None => self.read_index(layer, stop).await,
        }
    }

    /// The index of a layer as it was stored, if it was.
    async fn kept_index(&self, layer: &ImageLayer) -> Result<Option<Arc<LayerIndex>>, BuildError> {
        let Some(read) = self.inner.indexes.get(&layer.descriptor.digest).await? else {
            return Ok(None);
        };
        if read.diff_id != layer.diff_id {
            return Ok(None);
        }
        let Some(index) = self.stored_index(&read.index).await? else { return Ok(None) };
        let index = Arc::new(index);
        self.recent().put(&layer.diff_id, &index);
        Ok(Some(index))
    }

    /// Reads a layer for its index, and keeps that.
    async fn read_index(
        &self,
        layer: &ImageLayer,
        stop: &CancellationToken,
    ) -> Result<Arc<LayerIndex>, BuildError> {
        let index = Arc::new(self.read(layer, None, stop).await?);
        self.keep_index(layer, &index).await?;
        Ok(index)
    }

    fn recent(&self) -> MutexGuard<'_, RecentIndexes> {
        self.inner.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that layers unpack to what images say, by reading those that nobody has read
    /// yet. Before this, a diff ID is no more than a claim.
    pub(crate) async fn prove(
        &self,
        layers: &[ImageLayer],
        stop: &CancellationToken,
    ) -> Result<(), BuildError> {
        for layer in layers {
            if self.is_proven(layer).await? {
                continue;
            }
            let _alone = self.inner.reading.enter(&layer.descriptor.digest).await;
            if !self.is_proven(layer).await? {
                self.read_index(layer, stop).await?;
            }
        }
        Ok(())
    }

    /// Whether a layer was read and unpacks to what its image says.
    async fn is_proven(&self, layer: &ImageLayer) -> Result<bool, BuildError> {
        let digest = &layer.descriptor.digest;
        let known = self.diff_ids().get(digest).cloned();
        let diff_id = match known {
            Some(diff_id) => diff_id,
            None => {
                let Some(read) = self.inner.indexes.get(digest).await? else { return Ok(false) };
                self.note_diff_id(digest, &read.diff_id);
                read.diff_id
            }
        };
        Ok(diff_id == layer.diff_id)
    }

    fn note_diff_id(&self, layer: &Digest, diff_id: &Digest) {
        let mut diff_ids = self.diff_ids();
        if diff_ids.len() >= DIFF_IDS_MAX {
            diff_ids.clear();
        }
        diff_ids.insert(layer.clone(), diff_id.clone());
    }

    fn diff_ids(&self) -> MutexGuard<'_, HashMap<Digest, Digest>> {
        self.inner.diff_ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads an index, unless it is gone, damaged, or of another version.
    async fn stored_index(&self, digest: &Digest) -> Result<Option<LayerIndex>, BuildError> {
        let spools = self.spools();
        let index = self.packed(digest, move |text| LayerIndex::read(text, &spools)).await?;
        Ok(index.flatten())
    }

    /// Stores the index of a layer that was read or written.
    async fn keep_index(
        &self,
        layer: &ImageLayer,
        index: &Arc<LayerIndex>,
    ) -> Result<(), BuildError> {
        let stored = self.store_index(index).await?;
        self.recent().put(&layer.diff_id, index);
        self.keep_read(layer, &stored).await
    }

    async fn store_index(&self, index: &Arc<LayerIndex>) -> Result<Digest, BuildError> {
        let index = Arc::clone(index);
        self.keep_packed(move |out| io::copy(&mut index.text(), out).map(drop)).await
    }

    /// Notes what reading or writing a layer has shown.
    pub(crate) async fn keep_read(
        &self,
        layer: &ImageLayer,
        index: &Digest,
    ) -> Result<(), BuildError> {
        let read = ReadLayer { index: index.clone(), diff_id: layer.diff_id.clone() };
        self.inner.indexes.put(&layer.descriptor.digest, &read).await?;
        self.note_diff_id(&layer.descriptor.digest, &layer.diff_id);
        Ok(())
    }

    /// Reads what [`Self::keep_packed`] stored, unless it is gone or damaged.
    async fn packed<T: Send + 'static>(
        &self,
        digest: &Digest,
        read: impl FnOnce(&mut dyn BufRead) -> io::Result<T> + Send + 'static,
    ) -> Result<Option<T>, BuildError> {
        let blob = match self.inner.blobs.open(digest, 0).await {
            Err(StoreError::NotFound { .. }) => return Ok(None),
            result => result?.into_blocking(),
        };
        let expected = digest.clone();
        let value = blocking(move || {
            let hasher = Some(Hasher::new(expected.algorithm()));
            let mut blob = Hashed { inner: blob, hasher };
            let value = read(&mut BufReader::new(zstd::Decoder::new(&mut blob)?));
            match blob.finish()? == Some(expected) {
                true => value,
                false => Err(io::Error::other("its bytes are not those that were stored")),
            }
        });
        match value.await {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                tracing::warn!(%digest, %error, "what was noted of a layer is not readable");
                self.inner.blobs.verify(digest).await?;
                Ok(None)
            }
        }
    }

    /// Stores what `write` writes, compressed.
    async fn keep_packed(
        &self,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
    ) -> Result<Digest, BuildError> {
        let out = BlobWriter::new(self.inner.blobs.begin_upload(oci::Algorithm::Sha256).await?);
        let packed = blocking(move || {
            let mut out = zstd::Encoder::new(out, PACKED_LEVEL)?;
            write(&mut out)?;
            out.finish()
        });
        let packed = packed.await.map_err(failed("note what is in a layer"))?;
        Ok(blocking(move || packed.commit(None)).await?.digest)
    }

    /// Where text goes that is too much for memory.
    fn spools(&self) -> PathBuf {
        self.inner.folder.join("changes")
    }

    async fn read(
        &self,
        layer: &ImageLayer,
        folder: Option<PathBuf>,
        stop: &CancellationToken,
    ) -> Result<LayerIndex, BuildError> {
        let blob = self.open_layer(layer).await?;
        let (descriptor, diff_id) = (layer.descriptor.clone(), layer.diff_id.clone());
        let (spools, stopped) = (self.spools(), stop.clone());
        let read = blocking(move || {
            read_layer(blob, &descriptor, &diff_id, folder.as_deref(), &spools, &stopped)
        });
        self.was_read(layer, read.await, "unpack a layer", stop).await
    }

    async fn open_layer(&self, layer: &ImageLayer) -> Result<Box<dyn Read + Send>, BuildError> {
        let digest = &layer.descriptor.digest;
        match self.inner.blobs.open(digest, 0).await {
            Err(StoreError::NotFound { .. }) => {
                Err(BuildError::DamagedLayer { digest: digest.clone() })
            }
            result => Ok(result?.into_blocking()),
        }
    }

    /// Finds out what it means that a layer could, or could not, be read.
    async fn was_read<T>(
        &self,
        layer: &ImageLayer,
        read: io::Result<T>,
        doing: &str,
        stop: &CancellationToken,
    ) -> Result<T, BuildError> {
        let digest = &layer.descriptor.digest;
        match read {
            Ok(read) => {
                self.note_verified(digest);
                Ok(read)
            }
            Err(_) if stop.is_cancelled() => Err(BuildError::Canceled),
            Err(source) if source.raw_os_error().is_some() => {
                Err(BuildError::Io { doing: doing.to_owned(), source })
            }
            // Either it was made so, or the store did not keep it as it was.
            Err(error) => match self.inner.blobs.verify(digest).await? {
                true => Err(BuildError::BadLayer { reason: format!("{digest}: {error}") }),
                false => Err(BuildError::DamagedLayer { digest: digest.clone() }),
            },
        }
    }

    /// Writes a layer again, compressed otherwise.
    pub(crate) async fn recompress(
        &self,
        layer: &ImageLayer,
        compression: Compression,
        stop: &CancellationToken,
    ) -> Result<NewLayer, BuildError> {
        let blob = self.open_layer(layer).await?;
        let out = BlobWriter::new(self.inner.blobs.begin_upload(oci::Algorithm::Sha256).await?);
        let (descriptor, diff_id) = (layer.descriptor.clone(), layer.diff_id.clone());
        let stopped = stop.clone();
        let written = blocking(move || {
            let mut out = BlockWriter::new(out, compression)?;
            read_plain(blob, &descriptor, &diff_id, |tar| {
                io::copy(&mut Stoppable { inner: Box::new(tar), stop: &stopped }, &mut out)
            })?;
            out.finish()
        });
        let written = self.was_read(layer, written.await, "compress a layer", stop).await?;
        let stored = blocking(move || written.out.commit(None)).await?;
        let media_type = compression.format.media_type();
        let descriptor = Descriptor::new(media_type, stored.digest, stored.size);
        // What is in it is the same.
        let read = self.inner.indexes.get(&layer.descriptor.digest).await?;
        let index = read.map(|read| read.index);
        let layer = ImageLayer { descriptor, diff_id: layer.diff_id.clone() };
        if let Some(index) = &index {
            self.keep_read(&layer, index).await?;
        }
        let (usage, found) = (Usage::default(), Findings::default());
        Ok(NewLayer { layer, index, blocks: None, reused: 0, usage, found })
    }

    /// Whether a layer can be used again: it is there whole, as far as that can be told
    /// without reading it.
    pub(crate) async fn is_there(&self, layer: &Descriptor) -> Result<bool, BuildError> {
        Ok(self.inner.blobs.stat(&layer.digest).await? == Some(layer.size))
    }

    /// Looks at the layers of an image before it is given out, and refuses those that could
    /// not be pulled: all must be there, and some are read, those apart that were `made` just
    /// now. The bounds on that are below.
    pub(crate) async fn check(
        &self,
        layers: &[ImageLayer],
        made: &BTreeSet<Digest>,
    ) -> Result<(), BuildError> {
        let mut layers: Vec<&Descriptor> = layers.iter().map(|layer| &layer.descriptor).collect();
        layers.sort_by_key(|layer| (layer.size, layer.digest.clone()));
        layers.dedup_by(|one, other| one.digest == other.digest);
        let mut left = VERIFY_BUILD_MAX;
        // Made before they are streamed, as in `remote::pull`.
        let mut checks = Vec::with_capacity(layers.len());
        for layer in layers {
            let digest = &layer.digest;
            let is_small = layer.size <= VERIFY_SIZE_MAX.min(left);
            let verify = is_small && !made.contains(digest) && !self.is_verified(digest);
            left -= if verify { layer.size } else { 0 };
            checks.push(self.check_one(layer, verify));
        }
        let checks = futures_util::stream::iter(checks).buffer_unordered(VERIFY_PARALLEL);
        // All of them, so that a build that begins again does so once.
        let checked: Vec<Result<(), BuildError>> = checks.collect().await;
        checked.into_iter().collect()
    }

    async fn check_one(&self, layer: &Descriptor, verify: bool) -> Result<(), BuildError> {
        let (blobs, digest) = (&self.inner.blobs, &layer.digest);
        let damaged = || BuildError::DamagedLayer { digest: digest.clone() };
        let size = blobs.stat(digest).await?.ok_or_else(damaged)?;
        // A manifest that was pushed may name another size than the blob has.
        if verify && size == layer.size {
            if !blobs.verify(digest).await? {
                return Err(damaged());
            }
            self.note_verified(digest);
        }
        Ok(())
    }

    fn is_verified(&self, digest: &Digest) -> bool {
        let verified = self.inner.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified.get(digest).is_some_and(|at| at.elapsed() < VERIFIED_KEEP)
    }

    fn note_verified(&self, digest: &Digest) {
        let mut verified = self.inner.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= VERIFIED_MAX {
            verified.clear();
        }
        verified.insert(digest.clone(), Instant::now());
    }

    /// The folders of layers, topmost first, unpacked where they are not.
    pub(crate) async fn unpacked(
        &self,
        layers: &[ImageLayer],
        stop: &CancellationToken,
    ) -> Result<Lowers, BuildError> {
        let folders = layers.iter().map(|layer| self.folder(layer, stop));
        let mut folders = futures_util::future::try_join_all(folders).await?;
        folders.reverse();
        // Overlayfs takes a folder once. A layer that comes twice hides what it had below, so
        // only the topmost counts.
        let mut seen = HashSet::new();
        folders.retain(|folder| seen.insert(folder.clone()));
        if folders.is_empty() {
            // Overlayfs wants a lower folder; an image without layers has an empty one.
            let empty = self.inner.folder.join("layers/empty");
            std::fs::create_dir_all(&empty).map_err(failed("make a folder"))?;
            folders.push(empty);
        }
        Ok(Lowers { folders })
    }

    async fn folder(
        &self,
        layer: &ImageLayer,
        stop: &CancellationToken,
    ) -> Result<PathBuf, BuildError> {
        let folder = self.layer_folder(&layer.diff_id);
        if folder.exists() {
            // What it holds may have come from another blob.
            self.prove(std::slice::from_ref(layer), stop).await?;
            return Ok(folder);
        }
        let _alone = self.inner.unpacking.enter(&layer.diff_id).await;
        if folder.exists() {
            self.prove(std::slice::from_ref(layer), stop).await?;
            return Ok(folder);
        }
        let partial = self.temporary("partial")?;
        let index = self.read(layer, Some(partial.path.clone()), stop).await?;
        if !self.is_proven(layer).await? {
            self.keep_index(layer, &Arc::new(index)).await?;
        }
        std::fs::rename(&partial.path, &folder).map_err(failed("keep an unpacked layer"))?;
        Ok(folder)
    }

    fn layer_folder(&self, diff_id: &Digest) -> PathBuf {
        self.inner.folder.join("layers").join(diff_id.hex())
    }

    /// Where a temporary folder may be made, by whoever removes it.
    pub(crate) fn scratch_path(&self) -> PathBuf {
        self.inner.folder.join("changes").join(new_name())
    }

    /// A nameless file for what is needed for a while.
    pub(crate) fn spool(&self) -> io::Result<File> {
        nameless_file(&self.spools())
    }

    /// An empty upper folder for a process to write to.
    pub(crate) async fn begin_change(&self) -> Result<Change, BuildError> {
        let folder = self.temporary("changes")?;
        for name in ["upper", "work"] {
            std::fs::create_dir(folder.path.join(name)).map_err(failed("make a folder"))?;
        }
        let root = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path.join("upper"), root)
            .map_err(failed("make a folder"))?;
        Ok(Change { folder })
    }

    /// A folder for something that a process needs while it goes on.
    pub(crate) fn begin_folder(&self) -> Result<Temporary, BuildError> {
        self.temporary("changes")
    }

    fn temporary(&self, parent: &str) -> Result<Temporary, BuildError> {
        let path = self.inner.folder.join(parent).join(new_name());
        std::fs::create_dir(&path).map_err(failed("make a temporary folder"))?;
        Ok(Temporary { path, removals: self.inner.removals.clone() })
    }

    /// A layer of whiteouts that hides paths of a folder, to be stacked on it.
    pub(crate) async fn mask(&self, root: &Path, hidden: &[String]) -> Result<Change, BuildError> {
        let change = self.begin_change().await?;
        let (upper, root, hidden) = (change.upper(), root.to_owned(), hidden.to_vec());
        let make = move || -> io::Result<()> {
            copy_mode(&root, &upper)?;
            let below = |folder: &Path, path: &str| folder.join(OsStr::from_bytes(&bytes_of(path)));
            for path in hidden {
                for above in ancestors(&path) {
                    let folder = below(&upper, above);
                    match std::fs::create_dir(&folder) {
                        Ok(()) => copy_mode(&below(&root, above), &folder)?,
                        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
                        Err(error) => return Err(error),
                    }
                }
                let kind = rustix::fs::FileType::CharacterDevice;
                rustix::fs::mknodat(CWD, below(&upper, &path), kind, Mode::empty(), 0)?;
            }
            Ok(())
        };
        blocking(make).await.map_err(failed("hide a part of the context"))?;
        Ok(change)
    }

    /// Writes what a process changed as a layer, and keeps the change as that layer unpacked.
    pub(crate) async fn write_change(
        &self,
        build: &Build<'_>,
        change: Change,
        earlier: Option<Arc<EarlierBlocks>>,
        place: LayerPlace,
    ) -> Result<NewLayer, BuildError> {
        let (upper, stop, at) = (change.upper(), build.stop.clone(), place.at);
        let written = self.write(build, earlier, place, move |writer| {
            write_diff(&upper, writer, &stop).map_err(|error| {
                match error.downcast::<NotInLayer>() {
                    Ok(reason) => BuildError::NotInLayer { reason: reason.to_string(), at },
                    Err(_) if stop.is_cancelled() => BuildError::Canceled,
                    Err(error) => failed("read what a `RUN` changed")(error),
                }
            })
        });
        let new = written.await?;
        // With a bound on times the layer is not quite what is in the folder: it is
        // unpacked anew when something needs it, as it would be on another machine.
        if build.request.source_date_epoch.is_none() {
            let folder = self.layer_folder(&new.layer.diff_id);
            if !folder.exists() {
                match std::fs::rename(change.upper(), &folder) {
                    // Another build had the same result just now.
                    Err(_) if folder.exists() => (),
                    result => result.map_err(failed("keep what a `RUN` changed"))?,
                }
            }
        }
        Ok(new)
    }

    /// Writes a layer in a blocking thread, with its index. Whoever keeps it calls
    /// [`Self::keep_read`]. The store does not get a layer of the image that holds a secret.
    async fn write(
        &self,
        build: &Build<'_>,
        earlier: Option<Arc<EarlierBlocks>>,
        place: LayerPlace,
        fill: impl FnOnce(&mut LayerWriter) -> Result<(), BuildError> + Send + 'static,
    ) -> Result<NewLayer, BuildError> {
        let upload = self.inner.blobs.begin_upload(oci::Algorithm::Sha256).await?;
        let blob = BlobWriter::new(upload);
        let request = build.request;
        let (compression, time_max) = (request.compression, request.source_date_epoch);
        let (spools, search) = (self.spools(), build.scan.clone().map(LayerSearch::new));
        let written: Result<Written, BuildError> = blocking(move || {
            let writer = LayerWriter::new(blob, compression, earlier, time_max, search, &spools);
            let mut writer = writer.map_err(failed("write a layer"))?;
            fill(&mut writer)?;
            writer.finish().map_err(failed("write a layer"))
        })
        .await;
        let Written { layer, index, blocks, reused, found } = written?;
        if let Some(scan) = &build.scan {
            self.inner.searched.note(layer.diff_id(), scan, &found);
            if let Some(held) = scan.forbidden(&found).filter(|_| place.is_in_result) {
                return Err(held.error(place.at));
            }
        }
        // Both at once, since most of it is waiting for the disk.
        let layer = async { Ok(blocking(move || layer.commit()).await?) };
        let index = Arc::new(index);
        let (layer, stored) = tokio::try_join!(layer, self.store_index(&index))?;
        self.recent().put(&layer.diff_id, &index);
        let blocks = match blocks.filter(BlockMap::is_worth_keeping) {
            Some(blocks) => {
                let write = move |out: &mut dyn Write| Ok(serde_json::to_writer(out, &blocks)?);
                Some(self.keep_packed(write).await?)
            }
            None => None,
        };
        let usage = Usage::default();
        Ok(NewLayer { layer, index: Some(stored), blocks, reused, usage, found })
    }

    /// The blocks of a layer that was made before, to be used again if they can be.
    pub(crate) async fn earlier_blocks(
        &self,
        layer: &Descriptor,
        blocks: &Digest,
        compression: Compression,
    ) -> Option<EarlierBlocks> {
        // Without them the layer only takes longer.
        let read = |text: &mut dyn BufRead| Ok(serde_json::from_reader::<_, BlockMap>(text)?);
        let map = self.packed(blocks, read).await.ok().flatten()?;
        let blob = self.inner.blobs.open(&layer.digest, 0).await.ok()?;
        // Over a network nothing would be won.
        Some(EarlierBlocks::new(blob.into_file().ok()?, map, compression))
    }
}

/// Gives a folder the mode and owner of another, which it lies upon.
fn copy_mode(from: &Path, to: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::symlink_metadata(from)?;
    std::os::unix::fs::chown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    std::fs::set_permissions(to, metadata.permissions())
}

/// Moves folders aside, and removes them in a thread of its own: what is in them may be a lot,
/// and must not keep a server from starting.
fn discard(folder: &Path, names: &[&str]) -> io::Result<()> {
    let trash = folder.join("trash");
    std::fs::create_dir_all(&trash)?;
    for name in names {
        let mut aside = (0..).map(|count: u64| trash.join(format!("{name}-{count}")));
        let aside = aside.find(|aside| !aside.exists()).unwrap_or_else(|| trash.join(name));
        match std::fs::rename(folder.join(name), aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
    }
    std::thread::spawn(move || {
        if let Err(error) = container::remove_tree(&trash) {
            tracing::warn!(path = %trash.display(), %error, "not removed");
        }
    });
    Ok(())
}

/// Writes the layer of a `COPY`.
pub(crate) async fn write_copy(
    build: &Build<'_>,
    plan: CopyPlan,
    source: Arc<dyn Tree>,
    image: Arc<dyn Tree>,
    place: LayerPlace,
    earlier: Option<Arc<EarlierBlocks>>,
) -> Result<NewLayer, BuildError> {
    let at = place.at;
    let layers = &build.builder.layers;
    let (spools, stop) = (layers.spools(), build.stop.clone());
    let folder_time = build.request.source_date_epoch.unwrap_or(FOLDER_TIME);
    let fill = move |writer: &mut LayerWriter| {
        let mut plan = plan;
        let mut spool = None;
        for archive in std::mem::take(&mut plan.archives) {
            if spool.is_none() {
                spool = Some(nameless_file(&spools).map_err(failed("make a temporary file"))?);
            }
            let file = spool.as_mut().expect("made just now");
            let copy_error = |error| BuildError::Copy { error, at };
            let limits = ArchiveLimits::default();
            let entries = archive::unpack(&*source, &archive.source, file, limits);
            let entries = entries.map_err(copy_error)?;
            plan = add_archive(plan, &*source, &*image, &archive, entries, folder_time)
                .map_err(copy_error)?;
        }
        check_read(&*source)?;
        check_read(&*image)?;
        // The entry of the first name, for those that may have more.
        let mut first_entries = HashMap::new();
        for entry in plan.entries(&*source) {
            if stop.is_cancelled() {
                return Err(BuildError::Canceled);
            }
            let entry = entry.map_err(failed("read what a `COPY` copies"))?;
            let first = entry.first.as_ref().and_then(|first| first_entries.get(first));
            if let Some(first) = first {
                let linked = writer.add_hard_link(&bytes_of(&entry.path), *first);
                linked.map_err(failed("write a layer"))?;
                continue;
            }
            if entry.node.link.is_some() {
                first_entries.insert(entry.path.clone(), writer.next_entry());
            }
            write_planned(writer, &entry, &*source, spool.as_ref(), &stop, at)?;
        }
        Ok(())
    };
    layers.write(build, earlier, place, fill).await
}

fn write_planned(
    writer: &mut LayerWriter,
    entry: &PlannedEntry,
    source: &dyn Tree,
    spool: Option<&File>,
    stop: &CancellationToken,
    at: Span,
) -> Result<(), BuildError> {
    let PlannedEntry { path, node, content, .. } = entry;
    let real_path = bytes_of(path);
    let NodeKind::File { size, digest } = &node.kind else {
        return writer.add(&real_path, node).map_err(failed("write a layer"));
    };
    let (from, content): (&str, Box<dyn Read>) = match (content, spool) {
        (Some(Content::Source(from)), _) => match source.open(from) {
            Ok(content) => (from, content),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BuildError::Changed { path: shown(from).into_owned(), at });
            }
            Err(error) => return Err(failed(&format!("read `{}`", shown(from)))(error)),
        },
        (Some(Content::Text(text)), _) => (path, Box::new(text.as_bytes())),
        (Some(Content::Unpacked { offset }), Some(spool)) => {
            (path, Box::new(Slice { file: spool, offset: *offset }))
        }
        _ => (path, Box::new(io::empty())),
    };
    let mut content = Stoppable { inner: content, stop };
    let changed = || BuildError::Changed { path: shown(from).into_owned(), at };
    match writer.add_file(&real_path, node, *size, &mut content) {
        // The key says what the layer holds, so it must hold just that.
        Ok(read) if read == *digest => Ok(()),
        Ok(_) => Err(changed()),
        Err(error) => Err(match error.kind() {
            io::ErrorKind::UnexpectedEof => changed(),
            _ if stop.is_cancelled() => BuildError::Canceled,
            _ => failed(&format!("copy `{}`", shown(from)))(error),
        }),
    }
}

/// Reads until a build ends.
struct Stoppable<'a> {
    inner: Box<dyn Read + 'a>,
    stop: &'a CancellationToken,
}

impl Read for Stoppable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.stop.is_cancelled() {
            true => Err(io::Error::other("the build has ended")),
            false => self.inner.read(buffer),
        }
    }
}

/// A file from an offset on, without moving its cursor.
pub(crate) struct Slice<F> {
    pub(crate) file: F,
    pub(crate) offset: u64,
}

impl<F: Borrow<File>> Read for Slice<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let file: &File = self.file.borrow();
        let read = file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// A file that is gone when it is closed, whatever happens.
fn nameless_file(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(folder, flags, Mode::from(0o600))?))
}

fn failed(doing: &str) -> impl FnOnce(io::Error) -> BuildError {
    let doing = doing.to_owned();
    move |source| BuildError::Io { doing, source }
}

/// Folders of unpacked layers, topmost first.
pub(crate) struct Lowers {
    folders: Vec<PathBuf>,
}

impl Lowers {
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.folders.clone()
    }
}

/// Where a process writes its changes.
pub(crate) struct Change {
    folder: Temporary,
}

impl Change {
    pub(crate) fn upper(&self) -> PathBuf {
        self.folder.path.join("upper")
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.folder.path.join("work")
    }
}

/// A name for a temporary folder that no other has.
fn new_name() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    COUNTER.fetch_add(1, Ordering::Relaxed).to_string()
}

/// A folder that is removed unless it was moved away.
pub(crate) struct Temporary {
    path: PathBuf,
    removals: Removals,
}

impl Temporary {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        self.removals.remove(std::mem::take(&mut self.path));
    }
}

/// An image as a tree of files: paths from the indexes, bytes from unpacked layers.
struct View {
    merged: Merged,
    image: Vec<ImageLayer>,
    layers: Layers,
    /// Ends with the build that looks.
    stop: CancellationToken,
    runtime: tokio::runtime::Handle,
}

impl Tree for View {
    fn node(&self, path: &str) -> Option<Node> {
        self.merged.get(path).map(|placed| placed.node)
    }

    fn children(&self, path: &str) -> Vec<String> {
        self.merged.names(path)
    }

    /// Unpacks the file's layer if it is not, unless the index has the file. Called from blocking
    /// threads only.
    fn open(&self, path: &str) -> io::Result<Box<dyn Read + Send>> {
        let missing = || self.failure().unwrap_or_else(|| io::ErrorKind::NotFound.into());
        let placed = self.merged.get(path).ok_or_else(missing)?;
        if let Some(bytes) = self.merged.content(&placed) {
            return Ok(Box::new(io::Cursor::new(bytes)));
        }
        let layer = &self.image[placed.layer];
        let folder = self.runtime.block_on(self.layers.folder(layer, &self.stop));
        let folder = folder.map_err(io::Error::other)?;
        let root = rustix::fs::open(
            &folder,
            OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let file = rustix::fs::openat2(&root, &*bytes_of(path), flags, Mode::empty(), resolve)?;
        Ok(Box::new(File::from(file)))
    }

    fn failure(&self) -> Option<io::Error> {
        self.merged.failure()
    }
}
