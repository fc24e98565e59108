//! Tasks that start by themselves.

use serde_json::Value;
use testkit::{GitHost, Image, Layer, Outcome, Sandbox, Server, until};

use crate::sandbox;

struct Place {
    sandbox: Sandbox,
    server: Server,
    git: GitHost,
}

impl Place {
    fn new() -> Self {
        let sandbox = sandbox();
        sandbox.write("settings.toml", "[build]\nallow_addresses = [\"127.0.0.1\"]\n");
        let settings = sandbox.path("settings.toml").display().to_string();
        let server = sandbox.server_with(&["--config", &settings]);
        Self { sandbox, server, git: GitHost::start() }
    }

    fn refit(&self, command: &str) -> Outcome {
        self.sandbox.refit(command.split_whitespace()).on(&self.server).run()
    }

    fn push(&self, name: &str, text: &str) {
        let image = Image::new([Layer::new().file("file", 0o644, text.as_bytes())]);
        self.server.registry().push(name, "1", &image);
    }

    /// A task of this name that makes an image of this name of a Dockerfile.
    fn task(&self, name: &str, dockerfile: &str, flags: &str) {
        let host = self.server.host();
        let repository = self.git.repository(name);
        repository.write("Dockerfile", dockerfile.replace("HOST", &host));
        repository.write("file", name);
        repository.commit("one");
        let url = format!("{}/{name}.git#main", self.git.url());
        self.refit(&format!("task create {name} -c {url} -f Dockerfile -t {name}:1 {flags}"))
            .success();
        self.refit(&format!("task run {name}")).success();
    }

    /// Runs of a task, the newest first.
    fn runs(&self, name: &str) -> Vec<Value> {
        let listed = self.refit(&format!("task list-runs -n {name} -o json")).success().json();
        listed.as_array().cloned().unwrap_or_default()
    }

    /// That run of a task that is its `count`th, when it has ended well.
    fn ended(&self, name: &str, count: usize) -> Value {
        until(&format!("run {count} of {name}"), || {
            let runs = self.runs(name);
            let status = &runs.first()?["properties"]["status"];
            assert_ne!(status, "Failed", "{runs:?}");
            (runs.len() == count && status == "Succeeded").then(|| runs[0].clone())
        })
    }

    fn events(&self, name: &str) -> String {
        self.refit(&format!("trigger list -n {name} -o tsv")).success().stdout
    }
}

#[test]
fn as_root_a_base_that_moves_rebuilds_what_stands_on_it_level_by_level() {
    let place = Place::new();
    place.push("os", "one");
    place.task("runtime", "FROM HOST/os:1\nCOPY file /runtime\n", "");
    place.task("frontend", "FROM HOST/runtime:1\nCOPY file /frontend\n", "");
    place.task(
        "quiet",
        "FROM HOST/runtime:1\nCOPY file /quiet\n",
        "--base-image-trigger-enabled false",
    );
    let why = place.refit("trigger why frontend").success().stderr;
    let waits = format!("is built on {}/runtime:1", place.server.host());
    assert!(why.contains(&waits), "{why}");

    place.push("os", "two");
    let middle = place.ended("runtime", 2);
    let last = place.ended("frontend", 2);
    let update = &middle["properties"]["imageUpdateTrigger"];
    assert_eq!(middle["properties"]["cause"]["type"], "Image Update");
    assert_eq!(
        (&update["images"][0]["repository"], &update["images"][0]["tag"]),
        (&"os".into(), &"1".into())
    );
    let update = &last["properties"]["imageUpdateTrigger"];
    let built = &middle["properties"]["outputImages"][0]["digest"];
    assert_eq!(&update["images"][0]["digest"], built);
    assert_eq!(
        (&update["chain"][0]["task"], &update["chain"][0]["runId"]),
        (&"runtime".into(), &middle["name"])
    );
    assert_eq!(place.runs("quiet").len(), 1);
    assert_eq!(place.events("quiet"), "");
    let shown = place.refit(&format!("task show-run --run-id {}", last["name"].as_str().unwrap()));
    let shown = shown.success().stdout;
    assert!(shown.contains("Image Update: ") && shown.contains(" of runtime"), "{shown}");
    // The same image again starts nothing, and neither does another tag.
    place.push("os", "two");
    let other = Image::new([Layer::new().file("file", 0o644, b"three")]);
    place.server.registry().push("os", "2", &other);
    place.push("os", "four");
    place.ended("runtime", 3);
    place.ended("frontend", 3);
    let events = place.events("frontend");
    assert_eq!(events.lines().filter(|line| line.contains("Fired")).count(), 2, "{events}");
}

#[test]
fn as_root_moves_are_answered_that_came_while_no_server_ran() {
    let place = Place::new();
    place.push("os", "one");
    place.task("app-task", "FROM HOST/os:1\nCOPY file /app\n", "");
    let Place { sandbox, server, git } = place;
    let host = server.host();
    server.stop();
    // An embedded build moves the tag; nothing starts meanwhile.
    sandbox.write("os/Dockerfile", "FROM scratch\nCOPY Dockerfile /other\n");
    sandbox.refit(["build", "os", "-t", "os:1"]).run().success();
    let settings = sandbox.path("settings.toml").display().to_string();
    let server = sandbox.server_with(&["--config", &settings, "--listen", &host]);
    assert_eq!(server.host(), host);
    let place = Place { sandbox, server, git };
    let run = place.ended("app-task", 2);
    assert_eq!(run["properties"]["cause"]["type"], "Image Update");
}

#[test]
fn as_root_a_task_that_pushes_its_own_base_does_not_start_itself() {
    let place = Place::new();
    place.push("itself", "one");
    place.task("itself", "FROM HOST/itself:1\nCOPY file /x\nARG N=1\n", "");
    let told = until("the decision", || {
        let events = place.events("itself");
        (!events.is_empty()).then_some(events)
    });
    assert!(told.contains("Suppressed") && told.contains("has pushed it itself"), "{told}");
    assert_eq!(place.runs("itself").len(), 1);
    // Somebody else's push does.
    place.push("itself", "two");
    place.ended("itself", 2);
}
