//! One suite for every blob store, and the catalog over each of them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use oci::{
    Algorithm, Descriptor, Digest, ImageIndex, ImageManifest, Manifest, RegistryName,
    RepositoryName, Tag, media_type,
};
use store::{
    Attributes, AttributesChange, BlobStore, BuildRecordText, CacheEntry, Catalog, Cause,
    ContentDeed, DiskStore, Expected, GcOptions, ManifestRef, MemoryStore, NewManifest, Order,
    PoliciesChange, Policy, ReadLayer, Restored, Retention, RetentionChange, ScrubPass, SoftDelete,
    SoftDeleteChange, StoreError, StoredSize, ToRestore, Unneeded,
};
use tokio::io::AsyncReadExt;

/// A catalog over one kind of store; the folder lives as long as it.
struct Fixture {
    catalog: Catalog,
    db: db::Db,
    /// Of the store on disk.
    folder: Option<tempfile::TempDir>,
    /// The other one.
    memory: Option<MemoryStore>,
}

impl Fixture {
    /// Does to the bytes of a blob what bad disks and careless hands do.
    fn damage(&self, digest: &Digest, damage: impl Fn(Vec<u8>) -> Option<Vec<u8>>, bytes: &[u8]) {
        let damaged = damage(bytes.to_vec());
        if let Some(memory) = &self.memory {
            memory.damage(digest, damaged.clone().map(Bytes::from));
        }
        if let Some(folder) = &self.folder {
            let path = folder.path().join("blobs/sha256").join(&digest.hex()[..2]);
            match damaged {
                Some(bytes) => std::fs::write(path.join(digest.hex()), bytes).unwrap(),
                None => std::fs::remove_file(path.join(digest.hex())).unwrap(),
            }
        }
    }

    /// The files of damaged blobs, if this is the store on disk.
    fn aside(&self) -> Option<Vec<String>> {
        let entries = std::fs::read_dir(self.folder.as_ref()?.path().join("damaged"));
        let names = entries.into_iter().flatten().map(|entry| entry.unwrap().file_name());
        Some(names.map(|name| name.into_string().unwrap()).collect())
    }
}

fn gone(_: Vec<u8>) -> Option<Vec<u8>> {
    None
}

fn cut(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    bytes.pop();
    Some(bytes)
}

fn grown(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    bytes.push(b'x');
    Some(bytes)
}

fn flipped(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    bytes[0] ^= 1;
    Some(bytes)
}

async fn on_disk() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, db) = open(folder.path()).await;
    Fixture { catalog, db, folder: Some(folder), memory: None }
}

async fn open(folder: &std::path::Path) -> (Catalog, db::Db) {
    let db = db::Db::open(&folder.join("refit.db")).await.unwrap();
    let disk = DiskStore::open(folder, db.clone()).await.unwrap();
    (Catalog::open(db.clone(), Arc::new(disk)).await.unwrap(), db)
}

async fn in_memory() -> Fixture {
    let db = db::Db::in_memory().await.unwrap();
    let memory = MemoryStore::open(db.clone()).await.unwrap();
    let catalog = Catalog::open(db.clone(), Arc::new(memory.clone())).await.unwrap();
    Fixture { catalog, db, folder: None, memory: Some(memory) }
}

/// Runs a test on every kind of store.
macro_rules! suite {
    ($($name:ident),* $(,)?) => {
        mod disk {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::on_disk().await).await; })*
        }
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::in_memory().await).await; })*
        }
    };
}

suite! {
    a_blob_comes_back_as_it_was_written,
    a_blob_with_another_digest_is_refused_and_leaves_nothing,
    writers_of_one_blob_do_not_disturb_each_other,
    a_damaged_blob_is_missing_until_it_is_stored_again,
    a_reader_never_gets_a_part_of_a_blob,
    a_damaged_manifest_is_not_given_out,
    a_scrub_finds_what_is_damaged,
    a_scrub_goes_on_where_it_stopped,
    an_upload_goes_on_where_it_stopped,
    an_upload_belongs_to_its_repository,
    a_manifest_needs_what_it_names,
    an_index_may_list_blobs_and_keeps_them,
    tags_move_through_the_journal,
    a_lost_compare_and_swap_changes_nothing,
    deleting_a_manifest_takes_its_tags,
    what_comes_and_goes_is_written_down_for_who_follows,
    listings_go_on_after_the_last_name,
    what_is_old_comes_last_and_goes_only_if_nobody_needs_it,
    what_is_locked_stays_as_it_is,
    a_lock_is_of_one_thing_only,
    a_locked_repository_locks_what_is_in_it,
    what_is_not_to_be_read_is_not_given_out,
    what_is_hidden_is_found_by_those_who_know_it,
    locks_are_lifted_by_those_who_may,
    collection_spares_what_is_locked,
    what_loses_its_last_tag_goes_when_it_is_due,
    retention_begins_and_ends_when_it_is_switched,
    an_index_goes_with_what_only_it_listed,
    retention_passes_over_what_is_locked_or_a_referrer,
    what_an_index_listed_goes_in_its_own_time,
    members_stay_as_long_as_their_index_is_locked,
    n10_retention_and_soft_delete_are_not_enabled_together,
    what_is_deleted_is_gone_for_everybody_and_can_be_restored,
    n11_what_can_be_restored_is_not_pushed,
    a_tag_is_restored_to_what_it_was_last_or_to_what_is_said,
    what_is_deleted_goes_for_good_when_its_time_has_come,
    collection_spares_what_can_be_restored,
    a_subject_is_restored_before_its_referrers,
    an_index_is_restored_without_its_members,
    what_is_locked_is_neither_soft_deleted_nor_restored_into,
    copies_are_not_soft_deleted,
    lists_of_what_was_deleted_go_on_after_their_last,
    a_blob_in_use_cannot_be_unlinked,
    referrers_are_listed_whether_or_not_the_subject_exists,
    pages_of_referrers_are_bounded_and_go_on_when_their_last_is_deleted,
    collection_deletes_what_nothing_reaches_and_nothing_else,
    collection_spares_what_is_young_leased_cached_or_seen,
    collection_takes_referrers_of_a_deleted_subject_only,
    collection_beside_pushes_never_breaks_one,
    the_cache_is_bounded_by_value,
    build_records_live_with_their_manifest,
}

fn registry() -> RegistryName {
    RegistryName::default()
}

fn repository(name: &str) -> RepositoryName {
    name.parse().unwrap()
}

fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

fn push_cause() -> Cause {
    Cause::Push { principal: "tester".to_owned() }
}

fn now_or_never() -> GcOptions {
    GcOptions { dry_run: false, grace: Duration::ZERO, cache_size_max: u64::MAX }
}

/// Collection without grace judges what is older than this moment: let it pass.
async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(3)).await;
}

async fn put(catalog: &Catalog, bytes: &[u8]) -> Digest {
    let mut upload = catalog.blobs().begin_upload(Algorithm::Sha256).await.unwrap();
    upload.write(Bytes::copy_from_slice(bytes)).await.unwrap();
    upload.commit(None).await.unwrap().digest
}

async fn get(blobs: &dyn BlobStore, digest: &Digest, offset: u64) -> store::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    blobs.open(digest, offset).await?.into_async().read_to_end(&mut bytes).await.unwrap();
    Ok(bytes)
}

fn image(config: &[u8], layers: &[&[u8]], subject: Option<&Digest>) -> ImageManifest {
    ImageManifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: Descriptor::of(media_type::OCI_CONFIG, config),
        layers: layers.iter().map(|l| Descriptor::of(media_type::OCI_LAYER_TAR, l)).collect(),
        subject: subject.map(|d| Descriptor::new(media_type::OCI_MANIFEST, d.clone(), 1)),
        annotations: BTreeMap::new(),
    }
}

async fn put_manifest(
    catalog: &Catalog,
    name: &str,
    image: ImageManifest,
    tags: &[(Tag, Expected)],
) -> store::Result<Digest> {
    let bytes = Bytes::from(serde_json::to_vec(&image).unwrap());
    let digest = Digest::of(&bytes);
    let manifest = Manifest::Image(Box::new(image));
    let media_type = media_type::OCI_MANIFEST;
    let new = NewManifest { digest: &digest, media_type, bytes, manifest: &manifest };
    catalog.put_manifest(&registry(), &repository(name), new, tags, &push_cause()).await?;
    Ok(digest)
}

/// Pushes an image of one layer under a tag.
async fn push(catalog: &Catalog, name: &str, label: &str, layer: &[u8]) -> Digest {
    let config = format!("{{\"label\":\"{label}\"}}");
    for bytes in [config.as_bytes(), layer] {
        let digest = put(catalog, bytes).await;
        catalog.link_blob(&registry(), &repository(name), &digest).await.unwrap();
    }
    let image = image(config.as_bytes(), &[layer], None);
    put_manifest(catalog, name, image, &[(tag(label), Expected::Any)]).await.unwrap()
}

async fn manifest(catalog: &Catalog, name: &str, reference: &str) -> Option<Digest> {
    let reference = match reference.parse() {
        Ok(digest) => ManifestRef::Digest(digest),
        Err(_) => ManifestRef::Tag(tag(reference)),
    };
    let found = catalog.manifest(&registry(), &repository(name), &reference).await.unwrap();
    found.map(|entry| {
        assert_eq!(Digest::of(&entry.bytes), entry.digest);
        entry.digest
    })
}

