//! `refit run` with a server that executes the steps: order, images, commands, pushes.

use testkit::{GitHost, Outcome, Sandbox, Server, busybox, validate};

use crate::observe::{place, processes};
use crate::sandbox;

/// A server that holds a base image with a shell.
fn server(sandbox: &Sandbox) -> Server {
    let server = sandbox.server();
    server.registry().push("busybox", "latest", &busybox());
    server
}

/// The same with settings of its own.
fn server_with(sandbox: &Sandbox, settings: &str) -> Server {
    sandbox.write("settings.toml", settings);
    let settings = sandbox.path("settings.toml").display().to_string();
    let server = sandbox.server_with(&["--config", &settings]);
    server.registry().push("busybox", "latest", &busybox());
    server
}

/// Contexts may come from the tests' own hosts.
const LOOPBACK: &str = "[build]\nallow_addresses = [\"127.0.0.1\"]\n";

/// A `sleep` that no other test has.
fn long_sleep(number: u32) -> String {
    format!("sleep {}.{number}", 100_000 + std::process::id())
}

/// Runs a task file. `BUSYBOX` in it is an image with a shell.
fn run(sandbox: &Sandbox, server: &Server, task: &str, flags: &[&str]) -> Outcome {
    sandbox.write("app/acb.yaml", task.replace("BUSYBOX", "{{.Run.Registry}}/busybox"));
    let args = ["run", "app"].into_iter().chain(flags.iter().copied());
    sandbox.refit(args).on(server).run()
}

#[test]
fn as_root_images_are_built_tested_with_a_service_and_pushed() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    sandbox
        .write(
            "app/web/Dockerfile",
            format!("FROM {}/busybox\nCOPY page /www/page\n", server.host()),
        )
        .write("app/web/page", "the page\n")
        .write("app/job/Dockerfile", "ARG BASE\nFROM $BASE\nRUN echo job > /job\n");
    let task = "version: v1.1.0
steps:
  - {id: web-image, build: -t $Registry/web:$ID web}
  - {id: job-image, build: '-t $Registry/job:$ID --build-arg BASE=$Registry/busybox job', when: ['-']}
  - {id: web, cmd: $Registry/web:$ID busybox httpd -f -h /www, detach: true, when: [web-image]}
  - id: check
    cmd: >
      $Registry/job:$ID sh -c 'cat /job && for i in $(seq 50); do
      wget -q -O - http://web/page && exit 0; sleep 0.1; done; exit 1'
    when: [web, job-image]
  - {id: publish, push: ['$Registry/web:$ID', '$Registry/job:$ID'], when: [check]}
";
    let done = run(&sandbox, &server, task, &[]).success();
    let log = &done.stderr;
    place(log, " job\n");
    place(log, " the page\n");
    assert!(place(log, "Step ID: check marked as successful") < place(log, "step ID: publish"));
    let run = log.split("run with ID: ").nth(1).unwrap().split_whitespace().next().unwrap();
    let image = validate(&server.registry(), "job", run);
    assert_eq!(image.text("job"), "job\n");
    let (web, job) = (validate(&server.registry(), "web", run).digest, image.digest);
    assert_eq!(done.stdout, format!("web@{web}\njob@{job}\n"));
    let show = ["task", "show-run", "--run-id", run, "-o", "json"];
    let shown = sandbox.refit(show).on(&server).succeeds().json();
    let steps = shown["properties"]["cost"]["steps"].as_array().unwrap().clone();
    let states: Vec<_> = steps.iter().map(|step| step["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["successful"; 5]);
    let dependencies = &shown["properties"]["dependencies"];
    assert_eq!(dependencies[1]["image"]["repository"], "job");
    assert_eq!(dependencies[1]["image"]["digest"], job.as_str());
    let base = &dependencies[1]["runtime-dependency"];
    assert_eq!((&base["repository"], &base["tag"]), (&"busybox".into(), &"latest".into()));
    let base = format!(
        "    repository: busybox\n    tag: latest\n    digest: {}",
        base["digest"].as_str().unwrap()
    );
    place(log, &base);
}

#[test]
fn as_root_a_failing_test_stops_the_push_and_everything_else() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    sandbox.write("app/Dockerfile", format!("FROM {}/busybox\n", server.host()));
    let task = "version: v1.1.0
steps:
  - {id: build, build: -t $Registry/app:1 .}
  - {id: long, cmd: $Registry/app:1 sleep 1000, when: [build]}
  - {id: test, cmd: $Registry/app:1 sh -c 'echo tested; exit 3', when: [build]}
  - {id: push, push: [$Registry/app:1], when: [test]}
";
    let failed = run(&sandbox, &server, task, &[]).code(1);
    assert_eq!(failed.stdout, "");
    let failed = failed
        .stderr_has("tested")
        .stderr_has("step `test`: the command ended with exit code 3")
        .stderr_lacks("step ID: push");
    assert!(!failed.stderr.contains("Step ID: long marked"), "{}", failed.stderr);
    sandbox.refit(["repository", "show-tags", "app"]).on(&server).run().code(4);
}

