//! Secrets do not reach a log.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What stands where a secret was.
const MASK: &str = "*****";

/// Lines of a longer secret that are shorter than this are not hidden by themselves: they
/// would be found everywhere.
const LINE_LEN_MIN: usize = 4;

/// Replaces secret values in text.
///
/// It works on one event at a time, and events hold whole lines where possible; a program
/// that takes a secret apart is beyond it.
#[derive(Clone, Default)]
pub struct Mask {
    /// Longest first, so that a secret within another does not leave the rest in view.
    secrets: Vec<String>,
}

impl Mask {
    pub fn new<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut secrets = Vec::new();
        for value in values {
            secrets.push(value.trim().to_owned());
            let lines = value.lines().map(str::trim);
            secrets.extend(lines.filter(|line| line.len() >= LINE_LEN_MIN).map(str::to_owned));
            if value.len() >= LINE_LEN_MIN {
                secrets.extend(encoded(value));
                secrets.extend(encoded(value.trim()));
            }
        }
        secrets.retain(|secret| !secret.is_empty());
        secrets.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        secrets.dedup();
        Self { secrets }
    }

    /// Replaces the secrets of a text.
    pub(crate) fn apply(&self, text: &mut String) {
        for secret in &self.secrets {
            if text.contains(secret.as_str()) {
                *text = text.replace(secret.as_str(), MASK);
            }
        }
    }
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
    [base64, for_addresses, all, address, path, form].into_iter()
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
        let mask = Mask::new(["hunter", "hunter22", "-----BEGIN\nabcdef\nx\n", ""]);
        for (text, expected) in [
            ("pass hunter22, hunter", "pass *****, *****"),
            ("line abcdef end", "line ***** end"),
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
            (format!("Authorization: Basic {base64}"), "Authorization: Basic *****="),
            ("?q=p%3Fss%20w%C3%B6rd%2F%2B&r".to_owned(), "?q=*****&r"),
            ("q=p%3Fss+w%C3%B6rd%2F%2B".to_owned(), "q=*****"),
            ("/p%3Fss%20w%C3%B6rd/%2B".to_owned(), "/*****"),
            ("x=my-pass%20word".to_owned(), "x=*****"),
            ("bXktcGFzcyB3b3Jk".to_owned(), "*****"),
        ] {
            let mut masked = text;
            mask.apply(&mut masked);
            assert_eq!(masked.trim_end_matches('='), expected.trim_end_matches('='));
        }
    }
}
