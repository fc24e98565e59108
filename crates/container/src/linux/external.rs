//! Handing the prepared bundle to an OCI runtime such as `runc` or `runsc`.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::helper::{Woken, wait_readable};
use super::report::{Doing as _, Ending};
use crate::bundle::{self, Config, MountEntry, Placement};
use crate::{ContainerError, ExternalRuntime};

const LOG_SIZE_MAX: u64 = 256 << 10;

/// How long the runtime may take to end after its container was killed.
const END_WAIT_MAX: Duration = Duration::from_secs(8);

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
        .arg(folder.join("runtime.pid"))
        .arg(name)
        .spawn()
        .doing(doing)?;
    let id = i32::try_from(child.id()).doing(doing)?;
    let process = rustix::process::Pid::from_raw(id).ok_or("no process").doing(doing)?;
    let handle =
        rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty()).doing(doing)?;
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
    Ok(match (status.code(), status.signal()) {
        (Some(code), _) => Ending::Code(code),
        (None, signal) => Ending::Signal(signal.unwrap_or(0)),
    })
}

#[expect(clippy::disallowed_methods, reason = "this is how `container` runs untrusted code")]
fn command(runtime: &ExternalRuntime, folder: &Path) -> Command {
    let mut command = Command::new(&runtime.program);
    command.arg("--root").arg(folder.join("runtime"));
    command.arg("--log").arg(folder.join("runtime.log")).args(["--log-format", "json"]);
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
        let pid = std::fs::read_to_string(folder.join("runtime.pid")).ok();
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
    let log = std::fs::File::open(folder.join("runtime.log")).ok()?.take(LOG_SIZE_MAX);
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
