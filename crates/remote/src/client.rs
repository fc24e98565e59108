//! One HTTP client for all registries: addresses, credentials, time-outs, retries.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, RANGE, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode};
use tokio::sync::Mutex;

use crate::RemoteError;
use crate::auth::{self, Challenge};

/// A user name and its secret. Does not print.
#[derive(Clone)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({}, ***)", self.username)
    }
}

/// What the settings say of one registry host.
#[derive(Debug, Clone, Default)]
pub struct Upstream {
    pub credentials: Option<Credentials>,
    /// Speak HTTP without TLS. Loopback hosts do by default.
    pub plain_http: Option<bool>,
    /// A certificate authority to trust besides the system's, PEM.
    pub ca_pem: Option<Vec<u8>>,
}

/// How to talk to other registries.
#[derive(Debug, Clone)]
pub struct RemoteSettings {
    /// By host with optional port, as in references.
    pub upstreams: BTreeMap<String, Upstream>,
    pub connect_timeout: Duration,
    /// A peer that sends nothing for this long is given up.
    pub idle_timeout: Duration,
    /// A peer slower than this many bytes a second, over [`Self::idle_timeout`], is given up.
    pub rate_min: u64,
    /// Attempts in all for one request.
    pub attempts: u32,
    /// Blobs of one image fetched at once.
    pub parallel: usize,
}

impl Default for RemoteSettings {
    fn default() -> Self {
        Self {
            upstreams: BTreeMap::new(),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            rate_min: 1024,
            attempts: 3,
            parallel: 4,
        }
    }
}

/// Access to other registries. Cheap to clone; connections and tokens are shared.
#[derive(Clone)]
pub struct Remote {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    http: reqwest::Client,
    pub(crate) settings: RemoteSettings,
    /// Bearer tokens by host and scope, as `Authorization` values.
    tokens: Mutex<HashMap<(String, String), String>>,
}

/// Tokens kept at most; registries hand out one per repository.
const TOKENS_MAX: usize = 1_000;
/// Redirects followed for one request (blobs often live on another host).
pub(crate) const REDIRECTS_MAX: usize = 5;
pub(crate) const RETRY_DELAY: Duration = Duration::from_millis(250);
pub(crate) const RETRY_DELAY_MAX: Duration = Duration::from_secs(5);

