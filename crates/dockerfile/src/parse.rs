//! Text to instructions.

use crate::instruction::{Command, Copy, From, Instruction, InstructionKind, Word};
use crate::scan::{Line, scan};
use crate::span::{DockerfileError, Span, Text, nearest};

type Result<T> = std::result::Result<T, DockerfileError>;

/// A parsed Dockerfile.
#[derive(Debug, Clone)]
pub struct Dockerfile {
    /// `\`, or what `# escape=` says.
    pub escape: char,
    /// In order; the first that is not `ARG` is a `FROM`.
    pub instructions: Vec<Instruction>,
}

/// Instructions of the language, whether supported or not: for telling which was meant.
const NAMES: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Flags of an instruction: those that are supported, and those of the language that are not.
fn flags_of(instruction: &str) -> (&'static [&'static str], &'static [&'static str]) {
    match instruction {
        "FROM" => (&["platform"], &[]),
        "COPY" => (&["from", "chown", "chmod"], &["link", "parents", "exclude"]),
        "ADD" => (&["chown", "chmod"], &["link", "exclude", "keep-git-dir", "checksum", "unpack"]),
        "RUN" => (&[], &["mount", "network", "security", "device"]),
        _ => (&[], &[]),
    }
}

/// Parses a Dockerfile. The error shows the first thing that is wrong.
pub fn parse(source: &str) -> Result<Dockerfile> {
    let source = &Text::new(source);
    let scanned = scan(source)?;
    let mut instructions = Vec::with_capacity(scanned.lines.len());
    let mut has_stage = false;
    for line in &scanned.lines {
        let parser = Parser { source, line, escape: scanned.escape };
        let kind = parser.instruction()?;
        let at = line.whole(source);
        let is_from = matches!(kind, InstructionKind::From(_));
        if !has_stage && !is_from && !matches!(kind, InstructionKind::Arg(_)) {
            let error = DockerfileError::new(at, "no stage has begun before this instruction");
            return Err(error.with_hint("begin with `FROM`; only `ARG` may stand before it"));
        }
        has_stage |= is_from;
        instructions.push(Instruction { at, text: line.text.clone(), kind });
    }
    if !has_stage {
        let at = instructions.last().map_or_else(Span::default, |last| last.at);
        return Err(DockerfileError::new(at, "the Dockerfile has no `FROM`"));
    }
    Ok(Dockerfile { escape: scanned.escape, instructions })
}

struct Parser<'a> {
    source: &'a Text<'a>,
    line: &'a Line,
    escape: char,
}

/// The flags in front of an instruction's words: name, value, range in the joined text.
struct Flag {
    name: String,
    value: Option<String>,
    start: usize,
    end: usize,
}

/// Words as written, quotes and all, with their ranges in the joined text.
type RawWord<'a> = (&'a str, usize);

