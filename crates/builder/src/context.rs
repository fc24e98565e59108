//! The build context: a folder or a list, seen once with what `.dockerignore` leaves of it.
//!
//! The folder's content is somebody's upload. It is walked and read with `openat2` and no
//! link is ever followed by the kernel; [`crate::tree`] resolves links over the listing.
//! Every file is hashed when the context is opened, and what is copied later is checked
//! against that, so a file that changes meanwhile is an error and never a wrong cache entry.
//! Of a [list](crate::listed) the digests are known.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dockerfile::ignore::IgnoreFile;
use oci::{Digest, Hasher};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use tokio_util::sync::CancellationToken;

use crate::cache::KeyHasher;
use crate::listed::{self, ListError, ListedFiles, OpenFiles};
use crate::name::{bytes_of, shown, text_of};
use crate::path_map::PathMap;
use crate::tree::{FirstNames, LinkGroup, Node, NodeKind, Tree, ancestors, join, parent};

/// What a build may read, apart from the Dockerfile itself.
#[derive(Debug, Clone)]
pub struct ContextOptions {
    pub files: ContextFiles,
    /// Where in the context the Dockerfile is, if it is: `NAME.dockerignore` beside it takes
    /// the place of `.dockerignore`.
    pub dockerfile: Option<String>,
    /// Paths that no instruction may see: a Dockerfile that travels along but is not part
    /// of the context.
    pub hidden: Vec<String>,
    /// More files and folders than this are refused.
    pub entries_max: usize,
}

/// Where the files of a context are.
#[derive(Debug, Clone)]
pub enum ContextFiles {
    /// The context's root folder. Nobody else writes to it.
    Folder(PathBuf),
    /// The same, and others may write to it: what needs it as a folder gets one of its own, with the
    /// files that the build has seen.
    Shared {
        root: PathBuf,
        folder: Arc<LazyFolder>,
    },
    Listed {
        files: Arc<ListedFiles>,
        folder: Arc<LazyFolder>,
    },
}

/// A folder that is made of a list's files when something needs them as files: once, whichever
/// platform of a build comes first.
#[derive(Debug)]
pub struct LazyFolder {
    path: PathBuf,
    is_written: Mutex<bool>,
}

impl LazyFolder {
    /// What is at the path now goes away when the folder is made.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), is_written: Mutex::new(false) }
    }

    /// Blocking. All who ask want the same files.
    fn path(&self, write: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<&Path> {
        let mut is_written = self.is_written.lock().unwrap_or_else(PoisonError::into_inner);
        if !*is_written {
            // What an attempt that failed has left.
            container::remove_tree(&self.path)?;
            std::fs::DirBuilder::new().mode(0o755).create(&self.path)?;
            write(&self.path)?;
            *is_written = true;
        }
        Ok(&self.path)
    }
}

impl ContextOptions {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self::of(ContextFiles::Folder(root.into()))
    }

    pub fn of(files: ContextFiles) -> Self {
        Self {
            files,
            dockerfile: Some("Dockerfile".to_owned()),
            hidden: Vec::new(),
            entries_max: 1_000_000,
        }
    }
}

/// Why a context cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    #[error("could not {doing} `{path}` of the context")]
    Io {
        doing: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("the context has more than {max} files and folders")]
    TooManyEntries { max: usize },
    #[error("`{path}` of the context has a name that is not UTF-8")]
    BadName { path: String },
    #[error("`{path}` cannot be used: {reason}")]
    BadIgnoreFile { path: String, reason: String },
    /// Somebody else writes to a shared folder.
    #[error("the context changed while the build read it: {0}")]
    Changed(io::Error),
    #[error(transparent)]
    List(#[from] ListError),
    #[error("the build was canceled")]
    Canceled,
}

impl ContextError {
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::TooManyEntries { .. } => {
                Some("leave out what the build does not need with `.dockerignore`".to_owned())
            }
            Self::BadName { .. } => Some("rename it, or exclude its folder".to_owned()),
            Self::Changed(_) => Some("build again when nothing writes to it".to_owned()),
            Self::List(error) => error.hint(),
            _ => None,
        }
    }

    /// Whether the cause is the user's input.
    pub(crate) fn is_users(&self) -> bool {
        match self {
            Self::Io { .. } => false,
            Self::List(error) => error.is_users(),
            _ => true,
        }
    }
}