impl Remote {
    pub fn new(settings: RemoteSettings) -> Result<Self, RemoteError> {
        let tls_error = |reason: String| RemoteError::Settings { host: "TLS".to_owned(), reason };
        // The process-wide provider may be set already; either way it is `ring`.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let redirects = reqwest::redirect::Policy::custom(|attempt| {
            let downgrade = attempt.url().scheme() != "https"
                && attempt.previous().last().is_some_and(|url| url.scheme() == "https");
            if downgrade {
                attempt.error("redirect from HTTPS to plain HTTP refused")
            } else if attempt.previous().len() > REDIRECTS_MAX {
                attempt.error("too many redirects")
            } else {
                attempt.follow()
            }
        });
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("refit/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(settings.connect_timeout)
            .read_timeout(settings.idle_timeout)
            .redirect(redirects);
        for (host, upstream) in &settings.upstreams {
            if let Some(pem) = &upstream.ca_pem {
                let bad = |error: reqwest::Error| RemoteError::Settings {
                    host: host.clone(),
                    reason: format!("the CA certificate cannot be read: {error}"),
                };
                let certificates = reqwest::Certificate::from_pem_bundle(pem).map_err(bad)?;
                builder = builder.tls_certs_merge(certificates);
            }
        }
        let http = builder.build().map_err(|error| tls_error(chain(&error)))?;
        let tokens = Mutex::default();
        Ok(Self { inner: Arc::new(Inner { http, settings, tokens }) })
    }

    /// The same, with other credentials for one host.
    pub fn with_credentials(&self, host: &str, credentials: Credentials) -> Self {
        let mut settings = self.inner.settings.clone();
        settings.upstreams.entry(host.to_owned()).or_default().credentials = Some(credentials);
        let (http, tokens) = (self.inner.http.clone(), Mutex::default());
        Self { inner: Arc::new(Inner { http, settings, tokens }) }
    }

    /// One request about `image` in `repository` on `host`, signed in if the host asks for
    /// it, tried again where that can help. Gives any answer with a 2xx status.
    pub(crate) async fn request(
        &self,
        host: &str,
        repository: &str,
        image: &str,
        ask: &Ask,
    ) -> Result<Response, RemoteError> {
        let mut delay = RETRY_DELAY;
        for attempt in 1.. {
            let error = match self.request_once(host, repository, image, ask).await {
                Ok(response) => return Ok(response),
                Err((error, _)) if attempt >= self.inner.settings.attempts => return Err(error),
                Err((error, _)) if !error.is_transient() => return Err(error),
                Err((error, wait)) => {
                    delay = wait.unwrap_or(delay).min(RETRY_DELAY_MAX);
                    error
                }
            };
            tracing::debug!(host, image, %error, attempt, "trying again");
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY_DELAY_MAX);
        }
        unreachable!("the loop ends by returning")
    }

    async fn request_once(
        &self,
        host: &str,
        repository: &str,
        image: &str,
        ask: &Ask,
    ) -> Result<Response, (RemoteError, Option<Duration>)> {
        let scope = format!("repository:{repository}:pull");
        let key = (host.to_owned(), scope.clone());
        let known = self.inner.tokens.lock().await.get(&key).cloned();
        let response = self.send(host, ask, known.as_deref()).await.map_err(|e| (e, None))?;
        let response = match response.status() {
            StatusCode::UNAUTHORIZED => {
                let challenge = Challenge::from_headers(response.headers());
                let token =
                    self.sign_in(host, image, challenge, &scope).await.map_err(|e| (e, None))?;
                let mut tokens = self.inner.tokens.lock().await;
                if tokens.len() >= TOKENS_MAX {
                    tokens.clear();
                }
                tokens.insert(key, token.clone());
                drop(tokens);
                self.send(host, ask, Some(&token)).await.map_err(|e| (e, None))?
            }
            _ => response,
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let wait = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let (host, image) = (host.to_owned(), image.to_owned());
        let error = match status {
            StatusCode::NOT_FOUND => RemoteError::NotFound { host, image },
            StatusCode::TOO_MANY_REQUESTS => RemoteError::RateLimited { host, retry_after: wait },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let with_credentials = self.inner.credentials(&host).is_some();
                RemoteError::Denied { host, image, with_credentials }
            }
            _ => RemoteError::Status { host, image, status: status.as_u16() },
        };
        Err((error, wait))
    }

    async fn send(
        &self,
        host: &str,
        ask: &Ask,
        authorization: Option<&str>,
    ) -> Result<Response, RemoteError> {
        let url = format!("{}{}", self.inner.base_url(host), ask.path);
        let mut request = self.inner.http.request(ask.method.clone(), url);
        if let Some(accept) = ask.accept {
            request = request.header(ACCEPT, accept);
        }
        if ask.offset > 0 {
            request = request.header(RANGE, format!("bytes={}-", ask.offset));
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.send().await.map_err(|error| unreachable(host, &error))
    }

    /// The `Authorization` value that answers a challenge.
    async fn sign_in(
        &self,
        host: &str,
        image: &str,
        challenge: Option<Challenge>,
        scope: &str,
    ) -> Result<String, RemoteError> {
        let credentials = self.inner.credentials(host);
        let denied = || RemoteError::Denied {
            host: host.to_owned(),
            image: image.to_owned(),
            with_credentials: credentials.is_some(),
        };
        match challenge {
            Some(Challenge::Basic) => match credentials {
                Some(credentials) => Ok(auth::basic(credentials)),
                None => Err(denied()),
            },
            Some(Challenge::Bearer { realm, service }) => {
                if !self.inner.may_receive_credentials(host, &realm) {
                    return Err(RemoteError::UnsafeRealm { host: host.to_owned(), realm });
                }
                let mut request = self.inner.http.get(&realm).query(&[("scope", scope)]);
                if let Some(service) = &service {
                    request = request.query(&[("service", service)]);
                }
                if let Some(credentials) = credentials {
                    request =
                        request.basic_auth(&credentials.username, Some(&credentials.password));
                }
                let response = request.send().await.map_err(|e| unreachable(host, &e))?;
                match response.status() {
                    status if status.is_success() => {
                        let body = read_bounded(host, response, "a token", TOKEN_SIZE_MAX).await?;
                        auth::bearer(&body).ok_or_else(denied)
                    }
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(denied()),
                    status => Err(RemoteError::Status {
                        host: host.to_owned(),
                        image: image.to_owned(),
                        status: status.as_u16(),
                    }),
                }
            }
            None => Err(denied()),
        }
    }
}

/// A token service's answer is at most this large, in bytes.
const TOKEN_SIZE_MAX: usize = 256 << 10;

/// What to ask a registry for.
pub(crate) struct Ask {
    pub(crate) method: Method,
    /// Absolute path, starting with `/v2/`.
    pub(crate) path: String,
    pub(crate) accept: Option<&'static str>,
    /// First byte wanted, to go on after a broken connection.
    pub(crate) offset: u64,
}

