//! Secrets do not reach a log.

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use engine::without_credentials;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What stands where a secret was.
const MASK: &str = "***";

/// The part of a secret in the middle of Base64 is hidden from so many characters on.
const BASE64_LEN_MIN: usize = 6;

/// A finder takes many times the memory of what it finds, in bytes.
const FINDER_SIZE_MAX: usize = 64 << 10;

/// At most so much of a text waits for the rest of a secret, in bytes.
const HELD_MAX: usize = 64 << 10;

/// Replaces secret values in text: as they are, their lines, and in the encodings in which programs
/// pass them on. Of addresses in it, what is before the `@` goes too.
///
/// A program that takes a secret apart in another way is beyond it.
#[derive(Clone, Default)]
pub struct Mask {
    /// Sorted.
    secrets: Vec<String>,
    /// Finds all of them in one pass, unless they are too large for it.
    finder: Option<AhoCorasick>,
    /// The longest of them, in bytes.
    longest: usize,
}

impl Mask {
    /// Secrets of fewer characters, and lines of longer ones, are not hidden: they would be found
    /// everywhere.
    pub(crate) const SECRET_LEN_MIN: usize = 4;

    /// Whether a secret is long enough to be hidden.
    pub(crate) fn hides(secret: &str) -> bool {
        secret.trim().chars().nth(Self::SECRET_LEN_MIN - 1).is_some()
    }

    pub fn new<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        Self::default().with(values)
    }

    /// Whether a secret is one of those that it hides.
    pub(crate) fn has(&self, secret: &str) -> bool {
        self.secrets.binary_search_by(|known| known.as_str().cmp(secret.trim())).is_ok()
    }

    /// The same for more secrets.
    pub(crate) fn with<'a>(&self, values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut secrets = self.secrets.clone();
        for value in values.into_iter().filter(|value| Self::hides(value)) {
            secrets.push(value.trim().to_owned());
            secrets.extend(value.lines().map(|line| line.trim().to_owned()));
            secrets.extend(encoded(value));
            secrets.extend(encoded(value.trim()));
        }
        secrets.retain(|secret| Self::hides(secret));
        secrets.sort_unstable();
        secrets.dedup();
        let size: usize = secrets.iter().map(String::len).sum();
        let longest = secrets.iter().map(String::len).max().unwrap_or_default();
        let finder = || {
            let kind = Some(AhoCorasickKind::ContiguousNFA);
            AhoCorasick::builder().kind(kind).build(&secrets).ok()
        };
        let finder = (1..=FINDER_SIZE_MAX).contains(&size).then(finder).flatten();
        Self { finder, secrets, longest }
    }

    /// Replaces the secrets of a text.
    pub(crate) fn apply(&self, text: &mut String) {
        let found = self.find(text);
        if !found.is_empty() {
            let (mut masked, mut done) = (String::with_capacity(text.len()), 0);
            for (from, to) in found {
                masked.push_str(&text[done..from]);
                masked.push_str(MASK);
                done = to;
            }
            masked.push_str(&text[done..]);
            *text = masked;
        }
        if text.contains("://") && text.contains('@') {
            *text = without_credentials(text);
        }
    }

    /// Takes off the end of a text what may be the beginning of a secret.
    pub(crate) fn take_begun(&self, text: &mut String) -> String {
        let longest = self.longest.saturating_sub(1).min(HELD_MAX);
        let first = text.ceil_char_boundary(text.len().saturating_sub(longest));
        let starts = text[first..].char_indices().map(|(at, _)| first + at);
        let mut starts = starts.filter(|&at| self.is_beginning(&text[at..]));
        let Some(begun) = starts.next() else { return String::new() };
        // One that overlaps with it is seen together with it, or its rest would be shown.
        let found = self.find(text);
        let after = found.partition_point(|&(from, _)| from < begun);
        let overlapping = found[..after].last().filter(|&&(_, to)| begun < to);
        let from = match overlapping {
            Some(&(from, _)) if text.len() - from <= HELD_MAX => Some(from),
            // What is found is never taken apart.
            Some(&(_, to)) => starts.find(|&at| at >= to),
            None => Some(begun),
        };
        from.map_or_else(String::new, |from| text.split_off(from))
    }

    /// Whether a secret begins with a text and is longer.
    fn is_beginning(&self, text: &str) -> bool {
        let next = self.secrets.partition_point(|secret| secret.as_str() <= text);
        self.secrets.get(next).is_some_and(|secret| secret.starts_with(text))
    }

    /// Where secrets are, those that overlap as one.
    fn find(&self, text: &str) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        match &self.finder {
            // In the order of their ends.
            Some(finder) => {
                let all = finder.find_overlapping_iter(text);
                all.for_each(|one| merge(&mut found, one.start(), one.end()));
            }
            None => {
                let all = self.secrets.iter().flat_map(|secret| text.match_indices(&**secret));
                let mut all: Vec<_> = all.map(|(at, secret)| (at + secret.len(), at)).collect();
                all.sort_unstable();
                all.into_iter().for_each(|(to, from)| merge(&mut found, from, to));
            }
        }
        found
    }
}

