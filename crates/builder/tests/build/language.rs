//! The rest of the language, executed. These tests start containers, which takes root.

use std::net::{IpAddr, Ipv4Addr};

use container::Network;
use expect_test::expect;

use crate::run::{build, with_runtime};
use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn as_root_here_documents_are_scripts_and_files() {
    let fixture = with_runtime().await;
    let dockerfile = "FROM registry.test/busybox\n\
         ARG NAME=world\n\
         RUN <<EOF\n\
         # no comment of the Dockerfile\n\
         echo hello $NAME\n\
         EOF\n\
         RUN <<-'END' cat && cat <<LAST\n\
         \t$NAME\n\
         \tEND\n\
         last\n\
         LAST\n\
         RUN <<PROGRAM\n\
         #!/bin/cat\n\
         shown by cat\n\
         PROGRAM\n\
         COPY --chmod=640 --chown=7:8 <<one <<'two' /files/\n\
         $NAME \"quoted\"\n\
         one\n\
         $NAME\n\
         two\n\
         RUN ls /dev/pipes 2>&1 || true";
    let run = build(&fixture, dockerfile).await;
    expect![[r#"
        hello world
        $NAME
        last
        #!/bin/cat
        shown by cat
        ls: /dev/pipes: No such file or directory
    "#]]
    .assert_eq(&run.events.output());
    let files = fixture.files(&run.built).await;
    assert_eq!(files.at("files/one"), "640 7:8 \"world \\\"quoted\\\"\\n\"");
    assert_eq!(files.at("files/two"), "640 7:8 \"$NAME\\n\"");
    let steps = run.steps();
    assert!(steps.contains("RUN <<EOF (# no comment of the Dockerfile...)"), "{steps}");
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_triggers_run_on_the_image_that_is_built_on_theirs() {
    let fixture = with_runtime().await;
    fixture.write("app/main", "main");
    let triggers = [
        "ARG WHO=nobody",
        "COPY app /app",
        "COPY --from=tools /tool /tool",
        "RUN echo $WHO > /who",
        "ENV TRIGGERED=1",
    ];
    let dockerfile: String = triggers.map(|trigger| format!("ONBUILD {trigger}\n")).concat();
    let base = fixture.build(&format!("FROM registry.test/busybox\n{dockerfile}")).await;
    assert_eq!(base.config().config.on_build, triggers);
    fixture.publish("base", &base.built).await;

    // The stage `tools` is needed by nothing but a trigger.
    let dockerfile = "FROM registry.test/busybox AS tools\nRUN echo tool > /tool\n\
         FROM registry.test/base\nRUN cat /who /tool /app/main; echo $WHO $TRIGGERED";
    let mut request = fixture.request(dockerfile);
    request.network = Network::None;
    request.build_args.insert("WHO".to_owned(), "somebody".to_owned());
    let run = fixture.build_request(&request).await;
    assert_eq!(run.events.output(), "somebody\ntool\nmainsomebody 1\n");
    assert!(run.config().config.on_build.is_empty());
    let steps = run.steps();
    assert!(steps.contains("ONBUILD COPY app /app"), "{steps}");
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_a_stage_has_the_arguments_of_the_one_it_is_built_on() {
    let fixture = with_runtime().await;
    let dockerfile = "FROM registry.test/busybox AS one\nARG TAG=1 HIDDEN=arg\nENV HIDDEN=env\n\
         FROM one\nENV X=$TAG\nRUN echo $TAG $X $HIDDEN\nARG HIDDEN=again\nRUN echo $HIDDEN";
    let run = build(&fixture, dockerfile).await;
    assert_eq!(run.events.output(), "1 1 env\nagain\n");
    let env = &run.config().config.env;
    assert!(env.contains(&"HIDDEN=env".to_owned()) && env.contains(&"X=1".to_owned()), "{env:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_hosts_limits_and_shared_memory_are_what_the_caller_asks_for() {
    let fixture = with_runtime().await;
    let dockerfile = "FROM registry.test/busybox\n\
         RUN grep example /etc/hosts; ulimit -n; df -k /dev/shm | tail -1 | awk '{print $2}'";
    let mut request = fixture.request(dockerfile);
    request.network = Network::None;
    let address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    request.extra_hosts.push(("example.test".to_owned(), address));
    request.limits.ulimits.push(("nofile".to_owned(), 77, 78));
    request.limits.shm_size = Some(1 << 20);
    request.annotations.insert("a".to_owned(), "b".to_owned());
    request.labels.insert("l".to_owned(), "m".to_owned());
    let run = fixture.build_request(&request).await;
    assert_eq!(run.events.output(), "192.0.2.1\texample.test\n77\n1024\n");
    assert_eq!(run.config().config.labels["l"], "m");
    let manifest: oci::ImageManifest = serde_json::from_slice(&run.built.manifest).unwrap();
    assert_eq!(manifest.annotations["a"], "b");
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_the_cache_can_be_left_aside_for_one_stage() {
    let fixture = with_runtime().await;
    let dockerfile = "FROM registry.test/busybox AS one\nRUN echo one > /one\n\
         FROM registry.test/busybox AS two\nRUN echo two > /two\n\
         FROM scratch\nCOPY --from=one /one /\nCOPY --from=two /two /";
    let mut request = fixture.request(dockerfile);
    request.network = Network::None;
    fixture.build_request(&request).await;
    request.no_cache_stages.insert("two".to_owned());
    let run = fixture.build_request(&request).await;
    assert_eq!((run.built.cost.cache_misses, run.built.cost.cache_hits), (1, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_linked_copy_is_the_same_on_every_base() {
    let fixture = Fixture::with_base().await;
    fixture.write("dir/file", "x");
    let layer = async |dockerfile: &str| {
        let run = fixture.build(dockerfile).await;
        (run.built.layers.last().unwrap().diff_id.clone(), run.built.cost.cache_hits)
    };
    let (one, _) = layer("FROM scratch\nCOPY --link dir /lib/x/").await;
    // `/lib` is a link in this image, which a copy that stands by itself does not see.
    let (two, hits) = layer("FROM registry.test/base\nCOPY --link dir /lib/x/").await;
    assert_eq!((one == two, hits), (true, 1));
    let (seen, _) = layer("FROM registry.test/base\nCOPY dir /lib/x/").await;
    assert!(seen != one);
}
