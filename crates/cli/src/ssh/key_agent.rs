//! An agent of our own, for keys that are in files.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

use crate::error::{Error, Result, could_not};

/// How long the agent may take until its socket is open.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// The agent starts this as its own command, once its socket is open. The end of this process,
/// however it comes, is the end of the input, and that is the end of the agent.
const WATCH: &str = "echo; read -r line; kill \"$SSH_AGENT_PID\"";

/// The system's `ssh-agent` with some keys; ends when dropped, or with this process.
pub(super) struct KeyAgent {
    /// Watches over it. Its standard input is the pipe that tells of our end.
    _watch: Child,
    folder: Folder,
}

/// A folder that nobody else can enter; removed when dropped.
struct Folder(PathBuf);

impl KeyAgent {
    /// Starts an agent and gives it the keys, some of which may need a passphrase.
    pub(super) async fn start(keys: &[PathBuf]) -> Result<Self> {
        let folder = Folder::make()?;
        let mut watch = command("ssh-agent")
            .arg("-a")
            .arg(folder.socket())
            .args(["/bin/sh", "-c", WATCH])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Keys pressed at the terminal are not for it.
            .process_group(0)
            .spawn()
            .map_err(cannot_start("ssh-agent"))?;
        let started = tokio::time::timeout(START_TIMEOUT, is_ready(&mut watch)).await;
        if !started.unwrap_or(false) {
            let _it_may_have_ended = watch.start_kill();
            let told = told(&mut watch).await;
            return Err(Error::failed(format!("`ssh-agent` did not start: {told}")));
        }
        let agent = Self { _watch: watch, folder };
        for key in keys {
            agent.add(key).await?;
        }
        Ok(agent)
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.socket()
    }

    /// `ssh-add` asks for the passphrase on the terminal, if there is one.
    async fn add(&self, key: &Path) -> Result<()> {
        let adding = command("ssh-add")
            .args(["-q", "--"])
            .arg(key)
            .env("SSH_AUTH_SOCK", self.socket())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut adding = Asking(adding.map_err(cannot_start("ssh-add"))?);
        let told = told(&mut adding.0).await;
        let status = adding.0.wait().await.map_err(could_not("wait for `ssh-add`"))?;
        match status.success() {
            true => Ok(()),
            false => {
                let key = key.display();
                Err(Error::usage(format!("`ssh-add` does not take the key `{key}`: {told}")))
            }
        }
    }
}

/// A program that may wait at the terminal. It is ended so that it can put that right first.
struct Asking(Child);

impl Drop for Asking {
    fn drop(&mut self) {
        // No number: it has ended.
        let id = self.0.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
        if let Some(id) = id {
            let _just_ended = rustix::process::kill_process(id, Signal::TERM);
        }
    }
}

impl Folder {
    fn make() -> Result<Self> {
        let path =
            std::env::temp_dir().join(format!("refit-ssh-{}", uuid::Uuid::new_v4().simple()));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(could_not(format!("make the folder `{}`", path.display())))?;
        Ok(Self(path))
    }

    fn socket(&self) -> PathBuf {
        self.0.join("agent")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What a cleaner of temporary files was quicker with.
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

async fn is_ready(watch: &mut Child) -> bool {
    match &mut watch.stdout {
        Some(stdout) => stdout.read_u8().await.is_ok(),
        None => false,
    }
}

/// What a process says of its errors until it ends.
async fn told(process: &mut Child) -> String {
    let mut told = Vec::new();
    if let Some(stderr) = &mut process.stderr {
        let _as_far_as_it_came = stderr.read_to_end(&mut told).await;
    }
    String::from_utf8_lossy(&told).trim().to_owned()
}

#[expect(clippy::disallowed_methods, reason = "the user's own programs, for the user's own keys")]
fn command(program: &str) -> Command {
    Command::new(program)
}

fn cannot_start(program: &str) -> impl FnOnce(std::io::Error) -> Error {
    move |error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::usage(format!(
            "`--ssh` with key files needs `{program}`, which is not installed"
        ))
        .with_hint(
            "install OpenSSH's client (`openssh-client` in Debian), or name the socket of \
                     an agent",
        ),
        _ => Error::failed(format!("could not start `{program}`")).caused_by(&error),
    }
}
