//! A context that came as a list of its files, and packs that hold them.
//!
//! The store compared every file with its digest when it took the pack, so such a context is
//! neither unpacked nor hashed: its list is read, and files are read where they are.
//!
//! The list is a client's. It is one line of JSON for each entry, folders before what is in them,
//! and whatever the kernel would not have in a folder is refused here.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use oci::Digest;
use serde::Deserialize;
use store::{BlobStore, PackedFile, Packs, StoreError};

use crate::lines::Lines;
use crate::name::{NAME_MAX, PATH_MAX, bytes_of, shown, text_of};
use crate::path_map::{NoPlace, PathMap};
use crate::tree::{LinkGroup, Node, NodeKind, parent, resolve};

/// How much a context may hold (contexts.md section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextLimits {
    pub bytes_max: u64,
    pub entries_max: usize,
}

impl Default for ContextLimits {
    fn default() -> Self {
        Self { bytes_max: 10 << 30, entries_max: 1_000_000 }
    }
}

/// A line of a list is not longer than this.
const LINE_SIZE_MAX: u64 = 64 << 10;

/// Why a list was refused. `Display` is the user's sentence.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error("line {line} of the context's list: {reason}")]
    BadLine { line: usize, reason: String },
    #[error("the context has more than {max} files and folders")]
    TooManyEntries { max: usize },
    #[error("the context has files of more than {max} bytes")]
    TooLarge { max: u64 },
    #[error("`{path}` of the context did not come with it")]
    MissingFile { path: String },
    #[error("could not read the context's list")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ListError {
    /// Whether the cause is the user's input.
    pub fn is_users(&self) -> bool {
        !matches!(self, Self::Io(_) | Self::Store(_))
    }

    /// What the user can do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::TooManyEntries { .. } | Self::TooLarge { .. } => Some(LIMITS_HINT.to_owned()),
            _ => None,
        }
    }
}

/// What to do about a context that is beyond its limits.
pub const LIMITS_HINT: &str = "leave out what the build does not need with `.dockerignore`, or \
     raise `limits.context_entries_max` or `limits.context_size_max`";

/// What is in a context: names, and where in the list there is more of each.
#[derive(Debug, PartialEq, Eq)]
pub struct ContextList {
    places: PathMap<Place>,
    bytes: u64,
}

/// Of an entry of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// Where its line begins. The root has none.
    line: u32,
    is_directory: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    path: String,
    #[serde(rename = "type")]
    kind: Kind,
    #[serde(default)]
    mode: Option<u32>,
    #[serde(default)]
    mtime: i64,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    digest: Option<Digest>,
    /// The same for all names of one file.
    #[serde(default)]
    link: Option<LinkGroup>,
    #[serde(default)]
    target: Option<String>,
}

#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Directory,
    File,
    Symlink,
}

impl ContextList {
    /// Reads a list, and gives each of its files to `each` as it comes. Blocking.
    pub fn parse(
        mut text: impl BufRead,
        limits: ContextLimits,
        each: &mut dyn FnMut(&str, PackedFile),
    ) -> Result<Self, ListError> {
        let root = Place { line: 0, is_directory: true };
        let mut list = Self { places: PathMap::new(root), bytes: 0 };
        let mut links: HashMap<LinkGroup, Names> = HashMap::new();
        let (mut bytes, mut last) = (Vec::new(), String::new());
        let mut next = 0_usize;
        for line in 1.. {
            bytes.clear();
            if text.by_ref().take(LINE_SIZE_MAX).read_until(b'\n', &mut bytes)? == 0 {
                break;
            }
            if list.entries() >= limits.entries_max {
                return Err(ListError::TooManyEntries { max: limits.entries_max });
            }
            let bad = |reason: String| ListError::BadLine { line, reason };
            if bytes.last() != Some(&b'\n') {
                return Err(bad(format!("it has no end within {LINE_SIZE_MAX} bytes")));
            }
            let here = u32::try_from(next);
            let here = here.map_err(|_| bad("the list is larger than 4 GiB".to_owned()))?;
            next += bytes.len();
            let (path, node) = parse_line(&bytes).map_err(bad)?;
            list.add(&path, here, &node, &last).map_err(bad)?;
            // The first may be a file that is no part of the folder.
            if line > 1 {
                last = path.clone();
            }
            let is_known = is_known_link(&node, &mut links).map_err(bad)?;
            if let NodeKind::File { size, digest } = node.kind {
                list.bytes = list.bytes.saturating_add(if is_known { 0 } else { size });
                if list.bytes > limits.bytes_max {
                    return Err(ListError::TooLarge { max: limits.bytes_max });
                }
                each(&path, PackedFile { digest, size });
            }
        }
        Ok(list)
    }

