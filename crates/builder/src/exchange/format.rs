//! The form of a cache in a registry: an image manifest whose layers are the results, and whose
//! config says which key has which of them (BuildKit, `cache/remotecache/v1`).
//!
//! A record of ours has one result and no inputs: its key says everything already. Layers stand by
//! themselves, without parents.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use oci::{Descriptor, Digest, ImageManifest, Manifest, media_type};
use serde::{Deserialize, Serialize};

use crate::assemble::{ImageLayer, oci_layer_type, rfc3339};
use crate::record::StepResult;

/// The media type of a cache's config.
const CACHE_CONFIG: &str = "application/vnd.buildkit.cacheconfig.v0";

/// A cache's config is at most this large, in bytes: BuildKit reads no larger ones. So many records
/// and layers fit into memory.
pub(super) const CONFIG_SIZE_MAX: u64 = 1 << 20;

/// More results are not written: their config would come too close to the bound above.
const RESULTS_MAX: usize = 2_000;

/// What BuildKit's layers carry.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
const CREATED_AT: &str = "buildkit/createdat";

/// The root of a chain of layers.
const NO_PARENT: i64 = -1;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct CacheConfig {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    layers: Vec<CacheLayer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    records: Vec<CacheRecord>,
}

/// Digests are texts: BuildKit also writes some that name no content.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct CacheLayer {
    blob: String,
    parent: i64,
    annotations: LayerAnnotations,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LayerAnnotations {
    media_type: String,
    #[serde(rename = "diffID")]
    diff_id: String,
    size: u64,
    created_at: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct CacheRecord {
    #[serde(rename = "layers", skip_serializing_if = "Vec::is_empty")]
    results: Vec<CacheResult>,
    digest: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct CacheResult {
    layer: usize,
    created_at: String,
}

/// A cache, ready to be published.
#[derive(Debug, Clone)]
pub struct CacheImage {
    pub descriptor: Descriptor,
    pub manifest: Bytes,
    pub config_descriptor: Descriptor,
    pub config: Bytes,
    pub layers: Vec<Descriptor>,
    pub results: usize,
    /// How many more there are, for which it has no room.
    pub left_out: usize,
}

/// Writes a cache; none if there is nothing in it. The same results give the same bytes, in
/// whatever order they are.
pub fn cache_image<'a>(results: impl IntoIterator<Item = &'a StepResult>) -> Option<CacheImage> {
    let by_key: BTreeMap<&Digest, &StepResult> =
        results.into_iter().map(|result| (&result.key, result)).collect();
    if by_key.is_empty() {
        return None;
    }
    let left_out = by_key.len().saturating_sub(RESULTS_MAX);
    let mut layers: Vec<Descriptor> = Vec::new();
    let mut config = CacheConfig::default();
    for (key, result) in by_key.into_iter().take(RESULTS_MAX) {
        let (descriptor, diff_id) = (&result.layer.descriptor, &result.layer.diff_id);
        let created_at = rfc3339(result.created);
        let known = layers.iter().position(|layer| layer.digest == descriptor.digest);
        let layer = known.unwrap_or_else(|| {
            let annotations = [
                (CREATED_AT.to_owned(), created_at.clone()),
                (UNCOMPRESSED.to_owned(), diff_id.to_string()),
            ];
            layers.push(Descriptor { annotations: annotations.into(), ..descriptor.clone() });
            config.layers.push(CacheLayer {
                blob: descriptor.digest.to_string(),
                parent: NO_PARENT,
                annotations: LayerAnnotations {
                    media_type: descriptor.media_type.clone(),
                    diff_id: diff_id.to_string(),
                    size: descriptor.size,
                    created_at: created_at.clone(),
                },
            });
            layers.len() - 1
        });
        let results = vec![CacheResult { layer, created_at }];
        config.records.push(CacheRecord { results, digest: key.to_string() });
    }
    let results = config.records.len();
    let config = to_json(&config);
    let config_descriptor = Descriptor::of(CACHE_CONFIG, &config);
    let manifest = to_json(&ImageManifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: config_descriptor.clone(),
        layers: layers.clone(),
        subject: None,
        annotations: BTreeMap::new(),
    });
    let descriptor = Descriptor::of(media_type::OCI_MANIFEST, &manifest);
    Some(CacheImage { descriptor, manifest, config_descriptor, config, layers, results, left_out })
}

