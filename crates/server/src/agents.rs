//! The ssh agents of clients, while their runs go on.
//!
//! Nothing is multiplexed: a client keeps one connection open for each agent that it has named,
//! which waits here until a `RUN` needs it, and opens the next one when that comes.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use builder::{AgentConnection, SshAgents};
use control::{LogKey, Run, Runs};
use futures_util::FutureExt as _;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Notify;

/// How long a `RUN` waits for a connection of the client.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Agents of all runs that have some. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Agents {
    runs: Runs,
    of_runs: Arc<Mutex<HashMap<LogKey, Arc<RunAgents>>>>,
}

/// Agents of one run, by their ids.
#[derive(Debug)]
pub(crate) struct RunAgents(BTreeMap<String, Place>);

/// Where a connection waits for a `RUN`.
#[derive(Default)]
struct Place {
    /// Only the last: a client that lost its connection, which may seem whole here, comes again.
    waiting: Mutex<Option<Box<dyn AgentConnection>>>,
    arrived: Notify,
}

impl Agents {
    pub(crate) fn new(runs: Runs) -> Self {
        Self { runs, of_runs: Arc::default() }
    }

    /// Those that a run was given. They are forgotten, and connections that wait closed, when it
    /// ends.
    pub(crate) fn of(&self, run: &Run) -> Arc<RunAgents> {
        let Some(ids) = run.request.build().map(|build| &build.options.ssh) else {
            return Arc::new(RunAgents::new([]));
        };
        if ids.is_empty() {
            return Arc::new(RunAgents::new([]));
        }
        let key = LogKey { registry: run.registry.clone(), run: run.id };
        let mut of_runs = self.of_runs.lock().unwrap_or_else(PoisonError::into_inner);
        let agents = of_runs.entry(key.clone()).or_insert_with(|| {
            tokio::spawn(self.clone().forget(key));
            Arc::new(RunAgents::new(ids.iter().cloned()))
        });
        Arc::clone(agents)
    }

    async fn forget(self, key: LogKey) {
        if let Err(error) = self.runs.ended(&key.registry, key.run).await {
            tracing::warn!(run = %key.run, %error, "the end of a run was not seen");
        }
        self.of_runs.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }
}

impl RunAgents {
    fn new(ids: impl IntoIterator<Item = String>) -> Self {
        Self(ids.into_iter().map(|id| (id, Place::default())).collect())
    }

    /// Takes a connection to a client's agent, instead of one that waits already.
    pub(crate) fn offer(&self, id: &str, connection: impl AgentConnection + 'static) {
        if let Some(place) = self.0.get(id) {
            place.put(connection);
        }
    }
}

#[async_trait]
impl SshAgents for RunAgents {
    fn has(&self, id: &str) -> bool {
        self.0.contains_key(id)
    }

    async fn connect(&self, id: &str) -> io::Result<Box<dyn AgentConnection>> {
        let place = self.0.get(id).ok_or(io::ErrorKind::NotFound)?;
        let connection = tokio::time::timeout(CONNECT_TIMEOUT, place.take()).await;
        connection.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no client answers"))
    }
}

impl Place {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Option<Box<dyn AgentConnection>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, connection: impl AgentConnection + 'static) {
        *self.waiting() = Some(Box::new(connection));
        self.arrived.notify_one();
    }

    async fn take(&self) -> Box<dyn AgentConnection> {
        loop {
            let waiting = self.waiting().take();
            if let Some(mut connection) = waiting
                && is_silent(&mut connection)
            {
                return connection;
            }
            self.arrived.notified().await;
        }
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Place")
    }
}

/// Whether a connection goes on, and nothing has come over it: agents only answer.
fn is_silent(connection: &mut Box<dyn AgentConnection>) -> bool {
    connection.read(&mut [0]).now_or_never().is_none()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    /// A connection that waits; the client's end of it.
    fn offer(place: &Place) -> DuplexStream {
        let (client, server) = duplex(8);
        place.put(server);
        client
    }

    #[tokio::test]
    async fn each_connection_is_for_one_that_waits() {
        let place = Place::default();
        let (mut one, mut two) = (Box::pin(place.take()), Box::pin(place.take()));
        assert!((&mut one).now_or_never().is_none());
        assert!((&mut two).now_or_never().is_none());
        let mut clients = Vec::new();
        for number in [1, 2] {
            let mut client = offer(&place);
            let taken = tokio::select! { taken = &mut one, if number == 1 => taken, taken = &mut two => taken };
            client.write_u8(number).await.unwrap();
            assert_eq!({ taken }.read_u8().await.unwrap(), number);
            clients.push(client);
        }
        assert!(place.take().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_connection_that_has_ended_or_speaks_first_is_not_used() {
        let place = Place::default();
        drop(offer(&place));
        assert!(place.take().now_or_never().is_none());

        let mut client = offer(&place);
        client.write_u8(1).await.unwrap();
        assert!(place.take().now_or_never().is_none());
        assert_eq!(client.write_u8(1).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn the_last_connection_takes_the_place_of_one_before() {
        let place = Place::default();
        let (mut first, mut second) = (offer(&place), offer(&place));
        assert_eq!(first.read(&mut [0]).await.unwrap(), 0);
        place.take().await.write_u8(7).await.unwrap();
        assert_eq!(second.read_u8().await.unwrap(), 7);
    }
}
