//! The instructions of the language, typed, their words not yet expanded.

use std::time::Duration;

use crate::{HereDocument, Span};

/// One instruction of a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    pub at: Span,
    /// As written, continuation lines joined, without the lines of here-documents.
    pub text: String,
    /// The instruction's name as written, in whatever case.
    pub keyword: String,
    /// The comments right above it, without `#`.
    pub comments: Vec<String>,
    pub kind: InstructionKind,
}

/// A piece of an instruction whose variables and quotes are still to be resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    pub text: String,
    pub at: Span,
}

impl Word {
    /// The end of a word, from a byte offset on.
    pub(crate) fn after(&self, offset: usize, text: &str) -> Self {
        let characters = self.text[..offset].chars().count();
        let column = self.at.column.saturating_add(u32::try_from(characters).unwrap_or(0));
        let start = (self.at.start + offset).min(self.at.end);
        Self { text: text.to_owned(), at: Span { column, start, ..self.at } }
    }
}

/// What `RUN`, `CMD` and `ENTRYPOINT` start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A line for the stage's shell, never expanded by us.
    Shell(String),
    /// Program and arguments as they are.
    Exec(Vec<String>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstructionKind {
    From(From),
    /// Names with their defaults.
    Arg(Vec<(String, Option<Word>)>),
    Env(Vec<Assignment>),
    Label(Vec<Assignment>),
    Run(Run),
    Cmd(Command),
    Entrypoint(Command),
    /// `COPY` or `ADD`.
    Copy(Copy),
    Workdir(Word),
    User(Word),
    Expose(Vec<Word>),
    Volume(Vec<Word>),
    Shell(Vec<String>),
    StopSignal(Word),
    Healthcheck(Healthcheck),
    /// The instruction that builds on the image execute, as text.
    OnBuild(String),
    Maintainer(String),
}

/// `name=value` of `ENV` and `LABEL`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    pub name: Word,
    pub value: Word,
    /// Written `name value`, which is deprecated.
    pub is_old_form: bool,
}

/// `FROM image [AS name]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct From {
    pub image: Word,
    pub platform: Option<Word>,
    /// In lower case.
    pub name: Option<String>,
    /// `AS` and the name as written.
    pub as_written: Option<(String, String)>,
}

/// `RUN`, with its flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub command: Command,
    pub documents: Vec<HereDocument>,
    pub mounts: Vec<MountFlag>,
    pub network: RunNetwork,
    /// `--security=insecure`: without the walls.
    pub insecure: bool,
}

/// Network of one `RUN`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RunNetwork {
    /// That of the build.
    #[default]
    Default,
    None,
    Host,
}

/// `--mount=type=cache,target=/x`: fields as written, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountFlag {
    /// Names in lower case; a field without `=` has no value.
    pub fields: Vec<(String, Option<String>)>,
    pub at: Span,
}

impl MountFlag {
    /// The stage, image or named context that it reads from.
    pub(crate) fn from(&self) -> Option<&str> {
        let from = self.fields.iter().rev().find(|(name, _)| name == "from");
        from.and_then(|(_, value)| value.as_deref()).filter(|from| !from.is_empty())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    pub is_add: bool,
    pub from: Option<Word>,
    pub chown: Option<Word>,
    pub chmod: Option<Word>,
    /// The layer stands by itself: nothing of what is below counts.
    pub link: bool,
    /// Sources keep the folders they are in.
    pub parents: bool,
    pub excludes: Vec<Word>,
    /// `ADD` only: keep `.git` of a git repository.
    pub keep_git_dir: Option<bool>,
    /// `ADD` only: what the bytes of an address must be.
    pub checksum: Option<Word>,
    /// `ADD` only: unpack archives. Absent: local ones.
    pub unpack: Option<bool>,
    pub sources: Vec<Word>,
    /// Files whose content is in the Dockerfile.
    pub documents: Vec<HereDocument>,
    pub destination: Word,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Healthcheck {
    /// Takes away that of the base.
    None,
    Check {
        command: Command,
        /// Absent, and zero: the runtime's default.
        interval: Option<Duration>,
        timeout: Option<Duration>,
        start_period: Option<Duration>,
        start_interval: Option<Duration>,
        retries: Option<u32>,
    },
}
