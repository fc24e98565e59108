//! What a build used and made (architecture.md decisions 1 and 13): stored with the manifest
//! and read by triggers, plans, evidence and reports. What is not in here cannot be asked later.

use std::collections::BTreeMap;

use oci::Digest;
use serde::{Deserialize, Serialize};

use crate::assemble::ImageLayer;
use crate::explain::CacheExplanation;
use crate::proof::Proof;

/// Changes when members change their meaning.
pub const RECORD_VERSION: u32 = 1;

/// The build record of one manifest. The same build gives the same record: what it cost is
/// in [`BuildCost`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildRecord {
    pub version: u32,
    /// Version of Refit that built it.
    pub builder: String,
    pub platform: String,
    /// Digest of the Dockerfile, target, platform and build arguments (of secret ones only
    /// their names).
    pub definition: Digest,
    /// Digest of what the context held; absent when nothing was read from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<Digest>,
    /// The git repository that was the context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<RecordedRepository>,
    /// The same of those named contexts that are files, as far as they were read.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub named_contexts: BTreeMap<String, Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_date_epoch: Option<i64>,
    pub bases: Vec<RecordedBase>,
    pub steps: Vec<RecordedStep>,
    /// Instructions of the Dockerfile that made no layer: each build does them anew, so nothing is to
    /// be proven.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evaluated: Vec<RecordedLine>,
    /// What `ADD`s fetched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub downloads: Vec<RecordedDownload>,
    pub output: RecordedOutput,
}

/// A commit that was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedRepository {
    /// Without credentials.
    pub address: String,
    pub commit: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
}

/// An image that a stage used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedBase {
    /// Number of the stage, counted from 0.
    pub stage: usize,
    pub role: BaseRole,
    /// The whole reference, `host/repository:tag`.
    pub reference: String,
    /// What the reference pointed at.
    pub digest: Digest,
    /// The manifest of the platform.
    pub manifest: Digest,
}

/// How an image was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseRole {
    /// The image that the result stands on, through however many stages.
    Runtime,
    /// One that only helped: the base of a stage beside those, or a `COPY --from`.
    Buildtime,
}

/// An instruction that made a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedStep {
    pub stage: usize,
    pub line: u32,
    pub key: Digest,
    pub layer: Digest,
    pub diff_id: Digest,
    /// What has to be the same of the images that the step looks at for the layer to be used on other
    /// ones: the key holds it. Absent in records of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
}

/// Where an instruction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedLine {
    pub stage: usize,
    pub line: u32,
}

/// A step's result by its cache key, which builds elsewhere may be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepResult {
    pub key: Digest,
    pub layer: ImageLayer,
    /// Seconds since 1970.
    pub created: i64,
}

/// A file, or the files of a git repository, that came from an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedDownload {
    pub stage: usize,
    pub line: u32,
    /// Without credentials and query.
    pub address: String,
    /// Of the file; of a repository's files, the archive of them.
    pub digest: Digest,
    /// Of a repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedOutput {
    pub manifest: Digest,
    pub config: Digest,
    pub layers: Vec<Digest>,
    /// Config and layers, in bytes.
    pub size: u64,
}

/// What a build cost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildCost {
    pub milliseconds: u64,
    /// Processor time of the `RUN`s.
    pub cpu_milliseconds: u64,
    /// Largest memory of one `RUN`, in bytes.
    pub memory_peak: u64,
    /// Bytes of base images that had to be fetched.
    pub pulled: u64,
    /// Bytes of new layers.
    pub written: u64,
    /// How many of them came from the compressed blocks of earlier layers.
    #[serde(default)]
    pub reused: u64,
    pub cache_hits: u32,
    pub cache_misses: u32,
    /// What the hits would have cost again.
    pub saved_milliseconds: u64,
    pub steps: Vec<StepCost>,
}

impl BuildCost {
    /// Adds what another build cost that went on at the same time.
    pub fn add_concurrent(&mut self, other: Self) {
        let Self {
            milliseconds,
            cpu_milliseconds,
            memory_peak,
            pulled,
            written,
            reused,
            cache_hits,
            cache_misses,
            saved_milliseconds,
            steps,
        } = other;
        self.milliseconds = self.milliseconds.max(milliseconds);
        self.cpu_milliseconds += cpu_milliseconds;
        self.memory_peak = self.memory_peak.max(memory_peak);
        self.pulled += pulled;
        self.written += written;
        self.reused += reused;
        self.cache_hits += cache_hits;
        self.cache_misses += cache_misses;
        self.saved_milliseconds += saved_milliseconds;
        self.steps.extend(steps);
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepCost {
    pub name: String,
    pub cached: bool,
    /// Of a cached one, why that is right here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    pub milliseconds: u64,
    #[serde(default)]
    pub cpu_milliseconds: u64,
    /// Why the cache had the result or not, if the build was to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheExplanation>,
}
