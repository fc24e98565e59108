//! Commands of `acr` over a real catalog: each rule of builtin-commands.md, sections 2 to 4.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use expect_test::{Expect, expect};
use housekeeping::acr::{self, OwnRegistry, Previews};
use housekeeping::{HousekeepingError, MayAll, Record, Records, Registry};
use oci::{
    Algorithm, Descriptor, Digest, ImageIndex, ImageManifest, Manifest, RegistryName,
    RepositoryName, Tag, media_type,
};
use store::{
    AttributesChange, Catalog, Cause, Expected, ManifestRef, MemoryStore, Millis, NewManifest,
};
use tokio_util::sync::CancellationToken;

const HOST: &str = "registry.test";
const HOUR: Millis = 60 * 60 * 1000;

/// A registry in memory, and short names for its manifests.
struct Fixture {
    catalog: Catalog,
    labels: Mutex<BTreeMap<String, String>>,
    may_unlock: bool,
}

/// What a command said, and why it failed.
#[derive(Debug)]
struct Told {
    text: String,
    error: Option<String>,
}

impl Told {
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.error, None);
        self.text
    }

    #[track_caller]
    fn error(self) -> String {
        self.error.unwrap_or_else(|| panic!("it should fail: {}", self.text))
    }
}

/// Collects lines, and does something at the first item.
struct Lines<F> {
    lines: Mutex<Vec<String>>,
    at_first_item: tokio::sync::Mutex<Option<F>>,
}

#[async_trait]
impl<F: AsyncOnce> Records for Lines<F> {
    async fn take(&self, record: Record) {
        self.lines.lock().unwrap().push(record.text(HOST));
        if matches!(record, Record::Item { .. })
            && let Some(act) = self.at_first_item.lock().await.take()
        {
            act.act().await;
        }
    }
}

#[async_trait]
trait AsyncOnce: Send + Sync {
    async fn act(self);
}

struct Nothing;

#[async_trait]
impl AsyncOnce for Nothing {
    async fn act(self) {}
}

impl Fixture {
    async fn new() -> Self {
        let db = db::Db::in_memory().await.unwrap();
        let blobs = Arc::new(MemoryStore::open(db.clone()).await.unwrap());
        let catalog = Catalog::open(db, blobs).await.unwrap();
        Self { catalog, labels: Mutex::default(), may_unlock: true }
    }

    async fn put(&self, name: &str, label: &str, tags: &[&str], manifest: Manifest) -> Digest {
        let bytes = match &manifest {
            Manifest::Image(image) => serde_json::to_vec(image),
            Manifest::Index(index) => serde_json::to_vec(index),
            Manifest::Artifact(_) => panic!("nobody makes them any more"),
        };
        let bytes = bytes.unwrap();
        let digest = Digest::of(&bytes);
        let media_type = manifest.media_type();
        let new =
            NewManifest { digest: &digest, media_type, bytes: bytes.into(), manifest: &manifest };
        let (registry, repository, cause) = (registry(), repository(name), cause());
        self.catalog.put_manifest(&registry, &repository, new, &[], &cause).await.unwrap();
        self.labels.lock().unwrap().insert(digest.to_string(), label.to_owned());
        a_moment().await;
        for name in tags {
            move_tag(&self.catalog, repository.as_str(), &tag(name), Some(&digest)).await;
            a_moment().await;
        }
        digest
    }

    /// Puts an image that says no more than its label.
    async fn image(&self, name: &str, label: &str, tags: &[&str]) -> Digest {
        self.referrer(name, label, tags, None).await
    }

