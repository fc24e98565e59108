//! Text to instructions.

use std::time::Duration;

use crate::heredoc::{self, HereDocument};
use crate::instruction::{
    Assignment, Command, Copy, From, Healthcheck, Instruction, InstructionKind, MountFlag, Run,
    RunNetwork, Word,
};
use crate::scan::{Line, scan};
use crate::span::{DockerfileError, Span, Text, nearest};
use crate::statement::{Arguments, Pair, Statement, split};

type Result<T> = std::result::Result<T, DockerfileError>;

/// A parsed Dockerfile.
#[derive(Debug, Clone)]
pub struct Dockerfile {
    /// `\`, or what `# escape=` says.
    pub escape: char,
    /// What `# check=` says, for the lint rules.
    pub check: Option<(String, Span)>,
    /// In order; the first that is not `ARG` is a `FROM`.
    pub instructions: Vec<Instruction>,
    /// Where instructions end that have an empty line between continued ones.
    pub empty_continuations: Vec<Span>,
}

/// Instructions of the language.
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

/// What a flag takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FlagKind {
    Text,
    /// May be given several times.
    Texts,
    /// `--link`, `--link=true`, `--link=false`.
    Switch,
}

/// The flags of an instruction.
fn flags_of(instruction: &str) -> &'static [(&'static str, FlagKind)] {
    use FlagKind::{Switch, Text, Texts};
    match instruction {
        "FROM" => &[("platform", Text)],
        "COPY" => &[
            ("from", Text),
            ("chown", Text),
            ("chmod", Text),
            ("link", Switch),
            ("parents", Switch),
            ("exclude", Texts),
        ],
        "ADD" => &[
            ("chown", Text),
            ("chmod", Text),
            ("link", Switch),
            ("exclude", Texts),
            ("keep-git-dir", Switch),
            ("checksum", Text),
            ("unpack", Switch),
        ],
        "RUN" => &[("mount", Texts), ("network", Text), ("security", Text), ("device", Texts)],
        "HEALTHCHECK" => &[
            ("interval", Text),
            ("timeout", Text),
            ("start-period", Text),
            ("start-interval", Text),
            ("retries", Text),
        ],
        _ => &[],
    }
}

/// Parses a Dockerfile. The error shows the first thing that is wrong.
pub fn parse(source: &str) -> Result<Dockerfile> {
    let source = &Text::new(source);
    let scanned = scan(source)?;
    let escape = scanned.directives.escape;
    let mut instructions = Vec::with_capacity(scanned.lines.len());
    let mut has_stage = false;
    for line in &scanned.lines {
        let statement = split(source, line, escape)?;
        let instruction = understand(&statement, line)?;
        let is_from = matches!(instruction.kind, InstructionKind::From(_));
        if !has_stage && !is_from && !matches!(instruction.kind, InstructionKind::Arg(_)) {
            let message = "no stage has begun before this instruction";
            let error = DockerfileError::new(instruction.at, message);
            return Err(error.with_hint("begin with `FROM`; only `ARG` may stand before it"));
        }
        has_stage |= is_from;
        instructions.push(instruction);
    }
    if !has_stage {
        let at = instructions.last().map_or_else(Span::default, |last| last.at);
        return Err(DockerfileError::new(at, "the Dockerfile has no `FROM`"));
    }
    Ok(Dockerfile {
        escape,
        check: scanned.directives.check,
        instructions,
        empty_continuations: scanned.lines.iter().filter_map(|l| l.empty_continuation).collect(),
    })
}

