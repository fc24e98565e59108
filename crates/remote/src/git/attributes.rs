//! Which files Git LFS has, by the `.gitattributes` of the folders on the way to them.
//!
//! Whoever fills a repository writes these files, so what is kept of them has a bound, and it goes
//! when the walk leaves their folder. Of all that they say only `filter` is of interest. `gix`
//! reads the lines and matches the patterns; its own search would do the rest, but it keeps each
//! attribute that it has ever seen, and looks at all of them for each file.

use std::collections::{BTreeMap, BTreeSet};

use gix::ObjectId;
use gix::attrs::parse::{Iter, Kind};
use gix::attrs::{AssignmentRef, StateRef};
use gix::bstr::{BStr, BString, ByteSlice};
use gix::glob::Pattern;
use gix::glob::pattern::Case;
use gix::glob::wildmatch::Mode;
use tokio_util::sync::CancellationToken;

use super::lfs::{Missing, Unavailable};
use super::{GitError, Result, shown};

/// The files' name.
pub(super) const NAME: &str = ".gitattributes";

/// A file is at most this large, in bytes. With a larger one the pointers stay and a warning says
/// why: whoever needs no files of Git LFS builds such a repository all the same.
const FILE_SIZE_MAX: u64 = 1 << 20;

/// What is held of all files on the way to one is at most this large, in bytes of memory: that
/// may be many times what the files have.
const HELD_MAX: usize = 16 << 20;

/// What each piece of memory needs beside its own bytes, about.
const PIECE_SIZE: usize = 32;

/// Longer paths are in no Git LFS: each pattern takes time by their length.
const PATH_SIZE_MAX: usize = 4096;

/// Longer patterns are ignored. Git ignores lines that are longer.
const PATTERN_SIZE_MAX: usize = 2048;

/// A pattern has at most this many `**`: each may double the time that a match takes.
const ANY_FOLDERS_MAX: usize = 8;

/// The folders on the way to where the walk of a repository is.
#[derive(Default)]
pub(super) struct Filters {
    folders: Vec<Folder>,
    macros: Macros,
}

struct Folder {
    path: BString,
    file: Option<ObjectId>,
    /// Nothing before the first pointer below: most repositories have none.
    rules: Option<Read>,
}

/// What a file says, or why that is not held.
type Read = std::result::Result<Rules, String>;

#[derive(Default)]
struct Rules {
    /// Bytes of memory, with those of macros.
    held: usize,
    rules: Vec<Rule>,
}

/// A line with a pattern.
struct Rule {
    pattern: Pattern,
    words: Box<[Word]>,
}

/// What a line says of `filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// Whether it is `lfs`.
    Filter(bool),
    /// Maybe something, by one of the macros.
    Macro { number: u32, is_set: bool },
}

/// Words that stand for others. Only the root's file makes some.
#[derive(Default)]
struct Macros {
    numbers: BTreeMap<String, u32>,
    words: Vec<Box<[Word]>>,
}

impl Filters {
    /// Goes into a folder. The first one is the root of the repository.
    pub(super) fn enter(&mut self, path: &BString, file: Option<ObjectId>) {
        self.folders.push(Folder { path: path.clone(), file, rules: None });
    }

    pub(super) fn leave(&mut self) {
        self.folders.pop();
    }

    /// Drops what the files say, until it is asked for again: so another repository in a folder of
    /// this one has all of the memory.
    pub(super) fn forget(&mut self) {
        self.folders.iter_mut().for_each(|folder| folder.rules = None);
        self.macros = Macros::default();
    }

    /// Whether there is a file on the way to where the walk is.
    pub(super) fn have_files(&self) -> bool {
        self.folders.iter().any(|folder| folder.file.is_some())
    }

