//! What the catalog is asked for and what it answers.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use oci::{Digest, Manifest, RegistryName, RepositoryName, Tag};

/// Milliseconds since 1970, UTC; how every time is stored.
pub type Millis = i64;

/// Who or what moved a tag or changed content; kept in the journal and shown to people.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Cause {
    Push {
        principal: String,
    },
    Build {
        run: String,
    },
    Import {
        source: String,
    },
    Delete {
        principal: String,
    },
    /// By a rule: of a run, or of somebody.
    Purge {
        run: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        principal: Option<String>,
    },
    /// What was deleted is there again.
    Restore {
        principal: String,
    },
}

/// What has gone from a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    pub registry: RegistryName,
    pub repository: RepositoryName,
    pub what: Removed,
    /// With it, or alone.
    pub tags: Vec<Tag>,
    pub cause: Cause,
}

/// See [`Removal`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    Repository,
    Manifest(Digest),
    /// Nothing but a tag.
    Tag,
}

/// What a caller believes a tag to be, for compare-and-swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Move it wherever it is.
    Any,
    Absent,
    At(Digest),
    /// There, and not pushed or moved since this time.
    AtBefore {
        digest: Digest,
        updated_before: Millis,
    },
}

/// One line of the tag journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagMove {
    /// The cursor: strictly growing, never reused.
    pub sequence: i64,
    pub registry: RegistryName,
    pub repository: RepositoryName,
    pub tag: Tag,
    pub old: Option<Digest>,
    /// `None`: the tag was removed.
    pub new: Option<Digest>,
    pub cause: Cause,
    pub at: Millis,
}

/// What became of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentChange {
    pub registry: RegistryName,
    pub repository: RepositoryName,
    pub digest: Digest,
    pub media_type: String,
    /// Of the manifest itself, in bytes.
    pub size: u64,
    pub deed: ContentDeed,
    /// Those that it was pushed as, or was deleted with.
    pub tags: Vec<Tag>,
    pub cause: Cause,
    pub at: Millis,
}

/// See [`ContentChange`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ContentDeed {
    /// Anew or again, or a tag was moved to it.
    Pushed,
    Deleted,
}

/// A manifest of a repository.
#[derive(Debug, Clone)]
pub struct ManifestEntry {
    pub digest: Digest,
    pub media_type: String,
    pub size: u64,
    /// The bytes as they were pushed.
    pub bytes: Bytes,
}

/// What listings say of a manifest, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestInfo {
    pub digest: Digest,
    pub media_type: String,
    pub size: u64,
    /// Config plus layers, for people.
    pub image_size: u64,
    pub artifact_type: Option<String>,
    pub config_media_type: Option<String>,
    pub subject: Option<Digest>,
    pub pushed_at: Millis,
    /// When it was pushed, tagged or untagged last.
    pub updated_at: Millis,
    /// Without those that are hidden.
    pub tags: Vec<Tag>,
    /// Whether it has any tag, hidden or not.
    pub is_tagged: bool,
    pub attributes: Attributes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagInfo {
    pub tag: Tag,
    pub digest: Digest,
    pub created_at: Millis,
    /// When it was moved or its attributes were changed last.
    pub updated_at: Millis,
    pub attributes: Attributes,
}

/// What listings say of a repository, and how much is in it, hidden or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryInfo {
    pub manifests: u64,
    pub tags: u64,
    /// When its oldest manifest was pushed.
    pub created_at: Millis,
    /// When its newest manifest was pushed.
    pub updated_at: Millis,
    pub attributes: Attributes,
}

/// What may be done to a repository, a tag or a manifest, each for itself (registry.md section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Of a repository: it as a whole. What is in it may be deleted even so.
    pub delete_enabled: bool,
    /// Where it is false, nothing is deleted either. Of a repository: whatever is in it.
    pub write_enabled: bool,
    /// Of a repository: whatever is in it.
    pub read_enabled: bool,
    /// Where it is false, only those who know the name find it.
    pub list_enabled: bool,
}

impl Default for Attributes {
    fn default() -> Self {
        Self { delete_enabled: true, write_enabled: true, read_enabled: true, list_enabled: true }
    }
}

impl Attributes {
    /// Whether it may be deleted, as far as it is asked itself.
    pub fn may_be_deleted(self) -> bool {
        self.delete_enabled && self.write_enabled
    }

    /// Whether what it lists may be deleted, as far as an index is asked: not while anything is kept
    /// from being done to the index. `even_locked`, only who does not find it does not take from it.
    pub fn gives_up_members(self, even_locked: bool) -> bool {
        self.list_enabled && (even_locked || self.may_be_deleted() && self.read_enabled)
    }
}

