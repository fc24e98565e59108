//! Git repositories: a commit's files as one tar archive in the store.
//!
//! `gix` speaks the protocol; what it may reach is not its to decide: its requests go through
//! [`http::GitHttp`] or a [`stream`], under the rules of [`crate::Downloads`]. A repository is
//! somebody's upload. No program but [`ssh`] is started for it, no hook or filter is executed, no
//! settings of this machine are read, nobody is asked for a password. Its files become entries
//! of the archive without ever being files here, so its links lead nowhere.
//!
//! The repository itself is kept in a folder that is gone when the fetch is.

mod archive;
mod attributes;
mod http;
mod lfs;
mod place;
mod ssh;
mod stream;
mod submodules;

use std::fmt;
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gix::remote::fetch::{Shallow, Tags};
use gix::{ObjectId, Repository};
use gix_transport::client::blocking_io::Transport;
use gix_transport::client::blocking_io::http::Transport as HttpTransport;
use oci::Digest;
use reqwest::Response;
use serde::{Deserialize, Serialize};
use store::BlobStore;
use tokio_util::sync::CancellationToken;

use crate::client::{RETRY_DELAY, RETRY_DELAY_MAX};
use crate::download::{DownloadError, Downloads, Target, retry_after};
use archive::Archive;
use http::GitHttp;
use place::Place;
pub use ssh::{HostKey, ssh_program};

/// An object of a repository is at most this large when it is unpacked, in bytes: it is in
/// memory as a whole.
const OBJECT_SIZE_MAX: u64 = 512 << 20;

/// What is wanted of a repository.
#[derive(Clone)]
pub struct GitSource {
    /// `https://`, `http://` with the user and password that may be in it, `git://`, `ssh://` or
    /// `git@HOST:PATH`.
    pub url: String,
    /// A branch, a tag, a commit or a `pull/N/head`; none: what the server calls `HEAD`.
    pub reference: Option<String>,
    /// The folder that stands for the whole.
    pub folder: Option<String>,
    /// What the commit must be, or begin with.
    pub commit: Option<String>,
    pub keep_git_dir: bool,
    pub submodules: bool,
    /// The socket of the ssh agent that proves who asks.
    pub agent: Option<PathBuf>,
}

impl fmt::Debug for GitSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GitSource").field("reference", &self.reference).finish_non_exhaustive()
    }
}

/// How much a repository's files may come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GitLimits {
    pub bytes_max: u64,
    pub entries_max: usize,
}

/// What a server says of a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitHead {
    /// 40 hexadecimal digits.
    pub commit: String,
    /// The object that the reference names: an annotated tag has one of its own.
    object: String,
    /// Its whole name, such as `refs/heads/main`.
    name: Option<String>,
}

impl GitHead {
    /// The branch, if it is one.
    pub fn branch(&self) -> Option<&str> {
        self.name.as_deref()?.strip_prefix("refs/heads/")
    }
}

/// The files of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitFetched {
    /// A tar archive.
    pub digest: Digest,
    pub size: u64,
    /// When the commit was made, in seconds since 1970.
    pub time: i64,
    /// Repositories that came along.
    pub submodules: usize,
    /// Why files are only pointers to what Git LFS has; nothing if all are here.
    pub lfs_missing: Option<LfsMissing>,
}

/// Why files are only pointers to what Git LFS has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LfsMissing {
    /// The first repository that has such files, without credentials.
    pub address: String,
    /// The first reason.
    pub reason: String,
    /// Whether the same commit may have more of them later.
    pub may_change: bool,
}

