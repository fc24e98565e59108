use crate::sandbox;

#[test]
fn settings_are_checked_and_printed_without_secrets() {
    let sandbox = sandbox();
    sandbox.write(
        "refit.toml",
        "[server]\nlisten = \"127.0.0.1:4444\"\n[upstream.\"r.example\"]\nusername = \"u\"\npassword = \"hunter2\"\n",
    );
    let told = sandbox.refit(["serve", "--config", "refit.toml", "--check"]).run().success();
    assert!(told.stdout.contains("127.0.0.1:4444"), "{}", told.stdout);
    assert!(!told.stdout.contains("hunter2"));
    let told = sandbox.refit(["serve", "--config", "refit.toml", "--check", "-o", "json"]).run();
    let told = told.success().json();
    assert_eq!(told["server"]["listen"], "127.0.0.1:4444");
    assert_eq!(told["upstream"]["r.example"]["password"], "(hidden)");
    assert!(!sandbox.data().exists(), "checking changes nothing");
    let refused = sandbox.refit(["serve", "--check", "--listen", "nonsense"]).run();
    refused.code(2).stderr_has("error: ");
}

#[test]
fn a_data_folder_has_one_server() {
    let sandbox = sandbox();
    let server = sandbox.server();
    sandbox.refit(["serve", "--listen", "127.0.0.1:0"]).run().code(5).stderr_has("belongs to");
    server.stop();
    sandbox.server().stop();
}

#[test]
fn a_command_without_server_uses_that_of_its_data_folder() {
    let sandbox = sandbox();
    let server = sandbox.server();
    server.registry().push("app", "1", &testkit::busybox());
    let listed = sandbox.refit(["repository", "list", "-o", "tsv"]).run().success();
    assert!(listed.stdout.starts_with("app\t"), "{}", listed.stdout);
}

#[test]
fn as_root_a_server_that_is_stopped_sees_a_build_to_its_end() {
    let sandbox = sandbox();
    let server = sandbox.server();
    crate::build::app(&sandbox, &server, "RUN sleep 1\n");
    let build = sandbox.refit(["build", "app", "-t", "app:1"]).on(&server).start();
    crate::build::wait_for_status(&sandbox, &server, "Running");
    server.stop();
    let built = build.wait().success();
    let server = sandbox.server();
    assert_eq!(testkit::validate(&server.registry(), "app", "1").digest.as_str(), built.digest());
}

#[test]
fn a_server_that_was_started_to_ignore_the_end_of_its_terminal_does() {
    let sandbox = sandbox();
    let serve = sandbox.refit(["serve", "--listen", "127.0.0.1:0"]).ignoring("HUP").start();
    serve.until_exists(&sandbox.path("data/refit.sock"));
    serve.signal(rustix::process::Signal::HUP);
    sandbox.refit(["repository", "list"]).run().success();
    serve.signal(rustix::process::Signal::TERM);
    let ended = serve.wait().success();
    assert_eq!(ended.stderr.matches("stopping").count(), 1, "{}", ended.stderr);
}

#[test]
fn a_data_folder_may_have_a_long_name() {
    let sandbox = sandbox();
    let data = sandbox.path("long").join("a".repeat(120));
    let refit =
        |args: &[&str]| sandbox.refit(args.iter().copied()).env("REFIT_DATA", data.display());
    refit(&["repository", "list"]).run().success();
    let serve = refit(&["serve", "--listen", "127.0.0.1:0"]).start();
    serve.until_exists(&data.join("refit.sock"));
    refit(&["repository", "list"]).run().success();
    serve.signal(rustix::process::Signal::TERM);
    serve.wait().success();
}
