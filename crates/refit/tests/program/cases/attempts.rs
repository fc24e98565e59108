//! Section F: how often a step is tried. Each attempt is a line of a file in the workspace.

use std::time::{Duration, Instant};

use super::{record, run, server, states};
use crate::observe::place;
use crate::sandbox;

#[test]
fn as_root_f1_f3_f4_f5_f6_f7_f8_steps_are_tried_as_often_as_they_ask() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    // All at once, since most of their time is spent waiting.
    let task = "
steps:
  - id: f1
    cmd: BUSYBOX sh -c 'echo f1 >> f1; test $(wc -l < f1) -eq 3'
    retries: 2
    retryDelay: 1
    when: ['-']
  - id: f3
    cmd: BUSYBOX sh -c 'echo f3 >> f3'
    repeat: 2
    when: ['-']
  - id: f4
    cmd: BUSYBOX sh -c 'echo f4 >> f4; test $(wc -l < f4) -gt 2'
    repeat: 1
    retries: 1
    retryDelay: 1
    ignoreErrors: true
    when: ['-']
  - id: f5
    cmd: BUSYBOX sh -c 'echo f5 >> f5; sleep 600; echo f5 >> f5'
    timeout: 2
    retries: 5
    retryDelay: 1
    ignoreErrors: true
    when: ['-']
  - id: f6
    cmd: BUSYBOX sh -c 'echo f6 >> f6'
    startDelay: 3
    timeout: 3
    when: ['-']
  - id: f7
    cmd: BUSYBOX sh -c 'echo f7 >> f7; echo denied; exit 1'
    retries: 3
    retryDelay: 1
    retryOnErrors: [throttled]
    ignoreErrors: true
    when: ['-']
  - id: f8
    cmd: BUSYBOX sh -c 'echo f8 >> f8; test $(wc -l < f8) -eq 2 || { echo throttled; exit 1; }'
    retries: 3
    retryDelay: 1
    retryOnErrors: [throttled]
    when: ['-']
  - id: counts
    cmd: BUSYBOX sh -c 'for f in f?; do echo $f was tried $(wc -l < $f); done'
    when: [f1, f3, f4, f5, f6, f7, f8]
";
    let started = Instant::now();
    let done = run(&sandbox, &server, task).success();
    assert!(started.elapsed() > Duration::from_secs(3));
    let log = &done.stderr;
    for (step, tries) in
        [("f1", 3), ("f3", 3), ("f4", 3), ("f5", 1), ("f6", 1), ("f7", 1), ("f8", 2)]
    {
        place(log, &format!(" {step} was tried {tries}\n"));
    }
    let waits =
        |step: &str| log.matches(&format!("`{step}` failed and is tried again in 1 s")).count();
    let waits = ["f1", "f3", "f4", "f5", "f6", "f7", "f8"].map(waits);
    assert_eq!(waits, [2, 0, 1, 0, 0, 0, 1], "{log}");
    place(log, "step `f4`: the command ended with exit code 1 (ignored)");
    place(log, "step `f5`: it took longer than its limit of 2 s (ignored)");
    place(log, "step `f7`: the command ended with exit code 1 (ignored)");
}

#[test]
fn as_root_f2_without_retries_a_step_is_tried_once() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let task = "steps: [{id: once, cmd: BUSYBOX false, retries: 0}]";
    let failed = run(&sandbox, &server, task).code(1).stderr_lacks("is tried again");
    assert_eq!(failed.stderr.matches("Launching container with name: once").count(), 1);
    let record = record(&sandbox, &server, &failed);
    assert_eq!(states(&record), ("Failed", vec!["failed"]));
}
