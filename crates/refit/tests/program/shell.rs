//! `cmd` steps whose text needs a shell outside of the image: the agent shell and its `docker`.

use testkit::{Outcome, Running, Sandbox, Server, busybox, validate};

use crate::observe::processes;
use crate::sandbox;

/// The agent shell's image has a name that the server has before it knows its port.
const SETTINGS: &str = "[registry.local]\naliases = [\"shell.test\"]\n\
                        [build]\nshell_image = \"shell.test/busybox\"\n";

/// A server with further settings of `[build]`.
fn server_with(sandbox: &Sandbox, more: &str) -> Server {
    sandbox.write("settings.toml", format!("{SETTINGS}{more}"));
    let settings = sandbox.path("settings.toml").display().to_string();
    let server = sandbox.server_with(&["--config", &settings]);
    server.registry().push("busybox", "latest", &busybox());
    server
}

fn server(sandbox: &Sandbox) -> Server {
    server_with(sandbox, "")
}

/// `BUSYBOX` in a task file is an image with a shell.
fn write_task(sandbox: &Sandbox, task: &str) {
    sandbox.write("app/acb.yaml", task.replace("BUSYBOX", "{{.Run.Registry}}/busybox"));
}

fn run(sandbox: &Sandbox, server: &Server, task: &str) -> Outcome {
    write_task(sandbox, task);
    sandbox.refit(["run", "app"]).on(server).run()
}

fn start(sandbox: &Sandbox, server: &Server, task: &str) -> Running {
    write_task(sandbox, task);
    sandbox.refit(["run", "app"]).on(server).start()
}

/// Runs a single command, as lines of the agent shell.
fn line(sandbox: &Sandbox, server: &Server, lines: &str) -> Outcome {
    let lines: String = lines.lines().map(|line| format!("      {}\n", line.trim())).collect();
    run(sandbox, server, &format!("steps:\n  - id: line\n    cmd: |\n{lines}"))
}

/// The task builds an image of this Dockerfile's folder.
fn write_dockerfile(sandbox: &Sandbox, server: &Server) {
    sandbox.write(
        "app/Dockerfile",
        format!("FROM {}/busybox\nENV MODE=test\nRUN echo made > /made\n", server.host()),
    );
}

#[track_caller]
fn has_lines(log: &str, lines: &[&str]) {
    for line in lines {
        assert!(log.contains(&format!(" {line}\n")), "`{line}` is not in:\n{log}");
    }
}

/// A `sleep` that no other test has.
fn long_sleep(number: u32) -> String {
    format!("sleep {}.{number}", 300_000 + std::process::id())
}

#[test]
fn as_root_f9_f10_redirections_and_pipes_act_outside_of_the_image() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let task = r#"
env: [WORD=from-the-step]
steps:
  - cmd: BUSYBOX echo hi > out.txt
  - cmd: BUSYBOX cat out.txt
  - cmd: "BUSYBOX echo a | tr a b"
  - cmd: BUSYBOX echo $WORD `pwd` $(cat out.txt | tr h H)
  - cmd: BUSYBOX sh -c 'echo to-stderr >&2; echo to-stdout' 2>&1 | tr a-z A-Z
  - id: where
    cmd: |
      BUSYBOX sh -c 'echo first in $(hostname) at $(pwd) as $(id -u)' && echo then
      echo second at $(pwd) with $HOME as $(id -u) > second
      cat second
    user: '1000'
    workingDirectory: sub
  - cmd: BUSYBOX ls *.txt
"#;
    let done = run(&sandbox, &server, task).success();
    has_lines(
        &done.stderr,
        &[
            "hi",
            "b",
            "from-the-step /workspace Hi",
            "TO-STDERR",
            "TO-STDOUT",
            "first in where at /workspace/sub as 1000",
            "then",
            "second at /workspace with /acb/home as 0",
            "out.txt",
        ],
    );
}