async fn a_blob_comes_back_as_it_was_written(f: Fixture) {
    let blobs = f.catalog.blobs();
    let bytes: Vec<u8> = (0..3_000_000u32).map(|at| (at / 3) as u8).collect();
    let mut upload = blobs.begin_upload(Algorithm::Sha256).await.unwrap();
    for chunk in bytes.chunks(700_000) {
        upload.write(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    let digest = Digest::of(&bytes);
    assert_eq!(blobs.size(&digest).await.unwrap(), None, "visible before it is whole");
    let stored = upload.commit(Some(&digest)).await.unwrap();
    assert_eq!((stored.digest, stored.size), (digest.clone(), 3_000_000));
    assert_eq!(blobs.size(&digest).await.unwrap(), Some(3_000_000));
    assert_eq!(get(&**blobs, &digest, 0).await.unwrap(), bytes);
    assert_eq!(get(&**blobs, &digest, 2_999_990).await.unwrap(), bytes[2_999_990..]);
    assert_eq!(get(&**blobs, &digest, 9_999_999).await.unwrap(), b"");
    let wide = Digest::with(Algorithm::Sha512, &bytes);
    let mut upload = blobs.begin_upload(Algorithm::Sha512).await.unwrap();
    upload.write(bytes.clone().into()).await.unwrap();
    upload.commit(Some(&wide)).await.unwrap();
    assert_eq!(get(&**blobs, &wide, 0).await.unwrap(), bytes);
    let missing = get(&**blobs, &Digest::of(b"other"), 0).await.unwrap_err();
    assert!(matches!(missing, StoreError::NotFound { .. }));
}

async fn a_blob_with_another_digest_is_refused_and_leaves_nothing(f: Fixture) {
    let blobs = f.catalog.blobs();
    let expected = Digest::of(b"expected");
    let mut upload = blobs.begin_upload(Algorithm::Sha256).await.unwrap();
    upload.write(Bytes::from_static(b"actual")).await.unwrap();
    let error = upload.commit(Some(&expected)).await.unwrap_err();
    assert!(matches!(error, StoreError::DigestMismatch { .. }), "{error}");
    drop(blobs.begin_upload(Algorithm::Sha256).await.unwrap());
    for digest in [expected, Digest::of(b"actual")] {
        assert_eq!(blobs.size(&digest).await.unwrap(), None);
    }
    if let Some(folder) = &f.folder {
        let left = std::fs::read_dir(folder.path().join("uploads")).unwrap().count();
        assert_eq!(left, 0, "temporary files are left");
    }
}

async fn writers_of_one_blob_do_not_disturb_each_other(f: Fixture) {
    let writers = (0..16).map(|_| put(&f.catalog, b"the same bytes"));
    let digests = futures_util::future::join_all(writers).await;
    assert!(digests.iter().all(|digest| *digest == Digest::of(b"the same bytes")));
    assert_eq!(get(&**f.catalog.blobs(), &digests[0], 0).await.unwrap(), b"the same bytes");
}

async fn a_damaged_blob_is_missing_until_it_is_stored_again(f: Fixture) {
    let (blobs, registry, name) = (f.catalog.blobs(), registry(), repository("app"));
    let bytes = b"many bytes that nobody reads for years";
    let (digest, size) = (Digest::of(bytes), Some(bytes.len() as u64));
    assert_eq!(blobs.stat(&digest).await.unwrap(), None);
    assert!(!blobs.verify(&digest).await.unwrap());
    push(&f.catalog, "app", "v1", bytes).await;
    for damage in [gone, cut, grown, flipped] {
        assert_eq!(blobs.stat(&digest).await.unwrap(), size);
        assert!(blobs.verify(&digest).await.unwrap());
        f.damage(&digest, damage, bytes);
        if damage(bytes.to_vec()).is_some_and(|damaged| damaged.len() == bytes.len()) {
            // As many bytes as there were: only reading them tells.
            assert_eq!(blobs.stat(&digest).await.unwrap(), size);
            assert!(!blobs.verify(&digest).await.unwrap());
        } else {
            assert_eq!(blobs.stat(&digest).await.unwrap(), None);
        }
        if let Some(aside) = f.aside() {
            let was_there = damage(bytes.to_vec()).is_some();
            assert_eq!(aside.len(), usize::from(was_there), "{aside:?}");
        }
        // Nothing can be built on it any more, whoever asks.
        assert_eq!(blobs.size(&digest).await.unwrap(), None);
        assert!(!blobs.verify(&digest).await.unwrap());
        let error = get(&**blobs, &digest, 0).await.unwrap_err();
        assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
        let entry = CacheEntry { value: "{}".to_owned(), blobs: vec![digest.clone()], cost: 1 };
        let minute = Duration::from_secs(60);
        for error in [
            f.catalog.link_blob(&registry, &repository("other"), &digest).await.unwrap_err(),
            f.catalog.lease_blob("run", &digest, minute).await.unwrap_err(),
            f.catalog.cache_put("local", &Digest::of(b"key"), &entry).await.unwrap_err(),
        ] {
            assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
        }
        let image = image(b"{\"label\":\"v1\"}", &[bytes], None);
        let error = put_manifest(&f.catalog, "app", image, &[]).await.unwrap_err();
        assert!(matches!(error, StoreError::MissingReference { .. }), "{error}");
        if let Some(folder) = &f.folder {
            let (reopened, _) = open(folder.path()).await;
            assert_eq!(reopened.blob_size(&registry, &name, &digest).await.unwrap(), None);
        }
        // Whoever has the bytes repairs all that refers to them.
        assert_eq!(put(&f.catalog, bytes).await, digest);
        assert_eq!(get(&**blobs, &digest, 0).await.unwrap(), bytes);
        assert_eq!(f.catalog.blob_size(&registry, &name, &digest).await.unwrap(), size);
        assert_eq!(f.aside().unwrap_or_default(), [""; 0]);
    }
    // Collection takes the damaged bytes too.
    f.damage(&digest, flipped, bytes);
    assert!(!blobs.verify(&digest).await.unwrap());
    let cause = push_cause();
    f.catalog.delete_repository(&registry, &name, &cause).await.unwrap();
    a_moment().await;
    f.catalog.collect_garbage(&now_or_never()).await.unwrap();
    assert_eq!(f.aside().unwrap_or_default(), [""; 0]);
}

async fn a_reader_never_gets_a_part_of_a_blob(f: Fixture) {
    for damage in [gone, cut, grown] {
        let digest = put(&f.catalog, b"all of it or nothing").await;
        f.damage(&digest, damage, b"all of it or nothing");
        let error = get(&**f.catalog.blobs(), &digest, 3).await.unwrap_err();
        assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
        assert_eq!(f.catalog.blobs().size(&digest).await.unwrap(), None);
    }
}

async fn a_damaged_manifest_is_not_given_out(f: Fixture) {
    for damage in [gone, cut, flipped] {
        let digest = push(&f.catalog, "app", "v1", b"layer").await;
        let bytes = get(&**f.catalog.blobs(), &digest, 0).await.unwrap();
        f.damage(&digest, damage, &bytes);
        let by_tag = ManifestRef::Tag(tag("v1"));
        let found = f.catalog.manifest(&registry(), &repository("app"), &by_tag).await;
        assert!(matches!(found, Err(StoreError::NotFound { .. })), "{found:?}");
        assert_eq!(push(&f.catalog, "app", "v1", b"layer").await, digest);
        // The answer is remembered from here on; the next push forgets it.
        assert_eq!(manifest(&f.catalog, "app", "v1").await, Some(digest.clone()));
        push(&f.catalog, "app", "v1", b"layer").await;
    }
}

async fn scrub_pass(catalog: &Catalog) -> ScrubPass {
    catalog.scrub_pass().await.unwrap().unwrap()
}

/// Reads all content; how many blobs were found damaged.
async fn scrub(catalog: &Catalog) -> u64 {
    catalog.begin_scrub(None).await.unwrap();
    catalog.scrub(0).await.unwrap();
    let pass = scrub_pass(catalog).await;
    assert!(pass.finished_at.is_some());
    pass.damaged
}

async fn a_scrub_finds_what_is_damaged(f: Fixture) {
    assert_eq!(scrub(&f.catalog).await, 0);
    let manifest = push(&f.catalog, "app", "v1", b"layer").await;
    let layer = Digest::of(b"layer");
    for digest in [&manifest, &layer] {
        let bytes = get(&**f.catalog.blobs(), digest, 0).await.unwrap();
        for damage in [gone, cut, grown, flipped] {
            assert_eq!(scrub(&f.catalog).await, 0);
            // What is remembered is forgotten.
            assert!(self::manifest(&f.catalog, "app", "v1").await.is_some());
            f.damage(digest, damage, &bytes);
            assert_eq!(scrub(&f.catalog).await, 1);
            let lost = f.catalog.lost_blobs().await.unwrap();
            assert_eq!(lost.len(), 1);
            assert_eq!((&lost[0].digest, lost[0].size), (digest, bytes.len() as u64));
            assert_eq!(lost[0].repositories, [(registry(), repository("app"))]);
            if *digest == manifest {
                let by_tag = ManifestRef::Tag(tag("v1"));
                let found = f.catalog.manifest(&registry(), &repository("app"), &by_tag).await;
                assert!(matches!(found, Err(StoreError::NotFound { .. })), "{found:?}");
            }
            // It is told of, and not found another time.
            assert_eq!(scrub(&f.catalog).await, 0);
            assert_eq!(f.catalog.lost_count().await.unwrap(), 1);
            push(&f.catalog, "app", "v1", b"layer").await;
            assert_eq!(f.catalog.lost_blobs().await.unwrap(), []);
        }
    }
}

async fn a_scrub_goes_on_where_it_stopped(f: Fixture) {
    for blob in 0..5u8 {
        put(&f.catalog, &[blob; 1000]).await;
    }
    assert_eq!(f.catalog.stored_size().await.unwrap(), StoredSize { blobs: 5, bytes: 5000 });
    let mut digests: Vec<_> = (0..5u8).map(|blob| Digest::of(&[blob; 1000])).collect();
    digests.sort();
    for digest in [&digests[1], &digests[3]] {
        let bytes = get(&**f.catalog.blobs(), digest, 0).await.unwrap();
        f.damage(digest, flipped, &bytes);
    }
    // A second for each of them.
    f.catalog.begin_scrub(Some(1000)).await.unwrap();
    let catalog = f.catalog.clone();
    let reading = tokio::spawn(async move { catalog.scrub(0).await });
    let begun = loop {
        // What is found is noted at once.
        match scrub_pass(&f.catalog).await {
            pass if pass.blobs > 0 => break pass,
            _ => a_moment().await,
        }
    };
    reading.abort();
    assert_eq!((begun.finished_at, begun.blobs, begun.damaged), (None, 2, 1));
    f.catalog.scrub(0).await.unwrap();
    let ended = scrub_pass(&f.catalog).await;
    assert_eq!((ended.blobs, ended.bytes, ended.damaged), (5, 5000, 2));
    assert_eq!((ended.started_at, ended.finished_at.is_some()), (begun.started_at, true));
    // There is nothing to go on with.
    f.catalog.scrub(0).await.unwrap();
    assert_eq!(scrub_pass(&f.catalog).await, ended);
    // At this pace it does not even come to the second blob, until another pass is begun.
    f.catalog.begin_scrub(Some(1)).await.unwrap();
    let moment = Duration::from_millis(50);
    tokio::time::timeout(moment, f.catalog.scrub(0)).await.unwrap_err();
    assert_eq!((scrub_pass(&f.catalog).await.finished_at, ended.damaged), (None, 2));
    assert_eq!(scrub(&f.catalog).await, 0);
    let ended = scrub_pass(&f.catalog).await;
    assert_eq!((ended.blobs, ended.bytes), (3, 3000));
}

async fn an_upload_goes_on_where_it_stopped(f: Fixture) {
    let (catalog, name) = (&f.catalog, repository("app"));
    let mut session = catalog.begin_session(&registry(), &name).await.unwrap();
    session.write(Bytes::from_static(b"hello ")).await.unwrap();
    session.sync().await.unwrap();
    let id = session.id().to_owned();
    drop(session);
    // On disk the process may have ended meanwhile: open the folder anew.
    let reopened = match &f.folder {
        Some(folder) => open(folder.path()).await.0,
        None => catalog.clone(),
    };
    let mut session = reopened.resume_session(&registry(), &name, &id).await.unwrap();
    assert_eq!(session.size(), 6);
    session.write(Bytes::from_static(b"world")).await.unwrap();
    assert_eq!(session.size(), 11);
    let digest = Digest::with(Algorithm::Sha512, b"hello world");
    session.commit(&digest).await.unwrap();
    assert_eq!(reopened.blob_size(&registry(), &name, &digest).await.unwrap(), Some(11));
    assert!(reopened.resume_session(&registry(), &name, &id).await.is_err());
}

async fn an_upload_belongs_to_its_repository(f: Fixture) {
    let session = f.catalog.begin_session(&registry(), &repository("mine")).await.unwrap();
    let id = session.id().to_owned();
    drop(session);
    let other = f.catalog.resume_session(&registry(), &repository("other"), &id).await;
    assert!(matches!(other, Err(StoreError::NotFound { .. })));
    f.catalog.abort_session(&registry(), &repository("mine"), &id).await.unwrap();
    let gone = f.catalog.resume_session(&registry(), &repository("mine"), &id).await;
    assert!(matches!(gone, Err(StoreError::NotFound { .. })));
}

async fn a_manifest_needs_what_it_names(f: Fixture) {
    let config = put(&f.catalog, b"{}").await;
    let layer = put(&f.catalog, b"layer").await;
    let manifest = || image(b"{}", &[b"layer"], None);
    // Stored, but not in this repository: knowing a digest is not a permission.
    let error = put_manifest(&f.catalog, "app", manifest(), &[]).await.unwrap_err();
    assert!(matches!(error, StoreError::MissingReference { .. }), "{error}");
    for digest in [&config, &layer] {
        f.catalog.link_blob(&registry(), &repository("app"), digest).await.unwrap();
    }
    let digest = put_manifest(&f.catalog, "app", manifest(), &[]).await.unwrap();
    assert_eq!(put_manifest(&f.catalog, "app", manifest(), &[]).await.unwrap(), digest);
    assert_eq!(self::manifest(&f.catalog, "app", digest.as_str()).await, Some(digest));
    assert_eq!(f.catalog.blob_size(&registry(), &repository("other"), &layer).await.unwrap(), None);
    let missing = Digest::of(b"never stored");
    let error = f.catalog.link_blob(&registry(), &repository("app"), &missing).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }));
}

async fn an_index_may_list_blobs_and_keeps_them(f: Fixture) {
    let (registry, name) = (registry(), repository("cache"));
    let (layer, config) = (b"a layer", b"what the cache knows");
    let list = ImageIndex {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.to_owned()),
        artifact_type: None,
        manifests: vec![
            Descriptor::of(media_type::OCI_LAYER_GZIP, layer),
            Descriptor::of("application/vnd.buildkit.cacheconfig.v0", config),
        ],
        subject: None,
        annotations: BTreeMap::new(),
    };
    let bytes = Bytes::from(serde_json::to_vec(&list).unwrap());
    let (digest, index) = (Digest::of(&bytes), Manifest::Index(list));
    let put_index = async || {
        let (bytes, media_type) = (bytes.clone(), media_type::OCI_INDEX);
        let new = NewManifest { digest: &digest, media_type, bytes, manifest: &index };
        let tags = [(tag("latest"), Expected::Any)];
        f.catalog.put_manifest(&registry, &name, new, &tags, &push_cause()).await
    };
    for bytes in [&layer[..], config] {
        let error = put_index().await.unwrap_err();
        assert!(matches!(error, StoreError::MissingReference { .. }), "{error}");
        let blob = put(&f.catalog, bytes).await;
        f.catalog.link_blob(&registry, &name, &blob).await.unwrap();
    }
    put_index().await.unwrap();
    a_moment().await;
    f.catalog.collect_garbage(&now_or_never()).await.unwrap();
    for bytes in [&layer[..], config] {
        let blob = Digest::of(bytes);
        assert!(f.catalog.blob_size(&registry, &name, &blob).await.unwrap().is_some());
        let error = f.catalog.unlink_blob(&registry, &name, &blob).await.unwrap_err();
        assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    }
    f.catalog.delete_manifest(&registry, &name, &digest, &push_cause()).await.unwrap();
    a_moment().await;
    let report = f.catalog.collect_garbage(&now_or_never()).await.unwrap();
    assert_eq!(report.blobs.len(), 3, "{report:?}");
}

