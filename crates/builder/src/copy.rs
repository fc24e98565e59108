//! What a `COPY` or `ADD` writes, decided before a byte is read.
//!
//! A pure function over two trees, the source and the image so far: which entries the layer
//! gets, with the folders above them exactly as the image has them (a layer must not change
//! what it only passes through). The rules are those of BuildKit's copy, including which
//! links are followed: those that a source or the destination names, none below them.

use std::collections::HashMap;
use std::io;
use std::rc::Rc;

use dockerfile::ignore::IgnoreFile;
use dockerfile::{CopySource, ModeChange, Script, glob};
use oci::Digest;

use crate::cache::KeyHasher;
use crate::download::download_path;
use crate::name::{NAME_MAX, bytes_of, shown, text_of};
use crate::path_map::PathMap;
use crate::tree::{
    LinkGroup, Node, NodeKind, Tree, ancestors, components, file_name, join, parent, resolve,
};
use crate::user::Owner;

/// One `COPY`, with names already resolved.
pub(crate) struct CopyRequest<'a> {
    pub(crate) source: &'a dyn Tree,
    /// The image before the instruction.
    pub(crate) image: &'a dyn Tree,
    pub(crate) sources: &'a [CopySource],
    /// Files whose text is in the Dockerfile.
    pub(crate) documents: &'a [Script],
    /// As the user wrote it, absolute; ends with `/` if it is meant as a folder.
    pub(crate) destination: &'a str,
    pub(crate) owner: Option<Owner>,
    pub(crate) mode: Option<&'a ModeChange>,
    /// `--parents`: sources keep the folders they are in.
    pub(crate) parents: bool,
    /// Patterns of what is left out, seen from each source.
    pub(crate) excludes: &'a [String],
    /// `ADD`: whether a source file is an archive to be unpacked.
    pub(crate) is_archive: &'a dyn Fn(&str) -> Result<bool, CopyError>,
    /// The time of folders that are made or passed through.
    pub(crate) folder_time: i64,
}

/// The entries of a layer. There may be a million, so those that are copied as they are say only
/// from where; what they are is asked of the source.
#[derive(Debug, Default)]
pub(crate) struct CopyPlan {
    entries: PathMap<Option<Planned>>,
    origins: Vec<Origin>,
    own: Vec<OwnEntry>,
    /// What the instruction gives to what it copies.
    owner: Option<Owner>,
    mode: Option<ModeChange>,
    pub(crate) archives: Vec<PlannedArchive>,
    /// Patterns that match nothing.
    pub(crate) unmatched: Vec<String>,
    /// Link groups given to entries of the plan's own so far.
    groups: LinkGroup,
    /// Those that took the place of a source argument's group.
    replaced: HashMap<(usize, LinkGroup), LinkGroup>,
}

/// Where an entry comes from.
#[derive(Debug, Clone, Copy)]
enum Planned {
    /// From the same place below an origin, by its number.
    Copied(u32),
    /// A number in `own`.
    Own(u32),
}

/// A path of the source that is copied, with what is below it.
#[derive(Debug)]
struct Origin {
    from: String,
    to: String,
    /// The number of the source argument: names that come with one argument stay those of one file,
    /// as with other builders.
    argument: usize,
}

/// An entry that is not just a copy.
#[derive(Debug, Clone)]
struct OwnEntry {
    node: Node,
    content: Option<Content>,
}

/// An entry in its place, the source asked.
#[derive(Debug)]
pub(crate) struct PlannedEntry {
    pub(crate) path: String,
    /// Its link group means nothing outside the plan.
    pub(crate) node: Node,
    /// Where a file's bytes are.
    pub(crate) content: Option<Content>,
    /// An entry before it of which it is a hard link.
    pub(crate) first: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// A path of the source.
    Source(String),
    /// Text of the Dockerfile.
    Text(String),
    /// A piece of what was unpacked from archives.
    Unpacked { offset: u64 },
}

/// One entry of an archive, its path cleaned and below the archive's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ArchiveEntry {
    Node {
        path: String,
        node: Node,
        offset: u64,
    },
    /// Another name of an entry before it.
    HardLink {
        path: String,
        target: String,
    },
}

/// An archive of the source that is unpacked into a folder of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlannedArchive {
    pub(crate) source: String,
    pub(crate) node: Node,
    pub(crate) folder: String,
}

/// Why a `COPY` cannot be done. `Display` is the user's sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    #[error("`{}` not found", shown(path))]
    NotFound { path: String, nearest: Option<String>, ignored_by: Option<String> },
    #[error("`{}` is a link to `{}`, which is not there", shown(path), shown(target))]
    DanglingLink { path: String, target: String },
    #[error("`{}` leads in circles", shown(path))]
    LinkLoop { path: String },
    #[error("`{}` is in the image and not a folder", shown(path))]
    NotAFolder { path: String },
    #[error("`{}` is a folder in the image, a file cannot take its place", shown(path))]
    FolderInTheWay { path: String },
    #[error("several files cannot be copied to `{path}`")]
    SeveralToOne { path: String },
    #[error("`{}` cannot be in an image: names that start with `.wh.` mark deletions", shown(path))]
    WhiteoutName { path: String },
    #[error("`{}` cannot be in an image: it has a name of more than {NAME_MAX} bytes", shown(path))]
    LongName { path: String },
    #[error("`{pattern}` is not a valid pattern")]
    BadPattern { pattern: String },
    #[error("it would copy more files than a layer can have")]
    TooMany,
    #[error("archive `{}` cannot be unpacked: {reason}", shown(path))]
    Archive { path: String, reason: String },
}

impl CopyError {
    /// What the user can do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { ignored_by: Some(name), .. } => {
                Some(format!("`{name}` excludes it from the context"))
            }
            Self::NotFound { nearest: Some(nearest), .. } => {
                Some(format!("did you mean `{}`?", shown(nearest)))
            }
            Self::SeveralToOne { path } => {
                Some(format!("end the destination with a slash: `{path}/`"))
            }
            _ => None,
        }
    }
}

impl CopyPlan {
    /// Adds to a cache key what the layer will hold. Times are left out: a file that was
    /// only touched is the same file. With a bound on them the layer's digest is promised to be
    /// the same whether it was cached or not, so then they count, as far as they are in it.
    pub(crate) fn add_to(
        &self,
        source: &dyn Tree,
        time_max: Option<i64>,
        key: &mut KeyHasher,
    ) -> io::Result<()> {
        let mut count = 0;
        for entry in self.entries(source) {
            let PlannedEntry { path, node, first, .. } = entry?;
            count += 1;
            key.text("path", &path);
            node.add_to(key);
            if let Some(max) = time_max {
                key.text("time", &node.mtime.min(max).to_string());
            }
            if let Some(first) = first {
                key.text("hard link", &first);
            }
        }
        key.number("entries", count);
        key.number("archives", self.archives.len() as u64);
        for archive in &self.archives {
            key.text("folder", &archive.folder);
            archive.node.add_to(key);
        }
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.planned().next().is_none()
    }

