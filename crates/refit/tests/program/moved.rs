//! Builds on a base that has moved: what is proven is used again, and the image is that of a build
//! from nothing.

use testkit::{Image, Layer, Outcome, Sandbox, Server, busybox_layer};

use crate::damage::{DAMAGES, last_blob};
use crate::sandbox;

fn push_base(server: &Server, patches: &[&str]) {
    let accounts = Layer::new()
        .file("etc/passwd", 0o644, b"root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n")
        .file("etc/group", 0o644, b"root:x:0:\napp:x:1000:\n");
    let patches =
        patches.iter().map(|text| Layer::new().file("opt/patched", 0o644, text.as_bytes()));
    let layers = [busybox_layer(), accounts].into_iter().chain(patches);
    server.registry().push("base", "1", &Image::new(layers));
}

fn build(sandbox: &Sandbox, server: &Server, more: &[&str]) -> Outcome {
    let args = ["build", "app", "-t", "app:1", "-o", "json"].into_iter();
    let build = sandbox.refit(args.chain(more.iter().copied())).on(server);
    build.env("SOURCE_DATE_EPOCH", "1700000000").succeeds()
}

/// What proves each step, as the run's record has it.
fn proofs(sandbox: &Sandbox, server: &Server, built: &Outcome) -> Vec<String> {
    let id = built.json()["name"].as_str().expect("it has a name").to_owned();
    let show = ["task", "show-run", "--run-id", &id, "-o", "json"];
    let shown = sandbox.refit(show).on(server).succeeds().json();
    let steps = shown["properties"]["cost"]["steps"].as_array().expect("steps").clone();
    let proof = |step: &serde_json::Value| step["proof"].as_str().unwrap_or("none").to_owned();
    steps.iter().map(proof).collect()
}

fn digest(built: &Outcome) -> String {
    built.json()["properties"]["outputDigest"].as_str().expect("it was built").to_owned()
}

#[test]
fn what_sees_the_same_of_a_moved_base_is_used_again() {
    let sandbox = sandbox();
    let server = sandbox.server();
    push_base(&server, &[]);
    let dockerfile = format!(
        "FROM {}/base:1\nENV A=1\nCOPY --chown=app f /srv/app/f\nWORKDIR /srv/made\nLABEL a=b\n",
        server.host()
    );
    sandbox.write("app/Dockerfile", dockerfile).write("app/f", "f");
    let first = build(&sandbox, &server, &[]);
    assert_eq!(proofs(&sandbox, &server, &first), ["none"; 3]);
    let same = build(&sandbox, &server, &[]).stderr_has("CACHED\n").stderr_lacks("CACHED:");
    assert_eq!(proofs(&sandbox, &server, &same), ["none", "layers", "layers"]);

    push_base(&server, &["new"]);
    let moved = build(&sandbox, &server, &["--cache-explain"]);
    let moved = moved
        .stderr_has("\n#2 CACHED: what it sees of the image is the same\n")
        .stderr_has(", and what this sees of the image is the same");
    assert_eq!(proofs(&sandbox, &server, &moved), ["none", "seen", "seen"]);
    let id = moved.json()["name"].as_str().expect("it has a name").to_owned();
    let log = sandbox.refit(["task", "logs", "--run-id", &id]).on(&server).succeeds();
    assert!(log.stdout.contains("/made: what it sees of the image is the same"), "{}", log.stdout);
    assert_ne!(digest(&moved), digest(&first));
    // For the users nothing was unpacked.
    let unpacked = sandbox.data().join("snapshots/layers");
    assert_eq!(unpacked.read_dir().expect("there is a folder").count(), 0);

    let args = ["manifest", "show", "--record", "--name", "app:1", "-o", "json"];
    let record = sandbox.refit(args).on(&server).succeeds().json();
    let steps = record["steps"].as_array().expect("steps").iter();
    assert_eq!(steps.map(|step| &step["proof"]).collect::<Vec<_>>(), ["seen", "seen"]);
    let lines = record["evaluated"].as_array().expect("lines").iter();
    assert_eq!(lines.map(|line| &line["line"]).collect::<Vec<_>>(), [2, 5]);

    let anew = build(&sandbox, &server, &["--no-cache"]).stderr_lacks("CACHED");
    assert_eq!(digest(&anew), digest(&moved));
    testkit::validate(&server.registry(), "app", "1");
}

#[test]
fn a_proven_layer_that_is_damaged_is_made_anew() {
    for (number, damage) in DAMAGES.into_iter().enumerate() {
        let sandbox = sandbox();
        let server = sandbox.server();
        push_base(&server, &[]);
        let dockerfile = format!("FROM {}/base:1\nCOPY f /srv/f\n", server.host());
        sandbox.write("app/Dockerfile", dockerfile).write("app/f", "f");
        build(&sandbox, &server, &[]);
        damage(&sandbox, &last_blob(&server, "app", "1"));
        // What a process has read it trusts for a day.
        server.stop();
        let server = sandbox.server();
        let host = server.host();
        sandbox.write("app/Dockerfile", format!("FROM {host}/base:1\nCOPY f /srv/f\n"));
        push_base(&server, &["new"]);
        let moved = build(&sandbox, &server, &[]);
        assert_eq!(moved.json()["properties"]["cost"]["cacheMisses"], 1, "damage {number}");
        testkit::validate(&server.registry(), "app", "1");
    }
}

#[test]
fn as_root_a_run_is_not_proven() {
    let sandbox = sandbox();
    let server = sandbox.server();
    push_base(&server, &["old"]);
    let dockerfile =
        format!("FROM {}/base:1\nRUN cat /opt/patched > /seen\nCOPY f /srv/f\n", server.host());
    sandbox.write("app/Dockerfile", dockerfile).write("app/f", "f");
    build(&sandbox, &server, &[]);
    push_base(&server, &["new"]);
    let moved = build(&sandbox, &server, &[]);
    assert_eq!(proofs(&sandbox, &server, &moved), ["none", "none", "seen"]);
    let image = testkit::validate(&server.registry(), "app", "1");
    assert_eq!(image.text("seen"), "new");
    let args = ["manifest", "show", "--record", "--name", "app:1", "-o", "json"];
    let record = sandbox.refit(args).on(&server).succeeds().json();
    let steps = record["steps"].as_array().expect("steps").iter();
    assert_eq!(steps.map(|step| &step["proof"]).collect::<Vec<_>>(), ["layers", "seen"]);
}
