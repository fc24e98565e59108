//! Why the cache had a result or not. Those with `RUN` start containers, which takes root.

use std::time::Duration;

use builder::{BuildRequest, CacheCause, CacheExplanation, Proof};
use container::Network;
use expect_test::{Expect, expect};
use oci::media_type;
use store::GcOptions;

use crate::run::with_runtime;
use crate::support::*;

fn request(fixture: &Fixture, dockerfile: &str) -> BuildRequest {
    let mut request = fixture.request(dockerfile);
    request.network = Network::None;
    request.explain_cache = true;
    // Else a layer made in another second is another one, and that is the cause then.
    request.source_date_epoch = Some(1_600_000_000);
    request.name = "c1".to_owned();
    request
}

async fn check(fixture: &Fixture, dockerfile: &str, expected: Expect) {
    check_request(fixture, &request(fixture, dockerfile), expected).await;
}

async fn check_request(fixture: &Fixture, request: &BuildRequest, expected: Expect) {
    expected.assert_eq(&fixture.build_request(request).await.events.explanations());
}

async fn with_files() -> Fixture {
    let fixture = Fixture::with_base().await;
    fixture.write("src/main.c", "int main");
    fixture.write("src/util.c", "util");
    fixture
}

const COPY: &str = "FROM registry.test/base\nCOPY src /src/";

