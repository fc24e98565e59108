//! Artifacts that we make ourselves: manifests without a config (image-spec, *Guidelines for Artifact
//! Usage*).

use std::collections::BTreeMap;

use bytes::Bytes;
use oci::{
    Algorithm, Descriptor, Digest, ImageManifest, Manifest, RegistryName, RepositoryName, Tag,
    media_type,
};

use super::Catalog;
use crate::{Cause, Expected, NewManifest, Result, StoreError};

/// The blob of what has nothing to say.
const EMPTY: &[u8] = b"{}";

/// An artifact to be stored.
#[derive(Debug, Clone)]
pub struct NewArtifact {
    pub artifact_type: String,
    /// Their blobs are stored. None: it has its annotations only.
    pub layers: Vec<Descriptor>,
    pub subject: Option<Descriptor>,
    pub annotations: BTreeMap<String, String>,
}

impl NewArtifact {
    fn manifest(self) -> ImageManifest {
        let empty = Descriptor::of(media_type::OCI_EMPTY, EMPTY);
        ImageManifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.to_owned()),
            artifact_type: Some(self.artifact_type),
            layers: if self.layers.is_empty() { vec![empty.clone()] } else { self.layers },
            config: empty,
            subject: self.subject,
            annotations: self.annotations,
        }
    }
}

impl Catalog {
    /// Stores an artifact with its blobs in a repository, and moves tags to it; gives its digest. The
    /// same artifact is the same manifest.
    pub async fn put_artifact(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        new: NewArtifact,
        tags: &[(Tag, Expected)],
        cause: &Cause,
    ) -> Result<Digest> {
        let mut upload = self.blobs().begin_upload(Algorithm::Sha256).await?;
        upload.write(Bytes::from_static(EMPTY)).await?;
        upload.commit(None).await?;
        let manifest = new.manifest();
        let layers = manifest.layers.iter().map(|layer| &layer.digest);
        self.link_blobs(registry, repository, layers.chain([&manifest.config.digest])).await?;
        let bytes = serde_json::to_vec(&manifest).map_err(|error| StoreError::Database {
            doing: "write a manifest".to_owned(),
            source: error.into(),
        })?;
        let (digest, manifest) = (Digest::of(&bytes), Manifest::Image(Box::new(manifest)));
        let new = NewManifest {
            digest: &digest,
            media_type: media_type::OCI_MANIFEST,
            bytes: bytes.into(),
            manifest: &manifest,
        };
        self.put_manifest(registry, repository, new, tags, cause).await?;
        Ok(digest)
    }
}
