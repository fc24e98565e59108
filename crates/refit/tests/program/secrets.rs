//! `refit secret`, and where the secrets of task files come from.

use std::fs;

use testkit::{Outcome, Sandbox, Server, busybox};

use crate::sandbox;

/// A server whose runs may have a variable and the files of a folder.
fn server(sandbox: &Sandbox) -> Server {
    let folder = sandbox.path("secrets").display().to_string();
    let settings =
        format!("[registry.local]\nsecret_variables = [\"HOME\"]\nsecret_folder = \"{folder}\"\n");
    sandbox.write("secrets/team/npm", "hunter2-of-a-file\n").write("refit.toml", settings);
    let settings = sandbox.path("refit.toml").display().to_string();
    let server = sandbox.server_with(&["--config", &settings]);
    server.registry().push("busybox", "latest", &busybox());
    server
}

fn refit(sandbox: &Sandbox, server: &Server, args: &[&str], stdin: &str) -> Outcome {
    sandbox.refit(args.iter().copied()).on(server).stdin(stdin).run()
}

/// A task that shows what it has from an address.
fn task(address: &str) -> String {
    format!(
        "version: v1.1.0
secrets: [{{id: it, keyvault: '{address}'}}]
volumes: [{{name: them, secret: {{it: '{{{{b64enc .Secrets.it}}}}'}}}}]
steps:
  - cmd: $Registry/busybox sh -c 'cat /them/it | rev; echo; cat /them/it; echo; echo {{{{.Secrets.it}}}}'
    volumeMounts: [{{name: them, mountPath: /them}}]
"
    )
}

fn run(sandbox: &Sandbox, server: &Server, address: &str) -> Outcome {
    sandbox.write("app/acb.yaml", task(address));
    refit(sandbox, server, &["run", "app"], "")
}

/// Whether any file of a folder has a text.
fn is_in(folder: &std::path::Path, text: &str) -> bool {
    fs::read_dir(folder).is_ok_and(|entries| {
        entries.flatten().any(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => is_in(&entry.path(), text),
            Ok(kind) if kind.is_file() => fs::read(entry.path())
                .is_ok_and(|bytes| bytes.windows(text.len()).any(|part| part == text.as_bytes())),
            _ => false,
        })
    })
}

#[test]
fn as_root_j13_runs_have_secrets_and_their_logs_have_not() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let set = |args: &[&str], value: &str| {
        refit(&sandbox, &server, &[&["secret", "set"], args].concat(), value)
    };
    set(&["npm-token"], "hunter2-of-npm\n").code(2).stderr_has("--task TASK");
    set(&["npm-token", "--all-runs", "--description", "for npm"], "hunter2-of-npm\n").success();
    run(&sandbox, &server, "store://NPM-Token")
        .success()
        .stderr_has("mpn-fo-2retnuh")
        .stderr_has(" ***\n")
        .stderr_lacks("hunter2");
    run(&sandbox, &server, "file://team/npm").success().stderr_has("elif-a-fo-2retnuh");
    run(&sandbox, &server, "env://HOME").success().stderr_has(" ***\n");

    // Another value, at once; and nothing of it is told.
    let told = set(&["npm-token"], "hunter2-again").success().stdout;
    assert!(told.contains("for npm"), "{told}");
    run(&sandbox, &server, "store://npm-token").success().stderr_has("niaga-2retnuh");
    let list = refit(&sandbox, &server, &["secret", "list", "-o", "json"], "").success().stdout;
    assert!(list.contains("npm-token") && !list.contains("hunter2"), "{list}");
    assert!(!is_in(&sandbox.data(), "hunter2"));

    for (address, reason) in [
        ("env://PATH", "variable `PATH` is not set, or not in `registry.local.secret_variables`"),
        ("file://../refit.toml", "it does not have the form `file://PATH`"),
        ("file://none", "the server has no file `none` for secrets"),
        ("store://none", "the registry has no secret `none` for runs that are of no task"),
        (
            "https://v.example.net/secrets/x",
            "the settings have no `[vault.\"v.example.net\"]` for registry `local`",
        ),
    ] {
        run(&sandbox, &server, address).code(1).stderr_has(reason);
    }
    refit(&sandbox, &server, &["secret", "delete", "npm-token", "--yes"], "").success();
    run(&sandbox, &server, "store://npm-token").code(1).stderr_has("has no secret `npm-token`");

    let log = refit(&sandbox, &server, &["audit", "list", "-o", "json"], "").success().json();
    let log = log["value"].as_array().or_else(|| log.as_array()).expect("a list of records");
    let uses = log.iter().filter(|record| record["action"] == "secret.use");
    let uses: Vec<_> = uses.map(|record| record["outcome"].as_str().unwrap_or_default()).collect();
    assert_eq!(uses.iter().filter(|outcome| **outcome == "given").count(), 4, "{uses:?}");
    assert_eq!(uses.iter().filter(|outcome| outcome.starts_with("refused")).count(), 5);
}