#[test]
fn as_root_the_exit_status_of_the_whole_line_decides() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    line(&sandbox, &server, "BUSYBOX sh -c 'exit 3' || echo saved").success();
    line(&sandbox, &server, "BUSYBOX false | cat").success();
    let failed = |text: &str, words: &str| {
        line(&sandbox, &server, text).code(1).stderr_has(words);
    };
    failed("BUSYBOX sh -c 'exit 3' && echo no", "step `line`: the command ended with exit code 3");
    failed("BUSYBOX true; exit 7", "ended with exit code 7");
    failed("BUSYBOX true | wc -x 2>/dev/null && true", "ended with exit code 1");
    failed("BUSYBOX none; exit $?", "`none` cannot be executed");
    failed("BUSYBOX/none:1 true; exit $?", "ended with exit code 125");
    failed("BUSYBOX echo a | | cat", "ended with exit code 2");
}

#[test]
fn as_root_commands_of_docker_run_beside_each_other_and_end_with_their_clients() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let text = "BUSYBOX sh -c 'while true; do echo y; done' | head -n 1
        export WORD=word
        docker run --rm -e A=b -e WORD -w /tmp BUSYBOX sh -c 'echo $A-$WORD-$(pwd)-$(ls /workspace/acb*)' > one &
        docker run BUSYBOX echo two > two
        wait
        cat one two
        docker run --name other BUSYBOX sh -c 'exit 42' || echo code $?
        for i in $(seq 50); do docker version > version.$i & done; wait
        cat version.* | wc -l
        docker run -i BUSYBOX cat || echo code $?
        docker build . || echo code $?";
    let done = line(&sandbox, &server, text).success();
    has_lines(
        &done.stderr,
        &["y", "b-word-/tmp-/workspace/acb.yaml", "two", "code 42", "50", "code 125"],
    );
    let done =
        done.stderr_has("`-i` and `-t` are not possible").stderr_has("a `build` step builds");
    assert_eq!(done.stderr.matches(" code 125\n").count(), 2, "{}", done.stderr);
}

#[test]
fn as_root_images_of_the_run_are_inspected_tagged_and_pushed() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    write_dockerfile(&sandbox, &server);
    let task = r#"version: v1.1.0
steps:
  - build: -t $Registry/app:1 .
  - id: shell
    cmd: |
      $Registry/app:1 cat /made > made.txt
      docker images
      docker tag $Registry/app:1 $Registry/team/other:2
      docker push $Registry/team/other:2
      docker inspect --format '{{"{{"}}.Id{{"}}"}} {{"{{"}}json .Config.Env{{"}}"}}' $Registry/app:1 > inspected
      cat inspected
      docker inspect $Registry/team/other:2 | grep RepoTags -A 3
      docker manifest inspect $Registry/app:1 | grep mediaType | head -n 1
      docker rmi $Registry/app:1
      docker push $Registry/app:1 || echo code $?
"#;
    let done = run(&sandbox, &server, task).success();
    let log = &done.stderr;
    let image = validate(&server.registry(), "team/other", "2");
    assert_eq!(image.text("made"), "made\n");
    assert_eq!(done.stdout, format!("team/other@{}\n", image.digest));
    has_lines(log, &[&format!("2: digest: {}", image.digest), "code 1"]);
    for text in ["REPOSITORY", "sha256:", "MODE=test", "RepoTags", "no step of this run has built"]
    {
        assert!(log.contains(text), "`{text}` is not in:\n{log}");
    }
    assert_eq!(server.registry().status("/v2/app/manifests/1"), 404);
}

#[test]
fn as_root_an_image_of_elsewhere_is_brought_here_by_tag_and_push() {
    let (sandbox, other_sandbox) = (sandbox(), sandbox());
    let other = other_sandbox.server();
    let digest = other.registry().push("tools/base", "3", &busybox().env("FROM=elsewhere"));
    let server = server_with(&sandbox, "allow_addresses = [\"127.0.0.1\"]\n");
    let text = format!(
        "BUSYBOX true
         docker pull {0}/tools/base:3
         docker tag {0}/tools/base:3 {{{{.Run.Registry}}}}/mirror/base:3
         docker run {{{{.Run.Registry}}}}/mirror/base:3 env
         docker push {{{{.Run.Registry}}}}/mirror/base:3",
        other.host()
    );
    let done = line(&sandbox, &server, &text).success();
    has_lines(&done.stderr, &[&format!("Digest: {digest}"), "FROM=elsewhere"]);
    assert_eq!(validate(&server.registry(), "mirror/base", "3").digest, digest);
    assert_eq!(done.stdout, format!("mirror/base@{digest}\n"));
}

