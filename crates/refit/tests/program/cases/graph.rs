//! Section B: which steps run, and what becomes of the others.

use super::{long_sleep, record, run, server, states};
use crate::observe::{place, processes};
use crate::sandbox;

#[test]
fn as_root_b13_steps_behind_one_that_fails_stay_skipped() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let task = "
steps:
  - {id: a, cmd: BUSYBOX false}
  - {id: b, cmd: BUSYBOX true, when: [a]}
  - {id: c, cmd: BUSYBOX true, when: [a]}
  - {id: d, cmd: BUSYBOX true, when: [b, c]}
";
    let failed = run(&sandbox, &server, task).code(1).stderr_has("step `a`: the command ended");
    let record = record(&sandbox, &server, &failed);
    assert_eq!(states(&record), ("Failed", vec!["failed", "skipped", "skipped", "skipped"]));
}

#[test]
fn as_root_b14_a_failure_kills_what_runs_beside_it() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let sleep = long_sleep(1);
    let task = format!(
        "
steps:
  - {{id: a, cmd: BUSYBOX true}}
  - {{id: b, cmd: BUSYBOX sh -c 'until test -e started; do sleep 0.1; done; exit 3', when: [a]}}
  - {{id: c, cmd: BUSYBOX sh -c 'touch started; exec {sleep}', when: [a]}}
  - {{id: d, cmd: BUSYBOX true, when: [b, c]}}
"
    );
    let failed = run(&sandbox, &server, &task).code(1).stderr_has("step `b`: the command ended");
    assert_eq!(processes(&sleep), 0);
    let record = record(&sandbox, &server, &failed);
    // It has not come to an end of its own.
    let c = "failed";
    assert_eq!(states(&record), ("Failed", vec!["successful", "failed", c, "skipped"]));
}

#[test]
fn as_root_b15_an_error_that_is_ignored_is_none() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let task = "
steps:
  - {id: a, cmd: BUSYBOX true}
  - {id: b, cmd: BUSYBOX false, when: [a], ignoreErrors: true}
  - {id: c, cmd: BUSYBOX true, when: [a]}
  - {id: d, cmd: BUSYBOX echo d runs, when: [b, c]}
";
    let done = run(&sandbox, &server, task).success().stderr_has(" d runs\n");
    let record = record(&sandbox, &server, &done);
    assert_eq!(states(&record), ("Succeeded", vec!["successful"; 4]));
}

#[test]
fn as_root_b16_b17_a_detached_step_is_waited_for_until_it_has_started() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let sleep = long_sleep(2);
    // The second one ends in failure while the last step runs.
    let task = format!(
        "
steps:
  - {{id: stays, cmd: BUSYBOX {sleep}, detach: true}}
  - id: fails
    cmd: BUSYBOX sh -c 'until test -e go; do sleep 0.1; done; touch gone; exit 1'
    detach: true
  - id: last
    cmd: BUSYBOX sh -c 'touch go; until test -e gone; do sleep 0.1; done; sleep 0.3; echo done'
"
    );
    let done = run(&sandbox, &server, &task).success().stderr_has(" done\n");
    let launched = place(&done.stderr, "Launching container with name: stays");
    assert!(launched < place(&done.stderr, "Executing step ID: fails"), "{}", done.stderr);
    let record = record(&sandbox, &server, &done);
    assert_eq!(states(&record), ("Succeeded", vec!["successful"; 3]));
    assert_eq!(processes(&sleep), 0);
    let containers = std::fs::read_dir(sandbox.data().join("workspaces/local")).unwrap();
    assert_eq!(containers.count(), 0);
}

#[test]
fn as_root_b20_of_two_roots_one_ends_the_other() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let sleep = long_sleep(3);
    let task = format!(
        "
steps:
  - {{id: one, cmd: BUSYBOX false, when: ['-']}}
  - {{id: two, cmd: BUSYBOX {sleep}, when: ['-']}}
"
    );
    let failed = run(&sandbox, &server, &task).code(1).stderr_has("step `one`: the command ended");
    assert_eq!(processes(&sleep), 0);
    let record = record(&sandbox, &server, &failed);
    assert_eq!(states(&record), ("Failed", vec!["failed", "failed"]));
}