impl Ask {
    pub(crate) fn get(path: String) -> Self {
        Self { method: Method::GET, path, accept: None, offset: 0 }
    }
}

impl Inner {
    fn upstream(&self, host: &str) -> Option<&Upstream> {
        self.settings.upstreams.get(host)
    }

    fn credentials(&self, host: &str) -> Option<&Credentials> {
        self.upstream(host)?.credentials.as_ref()
    }

    fn is_plain(&self, host: &str) -> bool {
        let declared = self.upstream(host).and_then(|upstream| upstream.plain_http);
        declared.unwrap_or_else(|| is_loopback(host))
    }

    pub(crate) fn base_url(&self, host: &str) -> String {
        let scheme = if self.is_plain(host) { "http" } else { "https" };
        // The name of Docker Hub in references is not the name of its server.
        let address = if host == "docker.io" { "registry-1.docker.io" } else { host };
        format!("{scheme}://{address}")
    }

    /// Whether the token service that `host` names may see its credentials.
    fn may_receive_credentials(&self, host: &str, realm: &str) -> bool {
        let Ok(url) = url::Url::parse(realm) else { return false };
        let Some(name) = url.host_str() else { return false };
        match url.scheme() {
            "https" => true,
            "http" if is_loopback(name) => is_loopback(host) || self.is_plain(host),
            "http" => {
                let address = match url.port() {
                    Some(port) => format!("{name}:{port}"),
                    None => name.to_owned(),
                };
                self.is_plain(host) && (address == host || self.is_plain(&address))
            }
            _ => false,
        }
    }
}

/// Whether a host (with optional port) is this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// An error's sentence with its causes: the outer one of an HTTP client says little.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = cause.to_string();
        source = cause.source();
    }
    text
}

pub(crate) fn unreachable(host: &str, error: &reqwest::Error) -> RemoteError {
    RemoteError::Unreachable { host: host.to_owned(), reason: chain(error) }
}

/// Reads a small body, refusing a large one before it is in memory.
pub(crate) async fn read_bounded(
    host: &str,
    mut response: Response,
    what: &'static str,
    limit: usize,
) -> Result<Vec<u8>, RemoteError> {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > limit => {
                return Err(RemoteError::TooLarge { host: host.to_owned(), what, limit });
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body),
            Err(error) => return Err(unreachable(host, &error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(upstreams: &[(&str, Upstream)]) -> Remote {
        let upstreams =
            upstreams.iter().map(|(host, upstream)| ((*host).to_owned(), upstream.clone()));
        let upstreams = upstreams.collect();
        Remote::new(RemoteSettings { upstreams, ..RemoteSettings::default() }).unwrap()
    }

    #[test]
    fn plain_http_is_for_loopback_and_declared_hosts() {
        let plain = Upstream { plain_http: Some(true), ..Upstream::default() };
        let remote = remote(&[("cache.example:5000", plain)]);
        let cases = [
            ("localhost:5000", "http://localhost:5000"),
            ("127.0.0.1", "http://127.0.0.1"),
            ("127.8.9.1:5000", "http://127.8.9.1:5000"),
            ("[::1]:5000", "http://[::1]:5000"),
            ("cache.example:5000", "http://cache.example:5000"),
            ("cache.example", "https://cache.example"),
            ("localhost.example", "https://localhost.example"),
            ("docker.io", "https://registry-1.docker.io"),
        ];
        for (host, url) in cases {
            assert_eq!(remote.inner.base_url(host), url);
        }
    }

    #[test]
    fn credentials_do_not_go_to_a_token_service_in_the_clear() {
        let plain = Upstream { plain_http: Some(true), ..Upstream::default() };
        let remote = remote(&[("cache.example:5000", plain)]);
        let allowed = |host, realm| remote.inner.may_receive_credentials(host, realm);
        assert!(allowed("r.example", "https://auth.example/token"));
        assert!(allowed("localhost:5000", "http://localhost:5000/token"));
        assert!(allowed("cache.example:5000", "http://cache.example:5000/token"));
        assert!(!allowed("r.example", "http://auth.example/token"));
        assert!(!allowed("r.example", "http://127.0.0.1/token"));
        assert!(!allowed("r.example", "file:///etc/passwd"));
        assert!(!allowed("r.example", "nonsense"));
    }

    #[test]
    fn credentials_do_not_print() {
        let credentials = Credentials { username: "me".into(), password: "hunter2".into() };
        assert_eq!(format!("{credentials:?}"), "Credentials(me, ***)");
    }
}
