//! One HTTP client for all registries: addresses, credentials, time-outs, retries.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use oci::Reference;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, IF_NONE_MATCH, LOCATION,
    RANGE,
};
use reqwest::{Method, Request, RequestBuilder, Response, StatusCode};
use url::Url;

use crate::RemoteError;
use crate::auth::{self, Challenge};
use crate::download::retry_after;
use crate::push;
use crate::reach::{Reach, Refused, refused};
use crate::tag::rest_of;

/// A user name and its secret. Does not print.
#[derive(Clone, PartialEq, Eq)]
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
    /// Whether the credentials are for pushes too.
    pub push: bool,
    /// The operator has named it, so it may be where users may not [reach](RemoteSettings::reach).
    pub anywhere: bool,
    /// Speak HTTP without TLS. Loopback hosts do by default.
    pub plain_http: Option<bool>,
    /// A certificate authority to trust besides the system's, PEM.
    pub ca_pem: Option<Vec<u8>>,
    /// Where the registry is reached instead, as in `https://10.0.0.7:5000`: a server that has its
    /// name among others. It is told the name, and the credentials with every request.
    pub address: Option<String>,
}

/// How to talk to other registries.
#[derive(Debug, Clone)]
pub struct RemoteSettings {
    /// By host with optional port, as in references.
    pub upstreams: BTreeMap<String, Upstream>,
    /// Where registries may be that users name, and all that a registry sends on to. `None`: anywhere.
    pub reach: Option<Reach>,
    pub connect_timeout: Duration,
    /// A peer that sends nothing for this long is given up.
    pub idle_timeout: Duration,
    /// A peer slower than this many bytes a second, over [`Self::idle_timeout`], is given up.
    pub rate_min: u64,
    /// Attempts in all for one request.
    pub attempts: u32,
    /// Blobs of one image fetched or sent at once.
    pub parallel: usize,
}

impl Default for RemoteSettings {
    fn default() -> Self {
        Self {
            upstreams: BTreeMap::new(),
            reach: None,
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
    /// For what the operator has named.
    open: Clients,
    /// For the rest: no name leads them where users may not reach.
    guarded: Clients,
    pub(crate) settings: RemoteSettings,
    session: Mutex<Session>,
}

/// They follow no redirects, whoever sends does.
#[derive(Clone)]
pub(crate) struct Clients {
    http: reqwest::Client,
    /// For blobs on their way out, which may take longer than any answer: it waits for any time.
    pub(crate) uploads: reqwest::Client,
}

/// What is signed in to, and what that gave.
#[derive(Default)]
struct Session {
    /// By host in lower case. They count instead of those of the settings.
    logins: BTreeMap<String, Credentials>,
    /// Bearer tokens by host and scope, as `Authorization` values.
    tokens: HashMap<(String, String), String>,
}

/// Tokens kept at most; registries hand out one per repository.
const TOKENS_MAX: usize = 1_000;
/// Redirects followed for one request (blobs often live on another host).
pub(crate) const REDIRECTS_MAX: usize = 5;
pub(crate) const RETRY_DELAY: Duration = Duration::from_millis(250);
pub(crate) const RETRY_DELAY_MAX: Duration = Duration::from_secs(5);

impl Remote {
    pub fn new(settings: RemoteSettings) -> Result<Self, RemoteError> {
        let open = Clients::new(&settings, None)?;
        let guarded = match &settings.reach {
            Some(reach) => Clients::new(&settings, Some(reach))?,
            None => open.clone(),
        };
        let session = Mutex::default();
        Ok(Self { inner: Arc::new(Inner { open, guarded, settings, session }) })
    }

    /// The same, with other hosts. Certificate authorities stay those that were there.
    pub fn with_upstreams(&self, upstreams: impl IntoIterator<Item = (String, Upstream)>) -> Self {
        let mut settings = self.inner.settings.clone();
        settings.upstreams.extend(upstreams);
        self.with_settings(settings)
    }

    /// The same, with logins of its own, which are none for now.
    pub fn with_own_logins(&self) -> Self {
        self.with_settings(self.inner.settings.clone())
    }

    fn with_settings(&self, settings: RemoteSettings) -> Self {
        let (open, guarded) = (self.inner.open.clone(), self.inner.guarded.clone());
        Self { inner: Arc::new(Inner { open, guarded, settings, session: Mutex::default() }) }
    }

    /// Uses these from now on, by host, instead of those before and of those of the settings.
    pub fn set_logins(&self, logins: BTreeMap<String, Credentials>) {
        let logins: BTreeMap<_, _> =
            logins.into_iter().map(|(host, login)| (host.to_ascii_lowercase(), login)).collect();
        let mut session = self.inner.session();
        let Session { logins: known, tokens } = &mut *session;
        tokens.retain(|(host, _), _| {
            let host = host.to_ascii_lowercase();
            known.get(&host) == logins.get(&host)
        });
        *known = logins;
    }

    /// Whether there is such a login for a host.
    pub fn has_login(&self, host: &str) -> bool {
        self.inner.session().logins.contains_key(&host.to_ascii_lowercase())
    }

    /// Whether the settings say something of a host.
    pub fn is_declared(&self, host: &str) -> bool {
        self.inner.upstream(host).is_some()
    }

    /// Asks a registry whether it takes the credentials that there are for it; once.
    pub async fn check_login(&self, host: &str) -> Result<(), RemoteError> {
        let (ask, what) = (Ask::get("/v2/".to_owned()), "a login");
        let mut answer = self.send(host, &ask, None).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            let challenge = Challenge::from_headers(answer.headers());
            let token = self.sign_in(host, what, ask.access, None, challenge).await;
            let token = token.map_err(|error| match error {
                RemoteError::Denied { host, .. } => RemoteError::LoginRefused { host },
                error => error,
            })?;
            answer = self.send(host, &ask, Some(&token)).await?;
        }
        let host = host.to_owned();
        match answer.status() {
            status if status.is_success() => Ok(()),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(RemoteError::LoginRefused { host })
            }
            status => {
                Err(RemoteError::Status { host, image: what.to_owned(), status: status.as_u16() })
            }
        }
    }

