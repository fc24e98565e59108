//! A context as a tar.gz, written as it is read: neither is ever whole in memory.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};

use super::{NEVER_ENTERED, Source};
use crate::error::{Error, Result, could_not};

/// What was sent, for the user.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PackSummary {
    pub(crate) files: u64,
    /// Bytes in files, before compression; of a file with several names, once.
    pub(crate) size: u64,
    /// Sockets, pipes and devices, which no context holds.
    pub(crate) skipped: Vec<String>,
}

/// Writes the archive. Blocking.
pub(super) fn pack(
    source: &Source,
    compression: Compression,
    out: impl Write,
) -> Result<PackSummary> {
    let mut archive = Builder::new(GzEncoder::new(out, compression));
    archive.follow_symlinks(false);
    let (links, summary) = (HashMap::new(), PackSummary::default());
    let mut packer = Packer { source, archive, links, summary };
    if let Some(dockerfile) = &source.dockerfile {
        packer.dockerfile(dockerfile)?;
    }
    if let Some(folder) = &source.folder {
        packer.folder(folder)?;
    }
    let Packer { archive, summary, .. } = packer;
    archive.into_inner().and_then(GzEncoder::finish).map_err(could_not("end the archive"))?;
    Ok(summary)
}

struct Packer<'a, W: Write> {
    source: &'a Source,
    archive: Builder<GzEncoder<W>>,
    /// Files with several names: the name that was packed.
    links: HashMap<FileId, PathBuf>,
    summary: PackSummary,
}

/// What the names of one file have in common: device, number and time of the last change. With
/// the time, a file that changes while it is packed is no longer the one that was.
type FileId = (u64, u64, i64, i64);

/// The file's id if it has several names.
fn linked_id(found: &Metadata) -> Option<FileId> {
    let id = (found.dev(), found.ino(), found.ctime(), found.ctime_nsec());
    (found.nlink() > 1).then_some(id)
}

/// The header of a plain file that is the same whoever packs it: root's, without a time. Its path
/// and checksum are still to be set.
pub(crate) fn file_header(size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

/// A folder whose entries are being packed.
struct Folder {
    path: PathBuf,
    /// Names still to come, the last first.
    names: Vec<std::ffi::OsString>,
    /// The folder's own entry, not written yet: an excluded folder travels only if
    /// something in it does.
    pending: Option<Metadata>,
}

impl<W: Write> Packer<'_, W> {
    fn dockerfile(&mut self, text: &[u8]) -> Result<()> {
        let mut header = file_header(text.len() as u64);
        let path = self.source.dockerfile_path.clone();
        self.archive.append_data(&mut header, path, text).map_err(could_not("pack the Dockerfile"))
    }

    /// Walks the context without recursion: its depth is not ours to choose.
    fn folder(&mut self, root: &Path) -> Result<()> {
        let mut open = vec![Folder { path: PathBuf::new(), names: names(root)?, pending: None }];
        while let Some(folder) = open.last_mut() {
            let Some(name) = folder.names.pop() else {
                open.pop();
                continue;
            };
            let path = folder.path.join(&name);
            let file = root.join(&path);
            let found = match fs::symlink_metadata(&file) {
                Ok(found) => found,
                // Gone since the folder was listed: as if it had never been there.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(could_not(format!("read `{}`", file.display()))(error)),
            };
            if found.is_dir() && name == NEVER_ENTERED {
                continue;
            }
            let shown = path.to_string_lossy();
            let excluded = self.source.is_excluded(&shown);
            if found.is_dir() {
                // What is not sent need not be readable.
                if excluded && !self.source.may_hold_exceptions(&shown) {
                    continue;
                }
                open.push(Folder { names: names(&file)?, path, pending: Some(found) });
                if !excluded {
                    self.pending_folders(&mut open)?;
                }
            } else if !excluded {
                self.pending_folders(&mut open)?;
                self.entry(&file, &path, &found)?;
            }
        }
        Ok(())
    }

    /// Writes the entries of the folders around what comes next.
    fn pending_folders(&mut self, open: &mut [Folder]) -> Result<()> {
        for folder in open {
            let Some(found) = folder.pending.take() else { continue };
            let mut header = header(&found, EntryType::Directory);
            self.archive
                .append_data(&mut header, &folder.path, io::empty())
                .map_err(packing(&folder.path))?;
        }
        Ok(())
    }

    fn entry(&mut self, file: &Path, path: &Path, found: &Metadata) -> Result<()> {
        let kind = found.file_type();
        if kind.is_symlink() {
            let target = fs::read_link(file).map_err(packing(path))?;
            let mut header = header(found, EntryType::Symlink);
            let target = target.as_os_str().as_bytes();
            return self.link(&mut header, path, target).map_err(packing(path));
        }
        if !kind.is_file() {
            self.summary.skipped.push(path.to_string_lossy().into_owned());
            return Ok(());
        }
        if let Some(first) = linked_id(found).and_then(|id| self.links.get(&id)) {
            let mut header = header(found, EntryType::Link);
            let first = first.as_os_str().as_bytes().to_vec();
            self.link(&mut header, path, &first).map_err(packing(path))?;
            self.summary.files += 1;
            return Ok(());
        }
        let opened = open_regular(file).map_err(packing(path))?;
        // The size that counts is that of what was opened.
        let found = opened.metadata().map_err(packing(path))?;
        let mut header = header(&found, EntryType::Regular);
        header.set_size(found.len());
        let mut content = Exactly { file: opened, left: found.len() };
        self.archive.append_data(&mut header, path, &mut content).map_err(packing(path))?;
        if let Some(id) = linked_id(&found) {
            self.links.insert(id, path.to_owned());
        }
        self.summary.files += 1;
        self.summary.size += found.len();
        Ok(())
    }
}

