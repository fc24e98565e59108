//! Where a context comes from: an upload, a git repository, an archive at an address, an artifact.

use std::path::PathBuf;
use std::sync::Arc;

use builder::{
    Address, ContextFiles, ContextLimits, GitAddress, GitError, GitLimits, LazyFolder, ListError,
    ListedFiles, RecordedRepository, RepositoryOptions, SshAgents,
};
use oci::{Digest, Reference};
use remote::Download;
use tokio_util::sync::CancellationToken;

use crate::artifact;
use crate::execute::{Engine, Failure, RunEvents, blocking, open_source, unpack_failure};
use crate::unpack::{Unpacked, unpack};

/// Where the files of a context are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContextSource {
    /// An uploaded archive, by the digest of its blob.
    Upload(Digest),
    /// An uploaded list, by the digest of its blob, and the packs that hold its files.
    Listed {
        list: Digest,
        packs: Vec<Digest>,
    },
    Repository(GitAddress),
    /// An archive.
    Address(Address),
    /// An artifact of a registry.
    Artifact(Reference),
}

impl ContextSource {
    /// Of what was uploaded.
    pub(crate) fn digest(&self) -> Option<Digest> {
        match self {
            Self::Upload(digest) | Self::Listed { list: digest, .. } => Some(digest.clone()),
            Self::Repository(_) | Self::Address(_) | Self::Artifact(_) => None,
        }
    }
}

/// A context that the builder can read.
pub(crate) struct Loaded {
    pub(crate) files: ContextFiles,
    /// What came out of an archive.
    unpacked: Unpacked,
    pub(crate) repository: Option<LoadedRepository>,
}

impl Loaded {
    /// A context without files, in an empty folder.
    pub(crate) fn empty(folder: PathBuf) -> Self {
        Self::unpacked(folder, Unpacked::default())
    }

    /// What was brought into a folder.
    pub(crate) fn unpacked(folder: PathBuf, unpacked: Unpacked) -> Self {
        Self { files: ContextFiles::Folder(folder), unpacked, repository: None }
    }

    /// How much the context holds. A list is read for it.
    pub(crate) async fn used(&self, limits: ContextLimits) -> Result<Unpacked, Failure> {
        let ContextFiles::Listed { files, .. } = &self.files else { return Ok(self.unpacked) };
        let files = Arc::clone(files);
        let size = blocking(move || files.size()).await?;
        let (bytes, entries) = size.map_err(|error| list_failure(error, limits))?;
        Ok(Unpacked { bytes, entries })
    }
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
    /// Commands may ask git about it, also if it is a folder of a repository.
    pub(crate) is_workspace: bool,
    pub(crate) ssh_agents: Option<&'a Arc<dyn SshAgents>>,
    pub(crate) events: &'a dyn RunEvents,
    pub(crate) stop: &'a CancellationToken,
}

impl ContextLoader<'_> {
    /// Brings a context where the builder can read it; `folder` exists and is empty.
    pub(crate) async fn load(
        &self,
        source: &ContextSource,
        folder: PathBuf,
        limits: ContextLimits,
    ) -> Result<Loaded, Failure> {
        let (blob, repository) = match source {
            ContextSource::Upload(blob) => (blob.clone(), None),
            ContextSource::Listed { list, packs } => {
                let blobs = Arc::clone(self.engine.catalog.blobs());
                let files = ListedFiles::new(blobs, list.clone(), packs.clone(), limits);
                let folder = Arc::new(LazyFolder::new(folder));
                let files = ContextFiles::Listed { files: Arc::new(files), folder };
                return Ok(Loaded { files, unpacked: Unpacked::default(), repository: None });
            }
            ContextSource::Repository(address) => {
                let (archive, repository) = self.fetch_repository(address, limits).await?;
                (archive, Some(repository))
            }
            ContextSource::Address(address) => (self.fetch_archive(address).await?, None),
            ContextSource::Artifact(reference) => {
                return artifact::load(self, reference, folder, limits).await;
            }
        };
        let reader = open_source(self.engine, &blob).await?;
        let (stop, root) = (self.stop.clone(), folder.clone());
        let unpacked = blocking(move || unpack(reader, &root, limits, &stop)).await?;
        let unpacked =
            unpacked.map_err(|error| unpack_failure(error, self.engine.context_limits))?;
        Ok(Loaded { files: ContextFiles::Folder(folder), unpacked, repository })
    }

    async fn fetch_repository(
        &self,
        address: &GitAddress,
        limits: ContextLimits,
    ) -> Result<(Digest, LoadedRepository), Failure> {
        let ContextLimits { bytes_max, entries_max } = limits;
        // An image of a folder would be another one whenever something changes elsewhere.
        let is_for_git = self.is_workspace || address.folder.is_none();
        let options = RepositoryOptions {
            keep_git_dir: address.keep_git_dir.unwrap_or(true) && is_for_git,
            no_cache: self.no_cache,
            limits: GitLimits { bytes_max, entries_max },
        };
        let fetched = self.engine.builder.fetch_repository(address, options, self.ssh_agents).await;
        let fetched = fetched.map_err(|error| match error {
            GitError::Canceled => Failure::Canceled,
            error if error.is_users() => Failure::user(&error, error.hint()),
            error => Failure::ours(&error),
        })?;
        let commit = &fetched.commit;
        self.events.message(&format!("Fetched `{address}`: commit {commit}")).await;
        if let Some(text) = fetched.warning() {
            self.events.warning(&text).await;
        }
        let record = RecordedRepository {
            address: address.to_string(),
            commit: fetched.commit,
            branch: fetched.branch.or_else(|| address.branch.clone()),
        };
        Ok((fetched.archive, LoadedRepository { record, time: fetched.time }))
    }

    async fn fetch_archive(&self, address: &Address) -> Result<Digest, Failure> {
        if let Some(text) = archive_warning(address) {
            self.events.warning(&text).await;
        }
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

/// What is said of an address that is hardly that of an archive (contexts.md section 1).
fn archive_warning(address: &Address) -> Option<String> {
    let text = || {
        format!(
            "`{address}` is fetched as an archive: as a repository it would have to end in `.git`"
        )
    };
    address.is_github_repository().then(text)
}

/// `limits` are those of all contexts of a build together.
pub(crate) fn list_failure(mut error: ListError, limits: ContextLimits) -> Failure {
    match &mut error {
        ListError::TooLarge { max } => *max = limits.bytes_max,
        ListError::TooManyEntries { max } => *max = limits.entries_max,
        _ => (),
    }
    match error.is_users() {
        true => Failure::user(&error, error.hint()),
        false => Failure::ours(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i3_a_repository_at_github_that_is_named_as_its_page_is_warned_of() {
        for (address, warned) in [
            ("https://github.com/u/r", true),
            ("https://token@GitHub.com/u/r/?x=y#main", true),
            ("https://github.com/u/r.git#", false),
            ("https://github.com/u/r/archive/main.tar.gz", false),
            ("https://github.com/u", false),
            ("https://example.com/u/r", false),
            ("https://example.com/github.com/r", false),
        ] {
            let warning = archive_warning(&Address::new(address).unwrap());
            assert_eq!(warning.is_some(), warned, "{address}");
            assert!(!warning.unwrap_or_default().contains("token"), "{address}");
        }
    }
}