    /// Whether a file of the folder that the walk is in has `filter=lfs`. `read` has the bytes of
    /// an attributes file, or nothing if they are more than it is told.
    pub(super) fn has_lfs(
        &mut self,
        path: &BString,
        stop: &CancellationToken,
        read: impl Fn(ObjectId, u64) -> Result<Option<Vec<u8>>>,
    ) -> std::result::Result<bool, Unavailable> {
        let refuse = |reason| Err(Unavailable::Missing(Missing::for_ever(reason)));
        if path.len() > PATH_SIZE_MAX {
            return refuse(format!("`{}` has more than {PATH_SIZE_MAX} bytes", shown(path)));
        }
        let mut held = 0;
        for folder in &mut self.folders {
            let rules = match folder.rules.take() {
                Some(rules) => rules,
                None => folder.read(&read, held, &mut self.macros)?,
            };
            match folder.rules.insert(rules) {
                Ok(rules) => held += rules.held,
                Err(reason) => return refuse(reason.clone()),
            }
        }
        Ok(self.is_lfs(path, stop)?)
    }

    /// The deepest folder counts most, and of its lines the last one.
    fn is_lfs(&self, path: &BString, stop: &CancellationToken) -> Result<bool> {
        let mut seen = BTreeSet::new();
        for folder in self.folders.iter().rev() {
            let path = folder.below(path);
            let name_at = path.rfind_byte(b'/').map(|at| at + 1);
            for rule in folder.rules.iter().flatten().flat_map(|rules| &rules.rules).rev() {
                if stop.is_cancelled() {
                    return Err(GitError::Canceled);
                }
                if rule.matches(path, name_at)
                    && let Some(is_lfs) = self.macros.resolve(&rule.words, &mut seen)
                {
                    return Ok(is_lfs);
                }
            }
        }
        Ok(false)
    }
}

impl Folder {
    /// Reads its file; `held` bytes of memory are used on the way to it.
    fn read(
        &self,
        read: impl Fn(ObjectId, u64) -> Result<Option<Vec<u8>>>,
        held: usize,
        macros: &mut Macros,
    ) -> Result<Read> {
        let Some(file) = self.file else { return Ok(Ok(Rules::default())) };
        let read = match read(file, FILE_SIZE_MAX)? {
            Some(bytes) => self.parse(&bytes, HELD_MAX - held, macros),
            None => Err(format!("is larger than {FILE_SIZE_MAX} bytes")),
        };
        Ok(read.map_err(|reason| format!("{} {reason}", self.file_name())))
    }

    fn parse(&self, bytes: &[u8], space: usize, macros: &mut Macros) -> Read {
        let is_root = self.path.is_empty();
        let held = if is_root { macros.read(bytes, space)? } else { 0 };
        let rules = rules(bytes, macros, space - held)?;
        Ok(Rules { held: held + rules.held, ..rules })
    }

    fn file_name(&self) -> String {
        let slash = if self.path.is_empty() { "" } else { "/" };
        format!("`{}`", shown(&format!("{}{slash}{NAME}", self.path)))
    }

    /// A path of the repository as this folder has it.
    fn below<'p>(&self, path: &'p BString) -> &'p BStr {
        let below = path.strip_prefix(self.path.as_slice()).unwrap_or(path);
        below.strip_prefix(b"/").unwrap_or(below).as_bstr()
    }
}

impl Rule {
    fn matches(&self, path: &BStr, name_at: Option<usize>) -> bool {
        let mode = Mode::NO_MATCH_SLASH_LITERAL;
        self.pattern.matches_repo_relative_path(path, name_at, Some(false), Case::Sensitive, mode)
    }

    fn is_cheap(&self) -> bool {
        self.pattern.text.find_iter("**").count() <= ANY_FOLDERS_MAX
    }

    /// In bytes of memory.
    fn size(&self) -> usize {
        size_of::<Self>() + self.pattern.text.len() + size_of_val(&*self.words) + 2 * PIECE_SIZE
    }
}

fn too_much() -> String {
    format!("and those of the folders above say more than {HELD_MAX} bytes of memory hold")
}

