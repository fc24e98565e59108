//! Removing what untrusted code left behind.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use tokio_util::task::TaskTracker;

/// Folders deeper than this are moved up before they are removed: neither the stack nor the
/// number of open files grows with what somebody nested.
const DEPTH_MAX: usize = 32;

/// Removes a folder and all in it, however deep. Links are not followed. What is not there, or
/// not any more, is no error: the kernel clears the folders of an overlay that it unmounts.
/// Blocking.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let Some(top) = unless_gone(open(CWD, path))? else { return Ok(()) };
    let mut moved = 0;
    while clear(&top, &top, 0, &mut moved)? {}
    unless_gone(rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR))?;
    Ok(())
}

/// Removals that go on by themselves, so that a program can wait for them before it ends.
/// Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Removals {
    going_on: TaskTracker,
}

impl Removals {
    /// Removes a folder in a thread of its own: it may hold a million files, and whoever wants
    /// it gone may be an async worker. What cannot be removed is logged.
    pub fn remove(&self, path: PathBuf) {
        let going_on = self.going_on.token();
        std::thread::spawn(move || {
            if let Err(error) = remove_tree(&path) {
                tracing::warn!(path = %path.display(), %error, "temporary folder not removed");
            }
            drop(going_on);
        });
    }

    /// Waits until nothing is being removed.
    pub async fn idle(&self) {
        // Only of what waits here: removals are begun as before.
        self.going_on.close();
        self.going_on.wait().await;
    }
}

fn unless_gone<T>(result: rustix::io::Result<T>) -> rustix::io::Result<Option<T>> {
    match result {
        Err(Errno::NOENT) => Ok(None),
        result => result.map(Some),
    }
}

/// Empties a folder; whether something deep was moved up to `top`.
fn clear(folder: &OwnedFd, top: &OwnedFd, depth: usize, moved: &mut u64) -> io::Result<bool> {
    let mut again = false;
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if entry.file_type() != FileType::Directory {
            match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
                // Some file systems do not say what an entry is.
                Err(Errno::ISDIR) => (),
                result => {
                    unless_gone(result)?;
                    continue;
                }
            }
        }
        if depth == DEPTH_MAX {
            // The names in `top` may be anybody's; one of them is free.
            loop {
                *moved += 1;
                let aside = format!("removed-{moved}");
                match rustix::fs::renameat(folder, name, top, aside.as_str()) {
                    Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => (),
                    result => {
                        unless_gone(result)?;
                        break;
                    }
                }
            }
            again = true;
            continue;
        }
        let Some(inner) = unless_gone(open(folder, name))? else { continue };
        again |= clear(&inner, top, depth + 1, moved)?;
        unless_gone(rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR))?;
    }
    Ok(again)
}

/// Opens a folder, and nothing that a link leads to.
pub(crate) fn open(at: impl AsFd, path: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deep_folders_are_removed_and_links_are_not_followed() {
        let outer = tempfile::tempdir().unwrap();
        let (tree, other) = (outer.path().join("tree"), outer.path().join("other"));
        std::fs::create_dir_all(tree.join("removed-1/x")).unwrap();
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join("kept"), "").unwrap();
        std::os::unix::fs::symlink(&other, tree.join("link")).unwrap();
        let mut folder = open(CWD, &tree).unwrap();
        for depth in 0..20_000 {
            rustix::fs::mkdirat(&folder, "d", Mode::from(0o755)).unwrap();
            if depth % 100 == 0 {
                rustix::fs::symlinkat("/", &folder, "link").unwrap_or_default();
            }
            folder = open(&folder, "d").unwrap();
        }
        drop(folder);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(other.join("kept").exists());
        remove_tree(&tree).unwrap();
    }

    #[test]
    fn a_tree_that_somebody_else_removes_too_is_gone_in_the_end() {
        let outer = tempfile::tempdir().unwrap();
        let tree = outer.path().join("tree");
        for number in 0..500 {
            std::fs::create_dir_all(tree.join(format!("{number}/inner"))).unwrap();
            std::fs::write(tree.join(format!("{number}/file")), "").unwrap();
        }
        std::thread::scope(|scope| {
            let removers = [(); 4].map(|()| scope.spawn(|| remove_tree(&tree)));
            for remover in removers {
                remover.join().unwrap().unwrap();
            }
        });
        assert!(!tree.exists());
    }
}
