//! Starting the program that is a container's way to the network, and waiting until it is.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, poll};

use super::report::Doing as _;
use super::sandbox::die_with_parent;
use crate::ContainerError;
use crate::network::Uplink;
use crate::process::path_text;

/// How long the program may take.
const START_WAIT_MAX: Duration = Duration::from_secs(10);
/// In milliseconds.
const LOOK_PERIOD: u8 = 2;
/// As much is read of what the program wrote, and so many lines are told.
const LOG_SIZE_MAX: u64 = 8 << 10;
const LINES_MAX: usize = 3;

/// The program under way; killed when dropped, or with the helper.
pub(super) struct Running {
    child: Child,
    program: PathBuf,
    log: PathBuf,
}

/// Starts it for the network namespace at `namespace`. The helper is still in the machine's.
pub(super) fn start(
    uplink: &Uplink,
    namespace: &str,
    folder: &Path,
) -> Result<Running, ContainerError> {
    let log = folder.join("network.log");
    let doing = || format!("start `{}`", uplink.program.display());
    // The program may give up the rights that the link below `/proc` asks for.
    let file = path_text(&folder.join("network"))?;
    File::create(&file).doing(doing)?;
    let none = None::<&str>;
    mount(Some(namespace), file.as_str(), none, MsFlags::MS_BIND, none).doing(doing)?;
    let arguments = uplink.arguments(&file);
    let file = File::create(&log).doing(doing)?;
    let mut command = command(&uplink.program);
    command.args(arguments).stderr(file.try_clone().doing(doing)?);
    command.stdout(file);
    die_with_parent(&mut command);
    let child = command.spawn().doing(doing)?;
    Ok(Running { child, program: uplink.program.clone(), log })
}

#[expect(clippy::disallowed_methods, reason = "a user's way to the network")]
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().current_dir("/").stdin(Stdio::null()).process_group(0);
    command
}

impl Running {
    /// Waits until the network namespace that the helper has entered meanwhile has a way out;
    /// `false` if the server wants no container any more.
    pub(super) fn wait(&mut self, control: &UnixStream) -> Result<bool, ContainerError> {
        let doing = || "give the container a network".to_owned();
        let shown = self.program.display();
        let started = Instant::now();
        while !has_default_route() {
            if let Some(status) = self.child.try_wait().doing(doing)? {
                let said = said(&self.log);
                return Err(format!("`{shown}` ended with {status}: {said}")).doing(doing);
            }
            if started.elapsed() > START_WAIT_MAX {
                let (said, seconds) = (said(&self.log), START_WAIT_MAX.as_secs());
                let reason = format!("`{shown}` was not ready after {seconds} seconds: {said}");
                return Err(reason).doing(doing);
            }
            let mut server = [PollFd::new(control.as_fd(), PollFlags::POLLIN)];
            if poll(&mut server, LOOK_PERIOD).doing(doing)? > 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}

/// The last lines of what the program wrote.
fn said(log: &Path) -> String {
    let mut bytes = Vec::new();
    // What cannot be read was not said.
    let _read = File::open(log).and_then(|log| log.take(LOG_SIZE_MAX).read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    match lines.len() {
        0 => "it said nothing".to_owned(),
        count => lines[count.saturating_sub(LINES_MAX)..].join("; "),
    }
}

/// Whether this network namespace has one: a line whose destination and mask are zero.
fn has_default_route() -> bool {
    is_default_route(&fs::read_to_string("/proc/self/net/route").unwrap_or_default())
}

fn is_default_route(table: &str) -> bool {
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let zero = |field: usize| fields.get(field) == Some(&"00000000");
        zero(1) && zero(7)
    })
}

#[cfg(test)]
mod tests {
    use super::is_default_route;

    #[test]
    fn a_default_route_is_told_from_others() {
        const HEAD: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\n";
        let local = "tap0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let default = "tap0\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert!(!is_default_route(HEAD));
        assert!(!is_default_route(&format!("{HEAD}{local}")));
        assert!(is_default_route(&format!("{HEAD}{local}{default}")));
    }
}