    async fn referrer(
        &self,
        name: &str,
        label: &str,
        tags: &[&str],
        subject: Option<&Digest>,
    ) -> Digest {
        let mut upload = self.catalog.blobs().begin_upload(Algorithm::Sha256).await.unwrap();
        upload.write(Bytes::from_static(b"{}")).await.unwrap();
        let config = upload.commit(None).await.unwrap().digest;
        self.catalog.link_blob(&registry(), &repository(name), &config).await.unwrap();
        let image = ImageManifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.to_owned()),
            artifact_type: None,
            config: Descriptor::of(media_type::OCI_CONFIG, b"{}"),
            layers: Vec::new(),
            subject: subject.map(|it| Descriptor::new(media_type::OCI_MANIFEST, it.clone(), 1)),
            annotations: BTreeMap::from([("label".to_owned(), label.to_owned())]),
        };
        self.put(name, label, tags, Manifest::Image(Box::new(image))).await
    }

    async fn index(
        &self,
        name: &str,
        label: &str,
        tags: &[&str],
        members: &[&Digest],
        subject: Option<&Digest>,
    ) -> Digest {
        let of = |it: &Digest| Descriptor::new(media_type::OCI_MANIFEST, it.clone(), 1);
        let index = ImageIndex {
            schema_version: 2,
            media_type: Some(media_type::OCI_INDEX.to_owned()),
            artifact_type: None,
            manifests: members.iter().map(|it| of(it)).collect(),
            subject: subject.map(of),
            annotations: BTreeMap::from([("label".to_owned(), label.to_owned())]),
        };
        self.put(name, label, tags, Manifest::Index(index)).await
    }

    /// Runs the words of a command, an hour from now. Digests are told by their labels.
    async fn acr(&self, line: &str) -> Told {
        self.acr_at(line, now() + HOUR).await
    }

    async fn acr_at(&self, line: &str, now: Millis) -> Told {
        self.acr_with(line, now, Nothing, &CancellationToken::new()).await
    }

    async fn acr_with(
        &self,
        line: &str,
        now: Millis,
        at_first_item: impl AsyncOnce,
        cancel: &CancellationToken,
    ) -> Told {
        let mut line = line.to_owned();
        for (digest, label) in &*self.labels.lock().unwrap() {
            line = line.replace(&format!("@{label}"), digest);
        }
        let lines = Lines { lines: Mutex::default(), at_first_item: Some(at_first_item).into() };
        let error = self.run(&line, now, &lines, cancel).await.err();
        let mut text: String =
            lines.lines.into_inner().unwrap().iter().map(|line| format!("{line}\n")).collect();
        for (digest, label) in &*self.labels.lock().unwrap() {
            text = text.replace(digest, label);
        }
        Told { text, error }
    }

    async fn run(
        &self,
        line: &str,
        now: Millis,
        records: &dyn Records,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let hosts = [HOST.to_owned()];
        let own = OwnRegistry { name: "local", hosts: &hosts, default: None };
        let previews = Previews { annotate: true };
        let command = acr::parse(&words, &own, previews).map_err(|error| error.to_string())?;
        let refused = |name: &RepositoryName| {
            name.as_str().starts_with("copies").then(|| format!("`{name}` holds copies"))
        };
        let registry = Registry {
            catalog: self.catalog.clone(),
            name: registry(),
            login_server: HOST.to_owned(),
            cause: Cause::Purge { run: Some("ca1".to_owned()), principal: None },
            may_unlock: self.may_unlock,
            refused: Arc::new(refused),
            may: Arc::new(MayAll),
            now,
        };
        let ran = acr::run(&registry, &command, records, cancel).await;
        ran.map_err(|error: HousekeepingError| error.to_string())
    }

    /// The tags of a repository, and the labels of its manifests.
    async fn content(&self, name: &str) -> String {
        let tags = self.catalog.tags(&registry(), &repository(name), None, 1000).await.unwrap();
        let found = self.catalog.manifests(&registry(), &repository(name), None, 1000).await;
        let labels = self.labels.lock().unwrap();
        let tags: Vec<_> = tags.iter().map(|it| it.tag.to_string()).collect();
        let mut manifests: Vec<_> =
            found.unwrap().iter().map(|it| labels[it.digest.as_str()].clone()).collect();
        manifests.sort();
        format!("{} | {}", tags.join(" "), manifests.join(" "))
    }

    async fn updated_at(&self, name: &str) -> Millis {
        let tags = self.catalog.tags(&registry(), &repository(name), None, 1).await.unwrap();
        tags[0].updated_at
    }

    async fn manifest_updated_at(&self, name: &str) -> Millis {
        let found = self.catalog.manifests(&registry(), &repository(name), None, 1).await.unwrap();
        found[0].updated_at
    }

    async fn untag(&self, name: &str, text: &str) {
        move_tag(&self.catalog, name, &tag(text), None).await;
    }
}

#[expect(clippy::disallowed_methods, reason = "a test is an edge")]
fn now() -> Millis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Millis::try_from(since.as_millis()).unwrap()
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

fn cause() -> Cause {
    Cause::Push { principal: "tester".to_owned() }
}

/// Times have milliseconds: what comes next is younger.
async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(2)).await;
}

async fn move_tag(catalog: &Catalog, name: &str, tag: &Tag, to: Option<&Digest>) {
    let (registry, name, cause) = (registry(), repository(name), cause());
    catalog.move_tag(&registry, &name, tag, &Expected::Any, to, &cause).await.unwrap();
}

#[track_caller]
fn check(actual: &str, expected: Expect) {
    expected.assert_eq(actual);
}

