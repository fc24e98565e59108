//! Entry points for fuzzers; the property tests drive them too.

use std::io::Cursor;
use std::path::Path;

use oci::{Descriptor, Digest, media_type};
use tokio_util::sync::CancellationToken;

use crate::layers::{LayerIndex, read_layer};

/// Names that lead somewhere, or nowhere.
const NAMES: [&[u8]; 20] = [
    b"a",
    b"b",
    b"a/b",
    b"./a/",
    b"/a",
    b"a//b/c",
    b"",
    b".",
    b"..",
    b"../x",
    b"a/../../x",
    b"/../x",
    b".wh.a",
    b"a/.wh.b",
    b".wh..wh..opq",
    b"a/.wh..wh..opq",
    b".wh.",
    b".wh..",
    b".wh.a/b",
    b"\xff\xfe",
];
const KINDS: &[u8; 16] = b"000055512346xgLK";
const RECORDS: &[u8] = b"22 path=../../escaped\n32 SCHILY.xattr.user.a=\n1234567\n";
const BLOCK: usize = 512;

/// A tar archive by a recipe of any bytes: well-formed enough to be read, and then some. Its
/// headers have right checksums, so that what is wrong in them is reached.
pub fn archive(recipe: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    for step in recipe.chunks_exact(6) {
        let [kind, name, link, size, at, value] = *step else { continue };
        let pick = |index: u8| NAMES[usize::from(index) % NAMES.len()];
        let kind = KINDS[usize::from(kind) % KINDS.len()];
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        let content = match kind {
            b'L' | b'K' => pick(value),
            // With or without a name.
            _ if value % 2 == 0 => RECORDS,
            _ => &RECORDS[22..],
        };
        let size = match kind {
            // No bytes follow a link, folder or device.
            b'1'..=b'6' => 0,
            // Whole records, mostly.
            b'x' if size < 250 => size % 4 * content.len() as u8,
            _ => size,
        };
        header.set_size(u64::from(size));
        let bytes = header.as_mut_bytes();
        bytes[..pick(name).len()].copy_from_slice(pick(name));
        bytes[157..157 + pick(link).len()].copy_from_slice(pick(link));
        bytes[156] = kind;
        if at != 0 {
            bytes[usize::from(at) * 2] = value;
        }
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
        let mut body: Vec<u8> = content.iter().copied().cycle().take(usize::from(size)).collect();
        body.resize(body.len().next_multiple_of(BLOCK), 0);
        tar.extend_from_slice(&body);
    }
    tar.extend_from_slice(&[0; 2 * BLOCK]);
    tar
}

/// Takes any bytes as a layer, and unpacks it into an empty folder.
pub fn layer(bytes: &[u8], folder: &Path) {
    let diff_id = Digest::of(bytes);
    let read = |folder: Option<&Path>| {
        let layer = Descriptor::of(media_type::OCI_LAYER_TAR, bytes);
        let (spools, stop) = (std::env::temp_dir(), CancellationToken::new());
        read_layer(Cursor::new(bytes), &layer, &diff_id, folder, &spools, &stop)
    };
    let (indexed, unpacked) = (read(None), read(Some(folder)));
    if let (Ok(indexed), Ok(unpacked)) = (indexed, unpacked) {
        let entries =
            |index: LayerIndex| index.entries().filter_map(Result::ok).collect::<Vec<_>>();
        let (indexed, unpacked) = (entries(indexed), entries(unpacked));
        assert!(indexed == unpacked, "the index does not depend on where it is unpacked");
    }
}