#[test]
fn as_root_a_login_is_kept_for_later_steps_and_its_password_in_no_log() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let task = "
steps:
  - {cmd: 'BUSYBOX echo $PW | docker login -u me --password-stdin r.example.com', env: [PW=hunter22]}
  - cmd: |
      BUSYBOX stat -c %a:%u /acb/home/.docker/config.json
      docker login -u you -p hunter33 https://index.docker.io/v1/
      docker logout r.example.com
      grep -c r.example.com $HOME/.docker/config.json || true
      grep -o index.docker.io $HOME/.docker/config.json
      docker login -u nobody --password-stdin r < /dev/null || echo code $?
      docker login r || echo code $?
";
    let done = run(&sandbox, &server, task).success();
    let lines = ["Login Succeeded", "600:0", "0", "index.docker.io", "code 1"];
    has_lines(&done.stderr, &lines);
    let id = done.stderr.split("run with ID: ").nth(1).unwrap().split_whitespace().next().unwrap();
    let log = sandbox.refit(["task", "logs", "--run-id", id]).on(&server).succeeds().stdout;
    for text in ["hunter22", "hunter33", "aHVudGVyMjI", "bWU6aHVudGVyMjI"] {
        assert!(!log.contains(text) && !done.stderr.contains(text), "{log}");
    }
    assert!(!server.log().contains("hunter"), "{}", server.log());
}

#[test]
fn as_root_the_door_to_the_engine_is_in_the_shell_only() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let done = line(
        &sandbox,
        &server,
        "BUSYBOX sh -c 'ls -d /.refit || echo none here'
         docker run BUSYBOX sh -c 'ls -d /.refit || echo none there'
         ls /.refit/run.sock
         echo x > /.refit/refit || echo protected
         mount -t tmpfs none /mnt 2>/dev/null || echo unprivileged",
    );
    let done = done.success();
    let lines = ["none here", "none there", "/.refit/run.sock", "protected", "unprivileged"];
    has_lines(&done.stderr, &lines);
}

#[test]
fn as_root_a_service_is_listed_reached_and_stopped() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let task = "
steps:
  - {id: said, cmd: \"BUSYBOX sh -c 'echo one; echo said last; sleep 1000'\", detach: true}
  - {id: web, cmd: \"BUSYBOX sh -c 'echo page > /page; exec busybox httpd -f -h /' > web.log\", detach: true}
  - id: check
    cmd: |
      BUSYBOX sh -c 'for i in $(seq 50); do wget -q -O - http://web/page && exit 0; sleep 0.1; done; exit 1'
      wget -q -O - http://web/page | tr a-z A-Z
      docker ps -q
      until docker logs --tail 1 said | grep last; do sleep 0.1; done
      docker stop none || echo code $?
      docker rm -f web
      docker ps
";
    let done = run(&sandbox, &server, task).success();
    let done = done.stderr_has("no container is called `none`").stderr_lacks("whole buffer");
    has_lines(&done.stderr, &["page", "PAGE", "web", "said", "said last", "code 1"]);
    let last = done.stderr.rsplit("NAMES").next().unwrap();
    assert!(!last.contains(" web "), "{}", done.stderr);
}

#[test]
fn as_root_f24_a_container_that_is_kept_can_be_inspected_until_the_run_ends() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let task = "
steps:
  - {id: kept, cmd: \"BUSYBOX sh -c 'echo said; exit 3'\", keep: true, ignoreErrors: true}
  - {id: other, cmd: BUSYBOX true}
  - id: look
    cmd: |
      BUSYBOX true
      docker ps -a
      docker inspect kept | grep -o 'ExitCode.*'
      docker logs kept
      docker run --name mine BUSYBOX sh -c 'exit 5' || docker ps -a | grep mine
      docker rm kept mine
      docker ps -aq | wc -l
  - {id: late, cmd: BUSYBOX true; docker inspect kept, ignoreErrors: true}
";
    let done = run(&sandbox, &server, task).success();
    has_lines(&done.stderr, &["said", "ExitCode\": 3", "0"]);
    let listed = done.stderr.split("NAMES").nth(1).unwrap();
    assert!(listed.contains(" kept ") && listed.contains("Exited (3)"), "{}", done.stderr);
    assert!(!listed.split("ExitCode").next().unwrap().contains(" other "), "{}", done.stderr);
    assert!(done.stderr.contains("Exited (5)"), "{}", done.stderr);
}

#[test]
fn as_root_f1_f5_shells_are_tried_again_and_killed_when_their_time_is_up() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let sleep = long_sleep(1);
    let task = format!(
        "steps:
  - id: again
    cmd: BUSYBOX echo try >> tries && test $(wc -l < tries) -eq 3
    retries: 5
    retryDelay: 1
  - id: picky
    cmd: BUSYBOX echo throttled | tr a-z A-Z && false
    retries: 1
    retryDelay: 1
    retryOnErrors: [THROTTLED]
    ignoreErrors: true
  - id: slow
    cmd: \"BUSYBOX {sleep} | cat; docker run BUSYBOX {sleep}\"
    timeout: 2
    retries: 5
"
    );
    let failed = run(&sandbox, &server, &task).code(1);
    let failed = failed
        .stderr_has("step `slow`: it took longer than its limit of 2 s")
        .stderr_has("Step `picky` failed and is tried again");
    assert_eq!(failed.stderr.matches("Step `again` failed and is tried again").count(), 2);
    assert_eq!(processes(&sleep), 0);
}

