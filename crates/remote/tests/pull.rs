//! Pulling from honest, broken and lying registries.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use oci::{Descriptor, Digest, ImageManifest, Platform, Reference, media_type};
use remote::{Credentials, Remote, RemoteError, RemoteSettings, Upstream};
use store::{BlobStore, Catalog, MemoryStore};
use tokio::io::AsyncReadExt;

/// How a registry misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vice {
    None,
    WrongBytes,
    TooShort,
    Endless,
    Dripping,
    WrongManifest,
    BreaksOnce,
    BreaksOnceWithoutRanges,
    ErrorsOnce,
    HugeManifest,
    NeedsToken,
    NeedsBasic,
    NamesForeignRealm,
    LacksLayer,
}

struct Peer {
    vice: Vice,
    layer: Bytes,
    config: Bytes,
    manifest: Bytes,
    requests: AtomicUsize,
    blob_requests: AtomicUsize,
}

/// Larger than what a socket buffers, so that a break is seen in the middle.
const LAYER_SIZE: usize = 8 << 20;

impl Peer {
    fn new(vice: Vice) -> Self {
        let layer: Bytes = (0..LAYER_SIZE).map(|at| (at / 7) as u8).collect::<Vec<u8>>().into();
        let config = Bytes::from_static(br#"{"os":"linux","architecture":"amd64"}"#);
        let manifest = ImageManifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.to_owned()),
            artifact_type: None,
            config: Descriptor::of(media_type::OCI_CONFIG, &config),
            layers: vec![Descriptor::of(media_type::OCI_LAYER_TAR, &layer)],
            subject: None,
            annotations: BTreeMap::new(),
        };
        let manifest = serde_json::to_vec(&manifest).unwrap().into();
        let (requests, blob_requests) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { vice, layer, config, manifest, requests, blob_requests }
    }

    fn layer_digest(&self) -> Digest {
        Digest::of(&self.layer)
    }

    fn blob(&self, headers: &HeaderMap) -> Response {
        let attempt = self.blob_requests.fetch_add(1, Ordering::SeqCst);
        let range = headers.get("range").map(|value| {
            let text = value.to_str().unwrap();
            text.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().unwrap()
        });
        match self.vice {
            Vice::WrongBytes => vec![7; self.layer.len()].into_response(),
            Vice::TooShort => self.layer.slice(..1000).into_response(),
            Vice::Endless => Body::from_stream(futures_util::stream::repeat_with(|| {
                Ok::<_, std::io::Error>(Bytes::from_static(&[0; 65536]))
            }))
            .into_response(),
            Vice::Dripping => {
                let drops = futures_util::stream::unfold((), |()| async {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Some((Ok::<_, std::io::Error>(Bytes::from_static(b"x")), ()))
                });
                Body::from_stream(drops).into_response()
            }
            Vice::BreaksOnce | Vice::BreaksOnceWithoutRanges if attempt == 0 => {
                let half = self.layer.slice(..LAYER_SIZE / 2);
                let parts = [Ok(half), Err(std::io::Error::other("cable cut"))];
                Body::from_stream(futures_util::stream::iter(parts)).into_response()
            }
            Vice::BreaksOnce => {
                let rest = self.layer.slice(range.expect("a range after a break")..);
                (StatusCode::PARTIAL_CONTENT, rest).into_response()
            }
            _ => self.layer.clone().into_response(),
        }
    }
}

