//! Blobs as files: `blobs/sha256/ab/HEX`, written under `uploads/`, synced, then renamed.
//!
//! A file that turns out to be damaged is moved to `damaged/`, for whoever looks into the
//! cause. It goes when the blob is stored again or collected.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::{collections::HashSet, num::NonZeroU64};

use async_trait::async_trait;
use bytes::Bytes;
use oci::{Algorithm, Digest, Hasher};
use rustix::fs::Advice;
use rustix::io::Errno;
use tokio::task::JoinHandle;

use crate::blob::{BlobReader, BlobStore, NamedUpload, Stored, Upload};
use crate::reserve::Reserve;
use crate::rows::BlobRows;
use crate::{Result, StoreError};

/// Read at once when an upload is hashed again after a restart.
const READ_SIZE: usize = 1 << 20;
/// Written bytes after which the kernel is asked to start putting them on the disk, so that
/// the sync at the end finds little left to do.
const WRITE_BACK: u64 = 8 << 20;

/// The file store of one data folder. Cheap to clone.
#[derive(Clone)]
pub struct DiskStore {
    shared: Arc<Shared>,
}

struct Shared {
    blobs: PathBuf,
    uploads: PathBuf,
    damaged: PathBuf,
    rows: BlobRows,
    reserve: Arc<Reserve>,
    /// Folders of blobs known to be durable themselves.
    folders: Mutex<HashSet<PathBuf>>,
}

impl DiskStore {
    /// Opens the store in a data folder, and removes what a killed process left half-written.
    pub async fn open(folder: &Path, db: db::Db) -> Result<Self> {
        let (blobs, uploads) = (folder.join("blobs"), folder.join("uploads"));
        let damaged = folder.join("damaged");
        let rows = BlobRows::open(db).await?;
        let (reserve, folders) = (Arc::new(Reserve::new(folder)), Mutex::default());
        let shared = Arc::new(Shared { blobs, uploads, damaged, rows, reserve, folders });
        let store = Self { shared };
        let (prepared, resumable) = (store.clone(), store.shared.rows.uploads().await?);
        let placed = blocking("prepare the data folder", move || prepared.prepare(&resumable));
        for placing in placed.await? {
            store.end_placing(placing).await?;
        }
        for digest in store.shared.rows.unlisted().await? {
            store.delete(&digest).await?;
        }
        store.keep_room().await?;
        Ok(store)
    }

    /// Makes the folders, sweeps what no session can take up, and tells which blobs were
    /// being placed when the process ended.
    fn prepare(&self, resumable: &HashSet<String>) -> io::Result<Vec<(Placing, PathBuf)>> {
        let mut placed = Vec::new();
        for folder in [&self.shared.blobs, &self.shared.uploads] {
            std::fs::create_dir_all(folder)?;
        }
        for entry in std::fs::read_dir(&self.shared.uploads)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            match Placing::of_marker(&name) {
                Some(mut placing) => {
                    placing.upload = placing.upload.filter(|name| resumable.contains(name));
                    placed.push((placing, entry.path()));
                }
                _ if resumable.contains(&name) => (),
                _ => std::fs::remove_file(entry.path())?,
            }
        }
        Ok(placed)
    }

    /// Decides about bytes that were being placed: listed ones stay, those of an upload that
    /// can be taken up go back to it, and others go.
    async fn end_placing(&self, (placing, marker): (Placing, PathBuf)) -> Result<()> {
        if let Some(name) = &placing.upload
            && !self.shared.rows.is_listed(&placing.digest).await?
        {
            let (shared, digest) = (Arc::clone(&self.shared), placing.digest.clone());
            let upload = self.shared.uploads.join(name);
            let give_back = move || shared.take_back(&digest, &upload);
            blocking("give an upload its bytes back", give_back).await?;
        }
        self.delete(&placing.digest).await?;
        blocking("prepare the data folder", move || remove_if_there(&marker)).await
    }

    /// The size of a blob that is listed and whole, as far as `look` can tell. One that is not
    /// whole counts as lost from then on.
    async fn look_at(&self, digest: &Digest, look: Look) -> Result<Option<u64>> {
        let Some(size) = self.shared.rows.size(digest).await? else { return Ok(None) };
        if self.damage(digest, size, look).await?.is_none() {
            return Ok(Some(size));
        }
        // Without the lock this may have been the work of who stores or deletes it just now.
        let (store, digest) = (self.clone(), digest.clone());
        to_the_end(async move {
            let _exclusive = store.shared.rows.lock(&digest).await;
            let Some(size) = store.shared.rows.size(&digest).await? else { return Ok(None) };
            let Some(damage) = store.damage(&digest, size, look).await? else {
                return Ok(Some(size));
            };
            tracing::error!(%digest, damage, "a blob is damaged: missing until it is stored again");
            store.shared.rows.lose(&digest).await?;
            let (shared, digest) = (Arc::clone(&store.shared), digest.clone());
            let aside = blocking("put a damaged blob aside", move || shared.set_aside(&digest));
            if let Err(error) = aside.await {
                // It is not looked at any more, and the next who stores the blob replaces it.
                tracing::warn!(%error, "a damaged blob stays where it is");
            }
            Ok(None)
        })
        .await
    }

    /// What is wrong with the file of a blob, if something is.
    async fn damage(&self, digest: &Digest, size: u64, look: Look) -> Result<Option<String>> {
        let (path, digest) = (self.shared.path(digest), digest.clone());
        blocking("look at a blob", move || damage(&path, &digest, size, look)).await
    }
}