    /// How many entries there are, or some more.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entries in the order in which they are written, folders before what is in them. Of a file
    /// with several names, the first that is written has the bytes.
    pub(crate) fn entries(
        &self,
        source: &dyn Tree,
    ) -> impl Iterator<Item = io::Result<PlannedEntry>> {
        let mut firsts: HashMap<(Option<usize>, LinkGroup), (String, Node)> = HashMap::new();
        self.planned().map(move |(path, planned)| {
            let Some(OwnEntry { node, content }) = self.entry(&path, planned, source) else {
                return Err(source.failure().unwrap_or_else(|| io::ErrorKind::NotFound.into()));
            };
            let mut first = None;
            if let Some(link) = node.link {
                // A hard link has nothing of its own: whatever differs is another file.
                let alike = Node { link: None, ..node.clone() };
                let before = firsts.entry(self.group(planned, link));
                let before = before.or_insert_with(|| (path.clone(), alike.clone()));
                if before.0 != path && before.1 == alike {
                    first = Some(before.0.clone());
                }
            }
            Ok(PlannedEntry { path, node, content, first })
        })
    }

    fn planned(&self) -> impl Iterator<Item = (String, Planned)> {
        let all = self.entries.walk();
        all.filter_map(|(path, number)| Some((path, (*self.entries.value(number))?)))
    }

    /// What is planned at a path, if anything is.
    fn node(&self, path: &str, source: &dyn Tree) -> Option<Node> {
        let planned = (*self.entries.get(path)?)?;
        Some(self.entry(path, planned, source)?.node)
    }

    fn entry(&self, path: &str, planned: Planned, source: &dyn Tree) -> Option<OwnEntry> {
        let origin = match planned {
            Planned::Own(number) => return Some(self.own[number as usize].clone()),
            Planned::Copied(number) => &self.origins[number as usize],
        };
        let below = path[origin.to.len()..].trim_start_matches('/');
        let from = if below.is_empty() { origin.from.clone() } else { join(&origin.from, below) };
        let node = self.changed(source.node(&from)?);
        let is_file = matches!(node.kind, NodeKind::File { .. });
        // Devices come from images only: a context holds none.
        let node = Node { link: node.link.filter(|_| is_file), ..node };
        Some(OwnEntry { node, content: is_file.then_some(Content::Source(from)) })
    }

    /// What the names of one file have in common: the number of a source argument, unless it is the
    /// plan's own, and a link group.
    fn group(&self, planned: Planned, link: LinkGroup) -> (Option<usize>, LinkGroup) {
        let Planned::Copied(number) = planned else { return (None, link) };
        let argument = self.origins[number as usize].argument;
        match self.replaced.get(&(argument, link)) {
            Some(own) => (None, *own),
            None => (Some(argument), link),
        }
    }

    /// A node with the owner that the instruction asks for.
    fn owned(&self, mut node: Node) -> Node {
        if let Some(owner) = self.owner {
            (node.uid, node.gid) = (owner.uid, owner.gid);
        }
        node
    }

    /// A node with the owner and mode that the instruction asks for.
    fn changed(&self, node: Node) -> Node {
        let mut node = self.owned(node);
        // A link has no mode of its own.
        if let Some(mode) = &self.mode
            && !matches!(node.kind, NodeKind::Symlink { .. })
        {
            node.mode = mode.apply(node.mode, node.is_directory());
        }
        node
    }

    fn put(&mut self, path: &str, planned: Planned) -> Result<(), CopyError> {
        if path.is_empty() {
            return Ok(()); // The root has no entry.
        }
        let number = self.entries.find_or_insert(path, || None);
        let number = number.map_err(|_| CopyError::TooMany)?;
        *self.entries.value_mut(number) = Some(planned);
        Ok(())
    }

    fn put_own(
        &mut self,
        path: &str,
        node: Node,
        content: Option<Content>,
    ) -> Result<(), CopyError> {
        let number = u32::try_from(self.own.len()).map_err(|_| CopyError::TooMany)?;
        self.own.push(OwnEntry { node, content });
        self.put(path, Planned::Own(number))
    }
}

/// Decides what a `COPY` writes.
pub(crate) fn plan(request: &CopyRequest<'_>) -> Result<CopyPlan, CopyError> {
    let exclude = patterns(request.excludes)?;
    let plan =
        CopyPlan { owner: request.owner, mode: request.mode.cloned(), ..CopyPlan::default() };
    let mut planner = Planner::new(request, plan);
    let mut matches = Vec::new();
    for (argument, source) in request.sources.iter().enumerate() {
        // With `--parents` it is the pivot that is copied, as far as the pattern matches.
        let (pattern, include) = match request.parents {
            true => {
                planner.check_is_there(source)?;
                let include = [source.pattern.clone()];
                let all = source.pattern.is_empty();
                (&source.pivot, if all { None } else { patterns(&include)? })
            }
            false => (&source.pattern, None),
        };
        let found = match &source.address {
            Some(address) => vec![download_path(argument, address)],
            None => planner.matches(pattern)?,
        };
        if found.is_empty() {
            planner.plan.unmatched.push(pattern.clone());
        }
        let filter = Rc::new(Filter { include, exclude: exclude.clone() });
        matches.extend(found.into_iter().map(|path| (path, argument, Rc::clone(&filter))));
    }
    if matches.len() + request.documents.len() > 1 && !request.parents {
        planner.check_takes_several()?;
    }
    for (path, argument, filter) in &matches {
        planner.argument = *argument;
        planner.copy_source(path, filter)?;
    }
    for document in request.documents {
        planner.copy_document(document)?;
    }
    planner.finish()
}

/// The patterns, if there are any.
fn patterns(patterns: &[String]) -> Result<Option<IgnoreFile>, CopyError> {
    if patterns.is_empty() {
        return Ok(None);
    }
    let file = IgnoreFile::of_patterns(patterns);
    file.map(Some).map_err(|_| CopyError::BadPattern { pattern: patterns.join(" ") })
}

/// What of a source is copied.
struct Filter {
    /// Only what matches, or is below what matches.
    include: Option<IgnoreFile>,
    /// Nothing of what matches, or is below what matches.
    exclude: Option<IgnoreFile>,
}

/// What is copied of one source.
struct Copy<'a> {
    origin: Planned,
    filter: &'a Filter,
}

/// What a [`Filter`] says of one path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Copied,
    /// Not itself, but something below it may be.
    Entered,
    LeftOut,
}