#[test]
fn as_root_an_interrupted_run_ends_its_shell_and_what_that_has_started() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let sleep = long_sleep(2);
    let task = format!(
        "steps:
  - id: line
    cmd: |
      BUSYBOX {sleep} | cat &
      docker run BUSYBOX {sleep} &
      {sleep}
"
    );
    let running = start(&sandbox, &server, &task);
    testkit::until("all commands run", || (processes(&sleep) == 3).then_some(()));
    running.interrupt();
    running.wait().code(130);
    testkit::until("all are gone", || (processes(&sleep) == 0).then_some(()));
    let workspaces = sandbox.data().join("workspaces/local");
    testkit::until("the workspace is gone", || {
        std::fs::read_dir(&workspaces).unwrap().next().is_none().then_some(())
    });
}

#[test]
fn as_root_acr_is_a_command_of_the_shell() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let task = "version: v1.1.0
steps:
  - cmd: acr tag list --repository busybox | tr a-z A-Z > tags
  - cmd: |
      BUSYBOX cat tags
      acr purge --filter busybox:.* --ago 9d
      acr purge --filter nothing || echo code $?
";
    let done = run(&sandbox, &server, task).success();
    let done = done.stderr_has("/BUSYBOX:LATEST\n").stderr_has("deleted tags: 0");
    has_lines(&done.stderr, &["code 1"]);
}

#[test]
fn as_root_a_shell_that_cannot_be_had_is_told_with_its_setting() {
    let sandbox = sandbox();
    sandbox.write("settings.toml", "[build]\nshell_image = \"127.0.0.1:1/sh:1\"\n");
    let settings = sandbox.path("settings.toml").display().to_string();
    let server = sandbox.server_with(&["--config", &settings]);
    server.registry().push("busybox", "latest", &busybox());
    let failed = line(&sandbox, &server, "BUSYBOX cat x | wc").code(1);
    failed
        .stderr_has("the command has `|`")
        .stderr_has("127.0.0.1:1")
        .stderr_has("`build.shell_image`");
    line(&sandbox, &server, "BUSYBOX echo words only").success();
}

#[test]
fn as_root_a_shell_is_never_privileged() {
    let sandbox = sandbox();
    let server = server_with(&sandbox, "allow_insecure = true\n");
    let task = "
steps:
  - cmd: BUSYBOX mount -t tmpfs none /mnt && echo privileged; mount -t tmpfs none /mnt || echo refused
    privileged: true
";
    has_lines(&run(&sandbox, &server, task).success().stderr, &["refused"]);
}
