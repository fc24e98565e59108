//! Bounds on what containers write to disk, held by looking.
//!
//! A file system that counts for us (project quotas) is a mount option that few machines have, and
//! that users without root cannot ask for. So what a container has written is counted, as `du` does,
//! about every second, and less often where counting takes long: a container that writes fast is
//! somewhat beyond its bound before it is ended. How much room the machine has left costs nothing
//! to ask, and is looked at five times a second: before the disk is full, the container that holds
//! the most is ended.

use std::collections::HashSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Stat};
use tokio_util::sync::CancellationToken;

use crate::cgroup;
use crate::remove::open;
use crate::{Exit, MountKind, ProcessSpec, Rootfs};

/// How often the room that is left is looked at.
const LOOK_PERIOD: Duration = Duration::from_millis(200);
/// How often a container is counted; counting takes one part of this many of the time, but is done
/// at least so often.
const COUNT_PERIOD: Duration = Duration::from_secs(1);
const COUNT_SHARE: u32 = 20;
const COUNT_PERIOD_MAX: Duration = Duration::from_secs(10);
/// Who takes longer to be counted, while room is wanting, has the most.
const COUNT_TIME_MAX: Duration = Duration::from_millis(500);
/// How long the files of an ended container may take to go.
const REMOVAL_WAIT: Duration = Duration::from_secs(3);
/// What a file or folder takes at least: many small ones fill a disk too.
const ENTRY_SIZE: u64 = 4096;
/// The size of the blocks that a file's size is told in.
const BLOCK_SIZE: u64 = 512;
/// Whoever nests folders deeper than they can be counted has the most of all.
const DEPTH_MAX: usize = 256;
/// A small disk keeps this part of it free at most, whatever the reserve.
const RESERVE_SHARE: u64 = 20;
/// Whoever holds less than this part of the reserve is not to blame for a full disk.
const BLAME_SHARE: u64 = 16;
/// So many files can always be made.
const FREE_FILES_MIN: u64 = 4096;
/// The kind of file system that is in memory.
const TMPFS: i64 = 0x0102_1994;

/// What a container may write to disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskLimit {
    /// Bytes that may come to lie in the folders that it writes to; `None`: no bound of its own.
    pub size_max: Option<u64>,
    /// Folders that it shares with others: what was there before does not count for the bound.
    pub besides: Vec<PathBuf>,
}

/// Looks after the containers of a runtime.
#[derive(Debug)]
pub(crate) struct Disk {
    /// Any folder of the file system that is not to fill up.
    folder: PathBuf,
    /// Bytes to be kept free there.
    reserve: u64,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    watched: Vec<Arc<Watched>>,
    /// Whether somebody looks.
    is_looked_at: bool,
}

#[derive(Debug)]
struct Watched {
    /// Its own, empty at first.
    own: Vec<PathBuf>,
    shared: Vec<PathBuf>,
    /// What it may write to besides: it counts for who has the most.
    others: Vec<PathBuf>,
    /// The control group that says which processes it has.
    group: Option<PathBuf>,
    size_max: Option<u64>,
    /// What the shared folders held at first.
    before: u64,
    end: OnceLock<Exit>,
    ended: CancellationToken,
    count: Mutex<Count>,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    due: Instant,
    is_going_on: bool,
}

/// A container that is watched until this is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    this: Arc<Watched>,
    state: Arc<Mutex<State>>,
}

impl Watch {
    /// Waits until the container is to be ended, and tells why.
    pub(crate) async fn full(&self) -> Exit {
        self.this.ended.cancelled().await;
        *self.this.end.get().unwrap_or(&Exit::DiskFull)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        lock(&self.state).watched.retain(|other| !Arc::ptr_eq(other, &self.this));
    }
}

impl Disk {
    pub(crate) fn new(folder: PathBuf, reserve: u64) -> Self {
        Self { folder, reserve, state: Arc::default() }
    }

    /// What lies in folders that others write to as well. Blocking.
    pub(crate) fn before(limit: &DiskLimit) -> u64 {
        let mut counter = Counter::default();
        limit.besides.iter().for_each(|folder| counter.count(folder));
        counter.size
    }

    /// Looks after a container from now on. `group` is the folder of its control group.
    /// `before` is what [`Disk::before`] told, before the container's process was started.
    pub(crate) fn watch(
        &self,
        spec: &ProcessSpec,
        group: Option<PathBuf>,
        before: u64,
    ) -> Option<Watch> {
        let limit = &spec.limits.disk;
        if limit.size_max.is_none() && self.reserve == 0 {
            return None;
        }
        let this = Arc::new(Watched {
            own: own_folders(spec),
            shared: limit.besides.clone(),
            others: other_folders(spec),
            group,
            size_max: limit.size_max,
            before,
            end: OnceLock::new(),
            ended: CancellationToken::new(),
            count: Mutex::new(Count { due: Instant::now(), is_going_on: false }),
        });
        let mut state = lock(&self.state);
        state.watched.push(Arc::clone(&this));
        if !std::mem::replace(&mut state.is_looked_at, true) {
            let look = Look {
                folder: self.folder.clone(),
                reserve: self.reserve,
                state: Arc::clone(&self.state),
            };
            tokio::spawn(look.go_on());
        }
        Some(Watch { this, state: Arc::clone(&self.state) })
    }
}

