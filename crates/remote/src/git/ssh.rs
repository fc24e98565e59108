//! `ssh`, which joins us with a git server: the one program that is started for a fetch.
//!
//! It proves who asks by the agent that the run was given, and by nothing else. Neither keys nor
//! settings of the user that this server runs as count: whoever names an address would get what
//! that user may read. Which hosts are known is the operator's to say.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio_util::task::AbortOnDropHandle;
use url::Host;

use super::place::Server;
use super::{Connection, GitError, Result};
use crate::download::DownloadError;

const PROGRAM: &str = "ssh";
const SSH_PORT: u16 = 22;

/// Where programs are looked for, whatever the server's own environment says.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Of what `ssh` and the server tell, this much is kept, in bytes.
const TOLD_MAX: u64 = 16 << 10;

/// How long `ssh` may take to end when it has said all.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// What `ssh` ends with if it is not what was run at the server that failed.
const OWN_FAILURE: i32 = 255;

/// Of what is not the same without settings: nobody is asked, nothing but the agent's keys is
/// shown, and no host is trusted that is not known.
const OPTIONS: [&str; 14] = [
    "BatchMode=yes",
    "CheckHostIP=no",
    "ControlPath=none",
    "GSSAPIAuthentication=no",
    "IdentitiesOnly=no",
    "IdentityFile=none",
    "LogLevel=ERROR",
    "PreferredAuthentications=publickey",
    "ProxyCommand=none",
    "SendEnv=GIT_PROTOCOL",
    "ServerAliveInterval=15",
    "StrictHostKeyChecking=yes",
    "UpdateHostKeys=no",
    "UserKnownHostsFile=none",
];

/// Where the program is, if there is one.
pub fn ssh_program() -> Option<PathBuf> {
    PATH.split(':').map(|folder| Path::new(folder).join(PROGRAM)).find(|file| file.exists())
}

/// A process; it is killed when dropped.
pub(super) struct Process {
    child: Child,
    told: AbortOnDropHandle<Vec<u8>>,
    address: String,
    host: HostKey,
}

