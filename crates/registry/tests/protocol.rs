//! The specification's requirements as tables of requests and answers (`tests/data/*.txt`),
//! and what a table cannot say: broken connections, many clients at once, hostile bodies.
//!
//! A table is read line by line. A line opens with what it is:
//!
//! ```text
//! ## title             names what follows in failures
//! let NAME VALUE       a value to be used as $(NAME)
//! METHOD /target       a request; `Name: value` lines after it are its headers
//! > text               its body
//! = 200                sends it; `Name: value` lines after it are headers of the answer:
//!                      the exact value, `*` for any, `-` for absent
//! < text               the answer's body, exactly
//! ~ json               the answer's body, as JSON
//! ! CODE json          the code of the answer's error, and its detail if that is given
//! @name Header         keeps a header of the answer as $(name), or `.member` of its JSON
//! ```
//!
//! `$(sha256 NAME)`, `$(sha512 NAME)`, `$(hex NAME)` and `$(size NAME)` describe a value,
//! `$(repeat N TEXT)` and `$(base64 TEXT)` make text.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod server;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use base64::Engine;
use oci::{Algorithm, Digest, RegistryName, media_type};
use registry::{Access, Hosts, Limits};
use serde_json::Value;
use store::{AttributesChange, ManifestRef};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use server::{Accounts, Answer, Kind, Options, PATIENCE, TestServer, get, parse, send};

/// The state of one table.
struct Table {
    file: &'static str,
    server: TestServer,
    values: HashMap<String, String>,
    title: String,
    line: usize,
    request: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    answer: Option<Answer>,
}

impl Table {
    async fn run(file: &'static str, text: &str, options: Options) {
        let mut table = Self {
            file,
            server: options.start().await,
            values: HashMap::new(),
            title: String::new(),
            line: 0,
            request: String::new(),
            headers: Vec::new(),
            body: Vec::new(),
            answer: None,
        };
        for (index, line) in text.lines().enumerate() {
            table.line = index + 1;
            table.step(line).await;
        }
    }

    async fn step(&mut self, line: &str) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "" => (),
            "##" => self.title = rest.to_owned(),
            "let" => {
                let (name, value) = rest.split_once(" =").unwrap_or((rest, ""));
                let value = self.fill(value.strip_prefix(' ').unwrap_or(value));
                self.values.insert(name.to_owned(), value);
            }
            ">" => self.body = self.fill(rest).replace("\\r\\n", "\r\n").into_bytes(),
            "=" => self.exchange(rest).await,
            "<" => {
                let (expected, answer) = (self.fill(rest), self.answer());
                self.check("body", &String::from_utf8_lossy(&answer.body), &expected);
            }
            "~" => {
                let expected: Value = serde_json::from_str(&self.fill(rest)).unwrap();
                self.check("JSON", &self.answer().json().to_string(), &expected.to_string());
            }
            "!" => {
                let (code, detail) = rest.split_once(' ').unwrap_or((rest, ""));
                self.check("code", &self.answer().code(), code);
                if !detail.is_empty() {
                    let expected: Value = serde_json::from_str(&self.fill(detail)).unwrap();
                    let actual = &self.answer().json()["errors"][0]["detail"];
                    self.check("detail", &actual.to_string(), &expected.to_string());
                }
            }
            word if word.starts_with('@') => self.keep(&word[1..], rest),
            word if word.ends_with(':') => self.header(word.trim_end_matches(':'), rest),
            _ => {
                self.request = self.fill(line);
                self.headers.clear();
                self.body.clear();
                self.answer = None;
            }
        }
    }

    async fn exchange(&mut self, status: &str) {
        let answer = send(self.server.address, &self.request, &self.headers, &self.body).await;
        let shown = format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body));
        self.check("status", &answer.status.to_string(), status.trim());
        let version = answer.header("Docker-Distribution-API-Version").is_some();
        assert!(version || !self.request.contains(" /v2"), "{}: {shown}", self.place());
        if self.request.starts_with("HEAD") {
            self.check("body of HEAD", &String::from_utf8_lossy(&answer.body), "");
        } else if answer.status >= 400 {
            self.check_error(&answer);
        }
        self.answer = Some(answer);
    }

    /// Every error is one of the specification's form, with a code and a sentence.
    fn check_error(&self, answer: &Answer) {
        let content_type = answer.header("content-type").unwrap_or_default();
        assert!(content_type.starts_with("application/json"), "{}: {content_type}", self.place());
        let error = &answer.json()["errors"][0];
        let is_code = |code: &str| {
            !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
        };
        assert!(error["code"].as_str().is_some_and(is_code), "{}: {error}", self.place());
        let message = error["message"].as_str();
        assert!(message.is_some_and(|text| !text.is_empty()), "{}: {error}", self.place());
    }

    fn header(&mut self, name: &str, value: &str) {
        let value = self.fill(value);
        if self.answer.is_none() {
            self.headers.push((name.to_owned(), value));
            return;
        }
        let actual = self.answer().header(name).map(str::to_owned);
        match value.as_str() {
            "*" => assert!(actual.is_some(), "{}: no header `{name}`", self.place()),
            "-" => assert_eq!(actual, None, "{}: header `{name}`", self.place()),
            value => self.check(name, &actual.unwrap_or_default(), value),
        }
    }

    fn keep(&mut self, name: &str, from: &str) {
        let answer = self.answer();
        let value = match from.strip_prefix('.') {
            Some(member) => answer.json()[member].as_str().unwrap_or_default().to_owned(),
            None => answer.header(from).unwrap_or_default().to_owned(),
        };
        assert!(!value.is_empty(), "{}: no `{from}`", self.place());
        if name == "location" {
            let id = value.rsplit('/').next().unwrap_or_default().to_owned();
            self.values.insert("uploadid".to_owned(), id);
        }
        self.values.insert(name.to_owned(), value);
    }

    fn answer(&self) -> &Answer {
        self.answer.as_ref().expect("a `=` line comes first")
    }

    #[track_caller]
    fn check(&self, what: &str, actual: &str, expected: &str) {
        let answer = self.answer.as_ref().map(|answer| &answer.headers);
        assert_eq!(actual, expected, "{}: {what}; {answer:?}", self.place());
    }

    fn place(&self) -> String {
        format!("{}:{} ({}) {}", self.file, self.line, self.title, self.request)
    }

    /// Replaces every `$(...)`.
    fn fill(&self, text: &str) -> String {
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("$(") {
            let (call, after) = after.split_once(')').expect("`$(` is closed");
            filled.push_str(before);
            filled.push_str(&self.value(call));
            rest = after;
        }
        filled + rest
    }

    fn value(&self, call: &str) -> String {
        let (function, argument) = call.split_once(' ').unwrap_or(("", call));
        let named = || match self.values.get(argument) {
            Some(value) => value.as_str(),
            None => panic!("{}: no value `{argument}`", self.place()),
        };
        match function {
            "" => named().to_owned(),
            "sha256" => Digest::of(named().as_bytes()).to_string(),
            "sha512" => Digest::with(Algorithm::Sha512, named().as_bytes()).to_string(),
            "hex" => Digest::of(named().as_bytes()).hex().to_owned(),
            "size" => named().len().to_string(),
            "base64" => base64::engine::general_purpose::STANDARD.encode(argument),
            "repeat" => {
                let (count, text) = argument.split_once(' ').expect("a count and a text");
                text.repeat(count.parse().unwrap())
            }
            other => panic!("no function `{other}`"),
        }
    }
}

