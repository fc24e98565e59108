//! Handing the prepared bundle to an OCI runtime such as `runc` or `runsc`.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::helper::{Woken, look_readable, wait_readable};
use super::report::{Doing as _, Ending, Message, tell};
use crate::bundle::{self, Config, MountEntry, Placement};
use crate::{ContainerError, ExternalRuntime};

const LOG_SIZE_MAX: u64 = 256 << 10;

/// How long the runtime may take to end after its container was killed.
const END_WAIT_MAX: Duration = Duration::from_secs(8);

/// How often it is looked for signs of the start, in milliseconds, and how many times the runtime
/// is asked. What it has not said then is told at the end.
const LOOK_PERIOD: u8 = 5;
const QUESTIONS_MAX: usize = 200;
const ANSWER_SIZE_MAX: u64 = 256 << 10;

/// Runs the bundle in the folder `bundle` to its end; the runtime's own files are in `folder`.
pub(super) fn run(
    runtime: &ExternalRuntime,
    folder: &Path,
    bundle: &Path,
    name: &str,
    control: &UnixStream,
) -> Result<Ending, ContainerError> {
    let doing = || format!("run `{}`", runtime.program.display());
    if runtime.program.file_name().is_some_and(|name| name == "runsc") {
        keep_temporary_folder(folder, bundle).doing(doing)?;
    }
    let mut child = command(runtime, folder)
        .arg("run")
        .arg("--bundle")
        .arg(bundle)
        .arg("--pid-file")
        .arg(pid_file(folder))
        .arg(name)
        .spawn()
        .doing(doing)?;
    let id = i32::try_from(child.id()).doing(doing)?;
    let process = rustix::process::Pid::from_raw(id).ok_or("no process").doing(doing)?;
    let handle =
        rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty()).doing(doing)?;
    let mut start = Start { runtime, folder, name, question: None, questions: 0 };
    let is_seen = start.watch(&handle, control).doing(doing)?;
    if is_seen {
        tell(control, &Message::Started).doing(doing)?;
    }
    drop(start);
    let killed = wait_readable(&handle, control).doing(doing)? == Woken::ByServer;
    if killed {
        end(&mut child, folder);
    }
    let status = child.wait().doing(doing)?;
    if !status.success() {
        let mut delete = command(runtime, folder);
        delete.args(["delete", "--force"]).arg(name).stderr(Stdio::null());
        let _gone_already = delete.status();
    }
    if !killed && let Some(message) = first_error(folder) {
        return Err(explain(folder, message));
    }
    if !killed && !is_seen {
        tell(control, &Message::Started).doing(doing)?;
    }
    Ok(match (status.code(), status.signal()) {
        (Some(code), _) => Ending::Code(code),
        (None, signal) => Ending::Signal(signal.unwrap_or(0)),
    })
}

/// Finds out when the runtime has started the container: its file with the process id says that
/// it has made the process, and its own word that this is the container's program.
struct Start<'a> {
    runtime: &'a ExternalRuntime,
    folder: &'a Path,
    name: &'a str,
    /// The runtime, being asked.
    question: Option<Child>,
    questions: usize,
}

impl Start<'_> {
    /// Waits until the container runs; `false` if that is not known when the runtime behind
    /// `handle` ends, or is to end.
    fn watch(&mut self, handle: impl AsFd, control: &UnixStream) -> nix::Result<bool> {
        while look_readable(&handle, control, LOOK_PERIOD)?.is_none() {
            match &mut self.question {
                Some(question) => match question.try_wait() {
                    Ok(None) => (),
                    Ok(Some(_)) if self.is_running() => return Ok(true),
                    _ => self.question = None,
                },
                None if self.questions == QUESTIONS_MAX => return Ok(false),
                None if pid_file(self.folder).exists() => self.ask(),
                None => (),
            }
        }
        Ok(false)
    }

    /// What cannot be asked now is asked later.
    fn ask(&mut self) {
        self.questions += 1;
        let Ok(answer) = File::create(self.answer_file()) else { return };
        // Other words than those about the container have a log of their own.
        let mut command = command_with_log(self.runtime, self.folder, "state.log");
        command.arg("state").arg(self.name).stdout(answer).stderr(Stdio::null());
        self.question = command.spawn().ok();
    }

    fn is_running(&self) -> bool {
        let mut answer = Vec::new();
        let read = File::open(self.answer_file())
            .and_then(|file| file.take(ANSWER_SIZE_MAX).read_to_end(&mut answer));
        let state = serde_json::from_slice::<State>(&answer);
        read.is_ok() && state.is_ok_and(|state| state.status == "running")
    }

    fn answer_file(&self) -> PathBuf {
        self.folder.join("runtime.state")
    }
}

