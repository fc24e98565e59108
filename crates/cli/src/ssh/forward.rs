//! Connections to the server, at whose other ends are `RUN`s.
//!
//! One waits for each agent. When the first byte comes over it, it is in use, and the next one is
//! opened.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reqwest::Upgraded;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _};
use tokio::io::{AsyncWrite, AsyncWriteExt as _, BufStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::{connect, request};
use crate::connection::Connection;
use crate::error::{Error, ErrorKind};
use crate::follow::RetryDelay;

/// Connections of one agent at once, with the one that waits.
const CONNECTIONS_MAX: usize = 8;

/// Things to tell the user that wait for being told; further ones are left out.
const NOTES_MAX: usize = 16;

/// Goes on until it is dropped.
pub(crate) struct Forwarding {
    agents: JoinSet<()>,
    told: mpsc::Sender<String>,
    notes: mpsc::Receiver<String>,
}

impl Forwarding {
    pub(super) fn new() -> Self {
        let (told, notes) = mpsc::channel(NOTES_MAX);
        Self { agents: JoinSet::new(), told, notes }
    }

    pub(super) fn add(&mut self, connection: Connection, run: &str, id: &str, socket: &Path) {
        let (run, id, socket) = (run.to_owned(), id.to_owned(), socket.to_owned());
        let forward = Forward { connection, run, id, socket, told: self.told.clone() };
        self.agents.spawn(forward.forward());
    }

    /// The next thing that the user should know.
    pub(crate) async fn note(&mut self) -> Option<String> {
        self.notes.recv().await
    }
}

#[derive(Clone)]
struct Forward {
    connection: Connection,
    run: String,
    id: String,
    socket: PathBuf,
    told: mpsc::Sender<String>,
}

impl Forward {
    async fn forward(self) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut in_use = JoinSet::new();
        let mut delay = RetryDelay::default();
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            while in_use.try_join_next().is_some() {}
            match self.next().await {
                Ok(Some(remote)) => {
                    delay = RetryDelay::default();
                    let forward = self.clone();
                    in_use.spawn(async move {
                        forward.serve(remote).await;
                        drop(place);
                    });
                }
                // Connections that say nothing for long are cut, and servers start again.
                Ok(None) => delay.wait().await,
                Err(error) => match error.kind() {
                    ErrorKind::Unreachable | ErrorKind::Failed => delay.wait().await,
                    // The run has ended.
                    ErrorKind::Conflict => break,
                    _ => {
                        self.note(format!("The ssh agent `{}` cannot be used: {error}", self.id));
                        break;
                    }
                },
            }
        }
        // Connections in use end with their `RUN`.
        while in_use.join_next().await.is_some() {}
    }

    /// Waits until a connection is used; nothing if the server ends it before.
    async fn next(&self) -> Result<Option<BufStream<Upgraded>>, Error> {
        let url = self.connection.route(&["runs", &self.run, "agents", &self.id]);
        let upgraded = self.connection.upgrade(url, api::AGENT_PROTOCOL).await?;
        let mut remote = BufStream::new(upgraded);
        let is_used = remote.fill_buf().await.is_ok_and(|bytes| !bytes.is_empty());
        Ok(is_used.then_some(remote))
    }

    async fn serve(&self, mut remote: BufStream<Upgraded>) {
        let mut agent = match connect(&self.id, &self.socket).await {
            Ok(agent) => agent,
            Err(error) => return self.note(error.to_string()),
        };
        // A `RUN` that has ended, or an agent that does not like what it reads.
        let _ended = answer(&mut remote, &mut agent).await;
        let _gone = remote.shutdown().await;
    }

    fn note(&self, note: String) {
        let _told_enough = self.told.try_send(note);
    }
}

/// Answers requests one after another, as agents do, until there are no more.
async fn answer(
    remote: &mut (impl AsyncRead + AsyncWrite + Unpin),
    agent: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> io::Result<()> {
    while let Some(message) = read(remote).await? {
        let reply = match request::may_pass(&message) {
            true => {
                write(agent, &message).await?;
                read(agent).await?.ok_or(io::ErrorKind::UnexpectedEof)?
            }
            false => request::FAILURE.to_vec(),
        };
        write(remote, &reply).await?;
    }
    Ok(())
}

/// Reads a message; nothing at the end.
async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut header = [0; 4];
    if from.read(&mut header[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut header[1..]).await?;
    let length = request::length(header)
        .ok_or_else(|| io::Error::other("a message of an ssh agent is empty or too large"))?;
    let mut message = vec![0; length];
    from.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn write(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    let bytes = [&length.to_be_bytes()[..], message].concat();
    to.write_all(&bytes).await?;
    to.flush().await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::duplex;

    use super::*;

    /// What an agent is asked, and what the other end gets, when some bytes come in.
    fn exchange(bytes: Vec<u8>) -> (Vec<Vec<u8>>, Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut outside, mut remote) = duplex(1 << 20);
            let (mut inside, mut agent) = duplex(1 << 20);
            outside.write_all(&bytes).await.unwrap();
            outside.shutdown().await.unwrap();
            let asked = async {
                let mut asked = Vec::new();
                while let Some(request) = read(&mut agent).await.unwrap() {
                    write(&mut agent, b"reply").await.unwrap();
                    asked.push(request);
                }
                asked
            };
            let answered = async {
                let _ended = answer(&mut remote, &mut inside).await;
                drop((remote, inside));
            };
            let (asked, ()) = tokio::join!(asked, answered);
            let mut answers = Vec::new();
            outside.read_to_end(&mut answers).await.unwrap();
            (asked, answers)
        })
    }

    fn message(body: &[u8]) -> Vec<u8> {
        [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], body].concat()
    }

    #[test]
    fn requests_are_passed_on_or_answered_in_their_order() {
        let list = message(&[11]);
        let bytes = [list.clone(), message(&[19]), list, message(&[13, 1])].concat();
        let (asked, answers) = exchange(bytes);
        assert_eq!(asked, [vec![11], vec![11], vec![13, 1]]);
        let reply = || message(b"reply");
        assert_eq!(answers, [reply(), message(&[5]), reply(), reply()].concat());
    }

    #[test]
    fn what_has_no_end_or_is_too_large_ends_the_connection() {
        for bytes in [vec![0, 0], message(&[11, 0])[..5].to_vec(), vec![0; 4], vec![255; 4]] {
            assert_eq!(exchange(bytes), (vec![], vec![]));
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_the_agent_is_asked_nothing_else(
            bodies in prop::collection::vec(any::<Vec<u8>>(), 0..4),
            rest: Vec<u8>,
        ) {
            let framed = bodies.iter().flat_map(|body| message(body)).chain(rest).collect();
            let (asked, _) = exchange(framed);
            prop_assert!(asked.iter().all(|request| request::may_pass(request)));
        }
    }
}