#[test]
fn as_root_c_commands_get_the_environment_folders_and_files_of_their_step() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    sandbox.write("app/given", "from the context\n");
    let task = "
env: [A=task, 'B=task,C=two words']
workingDirectory: made/../sub
volumes:
  - {name: vault, secret: {key: '{{b64enc \"hidden \\n key\"}}', other: eA==}}
steps:
  - id: one
    cmd: BUSYBOX sh -c 'pwd; echo $A-$B-$C-$HOME-$(id -u)-$(hostname); cat ../given; echo made > file; touch $HOME/mark'
    env: [B=a=b]
  - id: two
    cmd: BUSYBOX sh -c 'cat /workspace/sub/file; ls $HOME; id -u; pwd; echo end:$B'
    user: '1000:1000'
    disableWorkingDirectoryOverride: true
    env: [B=, HOME=/acb/home]
  - id: three
    cmd: BUSYBOX sh -c 'stat -c %a /run/vault/key; wc -c < /run/vault/key; echo x > /run/vault/other || echo read-only'
    volumeMounts: [{name: vault, mountPath: /run/vault/}]
  - {id: four, cmd: 'echo entry $point', entryPoint: /bin/echo}
";
    let task = task.replace("'echo entry $point'", "BUSYBOX entry 'point $x'");
    let done = run(&sandbox, &server, &task, &[]).success();
    for line in [
        "/workspace/sub\n",
        "task-a=b-two words-/acb/home-0-one\n",
        "from the context\n",
        "made\n",
        "mark\n",
        "1000\n",
        "end:\n",
        "400\n",
        "12\n",
        "read-only\n",
        "entry point $x\n",
    ] {
        place(&done.stderr, line);
    }
    assert!(!done.stderr.contains("hidden"), "{}", done.stderr);
}

#[test]
fn as_root_steps_are_tried_again_and_repeated_as_they_ask() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let task = "
steps:
  - id: retried
    cmd: BUSYBOX sh -c 'echo try >> /workspace/tries; test $(wc -l < /workspace/tries) -eq 3'
    retries: 5
    retryDelay: 1
  - id: repeated
    cmd: BUSYBOX sh -c 'echo r >> /workspace/repeats; test $(wc -l < /workspace/repeats) -ne 2'
    repeat: 2
    ignoreErrors: true
  - id: picky
    cmd: BUSYBOX sh -c 'echo p >> /workspace/picks; echo fatal; exit 1'
    retries: 3
    retryDelay: 1
    retryOnErrors: [timed out]
    ignoreErrors: true
  - {id: counts, cmd: \"BUSYBOX sh -c 'cd /workspace && cat tries repeats picks | sort | uniq -c'\"}
";
    let done = run(&sandbox, &server, task, &[]).success();
    let log = &done.stderr;
    for line in ["3 try\n", "3 r\n", "1 p\n", "its output has none of the texts"] {
        place(log, line);
    }
    place(log, "step `repeated`: the command ended with exit code 1 (ignored)");
}