    /// Every entry is in a folder that comes before it, and behind those whose names are before its
    /// own.
    fn add(&mut self, path: &str, line: u32, node: &Node, last: &str) -> Result<(), String> {
        let folder = parent(path);
        if !self.places.get(folder).is_some_and(|folder| folder.is_directory) {
            return Err(format!(
                "`{}` is in `{}`, which is not listed before it as a folder",
                shown(path),
                shown(folder)
            ));
        }
        let place = Place { line, is_directory: node.is_directory() };
        match self.places.insert(path, place) {
            Ok(_) if path.split('/').lt(last.split('/')) => {
                Err(format!("`{}` belongs before `{}`", shown(path), shown(last)))
            }
            Ok(_) => Ok(()),
            Err(NoPlace::Taken) => Err(format!("`{}` is listed twice", shown(path))),
            Err(NoPlace::NoFolder | NoPlace::Full) => Err("there is no room for it".to_owned()),
        }
    }

    pub fn entries(&self) -> usize {
        self.places.len() - 1
    }

    /// Bytes in files; of a file with several names, once.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

fn parse_line(line: &[u8]) -> Result<(String, Node), String> {
    entry(serde_json::from_slice(line).map_err(|error| error.to_string())?)
}

fn entry(line: Line) -> Result<(String, Node), String> {
    let Line { path, kind, mode, mtime, size, digest, link, target } = line;
    let wrong = |what: &str| format!("`{path}` {what}");
    let is_path = !path.is_empty() && path.len() <= PATH_MAX && !path.contains('\0');
    let is_name = |name: &str| !matches!(name, "" | "." | "..") && name.len() <= NAME_MAX;
    if !is_path || !path.split('/').all(is_name) {
        return Err(format!("`{}` is no path inside a context", path.escape_debug()));
    }
    let is_file = kind == Kind::File;
    if is_file != (size.is_some() && digest.is_some()) || (link.is_some() && !is_file) {
        return Err(wrong("must have a size and a digest if it is a file, and only then"));
    }
    if (kind == Kind::Symlink) != target.is_some() {
        return Err(wrong("must have a target if it is a link, and only then"));
    }
    let kind = match (size, digest, target) {
        (Some(size), Some(digest), _) => {
            if digest.algorithm() != oci::Algorithm::Sha256 {
                return Err(wrong("must have a sha256"));
            }
            NodeKind::File { size, digest }
        }
        (_, _, Some(target)) => {
            if target.is_empty() || target.len() > PATH_MAX || target.contains('\0') {
                return Err(wrong("is a link to what is no path"));
            }
            NodeKind::Symlink { target: text_of(target.as_bytes()) }
        }
        _ => NodeKind::Directory,
    };
    // Links have no mode of their own.
    let mode = match (&kind, mode) {
        (NodeKind::Symlink { .. }, None) => 0o777,
        (NodeKind::Directory | NodeKind::File { .. }, Some(mode)) if mode <= 0o7777 => mode,
        _ => return Err(wrong("must have a mode of at most 7777 (octal) unless it is a link")),
    };
    let path = text_of(path.as_bytes());
    // The context belongs to nobody in the image: what is copied is root's.
    Ok((path, Node { kind, mode, uid: 0, gid: 0, mtime, xattrs: Vec::new(), link }))
}

/// What all names of one file have in common: sha256, size, mode and time.
type Names = (Option<[u8; 32]>, u64, u32, i64);

/// Whether a node is another name of a file that came before. All names of one are equal.
fn is_known_link(node: &Node, links: &mut HashMap<LinkGroup, Names>) -> Result<bool, String> {
    let (Some(group), NodeKind::File { size, digest }) = (node.link, &node.kind) else {
        return Ok(false);
    };
    let names = (digest.sha256_bytes(), *size, node.mode, node.mtime);
    match links.insert(group, names) {
        Some(first) if first != names => Err(format!("names of file {group} differ")),
        first => Ok(first.is_some()),
    }
}

/// A context by its list, its files in packs. Neither is read before something needs it: a build
/// that finds all in the cache needs no more than the list's digest.
pub struct ListedFiles {
    blobs: Arc<dyn BlobStore>,
    list: Digest,
    packs: Vec<Digest>,
    limits: ContextLimits,
    opened: Mutex<Option<Arc<OpenFiles>>>,
    runtime: tokio::runtime::Handle,
}

/// The files of a list that was read. What the list says of each is read when it is asked for.
pub(crate) struct OpenFiles {
    list: ContextList,
    lines: Lines,
    packs: Arc<Packs>,
}

impl ListedFiles {
    /// Which list and packs belong together is the caller's to know. To be called, and used, where
    /// a runtime is entered.
    pub fn new(
        blobs: Arc<dyn BlobStore>,
        list: Digest,
        packs: Vec<Digest>,
        limits: ContextLimits,
    ) -> Self {
        let (opened, runtime) = (Mutex::default(), tokio::runtime::Handle::current());
        Self { blobs, list, packs, limits, opened, runtime }
    }

