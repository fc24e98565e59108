//! A tree of files as `COPY` sees it, whether a context or an image: looked up by path,
//! never through the kernel's own path walk.
//!
//! Symbolic links are resolved here, in plain code over a fixed listing, and always inside
//! the root of the tree. So nothing that changes on disk meanwhile, and no link, can lead a
//! `COPY` outside.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;

use oci::Digest;
use serde::{Deserialize, Serialize};

use crate::cache::KeyHasher;
use crate::error::BuildError;

/// One file, folder or link. Paths are relative to the root, without a leading slash; the
/// root itself is the empty path. Names and targets are [text](crate::name).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) kind: NodeKind,
    /// Permission bits, set-user-ID and the like included.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970.
    pub(crate) mtime: i64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
    /// Set if the file may have several names: equal for those of one file, and meant only
    /// inside one listing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) link: Option<LinkGroup>,
}

/// The number of a file with several names.
pub(crate) type LinkGroup = u64;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum NodeKind {
    Directory,
    File { size: u64, digest: Digest },
    Symlink { target: String },
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

impl Node {
    pub(crate) fn is_directory(&self) -> bool {
        self.kind == NodeKind::Directory
    }

    pub(crate) fn is_device(&self) -> bool {
        matches!(self.kind, NodeKind::CharDevice { .. } | NodeKind::BlockDevice { .. })
    }

    /// Adds all that a copy of the node would have to a cache key: not the time. Other names
    /// of it are for the caller to add, who knows which are copied.
    pub(crate) fn add_to(&self, key: &mut KeyHasher) {
        match &self.kind {
            NodeKind::Directory => key.text("directory", ""),
            NodeKind::File { size, digest } => {
                key.digest("file", digest);
                key.number("size", *size);
            }
            NodeKind::Symlink { target } => key.text("symlink", target),
            NodeKind::CharDevice { major, minor } => {
                key.text("char device", &format!("{major}:{minor}"));
            }
            NodeKind::BlockDevice { major, minor } => {
                key.text("block device", &format!("{major}:{minor}"));
            }
            NodeKind::Fifo => key.text("fifo", ""),
        }
        key.number("mode", self.mode.into());
        key.number("uid", self.uid.into());
        key.number("gid", self.gid.into());
        for (name, value) in &self.xattrs {
            key.text("xattr", name);
            key.bytes("value", value);
        }
    }
}

/// Which names of a listing are of one file. Asked for each node in order.
#[derive(Default)]
pub(crate) struct FirstNames(HashMap<LinkGroup, String>);

impl FirstNames {
    /// The first name that a node had before `path`; none if this is the first.
    pub(crate) fn before(&mut self, path: &str, node: &Node) -> Option<&str> {
        match self.0.entry(node.link?) {
            Entry::Occupied(first) => Some(first.into_mut()),
            Entry::Vacant(place) => {
                place.insert(path.to_owned());
                None
            }
        }
    }

    /// As [`Node::add_to`], and which name before it the node has.
    pub(crate) fn add_to(&mut self, path: &str, node: &Node, key: &mut KeyHasher) {
        node.add_to(key);
        if let Some(first) = self.before(path, node) {
            key.text("hard link", first);
        }
    }
}

/// A fixed listing of files, and the bytes of those files.
pub(crate) trait Tree: Send + Sync {
    /// What is at a path, links not followed.
    fn node(&self, path: &str) -> Option<Node>;

    /// Names in a folder, sorted; empty for anything else.
    fn children(&self, path: &str) -> Vec<String>;

    /// The bytes of a file. What is read must be checked against the node's digest by
    /// whoever relies on it.
    fn open(&self, path: &str) -> io::Result<Box<dyn io::Read + Send>>;

    /// Why a node could not be read, if that ever happened: it counted as absent, and nothing may be
    /// concluded from that. To be asked by whoever has looked at some.
    fn failure(&self) -> Option<io::Error>;
}

/// Whether all that was looked at in a tree could be read.
pub(crate) fn check_read(tree: &dyn Tree) -> Result<(), BuildError> {
    let doing = || "read which files there are".to_owned();
    tree.failure().map_or(Ok(()), |source| Err(BuildError::Io { doing: doing(), source }))
}

/// A tree with nothing in it.
pub(crate) struct NoFiles;

impl Tree for NoFiles {
    fn node(&self, _: &str) -> Option<Node> {
        None
    }

    fn children(&self, _: &str) -> Vec<String> {
        Vec::new()
    }

    fn open(&self, _: &str) -> io::Result<Box<dyn io::Read + Send>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn failure(&self) -> Option<io::Error> {
        None
    }
}

/// More links than this on one way are a loop, as in the kernel.
const LINKS_MAX: usize = 255;

/// A path goes round in circles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LinkLoop;

/// Where a path leads inside a tree: links on the way are followed (absolute ones from the
/// tree's root, `..` stopping there), the last one only if `follow_last`. What is missing is
/// taken as written.
pub(crate) fn resolve(
    node: &dyn Fn(&str) -> Option<Node>,
    path: &str,
    follow_last: bool,
) -> Result<String, LinkLoop> {
    let mut done = String::new();
    let mut rest: Vec<String> = components(path).rev().map(str::to_owned).collect();
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == ".." {
            done.truncate(parent(&done).len());
            continue;
        }
        let here = join(&done, &name);
        let link = match node(&here).map(|node| node.kind) {
            Some(NodeKind::Symlink { target }) if follow_last || !rest.is_empty() => target,
            _ => {
                done = here;
                continue;
            }
        };
        links += 1;
        if links > LINKS_MAX || rest.len() > 4096 {
            return Err(LinkLoop);
        }
        if link.starts_with('/') {
            done.clear();
        }
        rest.extend(components(&link).rev().map(str::to_owned));
    }
    Ok(done)
}

