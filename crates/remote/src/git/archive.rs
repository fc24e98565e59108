//! A commit's tree as a tar archive, with the same bytes whenever it is made.
//!
//! Files are as they are in the repository: `.gitattributes` changes none of them, but for those
//! that Git LFS keeps elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use gix::bstr::{BString, ByteSlice, ByteVec};
use gix::objs::tree::{EntryKind, EntryMode};
use gix::{ObjectId, Repository};
use oci::Algorithm;
use store::{BlobStore, BlobWriter};
use tar::{EntryType, Header};

use super::attributes::{self, Filters};
use super::lfs::{self, Answers, Missing, Object, Pointer, Stub, Unavailable, Wanted};
use super::submodules::Modules;
use super::{
    Commit, Connection, Failure, GitError, GitFetched, GitHead, GitLimits, GitSource, LfsMissing,
    OBJECT_SIZE_MAX, Result, fetch, find_commit, open_repository, shown,
};
use crate::download::DownloadError;

/// Links that are followed on the way to a folder.
const LINKS_MAX: usize = 40;

/// Folders in folders.
const DEPTH_MAX: usize = 500;

/// Bytes of the paths of all files and folders of a commit, which git's index has whole.
const INDEX_SIZE_MAX: usize = 256 << 20;

/// Bytes of one tree.
const TREE_SIZE_MAX: u64 = 128 << 20;

/// Bytes of a name: no file system here has a longer one.
const NAME_LEN_MAX: usize = 255;

/// Bytes of a path.
const PATH_MAX: usize = 4096;

/// Bytes of a path in the header of a file.
const HEADER_NAME_MAX: usize = 100;

/// Repositories of one fetch, the first apart.
const SUBMODULES_MAX: usize = 100;

/// The archive being written.
pub(super) struct Archive {
    tar: tar::Builder<BlobWriter>,
    limits: GitLimits,
    /// Of all entries.
    time: i64,
    address: String,
    bytes: u64,
    entries: usize,
    /// Lines of all trees so far, whose entries are written or held.
    listed: usize,
    submodules: usize,
    lfs_missing: Option<LfsMissing>,
    /// Pointers in whose place there are other bytes.
    replaced: BTreeSet<ObjectId>,
}

/// How much git's index of a commit would have.
#[derive(Default)]
struct IndexSize {
    entries: usize,
    bytes: usize,
}

/// What a tree is part of.
struct Place<'a> {
    connection: &'a Connection,
    repository: &'a Repository,
    modules: &'a Modules,
    /// For further repositories.
    folder: &'a Path,
    with_submodules: bool,
    filters: Filters,
    /// Whether there is no server to ask for what is in Git LFS.
    is_without_lfs: bool,
}

/// Files that follow each other in a folder, and what Git LFS has of them.
#[derive(Default)]
struct Run {
    len: usize,
    pointers: BTreeMap<usize, Pointer>,
    answers: Option<Answers>,
}

impl Archive {
    pub(super) fn begin(
        connection: &Connection,
        blobs: &dyn BlobStore,
        limits: GitLimits,
        time: i64,
    ) -> Result<Self> {
        let upload = connection.runtime.block_on(blobs.begin_upload(Algorithm::Sha256));
        let upload = upload.map_err(DownloadError::from)?;
        Ok(Self {
            tar: tar::Builder::new(BlobWriter::new(upload)),
            limits,
            time,
            address: connection.address(),
            bytes: 0,
            entries: 0,
            listed: 0,
            submodules: 0,
            lfs_missing: None,
            replaced: BTreeSet::new(),
        })
    }