/// Why a repository was not fetched. `Display` is the user's sentence; it shows no credentials.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    #[error(transparent)]
    Download(#[from] DownloadError),
    #[error("`{address}` asks for a user and a password, or a token")]
    Unauthorized { address: String },
    #[error("`{address}` refuses the user and password, or the token")]
    WrongCredentials { address: String },
    #[error("`{address}` is reached over SSH, and there is no ssh agent for it")]
    NoSshAgent { address: String },
    #[error("`{address}` is reached over SSH, and the server's machine has no program `ssh`")]
    NoSsh { address: String },
    #[error("the host key of `{}` {reason}", host.name())]
    HostKey { host: HostKey, reason: &'static str },
    #[error("`{address}` takes none of the keys that the ssh agent has")]
    SshRefused { address: String },
    #[error("`{address}` has no branch, tag or commit `{reference}`")]
    NoReference { address: String, reference: String },
    #[error("`{address}` has no commit yet")]
    Empty { address: String },
    #[error("`{address}` has no folder `{folder}`: {reason}")]
    NoFolder { address: String, folder: String, reason: &'static str },
    #[error("`{address}` is another commit than expected: {actual}, not {expected}")]
    WrongCommit { address: String, expected: String, actual: String },
    #[error("`{address}` could not be fetched: {reason}")]
    Protocol { address: String, reason: String },
    #[error("submodule `{path}` of `{address}` cannot be used: {reason}")]
    Submodule { address: String, path: String, reason: &'static str },
    #[error("`{address}` has a file with a name that cannot be used: `{path}`")]
    BadName { address: String, path: String },
    #[error("`{path}` of `{address}` is larger than {OBJECT_SIZE_MAX} bytes")]
    ObjectTooLarge { address: String, path: String },
    #[error(
        "`{path}` of `{address}` is damaged: Git LFS has other bytes than those that are meant"
    )]
    DamagedObject { address: String, path: String },
    #[error("`{path}` of `{address}` could not be fetched from Git LFS: {error}")]
    Lfs { address: String, path: String, error: Box<DownloadError> },
    #[error("`{address}` has more than {max} bytes")]
    TooLarge { address: String, max: u64 },
    #[error("`{address}` has more than {max} files and folders")]
    TooManyEntries { address: String, max: usize },
    #[error("the fetch was canceled")]
    Canceled,
    #[error("could not {doing}")]
    Io {
        doing: &'static str,
        #[source]
        source: std::io::Error,
    },
}

impl GitError {
    /// What the user can do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Download(error) => error.hint(),
            // Other bounds are not those of files by address.
            Self::Lfs { error, .. } if matches!(**error, DownloadError::Forbidden { .. }) => {
                error.hint()
            }
            Self::Lfs { error, .. }
                if matches!(**error, DownloadError::Status { status: 401 | 403, .. }) =>
            {
                Some(
                    "the token may lack the right to read Git LFS, or what its owner may fetch is \
                     used up"
                        .to_owned(),
                )
            }
            Self::Unauthorized { .. } => {
                Some("put a token into the address: `https://TOKEN@HOST/PATH.git`".to_owned())
            }
            Self::NoSshAgent { .. } => Some(
                "give one to `refit build` with `--ssh default`, to a `build` step with \
                 `--ssh default=KEY`; elsewhere use the repository's `https://` address, with a \
                 token if it is private"
                    .to_owned(),
            ),
            Self::NoSsh { .. } => {
                Some("an administrator can install it: the package `openssh-client`".to_owned())
            }
            Self::HostKey { host, .. } => Some(host.hint()),
            Self::NoReference { reference, .. }
                if reference.len() < 40 && reference.bytes().all(|b| b.is_ascii_hexdigit()) =>
            {
                Some("a commit is named by all of its 40 digits".to_owned())
            }
            Self::TooLarge { .. } | Self::TooManyEntries { .. } => Some(
                "its bounds are `limits.context_size_max` and `limits.context_entries_max`"
                    .to_owned(),
            ),
            _ => None,
        }
    }

    /// Whether the cause is the user's input, or what it names.
    pub fn is_users(&self) -> bool {
        match self {
            Self::Download(error) => error.is_users(),
            Self::Lfs { error, .. } => error.is_users(),
            Self::Io { .. } | Self::NoSsh { .. } | Self::Canceled => false,
            _ => true,
        }
    }

    fn is_transient(&self) -> bool {
        match self {
            Self::Download(error) => error.is_transient(),
            Self::Lfs { error, .. } => error.is_transient(),
            _ => false,
        }
    }
}

type Result<T> = std::result::Result<T, GitError>;

impl Downloads {
    /// Asks a server which commit a reference stands for. `scratch` is a folder that this may
    /// make; it is gone afterwards.
    pub async fn resolve_git(&self, source: &GitSource, scratch: &Path) -> Result<GitHead> {
        let head = self
            .git(source, scratch, None, |connection, source, folder| {
                let repository = open_repository(folder)?;
                resolve(connection, &repository, source)
            })
            .await?;
        match &source.commit {
            Some(expected) if !head.commit.starts_with(expected.as_str()) => {
                Err(GitError::WrongCommit {
                    address: Place::parse(&source.url)?.to_string(),
                    expected: expected.clone(),
                    actual: head.commit,
                })
            }
            _ => Ok(head),
        }
    }

