//! Telling other servers: webhooks, statuses of commits.
//!
//! Who uses a server chooses where it posts to, so a receiver is not trusted: it is asked only where
//! users may [reach](Reach), leads nowhere else, and has a bound on its time and on its answer.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Response};
use tokio::time::Instant;
use url::{Host, Url};

use crate::auth;
use crate::client::{authority, chain};
use crate::download::{Target, retry_after};
use crate::reach::{Reach, Refused, refused};

/// Bytes of all names and values of a post's headers.
const HEADERS_SIZE_MAX: usize = 16 << 10;
/// Bytes of an address.
const ADDRESS_SIZE_MAX: usize = 4096;

/// Headers that say where a request goes, or where its body ends: not for users to choose.
const OWN_HEADERS: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];

/// How to post.
#[derive(Debug, Clone)]
pub struct PosterSettings {
    /// Which servers may be asked.
    pub reach: Reach,
    /// Bound on all of one post.
    pub timeout: Duration,
    /// Of an answer's body no more than this is read, in bytes.
    pub answer_size_max: usize,
}

impl Default for PosterSettings {
    fn default() -> Self {
        Self {
            reach: Reach::default(),
            timeout: Duration::from_secs(10),
            answer_size_max: 64 << 10,
        }
    }
}

/// Something to tell.
#[derive(Clone)]
pub struct Post {
    /// With the user and password that may be in it.
    pub address: String,
    /// JSON, unless these say otherwise.
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

/// Addresses and headers may hold secrets.
impl fmt::Debug for Post {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Post").field("size", &self.body.len()).finish_non_exhaustive()
    }
}

/// What a receiver said, whatever its status is; redirects are not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostAnswer {
    pub status: u16,
    /// Those that are text, in lower case.
    pub headers: Vec<(String, String)>,
    /// What came of it in time, and within the bound.
    pub body: Bytes,
    /// There was more.
    pub is_cut: bool,
    /// For how long the receiver asks to be left alone.
    pub retry_after: Option<Duration>,
}

impl PostAnswer {
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Why something could not be told. `Display` is the user's sentence; of the address it shows the
/// host alone, since the path is what many receivers know their friends by.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    #[error("the address is not valid: {reason}")]
    BadAddress { reason: String },
    #[error("the header `{name}` {reason}")]
    BadHeader { name: String, reason: &'static str },
    #[error("the headers are larger than {max} bytes")]
    HeadersTooLarge { max: usize },
    #[error("`{host}` is {what}, which users may not reach")]
    Forbidden { host: String, what: &'static str },
    #[error("`{host}` could not be reached: {reason}")]
    Unreachable { host: String, reason: String },
    #[error("`{host}` took longer than {} s", timeout.as_secs())]
    TimedOut { host: String, timeout: Duration },
}

impl PostError {
    /// What the user can do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Forbidden { .. } => {
                Some("the server's operator can allow it with `build.allow_addresses`".to_owned())
            }
            _ => None,
        }
    }

    /// Whether trying again can help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::TimedOut { .. })
    }
}

/// Posts to wherever users say. Connections are shared; cheap to clone.
#[derive(Clone)]
pub struct Poster {
    http: Client,
    settings: PosterSettings,
}

