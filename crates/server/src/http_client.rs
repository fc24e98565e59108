//! Asking servers that only the settings name: vaults, clusters, issuers.

use std::time::Duration;

use reqwest::Response;

/// A client that goes nowhere but where it is sent. `ca` is trusted besides the system's
/// authorities, PEM.
pub(crate) fn client(ca: Option<&[u8]>, connect: Duration) -> reqwest::Result<reqwest::Client> {
    // The process-wide provider may be set already; either way it is `ring`.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut http = reqwest::Client::builder()
        .user_agent(concat!("refit/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(connect)
        .redirect(reqwest::redirect::Policy::none());
    if let Some(pem) = ca {
        http = http.tls_certs_merge(reqwest::Certificate::from_pem_bundle(pem)?);
    }
    http.build()
}

/// The body of an answer; `None` if it has more than `max` bytes.
pub(crate) async fn body(mut answer: Response, max: usize) -> reqwest::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > max {
            return Ok(None);
        }
    }
    Ok(Some(bytes))
}
