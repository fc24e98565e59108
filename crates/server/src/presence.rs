//! Which agents are there.
//!
//! What is in memory only is a hint for people: nothing is decided by it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use control::Pool;
use oci::RegistryName;
use store::Millis;

/// An agent that said nothing for this long is not there.
const KEEP: Millis = 60_000;

/// Agents of a pool that are remembered; more may work.
const AGENTS_MAX: usize = 1_000;

/// What an agent said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) at: Millis,
    pub(crate) platform: String,
    pub(crate) version: String,
}

type OfPool = BTreeMap<String, Seen>;

/// The agents of all pools.
#[derive(Default)]
pub(crate) struct Presence {
    pools: Mutex<HashMap<(RegistryName, String), OfPool>>,
}

impl Presence {
    /// An agent has asked for something.
    pub(crate) fn note(&self, pool: &Pool, agent: &str, seen: Seen) {
        let mut pools = self.pools();
        let agents = pools.entry(key(pool)).or_default();
        agents.retain(|_, known| seen.at - known.at < KEEP);
        if agents.len() < AGENTS_MAX {
            agents.insert(agent.to_owned(), seen);
        }
    }

    /// One that works asks for nothing new, but says that it is there.
    pub(crate) fn touch(&self, registry: &RegistryName, pool: &str, agent: &str, now: Millis) {
        let key = (registry.clone(), pool.to_ascii_lowercase());
        if let Some(seen) = self.pools().get_mut(&key).and_then(|agents| agents.get_mut(agent)) {
            seen.at = now;
        }
    }

    /// Those that were there in the last minute, by name.
    pub(crate) fn of(&self, pool: &Pool, now: Millis) -> OfPool {
        let pools = self.pools();
        let agents = pools.get(&key(pool)).into_iter().flatten();
        let there = agents.filter(|(_, seen)| now - seen.at < KEEP);
        there.map(|(name, seen)| (name.clone(), seen.clone())).collect()
    }

    fn pools(&self) -> MutexGuard<'_, HashMap<(RegistryName, String), OfPool>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(pool: &Pool) -> (RegistryName, String) {
    (pool.registry.clone(), pool.name.as_str().to_ascii_lowercase())
}