/// Parses the one instruction of an `ONBUILD` trigger. Positions are `at`: that of the `FROM`
/// whose base has it.
pub(crate) fn parse_trigger(text: &str, at: Span) -> Result<Instruction> {
    let moved = |error: DockerfileError| {
        let message = format!("`ONBUILD {text}` of the base image: {}", error.message);
        DockerfileError { message, at, hint: error.hint }
    };
    let source = &Text::new(text);
    let scanned = scan(source).map_err(moved)?;
    let [line] = scanned.lines.as_slice() else {
        let message = format!("`ONBUILD {text}` of the base image is not one instruction");
        return Err(DockerfileError::new(at, message));
    };
    let statement = split(source, line, scanned.directives.escape).map_err(moved)?;
    let mut instruction = understand(&statement, line).map_err(moved)?;
    if matches!(
        instruction.kind,
        InstructionKind::From(_) | InstructionKind::Maintainer(_) | InstructionKind::OnBuild(_)
    ) {
        let message = format!("`ONBUILD {text}` of the base image is not allowed");
        return Err(DockerfileError::new(at, message));
    }
    instruction.at = at;
    instruction.kind.move_words(at);
    Ok(instruction)
}

impl InstructionKind {
    /// Sets the position of every word.
    fn move_words(&mut self, at: Span) {
        let mut moved: Vec<&mut Word> = Vec::new();
        match self {
            Self::Arg(definitions) => {
                moved.extend(definitions.iter_mut().filter_map(|(_, default)| default.as_mut()));
            }
            Self::Env(pairs) | Self::Label(pairs) => {
                for pair in pairs {
                    moved.extend([&mut pair.name, &mut pair.value]);
                }
            }
            Self::Run(run) => run.mounts.iter_mut().for_each(|mount| mount.at = at),
            Self::Copy(copy) => {
                let flags = [&mut copy.from, &mut copy.chown, &mut copy.chmod, &mut copy.checksum];
                moved.extend(flags.into_iter().flatten());
                moved.extend(copy.excludes.iter_mut().chain(&mut copy.sources));
                moved.push(&mut copy.destination);
            }
            Self::Workdir(word) | Self::User(word) | Self::StopSignal(word) => moved.push(word),
            Self::Expose(words) | Self::Volume(words) => moved.extend(words),
            Self::From(_)
            | Self::Cmd(_)
            | Self::Entrypoint(_)
            | Self::Shell(_)
            | Self::Healthcheck(_)
            | Self::OnBuild(_)
            | Self::Maintainer(_) => (),
        }
        moved.into_iter().for_each(|word| word.at = at);
    }
}

fn understand(statement: &Statement, line: &Line) -> Result<Instruction> {
    let name = instruction_name(&statement.keyword)?;
    let parser = Parser { statement, name, flags: flags(name, statement)? };
    Ok(Instruction {
        at: statement.at,
        text: statement.text.clone(),
        keyword: statement.keyword.text.clone(),
        comments: line.comments.clone(),
        kind: parser.kind()?,
    })
}

fn instruction_name(keyword: &Word) -> Result<&'static str> {
    let upper = keyword.text.to_uppercase();
    if let Some(name) = NAMES.into_iter().find(|name| *name == upper) {
        return Ok(name);
    }
    let message = format!("`{}` is not an instruction", keyword.text);
    let error = DockerfileError::new(keyword.at, message);
    Err(match nearest(&upper, NAMES) {
        Some(meant) => error.with_hint(format!("did you mean `{meant}`?")),
        None => error,
    })
}

/// A flag in front of an instruction's words.
struct Flag {
    name: &'static str,
    value: Option<String>,
    at: Span,
}

fn flags(instruction: &str, statement: &Statement) -> Result<Vec<Flag>> {
    // These never looked at their flags.
    if matches!(instruction, "ARG" | "STOPSIGNAL") {
        return Ok(Vec::new());
    }
    let known = flags_of(instruction);
    let mut flags: Vec<Flag> = Vec::new();
    for word in &statement.flags {
        let refuse = |message: String| DockerfileError::new(word.at, message);
        let flag = word.text.strip_prefix("--").unwrap_or(&word.text);
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let Some((name, kind)) = known.iter().find(|(known, _)| *known == name).copied() else {
            let error = refuse(format!("`{instruction}` has no flag `--{name}`"));
            let meant = nearest(name, known.iter().map(|(name, _)| *name));
            return Err(match meant {
                Some(meant) => error.with_hint(format!("did you mean `--{meant}`?")),
                None if known.is_empty() => {
                    error.with_hint("words that begin with `--` are flags, unless they follow `--`")
                }
                None => error,
            });
        };
        if kind != FlagKind::Texts && flags.iter().any(|flag| flag.name == name) {
            return Err(refuse(format!("flag `--{name}` is given twice")));
        }
        match (kind, value.as_deref()) {
            (FlagKind::Switch, None | Some("true" | "false")) => (),
            (FlagKind::Switch, Some(value)) => {
                return Err(refuse(format!("`--{name}={value}` is neither `true` nor `false`")));
            }
            (FlagKind::Text | FlagKind::Texts, None | Some("")) => {
                return Err(refuse(format!("flag `--{name}` needs a value: `--{name}=...`")));
            }
            _ => (),
        }
        flags.push(Flag { name, value, at: word.at });
    }
    Ok(flags)
}

