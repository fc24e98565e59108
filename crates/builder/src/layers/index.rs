//! What is in a layer, without its bytes; and what layers upon each other give.
//!
//! A layer may have a million entries, so names are in memory and the rest is text in a file.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, BufRead, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::lines::{LINE_SIZE_MAX, Lines};
use crate::name::{bytes_of, text_of};
use crate::path_map::{NoPlace, PathMap};
use crate::tree::{LinkGroup, Node, NodeKind, file_name, join, parent};

/// Changes when indexes say more, or say it otherwise; an older one is made anew from its
/// layer.
const INDEX_FORMAT: u32 = 6;

/// The first line of an index.
#[derive(Serialize, Deserialize)]
struct Head {
    format: u32,
}

const HEAD_SIZE_MAX: u64 = 64;

/// Bytes of files that an index has of its layer; others are read from the layer.
const CONTENTS_MAX: usize = 1 << 20;

/// Those above the paths of entries are counted too.
const PATHS_MAX: usize = 10_000_000;

/// The lines of two layers differ in the bits from here on when they name files with several
/// names.
const LAYER_SHIFT: u32 = 40;

/// Every path of a layer (architecture.md decision 10), in the order of its tar: lines of JSON, one
/// for each entry. An entry is named by the byte at which its line begins. What says who an image's
/// users are is there too, so that names of owners need no layer.
#[derive(Debug)]
pub(crate) struct LayerIndex {
    paths: PathMap<Slot>,
    lines: Lines,
    /// Entries that have other names.
    linked: HashSet<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum IndexEntry {
    #[serde(rename = "n")]
    Node {
        path: String,
        node: Node,
        /// The bytes of a file that the index keeps, as [names](crate::name) are.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        content: Option<String>,
    },
    /// Another name of an entry before it.
    #[serde(rename = "l")]
    Link { path: String, first: u64 },
    /// The path is gone from the layers below.
    #[serde(rename = "w")]
    Whiteout { path: String },
    /// All that the layers below have in the folder is gone.
    #[serde(rename = "o")]
    Opaque { path: String },
}

impl IndexEntry {
    /// An entry for what a tar names: whiteouts are told by their names.
    pub(crate) fn from_tar(path: String, node: Node) -> Self {
        let name = file_name(&path);
        if name == ".wh..wh..opq" {
            return Self::Opaque { path: parent(&path).to_owned() };
        }
        // A mark of the kernel's overlays, which it is once it is unpacked.
        if matches!(node.kind, NodeKind::CharDevice { major: 0, minor: 0 }) {
            return Self::Whiteout { path };
        }
        match name.strip_prefix(".wh.") {
            Some(gone) => Self::Whiteout { path: join(parent(&path), gone) },
            None => Self::Node { path, node, content: None },
        }
    }

    /// Gives a file its bytes.
    pub(crate) fn set_content(&mut self, bytes: &[u8]) {
        if let Self::Node { content, .. } = self {
            *content = Some(text_of(bytes));
        }
    }
}

/// What a layer says of one path: an entry, of 40 bits, and marks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Slot {
    entry: [u8; 5],
    marks: u8,
}

impl Slot {
    /// The layer has an entry for it.
    const ENTRY: u8 = 1;
    /// That is a folder.
    const FOLDER: u8 = 2;
    /// Something below it has an entry: so it is a folder, whatever the layers below say.
    const IMPLIED: u8 = 4;
    /// The layers below have nothing to say of it, nor of what is below it.
    const HIDDEN: u8 = 8;
    /// Nor of what is below it.
    const OPAQUE: u8 = 16;

    fn is(self, marks: u8) -> bool {
        self.marks & marks != 0
    }

    fn is_file(self) -> bool {
        self.is(Self::ENTRY) && !self.is(Self::FOLDER)
    }

    fn entry(self) -> u64 {
        let [a, b, c, d, e] = self.entry;
        u64::from_le_bytes([a, b, c, d, e, 0, 0, 0])
    }