    /// Names what is in the context: equal lists have equal files.
    pub(crate) fn digest(&self) -> &Digest {
        &self.list
    }

    /// Bytes in files, and entries. Blocking.
    pub fn size(&self) -> Result<(u64, usize), ListError> {
        let files = self.open()?;
        Ok((files.list.bytes(), files.list.entries()))
    }

    /// Writes all of it into an empty folder. Blocking.
    pub fn write_to(&self, folder: &Path, is_stopped: &dyn Fn() -> bool) -> Result<(), ListError> {
        Ok(self.open()?.write_to(folder, &|_| true, is_stopped)?)
    }

    /// Opens a file, links on the way followed inside the context. Blocking.
    pub fn open_path(&self, path: &str) -> Result<Box<dyn Read + Send>, ListError> {
        let path = text_of(path.as_bytes());
        if let Some(file) = self.open_first(&path)? {
            return Ok(file);
        }
        let files = self.open()?;
        let found = resolve(&|path: &str| files.node(path), &path, true);
        Ok(files.open_file(&found.map_err(|_| io::Error::other("it leads in circles"))?)?)
    }

    /// Opens a file if the list begins with it, as those of our clients do with the Dockerfile: then
    /// nothing more of the list is read, nor of the packs.
    fn open_first(&self, path: &str) -> Result<Option<Box<dyn Read + Send>>, ListError> {
        let mut line = Vec::new();
        self.text()?.take(LINE_SIZE_MAX).read_until(b'\n', &mut line)?;
        let Some((first, node)) =
            serde_json::from_slice(&line).ok().and_then(|line| entry(line).ok())
        else {
            return Ok(None);
        };
        match node.kind {
            NodeKind::File { digest, .. } if first == path => {
                let blobs = Arc::clone(&self.blobs);
                let pack = self.runtime.block_on(Packs::with(blobs, &self.packs, &digest))?;
                Ok(pack.map(|pack| pack.read(&digest)).transpose()?)
            }
            _ => Ok(None),
        }
    }

    /// Reads the list and finds its files, when it is called first. Blocking.
    pub(crate) fn open(&self) -> Result<Arc<OpenFiles>, ListError> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = &*opened {
            return Ok(Arc::clone(files));
        }
        let packs = Packs::open(Arc::clone(&self.blobs), &self.packs);
        let packs = Arc::new(self.runtime.block_on(packs)?);
        let mut missing = None;
        let list = ContextList::parse(self.text()?, self.limits, &mut |path, file| {
            let is_there = || packs.find(&file.digest).is_some_and(|(_, found)| found == file.size);
            if missing.is_none() && !is_there() {
                missing = Some(shown(path).into_owned());
            }
        })?;
        if let Some(path) = missing {
            return Err(ListError::MissingFile { path });
        }
        let files = Arc::new(OpenFiles { list, lines: self.lines()?, packs });
        *opened = Some(Arc::clone(&files));
        Ok(files)
    }

    fn lines(&self) -> Result<Lines, ListError> {
        match self.runtime.block_on(self.blobs.open(&self.list, 0))?.into_file() {
            Ok(file) => Ok(Lines::of_file(file)?),
            // Of a store that has no files.
            Err(_) => {
                let mut text = Vec::new();
                self.text()?.read_to_end(&mut text)?;
                Ok(Lines::of_text(text))
            }
        }
    }

    fn text(&self) -> Result<impl BufRead + use<>, ListError> {
        let list = self.runtime.block_on(self.blobs.open(&self.list, 0))?;
        let _context = self.runtime.enter();
        Ok(BufReader::new(list.into_blocking()))
    }
}

impl OpenFiles {
    /// What is at a path. One that cannot be read counts as absent, and [`Self::failure`] says why.
    pub(crate) fn node(&self, path: &str) -> Option<Node> {
        self.node_of(self.list.places.find(path)?)
    }