#[tokio::test]
async fn hits_name_their_run_and_misses_the_files() {
    let fixture = with_files().await;
    check(
        &fixture,
        COPY,
        expect![[r#"
        [2/2] COPY src /src/: miss: never built before
    "#]],
    )
    .await;
    check(
        &fixture,
        COPY,
        expect![[r#"
        [2/2] COPY src /src/: hit: made by run c1 at 2023-11-14T22:13:20Z
    "#]],
    )
    .await;
    fixture.write("src/main.c", "int more");
    check(
        &fixture,
        COPY,
        expect![[r#"
        [2/2] COPY src /src/: miss: `src/main.c`: content
    "#]],
    )
    .await;
    fixture.chmod("src/util.c", 0o755);
    fixture.write("src/new.c", "new");
    std::fs::remove_file(fixture.context().join("src/main.c")).unwrap();
    check(
        &fixture,
        COPY,
        expect![[r#"
        [2/2] COPY src /src/: miss: `src/main.c`: removed, `src/new.c`: added, `src/util.c`: mode
    "#]],
    )
    .await;
    let chown = "FROM registry.test/base\nARG OWNER\nCOPY --chown=$OWNER src /src/";
    let mut request = request(&fixture, chown);
    request.build_args.insert("OWNER".to_owned(), "1".to_owned());
    check_request(
        &fixture,
        &request,
        expect![[r#"
        [2/2] COPY --chown=$OWNER src /src/: miss: the instruction changed, it was `COPY src /src/`
    "#]],
    )
    .await;
    request.build_args.insert("OWNER".to_owned(), "2".to_owned());
    check_request(&fixture, &request, expect![[r#"
        [2/2] COPY --chown=$OWNER src /src/: miss: `src/new.c`: owner, `src/util.c`: owner, `/src`: owner
    "#]]).await;
}

#[tokio::test]
async fn many_files_are_counted_and_large_listings_kept() {
    let fixture = Fixture::with_base().await;
    let write = |text: &str| {
        for number in 0..300 {
            fixture.write(&format!("src/folder/file-{number:03}.txt"), text);
        }
    };
    write("one");
    check(
        &fixture,
        COPY,
        expect![[r#"
        [2/2] COPY src /src/: miss: never built before
    "#]],
    )
    .await;
    fixture.write("src/folder/file-123.txt", "other");
    check(
        &fixture,
        COPY,
        expect![[r#"
        [2/2] COPY src /src/: miss: `src/folder/file-123.txt`: content
    "#]],
    )
    .await;
    write("two");
    check(&fixture, COPY, expect![[r#"
        [2/2] COPY src /src/: miss: `src/folder/file-000.txt`: content, `src/folder/file-001.txt`: content, `src/folder/file-002.txt`: content, `src/folder/file-003.txt`: content, `src/folder/file-004.txt`: content, `src/folder/file-005.txt`: content, `src/folder/file-006.txt`: content, `src/folder/file-007.txt`: content, `src/folder/file-008.txt`: content, `src/folder/file-009.txt`: content, and 290 more
    "#]]).await;
}

#[tokio::test]
async fn other_words_and_other_places_are_told_apart() {
    let fixture = with_files().await;
    check(
        &fixture,
        COPY,
        expect![[r#"
        [2/2] COPY src /src/: miss: never built before
    "#]],
    )
    .await;
    let other = "FROM registry.test/base\nCOPY src /elsewhere/";
    check(
        &fixture,
        other,
        expect![[r#"
        [2/2] COPY src /elsewhere/: miss: the instruction changed, it was `COPY src /src/`
    "#]],
    )
    .await;
    let more = "FROM registry.test/base\nWORKDIR /work\nCOPY src /src/\nCOPY src /third/";
    check(
        &fixture,
        more,
        expect![[r#"
        [2/4] WORKDIR /work: miss: the instruction changed, it was `COPY src /elsewhere/`
        [3/4] COPY src /src/: hit: made by run c1 at 2023-11-14T22:13:20Z, and what this sees of the image is the same
        [4/4] COPY src /third/: miss: never built before
    "#]],
    )
    .await;
}

#[tokio::test]
async fn the_most_similar_build_is_compared_with() {
    let fixture = with_files().await;
    check(
        &fixture,
        COPY,
        expect![[r#"
        [2/2] COPY src /src/: miss: never built before
    "#]],
    )
    .await;
    fixture.write("src/main.c", "a branch");
    fixture.write("src/util.c", "a branch");
    check(
        &fixture,
        COPY,
        expect![[r#"
        [2/2] COPY src /src/: miss: `src/main.c`: content, `src/util.c`: content
    "#]],
    )
    .await;
    fixture.write("src/main.c", "int main");
    fixture.write("src/util.c", "edited");
    check(
        &fixture,
        COPY,
        expect![[r#"
        [2/2] COPY src /src/: miss: `src/util.c`: content
    "#]],
    )
    .await;
}

#[tokio::test]
async fn flags_eviction_and_damage_are_causes() {
    let fixture = with_files().await;
    let mut request = request(&fixture, COPY);
    let built = fixture.build_request(&request).await.built;
    request.no_cache = true;
    check_request(
        &fixture,
        &request,
        expect![[r#"
        [2/2] COPY src /src/: miss: `--no-cache` was given
    "#]],
    )
    .await;
    request.no_cache = false;
    request.no_cache_stages.insert("0".to_owned());
    check_request(
        &fixture,
        &request,
        expect![[r#"
        [2/2] COPY src /src/: miss: `--no-cache-filter` was given
    "#]],
    )
    .await;
    request.no_cache_stages.clear();
    let layer = &built.layers.last().unwrap().descriptor.digest;
    fixture.damage(layer, Damage::Gone).await;
    check_request(
        &fixture,
        &request,
        expect![[r#"
        [2/2] COPY src /src/: miss: the layer of the entry is gone or damaged
    "#]],
    )
    .await;
    let bound = GcOptions { dry_run: false, grace: Duration::ZERO, cache_size_max: 2000 };
    fixture.catalog.collect_garbage(&bound).await.unwrap();
    check_request(
        &fixture,
        &request,
        expect![[r#"
        [2/2] COPY src /src/: miss: the entry was evicted
    "#]],
    )
    .await;
}

#[tokio::test]
async fn nothing_is_explained_unless_asked() {
    let fixture = with_files().await;
    let mut request = request(&fixture, COPY);
    request.explain_cache = false;
    let run = fixture.build_request(&request).await;
    assert_eq!(run.events.explanations(), "");
    assert!(run.built.cost.steps.iter().all(|step| step.cache.is_none()));
    request.explain_cache = true;
    let built = fixture.build_request(&request).await.built;
    let cause = CacheCause::MadeBy { run: "c1".to_owned(), at: NOW, proof: Some(Proof::Layers) };
    let explained = built.cost.steps[1].cache.clone();
    assert!(matches!(explained, Some(CacheExplanation { hit: true, cause: c, .. }) if c == cause));
}

#[tokio::test]
async fn entries_of_older_versions_are_said_to_have_no_detail() {
    let fixture = with_files().await;
    let request = request(&fixture, COPY);
    let built = fixture.build_request(&request).await.built;
    let (cache, key) = (&fixture.builder.cache, &built.record.steps[0].key);
    let mut entry = cache.get(key).await.unwrap().unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&entry.value).unwrap();
    value.as_object_mut().unwrap().remove("origin").unwrap();
    entry.value = value.to_string();
    cache.put(key, &entry).await.unwrap();
    check_request(
        &fixture,
        &request,
        expect![[r#"
        [2/2] COPY src /src/: hit: made by an older version, no detail
    "#]],
    )
    .await;
    fixture.write("src/main.c", "changed");
    check_request(
        &fixture,
        &request,
        expect![[r#"
        [2/2] COPY src /src/: miss: made by an older version, no detail
    "#]],
    )
    .await;
}

const RUN: &str = "\
FROM registry.test/busybox AS build
ARG VERSION=1
ARG TOKEN
COPY src /src/
RUN echo made > /made
RUN --mount=target=/context true
FROM build
ENV A=1
RUN true
";

#[tokio::test(flavor = "multi_thread")]
async fn as_root_a_run_names_the_step_the_base_or_the_value() {
    let fixture = with_runtime().await;
    fixture.write("src/main.c", "int main");
    let mut request = request(&fixture, RUN);
    request.secret_args.insert("TOKEN".to_owned());
    request.build_args.insert("TOKEN".to_owned(), "hidden-1".to_owned());
    check_request(
        &fixture,
        &request,
        expect![[r#"
        [build 2/4] COPY src /src/: miss: never built before
        [build 3/4] RUN echo made > /made: miss: never built before
        [build 4/4] RUN --mount=target=/context true: miss: never built before
        [stage-1 1/1] RUN true: miss: never built before
    "#]],
    )
    .await;
    fixture.write("src/main.c", "int more");
    check_request(&fixture, &request, expect![[r#"
        [build 2/4] COPY src /src/: miss: `src/main.c`: content
        [build 3/4] RUN echo made > /made: miss: because [build 2/4] COPY src /src/ changed
        [build 4/4] RUN --mount=target=/context true: miss: because [build 2/4] COPY src /src/ changed
        [stage-1 1/1] RUN true: miss: because stage `build` changed
    "#]]).await;
    request.build_args.insert("VERSION".to_owned(), "2".to_owned());
    check_request(
        &fixture,
        &request,
        expect![[r#"
        [build 2/4] COPY src /src/: hit: made by run c1 at 2023-11-14T22:13:20Z
        [build 3/4] RUN echo made > /made: miss: build argument `VERSION` changed
        [build 4/4] RUN --mount=target=/context true: miss: build argument `VERSION` changed
        [stage-1 1/1] RUN true: miss: build argument `VERSION` changed
    "#]],
    )
    .await;
    request.build_args.insert("TOKEN".to_owned(), "hidden-2".to_owned());
    check_request(
        &fixture,
        &request,
        expect![[r#"
        [build 2/4] COPY src /src/: hit: made by run c1 at 2023-11-14T22:13:20Z
        [build 3/4] RUN echo made > /made: miss: secret build argument `TOKEN` changed
        [build 4/4] RUN --mount=target=/context true: miss: secret build argument `TOKEN` changed
        [stage-1 1/1] RUN true: miss: secret build argument `TOKEN` changed
    "#]],
    )
    .await;
    request.dockerfile = RUN.replace("ENV A=1", "ENV A=2");
    check_request(
        &fixture,
        &request,
        expect![[r#"
        [build 2/4] COPY src /src/: hit: made by run c1 at 2023-11-14T22:13:20Z
        [build 3/4] RUN echo made > /made: hit: made by run c1 at 2023-11-14T22:13:20Z
        [build 4/4] RUN --mount=target=/context true: hit: made by run c1 at 2023-11-14T22:13:20Z
        [stage-1 1/1] RUN true: miss: environment variable `A` changed
    "#]],
    )
    .await;
    fixture.write("other", "only mounted");
    check_request(
        &fixture,
        &request,
        expect![[r#"
        [build 2/4] COPY src /src/: hit: made by run c1 at 2023-11-14T22:13:20Z
        [build 3/4] RUN echo made > /made: hit: made by run c1 at 2023-11-14T22:13:20Z
        [build 4/4] RUN --mount=target=/context true: miss: the mount at `/context` changed
        [stage-1 1/1] RUN true: hit: made by run c1 at 2023-11-14T22:13:20Z
    "#]],
    )
    .await;
    let mut files = busybox_files();
    files.push(file("etc/new", 0o644, (0, 0), b"a patch"));
    fixture.put_image("busybox", &files, &[], media_type::OCI_LAYER_GZIP).await;
    let run = fixture.build_request(&request).await.events.explanations();
    expect![[r#"
        [build 1/4] FROM registry.test/busybox: miss: base image `registry.test/busybox` changed from sha256:[DIGEST] to sha256:[DIGEST]
        [build 2/4] COPY src /src/: hit: made by run c1 at 2023-11-14T22:13:20Z, and what this sees of the image is the same
        [build 3/4] RUN echo made > /made: miss: base image `registry.test/busybox` changed from sha256:[DIGEST] to sha256:[DIGEST]
        [build 4/4] RUN --mount=target=/context true: miss: base image `registry.test/busybox` changed from sha256:[DIGEST] to sha256:[DIGEST]
        [stage-1 1/1] RUN true: miss: because stage `build` changed
    "#]].assert_eq(&digests_hidden(&run));
}

fn digests_hidden(text: &str) -> String {
    let parts: Vec<&str> = text.split("sha256:").collect();
    let rest = parts[1..].iter().map(|part| format!("sha256:[DIGEST]{}", &part[64..]));
    parts[0].to_owned() + &rest.collect::<String>()
}
