//! An agent's requests to its server.

use std::time::Duration;

use control::{ControlError, RunId};
use oci::RegistryName;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::agent_wire::{Claim, Lease, QueueNews, VERSION, WAIT_SECONDS};

/// How long the server may take to answer what it need not wait for.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Between one try of a request and the next: at first, and at most.
const DELAY: Duration = Duration::from_millis(250);
const DELAY_MAX: Duration = Duration::from_secs(5);

/// An answer that says why is read that far.
const ERROR_SIZE_MAX: usize = 64 << 10;

/// Which pool to join, and as whom.
pub(super) struct Join {
    server: Url,
    registry: RegistryName,
    pool: String,
    token: String,
    agent: String,
}

/// A text that is no token of an agent pool.
#[derive(Debug, thiserror::Error)]
#[error("it does not have the form of one")]
pub(super) struct BadToken;

impl Join {
    /// `token` has the form `REGISTRY/POOL/CODE`.
    pub(super) fn read(server: &Url, token: &str, agent: &str) -> Result<Self, BadToken> {
        let token = token.trim();
        let mut parts = token.split('/');
        let (registry, pool, code) = (parts.next(), parts.next(), parts.next());
        let (Some(registry), Some(pool), Some(_), None) = (registry, pool, code, parts.next())
        else {
            return Err(BadToken);
        };
        Ok(Self {
            server: server.clone(),
            registry: registry.parse().map_err(|_| BadToken)?,
            pool: pool.to_owned(),
            token: token.to_owned(),
            agent: agent.to_owned(),
        })
    }
}

/// Why the server did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum AskError {
    /// The run is not this agent's any more.
    #[error("the run is another's by now")]
    Gone,
    /// Asking again is of no use.
    #[error("the server refused it: {0}")]
    Refused(String),
    #[error("the server cannot be reached: {0}")]
    Unreachable(String),
}

impl From<AskError> for ControlError {
    fn from(error: AskError) -> Self {
        Self::Server(error.to_string())
    }
}

/// A server, seen by an agent of one of its pools. Cheap to clone.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    /// Of the pool.
    base: Url,
    token: String,
    claim: Claim,
}

impl Client {
    pub(super) fn new(join: Join, ca_pem: Option<&[u8]>) -> reqwest::Result<Self> {
        // The process-wide provider may be set already; either way it is `ring`.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("refit/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none());
        if let Some(pem) = ca_pem {
            http = http.tls_certs_merge(reqwest::Certificate::from_pem_bundle(pem)?);
        }
        let Join { server, registry, pool, token, agent } = join;
        let mut base = server;
        if let Ok(mut path) = base.path_segments_mut() {
            path.pop_if_empty();
            path.extend(["api", "v1", "registries", registry.as_str(), "agentPools", &pool]);
        }
        let (platform, version) = (super::platform(), VERSION.to_owned());
        Ok(Self { http: http.build()?, base, token, claim: Claim { agent, platform, version } })
    }

    pub(super) fn pool(&self) -> &str {
        self.base.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default()
    }

    /// A run, if there is one.
    pub(super) async fn claim(&self) -> Result<Option<Lease>, AskError> {
        let request = self.request(Method::POST, &["claim"]).json(&self.claim).timeout(TIMEOUT);
        let response = answered(request).await?;
        match response.status() {
            StatusCode::NO_CONTENT => Ok(None),
            _ => json(response).await.map(Some),
        }
    }

    /// Waits for a while until there may be a run.
    pub(super) async fn wait(&self) -> Result<bool, AskError> {
        let request = self.request(Method::GET, &["queue"]).query(&self.claim).timeout(waiting());
        Ok(json::<QueueNews>(answered(request).await?).await?.has_work)
    }

