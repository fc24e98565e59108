//! `cache: enabled`: a cache that a build step keeps in a registry (task-yaml.md section 7.4).
//!
//! It helps builds of other servers and agents; those of one server share a cache anyway. Whatever
//! is wrong with it is a warning: the build goes on without.

use std::time::Duration;

use builder::{BaseImages as _, CacheImage, ImageError};
use oci::{Reference, Tag};
use remote::ManifestToPush;
use tokio_util::sync::CancellationToken;

use super::push::{blobs_of, destination, send_manifests};
use super::{StepUsage, TaskContext, unless_stopped};
use crate::NamedCache;
use crate::cache::cache_of;
use crate::execute::Failure;
use crate::name::Destination;
use crate::platforms::BuiltImages;
use crate::publish::{Publication, PublishError, store_blob};

/// How long it may take to find out whether there is a cache.
const FIND_TIMEOUT: Duration = Duration::from_secs(60);

/// What stands for the name of the task where there is none.
const NO_TASK: &str = "quickrun";

/// The cache of a build step that asks for one.
pub(super) struct StepCache {
    reference: Reference,
}

impl StepCache {
    /// Where the cache of a step is; none if its image has no name, or if that comes to no tag.
    pub(super) async fn of(
        context: &TaskContext<'_>,
        step: &str,
        tags: &[String],
    ) -> Result<Option<Self>, Failure> {
        let engine = &context.engine;
        let host = engine.own.host(&engine.registry).unwrap_or(engine.registry.as_str());
        match reference(tags, host, &context.request.task_name, step) {
            Ok(found) => Ok(found.map(|reference| Self { reference })),
            Err(reason) => {
                let text = format!("step `{step}` has no build cache: {reason}");
                context.events.warning(&text).await;
                Ok(None)
            }
        }
    }

    /// The cache, if it is there by now.
    pub(super) async fn to_import(
        &self,
        context: &TaskContext<'_>,
    ) -> Result<Option<Reference>, Failure> {
        let name = &self.reference;
        let found = tokio::time::timeout(FIND_TIMEOUT, context.images.manifest(name));
        let found = unless_stopped(&context.kill, async { Ok(found.await) }).await?;
        let Ok(found) = found else {
            let seconds = FIND_TIMEOUT.as_secs();
            let text = format!("build cache `{name}` is not used: no answer within {seconds} s");
            context.events.warning(&text).await;
            return Ok(None);
        };
        match found {
            Ok(_) => return Ok(Some(name.clone())),
            Err(ImageError::NotFound { .. } | ImageError::Pull { refused: true, .. }) => {
                context.events.message(&format!("There is no build cache `{name}` yet")).await;
            }
            Err(error) => {
                let text = format!("build cache `{name}` is not used: {error}");
                context.events.warning(&text).await;
            }
        }
        Ok(None)
    }