/// How closely a blob is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Length,
    /// All bytes are read.
    Content,
}

fn damage(path: &Path, digest: &Digest, size: u64, look: Look) -> io::Result<Option<String>> {
    let length = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Some("its file is gone".to_owned()));
        }
        Err(error) => return Err(error),
    };
    if length != size {
        return Ok(Some(format!("its file has {length} bytes instead of {size}")));
    }
    if look == Look::Length {
        return Ok(None);
    }
    let mut hasher = Hasher::new(digest.algorithm());
    match hash_all(&mut File::open(path)?, &mut hasher) {
        Err(error) if is_of_medium(&error) => {
            return Ok(Some(format!("its file cannot be read: {error}")));
        }
        read => read?,
    };
    let actual = hasher.finish();
    Ok((actual != *digest).then(|| format!("its file has the digest {actual}")))
}

/// Whether a disk does not give back what was written to it.
fn is_of_medium(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::IO | Errno::BADMSG | Errno::UCLEAN))
}

/// How names of temporary files start; named uploads are UUIDs.
const TEMPORARY: &str = "tmp-";
/// How names of empty files start that say which blob is being placed: bytes under a digest
/// that the catalog does not list would otherwise be found only by looking at every file.
const PLACING: &str = "placing-";

/// A blob being placed, as the name of its marker tells: `placing-sha256-<hex>`, and
/// `-<upload>` if its bytes are those of a named upload, which were acknowledged and must not
/// go before they are listed.
struct Placing {
    digest: Digest,
    upload: Option<String>,
}

impl Placing {
    /// Of the file that becomes a blob.
    fn of(digest: &Digest, from: &Path) -> Self {
        let name = from.file_name().map(|name| name.to_string_lossy().into_owned());
        let upload = name.filter(|name| !name.starts_with(TEMPORARY));
        Self { digest: digest.clone(), upload }
    }

    fn of_marker(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(PLACING)?.splitn(3, '-');
        let digest = format!("{}:{}", parts.next()?, parts.next()?).parse().ok()?;
        Some(Self { digest, upload: parts.next().map(str::to_owned) })
    }

    fn marker(&self) -> String {
        let marker = format!("{PLACING}{}-{}", self.digest.algorithm().name(), self.digest.hex());
        match &self.upload {
            Some(upload) => format!("{marker}-{upload}"),
            None => marker,
        }
    }
}

