//! The text log on its way to stdout.

use crate::sanitize::{Colors, sanitize};

/// A line longer than this is cut in two.
const LINE_LEN_MAX: usize = 64 << 10;

/// Makes the log's CR LF a plain line end, and its text harmless for a terminal. A file gets
/// all else byte for byte.
pub(super) struct LogText {
    is_terminal: bool,
    pending: Vec<u8>,
}

impl LogText {
    pub(super) fn new(is_terminal: bool) -> Self {
        Self { is_terminal, pending: Vec::new() }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.pending.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.pending.len() > LINE_LEN_MAX {
                self.flush(&mut out);
            }
        }
        out
    }

    pub(super) fn finish(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.flush(&mut out);
        out
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        let line = std::mem::take(&mut self.pending);
        let (text, end): (&[u8], &[u8]) = match line.strip_suffix(b"\n") {
            Some(text) => (text.strip_suffix(b"\r").unwrap_or(text), b"\n"),
            None => (&line, b""),
        };
        match self.is_terminal {
            true => {
                let text = String::from_utf8_lossy(text);
                out.extend_from_slice(sanitize(&text, Colors::Keep).as_bytes());
            }
            false => out.extend_from_slice(text),
        }
        out.extend_from_slice(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_are_plain_and_a_terminal_is_safe() {
        let pieces: [&[u8]; 3] = [b"one\r\ntw", b"o\r", b"\n\x1b[2Jthree\xff"];
        for (is_terminal, expected) in [
            (false, &b"one\ntwo\n\x1b[2Jthree\xff"[..]),
            (true, "one\ntwo\nthree\u{fffd}".as_bytes()),
        ] {
            let mut text = LogText::new(is_terminal);
            let mut out: Vec<u8> = pieces.iter().flat_map(|piece| text.push(piece)).collect();
            out.extend(text.finish());
            assert_eq!(out, expected);
        }
    }
}
