//! Archives that `ADD` unpacks: tar, plain or compressed with gzip or zstd, told by what is
//! in them and never by their names.
//!
//! An archive is somebody's upload. Entries must stay below their folder, their number and
//! sizes are bounded, and their bytes go to one nameless file until the layer is written.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::rc::Rc;

use oci::Hasher;

use crate::copy::{ArchiveEntry, CopyError};
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

/// A tar header is one block of this size.
const BLOCK: usize = 512;

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
        Ok((whole && is_tar_header(&header)).then_some(format))
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

/// Whether a block has the checksum that only tar headers have.
fn is_tar_header(block: &[u8]) -> bool {
    let Ok(block) = <&[u8; BLOCK]>::try_from(block) else { return false };
    let field = &block[148..156];
    let sum: u64 = block.iter().enumerate().fold(0, |sum, (index, byte)| {
        sum + u64::from(if (148..156).contains(&index) { b' ' } else { *byte })
    });
    let text = String::from_utf8_lossy(field);
    let digits = text.trim_matches(['\0', ' ']);
    block[0] != 0 && u64::from_str_radix(digits, 8) == Ok(sum)
}

fn decompress(reader: Box<dyn Read + Send>, format: Format) -> io::Result<Box<dyn Read + Send>> {
    Ok(match format {
        Format::Tar => reader,
        Format::Gzip => Box::new(flate2::read::MultiGzDecoder::new(reader)),
        Format::Zstd => Box::new(zstd::Decoder::new(reader)?),
    })
}

/// Names, links and attributes of an entry take no more bytes than this before its header.
const HEADERS_MAX: u64 = 1 << 20;

/// A reader of an archive that gives no more than `HEADERS_MAX` bytes between two entries:
/// the library takes names and attributes into memory, however long they claim to be.
pub struct BoundedHeaders<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

/// Says where the archive is: at the bytes of an entry, or between two.
pub struct HeaderBound(Rc<Cell<u64>>);

impl<R: Read> BoundedHeaders<R> {
    pub fn new(inner: R) -> (Self, HeaderBound) {
        let left = Rc::new(Cell::new(HEADERS_MAX));
        (Self { inner, left: Rc::clone(&left) }, HeaderBound(left))
    }
}

impl HeaderBound {
    /// The bytes of an entry come now; they have bounds of their own.
    pub fn at_entry(&self) {
        self.0.set(u64::MAX);
    }

    /// The next entry is looked for, past what was not read of this one's `size` bytes.
    pub fn between(&self, size: u64) {
        let read = u64::MAX - self.0.get();
        self.0.set(HEADERS_MAX.saturating_add(size.saturating_sub(read)));
    }
}

impl<R: Read> Read for BoundedHeaders<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left.get() == 0 {
            let text =
                format!("names and attributes of an entry take more than {HEADERS_MAX} bytes");
            return Err(io::Error::other(text));
        }
        let most = usize::try_from(self.left.get()).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.inner.read(&mut buffer[..most])?;
        self.left.set(self.left.get() - read as u64);
        Ok(read)
    }
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
    let (reader, bound) = BoundedHeaders::new(reader.take(limits.bytes_max));
    let mut archive = tar::Archive::new(reader);
    let mut entries = Vec::new();
    let mut offset = spool.seek(SeekFrom::End(0)).map_err(fail)?;
    let mut size = 0;
    let mut all = archive.entries().map_err(fail)?;
    loop {
        bound.between(size);
        let Some(entry) = all.next() else { break };
        let mut entry = entry.map_err(fail)?;
        bound.at_entry();
        size = entry.header().entry_size().unwrap_or(0);
        if entries.len() >= limits.entries_max {
            let reason = format!("it has more than {} entries", limits.entries_max);
            return Err(broken(path, &reason));
        }
        let Some(name) = clean(&entry.path_bytes()).map_err(|reason| broken(path, &reason))? else {
            continue;
        };
        if entry.header().entry_type().is_hard_link() {
            let target = entry.link_name_bytes().unwrap_or_default();
            let target = clean(&target).map_err(|reason| broken(path, &reason))?;
            let Some(target) = target else {
                return Err(broken(path, &format!("`{name}` links to nothing")));
            };
            entries.push(ArchiveEntry::HardLink { path: name, target });
            continue;
        }
        let Some(node) = read_node(&mut entry, spool).map_err(fail)? else { continue };
        let size = if let NodeKind::File { size, .. } = node.kind { size } else { 0 };
        entries.push(ArchiveEntry::Node { path: name, node, offset });
        offset += size;
    }
    Ok(entries)
}

