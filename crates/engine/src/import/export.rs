//! The way back: an image of a registry of this server goes to another registry as it is, with all its
//! platforms and what belongs to it.

use std::collections::BTreeSet;

use futures_util::future::BoxFuture;
use oci::{Digest, Reference};
use remote::{ManifestToPush, Push, Pushed, Remote, RemoteError, RemoteManifest};
use store::Catalog;

use super::{DEPTH_MAX, ImportError, ImportSource, MANIFESTS_MAX, parts};

/// Bytes of all manifests of an image that is sent: they are in memory together.
const MANIFESTS_SIZE_MAX: usize = 64 << 20;

/// Why an image was not sent. `Display` is the user's sentence.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("tag `{reference}` has moved meanwhile")]
    Moved { reference: String },
    #[error("the manifests of the image have more than {} bytes", MANIFESTS_SIZE_MAX)]
    TooLarge,
    #[error(transparent)]
    Unreadable(#[from] ImportError),
    #[error(transparent)]
    Remote(RemoteError),
}

impl From<RemoteError> for ExportError {
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::Store(error) => Self::Unreadable(ImportError::Store(error)),
            error => Self::Remote(error),
        }
    }
}

/// Sends an image to another registry, where it gets the tag of `to` last. `expected` is what that tag is now: one
/// that is another image by then, and not this one, is left alone.
///
/// Between the last look at the tag and its move somebody may move it: registries have no way to ask for both.
pub async fn export(
    catalog: &Catalog,
    source: &ImportSource<'_>,
    remote: &Remote,
    to: &Reference,
    expected: Option<&Digest>,
) -> Result<Pushed, ExportError> {
    let top = source.top(catalog).await?;
    let mut reading =
        Reading { catalog, source, digests: Vec::new(), known: BTreeSet::new(), size: 0 };
    let mut manifests = Vec::new();
    reading.read(top, 1, &mut manifests).await?;
    let push = Push { reference: to, manifests: &manifests };
    let pushed = remote.push_blobs(&push, catalog, &|_| ()).await?;
    let mut at = 0;
    while let Some(subject) = reading.digests.get(at).cloned() {
        at += 1;
        for named in source.referrers(catalog, &subject).await? {
            let referrer = source.manifest(catalog, &named).await?;
            let mut manifests = Vec::new();
            let digest = Some(referrer.digest.clone());
            reading.read(referrer, 2, &mut manifests).await?;
            if !manifests.is_empty() {
                let reference = Reference { tag: None, digest, ..to.clone() };
                let push = Push { reference: &reference, manifests: &manifests };
                remote.push(&push, catalog, &|_| ()).await?;
            }
        }
    }
    let there = digest_there(remote, to).await?;
    if there.as_ref() != expected && there.as_ref() != Some(&pushed.digest) {
        return Err(ExportError::Moved { reference: to.to_string() });
    }
    remote.push_manifests(&push).await?;
    Ok(pushed)
}

/// What a tag of another registry is; nothing if there is none.
pub async fn digest_there(
    remote: &Remote,
    reference: &Reference,
) -> Result<Option<Digest>, RemoteError> {
    let found = match remote.manifest_digest(reference).await {
        // It does not say so without the manifest.
        Ok(None) => remote.fetch_manifest(reference).await.map(|fetched| Some(fetched.digest)),
        found => found,
    };
    match found {
        Err(RemoteError::NotFound { .. } | RemoteError::NoRepository { .. }) => Ok(None),
        found => found,
    }
}

/// Moves a tag of another registry to an image that it has in the same repository, if the tag is what is `expected`.
pub async fn move_there(
    remote: &Remote,
    to: &Reference,
    expected: &Digest,
    digest: &Digest,
) -> Result<(), ExportError> {
    let by_digest = Reference { tag: None, digest: Some(digest.clone()), ..to.clone() };
    let manifest = remote.fetch_manifest(&by_digest).await?;
    let there = digest_there(remote, to).await?;
    if there.as_ref() == Some(digest) {
        return Ok(());
    }
    if there.as_ref() != Some(expected) {
        return Err(ExportError::Moved { reference: to.to_string() });
    }
    // Its blobs are there.
    let manifest = ManifestToPush { blobs: Vec::new(), ..to_push(manifest) };
    Ok(remote.push_manifests(&Push { reference: to, manifests: &[manifest] }).await?)
}

struct Reading<'a> {
    catalog: &'a Catalog,
    source: &'a ImportSource<'a>,
    /// All that were read, in their order.
    digests: Vec<Digest>,
    known: BTreeSet<Digest>,
    /// Bytes of them.
    size: usize,
}

impl Reading<'_> {
    /// Adds a manifest that is not known yet, after those that it names.
    fn read<'a>(
        &'a mut self,
        manifest: RemoteManifest,
        depth: usize,
        into: &'a mut Vec<ManifestToPush>,
    ) -> BoxFuture<'a, Result<(), ExportError>> {
        Box::pin(async move {
            if !self.known.insert(manifest.digest.clone()) {
                return Ok(());
            }
            self.digests.push(manifest.digest.clone());
            self.size += manifest.bytes.len();
            if self.digests.len() > MANIFESTS_MAX {
                return Err(ImportError::TooManyManifests.into());
            }
            if self.size > MANIFESTS_SIZE_MAX {
                return Err(ExportError::TooLarge);
            }
            let (children, _) = parts(&manifest.manifest);
            if depth > DEPTH_MAX && !children.is_empty() {
                return Err(ImportError::TooDeep.into());
            }
            for child in &children {
                let child = self.source.manifest(self.catalog, child).await?;
                self.read(child, depth + 1, into).await?;
            }
            into.push(to_push(manifest));
            Ok(())
        })
    }
}

fn to_push(manifest: RemoteManifest) -> ManifestToPush {
    let (_, blobs) = parts(&manifest.manifest);
    let RemoteManifest { digest, media_type, bytes, .. } = manifest;
    ManifestToPush { media_type, bytes, digest, blobs }
}
