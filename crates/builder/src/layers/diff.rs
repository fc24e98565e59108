//! What a `RUN` changed becomes a layer: overlayfs' upper folder is walked in order of its
//! names, its marks of deletion become whiteouts.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::Stoppable;
use super::writer::LayerWriter;
use crate::name::{shown, text_of};
use crate::tree::{Node, NodeKind};

/// A process made something that a layer has no way to say: inside an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotInLayer(String);

/// Adds everything in an upper folder to a layer. Nothing changes the folder meanwhile: its
/// processes are gone.
pub(crate) fn write_diff(
    upper: &Path,
    writer: &mut LayerWriter,
    stop: &CancellationToken,
) -> io::Result<()> {
    Walk { writer, links: HashMap::new(), stop }.folder(upper, b"")
}

struct Walk<'a> {
    writer: &'a mut LayerWriter,
    /// Files with several names, by device and inode: the entry of the first.
    links: HashMap<(u64, u64), u64>,
    stop: &'a CancellationToken,
}

/// Each takes some of the stack.
const DEPTH_MAX: usize = 1000;

impl Walk<'_> {
    fn folder(&mut self, real: &Path, path: &[u8]) -> io::Result<()> {
        if self.stop.is_cancelled() {
            return Err(io::Error::other("the build has ended"));
        }
        if path.iter().filter(|byte| **byte == b'/').count() >= DEPTH_MAX {
            let text = format!("folders cannot be nested more than {DEPTH_MAX} deep in a layer");
            return Err(io::Error::other(NotInLayer(text)));
        }
        let mut names = Vec::new();
        for entry in std::fs::read_dir(real)? {
            names.push(entry?.file_name());
        }
        names.sort();
        for name in names {
            let mut below = path.to_vec();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(name.as_bytes());
            self.entry(&real.join(&name), &below)?;
        }
        Ok(())
    }

    fn entry(&mut self, real: &Path, path: &[u8]) -> io::Result<()> {
        let metadata = std::fs::symlink_metadata(real)?;
        let kind = metadata.file_type();
        if kind.is_char_device() && metadata.rdev() == 0 {
            return self.writer.add_mark(&beside(path, b".wh.", true));
        }
        if name_of(path).starts_with(b".wh.") {
            let name = String::from_utf8_lossy(path);
            let text = format!("`{name}` cannot be in a layer: its name marks a deletion");
            return Err(io::Error::other(NotInLayer(text)));
        }
        if kind.is_socket() {
            return Ok(()); // Means nothing without the process that made it.
        }
        let (xattrs, is_opaque) = read_xattrs(real)?;
        let mut node = node_of(&metadata, real)?;
        node.xattrs = xattrs;
        if kind.is_dir() {
            self.writer.add(path, &node)?;
            if is_opaque {
                let mark = [path, b"/.wh..wh..opq"].concat();
                self.writer.add_mark(&mark)?;
            }
            return self.folder(real, path);
        }
        let inode = (metadata.dev(), metadata.ino());
        if let Some(first) = self.links.get(&inode) {
            return self.writer.add_hard_link(path, *first);
        }
        if metadata.nlink() > 1 {
            self.links.insert(inode, self.writer.next_entry());
        }
        match kind.is_file() {
            true => self.file(real, path, &node, metadata.len()),
            false => self.writer.add(path, &node),
        }
    }

    /// Adds a file with its bytes.
    fn file(&mut self, real: &Path, path: &[u8], node: &Node, size: u64) -> io::Result<()> {
        let flags = rustix::fs::OFlags::NOFOLLOW.bits();
        let flags = i32::try_from(flags).expect("open flags fit the type that open takes");
        let file = File::options().read(true).custom_flags(flags).open(real)?;
        let mut content = Stoppable { inner: Box::new(file), stop: self.stop };
        self.writer.add_file(path, node, size, &mut content)?;
        Ok(())
    }
}

fn name_of(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}

/// A name in the same folder: `prefix` and, if asked for, the name itself.
fn beside(path: &[u8], prefix: &[u8], with_name: bool) -> Vec<u8> {
    let name = name_of(path);
    let folder = &path[..path.len() - name.len()];
    [folder, prefix, if with_name { name } else { b"" }].concat()
}

fn node_of(metadata: &Metadata, real: &Path) -> io::Result<Node> {
    let kind = metadata.file_type();
    let device = || {
        let device = metadata.rdev();
        (rustix::fs::major(device), rustix::fs::minor(device))
    };
    let kind = if kind.is_dir() {
        NodeKind::Directory
    } else if kind.is_symlink() {
        let target = std::fs::read_link(real)?.into_os_string().into_vec();
        NodeKind::Symlink { target: text_of(&target) }
    } else if kind.is_char_device() {
        let (major, minor) = device();
        NodeKind::CharDevice { major, minor }
    } else if kind.is_block_device() {
        let (major, minor) = device();
        NodeKind::BlockDevice { major, minor }
    } else if kind.is_fifo() {
        NodeKind::Fifo
    } else {
        NodeKind::File { size: metadata.len(), digest: oci::Digest::of(b"") }
    };
    Ok(Node {
        kind,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: metadata.mtime(),
        xattrs: Vec::new(),
        link: None,
    })
}

type Xattrs = Vec<(String, Vec<u8>)>;

/// The attributes that belong to the image, and whether overlayfs hides what is below.
fn read_xattrs(real: &Path) -> io::Result<(Xattrs, bool)> {
    let (mut kept, mut is_opaque) = (Vec::new(), false);
    for name in xattr::list(real)? {
        let real_name = name;
        let name = text_of(real_name.as_bytes());
        let own = name.strip_prefix("trusted.overlay.").or(name.strip_prefix("user.overlay."));
        match own {
            Some("opaque") => {
                is_opaque |= xattr::get(real, &real_name)?.as_deref() == Some(b"y");
            }
            // The file's bytes are elsewhere: what we would write is not what was there.
            Some("metacopy" | "redirect") => {
                let text = format!("overlayfs left `{name}`, which a layer cannot hold");
                return Err(io::Error::other(text));
            }
            Some(_) => (),
            None if name.starts_with("user.") || name == "security.capability" => {
                if name.contains('=') {
                    let name = shown(&name);
                    let text = format!("attribute `{name}` cannot be in a layer: it has a `=`");
                    return Err(io::Error::other(NotInLayer(text)));
                }
                let value = xattr::get(real, &real_name)?.unwrap_or_default();
                kept.push((name, value));
            }
            None => (),
        }
    }
    kept.sort();
    Ok((kept, is_opaque))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn attributes_are_read_with_any_name_that_a_layer_can_have() {
        let file = tempfile::NamedTempFile::new().unwrap();
        xattr::set(file.path(), OsStr::from_bytes(b"user.\xff"), b"a\nb").unwrap();
        let expected = vec![(text_of(b"user.\xff"), b"a\nb".to_vec())];
        assert_eq!(read_xattrs(file.path()).unwrap(), (expected, false));
        xattr::set(file.path(), "user.a=b", b"").unwrap();
        let error = read_xattrs(file.path()).unwrap_err().to_string();
        assert_eq!(error, "attribute `user.a=b` cannot be in a layer: it has a `=`");
    }
}
