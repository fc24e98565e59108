//! A context as a list of what is in it, with the digest of every file.
//!
//! A context may have a million files, and a client little memory: what is in memory is the batch
//! that is being listed, and files with several names.

use std::collections::{HashMap, hash_map};
use std::fs::{self, Metadata};
use std::io::{self, BufReader, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use api::{SourceEntry, SourceEntryKind};
use oci::Digest;

use super::file::packing;
use super::index::Index;
use super::key::{FileKey, hash};
use super::records::{Known, RecordWriter, Records};
use super::spool::{Spool, Spooled};
use super::walk::{FileId, linked_id, walk};
use super::{Source, Summary};
use crate::error::{Error, Result, could_not};

/// Files hashed at once.
const READERS_MAX: usize = 16;
/// Read at once from a file.
const BUFFER_SIZE: usize = 128 << 10;
/// Entries that are hashed and written together: enough to keep all readers busy, and all that is
/// in memory of a context. Few in tests, so that theirs are of several.
const BATCH_MAX: usize = if cfg!(test) { 4 } else { 8192 };
/// Batches that wait while another is hashed.
const BATCHES_MAX: usize = 1;

/// A list, and where the files in it are. What there is of each file is on disk.
pub(super) struct Listing {
    /// Lines of JSON.
    text: Spooled,
    pub(super) digest: Digest,
    /// The context's folder; without one there are no files in it.
    pub(super) folder: PathBuf,
    /// The first file of the list, if it is not in the context.
    pub(super) dockerfile: Option<Dockerfile>,
    /// The others, in the order of the list.
    pub(super) records: Records,
    /// When hashing began.
    pub(super) began: Duration,
    pub(super) summary: Summary,
    /// Files that were read; digests of the others were known.
    pub(super) hashed: usize,
}

pub(super) struct Dockerfile {
    pub(super) text: Vec<u8>,
    pub(super) digest: Digest,
}

/// One path of the context.
struct Entry {
    path: PathBuf,
    kind: EntryKind,
}

enum EntryKind {
    Directory {
        mode: u32,
        mtime: i64,
    },
    Symlink {
        target: String,
        mtime: i64,
    },
    File(FoundFile),
    /// It is in no list.
    Other,
}

struct FoundFile {
    key: FileKey,
    /// If it has several names.
    id: Option<FileId>,
    /// Another name of it came before.
    is_repeated: bool,
    digest: Option<Digest>,
}

/// Lists a context; `now` is the time. Blocking.
///
/// One thread walks, another one takes what was found in batches: digests that are known from the
/// index, whose records come in the order of the walk, then the others from the files themselves.
pub(super) fn list(source: &Source, index: &Index, now: Duration) -> Result<Listing> {
    let mut lister = Lister::new(index);
    let dockerfile = source.dockerfile.as_deref().map(Dockerfile::of);
    if let Some(dockerfile) = &dockerfile {
        lister.write_line(&dockerfile.entry(&source.dockerfile_path))?;
    }
    let folder = source.folder.clone().unwrap_or_default();
    if source.folder.is_some() {
        let (sender, batches) = sync_channel(BATCHES_MAX);
        std::thread::scope(|scope| {
            let walking = scope.spawn(|| walk_in_batches(source, &folder, sender));
            // When this fails, it takes no more batches, and so the walk ends too.
            let listed = batches.into_iter().try_for_each(|batch| lister.add(&folder, batch));
            let walked = walking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            listed.and(walked)
        })?;
    }
    let Lister { text, records, summary, hashed, .. } = lister;
    let ((text, hasher), records) = (text.finish(), records.finish());
    let digest = hasher.finish();
    Ok(Listing { text, digest, folder, dockerfile, records, began: now, summary, hashed })
}

impl Listing {
    /// Writes the list. Blocking.
    pub(super) fn write_text(&self, out: &mut dyn Write) -> Result<()> {
        let mut text = BufReader::with_capacity(BUFFER_SIZE, self.text.reader(0));
        io::copy(&mut text, out).map(drop).map_err(could_not("send a list"))
    }
}

impl Dockerfile {
    fn of(text: &[u8]) -> Self {
        Self { text: text.to_owned(), digest: Digest::of(text) }
    }

    fn entry(&self, path: &str) -> SourceEntry {
        let (size, digest) = (self.text.len() as u64, self.digest.to_string());
        let kind = SourceEntryKind::File { mode: 0o644, size, digest, link: None };
        SourceEntry { path: path.to_owned(), kind, mtime: 0 }
    }
}

fn walk_in_batches(source: &Source, folder: &Path, batches: SyncSender<Vec<Entry>>) -> Result<()> {
    let send = |batch| batches.send(batch).map_err(could_not("list the context"));
    let mut batch = Vec::new();
    walk(source, folder, &mut |file, path, found| {
        let kind = EntryKind::of(file, path, found)?;
        batch.push(Entry { path: path.to_owned(), kind });
        match batch.len() {
            BATCH_MAX => send(std::mem::take(&mut batch)),
            _ => Ok(()),
        }
    })?;
    send(batch)
}

impl EntryKind {
    fn of(file: &Path, path: &Path, found: &Metadata) -> Result<Self> {
        let kind = found.file_type();
        Ok(if kind.is_dir() {
            Self::Directory { mode: found.mode() & 0o7777, mtime: found.mtime() }
        } else if kind.is_symlink() {
            let target = fs::read_link(file).map_err(packing(path))?.into_os_string();
            let target = target.into_string().map_err(|_| not_text(path))?;
            Self::Symlink { target, mtime: found.mtime() }
        } else if kind.is_file() {
            let (key, id) = (FileKey::of(found), linked_id(found));
            Self::File(FoundFile { key, id, is_repeated: false, digest: None })
        } else {
            Self::Other
        })
    }
}

struct Lister<'a> {
    known: Known<'a>,
    text: Spool,
    records: RecordWriter,
    /// Files with several names.
    links: HashMap<FileId, Link>,
    summary: Summary,
    hashed: usize,
}