#[test]
fn as_root_a_secret_that_is_an_argument_stays_out_of_image_and_record() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let set = ["secret", "set", "npm-token", "--all-runs"];
    refit(&sandbox, &server, &set, "hunter2-of-npm").success();
    let dockerfile =
        |run: &str| format!("FROM {}/busybox\nARG T\nLABEL for=npm\nRUN {run}\n", server.host());
    sandbox.write("app/Dockerfile", dockerfile("test -n \"$T\""));
    let task = "version: v1.1.0
secrets: [{id: it, keyvault: 'store://npm-token'}]
steps:
  - build: -t $Registry/app:1 --build-arg T={{.Secrets.it}} .
  - push: [$Registry/app:1]
";
    sandbox.write("app/acb.yaml", task);
    refit(&sandbox, &server, &["run", "app"], "").success().stderr_lacks("hunter2");
    let record = ["manifest", "show", "app:1", "-o", "json"];
    let record = refit(&sandbox, &server, &record, "").success().stdout;
    assert!(!record.contains("hunter2"), "{record}");
    // Whatever the caches are: what is in a layer is in no image.
    sandbox.write("app/Dockerfile", dockerfile("echo $T > /etc/npmrc"));
    let refused = refit(&sandbox, &server, &["run", "app"], "").code(1);
    refused.stderr_has("etc/npmrc").stderr_lacks("hunter2");
    assert!(!is_in(&sandbox.data(), "hunter2"));
}

#[test]
fn as_root_a_secret_of_one_task_is_not_for_another() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let set = ["secret", "set", "signing", "--task", "nightly"];
    refit(&sandbox, &server, &set, "hunter2-of-nightly").success();
    sandbox.write("acb.yaml", task("store://signing"));
    let file = sandbox.path("acb.yaml").display().to_string();
    for name in ["nightly", "other"] {
        let create = ["task", "create", name, "-c", "/dev/null", "-f", &file];
        refit(&sandbox, &server, &create, "").success();
    }
    let refused = "the registry has no secret `signing` for";
    refit(&sandbox, &server, &["task", "run", "nightly"], "")
        .success()
        .stderr_has("ylthgin-fo-2retnuh")
        .stderr_lacks("hunter2");
    refit(&sandbox, &server, &["task", "run", "other"], "").code(1).stderr_has(refused);
    run(&sandbox, &server, "store://signing").code(1).stderr_has(refused);
    refit(&sandbox, &server, &["secret", "update", "signing", "--all-runs"], "").success();
    run(&sandbox, &server, "store://signing").success().stderr_has("ylthgin-fo-2retnuh");
    // The plan that is kept has them no more than the log.
    let plan = refit(&sandbox, &server, &["task", "show-run", "--run-id", "c01"], "").success();
    assert!(!plan.stdout.contains("hunter2"), "{}", plan.stdout);
    assert!(!is_in(&sandbox.data(), "hunter2"));
}