/// A context, listed and hashed.
pub(crate) struct BuildContext {
    files: Files,
    entries: Entries,
    /// The ignore file that was used, for messages.
    ignore: Option<(String, IgnoreFile)>,
    /// What is there and not listed; of folders, the topmost.
    left_out: Vec<String>,
    digest: Digest,
}

/// What is in a context.
enum Entries {
    Folder(PathMap<Node>),
    Listed {
        files: Arc<OpenFiles>,
        /// What may be seen, by number; everything if nothing is left out.
        kept: Option<Vec<bool>>,
    },
}

impl Entries {
    /// The number of a path that may be seen.
    fn find(&self, path: &str) -> Option<usize> {
        match self {
            Self::Folder(nodes) => nodes.find(path),
            Self::Listed { files, .. } => files.find(path).filter(|number| self.is_kept(*number)),
        }
    }

    fn is_kept(&self, number: usize) -> bool {
        match self {
            Self::Listed { kept: Some(kept), .. } => kept[number],
            _ => true,
        }
    }

    fn node(&self, number: usize) -> Option<Node> {
        match self {
            Self::Folder(nodes) => Some(nodes.value(number).clone()),
            Self::Listed { files, .. } => files.node_of(number),
        }
    }

    /// Why something could not be read, if that happened.
    fn failure(&self) -> Option<io::Error> {
        match self {
            Self::Folder(_) => None,
            Self::Listed { files, .. } => files.failure(),
        }
    }

    /// The digest of all that may be seen: names, types, modes, bytes and hard links.
    fn digest(&self) -> io::Result<Digest> {
        let mut key = KeyHasher::new("context");
        let mut names = FirstNames::default();
        let walk: Box<dyn Iterator<Item = (String, usize)>> = match self {
            Self::Folder(nodes) => Box::new(nodes.walk()),
            Self::Listed { files, .. } => Box::new(files.walk()),
        };
        for (path, number) in walk.filter(|(_, number)| self.is_kept(*number)) {
            let Some(node) = self.node(number) else { break };
            key.text("path", &path);
            names.add_to(&path, &node, &mut key);
        }
        self.failure().map_or_else(|| Ok(key.finish()), Err)
    }
}

/// Where the bytes are.
enum Files {
    Folder { root: OwnedFd, path: PathBuf },
    Shared { root: OwnedFd, folder: Arc<LazyFolder> },
    Listed { files: Arc<OpenFiles>, folder: Arc<LazyFolder> },
}

/// A file that is never larger than any sane list of patterns.
const IGNORE_SIZE_MAX: u64 = 1 << 20;

impl BuildContext {
    /// Lists and hashes a context. Blocking; `cancel` is looked at between files.
    pub(crate) fn open(
        options: &ContextOptions,
        cancel: &CancellationToken,
    ) -> Result<Self, ContextError> {
        let files = Files::open(&options.files)?;
        let ignore = files.read_ignore_file(options.dockerfile.as_deref())?;
        let hidden = options.hidden.iter().map(|path| text_of(path.as_bytes())).collect();
        let patterns = ignore.as_ref().map(|(_, patterns)| patterns);
        let (entries, left_out) = match &files {
            Files::Folder { root, .. } | Files::Shared { root, .. } => {
                let selection = Selection::new(patterns, hidden, options.entries_max);
                let (listing, left_out) = list(root, selection, cancel)?;
                (Entries::Folder(hash_files(root, listing, cancel)?), left_out)
            }
            Files::Listed { files, .. } => {
                let kept = select(files, patterns, &hidden, options.entries_max)?;
                (Entries::Listed { files: Arc::clone(files), kept }, Vec::new())
            }
        };
        let digest = entries.digest().map_err(ListError::Io)?;
        Ok(Self { files, entries, ignore, left_out, digest })
    }

    /// The context as a folder, and paths in it that no instruction may see. Blocking; a listed
    /// context is written when this is called first.
    pub(crate) fn as_folder(
        &self,
        cancel: &CancellationToken,
    ) -> Result<(PathBuf, Vec<String>), ContextError> {
        let is_stopped = || cancel.is_cancelled();
        let written = match &self.files {
            Files::Folder { path, .. } => return Ok((path.clone(), self.left_out.clone())),
            Files::Shared { folder, .. } => folder.path(|path| self.copy_to(path, &is_stopped)),
            Files::Listed { files, folder } => {
                let is_kept = |number: usize| self.entries.is_kept(number);
                folder.path(|path| files.write_to(path, &is_kept, &is_stopped))
            }
        };
        let is_shared = matches!(self.files, Files::Shared { .. });
        let path = written.map_err(|source| match source.kind() {
            io::ErrorKind::Interrupted => ContextError::Canceled,
            io::ErrorKind::InvalidData | io::ErrorKind::NotFound if is_shared => {
                ContextError::Changed(source)
            }
            _ => ContextError::Io { doing: "write", path: ".".to_owned(), source },
        })?;
        Ok((path.to_owned(), Vec::new()))
    }

