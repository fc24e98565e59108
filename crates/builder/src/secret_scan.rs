//! No secret gets into an image: layers are searched for the values while they are written.
//!
//! One [`SecretScan`] for a build, from all values that are known when it begins; one
//! [`LayerSearch`] for each layer, which sees names, link targets, attributes and bytes as they
//! pass. What is compressed inside a layer is searched as it is, so a value in it is not found.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use dockerfile::Span;
use memchr::memmem;

use crate::build::BuildRequest;
use crate::error::BuildError;
use crate::name::{bytes_of, shown, text_of};
use crate::secret::{KnownSecret, Secret};
use crate::tree::{Node, NodeKind};

/// Secrets of fewer bytes are not searched for: they are found everywhere.
const SOUGHT_MIN: usize = 4;
/// Secrets of so many bytes no image may have. Of shorter ones there is a warning, since they may
/// be found by chance.
const FORBIDDEN_MIN: usize = 12;
/// Bytes of a secret that is searched for together with others. Longer ones are searched for one by
/// one: an automaton takes many times the memory of what it finds.
const TOGETHER_MAX: usize = 1 << 10;
/// Bytes of all that are searched for together. Those beyond it are searched for one by one, which
/// takes longer and misses nothing.
const TOGETHER_SIZE_MAX: usize = 64 << 10;
/// The faster automaton has 512 bytes and more for each byte of what it finds.
const FAST_SIZE_MAX: usize = 4 << 10;
/// Bytes that are searched at once, at least.
const WINDOW_MIN: usize = 128 << 10;

/// Finds the secrets of a build.
pub(crate) struct SecretScan {
    sought: Vec<KnownSecret>,
    together: Option<Together>,
    /// Searched for one by one, by their place in `sought`.
    single: Vec<(usize, memmem::Finder<'static>)>,
    /// The longest of them, in bytes.
    longest: usize,
}

/// Many secrets that are found in one pass.
struct Together {
    /// Tells quickly that there is none.
    any: AhoCorasick,
    /// Finds all of them, also those inside others.
    all: AhoCorasick,
    /// The place in `sought` of each pattern.
    places: Vec<usize>,
}

impl SecretScan {
    /// Of all secrets that a build has or its run knows; none if there is nothing to search for.
    pub(crate) fn of(request: &BuildRequest) -> Option<Arc<Self>> {
        let secrets = request.secrets.iter().map(|(id, value)| KnownSecret {
            name: format!("secret `{id}`"),
            value: value.clone(),
            is_new: false,
        });
        let values = request.secret_args.iter();
        let values = values.filter_map(|name| Some((name, request.build_args.get(name)?)));
        let arguments = values.map(|(name, value)| KnownSecret {
            name: format!("build argument `{name}`"),
            value: Secret::new(value.as_bytes()),
            is_new: false,
        });
        let scan = Self::new(secrets.chain(arguments).chain(request.known_secrets.by_now()));
        (!scan.sought.is_empty()).then(|| Arc::new(scan))
    }

    fn new(secrets: impl IntoIterator<Item = KnownSecret>) -> Self {
        let mut sought: Vec<KnownSecret> = Vec::new();
        for KnownSecret { name, value, is_new } in secrets {
            // The end of a line belongs to the file that a secret was in; without it, it is found
            // in both forms.
            let value = <[u8]>::trim_ascii(value.value());
            let is_other = sought.iter().all(|known| known.value.value() != value);
            if value.len() >= SOUGHT_MIN && is_other {
                sought.push(KnownSecret { name, value: Secret::new(value), is_new });
            }
        }
        let (mut places, mut single, mut size) = (Vec::new(), Vec::new(), 0);
        for (place, secret) in sought.iter().enumerate() {
            let value = secret.value.value();
            if value.len() <= TOGETHER_MAX && size + value.len() <= TOGETHER_SIZE_MAX {
                size += value.len();
                places.push(place);
            } else {
                single.push((place, memmem::Finder::new(value).into_owned()));
            }
        }
        let values: Vec<&[u8]> = places.iter().map(|place| sought[*place].value.value()).collect();
        let together = Together::new(&values, size, places.clone());
        if together.is_none() {
            single.extend(places.iter().map(|place| {
                (*place, memmem::Finder::new(sought[*place].value.value()).into_owned())
            }));
        }
        let longest = sought.iter().map(|secret| secret.value.value().len()).max();
        Self { together, single, longest: longest.unwrap_or_default(), sought }
    }

