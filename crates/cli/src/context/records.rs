//! The files of a context with their digests, on disk in the order of a walk: there may be very
//! many of them.
//!
//! They serve twice: a build finds by its number what the server wants of them, and the next build
//! takes digests from them as its own walk goes on (`index`).

use std::cmp::Ordering;
use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci::{Digest, Hasher};

use super::key::FileKey;
use super::spool::{self, Spool, Spooled};

/// No path is longer (`PATH_MAX`).
const PATH_SIZE_MAX: u64 = 4096;
/// The place of every so many is known.
const PLACES_EVERY: u64 = if cfg!(test) { 3 } else { 256 };
/// Read at once: about as many as lie between two places that are known.
const BUFFER_SIZE: usize = 32 << 10;
/// What most records need at most.
const RECORD_SIZE: usize = 256;

/// A file of the context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) path: PathBuf,
    pub(super) key: FileKey,
    pub(super) digest: Digest,
}

/// All that a record has of numbers: the length of its path, and the key.
const NUMBERS: usize = 1 + FileKey::NUMBERS;

/// Records that are being written.
pub(super) struct RecordWriter {
    spool: Spool,
    count: u64,
    places: Vec<u64>,
}

impl RecordWriter {
    /// `folder` is where files may lie.
    pub(super) fn new(folder: Option<&Path>) -> Self {
        Self { spool: Spool::new(folder), count: 0, places: Vec::new() }
    }

    /// Tells where it is, for [`Self::get`].
    pub(super) fn add(&mut self, path: &Path, key: &FileKey, digest: &Digest) -> io::Result<u64> {
        let place = self.spool.so_far().size();
        let path = path.as_os_str().as_bytes();
        let digest = digest.sha256_bytes().ok_or(io::ErrorKind::InvalidInput)?;
        if self.count.is_multiple_of(PLACES_EVERY) {
            self.places.push(place);
        }
        self.count += 1;
        for number in [path.len() as u64].into_iter().chain(key.numbers()) {
            self.spool.write_all(&number.to_le_bytes())?;
        }
        self.spool.write_all(&digest)?;
        self.spool.write_all(path)?;
        Ok(place)
    }

    /// What was added before.
    pub(super) fn get(&self, place: u64) -> io::Result<Record> {
        let mut reader = RecordReader::new(self.spool.so_far(), place, RECORD_SIZE);
        reader.read()?.ok_or(io::ErrorKind::UnexpectedEof.into())
    }

    pub(super) fn finish(self) -> Records {
        let (bytes, hasher) = self.spool.finish();
        Records { bytes, hasher, count: self.count, places: self.places }
    }
}

/// Records that can be found by their number.
pub(super) struct Records {
    bytes: Spooled,
    hasher: Hasher,
    pub(super) count: u64,
    places: Vec<u64>,
}

impl Records {
    /// All of them as bytes, and a hasher that has seen those.
    pub(super) fn bytes(&self) -> (spool::Reader<'_>, Hasher) {
        (self.bytes.reader(0), self.hasher.clone())
    }

    pub(super) fn lookup(&self) -> Lookup<'_> {
        Lookup { records: self, reader: RecordReader::new(&self.bytes, 0, BUFFER_SIZE), next: 0 }
    }
}

/// Finds records by number; quick if each is asked for after those before it.
pub(super) struct Lookup<'a> {
    records: &'a Records,
    reader: RecordReader<'a>,
    next: u64,
}

impl Lookup<'_> {
    pub(super) fn get(&mut self, number: u64) -> io::Result<Record> {
        let is_near = self.next <= number && number - self.next < PLACES_EVERY;
        if !is_near {
            let part = number / PLACES_EVERY;
            let place = usize::try_from(part).ok().and_then(|part| self.records.places.get(part));
            let place = *place.ok_or(io::ErrorKind::UnexpectedEof)?;
            self.reader = RecordReader::new(&self.records.bytes, place, BUFFER_SIZE);
            self.next = part * PLACES_EVERY;
        }
        loop {
            let record = self.reader.read()?.ok_or(io::ErrorKind::UnexpectedEof)?;
            self.next += 1;
            if self.next > number {
                return Ok(record);
            }
        }
    }
}

struct RecordReader<'a> {
    bytes: BufReader<spool::Reader<'a>>,
}

impl<'a> RecordReader<'a> {
    fn new(bytes: &'a Spooled, place: u64, buffer_size: usize) -> Self {
        Self { bytes: BufReader::with_capacity(buffer_size, bytes.reader(place)) }
    }