async fn tags_move_through_the_journal(f: Fixture) {
    let mut moved = f.catalog.tag_moved();
    let first = push(&f.catalog, "app", "v1", b"one").await;
    assert!(moved.has_changed().unwrap());
    moved.mark_unchanged();
    let second = push(&f.catalog, "app", "v2", b"two").await;
    let move_v1 = |to: Option<Digest>| {
        let (catalog, cause) = (f.catalog.clone(), push_cause());
        async move {
            let (registry, name, v1) = (registry(), repository("app"), tag("v1"));
            catalog.move_tag(&registry, &name, &v1, &Expected::Any, to.as_ref(), &cause).await
        }
    };
    move_v1(Some(second.clone())).await.unwrap();
    move_v1(Some(second.clone())).await.unwrap();
    assert_eq!(manifest(&f.catalog, "app", "v1").await, Some(second.clone()));
    move_v1(None).await.unwrap();
    assert!(matches!(move_v1(None).await, Err(StoreError::NotFound { .. })));
    assert!(matches!(move_v1(Some(Digest::of(b"no"))).await, Err(StoreError::NotFound { .. })));
    assert_eq!(manifest(&f.catalog, "app", "v1").await, None);
    let moves = f.catalog.tag_moves(0, 100).await.unwrap();
    let told: Vec<_> =
        moves.iter().map(|m| (m.tag.as_str(), m.old.clone(), m.new.clone())).collect();
    assert_eq!(
        told,
        [
            ("v1", None, Some(first.clone())),
            ("v2", None, Some(second.clone())),
            ("v1", Some(first), Some(second.clone())),
            ("v1", Some(second), None),
        ]
    );
    assert!(moves.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
    let rest = f.catalog.tag_moves(moves[1].sequence, 1).await.unwrap();
    assert_eq!(rest, moves[2..3]);
    assert_eq!(moves[0].cause, push_cause());
}

async fn a_lost_compare_and_swap_changes_nothing(f: Fixture) {
    let first = push(&f.catalog, "app", "v1", b"one").await;
    let second = push(&f.catalog, "app", "v2", b"two").await;
    let swap = |expected: Expected, to: Digest| {
        let (catalog, cause) = (f.catalog.clone(), push_cause());
        async move {
            let (registry, name, v1) = (registry(), repository("app"), tag("v1"));
            catalog.move_tag(&registry, &name, &v1, &expected, Some(&to), &cause).await
        }
    };
    for expected in [Expected::Absent, Expected::At(second.clone())] {
        let error = swap(expected, second.clone()).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::TagMoved { found: Some(found), .. } if *found == first)
        );
    }
    assert_eq!(manifest(&f.catalog, "app", "v1").await, Some(first.clone()));
    swap(Expected::At(first), second.clone()).await.unwrap();
    assert_eq!(manifest(&f.catalog, "app", "v1").await, Some(second));
    assert_eq!(f.catalog.tag_moves(0, 100).await.unwrap().len(), 3);
}

async fn deleting_a_manifest_takes_its_tags(f: Fixture) {
    let digest = push(&f.catalog, "app", "v1", b"one").await;
    push(&f.catalog, "app", "v2", b"two").await;
    assert_eq!(manifest(&f.catalog, "app", "v1").await, Some(digest.clone()));
    let (registry, name, cause) = (registry(), repository("app"), push_cause());
    let deleted = f.catalog.delete_manifest(&registry, &name, &digest, &cause).await.unwrap();
    assert_eq!((deleted.manifests, deleted.tags), (1, 1));
    assert_eq!(manifest(&f.catalog, "app", "v1").await, None);
    assert_eq!(manifest(&f.catalog, "app", digest.as_str()).await, None);
    assert!(manifest(&f.catalog, "app", "v2").await.is_some());
    let again = f.catalog.delete_manifest(&registry, &name, &digest, &cause).await;
    assert!(matches!(again, Err(StoreError::NotFound { .. })));
    let deleted = f.catalog.delete_repository(&registry, &name, &cause).await.unwrap();
    assert_eq!((deleted.manifests.len(), deleted.tags), (1, vec![tag("v2")]));
    assert!(!f.catalog.repository_exists(&registry, &name).await.unwrap());
    assert_eq!(manifest(&f.catalog, "app", "v2").await, None);
    assert_eq!(f.catalog.tag_moves(0, 100).await.unwrap().len(), 4);
}

async fn take_changes(f: &Fixture) -> Vec<(ContentDeed, String, Digest, Vec<String>)> {
    let mut transaction = f.db.begin().await.unwrap();
    let changes = store::take_content_changes_within(&mut transaction, 100).await.unwrap();
    transaction.commit().await.unwrap();
    let changes = changes.into_iter().map(|change| {
        let tags = change.tags.iter().map(|tag| tag.to_string()).collect();
        (change.deed, change.repository.to_string(), change.digest, tags)
    });
    changes.collect()
}

async fn follow(f: &Fixture, follows: bool) {
    let mut transaction = f.db.begin().await.unwrap();
    store::follow_content_within(&mut transaction, &registry(), follows).await.unwrap();
    transaction.commit().await.unwrap();
}

async fn what_comes_and_goes_is_written_down_for_who_follows(f: Fixture) {
    push(&f.catalog, "app", "v0", b"zero").await;
    assert_eq!(take_changes(&f).await, []);
    follow(&f, true).await;
    let mut changed = f.catalog.content_changed();
    let digest = push(&f.catalog, "app", "v1", b"one").await;
    assert!(changed.has_changed().unwrap());
    let (registry, name, cause) = (registry(), repository("app"), push_cause());
    let (v2, v3, any) = (tag("v2"), tag("v3"), Expected::Any);
    f.catalog.move_tag(&registry, &name, &v2, &any, Some(&digest), &cause).await.unwrap();
    let pushed =
        |tag: &str| (ContentDeed::Pushed, "app".to_owned(), digest.clone(), vec![tag.to_owned()]);
    assert_eq!(take_changes(&f).await, [pushed("v1"), pushed("v2")]);
    assert_eq!(take_changes(&f).await, []);
    f.catalog.move_tag(&registry, &name, &v3, &any, Some(&digest), &cause).await.unwrap();
    assert_eq!(take_changes(&f).await, [pushed("v3")]);
    // The manifest stays.
    f.catalog.move_tag(&registry, &name, &v3, &any, None, &cause).await.unwrap();
    assert_eq!(take_changes(&f).await, []);
    changed.mark_unchanged();
    f.catalog.delete_manifest(&registry, &name, &digest, &cause).await.unwrap();
    assert!(changed.has_changed().unwrap());
    let tags = vec!["v1".to_owned(), "v2".to_owned()];
    assert_eq!(take_changes(&f).await, [(ContentDeed::Deleted, "app".to_owned(), digest, tags)]);
    let last = push(&f.catalog, "app", "v4", b"four").await;
    take_changes(&f).await;
    f.catalog.delete_repository(&registry, &name, &cause).await.unwrap();
    let gone = take_changes(&f).await;
    assert!(gone.len() == 2 && gone.iter().all(|(deed, ..)| *deed == ContentDeed::Deleted));
    assert!(gone.iter().any(|(_, _, digest, tags)| *digest == last && *tags == ["v4"]));
    push(&f.catalog, "app", "v5", b"five").await;
    follow(&f, false).await;
    push(&f.catalog, "app", "v6", b"six").await;
    assert_eq!(take_changes(&f).await, []);
}

async fn listings_go_on_after_the_last_name(f: Fixture) {
    for name in ["b", "a", "c/d", "c"] {
        for label in ["2", "10", "1"] {
            push(&f.catalog, name, label, b"layer").await;
        }
    }
    let names = f.catalog.repositories(&registry(), None, 2).await.unwrap();
    assert_eq!(names, [repository("a"), repository("b")]);
    let names = f.catalog.repositories(&registry(), Some("b"), 10).await.unwrap();
    assert_eq!(names, [repository("c"), repository("c/d")]);
    let tags = f.catalog.tags(&registry(), &repository("a"), Some("1"), 10).await.unwrap();
    let tags: Vec<_> = tags.iter().map(|tag| tag.tag.as_str()).collect();
    assert_eq!(tags, ["10", "2"]);
    let other: RegistryName = "other".parse().unwrap();
    assert!(f.catalog.repositories(&other, None, 10).await.unwrap().is_empty());
    let manifests = f.catalog.manifests(&registry(), &repository("a"), None, 10).await.unwrap();
    assert_eq!(manifests.len(), 3);
    assert!(manifests.iter().all(|manifest| manifest.tags.len() == 1));
}

/// Puts an index of manifests that are there.
async fn put_index(catalog: &Catalog, name: &str, members: &[&Digest], label: &str) -> Digest {
    let member = |digest: &&Digest| Descriptor::new(media_type::OCI_MANIFEST, (*digest).clone(), 1);
    let index = ImageIndex {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.to_owned()),
        artifact_type: None,
        manifests: members.iter().map(member).collect(),
        subject: None,
        annotations: BTreeMap::from([("label".to_owned(), label.to_owned())]),
    };
    let bytes = Bytes::from(serde_json::to_vec(&index).unwrap());
    let (digest, index) = (Digest::of(&bytes), Manifest::Index(index));
    let media_type = media_type::OCI_INDEX;
    let new = NewManifest { digest: &digest, media_type, bytes, manifest: &index };
    catalog.put_manifest(&registry(), &repository(name), new, &[], &push_cause()).await.unwrap();
    digest
}

async fn what_is_old_comes_last_and_goes_only_if_nobody_needs_it(f: Fixture) {
    let (registry, name, cause) = (registry(), repository("app"), push_cause());
    let child = push(&f.catalog, "app", "v1", b"one").await;
    a_moment().await;
    let other = push(&f.catalog, "app", "v2", b"two").await;
    a_moment().await;
    let inner = put_index(&f.catalog, "app", &[&child], "inner").await;
    a_moment().await;
    let outer = put_index(&f.catalog, "app", &[&inner], "outer").await;

    let tags = async |after| {
        f.catalog.tags_by_age(&registry, &name, Order::NewestFirst, after, 1).await.unwrap()
    };
    let [newest] = &tags(None).await[..] else { panic!("a page of one") };
    assert_eq!(newest.tag, tag("v2"));
    let older = tags(Some((newest.updated_at, &newest.tag))).await;
    assert_eq!(older[0].tag, tag("v1"));
    assert!(tags(Some((older[0].updated_at, &older[0].tag))).await.is_empty());

    let oldest = async |after| {
        f.catalog.tags_by_age(&registry, &name, Order::OldestFirst, after, 1).await.unwrap()
    };
    let first = oldest(None).await;
    assert_eq!(first, older);
    let second = oldest(Some((first[0].updated_at, &first[0].tag))).await;
    assert_eq!(second[0].tag, tag("v2"));
    assert!(oldest(Some((second[0].updated_at, &second[0].tag))).await.is_empty());

    let of_child = f.catalog.tags_of(&registry, &name, &child).await.unwrap();
    assert_eq!(of_child, older);

    let page = async |after| {
        f.catalog.manifests_by_age(&registry, &name, Order::NewestFirst, after, 3).await.unwrap()
    };
    let first = page(None).await;
    let digests = |page: &[store::ManifestInfo]| -> Vec<Digest> {
        page.iter().map(|manifest| manifest.digest.clone()).collect()
    };
    assert_eq!(digests(&first), [outer.clone(), inner.clone(), other.clone()]);
    let rest = page(Some((first[2].updated_at, &first[2].digest))).await;
    assert_eq!(digests(&rest), std::slice::from_ref(&child));
    let oldest = Order::OldestFirst;
    let oldest = f.catalog.manifests_by_age(&registry, &name, oldest, None, 9).await.unwrap();
    let backwards: Vec<Digest> = digests(&first).into_iter().rev().collect();
    assert_eq!(digests(&oldest), [vec![child.clone()], backwards].concat());
    assert_eq!(rest[0].tags, [tag("v1")]);

    let above = f.catalog.indexes_above(&registry, &name, &child, 10).await.unwrap();
    assert_eq!(
        BTreeSet::from_iter(digests(&above)),
        BTreeSet::from([inner.clone(), outer.clone()])
    );
    assert_eq!(f.catalog.indexes_above(&registry, &name, &child, 1).await.unwrap().len(), 1);

    let delete = async |digest: &Digest, updated_until| {
        let unneeded = Unneeded { updated_until, even_locked: false };
        f.catalog.delete_unneeded(&registry, &name, digest, unneeded, &cause).await.unwrap()
    };
    // It has a tag, then only the indexes above it are too young, then they have a tag.
    assert!(!delete(&child, i64::MAX).await);
    f.catalog.move_tag(&registry, &name, &tag("v1"), &Expected::Any, None, &cause).await.unwrap();
    assert!(!delete(&child, first[1].updated_at).await);
    let to = Some(&outer);
    f.catalog.move_tag(&registry, &name, &tag("all"), &Expected::Any, to, &cause).await.unwrap();
    assert!(!delete(&child, i64::MAX).await);
    f.catalog.move_tag(&registry, &name, &tag("all"), &Expected::Any, None, &cause).await.unwrap();
    assert!(delete(&child, i64::MAX).await);
    assert_eq!(manifest(&f.catalog, "app", child.as_str()).await, None);
    assert!(!delete(&child, i64::MAX).await, "it is gone");
    let signature = image(b"{\"label\":\"v2\"}", &[b"two"], Some(&other));
    let signature = put_manifest(&f.catalog, "app", signature, &[]).await.unwrap();
    assert!(!delete(&signature, i64::MAX).await, "it has a subject");
}

/// All but what the change says is left as it is.
const UNCHANGED: AttributesChange = AttributesChange {
    delete_enabled: None,
    write_enabled: None,
    read_enabled: None,
    list_enabled: None,
};

async fn change(f: &Fixture, reference: Option<&str>, change: AttributesChange) -> Attributes {
    let reference = reference.map(|text| match text.parse() {
        Ok(digest) => ManifestRef::Digest(digest),
        Err(_) => ManifestRef::Tag(tag(text)),
    });
    let (registry, name) = (registry(), repository("app"));
    f.catalog.change_attributes(&registry, &name, reference.as_ref(), change).await.unwrap()
}

fn deleting(delete_enabled: bool) -> AttributesChange {
    AttributesChange { delete_enabled: Some(delete_enabled), ..UNCHANGED }
}

