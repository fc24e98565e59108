//! Images of another registry, kept: one that is honest, one that lies, one that is gone.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod server;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use oci::{Descriptor, Digest, ImageManifest, RegistryName, media_type};
use registry::{PullThroughSettings, Upstream};
use remote::{Credentials, RemoteSettings};
use server::{Answer, Kind, Options, PATIENCE, TestServer, get, send};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

/// How the upstream misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vice {
    None,
    WrongBytes,
    CutBody,
    Endless,
    WrongManifest,
    NoLength,
    Limited,
    Down,
    NeedsToken,
    Holds,
}

/// Another registry, with one image of one layer in `app`.
struct Peer {
    vice: Mutex<Vice>,
    layer: Bytes,
    manifest: Mutex<Bytes>,
    tagged: AtomicBool,
    /// How often what was asked for.
    asked: Mutex<HashMap<String, usize>>,
    /// [`Vice::Holds`]: the second half of a blob waits for a permit.
    go_on: Arc<Semaphore>,
}

const CONFIG: &[u8] = b"{}";

fn manifest(layer: &[u8], label: &str) -> Bytes {
    let image = ImageManifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: Descriptor::of(media_type::OCI_CONFIG, CONFIG),
        layers: vec![Descriptor::of(media_type::OCI_LAYER_TAR, layer)],
        subject: None,
        annotations: BTreeMap::from([("label".to_owned(), label.to_owned())]),
    };
    serde_json::to_vec(&image).unwrap().into()
}

impl Peer {
    fn answer(&self, method: &Method, path: &str, headers: &axum::http::HeaderMap) -> Response {
        let host = headers["host"].to_str().unwrap();
        let vice = *self.vice.lock().unwrap();
        match vice {
            Vice::Limited => {
                return (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "120")]).into_response();
            }
            Vice::Down => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
            Vice::NeedsToken if path == "/token" => {
                let basic = headers.get("authorization").map(|value| value.to_str().unwrap());
                return match basic {
                    Some("Basic bWU6c2VjcmV0") => r#"{"token":"let-me-in"}"#.into_response(),
                    _ => StatusCode::UNAUTHORIZED.into_response(),
                };
            }
            Vice::NeedsToken
                if headers.get("authorization").is_none_or(|value| value != "Bearer let-me-in") =>
            {
                let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"peer\"");
                return (StatusCode::UNAUTHORIZED, [("www-authenticate", challenge)])
                    .into_response();
            }
            _ => (),
        }
        let manifest = self.manifest.lock().unwrap().clone();
        let by_digest = format!("/v2/team/app/manifests/{}", Digest::of(&manifest));
        if path == by_digest || path == "/v2/team/app/manifests/1" && self.is_tagged() {
            let digest = Digest::of(&manifest).to_string();
            let sent = match vice {
                Vice::WrongManifest => self::manifest(b"other", "lie"),
                _ => manifest,
            };
            let head = [
                ("content-type", media_type::OCI_MANIFEST.to_owned()),
                ("docker-content-digest", digest),
            ];
            let body = if *method == Method::HEAD { Body::empty() } else { Body::from(sent) };
            return (head, body).into_response();
        }
        let blobs = [Bytes::from_static(CONFIG), self.layer.clone()];
        let blob = blobs.into_iter().find(|blob| {
            let digest = Digest::of(blob);
            ["app", "sister"].iter().any(|name| path == format!("/v2/team/{name}/blobs/{digest}"))
        });
        match blob {
            Some(blob) if *method == Method::HEAD => {
                ([("content-length", blob.len().to_string())], Body::empty()).into_response()
            }
            Some(blob) => self.blob(vice, blob),
            None => StatusCode::NOT_FOUND.into_response(),
        }
    }

    fn is_tagged(&self) -> bool {
        self.tagged.load(Ordering::Relaxed)
    }

    fn blob(&self, vice: Vice, blob: Bytes) -> Response {
        let mut bytes = blob.to_vec();
        let length = [("content-length", blob.len().to_string())];
        match vice {
            Vice::WrongBytes => {
                bytes[0] ^= 1;
                (length, bytes).into_response()
            }
            Vice::CutBody => {
                let half = blob.slice(..blob.len() / 2);
                let parts: [Result<Bytes, &str>; 2] = [Ok(half), Err("cut")];
                (length, Body::from_stream(futures_util::stream::iter(parts))).into_response()
            }
            Vice::Endless => {
                let parts = futures_util::stream::repeat_with(move || {
                    Ok::<_, std::io::Error>(blob.clone())
                });
                Body::from_stream(parts).into_response()
            }
            Vice::NoLength => {
                let parts = futures_util::stream::iter([Ok::<_, std::io::Error>(blob)]);
                Body::from_stream(parts).into_response()
            }
            Vice::Holds => {
                let (first, second) = (blob.slice(..blob.len() / 2), blob.slice(blob.len() / 2..));
                let go_on = Arc::clone(&self.go_on);
                let rest = futures_util::stream::once(async move {
                    go_on.acquire().await.unwrap().forget();
                    Ok::<_, std::io::Error>(second)
                });
                // Its last chunk is given out when the next one has come.
                let quarter = first.len() / 2;
                let first = [Ok(first.slice(..quarter)), Ok(first.slice(quarter..))];
                let parts = futures_util::StreamExt::chain(futures_util::stream::iter(first), rest);
                (length, Body::from_stream(parts)).into_response()
            }
            _ => (length, bytes).into_response(),
        }
    }
}

