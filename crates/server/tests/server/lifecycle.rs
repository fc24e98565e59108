//! One owner of a data folder, and how it comes and goes.

use std::sync::{Arc, Mutex};

use reqwest::{Method, StatusCode};
use server::{App, ServeError};
use tokio_util::sync::CancellationToken;

use crate::support::{Server, answer, bounded, build_request, settings, socket_client, wait_for};

#[tokio::test]
async fn a_second_server_is_refused_and_told_why() {
    let server = Server::start().await;
    let settings = settings(server.data.path(), server.data.path(), "", &[]).unwrap();
    let error = server::serve(settings, CancellationToken::new(), |_| ()).await.unwrap_err();
    assert!(matches!(error, ServeError::Owned { .. }), "{error}");
    let expected = format!("belongs to a server, process {}", std::process::id());
    assert!(error.to_string().ends_with(&expected), "{error}");
    assert_eq!(error.hint().unwrap(), "wait for it, stop it, or give another `--data`");
    server.stop().await;
}

#[tokio::test]
async fn an_address_in_use_is_told() {
    let server = Server::start().await;
    let data = tempfile::tempdir().unwrap();
    let flags = [("server.listen", &*server.host())];
    let settings = settings(data.path(), data.path(), "", &flags).unwrap();
    let error = App::build(settings, true).await.err().unwrap();
    assert_eq!(error.to_string(), format!("could not listen on `{}`", server.host()));
    assert!(error.hint().unwrap().contains("--listen"));
    server.stop().await;
}

#[tokio::test]
async fn a_command_becomes_the_client_of_the_server_there_is() {
    let server = Server::start().await;
    let settings = settings(server.data.path(), server.data.path(), "", &[]).unwrap();
    let embedded = server::embedded(settings, |_| ()).await.unwrap();
    assert!(!embedded.is_owner());
    assert_eq!(embedded.socket(), server.socket());
    embedded.leave(false, |_| ()).await.unwrap();
    assert_eq!(
        server.plain(Method::GET, "/healthz").send().await.unwrap().status(),
        StatusCode::OK
    );
    server.stop().await;
}