    /// Those that layers of earlier builds can hold, by their places.
    pub(crate) fn older(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let sought = self.sought.iter().enumerate();
        sought.filter(|(_, secret)| !secret.is_new).map(|(place, one)| (place, one.value.value()))
    }

    fn is_forbidden(&self, place: usize) -> bool {
        self.sought[place].value.value().len() >= FORBIDDEN_MIN
    }

    /// Tells the place of each secret in some bytes, and where it is.
    fn find(&self, bytes: &[u8], mut found: impl FnMut(usize, std::ops::Range<usize>)) {
        if let Some(together) = &self.together
            && together.any.is_match(bytes)
        {
            for one in together.all.find_overlapping_iter(bytes) {
                found(together.places[one.pattern().as_usize()], one.range());
            }
        }
        for (place, finder) in &self.single {
            let length = self.sought[*place].value.value().len();
            finder.find_iter(bytes).for_each(|at| found(*place, at..at + length));
        }
    }

    /// The same bytes without the secrets: each of their bytes is a `*`, so that all else stays
    /// where it is.
    fn starred(&self, bytes: &[u8]) -> Vec<u8> {
        let mut starred = bytes.to_vec();
        self.find(bytes, |_, range| {
            starred[range].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b'*');
        });
        starred
    }

    /// A text without the secrets.
    pub(crate) fn hide(&self, text: &str) -> String {
        String::from_utf8_lossy(&self.starred(text.as_bytes())).into_owned()
    }

    /// Secrets that a layer holds and no image may have.
    pub(crate) fn forbidden(self: &Arc<Self>, findings: &Findings) -> Option<HeldSecret> {
        let mut forbidden = findings.0.iter().filter(|(place, _)| self.is_forbidden(**place));
        forbidden.next().map(|(place, held)| self.held(*place, held))
    }

    /// Short secrets that a layer holds, perhaps by chance.
    pub(crate) fn doubtful(self: &Arc<Self>, findings: &Findings) -> Vec<HeldSecret> {
        let short = findings.0.iter().filter(|(place, _)| !self.is_forbidden(**place));
        short.map(|(place, held)| self.held(*place, held)).collect()
    }

    fn held(self: &Arc<Self>, place: usize, held: &Held) -> HeldSecret {
        let path = text_of(&self.starred(&held.path));
        HeldSecret {
            secret: self.hide(&self.sought[place].name),
            path: shown(&path).into_owned(),
            others: held.others,
            scan: Arc::clone(self),
        }
    }
}

impl Together {
    /// None if there is nothing to find, or if it cannot be made.
    fn new(values: &[&[u8]], size: usize, places: Vec<usize>) -> Option<Self> {
        let kind = (size > FAST_SIZE_MAX).then_some(AhoCorasickKind::ContiguousNFA);
        let build = |match_kind| {
            AhoCorasick::builder().match_kind(match_kind).kind(kind).build(values).ok()
        };
        let (any, all) = (build(MatchKind::LeftmostFirst)?, build(MatchKind::Standard)?);
        (!values.is_empty()).then_some(Self { any, all, places })
    }
}

/// Hides what it finds.
impl fmt::Debug for SecretScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretScan({} secrets)", self.sought.len())
    }
}

/// What a layer holds, by the place of the secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Findings(BTreeMap<usize, Held>);

/// The files that hold one secret: the first of them, and how many others there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    path: Vec<u8>,
    others: u64,
}

impl FromIterator<(usize, Held)> for Findings {
    fn from_iter<T: IntoIterator<Item = (usize, Held)>>(held: T) -> Self {
        Self(held.into_iter().collect())
    }
}

impl Findings {
    pub(crate) fn get(&self, place: usize) -> Option<&Held> {
        self.0.get(&place)
    }
}

