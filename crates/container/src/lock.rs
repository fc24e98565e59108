//! Numbers that the servers of a machine divide among them by file locks.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

pub(crate) const FOLDER: &str = "/run/refit";

/// Locks a file, making it if it is not there. Held as long as the file is open.
pub(crate) fn try_lock(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::MetadataExt as _;
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
    // Its owner may have removed the file between our opening and locking it.
    let current = fs::metadata(path)
        .is_ok_and(|now| file.metadata().is_ok_and(|ours| ours.ino() == now.ino()));
    if current { Ok(file) } else { Err(io::ErrorKind::WouldBlock.into()) }
}