fn writing(write_enabled: bool) -> AttributesChange {
    AttributesChange { write_enabled: Some(write_enabled), ..UNCHANGED }
}

fn reading(read_enabled: bool) -> AttributesChange {
    AttributesChange { read_enabled: Some(read_enabled), ..UNCHANGED }
}

fn listing(list_enabled: bool) -> AttributesChange {
    AttributesChange { list_enabled: Some(list_enabled), ..UNCHANGED }
}

/// What keeps something from being done: `app:v1 writeEnabled`.
#[track_caller]
fn lock<T: std::fmt::Debug>(result: store::Result<T>) -> String {
    let error = result.unwrap_err();
    let StoreError::Locked(lock) = &error else { panic!("it is not locked: {error}") };
    let reference = match &lock.reference {
        None => String::new(),
        Some(ManifestRef::Tag(tag)) => format!(":{tag}"),
        Some(ManifestRef::Digest(_)) => "@".to_owned(),
    };
    format!("{}{reference} {}", lock.repository, lock.attribute.name())
}

/// What may be done to an image: a push of the tag, its removal, and the deletion of its manifest.
/// What was done is undone.
async fn tried(f: &Fixture, name: &str, image: &Digest) -> [store::Result<()>; 3] {
    let (registry, app, cause) = (registry(), repository("app"), push_cause());
    let v1 = tag(name);
    let moved =
        async |to| f.catalog.move_tag(&registry, &app, &v1, &Expected::Any, to, &cause).await;
    let pushed = moved(Some(image)).await;
    let untagged = moved(None).await;
    if untagged.is_ok() {
        moved(Some(image)).await.unwrap();
    }
    let deleted = f.catalog.delete_manifest(&registry, &app, image, &cause).await.map(drop);
    if deleted.is_ok() {
        push(&f.catalog, "app", name, b"one").await;
    }
    [pushed, untagged, deleted]
}

async fn what_is_locked_stays_as_it_is(f: Fixture) {
    let image = push(&f.catalog, "app", "v1", b"one").await;
    for (reference, attributes, expected) in [
        ("v1", deleting(false), ["", "app:v1 deleteEnabled", "app:v1 deleteEnabled"]),
        ("v1", writing(false), ["app:v1 writeEnabled"; 3]),
        (image.as_str(), deleting(false), ["", "", "app@ deleteEnabled"]),
        (image.as_str(), writing(false), ["app@ writeEnabled", "", "app@ writeEnabled"]),
        ("v1", reading(false), [""; 3]),
        ("v1", listing(false), [""; 3]),
    ] {
        change(&f, Some(reference), attributes).await;
        if expected[1].is_empty() && !expected[0].is_empty() {
            // The tag could not come back.
            let (registry, app, cause) = (registry(), repository("app"), push_cause());
            let to = Some(&image);
            let moved =
                f.catalog.move_tag(&registry, &app, &tag("v1"), &Expected::Any, to, &cause).await;
            assert_eq!(lock(moved), expected[0]);
            let deleted = f.catalog.delete_manifest(&registry, &app, &image, &cause).await;
            assert_eq!(lock(deleted), expected[2]);
        } else {
            let found = tried(&f, "v1", &image).await.map(|result| match result {
                Ok(()) => String::new(),
                refused => lock(refused),
            });
            assert_eq!(found, expected, "{reference} {attributes:?}");
        }
        let all = Attributes::default();
        let back = AttributesChange {
            delete_enabled: Some(true),
            write_enabled: Some(true),
            read_enabled: Some(true),
            list_enabled: Some(true),
        };
        assert_eq!(change(&f, Some(reference), back).await, all);
    }
    // Nothing of a refused push is there.
    change(&f, Some("v1"), writing(false)).await;
    let config = b"{\"label\":\"v1\"}";
    let other = image_of(config, b"two", &f).await;
    let pushed = put_manifest(&f.catalog, "app", other, &[(tag("v1"), Expected::Any)]).await;
    assert_eq!(lock(pushed), "app:v1 writeEnabled");
    assert_eq!(manifest(&f.catalog, "app", "v1").await, Some(image));
    let (registry, app) = (registry(), repository("app"));
    assert_eq!(f.catalog.manifests(&registry, &app, None, 10).await.unwrap().len(), 1);
    // And nothing of a repository goes of which something is locked.
    let deleted = f.catalog.delete_repository(&registry, &app, &push_cause()).await;
    assert_eq!(lock(deleted), "app:v1 writeEnabled");
    assert_eq!(f.catalog.tags(&registry, &app, None, 10).await.unwrap().len(), 1);
}

/// An image whose blobs are in the repository.
async fn image_of(config: &[u8], layer: &[u8], f: &Fixture) -> ImageManifest {
    for bytes in [config, layer] {
        let digest = put(&f.catalog, bytes).await;
        f.catalog.link_blob(&registry(), &repository("app"), &digest).await.unwrap();
    }
    image(config, &[layer], None)
}

async fn a_lock_is_of_one_thing_only(f: Fixture) {
    let (registry, app, cause) = (registry(), repository("app"), push_cause());
    let image = push(&f.catalog, "app", "v1", b"one").await;
    push(&f.catalog, "app", "v2", b"two").await;
    let changed = change(&f, Some("v1"), deleting(false)).await;
    assert_eq!(changed, Attributes { delete_enabled: false, ..Attributes::default() });
    // What is not named stays as it was.
    let both = Attributes { delete_enabled: false, read_enabled: false, ..Attributes::default() };
    assert_eq!(change(&f, Some("v1"), reading(false)).await, both);
    let infos = f.catalog.tags(&registry, &app, None, 10).await.unwrap();
    assert_eq!(
        infos.iter().map(|tag| tag.attributes).collect::<Vec<_>>(),
        [both, Attributes::default()]
    );
    let info = f.catalog.manifest_info(&registry, &app, &image).await.unwrap().unwrap();
    assert_eq!(info.attributes, Attributes::default());
    let whole = f.catalog.repository(&registry, &app).await.unwrap().unwrap();
    assert_eq!((whole.manifests, whole.tags, whole.attributes), (2, 2, Attributes::default()));
    // A lock goes with its tag, and not with where that points.
    change(&f, Some("v1"), reading(true)).await;
    let other = push(&f.catalog, "app", "v3", b"three").await;
    let to = Some(&other);
    f.catalog.move_tag(&registry, &app, &tag("v1"), &Expected::Any, to, &cause).await.unwrap();
    let moved = f.catalog.tag(&registry, &app, &tag("v1")).await.unwrap().unwrap();
    assert_eq!((moved.digest, moved.attributes.delete_enabled), (other, false));
    f.catalog.delete_manifest(&registry, &app, &image, &cause).await.unwrap();
    for missing in [ManifestRef::Tag(tag("v9")), ManifestRef::Digest(image)] {
        let changed = f.catalog.change_attributes(&registry, &app, Some(&missing), UNCHANGED).await;
        assert!(matches!(changed, Err(StoreError::NotFound { .. })), "{changed:?}");
    }
    let nothing = repository("nothing");
    let changed = f.catalog.change_attributes(&registry, &nothing, None, deleting(false)).await;
    assert!(matches!(changed, Err(StoreError::NotFound { .. })), "{changed:?}");
}

async fn a_locked_repository_locks_what_is_in_it(f: Fixture) {
    let (registry, app, cause) = (registry(), repository("app"), push_cause());
    let image = push(&f.catalog, "app", "v1", b"one").await;
    // It as a whole, and nothing that is in it.
    change(&f, None, deleting(false)).await;
    for result in tried(&f, "v1", &image).await {
        result.unwrap();
    }
    let deleted = f.catalog.delete_repository(&registry, &app, &cause).await;
    // Its last image went for a moment, and its attributes with that.
    deleted.unwrap();
    push(&f.catalog, "app", "v1", b"one").await;
    change(&f, None, deleting(false)).await;
    let deleted = f.catalog.delete_repository(&registry, &app, &cause).await;
    assert_eq!(lock(deleted), "app deleteEnabled");
    change(&f, None, deleting(true)).await;

    change(&f, None, writing(false)).await;
    for result in tried(&f, "v1", &image).await {
        assert_eq!(lock(result), "app writeEnabled");
    }
    let other = image_of(b"{}", b"two", &f).await;
    let pushed = put_manifest(&f.catalog, "app", other, &[(tag("v2"), Expected::Any)]).await;
    assert_eq!(lock(pushed), "app writeEnabled");
    let deleted = f.catalog.delete_repository(&registry, &app, &cause).await;
    assert_eq!(lock(deleted), "app writeEnabled");
    let begun = f.catalog.begin_session(&registry, &app).await.map(drop);
    assert_eq!(lock(begun), "app writeEnabled");
    let loose = f.catalog.unlink_blob(&registry, &app, &Digest::of(b"two")).await;
    assert_eq!(lock(loose), "app writeEnabled");
    let lifted =
        f.catalog.remove_locked_tag(&registry, &app, &tag("v1"), &Expected::Any, &cause).await;
    assert_eq!(lock(lifted), "app writeEnabled");
    // Others are not locked.
    push(&f.catalog, "other", "v1", b"one").await;
    change(&f, None, writing(true)).await;
    f.catalog.delete_repository(&registry, &app, &cause).await.unwrap();
}

async fn what_is_not_to_be_read_is_not_given_out(f: Fixture) {
    let (registry, app, cause) = (registry(), repository("app"), push_cause());
    let (image, layer) = (push(&f.catalog, "app", "v1", b"one").await, Digest::of(b"one"));
    let (by_tag, by_digest) = (ManifestRef::Tag(tag("v1")), ManifestRef::Digest(image.clone()));
    let read = async |reference: &ManifestRef| {
        // Twice: the second answer may come from memory.
        let _ = f.catalog.manifest(&registry, &app, reference).await;
        f.catalog.manifest(&registry, &app, reference).await.map(drop)
    };
    let blob = async || {
        let _ = f.catalog.blob_size(&registry, &app, &layer).await;
        f.catalog.blob_size(&registry, &app, &layer).await
    };
    let all = async || (read(&by_tag).await, read(&by_digest).await, blob().await);
    let (tagged, named, size) = all().await;
    assert!(tagged.is_ok() && named.is_ok() && size.unwrap() == Some(3));

    change(&f, Some("v1"), reading(false)).await;
    let (tagged, named, size) = all().await;
    assert_eq!(lock(tagged), "app:v1 readEnabled");
    assert!(named.is_ok() && size.is_ok(), "its manifest has attributes of its own");
    assert_eq!(f.catalog.digest_of(&registry, &app, &by_tag).await.unwrap(), Some(image.clone()));
    assert!(f.catalog.stored_manifest(&registry, &app, &by_tag).await.unwrap().is_some());
    change(&f, Some("v1"), reading(true)).await;

    change(&f, Some(image.as_str()), reading(false)).await;
    let (tagged, named, _) = all().await;
    assert_eq!([lock(tagged), lock(named)], ["app@ readEnabled"; 2]);
    change(&f, Some(image.as_str()), reading(true)).await;

    let with_blob = async || f.catalog.repositories_with_blob(&registry, &layer, 10).await.unwrap();
    assert_eq!(with_blob().await, std::slice::from_ref(&app));
    change(&f, None, reading(false)).await;
    let (tagged, named, size) = all().await;
    assert_eq!([lock(tagged), lock(named), lock(size)], ["app readEnabled"; 3]);
    assert!(with_blob().await.is_empty());
    // It may still be written.
    let other = image_of(b"{}", b"two", &f).await;
    put_manifest(&f.catalog, "app", other, &[(tag("v1"), Expected::Any)]).await.unwrap();
    f.catalog.move_tag(&registry, &app, &tag("v1"), &Expected::Any, None, &cause).await.unwrap();
    change(&f, None, reading(true)).await;
    let (_, named, size) = all().await;
    assert!(named.is_ok() && size.is_ok());
}

async fn what_is_hidden_is_found_by_those_who_know_it(f: Fixture) {
    let (registry, app) = (registry(), repository("app"));
    let image = push(&f.catalog, "app", "v1", b"one").await;
    push(&f.catalog, "app", "v2", b"two").await;
    push(&f.catalog, "other", "v1", b"one").await;
    let lists = async || {
        let catalog = &f.catalog;
        let (tags, manifests) = (
            catalog.tags(&registry, &app, None, 10).await.unwrap(),
            catalog.manifests(&registry, &app, None, 10).await.unwrap(),
        );
        let aged =
            catalog.tags_by_age(&registry, &app, Order::NewestFirst, None, 10).await.unwrap();
        assert_eq!(aged.len(), tags.len());
        let aged =
            catalog.manifests_by_age(&registry, &app, Order::NewestFirst, None, 10).await.unwrap();
        assert_eq!(aged.len(), manifests.len());
        let named = manifests.iter().map(|manifest| manifest.tags.len()).sum::<usize>();
        let tagged = manifests.iter().filter(|manifest| manifest.is_tagged).count();
        let repositories = catalog.repositories(&registry, None, 10).await.unwrap();
        [repositories.len(), tags.len(), manifests.len(), named, tagged]
    };
    assert_eq!(lists().await, [2, 2, 2, 2, 2]);
    change(&f, Some("v1"), listing(false)).await;
    assert_eq!(lists().await, [2, 1, 2, 1, 2]);
    change(&f, Some(image.as_str()), listing(false)).await;
    assert_eq!(lists().await, [2, 1, 1, 1, 1]);
    change(&f, None, listing(false)).await;
    assert_eq!(lists().await, [1, 1, 1, 1, 1]);
    assert_eq!(manifest(&f.catalog, "app", "v1").await, Some(image.clone()));
    assert!(f.catalog.tag(&registry, &app, &tag("v1")).await.unwrap().is_some());
    assert!(f.catalog.manifest_info(&registry, &app, &image).await.unwrap().is_some());
    let whole = f.catalog.repository(&registry, &app).await.unwrap().unwrap();
    assert_eq!((whole.manifests, whole.tags), (2, 2));
}

