//! What a build executes, all words expanded.

use oci::{ContainerConfig, ImageConfig};

use crate::instruction::{Command, Copy, Instruction, InstructionKind, Word};
use crate::path::absolute;
use crate::plan::{PROXY_ARGS, Source, StagePlan, expand_word};
use crate::span::{DockerfileError, Span};
use crate::word::{Variables, expand_words};

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
}

#[derive(Debug, Clone, PartialEq)]
pub enum OperationKind {
    Run(RunOperation),
    Copy(CopyOperation),
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
}

/// `COPY` or `ADD`.
#[derive(Debug, Clone, PartialEq)]
pub struct CopyOperation {
    /// `None`: the build context.
    pub from: Option<Source>,
    /// Patterns relative to the root of the source, cleaned, no leading slash.
    pub sources: Vec<String>,
    /// Absolute and cleaned; ends with `/` if the user wrote it so.
    pub destination: String,
    /// `--chown` as written: `name`, `uid:gid`, ...; `None`: root.
    pub chown: Option<String>,
    /// `--chmod` as octal bits.
    pub chmod: Option<u32>,
    /// `ADD`: unpack local archives.
    pub unpack: bool,
}

impl StagePlan {
    /// Carries the stage's instructions over the base's config: expands every word, keeps
    /// `ENV`, `WORKDIR`, `USER`, `SHELL` and `ARG` as they go, and gives what to execute.
    ///
    /// Pure: the config of a stage never depends on what its `RUN`s did.
    pub fn operations(&self, base: &ImageConfig) -> Result<Vec<Operation>> {
        if !base.config.on_build.is_empty() {
            let message = "the base image has `ONBUILD` triggers, which are not supported yet";
            return Err(DockerfileError::new(self.at, message));
        }
        let mut state = State::new(self, base);
        self.instructions.iter().map(|instruction| state.step(instruction)).collect()
    }
}

/// A stage as far as it has come.
struct State<'a> {
    plan: &'a StagePlan,
    config: ContainerConfig,
    author: Option<String>,
    /// `ARG`s in scope that have a value, in order of declaration.
    args: Vec<(String, String)>,
    /// Whether this stage has set its own `CMD`.
    has_cmd: bool,
    /// `COPY`s seen, for finding their resolved sources.
    copies: usize,
}

/// Values that a word may name: `ENV` before `ARG`.
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
        env_value(self.env, name).or_else(arg)
    }
}

impl<'a> State<'a> {
    fn new(plan: &'a StagePlan, base: &ImageConfig) -> Self {
        let mut config = base.config.clone();
        if plan.base == Source::Scratch && config.env.is_empty() {
            config.env.push(format!("PATH={DEFAULT_PATH}"));
        }
        let author = base.author.clone();
        Self { plan, config, author, args: Vec::new(), has_cmd: false, copies: 0 }
    }

