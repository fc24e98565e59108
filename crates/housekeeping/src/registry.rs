//! The registry that a command works on, read in pages.

use std::sync::Arc;

use oci::{RegistryName, RepositoryName, Tag};
use store::{Catalog, Cause, Millis};
use tokio_util::sync::CancellationToken;

use crate::error::HousekeepingError;
use crate::filter::{Filter, Filters, MatchError};
use crate::record::{Record, Records};

/// Tags and manifests read at once.
pub(crate) const PAGE: usize = 100;

/// A registry, and in whose name a command works on it.
#[derive(Clone)]
pub struct Registry {
    pub catalog: Catalog,
    pub name: RegistryName,
    /// Its host, as names of images begin.
    pub login_server: String,
    pub cause: Cause,
    /// Whether locks may be lifted in that name.
    pub may_unlock: bool,
    /// Asked for repositories that are to get something.
    pub refused: Arc<RefusePush>,
    /// What may be done in which repository. One that may not be listed is as if it were not there.
    pub may: Arc<dyn MayUse>,
    /// The time of the command.
    pub now: Millis,
}

/// Says why a repository takes no pushes, if it takes none.
pub type RefusePush = dyn Fn(&RepositoryName) -> Option<String> + Send + Sync;

/// What may be done in the repositories of a registry.
pub trait MayUse: Send + Sync {
    /// Says why not, if it may not be done.
    fn refused(&self, repository: &RepositoryName, wanted: Use) -> Option<String>;
}

/// What is to be done in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// See what it has.
    List,
    Pull,
    Push,
    /// Remove tags and manifests.
    Delete,
}

/// All of it.
pub struct MayAll;

impl MayUse for MayAll {
    fn refused(&self, _: &RepositoryName, _: Use) -> Option<String> {
        None
    }
}

/// One command under way.
pub(crate) struct Session<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) records: &'a dyn Records,
    pub(crate) cancel: &'a CancellationToken,
}

impl Session<'_> {
    pub(crate) fn check(&self) -> Result<(), HousekeepingError> {
        match self.cancel.is_cancelled() {
            true => Err(HousekeepingError::Canceled),
            false => Ok(()),
        }
    }

    pub(crate) async fn line(&self, text: impl Into<String>) {
        self.records.take(Record::Line(text.into())).await;
    }

    pub(crate) async fn warning(&self, text: impl Into<String>) {
        self.records.take(Record::Warning(text.into())).await;
    }
}

/// The repositories that filters mean, in order of their names.
pub(crate) struct Repositories<'a> {
    filters: &'a Filters,
    /// Names that were given; `None`: those that are listed.
    given: Option<std::vec::IntoIter<String>>,
    page: std::vec::IntoIter<RepositoryName>,
    page_size: usize,
    last: Option<RepositoryName>,
}

impl<'a> Repositories<'a> {
    /// No filter at all means all repositories.
    pub(crate) fn new(filters: &'a Filters, page_size: usize) -> Self {
        let given = if filters.is_empty() { None } else { filters.literal_repositories() };
        let given = given.map(Vec::into_iter);
        Self { filters, given, page: Vec::new().into_iter(), page_size, last: None }
    }

    /// The next one, with the filters that are for it. One that is not there is told and left out.
    pub(crate) async fn next(
        &mut self,
        session: &Session<'_>,
    ) -> Result<Option<(RepositoryName, Arc<[Filter]>)>, HousekeepingError> {
        loop {
            session.check()?;
            let Some(name) = self.next_name(session).await? else { return Ok(None) };
            if self.filters.is_empty() {
                return Ok(Some((name, Arc::default())));
            }
            let (filters, asked) = (self.filters.clone(), name.clone());
            let filters = blocking(move || filters.of_repository(&asked)).await?;
            if !filters.is_empty() {
                return Ok(Some((name, filters.into())));
            }
        }
    }

    async fn next_name(
        &mut self,
        session: &Session<'_>,
    ) -> Result<Option<RepositoryName>, HousekeepingError> {
        let Registry { catalog, name: registry, may, .. } = session.registry;
        let hidden = |name: &RepositoryName| may.refused(name, Use::List).is_some();
        let Some(given) = &mut self.given else {
            loop {
                if let Some(name) = self.page.find(|name| !hidden(name)) {
                    return Ok(Some(name));
                }
                session.check()?;
                let last = self.last.as_ref().map(RepositoryName::as_str);
                let page = catalog.repositories(registry, last, self.page_size).await?;
                let Some(last) = page.last().cloned() else { return Ok(None) };
                self.last = Some(last);
                self.page = page.into_iter();
            }
        };
        for text in given {
            // What cannot be a name is the name of nothing.
            if let Ok(name) = text.parse::<RepositoryName>()
                && !hidden(&name)
                && catalog.repository_exists(registry, &name).await?
            {
                return Ok(Some(name));
            }
            session.line(format!("Repository `{text}` not found")).await;
        }
        Ok(None)
    }
}

/// Which of the tags one of the filters matches.
pub(crate) async fn matching(
    filters: &Arc<[Filter]>,
    tags: Vec<Tag>,
) -> Result<Vec<bool>, HousekeepingError> {
    let filters = Arc::clone(filters);
    blocking(move || {
        let mut found = Vec::with_capacity(tags.len());
        for tag in &tags {
            let mut matches = false;
            for filter in filters.iter() {
                matches = matches || filter.matches_tag(tag.as_str())?;
            }
            found.push(matches);
        }
        Ok(found)
    })
    .await
}

/// A regex may keep a thread for a while.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MatchError> + Send + 'static,
) -> Result<T, HousekeepingError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime ends.
        Err(_) => Err(HousekeepingError::Canceled),
    }
}
