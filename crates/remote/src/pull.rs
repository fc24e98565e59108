//! From a reference to an image in the store.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use oci::{Descriptor, Digest, ImageManifest, MANIFEST_SIZE_MAX, Manifest, Platform, Reference};
use store::BlobStore;

use crate::client::{Ask, read_bounded};
use crate::{Remote, RemoteError};

/// Media types that we can read, best first.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

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

/// An image config is at most this large, in bytes.
const CONFIG_SIZE_MAX: u64 = 8 << 20;

impl Remote {
    /// Finds the manifest that a reference means on a platform.
    pub async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Resolved, RemoteError> {
        let image = reference.to_string();
        let name = match (&reference.digest, reference.tag_or_latest()) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.to_string(),
            (None, None) => "latest".to_owned(),
        };
        let (top, bytes, manifest) =
            self.manifest(reference, &name, reference.digest.as_ref()).await?;
        match manifest {
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
                match self.manifest(reference, digest.as_str(), Some(&digest)).await? {
                    (digest, bytes, Manifest::Image(manifest)) => {
                        Ok(Resolved { top, digest, manifest: *manifest, bytes })
                    }
                    _ => Err(self.bad_manifest(reference, "an index inside an index")),
                }
            }
            Manifest::Artifact(_) => Err(self.bad_manifest(reference, "it is not an image")),
        }
    }

    /// Brings an image's config and layers into the store, several at once, skipping those
    /// that are there and, as far as that can be told without reading them, whole. `progress`
    /// is told of bytes as they come.
    pub async fn pull(
        &self,
        reference: &Reference,
        platform: &Platform,
        blobs: &dyn BlobStore,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Pulled, RemoteError> {
        let resolved = self.resolve(reference, platform).await?;
        let config = &resolved.manifest.config;
        if config.size > CONFIG_SIZE_MAX {
            return Err(self.bad_manifest(reference, "its image config is too large"));
        }
        if blobs.stat(&config.digest).await? == Some(config.size) {
            // It is small and read in any case; one that is damaged is fetched again.
            blobs.verify(&config.digest).await?;
        }
        let wanted = std::iter::once(config).chain(&resolved.manifest.layers);
        // Made before they are streamed: a stream that maps with a closure over references
        // gives a future that the compiler cannot prove to be `Send`.
        let fetches: Vec<_> = wanted
            .map(|descriptor| self.fetch_blob(reference, descriptor, blobs, progress))
            .collect();
        let fetched: Vec<u64> = futures_util::stream::iter(fetches)
            .buffer_unordered(self.inner.settings.parallel)
            .try_collect()
            .await?;
        let fetched = fetched.iter().sum();
        let config = read_blob(blobs, config).await?;
        Ok(Pulled { resolved, config, fetched })
    }

    /// Brings one blob into the store, unless it is there whole. Returns the bytes fetched.
    ///
    /// A broken connection is taken up where it stopped.
    async fn fetch_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        blobs: &dyn BlobStore,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<u64, RemoteError> {
        if blobs.stat(&descriptor.digest).await? == Some(descriptor.size) {
            return Ok(0);
        }
        let host = &reference.host;
        let mut upload = blobs.begin_upload(descriptor.digest.algorithm()).await?;
        let mut got = 0;
        for attempt in 1.. {
            let result = self.stream(reference, descriptor, &mut *upload, &mut got, progress).await;
            match result {
                Ok(()) => break,
                Err(error) if attempt >= self.inner.settings.attempts => return Err(error),
                Err(error) if !error.is_transient() => return Err(error),
                Err(error) => {
                    tracing::debug!(host, digest = %descriptor.digest, %error, got, "going on");
                }
            }
        }
        match upload.commit(Some(&descriptor.digest)).await {
            Ok(_) => Ok(got),
            Err(store::StoreError::DigestMismatch { expected, actual }) => {
                Err(RemoteError::WrongDigest { host: host.clone(), expected, actual })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Streams a blob from `got` on into an upload, holding the peer to its size and pace.
    async fn stream(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        upload: &mut dyn store::Upload,
        got: &mut u64,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(), RemoteError> {
        let host = &reference.host;
        let wrong_size = |got| RemoteError::WrongSize {
            host: host.clone(),
            digest: descriptor.digest.clone(),
            expected: descriptor.size,
            got,
        };
        let path = format!("/v2/{}/blobs/{}", reference.repository, descriptor.digest);
        let ask = Ask { offset: *got, ..Ask::get(path) };
        let image = reference.to_string();
        let mut response = self.request(host, reference.repository.as_str(), &image, &ask).await?;
        // A server that ignores the range sends all of it again: skip what we have.
        let partial = response.status() == reqwest::StatusCode::PARTIAL_CONTENT;
        let mut skip = if partial { 0 } else { *got };
        let settings = &self.inner.settings;
        let mut pace = Pace::start(settings.idle_timeout, settings.rate_min);
        loop {
            let chunk = response.chunk().await;
            match chunk.map_err(|error| crate::client::unreachable(host, &error))? {
                Some(chunk) => {
                    let skipped = skip.min(chunk.len() as u64);
                    skip -= skipped;
                    // Both fit: a chunk is in memory.
                    let chunk = chunk.slice(skipped as usize..);
                    let now = *got + chunk.len() as u64;
                    if now > descriptor.size {
                        return Err(wrong_size(now));
                    }
                    if let Some(seconds) = pace.is_too_slow(chunk.len() as u64) {
                        let (host, floor) = (host.clone(), settings.rate_min);
                        return Err(RemoteError::TooSlow { host, floor, seconds });
                    }
                    progress(chunk.len() as u64);
                    upload.write(chunk).await?;
                    *got = now;
                }
                None if *got == descriptor.size => return Ok(()),
                None => return Err(wrong_size(*got)),
            }
        }
    }

    /// A manifest by tag or digest, checked against the digest where there is one.
    async fn manifest(
        &self,
        reference: &Reference,
        name: &str,
        expected: Option<&Digest>,
    ) -> Result<(Digest, Bytes, Manifest), RemoteError> {
        let host = &reference.host;
        let image = reference.to_string();
        let path = format!("/v2/{}/manifests/{name}", reference.repository);
        let ask = Ask { accept: Some(ACCEPT), ..Ask::get(path) };
        let response = self.request(host, reference.repository.as_str(), &image, &ask).await?;
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
        // Some registries send manifests as plain text: what is inside decides then.
        let known = |kind: &&str| kind.contains("manifest") || kind.contains("index");
        let manifest = Manifest::parse(&bytes, content_type.as_deref().filter(known));
        let manifest =
            manifest.map_err(|error| self.bad_manifest(reference, &error.to_string()))?;
        Ok((actual, bytes.into(), manifest))
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
    read.map_err(|source| store::StoreError::Io { doing: "read an image config".into(), source })?;
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
