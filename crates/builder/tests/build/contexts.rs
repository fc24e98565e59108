//! Named contexts: what takes the place of stages and images.

use std::collections::BTreeSet;

use builder::{BuildRequest, ContextOptions, NamedContext, StoredImage};
use expect_test::expect;
use oci::Digest;

use crate::run::with_runtime;
use crate::support::*;

/// A request in which `files` stands for the folder `named` beside the context.
fn with_files(fixture: &Fixture, dockerfile: &str) -> BuildRequest {
    let mut options = ContextOptions::new(fixture.folder.path().join("named"));
    options.dockerfile = None;
    let mut request = fixture.request(dockerfile);
    request.named_contexts.insert("files".to_owned(), NamedContext::Files(options));
    request
}

fn write_named(fixture: &Fixture, path: &str, text: &str) {
    let path = fixture.folder.path().join("named").join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

async fn error(fixture: &Fixture, request: &BuildRequest) -> String {
    match fixture.try_build(request).await.0 {
        Ok(_) => panic!("the build was expected to fail"),
        Err(error) => error.render("Dockerfile", &request.dockerfile),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_takes_the_place_of_a_stage_and_an_image() {
    let fixture = Fixture::empty().await;
    write_named(&fixture, "a/one", "1");
    write_named(&fixture, "lost", "x");
    write_named(&fixture, ".dockerignore", "lost\n");
    // Another file's own list of what is left out does not count here.
    write_named(&fixture, "Dockerfile.dockerignore", "a\n");
    let dockerfile = "FROM registry.test/none AS files\nRUN never\n\
        FROM files AS child\nCOPY --from=files a /copied/\n\
        FROM scratch\nCOPY --from=child / /child/\nCOPY --from=files:latest a/one /";
    let run = fixture.build_request(&with_files(&fixture, dockerfile)).await;
    expect![[r#"
        child 755 0:0 folder
        child/.dockerignore 644 0:0 "lost\n"
        child/Dockerfile.dockerignore 644 0:0 "a\n"
        child/a 755 0:0 folder
        child/a/one 644 0:0 "1"
        child/copied 755 0:0 folder
        child/copied/one 644 0:0 "1"
        one 644 0:0 "1"
    "#]]
    .assert_eq(&fixture.files(&run.built).await.below(""));
    expect![[r#"
        [child 1/1] COPY --from=files a /copied/: done
        [files 1/1] FROM files: done
        [stage-2 1/2] COPY --from=child / /child/: done
        [stage-2 2/2] COPY --from=files:latest a/one /: done
        load context files: done
    "#]]
    .assert_eq(&run.steps());
    assert_eq!(run.built.record.named_contexts.len(), 1);
    assert!(run.built.record.context.is_none());

    // What counts is what the files are, not when they were written or what is left out.
    write_named(&fixture, "lost", "y");
    write_named(&fixture, "a/one", "1");
    let again = fixture.build_request(&with_files(&fixture, dockerfile)).await;
    assert_eq!(again.built.cost.cache_misses, 0);
    assert_eq!(again.built.descriptor.digest, run.built.descriptor.digest);
    write_named(&fixture, "a/one", "2");
    let changed = fixture.build_request(&with_files(&fixture, dockerfile)).await;
    assert_eq!(fixture.files(&changed.built).await.at("one"), "644 0:0 \"2\"");

    let lost = with_files(&fixture, "FROM scratch\nCOPY --from=files lost /");
    expect![[r#"
        error: `lost` not found
         --> Dockerfile:2:1
          |
        2 | COPY --from=files lost /
          | ^^^^^^^^^^^^^^^^^^^^^^^^
        hint: `.dockerignore` excludes it from the context
    "#]]
    .assert_eq(&error(&fixture, &lost).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_used_is_named() {
    let fixture = Fixture::empty().await;
    write_named(&fixture, ".dockerignore", "[\n");
    let request = with_files(&fixture, "FROM scratch\nCOPY --from=files a /");
    expect![[r#"
        error: context `files`: `.dockerignore` cannot be used: line 1: pattern `[` is malformed
    "#]]
    .assert_eq(&error(&fixture, &request).await);
    write_named(&fixture, ".dockerignore", "");
    write_named(&fixture, ".wh.gone", "");
    let request = with_files(&fixture, "FROM files");
    assert!(error(&fixture, &request).await.contains("names that start with `.wh.`"));
    // One that nothing reads is not even looked at.
    fixture.build_request(&with_files(&fixture, "FROM scratch\nCOPY <<EOF /a\nEOF")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_takes_the_place_of_another() {
    let fixture = Fixture::with_base().await;
    let mut request =
        fixture.request("FROM debian:12 AS make\nFROM debian:12\nCOPY --from=make:latest tmp /t");
    for name in ["debian:12", "make"] {
        let image = NamedContext::Image("registry.test/base".parse().unwrap());
        request.named_contexts.insert(name.to_owned(), image);
    }
    let run = fixture.build_request(&request).await;
    assert_eq!(fixture.files(&run.built).await.at("home/app"), "750 1000:1001 folder");
    let bases: Vec<_> = run.built.record.bases.iter().map(|base| base.reference.as_str()).collect();
    assert_eq!(bases, ["registry.test/base:latest", "registry.test/base:latest"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_came_along_is_made_of_what_came_along() {
    let fixture = Fixture::with_base().await;
    let top = fixture
        .put_image(
            "other",
            &[file("f", 0o600, (1, 2), b"f")],
            &["A=1"],
            "application/vnd.oci.image.layer.v1.tar+gzip",
        )
        .await;
    // The manifest as a blob, as whoever hands an image in brings it.
    let registry = oci::RegistryName::default();
    let wanted = store::ManifestRef::Digest(top.clone());
    let entry = fixture.catalog.manifest(&registry, &"other".parse().unwrap(), &wanted).await;
    let bytes = entry.unwrap().unwrap().bytes;
    put(fixture.catalog.blobs(), &bytes).await;
    let oci::Manifest::Image(manifest) = oci::Manifest::parse(&bytes, None).unwrap() else {
        panic!("not an image")
    };
    let all: BTreeSet<Digest> = [top.clone(), manifest.config.digest.clone()]
        .into_iter()
        .chain(manifest.layers.iter().map(|layer| layer.digest.clone()))
        .collect();
    let request = |blobs: &BTreeSet<Digest>| {
        let image = StoredImage { top: top.clone(), blobs: blobs.clone() };
        let mut request = fixture.request("FROM given\nENV B=$A");
        request.named_contexts.insert("given".to_owned(), NamedContext::Stored(image));
        request
    };
    let run = fixture.build_request(&request(&all)).await;
    assert_eq!(fixture.files(&run.built).await.at("f"), "600 1:2 \"f\"");
    assert!(run.config().config.env.contains(&"B=1".to_owned()));
    let base = &run.built.record.bases[0];
    assert_eq!((base.reference.as_str(), &base.digest), ("oci-layout://given", &top));

    // The store has each of them, and that is no reason to use it.
    for digest in &all {
        let mut fewer = all.clone();
        fewer.remove(digest);
        let refused = error(&fixture, &request(&fewer)).await;
        assert!(refused.contains(&format!("it lacks blob {digest}")), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_a_command_sees_a_folder_and_runs_on_it() {
    let fixture = with_runtime().await;
    write_named(&fixture, "a/one", "1\n");
    write_named(&fixture, "lost", "x");
    write_named(&fixture, ".dockerignore", "lost\n");
    let dockerfile = "FROM registry.test/busybox\n\
        RUN --mount=from=files,target=/m cat /m/a/one && ls -A /m && ! touch /m/x 2>/dev/null";
    let run = fixture.build_request(&with_files(&fixture, dockerfile)).await;
    assert_eq!(run.events.output(), "1\n.dockerignore\na\n");
    let busybox = std::fs::read("/bin/busybox").unwrap();
    let path = fixture.folder.path().join("named/busybox");
    std::fs::write(&path, busybox).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).unwrap();
    let dockerfile = "FROM files\nRUN [\"/busybox\", \"cat\", \"/a/one\"]";
    let run = fixture.build_request(&with_files(&fixture, dockerfile)).await;
    assert_eq!(run.events.output(), "1\n");
}
