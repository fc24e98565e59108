//! Folders of `RUN --mount=type=cache`: they outlive builds, and hold whatever commands put
//! there. What is in them never counts for a result, so losing one costs time and nothing else.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use dockerfile::{FileOwner, Sharing};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};
use tokio::sync::OwnedMutexGuard;

use crate::cache::KeyHasher;

/// The cache folders of a machine. One per data folder.
pub struct CacheFolders {
    folder: PathBuf,
    /// Folders that were not used for long go when all take more than this, in bytes.
    size_max: u64,
    used: Mutex<HashMap<String, Use>>,
    /// Held by whoever makes room just now.
    trimming: Mutex<()>,
}

/// Who uses the folders of one name.
#[derive(Default)]
struct Use {
    /// For those that want it one after another.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// How many use each numbered folder.
    counts: HashMap<usize, usize>,
    waiting: usize,
}

/// The right to use a folder; ends when dropped.
pub(crate) struct CacheLease {
    folders: Arc<CacheFolders>,
    name: String,
    number: usize,
    _turn: Option<OwnedMutexGuard<()>>,
}

impl CacheFolders {
    pub fn open(folder: &Path, size_max: u64) -> io::Result<Arc<Self>> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let folders = Self {
            folder: folder.to_owned(),
            size_max,
            used: Mutex::default(),
            trimming: Mutex::default(),
        };
        Ok(Arc::new(folders))
    }

    /// A folder by its id, made if there is none. Builds of different namespaces never share
    /// one: what is in it runs in whoever uses it.
    pub(crate) async fn lease(
        self: &Arc<Self>,
        namespace: &str,
        id: &str,
        sharing: Sharing,
        owner: FileOwner,
    ) -> io::Result<CacheLease> {
        let mut key = KeyHasher::new("cache folder");
        key.text("namespace", namespace);
        key.text("id", id);
        let name = key.finish().hex().to_owned();
        let turn = {
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            let entry = used.entry(name.clone()).or_default();
            entry.waiting += 1;
            Arc::clone(&entry.turn)
        };
        let _waiting = Waiting { folders: self, name: &name };
        let turn = match sharing {
            Sharing::Locked => Some(turn.lock_owned().await),
            Sharing::Shared | Sharing::Private => None,
        };
        let number = {
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            let counts = &mut used.entry(name.clone()).or_default().counts;
            let number = match sharing {
                Sharing::Private => {
                    (0..).find(|number| !counts.contains_key(number)).unwrap_or_default()
                }
                Sharing::Shared | Sharing::Locked => 0,
            };
            *counts.entry(number).or_default() += 1;
            number
        };
        let lease =
            CacheLease { folders: Arc::clone(self), name: name.clone(), number, _turn: turn };
        lease.make(owner)?;
        Ok(lease)
    }

    fn release(&self, name: &str, number: usize) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = used.get_mut(name) else { return };
        if let Some(count) = entry.counts.get_mut(&number) {
            *count -= 1;
            if *count == 0 {
                entry.counts.remove(&number);
            }
        }
        forget_unused(&mut used, name);
    }

    /// Removes folders that were not used for longest, until the others fit the bound.
    fn trim(&self) {
        // Somebody does already.
        let Ok(_alone) = self.trimming.try_lock() else { return };
        let mut folders = match self.sizes() {
            Ok(folders) => folders,
            Err(error) => {
                tracing::warn!(%error, "the cache folders of mounts cannot be read");
                return;
            }
        };
        let mut total: u64 = folders.iter().map(|(.., size)| size).sum();
        folders.sort_by_key(|(_, _, last_used, _)| *last_used);
        for (name, number, _, size) in folders {
            if total <= self.size_max {
                return;
            }
            match self.remove(&name, number) {
                Ok(true) => total -= size,
                Ok(false) => (),
                Err(error) => tracing::warn!(name, %error, "cache folder not removed"),
            }
        }
    }

    /// Removes a folder that nobody uses; `false` if somebody does.
    fn remove(&self, name: &str, number: usize) -> io::Result<bool> {
        let folder = self.folder.join(name).join(number.to_string());
        let aside = self.folder.join(name).join(format!("{number}.removed"));
        {
            // Nobody can begin to use it meanwhile.
            let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            if used.get(name).is_some_and(|used| used.counts.contains_key(&number)) {
                return Ok(false);
            }
            std::fs::rename(&folder, &aside)?;
        }
        container::remove_tree(&aside)?;
        // Goes when its last number goes.
        let _others_are_there = std::fs::remove_dir(self.folder.join(name));
        Ok(true)
    }

    /// Every folder: its name and number, when it was used last, and its size in bytes.
    fn sizes(&self) -> io::Result<Vec<(String, usize, SystemTime, u64)>> {
        let mut sizes = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            for numbered in std::fs::read_dir(entry.path())? {
                let path = numbered?.path();
                let Some(file_name) = path.file_name().and_then(|name| name.to_str()) else {
                    continue;
                };
                match file_name.parse::<usize>() {
                    Ok(number) => {
                        let last_used = std::fs::metadata(&path)?.modified()?;
                        sizes.push((name.clone(), number, last_used, container::size_of(&path)));
                    }
                    // What a killed process had begun to remove.
                    Err(_) => container::remove_tree(&path)?,
                }
            }
        }
        Ok(sizes)
    }
}

