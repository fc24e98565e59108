//! What `ADD` fetches: from an address to bytes in the store.
//!
//! A file that was fetched before is asked for on condition, so that an unchanged one costs a
//! request and nothing else. Instructions know it by its bytes, wherever they came from.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use dockerfile::{Address, CopyOperation, GitAddress, SourceAddress, Span};
use oci::Digest;
use remote::{Download, GitLimits, Validators};
use serde::{Deserialize, Serialize};
use store::{BlobStore, CacheEntry};

use crate::archive::{self, ArchiveLimits};
use crate::build::{Build, blocking, milliseconds, tell_progress};
use crate::cache::KeyHasher;
use crate::copy::{ArchiveEntry, CopyError};
use crate::error::BuildError;
use crate::event::StepNumber;
use crate::layers::Slice;
use crate::name::text_of;
use crate::record::RecordedDownload;
use crate::repository::{Repository, RepositoryOptions};
use crate::tree::{Node, NodeKind, Tree, file_name, parent};

/// What a cache entry says of a file.
#[derive(Clone, Serialize, Deserialize)]
struct Fetched {
    digest: Digest,
    size: u64,
    etag: Option<String>,
    last_modified: Option<String>,
    /// Seconds since 1970.
    modified: Option<i64>,
}

/// Paths of fetched files begin so, as none of a tree does.
const MARK: char = '\0';

/// Where a fetched file, or the root of a repository, is in [`Downloads`].
pub(crate) fn download_path(source: usize, address: &SourceAddress) -> String {
    match address {
        SourceAddress::File(address) => {
            format!("{MARK}{source}/{}", text_of(address.file_name().as_bytes()))
        }
        SourceAddress::Repository(_) => format!("{MARK}{source}"),
    }
}

/// Whether a path is that of a fetched file.
pub(crate) fn is_download(path: &str) -> bool {
    path.starts_with(MARK)
}

/// A tree, and what an instruction fetched.
pub(crate) struct Downloads {
    nodes: BTreeMap<String, Node>,
    /// Of the folders of repositories.
    names: HashMap<String, Vec<String>>,
    /// Where the bytes of a repository's files are, and from where on in there.
    unpacked: HashMap<String, (Arc<File>, u64)>,
    rest: Arc<dyn Tree>,
    blobs: Arc<dyn BlobStore>,
    runtime: tokio::runtime::Handle,
}

impl Downloads {
    /// Fetches the addresses of an instruction.
    pub(crate) async fn fetch(
        build: &Build<'_>,
        copy: &CopyOperation,
        rest: Arc<dyn Tree>,
        at: Span,
        place: &Place,
    ) -> Result<Self, BuildError> {
        let mut found = Self {
            nodes: BTreeMap::new(),
            names: HashMap::new(),
            unpacked: HashMap::new(),
            rest,
            blobs: Arc::clone(&build.builder.blobs),
            runtime: tokio::runtime::Handle::current(),
        };
        let addresses = copy.sources.iter().enumerate().filter_map(|(number, source)| {
            let address = source.address.as_ref()?;
            Some((download_path(number, address), address))
        });
        let fetches = addresses.map(async |(path, address)| {
            let fetched = match address {
                SourceAddress::File(address) => {
                    fetch(build, address, copy.checksum.as_ref(), at, place).await?
                }
                SourceAddress::Repository(address) => {
                    fetch_repository(build, address, at, place).await?
                }
            };
            Ok::<_, BuildError>((path, address, fetched))
        });
        for (path, address, fetched) in futures_util::future::try_join_all(fetches).await? {
            let kind = NodeKind::File { size: fetched.size, digest: fetched.digest };
            // A time of the server's would make other bytes of equal files.
            let fixed = build.request.source_date_epoch;
            let mtime = fixed.or(fetched.modified).unwrap_or(0);
            let xattrs = Vec::new();
            let node = Node { kind, mode: 0o600, uid: 0, gid: 0, mtime, xattrs, link: None };
            found.nodes.insert(path.clone(), node);
            if let SourceAddress::Repository(_) = address {
                let spool = build.builder.layers.spool();
                let spool = spool.map_err(|source| BuildError::Io {
                    doing: "make a temporary file".to_owned(),
                    source,
                })?;
                let unpacked;
                (found, unpacked) = blocking(move || {
                    let unpacked = found.unpack(&path, spool, mtime);
                    (found, unpacked)
                })
                .await;
                unpacked.map_err(|error| BuildError::Copy { error, at })?;
            }
        }
        Ok(found)
    }