    fn set_entry(&mut self, entry: u64, is_folder: bool) {
        // A file that was here has hidden all below it.
        let was_file = if self.is_file() { Self::HIDDEN } else { 0 };
        let [a, b, c, d, e, ..] = entry.to_le_bytes();
        self.entry = [a, b, c, d, e];
        let hiding = self.marks & (Self::HIDDEN | Self::OPAQUE) | was_file;
        self.marks = hiding | Self::ENTRY | if is_folder { Self::FOLDER } else { 0 };
    }

    /// Makes it a folder, unless it is one.
    fn imply(&mut self) {
        if self.is_file() {
            self.marks = Self::HIDDEN;
        }
        self.marks |= Self::IMPLIED;
    }
}

/// What a layer says of a path, and of what is below it.
struct Look {
    /// Its number, unless the layer does not speak of it.
    number: Option<usize>,
    /// What the layer says; nothing if that is all there is.
    slot: Slot,
    /// Whether layers below have nothing to add.
    is_hidden: bool,
}

impl LayerIndex {
    /// Reads what [`Self::text`] gave; nothing if it is of another version. `spools` is as for
    /// [`IndexWriter::new`].
    pub(crate) fn read(mut text: impl BufRead, spools: &Path) -> io::Result<Option<Self>> {
        let mut line = Vec::new();
        text.by_ref().take(HEAD_SIZE_MAX).read_until(b'\n', &mut line)?;
        if !serde_json::from_slice(&line).is_ok_and(|head: Head| head.format == INDEX_FORMAT) {
            return Ok(None);
        }
        let mut writer = IndexWriter::new(spools);
        loop {
            line.clear();
            text.by_ref().take(LINE_SIZE_MAX as u64).read_until(b'\n', &mut line)?;
            if line.is_empty() {
                return Ok(Some(writer.finish()));
            }
            let entry = serde_json::from_slice(&line)?;
            writer.push_line(&entry, |text| {
                text.extend_from_slice(&line);
                Ok(())
            })?;
        }
    }

    /// All that it says.
    pub(crate) fn text(&self) -> impl BufRead + '_ {
        self.lines.text()
    }

    /// All entries in order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = io::Result<(u64, IndexEntry)>> + '_ {
        let mut text = self.lines.text();
        let mut line = Vec::new();
        let mut next = text.read_until(b'\n', &mut line).map(|size| size as u64);
        std::iter::from_fn(move || {
            let mut read = || {
                let here = *next.as_ref().map_err(|error| io::Error::from(error.kind()))?;
                line.clear();
                let size = text.read_until(b'\n', &mut line)? as u64;
                next = Ok(here + size);
                let entry = || serde_json::from_slice(&line).map(|entry| (here, entry));
                (size > 0).then(entry).transpose().map_err(io::Error::from)
            };
            read().transpose()
        })
    }

    /// Whether something of it could not be read.
    pub(crate) fn has_failed(&self) -> bool {
        self.lines.failure().is_some()
    }

    /// About how many bytes of memory it takes.
    pub(crate) fn memory(&self) -> usize {
        self.paths.memory() + self.lines.memory() + self.linked.len() * 16
    }

    fn look(&self, path: &str) -> Look {
        let (mut number, mut is_hidden) = (0, false);
        for name in path.split('/').filter(|_| !path.is_empty()) {
            let above = *self.paths.value(number);
            // Nothing is below a file.
            is_hidden |= above.is_file() || above.is(Slot::HIDDEN | Slot::OPAQUE);
            match self.paths.find_below(number, name) {
                Some(found) => number = found,
                None => return Look { number: None, slot: Slot::default(), is_hidden },
            }
        }
        let slot = *self.paths.value(number);
        Look { number: Some(number), slot, is_hidden: is_hidden || slot.is(Slot::HIDDEN) }
    }

    /// An entry that is no mark, with its path.
    fn entry(&self, entry: u64) -> io::Result<(String, Node)> {
        self.lines.read(entry, parse_node)
    }

    /// As [`Self::entry`]; nothing if it cannot be read, which [`Lines::failure`] then tells.
    fn node(&self, entry: u64) -> Option<Node> {
        let (_, mut node) = self.lines.get(entry, parse_node)?;
        node.link = self.linked.contains(&entry).then_some(entry);
        Some(node)
    }

    /// The bytes of a file, if they are here.
    fn content(&self, entry: u64) -> Option<Vec<u8>> {
        let content = self.lines.get(entry, |line| match serde_json::from_slice(line)? {
            IndexEntry::Node { content, .. } => Ok(content),
            _ => Err(no_file()),
        })?;
        content.map(|text| bytes_of(&text).into_owned())
    }
}

