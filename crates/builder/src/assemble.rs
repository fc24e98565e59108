//! From a stage's state to the bytes of an image.
//!
//! The same state gives the same bytes: members are written in a fixed order, and the only
//! times are those that the state carries.

use std::collections::BTreeMap;

use bytes::Bytes;
use oci::{
    Annotations, ContainerConfig, Descriptor, Digest, History, ImageConfig, ImageIndex,
    ImageManifest, media_type,
};

use crate::build::Built;
use crate::image::BaseImage;

/// A layer of an image: its blob, and the digest of what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLayer {
    pub descriptor: Descriptor,
    pub diff_id: Digest,
}

/// What a stage has become after some of its instructions.
#[derive(Debug, Clone)]
pub(crate) struct StageImage {
    /// Bottom first.
    pub(crate) layers: Vec<ImageLayer>,
    /// The base's image config, with `config`, `author` and `history` as they are now;
    /// `rootfs` and `created` are filled in when the image is assembled.
    pub(crate) config: ImageConfig,
    /// Seconds since 1970 of the newest layer that was built, if one was.
    pub(crate) newest: Option<i64>,
    /// Build arguments that stages built on this one have too.
    pub(crate) args: Vec<(String, String)>,
    /// A secret build argument may have had a part in it.
    pub(crate) has_secret: bool,
}

impl StageImage {
    pub(crate) fn scratch(platform: &oci::Platform) -> Self {
        let config = ImageConfig::scratch(platform);
        Self { layers: Vec::new(), config, newest: None, args: Vec::new(), has_secret: false }
    }

    /// Starts on a base image. Refuses layers that no builder can read.
    pub(crate) fn on(base: &BaseImage) -> Result<Self, String> {
        let layers = image_layers(&base.manifest, &base.config)?;
        let config = base.config.clone();
        Ok(Self { layers, config, newest: None, args: Vec::new(), has_secret: false })
    }

    /// Takes over what an instruction makes of the config.
    pub(crate) fn set_config(&mut self, config: &ContainerConfig, author: Option<&str>) {
        self.config.config = config.clone();
        if let Some(author) = author {
            self.config.author = Some(author.to_owned());
        }
    }

    /// Adds a line to the history; `layer` if the instruction made one.
    pub(crate) fn record(&mut self, created_by: &str, layer: Option<(ImageLayer, i64)>) {
        let created = layer.as_ref().map(|(_, created)| rfc3339(*created));
        self.config.history.push(History {
            created,
            created_by: Some(created_by.to_owned()),
            author: None,
            comment: None,
            empty_layer: layer.is_none(),
        });
        if let Some((layer, created)) = layer {
            self.layers.push(layer);
            self.newest = self.newest.max(Some(created));
        }
    }
}

/// An image, ready to be published.
#[derive(Debug, Clone)]
pub(crate) struct Assembled {
    pub(crate) manifest: Bytes,
    pub(crate) descriptor: Descriptor,
    pub(crate) config: Bytes,
}

/// Writes the image config and manifest.
///
/// The image's time is `fixed`, or that of its newest layer, or its base's, and only else
/// `now`; history lines without a time get that of the layer before them. So an image whose
/// layers are all from the cache is the same image again.
pub(crate) fn assemble(
    stage: &StageImage,
    annotations: BTreeMap<String, String>,
    fixed: Option<i64>,
    now: i64,
) -> Assembled {
    let mut config = stage.config.clone();
    config.rootfs.kind = "layers".to_owned();
    config.rootfs.diff_ids = stage.layers.iter().map(|layer| layer.diff_id.clone()).collect();
    if config.history.iter().filter(|line| !line.empty_layer).count() != stage.layers.len() {
        align_history(&mut config.history, stage.layers.len());
    }
    let image_created = match (fixed.or(stage.newest), stage.config.created.clone()) {
        (Some(time), _) => rfc3339(time),
        (None, Some(base)) => base,
        (None, None) => rfc3339(now),
    };
    let mut last = image_created.clone();
    for line in &mut config.history {
        match (&line.created, fixed) {
            (Some(time), _) => last = time.clone(),
            (None, Some(fixed)) => line.created = Some(rfc3339(fixed)),
            (None, None) => line.created = Some(last.clone()),
        }
    }
    config.created = Some(image_created);
    let config = to_json(&config);
    let config_descriptor = Descriptor::of(media_type::OCI_CONFIG, &config);
    let manifest = ImageManifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: config_descriptor,
        layers: stage.layers.iter().map(|layer| layer.descriptor.clone()).collect(),
        subject: None,
        annotations,
    };
    let manifest = to_json(&manifest);
    let descriptor = Descriptor::of(media_type::OCI_MANIFEST, &manifest);
    Assembled { manifest, descriptor, config }
}