    /// The next record; `None` after the last.
    fn read(&mut self) -> io::Result<Option<Record>> {
        if self.bytes.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let mut numbers = [0; NUMBERS];
        for number in &mut numbers {
            let mut bytes = [0; size_of::<u64>()];
            self.bytes.read_exact(&mut bytes)?;
            *number = u64::from_le_bytes(bytes);
        }
        let [length, key @ ..] = numbers;
        let key = FileKey::of_numbers(key).filter(|_| length <= PATH_SIZE_MAX);
        let (Some(key), Ok(length)) = (key, usize::try_from(length)) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let mut digest = [0; 32];
        self.bytes.read_exact(&mut digest)?;
        let mut path = vec![0; length];
        self.bytes.read_exact(&mut path)?;
        let path = PathBuf::from(OsString::from_vec(path));
        Ok(Some(Record { path, key, digest: Digest::of_sha256_bytes(&digest) }))
    }
}

/// Digests of an earlier build, for a walk that asks in its order.
pub(super) struct Known<'a> {
    /// Nothing when nothing is known.
    reader: Option<RecordReader<'a>>,
    next: Option<Record>,
    /// When their hashing began.
    began: Duration,
}

impl<'a> Known<'a> {
    pub(super) fn nothing() -> Self {
        Self { reader: None, next: None, began: Duration::ZERO }
    }

    pub(super) fn new(bytes: &'a Spooled, began: Duration) -> Self {
        let mut known =
            Self { reader: Some(RecordReader::new(bytes, 0, BUFFER_SIZE)), next: None, began };
        known.advance();
        known
    }

    /// The digest of a file, if it is still the one that was hashed.
    pub(super) fn digest(&mut self, path: &Path, key: &FileKey) -> Option<Digest> {
        // Components compare as a walk goes: `a/b` comes before `a-b`.
        while self.next.as_ref().is_some_and(|next| next.path.as_path().cmp(path) == Ordering::Less)
        {
            self.advance();
        }
        let next = self.next.take_if(|next| next.path == path)?;
        self.advance();
        (next.key == *key && key.is_settled(self.began)).then_some(next.digest)
    }

    /// What cannot be read is not known.
    fn advance(&mut self) {
        self.next = self.reader.as_mut().and_then(|reader| reader.read().ok().flatten());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::context::key::tests::key;

    fn record(path: &str) -> Record {
        let seconds = path.len() as i64;
        Record { path: path.into(), key: key(seconds), digest: Digest::of(path.as_bytes()) }
    }

    fn written(all: &[Record]) -> Records {
        let mut records = RecordWriter::new(None);
        for record in all {
            let place = records.add(&record.path, &record.key, &record.digest).unwrap();
            assert_eq!(records.get(place).unwrap(), *record);
        }
        records.finish()
    }

    proptest! {
        #[test]
        fn records_are_found_by_number_in_any_order(
            paths in prop::collection::vec("[a-z/]{1,60}", 1..20),
            wanted in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let all: Vec<Record> = paths.iter().map(|path| record(path)).collect();
            let records = written(&all);
            prop_assert_eq!(records.count, all.len() as u64);
            let mut lookup = records.lookup();
            for number in wanted {
                let number = number.index(all.len());
                prop_assert_eq!(&lookup.get(number as u64).unwrap(), &all[number]);
            }
            prop_assert!(lookup.get(all.len() as u64).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let mut spool = Spool::new(None);
            spool.write_all(&bytes).unwrap();
            let (spooled, _) = spool.finish();
            let mut reader = RecordReader::new(&spooled, 0, BUFFER_SIZE);
            while let Ok(Some(_)) = reader.read() {}
            Known::new(&spooled, Duration::ZERO).digest(Path::new("a"), &key(1));
        }
    }

    #[test]
    fn what_a_walk_passes_over_is_not_known_any_more() {
        let records = written(&["a/b", "a-b", "a0", "b"].map(record));
        let mut known = Known::new(&records.bytes, Duration::from_secs(100));
        let mut is_known = |path: &str| known.digest(Path::new(path), &record(path).key).is_some();
        let asked = ["a", "a/b", "a/c", "a0", "a-b", "b", "c"];
        let found: Vec<_> = asked.into_iter().filter(|path| is_known(path)).collect();
        assert_eq!(found, ["a/b", "a0", "b"]);
    }
}
