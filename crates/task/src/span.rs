//! Positions in a task file, and errors and warnings that show them.

use std::fmt::Write;

/// Where something stands in one of the texts a task file goes through: 1-based line and
/// column (in characters), and how many characters of that line are meant. Line 0 is nowhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    pub line: usize,
    pub column: usize,
    pub width: usize,
}

impl Span {
    /// The range between two byte offsets of a text, which need not lie on boundaries.
    pub(crate) fn between(text: &str, start: usize, end: usize) -> Self {
        let start = floor(text, start);
        let end = floor(text, end).max(start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        Self {
            line: text[..line_start].bytes().filter(|byte| *byte == b'\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            width: text[start..end.min(line_end)].trim_end().chars().count().max(1),
        }
    }
}

/// The last character boundary at or before an offset.
fn floor(text: &str, offset: usize) -> usize {
    let mut at = offset.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Characters of a line that are shown.
const SHOWN_MAX: usize = 300;
/// Characters of a sentence or hint that are kept.
const MESSAGE_MAX: usize = 2000;

/// What is wrong with a task file, or odd about it. `Display` is the sentence alone;
/// [`Self::render`] shows the guilty line too.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TaskError {
    pub message: String,
    pub hint: Option<String>,
    pub at: Option<Span>,
    pub(crate) line: Option<Line>,
}

/// The line that a position is in. It need not be in the source: aliases and templates may
/// have made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    text: String,
    /// How many equal lines the text has, before this one and in all.
    equal_before: usize,
    equal: usize,
}

/// Said of a line that is not in the source as it is.
const RENDERED: &str = " of the rendered task file";

/// Something that is ignored, and should be known to be.
pub type Warning = TaskError;

/// Warnings that are kept; one that counts the others comes after them.
const WARNINGS_MAX: usize = 100;

/// Warnings about one text.
#[derive(Debug, Default)]
pub(crate) struct Warnings {
    kept: Vec<Warning>,
    others: usize,
}

impl Warnings {
    /// Takes a warning, which is made only if it is kept.
    pub(crate) fn add(&mut self, warning: impl FnOnce() -> Warning) {
        match self.kept.len() < WARNINGS_MAX {
            true => self.kept.push(warning()),
            false => self.others += 1,
        }
    }

    /// The warnings, each made ready to be shown.
    pub(crate) fn shown(self, show: impl Fn(Warning) -> Warning) -> Vec<Warning> {
        let mut warnings: Vec<Warning> = self.kept.into_iter().map(show).collect();
        if self.others > 0 {
            warnings.push(Warning::new(format!("and {} more warnings", self.others)));
        }
        warnings
    }
}

impl TaskError {
    /// An error of the file as a whole.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, at: None, line: None }
    }

    pub(crate) fn at(at: Span, message: impl Into<String>) -> Self {
        Self { at: (at.line > 0).then_some(at), ..Self::new(message) }
    }

