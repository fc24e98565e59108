//! Which agents are there.
//!
//! What is in memory only is a hint, for people, and for the queue, which lets a run wait a moment for
//! the agent that has its snapshots: nothing else is decided by it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use control::{Clock, Pool, WARM_WAIT};
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

struct Agent {
    seen: Seen,
    /// Requests in which it waits for a run now.
    waits: usize,
    /// When it was last known to be free; nothing once it has taken a run.
    free_at: Option<Millis>,
}

impl Agent {
    /// Whether it would take a run at once, or is about to ask.
    fn is_waiting(&self, now: Millis) -> bool {
        self.waits > 0 || self.free_at.is_some_and(|at| now - at < WARM_WAIT.as_millis() as Millis)
    }
}

type PoolKey = (RegistryName, String);
type OfPool = BTreeMap<String, Agent>;

/// The agents of all pools.
#[derive(Default)]
pub(crate) struct Presence {
    pools: Mutex<HashMap<PoolKey, OfPool>>,
}

/// An agent waits for a run as long as this is there.
pub(crate) struct Waits<'a> {
    presence: &'a Presence,
    clock: &'a Clock,
    pool: PoolKey,
    agent: &'a str,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.presence.agent(&self.pool, self.agent, |agent| {
            agent.waits = agent.waits.saturating_sub(1);
            agent.free_at = Some(self.clock.now());
        });
    }
}

impl Presence {
    /// An agent has asked for something.
    pub(crate) fn note(&self, pool: &Pool, agent: &str, seen: Seen) {
        let mut pools = self.pools();
        let agents = pools.entry(key(pool)).or_default();
        agents.retain(|_, known| known.waits > 0 || seen.at - known.seen.at < KEEP);
        if let Some(known) = agents.get_mut(agent) {
            known.seen = seen;
        } else if agents.len() < AGENTS_MAX {
            agents.insert(agent.to_owned(), Agent { seen, waits: 0, free_at: None });
        }
    }

    /// An agent that was noted begins to wait for a run.
    pub(crate) fn waits<'a>(&'a self, pool: &Pool, agent: &'a str, clock: &'a Clock) -> Waits<'a> {
        let pool = key(pool);
        self.agent(&pool, agent, |agent| agent.waits += 1);
        Waits { presence: self, clock, pool, agent }
    }

    /// It has taken a run, or found none.
    pub(crate) fn came(&self, pool: &Pool, agent: &str, took: bool, now: Millis) {
        self.agent(&key(pool), agent, |agent| agent.free_at = (!took).then_some(now));
    }

    /// Those that would take a run at once.
    pub(crate) fn waiting(&self, pool: &Pool, now: Millis) -> Vec<String> {
        let pools = self.pools();
        let agents = pools.get(&key(pool)).into_iter().flatten();
        let waiting = agents.filter(|(_, agent)| agent.is_waiting(now));
        waiting.map(|(name, _)| name.clone()).collect()
    }

    /// One that works asks for nothing new, but says that it is there.
    pub(crate) fn touch(&self, registry: &RegistryName, pool: &str, agent: &str, now: Millis) {
        let key = (registry.clone(), pool.to_ascii_lowercase());
        self.agent(&key, agent, |agent| agent.seen.at = now);
    }

    /// It ends a run, and is about to ask for another one.
    pub(crate) fn ends(&self, registry: &RegistryName, pool: &str, agent: &str, now: Millis) {
        let key = (registry.clone(), pool.to_ascii_lowercase());
        self.agent(&key, agent, |agent| agent.free_at = Some(now));
    }

    /// Those that were there in the last minute, by name.
    pub(crate) fn of(&self, pool: &Pool, now: Millis) -> BTreeMap<String, Seen> {
        let pools = self.pools();
        let agents = pools.get(&key(pool)).into_iter().flatten();
        let there = agents.filter(|(_, agent)| now - agent.seen.at < KEEP);
        there.map(|(name, agent)| (name.clone(), agent.seen.clone())).collect()
    }

    /// Changes what is known of an agent, if it is known.
    fn agent(&self, pool: &PoolKey, agent: &str, change: impl FnOnce(&mut Agent)) {
        let mut pools = self.pools();
        pools.get_mut(pool).and_then(|agents| agents.get_mut(agent)).map(change);
    }

    fn pools(&self) -> MutexGuard<'_, HashMap<PoolKey, OfPool>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(pool: &Pool) -> PoolKey {
    (pool.registry.clone(), pool.name.as_str().to_ascii_lowercase())
}