    /// Credentials that a registry gives for a token of somebody whom it trusts, as the managed
    /// service exchanges them (identity-and-secrets.md section 2).
    pub async fn exchange(&self, host: &str, token: &str) -> Result<Credentials, RemoteError> {
        let url = self.inner.url(host, "/oauth2/exchange")?;
        let form = [("grant_type", "access_token"), ("service", host), ("access_token", token)];
        // The token is for this host, and not for where it leads.
        let clients = self.inner.clients(host, &url)?;
        let mut request = clients.uploads.post(url).form(&form);
        if self.inner.address(host).is_some() {
            request = request.header(HOST, host);
        }
        let response = request.send().await.map_err(|error| unreachable(host, &error))?;
        let refused = |status: StatusCode| {
            let (host, status) = (host.to_owned(), status.as_u16());
            RemoteError::ExchangeRefused { host, status }
        };
        let status = response.status();
        if status.is_server_error() {
            let (host, image) = (host.to_owned(), "an exchange of tokens".to_owned());
            return Err(RemoteError::Status { host, image, status: status.as_u16() });
        }
        if !status.is_success() {
            return Err(refused(status));
        }
        let body = read_bounded(host, response, "a token", TOKEN_SIZE_MAX).await?;
        let password = auth::refresh(&body).ok_or_else(|| refused(status))?;
        Ok(Credentials { username: TOKEN_USER.to_owned(), password })
    }

    /// The same, with other credentials for one host, for pushes too.
    pub fn with_credentials(&self, host: &str, credentials: Credentials) -> Self {
        let mut settings = self.inner.settings.clone();
        let upstream = settings.upstreams.entry(host.to_owned()).or_default();
        (upstream.credentials, upstream.push) = (Some(credentials), true);
        self.with_settings(settings)
    }

    /// One request about the image that a reference names, signed in if the host asks for it,
    /// tried again where that can help. Gives any answer with a 2xx status.
    pub(crate) async fn ask(
        &self,
        reference: &Reference,
        ask: &Ask,
    ) -> Result<Response, RemoteError> {
        let mut attempts = self.attempts();
        loop {
            match self.ask_once(reference, ask).await {
                Ok(response) => return Ok(response),
                Err(failure) => attempts.pause(reference, failure).await?,
            }
        }
    }

