//! What runs leave behind in their registry: logs that become artifacts, and images that go when
//! their task keeps them no longer.

use std::time::Instant;

use serde_json::{Value, json};
use testkit::{GitHost, Sandbox, Server, until};

use crate::output::tool;
use crate::sandbox;

fn run_record(sandbox: &Sandbox, server: &Server, id: &str) -> Value {
    let show = ["task", "show-run", "--run-id", id, "-o", "json"];
    sandbox.refit(show).on(server).run().success().json()["properties"].take()
}

/// The record of a run once its log is stored, or refused.
pub(crate) fn with_artifact(sandbox: &Sandbox, server: &Server, id: &str) -> Value {
    until("the log's artifact", || {
        let run = run_record(sandbox, server, id);
        let is_there = run["logArtifact"].is_object() || run["logArtifactError"].is_string();
        is_there.then_some(run)
    })
}

fn id_of(outcome: &testkit::Outcome) -> String {
    outcome.json()["properties"]["runId"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_log_becomes_an_artifact_of_its_registry() {
    let sandbox = sandbox();
    sandbox.write("app/Dockerfile", "FROM scratch\nCOPY f /f\n").write("app/f", "1");
    let server = sandbox.server();
    let build = |template: &str, more: &[&str]| {
        let args = ["build", "app", "--log-template", template, "-o", "json"];
        sandbox.refit(args.iter().chain(more).copied()).on(&server).run()
    };
    let id = id_of(&build("logs/{{.Run.TaskName}}x:{{.Run.ID}}-{{.Run.OS}}", &[]).success());
    let run = with_artifact(&sandbox, &server, &id);
    let artifact = &run["logArtifact"];
    let (repository, tag) = ("logs/x", format!("{id}-linux"));
    assert_eq!(
        (&artifact["registry"], &artifact["repository"], &artifact["tag"]),
        (&json!(server.host().replace("127.0.0.1", "localhost")), &json!(repository), &json!(tag))
    );

    // The artifact is the log, to the last byte.
    let (manifest, _) = server.registry().manifest(repository, &tag);
    assert_eq!(artifact["digest"], oci::Digest::of(&manifest).to_string());
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["artifactType"], "application/vnd.refit.run.log");
    let layer = &manifest["layers"][0];
    assert_eq!(
        (&layer["mediaType"], &layer["annotations"]["org.opencontainers.image.title"]),
        (&json!("text/plain"), &json!(format!("{id}.log")))
    );
    let blob = layer["digest"].as_str().unwrap().parse().unwrap();
    let stored = String::from_utf8(server.registry().blob(repository, &blob)).unwrap();
    assert!(stored.contains(&format!("Run ID: {id} was successful after")), "{stored}");
    let log = sandbox.refit(["task", "logs", "--run-id", &id]).on(&server).run().success();
    assert_eq!(stored.replace("\r\n", "\n"), log.stdout.replace("\r\n", "\n"));
    let shown = sandbox.refit(["task", "show-run", "--run-id", &id]).on(&server).run().success();
    assert!(shown.stdout.contains(&format!("{repository}:{tag}@sha256:")), "{}", shown.stdout);
    // As others see it.
    let image = format!("docker://{}/{repository}:{tag}", server.host());
    if let Some(raw) = tool(&sandbox, "skopeo", &["inspect", "--raw", "--tls-verify=false", &image])
    {
        assert_eq!(serde_json::from_str::<Value>(&raw).unwrap(), manifest);
    }

    // Also of a run that fails.
    sandbox.write("app/Dockerfile", "FROM scratch\nCOPY missing /f\n");
    build("logs:{{.Run.ID}}", &["--no-push"]).code(1);
    let listed = sandbox.refit(["task", "list-runs", "-o", "json"]).on(&server).run().success();
    let failed = listed.json()[0]["properties"]["runId"].as_str().unwrap().to_owned();
    let run = with_artifact(&sandbox, &server, &failed);
    assert_eq!((&run["status"], &run["logArtifact"]["tag"]), (&json!("Failed"), &json!(failed)));

    // What cannot be a name is refused before anything is queued.
    for (template, told) in [
        ("logs:{{.Run.ID", "error: template: unclosed action"),
        ("Logs:{{.Run.ID}}", "is not an image name"),
        ("example.com/logs:1", "is in registry `example.com`"),
        ("logs:{{nothing}}", "the log template:1:8"),
    ] {
        build(template, &[]).code(2).stderr_has(told);
    }
    // What comes to nothing in this run is told in its record.
    sandbox.write("app/Dockerfile", "FROM scratch\nCOPY f /f\n");
    let id = id_of(&build("logs:{{.Run.Commit}}", &["--no-push"]).success());
    let run = with_artifact(&sandbox, &server, &id);
    assert_eq!((&run["status"], &run["logArtifact"]), (&json!("Succeeded"), &Value::Null));
    let why = run["logArtifactError"].as_str().unwrap();
    assert!(why.contains("`logs:` is not an image name"), "{why}");
}

#[test]
fn a_command_without_a_server_stores_its_log_before_it_leaves() {
    let sandbox = sandbox();
    sandbox.write("app/Dockerfile", "FROM scratch\nCOPY f /f\n").write("app/f", "1");
    sandbox.refit(["build", "app", "--log-template", "logs:last"]).run().success();
    let shown = sandbox.refit(["tag", "list", "logs", "-o", "json"]).run().success().json();
    assert_eq!(shown[0]["name"], "last");
}

#[test]
fn the_system_task_says_how_quick_runs_go() {
    let sandbox = sandbox();
    sandbox.write("app/Dockerfile", "FROM scratch\nCOPY f /f\n").write("app/f", "1");
    let server = sandbox.server();
    let task =
        |args: &[&str]| sandbox.refit(["task"].iter().chain(args).copied()).on(&server).run();
    let create = ["create", "-n", "quicktask", "--is-system-task", "--timeout", "600"];
    let with = |more: &[&'static str]| create.iter().chain(more).copied().collect::<Vec<_>>();
    task(&with(&["--cmd", "app"])).code(2).stderr_has("a system task has nothing to do");
    task(&with(&["--cpu", "2"])).code(2).stderr_has("a system task has only");
    task(&["create", "-n", "nightly", "--is-system-task"])
        .code(2)
        .stderr_has("only the task `quicktask` can be a system task");
    let made = task(&with(&["--log-template", "logs:q-{{.Run.ID}}", "-o", "json"])).success();
    let properties = &made.json()["properties"];
    assert_eq!(
        (&properties["isSystemTask"], &properties["step"], &properties["timeout"]),
        (&json!(true), &Value::Null, &json!(600))
    );
    task(&["show", "quicktask"]).success();
    task(&["list"]).success();
    task(&["run", "quicktask"]).code(2).stderr_has("a system task has no runs");

    let build = |more: &[&str]| {
        let args = ["build", "app", "--no-push", "-o", "json"].iter().chain(more).copied();
        id_of(&sandbox.refit(args).on(&server).run().success())
    };
    let id = build(&[]);
    let run = with_artifact(&sandbox, &server, &id);
    assert_eq!(run["logArtifact"]["tag"], format!("q-{id}"));
    let id = build(&["--log-template", "own:{{.Run.ID}}"]);
    assert_eq!(with_artifact(&sandbox, &server, &id)["logArtifact"]["repository"], "own");
    let id = build(&["--log-template", ""]);
    assert_eq!(run_record(&sandbox, &server, &id)["logArtifact"], Value::Null);
    // Switched off it says nothing.
    task(&["update", "quicktask", "--status", "Disabled"]).success();
    let id = build(&[]);
    assert_eq!(run_record(&sandbox, &server, &id)["logArtifact"], Value::Null);
    // A change keeps what it does not name.
    let shown = task(&["show", "quicktask", "-o", "json"]).success().json();
    assert_eq!(shown["properties"]["logTemplate"], "logs:q-{{.Run.ID}}");
    task(&["update", "quicktask", "--log-template", ""]).success();
    let shown = task(&["show", "quicktask", "-o", "json"]).success().json();
    assert_eq!(shown["properties"]["logTemplate"], Value::Null);
}

#[test]
fn images_of_a_task_go_when_it_keeps_them_no_longer() {
    let sandbox = sandbox();
    sandbox.write("app/Dockerfile", "FROM scratch\nCOPY f /f\n").write(
        "acb.yaml",
        "version: v1.1.0\nsteps:\n  - build: -t $Registry/app:{{.Run.ID}} -t $Registry/app:last .\n  \
         - push: [\"$Registry/app:{{.Run.ID}}\", \"$Registry/app:last\"]\n",
    );
    let server = sandbox.server();
    let task = |server: &Server, args: &[&str]| {
        sandbox.refit(["task"].iter().chain(args).copied()).on(server).run()
    };
    let create = ["create", "nightly", "-f", "acb.yaml", "--output-retention-keep", "1"];
    let made = task(&server, &create.iter().copied().chain(["-o", "json"]).collect::<Vec<_>>());
    assert_eq!(
        made.success().json()["properties"]["outputRetention"],
        json!({ "days": 0, "keep": 1 })
    );
    let shown = task(&server, &["show", "nightly"]).success().stdout;
    assert!(shown.contains("those of 1 runs"), "{shown}");
    task(&server, &["update", "nightly", "--output-retention-days", "9999"])
        .code(2)
        .stderr_has("there are at most 3650 days");
    let run = |content: &str| {
        sandbox.write("app/f", content);
        let ran = task(&server, &["run", "nightly", "--context", "app", "-o", "json"]).success();
        let run = ran.json()["properties"].take();
        let digest = run["outputImages"][0]["digest"].as_str().unwrap().to_owned();
        (run["runId"].as_str().unwrap().to_owned(), digest)
    };
    let ((first, gone), (second, tagged)) = (run("1"), run("2"));
    let ((third, _), (fourth, _), (last, kept)) = (run("3"), run("4"), run("5"));
    // Somebody needs the second one, and the fourth is the evidence of something.
    let copy = format!("{}/app@{tagged}", server.host());
    let insecure = ["copy", "--src-tls-verify=false", "--dest-tls-verify=false"];
    let copy = format!("docker://{copy}");
    let to = |tag: &str| format!("docker://{}/app:{tag}", server.host());
    // Also under the name that the run gave it, which now is somebody else's.
    let copied = ["release", &second].map(|tag| {
        let to = to(tag);
        let args: Vec<&str> = insecure.into_iter().chain([&*copy, &*to]).collect();
        tool(&sandbox, "skopeo", &args)
    });
    let copied = copied.iter().all(Option::is_some);
    task(&server, &["update-run", "--run-id", &fourth, "--no-archive", "false"]).success();
    drop(server);

    let server = sandbox.server();
    let tags = until("the old images' end", || {
        let tags = server.registry().tags("app");
        (!tags.contains(&third)).then_some(tags)
    });
    let mut expected = vec![last, fourth, "last".to_owned()];
    if copied {
        expected.extend(["release".to_owned(), second.clone()]);
    }
    expected.sort();
    let mut tags = tags;
    tags.sort();
    assert_eq!(tags, expected);
    assert!(!tags.contains(&first));
    let manifest = |digest: &str| server.registry().status(&format!("/v2/app/manifests/{digest}"));
    assert_eq!((manifest(&gone), manifest(&kept)), (404, 200));
    if copied {
        assert_eq!(manifest(&tagged), 200);
    }
    // The run itself stays.
    let run = run_record(&sandbox, &server, &first);
    assert_eq!(run["outputImages"][0]["digest"], gone);
}

#[test]
fn as_root_a_task_bounds_the_processors_of_all_its_containers_together() {
    let sandbox = sandbox();
    let server = sandbox.server();
    server.registry().push("busybox", "latest", &testkit::busybox());
    let busy = "n=0; while [ $n -lt 600000 ]; do n=$((n+1)); done";
    let step = format!("  - cmd: $Registry/busybox sh -c '{busy}'\n    when: ['-']\n");
    let task = format!("version: v1.1.0\nsteps:\n{step}{step}");
    sandbox.write("app/acb.yaml", task);
    let create = ["task", "create", "modest", "--cpu", "1", "-f", "app/acb.yaml"];
    sandbox.refit(create).on(&server).run().success();
    let run = ["task", "run", "modest", "-o", "json"];
    let started = Instant::now();
    let run = sandbox.refit(run).on(&server).run().success().json()["properties"].take();
    let took = started.elapsed().as_secs_f64() * 1000.0;
    assert_eq!(run["agentConfiguration"], json!({ "cpu": 1 }));
    let steps = run["cost"]["steps"].as_array().unwrap();
    let used: f64 = steps.iter().map(|step| step["cpuMilliseconds"].as_f64().unwrap()).sum();
    assert!(used > 100.0 && used < took * 1.2, "{steps:?} in {took} ms");
}

#[test]
fn a_build_that_fails_keeps_its_commit_and_what_its_steps_took() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    sandbox.write("settings.toml", "[build]\nallow_addresses = [\"127.0.0.1\"]\n");
    let settings = sandbox.path("settings.toml").display().to_string();
    let server = sandbox.server_with(&["--config", &settings]);
    let repository = host.repository("app");
    repository.write("Dockerfile", "FROM scratch\nCOPY f /f\nCOPY missing /g\n");
    repository.write("f", "1");
    let commit = repository.commit("first");
    let context = format!("{}/app.git#main", host.url());
    sandbox.refit(["build", &context]).on(&server).run().code(1);
    let listed = sandbox.refit(["task", "list-runs", "-o", "json"]).on(&server).run().success();
    let run = listed.json()[0]["properties"].take();
    assert_eq!((&run["status"], &run["commitId"]), (&json!("Failed"), &json!(commit)));
    let steps = run["cost"]["steps"].as_array().unwrap();
    assert!(steps.iter().any(|step| step["name"].as_str().unwrap().contains("COPY f")), "{run}");
}
