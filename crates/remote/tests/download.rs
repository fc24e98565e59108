//! Files by address from servers that do as they like.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use oci::Digest;
use remote::{Download, DownloadError, DownloadSettings, Downloaded, Downloads, Reach, Validators};
use store::{BlobStore, MemoryStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A server that answers every connection with what a function writes, and notes requests.
struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start<F, W>(answer: F) -> Self
    where
        F: Fn(usize, String) -> W + Send + Sync + 'static,
        W: Future<Output = Answer> + Send,
    {
        Self::start_at("127.0.0.1", answer).await
    }

    async fn start_at<F, W>(ip: &str, answer: F) -> Self
    where
        F: Fn(usize, String) -> W + Send + Sync + 'static,
        W: Future<Output = Answer> + Send,
    {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (noted, count) = (Arc::clone(&requests), AtomicUsize::new(0));
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (noted, answer) = (Arc::clone(&noted), Arc::clone(&answer));
                let number = count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let request = head(&mut stream).await;
                    noted.lock().unwrap().push(request.clone());
                    answer(number, request).await.write(stream).await;
                });
            }
        });
        Self { address, requests }
    }

    /// One answer for all.
    async fn always(answer: Answer) -> Self {
        Self::start(move |_, _| std::future::ready(answer.clone())).await
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

async fn head(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte).await {
            Ok(1) => request.push(byte[0]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&request).into_owned()
}

#[derive(Clone)]
struct Answer {
    head: String,
    body: Vec<u8>,
    /// Sent again and again after the body, with a pause before each.
    then: Option<(Vec<u8>, Duration)>,
}

impl Answer {
    fn new(head: impl Into<String>, body: &[u8]) -> Self {
        Self { head: head.into(), body: body.to_vec(), then: None }
    }

    fn file(headers: &str, body: &[u8]) -> Self {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{headers}", body.len());
        Self::new(head, body)
    }

    fn redirect(to: &str) -> Self {
        Self::new(format!("HTTP/1.1 302 Found\r\ncontent-length: 0\r\nlocation: {to}\r\n"), b"")
    }

    async fn write(self, mut stream: TcpStream) {
        let head = format!("{}connection: close\r\n\r\n", self.head);
        let mut sent = stream.write_all(head.as_bytes()).await;
        if sent.is_ok() {
            sent = stream.write_all(&self.body).await;
        }
        while let (Some((chunk, pause)), true) = (&self.then, sent.is_ok()) {
            tokio::time::sleep(*pause).await;
            sent = stream.write_all(chunk).await;
        }
    }
}

fn allowing(network: &str) -> Reach {
    Reach { allowed: vec![network.parse().unwrap()], ..Reach::default() }
}

/// Small bounds, and this machine may be asked.
fn settings() -> DownloadSettings {
    DownloadSettings {
        size_max: 1 << 20,
        reach: allowing("127.0.0.0/8"),
        idle_timeout: Duration::from_millis(400),
        ..DownloadSettings::default()
    }
}

struct Store(MemoryStore);

impl Store {
    async fn new() -> Self {
        Self(MemoryStore::open(db::Db::in_memory().await.unwrap()).await.unwrap())
    }

    async fn fetch(
        &self,
        settings: DownloadSettings,
        download: Download<'_>,
    ) -> Result<Option<Downloaded>, DownloadError> {
        Downloads::new(settings).unwrap().fetch(&download, &self.0, &|_| ()).await
    }

    async fn error(&self, settings: DownloadSettings, address: &str) -> DownloadError {
        self.fetch(settings, get(address)).await.unwrap_err()
    }
}

fn get(address: &str) -> Download<'_> {
    Download { address, known: None, expected: None }
}

#[tokio::test]
async fn a_file_comes_with_what_tells_it_from_others() {
    let headers = "etag: \"one\"\r\nlast-modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
    let server = Server::start(move |_, request| {
        std::future::ready(match request.contains("if-none-match: \"one\"") {
            true => Answer::new("HTTP/1.1 304 Not Modified\r\n", b""),
            false => Answer::file(headers, b"text"),
        })
    })
    .await;
    let store = Store::new().await;
    let url = server.url("/file");
    let fetched = store.fetch(settings(), get(&url)).await.unwrap().unwrap();
    assert_eq!((&fetched.digest, fetched.size), (&Digest::of(b"text"), 4));
    assert_eq!(fetched.modified, Some(784_111_777));
    assert_eq!(store.0.size(&fetched.digest).await.unwrap(), Some(4));

    let known = Download { known: Some(&fetched.validators), ..get(&url) };
    assert_eq!(store.fetch(settings(), known).await.unwrap(), None);
    assert!(server.requests()[1].contains("if-modified-since: Sun, 06 Nov 1994 08:49:37 GMT"));
    let other = Validators { etag: Some("\"two\"".into()), last_modified: None };
    let changed = Download { known: Some(&other), ..get(&url) };
    assert_eq!(store.fetch(settings(), changed).await.unwrap(), Some(fetched));
}