async fn answer(State(peer): State<Arc<Peer>>, request: Request) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    *peer.asked.lock().unwrap().entry(format!("{method} {path}")).or_default() += 1;
    peer.answer(&method, &path, request.headers())
}

/// An upstream, and a registry that keeps its images below `kept`.
struct Pair {
    peer: Arc<Peer>,
    host: String,
    server: TestServer,
}

const BLOB_SIZE_MAX: u64 = 8 << 20;

impl Pair {
    async fn start(vice: Vice) -> Self {
        Self::with(vice, Options::open(Kind::Disk), Duration::ZERO).await
    }

    async fn with(vice: Vice, options: Options, tag_keep: Duration) -> Self {
        let layer = Bytes::from((0..1_000_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
        let peer = Arc::new(Peer {
            vice: Mutex::new(vice),
            manifest: Mutex::new(manifest(&layer, "first")),
            layer,
            tagged: AtomicBool::new(true),
            asked: Mutex::default(),
            go_on: Arc::new(Semaphore::new(0)),
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&peer));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let credentials = (vice == Vice::NeedsToken)
            .then(|| Credentials { username: "me".into(), password: "secret".into() });
        let own = remote::Upstream { credentials, ..remote::Upstream::default() };
        let remote = RemoteSettings {
            upstreams: BTreeMap::from([(host.clone(), own)]),
            ..RemoteSettings::default()
        };
        let upstream = Upstream { host: host.clone(), prefix: "kept".parse().unwrap(), tag_keep };
        let settings =
            PullThroughSettings { upstreams: vec![upstream], blob_size_max: BLOB_SIZE_MAX };
        let server = Options { upstreams: Some((remote, settings)), ..options }.start().await;
        Self { peer, host, server }
    }

    fn set(&self, vice: Vice) {
        *self.peer.vice.lock().unwrap() = vice;
    }

    fn asked(&self, what: &str) -> usize {
        self.peer.asked.lock().unwrap().get(what).copied().unwrap_or_default()
    }

    async fn get(&self, path: &str) -> Answer {
        get(self.server.address, path).await
    }

    fn layer_path(&self, repository: &str) -> String {
        format!("/v2/{repository}/blobs/{}", Digest::of(&self.peer.layer))
    }

    async fn layer(&self) -> Answer {
        self.get(&self.layer_path("kept/team/app")).await
    }

    /// Pulls the whole image.
    async fn pull(&self) {
        let manifest = self.get("/v2/kept/team/app/manifests/1").await;
        assert_eq!(manifest.status, 200, "{}", String::from_utf8_lossy(&manifest.body));
        assert_eq!(manifest.header("content-type"), Some(media_type::OCI_MANIFEST));
        assert_eq!(manifest.body, *self.peer.manifest.lock().unwrap());
        let config = self.get(&format!("/v2/kept/team/app/blobs/{}", Digest::of(CONFIG))).await;
        assert_eq!(config.body, CONFIG);
        let layer = self.layer().await;
        assert_eq!((layer.status, layer.body.len()), (200, self.peer.layer.len()));
        assert_eq!(layer.body, self.peer.layer);
    }

    /// Whether the store has the layer.
    async fn has_layer(&self) -> bool {
        let digest = Digest::of(&self.peer.layer);
        self.server.catalog.blobs().size(&digest).await.unwrap().is_some()
    }
}

#[tokio::test]
async fn an_image_is_fetched_once_and_served_when_the_upstream_is_gone() {
    for kind in [Kind::Disk, Kind::Memory] {
        let pair = Pair::with(Vice::None, Options::open(kind), Duration::ZERO).await;
        pair.pull().await;
        pair.pull().await;
        let digest = Digest::of(&pair.peer.manifest.lock().unwrap());
        assert_eq!(pair.asked("HEAD /v2/team/app/manifests/1"), 2);
        assert_eq!(pair.asked(&format!("GET /v2/team/app/manifests/{digest}")), 1);
        assert_eq!(pair.asked(&format!("GET {}", pair.layer_path("team/app"))), 1);
        pair.set(Vice::Down);
        pair.pull().await;
        let asked = pair.asked("HEAD /v2/team/app/manifests/1");
        // It is left alone for a while.
        pair.pull().await;
        assert_eq!(pair.asked("HEAD /v2/team/app/manifests/1"), asked);
        let other = pair.get("/v2/kept/team/app/manifests/2").await;
        assert_eq!(other.status, 502, "{}", String::from_utf8_lossy(&other.body));
    }
}

#[tokio::test]
async fn a_tag_is_not_asked_for_again_at_once() {
    let hour = Duration::from_secs(3600);
    let pair = Pair::with(Vice::None, Options::open(Kind::Disk), hour).await;
    pair.pull().await;
    pair.pull().await;
    assert_eq!(pair.asked("HEAD /v2/team/app/manifests/1"), 1);
}

#[tokio::test]
async fn a_tag_follows_the_upstream_and_goes_with_it() {
    let pair = Pair::start(Vice::None).await;
    pair.pull().await;
    let moved = manifest(&pair.peer.layer, "second");
    *pair.peer.manifest.lock().unwrap() = moved.clone();
    pair.pull().await;
    // Back to what is here: only asked for.
    *pair.peer.manifest.lock().unwrap() = manifest(&pair.peer.layer, "first");
    let gets = || {
        pair.peer
            .asked
            .lock()
            .unwrap()
            .iter()
            .filter(|(what, _)| what.starts_with("GET"))
            .map(|(_, n)| n)
            .sum::<usize>()
    };
    let before = gets();
    pair.pull().await;
    assert_eq!(gets(), before);
    pair.peer.tagged.store(false, Ordering::Relaxed);
    let gone = pair.get("/v2/kept/team/app/manifests/1").await;
    assert_eq!((gone.status, gone.code().as_str()), (404, "MANIFEST_UNKNOWN"));
    pair.set(Vice::Down);
    assert_ne!(pair.get("/v2/kept/team/app/manifests/1").await.status, 200);
    let by_digest = format!("/v2/kept/team/app/manifests/{}", Digest::of(&moved));
    assert_eq!(pair.get(&by_digest).await.status, 200);
}

#[tokio::test]
async fn clients_that_were_told_to_ask_us_name_the_upstream() {
    let pair = Pair::start(Vice::None).await;
    let ns = |path: &str| format!("{path}?ns={}", pair.host.replace(':', "%3A"));
    assert_eq!(pair.get(&ns("/v2/team/app/manifests/1")).await.status, 200);
    assert_eq!(pair.get(&ns(&pair.layer_path("team/app"))).await.body, pair.peer.layer);
    assert_eq!(pair.get("/v2/team/app/manifests/1").await.status, 404);
    assert_eq!(pair.get("/v2/team/app/manifests/1?ns=other.example").await.status, 404);
    assert_eq!(pair.get("/v2/kept/team/app/manifests/1").await.status, 200);
}

#[tokio::test]
async fn wrong_content_is_neither_kept_nor_given_out_to_its_end() {
    for vice in [Vice::WrongBytes, Vice::CutBody] {
        let pair = Pair::start(vice).await;
        let answer = pair.layer().await;
        assert!(answer.body.len() < pair.peer.layer.len(), "{vice:?}: {}", answer.body.len());
        assert!(!pair.has_layer().await);
        pair.set(Vice::None);
        pair.pull().await;
    }
    let pair = Pair::start(Vice::Endless).await;
    assert_eq!(pair.layer().await.status, 502);
    pair.set(Vice::NoLength);
    pair.pull().await;
    let pair = Pair::start(Vice::WrongManifest).await;
    let answer = pair.get("/v2/kept/team/app/manifests/1").await;
    assert_eq!(answer.status, 502, "{}", String::from_utf8_lossy(&answer.body));
    pair.set(Vice::None);
    pair.pull().await;
    // What is here goes before what is wrong.
    *pair.peer.manifest.lock().unwrap() = manifest(&pair.peer.layer, "second");
    pair.set(Vice::WrongManifest);
    let answer = pair.get("/v2/kept/team/app/manifests/1").await;
    assert_eq!((answer.status, answer.body), (200, manifest(&pair.peer.layer, "first").to_vec()));
}

#[tokio::test]
async fn an_upstream_that_is_asked_too_often_is_left_alone() {
    let pair = Pair::start(Vice::Limited).await;
    let refused = pair.get("/v2/kept/team/app/manifests/1").await;
    assert_eq!((refused.status, refused.code().as_str()), (429, "TOOMANYREQUESTS"));
    let pause: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((100..=120).contains(&pause), "{pause}");
    let asked = pair.asked("HEAD /v2/team/app/manifests/1");
    assert_eq!(pair.get("/v2/kept/team/app/manifests/1").await.status, 429);
    assert_eq!(pair.asked("HEAD /v2/team/app/manifests/1"), asked);

    let pair = Pair::start(Vice::None).await;
    pair.pull().await;
    pair.set(Vice::Limited);
    pair.pull().await;
    pair.pull().await;
    assert_eq!(pair.asked("HEAD /v2/team/app/manifests/1"), 2);
}

#[tokio::test]
async fn a_pause_that_was_asked_for_is_kept_for_blobs_too() {
    let pair = Pair::start(Vice::None).await;
    assert_eq!(pair.get("/v2/kept/team/app/manifests/1").await.status, 200);
    pair.set(Vice::Limited);
    let get = format!("GET {}", pair.layer_path("team/app"));
    for _ in 0..2 {
        let refused = pair.layer().await;
        assert_eq!((refused.status, refused.code().as_str()), (429, "TOOMANYREQUESTS"));
        assert!(refused.header("retry-after").is_some());
        assert_eq!(pair.asked(&get), 1);
    }
    let head = format!("HEAD {}", pair.layer_path("kept/team/app"));
    assert_eq!(send(pair.server.address, &head, &[], b"").await.status, 429);
    assert_eq!(pair.asked(&format!("HEAD {}", pair.layer_path("team/app"))), 0);
}

/// Stores a blob in a repository that is no copy, as a push does.
async fn push_blob(catalog: &store::Catalog, repository: &str, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    let mut upload = catalog.blobs().begin_upload(digest.algorithm()).await.unwrap();
    upload.write(Bytes::copy_from_slice(bytes)).await.unwrap();
    upload.commit(Some(&digest)).await.unwrap();
    let repository = repository.parse().unwrap();
    catalog.link_blob(&RegistryName::default(), &repository, &digest).await.unwrap();
    digest
}

/// An upstream that knows the digest of somebody's blob gets it neither for itself nor for its
/// clients.
#[tokio::test]
async fn an_upstream_that_names_what_it_does_not_have_opens_nothing() {
    let pair = Pair::start(Vice::None).await;
    let private = push_blob(&pair.server.catalog, "secret/app", b"private").await;
    *pair.peer.manifest.lock().unwrap() = manifest(b"private", "lie");
    assert_eq!(pair.get("/v2/kept/team/app/manifests/1").await.status, 200);
    let blob = format!("/v2/kept/team/app/blobs/{private}");
    for verb in ["GET", "HEAD"] {
        let answer = send(pair.server.address, &format!("{verb} {blob}"), &[], b"").await;
        assert_eq!(answer.status, 404, "{verb}");
    }
    let told = pair.get(&blob).await;
    assert!(String::from_utf8_lossy(&told.body).contains("does not exist on"), "{told:?}");
    let name = "kept/team/app".parse().unwrap();
    let size = pair.server.catalog.blob_size(&RegistryName::default(), &name, &private).await;
    assert_eq!(size.unwrap(), None);
}

/// Whoever may pull one copy gets that one, by each of its names, and no other repository.
#[tokio::test]
async fn permissions_are_for_the_full_name_of_a_copy() {
    let upstream = Upstream {
        host: "docker.io".to_owned(),
        prefix: "mirror".parse().unwrap(),
        tag_keep: Duration::ZERO,
    };
    let settings = PullThroughSettings { upstreams: vec![upstream], blob_size_max: BLOB_SIZE_MAX };
    let upstreams = Some((RemoteSettings::default(), settings));
    let server = Options { upstreams, ..Options::guarded(Kind::Memory) }.start().await;
    // What is here by digest is not asked for.
    let bytes = manifest(b"", "copy");
    let parsed = oci::Manifest::parse(&bytes, None).unwrap();
    let digest = Digest::of(&bytes);
    for repository in ["mirror/library/x", "mirror/library/y", "mirror/mirror/library/x"] {
        let new = store::NewManifest {
            digest: &digest,
            media_type: media_type::OCI_MANIFEST,
            bytes: bytes.clone(),
            manifest: &parsed,
        };
        let cause = store::Cause::Import { source: "test".to_owned() };
        let (registry, repository) = (RegistryName::default(), repository.parse().unwrap());
        server.catalog.put_copy(&registry, &repository, new, None, &cause).await.unwrap();
    }
    let own = push_blob(&server.catalog, "library/x", b"private").await;
    let bob = ("Authorization".to_owned(), "Basic Ym9iOmJvYi1zZWNyZXQ=".to_owned());
    let manifest = |name: &str, query: &str| format!("GET /v2/{name}/manifests/{digest}{query}");
    let allowed = [
        manifest("mirror/library/x", ""),
        manifest("mirror/x", ""),
        manifest("library/x", "?ns=docker.io"),
        manifest("x", "?ns=registry-1.docker.io"),
    ];
    let refused = [
        manifest("mirror/y", ""),
        manifest("y", "?ns=docker.io"),
        manifest("library/y", "?ns=docker.io"),
        manifest("mirror/library/x", "?ns=docker.io"),
        manifest("library/x", ""),
        manifest("library/x", "?ns=other.example"),
        format!("GET /v2/library/x/blobs/{own}"),
        "POST /v2/mirror/x/blobs/uploads/".to_owned(),
    ];
    // Clients make scopes of the name that was typed, or of that in a challenge.
    let challenge = send(server.address, &allowed[1], &[], b"").await;
    let challenge = challenge.header("www-authenticate").unwrap();
    assert!(challenge.contains("scope=\"repository:mirror/library/x:pull\""), "{challenge}");
    for scope in ["mirror/library/x", "mirror/x"] {
        let line = format!(
            "GET /oauth2/token?scope=repository:{scope}:pull&scope=repository:mirror/y:pull&\
             scope=repository:library/x:pull"
        );
        let token = send(server.address, &line, std::slice::from_ref(&bob), b"").await.json();
        let token = format!("Bearer {}", token["token"].as_str().unwrap());
        for credentials in [bob.clone(), ("Authorization".to_owned(), token)] {
            let ask = async |line: &str| {
                send(server.address, line, std::slice::from_ref(&credentials), b"").await.status
            };
            for line in &allowed {
                assert_eq!(ask(line).await, 200, "{line} with {credentials:?}");
            }
            for line in &refused {
                assert_eq!(ask(line).await, 403, "{line} with {credentials:?}");
            }
        }
    }
}

#[tokio::test]
async fn credentials_are_for_the_upstream() {
    let pair = Pair::start(Vice::NeedsToken).await;
    pair.pull().await;
    assert_eq!(pair.asked("GET /token"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_are_one_for_the_upstream() {
    let pair = Pair::start(Vice::None).await;
    futures_util::future::join_all((0..20).map(|_| pair.pull())).await;
    let digest = Digest::of(&pair.peer.manifest.lock().unwrap());
    assert_eq!(pair.asked(&format!("GET /v2/team/app/manifests/{digest}")), 1);
    assert_eq!(pair.asked(&format!("GET {}", pair.layer_path("team/app"))), 1);
    // A repository of the same upstream need not bring it again, but must have it there.
    let sister = pair.get(&pair.layer_path("kept/team/sister")).await;
    assert_eq!(sister.body, pair.peer.layer);
    assert_eq!(pair.asked(&format!("HEAD {}", pair.layer_path("team/sister"))), 1);
    assert_eq!(pair.asked(&format!("GET {}", pair.layer_path("team/sister"))), 0);
    assert_eq!(pair.get(&pair.layer_path("kept/team/stranger")).await.status, 404);
}

#[tokio::test]
async fn a_blob_is_given_out_while_it_comes() {
    let pair = Pair::start(Vice::Holds).await;
    let open = async || {
        let mut stream = tokio::net::TcpStream::connect(pair.server.address).await.unwrap();
        let path = pair.layer_path("kept/team/app");
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            pair.server.address
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    };
    let mut first = open().await;
    let mut bytes = vec![0; pair.peer.layer.len() / 8];
    tokio::time::timeout(PATIENCE, first.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert!(!pair.has_layer().await);
    // Another that comes late, and one that leaves.
    let mut second = open().await;
    tokio::time::timeout(PATIENCE, second.read_exact(&mut bytes)).await.unwrap().unwrap();
    drop(first);
    pair.peer.go_on.add_permits(1);
    tokio::time::timeout(PATIENCE, second.read_to_end(&mut bytes)).await.unwrap().unwrap();
    let answer = server::parse(&bytes);
    assert_eq!((answer.status, answer.body.len()), (200, pair.peer.layer.len()));
    assert_eq!(answer.body, pair.peer.layer);
    assert!(pair.has_layer().await);
    assert_eq!(pair.asked(&format!("GET {}", pair.layer_path("team/app"))), 1);
}

#[tokio::test]
async fn a_part_of_a_blob_that_is_not_here_is_served() {
    let pair = Pair::start(Vice::None).await;
    let range = [("Range".to_owned(), "bytes=1000000-1000009".to_owned())];
    let line = format!("GET {}", pair.layer_path("kept/team/app"));
    let part = send(pair.server.address, &line, &range, b"").await;
    assert_eq!((part.status, part.body), (206, pair.peer.layer[1_000_000..1_000_010].to_vec()));
    let head = send(pair.server.address, &line.replace("GET", "HEAD"), &[], b"").await;
    assert_eq!(head.header("content-length"), Some(&*pair.peer.layer.len().to_string()));
}

#[tokio::test]
async fn copies_take_no_pushes_and_follow_the_rules_of_this_registry() {
    let pair = Pair::start(Vice::None).await;
    for line in ["POST /v2/kept/team/app/blobs/uploads/", "PUT /v2/kept/team/app/manifests/1"] {
        let refused = send(pair.server.address, line, &[], b"{}").await;
        assert_eq!((refused.status, refused.code().as_str()), (405, "UNSUPPORTED"));
        let told = String::from_utf8_lossy(&refused.body).into_owned();
        assert!(told.contains("takes no pushes") && told.contains(&pair.host), "{told}");
    }
    let pair = Pair::with(Vice::None, Options::guarded(Kind::Disk), Duration::ZERO).await;
    assert_eq!(pair.get("/v2/kept/team/app/manifests/1").await.status, 401);
    assert_eq!(pair.layer().await.status, 401);
    assert!(pair.peer.asked.lock().unwrap().is_empty(), "nothing is fetched for them");
}

#[tokio::test]
async fn copies_that_nobody_pulls_go() {
    let pair = Pair::start(Vice::None).await;
    pair.pull().await;
    let catalog = &pair.server.catalog;
    assert_eq!(catalog.expire_copies(Duration::from_secs(60)).await.unwrap(), 0);
    tokio::time::sleep(Duration::from_millis(3)).await;
    assert_eq!(catalog.expire_copies(Duration::ZERO).await.unwrap(), 1);
    let registry = RegistryName::default();
    assert!(
        !catalog.repository_exists(&registry, &"kept/team/app".parse().unwrap()).await.unwrap()
    );
    let garbage = store::GcOptions { dry_run: false, grace: Duration::ZERO, cache_size_max: 0 };
    tokio::time::sleep(Duration::from_millis(3)).await;
    catalog.collect_garbage(&garbage).await.unwrap();
    assert!(!pair.has_layer().await);
    pair.pull().await;
}

#[tokio::test]
async fn what_is_damaged_is_fetched_again() {
    let pair = Pair::start(Vice::None).await;
    pair.pull().await;
    let name = "kept/team/app".parse().unwrap();
    let pull_through = pair.server.pull_through.as_ref().unwrap();
    let manifest = Digest::of(&pair.peer.manifest.lock().unwrap());
    for digest in [Digest::of(&pair.peer.layer), manifest] {
        let hex = digest.hex();
        let file = pair.server.folder.path().join("blobs/sha256").join(&hex[..2]).join(hex);
        let damage = |bytes: &mut Vec<u8>| bytes[1] ^= 1;
        let flip = || {
            let mut bytes = std::fs::read(&file).unwrap();
            damage(&mut bytes);
            std::fs::write(&file, bytes).unwrap();
        };
        let scrub = async || {
            pair.server.catalog.begin_scrub(None).await.unwrap();
            pair.server.catalog.scrub(0).await.unwrap();
            pair.server.catalog.lost_count().await.unwrap()
        };
        flip();
        assert_eq!(scrub().await, 1);
        // By whom pulls it, ...
        pair.pull().await;
        assert_eq!(scrub().await, 0);
        flip();
        assert_eq!(scrub().await, 1);
        // ... or before.
        pull_through.restore(&RegistryName::default(), &name, &digest).await;
        assert_eq!(pair.server.catalog.lost_count().await.unwrap(), 0);
        pair.set(Vice::Down);
        pair.pull().await;
        pair.set(Vice::None);
    }
}
