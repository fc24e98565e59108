//! Finds any of many texts in a long one, in a fraction of a nanosecond for each byte.
//!
//! Whatever has at least `n` bytes covers `w` bytes at one of the places 0, s, 2s, … of the text that
//! it is in, if `s` is no more than `n - w + 1`. So only these places are looked at: whether a text that
//! is sought has the same bytes near its beginning is first asked of a bitmap, which is small enough
//! for the caches of a processor, and says no nearly always. Where it does not, the sought texts are
//! compared, by their order.
//!
//! Memory: the texts themselves, and at most 700 bytes for each of them.

use std::collections::{BTreeSet, HashMap, HashSet};

/// Bytes that are looked at together, of short texts.
const GRAM: usize = 4;
/// The same of long texts: what has the same ones by chance would take time, such as other numbers.
const LONG_GRAM: usize = 8;
/// Bytes between two places, at most: more would take more memory, and win little.
const STRIDE_MAX: usize = 16;
/// Texts of fewer bytes are looked for apart from longer ones, which can be found in longer strides.
const SIZES: [usize; 2] = [8, 16];

/// Texts that are looked for.
#[derive(Clone, Default)]
pub(super) struct Finder {
    /// Sorted, each once, and none shorter than [`GRAM`].
    sought: Vec<String>,
    /// For each of them the longest other one that it begins with.
    inside: Vec<Option<usize>>,
    groups: Vec<Group>,
    /// What they begin with, of one to four bytes.
    heads: Bitmap,
    /// All bytes that are in them, in order.
    bytes: Vec<u8>,
    /// The longest of them, in bytes.
    longest: usize,
}

/// Texts of about the same size.
#[derive(Clone)]
struct Group {
    /// Bytes that are looked at together: [`GRAM`] or [`LONG_GRAM`].
    width: usize,
    stride: usize,
    seen: Bitmap,
    /// By such bytes: where in texts they are, a bit for each offset.
    offsets: HashMap<u64, u32>,
}

impl Finder {
    pub(super) fn new(mut sought: Vec<String>) -> Self {
        sought.retain(|text| text.len() >= GRAM);
        sought.sort_unstable();
        sought.dedup();
        let mut groups: [Vec<&str>; SIZES.len() + 1] = Default::default();
        for text in &sought {
            groups[SIZES.partition_point(|size| *size <= text.len())].push(text);
        }
        let groups = groups.iter().filter(|texts| !texts.is_empty());
        let groups = groups.map(|texts| Group::of(texts)).collect();
        let heads: HashSet<u64> = sought.iter().flat_map(|text| heads(text.as_bytes())).collect();
        let heads = Bitmap::of(heads.into_iter());
        let bytes: BTreeSet<u8> = sought.iter().flat_map(|text| text.bytes()).collect();
        let bytes = bytes.into_iter().collect();
        let longest = sought.iter().map(String::len).max().unwrap_or_default();
        Self { inside: inside(&sought), groups, heads, bytes, longest, sought }
    }

    pub(super) fn sought(&self) -> &[String] {
        &self.sought
    }

    /// Where texts are, in order; those that overlap as one.
    pub(super) fn find(&self, text: &str) -> Vec<(usize, usize)> {
        let mut all = Vec::new();
        for group in &self.groups {
            group.places(text.as_bytes(), |at, offsets| {
                let starts =
                    (0..STRIDE_MAX.min(at + 1)).filter(|offset| offsets >> offset & 1 != 0);
                all.extend(starts.filter_map(|offset| {
                    let from = at - offset;
                    Some((from, from + self.longest_at(&text.as_bytes()[from..])?))
                }));
            });
        }
        all.sort_unstable();
        let mut found: Vec<(usize, usize)> = Vec::new();
        for (from, to) in all {
            match found.last_mut() {
                Some((_, end)) if from < *end => *end = to.max(*end),
                _ => found.push((from, to)),
            }
        }
        found
    }

