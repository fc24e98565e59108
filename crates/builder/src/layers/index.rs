//! What is in a layer, without its bytes; and what layers upon each other give.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::tree::{LinkGroup, Node, file_name, parent};

/// Changes when indexes say more, or say it otherwise; an older one is made anew from its
/// layer.
pub(crate) const INDEX_FORMAT: u32 = 4;

/// Every path of a layer (architecture.md decision 10), in the order of its tar.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LayerIndex {
    /// Absent in the first.
    #[serde(default)]
    pub(crate) format: u32,
    pub(crate) entries: Vec<IndexEntry>,
}

impl Default for LayerIndex {
    fn default() -> Self {
        Self { format: INDEX_FORMAT, entries: Vec::new() }
    }
}

impl LayerIndex {
    /// What another name of an entry has: the path that it links to, and the same node. The
    /// number of a file's first entry is what its names have in common.
    pub(crate) fn link(&mut self, entry: usize) -> Option<(String, Node)> {
        let Some(IndexEntry::Node { path, node }) = self.entries.get_mut(entry) else {
            return None;
        };
        if node.is_directory() {
            return None;
        }
        node.link.get_or_insert(entry as LinkGroup);
        Some((path.clone(), node.clone()))
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum IndexEntry {
    #[serde(rename = "n")]
    Node { path: String, node: Node },
    /// The path is gone from the layers below.
    #[serde(rename = "w")]
    Whiteout { path: String },
    /// All that the layers below have in the folder is gone.
    #[serde(rename = "o")]
    Opaque { path: String },
}

/// The files of an image: all its layers upon each other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Merged {
    /// By path; the folders above a path are always there.
    nodes: BTreeMap<String, Placed>,
}

/// A node and the layer it comes from, counted from the bottom.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) node: Arc<Node>,
    pub(crate) layer: usize,
}

impl Merged {
    /// An image without files has a root folder all the same.
    pub(crate) fn new() -> Self {
        let root = crate::copy::new_folder(None, 0);
        let placed = Placed { node: Arc::new(root), layer: 0 };
        Self { nodes: BTreeMap::from([(String::new(), placed)]) }
    }

    /// Puts a layer on top.
    pub(crate) fn add(&mut self, index: &LayerIndex, layer: usize) {
        for entry in &index.entries {
            match entry {
                IndexEntry::Whiteout { path } => self.remove(path, true),
                IndexEntry::Opaque { path } => self.remove(path, false),
                IndexEntry::Node { .. } => (),
            }
        }
        for entry in &index.entries {
            let IndexEntry::Node { path, node } = entry else { continue };
            if path.is_empty() && !node.is_directory() {
                continue;
            }
            if !node.is_directory() {
                self.remove(path, false);
            }
            self.add_parents(path, layer);
            let mut node = node.clone();
            // Numbers are those of one layer; a layer has far fewer than 2³² entries.
            node.link = node.link.map(|link| (layer as LinkGroup) << 32 | link);
            self.nodes.insert(path.clone(), Placed { node: Arc::new(node), layer });
        }
    }

    /// Folders that a layer takes for granted.
    fn add_parents(&mut self, path: &str, layer: usize) {
        for above in crate::tree::ancestors(path) {
            let is_folder = self.nodes.get(above).is_some_and(|there| there.node.is_directory());
            if !is_folder {
                let node = Arc::new(crate::copy::new_folder(None, 0));
                self.nodes.insert(above.to_owned(), Placed { node, layer });
            }
        }
    }

    /// Removes what is below a path, and the path itself too.
    fn remove(&mut self, path: &str, itself: bool) {
        let below = if path.is_empty() { String::new() } else { format!("{path}/") };
        let gone: Vec<String> = (self.nodes.range(below.clone()..))
            .map(|(path, _)| path)
            .take_while(|path| path.starts_with(&below))
            .filter(|path| !path.is_empty())
            .cloned()
            .collect();
        for path in &gone {
            self.nodes.remove(path);
        }
        if itself && !path.is_empty() {
            self.nodes.remove(path);
        }
    }

