//! `RUN --mount`. These tests start containers, which takes root.

use std::time::Duration;

use builder::{BuildRequest, RunPolicy, Secret};
use container::Network;
use expect_test::expect;

use crate::run::{build, error, with_runtime};
use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn as_root_files_of_the_context_and_of_stages_are_there_while_a_command_runs() {
    let fixture = with_runtime().await;
    fixture.write("src/main.c", "int main;");
    fixture.write("src/secret.key", "no");
    fixture.write("src/kept/secret.key", "kept");
    fixture.write(".dockerignore", "**/secret.key\n!src/kept\n");
    let dockerfile = "FROM registry.test/busybox AS made\n\
         RUN mkdir -p /a/b && echo made > /a/b/file && ln -s a/b /link\n\
         FROM registry.test/busybox\n\
         WORKDIR /work\n\
         RUN --mount=target=src,source=src --mount=from=made,source=/link,target=/made \\\n\
             find src /made -type f | sort && cat /made/file && ! touch src/x 2>/dev/null\n\
         RUN --mount=target=/one,source=src/main.c cat /one\n\
         RUN --mount=target=/rw,source=src,rw echo new > /rw/new && cat /rw/new\n\
         RUN ls / /work";
    let run = build(&fixture, dockerfile).await;
    expect![[r#"
        /made/file
        src/kept/secret.key
        src/main.c
        made
        int main;new
        /:
        bin
        dev
        etc
        home
        lib
        proc
        sys
        tmp
        usr
        work

        /work:
    "#]]
    .assert_eq(&run.events.output());
    assert!(!fixture.context().join("src/new").exists(), "a command wrote to the context");

    // What a mount brings counts, what it does not bring does not.
    fixture.write("other", "x");
    assert_eq!(build(&fixture, dockerfile).await.built.cost.cache_misses, 0);
    fixture.write("src/main.c", "int main();");
    let run = build(&fixture, dockerfile).await;
    assert!(run.events.output().contains("int main();"), "{}", run.events.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_times_of_what_a_mount_brings_count_with_an_epoch() {
    const EPOCH: i64 = 1_600_000_000;
    let fixture = with_runtime().await;
    fixture.write("c/f", "f");
    let mut request = fixture.request(
        "FROM registry.test/busybox\nRUN --mount=target=/c,source=c cp -p /c/f /f && ls -l /c/f > /l",
    );
    request.network = Network::None;
    let misses = async |request: &BuildRequest, seconds| {
        fixture.touch("c/f", seconds);
        let built = fixture.build_request(request).await.built;
        (built.cost.cache_misses, built.descriptor.digest)
    };
    assert_eq!(misses(&request, EPOCH - 5).await.0, 1);
    assert_eq!(misses(&request, EPOCH - 100_000).await.0, 0);
    request.source_date_epoch = Some(EPOCH);
    let anew = BuildRequest { no_cache: true, ..request.clone() };
    for seconds in [EPOCH - 5, EPOCH - 100_000, EPOCH + 100_000] {
        let (count, digest) = misses(&request, seconds).await;
        assert_eq!((count, &digest), (1, &misses(&anew, seconds).await.1), "{seconds}");
        assert_eq!(misses(&request, seconds).await, (0, digest));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_what_is_in_a_cache_mount_outlives_the_build() {
    let fixture = with_runtime().await;
    let count = "RUN --mount=type=cache,target=/cache,id=count,mode=0711,uid=7 \
                 echo x >> /cache/lines; wc -l < /cache/lines; stat -c '%a %u' /cache";
    let dockerfile = |extra: &str| format!("FROM registry.test/busybox\n{count} # {extra}");
    assert_eq!(build(&fixture, &dockerfile("a")).await.events.output(), "1\n711 7\n");
    let run = build(&fixture, &dockerfile("b")).await;
    assert_eq!(run.events.output(), "2\n711 7\n");
    // It is no part of the image, and no reason to run again.
    assert_eq!(fixture.files(&run.built).await.at("cache"), "nothing");
    assert_eq!(build(&fixture, &dockerfile("b")).await.built.cost.cache_misses, 0);

    let dockerfile = "FROM registry.test/busybox AS seed\nRUN mkdir /seed && echo s > /seed/file\n\
         FROM registry.test/busybox\n\
         RUN --mount=type=cache,target=/c,from=seed,source=/seed cat /c/file && echo t > /c/file\n\
         RUN --mount=type=cache,target=/c,from=seed,source=/seed cat /c/file\n\
         RUN --mount=type=cache,target=/c,ro ! touch /c/x 2>/dev/null && echo read-only";
    assert_eq!(build(&fixture, dockerfile).await.events.output(), "s\nt\nread-only\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_a_cache_with_a_source_leads_nowhere_but_where_it_began() {
    let fixture = with_runtime().await;
    // Both folders are empty, so both caches would be the same one but for where they lie.
    let dockerfile = "FROM registry.test/busybox AS a\nRUN mkdir /p\n\
         FROM registry.test/busybox AS b\nRUN mkdir -p /p/q\n\
         FROM registry.test/busybox\n\
         RUN --mount=type=cache,id=x,from=a,source=/p,target=/c ln -s / /c/q && ls /c\n\
         RUN --mount=type=cache,id=x,from=b,source=/p/q,target=/h ls -a /h\n\
         RUN --mount=type=cache,id=x,from=a,source=/p,target=/c ls /c\n";
    let run = build(&fixture, dockerfile).await;
    assert_eq!(run.events.output(), "q\n.\n..\nq\n");
    let twice = "FROM registry.test/busybox AS a\nRUN mkdir /p\nFROM registry.test/busybox\n\
         RUN --mount=type=cache,id=y,from=a,source=/p,target=/c \
             --mount=type=cache,id=y,from=a,source=/p,target=/d true\n";
    let (refused, _) = fixture.try_build(&fixture.request(twice)).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("another mount of this `RUN` has the same cache"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_a_locked_cache_mount_is_used_by_one_at_a_time() {
    let fixture = with_runtime().await;
    let stage = |name: &str| {
        format!(
            "FROM registry.test/busybox AS {name}\n\
             RUN --mount=type=cache,target=/c,id=lock,sharing=locked \
                 ! test -e /c/held && touch /c/held && sleep 0.3 && rm /c/held && echo {name}\n"
        )
    };
    let dockerfile = format!(
        "{}{}{}FROM scratch\nCOPY --from=a /etc/passwd /a\nCOPY --from=b /etc/passwd /b\n\
         COPY --from=c /etc/passwd /c\n",
        stage("a"),
        stage("b"),
        stage("c")
    );
    let run = build(&fixture, &dockerfile).await;
    let output = run.events.output();
    let mut names: Vec<&str> = output.lines().collect();
    names.sort_unstable();
    assert_eq!(names, ["a", "b", "c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_a_tmpfs_is_empty_and_goes() {
    let fixture = with_runtime().await;
    let dockerfile = "FROM registry.test/busybox\n\
         RUN --mount=type=tmpfs,target=/etc,size=1m ls -a /etc | wc -l; stat -c %a /etc; \
             dd if=/dev/zero of=/etc/big bs=1M count=2 2>/dev/null || echo full\n\
         RUN cat /etc/passwd | head -1";
    let run = build(&fixture, dockerfile).await;
    expect![[r#"
        2
        1777
        full
        root:x:0:0::/root:/bin/sh
    "#]]
    .assert_eq(&run.events.output());
}

/// Whoever owns them on the machine.
#[tokio::test(flavor = "multi_thread")]
async fn as_root_root_and_users_see_mounts_as_theirs() {
    let fixture = with_runtime().await;
    let mounts = "RUN --mount=type=cache,target=/root-cache \
             --mount=type=cache,target=/user-cache,uid=1000,gid=1001,mode=0700 \
             --mount=type=tmpfs,target=/memory \
             --mount=type=secret,id=key,target=/root-key \
             --mount=type=secret,id=key,target=/user-key,uid=1000 \
             --mount=type=bind,target=/context,rw \
             --mount=type=bind,from=made,source=/made,target=/made";
    let dockerfile = format!(
        "FROM registry.test/busybox AS made\n\
         RUN mkdir /made && touch /made/7 /made/high && chown 7:8 /made/7 && \
             chown 100000:200000 /made/high\n\
         FROM registry.test/busybox\n\
         {mounts} stat -c '%n %u:%g %a' /*-cache /memory /*-key /context /context/* /made/* && \
             cat /*-key && touch /root-cache/x /user-cache/x /memory/x /context/x && \
             chown 5 /root-cache/x\n\
         USER 1000:1001\n\
         {mounts} exec 2>&1; stat -c '%n %u' /root-cache/x /user-cache/x; cat /user-key; \
             rm /user-cache/x; touch /user-cache/y /memory/y; cat /root-key; \
             touch /root-cache/y /context/y; rm /root-cache/x; cat /context/file"
    );
    fixture.write("file", "of the context\n");
    let mut request = fixture.request(&dockerfile);
    request.network = Network::None;
    request.secrets.insert("key".to_owned(), Secret::new("a key of nobody's\n"));
    let run = fixture.build_request(&request).await;
    expect![[r#"
        /root-cache 0:0 755
        /user-cache 1000:1001 700
        /memory 0:0 1777
        /root-key 0:0 400
        /user-key 1000:0 400
        /context 0:0 755
        /context/file 0:0 644
        /made/7 7:8 644
        /made/high 100000:200000 644
        a key of nobody's
        a key of nobody's
        /root-cache/x 5
        /user-cache/x 0
        a key of nobody's
        cat: can't open '/root-key': Permission denied
        touch: /root-cache/y: Permission denied
        touch: /context/y: Permission denied
        rm: can't remove '/root-cache/x': Permission denied
        of the context
    "#]]
    .assert_eq(&run.events.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_a_secret_is_there_for_the_command_and_nowhere_else() {
    let fixture = with_runtime().await;
    let dockerfile = "FROM registry.test/busybox\n\
         RUN --mount=type=secret,id=token,env=TOKEN \
             --mount=type=secret,id=token,target=/root/.token,uid=5,mode=0440 \
             --mount=type=secret,id=token \
             --mount=type=secret,id=absent \
             stat -c '%a %u %n' /root/.token /run/secrets/token && cat /run/secrets/token; \
             echo $TOKEN; ls /run/secrets; grep -c tmpfs.*/run/secrets/token /proc/mounts\n\
         RUN ls -a /root /run 2>&1 || true";
    let mut request = fixture.request(dockerfile);
    request.network = Network::None;
    request.secrets.insert("token".to_owned(), Secret::new("hunter-two\n"));
    let run = fixture.build_request(&request).await;
    expect![[r#"
        440 5 /root/.token
        400 0 /run/secrets/token
        hunter-two
        hunter-two
        token
        1
        ls: /root: No such file or directory
        ls: /run: No such file or directory
    "#]]
    .assert_eq(&run.events.output());
    let shown = format!("{request:?} {:?} {:?}", run.built, run.config());
    assert!(!shown.contains("hunter"), "{shown}");
    // No file of the machine holds it: neither a layer nor the bundle of the container.
    let found = find_text(fixture.folder.path(), b"hunter-two");
    assert!(found.is_empty(), "{found:?}");

    // Another value is no reason to run again.
    request.secrets.insert("token".to_owned(), Secret::new("other"));
    assert_eq!(fixture.build_request(&request).await.built.cost.cache_misses, 0);

    let required = "FROM registry.test/busybox\nRUN --mount=type=secret,id=key,required true";
    expect![[r#"
        error: secret `key` is required, and the build was given none
         --> Dockerfile:2:5
          |
        2 | RUN --mount=type=secret,id=key,required true
          |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
        hint: give it with `--secret id=key,src=FILE` or `id=key,env=NAME`
    "#]]
    .assert_eq(&error(&fixture, required).await);
}

/// Files below a folder that hold a text.
fn find_text(folder: &std::path::Path, text: &[u8]) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![folder.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if metadata.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            if bytes.windows(text.len()).any(|window| window == text) {
                found.push(path);
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_what_the_policy_does_not_allow_is_refused() {
    let mut fixture = with_runtime().await;
    let insecure = "FROM registry.test/busybox\nRUN --security=insecure mount -t tmpfs x /tmp";
    expect![[r#"
        error: `--security=insecure` is not allowed by this server
         --> Dockerfile:2:1
          |
        2 | RUN --security=insecure mount -t tmpfs x /tmp
          | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
        hint: its operator can allow it with `build.allow_insecure = true`
    "#]]
    .assert_eq(&error(&fixture, insecure).await);
    let host = error(&fixture, "FROM registry.test/busybox\nRUN --network=host true").await;
    assert!(host.contains("`--network=host` is not allowed"), "{host}");
    fixture.builder.policy = RunPolicy { host_network: false, insecure: true };
    build(&fixture, insecure).await;
    let missing = "FROM registry.test/busybox\nRUN --mount=from=registry.test/busybox,source=/none,target=/x true";
    let missing = error(&fixture, missing).await;
    assert!(missing.starts_with("error: `none` not found\n --> Dockerfile:2:5"), "{missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_cancel_ends_the_wait_for_a_locked_cache_mount() {
    let fixture = with_runtime().await;
    let dockerfile = |text: &str| {
        format!(
            "FROM registry.test/busybox\n\
             RUN --mount=type=cache,target=/c,sharing=locked echo {text}; sleep 1000"
        )
    };
    let request = |text: &str| {
        let mut request = fixture.request(&dockerfile(text));
        request.network = Network::None;
        request
    };
    let (first, second) = (request("first"), request("second"));
    let (events, cancel) = (Recorder::default(), tokio_util::sync::CancellationToken::new());
    let builds = async {
        tokio::join!(
            builder::build(&fixture.builder, &first, &events, &cancel),
            builder::build(&fixture.builder, &second, &events, &cancel),
        )
    };
    let stop = async {
        while events.output().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        cancel.cancel();
    };
    let ended = tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(builds, stop) });
    let ((first, second), ()) = ended.await.unwrap();
    for built in [first, second] {
        assert!(matches!(built, Err(builder::BuildError::Canceled)));
    }
}
