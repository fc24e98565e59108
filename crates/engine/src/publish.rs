//! Making a built image visible: the last thing a run does, and the only one that others see.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use housekeeping::{MayUse, Use};
use oci::{Descriptor, Digest, Manifest, RegistryName, RepositoryName, Tag};
use serde::{Deserialize, Serialize};
use store::{Catalog, Cause, Expected, NewManifest, StoreError};

use crate::execute::Failure;
use crate::housekeeper::RunRights;
use crate::{BuiltImages, Destination, NamedCache};

/// The right of an attempt to publish: held by one attempt of a run at a time.
#[async_trait]
pub trait Lease: Send + Sync {
    /// Whether this attempt is still the one that may publish.
    async fn holds(&self) -> bool;

    /// The same, told and asked when all is prepared. Unless it is `repeatable`, something outside may
    /// have seen this attempt from then on.
    async fn begin_steps(&self, _repeatable: bool) -> Result<(), PublishError> {
        match self.holds().await {
            true => Ok(()),
            false => Err(PublishError::LeaseLost),
        }
    }
}

/// Where a built image goes.
pub struct Publication<'a> {
    pub run: &'a str,
    pub registry: &'a RegistryName,
    /// Empty: nowhere; the image is kept for a day by a lease.
    pub names: &'a [Destination],
    /// Published after the image, each on its own.
    pub caches: &'a [NamedCache],
}

#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("another attempt of this run has taken over")]
    LeaseLost,
    /// The registry takes no such image, whoever asks and how often.
    #[error("{0}")]
    Refused(String),
    /// The server that has the registry could not be asked.
    #[error("{0}")]
    Server(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PublishError {
    pub(crate) fn failure(self) -> Failure {
        match self {
            Self::LeaseLost => Failure::Superseded,
            Self::Refused(reason) => Failure::User(format!("error: {reason}")),
            Self::Server(reason) => Failure::Ours(format!("error: {reason}")),
            Self::Store(error) if error.is_refusal() => Failure::user(&error, error.hint()),
            Self::Store(error) => Failure::ours(&error),
        }
    }
}

/// Makes built images visible in the run's own registry, wherever that is.
#[async_trait]
pub trait Publisher: Send + Sync {
    /// The blobs of the images are in `catalog`. Nothing is published unless `lease` holds. Without
    /// images only caches are.
    async fn publish(
        &self,
        catalog: &Catalog,
        built: Option<&BuiltImages>,
        publication: &Publication<'_>,
        lease: &dyn Lease,
    ) -> Result<(), PublishError>;

    /// Whether the registry is in the catalog of the engine, which can then import into it.
    fn takes_imports(&self) -> bool;

    /// Says why a run may not do that in a repository of the registry now, if it may not. Who publishes
    /// asks by itself.
    async fn refused(
        &self,
        _registry: &RegistryName,
        _run: &str,
        _repository: &RepositoryName,
        _wanted: Use,
    ) -> Result<Option<String>, PublishError> {
        Ok(None)
    }
}

/// The registry is in the catalog of the engine itself.
pub struct LocalPublisher {
    pub rights: Arc<dyn RunRights>,
}

#[async_trait]
impl Publisher for LocalPublisher {
    async fn publish(
        &self,
        catalog: &Catalog,
        built: Option<&BuiltImages>,
        publication: &Publication<'_>,
        lease: &dyn Lease,
    ) -> Result<(), PublishError> {
        let release = Release::prepare(catalog, built, publication).await?;
        let Publication { registry, run, .. } = publication;
        let may = self.rights.repositories(registry, run).await.map_err(PublishError::Server)?;
        release.refuse(&*may)?;
        release.publish(catalog, publication.registry, publication.run, lease).await
    }

    fn takes_imports(&self) -> bool {
        true
    }

    async fn refused(
        &self,
        registry: &RegistryName,
        run: &str,
        repository: &RepositoryName,
        wanted: Use,
    ) -> Result<Option<String>, PublishError> {
        let may = self.rights.repositories(registry, run).await.map_err(PublishError::Server)?;
        Ok(may.refused(repository, wanted))
    }
}

/// How long an image that nothing names is kept.
const UNNAMED_KEEP: Duration = Duration::from_secs(24 * 60 * 60);

/// What is published: everything of a publication but the blobs, which are in the store by then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Names point at the last one, which needs the others. None: only caches are published.
    pub manifests: Vec<ReleasedManifest>,
    /// Empty: nothing names it; it is kept for a day by a lease.
    pub names: Vec<ReleasedName>,
    /// Published after the image, each on its own.
    pub caches: Vec<(ReleasedName, ReleasedManifest)>,
}

/// A manifest, and how it was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleasedManifest {
    pub digest: Digest,
    pub media_type: String,
    pub text: String,
    /// The build record, as JSON.
    pub record: Option<String>,
}

