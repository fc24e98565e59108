//! `push` steps: images of the run get their names.

use std::sync::Arc;
use std::time::Duration;

use housekeeping::Use;
use oci::{Descriptor, Digest, Manifest, Reference, RepositoryName};
use remote::{ManifestToPush, Push, RemoteError};
use store::{Cause, ManifestRef};
use tokio_util::sync::CancellationToken;

use super::images::RunImage;
use super::{PushedImage, StepUsage, TaskContext, attempts, unless_stopped};
use crate::execute::{Engine, Failure};
use crate::import::{ImportError, ImportSource, ImportTarget, import};
use crate::name::Destination;
use crate::platforms::BuiltImages;
use crate::publish::{Lease, Publication, PublishError, manifests_of};

/// How often a reference is tried (task-yaml.md section 4.7).
const TRIES: u32 = 3;
/// How long to wait before the second try; twice as long before each next one.
const DELAY: Duration = Duration::from_millis(250);

/// Pushes images one after the other. Those before one that fails stay pushed; when it is to stop,
/// what is being published is published.
pub(crate) async fn execute(
    context: &TaskContext<'_>,
    step: &str,
    images: &[Reference],
    stop: &CancellationToken,
) -> Result<(), Failure> {
    for reference in images {
        if stop.is_cancelled() {
            return Err(Failure::Canceled);
        }
        push(context, step, reference, stop).await?;
    }
    Ok(())
}

async fn push(
    context: &TaskContext<'_>,
    step: &str,
    reference: &Reference,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let mut delay = DELAY;
    for number in 1.. {
        let text = format!("Pushing image: {}, attempt {number}", reference.familiar());
        context.events.message(&text).await;
        let failure = match push_once(context, step, reference, stop).await {
            Ok(()) => {
                let text = format!("Pushed image: {}", reference.familiar());
                context.events.message(&text).await;
                break;
            }
            Err(failure @ (Failure::Ours(_) | Failure::User(_))) if number < TRIES => failure,
            Err(failure) => return Err(failure),
        };
        context.events.warning(&format!("it is tried again: {}", failure.first_line())).await;
        attempts::sleep(delay, stop).await?;
        delay *= 2;
    }
    Ok(())
}

async fn push_once(
    context: &TaskContext<'_>,
    step: &str,
    reference: &Reference,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let engine = &context.engine;
    let Some(image) = context.images.find(reference) else {
        let name = reference.familiar();
        return Err(Failure::User(format!(
            "error: no step of this run has built `{name}`\n\
             hint: the name must be that of `-t` in a `build` step, with its tag"
        )));
    };
    match (engine.own.registry(reference), &image) {
        (Some(own), RunImage::Built(built)) if *own == engine.registry => {
            publish_here(context, reference, built).await
        }
        (Some(own), RunImage::Other(source)) if *own == engine.registry => {
            import_here(context, reference, source, stop).await
        }
        (Some(_), _) => Err(Failure::User(format!(
            "error: `{}` is in another registry of this server, which the run may not push to",
            reference.familiar()
        ))),
        (None, RunImage::Built(built)) => {
            let mut pushed = 0;
            let sent = send(engine, context.lease, reference, built, stop, &mut pushed).await;
            context.note_usage(step, StepUsage { pushed, ..StepUsage::default() });
            let digest = sent?;
            context.note_pushed(PushedImage {
                host: Some(reference.host.clone()),
                repository: reference.repository.clone(),
                tag: reference.tag_or_latest(),
                digest: digest.clone(),
            });
            context.events.image(Some(&reference.to_string()), &digest).await;
            Ok(())
        }
        (None, RunImage::Other(_)) => Err(Failure::User(format!(
            "error: `{}` is in another registry, where only images go that a step has built\n\
             hint: push it into the run's own registry",
            reference.familiar()
        ))),
    }
}

/// Publishes an image in the run's own registry: its blobs are there already.
async fn publish_here(
    context: &TaskContext<'_>,
    reference: &Reference,
    built: &Arc<BuiltImages>,
) -> Result<(), Failure> {
    let engine = &context.engine;
    let names = [destination(context, reference)?];
    let name = names[0].reference.clone();
    let (run, registry) = (context.request.run.as_str(), &engine.registry);
    let publication = Publication { run, registry, names: &names, caches: &[] };
    let published =
        engine.publisher.publish(&engine.catalog, Some(built), &publication, context.lease).await;
    published.map_err(PublishError::failure)?;
    let digest = built.descriptor().digest.clone();
    let [Destination { repository, tag, .. }] = names;
    let digest_of = digest.clone();
    context.note_pushed(PushedImage { host: None, repository, tag: Some(tag), digest: digest_of });
    context.events.image(Some(&name), &digest).await;
    Ok(())
}

/// Where an image goes in the run's own registry.
pub(super) fn destination(
    context: &TaskContext<'_>,
    reference: &Reference,
) -> Result<Destination, Failure> {
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
    Ok(Destination { repository, tag, reference: name })
}

