//! Import: an image of another registry, of this one or of an archive gets names here.
//!
//! Everything is checked against the digests that name it, and comes with what belongs to it,
//! such as signatures. The manifest that gets the tags comes last: what breaks off leaves no
//! image behind.

mod archive;
mod export;

use futures_util::future::BoxFuture;
use oci::{
    Descriptor, Digest, Manifest, Platform, Reference, RegistryName, RepositoryName, Tag,
    media_type,
};
use remote::{Remote, RemoteError, RemoteManifest};
use store::{Catalog, Cause, Expected, ManifestRef, NewManifest, StoreError};

use crate::layout::KEEP;

pub use archive::{ImageArchive, ImageArchiveError, read_image_archive};
pub use export::{ExportError, digest_there, export, move_there};

/// An index of indexes is no deeper than this.
const DEPTH_MAX: usize = 3;
/// Manifests of one image, of all its platforms.
const MANIFESTS_MAX: usize = 1000;
/// Owner of the leases on what came, until manifests name it.
const LEASE_OWNER: &str = "imports";

/// Where an image comes from.
pub enum ImportSource<'a> {
    Remote {
        remote: &'a Remote,
        reference: &'a Reference,
    },
    /// A registry of this server.
    Own {
        registry: &'a RegistryName,
        repository: &'a RepositoryName,
        wanted: &'a ManifestRef,
    },
    Archive(&'a ImageArchive),
}

/// What becomes of it.
pub struct ImportTarget<'a> {
    pub registry: &'a RegistryName,
    pub tags: &'a [(RepositoryName, Tag)],
    /// Repositories that get it without a tag.
    pub untagged: &'a [RepositoryName],
    /// Tags that are there may be moved.
    pub force: bool,
    /// Of an index only the image for it.
    pub platform: Option<&'a Platform>,
    pub cause: &'a Cause,
}

/// What was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    pub digest: Digest,
    pub media_type: String,
    /// Manifests of all platforms.
    pub manifests: usize,
    /// Manifests that belong to one of these, or to one another: signatures and the like.
    pub referrers: usize,
    /// Bytes that had to be fetched from another registry.
    pub fetched: u64,
}

/// Why an image was not imported. `Display` is the user's sentence.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("there is another `{repository}:{tag}` already")]
    TagExists { repository: RepositoryName, tag: Tag },
    #[error("the image has none for {wanted}")]
    NoPlatform { wanted: String, offered: Vec<String> },
    #[error("the image is an index of indexes deeper than {}", DEPTH_MAX)]
    TooDeep,
    #[error("the image has more than {} manifests", MANIFESTS_MAX)]
    TooManyManifests,
    /// The source does not have all of it.
    #[error("the image lacks {what}")]
    Missing { what: String },
    #[error("a manifest of the image cannot be used: {reason}")]
    BadManifest { reason: String },
    #[error(transparent)]
    Archive(#[from] ImageArchiveError),
    #[error(transparent)]
    Remote(RemoteError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<RemoteError> for ImportError {
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::Store(error) => Self::Store(error),
            error => Self::Remote(error),
        }
    }
}

impl ImportError {
    /// What the user can do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::TagExists { .. } => Some("give another tag, or `--force` to move it".to_owned()),
            Self::NoPlatform { offered, .. } if !offered.is_empty() => {
                Some(format!("it offers {}", offered.join(", ")))
            }
            Self::Missing { .. } => {
                Some("if it has only some platforms, choose one with `--platform`".to_owned())
            }
            Self::Archive(error) => error.hint(),
            Self::Remote(error) => error.hint(),
            Self::Store(error) => error.hint(),
            _ => None,
        }
    }
}

/// Imports an image. `progress` is told of bytes that are fetched, as they come.
pub async fn import(
    catalog: &Catalog,
    source: &ImportSource<'_>,
    target: &ImportTarget<'_>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Imported, ImportError> {
    let mut top = source.top(catalog).await?;
    if let (Manifest::Index(index), Some(platform)) = (&top.manifest, target.platform) {
        let Some(chosen) = index.for_platform(platform) else {
            let offered = index.manifests.iter().filter_map(|one| one.platform.as_ref());
            let (wanted, offered) = (platform.to_string(), offered.map(Platform::to_string));
            return Err(ImportError::NoPlatform { wanted, offered: offered.collect() });
        };
        top = source.manifest(catalog, &chosen.clone()).await?;
    }
    let (digest, media_type) = (top.digest.clone(), top.media_type.clone());
    let importing = Importing { catalog, source, target, progress };
    importing.check_tags(&digest).await?;
    let mut brought = Brought::default();
    importing.bring(top.clone(), 1, &mut brought).await?;
    let manifests = brought.manifests.len();
    importing.bring_referrers(&mut brought).await?;
    importing.put(&top, true).await?;
    let referrers = brought.manifests.len() - manifests;
    Ok(Imported { digest, media_type, manifests, referrers, fetched: brought.fetched })
}

