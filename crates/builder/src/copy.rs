//! What a `COPY` or `ADD` writes, decided before a byte is read.
//!
//! A pure function over two trees, the source and the image so far: which entries the layer
//! gets, with the folders above them exactly as the image has them (a layer must not change
//! what it only passes through). The rules are those of BuildKit's copy, including which
//! links are followed: those that a source or the destination names, none below them.

use std::collections::BTreeMap;

use dockerfile::glob;

use crate::cache::KeyHasher;
use crate::tree::{Node, NodeKind, Tree, ancestors, components, file_name, join, parent, resolve};
use crate::user::Owner;

/// One `COPY`, with names already resolved.
pub(crate) struct CopyRequest<'a> {
    pub(crate) source: &'a dyn Tree,
    /// The image before the instruction.
    pub(crate) image: &'a dyn Tree,
    /// Patterns relative to the root of the source.
    pub(crate) sources: &'a [String],
    /// Absolute; ends with `/` if it was written as a folder.
    pub(crate) destination: &'a str,
    pub(crate) owner: Option<Owner>,
    pub(crate) mode: Option<u32>,
    /// `ADD`: whether a source file is an archive to be unpacked.
    pub(crate) is_archive: &'a dyn Fn(&str) -> Result<bool, CopyError>,
    /// The time of folders that are made or passed through.
    pub(crate) folder_time: i64,
}

/// The entries of a layer, parents before children.
#[derive(Debug, Default)]
pub(crate) struct CopyPlan {
    pub(crate) entries: BTreeMap<String, Planned>,
    pub(crate) archives: Vec<PlannedArchive>,
    /// Patterns that match nothing.
    pub(crate) unmatched: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) node: Node,
    /// Where a file's bytes are.
    pub(crate) content: Option<Content>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// A path of the source.
    Source(String),
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
    #[error("`{path}` not found")]
    NotFound { path: String, nearest: Option<String>, ignored_by: Option<String> },
    #[error("`{path}` is a link to `{target}`, which is not there")]
    DanglingLink { path: String, target: String },
    #[error("`{path}` leads in circles")]
    LinkLoop { path: String },
    #[error("`{path}` is in the image and not a folder")]
    NotAFolder { path: String },
    #[error("`{path}` is a folder in the image, a file cannot take its place")]
    FolderInTheWay { path: String },
    #[error("several files cannot be copied to `{path}`")]
    SeveralToOne { path: String },
    #[error("`{path}` cannot be in an image: names that start with `.wh.` mark deletions")]
    WhiteoutName { path: String },
    #[error("`{pattern}` is not a valid pattern")]
    BadPattern { pattern: String },
    #[error("archive `{path}` cannot be unpacked: {reason}")]
    Archive { path: String, reason: String, hint: Option<String> },
}

impl CopyError {
    /// What the user can do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { ignored_by: Some(name), .. } => {
                Some(format!("it is in the context, but `{name}` excludes it"))
            }
            Self::NotFound { nearest: Some(nearest), .. } => {
                Some(format!("did you mean `{nearest}`?"))
            }
            Self::SeveralToOne { path } => {
                Some(format!("end the destination with a slash: `{path}/`"))
            }
            Self::Archive { hint, .. } => hint.clone(),
            _ => None,
        }
    }
}

impl CopyPlan {
    /// Adds to a cache key what the layer will hold. Times are left out: a file that was
    /// only touched is the same file.
    pub(crate) fn add_to(&self, key: &mut KeyHasher) {
        key.number("entries", self.entries.len() as u64);
        for (path, planned) in &self.entries {
            key.text("path", path);
            planned.node.add_to(key);
        }
        key.number("archives", self.archives.len() as u64);
        for archive in &self.archives {
            key.text("folder", &archive.folder);
            archive.node.add_to(key);
        }
    }
}

/// Decides what a `COPY` writes.
pub(crate) fn plan(request: &CopyRequest<'_>) -> Result<CopyPlan, CopyError> {
    let mut planner = Planner { request, plan: CopyPlan::default() };
    let mut matches = Vec::new();
    for pattern in request.sources {
        let found = planner.matches(pattern)?;
        if found.is_empty() {
            planner.plan.unmatched.push(pattern.clone());
        }
        matches.extend(found);
    }
    if matches.len() > 1 {
        planner.check_takes_several()?;
    }
    for path in &matches {
        planner.copy_source(path)?;
    }
    planner.add_folders_above();
    Ok(planner.plan)
}