    /// Copies the files that were hashed, as they were then.
    fn copy_to(&self, folder: &Path, is_stopped: &dyn Fn() -> bool) -> io::Result<()> {
        let Entries::Folder(nodes) = &self.entries else {
            return Err(io::Error::other("only a folder is copied"));
        };
        let nodes = nodes.walk().skip(1).map(|(path, number)| (path, nodes.value(number).clone()));
        // Nothing can be read from what is neither folder, file nor link.
        let nodes = nodes.filter(|(_, node)| node.kind != NodeKind::Fifo).map(Ok);
        let read = |path: &str, digest: &Digest| -> io::Result<Box<dyn Read + Send>> {
            let hasher = Some(Hasher::new(digest.algorithm()));
            let (expected, file) = (digest.clone(), self.files.read(path)?);
            Ok(Box::new(Unchanged { file, hasher, expected, path: shown(path).into_owned() }))
        };
        listed::write_nodes(folder, nodes, &read, is_stopped)
    }

    /// The digest of all that the build may read.
    pub(crate) fn digest(&self) -> Digest {
        self.digest.clone()
    }

    /// The ignore file that keeps a path from the build, if it is there at all: a client may have
    /// left it out already.
    pub(crate) fn excluded_by(&self, path: &str) -> Option<&str> {
        let (name, patterns) = self.ignore.as_ref()?;
        (!path.is_empty() && patterns.is_excluded(path)).then_some(name)
    }
}

impl Files {
    fn open(files: &ContextFiles) -> Result<Self, ContextError> {
        Ok(match files {
            ContextFiles::Folder(path) => {
                Self::Folder { root: open_root(path)?, path: path.clone() }
            }
            ContextFiles::Shared { root, folder } => {
                Self::Shared { root: open_root(root)?, folder: Arc::clone(folder) }
            }
            ContextFiles::Listed { files, folder } => {
                Self::Listed { files: files.open()?, folder: Arc::clone(folder) }
            }
        })
    }

    /// Opens a regular file; no link is followed.
    fn read(&self, path: &str) -> io::Result<Box<dyn Read + Send>> {
        match self {
            Self::Folder { root, .. } | Self::Shared { root, .. } => {
                Ok(Box::new(open_file(root, path)?))
            }
            Self::Listed { files, .. } => files.open_file(path),
        }
    }
}

/// Decides what of a context may be seen, asked for each path after the folder it is in.
struct Selection<'a> {
    patterns: Option<&'a IgnoreFile>,
    hidden: Vec<String>,
    entries_max: usize,
    seen: usize,
    kept: BTreeMap<String, Listed>,
    left_out: Vec<String>,
    excluded_folders: HashMap<String, Listed>,
}

impl<'a> Selection<'a> {
    fn new(patterns: Option<&'a IgnoreFile>, hidden: Vec<String>, entries_max: usize) -> Self {
        let (kept, left_out, excluded_folders) = Default::default();
        Self { patterns, hidden, entries_max, seen: 0, kept, left_out, excluded_folders }
    }

    /// Whether a path can be seen; asked before [`Self::add`].
    fn is_visible(&mut self, path: &str) -> Result<bool, ContextError> {
        self.seen += 1;
        if self.seen > self.entries_max {
            return Err(ContextError::TooManyEntries { max: self.entries_max });
        }
        let is_hidden = self.hidden.iter().any(|hidden| hidden == path);
        if is_hidden {
            self.left_out.push(path.to_owned());
        }
        Ok(!is_hidden)
    }

    /// Takes a path or leaves it out; says whether what is in it is to be looked at.
    fn add(&mut self, path: String, entry: Listed) -> bool {
        let is_directory = matches!(entry.kind, ListedKind::Directory);
        let excluded = self.patterns.is_some_and(|patterns| patterns.is_excluded(&shown(&path)));
        // An exclusion may be taken back for something below.
        let look = is_directory
            && (!excluded || self.patterns.is_some_and(|patterns| patterns.may_keep_below(&path)));
        match (excluded, is_directory) {
            (true, true) => {
                self.excluded_folders.insert(path, entry);
            }
            (true, false) => self.left_out.push(path),
            (false, _) => {
                // A file that is kept keeps the folders it is in.
                for above in ancestors(&path) {
                    if let Some(entry) = self.excluded_folders.remove(above) {
                        self.kept.insert(above.to_owned(), entry);
                    }
                }
                self.kept.insert(path, entry);
            }
        }
        look
    }