struct Importing<'a> {
    catalog: &'a Catalog,
    source: &'a ImportSource<'a>,
    target: &'a ImportTarget<'a>,
    progress: &'a (dyn Fn(u64) + Sync),
}

/// What came so far.
#[derive(Default)]
struct Brought {
    manifests: Vec<Digest>,
    /// In bytes.
    fetched: u64,
}

impl Importing<'_> {
    /// Before blobs are fetched. Whoever takes a tag meanwhile keeps it: it is moved only if it
    /// is still free, or there already.
    async fn check_tags(&self, digest: &Digest) -> Result<(), ImportError> {
        for (repository, tag) in self.target.tags {
            self.expected(repository, tag, digest).await?;
        }
        Ok(())
    }

    /// Where a tag must be to be moved to `digest`; an error if it is elsewhere.
    async fn expected(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        digest: &Digest,
    ) -> Result<Expected, ImportError> {
        if self.target.force {
            return Ok(Expected::Any);
        }
        let wanted = ManifestRef::Tag(tag.clone());
        match self.catalog.digest_of(self.target.registry, repository, &wanted).await? {
            None => Ok(Expected::Absent),
            Some(there) if there == *digest => Ok(Expected::At(there)),
            Some(_) => Err(self.taken(repository, tag)),
        }
    }

    fn taken(&self, repository: &RepositoryName, tag: &Tag) -> ImportError {
        ImportError::TagExists { repository: repository.clone(), tag: tag.clone() }
    }

    fn repositories(&self) -> Vec<&RepositoryName> {
        let tagged = self.target.tags.iter().map(|(repository, _)| repository);
        let mut all: Vec<_> = tagged.chain(self.target.untagged).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Brings all that a manifest needs, then the manifest; the top one is left for the end.
    fn bring<'a>(
        &'a self,
        manifest: RemoteManifest,
        depth: usize,
        brought: &'a mut Brought,
    ) -> BoxFuture<'a, Result<(), ImportError>> {
        Box::pin(async move {
            if brought.manifests.len() >= MANIFESTS_MAX {
                return Err(ImportError::TooManyManifests);
            }
            brought.manifests.push(manifest.digest.clone());
            let (children, blobs) = parts(&manifest.manifest);
            if depth > DEPTH_MAX && !children.is_empty() {
                return Err(ImportError::TooDeep);
            }
            brought.fetched += self.bring_blobs(&blobs).await?;
            for child in &children {
                let child = self.source.manifest(self.catalog, child).await?;
                self.bring(child, depth + 1, brought).await?;
            }
            match depth {
                1 => Ok(()),
                _ => self.put(&manifest, false).await,
            }
        })
    }

    async fn bring_blobs(&self, blobs: &[Descriptor]) -> Result<u64, ImportError> {
        let lacking = self.lacking(blobs).await?;
        let fetched = self.source.bring_blobs(self.catalog, &lacking, self.progress).await?;
        let digests: Vec<_> = blobs.iter().map(|blob| blob.digest.clone()).collect();
        self.catalog.lease_blobs(LEASE_OWNER, &digests, KEEP).await?;
        for repository in self.repositories() {
            self.catalog.link_blobs(self.target.registry, repository, &digests).await?;
        }
        Ok(fetched)
    }

    /// Brings what belongs to the manifests that came, and what belongs to that.
    async fn bring_referrers(&self, brought: &mut Brought) -> Result<(), ImportError> {
        let mut at = 0;
        while let Some(subject) = brought.manifests.get(at).cloned() {
            at += 1;
            for named in self.source.referrers(self.catalog, &subject).await? {
                if brought.manifests.contains(&named.digest) {
                    continue;
                }
                let referrer = self.source.manifest(self.catalog, &named).await?;
                if referrer.manifest.references().subject.as_ref() == Some(&subject) {
                    self.bring(referrer, 2, brought).await?;
                }
            }
        }
        Ok(())
    }

    /// The blobs that not every repository has already, which the image gets.
    async fn lacking<'a>(
        &self,
        blobs: &'a [Descriptor],
    ) -> Result<Vec<&'a Descriptor>, ImportError> {
        let mut lacking = Vec::new();
        for blob in blobs {
            let mut is_there = self.catalog.blobs().stat(&blob.digest).await? == Some(blob.size);
            for repository in self.repositories() {
                let size = self.catalog.blob_size(self.target.registry, repository, &blob.digest);
                let size = match size.await {
                    // What is not to be read proves nothing.
                    Err(StoreError::Locked(_)) => None,
                    size => size?,
                };
                is_there = is_there && size.is_some();
            }
            if !is_there {
                lacking.push(blob);
            }
        }
        Ok(lacking)
    }

    /// Puts a manifest into the repositories, and gives the top one its tags.
    async fn put(&self, manifest: &RemoteManifest, is_top: bool) -> Result<(), ImportError> {
        for repository in self.repositories() {
            let mut tags = Vec::new();
            for (_, tag) in self.target.tags.iter().filter(|(of, _)| is_top && of == repository) {
                let expected = self.expected(repository, tag, &manifest.digest).await?;
                tags.push((tag.clone(), expected));
            }
            let new = NewManifest {
                digest: &manifest.digest,
                media_type: &manifest.media_type,
                bytes: manifest.bytes.clone(),
                manifest: &manifest.manifest,
            };
            let (registry, cause) = (self.target.registry, self.target.cause);
            match self.catalog.put_manifest(registry, repository, new, &tags, cause).await {
                Err(StoreError::TagMoved { tag, .. }) => return Err(self.taken(repository, &tag)),
                stored => stored?,
            }
        }
        Ok(())
    }
}

