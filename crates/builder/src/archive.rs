//! Archives that `ADD` unpacks: tar, plain or compressed, told by what is in them and never by
//! their names.
//!
//! An archive is somebody's upload. Entries must stay below their folder, their number and
//! sizes are bounded, and their bytes go to one nameless file until the layer is written.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};

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

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// Not at all.
    Plain,
    Gzip,
    Bzip2,
    Xz,
    Zstd,
}

impl ArchiveFormat {
    /// How many of the first bytes tell it.
    pub const START: usize = 6;
    /// In KiB, what an xz archive may ask for: twice what `xz -9` takes.
    const XZ_MEMORY_MAX: u32 = 128 << 10;

    pub fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }

    /// What is in a compressed stream, or in several that follow each other. Fails when it is read
    /// if the stream is broken or asks for too much memory.
    pub fn decompress<'a>(
        self,
        reader: impl BufRead + Send + 'a,
    ) -> io::Result<Box<dyn Read + Send + 'a>> {
        Ok(match self {
            Self::Plain => Box::new(reader),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
            Self::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(reader)),
            Self::Xz => {
                let memory = Self::XZ_MEMORY_MAX;
                Box::new(lzma_rust2::XzReader::new_mem_limit(reader, true, memory))
            }
            Self::Zstd => Box::new(zstd::Decoder::with_buffer(reader)?),
        })
    }
}

/// Whether `ADD` unpacks a file.
pub(crate) fn is_archive(source: &dyn Tree, path: &str) -> Result<bool, CopyError> {
    if !matches!(source.node(path).map(|node| node.kind), Some(NodeKind::File { .. })) {
        return Ok(false);
    }
    let read = || -> io::Result<bool> {
        let format = format_of(source, path)?;
        let mut header = Vec::with_capacity(BLOCK);
        let Ok(reader) = format.decompress(buffered(source.open(path)?)) else { return Ok(false) };
        match reader.take(BLOCK as u64).read_to_end(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => Err(error),
            // Broken compression is no archive; a broken disk shows when it is copied.
            Err(_) => Ok(false),
            Ok(_) => Ok(is_header(&header) && header[0] != 0),
        }
    };
    read().map_err(|error| match error.kind() {
        io::ErrorKind::OutOfMemory => {
            let memory = ArchiveFormat::XZ_MEMORY_MAX >> 10;
            broken(path, &format!("it asks for more than {memory} MiB of memory"))
        }
        _ => broken(path, &error.to_string()),
    })
}

fn buffered(reader: impl Read) -> impl BufRead {
    BufReader::with_capacity(128 << 10, reader)
}

fn format_of(source: &dyn Tree, path: &str) -> io::Result<ArchiveFormat> {
    let mut start = Vec::new();
    source.open(path)?.take(ArchiveFormat::START as u64).read_to_end(&mut start)?;
    Ok(ArchiveFormat::of(&start))
}

fn broken(path: &str, reason: &str) -> CopyError {
    CopyError::Archive { path: path.to_owned(), reason: reason.to_owned() }
}

/// Bytes of names, links and attributes of an archive: they are kept in memory.
const DESCRIBED_MAX: usize = 256 << 20;

/// Reads an archive: what is in it, with the bytes of its files appended to `spool`.
pub(crate) fn unpack(
    source: &dyn Tree,
    path: &str,
    spool: &mut File,
    limits: ArchiveLimits,
) -> Result<Vec<ArchiveEntry>, CopyError> {
    let fail = |error: io::Error| broken(path, &error.to_string());
    let format = format_of(source, path).map_err(fail)?;
    let reader = buffered(source.open(path).map_err(fail)?);
    let reader = format.decompress(reader).map_err(fail)?;
    // Padding and long names count too: all that is read of it is bounded.
    let mut archive = TarReader::new(reader.take(limits.bytes_max));
    let mut entries = Vec::new();
    let start = spool.seek(SeekFrom::End(0)).map_err(fail)?;
    let mut offset = start;
    let mut described = 0;
    while let Some(entry) = archive.next_entry().map_err(fail)? {
        if entries.len() >= limits.entries_max {
            let reason = format!("it has more than {} entries", limits.entries_max);
            return Err(broken(path, &reason));
        }
        // A sparse file is larger than what the archive has of it.
        if entry.size > limits.bytes_max - (offset - start) {
            return Err(broken(path, &format!("it has more than {} bytes", limits.bytes_max)));
        }
        let attributes = entry.xattrs.iter().map(|(name, value)| name.len() + value.len());
        described += entry.path.len() + entry.link.len() + attributes.sum::<usize>();
        if described > DESCRIBED_MAX {
            let max = DESCRIBED_MAX >> 20;
            let reason = format!("its names and attributes have more than {max} MiB");
            return Err(broken(path, &reason));
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