impl Filter {
    /// `below` is the path seen from the source; the source itself is always copied.
    fn verdict(&self, below: &str) -> Verdict {
        if below.is_empty() {
            return Verdict::Copied;
        }
        let below = &*shown(below);
        if let Some(exclude) = &self.exclude
            && exclude.is_excluded(below)
        {
            return match exclude.has_exceptions() {
                true => Verdict::Entered,
                false => Verdict::LeftOut,
            };
        }
        match &self.include {
            Some(include) if !include.is_excluded(below) => Verdict::Entered,
            _ => Verdict::Copied,
        }
    }
}

struct Planner<'a> {
    request: &'a CopyRequest<'a>,
    destination: String,
    plan: CopyPlan,
    /// The number of the source argument that is copied.
    argument: usize,
}

/// A folder that is made only if something is copied into it.
struct Pending {
    path: String,
    overwrite: bool,
    is_made: bool,
}

impl<'a> Planner<'a> {
    fn new(request: &'a CopyRequest<'a>, plan: CopyPlan) -> Self {
        let destination = text_of(request.destination.as_bytes());
        Self { request, destination, plan, argument: 0 }
    }

    /// With `--parents`, what is named without wildcards must be there.
    fn check_is_there(&self, source: &CopySource) -> Result<(), CopyError> {
        if glob::has_wildcards(&source.pivot) || glob::has_wildcards(&source.pattern) {
            return Ok(());
        }
        let path = text_of(join(&source.pivot, &source.pattern).as_bytes());
        let path = path.trim_matches('/');
        let followed = self.follow_source(parent(path))?;
        let place = join(&followed, file_name(path));
        match path.is_empty() || self.request.source.node(&place).is_some() {
            true => Ok(()),
            false => Err(self.not_found(path)),
        }
    }

    /// The paths in the source that a pattern means. A path without wildcards must exist.
    fn matches(&self, pattern: &str) -> Result<Vec<String>, CopyError> {
        if !glob::has_wildcards(pattern) {
            let pattern = text_of(pattern.as_bytes());
            return Ok(vec![components(&pattern).collect::<Vec<_>>().join("/")]);
        }
        let parts: Vec<&str> = components(pattern).collect();
        // Links on the way to the first wildcard are followed, none after it.
        let literal = parts.iter().take_while(|part| !glob::has_wildcards(part)).count();
        let (literal, wild) = parts.split_at(literal);
        let start = self.follow_source(&text_of(literal.join("/").as_bytes()))?;
        let mut found = vec![start];
        for (index, part) in wild.iter().enumerate() {
            let is_last = index + 1 == wild.len();
            let mut next = Vec::new();
            for folder in &found {
                for name in self.request.source.children(folder) {
                    let matched = glob::matches(part, &shown(&name));
                    let bad = |_| CopyError::BadPattern { pattern: pattern.to_owned() };
                    if !matched.map_err(bad)? {
                        continue;
                    }
                    let path = join(folder, &name);
                    let node = self.request.source.node(&path);
                    if is_last || node.is_some_and(|node| node.is_directory()) {
                        next.push(path);
                    }
                }
            }
            found = next;
        }
        Ok(found)
    }

    fn check_takes_several(&self) -> Result<(), CopyError> {
        let destination = self.request.destination;
        if destination.ends_with('/') {
            return Ok(());
        }
        let path = self.follow_image(&self.destination)?;
        match self.image_node(&path) {
            Some(node) if node.is_directory() => Ok(()),
            _ => Err(CopyError::SeveralToOne { path: destination.to_owned() }),
        }
    }

    fn follow_source(&self, path: &str) -> Result<String, CopyError> {
        let node = |path: &str| self.request.source.node(path);
        resolve(&node, path, true).map_err(|_| CopyError::LinkLoop { path: path.to_owned() })
    }

    /// Follows links of the image, and of what this instruction has put there before.
    fn follow_image(&self, path: &str) -> Result<String, CopyError> {
        let node = |path: &str| self.image_node(path);
        resolve(&node, path, true).map_err(|_| CopyError::LinkLoop { path: path.to_owned() })
    }

    fn image_node(&self, path: &str) -> Option<Node> {
        let planned = self.plan.node(path, self.request.source);
        planned.or_else(|| self.request.image.node(path))
    }

    /// Copies one source: a folder's contents, or a file into or as the destination.
    fn copy_source(&mut self, path: &str, filter: &Filter) -> Result<(), CopyError> {
        let followed = self.follow_source(path)?;
        let Some(node) = self.request.source.node(&followed) else {
            return Err(match self.request.source.node(path) {
                Some(_) => CopyError::DanglingLink { path: path.to_owned(), target: followed },
                None => self.not_found(path),
            });
        };
        if !node.is_directory() && (self.request.is_archive)(&followed)? {
            let folder = self.follow_image(&self.destination)?;
            self.make_folder(&folder)?;
            let archive = PlannedArchive { source: followed, node, folder };
            self.plan.archives.push(archive);
            return Ok(());
        }
        let target = self.target(path, node.is_directory())?;
        let origin = u32::try_from(self.plan.origins.len()).map_err(|_| CopyError::TooMany)?;
        let (from, to) = (followed.clone(), target.clone());
        self.plan.origins.push(Origin { from, to, argument: self.argument });
        let copy = Copy { origin: Planned::Copied(origin), filter };
        self.copy(&copy, &followed, "", &node, target, &mut Vec::new())
    }

    /// Copies a file whose text is in the Dockerfile.
    fn copy_document(&mut self, document: &Script) -> Result<(), CopyError> {
        let target = self.target(&text_of(document.name.as_bytes()), false)?;
        if self.image_node(&target).is_some_and(|there| there.is_directory()) {
            return Err(CopyError::FolderInTheWay { path: target });
        }
        let text = document.text.as_bytes();
        let kind = NodeKind::File { size: text.len() as u64, digest: Digest::of(text) };
        let mtime = self.request.folder_time;
        let node =
            Node { kind, mode: 0o644, uid: 0, gid: 0, mtime, xattrs: Vec::new(), link: None };
        let node = self.plan.changed(node);
        self.plan.put_own(&target, node, Some(Content::Text(document.text.clone())))
    }

    /// Where a source goes: as the destination, or into it. The folders above are made.
    fn target(&mut self, path: &str, is_directory: bool) -> Result<String, CopyError> {
        if self.destination.ends_with('/') {
            let folder = self.follow_image(&self.destination)?;
            self.make_folder(&folder)?;
        }
        let mut target = self.follow_image(&self.destination)?;
        let there = self.image_node(&target);
        if !is_directory && there.is_some_and(|there| there.is_directory()) {
            target = join(&target, file_name(path));
        }
        match is_directory {
            true => self.make_folder(&target)?,
            false => self.make_folder(parent(&target))?,
        }
        Ok(target)
    }