fn to_json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("plain structs and maps with text keys serialize").into()
}

/// The config of a cache, and its layers: of an image manifest, or of the older form, an index that
/// lists both.
pub(super) fn parts(manifest: Manifest) -> Result<(Descriptor, Vec<Descriptor>), String> {
    let no_cache = || "it is not a build cache".to_owned();
    match manifest {
        Manifest::Image(manifest) if manifest.config.media_type == CACHE_CONFIG => {
            Ok((manifest.config, manifest.layers))
        }
        Manifest::Index(index) => {
            let is_config = |entry: &Descriptor| entry.media_type == CACHE_CONFIG;
            let (configs, layers): (Vec<_>, Vec<_>) =
                index.manifests.into_iter().partition(is_config);
            configs.into_iter().next().map(|config| (config, layers)).ok_or_else(no_cache)
        }
        Manifest::Image(_) | Manifest::Artifact(_) => Err(no_cache()),
    }
}

/// What a cache holds.
#[derive(Debug, Default)]
pub(super) struct CacheContent {
    results: HashMap<Digest, FoundResult>,
    /// Results there are, also those that can never be used here.
    pub(super) count: usize,
}

/// A result of a cache: nothing of it is checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundResult {
    pub(super) layer: ImageLayer,
    pub(super) created: i64,
}

impl CacheContent {
    /// Reads a cache's config. What is of another kind is passed over.
    pub(super) fn read(config: &[u8], layers: &[Descriptor]) -> Result<Self, String> {
        let config: CacheConfig = serde_json::from_slice(config)
            .map_err(|error| format!("its config cannot be read: {error}"))?;
        let layers: HashMap<&str, &Descriptor> =
            layers.iter().map(|layer| (layer.digest.as_str(), layer)).collect();
        let mut content = Self::default();
        for record in &config.records {
            let Some(result) = record.results.first() else { continue };
            content.count += 1;
            if let (Ok(key), Some(found)) = (record.digest.parse(), found(&config, &layers, result))
            {
                content.results.entry(key).or_insert(found);
            }
        }
        Ok(content)
    }

    pub(super) fn get(&self, key: &Digest) -> Option<&FoundResult> {
        self.results.get(key)
    }
}

