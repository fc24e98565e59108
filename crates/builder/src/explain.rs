//! Why a result was in the cache, or why not.
//!
//! Each new cache entry keeps its [`Detail`]: what its key was hashed from, by name and as
//! short digests, so that no value can be read from it. What a stage was made of before is in
//! its [`Trail`], an entry of its own. An explanation is the first difference between the
//! detail of now and that of the most similar build of the trail. Everything here is pure;
//! `stage` reads and writes.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use oci::{Digest, Hasher};
use serde::{Deserialize, Serialize};

use crate::assemble::rfc3339;
use crate::copy::{Content, CopyPlan, PlannedEntry};
use crate::name::shown;
use crate::proof::Proof;
use crate::tree::{Node, NodeKind, Tree};

/// Why the cache had the result of an instruction, or did not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheExplanation {
    pub hit: bool,
    pub cause: CacheCause,
    /// The same as a sentence.
    pub text: String,
}

/// What decided. `before` is of the most similar earlier build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum CacheCause {
    /// A hit: the run that made the entry, when in seconds since 1970, and why it is right here.
    MadeBy {
        run: String,
        at: i64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<Proof>,
    },
    /// A hit of an imported cache, by the name it was given, and when its layer was made.
    Imported {
        from: String,
        at: i64,
    },
    /// The entry to hit or to compare with has no detail.
    OlderVersion,
    /// The instruction's own words.
    Text {
        before: String,
    },
    /// What an instruction above made.
    Step {
        name: String,
    },
    /// An instruction above is no longer there.
    StepRemoved,
    /// What another stage made.
    Stage {
        name: String,
    },
    /// The image of the `FROM`.
    Base {
        before: BaseName,
        after: BaseName,
    },
    /// `more` of them are not listed. `folders`: there are too many files to tell them apart.
    Files {
        changed: Vec<FileChange>,
        more: usize,
        folders: bool,
    },
    Argument {
        name: String,
    },
    /// One of these has another value; which one is not kept.
    SecretArgument {
        names: Vec<String>,
    },
    /// A variable of the environment.
    Variable {
        name: String,
    },
    /// What a mount is or brings, by its target.
    Mount {
        target: String,
    },
    Platform {
        before: String,
        after: String,
    },
    /// Something else, in words.
    Input {
        name: String,
    },
    /// A flag asked for it.
    NotAsked {
        flag: String,
    },
    /// The entry was there and had to go.
    Evicted,
    /// The entry is there and its layer is not, or not whole.
    Damaged,
    NeverBuilt,
}

/// An image by reference and digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseName {
    pub reference: String,
    pub digest: String,
}

/// A path of the source; one of the image begins with `/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileChange {
    pub path: String,
    pub changed: Vec<FilePart>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FilePart {
    Added,
    Removed,
    Content,
    Mode,
    Owner,
    /// Extended attributes, or of which file it is another name.
    Attributes,
    /// When it was changed last: counts with `SOURCE_DATE_EPOCH` only, if it is before that.
    Time,
}

impl CacheExplanation {
    pub(crate) fn hit(cause: CacheCause) -> Self {
        Self { hit: true, text: cause.sentence(true), cause }
    }

    pub(crate) fn miss(cause: CacheCause) -> Self {
        Self { hit: false, text: cause.sentence(false), cause }
    }
}