struct Planner<'a> {
    request: &'a CopyRequest<'a>,
    plan: CopyPlan,
}

impl Planner<'_> {
    /// The paths in the source that a pattern means. A path without wildcards must exist.
    fn matches(&self, pattern: &str) -> Result<Vec<String>, CopyError> {
        if !glob::has_wildcards(pattern) {
            return Ok(vec![components(pattern).collect::<Vec<_>>().join("/")]);
        }
        let parts: Vec<&str> = components(pattern).collect();
        // Links on the way to the first wildcard are followed, none after it.
        let literal = parts.iter().take_while(|part| !glob::has_wildcards(part)).count();
        let (literal, wild) = parts.split_at(literal);
        let start = self.follow_source(&literal.join("/"))?;
        let mut found = vec![start];
        for (index, part) in wild.iter().enumerate() {
            let is_last = index + 1 == wild.len();
            let mut next = Vec::new();
            for folder in &found {
                for name in self.request.source.children(folder) {
                    let matched = glob::matches(part, &name);
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
        let path = self.follow_image(destination)?;
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
        match self.plan.entries.get(path) {
            Some(planned) => Some(planned.node.clone()),
            None => self.request.image.node(path),
        }
    }

    /// Copies one source: a folder's contents, or a file into or as the destination.
    fn copy_source(&mut self, path: &str) -> Result<(), CopyError> {
        let followed = self.follow_source(path)?;
        let Some(node) = self.request.source.node(&followed) else {
            return Err(match self.request.source.node(path) {
                Some(_) => CopyError::DanglingLink { path: path.to_owned(), target: followed },
                None => self.not_found(path),
            });
        };
        let destination = self.request.destination;
        if !node.is_directory() && (self.request.is_archive)(&followed)? {
            let folder = self.follow_image(destination)?;
            self.make_folder(&folder)?;
            let archive = PlannedArchive { source: followed, node, folder };
            self.plan.archives.push(archive);
            return Ok(());
        }
        if destination.ends_with('/') {
            let folder = self.follow_image(destination)?;
            self.make_folder(&folder)?;
        }
        let mut target = self.follow_image(destination)?;
        let there = self.image_node(&target);
        if !node.is_directory() && there.is_some_and(|there| there.is_directory()) {
            target = join(&target, file_name(path));
        }
        match node.is_directory() {
            true => self.make_folder(&target)?,
            false => self.make_folder(parent(&target))?,
        }
        self.copy(&followed, node, target, false)
    }

    /// Copies a file, a link, or a folder with all that is in it. A folder that is there
    /// already takes on the mode and owner of its source only below the destination.
    fn copy(
        &mut self,
        from: &str,
        node: Node,
        to: String,
        overwrite: bool,
    ) -> Result<(), CopyError> {
        if file_name(&to).starts_with(".wh.") {
            return Err(CopyError::WhiteoutName { path: from.to_owned() });
        }
        let there = self.image_node(&to);
        match &node.kind {
            NodeKind::Directory => {
                match there {
                    Some(there) if !there.is_directory() => {
                        return Err(CopyError::NotAFolder { path: to });
                    }
                    Some(_) if !overwrite => (),
                    _ => self.put(&to, &node, None),
                }
                for name in self.request.source.children(from) {
                    let path = join(from, &name);
                    let Some(child) = self.request.source.node(&path) else { continue };
                    self.copy(&path, child, join(&to, &name), true)?;
                }
                Ok(())
            }
            _ if there.is_some_and(|there| there.is_directory()) => {
                Err(CopyError::FolderInTheWay { path: to })
            }
            NodeKind::File { .. } => {
                self.put(&to, &node, Some(Content::Source(from.to_owned())));
                Ok(())
            }
            // Devices come from images only: a context holds none.
            _ => {
                self.put(&to, &node, None);
                Ok(())
            }
        }
    }

    /// Plans an entry with the owner and mode that the instruction asks for.
    fn put(&mut self, path: &str, node: &Node, content: Option<Content>) {
        let mut node = node.clone();
        if let Some(owner) = self.request.owner {
            (node.uid, node.gid) = (owner.uid, owner.gid);
        }
        // A link has no mode of its own.
        if let Some(mode) = self.request.mode
            && !matches!(node.kind, NodeKind::Symlink { .. })
        {
            node.mode = mode;
        }
        if path.is_empty() {
            return; // The root has no entry.
        }
        self.plan.entries.insert(path.to_owned(), Planned { node, content });
    }

    /// Makes a folder and those above it, where they are missing. `path` has no links left.
    fn make_folder(&mut self, path: &str) -> Result<(), CopyError> {
        for folder in ancestors(path).chain([path]).filter(|folder| !folder.is_empty()) {
            match self.image_node(folder) {
                Some(node) if node.is_directory() => (),
                Some(_) => return Err(CopyError::NotAFolder { path: folder.to_owned() }),
                None => {
                    let node = new_folder(self.request.owner, self.request.folder_time);
                    let planned = Planned { node, content: None };
                    self.plan.entries.insert(folder.to_owned(), planned);
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
                match self.plan.entries.get(&target) {
                    Some(planned) => (path, planned.node.clone(), planned.content.clone()),
                    None => {
                        return Err(CopyError::NotFound {
                            path: target,
                            nearest: None,
                            ignored_by: None,
                        });
                    }
                }
            }
        };
        let target = self.place(folder, &path)?;
        if file_name(&target).starts_with(".wh.") {
            return Err(CopyError::WhiteoutName { path });
        }
        self.make_folder(parent(&target))?;
        if !node.is_directory() {
            // What was planned below a folder that is now replaced goes with it.
            let below = format!("{target}/");
            self.plan.entries.retain(|path, _| !path.starts_with(&below));
        }
        self.put(&target, &node, content);
        Ok(())
    }

    /// Where an entry of an archive goes: links above it are followed, itself it is not.
    fn place(&self, folder: &str, path: &str) -> Result<String, CopyError> {
        let above = self.follow_image(&join(folder, parent(path)))?;
        Ok(join(&above, file_name(path)))
    }

    /// Adds the folders that the entries are in, as the image has them: a layer without them
    /// would leave their mode and owner to whoever unpacks it.
    fn add_folders_above(&mut self) {
        let mut above = BTreeMap::new();
        for entry in self.plan.entries.keys() {
            // Upwards, until a folder is there: those above it are there too.
            let mut path = parent(entry);
            while !path.is_empty()
                && !self.plan.entries.contains_key(path)
                && !above.contains_key(path)
            {
                if let Some(mut node) = self.request.image.node(path) {
                    node.mtime = self.request.folder_time;
                    above.insert(path.to_owned(), Planned { node, content: None });
                }
                path = parent(path);
            }
        }
        self.plan.entries.append(&mut above);
    }

    /// Names what is nearest to a path that is not there.
    fn not_found(&self, path: &str) -> CopyError {
        let names = self.request.source.children(parent(path));
        let name = file_name(path);
        let distances = names.iter().map(|other| (distance(name, other), other));
        // Farther than a third of the name is another name.
        let close = distances.filter(|(distance, _)| *distance <= name.len().div_ceil(3));
        let nearest = close.min().map(|(_, other)| join(parent(path), other));
        CopyError::NotFound { path: path.to_owned(), nearest, ignored_by: None }
    }
}

/// A folder that an instruction makes on its way.
pub(crate) fn new_folder(owner: Option<Owner>, time: i64) -> Node {
    let owner = owner.unwrap_or(Owner { uid: 0, gid: 0 });
    let (uid, gid) = (owner.uid, owner.gid);
    Node { kind: NodeKind::Directory, mode: 0o755, uid, gid, mtime: time, xattrs: Vec::new() }
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
        destination: path,
        owner,
        mode: None,
        is_archive: &|_| Ok(false),
        folder_time,
    };
    let mut planner = Planner { request: &request, plan: CopyPlan::default() };
    let path = planner.follow_image(path)?;
    planner.make_folder(&path)?;
    planner.add_folders_above();
    Ok(planner.plan)
}

/// Adds what an archive holds to a plan, as `tar` would unpack it in the image: folders that
/// are links are entered, and whatever else is in the way of an entry is replaced.
pub(crate) fn add_archive(
    plan: CopyPlan,
    image: &dyn Tree,
    archive: &PlannedArchive,
    entries: Vec<ArchiveEntry>,
    owner: Option<Owner>,
    folder_time: i64,
) -> Result<CopyPlan, CopyError> {
    let request = CopyRequest {
        source: image,
        image,
        sources: &[],
        destination: "/",
        owner,
        mode: None,
        is_archive: &|_| Ok(false),
        folder_time,
    };
    let mut planner = Planner { request: &request, plan };
    for entry in entries {
        planner.unpack(&archive.folder, entry)?;
    }
    planner.add_folders_above();
    Ok(planner.plan)
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
    use std::fmt::Write as _;
    use std::io;

    use expect_test::{Expect, expect};
    use oci::Digest;

    use super::*;

    /// A tree written down: `d PATH [MODE]`, `f PATH [MODE]`, `l PATH TARGET`; everything in
    /// it belongs to user 7.
    struct Listing(BTreeMap<String, Node>);

    fn listing(text: &str) -> Listing {
        let node = |kind, mode| Node { kind, mode, uid: 7, gid: 7, mtime: 1, xattrs: Vec::new() };
        let mut nodes = BTreeMap::from([(String::new(), node(NodeKind::Directory, 0o755))]);
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let mode = |default| {
                words.get(2).map_or(default, |mode| u32::from_str_radix(mode, 8).unwrap())
            };
            let file = || NodeKind::File { size: 1, digest: Digest::of(words[1].as_bytes()) };
            let new = match words[0] {
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

    fn render(planned: &Result<CopyPlan, CopyError>) -> String {
        let mut out = String::new();
        match planned {
            Ok(plan) => {
                for (path, Planned { node, content }) in &plan.entries {
                    let kind = match &node.kind {
                        NodeKind::Directory => "d".to_owned(),
                        NodeKind::File { .. } => "f".to_owned(),
                        NodeKind::Symlink { target } => format!("l[{target}]"),
                        other => format!("{other:?}"),
                    };
                    let (mode, uid, gid) = (node.mode, node.uid, node.gid);
                    write!(out, "{kind} {mode:o} {uid}:{gid} {path}").unwrap();
                    match content {
                        Some(Content::Source(from)) => writeln!(out, " < {from}").unwrap(),
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

    #[track_caller]
    fn check_with(
        sources: &[&str],
        destination: &str,
        owner: Option<(u32, u32)>,
        mode: Option<u32>,
        expected: Expect,
    ) {
        let (source, image) = (listing(CONTEXT), listing(IMAGE));
        let sources: Vec<String> = sources.iter().map(|s| (*s).to_owned()).collect();
        let request = CopyRequest {
            source: &source,
            image: &image,
            sources: &sources,
            destination,
            owner: owner.map(|(uid, gid)| Owner { uid, gid }),
            mode,
            is_archive: &|_| Ok(false),
            folder_time: 0,
        };
        expected.assert_eq(&render(&plan(&request)));
    }

    #[track_caller]
    fn check(sources: &[&str], destination: &str, expected: Expect) {
        check_with(sources, destination, None, None, expected);
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
        check_with(
            &["dir/sub", "a.txt"],
            "/x/y/",
            Some((5, 6)),
            Some(0o640),
            expect![[r#"
                d 755 5:6 x
                d 755 5:6 x/y
                f 640 5:6 x/y/a.txt < a.txt
                f 640 5:6 x/y/two < dir/sub/two
            "#]],
        );
        check_with(
            &["dir"],
            "/tmp/x",
            Some((5, 6)),
            Some(0o750),
            expect![[r#"
                d 1777 7:7 tmp
                d 755 5:6 tmp/x
                l[../a.txt] 777 5:6 tmp/x/link
                f 750 5:6 tmp/x/one < dir/one
                d 750 5:6 tmp/x/sub
                f 750 5:6 tmp/x/sub/two < dir/sub/two
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
                error: `wh/.wh.gone` cannot be in an image: names that start with `.wh.` mark deletions
            "#]],
        );
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
        let plan = add_archive(CopyPlan::default(), &image, &archive, entries, None, 0);
        let expected = expect![[r#"
            f 640 7:7 opt @ 20
            d 755 7:7 srv
            f 640 7:7 srv/one @ 30
            d 755 7:7 usr
            d 775 7:7 usr/lib
            f 640 7:7 usr/lib/libx @ 10
            f 640 7:7 usr/twin @ 10
        "#]];
        expected.assert_eq(&render(&plan));
    }
}
