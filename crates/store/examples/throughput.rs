//! How fast the store is on this disk: `cargo run --release -p store --example throughput DIR`.
//!
//! Prints MB/s of blob pushes by 1 and 8 writers, manifests stored per second by 64 writers,
//! and warm manifest reads per second by one thread.

#![expect(clippy::print_stdout, reason = "the figures are what it is for")]
#![expect(clippy::unwrap_used, reason = "a measurement that fails is no measurement")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use oci::{Digest, Manifest, RegistryName, RepositoryName, Tag, media_type};
use store::{BlobStore, Catalog, Cause, DiskStore, Expected, ManifestRef, NewManifest};

const CHUNK: usize = 512 << 10;
const BLOB: usize = 1 << 30;
const MANIFESTS: usize = 4096;
const MANIFEST_WRITERS: usize = 64;
const READS: u32 = 500_000;

#[tokio::main]
async fn main() {
    let parent = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(parent).unwrap();
    let db = db::Db::open(&folder.path().join("refit.db")).await.unwrap();
    let disk = DiskStore::open(folder.path(), db.clone()).await.unwrap();
    let catalog = Catalog::open(db, Arc::new(disk)).await.unwrap();
    for writers in [1, 8] {
        let took = blobs(&catalog, writers).await;
        println!("push, {writers} writers: {:.0} MB/s", BLOB as f64 / 1e6 / took.as_secs_f64());
    }
    let took = manifests(&catalog).await;
    println!("manifests stored: {:.0} per second", MANIFESTS as f64 / took.as_secs_f64());
    let took = reads(&catalog).await;
    println!("manifests read: {:.0} per second", f64::from(READS) / took.as_secs_f64());
}

/// One gigabyte in all, whatever the number of writers.
async fn blobs(catalog: &Catalog, writers: usize) -> Duration {
    let start = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let blobs = Arc::clone(catalog.blobs());
            tokio::spawn(push(blobs, (writers * 16 + writer) as u8, BLOB / writers))
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    start.elapsed()
}

async fn push(blobs: Arc<dyn BlobStore>, fill: u8, size: usize) {
    let mut upload = blobs.begin_upload(oci::Algorithm::Sha256).await.unwrap();
    for _ in 0..size / CHUNK {
        upload.write(vec![fill; CHUNK].into()).await.unwrap();
    }
    upload.commit(None).await.unwrap();
}

async fn manifests(catalog: &Catalog) -> Duration {
    let start = Instant::now();
    let writers: Vec<_> = (0..MANIFEST_WRITERS)
        .map(|writer| {
            let catalog = catalog.clone();
            tokio::spawn(async move {
                for number in (writer..MANIFESTS).step_by(MANIFEST_WRITERS) {
                    put(&catalog, number).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    start.elapsed()
}

fn tag(number: usize) -> Tag {
    format!("v{number}").parse().unwrap()
}

fn repository() -> RepositoryName {
    "app".parse().unwrap()
}

async fn put(catalog: &Catalog, number: usize) {
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[],"annotations":{{"n":"{number}"}}}}"#,
        media_type::OCI_INDEX
    );
    let bytes = Bytes::from(text);
    let digest = Digest::of(&bytes);
    let manifest = Manifest::Index(serde_json::from_slice(&bytes).unwrap());
    let media_type = media_type::OCI_INDEX;
    let new = NewManifest { digest: &digest, media_type, bytes, manifest: &manifest };
    let (registry, cause) =
        (RegistryName::default(), Cause::Push { principal: "benchmark".to_owned() });
    let tags = [(tag(number), Expected::Any)];
    catalog.put_manifest(&registry, &repository(), new, &tags, &cause).await.unwrap();
}

async fn reads(catalog: &Catalog) -> Duration {
    let (registry, repository) = (RegistryName::default(), repository());
    let reference = ManifestRef::Tag(tag(1));
    let start = Instant::now();
    for _ in 0..READS {
        let found = catalog.manifest(&registry, &repository, &reference).await.unwrap();
        assert!(found.is_some());
    }
    start.elapsed()
}
