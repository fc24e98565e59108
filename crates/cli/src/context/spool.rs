//! Bytes that are written once, hashed as they pass, and then read as often as need be: in memory
//! while they are few, else in a file without a name, which is gone with the process.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use oci::Hasher;
use rustix::fs::{Mode, OFlags};

/// More than this does not stay in memory. Little in tests, so that they use files.
const MEMORY_MAX: usize = if cfg!(test) { 500 } else { 1 << 20 };

/// What is being written.
pub(super) struct Spool {
    /// Where a file may lie, if that can be.
    folder: Option<PathBuf>,
    spooled: Spooled,
    /// Has seen what is in the file.
    hasher: Hasher,
}

impl Spool {
    pub(super) fn new(folder: Option<&Path>) -> Self {
        let spooled = Spooled { file: None, in_file: 0, in_memory: Vec::new() };
        Self { folder: folder.map(Path::to_owned), spooled, hasher: Hasher::sha256() }
    }

    /// What was written so far.
    pub(super) fn so_far(&self) -> &Spooled {
        &self.spooled
    }

    /// What was written, and a hasher that has seen it.
    pub(super) fn finish(mut self) -> (Spooled, Hasher) {
        self.hasher.update(&self.spooled.in_memory);
        (self.spooled, self.hasher)
    }

    fn empty_memory(&mut self) -> io::Result<()> {
        let Spooled { file, in_file, in_memory } = &mut self.spooled;
        let file = match file {
            Some(file) => file,
            none => none.insert(nameless_file(self.folder.as_deref())?),
        };
        file.write_all(in_memory)?;
        self.hasher.update(in_memory);
        *in_file += in_memory.len() as u64;
        in_memory.clear();
        Ok(())
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.spooled.in_memory.extend_from_slice(bytes);
        if self.spooled.in_memory.len() > MEMORY_MAX {
            self.empty_memory()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What was written.
pub(super) struct Spooled {
    file: Option<File>,
    in_file: u64,
    /// What comes after that.
    in_memory: Vec<u8>,
}

impl Spooled {
    /// The first bytes of a file that is there already.
    pub(super) fn of_file(file: File, size: u64) -> Self {
        Self { file: Some(file), in_file: size, in_memory: Vec::new() }
    }

    pub(super) fn size(&self) -> u64 {
        self.in_file + self.in_memory.len() as u64
    }

    /// Reads from `offset` to the end; several readers do not disturb each other.
    pub(super) fn reader(&self, offset: u64) -> Reader<'_> {
        Reader { spooled: self, offset }
    }
}

pub(super) struct Reader<'a> {
    spooled: &'a Spooled,
    offset: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let Spooled { file, in_file, in_memory } = self.spooled;
        let read = match (file, in_file.checked_sub(self.offset)) {
            (Some(file), Some(left @ 1..)) => {
                let room = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                match file.read_at(&mut buffer[..room], self.offset)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    read => read,
                }
            }
            _ => {
                let from = usize::try_from(self.offset.saturating_sub(*in_file));
                let rest = from.ok().and_then(|from| in_memory.get(from..));
                rest.unwrap_or_default().read(buffer)?
            }
        };
        self.offset += read as u64;
        Ok(read)
    }
}

/// In the folder if that can be, else where temporary files are.
fn nameless_file(folder: Option<&Path>) -> io::Result<File> {
    let made = folder.and_then(|folder| nameless_file_in(folder).ok());
    made.map_or_else(|| nameless_file_in(&std::env::temp_dir()), Ok)
}

fn nameless_file_in(folder: &Path) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::open(folder, flags, Mode::from(0o600)) {
        return Ok(file.into());
    }
    // Not every file system can do that.
    let path = folder.join(uuid::Uuid::new_v4().simple().to_string());
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(spooled: &Spooled, offset: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        spooled.reader(offset).read_to_end(&mut bytes).unwrap();
        bytes
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_from_anywhere(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 0..5),
            offset in 0usize..2000,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut spool = Spool::new(Some(folder.path()));
            for piece in &pieces {
                spool.write_all(piece).unwrap();
            }
            let whole = pieces.concat();
            prop_assert_eq!(read(spool.so_far(), 0), &whole[..]);
            let (spooled, hasher) = spool.finish();
            prop_assert_eq!(spooled.size(), whole.len() as u64);
            prop_assert_eq!(spooled.file.is_some(), whole.len() > MEMORY_MAX);
            prop_assert_eq!(hasher.finish(), oci::Digest::of(&whole));
            prop_assert_eq!(read(&spooled, 0), &whole[..]);
            let offset = offset.min(whole.len());
            prop_assert_eq!(read(&spooled, offset as u64), &whole[offset..]);
            prop_assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_passed_over() {
        let mut spool = Spool::new(Some(Path::new("/dev/null/folder")));
        spool.write_all(&[1; MEMORY_MAX + 1]).unwrap();
        assert_eq!(read(&spool.finish().0, 0), [1; MEMORY_MAX + 1]);
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "abc").unwrap();
        let spooled = Spooled::of_file(File::open(&path).unwrap(), 4);
        assert!(spooled.reader(0).read_to_end(&mut Vec::new()).is_err());
    }
}
