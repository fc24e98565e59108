//! `refit task`: tasks that are stored, and runs of them.

use expect_test::expect;
use testkit::{GitHost, Outcome, Sandbox, Server, busybox, until, validate};

use crate::output::tool;
use crate::sandbox;

/// Nothing is there, so what is refused is refused before.
const NOWHERE: [&str; 2] = ["--server", "http://127.0.0.1:9"];

/// A server that may ask the git host, with an image that has a shell.
fn server(sandbox: &Sandbox) -> Server {
    sandbox.write("settings.toml", "[build]\nallow_addresses = [\"127.0.0.1\"]\n");
    let settings = sandbox.path("settings.toml").display().to_string();
    let server = sandbox.server_with(&["--config", &settings]);
    server.registry().push("busybox", "latest", &busybox());
    server
}

fn task<'a>(
    sandbox: &Sandbox,
    server: &Server,
    args: impl IntoIterator<Item = &'a str>,
) -> Outcome {
    sandbox.refit(["task"].into_iter().chain(args)).on(server).run()
}

/// The id of the run that a command has queued.
fn queued(outcome: &Outcome) -> String {
    let told = outcome.stderr.split("run with ID: ").nth(1).unwrap_or_default();
    told.split_whitespace().next().unwrap_or_default().to_owned()
}

#[test]
fn mistakes_are_told_before_anything_is_sent() {
    let sandbox = sandbox();
    sandbox.write("app/Dockerfile", "FROM scratch\n").write("acb.yaml", "steps: []\n");
    let refused = |args: &[&str]| {
        let args = ["task"].iter().chain(args).chain(&NOWHERE).copied();
        sandbox.refit(args).run().code(2)
    };
    let git = "https://example.com/app.git";
    refused(&["create"]).stderr_has("the following required arguments were not provided");
    refused(&["create", "nightly"]).stderr_has("a task needs a file or a command");
    refused(&["create", "nightly", "-c", git]).stderr_has("a task needs a file or a command");
    refused(&["create", "nightly", "-c", "app", "-f", "Dockerfile"])
        .stderr_has("`app` is not the address of a repository or archive");
    refused(&["create", "nightly", "-f", "Dockerfile"]).stderr_has("needs a context");
    refused(&["create", "nightly", "--cmd", "app", "-f", "acb.yaml"]).stderr_has("cannot be used");
    refused(&["create", "nightly", "--cmd", "app", "-t", "app:1"]).stderr_has("`--image` is for");
    refused(&["create", "nightly", "-c", git, "-f", "acb.yaml", "--arg", "A=1"])
        .stderr_has("`--arg` is for Dockerfiles");
    refused(&["create", "nightly", "-c", git, "-f", "Dockerfile", "--set", "a=1"])
        .stderr_has("values are for task files");
    refused(&["create", "nightly", "-c", git, "-f", "Dockerfile", "--no-push", "false"])
        .stderr_has("an image without a name cannot be pushed");
    refused(&["create", "nightly", "-c", git, "-f", "Dockerfile", "--timeout", "5"])
        .stderr_has("`--timeout 5`");
    for flag in ["--update-trigger-endpoint=http://a", "--update-trigger-payload-type=Token"] {
        let name = flag.split('=').next().unwrap();
        refused(&["create", "nightly", "--cmd", "app", flag])
            .stderr_has(&format!("`{name}` is not supported yet"));
    }
    refused(&["update", "nightly"]).stderr_has("there is nothing to change");
    refused(&["update", "nightly", "--schedule", "0 1 * * *"]).stderr_has("is for a new task");
    refused(&["delete", "nightly"]).stderr_has("nobody is there to ask");
}

