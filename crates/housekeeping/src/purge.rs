//! Deleting tags by name and age, and manifests that nobody needs.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use oci::{RepositoryName, Tag};
use store::{Expected, Millis, Order, StoreError, TagInfo};
use tokio_util::sync::CancellationToken;

use crate::duration::{AGE_MAX, parse_age};
use crate::error::{HousekeepingError, OptionsError};
use crate::filter::{Filter, Filters};
use crate::record::{Item, Record, Records, Verb};
use crate::registry::{PAGE, Registry, Repositories, Session, Use, matching};
use crate::untagged::{Needs, Untagged};

const CONCURRENCY_MAX: i64 = 32;
const CONCURRENCY_DEFAULT: usize = 8;
const PAGE_SIZE_DEFAULT: usize = 100;
const PAGE_SIZE_MAX: usize = 1000;

/// A purge as it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PurgeOptions {
    pub filters: Vec<String>,
    pub ago: Option<String>,
    pub keep: u64,
    pub untagged: bool,
    pub untagged_only: bool,
    pub dry_run: bool,
    /// Delete tags and manifests too that are locked themselves.
    pub include_locked: bool,
    pub concurrency: Option<i64>,
    pub filter_timeout_seconds: Option<i64>,
    pub repository_page_size: Option<i64>,
}

/// A purge that can be carried out.
#[derive(Debug, Clone)]
pub struct Purge {
    filters: Filters,
    /// `None`: no limit.
    age: Option<Duration>,
    keep: u64,
    tags: bool,
    untagged: bool,
    dry_run: bool,
    include_locked: bool,
    concurrency: usize,
    page_size: usize,
    /// What the options say and is not done that way.
    notices: Vec<String>,
}

impl Purge {
    /// Whether it deletes what is locked, for which somebody must be allowed to unlock it.
    pub fn lifts_locks(&self) -> bool {
        self.include_locked && !self.dry_run
    }

    /// Reads options; nothing was asked of the registry if they are refused.
    pub fn new(options: &PurgeOptions) -> Result<Self, OptionsError> {
        if options.untagged && options.untagged_only {
            return Err(OptionsError::BothUntagged);
        }
        if !options.untagged_only && options.filters.is_empty() {
            return Err(OptionsError::NoFilter);
        }
        let mut notices = Vec::new();
        let age = match &options.ago {
            None if options.untagged_only => None,
            None => return Err(OptionsError::NoAge),
            Some(text) => {
                let age = parse_age(text)?;
                if age.is_cut {
                    let days = AGE_MAX.as_secs() / 86400;
                    notices
                        .push(format!("`--ago {text}` is more than {days} days, which it is now"));
                }
                Some(age.duration)
            }
        };
        let concurrency = match options.concurrency {
            None => CONCURRENCY_DEFAULT,
            Some(given) if given <= 0 => {
                notices
                    .push(format!("`--concurrency` is {CONCURRENCY_DEFAULT} instead of {given}"));
                CONCURRENCY_DEFAULT
            }
            Some(given) if given > CONCURRENCY_MAX => {
                notices.push(format!("`--concurrency` is {CONCURRENCY_MAX} instead of {given}"));
                CONCURRENCY_MAX as usize
            }
            Some(given) => given as usize,
        };
        let page_size = options.repository_page_size.and_then(|size| usize::try_from(size).ok());
        let page_size = page_size.filter(|size| *size > 0).unwrap_or(PAGE_SIZE_DEFAULT);
        Ok(Self {
            filters: Filters::parse(&options.filters, match_time(options.filter_timeout_seconds))?,
            age,
            keep: options.keep,
            tags: !options.untagged_only,
            untagged: options.untagged || options.untagged_only,
            dry_run: options.dry_run,
            include_locked: options.include_locked,
            concurrency,
            page_size: page_size.min(PAGE_SIZE_MAX),
            notices,
        })
    }
}

/// As in `acr`, no time at all means the usual one.
pub(crate) fn match_time(seconds: Option<i64>) -> Option<Duration> {
    let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok());
    seconds.map(Duration::from_secs)
}

/// How much a purge has deleted, or would delete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Purged {
    pub dry_run: bool,
    pub tags: u64,
    pub manifests: u64,
}