struct Parser<'a> {
    statement: &'a Statement,
    name: &'static str,
    flags: Vec<Flag>,
}

impl Parser<'_> {
    fn refuse<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(DockerfileError::new(self.statement.arguments_at, message))
    }

    fn flag(&self, name: &str) -> Option<Word> {
        let flag = self.flags.iter().find(|flag| flag.name == name)?;
        Some(Word { text: flag.value.clone()?, at: flag.at })
    }

    fn texts(&self, name: &str) -> Vec<Word> {
        let flags = self.flags.iter().filter(|flag| flag.name == name);
        flags.filter_map(|flag| Some(Word { text: flag.value.clone()?, at: flag.at })).collect()
    }

    fn switch(&self, name: &str) -> Option<bool> {
        let flag = self.flags.iter().find(|flag| flag.name == name)?;
        Some(flag.value.as_deref() != Some("false"))
    }

    fn kind(&self) -> Result<InstructionKind> {
        use InstructionKind as Kind;
        let arguments = &self.statement.arguments;
        if *arguments == Arguments::Nothing {
            let message = format!("`{}` needs at least one argument", self.name);
            return Err(DockerfileError::new(self.statement.at, message));
        }
        match (self.name, arguments) {
            ("FROM", Arguments::Words(words)) => self.from(words),
            ("ARG", Arguments::Words(words)) => arg(words),
            ("ENV", Arguments::Pairs(pairs)) => Ok(Kind::Env(assignments(pairs))),
            ("LABEL", Arguments::Pairs(pairs)) => Ok(Kind::Label(assignments(pairs))),
            ("RUN", _) => self.run(),
            ("CMD", _) => Ok(Kind::Cmd(command(arguments))),
            ("ENTRYPOINT", _) => Ok(Kind::Entrypoint(command(arguments))),
            ("COPY" | "ADD", _) => self.copy(),
            ("WORKDIR", Arguments::Text(word)) => Ok(Kind::Workdir(word.clone())),
            ("USER", Arguments::Text(word)) => Ok(Kind::User(word.clone())),
            ("STOPSIGNAL", Arguments::Text(word)) => Ok(Kind::StopSignal(word.clone())),
            ("EXPOSE", Arguments::Words(words)) => Ok(Kind::Expose(words.clone())),
            ("VOLUME", _) => self.volume(),
            ("SHELL", Arguments::List(words)) if !words.is_empty() => {
                Ok(Kind::Shell(words.clone()))
            }
            ("SHELL", _) => {
                self.refuse("`SHELL` takes a JSON list such as `[\"/bin/sh\", \"-c\"]`")
            }
            ("HEALTHCHECK", Arguments::Kind(kind, arguments)) => self.healthcheck(kind, arguments),
            ("ONBUILD", Arguments::Nested(nested)) => self.on_build(nested),
            ("MAINTAINER", Arguments::Text(word)) => Ok(Kind::Maintainer(word.text.clone())),
            // The arguments of an instruction are always split in its own way.
            _ => self.refuse(format!("`{}` has arguments of another kind", self.name)),
        }
    }

    fn from(&self, words: &[Word]) -> Result<InstructionKind> {
        let (image, name) = match words {
            [image] => (image, None),
            [image, keyword, name] if keyword.text.eq_ignore_ascii_case("as") => {
                (image, Some((keyword, name)))
            }
            _ => return self.refuse("`FROM` takes an image, and optionally `AS` and a name"),
        };
        let as_written = name.map(|(keyword, name)| (keyword.text.clone(), name.text.clone()));
        let name = name.map(|(_, name)| stage_name(name)).transpose()?;
        let platform = self.flag("platform");
        Ok(InstructionKind::From(From { image: image.clone(), platform, name, as_written }))
    }

    fn run(&self) -> Result<InstructionKind> {
        let arguments = &self.statement.arguments;
        if *arguments == Arguments::List(Vec::new()) {
            return self.refuse("`RUN` needs a program in its list");
        }
        if let Some(device) = self.flag("device") {
            let message = "`RUN --device` is not supported: containers of builds have no devices";
            return Err(DockerfileError::new(device.at, message));
        }
        let network = match self.flag("network") {
            None => RunNetwork::Default,
            Some(word) => match word.text.as_str() {
                "default" => RunNetwork::Default,
                "none" => RunNetwork::None,
                "host" => RunNetwork::Host,
                _ => return Err(one_of(&word, "network", &["default", "none", "host"])),
            },
        };
        let insecure = match self.flag("security") {
            None => false,
            Some(word) => match word.text.as_str() {
                "sandbox" => false,
                "insecure" => true,
                _ => return Err(one_of(&word, "security", &["sandbox", "insecure"])),
            },
        };
        let mounts: Result<Vec<_>> = self.texts("mount").iter().map(mount).collect();
        Ok(InstructionKind::Run(Run {
            command: command(arguments),
            documents: self.statement.documents.clone(),
            mounts: mounts?,
            network,
            insecure,
        }))
    }

    fn copy(&self) -> Result<InstructionKind> {
        let words = match &self.statement.arguments {
            Arguments::Words(words) => words.clone(),
            Arguments::List(words) => {
                let at = self.statement.arguments_at;
                words.iter().map(|text| Word { text: text.clone(), at }).collect()
            }
            _ => Vec::new(),
        };
        let Some((destination, words)) = words.split_last().filter(|(_, rest)| !rest.is_empty())
        else {
            let message = format!("`{}` needs at least one source and a destination", self.name);
            return self.refuse(message);
        };
        let is_list = matches!(self.statement.arguments, Arguments::List(_));
        let marker = |word: &Word| -> Result<Option<HereDocument>> {
            let refuse = |message| DockerfileError::new(word.at, message);
            if is_list { Ok(None) } else { heredoc::marker(&word.text).map_err(refuse) }
        };
        if marker(destination)?.is_some() {
            let message = "a here-document cannot be the destination";
            return Err(DockerfileError::new(destination.at, message));
        }
        let (mut sources, mut documents) = (Vec::new(), Vec::new());
        for word in words {
            match marker(word)? {
                None => sources.push(word.clone()),
                Some(marker) => {
                    let known = self.statement.documents.iter();
                    // Of several with one name the last counts, as for a shell.
                    match known.rev().find(|document| document.name == marker.name) {
                        Some(document) => documents.push(document.clone()),
                        None => {
                            let message = format!("`{}` begins no here-document", word.text);
                            return Err(DockerfileError::new(word.at, message));
                        }
                    }
                }
            }
        }
        Ok(InstructionKind::Copy(Copy {
            is_add: self.name == "ADD",
            from: self.flag("from"),
            chown: self.flag("chown"),
            chmod: self.flag("chmod"),
            link: self.switch("link") == Some(true),
            parents: self.switch("parents") == Some(true),
            excludes: self.texts("exclude"),
            keep_git_dir: self.switch("keep-git-dir"),
            checksum: self.flag("checksum"),
            unpack: self.switch("unpack"),
            sources,
            documents,
            destination: destination.clone(),
        }))
    }

    fn volume(&self) -> Result<InstructionKind> {
        let volumes: Vec<Word> = match &self.statement.arguments {
            Arguments::Words(words) => words.clone(),
            Arguments::List(words) => {
                let at = self.statement.arguments_at;
                let words = words.iter().map(|text| text.trim());
                words.map(|text| Word { text: text.to_owned(), at }).collect()
            }
            _ => Vec::new(),
        };
        match volumes.iter().any(|volume| volume.text.is_empty()) || volumes.is_empty() {
            true => self.refuse("`VOLUME` needs a path"),
            false => Ok(InstructionKind::Volume(volumes)),
        }
    }

    fn healthcheck(&self, kind: &Word, arguments: &Arguments) -> Result<InstructionKind> {
        let refuse = |message: &str| Err(DockerfileError::new(kind.at, message));
        match kind.text.to_uppercase().as_str() {
            "NONE" if *arguments == Arguments::Nothing => {
                return Ok(InstructionKind::Healthcheck(Healthcheck::None));
            }
            "NONE" => return refuse("`HEALTHCHECK NONE` takes no arguments"),
            "CMD" => (),
            _ => {
                let message = format!("`{}` is no kind of health check", kind.text);
                let error = DockerfileError::new(kind.at, message);
                return Err(error.with_hint("write `HEALTHCHECK CMD command`, or `NONE`"));
            }
        }
        if matches!(arguments, Arguments::Nothing) || *arguments == Arguments::List(Vec::new()) {
            return refuse("`HEALTHCHECK CMD` needs a command");
        }
        let duration = |name: &str| self.flag(name).map(|word| duration(&word)).transpose();
        let retries = self.flag("retries").map(|word| {
            word.text.parse::<u32>().ok().filter(|count| i32::try_from(*count).is_ok()).ok_or_else(
                || {
                    let message = format!("`--retries={}` is not a number of retries", word.text);
                    DockerfileError::new(word.at, message)
                },
            )
        });
        Ok(InstructionKind::Healthcheck(Healthcheck::Check {
            command: command(arguments),
            interval: duration("interval")?,
            timeout: duration("timeout")?,
            start_period: duration("start-period")?,
            start_interval: duration("start-interval")?,
            retries: retries.transpose()?,
        }))
    }

    /// Checks the trigger as far as it can be without the build that will execute it.
    fn on_build(&self, nested: &Statement) -> Result<InstructionKind> {
        let name = instruction_name(&nested.keyword)?;
        if matches!(name, "FROM" | "MAINTAINER") {
            let message = format!("`ONBUILD` cannot hold `{name}`");
            return Err(DockerfileError::new(nested.keyword.at, message));
        }
        let nested = Statement { documents: self.statement.documents.clone(), ..nested.clone() };
        Parser { statement: &nested, name, flags: flags(name, &nested)? }.kind()?;
        let mut text = nested.text.clone();
        for document in &nested.documents {
            text.push('\n');
            text.push_str(&document.content);
            text.push_str(&document.name);
        }
        Ok(InstructionKind::OnBuild(text))
    }
}