#[test]
fn as_root_a_task_is_stored_changed_listed_and_deleted() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let git = "https://me:hunter22@example.com/app.git#main";
    let args = ["create", "build-app", "-c", git, "-f", "ci/Dockerfile", "-t", "app:{{.Run.ID}}"];
    let more = ["--secret-arg", "T=hunter22", "--arg", "A=1", "--owner", "web", "-o", "json"];
    let created = task(&sandbox, &server, args.into_iter().chain(more)).success();
    let shown = created.json();
    assert!(!created.stdout.contains("hunter22"), "{}", created.stdout);
    let step = &shown["properties"]["step"];
    assert_eq!(step["contextPath"], "https://example.com/app.git#main");
    assert_eq!(
        (&step["type"], &step["dockerFilePath"]),
        (&"Docker".into(), &"ci/Dockerfile".into())
    );
    assert_eq!(shown["properties"]["timeout"], 3600);

    // As `az acr` has it, too.
    let change = ["update", "-n", "build-app", "--target", "test", "--status", "Disabled"];
    task(&sandbox, &server, change.into_iter().chain(["--no-cache", "true"])).success();
    let shown = task(&sandbox, &server, ["show", "-n", "Build-App", "-o", "json"]).success().json();
    let step = &shown["properties"]["step"];
    assert_eq!((&step["target"], &step["noCache"]), (&"test".into(), &true.into()));
    assert_eq!(
        (&step["arguments"][0]["name"], &step["imageNames"][0]),
        (&"A".into(), &"app:{{.Run.ID}}".into())
    );
    let refused = task(&sandbox, &server, ["run", "build-app"]).code(5);
    refused.stderr_has("task `build-app` is disabled").stderr_has("refit task update");

    sandbox.write("acb.yaml", "steps: []\n");
    task(&sandbox, &server, ["create", "nightly", "-f", "acb.yaml"]).success();
    let listed = task(&sandbox, &server, ["list"]).success().stdout;
    let rows: Vec<Vec<&str>> = listed
        .lines()
        .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    assert_eq!(rows[0], ["TASK", "STATUS", "PLATFORM", "DOES", "CONTEXT", "OWNER", "CHANGED"]);
    assert_eq!(rows[2][..2], ["build-app", "Disabled"]);
    assert_eq!(rows[2][3..6], ["builds ci/Dockerfile", "https://example.com/app.git#main", "web"]);
    assert_eq!(rows[3][3], "runs its own file");
    let refused = task(&sandbox, &server, ["update", "nightly", "--timeout", "600"]).code(2);
    refused.stderr_has("`--timeout` alone does not change");

    task(&sandbox, &server, ["delete", "nightly", "--yes"]).success();
    task(&sandbox, &server, ["show", "nightly"]).code(4).stderr_has("task `nightly` not found");
    task(&sandbox, &server, ["run", "nightly"]).code(4).stderr_has("task `nightly` not found");
    // Nobody loses a task by a restart.
    drop(server);
    let listed = sandbox.refit(["task", "list", "-o", "json"]).run().success().json();
    assert_eq!(listed.as_array().unwrap().len(), 1);
}

