//! What a build executes, all words expanded.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use oci::{ContainerConfig, ImageConfig};

use crate::address::{Address, without_credentials};
use crate::git::{GitAddress, commit_id};
use crate::heredoc::{self, HereDocument};
use crate::instruction::{
    Assignment, Command, Copy, Healthcheck, Instruction, InstructionKind, Run, RunNetwork, Word,
};
use crate::mode::ModeChange;
use crate::mount::{Mount, mount};
use crate::parse::parse_trigger;
use crate::path::absolute;
use crate::plan::{OperationsError, PROXY_ARGS, Source, StagePlan, expand_word, reads_of};
use crate::span::{DockerfileError, Span};
use crate::word::{Variables, expand_document, expand_words};

type Result<T> = std::result::Result<T, DockerfileError>;

/// Where programs are looked up when an image does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The shell of shell forms, unless `SHELL` or the base says otherwise.
const DEFAULT_SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// An `EXPOSE` may name at most this many ports.
const PORTS_MAX: usize = 65_536;

/// One instruction, ready to be executed.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    pub at: Span,
    /// The instruction as written, continuation lines joined, words not expanded: for
    /// progress lines.
    pub text: String,
    /// Docker's `created_by` for the history.
    pub created_by: String,
    pub kind: OperationKind,
    /// The image's config after this instruction.
    pub config: ContainerConfig,
    /// The author, after `MAINTAINER`.
    pub author: Option<String>,
    /// Names of the build arguments in scope.
    pub args: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum OperationKind {
    Run(Box<RunOperation>),
    Copy(Box<CopyOperation>),
    /// `WORKDIR`: the folder must exist afterwards.
    Workdir {
        path: String,
    },
    /// Changes the config only (`ENV`, `LABEL`, `CMD`, ...); makes no layer.
    Config,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RunOperation {
    /// The program and its arguments (shell form already wrapped in the stage's `SHELL`).
    pub args: Vec<String>,
    /// `NAME=value`: the config's `ENV`, then the `ARG`s in scope.
    pub env: Vec<String>,
    /// Build arguments that count for the cache key but are not part of the config.
    pub arg_values: Vec<(String, String)>,
    /// `USER` as written: `name`, `uid`, `name:group`, ...
    pub user: String,
    pub cwd: String,
    /// In the order of their flags: of two on one target the later hides the earlier.
    pub mounts: Vec<Mount>,
    pub network: RunNetwork,
    /// `--security=insecure`: without the walls.
    pub insecure: bool,
    /// A here-document that is a program of its own: it is there under [`SCRIPTS`] while the
    /// command runs.
    pub script: Option<Script>,
}

/// A program whose text is in the Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    pub name: String,
    pub text: String,
}

/// The folder in which a `RUN` finds its [`Script`].
pub const SCRIPTS: &str = "/dev/pipes";

/// `COPY` or `ADD`.
#[derive(Debug, Clone, PartialEq)]
pub struct CopyOperation {
    /// `None`: the build context.
    pub from: Option<Source>,
    /// Patterns relative to the root of the source, cleaned, no leading slash.
    pub sources: Vec<CopySource>,
    /// Files whose text is in the Dockerfile.
    pub documents: Vec<Script>,
    /// Absolute and cleaned; ends with `/` if the user wrote it so.
    pub destination: String,
    /// `--chown` as written: `name`, `uid:gid`, ...; `None`: root.
    pub chown: Option<String>,
    pub chmod: Option<ModeChange>,
    /// Unpack archives: for `ADD` local ones, unless it says otherwise.
    pub unpack: bool,
    /// The same for those that were fetched, only if it says so.
    pub unpack_downloads: bool,
    /// What the one file that is fetched must be.
    pub checksum: Option<oci::Digest>,
    /// `--link`: what is below does not count.
    pub link: bool,
    /// `--parents`: sources keep the folders they are in.
    pub parents: bool,
    /// Patterns, as in an ignore file, of what is left out.
    pub excludes: Vec<String>,
}

/// One source of `COPY` or `ADD`: paths relative to the root of what is copied from, cleaned,
/// without a leading slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopySource {
    /// Seen from `pivot`.
    pub pattern: String,
    /// With `--parents`, the folder below which the folders that are kept begin.
    pub pivot: String,
    /// What is to be fetched; it is no path then.
    pub address: Option<SourceAddress>,
}