fn one_of(word: &Word, flag: &str, known: &[&'static str]) -> DockerfileError {
    let message = format!("`--{flag}={}` is not one of {}", word.text, known.join(", "));
    let error = DockerfileError::new(word.at, message);
    match nearest(&word.text, known.iter().copied()) {
        Some(meant) => error.with_hint(format!("did you mean `--{flag}={meant}`?")),
        None => error,
    }
}

/// Names that are reserved are taken, as they always were; a lint rule tells.
fn stage_name(word: &Word) -> Result<String> {
    let lower = word.text.to_lowercase();
    let mut bytes = lower.bytes();
    let valid = bytes.next().is_some_and(|byte| byte.is_ascii_lowercase())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-.".contains(&b));
    match valid {
        true => Ok(lower),
        false => {
            let name = &word.text;
            let message = format!(
                "`{name}` cannot name a stage: letters, digits, `_`, `-` and `.`, a letter first"
            );
            Err(DockerfileError::new(word.at, message))
        }
    }
}

fn arg(words: &[Word]) -> Result<InstructionKind> {
    let mut definitions = Vec::new();
    for word in words {
        let (name, default) = match word.text.split_once('=') {
            Some((name, value)) => (name, Some(word.after(name.len() + 1, value))),
            None => (word.text.as_str(), None),
        };
        if name.is_empty() || name.contains(['"', '\'', '$']) {
            let message = format!("`{}` does not name a build argument", word.text);
            return Err(DockerfileError::new(word.at, message));
        }
        definitions.push((name.to_owned(), default));
    }
    Ok(InstructionKind::Arg(definitions))
}

fn assignments(pairs: &[Pair]) -> Vec<Assignment> {
    let assignment = |pair: &Pair| Assignment {
        name: pair.name.clone(),
        value: pair.value.clone(),
        is_old_form: pair.is_old_form,
    };
    pairs.iter().map(assignment).collect()
}

fn command(arguments: &Arguments) -> Command {
    match arguments {
        Arguments::List(words) => Command::Exec(words.clone()),
        Arguments::Text(word) => Command::Shell(word.text.clone()),
        _ => Command::Exec(Vec::new()),
    }
}

/// Splits `type=bind,target=/x` into its fields.
fn mount(word: &Word) -> Result<MountFlag> {
    let refuse = |message: String| DockerfileError::new(word.at, message);
    let fields = comma_separated(&word.text).map_err(refuse)?;
    let mut flag = MountFlag { fields: Vec::new(), at: word.at };
    for field in fields {
        let (name, value) = match field.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (field.as_str(), None),
        };
        flag.fields.push((name.to_lowercase(), value));
    }
    if let Some(from) = flag.from()
        && from.contains('$')
    {
        let error = refuse("`from` of a mount takes no variables".to_owned());
        return Err(error.with_hint("name a stage: `FROM $IMAGE AS source`, then `from=source`"));
    }
    Ok(flag)
}

