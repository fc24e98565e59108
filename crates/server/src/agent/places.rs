//! What of a run is at the server: its context, and the registry that its images are for.

use std::time::Duration;

use async_trait::async_trait;
use container::Stream as OutputStream;
use control::{Attempt, RunLog};
use engine::{
    AcrCommand, AcrError, BuiltImages, Housekeeper, Lease, Lines, Publication, PublishError,
    Publisher, Release, SecretError, SecretSource,
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use oci::{Algorithm, Digest};
use reqwest::Method;
use reqwest::header::CONTENT_LENGTH;
use store::{Catalog, StoreError};
use task::SecretText;
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;

use super::client::{AskError, AttemptClient, answered, persistently};
use crate::agent_wire::{AcrRecord, Blobs, SecretAnswer, SecretWanted, TokenAnswer};
use crate::identity::{GivenToken, TokenSource, TokenWanted};

/// How long a context is kept here, should nobody release it.
const KEEP: Duration = Duration::from_secs(24 * 60 * 60);

/// For how long a transfer is tried again when the server cannot be reached.
const PATIENCE: Duration = Duration::from_secs(60);

/// For one request of a secret, which the server may have to ask others for.
const SECRET_TIMEOUT: Duration = Duration::from_secs(110);

/// A transfer that brings nothing for this long is given up.
const STALL: Duration = Duration::from_secs(60);

/// How long the server may take to publish an image.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(600);

/// Blobs sent at once.
const PARALLEL: usize = 4;

/// Bytes of a blob that are read at once.
const CHUNK: usize = 256 << 10;

/// A line of an answer that is longer is damage.
const LINE_MAX: usize = 1 << 20;

/// Why the context of a run is not here.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContextError {
    #[error("the build context could not be fetched: {0}")]
    Ask(#[from] AskError),
    #[error("the build context could not be kept: {0}")]
    Store(#[from] StoreError),
}

fn context_owner(attempt: &Attempt) -> String {
    format!("context/{}", attempt.fence())
}

/// Brings what was uploaded for a run, as far as it is not here yet.
pub(super) async fn fetch_context(
    client: &AttemptClient,
    attempt: &Attempt,
    catalog: &Catalog,
) -> Result<(), ContextError> {
    let owner = context_owner(attempt);
    for digest in attempt.run.request.blobs() {
        if catalog.blobs().stat(&digest).await?.is_none() {
            persistently(PATIENCE, || fetch(client, &digest, catalog)).await?;
        }
        catalog.lease_blob(&owner, &digest, KEEP).await?;
    }
    Ok(())
}

async fn fetch(client: &AttemptClient, digest: &Digest, catalog: &Catalog) -> Result<(), AskError> {
    let broken = |reason: &str| AskError::Unreachable(reason.to_owned());
    let own = |error: StoreError| AskError::Refused(error.to_string());
    let answer = answered(client.request(Method::GET, &["context", digest.as_str()]));
    let answer = tokio::time::timeout(STALL, answer).await;
    let mut response = answer.map_err(|_| broken("nothing came for too long"))??;
    let mut upload = catalog.blobs().begin_upload(Algorithm::Sha256).await.map_err(own)?;
    loop {
        match tokio::time::timeout(STALL, response.chunk()).await {
            Ok(Ok(Some(chunk))) => upload.write(chunk).await.map_err(own)?,
            Ok(Ok(None)) => break,
            Ok(Err(_)) => return Err(broken("the connection broke")),
            Err(_) => return Err(broken("nothing came for too long")),
        }
    }
    upload.commit(Some(digest)).await.map_err(own)?;
    Ok(())
}

/// The context may be collected.
pub(super) async fn release_context(attempt: &Attempt, catalog: &Catalog) {
    let owner = context_owner(attempt);
    if let Err(error) = catalog.release_leases(&owner).await {
        tracing::warn!(%error, owner, "leases not released; they end within a day");
    }
}

/// Publishes in the registry of the server, which asks for the lease itself.
pub(super) struct PoolPublisher(AttemptClient);

impl PoolPublisher {
    pub(super) fn new(client: AttemptClient) -> Self {
        Self(client)
    }

    /// Sends the blobs that the server lacks.
    async fn send(&self, catalog: &Catalog, digests: Vec<Digest>) -> Result<(), PublishError> {
        let body = Blobs { digests };
        let missing = persistently(PATIENCE, || self.0.ask::<Blobs>(&["blobs"], &body)).await;
        let missing = missing.map_err(failure)?.digests;
        let sent = stream::iter(missing).map(|digest| async move {
            let send = || self.send_blob(catalog, &digest);
            persistently(PATIENCE, send).await.map_err(failure)
        });
        sent.buffer_unordered(PARALLEL).try_collect().await
    }

    async fn send_blob(&self, catalog: &Catalog, digest: &Digest) -> Result<(), AskError> {
        let own = |error: StoreError| AskError::Refused(error.to_string());
        let blob = catalog.blobs().open(digest, 0).await.map_err(own)?;
        let size = blob.remaining();
        let chunks = ReaderStream::with_capacity(blob.into_async(), CHUNK);
        let request = self.0.request(Method::PUT, &["blobs", digest.as_str()]);
        let request = request.header(CONTENT_LENGTH, size);
        answered(request.body(reqwest::Body::wrap_stream(chunks))).await.map(drop)
    }
}

fn failure(error: AskError) -> PublishError {
    match error {
        AskError::Gone => PublishError::LeaseLost,
        AskError::Refused(reason) => PublishError::Refused(reason),
        AskError::Unreachable(_) => PublishError::Server(error.to_string()),
    }
}

#[async_trait]
impl Publisher for PoolPublisher {
    async fn publish(
        &self,
        catalog: &Catalog,
        built: Option<&BuiltImages>,
        publication: &Publication<'_>,
        _: &dyn Lease,
    ) -> Result<(), PublishError> {
        let release = Release::prepare(catalog, built, publication).await?;
        self.send(catalog, release.blobs()?.into_iter().collect()).await?;
        let tell = || self.0.tell_within(PUBLISH_TIMEOUT, &["publish"], &release);
        persistently(PATIENCE, tell).await.map_err(failure)
    }

    fn takes_imports(&self) -> bool {
        false
    }
}

/// Has the server say what the secrets of a run are.
pub(super) struct PoolSecrets(AttemptClient);

impl PoolSecrets {
    pub(super) fn new(client: AttemptClient) -> Self {
        Self(client)
    }
}

impl std::fmt::Debug for PoolSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("secrets that the server has")
    }
}

