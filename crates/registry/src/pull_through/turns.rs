//! One at a time of those who want the same.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use tokio::sync::OwnedMutexGuard;

use super::lock;

/// Locks by key, which are there while somebody holds or wants them.
pub(super) struct Turns<K> {
    locks: Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self { locks: Mutex::default() }
    }
}

/// A turn, until it is dropped.
pub(super) struct Turn<'a, K: Eq + Hash> {
    turns: &'a Turns<K>,
    key: K,
    guard: Option<OwnedMutexGuard<()>>,
}

impl<K: Eq + Hash + Clone> Turns<K> {
    pub(super) async fn take(&self, key: &K) -> Turn<'_, K> {
        let mutex = Arc::clone(lock(&self.locks).entry(key.clone()).or_default());
        // Made before the wait: whoever gives up waiting tidies up too.
        let mut turn = Turn { turns: self, key: key.clone(), guard: None };
        turn.guard = Some(mutex.lock_owned().await);
        turn
    }
}

impl<K: Eq + Hash> Drop for Turn<'_, K> {
    fn drop(&mut self) {
        self.guard = None;
        let mut locks = lock(&self.turns.locks);
        if locks.get(&self.key).is_some_and(|mutex| Arc::strong_count(mutex) == 1) {
            locks.remove(&self.key);
        }
    }
}
