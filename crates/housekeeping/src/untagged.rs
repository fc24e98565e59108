//! Manifests that nobody needs: no tag, no subject, old enough, not locked, and the same for every
//! index that lists them.

use oci::{Digest, RepositoryName};
use store::{ManifestInfo, Millis, Order, StoreError, Unneeded};

use crate::error::HousekeepingError;
use crate::purge::TagRule;
use crate::record::{Item, Record, Verb};
use crate::registry::{PAGE, Registry, Session};

/// What is in more indexes than this is needed.
const INDEXES_MAX: usize = 1000;

/// Says who needs a manifest of a repository.
pub(crate) struct Needs<'a> {
    pub(crate) session: &'a Session<'a>,
    pub(crate) repository: &'a RepositoryName,
    pub(crate) updated_until: Millis,
    /// Tags that count as gone.
    pub(crate) going: Option<TagRule>,
    /// Whether what is locked counts too.
    pub(crate) even_locked: bool,
}

impl Needs<'_> {
    /// The indexes that list a manifest, at any depth; `None` if it or one of them is needed.
    pub(crate) async fn unneeded(
        &self,
        manifest: &ManifestInfo,
    ) -> Result<Option<Vec<ManifestInfo>>, HousekeepingError> {
        let is_locked = !self.even_locked && !manifest.attributes.may_be_deleted();
        if is_locked || self.is_needed(manifest).await? {
            return Ok(None);
        }
        let Registry { catalog, name: registry, .. } = self.session.registry;
        let above =
            catalog.indexes_above(registry, self.repository, &manifest.digest, INDEXES_MAX).await?;
        if above.len() == INDEXES_MAX {
            return Ok(None);
        }
        for index in &above {
            if !index.attributes.gives_up_members(self.even_locked) || self.is_needed(index).await?
            {
                return Ok(None);
            }
        }
        Ok(Some(above))
    }

    /// Whether it is needed for itself.
    async fn is_needed(&self, manifest: &ManifestInfo) -> Result<bool, HousekeepingError> {
        if manifest.subject.is_some()
            || manifest.media_type.is_empty()
            || manifest.updated_at > self.updated_until
        {
            return Ok(true);
        }
        let Some(going) = &self.going else { return Ok(manifest.is_tagged) };
        if !manifest.is_tagged {
            return Ok(false);
        }
        let Registry { catalog, name: registry, .. } = self.session.registry;
        let tags = catalog.tags_of(registry, self.repository, &manifest.digest).await?;
        Ok(!going.goes(&tags).await?.into_iter().all(|goes| goes))
    }
}

/// Goes through the manifests of a repository, newest first.
pub(crate) struct Untagged<'a> {
    needs: Needs<'a>,
    /// How many are still to be kept.
    keep: u64,
    /// The oldest one that is kept.
    kept: Option<(Millis, Digest)>,
    last: Option<(Millis, Digest)>,
}

impl<'a> Untagged<'a> {
    pub(crate) fn new(needs: Needs<'a>, keep: u64) -> Self {
        Self { needs, keep, kept: None, last: None }
    }

    /// The next ones that go; what comes before the end may be empty.
    pub(crate) async fn next_page(&mut self) -> Result<Option<Vec<Digest>>, HousekeepingError> {
        self.needs.session.check()?;
        let Registry { catalog, name: registry, .. } = self.needs.session.registry;
        let after = self.last.as_ref().map(|(at, digest)| (*at, digest));
        let page = catalog
            .manifests_by_age(registry, self.needs.repository, Order::NewestFirst, after, PAGE)
            .await?;
        let Some(end) = page.last() else { return Ok(None) };
        self.last = Some((end.updated_at, end.digest.clone()));
        let mut found = Vec::new();
        for manifest in page {
            let Some(above) = self.needs.unneeded(&manifest).await? else { continue };
            if self.keep > 0 {
                self.keep -= 1;
                self.kept = Some((manifest.updated_at, manifest.digest));
            } else if !above.iter().any(|index| self.is_kept(index)) {
                // A member of an index that is kept stays with it.
                found.push(manifest.digest);
            }
        }
        Ok(Some(found))
    }

    /// Of those that nobody needs, the newest ones are kept.
    fn is_kept(&self, manifest: &ManifestInfo) -> bool {
        self.kept.as_ref().is_some_and(|(at, digest)| {
            manifest.updated_at > *at || manifest.updated_at == *at && manifest.digest <= *digest
        })
    }

    pub(crate) async fn delete(
        &self,
        digest: Digest,
        dry_run: bool,
    ) -> Result<Record, HousekeepingError> {
        let Needs { session, repository, updated_until, even_locked, .. } = self.needs;
        let Registry { catalog, name: registry, cause, .. } = session.registry;
        let item = |digest| Item { repository: repository.clone(), tag: None, digest };
        if dry_run {
            return Ok(Record::Item { verb: Verb::WouldDelete, item: item(digest) });
        }
        let unneeded = Unneeded { updated_until, even_locked };
        let deleted =
            match catalog.delete_unneeded(registry, repository, &digest, unneeded, cause).await {
                Err(StoreError::Locked(locked)) => {
                    return Ok(Record::Warning(format!("{locked}, and stays")));
                }
                deleted => deleted?,
            };
        if !deleted && catalog.is_manifest(registry, repository, &digest).await? {
            let text = format!("`{repository}@{digest}` is needed meanwhile, and stays");
            return Ok(Record::Warning(text));
        }
        Ok(Record::Item { verb: Verb::Deleted, item: item(digest) })
    }
}