#[test]
fn as_root_a_stored_task_builds_its_repository() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    let server = server(&sandbox);
    let repository = host.repository("app");
    let dockerfile = format!(
        "FROM {0}/busybox AS tools\nFROM {0}/busybox\nARG WHAT=nothing\nARG RUN\n\
         COPY f /f\nRUN --mount=from=tools,target=/t echo $WHAT $RUN >> /f\n",
        server.host()
    );
    repository.write("Dockerfile", &dockerfile);
    repository.write("f", "committed\n");
    let commit = repository.commit("first");
    let address = format!("{}/app.git#main", host.url());
    let create = ["create", "build-app", "-c", &address, "-f", "Dockerfile"];
    let names = ["-t", "app:{{.Run.ID}}", "-t", "app:branch-{{.Run.Branch}}"];
    let args = ["--arg", "WHAT=stored", "--arg", "RUN={{.Run.ID}} {{.Run.Commit}}"];
    task(&sandbox, &server, create.into_iter().chain(names).chain(args)).success();

    let first = task(&sandbox, &server, ["run", "build-app"]).success();
    let id = queued(&first);
    let registry = server.registry();
    let image = validate(&registry, "app", &id);
    assert_eq!(image.text("f"), format!("committed\nstored {id} {commit}\n"));
    assert_eq!(validate(&registry, "app", "branch-main").digest, image.digest);
    let show = ["show-run", "--run-id", &id, "-o", "json"];
    let run = task(&sandbox, &server, show).success().json()["properties"].clone();
    assert_eq!((&run["runType"], &run["task"]), (&"AutoBuild".into(), &"build-app".into()));
    assert_eq!(run["commitId"], commit.as_str());
    let stored = task(&sandbox, &server, ["show", "build-app", "-o", "json"]).success().json();
    assert_eq!(run["definitionDigest"], stored["properties"]["definitionDigest"]);
    let bases = &stored["properties"]["step"]["baseImageDependencies"];
    let kinds: Vec<_> = bases.as_array().unwrap().iter().map(|base| &base["type"]).collect();
    assert_eq!(kinds, ["RunTime", "BuildTime"]);
    assert_eq!((&bases[0]["repository"], &bases[0]["tag"]), (&"busybox".into(), &"latest".into()));

    // A folder of this machine, another file and another value, this time.
    sandbox.write("here/f", "local\n").write("here/Other", &dockerfile);
    let here = ["run", "build-app", "-c", "here", "-f", "Other", "--arg", "WHAT=override"];
    let second = queued(&task(&sandbox, &server, here).success());
    let text = validate(&registry, "app", &second).text("f");
    assert_eq!(text, format!("local\noverride {second}\n"));
    let missing = task(&sandbox, &server, ["run", "build-app", "-c", "here"]).code(2);
    missing.stderr_has("the context `here` has no file `Dockerfile`, which the task needs");

    let listed = task(&sandbox, &server, ["list-runs", "-n", "build-app", "-o", "tsv"]).success();
    let ids: Vec<&str> = listed.stdout.lines().filter_map(|line| line.split('\t').next()).collect();
    assert_eq!(ids, [second.as_str(), id.as_str()]);
    let digest = format!("app@{}", image.digest);
    let listed = task(&sandbox, &server, ["list-runs", "--image", &digest, "-o", "tsv"]).success();
    assert!(listed.stdout.starts_with(&format!("{id}\tbuild-app\t")), "{}", listed.stdout);
    let tagged = format!("app:{id}");
    let listed = task(&sandbox, &server, ["list-runs", "--image", &tagged, "-o", "tsv"]).success();
    assert!(listed.stdout.starts_with(&format!("{id}\tbuild-app\t")), "{}", listed.stdout);
    task(&sandbox, &server, ["list-runs", "--image", "app:none", "-o", "tsv"]).code(4);
    let of_pool = ["list-runs", "--agent-pool", "builders", "-o", "tsv"];
    assert_eq!(task(&sandbox, &server, of_pool).success().stdout, "");
    let log = task(&sandbox, &server, ["logs", "--name", "build-app", "--no-format"]);
    let log = log.success().stdout;
    assert!(log.contains(&format!("Run ID: {second} was successful")), "{log}");
    let kept = ["update-run", "--run-id", &id, "--no-archive", "false", "-o", "json"];
    let kept = task(&sandbox, &server, kept).success().json();
    assert_eq!(kept["properties"]["isArchiveEnabled"], true);
}

#[test]
fn as_root_a_stored_task_fetches_with_its_token_and_nobody_else_gets_it() {
    let (sandbox, host) = (sandbox(), GitHost::private("hunter22"));
    let server = server(&sandbox);
    let repository = host.repository("app");
    repository.write("Dockerfile", "FROM scratch\nCOPY f /f\n");
    repository.write("f", "private");
    repository.commit("first");
    let address = format!("{}/app.git#main", host.url());
    let create = ["create", "build-app", "-c", &address, "-f", "Dockerfile", "-t", "app:1"];
    task(&sandbox, &server, create).success();
    let refused = task(&sandbox, &server, ["run", "build-app"]).code(1);
    refused.stderr_has("asks for a user and a password, or a token");

    let token = ["task", "update", "build-app", "--git-access-token", "-"];
    sandbox.refit(token).stdin("hunter22\n").on(&server).succeeds();
    let run = task(&sandbox, &server, ["run", "build-app"]).success();
    assert_eq!(validate(&server.registry(), "app", "1").text("f"), "private");
    // Another part of the same repository needs it no less.
    let same = format!("{}/app.git", host.url());
    task(&sandbox, &server, ["run", "build-app", "-c", &same]).success();
    let id = queued(&run);
    for args in [&["show", "build-app"][..], &["show-run", "--run-id", &id], &["logs"]] {
        let shown = task(&sandbox, &server, args.iter().copied().chain(["-o", "json"])).success();
        assert!(!shown.stdout.contains("hunter22"), "{args:?}: {}", shown.stdout);
    }
    // A change of something else keeps it, an empty one takes it away.
    task(&sandbox, &server, ["update", "build-app", "--target", "", "-t", "app:2"]).success();
    task(&sandbox, &server, ["run", "build-app"]).success();
    task(&sandbox, &server, ["update", "build-app", "--git-access-token", ""]).success();
    task(&sandbox, &server, ["run", "build-app"]).code(1);
}