#[test]
fn as_root_l3_a_step_that_takes_too_long_fails_and_is_killed() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let sleep = long_sleep(1);
    let task = format!(
        "steps: [{{id: slow, cmd: BUSYBOX {sleep}, timeout: 1, retries: 9, ignoreErrors: true}},
         {{id: after, cmd: BUSYBOX echo after}}, {{id: last, cmd: BUSYBOX {sleep}, timeout: 1}}]"
    );
    let failed = run(&sandbox, &server, &task, &[]).code(1);
    let log = &failed.stderr;
    let killed = place(log, "step `slow`: it took longer than its limit of 1 s (ignored)");
    assert!(killed < place(log, " after\n"));
    place(log, "step `last`: it took longer than its limit of 1 s");
    assert_eq!(processes(&sleep), 0);
    let id = log.split("run with ID: ").nth(1).unwrap().split_whitespace().next().unwrap();
    let show = ["task", "show-run", "--run-id", id, "-o", "json"];
    let shown = sandbox.refit(show).on(&server).succeeds().json();
    assert_eq!(shown["properties"]["status"], "Failed");
}

#[test]
fn as_root_after_a_failure_nothing_starts_and_nothing_is_pushed() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    sandbox.write("app/Dockerfile", format!("FROM {}/busybox\n", server.host()));
    let sleep = long_sleep(2);
    let task = format!(
        "version: v1.1.0
steps:
  - {{id: build, build: -t $Registry/app:1 -t $Registry/app:2 .}}
  - {{id: first, push: [$Registry/app:1]}}
  - {{id: service, cmd: $Registry/app:1 {sleep}, detach: true}}
  - {{id: late, push: [$Registry/app:2], startDelay: 600, when: [service]}}
  - {{id: retried, cmd: $Registry/app:1 false, retries: 5, retryDelay: 600, when: [service]}}
  - {{id: bad, cmd: \"$Registry/app:1 sh -c 'sleep 0.3; exit 9'\", when: [service]}}
"
    );
    let started = std::time::Instant::now();
    let failed = run(&sandbox, &server, &task, &[]).code(1).stderr_has("exit code 9");
    // Whoever waits is not waited for.
    assert!(started.elapsed() < std::time::Duration::from_secs(300));
    assert_eq!(processes(&sleep), 0);
    assert_eq!(server.registry().tags("app"), ["1"]);
    let id =
        failed.stderr.split("run with ID: ").nth(1).unwrap().split_whitespace().next().unwrap();
    let show = ["task", "show-run", "--run-id", id, "-o", "json"];
    let shown = sandbox.refit(show).on(&server).succeeds().json();
    assert_eq!(shown["properties"]["outputImages"][0]["tag"], "1");
    let steps = shown["properties"]["cost"]["steps"].as_array().unwrap().clone();
    let states: Vec<_> = steps.iter().map(|step| step["state"].as_str().unwrap()).collect();
    assert_eq!(&states[..3], ["successful"; 3]);
    assert_eq!(states[5], "failed");
}

#[test]
fn as_root_a_build_that_is_done_again_has_its_remote_context_still() {
    let sandbox = sandbox();
    let server = server_with(&sandbox, LOOPBACK);
    let git = GitHost::start();
    let repository = git.repository("r");
    repository.write("sub/Dockerfile", format!("FROM {}/busybox\nCOPY . /all/\n", server.host()));
    repository.commit("one");
    let task = format!(
        "version: v1.1.0
steps:
  - {{id: src, build: -t $Registry/app:1 {}/r.git#main:sub, repeat: 2}}
  - {{cmd: $Registry/app:1 ls /all /workspace/src}}
",
        git.url()
    );
    run(&sandbox, &server, &task, &[]).success().stderr_has("Repetition 3 of 3");
}

#[test]
fn as_root_a_bind_mount_shows_what_was_hashed_of_a_workspace_that_changes() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let dockerfile = format!(
        "FROM {}/busybox\nRUN --mount=type=bind,target=/c,rw cat /c/src/file > /seen && echo x > /c/src/file\n",
        server.host()
    );
    sandbox
        .write("app/Dockerfile", dockerfile)
        .write("app/src/file", "first\n")
        .write("app/secret", "s");
    sandbox.write("app/.dockerignore", "secret\n");
    let task = "version: v1.1.0
steps:
  - {id: one, build: -t $Registry/app:1 .}
  - cmd: $Registry/app:1 sh -c 'cat /workspace/src/file /seen; echo second > /workspace/src/file'
  - {id: two, build: -t $Registry/app:2 .}
  - {cmd: $Registry/app:2 cat /seen}
";
    let done = run(&sandbox, &server, task, &[]).success();
    assert!(place(&done.stderr, " first\n") < place(&done.stderr, " second\n"));
    assert_eq!(done.stderr.matches(" first\n").count(), 2, "{}", done.stderr);
}

#[test]
fn as_root_switches_of_a_build_may_be_off_and_what_it_cannot_have_is_refused() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    sandbox.write("app/Dockerfile", format!("FROM {}/busybox\n", server.host()));
    let build = |step: &str| run(&sandbox, &server, &format!("steps: [{{{step}}}]"), &[]);
    build("build: --no-cache=false --rm=false --pull -q .").success();
    build("build: --push .").code(1).stderr_has("`--push` is not possible in a `build` step");
    build("build: ../x").code(1).stderr_has("the context `../x` is not in the workspace");
    build("build: -f none .").code(1).stderr_has("Dockerfile `none` is not in the context");
}

#[test]
fn as_root_a_killed_server_leaves_no_workspace_and_its_task_does_not_run_twice() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let sleep = long_sleep(3);
    sandbox.write(
        "app/acb.yaml",
        format!("steps: [{{cmd: '{{{{.Run.Registry}}}}/busybox {sleep}'}}]"),
    );
    let queued = sandbox.refit(["run", "app", "--no-wait", "-o", "json"]).on(&server).succeeds();
    let id = queued.json()["name"].as_str().unwrap().to_owned();
    testkit::until("the command runs", || (processes(&sleep) == 1).then_some(()));
    server.kill();
    let server = sandbox.server();
    let show = ["task", "show-run", "--run-id", &id, "-o", "json"];
    testkit::until("the run has ended", || {
        let shown = sandbox.refit(show).on(&server).succeeds().json();
        (shown["properties"]["status"] == "Error").then_some(())
    });
    assert_eq!(processes(&sleep), 0);
    assert!(!sandbox.data().join("workspaces/local").join(&id).exists());
}