/// Forgets a name that nobody uses or waits for.
fn forget_unused(used: &mut HashMap<String, Use>, name: &str) {
    if used.get(name).is_some_and(|entry| entry.counts.is_empty() && entry.waiting == 0) {
        used.remove(name);
    }
}

/// Counts one that waits for its turn, until it has it or gives up.
struct Waiting<'a> {
    folders: &'a CacheFolders,
    name: &'a str,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut used = self.folders.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = used.get_mut(self.name) {
            entry.waiting -= 1;
        }
        forget_unused(&mut used, self.name);
    }
}

impl CacheLease {
    /// The folder that commands see.
    pub(crate) fn path(&self) -> PathBuf {
        self.numbered().join("data")
    }

    fn numbered(&self) -> PathBuf {
        self.folders.folder.join(&self.name).join(self.number.to_string())
    }

    fn make(&self, owner: FileOwner) -> io::Result<()> {
        let path = self.path();
        std::fs::create_dir_all(self.numbered())?;
        match std::fs::create_dir(&path) {
            Ok(()) => {
                let mode = std::fs::Permissions::from_mode(owner.mode.unwrap_or(0o755));
                chown(&path, Some(owner.uid.unwrap_or(0)), Some(owner.gid.unwrap_or(0)))?;
                std::fs::set_permissions(&path, mode)?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
            Err(error) => return Err(error),
        }
        // The time of the numbered folder says when it was used.
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        Ok(utimensat(CWD, self.numbered(), &times, AtFlags::empty())?)
    }
}

impl Drop for CacheLease {
    fn drop(&mut self) {
        self.folders.release(&self.name, self.number);
        // In a thread of its own: there may be very many files.
        let folders = Arc::clone(&self.folders);
        std::thread::spawn(move || folders.trim());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn lease(folders: &Arc<CacheFolders>, id: &str, sharing: Sharing) -> CacheLease {
        folders.lease("here", id, sharing, FileOwner::default()).await.unwrap()
    }

    #[tokio::test]
    async fn folders_are_shared_by_rule() {
        let root = tempfile::tempdir().unwrap();
        let folders = CacheFolders::open(root.path(), u64::MAX).unwrap();
        let one = lease(&folders, "a", Sharing::Shared).await;
        let two = lease(&folders, "a", Sharing::Shared).await;
        assert_eq!(one.path(), two.path());
        let three = lease(&folders, "a", Sharing::Private).await;
        assert_ne!(one.path(), three.path());
        assert_ne!(lease(&folders, "b", Sharing::Shared).await.path(), one.path());
        let elsewhere =
            folders.lease("there", "a", Sharing::Shared, FileOwner::default()).await.unwrap();
        assert_ne!(elsewhere.path(), one.path());

        // A private folder is used again when it is free.
        let path = three.path();
        drop(three);
        assert_eq!(lease(&folders, "a", Sharing::Private).await.path(), path);

        let locked = lease(&folders, "c", Sharing::Locked).await;
        let waits = lease(&folders, "c", Sharing::Locked);
        let waited = tokio::time::timeout(Duration::from_millis(50), waits).await;
        assert!(waited.is_err(), "two have it at once");
        drop(locked);
        lease(&folders, "c", Sharing::Locked).await;
    }

    #[tokio::test]
    async fn what_was_not_used_for_longest_goes_first() {
        let root = tempfile::tempdir().unwrap();
        let folders = CacheFolders::open(root.path(), 150 << 10).unwrap();
        let mut paths = Vec::new();
        for (age, id) in [(300, "old"), (200, "newer"), (100, "in use")] {
            let lease = lease(&folders, id, Sharing::Shared).await;
            std::fs::write(lease.path().join("file"), vec![1; 100 << 10]).unwrap();
            let folder = std::fs::File::open(lease.numbered()).unwrap();
            let now = folder.metadata().unwrap().modified().unwrap();
            folder.set_modified(now - Duration::from_secs(age)).unwrap();
            paths.push(lease.path());
            // Used all the time, so that nothing is removed before all are there.
            std::mem::forget(lease);
        }
        folders.trim();
        assert!(paths.iter().all(|path| path.exists()));
        folders.used.lock().unwrap().retain(|_, used| used.waiting > 0);
        let still = lease(&folders, "in use", Sharing::Shared).await;
        folders.trim();
        let there: Vec<bool> = paths.iter().map(|path| path.exists()).collect();
        assert_eq!(there, [false, false, true]);
        drop(still);
    }
}
