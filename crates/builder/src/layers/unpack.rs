//! A layer's blob becomes a folder that overlayfs can use as a lower one, or only an index.
//!
//! A base image's layer may be anybody's. Paths are opened from the folder with `openat2`
//! and no link is followed.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use oci::{Descriptor, Digest, Hasher, media_type};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::index::{IndexEntry, IndexWriter, LayerIndex};
use crate::archive::node_of;
use crate::name::{NAME_MAX, PATH_MAX, bytes_of, shown, text_of};
use crate::tar_reader::{TarKind, TarReader};
use crate::tree::{Node, NodeKind};

/// A layer with more entries is an attack.
const ENTRIES_MAX: usize = 5_000_000;
/// So is one with more bytes, compressed to how few they may be.
const SIZE_MAX: u64 = 256 << 30;
/// How much is told of a path that is too long.
const PATH_SHOWN: usize = 80;

/// Reads a layer: gives its index, and unpacks it into `folder` if there is one. The digest of
/// its blob and its diff ID are checked. `spools` is as for [`IndexWriter::new`].
pub(crate) fn read_layer(
    blob: impl Read,
    layer: &Descriptor,
    diff_id: &Digest,
    folder: Option<&Path>,
    spools: &Path,
    stop: &CancellationToken,
) -> io::Result<LayerIndex> {
    let blob = Stopping { inner: blob, stop };
    let read = read_plain(blob, layer, diff_id, |tar| read_tar(tar, folder, spools, stop));
    match stop.is_cancelled() {
        true => read.map_err(|_| io::ErrorKind::Interrupted.into()),
        false => read,
    }
}

/// Reads until it is to stop.
struct Stopping<'a, R> {
    inner: R,
    stop: &'a CancellationToken,
}

impl<R: Read> Read for Stopping<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.stop.is_cancelled() {
            // Of `Interrupted` readers would try again.
            true => Err(io::Error::other("canceled")),
            false => self.inner.read(buffer),
        }
    }
}

fn too_large() -> io::Error {
    io::Error::other(format!("it unpacks to more than {} GiB", SIZE_MAX >> 30))
}

/// Reads what has a bound: one byte more is an error.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(too_large)?;
        Ok(read)
    }
}

/// Gives a layer's tar to `take`. The digest of its blob and its diff ID are checked after that.
pub(super) fn read_plain<T>(
    blob: impl Read,
    layer: &Descriptor,
    diff_id: &Digest,
    take: impl FnOnce(&mut dyn Read) -> io::Result<T>,
) -> io::Result<T> {
    // Bytes can be damaged that decompression does not miss, such as those of a header. Not
    // compressed, the check of the diff ID is that of the blob.
    let is_plain = layer.digest == *diff_id;
    let hasher = (!is_plain).then(|| Hasher::new(layer.digest.algorithm()));
    let mut blob = Hashed { inner: blob, hasher };
    let tar: Box<dyn Read + '_> = match layer.media_type.as_str() {
        media_type::OCI_LAYER_GZIP => Box::new(flate2::read::MultiGzDecoder::new(&mut blob)),
        media_type::OCI_LAYER_ZSTD => Box::new(zstd::Decoder::new(&mut blob)?),
        _ => Box::new(&mut blob),
    };
    let tar = Bounded { inner: tar, left: SIZE_MAX };
    let inner = io::BufReader::with_capacity(128 << 10, tar);
    let mut tar = Hashed { inner, hasher: Some(Hasher::new(diff_id.algorithm())) };
    let taken = take(&mut tar)?;
    // Padding after the end of the archive belongs to the layer's digest too.
    match tar.finish()? {
        Some(actual) if actual != *diff_id => {
            return Err(io::Error::other(format!("it unpacks to {actual}, not to {diff_id}")));
        }
        _ => drop(tar),
    }
    match blob.finish()? {
        Some(actual) if actual != layer.digest => {
            Err(io::Error::other(format!("its blob has the digest {actual}")))
        }
        _ => Ok(taken),
    }
}