    pub(crate) async fn ask_once(
        &self,
        reference: &Reference,
        ask: &Ask,
    ) -> Result<Response, Failure> {
        let known = self.known_token(reference, ask.access);
        let mut response = self.send(&reference.host, ask, known.as_deref()).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let token = self.new_token(reference, ask.access, response.headers()).await?;
            response = self.send(&reference.host, ask, Some(&token)).await?;
        }
        let status = response.status();
        let is_known = ask.unless.is_some() && status == StatusCode::NOT_MODIFIED;
        match status.is_success() || is_known {
            true => Ok(response),
            false => Err(self.failure(reference, ask.access, response).await),
        }
    }

    /// As many as the settings allow.
    pub(crate) fn attempts(&self) -> Attempts {
        Attempts { left: self.inner.settings.attempts, delay: RETRY_DELAY }
    }

    /// What an answer without success means.
    pub(crate) async fn failure(
        &self,
        reference: &Reference,
        access: Access,
        response: Response,
    ) -> Failure {
        let wait = retry_after(&response).or_else(|| rest_of(response.headers()));
        let (host, image) = (reference.host.clone(), reference.to_string());
        let with_credentials = self.inner.credentials(&host, access).is_some();
        let error = match response.status() {
            StatusCode::TOO_MANY_REQUESTS => RemoteError::RateLimited { host, retry_after: wait },
            status if access == Access::Push && push::is_refusal(status) => {
                push::refusal(reference, with_credentials, response).await
            }
            StatusCode::NOT_FOUND => RemoteError::NotFound { host, image },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                RemoteError::Denied { host, image, access, with_credentials }
            }
            status => RemoteError::Status { host, image, status: status.as_u16() },
        };
        Failure { error, wait }
    }

    async fn send(
        &self,
        host: &str,
        ask: &Ask,
        authorization: Option<&str>,
    ) -> Result<Response, RemoteError> {
        let url = self.inner.url(host, &ask.path)?;
        let mut request = self.inner.open.http.request(ask.method.clone(), url);
        if self.inner.address(host).is_some() {
            request = request.header(HOST, host);
        }
        if let Some(accept) = ask.accept {
            request = request.header(ACCEPT, accept);
        }
        if let Some(known) = &ask.unless {
            request = request.header(IF_NONE_MATCH, known);
        }
        if ask.offset > 0 {
            request = request.header(RANGE, format!("bytes={}-", ask.offset));
        }
        if let Some((media_type, bytes)) = &ask.body {
            request = request.header(CONTENT_TYPE, media_type).body(bytes.clone());
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        self.inner.follow(host, request).await
    }

    /// The `Authorization` value that was accepted last, if there was one. It may have expired.
    pub(crate) fn known_token(&self, reference: &Reference, access: Access) -> Option<String> {
        if self.inner.address(&reference.host).is_some() {
            return self.inner.credentials(&reference.host, access).as_ref().map(auth::basic);
        }
        let key = (reference.host.clone(), access.scope(reference));
        self.inner.session().tokens.get(&key).cloned()
    }

    /// Signs in as an answer with status 401 asks for, and remembers what that gave.
    pub(crate) async fn new_token(
        &self,
        reference: &Reference,
        access: Access,
        answer: &HeaderMap,
    ) -> Result<String, RemoteError> {
        let challenge = Challenge::from_headers(answer);
        let (host, scope) = (&reference.host, access.scope(reference));
        let image = reference.to_string();
        let credentials = self.inner.credentials(host, access);
        let token = self.sign_in(host, &image, access, Some(&scope), challenge).await?;
        // Somebody else may be logged in by now, whose tokens the next request asks for.
        if self.inner.credentials(host, access) != credentials {
            return Ok(token);
        }
        let tokens = &mut self.inner.session().tokens;
        if tokens.len() >= TOKENS_MAX {
            tokens.clear();
        }
        tokens.insert((host.clone(), scope), token.clone());
        Ok(token)
    }

    /// The `Authorization` value that answers a challenge. `image` is what it is about, for
    /// messages; without a scope the token is good for nothing but to know that it was given.
    async fn sign_in(
        &self,
        host: &str,
        image: &str,
        access: Access,
        scope: Option<&str>,
        challenge: Option<Challenge>,
    ) -> Result<String, RemoteError> {
        let credentials = self.inner.credentials(host, access);
        let denied = || RemoteError::Denied {
            host: host.to_owned(),
            image: image.to_owned(),
            access,
            with_credentials: credentials.is_some(),
        };
        match challenge {
            Some(Challenge::Basic) => match &credentials {
                Some(credentials) => Ok(auth::basic(credentials)),
                None => Err(denied()),
            },
            Some(Challenge::Bearer { realm, service }) => {
                if !self.inner.may_receive_credentials(host, &realm) {
                    return Err(RemoteError::UnsafeRealm { host: host.to_owned(), realm });
                }
                let mut request = self.inner.open.http.get(&realm);
                if let Some(scope) = scope {
                    request = request.query(&[("scope", scope)]);
                }
                if let Some(service) = &service {
                    request = request.query(&[("service", service)]);
                }
                if let Some(credentials) = &credentials {
                    request =
                        request.basic_auth(&credentials.username, Some(&credentials.password));
                }
                let response = self.inner.follow(host, request).await?;
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

/// As whom one logs in with a token in place of a password.
const TOKEN_USER: &str = "00000000-0000-0000-0000-000000000000";

/// A token service's answer is at most this large, in bytes.
const TOKEN_SIZE_MAX: usize = 256 << 10;

/// What is done with an image there, and so what a token has to allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Pull,
    Push,
}

impl Access {
    /// As token services want it.
    fn scope(self, reference: &Reference) -> String {
        let actions = match self {
            Self::Pull => "pull",
            Self::Push => "pull,push",
        };
        format!("repository:{}:{actions}", reference.repository)
    }
}

/// What to ask a registry for.
pub(crate) struct Ask {
    pub(crate) method: Method,
    /// Absolute path, starting with `/v2/`.
    pub(crate) path: String,
    pub(crate) accept: Option<&'static str>,
    /// An entity tag: nothing is wanted if it is that.
    pub(crate) unless: Option<String>,
    /// First byte wanted, to go on after a broken connection.
    pub(crate) offset: u64,
    pub(crate) access: Access,
    /// What to send, with its media type. It is in memory, so only manifests are sent so.
    pub(crate) body: Option<(String, Bytes)>,
}

impl Ask {
    pub(crate) fn get(path: String) -> Self {
        let (method, access) = (Method::GET, Access::Pull);
        Self { method, path, accept: None, unless: None, offset: 0, access, body: None }
    }
}

/// Why an attempt failed, and for how long the peer then wants to be left alone.
pub(crate) struct Failure {
    pub(crate) error: RemoteError,
    pub(crate) wait: Option<Duration>,
}

impl From<RemoteError> for Failure {
    fn from(error: RemoteError) -> Self {
        Self { error, wait: None }
    }
}

/// Counts attempts and waits between them: each time twice as long, unless the peer says how
/// long, and never long.
pub(crate) struct Attempts {
    left: u32,
    delay: Duration,
}

impl Attempts {
    /// Waits until the next attempt; gives the error back if there is none or it cannot help.
    pub(crate) async fn pause(
        &mut self,
        reference: &Reference,
        failure: Failure,
    ) -> Result<(), RemoteError> {
        self.left = self.left.saturating_sub(1);
        let Failure { error, wait } = failure;
        if self.left == 0 || !error.is_transient() {
            return Err(error);
        }
        tracing::debug!(image = %reference, %error, left = self.left, "trying again");
        let delay = wait.unwrap_or(self.delay).min(RETRY_DELAY_MAX);
        tokio::time::sleep(delay).await;
        self.delay = (delay * 2).min(RETRY_DELAY_MAX);
        Ok(())
    }
}

impl Clients {
    fn new(settings: &RemoteSettings, reach: Option<&Reach>) -> Result<Self, RemoteError> {
        let build = |builder: reqwest::ClientBuilder| {
            let builder = match reach {
                Some(reach) => builder.dns_resolver(reach.clone()),
                None => builder,
            };
            builder.build().map_err(|error| RemoteError::Settings {
                host: "TLS".to_owned(),
                reason: chain(&error),
            })
        };
        let http = build(http_builder(settings)?.read_timeout(settings.idle_timeout))?;
        Ok(Self { http, uploads: build(http_builder(settings)?)? })
    }
}

/// What all requests have in common.
fn http_builder(settings: &RemoteSettings) -> Result<reqwest::ClientBuilder, RemoteError> {
    // The process-wide provider may be set already; either way it is `ring`.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("refit/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(settings.connect_timeout);
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
    Ok(builder)
}

impl Inner {
    fn upstream(&self, host: &str) -> Option<&Upstream> {
        self.settings.upstreams.get(host)
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A login, or those of the settings, which may be for pulls only.
    fn credentials(&self, host: &str, access: Access) -> Option<Credentials> {
        let login = self.session().logins.get(&host.to_ascii_lowercase()).cloned();
        login.or_else(|| {
            let upstream = self.upstream(host)?;
            let is_meant = access == Access::Pull || upstream.push;
            upstream.credentials.clone().filter(|_| is_meant)
        })
    }

    /// Where a host is reached instead of by its name.
    fn address(&self, host: &str) -> Option<&str> {
        self.upstream(host)?.address.as_deref()
    }

    fn is_plain(&self, host: &str) -> bool {
        let declared = self.upstream(host).and_then(|upstream| upstream.plain_http);
        declared.unwrap_or_else(|| is_loopback(host))
    }

    pub(crate) fn base_url(&self, host: &str) -> String {
        if let Some(address) = self.address(host) {
            return address.trim_end_matches('/').to_owned();
        }
        let scheme = if self.is_plain(host) { "http" } else { "https" };
        // The name of Docker Hub in references is not the name of its server.
        let address = if host == "docker.io" { "registry-1.docker.io" } else { host };
        format!("{scheme}://{address}")
    }

    fn url(&self, host: &str, path: &str) -> Result<Url, RemoteError> {
        Url::parse(&format!("{}{path}", self.base_url(host))).map_err(|error| {
            RemoteError::Unreachable { host: host.to_owned(), reason: error.to_string() }
        })
    }

    /// What asks at an address for a registry, if that may be asked.
    pub(crate) fn clients(&self, host: &str, url: &Url) -> Result<&Clients, RemoteError> {
        let Some(reach) = &self.settings.reach else { return Ok(&self.open) };
        if self.may_be_anywhere(host, url) {
            return Ok(&self.open);
        }
        match url.host().map_or(Ok(()), |name| reach.check(&name)) {
            Ok(()) => Ok(&self.guarded),
            Err(refused) => Err(self.forbidden(host, Some(url), &refused)),
        }
    }

    /// A registry that the operator has named sends wherever it wants to another one, and
    /// nobody else does.
    fn may_be_anywhere(&self, host: &str, url: &Url) -> bool {
        let mut named = self.settings.upstreams.iter().filter(|(_, upstream)| upstream.anywhere);
        self.upstream(host).is_some_and(|upstream| upstream.anywhere)
            && named.any(|(name, _)| self.is_at(name, url))
    }

    fn forbidden(&self, host: &str, url: Option<&Url>, refused: &Refused) -> RemoteError {
        let elsewhere = url.filter(|url| !self.is_at(host, url));
        let address = elsewhere.map(|url| authority(url).unwrap_or_else(|| refused.host.clone()));
        RemoteError::Forbidden { host: host.to_owned(), address, what: refused.what }
    }

    /// Sends a request for a registry, and on to where the answers lead.
    async fn follow(&self, host: &str, request: RequestBuilder) -> Result<Response, RemoteError> {
        let broken = |reason: &str| RemoteError::Unreachable {
            host: host.to_owned(),
            reason: reason.to_owned(),
        };
        let mut request = request.build().map_err(|error| unreachable(host, &error))?;
        for _ in 0..=REDIRECTS_MAX {
            let again = request.try_clone();
            let client = &self.clients(host, request.url())?.http;
            let response =
                client.execute(request).await.map_err(|error| self.failed(host, &error))?;
            let next = again.and_then(|again| Some((redirect_of(&response)?, again)));
            let Some((next, again)) = next else { return Ok(response) };
            match (again.url().scheme(), next.scheme()) {
                ("https", "http") => {
                    return Err(broken("redirect from HTTPS to plain HTTP refused"));
                }
                (_, "http" | "https") => (),
                _ => return Err(broken("redirect to neither HTTP nor HTTPS refused")),
            }
            request = redirected(again, response.status(), next);
        }
        Err(broken("too many redirects"))
    }

    /// What the error of an HTTP client comes to.
    pub(crate) fn failed(&self, host: &str, error: &reqwest::Error) -> RemoteError {
        match refused(error) {
            Some(refused) => self.forbidden(host, error.url(), refused),
            None => unreachable(host, error),
        }
    }

    /// Whether the token service that `host` names may see its credentials.
    fn may_receive_credentials(&self, host: &str, realm: &str) -> bool {
        let Ok(url) = Url::parse(realm) else { return false };
        let Some(name) = url.host_str() else { return false };
        match url.scheme() {
            "https" => true,
            "http" if is_loopback(name) => is_loopback(host) || self.is_plain(host),
            "http" => {
                let address = authority(&url).unwrap_or_default();
                self.is_plain(host) && (address == host || self.is_plain(&address))
            }
            _ => false,
        }
    }

    /// Whether an address is one of the registry itself, and not of another server.
    pub(crate) fn is_at(&self, host: &str, url: &Url) -> bool {
        let registry = Url::parse(&self.base_url(host));
        registry.is_ok_and(|registry| registry.origin() == url.origin())
    }

    /// Whether blobs for `host` may be sent to where it wants them. To another server in plain
    /// HTTP only if both are declared; and only a registry of this machine names servers of it.
    pub(crate) fn may_receive_blobs(&self, host: &str, url: &Url) -> bool {
        let Some(address) = authority(url) else { return false };
        let is_near = is_loopback(host) || !is_loopback(&address);
        match url.scheme() {
            "https" => is_near,
            "http" if self.is_at(host, url) => true,
            "http" => is_near && self.is_plain(host) && self.is_plain(&address),
            _ => false,
        }
    }
}

/// Where an answer leads, if it does.
fn redirect_of(response: &Response) -> Option<Url> {
    let location = response.headers().get(LOCATION)?;
    let leads_on = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    response.url().join(location.to_str().ok()?).ok().filter(|_| leads_on)
}

/// The request for where an answer has led. What is meant for one server only it gets.
fn redirected(mut request: Request, status: StatusCode, next: Url) -> Request {
    if request.url().origin() != next.origin() {
        request.headers_mut().remove(AUTHORIZATION);
        request.headers_mut().remove(HOST);
    }
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    // RFC 9110, *Redirection 3xx*.
    let becomes_get = match status {
        StatusCode::SEE_OTHER => !is_read,
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND => *request.method() == Method::POST,
        _ => false,
    };
    if becomes_get {
        *request.method_mut() = Method::GET;
        *request.body_mut() = None;
        request.headers_mut().remove(CONTENT_TYPE);
        request.headers_mut().remove(CONTENT_LENGTH);
    }
    *request.url_mut() = next;
    request
}

/// A URL's host, with the port if it names one, as references have it.
pub(crate) fn authority(url: &Url) -> Option<String> {
    let name = url.host_str()?;
    Some(url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}")))
}

/// Whether a host (with optional port) is this machine.
pub fn is_loopback(host: &str) -> bool {
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
    fn blobs_go_where_a_registry_says_but_not_in_the_clear() {
        let plain = Upstream { plain_http: Some(true), ..Upstream::default() };
        let tls = Upstream { plain_http: Some(false), ..Upstream::default() };
        let declared = [("cache.example:5000", plain.clone()), ("old.example:80", plain)];
        let remote = remote(&[&declared[..], &[("localhost:5443", tls)]].concat());
        let allowed =
            |host, url: &str| remote.inner.may_receive_blobs(host, &Url::parse(url).unwrap());
        assert!(allowed("r.example", "https://r.example/v2/a/blobs/uploads/1"));
        assert!(allowed("r.example", "https://storage.example/1?signature=2"));
        assert!(allowed("cache.example:5000", "http://cache.example:5000/1"));
        assert!(allowed("localhost:5000", "http://127.0.0.1:5001/1"));
        assert!(allowed("[::1]:5000", "http://[::1]:5000/1"));
        assert!(allowed("old.example:80", "http://old.example/1"));
        assert!(!allowed("localhost:5443", "http://localhost:5443/1"));
        assert!(!allowed("r.example", "http://r.example/1"));
        assert!(!allowed("r.example", "http://127.0.0.1/1"));
        assert!(!allowed("cache.example:5000", "http://127.0.0.1/1"));
        assert!(!allowed("cache.example:5000", "http://storage.example/1"));
        assert!(!allowed("r.example", "ftp://r.example/1"));
        assert!(!allowed("r.example", "file:///etc/passwd"));
    }

    #[test]
    fn logins_go_before_the_settings_whose_credentials_are_for_pulls_at_first() {
        let login = |name: &str| Credentials { username: name.into(), password: "x".into() };
        let pulls = Upstream { credentials: Some(login("pulls")), ..Upstream::default() };
        let both = Upstream { push: true, credentials: Some(login("both")), ..Upstream::default() };
        let remote = remote(&[("pulls.example", pulls), ("both.example", both)]);
        let user = |host: &str, access| {
            remote.inner.credentials(host, access).map(|credentials| credentials.username)
        };
        assert_eq!(user("pulls.example", Access::Pull).as_deref(), Some("pulls"));
        assert_eq!(user("pulls.example", Access::Push), None);
        assert_eq!(user("both.example", Access::Push).as_deref(), Some("both"));
        let token = |host: &str| (host.to_owned(), "scope".to_owned());
        for host in ["pulls.example", "both.example"] {
            remote.inner.session().tokens.insert(token(host), "t".to_owned());
        }
        remote.set_logins(BTreeMap::from([("Pulls.example".to_owned(), login("mine"))]));
        assert_eq!(user("pulls.example", Access::Push).as_deref(), Some("mine"));
        assert!(remote.has_login("PULLS.example") && !remote.has_login("both.example"));
        // The token of whom it was before is forgotten, and no other.
        assert!(!remote.inner.session().tokens.contains_key(&token("pulls.example")));
        assert!(remote.inner.session().tokens.contains_key(&token("both.example")));
        let own = remote.with_own_logins();
        assert!(!own.has_login("pulls.example"));
        remote.set_logins(BTreeMap::new());
        assert_eq!(user("pulls.example", Access::Push), None);
    }

    #[tokio::test]
    async fn names_lead_no_request_where_users_may_not_reach() {
        let settings = RemoteSettings { reach: Some(Reach::default()), ..Default::default() };
        let remote = Remote::new(settings).unwrap();
        let url = "http://localhost:9/v2/";
        for client in [&remote.inner.guarded.http, &remote.inner.guarded.uploads] {
            let error = client.get(url).send().await.unwrap_err();
            let error = remote.inner.failed("localhost:9", &error);
            assert!(matches!(error, RemoteError::Forbidden { address: None, .. }), "{error:?}");
            assert!(!error.is_transient());
        }
    }

    #[test]
    fn what_was_named_by_the_operator_may_be_anywhere_and_nothing_that_users_name() {
        let named = |plain: bool| Upstream {
            anywhere: true,
            plain_http: plain.then_some(true),
            ..Upstream::default()
        };
        let upstreams = [("127.0.0.1:5000", named(false)), ("127.0.0.1:5001", named(false))];
        let upstreams = upstreams.into_iter().chain([("local.example", named(true))]);
        let upstreams = upstreams.map(|(host, upstream)| (host.to_owned(), upstream)).collect();
        let reach = Some(Reach::default());
        let remote =
            Remote::new(RemoteSettings { upstreams, reach, ..Default::default() }).unwrap();
        let login = Credentials { username: "u".into(), password: "p".into() };
        let users = remote.with_credentials("127.0.0.1:5002", login);
        let check = |remote: &Remote, host: &str, url: &str| {
            let url = Url::parse(url).unwrap();
            let clients = remote.inner.clients(host, &url);
            clients.map(|clients| std::ptr::eq(clients, &remote.inner.open))
        };
        for (host, url, is_open) in [
            ("127.0.0.1:5000", "http://127.0.0.1:5000/v2/", Some(true)),
            ("127.0.0.1:5000", "http://127.0.0.1:5001/token", Some(true)),
            ("127.0.0.1:5000", "http://127.0.0.1:5002/token", None),
            ("127.0.0.1:5000", "http://169.254.169.254/token", None),
            ("127.0.0.1:5000", "https://other.example/token", Some(false)),
            ("local.example", "http://local.example/v2/", Some(true)),
            ("local.example", "http://127.0.0.1:5000/v2/", Some(true)),
            ("local.example:22", "https://local.example:22/v2/", Some(false)),
            ("other.example", "https://other.example/v2/", Some(false)),
            ("other.example", "http://local.example/v2/", Some(false)),
            ("other.example", "http://127.0.0.1:5000/v2/", None),
            ("127.0.0.1:5002", "http://127.0.0.1:5002/v2/", None),
        ] {
            for remote in [&remote, &users] {
                assert_eq!(check(remote, host, url).ok(), is_open, "{host}: {url}");
            }
        }
    }

    #[test]
    fn credentials_do_not_print() {
        let credentials = Credentials { username: "me".into(), password: "hunter2".into() };
        assert_eq!(format!("{credentials:?}"), "Credentials(me, ***)");
    }
}