/// New values of [`Attributes`]; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttributesChange {
    pub delete_enabled: Option<bool>,
    pub write_enabled: Option<bool>,
    pub read_enabled: Option<bool>,
    pub list_enabled: Option<bool>,
}

/// One of the [`Attributes`] that can keep something from being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribute {
    DeleteEnabled,
    WriteEnabled,
    ReadEnabled,
}

impl Attribute {
    /// As clients of the registry know it.
    pub fn name(self) -> &'static str {
        match self {
            Self::DeleteEnabled => "deleteEnabled",
            Self::WriteEnabled => "writeEnabled",
            Self::ReadEnabled => "readEnabled",
        }
    }

    fn flag(self) -> &'static str {
        match self {
            Self::DeleteEnabled => "--delete-enabled",
            Self::WriteEnabled => "--write-enabled",
            Self::ReadEnabled => "--read-enabled",
        }
    }
}

/// What becomes of the manifests of a registry that lose their last tag (registry.md section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// They go after some days.
    pub enabled: bool,
    /// None: at once.
    pub days: u32,
    /// `None`: nobody has changed it yet.
    pub updated_at: Option<Millis>,
}

impl Default for Retention {
    fn default() -> Self {
        Self { enabled: false, days: 7, updated_at: None }
    }
}

/// Days that manifests without tags are kept at most.
pub const RETENTION_DAYS_MAX: u32 = 365;

/// New values of [`Retention`]; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetentionChange {
    pub enabled: Option<bool>,
    pub days: Option<u32>,
}

/// Whether what is deleted in a registry can be restored (registry.md section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SoftDelete {
    /// What is deleted from now on can be.
    pub enabled: bool,
    /// For how long, whenever it was deleted.
    pub days: u32,
    /// `None`: nobody has changed it yet.
    pub updated_at: Option<Millis>,
}

impl Default for SoftDelete {
    fn default() -> Self {
        Self { enabled: false, days: 7, updated_at: None }
    }
}

/// Days that deleted manifests and tags can be restored, at least and at most.
pub const SOFT_DELETE_DAYS: std::ops::RangeInclusive<u32> = 1..=90;

/// New values of [`SoftDelete`]; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SoftDeleteChange {
    pub enabled: Option<bool>,
    pub days: Option<u32>,
}

/// What a registry does by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policies {
    pub retention: Retention,
    pub soft_delete: SoftDelete,
}

/// New values of [`Policies`]; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoliciesChange {
    pub retention: Option<RetentionChange>,
    pub soft_delete: Option<SoftDeleteChange>,
}

/// One of the [`Policies`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Retention,
    SoftDelete,
}

impl Policy {
    /// As `refit config` has it.
    pub(crate) fn command(self) -> &'static str {
        match self {
            Self::Retention => "retention",
            Self::SoftDelete => "soft-delete",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Retention => "retention of untagged manifests",
            Self::SoftDelete => "soft delete",
        })
    }
}

/// A repository of which something can be restored, and how much, hidden or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletedRepository {
    pub repository: RepositoryName,
    pub manifests: u64,
    pub tags: u64,
    /// When something in it was deleted last.
    pub deleted_at: Millis,
}

/// A manifest that can be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletedManifest {
    pub digest: Digest,
    pub media_type: String,
    /// Config plus layers, for people.
    pub image_size: u64,
    pub artifact_type: Option<String>,
    pub subject: Option<Digest>,
    pub pushed_at: Millis,
    pub deleted_at: Millis,
    /// Those with which it can be restored, without those that are hidden.
    pub tags: Vec<Tag>,
}

/// A tag that can be restored, to one of the manifests that it pointed at when it was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletedTag {
    pub tag: Tag,
    pub digest: Digest,
    pub created_at: Millis,
    pub deleted_at: Millis,
}

/// In which order of time a list is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    OldestFirst,
    NewestFirst,
}

/// What is to be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToRestore {
    /// A tag, with its manifest if that was deleted too.
    Tag {
        tag: Tag,
        /// What it pointed at; `None`: at whatever it did when it was removed last.
        digest: Option<Digest>,
        /// Even if there is another one by now, which is soft-deleted then.
        force: bool,
    },
    /// A manifest without its tags.
    Manifest(Digest),
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    pub digest: Digest,
    pub tag: Option<Tag>,
    /// Whether the manifest had been deleted, and not just its tag.
    pub with_manifest: bool,
    /// Manifests that it lists as an index, and that are still deleted.
    pub deleted_members: Vec<Digest>,
}