/// The folders that only this container writes to.
fn own_folders(spec: &ProcessSpec) -> Vec<PathBuf> {
    let root = match &spec.rootfs {
        Rootfs::Overlay { upper, .. } => upper,
        Rootfs::Directory(folder) => folder,
    };
    let overlays = spec.mounts.iter().filter_map(|mount| match &mount.kind {
        MountKind::Overlay { upper, .. } => Some(upper),
        _ => None,
    });
    [root].into_iter().chain(overlays).cloned().collect()
}

/// Such as those of cache mounts.
fn other_folders(spec: &ProcessSpec) -> Vec<PathBuf> {
    let binds = spec.mounts.iter().filter(|mount| !mount.read_only);
    let sources = binds.filter_map(|mount| match &mount.kind {
        MountKind::Bind { source } => Some(source),
        _ => None,
    });
    sources.filter(|source| !spec.limits.disk.besides.contains(source)).cloned().collect()
}

/// The work of looking, as long as there is a container.
struct Look {
    folder: PathBuf,
    reserve: u64,
    state: Arc<Mutex<State>>,
}

impl Look {
    async fn go_on(self) {
        let mut settled = Instant::now();
        loop {
            let watched = {
                let mut state = lock(&self.state);
                // Whoever comes next begins anew.
                state.is_looked_at = !state.watched.is_empty();
                if !state.is_looked_at {
                    return;
                }
                state.watched.clone()
            };
            watched.iter().for_each(Watched::count_if_due);
            if self.reserve > 0 && Instant::now() >= settled {
                let (folder, reserve) = (self.folder.clone(), self.reserve);
                let looked = tokio::task::spawn_blocking(move || {
                    wanting(&folder, reserve).is_some_and(|blame| make_room(&watched, blame))
                });
                // A look that panicked has found nothing.
                if looked.await.unwrap_or_default() {
                    settled = Instant::now() + REMOVAL_WAIT;
                }
            }
            tokio::time::sleep(LOOK_PERIOD).await;
        }
    }
}

/// Ends whoever has written the most, and more than `blame` bytes; whether anybody gives room.
fn make_room(watched: &[Arc<Watched>], blame: u64) -> bool {
    // What was ended gives room by itself.
    if watched.iter().any(|container| container.is_ended()) {
        return true;
    }
    let sizes = watched.iter().map(|container| (container, container.size_of_all()));
    let Some((largest, size)) = sizes.max_by_key(|(_, size)| *size) else { return false };
    let is_to_blame = size > blame;
    if is_to_blame {
        largest.end(Exit::DiskFull);
    }
    is_to_blame
}

impl Watched {
    fn is_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    fn end(&self, exit: Exit) {
        // The first reason is the one that is told.
        let _ended_already = self.end.set(exit);
        self.ended.cancel();
    }

    /// Counts in a thread of its own what is bounded, if it is time to.
    fn count_if_due(self: &Arc<Self>) {
        let Some(size_max) = self.size_max.filter(|_| !self.is_ended()) else { return };
        {
            let mut count = lock(&self.count);
            if count.is_going_on || count.due > Instant::now() {
                return;
            }
            count.is_going_on = true;
        }
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let mut counter = Counter::default();
            this.shared.iter().for_each(|folder| counter.count(folder));
            this.own.iter().for_each(|folder| counter.count(folder));
            this.count_nameless(&mut counter);
            let mut count = lock(&this.count);
            let wait = (started.elapsed() * COUNT_SHARE).clamp(COUNT_PERIOD, COUNT_PERIOD_MAX);
            count.due = Instant::now() + wait;
            count.is_going_on = false;
            if counter.is_too_deep || counter.size.saturating_sub(this.before) > size_max {
                this.end(Exit::OutOfDisk);
            }
        });
    }

    /// All that it may have written, or more than there is if that cannot be told soon.
    fn size_of_all(&self) -> u64 {
        let end = Instant::now() + COUNT_TIME_MAX;
        let mut counter = Counter { end: Some(end), ..Counter::default() };
        let folders = self.own.iter().chain(&self.shared).chain(&self.others);
        folders.for_each(|folder| counter.count(folder));
        self.count_nameless(&mut counter);
        if counter.is_late() || counter.is_too_deep { u64::MAX } else { counter.size }
    }

    fn count_nameless(&self, counter: &mut Counter) {
        let processes = self.group.as_deref().map(cgroup::processes).unwrap_or_default();
        processes.iter().for_each(|process| counter.count_nameless(process));
    }
}

