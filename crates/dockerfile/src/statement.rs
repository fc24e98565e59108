//! Instructions as written: keyword, flags and arguments apart, not yet understood.
//!
//! How arguments are split depends on the instruction: at blanks, at blanks outside of quotes,
//! as a JSON list, or not at all. Quotes, escapes and variables stay in them.

use crate::heredoc::HereDocument;
use crate::instruction::Word;
use crate::scan::Line;
use crate::span::{DockerfileError, Span, Text};

/// One instruction, split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// As written, in whatever case.
    pub keyword: Word,
    /// `--name=value`, with quotes and escapes resolved.
    pub flags: Vec<Word>,
    pub arguments: Arguments,
    pub arguments_at: Span,
    pub documents: Vec<HereDocument>,
    /// All of it, continuation lines joined, without the lines of here-documents.
    pub text: String,
    pub at: Span,
}

/// What stands behind the flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arguments {
    /// All of it as one.
    Text(Word),
    Words(Vec<Word>),
    /// A JSON list of strings.
    List(Vec<String>),
    Pairs(Vec<Pair>),
    /// `HEALTHCHECK`'s kind and what follows it: a text or a list.
    Kind(Word, Box<Arguments>),
    /// `ONBUILD`'s own instruction.
    Nested(Box<Statement>),
    /// Nothing is there.
    Nothing,
}

/// `name=value`, or in the old form `name value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub name: Word,
    pub value: Word,
    pub is_old_form: bool,
}

/// Splits an instruction.
pub(crate) fn split(
    source: &Text<'_>,
    line: &Line,
    escape: char,
) -> Result<Statement, DockerfileError> {
    let mut statement = Splitter { source, line, escape }.statement(0)?;
    statement.documents.clone_from(&line.documents);
    Ok(statement)
}

/// Whether lines after an instruction may belong to it: those of here-documents.
pub(crate) fn may_have_documents(text: &str, escape: char) -> bool {
    if !text.contains("<<") {
        return false;
    }
    let (keyword, rest) = keyword(text);
    match keyword.to_ascii_lowercase().as_str() {
        "onbuild" => {
            let (_, start) = flags(rest, escape);
            let (nested, _) = self::keyword(rest[start..].trim_start());
            !nested.eq_ignore_ascii_case("onbuild")
                && may_have_documents(rest[start..].trim_start(), escape)
        }
        "add" | "copy" | "run" => {
            let (_, start) = flags(rest, escape);
            json_list(&rest[start..]).is_none()
        }
        _ => false,
    }
}

fn keyword(text: &str) -> (&str, &str) {
    text.split_at(text.find(char::is_whitespace).unwrap_or(text.len()))
}

/// A flag with its range in the text it was found in.
type RawFlag = (String, usize, usize);

/// The flags at the start of a text, and where what follows them begins. `--` alone ends them.
fn flags(text: &str, escape: char) -> (Vec<RawFlag>, usize) {
    let mut flags = Vec::new();
    let mut at = 0;
    loop {
        at += text[at..].len() - text[at..].trim_start().len();
        if !text[at..].starts_with("--") {
            return (flags, at);
        }
        let (mut flag, mut quote, mut is_quoted) = (String::new(), None, false);
        let mut end = text.len();
        let mut chars = text[at..].char_indices();
        while let Some((offset, c)) = chars.next() {
            match quote {
                None if c.is_whitespace() => {
                    end = at + offset;
                    break;
                }
                None if matches!(c, '\'' | '"') => (quote, is_quoted) = (Some(c), true),
                Some(open) if c == open => quote = None,
                _ if c == escape => flag.extend(chars.next().map(|(_, c)| c)),
                _ => flag.push(c),
            }
        }
        if flag == "--" && !is_quoted {
            return (flags, end);
        }
        flags.push((flag, at, end));
        at = end;
    }
}

/// A JSON list of strings, or nothing: then it is something else.
pub(crate) fn json_list(text: &str) -> Option<Vec<String>> {
    let text = text.trim();
    if !text.starts_with('[') {
        return None;
    }
    serde_json::from_str(text).ok()
}

