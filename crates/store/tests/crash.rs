//! What `kill -9` and a full disk leave behind.
//!
//! The first test starts this same binary again as a child that pushes, deletes, uploads and
//! collects, tells what was acknowledged, and is killed at some moment; then the folder is
//! opened again and everything that was acknowledged must be there, whole.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "the child is this test itself")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use oci::{
    Algorithm, Descriptor, Digest, ImageManifest, Manifest, RegistryName, RepositoryName, Tag,
    media_type,
};
use store::{Catalog, Cause, DiskStore, Expected, GcOptions, ManifestRef, NewManifest, StoreError};
use tokio::io::AsyncReadExt;

const FOLDER: &str = "REFIT_TEST_CRASH_FOLDER";
const ROUND: &str = "REFIT_TEST_CRASH_ROUND";
const ROUNDS: usize = 12;
/// A piece of a resumable upload.
const CHUNK: usize = 50_000;

fn registry() -> RegistryName {
    RegistryName::default()
}

fn app() -> RepositoryName {
    "app".parse().unwrap()
}

fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

fn cause() -> Cause {
    Cause::Push { principal: "tester".to_owned() }
}

async fn open(folder: &Path) -> (Catalog, db::Db) {
    let db = db::Db::open(&folder.join("refit.db")).await.unwrap();
    let disk = DiskStore::open(folder, db.clone()).await.unwrap();
    (Catalog::open(db.clone(), Arc::new(disk)).await.unwrap(), db)
}

/// Few different layers, so that pushes share them with deletions and collection.
fn layer(number: usize) -> Vec<u8> {
    vec![b'a' + (number % 5) as u8; 30_000 + 200_000 * (number % 3)]
}

async fn push(catalog: &Catalog, label: &str, layer: &[u8]) -> store::Result<Digest> {
    let config = format!("{{\"label\":\"{label}\"}}").into_bytes();
    for bytes in [&config[..], layer] {
        let mut upload = catalog.blobs().begin_upload(Algorithm::Sha256).await?;
        for chunk in bytes.chunks(100_000) {
            upload.write(Bytes::copy_from_slice(chunk)).await?;
        }
        let stored = upload.commit(None).await?;
        catalog.link_blob(&registry(), &app(), &stored.digest).await?;
    }
    let image = ImageManifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: Descriptor::of(media_type::OCI_CONFIG, &config),
        layers: vec![Descriptor::of(media_type::OCI_LAYER_TAR, layer)],
        subject: None,
        annotations: BTreeMap::new(),
    };
    let bytes = Bytes::from(serde_json::to_vec(&image).unwrap());
    let digest = Digest::of(&bytes);
    let manifest = Manifest::Image(Box::new(image));
    let media_type = media_type::OCI_MANIFEST;
    let new = NewManifest { digest: &digest, media_type, bytes, manifest: &manifest };
    let tags = [(tag(label), Expected::Any)];
    catalog.put_manifest(&registry(), &app(), new, &tags, &cause()).await?;
    Ok(digest)
}

async fn read(catalog: &Catalog, digest: &Digest) -> Vec<u8> {
    let mut bytes = Vec::new();
    let reader = catalog.blobs().open(digest, 0).await.unwrap();
    reader.into_async().read_to_end(&mut bytes).await.unwrap();
    assert_eq!(Digest::with(digest.algorithm(), &bytes), *digest, "served bytes are not whole");
    bytes
}