    /// Puts the files of a repository in the place of their archive. Blocking.
    fn unpack(&mut self, root: &str, mut spool: File, mtime: i64) -> Result<(), CopyError> {
        let entries = archive::unpack(self, root, &mut spool, ArchiveLimits::default())?;
        let spool = Arc::new(spool);
        let (kind, xattrs) = (NodeKind::Directory, Vec::new());
        let folder = Node { kind, mode: 0o755, uid: 0, gid: 0, mtime, xattrs, link: None };
        self.nodes.insert(root.to_owned(), folder);
        for entry in entries {
            // No archive of a repository has hard links.
            let ArchiveEntry::Node { path, node, offset } = entry else { continue };
            let path = format!("{root}/{path}");
            let names = self.names.entry(parent(&path).to_owned()).or_default();
            names.push(file_name(&path).to_owned());
            self.unpacked.insert(path.clone(), (Arc::clone(&spool), offset));
            self.nodes.insert(path, node);
        }
        self.names.values_mut().for_each(|names| names.sort_unstable());
        Ok(())
    }
}

impl Tree for Downloads {
    fn node(&self, path: &str) -> Option<Node> {
        match is_download(path) {
            true => self.nodes.get(path).cloned(),
            false => self.rest.node(path),
        }
    }

    fn children(&self, path: &str) -> Vec<String> {
        match is_download(path) {
            true => self.names.get(path).cloned().unwrap_or_default(),
            false => self.rest.children(path),
        }
    }

    /// Called from blocking threads only.
    fn open(&self, path: &str) -> io::Result<Box<dyn Read + Send>> {
        if !is_download(path) {
            return self.rest.open(path);
        }
        let Some(Node { kind: NodeKind::File { digest, size }, .. }) = self.nodes.get(path) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if let Some((file, offset)) = self.unpacked.get(path) {
            let slice = Slice { file: Arc::clone(file), offset: *offset };
            return Ok(Box::new(slice.take(*size)));
        }
        let opened = self.runtime.block_on(self.blobs.open(digest, 0)).map_err(io::Error::other)?;
        Ok(opened.into_blocking())
    }

    fn failure(&self) -> Option<io::Error> {
        self.rest.failure()
    }
}

/// Where an instruction stands.
pub(crate) struct Place {
    /// Number of the stage.
    pub(crate) stage: usize,
    pub(crate) step: StepNumber,
    /// Fetch it whatever is known of it.
    pub(crate) no_cache: bool,
}

async fn fetch(
    build: &Build<'_>,
    address: &Address,
    expected: Option<&Digest>,
    at: Span,
    place: &Place,
) -> Result<Fetched, BuildError> {
    let key = key(address);
    let _alone = build.builder.in_flight.enter(&key).await;
    let known = match place.no_cache {
        true => None,
        false => cached(build, &key).await?,
    };
    let known = known.filter(|known| {
        expected.is_none_or(|expected| {
            // Only of this digest it is known whether the file has it.
            expected.algorithm() == known.digest.algorithm() && *expected == known.digest
        })
    });
    let fetched = match known {
        // What it must be is here already. Of a server that asks for a password it is for that
        // server to say who may have it.
        Some(known) if expected.is_some() && !has_credentials(address) => known,
        known => ask(build, address, expected, known, &key, at, place).await?,
    };
    build.notes().downloads.push(RecordedDownload {
        stage: place.stage,
        line: at.line,
        address: shown(address),
        digest: fetched.digest.clone(),
        commit: None,
    });
    Ok(fetched)
}

