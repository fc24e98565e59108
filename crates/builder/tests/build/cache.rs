//! What is built again, and what is not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use builder::{BuildRequest, Built, LayerIndexes, Layers};
use oci::Digest;
use store::{Catalog, ReadLayer};

use crate::support::*;

const DOCKERFILE: &str = "\
FROM registry.test/base AS one
COPY src /src
FROM registry.test/base AS two
ARG COLOR=red
WORKDIR /work
COPY --from=one /src/a /copied/
COPY b /b
ENV COLOR=$COLOR
";

async fn prepared() -> Fixture {
    let fixture = Fixture::with_base().await;
    fixture.write("src/a", "a");
    fixture.write("src/deep/c", "c");
    fixture.write("b", "b");
    fixture
}

/// How many layers a build wrote anew.
async fn written(fixture: &Fixture, request: &BuildRequest) -> (u32, Built) {
    let run = fixture.build_request(request).await;
    (run.built.cost.cache_misses, run.built)
}

#[tokio::test]
async fn an_unchanged_tree_writes_no_layer_and_gives_the_same_image() {
    let fixture = prepared().await;
    let mut request = fixture.request(DOCKERFILE);
    let (first_misses, first) = written(&fixture, &request).await;
    assert_eq!(first_misses, 4);
    assert_eq!((first.cost.cache_hits, first.cost.written > 0), (0, true));
    request.now += 1000;
    let (misses, again) = written(&fixture, &request).await;
    assert_eq!((misses, again.cost.cache_hits, again.cost.written), (0, 4, 0));
    assert_eq!(first.descriptor, again.descriptor);
    assert_eq!(first.record, again.record);
}

#[tokio::test]
async fn content_counts_and_times_do_not() {
    let fixture = prepared().await;
    let request = fixture.request(DOCKERFILE);
    written(&fixture, &request).await;
    let file = |path: &str| {
        std::fs::File::options().append(true).open(fixture.context().join(path)).unwrap()
    };
    // Only touched: nothing is new.
    file("src/a").set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(7)).unwrap();
    file("b").set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(7)).unwrap();
    assert_eq!(written(&fixture, &request).await.0, 0);
    // A file that is copied into one stage only.
    fixture.write("src/deep/c", "C");
    assert_eq!(written(&fixture, &request).await.0, 1);
    // A mode.
    fixture.chmod("b", 0o755);
    assert_eq!(written(&fixture, &request).await.0, 1);
    // A file that goes from stage to stage.
    fixture.write("src/a", "A");
    assert_eq!(written(&fixture, &request).await.0, 2);
    // A name.
    std::fs::rename(fixture.context().join("src/deep/c"), fixture.context().join("src/deep/d"))
        .unwrap();
    assert_eq!(written(&fixture, &request).await.0, 1);
    // And nothing is forgotten.
    assert_eq!(written(&fixture, &request).await.0, 0);
}

#[tokio::test]
async fn times_before_the_epoch_are_those_of_the_files() {
    const EPOCH: i64 = 1_600_000_000;
    let fixture = Fixture::with_base().await;
    let mut request = fixture.request("FROM registry.test/base\nCOPY f /f\n");
    request.source_date_epoch = Some(EPOCH);
    request.explain_cache = true;
    fixture.write("f", "f");
    let misses = async |seconds| {
        fixture.touch("f", seconds);
        let run = fixture.build_request(&request).await;
        (run.built.cost.cache_misses, run.events.explanations())
    };
    assert_eq!(misses(EPOCH - 5).await.0, 1);
    // Later ones are all the epoch.
    assert_eq!(misses(EPOCH).await.0, 1);
    assert_eq!(misses(EPOCH + 5).await.0, 0);
    let (count, why) = misses(EPOCH - 6).await;
    assert_eq!((count, why.contains("miss: `f`: time")), (1, true), "{why}");
}

/// Counts how often each layer was noted as read.
struct Counting {
    catalog: Catalog,
    counts: Mutex<BTreeMap<Digest, usize>>,
}

#[async_trait]
impl LayerIndexes for Counting {
    async fn get(&self, layer: &Digest) -> store::Result<Option<ReadLayer>> {
        self.catalog.read_layer(layer).await
    }

    async fn put(&self, layer: &Digest, read: &ReadLayer) -> store::Result<()> {
        *self.counts.lock().unwrap().entry(layer.clone()).or_default() += 1;
        self.catalog.put_read_layer(layer, read).await
    }
}

