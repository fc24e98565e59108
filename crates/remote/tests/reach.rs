//! Registries that lead where users may not reach: a token service, a redirect, an upload.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use oci::{Digest, Reference};
use remote::{Credentials, Reach, Remote, RemoteError, RemoteSettings, SizeRule, Upstream};
use tokio::net::TcpListener;

const CONTENT: &[u8] = b"content";

/// Another server of this machine, that counts who comes.
struct Victim {
    host: String,
    asked: Arc<AtomicUsize>,
}

async fn serve(answer: impl Fn(Request) -> Response + Clone + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let router = Router::new().fallback(move |request: Request| {
        let answer = answer(request);
        async move { answer }
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    host
}

impl Victim {
    async fn start() -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let host = serve(move |request| {
            counted.fetch_add(1, Ordering::SeqCst);
            match request.uri().path() {
                "/token" => r#"{"token":"t"}"#.into_response(),
                _ => CONTENT.into_response(),
            }
        });
        Self { host: host.await, asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// One that wants a token from an address, if there is one, and has nothing itself: it sends on to
/// another one for all.
async fn leading(realm: Option<String>, to: String) -> String {
    let answer = move |request: Request| match (&realm, request.headers().get("authorization")) {
        (Some(realm), None) => {
            let challenge = format!("Bearer realm=\"{realm}\"");
            (StatusCode::UNAUTHORIZED, [("www-authenticate", challenge)]).into_response()
        }
        _ if request.method() == Method::HEAD => StatusCode::NOT_FOUND.into_response(),
        _ => (StatusCode::TEMPORARY_REDIRECT, [("location", to.clone())]).into_response(),
    };
    serve(answer).await
}

/// Some hosts are named by the operator, and some networks are allowed.
fn remote(named: &[&str], allowed: &[&str]) -> Remote {
    let upstream = Upstream { anywhere: true, ..Upstream::default() };
    let upstreams = named.iter().map(|host| ((*host).to_owned(), upstream.clone())).collect();
    let allowed = allowed.iter().map(|network| network.parse().unwrap()).collect();
    let reach = Some(Reach { allowed, ..Reach::default() });
    Remote::new(RemoteSettings { upstreams, reach, attempts: 1, ..Default::default() }).unwrap()
}

async fn fetch(remote: &Remote, host: &str) -> Result<(), RemoteError> {
    let image: Reference = format!("{host}/app:1").parse().unwrap();
    let digest = Digest::of(CONTENT);
    let blob = remote.open_blob(&image, &digest, SizeRule::Exact(CONTENT.len() as u64)).await;
    blob.map(drop)
}

#[track_caller]
fn is_refused(result: Result<(), RemoteError>, message: &str, hint: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.to_string(), message);
    assert!(error.hint().unwrap().contains(hint), "{:?}", error.hint());
    assert!(!error.is_transient());
}

#[tokio::test]
async fn a_registry_of_this_machine_is_one_that_the_operator_names() {
    let victim = Victim::start().await;
    let host = &*victim.host;
    let message = format!("`{host}` is a loopback address, which users may not reach");
    let hint = format!("[upstream.\"{host}\"], or allow its address with `build.allow_addresses`");
    is_refused(fetch(&remote(&[], &[]), host).await, &message, &hint);
    let (login, user) = ("p".to_owned(), "u".to_owned());
    let login = Credentials { username: user, password: login };
    let users = remote(&[], &[]).with_credentials(host, login);
    is_refused(fetch(&users, host).await, &message, &hint);
    is_refused(users.check_login(host).await, &message, &hint);
    is_refused(users.exchange(host, "token").await.map(drop), &message, &hint);
    let by_name = host.replace("127.0.0.1", "localhost");
    let message = format!("`{by_name}` is a loopback address, which users may not reach");
    is_refused(fetch(&users, &by_name).await, &message, "build.allow_addresses");
    assert_eq!(victim.asked(), 0);
    fetch(&remote(&[host], &[]), host).await.unwrap();
    fetch(&remote(&[], &["127.0.0.1"]), host).await.unwrap();
    assert_eq!(victim.asked(), 2);
}

#[tokio::test]
async fn a_registry_sends_nobody_for_a_token_to_where_users_may_not_reach() {
    let victim = Victim::start().await;
    for (realm, to) in [
        (format!("http://{}/token", victim.host), &*victim.host),
        ("https://169.254.169.254/latest/meta-data/".to_owned(), "169.254.169.254"),
    ] {
        let what = if to == victim.host { "loopback" } else { "link-local" };
        let host = leading(Some(realm), format!("http://{}/blob", victim.host)).await;
        let message =
            format!("`{host}` sends on to `{to}`, a {what} address, which users may not reach");
        let refused = fetch(&remote(&[&host], &[]), &host).await;
        is_refused(refused, &message, "allow that address with `build.allow_addresses`");
    }
    assert_eq!(victim.asked(), 0);
    let host = leading(
        Some(format!("http://{}/token", victim.host)),
        format!("http://{}/blob", victim.host),
    );
    let host = host.await;
    fetch(&remote(&[&host, &victim.host], &[]), &host).await.unwrap();
    assert_eq!(victim.asked(), 2);
}

#[tokio::test]
async fn a_registry_sends_nobody_for_a_blob_to_where_users_may_not_reach() {
    let victim = Victim::start().await;
    for to in [&*victim.host, "169.254.169.254"] {
        let what = if to == victim.host { "loopback" } else { "link-local" };
        let host = leading(None, format!("http://{to}/blob")).await;
        let message =
            format!("`{host}` sends on to `{to}`, a {what} address, which users may not reach");
        let refused = fetch(&remote(&[&host], &[]), &host).await;
        is_refused(refused, &message, "allow that address with `build.allow_addresses`");
    }
    assert_eq!(victim.asked(), 0);
    let host = leading(None, format!("http://{}/blob", victim.host)).await;
    fetch(&remote(&[&host, &victim.host], &[]), &host).await.unwrap();
    fetch(&remote(&[], &["127.0.0.0/8"]), &host).await.unwrap();
    assert_eq!(victim.asked(), 2);
}

#[tokio::test]
async fn redirects_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let to = format!("http://{host}/again");
    let router = Router::new()
        .fallback(async move || (StatusCode::FOUND, [("location", to.clone())]).into_response());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let error = fetch(&remote(&[&host], &[]), &host).await.unwrap_err();
    assert!(error.to_string().ends_with("too many redirects"), "{error}");
    let host = leading(None, "file:///etc/passwd".to_owned()).await;
    let error = fetch(&remote(&[&host], &[]), &host).await.unwrap_err();
    assert!(error.to_string().contains("neither HTTP nor HTTPS"), "{error}");
}