/// Adds a range that ends after the others, which may overlap with it.
fn merge(found: &mut Vec<(usize, usize)>, mut from: usize, to: usize) {
    while let Some(&(earlier, end)) = found.last()
        && end > from
    {
        from = from.min(earlier);
        found.pop();
    }
    found.push((from, to));
}

/// What programs leave as it is in parts of addresses; some also leave slashes.
const IN_ADDRESS: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const IN_PATH: &AsciiSet = &IN_ADDRESS.remove(b'/');

/// A secret as programs often pass it on: in Base64, also without padding and for addresses, and in
/// the percent encodings of addresses and of forms.
fn encoded(secret: &str) -> impl Iterator<Item = String> {
    let base64 = BASE64_STANDARD_NO_PAD.encode(secret);
    let for_addresses = base64.replace('+', "-").replace('/', "_");
    let percent = |set| utf8_percent_encode(secret, set).to_string();
    let (all, address, path) = (percent(NON_ALPHANUMERIC), percent(IN_ADDRESS), percent(IN_PATH));
    let form: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    let inside = inside_base64(secret);
    [base64, for_addresses, all, address, path, form].into_iter().chain(inside)
}

/// What is always seen of a secret in the Base64 of a longer text, by where in a group of three
/// bytes it begins. The characters at its ends depend on its neighbours.
fn inside_base64(secret: &str) -> impl Iterator<Item = String> {
    let shifted = (0..3_usize).map(|shift| {
        let bytes = [&b"   "[..shift], secret.as_bytes()].concat();
        let whole = bytes.len() * 8 / 6;
        BASE64_STANDARD_NO_PAD.encode(bytes)[(shift * 8).div_ceil(6)..whole].to_owned()
    });
    let plain = shifted.filter(|part| part.len() >= BASE64_LEN_MIN);
    plain.flat_map(|part| [part.replace('+', "-").replace('/', "_"), part])
}

