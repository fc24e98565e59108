//! Manifests remembered, so that a warm `GET` costs no query.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use oci::{RegistryName, RepositoryName};

use crate::model::{ManifestEntry, ManifestRef};

/// Bytes of manifests remembered at most; then all are forgotten at once.
const BYTES_MAX: usize = 16 << 20;
/// What an entry costs besides its manifest's bytes, roughly.
const ENTRY_COST: usize = 512;

type Key = (RegistryName, RepositoryName, ManifestRef);

/// What is remembered, and how often something was forgotten.
#[derive(Default)]
struct Memory {
    entries: HashMap<Key, ManifestEntry>,
    bytes: usize,
    generation: u64,
}

#[derive(Default)]
pub(super) struct Hot {
    memory: RwLock<Memory>,
}

/// The state of the memory before a query: its result is remembered only if nothing was
/// forgotten meanwhile, so a reader that was overtaken by a writer leaves nothing stale.
#[derive(Clone, Copy)]
pub(super) struct Before(u64);

impl Hot {
    pub(super) fn get(&self, key: &Key) -> Result<ManifestEntry, Before> {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        memory.entries.get(key).cloned().ok_or(Before(memory.generation))
    }

    pub(super) fn remember(&self, key: Key, entry: &ManifestEntry, before: Before) {
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        if memory.generation != before.0 {
            return;
        }
        let cost = entry.bytes.len() + ENTRY_COST;
        if memory.bytes + cost > BYTES_MAX {
            memory.entries.clear();
            memory.bytes = 0;
        }
        memory.bytes += cost;
        memory.entries.insert(key, entry.clone());
    }

    /// Forgets one reference, after the write that changed it.
    pub(super) fn forget(&self, key: &Key) {
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        memory.generation += 1;
        if let Some(entry) = memory.entries.remove(key) {
            memory.bytes = memory.bytes.saturating_sub(entry.bytes.len() + ENTRY_COST);
        }
    }

    pub(super) fn forget_all(&self) {
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        let generation = memory.generation + 1;
        *memory = Memory { generation, ..Memory::default() };
    }
}