/// What `ADD` fetches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceAddress {
    File(Address),
    /// Its files.
    Repository(GitAddress),
}

impl fmt::Display for SourceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(address) => address.fmt(f),
            Self::Repository(address) => address.fmt(f),
        }
    }
}

impl StagePlan {
    /// The stage's own `RUN`s.
    pub fn runs(&self) -> impl Iterator<Item = (&Run, Span)> {
        self.instructions.iter().filter_map(|instruction| match &instruction.kind {
            InstructionKind::Run(run) => Some((run, instruction.at)),
            _ => None,
        })
    }

    /// Carries the stage's instructions over the base's config: expands every word, keeps
    /// `ENV`, `WORKDIR`, `USER`, `SHELL` and `ARG` as they go, and gives what to execute. The
    /// `ONBUILD` triggers of the base come first.
    ///
    /// `args` are the build arguments that the base has, if it is a stage.
    ///
    /// Pure: the config of a stage never depends on what its `RUN`s did.
    pub fn operations(
        &self,
        base: &ImageConfig,
        args: &[(String, String)],
    ) -> std::result::Result<StageOperations, OperationsError> {
        let mut state = State::new(self, base, args);
        let mut operations = Vec::with_capacity(self.instructions.len());
        if base.config.on_build.len() > TRIGGERS_MAX {
            let message = format!("the base image has more than {TRIGGERS_MAX} `ONBUILD` triggers");
            return Err(DockerfileError::new(self.at, message).into());
        }
        for trigger in &base.config.on_build {
            let instruction = parse_trigger(trigger, self.at)?;
            let reads = reads_of(&instruction.kind, &self.earlier, &self.contexts)?;
            let mut operation = state.step(&instruction, &reads)?;
            operation.text = format!("ONBUILD {}", operation.text);
            operations.push(operation);
        }
        for (instruction, reads) in self.instructions.iter().zip(&self.reads) {
            operations.push(state.step(instruction, reads)?);
        }
        Ok(StageOperations { operations, args: state.args })
    }
}

/// What a stage executes, and what it passes on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StageOperations {
    pub operations: Vec<Operation>,
    /// Build arguments in scope at its end: stages built on this one have them too.
    pub args: Vec<(String, String)>,
}

/// An image may have at most this many `ONBUILD` triggers.
const TRIGGERS_MAX: usize = 1_000;

/// A stage as far as it has come.
struct State<'a> {
    plan: &'a StagePlan,
    config: ContainerConfig,
    author: Option<String>,
    /// `ARG`s in scope that have a value, in order of declaration.
    args: Vec<(String, String)>,
    /// Whether this stage has set its own `CMD`.
    has_cmd: bool,
}

/// Values that a word may name. Of an `ENV` and an `ARG` with one name the later counts: an
/// `ENV` ends the `ARG`s before it.
struct Scope<'a> {
    env: &'a [String],
    args: &'a [(String, String)],
}

fn env_value<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    let entry =
        env.iter().rev().find_map(|entry| entry.split_once('=').filter(|(key, _)| *key == name));
    entry.map(|(_, value)| value)
}

impl Variables for Scope<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        let arg = || self.args.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        arg().or_else(|| env_value(self.env, name))
    }
}

impl<'a> State<'a> {
    fn new(plan: &'a StagePlan, base: &ImageConfig, args: &[(String, String)]) -> Self {
        let mut config = base.config.clone();
        if env_value(&config.env, "PATH").is_none() {
            config.env.push(format!("PATH={DEFAULT_PATH}"));
        }
        // Triggers are for this stage, and not for those on it.
        config.on_build.clear();
        let author = base.author.clone();
        Self { plan, config, author, args: args.to_vec(), has_cmd: false }
    }