impl CacheCause {
    fn sentence(&self, hit: bool) -> String {
        let what = match self {
            Self::MadeBy { run, at, proof } => {
                let seen = match proof {
                    Some(Proof::Seen) => ", and what this sees of the image is the same",
                    _ => "",
                };
                format!("made by run {run} at {}{seen}", rfc3339(*at))
            }
            Self::Imported { from, at } => {
                format!("imported from `{from}`, made at {}", rfc3339(*at))
            }
            Self::OlderVersion => "made by an older version, no detail".to_owned(),
            Self::Text { before } => format!("the instruction changed, it was `{before}`"),
            Self::Step { name } => format!("because {name} changed"),
            Self::StepRemoved => "an instruction above was removed".to_owned(),
            Self::Stage { name } => format!("because stage `{name}` changed"),
            Self::Base { before, after } if before.reference == after.reference => {
                let (name, before, after) = (&after.reference, &before.digest, &after.digest);
                format!("base image `{name}` changed from {before} to {after}")
            }
            Self::Base { before, after } => format!(
                "base image changed from `{}` ({}) to `{}` ({})",
                before.reference, before.digest, after.reference, after.digest
            ),
            Self::Files { changed, more, folders } => files_sentence(changed, *more, *folders),
            Self::Argument { name } => format!("build argument `{name}` changed"),
            Self::SecretArgument { names } => match names.as_slice() {
                [name] => format!("secret build argument `{name}` changed"),
                names => format!("one of the secret build arguments `{}`", names.join("`, `")),
            },
            Self::Variable { name } => format!("environment variable `{name}` changed"),
            Self::Mount { target } => format!("the mount at `{target}` changed"),
            Self::Platform { before, after } => {
                format!("the platform changed from {before} to {after}")
            }
            Self::Input { name } => format!("{name} changed"),
            Self::NotAsked { flag } => format!("`{flag}` was given"),
            Self::Evicted => "the entry was evicted".to_owned(),
            Self::Damaged => "the layer of the entry is gone or damaged".to_owned(),
            Self::NeverBuilt => "never built before".to_owned(),
        };
        format!("{}: {what}", if hit { "hit" } else { "miss" })
    }
}

fn files_sentence(changed: &[FileChange], more: usize, folders: bool) -> String {
    let mut text = String::new();
    for file in changed {
        if !text.is_empty() {
            text.push_str(", ");
        }
        let parts: Vec<&str> = file.changed.iter().map(|part| part.word()).collect();
        let _ = write!(text, "`{}`: {}", file.path, parts.join(" and "));
    }
    if more > 0 {
        let _ = write!(text, ", and {more} more");
    }
    if folders {
        text.push_str(" (too many files to name them)");
    }
    text
}

impl FilePart {
    fn word(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Content => "content",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Attributes => "attributes",
            Self::Time => "time",
        }
    }
}

/// What a cache entry's key was hashed from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Detail {
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<Base>,
    /// Diff IDs of the layers below, where they count.
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Listing>,
    inputs: Vec<Input>,
}

/// What a stage stands on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Base {
    pub(crate) name: String,
    /// Of an image; else it is a stage or a folder.
    pub(crate) digest: Option<String>,
    /// How many layers it has.
    pub(crate) layers: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Input {
    kind: InputKind,
    name: String,
    /// A short digest; of a platform the name itself, of a secret nothing: a digest must not
    /// help to guess the value.
    value: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum InputKind {
    #[serde(rename = "a")]
    Argument,
    #[serde(rename = "s")]
    Secret,
    #[serde(rename = "e")]
    Variable,
    #[serde(rename = "m")]
    Mount,
    #[serde(rename = "p")]
    Platform,
    #[serde(rename = "o")]
    Other,
}

/// How much of a digest is kept: enough to tell what changed, and never relied on.
const SHORT: usize = 12;

fn short(digest: &Digest) -> String {
    digest.hex()[..SHORT].to_owned()
}

impl Detail {
    pub(crate) fn input(&mut self, kind: InputKind, name: &str, value: &[u8]) {
        let value = match kind {
            InputKind::Secret => String::new(),
            InputKind::Platform => String::from_utf8_lossy(value).into_owned(),
            _ => short(&Digest::of(value)),
        };
        self.inputs.push(Input { kind, name: name.to_owned(), value });
    }

    pub(crate) fn set_layers<'a>(
        &mut self,
        base: Option<&Base>,
        diff_ids: impl Iterator<Item = &'a Digest>,
    ) {
        self.base = base.cloned();
        self.layers = Some(diff_ids.map(short).collect());
    }

    /// `time_max` is as for [`CopyPlan::add_to`].
    pub(crate) fn set_files(&mut self, plan: &CopyPlan, source: &dyn Tree, time_max: Option<i64>) {
        self.files = Some(Listing::of(plan, source, time_max, FILES_MAX));
    }
}

