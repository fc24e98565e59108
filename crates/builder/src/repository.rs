//! Git repositories as sources: a commit's files, as one archive in the store.
//!
//! The server is asked each time which commit is meant, with the user's own credentials: so
//! nobody gets from the cache what that server would not give. Only then what was fetched of
//! that commit before is used again.

use std::sync::Arc;
use std::time::Instant;

use dockerfile::{FileOwner, GitAddress};
use oci::Digest;
use remote::{GitError, GitHead, GitLimits, GitSource, LfsMissing};
use serde::{Deserialize, Serialize};
use store::CacheEntry;

use crate::agents::{AgentSocket, SshAgents};
use crate::build::{Builder, milliseconds};
use crate::cache::KeyHasher;

/// A commit's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    pub commit: String,
    pub branch: Option<String>,
    /// When the commit was made, in seconds since 1970.
    pub time: i64,
    /// A tar archive.
    pub archive: Digest,
    pub size: u64,
    /// Why files are only pointers to what Git LFS has; nothing if all are here.
    pub lfs_missing: Option<LfsMissing>,
    /// Whether it was there already.
    pub cached: bool,
}

impl Repository {
    /// What the user should know of it.
    pub fn warning(&self) -> Option<String> {
        let text = |LfsMissing { address, reason, .. }: &LfsMissing| {
            format!("`{address}` has files in Git LFS that are pointers only, since {reason}")
        };
        self.lfs_missing.as_ref().map(text)
    }
}

/// How to fetch a repository.
#[derive(Debug, Clone, Copy)]
pub struct RepositoryOptions {
    pub keep_git_dir: bool,
    /// Fetch it whatever is known of it.
    pub no_cache: bool,
    pub limits: GitLimits,
}

/// What a cache entry says of a commit's files.
#[derive(Serialize, Deserialize)]
struct Fetched {
    archive: Digest,
    size: u64,
    time: i64,
    /// Told again each time.
    lfs_missing: Option<LfsMissing>,
}

/// The ssh agent that proves to git servers who asks.
const AGENT: &str = "default";

impl Builder {
    /// Fetches the files of a repository into the store, unless they are there.
    pub async fn fetch_repository(
        &self,
        address: &GitAddress,
        options: RepositoryOptions,
        agents: Option<&Arc<dyn SshAgents>>,
    ) -> Result<Repository, GitError> {
        // There while it is fetched.
        let agent = self.agent(agents)?;
        let source = GitSource {
            url: address.reveal().to_owned(),
            reference: address.reference.clone(),
            folder: address.folder.clone(),
            commit: address.commit.clone(),
            keep_git_dir: options.keep_git_dir,
            submodules: address.submodules,
            agent: agent.as_ref().map(|agent| agent.path().to_owned()),
        };
        let scratch = self.layers.scratch_path();
        let head = self.downloads.resolve_git(&source, &scratch).await?;
        let key = key(address, &head, options.keep_git_dir);
        let _alone = self.in_flight.enter(&key).await;
        let known = match options.no_cache {
            true => None,
            false => self.known(&key).await?.filter(|known| known.size <= options.limits.bytes_max),
        };
        let cached = known.is_some();
        let fetched = match known {
            Some(known) => known,
            None => self.fetch_commit(&source, &head, &key, options).await?,
        };
        let Fetched { archive, size, time, lfs_missing } = fetched;
        let branch = head.branch().map(str::to_owned);
        Ok(Repository { commit: head.commit, branch, time, archive, size, lfs_missing, cached })
    }

    fn agent(&self, agents: Option<&Arc<dyn SshAgents>>) -> Result<Option<AgentSocket>, GitError> {
        let Some(agents) = agents.filter(|agents| agents.has(AGENT)) else { return Ok(None) };
        let failed = |source| GitError::Io { doing: "open a socket for the ssh agent", source };
        let folder = self.layers.begin_folder();
        let folder = folder.map_err(|error| failed(std::io::Error::other(error)))?;
        let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
        let owner = FileOwner { uid: Some(uid.as_raw()), gid: Some(gid.as_raw()), mode: None };
        AgentSocket::open(folder, owner, Arc::clone(agents), AGENT).map(Some).map_err(failed)
    }

    async fn fetch_commit(
        &self,
        source: &GitSource,
        head: &GitHead,
        key: &Digest,
        options: RepositoryOptions,
    ) -> Result<Fetched, GitError> {
        let (started, scratch) = (Instant::now(), self.layers.scratch_path());
        let fetching =
            self.downloads.fetch_git(source, head, &self.blobs, &scratch, options.limits);
        let remote::GitFetched { digest, size, time, submodules, lfs_missing } = fetching.await?;
        let fetched = Fetched { archive: digest, size, time, lfs_missing };
        let may_change = fetched.lfs_missing.as_ref().is_some_and(|missing| missing.may_change);
        // Of further repositories it was not asked who may have them, and what is missing now may
        // be there later.
        if submodules == 0 && !may_change {
            let value = serde_json::to_string(&fetched).expect("plain structs serialize");
            let blobs = vec![fetched.archive.clone()];
            let entry = CacheEntry { value, blobs, cost: milliseconds(started.elapsed()) };
            self.cache.put(key, &entry).await.map_err(remote::DownloadError::Store)?;
        }
        Ok(fetched)
    }

    /// What was fetched before, if the store still has it whole.
    async fn known(&self, key: &Digest) -> Result<Option<Fetched>, GitError> {
        let entry = self.cache.get(key).await.map_err(remote::DownloadError::Store)?;
        let Some(entry) = entry else { return Ok(None) };
        let Ok(fetched) = serde_json::from_str::<Fetched>(&entry.value) else { return Ok(None) };
        let size = self.blobs.stat(&fetched.archive).await.map_err(remote::DownloadError::Store)?;
        Ok(Some(fetched).filter(|fetched| size == Some(fetched.size)))
    }
}

fn key(address: &GitAddress, head: &GitHead, keep_git_dir: bool) -> Digest {
    let mut key = KeyHasher::new("repository");
    key.text("address", &address.to_string());
    key.text("commit, with what Git LFS has", &head.commit);
    key.number("keep git dir", keep_git_dir.into());
    key.number("submodules", address.submodules.into());
    key.finish()
}
