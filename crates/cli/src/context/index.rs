//! What this client remembers of a context: digests of files that have not changed since, and
//! what servers have of it. A warm build then looks at each file, and reads none.
//!
//! The file holds nothing that cannot be found out again: one that is damaged, or that others
//! could have written, counts as absent.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, BufRead, BufReader, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci::{Digest, Hasher};
use serde::{Deserialize, Serialize};

use super::key::FileKey;

/// A larger file counts as damaged.
const INDEX_SIZE_MAX: u64 = 512 << 20;
/// Contexts that are remembered.
const INDEXES_MAX: usize = 100;
/// Servers that are remembered for one context.
const SERVERS_MAX: usize = 8;
/// Of what is written here.
const VERSION: u32 = 1;

#[derive(Clone, Default, Serialize, Deserialize)]
struct Head {
    version: u32,
    /// When hashing began, since 1970.
    began: Duration,
    /// The source that a server got last, the latest first.
    sources: Vec<(String, String)>,
}

/// Remembered digests of one context.
#[derive(Default)]
pub(super) struct Index {
    /// Absent if nothing is to be remembered.
    file: Option<PathBuf>,
    head: Head,
    files: HashMap<PathBuf, (FileKey, Digest)>,
}

impl Index {
    /// What is remembered of the context in `root`; `cache` is the user's folder for such things.
    pub(super) fn load(cache: Option<&Path>, root: Option<&Path>) -> Self {
        let (Some(cache), Some(root)) = (cache, root) else { return Self::default() };
        let Ok(root) = root.canonicalize() else { return Self::default() };
        let name = Digest::of(root.as_os_str().as_bytes());
        let file = cache.join("contexts").join(name.hex());
        let (head, files) = read(&file).unwrap_or_default();
        Self { file: Some(file), head, files }
    }

    /// The digest of a file, if it is still the one that was hashed.
    pub(super) fn digest(&self, path: &Path, key: &FileKey) -> Option<&Digest> {
        let (known, digest) = self.files.get(path)?;
        (known == key && key.is_settled(self.head.began)).then_some(digest)
    }

    /// The source that a server got last.
    pub(super) fn source(&self, server: &str) -> Option<&str> {
        let mut sources = self.head.sources.iter();
        sources.find(|(name, _)| name == server).map(|(_, id)| id.as_str())
    }

    /// Remembers which source a server got.
    pub(super) fn set_source(&mut self, server: &str, id: &str) {
        self.head.sources.retain(|(name, _)| name != server);
        self.head.sources.insert(0, (server.to_owned(), id.to_owned()));
        self.head.sources.truncate(SERVERS_MAX);
    }

    /// Forgets digests, when one of them has turned out to be wrong.
    pub(super) fn forget_files(&mut self) {
        self.files.clear();
    }

    /// Remembers these files instead of those before; hashing them began at `began`.
    pub(super) fn set_files(
        &mut self,
        began: Duration,
        files: impl Iterator<Item = (PathBuf, FileKey, Digest)>,
    ) {
        self.head.began = began;
        self.files = files.map(|(path, key, digest)| (path, (key, digest))).collect();
    }

    /// Writes it down, if it can; what is lost is time.
    pub(super) fn save(&self) {
        let Some(file) = &self.file else { return };
        if self.write(file).is_ok() {
            let _ = bound(file);
        }
    }

    fn write(&self, file: &Path) -> io::Result<()> {
        let Some(folder) = file.parent() else { return Ok(()) };
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let partial = file.with_extension(uuid::Uuid::new_v4().simple().to_string());
        let written = self.write_to(&partial).and_then(|()| fs::rename(&partial, file));
        if written.is_err() {
            let _ = fs::remove_file(&partial);
        }
        written
    }

    /// Lines of JSON: the head, the files, and the digest of all that.
    fn write_to(&self, partial: &Path) -> io::Result<()> {
        let mut text = Vec::with_capacity(256 * (self.files.len() + 1));
        serde_json::to_writer(&mut text, &Head { version: VERSION, ..self.head.clone() })?;
        for (path, (key, digest)) in &self.files {
            // What is not UTF-8 travels to no server.
            let Some(path) = path.to_str() else { continue };
            text.push(b'\n');
            serde_json::to_writer(&mut text, &(path, key, digest))?;
        }
        text.push(b'\n');
        let digest = Digest::of(&text);
        text.extend_from_slice(digest.as_str().as_bytes());
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(partial)?;
        file.write_all(&text)
    }
}

type Remembered = (Head, HashMap<PathBuf, (FileKey, Digest)>);

/// Reads what was written; `None` for whatever is not quite that.
fn read(file: &Path) -> Option<Remembered> {
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
    let mut lines = BufReader::with_capacity(128 << 10, file.take(INDEX_SIZE_MAX));
    let mut hasher = Hasher::sha256();
    let mut line = Vec::new();
    let mut next = |line: &mut Vec<u8>| -> Option<bool> {
        line.clear();
        lines.read_until(b'\n', line).ok()?;
        Some(line.ends_with(b"\n"))
    };
    if !next(&mut line)? {
        return None;
    }
    hasher.update(&line);
    let head: Head = serde_json::from_slice(&line).ok()?;
    if head.version != VERSION {
        return None;
    }
    let mut files = HashMap::new();
    while next(&mut line)? {
        hasher.update(&line);
        let (path, key, digest): (PathBuf, FileKey, Digest) = serde_json::from_slice(&line).ok()?;
        files.insert(path, (key, digest));
    }
    (line == hasher.finish().as_str().as_bytes()).then_some((head, files))
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

    fn key(seconds: i64) -> FileKey {
        let time = (seconds, 5);
        FileKey { size: 1, mtime: time, ctime: time, inode: 2, device: 3, mode: 0o644 }
    }

    /// An index of one file that was changed at 100 and hashed later.
    fn saved(cache: &Path, root: &Path, hashed: u64) -> PathBuf {
        let mut index = Index::load(Some(cache), Some(root));
        let files = [(PathBuf::from("a"), key(100), Digest::of(b"a"))];
        index.set_files(Duration::from_secs(hashed), files.into_iter());
        index.set_source("server", "one");
        index.save();
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
        let known = |key: FileKey| index.digest(Path::new("a"), &key).is_some();
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
            assert!(load().digest(Path::new("a"), &key(100)).is_none(), "{hashed}");
        }
    }

    #[test]
    fn what_is_damaged_or_of_others_counts_as_absent() {
        let (cache, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let load = || Index::load(Some(cache.path()), Some(root.path()));
        let is_known = || load().digest(Path::new("a"), &key(100)).is_some();
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
