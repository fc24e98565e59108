//! Tar entries, byte for byte: the smallest header that can say it, the same one each time.
//!
//! A header in the ustar format, with PAX records in front where a value does not fit: long
//! or non-ASCII names, large numbers, times before 1970, extended attributes.

use std::borrow::Cow;
use std::io::{self, Write};

use crate::name::bytes_of;
use crate::tree::{Node, NodeKind};

const BLOCK: usize = 512;

/// The largest numbers that the octal fields hold.
const ID_MAX: u32 = 0o777_7777;
const SIZE_MAX: u64 = 0o777_7777_7777;

/// Writes the header of an entry; the bytes of a file follow, then [`write_padding`].
/// `link`: the path of the same file before, for a hard link.
pub(crate) fn write_header(
    out: &mut dyn Write,
    path: &[u8],
    node: &Node,
    link: Option<&[u8]>,
) -> io::Result<()> {
    let mut path = path.to_vec();
    let (kind, size, device) = match (&node.kind, link) {
        (_, Some(_)) => (b'1', 0, (0, 0)),
        (NodeKind::File { size, .. }, None) => (b'0', *size, (0, 0)),
        (NodeKind::Symlink { .. }, None) => (b'2', 0, (0, 0)),
        (NodeKind::CharDevice { major, minor }, None) => (b'3', 0, (*major, *minor)),
        (NodeKind::BlockDevice { major, minor }, None) => (b'4', 0, (*major, *minor)),
        (NodeKind::Directory, None) => (b'5', 0, (0, 0)),
        (NodeKind::Fifo, None) => (b'6', 0, (0, 0)),
    };
    if kind == b'5' {
        path.push(b'/');
    }
    let target = match (&node.kind, link) {
        (_, Some(link)) => Cow::Borrowed(link),
        (NodeKind::Symlink { target }, None) => bytes_of(target),
        _ => Cow::default(),
    };
    let records = pax_records(&path, &target, size, node, link.is_some());
    if !records.is_empty() {
        let mut header = Header::new(b"PaxHeaders/entry", b'x');
        header.number(124, 12, records.len() as u64);
        header.finish(out)?;
        out.write_all(&records)?;
        write_padding(out, records.len() as u64)?;
    }
    let mut header = Header::new(&path, kind);
    header.number(100, 8, node.mode.into());
    header.number(108, 8, node.uid.min(ID_MAX).into());
    header.number(116, 8, node.gid.min(ID_MAX).into());
    header.number(124, 12, size.min(SIZE_MAX));
    header.number(136, 12, u64::try_from(node.mtime).unwrap_or(0).min(SIZE_MAX));
    header.text(157, 100, &target);
    if device != (0, 0) {
        header.number(329, 8, device.0.min(ID_MAX).into());
        header.number(337, 8, device.1.min(ID_MAX).into());
    }
    header.finish(out)
}

/// Fills the last block of `size` bytes.
pub(crate) fn write_padding(out: &mut dyn Write, size: u64) -> io::Result<()> {
    let used = (size % BLOCK as u64) as usize; // Less than a block.
    match used {
        0 => Ok(()),
        used => out.write_all(&[0; BLOCK][used..]),
    }
}

/// Two empty blocks end an archive.
pub(crate) fn write_end(out: &mut dyn Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK])
}

fn pax_records(path: &[u8], target: &[u8], size: u64, node: &Node, is_link: bool) -> Vec<u8> {
    let mut records = Vec::new();
    let mut add = |name: &[u8], value: &[u8]| {
        // The length counts its own digits.
        let rest = name.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        let length = length.to_string();
        for part in [length.as_bytes(), b" ", name, b"=", value, b"\n"] {
            records.extend_from_slice(part);
        }
    };
    if path.len() > 100 || !path.is_ascii() {
        add(b"path", path);
    }
    if target.len() > 100 || !target.is_ascii() {
        add(b"linkpath", target);
    }
    for (name, id) in [(b"uid", node.uid), (b"gid", node.gid)] {
        if id > ID_MAX {
            add(name, id.to_string().as_bytes());
        }
    }
    if size > SIZE_MAX {
        add(b"size", size.to_string().as_bytes());
    }
    if node.mtime < 0 || node.mtime as u64 > SIZE_MAX {
        add(b"mtime", node.mtime.to_string().as_bytes());
    }
    if !is_link {
        for (name, value) in &node.xattrs {
            add(&[b"SCHILY.xattr.", &*bytes_of(name)].concat(), value);
        }
    }
    records
}

struct Header([u8; BLOCK]);

impl Header {
    fn new(path: &[u8], kind: u8) -> Self {
        let mut header = Self([0; BLOCK]);
        header.text(0, 100, path);
        header.0[156] = kind;
        header.text(257, 8, b"ustar\x0000");
        for (at, length) in [(100, 8), (108, 8), (116, 8), (124, 12), (136, 12)] {
            header.number(at, length, 0);
        }
        header
    }

    /// As much of a text as fits; the whole of it is in a PAX record then.
    fn text(&mut self, at: usize, length: usize, text: &[u8]) {
        let length = text.len().min(length);
        self.0[at..at + length].copy_from_slice(&text[..length]);
    }