    /// Writes the files of a commit. `folder` is that of the repository.
    pub(super) fn write(
        mut self,
        connection: &Connection,
        repository: &Repository,
        commit: &Commit,
        source: &GitSource,
        head: &GitHead,
        folder: &Path,
    ) -> Result<GitFetched> {
        let modules = Modules::read(connection, repository, commit.tree)?;
        let mut place = Place {
            connection,
            repository,
            modules: &modules,
            folder,
            with_submodules: source.submodules,
            filters: Filters::default(),
            is_without_lfs: false,
        };
        let way = match &source.folder {
            Some(folder) => self.find_folder(&place, commit.tree, folder)?,
            None => Vec::new(),
        };
        let (mut path, mut tree) = (BString::default(), commit.tree);
        for (name, below) in way {
            let file = attributes_file(&self.entries(&place, tree)?);
            place.filters.enter(&path, file);
            (path, tree) = (joined(&path, &name), below);
        }
        self.tree(&mut place, tree, &path, &BString::default(), 0)?;
        if source.keep_git_dir {
            self.git_folder(&place, commit, head, source.folder.is_some())?;
        }
        let Self { tar, time, submodules, lfs_missing, .. } = self;
        let writer = tar.into_inner().map_err(io_failed("write an archive of a repository"))?;
        let stored = writer.commit(None).map_err(DownloadError::from)?;
        Ok(GitFetched { digest: stored.digest, size: stored.size, time, submodules, lfs_missing })
    }

