//! Many files in one blob.
//!
//! The files of a build context would each cost a sync and a row. A *pack* is one blob with a
//! line of JSON in front that lists its files, `[{"digest":…,"size":…},…]`, and then their bytes
//! in that order. Every file is compared with its digest while the pack is written, so whoever
//! reads one later need not hash it again.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use oci::{Digest, Hasher};
use serde::{Deserialize, Serialize};

use crate::{BlobStore, Result, StoreError};

/// Files of one pack: its list is held in memory.
pub const PACK_FILES_MAX: usize = 65_536;
/// Bytes of a pack with more than one file: what is lost when a connection breaks.
pub const PACK_SIZE_MAX: u64 = 64 << 20;
/// A list of files is not longer than this.
const HEAD_SIZE_MAX: u64 = 16 << 20;

/// One file of a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedFile {
    pub digest: Digest,
    pub size: u64,
}

/// Why bytes are no pack.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error("the pack does not begin with a line that lists its files: {reason}")]
    BadHead { reason: String },
    #[error("the pack has more than {PACK_FILES_MAX} files")]
    TooManyFiles,
    #[error("the pack holds more than {max} bytes")]
    TooLarge { max: u64 },
    #[error("the bytes that were sent as {expected} are {actual}")]
    WrongDigest { expected: Digest, actual: Digest },
    #[error("the pack ends before its last file does")]
    Cut,
    #[error("the pack goes on after its last file")]
    TooLong,
    #[error("could not read or write the pack")]
    Io(#[from] io::Error),
}

/// The line in front of a pack.
pub fn pack_head(files: &[PackedFile]) -> Vec<u8> {
    // Lists of digests and numbers always have a JSON form.
    let mut head = serde_json::to_vec(files).unwrap_or_default();
    head.push(b'\n');
    head
}

/// Reads the line in front of a pack.
fn read_head(from: &mut impl BufRead) -> Result<Vec<PackedFile>, PackError> {
    let mut head = Vec::new();
    from.take(HEAD_SIZE_MAX).read_until(b'\n', &mut head)?;
    if head.last() != Some(&b'\n') {
        let reason = format!("it has no end within {HEAD_SIZE_MAX} bytes");
        return Err(PackError::BadHead { reason });
    }
    let files: Vec<PackedFile> = serde_json::from_slice(&head)
        .map_err(|error| PackError::BadHead { reason: error.to_string() })?;
    if files.len() > PACK_FILES_MAX {
        return Err(PackError::TooManyFiles);
    }
    Ok(files)
}

/// Copies a pack, comparing each file with its digest. Blocking. `size_max` bounds a pack with
/// one file; one with more has at most [`PACK_SIZE_MAX`] bytes besides.
pub fn copy_pack(
    from: &mut impl BufRead,
    to: &mut impl Write,
    size_max: u64,
) -> Result<(), PackError> {
    let files = read_head(from)?;
    let max = if files.len() > 1 { size_max.min(PACK_SIZE_MAX) } else { size_max };
    let size = files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.size));
    if size.is_none_or(|size| size > max) {
        return Err(PackError::TooLarge { max });
    }
    to.write_all(&pack_head(&files))?;
    for PackedFile { digest, size } in files {
        let mut file = Hashing { to: &mut *to, hasher: Hasher::new(digest.algorithm()) };
        if io::copy(&mut (&mut *from).take(size), &mut file)? < size {
            return Err(PackError::Cut);
        }
        let actual = file.hasher.finish();
        if actual != digest {
            return Err(PackError::WrongDigest { expected: digest, actual });
        }
    }
    match from.fill_buf()?.is_empty() {
        true => Ok(()),
        false => Err(PackError::TooLong),
    }
}