fn parse_node(line: &[u8]) -> io::Result<(String, Node)> {
    match serde_json::from_slice(line)? {
        IndexEntry::Node { path, node, .. } => Ok((path, node)),
        _ => Err(no_file()),
    }
}

fn no_file() -> io::Error {
    io::Error::other("an entry of a layer's index is no file")
}

/// An index that is being made.
pub(crate) struct IndexWriter {
    index: LayerIndex,
    count: usize,
    /// Bytes of files so far.
    contents: usize,
    spools: PathBuf,
}

impl IndexWriter {
    /// What is too much for memory goes into a nameless file in the folder `spools`.
    pub(crate) fn new(spools: &Path) -> Self {
        let head = serde_json::to_vec(&Head { format: INDEX_FORMAT });
        let mut head = head.expect("plain structs serialize");
        head.push(b'\n');
        let (paths, linked) = Default::default();
        let index = LayerIndex { paths, lines: Lines::of_text(head), linked };
        Self { index, count: 0, contents: 0, spools: spools.to_owned() }
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// What the next entry will be named by.
    pub(crate) fn next(&self) -> u64 {
        self.index.lines.end()
    }

    /// Whether the entry of a file is to have its bytes. The users of an image may be in another
    /// folder than `/etc`, where links lead to.
    pub(crate) fn keeps_content(&self, path: &str, size: u64) -> bool {
        let left = CONTENTS_MAX.saturating_sub(self.contents);
        matches!(file_name(path), "passwd" | "group") && size <= left as u64
    }

    pub(crate) fn push(&mut self, entry: &IndexEntry) -> io::Result<()> {
        self.push_line(entry, |text| {
            serde_json::to_writer(&mut *text, entry)?;
            text.push(b'\n');
            Ok(())
        })
    }

    fn push_line(
        &mut self,
        entry: &IndexEntry,
        write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<()> {
        let here = self.next();
        if here >> LAYER_SHIFT > 0 {
            return Err(io::Error::other("what it says of its entries is more than 1 TiB"));
        }
        if self.index.paths.len() >= PATHS_MAX {
            return Err(io::Error::other(format!("it has more than {PATHS_MAX} paths")));
        }
        self.note(here, entry).map_err(|_| io::Error::other("it has more names than we count"))?;
        self.count += 1;
        if let IndexEntry::Node { content: Some(content), .. } = entry {
            self.contents += content.len();
        }
        self.index.lines.push(write, || super::nameless_file(&self.spools))
    }

    /// The entry of a file, by its latest path.
    pub(crate) fn find(&self, path: &str) -> Option<u64> {
        let slot = self.index.paths.get(path)?;
        slot.is_file().then(|| slot.entry())
    }

    /// An entry that another name is to be given, and its path.
    pub(crate) fn entry(&self, entry: u64) -> io::Result<(String, Node)> {
        self.index.entry(entry)
    }

    pub(crate) fn finish(self) -> LayerIndex {
        self.index
    }

    fn note(&mut self, here: u64, entry: &IndexEntry) -> Result<(), NoPlace> {
        match entry {
            IndexEntry::Node { path, node, .. } => self.place(path, here, node.is_directory()),
            IndexEntry::Link { path, first } => {
                self.index.linked.insert(*first);
                self.place(path, *first, false)
            }
            IndexEntry::Whiteout { path } if !path.is_empty() => self.mark(path, Slot::HIDDEN),
            IndexEntry::Whiteout { path } | IndexEntry::Opaque { path } => {
                self.mark(path, Slot::OPAQUE)
            }
        }
    }

    fn mark(&mut self, path: &str, mark: u8) -> Result<(), NoPlace> {
        let paths = &mut self.index.paths;
        let number = paths.find_or_insert(path, Slot::default)?;
        paths.value_mut(number).marks |= mark;
        Ok(())
    }

    fn place(&mut self, path: &str, entry: u64, is_folder: bool) -> Result<(), NoPlace> {
        let paths = &mut self.index.paths;
        if path.is_empty() {
            if is_folder {
                paths.value_mut(0).set_entry(entry, true);
            }
            return Ok(());
        }
        // The layer takes for granted that those above it are folders.
        let number = paths.find_or_insert_below(path, Slot::default, Slot::imply)?;
        if !is_folder {
            paths.remove_below(number);
        }
        paths.value_mut(number).set_entry(entry, is_folder);
        Ok(())
    }
}

/// The files of an image: all its layers upon each other, the lowest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Merged {
    layers: Vec<Arc<LayerIndex>>,
}

/// A node and the layer it comes from, counted from the bottom.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) node: Node,
    pub(crate) layer: usize,
    /// The entry of that layer; none for a folder that it takes for granted.
    pub(crate) entry: Option<u64>,
}