impl ImportSource<'_> {
    async fn top(&self, catalog: &Catalog) -> Result<RemoteManifest, ImportError> {
        match self {
            Self::Remote { remote, reference } => Ok(remote.fetch_manifest(reference).await?),
            Self::Own { registry, repository, wanted } => {
                own_manifest(catalog, registry, repository, wanted).await
            }
            Self::Archive(archive) => Ok(archive.top().clone()),
        }
    }

    /// A manifest that another one names.
    async fn manifest(
        &self,
        catalog: &Catalog,
        named: &Descriptor,
    ) -> Result<RemoteManifest, ImportError> {
        match self {
            Self::Remote { remote, reference } => {
                let digest = Some(named.digest.clone());
                let reference = Reference { tag: None, digest, ..(*reference).clone() };
                Ok(remote.fetch_manifest(&reference).await?)
            }
            Self::Own { registry, repository, .. } => {
                let wanted = ManifestRef::Digest(named.digest.clone());
                own_manifest(catalog, registry, repository, &wanted).await
            }
            Self::Archive(archive) => Ok(archive.manifest(catalog, named).await?),
        }
    }

    /// What belongs to a manifest. Archives have no such lists.
    async fn referrers(
        &self,
        catalog: &Catalog,
        subject: &Digest,
    ) -> Result<Vec<Descriptor>, ImportError> {
        match self {
            Self::Remote { remote, reference } => Ok(remote.referrers(reference, subject).await?),
            Self::Own { registry, repository, .. } => {
                let (mut all, mut last) = (Vec::new(), None);
                loop {
                    let page = catalog.referrers(
                        registry,
                        repository,
                        subject,
                        None,
                        last.as_ref(),
                        MANIFESTS_MAX,
                    );
                    let (found, next) = page.await?;
                    all.extend(found.into_iter().map(|referrer| referrer.descriptor));
                    if next.is_none() || all.len() > MANIFESTS_MAX {
                        return Ok(all);
                    }
                    last = next;
                }
            }
            Self::Archive(_) => Ok(Vec::new()),
        }
    }

    /// Sees to it that the store has the blobs of the source. Gives the bytes fetched.
    async fn bring_blobs(
        &self,
        catalog: &Catalog,
        wanted: &[&Descriptor],
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<u64, ImportError> {
        match self {
            Self::Remote { remote, reference } => {
                let wanted = wanted.iter().copied();
                Ok(remote.fetch_blobs(reference, wanted, catalog, progress).await?)
            }
            Self::Own { registry, repository, .. } => {
                for blob in wanted {
                    if catalog.blob_size(registry, repository, &blob.digest).await?.is_none() {
                        return Err(ImportError::Missing { what: format!("blob {}", blob.digest) });
                    }
                }
                Ok(0)
            }
            Self::Archive(archive) => {
                wanted.iter().try_for_each(|blob| archive.require(blob))?;
                Ok(0)
            }
        }
    }
}

/// The manifests that one names, and its blobs.
fn parts(manifest: &Manifest) -> (Vec<Descriptor>, Vec<Descriptor>) {
    let references = manifest.references();
    let is_manifest = |one: &Descriptor| {
        let kind = one.media_type.as_str();
        media_type::is_index(kind)
            || media_type::is_image_manifest(kind)
            || kind == media_type::OCI_ARTIFACT
    };
    // Build caches are indexes that list layers.
    let (children, listed): (Vec<_>, Vec<_>) =
        references.manifests.into_iter().partition(is_manifest);
    (children, references.blobs.into_iter().chain(listed).collect())
}

async fn own_manifest(
    catalog: &Catalog,
    registry: &RegistryName,
    repository: &RepositoryName,
    wanted: &ManifestRef,
) -> Result<RemoteManifest, ImportError> {
    let found = catalog.manifest(registry, repository, wanted).await?;
    let Some(entry) = found else {
        let name = match wanted {
            ManifestRef::Tag(tag) => format!("{repository}:{tag}"),
            ManifestRef::Digest(digest) => format!("{repository}@{digest}"),
        };
        return Err(StoreError::NotFound { what: format!("image `{name}`") }.into());
    };
    let manifest = Manifest::parse(&entry.bytes, Some(&entry.media_type));
    let manifest =
        manifest.map_err(|error| ImportError::BadManifest { reason: error.to_string() })?;
    let (digest, media_type, bytes) = (entry.digest, entry.media_type, entry.bytes);
    Ok(RemoteManifest { digest, media_type, bytes, manifest })
}