async fn locks_are_lifted_by_those_who_may(f: Fixture) {
    let (registry, app, cause) = (registry(), repository("app"), push_cause());
    let image = push(&f.catalog, "app", "v1", b"one").await;
    for attributes in [deleting(false), writing(false)] {
        change(&f, Some("v1"), attributes).await;
        change(&f, Some(image.as_str()), attributes).await;
    }
    let v1 = tag("v1");
    let moved = Expected::At(Digest::of(b"elsewhere"));
    let removed = f.catalog.remove_locked_tag(&registry, &app, &v1, &moved, &cause).await;
    assert!(matches!(removed, Err(StoreError::TagMoved { .. })), "{removed:?}");
    let info = f.catalog.tag(&registry, &app, &v1).await.unwrap().unwrap();
    assert!(!info.attributes.write_enabled, "the lock is there still");
    let any = Expected::Any;
    f.catalog.remove_locked_tag(&registry, &app, &v1, &any, &cause).await.unwrap();
    let delete = async |even_locked| {
        let unneeded = Unneeded { updated_until: i64::MAX, even_locked };
        f.catalog.delete_unneeded(&registry, &app, &image, unneeded, &cause).await
    };
    assert_eq!(lock(delete(false).await), "app@ writeEnabled");
    assert!(delete(true).await.unwrap());
    assert_eq!(manifest(&f.catalog, "app", image.as_str()).await, None);
}

async fn members_stay_as_long_as_their_index_is_locked(f: Fixture) {
    let (registry, app, cause) = (registry(), repository("app"), push_cause());
    let member = push(&f.catalog, "app", "v1", b"one").await;
    let inner = put_index(&f.catalog, "app", &[&member], "inner").await;
    let outer = put_index(&f.catalog, "app", &[&inner], "outer").await;
    untag(&f, "v1").await;
    let delete = async |even_locked| {
        let unneeded = Unneeded { updated_until: i64::MAX, even_locked };
        f.catalog.delete_unneeded(&registry, &app, &member, unneeded, &cause).await.unwrap()
    };
    for index in [&inner, &outer] {
        for (lock, unlock) in [
            (deleting(false), deleting(true)),
            (writing(false), writing(true)),
            (reading(false), reading(true)),
            (listing(false), listing(true)),
        ] {
            let attributes = change(&f, Some(index.as_str()), lock).await;
            assert!(!delete(false).await, "{attributes:?}");
            assert_eq!(attributes.gives_up_members(true), attributes.list_enabled);
            assert!(!attributes.gives_up_members(false));
            change(&f, Some(index.as_str()), unlock).await;
        }
    }
    change(&f, Some(outer.as_str()), listing(false)).await;
    assert!(!delete(true).await, "nobody finds the index to delete it");
    change(&f, Some(outer.as_str()), listing(true)).await;
    change(&f, Some(outer.as_str()), deleting(false)).await;
    assert!(delete(true).await);
    assert!(!delete(true).await, "it is gone");
}

async fn collection_spares_what_is_locked(f: Fixture) {
    let (registry, app, cause) = (registry(), repository("app"), push_cause());
    let subject = push(&f.catalog, "app", "v1", b"one").await;
    push(&f.catalog, "app", "v2", b"two").await;
    let referrer = image(b"{\"label\":\"v1\"}", &[b"one"], Some(&subject));
    let referrer = put_manifest(&f.catalog, "app", referrer, &[]).await.unwrap();
    f.catalog.delete_manifest(&registry, &app, &subject, &cause).await.unwrap();
    let collect = async || {
        a_moment().await;
        f.catalog.collect_garbage(&now_or_never()).await.unwrap();
        manifest(&f.catalog, "app", referrer.as_str()).await.is_some()
    };
    change(&f, Some(referrer.as_str()), deleting(false)).await;
    assert!(collect().await);
    change(&f, Some(referrer.as_str()), deleting(true)).await;
    change(&f, None, writing(false)).await;
    assert!(collect().await);
    change(&f, None, writing(true)).await;
    assert!(!collect().await, "once it is not locked, it is looked at again");
}

const DAY: i64 = 24 * 60 * 60 * 1000;

async fn retain(f: &Fixture, enabled: Option<bool>, days: Option<u32>) -> Retention {
    let change = RetentionChange { enabled, days };
    let change = PoliciesChange { retention: Some(change), soft_delete: None };
    f.catalog.change_policies(&registry(), change).await.unwrap().retention
}

async fn untag(f: &Fixture, name: &str) {
    let (registry, app, cause) = (registry(), repository("app"), push_cause());
    f.catalog.move_tag(&registry, &app, &tag(name), &Expected::Any, None, &cause).await.unwrap();
}

/// When a tag moved last.
async fn last_move(f: &Fixture) -> i64 {
    f.catalog.tag_moves(0, 1000).await.unwrap().last().unwrap().at
}

/// Removes what is due some days after the last move.
async fn remove_due(f: &Fixture, days: i64) -> u64 {
    let at = last_move(f).await + days * DAY;
    f.catalog.remove_due(at).await.unwrap()
}

async fn what_loses_its_last_tag_goes_when_it_is_due(f: Fixture) {
    let first = push(&f.catalog, "app", "v1", b"one").await;
    let (registry, app, cause) = (registry(), repository("app"), push_cause());
    let to = Some(&first);
    f.catalog.move_tag(&registry, &app, &tag("also"), &Expected::Any, to, &cause).await.unwrap();
    let policy = retain(&f, Some(true), Some(2)).await;
    assert_eq!((policy.enabled, policy.days), (true, 2));
    assert_eq!(f.catalog.policies(&registry).await.unwrap().retention, policy);
    // By a push of another image, and it has a tag still.
    let second = push(&f.catalog, "app", "v2", b"two").await;
    let to = Some(&second);
    f.catalog.move_tag(&registry, &app, &tag("v1"), &Expected::Any, to, &cause).await.unwrap();
    assert_eq!(remove_due(&f, 100).await, 0);
    untag(&f, "also").await;
    assert_eq!(remove_due(&f, 1).await, 0);
    // What was written down stays, whatever is wanted of others.
    retain(&f, None, Some(300)).await;
    assert_eq!(remove_due(&f, 2).await, 1);
    assert_eq!(manifest(&f.catalog, "app", first.as_str()).await, None);
    assert_eq!(remove_due(&f, 2).await, 0);
    untag(&f, "v1").await;
    untag(&f, "v2").await;
    // Who pushes it again wants to have it.
    push(&f.catalog, "app", "v2", b"two").await;
    assert_eq!(remove_due(&f, 400).await, 0);
    untag(&f, "v2").await;
    let again = image(b"{\"label\":\"v2\"}", &[b"two"], None);
    put_manifest(&f.catalog, "app", again, &[]).await.unwrap();
    assert_eq!(remove_due(&f, 400).await, 0);
    // A repository goes with its last image.
    retain(&f, None, Some(0)).await;
    push(&f.catalog, "app", "v2", b"two").await;
    untag(&f, "v2").await;
    assert_eq!(remove_due(&f, 0).await, 1);
    assert!(!f.catalog.repository_exists(&registry, &app).await.unwrap());
}

async fn retention_begins_and_ends_when_it_is_switched(f: Fixture) {
    let at_first = f.catalog.policies(&registry()).await.unwrap().retention;
    assert_eq!(at_first, Retention { enabled: false, days: 7, updated_at: None });
    let before = push(&f.catalog, "app", "v1", b"one").await;
    untag(&f, "v1").await;
    retain(&f, Some(true), None).await;
    let while_on = push(&f.catalog, "app", "v2", b"two").await;
    untag(&f, "v2").await;
    retain(&f, Some(false), None).await;
    retain(&f, Some(true), None).await;
    let after = push(&f.catalog, "app", "v3", b"three").await;
    untag(&f, "v3").await;
    assert_eq!(remove_due(&f, 8).await, 1);
    for (digest, stays) in [(before, true), (while_on, true), (after, false)] {
        assert_eq!(manifest(&f.catalog, "app", digest.as_str()).await.is_some(), stays);
    }
    // Of other registries nobody has said anything.
    let other = f.catalog.policies(&"other".parse().unwrap()).await.unwrap();
    assert!(!other.retention.enabled);
}

async fn an_index_goes_with_what_only_it_listed(f: Fixture) {
    retain(&f, Some(true), Some(0)).await;
    let (registry, app, cause) = (registry(), repository("app"), push_cause());
    let tagged = async |name: &str, digest: &Digest| {
        let to = Some(digest);
        f.catalog.move_tag(&registry, &app, &tag(name), &Expected::Any, to, &cause).await.unwrap();
    };
    let alone = push(&f.catalog, "app", "v1", b"one").await;
    let shared = push(&f.catalog, "app", "v2", b"two").await;
    let named = push(&f.catalog, "app", "v3", b"three").await;
    let inner = put_index(&f.catalog, "app", &[&alone, &shared, &named], "inner").await;
    let outer = put_index(&f.catalog, "app", &[&inner], "outer").await;
    let other = put_index(&f.catalog, "app", &[&shared], "other").await;
    tagged("all", &outer).await;
    tagged("other", &other).await;
    untag(&f, "v1").await;
    untag(&f, "v2").await;
    // Members of what is tagged are no untagged manifests, at any depth.
    assert_eq!(remove_due(&f, 0).await, 0);
    untag(&f, "all").await;
    assert_eq!(remove_due(&f, 0).await, 3);
    for (digest, stays) in
        [(&outer, false), (&inner, false), (&alone, false), (&shared, true), (&named, true)]
    {
        assert_eq!(manifest(&f.catalog, "app", digest.as_str()).await.is_some(), stays);
    }
    untag(&f, "other").await;
    assert_eq!(remove_due(&f, 0).await, 2);
}

async fn what_an_index_listed_goes_in_its_own_time(f: Fixture) {
    let (registry, app, cause) = (registry(), repository("app"), push_cause());
    let is_there = async |digest: &Digest| manifest(&f.catalog, "app", digest.as_str()).await;
    // Pushed by digest, and in two indexes.
    let shared = push(&f.catalog, "app", "shared", b"one").await;
    untag(&f, "shared").await;
    let later = push(&f.catalog, "app", "later", b"two").await;
    let first = put_index(&f.catalog, "app", &[&shared, &later], "first").await;
    let second = put_index(&f.catalog, "app", &[&shared], "second").await;
    let tag_first = Some(&first);
    let any = Expected::Any;
    f.catalog.move_tag(&registry, &app, &tag("first"), &any, tag_first, &cause).await.unwrap();
    retain(&f, Some(true), Some(5)).await;
    untag(&f, "later").await;
    retain(&f, None, Some(0)).await;
    untag(&f, "first").await;
    assert_eq!(remove_due(&f, 0).await, 1, "the index alone");
    assert_eq!(is_there(&later).await, Some(later.clone()));
    assert_eq!(remove_due(&f, 6).await, 1);
    assert_eq!(is_there(&later).await, None);
    // Somebody deletes the other index, and nothing else.
    f.catalog.delete_manifest(&registry, &app, &second, &cause).await.unwrap();
    assert_eq!(remove_due(&f, 6).await, 0);
    assert_eq!(is_there(&shared).await, Some(shared.clone()));
    // With the last index that goes by itself it goes too.
    let indexes = ["third", "fourth"].map(|label| (label, [&shared]));
    for (label, members) in indexes {
        let index = put_index(&f.catalog, "app", &members, label).await;
        let to = Some(&index);
        f.catalog.move_tag(&registry, &app, &tag(label), &any, to, &cause).await.unwrap();
    }
    untag(&f, "third").await;
    assert_eq!(remove_due(&f, 0).await, 1);
    untag(&f, "fourth").await;
    assert_eq!(remove_due(&f, 0).await, 2);
    assert_eq!(is_there(&shared).await, None);
}

async fn retention_passes_over_what_is_locked_or_a_referrer(f: Fixture) {
    retain(&f, Some(true), Some(0)).await;
    let locked = push(&f.catalog, "app", "v1", b"one").await;
    let about = image(b"{\"label\":\"v1\"}", &[b"one"], Some(&locked));
    put_manifest(&f.catalog, "app", about, &[(tag("about"), Expected::Any)]).await.unwrap();
    for attributes in [deleting(false), writing(false)] {
        change(&f, Some(locked.as_str()), attributes).await;
        // Its tag is not locked, and goes.
        if f.catalog.tag(&registry(), &repository("app"), &tag("v1")).await.unwrap().is_some() {
            untag(&f, "v1").await;
        }
        assert_eq!(remove_due(&f, 0).await, 0);
    }
    untag(&f, "about").await;
    assert_eq!(remove_due(&f, 0).await, 0);
    change(&f, Some(locked.as_str()), deleting(true)).await;
    change(&f, Some(locked.as_str()), writing(true)).await;
    change(&f, None, writing(false)).await;
    assert_eq!(remove_due(&f, 0).await, 0);
    change(&f, None, writing(true)).await;
    assert_eq!(remove_due(&f, 0).await, 1);
}

