//! Pull-through: images of other registries, fetched when they are asked for and kept.
//!
//! Repositories that begin with the prefix of an upstream are copies of its own. Before a
//! manifest of one is looked up in the catalog, [`PullThrough::refresh`] brings the catalog up
//! to date; a blob that is not there is fetched, and given out while it comes ([`blobs`]).
//!
//! Whatever is kept was checked against its digest. A tag that was looked at a moment ago is
//! not asked for again, and when the upstream cannot answer, what is here is served. What was
//! not pulled for long is forgotten ([`store::Catalog::expire_copies`]).

mod blobs;
mod turns;

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oci::{Digest, Reference, RegistryName, RepositoryName, Tag};
use remote::{Remote, RemoteError};
use store::{Catalog, Cause, ManifestRef, NewManifest, StoreError};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use blobs::Flights;
use turns::Turns;

pub(crate) use blobs::Coming;

/// A registry whose images are kept, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// As in references: `docker.io`.
    pub host: String,
    /// Its repository `NAME` is `PREFIX/NAME` here.
    pub prefix: RepositoryName,
    /// For how long it is taken for granted what a tag means.
    pub tag_keep: Duration,
}

/// How images of other registries are kept.
#[derive(Debug, Clone)]
pub struct PullThroughSettings {
    pub upstreams: Vec<Upstream>,
    /// A larger blob is not fetched.
    pub blob_size_max: u64,
}

/// Blobs fetched at the same time; more wait.
const FETCHES_MAX: usize = 32;
/// Tags, uses and the like remembered at most; then all are forgotten, which costs questions.
const REMEMBERED_MAX: usize = 10_000;
/// How long a client that has a copy here waits for the upstream.
const STALE_PATIENCE: Duration = Duration::from_secs(10);
/// How long an upstream that could not answer is not asked for what is here.
const REST: Duration = Duration::from_secs(15);
/// How long one is not asked that said that it was asked too often, without saying for how long.
const REST_LIMITED: Duration = Duration::from_secs(60);
const REST_MAX: Duration = Duration::from_secs(60 * 60);
/// A use within this time of the last noted one is not noted.
const USE_NOTED_EVERY: Duration = Duration::from_secs(60 * 60);

/// Images of other registries. One per server.
pub struct PullThrough {
    remote: Remote,
    catalog: Catalog,
    settings: PullThroughSettings,
    /// When tags were last asked for.
    checked: Memory<Key>,
    /// When uses were last noted.
    used: Memory<(RegistryName, RepositoryName, Digest)>,
    /// Until when upstreams are left alone.
    resting: Mutex<HashMap<String, Rest>>,
    turns: Turns<Key>,
    flights: Flights,
    fetches: Semaphore,
}

type Key = (RegistryName, RepositoryName, ManifestRef);

#[derive(Clone, Copy)]
struct Rest {
    until: Instant,
    /// It said so itself.
    limited: bool,
}

/// A repository of another registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) host: String,
    /// Its name there.
    repository: RepositoryName,
    /// Its name here.
    pub(crate) local: RepositoryName,
    prefix: RepositoryName,
    tag_keep: Duration,
}

impl Source {
    fn reference(&self, wanted: &ManifestRef) -> Reference {
        let (tag, digest) = match wanted {
            ManifestRef::Tag(tag) => (Some(tag.clone()), None),
            ManifestRef::Digest(digest) => (None, Some(digest.clone())),
        };
        let (host, repository) = (self.host.clone(), self.repository.clone());
        Reference { host, repository, tag, digest, has_host: true }
    }

    fn cause(&self) -> Cause {
        Cause::Import { source: format!("{}/{}", self.host, self.repository) }
    }
}

impl PullThrough {
    pub fn new(remote: Remote, catalog: Catalog, settings: PullThroughSettings) -> Self {
        Self {
            remote,
            catalog,
            settings,
            checked: Memory::default(),
            used: Memory::default(),
            resting: Mutex::default(),
            turns: Turns::default(),
            flights: Flights::default(),
            fetches: Semaphore::new(FETCHES_MAX),
        }
    }

    /// Whether a repository is a copy, so that nothing else may be put into it.
    pub fn holds(&self, name: &RepositoryName) -> bool {
        self.source(name).is_some()
    }