/// Splits comma-separated values as `docker` does: one that holds a comma stands in double
/// quotes, in which two quotes are one.
pub fn comma_separated(text: &str) -> std::result::Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            None => match rest.split_once(',') {
                Some((field, after)) => (field.to_owned(), Some(after)),
                None => (rest.to_owned(), None),
            },
            Some(quoted) => {
                let mut field = String::new();
                let mut left = quoted;
                loop {
                    let Some((part, after)) = left.split_once('"') else {
                        return Err(format!("a double quote in `{text}` is not closed"));
                    };
                    field.push_str(part);
                    left = after;
                    match left.strip_prefix('"') {
                        // Two quotes are one.
                        Some(after) => {
                            field.push('"');
                            left = after;
                        }
                        None => break,
                    }
                }
                match (left.is_empty(), left.strip_prefix(',')) {
                    (true, _) => (field, None),
                    (_, Some(after)) => (field, Some(after)),
                    _ => return Err(format!("`{left}` follows a quoted field in `{text}`")),
                }
            }
        };
        fields.push(field);
        match after {
            Some(after) => rest = after,
            None => return Ok(fields),
        }
    }
}

/// `1h30m`, `2.5s`, `500ms`, as Go writes durations. Zero, or at least a millisecond.
fn duration(word: &Word) -> Result<Duration> {
    let refuse = |why: &str| {
        let error =
            DockerfileError::new(word.at, format!("`{}` is not a duration{why}", word.text));
        error.with_hint("write it like `30s`, `1m30s` or `500ms`")
    };
    let text = word.text.strip_prefix('+').unwrap_or(&word.text);
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut nanoseconds = 0_f64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let number: f64 = number.parse().map_err(|_| refuse(""))?;
        let letters = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let scale = match unit {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return Err(refuse("")),
        };
        nanoseconds += number * scale;
        rest = after;
    }
    if text.is_empty() || nanoseconds > i64::MAX as f64 {
        return Err(refuse(""));
    }
    let duration = Duration::from_secs_f64(nanoseconds / 1e9);
    match duration.is_zero() || duration >= Duration::from_millis(1) {
        true => Ok(duration),
        false => Err(refuse(" of at least a millisecond")),
    }
}
