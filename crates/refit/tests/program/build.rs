use std::time::{Duration, Instant};

use expect_test::expect;
use testkit::{Sandbox, Server, busybox, until, validate};

use crate::sandbox;

/// A context that needs no base image and runs nothing.
pub(crate) fn scratch_app(sandbox: &Sandbox) {
    sandbox
        .write("app/Dockerfile", "FROM scratch\nCOPY file /\nENV A=1\n")
        .write("app/file", "one");
}

/// A context on a base image with a shell, which the server holds.
pub(crate) fn app(sandbox: &Sandbox, server: &Server, instructions: &str) {
    server.registry().push("busybox", "latest", &busybox());
    let from = format!("FROM {}/busybox\n", server.host());
    sandbox.write("app/Dockerfile", format!("{from}{instructions}"));
}

/// An embedded data folder that holds a base image with a shell, as `localhost:5000/busybox`.
fn with_base(sandbox: &Sandbox) {
    let server = sandbox.server();
    server.registry().push("busybox", "latest", &busybox());
    server.stop();
}

const STAGES: &str = "\
ARG GREETING=hello
FROM localhost:5000/busybox AS make
ARG GREETING
WORKDIR /work
COPY src/ .
RUN cat name.txt && echo \"$GREETING $(cat name.txt)\" > out.txt