/// Reads a layer's entries.
fn read_tar(
    tar: &mut dyn Read,
    folder: Option<&Path>,
    spools: &Path,
    stop: &CancellationToken,
) -> io::Result<LayerIndex> {
    let folder = folder.map(Folder::open).transpose()?;
    let mut index = IndexWriter::new(spools);
    let mut dated = Vec::new();
    let mut left = SIZE_MAX;
    let mut archive = TarReader::new(tar);
    while let Some(entry) = archive.next_entry()? {
        if stop.is_cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if index.len() >= ENTRIES_MAX {
            return Err(io::Error::other(format!("it has more than {ENTRIES_MAX} entries")));
        }
        // A sparse file is larger than what the archive has of it.
        left = left.checked_sub(entry.size).ok_or_else(too_large)?;
        let path = clean(&entry.path)?;
        if entry.kind == TarKind::HardLink {
            let target = clean(&entry.link)?;
            let Some(first) = index.find(&text_of(&target)) else {
                let name = String::from_utf8_lossy(&target).into_owned();
                return Err(io::Error::other(format!("it links to `{name}`, which it has not")));
            };
            if let Some(folder) = &folder
                && !is_left_out(&index.entry(first)?.1)
            {
                folder.hard_link(&path, &target)?;
            }
            index.push(&IndexEntry::Link { path: text_of(&path), first })?;
            continue;
        }
        let Some(node) = node_of(&entry)? else { continue };
        check_mark(&path)?;
        let mut noted = IndexEntry::from_tar(text_of(&path), node);
        let mut kept = None;
        let IndexEntry::Node { path: noted_path, node, .. } = &mut noted else {
            folder.as_ref().map_or(Ok(()), |folder| folder.mark(&noted))?;
            index.push(&noted)?;
            continue;
        };
        let mut file = match &folder {
            Some(folder) => folder.make(&path, node)?,
            None => None,
        };
        if let NodeKind::File { size, digest } = &mut node.kind {
            kept = index.keeps_content(noted_path, *size).then(Vec::new);
            *digest = copy_hashed(&mut archive, file.as_mut(), kept.as_mut(), stop)?;
        }
        if let Some(file) = &file {
            set_attributes(file, node).map_err(|error| explained(error, &path, node))?;
        }
        if node.is_directory() && folder.is_some() {
            dated.push((path.clone(), node.mtime));
        }
        if let Some(bytes) = kept {
            noted.set_content(&bytes);
        }
        index.push(&noted)?;
    }
    if let Some(folder) = &folder {
        // Last, since every entry that is made changes its folder's time.
        for (path, mtime) in dated.iter().rev() {
            let fd = folder.open_folder(path)?;
            rustix::fs::futimens(&fd, &times(*mtime))?;
        }
    }
    Ok(index.finish())
}

/// Refuses marks that would say something of a folder above.
fn check_mark(path: &[u8]) -> io::Result<()> {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    match name.strip_prefix(b".wh.") {
        Some(b"" | b"." | b"..") => {
            let name = String::from_utf8_lossy(path).into_owned();
            Err(io::Error::other(format!("`{name}` is a mark of no file")))
        }
        _ => Ok(()),
    }
}

/// Names of links are compared in the order they came, so a tar's last word counts.
pub(super) fn clean(path: &[u8]) -> io::Result<Vec<u8>> {
    let parts: Vec<&[u8]> =
        path.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".").collect();
    if parts.contains(&&b".."[..]) || path.contains(&0) {
        let name = String::from_utf8_lossy(path).into_owned();
        return Err(io::Error::other(format!("`{name}` leads out of the image")));
    }
    let clean = parts.join(&b'/');
    if clean.len() > PATH_MAX {
        let name = String::from_utf8_lossy(&clean[..PATH_SHOWN]).into_owned();
        let reason = format!("`{name}…` is a path of more than {PATH_MAX} bytes");
        return Err(io::Error::other(reason));
    }
    if parts.iter().any(|name| name.len() > NAME_MAX) {
        let name = String::from_utf8_lossy(path).into_owned();
        return Err(io::Error::other(format!("`{name}` has a name of more than {NAME_MAX} bytes")));
    }
    Ok(clean)
}

