//! The walk over a context: what of it travels, in the order in which it does.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{NEVER_ENTERED, Source};
use crate::error::{Result, could_not};

/// What the names of one file have in common: device, number and time of the last change. With
/// the time, a file that changes while it is read is no longer the one that was.
pub(super) type FileId = (u64, u64, i64, i64);

/// The file's id if it has several names.
pub(super) fn linked_id(found: &Metadata) -> Option<FileId> {
    let id = (found.dev(), found.ino(), found.ctime(), found.ctime_nsec());
    (found.nlink() > 1).then_some(id)
}

/// A folder that is being walked through.
struct Folder {
    path: PathBuf,
    /// Names still to come, the last first.
    names: Vec<OsString>,
    /// The folder itself, not visited yet: an excluded folder travels only if something in it
    /// does.
    pending: Option<Metadata>,
}

/// Gets a file, its path in the context and what it is.
type Visit<'a> = dyn FnMut(&Path, &Path, &Metadata) -> Result<()> + 'a;

/// Visits what travels in the order in which paths compare, so folders before what is in them; the
/// index relies on it. Without recursion: the depth of a context is not ours to choose.
pub(super) fn walk(source: &Source, root: &Path, visit: &mut Visit<'_>) -> Result<()> {
    let mut open = vec![Folder { path: PathBuf::new(), names: names(root)?, pending: None }];
    while let Some(folder) = open.last_mut() {
        let Some(name) = folder.names.pop() else {
            open.pop();
            continue;
        };
        let path = folder.path.join(&name);
        let file = root.join(&path);
        let found = match fs::symlink_metadata(&file) {
            Ok(found) => found,
            // Gone since the folder was listed: as if it had never been there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(could_not(format!("read `{}`", file.display()))(error)),
        };
        if found.is_dir() && name == NEVER_ENTERED {
            continue;
        }
        let shown = path.to_string_lossy();
        let excluded = source.is_excluded(&shown);
        if found.is_dir() {
            // What is not sent need not be readable.
            if excluded && !source.may_hold_exceptions(&shown) {
                continue;
            }
            open.push(Folder { names: names(&file)?, path, pending: Some(found) });
            if !excluded {
                visit_pending(root, &mut open, visit)?;
            }
        } else if !excluded {
            visit_pending(root, &mut open, visit)?;
            visit(&file, &path, &found)?;
        }
    }
    Ok(())
}

/// Visits the folders around what comes next.
fn visit_pending(root: &Path, open: &mut [Folder], visit: &mut Visit<'_>) -> Result<()> {
    for folder in open {
        if let Some(found) = folder.pending.take() {
            visit(&root.join(&folder.path), &folder.path, &found)?;
        }
    }
    Ok(())
}

/// Names in a folder, the last first, so that equal folders give equal archives and lists.
fn names(folder: &Path) -> Result<Vec<OsString>> {
    let doing = || could_not(format!("list `{}`", folder.display()));
    let entries = fs::read_dir(folder).map_err(doing())?;
    let names: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.file_name())).collect();
    let mut names = names.map_err(doing())?;
    names.sort_unstable_by(|a, b| b.as_bytes().cmp(a.as_bytes()));
    Ok(names)
}
