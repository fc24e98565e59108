//! Files that are read while they may change.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use tar::{EntryType, Header};

use crate::error::{Error, could_not};

/// The header of a plain file that is the same whoever packs it: root's, without a time. Its path
/// and checksum are still to be set.
pub(crate) fn file_header(size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

/// Opens what was seen to be a file; what has become a pipe since must not block us.
pub(super) fn open_regular(file: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = File::from(rustix::fs::open(file, flags, Mode::empty())?);
    match opened.metadata()?.is_file() {
        true => Ok(opened),
        false => Err(io::Error::other("it is no file any more")),
    }
}

pub(super) fn packing(path: &Path) -> impl FnOnce(io::Error) -> Error {
    could_not(format!("pack `{}`", path.display()))
}

/// Reads as many bytes as were promised; a file that shrinks meanwhile is an error, for what is
/// sent would be nonsense.
pub(super) struct Exactly {
    pub(super) file: File,
    pub(super) left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read(&mut buffer[..room])?;
        if count == 0 && room > 0 {
            return Err(io::Error::other("the file became shorter while it was read"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}