#[tokio::test]
async fn m1_m2_m3_m6_m10_what_is_refused_deletes_nothing() {
    let f = Fixture::new().await;
    f.image("a", "one", &["v1"]).await;
    f.image("a", "two", &[]).await;
    for (line, error) in [
        ("purge --filter a:.*", "there is no `--ago`"),
        ("purge --ago 0d", "there is no `--filter`"),
        (
            "purge --filter a:.* --ago 0d --untagged --untagged-only",
            "`--untagged` and `--untagged-only` exclude each other",
        ),
        (
            "purge --filter a --ago 0d",
            "the filter `a` does not part a repository from a tag by one `:`",
        ),
        ("purge --filter a:.* --ago bad", "`bad` is not a duration"),
        ("purge --filter a:.* --ago d", "`d` is not a duration"),
        ("purge --filter a:.* --ago -1d", "`-1d` is not a duration"),
    ] {
        assert_eq!(f.acr(line).await.error(), error, "{line}");
    }
    assert_eq!(f.content("a").await, "v1 | one two");
}

#[tokio::test]
async fn m4_m5_m7_tags_that_match_are_deleted_and_manifests_stay() {
    let f = Fixture::new().await;
    f.image("a", "one", &["v1", "v10", "xv1", "w"]).await;
    let dry = f.acr("purge -f a:v1 --ago 0d --dry-run").await.ok();
    check(
        &dry,
        expect![[r#"
            Would delete: registry.test/a:xv1
            Would delete: registry.test/a:v10
            Would delete: registry.test/a:v1
            Number of tags to be deleted: 3
            Number of manifests to be deleted: 0
        "#]],
    );
    assert_eq!(f.content("a").await, "v1 v10 w xv1 | one");
    check(
        &f.acr("purge -f a:^v1$ --ago 0d").await.ok(),
        expect![[r#"
            Deleted registry.test/a:v1
            Number of deleted tags: 1
            Number of deleted manifests: 0
        "#]],
    );
    f.acr("purge -f a:(?i:V1) --ago 0d").await.ok();
    assert_eq!(f.content("a").await, "w | one");
    let journal = f.catalog.tag_moves(0, 100).await.unwrap();
    let last = journal.last().unwrap();
    assert_eq!(last.new, None);
    assert_eq!(last.cause, Cause::Purge { run: Some("ca1".to_owned()), principal: None });
}

#[tokio::test]
async fn m8_keep_spares_the_newest_across_pages_and_filters() {
    let f = Fixture::new().await;
    let digest = f.image("many", "one", &[]).await;
    for number in 0..250 {
        let tag = tag(&format!("{}{number:03}", if number % 2 == 0 { "even" } else { "odd" }));
        move_tag(&f.catalog, "many", &tag, Some(&digest)).await;
    }
    let all = f
        .catalog
        .tags_by_age(&registry(), &repository("many"), store::Order::NewestFirst, None, 1000)
        .await
        .unwrap();
    let newest: Vec<_> = all.iter().take(120).map(|it| it.tag.to_string()).collect();
    let line = "purge -f many:^even -f man.:^odd --keep 120 --ago 0d";
    let dry = f.acr(&format!("{line} --dry-run --repository-page-size 1")).await.ok();
    assert!(dry.ends_with("to be deleted: 130\nNumber of manifests to be deleted: 0\n"), "{dry}");
    let told = f.acr(line).await.ok();
    assert!(told.contains("Number of deleted tags: 130\n"), "{told}");
    let left = f
        .catalog
        .tags_by_age(&registry(), &repository("many"), store::Order::NewestFirst, None, 1000)
        .await
        .unwrap();
    let left: Vec<_> = left.iter().map(|it| it.tag.to_string()).collect();
    assert_eq!(left, newest);
    // Fewer than are to be kept: none goes.
    let told = f.acr("purge -f many:.* --keep 121 --ago 0d").await.ok();
    assert!(told.contains("Number of deleted tags: 0\n"), "{told}");

    for number in 1..=5 {
        f.image("a", &format!("image{number}"), &[&format!("v{number}")]).await;
    }
    f.acr("purge -f a:v --keep 2 --ago 0d").await.ok();
    assert_eq!(f.content("a").await, "v4 v5 | image1 image2 image3 image4 image5");
}

#[tokio::test]
async fn tags_are_older_than_the_age_and_manifests_not_younger() {
    let f = Fixture::new().await;
    f.image("a", "one", &["v1"]).await;
    let updated_at = f.updated_at("a").await;
    f.acr_at("purge -f a:.* --ago 1h", updated_at + HOUR).await.ok();
    assert_eq!(f.content("a").await, "v1 | one");
    f.acr_at("purge -f a:.* --ago 1h", updated_at + HOUR + 1).await.ok();
    assert_eq!(f.content("a").await, " | one");
    let updated_at = f.manifest_updated_at("a").await;
    for line in ["purge -f a:.* --ago 1h --untagged", "purge --untagged-only --ago 1h"] {
        f.acr_at(line, updated_at + HOUR - 1).await.ok();
        assert_eq!(f.content("a").await, " | one");
    }
    f.acr_at("purge -f a:.* --ago 1h --untagged", updated_at + HOUR).await.ok();
    assert_eq!(f.content("a").await, " | ");
}

#[tokio::test]
async fn untagged_manifests_go_with_untagged_only_of_all_or_some_repositories() {
    let f = Fixture::new().await;
    for name in ["a", "b/c", "d"] {
        f.image(name, &format!("{name}-tagged"), &["v1"]).await;
        f.image(name, &format!("{name}-old"), &[]).await;
    }
    let told = f.acr("purge --untagged-only --filter b/.*:nothing").await.ok();
    check(
        &told,
        expect![[r#"
            Deleted registry.test/b/c@b/c-old
            Number of deleted tags: 0
            Number of deleted manifests: 1
        "#]],
    );
    // No age at all: what was pushed this very moment goes too.
    let told = f.acr_at("purge --untagged-only", now()).await.ok();
    check(
        &told,
        expect![[r#"
            Deleted registry.test/a@a-old
            Deleted registry.test/d@d-old
            Number of deleted tags: 0
            Number of deleted manifests: 2
        "#]],
    );
    assert_eq!(f.content("b/c").await, "v1 | b/c-tagged");
}

#[tokio::test]
async fn m11_members_of_an_index_that_is_needed_stay_at_any_depth() {
    let f = Fixture::new().await;
    let deep = f.image("a", "deep", &[]).await;
    let inner = f.index("a", "inner", &[], &[&deep], None).await;
    f.index("a", "outer", &["v1"], &[&inner], None).await;
    let lone = f.image("a", "lone", &[]).await;
    let left = f.index("a", "left", &[], &[&lone], None).await;
    let all = "v1 | deep inner left lone outer";
    assert_eq!(f.content("a").await, all);
    // The young index needs its members, however old they are.
    let entry = f.catalog.manifests(&registry(), &repository("a"), None, 10).await.unwrap();
    let left_at = entry.iter().find(|it| it.digest == left).unwrap().updated_at;
    f.acr_at("purge -f a:none --ago 1h --untagged", left_at + HOUR - 1).await.ok();
    assert_eq!(f.content("a").await, all);
    // An untagged index and its members go, each for itself.
    check(
        &f.acr_at("purge -f a:none --ago 1h --untagged", left_at + HOUR).await.ok(),
        expect![[r#"
            Deleted registry.test/a@left
            Deleted registry.test/a@lone
            Number of deleted tags: 0
            Number of deleted manifests: 2
        "#]],
    );
    assert_eq!(f.content("a").await, "v1 | deep inner outer");
    // Without its tag nothing holds them.
    f.acr("purge -f a:v1 --ago 0d --untagged").await.ok();
    assert_eq!(f.content("a").await, " | ");
}

#[tokio::test]
async fn m12_referrers_and_their_members_stay() {
    let f = Fixture::new().await;
    let image = f.image("a", "image", &["v1"]).await;
    f.referrer("a", "signature", &[], Some(&image)).await;
    let part = f.image("a", "part", &[]).await;
    f.index("a", "report", &[], &[&part], Some(&image)).await;
    f.image("a", "old", &[]).await;
    f.acr("purge --untagged-only").await.ok();
    assert_eq!(f.content("a").await, "v1 | image part report signature");
}

#[tokio::test]
async fn m13_a_dry_run_counts_manifests_that_would_lose_all_their_tags() {
    let f = Fixture::new().await;
    f.image("a", "both", &["v1", "v2"]).await;
    f.image("a", "one-of-two", &["v3", "w3"]).await;
    let member = f.image("a", "member", &[]).await;
    f.index("a", "index", &["v4"], &[&member], None).await;
    f.image("a", "kept", &["v5"]).await;
    let line = "purge -f a:^v --ago 0d --untagged --keep 1";
    let dry = f.acr(&format!("{line} --dry-run")).await.ok();
    check(
        &dry,
        expect![[r#"
            Would delete: registry.test/a:v4
            Would delete: registry.test/a:v3
            Would delete: registry.test/a:v2
            Would delete: registry.test/a:v1
            Would delete: registry.test/a@both
            Number of tags to be deleted: 4
            Number of manifests to be deleted: 1
        "#]],
    );
    assert_eq!(f.content("a").await, "v1 v2 v3 v4 v5 w3 | both index kept member one-of-two");
    // What is said is what is done: the newest manifest is kept, and with it its member.
    let told = f.acr(line).await.ok();
    let said = dry.replace("Would delete:", "Deleted");
    let items = |text: &str| -> Vec<String> {
        text.lines().filter(|line| line.starts_with("Deleted")).map(str::to_owned).collect()
    };
    assert_eq!(items(&told), items(&said));
    assert_eq!(f.content("a").await, "v5 w3 | index kept member one-of-two");
}

#[tokio::test]
async fn keep_spares_the_newest_manifests() {
    let f = Fixture::new().await;
    for number in 1..=4 {
        f.image("a", &format!("image{number}"), &[]).await;
    }
    f.acr("purge --untagged-only --keep 5").await.ok();
    assert_eq!(f.content("a").await, " | image1 image2 image3 image4");
    f.acr("purge --untagged-only --keep 1").await.ok();
    assert_eq!(f.content("a").await, " | image4");
}

#[tokio::test]
async fn what_is_not_there_is_told_and_no_error() {
    let f = Fixture::new().await;
    f.image("there", "one", &["v1"]).await;
    check(
        &f.acr("purge -f missing:.* -f Bad:.* -f there:.* --ago 0d").await.ok(),
        expect![[r#"
            Repository `Bad` not found
            Repository `missing` not found
            Deleted registry.test/there:v1
            Number of deleted tags: 1
            Number of deleted manifests: 0
        "#]],
    );
    check(
        &f.acr("purge -f no.*:.* --ago 0d").await.ok(),
        expect![[r#"
            Number of deleted tags: 0
            Number of deleted manifests: 0
        "#]],
    );
}

#[tokio::test]
async fn odd_numbers_are_replaced_with_a_warning() {
    let f = Fixture::new().await;
    f.image("a", "one", &["v1"]).await;
    let line = "purge -f a:.* --ago 60000d --concurrency 99 --filter-timeout-seconds 0";
    check(
        &f.acr(&format!("{line} --include-locked --verbose -u me -p secret")).await.ok(),
        expect![[r#"
            warning: no credentials are needed, and those that are given are not used
            warning: `--ago 60000d` is more than 54750 days, which it is now
            warning: `--concurrency` is 32 instead of 99
            Number of deleted tags: 0
            Number of deleted manifests: 0
        "#]],
    );
    let told = f.acr("purge -f a:.* --ago 0d --concurrency -1 --untagged=false").await.ok();
    assert!(told.starts_with("warning: `--concurrency` is 8 instead of -1\n"), "{told}");
    assert_eq!(f.content("a").await, " | one");
}

/// Locks a tag or manifest against writing, or a repository.
async fn lock(f: &Fixture, name: &str, reference: Option<ManifestRef>) {
    let change = AttributesChange { write_enabled: Some(false), ..AttributesChange::default() };
    let (registry, repository) = (registry(), repository(name));
    let locked = f.catalog.change_attributes(&registry, &repository, reference.as_ref(), change);
    locked.await.unwrap();
    a_moment().await;
}

#[tokio::test]
async fn m9_what_is_locked_stays_unless_it_is_included() {
    let f = Fixture::new().await;
    let one = f.image("a", "one", &["v1"]).await;
    let two = f.image("a", "two", &["v2"]).await;
    f.image("a", "three", &["v3"]).await;
    let lone = f.image("a", "lone", &[]).await;
    f.image("b", "four", &["v1"]).await;
    lock(&f, "a", Some(ManifestRef::Tag(tag("v3")))).await;
    for digest in [&one, &lone] {
        lock(&f, "a", Some(ManifestRef::Digest(digest.clone()))).await;
    }
    lock(&f, "b", None).await;
    let line = "purge -f .*:.* --ago 0d --untagged --keep 1";
    let expected = expect![[r#"
        Would delete: registry.test/a:v1
        Repository `b` is locked: left out
        Number of tags to be deleted: 1
        Number of manifests to be deleted: 0
    "#]];
    // What is locked is none of the one that is kept, and has a tag of its own.
    check(&f.acr(&format!("{line} --dry-run")).await.ok(), expected);
    check(
        &f.acr(line).await.ok(),
        expect![[r#"
            Deleted registry.test/a:v1
            Repository `b` is locked: left out
            Number of deleted tags: 1
            Number of deleted manifests: 0
        "#]],
    );
    assert_eq!(f.content("a").await, "v2 v3 | lone one three two");
    f.untag("a", "v2").await;
    assert!(f.catalog.is_manifest(&registry(), &repository("a"), &two).await.unwrap());
    let told = f.acr("purge -f .*:.* --ago 0d --untagged --include-locked").await.ok();
    assert!(told.contains("Number of deleted tags: 1\nNumber of deleted manifests: 4\n"), "{told}");
    assert_eq!(f.content("a").await, " | ");
    assert_eq!(f.content("b").await, "v1 | four");
}

#[tokio::test]
async fn a_locked_index_keeps_its_members() {
    let f = Fixture::new().await;
    let one = f.image("a", "one", &[]).await;
    let two = f.image("a", "two", &[]).await;
    let inner = f.index("a", "inner", &[], &[&one], None).await;
    let outer = f.index("a", "outer", &[], &[&inner], None).await;
    f.index("a", "open", &[], &[&two], None).await;
    lock(&f, "a", Some(ManifestRef::Digest(outer.clone()))).await;
    let line = "purge -f a:.* --ago 0d --untagged";
    let told = f.acr(&format!("{line} --dry-run")).await.ok();
    assert!(told.ends_with("Number of manifests to be deleted: 2\n"), "{told}");
    f.acr(line).await.ok();
    assert_eq!(f.content("a").await, " | inner one outer");
    // Hidden, it is in no list, and is deleted by nobody.
    let hidden = AttributesChange { list_enabled: Some(false), ..AttributesChange::default() };
    let open = AttributesChange { list_enabled: Some(true), ..AttributesChange::default() };
    let reference = ManifestRef::Digest(outer);
    let change = async |change| {
        let (registry, repository) = (registry(), repository("a"));
        let changed =
            f.catalog.change_attributes(&registry, &repository, Some(&reference), change).await;
        changed.unwrap();
    };
    change(hidden).await;
    let all = format!("{line} --include-locked");
    f.acr(&all).await.ok();
    change(open).await;
    assert_eq!(f.content("a").await, " | inner one outer");
    f.acr(&all).await.ok();
    assert_eq!(f.content("a").await, " | ");
}

#[tokio::test]
async fn what_is_named_and_locked_is_an_error_that_says_so() {
    let f = Fixture::new().await;
    f.image("a", "one", &["v1"]).await;
    lock(&f, "a", Some(ManifestRef::Tag(tag("v1")))).await;
    let locked = "tag `a:v1` is locked: its `writeEnabled` is false";
    assert_eq!(f.acr("tag delete --repository a v1").await.error(), locked);
    assert_eq!(f.acr("manifest delete --repository a @one").await.error(), locked);
    let line = "annotate -f a:.* --artifact-type a/b -a k=v";
    let told = f.acr(line).await.ok();
    assert!(told.ends_with("annotated manifests: 0\nNumber of locked tags skipped: 1\n"), "{told}");
    let told = f.acr(&format!("{line} --include-locked")).await.ok();
    assert!(
        told.starts_with("Annotated registry.test/a:v1\nNumber of annotated tags: 1\n"),
        "{told}"
    );
    assert_eq!(f.catalog.tags(&registry(), &repository("a"), None, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn who_may_not_unlock_does_not_by_a_purge() {
    let f = Fixture { may_unlock: false, ..Fixture::new().await };
    f.image("a", "one", &["v1"]).await;
    lock(&f, "a", Some(ManifestRef::Tag(tag("v1")))).await;
    let line = "purge -f a:.* --ago 0d --include-locked";
    let error = f.acr(line).await.error();
    assert_eq!(error, "`--include-locked` needs the right to unlock, `metadata/write`");
    let told = f.acr(&format!("{line} --dry-run")).await.ok();
    assert!(told.starts_with("Would delete: registry.test/a:v1\n"), "{told}");
    assert_eq!(f.content("a").await, "v1 | one");
}

/// Puts a tag on a manifest.
struct Tagging {
    catalog: Catalog,
    tag: Tag,
    to: Digest,
}

#[async_trait]
impl AsyncOnce for Tagging {
    async fn act(self) {
        move_tag(&self.catalog, "a", &self.tag, Some(&self.to)).await;
    }
}

#[tokio::test]
async fn what_changes_meanwhile_stays() {
    let f = Fixture::new().await;
    let old = f.image("a", "old", &["v1"]).await;
    let new = f.image("a", "new", &["v2"]).await;
    let act = Tagging { catalog: f.catalog.clone(), tag: tag("v1"), to: new };
    let (later, cancel) = (now() + HOUR, CancellationToken::new());
    let line = "purge -f a:.* --ago 0d --concurrency 1";
    check(
        &f.acr_with(line, later, act, &cancel).await.ok(),
        expect![[r#"
            Deleted registry.test/a:v2
            warning: `a:v1` has moved meanwhile, and stays
            Number of deleted tags: 1
            Number of deleted manifests: 0
        "#]],
    );
    a_moment().await;
    f.untag("a", "v1").await;
    let act = Tagging { catalog: f.catalog.clone(), tag: tag("v3"), to: old };
    check(
        &f.acr_with("purge --untagged-only --concurrency 1", later, act, &cancel).await.ok(),
        expect![[r#"
            Deleted registry.test/a@new
            warning: `a@old` is needed meanwhile, and stays
            Number of deleted tags: 0
            Number of deleted manifests: 1
        "#]],
    );
    assert_eq!(f.content("a").await, "v3 | old");
}

struct Canceling(CancellationToken);

#[async_trait]
impl AsyncOnce for Canceling {
    async fn act(self) {
        self.0.cancel();
    }
}

#[tokio::test]
async fn a_purge_that_is_canceled_ends_at_once() {
    let f = Fixture::new().await;
    f.image("a", "one", &["v1", "v2", "v3"]).await;
    let cancel = CancellationToken::new();
    let act = Canceling(cancel.clone());
    let line = "purge -f a:.* --ago 0d --untagged --concurrency 1";
    let told = f.acr_with(line, now() + HOUR, act, &cancel).await;
    assert_eq!(told.text, "Deleted registry.test/a:v3\n");
    assert_eq!(told.error(), "it was canceled");
    assert_eq!(f.content("a").await, "v1 v2 | one");
}

#[tokio::test]
async fn tags_and_manifests_are_listed_and_deleted_until_the_first_error() {
    let f = Fixture::new().await;
    f.image("team/a", "one", &["v1", "v2"]).await;
    f.image("team/a", "two", &["v3", "v4"]).await;
    check(
        &f.acr("tag list --repository team/a").await.ok(),
        expect![[r#"
            Listing tags for the "team/a" repository:
            registry.test/team/a:v1
            registry.test/team/a:v2
            registry.test/team/a:v3
            registry.test/team/a:v4
        "#]],
    );
    let told = f.acr("tag delete --repository team/a v2 v9 v1").await;
    assert_eq!(told.text, "registry.test/team/a:v2\n");
    assert_eq!(told.error(), "tag `v9` of repository `team/a` not found");
    assert_eq!(f.content("team/a").await, "v1 v3 v4 | one two");
    let listed = f.acr("manifest list --repository team/a").await.ok();
    let mut listed: Vec<_> = listed.lines().collect();
    listed[1..].sort_unstable();
    assert_eq!(
        listed,
        [
            "Listing manifests for the \"team/a\" repository:",
            "registry.test/team/a@one",
            "registry.test/team/a@two"
        ]
    );
    let missing = Digest::of(b"nothing");
    let told = f.acr(&format!("manifest delete --repository team/a @two {missing} @one")).await;
    assert_eq!(told.text, "registry.test/team/a@two\n");
    assert_eq!(told.error(), format!("manifest `{missing}` of repository `team/a` not found"));
    assert_eq!(f.content("team/a").await, "v1 | one");
    for line in ["tag delete --repository none", "manifest delete --repository none"] {
        assert_eq!(f.acr(line).await.ok(), "", "no arguments: nothing to do");
    }
    for line in ["tag list --repository none", "manifest list --repository none"] {
        assert_eq!(f.acr(line).await.error(), "repository `none` not found");
    }
}

#[tokio::test]
async fn images_are_annotated_by_referrers() {
    let f = Fixture::new().await;
    let one = f.image("a", "one", &["v1", "v2"]).await;
    f.image("a", "two", &["w1"]).await;
    let kind = "application/vnd.example.note";
    let line = format!("annotate -f a:^v --artifact-type {kind} -a a=1,b=x=y -a c=");
    check(
        &f.acr(&format!("{line} --dry-run")).await.ok(),
        expect![[r#"
            Would annotate: registry.test/a:v1
            Would annotate: registry.test/a:v2
            Number of tags to be annotated: 2
            Number of manifests to be annotated: 0
            Number of locked tags skipped: 0
        "#]],
    );
    assert_eq!(f.content("a").await, "v1 v2 w1 | one two");
    let told = f.acr(&line).await.ok();
    assert!(told.contains("Number of annotated tags: 2\n"), "{told}");
    f.acr(&line).await.ok();
    let referrers = async |kind: &str| {
        let (registry, name) = (registry(), repository("a"));
        let found = f.catalog.referrers(&registry, &name, &one, Some(kind), None, 10).await;
        found.unwrap().0
    };
    let found = referrers(kind).await;
    assert_eq!(found.len(), 1, "the same twice is the same: {found:?}");
    let said = serde_json::json!(found[0].descriptor.annotations);
    assert_eq!(said, serde_json::json!({ "a": "1", "b": "x=y", "c": "" }));
    let reference = ManifestRef::Digest(found[0].descriptor.digest.clone());
    let entry = f.catalog.manifest(&registry(), &repository("a"), &reference).await.unwrap();
    let manifest = Manifest::parse(&entry.unwrap().bytes, Some(media_type::OCI_MANIFEST)).unwrap();
    assert_eq!(manifest.subject().unwrap().digest, one);

    // This one is said once only, whatever it says.
    let lifecycle = "application/vnd.microsoft.artifact.lifecycle";
    for (number, count) in [(1, 1), (2, 0)] {
        let line = format!("annotate -f a:^v1 --artifact-type {lifecycle} -a end={number}");
        let told = f.acr(&line).await.ok();
        assert!(told.contains(&format!("Number of annotated tags: {count}\n")), "{told}");
    }
    assert_eq!(referrers(lifecycle).await.len(), 1);
}

#[tokio::test]
async fn untagged_manifests_are_annotated_if_they_are_no_oci_images_and_nobody_needs_them() {
    let f = Fixture::new().await;
    let image = f.image("a", "image", &[]).await;
    let inner = f.index("a", "inner", &[], &[&image], None).await;
    f.index("a", "outer", &["v1"], &[&inner], None).await;
    f.index("a", "lone", &[], &[&image], None).await;
    let line = "annotate -f a:none --artifact-type a/b -a k=v --untagged";
    check(
        &f.acr(line).await.ok(),
        expect![[r#"
            Annotated registry.test/a@lone
            Number of annotated tags: 0
            Number of annotated manifests: 1
            Number of locked tags skipped: 0
        "#]],
    );
}

#[tokio::test]
async fn annotations_that_cannot_be_are_refused() {
    let f = Fixture::new().await;
    f.image("copies/a", "one", &["v1"]).await;
    for (line, error) in [
        ("annotate --artifact-type a/b -a k=v", "there is no `--filter`"),
        ("annotate -f a:b -a k=v", "there is no `--artifact-type`"),
        ("annotate -f a:b --artifact-type a/b", "there is no `--annotations`"),
        ("annotate -f a:b --artifact-type ab -a k=v", "`ab` is not an artifact type"),
        ("annotate -f a:b --artifact-type a/b -a k=v,w", "the annotation `w` is not `KEY=VALUE`"),
        ("annotate -f copies/a:.* --artifact-type a/b -a k=v", "`copies/a` holds copies"),
    ] {
        assert_eq!(f.acr(line).await.error(), error, "{line}");
    }
}

#[tokio::test]
async fn what_was_pushed_tagged_or_untagged_again_is_young() {
    let f = Fixture::new().await;
    f.image("a", "one", &["v1"]).await;
    let (tag, manifest) = (f.updated_at("a").await, f.manifest_updated_at("a").await);
    a_moment().await;
    // The same image under the same name.
    f.image("a", "one", &["v1"]).await;
    let (renewed, again) = (f.updated_at("a").await, f.manifest_updated_at("a").await);
    assert!(renewed > tag && again > manifest, "{renewed} {again}");
    f.acr_at("purge -f a:.* --ago 1h --untagged", tag + HOUR + 1).await.ok();
    assert_eq!(f.content("a").await, "v1 | one");
    a_moment().await;
    f.untag("a", "v1").await;
    assert!(f.manifest_updated_at("a").await > again);
    f.acr_at("purge --untagged-only --ago 1h", again + HOUR + 1).await.ok();
    assert_eq!(f.content("a").await, " | one");
}

#[tokio::test]
async fn a_tag_that_is_pushed_again_meanwhile_stays() {
    let f = Fixture::new().await;
    let digest = f.image("a", "one", &["v1", "v2"]).await;
    a_moment().await;
    let expected = Expected::AtBefore { digest, updated_before: now() };
    a_moment().await;
    f.image("a", "one", &["v1"]).await;
    let (registry, name) = (registry(), repository("a"));
    let cause = Cause::Purge { run: None, principal: None };
    let delete = async |tag: &str| {
        f.catalog.move_tag(&registry, &name, &tag.parse().unwrap(), &expected, None, &cause).await
    };
    assert!(matches!(delete("v1").await, Err(store::StoreError::TagMoved { .. })));
    delete("v2").await.unwrap();
}

#[tokio::test]
async fn copies_of_other_registries_have_their_own_rule() {
    let f = Fixture::new().await;
    f.image("copies/app", "one", &["v1"]).await;
    f.image("copies/app", "two", &[]).await;
    f.image("own", "three", &["v1"]).await;
    let told = f.acr("purge -f .*:.* --ago 0d --untagged").await;
    assert!(told.text.contains("`copies/app` holds copies: left out"), "{}", told.text);
    assert_eq!(f.content("copies/app").await, "v1 | one two");
    assert_eq!(f.content("own").await, " | ");
}