/// What a `COPY` writes: paths with what they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Listing {
    /// The paths are folders, with all that is below them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    folders: bool,
    /// The prints have times.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    times: bool,
    /// How many bytes a path shares with the one before, its other bytes, and its print:
    /// content, mode, owner, attributes and time.
    files: Vec<(usize, String, String)>,
}

/// A listing with more files names folders only.
const FILES_MAX: usize = 32_768;

/// Folders below this depth are told as the one above them.
const DEPTH_MAX: usize = 12;

impl Listing {
    fn of(plan: &CopyPlan, source: &dyn Tree, time_max: Option<i64>, files_max: usize) -> Self {
        // What cannot be read is an error where it is copied.
        let entries = || plan.entries(source).filter_map(Result::ok);
        let print = |entry: &PlannedEntry| {
            let time = time_max.map(|max| entry.node.mtime.min(max));
            node_print(&entry.node, entry.first.as_deref(), time)
        };
        let files = || entries().map(|entry| (listed_path(&entry), print(&entry)));
        let archives = plan
            .archives
            .iter()
            .map(|archive| (archive.source.clone(), node_print(&archive.node, None, None)));
        let times = time_max.is_some();
        if plan.len() + plan.archives.len() <= files_max {
            return Self { times, ..Self::packed(files().chain(archives)) };
        }
        let mut folded = BTreeMap::new();
        for depth in (0..=DEPTH_MAX).rev() {
            folded.clear();
            for (path, print) in files().chain(archives.clone()) {
                let folder = folder_of(&path, depth).to_owned();
                let hasher = folded.entry(folder).or_insert_with(Hasher::sha256);
                hasher.update(path.as_bytes());
                hasher.update(print.as_bytes());
                if folded.len() > files_max {
                    break;
                }
            }
            if folded.len() <= files_max {
                break;
            }
        }
        let folded = folded.into_iter().map(|(path, hasher)| (path, short(&hasher.finish())));
        Self { folders: true, times, ..Self::packed(folded) }
    }

    fn packed(files: impl Iterator<Item = (String, String)>) -> Self {
        let mut packed = Vec::new();
        let mut before = String::new();
        for (path, print) in files {
            let alike = path.bytes().zip(before.bytes()).take_while(|(a, b)| a == b).count();
            let shared = (0..=alike).rev().find(|at| path.is_char_boundary(*at)).unwrap_or(0);
            packed.push((shared, path[shared..].to_owned(), print));
            before = path;
        }
        Self { files: packed, ..Self::default() }
    }

    fn unpacked(&self) -> Vec<(String, &str)> {
        let mut unpacked = Vec::<(String, &str)>::with_capacity(self.files.len());
        for (shared, rest, print) in &self.files {
            let before = unpacked.last().map_or("", |(path, _)| path.as_str());
            // An entry is data: what is not of the form is no reason to panic.
            let path = format!("{}{rest}", before.get(..*shared).unwrap_or_default());
            unpacked.push((path, print));
        }
        unpacked
    }

    fn changes(&self, before: &Self) -> Vec<FileChange> {
        let is_other = self.folders != before.folders;
        // Of a folder there is one print for all.
        if is_other || (self.folders && self.times != before.times) {
            return Vec::new();
        }
        let mut earlier: HashMap<String, &str> = before.unpacked().into_iter().collect();
        let mut changes = Vec::new();
        let mut push = |path: &str, changed: Vec<FilePart>| {
            if changed.is_empty() {
                return;
            }
            let path = if path.is_empty() { "." } else { path };
            changes.push(FileChange { path: shown(path).into_owned(), changed });
        };
        let mut seen = std::collections::HashSet::new();
        for (path, print) in self.unpacked() {
            // A file may be copied to several places: once is enough.
            if !seen.insert(path.clone()) {
                continue;
            }
            match earlier.remove(&path) {
                Some(was) if was == print => (),
                Some(was) => push(&path, parts(was, print)),
                None => push(&path, vec![FilePart::Added]),
            }
        }
        for path in earlier.into_keys() {
            push(&path, vec![FilePart::Removed]);
        }
        // Files that somebody edits come before what the image has around them.
        changes.sort_by(|a, b| {
            (a.path.starts_with('/'), &a.path).cmp(&(b.path.starts_with('/'), &b.path))
        });
        changes
    }
}