/// A tag of the run's own registry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ReleasedName {
    pub repository: String,
    pub tag: String,
}

/// A release whose manifests and names are read.
struct Checked<'a> {
    manifests: Vec<CheckedManifest<'a>>,
    names: Vec<(RepositoryName, Tag)>,
    caches: Vec<(RepositoryName, Tag, CheckedManifest<'a>)>,
}

struct CheckedManifest<'a> {
    released: &'a ReleasedManifest,
    manifest: Manifest,
}

impl Release {
    /// Puts what the publication needs besides the image's layers into the catalog, and tells what
    /// is to be published.
    pub async fn prepare(
        catalog: &Catalog,
        built: Option<&BuiltImages>,
        publication: &Publication<'_>,
    ) -> store::Result<Self> {
        for NamedCache { image, .. } in publication.caches {
            store_blob(catalog, &image.config, &image.config_descriptor.digest).await?;
        }
        let record = |descriptor: &Descriptor| {
            let image = built?.images.iter().find(|image| image.descriptor == *descriptor)?;
            serde_json::to_string(&image.record).ok()
        };
        let manifests = built.into_iter().flat_map(manifests_of).map(|(descriptor, bytes)| {
            let record = record(descriptor);
            ReleasedManifest { record, ..released(descriptor, &bytes) }
        });
        let caches = publication.caches.iter().map(|NamedCache { name, image }| {
            (ReleasedName::of(name), released(&image.descriptor, &image.manifest))
        });
        Ok(Self {
            manifests: manifests.collect(),
            names: publication.names.iter().map(ReleasedName::of).collect(),
            caches: caches.collect(),
        })
    }

    /// Refuses names that may not be given.
    pub fn refuse(&self, may: &dyn MayUse) -> Result<(), PublishError> {
        let of_caches = self.caches.iter().map(|(name, _)| name);
        for name in self.names.iter().chain(of_caches) {
            let (repository, _) = name.read()?;
            if let Some(reason) = may.refused(&repository, Use::Push) {
                return Err(PublishError::Refused(reason));
            }
        }
        Ok(())
    }

    /// What its manifests name, besides one another; or what is wrong with one.
    pub fn blobs(&self) -> Result<BTreeSet<Digest>, PublishError> {
        Ok(Checked::of(self)?.blobs())
    }

    /// Publishes it for a run: blobs first, then the manifest together with its tags; of several
    /// platforms the manifests first, and then the index.
    ///
    /// Repeating it is harmless. The lease is asked again before each repository.
    pub async fn publish(
        &self,
        catalog: &Catalog,
        registry: &RegistryName,
        run: &str,
        lease: &dyn Lease,
    ) -> Result<(), PublishError> {
        let checked = Checked::of(self)?;
        let cause = Cause::Build { run: run.to_owned() };
        // Nothing is collected while it is on its way, nor for a day if it has no name.
        let owner = lease_owner(registry, run);
        let repositories: BTreeSet<_> = checked.names.iter().map(|(name, _)| name).collect();
        // One manifest in one repository comes with its blobs, or not at all.
        let is_one_write =
            (self.manifests.len(), repositories.len(), self.caches.len()) == (1, 1, 0);
        if !is_one_write {
            let held: Vec<Digest> = checked.blobs().into_iter().collect();
            catalog.lease_blobs(&owner, &held, UNNAMED_KEEP).await?;
        }
        if checked.names.is_empty() {
            keep_unnamed(catalog, &self.manifests, &owner).await?;
        }
        for repository in repositories {
            if !lease.holds().await {
                return Err(PublishError::LeaseLost);
            }
            for (index, manifest) in checked.manifests.iter().enumerate() {
                let is_named = index + 1 == checked.manifests.len();
                let tags: Vec<_> = (checked.names.iter())
                    .filter(|(name, _)| is_named && name == repository)
                    .map(|(_, tag)| (tag.clone(), Expected::Any))
                    .collect();
                let new = manifest.new_manifest();
                let put = match &manifest.released.record {
                    Some(record) => {
                        catalog.put_built(registry, repository, new, record, &tags, &cause).await
                    }
                    None => catalog.put_manifest(registry, repository, new, &tags, &cause).await,
                };
                put?;
            }
        }
        for (repository, tag, manifest) in &checked.caches {
            if !lease.holds().await {
                return Err(PublishError::LeaseLost);
            }
            let blobs = manifest.blobs();
            catalog.link_blobs(registry, repository, blobs.iter()).await?;
            let tags = [(tag.clone(), Expected::Any)];
            let new = manifest.new_manifest();
            catalog.put_manifest(registry, repository, new, &tags, &cause).await?;
        }
        // Without a name the image has nothing else that keeps it.
        if !checked.names.is_empty() && !is_one_write {
            catalog.release_leases(&owner).await?;
        }
        Ok(())
    }
}