fn copy_hashed(
    from: &mut impl Read,
    mut to: Option<&mut std::fs::File>,
    mut kept: Option<&mut Vec<u8>>,
    stop: &CancellationToken,
) -> io::Result<Digest> {
    let mut hasher = Hasher::sha256();
    let mut buffer = vec![0; 64 << 10];
    loop {
        if stop.is_cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(&buffer[..read]);
        if let Some(file) = &mut to {
            io::Write::write_all(file, &buffer[..read])?;
        }
        if let Some(kept) = &mut kept {
            kept.extend_from_slice(&buffer[..read]);
        }
    }
}

fn times(mtime: i64) -> Timestamps {
    let time = Timespec { tv_sec: mtime, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

/// Whether a file is not unpacked: only root of the machine makes device files, and no process
/// could use them anyway.
fn is_left_out(node: &Node) -> bool {
    node.is_device() && container::is_rootless()
}

/// Says whose file it is that cannot have its owner here.
fn explained(error: io::Error, path: &[u8], node: &Node) -> io::Error {
    let is_owner = error.raw_os_error() == Some(Errno::INVAL.raw_os_error());
    if !is_owner || !container::is_rootless() {
        return error;
    }
    let (uid, gid, path) = (node.uid, node.gid, text_of(path));
    io::Error::other(format!(
        "`{}` belongs to {uid}:{gid}, which is none of the ids that this user has; \
         `refit doctor` tells more",
        shown(&path)
    ))
}

/// Owner first: changing it takes capabilities and set-user-ID bits away.
fn set_attributes(file: &std::fs::File, node: &Node) -> io::Result<()> {
    rustix::fs::fchown(file, Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)))?;
    rustix::fs::fchmod(file, Mode::from(node.mode))?;
    for (name, value) in node.xattrs.iter().filter(|(name, _)| !is_mark(name)) {
        rustix::fs::fsetxattr(file, &*bytes_of(name), value, XattrFlags::empty())?;
    }
    rustix::fs::futimens(file, &times(node.mtime))?;
    Ok(())
}

/// Where a layer is unpacked.
struct Folder {
    root: OwnedFd,
}

