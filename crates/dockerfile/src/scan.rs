//! Text to instructions as written: directives, comments, continuation lines.

use crate::heredoc::{self, HereDocument};
use crate::span::{DockerfileError, Span, Text};
use crate::statement::may_have_documents;

/// A Dockerfile larger than this is refused, in bytes.
const SIZE_MAX: usize = 1 << 20;
/// More instructions than this are refused.
const INSTRUCTIONS_MAX: usize = 10_000;

/// One instruction, its lines joined.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// Continuation marks and comments taken out.
    pub(crate) text: String,
    /// Where pieces of `text` come from: offset in it, offset in the source.
    pieces: Vec<(usize, usize)>,
    end: usize,
    /// The here-documents that the instruction announces, with their lines.
    pub(crate) documents: Vec<HereDocument>,
    /// The comments above it, without `#`.
    pub(crate) comments: Vec<String>,
    /// Where an instruction ends that has an empty line in it, which is deprecated.
    pub(crate) empty_continuation: Option<Span>,
}

impl Line {
    /// Where an offset of the joined text stands in the source.
    pub(crate) fn source_offset(&self, offset: usize) -> usize {
        let after = self.pieces.partition_point(|(at, _)| *at <= offset);
        let piece = self.pieces.get(after.saturating_sub(1));
        let (at, source) = piece.copied().unwrap_or_default();
        (source + (offset.saturating_sub(at))).min(self.end)
    }

    /// The source range of a range of the joined text.
    pub(crate) fn span(&self, source: &Text<'_>, start: usize, end: usize) -> Span {
        let last = self.source_offset(end.max(start + 1) - 1) + 1;
        source.span(self.source_offset(start), last.min(self.end))
    }

    pub(crate) fn whole(&self, source: &Text<'_>) -> Span {
        self.span(source, 0, self.text.trim_end().len())
    }
}

/// What the head of the file asks for, and the instructions after it.
pub(crate) struct Scanned {
    pub(crate) directives: Directives,
    pub(crate) lines: Vec<Line>,
}

/// What `# name=value` at the top of a file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directives {
    pub(crate) escape: char,
    /// Of `check`: lint settings.
    pub(crate) check: Option<(String, Span)>,
    /// Where the lines after them begin.
    end: usize,
}

pub(crate) fn scan(source: &Text<'_>) -> Result<Scanned, DockerfileError> {
    let start = Span { line: 1, column: 1, start: 0, end: 0 };
    if source.len() > SIZE_MAX {
        let message = format!("the Dockerfile is larger than {SIZE_MAX} bytes");
        return Err(DockerfileError::new(start, message));
    }
    if let Some(at) = source.find('\0') {
        let message = "the Dockerfile has a NUL byte, which text cannot have";
        return Err(DockerfileError::new(source.span(at, at + 1), message));
    }
    let directives = directives(source)?;
    let escape = directives.escape;
    let mark = if source.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let at = directives.end.max(mark);
    let mut scanner = Scanner { source, escape, at, lines: Vec::new(), comments: Vec::new() };
    scanner.run()?;
    match scanner.lines.is_empty() {
        true => Err(DockerfileError::new(start, "the Dockerfile has no instructions")),
        false => Ok(Scanned { directives, lines: scanner.lines }),
    }
}

/// Reads `# escape=`, `# syntax=` and `# check=` at the top.
fn directives(source: &Text<'_>) -> Result<Directives, DockerfileError> {
    let mut directives = Directives { escape: '\\', check: None, end: 0 };
    let mut seen: Vec<String> = Vec::new();
    let mut offset = 0;
    for line in source.split_inclusive('\n') {
        let start = offset;
        offset += line.len();
        let text = line.trim_start_matches('\u{feff}').trim();
        if start == 0 && text.starts_with("#!") {
            continue;
        }
        let Some((name, value)) = text.strip_prefix('#').and_then(|rest| rest.split_once('='))
        else {
            break;
        };
        let (name, value) = (name.trim().to_lowercase(), value.trim());
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            break;
        }
        let at = source.span(start, start + line.trim_end().len());
        let refuse = |message: String| DockerfileError::new(at, message);
        if seen.contains(&name) && matches!(name.as_str(), "escape" | "syntax" | "check") {
            return Err(refuse(format!("directive `{name}` is given twice")));
        }
        match name.as_str() {
            "escape" => match value {
                "\\" => directives.escape = '\\',
                "`" => directives.escape = '`',
                other => {
                    let message =
                        format!("escape character `{other}` is neither `\\` nor a backtick");
                    return Err(refuse(message));
                }
            },
            "syntax" => check_frontend(value).map_err(|message| {
                refuse(message).with_hint("remove the line, or use `# syntax=docker/dockerfile:1`")
            })?,
            "check" => directives.check = Some((value.to_owned(), at)),
            // An unknown one is a comment, and ends the directives.
            _ => break,
        }
        seen.push(name);
        directives.end = offset;
    }
    Ok(directives)
}