impl Purged {
    /// The last lines of `acr purge`.
    pub fn lines(&self) -> [String; 2] {
        let what = if self.dry_run { "to be deleted" } else { "deleted" };
        let of = |kind: &str, count: u64| match self.dry_run {
            true => format!("Number of {kind} {what}: {count}"),
            false => format!("Number of {what} {kind}: {count}"),
        };
        [of("tags", self.tags), of("manifests", self.manifests)]
    }
}

/// Deletes, or tells what it would delete. What was deleted before an error or a cancel is gone.
pub async fn purge(
    registry: &Registry,
    purge: &Purge,
    records: &dyn Records,
    cancel: &CancellationToken,
) -> Result<Purged, HousekeepingError> {
    if purge.lifts_locks() && !registry.may_unlock {
        return Err(HousekeepingError::MayNotUnlock);
    }
    let session = Session { registry, records, cancel };
    for notice in &purge.notices {
        session.warning(notice).await;
    }
    let mut repositories = Repositories::new(&purge.filters, purge.page_size);
    let mut purged = Purged { dry_run: purge.dry_run, ..Purged::default() };
    let age = purge.age.map(|age| Millis::try_from(age.as_millis()).unwrap_or(Millis::MAX));
    let cut_off = age.map(|age| registry.now.saturating_sub(age));
    while let Some((name, filters)) = repositories.next(&session).await? {
        let refused = (registry.refused)(&name);
        if let Some(reason) = refused.or_else(|| registry.may.refused(&name, Use::Delete)) {
            let reason = reason.lines().next().unwrap_or_default();
            session.line(format!("{reason}: left out")).await;
            continue;
        }
        // Whatever is in it is locked, and stays locked: only the repository itself can be unlocked.
        let found = registry.catalog.repository(&registry.name, &name).await?;
        if found.is_some_and(|found| !found.attributes.write_enabled) {
            session.line(format!("Repository `{name}` is locked: left out")).await;
            continue;
        }
        let repository = Repository { session: &session, purge, name, filters, cut_off };
        let rule = match purge.tags {
            true => Some(repository.purge_tags(&mut purged.tags).await?),
            false => None,
        };
        if purge.untagged {
            repository.purge_manifests(rule, &mut purged.manifests).await?;
        }
    }
    Ok(purged)
}

/// One repository of a purge.
struct Repository<'a> {
    session: &'a Session<'a>,
    purge: &'a Purge,
    name: RepositoryName,
    filters: Arc<[Filter]>,
    cut_off: Option<Millis>,
}

/// Which tags go.
pub(crate) struct TagRule {
    filters: Arc<[Filter]>,
    cut_off: Millis,
    /// Locked ones too.
    include_locked: bool,
    /// The oldest of those that `--keep` keeps.
    kept: Option<(Millis, Tag)>,
}

impl TagRule {
    /// Which of these tags go. What is kept is known by its place, newest first.
    pub(crate) async fn goes(&self, tags: &[TagInfo]) -> Result<Vec<bool>, HousekeepingError> {
        let names = tags.iter().map(|tag| tag.tag.clone()).collect();
        let matches = matching(&self.filters, names).await?;
        let is_kept = |tag: &TagInfo| {
            self.kept.as_ref().is_some_and(|(at, name)| {
                tag.updated_at > *at || tag.updated_at == *at && tag.tag.as_str() <= name.as_str()
            })
        };
        let goes = |(tag, matches): (&TagInfo, bool)| {
            let is_locked = !self.include_locked && !tag.attributes.may_be_deleted();
            matches && tag.updated_at < self.cut_off && !is_locked && !is_kept(tag)
        };
        Ok(tags.iter().zip(matches).map(goes).collect())
    }
}