/// Brings an image of elsewhere into the run's own registry, whole: all its platforms, and what
/// belongs to it.
async fn import_here(
    context: &TaskContext<'_>,
    reference: &Reference,
    source: &Reference,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let (engine, destination) = (&context.engine, destination(context, reference)?);
    if !engine.publisher.takes_imports() {
        return Err(Failure::User(
            "error: an agent pushes only what its run has built\n\
             hint: build an image `FROM` that one, or run the task without `--agent-pool`"
                .to_owned(),
        ));
    }
    if engine.own.registry(source).is_some_and(|registry| *registry != engine.registry) {
        return Err(Failure::User(format!(
            "error: `{}` is in another registry of this server, which the run may not pull from",
            source.familiar()
        )));
    }
    let wanted = source.digest.clone().map(ManifestRef::Digest);
    let wanted = wanted.unwrap_or_else(|| ManifestRef::Tag(oci::Tag::latest()));
    let source = match engine.own.registry(source) {
        Some(registry) => {
            ImportSource::Own { registry, repository: &source.repository, wanted: &wanted }
        }
        None => ImportSource::Remote { remote: &engine.remote, reference: source },
    };
    let untagged = ImportTarget {
        registry: &engine.registry,
        tags: &[],
        untagged: std::slice::from_ref(&destination.repository),
        force: true,
        platform: None,
        cause: &Cause::Build { run: context.request.run.clone() },
    };
    let tags = [(destination.repository.clone(), destination.tag.clone())];
    let tagged = ImportTarget { tags: &tags, untagged: &[], ..untagged };
    let refused = async |repository: &RepositoryName, wanted: Use| {
        let (registry, run) = (&engine.registry, &context.request.run);
        let refused = engine.publisher.refused(registry, run, repository, wanted).await;
        match refused.map_err(PublishError::failure)? {
            None => Ok(()),
            Some(reason) => Err(Failure::User(format!("error: {reason}"))),
        }
    };
    let bring = async |source: &ImportSource<'_>, target: &ImportTarget<'_>| {
        // It may be another right by now than that of the run when it began.
        if let ImportSource::Own { repository, .. } = source {
            refused(repository, Use::Pull).await?;
        }
        refused(&destination.repository, Use::Push).await?;
        let imported = import(&engine.catalog, source, target, &|_| ()).await;
        imported.map_err(|error| match error {
            ImportError::Store(error) if error.is_refusal() => Failure::user(&error, error.hint()),
            ImportError::Store(error) => Failure::ours(&error),
            error => Failure::user(&error, error.hint()),
        })
    };
    // That may take a while, in which another attempt may take over.
    let digest = unless_stopped(stop, bring(&source, &untagged)).await?.digest;
    if !context.lease.holds().await {
        return Err(Failure::Superseded);
    }
    let wanted = ManifestRef::Digest(digest.clone());
    let (registry, repository) = (&engine.registry, &destination.repository);
    bring(&ImportSource::Own { registry, repository, wanted: &wanted }, &tagged).await?;
    let Destination { repository, tag, reference } = destination;
    context.note_pushed(PushedImage {
        host: None,
        repository,
        tag: Some(tag),
        digest: digest.clone(),
    });
    context.events.image(Some(&reference), &digest).await;
    Ok(())
}

/// Refuses to push where neither the operator has allowed it nor the task is logged in. A login that
/// a step has made is nobody's word, so it allows a push only where the step could push by itself: to
/// no registry that the operator has declared, nor one of the server's own machine.
pub(crate) fn may_send(engine: &Engine, host: &str) -> Result<(), Failure> {
    let remote = &engine.remote;
    let is_public = !remote::is_loopback(host) && !remote.is_declared(host);
    if engine.pushes.hosts.contains(host) || is_public && remote.has_login(host) {
        return Ok(());
    }
    Err(Failure::User(format!(
        "error: this server does not let runs push to `{host}`\n\
         hint: give the task a login, `refit task credential add`; or its operator can allow it with \
         `push = true` in `[upstream.\"{host}\"]`"
    )))
}

/// Sends an image to another registry. The bytes that had to be sent are added to `uploaded`, also if
/// the image is not there in the end.
pub(crate) async fn send(
    engine: &Engine,
    lease: &dyn Lease,
    reference: &Reference,
    built: &BuiltImages,
    stop: &CancellationToken,
    uploaded: &mut u64,
) -> Result<Digest, Failure> {
    let manifests = manifests_of(built);
    let manifests = manifests.into_iter().map(|(descriptor, bytes)| ManifestToPush {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.clone(),
        blobs: blobs_of(&bytes, &descriptor.media_type),
        bytes,
    });
    let manifests: Vec<_> = manifests.collect();
    send_manifests(engine, lease, reference, &manifests, stop, uploaded).await
}

/// Sends manifests to another registry, with the blobs that they name.
pub(super) async fn send_manifests(
    engine: &Engine,
    lease: &dyn Lease,
    reference: &Reference,
    manifests: &[ManifestToPush],
    stop: &CancellationToken,
    uploaded: &mut u64,
) -> Result<Digest, Failure> {
    may_send(engine, &reference.host)?;
    let push = Push { reference, manifests };
    // It tries again by itself where that may help.
    let failed = |error: RemoteError| Failure::user(&error, error.hint());
    let sent =
        async { engine.remote.push_blobs(&push, &engine.catalog, &|_| ()).await.map_err(failed) };
    let pushed = unless_stopped(stop, sent).await?;
    *uploaded += pushed.uploaded;
    if !lease.holds().await {
        return Err(Failure::Superseded);
    }
    engine.remote.push_manifests(&push).await.map_err(failed)?;
    Ok(pushed.digest)
}

/// Config and layers of an image; an index has none of its own.
pub(super) fn blobs_of(manifest: &[u8], media_type: &str) -> Vec<Descriptor> {
    match Manifest::parse(manifest, Some(media_type)).expect("the builder writes valid manifests") {
        Manifest::Image(image) => std::iter::once(image.config).chain(image.layers).collect(),
        _ => Vec::new(),
    }
}