/// A file by its place in the source, anything else by its place in the image.
fn listed_path(entry: &PlannedEntry) -> String {
    match &entry.content {
        Some(Content::Source(path)) => path.clone(),
        _ => format!("/{}", entry.path),
    }
}

fn folder_of(path: &str, depth: usize) -> &str {
    let folder = path.rfind('/').map_or("", |at| &path[..at]);
    match folder.char_indices().filter(|(_, c)| *c == '/').nth(depth) {
        Some((at, _)) => &folder[..at],
        None if depth == 0 => "",
        None => folder,
    }
}

fn node_print(node: &Node, first: Option<&str>, time: Option<i64>) -> String {
    let content = match &node.kind {
        NodeKind::Directory => "folder".to_owned(),
        NodeKind::File { digest, .. } => short(digest),
        NodeKind::Symlink { target } => format!("link {}", short(&Digest::of(target.as_bytes()))),
        NodeKind::CharDevice { major, minor } => format!("char {major}:{minor}"),
        NodeKind::BlockDevice { major, minor } => format!("block {major}:{minor}"),
        NodeKind::Fifo => "fifo".to_owned(),
    };
    let mut text = format!("{content},{:o},{}:{}", node.mode, node.uid, node.gid);
    let has_attributes = !node.xattrs.is_empty() || first.is_some();
    if has_attributes {
        let mut hasher = Hasher::sha256();
        for (name, value) in &node.xattrs {
            hasher.update(name.as_bytes());
            hasher.update(&(value.len() as u64).to_le_bytes());
            hasher.update(value);
        }
        hasher.update(first.unwrap_or_default().as_bytes());
        let _ = write!(text, ",{}", short(&hasher.finish()));
    }
    if let Some(time) = time {
        let _ = write!(text, "{},{time}", if has_attributes { "" } else { "," });
    }
    text
}

/// Which parts of two prints differ.
fn parts(before: &str, after: &str) -> Vec<FilePart> {
    let (mut before, mut after) = (before.split(','), after.split(','));
    let mut changed = Vec::new();
    for part in [FilePart::Content, FilePart::Mode, FilePart::Owner, FilePart::Attributes] {
        // Attributes are absent where there are none.
        if before.next().unwrap_or_default() != after.next().unwrap_or_default() {
            changed.push(part);
        }
    }
    // A print without a time says nothing of it.
    if let (Some(before), Some(after)) = (before.next(), after.next())
        && before != after
    {
        changed.push(FilePart::Time);
    }
    changed
}

/// What the builds of one stage were made of, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trail {
    pub(crate) builds: Vec<TrailBuild>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TrailBuild {
    pub(crate) base: Option<Base>,
    pub(crate) steps: Vec<TrailStep>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TrailStep {
    /// The beginning of the instruction.
    text: String,
    /// Of all of it.
    print: String,
    pub(crate) key: Digest,
}

/// How many builds a trail has: some branches of one Dockerfile.
const BUILDS_MAX: usize = 8;

/// A trail is no larger than this, in bytes of JSON, but for its newest build.
const TRAIL_SIZE_MAX: usize = 64 << 10;

/// How much of an instruction is kept, in characters.
const TEXT_MAX: usize = 200;

impl TrailStep {
    pub(crate) fn new(text: &str, key: Digest) -> Self {
        Self { text: cut(text), print: short(&Digest::of(text.as_bytes())), key }
    }
}

fn cut(text: &str) -> String {
    let mut cut: String = text.chars().take(TEXT_MAX).collect();
    if cut.len() < text.len() {
        cut.push_str("...");
    }
    cut
}

impl Trail {
    pub(crate) fn parse(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain structs serialize")
    }

    /// Adds a build; those that it continues go.
    pub(crate) fn add(&mut self, build: TrailBuild) {
        self.builds.retain(|other| !build.steps.starts_with(&other.steps));
        self.builds.insert(0, build);
        self.builds.truncate(BUILDS_MAX);
        while self.builds.len() > 1 && self.to_json().len() > TRAIL_SIZE_MAX {
            self.builds.pop();
        }
    }
}

/// An instruction that missed, in its place.
pub(crate) struct Missed<'a> {
    /// Those of the stage so far; this one is the last.
    pub(crate) steps: &'a [TrailStep],
    /// All instructions of the stage.
    pub(crate) texts: &'a [String],
    pub(crate) detail: &'a Detail,
    /// Which step made each layer below, from the first on the base.
    pub(crate) made_by: &'a [String],
}