#[test]
fn as_root_j18_secret_values_reach_the_step_and_no_log() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let task =
        "steps: [{cmd: \"BUSYBOX sh -c 'echo {{.Values.p}} | rev; echo is {{.Values.p}}'\"}]";
    let done = run(&sandbox, &server, task, &["--set-secret", "p=hunter22"]).success();
    let done = done.stderr_has("22retnuh").stderr_has("is ***").stderr_lacks("hunter22");
    let id = done.stderr.split("run with ID: ").nth(1).unwrap().split_whitespace().next().unwrap();
    let shown = sandbox.refit(["task", "show-run", "--run-id", id, "-o", "json"]).on(&server);
    assert!(!shown.succeeds().stdout.contains("hunter22"));
    let task = "steps: [{cmd: 'BUSYBOX {{.Values.p}}'}]";
    let failed = run(&sandbox, &server, task, &["--set-secret", "p=hunter22"]).code(1);
    failed.stderr_has("`***` cannot be executed").stderr_lacks("hunter22");
    let list = sandbox.refit(["task", "list-runs", "-o", "json"]).on(&server).succeeds();
    assert!(!list.stdout.contains("hunter22") && list.stdout.contains("`***` cannot"));
    let log = sandbox.refit(["task", "logs", "--run-id", id]).on(&server).succeeds();
    assert!(!log.stdout.contains("hunter22") && log.stdout.contains("is ***"), "{}", log.stdout);
}

