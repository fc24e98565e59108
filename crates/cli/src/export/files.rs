//! The files of an image, as a tar or in a folder.
//!
//! The server sends one tar. In a folder its files belong to whoever runs the command, as with
//! BuildKit's clients. Every name is opened below that folder and through no link, whatever the
//! tar says and whatever lies in the folder.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use reqwest::{Method, Response};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};
use tokio::sync::mpsc;

use super::BuiltImage;
use super::place::{Place, Whole};
use crate::error::{Result, could_not};

/// Chunks of the tar that are received before they are needed.
const CHUNKS: usize = 4;

/// What was left out of a folder, for the user to know.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct LeftOut {
    pub(crate) devices: u64,
}

pub(super) async fn write(image: &BuiltImage<'_>, place: &Place) -> Result<LeftOut> {
    let url = image.connection.route(&["runs", &image.run, "files"]);
    let response = image.connection.stream(image.connection.request(Method::GET, url)).await?;
    let out = match place {
        Place::Folder(folder) => return unpack_response(response, folder.clone()).await,
        Place::Stdout => Whole::stdout()?,
        Place::File(file) => Whole::begin(file).await?,
    };
    write_tar(response, out).await?;
    Ok(LeftOut::default())
}

async fn write_tar(mut response: Response, mut out: Whole) -> Result<()> {
    while let Some(chunk) = next_chunk(&mut response).await? {
        out.write(&chunk).await?;
    }
    out.finish().await
}

/// A body that the server broke off is an error here.
async fn next_chunk(response: &mut Response) -> Result<Option<Bytes>> {
    let chunk = response.chunk().await.map_err(could_not("read the image's files"));
    chunk.map_err(|error| error.with_hint("the server's log says why it ended early"))
}

async fn unpack_response(mut response: Response, folder: PathBuf) -> Result<LeftOut> {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let doing = format!("write to `{}`", folder.display());
    let unpacking = tokio::task::spawn_blocking(move || {
        let tar = Received { receiver, chunk: Bytes::new() };
        Folder::open(&folder)?.unpack(tar)
    });
    let mut received = Ok(());
    loop {
        match next_chunk(&mut response).await {
            Ok(Some(chunk)) => {
                // An error of the folder is told below.
                if sender.send(Ok(chunk)).await.is_err() {
                    break;
                }
            }
            Ok(None) => break,
            Err(error) => {
                let _ = sender.send(Err(io::ErrorKind::UnexpectedEof.into())).await;
                received = Err(error);
                break;
            }
        }
    }
    drop(sender);
    let unpacked = unpacking.await.map_err(could_not(&doing))?;
    received?;
    unpacked.map_err(could_not(doing))
}

/// What was received, for a thread that blocks.
struct Received {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    chunk: Bytes,
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.chunk = chunk?,
                None => return Ok(0),
            }
        }
        let taken = buffer.len().min(self.chunk.len());
        buffer[..taken].copy_from_slice(&self.chunk.split_to(taken));
        Ok(taken)
    }
}

/// Where files are written.
struct Folder {
    root: OwnedFd,
}

const FOLDER_FLAGS: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);

impl Folder {
    fn open(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        Ok(Self { root: rustix::fs::open(path, FOLDER_FLAGS, Mode::empty())? })
    }

    /// Writes everything in a tar.
    fn unpack(&self, tar: impl Read) -> io::Result<LeftOut> {
        let mut left_out = LeftOut::default();
        let mut folders = Vec::new();
        let mut archive = Archive::new(tar);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = clean(&entry.path_bytes())?;
            match entry.header().entry_type() {
                EntryType::Directory => {
                    self.make_folder(&path)?;
                    folders.push((path, mode(&entry)?, times(&entry)?));
                }
                EntryType::Char | EntryType::Block => left_out.devices += 1,
                _ => self.entry(&path, &mut entry).map_err(|error| named(&path, &error))?,
            }
        }
        // Last, since a folder may not let anybody write to it, and writing changes its time.
        for (path, mode, times) in folders.iter().rev() {
            let folder = self.folder(path)?;
            rustix::fs::fchmod(&folder, *mode)?;
            rustix::fs::futimens(&folder, times)?;
        }
        Ok(left_out)
    }

    fn entry<R: Read>(&self, path: &[u8], entry: &mut Entry<'_, R>) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => (),
            Err(errno) => return Err(errno.into()),
        }
        let link = || {
            let target = entry.link_name_bytes();
            target.map(|target| target.into_owned()).ok_or_else(|| invalid("has no target"))
        };
        match entry.header().entry_type() {
            EntryType::Regular => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&parent, name, flags, Mode::from(0o600))?;
                let mut file = std::fs::File::from(file);
                io::copy(entry, &mut file)?;
                rustix::fs::fchmod(&file, mode(entry)?)?;
                rustix::fs::futimens(&file, &times(entry)?)?;
            }
            EntryType::Symlink => {
                rustix::fs::symlinkat(&*link()?, &parent, name)?;
                let times = times(entry)?;
                rustix::fs::utimensat(&parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            EntryType::Link => {
                let target = clean(&link()?)?;
                let (target_parent, target_name) = self.parent(&target)?;
                rustix::fs::linkat(&target_parent, target_name, &parent, name, AtFlags::empty())?;
            }
            EntryType::Fifo => {
                rustix::fs::mknodat(&parent, name, FileType::Fifo, mode(entry)?, 0)?;
            }
            _ => return Err(invalid("is of a kind that is not known")),
        }
        Ok(())
    }

    /// Opens a folder that is there.
    fn folder(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.root, path, FOLDER_FLAGS, Mode::empty(), resolve)
    }

    /// The folder that a path is in, and its own name there.
    fn parent<'p>(&self, path: &'p [u8]) -> io::Result<(OwnedFd, &'p [u8])> {
        let (above, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(end) => (&path[..end], &path[end + 1..]),
            None => (&b""[..], path),
        };
        Ok((self.folder(above)?, name))
    }

    /// Makes a folder that its user can write to, or uses one that is there.
    fn make_folder(&self, path: &[u8]) -> io::Result<()> {
        let make = || -> io::Result<()> {
            let (parent, name) = self.parent(path)?;
            match rustix::fs::mkdirat(&parent, name, Mode::from(0o700)) {
                Err(Errno::EXIST) if !is_folder(&parent, name)? => {
                    rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
                    rustix::fs::mkdirat(&parent, name, Mode::from(0o700))?;
                }
                Err(Errno::EXIST) => {
                    rustix::fs::fchmod(&self.folder(path)?, Mode::from(0o700))?;
                }
                made => made?,
            }
            Ok(())
        };
        make().map_err(|error| named(path, &error))
    }
}