    /// What may be seen, and what not.
    fn finish(self) -> (BTreeMap<String, Listed>, Vec<String>) {
        let Self { kept, mut left_out, excluded_folders, .. } = self;
        left_out.extend(excluded_folders.into_keys());
        // What is in a folder that is left out goes with it.
        left_out.retain(|path| parent(path).is_empty() || kept.contains_key(parent(path)));
        (kept, left_out)
    }
}

/// Walks a folder, giving each path that may be seen (files without digest), and those that not.
fn list(
    root: &OwnedFd,
    mut selection: Selection<'_>,
    cancel: &CancellationToken,
) -> Result<(BTreeMap<String, Listed>, Vec<String>), ContextError> {
    selection.kept.insert(String::new(), stat(root, "")?);
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        if cancel.is_cancelled() {
            return Err(ContextError::Canceled);
        }
        for name in names_of(root, &folder)? {
            let path = join(&folder, &name);
            if !selection.is_visible(&path)? {
                continue;
            }
            let listed = stat(root, &path)?;
            if selection.add(path.clone(), listed) {
                folders.push(path);
            }
        }
    }
    Ok(selection.finish())
}

/// As [`list`], of a list: what may be seen, by number.
fn select(
    files: &OpenFiles,
    patterns: Option<&IgnoreFile>,
    hidden: &[String],
    entries_max: usize,
) -> Result<Option<Vec<bool>>, ContextError> {
    let too_many = || ContextError::TooManyEntries { max: entries_max };
    if patterns.is_none() && hidden.is_empty() {
        return if files.len() > entries_max + 1 { Err(too_many()) } else { Ok(None) };
    }
    let mut kept = vec![false; files.len()];
    kept[0] = true;
    let mut seen = 0;
    // The folders around an entry, and the last one that is not looked into.
    let (mut above, mut closed): (Vec<(String, usize)>, Option<String>) = (Vec::new(), None);
    for (path, number) in files.walk().skip(1) {
        if closed.as_ref().is_some_and(|closed| is_below(&path, closed)) {
            continue;
        }
        seen += 1;
        if seen > entries_max {
            return Err(too_many());
        }
        if hidden.contains(&path) {
            closed = Some(path);
            continue;
        }
        while above.last().is_some_and(|(folder, _)| !is_below(&path, folder)) {
            above.pop();
        }
        let excluded = patterns.is_some_and(|patterns| patterns.is_excluded(&shown(&path)));
        if !excluded {
            kept[number] = true;
            // A file that is kept keeps the folders it is in.
            for (_, folder) in &above {
                kept[*folder] = true;
            }
        }
        if files.is_directory(number) {
            // An exclusion may be taken back for something below.
            if excluded && !patterns.is_some_and(|patterns| patterns.may_keep_below(&path)) {
                closed = Some(path);
            } else {
                above.push((path, number));
            }
        }
    }
    Ok(Some(kept))
}

fn is_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

impl Tree for BuildContext {
    fn node(&self, path: &str) -> Option<Node> {
        self.entries.node(self.entries.find(path)?)
    }

    fn children(&self, path: &str) -> Vec<String> {
        let Some(folder) = self.entries.find(path) else { return Vec::new() };
        match &self.entries {
            Entries::Folder(nodes) => {
                nodes.below(folder).map(|(_, name)| name.to_owned()).collect()
            }
            Entries::Listed { files, .. } => (files.children(folder))
                .filter(|(number, _)| self.entries.is_kept(*number))
                .map(|(_, name)| name.to_owned())
                .collect(),
        }
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Read + Send>> {
        self.files.read(path)
    }

    fn failure(&self) -> Option<io::Error> {
        self.entries.failure()
    }
}

/// A file of a context whose end is an error if it is not what was hashed.
struct Unchanged {
    file: Box<dyn Read + Send>,
    /// Gone when the end was compared.
    hasher: Option<Hasher>,
    expected: Digest,
    path: String,
}

impl Read for Unchanged {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..read]);
        }
        if read == 0
            && !buffer.is_empty()
            && let Some(hasher) = self.hasher.take()
            && hasher.finish() != self.expected
        {
            let message = format!("`{}` is not what it was", self.path);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(read)
    }
}

