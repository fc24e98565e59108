//! Connections over which git itself is spoken, without HTTP around it.
//!
//! `gix` reads and writes in a blocking way; here that comes to an end when the fetch is
//! canceled, when a server says nothing any more, and when it says too much.

use std::io::{self, BufReader, Read, Write};

use gix_transport::client::git::ConnectMode;
use gix_transport::client::git::blocking_io::Connection as GitConnection;
use gix_transport::{Protocol, client::blocking_io::Transport};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::place::{GIT_PORT, Server};
use super::ssh::{self, Process};
use super::{Connection, Failure, GitError, Result};
use crate::download::{DownloadError, Downloads};

/// Packets of git have at most this many bytes.
const BUFFER_SIZE: usize = 1 << 16;

/// A connection to a server of git's own protocol.
pub(super) fn connect(
    connection: &Connection,
    server: &Server,
    failure: &Failure,
) -> Result<Box<dyn Transport + Send>> {
    let address = connection.address();
    let stream = connection.wait(dial(&connection.downloads, server, &address))?;
    let (from, to) = stream.into_split();
    let (reader, writer) = ends(connection, failure, from, to, None);
    let (path, name, mode) = (&*server.path, Some(server.name()), ConnectMode::Daemon);
    Ok(Box::new(GitConnection::new(reader, writer, Protocol::V2, path, name, mode, false)))
}

/// The same over SSH.
pub(super) fn connect_by_ssh(
    connection: &Connection,
    user: &str,
    server: &Server,
    failure: &Failure,
) -> Result<Box<dyn Transport + Send>> {
    let (from, to, process) = ssh::start(connection, user, server)?;
    let (reader, writer) = ends(connection, failure, from, to, Some(process));
    // What is wanted, the process has told the server.
    let (path, name, mode) = (&*server.path, None::<(String, _)>, ConnectMode::Process);
    Ok(Box::new(GitConnection::new(reader, writer, Protocol::V2, path, name, mode, false)))
}

fn ends(
    connection: &Connection,
    failure: &Failure,
    from: impl AsyncRead + Send + Unpin + 'static,
    to: impl AsyncWrite + Send + Unpin + 'static,
    process: Option<Process>,
) -> (BufReader<Reader>, Writer) {
    let (connection, failure, from) = (connection.clone(), failure.clone(), Box::new(from));
    let writer =
        Writer { connection: connection.clone(), failure: failure.clone(), to: Box::new(to) };
    let reader = Reader { connection, failure, from, received: 0, process };
    (BufReader::with_capacity(BUFFER_SIZE, reader), writer)
}

/// Connects to one of those addresses of a server that may be reached.
async fn dial(downloads: &Downloads, server: &Server, address: &str) -> Result<TcpStream> {
    let timeout = downloads.settings.connect_timeout;
    let mut reason = "its name has no address".to_owned();
    for socket in downloads.addresses(&server.host, server.port_or(GIT_PORT), address).await? {
        match tokio::time::timeout(timeout, TcpStream::connect(socket)).await {
            Ok(Ok(stream)) => {
                // Questions are short, and each waits for its answer.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => reason = error.to_string(),
            Err(_) => reason = "its server does not answer".to_owned(),
        }
    }
    Err(unreachable(address.to_owned(), reason))
}

fn unreachable(address: String, reason: String) -> GitError {
    DownloadError::Unreachable { address, reason }.into()
}

struct Reader {
    connection: Connection,
    failure: Failure,
    from: Box<dyn AsyncRead + Send + Unpin>,
    received: u64,
    /// What the bytes come through.
    process: Option<Process>,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Self { connection, from, received, process, .. } = self;
        let reading = async {
            let count = in_time(connection, from.read(buffer)).await?;
            let ended = process.take_if(|_| count == 0);
            if let Some(process) = ended
                && let Some(error) = process.failure().await
            {
                return Err(error);
            }
            *received += count as u64;
            let (address, max) = (connection.address(), connection.bytes_max);
            match *received > max {
                true => Err(GitError::TooLarge { address, max }),
                false => Ok(count),
            }
        };
        connection.wait(reading).map_err(|error| self.failure.keep(error))
    }
}

struct Writer {
    connection: Connection,
    failure: Failure,
    to: Box<dyn AsyncWrite + Send + Unpin>,
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Self { connection, to, .. } = self;
        let written = connection.wait(in_time(connection, to.write(bytes)));
        written.map_err(|error| self.failure.keep(error))
    }

    fn flush(&mut self) -> io::Result<()> {
        let Self { connection, to, .. } = self;
        let flushed = connection.wait(in_time(connection, to.flush()));
        flushed.map_err(|error| self.failure.keep(error))
    }
}

/// Waits for a server as long as it may be silent.
async fn in_time<T>(
    connection: &Connection,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T> {
    let timeout = connection.downloads.settings.idle_timeout;
    match tokio::time::timeout(timeout, work).await {
        Ok(done) => done.map_err(|error| unreachable(connection.address(), error.to_string())),
        Err(_) => {
            let reason = format!("its server said nothing for {} s", timeout.as_secs());
            Err(unreachable(connection.address(), reason))
        }
    }
}
