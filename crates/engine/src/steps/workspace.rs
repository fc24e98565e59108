//! The folder that all steps of a run share, seen from outside.
//!
//! Steps write to it while others read: whatever path a step names is opened from the root, with
//! links followed inside it only, and kept open. By its name it could become another one.

use std::io::{self, Read};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::execute::{Failure, open_in_folder};

/// Where the folder is in containers.
pub(crate) const WORKSPACE: &str = "/workspace";

/// A folder that is held open, whatever becomes of its name.
pub(crate) struct OpenFolder {
    file: OwnedFd,
}

impl OpenFolder {
    /// Opens a folder of a workspace.
    pub(crate) fn open(root: &Path, path: &str) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, Mode::empty())?;
        let path = if path.is_empty() { "." } else { path };
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let file = rustix::fs::openat2(&root, path, flags, Mode::empty(), inside)?;
        Ok(Self { file })
    }

    /// A path that means this folder to this process and to its helpers.
    pub(crate) fn path(&self) -> PathBuf {
        // The dot makes it a folder also for those who follow no link at the end.
        format!("/proc/{}/fd/{}/.", std::process::id(), self.file.as_raw_fd()).into()
    }
}

/// Makes an empty folder in the root of a workspace, where there may be one that is empty.
pub(crate) fn make_empty_folder(root: &Path, name: &str) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty())?;
    match rustix::fs::unlinkat(&root, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => (),
        Err(error) => return Err(error.into()),
    }
    Ok(rustix::fs::mkdirat(&root, name, Mode::from(0o755))?)
}

/// Reads a text of a workspace.
pub(crate) fn read_text(
    root: &Path,
    path: &str,
    what: &str,
    size_max: u64,
) -> Result<String, Failure> {
    let bytes = read_file(root, path, what, size_max)?;
    String::from_utf8(bytes)
        .map_err(|_| Failure::User(format!("error: {what} `{path}` is not UTF-8 text")))
}

/// Reads a file of a workspace.
pub(crate) fn read_file(
    root: &Path,
    path: &str,
    what: &str,
    size_max: u64,
) -> Result<Vec<u8>, Failure> {
    let refused = |reason: &str| Failure::User(format!("error: {what} `{path}` {reason}"));
    let file = open_in_folder(root, path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => refused("is not in the context"),
        _ => refused(&format!("cannot be read: {error}")),
    })?;
    let mut bytes = Vec::new();
    let read = file.take(size_max + 1).read_to_end(&mut bytes);
    read.map_err(|error| Failure::ours(&error))?;
    if bytes.len() as u64 > size_max {
        return Err(refused(&format!("is larger than {size_max} bytes")));
    }
    Ok(bytes)
}

/// The path in a workspace that a path in a container means, without slash at either end;
/// `None` if it is elsewhere. `base` is where relative paths begin, as the container has it.
pub(crate) fn path_in(base: &str, path: &str) -> Option<String> {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{base}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => (),
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    match parts.split_first() {
        Some((first, rest)) if *first == &WORKSPACE[1..] => Some(rest.join("/")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_containers_are_found_in_the_workspace_or_not_at_all() {
        let found = |base, path| path_in(base, path).unwrap_or_else(|| "none".to_owned());
        assert_eq!(found("/workspace", "."), "");
        assert_eq!(found("/workspace", "src/../app/"), "app");
        assert_eq!(found("/workspace/a", "b"), "a/b");
        assert_eq!(found("/workspace/a", "../b"), "b");
        assert_eq!(found("/workspace", "/workspace//x/./y"), "x/y");
        assert_eq!(found("/workspace", ".."), "none");
        assert_eq!(found("/workspace", "/etc"), "none");
        assert_eq!(found("/srv", "x"), "none");
        assert_eq!(found("/workspace", "/workspacex"), "none");
    }

    #[test]
    fn a_folder_is_opened_inside_the_workspace_only_and_stays_the_same() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("src")).unwrap();
        std::fs::write(root.path().join("src/file"), "inside").unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("out")).unwrap();
        std::os::unix::fs::symlink("/src", root.path().join("in")).unwrap();
        assert!(OpenFolder::open(root.path(), "out").is_err());
        assert!(OpenFolder::open(root.path(), "../..").is_ok(), "the root is its own parent");
        let folder = OpenFolder::open(root.path(), "in").unwrap();
        // Somebody else puts a link in its place.
        std::fs::rename(root.path().join("src"), root.path().join("moved")).unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("src")).unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join("file")).unwrap(), "inside");
    }

    #[test]
    fn a_folder_for_a_context_must_be_new_or_empty() {
        let root = tempfile::tempdir().unwrap();
        make_empty_folder(root.path(), "step").unwrap();
        make_empty_folder(root.path(), "step").unwrap();
        std::fs::write(root.path().join("step/file"), "").unwrap();
        assert!(make_empty_folder(root.path(), "step").is_err());
        std::os::unix::fs::symlink("/", root.path().join("link")).unwrap();
        assert!(make_empty_folder(root.path(), "link").is_err());
    }
}