#[test]
fn as_root_a_stored_task_file_has_values_of_its_own_and_of_a_run() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    let server = server(&sandbox);
    let file = "version: v1.1.0\nsteps:\n  - cmd: '{{.Run.Registry}}/busybox echo \
                {{.Run.TaskName}} {{.Values.a}} {{.Values.b}} {{.Values.c}}'\n";
    sandbox.write("acb.yaml", file).write("values.yaml", "a: file\nb: file\nc: file\n");
    let create = ["create", "nightly", "-f", "acb.yaml", "--values", "values.yaml"];
    let values = ["--set", "b=stored", "--set-secret", "c=hunter22"];
    task(&sandbox, &server, create.into_iter().chain(values)).success();
    let done = task(&sandbox, &server, ["run", "nightly"]).success();
    assert!(done.stderr.contains(" nightly file stored ***"), "{}", done.stderr);
    let done = task(&sandbox, &server, ["run", "nightly", "--set", "b=once"]).success();
    assert!(done.stderr.contains(" nightly file once ***"), "{}", done.stderr);
    let done = task(&sandbox, &server, ["run", "nightly", "--target", "x"]).success();
    done.stderr_has("`target` of this run is ignored");

    // The same file in a repository.
    let repository = host.repository("app");
    repository.write("ci/acb.yaml", file);
    repository.write("values.yaml", "a: committed\n");
    repository.commit("first");
    let address = format!("{}/app.git", host.url());
    let update = ["update", "nightly", "-c", &address, "-f", "ci/acb.yaml"];
    task(&sandbox, &server, update.into_iter().chain(["--values", "values.yaml", "--set", "b="]))
        .success();
    let done = task(&sandbox, &server, ["run", "nightly"]).success();
    assert!(done.stderr.contains(" nightly committed\n"), "{}", done.stderr);
    let shown = task(&sandbox, &server, ["show", "nightly", "-o", "json"]).success().json();
    let step = &shown["properties"]["step"];
    assert_eq!((&step["type"], step.get("encodedTaskContent")), (&"FileTask".into(), None));

    // A command is a task too.
    let command = format!("{}/busybox sh -c 'exit 3'", server.host());
    task(&sandbox, &server, ["create", "broken", "--cmd", &command]).success();
    task(&sandbox, &server, ["run", "broken"]).code(1).stderr_has("ended with exit code 3");
    let run = ["run", "broken", "--no-wait", "--update-trigger-token", "eA==", "-o", "json"];
    let run = task(&sandbox, &server, run).success().json();
    assert_eq!(
        (&run["properties"]["runType"], &run["properties"]["updateTriggerToken"]),
        (&"AutoRun".into(), &"eA==".into())
    );
}

#[test]
fn as_root_a_quick_build_may_have_variables_of_its_run() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    sandbox.write("app/Dockerfile", "FROM scratch\nCOPY f /f\nARG TEMPLATE\nLABEL t=$TEMPLATE\n");
    sandbox.write("app/f", "f");
    let args = ["build", "app", "-t", "app:{{.Run.ID}}", "--build-arg", "TEMPLATE={{.Names}}"];
    let built = sandbox.refit(args).on(&server).succeeds();
    let id =
        built.stderr.split("build with ID: ").nth(1).unwrap().split_whitespace().next().unwrap();
    let image = validate(&server.registry(), "app", id);
    // What is meant for others stays as it is.
    let labels = image.config.config.labels.clone();
    assert_eq!(labels["t"], "{{.Names}}");
    let args = ["build", "app", "-t", "{{.Run.Commit}}"];
    expect![[r#"
        Sent the context: 2 files, 55 B, none of which changed
        Queued a build with ID: c02
        Run failed after 0.0s: 0 steps
        error: run `c02` failed: the image name `{{.Run.Commit}}` comes to nothing in this run
    "#]]
    .assert_eq(&sandbox.refit(args).on(&server).run().code(1).stderr);
    sandbox.refit(["build", "app", "-t", "app:{{.Run"]).on(&server).run().code(2);
}

#[test]
fn as_root_a_run_that_waits_says_for_what() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let command = format!("{}/busybox sleep 600", server.host());
    let mut ids = Vec::new();
    for _ in 0..3 {
        let queued = ["run", "--cmd", &command, "--no-wait", "-o", "json"];
        let run = sandbox.refit(queued).on(&server).succeeds().json();
        ids.push(run["name"].as_str().unwrap().to_owned());
    }
    let last = testkit::until("a place in line", || {
        let show = ["show-run", "--run-id", &ids[2], "-o", "json"];
        let run = task(&sandbox, &server, show).success().json()["properties"].clone();
        let busy = "2 of 2 runs of registry `local` are under way";
        (run["waiting"]["reason"] == busy).then_some(run)
    });
    assert_eq!(last["waiting"]["position"], 1);
    let shown = task(&sandbox, &server, ["show-run", "--run-id", &ids[2]]).success();
    assert!(shown.stdout.contains("; 1st in line"), "{}", shown.stdout);
    // Who follows a run is told.
    let building = sandbox.refit(["run", "--cmd", &command]).on(&server).start();
    building.wait_for_stderr("2nd in line");
    for id in &ids {
        task(&sandbox, &server, ["cancel-run", "--run-id", id]).success();
    }
    building.interrupt();
    building.wait().code(130);
}

