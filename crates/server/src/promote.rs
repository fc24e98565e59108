//! Moves tags that are promoted, here and in other registries.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use control::{Promotion, PromotionId};
use engine::{ExportError, ImportError, ImportSource, ImportTarget};
use futures_util::FutureExt as _;
use oci::{Digest, Reference, RegistryName, RepositoryName};
use remote::Remote;
use store::{Cause, ManifestRef, StoreError};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::ApiError;
use crate::state::Shared;
use crate::triggers::{PERIOD, RETRY};
use crate::watches;

/// Images that are sent at once.
const SENDS_MAX: usize = 8;
/// Manifests that an image may have to do with.
const RELATED_MAX: usize = 1_000;

/// Which promotion.
type Key = (RegistryName, PromotionId);

/// Goes on with promotions, until `shutdown`. What is sent by then is sent again by the next start.
pub(crate) async fn carry_out(state: Shared, shutdown: CancellationToken) {
    let (mut ended, mut resumed) = (state.runs.ends(), state.triggers.resumed());
    let (mut sending, mut under_way) = (JoinSet::new(), BTreeSet::new());
    while !shutdown.is_cancelled() {
        ended.mark_unchanged();
        resumed.mark_unchanged();
        let wait = match look(&state, &mut sending, &mut under_way).boxed().await {
            Ok(wait) => wait,
            Err(error) => {
                tracing::error!(%error, "promotions could not go on");
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => (),
            Some(sent) = sending.join_next() => match sent {
                Ok(key) => drop(under_way.remove(&key)),
                Err(error) => tracing::error!(%error, "an image is not sent"),
            },
            _ = ended.changed() => (),
            _ = resumed.changed() => (),
            () = shutdown.cancelled() => return,
        }
    }
}

/// Moves the tags of this server that are due, begins to send what goes elsewhere, and says when to look again.
async fn look(
    state: &Shared,
    sending: &mut JoinSet<Key>,
    under_way: &mut BTreeSet<Key>,
) -> control::Result<Duration> {
    let mut wait = PERIOD;
    for promotion in state.triggers.due_promotions().await? {
        let key = (promotion.registry.clone(), promotion.id);
        if promotion.request.to.host.is_none() {
            if let Err(error) = move_tag(state, &promotion).await {
                tracing::error!(%error, promotion = %promotion.id, "a tag is not promoted yet");
                wait = RETRY;
            }
        } else if under_way.len() < SENDS_MAX && under_way.insert(key.clone()) {
            let state = Arc::clone(state);
            let sent = async move {
                if let Err(error) = move_tag(&state, &promotion).await {
                    tracing::error!(%error, promotion = %promotion.id, "an image is not sent yet");
                    tokio::time::sleep(RETRY).await;
                }
                key
            };
            sending.spawn(sent.boxed());
        }
    }
    Ok(wait)
}

/// An image, what it lists, what lists one of these, and so on: whoever has made one of them has made it.
pub(crate) async fn related(
    state: &Shared,
    registry: &RegistryName,
    repository: &RepositoryName,
    digest: &Digest,
) -> Result<Vec<Digest>, ApiError> {
    let mut all = vec![digest.clone()];
    let mut at = 0;
    while let Some(one) = all.get(at).cloned() {
        at += 1;
        let mut found = state.catalog.members(registry, repository, &one).await?;
        found.extend(state.catalog.indexes_with(registry, &one, RELATED_MAX + 1).await?);
        for digest in found {
            if !all.contains(&digest) {
                all.push(digest);
            }
        }
        if all.len() > RELATED_MAX {
            let message = format!("the image is in indexes with more than {RELATED_MAX} manifests");
            return Err(ApiError::conflict(message).at("image"));
        }
    }
    Ok(all)
}

/// Moves a tag to its image, which comes to the repository of the tag first.
async fn move_tag(state: &Shared, promotion: &Promotion) -> control::Result<()> {
    let request = &promotion.request;
    if request.to.host.is_some() {
        let sent = send(state, promotion).await?;
        return state.triggers.promoted(promotion, sent).await;
    }
    if request.repository != request.to.repository
        && let Err(why) = bring(state, promotion).await?
    {
        return state.triggers.promoted(promotion, Err(why)).await;
    }
    state.triggers.move_promoted(promotion).await
}

/// Brings the image of a promotion to the repository of its tag, with what belongs to it; or in words for people why
/// it cannot be.
async fn bring(state: &Shared, promotion: &Promotion) -> control::Result<Result<(), String>> {
    let request = &promotion.request;
    let Ok(to) = request.to.repository.parse() else { return Ok(Err(no_name())) };
    let target = ImportTarget {
        registry: &promotion.registry,
        tags: &[],
        untagged: &[to],
        force: false,
        platform: None,
        cause: &Cause::Push { principal: promotion.created_by.clone() },
    };
    let Ok(from) = request.repository.parse() else { return Ok(Err(no_name())) };
    let wanted = ManifestRef::Digest(request.digest.clone());
    let registry = &promotion.registry;
    let source = ImportSource::Own { registry, repository: &from, wanted: &wanted };
    match engine::import(&state.catalog, &source, &target, &|_| ()).await {
        Ok(_) => Ok(Ok(())),
        Err(error) => unreadable(error),
    }
}

/// Sends the image of a promotion to another registry; or in words for people why it cannot be.
async fn send(state: &Shared, promotion: &Promotion) -> control::Result<Result<(), String>> {
    let (registry, request) = (&promotion.registry, &promotion.request);
    let Ok(to) = request.to.to_string().parse::<Reference>() else { return Ok(Err(no_name())) };
    let remote = match remote_of(state, registry, &request.digest, &to).await? {
        Ok(remote) => remote,
        Err(why) => return Ok(Err(why)),
    };
    let Ok(from) = request.repository.parse() else { return Ok(Err(no_name())) };
    let wanted = ManifestRef::Digest(request.digest.clone());
    let source = ImportSource::Own { registry, repository: &from, wanted: &wanted };
    let before = promotion.digest_before.as_ref();
    match engine::export(&state.catalog, &source, &remote, &to, before).await {
        Ok(_) => Ok(Ok(())),
        Err(ExportError::Unreadable(error)) => unreadable(error),
        Err(error) => Ok(Err(told(&error, hint(&error)))),
    }
}

fn no_name() -> String {
    "that is no name of an image".to_owned()
}

/// What is the matter with an image of this server: for people, unless it is the server's own matter.
fn unreadable(error: ImportError) -> control::Result<Result<(), String>> {
    match error {
        ImportError::Store(error @ (StoreError::Database { .. } | StoreError::NoSpace(_))) => {
            Err(error.into())
        }
        ImportError::Store(error) => Ok(Err(told(&error, error.hint()))),
        error => Ok(Err(error.to_string())),
    }
}

fn told(error: &dyn std::error::Error, hint: Option<String>) -> String {
    match hint {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

fn hint(error: &ExportError) -> Option<String> {
    match error {
        ExportError::Remote(error) => error.hint(),
        _ => None,
    }
}

/// What sends images to another registry: with the login of a task that has made the image, else as the settings
/// allow it; or in words for people why nothing does.
async fn remote_of(
    state: &Shared,
    registry: &RegistryName,
    digest: &Digest,
    to: &Reference,
) -> control::Result<Result<Remote, String>> {
    let host = to.host.to_ascii_lowercase();
    let mut why = None;
    for task in state.triggers.makers(registry, digest).await? {
        let Some(login) = task.definition.logins.others.get(&host) else { continue };
        match watches::credentials(state, registry, &task.name, login).boxed().await {
            Ok(found) => {
                let remote = state.remote.with_own_logins();
                remote.set_logins(BTreeMap::from([(host, found)]));
                return Ok(Ok(remote));
            }
            Err(reason) => why = Some(reason),
        }
    }
    if state.push_hosts.contains(&host) {
        return Ok(Ok(state.remote.clone()));
    }
    Ok(Err(why.unwrap_or_else(|| {
        format!(
            "nobody has allowed to push to `{host}`: give the task a login that has made the image, `refit \
             task credential add`, or its operator can allow it with `push = true` in `[upstream.\"{host}\"]`"
        )
    })))
}

/// What a tag of another registry is, before an image is promoted to it.
pub(crate) async fn digest_before(
    state: &Shared,
    registry: &RegistryName,
    digest: &Digest,
    to: &Reference,
) -> Result<Option<Digest>, ApiError> {
    let refuse = |why: String| ApiError::invalid(why).at("to");
    let remote = remote_of(state, registry, digest, to).await?.map_err(refuse)?;
    engine::digest_there(&remote, to).await.map_err(|error| ImportError::from(error).into())
}

/// Puts back a tag of another registry.
pub(crate) async fn put_back(state: &Shared, promotion: &Promotion) -> Result<(), ApiError> {
    let request = &promotion.request;
    let refuse =
        |why: String| ApiError::conflict(format!("`{}` is not put back: {why}", request.to));
    let Some(before) = &promotion.digest_before else {
        let why = "there was none before, and registries do not agree on how to take a tag away";
        return Err(refuse(why.to_owned()));
    };
    let to = request.to.to_string().parse::<Reference>().map_err(|_| refuse(no_name()))?;
    let remote = remote_of(state, &promotion.registry, &request.digest, &to).await?;
    let remote = remote.map_err(refuse)?;
    let moved = engine::move_there(&remote, &to, &request.digest, before).await;
    moved.map_err(|error| refuse(told(&error, hint(&error))))
}
