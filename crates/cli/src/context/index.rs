//! What this client remembers of a context: digests of files that have not changed since, and
//! what servers have of it. A warm build then looks at each file, and reads none.
//!
//! The file holds nothing that cannot be found out again: one that is damaged, or that others
//! could have written, counts as absent.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci::Digest;
use serde::{Deserialize, Serialize};

use super::key::read_all;
use super::records::{Known, Records};
use super::spool::Spooled;

/// A larger file counts as damaged.
const INDEX_SIZE_MAX: u64 = 512 << 20;
/// Contexts that are remembered.
const INDEXES_MAX: usize = 100;
/// Servers that are remembered for one context.
const SERVERS_MAX: usize = 8;
/// Of what is written here.
const VERSION: u32 = 2;
/// What comes after the records, without the digest, is not larger than this.
const HEAD_SIZE_MAX: usize = 64 << 10;
/// `sha256:` and 64 digits.
const DIGEST_SIZE: u64 = 71;
/// Read at once.
const BUFFER_SIZE: usize = 128 << 10;

/// What a file ends with after the records: this as JSON, its size, and the digest of all that.
#[derive(Serialize, Deserialize)]
struct Head {
    version: u32,
    /// When hashing began, since 1970.
    began: Duration,
    /// The source that a server got last, the latest first.
    sources: Vec<(String, String)>,
}

/// What is remembered of one context.
#[derive(Default)]
pub(super) struct Index {
    /// Absent if nothing is to be remembered.
    file: Option<PathBuf>,
    sources: Vec<(String, String)>,
    files: Option<KnownFiles>,
}

struct KnownFiles {
    began: Duration,
    records: Spooled,
}

impl Index {
    /// What is remembered of the context in `root`; `cache` is the user's folder for such things.
    pub(super) fn load(cache: Option<&Path>, root: Option<&Path>) -> Self {
        let (Some(cache), Some(root)) = (cache, root) else { return Self::default() };
        let Ok(root) = root.canonicalize() else { return Self::default() };
        let name = Digest::of(root.as_os_str().as_bytes());
        let file = cache.join("contexts").join(name.hex());
        let Some((Head { began, sources, .. }, records)) = read(&file) else {
            return Self { file: Some(file), ..Self::default() };
        };
        Self { file: Some(file), sources, files: Some(KnownFiles { began, records }) }
    }

    /// The user's folder for what is remembered, which may not be there yet.
    pub(super) fn folder(&self) -> Option<&Path> {
        self.file.as_deref().and_then(Path::parent)
    }

    /// Digests of files, for a walk.
    pub(super) fn known(&self) -> Known<'_> {
        match &self.files {
            Some(files) => Known::new(&files.records, files.began),
            None => Known::nothing(),
        }
    }

    /// The source that a server got last.
    pub(super) fn source(&self, server: &str) -> Option<&str> {
        let mut sources = self.sources.iter();
        sources.find(|(name, _)| name == server).map(|(_, id)| id.as_str())
    }

    /// Remembers which source a server got.
    pub(super) fn set_source(&mut self, server: &str, id: &str) {
        self.sources.retain(|(name, _)| name != server);
        self.sources.insert(0, (server.to_owned(), id.to_owned()));
        self.sources.truncate(SERVERS_MAX);
    }

    /// Forgets digests, when one of them has turned out to be wrong.
    pub(super) fn forget_files(&mut self) {
        self.files = None;
    }

    /// Writes it down, if it can, with these files, whose hashing began at `began`, instead of
    /// those before; what is lost is time.
    pub(super) fn save(&self, began: Duration, records: &Records) {
        let Some(file) = &self.file else { return };
        if self.write(file, began, records).is_ok() {
            let _ = bound(file);
        }
    }

    fn write(&self, file: &Path, began: Duration, records: &Records) -> io::Result<()> {
        let Some(folder) = file.parent() else { return Ok(()) };
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let partial = file.with_extension(uuid::Uuid::new_v4().simple().to_string());
        let written =
            self.write_to(&partial, began, records).and_then(|()| fs::rename(&partial, file));
        if written.is_err() {
            let _ = fs::remove_file(&partial);
        }
        written
    }

    fn write_to(&self, partial: &Path, began: Duration, records: &Records) -> io::Result<()> {
        let head = Head { version: VERSION, began, sources: self.sources.clone() };
        let mut tail = serde_json::to_vec(&head)?;
        let size = tail.len() as u64;
        tail.extend(size.to_le_bytes());
        let (records, mut hasher) = records.bytes();
        hasher.update(&tail);
        tail.extend(hasher.finish().as_str().as_bytes());
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(partial)?;
        io::copy(&mut BufReader::with_capacity(BUFFER_SIZE, records), &mut file)?;
        file.write_all(&tail)
    }
}