    /// An octal number with leading zeros and a zero byte at the end.
    fn number(&mut self, at: usize, length: usize, value: u64) {
        let digits = format!("{value:0width$o}", width = length - 1);
        self.text(at, length - 1, digits.as_bytes());
    }

    fn finish(mut self, out: &mut dyn Write) -> io::Result<()> {
        self.text(148, 8, b"        ");
        let sum: u32 = self.0.iter().copied().map(u32::from).sum();
        self.text(148, 8, format!("{sum:06o}\0 ").as_bytes());
        out.write_all(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;
    use crate::tar_reader::{TarKind, TarReader};

    fn write(path: &str, node: &Node, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write_header(&mut out, path.as_bytes(), node, None).unwrap();
        out.extend_from_slice(bytes);
        write_padding(&mut out, bytes.len() as u64).unwrap();
        write_end(&mut out).unwrap();
        out
    }

    proptest! {
        #[test]
        fn another_reader_reads_what_was_written(
            path in "[a-zé]{1,40}(/[a-z0-9ü]{1,60}){0,4}",
            mode in 0..0o10000_u32,
            uid in 0..u32::MAX,
            gid in 0..u32::MAX,
            mtime in 0..20_000_000_000_i64,
            bytes in proptest::collection::vec(any::<u8>(), 0..1500),
            xattr in proptest::collection::vec((0..255_u8).prop_filter("the other reader's limit", |b| *b != b'\n'), 0..200),
        ) {
            let digest = oci::Digest::of(&bytes);
            let kind = NodeKind::File { size: bytes.len() as u64, digest };
            let xattrs = vec![("user.x".to_owned(), xattr.clone())];
            let node = Node { kind, mode, uid, gid, mtime, xattrs, link: None };
            let written = write(&path, &node, &bytes);
            prop_assert_eq!(written.len() % BLOCK, 0);
            let mut archive = tar::Archive::new(&written[..]);
            let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
            prop_assert_eq!(entry.path_bytes().into_owned(), path.into_bytes());
            let extensions: Vec<_> = entry.pax_extensions().unwrap().unwrap()
                .map(|e| { let e = e.unwrap(); (e.key().unwrap().to_owned(), e.value_bytes().to_vec()) })
                .collect();
            prop_assert!(extensions.contains(&("SCHILY.xattr.user.x".to_owned(), xattr)));
            let header = entry.header();
            prop_assert_eq!(header.mode().unwrap(), mode);
            prop_assert_eq!(header.uid().unwrap(), u64::from(uid));
            prop_assert_eq!(header.gid().unwrap(), u64::from(gid));
            let mut read = Vec::new();
            entry.read_to_end(&mut read).unwrap();
            prop_assert_eq!(read, bytes);
        }

        #[test]
        fn what_was_written_is_read_again(
            path in "[a-zé\n]{1,40}(/[a-z0-9ü]{1,60}){0,4}",
            target in "[a-zé/\n]{1,140}",
            kind in 0..5,
            mode in 0..0o10000_u32,
            uid in 0..u32::MAX,
            gid in 0..u32::MAX,
            mtime in -20_000_000_000_i64..20_000_000_000_i64,
            bytes in proptest::collection::vec(any::<u8>(), 0..1500),
            xattrs in proptest::collection::btree_map(
                "user\\.[ -<>-~\n]{1,20}", proptest::collection::vec(any::<u8>(), 0..200), 0..4,
            ),
        ) {
            let kind = match kind {
                0 => NodeKind::Directory,
                1 => NodeKind::Symlink { target: target.clone() },
                2 => NodeKind::CharDevice { major: uid % 4096, minor: gid % 4096 },
                _ => NodeKind::File { size: bytes.len() as u64, digest: oci::Digest::of(b"") },
            };
            let bytes = if matches!(kind, NodeKind::File { .. }) { bytes } else { Vec::new() };
            let xattrs = xattrs.into_iter().collect();
            let node = Node { kind, mode, uid, gid, mtime, xattrs, link: None };
            let mut written = write(&path, &node, &bytes);
            written.truncate(written.len() - 2 * BLOCK);
            write_header(&mut written, b"twin", &node, Some(target.as_bytes())).unwrap();
            let mut reader = TarReader::new(&written[..]);
            let entry = reader.next_entry().unwrap().unwrap();
            let found = String::from_utf8(entry.path.clone()).unwrap();
            prop_assert_eq!(found.trim_end_matches('/'), path);
            prop_assert_eq!(crate::archive::node_of(&entry).unwrap().unwrap(), node);
            let mut read = Vec::new();
            reader.read_to_end(&mut read).unwrap();
            prop_assert_eq!(read, bytes);
            let twin = reader.next_entry().unwrap().unwrap();
            prop_assert_eq!((twin.kind, twin.path), (TarKind::HardLink, b"twin".to_vec()));
            prop_assert_eq!(twin.link, target.into_bytes());
            prop_assert!(reader.next_entry().unwrap().is_none());
        }
    }
}