    fn scope(&self) -> Scope<'_> {
        Scope { env: &self.config.env, args: &self.args }
    }

    fn expand(&self, word: &Word) -> Result<String> {
        expand_word(word, self.plan.escape, &self.scope())
    }

    fn step(&mut self, instruction: &Instruction, reads: &[Option<Source>]) -> Result<Operation> {
        let mut created_by = instruction.text.clone();
        let mut text = instruction.text.clone();
        let kind = match &instruction.kind {
            InstructionKind::Run(run) => {
                let operation = self.run(run, reads, instruction.at)?;
                created_by = run_created_by(run, &operation);
                if let Some(document) = run.documents.first() {
                    text.push_str(&summary(&document.content));
                }
                OperationKind::Run(Box::new(operation))
            }
            InstructionKind::Copy(copy) => {
                let operation = self.copy(copy, reads.first().cloned().flatten())?;
                created_by = copy_created_by(copy, &operation);
                text = without_credentials(&text);
                OperationKind::Copy(Box::new(operation))
            }
            InstructionKind::Workdir(word) => {
                let path = self.workdir(word)?;
                created_by = format!("WORKDIR {path}");
                OperationKind::Workdir { path }
            }
            other => {
                self.change_config(other)?;
                if matches!(other, InstructionKind::OnBuild(_)) {
                    created_by = without_credentials(&created_by);
                    text = without_credentials(&text);
                }
                OperationKind::Config
            }
        };
        Ok(Operation {
            at: instruction.at,
            text,
            created_by,
            kind,
            config: self.config.clone(),
            author: self.author.clone(),
            args: self.args.iter().map(|(name, _)| name.clone()).collect(),
        })
    }

    fn change_config(&mut self, kind: &InstructionKind) -> Result<()> {
        match kind {
            InstructionKind::Arg(definitions) => {
                for (name, default) in definitions {
                    self.declare(name, default.as_ref())?;
                }
            }
            InstructionKind::Env(pairs) => {
                // All values see the state before the instruction.
                for (key, value) in self.expand_pairs(pairs)? {
                    self.args.retain(|(name, _)| *name != key);
                    set_env(&mut self.config.env, &key, &value);
                }
            }
            InstructionKind::Label(pairs) => {
                let pairs = self.expand_pairs(pairs)?;
                self.config.labels.extend(pairs);
            }
            InstructionKind::Cmd(command) => {
                self.config.cmd = Some(self.wrap(command));
                self.config.args_escaped = false;
                self.has_cmd = true;
            }
            InstructionKind::Entrypoint(command) => {
                // An empty list takes away that of the base.
                let words = self.wrap(command);
                self.config.entrypoint = Some(words).filter(|words| !words.is_empty());
                // The base's arguments were meant for the base's program.
                if !self.has_cmd {
                    self.config.cmd = None;
                }
            }
            InstructionKind::User(word) => self.config.user = self.expand(word)?,
            InstructionKind::Expose(words) => self.expose(words)?,
            InstructionKind::Volume(words) => {
                for word in words {
                    let volume = self.expand(word)?;
                    self.config.volumes.insert(volume);
                }
            }
            InstructionKind::Shell(shell) => self.config.shell = Some(shell.clone()),
            InstructionKind::StopSignal(word) => {
                self.config.stop_signal = Some(self.stop_signal(word)?);
            }
            InstructionKind::Healthcheck(check) => {
                self.config.healthcheck = Some(healthcheck(check));
            }
            InstructionKind::OnBuild(trigger) => self.config.on_build.push(trigger.clone()),
            InstructionKind::Maintainer(author) => self.author = Some(author.clone()),
            // These make layers or begin stages, and are handled by the caller.
            InstructionKind::From(_)
            | InstructionKind::Run(_)
            | InstructionKind::Copy(_)
            | InstructionKind::Workdir(_) => (),
        }
        Ok(())
    }

    fn expand_pairs(&self, pairs: &[Assignment]) -> Result<Vec<(String, String)>> {
        let expand = |pair: &Assignment| Ok((self.expand(&pair.name)?, self.expand(&pair.value)?));
        pairs.iter().map(expand).collect()
    }

    /// `ARG name[=default]`: the caller's value, else the default, else what is inherited.
    fn declare(&mut self, name: &str, default: Option<&Word>) -> Result<()> {
        let value = match (self.plan.build_args.get(name), default) {
            (Some(value), _) => Some(value.clone()),
            (None, Some(word)) => Some(self.expand(word)?),
            (None, None) => self.plan.inherited.get(name).cloned(),
        };
        // Declared again without a value, it keeps the one it has.
        if value.is_none() {
            return Ok(());
        }
        self.args.retain(|(known, _)| known != name);
        self.args.extend(value.map(|value| (name.to_owned(), value)));
        Ok(())
    }

    fn shell(&self) -> Vec<String> {
        match &self.config.shell {
            Some(shell) if !shell.is_empty() => shell.clone(),
            _ => DEFAULT_SHELL.map(str::to_owned).to_vec(),
        }
    }

    fn wrap(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(line) => {
                let mut words = self.shell();
                words.push(line.clone());
                words
            }
        }
    }

    fn run(&self, run: &Run, reads: &[Option<Source>], at: Span) -> Result<RunOperation> {
        let mut env = self.config.env.clone();
        let arg_values = self.args.clone();
        for (name, value) in &arg_values {
            set_env(&mut env, name, value);
        }
        // Proxies need no declaration, and are not in the history.
        for name in PROXY_ARGS {
            let is_known = env_value(&env, name).is_some();
            if let Some(value) = self.plan.build_args.get(name).filter(|_| !is_known) {
                env.push(format!("{name}={value}"));
            }
        }
        let cwd = match self.config.working_dir.as_str() {
            "" => "/".to_owned(),
            path => absolute("/", path),
        };
        let expand = |word: &Word| self.expand(word);
        let mounts: Result<Vec<Mount>> = (run.mounts.iter().zip(reads))
            .map(|(flag, from)| mount(flag, from.clone(), &cwd, &expand))
            .collect();
        let (args, script) = self.command(run, at)?;
        Ok(RunOperation {
            args,
            env,
            arg_values,
            user: self.config.user.clone(),
            cwd,
            mounts: mounts?,
            network: run.network,
            insecure: run.insecure,
            script,
        })
    }

    /// What is started, with here-documents put where they are read. One that is the whole
    /// command is the script for the shell, or a program if it begins with `#!`; others are the
    /// shell's own.
    fn command(&self, run: &Run, at: Span) -> Result<(Vec<String>, Option<Script>)> {
        let Command::Shell(line) = &run.command else { return Ok((self.wrap(&run.command), None)) };
        let Some(first) = run.documents.first() else { return Ok((self.wrap(&run.command), None)) };
        let refuse = |message| DockerfileError::new(at, message);
        if heredoc::marker(line).map_err(refuse)?.is_none() {
            let mut text = line.clone();
            for document in &run.documents {
                text.push('\n');
                text.push_str(&document.content);
                text.push_str(&document.name);
            }
            return Ok((self.wrap(&Command::Shell(text)), None));
        }
        let text = first.text();
        if !text.starts_with("#!") {
            return Ok((self.wrap(&Command::Shell(text)), None));
        }
        if first.name.contains('/') || matches!(first.name.as_str(), "." | "..") {
            let message = format!("`{}` cannot name a program", first.name);
            return Err(refuse(message));
        }
        let path = Command::Shell(format!("{SCRIPTS}/{}", first.name));
        Ok((self.wrap(&path), Some(Script { name: first.name.clone(), text })))
    }

    fn copy(&mut self, copy: &Copy, from: Option<Source>) -> Result<CopyOperation> {
        let destination = self.expand(&copy.destination)?;
        if destination.is_empty() {
            let message = format!("`{}` expands to nothing", copy.destination.text);
            return Err(DockerfileError::new(copy.destination.at, message));
        }
        possible(&copy.destination, &destination)?;
        let is_folder = destination.ends_with('/')
            || matches!(destination.as_str(), "." | "..")
            || destination.ends_with("/.")
            || destination.ends_with("/..");
        let mut path = absolute(&self.config.working_dir, &destination);
        if is_folder && !path.ends_with('/') {
            path.push('/');
        }
        let mut sources = Vec::with_capacity(copy.sources.len());
        for word in &copy.sources {
            sources.push(self.copy_source(copy, word)?);
        }
        let chmod = match &copy.chmod {
            Some(word) => Some(self.mode(word)?),
            None => None,
        };
        let chown = copy.chown.as_ref().map(|word| self.expand(word)).transpose()?;
        let mut documents = Vec::with_capacity(copy.documents.len());
        for document in &copy.documents {
            documents.push(self.document(document, copy.destination.at)?);
        }
        // Patterns are taken as they are written: that is what the reference does.
        let excludes = copy.excludes.iter().map(|word| word.text.clone()).collect();
        let checksum = self.checksum(copy, &mut sources)?;
        Ok(CopyOperation {
            from,
            checksum,
            unpack_downloads: copy.unpack == Some(true),
            sources,
            documents,
            destination: path,
            chown,
            chmod,
            unpack: copy.unpack.unwrap_or(copy.is_add),
            link: copy.link,
            parents: copy.parents,
            excludes,
        })
    }

    /// `--checksum`, which is for one address: the digest of a file. A repository keeps what it
    /// says, a commit, itself.
    fn checksum(&self, copy: &Copy, sources: &mut [CopySource]) -> Result<Option<oci::Digest>> {
        let Some(word) = &copy.checksum else { return Ok(None) };
        let refuse = |message: String| DockerfileError::new(word.at, message);
        if sources.len() + copy.documents.len() > 1 {
            return Err(refuse("`--checksum` is for one source, and here are several".to_owned()));
        }
        if sources.iter().all(|source| source.address.is_none()) {
            let message = "`--checksum` is for addresses, and this source is none";
            return Err(refuse(message.to_owned()));
        }
        let text = self.expand(word)?;
        let repository = sources.iter_mut().find_map(|source| match &mut source.address {
            Some(SourceAddress::Repository(repository)) => Some(repository),
            _ => None,
        });
        if let Some(repository) = repository {
            let commit =
                commit_id(&text).map_err(|reason| refuse(format!("`--checksum`: {reason}")))?;
            repository.commit = Some(commit);
            return Ok(None);
        }
        let digest = text.parse::<oci::Digest>();
        digest.map(Some).map_err(|error| {
            refuse(format!("`--checksum`: {error}"))
                .with_hint("write it like `sha256:` and 64 digits")
        })
    }

    /// A file whose text is in the Dockerfile.
    fn document(&self, document: &HereDocument, at: Span) -> Result<Script> {
        let name = document.name.clone();
        if name.contains('/') || matches!(name.as_str(), "." | "..") {
            return Err(DockerfileError::new(at, format!("`{name}` cannot name a file")));
        }
        let mut text = document.text();
        if document.expand {
            text = expand_document(&text, &self.scope()).map_err(|reason| {
                DockerfileError::new(at, format!("here-document `{name}`: {reason}"))
            })?;
        }
        Ok(Script { name, text })
    }

    /// A source, relative to the root of what is copied from; `..` does not climb out.
    fn copy_source(&self, copy: &Copy, word: &Word) -> Result<CopySource> {
        let source = self.expand(word).map_err(|error| match word.text.contains(['"', '\'']) {
            true => error.with_hint("write paths with blanks as a list: `[\"a b\", \"/to\"]`"),
            false => error,
        })?;
        if let Some(address) = self.source_address(copy, word, &source)? {
            let (pattern, pivot) = (String::new(), String::new());
            return Ok(CopySource { pattern, pivot, address: Some(address) });
        }
        if source.is_empty() {
            let message = format!("`{}` expands to nothing", word.text);
            return Err(DockerfileError::new(word.at, message));
        }
        // What follows `/./` is the part that is kept of the path.
        let (pivot, pattern) = match source.split_once("/./") {
            Some((pivot, pattern)) if copy.parents => (pivot, pattern),
            _ => ("", source.as_str()),
        };
        let clean = |path: &str| -> Result<String> {
            let path = absolute("/", path);
            possible(word, &path)?;
            Ok(path.trim_start_matches('/').to_owned())
        };
        Ok(CopySource { pattern: clean(pattern)?, pivot: clean(pivot)?, address: None })
    }

    /// What a source names elsewhere, if it does; `ADD` fetches it.
    fn source_address(
        &self,
        copy: &Copy,
        word: &Word,
        source: &str,
    ) -> Result<Option<SourceAddress>> {
        let repository = GitAddress::of_add(source);
        let file = Address::new(source);
        if (repository.is_some() || file.is_some()) && !copy.is_add {
            let shown = without_credentials(source);
            let message = format!("`COPY` takes no addresses, and `{shown}` is one");
            return Err(DockerfileError::new(word.at, message).with_hint("use `ADD`"));
        }
        let Some(repository) = repository else { return Ok(file.map(SourceAddress::File)) };
        let mut repository =
            repository.map_err(|error| DockerfileError::new(word.at, error.to_string()))?;
        repository.keep_git_dir = copy.keep_git_dir.or(repository.keep_git_dir);
        Ok(Some(SourceAddress::Repository(repository)))
    }

    fn mode(&self, word: &Word) -> Result<ModeChange> {
        let text = self.expand(word)?;
        ModeChange::parse(&text).ok_or_else(|| {
            let error = DockerfileError::new(word.at, format!("`--chmod={text}` is not a mode"));
            error.with_hint("write it like `--chmod=0755` or `--chmod=u=rwX,go=rX`")
        })
    }

    fn workdir(&mut self, word: &Word) -> Result<String> {
        let path = self.expand(word)?;
        let path = absolute(&self.config.working_dir, &path);
        possible(word, &path)?;
        self.config.working_dir.clone_from(&path);
        Ok(path)
    }

    fn stop_signal(&self, word: &Word) -> Result<String> {
        let signal = self.expand(word)?;
        let upper = signal.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let real_time = |start: &str, sign: char, max: u32| {
            let Some(rest) = name.strip_prefix(start) else { return false };
            let number = rest.strip_prefix(sign).and_then(|digits| digits.parse::<u32>().ok());
            rest.is_empty() || number.is_some_and(|number| (1..=max).contains(&number))
        };
        let valid = match signal.parse::<u32>() {
            Ok(number) => (1..=64).contains(&number),
            Err(_) => {
                SIGNALS.contains(&name)
                    || real_time("RTMIN", '+', 15)
                    || real_time("RTMAX", '-', 14)
            }
        };
        match valid {
            true => Ok(signal),
            false => Err(DockerfileError::new(word.at, format!("`{signal}` is not a signal"))),
        }
    }

    fn expose(&mut self, words: &[Word]) -> Result<()> {
        for word in words {
            let refuse = |message| DockerfileError::new(word.at, message);
            let specs =
                expand_words(&word.text, self.plan.escape, &self.scope()).map_err(refuse)?;
            for spec in specs {
                let ports = ports(&spec).map_err(refuse)?;
                if self.config.exposed_ports.len() + ports.len() > PORTS_MAX {
                    return Err(refuse(format!("more than {PORTS_MAX} ports are exposed")));
                }
                self.config.exposed_ports.extend(ports);
            }
        }
        Ok(())
    }
}