/// A secret in a layer, as messages tell of it: without its value.
#[derive(Debug, thiserror::Error)]
#[error("the layer holds {secret} in `/{path}`{}", and_others(*others))]
pub struct HeldSecret {
    secret: String,
    path: String,
    others: u64,
    scan: Arc<SecretScan>,
}

impl HeldSecret {
    /// A text that is shown beside it.
    pub(crate) fn hide(&self, text: &str) -> String {
        self.scan.hide(text)
    }

    /// As the reason why a build ends.
    pub(crate) fn error(self, at: Span) -> BuildError {
        BuildError::HoldsSecret { held: Box::new(self), at }
    }
}

fn and_others(count: u64) -> String {
    match count {
        0 => String::new(),
        1 => " and 1 other file".to_owned(),
        count => format!(" and {count} other files"),
    }
}

/// Searches one layer while its entries pass.
pub(crate) struct LayerSearch {
    scan: Arc<SecretScan>,
    /// The bytes of a file that may begin a secret, and those after them.
    window: Vec<u8>,
    window_size: usize,
    /// What the entry under way holds.
    of_entry: Vec<usize>,
    found: Findings,
}

impl LayerSearch {
    pub(crate) fn new(scan: Arc<SecretScan>) -> Self {
        // So that what is kept of one window for the next is searched twice, and costs little.
        let window_size = WINDOW_MIN.max(scan.longest * 4);
        let window = Vec::with_capacity(window_size);
        Self { scan, window, window_size, of_entry: Vec::new(), found: Findings::default() }
    }

    /// What an entry says besides the bytes of a file: its name and the like.
    pub(crate) fn text(&mut self, text: &[u8]) {
        let of_entry = &mut self.of_entry;
        self.scan.find(text, |place, _| {
            if !of_entry.contains(&place) {
                of_entry.push(place);
            }
        });
    }

    /// What a node says of an entry.
    pub(crate) fn node(&mut self, node: &Node) {
        if let NodeKind::Symlink { target } = &node.kind {
            self.text(&bytes_of(target));
        }
        for (name, value) in &node.xattrs {
            self.text(&bytes_of(name));
            self.text(value);
        }
    }