fn is_folder(parent: impl AsFd, name: &[u8]) -> io::Result<bool> {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn named(path: &[u8], error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("`{}`: {error}", String::from_utf8_lossy(path)))
}

/// A path without anything that leads out of the folder.
fn clean(path: &[u8]) -> io::Result<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    let parts: Vec<&[u8]> = parts.collect();
    match parts.is_empty() || parts.contains(&&b".."[..]) {
        true => Err(named(path, &invalid("leads out of the folder"))),
        false => Ok(parts.join(&b'/')),
    }
}

/// Its owner is another one than in the image, so the bits that lend the owner's rights go.
fn mode<R: Read>(entry: &Entry<'_, R>) -> io::Result<Mode> {
    Ok(Mode::from(entry.header().mode()? & 0o1777))
}

fn times<R: Read>(entry: &Entry<'_, R>) -> io::Result<Timestamps> {
    let seconds = i64::try_from(entry.header().mtime()?).map_err(io::Error::other)?;
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Ok(Timestamps { last_access: time, last_modification: time })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use tar::{Builder, Header};

    use super::*;

    fn add(tar: &mut Builder<Vec<u8>>, kind: EntryType, path: &str, text: &str, mode: u32) {
        let mut header = Header::new_ustar();
        // Set as bytes: the crate refuses names that lead out.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_000_000_000);
        let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
        if is_link {
            header.set_link_name_literal(text).unwrap();
        }
        let content = if is_link { &b""[..] } else { text.as_bytes() };
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content).unwrap();
    }

    #[test]
    fn a_tar_becomes_a_folder() {
        let place = tempfile::tempdir().unwrap();
        // What is there is replaced, never followed, and else stays.
        symlink("/", place.path().join("a")).unwrap();
        std::fs::write(place.path().join("mine"), "precious").unwrap();
        let mut tar = Builder::new(Vec::new());
        add(&mut tar, EntryType::Directory, "a/", "", 0o555);
        add(&mut tar, EntryType::Regular, "a/b", "text", 0o4755);
        add(&mut tar, EntryType::Link, "a/c", "a/b", 0o4755);
        add(&mut tar, EntryType::Symlink, "d", "/etc/passwd", 0o777);
        add(&mut tar, EntryType::Char, "null", "", 0o666);
        add(&mut tar, EntryType::Fifo, "pipe", "", 0o600);
        let tar = tar.into_inner().unwrap();
        for _ in 0..2 {
            let folder = Folder::open(place.path()).unwrap();
            assert_eq!(folder.unpack(&tar[..]).unwrap(), LeftOut { devices: 1 });
        }
        let found = |path: &str| std::fs::symlink_metadata(place.path().join(path)).unwrap();
        assert_eq!(found("a").permissions().mode() & 0o7777, 0o555);
        assert_eq!(found("a").mtime(), 1_000_000_000);
        assert_eq!((found("a/b").mode() & 0o7777, found("a/b").nlink()), (0o755, 2));
        assert_eq!(std::fs::read_to_string(place.path().join("a/c")).unwrap(), "text");
        assert!(found("d").is_symlink() && found("mine").is_file());
        std::fs::set_permissions(place.path().join("a"), std::fs::Permissions::from_mode(0o755))
            .unwrap();
    }

    #[test]
    fn nothing_leads_out() {
        let place = tempfile::tempdir().unwrap();
        let inside = place.path().join("inside");
        for (link, path) in [("", "../out"), ("", "a/../../out"), ("..", "l/out"), ("/", "l/out")] {
            let mut tar = Builder::new(Vec::new());
            if !link.is_empty() {
                add(&mut tar, EntryType::Symlink, "l", link, 0o777);
            }
            add(&mut tar, EntryType::Regular, path, "text", 0o644);
            let tar = tar.into_inner().unwrap();
            let refused = Folder::open(&inside).unwrap().unpack(&tar[..]).unwrap_err();
            assert!(refused.to_string().contains("out`"), "{refused}");
        }
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_tar_that_ends_early_is_an_error() {
        let place = tempfile::tempdir().unwrap();
        let mut tar = Builder::new(Vec::new());
        add(&mut tar, EntryType::Regular, "a", &"text".repeat(1000), 0o644);
        let tar = tar.into_inner().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        assert!(folder.unpack(&tar[..2000]).is_err());
    }
}