    fn scope(&self) -> Scope<'_> {
        Scope { env: &self.config.env, args: &self.args }
    }

    fn expand(&self, word: &Word) -> Result<String> {
        expand_word(word, self.plan.escape, &self.scope())
    }

    fn step(&mut self, instruction: &Instruction) -> Result<Operation> {
        let mut created_by = instruction.text.clone();
        let kind = match &instruction.kind {
            InstructionKind::Run(command) => {
                let run = self.run(command);
                created_by = self.run_created_by(command, &run);
                OperationKind::Run(run)
            }
            InstructionKind::Copy(copy) => {
                let operation = self.copy(copy)?;
                created_by = copy_created_by(copy, &operation);
                OperationKind::Copy(operation)
            }
            InstructionKind::Workdir(word) => {
                let path = self.workdir(word)?;
                created_by = format!("WORKDIR {path}");
                OperationKind::Workdir { path }
            }
            other => {
                self.change_config(other)?;
                OperationKind::Config
            }
        };
        Ok(Operation {
            at: instruction.at,
            text: instruction.text.clone(),
            created_by,
            kind,
            config: self.config.clone(),
            author: self.author.clone(),
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
                self.config.entrypoint = Some(self.wrap(command));
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
            InstructionKind::Maintainer(author) => self.author = Some(author.clone()),
            // These make layers or begin stages, and are handled by the caller.
            InstructionKind::From(_)
            | InstructionKind::Run(_)
            | InstructionKind::Copy(_)
            | InstructionKind::Workdir(_) => (),
        }
        Ok(())
    }

    fn expand_pairs(&self, pairs: &[(Word, Word)]) -> Result<Vec<(String, String)>> {
        pairs.iter().map(|(key, value)| Ok((self.expand(key)?, self.expand(value)?))).collect()
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

    fn run(&self, command: &Command) -> RunOperation {
        let mut env = self.config.env.clone();
        if env_value(&env, "PATH").is_none() {
            env.push(format!("PATH={DEFAULT_PATH}"));
        }
        let hidden = |name: &str| env_value(&self.config.env, name).is_some();
        let declared = self.args.iter().filter(|(name, _)| !hidden(name));
        let arg_values: Vec<(String, String)> = declared.cloned().collect();
        env.extend(arg_values.iter().map(|(name, value)| format!("{name}={value}")));
        // Proxies need no declaration, and do not count for the cache or the history.
        for name in PROXY_ARGS {
            let is_known = hidden(name) || self.args.iter().any(|(known, _)| known == name);
            if let Some(value) = self.plan.build_args.get(name).filter(|_| !is_known) {
                env.push(format!("{name}={value}"));
            }
        }
        let cwd = match self.config.working_dir.as_str() {
            "" => "/".to_owned(),
            path => absolute("/", path),
        };
        let user = self.config.user.clone();
        RunOperation { args: self.wrap(command), env, arg_values, user, cwd }
    }

    /// `RUN |2 A=1 B=2 /bin/sh -c make`: with the build arguments in scope, as docker tells it.
    fn run_created_by(&self, command: &Command, run: &RunOperation) -> String {
        let args: Vec<String> =
            run.arg_values.iter().map(|(name, value)| format!("{name}={value} ")).collect();
        let count = if args.is_empty() { String::new() } else { format!("|{} ", args.len()) };
        let line = match command {
            Command::Shell(_) => run.args.join(" "),
            Command::Exec(words) => words.join(" "),
        };
        format!("RUN {count}{}{line}", args.concat())
    }

    fn copy(&mut self, copy: &Copy) -> Result<CopyOperation> {
        let from = self.plan.copies.get(self.copies).cloned().flatten();
        self.copies += 1;
        let destination = self.expand(&copy.destination)?;
        if destination.is_empty() {
            let message = format!("`{}` expands to nothing", copy.destination.text);
            return Err(DockerfileError::new(copy.destination.at, message));
        }
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
        Ok(CopyOperation { from, sources, destination: path, chown, chmod, unpack: copy.is_add })
    }

    /// A source, relative to the root of what is copied from; `..` does not climb out.
    fn copy_source(&self, copy: &Copy, word: &Word) -> Result<String> {
        let source = self.expand(word)?;
        let is_remote = ["http://", "https://", "git@", "git://", "ssh://"]
            .iter()
            .any(|scheme| source.starts_with(scheme));
        if copy.is_add && is_remote {
            let message = format!("`ADD` of `{source}`: addresses are not supported yet");
            return Err(DockerfileError::new(word.at, message));
        }
        if source.is_empty() {
            let message = format!("`{}` expands to nothing", word.text);
            return Err(DockerfileError::new(word.at, message));
        }
        let path = absolute("/", &source);
        possible(word, &path)?;
        Ok(path.trim_start_matches('/').to_owned())
    }

    fn mode(&self, word: &Word) -> Result<u32> {
        let text = self.expand(word)?;
        let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o7777);
        mode.ok_or_else(|| {
            let message = format!("`--chmod={text}` is not an octal mode");
            DockerfileError::new(word.at, message).with_hint("write it like `--chmod=0755`")
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
    if let Some(chmod) = operation.chmod {
        text.push_str(&format!(" --chmod={chmod:o}"));
    }
    for source in &operation.sources {
        text.push_str(if source.is_empty() { " ." } else { " " });
        text.push_str(source);
    }
    text.push(' ');
    text.push_str(&operation.destination);
    text
}

/// `[[address:]host:]container[/protocol]`, each a port or a range; gives `port/protocol`s.
fn ports(spec: &str) -> std::result::Result<Vec<String>, String> {
    let refuse = |why: &str| Err(format!("`{spec}` does not name a port: {why}"));
    let (ports, protocol) = match spec.rsplit_once('/') {
        Some((ports, protocol)) => (ports, protocol.to_lowercase()),
        None => (spec, "tcp".to_owned()),
    };
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return refuse("the protocol must be tcp, udp or sctp");
    }
    // Only the container's side matters for an image.
    let container = ports.rsplit(':').next().unwrap_or(ports);
    if container.is_empty() {
        return refuse("there is no number");
    }
    let (low, high) = container.split_once('-').unwrap_or((container, container));
    let number = |text: &str| {
        text.parse::<u16>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
    };
    match (number(low), number(high)) {
        (Some(low), Some(high)) if low <= high => {
            Ok((low..=high).map(|port| format!("{port}/{protocol}")).collect())
        }
        (Some(_), Some(_)) => refuse("the range ends before it begins"),
        _ => refuse("numbers are 0 to 65535"),
    }
}
