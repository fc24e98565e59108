//! Values that builds may use and nobody may see.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that are not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    pub fn new(value: impl Into<Vec<u8>>) -> Self {
        Self(value.into())
    }

    pub(crate) fn value(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

/// Secrets by the ids that `RUN --mount=type=secret` names.
pub type Secrets = BTreeMap<String, Secret>;

/// All secrets of a run that are known, which no layer of its images may hold, whether a build was
/// given them or not.
///
/// Clones are one list: whoever learns of a secret while a run goes on adds it for all builds that
/// begin after that.
#[derive(Clone, Default)]
pub struct KnownSecrets {
    known: Arc<Mutex<Vec<KnownSecret>>>,
}

/// A secret, and what messages call it: `` secret `token` ``.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KnownSecret {
    pub(crate) name: String,
    pub(crate) value: Secret,
    /// It was made for this run: what was there before cannot hold it.
    pub(crate) is_new: bool,
}

impl KnownSecrets {
    /// Adds a secret. One value may have several names; messages use the first.
    pub fn add(&self, name: impl Into<String>, value: impl Into<Vec<u8>>) {
        self.push(KnownSecret { name: name.into(), value: Secret::new(value), is_new: false });
    }

    /// Adds a secret that was made for this run.
    pub fn add_new(&self, name: impl Into<String>, value: impl Into<Vec<u8>>) {
        self.push(KnownSecret { name: name.into(), value: Secret::new(value), is_new: true });
    }

    fn push(&self, new: KnownSecret) {
        let mut known = self.lock();
        if known.iter().all(|known| known.value != new.value) {
            known.push(new);
        }
    }

    /// Those that are known by now.
    pub(crate) fn by_now(&self) -> Vec<KnownSecret> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<KnownSecret>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many there are.
impl fmt::Debug for KnownSecrets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} secrets", self.lock().len())
    }
}
