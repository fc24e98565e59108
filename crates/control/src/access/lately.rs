//! What was read of the database lately, so that each request does not ask again.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use store::Millis;

/// Another process of the same database may have changed it since; so nothing is believed longer.
const KEEP: Millis = 5_000;

/// What is kept at once; then all of it is forgotten.
const ENTRIES_MAX: usize = 10_000;

/// Values by their keys, each for a few seconds.
pub(super) struct Lately<K, V> {
    inner: Mutex<Inner<K, V>>,
}

struct Inner<K, V> {
    entries: HashMap<K, (Millis, V)>,
    /// How often all was forgotten: what was read before then is not kept.
    serial: u64,
}

/// When a value began to be read.
#[derive(Clone, Copy)]
pub(super) struct Serial(u64);

impl<K: Eq + Hash, V: Clone> Lately<K, V> {
    pub(super) fn new() -> Self {
        Self { inner: Mutex::new(Inner { entries: HashMap::new(), serial: 0 }) }
    }

    /// A value that is kept, or else when its reading begins.
    pub(super) fn get(&self, key: &K, now: Millis) -> Result<V, Serial> {
        let inner = self.inner();
        match inner.entries.get(key) {
            Some((at, value)) if (0..KEEP).contains(&(now - at)) => Ok(value.clone()),
            _ => Err(Serial(inner.serial)),
        }
    }

    /// Keeps what was read, unless something has changed meanwhile.
    pub(super) fn put(&self, key: K, value: V, began: Serial, now: Millis) {
        let mut inner = self.inner();
        if inner.serial != began.0 {
            return;
        }
        if inner.entries.len() >= ENTRIES_MAX {
            inner.entries.clear();
        }
        inner.entries.insert(key, (now, value));
    }

    /// Something has changed.
    pub(super) fn forget(&self) {
        let mut inner = self.inner();
        inner.entries.clear();
        inner.serial += 1;
    }

    fn inner(&self) -> MutexGuard<'_, Inner<K, V>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_while_it_was_read_is_not_kept() {
        let lately = Lately::new();
        let began = lately.get(&"a", 0).unwrap_err();
        lately.put("a", 1, began, 0);
        assert_eq!(lately.get(&"a", KEEP - 1).ok(), Some(1));
        assert!(lately.get(&"a", KEEP).is_err() && lately.get(&"a", -1).is_err());
        let began = lately.get(&"b", 0).unwrap_err();
        lately.forget();
        lately.put("b", 2, began, 0);
        assert!(lately.get(&"a", 0).is_err() && lately.get(&"b", 0).is_err());
    }
}
