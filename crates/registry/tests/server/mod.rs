//! A registry on a socket of its own, and a client that sends exactly what it is told.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use oci::RegistryName;
use registry::{
    Access, Act, Actions, Busy, Credentials, Hosts, Limits, Peer, Principal, Proven, PullThrough,
    PullThroughSettings, RegistryState, RequestContext, Resource, TokenSigner, is_local,
    same_secret,
};
use remote::{Remote, RemoteSettings};
use store::{BlobStore, Catalog, DiskStore, MemoryStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Where the bytes of a test live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Memory,
    Disk,
}

pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) catalog: Catalog,
    /// Milliseconds; tests move it.
    pub(crate) clock: Arc<AtomicI64>,
    pub(crate) pull_through: Option<Arc<PullThrough>>,
    pub(crate) folder: tempfile::TempDir,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// How a test wants its server.
pub(crate) struct Options {
    pub(crate) kind: Kind,
    pub(crate) access: Arc<dyn Access>,
    pub(crate) hosts: Hosts,
    pub(crate) limits: Limits,
    pub(crate) peer: Peer,
    pub(crate) upstreams: Option<(RemoteSettings, PullThroughSettings)>,
}

impl Options {
    /// As a developer's machine: anonymous from loopback.
    pub(crate) fn open(kind: Kind) -> Self {
        Self {
            kind,
            access: Arc::new(LoopbackOnly),
            hosts: Hosts::only(RegistryName::default()),
            limits: Limits::default(),
            peer: Peer::Tcp(([127, 0, 0, 1], 1).into()),
            upstreams: None,
        }
    }

    /// As a shared server, seen from another machine.
    pub(crate) fn guarded(kind: Kind) -> Self {
        let peer = Peer::Tcp(([192, 0, 2, 1], 1).into());
        Self { access: Arc::new(Accounts::default()), peer, ..Self::open(kind) }
    }

    pub(crate) async fn start(self) -> TestServer {
        let folder = tempfile::tempdir().unwrap();
        let catalog = open_catalog(self.kind, folder.path()).await;
        let pull_through = self.upstreams.map(|(remote, settings)| {
            let remote = Remote::new(remote).unwrap();
            Arc::new(PullThrough::new(remote, catalog.clone(), settings))
        });
        let clock = Arc::new(AtomicI64::new(1_700_000_000_000));
        let time = Arc::clone(&clock);
        let router = registry::router(RegistryState {
            catalog: catalog.clone(),
            pull_through: pull_through.clone(),
            hosts: self.hosts,
            access: self.access,
            signer: TokenSigner::hmac(b"a key for tests"),
            limits: self.limits,
            clock: Arc::new(move || time.load(Ordering::Relaxed)),
        });
        let router = router.layer(axum::Extension(self.peer));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        TestServer { address, catalog, clock, pull_through, folder, serving }
    }
}

/// Everything for programs on this machine, nothing for others.
struct LoopbackOnly;

#[async_trait]
impl Access for LoopbackOnly {
    async fn authenticate(
        &self,
        _: &RegistryName,
        _: &RequestContext<'_>,
        _: &Credentials,
    ) -> Result<Option<Proven>, Busy> {
        Ok(None)
    }

    fn anonymous(&self, request: &RequestContext<'_>) -> Option<Principal> {
        is_local(request).then(Principal::anonymous)
    }

    async fn holds(&self, _: &Principal, _: &str) -> bool {
        false
    }

