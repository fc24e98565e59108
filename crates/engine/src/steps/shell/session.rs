//! A shell's clients, each on its own connection, until the shell is at its end.

use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use container::{OutputSink, Stream};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Shell;
use super::protocol::{Message, Request};
use crate::execute::Failure;

/// Clients of one shell at once; others wait.
const CONNECTIONS_MAX: usize = 32;
/// How long a client may take to say what it wants.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of output in one message.
const PIECE_SIZE: usize = 64 << 10;
/// How long to wait when no connection can be taken.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);

/// What docker's commands end with that did not start what they were to start.
pub(super) const NOT_STARTED: u8 = 125;
/// What a process ends with that was killed.
pub(super) const KILLED: u8 = 137;

pub(super) struct Session<'a> {
    pub(super) shell: Shell<'a>,
    /// Ends the shell and all that it asked for.
    pub(super) end: CancellationToken,
    /// The first failure that is not the user's.
    trouble: Mutex<Option<Failure>>,
}

impl<'a> Session<'a> {
    pub(super) fn new(shell: Shell<'a>, end: CancellationToken) -> Self {
        Self { shell, end, trouble: Mutex::default() }
    }

    /// The first failure of a client that was not the user's.
    pub(super) fn trouble(&self) -> Option<Failure> {
        self.lock_trouble().clone()
    }

    fn lock_trouble(&self) -> MutexGuard<'_, Option<Failure>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves clients until the shell ends; then what they asked for ends too.
    pub(super) async fn serve(&self, listener: &UnixListener) {
        let mut connections = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = self.end.cancelled() => break,
                accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                    match accepted {
                        Ok((stream, _)) => connections.push(self.attend(stream)),
                        Err(error) => {
                            tracing::warn!(%error, "a command of a shell was not heard");
                            tokio::time::sleep(ACCEPT_DELAY).await;
                        }
                    }
                }
                Some(()) = connections.next(), if !connections.is_empty() => (),
            }
        }
        while connections.next().await.is_some() {}
    }

    async fn attend(&self, stream: UnixStream) {
        let (mut reader, writer) = stream.into_split();
        let asked = tokio::select! {
            asked = tokio::time::timeout(REQUEST_TIMEOUT, Message::receive(&mut reader)) => asked,
            () = self.end.cancelled() => return,
        };
        let Ok(Ok(Message::Request(request))) = asked else { return };
        let (given, answers) = mpsc::channel(1);
        let gone = self.end.child_token();
        let caller = Caller { writer: writer.into(), answers: answers.into(), gone };
        let work = async {
            let code = match serde_json::from_slice::<Request>(&request) {
                Ok(request) => self.answer(&request, &caller).await,
                Err(_) => NOT_STARTED,
            };
            caller.tell(&Message::Exit(code)).await;
        };
        tokio::pin!(work);
        tokio::select! {
            () = &mut work => return,
            () = listen(reader, given) => caller.gone.cancel(),
        }
        // What was begun for it is seen to its end, which comes soon.
        work.await;
    }

    /// Tells a caller why it does not get what it wants, and remembers what others must know.
    pub(super) async fn refuse(&self, caller: &Caller, code: u8, failure: Failure) -> u8 {
        let text = match &failure {
            Failure::User(text) | Failure::Ours(text) => text,
            Failure::Canceled => return KILLED,
            Failure::Superseded => "error: another attempt has taken over",
        };
        let text = format!("{text}\n");
        match failure {
            // Nothing that comes after counts.
            Failure::Superseded => {
                *self.lock_trouble() = Some(failure);
                self.end.cancel();
            }
            Failure::Ours(_) => drop(self.lock_trouble().get_or_insert(failure)),
            Failure::User(_) | Failure::Canceled => (),
        }
        caller.say(Stream::Stderr, &text).await;
        code
    }
}

/// Hands over what a client answers, until it is gone or says what nobody has asked for.
async fn listen(mut reader: OwnedReadHalf, given: mpsc::Sender<Result<Bytes, String>>) {
    loop {
        let answer = match Message::receive(&mut reader).await {
            Ok(Message::Answer(bytes)) => Ok(bytes),
            Ok(Message::Refusal(reason)) => Err(String::from_utf8_lossy(&reason).into_owned()),
            _ => return,
        };
        if given.try_send(answer).is_err() {
            return;
        }
    }
}

/// A client that waits for what becomes of its command.
pub(super) struct Caller {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    answers: tokio::sync::Mutex<mpsc::Receiver<Result<Bytes, String>>>,
    /// The client is no more, or the shell is at its end.
    pub(super) gone: CancellationToken,
}

impl Caller {
    /// Tells it something. One that does not listen is gone.
    pub(super) async fn tell(&self, message: &Message) {
        let bytes = message.encode();
        let tell = async { self.writer.lock().await.write_all(&bytes).await };
        if !matches!(self.unless_gone(tell).await, Some(Ok(()))) {
            self.gone.cancel();
        }
    }

    pub(super) async fn say(&self, stream: Stream, text: &str) {
        self.write(stream, Bytes::copy_from_slice(text.as_bytes())).await;
    }

    /// Asks it for something.
    pub(super) async fn ask(&self, message: &Message) -> Result<Bytes, Failure> {
        self.tell(message).await;
        let answer = async { self.answers.lock().await.recv().await };
        match self.unless_gone(answer).await.flatten() {
            Some(Ok(bytes)) => Ok(bytes),
            Some(Err(reason)) => Err(Failure::User(format!("error: {reason}"))),
            None => Err(Failure::Canceled),
        }
    }

    async fn unless_gone<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.gone.cancelled() => None,
            done = work => Some(done),
        }
    }
}

#[async_trait]
impl OutputSink for Caller {
    async fn write(&self, stream: Stream, bytes: Bytes) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(PIECE_SIZE));
            let message = match stream {
                Stream::Stdout => Message::Stdout(piece),
                Stream::Stderr => Message::Stderr(piece),
            };
            self.tell(&message).await;
        }
    }
}
