//! Secrets do not reach a log.

mod encodings;
mod finder;

use std::collections::BTreeSet;

use engine::without_credentials;

use self::encodings::{encoded, in_json};
use self::finder::Finder;

/// What stands where a secret was.
const MASK: &str = "***";

/// At most so much of a text waits for the rest of a secret, in bytes.
const HELD_MAX: usize = 64 << 10;

/// Replaces secret values in text: as they are, their lines, and in the encodings in which programs
/// pass them on: Base64, those of addresses, and inside JSON. Of addresses in it, what is before the
/// `@` goes too.
///
/// A program that takes a secret apart in another way is beyond it.
#[derive(Clone, Default)]
pub struct Mask {
    /// All forms of the values.
    finder: Finder,
    /// The secrets themselves, not in other forms.
    whole: BTreeSet<String>,
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
        self.whole.contains(secret.trim())
    }

    /// The same for more secrets.
    pub(crate) fn with<'a>(&self, values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut secrets = self.finder.sought().to_vec();
        let mut whole = self.whole.clone();
        for value in values.into_iter().filter(|value| Self::hides(value)) {
            secrets.push(value.trim().to_owned());
            whole.insert(value.trim().to_owned());
            for line in value.lines().map(str::trim) {
                secrets.push(line.to_owned());
                secrets.extend(in_json(line));
            }
            secrets.extend(encoded(value));
            secrets.extend(encoded(value.trim()));
        }
        secrets.retain(|secret| Self::hides(secret));
        Self { finder: Finder::new(secrets), whole }
    }

    /// Replaces the secrets of a text.
    pub(crate) fn apply(&self, text: &mut String) {
        let found = self.finder.find(text);
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
        self.held_from(text).map_or_else(String::new, |from| text.split_off(from))
    }

    /// From where on a text waits for what comes.
    fn held_from(&self, text: &str) -> Option<usize> {
        let mut starts = self.finder.begun(text, HELD_MAX);
        let begun = starts.next()?;
        // One that overlaps with it is seen together with it, or its rest would be shown.
        let found = self.finder.find(text);
        let after = found.partition_point(|&(from, _)| from < begun);
        let overlapping = found[..after].last().filter(|&&(_, to)| begun < to);
        match overlapping {
            Some(&(from, _)) if text.len() - from <= HELD_MAX => Some(from),
            // What is found is never taken apart.
            Some(&(_, to)) => starts.find(|&at| at >= to),
            None => Some(begun),
        }
    }
}

/// Hides what it hides.
impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mask({} texts)", self.finder.sought().len())
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD_NO_PAD;

    use super::*;

    #[test]
    fn base64_is_masked_also_in_lines() {
        let secret: String = (0..300).map(|at| char::from(b'!' + (at * 7 % 90) as u8)).collect();
        let mask = Mask::new([&*secret]);
        // As `echo` gives it to `base64`.
        let encoded = BASE64_STANDARD_NO_PAD.encode(format!("{secret}\n"));
        for width in [64, 76] {
            let lines = encoded.as_bytes().chunks(width).map(String::from_utf8_lossy);
            let mut text = lines.collect::<Vec<_>>().join("\n");
            mask.apply(&mut text);
            assert!(text.lines().all(|line| line.replace("***", "").len() < 16), "{text}");
        }
    }

    #[test]
    fn a_line_of_a_secret_is_not_the_secret() {
        let mask = Mask::new(["first=1\nhunter22"]);
        assert!(mask.has("first=1\nhunter22") && !mask.has("hunter22"));
        assert!(mask.with(["hunter22"]).has("hunter22"));
    }

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
    fn secrets_are_masked_inside_json() {
        let secret = "a/b\"c\\d<é🔑>\n\u{1}'e+";
        let mask = Mask::new([secret, "first\"line\nsecond"]);
        for written in [
            r#"a/b\"c\\d<é🔑>\n\u0001'e+"#,
            r#"a\/b\"c\\d<é🔑>\n\u0001'e+"#,
            r#"a\/b\"c\\d<\u00e9\ud83d\udd11>\n\u0001'e+"#,
            r#"a/b\"c\\d<\u00e9\ud83d\udd11>\n\u0001'e+"#,
            r#"a/b\"c\\d<\u00E9\uD83D\uDD11>\n\u0001'e+"#,
            r#"a/b\"c\\d\u003cé🔑\u003e\n\u0001'e+"#,
            r#"a/b\"c\\d\u003cé🔑\u003e\n\u0001\u0027e+"#,
            r#"a/b\u0022c\\d\u003C\u00E9\uD83D\uDD11\u003E\n\u0001\u0027e\u002B"#,
            r#"first\"line"#,
            r#"first\"line\nsecond"#,
        ] {
            assert_eq!(in_pieces(&mask, &["\"", written, "\""]), "\"***\"", "{written}");
            let (start, end) = written.split_at(7);
            assert_eq!(in_pieces(&mask, &["\"", start, end, "\""]), "\"***\"", "{written}");
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