/// The lines of a file that may say something of `filter`, if there is space for them.
fn rules(bytes: &[u8], macros: &Macros, space: usize) -> Read {
    let lines = gix::attrs::parse(bytes).filter_map(|line| match line.ok()? {
        (Kind::Pattern(pattern), words, _) => Some((pattern, words)),
        _ => None,
    });
    let lines = lines.filter(|(pattern, _)| pattern.text.len() <= PATTERN_SIZE_MAX);
    let found = lines.filter_map(|(pattern, words)| {
        let words = macros.words_of(words).filter(|words| !words.is_empty())?;
        Some(Rule { pattern, words })
    });
    let mut rules = Rules::default();
    for rule in found {
        if !rule.is_cheap() {
            return Err(format!("has a pattern with more than {ANY_FOLDERS_MAX} `**`"));
        }
        rules.held += rule.size();
        if rules.held > space {
            return Err(too_much());
        }
        rules.rules.push(rule);
    }
    rules.rules.shrink_to_fit();
    Ok(rules)
}

impl Macros {
    /// Takes those of the root's file, if there is space for them, and says how many bytes they
    /// hold. What they say may be of each other, in any order.
    fn read(&mut self, bytes: &[u8], space: usize) -> std::result::Result<usize, String> {
        let macros = || {
            gix::attrs::parse(bytes).filter_map(|line| match line.ok()? {
                (Kind::Macro(name), words, _) => Some((name.as_str().to_owned(), words)),
                _ => None,
            })
        };
        for (name, _) in macros() {
            let next = self.numbers.len() as u32;
            self.numbers.entry(name).or_insert(next);
        }
        self.words = vec![Box::default(); self.numbers.len()];
        for (name, words) in macros() {
            // The last one of a name counts.
            if let (Some(number), Some(words)) = (self.numbers.get(&name), self.words_of(words)) {
                self.words[*number as usize] = words;
            }
        }
        let held = self.size();
        if held > space {
            *self = Self::default();
            return Err(too_much());
        }
        Ok(held)
    }

    /// In bytes of memory.
    fn size(&self) -> usize {
        let one = size_of::<(String, u32, Box<[Word]>)>() + 2 * PIECE_SIZE;
        let names = self.numbers.keys().map(String::len);
        let words = self.words.iter().map(|words| size_of_val(&**words));
        names.sum::<usize>() + words.sum::<usize>() + self.words.len() * one
    }

    /// The words of a line that may say something of `filter`; none if git ignores the line.
    fn words_of(&self, words: Iter<'_>) -> Option<Box<[Word]>> {
        let words = words.map(|word| Some(self.word(word.ok()?)));
        let words: Option<Vec<_>> = words.filter(|word| *word != Some(None)).collect();
        words.map(|words| words.into_iter().flatten().collect())
    }

    fn word(&self, word: AssignmentRef<'_>) -> Option<Word> {
        match (word.name.as_str(), word.state) {
            ("filter", StateRef::Value(value)) => Some(Word::Filter(value.as_bstr() == "lfs")),
            ("filter", _) => Some(Word::Filter(false)),
            (name, state) => {
                let number = *self.numbers.get(name)?;
                Some(Word::Macro { number, is_set: matches!(state, StateRef::Set) })
            }
        }
    }

