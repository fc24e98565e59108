//! An uploaded context becomes a folder.
//!
//! The archive is untrusted. Every path is opened from the destination with `openat2` and
//! without following links, so no entry can be written elsewhere whatever came before it.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use builder::{
    ArchiveFormat, ContextLimits, LIMITS_HINT, TarEntry, TarKind, TarNumbers, TarReader,
};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

/// Why a context was refused. `Display` is the user's sentence.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("the context is not a tar archive, plain or compressed with gzip, bzip2, xz or zstd")]
    NotAnArchive,
    #[error("the context's archive is damaged: {0}")]
    Damaged(String),
    #[error("`{path}` of the context leads out of it")]
    Escapes { path: String },
    #[error("`{path}` of the context is a device or the like")]
    SpecialFile { path: String },
    #[error("`{path}` of the context has a name that cannot be used")]
    BadName { path: String },
    #[error("the context has more than {max} files and folders")]
    TooManyEntries { max: usize },
    #[error("the context unpacks to more than {max} bytes")]
    TooLarge { max: u64 },
    #[error("the run was canceled")]
    Canceled,
    #[error("could not unpack `{path}` of the context")]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
}

impl UnpackError {
    /// Whether the cause is the user's input.
    pub fn is_users(&self) -> bool {
        !matches!(self, Self::Io { .. } | Self::Canceled)
    }

    /// What the user can do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::TooManyEntries { .. } | Self::TooLarge { .. } => Some(LIMITS_HINT.to_owned()),
            _ => None,
        }
    }
}

/// How much an archive held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacked {
    pub bytes: u64,
    pub entries: usize,
}

/// What is left of the limits.
pub(crate) fn after(limits: ContextLimits, used: Unpacked) -> ContextLimits {
    ContextLimits {
        bytes_max: limits.bytes_max.saturating_sub(used.bytes),
        entries_max: limits.entries_max.saturating_sub(used.entries),
    }
}

/// Unpacks an archive into an existing empty folder. Blocking; `cancel` is looked at between
/// entries and pieces of files.
pub fn unpack(
    archive: impl Read + Send,
    folder: &Path,
    limits: ContextLimits,
    cancel: &CancellationToken,
) -> Result<Unpacked, UnpackError> {
    let mut unpacker = Unpacker::new(folder, limits, cancel.clone())?;
    unpacker.add_archive(archive)?;
    unpacker.finish()
}

pub(crate) fn decompress<'a>(
    archive: impl Read + Send + 'a,
) -> Result<Box<dyn Read + Send + 'a>, UnpackError> {
    let mut reader = BufReader::with_capacity(128 << 10, archive);
    let start = reader.fill_buf().map_err(|source| UnpackError::Io { path: ".".into(), source })?;
    let format = ArchiveFormat::of(start);
    let is_tar = start.len() > 262 && &start[257..262] == b"ustar";
    // The end of an archive without entries: an empty context.
    let is_empty_tar = start.len() >= 1024 && start[..1024].iter().all(|byte| *byte == 0);
    match format {
        ArchiveFormat::Plain if !is_tar && !is_empty_tar => Err(UnpackError::NotAnArchive),
        format => {
            let decompressed = format.decompress(reader);
            decompressed.map_err(|error| UnpackError::Damaged(error.to_string()))
        }
    }
}

/// Stops reading with an error at a bound.
pub(crate) struct Counted<R> {
    pub(crate) inner: R,
    pub(crate) read: u64,
    pub(crate) max: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.read += read as u64;
        match self.read > self.max {
            true => Err(io::ErrorKind::QuotaExceeded.into()),
            false => Ok(read),
        }
    }
}

/// Fills a folder. Blocking.
pub(crate) struct Unpacker {
    root: OwnedFd,
    /// Modes of folders, set at the end so that a read-only one can still be filled.
    folders: BTreeMap<String, u32>,
    limits: ContextLimits,
    used: Unpacked,
    cancel: CancellationToken,
}

fn failed(path: &str, errno: Errno) -> UnpackError {
    UnpackError::Io { path: path.to_owned(), source: errno.into() }
}