    /// The upstream's name of an image that an own name means a copy of.
    pub fn origin(&self, own: &Reference) -> Option<Reference> {
        let Source { host, repository, .. } = self.source(&own.repository)?;
        Some(Reference { host, repository, has_host: true, ..own.clone() })
    }

    /// What a repository here is a copy of. Names of Docker Hub without a namespace mean those
    /// of `library`, as everywhere.
    pub(crate) fn source(&self, name: &RepositoryName) -> Option<Source> {
        self.settings.upstreams.iter().find_map(|upstream| {
            let (host, prefix) = (&upstream.host, &upstream.prefix);
            let rest = name.as_str().strip_prefix(prefix.as_str())?.strip_prefix('/')?;
            let repository = match host == DOCKER_HUB && !rest.contains('/') {
                true => format!("library/{rest}"),
                false => rest.to_owned(),
            };
            let local = format!("{prefix}/{repository}").parse().ok()?;
            let repository = repository.parse().ok()?;
            let (host, prefix) = (host.clone(), prefix.clone());
            Some(Source { host, repository, local, prefix, tag_keep: upstream.tag_keep })
        })
    }

    /// The name here of what a client asks for that was told to ask us instead of `host`.
    pub(crate) fn mirrored(&self, host: &str, name: &RepositoryName) -> Option<RepositoryName> {
        let host = match host {
            "registry-1.docker.io" | "index.docker.io" => DOCKER_HUB,
            host => host,
        };
        let upstream = self.settings.upstreams.iter().find(|upstream| upstream.host == host)?;
        format!("{}/{name}", upstream.prefix).parse().ok()
    }

    /// Brings the catalog up to date before a manifest is looked up in it. Whether it is there
    /// then is for the catalog to say.
    pub(crate) async fn refresh(
        &self,
        registry: &RegistryName,
        source: &Source,
        wanted: &ManifestRef,
    ) -> Result<(), RemoteError> {
        let begun = Instant::now();
        let key = (registry.clone(), source.local.clone(), wanted.clone());
        let is_fresh = || match wanted {
            ManifestRef::Digest(_) => true,
            ManifestRef::Tag(_) => self.checked.is_since(&key, begun, source.tag_keep),
        };
        if self.known(registry, source, wanted).await?.is_some() && is_fresh() {
            return Ok(());
        }
        // Who waited finds what another one has brought.
        let _turn = self.turns.take(&key).await;
        let known = self.known(registry, source, wanted).await?;
        if known.is_some() && is_fresh() {
            return Ok(());
        }
        let Err(error) = self.ask_patiently(registry, source, wanted, known.as_ref()).await else {
            self.checked.note(key);
            return Ok(());
        };
        match (&error, wanted, &known) {
            // What the upstream does not give any more is not given here either.
            (RemoteError::NotFound { .. }, ManifestRef::Tag(tag), Some(_)) => {
                match self.remove_tag(registry, source, tag).await {
                    Err(StoreError::Locked(_)) => Ok(()),
                    Err(failure) => Err(failure.into()),
                    Ok(()) => Err(error),
                }
            }
            // What may not be changed here stays as it is.
            (RemoteError::Store(StoreError::Locked(_)), _, Some(_)) => Ok(()),
            (RemoteError::NotFound { .. } | RemoteError::Denied { .. }, ..) => Err(error),
            (RemoteError::Store(_), ..) | (_, _, None) => Err(error),
            (_, _, Some(_)) => {
                let repository = source.local.as_str();
                tracing::warn!(repository, %error, "served as it was when last asked for");
                Ok(())
            }
        }
    }

    /// Fetches again what of a copy was found damaged.
    pub async fn restore(&self, registry: &RegistryName, name: &RepositoryName, digest: &Digest) {
        let Some(source) = self.source(name) else { return };
        let wanted = ManifestRef::Digest(digest.clone());
        let restored = match self.catalog.is_manifest(registry, name, digest).await {
            Ok(true) => self.refresh(registry, &source, &wanted).await,
            Ok(false) => self.bring(registry, &source, digest).await,
            Err(error) => Err(error.into()),
        };
        match restored {
            Ok(()) => tracing::info!(%digest, repository = %name, "fetched again"),
            Err(error) => tracing::warn!(%digest, %error, "a damaged blob was not fetched again"),
        }
    }

