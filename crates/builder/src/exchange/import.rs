//! Results of imported caches: found by key, fetched when they are needed, and read before they
//! are used.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use oci::{Descriptor, Digest, Reference};
use tokio::sync::OnceCell;

use super::format::{self, CONFIG_SIZE_MAX, CacheContent, FoundResult};
use crate::assemble::ImageLayer;
use crate::build::{Build, tell_progress};
use crate::error::BuildError;
use crate::event::{StepEnd, StepNumber};
use crate::image::store_read;

/// How long finding out what is in a cache may take: it is small, and a build goes on without it.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// The caches that a build may take results from besides its own; of the builds for several
/// platforms together.
#[derive(Debug, Default)]
pub struct CacheImports {
    imports: Vec<Import>,
}

#[derive(Debug)]
struct Import {
    reference: Reference,
    /// Read when a result is first missed; `None`: it could not be.
    content: OnceCell<Option<CacheContent>>,
    is_used: AtomicBool,
}

/// A layer for a key: in the store, and it unpacks to what its diff ID says.
pub(crate) struct ImportedResult {
    pub(crate) layer: ImageLayer,
    /// Seconds since 1970.
    pub(crate) created: i64,
    /// The cache that had it.
    pub(crate) from: String,
}

impl CacheImports {
    /// They are asked in this order.
    pub fn new(references: impl IntoIterator<Item = Reference>) -> Self {
        let import = |reference| Import {
            reference,
            content: OnceCell::new(),
            is_used: AtomicBool::new(false),
        };
        Self { imports: references.into_iter().map(import).collect() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.imports.is_empty()
    }

    /// What to tell, at the end, of caches that were read in vain.
    pub fn unused(&self) -> Vec<String> {
        let unused = self.imports.iter().filter(|import| !import.is_used.load(Ordering::Relaxed));
        let told = unused.filter_map(|import| {
            let (name, count) = (&import.reference, import.content.get()?.as_ref()?.count);
            let results = if count == 1 { "result" } else { "results" };
            Some(format!(
                "cache `{name}` holds {count} {results}, none of which this build could use"
            ))
        });
        told.collect()
    }
}

impl Build<'_> {
    /// What the imported caches have for a key. Whatever is wrong with one is a warning.
    pub(crate) async fn imported(
        &self,
        key: &Digest,
        step: StepNumber,
    ) -> Result<Option<ImportedResult>, BuildError> {
        for import in &self.request.imports.imports {
            let reading = || self.open_cache(&import.reference);
            let Some(content) = import.content.get_or_init(reading).await else { continue };
            let Some(found) = content.get(key) else { continue };
            match self.take(&import.reference, found, step).await {
                Ok(()) => {
                    import.is_used.store(true, Ordering::Relaxed);
                    let FoundResult { layer, created } = found.clone();
                    let from = import.reference.to_string();
                    return Ok(Some(ImportedResult { layer, created, from }));
                }
                Err(BuildError::Canceled) => return Err(BuildError::Canceled),
                Err(error) => {
                    let (name, layer) = (&import.reference, &found.layer.descriptor.digest);
                    let text = format!("layer {layer} of cache `{name}` is not used: {error}");
                    self.events.warning(&text).await;
                }
            }
        }
        Ok(None)
    }

    async fn open_cache(&self, reference: &Reference) -> Option<CacheContent> {
        let step = self.next_step();
        self.events.step_started(step, &format!("import cache from {reference}")).await;
        let read = tokio::time::timeout(READ_TIMEOUT, self.read_cache(reference, step)).await;
        let read = read.unwrap_or_else(|_| {
            Err(format!("its registry took longer than {} s", READ_TIMEOUT.as_secs()))
        });
        self.events.step_finished(step, StepEnd::Done).await;
        match read {
            Ok(content) => Some(content),
            Err(reason) => {
                self.events.warning(&format!("cache `{reference}` is not used: {reason}")).await;
                None
            }
        }
    }

    async fn read_cache(
        &self,
        reference: &Reference,
        step: StepNumber,
    ) -> Result<CacheContent, String> {
        let manifest = self.builder.images.manifest(reference).await;
        let (_, manifest) = manifest.map_err(|error| match error.hint() {
            Some(hint) => format!("{error} ({hint})"),
            None => error.to_string(),
        })?;
        let (config, layers) = format::parts(manifest)?;
        if config.size > CONFIG_SIZE_MAX {
            return Err(format!("its config has more than {CONFIG_SIZE_MAX} bytes"));
        }
        self.fetch(reference, &config, step).await.map_err(|error| error.to_string())?;
        let blobs = &self.builder.blobs;
        let bytes = store_read(&**blobs, &config.digest, config.size).await;
        let bytes = bytes.map_err(|error| error.to_string())?;
        if let Err(error) = oci::check_blob(&config, &bytes) {
            // Noted as lost, so that it is fetched again.
            blobs.verify(&config.digest).await.map_err(|error| error.to_string())?;
            return Err(format!("its config is damaged: {error}"));
        }
        CacheContent::read(&bytes, &layers)
    }

    /// Brings a result's layer here and reads it: what its diff ID says must be so.
    async fn take(
        &self,
        reference: &Reference,
        found: &FoundResult,
        step: StepNumber,
    ) -> Result<(), BuildError> {
        self.fetch(reference, &found.layer.descriptor, step).await?;
        self.builder.layers.prove(std::slice::from_ref(&found.layer), &self.stop).await
    }

    async fn fetch(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        step: StepNumber,
    ) -> Result<(), BuildError> {
        let fetched = AtomicU64::new(0);
        let progress = |bytes| {
            fetched.fetch_add(bytes, Ordering::Relaxed);
        };
        let fetching = self.builder.images.fetch(reference, blob, &progress);
        let done = tell_progress(fetching, self.events, step, &fetched).await;
        self.notes().cost.pulled += fetched.load(Ordering::Relaxed);
        done.map_err(|error| BuildError::Import { error })
    }
}