/// The archive of a repository's files.
async fn fetch_repository(
    build: &Build<'_>,
    address: &GitAddress,
    at: Span,
    place: &Place,
) -> Result<Fetched, BuildError> {
    let ArchiveLimits { bytes_max, entries_max } = ArchiveLimits::default();
    let options = RepositoryOptions {
        keep_git_dir: address.keep_git_dir.unwrap_or(false) && address.folder.is_none(),
        no_cache: place.no_cache,
        limits: GitLimits { bytes_max, entries_max },
    };
    let fetched =
        build.builder.fetch_repository(address, options, build.request.ssh_agents.as_ref()).await;
    let repository = fetched.map_err(|error| BuildError::Repository { error, at })?;
    if let Some(text) = repository.warning() {
        build.events.warning(&text).await;
    }
    let Repository { archive: digest, size, time, commit, cached, .. } = repository;
    let mut notes = build.notes();
    if !cached {
        notes.cost.pulled += size;
    }
    notes.downloads.push(RecordedDownload {
        stage: place.stage,
        line: at.line,
        address: address.to_string(),
        digest: digest.clone(),
        commit: Some(commit),
    });
    Ok(Fetched { digest, size, etag: None, last_modified: None, modified: Some(time) })
}

/// Asks the server, and keeps what it says.
async fn ask(
    build: &Build<'_>,
    address: &Address,
    expected: Option<&Digest>,
    known: Option<Fetched>,
    key: &Digest,
    at: Span,
    place: &Place,
) -> Result<Fetched, BuildError> {
    let (started, moved) = (Instant::now(), AtomicU64::new(0));
    let progress = |bytes| {
        moved.fetch_add(bytes, Ordering::Relaxed);
    };
    let validators = known.as_ref().map(|known| Validators {
        etag: known.etag.clone(),
        last_modified: known.last_modified.clone(),
    });
    let download = Download { address: address.reveal(), known: validators.as_ref(), expected };
    let builder = build.builder;
    let fetching = builder.downloads.fetch(&download, &*builder.blobs, &progress);
    let fetched = tell_progress(fetching, build.events, place.step, &moved).await;
    build.notes().cost.pulled += moved.load(Ordering::Relaxed);
    match (fetched.map_err(|error| BuildError::Download { error, at })?, known) {
        (Some(new), _) => {
            let Validators { etag, last_modified } = new.validators;
            let (digest, size, modified) = (new.digest, new.size, new.modified);
            let fetched = Fetched { digest, size, etag, last_modified, modified };
            let value = serde_json::to_string(&fetched).expect("plain structs serialize");
            let (blobs, cost) = (vec![fetched.digest.clone()], milliseconds(started.elapsed()));
            builder.cache.put(key, &CacheEntry { value, blobs, cost }).await?;
            Ok(fetched)
        }
        (None, Some(known)) => Ok(known),
        (None, None) => unreachable!("only what is known can be unchanged"),
    }
}

/// A file that was fetched before, if the store still has it whole.
async fn cached(build: &Build<'_>, key: &Digest) -> Result<Option<Fetched>, BuildError> {
    let Some(entry) = build.builder.cache.get(key).await? else { return Ok(None) };
    let Ok(fetched) = serde_json::from_str::<Fetched>(&entry.value) else { return Ok(None) };
    let size = build.builder.blobs.stat(&fetched.digest).await?;
    Ok(Some(fetched).filter(|fetched| size == Some(fetched.size)))
}

/// By address. Credentials do not count: a digest of them would help to guess them, and the
/// server is asked about what is known.
fn key(address: &Address) -> Digest {
    let mut key = KeyHasher::new("download");
    key.text("address", &address.to_string());
    key.finish()
}

fn has_credentials(address: &Address) -> bool {
    address.to_string() != address.reveal()
}

/// The address without credentials and query, which may be a signature.
fn shown(address: &Address) -> String {
    let text = address.to_string();
    text.split(['?', '#']).next().unwrap_or_default().to_owned()
}

/// A message about the fetched file of a path, with its address.
pub(crate) fn named(path: &str, copy: &CopyOperation) -> Option<String> {
    let number = path.strip_prefix(MARK)?.split('/').next()?.parse::<usize>().ok()?;
    Some(match copy.sources.get(number)?.address.as_ref()? {
        SourceAddress::File(address) => shown(address),
        SourceAddress::Repository(address) => address.to_string(),
    })
}
