//! Why a result that was made on one image is right on another one too (architecture.md
//! decision 11).
//!
//! The proof is in the cache key: it holds either every layer below, or what the instruction
//! saw of them. A `COPY` or `WORKDIR` sees the files through the indexes of the layers: the links that
//! it follows, the folders that it passes through with their modes, owners and attributes, what
//! is at its destination, and the numbers that names of owners stand for. All of that decides which
//! entries its layer gets, and the key is the digest over those: equal keys are equal files, on
//! whatever image. With a bound on times they are equal layers; without one, times of files are in
//! no key (decision 12).

use oci::Digest;
use serde::{Deserialize, Serialize};

use crate::assemble::ImageLayer;
use crate::cache::KeyHasher;

/// What was found to be the same of the images that an instruction looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proof {
    /// It looks at none.
    Nothing,
    /// What it sees; the layers may be others.
    Seen,
    /// Every layer.
    Layers,
}

/// The cache key of a layer, and what it holds of the images that the instruction looks at.
#[derive(Debug, Clone)]
pub(crate) struct LayerKey {
    pub(crate) digest: Digest,
    pub(crate) proof: Proof,
    /// Names all layers of those images, if the key holds only what is seen of them.
    pub(crate) layers: Option<Digest>,
}

impl LayerKey {
    /// Of an instruction whose key holds what it sees of some images.
    pub(crate) fn of_seen(digest: Digest, images: &[&[ImageLayer]]) -> Self {
        match images.is_empty() {
            true => Self { digest, proof: Proof::Nothing, layers: None },
            false => Self { digest, proof: Proof::Seen, layers: Some(names(images)) },
        }
    }

    /// Of one whose key holds all layers.
    pub(crate) fn of_layers(digest: Digest) -> Self {
        Self { digest, proof: Proof::Layers, layers: None }
    }

    /// Why a result is right that was made on these layers. Not of every one it is known.
    pub(crate) fn proof_of(&self, made_on: Option<&Digest>) -> Proof {
        match self.proof {
            Proof::Seen if made_on.is_some() && made_on == self.layers.as_ref() => Proof::Layers,
            proof => proof,
        }
    }
}

fn names(images: &[&[ImageLayer]]) -> Digest {
    let mut key = KeyHasher::new("layers of images");
    key.number("images", images.len() as u64);
    for layers in images {
        let layers: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        key.list("layers", &layers);
    }
    key.finish()
}
