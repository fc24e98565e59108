//! Lines of a log in which something is found.

use bytes::Bytes;
use regex::bytes::{Regex, RegexBuilder};

use crate::error::ApiError;

/// Bytes of a pattern, and of what it is compiled to.
const PATTERN_MAX: usize = 1024;
const COMPILED_MAX: usize = 256 << 10;

/// A longer line is searched piece by piece.
const LINE_MAX: usize = 64 << 10;

/// Passes on the lines of a stream of bytes in which a regular expression is found.
pub(crate) struct LineFilter {
    pattern: Regex,
    /// The line that has not ended yet.
    open: Vec<u8>,
    /// The line that has not ended is so long that a piece of it was passed on already.
    is_passing: bool,
}

impl LineFilter {
    pub(crate) fn new(pattern: &str) -> Result<Self, ApiError> {
        let refuse = |message: String| ApiError::invalid(message).at("grep");
        if pattern.len() > PATTERN_MAX {
            return Err(refuse(format!("the pattern has more than {PATTERN_MAX} bytes")));
        }
        let pattern = RegexBuilder::new(pattern)
            .size_limit(COMPILED_MAX)
            .dfa_size_limit(COMPILED_MAX)
            .build()
            .map_err(|error| refuse(format!("the pattern cannot be used: {error}")))?;
        Ok(Self { pattern, open: Vec::new(), is_passing: false })
    }

    /// What of the lines that end with a chunk is passed on.
    pub(crate) fn push(&mut self, chunk: &[u8]) -> Bytes {
        let mut out = Vec::new();
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            self.open.extend_from_slice(piece);
            let has_ended = piece.ends_with(b"\n");
            if has_ended || self.open.len() >= LINE_MAX {
                self.decide(has_ended, &mut out);
            }
        }
        out.into()
    }

    /// The last line, if it has no end.
    pub(crate) fn finish(&mut self) -> Bytes {
        let mut out = Vec::new();
        if !self.open.is_empty() {
            self.decide(true, &mut out);
        }
        out.into()
    }

    fn decide(&mut self, has_ended: bool, out: &mut Vec<u8>) {
        let line = self.open.strip_suffix(b"\n").unwrap_or(&self.open);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let passes = self.is_passing || self.pattern.is_match(line);
        if passes {
            out.extend_from_slice(&self.open);
        }
        self.is_passing = passes && !has_ended;
        self.open.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filtered(pattern: &str, chunks: &[&str]) -> String {
        let mut filter = LineFilter::new(pattern).unwrap();
        let mut out = Vec::new();
        for chunk in chunks {
            out.extend_from_slice(&filter.push(chunk.as_bytes()));
        }
        out.extend_from_slice(&filter.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_whole_however_they_come() {
        assert_eq!(
            filtered("rr", &["an er", "ror\r\nfine\r", "\n2 err", "ors"]),
            "an error\r\n2 errors"
        );
        assert_eq!(filtered("^b$", &["a\r\nb\r\nbb\n"]), "b\r\n");
        assert_eq!(filtered("(?i)ERROR", &["Error\n"]), "Error\n");
        assert_eq!(filtered("x", &[]), "");
    }

    #[test]
    fn a_line_without_end_is_searched_in_pieces() {
        let (plain, found) = ("a".repeat(LINE_MAX), format!("x{}", "a".repeat(LINE_MAX - 1)));
        assert_eq!(filtered("x", &[&plain, &found, &plain, "\n", "a\n"]).len(), 2 * LINE_MAX + 1);
    }

    #[test]
    fn patterns_have_bounds() {
        assert!(LineFilter::new(&"a".repeat(PATTERN_MAX + 1)).is_err());
        assert!(LineFilter::new("(").is_err());
        assert!(LineFilter::new("(a{1000}){1000}").is_err());
    }

    proptest! {
        #[test]
        fn no_line_is_lost_or_made(text in "[abx\n]{0,200}", cut in 0_usize..200) {
            let (first, second) = text.split_at(cut.min(text.len()));
            let expected: String =
                text.split_inclusive('\n').filter(|line| line.contains('x')).collect();
            prop_assert_eq!(filtered("x", &[first, second]), expected);
        }
    }
}