impl<W: Write> Packer<'_, W> {
    /// Writes a link with its target just as it is; the library's own way would tidy it up.
    fn link(&mut self, header: &mut Header, path: &Path, target: &[u8]) -> io::Result<()> {
        if header.set_link_name_literal(target).is_err() {
            // In front, as GNU's tar has long ones. The end of the text is marked.
            let mut long = Header::new_gnu();
            long.set_entry_type(EntryType::GNULongLink);
            let name = b"././@LongLink";
            long.as_mut_bytes()[..name.len()].copy_from_slice(name);
            for set in [Header::set_uid, Header::set_gid, Header::set_mtime] {
                set(&mut long, 0);
            }
            long.set_mode(0o644);
            long.set_size(target.len() as u64 + 1);
            long.set_cksum();
            self.archive.append(&long, target.chain(&[0][..]))?;
        }
        self.archive.append_data(header, path, io::empty())
    }
}

/// Opens what was seen to be a file; what has become a pipe since must not block us.
pub(super) fn open_regular(file: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = File::from(rustix::fs::open(file, flags, Mode::empty())?);
    match opened.metadata()?.is_file() {
        true => Ok(opened),
        false => Err(io::Error::other("it is no file any more")),
    }
}

/// Mode and time of the file; owners are the build's to choose.
fn header(found: &Metadata, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mode(found.permissions().mode() & 0o7777);
    header.set_mtime(u64::try_from(found.mtime()).unwrap_or(0));
    header
}

/// Names in a folder, the last first, so that archives of equal folders are equal.
fn names(folder: &Path) -> Result<Vec<std::ffi::OsString>> {
    let doing = || could_not(format!("list `{}`", folder.display()));
    let entries = fs::read_dir(folder).map_err(doing())?;
    let names: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.file_name())).collect();
    let mut names = names.map_err(doing())?;
    names.sort_unstable_by(|a, b| b.as_bytes().cmp(a.as_bytes()));
    Ok(names)
}

pub(super) fn packing(path: &Path) -> impl FnOnce(io::Error) -> Error {
    could_not(format!("pack `{}`", path.display()))
}

/// Reads as many bytes as the archive was promised; a file that shrinks meanwhile is an
/// error, for the archive would be nonsense.
pub(super) struct Exactly {
    pub(super) file: File,
    pub(super) left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read(&mut buffer[..room])?;
        if count == 0 && room > 0 {
            return Err(io::Error::other("the file became shorter while it was read"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}