    /// The digest behind a reference, if the catalog has it whole.
    async fn known(
        &self,
        registry: &RegistryName,
        source: &Source,
        wanted: &ManifestRef,
    ) -> Result<Option<Digest>, StoreError> {
        match self.catalog.manifest(registry, &source.local, wanted).await {
            Ok(Some(entry)) => {
                let used = (registry.clone(), source.local.clone(), entry.digest.clone());
                if !self.used.is_within(&used, USE_NOTED_EVERY) {
                    let digest = &entry.digest;
                    self.catalog.note_copy_use(registry, &source.local, digest).await?;
                    self.used.note(used);
                }
                Ok(Some(entry.digest))
            }
            Ok(None) | Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks the upstream, unless it is to be left alone; not for long where there is a copy.
    async fn ask_patiently(
        &self,
        registry: &RegistryName,
        source: &Source,
        wanted: &ManifestRef,
        known: Option<&Digest>,
    ) -> Result<(), RemoteError> {
        let host = &source.host;
        self.check_limit(host)?;
        if known.is_some() && self.rest(host).is_some() {
            let reason = "it did not answer a moment ago".to_owned();
            return Err(RemoteError::Unreachable { host: host.clone(), reason });
        }
        let asking = self.ask(registry, source, wanted, known);
        let asked = match known {
            None => asking.await,
            Some(_) => {
                let late = |_| {
                    let reason = "no answer in time".to_owned();
                    Err(RemoteError::Unreachable { host: host.clone(), reason })
                };
                tokio::time::timeout(STALE_PATIENCE, asking).await.unwrap_or_else(late)
            }
        };
        self.learn(host, &asked);
        asked
    }

    /// Refuses while an upstream wants to be left alone.
    fn check_limit(&self, host: &str) -> Result<(), RemoteError> {
        match self.rest(host) {
            Some(rest) if rest.limited => {
                let retry_after = Some(rest.until.saturating_duration_since(Instant::now()));
                Err(RemoteError::RateLimited { host: host.to_owned(), retry_after })
            }
            _ => Ok(()),
        }
    }

    /// Notes an answer after which an upstream is to be left alone.
    fn learn<T>(&self, host: &str, answer: &Result<T, RemoteError>) {
        match answer {
            Err(RemoteError::RateLimited { retry_after, .. }) => {
                self.let_rest(host, retry_after.unwrap_or(REST_LIMITED).min(REST_MAX), true);
            }
            Err(error) if error.is_transient() => self.let_rest(host, REST, false),
            _ => (),
        }
    }

    /// Asks what a tag means, which costs no download; fetches the manifest if it is not here.
    async fn ask(
        &self,
        registry: &RegistryName,
        source: &Source,
        wanted: &ManifestRef,
        known: Option<&Digest>,
    ) -> Result<(), RemoteError> {
        let mut reference = source.reference(wanted);
        let tag = match wanted {
            ManifestRef::Digest(_) => None,
            ManifestRef::Tag(tag) => {
                let digest = self.remote.manifest_digest(&reference).await?;
                if digest.is_some() && digest.as_ref() == known {
                    return Ok(());
                }
                if let Some(digest) = &digest
                    && self.move_tag(registry, source, tag, digest).await?
                {
                    return Ok(());
                }
                // None: only the manifest itself tells.
                reference.digest = digest;
                Some(tag)
            }
        };
        let fetched = self.remote.fetch_manifest(&reference).await?;
        let new = NewManifest {
            digest: &fetched.digest,
            media_type: &fetched.media_type,
            bytes: fetched.bytes,
            manifest: &fetched.manifest,
        };
        let (local, cause) = (&source.local, source.cause());
        Ok(self.catalog.put_copy(registry, local, new, tag, &cause).await?)
    }

    /// Moves a tag to a manifest that is here; says whether it is.
    async fn move_tag(
        &self,
        registry: &RegistryName,
        source: &Source,
        tag: &Tag,
        digest: &Digest,
    ) -> Result<bool, StoreError> {
        let wanted = ManifestRef::Digest(digest.clone());
        if self.known(registry, source, &wanted).await?.is_none() {
            return Ok(false);
        }
        let (any, cause, local) = (store::Expected::Any, source.cause(), &source.local);
        self.catalog.move_tag(registry, local, tag, &any, Some(digest), &cause).await?;
        Ok(true)
    }

    async fn remove_tag(
        &self,
        registry: &RegistryName,
        source: &Source,
        tag: &Tag,
    ) -> Result<(), StoreError> {
        let (any, cause) = (store::Expected::Any, source.cause());
        self.catalog.move_tag(registry, &source.local, tag, &any, None, &cause).await.map(drop)
    }

    fn rest(&self, host: &str) -> Option<Rest> {
        let rest = lock(&self.resting).get(host).copied();
        rest.filter(|rest| rest.until > Instant::now())
    }

    fn let_rest(&self, host: &str, time: Duration, limited: bool) {
        let rest = Rest { until: Instant::now() + time, limited };
        lock(&self.resting).insert(host.to_owned(), rest);
    }
}

/// As references name it; its servers have other names.
const DOCKER_HUB: &str = "docker.io";

/// When things were done last.
struct Memory<K> {
    times: Mutex<HashMap<K, Instant>>,
}

impl<K> Default for Memory<K> {
    fn default() -> Self {
        Self { times: Mutex::default() }
    }
}

impl<K: Eq + Hash> Memory<K> {
    fn note(&self, key: K) {
        let mut times = lock(&self.times);
        if times.len() >= REMEMBERED_MAX {
            times.clear();
        }
        times.insert(key, Instant::now());
    }

    fn is_within(&self, key: &K, time: Duration) -> bool {
        lock(&self.times).get(key).is_some_and(|at| at.elapsed() < time)
    }

    /// Whether it was done after `begun` or at most `keep` before.
    fn is_since(&self, key: &K, begun: Instant, keep: Duration) -> bool {
        lock(&self.times).get(key).is_some_and(|at| *at + keep >= begun)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    async fn kept() -> PullThrough {
        let db = db::Db::in_memory().await.unwrap();
        let blobs = store::MemoryStore::open(db.clone()).await.unwrap();
        let catalog = Catalog::open(db, std::sync::Arc::new(blobs)).await.unwrap();
        let upstream = |host: &str, prefix: &str| Upstream {
            host: host.to_owned(),
            prefix: prefix.parse().unwrap(),
            tag_keep: Duration::ZERO,
        };
        let upstreams =
            vec![upstream("docker.io", "docker.io"), upstream("r.example:5000", "kept/r")];
        let settings = PullThroughSettings { upstreams, blob_size_max: 1 << 30 };
        let remote = Remote::new(remote::RemoteSettings::default()).unwrap();
        PullThrough::new(remote, catalog, settings)
    }

    #[tokio::test]
    async fn repositories_below_a_prefix_are_copies() {
        let kept = kept().await;
        let line = |name: &str| match kept.source(&name.parse().unwrap()) {
            Some(source) => {
                format!("{name}: {}/{} as {}\n", source.host, source.repository, source.local)
            }
            None => format!("{name}: own\n"),
        };
        let names = [
            "docker.io/alpine",
            "docker.io/library/alpine",
            "docker.io/team/app",
            "docker.io",
            "docker.iox/a",
            "kept/r/app",
            "kept/rx/app",
            "app",
        ];
        expect![[r#"
            docker.io/alpine: docker.io/library/alpine as docker.io/library/alpine
            docker.io/library/alpine: docker.io/library/alpine as docker.io/library/alpine
            docker.io/team/app: docker.io/team/app as docker.io/team/app
            docker.io: own
            docker.iox/a: own
            kept/r/app: r.example:5000/app as kept/r/app
            kept/rx/app: own
            app: own
        "#]]
        .assert_eq(&names.map(line).concat());
    }

    #[tokio::test]
    async fn mirrored_names_lie_below_the_prefix() {
        let kept = kept().await;
        let name =
            |host: &str| kept.mirrored(host, &"library/alpine".parse().unwrap()).map(String::from);
        assert_eq!(name("docker.io").unwrap(), "docker.io/library/alpine");
        assert_eq!(name("registry-1.docker.io").unwrap(), "docker.io/library/alpine");
        assert_eq!(name("r.example:5000").unwrap(), "kept/r/library/alpine");
        assert_eq!(name("r.example"), None);
    }
}
