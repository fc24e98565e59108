//! A way to a server's API: over the network, or over the Unix socket of a data folder.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{CONNECTION, UPGRADE};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Upgraded};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::error::{Error, ErrorKind, Result, could_not};
use crate::logins::Credential;
use crate::select::is_loopback;

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take for an answer that is not a stream.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// An answer that is not a stream is not larger than this.
const ANSWER_SIZE_MAX: usize = 64 << 20;
/// The code of what somebody has locked.
const LOCKED: &str = "Locked";
/// The code of what somebody may not do.
const FORBIDDEN: &str = "Forbidden";

/// One registry of one server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Connection {
    client: reqwest::Client,
    base: Url,
    registry: String,
    credential: Option<Credential>,
    /// The socket of a data folder.
    socket: Option<PathBuf>,
    /// With certificates to trust besides the system's.
    ca_file: Option<PathBuf>,
}

impl Connection {
    /// The server of this machine that owns a data folder. Its socket needs no token.
    pub fn to_socket(socket: &Path, registry: &str) -> Result<Self> {
        // No certificate is ever checked here, and loading the system's takes time.
        let client = builder()
            .unix_socket(socket)
            .tls_certs_only([])
            .build()
            .map_err(could_not("prepare a connection"))?;
        let base = Url::parse("http://localhost/").map_err(could_not("name the server"))?;
        Ok(Self {
            client,
            base,
            registry: registry.into(),
            credential: None,
            socket: Some(socket.to_owned()),
            ca_file: None,
        })
    }

    /// A server by its URL, trusted by the system's certificates and those of `ca_file`.
    pub(crate) fn to_url(
        base: Url,
        ca_file: Option<&Path>,
        registry: &str,
        credential: Option<Credential>,
    ) -> Result<Self> {
        let client = client(builder(), &base, ca_file)?;
        let (registry, ca_file) = (registry.into(), ca_file.map(Path::to_owned));
        Ok(Self { client, base, registry, credential, socket: None, ca_file })
    }

    /// The same, for [`Self::upgrade`], which HTTP/2 knows not: a proxy might offer that.
    pub(crate) fn for_upgrades(&self) -> Result<Self> {
        match self.base.scheme() {
            "http" => Ok(self.clone()),
            _ => {
                let ca_file = self.ca_file.as_deref();
                let client = client(builder().http1_only(), &self.base, ca_file)?;
                Ok(Self { client, ..self.clone() })
            }
        }
    }

    /// Whether bytes stay on this machine, so that making them fewer only costs time.
    pub(crate) fn is_local(&self) -> bool {
        is_loopback(&self.base)
    }

    /// Tells this registry of this server from others.
    pub(crate) fn address(&self) -> String {
        match &self.socket {
            Some(socket) => format!("{} {}", socket.display(), self.registry),
            None => format!("{} {}", self.base, self.registry),
        }
    }