    /// As [`Self::node`], by the number of the entry.
    pub(crate) fn node_of(&self, number: usize) -> Option<Node> {
        if number == 0 {
            return Some(root());
        }
        let line = self.list.places.value(number).line;
        self.lines.get(line.into(), |text| {
            let (_, node) = parse_line(text).map_err(io::Error::other)?;
            Ok(node)
        })
    }

    /// Why something of the list could not be read, if that happened.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        self.lines.failure()
    }

    pub(crate) fn find(&self, path: &str) -> Option<usize> {
        self.list.places.find(path)
    }

    pub(crate) fn is_directory(&self, number: usize) -> bool {
        self.list.places.value(number).is_directory
    }

    /// Numbers and names of what is in a folder, in order.
    pub(crate) fn children(&self, folder: usize) -> impl Iterator<Item = (usize, &str)> {
        self.list.places.below(folder)
    }

    /// All entries with their numbers, in order, the root first.
    pub(crate) fn walk(&self) -> impl Iterator<Item = (String, usize)> {
        self.list.places.walk()
    }

    pub(crate) fn len(&self) -> usize {
        self.list.places.len()
    }

    /// Opens a file, no link followed. Blocking.
    pub(crate) fn open_file(&self, path: &str) -> io::Result<Box<dyn Read + Send>> {
        match self.node(path).map(|node| node.kind) {
            Some(NodeKind::File { digest, .. }) => self.packs.read(&digest),
            Some(_) => Err(io::Error::other("it is not a file")),
            None => Err(self.failure().unwrap_or_else(|| io::ErrorKind::NotFound.into())),
        }
    }

    /// Writes some of the context into an empty folder of ours. Blocking.
    pub(crate) fn write_to(
        &self,
        folder: &Path,
        is_kept: &dyn Fn(usize) -> bool,
        is_stopped: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        let unreadable = || self.failure().unwrap_or_else(|| io::ErrorKind::NotFound.into());
        let kept = self.walk().skip(1).filter(|(_, number)| is_kept(*number));
        let nodes = kept.map(|(path, number)| {
            let node = self.node_of(number).ok_or_else(unreadable)?;
            Ok((path, node))
        });
        write_nodes(folder, nodes, &|_, digest| self.packs.read(digest), is_stopped)
    }
}

/// Gives the content of a file by its path and digest.
type ReadFile<'a> = dyn Fn(&str, &Digest) -> io::Result<Box<dyn Read + Send>> + 'a;