/// Does nothing unless it was started by the test below.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn child_that_works_until_it_is_killed() {
    let (Ok(folder), Ok(round)) = (std::env::var(FOLDER), std::env::var(ROUND)) else { return };
    let (catalog, _db) = open(Path::new(&folder)).await;
    let collector = async {
        let options = GcOptions {
            dry_run: false,
            grace: Duration::from_millis(100),
            cache_size_max: u64::MAX,
        };
        loop {
            catalog.collect_garbage(&options).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let pusher = |name: usize| {
        let (catalog, round) = (&catalog, &round);
        async move {
            for number in name.. {
                let label = format!("r{round}-p{name}-{number}");
                // On a machine this slow that the grace ran out, a push is refused.
                let Ok(digest) = push(catalog, &label, &layer(number)).await else { continue };
                println!("pushed {label} {number}");
                if number % 3 != 0 {
                    println!("deleting {label}");
                    catalog.delete_manifest(&registry(), &app(), &digest, &cause()).await.unwrap();
                    println!("deleted {label}");
                }
            }
        }
    };
    let uploader = async {
        let mut session = catalog.begin_session(&registry(), &app()).await.unwrap();
        loop {
            session.write(vec![7; CHUNK].into()).await.unwrap();
            session.sync().await.unwrap();
            println!("uploaded {} {}", session.id(), session.size());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::join!(collector, pusher(0), pusher(1), pusher(2), uploader);
}

/// What the children acknowledged.
#[derive(Default)]
struct Acknowledged {
    /// Tags that must be there, with the number of their layer.
    pushed: BTreeMap<String, usize>,
    /// Tags whose deletion began and was not acknowledged: there or not.
    deleting: BTreeSet<String>,
    deleted: BTreeSet<String>,
    uploads: BTreeMap<String, u64>,
}

impl Acknowledged {
    fn take(&mut self, line: &str) -> bool {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["pushed", label, number] => {
                self.pushed.insert(label.to_owned(), number.parse().unwrap());
            }
            ["deleting", label] => {
                self.pushed.remove(label);
                self.deleting.insert(label.to_owned());
            }
            ["deleted", label] => {
                self.deleting.remove(label);
                self.deleted.insert(label.to_owned());
            }
            ["uploaded", id, size] => {
                self.uploads.insert(id.to_owned(), size.parse().unwrap());
            }
            _ => return false,
        }
        true
    }
}

#[test]
fn kill_9_loses_nothing_acknowledged_and_leaves_nothing_half_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut known = Acknowledged::default();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_works_until_it_is_killed", "--nocapture"])
            .env(FOLDER, folder.path())
            .env(ROUND, round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let moment = 15 + round * 41 % 90;
        let mut taken = 0;
        while taken < moment {
            let line = lines.next().expect("the child ended by itself").unwrap();
            taken += usize::from(known.take(&line));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said before it died counts too; a last line may be cut off.
        let mut rest: Vec<String> = lines.map_while(Result::ok).collect();
        let cut = rest.pop();
        rest.iter().for_each(|line| {
            known.take(line);
        });
        if let Some(cut) = cut.filter(|cut| cut.starts_with("deleting")) {
            known.take(&cut);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(check(folder.path(), &mut known));
    }
    assert!(known.deleted.len() > ROUNDS && known.pushed.len() > ROUNDS, "too little happened");
}

async fn check(folder: &Path, known: &mut Acknowledged) {
    let (catalog, db) = open(folder).await;
    let at = async |label: &str| {
        let reference = ManifestRef::Tag(tag(label));
        catalog.manifest(&registry(), &app(), &reference).await.unwrap()
    };
    for (label, number) in &known.pushed {
        let manifest = at(label).await.unwrap_or_else(|| panic!("tag {label} is lost"));
        assert_eq!(Digest::of(&manifest.bytes), manifest.digest);
        let image: ImageManifest = serde_json::from_slice(&manifest.bytes).unwrap();
        assert_eq!(read(&catalog, &image.layers[0].digest).await, layer(*number));
        for digest in [&image.config.digest, &image.layers[0].digest] {
            let size = catalog.blob_size(&registry(), &app(), digest).await.unwrap();
            assert!(size.is_some(), "the repository lost {digest}");
        }
    }
    for label in &known.deleted {
        assert!(at(label).await.is_none(), "{label} came back");
    }
    known.deleting.clear();
    let moves = catalog.tag_moves(0, 1_000_000).await.unwrap();
    assert!(moves.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
    for label in known.pushed.keys().chain(&known.deleted) {
        assert!(moves.iter().any(|m| m.tag.as_str() == label), "{label} is not in the journal");
    }
    for (id, size) in std::mem::take(&mut known.uploads) {
        let session = catalog.resume_session(&registry(), &app(), &id).await.unwrap();
        assert!(session.size() >= size, "an upload lost acknowledged bytes");
        let whole = vec![7; usize::try_from(session.size()).unwrap()];
        session.commit(&Digest::of(&whole)).await.unwrap();
    }
    let left = std::fs::read_dir(folder.join("uploads")).unwrap().count();
    assert_eq!(left, 0, "uploads/ was not swept");
    check_listed(folder, &catalog, &db).await;
}

/// Every listed blob is there and whole, and no bytes lie about unlisted.
async fn check_listed(folder: &Path, catalog: &Catalog, db: &db::Db) {
    let listed: Vec<String> =
        sqlx::query_scalar("SELECT digest FROM blobs").fetch_all(db.reads()).await.unwrap();
    let mut files = Vec::new();
    walk(&folder.join("blobs"), &mut files);
    let listed: BTreeSet<Digest> = listed.iter().map(|text| text.parse().unwrap()).collect();
    for digest in &listed {
        read(catalog, digest).await;
    }
    assert_eq!(files.len(), listed.len(), "bytes that no blob names were left");
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => walk(&path, files),
            false => files.push(path),
        }
    }
}

/// A small file system of its own, for as long as the value lives.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        rustix::mount::mount(
            "tmpfs",
            folder.path(),
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            c"size=16m",
        )
        .expect("this test mounts a tmpfs and needs root");
        Self(folder)
    }

    /// Takes what space there is, but for `spare` bytes.
    fn fill(&self, spare: u64) {
        use std::io::Write;
        let path = self.0.path().join("filler");
        let mut filler = std::fs::File::create(&path).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
        let size = filler.metadata().unwrap().len();
        filler.set_len(size.saturating_sub(spare)).unwrap();
    }

    fn free(&self) {
        std::fs::remove_file(self.0.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_a_full_disk_refuses_a_blob_and_the_store_stays_whole() {
    let disk = SmallDisk::mount();
    let (catalog, db) = open(disk.0.path()).await;
    push(&catalog, "before", &layer(0)).await.unwrap();
    let too_much = async || {
        let mut upload = catalog.blobs().begin_upload(Algorithm::Sha256).await?;
        for _ in 0..64 {
            upload.write(vec![1; 1 << 20].into()).await?;
        }
        upload.commit(None).await
    };
    let error = too_much().await.unwrap_err();
    assert!(matches!(error, StoreError::NoSpace(_)), "{error}");
    // A session keeps what was acknowledged and gives the rest of its space back.
    let mut session = catalog.begin_session(&registry(), &app()).await.unwrap();
    session.write(vec![2; 1 << 20].into()).await.unwrap();
    session.sync().await.unwrap();
    let id = session.id().to_owned();
    let error = loop {
        if let Err(error) = session.write(vec![2; 1 << 20].into()).await {
            break error;
        }
    };
    assert!(matches!(error, StoreError::NoSpace(_)), "{error}");
    drop(session);
    let session = catalog.resume_session(&registry(), &app(), &id).await.unwrap();
    assert_eq!(session.size(), 1 << 20);
    session.commit(&Digest::of(&vec![2; 1 << 20])).await.unwrap();
    assert_eq!(std::fs::read_dir(disk.0.path().join("uploads")).unwrap().count(), 0);
    push(&catalog, "after", &layer(1)).await.unwrap();
    check_listed(disk.0.path(), &catalog, &db).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_a_full_disk_becomes_free_by_deleting() {
    let disk = SmallDisk::mount();
    let (catalog, _db) = open(disk.0.path()).await;
    push(&catalog, "kept", &layer(0)).await.unwrap();
    let large = vec![7; 4 << 20];
    let gone = push(&catalog, "gone", &large).await.unwrap();
    disk.fill(0);
    let refused = push(&catalog, "more", &large).await.unwrap_err();
    assert!(matches!(refused, StoreError::NoSpace(_)), "{refused:?}");
    catalog.delete_manifest(&registry(), &app(), &gone, &cause()).await.unwrap();
    let refused = push(&catalog, "more", b"small").await.unwrap_err();
    assert!(matches!(refused, StoreError::NoSpace(_)), "it would take the room of deletions");
    tokio::time::sleep(Duration::from_millis(5)).await;
    let options = GcOptions { grace: Duration::ZERO, dry_run: false, cache_size_max: 0 };
    let report = catalog.collect_garbage(&options).await.unwrap();
    assert!(report.bytes >= 4 << 20, "{report:?}");
    assert!(disk.0.path().join("reserve").exists(), "room is kept again");
    push(&catalog, "more", &large[..1 << 20]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_a_full_disk_refuses_catalog_writes_and_the_catalog_stays_whole() {
    let disk = SmallDisk::mount();
    let (catalog, db) = open(disk.0.path()).await;
    let digests = [
        push(&catalog, "one", &layer(0)).await.unwrap(),
        push(&catalog, "two", &layer(1)).await.unwrap(),
    ];
    let mut at = None;
    let move_tag = async |to: &Digest| {
        let moving = tag("moving");
        catalog.move_tag(&registry(), &app(), &moving, &Expected::Any, Some(to), &cause()).await
    };
    for round in 0..3 {
        disk.fill(round * 16_384);
        let mut error = None;
        for number in 0..50_000 {
            let to = &digests[number % 2];
            match move_tag(to).await {
                Ok(()) => at = Some(to.clone()),
                Err(refused) => {
                    error = Some(refused);
                    break;
                }
            }
        }
        let error = error.expect("the disk was never full");
        assert!(matches!(error, StoreError::NoSpace(_)), "{error:?}");
        let reference = ManifestRef::Tag(tag("moving"));
        let found = catalog.manifest(&registry(), &app(), &reference).await.unwrap();
        assert_eq!(found.map(|entry| entry.digest), at, "a refused move is visible");
        disk.free();
        move_tag(&digests[0]).await.unwrap();
        move_tag(&digests[1]).await.unwrap();
        at = Some(digests[1].clone());
        push(&catalog, &format!("round{round}"), &layer(2)).await.unwrap();
    }
    let whole: String =
        sqlx::query_scalar("PRAGMA integrity_check").fetch_one(db.reads()).await.unwrap();
    assert_eq!(whole, "ok");
    check_listed(disk.0.path(), &catalog, &db).await;
}

/// An upload whose chunk was acknowledged; it is held by nobody.
async fn acknowledged(catalog: &Catalog, bytes: &[u8]) -> String {
    let mut session = catalog.begin_session(&registry(), &app()).await.unwrap();
    session.write(Bytes::copy_from_slice(bytes)).await.unwrap();
    session.sync().await.unwrap();
    session.id().to_owned()
}

/// Takes the upload up again, with all its bytes, and ends it.
async fn end_upload(folder: &Path, catalog: &Catalog, db: &db::Db, id: &str, bytes: &[u8]) {
    let session = catalog.resume_session(&registry(), &app(), id).await.unwrap();
    assert_eq!(session.size(), bytes.len() as u64, "the upload lost acknowledged bytes");
    session.commit(&Digest::of(bytes)).await.unwrap();
    assert_eq!(read(catalog, &Digest::of(bytes)).await, bytes);
    assert_eq!(std::fs::read_dir(folder.join("uploads")).unwrap().count(), 0);
    check_listed(folder, catalog, db).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_could_not_be_listed_keeps_its_bytes() {
    let (folder, bytes) = (tempfile::tempdir().unwrap(), layer(1));
    let (catalog, db) = open(folder.path()).await;
    let id = acknowledged(&catalog, &bytes).await;
    let change = async |statement: &'static str| {
        let changed = db.write::<_, StoreError, _>(move |connection| {
            Box::pin(async move {
                sqlx::query(statement).execute(connection).await.unwrap();
                Ok(())
            })
        });
        changed.await.unwrap();
    };
    change(
        "CREATE TRIGGER refuse BEFORE INSERT ON blobs
         BEGIN SELECT RAISE(ABORT, 'refused'); END",
    )
    .await;
    let session = catalog.resume_session(&registry(), &app(), &id).await.unwrap();
    session.commit(&Digest::of(&bytes)).await.unwrap_err();
    check_listed(folder.path(), &catalog, &db).await;
    change("DROP TRIGGER refuse").await;
    end_upload(folder.path(), &catalog, &db, &id, &bytes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_killed_before_it_was_listed_keeps_its_bytes() {
    let (folder, bytes) = (tempfile::tempdir().unwrap(), layer(1));
    let (catalog, db) = open(folder.path()).await;
    let id = acknowledged(&catalog, &bytes).await;
    drop((catalog, db));
    let digest = Digest::of(&bytes);
    let uploads = folder.path().join("uploads");
    let blob = folder.path().join("blobs/sha256").join(&digest.hex()[..2]).join(digest.hex());
    std::fs::write(uploads.join(format!("placing-sha256-{}-{id}", digest.hex())), "").unwrap();
    std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
    std::fs::rename(uploads.join(&id), blob).unwrap();
    let (catalog, db) = open(folder.path()).await;
    end_upload(folder.path(), &catalog, &db, &id, &bytes).await;
}
