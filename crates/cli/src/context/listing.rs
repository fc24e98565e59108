//! A context as a list of what is in it, with the digest of every file.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use api::{PACK_FILES_MAX, PACK_SIZE_MAX, PackedFile, SourceEntry, SourceEntryKind};
use bytes::Bytes;
use oci::Digest;

use super::file::{Exactly, open_regular, packing};
use super::index::Index;
use super::key::{FileKey, hash, now};
use super::walk::{FileId, linked_id, walk};
use super::{Source, Summary};
use crate::error::{Error, ErrorKind, Result, could_not};

/// Files hashed at once.
const READERS_MAX: usize = 16;
/// Read at once from a file.
const BUFFER_SIZE: usize = 128 << 10;

/// A list, and where the files in it are.
pub(super) struct Listing {
    /// Lines of JSON.
    pub(super) text: Bytes,
    pub(super) digest: Digest,
    contents: Vec<Content>,
    /// The content of each file in the list, in its order.
    files: Vec<usize>,
    pub(super) summary: Summary,
    /// Files that were read; digests of the others were known.
    pub(super) hashed: usize,
}

/// The bytes of a file.
struct Content {
    place: Place,
    digest: Digest,
    size: u64,
}

enum Place {
    /// Not in the context: the Dockerfile.
    Text(Bytes),
    File {
        file: PathBuf,
        key: FileKey,
    },
}

/// One path of the context while it is listed.
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
    /// Number of its content, and the number that its names have in common.
    File {
        content: usize,
        link: Option<u64>,
    },
}

/// A file to which no digest is known yet, or is now.
struct Unread {
    file: PathBuf,
    /// In the context.
    path: PathBuf,
    key: FileKey,
    digest: Option<Digest>,
}

/// Lists a context and remembers it in the index. Blocking.
pub(super) fn list(source: &Source, index: &mut Index) -> Result<Listing> {
    let began = now();
    let mut lister = Lister::default();
    if let Some(folder) = &source.folder {
        walk(source, folder, &mut |file, path, found| lister.add(file, path, found))?;
    }
    let Lister { entries, mut files, mut summary, .. } = lister;
    for file in &mut files {
        file.digest = index.digest(&file.path, &file.key).cloned();
    }
    let hashed = hash_all(&mut files)?;
    summary.size = files.iter().map(|file| file.key.size).sum();
    let mut text = Vec::with_capacity(192 * (entries.len() + 1));
    let mut contents = Vec::with_capacity(files.len() + 1);
    let mut numbers = Vec::with_capacity(files.len() + 1);
    if let Some(dockerfile) = &source.dockerfile {
        let (digest, size) = (Digest::of(dockerfile), dockerfile.len() as u64);
        let kind =
            SourceEntryKind::File { mode: 0o644, size, digest: digest.to_string(), link: None };
        let path = source.dockerfile_path.clone();
        write_line(&mut text, &SourceEntry { path, kind, mtime: 0 })?;
        numbers.push(0);
        contents.push(Content { place: Place::Text(dockerfile.clone().into()), digest, size });
    }
    for entry in entries {
        if let EntryKind::File { content, .. } = entry.kind {
            numbers.push(contents.len() + content);
        }
        write_line(&mut text, &wire_entry(entry, &files)?)?;
    }
    let mut remembered = Vec::with_capacity(files.len());
    for Unread { file, path, key, digest } in files {
        let digest = digest.ok_or_else(|| Error::failed("a file was not hashed"))?;
        remembered.push((path, key, digest.clone()));
        contents.push(Content { place: Place::File { file, key }, digest, size: key.size });
    }
    index.set_files(began, remembered.into_iter());
    let text = Bytes::from(text);
    Ok(Listing { digest: Digest::of(&text), text, contents, files: numbers, summary, hashed })
}

#[derive(Default)]
struct Lister {
    entries: Vec<Entry>,
    files: Vec<Unread>,
    /// Files with several names: number of the content, and of the link.
    links: HashMap<FileId, (usize, u64)>,
    summary: Summary,
}

impl Lister {
    fn add(&mut self, file: &Path, path: &Path, found: &Metadata) -> Result<()> {
        let kind = found.file_type();
        let kind = if kind.is_dir() {
            EntryKind::Directory { mode: found.mode() & 0o7777, mtime: found.mtime() }
        } else if kind.is_symlink() {
            let target = fs::read_link(file).map_err(packing(path))?.into_os_string();
            let target = target.into_string().map_err(|_| not_text(path))?;
            EntryKind::Symlink { target, mtime: found.mtime() }
        } else if kind.is_file() {
            self.summary.files += 1;
            self.file(file, path, found)
        } else {
            self.summary.skipped.push(path.to_string_lossy().into_owned());
            return Ok(());
        };
        self.entries.push(Entry { path: path.to_owned(), kind });
        Ok(())
    }

    fn file(&mut self, file: &Path, path: &Path, found: &Metadata) -> EntryKind {
        let (content, id) = (self.files.len(), linked_id(found));
        if let Some((content, link)) = id.and_then(|id| self.links.get(&id)) {
            return EntryKind::File { content: *content, link: Some(*link) };
        }
        let (file, path, key) = (file.to_owned(), path.to_owned(), FileKey::of(found));
        self.files.push(Unread { file, path, key, digest: None });
        let link = id.map(|id| {
            let link = self.links.len() as u64;
            self.links.insert(id, (content, link));
            link
        });
        EntryKind::File { content, link }
    }
}

