//! `force-compression`: layers that came with base images are compressed as those are that the
//! build makes.

use std::time::Instant;

use oci::{CompressionFormat, Descriptor, Digest};
use store::CacheEntry;

use crate::assemble::ImageLayer;
use crate::build::{Build, milliseconds};
use crate::cache::KeyHasher;
use crate::error::BuildError;
use crate::event::StepEnd;
use crate::layers::compressor;
use crate::proof::Proof;

impl Build<'_> {
    /// Replaces the layers that are compressed otherwise.
    pub(crate) async fn recompress(&self, layers: &mut [ImageLayer]) -> Result<(), BuildError> {
        let wanted = self.request.compression.format;
        for layer in layers {
            if layer.descriptor.media_type != wanted.media_type() {
                let step = self.next_step();
                self.events.step_started(step, &step_name(layer, wanted)).await;
                let made = self.recompressed(layer).await;
                let end = match &made {
                    // The key names the layer that it is made of.
                    Ok((_, true)) => StepEnd::Cached { proof: Proof::Layers },
                    Ok((_, false)) => StepEnd::Done,
                    Err(error) => StepEnd::Failed { error: error.to_string() },
                };
                self.events.step_finished(step, end).await;
                layer.descriptor = made?.0;
            }
        }
        Ok(())
    }

    /// The layer compressed as wanted, and whether the cache had it.
    async fn recompressed(&self, layer: &ImageLayer) -> Result<(Descriptor, bool), BuildError> {
        let (builder, key) = (self.builder, self.recompress_key(layer));
        let _alone = builder.in_flight.enter(&key).await;
        if let Some(entry) = builder.cache.get(&key).await?
            && let Ok(cached) = serde_json::from_str::<Descriptor>(&entry.value)
            && builder.layers.is_there(&cached).await?
        {
            return Ok((cached, true));
        }
        let started = Instant::now();
        let compression = self.request.compression;
        let new = builder.layers.recompress(layer, compression, &self.stop).await?;
        let descriptor = new.layer.descriptor;
        let value = serde_json::to_string(&descriptor).expect("plain structs serialize");
        let blobs = [descriptor.digest.clone()].into_iter().chain(new.index).collect();
        let cost = milliseconds(started.elapsed());
        builder.cache.put(&key, &CacheEntry { value, blobs, cost }).await?;
        self.notes().cost.written += descriptor.size;
        Ok((descriptor, false))
    }

    fn recompress_key(&self, layer: &ImageLayer) -> Digest {
        let mut key = KeyHasher::new("recompress");
        key.text("compressor", &compressor(self.request.compression));
        key.digest("layer", &layer.descriptor.digest);
        key.finish()
    }
}

fn step_name(layer: &ImageLayer, wanted: CompressionFormat) -> String {
    let digest: String = layer.diff_id.hex().chars().take(12).collect();
    match wanted {
        CompressionFormat::Uncompressed => format!("decompress layer {digest}"),
        wanted => format!("compress layer {digest} with {wanted}"),
    }
}