macro_rules! tables {
    ($($test:ident: $file:literal, $options:path;)*) => {$(
        #[tokio::test]
        async fn $test() {
            for kind in [Kind::Memory, Kind::Disk] {
                Table::run($file, include_str!(concat!("data/", $file)), $options(kind)).await;
            }
        }
    )*};
}

tables! {
    blobs_are_pushed_pulled_and_mounted: "blobs.txt", Options::open;
    manifests_are_pushed_pulled_and_deleted: "manifests.txt", Options::open;
    tags_and_repositories_are_listed: "listings.txt", Options::open;
    referrers_are_listed: "referrers.txt", Options::open;
    access_follows_the_token_flow: "access.txt", Options::guarded;
}

fn header(name: &str, value: impl ToString) -> (String, String) {
    (name.to_owned(), value.to_string())
}

/// Bytes that do not compress and differ by seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

async fn push(server: &TestServer, repository: &str, bytes: &[u8]) -> Answer {
    let line = format!("POST /v2/{repository}/blobs/uploads/?digest={}", Digest::of(bytes));
    send(server.address, &line, &[], bytes).await
}

async fn open_upload(server: &TestServer) -> String {
    let answer = send(server.address, "POST /v2/app/blobs/uploads/", &[], b"").await;
    answer.header("location").unwrap().to_owned()
}

/// A manifest over the config `{}`, which must be there.
fn manifest(annotation: &str) -> String {
    let config = Digest::of(b"{}");
    format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{config}","size":2}},"layers":[],"annotations":{{"note":"{annotation}"}}}}"#
    )
}

#[tokio::test]
async fn sixty_four_push_while_sixty_four_pull() {
    for kind in [Kind::Memory, Kind::Disk] {
        let server = Options::open(kind).start().await;
        let shared = noise(1, 1 << 20);
        assert_eq!(push(&server, "shared", &shared).await.status, 201);
        let address = server.address;
        let mut clients = JoinSet::new();
        for client in 0..64u64 {
            clients.spawn(async move {
                let bytes = noise(client + 2, 1 << 20);
                let digest = Digest::of(&bytes);
                let open = send(address, "POST /v2/app/blobs/uploads/", &[], b"").await;
                let location = open.header("location").unwrap().to_owned();
                let line = format!("PATCH {location}");
                assert_eq!(send(address, &line, &[], &bytes).await.status, 202);
                let line = format!("PUT {location}?digest={digest}");
                assert_eq!(send(address, &line, &[], b"").await.status, 201);
                let back = get(address, &format!("/v2/app/blobs/{digest}")).await;
                assert!(back.status == 200 && back.body == bytes);
            });
            let (shared, digest) = (shared.clone(), Digest::of(&shared));
            clients.spawn(async move {
                let pulled = get(address, &format!("/v2/shared/blobs/{digest}")).await;
                assert!(pulled.status == 200 && pulled.body == shared);
            });
        }
        while let Some(client) = clients.join_next().await {
            client.unwrap();
        }
    }
}

#[tokio::test]
async fn one_tag_pushed_by_many_ends_at_one_of_them() {
    let server = Options::open(Kind::Disk).start().await;
    push(&server, "app", b"{}").await;
    let address = server.address;
    let mut clients = JoinSet::new();
    for client in 0..16 {
        clients.spawn(async move {
            let manifest = manifest(&client.to_string());
            let line = "PUT /v2/app/manifests/latest";
            let answer = send(address, line, &[], manifest.as_bytes()).await;
            assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
            manifest
        });
    }
    let pushed = clients.join_all().await;
    let found = get(address, "/v2/app/manifests/latest").await;
    assert!(pushed.iter().any(|manifest| manifest.as_bytes() == found.body));
    let moves = server.catalog.tag_moves(0, 100).await.unwrap();
    assert_eq!(moves.len(), 16);
    assert!(moves.windows(2).all(|pair| pair[0].new == pair[1].old), "a chain without gaps");
}

/// Announces `announced` bytes, sends some and hangs up.
async fn broken_patch(server: &TestServer, location: &str, announced: usize, bytes: &[u8]) {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "PATCH {location} HTTP/1.1\r\nHost: {}\r\nContent-Length: {announced}\r\n\r\n",
        server.address
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    drop(stream.read_to_end(&mut rest).await);
}

/// The upload's next byte.
async fn received(server: &TestServer, location: &str) -> usize {
    let status = get(server.address, location).await;
    assert_eq!(status.status, 204);
    let range = status.header("range").unwrap().to_owned();
    range.strip_prefix("0-").unwrap().parse::<usize>().unwrap() + 1
}