/// The official frontends are this language; others are programs of their own.
fn check_frontend(value: &str) -> Result<(), String> {
    let name = value.split(['@']).next().unwrap_or(value);
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    let name = name.split(':').next().unwrap_or(name);
    match name {
        "docker/dockerfile" | "docker/dockerfile-upstream" => Ok(()),
        _ => Err(format!("syntax frontend `{value}` is not supported")),
    }
}

struct Scanner<'a> {
    source: &'a Text<'a>,
    escape: char,
    at: usize,
    lines: Vec<Line>,
    /// Those since the last instruction.
    comments: Vec<String>,
}

impl<'a> Scanner<'a> {
    /// The next line without its end, and where it starts.
    fn next_line(&mut self) -> Option<(usize, &'a str)> {
        let start = self.at;
        let rest = self.source.get(start..).filter(|rest| !rest.is_empty())?;
        let length = rest.find('\n').map_or(rest.len(), |at| at + 1);
        self.at += length;
        Some((start, rest[..length].trim_end_matches(['\n', '\r'])))
    }

    fn run(&mut self) -> Result<(), DockerfileError> {
        while let Some((start, line)) = self.next_line() {
            let text = line.trim_start();
            if let Some(comment) = text.strip_prefix('#') {
                match comment.trim() {
                    "" => self.comments.clear(),
                    comment => self.comments.push(comment.to_owned()),
                }
                continue;
            }
            if text.is_empty() {
                continue;
            }
            let mut line = self.join(start + line.len() - text.len(), text);
            line.comments = std::mem::take(&mut self.comments);
            self.documents(&mut line)?;
            if self.lines.len() >= INSTRUCTIONS_MAX {
                let message =
                    format!("the Dockerfile has more than {INSTRUCTIONS_MAX} instructions");
                return Err(DockerfileError::new(line.whole(self.source), message));
            }
            self.lines.push(line);
        }
        Ok(())
    }

    /// Joins an instruction with the lines that continue it. Comments and empty lines between
    /// them are left out.
    fn join(&mut self, start: usize, first: &'a str) -> Line {
        let mut line = Line {
            text: String::new(),
            pieces: Vec::new(),
            end: start,
            documents: Vec::new(),
            comments: Vec::new(),
            empty_continuation: None,
        };
        let mut has_empty = false;
        let mut next = Some((start, first));
        while let Some((start, text)) = next {
            let (text, goes_on) = self.continuation(text);
            line.pieces.push((line.text.len(), start));
            line.text.push_str(text);
            line.end = start + text.len();
            if !goes_on {
                break;
            }
            next = loop {
                match self.next_line() {
                    Some((_, skipped)) if skipped.trim().is_empty() => has_empty = true,
                    Some((_, comment)) if comment.trim_start().starts_with('#') => (),
                    found => break found,
                }
            };
        }
        let kept = line.text.trim_end().len();
        line.text.truncate(kept);
        if has_empty {
            line.empty_continuation = Some(self.source.span(line.end, line.end));
        }
        line
    }

    /// Reads the lines that belong to an instruction's here-documents, as they are.
    fn documents(&mut self, line: &mut Line) -> Result<(), DockerfileError> {
        if !may_have_documents(&line.text, self.escape) {
            return Ok(());
        }
        let refuse = |message| DockerfileError::new(line.whole(self.source), message);
        let mut documents = heredoc::markers(&line.text).map_err(refuse)?;
        for document in &mut documents {
            loop {
                let start = self.at;
                if self.next_line().is_none() {
                    let name = &document.name;
                    let message = format!("the here-document `{name}` is not ended");
                    let error = DockerfileError::new(line.whole(self.source), message);
                    return Err(error.with_hint(format!("end it with a line `{name}`")));
                }
                let text = &self.source[start..self.at];
                if document.ends_at(text) {
                    break;
                }
                document.content.push_str(text);
            }
        }
        line.documents = documents;
        Ok(())
    }

    /// The line without its continuation mark, and whether it had one: a single escape
    /// character before nothing but blanks.
    fn continuation<'b>(&self, line: &'b str) -> (&'b str, bool) {
        let trimmed = line.trim_end_matches([' ', '\t']);
        match trimmed.strip_suffix(self.escape) {
            Some(rest) if !rest.ends_with(self.escape) => (rest, true),
            _ => (line, false),
        }
    }
}