/// Starts the program, for a conversation with `git-upload-pack` at the server.
pub(super) fn start(
    connection: &Connection,
    user: &str,
    server: &Server,
) -> Result<(ChildStdout, ChildStdin, Process)> {
    let address = connection.address();
    let Some(agent) = &connection.agent else { return Err(GitError::NoSshAgent { address }) };
    let Some(program) = ssh_program() else { return Err(GitError::NoSsh { address }) };
    let settings = &connection.downloads.settings;
    let host = HostKey::new(server, &settings.known_hosts);
    // The name is resolved here and not by the program: what was checked is connected to.
    let found = connection.wait(async {
        let found = connection.downloads.addresses(&server.host, host.port, &address).await;
        found.map_err(GitError::from)
    })?;
    let Some(socket) = found.first() else {
        let reason = "its name has no address".to_owned();
        return Err(DownloadError::Unreachable { address, reason }.into());
    };
    let failed = |source| GitError::Io { doing: "start `ssh`", source };
    let (Some(folder), Some(name)) = (agent.parent(), agent.file_name().and_then(|n| n.to_str()))
    else {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    };
    let mut command = command(&program);
    command
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .env("GIT_PROTOCOL", "version=2")
        // The path of a socket has at most 108 bytes.
        .current_dir(folder)
        .args(["-F", "none", "-T", "-a", "-x", "-l", user, "-p", &host.port.to_string()])
        .args(OPTIONS.iter().flat_map(|option| ["-o", *option]))
        .args(["-o", &format!("IdentityAgent={name}")])
        .args(["-o", &format!("ConnectTimeout={}", settings.connect_timeout.as_secs().max(1))])
        .args(["-o", &format!("GlobalKnownHostsFile=\"{}\"", settings.known_hosts.display())])
        .args(["-o", &format!("HostKeyAlias={}", host.name)])
        // The path has no quotes.
        .args(["--", &socket.ip().to_string(), &format!("git-upload-pack '{}'", server.path)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let _inside = connection.runtime.enter();
    let mut child = command.spawn().map_err(failed)?;
    let (Some(to), Some(from), Some(told)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        unreachable!("all are pipes");
    };
    let told = AbortOnDropHandle::new(connection.runtime.spawn(collect(told)));
    Ok((from, to, Process { child, told, address, host }))
}

#[expect(clippy::disallowed_methods, reason = "git's own way, with options that leave no choice")]
fn command(program: &Path) -> Command {
    Command::new(program)
}

async fn collect(mut from: ChildStderr) -> Vec<u8> {
    let mut told = Vec::new();
    // What is lost was about what went wrong, of which `ssh` also tells by how it ends.
    let _ = (&mut from).take(TOLD_MAX).read_to_end(&mut told).await;
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    told
}

impl Process {
    /// Why it ended, if it was not well.
    pub(super) async fn failure(mut self) -> Option<GitError> {
        let status = tokio::time::timeout(END_TIMEOUT, self.child.wait()).await.ok()?.ok()?;
        if status.success() {
            return None;
        }
        let told = tokio::time::timeout(END_TIMEOUT, self.told).await.ok()?.unwrap_or_default();
        let told = String::from_utf8_lossy(&told);
        Some(failure(status.code(), &told, self.address, self.host))
    }
}

fn failure(code: Option<i32>, told: &str, address: String, host: HostKey) -> GitError {
    let last = told.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    let mut reason = last.trim().to_owned();
    reason.retain(|c| !c.is_control());
    if code != Some(OWN_FAILURE) {
        return GitError::Protocol { address, reason };
    }
    if told.contains("HOST IDENTIFICATION HAS CHANGED") {
        return GitError::HostKey { host, reason: "is another one than is known" };
    }
    if told.contains("Host key verification failed") {
        return GitError::HostKey { host, reason: "is not known" };
    }
    if told.contains("Permission denied") {
        return GitError::SshRefused { address };
    }
    DownloadError::Unreachable { address, reason }.into()
}

/// By what name the key of a host is known, and where.
#[derive(Debug)]
pub struct HostKey {
    name: String,
    bare: String,
    port: u16,
    file: PathBuf,
}

impl HostKey {
    fn new(server: &Server, file: &Path) -> Self {
        let bare = match &server.host {
            Host::Ipv6(address) => address.to_string(),
            host => host.to_string(),
        };
        let port = server.port_or(SSH_PORT);
        let name = if port == SSH_PORT { bare.clone() } else { format!("[{bare}]:{port}") };
        Self { name, bare, port, file: file.to_owned() }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn hint(&self) -> String {
        let Self { bare, port, file, .. } = self;
        format!(
            "an administrator of the server puts what `ssh-keyscan -p {port} {bare}` prints into \
             `{}` (`build.git_known_hosts`), once it is sure that the host's key is this one",
            file.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::place::Place;

    #[test]
    fn what_went_wrong_is_told_by_what_ssh_says() {
        let failed = |code, told: &str| {
            let Ok(Place::Ssh { server, .. }) = Place::parse("ssh://git@[::1]:7/r") else {
                panic!("it is one over SSH");
            };
            let host = HostKey::new(&server, Path::new("/known"));
            failure(code, told, "ssh://git@h/r".to_owned(), host).to_string()
        };
        for (code, told, expected) in [
            (
                255,
                "No ED25519 host key is known\r\nHost key verification failed.\r\n",
                "the host key of `[::1]:7` is not known",
            ),
            (
                255,
                "@ REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
                "the host key of `[::1]:7` is another one than is known",
            ),
            (
                255,
                "git@h: Permission denied (publickey).",
                "`ssh://git@h/r` takes none of the keys that the ssh agent has",
            ),
            (
                255,
                "ssh: connect to host h port 7: Connection refused\r\n\n",
                "`ssh://git@h/r` could not be fetched: ssh: connect to host h port 7: Connection refused",
            ),
            (
                128,
                "fatal: \x1b[1m'/r' does not appear to be a git repository\n",
                "`ssh://git@h/r` could not be fetched: fatal: [1m'/r' does not appear to be a git repository",
            ),
        ] {
            assert_eq!(failed(Some(code), told), expected);
        }
    }
}