impl Placed {
    fn folder(layer: usize) -> Self {
        Self { node: crate::copy::new_folder(None, 0), layer, entry: None }
    }
}

impl Merged {
    pub(crate) fn new(layers: Vec<Arc<LayerIndex>>) -> Self {
        Self { layers }
    }

    pub(crate) fn layers(&self) -> &[Arc<LayerIndex>] {
        &self.layers
    }

    /// What is at a path. What cannot be read counts as absent, and [`Self::failure`] says why.
    pub(crate) fn get(&self, path: &str) -> Option<Placed> {
        // An image without files has a root folder all the same.
        let mut implied = path.is_empty().then_some(0);
        for (layer, index) in self.layers.iter().enumerate().rev() {
            let Look { slot, is_hidden, .. } = index.look(path);
            if slot.is_file() && implied.is_some() {
                break;
            }
            if slot.is(Slot::ENTRY) {
                let entry = slot.entry();
                let mut node = index.node(entry)?;
                node.link = node.link.map(|link| (layer as LinkGroup) << LAYER_SHIFT | link);
                return Some(Placed { node, layer, entry: Some(entry) });
            }
            if slot.is(Slot::IMPLIED) {
                implied = Some(layer);
            }
            if is_hidden {
                break;
            }
        }
        implied.map(Placed::folder)
    }

    /// The bytes of a file, if an index has them.
    pub(crate) fn content(&self, placed: &Placed) -> Option<Vec<u8>> {
        self.layers[placed.layer].content(placed.entry?)
    }