/// The parts of a path that mean something: no empty ones, no `.`.
pub(crate) fn components(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".")
}

pub(crate) fn join(folder: &str, name: &str) -> String {
    match folder.is_empty() {
        true => name.to_owned(),
        false => format!("{folder}/{name}"),
    }
}

/// The folder a path is in; of the root, the root.
pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

pub(crate) fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// The folders above a path, topmost first, without the root.
pub(crate) fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(end, _)| &path[..end])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn link(target: &str) -> Option<Node> {
        let kind = NodeKind::Symlink { target: target.to_owned() };
        Some(Node { kind, mode: 0o777, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new(), link: None })
    }

    fn links(path: &str) -> Option<Node> {
        match path {
            "lib" => link("usr/lib"),
            "etc/up" => link("../../../../var"),
            "var/run" => link("/run"),
            "loop" => link("loop"),
            "usr/lib/last" => link("libc.so"),
            _ => None,
        }
    }

    #[test]
    fn links_are_followed_inside_the_root() {
        let resolve = |path, last| resolve(&links, path, last);
        assert_eq!(resolve("/lib/x", true), Ok("usr/lib/x".into()));
        assert_eq!(resolve("etc/up/run/pid", true), Ok("run/pid".into()));
        assert_eq!(resolve("../../etc", true), Ok("etc".into()));
        assert_eq!(resolve("lib/last", true), Ok("usr/lib/libc.so".into()));
        assert_eq!(resolve("lib/last", false), Ok("usr/lib/last".into()));
        assert_eq!(resolve("a/./b//c/..", true), Ok("a/b".into()));
        assert_eq!(resolve("loop/x", true), Err(LinkLoop));
    }

    #[test]
    fn ancestors_come_topmost_first() {
        assert_eq!(ancestors("a/b/c").collect::<Vec<_>>(), ["a", "a/b"]);
        assert_eq!(ancestors("a").count(), 0);
    }

    proptest! {
        #[test]
        fn no_path_and_no_link_leads_outside(path in "[./a-c]{0,20}", target in "[./a-c]{0,12}") {
            let node = |here: &str| if here.ends_with('a') { link(&target) } else { None };
            if let Ok(done) = resolve(&node, &path, true) {
                prop_assert!(!done.starts_with('/'));
                prop_assert!(components(&done).all(|part| part != ".."));
            }
        }
    }
}