    /// `/api/v1/registries/{registry}/...`. Segments are escaped, slashes in them too.
    pub(crate) fn route(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        // An http URL always has a path to extend.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty()
                .extend(["api", "v1", "registries", &self.registry])
                .extend(segments);
        }
        url
    }

    /// `/api/v1/...`, what belongs to the server and no registry.
    pub(crate) fn server_route(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["api", "v1"]).extend(segments);
        }
        url
    }

    /// A URL that the server gave, possibly relative or under another of its names.
    pub(crate) fn resolve(&self, url: &str) -> Result<Url> {
        let given = self.base.join(url).map_err(could_not(format!("read the URL `{url}`")))?;
        if self.socket.is_none() {
            return Ok(given);
        }
        let mut local = self.base.clone();
        local.set_path(given.path());
        local.set_query(given.query());
        Ok(local)
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, url: Url) -> Result<T> {
        self.answer(self.request(Method::GET, url)).await
    }

    /// Has the server check the credential. Who may not read what is asked for is known nevertheless.
    pub(crate) async fn prove(&self, url: Url) -> Result<()> {
        let request = self.request(Method::GET, url).timeout(ANSWER_TIMEOUT);
        let response = request.send().await.map_err(|error| self.explain(&error))?;
        let status = response.status();
        if status.is_success() {
            return read_json::<serde_json::Value>(response, ANSWER_SIZE_MAX).await.map(drop);
        }
        let error = error_of(response).await;
        let is_known = status == StatusCode::FORBIDDEN
            && error.as_ref().is_some_and(|error| error.code == FORBIDDEN);
        if is_known { Ok(()) } else { Err(self.told(status, error)) }
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        url: Url,
        body: &impl Serialize,
    ) -> Result<T> {
        self.answer(self.request(Method::POST, url).json(body)).await
    }

    /// As [`Self::post`], for work that may take long.
    pub(crate) async fn post_patiently<T: DeserializeOwned>(
        &self,
        url: Url,
        body: &impl Serialize,
    ) -> Result<T> {
        let response = self.stream(self.request(Method::POST, url).json(body)).await?;
        read_json(response, ANSWER_SIZE_MAX).await
    }

    /// A request without a body or an answer of interest.
    pub(crate) async fn send(&self, method: Method, url: Url) -> Result<()> {
        self.stream(self.request(method, url).timeout(ANSWER_TIMEOUT)).await.map(drop)
    }

    pub(crate) async fn delete<T: DeserializeOwned>(&self, url: Url) -> Result<T> {
        self.answer(self.request(Method::DELETE, url)).await
    }

    pub(crate) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        // A token is for the server that it was given for.
        let is_own = url.origin() == self.base.origin();
        let request = self.client.request(method, url);
        match &self.credential {
            Some(credential) if is_own => credential.apply(request),
            _ => request,
        }
    }

    /// Sends a request; the answer's body is read by the caller, without a time-out.
    pub(crate) async fn stream(&self, request: RequestBuilder) -> Result<Response> {
        let response = request.send().await.map_err(|error| self.explain(&error))?;
        match response.status() {
            status if status.is_success() => Ok(response),
            status => Err(self.refusal(status, response).await),
        }
    }

    /// Makes a connection one of another protocol.
    pub(crate) async fn upgrade(&self, url: Url, protocol: &str) -> Result<Upgraded> {
        let request = self.request(Method::GET, url);
        let request = request.header(CONNECTION, "upgrade").header(UPGRADE, protocol);
        let response = request.send().await.map_err(|error| self.explain(&error))?;
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => response.upgrade().await.map_err(|error| {
                Error::new(ErrorKind::Unreachable, "the connection broke").caused_by(&error)
            }),
            status => Err(self.refusal(status, response).await),
        }
    }

    /// Sends a request, and reads the JSON of its answer.
    pub(crate) async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T> {
        read_json(self.stream(request.timeout(ANSWER_TIMEOUT)).await?, ANSWER_SIZE_MAX).await
    }

    fn name(&self) -> &str {
        match self.socket.is_some() {
            true => "the server of the data folder",
            false => self.base.as_str().trim_end_matches('/'),
        }
    }

    fn explain(&self, error: &reqwest::Error) -> Error {
        let unreachable = error.is_connect() || error.is_timeout() || error.is_request();
        let kind = if unreachable { ErrorKind::Unreachable } else { ErrorKind::Failed };
        let cause = std::error::Error::source(error);
        let told = Error::new(kind, format!("cannot reach `{}`", self.name()));
        let told = match cause {
            Some(cause) => told.caused_by(cause),
            None => told.caused_by(error),
        };
        match (self.socket.is_some(), error.is_connect()) {
            (false, true) => told.with_hint(
                "check the address, or leave `--server` away to work on the local data folder",
            ),
            _ => told,
        }
    }

    /// The error that an answer carries, in the server's words.
    async fn refusal(&self, status: StatusCode, response: Response) -> Error {
        self.told(status, error_of(response).await)
    }

    /// An error of the server as ours.
    pub(crate) fn told(&self, status: StatusCode, error: Option<api::ErrorDetail>) -> Error {
        let is_locked = error.as_ref().is_some_and(|error| error.code == LOCKED);
        let kind = match status {
            _ if is_locked => ErrorKind::Conflict,
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => ErrorKind::Usage,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorKind::Unauthorized,
            StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::REQUEST_TIMEOUT => ErrorKind::Unreachable,
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => ErrorKind::NotFound,
            StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => ErrorKind::Conflict,
            _ => ErrorKind::Failed,
        };
        let Some(error) = error else {
            return Error::new(kind, format!("`{}` answered {status}", self.name()));
        };
        let told = Error::new(kind, error.message);
        match (error.hint, status) {
            (Some(hint), _) => told.with_hint(hint),
            (None, StatusCode::UNAUTHORIZED) => {
                told.with_hint("log in with `refit login`, or set `REFIT_TOKEN`")
            }
            (None, _) => told,
        }
    }
}

/// What the server says about a refusal, if it was the server.
async fn error_of(response: Response) -> Option<api::ErrorDetail> {
    let body = read_body(response, ANSWER_SIZE_MAX).await.unwrap_or_default();
    serde_json::from_slice(&body).ok().map(|api::ErrorBody { error }| error)
}

fn client(
    mut builder: reqwest::ClientBuilder,
    base: &Url,
    ca_file: Option<&Path>,
) -> Result<reqwest::Client> {
    if base.scheme() == "http" {
        builder = builder.tls_certs_only([]);
    }
    if let Some(file) = ca_file {
        builder = builder.tls_certs_merge(certificates(file)?);
    }
    builder.build().map_err(could_not("prepare a connection"))
}

/// A client for others than servers of ours, which follows nothing.
pub(crate) fn provider_client(ca_file: Option<&Path>) -> Result<reqwest::Client> {
    let mut builder = builder();
    if let Some(file) = ca_file {
        builder = builder.tls_certs_merge(certificates(file)?);
    }
    builder.build().map_err(could_not("prepare a connection"))
}

fn builder() -> reqwest::ClientBuilder {
    // An error means that there is a provider already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .user_agent(concat!("refit/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_keepalive(Duration::from_secs(30))
        .redirect(reqwest::redirect::Policy::none())
}

fn certificates(file: &Path) -> Result<Vec<reqwest::Certificate>> {
    let doing = || format!("read the certificates in `{}`", file.display());
    let text = std::fs::read(file).map_err(could_not(doing()))?;
    let found = reqwest::Certificate::from_pem_bundle(&text).map_err(could_not(doing()))?;
    match found.is_empty() {
        true => Err(Error::usage(format!("`{}` holds no certificate", file.display()))),
        false => Ok(found),
    }
}

/// Reads the JSON of an answer of at most so many bytes.
pub(crate) async fn read_json<T: DeserializeOwned>(
    response: Response,
    size_max: usize,
) -> Result<T> {
    let body = read_body(response, size_max).await?;
    serde_json::from_slice(&body)
        .map_err(could_not("understand the server's answer"))
        .map_err(|error| error.with_hint("is it a Refit server of this version?"))
}

pub(crate) async fn read_body(mut response: Response, size_max: usize) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(could_not("read the answer"))? {
        if body.len() + chunk.len() > size_max {
            return Err(Error::failed("the server's answer has no end"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
