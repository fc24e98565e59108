//! Archives that `ADD` unpacks: tar, plain or compressed with gzip or zstd, told by what is
//! in them and never by their names.
//!
//! An archive is somebody's upload. Entries must stay below their folder, their number and
//! sizes are bounded, and their bytes go to one nameless file until the layer is written.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use oci::Hasher;

use crate::copy::{ArchiveEntry, CopyError};
use crate::name::{PATH_MAX, shown, text_of};
use crate::tar_reader::{BLOCK, TarEntry, TarKind, TarReader, is_header};
use crate::tree::{Node, NodeKind, Tree, components};

/// How much an archive may hold when it is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ArchiveLimits {
    pub(crate) bytes_max: u64,
    pub(crate) entries_max: usize,
}

impl Default for ArchiveLimits {
    /// Contexts.md section 3.
    fn default() -> Self {
        Self { bytes_max: 10 << 30, entries_max: 1_000_000 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Tar,
    Gzip,
    Zstd,
}

/// Whether `ADD` unpacks a file. One that is compressed in a way that we cannot read is
/// refused: unpacked or not would be a guess.
pub(crate) fn is_archive(source: &dyn Tree, path: &str) -> Result<bool, CopyError> {
    if !matches!(source.node(path).map(|node| node.kind), Some(NodeKind::File { .. })) {
        return Ok(false);
    }
    let read = || -> io::Result<Option<Format>> {
        let mut magic = Vec::new();
        source.open(path)?.take(6).read_to_end(&mut magic)?;
        if magic.starts_with(b"BZh") || magic.starts_with(b"\xfd7zXZ\0") {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        }
        let format = match magic.as_slice() {
            [0x1f, 0x8b, ..] => Format::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Format::Zstd,
            _ => Format::Tar,
        };
        let mut header = Vec::with_capacity(BLOCK);
        let Ok(reader) = decompress(source.open(path)?, format) else { return Ok(None) };
        // Broken compression is no archive; a broken disk shows when it is copied.
        let whole = reader.take(BLOCK as u64).read_to_end(&mut header).is_ok();
        let is_tar = whole && is_header(&header) && header[0] != 0;
        Ok(is_tar.then_some(format))
    };
    match read() {
        Ok(format) => Ok(format.is_some()),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Err(CopyError::Archive {
            path: path.to_owned(),
            reason: "`ADD` unpacks tar, plain or compressed with gzip or zstd, not this".to_owned(),
            hint: Some("`COPY` it as it is, or compress it with gzip or zstd".to_owned()),
        }),
        Err(error) => Err(broken(path, &error.to_string())),
    }
}

fn decompress(reader: Box<dyn Read + Send>, format: Format) -> io::Result<Box<dyn Read + Send>> {
    Ok(match format {
        Format::Tar => reader,
        Format::Gzip => Box::new(flate2::read::MultiGzDecoder::new(reader)),
        Format::Zstd => Box::new(zstd::Decoder::new(reader)?),
    })
}

fn broken(path: &str, reason: &str) -> CopyError {
    CopyError::Archive { path: path.to_owned(), reason: reason.to_owned(), hint: None }
}

/// Reads an archive: what is in it, with the bytes of its files appended to `spool`.
pub(crate) fn unpack(
    source: &dyn Tree,
    path: &str,
    spool: &mut File,
    limits: ArchiveLimits,
) -> Result<Vec<ArchiveEntry>, CopyError> {
    let fail = |error: io::Error| broken(path, &error.to_string());
    let mut magic = Vec::new();
    source.open(path).map_err(fail)?.take(4).read_to_end(&mut magic).map_err(fail)?;
    let format = match magic.as_slice() {
        [0x1f, 0x8b, ..] => Format::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd] => Format::Zstd,
        _ => Format::Tar,
    };
    let reader = decompress(source.open(path).map_err(fail)?, format).map_err(fail)?;
    // Padding and long names count too: all that is read of it is bounded.
    let mut archive = TarReader::new(reader.take(limits.bytes_max));
    let mut entries = Vec::new();
    let start = spool.seek(SeekFrom::End(0)).map_err(fail)?;
    let mut offset = start;
    while let Some(entry) = archive.next_entry().map_err(fail)? {
        if entries.len() >= limits.entries_max {
            let reason = format!("it has more than {} entries", limits.entries_max);
            return Err(broken(path, &reason));
        }
        // A sparse file is larger than what the archive has of it.
        if entry.size > limits.bytes_max - (offset - start) {
            return Err(broken(path, &format!("it has more than {} bytes", limits.bytes_max)));
        }
        let Some(name) = clean(&entry.path).map_err(|reason| broken(path, &reason))? else {
            continue;
        };
        if entry.kind == TarKind::HardLink {
            let target = clean(&entry.link).map_err(|reason| broken(path, &reason))?;
            let Some(target) = target else {
                return Err(broken(path, &format!("`{}` links to nothing", shown(&name))));
            };
            entries.push(ArchiveEntry::HardLink { path: name, target });
            continue;
        }
        let Some(mut node) = node_of(&entry).map_err(fail)? else { continue };
        if let NodeKind::File { digest, .. } = &mut node.kind {
            *digest = copy_hashed(&mut archive, spool).map_err(fail)?;
        }
        entries.push(ArchiveEntry::Node { path: name, node, offset });
        offset += entry.size;
    }
    Ok(entries)
}

/// A path of an archive, relative and without `.`; `None` for the archive's root.
fn clean(path: &[u8]) -> Result<Option<String>, String> {
    let path = text_of(path);
    if components(&path).any(|part| part == "..") {
        return Err(format!("`{}` leads out of its folder", shown(&path)));
    }
    let clean = components(&path).collect::<Vec<_>>().join("/");
    if clean.len() > PATH_MAX {
        return Err(format!("it has a path of more than {PATH_MAX} bytes"));
    }
    Ok(Some(clean).filter(|path| !path.is_empty()))
}

/// What an entry's header says; `None` for those that are no files, such as global headers.
/// The digest of a file is known only when its bytes have been read.
pub(crate) fn node_of(entry: &TarEntry) -> io::Result<Option<Node>> {
    let name = String::from_utf8_lossy(&entry.path).into_owned();
    let invalid = |what: &str| io::Error::other(format!("`{name}` has no valid {what}"));
    let numbers = entry.numbers;
    let device = || numbers.device.ok_or_else(|| invalid("device number"));
    let kind = match entry.kind {
        TarKind::Directory => NodeKind::Directory,
        TarKind::File => NodeKind::File { size: entry.size, digest: oci::Digest::of(b"") },
        TarKind::Symlink => NodeKind::Symlink { target: text_of(&entry.link) },
        TarKind::CharDevice => {
            let (major, minor) = device()?;
            NodeKind::CharDevice { major, minor }
        }
        TarKind::BlockDevice => {
            let (major, minor) = device()?;
            NodeKind::BlockDevice { major, minor }
        }
        TarKind::Fifo => NodeKind::Fifo,
        TarKind::HardLink | TarKind::Other => return Ok(None),
    };
    let xattrs = entry.xattrs.iter().filter_map(|(name, value)| {
        // Only those that mean the same on every machine.
        let is_kept = name.starts_with(b"user.") || name == b"security.capability";
        is_kept.then(|| (text_of(name), value.clone()))
    });
    Ok(Some(Node {
        kind,
        mode: numbers.mode.ok_or_else(|| invalid("mode"))?,
        uid: numbers.uid.ok_or_else(|| invalid("uid"))?,
        gid: numbers.gid.ok_or_else(|| invalid("gid"))?,
        mtime: numbers.mtime.ok_or_else(|| invalid("time"))?,
        xattrs: xattrs.collect(),
        link: None,
    }))
}

fn copy_hashed(from: &mut impl Read, to: &mut File) -> io::Result<oci::Digest> {
    let mut hasher = Hasher::sha256();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(&buffer[..read]);
        to.write_all(&buffer[..read])?;
    }
}