#[test]
fn as_root_what_a_run_makes_is_built_from_its_workspace_and_from_nowhere_else() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let dockerfile = format!("FROM {}/busybox\nCOPY . /all/\n", server.host());
    sandbox.write("app/Dockerfile", &dockerfile);
    let task = "version: v1.1.0
steps:
  - cmd: $Registry/busybox sh -c 'mkdir gen && echo generated > gen/file && cp Dockerfile gen && ln -s / host'
  - {id: build, build: -t $Registry/app:1 gen}
  - push: [$Registry/app:1]
  - {id: out, build: -t $Registry/app:2 -f Dockerfile host/etc}
";
    let failed = run(&sandbox, &server, task, &[]).code(1);
    failed.stderr_has("step `out`: the context `host/etc` is no folder of the workspace");
    let image = validate(&server.registry(), "app", "1");
    assert_eq!(image.text("all/file"), "generated\n");
}

#[test]
fn as_root_an_image_is_pushed_to_another_registry() {
    let (sandbox, other_sandbox) = (sandbox(), sandbox());
    let other = other_sandbox.server();
    let server = server_with(&sandbox, &format!("[upstream.\"{}\"]\npush = true\n", other.host()));
    sandbox.write("app/Dockerfile", format!("FROM {}/busybox\nRUN echo x > /x\n", server.host()));
    let task = format!(
        "steps: [{{build: -t {0}/team/app:7 .}}, {{push: ['{0}/team/app:7']}}]",
        other.host()
    );
    let done = run(&sandbox, &server, &task, &[]).success();
    let image = validate(&other.registry(), "team/app", "7");
    assert_eq!(image.text("x"), "x\n");
    assert!(done.stdout.contains(image.digest.as_str()), "{}", done.stdout);
    let list = ["task", "list-runs", "-o", "json"];
    let run_record = sandbox.refit(list).on(&server).succeeds().json()[0]["properties"].take();
    let pushed = run_record["cost"]["steps"][1]["pushed"].as_u64().unwrap();
    let blobs = image.manifest.layers.iter().chain([&image.manifest.config]);
    assert_eq!(pushed, blobs.map(|blob| blob.size).sum::<u64>());
    let elsewhere = task.replace(&other.host(), "127.0.0.1:9");
    let refused = run(&sandbox, &server, &elsewhere, &[]).code(1);
    refused.stderr_has("does not let runs push to `127.0.0.1:9`").stderr_has("`push = true`");
}

#[test]
fn as_root_a_git_context_tells_its_commit_and_brings_the_task_file() {
    let sandbox = sandbox();
    let server = server_with(&sandbox, LOOPBACK);
    let git = GitHost::start();
    let repository = git.repository("r");
    repository.write(
        "ci/task.yaml",
        "steps: [{cmd: '{{.Run.Registry}}/busybox echo at {{.Run.Commit}} on {{.Run.Branch}}'}]",
    );
    let commit = repository.commit("one");
    repository.git(&["tag", "v1"]);
    let names =
        [("", "main"), ("#main", "main"), ("#v1", "HEAD"), (&*format!("#{commit}"), "HEAD")];
    for (reference, branch) in names {
        let address = format!("{}/r.git{reference}", git.url());
        let args = ["run", "-f", "ci/task.yaml", &address];
        let done = sandbox.refit(args).on(&server).run().success();
        done.stderr_has(&format!("at {commit} on {branch}\n"));
    }
}