/// `RUN |2 A=1 B=2 /bin/sh -c make`: with the build arguments in scope, as docker tells it.
fn run_created_by(run: &Run, operation: &RunOperation) -> String {
    let args: Vec<String> =
        operation.arg_values.iter().map(|(name, value)| format!("{name}={value} ")).collect();
    let count = if args.is_empty() { String::new() } else { format!("|{} ", args.len()) };
    let line = match &run.command {
        Command::Shell(_) => operation.args.join(" "),
        Command::Exec(words) => words.join(" "),
    };
    format!("RUN {count}{}{line}", args.concat())
}

/// The first line of a here-document, for progress lines.
fn summary(content: &str) -> String {
    let content = content.trim();
    let (first, more) = match content.split_once('\n') {
        Some((first, _)) => (first.trim_end(), "..."),
        None => (content, ""),
    };
    format!(" ({first}{more})")
}

fn healthcheck(check: &Healthcheck) -> oci::Healthcheck {
    let Healthcheck::Check { command, interval, timeout, start_period, start_interval, retries } =
        check
    else {
        return oci::Healthcheck { test: vec!["NONE".to_owned()], ..oci::Healthcheck::default() };
    };
    // Zero is the runtime's default, and so is nothing.
    let nanoseconds = |duration: &Option<Duration>| {
        let duration = duration.filter(|duration| !duration.is_zero())?;
        u64::try_from(duration.as_nanos()).ok()
    };
    oci::Healthcheck {
        test: match command {
            Command::Shell(line) => vec!["CMD-SHELL".to_owned(), line.clone()],
            Command::Exec(words) => {
                std::iter::once("CMD".to_owned()).chain(words.iter().cloned()).collect()
            }
        },
        interval: nanoseconds(interval),
        timeout: nanoseconds(timeout),
        start_period: nanoseconds(start_period),
        start_interval: nanoseconds(start_interval),
        retries: retries.filter(|retries| *retries > 0).map(u64::from),
    }
}