impl Drop for Start<'_> {
    fn drop(&mut self) {
        if let Some(question) = &mut self.question {
            let _ended_already = question.kill();
            let _status = question.wait();
        }
    }
}

#[derive(serde::Deserialize)]
struct State {
    status: String,
}

fn pid_file(folder: &Path) -> PathBuf {
    folder.join("runtime.pid")
}

fn command(runtime: &ExternalRuntime, folder: &Path) -> Command {
    command_with_log(runtime, folder, "runtime.log")
}

#[expect(clippy::disallowed_methods, reason = "this is how `container` runs untrusted code")]
fn command_with_log(runtime: &ExternalRuntime, folder: &Path, log: &str) -> Command {
    let mut command = Command::new(&runtime.program);
    command.arg("--root").arg(folder.join("runtime"));
    command.arg("--log").arg(folder.join(log)).args(["--log-format", "json"]);
    command.args(&runtime.arguments);
    // The runtime needs a search path and nothing else from us.
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.stdin(Stdio::null()).process_group(0);
    command
}

/// gVisor puts a file system in memory over a `/tmp` that is empty, and what a step writes there
/// would be lost. It does not if something is mounted there: the folder itself.
fn keep_temporary_folder(folder: &Path, bundle: &Path) -> std::io::Result<()> {
    let at = Placement::config_file(bundle);
    let mut config: Config = bundle::read(&at)?;
    let is_tmp = |mount: &MountEntry| mount.destination.trim_end_matches('/') == "/tmp";
    let temporary = Placement::rootfs(folder).join("tmp");
    let is_folder = temporary.symlink_metadata().is_ok_and(|found| found.is_dir());
    if is_folder && !config.mounts.iter().any(is_tmp) {
        let source = temporary.to_string_lossy();
        config.mounts.push(MountEntry::new("/tmp", "bind", &source, &["rbind", "rw"]));
        std::fs::write(at, serde_json::to_vec(&config)?)?;
    }
    Ok(())
}

/// Kills the container, whose process id appears once the runtime has made it.
fn end(child: &mut Child, folder: &Path) {
    let started = Instant::now();
    while started.elapsed() < END_WAIT_MAX {
        if let Ok(Some(_)) = child.try_wait() {
            return;
        }
        let pid = std::fs::read_to_string(pid_file(folder)).ok();
        if let Some(pid) = pid.and_then(|text| text.trim().parse().ok()) {
            let _ended = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ended = child.kill();
}

#[derive(serde::Deserialize)]
struct LogLine {
    level: String,
    msg: String,
}

fn first_error(folder: &Path) -> Option<String> {
    let log = File::open(folder.join("runtime.log")).ok()?.take(LOG_SIZE_MAX);
    BufReader::new(log)
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_str::<LogLine>(&line).ok())
        .find(|line| matches!(line.level.as_str(), "error" | "fatal"))
        .map(|line| line.msg)
}

fn explain(folder: &Path, message: String) -> ContainerError {
    let is_foreign = message.contains("exec format error");
    let is_about = |words: &str| {
        // What runc says, and gVisor.
        let executes = message.contains("exec") || message.contains("failed to load");
        executes && message.contains(words)
    };
    let about_program = is_foreign
        || message.contains("executable file not found")
        || is_about("no such file or directory")
        || is_about("permission denied");
    if !about_program {
        return ContainerError::Setup { doing: "run the container".to_owned(), reason: message };
    }
    let config: Option<Config> = bundle::read(&Placement::config_file(folder)).ok();
    let program = config.and_then(|config| config.process.args.into_iter().next());
    let program = program.unwrap_or_default();
    match is_foreign {
        true => ContainerError::NotForThisMachine { program },
        false => ContainerError::CannotExecute { program, reason: message },
    }
}
