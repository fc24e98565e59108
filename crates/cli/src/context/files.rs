//! The upload of those files of a context that the server lacks.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::{Method, RequestBuilder, header};

use super::Source;
use super::index::Index;
use super::key::now;
use super::listing::{Listing, list};
use super::upload::{Chunks, Upload, send};
use crate::connection::{Connection, read_json};
use crate::error::{ErrorKind, Result, could_not};

/// How often an upload that broke off is taken up again, and how long it waits before.
const RETRY_DELAYS: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
/// An answer that lists the missing files is not larger than this.
const MISSING_SIZE_MAX: usize = 32 << 20;

/// Sends a context.
pub(super) async fn upload_files(
    connection: &Connection,
    source: &Arc<Source>,
    cache: Option<&Path>,
    sent: &Arc<AtomicU64>,
) -> Result<Upload> {
    let mut index = Index::load(cache, source.folder.as_deref());
    let mut is_first = true;
    loop {
        let (source, known) = (Arc::clone(source), std::mem::take(&mut index));
        let listed = tokio::task::spawn_blocking(move || {
            let listing = list(&source, &known, now());
            (listing, known)
        });
        let listing;
        (listing, index) = listed.await.map_err(could_not("list the context"))?;
        let listing = Arc::new(listing?);
        match transfer(connection, &listing, &mut index, sent).await {
            // A file is not what its digest says: it has changed since, or what was remembered
            // of it was wrong.
            Err(error) if error.kind() == ErrorKind::Conflict && is_first => {
                is_first = false;
                index.forget_files();
            }
            done => return done,
        }
    }
}

async fn transfer(
    connection: &Connection,
    listing: &Arc<Listing>,
    index: &mut Index,
    sent: &Arc<AtomicU64>,
) -> Result<Upload> {
    let server = connection.address();
    let mut base = index.source(&server).map(str::to_owned);
    if let Some(id) = &base {
        match commit(connection, id, listing).await {
            Ok(relative_path) => {
                if listing.hashed > 0 {
                    index.save(listing.began, &listing.records);
                }
                return Ok(uploaded(relative_path, listing, (0, 0)));
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Conflict) => (),
            Err(error) => return Err(error),
        }
    }
    let mut travelled = (0, 0);
    let mut delays = RETRY_DELAYS.into_iter();
    let mut is_begun = false;
    loop {
        let attempt = async {
            let api::ListedSource { id, missing } =
                begin(connection, base.as_deref(), listing).await?;
            is_begun = true;
            base = Some(id.clone());
            // Before files travel: an upload that is cut off goes on from here.
            index.set_source(&server, &id);
            index.save(listing.began, &listing.records);
            send_missing(connection, &id, missing, listing, sent, &mut travelled).await?;
            commit(connection, &id, listing).await
        };
        match attempt.await {
            Ok(relative_path) => return Ok(uploaded(relative_path, listing, travelled)),
            Err(error) if error.kind() == ErrorKind::Unreachable && is_begun => {
                let Some(delay) = delays.next() else { return Err(error) };
                tokio::time::sleep(delay).await;
            }
            Err(error) => return Err(error),
        }
    }
}

fn uploaded(relative_path: String, listing: &Listing, travelled: (u64, u64)) -> Upload {
    Upload { relative_path, summary: listing.summary.clone(), travelled: Some(travelled) }
}

async fn begin(
    connection: &Connection,
    base: Option<&str>,
    listing: &Arc<Listing>,
) -> Result<api::ListedSource> {
    let mut url = connection.route(&["sources"]);
    if let Some(base) = base {
        url.query_pairs_mut().append_pair("base", base);
    }
    let request =
        connection.request(Method::POST, url).header(header::CONTENT_TYPE, "application/x-ndjson");
    let listing = Arc::clone(listing);
    let write = move |out: &mut dyn Write| listing.write_text(out);
    let response = send_body(connection, request, &Arc::default(), write).await?;
    read_json(response, MISSING_SIZE_MAX).await
}

async fn commit(connection: &Connection, id: &str, listing: &Listing) -> Result<String> {
    let url = connection.route(&["sources", id, "commit"]);
    let body = api::SourceCommit { digest: listing.digest.to_string() };
    let committed: api::CommittedSource = connection.post_patiently(url, &body).await?;
    Ok(committed.relative_path)
}

/// Sends packs one after the other; each is safe at the server when it is answered.
async fn send_missing(
    connection: &Connection,
    id: &str,
    missing: Vec<(u64, u64)>,
    listing: &Arc<Listing>,
    sent: &Arc<AtomicU64>,
    travelled: &mut (u64, u64),
) -> Result<()> {
    let whole = Arc::clone(listing);
    let packs = tokio::task::spawn_blocking(move || whole.packs(&missing));
    for pack in packs.await.map_err(could_not("pack the context"))?? {
        travelled.0 += pack.files;
        travelled.1 += pack.size;
        let listing = Arc::clone(listing);
        let write = move |out: &mut dyn Write| listing.write_pack(&pack, out);
        let url = connection.route(&["sources", id, "packs"]);
        send_body(connection, connection.request(Method::POST, url), sent, write).await?;
    }
    Ok(())
}

/// Sends what `write` writes, compressed unless it stays on this machine.
async fn send_body(
    connection: &Connection,
    request: RequestBuilder,
    sent: &Arc<AtomicU64>,
    write: impl FnOnce(&mut dyn Write) -> Result<()> + Send + 'static,
) -> Result<reqwest::Response> {
    if connection.is_local() {
        let sent = send(connection, request, sent, move |chunks| write(chunks)).await?;
        return Ok(sent.0);
    }
    let request = request.header(header::CONTENT_ENCODING, "gzip");
    let compress = move |chunks: &mut Chunks| {
        let mut out = GzEncoder::new(chunks, Compression::fast());
        write(&mut out)?;
        out.finish().map(|_| ()).map_err(could_not("send the context"))
    };
    Ok(send(connection, request, sent, compress).await?.0)
}
