//! Space kept for deleting. On a disk that is quite full the catalog could not even note that
//! something goes, and nothing would ever become free.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::disk::remove_if_there;

/// Bytes kept; of a small disk its 64th part.
const SIZE_MAX: u64 = 32 << 20;
const SIZE_MIN: u64 = 1 << 20;

/// A file that holds nothing but space.
pub(crate) struct Reserve {
    path: PathBuf,
    is_held: AtomicBool,
}

impl Reserve {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { path: folder.join("reserve"), is_held: AtomicBool::new(false) }
    }

    /// Takes the space, unless it is taken. Nothing new is stored without it: it would take
    /// the room that a deletion was just given.
    pub(crate) fn keep(&self) -> io::Result<()> {
        if self.is_held.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (size, _) = self.sizes()?;
        let mut options = File::options();
        let file = options.create(true).truncate(false).write(true).mode(0o600).open(&self.path)?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size) {
            Ok(()) => (),
            // This file system cannot promise space.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => (),
            Err(error) => {
                std::fs::remove_file(&self.path)?;
                return Err(error.into());
            }
        }
        self.is_held.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Gives the space up if there is no other.
    pub(crate) fn give(&self) -> io::Result<()> {
        let (size, free) = self.sizes()?;
        if free >= size {
            return Ok(());
        }
        self.is_held.store(false, Ordering::Relaxed);
        remove_if_there(&self.path)
    }

    /// Bytes to be kept, and those free on the disk.
    fn sizes(&self) -> io::Result<(u64, u64)> {
        let folder = self.path.parent().unwrap_or(&self.path);
        let disk = rustix::fs::statvfs(folder)?;
        let size = (disk.f_blocks.saturating_mul(disk.f_frsize) / 64).clamp(SIZE_MIN, SIZE_MAX);
        Ok((size, disk.f_bavail.saturating_mul(disk.f_frsize)))
    }
}