#[test]
fn as_root_lines_of_a_log_are_found() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let command =
        format!("{}/busybox sh -c 'for i in 1 2 3; do echo line $i; done'", server.host());
    let done = sandbox.refit(["run", "--cmd", &command]).on(&server).succeeds();
    let id = queued(&done);
    let found =
        task(&sandbox, &server, ["logs", "--run-id", &id, "--grep", "line [23]$"]).success();
    let lines: Vec<&str> = found.stdout.lines().filter(|line| !line.contains("echo")).collect();
    assert_eq!(lines.len(), 2, "{}", found.stdout);
    assert!(lines[0].ends_with("line 2") && lines[1].ends_with("line 3"), "{lines:?}");
    let wrong = task(&sandbox, &server, ["logs", "--run-id", &id, "--grep", "("]).code(2);
    wrong.stderr_has("the pattern cannot be used");
}

#[test]
fn as_root_a_declared_run_is_listed_shown_and_deleted() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    // Whatever manages a team's servers declares them; `az acr` has no command for it either.
    let body = r#"{"properties": {"runRequest": {"type": "EncodedTaskRunRequest",
        "encodedTaskContent": "c3RlcHM6IFtdCg==", "platform": {"os": "linux"}}}}"#;
    let token = std::fs::read_to_string(sandbox.data().join("keys/api-token")).unwrap();
    let url = format!("{}/api/v1/registries/local/taskRuns/first-run", server.url());
    let token = format!("authorization: Bearer {}", token.trim());
    let json = "content-type: application/json";
    let put = ["-sS", "--fail", "-X", "PUT", "-H", json, "-H", &token, "-d", body, &url];
    if tool(&sandbox, "curl", &put).is_none() {
        return;
    }
    let taskrun =
        |args: &[&str]| sandbox.refit(["taskrun"].iter().chain(args).copied()).on(&server).run();
    let log = taskrun(&["logs", "-n", "first-run"]).success().stdout;
    assert!(log.contains("Run ID: c01 was successful"), "{log}");
    let shown = taskrun(&["show", "first-run", "-o", "json"]).success().json();
    assert_eq!(shown["properties"]["provisioningState"], "Succeeded");
    let listed = taskrun(&["list", "-o", "tsv"]).success().stdout;
    assert!(listed.starts_with("first-run\tc01\tQuickRun\tSucceeded\t"), "{listed}");
    taskrun(&["delete", "first-run"]).code(2).stderr_has("--yes");
    taskrun(&["delete", "first-run", "--yes"]).success();
    taskrun(&["show", "first-run"]).code(4).stderr_has("task run `first-run` not found");
}