async fn soft_delete(f: &Fixture, enabled: Option<bool>, days: Option<u32>) -> SoftDelete {
    let change = SoftDeleteChange { enabled, days };
    let change = PoliciesChange { retention: None, soft_delete: Some(change) };
    f.catalog.change_policies(&registry(), change).await.unwrap().soft_delete
}

async fn delete(f: &Fixture, digest: &Digest) {
    let (registry, app, cause) = (registry(), repository("app"), push_cause());
    f.catalog.delete_manifest(&registry, &app, digest, &cause).await.unwrap();
}

fn a_tag(name: &str) -> ToRestore {
    ToRestore::Tag { tag: tag(name), digest: None, force: false }
}

fn a_manifest(digest: &Digest) -> ToRestore {
    ToRestore::Manifest(digest.clone())
}

async fn restore(f: &Fixture, wanted: ToRestore) -> store::Result<Restored> {
    let cause = Cause::Restore { principal: "tester".to_owned() };
    f.catalog.restore(&registry(), &repository("app"), &wanted, &cause).await
}

/// What can be restored: `v1 DIGEST` of tags, and digests of manifests.
async fn deleted(f: &Fixture) -> (Vec<String>, Vec<Digest>) {
    let (registry, app) = (registry(), repository("app"));
    let tags = f.catalog.deleted_tags(&registry, &app, None, 100).await.unwrap();
    let manifests = f.catalog.deleted_manifests(&registry, &app, None, 100).await.unwrap();
    let tags = tags.iter().map(|found| format!("{} {}", found.tag, found.digest));
    (tags.collect(), manifests.into_iter().map(|found| found.digest).collect())
}

async fn n10_retention_and_soft_delete_are_not_enabled_together(f: Fixture) {
    let at_first = f.catalog.policies(&registry()).await.unwrap();
    assert_eq!(at_first.soft_delete, SoftDelete { enabled: false, days: 7, updated_at: None });
    let change = async |retention: Option<bool>, soft_delete: Option<bool>| {
        let days = None;
        let change = PoliciesChange {
            retention: retention.map(|on| RetentionChange { enabled: Some(on), days }),
            soft_delete: soft_delete.map(|on| SoftDeleteChange { enabled: Some(on), days }),
        };
        f.catalog.change_policies(&registry(), change).await
    };
    let refused = |result: store::Result<_>| {
        let error: StoreError = result.map(|_: store::Policies| ()).unwrap_err();
        let StoreError::Exclusive { enabled, .. } = error else { panic!("{error}") };
        (error.to_string(), enabled)
    };
    change(None, Some(true)).await.unwrap();
    let (told, enabled) = refused(change(Some(true), None).await);
    assert_eq!(told, "retention of untagged manifests cannot be enabled while soft delete is");
    assert_eq!(enabled, Policy::SoftDelete);
    // The other one in the same request, and back; other days are no matter.
    change(Some(true), Some(false)).await.unwrap();
    retain(&f, None, Some(3)).await;
    soft_delete(&f, None, Some(90)).await;
    let (told, enabled) = refused(change(None, Some(true)).await);
    assert_eq!(told, "soft delete cannot be enabled while retention of untagged manifests is");
    assert_eq!(enabled, Policy::Retention);
    refused(change(Some(true), Some(true)).await);
    let policies = f.catalog.policies(&registry()).await.unwrap();
    assert!(policies.retention.enabled && !policies.soft_delete.enabled);
    assert_eq!((policies.retention.days, policies.soft_delete.days), (3, 90));
    // It is of one registry.
    let change = SoftDeleteChange { enabled: Some(true), days: None };
    let change = PoliciesChange { retention: None, soft_delete: Some(change) };
    f.catalog.change_policies(&"other".parse().unwrap(), change).await.unwrap();
}

async fn what_is_deleted_is_gone_for_everybody_and_can_be_restored(f: Fixture) {
    let (registry, app, cause) = (registry(), repository("app"), push_cause());
    let before = push(&f.catalog, "app", "v0", b"zero").await;
    delete(&f, &before).await;
    let policy = soft_delete(&f, Some(true), None).await;
    assert_eq!((policy.enabled, policy.days), (true, 7));
    assert_eq!(deleted(&f).await, (vec![], vec![]), "what was deleted before is gone");
    let first = push(&f.catalog, "app", "v1", b"one").await;
    let to = Some(&first);
    f.catalog.move_tag(&registry, &app, &tag("also"), &Expected::Any, to, &cause).await.unwrap();
    let about = image(b"{\"label\":\"v1\"}", &[b"one"], Some(&first));
    let about = put_manifest(&f.catalog, "app", about, &[]).await.unwrap();
    let info = f.catalog.manifest_info(&registry, &app, &first).await.unwrap().unwrap();
    assert_eq!(manifest(&f.catalog, "app", "v1").await, Some(first.clone()));
    let gone = f.catalog.delete_repository(&registry, &app, &cause).await.unwrap().count();
    assert_eq!((gone.manifests, gone.tags), (2, 2));
    assert!(!f.catalog.repository_exists(&registry, &app).await.unwrap());
    assert!(f.catalog.repositories(&registry, None, 9).await.unwrap().is_empty());
    for reference in ["v1", "also", first.as_str(), about.as_str()] {
        assert_eq!(manifest(&f.catalog, "app", reference).await, None, "{reference}");
    }
    assert!(f.catalog.tags(&registry, &app, None, 9).await.unwrap().is_empty());
    let referrers = f.catalog.referrers(&registry, &app, &first, None, None, 9).await.unwrap();
    assert!(referrers.0.is_empty());
    let mut manifests = vec![first.clone(), about.clone()];
    manifests.sort();
    let tags = vec![format!("also {first}"), format!("v1 {first}")];
    assert_eq!(deleted(&f).await, (tags, manifests));
    let [repository] = &f.catalog.deleted_repositories(&registry, None, 9).await.unwrap()[..]
    else {
        panic!("one repository")
    };
    assert_eq!((&repository.repository, repository.manifests, repository.tags), (&app, 2, 2));
    // Moves of tags tell of it as ever.
    let moves = f.catalog.tag_moves(0, 100).await.unwrap();
    assert_eq!(moves.iter().filter(|moved| moved.new.is_none()).count(), 3);

    let restored = restore(&f, a_tag("v1")).await.unwrap();
    let expected = Restored {
        digest: first.clone(),
        tag: Some(tag("v1")),
        with_manifest: true,
        deleted_members: vec![],
    };
    assert_eq!(restored, expected);
    assert_eq!(manifest(&f.catalog, "app", "v1").await, Some(first.clone()));
    assert_eq!(manifest(&f.catalog, "app", "also").await, None, "one tag at a time");
    let again = f.catalog.manifest_info(&registry, &app, &first).await.unwrap().unwrap();
    assert!(again.updated_at >= info.updated_at);
    let expected =
        store::ManifestInfo { tags: vec![tag("v1")], updated_at: again.updated_at, ..info };
    assert_eq!(again, expected);
    let blob = f.catalog.blob_size(&registry, &app, &Digest::of(b"one")).await.unwrap();
    assert_eq!(blob, Some(3));
    let moved = f.catalog.tag_moves(0, 100).await.unwrap().pop().unwrap();
    assert_eq!((moved.old, moved.new), (None, Some(first.clone())));
    assert_eq!(moved.cause, Cause::Restore { principal: "tester".to_owned() });
    // The other tag, whose manifest is there by now; and a manifest that had none.
    let restored = restore(&f, a_tag("also")).await.unwrap();
    assert_eq!((restored.digest, restored.with_manifest), (first.clone(), false));
    let restored = restore(&f, a_manifest(&about)).await.unwrap();
    assert_eq!((restored.tag, restored.with_manifest), (None, true));
    let referrers = f.catalog.referrers(&registry, &app, &first, None, None, 9).await.unwrap();
    assert_eq!(referrers.0.len(), 1);
    assert_eq!(deleted(&f).await, (vec![], vec![]));
    for wanted in [a_tag("v1"), a_tag("v9"), a_manifest(&about), a_manifest(&before)] {
        let error = restore(&f, wanted).await.unwrap_err();
        assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
    }
}

async fn n11_what_can_be_restored_is_not_pushed(f: Fixture) {
    soft_delete(&f, Some(true), None).await;
    let first = push(&f.catalog, "app", "v1", b"one").await;
    delete(&f, &first).await;
    let again = || image(b"{\"label\":\"v1\"}", &[b"one"], None);
    let error = put_manifest(&f.catalog, "app", again(), &[]).await.unwrap_err();
    assert_eq!(error.to_string(), format!("manifest {first} of repository `app` is soft-deleted"));
    assert_eq!(
        error.hint().unwrap(),
        format!("`refit manifest restore app@{first}` brings it back")
    );
    // Nor by an index that lists it; elsewhere it is nothing special.
    let index = ImageIndex {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.to_owned()),
        artifact_type: None,
        manifests: vec![Descriptor::new(media_type::OCI_MANIFEST, first.clone(), 1)],
        subject: None,
        annotations: BTreeMap::new(),
    };
    let bytes = Bytes::from(serde_json::to_vec(&index).unwrap());
    let (digest, index) = (Digest::of(&bytes), Manifest::Index(index));
    let new =
        NewManifest { digest: &digest, media_type: media_type::OCI_INDEX, bytes, manifest: &index };
    let cause = push_cause();
    let error = f.catalog.put_manifest(&registry(), &repository("app"), new, &[], &cause).await;
    assert!(matches!(error, Err(StoreError::SoftDeleted { .. })), "{error:?}");
    push(&f.catalog, "other", "v1", b"one").await;
    // Whatever else is pushed revives the repository, and takes the tag.
    let second = push(&f.catalog, "app", "v1", b"two").await;
    assert_eq!(manifest(&f.catalog, "app", "v1").await, Some(second.clone()));
    let error = restore(&f, a_tag("v1")).await.unwrap_err();
    assert_eq!(error.to_string(), "there is a `app:v1` by now");
    let force = ToRestore::Tag { tag: tag("v1"), digest: None, force: true };
    restore(&f, force).await.unwrap();
    assert_eq!(manifest(&f.catalog, "app", "v1").await, Some(first.clone()));
    // What had the tag has it no more, and can be given it again.
    assert!(manifest(&f.catalog, "app", second.as_str()).await.is_some());
    assert_eq!(deleted(&f).await, (vec![format!("v1 {second}")], vec![]));
    put_manifest(&f.catalog, "app", again(), &[]).await.unwrap();
}

async fn a_tag_is_restored_to_what_it_was_last_or_to_what_is_said(f: Fixture) {
    soft_delete(&f, Some(true), None).await;
    let (registry, app, cause) = (registry(), repository("app"), push_cause());
    let mut digests = Vec::new();
    for layer in [b"one", b"two"] {
        digests.push(push(&f.catalog, "app", "v1", layer).await);
        untag(&f, "v1").await;
        a_moment().await;
    }
    assert_eq!(deleted(&f).await.0.len(), 2);
    // An ordinary move leaves nothing to restore.
    push(&f.catalog, "app", "moved", b"one").await;
    push(&f.catalog, "app", "moved", b"two").await;
    assert_eq!(deleted(&f).await.0.len(), 2);
    assert_eq!(restore(&f, a_tag("v1")).await.unwrap().digest, digests[1]);
    let first = |force| ToRestore::Tag { tag: tag("v1"), digest: Some(digests[0].clone()), force };
    let error = restore(&f, first(false)).await.unwrap_err();
    assert!(matches!(error, StoreError::TagExists { .. }), "{error}");
    assert_eq!(restore(&f, first(true)).await.unwrap().digest, digests[0]);
    let error = restore(&f, first(true)).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
    // A tag that points there is not among those that can be restored to it.
    let to = Some(&digests[1]);
    f.catalog.move_tag(&registry, &app, &tag("v1"), &Expected::Any, to, &cause).await.unwrap();
    assert_eq!(deleted(&f).await.0.len(), 0);
    // Without the policy a tag that is taken away is gone, and so is one that is forced away.
    untag(&f, "v1").await;
    soft_delete(&f, Some(false), None).await;
    untag(&f, "moved").await;
    assert_eq!(deleted(&f).await.0, [format!("v1 {}", digests[1])]);
    push(&f.catalog, "app", "v1", b"three").await;
    let force = ToRestore::Tag { tag: tag("v1"), digest: None, force: true };
    assert_eq!(restore(&f, force).await.unwrap().digest, digests[1]);
    assert_eq!(deleted(&f).await.0.len(), 0);
}