struct Hashing<W> {
    to: W,
    hasher: Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Some packs of a store, and where in them each file is.
pub struct Packs {
    blobs: Arc<dyn BlobStore>,
    packs: Vec<Digest>,
    /// Sorted by file: there may be a million.
    places: Vec<Place>,
    /// The pack that was read from last: files that are read in their order are in one.
    last: Mutex<Option<(u32, Arc<File>)>>,
    runtime: tokio::runtime::Handle,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    file: FileName,
    pack: u32,
    offset: u64,
    size: u64,
}

/// Of the sha256 of a file so much that nobody finds two alike.
type FileName = [u8; 20];

fn name_of(file: &Digest) -> Option<FileName> {
    file.sha256_bytes()?.first_chunk().copied()
}

impl Packs {
    /// Reads the lists of packs. Of a file that is in several, the first counts.
    pub async fn open(blobs: Arc<dyn BlobStore>, packs: &[Digest]) -> Result<Self> {
        let mut places = Vec::new();
        for (pack, digest) in (0..).zip(packs) {
            let reader = blobs.open(digest, 0).await?.into_blocking();
            let read = tokio::task::spawn_blocking(move || read_head(&mut BufReader::new(reader)));
            let damaged = |error: PackError| StoreError::Io {
                doing: format!("read pack {digest}"),
                source: io::Error::other(error),
            };
            let files = read.await.map_err(|error| damaged(io::Error::other(error).into()))?;
            let files = files.map_err(damaged)?;
            let mut offset = pack_head(&files).len() as u64;
            places.reserve_exact(files.len());
            for PackedFile { digest, size } in files {
                if let Some(file) = name_of(&digest) {
                    places.push(Place { file, pack, offset, size });
                }
                offset += size;
            }
        }
        places.sort_unstable();
        places.dedup_by_key(|place| place.file);
        let runtime = tokio::runtime::Handle::current();
        Ok(Self { blobs, packs: packs.to_vec(), places, last: Mutex::default(), runtime })
    }

    /// The pack that has a file, if one has it; no more of them are looked at than it takes. The
    /// first and the last are looked at first: they have what came with a client's first build, and
    /// what it changed since.
    pub async fn with(
        blobs: Arc<dyn BlobStore>,
        packs: &[Digest],
        file: &Digest,
    ) -> Result<Option<Self>> {
        let first = packs.iter().take(1);
        for pack in first.chain(packs.iter().skip(1).rev()) {
            let opened = Self::open(Arc::clone(&blobs), std::slice::from_ref(pack)).await?;
            if opened.place(file).is_some() {
                return Ok(Some(opened));
            }
        }
        Ok(None)
    }

    /// The pack that a file is in, if it is in one, and the file's size.
    pub fn find(&self, file: &Digest) -> Option<(&Digest, u64)> {
        let place = self.place(file)?;
        Some((&self.packs[place.pack as usize], place.size))
    }

    fn place(&self, file: &Digest) -> Option<Place> {
        let file = name_of(file)?;
        let found = self.places.binary_search_by_key(&file, |place| place.file).ok()?;
        Some(self.places[found])
    }