    /// Fetches the files of a commit into the store. `scratch` is a folder that this may make;
    /// it is gone afterwards.
    pub async fn fetch_git(
        &self,
        source: &GitSource,
        head: &GitHead,
        blobs: &Arc<dyn BlobStore>,
        scratch: &Path,
        limits: GitLimits,
    ) -> Result<GitFetched> {
        let (head, blobs) = (head.clone(), Arc::clone(blobs));
        let max = Some(limits.bytes_max);
        self.git(source, scratch, max, move |connection, source, folder| {
            let repository = open_repository(folder)?;
            fetch(connection, &repository, &head)?;
            let commit = find_commit(connection, &repository, &head.commit)?;
            let archive = Archive::begin(connection, &*blobs, limits, commit.time)?;
            archive.write(connection, &repository, &commit, source, &head, folder)
        })
        .await
    }

    /// Waits until no repository is being fetched: a fetch that was dropped goes on until it
    /// notices, and then removes its folder.
    pub async fn idle(&self) {
        // Only of what waits here: repositories are fetched as before.
        self.git_work.close();
        self.git_work.wait().await;
    }

    /// Runs blocking work with a connection to a repository, and again if the network failed.
    async fn git<T: Send + 'static>(
        &self,
        source: &GitSource,
        scratch: &Path,
        bytes_max: Option<u64>,
        work: impl Fn(&Connection, &GitSource, &Path) -> Result<T> + Send + Sync + 'static,
    ) -> Result<T> {
        let place = Place::parse(&source.url)?;
        let address = place.to_string();
        let stop = CancellationToken::new();
        let _stop_at_end = stop.clone().drop_guard();
        let work = Arc::new(work);
        let attempts = async {
            let mut delay = RETRY_DELAY;
            for attempt in 1.. {
                let connection = Connection {
                    downloads: self.clone(),
                    place: place.clone(),
                    moved: Arc::default(),
                    agent: source.agent.clone(),
                    bytes_max: bytes_max.unwrap_or(LISTING_SIZE_MAX),
                    runtime: tokio::runtime::Handle::current(),
                    stop: stop.clone(),
                    pause: Arc::default(),
                };
                let (work, source) = (Arc::clone(&work), source.clone());
                let pause = Arc::clone(&connection.pause);
                let folder = Scratch(scratch.to_owned());
                let working =
                    self.git_work.spawn_blocking(move || work(&connection, &source, &folder.0));
                let error = match working.await {
                    Ok(Ok(done)) => return Ok(done),
                    Ok(Err(error)) => error,
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    Err(_) => return Err(GitError::Canceled),
                };
                if attempt >= self.settings.attempts || !error.is_transient() {
                    return Err(error);
                }
                tracing::debug!(%error, attempt, "trying again");
                let pause = pause.lock().unwrap_or_else(PoisonError::into_inner).take();
                tokio::time::sleep(pause.map_or(delay, |pause| pause.min(PAUSE_MAX))).await;
                delay = (delay * 2).min(RETRY_DELAY_MAX);
            }
            unreachable!("the loop ends by returning")
        };
        let timeout: Duration = self.settings.timeout;
        tokio::time::timeout(timeout, attempts)
            .await
            .unwrap_or_else(|_| Err(DownloadError::TimedOut { address, timeout }.into()))
    }
}

/// A server that asks to be left alone is, for at most this long.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// A list of references has at most this many bytes.
const LISTING_SIZE_MAX: u64 = 256 << 20;

/// A folder that goes when it is not needed any more.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "temporary folder not removed");
        }
    }
}

/// What went wrong under `gix`, which says less of it.
#[derive(Clone, Default)]
struct Failure(Arc<Mutex<Option<GitError>>>);

impl Failure {
    /// Keeps the first one for the end of the fetch.
    fn keep(&self, error: GitError) -> io::Error {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        broken()
    }

    fn take(&self) -> Option<GitError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn broken() -> io::Error {
    io::Error::other("the request failed")
}

/// How a repository is reached.
#[derive(Clone)]
struct Connection {
    downloads: Downloads,
    place: Place,
    /// Where that is over HTTP after redirects, as soon as it was asked.
    moved: Arc<Mutex<Option<Target>>>,
    /// The socket of an ssh agent.
    agent: Option<PathBuf>,
    /// What one answer may have.
    bytes_max: u64,
    runtime: tokio::runtime::Handle,
    stop: CancellationToken,
    /// For how long a server asked to be left alone.
    pause: Arc<Mutex<Option<Duration>>>,
}

impl Connection {
    fn address(&self) -> String {
        self.place.to_string()
    }