impl Shared {
    fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.blobs.join(digest.algorithm().name()).join(&hex[..2]).join(hex)
    }

    /// Where a blob's damaged bytes are kept.
    fn aside(&self, digest: &Digest) -> PathBuf {
        self.damaged.join(format!("{}-{}", digest.algorithm().name(), digest.hex()))
    }

    fn set_aside(&self, digest: &Digest) -> io::Result<()> {
        std::fs::create_dir_all(&self.damaged)?;
        match std::fs::rename(self.path(digest), self.aside(digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Moves a finished file to its name, durably.
    fn place(&self, from: &Path, placing: &Placing) -> io::Result<()> {
        let to = self.path(&placing.digest);
        let folder = to.parent().unwrap_or(&self.blobs);
        self.make_folder(folder)?;
        File::create(self.uploads.join(placing.marker()))?;
        std::fs::rename(from, &to)?;
        File::open(folder)?.sync_all()
    }

    /// Gives a named upload the bytes back that were placed and could not be listed.
    fn take_back(&self, digest: &Digest, upload: &Path) -> io::Result<()> {
        if upload.exists() {
            return Ok(()); // They were not moved yet.
        }
        match std::fs::rename(self.path(digest), upload) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes a folder of blobs. Others wait until it is durable: what they put into it would
    /// be lost with it.
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
        if folders.contains(folder) {
            return Ok(());
        }
        if !folder.exists() {
            std::fs::create_dir_all(folder)?;
        }
        for parent in folder.ancestors().skip(1).take(3) {
            File::open(parent)?.sync_all()?;
        }
        folders.insert(folder.to_owned());
        Ok(())
    }
}

#[async_trait]
impl BlobStore for DiskStore {
    async fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        self.shared.rows.size(digest).await
    }

    async fn stat(&self, digest: &Digest) -> Result<Option<u64>> {
        self.look_at(digest, Look::Length).await
    }

    async fn verify(&self, digest: &Digest) -> Result<bool> {
        Ok(self.look_at(digest, Look::Content).await?.is_some())
    }

    async fn open(&self, digest: &Digest, offset: u64) -> Result<BlobReader> {
        // Twice: it may be stored again just when it was found damaged.
        for _ in 0..2 {
            let Some(size) = self.size(digest).await? else { break };
            let path = self.shared.path(digest);
            let file = blocking("open a blob", move || open_whole(&path, size, offset));
            if let Some(file) = file.await? {
                return Ok(BlobReader::from_file(file, size.saturating_sub(offset)));
            }
            self.look_at(digest, Look::Length).await?;
        }
        Err(StoreError::NotFound { what: format!("blob {digest}") })
    }

    async fn begin_upload(&self, algorithm: Algorithm) -> Result<Box<dyn Upload>> {
        let name = format!("{TEMPORARY}{}", uuid::Uuid::new_v4());
        let path = self.shared.uploads.join(name);
        let shared = Arc::clone(&self.shared);
        // Made as a whole there: when the caller goes away, so does the file.
        let begin = move || {
            shared.reserve.keep()?;
            let file = File::create_new(&path)?;
            let hasher = Hasher::new(algorithm);
            let writer = PipelinedWriter::new(Writing { file, hasher, size: 0, kept: 0, sent: 0 });
            Ok(DiskUpload { shared, path, writer, kept: false })
        };
        Ok(Box::new(blocking("start an upload", begin).await?))
    }

    async fn resume_upload(&self, name: &str) -> Result<Box<dyn NamedUpload>> {
        let path = self.shared.uploads.join(name);
        let (open, reserve) = (path.clone(), Arc::clone(&self.shared.reserve));
        let open = move || reserve.keep().and_then(|()| Writing::resume(&open));
        let writing = blocking("take up an upload", open).await?;
        let writer = PipelinedWriter::new(writing);
        Ok(Box::new(DiskNamedUpload { shared: Arc::clone(&self.shared), path, writer }))
    }

    async fn discard_upload(&self, name: &str) -> Result<()> {
        let path = self.shared.uploads.join(name);
        blocking("discard an upload", move || remove_if_there(&path)).await
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        let (shared, digest) = (Arc::clone(&self.shared), digest.clone());
        to_the_end(async move {
            let _exclusive = shared.rows.lock(&digest).await;
            if shared.rows.is_listed(&digest).await? {
                return Ok(());
            }
            shared.rows.evict(&digest);
            let (path, aside) = (shared.path(&digest), shared.aside(&digest));
            let remove = move || {
                remove_if_there(&path)?;
                remove_if_there(&aside)
            };
            blocking("delete a blob", remove).await?;
            shared.rows.forget(&digest).await
        })
        .await
    }

    async fn make_room(&self) -> Result<()> {
        let reserve = Arc::clone(&self.shared.reserve);
        blocking("make room", move || reserve.give()).await
    }

    async fn keep_room(&self) -> Result<()> {
        let reserve = Arc::clone(&self.shared.reserve);
        match blocking("keep room", move || reserve.keep()).await {
            Err(StoreError::NoSpace(_)) => Ok(()),
            result => result,
        }
    }
}

/// Opens a file at an offset, unless it is gone or has another size.
fn open_whole(path: &Path, size: u64, offset: u64) -> io::Result<Option<File>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result?,
    };
    if file.metadata()?.len() != size {
        return Ok(None);
    }
    if offset > 0 {
        file.seek(SeekFrom::Start(offset))?;
    }
    Ok(Some(file))
}

pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A file being written, and the digest of what it has so far.
struct Writing {
    file: File,
    hasher: Hasher,
    size: u64,
    /// Bytes that must outlive a failed write: those that were synced.
    kept: u64,
    /// Bytes that the kernel was asked to put on the disk.
    sent: u64,
}

impl Writing {
    /// Opens a file at its end, hashing what is there.
    fn resume(path: &Path) -> io::Result<Self> {
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut hasher = Hasher::sha256();
        let size = hash_all(&mut file, &mut hasher)?;
        Ok(Self { file, hasher, size, kept: size, sent: size })
    }

    fn append(&mut self, chunk: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(chunk) {
            // On a full disk, what nobody was promised gives its space back.
            self.file.set_len(self.kept)?;
            return Err(error);
        }
        self.hasher.update(chunk);
        self.size += chunk.len() as u64;
        if let Some(length) = NonZeroU64::new(self.size - self.sent)
            && length.get() >= WRITE_BACK
        {
            // Only a hint: pages that are dirty begin to be written.
            let _ = rustix::fs::fadvise(&self.file, self.sent, Some(length), Advice::DontNeed);
            self.sent = self.size;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.kept = self.size;
        Ok(())
    }

    fn digest(&mut self, algorithm: Algorithm) -> io::Result<Digest> {
        let digest = self.hasher.clone().finish();
        if digest.algorithm() == algorithm {
            return Ok(digest);
        }
        let mut hasher = Hasher::new(algorithm);
        self.file.seek(SeekFrom::Start(0))?;
        hash_all(&mut self.file, &mut hasher)?;
        Ok(hasher.finish())
    }
}

fn hash_all(file: &mut File, hasher: &mut Hasher) -> io::Result<u64> {
    let mut buffer = vec![0; READ_SIZE];
    let mut size = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(size),
            read => {
                hasher.update(&buffer[..read]);
                size += read as u64;
            }
        }
    }
}

/// Writes and hashes one chunk on a blocking thread while the caller fetches the next.
struct PipelinedWriter {
    /// Here when nothing is under way.
    idle: Option<Writing>,
    /// The state comes back with the outcome, so that a failed write keeps its file.
    busy: Option<JoinHandle<(Writing, io::Result<()>)>>,
    /// Bytes taken, those under way included.
    size: u64,
}

impl PipelinedWriter {
    fn new(writing: Writing) -> Self {
        let size = writing.size;
        Self { idle: Some(writing), busy: None, size }
    }

    /// Waits for the chunk under way.
    async fn settle(&mut self) -> Result<&mut Writing> {
        if let Some(busy) = &mut self.busy {
            let joined = busy.await;
            self.busy = None;
            let (writing, outcome) = joined.map_err(|error| io_error("write", error.into()))?;
            self.idle = Some(writing);
            outcome.map_err(|error| io_error("write a blob", error))?;
        }
        self.idle.as_mut().ok_or_else(|| {
            io_error("write a blob", io::Error::other("an earlier write did not end"))
        })
    }

    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        let length = chunk.len() as u64;
        self.run(move |writing| writing.append(&chunk)).await?;
        self.size += length;
        Ok(())
    }

    /// Starts work on the file after what is under way.
    async fn run<F>(&mut self, work: F) -> Result<()>
    where
        F: FnOnce(&mut Writing) -> io::Result<()> + Send + 'static,
    {
        self.settle().await?;
        if let Some(mut writing) = self.idle.take() {
            self.busy = Some(tokio::task::spawn_blocking(move || {
                let outcome = work(&mut writing);
                (writing, outcome)
            }));
        }
        Ok(())
    }

    /// Syncs the file and gives its digest and size.
    async fn finish(&mut self, algorithm: Algorithm) -> Result<Stored> {
        let (give, take) = tokio::sync::oneshot::channel();
        self.run(move |writing| {
            writing.sync()?;
            let digest = writing.digest(algorithm)?;
            // The receiver is gone only with the caller.
            let _ = give.send(Stored { digest, size: writing.size });
            Ok(())
        })
        .await?;
        self.settle().await?;
        take.await.map_err(|error| io_error("finish a blob", io::Error::other(error)))
    }
}