    async fn note(&self, _: Act<'_>) {}

    async fn permitted(
        &self,
        _: &Principal,
        _: &RegistryName,
        _: &Resource,
        wanted: Actions,
    ) -> Actions {
        wanted
    }
}

/// `admin` may everything; `alice` everything in `team/`; `bob` may pull from `team/` and from
/// one copy of an image of Docker Hub; everybody may pull from `public`. Tests change all
/// passwords by counting them up, and take all from everybody.
#[derive(Default)]
pub(crate) struct Accounts {
    pub(crate) passwords: AtomicI64,
    pub(crate) closed: AtomicBool,
}

#[async_trait]
impl Access for Accounts {
    async fn authenticate(
        &self,
        _: &RegistryName,
        _: &RequestContext<'_>,
        credentials: &Credentials,
    ) -> Result<Option<Proven>, Busy> {
        let known = ["admin", "alice", "bob"].contains(&credentials.user.as_str());
        let secret = format!("{}-secret", credentials.user);
        let right = same_secret(&credentials.password, &secret);
        Ok((known && right).then(|| Proven {
            principal: Principal::new(credentials.user.clone()),
            credential: self.passwords.load(Ordering::Relaxed).to_string(),
        }))
    }

    fn anonymous(&self, _: &RequestContext<'_>) -> Option<Principal> {
        Some(Principal::anonymous())
    }

    async fn holds(&self, _: &Principal, credential: &str) -> bool {
        self.passwords.load(Ordering::Relaxed).to_string() == credential
    }

    async fn note(&self, _: Act<'_>) {}

    async fn permitted(
        &self,
        principal: &Principal,
        _: &RegistryName,
        resource: &Resource,
        wanted: Actions,
    ) -> Actions {
        let name = match resource {
            Resource::Repository(name) => name.as_str(),
            Resource::AllRepositories | Resource::Catalog => "",
        };
        let allowed = match (principal.name(), name) {
            _ if self.closed.load(Ordering::Relaxed) => Actions::NONE,
            ("admin", _) => Actions::ALL,
            ("alice", name) if name.starts_with("team/") => Actions::ALL,
            ("bob", name) if name.starts_with("team/") => Actions::PULL,
            ("bob", "mirror/library/x") => Actions::PULL,
            (_, "public") => Actions::PULL,
            _ => Actions::NONE,
        };
        allowed & wanted
    }
}

/// An answer, read to its end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The code of the first error.
    pub(crate) fn code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// Long enough for a loaded machine, short enough to end a hanging test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Sends one request on a connection of its own.
pub(crate) async fn send(
    address: SocketAddr,
    line: &str,
    headers: &[(String, String)],
    body: &[u8],
) -> Answer {
    let mut request = format!("{line} HTTP/1.1\r\nConnection: close\r\n");
    let given = |name: &str| headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
    if !given("host") {
        request.push_str(&format!("Host: {address}\r\n"));
    }
    let has_body = !body.is_empty() || ["POST", "PUT"].iter().any(|verb| line.starts_with(verb));
    if has_body && !given("content-length") && !given("transfer-encoding") {
        request.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut input, mut output) = stream.split();
    // The server may answer and close before it has taken the whole body.
    let write = async { drop(output.write_all(body).await) };
    let mut bytes = Vec::new();
    let read = async { drop(input.read_to_end(&mut bytes).await) };
    tokio::time::timeout(PATIENCE, async { tokio::join!(write, read) }).await.expect("no answer");
    parse(&bytes)
}

pub(crate) async fn get(address: SocketAddr, target: &str) -> Answer {
    send(address, &format!("GET {target}"), &[], b"").await
}

/// Reads an answer that ends with the connection.
pub(crate) fn parse(bytes: &[u8]) -> Answer {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Answer::default();
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    let header = |line: &str| {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        (name.trim().to_owned(), value.trim().to_owned())
    };
    Answer {
        status: status.parse().unwrap_or_default(),
        headers: lines.map(header).collect(),
        body: bytes[end + 4..].to_vec(),
    }
}

async fn open_catalog(kind: Kind, folder: &std::path::Path) -> Catalog {
    let db = db::Db::open(&folder.join("refit.db")).await.unwrap();
    let blobs: Arc<dyn BlobStore> = match kind {
        Kind::Memory => Arc::new(MemoryStore::open(db.clone()).await.unwrap()),
        Kind::Disk => Arc::new(DiskStore::open(folder, db.clone()).await.unwrap()),
    };
    Catalog::open(db, blobs).await.unwrap()
}