async fn answer(State(peer): State<Arc<Peer>>, request: Request) -> Response {
    let (path, headers) = (request.uri().path().to_owned(), request.headers().clone());
    let first = peer.requests.fetch_add(1, Ordering::SeqCst) == 0;
    let authorization = headers.get("authorization").map(|value| value.to_str().unwrap());
    let challenge = |text: String| (StatusCode::UNAUTHORIZED, [("www-authenticate", text)]);
    match peer.vice {
        Vice::NeedsToken if path == "/token" => {
            let query = request.uri().query().unwrap_or("");
            assert!(query.contains("scope=repository%3Ateam%2Fapp%3Apull"), "{query}");
            return match authorization {
                Some("Basic bWU6aHVudGVyMg==") => r#"{"token":"t0"}"#.into_response(),
                _ => StatusCode::UNAUTHORIZED.into_response(),
            };
        }
        Vice::NeedsToken if authorization != Some("Bearer t0") => {
            let host = headers["host"].to_str().unwrap();
            let text = format!(r#"Bearer realm="http://{host}/token",service="here""#);
            return challenge(text).into_response();
        }
        Vice::NeedsBasic if authorization != Some("Basic bWU6aHVudGVyMg==") => {
            return challenge("Basic realm=\"x\"".to_owned()).into_response();
        }
        Vice::NamesForeignRealm => {
            return challenge("Bearer realm=\"http://198.51.100.1/token\"".to_owned())
                .into_response();
        }
        Vice::ErrorsOnce if first => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
        _ => (),
    }
    let layer = format!("/v2/team/app/blobs/{}", peer.layer_digest());
    let config = format!("/v2/team/app/blobs/{}", Digest::of(&peer.config));
    let manifest_type = [("content-type", media_type::OCI_MANIFEST)];
    match path.as_str() {
        "/v2/team/app/manifests/1" if peer.vice == Vice::HugeManifest => {
            (manifest_type, vec![b' '; oci::MANIFEST_SIZE_MAX + 1]).into_response()
        }
        "/v2/team/app/manifests/1" => (manifest_type, peer.manifest.clone()).into_response(),
        path if path.starts_with("/v2/team/app/manifests/sha256:") => {
            let changed = peer.vice == Vice::WrongManifest;
            let extra = if changed { &b" "[..] } else { b"" };
            (manifest_type, [&peer.manifest[..], extra].concat()).into_response()
        }
        path if path == config => peer.config.clone().into_response(),
        path if path == layer && peer.vice != Vice::LacksLayer => peer.blob(&headers),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn start(vice: Vice) -> (Arc<Peer>, String) {
    let peer = Arc::new(Peer::new(vice));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let router = Router::new().fallback(answer).with_state(Arc::clone(&peer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (peer, host)
}

fn settings(host: &str, credentials: Option<Credentials>) -> RemoteSettings {
    let upstream = Upstream { credentials, ..Upstream::default() };
    RemoteSettings {
        upstreams: BTreeMap::from([(host.to_owned(), upstream)]),
        idle_timeout: Duration::from_secs(2),
        ..RemoteSettings::default()
    }
}

/// A registry, and a store for what comes from it.
struct Pair {
    peer: Arc<Peer>,
    host: String,
    store: Arc<MemoryStore>,
    catalog: Catalog,
}

impl Pair {
    async fn start(vice: Vice) -> Self {
        let (peer, host) = start(vice).await;
        let db = db::Db::in_memory().await.unwrap();
        let store = Arc::new(MemoryStore::open(db.clone()).await.unwrap());
        let catalog = Catalog::open(db, Arc::clone(&store) as Arc<dyn BlobStore>).await.unwrap();
        Self { peer, host, store, catalog }
    }

    async fn pull(
        &self,
        image: &str,
        credentials: Option<Credentials>,
    ) -> Result<remote::Pulled, RemoteError> {
        let image = image.replace("MANIFEST", Digest::of(&self.peer.manifest).as_str());
        let reference: Reference = format!("{}/{image}", self.host).parse().unwrap();
        let remote = Remote::new(settings(&self.host, credentials)).unwrap();
        let platform = Platform::new("linux", "amd64", None);
        let pulling = remote.pull(&reference, &platform, &self.catalog, &|_| ());
        tokio::time::timeout(Duration::from_secs(60), pulling).await.unwrap()
    }

    /// Stores the layer as another one's.
    async fn store_layer(&self) {
        let layer = &self.peer.layer;
        let mut upload = self.store.begin_upload(oci::Algorithm::Sha256).await.unwrap();
        upload.write(layer.clone()).await.unwrap();
        upload.commit(Some(&self.peer.layer_digest())).await.unwrap();
    }
}

struct Outcome {
    result: Result<remote::Pulled, RemoteError>,
    pair: Pair,
}

impl std::ops::Deref for Outcome {
    type Target = Pair;

    fn deref(&self) -> &Pair {
        &self.pair
    }
}

async fn pull_as(vice: Vice, image: &str, credentials: Option<Credentials>) -> Outcome {
    let pair = Pair::start(vice).await;
    Outcome { result: pair.pull(image, credentials).await, pair }
}

async fn pull(vice: Vice) -> Outcome {
    pull_as(vice, "team/app:1", None).await
}

impl Outcome {
    #[track_caller]
    fn succeeded(&self) {
        let pulled = self.result.as_ref().unwrap();
        assert_eq!(pulled.config, self.peer.config);
        assert_eq!(pulled.resolved.bytes, self.peer.manifest);
    }

    /// The layer as it was stored, if it was.
    async fn layer(&self) -> Option<Vec<u8>> {
        let reader = self.store.open(&self.peer.layer_digest(), 0).await.ok()?;
        let mut bytes = Vec::new();
        reader.into_async().read_to_end(&mut bytes).await.unwrap();
        Some(bytes)
    }

    async fn failed(&self, message: &str) {
        let error = self.result.as_ref().map(|_| ()).unwrap_err().to_string();
        let expected = message.replace("HOST", &self.host);
        assert!(error.starts_with(&expected), "{error}\nexpected: {expected}");
        assert!(!error.contains("hunter2"), "{error}");
        assert!(self.layer().await.is_none(), "a wrong layer was kept");
    }
}

#[tokio::test]
async fn an_image_comes_with_all_its_blobs() {
    let outcome = pull(Vice::None).await;
    outcome.succeeded();
    assert_eq!(outcome.layer().await.unwrap(), outcome.peer.layer);
    let expected = outcome.peer.layer.len() + outcome.peer.config.len();
    assert_eq!(outcome.result.unwrap().fetched, expected as u64);
}

#[tokio::test]
async fn a_blob_that_is_there_is_not_fetched() {
    let outcome = pull(Vice::None).await;
    assert_eq!(outcome.pull("team/app:1", None).await.unwrap().fetched, 0);
}

#[tokio::test]
async fn a_blob_of_somebody_else_is_used_only_when_the_registry_has_sent_it_too() {
    let pair = Pair::start(Vice::LacksLayer).await;
    pair.store_layer().await;
    let error = pair.pull("team/app:1", None).await.unwrap_err().to_string();
    assert!(error.contains("does not exist on"), "{error}");
    let pair = Pair::start(Vice::None).await;
    pair.store_layer().await;
    let fetched = pair.pull("team/app:1", None).await.unwrap().fetched;
    assert!(fetched > LAYER_SIZE as u64, "{fetched}");
    assert_eq!(pair.pull("team/app:1", None).await.unwrap().fetched, 0);
}

#[tokio::test]
async fn a_blob_that_is_not_whole_is_fetched_again() {
    let outcome = pull(Vice::None).await;
    let peer = &outcome.peer;
    let (layer, config) = (peer.layer_digest(), Digest::of(&peer.config));
    for (digest, damaged, size) in [
        (&layer, None, LAYER_SIZE),
        (&layer, Some(peer.layer.slice(1..)), LAYER_SIZE),
        (&config, None, peer.config.len()),
        (&config, Some(Bytes::from(vec![b' '; peer.config.len()])), peer.config.len()),
    ] {
        outcome.store.damage(digest, damaged);
        let again = outcome.pull("team/app:1", None).await.unwrap();
        assert_eq!(again.fetched, size as u64);
        assert_eq!(again.config, peer.config);
        assert!(outcome.store.verify(digest).await.unwrap());
    }
}

#[tokio::test]
async fn wrong_bytes_are_refused() {
    pull(Vice::WrongBytes).await.failed("`HOST` sent content with digest").await;
}

#[tokio::test]
async fn a_short_body_is_refused() {
    pull(Vice::TooShort).await.failed("`HOST` sent 1000 bytes for sha256:").await;
}

#[tokio::test]
async fn an_endless_body_is_cut_at_the_announced_size() {
    pull(Vice::Endless).await.failed("`HOST` sent").await;
}

#[tokio::test]
async fn a_dripping_body_is_given_up() {
    pull(Vice::Dripping).await.failed("`HOST` sent fewer than 1024 bytes a second").await;
}

#[tokio::test]
async fn a_manifest_must_match_the_digest_that_names_it() {
    pull_as(Vice::None, "team/app@MANIFEST", None).await.succeeded();
    pull_as(Vice::WrongManifest, "team/app@MANIFEST", None)
        .await
        .failed("`HOST` sent content with digest")
        .await;
}

#[tokio::test]
async fn a_huge_manifest_is_refused() {
    pull(Vice::HugeManifest)
        .await
        .failed("`HOST` sent a manifest of more than 4194304 bytes")
        .await;
}

#[tokio::test]
async fn a_broken_connection_is_taken_up_where_it_stopped() {
    pull(Vice::BreaksOnce).await.succeeded();
}

#[tokio::test]
async fn a_peer_without_ranges_may_start_over() {
    pull(Vice::BreaksOnceWithoutRanges).await.succeeded();
}

#[tokio::test]
async fn a_passing_error_is_tried_again() {
    pull(Vice::ErrorsOnce).await.succeeded();
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let outcome = pull_as(Vice::None, "team/none:1", None).await;
    outcome.failed("`HOST/team/none:1` does not exist on `HOST`").await;
}

#[tokio::test]
async fn credentials_are_exchanged_for_a_token() {
    let credentials =
        || Some(Credentials { username: "me".to_owned(), password: "hunter2".to_owned() });
    pull_as(Vice::NeedsToken, "team/app:1", credentials()).await.succeeded();
    pull_as(Vice::NeedsBasic, "team/app:1", credentials()).await.succeeded();
    let outcome = pull(Vice::NeedsToken).await;
    outcome.failed("`HOST` refuses access to `HOST/team/app:1`").await;
    let hint = outcome.result.unwrap_err().hint().unwrap();
    assert!(hint.starts_with("give credentials for it in the settings"), "{hint}");
    let outcome = pull_as(Vice::NamesForeignRealm, "team/app:1", credentials()).await;
    outcome.failed("`HOST` asks for a token from `http://198.51.100.1/token`").await;
}

#[tokio::test]
async fn an_unreachable_host_is_named_with_a_hint() {
    // Bound and dropped: nobody listens there now.
    let host = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let remote = Remote::new(settings(&host, None)).unwrap();
    let reference: Reference = format!("{host}/app").parse().unwrap();
    let platform = Platform::new("linux", "amd64", None);
    let error = remote.resolve(&reference, &platform).await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("could not reach `{host}`")), "{error}");
    assert!(error.hint().unwrap().contains("name and port"), "{error}");
}
