//! Whether the parts of an image agree with one another (image-spec, all of it).

use crate::{Descriptor, Digest, ImageConfig, ImageManifest};

/// Something that is wrong with an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageProblem {
    #[error("manifest has {layers} layers but the image config lists {diff_ids} diff IDs")]
    LayerCount { layers: usize, diff_ids: usize },
    #[error("history has {history} entries with a layer, but there are {layers} layers")]
    HistoryCount { history: usize, layers: usize },
    #[error("layer {index} unpacks to {actual}, but the image config says {expected}")]
    DiffId { index: usize, expected: Digest, actual: Digest },
    #[error("blob {digest} has {actual} bytes, its descriptor says {expected}")]
    Size { digest: Digest, expected: u64, actual: u64 },
    #[error("blob named {expected} has digest {actual}")]
    Digest { expected: Digest, actual: Digest },
    #[error("`{0}` is not the media type of an image layer")]
    LayerMediaType(String),
    #[error("image config has no `{0}`")]
    Missing(&'static str),
}

/// Checks bytes against the descriptor that points at them.
pub fn check_blob(descriptor: &Descriptor, bytes: &[u8]) -> Result<(), ImageProblem> {
    let actual = bytes.len() as u64;
    if actual != descriptor.size {
        let digest = descriptor.digest.clone();
        return Err(ImageProblem::Size { digest, expected: descriptor.size, actual });
    }
    let actual = Digest::with(descriptor.digest.algorithm(), bytes);
    match actual == descriptor.digest {
        true => Ok(()),
        false => Err(ImageProblem::Digest { expected: descriptor.digest.clone(), actual }),
    }
}

/// Checks that a manifest and its image config tell of the same layers.
pub fn check_layer_count(
    manifest: &ImageManifest,
    config: &ImageConfig,
) -> Result<(), ImageProblem> {
    let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
    match layers == diff_ids {
        true => Ok(()),
        false => Err(ImageProblem::LayerCount { layers, diff_ids }),
    }
}

/// Checks what an image config must have by itself.
pub fn check_image_config(config: &ImageConfig) -> Result<(), ImageProblem> {
    if config.os.is_empty() {
        return Err(ImageProblem::Missing("os"));
    }
    if config.architecture.is_empty() {
        return Err(ImageProblem::Missing("architecture"));
    }
    let layers = config.rootfs.diff_ids.len();
    let history = config.history.iter().filter(|entry| !entry.empty_layer).count();
    match config.history.is_empty() || history == layers {
        true => Ok(()),
        false => Err(ImageProblem::HistoryCount { history, layers }),
    }
}
