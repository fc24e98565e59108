//! Removing what a run pushed, as far as nobody else needs it.

use oci::{Digest, Manifest, RepositoryName, Tag};
use store::{Expected, ManifestRef, Millis, StoreError, Unneeded};

use crate::error::HousekeepingError;
use crate::registry::Registry;

/// Takes away a tag that still is where a run put it which ended at `until`: not if anybody has
/// pushed it since, or moved it there again.
pub async fn untag_output(
    registry: &Registry,
    repository: &RepositoryName,
    tag: &Tag,
    digest: &Digest,
    until: Millis,
) -> Result<(), HousekeepingError> {
    let Registry { catalog, name, cause, .. } = registry;
    let updated_before = until.saturating_add(1);
    let expected = Expected::AtBefore { digest: digest.clone(), updated_before };
    match catalog.move_tag(name, repository, tag, &expected, None, cause).await {
        // What is locked stays, and so does what it points at.
        Ok(())
        | Err(StoreError::TagMoved { .. } | StoreError::NotFound { .. } | StoreError::Locked(_)) => {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Removes a manifest, and those that are in it, unless something needs them. Says whether it is
/// gone.
///
/// What has come, been tagged or been untagged since [`Registry::now`] stays.
pub async fn remove_output(
    registry: &Registry,
    repository: &RepositoryName,
    digest: &Digest,
) -> Result<bool, HousekeepingError> {
    let Registry { catalog, name, cause, now, .. } = registry;
    let reference = ManifestRef::Digest(digest.clone());
    let Some(entry) = catalog.stored_manifest(name, repository, &reference).await? else {
        return Ok(true);
    };
    let unneeded = Unneeded { updated_until: *now, even_locked: false };
    let delete = async |digest: &Digest| match catalog
        .delete_unneeded(name, repository, digest, unneeded, cause)
        .await
    {
        Err(StoreError::Locked(_)) => Ok(false),
        deleted => deleted,
    };
    if !delete(digest).await? {
        return Ok(false);
    }
    // What is stored was read once, and is read again.
    let parts = Manifest::parse(&entry.bytes, Some(&entry.media_type));
    for part in parts.map(|manifest| manifest.references().manifests).unwrap_or_default() {
        delete(&part.digest).await?;
    }
    Ok(true)
}