    /// Where it is over HTTP, after redirects.
    fn http_target(&self) -> Option<Target> {
        let Place::Http(target) = &self.place else { return None };
        let moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        Some(moved.as_ref().unwrap_or(target).clone())
    }

    /// Remembers for how long a server asks to be left alone.
    fn heed(&self, response: &Response) {
        *self.pause.lock().unwrap_or_else(PoisonError::into_inner) = retry_after(response);
    }

    /// What an answer comes to that is none.
    fn status_error(&self, target: &Target, response: &Response) -> DownloadError {
        self.heed(response);
        DownloadError::Status { address: target.to_string(), status: response.status().as_u16() }
    }

    /// Waits for what a canceled fetch does not wait for.
    fn wait<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.runtime.block_on(async {
            tokio::select! {
                done = work => done,
                () = self.stop.cancelled() => Err(GitError::Canceled),
            }
        })
    }

    fn transport(&self, url: gix::Url, failure: &Failure) -> Result<Box<dyn Transport + Send>> {
        match &self.place {
            Place::Http(target) => {
                let http = GitHttp::new(self, target, failure);
                let version = gix::protocol::transport::Protocol::V2;
                Ok(Box::new(HttpTransport::new_http(http, url, version, false)))
            }
            Place::Git(server) => stream::connect(self, server, failure),
            Place::Ssh { user, server } => stream::connect_by_ssh(self, user, server, failure),
        }
    }

    /// Asks the server for references, or for objects as `shallow` says, by refspecs.
    fn ask<T>(
        &self,
        repository: &Repository,
        refspecs: &[String],
        work: impl FnOnce(
            gix::remote::Connection<'_, '_, '_, Box<dyn Transport + Send>>,
            &AtomicBool,
        ) -> gix::Result<T>,
    ) -> Result<T> {
        let failed = |error: gix::Error| self.protocol(&error);
        let failure = Failure::default();
        // Without credentials: those are the transport's.
        let url = gix::url::parse(self.address().as_str()).map_err(failed)?;
        let remote = repository.remote_at_without_url_rewrite(url.clone()).map_err(failed)?;
        let remote = remote.with_fetch_tags(Tags::None);
        let direction = gix::remote::Direction::Fetch;
        let remote =
            remote.with_refspecs(refspecs.iter().map(String::as_str), direction).map_err(failed)?;
        let transport = self.transport(url, &failure)?;
        // Nobody is asked, and no helper of this machine.
        let connection =
            remote.to_connection_with_transport(transport).with_credentials(|_| Ok(None));
        let interrupt = Interrupt::after(&self.stop, &self.runtime);
        let done = work(connection, &interrupt.flag);
        match (done, failure.take()) {
            (Ok(done), _) => Ok(done),
            (Err(_), _) if self.stop.is_cancelled() => Err(GitError::Canceled),
            // What went wrong in a request says more than what came of it.
            (Err(_), Some(failure)) => Err(failure),
            (Err(error), None) => Err(failed(error)),
        }
    }

    fn protocol(&self, error: &gix::Error) -> GitError {
        let mut reason = crate::client::chain(error);
        reason.retain(|c| !c.is_control());
        GitError::Protocol { address: self.address(), reason }
    }
}

/// A cancel token as `gix` looks at it.
struct Interrupt {
    flag: Arc<AtomicBool>,
    watch: tokio::task::JoinHandle<()>,
}

