//! `RUN --mount=type=ssh`: sockets behind which the agents of whoever asked for the build answer.
//!
//! A socket is there while its `RUN` goes on. A connection to it is joined with one to the agent
//! once something comes over it: whoever says nothing costs the agent nothing.

mod key;
mod key_agents;

use std::fmt;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dockerfile::FileOwner;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

pub use self::key::{SshKey, SshKeyError};
pub use self::key_agents::KeyAgents;
use crate::layers::Temporary;

/// Connections that go on at once over one socket; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;

/// Bytes that are taken of a connection before there is one to the agent.
const FIRST_READ: usize = 4096;

/// After an error of `accept` that will not go away by itself, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const SOCKET_NAME: &str = "agent";

/// The ssh agents that a build was given, wherever they are.
#[async_trait]
pub trait SshAgents: fmt::Debug + Send + Sync {
    /// Whether there is one by this id.
    fn has(&self, id: &str) -> bool;

    /// A new connection to one.
    async fn connect(&self, id: &str) -> io::Result<Box<dyn AgentConnection>>;
}

/// Bytes to and from an agent.
pub trait AgentConnection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<C: AsyncRead + AsyncWrite + Send + Unpin> AgentConnection for C {}

/// The socket of one mount. It goes when dropped, with all connections over it.
pub(crate) struct AgentSocket {
    path: PathBuf,
    _serving: AbortOnDropHandle<()>,
    _folder: Temporary,
}

impl AgentSocket {
    /// Opens a socket in a folder of its own, for a user of the image.
    pub(crate) fn open(
        folder: Temporary,
        owner: FileOwner,
        agents: Arc<dyn SshAgents>,
        id: &str,
    ) -> io::Result<Self> {
        let listener = listen(folder.path())?;
        let path = folder.path().join(SOCKET_NAME);
        chown(&path, Some(owner.uid.unwrap_or(0)), Some(owner.gid.unwrap_or(0)))?;
        std::fs::set_permissions(&path, Permissions::from_mode(owner.mode.unwrap_or(0o600)))?;
        let serving = AbortOnDropHandle::new(tokio::spawn(serve(listener, agents, id.to_owned())));
        Ok(Self { path, _serving: serving, _folder: folder })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The folder is named by its descriptor, since the path of a socket has at most 108 bytes.
fn listen(folder: &Path) -> io::Result<UnixListener> {
    let folder = File::open(folder)?;
    UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET_NAME}", folder.as_raw_fd()))
}

async fn serve(listener: UnixListener, agents: Arc<dyn SshAgents>, id: String) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((process, _)) => {
                    connections.spawn(join(process, Arc::clone(&agents), id.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection to an ssh agent could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(joined) = connections.join_next() => {
                if let Ok(Err(error)) = joined {
                    tracing::debug!(%error, id, "a connection to an ssh agent ended early");
                }
            }
        }
    }
}

/// Joins a process with an agent until either has said all.
async fn join(mut process: UnixStream, agents: Arc<dyn SshAgents>, id: String) -> io::Result<()> {
    let mut first = vec![0; FIRST_READ];
    let count = process.read(&mut first).await?;
    if count == 0 {
        return Ok(());
    }
    let mut agent = agents.connect(&id).await?;
    agent.write_all(&first[..count]).await?;
    agent.flush().await?;
    tokio::io::copy_bidirectional(&mut process, &mut agent).await.map(drop)
}