/// A path as `lstat` shows it.
struct Listed {
    kind: ListedKind,
    mode: u32,
    mtime: i64,
}

/// Device and number: what the names of one file have in common.
type Inode = (u64, u64);

enum ListedKind {
    Directory,
    /// With its inode, if it has other names.
    File(Option<Inode>),
    Symlink {
        target: String,
    },
    Fifo,
}

fn failed(doing: &'static str, path: &str) -> impl FnOnce(rustix::io::Errno) -> ContextError {
    let path = if path.is_empty() { ".".to_owned() } else { shown(path).into_owned() };
    move |errno| ContextError::Io { doing, path, source: errno.into() }
}

fn open_root(root: &Path) -> Result<OwnedFd, ContextError> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(root, flags, Mode::empty()).map_err(failed("open", ""))
}

/// Opens a path without following any link, wherever it is in the path.
fn open_beneath(root: &OwnedFd, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = bytes_of(if path.is_empty() { "." } else { path });
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, &*path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Opens a regular file; never blocks on a FIFO that took its place.
fn open_file(root: &OwnedFd, path: &str) -> io::Result<std::fs::File> {
    let fd = open_beneath(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW)?;
    let file = std::fs::File::from(fd);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no longer a regular file")),
    }
}

fn names_of(root: &OwnedFd, folder: &str) -> Result<Vec<String>, ContextError> {
    let fd = open_beneath(root, folder, OFlags::RDONLY | OFlags::DIRECTORY)
        .map_err(failed("list", folder))?;
    let entries = rustix::fs::Dir::read_from(&fd).map_err(failed("list", folder))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("list", folder))?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        match std::str::from_utf8(name) {
            Ok(name) => names.push(text_of(name.as_bytes())),
            Err(_) => {
                let path = join(&shown(folder), &String::from_utf8_lossy(name));
                return Err(ContextError::BadName { path });
            }
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn stat(root: &OwnedFd, path: &str) -> Result<Listed, ContextError> {
    let fd = open_beneath(root, path, OFlags::PATH | OFlags::NOFOLLOW);
    // `NO_SYMLINKS` refuses a link even as the last part; its folder is known to be none.
    let (fd, name) = match fd {
        Ok(fd) => (fd, Cow::default()),
        Err(rustix::io::Errno::LOOP) => {
            let folder = open_beneath(root, parent(path), OFlags::PATH | OFlags::DIRECTORY);
            (folder.map_err(failed("read", path))?, bytes_of(crate::tree::file_name(path)))
        }
        Err(errno) => return Err(failed("read", path)(errno)),
    };
    let flags = match name.is_empty() {
        true => rustix::fs::AtFlags::EMPTY_PATH,
        false => rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    };
    let stat = rustix::fs::statat(&fd, &*name, flags).map_err(failed("read", path))?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => ListedKind::Directory,
        FileType::RegularFile => {
            ListedKind::File((stat.st_nlink > 1).then_some((stat.st_dev, stat.st_ino)))
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&fd, &*name, Vec::new());
            let target = target.map_err(failed("read", path))?;
            let target = target.into_string();
            let bad = |_| ContextError::BadName { path: shown(path).into_owned() };
            ListedKind::Symlink { target: text_of(target.map_err(bad)?.as_bytes()) }
        }
        // Sockets and devices mean nothing elsewhere; a FIFO stands for all of them here and
        // is refused when something copies it.
        _ => ListedKind::Fifo,
    };
    Ok(Listed { kind, mode: stat.st_mode & 0o7777, mtime: stat.st_mtime })
}

impl Files {
    /// The patterns that hold, and the name of the file they are from.
    fn read_ignore_file(
        &self,
        dockerfile: Option<&str>,
    ) -> Result<Option<(String, IgnoreFile)>, ContextError> {
        let own = dockerfile.map(|name| format!("{name}.dockerignore"));
        for name in own.into_iter().chain([".dockerignore".to_owned()]) {
            let file = match self.read(&name) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => {
                    return Err(ContextError::Io { doing: "read", path: name, source });
                }
            };
            let mut text = Vec::new();
            let read = file.take(IGNORE_SIZE_MAX + 1).read_to_end(&mut text);
            read.map_err(|source| ContextError::Io { doing: "read", path: name.clone(), source })?;
            if text.len() as u64 > IGNORE_SIZE_MAX {
                let reason = format!("it is larger than {IGNORE_SIZE_MAX} bytes");
                return Err(ContextError::BadIgnoreFile { path: name, reason });
            }
            let text = String::from_utf8_lossy(&text);
            let bad = |reason: String| ContextError::BadIgnoreFile { path: name.clone(), reason };
            let bad_line = |error: dockerfile::DockerfileError| {
                bad(format!("line {}: {error}", error.at.line))
            };
            let patterns = IgnoreFile::parse(&text).map_err(bad_line)?;
            return Ok(Some((name, patterns)));
        }
        Ok(None)
    }
}

