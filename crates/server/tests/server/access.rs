//! Who gets in, and by which door.

use std::os::unix::fs::PermissionsExt;

use reqwest::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Server, answer, bounded, settings, socket_client, wait_for};

const RUNS: &str = "/api/v1/registries/local/runs";

#[tokio::test]
async fn the_api_wants_a_credential() {
    let server = Server::start().await;
    let get = || server.plain(Method::GET, RUNS);
    let refused = get().send().await.unwrap();
    assert_eq!(refused.headers()["www-authenticate"], "Bearer realm=\"refit\"");
    let error = answer(refused, StatusCode::UNAUTHORIZED).await;
    assert_eq!(error["error"]["code"], "Unauthorized");
    assert!(error["error"]["hint"].as_str().unwrap().contains("api-token"));

    let status = async |request: reqwest::RequestBuilder| request.send().await.unwrap().status();
    assert_eq!(status(get().bearer_auth(server.token())).await, StatusCode::OK);
    assert_eq!(status(get().bearer_auth("wrong")).await, StatusCode::UNAUTHORIZED);
    let password = server.secret("admin-password");
    assert_eq!(status(get().basic_auth("admin", Some(&password))).await, StatusCode::OK);
    assert_eq!(status(get().basic_auth("admin", Some("wrong"))).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(get().basic_auth("root", Some(&password))).await, StatusCode::UNAUTHORIZED);
    server.stop().await;
}

#[tokio::test]
async fn the_socket_of_the_data_folder_needs_none() {
    let server = Server::start().await;
    let socket = server.socket();
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let client = socket_client(&socket);
    let answer = client.get(format!("http://localhost{RUNS}")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn the_token_lies_where_clients_look_and_goes_with_the_server() {
    let server = Server::start().await;
    let host = server.host();
    let file = server.published_token(&host);
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), server.token());
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(server.published_token(&host.replace("127.0.0.1", "localhost")).exists());
    server.stop().await;
    assert!(!file.exists());
}

