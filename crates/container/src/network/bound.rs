//! A container on the bridge that may not connect to everywhere.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::cannot;
use super::firewall::Bounded;
use crate::ContainerError;
use crate::egress::{Egress, Rule};

/// A container is told no more addresses than this.
const RULES_MAX: usize = 4096;
/// So many refused names are told.
const REFUSED_MAX: usize = 20;

/// The bounded containers of a bridge, by their addresses.
#[derive(Debug, Clone, Default)]
pub(super) struct Bounds(Arc<Mutex<HashMap<Ipv4Addr, Arc<Bound>>>>);

/// What one container may connect to, and what of that it knows.
#[derive(Debug)]
pub(super) struct Bound {
    place: Bounded,
    egress: Egress,
    /// What the firewall lets through by now; nothing more once it has ended.
    admitted: Mutex<Admitted>,
    /// One question at a time waits for the firewall.
    turn: tokio::sync::Mutex<()>,
    /// Names that it asked for in vain.
    refused: Mutex<BTreeSet<String>>,
}

#[derive(Debug, Default)]
struct Admitted {
    rules: HashSet<Rule>,
    has_ended: bool,
}

/// A bound that holds until this is dropped.
#[derive(Debug)]
pub(crate) struct Held(Arc<Bound>);

impl Bounds {
    /// Lets a container connect to what it may, and to nothing else, from now on.
    pub(super) async fn begin(
        &self,
        place: Bounded,
        egress: &Egress,
    ) -> Result<Held, ContainerError> {
        let rules = egress.rules();
        let begun = place.begin(rules.clone()).await;
        begun.map_err(|reason| cannot("bound what the container connects to", reason))?;
        let bound = Arc::new(Bound {
            place,
            egress: egress.clone(),
            admitted: Mutex::new(Admitted { rules: rules.into_iter().collect(), has_ended: false }),
            turn: tokio::sync::Mutex::default(),
            refused: Mutex::default(),
        });
        self.lock().insert(place.address, Arc::clone(&bound));
        Ok(Held(bound))
    }

    /// Takes an address for a container without a bound.
    pub(super) fn forget(&self, address: Ipv4Addr) {
        self.lock().remove(&address);
    }

    /// What bounds the container at an address, if anything does.
    pub(super) fn of(&self, address: Ipv4Addr) -> Option<Arc<Bound>> {
        self.lock().get(&address).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Ipv4Addr, Arc<Bound>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bound {
    /// Whether the container may ask for a name; what it may not is remembered.
    pub(super) fn may_ask(&self, name: &str) -> bool {
        if self.admitted().has_ended {
            return false;
        }
        let may = self.egress.has_name(name);
        if !may {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            if refused.len() < REFUSED_MAX {
                refused.insert(name.trim_end_matches('.').to_ascii_lowercase());
            }
        }
        may
    }

    /// Lets the container connect to what a name stands for, before it hears of it.
    pub(super) async fn admit(
        self: Arc<Self>,
        name: String,
        addresses: Vec<Ipv4Addr>,
    ) -> Result<(), String> {
        let this = Arc::clone(&self);
        let _turn = self.turn.lock().await;
        let admitted = tokio::task::spawn_blocking(move || this.admit_now(&name, &addresses)).await;
        admitted.map_err(|error| error.to_string()).flatten()
    }

    /// Blocking.
    fn admit_now(&self, name: &str, addresses: &[Ipv4Addr]) -> Result<(), String> {
        // Held until the firewall has them: whoever ends the bound has to know all.
        let mut admitted = self.admitted();
        if admitted.has_ended {
            return Err("the container has ended".to_owned());
        }
        let rules = addresses.iter().flat_map(|address| self.egress.rules_for(name, *address));
        let new: HashSet<Rule> = rules.filter(|rule| !admitted.rules.contains(rule)).collect();
        if new.is_empty() {
            return Ok(());
        }
        if admitted.rules.len() + new.len() > RULES_MAX {
            return Err(format!("more than {RULES_MAX} addresses"));
        }
        let rules: Vec<Rule> = new.iter().copied().collect();
        self.place.admit(&rules)?;
        admitted.rules.extend(new);
        Ok(())
    }

    fn admitted(&self) -> MutexGuard<'_, Admitted> {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Names that the container asked for and may not connect to.
    pub(crate) fn refused(&self) -> Vec<String> {
        let refused = self.0.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.iter().cloned().collect()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // It stays known, without any right: questions of it may still be on their way.
        let place = &self.0.place;
        let mut admitted = self.0.admitted();
        admitted.has_ended = true;
        if let Err(error) = place.end(&admitted.rules) {
            tracing::warn!(address = %place.address, error, "a container's firewall rules were left");
        }
    }
}
