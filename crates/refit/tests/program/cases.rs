//! Cases of the specification that only a whole run can show. Each is named by its number there.

mod attempts;
mod builds;
mod graph;
mod pushes;
mod runs;
mod surroundings;

use serde_json::Value;
use testkit::{Outcome, Sandbox, Server, busybox};

/// Contexts and aliases may come from the tests' own hosts.
const LOOPBACK: &str = "[build]\nallow_addresses = [\"127.0.0.1\"]\n";

/// A server that holds a base image with a shell.
fn server(sandbox: &Sandbox) -> Server {
    server_with(sandbox, "")
}

/// The same with settings of its own.
fn server_with(sandbox: &Sandbox, settings: &str) -> Server {
    sandbox.write("settings.toml", settings);
    let settings = sandbox.path("settings.toml").display().to_string();
    let server = sandbox.server_with(&["--config", &settings]);
    server.registry().push("busybox", "latest", &busybox());
    server
}

/// Runs a task file. `BUSYBOX` in it is an image with a shell.
fn run(sandbox: &Sandbox, server: &Server, task: &str) -> Outcome {
    sandbox.write("app/acb.yaml", task.replace("BUSYBOX", "{{.Run.Registry}}/busybox"));
    sandbox.refit(["run", "app"]).on(server).run()
}

/// What the server keeps of a run that was followed.
#[track_caller]
fn record(sandbox: &Sandbox, server: &Server, followed: &Outcome) -> Value {
    let id = followed.stderr.split("with ID: ").nth(1).and_then(|rest| rest.lines().next());
    let id = id.unwrap_or_else(|| panic!("no run is named in:\n{}", followed.stderr));
    let show = ["task", "show-run", "--run-id", id, "-o", "json"];
    sandbox.refit(show).on(server).succeeds().json()["properties"].clone()
}

/// How a run ended, and each of its steps.
fn states(record: &Value) -> (&str, Vec<&str>) {
    let steps = record["cost"]["steps"].as_array().expect("the record has steps");
    let states = steps.iter().map(|step| step["state"].as_str().expect("a step has a state"));
    (record["status"].as_str().expect("a run has a status"), states.collect())
}

/// A `sleep` that no other test has.
fn long_sleep(number: u32) -> String {
    format!("sleep {}.{number}", 500_000 + std::process::id())
}
