//! Build caches that travel between servers, as images of a registry.
//!
//! Their form is BuildKit's ([`mod@format`]), so that every registry keeps them and BuildKit's clients
//! read them; the keys are ours, so neither finds the other's results, and neither stumbles over
//! them.
//!
//! Invariants:
//! - Which layer belongs to which key is only a claim of whoever wrote a cache. It counts for the
//!   builds that name the cache, and is never put into the own one.
//! - What an imported layer unpacks to is no claim: it was read before anything is made of it,
//!   since the keys of what is built upon it are shared by all.
//! - A cache that cannot be had or used costs time, never a build.

mod format;
mod import;

pub use format::{CacheImage, cache_image};
pub use import::CacheImports;
pub(crate) use import::ImportedResult;
