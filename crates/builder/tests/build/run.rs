//! `RUN`. These tests start containers, which takes root.

use std::sync::Arc;
use std::time::Duration;

use container::{Network, Runtime, RuntimeSettings};
use expect_test::expect;
use oci::media_type;

use crate::support::*;

/// A fixture with a runtime, and the image `registry.test/busybox`.
pub(crate) async fn with_runtime() -> Fixture {
    with_runtime_of(true).await
}

/// As [`with_runtime`], with or without user namespaces.
async fn with_runtime_of(user_namespaces: bool) -> Fixture {
    assert!(rustix::process::geteuid().is_root(), "these tests need root");
    let mut fixture = Fixture::empty().await;
    fixture.put_image("busybox", &busybox_files(), &[], media_type::OCI_LAYER_GZIP).await;
    let mut helper = std::env::current_exe().unwrap();
    helper.pop();
    if helper.ends_with("deps") {
        helper.pop();
    }
    helper.push("examples/sandbox_helper");
    assert!(helper.exists(), "{} is built with the tests", helper.display());
    let settings = RuntimeSettings {
        external: None,
        helper,
        state_dir: fixture.folder.path().join("state"),
        subnet: "10.213.0.0/16".to_owned(),
        user_namespaces,
        disk_reserve: 0,
    };
    let runtime = Runtime::new(settings).await.unwrap();
    fixture.builder.runtime = Some(Arc::new(runtime));
    fixture
}

pub(crate) async fn build(fixture: &Fixture, dockerfile: &str) -> Run {
    let mut request = fixture.request(dockerfile);
    request.network = Network::None;
    fixture.build_request(&request).await
}

