//! Follows a run over connections that may break.

use std::time::Duration;

use reqwest::{Method, Response};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};

/// Events waiting to be drawn. The server waits meanwhile.
const EVENTS_MAX: usize = 256;
/// A record longer than this is not one.
const RECORD_LEN_MAX: usize = 4 << 20;
/// How long the server may be away before following ends.
const AWAY_MAX: Duration = Duration::from_secs(60);
const RETRY_DELAY_MIN: Duration = Duration::from_millis(100);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(5);

/// What following tells.
#[derive(Debug)]
pub(crate) enum Followed {
    Event(api::Event),
    /// The connection broke; it goes on from where it was. Told once until it does.
    Lost(String),
    /// It will not go on.
    Failed(Error),
}

/// Follows the events of a run in the background, from the first to `Finished`. The channel
/// closes after the last.
pub(crate) fn events(connection: Connection, run: String) -> mpsc::Receiver<Followed> {
    let (sender, receiver) = mpsc::channel(EVENTS_MAX);
    tokio::spawn(async move {
        let mut follower = Events { connection, run, after: 0, sender };
        follower.follow().await;
    });
    receiver
}

struct Events {
    connection: Connection,
    run: String,
    after: u64,
    sender: mpsc::Sender<Followed>,
}

/// Whether asking again would give the same answer.
fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unauthorized | ErrorKind::Usage)
}

/// Why one connection's worth of events ended.
enum End {
    Finished,
    /// Nobody listens any more.
    Unheard,
    Broken(Error),
}

impl Events {
    async fn follow(&mut self) {
        let mut patience = Patience::new();
        let mut is_lost = false;
        loop {
            let before = self.after;
            let error = match self.read().await {
                End::Finished | End::Unheard => return,
                End::Broken(error) => error,
            };
            if self.after > before {
                patience = Patience::new();
                is_lost = false;
            }
            if is_refusal(&error) || !patience.lasts() {
                // An error: nobody listens any more, which is as well.
                let _ = self.sender.send(Followed::Failed(error)).await;
                return;
            }
            if !is_lost && self.sender.send(Followed::Lost(error.to_string())).await.is_err() {
                return;
            }
            is_lost = true;
            tokio::select! {
                () = patience.wait() => (),
                () = self.sender.closed() => return,
            }
        }
    }

    async fn read(&mut self) -> End {
        let mut url = self.connection.route(&["runs", &self.run, "events"]);
        url.query_pairs_mut()
            .append_pair("after", &self.after.to_string())
            .append_pair("follow", "true");
        let request = self.connection.request(Method::GET, url);
        let mut response = match self.connection.stream(request).await {
            Ok(response) => response,
            Err(error) => return End::Broken(error),
        };
        let mut records = Records::default();
        loop {
            let chunk = match next_chunk(&mut response).await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => {
                    return End::Broken(Error::new(
                        ErrorKind::Unreachable,
                        "the server ended the connection",
                    ));
                }
                Err(error) => return End::Broken(error),
            };
            let complete = match records.push(&chunk) {
                Ok(complete) => complete,
                Err(error) => return End::Broken(error),
            };
            for record in complete {
                if let Some(end) = self.take(&record).await {
                    return end;
                }
            }
        }
    }

    async fn take(&mut self, record: &[u8]) -> Option<End> {
        let event = match serde_json::from_slice::<api::Event>(record) {
            Ok(event) => event,
            // A kind that this client does not know, or an empty line that keeps the
            // connection alive.
            Err(_) => {
                self.after = known_id(record).unwrap_or(self.after).max(self.after);
                return None;
            }
        };
        if event.id <= self.after {
            return None;
        }
        self.after = event.id;
        let is_last = matches!(event.kind, api::EventKind::Finished { .. });
        match self.sender.send(Followed::Event(event)).await {
            Err(_) => Some(End::Unheard),
            Ok(()) => is_last.then_some(End::Finished),
        }
    }
}

fn known_id(record: &[u8]) -> Option<u64> {
    serde_json::from_slice::<serde_json::Value>(record).ok()?.get("id")?.as_u64()
}

/// Parts a stream of NDJSON into its records.
#[derive(Default)]
pub(crate) struct Records {
    pending: Vec<u8>,
}

impl Records {
    /// The records that end with a chunk.
    pub(crate) fn push(&mut self, chunk: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut records = Vec::new();
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            self.pending.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                records.push(std::mem::take(&mut self.pending));
            }
        }
        match self.pending.len() > RECORD_LEN_MAX {
            true => Err(Error::failed("the server sent something that is no record")),
            false => Ok(records),
        }
    }
}

/// How long to go on trying.
struct Patience {
    since: Instant,
    delay: RetryDelay,
}

/// Waits longer each time.
pub(crate) struct RetryDelay(Duration);

impl Default for RetryDelay {
    fn default() -> Self {
        Self(RETRY_DELAY_MIN)
    }
}

impl RetryDelay {
    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(RETRY_DELAY_MAX);
    }
}

impl Patience {
    fn new() -> Self {
        Self { since: Instant::now(), delay: RetryDelay::default() }
    }

    fn lasts(&self) -> bool {
        self.since.elapsed() < AWAY_MAX
    }

    async fn wait(&mut self) {
        self.delay.wait().await;
    }
}

/// The text log of a run, as bytes, over connections that may break.
pub(crate) struct LogReader {
    connection: Connection,
    run: String,
    follow: bool,
    offset: u64,
    response: Option<Response>,
    patience: Patience,
}

impl LogReader {
    pub(crate) fn new(connection: Connection, run: String, follow: bool) -> Self {
        Self { connection, run, follow, offset: 0, response: None, patience: Patience::new() }
    }

    /// The next bytes, or nothing at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<bytes::Bytes>> {
        loop {
            match self.read().await {
                Ok(Some(bytes)) => {
                    self.offset += bytes.len() as u64;
                    self.patience = Patience::new();
                    return Ok(Some(bytes));
                }
                Ok(None) if self.is_whole().await? => return Ok(None),
                Ok(None) => (),
                Err(error) if is_refusal(&error) || !self.patience.lasts() => {
                    return Err(error);
                }
                Err(_) => (),
            }
            self.response = None;
            self.patience.wait().await;
        }
    }

    async fn read(&mut self) -> Result<Option<bytes::Bytes>> {
        if self.response.is_none() {
            let mut url = self.connection.route(&["runs", &self.run, "logs"]);
            url.query_pairs_mut()
                .append_pair("offset", &self.offset.to_string())
                .append_pair("follow", if self.follow { "true" } else { "false" });
            let request = self.connection.request(Method::GET, url);
            self.response = Some(self.connection.stream(request).await?);
        }
        match &mut self.response {
            Some(response) => next_chunk(response).await,
            None => Ok(None),
        }
    }

    /// Whether the end of the bytes is the end of the log.
    async fn is_whole(&self) -> Result<bool> {
        if !self.follow {
            return Ok(true);
        }
        let url = self.connection.route(&["runs", &self.run]);
        let run: api::Run = self.connection.get(url).await?;
        Ok(run.properties.status.is_final())
    }
}

async fn next_chunk(response: &mut Response) -> Result<Option<bytes::Bytes>> {
    response.chunk().await.map_err(|error| {
        Error::new(ErrorKind::Unreachable, "the connection to the server broke").caused_by(&error)
    })
}

#[cfg(test)]
mod tests;
