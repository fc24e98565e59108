//! Removing what a run pushed, as far as nobody else needs it.

use oci::{Digest, Manifest, RepositoryName, Tag};
use store::{Expected, ManifestRef, StoreError, Unneeded};

use crate::error::HousekeepingError;
use crate::registry::Registry;

/// Removes a tag that still is where it was put, and then the manifest, and those that are in it,
/// unless something else needs them. Says whether the manifest is gone.
///
/// What has come, been tagged or been untagged since [`Registry::now`] stays.
pub async fn remove_output(
    registry: &Registry,
    repository: &RepositoryName,
    tag: Option<&Tag>,
    digest: &Digest,
) -> Result<bool, HousekeepingError> {
    let Registry { catalog, name, cause, now, .. } = registry;
    if let Some(tag) = tag {
        let expected =
            Expected::AtBefore { digest: digest.clone(), updated_before: now.saturating_add(1) };
        match catalog.move_tag(name, repository, tag, &expected, None, cause).await {
            Ok(()) | Err(StoreError::TagMoved { .. } | StoreError::NotFound { .. }) => (),
            Err(error) => return Err(error.into()),
        }
    }
    let reference = ManifestRef::Digest(digest.clone());
    let Some(entry) = catalog.manifest(name, repository, &reference).await? else {
        return Ok(true);
    };
    let unneeded = Unneeded { updated_until: *now };
    if !catalog.delete_unneeded(name, repository, digest, unneeded, cause).await? {
        return Ok(false);
    }
    // What is stored was read once, and is read again.
    let parts = Manifest::parse(&entry.bytes, Some(&entry.media_type));
    for part in parts.map(|manifest| manifest.references().manifests).unwrap_or_default() {
        catalog.delete_unneeded(name, repository, &part.digest, unneeded, cause).await?;
    }
    Ok(true)
}
