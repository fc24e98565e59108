//! What a build found and made, put into caches for builds of other servers.

use std::collections::BTreeSet;

use builder::{Built, CacheImage, StepResult, cache_image};
use store::Catalog;

use crate::BuiltImages;
use crate::name::Destination;

/// A `--cache-to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheExport {
    /// As the user gave it.
    pub image_name: String,
    /// Also the steps whose layers are not in the image.
    pub all_steps: bool,
}

/// A cache, and where it goes.
#[derive(Debug)]
pub struct NamedCache {
    pub name: Destination,
    pub image: CacheImage,
}

/// The cache of what was built for all platforms; none if there is nothing to put into it.
pub(crate) async fn cache_of(
    catalog: &Catalog,
    built: &BuiltImages,
    all_steps: bool,
) -> store::Result<Option<CacheImage>> {
    let mut chosen = Vec::new();
    for image in &built.images {
        for result in results(image, all_steps) {
            // The store may have lost a layer that the image does not need.
            let layer = &result.layer.descriptor;
            if catalog.blobs().stat(&layer.digest).await? == Some(layer.size) {
                chosen.push(result);
            }
        }
    }
    Ok(cache_image(chosen))
}

/// By diff IDs: layers of the image may be compressed otherwise than those of the steps.
fn results(image: &Built, all_steps: bool) -> impl Iterator<Item = &StepResult> {
    let diff_ids: BTreeSet<_> = image.layers.iter().map(|layer| &layer.diff_id).collect();
    let is_chosen =
        move |result: &&StepResult| all_steps || diff_ids.contains(&result.layer.diff_id);
    image.results.iter().filter(is_chosen)
}
