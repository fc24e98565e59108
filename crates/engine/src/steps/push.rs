//! `push` steps: images of the run get their names.

use std::sync::Arc;
use std::time::Duration;

use oci::{Descriptor, Manifest, Reference};
use remote::{ManifestToPush, Push, RemoteError};
use tokio_util::sync::CancellationToken;

use super::{PushedImage, TaskContext, attempts, unless_stopped};
use crate::execute::Failure;
use crate::name::Destination;
use crate::platforms::BuiltImages;
use crate::publish::{Publication, PublishError, manifests_of};

/// How often a reference is tried (task-yaml.md section 4.7).
const TRIES: u32 = 3;
/// How long to wait before the second try; twice as long before each next one.
const DELAY: Duration = Duration::from_millis(250);

/// Pushes images one after the other. Those before one that fails stay pushed; when it is to stop,
/// what is being published is published.
pub(crate) async fn execute(
    context: &TaskContext<'_>,
    images: &[Reference],
    stop: &CancellationToken,
) -> Result<(), Failure> {
    for reference in images {
        if stop.is_cancelled() {
            return Err(Failure::Canceled);
        }
        let Some(built) = context.images.built(reference) else {
            let name = reference.familiar();
            return Err(Failure::User(format!(
                "error: no step of this run has built `{name}`\n\
                 hint: the name must be that of `-t` in a `build` step, with its tag"
            )));
        };
        push(context, reference, &built, stop).await?;
    }
    Ok(())
}

async fn push(
    context: &TaskContext<'_>,
    reference: &Reference,
    built: &Arc<BuiltImages>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let mut delay = DELAY;
    for number in 1.. {
        let text = format!("Pushing image: {}, attempt {number}", reference.familiar());
        context.events.message(&text).await;
        let failure = match push_once(context, reference, built, stop).await {
            Ok(()) => break,
            Err(Failure::Ours(text)) if number < TRIES => text,
            Err(failure) => return Err(failure),
        };
        context.events.warning(&format!("it is tried again: {failure}")).await;
        attempts::sleep(delay, stop).await?;
        delay *= 2;
    }
    Ok(())
}

async fn push_once(
    context: &TaskContext<'_>,
    reference: &Reference,
    built: &Arc<BuiltImages>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let engine = &context.engine;
    match engine.own.registry(reference) {
        Some(own) if *own == engine.registry => publish_here(context, reference, built).await,
        Some(_) => Err(Failure::User(format!(
            "error: `{}` is in another registry of this server, which the run may not push to",
            reference.familiar()
        ))),
        None => send(context, reference, built, stop).await,
    }
}

/// Publishes an image in the run's own registry: its blobs are there already.
async fn publish_here(
    context: &TaskContext<'_>,
    reference: &Reference,
    built: &Arc<BuiltImages>,
) -> Result<(), Failure> {
    let engine = &context.engine;
    let Some(tag) = reference.tag_or_latest() else {
        return Err(Failure::User(format!("error: `{reference}` has no tag to push to")));
    };
    if let Some(reason) = (engine.pushes.refused)(&reference.repository) {
        return Err(Failure::User(format!("error: {reason}")));
    }
    let host = engine.own.host(&engine.registry).unwrap_or(engine.registry.as_str());
    let repository = reference.repository.clone();
    let name = format!("{host}/{repository}:{tag}");
    let names = [Destination { repository, tag, reference: name.clone() }];
    let (run, registry) = (context.request.run.as_str(), &engine.registry);
    let publication = Publication { run, registry, names: &names, caches: &[] };
    let published =
        engine.publisher.publish(&engine.catalog, built, &publication, context.lease).await;
    published.map_err(PublishError::failure)?;
    let digest = built.descriptor().digest.clone();
    let [Destination { repository, tag, .. }] = names;
    let digest_of = digest.clone();
    context.note_pushed(PushedImage { host: None, repository, tag: Some(tag), digest: digest_of });
    context.events.image(Some(&name), &digest).await;
    Ok(())
}

/// Sends an image to another registry.
async fn send(
    context: &TaskContext<'_>,
    reference: &Reference,
    built: &Arc<BuiltImages>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let (engine, host) = (&context.engine, &reference.host);
    if !engine.pushes.hosts.contains(host) {
        return Err(Failure::User(format!(
            "error: this server does not let runs push to `{host}`\n\
             hint: its operator can allow it with `push = true` in `[upstream.\"{host}\"]`"
        )));
    }
    let manifests = manifests_of(built);
    let manifests = manifests.into_iter().map(|(descriptor, bytes)| ManifestToPush {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.clone(),
        blobs: blobs_of(&bytes, &descriptor.media_type),
        bytes,
    });
    let manifests: Vec<_> = manifests.collect();
    let push = Push { reference, manifests: &manifests };
    // It tries again by itself where that may help.
    let failed = |error: RemoteError| Failure::user(&error, error.hint());
    let sent =
        async { engine.remote.push_blobs(&push, &engine.catalog, &|_| ()).await.map_err(failed) };
    let pushed = unless_stopped(stop, sent).await?;
    if !context.lease.holds().await {
        return Err(Failure::Superseded);
    }
    engine.remote.push_manifests(&push).await.map_err(failed)?;
    context.note_pushed(PushedImage {
        host: Some(host.clone()),
        repository: reference.repository.clone(),
        tag: reference.tag_or_latest(),
        digest: pushed.digest.clone(),
    });
    context.events.image(Some(&reference.to_string()), &pushed.digest).await;
    Ok(())
}

/// Config and layers of an image; an index has none of its own.
fn blobs_of(manifest: &[u8], media_type: &str) -> Vec<Descriptor> {
    match Manifest::parse(manifest, Some(media_type)).expect("the builder writes valid manifests") {
        Manifest::Image(image) => std::iter::once(image.config).chain(image.layers).collect(),
        _ => Vec::new(),
    }
}
