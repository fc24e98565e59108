//! `refit build --cache-explain`.

use testkit::{Sandbox, Server, busybox};

use crate::sandbox;

const DOCKERFILE: &str = "ARG VERSION=1\nCOPY src /src/\nRUN cat src/name\n";

fn build(sandbox: &Sandbox, server: &Server, more: &[&str]) -> (String, serde_json::Value) {
    let args = ["build", "app", "-t", "app", "--cache-explain", "-o", "json"];
    let args = args.into_iter().chain(more.iter().copied());
    let built = sandbox.refit(args).on(server).run().success();
    let explained = built.stderr.lines().filter_map(|line| Some(line.split_once(" cache ")?.1));
    let run = serde_json::from_str(&built.stdout).expect("a run as JSON");
    (explained.collect::<Vec<_>>().join("\n"), run)
}

#[test]
fn as_root_a_changed_file_argument_and_base_are_named() {
    let sandbox = sandbox();
    let server = sandbox.server();
    server.registry().push("busybox", "latest", &busybox());
    sandbox
        .write("app/Dockerfile", format!("FROM {}/busybox\n{DOCKERFILE}", server.host()))
        .write("app/src/name", "one")
        .write("app/src/other", "same");
    let build = |more: &[&str]| build(&sandbox, &server, more);
    assert_eq!(build(&[]).0, "miss: never built before\nmiss: never built before");
    let (hits, run) = build(&[]);
    assert_eq!(hits.lines().filter(|line| line.starts_with("hit: made by run ")).count(), 2);
    let text = run.to_string();
    assert!(text.contains(r#""kind":"madeBy""#), "{text}");

    sandbox.write("app/src/name", "two");
    let (misses, run) = build(&[]);
    assert_eq!(misses, "miss: `src/name`: content\nmiss: because [2/3] COPY src /src/ changed");
    let text = run.to_string();
    assert!(text.contains(r#"{"path":"src/name","changed":["content"]}"#), "{text}");

    let (misses, _) = build(&["--build-arg", "VERSION=2"]);
    let misses: Vec<_> = misses.lines().collect();
    assert!(misses[0].starts_with("hit: "), "{misses:?}");
    assert_eq!(misses[1], "miss: build argument `VERSION` changed");

    let patch = format!("FROM {}/busybox\nRUN echo yes > /etc/patched\n", server.host());
    sandbox.write("base/Dockerfile", patch);
    sandbox.refit(["build", "base", "-t", "busybox"]).on(&server).run().success();
    let (misses, _) = build(&["--build-arg", "VERSION=2"]);
    let misses: Vec<_> = misses.lines().collect();
    assert!(misses[0].contains("busybox` changed from sha256:"), "{misses:?}");
    assert!(misses[1].starts_with("hit: "), "{misses:?}");
    assert!(misses[2].contains("busybox` changed from sha256:"), "{misses:?}");
}