/// Hides what it hides.
impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mask({} secrets)", self.secrets.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_whole_and_line_by_line() {
        let mask = Mask::new(["hunter", "hunter22", "-----BEGIN\nabcdef\nx\n", "", "pin"]);
        for (text, expected) in [
            ("a pin is too short", "a pin is too short"),
            ("huntehunter22", "hunte***"),
            ("https://user:word@host/x and a@b", "https://***@host/x and a@b"),
            ("pass hunter22, hunter", "pass ***, ***"),
            ("line abcdef end", "line *** end"),
            ("x stays", "x stays"),
        ] {
            let mut masked = text.to_owned();
            mask.apply(&mut masked);
            assert_eq!(masked, expected);
        }
        assert!(!format!("{mask:?}").contains("hunter"));
    }

    #[test]
    fn secrets_are_masked_in_the_forms_in_which_programs_pass_them_on() {
        let secret = "p?ss wörd/+";
        let mask = Mask::new([secret, "my-pass word\n"]);
        let base64 = base64::prelude::BASE64_STANDARD.encode(secret);
        for (text, expected) in [
            (format!("Authorization: Basic {base64}"), "Authorization: Basic ***="),
            ("?q=p%3Fss%20w%C3%B6rd%2F%2B&r".to_owned(), "?q=***&r"),
            ("q=p%3Fss+w%C3%B6rd%2F%2B".to_owned(), "q=***"),
            ("/p%3Fss%20w%C3%B6rd/%2B".to_owned(), "/***"),
            ("x=my-pass%20word".to_owned(), "x=***"),
            ("bXktcGFzcyB3b3Jk".to_owned(), "***"),
        ] {
            let mut masked = text;
            mask.apply(&mut masked);
            assert_eq!(masked.trim_end_matches('='), expected.trim_end_matches('='));
        }
    }

    #[test]
    fn secrets_are_masked_in_the_base64_of_a_longer_text() {
        let mask = Mask::new(["hunter22"]);
        for before in ["", "a", "ab", "abc", "user:"] {
            for after in ["", "c", "cd", "/z"] {
                let mut text = BASE64_STANDARD_NO_PAD.encode(format!("{before}hunter22{after}"));
                mask.apply(&mut text);
                assert!(text.contains(MASK), "{before} {after}: {text}");
                // At most a character of the secret's ends is left in what is left.
                assert!(text.len() <= (before.len() + after.len()) * 2 + 3 + 3, "{text}");
            }
        }
    }

    /// What is seen of a text that comes in pieces.
    fn in_pieces(mask: &Mask, pieces: &[&str]) -> String {
        let (mut seen, mut begun) = (String::new(), String::new());
        for piece in pieces {
            let mut text = begun + piece;
            begun = mask.take_begun(&mut text);
            mask.apply(&mut text);
            seen.push_str(&text);
        }
        mask.apply(&mut begun);
        seen + &begun
    }

    #[test]
    fn long_secrets_are_masked_however_they_are_split() {
        let secret: String = (0..5000).map(|number| format!("{number:x}g")).collect();
        let mask = Mask::new([secret.as_str()]);
        for at in [1, 5000, secret.len() - 1] {
            let seen = in_pieces(&mask, &["a", &secret[..at], &secret[at..], "b"]);
            assert_eq!(seen, "a***b");
        }
        let huge: String = (0..20_000).map(|number| format!("{number:x}0")).collect();
        let mask = Mask::new([huge.as_str()]);
        assert_eq!(in_pieces(&mask, &[&huge[..60_000], &huge[60_000..], "b"]), "***b");
        let mask = Mask::new([secret.as_str()]);
        // A beginning that never goes on is no secret in the end.
        assert_eq!(in_pieces(&mask, &["a", &secret[..9000]]), format!("a{}", &secret[..9000]));
    }

    #[test]
    fn secrets_are_masked_however_they_are_split() {
        let mask = Mask::new(["hunter22", "hunter", "ererer", "zwölf"]);
        for text in
            ["a hunter22 b", "hunthunter22hunter", "an hunt", "ererererer", "zwölf zwö", "er"]
        {
            let whole = in_pieces(&mask, &[text]);
            for (first, _) in text.char_indices() {
                for (second, _) in text.char_indices().filter(|(second, _)| *second >= first) {
                    let pieces = [&text[..first], &text[first..second], &text[second..]];
                    let seen = in_pieces(&mask, &pieces);
                    for secret in ["hunter", "ererer", "zwölf"] {
                        assert!(!seen.contains(secret), "{pieces:?}: {seen}");
                    }
                    assert_eq!(seen, whole, "{pieces:?}");
                }
            }
        }
    }
}