    /// What is asked for under a lease.
    pub(super) fn attempt(&self, run: RunId, epoch: i64, token: &str) -> AttemptClient {
        let client = Self { token: token.to_owned(), ..self.clone() };
        AttemptClient { client, run: run.to_string(), epoch: epoch.to_string() }
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(path);
        }
        self.http.request(method, url).bearer_auth(&self.token)
    }
}

/// One attempt, seen by the agent that has it. Cheap to clone.
#[derive(Clone)]
pub(super) struct AttemptClient {
    /// With the token of the attempt.
    client: Client,
    run: String,
    epoch: String,
}

impl AttemptClient {
    pub(super) fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut all = vec!["attempts", &self.run, &self.epoch];
        all.extend(path);
        self.client.request(method, &all)
    }

    /// Asks once.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, AskError> {
        let request = self.request(Method::GET, path).timeout(waiting());
        json(answered(request).await?).await
    }

    /// Asks once, where the answer is only whether it was done.
    pub(super) async fn tell(&self, path: &[&str], body: &impl Serialize) -> Result<(), AskError> {
        self.tell_within(TIMEOUT, path, body).await
    }

    /// The same, where the server may take longer.
    pub(super) async fn tell_within(
        &self,
        timeout: Duration,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<(), AskError> {
        let request = self.request(Method::POST, path).json(body).timeout(timeout);
        answered(request).await.map(drop)
    }

    /// Asks once.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, AskError> {
        self.ask_within(TIMEOUT, path, body).await
    }

    /// The same, where the server may take longer.
    pub(super) async fn ask_within<T: DeserializeOwned>(
        &self,
        timeout: Duration,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, AskError> {
        let request = self.request(Method::POST, path).json(body).timeout(timeout);
        json(answered(request).await?).await
    }
}

/// How long a request takes whose answer the server holds back.
fn waiting() -> Duration {
    TIMEOUT + Duration::from_secs(WAIT_SECONDS)
}

/// Tries again while the server cannot be reached, for so long.
pub(super) async fn persistently<T, F: Future<Output = Result<T, AskError>>>(
    patience: Duration,
    ask: impl Fn() -> F,
) -> Result<T, AskError> {
    let end = tokio::time::Instant::now() + patience;
    let mut delay = DELAY;
    loop {
        match ask().await {
            Err(AskError::Unreachable(_)) if tokio::time::Instant::now() + delay < end => (),
            answer => return answer,
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(DELAY_MAX);
    }
}

/// An answer of success; what else there may be is an error.
pub(super) async fn answered(request: RequestBuilder) -> Result<Response, AskError> {
    let sent = request.send().await;
    let mut response = sent.map_err(|error| AskError::Unreachable(chain(&error)))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > ERROR_SIZE_MAX {
            break;
        }
    }
    let told = serde_json::from_slice::<api::ErrorBody>(&body).map(|body| body.error.message);
    let told = told.unwrap_or_else(|_| format!("it answered {status}"));
    Err(match status {
        StatusCode::GONE => AskError::Gone,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => AskError::Unreachable(told),
        status if status.is_server_error() => AskError::Unreachable(told),
        _ => AskError::Refused(told),
    })
}

async fn json<T: DeserializeOwned>(response: Response) -> Result<T, AskError> {
    response.json().await.map_err(|error| AskError::Unreachable(chain(&error)))
}

/// An error with its causes; the URL, which is long and says nothing, is left out.
fn chain(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_pool() {
        let server: Url = "https://refit.example/base/".parse().unwrap();
        let join = Join::read(&server, " local/arm/0123\n", "a").unwrap();
        let client = Client::new(join, None).unwrap();
        assert_eq!(client.pool(), "arm");
        let base = "https://refit.example/base/api/v1/registries/local/agentPools/arm";
        assert_eq!(client.base.as_str(), base);
        for bad in ["", "a", "a/b", "a/b/c/d", "UPPER CASE/b/c"] {
            assert!(Join::read(&server, bad, "a").is_err(), "{bad}");
        }
    }
}