#[tokio::test]
async fn builds_that_meet_a_layer_at_the_same_moment_read_it_once() {
    let mut fixture = Fixture::with_base().await;
    let counts = Mutex::default();
    let counting = Arc::new(Counting { catalog: fixture.catalog.clone(), counts });
    let (blobs, indexes) = (Arc::clone(fixture.catalog.blobs()), Arc::clone(&counting) as _);
    let folder = fixture.folder.path().join("snapshots");
    fixture.builder.layers = Arc::new(Layers::open(blobs, indexes, &folder).unwrap());
    fixture.write("f", "f");
    let dockerfiles: Vec<String> =
        (0..8).map(|number| format!("FROM registry.test/base\nCOPY f /f{number}\n")).collect();
    let builds = dockerfiles.iter().map(|dockerfile| fixture.build(dockerfile));
    let built = futures_util::future::join_all(builds).await;
    let base = &built[0].built.layers[0].descriptor.digest;
    assert_eq!(counting.counts.lock().unwrap()[base], 1);
}

#[tokio::test]
async fn an_argument_that_no_layer_reads_changes_only_the_config() {
    let fixture = prepared().await;
    let mut request = fixture.request(DOCKERFILE);
    let (_, red) = written(&fixture, &request).await;
    request.build_args.insert("COLOR".to_owned(), "blue".to_owned());
    let (misses, blue) = written(&fixture, &request).await;
    assert_eq!(misses, 0);
    assert_ne!(red.descriptor, blue.descriptor);
    assert_eq!(red.layers, blue.layers);
}

#[tokio::test]
async fn a_copy_is_found_again_on_another_base_that_looks_the_same_there() {
    let fixture = prepared().await;
    let mut files = base_files();
    files.push(file("etc/new", 0o644, (0, 0), b"a patch"));
    fixture.put_image("patched", &files, &[], oci::media_type::OCI_LAYER_GZIP).await;
    files.retain(|_| true);
    files.push(folder("usr/lib", 0o700, (0, 0)));
    fixture.put_image("other", &files, &[], oci::media_type::OCI_LAYER_GZIP).await;
    let build = async |base: &str| {
        let request = fixture.request(&format!("FROM registry.test/{base}\nCOPY b /lib/b"));
        written(&fixture, &request).await.0
    };
    assert_eq!(build("base").await, 1);
    assert_eq!(build("patched").await, 0);
    // The folder it goes into has another mode there.
    assert_eq!(build("other").await, 1);
}

#[tokio::test]
async fn no_cache_builds_again_but_keeps_what_it_built() {
    let fixture = prepared().await;
    let mut request = fixture.request(DOCKERFILE);
    request.no_cache = true;
    assert_eq!(written(&fixture, &request).await.0, 4);
    assert_eq!(written(&fixture, &request).await.0, 4);
    request.no_cache = false;
    assert_eq!(written(&fixture, &request).await.0, 0);
}

#[tokio::test]
async fn stages_that_the_target_does_not_need_are_not_built() {
    let fixture = prepared().await;
    let mut request = fixture.request(
        "FROM registry.test/missing AS unused\nCOPY nothing /\nFROM scratch AS used\nCOPY b /",
    );
    assert_eq!(written(&fixture, &request).await.0, 1);
    request.target = Some("unused".to_owned());
    let error = fixture.try_build(&request).await.0.unwrap_err();
    assert_eq!(error.to_string(), "image `registry.test/missing` is not in this registry");
}

#[tokio::test]
async fn the_same_layer_in_two_stages_is_made_once() {
    let fixture = prepared().await;
    let request = fixture.request(
        "FROM scratch AS a\nCOPY src /x\nFROM scratch AS b\nCOPY src /x\n\
         FROM scratch\nCOPY --from=a /x /a\nCOPY --from=b /x /b",
    );
    let run = fixture.build_request(&request).await;
    assert_eq!((run.built.cost.cache_misses, run.built.cost.cache_hits), (3, 1));
}

#[tokio::test]
async fn two_empty_stores_give_the_same_image_at_the_same_source_date_epoch() {
    let mut digests = Vec::new();
    for age in [1, 2] {
        let fixture = prepared().await;
        let request = BuildRequest {
            source_date_epoch: Some(1_600_000_000),
            now: NOW + age,
            ..fixture.request(DOCKERFILE)
        };
        let (_, built) = written(&fixture, &request).await;
        let mut copy = fixture.request("FROM scratch\nCOPY . /");
        copy.source_date_epoch = Some(1_600_000_000);
        let (_, copied) = written(&fixture, &copy).await;
        digests.push((built.descriptor, built.record, copied.descriptor));
    }
    assert_eq!(digests[0], digests[1]);
}
