//! Mount points that an image lacks: made before the process starts, taken away after it.
//!
//! Making a directory in an overlay copies up its parents, which then look changed. So it is
//! remembered what was made and what was merely copied up; afterwards both are removed from
//! the upper directory unless the process has touched them.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Stat};

use super::report::Doing as _;
use super::root::{self, Fault, Found, Missing};
use crate::ContainerError;
use crate::bundle::{MountEntry, RootfsEntry};

/// What was put into the root, to be taken out again.
pub(super) struct MountPoints {
    /// Where changes of the root are stored: the upper directory, or the root itself.
    store: File,
    made: Vec<Trace>,
    /// Parents that exist in the upper directory only because of what was made in them.
    copied_up: Vec<Trace>,
}

struct Trace {
    path: String,
    /// As it was when all mount points were there.
    before: Option<Stat>,
}

impl MountPoints {
    /// Makes the mount points of `mounts` in the root mounted at `rootfs`; they belong to `owner`.
    ///
    /// A target below that of an earlier mount is left to the init, since it lies in that mount.
    pub(super) fn make(
        rootfs: &Path,
        entry: &RootfsEntry,
        mounts: &[MountEntry],
        owner: u32,
    ) -> Result<Self, ContainerError> {
        let (store, is_overlay) = match entry {
            RootfsEntry::Overlay(layers) => (&layers.upper, true),
            RootfsEntry::Directory(path) => (path, false),
        };
        let store = root::open_directory(store).doing(|| format!("open `{}`", store.display()))?;
        let mut points = Self { store, made: Vec::new(), copied_up: Vec::new() };
        for (number, mount) in mounts.iter().enumerate() {
            let earlier = &mounts[..number];
            if !earlier.iter().any(|earlier| lies_below(&mount.destination, &earlier.destination)) {
                points.make_one(rootfs, mount, is_overlay, owner)?;
            }
        }
        for trace in points.made.iter_mut().chain(&mut points.copied_up) {
            trace.before = root::stat(&points.store, &trace.path);
        }
        Ok(points)
    }

    fn make_one(
        &mut self,
        rootfs: &Path,
        mount: &MountEntry,
        is_overlay: bool,
        owner: u32,
    ) -> Result<(), ContainerError> {
        let missing = missing_kind(mount);
        let store = &self.store;
        let mut absent: Vec<String> = Vec::new();
        // Which parents are in the upper directory can only be asked before anything is made.
        let mut note = |parent: &str| {
            if is_overlay {
                let parents = prefixes(parent).filter(|path| root::stat(store, path).is_none());
                absent.extend(parents.map(str::to_owned));
            }
        };
        let found = root::find_noting(rootfs, &mount.destination, missing, owner, &mut note)
            .and_then(|found| check(mount, &found).map(|()| found))
            .map_err(|error| explain(mount, "make the mount point", error))?;
        let all: Vec<&str> = prefixes(&found.path).collect();
        let existing = all.len().saturating_sub(found.made);
        for prefix in &all[existing..] {
            self.made.push(Trace { path: (*prefix).to_owned(), before: None });
        }
        for prefix in absent.into_iter().filter(|path| all[..existing].contains(&path.as_str())) {
            self.copied_up.push(Trace { path: prefix, before: None });
        }
        Ok(())
    }

    /// Removes what the process has left as it found it. What cannot be removed stays: that
    /// is a change of the process.
    pub(super) fn remove(self) {
        let unchanged = |trace: &Trace| {
            let now = root::stat(&self.store, &trace.path)?;
            trace.before.filter(|before| same(before, &now))
        };
        let mut gone: Vec<&str> = Vec::new();
        // All are judged before any is removed: removing a child changes its parent.
        for trace in self.made.iter().chain(&self.copied_up) {
            if unchanged(trace).is_some() {
                gone.push(&trace.path);
            }
        }
        gone.sort_by_key(|path| std::cmp::Reverse(path.split('/').count()));
        for path in gone {
            let Ok((folder, name)) = root::parent(&self.store, path) else { continue };
            let is_directory = root::stat(&self.store, path)
                .is_some_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir());
            let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            // A directory that is not empty refuses, which is what we want.
            let _kept = rustix::fs::unlinkat(folder, name.as_str(), flags);
        }
    }
}

/// The same file, touched by nobody.
fn same(before: &Stat, now: &Stat) -> bool {
    let facts = |stat: &Stat| {
        let owner = (stat.st_uid, stat.st_gid, stat.st_mode, stat.st_size);
        (stat.st_ino, owner, stat.st_ctime, stat.st_ctime_nsec)
    };
    facts(before) == facts(now)
}

/// What a missing target has to be, to have this mounted on it.
pub(super) fn missing_kind(mount: &MountEntry) -> Missing {
    let source = PathBuf::from(&mount.source);
    if mount.is_bind() && !source.is_dir() { Missing::File } else { Missing::Directory }
}

/// Refuses a target that the mount does not fit.
pub(super) fn check(mount: &MountEntry, target: &Found) -> io::Result<()> {
    let is_own = ["/proc", "/dev", "/sys"].contains(&mount.destination.as_str());
    if is_own && target.path != mount.destination[1..] {
        return Err(Fault("the image has a symbolic link there").into());
    }
    match (missing_kind(mount), target.is_directory) {
        (Missing::File, true) => Err(Fault("the image has a directory there").into()),
        (Missing::Directory, false) => Err(Fault("the image has a file there").into()),
        _ => Ok(()),
    }
}

/// Says whose fault it is that a mount is not possible.
pub(super) fn explain(mount: &MountEntry, doing: &str, error: io::Error) -> ContainerError {
    let path = mount.destination.clone();
    match Fault::of(&error) {
        Some(fault) => ContainerError::Image { path, reason: fault.to_string() },
        None => {
            ContainerError::Setup { doing: format!("{doing} `{path}`"), reason: error.to_string() }
        }
    }
}

/// `a`, `a/b`, `a/b/c` of `a/b/c`.
fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.match_indices('/').map(|(end, _)| end);
    ends.chain((!path.is_empty()).then_some(path.len())).map(|end| &path[..end])
}

fn lies_below(path: &str, ancestor: &str) -> bool {
    let names = |path: &str| -> Vec<String> {
        path.split('/').filter(|name| !matches!(*name, "" | ".")).map(str::to_owned).collect()
    };
    let (path, ancestor) = (names(path), names(ancestor));
    path.len() > ancestor.len() && path.starts_with(&ancestor)
}