FROM scratch
COPY --from=make /work/out.txt /greeting.txt
CMD [\"/greeting\"]
";

fn stages(sandbox: &Sandbox) {
    sandbox
        .write("app/Dockerfile", STAGES)
        .write("app/src/name.txt", "world\n")
        .write("app/lost.txt", "x")
        .write("app/.dockerignore", "lost.txt\n");
}

#[test]
fn as_root_stages_are_built_embedded_and_served_later() {
    let sandbox = sandbox();
    with_base(&sandbox);
    stages(&sandbox);
    let args = ["build", "app", "-t", "greeting:1", "-t", "greeting:latest"];
    let built = sandbox.refit(args).run().success();
    expect![[r#"
        greeting@sha256:[DIGEST]
        greeting@sha256:[DIGEST]
    "#]]
    .assert_eq(&built.filtered_stdout());
    assert!(built.stderr.contains("RUN cat name.txt"), "{}", built.stderr);
    assert!(built.stderr.contains(" world\n"), "{}", built.stderr);

    let server = sandbox.server();
    let image = validate(&server.registry(), "greeting", "1");
    assert_eq!(image.digest.as_str(), built.digest());
    assert_eq!(image.text("greeting.txt"), "hello world\n");
    assert_eq!(image.files().len(), 1);
}

#[test]
fn as_root_an_unchanged_context_is_cached_and_a_changed_one_is_not_stale() {
    let sandbox = sandbox();
    with_base(&sandbox);
    stages(&sandbox);
    let build = |flags: &[&str]| {
        let args = ["build", "app", "-t", "greeting"].into_iter().chain(flags.iter().copied());
        sandbox.refit(args).env("SOURCE_DATE_EPOCH", "1700000000").run().success()
    };
    let first = build(&[]);
    let second = build(&[]);
    assert_eq!(first.digest(), second.digest());
    assert!(!second.stderr.contains("world\n"), "nothing ran again: {}", second.stderr);
    assert!(second.stderr.contains("CACHED"), "{}", second.stderr);
    let third = build(&["--no-cache"]);
    assert!(third.stderr.contains("world\n"), "{}", third.stderr);
    assert_eq!(first.digest(), third.digest());
    sandbox.write("app/src/name.txt", "there\n");
    assert_ne!(first.digest(), build(&[]).digest());
    assert_ne!(first.digest(), build(&["--build-arg", "GREETING=bye"]).digest());
}

#[test]
fn as_root_a_served_build_is_pulled_from_its_server() {
    let sandbox = sandbox();
    let server = sandbox.server();
    app(&sandbox, &server, "RUN echo made > /made && rm /etc/group\nLABEL a=b\n");
    sandbox.refit(["build", "app", "-t", "team/app:1"]).on(&server).run().success();
    let image = validate(&server.registry(), "team/app", "1");
    assert_eq!(image.text("made"), "made\n");
    assert!(!image.files().contains_key("etc/group"));
    assert_eq!(image.config.config.labels["a"], "b");
}

#[test]
fn as_root_a_failing_instruction_names_its_place() {
    let sandbox = sandbox();
    let server = sandbox.server();
    app(&sandbox, &server, "COPY Dockerfile /\nRUN echo before; exit 7\n");
    let failed = sandbox.refit(["build", "app", "-t", "app"]).on(&server).run().code(1);
    assert_eq!(failed.stdout, "");
    let failed = failed.stderr_has("before").stderr_has("Dockerfile:3").stderr_has("error: run `");
    assert!(failed.stderr.contains('7'), "{}", failed.stderr);
    sandbox.refit(["repository", "show-tags", "app"]).on(&server).run().code(4);
}

#[test]
fn as_root_a_dockerfile_that_is_wrong_names_its_place() {
    let sandbox = sandbox();
    sandbox.write("app/Dockerfile", "FROM scratch\nCOPPY a b\n");
    let failed = sandbox.refit(["build", "app"]).run().code(1);
    failed.stderr_has("Dockerfile:2").stderr_has("COPPY");
}

#[test]
fn as_root_a_base_image_that_another_registry_does_not_have_fails_the_build() {
    let sandbox = sandbox();
    let (other, server) = (Server::start(), sandbox.server());
    let from = format!("FROM {}/no/such:image\n", other.host());
    sandbox.write("app/Dockerfile", from);
    let outcome = sandbox.refit(["build", "app"]).on(&server).run().code(1);
    assert!(outcome.stderr.contains("Run failed after"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("/no/such:image` does not exist"), "{}", outcome.stderr);
}

#[test]
fn as_root_a_dockerfile_from_outside_is_not_in_the_context() {
    let sandbox = sandbox();
    sandbox.write("app/file", "one").write("other", "FROM scratch\nCOPY . /\n");
    let built = sandbox.refit(["build", "app", "-f", "other", "-t", "app"]).run().success();
    let server = sandbox.server();
    let image = validate(&server.registry(), "app", &built.digest());
    assert_eq!(image.files().keys().collect::<Vec<_>>(), ["file"]);
}

#[test]
fn as_root_a_build_without_a_name_prints_its_digest_and_the_run_as_json() {
    let sandbox = sandbox();
    scratch_app(&sandbox);
    let built = sandbox.refit(["build", "app"]).run().success();
    assert_eq!(built.filtered_stdout(), "sha256:[DIGEST]\n");
    let args = ["build", "app", "-t", "app", "-o", "json", "--no-logs", "--metadata-file", "meta"];
    let built = sandbox.refit(args).run().success();
    assert_eq!(built.json()["properties"]["status"], "Succeeded");
    assert!(!built.stderr.contains("COPY"), "{}", built.stderr);
    let metadata = std::fs::read_to_string(sandbox.path("meta")).unwrap();
    let metadata: serde_json::Value = serde_json::from_str(&metadata).unwrap();
    assert_eq!(metadata["containerimage.digest"], built.json()["properties"]["outputDigest"]);
}

#[test]
fn as_root_an_image_is_kept_out_of_the_registry_on_demand() {
    let sandbox = sandbox();
    scratch_app(&sandbox);
    let built = sandbox.refit(["build", "app", "-t", "app", "--no-push"]).run().success();
    assert_eq!(built.filtered_stdout(), "sha256:[DIGEST]\n");
    sandbox.refit(["repository", "show-tags", "app"]).run().code(4);
}

#[test]
fn as_root_ctrl_c_cancels_the_build() {
    let sandbox = sandbox();
    let server = sandbox.server();
    app(&sandbox, &server, "RUN touch /started && sleep 600\n");
    let build = sandbox.refit(["build", "app"]).on(&server).start();
    wait_for_status(&sandbox, &server, "Running");
    let begun = Instant::now();
    build.interrupt();
    build.wait().code(130).stderr_has("was canceled");
    assert!(begun.elapsed() < Duration::from_secs(15));
    wait_for_status(&sandbox, &server, "Canceled");
}

#[test]
fn as_root_ctrl_c_cancels_an_embedded_build() {
    let sandbox = sandbox();
    with_base(&sandbox);
    sandbox.write("app/Dockerfile", "FROM localhost:5000/busybox\nRUN sleep 600\n");
    let build = sandbox.refit(["build", "app"]).start();
    build.until_exists(&sandbox.path("data/refit.sock"));
    let runs = || sandbox.refit(["task", "list-runs", "-o", "json"]).run().success().json();
    until("a running build", || (runs()[0]["properties"]["status"] == "Running").then_some(()));
    build.interrupt();
    build.wait().code(130);
    assert_eq!(runs()[0]["properties"]["status"], "Canceled");
}

#[test]
fn as_root_a_run_goes_on_without_its_client() {
    let sandbox = sandbox();
    let server = sandbox.server();
    app(&sandbox, &server, "RUN sleep 1; echo done > /done\n");
    let queued = sandbox.refit(["build", "app", "-t", "app", "--no-wait"]).on(&server).run();
    let id = queued.success().stdout.trim().to_owned();
    let log = sandbox.refit(["task", "logs", "--run-id", &id]).on(&server).run().success().stdout;
    assert!(log.contains("was successful"), "{log}");
    validate(&server.registry(), "app", "latest");
}

/// Waits for the newest run.
#[track_caller]
fn wait_for_status(sandbox: &Sandbox, server: &Server, status: &str) {
    until(status, || {
        let args = ["task", "list-runs", "-o", "json"];
        let runs = sandbox.refit(args).on(server).run().success().json();
        (runs[0]["properties"]["status"] == status).then_some(())
    });
}