    /// Copies a file, a link, or a folder with all of it that the filter leaves. A folder that
    /// is there already takes on the mode and owner of its source only below the destination.
    fn copy(
        &mut self,
        copy: &Copy<'_>,
        from: &str,
        below: &str,
        node: &Node,
        to: String,
        above: &mut Vec<Pending>,
    ) -> Result<(), CopyError> {
        let verdict = copy.filter.verdict(below);
        if verdict == Verdict::LeftOut || verdict == Verdict::Entered && !node.is_directory() {
            return Ok(());
        }
        if verdict == Verdict::Copied {
            for pending in above.iter_mut().filter(|pending| !pending.is_made) {
                pending.is_made = true;
                self.merge_folder(copy, &pending.path, pending.overwrite)?;
            }
        }
        if !node.is_directory() {
            if self.image_node(&to).is_some_and(|there| there.is_directory()) {
                return Err(CopyError::FolderInTheWay { path: to });
            }
            return self.plan.put(&to, copy.origin);
        }
        let overwrite = !below.is_empty();
        let is_made = verdict == Verdict::Copied;
        if is_made {
            self.merge_folder(copy, &to, overwrite)?;
        }
        above.push(Pending { path: to.clone(), overwrite, is_made });
        for name in self.request.source.children(from) {
            let path = join(from, &name);
            let Some(child) = self.request.source.node(&path) else { continue };
            self.copy(copy, &path, &join(below, &name), &child, join(&to, &name), above)?;
        }
        above.pop();
        Ok(())
    }

    fn merge_folder(
        &mut self,
        copy: &Copy<'_>,
        to: &str,
        overwrite: bool,
    ) -> Result<(), CopyError> {
        match self.image_node(to) {
            Some(there) if !there.is_directory() => {
                Err(CopyError::NotAFolder { path: to.to_owned() })
            }
            Some(_) if !overwrite => Ok(()),
            _ => self.plan.put(to, copy.origin),
        }
    }

    /// Makes a folder and those above it, where they are missing. `path` has no links left.
    fn make_folder(&mut self, path: &str) -> Result<(), CopyError> {
        for folder in ancestors(path).chain([path]).filter(|folder| !folder.is_empty()) {
            match self.image_node(folder) {
                Some(node) if node.is_directory() => (),
                Some(_) => return Err(CopyError::NotAFolder { path: folder.to_owned() }),
                None => {
                    let mut node = new_folder(self.request.owner, self.request.folder_time);
                    if let Some(mode) = self.request.mode.and_then(ModeChange::octal) {
                        node.mode = mode;
                    }
                    self.plan.put_own(folder, node, None)?;
                }
            }
        }
        Ok(())
    }

    fn unpack(&mut self, folder: &str, entry: ArchiveEntry) -> Result<(), CopyError> {
        let (path, node, content) = match entry {
            ArchiveEntry::Node { path, node, offset } => {
                let is_file = matches!(node.kind, NodeKind::File { .. });
                (path, node, is_file.then_some(Content::Unpacked { offset }))
            }
            ArchiveEntry::HardLink { path, target } => {
                let target = self.place(folder, &target)?;
                let Some(OwnEntry { node, content }) = self.first_name(&target)? else {
                    return Err(CopyError::NotFound {
                        path: target,
                        nearest: None,
                        ignored_by: None,
                    });
                };
                (path, node, content)
            }
        };
        let target = self.place(folder, &path)?;
        self.make_folder(parent(&target))?;
        if !node.is_directory()
            && let Some(number) = self.plan.entries.find(&target)
        {
            // What was planned below a folder that is now replaced goes with it.
            self.plan.entries.remove_below(number);
        }
        // Its modes are the archive's.
        let node = self.plan.owned(node);
        self.plan.put_own(&target, node, content)
    }

    /// An entry that gets another name, if it is there.
    fn first_name(&mut self, path: &str) -> Result<Option<OwnEntry>, CopyError> {
        let planned = self.plan.entries.get(path).copied().flatten();
        let entry = planned.and_then(|planned| self.plan.entry(path, planned, self.request.source));
        let (Some(planned), Some(mut entry)) = (planned, entry) else { return Ok(None) };
        if entry.node.is_directory() {
            return Ok(Some(entry));
        }
        let group = entry.node.link.map(|link| self.plan.group(planned, link));
        if let Some((None, own)) = group {
            entry.node.link = Some(own);
            return Ok(Some(entry));
        }
        self.plan.groups += 1;
        let own = self.plan.groups;
        if let Some((Some(argument), link)) = group {
            self.plan.replaced.insert((argument, link), own);
        }
        entry.node.link = Some(own);
        self.plan.put_own(path, entry.node.clone(), entry.content.clone())?;
        Ok(Some(entry))
    }

    /// Where an entry of an archive goes: links above it are followed, itself it is not.
    fn place(&self, folder: &str, path: &str) -> Result<String, CopyError> {
        let above = self.follow_image(&join(folder, parent(path)))?;
        Ok(join(&above, file_name(path)))
    }

    /// The plan, if an image can have all of it.
    fn finish(mut self) -> Result<CopyPlan, CopyError> {
        self.add_folders_above()?;
        for (path, _) in self.plan.planned() {
            let name = file_name(&path);
            if name.starts_with(".wh.") {
                return Err(CopyError::WhiteoutName { path });
            }
            if bytes_of(name).len() > NAME_MAX {
                return Err(CopyError::LongName { path });
            }
        }
        Ok(self.plan)
    }

    /// Adds the folders that the entries are in, as the image has them: a layer without them
    /// would leave their mode and owner to whoever unpacks it.
    fn add_folders_above(&mut self) -> Result<(), CopyError> {
        let entries = &self.plan.entries;
        let above = entries.walk().skip(1).filter(|(_, number)| entries.value(*number).is_none());
        let above: Vec<String> = above.map(|(path, _)| path).collect();
        for path in above {
            if let Some(mut node) = self.request.image.node(&path) {
                node.mtime = self.request.folder_time;
                self.plan.put_own(&path, node, None)?;
            }
        }
        Ok(())
    }

    /// Names what is nearest to a path that is not there.
    fn not_found(&self, path: &str) -> CopyError {
        let names = self.request.source.children(parent(path));
        let name = file_name(path);
        let distances = names.iter().map(|other| (distance(name, other), other));
        // Farther than a third of the name is another name.
        let close = distances.filter(|(distance, other)| {
            *distance <= name.len().div_ceil(3) && *distance < name.len().min(other.len())
        });
        let nearest = close.min().map(|(_, other)| join(parent(path), other));
        CopyError::NotFound { path: path.to_owned(), nearest, ignored_by: None }
    }
}

/// A folder that an instruction makes on its way.
pub(crate) fn new_folder(owner: Option<Owner>, time: i64) -> Node {
    let owner = owner.unwrap_or(Owner { uid: 0, gid: 0 });
    let (uid, gid) = (owner.uid, owner.gid);
    let (kind, xattrs, link) = (NodeKind::Directory, Vec::new(), None);
    Node { kind, mode: 0o755, uid, gid, mtime: time, xattrs, link }
}