fn found(
    config: &CacheConfig,
    layers: &HashMap<&str, &Descriptor>,
    result: &CacheResult,
) -> Option<FoundResult> {
    let layer = config.layers.get(result.layer)?;
    let descriptor = layers.get(layer.blob.as_str())?;
    let media_type = oci_layer_type(&descriptor.media_type).ok()?;
    let created = result.created_at.parse::<jiff::Timestamp>().ok()?.as_second();
    let layer = ImageLayer {
        descriptor: Descriptor::new(media_type, descriptor.digest.clone(), descriptor.size),
        diff_id: layer.annotations.diff_id.parse().ok()?,
    };
    Some(FoundResult { layer, created })
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn result(key: &str, layer: &[u8], created: i64) -> StepResult {
        let descriptor = Descriptor::of(media_type::OCI_LAYER_GZIP, layer);
        let diff_id = Digest::of(&[layer, b" unpacked"].concat());
        StepResult {
            key: Digest::of(key.as_bytes()),
            layer: ImageLayer { descriptor, diff_id },
            created,
        }
    }

    #[test]
    fn a_cache_has_buildkit_s_form() {
        let results = [result("a", b"one", 1_700_000_000), result("b", b"two", 1_700_000_001)];
        let image = cache_image(&results).unwrap();
        let pretty = |bytes: &[u8]| {
            let value: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            format!("{value:#}\n")
        };
        expect![[r#"
            {
              "layers": [
                {
                  "blob": "sha256:3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3",
                  "parent": -1,
                  "annotations": {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "diffID": "sha256:ff0ce6eae95cdf05fc3625dcc55f0ee8fc545347c4da6c136c2455c06474e9a4",
                    "size": 3,
                    "createdAt": "2023-11-14T22:13:21Z"
                  }
                },
                {
                  "blob": "sha256:7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed",
                  "parent": -1,
                  "annotations": {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "diffID": "sha256:f951abd747e7ac8c62cee4329f43b1939ed467ad2ad71fd801d167941869579b",
                    "size": 3,
                    "createdAt": "2023-11-14T22:13:20Z"
                  }
                }
              ],
              "records": [
                {
                  "layers": [
                    {
                      "layer": 0,
                      "createdAt": "2023-11-14T22:13:21Z"
                    }
                  ],
                  "digest": "sha256:3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d"
                },
                {
                  "layers": [
                    {
                      "layer": 1,
                      "createdAt": "2023-11-14T22:13:20Z"
                    }
                  ],
                  "digest": "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
                }
              ]
            }
        "#]].assert_eq(&pretty(&image.config));
        expect![[r#"
            {
              "schemaVersion": 2,
              "mediaType": "application/vnd.oci.image.manifest.v1+json",
              "config": {
                "mediaType": "application/vnd.buildkit.cacheconfig.v0",
                "digest": "sha256:902e71825ee17682d322f12fdd5d01f587ffd0fc3154661f10c0230e96f3eddc",
                "size": 902
              },
              "layers": [
                {
                  "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                  "digest": "sha256:3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3",
                  "size": 3,
                  "annotations": {
                    "buildkit/createdat": "2023-11-14T22:13:21Z",
                    "containerd.io/uncompressed": "sha256:ff0ce6eae95cdf05fc3625dcc55f0ee8fc545347c4da6c136c2455c06474e9a4"
                  }
                },
                {
                  "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                  "digest": "sha256:7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed",
                  "size": 3,
                  "annotations": {
                    "buildkit/createdat": "2023-11-14T22:13:20Z",
                    "containerd.io/uncompressed": "sha256:f951abd747e7ac8c62cee4329f43b1939ed467ad2ad71fd801d167941869579b"
                  }
                }
              ]
            }
        "#]].assert_eq(&pretty(&image.manifest));
    }

    #[test]
    fn the_same_results_give_the_same_bytes() {
        let (one, two) = (result("a", b"one", 1), result("b", b"one", 2));
        let image = cache_image([&one, &two, &one]).unwrap();
        assert_eq!((image.results, image.layers.len()), (2, 1), "a layer is there once");
        assert_eq!(cache_image([&two, &one]).unwrap().manifest, image.manifest);
        assert!(cache_image([]).is_none());
    }

    #[test]
    fn a_full_cache_is_one_that_buildkit_reads() {
        let results: Vec<_> =
            (0..RESULTS_MAX + 3).map(|n| result(&n.to_string(), &n.to_le_bytes(), 0)).collect();
        let image = cache_image(&results).unwrap();
        assert_eq!((image.results, image.left_out), (RESULTS_MAX, 3));
        let largest = image.config.len().max(image.manifest.len());
        assert!(largest as u64 <= CONFIG_SIZE_MAX, "{largest}");
    }

    #[test]
    fn what_was_written_is_read() {
        let results = [result("a", b"one", 1_700_000_000), result("b", b"two", 1)];
        let image = cache_image(&results).unwrap();
        let manifest = Manifest::parse(&image.manifest, None).unwrap();
        let (config, layers) = parts(manifest).unwrap();
        assert_eq!(config, image.config_descriptor);
        let content = CacheContent::read(&image.config, &layers).unwrap();
        assert_eq!(content.count, 2);
        for StepResult { key, layer, created } in results {
            assert_eq!(content.get(&key), Some(&FoundResult { layer, created }));
        }
        assert_eq!(content.get(&Digest::of(b"c")), None);
    }

    /// As BuildKit writes them: records that are only inputs, chains of layers, digests of nothing.
    const OF_BUILDKIT: &str = r#"{"layers":[
        {"blob":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","parent":-1,
         "annotations":{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip",
          "diffID":"sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
          "size":10,"createdAt":"2026-08-21T17:29:35.123456789+02:00"}},
        {"blob":"sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc",
         "annotations":{"diffID":"sha256:dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd",
          "createdAt":"0001-01-01T00:00:00Z"}}],
      "records":[
        {"digest":"sha256:1111111111111111111111111111111111111111111111111111111111111111"},
        {"layers":[{"layer":1,"createdAt":"2026-08-21T17:29:36Z"}],
         "digest":"sha256:2222222222222222222222222222222222222222222222222222222222222222",
         "inputs":[[{"selector":"sel","link":0},{"link":0}]]},
        {"layers":[{"layer":0,"createdAt":"2026-08-21T15:29:36.5Z"}],
         "digest":"random:3333333333333333333333333333333333333333333333333333333333333333"},
        {"chains":[{"layers":[0,1],"createdAt":"2026-08-21T15:29:36.5Z"}],
         "digest":"sha256:4444444444444444444444444444444444444444444444444444444444444444"}]}"#;

    fn layer(digit: char) -> Descriptor {
        let digest = format!("sha256:{}", digit.to_string().repeat(64)).parse().unwrap();
        Descriptor::new(media_type::DOCKER_LAYER_GZIP, digest, 10)
    }

    #[test]
    fn what_buildkit_writes_is_read() {
        let content =
            CacheContent::read(OF_BUILDKIT.as_bytes(), &[layer('a'), layer('c')]).unwrap();
        assert_eq!(content.count, 2);
        let found = content.get(&layer('2').digest).unwrap();
        assert_eq!(found.layer.descriptor.digest, layer('c').digest);
        assert_eq!(found.layer.descriptor.media_type, media_type::OCI_LAYER_GZIP);
        assert_eq!(found.layer.diff_id, layer('d').digest);
        assert_eq!(rfc3339(found.created), "2026-08-21T17:29:36Z");
        assert_eq!(content.results.len(), 1);
    }

    #[test]
    fn the_older_form_is_an_index() {
        let config = Descriptor::of(CACHE_CONFIG, OF_BUILDKIT.as_bytes());
        for kind in [media_type::OCI_INDEX, media_type::DOCKER_MANIFEST_LIST] {
            let index = serde_json::json!({
                "schemaVersion": 2, "mediaType": kind, "manifests": [layer('a'), layer('c'), config],
            });
            let index = Manifest::parse(index.to_string().as_bytes(), None).unwrap();
            let (found, layers) = parts(index).unwrap();
            assert_eq!((found, layers), (config.clone(), vec![layer('a'), layer('c')]));
        }
    }

    #[test]
    fn an_image_is_no_cache() {
        let config = Descriptor::of(media_type::OCI_CONFIG, b"{}");
        let image = serde_json::json!({"schemaVersion": 2, "config": config, "layers": []});
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [layer('a')]});
        for manifest in [image, index] {
            let manifest = Manifest::parse(manifest.to_string().as_bytes(), None).unwrap();
            assert_eq!(parts(manifest).unwrap_err(), "it is not a build cache");
        }
    }

    #[test]
    fn lies_are_errors_or_nothing() {
        let layers = [layer('a'), layer('c')];
        for bad in ["", "null", r#"{"records":[{"layers":[{"layer":-1}]}]}"#, "{\"layers\":7}"] {
            let error = CacheContent::read(bad.as_bytes(), &layers).unwrap_err();
            assert!(error.starts_with("its config cannot be read"), "{bad}: {error}");
        }
        let lie = |from: &str, to: &str| {
            let config = OF_BUILDKIT.replace(from, to);
            CacheContent::read(config.as_bytes(), &layers).unwrap().results.len()
        };
        assert_eq!(lie("none", "none"), 1);
        assert_eq!(lie(r#""layer":1"#, r#""layer":99999999999"#), 0, "no such layer");
        assert_eq!(lie("sha256:ccc", "sha256:eee"), 0, "a layer that the manifest has not");
        assert_eq!(lie("sha256:dddd", "sha256:"), 0, "no diff ID");
        assert_eq!(lie("17:29:36Z", "never"), 0, "no time");
    }
}
