//! The build cache: results kept by the digest of what produced them.
//!
//! A cache key is the sha256 over everything that can change a result, each value with its
//! name and length in front, so that no two different inputs are ever encoded alike.

use async_trait::async_trait;
use oci::{Digest, Hasher, RegistryName};
use store::{CacheEntry, Catalog};

/// Results of instructions by cache key. An entry whose blobs are not all there is a miss.
#[async_trait]
pub trait BuildCache: Send + Sync {
    async fn get(&self, key: &Digest) -> store::Result<Option<CacheEntry>>;

    async fn put(&self, key: &Digest, entry: &CacheEntry) -> store::Result<()>;

    /// Whoever reads what this cache is given has the same namespace or trusts it: also what is in
    /// cache folders, which runs in whoever uses them.
    fn namespace(&self) -> &str;
}

/// Whose results a build may use, and whose it may make (architecture.md decision 8).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum TrustDomain {
    /// The registry's own builds.
    #[default]
    Trusted,
    /// Somebody else's, such as the pull requests of one fork: reads trusted entries, writes
    /// only its own.
    Untrusted(String),
}

/// The build cache beside a catalog.
pub struct CatalogCache {
    catalog: Catalog,
    /// Read in order; the first one is written.
    namespaces: Vec<String>,
}

impl CatalogCache {
    pub fn new(catalog: Catalog, registry: &RegistryName, domain: &TrustDomain) -> Self {
        let trusted = format!("{registry}/trusted");
        let namespaces = match domain {
            TrustDomain::Trusted => vec![trusted],
            TrustDomain::Untrusted(name) => vec![format!("{registry}/untrusted/{name}"), trusted],
        };
        Self { catalog, namespaces }
    }
}

#[async_trait]
impl BuildCache for CatalogCache {
    async fn get(&self, key: &Digest) -> store::Result<Option<CacheEntry>> {
        for namespace in &self.namespaces {
            if let Some(entry) = self.catalog.cache_get(namespace, key).await? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    async fn put(&self, key: &Digest, entry: &CacheEntry) -> store::Result<()> {
        self.catalog.cache_put(&self.namespaces[0], key, entry).await
    }

    fn namespace(&self) -> &str {
        &self.namespaces[0]
    }
}

/// Changes when the meaning of keys or entries does; old entries are then never found.
const FORMAT: u64 = 5;

/// Builds a cache key, or a part of one.
pub(crate) struct KeyHasher {
    hasher: Hasher,
}

impl KeyHasher {
    /// Starts a key of one kind of result, such as `run`.
    pub(crate) fn new(kind: &str) -> Self {
        let mut key = Self { hasher: Hasher::sha256() };
        key.number("format", FORMAT);
        key.text("kind", kind);
        key
    }

    pub(crate) fn bytes(&mut self, name: &str, value: &[u8]) {
        for part in [name.as_bytes(), value] {
            self.hasher.update(&(part.len() as u64).to_le_bytes());
            self.hasher.update(part);
        }
    }

    pub(crate) fn text(&mut self, name: &str, value: &str) {
        self.bytes(name, value.as_bytes());
    }

    pub(crate) fn number(&mut self, name: &str, value: u64) {
        self.bytes(name, &value.to_le_bytes());
    }

    /// Absent and empty are different values.
    pub(crate) fn optional(&mut self, name: &str, value: Option<&str>) {
        self.number("present", u64::from(value.is_some()));
        self.text(name, value.unwrap_or_default());
    }

    pub(crate) fn list<T: AsRef<[u8]>>(&mut self, name: &str, values: &[T]) {
        self.number(name, values.len() as u64);
        for value in values {
            self.bytes(name, value.as_ref());
        }
    }

    pub(crate) fn digest(&mut self, name: &str, value: &Digest) {
        self.text(name, value.as_str());
    }

    pub(crate) fn finish(self) -> Digest {
        self.hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(values: &[String]) -> Digest {
        let mut key = KeyHasher::new("test");
        key.list("value", values);
        key.finish()
    }

    proptest! {
        #[test]
        fn different_lists_have_different_keys(one: Vec<String>, two: Vec<String>) {
            prop_assert_eq!(one == two, key(&one) == key(&two));
        }
    }

    #[test]
    fn moving_a_boundary_changes_the_key() {
        let list = |texts: &[&str]| key(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
        assert_ne!(list(&["ab", "c"]), list(&["a", "bc"]));
        assert_ne!(list(&["ab", ""]), list(&["ab"]));
    }

    #[test]
    fn absent_is_not_empty() {
        let key = |value| {
            let mut key = KeyHasher::new("test");
            key.optional("value", value);
            key.finish()
        };
        assert_ne!(key(None), key(Some("")));
    }
}