/// Makes a synced file the blob of its digest: renamed and listed under one lock.
async fn publish(
    shared: &Arc<Shared>,
    path: &Path,
    stored: Stored,
    expected: Option<&Digest>,
) -> Result<Stored> {
    if let Some(expected) = expected
        && *expected != stored.digest
    {
        let expected = expected.clone();
        return Err(StoreError::DigestMismatch { expected, actual: stored.digest });
    }
    let (shared, from) = (Arc::clone(shared), path.to_owned());
    to_the_end(async move {
        let _exclusive = shared.rows.lock(&stored.digest).await;
        let placing = Arc::new(Placing::of(&stored.digest, &from));
        let (place, upload, under) = (Arc::clone(&shared), from.clone(), Arc::clone(&placing));
        blocking("place a blob", move || place.place(&upload, &under)).await?;
        let listed = shared.rows.insert(&stored.digest, stored.size).await;
        // When even this question has no answer, the marker stays for the next start.
        let keep = listed.is_ok() || shared.rows.is_listed(&stored.digest).await?;
        let tidy = move || {
            match (keep, &placing.upload) {
                (true, _) => remove_if_there(&shared.aside(&placing.digest))?,
                (false, Some(_)) => shared.take_back(&placing.digest, &from)?,
                (false, None) => remove_if_there(&shared.path(&placing.digest))?,
            }
            remove_if_there(&shared.uploads.join(placing.marker()))
        };
        blocking("place a blob", tidy).await?;
        listed.map(|()| stored)
    })
    .await
}

/// Runs what must not stop half-way when the caller goes away: the lock of a digest is to be
/// held until its bytes and its row agree.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let joined = tokio::spawn(work).await;
    joined.unwrap_or_else(|error| Err(io_error("finish what it began", error.into())))
}

struct DiskUpload {
    shared: Arc<Shared>,
    path: PathBuf,
    writer: PipelinedWriter,
    kept: bool,
}

#[async_trait]
impl Upload for DiskUpload {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        self.writer.write(chunk).await
    }

    async fn file(&mut self) -> Result<Option<File>> {
        let path = self.path.clone();
        blocking("read an upload", move || File::open(path)).await.map(Some)
    }

    async fn commit(mut self: Box<Self>, expected: Option<&Digest>) -> Result<Stored> {
        let algorithm = match (&self.writer.idle, expected) {
            (_, Some(expected)) => expected.algorithm(),
            (Some(writing), None) => writing.hasher.algorithm(),
            (None, None) => self.writer.settle().await?.hasher.algorithm(),
        };
        let stored = self.writer.finish(algorithm).await?;
        // Placing goes on when the caller goes away, and needs the file.
        self.kept = true;
        let placed = publish(&self.shared, &self.path, stored, expected).await;
        self.kept = placed.is_ok();
        placed
    }
}

impl Drop for DiskUpload {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be removed now is swept at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

struct DiskNamedUpload {
    shared: Arc<Shared>,
    path: PathBuf,
    writer: PipelinedWriter,
}

#[async_trait]
impl NamedUpload for DiskNamedUpload {
    fn size(&self) -> u64 {
        self.writer.size
    }

    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        self.writer.write(chunk).await
    }

    async fn expect(&mut self, algorithm: Algorithm) -> Result<()> {
        let writing = self.writer.settle().await?;
        if writing.size == 0 {
            writing.hasher = Hasher::new(algorithm);
        }
        Ok(())
    }

    async fn sync(&mut self) -> Result<()> {
        self.writer.run(Writing::sync).await?;
        self.writer.settle().await.map(|_| ())
    }

    async fn commit(&mut self, expected: &Digest) -> Result<Stored> {
        let stored = self.writer.finish(expected.algorithm()).await?;
        publish(&self.shared, &self.path, stored, Some(expected)).await
    }
}

/// Runs blocking file work off the async threads.
async fn blocking<T, F>(doing: &str, work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> io::Result<T> + Send + 'static,
{
    let joined = tokio::task::spawn_blocking(work).await;
    joined.unwrap_or_else(|error| Err(error.into())).map_err(|error| io_error(doing, error))
}

fn io_error(doing: &str, source: io::Error) -> StoreError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::NoSpace(source),
        _ => StoreError::Io { doing: doing.to_owned(), source },
    }
}