/// Whether a text is a JSON list with something else than strings in it.
fn is_other_json_list(text: &str) -> bool {
    text.trim().starts_with('[')
        && json_list(text).is_none()
        && serde_json::from_str::<Vec<serde_json::Value>>(text.trim()).is_ok()
}

struct Splitter<'a> {
    source: &'a Text<'a>,
    line: &'a Line,
    escape: char,
}

impl Splitter<'_> {
    fn span(&self, start: usize, end: usize) -> Span {
        self.line.span(self.source, start, end)
    }

    fn word(&self, start: usize, end: usize) -> Word {
        Word { text: self.line.text[start..end].to_owned(), at: self.span(start, end) }
    }

    fn behind_blanks(&self, start: usize) -> usize {
        self.line.text.len() - self.line.text[start..].trim_start().len()
    }

    fn statement(&self, start: usize) -> Result<Statement, DockerfileError> {
        let text = &self.line.text[start..];
        let (keyword, rest) = keyword(text);
        let keyword_end = start + keyword.len();
        let (flags, length) = flags(rest, self.escape);
        let flags = flags.into_iter().map(|(text, from, to)| {
            let at = self.span(keyword_end + from, keyword_end + to);
            Word { text, at }
        });
        Ok(Statement {
            keyword: self.word(start, keyword_end),
            flags: flags.collect(),
            arguments: self.arguments(&keyword.to_ascii_lowercase(), keyword_end + length)?,
            arguments_at: self.span(self.behind_blanks(keyword_end + length), self.line.text.len()),
            documents: Vec::new(),
            text: text.to_owned(),
            at: self.span(start, self.line.text.len()),
        })
    }

    fn arguments(&self, keyword: &str, start: usize) -> Result<Arguments, DockerfileError> {
        let text = &self.line.text;
        let start = self.behind_blanks(start);
        if start == text.len() {
            return Ok(Arguments::Nothing);
        }
        let words = |words: Vec<(usize, usize)>| {
            Arguments::Words(words.into_iter().map(|(from, to)| self.word(from, to)).collect())
        };
        Ok(match keyword {
            "add" | "copy" | "volume" => match self.list(start)? {
                Some(list) => Arguments::List(list),
                None => words(self.words(start, false)),
            },
            "run" | "cmd" | "entrypoint" | "shell" => self.text_or_list(start)?,
            "env" | "label" => Arguments::Pairs(self.pairs(keyword, start)?),
            "arg" => words(self.words(start, true)),
            "expose" | "from" => words(self.words(start, false)),
            "healthcheck" => {
                let length = keyword_length(&text[start..]);
                let kind = self.word(start, start + length);
                let rest = &text[start + length..];
                let after = text.len() - rest.trim_start().len();
                let command = match after == text.len() {
                    true => Arguments::Nothing,
                    false => self.text_or_list(after)?,
                };
                Arguments::Kind(kind, Box::new(command))
            }
            "onbuild" => Arguments::Nested(Box::new(self.nested(start)?)),
            _ => Arguments::Text(self.word(start, text.len())),
        })
    }

    /// An `ONBUILD` inside of one is refused later; here it must not nest for ever.
    fn nested(&self, start: usize) -> Result<Statement, DockerfileError> {
        let (keyword, _) = keyword(&self.line.text[start..]);
        if keyword.eq_ignore_ascii_case("onbuild") {
            let message = "`ONBUILD` cannot hold another `ONBUILD`";
            return Err(DockerfileError::new(self.span(start, start + keyword.len()), message));
        }
        self.statement(start)
    }

    fn list(&self, start: usize) -> Result<Option<Vec<String>>, DockerfileError> {
        let text = &self.line.text[start..];
        if is_other_json_list(text) {
            let at = self.span(start, self.line.text.len());
            return Err(DockerfileError::new(at, "a JSON list here may hold only strings"));
        }
        Ok(json_list(text))
    }

    fn text_or_list(&self, start: usize) -> Result<Arguments, DockerfileError> {
        Ok(match self.list(start)? {
            Some(list) => Arguments::List(list),
            None => Arguments::Text(self.word(start, self.line.text.len())),
        })
    }

    /// Ranges between blanks; with `quotes`, only between those outside of quotes.
    fn words(&self, start: usize, quotes: bool) -> Vec<(usize, usize)> {
        let text = &self.line.text[start..];
        let mut words = Vec::new();
        let mut begin = None;
        let mut quote = None;
        let mut escaped = false;
        for (at, c) in text.char_indices() {
            let was_escaped = std::mem::take(&mut escaped);
            match quote {
                None if c.is_whitespace() && !was_escaped => {
                    if let Some(begin) = begin.take() {
                        words.push((start + begin, start + at));
                    }
                    continue;
                }
                None if matches!(c, '\'' | '"') && quotes && !was_escaped => quote = Some(c),
                Some(open) if c == open && !was_escaped => quote = None,
                _ => (),
            }
            // Nothing is escaped inside single quotes.
            escaped = quotes && c == self.escape && !was_escaped && quote != Some('\'');
            begin.get_or_insert(at);
        }
        if let Some(begin) = begin {
            words.push((start + begin, self.line.text.len()));
        }
        words
    }

    /// `a=1 b=2`, or the old form `a 1`.
    fn pairs(&self, instruction: &str, start: usize) -> Result<Vec<Pair>, DockerfileError> {
        let words = self.words(start, true);
        let text = &self.line.text;
        let refuse =
            |(from, to), message: String| Err(DockerfileError::new(self.span(from, to), message));
        let Some(&(first, first_end)) = words.first() else { return Ok(Vec::new()) };
        if !text[first..first_end].contains('=') {
            let name_end = first + keyword_length(&text[first..]);
            let value = text[name_end..].trim_start();
            if value.is_empty() {
                let (name, instruction) = (&text[first..name_end], instruction.to_uppercase());
                let message = format!("`{instruction}` needs a value: `{name}=...`");
                return refuse((first, name_end), message);
            }
            let value = self.word(text.len() - value.len(), text.len());
            let name = self.word(first, name_end);
            return Ok(vec![Pair { name, value, is_old_form: true }]);
        }
        let mut pairs = Vec::with_capacity(words.len());
        for (from, to) in words {
            let word = &text[from..to];
            let Some(length) = word.find('=') else {
                let message = format!("`{word}` has no value: expected `name=value`");
                return refuse((from, to), message);
            };
            if length == 0 {
                return refuse((from, to), format!("`{word}` has no name before `=`"));
            }
            pairs.push(Pair {
                name: self.word(from, from + length),
                value: self.word(from + length + 1, to),
                is_old_form: false,
            });
        }
        Ok(pairs)
    }
}