#[async_trait]
impl SecretSource for PoolSecrets {
    async fn fetch(&self, secret: &task::Secret) -> Result<SecretText, SecretError> {
        let wanted = SecretWanted::of(secret);
        let asked = persistently(PATIENCE, || {
            self.0.ask_within::<SecretAnswer>(SECRET_TIMEOUT, &["secret"], &wanted)
        });
        match asked.await {
            Ok(SecretAnswer::Value(value)) => Ok(SecretText::new(value)),
            Ok(SecretAnswer::Refused(reason)) => Err(SecretError::Refused(reason)),
            Ok(SecretAnswer::Unavailable(reason)) => Err(SecretError::Unavailable(reason)),
            Err(error) => Err(SecretError::Unavailable(error.to_string())),
        }
    }
}

/// Has the server make the tokens of identities.
pub(super) struct PoolTokens {
    pub(super) client: AttemptClient,
    /// Of the agent: what the server hides, it need not send.
    pub(super) log: RunLog,
}

impl std::fmt::Debug for PoolTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("identities that the server has")
    }
}

#[async_trait]
impl TokenSource for PoolTokens {
    async fn token(&self, wanted: &TokenWanted) -> Result<GivenToken, SecretError> {
        let asked = persistently(PATIENCE, || {
            self.client.ask_within::<TokenAnswer>(SECRET_TIMEOUT, &["identityToken"], wanted)
        });
        match asked.await {
            Ok(TokenAnswer::Given(given)) => {
                self.log.hide([&*given.token]);
                Ok(given)
            }
            Ok(TokenAnswer::Refused(reason)) => Err(SecretError::Refused(reason)),
            Ok(TokenAnswer::Unavailable(reason)) => Err(SecretError::Unavailable(reason)),
            Err(error) => Err(SecretError::Unavailable(error.to_string())),
        }
    }
}

/// Has the server carry out commands of `acr`.
pub(super) struct PoolHousekeeper(AttemptClient);

impl PoolHousekeeper {
    pub(super) fn new(client: AttemptClient) -> Self {
        Self(client)
    }
}

#[async_trait]
impl Housekeeper for PoolHousekeeper {
    async fn run(
        &self,
        _: &str,
        command: &AcrCommand,
        lines: &dyn Lines,
        stop: &CancellationToken,
    ) -> Result<(), AcrError> {
        tokio::select! {
            ended = follow(&self.0, command, lines) => ended,
            // The server hears of it by the end of the connection.
            () = stop.cancelled() => Err(AcrError::Canceled),
        }
    }
}

async fn follow(
    client: &AttemptClient,
    command: &AcrCommand,
    lines: &dyn Lines,
) -> Result<(), AcrError> {
    let failed = |error: AskError| AcrError::Failed(error.to_string());
    let request = client.request(Method::POST, &["acr"]).json(command);
    let mut response = answered(request).await.map_err(failed)?;
    let broken = || AcrError::Failed("the server broke off before the end".to_owned());
    let mut rest = Vec::new();
    loop {
        let chunk = response.chunk().await.map_err(|_| broken())?.ok_or_else(broken)?;
        rest.extend_from_slice(&chunk);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            match serde_json::from_slice(&line).map_err(|_| broken())? {
                AcrRecord::Stdout(text) => lines.line(OutputStream::Stdout, &text).await,
                AcrRecord::Stderr(text) => lines.line(OutputStream::Stderr, &text).await,
                AcrRecord::Done => return Ok(()),
                AcrRecord::Canceled => return Err(AcrError::Canceled),
                AcrRecord::Refused { message, hint } => {
                    return Err(AcrError::Refused { message, hint });
                }
                AcrRecord::Failed(message) => return Err(AcrError::Failed(message)),
            }
        }
        if rest.len() > LINE_MAX {
            return Err(broken());
        }
    }
}