    /// The names in a folder, sorted.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let mut names = BTreeMap::new();
        for index in self.layers.iter().rev() {
            let Look { number, slot, is_hidden } = index.look(folder);
            if slot.is_file() {
                break;
            }
            for (number, name) in number.into_iter().flat_map(|number| index.paths.below(number)) {
                let below = index.paths.value(number);
                let is_there = below.is(Slot::ENTRY | Slot::IMPLIED);
                if is_there || below.is(Slot::HIDDEN) {
                    names.entry(name).or_insert(is_there);
                }
            }
            if is_hidden || slot.is(Slot::OPAQUE) {
                break;
            }
        }
        let there = names.into_iter().filter(|(_, is_there)| *is_there);
        there.map(|(name, _)| name.to_owned()).collect()
    }

    /// Gives all paths to `each`, folders before what is in them.
    pub(crate) fn walk(
        &self,
        each: &mut dyn FnMut(&str, Placed) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut next = vec![String::new()];
        while let Some(path) = next.pop() {
            let unreadable = || self.failure().unwrap_or_else(|| io::ErrorKind::NotFound.into());
            let placed = self.get(&path).ok_or_else(unreadable)?;
            if placed.node.is_directory() {
                next.extend(self.names(&path).iter().rev().map(|name| join(&path, name)));
            }
            each(&path, placed)?;
        }
        Ok(())
    }

    /// Why something could not be read, if that ever happened.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        self.layers.iter().find_map(|index| index.lines.failure())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tree::ancestors;

    /// Paths in words: those with a slash at the end are folders, those with `=` other names of
    /// what follows it.
    fn layer(text: &str) -> LayerIndex {
        let mut writer = IndexWriter::new(&std::env::temp_dir());
        for word in text.split_whitespace() {
            let entry = match word.split_once('=') {
                Some((path, first)) => {
                    let first = writer.find(first).unwrap();
                    IndexEntry::Link { path: path.to_owned(), first }
                }
                None => of_tar(word),
            };
            writer.push(&entry).unwrap();
        }
        writer.finish()
    }

    fn of_tar(word: &str) -> IndexEntry {
        let (path, kind) = match word.strip_suffix('/') {
            Some(path) => (path, NodeKind::Directory),
            None => (word, NodeKind::Fifo),
        };
        IndexEntry::from_tar(path.to_owned(), Node { kind, ..crate::copy::new_folder(None, 0) })
    }

    fn of_layers(layers: &[&str]) -> Merged {
        Merged::new(layers.iter().map(|text| Arc::new(layer(text))).collect())
    }

    /// Paths with the layers they come from, and a slash for folders.
    fn all(merged: &Merged) -> Vec<String> {
        let mut all = Vec::new();
        let mut each = |path: &str, placed: Placed| {
            let slash = if placed.node.is_directory() { "/" } else { "" };
            all.push(format!("{path}{slash}:{}", placed.layer));
            Ok(())
        };
        merged.walk(&mut each).unwrap();
        all.remove(0);
        all.sort();
        all
    }

    fn merged(layers: &[&str]) -> String {
        all(&of_layers(layers)).join(" ")
    }

    #[test]
    fn whiteouts_hide_what_is_below_and_nothing_else() {
        assert_eq!(merged(&["a/ a/x a/y b", "a/ a/.wh.x c"]), "a/:1 a/y:0 b:0 c:1");
        assert_eq!(merged(&["a/ a/x", "a/ a/new a/.wh..wh..opq"]), "a/:1 a/new:1");
        assert_eq!(merged(&["a/ a/b/ a/b/c", ".wh.a"]), "");
        assert_eq!(merged(&["a/ a/x", ".wh.a a/ a/y"]), "a/:1 a/y:1");
        assert_eq!(merged(&["a/ a/x b", ".wh..wh..opq c"]), "c:1");
        assert_eq!(merged(&["a/ a/x", "a/.wh.x/y"]), "a/.wh.x/:1 a/.wh.x/y:1 a/:0 a/x:0");
    }

    #[test]
    fn a_file_hides_a_folder_and_a_folder_joins_one() {
        assert_eq!(merged(&["a/ a/x", "a"]), "a:1");
        assert_eq!(merged(&["a", "a/ a/x"]), "a/:1 a/x:1");
        assert_eq!(merged(&["a/ a/x", "a/y"]), "a/:0 a/x:0 a/y:1");
        assert_eq!(merged(&["a/ a/x", "a", "a/y"]), "a/:2 a/y:2");
        // Within one layer, the last word counts.
        assert_eq!(merged(&["a/ a/x", "a a/y"]), "a/:1 a/y:1");
        assert_eq!(merged(&["a/ a/x", "a/y a"]), "a:1");
    }

    #[test]
    fn an_image_without_layers_has_a_root() {
        let merged = Merged::default();
        assert!(merged.get("").unwrap().node.is_directory());
        assert!(merged.get("a").is_none() && merged.names("").is_empty());
    }

    #[test]
    fn names_of_one_file_have_a_number_in_common() {
        let merged = of_layers(&["a b=a c", "d/ d/e d/f=d/e"]);
        let link = |path| merged.get(path).unwrap().node.link;
        assert!(link("a").is_some() && link("a") == link("b") && link("c").is_none());
        assert!(link("d/e").is_some() && link("d/e") == link("d/f") && link("a") != link("d/e"));
    }

    #[test]
    fn an_index_is_read_as_it_was_written() {
        let index = layer("a b=a d/ d/.wh.x e/.wh..wh..opq");
        let mut text = Vec::new();
        index.text().read_to_end(&mut text).unwrap();
        let read = LayerIndex::read(&text[..], &std::env::temp_dir()).unwrap().unwrap();
        let entries = |index: &LayerIndex| index.entries().collect::<io::Result<Vec<_>>>().unwrap();
        assert_eq!(entries(&read), entries(&index));
        assert_eq!((&read.paths, &read.linked), (&index.paths, &index.linked));
        let first = entries(&index)[0].clone();
        assert_eq!(entries(&index)[1].1, IndexEntry::Link { path: "b".to_owned(), first: first.0 });
        let read = |text: &str| LayerIndex::read(text.as_bytes(), &std::env::temp_dir());
        assert!(read("{\"format\":4,\"entries\":[]}").unwrap().is_none());
        assert!(read("").unwrap().is_none());
        assert!(read(&format!("{{\"format\":{INDEX_FORMAT}}}\nno entry")).is_err());
        let cut = &text[..text.len() - 2];
        assert!(LayerIndex::read(cut, &std::env::temp_dir()).is_err());
    }

    #[test]
    fn small_files_that_tell_of_users_are_kept() {
        let mut writer = IndexWriter::new(&std::env::temp_dir());
        assert!(!writer.keeps_content("etc/shadow", 1) && writer.keeps_content("nix/s-1/group", 1));
        assert!(!writer.keeps_content("etc/passwd", CONTENTS_MAX as u64 + 1));
        let bytes = b"app:x:1:2::/\xff:\n\0";
        let mut entry = of_tar("etc/passwd");
        entry.set_content(bytes);
        writer.push(&entry).unwrap();
        writer.push(&of_tar("etc/group")).unwrap();
        let link =
            IndexEntry::Link { path: "p".to_owned(), first: writer.find("etc/passwd").unwrap() };
        writer.push(&link).unwrap();
        assert!(
            writer.keeps_content("group", 1) && !writer.keeps_content("group", CONTENTS_MAX as u64)
        );
        let mut text = Vec::new();
        writer.finish().text().read_to_end(&mut text).unwrap();
        let read = LayerIndex::read(&text[..], &std::env::temp_dir()).unwrap().unwrap();
        let merged = Merged::new(vec![Arc::new(read), Arc::new(layer("etc/other"))]);
        let content = |path| merged.content(&merged.get(path).unwrap());
        assert_eq!(content("etc/passwd").as_deref(), Some(&bytes[..]));
        assert_eq!(content("p"), content("etc/passwd"));
        assert_eq!(
            (content("etc/group"), content("etc/other"), content("etc")),
            (None, None, None)
        );
        assert!(merged.failure().is_none());
    }

    /// The same as plain as can be.
    #[derive(Default)]
    struct Model(BTreeMap<String, (bool, usize)>);

    impl Model {
        fn add(&mut self, layer: &str, number: usize) {
            let entries: Vec<IndexEntry> = layer.split_whitespace().map(of_tar).collect();
            for entry in &entries {
                match entry {
                    IndexEntry::Whiteout { path } => {
                        self.remove_below(path);
                        self.0.remove(path);
                    }
                    IndexEntry::Opaque { path } => self.remove_below(path),
                    _ => (),
                }
            }
            for entry in &entries {
                let IndexEntry::Node { path, node, .. } = entry else { continue };
                if !node.is_directory() {
                    self.remove_below(path);
                }
                for above in ancestors(path) {
                    let above = self.0.entry(above.to_owned()).or_insert((true, number));
                    if !above.0 {
                        *above = (true, number);
                    }
                }
                self.0.insert(path.clone(), (node.is_directory(), number));
            }
        }

        fn remove_below(&mut self, path: &str) {
            let below = if path.is_empty() { String::new() } else { format!("{path}/") };
            self.0.retain(|path, _| !path.starts_with(&below));
        }

        fn all(&self) -> Vec<String> {
            let slash = |is_folder: bool| if is_folder { "/" } else { "" };
            let all = self.0.iter();
            let mut all: Vec<String> = all
                .map(|(path, (is_folder, layer))| format!("{path}{}:{layer}", slash(*is_folder)))
                .collect();
            all.sort();
            all
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn layers_give_what_they_give_one_after_the_other(layers in proptest::collection::vec(
            "((([ab0-]|ab)/){0,2}((\\.wh\\.)?([ab0-]|ab)/?|\\.wh\\.\\.wh\\.\\.opq) ){0,8}", 1..5))
        {
            let layers: Vec<&str> = layers.iter().map(String::as_str).collect();
            let mut model = Model::default();
            for (number, layer) in layers.iter().enumerate() {
                model.add(layer, number);
            }
            prop_assert_eq!(all(&of_layers(&layers)), model.all());
        }
    }
}
