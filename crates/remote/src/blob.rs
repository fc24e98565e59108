//! A blob of another registry as it comes, held to its size and its pace.

use bytes::Bytes;
use oci::{Digest, Reference};
use reqwest::{Method, Response, StatusCode};

use crate::client::{Ask, unreachable};
use crate::pull::Pace;
use crate::{Remote, RemoteError};

/// How large a blob may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeRule {
    /// A manifest says how many bytes it has.
    Exact(u64),
    /// Nothing is known of it.
    AtMost(u64),
}

impl Remote {
    /// The size of a blob if the registry has it and says so.
    pub async fn blob_size(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<Option<u64>, RemoteError> {
        let ask = Ask { method: Method::HEAD, ..Ask::get(blob_path(reference, digest)) };
        Ok(content_length(&self.ask(reference, &ask).await?))
    }

    /// Asks for a blob. What comes is not checked against its digest: whoever takes it does.
    pub async fn open_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        rule: SizeRule,
    ) -> Result<IncomingBlob, RemoteError> {
        let (reference, digest) = (reference.clone(), digest.clone());
        let pace = Pace::start(self.inner.settings.idle_timeout, self.inner.settings.rate_min);
        let (size, size_max) = match rule {
            SizeRule::Exact(size) => (Some(size), size),
            SizeRule::AtMost(max) => (None, max),
        };
        let remote = self.clone();
        let mut blob = IncomingBlob {
            remote,
            reference,
            digest,
            size,
            size_max,
            got: 0,
            body: None,
            attempt: 1,
            pace,
        };
        loop {
            match blob.connect().await {
                Ok(()) => return Ok(blob),
                Err(error) => blob.give_up_or_go_on(error)?,
            }
        }
    }
}

pub(crate) fn blob_path(reference: &Reference, digest: &Digest) -> String {
    format!("/v2/{}/blobs/{digest}", reference.repository)
}

fn content_length(response: &Response) -> Option<u64> {
    let header = response.headers().get(reqwest::header::CONTENT_LENGTH)?;
    header.to_str().ok()?.parse().ok()
}

/// A blob on its way. A broken connection is taken up where it stopped.
pub struct IncomingBlob {
    remote: Remote,
    reference: Reference,
    digest: Digest,
    size: Option<u64>,
    size_max: u64,
    got: u64,
    /// What comes, and how much of it is there already: a server may ignore the range and send
    /// all of it again.
    body: Option<(Response, u64)>,
    attempt: u32,
    pace: Pace,
}

impl IncomingBlob {
    /// How many bytes it will have, if that is known.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// Bytes that came.
    pub fn got(&self) -> u64 {
        self.got
    }

    /// The next bytes; none at the end, when there are as many as announced.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, RemoteError> {
        loop {
            match self.next().await {
                Ok(Some(chunk)) if chunk.is_empty() => (),
                Ok(chunk) => return Ok(chunk),
                Err(error) => {
                    self.body = None;
                    self.give_up_or_go_on(error)?;
                }
            }
        }
    }

    fn give_up_or_go_on(&mut self, error: RemoteError) -> Result<(), RemoteError> {
        if !error.is_transient() || self.attempt >= self.remote.inner.settings.attempts {
            return Err(error);
        }
        let (host, digest, got) = (&self.reference.host, &self.digest, self.got);
        tracing::debug!(host, %digest, %error, got, "going on");
        self.attempt += 1;
        Ok(())
    }

    async fn connect(&mut self) -> Result<(), RemoteError> {
        let ask = Ask { offset: self.got, ..Ask::get(blob_path(&self.reference, &self.digest)) };
        let response = self.remote.ask(&self.reference, &ask).await?;
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        if !partial && self.size.is_none() {
            self.size = content_length(&response);
            if self.size.is_some_and(|size| size > self.size_max) {
                return Err(self.wrong_size(self.size.unwrap_or_default()));
            }
        }
        let skip = if partial { 0 } else { self.got };
        self.body = Some((response, skip));
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Bytes>, RemoteError> {
        if self.body.is_none() {
            self.connect().await?;
        }
        let Some((response, skip)) = &mut self.body else { return Ok(None) };
        let chunk = response.chunk().await;
        let Some(chunk) = chunk.map_err(|error| unreachable(&self.reference.host, &error))? else {
            return match self.size {
                Some(size) if size != self.got => Err(self.wrong_size(self.got)),
                _ => Ok(None),
            };
        };
        let skipped = (*skip).min(chunk.len() as u64);
        *skip -= skipped;
        // Both fit: a chunk is in memory.
        let chunk = chunk.slice(skipped as usize..);
        let got = self.got + chunk.len() as u64;
        if got > self.size.unwrap_or(self.size_max) {
            return Err(self.wrong_size(got));
        }
        if let Some(seconds) = self.pace.is_too_slow(chunk.len() as u64) {
            let host = self.reference.host.clone();
            let floor = self.remote.inner.settings.rate_min;
            return Err(RemoteError::TooSlow { host, floor, seconds });
        }
        self.got = got;
        Ok(Some(chunk))
    }

    fn wrong_size(&self, got: u64) -> RemoteError {
        RemoteError::WrongSize {
            host: self.reference.host.clone(),
            digest: self.digest.clone(),
            expected: self.size.unwrap_or(self.size_max).min(self.size_max),
            got,
        }
    }
}