impl ReleasedName {
    fn of(name: &Destination) -> Self {
        Self { repository: name.repository.to_string(), tag: name.tag.to_string() }
    }

    fn read(&self) -> Result<(RepositoryName, Tag), PublishError> {
        let refused = |error: &dyn std::error::Error| PublishError::Refused(error.to_string());
        let repository = self.repository.parse().map_err(|error| refused(&error))?;
        Ok((repository, self.tag.parse().map_err(|error| refused(&error))?))
    }
}

impl<'a> Checked<'a> {
    fn of(release: &'a Release) -> Result<Self, PublishError> {
        if release.manifests.is_empty() && release.caches.is_empty() {
            return Err(PublishError::Refused("there is no manifest to publish".to_owned()));
        }
        let caches = release.caches.iter().map(|(name, manifest)| {
            let (repository, tag) = name.read()?;
            Ok((repository, tag, CheckedManifest::of(manifest)?))
        });
        let manifests = release.manifests.iter().map(CheckedManifest::of);
        Ok(Self {
            manifests: manifests.collect::<Result<_, _>>()?,
            names: release.names.iter().map(ReleasedName::read).collect::<Result<_, _>>()?,
            caches: caches.collect::<Result<_, PublishError>>()?,
        })
    }
}

impl Checked<'_> {
    fn blobs(&self) -> BTreeSet<Digest> {
        let of_caches = self.caches.iter().map(|(_, _, manifest)| manifest);
        self.manifests.iter().chain(of_caches).flat_map(CheckedManifest::blobs).collect()
    }
}

impl<'a> CheckedManifest<'a> {
    fn of(released: &'a ReleasedManifest) -> Result<Self, PublishError> {
        let refused = |reason: String| {
            PublishError::Refused(format!("manifest `{}`: {reason}", released.digest))
        };
        if Digest::of(released.text.as_bytes()) != released.digest {
            return Err(refused("its bytes have another digest".to_owned()));
        }
        let manifest = Manifest::parse(released.text.as_bytes(), Some(&released.media_type))
            .map_err(|error| refused(error.to_string()))?;
        Ok(Self { released, manifest })
    }

    fn new_manifest(&self) -> NewManifest<'_> {
        let ReleasedManifest { digest, media_type, text, .. } = self.released;
        let bytes = Bytes::from(text.clone());
        NewManifest { digest, media_type, bytes, manifest: &self.manifest }
    }

    fn blobs(&self) -> Vec<Digest> {
        match &self.manifest {
            Manifest::Image(image) => {
                let all = image.layers.iter().chain([&image.config]);
                all.map(|descriptor| descriptor.digest.clone()).collect()
            }
            _ => Vec::new(),
        }
    }
}

fn released(descriptor: &Descriptor, bytes: &Bytes) -> ReleasedManifest {
    ReleasedManifest {
        digest: descriptor.digest.clone(),
        media_type: descriptor.media_type.clone(),
        text: String::from_utf8_lossy(bytes).into_owned(),
        record: None,
    }
}

pub(crate) async fn store_blob(
    catalog: &Catalog,
    bytes: &Bytes,
    digest: &Digest,
) -> store::Result<()> {
    let mut upload = catalog.blobs().begin_upload(oci::Algorithm::Sha256).await?;
    upload.write(bytes.clone()).await?;
    upload.commit(Some(digest)).await?;
    Ok(())
}

/// Ends what [`Release::publish`] holds if it was cut off.
pub(crate) async fn abandon(catalog: &Catalog, registry: &RegistryName, run: &str) {
    let owner = lease_owner(registry, run);
    if let Err(error) = catalog.release_leases(&owner).await {
        tracing::warn!(%error, owner, "leases not released; they end within a day");
    }
}

/// Runs have their numbers from their registry.
fn lease_owner(registry: &RegistryName, run: &str) -> String {
    format!("publish/{registry}/{run}")
}

/// Keeps manifests as blobs under the lease that their layers have already.
async fn keep_unnamed(
    catalog: &Catalog,
    manifests: &[ReleasedManifest],
    owner: &str,
) -> Result<(), PublishError> {
    for manifest in manifests {
        store_blob(catalog, &Bytes::from(manifest.text.clone()), &manifest.digest).await?;
        catalog.lease_blob(owner, &manifest.digest, UNNAMED_KEEP).await?;
    }
    Ok(())
}

/// The manifests of the images; last, if there is one, the index, which needs the others.
pub(crate) fn manifests_of(built: &BuiltImages) -> Vec<(&Descriptor, Bytes)> {
    let images = built.images.iter().map(|image| (&image.descriptor, image.manifest.clone()));
    let index = built.index.iter().map(|index| (&index.descriptor, index.bytes.clone()));
    images.chain(index).collect()
}