/// Files hashed at once: more readers only help until the disk or the cores are busy.
const READERS_MAX: usize = 8;

fn hash_files(
    root: &OwnedFd,
    listing: BTreeMap<String, Listed>,
    cancel: &CancellationToken,
) -> Result<PathMap<Node>, ContextError> {
    // A file is read once, however many names it has.
    let mut seen = HashSet::new();
    let files: Vec<&str> = (listing.iter())
        .filter(|(_, listed)| match listed.kind {
            ListedKind::File(inode) => inode.is_none_or(|inode| seen.insert(inode)),
            _ => false,
        })
        .map(|(path, _)| path.as_str())
        .collect();
    let next = AtomicUsize::new(0);
    let hashed = Mutex::new(HashMap::with_capacity(files.len()));
    let worker = || -> Result<(), ContextError> {
        let mut buffer = vec![0; 128 << 10];
        while let Some(path) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            if cancel.is_cancelled() {
                return Err(ContextError::Canceled);
            }
            let result = hash_file(root, path, &mut buffer, cancel);
            if cancel.is_cancelled() {
                return Err(ContextError::Canceled);
            }
            let failed =
                |source| ContextError::Io { doing: "read", path: shown(path).into_owned(), source };
            let (size, digest) = result.map_err(failed)?;
            hashed.lock().expect("no holder panics").insert((*path).to_owned(), (size, digest));
        }
        Ok(())
    };
    let readers = std::thread::available_parallelism().map_or(1, usize::from);
    let readers = readers.min(READERS_MAX).min(files.len().div_ceil(16));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (1..readers).map(|_| scope.spawn(worker)).collect();
        let own = worker();
        let others = workers.into_iter().map(|worker| worker.join().expect("a reader panicked"));
        others.fold(own, Result::and)
    })?;
    let mut hashed = hashed.into_inner().expect("no holder panics");
    let mut linked: HashMap<Inode, (LinkGroup, (u64, Digest))> = HashMap::new();
    let nodes = listing.into_iter().map(|(path, listed)| {
        let mut link = None;
        let kind = match listed.kind {
            ListedKind::Directory => NodeKind::Directory,
            ListedKind::Symlink { target } => NodeKind::Symlink { target },
            ListedKind::Fifo => NodeKind::Fifo,
            ListedKind::File(inode) => {
                let mut read = || hashed.remove(&path).expect("every file was hashed");
                let (size, digest) = match inode {
                    None => read(),
                    Some(inode) => {
                        let group = linked.len() as LinkGroup;
                        let first = linked.entry(inode).or_insert_with(|| (group, read()));
                        link = Some(first.0);
                        first.1.clone()
                    }
                };
                NodeKind::File { size, digest }
            }
        };
        // The context belongs to nobody in the image: what is copied is root's.
        let (mode, mtime) = (listed.mode, listed.mtime);
        (path, Node { kind, mode, uid: 0, gid: 0, mtime, xattrs: Vec::new(), link })
    });
    let mut map = PathMap::new(listed::root());
    for (path, node) in nodes {
        // A walk finds each path once, in a folder that it found before.
        if !path.is_empty() && map.insert(&path, node).is_err() {
            return Err(ContextError::TooManyEntries { max: u32::MAX as usize });
        }
    }
    Ok(map)
}

fn hash_file(
    root: &OwnedFd,
    path: &str,
    buffer: &mut [u8],
    cancel: &CancellationToken,
) -> io::Result<(u64, Digest)> {
    let mut file = open_file(root, path)?;
    let (mut size, mut hasher) = (0, Hasher::sha256());
    loop {
        // A file with holes can be of any size.
        if cancel.is_cancelled() {
            return Err(io::Error::other("canceled"));
        }
        match file.read(buffer) {
            Ok(0) => return Ok((size, hasher.finish())),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                size += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
}
