//! From a reference to an image in the store.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use oci::{Descriptor, Digest, ImageManifest, MANIFEST_SIZE_MAX, Manifest, Platform, Reference};
use reqwest::{Method, Response};
use store::{BlobStore, Catalog, StoreError};

use crate::blob::SizeRule;
use crate::client::{Ask, Failure, read_bounded};
use crate::tag::rest_of;
use crate::{Remote, RemoteError};

/// Media types that we can read, best first.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.oci.artifact.manifest.v1+json";

/// A manifest of another registry.
#[derive(Debug, Clone)]
pub struct RemoteManifest {
    pub digest: Digest,
    pub media_type: String,
    /// As they came.
    pub bytes: Bytes,
    pub manifest: Manifest,
}

/// An image found on a registry: which manifest a reference means for a platform.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// What the reference itself points at: an index, or the manifest.
    pub top: Digest,
    /// The manifest of the platform.
    pub digest: Digest,
    pub manifest: ImageManifest,
    /// The manifest's bytes as they came.
    pub bytes: Bytes,
}

/// An image whose blobs are in the store.
#[derive(Debug, Clone)]
pub struct Pulled {
    pub resolved: Resolved,
    pub config: Bytes,
    /// Bytes that had to be fetched.
    pub fetched: u64,
}

/// What stands for an image in the path of a request.
pub(crate) fn manifest_name(reference: &Reference) -> String {
    match (&reference.digest, reference.tag_or_latest()) {
        (Some(digest), _) => digest.to_string(),
        (None, Some(tag)) => tag.to_string(),
        (None, None) => "latest".to_owned(),
    }
}

pub(crate) fn manifest_path(reference: &Reference, name: &str) -> String {
    format!("/v2/{}/manifests/{name}", reference.repository)
}

/// An image config is at most this large, in bytes.
const CONFIG_SIZE_MAX: u64 = 8 << 20;
/// How long blobs are kept after they were used: longer than a build or an import can last, and
/// what is done every night or every week finds them here.
const KEEP: Duration = Duration::from_secs(8 * 24 * 60 * 60);

/// The owner of the leases on what a repository of another registry has sent.
fn sender(reference: &Reference) -> String {
    format!("sent-by/{}/{}", reference.host, reference.repository)
}

impl Remote {
    /// Finds the manifest that a reference means on a platform.
    pub async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Resolved, RemoteError> {
        let image = reference.to_string();
        let fetched = self.fetch_manifest(reference).await?;
        let (top, bytes) = (fetched.digest, fetched.bytes);
        match fetched.manifest {
            Manifest::Image(manifest) => {
                Ok(Resolved { digest: top.clone(), top, manifest: *manifest, bytes })
            }
            Manifest::Index(index) => {
                let Some(chosen) = index.for_platform(platform) else {
                    let offered = index.manifests.iter().filter_map(|m| m.platform.as_ref());
                    let offered = offered.map(Platform::to_string).collect();
                    let wanted = platform.to_string();
                    return Err(RemoteError::NoPlatform { image, wanted, offered });
                };
                let digest = chosen.digest.clone();
                let chosen = self.manifest(reference, digest.as_str(), Some(&digest)).await?;
                match chosen.manifest {
                    Manifest::Image(manifest) => {
                        let bytes = chosen.bytes;
                        Ok(Resolved { top, digest, manifest: *manifest, bytes })
                    }
                    _ => Err(self.bad_manifest(reference, "an index inside an index")),
                }
            }
            Manifest::Artifact(_) => Err(self.bad_manifest(reference, "it is not an image")),
        }
    }

