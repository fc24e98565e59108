//! The commands of `acr`, as its command line has them.

mod command_line;

use oci::{Digest, RepositoryName, Tag};
use store::{Cause, Expected, ManifestRef};
use tokio_util::sync::CancellationToken;

use crate::annotate::{Annotate, annotate};
use crate::error::HousekeepingError;
use crate::purge::{Purge, purge};
use crate::record::Records;
use crate::registry::{Registry, Session, Use};

pub use command_line::{CommandLineError, OwnRegistry, Previews, parse};

/// Tags or manifests that are listed at once.
const PAGE: usize = 1000;

/// A command line that can be carried out.
#[derive(Debug, Clone)]
pub struct Command {
    action: Action,
    /// What it asks for and does not get.
    notices: Vec<String>,
}

#[derive(Debug, Clone)]
enum Action {
    Purge(Box<Purge>),
    Annotate(Box<Annotate>),
    TagList(String),
    TagDelete {
        repository: String,
        tags: Vec<String>,
    },
    ManifestList(String),
    ManifestDelete {
        repository: String,
        digests: Vec<String>,
    },
    /// The text of a help page, or of `acr version`.
    Text(String),
}

/// Carries a command out.
pub async fn run(
    registry: &Registry,
    command: &Command,
    records: &dyn Records,
    cancel: &CancellationToken,
) -> Result<(), HousekeepingError> {
    let session = Session { registry, records, cancel };
    for notice in &command.notices {
        session.warning(notice).await;
    }
    match &command.action {
        Action::Text(text) => {
            for line in text.lines() {
                session.line(line).await;
            }
        }
        Action::Purge(options) => {
            let purged = purge(registry, options, records, cancel).await?;
            for line in purged.lines() {
                session.line(line).await;
            }
        }
        Action::Annotate(options) => {
            let annotated = annotate(registry, options, records, cancel).await?;
            for line in annotated.lines() {
                session.line(line).await;
            }
        }
        Action::TagList(name) => list_tags(&session, name).await?,
        Action::TagDelete { repository, tags } => delete_tags(&session, repository, tags).await?,
        Action::ManifestList(name) => list_manifests(&session, name).await?,
        Action::ManifestDelete { repository, digests } => {
            delete_manifests(&session, repository, digests).await?;
        }
    }
    Ok(())
}

async fn existing(session: &Session<'_>, name: &str) -> Result<RepositoryName, HousekeepingError> {
    let missing = || HousekeepingError::NoRepository(name.to_owned());
    let parsed = name.parse::<RepositoryName>().map_err(|_| missing())?;
    let Registry { catalog, name: registry, may, .. } = session.registry;
    // Who deletes is told no more than who lists.
    let is_seen =
        [Use::List, Use::Delete].iter().any(|wanted| may.refused(&parsed, *wanted).is_none());
    match is_seen && catalog.repository_exists(registry, &parsed).await? {
        true => Ok(parsed),
        false => Err(missing()),
    }
}

/// One whose images may be deleted.
async fn deletable(session: &Session<'_>, name: &str) -> Result<RepositoryName, HousekeepingError> {
    let name = existing(session, name).await?;
    match session.registry.may.refused(&name, Use::Delete) {
        None => Ok(name),
        Some(reason) => Err(HousekeepingError::Refused(reason)),
    }
}

async fn list_tags(session: &Session<'_>, name: &str) -> Result<(), HousekeepingError> {
    let name = existing(session, name).await?;
    let Registry { catalog, name: registry, login_server, .. } = session.registry;
    session.line(format!("Listing tags for the \"{name}\" repository:")).await;
    let mut last = None::<Tag>;
    loop {
        session.check()?;
        let after = last.as_ref().map(Tag::as_str);
        let page = catalog.tags(registry, &name, after, PAGE).await?;
        let Some(end) = page.last() else { return Ok(()) };
        last = Some(end.tag.clone());
        for found in page {
            session.line(format!("{login_server}/{name}:{}", found.tag)).await;
        }
    }
}

async fn list_manifests(session: &Session<'_>, name: &str) -> Result<(), HousekeepingError> {
    let name = existing(session, name).await?;
    let Registry { catalog, name: registry, login_server, .. } = session.registry;
    session.line(format!("Listing manifests for the \"{name}\" repository:")).await;
    let mut last = None::<Digest>;
    loop {
        session.check()?;
        let page = catalog.manifests(registry, &name, last.as_ref(), PAGE).await?;
        let Some(end) = page.last() else { return Ok(()) };
        last = Some(end.digest.clone());
        for found in page {
            session.line(format!("{login_server}/{name}@{}", found.digest)).await;
        }
    }
}

/// One after the other; the first one that cannot be deleted ends it.
async fn delete_tags(
    session: &Session<'_>,
    name: &str,
    tags: &[String],
) -> Result<(), HousekeepingError> {
    if tags.is_empty() {
        return Ok(());
    }
    let name = deletable(session, name).await?;
    let Registry { catalog, name: registry, login_server, .. } = session.registry;
    let cause = &by_hand(&session.registry.cause);
    for text in tags {
        session.check()?;
        let missing = || HousekeepingError::NotFound {
            repository: name.clone(),
            what: format!("tag `{text}`"),
        };
        let tag = text.parse::<Tag>().map_err(|_| missing())?;
        let moved = catalog.move_tag(registry, &name, &tag, &Expected::Any, None, cause).await;
        moved.map_err(|error| match error {
            store::StoreError::NotFound { .. } => missing(),
            error => error.into(),
        })?;
        session.line(format!("{login_server}/{name}:{tag}")).await;
    }
    Ok(())
}

/// As [`delete_tags`], manifests with all their tags.
async fn delete_manifests(
    session: &Session<'_>,
    name: &str,
    digests: &[String],
) -> Result<(), HousekeepingError> {
    if digests.is_empty() {
        return Ok(());
    }
    let name = deletable(session, name).await?;
    let Registry { catalog, name: registry, login_server, .. } = session.registry;
    let cause = &by_hand(&session.registry.cause);
    for text in digests {
        session.check()?;
        let missing = || HousekeepingError::NotFound {
            repository: name.clone(),
            what: format!("manifest `{text}`"),
        };
        let digest = text.parse::<Digest>().map_err(|_| missing())?;
        let reference = ManifestRef::Digest(digest);
        let found = catalog.digest_of(registry, &name, &reference).await?.ok_or_else(missing)?;
        match catalog.delete_manifest(registry, &name, &found, cause).await {
            Err(store::StoreError::NotFound { .. }) => return Err(missing()),
            other => other?,
        };
        session.line(format!("{login_server}/{name}@{found}")).await;
    }
    Ok(())
}

/// What is named is deleted because somebody says so, not by a rule: what loses a tag is young then.
fn by_hand(cause: &Cause) -> Cause {
    match cause {
        Cause::Purge { run: Some(run), .. } => Cause::Delete { principal: format!("run {run}") },
        Cause::Purge { run: None, principal: Some(principal) } => {
            Cause::Delete { principal: principal.clone() }
        }
        cause => cause.clone(),
    }
}