/// An index over images, one for each platform.
#[derive(Debug, Clone)]
pub struct ImageIndexBytes {
    pub descriptor: Descriptor,
    pub bytes: Bytes,
}

/// Writes the index of images, in their order. The same images give the same bytes.
pub fn index_of(images: &[Built], annotations: &Annotations) -> ImageIndexBytes {
    let manifests = images.iter().map(|image| Descriptor {
        platform: Some(image.platform.clone()),
        annotations: annotations.of_descriptor(&image.platform),
        ..image.descriptor.clone()
    });
    let bytes = to_json(&ImageIndex {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.to_owned()),
        artifact_type: None,
        manifests: manifests.collect(),
        subject: None,
        annotations: annotations.of_index(),
    });
    ImageIndexBytes { descriptor: Descriptor::of(media_type::OCI_INDEX, &bytes), bytes }
}

/// A base may have no history, or too little of it: its layers get lines without words, in
/// front, so that ours stay with their layers.
fn align_history(history: &mut Vec<History>, layers: usize) {
    let lines = history.iter().filter(|line| !line.empty_layer).count();
    for _ in lines..layers {
        history.insert(0, History::default());
    }
    // More lines than layers: the base's history is wrong; its oldest lines lose their layer.
    let mut surplus = lines.saturating_sub(layers);
    for line in history.iter_mut().filter(|line| !line.empty_layer) {
        if surplus == 0 {
            break;
        }
        line.empty_layer = true;
        surplus -= 1;
    }
}

fn to_json(value: &impl serde::Serialize) -> Bytes {
    serde_json::to_vec(value).expect("plain structs and maps with text keys serialize").into()
}

/// The layers of an image. Refuses those that no builder can read.
pub(crate) fn image_layers(
    manifest: &ImageManifest,
    config: &ImageConfig,
) -> Result<Vec<ImageLayer>, String> {
    let pairs = manifest.layers.iter().zip(&config.rootfs.diff_ids);
    let layers = pairs.map(|(descriptor, diff_id)| {
        let media_type = oci_layer_type(&descriptor.media_type)?;
        let digest = descriptor.digest.clone();
        let descriptor = Descriptor::new(media_type, digest, descriptor.size);
        Ok(ImageLayer { descriptor, diff_id: diff_id.clone() })
    });
    layers.collect()
}

/// Docker's layers are OCI's under another name.
pub(crate) fn oci_layer_type(media_type: &str) -> Result<&'static str, String> {
    match media_type {
        media_type::OCI_LAYER_TAR | media_type::DOCKER_LAYER_TAR => Ok(media_type::OCI_LAYER_TAR),
        media_type::OCI_LAYER_GZIP | media_type::DOCKER_LAYER_GZIP => {
            Ok(media_type::OCI_LAYER_GZIP)
        }
        media_type::OCI_LAYER_ZSTD | media_type::DOCKER_LAYER_ZSTD => {
            Ok(media_type::OCI_LAYER_ZSTD)
        }
        other => Err(format!("it has a layer of type `{other}`")),
    }
}

/// Seconds since 1970 as `2001-02-03T04:05:06Z`; years from 0 to 9999.
pub(crate) fn rfc3339(seconds: i64) -> String {
    const YEAR_0: i64 = -62_167_219_200;
    const YEAR_9999_END: i64 = 253_402_300_799;
    let seconds = seconds.clamp(YEAR_0, YEAR_9999_END);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Civil date from days, after Howard Hinnant: eras of 400 years that begin in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_image_spec_wants_them() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(rfc3339(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59Z");
        assert_eq!(rfc3339(i64::MAX), "9999-12-31T23:59:59Z");
        assert_eq!(rfc3339(i64::MIN), "0000-01-01T00:00:00Z");
    }

    #[test]
    fn history_stays_with_its_layers_whatever_the_base_says() {
        let line = |empty_layer| History { empty_layer, ..History::default() };
        let kept = |mut history: Vec<History>, layers| {
            align_history(&mut history, layers);
            history.iter().map(|line| !line.empty_layer).collect::<Vec<_>>()
        };
        assert_eq!(kept(vec![line(false)], 3), [true, true, true]);
        assert_eq!(kept(vec![line(true), line(false)], 2), [true, false, true]);
        assert_eq!(kept(vec![line(false), line(false), line(true)], 1), [false, true, false]);
    }
}