fn not_text(path: &Path) -> Error {
    let shown = path.display();
    Error::failed(format!("`{shown}` of the context has a name or a target that is not UTF-8"))
        .with_hint("rename it, or exclude it with `.dockerignore`")
}

fn wire_entry(entry: Entry, files: &[Unread]) -> Result<SourceEntry> {
    let (kind, mtime) = match entry.kind {
        EntryKind::Directory { mode, mtime } => (SourceEntryKind::Directory { mode }, mtime),
        EntryKind::Symlink { target, mtime } => (SourceEntryKind::Symlink { target }, mtime),
        EntryKind::File { content, link } => {
            let Unread { key, digest, .. } = &files[content];
            let digest = digest.as_ref().map(Digest::to_string).unwrap_or_default();
            let (mode, size) = (key.mode & 0o7777, key.size);
            (SourceEntryKind::File { mode, size, digest, link }, key.mtime.0)
        }
    };
    let path = entry.path.into_os_string().into_string();
    let path = path.map_err(|path| not_text(Path::new(&path)))?;
    Ok(SourceEntry { path, kind, mtime: mtime.max(0) })
}

fn write_line(text: &mut Vec<u8>, entry: &SourceEntry) -> Result<()> {
    serde_json::to_writer(&mut *text, entry).map_err(could_not("list the context"))?;
    text.push(b'\n');
    Ok(())
}

/// Hashes the files without a digest, on all cores; says how many those were.
fn hash_all(files: &mut [Unread]) -> Result<usize> {
    let unread: Vec<Mutex<&mut Unread>> =
        files.iter_mut().filter(|file| file.digest.is_none()).map(Mutex::new).collect();
    let next = AtomicUsize::new(0);
    let worker = || -> Result<()> {
        let mut buffer = vec![0; BUFFER_SIZE];
        while let Some(unread) = unread.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut unread = unread.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let (key, digest) = hash(&unread.file, &mut buffer).map_err(packing(&unread.path))?;
            (unread.key, unread.digest) = (key, Some(digest));
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

/// Files that travel together.
pub(super) struct Pack {
    /// Their numbers in the listing.
    contents: Vec<usize>,
    /// Bytes in the files.
    pub(super) size: u64,
}

impl Pack {
    pub(super) fn files(&self) -> u64 {
        self.contents.len() as u64
    }

    fn has_room_for(&self, size: u64) -> bool {
        self.contents.len() < PACK_FILES_MAX && self.size + size <= PACK_SIZE_MAX
    }
}

impl Listing {
    /// Missing files in packs, each within its bounds.
    pub(super) fn packs(&self, missing: &[(u64, u64)]) -> Result<Vec<Pack>> {
        let mut packs: Vec<Pack> = Vec::new();
        for (first, count) in missing {
            let row = usize::try_from(*first).ok().zip(usize::try_from(*count).ok());
            let row =
                row.and_then(|(first, count)| self.files.get(first..first.checked_add(count)?));
            let Some(row) = row else {
                let message = format!(
                    "the server wants {count} files from {first} on, of which there are fewer"
                );
                return Err(Error::failed(message));
            };
            self.add_to_packs(row, &mut packs);
        }
        Ok(packs)
    }

    fn add_to_packs(&self, contents: &[usize], packs: &mut Vec<Pack>) {
        for number in contents.iter().copied() {
            let size = self.contents[number].size;
            match packs.last_mut() {
                Some(pack) if pack.has_room_for(size) => {
                    pack.size += size;
                    pack.contents.push(number);
                }
                _ => packs.push(Pack { contents: vec![number], size }),
            }
        }
    }

    /// Writes a pack. A file that is not what was listed is a conflict. Blocking.
    pub(super) fn write_pack(&self, pack: &Pack, out: &mut dyn Write) -> Result<()> {
        let contents = || pack.contents.iter().map(|number| &self.contents[*number]);
        let head: Vec<PackedFile> = contents()
            .map(|content| PackedFile { digest: content.digest.to_string(), size: content.size })
            .collect();
        let failed = || could_not("send the context");
        let head = serde_json::to_vec(&head).map_err(could_not("list a pack"))?;
        out.write_all(&head).and_then(|()| out.write_all(b"\n")).map_err(failed())?;
        for content in contents() {
            match &content.place {
                Place::Text(text) => out.write_all(text).map_err(failed())?,
                Place::File { file, key } => {
                    let mut file = open_listed(file, key)?;
                    io::copy(&mut file, out).map_err(failed())?;
                }
            }
        }
        Ok(())
    }
}

/// Opens a file that is still as it was listed.
fn open_listed(file: &Path, key: &FileKey) -> Result<Exactly> {
    let changed = || {
        let message = format!("`{}` changed while it was sent", file.display());
        Error::new(ErrorKind::Conflict, message)
    };
    let opened = open_regular(file).map_err(|_| changed())?;
    let found = opened.metadata().map_err(packing(file))?;
    match FileKey::of(&found) == *key {
        true => Ok(Exactly { file: opened, left: key.size }),
        false => Err(changed()),
    }
}
