//! `refit run`: what is refused, what is queued.

use expect_test::expect;

use crate::sandbox;

/// Nothing is there, so what is refused is refused before.
const NOWHERE: [&str; 2] = ["--server", "http://127.0.0.1:9"];

#[test]
fn mistakes_are_told_before_anything_is_sent() {
    let sandbox = sandbox();
    sandbox.write("app/main.c", "").write("outside.yaml", "steps: []\n");
    let refused = |args: &[&str]| {
        let args = ["run"].iter().chain(args).chain(&NOWHERE).copied();
        sandbox.refit(args).run().code(2)
    };
    refused(&["--cmd", "app", "-f", "acb.yaml"]).stderr_has("cannot be used with");
    refused(&["--cmd", " "]).stderr_has("`--cmd` has no command");
    refused(&["--cmd", "app", "--set", "=x"]).stderr_has("`--set` has no name");
    refused(&["--cmd", "app", "--timeout", "5"]).stderr_has("`--timeout 5`");
    refused(&["--cmd", "app", "--platform", "/"]).stderr_has("is not a platform");
    refused(&["--cmd", "app", "--values", "none.yaml"]).stderr_has("values file `none.yaml`");
    refused(&["--cmd", "app", "none"]).stderr_has("the context `none` cannot be used");
    refused(&["/dev/null"]).stderr_has("a run without context needs a task");
    refused(&["-f", "none.yaml", "/dev/null"]).stderr_has("the task file `none.yaml` cannot");
    refused(&["-f", "-", "/dev/null"]).stderr_has("the task file is empty");
    refused(&["app"]).stderr_has("`--file acb.yaml` is not in the context `app`");
    refused(&["--cmd", "app", "-o", "type=oci,dest=x"]).stderr_has("only a build");
}

#[test]
fn a_task_file_outside_of_the_context_is_refused_with_what_to_do() {
    let sandbox = sandbox();
    sandbox.write("app/acb.yaml", "steps: []\n").write("outside.yaml", "steps: []\n");
    let args = ["run", "-f", "outside.yaml", "app"].into_iter().chain(NOWHERE);
    expect![[r#"
        exit: 2
        -- stdout --
        -- stderr --
        error: `--file outside.yaml` is not in the context `app`
        hint: the server reads it there; with `/dev/null` as context a file from elsewhere is sent by itself
    "#]]
    .assert_eq(&sandbox.refit(args).run().snapshot());
    let args = ["run", "--values", "outside.yaml", "app"].into_iter().chain(NOWHERE);
    sandbox.refit(args).run().code(2).stderr_has("`--values outside.yaml` is not in the context");
}

#[test]
fn a_queued_run_is_printed_and_shown_as_a_quick_run() {
    let sandbox = sandbox();
    let server = sandbox.server();
    sandbox
        .write("app/ci/acb.yaml", "steps: []\n")
        .write("app/.dockerignore", "*\n")
        .write("values.yaml", "a: 1\n")
        .write("app/ci/values.yaml", "a: 1\n");
    let tasks: [&[&str]; 5] = [
        &[
            "--cmd",
            "127.0.0.1:9/none:1 echo {{.Values.a}}",
            "--set",
            "a",
            "--values",
            "values.yaml",
        ],
        &["-f", "ci/acb.yaml", "app", "--values", "ci/values.yaml", "--set-secret", "b=hunter22"],
        &["-f", "app/ci/acb.yaml", "app", "--platform", "linux/arm64"],
        &["-f", "app/ci/acb.yaml", "/dev/null", "--timeout", "300"],
        &["-f", "-", "app"],
    ];
    for task in tasks {
        let args = ["run", "--no-wait", "-o", "json"].iter().chain(task).copied();
        let queued = sandbox.refit(args).stdin("steps: []\n").on(&server).succeeds();
        let run = queued.json();
        assert_eq!(run["properties"]["runType"], "QuickRun", "{task:?}");
        assert!(!queued.stdout.contains("hunter22"), "{task:?}");
        let id = run["name"].as_str().unwrap();
        let show = ["task", "show-run", "--run-id", id];
        let shown = sandbox.refit(show).on(&server).succeeds().stdout;
        assert!(shown.contains(id) && shown.contains("QuickRun"), "{shown}");
        let shown = sandbox.refit(show).arg("-o").arg("json").on(&server).succeeds().json();
        let wanted = if task.contains(&"linux/arm64") { "arm64" } else { std::env::consts::ARCH };
        let wanted = if wanted == "x86_64" { "amd64" } else { wanted };
        assert_eq!(shown["properties"]["platform"]["architecture"], wanted, "{task:?}");
    }
}
