//! Pushing to honest, broken and lying registries.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use oci::{
    Algorithm, Descriptor, Digest, Hasher, ImageIndex, ImageManifest, Platform, Reference,
    media_type,
};
use remote::{
    Credentials, ManifestToPush, Push, Pushed, Reach, Remote, RemoteError, RemoteSettings, Upstream,
};
use store::{BlobReader, BlobStore, Catalog, MemoryStore, NamedUpload};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// How a registry behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    None,
    AbsoluteLocation,
    /// On another server, which must get no credentials.
    LocationElsewhere,
    NoLocation,
    InsecureLocation,
    RedirectsUploads,
    NeedsToken,
    NeedsBasic,
    /// Its tokens stop being valid when the first upload comes.
    TokenExpires,
    /// The first upload is answered so.
    FailsOnce(u16),
    /// The first upload is taken and answered with an error.
    LosesAnswer,
    /// The first manifest is answered with so many seconds to wait.
    AsksForPause(u64),
    RefusesUploads(u16, &'static str),
    RefusesBlobs(u16, &'static str),
    RefusesManifests(u16, &'static str),
    WrongDigest,
    Sha512Digest,
    TakesNothing,
}

#[derive(Default)]
struct Contents {
    /// Sizes.
    blobs: BTreeMap<String, u64>,
    manifests: BTreeMap<String, (String, Bytes)>,
    /// Method and path, without `/v2/team/app`.
    requests: Vec<String>,
    /// What was sent as `Authorization` to another server.
    leaked: Vec<String>,
    tokens: usize,
    /// Those of them that are valid, as `Authorization` values.
    valid: Vec<String>,
    uploads: usize,
    has_read_one: bool,
    has_paused: bool,
}

/// A registry in memory.
struct Registry {
    habit: Habit,
    host: String,
    /// The other server that it uses.
    storage: String,
    contents: Mutex<Contents>,
    /// Bytes that a store gave out, and the most that was ever under way.
    given: Arc<AtomicU64>,
    ahead: AtomicU64,
    upload_began: Notify,
    upload_ended: Arc<Notify>,
}

/// Tells that an upload is over, however.
struct Ended(Arc<Notify>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Registry {
    async fn start(habit: Habit) -> Arc<Self> {
        let (own, other) = (bind().await, bind().await);
        let registry = Arc::new(Self {
            habit,
            host: own.local_addr().unwrap().to_string(),
            storage: other.local_addr().unwrap().to_string(),
            contents: Mutex::default(),
            given: Arc::default(),
            ahead: AtomicU64::new(0),
            upload_began: Notify::new(),
            upload_ended: Arc::default(),
        });
        for (listener, router) in [
            (own, Router::new().fallback(answer)),
            (other, Router::new().fallback(answer_elsewhere)),
        ] {
            let router = router.with_state(Arc::clone(&registry));
            tokio::spawn(async move { axum::serve(listener, router).await });
        }
        registry
    }

    fn with<T>(&self, work: impl FnOnce(&mut Contents) -> T) -> T {
        work(&mut self.contents.lock().unwrap())
    }

    /// How many requests begin so.
    fn count(&self, begin: &str) -> usize {
        self.with(|contents| contents.requests.iter().filter(|one| one.starts_with(begin)).count())
    }

    /// The answer to somebody who is not signed in.
    fn challenge(&self, authorization: Option<&str>, is_upload: bool) -> Option<Response> {
        let text = match self.habit {
            Habit::NeedsBasic if authorization != Some(BASIC) => "Basic realm=\"x\"".to_owned(),
            Habit::NeedsToken | Habit::TokenExpires => {
                let valid = self.with(|contents| {
                    if is_upload && contents.tokens == 1 && self.habit == Habit::TokenExpires {
                        contents.valid.clear();
                    }
                    contents.valid.iter().any(|token| authorization == Some(token))
                });
                if valid {
                    return None;
                }
                format!(r#"Bearer realm="http://{}/token",service="here""#, self.host)
            }
            _ => return None,
        };
        Some((StatusCode::UNAUTHORIZED, [("www-authenticate", text)]).into_response())
    }

    fn hand_out_token(&self, query: &str, authorization: Option<&str>) -> Response {
        assert!(query.contains("scope=repository%3Ateam%2Fapp%3Apull%2Cpush"), "{query}");
        if authorization != Some(BASIC) {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        self.with(|contents| {
            contents.tokens += 1;
            contents.valid.push(format!("Bearer t{}", contents.tokens));
            format!(r#"{{"token":"t{}"}}"#, contents.tokens).into_response()
        })
    }

    fn begin_upload(&self) -> Response {
        if let Habit::RefusesUploads(status, body) = self.habit {
            return refusal(status, body);
        }
        let number = self.with(|contents| {
            contents.uploads += 1;
            contents.uploads
        });
        let path = format!("/v2/team/app/blobs/uploads/{number}?state=a%2Fb+c");
        let location = match self.habit {
            Habit::NoLocation => return StatusCode::ACCEPTED.into_response(),
            Habit::InsecureLocation => "http://198.51.100.1/put?signature=s3cret".to_owned(),
            Habit::AbsoluteLocation => format!("http://{}{path}", self.host),
            Habit::LocationElsewhere => format!("http://{}{path}", self.storage),
            _ => path,
        };
        (StatusCode::ACCEPTED, [("location", location)]).into_response()
    }

    async fn take_blob(&self, request: Request) -> Response {
        if self.habit == Habit::TakesNothing {
            std::future::pending::<()>().await;
        }
        let query = request.uri().query().unwrap_or_default().to_owned();
        let length: u64 = request.headers()["content-length"].to_str().unwrap().parse().unwrap();
        let Some((size, actual)) = self.read(request).await else {
            return StatusCode::BAD_REQUEST.into_response();
        };
        assert_eq!(size, length);
        let is_first = self.with(|contents| !std::mem::replace(&mut contents.has_read_one, true));
        match self.habit {
            Habit::FailsOnce(status) if is_first => return refusal(status, ""),
            Habit::RefusesBlobs(status, body) => return refusal(status, body),
            Habit::RedirectsUploads if !query.starts_with("moved") => {
                let location = format!("http://{}/put?moved&{query}", self.storage);
                return (StatusCode::TEMPORARY_REDIRECT, [("location", location)]).into_response();
            }
            _ => (),
        }
        let query = query.trim_start_matches("moved&");
        let digest = query.strip_prefix("state=a%2Fb+c&digest=").expect("the query is kept");
        let digest: Digest = digest.replace("%3A", ":").parse().unwrap();
        if actual != digest {
            let body = r#"{"errors":[{"code":"DIGEST_INVALID","message":"digest differs"}]}"#;
            return refusal(400, body);
        }
        self.with(|contents| contents.blobs.insert(digest.to_string(), size));
        match self.habit {
            Habit::LosesAnswer if is_first => StatusCode::BAD_GATEWAY.into_response(),
            _ => StatusCode::CREATED.into_response(),
        }
    }

    /// Reads a blob without keeping it, and watches how much is under way.
    async fn read(&self, request: Request) -> Option<(u64, Digest)> {
        let _ended = Ended(Arc::clone(&self.upload_ended));
        let mut body = request.into_body().into_data_stream();
        let (mut hasher, mut size) = (Hasher::sha256(), 0);
        while let Some(chunk) = body.next().await {
            let chunk = chunk.ok()?;
            hasher.update(&chunk);
            size += chunk.len() as u64;
            let given = self.given.load(Ordering::SeqCst);
            self.ahead.fetch_max(given.saturating_sub(size), Ordering::SeqCst);
            self.upload_began.notify_one();
        }
        Some((size, hasher.finish()))
    }

    async fn take_manifest(&self, name: &str, request: Request) -> Response {
        if let Habit::RefusesManifests(status, body) = self.habit {
            return refusal(status, body);
        }
        if let Habit::AsksForPause(seconds) = self.habit
            && !self.with(|contents| std::mem::replace(&mut contents.has_paused, true))
        {
            let pause = [("retry-after", seconds.to_string())];
            return (StatusCode::TOO_MANY_REQUESTS, pause).into_response();
        }
        let kind = request.headers()["content-type"].to_str().unwrap().to_owned();
        let mut bytes = Vec::new();
        let mut body = request.into_body().into_data_stream();
        while let Some(chunk) = body.next().await {
            bytes.extend_from_slice(&chunk.unwrap());
        }
        let digest = match self.habit {
            Habit::WrongDigest => Digest::of(b"something else"),
            Habit::Sha512Digest => Digest::with(Algorithm::Sha512, &bytes),
            _ => Digest::of(&bytes),
        };
        let needs = oci::Manifest::parse(&bytes, Some(&kind)).unwrap().references();
        self.with(|contents| {
            for needed in needs.blobs {
                assert_eq!(contents.blobs.get(needed.digest.as_str()), Some(&needed.size));
            }
            for needed in needs.manifests {
                assert!(contents.manifests.contains_key(needed.digest.as_str()));
            }
            let own = Digest::of(&bytes).to_string();
            let kept = (kind, Bytes::from(bytes));
            contents.manifests.insert(own, kept.clone());
            contents.manifests.insert(name.to_owned(), kept);
        });
        (StatusCode::CREATED, [("docker-content-digest", digest.to_string())]).into_response()
    }
}

const BASIC: &str = "Basic bWU6aHVudGVyMg==";

fn credentials() -> Option<Credentials> {
    Some(Credentials { username: "me".to_owned(), password: "hunter2".to_owned() })
}

async fn bind() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

fn refusal(status: u16, body: &'static str) -> Response {
    (StatusCode::from_u16(status).unwrap(), body).into_response()
}

fn status(found: bool) -> Response {
    if found { StatusCode::OK } else { StatusCode::NOT_FOUND }.into_response()
}

async fn answer(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    let (method, path) = (request.method().as_str(), request.uri().path().to_owned());
    let authorization = request.headers().get("authorization");
    let authorization = authorization.map(|value| value.to_str().unwrap());
    if path == "/token" {
        return registry.hand_out_token(request.uri().query().unwrap(), authorization);
    }
    let path = path.strip_prefix("/v2/team/app/").expect("the repository").to_owned();
    registry.with(|contents| contents.requests.push(format!("{method} {path}")));
    let is_upload = method == "PUT" && path.starts_with("blobs/uploads/");
    if let Some(challenge) = registry.challenge(authorization, is_upload) {
        return challenge;
    }
    match (method, path.split_once('/').unwrap()) {
        ("HEAD", ("blobs", digest)) => {
            status(registry.with(|contents| contents.blobs.contains_key(digest)))
        }
        ("HEAD", ("manifests", name)) => {
            status(registry.with(|contents| contents.manifests.contains_key(name)))
        }
        ("POST", ("blobs", "uploads/")) => registry.begin_upload(),
        ("PUT", ("blobs", _)) => registry.take_blob(request).await,
        ("PUT", ("manifests", name)) => registry.take_manifest(name, request).await,
        _ => StatusCode::METHOD_NOT_ALLOWED.into_response(),
    }
}

/// The server that a registry uses for its uploads.
async fn answer_elsewhere(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    assert_eq!(request.method(), "PUT");
    registry.with(|contents| {
        contents.requests.push("PUT elsewhere".to_owned());
        let sent = request.headers().get_all("authorization").iter();
        contents.leaked.extend(sent.map(|value| value.to_str().unwrap().to_owned()));
    });
    registry.take_blob(request).await
}

fn layer(fill: u8) -> Bytes {
    (0..3 << 20).map(|at| (at / 7) as u8 ^ fill).collect::<Vec<u8>>().into()
}

/// A manifest, and its config and layers.
fn image(architecture: &str, layers: &[Bytes]) -> (ManifestToPush, Vec<Bytes>) {
    let config = format!(r#"{{"os":"linux","architecture":"{architecture}"}}"#);
    let config = Bytes::from(config);
    let manifest = ImageManifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: Descriptor::of(media_type::OCI_CONFIG, &config),
        layers: layers.iter().map(|l| Descriptor::of(media_type::OCI_LAYER_TAR, l)).collect(),
        subject: None,
        annotations: BTreeMap::new(),
    };
    let blobs = std::iter::once(&manifest.config).chain(&manifest.layers).cloned().collect();
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let contents = std::iter::once(config).chain(layers.iter().cloned()).collect();
    (to_push(media_type::OCI_MANIFEST, bytes, blobs), contents)
}

fn to_push(media_type: &str, bytes: Vec<u8>, blobs: Vec<Descriptor>) -> ManifestToPush {
    let digest = Digest::of(&bytes);
    ManifestToPush { media_type: media_type.to_owned(), bytes: bytes.into(), digest, blobs }
}

/// An index of two platforms that share a layer.
fn two_platforms() -> (Vec<ManifestToPush>, Vec<Bytes>) {
    let (first, mut contents) = image("amd64", &[layer(1), layer(2)]);
    let (second, more) = image("arm64", &[layer(1), layer(3)]);
    contents.extend(more);
    let described = [(&first, "amd64"), (&second, "arm64")].map(|(manifest, architecture)| {
        let mut descriptor = Descriptor::of(media_type::OCI_MANIFEST, &manifest.bytes);
        descriptor.platform = Some(Platform::new("linux", architecture, None));
        descriptor
    });
    let index = ImageIndex {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.to_owned()),
        artifact_type: None,
        manifests: described.to_vec(),
        subject: None,
        annotations: BTreeMap::new(),
    };
    let index = to_push(media_type::OCI_INDEX, serde_json::to_vec(&index).unwrap(), Vec::new());
    (vec![first, second, index], contents)
}

/// A store with blobs in it.
async fn store_of(contents: &[Bytes]) -> (Arc<MemoryStore>, Catalog) {
    let db = db::Db::in_memory().await.unwrap();
    let store = Arc::new(MemoryStore::open(db.clone()).await.unwrap());
    for bytes in contents {
        let mut upload = store.begin_upload(Algorithm::Sha256).await.unwrap();
        upload.write(bytes.clone()).await.unwrap();
        upload.commit(None).await.unwrap();
    }
    let catalog = Catalog::open(db, Arc::clone(&store) as Arc<dyn BlobStore>).await.unwrap();
    (store, catalog)
}

fn remote(host: &str, credentials: Option<Credentials>) -> Remote {
    let idle_timeout = Duration::from_secs(1);
    let settings = RemoteSettings { idle_timeout, ..RemoteSettings::default() };
    let remote = Remote::new(settings).unwrap();
    match credentials {
        Some(credentials) => remote.with_credentials(host, credentials),
        None => remote,
    }
}

fn runs_on_any_thread(_: &impl Send) {}

/// A registry, and a store with an image for it.
struct Pair {
    registry: Arc<Registry>,
    manifests: Vec<ManifestToPush>,
    store: Arc<MemoryStore>,
    catalog: Catalog,
    told: AtomicU64,
}

impl Pair {
    async fn start(habit: Habit) -> Self {
        let (manifest, contents) = image("amd64", &[layer(1)]);
        Self::with(habit, vec![manifest], &contents).await
    }

    async fn with(habit: Habit, manifests: Vec<ManifestToPush>, contents: &[Bytes]) -> Self {
        let registry = Registry::start(habit).await;
        let (store, catalog) = store_of(contents).await;
        Self { registry, manifests, store, catalog, told: AtomicU64::new(0) }
    }

    async fn push_as(
        &self,
        host: &str,
        name: &str,
        credentials: Option<Credentials>,
    ) -> Result<Pushed, RemoteError> {
        let reference: Reference = format!("{host}/{name}").parse().unwrap();
        let push = Push { reference: &reference, manifests: &self.manifests };
        let remote = remote(host, credentials);
        let progress = |bytes| {
            self.told.fetch_add(bytes, Ordering::SeqCst);
        };
        let pushing = remote.push(&push, &self.catalog, &progress);
        runs_on_any_thread(&pushing);
        tokio::time::timeout(Duration::from_secs(60), pushing).await.unwrap()
    }

    async fn push(&self) -> Result<Pushed, RemoteError> {
        self.push_as(&self.registry.host, "team/app:1", None).await
    }

    /// What all blobs have together.
    fn size(&self) -> u64 {
        let all = self.manifests.iter().flat_map(|manifest| &manifest.blobs);
        all.map(|blob| (&blob.digest, blob.size)).collect::<BTreeMap<_, _>>().values().sum()
    }

    #[track_caller]
    fn is_there(&self, pushed: &Pushed) {
        let last = self.manifests.last().unwrap();
        assert_eq!(pushed.digest, last.digest);
        self.registry.with(|contents| {
            let kept = (last.media_type.clone(), last.bytes.clone());
            assert_eq!(contents.manifests["1"], kept);
            assert_eq!(contents.leaked, Vec::<String>::new());
        });
    }

    #[track_caller]
    fn has_told_all(&self) {
        assert_eq!(self.told.load(Ordering::SeqCst), self.size());
    }
}

/// Pushes a simple image, which must succeed.
async fn pushed(habit: Habit, credentials: Option<Credentials>) -> Pair {
    let pair = Pair::start(habit).await;
    let pushed = pair.push_as(&pair.registry.host, "team/app:1", credentials).await.unwrap();
    pair.is_there(&pushed);
    assert_eq!(pushed.uploaded, pair.size());
    pair.has_told_all();
    pair
}

/// Pushes a simple image, which must fail so.
async fn refused(habit: Habit, credentials: Option<Credentials>, message: &str) -> RemoteError {
    let pair = Pair::start(habit).await;
    let error = pair.push_as(&pair.registry.host, "team/app:1", credentials).await.unwrap_err();
    let image = format!("{}/team/app:1", pair.registry.host);
    let expected = message.replace("IMAGE", &image).replace("HOST", &pair.registry.host);
    assert!(error.to_string().starts_with(&expected), "{error}\nexpected: {expected}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    assert!(pair.registry.with(|contents| contents.manifests.is_empty()), "the tag has moved");
    error
}

#[tokio::test]
async fn an_index_goes_with_its_platforms_and_each_blob_once() {
    let (manifests, contents) = two_platforms();
    let pair = Pair::with(Habit::None, manifests, &contents).await;
    let sent = pair.push().await.unwrap();
    pair.is_there(&sent);
    assert_eq!((sent.uploaded, sent.existing), (pair.size(), 0));
    pair.has_told_all();
    // Two configs, three layers, of which one is in both.
    assert_eq!(pair.registry.count("PUT blobs/uploads/"), 5);
    assert_eq!(pair.registry.count("PUT manifests/"), 3);
    // Again, and under another name.
    for (name, manifests) in [("team/app:1", 4), ("team/app:2", 5)] {
        let again = pair.push_as(&pair.registry.host, name, None).await.unwrap();
        assert_eq!((again.uploaded, again.existing), (0, 5));
        assert_eq!(pair.registry.count("PUT blobs/uploads/"), 5);
        assert_eq!(pair.registry.count("PUT manifests/"), manifests);
    }
    pair.has_told_all();
}

#[tokio::test]
async fn a_reference_names_a_tag_or_latest_or_the_digest() {
    let pair = Pair::start(Habit::None).await;
    let digest = pair.manifests[0].digest.clone();
    for (name, kept) in [
        ("team/app".to_owned(), "latest"),
        (format!("team/app@{digest}"), digest.as_str()),
        (format!("team/app:7@{digest}"), "7"),
    ] {
        let sent = pair.push_as(&pair.registry.host, &name, None).await.unwrap();
        assert_eq!(sent.digest, digest);
        assert!(pair.registry.with(|contents| contents.manifests.contains_key(kept)), "{name}");
    }
    let other = format!("team/app@{}", Digest::of(b"other"));
    let error = pair.push_as(&pair.registry.host, &other, None).await.unwrap_err().to_string();
    assert!(error.contains(&format!("cannot be pushed: it is {digest}, not sha256:")), "{error}");
}

#[tokio::test]
async fn what_makes_no_image_is_refused_before_anything_is_sent() {
    let (manifest, contents) = image("amd64", &[layer(1)]);
    let mut damaged = manifest.clone();
    damaged.bytes = Bytes::from_static(b"{}");
    let mut two_sizes = manifest.clone();
    two_sizes.blobs.push(Descriptor { size: 1, ..manifest.blobs[0].clone() });
    let huge = to_push(media_type::OCI_MANIFEST, vec![b' '; oci::MANIFEST_SIZE_MAX + 1], vec![]);
    for (manifests, reason) in [
        (vec![], "it has no manifest"),
        (vec![manifest; 1001], "it has more than 1000 manifests"),
        (vec![damaged], "has other bytes"),
        (vec![two_sizes], "it names two sizes of blob sha256:"),
        (vec![huge], "has more than 4194304 bytes"),
    ] {
        let pair = Pair::with(Habit::None, manifests, &contents).await;
        let error = pair.push().await.unwrap_err().to_string();
        assert!(error.contains("cannot be pushed: ") && error.contains(reason), "{error}");
        assert_eq!(pair.registry.count(""), 0);
    }
}

#[tokio::test]
async fn foreign_layers_stay_where_they_are() {
    let (mut manifest, contents) = image("amd64", &[]);
    let kind = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let mut foreign = Descriptor::of(kind, b"not in the store");
    foreign.urls.push("https://layers.example/1".to_owned());
    manifest.blobs.push(foreign);
    let pair = Pair::with(Habit::None, vec![manifest], &contents).await;
    pair.is_there(&pair.push().await.unwrap());
    assert_eq!(pair.registry.count("HEAD blobs/"), 1);
}

#[tokio::test]
async fn uploads_go_where_the_registry_says() {
    let pair = pushed(Habit::AbsoluteLocation, None).await;
    assert_eq!(pair.registry.count("PUT blobs/uploads/"), 2);
    for habit in [Habit::LocationElsewhere, Habit::RedirectsUploads] {
        let pair = pushed(habit, None).await;
        assert_eq!(pair.registry.count("PUT elsewhere"), 2, "{habit:?}");
    }
    let message = "`HOST` does not tell where to upload `IMAGE`: its answer has no `Location`";
    refused(Habit::NoLocation, None, message).await;
}

#[tokio::test]
async fn uploads_go_nowhere_that_users_may_not_reach() {
    for habit in [Habit::LocationElsewhere, Habit::RedirectsUploads] {
        let pair = Pair::start(habit).await;
        let (host, storage) = (&pair.registry.host, &pair.registry.storage);
        let named = Upstream { anywhere: true, ..Upstream::default() };
        let settings = RemoteSettings { reach: Some(Reach::default()), ..Default::default() };
        let remote = Remote::new(settings).unwrap().with_upstreams([(host.clone(), named)]);
        let reference: Reference = format!("{host}/team/app:1").parse().unwrap();
        let push = Push { reference: &reference, manifests: &pair.manifests };
        let error = remote.push(&push, &pair.catalog, &|_| ()).await.unwrap_err();
        let expected = format!("`{host}` sends on to `{storage}`, a loopback address");
        assert!(error.to_string().starts_with(&expected), "{error}");
        assert_eq!(pair.registry.count("PUT elsewhere"), 0);
    }
}

#[tokio::test]
async fn an_upload_in_the_clear_is_refused_without_telling_its_signature() {
    let message = "`HOST` does not tell where to upload `IMAGE`: `http://198.51.100.1` is not an";
    let error = refused(Habit::InsecureLocation, None, message).await;
    assert!(!error.to_string().contains("s3cret"), "{error}");
}

#[tokio::test]
async fn credentials_are_exchanged_for_a_token_that_may_push() {
    pushed(Habit::NeedsBasic, credentials()).await;
    let pair = pushed(Habit::NeedsToken, credentials()).await;
    // Blobs go at the same time, and each may have asked.
    assert!((1..=2).contains(&pair.registry.with(|contents| contents.tokens)));
    let message = "`HOST` refuses access to `IMAGE`";
    let error = refused(Habit::NeedsToken, None, message).await;
    assert!(error.hint().unwrap().starts_with("give credentials for it in the settings"));
    let wrong = Credentials { username: "me".to_owned(), password: "wrong".to_owned() };
    let error = refused(Habit::NeedsToken, Some(wrong), message).await;
    assert_eq!(error.hint().unwrap(), "check that these credentials may push it");
}

#[tokio::test]
async fn a_token_that_expires_before_an_upload_is_replaced() {
    let (manifest, contents) = image("amd64", &[]);
    let pair = Pair::with(Habit::TokenExpires, vec![manifest], &contents).await;
    let host = &pair.registry.host;
    let sent = pair.push_as(host, "team/app:1", credentials()).await.unwrap();
    pair.is_there(&sent);
    assert_eq!(pair.registry.with(|contents| contents.tokens), 2);
    // The upload itself did not begin again.
    assert_eq!(pair.registry.with(|contents| contents.uploads), 1);
    assert_eq!(pair.registry.count("PUT blobs/uploads/1"), 2);
    pair.has_told_all();
}

#[tokio::test]
async fn passing_errors_begin_an_upload_again() {
    for status in [500, 503, 404, 429] {
        let pair = pushed(Habit::FailsOnce(status), None).await;
        assert_eq!(pair.registry.count("POST"), 3, "{status}");
    }
}

#[tokio::test]
async fn a_blob_whose_answer_got_lost_is_not_sent_again() {
    let pair = pushed(Habit::LosesAnswer, None).await;
    assert_eq!(pair.registry.count("POST"), 2);
}

/// Passes connections on to a registry, and cuts the first that sends more than a megabyte.
async fn cutting_proxy(registry: SocketAddr) -> (String, Arc<AtomicBool>) {
    let (listener, has_cut) = (bind().await, Arc::new(AtomicBool::new(false)));
    let (host, cut) = (listener.local_addr().unwrap().to_string(), Arc::clone(&has_cut));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let cut = Arc::clone(&cut);
            tokio::spawn(async move {
                let server = TcpStream::connect(registry).await.unwrap();
                let (from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let mut beginning = from_client.take(1 << 20);
                let back = tokio::io::copy(&mut from_server, &mut to_client);
                let forth = async {
                    tokio::io::copy(&mut beginning, &mut to_server).await.unwrap();
                    if beginning.limit() > 0 || cut.swap(true, Ordering::SeqCst) {
                        let mut rest = beginning.into_inner();
                        let _ = tokio::io::copy(&mut rest, &mut to_server).await;
                        let _ = to_server.shutdown().await;
                    }
                };
                tokio::select! { _ = back => (), () = forth => () }
            });
        }
    });
    (host, has_cut)
}

#[tokio::test]
async fn a_connection_that_breaks_in_a_blob_begins_it_again() {
    let pair = Pair::start(Habit::None).await;
    let (host, has_cut) = cutting_proxy(pair.registry.host.parse().unwrap()).await;
    let sent = pair.push_as(&host, "team/app:1", None).await.unwrap();
    assert!(has_cut.load(Ordering::SeqCst));
    pair.is_there(&sent);
    assert_eq!(pair.registry.with(|contents| contents.uploads), 3);
    pair.has_told_all();
}

#[tokio::test]
async fn what_is_refused_is_not_tried_again() {
    let invalid = r#"{"errors":[{"code":"MANIFEST_INVALID","message":"no\u001b layer of it"}]}"#;
    for (habit, request) in [
        (Habit::RefusesUploads(400, ""), "POST"),
        (Habit::RefusesBlobs(400, ""), "PUT blobs/"),
        (Habit::RefusesManifests(400, invalid), "PUT manifests/"),
    ] {
        let (manifest, contents) = image("amd64", &[]);
        let pair = Pair::with(habit, vec![manifest], &contents).await;
        pair.push().await.unwrap_err();
        assert_eq!(pair.registry.count(request), 1, "{habit:?}");
    }
    let message = "`HOST` does not take `IMAGE`: no layer of it";
    refused(Habit::RefusesManifests(400, invalid), None, message).await;
}

#[tokio::test]
async fn a_refusal_says_what_can_be_done() {
    let quota = r#"{"errors":[{"code":"DENIED","message":"adding 3 MiB will exceed the limit"}]}"#;
    let unknown = r#"{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known"}]}"#;
    for (habit, message, hint) in [
        (Habit::RefusesUploads(403, ""), "`HOST` refuses access to `IMAGE`", "give credentials"),
        (Habit::RefusesUploads(403, quota), "`HOST` does not take `IMAGE`: adding 3", "make room"),
        (Habit::RefusesBlobs(507, ""), "`HOST` does not take `IMAGE`: its answer is", "make room"),
        (Habit::RefusesUploads(404, unknown), "`HOST` has no repository for `IMAGE`", "check"),
        (Habit::RefusesBlobs(413, ""), "`HOST` does not take `IMAGE`: ", "`127.0.0.1:"),
    ] {
        let error = refused(habit, None, message).await;
        assert!(error.hint().unwrap().starts_with(hint), "{habit:?}: {:?}", error.hint());
    }
}

#[tokio::test]
async fn a_short_pause_is_made_and_a_long_one_told() {
    let started = Instant::now();
    pushed(Habit::AsksForPause(1), None).await;
    assert!(started.elapsed() >= Duration::from_secs(1));
    let pair = Pair::start(Habit::AsksForPause(600)).await;
    let error = pair.push().await.unwrap_err().to_string();
    assert!(error.contains("was asked too often"), "{error}");
    assert_eq!(pair.registry.count("PUT manifests/"), 1);
}

#[tokio::test]
async fn the_digest_that_a_registry_answers_is_compared() {
    let wrong = Digest::of(b"something else");
    let pair = Pair::start(Habit::WrongDigest).await;
    let error = pair.push().await.unwrap_err().to_string();
    assert!(error.contains(&format!(" as {wrong}, but what was sent is sha256:")), "{error}");
    pushed(Habit::Sha512Digest, None).await;
}

#[tokio::test]
async fn a_blob_that_the_store_lacks_or_has_damaged_is_named() {
    let digest = Digest::of(&layer(1));
    for (damaged, message) in [
        (Some(layer(2)), format!("blob {digest} is damaged in the store")),
        (None, format!("blob {digest} not found")),
    ] {
        let pair = Pair::start(Habit::None).await;
        pair.store.damage(&digest, damaged);
        let error = pair.push().await.unwrap_err().to_string();
        assert!(error.contains(&message), "{error}");
        assert_eq!(pair.registry.count("PUT manifests/"), 0);
    }
}

#[tokio::test]
async fn a_registry_that_takes_nothing_is_given_up() {
    refused(Habit::TakesNothing, None, "`HOST` took nothing more of `IMAGE` for 1 s").await;
}

/// A store with one large blob, which is made up as it is read.
struct Large {
    memory: Arc<MemoryStore>,
    blob: Descriptor,
    /// Where reading stops for ever.
    stops_at: u64,
    given: Arc<AtomicU64>,
    broken_at: u64,
}

struct LargeReader {
    stops_at: u64,
    broken_at: u64,
    remaining: u64,
    given: Arc<AtomicU64>,
}

impl AsyncRead for LargeReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let given = self.given.load(Ordering::SeqCst);
        if given >= self.broken_at {
            return Poll::Ready(Err(std::io::Error::other("bad sector")));
        }
        if given >= self.stops_at {
            return Poll::Pending;
        }
        assert!(buffer.remaining() <= 1 << 20, "{} bytes at once", buffer.remaining());
        let size = self.remaining.min(buffer.remaining() as u64);
        buffer.put_slice(&vec![0; size as usize]);
        self.remaining -= size;
        self.given.fetch_add(size, Ordering::SeqCst);
        Poll::Ready(Ok(()))
    }
}

#[async_trait]
impl BlobStore for Large {
    async fn size(&self, digest: &Digest) -> store::Result<Option<u64>> {
        self.memory.size(digest).await
    }

    async fn stat(&self, digest: &Digest) -> store::Result<Option<u64>> {
        self.memory.stat(digest).await
    }

    async fn verify(&self, digest: &Digest) -> store::Result<bool> {
        self.memory.verify(digest).await
    }

    async fn open(&self, digest: &Digest, offset: u64) -> store::Result<BlobReader> {
        if *digest != self.blob.digest {
            return self.memory.open(digest, offset).await;
        }
        let (stops_at, broken_at, given) = (self.stops_at, self.broken_at, Arc::clone(&self.given));
        let remaining = self.blob.size - offset;
        let reader = LargeReader { stops_at, broken_at, remaining, given };
        Ok(BlobReader::from_stream(Box::pin(reader), remaining))
    }

    async fn begin_upload(&self, kind: Algorithm) -> store::Result<Box<dyn store::Upload>> {
        self.memory.begin_upload(kind).await
    }

    async fn resume_upload(&self, name: &str) -> store::Result<Box<dyn NamedUpload>> {
        self.memory.resume_upload(name).await
    }

    async fn discard_upload(&self, name: &str) -> store::Result<()> {
        self.memory.discard_upload(name).await
    }

    async fn delete(&self, digest: &Digest) -> store::Result<()> {
        self.memory.delete(digest).await
    }
}

const LARGE: u64 = 64 << 20;

/// An image with a large layer, in a store that stops or breaks in the middle of it.
async fn large(stops_at: u64, broken_at: u64) -> Pair {
    let mut hasher = Hasher::sha256();
    (0..LARGE >> 20).for_each(|_| hasher.update(&[0; 1 << 20]));
    let blob = Descriptor::new(media_type::OCI_LAYER_TAR, hasher.finish(), LARGE);
    let (mut manifest, contents) = image("amd64", &[]);
    manifest.blobs.push(blob.clone());
    let mut pair = Pair::with(Habit::None, vec![manifest], &contents).await;
    let (memory, given) = (Arc::clone(&pair.store), Arc::clone(&pair.registry.given));
    let large = Large { memory, blob, stops_at, given, broken_at };
    let db = db::Db::in_memory().await.unwrap();
    pair.catalog = Catalog::open(db, Arc::new(large)).await.unwrap();
    pair
}

#[tokio::test]
async fn a_large_blob_is_never_in_memory() {
    let pair = large(u64::MAX, u64::MAX).await;
    pair.is_there(&pair.push().await.unwrap());
    pair.has_told_all();
    // Buffers of the kernel, both ways, are some megabytes.
    let ahead = pair.registry.ahead.load(Ordering::SeqCst);
    assert!(ahead < LARGE / 2, "{ahead} bytes were read before they were taken");
}

#[tokio::test]
async fn a_blob_that_cannot_be_read_is_the_stores_fault() {
    let pair = large(u64::MAX, LARGE / 2).await;
    let error = pair.push().await.unwrap_err();
    assert!(matches!(error, RemoteError::Store(_)), "{error}");
    assert!(error.to_string().contains("could not read a blob to push"), "{error}");
    // The small config and the layer, each once.
    assert!(pair.registry.count("POST") <= 2);
}

#[tokio::test]
async fn a_push_that_is_dropped_ends_on_the_other_side() {
    let pair = large(LARGE / 2, u64::MAX).await;
    let registry = Arc::clone(&pair.registry);
    let (manifest, config) = (&pair.manifests[0], &pair.manifests[0].blobs[0]);
    registry.with(|contents| contents.blobs.insert(config.digest.to_string(), config.size));
    let limit = Duration::from_secs(30);
    tokio::select! {
        pushed = pair.push() => panic!("{pushed:?}"),
        began = tokio::time::timeout(limit, registry.upload_began.notified()) => began.unwrap(),
    }
    tokio::time::timeout(limit, registry.upload_ended.notified()).await.unwrap();
    registry.with(|contents| {
        assert!(!contents.blobs.contains_key(manifest.blobs[1].digest.as_str()));
        assert!(contents.manifests.is_empty());
    });
}

/// Debian's registry, the one that Docker wrote.
struct DockerRegistry {
    child: Child,
    host: String,
}

impl DockerRegistry {
    #[expect(clippy::disallowed_methods, reason = "a test runs another registry")]
    fn start() -> Self {
        let mut child = Command::new("docker-registry")
            .args(["serve", "/dev/stdin"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is installed");
        let settings = "version: 0.1\nstorage:\n  inmemory: {}\nhttp:\n  addr: 127.0.0.1:0\n";
        let mut input = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut input, settings.as_bytes()).unwrap();
        drop(input);
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = log.find_map(|line| {
            let line = line.unwrap();
            let (_, rest) = line.split_once("listening on ")?;
            Some(rest.chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect())
        });
        // It would stop when nobody reads what it writes.
        std::thread::spawn(move || log.for_each(drop));
        Self { child, host: said.expect("docker-registry says where it listens") }
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn docker_registry_takes_an_image_and_gives_it_back() {
    let docker = DockerRegistry::start();
    let (manifests, contents) = two_platforms();
    let pair = Pair::with(Habit::None, manifests, &contents).await;
    let sent = pair.push_as(&docker.host, "team/app:1", None).await.unwrap();
    assert_eq!((sent.uploaded, sent.existing), (pair.size(), 0));
    let again = pair.push_as(&docker.host, "team/app:2", None).await.unwrap();
    assert_eq!((again.uploaded, again.existing), (0, 5));
    let reference: Reference = format!("{}/team/app:2", docker.host).parse().unwrap();
    let (_, catalog) = store_of(&[]).await;
    for (manifest, architecture) in pair.manifests.iter().zip(["amd64", "arm64"]) {
        let platform = Platform::new("linux", architecture, None);
        let remote = remote(&docker.host, None);
        let pulled = remote.pull(&reference, &platform, &catalog, &|_| ()).await.unwrap();
        assert_eq!(pulled.resolved.top, sent.digest);
        assert_eq!(pulled.resolved.bytes, manifest.bytes);
        for blob in &manifest.blobs {
            assert!(catalog.blobs().verify(&blob.digest).await.unwrap());
        }
    }
}