    /// The places in the last `max` bytes of a text from which on it is the beginning of a sought
    /// text, and no more than that.
    pub(super) fn begun<'a>(
        &'a self,
        text: &'a str,
        max: usize,
    ) -> impl Iterator<Item = usize> + 'a {
        let longest = self.longest.saturating_sub(1).min(max);
        let first = text.len().saturating_sub(longest);
        // Nothing goes on over a byte that is in none, such as the end of a line mostly.
        let is_in_none = |byte: &u8| self.bytes.binary_search(byte).is_err();
        let last_other = text.as_bytes()[first..].iter().rposition(is_in_none);
        let first = text.ceil_char_boundary(first + last_other.map_or(0, |place| place + 1));
        let starts = text[first..].char_indices().map(move |(at, _)| first + at);
        starts.filter(|&at| self.is_beginning(&text[at..]))
    }

    /// Whether a sought text begins with a text and is longer.
    fn is_beginning(&self, text: &str) -> bool {
        if heads(text.as_bytes()).last().is_none_or(|head| !self.heads.has(head)) {
            return false;
        }
        let next = self.sought.partition_point(|sought| sought.as_str() <= text);
        self.sought.get(next).is_some_and(|sought| sought.starts_with(text))
    }

    /// The size of the longest sought text that others begin with.
    fn longest_at(&self, bytes: &[u8]) -> Option<usize> {
        // Whatever is between the longest and these bytes in the order begins with it too.
        let next = self.sought.partition_point(|sought| sought.as_bytes() <= bytes);
        let mut candidate = next.checked_sub(1);
        while let Some(place) = candidate {
            let sought = self.sought[place].as_bytes();
            if bytes.starts_with(sought) {
                return Some(sought.len());
            }
            candidate = self.inside[place];
        }
        None
    }
}

/// For each of sorted texts, the longest other one that it begins with.
fn inside(sorted: &[String]) -> Vec<Option<usize>> {
    let (mut inside, mut open) = (Vec::with_capacity(sorted.len()), Vec::<usize>::new());
    for (place, text) in sorted.iter().enumerate() {
        while open.last().is_some_and(|last| !text.starts_with(&sorted[*last])) {
            open.pop();
        }
        inside.push(open.last().copied());
        open.push(place);
    }
    inside
}

impl Group {
    fn of(texts: &[&str]) -> Self {
        let shortest = texts.iter().map(|text| text.len()).min().unwrap_or(GRAM);
        let width = if shortest < 2 * LONG_GRAM { GRAM } else { LONG_GRAM };
        let stride = (shortest + 1 - width).min(STRIDE_MAX);
        let mut offsets = HashMap::new();
        for text in texts {
            for offset in 0..stride {
                let gram = match width {
                    GRAM => gram(text.as_bytes(), offset),
                    _ => long_gram(text.as_bytes(), offset),
                };
                *offsets.entry(gram).or_default() |= 1 << offset;
            }
        }
        offsets.shrink_to_fit();
        Self { width, stride, seen: Bitmap::of(offsets.keys().copied()), offsets }
    }

    /// Tells the places where bytes of texts are, and at which offsets.
    fn places(&self, bytes: &[u8], tell: impl FnMut(usize, u32)) {
        match self.width {
            GRAM => self.places_of(bytes, gram, tell),
            _ => self.places_of(bytes, long_gram, tell),
        }
    }

    fn places_of(
        &self,
        bytes: &[u8],
        gram: impl Fn(&[u8], usize) -> u64,
        mut tell: impl FnMut(usize, u32),
    ) {
        let places = (bytes.len() + 1).saturating_sub(self.width);
        for at in (0..places).step_by(self.stride) {
            let gram = gram(bytes, at);
            if self.seen.has(gram)
                && let Some(offsets) = self.offsets.get(&gram)
            {
                tell(at, *offsets);
            }
        }
    }
}

/// The first byte of a text as a number, the first two, and so on.
fn heads(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let numbers = bytes.iter().take(GRAM).enumerate();
    numbers.scan(0, |head, (place, byte)| {
        *head |= u64::from(*byte) << (8 * place);
        Some(*head)
    })
}

