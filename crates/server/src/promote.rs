//! Moves tags that are promoted, here and in other registries.

use std::collections::BTreeMap;

use control::Promotion;
use engine::{ExportError, ImportError, ImportSource, ImportTarget};
use futures_util::FutureExt as _;
use oci::{Digest, Reference, RegistryName};
use remote::Remote;
use store::{Cause, ManifestRef, StoreError};
use tokio_util::sync::CancellationToken;

use crate::error::ApiError;
use crate::state::Shared;
use crate::{triggers, watches};

/// Goes on with promotions, until `shutdown`.
pub(crate) async fn carry_out(state: Shared, shutdown: CancellationToken) {
    let look = |state: Shared| {
        async move {
            let mut waits = false;
            for promotion in state.triggers.due_promotions().await? {
                if let Err(error) = move_tag(&state, &promotion).boxed().await {
                    tracing::error!(%error, promotion = %promotion.id, "a tag is not promoted yet");
                    waits = true;
                }
            }
            Ok(waits)
        }
        .boxed()
    };
    triggers::follow(&state, &shutdown, "promotions could not go on", look).await;
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
        Err(error) => Ok(Err(told(&error))),
    }
}

fn no_name() -> String {
    "that is no name of an image".to_owned()
}

/// What is the matter with an image of this server: for people, unless it is the server's own matter.
fn unreadable(error: ImportError) -> control::Result<Result<(), String>> {
    match error {
        ImportError::Store(error)
            if !error.is_refusal() && !matches!(error, StoreError::NotFound { .. }) =>
        {
            Err(error.into())
        }
        error => Ok(Err(error.to_string())),
    }
}

fn told(error: &ExportError) -> String {
    match error {
        ExportError::Remote(failed) => match failed.hint() {
            Some(hint) => format!("{failed}; {hint}"),
            None => failed.to_string(),
        },
        error => error.to_string(),
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
    moved.map_err(|error| refuse(told(&error)))
}