impl Folder {
    fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self { root: rustix::fs::open(path, flags, Mode::empty())? })
    }

    fn open_folder(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve)
    }

    /// The folder that a path is in, made if it is missing, and the path's own name.
    fn parent<'p>(&self, path: &'p [u8]) -> io::Result<(OwnedFd, &'p [u8])> {
        let end = path.iter().rposition(|byte| *byte == b'/');
        let (above, name) = match end {
            Some(end) => (&path[..end], &path[end + 1..]),
            None => (&b""[..], path),
        };
        match self.open_folder(above) {
            Ok(fd) => return Ok((fd, name)),
            Err(Errno::NOENT | Errno::NOTDIR) => (),
            Err(errno) => return Err(errno.into()),
        }
        let (parent, last) = self.parent(above)?;
        match rustix::fs::mkdirat(&parent, last, Mode::from(0o755)) {
            Ok(()) => (),
            Err(Errno::EXIST) if is_whiteout(&parent, last)? => {
                self.replace_whiteout(&parent, last, above)?;
            }
            Err(Errno::EXIST) => (),
            Err(errno) => return Err(errno.into()),
        }
        Ok((self.open_folder(above)?, name))
    }

    /// Makes a folder where the layer took one away before: nothing of the layers below shows.
    fn replace_whiteout(&self, parent: &OwnedFd, name: &[u8], path: &[u8]) -> io::Result<()> {
        remove(parent, name)?;
        rustix::fs::mkdirat(parent, name, Mode::from(0o755))?;
        set_opaque(&self.open_folder(path)?)
    }

    /// Makes an entry; gives the file or folder where attributes are still to be set.
    fn make(&self, path: &[u8], node: &Node) -> io::Result<Option<std::fs::File>> {
        if path.is_empty() {
            return Ok(Some(std::fs::File::from(self.open_folder(b"")?)));
        }
        let (parent, name) = self.parent(path)?;
        if node.is_directory() {
            match rustix::fs::mkdirat(&parent, name, Mode::from(0o755)) {
                Ok(()) => (),
                Err(Errno::EXIST) => {
                    if is_whiteout(&parent, name)? {
                        self.replace_whiteout(&parent, name, path)?;
                    } else if self.open_folder(path).is_err() {
                        remove(&parent, name)?;
                        rustix::fs::mkdirat(&parent, name, Mode::from(0o755))?;
                    }
                }
                Err(errno) => return Err(errno.into()),
            }
            return Ok(Some(std::fs::File::from(self.open_folder(path)?)));
        }
        remove(&parent, name)?;
        if is_left_out(node) {
            return Ok(None);
        }
        let device = |kind, major, minor| {
            let device = rustix::fs::makedev(major, minor);
            rustix::fs::mknodat(&parent, name, kind, Mode::from(node.mode), device)
        };
        match &node.kind {
            NodeKind::File { .. } => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(&parent, name, flags, Mode::from(0o600))?;
                return Ok(Some(std::fs::File::from(fd)));
            }
            NodeKind::Symlink { target } => {
                rustix::fs::symlinkat(&*bytes_of(target), &parent, name)?;
            }
            NodeKind::CharDevice { major, minor } => {
                device(FileType::CharacterDevice, *major, *minor)?;
            }
            NodeKind::BlockDevice { major, minor } => {
                device(FileType::BlockDevice, *major, *minor)?;
            }
            NodeKind::Fifo => device(FileType::Fifo, 0, 0)?,
            NodeKind::Directory => (),
        }
        let owner = (Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)));
        rustix::fs::chownat(&parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| explained(error.into(), path, node))?;
        if !matches!(node.kind, NodeKind::Symlink { .. }) {
            rustix::fs::chmodat(&parent, name, Mode::from(node.mode), AtFlags::empty())?;
        }
        rustix::fs::utimensat(&parent, name, &times(node.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(None)
    }

    fn hard_link(&self, path: &[u8], target: &[u8]) -> io::Result<()> {
        if path == target {
            return Ok(());
        }
        let (target_parent, target_name) = self.parent(target)?;
        let (parent, name) = self.parent(path)?;
        remove(&parent, name)?;
        Ok(rustix::fs::linkat(&target_parent, target_name, &parent, name, AtFlags::empty())?)
    }

    /// Deletions as overlayfs writes them.
    fn mark(&self, entry: &IndexEntry) -> io::Result<()> {
        match entry {
            IndexEntry::Whiteout { path } => {
                let path = &*bytes_of(path);
                let (parent, name) = self.parent(path)?;
                // The layer itself may bring the path back: then it hides all that is below.
                let whiteout =
                    rustix::fs::mknodat(&parent, name, FileType::CharacterDevice, Mode::empty(), 0);
                match whiteout {
                    Err(Errno::EXIST) => match self.open_folder(path) {
                        Ok(folder) => set_opaque(&folder),
                        Err(_) => Ok(()),
                    },
                    result => Ok(result?),
                }
            }
            IndexEntry::Opaque { path } => {
                let path = &*bytes_of(path);
                let (parent, name) = self.parent(path)?;
                if !path.is_empty() {
                    match rustix::fs::mkdirat(&parent, name, Mode::from(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => (),
                        Err(errno) => return Err(errno.into()),
                    }
                }
                set_opaque(&self.open_folder(path)?)
            }
            IndexEntry::Node { .. } | IndexEntry::Link { .. } => Ok(()),
        }
    }
}

fn is_whiteout(parent: &OwnedFd, name: &[u8]) -> io::Result<bool> {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    Ok(kind == FileType::CharacterDevice && stat.st_rdev == 0)
}

/// What the attributes begin with by which overlayfs marks files: only root of the machine may
/// set the usual ones.
fn marks() -> &'static str {
    if container::is_rootless() { "user.overlay." } else { "trusted.overlay." }
}

/// Whether an attribute of an image would tell overlayfs something.
fn is_mark(name: &str) -> bool {
    name.starts_with(marks())
}

fn set_opaque(folder: &OwnedFd) -> io::Result<()> {
    let name = format!("{}opaque", marks());
    Ok(rustix::fs::fsetxattr(folder, name, b"y", XattrFlags::empty())?)
}