#[tokio::test]
async fn a_broken_push_goes_on_where_it_stopped() {
    for kind in [Kind::Memory, Kind::Disk] {
        let server = Options::open(kind).start().await;
        let bytes = noise(1, 3 << 20);
        let location = open_upload(&server).await;
        broken_patch(&server, &location, bytes.len(), &bytes[..2_000_000]).await;
        let have = received(&server, &location).await;
        assert_eq!(have, 2_000_000, "every byte that arrived counts");
        let range = header("Content-Range", format!("{have}-{}", bytes.len() - 1));
        let line = format!("PATCH {location}");
        let answer = send(server.address, &line, &[range], &bytes[have..]).await;
        assert_eq!(answer.status, 202);
        let digest = Digest::of(&bytes);
        let line = format!("PUT {location}?digest={digest}");
        assert_eq!(send(server.address, &line, &[], b"").await.status, 201);
        let back = get(server.address, &format!("/v2/app/blobs/{digest}")).await;
        assert!(back.body == bytes);
    }
}

/// A connection that announced a body of a million bytes, sent some, and fell silent.
async fn silent_patch(server: &TestServer, location: &str, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head =
        format!("PATCH {location} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

#[tokio::test]
async fn a_connection_that_fell_silent_does_not_keep_its_upload() {
    for kind in [Kind::Memory, Kind::Disk] {
        let server = Options::open(kind).start().await;
        let location = open_upload(&server).await;
        let bytes = noise(1, 300_000);
        let mut silent = silent_patch(&server, &location, &bytes[..299_999]).await;
        // Told at once, while the other connection is still there.
        let start = Instant::now();
        while received(&server, &location).await != 299_999 {
            assert!(start.elapsed() < PATIENCE);
        }
        let line = format!("PATCH {location}");
        let range = header("Content-Range", "299999-299999");
        assert_eq!(send(server.address, &line, &[range], &bytes[299_999..]).await.status, 202);
        let mut answer = Vec::new();
        drop(tokio::time::timeout(PATIENCE, silent.read_to_end(&mut answer)).await.unwrap());
        assert_eq!(parse(&answer).status, 409, "the silent one has lost it");

        let silent = silent_patch(&server, &location, b"more").await;
        let line =
            format!("PUT {location}?digest={}", Digest::of(&[&bytes, &b"more"[..]].concat()));
        while received(&server, &location).await != 300_004 {
            assert!(start.elapsed() < PATIENCE);
        }
        assert_eq!(send(server.address, &line, &[], b"").await.status, 201);
        drop(silent);

        let location = open_upload(&server).await;
        let silent = silent_patch(&server, &location, b"some").await;
        while received(&server, &location).await != 4 {
            assert!(start.elapsed() < PATIENCE);
        }
        let line = format!("DELETE {location}");
        assert_eq!(send(server.address, &line, &[], b"").await.status, 204);
        assert_eq!(get(server.address, &location).await.status, 404);
        drop(silent);
    }
}

/// Sends the head of a request with a body of a thousand bytes, then five at once and one
/// every so often, until the server answers.
async fn drip(server: &TestServer, line: &str, pause: Duration) -> Answer {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let (mut input, mut output) = stream.split();
    let send = async {
        loop {
            tokio::time::sleep(pause).await;
            if output.write_all(b"x").await.is_err() {
                return std::future::pending().await;
            }
        }
    };
    let mut bytes = Vec::new();
    let ended = async {
        tokio::select! {
            () = send => (),
            read = input.read_to_end(&mut bytes) => drop(read),
        }
    };
    let ended = tokio::time::timeout(PATIENCE, ended).await;
    assert!(ended.is_ok(), "the connection is closed");
    parse(&bytes)
}

#[tokio::test]
async fn a_body_that_stalls_or_drips_is_ended_and_stays_resumable() {
    let limits = Limits { stall: Duration::from_millis(200), ..Limits::default() };
    let server = Options { limits, ..Options::open(Kind::Disk) }.start().await;
    for (pause, sent) in [(PATIENCE, 5..6), (Duration::from_millis(20), 6..200)] {
        let location = open_upload(&server).await;
        let answer = drip(&server, &format!("PATCH {location}"), pause).await;
        assert_eq!((answer.status, answer.code()), (408, "BLOB_UPLOAD_INVALID".to_owned()));
        let have = received(&server, &location).await;
        assert!(sent.contains(&have), "{have}");
        let whole = format!("POST /v2/app/blobs/uploads/?digest={}", Digest::of(b""));
        assert_eq!(drip(&server, &whole, pause).await.status, 408);
        assert_eq!(drip(&server, "PUT /v2/app/manifests/slow", pause).await.status, 408);
    }
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let limits = Limits { blob_size_max: 1000, ..Limits::default() };
    let server = Options { limits, ..Options::open(Kind::Memory) }.start().await;
    let location = open_upload(&server).await;
    let bytes = noise(1, 1001);
    for line in [
        format!("PATCH {location}"),
        format!("PUT {location}?digest={}", Digest::of(&bytes)),
        format!("POST /v2/app/blobs/uploads/?digest={}", Digest::of(&bytes)),
    ] {
        let answer = send(server.address, &line, &[], &bytes).await;
        assert_eq!((answer.status, answer.code()), (413, "SIZE_INVALID".to_owned()), "{line}");
    }
    // A client that looks for the answer only when it has sent everything.
    for line in [format!("PATCH {location}"), "PUT /v2/app/manifests/x".to_owned()] {
        let bytes = vec![b'x'; 32 << 20];
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = format!(
            "{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            bytes.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(parse(&answer).status, 413, "{line}");
    }
    // One that waits to be told to send is told the answer, and sends nothing.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "PATCH {location} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 2000\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(parse(&answer).status, 413);
    // A body that never says how long it is, and never ends.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "PATCH {location} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = [b"10000\r\n".to_vec(), vec![b'x'; 0x10000], b"\r\n".to_vec()].concat();
    let start = Instant::now();
    while stream.write_all(&chunk).await.is_ok() {
        assert!(start.elapsed() < PATIENCE, "an endless body is ended");
    }
    // What was within the bound may stay; the upload can go on up to it and not beyond.
    let status = get(server.address, &location).await;
    assert_eq!(status.status, 204);
}

/// Pushes a manifest as the tag `bomb` and gives the status and the error's code.
async fn push_manifest(server: &TestServer, body: &[u8]) -> (u16, String) {
    let answer = send(server.address, "PUT /v2/app/manifests/bomb", &[], body).await;
    (answer.status, answer.code())
}

/// An entry for the blob `{}`, that many times.
fn entries(count: usize) -> String {
    let entry = format!(r#"{{"mediaType":"x","digest":"{}","size":2}}"#, Digest::of(b"{}"));
    vec![entry; count].join(",")
}

fn index(entries: &str) -> String {
    let index = media_type::OCI_INDEX;
    format!(r#"{{"schemaVersion":2,"mediaType":"{index}","manifests":[{entries}]}}"#)
}

#[tokio::test]
async fn manifests_have_a_bound() {
    let server = Options::open(Kind::Memory).start().await;
    push(&server, "app", b"{}").await;
    let put = async |body: &[u8]| push_manifest(&server, body).await;
    let invalid = || (400, "MANIFEST_INVALID".to_owned());
    let largest = manifest(&"a".repeat((4 << 20) - manifest("").len()));
    assert_eq!(put(largest.as_bytes()).await.0, 201);
    let larger = manifest(&"a".repeat((4 << 20) + 1 - manifest("").len()));
    assert_eq!(put(larger.as_bytes()).await, (413, "SIZE_INVALID".to_owned()));
    assert_eq!(put(&vec![b' '; 8 << 20]).await.0, 413);
    assert_eq!(put("[".repeat(1 << 20).as_bytes()).await, invalid());
    let layers = manifest("").replace("[]", &format!("[{}]", entries(20_000)));
    assert_eq!(put(layers.as_bytes()).await, invalid());
    assert_eq!(put(index(&entries(20_000)).as_bytes()).await, invalid());
    let many: String = (0..101).map(|n| format!("&tag=t{n}")).collect();
    let image = manifest("");
    let line = format!("PUT /v2/app/manifests/{}?x{many}", Digest::of(image.as_bytes()));
    assert_eq!(send(server.address, &line, &[], image.as_bytes()).await.status, 414);
}

#[tokio::test]
async fn manifests_within_the_bound_may_be_strange() {
    let server = Options::open(Kind::Memory).start().await;
    push(&server, "app", b"{}").await;
    let put = async |body: &str| push_manifest(&server, body.as_bytes()).await.0;
    // Nesting in a member that nobody reads.
    let deep = format!("{}{}", "[".repeat(1 << 20), "]".repeat(1 << 20));
    let deep = manifest("").replacen('{', &format!(r#"{{"deep":{deep},"#), 1);
    assert_eq!(put(&deep).await, 201);
    // The same layer over and over.
    let wide = manifest("").replace("[]", &format!("[{}]", entries(10_000)));
    assert_eq!(put(&wide).await, 201);
    // An index in an index in an index ...
    let mut inner = manifest("");
    assert_eq!(put(&inner).await, 201);
    for _ in 0..300 {
        let (digest, size) = (Digest::of(inner.as_bytes()), inner.len());
        inner = index(&format!(r#"{{"mediaType":"x","digest":"{digest}","size":{size}}}"#));
        assert_eq!(put(&inner).await, 201);
    }
    let top = format!("DELETE /v2/app/manifests/{}", Digest::of(inner.as_bytes()));
    assert_eq!(send(server.address, &top, &[], b"").await.status, 202);
}

/// Announces a body of this size and sends a KiB of it every now and then.
async fn trickle(address: SocketAddr, line: String, announced: usize) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {announced}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    while stream.write_all(&[b' '; 1024]).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn large_manifests_wait_for_one_another_and_small_ones_do_not() {
    let stall = Duration::from_millis(300);
    let limits = Limits { manifest_bytes_max: 2 << 20, stall, ..Limits::default() };
    let server = Options { limits, ..Options::open(Kind::Memory) }.start().await;
    push(&server, "app", b"{}").await;
    let large = manifest(&"a".repeat(900 << 10));
    let line = "PUT /v2/app/manifests/slow".to_owned();
    let slow = tokio::spawn(trickle(server.address, line, 1 << 20));
    // Until the slow one has its place.
    let (start, mut refused) = (Instant::now(), (201, String::new()));
    while refused.0 == 201 && start.elapsed() < PATIENCE {
        refused = push_manifest(&server, large.as_bytes()).await;
    }
    assert_eq!(refused, (429, "TOOMANYREQUESTS".to_owned()));
    assert_eq!(push_manifest(&server, manifest("small").as_bytes()).await.0, 201);
    slow.abort();
    let start = Instant::now();
    while push_manifest(&server, large.as_bytes()).await.0 != 201 {
        assert!(start.elapsed() < PATIENCE, "the place is free again");
    }
}

#[tokio::test]
async fn referrers_come_in_pages() {
    let limits = Limits { referrers_page_max: 2, ..Limits::default() };
    let server = Options { limits, ..Options::open(Kind::Memory) }.start().await;
    push(&server, "app", b"{}").await;
    let subject = Digest::of(b"subject");
    for number in 0..5 {
        let about =
            format!(r#""subject":{{"mediaType":"x","digest":"{subject}","size":7}},"annotations""#);
        let body = manifest(&number.to_string()).replace(r#""annotations""#, &about);
        let line = format!("PUT /v2/app/manifests/r{number}");
        assert_eq!(send(server.address, &line, &[], body.as_bytes()).await.status, 201);
    }
    let kind = "application%2Fvnd.oci.empty.v1%2Bjson";
    let mut next = Some(format!("/v2/app/referrers/{subject}?artifactType={kind}"));
    let mut notes = Vec::new();
    while let Some(target) = next {
        let page = get(server.address, &target).await;
        assert_eq!(page.header("OCI-Filters-Applied"), Some("artifactType"));
        let json = page.json();
        let found = json["manifests"].as_array().unwrap();
        assert!(found.len() <= 2);
        notes.extend(found.iter().map(|entry| entry["annotations"]["note"].to_string()));
        let link = page.header("link").and_then(|link| link.split_once('>'));
        next = link.map(|(target, _)| target.trim_start_matches('<').to_owned());
    }
    notes.sort();
    assert_eq!(notes, [r#""0""#, r#""1""#, r#""2""#, r#""3""#, r#""4""#]);
}

/// Sends a request, and gives its status and its error.
async fn tried(server: &TestServer, line: &str, body: &[u8]) -> (u16, String) {
    let answer = send(server.address, line, &[], body).await;
    let error = &answer.json()["errors"][0];
    let text = |member: &str| error[member].as_str().unwrap_or_default().to_owned();
    (answer.status, format!("{} {}", text("code"), text("message")))
}

#[tokio::test]
async fn n13_n14_what_is_locked_is_refused_with_how_to_unlock_it() {
    let server = Options::open(Kind::Memory).start().await;
    push(&server, "app", b"{}").await;
    let (first, second) = (manifest("first"), manifest("second"));
    let digest = Digest::of(first.as_bytes());
    for name in ["1", "2"] {
        let line = format!("PUT /v2/app/manifests/{name}");
        assert_eq!(tried(&server, &line, first.as_bytes()).await.0, 201);
    }
    let change = async |reference: Option<&str>, change: AttributesChange| {
        let reference = reference.map(|text| match text.parse() {
            Ok(digest) => ManifestRef::Digest(digest),
            Err(_) => ManifestRef::Tag(text.parse().unwrap()),
        });
        let (registry, name) = (RegistryName::default(), "app".parse().unwrap());
        let changed =
            server.catalog.change_attributes(&registry, &name, reference.as_ref(), change);
        changed.await.unwrap();
    };
    let none = AttributesChange::default();
    let put = async |name: &str| {
        tried(&server, &format!("PUT /v2/app/manifests/{name}"), second.as_bytes()).await
    };
    let delete =
        async |name: &str| tried(&server, &format!("DELETE /v2/app/manifests/{name}"), b"").await;
    let refused = |what: &str, attribute: &str, unlocking: &str| {
        let message = format!(
            "DENIED {what} is locked: its `{attribute}` is false; \
             `refit repository update {unlocking} true` unlocks it"
        );
        (405, message)
    };

    change(Some("1"), AttributesChange { delete_enabled: Some(false), ..none }).await;
    let no_delete = refused("tag `app:1`", "deleteEnabled", "--image app:1 --delete-enabled");
    assert_eq!(delete("1").await, no_delete);
    assert_eq!(delete(digest.as_str()).await, no_delete);
    assert_eq!(put("1").await.0, 201);
    change(Some("1"), AttributesChange { write_enabled: Some(false), ..none }).await;
    let no_write = refused("tag `app:1`", "writeEnabled", "--image app:1 --write-enabled");
    assert_eq!(put("1").await, no_write);
    assert_eq!(delete("1").await, no_write);
    assert_eq!(delete("2").await.0, 202);
    assert_eq!(put("3").await.0, 201);

    // Of a repository, everything in it.
    change(None, AttributesChange { write_enabled: Some(false), ..none }).await;
    let no_write = refused("repository `app`", "writeEnabled", "app --write-enabled");
    assert_eq!(put("4").await, no_write);
    assert_eq!(delete("3").await, no_write);
    assert_eq!(tried(&server, "POST /v2/app/blobs/uploads/", b"").await, no_write);
    let config = Digest::of(b"{}");
    assert_eq!(tried(&server, &format!("DELETE /v2/app/blobs/{config}"), b"").await, no_write);
    assert_eq!(get(server.address, "/v2/app/manifests/3").await.status, 200);
}

#[tokio::test]
async fn what_is_not_to_be_read_is_not_pulled_or_mounted() {
    let server = Options::open(Kind::Memory).start().await;
    push(&server, "app", b"{}").await;
    let (text, config) = (manifest("one"), Digest::of(b"{}"));
    assert_eq!(tried(&server, "PUT /v2/app/manifests/1", text.as_bytes()).await.0, 201);
    let digest = Digest::of(text.as_bytes());
    let lines = [
        "GET /v2/app/manifests/1".to_owned(),
        format!("GET /v2/app/manifests/{digest}"),
        format!("GET /v2/app/blobs/{config}"),
        format!("GET /v2/app/referrers/{digest}"),
        // Whether there is something to push to it again.
        format!("HEAD /v2/app/blobs/{config}"),
        format!("POST /v2/other/blobs/uploads/?mount={config}&from=app"),
        format!("POST /v2/other/blobs/uploads/?mount={config}"),
    ];
    let all = async || {
        let mut found = Vec::new();
        for line in &lines {
            found.push(tried(&server, line, b"").await.0);
        }
        let (registry, other) = (RegistryName::default(), "other".parse().unwrap());
        // Mounted or not, it is not there the next time.
        let _ = server.catalog.unlink_blob(&registry, &other, &config).await;
        found
    };
    assert_eq!(all().await[..6], [200, 200, 200, 200, 200, 201]);
    let (registry, app) = (RegistryName::default(), "app".parse().unwrap());
    let change = async |reference: Option<&ManifestRef>, read_enabled| {
        let change =
            AttributesChange { read_enabled: Some(read_enabled), ..AttributesChange::default() };
        server.catalog.change_attributes(&registry, &app, reference, change).await.unwrap();
    };
    let tag = ManifestRef::Tag("1".parse().unwrap());
    change(Some(&tag), false).await;
    assert_eq!(all().await[..2], [405, 200]);
    change(Some(&tag), true).await;
    change(Some(&ManifestRef::Digest(digest)), false).await;
    assert_eq!(all().await[..3], [405, 405, 200]);
    change(None, false).await;
    assert_eq!(all().await, [405, 405, 405, 405, 404, 202, 202]);
}

#[tokio::test]
async fn what_is_hidden_is_in_no_list() {
    let server = Options::open(Kind::Memory).start().await;
    for name in ["app", "other"] {
        push(&server, name, b"{}").await;
        for tag in ["1", "2"] {
            let line = format!("PUT /v2/{name}/manifests/{tag}");
            assert_eq!(tried(&server, &line, manifest(tag).as_bytes()).await.0, 201);
        }
    }
    let (registry, app) = (RegistryName::default(), "app".parse().unwrap());
    let tag = ManifestRef::Tag("1".parse().unwrap());
    let hide = AttributesChange { list_enabled: Some(false), ..AttributesChange::default() };
    for reference in [Some(&tag), None] {
        server.catalog.change_attributes(&registry, &app, reference, hide).await.unwrap();
    }
    let tags = get(server.address, "/v2/app/tags/list").await.json();
    assert_eq!(tags["tags"], serde_json::json!(["2"]));
    let repositories = get(server.address, "/v2/_catalog").await.json();
    assert_eq!(repositories["repositories"], serde_json::json!(["other"]));
    assert_eq!(get(server.address, "/v2/app/manifests/1").await.status, 200);
}

#[tokio::test]
async fn metadata_is_shown_and_changed_as_in_the_managed_service() {
    let server = Options::open(Kind::Memory).start().await;
    push(&server, "team/app", b"{}").await;
    let digests = ["one", "two"].map(|text| Digest::of(manifest(text).as_bytes()).to_string());
    for (tag, text) in [("b", "one"), ("a", "one"), ("c", "two")] {
        let line = format!("PUT /v2/team/app/manifests/{tag}");
        assert_eq!(tried(&server, &line, manifest(text).as_bytes()).await.0, 201);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let host = server.address.to_string();
    let ask = async |line: &str, body: &str| {
        let answer = send(server.address, line, &[], body.as_bytes()).await;
        (answer.status, answer.json(), answer.header("link").map(str::to_owned))
    };
    let open = serde_json::json!({
        "deleteEnabled": true, "writeEnabled": true, "readEnabled": true, "listEnabled": true,
    });
    let (status, shown, _) = ask("GET /acr/v1/team/app", "").await;
    assert_eq!((status, &shown["registry"]), (200, &Value::from(&*host)));
    assert_eq!((&shown["manifestCount"], &shown["tagCount"]), (&2.into(), &3.into()));
    assert_eq!((&shown["imageName"], &shown["changeableAttributes"]), (&"team/app".into(), &open));
    assert_eq!(ask("GET /acr/v1/_catalog", "").await.1["repositories"][0], "team/app");

    // Lists, in all orders and in pages, of which a client takes over only the query.
    let names = async |path: &str, list: &str, member: &str| {
        let (mut found, mut query) = (Vec::new(), path.split_once('?').unwrap().1.to_owned());
        loop {
            let line = format!("GET /acr/v1/team/app/_{list}?{query}");
            let (status, shown, link) = ask(&line, "").await;
            assert_eq!((status, &shown["imageName"]), (200, &"team/app".into()), "{line}");
            let page = shown[list].as_array().unwrap();
            assert!(page.len() <= 1, "{shown}");
            found.extend(page.iter().map(|item| item[member].as_str().unwrap().to_owned()));
            let Some(link) = link else { return found };
            let next = link.strip_prefix('<').and_then(|link| link.split_once('>')).unwrap().0;
            query = next.split_once('?').unwrap().1.to_owned();
            assert!(query.split('&').all(|pair| pair.contains('=')), "{query}");
        }
    };
    for (query, expected) in [
        ("?n=1", ["a", "b", "c"]),
        ("?n=1&orderby=", ["a", "b", "c"]),
        ("?n=1&orderby=timeasc", ["b", "a", "c"]),
        ("?n=1&orderby=timedesc", ["c", "a", "b"]),
    ] {
        assert_eq!(names(query, "tags", "name").await, expected, "{query}");
    }
    let of_one = format!("?n=1&digest={}", digests[0]);
    assert_eq!(names(&of_one, "tags", "name").await, ["a", "b"]);
    let mut sorted = digests.clone();
    sorted.sort();
    let [first, second] = &digests;
    let backwards = [second.clone(), first.clone()];
    for (query, expected) in [
        ("?n=1", &sorted),
        ("?n=1&orderby=timeasc", &digests),
        ("?n=1&orderby=timedesc", &backwards),
    ] {
        assert_eq!(&names(query, "manifests", "digest").await[..], expected, "{query}");
    }
    let (_, shown, _) = ask("GET /acr/v1/team/app/_tags/a", "").await;
    let shown = &shown["tag"];
    assert_eq!((&shown["digest"], &shown["signed"]), (&Value::from(&**first), &false.into()));
    let seconds = shown["createdTime"].as_str().unwrap();
    assert!(seconds.ends_with('Z') && seconds.contains('.'), "{seconds}");
    let one = format!("/acr/v1/team/app/_manifests/{first}");
    let (_, shown, _) = ask(&format!("GET {one}"), "").await;
    let shown = &shown["manifest"];
    assert_eq!((&shown["digest"], &shown["imageSize"]), (&Value::from(&**first), &2.into()));
    assert_eq!(shown["tags"], serde_json::json!(["a", "b"]));
    assert_eq!(shown["os"], Value::Null, "it is no image");
    let config = br#"{"architecture":"arm64","os":"linux","rootfs":{"type":"layers"}}"#;
    push(&server, "image", config).await;
    let image = manifest("image")
        .replace("application/vnd.oci.empty.v1+json", media_type::OCI_CONFIG)
        .replace(Digest::of(b"{}").as_str(), Digest::of(config).as_str());
    assert_eq!(tried(&server, "PUT /v2/image/manifests/1", image.as_bytes()).await.0, 201);
    let (_, shown, _) = ask("GET /acr/v1/image/_manifests", "").await;
    let shown = &shown["manifests"][0];
    assert_eq!((&shown["architecture"], &shown["os"]), (&"arm64".into(), &"linux".into()));

    // Attributes.
    for (path, member) in [("/acr/v1/team/app/_tags/a", "tag"), (&one, "manifest")] {
        let (status, shown, _) = ask(&format!("PATCH {path}"), r#"{"writeEnabled":false}"#).await;
        let changed = &shown[member]["changeableAttributes"];
        assert_eq!((status, &changed["writeEnabled"]), (200, &false.into()));
        assert_eq!(changed["deleteEnabled"], true);
    }
    assert_eq!(ask("DELETE /acr/v1/team/app/_tags/a", "").await.0, 405);
    assert_eq!(ask("DELETE /acr/v1/team/app", "").await.0, 405);
    for path in ["/acr/v1/team/app/_tags/a", &one] {
        ask(&format!("PATCH {path}"), r#"{"writeEnabled":true}"#).await;
    }
    let (status, shown, _) = ask("PATCH /acr/v1/team/app", r#"{"deleteEnabled":false}"#).await;
    assert_eq!((status, &shown["changeableAttributes"]["deleteEnabled"]), (200, &false.into()));
    ask("PATCH /acr/v1/team/app", r#"{"deleteEnabled":true}"#).await;

    // What is deleted, and restored.
    let (registry, enabled) = (RegistryName::default(), Some(true));
    let change = store::SoftDeleteChange { enabled, days: None };
    let change = store::PoliciesChange { soft_delete: Some(change), retention: None };
    server.catalog.change_policies(&registry, change).await.unwrap();
    assert_eq!(ask("DELETE /acr/v1/team/app/_tags/a", "").await.0, 202);
    let (status, deleted, _) = ask("DELETE /acr/v1/team/app", "").await;
    assert_eq!((status, &deleted["tagsDeleted"]), (202, &serde_json::json!(["b", "c"])));
    let gone = deleted["manifestsDeleted"].as_array().unwrap();
    assert_eq!(gone.len(), 2, "{deleted}");
    for (line, code) in [
        ("GET /acr/v1/team/app", "NAME_UNKNOWN"),
        ("GET /acr/v1/team/app/_tags", "NAME_UNKNOWN"),
        ("GET /acr/v1/team/app/_manifests?orderby=timeasc", "NAME_UNKNOWN"),
        ("GET /acr/v1/team/app/_tags/b", "TAG_UNKNOWN"),
        (&format!("GET {one}"), "MANIFEST_UNKNOWN"),
        ("DELETE /acr/v1/team/app", "NAME_UNKNOWN"),
        ("DELETE /acr/v1/team/app/_tags/b", "TAG_UNKNOWN"),
    ] {
        let (status, shown, _) = ask(line, "").await;
        assert_eq!((status, &shown["errors"][0]["code"]), (404, &code.into()), "{line}");
    }
    let catalog = ask("GET /acr/v1/_deleted/_catalog", "").await.1;
    let found = &catalog["repositories"][0];
    assert_eq!(found["repository"], "team/app");
    assert!(found["deletedAt"].as_str().unwrap().contains('T'), "{catalog}");
    let tags = ask("GET /acr/v1/_deleted/team/app/_tags", "").await.1;
    let tags = tags["tags"].as_array().unwrap().iter();
    let tags: Vec<_> = tags.map(|tag| (&tag["tag"], &tag["digest"])).collect();
    let told = ["a", "b", "c"].map(Value::from);
    let told_digests = [first, first, second].map(|digest| Value::from(&**digest));
    assert_eq!(tags, told.iter().zip(&told_digests).collect::<Vec<_>>());
    let found = ask("GET /acr/v1/_deleted/team/app/_manifests?n=1", "").await;
    assert!(found.1["manifests"][0]["deletedAt"].is_string() && found.2.is_some(), "{found:?}");
    let restore = format!("POST /acr/v1/_deleted/team/app/_manifests/{first}?force=False");
    let (status, restored, _) = ask(&restore, r#"{"tag":"b"}"#).await;
    assert_eq!((status, &restored["tag"]), (200, &"b".into()), "{restored}");
    assert_eq!(get(server.address, "/v2/team/app/manifests/b").await.status, 200);
    let restore = format!("POST /acr/v1/_deleted/team/app/_manifests/{second}");
    assert_eq!(ask(&restore, r#"{"tag":null}"#).await.0, 200);
    assert_eq!(ask(&restore, r#"{"tag":null}"#).await.0, 404);
    assert_eq!(ask("PUT /v2/team/app/manifests/c", &manifest("one")).await.0, 201);
    let (status, refused, _) = ask(&restore, r#"{"tag":"c"}"#).await;
    assert_eq!((status, &refused["errors"][0]["code"]), (409, &"DENIED".into()));
    assert_eq!(ask(&format!("{restore}?force=True"), r#"{"tag":"c"}"#).await.0, 200);

    // What nobody can mean.
    for (line, body, status) in [
        ("PATCH /acr/v1/team/app", r#"{"locked":true}"#, 400),
        ("PATCH /acr/v1/team/app", "", 400),
        ("PATCH /acr/v1/none", r#"{"readEnabled":true}"#, 404),
        ("PUT /acr/v1/team/app", "", 405),
        ("POST /acr/v1/team/app/_tags", "", 405),
        ("GET /acr/v1/team/app/_tags?orderby=name", "", 400),
        ("GET /acr/v1/team/app/_tags?orderby=timeasc&last=b", "", 400),
        ("GET /acr/v1/team/app/_manifests?last=b", "", 400),
        ("GET /acr/v1/team/app/_tags/?", "", 404),
        ("GET /acr/v1/team/app/_manifests/latest", "", 400),
    ] {
        assert_eq!(ask(line, body).await.0, status, "{line} {body}");
    }
}

#[tokio::test]
async fn each_host_has_its_registry() {
    let first: RegistryName = "first".parse().unwrap();
    let second: RegistryName = "second".parse().unwrap();
    let hosts = Hosts::none().with("a.localhost", first).with("b.localhost", second);
    let server = Options { hosts, ..Options::open(Kind::Memory) }.start().await;
    let at = |host: &str| [header("Host", host)];
    let bytes = b"only in the first";
    let line = format!("POST /v2/app/blobs/uploads/?digest={}", Digest::of(bytes));
    assert_eq!(send(server.address, &line, &at("a.localhost:5000"), bytes).await.status, 201);
    let line = format!("GET /v2/app/blobs/{}", Digest::of(bytes));
    assert_eq!(send(server.address, &line, &at("a.localhost"), b"").await.status, 200);
    assert_eq!(send(server.address, &line, &at("b.localhost"), b"").await.status, 404);
    let line = format!("POST /v2/app/blobs/uploads/?mount={}&from=app", Digest::of(bytes));
    assert_eq!(send(server.address, &line, &at("b.localhost"), b"").await.status, 202);
    let unknown = send(server.address, "GET /v2/", &at("c.localhost"), b"").await;
    assert_eq!((unknown.status, unknown.code()), (404, "NAME_UNKNOWN".to_owned()));
}

#[tokio::test]
async fn tokens_expire() {
    let server = Options::guarded(Kind::Memory).start().await;
    let credentials = base64::engine::general_purpose::STANDARD.encode("alice:alice-secret");
    let login = [header("Authorization", format!("Basic {credentials}"))];
    let line = "GET /oauth2/token?scope=repository:team/app:pull&offline_token=true";
    let answer = send(server.address, line, &login, b"").await.json();
    let bearer = [header("Authorization", format!("Bearer {}", answer["token"].as_str().unwrap()))];
    let seconds = answer["expires_in"].as_i64().unwrap();
    let find = async || {
        let answer = send(server.address, "GET /v2/team/app/manifests/x", &bearer, b"").await;
        (answer.status, answer.header("www-authenticate").unwrap_or_default().to_owned())
    };
    assert_eq!(find().await.0, 404);
    server.clock.fetch_add(seconds * 1000, Ordering::Relaxed);
    let (status, challenge) = find().await;
    assert_eq!(status, 401);
    assert!(challenge.ends_with(r#"error="invalid_token""#), "{challenge}");
    let refresh = answer["refresh_token"].as_str().unwrap();
    let form = format!("grant_type=refresh_token&refresh_token={refresh}");
    let renew = async || send(server.address, "POST /oauth2/token", &[], form.as_bytes()).await;
    let renewed = renew().await;
    assert_eq!((renewed.status, renewed.json()["refresh_token"].as_str()), (200, Some(refresh)));
    let rest = 3 * 60 * 60 - seconds;
    server.clock.fetch_add(rest * 1000 - 1, Ordering::Relaxed);
    assert_eq!(renew().await.status, 200);
    server.clock.fetch_add(1, Ordering::Relaxed);
    assert_eq!(renew().await.status, 401, "using it does not make it live longer");
}

#[tokio::test]
async fn tokens_end_with_the_password_they_were_given_for() {
    let accounts = Arc::new(Accounts::default());
    let access = Arc::clone(&accounts) as Arc<dyn Access>;
    let server = Options { access, ..Options::guarded(Kind::Memory) }.start().await;
    let form = "grant_type=password&username=alice&password=alice-secret&scope=repository:team/a:*";
    let answer = send(server.address, "POST /oauth2/token", &[], form.as_bytes()).await.json();
    let text = |name: &str| answer[name].as_str().unwrap().to_owned();
    let bearer = [header("Authorization", format!("Bearer {}", text("access_token")))];
    let form = format!("grant_type=refresh_token&refresh_token={}", text("refresh_token"));
    let statuses = async || {
        let line = "POST /v2/team/a/blobs/uploads/";
        let push = send(server.address, line, &bearer, b"").await.status;
        let renew = send(server.address, "POST /oauth2/token", &[], form.as_bytes()).await.status;
        (push, renew)
    };
    assert_eq!(statuses().await, (202, 200));
    accounts.passwords.fetch_add(1, Ordering::Relaxed);
    assert_eq!(statuses().await, (401, 401));
}

#[tokio::test]
async fn tokens_open_no_more_than_their_principal_may_by_now() {
    let accounts = Arc::new(Accounts::default());
    let access = Arc::clone(&accounts) as Arc<dyn Access>;
    let server = Options { access, ..Options::guarded(Kind::Memory) }.start().await;
    let form = "grant_type=password&username=alice&password=alice-secret&scope=repository:team/a:*";
    let answer = send(server.address, "POST /oauth2/token", &[], form.as_bytes()).await.json();
    let bearer = answer["access_token"].as_str().unwrap();
    let bearer = [header("Authorization", format!("Bearer {bearer}"))];
    let push = async || send(server.address, "POST /v2/team/a/blobs/uploads/", &bearer, b"").await;
    assert_eq!(push().await.status, 202);
    accounts.closed.store(true, Ordering::Relaxed);
    assert_eq!(push().await.status, 403);
}

#[tokio::test]
async fn a_token_without_credentials_is_good_only_where_none_are_needed() {
    let server = Options::open(Kind::Memory).start().await;
    let answer = get(server.address, "/oauth2/token?scope=repository:app:pull").await.json();
    let bearer = header("Authorization", format!("Bearer {}", answer["token"].as_str().unwrap()));
    let get = async |headers: &[(String, String)]| {
        send(server.address, "GET /v2/app/tags/list", headers, b"").await.status
    };
    assert_eq!(get(std::slice::from_ref(&bearer)).await, 404);
    assert_eq!(get(&[bearer, header("Host", "registry.example")]).await, 401);
}

#[tokio::test]
async fn a_web_page_does_not_reach_a_loopback_registry() {
    let server = Options::open(Kind::Memory).start().await;
    let status = async |headers: &[(String, String)]| {
        send(server.address, "GET /v2/", headers, b"").await.status
    };
    assert_eq!(status(&[]).await, 200);
    assert_eq!(status(&[header("Host", "rebound.example")]).await, 401);
    assert_eq!(status(&[header("Origin", "http://evil.example")]).await, 401);
    assert_eq!(status(&[header("Sec-Fetch-Site", "cross-site")]).await, 401);
}

#[tokio::test]
async fn huge_or_broken_headers_are_refused() {
    let server = Options::open(Kind::Memory).start().await;
    let huge = [header("X-Huge", "x".repeat(1 << 20))];
    let answer = send(server.address, "GET /v2/", &huge, b"").await;
    assert!(answer.status == 431 || answer.status == 0, "{}", answer.status);
    for (name, value) in [
        ("Range", "bytes=\u{fe}-"),
        ("Authorization", "Bearer \u{fe}"),
        ("Authorization", "Basic"),
        ("If-None-Match", "\"\u{fe}"),
    ] {
        let answer = send(server.address, "GET /v2/", &[header(name, value)], b"").await;
        assert!((200..500).contains(&answer.status), "{name}: {}", answer.status);
    }
    assert_eq!(get(server.address, "/v2/").await.status, 200, "still alive");
}
