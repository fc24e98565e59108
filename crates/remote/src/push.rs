//! From the store to another registry: first the blobs that it lacks, then the manifests.
//!
//! distribution-spec, *Pushing blobs* and *Pushing manifests*. A blob goes in two requests: one
//! asks where to upload it, one carries all of it, straight from the store. A broken one starts
//! over with the first. Where an upload goes is the registry's choice, often another server;
//! that one is followed and gets no credentials.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use oci::{Descriptor, Digest, MANIFEST_SIZE_MAX, Reference, media_type};
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::{Body, Method, Response, StatusCode};
use serde::Deserialize;
use store::{BlobReader, BlobStore, Catalog, StoreError};
use tokio::sync::watch;
use tokio_util::io::ReaderStream;
use url::Url;

use crate::blob::blob_path;
use crate::client::{Access, Ask, Failure, REDIRECTS_MAX, authority, read_bounded};
use crate::pull::{ACCEPT, manifest_path};
use crate::{Remote, RemoteError};

/// An image of the store, and the name it gets on another registry.
#[derive(Debug, Clone, Copy)]
pub struct Push<'a> {
    /// Without tag and digest it means `latest`. With a digest, that is the last manifest's.
    pub reference: &'a Reference,
    /// Those that others name come before them. The last one is what the reference names.
    pub manifests: &'a [ManifestToPush],
}

/// A manifest of any kind, and the blobs that have to be there before it.
#[derive(Debug, Clone)]
pub struct ManifestToPush {
    pub media_type: String,
    pub bytes: Bytes,
    pub digest: Digest,
    /// Its config and layers, in the store. Foreign layers may be among them and stay where
    /// they are.
    pub blobs: Vec<Descriptor>,
}

/// An image that is on another registry now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// What the reference names.
    pub digest: Digest,
    /// Bytes of blobs that had to be sent.
    pub uploaded: u64,
    /// Blobs that were there already.
    pub existing: usize,
}

/// An image has at most this many manifests, its indexes among them.
const MANIFESTS_MAX: usize = 1_000;
/// An image has at most this many blobs over all its manifests.
const BLOBS_MAX: usize = 10_000;
/// What is read from the store at once.
const CHUNK: usize = 64 << 10;
/// A registry that has a whole blob may take a second for so many bytes, besides the idle time,
/// to check it and to put it where it keeps it.
const CHECKED_PER_SECOND: u64 = 16 << 20;