    /// What words say of `filter`. The last one counts, and each macro once: what a deeper folder
    /// or a later line said of it stays.
    fn resolve(&self, words: &[Word], seen: &mut BTreeSet<u32>) -> Option<bool> {
        let mut rest = words.to_vec();
        while let Some(word) = rest.pop() {
            match word {
                Word::Filter(is_lfs) => return Some(is_lfs),
                Word::Macro { number, is_set } => {
                    if seen.insert(number) && is_set {
                        rest.extend_from_slice(&self.words[number as usize]);
                    }
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a file of some folders, deepest last, with those attributes is in Git LFS.
    fn has_lfs(folders: &[(&str, &str)], path: &str) -> std::result::Result<bool, Unavailable> {
        let mut filters = Filters::default();
        for (number, (folder, text)) in folders.iter().enumerate() {
            let file =
                (!text.is_empty()).then(|| ObjectId::from_bytes_or_panic(&[number as u8; 20]));
            filters.enter(&(*folder).into(), file);
        }
        filters.has_lfs(&path.into(), &CancellationToken::new(), |file, max| {
            let (_, text) = folders[usize::from(file.as_slice()[0])];
            Ok((text.len() as u64 <= max).then(|| text.into()))
        })
    }

    #[track_caller]
    fn check(folders: &[(&str, &str)], path: &str, expected: bool) {
        let found = has_lfs(folders, path).unwrap_or_else(|_| panic!("{folders:?} is refused"));
        assert_eq!(found, expected, "{folders:?} {path}");
    }

    #[test]
    fn the_last_line_that_matches_says_whether_it_is_lfs() {
        for (text, expected) in [
            ("*.bin filter=lfs diff=lfs merge=lfs -text", true),
            ("a.bin filter=lfs\r\n", true),
            ("\"a.bin\" filter=lfs", true),
            ("a/** filter=lfs", true),
            ("/a/*/a.bin filter=lfs", true),
            ("**/b/*.bin filter=lfs", true),
            ("/a.bin filter=lfs", false),
            ("a/*.bin filter=lfs", false),
            ("a/ filter=lfs", false),
            ("*.BIN filter=lfs", false),
            ("!*.bin filter=lfs", false),
            ("*.bin filter=lfs a..b?", false),
            ("# *.bin filter=lfs", false),
            ("*.bin", false),
            ("*.bin filter", false),
            ("*.bin filter=lfs2", false),
            ("*.bin filter=lfs filter=other", false),
            ("*.bin filter=other filter=lfs", true),
            ("*.bin filter=lfs\na.* -filter", false),
            ("*.bin filter=lfs\na.* !filter", false),
            ("*.bin filter=lfs\na.* text", true),
            ("a.* -filter\n*.bin filter=lfs", true),
        ] {
            check(&[("", text), ("a", ""), ("a/b", "")], "a/b/a.bin", expected);
        }
    }

    #[test]
    fn deeper_folders_count_more_and_their_patterns_begin_there() {
        let root = ("", "*.bin filter=lfs\n");
        for (deeper, path, expected) in [
            ("", "a/a.bin", true),
            ("*.bin -filter", "a/a.bin", false),
            ("*.bin !filter", "a/a.bin", false),
            ("*.txt -filter", "a/a.bin", true),
            ("*.txt filter=lfs", "a/a.txt", true),
            ("/a.txt filter=lfs", "a/a.txt", true),
            ("/a.txt filter=lfs", "a/b/a.txt", false),
            ("a/a.txt filter=lfs", "a/a.txt", false),
        ] {
            check(&[root, ("a", deeper)], path, expected);
        }
        check(&[("", "/a.txt filter=lfs"), ("a", "")], "a/a.txt", false);
    }

    #[test]
    fn what_a_folder_says_goes_when_it_is_left() {
        let (mut filters, stop) = (Filters::default(), CancellationToken::new());
        let file = Some(ObjectId::null(gix::hash::Kind::Sha1));
        let has_lfs = |filters: &mut Filters, path: &str| {
            let found =
                filters.has_lfs(&path.into(), &stop, |_, _| Ok(Some(b"* filter=lfs".into())));
            found.unwrap_or_else(|_| panic!("{path} is refused"))
        };
        filters.enter(&"".into(), None);
        filters.enter(&"a".into(), file);
        assert!(has_lfs(&mut filters, "a/f"));
        filters.leave();
        filters.enter(&"b".into(), None);
        assert!(!has_lfs(&mut filters, "b/f"));
    }

    #[test]
    fn macros_of_the_root_stand_for_their_words() {
        for (text, expected) in [
            ("*.bin large\n[attr]large filter=lfs -text", true),
            ("[attr]large filter=lfs\n*.bin -large", false),
            ("[attr]large filter=lfs\n*.bin large=1", false),
            ("[attr]large filter=lfs\n*.bin large -filter", false),
            ("[attr]large filter=lfs\n*.bin -filter large", true),
            ("[attr]large filter=lfs\n*.bin large\na.bin -large", false),
            ("[attr]large other\n[attr]other filter=lfs\n*.bin large", true),
            ("[attr]large filter=lfs\n[attr]large -filter\n*.bin large", false),
            ("[attr]large other\n[attr]other large\n*.bin filter=lfs large", true),
            ("*.bin large", false),
        ] {
            check(&[("", text), ("a", "")], "a/a.bin", expected);
        }
        let root = ("", "[attr]large filter=lfs");
        check(&[root, ("a", "*.bin large")], "a/a.bin", true);
        check(&[("", "*.bin large"), ("a", root.1)], "a/a.bin", false);
        // As deep as the file allows.
        let many: String = (0..50_000).map(|n| format!("[attr]m{n} m{}\n", n + 1)).collect();
        check(&[("", &format!("{many}[attr]m50000 filter=lfs\n* m0"))], "f", true);
    }

    #[track_caller]
    fn check_refused(folders: &[(&str, &str)], path: &str, expected: &str) {
        match has_lfs(folders, path) {
            Err(Unavailable::Missing(Missing { reason, may_change: false })) => {
                assert!(reason.starts_with(expected) && reason.len() < 600, "{reason}");
            }
            _ => panic!("not refused: {expected}"),
        }
    }

    #[test]
    fn many_short_lines_hold_no_more_memory_than_there_is() {
        let head = "[attr]b filter=lfs\n";
        let lines = |count| format!("{head}{}", "a b\n".repeat(count));
        let expected = "`.gitattributes` and those of the folders above say more than";
        check_refused(&[("", &lines(200_000))], "a", expected);
        // Of those that say nothing of `filter` nothing is held.
        check(&[("", &format!("* filter=lfs\n{}", "a c\n".repeat(200_000)))], "a", true);
        // All folders together.
        let (root, below) = (lines(70_000), "a b\n".repeat(70_000));
        check(&[("", &root)], "a", true);
        let expected = "`x/.gitattributes` and those of the folders above say more than";
        check_refused(&[("", &root), ("x", &below)], "x/a", expected);
        let macros: String = (0..80_000).map(|n| format!("[attr]{n:x}\n")).collect();
        check(&[("", &macros)], "a", false);
        check_refused(&[("", &macros), ("x", &"a 0\n".repeat(70_000))], "x/a", expected);
        let words = format!("{head}{}", format!("a{}\n", " b".repeat(1000)).repeat(500));
        check(&[("", &words)], "a", true);
    }

    #[test]
    fn nothing_is_held_for_a_repository_while_another_one_is_written() {
        let (mut filters, stop) = (Filters::default(), CancellationToken::new());
        let text = "[attr]large filter=lfs\n* large";
        filters.enter(&"".into(), Some(ObjectId::null(gix::hash::Kind::Sha1)));
        for _ in 0..2 {
            let found = filters.has_lfs(&"f".into(), &stop, |_, _| Ok(Some(text.into())));
            assert!(matches!(found, Ok(true)));
            filters.forget();
            assert!(filters.macros.words.is_empty() && filters.folders[0].rules.is_none());
        }
    }

    #[test]
    fn files_and_patterns_that_are_too_much_are_told() {
        let large = "x".repeat(1 << 20);
        let many = format!("{}x filter=lfs", "**/".repeat(40));
        for (folders, expected) in [
            (&[("", &*format!("{large}x"))][..], "`.gitattributes` is larger than 1048576 bytes"),
            (&[("", "* filter=lfs"), ("a", &many)], "`a/.gitattributes` has a pattern with"),
        ] {
            check_refused(folders, &format!("{}f", "a/".repeat(40)), expected);
        }
        check_refused(&[], &"f".repeat(PATH_SIZE_MAX + 1), "`fff");
        check(&[("", &large)], "f", false);
        check(&[("", &format!("{} filter=lfs", "*".repeat(3000)))], "f", false);
    }
}