pub(crate) async fn error(fixture: &Fixture, dockerfile: &str) -> String {
    let mut request = fixture.request(dockerfile);
    request.network = Network::None;
    request.limits.timeout = Some(Duration::from_secs(2));
    request.limits.memory = Some(64 << 20);
    match fixture.try_build(&request).await.0 {
        Ok(_) => panic!("the build was expected to fail"),
        Err(error) => error.render("Dockerfile", dockerfile),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_a_run_is_not_found_by_layers_that_an_image_only_claims_to_have() {
    let fixture = with_runtime().await;
    let claimed = vec![oci::Digest::of(&tar(&busybox_files()))];
    let other = [file("etc/passwd", 0o644, (0, 0), b"root:x:0:0::/:\n")];
    fixture.put_claiming("liar", &[&other], claimed, &[], media_type::OCI_LAYER_GZIP).await;
    // What is in that layer is known.
    fixture.put_image("other", &other, &[], media_type::OCI_LAYER_GZIP).await;
    build(&fixture, "FROM registry.test/other\nWORKDIR /known").await;
    // It unpacks the layer, and its result is kept.
    build(&fixture, "FROM registry.test/busybox\nRUN echo a > /a").await;
    for command in ["echo a > /a", "cat /etc/passwd"] {
        let error = error(&fixture, &format!("FROM registry.test/liar\nRUN {command}")).await;
        assert!(error.contains("it unpacks to sha256:"), "{command}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_a_run_s_changes_become_a_layer() {
    let fixture = with_runtime().await;
    let run = build(
        &fixture,
        "FROM registry.test/busybox\n\
         ENV GREETING=hello\n\
         ARG NAME=world\n\
         RUN echo $GREETING $NAME > /tmp/greeting && rm /lib/old && mkdir -p /a/b\n\
         RUN rm -r /home && mkdir /home && echo new > /home/new\n\
         RUN [\"/bin/sh\", \"-c\", \"echo shown\"]",
    )
    .await;
    let files = fixture.files(&run.built).await;
    assert_eq!(files.at("tmp/greeting"), "644 0:0 \"hello world\\n\"");
    assert_eq!(files.at("tmp"), "1777 0:0 folder");
    assert_eq!(files.at("usr/lib/old"), "nothing");
    assert_eq!(files.at("usr/lib"), "775 0:50 folder");
    assert_eq!(files.at("a/b"), "755 0:0 folder");
    assert_eq!(files.below("home"), "home 755 0:0 folder\nhome/new 644 0:0 \"new\\n\"\n");
    assert_eq!(run.events.output(), "shown\n");
    assert_eq!(run.built.layers.len(), 4);
    assert!(run.config().history.iter().filter(|line| !line.empty_layer).count() == 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_a_damaged_layer_of_a_run_is_made_again() {
    let mut fixture = with_runtime().await;
    fixture.write("a", "a");
    let dockerfile = "FROM registry.test/busybox\nRUN echo x > /d1\nCOPY a /d2";
    for damage in DAMAGES {
        let first = build(&fixture, dockerfile).await.built;
        fixture.damage(&first.layers[1].descriptor.digest, damage).await;
        fixture.restart().await;
        let run = build(&fixture, dockerfile).await;
        let cost = &run.built.cost;
        assert_eq!((cost.cache_misses, cost.cache_hits), (1, 1), "{damage:?}: {}", run.steps());
        let files = fixture.files(&run.built).await;
        assert_eq!((files.at("d1"), files.at("d2")), ("644 0:0 \"x\\n\"", "644 0:0 \"a\""));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_a_damaged_layer_below_a_run_is_made_again() {
    for damage in DAMAGES {
        let fixture = with_runtime().await;
        let below = "FROM registry.test/busybox\nRUN echo x > /d1\n";
        let first = build(&fixture, below).await.built;
        fixture.damage(&first.layers[1].descriptor.digest, damage).await;
        fixture.forget_snapshots();
        // The same process, and a step that must unpack what is below it.
        let run = build(&fixture, &format!("{below}RUN cat /d1 > /d2")).await;
        assert_eq!(run.built.cost.cache_misses, 2, "{damage:?}: {}", run.steps());
        assert_eq!(fixture.files(&run.built).await.at("d2"), "644 0:0 \"x\\n\"");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_a_run_has_its_user_and_folder() {
    let fixture = with_runtime().await;
    let run = build(
        &fixture,
        "FROM registry.test/busybox\n\
         WORKDIR /work\n\
         USER app\n\
         RUN id && echo $HOME && echo $PWD && echo $PATH",
    )
    .await;
    expect![[r#"
        uid=1000(app) gid=1001(app) groups=50(staff),1001(app)
        /home/app
        /work
        /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    "#]]
    .assert_eq(&run.events.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_only_runs_after_an_argument_that_changed_run_again() {
    let fixture = with_runtime().await;
    let dockerfile = "FROM registry.test/busybox\nRUN echo 1 > /one\nARG COLOR=red\n\
                      RUN echo $COLOR > /color\nRUN echo 2 > /two";
    let mut request = fixture.request(dockerfile);
    request.network = Network::None;
    let misses = async |request: &_| {
        let run = fixture.build_request(request).await;
        (run.built.cost.cache_misses, run)
    };
    assert_eq!(misses(&request).await.0, 3);
    assert_eq!(misses(&request).await.0, 0);
    request.build_args.insert("COLOR".to_owned(), "blue".to_owned());
    let (missed, run) = misses(&request).await;
    assert_eq!(missed, 2);
    assert_eq!(fixture.files(&run.built).await.at("color"), "644 0:0 \"blue\\n\"");
    request.network = Network::Isolated;
    let hits = fixture.try_build(&request).await.0.map(|built| built.cost.cache_hits);
    assert!(!matches!(hits, Ok(3)), "another network mode is another key");
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_failures_are_told_apart() {
    let fixture = with_runtime().await;
    expect![[r#"
        error: `exit 7` ended with exit code 7
         --> Dockerfile:2:1
          |
        2 | RUN exit 7
          | ^^^^^^^^^^
    "#]]
    .assert_eq(&error(&fixture, "FROM registry.test/busybox\nRUN exit 7").await);
    let dockerfile = "FROM registry.test/busybox\nRUN while :; do :; done";
    let slow = error(&fixture, dockerfile).await;
    assert!(slow.contains("took longer than its limit of 2 s"), "{slow}");
    let dockerfile = "FROM registry.test/busybox\nRUN a=x; while :; do a=$a$a; done";
    let big = error(&fixture, dockerfile).await;
    assert!(big.contains("ran out of memory, its limit is 64 MiB"), "{big}");
    // As make and others do: they tell of the failure in their own way.
    let dockerfile =
        "FROM registry.test/busybox\nRUN sh -c 'a=x; while :; do a=$a$a; done' || exit 2";
    let below = error(&fixture, dockerfile).await;
    let hint = "hint: a process of it was killed for want of memory; its limit is 64 MiB";
    assert!(below.contains("ended with exit code 2") && below.contains(hint), "{below}");
    expect![[r#"
        error: `true` did not start: `/bin/sh` cannot be executed: no such file, or its interpreter is missing
         --> Dockerfile:2:1
          |
        2 | RUN true
          | ^^^^^^^^
        hint: the image has no shell: use the exec form `RUN ["program", "argument"]`, or a base image with a shell
    "#]]
    .assert_eq(&error(&fixture, "FROM scratch\nRUN true").await);
    expect![[r#"
        error: `etc/.wh.new` cannot be in a layer: its name marks a deletion
         --> Dockerfile:2:1
          |
        2 | RUN touch /etc/.wh.new
          | ^^^^^^^^^^^^^^^^^^^^^^
    "#]]
    .assert_eq(&error(&fixture, "FROM registry.test/busybox\nRUN touch /etc/.wh.new").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_the_same_commands_give_the_same_image_at_the_same_source_date_epoch() {
    let dockerfile = "FROM registry.test/busybox AS a\nRUN echo x > /x && mkdir /d && echo y > /d/y\n\
                      FROM registry.test/busybox\nCOPY --from=a /d /d\nRUN cat /d/y > /z";
    let mut digests = Vec::new();
    for _ in 0..2 {
        let fixture = with_runtime().await;
        let mut request = fixture.request(dockerfile);
        request.network = Network::None;
        request.source_date_epoch = Some(1_600_000_000);
        digests.push(fixture.build_request(&request).await.built.descriptor);
    }
    assert_eq!(digests[0], digests[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_stages_run_at_the_same_time() {
    let fixture = with_runtime().await;
    // Each stage waits until the other one is at work, which it can see through nothing but
    // the clock: two sleeps of one second take less than two.
    let run = build(
        &fixture,
        "FROM registry.test/busybox AS a\nRUN sleep 1; echo a > /a\n\
         FROM registry.test/busybox AS b\nRUN sleep 1; echo b > /b\n\
         FROM scratch\nCOPY --from=a /a /\nCOPY --from=b /b /",
    )
    .await;
    let slept: u64 = run.built.cost.steps.iter().map(|step| step.milliseconds).sum();
    assert!(run.built.cost.milliseconds < slept, "{:?}", run.built.cost);
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_canceling_ends_a_run() {
    let fixture = with_runtime().await;
    let mut request = fixture.request("FROM registry.test/busybox\nRUN echo up; sleep 1000");
    request.network = Network::None;
    let (events, cancel) = (Recorder::default(), tokio_util::sync::CancellationToken::new());
    let build = builder::build(&fixture.builder, &request, &events, &cancel);
    let stop = async {
        while events.output().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        cancel.cancel();
    };
    let (built, ()) =
        tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(build, stop) })
            .await
            .unwrap();
    assert!(matches!(built, Err(builder::BuildError::Canceled)));
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_layers_that_are_equal_are_one_below_a_run() {
    let fixture = with_runtime().await;
    fixture.write("x", "x");
    let dockerfile = "FROM registry.test/busybox\n\
         RUN true\nRUN true\nCOPY x /\nRUN true\nCOPY x /\nRUN rm /x\nRUN test ! -e /x && echo gone";
    let run = build(&fixture, dockerfile).await;
    let layers: Vec<_> = run.built.layers.iter().map(|layer| &layer.diff_id).collect();
    assert!(layers[1] == layers[2], "{layers:?}");
    assert_eq!(run.events.output(), "gone\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_links_and_devices_of_a_stage_can_be_copied() {
    // Root of a user namespace makes no devices.
    let fixture = with_runtime_of(false).await;
    let run = build(
        &fixture,
        "FROM registry.test/busybox AS made\n\
         RUN mkdir /out; echo hi > /out/a; ln /out/a /out/b; ln -s a /out/c; mkfifo /out/pipe; \
             mknod /out/null c 1 3\n\
         FROM registry.test/busybox\n\
         COPY --from=made /out /out\n\
         RUN cat /out/b; ls -l /out | grep -c '^[pc]'",
    )
    .await;
    assert_eq!(run.events.output(), "hi\n2\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_names_of_one_file_are_copied_as_that() {
    let fixture = with_runtime().await;
    let made = "FROM registry.test/busybox AS made\n\
         RUN mkdir /out; cp /bin/busybox /out/m; for i in $(seq 100); do ln /out/m /out/a$i; done\n\
         RUN rm /out/a10; echo own > /out/a11; chmod 700 /out/a12\n";
    let copy = "FROM registry.test/busybox\nCOPY --from=made /out /x\n";
    let look = "RUN ls /x | wc -l; stat -c %h /x/m /x/a9 /x/a11 /x/a12; cmp /x/m /bin/busybox";
    let run = build(&fixture, &format!("{made}{copy}{look}")).await;
    // What changes one name takes it from the others, as it did for the command itself.
    assert_eq!(run.events.output(), "100\n98\n98\n1\n1\n");
    let size = |run: &Run| run.built.layers.iter().map(|l| l.descriptor.size).sum::<u64>();
    let once = build(&fixture, "FROM registry.test/busybox\nRUN cp /bin/busybox /m").await;
    let (all, once) = (size(&run), size(&once));
    assert!(all < 3 * once, "{all} bytes in all, {once} for the base and one copy");
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_attributes_with_line_ends_are_kept() {
    // `cap_dac_override` and `cap_fowner`: the bits 1 and 3 make a line end.
    const CAPABILITIES: &[u8] = b"\x01\0\0\x02\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let fixture = with_runtime().await;
    let mut files = busybox_files();
    let program = file("program", 0o755, (0, 0), b"x");
    files.push(program.with_xattr("security.capability", CAPABILITIES));
    fixture.put_image("capable", &files, &[], media_type::OCI_LAYER_GZIP).await;
    let record = [&b"57 SCHILY.xattr.security.capability="[..], CAPABILITIES, b"\n"].concat();
    for dockerfile in [
        "FROM scratch\nCOPY --from=registry.test/capable /program /copied",
        "FROM registry.test/capable\nRUN chmod 711 /program",
        "FROM registry.test/capable AS made\nRUN chmod 711 /program\n\
         FROM scratch\nCOPY --from=made /program /",
    ] {
        let run = build(&fixture, dockerfile).await;
        let tar = fixture.last_tar(&run.built).await;
        assert!(tar.windows(record.len()).any(|bytes| bytes == record), "{dockerfile}");
    }
}

/// Whether a tar has all of these somewhere, and no name that was replaced.
#[track_caller]
fn assert_names(tar: &[u8], names: &[&[u8]]) {
    let has = |part: &[u8]| tar.windows(part.len()).any(|bytes| bytes == part);
    for name in names {
        assert!(has(name), "{}", name.escape_ascii());
    }
    assert!(!has("\u{fffd}".as_bytes()));
    // Nor one that stands for a byte.
    assert!(!has(b"\xf4\x8f"));
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_names_that_are_no_text_stay_as_they_are() {
    let fixture = with_runtime().await;
    let make = r#"FROM registry.test/busybox AS made
RUN mkdir /out && cd /out && echo x > "$(printf 'caf\351')" && \
    ln "$(printf 'caf\351')" "$(printf 'twin\376')" && ln -s "$(printf 'to\377/x')" link && \
    mkdir "$(printf 'd\200')" && echo y > "$(printf 'd\200/y')" && ln -s "$(printf 'd\200')" d
"#;
    let names: &[&[u8]] = &[b"/caf\xe9", b"/twin\xfe", b"to\xff/x", b"/d\x80/", b"/d\x80/y"];
    let run = build(&fixture, make).await;
    assert_names(&fixture.last_tar(&run.built).await, names);
    let run = build(&fixture, &format!("{make}FROM scratch\nCOPY --from=made /out /x")).await;
    assert_names(&fixture.last_tar(&run.built).await, names);
    // Also through a link to such a name, and by a pattern.
    let copies = "FROM registry.test/busybox\nCOPY --from=made /out /x\n\
                  COPY --from=made /out/d/y /through/\nCOPY --from=made /out/caf? /globbed\n";
    let look = r#"RUN cat "/x/$(printf 'twin\376')" "/x/$(printf 'd\200')/y" /through/y /globbed && \
    stat -c %h "/x/$(printf 'caf\351')" && test "$(readlink /x/link)" = "$(printf 'to\377/x')"
RUN rm "/x/$(printf 'caf\351')" && ls /x | wc -l"#;
    let run = build(&fixture, &format!("{make}{copies}{look}")).await;
    assert_eq!(run.events.output(), "x\ny\ny\nx\n2\n4\n");
    assert_names(&fixture.last_tar(&run.built).await, &[b"/.wh.caf\xe9"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_an_image_may_have_names_that_are_no_text() {
    let fixture = with_runtime().await;
    let root = (0, 0);
    let latin = [
        folder(b"d\xe9", 0o755, root),
        file(b"d\xe9/f\xff", 0o644, root, b"latin"),
        link(b"d\xe9/l", b"f\xff"),
        hard_link(b"d\xe9/\x80", b"d\xe9/f\xff"),
        file("gone\u{10ffff}", 0o644, root, b"an odd character"),
    ];
    let above = [file(b".wh.gone\xf4\x8f\xbf\xbf", 0, root, b""), file("new", 0o644, root, b"")];
    let layers = [&busybox_files()[..], &latin, &above];
    fixture.put_layers("latin", &layers, &[], media_type::OCI_LAYER_GZIP).await;
    let names: &[&[u8]] = &[b"/f\xff", b"f\xff\0", b"/\x80"];
    let dockerfile = "FROM scratch\nCOPY --from=registry.test/latin /new /gone* /x/";
    let run = build(&fixture, dockerfile).await;
    let warnings = run.events.warnings();
    assert_eq!(warnings, ["`gone*` of line 2 matches nothing"]);
    let run = build(&fixture, "FROM scratch\nCOPY --from=registry.test/latin /d* /x/").await;
    assert_names(&fixture.last_tar(&run.built).await, names);
    let look = r#"FROM registry.test/latin
RUN cd "$(printf 'd\351')" && cat l && cat "$(printf '\200')" && stat -c %h "$(printf '\200')" && \
    ! ls / | grep gone
RUN chmod 600 "$(printf 'd\351/f\377')""#;
    let run = build(&fixture, look).await;
    assert_eq!(run.events.output(), "latinlatin2\n");
    assert_names(&fixture.last_tar(&run.built).await, &[b"d\xe9/f\xff"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_layers_are_the_same_without_a_user_namespace() {
    let mut layers = Vec::new();
    let mut files = busybox_files();
    // `cap_net_bind_service`.
    let program = file("program", 0o755, (0, 0), b"x");
    let capabilities = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    files.push(program.with_xattr("security.capability", capabilities));
    for user_namespaces in [true, false] {
        let fixture = with_runtime_of(user_namespaces).await;
        fixture.put_image("capable", &files, &[], media_type::OCI_LAYER_GZIP).await;
        let dockerfile = "FROM registry.test/capable\n\
             RUN --mount=type=cache,target=/cache \
                 id -u && touch /cache/x && cp /bin/busybox /s && chmod 4755 /s && mkfifo /p && \
                 chown -R 33:100000 /home && mkdir -m 2775 /d && ln /s /d/s && ln -s s /d/l && \
                 rm -r /tmp && mkdir -m 1777 /tmp && touch /tmp/x && chmod 711 /program && \
                 touch /n /h && chown 65534:65534 /n && chown 70000:2147483647 /h\n\
             RUN test $(stat -c %u:%g /h) = 70000:2147483647 && chown 0:5 /n && \
                 rm /s && rm -r /home && mkdir /home && chown 9:9 /d/s && test -s /d/s\n\
             WORKDIR /made/here\n\
             USER 1000:1001\n\
             RUN --mount=type=cache,target=/tmp/c,uid=1000 id -u && touch /tmp/c/x /tmp/y\n";
        let mut request = fixture.request(dockerfile);
        request.network = Network::None;
        request.source_date_epoch = Some(1_700_000_000);
        let run = fixture.build_request(&request).await;
        assert_eq!(run.events.output(), "0\n1000\n");
        layers.push(run.built.descriptor.digest);
    }
    assert_eq!(layers[0], layers[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_a_folder_that_comes_back_hides_what_was_below() {
    let fixture = with_runtime().await;
    let root = (0, 0);
    let below = [
        folder("a", 0o755, root),
        file("a/x", 0o644, root, b""),
        folder("b", 0o755, root),
        file("b/x", 0o644, root, b""),
    ];
    // The mark first, then the folder, or only what is in it.
    let above = [
        file(".wh.a", 0, root, b""),
        folder("a", 0o755, root),
        file("a/y", 0o644, root, b""),
        file(".wh.b", 0, root, b""),
        file("b/y", 0o644, root, b""),
    ];
    let layers = [&busybox_files()[..], &below, &above];
    fixture.put_layers("marked", &layers, &[], media_type::OCI_LAYER_GZIP).await;
    let dockerfile = "FROM registry.test/marked AS made\nRUN ls /a /b\n\
         FROM registry.test/busybox\nCOPY --from=made /a /c\nCOPY --from=made /b /c\nRUN ls /c";
    let run = build(&fixture, dockerfile).await;
    assert_eq!(run.events.output(), "/a:\ny\n\n/b:\ny\ny\n");
}