impl Remote {
    /// Sends an image of the store to another registry: [`Self::push_blobs`], then
    /// [`Self::push_manifests`].
    pub async fn push(
        &self,
        push: &Push<'_>,
        catalog: &Catalog,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Pushed, RemoteError> {
        let pushed = self.push_blobs(push, catalog, progress).await?;
        self.push_manifests(push).await?;
        Ok(pushed)
    }

    /// Sends the blobs of an image that are not there, several at once and each once. `progress` is
    /// told of bytes as they go; what has to be sent again is not told again.
    ///
    /// Dropping the future ends the uploads. Nothing has a name on the other side, then or when all
    /// of them have come.
    pub async fn push_blobs(
        &self,
        push: &Push<'_>,
        catalog: &Catalog,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Pushed, RemoteError> {
        let reference = push.reference;
        let (last, blobs) = push.checked()?;
        // Made before they are streamed, as in `fetch_blobs`.
        let uploads: Vec<_> = (blobs.into_values())
            .map(|blob| self.push_blob(reference, blob, &**catalog.blobs(), progress))
            .collect();
        let sent: Vec<Option<u64>> = futures_util::stream::iter(uploads)
            .buffer_unordered(self.inner.settings.parallel)
            .try_collect()
            .await?;
        Ok(Pushed {
            digest: last.digest.clone(),
            uploaded: sent.iter().flatten().sum(),
            existing: sent.iter().filter(|sent| sent.is_none()).count(),
        })
    }

    /// Sends the manifests of an image in their order, whose blobs are there. With the last one the
    /// image has its name.
    pub async fn push_manifests(&self, push: &Push<'_>) -> Result<(), RemoteError> {
        let (last, _) = push.checked()?;
        for manifest in &push.manifests[..push.manifests.len() - 1] {
            self.push_manifest(push.reference, manifest, None).await?;
        }
        let tag = push.reference.tag_or_latest();
        self.push_manifest(push.reference, last, tag.as_ref().map(oci::Tag::as_str)).await
    }

    /// Sends a blob unless it is there. Gives the bytes sent, if it was not.
    async fn push_blob(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        blobs: &dyn BlobStore,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Option<u64>, RemoteError> {
        if self.has(reference, blob_path(reference, &blob.digest)).await? {
            return Ok(None);
        }
        let mut upload = Upload { remote: self, reference, blob, blobs, progress, told: 0 };
        let mut attempts = self.attempts();
        loop {
            let url = self.begin_upload(reference).await?;
            match upload.send(url).await {
                Ok(()) => break,
                Err(failure) => attempts.pause(reference, failure).await?,
            }
            // It may have come whole, and only the answer got lost.
            if self.has(reference, blob_path(reference, &blob.digest)).await? {
                break;
            }
        }
        upload.reached(blob.size);
        Ok(Some(blob.size))
    }

    /// Whether a registry has a blob or manifest in the reference's repository. One that does
    /// not tell gets it.
    async fn has(&self, reference: &Reference, path: String) -> Result<bool, RemoteError> {
        let (method, access) = (Method::HEAD, Access::Push);
        let ask = Ask { method, access, accept: Some(ACCEPT), ..Ask::get(path) };
        match self.ask(reference, &ask).await {
            Ok(_) => Ok(true),
            Err(RemoteError::NoRepository { .. } | RemoteError::Refused { status: 405, .. }) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Asks where to upload a blob.
    async fn begin_upload(&self, reference: &Reference) -> Result<Url, RemoteError> {
        let path = format!("/v2/{}/blobs/uploads/", reference.repository);
        let (method, access) = (Method::POST, Access::Push);
        let body = Some(("application/octet-stream".to_owned(), Bytes::new()));
        let ask = Ask { method, access, body, ..Ask::get(path) };
        let response = self.ask(reference, &ask).await?;
        self.location(reference, &response)
    }

    /// Where an answer leads: to any server, but to none in the clear that is not declared.
    fn location(&self, reference: &Reference, response: &Response) -> Result<Url, RemoteError> {
        let bad = |reason: String| RemoteError::BadUpload {
            host: reference.host.clone(),
            image: reference.to_string(),
            reason,
        };
        let Some(location) = response.headers().get(LOCATION) else {
            return Err(bad("its answer has no `Location`".to_owned()));
        };
        let url = location.to_str().ok().and_then(|text| response.url().join(text).ok());
        let mut url = url.ok_or_else(|| bad("its `Location` is not an address".to_owned()))?;
        if !self.inner.may_receive_blobs(&reference.host, &url) {
            // Not the rest, which may be signed.
            let server = format!("{}://{}", url.scheme(), authority(&url).unwrap_or_default());
            return Err(bad(format!("`{server}` is not an HTTPS address")));
        }
        url.set_fragment(None);
        Ok(url)
    }

    /// Sends a manifest under a tag, or else under its digest if it is not there.
    async fn push_manifest(
        &self,
        reference: &Reference,
        manifest: &ManifestToPush,
        tag: Option<&str>,
    ) -> Result<(), RemoteError> {
        let path = manifest_path(reference, tag.unwrap_or(manifest.digest.as_str()));
        if tag.is_none() && self.has(reference, path.clone()).await? {
            return Ok(());
        }
        let body = Some((manifest.media_type.clone(), manifest.bytes.clone()));
        let (method, access) = (Method::PUT, Access::Push);
        let response = self.ask(reference, &Ask { method, access, body, ..Ask::get(path) }).await?;
        let Some(kept) = response.headers().get("docker-content-digest") else { return Ok(()) };
        let kept = String::from_utf8_lossy(kept.as_bytes());
        // It may be one of another algorithm.
        let is_same = kept
            .parse::<Digest>()
            .is_ok_and(|kept| Digest::with(kept.algorithm(), &manifest.bytes) == kept);
        if is_same {
            return Ok(());
        }
        Err(RemoteError::WrongCopy {
            host: reference.host.clone(),
            image: reference.to_string(),
            expected: manifest.digest.clone(),
            actual: cleaned(&kept),
        })
    }
}

impl<'a> Push<'a> {
    /// The last manifest, and the blobs to send, each once.
    fn checked(
        &self,
    ) -> Result<(&'a ManifestToPush, BTreeMap<&'a Digest, &'a Descriptor>), RemoteError> {
        let Some(last) = self.manifests.last() else {
            return Err(self.bad("it has no manifest".to_owned()));
        };
        if self.manifests.len() > MANIFESTS_MAX {
            return Err(self.bad(format!("it has more than {MANIFESTS_MAX} manifests")));
        }
        if let Some(digest) = self.reference.digest.as_ref().filter(|one| **one != last.digest) {
            return Err(self.bad(format!("it is {}, not {digest}", last.digest)));
        }
        let mut blobs = BTreeMap::new();
        for manifest in self.manifests {
            self.check_manifest(manifest)?;
            let own = |blob: &&Descriptor| !media_type::is_foreign_layer(&blob.media_type);
            for blob in manifest.blobs.iter().filter(own) {
                let other: &Descriptor = blobs.entry(&blob.digest).or_insert(blob);
                if other.size != blob.size {
                    return Err(self.bad(format!("it names two sizes of blob {}", blob.digest)));
                }
            }
        }
        match blobs.len() {
            0..=BLOBS_MAX => Ok((last, blobs)),
            _ => Err(self.bad(format!("it has more than {BLOBS_MAX} blobs"))),
        }
    }

    fn check_manifest(&self, manifest: &ManifestToPush) -> Result<(), RemoteError> {
        let ManifestToPush { bytes, digest, .. } = manifest;
        if bytes.len() > MANIFEST_SIZE_MAX {
            let limit = MANIFEST_SIZE_MAX;
            return Err(self.bad(format!("manifest {digest} has more than {limit} bytes")));
        }
        match Digest::with(digest.algorithm(), bytes) == *digest {
            true => Ok(()),
            false => Err(self.bad(format!("manifest {digest} has other bytes"))),
        }
    }

    fn bad(&self, reason: String) -> RemoteError {
        RemoteError::BadPush { image: self.reference.to_string(), reason }
    }
}

/// A blob on its way to a registry.
struct Upload<'a> {
    remote: &'a Remote,
    reference: &'a Reference,
    blob: &'a Descriptor,
    blobs: &'a dyn BlobStore,
    progress: &'a (dyn Fn(u64) + Send + Sync),
    /// Bytes that `progress` knows of.
    told: u64,
}

impl Upload<'_> {
    /// Carries the whole blob to where the registry wants it.
    async fn send(&mut self, mut url: Url) -> Result<(), Failure> {
        url.query_pairs_mut().append_pair("digest", self.blob.digest.as_str());
        for _ in 0..=REDIRECTS_MAX {
            let response = self.put_signed_in(&url).await?;
            match response.status() {
                status if status.is_success() => return Ok(()),
                StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => {
                    url = self.remote.location(self.reference, &response)?;
                }
                _ => return Err(self.refused(&url, response).await),
            }
        }
        let (host, image) = (self.reference.host.clone(), self.reference.to_string());
        let reason = "too many redirects".to_owned();
        Err(RemoteError::BadUpload { host, image, reason }.into())
    }

    /// The token of the registry goes to the registry only. One that has expired since the
    /// upload began is replaced.
    async fn put_signed_in(&mut self, url: &Url) -> Result<Response, RemoteError> {
        if !self.is_registry(url) {
            return self.put(url, None).await;
        }
        let (remote, reference) = (self.remote, self.reference);
        let known = remote.known_token(reference, Access::Push);
        let response = self.put(url, known.as_deref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let token = remote.new_token(reference, Access::Push, response.headers()).await?;
        self.put(url, Some(&token)).await
    }

    fn is_registry(&self, url: &Url) -> bool {
        self.remote.inner.is_at(&self.reference.host, url)
    }

    /// One request with the whole blob. A peer that takes nothing for too long is given up.
    async fn put(
        &mut self,
        url: &Url,
        authorization: Option<&str>,
    ) -> Result<Response, RemoteError> {
        let (reader, host) = (self.open().await?, &self.reference.host);
        let (given, unread) = (watch::Sender::new(0), Arc::default());
        let body = outgoing(reader, given.clone(), Arc::clone(&unread));
        let inner = &self.remote.inner;
        let mut request = (inner.clients(host, url)?.uploads.put(url.clone()))
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, self.blob.size)
            .body(Body::wrap_stream(body));
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let answer = tokio::select! {
            answer = request.send() => answer.map_err(|error| inner.failed(host, &error)),
            error = self.watch(given.subscribe()) => Err(error),
        };
        let unread = unread.lock().unwrap_or_else(PoisonError::into_inner).take();
        match unread {
            // Not the registry's fault.
            Some(source) => {
                Err(StoreError::Io { doing: "read a blob to push".to_owned(), source }.into())
            }
            None => answer,
        }
    }

    async fn open(&self) -> Result<BlobReader, RemoteError> {
        let Descriptor { digest, size, .. } = self.blob;
        let reader = self.blobs.open(digest, 0).await?;
        match reader.remaining() {
            stored if stored == *size => Ok(reader),
            stored => Err(self.bad(format!("it has {stored} bytes of {digest}, not {size}"))),
        }
    }

    /// Tells of progress until the peer has taken nothing for too long; gives the error then.
    async fn watch(&mut self, mut given: watch::Receiver<u64>) -> RemoteError {
        loop {
            let sent = *given.borrow_and_update();
            self.reached(sent);
            let mut patience = self.remote.inner.settings.idle_timeout;
            if sent >= self.blob.size {
                patience += Duration::from_secs(self.blob.size / CHECKED_PER_SECOND);
            }
            if let Ok(Ok(())) = tokio::time::timeout(patience, given.changed()).await {
                continue;
            }
            let (host, image) = (self.reference.host.clone(), self.reference.to_string());
            return RemoteError::Stalled { host, image, seconds: patience.as_secs() };
        }
    }

    /// So many bytes of the blob are gone, perhaps for a second time.
    fn reached(&mut self, bytes: u64) {
        if bytes > self.told {
            (self.progress)(bytes - self.told);
            self.told = bytes;
        }
    }

    /// What an answer that is no success means for the blob.
    async fn refused(&self, url: &Url, response: Response) -> Failure {
        let (host, image) = (self.reference.host.clone(), self.reference.to_string());
        let (digest, size) = (self.blob.digest.clone(), self.blob.size);
        let status = response.status();
        let mut failure = self.remote.failure(self.reference, Access::Push, response).await;
        failure.error = match failure.error {
            // No credentials of the user's would help there.
            RemoteError::Denied { .. } if !self.is_registry(url) => {
                let server = authority(url).unwrap_or_default();
                let (status, reason) = (status.as_u16(), format!("`{server}` answered {status}"));
                RemoteError::Refused { host, image, status, reason }
            }
            // The upload is forgotten and has to begin again.
            RemoteError::NoRepository { .. } | RemoteError::Refused { status: 404, .. } => {
                RemoteError::LostUpload { host, image }
            }
            RemoteError::Refused { status: 413, .. } => {
                RemoteError::BlobTooLarge { host, image, digest, size }
            }
            // It found another digest, perhaps rightly.
            RemoteError::Refused { status: 400, .. } => match self.blobs.verify(&digest).await {
                Ok(true) => failure.error,
                Ok(false) => self.bad(format!("blob {digest} is damaged in the store")),
                Err(error) => error.into(),
            },
            error => error,
        };
        failure
    }

    fn bad(&self, reason: String) -> RemoteError {
        RemoteError::BadPush { image: self.reference.to_string(), reason }
    }
}

/// A blob as the body of a request: `given` is told what has been taken of it, `unread` gets
/// the error if the store cannot read it.
fn outgoing(
    reader: BlobReader,
    given: watch::Sender<u64>,
    unread: Arc<Mutex<Option<io::Error>>>,
) -> impl Stream<Item = io::Result<Bytes>> {
    ReaderStream::with_capacity(reader.into_async(), CHUNK).map(move |chunk| match chunk {
        Ok(bytes) => {
            given.send_modify(|given| *given += bytes.len() as u64);
            Ok(bytes)
        }
        Err(error) => {
            *unread.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            Err(io::Error::other("the blob cannot be read"))
        }
    })
}

/// A registry's own words are read up to here, in bytes.
const REASON_BODY_MAX: usize = 64 << 10;
/// Errors that are told of those in one answer.
const REASONS_MAX: usize = 3;
/// Characters that are told of one of them.
const REASON_LEN_MAX: usize = 200;

/// Whether a status says that a registry does not take what it was sent, now or later.
pub(crate) fn is_refusal(status: StatusCode) -> bool {
    let passing = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
    status == StatusCode::INSUFFICIENT_STORAGE || status.is_client_error() && !passing
}

/// What a refusal means, with the reasons that the answer gives.
pub(crate) async fn refusal(
    reference: &Reference,
    with_credentials: bool,
    response: Response,
) -> RemoteError {
    let (host, image) = (reference.host.clone(), reference.to_string());
    let status = response.status();
    let body = read_bounded(&host, response, "an error", REASON_BODY_MAX).await;
    let said = said(&body.unwrap_or_default());
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
            if !crate::error::is_about_space(0, &said.reasons) =>
        {
            RemoteError::Denied { host, image, access: Access::Push, with_credentials }
        }
        StatusCode::NOT_FOUND if said.reasons.is_empty() || said.is_about_the_name => {
            RemoteError::NoRepository { host, image }
        }
        _ if said.reasons.is_empty() => {
            let (status, reason) = (status.as_u16(), format!("its answer is {status}"));
            RemoteError::Refused { host, image, status, reason }
        }
        _ => {
            let status = status.as_u16();
            RemoteError::Refused { host, image, status, reason: said.reasons }
        }
    }
}

/// Why, in a registry's own words.
#[derive(Default)]
struct Said {
    reasons: String,
    is_about_the_name: bool,
}

/// Reads an answer as in distribution-spec, *Error Codes*.
fn said(body: &[u8]) -> Said {
    #[derive(Deserialize)]
    struct Answer {
        errors: Vec<Reason>,
    }
    #[derive(Deserialize)]
    struct Reason {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(Answer { errors }) = serde_json::from_slice(body) else { return Said::default() };
    let words = |reason: &Reason| match reason.message.trim() {
        "" => cleaned(&reason.code),
        message => cleaned(message),
    };
    let reasons = errors.iter().take(REASONS_MAX).map(words).filter(|words| !words.is_empty());
    Said {
        reasons: reasons.collect::<Vec<_>>().join("; "),
        is_about_the_name: errors.iter().any(|reason| reason.code == "NAME_UNKNOWN"),
    }
}

/// A text of somebody else on one line of bounded length.
fn cleaned(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    let mut short: String = text.trim().chars().take(REASON_LEN_MAX).collect();
    if short.len() < text.trim().len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_says_is_told_on_one_short_line() {
        let cases = [
            (r#"{"errors":[{"code":"MANIFEST_INVALID","message":"bad layer"}]}"#, "bad layer"),
            (r#"{"errors":[{"code":"DENIED","message":""}]}"#, "DENIED"),
            (r#"{"errors":[{"message":"a"},{"message":"b"},{"code":""}]}"#, "a; b"),
            (r#"{"errors":[{"message":"a\u001b[31m\nb","detail":{"x":1}}]}"#, "a[31mb"),
            (r#"{"errors":[]}"#, ""),
            ("<html>no</html>", ""),
            ("", ""),
        ];
        for (body, expected) in cases {
            assert_eq!(said(body.as_bytes()).reasons, expected, "{body}");
        }
        let long = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "é".repeat(300));
        assert_eq!(said(long.as_bytes()).reasons, format!("{}…", "é".repeat(200)));
        let many = format!(r#"{{"errors":[{}]}}"#, [r#"{"code":"X"}"#; 9].join(","));
        assert_eq!(said(many.as_bytes()).reasons, "X; X; X");
    }
}