/// A path of an archive, relative and without `.`; `None` for the archive's root.
fn clean(path: &[u8]) -> Result<Option<String>, String> {
    let Ok(path) = std::str::from_utf8(path) else {
        return Err(format!("`{}` has a name that is not UTF-8", String::from_utf8_lossy(path)));
    };
    if path.contains('\0') {
        return Err("a name has a zero byte".to_owned());
    }
    if components(path).any(|part| part == "..") {
        return Err(format!("`{path}` leads out of its folder"));
    }
    let clean = components(path).collect::<Vec<_>>().join("/");
    Ok(Some(clean).filter(|path| !path.is_empty()))
}

/// Reads one entry with its bytes; `None` for those that are no files.
fn read_node(entry: &mut tar::Entry<'_, impl Read>, spool: &mut File) -> io::Result<Option<Node>> {
    let xattrs = read_xattrs(entry)?;
    let Some(mut node) = node_of(entry, xattrs)? else { return Ok(None) };
    if matches!(node.kind, NodeKind::File { .. }) {
        let (size, digest) = copy_hashed(entry, spool)?;
        node.kind = NodeKind::File { size, digest };
    }
    Ok(Some(node))
}

/// What an entry's header says; `None` for those that are no files, such as global headers.
/// The digest of a file is known only when its bytes have been read.
pub(crate) fn node_of(
    entry: &tar::Entry<'_, impl Read>,
    xattrs: Vec<(String, Vec<u8>)>,
) -> io::Result<Option<Node>> {
    use tar::EntryType;
    let header = entry.header();
    let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    let invalid = |what: &str| io::Error::other(format!("`{name}` has no valid {what}"));
    let id = |id: io::Result<u64>, what| {
        id.ok().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| invalid(what))
    };
    let (uid, gid) = (id(header.uid(), "uid")?, id(header.gid(), "gid")?);
    let mode = header.mode()? & 0o7777;
    let mtime = i64::try_from(header.mtime()?).map_err(|_| invalid("time"))?;
    let device = || -> io::Result<(u32, u32)> {
        let (major, minor) = (header.device_major()?, header.device_minor()?);
        major.zip(minor).ok_or_else(|| invalid("device number"))
    };
    let kind = match header.entry_type() {
        EntryType::Directory => NodeKind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            NodeKind::File { size: entry.size(), digest: oci::Digest::of(b"") }
        }
        EntryType::Symlink => {
            let target = entry.link_name_bytes().unwrap_or_default();
            let target = String::from_utf8(target.into_owned());
            NodeKind::Symlink { target: target.map_err(|_| invalid("link target"))? }
        }
        EntryType::Char => {
            let (major, minor) = device()?;
            NodeKind::CharDevice { major, minor }
        }
        EntryType::Block => {
            let (major, minor) = device()?;
            NodeKind::BlockDevice { major, minor }
        }
        EntryType::Fifo => NodeKind::Fifo,
        _ => return Ok(None),
    };
    Ok(Some(Node { kind, mode, uid, gid, mtime, xattrs, link: None }))
}

/// What a PAX record of an extended attribute is called.
const XATTR_PREFIX: &str = "SCHILY.xattr.";

pub(crate) fn read_xattrs(
    entry: &mut tar::Entry<'_, impl Read>,
) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut xattrs = Vec::new();
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            // The reader cuts records at line ends, also those inside of a value; such a value
            // cannot be had from it.
            let Ok(extension) = extension else { continue };
            let name = extension.key().ok().and_then(|key| key.strip_prefix(XATTR_PREFIX));
            // Only those that mean the same on every machine.
            let Some(name) = name.filter(|n| n.starts_with("user.") || *n == "security.capability")
            else {
                continue;
            };
            xattrs.push((name.to_owned(), extension.value_bytes().to_vec()));
        }
    }
    xattrs.sort();
    Ok(xattrs)
}

fn copy_hashed(from: &mut impl Read, to: &mut File) -> io::Result<(u64, oci::Digest)> {
    let (mut size, mut hasher) = (0, Hasher::sha256());
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok((size, hasher.finish()));
        }
        hasher.update(&buffer[..read]);
        to.write_all(&buffer[..read])?;
        size += read as u64;
    }
}