#[tokio::test]
async fn another_file_than_expected_is_not_kept() {
    let server = Server::always(Answer::file("", b"text")).await;
    let store = Store::new().await;
    let url = server.url("/file?token=hidden");
    for expected in [Digest::of(b"other"), Digest::with(oci::Algorithm::Sha512, b"other")] {
        let download = Download { expected: Some(&expected), ..get(&url) };
        let error = store.fetch(settings(), download).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected.as_str()), "{text}");
        assert!(text.contains(Digest::with(expected.algorithm(), b"text").as_str()), "{text}");
        assert!(!text.contains("hidden"), "{text}");
        assert!(error.hint().unwrap().contains("--checksum=sha"));
        assert_eq!(store.0.size(&Digest::of(b"text")).await.unwrap(), None);
    }
    for expected in [Digest::of(b"text"), Digest::with(oci::Algorithm::Sha512, b"text")] {
        let download = Download { expected: Some(&expected), ..get(&url) };
        assert!(store.fetch(settings(), download).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn a_body_without_end_is_cut_off() {
    let mut endless = Answer::new("HTTP/1.1 200 OK\r\n", b"");
    endless.then = Some((vec![0; 64 << 10], Duration::ZERO));
    let server = Server::always(endless).await;
    let store = Store::new().await;
    let error = store.error(settings(), &server.url("/")).await;
    assert!(matches!(error, DownloadError::TooLarge { max: 1_048_576, .. }), "{error:?}");
    assert_eq!(server.requests().len(), 1);

    // One that says so beforehand is not even begun.
    let announced = Answer::new("HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n", b"");
    let server = Server::always(announced).await;
    let error = store.error(settings(), &server.url("/")).await;
    assert!(matches!(error, DownloadError::TooLarge { .. }), "{error:?}");
}

#[tokio::test]
async fn a_body_that_drips_or_stops_is_given_up() {
    let store = Store::new().await;
    let mut slow = Answer::new("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n", b"");
    slow.then = Some((vec![0], Duration::from_millis(50)));
    let server = Server::always(slow).await;
    let started = Instant::now();
    let error = store.error(settings(), &server.url("/")).await;
    assert!(matches!(error, DownloadError::TooSlow { .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(10));

    let mut stopped = Answer::new("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n", b"x");
    stopped.then = Some((Vec::new(), Duration::from_secs(600)));
    let server = Server::always(stopped).await;
    let once = DownloadSettings { attempts: 1, ..settings() };
    let error = store.error(once, &server.url("/")).await;
    assert!(matches!(error, DownloadError::Unreachable { .. }), "{error:?}");

    let mut steady = Answer::new("HTTP/1.1 200 OK\r\n", b"");
    steady.then = Some((vec![0; 100], Duration::from_millis(20)));
    let server = Server::always(steady).await;
    let timeout = Duration::from_millis(1_500);
    let bounded = DownloadSettings { timeout, rate_min: 1, ..settings() };
    let error = store.error(bounded, &server.url("/")).await;
    assert!(matches!(error, DownloadError::TimedOut { .. }), "{error:?}");
}

#[tokio::test]
async fn a_body_that_is_too_short_is_no_file() {
    let short = Answer::new("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n", b"short");
    let server = Server::start(move |number, _| {
        let answer = if number == 0 { short.clone() } else { Answer::file("", b"0123456789") };
        std::future::ready(answer)
    })
    .await;
    let store = Store::new().await;
    // It is asked for again, from its start.
    let fetched = store.fetch(settings(), get(&server.url("/"))).await.unwrap().unwrap();
    assert_eq!(fetched.digest, Digest::of(b"0123456789"));
    assert_eq!(store.0.size(&Digest::of(b"short")).await.unwrap(), None);

    let short = Answer::new("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n", b"short");
    let server = Server::always(short).await;
    let error = store.error(settings(), &server.url("/")).await;
    assert!(matches!(error, DownloadError::Unreachable { .. }), "{error:?}");
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn i17_a_server_that_fails_twice_gives_the_file_in_the_end() {
    let archive = b"\x1f\x8b\x08 and more of a tar.gz";
    let failing = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n";
    let server = Server::start(move |number, _| {
        let is_failing = number < 2;
        let answer = if is_failing { Answer::new(failing, b"") } else { Answer::file("", archive) };
        std::future::ready(answer)
    })
    .await;
    let store = Store::new().await;
    let fetched = store.fetch(settings(), get(&server.url("/c.tar.gz"))).await.unwrap().unwrap();
    assert_eq!(fetched.digest, Digest::of(archive));
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn i18_answers_that_are_no_file_are_errors() {
    let store = Store::new().await;
    let server = Server::always(Answer::new("HTTP/1.1 404 Not Found\r\n", b"no")).await;
    let error = store.error(settings(), &server.url("/x")).await;
    assert!(error.to_string().contains("status 404") && !error.is_transient(), "{error}");
    assert_eq!(server.requests().len(), 1);
    // Nobody asked whether anything has changed.
    let server = Server::always(Answer::new("HTTP/1.1 304 Not Modified\r\n", b"")).await;
    let error = store.error(settings(), &server.url("/x")).await;
    assert!(matches!(error, DownloadError::Status { status: 304, .. }), "{error:?}");
}

#[tokio::test]
async fn redirects_are_followed_to_their_end_and_no_further() {
    let target = Server::always(Answer::file("", b"there")).await;
    let there = target.url("/there?signature=hidden");
    let server = Server::start(move |number, _| {
        std::future::ready(Answer::redirect(if number < 2 { "next" } else { &there }))
    })
    .await;
    let store = Store::new().await;
    let address = server.url("/a/b").replace("http://", "http://me:secret@");
    let fetched = store.fetch(settings(), get(&address)).await.unwrap().unwrap();
    assert_eq!(fetched.digest, Digest::of(b"there"));
    // The password is for the first server only.
    let requests = server.requests();
    assert!(requests[1].starts_with("GET /a/next "), "{requests:?}");
    assert!(requests.iter().all(|request| request.contains("authorization: Basic")));
    assert!(!target.requests()[0].contains("authorization"), "{:?}", target.requests());

    let server = Server::always(Answer::redirect("/again")).await;
    let error = store.error(settings(), &server.url("/")).await;
    assert!(error.to_string().contains("redirects without end"), "{error}");
    assert!(server.requests().len() <= 6);
    for bad in ["file:///etc/passwd", "ftp://h/", "http://"] {
        let server = Server::always(Answer::redirect(bad)).await;
        let error = store.error(settings(), &server.url("/")).await;
        assert!(matches!(error, DownloadError::BadAnswer { .. }), "{bad}: {error:?}");
    }
}

#[tokio::test]
async fn this_machine_is_not_reached_by_address_redirect_or_name() {
    let secret = Server::always(Answer::file("", b"secret")).await;
    let store = Store::new().await;
    let strict = || DownloadSettings { reach: allowing("127.0.0.2"), attempts: 1, ..settings() };
    let port = secret.address.port();
    let mut names = vec!["127.0.0.1".to_owned(), "localhost".to_owned(), "[::ffff:7f00:1]".into()];
    // A name that means this machine, as most have for themselves.
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned();
    if tokio::net::lookup_host((own.as_str(), 0)).await.is_ok() {
        names.push(own);
    }
    for name in names {
        let error = store.error(strict(), &format!("http://{name}:{port}/x")).await;
        assert!(matches!(error, DownloadError::Forbidden { .. }), "{name}: {error:?}");
        assert!(error.hint().unwrap().contains("build.allow_addresses"));
        let there = format!("http://{name}:{port}/x");
        let honest = move |_, _| std::future::ready(Answer::redirect(&there));
        let honest = Server::start_at("127.0.0.2", honest).await;
        let error = store.error(strict(), &honest.url("/")).await;
        assert!(matches!(error, DownloadError::Forbidden { .. }), "{name}: {error:?}");
        assert_eq!(honest.requests().len(), 1);
    }
    assert!(secret.requests().is_empty(), "{:?}", secret.requests());
}

#[tokio::test]
async fn errors_show_no_credentials() {
    let store = Store::new().await;
    let server = Server::always(Answer::new("HTTP/1.1 403 Forbidden\r\n", b"")).await;
    let address = server.url("/x?key=hidden").replace("http://", "http://me:secret@");
    let once = || DownloadSettings { attempts: 1, ..settings() };
    let refused = "http://me:secret@127.0.0.1:1/x?key=hidden";
    for address in [address.as_str(), refused, "http://me:secret@h:x/", "ftp://me:secret@h/"] {
        let error = store.error(once(), address).await;
        let shown = format!("{error} {error:?} {:?}", error.hint());
        assert!(!shown.contains("secret") && !shown.contains("hidden"), "{shown}");
    }
}