/// Removes what an earlier entry left under a name.
fn remove(parent: impl AsFd, name: &[u8]) -> io::Result<()> {
    match rustix::fs::unlinkat(parent.as_fd(), name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => Ok(rustix::fs::unlinkat(parent.as_fd(), name, AtFlags::REMOVEDIR)?),
        Err(errno) => Err(errno.into()),
    }
}

/// Hashes what passes, if asked to.
pub(super) struct Hashed<R> {
    pub(super) inner: R,
    pub(super) hasher: Option<Hasher>,
}

impl<R: Read> Hashed<R> {
    /// The digest of all there is to read.
    pub(super) fn finish(&mut self) -> io::Result<Option<Digest>> {
        io::copy(self, &mut io::sink())?;
        Ok(self.hasher.take().map(Hasher::finish))
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..read]);
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::layers::index::Merged;

    fn header(kind: tar::EntryType, path: &str) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path(path).unwrap();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        header.set_device_major(0).unwrap();
        header.set_device_minor(0).unwrap();
        header.set_cksum();
        header
    }

    fn archive(headers: &[tar::Header]) -> Vec<u8> {
        let blocks = headers.iter().flat_map(|header| header.as_bytes().iter().copied());
        blocks.chain([0; 1024]).collect()
    }

    fn read(tar: &[u8], stop: &CancellationToken) -> io::Result<LayerIndex> {
        let spools = tempfile::tempdir().unwrap();
        let digest = Digest::of(tar);
        let layer = Descriptor::new(media_type::OCI_LAYER_TAR, digest.clone(), tar.len() as u64);
        read_layer(tar, &layer, &digest, None, spools.path(), stop)
    }

    fn error(headers: &[tar::Header]) -> String {
        read(&archive(headers), &CancellationToken::new()).unwrap_err().to_string()
    }

    #[test]
    fn a_mark_is_of_a_file_beside_it() {
        for path in [".wh.", "a/.wh..", "a/.wh..."] {
            let told = error(&[header(tar::EntryType::Regular, path)]);
            assert_eq!(told, format!("`{path}` is a mark of no file"));
        }
        let marks = [
            header(tar::EntryType::Regular, "a/.wh.gone"),
            header(tar::EntryType::Regular, "b/.wh..wh..opq"),
            header(tar::EntryType::Char, "c/gone"),
        ];
        let files = ["a/gone", "b/gone", "c/gone", "d"];
        let files = files.map(|path| header(tar::EntryType::Regular, path));
        let layers = [&files[..], &marks]
            .map(|layer| Arc::new(read(&archive(layer), &CancellationToken::new()).unwrap()));
        let merged = Merged::new(layers.to_vec());
        for path in ["a/gone", "b/gone", "c/gone"] {
            assert!(merged.get(path).is_none(), "{path}");
        }
        assert!(merged.get("d").is_some());
    }

    /// A file of holes, of so many bytes.
    fn holes(path: &str, size: u64) -> tar::Header {
        let mut header = header(tar::EntryType::GNUSparse, path);
        let real = &mut header.as_gnu_mut().unwrap().realsize;
        *real = [0; 12];
        real[0] = 0x80;
        real[4..].copy_from_slice(&size.to_be_bytes());
        header.set_cksum();
        header
    }

    #[test]
    fn holes_are_bytes_too_in_sum() {
        let told = "it unpacks to more than 256 GiB";
        assert_eq!(error(&[holes("all", SIZE_MAX + 1)]), told);
        assert_eq!(error(&[holes("all", 1 << 62)]), told);
        assert!(read(&archive(&[holes("some", 1 << 20)]), &CancellationToken::new()).is_ok());
        let mut left = Bounded { inner: io::repeat(0), left: 10 };
        let mut all = Vec::new();
        assert_eq!(left.read_to_end(&mut all).unwrap_err().to_string(), told);
    }

    #[test]
    fn a_layer_is_left_in_the_midst_of_a_file() {
        let stop = CancellationToken::new();
        let later = stop.clone();
        let stopping = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(100));
            later.cancel();
        });
        let read = read(&archive(&[holes("large", SIZE_MAX)]), &stop);
        assert_eq!(read.err().map(|error| error.kind()), Some(io::ErrorKind::Interrupted));
        stopping.join().unwrap();
    }
}
