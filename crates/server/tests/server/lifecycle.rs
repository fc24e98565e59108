//! One owner of a data folder, and how it comes and goes.

use std::sync::{Arc, Mutex};

use reqwest::{Method, StatusCode};
use server::{App, ServeError};
use tokio_util::sync::CancellationToken;

use crate::support::{Server, bounded, settings, socket_client, wait_for};

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
    let embedded = server::embedded(settings).await.unwrap();
    assert!(!embedded.is_owner());
    assert_eq!(embedded.socket(), server.socket());
    embedded.leave(false).await.unwrap();
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
    let embedded = server::embedded(settings()).await.unwrap();
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
    bounded(embedded.leave(false)).await.unwrap();
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
        let embedded = server::embedded(settings).await.unwrap();
        let notices = embedded.notices().to_vec();
        assert_eq!(notices.len(), expected, "{notices:?}");
        assert!(notices.iter().all(|notice| notice.contains("keys/admin-password")));
        bounded(embedded.leave(true)).await.unwrap();
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
