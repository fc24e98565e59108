//! Saying something about images: a manifest with annotations that has the image as its subject.

use std::collections::BTreeMap;
use std::sync::Arc;

use oci::{Descriptor, Digest, RepositoryName, media_type};
use store::{ManifestInfo, ManifestRef, Millis, NewArtifact, TagInfo};
use tokio_util::sync::CancellationToken;

use crate::error::{HousekeepingError, OptionsError};
use crate::filter::{Filter, Filters};
use crate::purge::match_time;
use crate::record::{Item, Record, Records, Verb};
use crate::registry::{PAGE, Registry, Repositories, Session, Use, matching};
use crate::untagged::Needs;

/// What is said of an image once only.
const LIFECYCLE: &str = "application/vnd.microsoft.artifact.lifecycle";
const ARTIFACT_TYPE_LEN_MAX: usize = 255;
const ANNOTATIONS_MAX: usize = 1000;
/// Bytes of all annotations.
const ANNOTATIONS_SIZE_MAX: usize = 256 << 10;

/// Annotations as they are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnnotateOptions {
    pub filters: Vec<String>,
    pub artifact_type: Option<String>,
    /// `KEY=VALUE[,KEY=VALUE]`
    pub annotations: Vec<String>,
    pub untagged: bool,
    pub dry_run: bool,
    /// Annotate what tags point at that are locked, too.
    pub include_locked: bool,
    pub filter_timeout_seconds: Option<i64>,
}

/// Annotations that can be made.
#[derive(Debug, Clone)]
pub struct Annotate {
    filters: Filters,
    artifact_type: String,
    annotations: BTreeMap<String, String>,
    untagged: bool,
    dry_run: bool,
    include_locked: bool,
}

impl Annotate {
    pub fn new(options: &AnnotateOptions) -> Result<Self, OptionsError> {
        if options.filters.is_empty() {
            return Err(OptionsError::NoFilter);
        }
        let filters = Filters::parse(&options.filters, match_time(options.filter_timeout_seconds))?;
        let artifact_type = options.artifact_type.clone().ok_or(OptionsError::NoArtifactType)?;
        if !is_media_type(&artifact_type) {
            let shown = artifact_type.chars().take(ARTIFACT_TYPE_LEN_MAX).collect();
            return Err(OptionsError::BadArtifactType(shown));
        }
        Ok(Self {
            filters,
            artifact_type,
            annotations: annotations(&options.annotations)?,
            untagged: options.untagged,
            dry_run: options.dry_run,
            include_locked: options.include_locked,
        })
    }
}

/// `type/subtype`, each of the characters of RFC 6838.
fn is_media_type(text: &str) -> bool {
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "!#$&-^_.+".contains(c))
    };
    let parts = text.split_once('/');
    text.len() <= ARTIFACT_TYPE_LEN_MAX
        && parts.is_some_and(|(kind, subtype)| is_name(kind) && is_name(subtype))
}

fn annotations(texts: &[String]) -> Result<BTreeMap<String, String>, OptionsError> {
    let mut found = BTreeMap::new();
    let mut size = 0;
    for pair in texts.iter().flat_map(|text| text.split(',')) {
        let shown = || pair.chars().take(100).collect();
        let (key, value) =
            pair.split_once('=').ok_or_else(|| OptionsError::BadAnnotation(shown()))?;
        if key.is_empty() {
            return Err(OptionsError::BadAnnotation(shown()));
        }
        size += pair.len();
        found.insert(key.to_owned(), value.to_owned());
        if found.len() > ANNOTATIONS_MAX || size > ANNOTATIONS_SIZE_MAX {
            return Err(OptionsError::TooManyAnnotations(ANNOTATIONS_MAX));
        }
    }
    match found.is_empty() {
        true => Err(OptionsError::NoAnnotations),
        false => Ok(found),
    }
}

/// How much was annotated, or would be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Annotated {
    pub dry_run: bool,
    pub tags: u64,
    pub manifests: u64,
    /// Tags that were left out because they are locked.
    pub locked: u64,
}

impl Annotated {
    /// The last lines of `acr annotate`.
    pub fn lines(&self) -> [String; 3] {
        let of = |kind: &str, count: u64| match self.dry_run {
            true => format!("Number of {kind} to be annotated: {count}"),
            false => format!("Number of annotated {kind}: {count}"),
        };
        [
            of("tags", self.tags),
            of("manifests", self.manifests),
            format!("Number of locked tags skipped: {}", self.locked),
        ]
    }
}

