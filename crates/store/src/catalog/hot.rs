//! Answers remembered, so that a warm `GET` of a manifest or `HEAD` of a blob costs no query.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{PoisonError, RwLock};

use oci::{Digest, RegistryName, RepositoryName};

use crate::model::{ManifestEntry, ManifestRef};

/// Bytes of answers remembered at most, by each memory; then all are forgotten at once.
const BYTES_MAX: usize = 16 << 20;
/// What an entry costs besides its manifest's bytes, roughly.
const ENTRY_COST: usize = 512;

/// A manifest as clients ask for it.
pub(super) type Key = (RegistryName, RepositoryName, ManifestRef);

/// Manifests by their references.
pub(super) type Hot = Remembered<Key, ManifestEntry>;
/// Sizes of the blobs of repositories.
pub(super) type Linked = Remembered<(RegistryName, RepositoryName, Digest), u64>;

/// What an answer takes, besides its key.
pub(super) trait Weigh {
    fn weight(&self) -> usize;
}

impl Weigh for ManifestEntry {
    fn weight(&self) -> usize {
        self.bytes.len()
    }
}

impl Weigh for u64 {
    fn weight(&self) -> usize {
        0
    }
}

/// What is remembered, and how often something was forgotten.
struct Memory<K, V> {
    entries: HashMap<K, V>,
    bytes: usize,
    generation: u64,
}

pub(super) struct Remembered<K, V> {
    memory: RwLock<Memory<K, V>>,
}

impl<K, V> Default for Remembered<K, V> {
    fn default() -> Self {
        Self { memory: RwLock::new(Memory { entries: HashMap::new(), bytes: 0, generation: 0 }) }
    }
}

/// The state of the memory before a query: its result is remembered only if nothing was
/// forgotten meanwhile, so a reader that was overtaken by a writer leaves nothing stale.
#[derive(Clone, Copy)]
pub(super) struct Before(u64);

impl<K: Eq + Hash, V: Clone + Weigh> Remembered<K, V> {
    pub(super) fn get(&self, key: &K) -> Result<V, Before> {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        memory.entries.get(key).cloned().ok_or(Before(memory.generation))
    }

    pub(super) fn remember(&self, key: K, value: V, before: Before) {
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        if memory.generation != before.0 {
            return;
        }
        let cost = value.weight() + ENTRY_COST;
        if memory.bytes + cost > BYTES_MAX {
            memory.entries.clear();
            memory.bytes = 0;
        }
        memory.bytes += cost;
        if let Some(old) = memory.entries.insert(key, value) {
            memory.bytes = memory.bytes.saturating_sub(old.weight() + ENTRY_COST);
        }
    }

    /// Forgets one answer, after the write that changed it.
    pub(super) fn forget(&self, key: &K) {
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        memory.generation += 1;
        if let Some(old) = memory.entries.remove(key) {
            memory.bytes = memory.bytes.saturating_sub(old.weight() + ENTRY_COST);
        }
    }

    pub(super) fn forget_all(&self) {
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        let generation = memory.generation + 1;
        *memory = Memory { entries: HashMap::new(), bytes: 0, generation };
    }
}