/// What is locked, and by what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    pub repository: RepositoryName,
    /// `None`: the repository itself.
    pub reference: Option<ManifestRef>,
    pub attribute: Attribute,
}

impl Lock {
    /// How it is unlocked.
    pub fn hint(&self) -> String {
        let Self { repository, reference, attribute } = self;
        let flag = attribute.flag();
        let what = match reference {
            None => repository.to_string(),
            Some(ManifestRef::Tag(tag)) => format!("--image {repository}:{tag}"),
            Some(ManifestRef::Digest(digest)) => format!("--image {repository}@{digest}"),
        };
        format!("`refit repository update {what} {flag} true` unlocks it")
    }
}

impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { repository, reference, attribute } = self;
        match reference {
            None => write!(f, "repository `{repository}`")?,
            Some(ManifestRef::Tag(tag)) => write!(f, "tag `{repository}:{tag}`")?,
            Some(ManifestRef::Digest(digest)) => write!(f, "manifest `{repository}@{digest}`")?,
        }
        write!(f, " is locked: its `{}` is false", attribute.name())
    }
}

/// A manifest that names another one as its subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Referrer {
    pub descriptor: oci::Descriptor,
}

/// By tag or by digest, as in `/v2/<name>/manifests/<reference>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ManifestRef {
    Tag(Tag),
    Digest(Digest),
}

/// How much a deletion removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deleted {
    pub manifests: u64,
    pub tags: u64,
}

/// What was in a repository that is deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeletedContent {
    pub manifests: Vec<Digest>,
    pub tags: Vec<Tag>,
}

impl DeletedContent {
    /// How much it was.
    pub fn count(&self) -> Deleted {
        Deleted { manifests: self.manifests.len() as u64, tags: self.tags.len() as u64 }
    }
}

/// When nobody needs a manifest: it has no tag and no subject, it is old enough, and the same is
/// true of every index that lists it, at any depth, which also [gives it
/// up](Attributes::gives_up_members).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unneeded {
    /// Pushed, tagged and untagged then or before.
    pub updated_until: Millis,
    /// It goes though it is locked, or an index that lists it.
    pub even_locked: bool,
}

/// A manifest to be stored: parsed once at the edge, its bytes kept as they came.
pub struct NewManifest<'a> {
    pub digest: &'a Digest,
    pub media_type: &'a str,
    pub bytes: Bytes,
    pub manifest: &'a Manifest,
}

/// What reading a layer has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadLayer {
    /// The blob that says what is in it (architecture.md decision 10).
    pub index: Digest,
    /// What it unpacks to, whatever images say.
    pub diff_id: Digest,
}

/// A cached result of one instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry {
    /// JSON of the builder's own.
    pub value: String,
    /// Blobs that the entry needs; collected only with it. If one is gone, the entry is a miss.
    pub blobs: Vec<Digest>,
    /// What making it cost, in milliseconds: eviction keeps what saves most per byte.
    pub cost: u64,
}

#[derive(Debug, Clone)]
pub struct GcOptions {
    /// Report only.
    pub dry_run: bool,
    /// Unreferenced content younger than this stays.
    pub grace: Duration,
    /// Bound of the build cache in bytes.
    pub cache_size_max: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Referrers whose subject was deleted. What only they needed goes in a later pass, once it
    /// has been unreferenced for the grace period.
    pub manifests: Vec<(RegistryName, RepositoryName, Digest)>,
    pub blobs: Vec<(Digest, u64)>,
    pub cache_entries: u64,
    pub uploads: u64,
    pub bytes: u64,
}

/// A pass over stored content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubPass {
    /// Which one, counted from the first.
    pub(crate) number: i64,
    pub started_at: Millis,
    pub finished_at: Option<Millis>,
    /// A bound of its own, in bytes a second; 0: none.
    pub rate: Option<u64>,
    /// The digest read last; empty at the start.
    pub(crate) position: String,
    pub blobs: u64,
    pub bytes: u64,
    /// Blobs that this pass found damaged.
    pub damaged: u64,
}

/// How much content there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoredSize {
    pub blobs: u64,
    pub bytes: u64,
}

/// A blob that was found damaged and not stored again since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostBlob {
    pub digest: Digest,
    pub size: u64,
    /// Some of those that miss it.
    pub repositories: Vec<(RegistryName, RepositoryName)>,
}