impl Parser<'_> {
    fn refuse<T>(&self, start: usize, end: usize, message: impl Into<String>) -> Result<T> {
        Err(DockerfileError::new(self.line.span(self.source, start, end), message))
    }

    fn word(&self, (text, start): RawWord<'_>) -> Word {
        let at = self.line.span(self.source, start, start + text.len());
        Word { text: text.to_owned(), at }
    }

    fn instruction(&self) -> Result<InstructionKind> {
        let text = &self.line.text;
        let name_end = text.find(char::is_whitespace).unwrap_or(text.len());
        let name = text[..name_end].to_uppercase();
        match name.as_str() {
            "HEALTHCHECK" | "ONBUILD" => {
                return self.refuse(0, name_end, format!("`{name}` is not supported yet"));
            }
            known if NAMES.contains(&known) => (),
            _ => {
                let message = format!("`{}` is not an instruction", &text[..name_end]);
                let error = DockerfileError::new(self.line.span(self.source, 0, name_end), message);
                return Err(match nearest(&name, NAMES) {
                    Some(meant) => error.with_hint(format!("did you mean `{meant}`?")),
                    None => error,
                });
            }
        }
        let (flags, start) = self.flags(&name, name_end)?;
        let rest = &text[start..];
        if rest.trim().is_empty() {
            return self.refuse(0, text.len(), format!("`{name}` needs at least one argument"));
        }
        self.refuse_here_documents(&name, start)?;
        let takes_list = matches!(
            name.as_str(),
            "RUN" | "CMD" | "ENTRYPOINT" | "SHELL" | "COPY" | "ADD" | "VOLUME"
        );
        if takes_list && is_other_json_list(rest) {
            return self.refuse(start, text.len(), "a JSON list here may hold only strings");
        }
        if name == "RUN" && json_list(rest).is_some_and(|words| words.is_empty()) {
            return self.refuse(start, text.len(), "`RUN` needs a program in its list");
        }
        match name.as_str() {
            "FROM" => self.from(&flags, start),
            "ARG" => self.arg(start),
            "ENV" => Ok(InstructionKind::Env(self.pairs(&name, start)?)),
            "LABEL" => Ok(InstructionKind::Label(self.pairs(&name, start)?)),
            "RUN" => Ok(InstructionKind::Run(self.command(start)?)),
            "CMD" => Ok(InstructionKind::Cmd(self.command(start)?)),
            "ENTRYPOINT" => Ok(InstructionKind::Entrypoint(self.command(start)?)),
            "COPY" | "ADD" => self.copy(name == "ADD", &flags, start),
            "WORKDIR" => Ok(InstructionKind::Workdir(self.rest(start))),
            "USER" => Ok(InstructionKind::User(self.rest(start))),
            "STOPSIGNAL" => Ok(InstructionKind::StopSignal(self.only_word(&name, start)?)),
            "EXPOSE" => {
                let words = self.raw_words(start).into_iter();
                Ok(InstructionKind::Expose(words.map(|word| self.word(word)).collect()))
            }
            "VOLUME" => self.volume(start),
            "SHELL" => match json_list(rest) {
                Some(words) if !words.is_empty() => Ok(InstructionKind::Shell(words)),
                _ => {
                    let message = "`SHELL` takes a JSON list such as `[\"/bin/sh\", \"-c\"]`";
                    self.refuse(start, text.len(), message)
                }
            },
            _ => Ok(InstructionKind::Maintainer(rest.trim().to_owned())),
        }
    }

    /// Flags such as `--from=x`, and where what follows them begins.
    fn flags(&self, instruction: &str, name_end: usize) -> Result<(Vec<Flag>, usize)> {
        let text = &self.line.text;
        let (known, unsupported) = flags_of(instruction);
        let mut flags: Vec<Flag> = Vec::new();
        let mut at = name_end;
        loop {
            at += text[at..].len() - text[at..].trim_start().len();
            if matches!(instruction, "CMD" | "ENTRYPOINT" | "MAINTAINER" | "LABEL" | "ENV" | "ARG")
                || !text[at..].starts_with("--")
            {
                return Ok((flags, at));
            }
            let end = at + text[at..].find(char::is_whitespace).unwrap_or(text.len() - at);
            let flag = &text[at + 2..end];
            if flag.is_empty() {
                return Ok((flags, end));
            }
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            if unsupported.contains(&name) {
                let message = format!("flag `--{name}` of `{instruction}` is not supported yet");
                return self.refuse(at, end, message);
            }
            if !known.contains(&name) {
                let message = format!("`{instruction}` has no flag `--{name}`");
                let error = DockerfileError::new(self.line.span(self.source, at, end), message);
                let names = known.iter().chain(unsupported).copied();
                return Err(match nearest(name, names) {
                    Some(meant) => error.with_hint(format!("did you mean `--{meant}`?")),
                    None => error,
                });
            }
            if value.as_deref().unwrap_or("").is_empty() {
                return self.refuse(
                    at,
                    end,
                    format!("flag `--{name}` needs a value: `--{name}=...`"),
                );
            }
            if flags.iter().any(|flag| flag.name == name) {
                return self.refuse(at, end, format!("flag `--{name}` is given twice"));
            }
            flags.push(Flag { name: name.to_owned(), value, start: at, end });
            at = end;
        }
    }

    fn flag(&self, flags: &[Flag], name: &str) -> Option<Word> {
        let flag = flags.iter().find(|flag| flag.name == name)?;
        let at = self.line.span(self.source, flag.start, flag.end);
        Some(Word { text: flag.value.clone()?, at })
    }

    /// `<<EOF` and its relatives are part of the language, but not of this version.
    fn refuse_here_documents(&self, instruction: &str, start: usize) -> Result<()> {
        if !matches!(instruction, "RUN" | "COPY" | "ADD")
            || json_list(&self.line.text[start..]).is_some()
        {
            return Ok(());
        }
        for (word, at) in self.raw_words(start) {
            let marker = word.trim_start_matches(|c: char| c.is_ascii_digit());
            let Some(name) = marker.strip_prefix("<<") else { continue };
            let name = name.strip_prefix('-').unwrap_or(name);
            if !name.is_empty() && !name.contains('<') {
                let message = "here-documents are not supported yet";
                return self.refuse(at, at + word.len(), message);
            }
        }
        Ok(())
    }

    /// Splits at blanks outside of quotes; quotes and escapes stay.
    fn raw_words(&self, start: usize) -> Vec<RawWord<'_>> {
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
                        words.push((&text[begin..at], start + begin));
                    }
                    continue;
                }
                None if matches!(c, '\'' | '"') && !was_escaped => quote = Some(c),
                Some(open) if c == open && !was_escaped => quote = None,
                _ => (),
            }
            // Nothing is escaped inside single quotes.
            escaped = c == self.escape && !was_escaped && quote != Some('\'');
            begin.get_or_insert(at);
        }
        if let Some(begin) = begin {
            words.push((&text[begin..], start + begin));
        }
        words
    }

    /// All that follows, as one word.
    fn rest(&self, start: usize) -> Word {
        let text = self.line.text[start..].trim();
        self.word((text, start))
    }

    fn only_word(&self, instruction: &str, start: usize) -> Result<Word> {
        match self.raw_words(start)[..] {
            [word] => Ok(self.word(word)),
            _ => {
                let message = format!("`{instruction}` takes exactly one argument");
                self.refuse(start, self.line.text.len(), message)
            }
        }
    }

    fn from(&self, flags: &[Flag], start: usize) -> Result<InstructionKind> {
        let words = self.raw_words(start);
        let (image, name) = match words[..] {
            [image] => (image, None),
            [image, (keyword, _), name] if keyword.eq_ignore_ascii_case("as") => {
                (image, Some(name))
            }
            _ => {
                let message = "`FROM` takes an image, and optionally `AS` and a name";
                return self.refuse(start, self.line.text.len(), message);
            }
        };
        let name = name.map(|(name, at)| self.stage_name(name, at)).transpose()?;
        let platform = self.flag(flags, "platform");
        Ok(InstructionKind::From(From { image: self.word(image), platform, name }))
    }

    fn stage_name(&self, name: &str, at: usize) -> Result<String> {
        let lower = name.to_lowercase();
        let mut bytes = lower.bytes();
        let valid = bytes.next().is_some_and(|byte| byte.is_ascii_lowercase())
            && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-.".contains(&b));
        if !valid {
            let message = format!(
                "`{name}` cannot name a stage: letters, digits, `_`, `-` and `.`, a letter first"
            );
            return self.refuse(at, at + name.len(), message);
        }
        match lower.as_str() {
            "scratch" | "context" => {
                let message = format!("`{lower}` is reserved and cannot name a stage");
                self.refuse(at, at + name.len(), message)
            }
            _ => Ok(lower),
        }
    }

    fn arg(&self, start: usize) -> Result<InstructionKind> {
        let mut definitions = Vec::new();
        for (word, at) in self.raw_words(start) {
            let (name, default) = match word.split_once('=') {
                Some((name, value)) => (name, Some(self.word((value, at + name.len() + 1)))),
                None => (word, None),
            };
            if name.is_empty() || name.contains(['"', '\'', '$']) {
                let message = format!("`{word}` does not name a build argument");
                return self.refuse(at, at + word.len(), message);
            }
            definitions.push((name.to_owned(), default));
        }
        Ok(InstructionKind::Arg(definitions))
    }

    /// `a=1 b=2`, or the old form `a 1`.
    fn pairs(&self, instruction: &str, start: usize) -> Result<Vec<(Word, Word)>> {
        let words = self.raw_words(start);
        let text = &self.line.text;
        let Some(&(first, first_at)) = words.first() else { return Ok(Vec::new()) };
        if !first.contains('=') {
            let after = first_at + first.len();
            let value = text[after..].trim_start();
            if value.is_empty() {
                let message = format!("`{instruction}` needs a value: `{first}=...`");
                return self.refuse(first_at, after, message);
            }
            let value = self.word((value.trim_end(), text.len() - value.len()));
            return Ok(vec![(self.word((first, first_at)), value)]);
        }
        let mut pairs = Vec::with_capacity(words.len());
        for (word, at) in words {
            let Some((key, value)) = word.split_once('=') else {
                let message = format!("`{word}` has no value: expected `name=value`");
                return self.refuse(at, at + word.len(), message);
            };
            if key.is_empty() {
                return self.refuse(
                    at,
                    at + word.len(),
                    format!("`{word}` has no name before `=`"),
                );
            }
            pairs.push((self.word((key, at)), self.word((value, at + key.len() + 1))));
        }
        Ok(pairs)
    }

    fn command(&self, start: usize) -> Result<Command> {
        let text = self.line.text[start..].trim();
        Ok(match json_list(text) {
            Some(words) => Command::Exec(words),
            None => Command::Shell(text.to_owned()),
        })
    }

    /// Words of an instruction that also takes a JSON list.
    fn words_or_list(&self, start: usize) -> Vec<Word> {
        let text = &self.line.text;
        match json_list(&text[start..]) {
            Some(words) => {
                let at = self.line.span(self.source, start, text.len());
                words.into_iter().map(|text| Word { text, at }).collect()
            }
            None => self.raw_words(start).into_iter().map(|word| self.word(word)).collect(),
        }
    }

    fn copy(&self, is_add: bool, flags: &[Flag], start: usize) -> Result<InstructionKind> {
        let mut sources = self.words_or_list(start);
        let destination = sources.pop();
        let (Some(destination), false) = (destination, sources.is_empty()) else {
            let name = if is_add { "ADD" } else { "COPY" };
            let message = format!("`{name}` needs at least one source and a destination");
            return self.refuse(start, self.line.text.len(), message);
        };
        let flag = |name| self.flag(flags, name);
        let (from, chown, chmod) = (flag("from"), flag("chown"), flag("chmod"));
        Ok(InstructionKind::Copy(Copy { is_add, from, chown, chmod, sources, destination }))
    }

    fn volume(&self, start: usize) -> Result<InstructionKind> {
        let volumes = self.words_or_list(start);
        match volumes.iter().any(|volume| volume.text.trim().is_empty()) || volumes.is_empty() {
            true => self.refuse(start, self.line.text.len(), "`VOLUME` needs a path"),
            false => Ok(InstructionKind::Volume(volumes)),
        }
    }
}

/// A JSON list of strings, or nothing: then it is the shell form.
fn json_list(text: &str) -> Option<Vec<String>> {
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