    /// The bytes of a file. Blocking, outside of async code.
    pub fn read(&self, file: &Digest) -> io::Result<Box<dyn Read + Send>> {
        let place = self.place(file).ok_or(io::ErrorKind::NotFound)?;
        if let Some((pack, file)) = &*self.last()
            && *pack == place.pack
        {
            return Ok(Box::new(Slice::of(file, place)));
        }
        let opened = self.blobs.open(&self.packs[place.pack as usize], place.offset);
        let opened = self.runtime.block_on(opened).map_err(io::Error::other)?;
        match opened.into_file() {
            Ok(file) => {
                let file = Arc::new(file);
                let slice = Slice::of(&file, place);
                *self.last() = Some((place.pack, file));
                Ok(Box::new(slice))
            }
            Err(reader) => {
                let _context = self.runtime.enter();
                Ok(Box::new(reader.into_blocking().take(place.size)))
            }
        }
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<(u32, Arc<File>)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part of a file, read without moving the file's cursor.
struct Slice {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Slice {
    fn of(file: &Arc<File>, place: Place) -> Self {
        Self { file: Arc::clone(file), offset: place.offset, left: place.size }
    }
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..room], self.offset)?;
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{BlobWriter, MemoryStore};

    fn packed(bytes: &[u8]) -> PackedFile {
        PackedFile { digest: Digest::of(bytes), size: bytes.len() as u64 }
    }

    fn pack(files: &[&[u8]]) -> Vec<u8> {
        let mut pack = pack_head(&files.iter().map(|file| packed(file)).collect::<Vec<_>>());
        pack.extend(files.concat());
        pack
    }

    fn copied(pack: &[u8], size_max: u64) -> Result<Vec<u8>, String> {
        let mut copy = Vec::new();
        let done = copy_pack(&mut &*pack, &mut copy, size_max);
        done.map(|()| copy).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_as_listed_is_refused() {
        let good = pack(&[b"one", b"", b"three"]);
        assert_eq!(copied(&good, 100), Ok(good.clone()));
        let refused = |pack: &[u8], max| copied(pack, max).unwrap_err();

        let mut wrong = good.clone();
        *wrong.last_mut().unwrap() = b'!';
        assert!(refused(&wrong, 100).starts_with("the bytes that were sent as sha256:"));
        assert!(refused(&good[..good.len() - 1], 100).contains("ends before"));
        assert!(refused(&[&*good, b"x"].concat(), 100).contains("goes on"));
        assert_eq!(refused(&good, 7), "the pack holds more than 7 bytes");
        assert!(refused(b"[]", 100).contains("no end"));
        assert!(refused(b"[{\"digest\":\"sha256:00\",\"size\":1}]\n", 100).contains("hex digits"));
        let endless = packed(b"");
        let endless = PackedFile { size: u64::MAX, ..endless };
        let head = pack_head(&[endless.clone(), endless]);
        assert!(refused(&head, u64::MAX).contains("more than"));
        let many = pack_head(&vec![packed(b""); PACK_FILES_MAX + 1]);
        assert!(refused(&many, 100).contains("more than 65536 files"));
        let large = PackedFile { size: PACK_SIZE_MAX, ..packed(b"") };
        let head = pack_head(&[large.clone(), packed(b"x")]);
        assert!(refused(&head, u64::MAX).contains("more than 67108864 bytes"));
        // One file may be larger than that.
        assert!(refused(&pack_head(&[large]), u64::MAX).contains("ends before"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn files_are_found_in_their_packs() {
        let db = db::Db::in_memory().await.unwrap();
        let blobs: Arc<dyn BlobStore> = Arc::new(MemoryStore::open(db).await.unwrap());
        let mut digests = Vec::new();
        for files in [&[&b"one"[..], b"", b"two"][..], &[b"three", b"one"]] {
            let upload = blobs.begin_upload(oci::Algorithm::Sha256).await.unwrap();
            let (mut writer, bytes) = (BlobWriter::new(upload), pack(files));
            let write = move || {
                copy_pack(&mut &*bytes, &mut writer, 100).unwrap();
                writer.commit(None).unwrap().digest
            };
            digests.push(tokio::task::spawn_blocking(write).await.unwrap());
        }
        for (text, pack) in [("one", 0), ("two", 0), ("three", 1)] {
            let file = Digest::of(text.as_bytes());
            let found = Packs::with(Arc::clone(&blobs), &digests, &file).await.unwrap().unwrap();
            assert_eq!(found.packs, digests[pack..=pack]);
        }
        let four = Packs::with(Arc::clone(&blobs), &digests, &Digest::of(b"four")).await.unwrap();
        assert!(four.is_none());
        let packs = Packs::open(blobs, &digests).await.unwrap();
        for (text, pack) in [("one", 0), ("two", 0), ("three", 1), ("", 0)] {
            let found = packs.find(&Digest::of(text.as_bytes())).unwrap();
            assert_eq!(found, (&digests[pack], text.len() as u64));
        }
        assert!(packs.find(&Digest::of(b"four")).is_none());
        let read = move || {
            for text in ["one", "three", "", "two"] {
                let mut reader = packs.read(&Digest::of(text.as_bytes())).unwrap();
                assert_eq!(io::read_to_string(&mut reader).unwrap(), text);
            }
            assert!(packs.read(&Digest::of(b"four")).is_err());
        };
        tokio::task::spawn_blocking(read).await.unwrap();
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = copied(&bytes, 1000);
        }
    }
}
