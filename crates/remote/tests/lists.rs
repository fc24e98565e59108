//! Lists of another registry, in pages.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use oci::{Descriptor, Digest, Reference, media_type};
use remote::{Remote, RemoteSettings};

async fn answer(request: Request) -> Response {
    let subject = Digest::of(b"subject");
    let page = |tags: &str, next: &str| {
        ([("link", format!("<{next}>; rel=\"next\""))], format!(r#"{{"tags":[{tags}]}}"#))
            .into_response()
    };
    let signature = Descriptor::of(media_type::OCI_MANIFEST, b"signature");
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [signature],
    });
    let tag = format!("/v2/tagging/manifests/sha256-{}", subject.hex());
    let path = request.uri().to_string();
    match path.as_str() {
        "/v2/app/tags/list" => page(r#""a","b""#, "/v2/app/tags/list?last=b"),
        "/v2/app/tags/list?last=b" => page("", "list?last=c"),
        "/v2/app/tags/list?last=c" => page(r#""d""#, "http://198.51.100.1/v2/app/tags/list"),
        "/v2/empty/tags/list" => r#"{"name":"empty","tags":null}"#.into_response(),
        "/v2/endless/tags/list" => page("", "/v2/endless/tags/list"),
        "/v2/broken/tags/list" => "no list".into_response(),
        path if path == format!("/v2/app/referrers/{subject}") => index.to_string().into_response(),
        path if path == tag => {
            ([("content-type", media_type::OCI_INDEX)], index.to_string()).into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn start() -> (Remote, impl Fn(&str) -> Reference) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    let remote = Remote::new(RemoteSettings::default()).unwrap();
    (remote, move |name: &str| format!("{host}/{name}").parse().unwrap())
}

#[tokio::test]
async fn pages_are_followed_on_the_same_server() {
    let (remote, at) = start().await;
    assert_eq!(remote.tags(&at("app")).await.unwrap(), ["a", "b", "d"]);
    assert!(remote.tags(&at("empty")).await.unwrap().is_empty());
    let error = |name| {
        let (remote, reference) = (remote.clone(), at(name));
        async move { remote.tags(&reference).await.unwrap_err().to_string() }
    };
    assert!(error("none").await.contains("does not exist on"));
    assert!(error("endless").await.contains("a list of more than 10000 entries or 1000 pages"));
    assert!(error("broken").await.contains("a list that cannot be read"));
}

#[tokio::test]
async fn referrers_come_from_a_list_or_else_from_a_tag() {
    let (remote, at) = start().await;
    for (name, count) in [("app", 1), ("tagging", 1), ("none", 0)] {
        let subject = Digest::of(b"subject");
        let found = remote.referrers(&at(name), &subject).await.unwrap();
        assert_eq!(found.len(), count, "{name}");
        assert!(found.iter().all(|one| one.digest == Digest::of(b"signature")));
    }
}