/// What there is of an earlier instruction.
pub(crate) enum Earlier<'a> {
    /// The same words.
    Same(&'a TrailStep),
    /// Other words in the same place.
    Other(&'a TrailStep),
}

impl Missed<'_> {
    /// The instruction that was this one in an earlier build.
    pub(crate) fn earlier<'t>(&self, build: &'t TrailBuild) -> Option<Earlier<'t>> {
        let (step, above) = self.steps.split_last()?;
        let nth = above.iter().filter(|other| other.print == step.print).count();
        let mut same = build.steps.iter().filter(|other| other.print == step.print);
        if let Some(found) = same.nth(nth) {
            return Some(Earlier::Same(found));
        }
        let other = build.steps.get(above.len())?;
        let is_elsewhere =
            self.texts.iter().any(|text| short(&Digest::of(text.as_bytes())) == other.print);
        (!is_elsewhere).then_some(Earlier::Other(other))
    }

    /// Why this is not what it was: the first cause, and how many differences there are.
    pub(crate) fn compare(
        &self,
        earlier: &Earlier<'_>,
        was: Option<&Detail>,
    ) -> (usize, CacheCause) {
        let was = match (earlier, was) {
            (Earlier::Other(step), _) => {
                return (usize::MAX - 1, CacheCause::Text { before: step.text.clone() });
            }
            (Earlier::Same(_), None) => return (usize::MAX - 2, CacheCause::OlderVersion),
            (Earlier::Same(_), Some(was)) => was,
        };
        let mut causes = Vec::new();
        causes.extend(self.layers_cause(was));
        let files = self.files_cause(was);
        let file_count = match &files {
            Some(CacheCause::Files { changed, more, .. }) => changed.len() + more,
            other => usize::from(other.is_some()),
        };
        let others = causes.len();
        causes.extend(files);
        let inputs = self.input_causes(was);
        let count = others + file_count + inputs.len();
        causes.extend(inputs);
        let has_times =
            |detail: &Detail| detail.files.as_ref().is_some_and(|listing| listing.times);
        let unknown = || match has_times(self.detail) == has_times(was) {
            true => CacheCause::Input { name: "something that is not kept".to_owned() },
            // Times were in no key then.
            false => CacheCause::OlderVersion,
        };
        (count, causes.into_iter().next().unwrap_or_else(unknown))
    }

    fn layers_cause(&self, was: &Detail) -> Option<CacheCause> {
        let (before, after) = (was.layers.as_ref()?, self.detail.layers.as_ref()?);
        if before == after {
            return None;
        }
        let first = before.iter().zip(after).take_while(|(a, b)| a == b).count();
        let layers_of = |base: &Option<Base>| base.as_ref().map_or(0, |base| base.layers);
        let base_layers = layers_of(&self.detail.base);
        if first < base_layers || first < layers_of(&was.base) {
            return Some(base_cause(was.base.as_ref(), self.detail.base.as_ref()));
        }
        Some(match self.made_by.get(first - base_layers) {
            Some(name) => CacheCause::Step { name: name.clone() },
            None => CacheCause::StepRemoved,
        })
    }

    fn files_cause(&self, was: &Detail) -> Option<CacheCause> {
        let (before, after) = (was.files.as_ref()?, self.detail.files.as_ref()?);
        if before == after {
            return None;
        }
        let mut changed = after.changes(before);
        // That there are times now, or none, is not a change of the files.
        if changed.is_empty() && before.times != after.times {
            return None;
        }
        let more = changed.len().saturating_sub(CHANGES_MAX);
        changed.truncate(CHANGES_MAX);
        let folders = after.folders;
        Some(match changed.is_empty() {
            true => CacheCause::Input { name: "the set of files".to_owned() },
            false => CacheCause::Files { changed, more, folders },
        })
    }

    fn input_causes(&self, was: &Detail) -> Vec<CacheCause> {
        let now = &self.detail.inputs;
        let find = |list: &'_ [Input], one: &Input| {
            let mut found =
                list.iter().filter(|other| (other.kind, &other.name) == (one.kind, &one.name));
            found.next().map(|found| found.value.clone())
        };
        let mut causes = Vec::new();
        for input in now {
            match find(&was.inputs, input) {
                Some(value) if value == input.value => (),
                before => causes.push(input.cause(before)),
            }
        }
        for input in was.inputs.iter().filter(|input| find(now, input).is_none()) {
            causes.push(input.cause(Some(input.value.clone())));
        }
        let mut secrets: Vec<String> = (now.iter().filter(|input| input.kind == InputKind::Secret))
            .map(|input| input.name.clone())
            .collect();
        // One may be both an argument and a variable.
        secrets.sort();
        secrets.dedup();
        if causes.is_empty() && !secrets.is_empty() && self.detail.layers == was.layers {
            causes.push(CacheCause::SecretArgument { names: secrets });
        }
        causes
    }
}

