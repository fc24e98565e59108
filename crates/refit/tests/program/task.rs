use crate::build::{app, scratch_app};
use crate::sandbox;

#[test]
fn as_root_a_run_is_listed_shown_and_its_log_is_kept() {
    let sandbox = sandbox();
    scratch_app(&sandbox);
    sandbox.refit(["build", "app", "-t", "app:1"]).run().success();
    let listed = sandbox.refit(["task", "list-runs", "-o", "json"]).run().success().json();
    let id = listed[0]["properties"]["runId"].as_str().unwrap().to_owned();
    let shown = sandbox.refit(["task", "show-run", "--run-id", &id, "-o", "json"]).run().success();
    assert_eq!(shown.json()["properties"]["status"], "Succeeded");
    for args in [&["task", "logs"][..], &["task", "logs", "--run-id", &id, "--no-follow"]] {
        let log = sandbox.refit(args.iter().copied()).run().success().stdout;
        assert!(log.contains(&format!("Run ID: {id} was successful after")), "{log}");
        assert!(!log.contains('\r'));
    }
    let conflict = sandbox.refit(["task", "cancel-run", "--run-id", &id]).run();
    conflict.code(5);
    sandbox.refit(["task", "show-run", "--run-id", "czzzz"]).run().code(4);
}

#[test]
fn as_root_a_run_can_be_canceled_by_another_command() {
    let sandbox = sandbox();
    let server = sandbox.server();
    app(&sandbox, &server, "RUN touch /started && sleep 600\n");
    let build = sandbox.refit(["build", "app"]).on(&server).start();
    let id = testkit::until("a running build", || {
        let runs = sandbox.refit(["task", "list-runs", "-o", "json"]).on(&server).run().json();
        let run = &runs[0]["properties"];
        (run["status"] == "Running").then(|| run["runId"].as_str().unwrap().to_owned())
    });
    sandbox.refit(["task", "cancel-run", "--run-id", &id]).on(&server).run().success();
    build.wait().code(1).stderr_has("was canceled");
}
