//! A certificate that is renewed while the server runs.

use std::path::Path;

use reqwest::{Certificate, Client, StatusCode};

use crate::support::{Server, wait_for};

fn data(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A client that trusts one certificate.
fn client(trusted: &str) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let trusted = Certificate::from_pem(&std::fs::read(data(trusted)).unwrap()).unwrap();
    Client::builder().tls_certs_only([trusted]).build().unwrap()
}

#[tokio::test]
async fn a_renewed_certificate_is_served_and_open_connections_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let [certificate, key] = ["tls.crt", "tls.key"].map(|name| folder.path().join(name));
    let put = |name: &str| {
        std::fs::copy(data(&format!("{name}.key")), &key).unwrap();
        std::fs::copy(data(&format!("{name}.crt")), &certificate).unwrap();
    };
    put("localhost");
    let flags = [
        ("server.listen", ""),
        ("server.tls_listen", "127.0.0.1:0"),
        ("server.tls_cert", certificate.to_str().unwrap()),
        ("server.tls_key", key.to_str().unwrap()),
    ];
    let server = Server::start_with("", &flags).await;
    let get = |client: &Client| client.get(format!("{}/healthz", server.url)).send();
    let first = client("localhost.crt");
    assert_eq!(get(&first).await.unwrap().status(), StatusCode::OK);
    get(&client("renewed.crt")).await.unwrap_err();
    put("renewed");
    // A new connection each time.
    wait_for(|| async { get(&client("renewed.crt")).await.is_ok() }).await;
    // The first client has one from before, and no other would do.
    assert_eq!(get(&first).await.unwrap().status(), StatusCode::OK);
    get(&client("localhost.crt")).await.unwrap_err();
    server.stop().await;
}