    /// The same with what the user can do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With a hint that names what was probably meant, if anything is near.
    pub(crate) fn with_nearest<'a>(
        self,
        wrong: &str,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        match nearest(wrong, names) {
            Some(name) => self.with_hint(format!("did you mean `{name}`?")),
            None => self,
        }
    }

    /// Keeps the guilty line of the text that the position is in.
    pub(crate) fn shown_in(mut self, text: &str) -> Self {
        if let (Some(at), None) = (self.at, &self.line) {
            self.line = text.lines().nth(at.line - 1).map(|line| {
                let equal = |lines: usize| text.lines().take(lines).filter(|l| *l == line).count();
                Line {
                    text: line.to_owned(),
                    equal_before: equal(at.line - 1),
                    equal: equal(usize::MAX),
                }
            });
        }
        self
    }

    /// Without the given texts, the longest of them first, wherever they would be shown; and
    /// no longer than it should be, which is seen to only then, so that no part of one stays.
    pub(crate) fn masked(mut self, hidden: &[String]) -> Self {
        let line = self.line.as_mut().map(|line| &mut line.text);
        let shown = [Some(&mut self.message), self.hint.as_mut(), line];
        for text in shown.into_iter().flatten() {
            for secret in hidden {
                *text = text.replace(secret, "***");
            }
        }
        for text in [Some(&mut self.message), self.hint.as_mut()].into_iter().flatten() {
            if let Some((end, _)) = text.char_indices().nth(MESSAGE_MAX) {
                text.truncate(end);
                text.push_str("...");
            }
        }
        self
    }

    /// Without the line, unless it stands as it is in another text, which may be shown.
    pub(crate) fn shown_only_from(mut self, text: &str) -> Self {
        let line = self.line.take();
        self.line = line.filter(|line| text.lines().any(|other| other == line.text));
        self
    }

    /// The error with file, line, the guilty text underlined, and the hint.
    ///
    /// Lines are those of the source where the guilty line stands there as it is, and as
    /// often; else those of the text that aliases and templates made of it, and it says so.
    pub fn render(&self, file: &str, source: &str) -> String {
        self.render_as("error", file, source)
    }

    /// The same for a warning.
    pub fn render_warning(&self, file: &str, source: &str) -> String {
        self.render_as("warning", file, source)
    }

    fn render_as(&self, kind: &str, file: &str, source: &str) -> String {
        let mut out = format!("{kind}: {}\n", printable(&self.message));
        // Writing to a string cannot fail.
        let _ = match (self.at, &self.line) {
            (Some(at), Some(line)) => write_line(&mut out, at, line, file, source),
            (Some(at), None) => writeln!(out, " --> {file}:{}:{}{RENDERED}", at.line, at.column),
            _ => writeln!(out, " --> {file}"),
        };
        if let Some(hint) = &self.hint {
            let _ = writeln!(out, "hint: {}", printable(hint));
        }
        out
    }
}

fn write_line(
    out: &mut String,
    at: Span,
    line: &Line,
    file: &str,
    source: &str,
) -> std::fmt::Result {
    let text = &line.text;
    let same = source.lines().enumerate().filter(|(_, other)| other == text);
    let same: Vec<usize> = same.map(|(index, _)| index + 1).collect();
    let (number, note) = match same.get(line.equal_before) {
        Some(number) if same.len() == line.equal => (*number, ""),
        _ => (at.line, RENDERED),
    };
    let number = number.to_string();
    let margin = " ".repeat(number.len());
    let shown = printable(text.trim_end()).chars().take(SHOWN_MAX).collect::<String>();
    let before: String = text.chars().take(at.column.saturating_sub(1)).collect();
    let length = shown.chars().count();
    let before = printable(&before).chars().count().min(length);
    let marks = at.width.min(length - before).max(1);
    writeln!(out, "{margin}--> {file}:{number}:{}{note}", at.column)?;
    writeln!(out, "{margin} |\n{number} | {shown}")?;
    writeln!(out, "{margin} | {}{}", " ".repeat(before), "^".repeat(marks))
}

/// A text as it may be shown: tabs as one blank, other control characters replaced.
fn printable(text: &str) -> String {
    let shown = |c: char| match c {
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.chars().map(shown).collect()
}

/// Longer names are not compared.
const COMPARED_MAX: usize = 64;

/// The name that is most like a wrong one, if any is near enough to be meant.
pub(crate) fn nearest<'a>(
    wrong: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let length = wrong.chars().count();
    if length > COMPARED_MAX {
        return None;
    }
    let wrong = wrong.to_lowercase();
    let names = names.into_iter().filter(|name| name.len() <= COMPARED_MAX);
    let scored = names.map(|name| (strsim::osa_distance(&wrong, &name.to_lowercase()), name));
    let (score, name) = scored.min_by_key(|(score, _)| *score)?;
    (score <= length.max(3) / 3 && score < length.max(2)).then_some(name)
}