/// Entries that make a folder exist, for `WORKDIR`; none if it does.
pub(crate) fn plan_folder(
    image: &dyn Tree,
    path: &str,
    owner: Option<Owner>,
    folder_time: i64,
) -> Result<CopyPlan, CopyError> {
    let request = CopyRequest {
        source: image,
        image,
        sources: &[],
        documents: &[],
        destination: path,
        owner,
        mode: None,
        parents: false,
        excludes: &[],
        is_archive: &|_| Ok(false),
        folder_time,
    };
    let mut planner = Planner::new(&request, CopyPlan::default());
    let path = planner.follow_image(&planner.destination)?;
    planner.make_folder(&path)?;
    planner.finish()
}

/// Adds what an archive holds to a plan, as `tar` would unpack it in the image: folders that
/// are links are entered, and whatever else is in the way of an entry is replaced.
pub(crate) fn add_archive(
    plan: CopyPlan,
    source: &dyn Tree,
    image: &dyn Tree,
    archive: &PlannedArchive,
    entries: Vec<ArchiveEntry>,
    folder_time: i64,
) -> Result<CopyPlan, CopyError> {
    let request = CopyRequest {
        source,
        image,
        sources: &[],
        documents: &[],
        destination: "/",
        owner: plan.owner,
        mode: None,
        parents: false,
        excludes: &[],
        is_archive: &|_| Ok(false),
        folder_time,
    };
    let mut planner = Planner::new(&request, plan);
    for entry in entries {
        planner.unpack(&archive.folder, entry)?;
    }
    planner.finish()
}