    /// Bytes of the entry's file, which follow those before.
    pub(crate) fn bytes(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = bytes.len().min(self.window_size - self.window.len());
            self.window.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.window.len() == self.window_size {
                self.search_window();
                let kept = self.scan.longest - 1;
                self.window.drain(..self.window_size - kept);
            }
        }
    }

    /// The entry ends.
    pub(crate) fn end(&mut self, path: &[u8]) {
        self.search_window();
        self.window.clear();
        for place in self.of_entry.drain(..) {
            let held = self.found.0.entry(place);
            held.and_modify(|held| held.others += 1)
                .or_insert_with(|| Held { path: path.to_vec(), others: 0 });
        }
    }

    pub(crate) fn finish(self) -> Findings {
        self.found
    }

    fn search_window(&mut self) {
        let window = std::mem::take(&mut self.window);
        self.text(&window);
        self.window = window;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(values: &[&[u8]]) -> Arc<SecretScan> {
        let known = values.iter().enumerate().map(|(number, value)| KnownSecret {
            name: format!("secret `{number}`"),
            value: Secret::new(*value),
            is_new: false,
        });
        Arc::new(SecretScan::new(known))
    }

    /// The places of the secrets in a file that comes in pieces.
    fn found(scan: &Arc<SecretScan>, pieces: &[&[u8]]) -> Vec<usize> {
        let mut search = LayerSearch::new(Arc::clone(scan));
        pieces.iter().for_each(|piece| search.bytes(piece));
        search.end(b"file");
        search.finish().0.into_keys().collect()
    }

    #[test]
    fn secrets_are_found_wherever_they_are_cut() {
        let scan = scan(&[b"hunter22hunter22", b"22hu", b"\xff\xfe\x00\x01", b"absent"]);
        let text = [&b"a hunter22hunter22 b \xff\xfe\x00\x01"[..], &[b'x'; 300]].concat();
        for at in 0..text.len() {
            assert_eq!(found(&scan, &[&text[..at], &text[at..]]), [0, 1, 2], "{at}");
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(found(&scan, &bytes), [0, 1, 2]);
    }

    #[test]
    fn secrets_are_found_across_the_ends_of_windows() {
        let long: Vec<u8> = (0..100_000_u32).flat_map(u32::to_be_bytes).collect();
        let scan = scan(&[b"hunter22hunter22", &long, &long[..5000]]);
        for at in [WINDOW_MIN - 20, WINDOW_MIN, long.len() * 4 - 8, long.len() * 4 + 1] {
            let text = [&vec![b'x'; at][..], b"hunter22hunter22"].concat();
            assert_eq!(found(&scan, &text.chunks(1 << 17).collect::<Vec<_>>()), [0], "{at}");
        }
        for at in [0, 1, long.len() * 3 + 7, long.len() * 7] {
            let text = [&vec![0; at][..], &long].concat();
            assert_eq!(found(&scan, &text.chunks(1 << 17).collect::<Vec<_>>()), [1, 2], "{at}");
        }
    }

    #[test]
    fn files_are_searched_one_by_one() {
        let mut search = LayerSearch::new(scan(&[b"hunter22hunter22"]));
        search.bytes(b"hunter22");
        search.end(b"one");
        search.bytes(b"hunter22");
        search.end(b"two");
        assert_eq!(search.finish(), Findings::default());
    }

    #[test]
    fn the_end_of_a_line_and_values_that_are_too_short_do_not_count() {
        let scan = scan(&[b"hunter22\r\n", b"hunter22", b"pin\n", b"\n", b""]);
        assert_eq!(scan.sought.len(), 1);
        assert_eq!(found(&scan, &[b"hunter22"]), [0]);
        assert_eq!(found(&scan, &[b"pin\n"]), [0; 0]);
    }

    #[test]
    fn more_secrets_than_are_searched_for_together_are_found_all_the_same() {
        let values: Vec<String> = (0..5000).map(|number| format!("{number:020}")).collect();
        let scan = scan(&values.iter().map(String::as_bytes).collect::<Vec<_>>());
        assert!(!scan.single.is_empty() && scan.together.is_some());
        for place in [0, 1, 3000, 4999] {
            assert_eq!(found(&scan, &[b"x", values[place].as_bytes()]), [place]);
        }
    }

    #[test]
    fn nothing_that_is_shown_has_a_value_in_it() {
        let scan = scan(&[b"hunter22hunter22", b"short"]);
        let mut search = LayerSearch::new(Arc::clone(&scan));
        search.bytes(b"short");
        search.end(b"a/short/b");
        search.text(b"hunter22hunter22");
        search.end(b"hunter22hunter22");
        search.text(b"hunter22hunter22");
        search.end(b"other");
        let findings = search.finish();
        let forbidden = scan.forbidden(&findings).unwrap();
        let doubtful = scan.doubtful(&findings);
        assert_eq!(
            forbidden.to_string(),
            "the layer holds secret `0` in `/****************` and 1 other file"
        );
        assert_eq!(doubtful[0].to_string(), "the layer holds secret `1` in `/a/*****/b`");
        assert_eq!(forbidden.hide("a hunter22hunter22\nb"), "a ****************\nb");
        let shown = format!("{scan:?} {forbidden:?} {doubtful:?}");
        assert!(!shown.contains("hunter") && !shown.contains("short"), "{shown}");
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_is_there(
            values in proptest::collection::vec("[ab]{4,9}", 1..5),
            text in "[abc]{0,60}",
            cut in 0..60_usize,
        ) {
            let scan = scan(&values.iter().map(String::as_bytes).collect::<Vec<_>>());
            let (head, tail) = text.as_bytes().split_at(cut.min(text.len()));
            let there = scan.sought.iter().enumerate().filter(|(_, secret)| {
                text.as_bytes().windows(secret.value.value().len()).any(|w| w == secret.value.value())
            });
            let there: Vec<_> = there.map(|(place, _)| place).collect();
            prop_assert_eq!(found(&scan, &[head, tail]), there);
        }
    }
}