    /// The folders from a tree to one in it. Links are followed, never out of the tree.
    fn find_folder(
        &self,
        place: &Place<'_>,
        root: ObjectId,
        folder: &str,
    ) -> Result<Vec<(BString, ObjectId)>> {
        let refuse = |reason| GitError::NoFolder {
            address: self.address.clone(),
            folder: folder.to_owned(),
            reason,
        };
        let mut above: Vec<(BString, ObjectId)> = Vec::new();
        let mut rest: Vec<BString> = split(folder.as_bytes()).rev().collect();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == ".." {
                above.pop();
                continue;
            }
            let tree = above.last().map_or(root, |(_, tree)| *tree);
            let found = self.entries(place, tree)?.into_iter().find(|entry| entry.name == name);
            let entry = found.ok_or_else(|| refuse("there is none"))?;
            match entry.mode.kind() {
                EntryKind::Tree if above.len() == DEPTH_MAX => {
                    return Err(refuse("it is in too many others"));
                }
                EntryKind::Tree => above.push((name, entry.id)),
                EntryKind::Link => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(refuse("its links lead nowhere"));
                    }
                    let target = self.object(place, entry.id, &name)?;
                    if target.starts_with(b"/") {
                        above.clear();
                    }
                    rest.extend(split(&target).rev());
                }
                EntryKind::Commit => return Err(refuse("it is in another repository")),
                EntryKind::Blob | EntryKind::BlobExecutable => {
                    return Err(refuse("it is a file"));
                }
            }
        }
        Ok(above)
    }

    /// Writes what is in a tree: `path` is where it is in its repository, `target` in the
    /// archive.
    fn tree(
        &mut self,
        place: &mut Place<'_>,
        tree: ObjectId,
        path: &BString,
        target: &BString,
        depth: usize,
    ) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(self.bad_name(target));
        }
        let entries = self.entries(place, tree)?;
        self.listed += entries.len();
        if self.listed > self.limits.entries_max {
            return Err(self.too_many_entries());
        }
        place.filters.enter(path, attributes_file(&entries));
        // Files come first, so that nothing is held of them while their folders are written.
        let (files, folders): (Vec<_>, Vec<_>) = entries.into_iter().partition(Entry::is_file);
        self.files(place, &files, path, target)?;
        drop(files);
        for entry in folders {
            let target = self.checked_path(place, &entry, target)?;
            let path = joined(path, &entry.name);
            self.add_folder(&target)?;
            match entry.mode.is_tree() {
                true => self.tree(place, entry.id, &path, &target, depth + 1)?,
                false if place.with_submodules => {
                    self.submodule(place, entry.id, &path, &target, depth)?;
                }
                false => (),
            }
        }
        place.filters.leave();
        Ok(())
    }

    /// What is in a tree. One that is too large is not read.
    fn entries(&self, place: &Place<'_>, tree: ObjectId) -> Result<Vec<Entry>> {
        let failed = |error: gix::Error| place.connection.protocol(&error);
        if place.repository.find_header(tree).map_err(failed)?.size() > TREE_SIZE_MAX {
            return Err(self.too_many_entries());
        }
        let tree = place.repository.find_tree(tree).map_err(failed)?;
        let entries = tree.iter().map(|entry| {
            let entry = entry.map_err(failed)?;
            let name = entry.filename().to_owned();
            match name.len() > NAME_LEN_MAX {
                true => Err(self.bad_name(&name)),
                false => Ok(Entry { name, mode: entry.mode(), id: entry.object_id() }),
            }
        });
        let entries: Vec<Entry> =
            entries.take(self.limits.entries_max + 1).collect::<Result<_>>()?;
        match entries.len() > self.limits.entries_max {
            true => Err(self.too_many_entries()),
            false => Ok(entries),
        }
    }

    fn too_many_entries(&self) -> GitError {
        GitError::TooManyEntries { address: self.address.clone(), max: self.limits.entries_max }
    }

    /// Where an entry of a tree goes, unless nothing may be called that.
    fn checked_path(&self, place: &Place<'_>, entry: &Entry, folder: &BString) -> Result<BString> {
        if place.connection.stop.is_cancelled() {
            return Err(GitError::Canceled);
        }
        let target = joined(folder, &entry.name);
        let is_link = entry.mode.is_link();
        let is_link = is_link.then_some(gix::validate::path::component::Mode::Symlink);
        let options = gix::validate::path::component::Options {
            protect_windows: false,
            protect_hfs: false,
            protect_ntfs: false,
        };
        match gix::validate::path::component(entry.name.as_bstr(), is_link, options) {
            // No file can be called so.
            Ok(_) if target.len() <= PATH_MAX => Ok(target),
            _ => Err(self.bad_name(&target)),
        }
    }

    fn bad_name(&self, path: &BString) -> GitError {
        GitError::BadName { address: self.address.clone(), path: shown(path) }
    }

    /// Writes the files and links of a folder.
    fn files(
        &mut self,
        place: &mut Place<'_>,
        mut files: &[Entry],
        path: &BString,
        target: &BString,
    ) -> Result<()> {
        while !files.is_empty() {
            let run = self.next_run(place, files, path, target)?;
            let (now, later) = files.split_at(run.len);
            for (number, entry) in now.iter().enumerate() {
                let target = self.checked_path(place, entry, target)?;
                let known = run.pointers.get(&number).zip(run.answers.as_ref());
                let is_written = match known {
                    Some((pointer, answers)) => {
                        self.lfs_file(place, entry, &target, pointer, answers)?
                    }
                    None => false,
                };
                if !is_written {
                    self.file(place, entry, &target)?;
                }
            }
            files = later;
        }
        Ok(())
    }

    /// Writes a file or link as it is in the repository.
    fn file(&mut self, place: &Place<'_>, entry: &Entry, target: &BString) -> Result<()> {
        let bytes = self.object(place, entry.id, target)?;
        match entry.mode.is_link() {
            true => self.add_link(target, &bytes),
            false => self.add_file(target, entry.permissions(), &bytes),
        }
    }

    /// The next files of a folder, no more of them in Git LFS than are asked for at once.
    fn next_run(
        &mut self,
        place: &mut Place<'_>,
        files: &[Entry],
        path: &BString,
        target: &BString,
    ) -> Result<Run> {
        let mut run = Run { len: files.len(), ..Run::default() };
        if place.is_without_lfs || !place.filters.have_files() {
            return Ok(run);
        }
        let mut bytes: u64 = 0;
        for (number, entry) in files.iter().enumerate() {
            if place.connection.stop.is_cancelled() {
                return Err(GitError::Canceled);
            }
            let Some(pointer) = self.pointer(place, entry, path)? else { continue };
            bytes = bytes.saturating_add(pointer.size);
            run.pointers.insert(number, pointer);
            if run.pointers.len() == lfs::BATCH_MAX || bytes >= lfs::BATCH_SIZE {
                run.len = number + 1;
                break;
            }
        }
        let Some(first) = run.pointers.keys().next() else { return Ok(run) };
        match self.ask(place, &joined(target, &files[*first].name), &run.pointers) {
            Ok(answers) => run.answers = Some(answers),
            Err(Unavailable::Failed(error)) => return Err(error),
            Err(Unavailable::Missing(missing)) => {
                self.keep_pointer(place, missing);
                place.is_without_lfs = true;
            }
        }
        Ok(run)
    }

    /// The pointer that stands for a file in Git LFS, unless it has to stay.
    fn pointer(
        &mut self,
        place: &mut Place<'_>,
        entry: &Entry,
        path: &BString,
    ) -> Result<Option<Pointer>> {
        let Place { connection, repository, filters, .. } = place;
        let read = |file, max| {
            let failed = |error: gix::Error| connection.protocol(&error);
            if repository.find_header(file).map_err(failed)?.size() > max {
                return Ok(None);
            }
            Ok(Some(repository.find_object(file).map_err(failed)?.detach().data))
        };
        if entry.mode.is_link() {
            return Ok(None);
        }
        let bytes = read(entry.id, lfs::POINTER_SIZE_MAX as u64)?;
        let Some(stub) = bytes.and_then(|bytes| Stub::parse(&bytes)) else { return Ok(None) };
        let path = joined(path, &entry.name);
        let missing = match (filters.has_lfs(&path, &connection.stop, read), stub) {
            (Ok(true), Stub::Pointer(pointer)) => return Ok(Some(pointer)),
            (Ok(true), Stub::NotUnderstood) => {
                Missing::for_ever(format!("the pointer `{}` is not understood", shown(&path)))
            }
            (Ok(false), _) => return Ok(None),
            (Err(Unavailable::Failed(error)), _) => return Err(error),
            (Err(Unavailable::Missing(missing)), _) => missing,
        };
        self.keep_pointer(place, missing);
        Ok(None)
    }

    /// Asks where files in Git LFS are, if there is space for each. The first is at `path`.
    fn ask(
        &self,
        place: &Place<'_>,
        path: &BString,
        pointers: &BTreeMap<usize, Pointer>,
    ) -> std::result::Result<Answers, Unavailable> {
        for pointer in pointers.values() {
            self.check_space(pointer.size)?;
        }
        Answers::ask(place.connection, path, pointers.values())
    }

    /// Remembers that a pointer stays; of several reasons the first is told.
    fn keep_pointer(&mut self, place: &Place<'_>, missing: Missing) {
        let Missing { reason, may_change } = missing;
        let told = self.lfs_missing.get_or_insert_with(|| LfsMissing {
            address: shown(&place.connection.address()),
            reason,
            may_change,
        });
        told.may_change |= may_change;
    }

    /// Writes what Git LFS has of a file, and says whether it did.
    fn lfs_file(
        &mut self,
        place: &Place<'_>,
        entry: &Entry,
        target: &BString,
        pointer: &Pointer,
        answers: &Answers,
    ) -> Result<bool> {
        let wanted = Wanted { connection: place.connection, pointer, path: target };
        self.check_space(pointer.size)?;
        let response = match answers.open(wanted) {
            Ok(response) => response,
            Err(Unavailable::Failed(error)) => return Err(error),
            Err(Unavailable::Missing(missing)) => {
                self.keep_pointer(place, missing);
                return Ok(false);
            }
        };
        self.count(target, pointer.size)?;
        let failure = Failure::default();
        let object = Object::new(wanted, &failure, response);
        let mode = entry.permissions();
        let written = self.append(EntryType::Regular, target, mode, pointer.size, object);
        written.map_err(|error| failure.take().unwrap_or(error))?;
        self.replaced.insert(entry.id);
        Ok(true)
    }

    /// Writes the files of another repository in a folder of this one.
    fn submodule(
        &mut self,
        place: &mut Place<'_>,
        commit: ObjectId,
        path: &BString,
        target: &BString,
        depth: usize,
    ) -> Result<()> {
        let refuse = |reason| GitError::Submodule {
            address: place.connection.address(),
            path: shown(path),
            reason,
        };
        self.submodules += 1;
        if self.submodules > SUBMODULES_MAX {
            return Err(refuse("there are too many"));
        }
        let url =
            place.modules.url(path).ok_or_else(|| refuse("`.gitmodules` does not name it"))?;
        let elsewhere = place
            .connection
            .place
            .submodule(url)
            .ok_or_else(|| refuse("its address is no address of a repository"))?;
        place.filters.forget();
        let moved = Arc::default();
        let connection = Connection { place: elsewhere, moved, ..place.connection.clone() };
        let folder = place.folder.join(format!("submodule-{}", self.submodules));
        let repository = open_repository(&folder)?;
        let id = commit.to_string();
        let head = GitHead { commit: id.clone(), object: id.clone(), name: None };
        fetch(&connection, &repository, &head)?;
        let commit = find_commit(&connection, &repository, &id)?;
        let modules = Modules::read(&connection, &repository, commit.tree)?;
        let mut inside = Place {
            connection: &connection,
            repository: &repository,
            modules: &modules,
            folder: &folder,
            with_submodules: true,
            filters: Filters::default(),
            is_without_lfs: false,
        };
        self.tree(&mut inside, commit.tree, &BString::default(), target, depth + 1)
    }

    /// Writes `.git` as git itself makes it, as far as it is about this commit. Beside a part of
    /// the files, where git cannot find them, it neither misses them nor wonders what is there.
    fn git_folder(
        &mut self,
        place: &Place<'_>,
        commit: &Commit,
        head: &GitHead,
        is_of_part: bool,
    ) -> Result<()> {
        let folders = ["", "/objects", "/objects/info", "/objects/pack", "/refs", "/refs/heads"];
        for folder in folders.into_iter().chain(["/refs/tags"]) {
            self.add_folder(&format!(".git{folder}").into())?;
        }
        let address = place.connection.address();
        let status = if is_of_part { "[status]\n\tshowUntrackedFiles = no\n" } else { "" };
        let config = format!(
            "{status}[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\
             [remote \"origin\"]\n\turl = {address}\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n"
        );
        let id = commit.id;
        let (at, packed) = match head.name.as_deref().filter(|_| head.branch().is_some()) {
            Some(branch) => (format!("ref: {branch}\n"), format!("{id} {branch}\n")),
            None => (format!("{id}\n"), String::new()),
        };
        let packed = format!("# pack-refs with: peeled fully-peeled sorted \n{packed}");
        self.add_file(&".git/HEAD".into(), 0o644, at.as_bytes())?;
        self.add_file(&".git/config".into(), 0o644, config.as_bytes())?;
        self.add_file(&".git/packed-refs".into(), 0o644, packed.as_bytes())?;
        let failed = io_failed("read a fetched repository");
        let repository = place.repository.git_dir();
        match std::fs::read(repository.join("shallow")) {
            Ok(shallow) => self.add_file(&".git/shallow".into(), 0o644, &shallow)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => return Err(failed(error)),
        }
        // Of a part, nothing else has looked at the rest yet.
        self.measure(place, commit.tree, 0, 0, &mut IndexSize::default())?;
        let index = place.repository.index_from_tree(&commit.tree);
        let mut index = index.map_err(|error| place.connection.protocol(&error))?;
        for entry in index.entries_mut() {
            use gix::index::entry::Flags;
            if is_of_part {
                entry.flags.insert(Flags::EXTENDED | Flags::SKIP_WORKTREE);
            }
            // To git without LFS they would look changed.
            if self.replaced.contains(&entry.id) {
                entry.flags.insert(Flags::ASSUME_VALID);
            }
        }
        let mut bytes = Vec::new();
        let options = gix::index::write::Options::default();
        let written = index.write_to(&mut bytes, options);
        written.map_err(|error| place.connection.protocol(&error))?;
        self.add_file(&".git/index".into(), 0o644, &bytes)?;
        let packs = repository.join("objects/pack");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&packs).map_err(io_failed("list a fetched repository"))? {
            names.push(entry.map_err(io_failed("list a fetched repository"))?.file_name());
        }
        names.sort();
        for name in names {
            let Some(name) = name.to_str().filter(|name| !name.ends_with(".keep")) else {
                continue;
            };
            let failed = io_failed("read a fetched repository");
            let file = std::fs::File::open(packs.join(name));
            let file = file.and_then(|file| Ok((file.metadata()?.len(), file)));
            let (size, file) = file.map_err(failed)?;
            let path: BString = format!(".git/objects/pack/{name}").into();
            self.count(&path, size)?;
            self.append(EntryType::Regular, &path, 0o444, size, file)?;
        }
        Ok(())
    }

    /// Refuses a commit whose files are too many for a list of them in memory. A few small trees
    /// that name each other may stand for any number of files.
    fn measure(
        &self,
        place: &Place<'_>,
        tree: ObjectId,
        path_len: usize,
        depth: usize,
        size: &mut IndexSize,
    ) -> Result<()> {
        if place.connection.stop.is_cancelled() {
            return Err(GitError::Canceled);
        }
        let entries = self.entries(place, tree)?;
        size.entries += entries.len();
        if size.entries > self.limits.entries_max || depth > DEPTH_MAX {
            return Err(self.too_many_entries());
        }
        for Entry { name, mode, id } in entries {
            let path_len = path_len + name.len() + 1;
            size.bytes += path_len;
            if size.bytes > INDEX_SIZE_MAX {
                let (address, max) = (self.address.clone(), INDEX_SIZE_MAX as u64);
                return Err(GitError::TooLarge { address, max });
            }
            if mode.is_tree() {
                self.measure(place, id, path_len, depth + 1, size)?;
            }
        }
        Ok(())
    }

    /// The bytes of a file or link, at `path` of the archive.
    fn object(&self, place: &Place<'_>, id: ObjectId, path: &BString) -> Result<Vec<u8>> {
        let failed = |error: gix::Error| place.connection.protocol(&error);
        let size = place.repository.find_header(id).map_err(failed)?.size();
        if size > OBJECT_SIZE_MAX {
            let (address, path) = (self.address.clone(), shown(path));
            return Err(GitError::ObjectTooLarge { address, path });
        }
        self.check_space(size)?;
        Ok(place.repository.find_object(id).map_err(failed)?.detach().data)
    }

    fn add_folder(&mut self, path: &BString) -> Result<()> {
        self.count(path, 0)?;
        self.append(EntryType::Directory, path, 0o755, 0, io::empty())
    }

    fn add_file(&mut self, path: &BString, mode: u32, bytes: &[u8]) -> Result<()> {
        self.count(path, bytes.len() as u64)?;
        self.append(EntryType::Regular, path, mode, bytes.len() as u64, bytes)
    }

    fn add_link(&mut self, path: &BString, link: &[u8]) -> Result<()> {
        self.count(path, link.len() as u64)?;
        let mut header = self.header(EntryType::Symlink, 0o777, 0);
        let (path, link) = (path.to_path_lossy(), link.to_path_lossy());
        let appended = self.tar.append_link(&mut header, path, link);
        appended.map_err(io_failed("write an archive of a repository"))
    }

    fn append(
        &mut self,
        kind: EntryType,
        path: &BString,
        mode: u32,
        size: u64,
        content: impl io::Read,
    ) -> Result<()> {
        let mut header = self.header(kind, mode, size);
        let appended = self.tar.append_data(&mut header, path.to_path_lossy(), content);
        appended.map_err(io_failed("write an archive of a repository"))
    }

    fn header(&self, kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.time.max(0).unsigned_abs());
        header.set_size(size);
        header
    }

    fn count(&mut self, path: &BString, bytes: u64) -> Result<()> {
        // What does not fit into a header is written besides the file.
        let bytes = bytes.saturating_add(path.len().saturating_sub(HEADER_NAME_MAX) as u64);
        self.check_space(bytes)?;
        self.entries += 1;
        self.bytes += bytes;
        Ok(())
    }

    /// Whether there is space for one more entry.
    fn check_space(&self, bytes: u64) -> Result<()> {
        let GitLimits { bytes_max, entries_max } = self.limits;
        if self.entries >= entries_max {
            return Err(self.too_many_entries());
        }
        match self.bytes.saturating_add(bytes) > bytes_max {
            true => Err(GitError::TooLarge { address: self.address.clone(), max: bytes_max }),
            false => Ok(()),
        }
    }
}

/// One line of a tree.
struct Entry {
    name: BString,
    mode: EntryMode,
    id: ObjectId,
}

impl Entry {
    /// Whether it is a file or a link.
    fn is_file(&self) -> bool {
        self.mode.is_blob_or_symlink()
    }

    fn permissions(&self) -> u32 {
        if self.mode.is_executable() { 0o755 } else { 0o644 }
    }
}

/// The `.gitattributes` of a tree. Git follows no link from there.
fn attributes_file(entries: &[Entry]) -> Option<ObjectId> {
    let found = entries.iter().find(|entry| entry.name == attributes::NAME)?;
    found.mode.is_blob().then_some(found.id)
}

fn split(path: &[u8]) -> impl DoubleEndedIterator<Item = BString> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(BString::from)
}

fn joined(folder: &BString, name: &BString) -> BString {
    let mut path = folder.clone();
    if !path.is_empty() {
        path.push_byte(b'/');
    }
    path.push_str(name);
    path
}

fn io_failed(doing: &'static str) -> impl Fn(io::Error) -> GitError {
    move |source| GitError::Io { doing, source }
}
