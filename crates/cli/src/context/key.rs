//! What tells that a file has not changed since it was hashed.
//!
//! It is the one that was hashed if size, times, inode, device and mode are the same, and if it
//! had not been touched just before: two changes within one tick of the clock look alike, so what
//! is not older by [`SETTLED`] than the hashing is hashed again (architecture.md, decision 11).

use std::fs::Metadata;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use oci::{Digest, Hasher};

use super::file::open_regular;

/// How much older than its hashing a change must be.
const SETTLED: Duration = Duration::from_secs(2);
/// How often a file is read that changes meanwhile.
const ATTEMPTS: usize = 3;

/// What tells that a file has not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileKey {
    pub(super) size: u64,
    /// Seconds and nanoseconds since 1970.
    pub(super) mtime: (i64, i64),
    pub(super) ctime: (i64, i64),
    pub(super) inode: u64,
    pub(super) device: u64,
    pub(super) mode: u32,
}

impl FileKey {
    pub(super) const NUMBERS: usize = 8;

    pub(super) fn of(found: &Metadata) -> Self {
        Self {
            size: found.size(),
            mtime: (found.mtime(), found.mtime_nsec()),
            ctime: (found.ctime(), found.ctime_nsec()),
            inode: found.ino(),
            device: found.dev(),
            mode: found.mode(),
        }
    }

    /// All that it consists of.
    pub(super) fn numbers(&self) -> [u64; Self::NUMBERS] {
        let (mtime, ctime) = (self.mtime, self.ctime);
        let times = [mtime.0, mtime.1, ctime.0, ctime.1].map(i64::cast_unsigned);
        let [mtime, mtime_part, ctime, ctime_part] = times;
        let mode = u64::from(self.mode);
        [self.size, mtime, mtime_part, ctime, ctime_part, self.inode, self.device, mode]
    }

    /// `None` if no key has these numbers.
    pub(super) fn of_numbers(numbers: [u64; Self::NUMBERS]) -> Option<Self> {
        let [size, mtime, mtime_part, ctime, ctime_part, inode, device, mode] = numbers;
        Some(Self {
            size,
            mtime: (mtime.cast_signed(), mtime_part.cast_signed()),
            ctime: (ctime.cast_signed(), ctime_part.cast_signed()),
            inode,
            device,
            mode: mode.try_into().ok()?,
        })
    }

    /// Whether a change after `hashing` began would show in the times.
    pub(super) fn is_settled(&self, hashing: Duration) -> bool {
        let before = |(seconds, nanoseconds): (i64, i64)| {
            let Ok(seconds) = u64::try_from(seconds) else { return true };
            let nanoseconds = u32::try_from(nanoseconds).unwrap_or(0);
            Duration::new(seconds, nanoseconds) + SETTLED < hashing
        };
        before(self.mtime) && before(self.ctime)
    }
}

/// Reads a file and its key, which holds before and after.
pub(super) fn hash(path: &Path, buffer: &mut [u8]) -> io::Result<(FileKey, Digest)> {
    for _ in 0..ATTEMPTS {
        let mut file = open_regular(path)?;
        let before = FileKey::of(&file.metadata()?);
        let digest = read_all(&mut file, buffer)?;
        if FileKey::of(&file.metadata()?) == before {
            return Ok((before, digest));
        }
    }
    Err(io::Error::other("it changes while it is read"))
}

/// Hashes what is left of a file.
pub(super) fn read_all(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<Digest> {
    let mut hasher = Hasher::sha256();
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
}

/// The time since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "compared with times of files, which are the clock's"
)]
pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    /// Of a file that was changed then.
    pub(in crate::context) fn key(seconds: i64) -> FileKey {
        let time = (seconds, 5);
        FileKey { size: 1, mtime: time, ctime: time, inode: 2, device: 3, mode: 0o644 }
    }

    proptest! {
        #[test]
        fn a_key_survives_its_numbers(numbers: [u64; FileKey::NUMBERS]) {
            let key = FileKey::of_numbers(numbers);
            let has_mode = u32::try_from(numbers[FileKey::NUMBERS - 1]).is_ok();
            prop_assert_eq!(key.map(|key| key.numbers()), has_mode.then_some(numbers));
        }
    }

    #[test]
    fn a_file_that_is_replaced_while_it_is_looked_at_has_a_key_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        fs::write(&file, "one").unwrap();
        let (before, digest) = hash(&file, &mut [0; 16]).unwrap();
        assert_eq!(digest, Digest::of(b"one"));
        fs::write(folder.path().join("b"), "two").unwrap();
        fs::rename(folder.path().join("b"), &file).unwrap();
        let (after, digest) = hash(&file, &mut [0; 16]).unwrap();
        assert_eq!(digest, Digest::of(b"two"));
        assert_ne!(before, after);
    }
}
