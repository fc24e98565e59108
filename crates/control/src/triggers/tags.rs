//! Tags that move because somebody has planned it.

use oci::{Digest, RegistryName};
use store::{Catalog, Cause, Expected, ManifestRef, StoreError};

use super::ImageTag;
use crate::Result;
use crate::table::parsed;

/// Moves a tag from one image to another, if that is what it is; in words for people why not. One that is there
/// already, whoever has moved it, is left as it is.
pub(super) async fn set_tag(
    catalog: &Catalog,
    registry: &RegistryName,
    image: &ImageTag,
    (from, to): (Option<&Digest>, Option<&Digest>),
    by: &str,
) -> Result<std::result::Result<(), String>> {
    let (Ok(repository), Ok(tag)) = (image.repository.parse(), image.tag.parse()) else {
        return Ok(Err("that is no name of an image".to_owned()));
    };
    let reference = ManifestRef::Tag(tag);
    let now = catalog.digest_of(registry, &repository, &reference).await?;
    if now.as_ref() == to {
        return Ok(Ok(()));
    }
    let ManifestRef::Tag(tag) = reference else { return Ok(Ok(())) };
    let expected = from.map_or(Expected::Absent, |from| Expected::At(from.clone()));
    let cause = match to {
        Some(_) => Cause::Push { principal: by.to_owned() },
        None => Cause::Delete { principal: by.to_owned() },
    };
    match catalog.move_tag(registry, &repository, &tag, &expected, to, &cause).await {
        Ok(()) => Ok(Ok(())),
        Err(
            error @ (StoreError::TagMoved { .. }
            | StoreError::NotFound { .. }
            | StoreError::Locked(_)
            | StoreError::SoftDeleted { .. }),
        ) => Ok(Err(match error.hint() {
            Some(hint) => format!("{error}; {hint}"),
            None => error.to_string(),
        })),
        Err(error) => Err(error.into()),
    }
}

/// Who has moved a tag last, as the journal has it; nobody if it never moved.
pub(super) async fn last_mover(
    catalog: &Catalog,
    registry: &RegistryName,
    image: &ImageTag,
) -> Result<Option<String>> {
    let (repository, tag) = (parsed(&image.repository)?, parsed(&image.tag)?);
    let last = catalog.last_move_of(registry, &repository, &tag).await?;
    Ok(last.and_then(|last| match last.cause {
        Cause::Push { principal } | Cause::Delete { principal } => Some(principal),
        _ => None,
    }))
}