#[test]
fn as_root_g6_a_folder_of_a_repository_is_built_in_all_of_it() {
    let sandbox = sandbox();
    let server = server_with(&sandbox, LOOPBACK);
    let git = GitHost::start();
    let repository = git.repository("r");
    repository.write("sub/x/D", format!("FROM {}/busybox\nCOPY . /all/\n", server.host()));
    repository.write("other/f", "outside");
    repository.write("outside/f", "outside");
    std::os::unix::fs::symlink("/sub", repository.work().join("link")).unwrap();
    repository.commit("one");
    repository.git(&["branch", "dev"]);
    let build = |folder: &str| {
        let task = format!(
            "version: v1.1.0
steps:
  - {{id: src, build: '-t $Registry/app:1 -f x/D {}/r.git#dev:{folder}'}}
  - {{cmd: \"$Registry/app:1 sh -c 'echo $(ls -A /all) in $(ls -A /workspace/src)'\"}}
",
            git.url()
        );
        run(&sandbox, &server, &task, &[])
    };
    for folder in ["sub", "link"] {
        let done = build(folder).success();
        done.stderr_has(" x in .git link other outside sub\n");
    }
    build("none").code(1).stderr_has("the repository has no folder `none`");
    build("../../x").code(1).stderr_has("the repository has no folder `../../x`");
}

#[test]
fn as_root_aliases_values_and_templates_are_those_of_the_run() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    sandbox
        .write("app/aliases.yaml", "say: echo aliased\n")
        .write("app/values.yaml", "a: {b: deep}\nlist: [1, 2]\n");
    let task = "version: v1.1.0
alias:
  src: [aliases.yaml]
  values: {box: $Registry/busybox}
steps:
  - cmd: $box $say {{.Values.a.b}} {{range .Values.list}}<{{.}}>{{end}} {{.Values.set | upper}}
";
    let task = task
        .replace("<{{.}}>", "n{{.}}")
        .replace("values: {box: $Registry/busybox}", "values: {box: '{{.Run.Registry}}/busybox'}");
    let flags = ["--values", "values.yaml", "--set", "set=x"];
    run(&sandbox, &server, &task, &flags).success().stderr_has("aliased deep n1n2 X");
}

#[test]
fn as_root_what_is_wrong_is_told_before_any_step() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let refused = |task: &str, text: &str| {
        let failed = run(&sandbox, &server, task, &[]).code(1);
        failed.stderr_has(text).stderr_lacks("Executing step");
    };
    refused("steps: [{cmd: x, when: [y]}]", "acb.yaml:1:25");
    refused("steps: [{cmd: BUSYBOX true, when: [y]}]", "waits for `y`");
    refused("volumes: [{name: v, secret: {f: '?'}}]\nsteps: [{cmd: x}]", "is not Base64");
    refused(
        "secrets: [{id: a, keyvault: https://v.example.net/secrets/x}]",
        "secret `a` cannot be had",
    );
}

#[test]
fn as_root_what_the_server_does_not_allow_fails_its_step() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let refused = |step: &str, text: &str| {
        let failed = run(&sandbox, &server, &format!("steps: [{{{step}}}]"), &[]).code(1);
        failed.stderr_has(text);
    };
    refused("cmd: BUSYBOX true, privileged: true", "`build.allow_insecure = true`");
    refused("cmd: BUSYBOX true, network: host", "`build.allow_host_network = true`");
    refused("cmd: BUSYBOX true, network: other", "there is no network `other`");
    refused("build: '-t x --network other .'", "there is no network `other`");
    refused("build: '-t x .', network: other", "there is no network `other`");
    refused("build: '-t x --network host .'", "`build.allow_host_network = true`");
    refused("cmd: BUSYBOX true, cpus: many", "`cpus` is a number of processors");
    refused("cmd: BUSYBOX none", "`none` cannot be executed");
    refused("push: ['{{.Run.Registry}}/app:1']", "no step of this run has built");
    refused("cmd: '{{.Run.Registry}}/none:1'", "is not in this registry");
}

#[test]
fn as_root_a_log_has_its_milestones_in_order() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let dockerfile = format!("FROM {}/busybox\nCOPY made /made\n", server.host());
    sandbox.write("app/made", "by hand").write("app/Dockerfile", dockerfile);
    let task = "version: v1.1.0
steps:
  - {id: made, build: -t $Registry/app:1 .}
  - {id: sent, push: [$Registry/app:1]}
  - {id: said, cmd: BUSYBOX echo said}