/// Reads what was written; `None` for whatever is not quite that. Nothing is taken from the file
/// before its digest was found to be right.
fn read(file: &Path) -> Option<(Head, Spooled)> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(file)
        .ok()?;
    let found = file.metadata().ok()?;
    let is_own = found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0;
    if !found.is_file() || !is_own || found.size() > INDEX_SIZE_MAX {
        return None;
    }
    let hashed = found.size().checked_sub(DIGEST_SIZE)?;
    if !ends_with_digest(&file, hashed).ok()? {
        return None;
    }
    let mut size = [0; size_of::<u64>()];
    let head_end = hashed.checked_sub(size.len() as u64)?;
    file.read_exact_at(&mut size, head_end).ok()?;
    let size = u64::from_le_bytes(size);
    let records_end = head_end.checked_sub(size)?;
    let mut head = vec![0; usize::try_from(size).ok().filter(|size| *size <= HEAD_SIZE_MAX)?];
    file.read_exact_at(&mut head, records_end).ok()?;
    let head: Head = serde_json::from_slice(&head).ok()?;
    (head.version == VERSION).then(|| (head, Spooled::of_file(file, records_end)))
}

/// Whether the digest of the first `hashed` bytes is what comes after them.
fn ends_with_digest(file: &File, hashed: u64) -> io::Result<bool> {
    let mut buffer = vec![0; BUFFER_SIZE];
    let digest = read_all(&mut file.take(hashed), &mut buffer)?;
    let mut told = Vec::new();
    file.take(DIGEST_SIZE + 1).read_to_end(&mut told)?;
    Ok(told == digest.as_str().as_bytes())
}

/// Removes what was written longest ago, beyond the bound.
fn bound(file: &Path) -> io::Result<()> {
    let Some(folder) = file.parent() else { return Ok(()) };
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        all.push((entry.metadata()?.modified()?, entry.path()));
    }
    all.sort();
    for (_, path) in all.iter().take(all.len().saturating_sub(INDEXES_MAX)) {
        fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::context::key::FileKey;
    use crate::context::key::tests::key;
    use crate::context::records::RecordWriter;

    /// An index of one file that was changed at 100 and hashed later.
    fn saved(cache: &Path, root: &Path, hashed: u64) -> PathBuf {
        let mut index = Index::load(Some(cache), Some(root));
        let mut records = RecordWriter::new(index.folder());
        records.add(Path::new("a"), &key(100), &Digest::of(b"a")).unwrap();
        index.set_source("server", "one");
        index.save(Duration::from_secs(hashed), &records.finish());
        index.file.unwrap()
    }

    #[test]
    fn only_what_is_settled_and_the_same_is_known() {
        let (cache, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let load = || Index::load(Some(cache.path()), Some(root.path()));
        saved(cache.path(), root.path(), 103);
        let index = load();
        assert_eq!(index.source("server"), Some("one"));
        assert_eq!(index.source("other"), None);
        let known = |key: FileKey| index.known().digest(Path::new("a"), &key).is_some();
        assert!(known(key(100)));
        assert!(!known(FileKey { size: 2, ..key(100) }));
        assert!(!known(FileKey { ctime: (100, 6), ..key(100) }));
        assert!(!known(FileKey { mtime: (99, 5), ..key(100) }));
        assert!(!known(FileKey { inode: 3, ..key(100) }));
        assert!(!known(FileKey { device: 4, ..key(100) }));
        assert!(!known(FileKey { mode: 0o755, ..key(100) }));
        // Within two seconds, or in the future.
        for hashed in [102, 100, 99] {
            saved(cache.path(), root.path(), hashed);
            assert!(load().known().digest(Path::new("a"), &key(100)).is_none(), "{hashed}");
        }
    }

    #[test]
    fn what_is_damaged_or_of_others_counts_as_absent() {
        let (cache, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let load = || Index::load(Some(cache.path()), Some(root.path()));
        let is_known = || load().known().digest(Path::new("a"), &key(100)).is_some();
        let file = saved(cache.path(), root.path(), 200);
        let text = fs::read(&file).unwrap();
        assert!(is_known());
        for at in 0..text.len() {
            let mut damaged = text.clone();
            damaged[at] ^= 1;
            fs::write(&file, &damaged).unwrap();
            assert!(!is_known() && load().source("server").is_none(), "{at}");
            fs::write(&file, &text[..at]).unwrap();
            assert!(!is_known(), "{at}");
        }
        fs::write(&file, &text).unwrap();
        assert!(is_known());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(!is_known());
    }

    #[test]
    fn the_number_of_contexts_and_servers_is_bounded() {
        let cache = tempfile::tempdir().unwrap();
        for _ in 0..INDEXES_MAX + 3 {
            saved(cache.path(), tempfile::tempdir().unwrap().path(), 200);
        }
        let count = fs::read_dir(cache.path().join("contexts")).unwrap().count();
        assert_eq!(count, INDEXES_MAX);
        let mut index = Index::default();
        for server in 0..SERVERS_MAX + 1 {
            index.set_source(&server.to_string(), "id");
        }
        assert_eq!((index.source("0"), index.source("1")), (None, Some("id")));
    }
}
