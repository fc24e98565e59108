//! Where a context comes from: an upload, a git repository, an archive at an address.

use std::path::PathBuf;

use builder::{Address, GitAddress, GitError, GitLimits, RecordedRepository, RepositoryOptions};
use oci::Digest;
use remote::Download;
use tokio_util::sync::CancellationToken;

use crate::execute::{Engine, Failure, RunEvents, blocking, open_source, unpack_failure};
use crate::unpack::{UnpackLimits, Unpacked, unpack};

/// Where the files of a context are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContextSource {
    /// An uploaded archive, by the digest of its blob.
    Upload(Digest),
    Repository(GitAddress),
    /// An archive.
    Address(Address),
}

/// A context that is in its folder.
#[derive(Default)]
pub(crate) struct Loaded {
    pub(crate) used: Unpacked,
    pub(crate) repository: Option<LoadedRepository>,
}

pub(crate) struct LoadedRepository {
    pub(crate) record: RecordedRepository,
    /// When the commit was made, in seconds since 1970.
    pub(crate) time: i64,
}

/// Brings the contexts of one run.
pub(crate) struct ContextLoader<'a> {
    pub(crate) engine: &'a Engine,
    /// Fetch whatever is known of it.
    pub(crate) no_cache: bool,
    pub(crate) events: &'a dyn RunEvents,
    pub(crate) stop: &'a CancellationToken,
}

impl ContextLoader<'_> {
    /// Unpacks a context into an existing empty folder.
    pub(crate) async fn load(
        &self,
        source: &ContextSource,
        folder: PathBuf,
        limits: UnpackLimits,
    ) -> Result<Loaded, Failure> {
        let (blob, repository) = match source {
            ContextSource::Upload(blob) => (blob.clone(), None),
            ContextSource::Repository(address) => {
                let (archive, repository) = self.fetch_repository(address, limits).await?;
                (archive, Some(repository))
            }
            ContextSource::Address(address) => (self.fetch_archive(address).await?, None),
        };
        let reader = open_source(self.engine, &blob).await?;
        let stop = self.stop.clone();
        let unpacked = blocking(move || unpack(reader, &folder, limits, &stop)).await?;
        let used = unpacked.map_err(|error| unpack_failure(error, self.engine.unpack_limits))?;
        Ok(Loaded { used, repository })
    }

    async fn fetch_repository(
        &self,
        address: &GitAddress,
        limits: UnpackLimits,
    ) -> Result<(Digest, LoadedRepository), Failure> {
        let UnpackLimits { bytes_max, entries_max } = limits;
        let options = RepositoryOptions {
            keep_git_dir: address.keep_git_dir.unwrap_or(true),
            no_cache: self.no_cache,
            limits: GitLimits { bytes_max, entries_max },
        };
        let fetched = self.engine.builder.fetch_repository(address, options).await;
        let fetched = fetched.map_err(|error| match error {
            GitError::Canceled => Failure::Canceled,
            error if error.is_users() => Failure::user(&error, error.hint()),
            error => Failure::ours(&error),
        })?;
        let commit = &fetched.commit;
        self.events.message(&format!("Fetched `{address}`: commit {commit}")).await;
        if let Some(text) = fetched.warning(address) {
            self.events.warning(&text).await;
        }
        let record = RecordedRepository {
            address: address.to_string(),
            commit: fetched.commit,
            branch: fetched.branch,
        };
        Ok((fetched.archive, LoadedRepository { record, time: fetched.time }))
    }

    async fn fetch_archive(&self, address: &Address) -> Result<Digest, Failure> {
        let download = Download { address: address.reveal(), known: None, expected: None };
        let builder = &self.engine.builder;
        let fetched = builder.downloads.fetch(&download, &*builder.blobs, &|_| ()).await;
        let fetched = fetched.map_err(|error| match error.is_users() {
            true => Failure::user(&error, error.hint()),
            false => Failure::ours(&error),
        })?;
        let Some(fetched) = fetched else { unreachable!("only what is known can be unchanged") };
        self.events.message(&format!("Fetched `{address}`: {} bytes", fetched.size)).await;
        Ok(fetched.digest)
    }
}