#[tokio::test]
async fn a_command_owns_a_folder_that_nobody_has() {
    let data = tempfile::tempdir().unwrap();
    let settings = || settings(data.path(), data.path(), "", &[]).unwrap();
    let embedded = server::embedded(settings(), |_| ()).await.unwrap();
    assert!(embedded.is_owner());
    let client = socket_client(embedded.socket());
    let get = || client.get("http://localhost/api/v1/registries/local/runs").send();
    assert_eq!(get().await.unwrap().status(), StatusCode::OK);

    // A server waits for it and says so.
    let told = Arc::new(Mutex::new(Vec::new()));
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn({
        let (told, shutdown, settings) = (Arc::clone(&told), shutdown.clone(), settings());
        async move {
            let notice = move |text: &str| told.lock().unwrap().push(text.to_owned());
            server::serve(settings, shutdown, notice).await
        }
    });
    wait_for(|| async { !told.lock().unwrap().is_empty() }).await;
    let waiting = format!(
        "waiting for the data folder, which belongs to a command, process {}",
        std::process::id()
    );
    assert_eq!(*told.lock().unwrap(), [waiting]);
    drop(client);
    bounded(embedded.leave(false, |_| ())).await.unwrap();
    wait_for(|| async {
        told.lock().unwrap().last().is_some_and(|text| text.starts_with("listening on http"))
    })
    .await;
    shutdown.cancel();
    bounded(serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_first_start_says_where_the_admin_password_is() {
    let data = tempfile::tempdir().unwrap();
    for expected in [1, 0] {
        let settings = settings(data.path(), data.path(), "", &[]).unwrap();
        let embedded = server::embedded(settings, |_| ()).await.unwrap();
        let notices = embedded.notices().to_vec();
        assert_eq!(notices.len(), expected, "{notices:?}");
        assert!(notices.iter().all(|notice| notice.contains("keys/admin-password")));
        bounded(embedded.leave(true, |_| ())).await.unwrap();
    }
}

#[tokio::test]
async fn followers_do_not_keep_a_server_from_stopping() {
    let server = Server::start_with("", &[("server.shutdown_grace", "100ms")]).await;
    let id = server.schedule("hold").await;
    let path = format!("/runs/{id}/logs?follow=true");
    let mut log = server.request(Method::GET, &path).send().await.unwrap();
    bounded(log.chunk()).await.unwrap();
    let begun = std::time::Instant::now();
    server.stop().await;
    assert!(begun.elapsed() < std::time::Duration::from_secs(5));
}

#[tokio::test]
async fn an_idle_server_stops_at_once() {
    let server = Server::start_with("", &[("server.shutdown_grace", "1h")]).await;
    let id = server.schedule("Dockerfile").await;
    server.ended(&id).await;
    server.stop().await;
}

#[tokio::test]
async fn a_stopping_server_sees_its_runs_to_their_end() {
    let server = Server::start_with("", &[("server.shutdown_grace", "1h")]).await;
    let id = server.schedule("hold").await;
    let path = format!("/runs/{id}/events?follow=true");
    let mut events = server.request(Method::GET, &path).send().await.unwrap();
    bounded(events.chunk()).await.unwrap();
    let source = server.upload(b"a context").await;

    server.ask_to_stop();
    wait_for(|| async {
        server.plain(Method::GET, "/readyz").send().await.unwrap().status() == 503
    })
    .await;
    let request = server.request(Method::POST, "/scheduleRun");
    let refused = request.json(&build_request("Dockerfile", &source)).send().await.unwrap();
    let refused = answer(refused, StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(refused["error"]["message"], "the server is stopping");

    server.builder.hold.add_permits(1);
    let told = bounded(events.text()).await.unwrap();
    let last = told.lines().last().unwrap();
    assert!(last.contains("finished") && last.contains("Succeeded"), "{told}");
    server.stop().await;
}

#[tokio::test]
async fn who_needs_the_folder_of_a_stopping_server_waits_for_it() {
    let server = Server::start_with("", &[("server.shutdown_grace", "1h")]).await;
    server.schedule("hold").await;
    server.ask_to_stop();
    wait_for(|| async {
        server.plain(Method::GET, "/readyz").send().await.unwrap().status() == 503
    })
    .await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let notice = {
        let told = Arc::clone(&told);
        move |text: &str| told.lock().unwrap().push(text.to_owned())
    };
    let settings = || settings(server.data.path(), server.data.path(), "", &[]).unwrap();
    let command = tokio::spawn(server::embedded(settings(), notice.clone()));
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn({
        let (settings, shutdown) = (settings(), shutdown.clone());
        async move { server::serve(settings, shutdown, notice).await }
    });
    wait_for(|| async { told.lock().unwrap().len() == 2 }).await;
    let process = std::process::id();
    let waiting = format!(
        "waiting for the data folder, which belongs to a server that is stopping, process {process}"
    );
    assert_eq!(*told.lock().unwrap(), [waiting.clone(), waiting]);

    server.builder.hold.add_permits(1);
    let _data = server.stop().await;
    // Whoever of the two comes first, the other has it afterwards.
    bounded(bounded(command).await.unwrap().unwrap().leave(false, |_| ())).await.unwrap();
    wait_for(|| async {
        told.lock().unwrap().iter().any(|text| text.starts_with("listening on http"))
    })
    .await;
    shutdown.cancel();
    bounded(serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_with_tls_only_has_its_address_as_own_name() {
    // A certificate for nothing but this test.
    let file = |name: &str| format!("{}/tests/data/localhost.{name}", env!("CARGO_MANIFEST_DIR"));
    let (cert, key) = (file("crt"), file("key"));
    let flags = [
        ("server.listen", ""),
        ("server.tls_listen", "127.0.0.1:0"),
        ("server.tls_cert", &*cert),
        ("server.tls_key", &*key),
    ];
    let server = Server::start_with("", &flags).await;
    let version = socket_client(&server.socket()).get("http://localhost/api/v1/version");
    let version = answer(version.send().await.unwrap(), StatusCode::OK).await;
    let port = server.host().rsplit_once(':').unwrap().1.to_owned();
    let own = &version["registries"][0];
    assert_eq!(own["loginServer"], format!("localhost:{port}"));
    let other = serde_json::json!(format!("127.0.0.1:{port}"));
    assert!(own["aliases"].as_array().unwrap().contains(&other), "{version}");
    server.stop().await;
}