/// Refuses a path that no Linux file system can hold.
fn possible(word: &Word, path: &str) -> Result<()> {
    if path.len() >= 4096 || path.split('/').any(|name| name.len() > 255) {
        let message = "the path is longer than 4095 bytes, or a name in it than 255";
        return Err(DockerfileError::new(word.at, message));
    }
    Ok(())
}

/// Names that `STOPSIGNAL` takes, without `SIG`.
const SIGNALS: [&str; 34] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
    "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
    "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
];

fn set_env(env: &mut Vec<String>, key: &str, value: &str) {
    let entry = format!("{key}={value}");
    let same =
        |old: &&mut String| old.split_once('=').map_or(old.as_str(), |(name, _)| name) == key;
    match env.iter_mut().find(same) {
        Some(old) => *old = entry,
        None => env.push(entry),
    }
}

/// `COPY a b /dest`: expanded, with the flags that matter.
fn copy_created_by(copy: &Copy, operation: &CopyOperation) -> String {
    let name = if copy.is_add { "ADD" } else { "COPY" };
    let mut text = name.to_owned();
    if let Some(chown) = &operation.chown {
        text.push_str(&format!(" --chown={chown}"));
    }
    if let Some(chmod) = &operation.chmod {
        text.push_str(&format!(" --chmod={}", chmod.text));
    }
    if operation.parents {
        text.push_str(" --parents");
    }
    for source in &operation.sources {
        let CopySource { pattern, pivot, address } = source;
        let shown = match (address, pivot.as_str(), pattern.as_str()) {
            (Some(address), ..) => address.to_string(),
            (None, "", "") => ".".to_owned(),
            (None, "", pattern) => pattern.to_owned(),
            (None, pivot, pattern) => format!("{pivot}/./{pattern}"),
        };
        text.push(' ');
        text.push_str(&shown);
    }
    for document in &operation.documents {
        text.push_str(" <<");
        text.push_str(&document.name);
    }
    text.push(' ');
    text.push_str(&operation.destination);
    text
}

