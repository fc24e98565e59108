//! `refit plan`, `apply` and `rollback`.

use oci::Digest;
use testkit::{Image, Layer, until};

use crate::watches::Place;

/// What a tag is.
fn digest(place: &Place, name: &str) -> String {
    let (repository, tag) = name.split_once(':').expect("a name has a tag");
    Digest::of(&place.server.registry().manifest(repository, tag).0).to_string()
}

fn push(place: &Place, tag: &str) -> String {
    let image = Image::new([Layer::new().file("file", 0o644, tag.as_bytes())]);
    place.server.registry().push("os", tag, &image).to_string()
}

#[test]
fn as_root_a_plan_is_carried_out_stopped_and_put_back() {
    let place = Place::new("");
    let host = place.server.host();
    let shown = host.replace("127.0.0.1", "localhost");
    push(&place, "1");
    place.task("runtime", &format!("FROM {host}/os:1\nCOPY file /runtime\n"), "");
    place.task("app-task", &format!("FROM {host}/runtime:1\nCOPY file /app\n"), "");
    let names = ["os:1", "runtime:1", "app-task:1"];
    let before = names.map(|name| digest(&place, name));
    let patched = push(&place, "patched");
    let plan = format!("plan --base {host}/os:1 --to {patched} --canary 100");
    let drawn = place.refit(&format!("{plan} -o json")).success();
    let listed: Vec<String> = drawn.json()["tasks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|task| {
            format!("{} {} {} {}", task["level"], task["task"], task["method"], task["images"])
        })
        .collect();
    assert_eq!(
        listed,
        [
            format!("1 \"runtime\" \"Reuse\" [\"{shown}/runtime:1\"]"),
            format!("2 \"app-task\" \"Reuse\" [\"{shown}/app-task:1\"]"),
        ]
    );
    drawn.stderr_has("Carry it out with `refit apply p1`");
    assert_eq!(names.map(|name| digest(&place, name)), before);
    let applied = place.refit("apply p1").success();
    applied.stderr_has("p1 Succeeded: 2 built of 2");
    assert_eq!(digest(&place, "os:1"), patched);
    let after = names.map(|name| digest(&place, name));
    assert!(after.iter().zip(&before).all(|(after, before)| after != before), "{after:?}");
    let run = place.runs("app-task").remove(0);
    assert_eq!(run["properties"]["cause"]["type"], "Plan");
    assert_eq!(run["properties"]["fleetPlan"], "p1");
    let id = run["properties"]["runId"].as_str().unwrap();
    let shown = place.refit(&format!("task show-run --run-id {id}")).success();
    assert!(shown.stdout.contains("Plan p1, by "), "{}", shown.stdout);
    place.refit("apply p1").code(5).stderr_has("plan `p1` is Succeeded");
    place.refit("rollback p1").success();
    assert_eq!(names.map(|name| digest(&place, name)), before);
    // Nothing was built but what the plan has built.
    assert_eq!((place.runs("runtime").len(), place.runs("app-task").len()), (2, 2));

    let repository = place.git.repository("runtime");
    repository.write("Dockerfile", format!("FROM {host}/os:1\nCOPY missing /runtime\n"));
    repository.commit("broken");
    place.refit(&plan).success();
    let stopped = place.refit("apply p2").code(1);
    let stopped = stopped.stderr_has("plan `p2` is Stopped: task `runtime`: run");
    stopped.stderr_has("`refit rollback p2` puts back what it has moved");
    until("its trigger says that it waits for the plan", || {
        let why = place.refit("trigger why runtime -o json").success();
        why.stdout.contains("plan `p2` ").then_some(())
    });
    place.refit("rollback p2").success();
    assert_eq!(names.map(|name| digest(&place, name)), before);
    place.refit("plan show p2").success().stderr_has("Plan p2 is RolledBack");
    place.refit("plan stop p2").code(5);
    place.refit("plan show p3").code(4);
    let plans = place.refit("plan list -o json").success().json();
    let plans: Vec<_> = plans.as_array().unwrap().iter().map(|plan| &plan["status"]).collect();
    assert_eq!(plans, ["RolledBack", "RolledBack"]);
}
