//! Secrets that get into layers.

use std::io::Write as _;
use std::sync::Arc;

use builder::{BuildRequest, CacheImports, Secret, cache_image};
use container::Network;
use expect_test::expect;

use crate::exchange::put_cache;
use crate::run::with_runtime;
use crate::support::*;

const TOKEN: &str = "hunter-two-hunter-two";

fn with_token(fixture: &Fixture, dockerfile: &str, value: &str) -> BuildRequest {
    let mut request = fixture.request(dockerfile);
    request.network = Network::None;
    request.secrets.insert("token".to_owned(), Secret::new(value));
    request
}

/// How a build fails that must, without its secret.
async fn failure(fixture: &Fixture, request: &BuildRequest) -> String {
    let (built, events) = fixture.try_build(request).await;
    let error = built.expect_err("a build that fails");
    let text = error.render("Dockerfile", &request.dockerfile);
    let shown = format!("{text} {error:?} {:?}", events.warnings());
    assert!(!shown.contains("hunter"), "{shown}");
    assert!(error.is_users());
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_a_run_that_writes_a_secret_fails_the_build_each_time() {
    let fixture = with_runtime().await;
    let dockerfile = "FROM registry.test/busybox\n\
         RUN --mount=type=secret,id=token mkdir /etc/app && cp /run/secrets/token /etc/app/key\n\
         RUN true";
    let request = with_token(&fixture, dockerfile, TOKEN);
    let expected = expect![[r#"
        error: the layer holds secret `token` in `/etc/app/key`, and an image must not have it
         --> Dockerfile:2:1
          |
        2 | RUN --mount=type=secret,id=token mkdir /etc/app && cp /run/secrets/token /etc/app/key
          | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
        hint: mount it with `RUN --mount=type=secret` and write it nowhere, remove the file in the `RUN` that makes it, or keep it from `COPY` with a `.dockerignore`
    "#]];
    expected.assert_eq(&failure(&fixture, &request).await);
    expected.assert_eq(&failure(&fixture, &request).await);
    // A build with another secret is not given the layer with this one.
    let other = with_token(&fixture, dockerfile, "no");
    let built = fixture.build_request(&other).await.built;
    assert_eq!((built.cost.cache_hits, built.cost.cache_misses), (0, 2));
    assert!(fixture.files(&built).await.at("etc/app/key").ends_with("\"no\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_a_stage_that_the_image_does_not_have_may_hold_a_secret_that_nobody_else_gets() {
    let fixture = with_runtime().await;
    let dockerfile = |path: &str| {
        format!(
            "FROM registry.test/busybox AS fetch\n\
             RUN --mount=type=secret,id=token cp /run/secrets/token /key && echo x > /file\n\
             FROM registry.test/busybox\n\
             COPY --from=fetch {path} /"
        )
    };
    let mut request = with_token(&fixture, &dockerfile("/file"), TOKEN);
    request.shares_results = true;
    for _ in 0..2 {
        let run = fixture.build_request(&request).await;
        let warning = "Dockerfile:2: the layer holds secret `token` in `/key`, so the build cache does not keep it";
        assert_eq!(run.events.warnings(), [warning]);
        assert_eq!(run.built.results.len(), 1);
        assert!(fixture.files(&run.built).await.at("file").ends_with("\"x\\n\""));
    }
    let request = with_token(&fixture, &dockerfile("/key"), TOKEN);
    let text = failure(&fixture, &request).await;
    assert!(text.contains("secret `token` in `/key`") && text.contains(":4:1"), "{text}");
}

#[tokio::test]
async fn copied_files_and_names_with_a_secret_fail_the_build_also_if_they_are_in_the_cache() {
    let fixture = Fixture::empty().await;
    fixture.write("conf/app.ini", &format!("[x]\ntoken = {TOKEN}\n"));
    fixture.write("conf/other.ini", "[x]");
    let dockerfile = "FROM scratch\nARG KEY\nCOPY other.ini /\nCOPY conf /conf";
    fixture.write("other.ini", "[y]");
    // Nobody knows of a secret yet.
    fixture.build(dockerfile).await;
    let mut request = fixture.request(dockerfile);
    request.known_secrets.add("value `key`", TOKEN);
    let expected = expect![[r#"
        error: the layer holds value `key` in `/conf/app.ini`, and an image must not have it
         --> Dockerfile:4:1
          |
        4 | COPY conf /conf
          | ^^^^^^^^^^^^^^^
        hint: mount it with `RUN --mount=type=secret` and write it nowhere, remove the file in the `RUN` that makes it, or keep it from `COPY` with a `.dockerignore`
    "#]];
    expected.assert_eq(&failure(&fixture, &request).await);
    expected.assert_eq(&failure(&fixture, &request).await);
    request = fixture.request(dockerfile);
    request.build_args.insert("KEY".to_owned(), TOKEN.to_owned());
    request.secret_args.insert("KEY".to_owned());
    let text = failure(&fixture, &request).await;
    assert!(text.contains("the layer holds build argument `KEY` in `/conf/app.ini`"), "{text}");

    let fixture = Fixture::empty().await;
    fixture.write(&format!("conf/{TOKEN}/x"), "x");
    let request = with_token(&fixture, &format!("FROM scratch\nCOPY conf/{TOKEN} /"), TOKEN);
    fixture.build_request(&request).await;
    let request = with_token(&fixture, &format!("FROM scratch\nCOPY conf/{TOKEN} /{TOKEN}"), TOKEN);
    expect![[r#"
        error: the layer holds secret `token` in `/*********************` and 1 other file, and an image must not have it
         --> Dockerfile:2:1
          |
        2 | COPY conf/********************* /*********************
          | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
        hint: mount it with `RUN --mount=type=secret` and write it nowhere, remove the file in the `RUN` that makes it, or keep it from `COPY` with a `.dockerignore`
    "#]]
    .assert_eq(&failure(&fixture, &request).await);
}

#[tokio::test]
async fn short_secrets_are_warned_of_and_compressed_files_are_not_searched() {
    let fixture = Fixture::empty().await;
    fixture.write("a", "pass=hunter\n");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(TOKEN.repeat(20).as_bytes()).unwrap();
    std::fs::write(fixture.context().join("b.gz"), gzip.finish().unwrap()).unwrap();
    let mut request = with_token(&fixture, "FROM scratch\nCOPY a b.gz /", TOKEN);
    request.secrets.insert("pin".to_owned(), Secret::new("hunter"));
    let warning =
        "Dockerfile:2: the layer holds secret `pin` in `/a`, perhaps by chance, since it is short";
    for restarts in [false, false, true] {
        let run = fixture.build_request(&request).await;
        assert_eq!(run.events.warnings(), [warning], "{restarts}");
    }
}

#[tokio::test]
async fn imported_layers_are_searched_and_those_of_base_images_are_not() {
    let one = Fixture::empty().await;
    one.write("x", TOKEN);
    let dockerfile = "FROM scratch\nCOPY x /";
    let built = one.build(dockerfile).await.built;
    assert!(cache_image(&built.results).is_some());
    let two = Fixture::empty().await;
    two.write("x", TOKEN);
    put_cache(&one, &two, &built, false).await;
    let mut request = with_token(&two, dockerfile, TOKEN);
    request.imports = Arc::new(CacheImports::new([format!("{HOST}/cache").parse().unwrap()]));
    let text = failure(&two, &request).await;
    assert!(text.contains("the layer holds secret `token` in `/x`"), "{text}");

    one.publish("base", &built).await;
    one.write("y", "y");
    let request = with_token(&one, "FROM registry.test/base\nCOPY y /", TOKEN);
    assert_eq!(one.build_request(&request).await.events.warnings(), Vec::<String>::new());
}