async fn what_is_deleted_goes_for_good_when_its_time_has_come(f: Fixture) {
    let (registry, app) = (registry(), repository("app"));
    soft_delete(&f, Some(true), Some(2)).await;
    let first = push(&f.catalog, "app", "v1", b"one").await;
    let kept = push(&f.catalog, "app", "v2", b"two").await;
    untag(&f, "v2").await;
    delete(&f, &first).await;
    let at = last_move(&f).await;
    let after = async |days: i64| {
        let removed = f.catalog.remove_deleted(at + days * DAY + 50).await.unwrap();
        (removed.manifests, removed.tags)
    };
    assert_eq!(after(1).await, (0, 0));
    // The days of today count, also for what was deleted before, and also once it is switched off.
    soft_delete(&f, Some(false), Some(5)).await;
    assert_eq!(after(4).await, (0, 0));
    assert_eq!(deleted(&f).await.0.len(), 2);
    soft_delete(&f, None, Some(3)).await;
    assert_eq!(after(3).await, (1, 1));
    assert_eq!(deleted(&f).await, (vec![], vec![]));
    assert_eq!(after(90).await, (0, 0));
    assert_eq!(manifest(&f.catalog, "app", kept.as_str()).await, Some(kept.clone()));
    let error = restore(&f, a_tag("v1")).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
    // It can be pushed again; what is deleted for good takes what could be restored to it along.
    soft_delete(&f, Some(true), None).await;
    push(&f.catalog, "app", "v1", b"one").await;
    untag(&f, "v1").await;
    soft_delete(&f, Some(false), None).await;
    delete(&f, &first).await;
    assert_eq!(deleted(&f).await, (vec![], vec![]));
    assert!(f.catalog.repository_exists(&registry, &app).await.unwrap());
}

async fn collection_spares_what_can_be_restored(f: Fixture) {
    let (registry, app) = (registry(), repository("app"));
    soft_delete(&f, Some(true), None).await;
    let first = push(&f.catalog, "app", "v1", b"one").await;
    let layer = Digest::of(b"one");
    delete(&f, &first).await;
    for _ in 0..2 {
        a_moment().await;
        let report = f.catalog.collect_garbage(&now_or_never()).await.unwrap();
        assert_eq!(report.blobs, []);
    }
    assert_eq!(f.catalog.stored_size().await.unwrap().blobs, 3, "it counts as stored");
    // Whoever knows a digest gets nothing by it that a deleted image had.
    assert_eq!(f.catalog.blob_size(&registry, &app, &layer).await.unwrap(), None);
    let found = f.catalog.repositories_with_blob(&registry, &layer, 9).await.unwrap();
    assert_eq!(found, []);
    // Damage is found and told of.
    f.damage(&layer, flipped, b"one");
    assert_eq!(scrub(&f.catalog).await, 1);
    let lost = f.catalog.lost_blobs().await.unwrap();
    assert_eq!(lost[0].repositories, [(registry.clone(), app.clone())]);
    put(&f.catalog, b"one").await;
    restore(&f, a_tag("v1")).await.unwrap();
    assert_eq!(f.catalog.blob_size(&registry, &app, &layer).await.unwrap(), Some(3));
    assert_eq!(manifest(&f.catalog, "app", "v1").await, Some(first.clone()));
    a_moment().await;
    assert_eq!(f.catalog.collect_garbage(&now_or_never()).await.unwrap().blobs, []);
    assert_eq!(get(&**f.catalog.blobs(), &layer, 0).await.unwrap(), b"one");
    // A damaged layer keeps nothing from being restored: whoever stores it again repairs that.
    delete(&f, &first).await;
    f.damage(&layer, flipped, b"one");
    assert_eq!(scrub(&f.catalog).await, 1);
    restore(&f, a_tag("v1")).await.unwrap();
    assert_eq!(f.catalog.blob_size(&registry, &app, &layer).await.unwrap(), None);
    put(&f.catalog, b"one").await;
    assert_eq!(f.catalog.blob_size(&registry, &app, &layer).await.unwrap(), Some(3));
    // Once it is deleted for good, it is as if it had just been deleted.
    delete(&f, &first).await;
    a_moment().await;
    f.catalog.collect_garbage(&now_or_never()).await.unwrap();
    f.catalog.remove_deleted(last_move(&f).await + 8 * DAY).await.unwrap();
    a_moment().await;
    let report = f.catalog.collect_garbage(&now_or_never()).await.unwrap();
    assert_eq!(report.blobs.len(), 3, "{report:?}");
}

async fn a_subject_is_restored_before_its_referrers(f: Fixture) {
    soft_delete(&f, Some(true), None).await;
    let subject = push(&f.catalog, "app", "v1", b"one").await;
    let about = image(b"{\"label\":\"v1\"}", &[b"one"], Some(&subject));
    let about = put_manifest(&f.catalog, "app", about, &[]).await.unwrap();
    a_moment().await;
    delete(&f, &subject).await;
    a_moment().await;
    // What collection takes can be restored as well.
    let report = f.catalog.collect_garbage(&now_or_never()).await.unwrap();
    assert_eq!((report.manifests.len(), report.blobs.len()), (1, 0), "{report:?}");
    assert_eq!(deleted(&f).await.1.len(), 2);
    let error = restore(&f, a_manifest(&about)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("the subject {subject} of manifest {about} is soft-deleted")
    );
    restore(&f, a_tag("v1")).await.unwrap();
    restore(&f, a_manifest(&about)).await.unwrap();
    a_moment().await;
    let report = f.catalog.collect_garbage(&now_or_never()).await.unwrap();
    assert!(report.manifests.is_empty() && report.blobs.is_empty(), "{report:?}");
    // Where the subject is gone for good, who wants its referrer has it.
    delete(&f, &about).await;
    soft_delete(&f, Some(false), None).await;
    delete(&f, &subject).await;
    restore(&f, a_manifest(&about)).await.unwrap();
    a_moment().await;
    let report = f.catalog.collect_garbage(&now_or_never()).await.unwrap();
    assert!(report.manifests.is_empty(), "{report:?}");
    assert_eq!(manifest(&f.catalog, "app", about.as_str()).await, Some(about));
}

async fn an_index_is_restored_without_its_members(f: Fixture) {
    soft_delete(&f, Some(true), None).await;
    let (registry, app, cause) = (registry(), repository("app"), push_cause());
    let first = push(&f.catalog, "app", "v1", b"one").await;
    let second = push(&f.catalog, "app", "v2", b"two").await;
    let index = put_index(&f.catalog, "app", &[&first, &second], "all").await;
    let to = Some(&index);
    f.catalog.move_tag(&registry, &app, &tag("all"), &Expected::Any, to, &cause).await.unwrap();
    delete(&f, &index).await;
    delete(&f, &first).await;
    let restored = restore(&f, a_tag("all")).await.unwrap();
    assert_eq!(restored.deleted_members, std::slice::from_ref(&first));
    assert_eq!(manifest(&f.catalog, "app", first.as_str()).await, None);
    assert_eq!(manifest(&f.catalog, "app", "all").await, Some(index.clone()));
    assert!(restore(&f, a_manifest(&first)).await.unwrap().deleted_members.is_empty());
    // It knows its members as before.
    let above = f.catalog.indexes_above(&registry, &app, &first, 9).await.unwrap();
    assert_eq!(above[0].digest, index);
}

async fn what_is_locked_is_neither_soft_deleted_nor_restored_into(f: Fixture) {
    soft_delete(&f, Some(true), None).await;
    let (registry, app, cause) = (registry(), repository("app"), push_cause());
    let first = push(&f.catalog, "app", "v1", b"one").await;
    push(&f.catalog, "app", "v2", b"two").await;
    change(&f, Some("v1"), deleting(false)).await;
    assert_eq!(
        lock(f.catalog.delete_repository(&registry, &app, &cause).await),
        "app:v1 deleteEnabled"
    );
    assert_eq!(deleted(&f).await, (vec![], vec![]));
    change(&f, Some("v1"), deleting(true)).await;
    change(&f, Some("v1"), listing(false)).await;
    change(&f, Some(first.as_str()), reading(false)).await;
    delete(&f, &first).await;
    // It is hidden as it was, and nobody reads it once it is there again.
    assert_eq!(deleted(&f).await, (vec![], vec![first.clone()]));
    change(&f, None, writing(false)).await;
    for wanted in [a_tag("v1"), a_manifest(&first)] {
        assert_eq!(lock(restore(&f, wanted).await), "app writeEnabled");
    }
    change(&f, None, writing(true)).await;
    restore(&f, a_tag("v1")).await.unwrap();
    let by_tag = ManifestRef::Tag(tag("v1"));
    let read = f.catalog.manifest(&registry, &app, &by_tag).await;
    assert!(matches!(read, Err(StoreError::Locked(_))), "{read:?}");
    assert!(
        !f.catalog.tag(&registry, &app, &tag("v1")).await.unwrap().unwrap().attributes.list_enabled
    );
    // Nor is a tag moved that nobody may write.
    untag(&f, "v2").await;
    push(&f.catalog, "app", "v2", b"three").await;
    change(&f, Some("v2"), writing(false)).await;
    let force = ToRestore::Tag { tag: tag("v2"), digest: None, force: true };
    assert_eq!(lock(restore(&f, force).await), "app:v2 writeEnabled");
    change(&f, Some("v2"), writing(true)).await;
    // A repository of which something can be restored keeps its attributes.
    change(&f, None, reading(false)).await;
    f.catalog.delete_repository(&registry, &app, &cause).await.unwrap();
    restore(&f, a_tag("v2")).await.unwrap();
    let info = f.catalog.repository(&registry, &app).await.unwrap().unwrap();
    assert!(!info.attributes.read_enabled);
    f.catalog.delete_repository(&registry, &app, &cause).await.unwrap();
    f.catalog.remove_deleted(last_move(&f).await + 8 * DAY).await.unwrap();
    push(&f.catalog, "app", "v2", b"two").await;
    let info = f.catalog.repository(&registry, &app).await.unwrap().unwrap();
    assert!(info.attributes.read_enabled);
}

async fn copies_are_not_soft_deleted(f: Fixture) {
    soft_delete(&f, Some(true), None).await;
    let (registry, app, cause) = (registry(), repository("app"), push_cause());
    let bytes = Bytes::from(serde_json::to_vec(&image(b"{}", &[b"one"], None)).unwrap());
    let (digest, media_type) = (Digest::of(&bytes), media_type::OCI_MANIFEST);
    let copied = Manifest::parse(&bytes, Some(media_type)).unwrap();
    let copy = async || {
        let new =
            NewManifest { digest: &digest, media_type, bytes: bytes.clone(), manifest: &copied };
        f.catalog.put_copy(&registry, &app, new, Some(&tag("v1")), &cause).await.unwrap();
    };
    copy().await;
    untag(&f, "v1").await;
    copy().await;
    delete(&f, &digest).await;
    assert_eq!(deleted(&f).await, (vec![], vec![]));
    // What was pushed here, and is copied then, is not there twice.
    for blob in [&b"{}"[..], b"one"] {
        let blob = put(&f.catalog, blob).await;
        f.catalog.link_blob(&registry, &app, &blob).await.unwrap();
    }
    let tags = [(tag("v1"), Expected::Any)];
    put_manifest(&f.catalog, "app", image(b"{}", &[b"one"], None), &tags).await.unwrap();
    delete(&f, &digest).await;
    assert_eq!(deleted(&f).await.1, std::slice::from_ref(&digest));
    copy().await;
    assert_eq!(deleted(&f).await, (vec![], vec![]));
    assert_eq!(manifest(&f.catalog, "app", "v1").await, Some(digest));
}

async fn lists_of_what_was_deleted_go_on_after_their_last(f: Fixture) {
    soft_delete(&f, Some(true), None).await;
    let (registry, app, cause) = (registry(), repository("app"), push_cause());
    for label in ["v1", "v2"] {
        for layer in [b"one", b"two"] {
            push(&f.catalog, "app", label, layer).await;
            untag(&f, label).await;
        }
    }
    for name in ["b", "c/d"] {
        push(&f.catalog, name, "v1", b"one").await;
        f.catalog.delete_repository(&registry, &repository(name), &cause).await.unwrap();
    }
    f.catalog.delete_repository(&registry, &app, &cause).await.unwrap();
    let tags = async |last: Option<&store::DeletedTag>| {
        let last = last.map(|last| (&last.tag, last.deleted_at, &last.digest));
        f.catalog.deleted_tags(&registry, &app, last, 3).await.unwrap()
    };
    let first = tags(None).await;
    let rest = tags(first.last()).await;
    let all: Vec<_> =
        first.iter().chain(&rest).map(|tag| (&tag.tag, tag.deleted_at, &tag.digest)).collect();
    assert_eq!((first.len(), rest.len()), (3, 1));
    assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
    let page = f.catalog.deleted_manifests(&registry, &app, None, 3).await.unwrap();
    assert!(page.iter().all(|found| found.tags.len() == 1 && found.deleted_at >= found.pushed_at));
    let rest = f.catalog.deleted_manifests(&registry, &app, Some(&page[2].digest), 3).await;
    assert_eq!((page.len(), rest.unwrap().len()), (3, 1));
    let names = async |last: Option<&str>| {
        let found = f.catalog.deleted_repositories(&registry, last, 2).await.unwrap();
        found.iter().map(|found| found.repository.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(None).await, ["app", "b"]);
    assert_eq!(names(Some("b")).await, ["c/d"]);
}

async fn a_blob_in_use_cannot_be_unlinked(f: Fixture) {
    push(&f.catalog, "app", "v1", b"layer").await;
    let loose = put(&f.catalog, b"loose").await;
    let (registry, name) = (registry(), repository("app"));
    f.catalog.link_blob(&registry, &name, &loose).await.unwrap();
    let error = f.catalog.unlink_blob(&registry, &name, &Digest::of(b"layer")).await.unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }));
    f.catalog.unlink_blob(&registry, &name, &loose).await.unwrap();
    let error = f.catalog.unlink_blob(&registry, &name, &loose).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }));
}