/// How many files are listed.
const CHANGES_MAX: usize = 10;

impl Input {
    fn cause(&self, before: Option<String>) -> CacheCause {
        let name = self.name.clone();
        match self.kind {
            InputKind::Argument => CacheCause::Argument { name },
            InputKind::Secret => CacheCause::SecretArgument { names: vec![name] },
            InputKind::Variable => CacheCause::Variable { name },
            InputKind::Mount => CacheCause::Mount { target: name },
            InputKind::Platform => CacheCause::Platform {
                before: before.unwrap_or_default(),
                after: self.value.clone(),
            },
            InputKind::Other => CacheCause::Input { name },
        }
    }
}

/// Why what a stage stands on is not what it was.
pub(crate) fn base_cause(before: Option<&Base>, after: Option<&Base>) -> CacheCause {
    let image = |base: Option<&Base>| {
        let base = base?;
        let (reference, digest) = (base.name.clone(), base.digest.clone()?);
        Some(BaseName { reference, digest })
    };
    match (image(before), image(after), after) {
        (Some(before), Some(after), _) if before != after => CacheCause::Base { before, after },
        (_, None, Some(stage)) if before.is_some_and(|before| before.name == stage.name) => {
            CacheCause::Stage { name: stage.name.clone() }
        }
        _ => CacheCause::Input { name: "what the stage stands on".to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(times: bool, prints: &[(&str, &str)]) -> Listing {
        let files = prints.iter().map(|(path, print)| ((*path).to_owned(), (*print).to_owned()));
        Listing { times, ..Listing::packed(files) }
    }

    #[test]
    fn times_are_compared_with_times_only() {
        let before = listing(false, &[("a", "1,644,0:0"), ("b", "2,644,0:0,x")]);
        let after = listing(true, &[("a", "1,644,0:0,,7"), ("b", "2,644,0:0,x,7")]);
        assert_eq!((after.changes(&before), before.changes(&after)), (Vec::new(), Vec::new()));
        let touched = listing(true, &[("a", "1,644,0:0,,7"), ("b", "2,600,0:0,,8")]);
        let changed = vec![FilePart::Mode, FilePart::Attributes, FilePart::Time];
        let change = FileChange { path: "b".to_owned(), changed };
        assert_eq!(touched.changes(&after), [change]);
        // Of an entry from before times were in keys.
        let detail = |files| Detail { files: Some(files), ..Detail::default() };
        let (was, now) = (detail(before), detail(after));
        let missed = Missed { steps: &[], texts: &[], detail: &now, made_by: &[] };
        let step = TrailStep::new("COPY . .", Digest::of(b"key"));
        let (_, cause) = missed.compare(&Earlier::Same(&step), Some(&was));
        assert_eq!(cause, CacheCause::OlderVersion);
    }
}