/// What several names of a file have in common.
struct Link {
    /// In the list.
    number: u64,
    /// The last record of them, once there is one.
    place: u64,
}

impl<'a> Lister<'a> {
    fn new(index: &'a Index) -> Self {
        Self {
            known: index.known(),
            text: Spool::new(index.folder()),
            records: RecordWriter::new(index.folder()),
            links: HashMap::new(),
            summary: Summary::default(),
            hashed: 0,
        }
    }

    fn add(&mut self, folder: &Path, mut batch: Vec<Entry>) -> Result<()> {
        for Entry { path, kind } in &mut batch {
            if let EntryKind::File(file) = kind {
                file.is_repeated = self.is_repeated(file);
                file.digest = self.known.digest(path, &file.key);
            }
        }
        self.hashed += hash_all(folder, &mut batch)?;
        batch.into_iter().try_for_each(|entry| self.write(entry))
    }

    fn is_repeated(&mut self, file: &FoundFile) -> bool {
        let Some(id) = file.id else { return false };
        let number = self.links.len() as u64;
        match self.links.entry(id) {
            hash_map::Entry::Occupied(_) => true,
            hash_map::Entry::Vacant(place) => {
                place.insert(Link { number, place: u64::MAX });
                false
            }
        }
    }

    fn write(&mut self, Entry { path, kind }: Entry) -> Result<()> {
        let (kind, mtime) = match kind {
            EntryKind::Directory { mode, mtime } => (SourceEntryKind::Directory { mode }, mtime),
            EntryKind::Symlink { target, mtime } => (SourceEntryKind::Symlink { target }, mtime),
            EntryKind::File(file) => self.write_file(&path, file)?,
            EntryKind::Other => {
                self.summary.skip(&path);
                return Ok(());
            }
        };
        let path = path.into_os_string().into_string();
        let path = path.map_err(|path| not_text(Path::new(&path)))?;
        self.write_line(&SourceEntry { path, kind, mtime: mtime.max(0) })
    }

    fn write_file(&mut self, path: &Path, file: FoundFile) -> Result<(SourceEntryKind, i64)> {
        let FoundFile { mut key, id, is_repeated, mut digest } = file;
        let link = id.and_then(|id| self.links.get_mut(&id));
        if let (true, Some(link)) = (is_repeated, &link) {
            let first = self.records.get(link.place).map_err(cannot_read)?;
            (key, digest) = (first.key, Some(first.digest));
        }
        let digest = digest.ok_or_else(|| Error::failed("a file was not hashed"))?;
        let place = self.records.add(path, &key, &digest).map_err(cannot_keep)?;
        let link = link.map(|link| {
            link.place = place;
            link.number
        });
        self.summary.files += 1;
        if !is_repeated {
            self.summary.size += key.size;
        }
        let (mode, size, digest) = (key.mode & 0o7777, key.size, digest.to_string());
        Ok((SourceEntryKind::File { mode, size, digest, link }, key.mtime.0))
    }

    fn write_line(&mut self, entry: &SourceEntry) -> Result<()> {
        let written = serde_json::to_writer(&mut self.text, entry).map_err(io::Error::from);
        written.and_then(|()| self.text.write_all(b"\n")).map_err(cannot_keep)
    }
}

fn cannot_keep(error: io::Error) -> Error {
    could_not("keep the list of the context in a temporary file")(error)
        .with_hint("it needs some room in the cache folder, which `XDG_CACHE_HOME` chooses")
}

pub(super) fn cannot_read(error: io::Error) -> Error {
    could_not("read the list of the context from a temporary file")(error)
}

fn not_text(path: &Path) -> Error {
    let shown = path.display();
    Error::failed(format!("`{shown}` of the context has a name or a target that is not UTF-8"))
        .with_hint("rename it, or exclude it with `.dockerignore`")
}

/// Hashes the files without a digest, on all cores; says how many those were.
fn hash_all(folder: &Path, batch: &mut [Entry]) -> Result<usize> {
    let unread = batch.iter_mut().filter_map(|Entry { path, kind }| match kind {
        EntryKind::File(file) if file.digest.is_none() && !file.is_repeated => {
            Some(Mutex::new((&*path, file)))
        }
        _ => None,
    });
    let unread: Vec<_> = unread.collect();
    let next = AtomicUsize::new(0);
    let worker = || -> Result<()> {
        let mut buffer = vec![0; BUFFER_SIZE];
        while let Some(unread) = unread.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut unread = unread.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let (path, file) = (unread.0.as_path(), &mut *unread.1);
            let (key, digest) = hash(&folder.join(path), &mut buffer).map_err(packing(path))?;
            (file.key, file.digest) = (key, Some(digest));
        }
        Ok(())
    };
    let readers = std::thread::available_parallelism().map_or(1, usize::from);
    let readers = readers.min(READERS_MAX).min(unread.len().div_ceil(16));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (1..readers).map(|_| scope.spawn(worker)).collect();
        let own = worker();
        let others = workers.into_iter().map(|worker| match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        others.fold(own, Result::and)
    })?;
    Ok(unread.len())
}

#[cfg(test)]
pub(super) mod tests;
