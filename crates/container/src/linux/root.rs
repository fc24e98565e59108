//! Finding and making paths inside a root filesystem that is not trusted.
//!
//! An image may hold symbolic links that lead anywhere. Every path is walked one name at a
//! time through open directories, with absolute links and `..` taken relative to the root, so
//! nothing outside is ever reached, whatever another process changes meanwhile.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

/// As many symbolic links as the kernel follows.
const LINKS_MAX: usize = 40;
const DEPTH_MAX: usize = 1024;

/// Why something cannot be mounted in this image, as opposed to on this machine.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("{0}")]
pub(super) struct Fault(pub(super) &'static str);

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        Self::other(fault)
    }
}

impl Fault {
    /// The fault that an error stands for, if it is one.
    pub(super) fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

/// What to make where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Refuse,
    Directory,
    File,
}

/// A place inside the root.
pub(super) struct Found {
    /// Opened with `O_PATH`.
    pub(super) file: OwnedFd,
    pub(super) is_directory: bool,
    /// Relative to the root, free of links.
    pub(super) path: String,
    /// How many of the last names of `path` had to be made.
    pub(super) made: usize,
}

/// Walks `path` inside `root`, making what is missing, which then belongs to `owner`.
pub(super) fn find(root: &Path, path: &str, missing: Missing, owner: u32) -> io::Result<Found> {
    find_noting(root, path, missing, owner, &mut |_| ())
}

/// As [`find`]; `before_making` hears the path of each directory in which something is about
/// to be made.
pub(super) fn find_noting(
    root: &Path,
    path: &str,
    missing: Missing,
    owner: u32,
    before_making: &mut dyn FnMut(&str),
) -> io::Result<Found> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, directory, Mode::empty())?;
    let mut walk = Walk { stack: vec![(String::new(), root)], made: 0, owner };
    let mut names: VecDeque<String> = split(path).collect();
    let mut links = 0;
    while let Some(name) = names.pop_front() {
        if name == ".." {
            walk.leave();
            continue;
        }
        let (file, kind) = walk.open_or_make(&name, names.is_empty(), missing, before_making)?;
        match kind {
            FileType::Symlink => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Fault("the image has too many symbolic links there").into());
                }
                let target = rustix::fs::readlinkat(&file, "", Vec::new())?;
                let target = target.into_string().map_err(|_error| {
                    Fault("the image has a symbolic link there that is not UTF-8")
                })?;
                if target.starts_with('/') {
                    walk.stack.truncate(1);
                }
                for name in split(&target).collect::<Vec<_>>().into_iter().rev() {
                    names.push_front(name);
                }
            }
            FileType::Directory => walk.enter(name, file)?,
            _ if names.is_empty() => {
                let path = walk.path_of(&name);
                return Ok(Found { file, is_directory: false, path, made: walk.made });
            }
            _ => return Err(Fault("the image has a file where a directory is needed").into()),
        }
    }
    walk.finish()
}

struct Walk {
    /// The directories on the way, the root first.
    stack: Vec<(String, OwnedFd)>,
    made: usize,
    owner: u32,
}

impl Walk {
    fn here(&self) -> io::Result<&OwnedFd> {
        self.stack.last().map(|(_, file)| file).ok_or_else(|| Errno::NOENT.into())
    }

    fn enter(&mut self, name: String, file: OwnedFd) -> io::Result<()> {
        if self.stack.len() >= DEPTH_MAX {
            return Err(Fault("the image's directories are too deep").into());
        }
        self.stack.push((name, file));
        Ok(())
    }

    fn leave(&mut self) {
        if self.stack.len() > 1 {
            self.stack.pop();
        }
    }

    fn path_of(&self, last: &str) -> String {
        let mut names: Vec<&str> =
            self.stack.iter().skip(1).map(|(name, _)| name.as_str()).collect();
        names.push(last);
        names.join("/")
    }

    fn open_or_make(
        &mut self,
        name: &str,
        last: bool,
        missing: Missing,
        before_making: &mut dyn FnMut(&str),
    ) -> io::Result<(OwnedFd, FileType)> {
        let here = self.here()?;
        match open(here, name) {
            Err(Errno::NOENT) if missing != Missing::Refuse => {
                let path = self.path_of(name);
                before_making(path.rsplit_once('/').map_or("", |(parent, _)| parent));
                make(here, name, if last { missing } else { Missing::Directory })?;
                let opened = open(here, name)?;
                if self.owner != 0 {
                    let owner = (Uid::from_raw(self.owner), Gid::from_raw(self.owner));
                    let flags = AtFlags::EMPTY_PATH;
                    rustix::fs::chownat(&opened.0, "", Some(owner.0), Some(owner.1), flags)?;
                }
                self.made += 1;
                Ok(opened)
            }
            result => Ok(result?),
        }
    }

    fn finish(mut self) -> io::Result<Found> {
        let (name, file) = self.stack.pop().ok_or(Errno::NOENT)?;
        let path = if self.stack.is_empty() { String::new() } else { self.path_of(&name) };
        Ok(Found { file, is_directory: true, path, made: self.made })
    }
}

fn split(path: &str) -> impl Iterator<Item = String> {
    path.split('/').filter(|name| !name.is_empty() && *name != ".").map(str::to_owned)
}

fn open(directory: &OwnedFd, name: &str) -> Result<(OwnedFd, FileType), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&file)?;
    Ok((file, FileType::from_raw_mode(stat.st_mode)))
}

fn make(directory: &OwnedFd, name: &str, kind: Missing) -> io::Result<()> {
    if kind == Missing::File {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644))?;
    } else {
        rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(0o755))?;
    }
    Ok(())
}

/// Opens the directory that holds `path`, inside `root` and through no link.
pub(super) fn parent(root: impl AsFd, path: &str) -> io::Result<(OwnedFd, String)> {
    let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = rustix::fs::ResolveFlags::BENEATH | rustix::fs::ResolveFlags::NO_SYMLINKS;
    let folder = rustix::fs::openat2(root, folder, flags, Mode::empty(), resolve)?;
    Ok((folder, name.to_owned()))
}

/// Describes `path` inside `root` without following links; `None` if it is not there.
pub(super) fn stat(root: impl AsFd, path: &str) -> Option<rustix::fs::Stat> {
    let (folder, name) = parent(root, path).ok()?;
    rustix::fs::statat(folder, name.as_str(), AtFlags::SYMLINK_NOFOLLOW).ok()
}

/// Opens a directory of the host for the functions above.
pub(super) fn open_directory(path: &Path) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}