impl fmt::Debug for Poster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poster").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Poster {
    pub fn new(settings: PosterSettings) -> Result<Self, crate::RemoteError> {
        // The process-wide provider may be set already; either way it is `ring`.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = Client::builder()
            .user_agent(concat!("refit/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(settings.timeout)
            .redirect(reqwest::redirect::Policy::none())
            .dns_resolver(settings.reach.clone())
            .build()
            .map_err(|error| crate::RemoteError::Settings {
                host: "TLS".to_owned(),
                reason: chain(&error),
            })?;
        Ok(Self { http, settings })
    }

    /// Whether something can be posted there, as far as can be known without asking: for a
    /// receiver that is written down before there is anything to tell.
    pub fn check(&self, address: &str, headers: &[(String, String)]) -> Result<(), PostError> {
        self.target(address)?;
        header_map(headers).map(drop)
    }

    /// Posts once. An answer is what came in time, and an error what did not even begin to.
    pub async fn post(&self, post: &Post) -> Result<PostAnswer, PostError> {
        let (target, host) = self.target(&post.address)?;
        let mut headers = header_map(&post.headers)?;
        let json = HeaderValue::from_static("application/json");
        headers.entry(CONTENT_TYPE).or_insert(json);
        if let Some(credentials) = target.credentials()
            && !headers.contains_key(AUTHORIZATION)
        {
            let own = HeaderValue::from_str(&auth::basic(credentials));
            headers.insert(AUTHORIZATION, own.map_err(|_| bad_address("its user is no text"))?);
        }
        let timeout = self.settings.timeout;
        let deadline = Instant::now() + timeout;
        let request = self.http.post(target.url().clone()).headers(headers).body(post.body.clone());
        match tokio::time::timeout_at(deadline, request.send()).await {
            Ok(Ok(response)) => Ok(self.answer(response, deadline).await),
            Ok(Err(error)) => Err(failed(host, error)),
            Err(_) => Err(PostError::TimedOut { host, timeout }),
        }
    }

    /// Where a post goes, if it may, and how that is shown.
    fn target(&self, address: &str) -> Result<(Target, String), PostError> {
        if address.len() > ADDRESS_SIZE_MAX {
            let reason = format!("it is longer than {ADDRESS_SIZE_MAX} bytes");
            return Err(PostError::BadAddress { reason });
        }
        let target = Target::parse(address).map_err(|error| match error {
            crate::DownloadError::BadAddress { reason } => PostError::BadAddress { reason },
            other => bad_address(&other.to_string()),
        })?;
        let (host, shown) = parts(target.url()).ok_or_else(|| bad_address("it has no host"))?;
        let checked = self.settings.reach.check(&host);
        checked.map_err(|Refused { host, what }| PostError::Forbidden { host, what })?;
        Ok((target, shown))
    }

    async fn answer(&self, mut response: Response, deadline: Instant) -> PostAnswer {
        let max = self.settings.answer_size_max;
        let mut body = Vec::new();
        // The receiver has taken what it was told, whatever becomes of the rest of its answer.
        let is_whole = loop {
            match tokio::time::timeout_at(deadline, response.chunk()).await {
                Ok(Ok(Some(chunk))) if body.len() + chunk.len() <= max => {
                    body.extend_from_slice(&chunk);
                }
                Ok(Ok(Some(chunk))) => {
                    body.extend_from_slice(&chunk[..max - body.len()]);
                    break false;
                }
                Ok(Ok(None)) => break true,
                Ok(Err(_)) | Err(_) => break false,
            }
        };
        let text = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
        let headers = response.headers().iter();
        PostAnswer {
            status: response.status().as_u16(),
            headers: headers
                .filter_map(|(name, value)| Some((name.to_string(), text(value)?)))
                .collect(),
            body: body.into(),
            is_cut: !is_whole,
            retry_after: retry_after(&response),
        }
    }
}

fn parts(url: &Url) -> Option<(Host, String)> {
    Some((url.host()?.to_owned(), authority(url)?))
}

/// The headers of a post. A name that is there twice is sent twice.
fn header_map(headers: &[(String, String)]) -> Result<HeaderMap, PostError> {
    let size: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if size > HEADERS_SIZE_MAX {
        return Err(PostError::HeadersTooLarge { max: HEADERS_SIZE_MAX });
    }
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let bad = |reason| PostError::BadHeader {
            name: name.chars().filter(|c| !c.is_control()).take(60).collect(),
            reason,
        };
        let parsed = HeaderName::from_bytes(name.as_bytes());
        let parsed = parsed.map_err(|_| bad("has a name that no header can have"))?;
        if OWN_HEADERS.contains(&parsed.as_str()) {
            return Err(bad("is set by the server itself"));
        }
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| bad("has a value that is not one line of text"))?;
        value.set_sensitive(true);
        map.append(parsed, value);
    }
    Ok(map)
}

fn bad_address(reason: &str) -> PostError {
    PostError::BadAddress { reason: reason.to_owned() }
}

/// What an HTTP client's error comes to: a name that was refused is no trouble of the network.
fn failed(host: String, error: reqwest::Error) -> PostError {
    let error = error.without_url();
    match refused(&error) {
        Some(Refused { host, what }) => PostError::Forbidden { host: host.clone(), what },
        None => PostError::Unreachable { host, reason: chain(&error) },
    }
}