impl Interrupt {
    fn after(stop: &CancellationToken, runtime: &tokio::runtime::Handle) -> Self {
        let flag = Arc::new(AtomicBool::new(false));
        let (stop, set) = (stop.clone(), Arc::clone(&flag));
        let watch = runtime.spawn(async move {
            stop.cancelled().await;
            set.store(true, Ordering::Relaxed);
        });
        Self { flag, watch }
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// A name of a repository's choice as it is shown: on one line, and no longer than it takes.
fn shown(name: &impl fmt::Display) -> String {
    let name = name.to_string();
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut shown: String = name.chars().take(SHOWN_MAX).map(plain).collect();
    if name.chars().nth(SHOWN_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// Characters of a name.
const SHOWN_MAX: usize = 256;

/// An empty repository that knows no settings but its own.
fn open_repository(folder: &Path) -> Result<Repository> {
    let options = gix::open::Options::isolated()
        .config_overrides([format!("gitoxide.objects.allocLimit={OBJECT_SIZE_MAX}")]);
    let kind = gix::create::Kind::Bare;
    let create = gix::create::Options::default();
    let opened = gix::ThreadSafeRepository::init_opts(folder, kind, create, options);
    let opened = opened.map_err(|error| GitError::Io {
        doing: "make a temporary git repository",
        source: std::io::Error::other(crate::client::chain(&error)),
    })?;
    Ok(opened.to_thread_local())
}

fn resolve(
    connection: &Connection,
    repository: &Repository,
    source: &GitSource,
) -> Result<GitHead> {
    use gix::protocol::handshake::Ref;
    let wanted = source.reference.as_deref();
    let commit = wanted.filter(|text| is_commit(text)).map(str::to_ascii_lowercase);
    let address = connection.address();
    let missing = || match wanted {
        Some(reference) => {
            GitError::NoReference { address: address.clone(), reference: reference.to_owned() }
        }
        None => GitError::Empty { address: address.clone() },
    };
    if wanted.is_some_and(|text| gix::validate::reference::name_partial(text.into()).is_err()) {
        return Err(missing());
    }
    let mut refspecs = vec!["HEAD".to_owned()];
    refspecs.extend(wanted.filter(|_| commit.is_none()).map(str::to_owned));
    let (listed, _) = connection.ask(repository, &refspecs, |connection, _| {
        connection.ref_map(gix::progress::Discard, gix::remote::ref_map::Options::default())
    })?;
    if let Some(commit) = commit {
        return Ok(GitHead { object: commit.clone(), commit, name: None });
    }
    // Git's own order.
    let names: Vec<String> = match wanted {
        None => vec!["HEAD".to_owned()],
        Some(name) => {
            let folders = ["", "refs/", "refs/tags/", "refs/heads/"];
            folders.iter().map(|folder| format!("{folder}{name}")).collect()
        }
    };
    let found = names.iter().find_map(|name| {
        listed.remote_refs.iter().find_map(|listed| {
            let (full_name, object, tag, leads_to) = match listed {
                Ref::Direct { full_ref_name, object } => (full_ref_name, object, None, None),
                Ref::Peeled { full_ref_name, tag, object } => {
                    (full_ref_name, object, Some(tag), None)
                }
                Ref::Symbolic { full_ref_name, target, tag, object } => {
                    (full_ref_name, object, tag.as_ref(), Some(target))
                }
                Ref::Unborn { .. } => return None,
            };
            let is_it = *full_name == name.as_str();
            is_it.then(|| GitHead {
                commit: object.to_string(),
                object: tag.unwrap_or(object).to_string(),
                name: Some(leads_to.unwrap_or(full_name).to_string()),
            })
        })
    });
    found.ok_or_else(missing)
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Fetches one commit without its history; if the server does not give that, all it has.
fn fetch(connection: &Connection, repository: &Repository, head: &GitHead) -> Result<()> {
    let receive = |refspec: String, shallow: Shallow| {
        connection.ask(repository, &[refspec], |connection, interrupt| {
            let options = gix::remote::ref_map::Options::default();
            let prepared = connection.prepare_fetch(gix::progress::Discard, options)?;
            prepared.with_shallow(shallow).receive(gix::progress::Discard, interrupt)
        })
    };
    let one = Shallow::DepthAtRemote(NonZeroU32::MIN);
    match receive(format!("+{}:refs/refit/wanted", head.object), one) {
        Ok(_) => return Ok(()),
        Err(error @ GitError::Protocol { .. }) => {
            tracing::debug!(%error, "fetching all of the repository");
        }
        Err(error) => return Err(error),
    }
    receive("+refs/*:refs/all/*".to_owned(), Shallow::NoChange).map(drop)
}

/// A commit that was fetched.
struct Commit {
    id: ObjectId,
    tree: ObjectId,
    /// In seconds since 1970.
    time: i64,
}

/// Finds a commit by its id, or by that of a tag.
fn find_commit(connection: &Connection, repository: &Repository, id: &str) -> Result<Commit> {
    let missing =
        || GitError::NoReference { address: connection.address(), reference: id.to_owned() };
    let id = ObjectId::from_hex(id.as_bytes()).map_err(|_| missing())?;
    let object = repository.find_object(id).map_err(|_| missing())?;
    let commit = object.peel_to_commit().map_err(|_| missing())?;
    let failed = |error: gix::Error| connection.protocol(&error);
    Ok(Commit {
        id: commit.id,
        tree: commit.tree_id().map_err(failed)?.detach(),
        time: commit.time().map_err(failed)?.seconds,
    })
}