/// Writes entries of a context into an empty folder of ours, folders before what is in them.
/// Blocking.
pub(crate) fn write_nodes(
    folder: &Path,
    nodes: impl Iterator<Item = io::Result<(String, Node)>>,
    read: &ReadFile<'_>,
    is_stopped: &dyn Fn() -> bool,
) -> io::Result<()> {
    // Nothing but folders is ever gone through, since entries are in folders only.
    let place = |path: &str| folder.join(std::ffi::OsStr::new(&*shown_name(path)));
    let mut firsts: HashMap<LinkGroup, String> = HashMap::new();
    let mut folders = Vec::new();
    for entry in nodes {
        if is_stopped() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let (path, node) = entry?;
        match &node.kind {
            NodeKind::Directory => {
                DirBuilder::new().mode(0o700).create(place(&path))?;
                folders.push((place(&path), node.mode));
            }
            NodeKind::Symlink { target } => {
                std::os::unix::fs::symlink(&*shown_name(target), place(&path))?;
            }
            NodeKind::File { digest, .. } => {
                if let Some(group) = node.link {
                    match firsts.entry(group) {
                        Entry::Occupied(first) => {
                            std::fs::hard_link(place(first.get()), place(&path))?;
                            continue;
                        }
                        Entry::Vacant(first) => {
                            first.insert(path.clone());
                        }
                    }
                }
                let mut file = File::create_new(place(&path))?;
                io::copy(&mut read(&path, digest)?, &mut file)?;
                file.set_permissions(Permissions::from_mode(node.mode))?;
                let time = Duration::from_secs(u64::try_from(node.mtime).unwrap_or(0));
                file.set_modified(UNIX_EPOCH + time)?;
            }
            _ => return Err(io::Error::other("a context has no devices")),
        }
    }
    // At the end, so that a folder that cannot be written to could be filled.
    for (folder, mode) in folders.into_iter().rev() {
        std::fs::set_permissions(folder, Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// A name as it is on disk: those of lists are always UTF-8.
fn shown_name(text: &str) -> String {
    String::from_utf8_lossy(&bytes_of(text)).into_owned()
}

/// The context's root, which is in no list.
pub(crate) fn root() -> Node {
    let kind = NodeKind::Directory;
    Node { kind, mode: 0o755, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new(), link: None }
}

impl std::fmt::Debug for ListedFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ListedFiles").field("list", &self.list).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: &str = r#""type":"file","mode":420,"size":3,"digest":"sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae""#;

    fn parse(lines: &[&str]) -> Result<(ContextList, Vec<String>), String> {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let limits = ContextLimits { bytes_max: 10, entries_max: 5 };
        let mut files = Vec::new();
        let list = ContextList::parse(text.as_bytes(), limits, &mut |path, _| {
            files.push(path.to_owned());
        });
        list.map(|list| (list, files)).map_err(|error| error.to_string())
    }

    fn file(path: &str) -> String {
        format!(r#"{{"path":"{path}",{FILE}}}"#)
    }

    fn linked(path: &str, group: u64) -> String {
        format!(r#"{{"path":"{path}",{FILE},"link":{group}}}"#)
    }

    #[test]
    fn a_list_is_read() {
        let folder = r#"{"path":"d","type":"directory","mode":493,"mtime":7}"#;
        let (a, b) = (linked("d/a", 1), linked("d/b", 1));
        let link = r#"{"path":"d/l","type":"symlink","target":"../../x"}"#;
        let (list, files) = parse(&[folder, &a, &b, link]).unwrap();
        assert_eq!((list.entries(), list.bytes()), (4, 3));
        assert_eq!(files, ["d/a", "d/b"]);
        assert!(list.places.get("d").unwrap().is_directory);
        let line = list.places.get("d/b").unwrap().line as usize;
        assert_eq!(line, folder.len() + a.len() + 2);
    }

    #[test]
    fn what_no_folder_could_hold_is_refused() {
        let refused = |lines: &[&str]| parse(lines).unwrap_err();
        let long = "n".repeat(256);
        for path in
            ["", "/x", "x/", "a//b", ".", "..", "a/../b", "../x", "a\\u0000b", long.as_str()]
        {
            assert!(refused(&[&file(path)]).contains("is no path inside a context"), "{path}");
        }
        // Below a file or a link, or in a folder that is not there.
        let link = r#"{"path":"x","type":"symlink","target":"/etc"}"#;
        for above in [file("x").as_str(), link] {
            assert!(refused(&[above, &file("x/y")]).contains("not listed before it as a folder"));
        }
        assert!(refused(&[&file("x/y")]).starts_with("line 1 of the context's list"));
        assert!(refused(&[&file("x"), &file("x")]).contains("listed twice"));
        // Out of order; only the first may be.
        assert!(refused(&[&file("x"), &file("y"), &file("x")]).contains("listed twice"));
        assert!(refused(&[&file("z"), &file("y"), &file("x")]).contains("`x` belongs before `y`"));
        assert!(parse(&[&file("z"), &file("x"), &file("y")]).is_ok());
        assert!(
            refused(&[&linked("x", 1), &linked("y", 1).replace("420", "421")])
                .contains("names of file 1 differ")
        );
        assert!(refused(&[r#"{"path":"x","type":"file","mode":420}"#]).contains("a size and"));
        assert!(refused(&[r#"{"path":"x","type":"fifo"}"#]).contains("unknown variant"));
        assert!(refused(&[r#"{"path":"x","type":"directory"}"#]).contains("must have a mode"));
        let mode = r#"{"path":"x","type":"directory","mode":32768}"#;
        assert!(refused(&[mode]).contains("must have a mode"));
        let empty = r#"{"path":"x","type":"symlink","target":""}"#;
        assert!(refused(&[empty]).contains("no path"));
    }

    #[test]
    fn a_list_has_bounds() {
        let names = ["a", "b", "c", "d", "e", "f"];
        let many = names.map(|name| linked(name, 1));
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(parse(&many[..5]).is_ok());
        let error = parse(&many).unwrap_err();
        assert_eq!(error, "the context has more than 5 files and folders");
        let large = names.map(file);
        let large: Vec<&str> = large.iter().map(String::as_str).collect();
        assert!(parse(&large[..3]).is_ok());
        let error = parse(&large[..4]).unwrap_err();
        assert_eq!(error, "the context has files of more than 10 bytes");
        let endless = " ".repeat(LINE_SIZE_MAX as usize);
        assert!(parse(&[&endless]).unwrap_err().contains("no end"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[\\[\\]{}\":,a-z0-9\n]{0,200}") {
            let _ = parse(&[&text]);
        }
    }
}