/// The bytes on disk of a folder and all in it. No link is followed, also none that is put there
/// meanwhile; what cannot be looked at, or is deeper than folders are, counts nothing.
pub fn size_of(folder: &Path) -> u64 {
    let mut counter = Counter::default();
    counter.count(folder);
    counter.size
}

/// Adds up sizes on disk. What cannot be looked at counts nothing: it may be gone by now.
#[derive(Debug, Default)]
struct Counter {
    size: u64,
    /// Files with several names, by device and number, so that they count once.
    seen: HashSet<(u64, u64)>,
    /// When to give up.
    end: Option<Instant>,
    /// Whether there are folders that were not looked into for that.
    is_too_deep: bool,
}

impl Counter {
    fn is_late(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() > end)
    }

    fn count(&mut self, folder: &Path) {
        if let Ok(folder) = open(CWD, folder) {
            self.count_in(&folder, 0);
        }
    }

    fn count_in(&mut self, folder: &OwnedFd, depth: usize) {
        let Ok(entries) = Dir::read_from(folder) else { return };
        for entry in entries.flatten() {
            if self.is_late() {
                return;
            }
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let Ok(stat) = rustix::fs::statat(folder, name, flags) else { continue };
            let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if is_folder || self.is_new(&stat) {
                self.size = self.size.saturating_add(size_on_disk(&stat));
            }
            match open(folder, name).ok().filter(|_| is_folder) {
                Some(inner) if depth < DEPTH_MAX => self.count_in(&inner, depth + 1),
                Some(_) => self.is_too_deep = true,
                None => (),
            }
        }
    }

    /// Whether a file was not counted by another name.
    fn is_new(&mut self, stat: &Stat) -> bool {
        stat.st_nlink <= 1 || self.seen.insert((stat.st_dev, stat.st_ino))
    }

    /// Files on disk without a name that the threads of a process hold open.
    fn count_nameless(&mut self, process: &str) {
        let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { return };
        let files =
            threads.flatten().filter_map(|thread| fs::read_dir(thread.path().join("fd")).ok());
        for file in files.flat_map(Iterator::flatten) {
            if self.is_late() {
                return;
            }
            let Ok(stat) = rustix::fs::stat(file.path()) else { continue };
            let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
            if is_file
                && stat.st_nlink == 0
                && self.seen.insert((stat.st_dev, stat.st_ino))
                && rustix::fs::statfs(file.path()).is_ok_and(|found| found.f_type != TMPFS)
            {
                self.size = self.size.saturating_add(size_on_disk(&stat));
            }
        }
    }
}

fn size_on_disk(stat: &Stat) -> u64 {
    (u64::try_from(stat.st_blocks).unwrap_or_default() * BLOCK_SIZE).max(ENTRY_SIZE)
}

/// If a file system has less room than it is to keep, or next to no files left: how much somebody has to
/// have written to be blamed for that.
fn wanting(folder: &Path, reserve: u64) -> Option<u64> {
    // A file system that does not answer is not known to be full.
    let found = rustix::fs::statvfs(folder).ok()?;
    let reserve = reserve.min(found.f_blocks.saturating_mul(found.f_frsize) / RESERVE_SHARE);
    let files_min = FREE_FILES_MIN.min(found.f_files / RESERVE_SHARE);
    match found.f_bavail.saturating_mul(found.f_frsize) < reserve {
        true => Some(reserve / BLAME_SHARE),
        false => (found.f_favail < files_min).then_some(0),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn files_count_once_and_links_lead_nowhere() {
        let outer = tempfile::tempdir().unwrap();
        let (tree, other) = (outer.path().join("tree"), outer.path().join("other"));
        fs::create_dir_all(tree.join("inner")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("large"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink(&other, tree.join("link")).unwrap();
        let mut file = fs::File::create(tree.join("inner/file")).unwrap();
        file.write_all(&vec![1; 64 << 10]).unwrap();
        file.sync_all().unwrap();
        fs::hard_link(tree.join("inner/file"), tree.join("again")).unwrap();
        let mut counter = Counter::default();
        counter.count(&tree);
        // The file, its folder and the link.
        assert_eq!(counter.size, (64 << 10) + 2 * ENTRY_SIZE);
    }

    #[test]
    fn a_small_disk_need_not_be_empty_for_a_large_reserve() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(wanting(folder.path(), 0), None);
        let found = rustix::fs::statvfs(folder.path()).unwrap();
        let is_roomy = found.f_bavail > found.f_blocks / RESERVE_SHARE;
        assert_eq!(wanting(folder.path(), u64::MAX).is_none(), is_roomy);
    }
}
