//! Files that `ADD` fetches: from an address to bytes in the store.
//!
//! A file that was fetched before is asked for on condition, so that an unchanged one costs a
//! request and nothing else. Instructions know it by its bytes, wherever they came from.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use dockerfile::{Address, CopyOperation, Span};
use oci::Digest;
use remote::{Download, Validators};
use serde::{Deserialize, Serialize};
use store::{BlobStore, CacheEntry};

use crate::build::{Build, milliseconds, tell_progress};
use crate::cache::KeyHasher;
use crate::error::BuildError;
use crate::event::StepNumber;
use crate::name::text_of;
use crate::record::RecordedDownload;
use crate::tree::{Node, NodeKind, Tree};

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

/// Where a fetched file is in [`Downloads`].
pub(crate) fn download_path(source: usize, address: &Address) -> String {
    format!("{MARK}{source}/{}", text_of(address.file_name().as_bytes()))
}

/// Whether a path is that of a fetched file.
pub(crate) fn is_download(path: &str) -> bool {
    path.starts_with(MARK)
}

/// A tree, and the files that an instruction fetched.
pub(crate) struct Downloads {
    files: BTreeMap<String, Node>,
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
        let addresses = copy.sources.iter().enumerate().filter_map(|(number, source)| {
            let address = source.address.as_ref()?;
            Some((download_path(number, address), address))
        });
        let fetches = addresses.map(async |(path, address)| {
            let fetched = fetch(build, address, copy.checksum.as_ref(), at, place).await?;
            let kind = NodeKind::File { size: fetched.size, digest: fetched.digest };
            // A time of the server's would make other bytes of equal files.
            let fixed = build.request.source_date_epoch;
            let mtime = fixed.or(fetched.modified).unwrap_or(0);
            let xattrs = Vec::new();
            let node = Node { kind, mode: 0o600, uid: 0, gid: 0, mtime, xattrs, link: None };
            Ok::<_, BuildError>((path, node))
        });
        let files = futures_util::future::try_join_all(fetches).await?;
        Ok(Self {
            files: files.into_iter().collect(),
            rest,
            blobs: Arc::clone(&build.builder.blobs),
            runtime: tokio::runtime::Handle::current(),
        })
    }
}

impl Tree for Downloads {
    fn node(&self, path: &str) -> Option<Node> {
        match is_download(path) {
            true => self.files.get(path).cloned(),
            false => self.rest.node(path),
        }
    }

    fn children(&self, path: &str) -> Vec<String> {
        self.rest.children(path)
    }

    /// Called from blocking threads only.
    fn open(&self, path: &str) -> io::Result<Box<dyn Read + Send>> {
        if !is_download(path) {
            return self.rest.open(path);
        }
        let Some(Node { kind: NodeKind::File { digest, .. }, .. }) = self.files.get(path) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let opened = self.runtime.block_on(self.blobs.open(digest, 0)).map_err(io::Error::other)?;
        Ok(opened.into_blocking())
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
    });
    Ok(fetched)
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
    copy.sources.get(number)?.address.as_ref().map(shown)
}