/// `[[address:]host:]container[/protocol]`, each a port or a range; gives `port/protocol`s.
pub(crate) fn ports(spec: &str) -> std::result::Result<Vec<String>, String> {
    let wrong = |why: &str| format!("`{spec}` does not name a port: {why}");
    let refuse = |why: &str| Err(wrong(why));
    // An address may have colons itself; the last two separate.
    let mut parts = spec.rsplitn(3, ':');
    let container = parts.next().unwrap_or_default();
    let (host, address) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let (container, protocol) = container.split_once('/').unwrap_or((container, "tcp"));
    let protocol = match protocol.to_lowercase() {
        empty if empty.is_empty() => "tcp".to_owned(),
        protocol => protocol,
    };
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return refuse("the protocol must be tcp, udp or sctp");
    }
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if !address.is_empty() && bare.unwrap_or(address).parse::<IpAddr>().is_err() {
        return refuse(&format!("`{address}` is not an IP address"));
    }
    if container.is_empty() {
        return refuse("there is no number");
    }
    // Only the container's side matters for an image.
    let (low, high) = port_range(container).map_err(wrong)?;
    if !host.is_empty() {
        let (first, last) = port_range(host).map_err(wrong)?;
        if last - first != high - low && high != low {
            return refuse("the ranges are not equally long");
        }
    }
    Ok((low..=high).map(|port| format!("{port}/{protocol}")).collect())
}

fn port_range(text: &str) -> std::result::Result<(u16, u16), &'static str> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| {
        text.parse::<u16>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
    };
    match (number(low), number(high)) {
        (Some(low), Some(high)) if low <= high => Ok((low, high)),
        (Some(_), Some(_)) => Err("the range ends before it begins"),
        _ => Err("numbers are 0 to 65535"),
    }
}