    /// All paths, folders before what is in them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Placed)> {
        self.nodes.iter().map(|(path, placed)| (path.as_str(), placed))
    }

    pub(crate) fn get(&self, path: &str) -> Option<&Placed> {
        self.nodes.get(path)
    }

    /// The names in a folder, sorted.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let below = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let mut names = Vec::new();
        let mut from = below.clone();
        // What lies deeper is jumped over: `0` follows `/`.
        while let Some((path, _)) = self.nodes.range(from..).find(|(path, _)| !path.is_empty()) {
            let Some(rest) = path.strip_prefix(&below) else { break };
            match rest.split_once('/') {
                None => {
                    names.push(rest.to_owned());
                    from = format!("{path}\0");
                }
                Some((name, _)) => from = format!("{below}{name}0"),
            }
        }
        names
    }
}

impl IndexEntry {
    /// An entry for what a tar names: whiteouts are told by their names.
    pub(crate) fn from_tar(path: String, node: Node) -> Self {
        let name = file_name(&path);
        if name == ".wh..wh..opq" {
            return Self::Opaque { path: parent(&path).to_owned() };
        }
        match name.strip_prefix(".wh.") {
            Some(gone) => Self::Whiteout { path: crate::tree::join(parent(&path), gone) },
            None => Self::Node { path, node },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::NodeKind;

    fn layer(text: &str) -> LayerIndex {
        let entries = text.split_whitespace().map(|word| {
            let (path, kind) = match word.strip_suffix('/') {
                Some(path) => (path, NodeKind::Directory),
                None => (word, NodeKind::Fifo),
            };
            let node = Node { kind, ..crate::copy::new_folder(None, 0) };
            IndexEntry::from_tar(path.to_owned(), node)
        });
        LayerIndex { entries: entries.collect(), ..LayerIndex::default() }
    }

    fn merged(layers: &[&str]) -> String {
        let mut merged = Merged::new();
        for (number, text) in layers.iter().enumerate() {
            merged.add(&layer(text), number);
        }
        // Names must tell of the same paths as nodes.
        let mut found = Vec::new();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            for name in merged.names(&folder) {
                let path = crate::tree::join(&folder, &name);
                let placed = merged.get(&path).unwrap();
                found.push(format!("{path}:{}", placed.layer));
                folders.push(path);
            }
        }
        assert_eq!(found.len() + 1, merged.nodes.len());
        assert!(found.len() == found.iter().collect::<std::collections::BTreeSet<_>>().len());
        found.sort();
        found.join(" ")
    }

    #[test]
    fn whiteouts_hide_what_is_below_and_nothing_else() {
        assert_eq!(merged(&["a/ a/x a/y b", "a/ a/.wh.x c"]), "a/y:0 a:1 b:0 c:1");
        assert_eq!(merged(&["a/ a/x", "a/ a/new a/.wh..wh..opq"]), "a/new:1 a:1");
        assert_eq!(merged(&["a/ a/b/ a/b/c", ".wh.a"]), "");
        assert_eq!(merged(&["a/ a/x", ".wh.a a/ a/y"]), "a/y:1 a:1");
    }

    #[test]
    fn a_file_hides_a_folder_and_a_folder_joins_one() {
        assert_eq!(merged(&["a/ a/x", "a"]), "a:1");
        assert_eq!(merged(&["a", "a/ a/x"]), "a/x:1 a:1");
        assert_eq!(merged(&["a/ a/x", "a/y"]), "a/x:0 a/y:1 a:0");
    }

    proptest::proptest! {
        #[test]
        fn names_tell_of_all_paths(layers in proptest::collection::vec("([a0-]{1,2}(/[a0-]{1,2}){0,2}/? ){0,8}", 1..4)) {
            let layers: Vec<&str> = layers.iter().map(String::as_str).collect();
            merged(&layers);
        }
    }
}