async fn referrers_are_listed_whether_or_not_the_subject_exists(f: Fixture) {
    let config = put(&f.catalog, b"{}").await;
    f.catalog.link_blob(&registry(), &repository("app"), &config).await.unwrap();
    let subject = Digest::of(b"some manifest");
    let about = image(b"{}", &[], Some(&subject));
    let digest = put_manifest(&f.catalog, "app", about, &[]).await.unwrap();
    let referrers = async |name: &str, kind: Option<&str>| {
        let name = repository(name);
        let page = f.catalog.referrers(&registry(), &name, &subject, kind, None, 10).await.unwrap();
        assert_eq!(page.1, None);
        page.0
    };
    let found = referrers("app", None).await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].descriptor.digest, digest);
    assert_eq!(found[0].descriptor.artifact_type.as_deref(), Some(media_type::OCI_CONFIG));
    assert_eq!(referrers("app", Some(media_type::OCI_CONFIG)).await, found);
    assert!(referrers("app", Some("example/other")).await.is_empty());
    assert!(referrers("other", None).await.is_empty());
}

async fn pages_of_referrers_are_bounded_and_go_on_when_their_last_is_deleted(f: Fixture) {
    let (registry, name) = (registry(), repository("app"));
    let config = put(&f.catalog, b"{}").await;
    f.catalog.link_blob(&registry, &name, &config).await.unwrap();
    let subject = Digest::of(b"some manifest");
    let mut digests = Vec::new();
    for number in 0..5 {
        let mut about = image(b"{}", &[], Some(&subject));
        // Two of them fit into 4 MiB, a third does not.
        let note = format!("{number}{}", "x".repeat(1_500_000));
        about.annotations.insert("note".to_owned(), note);
        digests.push(put_manifest(&f.catalog, "app", about, &[]).await.unwrap());
    }
    digests.sort();
    let page = async |last: Option<&Digest>, limit| {
        let page = f.catalog.referrers(&registry, &name, &subject, None, last, limit).await;
        let (found, next) = page.unwrap();
        (found.into_iter().map(|found| found.descriptor.digest).collect::<Vec<_>>(), next)
    };
    assert_eq!(page(None, 10).await, (digests[..2].to_vec(), Some(digests[1].clone())));
    assert_eq!(page(None, 1).await, (digests[..1].to_vec(), Some(digests[0].clone())));
    let last = &digests[1];
    f.catalog.delete_manifest(&registry, &name, last, &push_cause()).await.unwrap();
    assert_eq!(page(Some(last), 10).await, (digests[2..4].to_vec(), Some(digests[3].clone())));
    assert_eq!(page(Some(&digests[3]), 10).await, (digests[4..].to_vec(), None));
    assert_eq!(page(Some(&digests[4]), 10).await, (vec![], None));
}

async fn collection_deletes_what_nothing_reaches_and_nothing_else(f: Fixture) {
    let kept = push(&f.catalog, "app", "v1", b"shared layer").await;
    let gone = push(&f.catalog, "other", "v2", b"shared layer").await;
    let own = push(&f.catalog, "other", "v3", b"own layer").await;
    let (registry, name, cause) = (registry(), repository("other"), push_cause());
    for digest in [&gone, &own] {
        f.catalog.delete_manifest(&registry, &name, digest, &cause).await.unwrap();
    }
    a_moment().await;
    let dry = GcOptions { dry_run: true, ..now_or_never() };
    let planned = f.catalog.collect_garbage(&dry).await.unwrap();
    assert!(f.catalog.blobs().size(&gone).await.unwrap().is_some(), "a dry run deletes nothing");
    let report = f.catalog.collect_garbage(&now_or_never()).await.unwrap();
    assert_eq!(planned.blobs, report.blobs);
    let blobs = f.catalog.blobs();
    for (bytes, there) in [(&b"shared layer"[..], true), (b"own layer", false)] {
        assert_eq!(blobs.size(&Digest::of(bytes)).await.unwrap().is_some(), there);
    }
    // Two manifests, two configs, one layer.
    assert_eq!(report.blobs.len(), 5);
    assert_eq!(manifest(&f.catalog, "app", "v1").await, Some(kept));
    let again = f.catalog.collect_garbage(&now_or_never()).await.unwrap();
    assert!(again.blobs.is_empty());
    let shared = Digest::of(b"shared layer");
    let found = f.catalog.repositories_with_blob(&registry, &shared, 9).await.unwrap();
    assert_eq!(found, [repository("app")], "a repository keeps no blob that it does not need");
    assert_eq!(f.catalog.blob_size(&registry, &name, &shared).await.unwrap(), None);
    push(&f.catalog, "other", "v3", b"own layer").await;
    assert_eq!(get(&**blobs, &Digest::of(b"own layer"), 0).await.unwrap(), b"own layer");
}

async fn collection_spares_what_is_young_leased_cached_or_seen(f: Fixture) {
    let leased = put(&f.catalog, b"leased").await;
    f.catalog.lease_blob("run1", &leased, Duration::from_secs(60)).await.unwrap();
    let cached = put(&f.catalog, b"cached").await;
    let entry = CacheEntry { value: "{}".to_owned(), blobs: vec![cached.clone()], cost: 5 };
    f.catalog.cache_put("local", &Digest::of(b"key"), &entry).await.unwrap();
    let loose = put(&f.catalog, b"loose").await;
    let young = GcOptions { grace: Duration::from_secs(60), ..now_or_never() };
    assert!(f.catalog.collect_garbage(&young).await.unwrap().blobs.is_empty());
    a_moment().await;
    let report = f.catalog.collect_garbage(&now_or_never()).await.unwrap();
    assert_eq!(report.blobs, [(loose, 5)]);
    f.catalog.release_leases("run1").await.unwrap();
    a_moment().await;
    let report = f.catalog.collect_garbage(&now_or_never()).await.unwrap();
    assert_eq!(report.blobs, [(leased, 6)]);
    let found = f.catalog.cache_get("local", &Digest::of(b"key")).await.unwrap();
    assert_eq!(found, Some(entry));
    let error = f.catalog.lease_blob("run1", &Digest::of(b"no"), Duration::ZERO).await;
    assert!(matches!(error, Err(StoreError::NotFound { .. })));
    // A client that was told of a blob may rely on it.
    let seen = put(&f.catalog, b"seen").await;
    f.catalog.link_blob(&registry(), &repository("app"), &seen).await.unwrap();
    a_moment().await;
    let grace = GcOptions { grace: Duration::from_millis(300), ..now_or_never() };
    tokio::time::sleep(Duration::from_millis(310)).await;
    assert!(f.catalog.blob_size(&registry(), &repository("app"), &seen).await.unwrap().is_some());
    assert!(f.catalog.collect_garbage(&grace).await.unwrap().blobs.is_empty());
}

async fn collection_takes_referrers_of_a_deleted_subject_only(f: Fixture) {
    let subject = push(&f.catalog, "app", "v1", b"layer").await;
    let config = put(&f.catalog, b"{}").await;
    f.catalog.link_blob(&registry(), &repository("app"), &config).await.unwrap();
    let about = image(b"{}", &[], Some(&subject));
    let about = put_manifest(&f.catalog, "app", about, &[]).await.unwrap();
    let never = Digest::of(b"never pushed");
    let early = image(b"{}", &[], Some(&never));
    let early = put_manifest(&f.catalog, "app", early, &[]).await.unwrap();
    a_moment().await;
    f.catalog.collect_garbage(&now_or_never()).await.unwrap();
    let (registry, name, cause) = (registry(), repository("app"), push_cause());
    f.catalog.delete_manifest(&registry, &name, &subject, &cause).await.unwrap();
    assert!(manifest(&f.catalog, "app", about.as_str()).await.is_some(), "still readable");
    a_moment().await;
    let dry = GcOptions { dry_run: true, ..now_or_never() };
    let planned = f.catalog.collect_garbage(&dry).await.unwrap();
    assert_eq!(planned.manifests, [(registry.clone(), name.clone(), about.clone())]);
    assert!(manifest(&f.catalog, "app", about.as_str()).await.is_some(), "nothing is deleted");
    assert_eq!(f.catalog.collect_garbage(&now_or_never()).await.unwrap(), planned);
    assert_eq!(manifest(&f.catalog, "app", about.as_str()).await, None);
    assert_eq!(manifest(&f.catalog, "app", early.as_str()).await, Some(early.clone()));
}

/// Pushers that share layers, deleters and a collector that leaves no grace beyond what a
/// push takes: whatever was acknowledged must be whole.
async fn collection_beside_pushes_never_breaks_one(f: Fixture) {
    let collector = {
        let catalog = f.catalog.clone();
        let options = GcOptions { grace: Duration::from_secs(2), ..now_or_never() };
        tokio::spawn(async move {
            loop {
                catalog.collect_garbage(&options).await.unwrap();
                tokio::task::yield_now().await;
            }
        })
    };
    let pushers = (0..4).map(|pusher| {
        let catalog = f.catalog.clone();
        tokio::spawn(async move {
            for round in 0..25 {
                let label = format!("p{pusher}-{round}");
                let layer = format!("layer {}", round % 3);
                let digest = push(&catalog, "app", &label, layer.as_bytes()).await;
                if round % 2 == 0 {
                    let (registry, name) = (registry(), repository("app"));
                    let deleted =
                        catalog.delete_manifest(&registry, &name, &digest, &push_cause()).await;
                    deleted.unwrap();
                }
            }
        })
    });
    for pusher in pushers.collect::<Vec<_>>() {
        pusher.await.unwrap();
    }
    collector.abort();
    let tags = f.catalog.tags(&registry(), &repository("app"), None, 1000).await.unwrap();
    assert_eq!(tags.len(), 4 * 12);
    for round in 0..3 {
        let bytes = format!("layer {round}");
        let digest = Digest::of(bytes.as_bytes());
        assert_eq!(get(&**f.catalog.blobs(), &digest, 0).await.unwrap(), bytes.as_bytes());
    }
}

async fn the_cache_is_bounded_by_value(f: Fixture) {
    for (name, cost) in [("cheap", 1), ("dear", 1_000_000), ("middling", 1000)] {
        let blob = put(&f.catalog, format!("{name:>10000}").as_bytes()).await;
        let entry = CacheEntry { value: name.to_owned(), blobs: vec![blob], cost };
        f.catalog.cache_put("local", &Digest::of(name.as_bytes()), &entry).await.unwrap();
    }
    let bound = GcOptions { cache_size_max: 23_000, ..now_or_never() };
    a_moment().await;
    let report = f.catalog.collect_garbage(&bound).await.unwrap();
    assert_eq!(report.cache_entries, 1);
    for (name, there) in [("cheap", false), ("dear", true), ("middling", true)] {
        let found = f.catalog.cache_get("local", &Digest::of(name.as_bytes())).await.unwrap();
        assert_eq!(found.is_some(), there, "{name}");
        let other = f.catalog.cache_get("fork", &Digest::of(name.as_bytes())).await.unwrap();
        assert_eq!(other, None, "namespaces are apart");
    }
}

async fn build_records_live_with_their_manifest(f: Fixture) {
    let digest = push(&f.catalog, "app", "v1", b"layer").await;
    let (registry, name) = (registry(), repository("app"));
    let reference = ManifestRef::Digest(digest.clone());
    let bytes = f.catalog.manifest(&registry, &name, &reference).await.unwrap().unwrap().bytes;
    let media_type = media_type::OCI_MANIFEST;
    let manifest = Manifest::parse(&bytes, Some(media_type)).unwrap();
    let new = NewManifest { digest: &digest, media_type, bytes, manifest: &manifest };
    let (record, cause) = ("{\"bases\":[]}", push_cause());
    f.catalog.put_built(&registry, &name, new, record, &[], &cause).await.unwrap();
    let index = put(&f.catalog, b"path index").await;
    let read = ReadLayer { index: index.clone(), diff_id: Digest::of(b"unpacked") };
    f.catalog.put_read_layer(&Digest::of(b"layer"), &read).await.unwrap();
    a_moment().await;
    f.catalog.collect_garbage(&now_or_never()).await.unwrap();
    let found = f.catalog.build_record(&registry, &digest).await.unwrap();
    assert_eq!(found, Some(BuildRecordText { record: record.to_owned(), run: None }));
    let found = f.catalog.read_layer(&Digest::of(b"layer")).await.unwrap();
    assert_eq!(found, Some(read));
    f.catalog.delete_manifest(&registry, &name, &digest, &push_cause()).await.unwrap();
    for _ in 0..2 {
        a_moment().await;
        f.catalog.collect_garbage(&now_or_never()).await.unwrap();
    }
    assert_eq!(f.catalog.build_record(&registry, &digest).await.unwrap(), None);
    assert_eq!(f.catalog.read_layer(&Digest::of(b"layer")).await.unwrap(), None);
    assert_eq!(f.catalog.blobs().size(&index).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_caller_goes_away_leaves_nothing_but_its_blob() {
    let folder = tempfile::tempdir().unwrap();
    let disk = DiskStore::open(folder.path(), db::Db::in_memory().await.unwrap()).await.unwrap();
    for round in 0..200_u64 {
        let whole = async {
            let mut upload = disk.begin_upload(Algorithm::Sha256).await.unwrap();
            upload.write(round.to_string().into()).await.unwrap();
            upload.commit(None).await.unwrap();
        };
        // Somewhere between the beginning and the end.
        let patience = std::time::Duration::from_micros(round * 15);
        let _ended_or_not = tokio::time::timeout(patience, whole).await;
    }
    let uploads = folder.path().join("uploads");
    let left = || std::fs::read_dir(&uploads).unwrap().count();
    for _ in 0..500 {
        if left() == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{} files are left", left());
}