    /// Puts into it what a build found and made.
    pub(super) async fn export(
        &self,
        context: &TaskContext<'_>,
        step: &str,
        built: &BuiltImages,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let name = &self.reference;
        match self.try_export(context, step, built, stop).await {
            Ok(Some(count)) => {
                let results = if count == 1 { "result" } else { "results" };
                let text = format!("Put {count} {results} into build cache `{name}`");
                context.events.message(&text).await;
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(failure @ (Failure::Canceled | Failure::Superseded)) => Err(failure),
            Err(failure) => {
                let text = format!("build cache `{name}` is not kept: {}", failure.first_line());
                context.events.warning(&text).await;
                Ok(())
            }
        }
    }

    /// The number of results, if there are any.
    async fn try_export(
        &self,
        context: &TaskContext<'_>,
        step: &str,
        built: &BuiltImages,
        stop: &CancellationToken,
    ) -> Result<Option<usize>, Failure> {
        let engine = &context.engine;
        let image = cache_of(&engine.catalog, built, true).await;
        let Some(image) = image.map_err(|error| Failure::ours(&error))? else { return Ok(None) };
        let count = image.results;
        match engine.own.registry(&self.reference) {
            Some(own) if *own == engine.registry => {
                let name = destination(context, &self.reference)?;
                self.publish(context, NamedCache { name, image }).await?;
            }
            Some(_) => {
                return Err(Failure::User(
                    "error: it is in another registry of this server".to_owned(),
                ));
            }
            None => self.send(context, step, &image, stop).await?,
        }
        Ok(Some(count))
    }

    async fn publish(&self, context: &TaskContext<'_>, cache: NamedCache) -> Result<(), Failure> {
        let engine = &context.engine;
        let (run, registry) = (context.request.run.as_str(), &engine.registry);
        let caches = std::slice::from_ref(&cache);
        let publication = Publication { run, registry, names: &[], caches };
        let published =
            engine.publisher.publish(&engine.catalog, None, &publication, context.lease).await;
        published.map_err(PublishError::failure)
    }

    async fn send(
        &self,
        context: &TaskContext<'_>,
        step: &str,
        image: &CacheImage,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let engine = &context.engine;
        let stored = store_blob(&engine.catalog, &image.config, &image.config_descriptor.digest);
        stored.await.map_err(|error| Failure::ours(&error))?;
        let manifest = ManifestToPush {
            media_type: image.descriptor.media_type.clone(),
            digest: image.descriptor.digest.clone(),
            blobs: blobs_of(&image.manifest, &image.descriptor.media_type),
            bytes: image.manifest.clone(),
        };
        let (manifests, mut pushed) = ([manifest], 0);
        let (lease, reference) = (context.lease, &self.reference);
        let sent = send_manifests(engine, lease, reference, &manifests, stop, &mut pushed).await;
        context.note_usage(step, StepUsage { pushed, ..StepUsage::default() });
        sent.map(drop)
    }
}

/// The name of a step's cache, or why it can have none.
fn reference(
    tags: &[String],
    host: &str,
    task: &str,
    step: &str,
) -> Result<Option<Reference>, String> {
    let parse = |tag: &String| tag.parse::<Reference>().map_err(|error| error.to_string());
    let parsed: Vec<Reference> = tags.iter().map(parse).collect::<Result<_, _>>()?;
    let Some(first) = tags.first() else { return Ok(None) };
    let task = if task.is_empty() { NO_TASK } else { task };
    let tag: Tag = format!("cache_{task}_{step}").parse().map_err(|_| {
        format!("`cache_{task}_{step}` is no tag, which has at most 128 letters, digits and `._-`")
    })?;
    let (host, repository) = match parsed.into_iter().find(|reference| reference.has_host) {
        Some(named) => (named.host, named.repository),
        None => {
            let repository = Destination::repository(first).map_err(|error| error.to_string())?;
            (host.to_owned(), repository)
        }
    };
    Ok(Some(Reference { host, repository, tag: Some(tag), digest: None, has_host: true }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(tags: &[&str], task: &str, step: &str) -> Result<String, String> {
        let tags: Vec<String> = tags.iter().map(|tag| (*tag).to_owned()).collect();
        let found = reference(&tags, "contoso.azurecr.io", task, step)?;
        Ok(found.map_or_else(|| "none".to_owned(), |reference| reference.to_string()))
    }

    #[track_caller]
    fn check(tags: &[&str], task: &str, expected: &str) {
        assert_eq!(name(tags, task, "b"), Ok(expected.to_owned()));
    }

    #[test]
    fn f17_the_cache_is_beside_the_image() {
        check(&["contoso.azurecr.io/a:1"], "T", "contoso.azurecr.io/a:cache_T_b");
    }

    #[test]
    fn f18_a_quick_run_has_a_name_for_it_too() {
        check(&["contoso.azurecr.io/a:1"], "", "contoso.azurecr.io/a:cache_quickrun_b");
    }

    #[test]
    fn f19_the_first_name_with_a_registry_counts() {
        check(&["a", "contoso.azurecr.io/b"], "T", "contoso.azurecr.io/b:cache_T_b");
    }

    #[test]
    fn f20_a_name_without_registry_is_in_that_of_the_run() {
        check(&["org/app:1"], "T", "contoso.azurecr.io/org/app:cache_T_b");
        check(&["localhost/a", "b"], "T", "localhost/a:cache_T_b");
        check(&["r:5000/team/a:1"], "T", "r:5000/team/a:cache_T_b");
    }

    #[test]
    fn f21_an_image_without_name_has_no_cache() {
        check(&[], "T", "none");
    }

    #[test]
    fn f22_what_is_no_tag_is_no_cache() {
        let long = "x".repeat(140 - "cache_T_".len());
        let error = name(&["a"], "T", &long).unwrap_err();
        assert!(error.contains("is no tag"), "{error}");
        assert!(name(&["a"], "T", &long[..120]).is_ok());
        assert!(name(&["a"], "T", "b/c").is_err());
    }
}