fn keyword_length(text: &str) -> usize {
    keyword(text).0.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_end_at_two_dashes_or_at_the_first_word() {
        let found = |text| {
            let (flags, end) = flags(text, '\\');
            let flags: Vec<String> = flags.into_iter().map(|(flag, ..)| flag).collect();
            (flags, text[end..].trim().to_owned())
        };
        let own = |flags: &[&str], rest: &str| {
            (flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>(), rest.to_owned())
        };
        assert_eq!(found(" --a=1  --b x --c"), own(&["--a=1", "--b"], "x --c"));
        assert_eq!(found(" --a='x y' z"), own(&["--a=x y"], "z"));
        assert_eq!(found(" --a=x\\ y z"), own(&["--a=x y"], "z"));
        assert_eq!(found(" --a -- --b"), own(&["--a"], "--b"));
        assert_eq!(found(" --"), own(&[], ""));
        assert_eq!(found(" - x"), own(&[], "- x"));
    }

    #[test]
    fn documents_belong_to_three_instructions() {
        for (text, expected) in [
            ("RUN <<E", true),
            ("onbuild copy <<E /x", true),
            ("ONBUILD ONBUILD RUN <<E", false),
            ("USER <<E", false),
            ("RUN [\"<<E\"]", false),
            ("RUN --mount=type=tmpfs,target=/x <<E", true),
            ("RUN cat", false),
        ] {
            assert_eq!(may_have_documents(text, '\\'), expected, "{text}");
        }
    }
}
