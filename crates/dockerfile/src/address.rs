//! Addresses of files: `ADD https://...`.
//!
//! An address may hold a user's name and password. They are for the server that it names, and
//! for nobody who reads logs, histories or error messages.

use std::borrow::Cow;
use std::fmt;

/// An `http://` or `https://` address. Shows itself without what is secret in it.
#[derive(Clone, PartialEq, Eq)]
pub struct Address(String);

impl Address {
    /// Takes a source that is such an address.
    pub fn new(source: &str) -> Option<Self> {
        let is_one = source.starts_with("http://") || source.starts_with("https://");
        is_one.then(|| Self(source.to_owned()))
    }

    /// All of it, for whoever fetches the file.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What must not be seen: the user and password of the address.
    pub fn secret(&self) -> Option<&str> {
        secret_of(&self.0)
    }

    /// The file's name: the last part of the path, as Go's `path.Base` has it.
    pub fn file_name(&self) -> String {
        let rest = self.0.split_once("://").map_or("", |(_, rest)| rest);
        let path = rest.find(['/', '?', '#']).map_or("", |start| &rest[start..]);
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let decoded = percent_decoded(path);
        match decoded.trim_end_matches('/').rsplit('/').next() {
            Some(name) if !matches!(name, "" | "." | "..") => name.to_owned(),
            _ => "__unnamed__".to_owned(),
        }
    }

    /// Whether it is that of a repository at GitHub, which has no archive there.
    pub fn is_github_repository(&self) -> bool {
        let rest = self.0.split_once("://").map_or("", |(_, rest)| rest);
        let rest = rest[credentials(rest).len()..].trim_start_matches('@');
        let path = &rest[..rest.find(['?', '#']).unwrap_or(rest.len())];
        match path.trim_end_matches('/').split('/').collect::<Vec<_>>()[..] {
            [host, _, name] => host.eq_ignore_ascii_case("github.com") && !name.ends_with(".git"),
            _ => false,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_credentials(&self.0))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

/// What is no UTF-8 when it is decoded stays as it is.
pub(crate) fn percent_decoded(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let bytes = path.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = path.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        let byte = digits
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.push(byte.unwrap_or(bytes[at]));
        at += if byte.is_some() { 3 } else { 1 };
    }
    match String::from_utf8(decoded) {
        Ok(text) if !text.contains('\0') => Cow::Owned(text),
        _ => Cow::Borrowed(path),
    }
}

/// What of an address must not be seen.
pub(crate) fn secret_of(address: &str) -> Option<&str> {
    let (_, rest) = address.split_once("://")?;
    Some(credentials(rest)).filter(|secret| !secret.is_empty())
}

/// A text with the credentials of all addresses in it replaced by `***`.
pub fn without_credentials(text: &str) -> String {
    replace_credentials(text, |_| "***".to_owned())
}

/// The same, with as many characters as before.
pub(crate) fn masked_credentials(text: &str) -> String {
    replace_credentials(text, |secret| "*".repeat(secret.chars().count()))
}

fn replace_credentials(text: &str, replaced: impl Fn(&str) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut done, mut word) = (0, Word::default());
    while let Some(found) = text[done..].find("://") {
        let start = done + found + 3;
        out.push_str(&text[done..start]);
        if word.end < start {
            word = Word::at(text, start);
        }
        let secret = word.credentials(text, start);
        if !secret.is_empty() {
            out.push_str(&replaced(secret));
        }
        done = start + secret.len();
    }
    out.push_str(&text[done..]);
    out
}

/// What stands before the `@` of an address, which begins after its `://`.
fn credentials(text: &str) -> &str {
    Word::at(text, 0).credentials(text, 0)
}

/// Where a word ends, and where its last `@` is. A word may hold many addresses, and is read once.
#[derive(Default)]
struct Word {
    end: usize,
    at: Option<usize>,
}

impl Word {
    fn at(text: &str, start: usize) -> Self {
        let rest = &text[start..];
        let len = rest.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\''));
        let len = len.unwrap_or(rest.len());
        Self { end: start + len, at: rest[..len].rfind('@').map(|at| start + at) }
    }

    /// Of the address that begins at `start` in this word.
    fn credentials<'a>(&self, text: &'a str, start: usize) -> &'a str {
        let Some(last_at) = self.at.filter(|at| *at >= start) else { return "" };
        let word = &text[start..self.end];
        let end = word.find(['/', '?', '#', '\\']).unwrap_or(word.len());
        let host = &word[..end];
        if let Some(at) = host.rfind('@') {
            // The digest of an image is none.
            let is_digest =
                ["sha256:", "sha512:"].iter().any(|kind| host[at + 1..].starts_with(kind));
            return if is_digest { "" } else { &word[..at] };
        }
        // A password with a character that it may not have breaks the address: hide all of it.
        let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        match host.rsplit_once(':') {
            Some((_, port)) if !is_port(port) && !host.ends_with(']') => &text[start..last_at],
            _ => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_by_the_last_part_of_the_path() {
        let name = |text: &str| Address::new(text).unwrap().file_name();
        for (address, expected) in [
            ("https://h/a/b.txt", "b.txt"),
            ("https://h/a/b.txt?x=/y#/z", "b.txt"),
            ("https://h/a/b/", "b"),
            ("https://h/a%20b", "a b"),
            ("https://h/x%2Fy", "y"),
            ("https://h/%ff", "%ff"),
            ("https://h/%00", "%00"),
            ("https://h/%zz%", "%zz%"),
            ("https://h", "__unnamed__"),
            ("https://h/", "__unnamed__"),
            ("https://h?a/b", "__unnamed__"),
            ("https://h/..", "__unnamed__"),
            ("https://h/x/%2e%2e", "__unnamed__"),
            ("http://u:p@h/f", "f"),
        ] {
            assert_eq!(name(address), expected, "{address}");
        }
    }

    #[test]
    fn credentials_are_not_shown() {
        let cases = [
            ("ADD https://u:p@h/x /", "ADD https://***@h/x /"),
            ("https://token@h/x@v1", "https://***@h/x@v1"),
            ("https://u:p@w@h/x", "https://***@h/x"),
            ("https://u:p#w@h/x", "https://***@h/x"),
            ("https://h:80/x@v1", "https://h:80/x@v1"),
            ("https://[::1]/x@v1", "https://[::1]/x@v1"),
            ("https://h/npm@5 http://a:b@c", "https://h/npm@5 http://***@c"),
            ("[\"https://u:p@h/x\", \"/\"]", "[\"https://***@h/x\", \"/\"]"),
            ("no address: a@b", "no address: a@b"),
            ("docker-image://alpine@sha256:ab", "docker-image://alpine@sha256:ab"),
            ("x://a:b/y://c:d@e", "x://***@e"),
            ("x://a/y://c@e x://f@g", "x://a/y://***@e x://***@g"),
            ("://", "://"),
        ];
        for (text, shown) in cases {
            assert_eq!(without_credentials(text), shown);
            assert_eq!(masked_credentials(text).chars().count(), text.chars().count());
        }
        assert_eq!(masked_credentials("http://u:pß@h"), "http://****@h");
        // Long words are read once.
        let long = format!("@{}", "://a:b".repeat(200_000));
        assert_eq!(without_credentials(&long), long);
        let address = Address::new("https://u:secret@h/x").unwrap();
        assert_eq!(format!("{address} {address:?}"), "https://***@h/x \"https://***@h/x\"");
    }
}
