//! Positions in a Dockerfile, and errors that show them.

use std::fmt::Write;
use std::ops::Deref;

use crate::address::masked_credentials;

/// A range of the source: 1-based line and column (in characters) of its start, byte offsets
/// of both ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    pub line: u32,
    pub column: u32,
    pub start: usize,
    pub end: usize,
}

/// A text in which positions are found without reading it from its start each time.
pub(crate) struct Text<'a> {
    text: &'a str,
    line_starts: Vec<usize>,
    /// Characters that begin before each block of `BLOCK` bytes.
    characters: Vec<usize>,
}

const BLOCK: usize = 256;

impl<'a> Text<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let line_starts = text.match_indices('\n').map(|(at, _)| at + 1);
        let mut before = 0;
        let characters = text.as_bytes().chunks(BLOCK).map(|block| {
            let here = before;
            before += characters_in(block);
            here
        });
        Self {
            text,
            line_starts: std::iter::once(0).chain(line_starts).collect(),
            characters: characters.collect(),
        }
    }

    fn characters_before(&self, at: usize) -> usize {
        let block = at / BLOCK;
        let known = self.characters.get(block).copied();
        let known = known.unwrap_or_else(|| characters_in(self.text.as_bytes()));
        known + characters_in(&self.text.as_bytes()[(block * BLOCK).min(at)..at])
    }

    /// The range between two byte offsets, which are moved to the nearest character
    /// boundaries inside the text.
    pub(crate) fn span(&self, start: usize, end: usize) -> Span {
        let start = floor(self.text, start);
        let end = floor(self.text, end).max(start);
        let line = self.line_starts.partition_point(|line_start| *line_start <= start);
        let line_start = self.line_starts[line.saturating_sub(1)];
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let column = self.characters_before(start) - self.characters_before(line_start);
        Span { line: number(line), column: number(column).saturating_add(1), start, end }
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        self.text
    }
}

/// Characters that begin in a piece of UTF-8.
fn characters_in(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
}

/// The last character boundary at or before an offset.
fn floor(source: &str, offset: usize) -> usize {
    let mut at = offset.min(source.len());
    while !source.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Why a Dockerfile was refused, or cannot be planned. `Display` is the sentence alone;
/// [`Self::render`] shows the guilty line too.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DockerfileError {
    pub message: String,
    pub at: Span,
    pub hint: Option<String>,
}

impl DockerfileError {
    pub(crate) fn new(at: Span, message: impl Into<String>) -> Self {
        Self { message: message.into(), at, hint: None }
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The error with file, line, the guilty text underlined, and the hint.
    pub fn render(&self, file: &str, source: &str) -> String {
        render("error", &self.message, self.at, self.hint.as_deref(), file, source)
    }
}

/// A message with file, line, the text it is about underlined, and a hint.
pub(crate) fn render(
    kind: &str,
    message: &str,
    at: Span,
    hint: Option<&str>,
    file: &str,
    source: &str,
) -> String {
    let Span { line, column, start, end } = at;
    let (start, end) = (floor(source, start), floor(source, end.max(start)));
    let number = line.to_string();
    let margin = " ".repeat(number.len());
    let mut out = format!("{kind}: {message}\n{margin}--> {file}:{line}:{column}\n");
    let line_start = source[..start].rfind('\n').map_or(0, |at| at + 1);
    let line_end = source[start..].find('\n').map_or(source.len(), |at| start + at);
    let text = printable(&masked_credentials(source[line_start..line_end].trim_end()));
    // Marks stay on the first line, at least one of them.
    let marked = &source[start..end.min(line_end)];
    let indent = printable(&source[line_start..start]).chars().count();
    let marks = "^".repeat(printable(marked.trim_end()).chars().count().max(1));
    // Writing to a string cannot fail.
    let _ =
        write!(out, "{margin} |\n{number} | {text}\n{margin} | {}{marks}\n", " ".repeat(indent));
    if let Some(hint) = hint {
        let _ = writeln!(out, "hint: {hint}");
    }
    out
}

/// A line as it may be shown: tabs as one blank, other control characters replaced.
fn printable(text: &str) -> String {
    let shown = |c: char| match c {
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.chars().map(shown).collect()
}

/// The name that is most like a wrong one, if any is near enough to be meant.
pub fn nearest<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wrong = wrong.to_lowercase();
    let scored = names.into_iter().map(|name| (distance(&wrong, &name.to_lowercase()), name));
    let (score, name) = scored.min_by_key(|(score, _)| *score)?;
    (score <= wrong.chars().count().max(3) / 3 + 1 && score < wrong.chars().count().max(2))
        .then_some(name)
}

/// Names longer than this are not compared.
const COMPARED_MAX: usize = 64;

/// Edits (insert, delete, replace, swap neighbours) from one text to the other.
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().take(COMPARED_MAX).collect();
    let right: Vec<char> = right.chars().take(COMPARED_MAX).collect();
    let width = right.len() + 1;
    let mut table: Vec<usize> = vec![0; (left.len() + 1) * width];
    for row in 0..=left.len() {
        for column in 0..width {
            let at = row * width + column;
            if row == 0 || column == 0 {
                table[at] = row + column;
                continue;
            }
            let cost = usize::from(left[row - 1] != right[column - 1]);
            let mut best = (table[at - width] + 1).min(table[at - 1] + 1);
            best = best.min(table[at - width - 1] + cost);
            let swapped = row > 1
                && column > 1
                && left[row - 1] == right[column - 2]
                && left[row - 2] == right[column - 1];
            if swapped {
                best = best.min(table[at - 2 * width - 2] + 1);
            }
            table[at] = best;
        }
    }
    table.last().copied().unwrap_or(0)
}