    /// Brings an image's config and layers into the store, as [`Self::fetch_blobs`] does.
    pub async fn pull(
        &self,
        reference: &Reference,
        platform: &Platform,
        catalog: &Catalog,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Pulled, RemoteError> {
        let resolved = self.resolve(reference, platform).await?;
        let config = &resolved.manifest.config;
        if config.size > CONFIG_SIZE_MAX {
            return Err(self.bad_manifest(reference, "its image config is too large"));
        }
        let blobs = catalog.blobs();
        if blobs.stat(&config.digest).await? == Some(config.size) {
            // It is small and read in any case; one that is damaged is fetched again.
            blobs.verify(&config.digest).await?;
        }
        let wanted = std::iter::once(config).chain(&resolved.manifest.layers);
        let fetched = self.fetch_blobs(reference, wanted, catalog, progress).await?;
        let config = read_blob(&**blobs, config).await?;
        Ok(Pulled { resolved, config, fetched })
    }

    /// Brings blobs of an image into the store, several at once, and keeps them there for
    /// eight days. Gives the bytes fetched; `progress` is told of them as they come.
    ///
    /// A blob of the store stands for one of the other registry only if the same repository of
    /// it has sent that blob before, and the store has it whole. That the store has it is not
    /// enough: a registry that knows the digest of somebody's blob could name it in a manifest,
    /// and whoever pulls that would get content which that registry never had (architecture.md
    /// decision 7). The leases that keep blobs say which repository has sent what.
    pub async fn fetch_blobs<'a>(
        &self,
        reference: &Reference,
        wanted: impl IntoIterator<Item = &'a Descriptor>,
        catalog: &Catalog,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<u64, RemoteError> {
        // Made before they are streamed: a stream that maps with a closure over references
        // gives a future that the compiler cannot prove to be `Send`.
        let fetches: Vec<_> = (wanted.into_iter())
            .map(|descriptor| self.fetch_blob(reference, descriptor, catalog, progress))
            .collect();
        let fetched: Vec<u64> = futures_util::stream::iter(fetches)
            .buffer_unordered(self.inner.settings.parallel)
            .try_collect()
            .await?;
        Ok(fetched.iter().sum())
    }

    /// Brings one blob into the store. Gives the bytes fetched.
    async fn fetch_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        catalog: &Catalog,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<u64, RemoteError> {
        let (digest, size) = (&descriptor.digest, descriptor.size);
        let (blobs, sender) = (catalog.blobs(), sender(reference));
        if catalog.renew_lease(&sender, digest, KEEP).await?
            && blobs.stat(digest).await? == Some(size)
        {
            return Ok(0);
        }
        let mut blob = self.open_blob(reference, digest, SizeRule::Exact(size)).await?;
        let mut upload = blobs.begin_upload(digest.algorithm()).await?;
        while let Some(chunk) = blob.chunk().await? {
            progress(chunk.len() as u64);
            upload.write(chunk).await?;
        }
        match upload.commit(Some(digest)).await {
            Err(StoreError::DigestMismatch { expected, actual }) => {
                let host = reference.host.clone();
                return Err(RemoteError::WrongDigest { host, expected, actual });
            }
            stored => stored?,
        };
        catalog.lease_blob(&sender, digest, KEEP).await?;
        Ok(blob.got())
    }

    /// What a reference means, if the registry tells without sending the manifest.
    pub async fn manifest_digest(
        &self,
        reference: &Reference,
    ) -> Result<Option<Digest>, RemoteError> {
        let path = manifest_path(reference, &manifest_name(reference));
        let ask = Ask { method: Method::HEAD, accept: Some(ACCEPT), ..Ask::get(path) };
        let response = match self.ask(reference, &ask).await {
            Err(RemoteError::Status { status: 405 | 501, .. }) => return Ok(None),
            response => response?,
        };
        let digest = response.headers().get("docker-content-digest");
        Ok(digest.and_then(|digest| digest.to_str().ok()?.parse().ok()))
    }

    /// A manifest of any kind, by digest or else by tag, checked against the digest where there
    /// is one.
    pub async fn fetch_manifest(
        &self,
        reference: &Reference,
    ) -> Result<RemoteManifest, RemoteError> {
        self.manifest(reference, &manifest_name(reference), reference.digest.as_ref()).await
    }

    pub(crate) async fn manifest(
        &self,
        reference: &Reference,
        name: &str,
        expected: Option<&Digest>,
    ) -> Result<RemoteManifest, RemoteError> {
        let ask = Ask { accept: Some(ACCEPT), ..Ask::get(manifest_path(reference, name)) };
        let response = self.ask(reference, &ask).await?;
        self.read_manifest(reference, response, expected).await
    }

    /// What a reference means, without trying again; and for how long the registry wants to be left alone.
    pub(crate) async fn manifest_once(
        &self,
        reference: &Reference,
    ) -> Result<(RemoteManifest, Option<Duration>), Failure> {
        let path = manifest_path(reference, &manifest_name(reference));
        let ask = Ask { accept: Some(ACCEPT), ..Ask::get(path) };
        let response = self.ask_once(reference, &ask).await?;
        let rest = rest_of(response.headers());
        Ok((self.read_manifest(reference, response, reference.digest.as_ref()).await?, rest))
    }

    async fn read_manifest(
        &self,
        reference: &Reference,
        response: Response,
        expected: Option<&Digest>,
    ) -> Result<RemoteManifest, RemoteError> {
        let host = &reference.host;
        let content_type = response.headers().get(reqwest::header::CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let bytes = read_bounded(host, response, "a manifest", MANIFEST_SIZE_MAX).await?;
        let actual = match expected {
            Some(expected) => Digest::with(expected.algorithm(), &bytes),
            None => Digest::of(&bytes),
        };
        if let Some(expected) = expected
            && actual != *expected
        {
            let expected = expected.clone();
            return Err(RemoteError::WrongDigest { host: host.clone(), expected, actual });
        }
        let content_type = content_type.as_deref().and_then(|text| text.split(';').next());
        // Some registries send manifests as plain text: what is inside decides then.
        let known = |kind: &&str| kind.contains("manifest") || kind.contains("index");
        let content_type = content_type.map(str::trim).filter(known);
        let manifest = Manifest::parse(&bytes, content_type);
        let manifest =
            manifest.map_err(|error| self.bad_manifest(reference, &error.to_string()))?;
        let media_type = content_type.unwrap_or(manifest.media_type()).to_owned();
        Ok(RemoteManifest { digest: actual, media_type, bytes: bytes.into(), manifest })
    }

    fn bad_manifest(&self, reference: &Reference, reason: &str) -> RemoteError {
        RemoteError::BadManifest {
            host: reference.host.clone(),
            image: reference.to_string(),
            reason: reason.to_owned(),
        }
    }
}

/// Reads a small blob of known size that is in the store.
async fn read_blob(blobs: &dyn BlobStore, descriptor: &Descriptor) -> Result<Bytes, RemoteError> {
    use tokio::io::AsyncReadExt;
    let mut bytes = Vec::new();
    let reader = blobs.open(&descriptor.digest, 0).await?.into_async();
    let read = reader.take(descriptor.size).read_to_end(&mut bytes).await;
    read.map_err(|source| StoreError::Io { doing: "read an image config".into(), source })?;
    Ok(bytes.into())
}

/// Watches that a peer keeps a minimal pace, so that one that drips bytes does not hold a
/// build for ever.
pub(crate) struct Pace {
    window: Duration,
    rate_min: u64,
    since: Instant,
    bytes: u64,
}

impl Pace {
    pub(crate) fn start(window: Duration, rate_min: u64) -> Self {
        Self { window, rate_min, since: Instant::now(), bytes: 0 }
    }

    /// Counts bytes that came; over how many seconds they were too few, if they were.
    pub(crate) fn is_too_slow(&mut self, bytes: u64) -> Option<u64> {
        self.bytes += bytes;
        let elapsed = self.since.elapsed();
        if elapsed < self.window {
            return None;
        }
        let seconds = elapsed.as_secs().max(1);
        if self.bytes / seconds < self.rate_min {
            return Some(seconds);
        }
        (self.since, self.bytes) = (Instant::now(), 0);
        None
    }
}