impl Unpacker {
    pub(crate) fn new(
        folder: &Path,
        limits: ContextLimits,
        cancel: CancellationToken,
    ) -> Result<Self, UnpackError> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = rustix::fs::open(folder, flags, Mode::empty());
        let root = root.map_err(|errno| failed(".", errno))?;
        Ok(Self { root, folders: BTreeMap::new(), limits, used: Unpacked::default(), cancel })
    }

    /// Everything that is in an archive.
    pub(crate) fn add_archive(&mut self, archive: impl Read + Send) -> Result<(), UnpackError> {
        // One byte more than allowed tells too large from just fitting.
        let before = self.used.bytes;
        let max = self.limits.bytes_max.saturating_sub(before);
        let mut counted = Counted { inner: decompress(archive)?, read: 0, max };
        let added = self.add_entries(&mut TarReader::new(&mut counted));
        self.used.bytes = self.used.bytes.max(before.saturating_add(counted.read));
        added.map_err(|error| match error {
            UnpackError::Io { source, .. } if source.kind() == io::ErrorKind::QuotaExceeded => {
                UnpackError::TooLarge { max: self.limits.bytes_max }
            }
            error => error,
        })
    }

    fn add_entries<R: Read>(&mut self, tar: &mut TarReader<R>) -> Result<(), UnpackError> {
        let damaged = |error: io::Error| match error.kind() {
            io::ErrorKind::QuotaExceeded => UnpackError::Io { path: ".".into(), source: error },
            _ => UnpackError::Damaged(error.to_string()),
        };
        while let Some(entry) = tar.next_entry().map_err(damaged)? {
            // A sparse file is larger than what the archive has of it.
            self.count(entry.size)?;
            self.entry(&entry, tar)?;
        }
        Ok(())
    }

    /// One file that is readable by all, and as old as can be.
    pub(crate) fn add_file(
        &mut self,
        path: &str,
        size: u64,
        mut content: impl Read,
    ) -> Result<(), UnpackError> {
        if clean(path.as_bytes())?.is_none() {
            return Err(UnpackError::BadName { path: path.to_owned() });
        }
        let (path, link) = (path.as_bytes().to_vec(), Vec::new());
        let numbers = TarNumbers { mode: Some(0o644), mtime: Some(0), ..TarNumbers::default() };
        let entry =
            TarEntry { kind: TarKind::File, path, link, size, numbers, xattrs: BTreeMap::new() };
        self.count(size)?;
        self.entry(&entry, &mut content)
    }

    /// Counts what comes next, before it comes.
    fn count(&mut self, size: u64) -> Result<(), UnpackError> {
        if self.used.entries >= self.limits.entries_max {
            return Err(UnpackError::TooManyEntries { max: self.limits.entries_max });
        }
        if self.cancel.is_cancelled() {
            return Err(UnpackError::Canceled);
        }
        self.used.entries += 1;
        self.used.bytes = self.used.bytes.saturating_add(size);
        match self.used.bytes > self.limits.bytes_max {
            true => Err(UnpackError::TooLarge { max: self.limits.bytes_max }),
            false => Ok(()),
        }
    }

    pub(crate) fn finish(self) -> Result<Unpacked, UnpackError> {
        self.set_folder_modes()?;
        Ok(self.used)
    }

    /// Makes an entry; `content` gives its bytes.
    fn entry(&mut self, entry: &TarEntry, content: &mut impl Read) -> Result<(), UnpackError> {
        let Some(path) = clean(&entry.path)? else { return Ok(()) };
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
        match entry.kind {
            TarKind::Directory => {
                self.folder(&path)?;
                self.folders.insert(path, entry.numbers.mode.unwrap_or(0o755));
                Ok(())
            }
            TarKind::File => {
                let parent = self.folder(folder)?;
                self.file(&parent, name, &path, entry, content)
            }
            TarKind::Symlink => {
                let parent = self.folder(folder)?;
                let target = entry.link.as_slice();
                if target.is_empty() || target.contains(&0) {
                    return Err(UnpackError::BadName { path });
                }
                self.make_room(&parent, name, &path)?;
                rustix::fs::symlinkat(target, &parent, name).map_err(|e| failed(&path, e))
            }
            TarKind::HardLink => {
                let Some(target) = clean(&entry.link)? else {
                    return Err(UnpackError::BadName { path });
                };
                let parent = self.folder(folder)?;
                self.hard_link(&parent, name, &path, &target)
            }
            TarKind::CharDevice | TarKind::BlockDevice | TarKind::Fifo => {
                Err(UnpackError::SpecialFile { path })
            }
            // Headers about the archive itself.
            TarKind::Other => Ok(()),
        }
    }

    fn file(
        &self,
        parent: &OwnedFd,
        name: &str,
        path: &str,
        entry: &TarEntry,
        content: &mut impl Read,
    ) -> Result<(), UnpackError> {
        self.make_room(parent, name, path)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(parent, name, flags | OFlags::CLOEXEC, Mode::from(0o600));
        let fd = fd.map_err(|errno| failed(path, errno))?;
        let mode = entry.numbers.mode.unwrap_or(0o644);
        let mut file = std::fs::File::from(fd);
        let io = |source| UnpackError::Io { path: path.to_owned(), source };
        let mut buffer = vec![0; 64 << 10];
        loop {
            if self.cancel.is_cancelled() {
                return Err(UnpackError::Canceled);
            }
            let read = content.read(&mut buffer).map_err(io)?;
            if read == 0 {
                break;
            }
            io::Write::write_all(&mut file, &buffer[..read]).map_err(io)?;
        }
        rustix::fs::fchmod(&file, Mode::from(mode)).map_err(|errno| failed(path, errno))?;
        let time = Timespec { tv_sec: entry.numbers.mtime.unwrap_or(0), tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::futimens(&file, &times).map_err(|errno| failed(path, errno))
    }

    /// Gives a file that was unpacked before another name. No link is followed, neither on the
    /// way to the file nor at its end.
    fn hard_link(
        &self,
        parent: &OwnedFd,
        name: &str,
        path: &str,
        target: &str,
    ) -> Result<(), UnpackError> {
        let (target_folder, target_name) = target.rsplit_once('/').unwrap_or(("", target));
        let damaged = |what: &str| {
            UnpackError::Damaged(format!("`{path}` is another name of `{target}`, {what}"))
        };
        let missing = || damaged("which does not come before it");
        let target_parent = match open_folder(&self.root, target_folder) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Err(missing()),
            Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => {
                return Err(UnpackError::Escapes { path: target.to_owned() });
            }
            Err(errno) => return Err(failed(path, errno)),
        };
        let found = match rustix::fs::statat(&target_parent, target_name, AtFlags::SYMLINK_NOFOLLOW)
        {
            Ok(stat) => FileType::from_raw_mode(stat.st_mode),
            Err(Errno::NOENT) => return Err(missing()),
            Err(errno) => return Err(failed(path, errno)),
        };
        if found == FileType::Directory {
            return Err(damaged("which is a folder"));
        }
        if target == path {
            return Ok(());
        }
        self.make_room(parent, name, path)?;
        let flags = AtFlags::empty();
        let linked = rustix::fs::linkat(&target_parent, target_name, parent, name, flags);
        linked.map_err(|errno| failed(path, errno))
    }

    /// Removes what an earlier entry of the same name has left; folders stay and are an error.
    fn make_room(&self, parent: &OwnedFd, name: &str, path: &str) -> Result<(), UnpackError> {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(failed(path, errno)),
        }
    }

    /// Opens a folder, making it and those above it where they are missing. A link on the
    /// way is an error: an honest packer names the real folder.
    fn folder(&self, path: &str) -> Result<OwnedFd, UnpackError> {
        match open_folder(&self.root, path) {
            Ok(fd) => return Ok(fd),
            Err(Errno::NOENT) => (),
            Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => {
                return Err(UnpackError::Escapes { path: path.to_owned() });
            }
            Err(errno) => return Err(failed(path, errno)),
        }
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let above = self.folder(above)?;
        match rustix::fs::mkdirat(&above, name, Mode::from(0o755)) {
            Ok(()) | Err(Errno::EXIST) => (),
            Err(errno) => return Err(failed(path, errno)),
        }
        let made = rustix::fs::openat(
            &above,
            name,
            OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        made.map_err(|errno| match errno {
            Errno::LOOP | Errno::NOTDIR => UnpackError::Escapes { path: path.to_owned() },
            errno => failed(path, errno),
        })
    }

    fn set_folder_modes(&self) -> Result<(), UnpackError> {
        for (path, mode) in self.folders.iter().rev() {
            let fd = open_folder(&self.root, path).map_err(|errno| failed(path, errno))?;
            rustix::fs::fchmod(fd.as_fd(), Mode::from(*mode))
                .map_err(|errno| failed(path, errno))?;
        }
        Ok(())
    }
}

fn open_folder(root: impl AsFd, path: &str) -> rustix::io::Result<OwnedFd> {
    let root: BorrowedFd<'_> = root.as_fd();
    let path = if path.is_empty() { "." } else { path };
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

/// A path of the archive, relative and without `.`; `None` for the context's root.
fn clean(path: &[u8]) -> Result<Option<String>, UnpackError> {
    let lossy = || String::from_utf8_lossy(path).into_owned();
    let text = std::str::from_utf8(path).map_err(|_| UnpackError::BadName { path: lossy() })?;
    if text.contains('\0') {
        return Err(UnpackError::BadName { path: lossy() });
    }
    let parts: Vec<&str> =
        text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if text.starts_with('/') || parts.contains(&"..") {
        return Err(UnpackError::Escapes { path: lossy() });
    }
    Ok(Some(parts.join("/")).filter(|path| !path.is_empty()))
}