/// Annotates, or tells what it would annotate. The first failure ends it.
pub async fn annotate(
    registry: &Registry,
    annotate: &Annotate,
    records: &dyn Records,
    cancel: &CancellationToken,
) -> Result<Annotated, HousekeepingError> {
    let session = Session { registry, records, cancel };
    let mut repositories = Repositories::new(&annotate.filters, PAGE);
    let mut annotated = Annotated { dry_run: annotate.dry_run, ..Annotated::default() };
    while let Some((name, filters)) = repositories.next(&session).await? {
        let refused = (registry.refused)(&name);
        if let Some(reason) = refused.or_else(|| registry.may.refused(&name, Use::Push)) {
            return Err(HousekeepingError::Refused(reason));
        }
        let repository = Repository { session: &session, annotate, name, filters };
        repository.annotate_tags(&mut annotated).await?;
        if annotate.untagged {
            repository.annotate_manifests(&mut annotated.manifests).await?;
        }
    }
    Ok(annotated)
}

struct Repository<'a> {
    session: &'a Session<'a>,
    annotate: &'a Annotate,
    name: RepositoryName,
    filters: Arc<[Filter]>,
}

impl Repository<'_> {
    async fn annotate_tags(&self, annotated: &mut Annotated) -> Result<(), HousekeepingError> {
        let Registry { catalog, name: registry, .. } = self.session.registry;
        let mut last = None::<String>;
        loop {
            self.session.check()?;
            let page = catalog.tags(registry, &self.name, last.as_deref(), PAGE).await?;
            let Some(end) = page.last() else { return Ok(()) };
            last = Some(end.tag.to_string());
            let names = page.iter().map(|tag| tag.tag.clone()).collect();
            let matches = matching(&self.filters, names).await?;
            let matching = page.into_iter().zip(matches).filter(|(_, matches)| *matches);
            for (TagInfo { tag, digest, attributes, .. }, _) in matching {
                if !attributes.write_enabled && !self.annotate.include_locked {
                    annotated.locked += 1;
                    continue;
                }
                let item = Item { repository: self.name.clone(), tag: Some(tag), digest };
                annotated.tags += u64::from(self.annotate_item(item).await?);
            }
        }
    }

    /// Untagged manifests that are no OCI images: those that are, are what others are annotated by.
    async fn annotate_manifests(&self, count: &mut u64) -> Result<(), HousekeepingError> {
        let Registry { catalog, name: registry, .. } = self.session.registry;
        let needs = Needs {
            session: self.session,
            repository: &self.name,
            updated_until: Millis::MAX,
            going: None,
            even_locked: true,
        };
        let mut last = None::<Digest>;
        loop {
            self.session.check()?;
            let page = catalog.manifests(registry, &self.name, last.as_ref(), PAGE).await?;
            let Some(end) = page.last() else { return Ok(()) };
            last = Some(end.digest.clone());
            let others = page.into_iter().filter(|it| it.media_type != media_type::OCI_MANIFEST);
            for manifest in others {
                if needs.unneeded(&manifest).await?.is_some() {
                    let ManifestInfo { digest, .. } = manifest;
                    let item = Item { repository: self.name.clone(), tag: None, digest };
                    *count += u64::from(self.annotate_item(item).await?);
                }
            }
        }
    }

    /// Says whether there was anything to do.
    async fn annotate_item(&self, item: Item) -> Result<bool, HousekeepingError> {
        self.session.check()?;
        let Registry { catalog, name: registry, .. } = self.session.registry;
        let Annotate { artifact_type, dry_run, .. } = self.annotate;
        if artifact_type == LIFECYCLE {
            let kind = Some(LIFECYCLE);
            let (found, _) =
                catalog.referrers(registry, &self.name, &item.digest, kind, None, 1).await?;
            if !found.is_empty() {
                return Ok(false);
            }
        }
        let verb = if *dry_run { Verb::WouldAnnotate } else { Verb::Annotated };
        if !dry_run {
            let reference = ManifestRef::Digest(item.digest.clone());
            let subject = catalog.stored_manifest(registry, &self.name, &reference).await?;
            let Some(subject) = subject else {
                // Deleted since it was listed.
                return Ok(false);
            };
            let subject = Descriptor::new(subject.media_type, subject.digest, subject.size);
            self.push(subject).await?;
        }
        self.session.records.take(Record::Item { verb, item }).await;
        Ok(true)
    }

    /// Pushes what has no more to say than its annotations.
    async fn push(&self, subject: Descriptor) -> Result<(), HousekeepingError> {
        let Registry { catalog, name: registry, cause, .. } = self.session.registry;
        let new = NewArtifact {
            artifact_type: self.annotate.artifact_type.clone(),
            layers: Vec::new(),
            subject: Some(subject),
            annotations: self.annotate.annotations.clone(),
        };
        catalog.put_artifact(registry, &self.name, new, &[], cause).await?;
        Ok(())
    }
}