/// The status of a bare request, with headers exactly as given.
async fn raw(server: &Server, path: &str, headers: &[&str]) -> u16 {
    let mut stream = tokio::net::TcpStream::connect(server.host()).await.unwrap();
    let mut request = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n");
    for header in headers {
        request.push_str(&format!("{header}\r\n"));
    }
    stream.write_all(format!("{request}\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    bounded(stream.read_to_string(&mut answer)).await.unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn the_registry_is_open_to_this_machine_and_to_no_web_page() {
    let server = Server::start().await;
    let host = server.host();
    let port = host.split(':').nth(1).unwrap().to_owned();
    let own = format!("Host: {host}");
    let cases: &[(&[&str], u16)] = &[
        (&[&own], 200),
        (&[&format!("Host: localhost:{port}")], 200),
        (&[&own, &format!("Origin: http://{host}")], 200),
        (&[&own, "Origin: https://evil.example.com"], 401),
        (&[&own, "Origin: null"], 401),
        (&[&own, "X-Forwarded-For: 192.0.2.1"], 401),
        (&[&own, "Forwarded: for=192.0.2.1"], 401),
        (&[&own, "Host: evil.example.com"], 400),
        (&["Host: evil.example.com", &own], 400),
        (&[], 400),
        (&["Host: evil.example.com"], 401),
        (&[&format!("Host: evil.example.com:{port}")], 401),
    ];
    for (headers, expected) in cases {
        assert_eq!(raw(&server, "/v2/", headers).await, *expected, "{headers:?}");
        // The API never takes a request for the machine it comes from.
        let api = if *expected == 400 { 400 } else { 401 };
        assert_eq!(raw(&server, RUNS, headers).await, api, "{headers:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn without_anonymous_access_the_registry_asks_for_credentials() {
    let server = Server::start_with("[server]\nanonymous_loopback = false", &[]).await;
    let get = || server.plain(Method::GET, "/v2/");
    let refused = get().send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert!(refused.headers()["www-authenticate"].to_str().unwrap().contains("/oauth2/token"));
    // What the challenge leads to.
    let password = server.secret("admin-password");
    let token = server
        .plain(
            Method::GET,
            &format!("/oauth2/token?service={}&scope=repository:app:pull,push", server.host()),
        )
        .basic_auth("admin", Some(&password))
        .send()
        .await
        .unwrap();
    let token = answer(token, StatusCode::OK).await;
    let token = token["access_token"].as_str().or(token["token"].as_str()).unwrap().to_owned();
    assert_eq!(get().bearer_auth(&token).send().await.unwrap().status(), StatusCode::OK);
    // Its signature is the registry's, not the API's.
    let api = server.plain(Method::GET, RUNS).bearer_auth(&token).send().await.unwrap();
    assert_eq!(api.status(), StatusCode::UNAUTHORIZED);
    server.stop().await;
}

/// The statuses that a refresh token, and an access token, get at a server.
async fn tokens_work(server: &Server, refresh: &str, access: &str) -> (u16, u16) {
    let form = [("grant_type", "refresh_token"), ("refresh_token", refresh)];
    let renewed = server.plain(Method::POST, "/oauth2/token").form(&form).send().await.unwrap();
    let pushed = server.plain(Method::POST, "/v2/app/blobs/uploads/").bearer_auth(access);
    (renewed.status().as_u16(), pushed.send().await.unwrap().status().as_u16())
}

#[tokio::test]
async fn a_new_password_or_no_admin_ends_the_tokens_of_the_old_one() {
    let server = Server::start().await;
    let password = server.secret("admin-password");
    let form = [
        ("grant_type", "password"),
        ("username", "admin"),
        ("password", &password),
        ("scope", "repository:app:*"),
    ];
    let tokens = server.plain(Method::POST, "/oauth2/token").form(&form).send().await.unwrap();
    let tokens = answer(tokens, StatusCode::OK).await;
    let text = |name: &str| tokens[name].as_str().unwrap().to_owned();
    let (refresh, access) = (text("refresh_token"), text("access_token"));

    let again = Server::start_in(server.stop().await, "", &[]).await;
    assert_eq!(tokens_work(&again, &refresh, &access).await, (200, 202), "a restart ends nothing");
    let off = [("server.admin", "false")];
    let without = Server::start_in(again.stop().await, "", &off).await;
    assert_eq!(tokens_work(&without, &refresh, &access).await, (401, 401));
    let data = without.stop().await;
    for file in ["admin-password", "admin.digest"] {
        std::fs::remove_file(data.path().join("keys").join(file)).unwrap();
    }
    let rotated = Server::start_in(data, "", &[]).await;
    assert_eq!(tokens_work(&rotated, &refresh, &access).await, (401, 401));
    rotated.stop().await;
}

#[tokio::test]
async fn what_is_open_tells_nothing() {
    let server = Server::start().await;
    for (path, start) in [
        ("/healthz", "ok"),
        ("/readyz", "ready"),
        ("/metrics", "# HELP refit_requests_total"),
        ("/api/v1/version", "{\"version\":"),
    ] {
        let answer = server.plain(Method::GET, path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        assert!(answer.text().await.unwrap().starts_with(start), "{path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_slow_head_is_given_up() {
    let server = Server::start_with("[limits]\nheader_timeout = \"200ms\"", &[]).await;
    let mut stream = tokio::net::TcpStream::connect(server.host()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: ").await.unwrap();
    let mut rest = Vec::new();
    // The connection ends, with an answer or without.
    let _ = bounded(stream.read_to_end(&mut rest)).await;
    server.stop().await;
}

/// A client that goes on, but slowly, has no more time; nor has one between its requests.
#[tokio::test]
async fn a_head_byte_by_byte_and_an_idle_connection_are_given_up() {
    let server = Server::start_with("[limits]\nheader_timeout = \"500ms\"", &[]).await;
    let mut slow = tokio::net::TcpStream::connect(server.host()).await.unwrap();
    let sending = async {
        let head =
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nx: ".iter().chain([b'a'].iter().cycle());
        for byte in head {
            if slow.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    bounded(sending).await;
    let mut idle = tokio::net::TcpStream::connect(server.host()).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    // It is answered, and then it ends.
    bounded(idle.read_to_end(&mut all)).await.unwrap();
    assert!(all.starts_with(b"HTTP/1.1 200 OK"), "{}", String::from_utf8_lossy(&all));
    server.stop().await;
}

#[tokio::test]
async fn a_head_has_a_bound() {
    let server = Server::start().await;
    for head in ["x: y\r\n".repeat(300), format!("x: {}\r\n", "y".repeat(1 << 20))] {
        let mut stream = tokio::net::TcpStream::connect(server.host()).await.unwrap();
        let request = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{head}\r\n");
        // The server may have left before all of it was sent.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut all = Vec::new();
        let _ = bounded(stream.read_to_end(&mut all)).await;
        let answer = String::from_utf8_lossy(&all);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_bound_wait() {
    let server = Server::start_with("[limits]\nconnections_max = 1", &[]).await;
    let held = tokio::net::TcpStream::connect(server.host()).await.unwrap();
    // Accepted first: it was first in the queue.
    let second = server.plain(Method::GET, "/healthz").send();
    let second = tokio::time::timeout(std::time::Duration::from_millis(300), second).await;
    assert!(second.is_err(), "it should wait");
    drop(held);
    wait_for(|| async {
        server
            .plain(Method::GET, "/healthz")
            .send()
            .await
            .is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    server.stop().await;
}

#[test]
fn an_exposed_server_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let error =
        settings(data.path(), data.path(), "", &[("server.listen", "0.0.0.0:0")]).unwrap_err();
    assert!(error.to_string().contains("is no loopback address"), "{error}");
    let flags = [("server.listen", "0.0.0.0:0"), ("server.insecure_clear", "true")];
    assert!(settings(data.path(), data.path(), "", &flags).is_ok());
}