";
    let done = run(&sandbox, &server, task, &[]).success();
    let list = ["task", "logs"];
    let log = sandbox.refit(list).on(&server).run().success().stdout;
    let mut rest = log.as_str();
    let host = server.host().replace("127.0.0.1", "localhost");
    for milestone in [
        "Aliases are replaced",
        "Creating network: acb_default_network",
        "Executing step ID: made. Timeout(sec): 600, Working directory: '/workspace', Network: \
         'acb_default_network'",
        "COPY made /made",
        "Step `made` built sha256:",
        "Step ID: made marked as successful (elapsed time in seconds: ",
        "Executing step ID: sent",
        &format!("Pushing image: {host}/app:1, attempt 1"),
        &format!("Pushed image: {host}/app:1"),
        "Step ID: sent marked as successful",
        "Executing step ID: said",
        "Launching container with name: said",
        "said",
        "Step ID: said marked as successful",
        "runtime-dependency",
        "was successful after",
    ] {
        let at = rest.find(milestone);
        rest = &rest[at.unwrap_or_else(|| panic!("no `{milestone}` where it should be: {log}"))..];
    }
    assert_eq!(done.code, Some(0));
}

#[test]
fn as_root_a1_a_task_without_steps_succeeds() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    assert_eq!(run(&sandbox, &server, "{}", &[]).success().stdout, "");
    // Embedded as well, on a folder that another command has used.
    server.stop();
    sandbox.refit(["run", "--cmd", "localhost:5000/busybox echo embedded"]).run().success();
}

#[test]
fn as_root_c19_networks_of_steps_are_as_the_task_says() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let wait =
        "for i in $(seq 50); do wget -q -O - http://srv/f && exit 0; sleep 0.1; done; exit 1";
    let task = format!(
        "networks: [{{name: a, isDefault: true}}, {{name: b}}]
steps:
  - {{id: srv, cmd: \"BUSYBOX sh -c 'echo served > f; httpd -f'\", detach: true}}
  - {{id: same, cmd: \"BUSYBOX sh -c '{wait}'\"}}
  - {{id: other, cmd: \"BUSYBOX sh -c '! grep -w srv /etc/hosts'\", network: b}}
  - {{id: none, cmd: \"BUSYBOX sh -c '! grep -w srv /etc/hosts && ! ip route | grep default'\", network: none}}
  - {{id: built, build: '-f reached .'}}
  - {{id: named, build: '-f alone --network b .'}}
  - {{id: offline, build: '-f offline --network none .'}}
"
    );
    // `RUN`s are in the network of their step.
    let dockerfile =
        |command: &str| format!("FROM {}/busybox\nCOPY made /made\nRUN {command}\n", server.host());
    let alone = "! grep -w srv /etc/hosts";
    sandbox.write("app/made", "by hand").write("app/reached", dockerfile(wait));
    sandbox.write("app/alone", dockerfile(alone));
    sandbox.write("app/offline", dockerfile(&format!("{alone} && ! ip route | grep default")));
    run(&sandbox, &server, &task, &[]).success().stderr_has("served");
}

#[test]
fn as_root_an_interrupted_run_leaves_nothing_running() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let sleep = long_sleep(5);
    let task =
        format!("steps: [{{id: s, cmd: BUSYBOX {sleep}, detach: true}}, {{cmd: BUSYBOX {sleep}}}]");
    sandbox.write("app/acb.yaml", task.replace("BUSYBOX", "{{.Run.Registry}}/busybox"));
    let running = sandbox.refit(["run", "app"]).on(&server).start();
    testkit::until("both commands run", || (processes(&sleep) == 2).then_some(()));
    running.interrupt();
    running.wait().code(130);
    testkit::until("both commands are gone", || (processes(&sleep) == 0).then_some(()));
    let workspaces = sandbox.data().join("workspaces/local");
    testkit::until("the workspace is gone", || {
        std::fs::read_dir(&workspaces).unwrap().next().is_none().then_some(())
    });
}
