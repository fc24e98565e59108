//! A commit's tree as a tar archive, with the same bytes whenever it is made.
//!
//! Files are as they are in the repository: `.gitattributes` changes none of them, and those
//! that Git LFS keeps elsewhere are the pointers to them.

use std::io;
use std::path::Path;

use gix::bstr::{BString, ByteSlice, ByteVec};
use gix::objs::tree::{EntryKind, EntryMode};
use gix::{ObjectId, Repository};
use oci::Algorithm;
use store::{BlobStore, BlobWriter};
use tar::{EntryType, Header};

use super::submodules::Modules;
use super::{
    Commit, Connection, GitError, GitFetched, GitHead, GitLimits, GitSource, OBJECT_SIZE_MAX,
    Result, fetch, find_commit, open_repository,
};
use crate::download::DownloadError;

/// Links that are followed on the way to a folder.
const LINKS_MAX: usize = 40;

/// Folders in folders.
const DEPTH_MAX: usize = 500;

/// Bytes of the paths of all files and folders of a commit, which git's index has whole.
const INDEX_SIZE_MAX: usize = 256 << 20;

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
    submodules: usize,
    has_lfs: bool,
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
            submodules: 0,
            has_lfs: false,
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
        let place = Place {
            connection,
            repository,
            modules: &modules,
            folder,
            with_submodules: source.submodules,
        };
        let (path, tree) = match &source.folder {
            Some(folder) => self.find_folder(&place, commit.tree, folder)?,
            None => (BString::default(), commit.tree),
        };
        self.tree(&place, tree, &path, &BString::default(), 0)?;
        if source.keep_git_dir {
            self.git_folder(&place, commit, head, source.folder.is_some())?;
        }
        let Self { tar, time, submodules, has_lfs, .. } = self;
        let writer = tar.into_inner().map_err(io_failed("write an archive of a repository"))?;
        let stored = writer.commit(None).map_err(DownloadError::from)?;
        Ok(GitFetched { digest: stored.digest, size: stored.size, time, submodules, has_lfs })
    }

    /// Where a folder is in a tree. Links are followed, never out of the tree.
    fn find_folder(
        &self,
        place: &Place<'_>,
        root: ObjectId,
        folder: &str,
    ) -> Result<(BString, ObjectId)> {
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
            let found = entries(place, tree)?.into_iter().find(|entry| entry.name == name);
            let entry = found.ok_or_else(|| refuse("there is none"))?;
            match entry.mode.kind() {
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
        let tree = above.last().map_or(root, |(_, tree)| *tree);
        let names: Vec<BString> = above.into_iter().map(|(name, _)| name).collect();
        Ok((gix::bstr::join("/", names).into(), tree))
    }

    /// Writes what is in a tree: `path` is where it is in its repository, `target` in the
    /// archive.
    fn tree(
        &mut self,
        place: &Place<'_>,
        tree: ObjectId,
        path: &BString,
        target: &BString,
        depth: usize,
    ) -> Result<()> {
        if depth > DEPTH_MAX {
            let path = target.to_string();
            return Err(GitError::BadName { address: self.address.clone(), path });
        }
        for Entry { name, mode, id } in entries(place, tree)? {
            if place.connection.stop.is_cancelled() {
                return Err(GitError::Canceled);
            }
            let (path, target) = (joined(path, &name), joined(target, &name));
            let is_link = mode.is_link().then_some(gix::validate::path::component::Mode::Symlink);
            let options = gix::validate::path::component::Options {
                protect_windows: false,
                protect_hfs: false,
                protect_ntfs: false,
            };
            if gix::validate::path::component(name.as_bstr(), is_link, options).is_err() {
                let path = target.to_string();
                return Err(GitError::BadName { address: self.address.clone(), path });
            }
            match mode.kind() {
                EntryKind::Tree => {
                    self.add_folder(&target)?;
                    self.tree(place, id, &path, &target, depth + 1)?;
                }
                EntryKind::Blob | EntryKind::BlobExecutable => {
                    let bytes = self.object(place, id, &target)?;
                    if name == ".gitattributes" && bytes.contains_str("filter=lfs") {
                        self.has_lfs = true;
                    }
                    let mode = if mode.is_executable() { 0o755 } else { 0o644 };
                    self.add_file(&target, mode, &bytes)?;
                }
                EntryKind::Link => {
                    let link = self.object(place, id, &target)?;
                    self.add_link(&target, &link)?;
                }
                EntryKind::Commit => {
                    self.add_folder(&target)?;
                    if place.with_submodules {
                        self.submodule(place, id, &path, &target, depth)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes the files of another repository in a folder of this one.
    fn submodule(
        &mut self,
        place: &Place<'_>,
        commit: ObjectId,
        path: &BString,
        target: &BString,
        depth: usize,
    ) -> Result<()> {
        let refuse = |reason| GitError::Submodule {
            address: place.connection.address(),
            path: path.to_string(),
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
        let connection = Connection { place: elsewhere, ..place.connection.clone() };
        let folder = place.folder.join(format!("submodule-{}", self.submodules));
        let repository = open_repository(&folder)?;
        let id = commit.to_string();
        let head = GitHead { commit: id.clone(), object: id.clone(), name: None };
        fetch(&connection, &repository, &head)?;
        let commit = find_commit(&connection, &repository, &id)?;
        let modules = Modules::read(&connection, &repository, commit.tree)?;
        let inside = Place {
            connection: &connection,
            repository: &repository,
            modules: &modules,
            folder: &folder,
            with_submodules: true,
        };
        self.tree(&inside, commit.tree, &BString::default(), target, depth + 1)
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
        if is_of_part {
            use gix::index::entry::Flags;
            let unseen = Flags::EXTENDED | Flags::SKIP_WORKTREE;
            index.entries_mut().iter_mut().for_each(|entry| entry.flags.insert(unseen));
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
            self.count(size)?;
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
        let (address, max) = (|| self.address.clone(), self.limits.entries_max);
        if place.connection.stop.is_cancelled() {
            return Err(GitError::Canceled);
        }
        for Entry { name, mode, id } in entries(place, tree)? {
            let path_len = path_len + name.len() + 1;
            size.entries += 1;
            size.bytes += path_len;
            if size.entries > max || depth > DEPTH_MAX {
                return Err(GitError::TooManyEntries { address: address(), max });
            }
            if size.bytes > INDEX_SIZE_MAX {
                return Err(GitError::TooLarge { address: address(), max: INDEX_SIZE_MAX as u64 });
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
            let (address, path) = (self.address.clone(), path.to_string());
            return Err(GitError::ObjectTooLarge { address, path });
        }
        if self.bytes.saturating_add(size) > self.limits.bytes_max {
            let (address, max) = (self.address.clone(), self.limits.bytes_max);
            return Err(GitError::TooLarge { address, max });
        }
        Ok(place.repository.find_object(id).map_err(failed)?.detach().data)
    }

    fn add_folder(&mut self, path: &BString) -> Result<()> {
        self.count(0)?;
        self.append(EntryType::Directory, path, 0o755, 0, io::empty())
    }

    fn add_file(&mut self, path: &BString, mode: u32, bytes: &[u8]) -> Result<()> {
        self.count(bytes.len() as u64)?;
        self.append(EntryType::Regular, path, mode, bytes.len() as u64, bytes)
    }

    fn add_link(&mut self, path: &BString, link: &[u8]) -> Result<()> {
        self.count(link.len() as u64)?;
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

    fn count(&mut self, bytes: u64) -> Result<()> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        let GitLimits { bytes_max, entries_max } = self.limits;
        if self.entries > entries_max {
            let address = self.address.clone();
            return Err(GitError::TooManyEntries { address, max: entries_max });
        }
        match self.bytes > bytes_max {
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

fn entries(place: &Place<'_>, tree: ObjectId) -> Result<Vec<Entry>> {
    let failed = |error: gix::Error| place.connection.protocol(&error);
    let tree = place.repository.find_tree(tree).map_err(failed)?;
    let entries = tree.iter().map(|entry| {
        let entry = entry.map_err(failed)?;
        let name = entry.filename().to_owned();
        Ok(Entry { name, mode: entry.mode(), id: entry.object_id() })
    });
    entries.collect()
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
