//! Connections: accepted, bounded, and given to the router.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::IntoResponse as _;
use http::header::HOST;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use registry::{Peer, Secure};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service as _;

/// Where connections come from.
pub(crate) enum Listener {
    Clear(TcpListener),
    Tls(TcpListener, TlsAcceptor),
    Socket(UnixListener, Clients),
}

/// Counts the connections of other processes to the socket: an owner stays for them.
#[derive(Clone, Default)]
pub(crate) struct Clients(Arc<watch::Sender<usize>>);

/// One connection of another process.
struct Client(Clients);

impl Clients {
    /// How many connections other processes have.
    pub(crate) fn count(&self) -> usize {
        *self.0.borrow()
    }

    /// Returns once no other process is connected.
    pub(crate) async fn gone(&self) {
        // The sender is in `self`.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }

    fn enter(&self, stream: &tokio::net::UnixStream) -> Option<Client> {
        let process = stream.peer_cred().ok().and_then(|peer| peer.pid());
        if process == Some(std::process::id() as i32) {
            return None;
        }
        self.0.send_modify(|count| *count += 1);
        Some(Client(self.clone()))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

#[derive(Debug, Clone)]
pub(crate) struct ConnectionSettings {
    pub(crate) connections_max: usize,
    pub(crate) header_timeout: Duration,
}

/// When a listener ends.
#[derive(Debug, Clone)]
pub(crate) struct Ends {
    /// No new connections; requests under way go on.
    pub(crate) close: CancellationToken,
    /// Nothing goes on.
    pub(crate) cut: CancellationToken,
}

/// After an error of `accept` that will not go away by itself, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves one listener until it is to close, then waits for open requests, until it is cut.
pub(crate) async fn serve(
    listener: Listener,
    router: Router,
    settings: ConnectionSettings,
    ends: Ends,
) {
    let places = Arc::new(Semaphore::new(settings.connections_max));
    let connections = TaskTracker::new();
    loop {
        // A place first: connections beyond the bound wait in the kernel's queue.
        let place = tokio::select! {
            place = Arc::clone(&places).acquire_owned() => place,
            () = ends.close.cancelled() => break,
        };
        let Ok(place) = place else { break };
        let accepted = tokio::select! {
            accepted = accept(&listener) => accepted,
            () = ends.close.cancelled() => break,
        };
        let connection = match accepted {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (router, settings, close) = (router.clone(), settings.clone(), ends.close.clone());
        connections.spawn(async move {
            connection.serve(router, &settings, close).await;
            drop(place);
        });
    }
    drop(listener);
    connections.close();
    tokio::select! {
        () = connections.wait() => (),
        // What is still open is dropped with the runtime.
        () = ends.cut.cancelled() => (),
    }
}

enum Connection {
    Clear(tokio::net::TcpStream, SocketAddr),
    Tls(tokio::net::TcpStream, SocketAddr, TlsAcceptor),
    Socket(tokio::net::UnixStream, Option<Client>),
}

async fn accept(listener: &Listener) -> std::io::Result<Connection> {
    match listener {
        Listener::Clear(listener) => {
            let (stream, address) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(Connection::Clear(stream, address))
        }
        Listener::Tls(listener, acceptor) => {
            let (stream, address) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(Connection::Tls(stream, address, acceptor.clone()))
        }
        Listener::Socket(listener, clients) => {
            let (stream, _) = listener.accept().await?;
            let client = clients.enter(&stream);
            Ok(Connection::Socket(stream, client))
        }
    }
}

impl Connection {
    async fn serve(self, router: Router, settings: &ConnectionSettings, close: CancellationToken) {
        match self {
            Self::Clear(stream, address) => {
                let peer = Peer::Tcp(address);
                serve_http(stream, peer, false, router, settings, close).await;
            }
            Self::Socket(stream, client) => {
                serve_http(stream, Peer::Unix, false, router, settings, close).await;
                drop(client);
            }
            Self::Tls(stream, address, acceptor) => {
                let handshake =
                    tokio::time::timeout(settings.header_timeout, acceptor.accept(stream));
                match handshake.await {
                    Ok(Ok(stream)) => {
                        let peer = Peer::Tcp(address);
                        serve_http(stream, peer, true, router, settings, close).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%address, %error, "a TLS handshake failed"),
                    Err(_) => tracing::debug!(%address, "a TLS handshake took too long"),
                }
            }
        }
    }
}

async fn serve_http<S>(
    stream: S,
    peer: Peer,
    tls: bool,
    router: Router,
    settings: &ConnectionSettings,
    close: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer);
        if tls {
            request.extensions_mut().insert(Secure);
        }
        let mut router = router.clone();
        async move {
            match has_one_host(&request) {
                true => router.call(request).await,
                false => {
                    let message = "a request needs one `Host` header\n";
                    Ok((http::StatusCode::BAD_REQUEST, message).into_response())
                }
            }
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.header_timeout)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = close.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Whether a request says in one way which host it means (RFC 9112 section 3.2): of two, we
/// might look at one and a proxy at the other.
fn has_one_host(request: &hyper::Request<Incoming>) -> bool {
    let count = request.headers().get_all(HOST).iter().count();
    count == 1 || (count == 0 && request.version() < http::Version::HTTP_11)
}