impl Repository<'_> {
    async fn purge_tags(&self, count: &mut u64) -> Result<TagRule, HousekeepingError> {
        let Registry { catalog, name: registry, .. } = self.session.registry;
        let cut_off = self.cut_off.unwrap_or(Millis::MAX);
        let include_locked = self.purge.include_locked;
        let filters = Arc::clone(&self.filters);
        let mut rule = TagRule { filters, cut_off, include_locked, kept: None };
        let mut keep = self.purge.keep;
        let mut last = None::<(Millis, Tag)>;
        loop {
            self.session.check()?;
            let after = last.as_ref().map(|(at, tag)| (*at, tag));
            let page =
                catalog.tags_by_age(registry, &self.name, Order::NewestFirst, after, PAGE).await?;
            let Some(end) = page.last() else { return Ok(rule) };
            last = Some((end.updated_at, end.tag.clone()));
            let goes = rule.goes(&page).await?;
            let mut eligible = page.into_iter().zip(goes).filter(|(_, goes)| *goes);
            while keep > 0 {
                let Some((kept, _)) = eligible.next() else { break };
                rule.kept = Some((kept.updated_at, kept.tag));
                keep -= 1;
            }
            let deletions = eligible.map(|(tag, _)| self.delete_tag(tag, cut_off));
            self.delete_all(deletions.collect(), count).await?;
        }
    }

    /// Carries deletions out, some at once. After an error or a cancel none is begun any more, and
    /// what was begun is told.
    async fn delete_all<F>(
        &self,
        deletions: Vec<F>,
        count: &mut u64,
    ) -> Result<(), HousekeepingError>
    where
        F: Future<Output = Result<Record, HousekeepingError>>,
    {
        let (mut deletions, mut under_way) = (deletions.into_iter(), FuturesOrdered::new());
        let mut result = Ok(());
        loop {
            let goes_on = result.is_ok() && !self.session.cancel.is_cancelled();
            while goes_on && under_way.len() < self.purge.concurrency {
                let Some(next) = deletions.next() else { break };
                under_way.push_back(next);
            }
            match under_way.next().await {
                Some(Ok(record)) => {
                    *count += u64::from(matches!(record, Record::Item { .. }));
                    self.session.records.take(record).await;
                }
                Some(Err(error)) => result = result.and(Err(error)),
                None => break,
            }
        }
        result.and(self.session.check())
    }

    /// Deletes a tag that still is where it was seen, and no younger.
    async fn delete_tag(
        &self,
        tag: TagInfo,
        updated_before: Millis,
    ) -> Result<Record, HousekeepingError> {
        let Registry { catalog, name: registry, cause, .. } = self.session.registry;
        let TagInfo { tag, digest, .. } = tag;
        let item = |digest| Item { repository: self.name.clone(), tag: Some(tag.clone()), digest };
        if self.purge.dry_run {
            return Ok(Record::Item { verb: Verb::WouldDelete, item: item(digest) });
        }
        let expected = Expected::AtBefore { digest: digest.clone(), updated_before };
        let removed = match self.purge.include_locked {
            true => catalog.remove_locked_tag(registry, &self.name, &tag, &expected, cause).await,
            false => catalog.move_tag(registry, &self.name, &tag, &expected, None, cause).await,
        };
        match removed {
            Ok(())
            | Err(StoreError::TagMoved { found: None, .. } | StoreError::NotFound { .. }) => {
                Ok(Record::Item { verb: Verb::Deleted, item: item(digest) })
            }
            Err(StoreError::TagMoved { .. }) => {
                let name = &self.name;
                Ok(Record::Warning(format!("`{name}:{tag}` has moved meanwhile, and stays")))
            }
            Err(StoreError::Locked(locked)) => Ok(Record::Warning(format!("{locked}, and stays"))),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes what has no tag now, or in a dry run what would have none.
    async fn purge_manifests(
        &self,
        rule: Option<TagRule>,
        count: &mut u64,
    ) -> Result<(), HousekeepingError> {
        let (session, repository) = (self.session, &self.name);
        let needs = Needs {
            session,
            repository,
            // What comes while this goes on always stays.
            updated_until: self.cut_off.unwrap_or(session.registry.now),
            going: rule.filter(|_| self.purge.dry_run),
            even_locked: self.purge.include_locked,
        };
        let mut untagged = Untagged::new(needs, self.purge.keep);
        while let Some(found) = untagged.next_page().await? {
            let deleting =
                found.into_iter().map(|digest| untagged.delete(digest, self.purge.dry_run));
            self.delete_all(deleting.collect(), count).await?;
        }
        Ok(())
    }
}