/// How many letters are to be changed, added or left out to get from one name to another.
fn distance(one: &str, two: &str) -> usize {
    let two: Vec<char> = two.chars().collect();
    let mut row: Vec<usize> = (0..=two.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in two.iter().enumerate() {
            let changed = diagonal + usize::from(!a.eq_ignore_ascii_case(b));
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[two.len()]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Write as _;

    use super::*;
    use crate::tree::NoFiles;
    use expect_test::{Expect, expect};

    /// A tree written down: `d PATH [MODE]`, `f PATH [MODE]`, `l PATH TARGET`, `h PATH NUMBER`
    /// for the names of a file with several; everything in it belongs to user 7.
    struct Listing(BTreeMap<String, Node>);

    fn listing(text: &str) -> Listing {
        let node = |kind, mode| Node {
            kind,
            mode,
            uid: 7,
            gid: 7,
            mtime: 1,
            xattrs: Vec::new(),
            link: None,
        };
        let mut nodes = BTreeMap::from([(String::new(), node(NodeKind::Directory, 0o755))]);
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let mode = |default| {
                words.get(2).map_or(default, |mode| u32::from_str_radix(mode, 8).unwrap())
            };
            let file = || NodeKind::File { size: 1, digest: Digest::of(words[1].as_bytes()) };
            let linked = |link: &str| {
                let node = node(NodeKind::File { size: 1, digest: Digest::of(b"twin") }, 0o644);
                Node { link: Some(link.parse().unwrap()), ..node }
            };
            let new = match words[0] {
                "h" => linked(words[2]),
                "d" => node(NodeKind::Directory, mode(0o755)),
                "f" => node(file(), mode(0o644)),
                "l" => node(NodeKind::Symlink { target: words[2].to_owned() }, 0o777),
                "p" => node(NodeKind::Fifo, 0o600),
                other => panic!("no such kind: {other}"),
            };
            nodes.insert(words[1].to_owned(), new);
        }
        Listing(nodes)
    }

    impl Tree for Listing {
        fn node(&self, path: &str) -> Option<Node> {
            self.0.get(path).cloned()
        }

        fn children(&self, path: &str) -> Vec<String> {
            let inside = self.0.keys().filter(|key| !key.is_empty() && parent(key) == path);
            inside.map(|key| file_name(key).to_owned()).collect()
        }

        fn open(&self, _: &str) -> io::Result<Box<dyn io::Read + Send>> {
            unreachable!("planning reads no file")
        }

        fn failure(&self) -> Option<io::Error> {
            None
        }
    }

    const CONTEXT: &str = "
        f a.txt
        f b.txt 600
        f .hidden
        d dir 700
        f dir/one
        d dir/sub 711
        f dir/sub/two
        l dir/link ../a.txt
        l out /dir/sub
        l up ../../../a.txt
        l dangling nowhere
        l round round
        d empty
        p pipe
        d wh
        f wh/.wh.gone
        d pair
        h pair/b 5
        h pair/c/d 5
        h pair/e 6
        h pair/a 6
        d pair/c
        h other/b 5
        d other
    ";

    const IMAGE: &str = "
        d etc
        f etc/passwd
        d usr
        d usr/lib 775
        l lib usr/lib
        l etc/alias /usr/lib/alias
        d tmp 1777
        d srv
        d srv/sub 500
        l srv/sub-link sub
        d srv/one
    ";

    fn render(planned: &Result<CopyPlan, CopyError>, source: &dyn Tree) -> String {
        let mut out = String::new();
        match planned {
            Ok(plan) => {
                for entry in plan.entries(source) {
                    let PlannedEntry { path, node, content, first } = entry.unwrap();
                    let kind = match &node.kind {
                        NodeKind::Directory => "d".to_owned(),
                        NodeKind::File { .. } => "f".to_owned(),
                        NodeKind::Symlink { target } => format!("l[{target}]"),
                        other => format!("{other:?}"),
                    };
                    let (mode, uid, gid) = (node.mode, node.uid, node.gid);
                    write!(out, "{kind} {mode:o} {uid}:{gid} {path}").unwrap();
                    match content {
                        _ if first.is_some() => writeln!(out, " = {}", first.unwrap()).unwrap(),
                        Some(Content::Source(from)) => writeln!(out, " < {from}").unwrap(),
                        Some(Content::Text(text)) => writeln!(out, " is {text:?}").unwrap(),
                        Some(Content::Unpacked { offset }) => writeln!(out, " @ {offset}").unwrap(),
                        None => writeln!(out).unwrap(),
                    }
                }
                for pattern in &plan.unmatched {
                    writeln!(out, "unmatched {pattern}").unwrap();
                }
            }
            Err(error) => {
                writeln!(out, "error: {error}").unwrap();
                if let Some(hint) = error.hint() {
                    writeln!(out, "hint: {hint}").unwrap();
                }
            }
        }
        out
    }

    /// A `COPY` of the test's context into its image.
    #[derive(Default)]
    struct Case<'a> {
        sources: &'a [&'a str],
        destination: &'a str,
        owner: Option<(u32, u32)>,
        mode: Option<&'a str>,
        parents: bool,
        excludes: &'a [&'a str],
        document: Option<(&'a str, &'a str)>,
    }

    impl Case<'_> {
        #[track_caller]
        fn check(self, expected: Expect) {
            let (source, image) = (listing(CONTEXT), listing(IMAGE));
            let sources = self.sources.iter().map(|source| {
                let (pivot, pattern) = source.split_once("/./").unwrap_or(("", source));
                CopySource { pattern: pattern.to_owned(), pivot: pivot.to_owned(), address: None }
            });
            let document = self
                .document
                .map(|(name, text)| Script { name: name.to_owned(), text: text.to_owned() });
            let excludes: Vec<String> = self.excludes.iter().map(|e| (*e).to_owned()).collect();
            let mode = self.mode.map(|mode| ModeChange::parse(mode).unwrap());
            let request = CopyRequest {
                source: &source,
                image: &image,
                sources: &sources.collect::<Vec<_>>(),
                documents: &document.into_iter().collect::<Vec<_>>(),
                destination: self.destination,
                owner: self.owner.map(|(uid, gid)| Owner { uid, gid }),
                mode: mode.as_ref(),
                parents: self.parents,
                excludes: &excludes,
                is_archive: &|_| Ok(false),
                folder_time: 0,
            };
            expected.assert_eq(&render(&plan(&request), &source));
        }
    }

    #[track_caller]
    fn check(sources: &[&str], destination: &str, expected: Expect) {
        Case { sources, destination, ..Case::default() }.check(expected);
    }

    #[test]
    fn a_file_becomes_the_destination_or_goes_into_it() {
        check(
            &["a.txt"],
            "/app/x",
            expect![[r#"
                d 755 0:0 app
                f 644 7:7 app/x < a.txt
            "#]],
        );
        check(
            &["b.txt"],
            "/app/",
            expect![[r#"
                d 755 0:0 app
                f 600 7:7 app/b.txt < b.txt
            "#]],
        );
        check(
            &["a.txt"],
            "/tmp",
            expect![[r#"
                d 1777 7:7 tmp
                f 644 7:7 tmp/a.txt < a.txt
            "#]],
        );
        check(
            &["a.txt"],
            "/",
            expect![[r#"
                f 644 7:7 a.txt < a.txt
            "#]],
        );
    }

    #[test]
    fn a_folder_gives_its_contents() {
        check(
            &["dir"],
            "/new",
            expect![[r#"
                d 755 0:0 new
                l[../a.txt] 777 7:7 new/link
                f 644 7:7 new/one < dir/one
                d 711 7:7 new/sub
                f 644 7:7 new/sub/two < dir/sub/two
            "#]],
        );
        check(
            &["empty"],
            "/new/",
            expect![[r#"
                d 755 0:0 new
            "#]],
        );
        check(&["empty"], "/srv/", expect![[""]]);
    }

    #[test]
    fn folders_below_the_destination_take_the_mode_of_their_source() {
        // `srv/one` is a folder in the image, so the file `dir/one` cannot be put there.
        check(
            &["dir"],
            "/srv",
            expect![[r#"
                error: `srv/one` is a folder in the image, a file cannot take its place
            "#]],
        );
        check(
            &["dir/sub"],
            "/srv/sub",
            expect![[r#"
                d 755 7:7 srv
                d 500 7:7 srv/sub
                f 644 7:7 srv/sub/two < dir/sub/two
            "#]],
        );
    }

    #[test]
    fn links_of_the_image_are_followed_to_the_destination() {
        check(
            &["a.txt"],
            "/lib/",
            expect![[r#"
                d 755 7:7 usr
                d 775 7:7 usr/lib
                f 644 7:7 usr/lib/a.txt < a.txt
            "#]],
        );
        check(
            &["a.txt"],
            "/etc/alias",
            expect![[r#"
                d 755 7:7 usr
                d 775 7:7 usr/lib
                f 644 7:7 usr/lib/alias < a.txt
            "#]],
        );
        check(
            &["a.txt"],
            "/etc/passwd/x",
            expect![[r#"
                error: `etc/passwd` is in the image and not a folder
            "#]],
        );
    }

    #[test]
    fn links_named_as_source_are_followed_inside_the_context() {
        check(
            &["out"],
            "/x/",
            expect![[r#"
                d 755 0:0 x
                f 644 7:7 x/two < dir/sub/two
            "#]],
        );
        check(
            &["up"],
            "/x/",
            expect![[r#"
                d 755 0:0 x
                f 644 7:7 x/up < a.txt
            "#]],
        );
        check(
            &["out/two"],
            "/two",
            expect![[r#"
                f 644 7:7 two < dir/sub/two
            "#]],
        );
        check(
            &["dangling"],
            "/",
            expect![[r#"
                error: `dangling` is a link to `nowhere`, which is not there
            "#]],
        );
        check(
            &["round"],
            "/",
            expect![[r#"
                error: `round` leads in circles
            "#]],
        );
    }

    #[test]
    fn patterns_match_like_gos() {
        check(
            &["*.txt"],
            "/x/",
            expect![[r#"
                d 755 0:0 x
                f 644 7:7 x/a.txt < a.txt
                f 600 7:7 x/b.txt < b.txt
            "#]],
        );
        check(
            &["d*/s?b"],
            "/x/",
            expect![[r#"
                d 755 0:0 x
                f 644 7:7 x/two < dir/sub/two
            "#]],
        );
        check(
            &["*.none"],
            "/x/",
            expect![[r#"
                unmatched *.none
            "#]],
        );
        check(
            &["*.txt"],
            "/x",
            expect![[r#"
                error: several files cannot be copied to `/x`
                hint: end the destination with a slash: `/x/`
            "#]],
        );
        check(
            &["a.txt", "b.txt"],
            "/tmp",
            expect![[r#"
                d 1777 7:7 tmp
                f 644 7:7 tmp/a.txt < a.txt
                f 600 7:7 tmp/b.txt < b.txt
            "#]],
        );
    }

    #[test]
    fn owner_and_mode_reach_all_that_is_made() {
        Case {
            sources: &["dir/sub", "a.txt"],
            destination: "/x/y/",
            owner: Some((5, 6)),
            mode: Some("640"),
            ..Case::default()
        }
        .check(expect![[r#"
            d 640 5:6 x
            d 640 5:6 x/y
            f 640 5:6 x/y/a.txt < a.txt
            f 640 5:6 x/y/two < dir/sub/two
        "#]]);
        Case {
            sources: &["dir"],
            destination: "/tmp/x",
            owner: Some((5, 6)),
            mode: Some("go=u-w,+X"),
            ..Case::default()
        }
        .check(expect![[r#"
            d 1777 7:7 tmp
            d 755 5:6 tmp/x
            l[../a.txt] 777 5:6 tmp/x/link
            f 644 5:6 tmp/x/one < dir/one
            d 755 5:6 tmp/x/sub
            f 644 5:6 tmp/x/sub/two < dir/sub/two
        "#]]);
    }

    #[test]
    fn parents_are_kept_from_the_pivot_on() {
        let check = |sources, excludes, expected: Expect| {
            let destination = "/out/";
            let parents = true;
            Case { sources, destination, parents, excludes, ..Case::default() }.check(expected);
        };
        check(
            &["dir/sub/two", "a.txt"],
            &[],
            expect![[r#"
            d 755 0:0 out
            f 644 7:7 out/a.txt < a.txt
            d 700 7:7 out/dir
            d 711 7:7 out/dir/sub
            f 644 7:7 out/dir/sub/two < dir/sub/two
        "#]],
        );
        check(
            &["dir/./sub"],
            &[],
            expect![[r#"
            d 755 0:0 out
            d 711 7:7 out/sub
            f 644 7:7 out/sub/two < dir/sub/two
        "#]],
        );
        check(
            &["**/t*"],
            &[],
            expect![[r#"
            d 755 0:0 out
            d 700 7:7 out/dir
            d 711 7:7 out/dir/sub
            f 644 7:7 out/dir/sub/two < dir/sub/two
        "#]],
        );
        check(
            &["di*/./*"],
            &["sub/two", "link"],
            expect![[r#"
            d 755 0:0 out
            f 644 7:7 out/one < dir/one
            d 711 7:7 out/sub
        "#]],
        );
        check(
            &["dir/none*"],
            &[],
            expect![[r#"
            d 755 0:0 out
        "#]],
        );
        check(
            &["dir/none"],
            &[],
            expect![[r#"
            error: `dir/none` not found
            hint: did you mean `dir/one`?
        "#]],
        );
    }

    #[test]
    fn what_is_excluded_stays_away() {
        let check = |sources, excludes, expected: Expect| {
            let destination = "/out/";
            Case { sources, destination, excludes, ..Case::default() }.check(expected);
        };
        check(
            &["dir"],
            &["sub"],
            expect![[r#"
            d 755 0:0 out
            l[../a.txt] 777 7:7 out/link
            f 644 7:7 out/one < dir/one
        "#]],
        );
        check(
            &["dir"],
            &["**/two", "link"],
            expect![[r#"
            d 755 0:0 out
            f 644 7:7 out/one < dir/one
            d 711 7:7 out/sub
        "#]],
        );
        check(
            &["dir"],
            &["*", "!sub/two"],
            expect![[r#"
            d 755 0:0 out
            d 711 7:7 out/sub
            f 644 7:7 out/sub/two < dir/sub/two
        "#]],
        );
        // A pattern is seen from the source, so a file that is named is always copied.
        check(
            &["a.txt"],
            &["*.txt"],
            expect![[r#"
            d 755 0:0 out
            f 644 7:7 out/a.txt < a.txt
        "#]],
        );
        check(
            &["dir"],
            &["["],
            expect![[r#"
            error: `[` is not a valid pattern
        "#]],
        );
    }

    #[test]
    fn a_here_document_is_a_file_of_its_name() {
        let check = |destination, sources, name, expected: Expect| {
            let document = Some((name, "text"));
            Case { sources, destination, document, ..Case::default() }.check(expected);
        };
        check(
            "/etc/motd",
            &[],
            "EOF",
            expect![[r#"
            d 755 7:7 etc
            f 644 0:0 etc/motd is "text"
        "#]],
        );
        check(
            "/tmp",
            &[],
            "EOF",
            expect![[r#"
            d 1777 7:7 tmp
            f 644 0:0 tmp/EOF is "text"
        "#]],
        );
        check(
            "/new/",
            &["a.txt"],
            "EOF",
            expect![[r#"
            d 755 0:0 new
            f 644 0:0 new/EOF is "text"
            f 644 7:7 new/a.txt < a.txt
        "#]],
        );
        check(
            "/new",
            &["a.txt"],
            "EOF",
            expect![[r#"
            error: several files cannot be copied to `/new`
            hint: end the destination with a slash: `/new/`
        "#]],
        );
        check(
            "/tmp/",
            &[],
            ".wh.x",
            expect![[r#"
            error: `tmp/.wh.x` cannot be in an image: names that start with `.wh.` mark deletions
        "#]],
        );
    }

    #[test]
    fn what_cannot_be_copied_is_refused() {
        check(
            &["a.text"],
            "/",
            expect![[r#"
                error: `a.text` not found
                hint: did you mean `a.txt`?
            "#]],
        );
        check(
            &["wh"],
            "/",
            expect![[r#"
                error: `.wh.gone` cannot be in an image: names that start with `.wh.` mark deletions
            "#]],
        );
        check(
            &["a.txt"],
            "/.wh.new/",
            expect![[r#"
                error: `.wh.new` cannot be in an image: names that start with `.wh.` mark deletions
            "#]],
        );
        let image = listing(IMAGE);
        let made = |path: &str| plan_folder(&image, path, None, 0).map(|_| ());
        let long = "n".repeat(255);
        assert_eq!(made(&format!("/{long}/x")), Ok(()));
        let path = format!("{long}n");
        assert_eq!(made(&format!("/{path}/x")), Err(CopyError::LongName { path }));
    }

    #[test]
    fn an_archive_enters_linked_folders_and_replaces_the_rest() {
        let image = listing(IMAGE);
        let file = |path: &str, offset| {
            let node = listing("f x 640").0["x"].clone();
            ArchiveEntry::Node { path: path.to_owned(), node, offset }
        };
        let folder = listing("d x 700").0["x"].clone();
        let archive = PlannedArchive {
            source: "x.tar".to_owned(),
            node: folder.clone(),
            folder: String::new(),
        };
        let link = ArchiveEntry::HardLink { path: "usr/twin".into(), target: "lib/libx".into() };
        let entries = vec![
            ArchiveEntry::Node { path: "opt".into(), node: folder.clone(), offset: 0 },
            file("opt/old", 0),
            file("lib/libx", 10),
            link,
            file("opt", 20),
            file("srv/one", 30),
        ];
        let plan = add_archive(CopyPlan::default(), &NoFiles, &image, &archive, entries, 0);
        let expected = expect![[r#"
            f 640 7:7 opt @ 20
            d 755 7:7 srv
            f 640 7:7 srv/one @ 30
            d 755 7:7 usr
            d 775 7:7 usr/lib
            f 640 7:7 usr/lib/libx @ 10
            f 640 7:7 usr/twin = usr/lib/libx
        "#]];
        expected.assert_eq(&render(&plan, &NoFiles));
    }

    #[test]
    fn names_are_taken_as_they_are_written_and_shown_so() {
        // The last character is one of those that stand for bytes that are no text.
        let odd = text_of("odd\u{10ffff}".as_bytes());
        let latin = text_of(b"caf\xe9");
        let mut source = listing("d d");
        let file = listing("f f").0["f"].clone();
        source.0.insert(odd.clone(), file.clone());
        source.0.insert(latin.clone(), file.clone());
        source.0.insert(format!("d/{latin}"), file);
        let plan = |pattern: &str, destination: &str, excludes: &[String]| {
            let sources =
                [CopySource { pattern: pattern.to_owned(), pivot: String::new(), address: None }];
            let request = CopyRequest {
                source: &source,
                image: &listing(IMAGE),
                sources: &sources,
                documents: &[],
                destination,
                owner: None,
                mode: None,
                parents: false,
                excludes,
                is_archive: &|_| Ok(false),
                folder_time: 0,
            };
            let plan = plan(&request)?;
            let names = plan.planned().map(|(path, _)| bytes_of(&path).into_owned());
            Ok::<_, CopyError>(names.collect::<Vec<_>>())
        };
        let to = "/to\u{10ff80}";
        assert_eq!(plan("odd\u{10ffff}", to, &[]).unwrap(), [&to.as_bytes()[1..]]);
        assert_eq!(plan("caf?", "/x", &[]).unwrap(), [b"x"]);
        assert_eq!(plan("caf?", "/tmp/", &[]).unwrap(), [&b"tmp"[..], b"tmp/caf\xe9"]);
        assert_eq!(plan("od*", "/tmp/", &[]).unwrap()[1], "tmp/odd\u{10ffff}".as_bytes());
        let excludes = ["caf?".to_owned()];
        assert_eq!(plan("d", "/x", &excludes).unwrap(), [b"x"]);
        let error = plan("cafe", "/x", &[]).unwrap_err();
        assert_eq!(error.hint().unwrap(), "did you mean `caf\u{fffd}`?");
    }

    #[test]
    fn names_of_one_file_stay_that_within_a_source() {
        check(
            &["pair", "other"],
            "/x/",
            expect![[r#"
            d 755 0:0 x
            f 644 7:7 x/a < pair/a
            f 644 7:7 x/b < other/b
            d 755 7:7 x/c
            f 644 7:7 x/c/d < pair/c/d
            f 644 7:7 x/e = x/a
        "#]],
        );
        check(
            &["*/b", "pair/c"],
            "/x/",
            expect![[r#"
            d 755 0:0 x
            f 644 7:7 x/b < pair/b
            f 644 7:7 x/d < pair/c/d
        "#]],
        );
        check(
            &["*/[abe]"],
            "/x/",
            expect![[r#"
            d 755 0:0 x
            f 644 7:7 x/a < pair/a
            f 644 7:7 x/b < pair/b
            f 644 7:7 x/e = x/a
        "#]],
        );
        Case {
            sources: &["pair"],
            destination: "/x",
            owner: Some((1, 2)),
            mode: Some("600"),
            excludes: &["b"],
            ..Case::default()
        }
        .check(expect![[r#"
            d 600 1:2 x
            f 600 1:2 x/a < pair/a
            d 600 1:2 x/c
            f 600 1:2 x/c/d < pair/c/d
            f 600 1:2 x/e = x/a
        "#]]);
    }

    #[test]
    fn a_link_of_an_archive_joins_the_names_of_a_copied_file() {
        let source = listing("d dir\nh dir/x 1\nh dir/y 1\nf a.tar");
        let argument = |pattern: &str| CopySource {
            pattern: pattern.to_owned(),
            pivot: String::new(),
            address: None,
        };
        let request = CopyRequest {
            source: &source,
            image: &NoFiles,
            sources: &["dir", "a.tar"].map(argument),
            documents: &[],
            destination: "/d/",
            owner: None,
            mode: None,
            parents: false,
            excludes: &[],
            is_archive: &|path| Ok(path == "a.tar"),
            folder_time: 0,
        };
        let mut planned = plan(&request).unwrap();
        let archive = planned.archives.remove(0);
        let link = |path: &str, target: &str| ArchiveEntry::HardLink {
            path: path.to_owned(),
            target: target.to_owned(),
        };
        let entries = vec![link("z", "y"), link("a", "x")];
        let plan = add_archive(planned, &source, &NoFiles, &archive, entries, 0);
        expect![[r#"
            d 755 0:0 d
            f 644 7:7 d/a < dir/x
            f 644 7:7 d/x = d/a
            f 644 7:7 d/y = d/a
            f 644 7:7 d/z = d/a
        "#]]
        .assert_eq(&render(&plan, &source));
    }

    #[test]
    fn a_name_of_an_archive_that_is_replaced_is_a_file_of_its_own() {
        let file = |path: &str, offset| {
            let node = listing(&format!("f {path}")).0[path].clone();
            ArchiveEntry::Node { path: path.to_owned(), node, offset }
        };
        let link = |path: &str, target: &str| ArchiveEntry::HardLink {
            path: path.to_owned(),
            target: target.to_owned(),
        };
        let entries = vec![
            file("m", 0),
            link("a", "m"),
            link("z", "a"),
            file("m", 1),
            link("n", "m"),
            file("only", 2),
        ];
        let folder = listing("d x").0["x"].clone();
        let archive =
            PlannedArchive { source: "x.tar".to_owned(), node: folder, folder: String::new() };
        let plan = add_archive(CopyPlan::default(), &NoFiles, &listing(""), &archive, entries, 0);
        expect![[r#"
            f 644 7:7 a @ 0
            f 644 7:7 m @ 1
            f 644 7:7 n = m
            f 644 7:7 only @ 2
            f 644 7:7 z = a
        "#]]
        .assert_eq(&render(&plan, &NoFiles));
    }

    #[test]
    fn which_names_are_of_one_file_counts_for_the_cache() {
        let key = |source: &str| {
            let (source, image) = (listing(source), listing(IMAGE));
            let sources =
                [CopySource { pattern: "x".to_owned(), pivot: String::new(), address: None }];
            let request = CopyRequest {
                source: &source,
                image: &image,
                sources: &sources,
                documents: &[],
                destination: "/x",
                owner: None,
                mode: None,
                parents: false,
                excludes: &[],
                is_archive: &|_| Ok(false),
                folder_time: 0,
            };
            let mut key = KeyHasher::new("test");
            plan(&request).unwrap().add_to(&source, None, &mut key).unwrap();
            key.finish()
        };
        let pair = |one, two| key(&format!("d x\nh x/a {one}\nh x/b {two}"));
        assert_ne!(pair(1, 1), pair(1, 2));
        // Numbers mean nothing by themselves.
        assert_eq!(pair(1, 1), pair(7, 7));
        assert_eq!(pair(1, 2), pair(4, 3));
    }
}
