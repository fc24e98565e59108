//! Sections A, C and D: what a step finds where it runs, and aliases that are elsewhere.

use testkit::GitHost;

use super::{LOOPBACK, record, run, server, server_with, states};
use crate::observe::place;
use crate::sandbox;

#[test]
fn as_root_a34_exited_with_changes_nothing() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let task = "steps: [{id: s, cmd: BUSYBOX sh -c 'exit 3', exitedWith: [3]}]";
    let failed = run(&sandbox, &server, task).code(1);
    let failed = failed
        .stderr_has("`exitedWith`")
        .stderr_has("step `s`: the command ended with exit code 3");
    let record = record(&sandbox, &server, &failed);
    assert_eq!(states(&record), ("Failed", vec!["failed"]));
}

#[test]
fn as_root_c10_c13_commands_run_in_the_workspace_or_where_their_image_says() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    sandbox.write("app/Dockerfile", format!("FROM {}/busybox\nWORKDIR /app\n", server.host()));
    let task = "version: v1.1.0
steps:
  - {id: build, build: -t $Registry/app:1 .}
  - {id: c10, cmd: $Registry/app:1 sh -c 'echo c10 in $(pwd)'}
  - {id: acr, cmd: $Registry/app:1 sh -c 'echo acr of $ACR_DEFAULT_REGISTRY'}
  - id: c13
    cmd: $Registry/app:1 sh -c 'echo c13 in $(pwd)'
    disableWorkingDirectoryOverride: true
";
    let done = run(&sandbox, &server, task).success();
    let host = server.host().replace("127.0.0.1", "localhost");
    let done = done.stderr_has(&format!(" acr of {host}\n"));
    done.stderr_has(" c10 in /workspace\n").stderr_has(" c13 in /app\n");
}

#[test]
fn as_root_c17_a_network_that_is_not_created_is_the_usual_one_or_none() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let task = |name: &str| {
        format!(
            "
networks: [{{name: n, isDefault: true}}, {{name: {name}, isDefault: true, skipCreation: true}}]
steps: [{{id: s, cmd: BUSYBOX echo joined}}]
"
        )
    };
    let done = run(&sandbox, &server, &task("bridge")).success();
    let done = done.stderr_has("Network: 'bridge'").stderr_has(" joined\n");
    done.stderr_lacks("Creating network");
    let failed = run(&sandbox, &server, &task("ext")).code(1).stderr_lacks("Creating network");
    failed.stderr_has("there is no network `ext`").stderr_has("without `skipCreation`");
}

#[test]
fn as_root_c18_a_step_may_use_the_network_of_the_host() {
    let sandbox = sandbox();
    let server = server_with(&sandbox, "[build]\nallow_host_network = true\n");
    let task = "
networks: [{name: n, isDefault: true}]
steps:
  - {id: apart, cmd: BUSYBOX sh -c 'echo apart $(readlink /proc/self/ns/net)'}
  - {id: host, cmd: BUSYBOX sh -c 'echo host $(readlink /proc/self/ns/net)', network: host}
";
    let done = run(&sandbox, &server, task).success();
    let own = std::fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    assert!(done.stderr.contains(&format!(" host {own}\n")), "{}", done.stderr);
    place(&done.stderr, " apart net:");
    assert!(!done.stderr.contains(&format!(" apart {own}\n")), "{}", done.stderr);
}

#[test]
fn as_root_d22_d23_aliases_that_cannot_be_had_end_the_run_before_its_steps() {
    let sandbox = sandbox();
    let server = server_with(&sandbox, LOOPBACK);
    let host = GitHost::start();
    host.file("aliases.yaml", b"box: '{{.Run.Registry}}/busybox'\n");
    let aliases = |source: &str| {
        let task = format!(
            "version: v1.1.0\nalias: {{src: ['{source}']}}\nsteps: [{{cmd: $box echo had}}]"
        );
        run(&sandbox, &server, &task)
    };
    aliases(&format!("{}/aliases.yaml", host.url())).success().stderr_has(" had\n");
    let missing = format!("{}/none.yaml", host.url());
    let d22 = aliases(&missing).code(1).stderr_lacks("Executing step");
    d22.stderr_has(&format!("the aliases at `{missing}` cannot be had")).stderr_has("status 404");
    let d23 = aliases("none.yaml").code(1).stderr_lacks("Executing step");
    d23.stderr_has("the alias file `none.yaml`");
}
