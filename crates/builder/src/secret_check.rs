//! No image is given out whose layers hold a secret, whoever made them and when. Layers of base
//! images are not searched: they are what others have already.

use std::sync::Arc;

use dockerfile::Span;
use futures_util::{StreamExt as _, TryStreamExt as _};

use crate::assemble::ImageLayer;
use crate::build::Build;
use crate::error::BuildError;
use crate::layers::NewLayer;
use crate::secret_scan::{Findings, HeldSecret, SecretScan};

/// Layers of earlier builds that are searched at once.
const SEARCH_PARALLEL: usize = 4;

/// A layer that an instruction of this build has, and what is in it.
struct Searched {
    layer: ImageLayer,
    at: Span,
    is_in_image: bool,
    found: Findings,
}

impl Build<'_> {
    /// The secret because of which nobody else may have a layer.
    pub(crate) fn held_secret(&self, new: &NewLayer) -> Option<HeldSecret> {
        self.scan.as_ref()?.forbidden(&new.found)
    }

    /// Searches the layers of the image, and all others too that are put into caches of others. A
    /// layer that this build has written is not read again for that.
    pub(crate) async fn search_layers(&self, image: &[ImageLayer]) -> Result<(), BuildError> {
        let Some(scan) = &self.scan else { return Ok(()) };
        let mut layers = std::mem::take(&mut self.notes().layers);
        layers.sort_by_key(|(layer, at)| (at.line, layer.diff_id.clone()));
        layers.dedup_by(|one, other| one.0.diff_id == other.0.diff_id);
        // Made before they are streamed, as in `Layers::check`.
        let mut searches = Vec::with_capacity(layers.len());
        for (layer, at) in layers {
            let is_in_image = image.iter().any(|of| of.diff_id == layer.diff_id);
            if is_in_image || self.request.shares_results {
                searches.push(self.search_layer(layer, at, is_in_image, scan));
            }
        }
        let searches = futures_util::stream::iter(searches).buffered(SEARCH_PARALLEL);
        let searched: Vec<Searched> = searches.try_collect().await?;
        for one in searched {
            self.judge(one, scan).await?;
        }
        Ok(())
    }

    async fn search_layer(
        &self,
        layer: ImageLayer,
        at: Span,
        is_in_image: bool,
        scan: &Arc<SecretScan>,
    ) -> Result<Searched, BuildError> {
        let found = self.builder.layers.search(&layer, scan, &self.stop).await?;
        Ok(Searched { layer, at, is_in_image, found })
    }

    async fn judge(&self, one: Searched, scan: &Arc<SecretScan>) -> Result<(), BuildError> {
        let Searched { layer, at, is_in_image, found } = one;
        match scan.forbidden(&found) {
            Some(held) if is_in_image => return Err(held.error(at)),
            Some(_) => {
                self.notes().results.retain(|result| result.layer.diff_id != layer.diff_id);
            }
            None => (),
        }
        for held in scan.doubtful(&found) {
            self.warn_of(&held, at, "perhaps by chance, since it is short").await;
        }
        Ok(())
    }

    /// Tells of a secret in a layer that does not end the build.
    pub(crate) async fn warn_of(&self, held: &HeldSecret, at: Span, because: &str) {
        let text = format!("{}:{}: {held}, {because}", self.request.dockerfile_name, at.line);
        self.events.warning(&text).await;
    }
}