#[test]
fn timers_are_added_changed_listed_and_removed() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let run = |arguments: &[&str]| task(&sandbox, &server, arguments.iter().copied());
    let timer = |arguments: &[&str]| run(&[&["timer"], arguments].concat());
    run(&["create", "nightly", "--cmd", "app", "--schedule", "0 5 * * Mon-Fri"]).success();
    timer(&["add", "nightly", "--schedule", "30 2 1 * *", "--time-zone", "Europe/Berlin"])
        .success();
    timer(&["add", "nightly", "--timer-name", "often", "--schedule", "*/10 * * * *"]).success();
    let listed = timer(&["list", "nightly", "-o", "json"]).success().json();
    let shown =
        |index: usize, member: &str| listed[index][member].as_str().unwrap_or("-").to_owned();
    assert_eq!(
        [0, 1, 2].map(|index| shown(index, "name") + " " + &shown(index, "timeZone")),
        ["t1 -", "t2 Europe/Berlin", "often -"]
    );
    assert!(shown(2, "nextOccurrence").ends_with("0:00Z"), "{listed}");
    // A change keeps what it does not name.
    timer(&["update", "nightly", "--timer-name", "often", "--enabled", "false"]).success();
    let listed = timer(&["list", "-n", "nightly"]).success().stdout;
    assert!(listed.contains("*/10 * * * *") && listed.contains("Disabled"), "{listed}");
    timer(&["remove", "nightly", "--timer-name", "T1"]).success();
    let shown = run(&["show", "nightly"]).success().stdout;
    assert!(!shown.contains("t1") && shown.contains("t2: 30 2 1 * * Europe/Berlin"), "{shown}");
    let why = sandbox.refit(["trigger", "why", "nightly"]).on(&server).run().success();
    assert!(why.stderr.contains("Timer `often` (*/10 * * * * UTC) is disabled"), "{}", why.stderr);
    assert!(why.stderr.contains("No trigger of this task has seen anything yet"), "{}", why.stderr);

    timer(&["remove", "nightly", "--timer-name", "t9"]).code(4).stderr_has("no timer `t9`");
    timer(&["update", "nightly", "--timer-name", "t9", "--enabled", "true"]).code(4);
    timer(&["add", "nightly", "--timer-name", "often", "--schedule", "1 * * * *"]).code(5);
    timer(&["add", "nightly", "--schedule", "0 0 * * 7"]).code(2).stderr_has("day of the week");
    timer(&["add", "nightly", "--schedule", "*/10 * * * *"]).stderr_has("have the same schedule");
    // The same over the managed service's route: an empty list in a change takes nothing away.
    run(&["update", "nightly", "--owner", "ann"]).success();
    let listed = timer(&["list", "nightly", "-o", "json"]).success().json();
    assert_eq!(listed.as_array().unwrap().len(), 2);
}

#[test]
fn what_a_stopped_server_has_missed_is_made_up_by_one_run() {
    let sandbox = sandbox();
    let first = server(&sandbox);
    let daily = ["create", "daily", "--cmd", "bash -c true", "--schedule", "morning:0 5 * * *"];
    task(&sandbox, &first, daily).success();
    first.stop();
    let database = sandbox.data().join("refit.db").display().to_string();
    let due = "UPDATE trigger_timers SET next_at = 1700024400000";
    tool(&sandbox, "sqlite3", &[&database, due]).unwrap();
    let server = server(&sandbox);
    let run = |arguments: &[&str]| task(&sandbox, &server, arguments.iter().copied());
    let found = until("the run of a timer", || {
        let runs = run(&["list-runs", "-n", "daily", "-o", "json"]).success().json();
        runs.get(0).cloned()
    });
    let (id, properties) = (found["name"].as_str().unwrap(), &found["properties"]);
    assert_eq!(properties["cause"]["type"], "Timer", "{found}");
    let cause = &properties["timerTrigger"];
    assert_eq!(cause["timerTriggerName"], "morning");
    assert!(cause["scheduleOccurrence"].as_str().unwrap().ends_with("T05:00:00Z"), "{cause}");
    assert!(cause["missedOccurrences"].as_u64().unwrap() >= 99, "{cause}");
    let listed = run(&["list-runs", "-n", "daily"]).success().stdout;
    assert!(listed.contains("TRIGGER") && listed.contains("Timer"), "{listed}");
    let log = run(&["logs", "--run-id", id]).stdout;
    assert!(log.contains("This run is late: it was due at"), "{log}");
    let events =
        sandbox.refit(["trigger", "list", "-o", "json"]).on(&server).run().success().json();
    assert_eq!((&events[0]["decision"], &events[0]["runId"]), (&"Fired".into(), &found["name"]));
    assert_eq!(run(&["list-runs", "-o", "json"]).success().json().as_array().unwrap().len(), 1);
}
