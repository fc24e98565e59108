//! The instructions of the language, typed, their words not yet expanded.

use crate::Span;

/// One instruction of a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    pub at: Span,
    /// As written, continuation lines joined.
    pub text: String,
    pub kind: InstructionKind,
}

/// A piece of an instruction whose variables and quotes are still to be resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    pub text: String,
    pub at: Span,
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
    Env(Vec<(Word, Word)>),
    Label(Vec<(Word, Word)>),
    Run(Command),
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
    Maintainer(String),
}

/// `FROM image [AS name]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct From {
    pub image: Word,
    pub platform: Option<Word>,
    pub name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// `ADD`: local archives are unpacked.
    pub is_add: bool,
    pub from: Option<Word>,
    pub chown: Option<Word>,
    pub chmod: Option<Word>,
    pub sources: Vec<Word>,
    pub destination: Word,
}
