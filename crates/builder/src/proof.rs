//! Why a result that was made on one image is right on another one too (architecture.md
//! decision 11).
//!
//! The proof is in the cache key: it holds either every layer below, or what the instruction
//! saw of them. A `COPY` or `WORKDIR` sees the files through the indexes of the layers: the links that
//! it follows, the folders that it passes through with their modes, owners and attributes, what
//! is at its destination, and the numbers that names of owners stand for. All of that decides which
//! entries its layer gets, and the key is the digest over those: equal keys are equal layers, on
//! whatever image.

use oci::Digest;
use serde::{Deserialize, Serialize};

use crate::assemble::ImageLayer;
use crate::cache::KeyHasher;

/// What was found to be the same of the image below an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proof {
    /// What the instruction sees; the layers may be others.
    Seen,
    /// Every layer.
    Layers,
}

/// The cache key of a layer, and what it holds of the image below.
#[derive(Debug, Clone)]
pub(crate) struct LayerKey {
    pub(crate) digest: Digest,
    pub(crate) proof: Proof,
}

/// Names the layers below an instruction.
pub(crate) fn below(layers: &[ImageLayer]) -> Digest {
    let mut key = KeyHasher::new("below");
    let layers: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    key.list("layers", &layers);
    key.finish()
}