fn gram(bytes: &[u8], at: usize) -> u64 {
    let gram: [u8; GRAM] = bytes[at..at + GRAM].try_into().expect("it has that size");
    u32::from_le_bytes(gram).into()
}

fn long_gram(bytes: &[u8], at: usize) -> u64 {
    let gram: [u8; LONG_GRAM] = bytes[at..at + LONG_GRAM].try_into().expect("it has that size");
    u64::from_le_bytes(gram)
}

/// A set of numbers that may seem to have more than it has.
#[derive(Clone)]
struct Bitmap {
    words: Vec<u64>,
    shift: u32,
}

/// Empty.
impl Default for Bitmap {
    fn default() -> Self {
        Self::of(std::iter::empty())
    }
}

impl Bitmap {
    /// Bits for each number: of those that it has not, it seems to have one in so many.
    const BITS: usize = 16;

    fn of(numbers: impl ExactSizeIterator<Item = u64>) -> Self {
        // At least a word, and no more than there are numbers.
        let bits = (numbers.len() * Self::BITS).next_power_of_two().clamp(64, 1 << 31);
        let (words, shift) = (vec![0; bits / 64], u64::BITS - bits.trailing_zeros());
        let mut bitmap = Self { words, shift };
        for number in numbers {
            let (word, bit) = bitmap.place(number);
            bitmap.words[word] |= bit;
        }
        bitmap
    }

    fn has(&self, number: u64) -> bool {
        let (word, bit) = self.place(number);
        self.words[word] & bit != 0
    }

    fn place(&self, number: u64) -> (usize, u64) {
        // The upper bits depend on all of the number.
        let place = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize;
        (place / 64, 1 << (place % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found if each text is looked for by itself.
    fn slowly(sought: &[String], text: &str) -> Vec<bool> {
        let mut covered = vec![false; text.len()];
        for sought in sought {
            for at in 0..text.len() {
                if text.as_bytes()[at..].starts_with(sought.as_bytes()) {
                    covered[at..at + sought.len()].fill(true);
                }
            }
        }
        covered
    }

    /// Numbers that look random, and are the same each time.
    fn random(state: &mut u64) -> usize {
        *state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as usize
    }

    #[test]
    fn what_is_found_is_what_is_there() {
        let mut state = 1;
        let mut letters = |count: usize| -> String {
            (0..count).map(|_| char::from(b"abbb"[random(&mut state) % 4])).collect()
        };
        for round in 0..2000 {
            let sizes = [4, 5, 7, 8, 9, 15, 16, 17, 40];
            let sought: Vec<String> =
                (0..1 + round % 9).map(|place| letters(sizes[place])).collect();
            let hidden = sought.iter().map(|text| text.as_str());
            let text: String =
                hidden.flat_map(|text| [letters(round % 23), text.to_owned()]).collect();
            let finder = Finder::new(sought.clone());
            let mut covered = vec![false; text.len()];
            for (from, to) in finder.find(&text) {
                covered[from..to].fill(true);
            }
            assert_eq!(covered, slowly(&sought, &text), "{sought:?} {text}");
        }
    }

    #[test]
    fn beginnings_at_the_end_are_told() {
        let sought = ["hunter22", "tern", "zwölf"].map(str::to_owned).to_vec();
        let finder = Finder::new(sought);
        let begun = |text: &str| finder.begun(text, 100).collect::<Vec<_>>();
        assert_eq!(begun("a hunter"), [2, 5]);
        assert_eq!(begun("hunter22"), [0; 0]);
        assert_eq!(begun("zwö z"), [5]);
        assert_eq!(Finder::default().begun("hunter", 100).count(), 0);
        assert_eq!(Finder::default().find("hunter"), []);
    }

    #[test]
    fn a_hundred_thousand_texts_are_found_too() {
        let sought: Vec<String> = (0..100_000).map(|number| format!("{number:08}")).collect();
        let finder = Finder::new(sought);
        assert_eq!(finder.find("x 00012345 123456789 y"), [(2, 10)]);
    }
}
