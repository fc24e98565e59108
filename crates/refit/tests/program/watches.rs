//! Tasks that start when an image of another registry moves, and triggers that are held.

use serde_json::Value;
use testkit::{GitHost, Image, Layer, Outcome, RegistryClient, Sandbox, Server, until};

use crate::pull_through::DockerRegistry;
use crate::sandbox;

/// A server that asks others often, and a repository.
pub(crate) struct Place {
    pub(crate) sandbox: Sandbox,
    pub(crate) server: Server,
    pub(crate) git: GitHost,
}

impl Place {
    pub(crate) fn new(triggers: &str) -> Self {
        let sandbox = sandbox();
        sandbox.write(
            "settings.toml",
            format!("[build]\nallow_addresses = [\"127.0.0.1\"]\n[triggers]\n{triggers}"),
        );
        let settings = sandbox.path("settings.toml").display().to_string();
        let server = sandbox.server_with(&["--config", &settings]);
        Self { sandbox, server, git: GitHost::start() }
    }

    pub(crate) fn refit(&self, command: &str) -> Outcome {
        self.sandbox.refit(command.split_whitespace()).on(&self.server).run()
    }

    /// A task of this name that was built of a Dockerfile once.
    pub(crate) fn task(&self, name: &str, dockerfile: &str, flags: &str) {
        self.create(name, dockerfile, flags);
        self.refit(&format!("task run {name}")).success();
    }

    fn create(&self, name: &str, dockerfile: &str, flags: &str) {
        let repository = self.git.repository(name);
        repository.write("Dockerfile", dockerfile);
        repository.write("file", name);
        repository.commit("one");
        let url = format!("{}/{name}.git#main", self.git.url());
        self.refit(&format!("task create {name} -c {url} -f Dockerfile -t {name}:1 {flags}"))
            .success();
    }

    /// Runs of a task, the newest first.
    pub(crate) fn runs(&self, name: &str) -> Vec<Value> {
        let listed = self.refit(&format!("task list-runs -n {name} -o json")).success().json();
        listed.as_array().cloned().unwrap_or_default()
    }

    fn ended(&self, name: &str, count: usize) -> Value {
        until(&format!("run {count} of {name}"), || {
            let runs = self.runs(name);
            assert!(runs.len() <= count, "{runs:?}");
            let is_there = runs.len() == count && runs[0]["properties"]["status"] == "Succeeded";
            is_there.then(|| runs[0].clone())
        })
    }

    /// The only image that is watched, when it is as expected.
    fn watched(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        until(what, || {
            let listed = self.refit("trigger watches -o json").success().json();
            let watch = listed.as_array()?.first()?.clone();
            is(&watch).then_some(watch)
        })
    }
}

fn push(registry: &RegistryClient, name: &str, text: &str) -> String {
    let image = Image::new([Layer::new().file("file", 0o644, text.as_bytes())]);
    registry.push(name, "1", &image).to_string()
}

const OFTEN: &str = "base_poll_period = \"1s\"\nbase_settle = \"1s\"\n";

#[test]
fn as_root_a_base_of_another_refit_is_asked_for_and_starts_what_stands_on_it() {
    let place = Place::new(OFTEN);
    let upstream = Server::start();
    let (registry, host) = (upstream.registry(), upstream.host());
    push(&registry, "os", "one");
    place.task("app-task", &format!("FROM {host}/os:1\nCOPY file /app\n"), "");
    let watch = place.watched("that it is asked for", |watch| !watch["lastTime"].is_null());
    assert_eq!(watch["image"], format!("{host}/os:1"));
    assert_eq!(place.runs("app-task").len(), 1);
    let two = push(&registry, "os", "two");
    let run = place.ended("app-task", 2);
    let image = &run["properties"]["imageUpdateTrigger"]["images"][0];
    assert_eq!(
        (&image["registry"], &image["digest"]),
        (&host.as_str().into(), &two.as_str().into())
    );
    let why = place.refit("trigger why app-task").success();
    let line = format!("{host}/os:1 was asked for at ");
    why.stderr_has(&line);
    // While it is away, and another server that has moved meanwhile is there in its place.
    upstream.stop();
    let gone = place.watched("that it is gone", |watch| !watch["error"].is_null());
    assert!(gone["error"].as_str().unwrap().contains("could not reach"), "{gone}");
    let sandbox = sandbox();
    let again = sandbox.server_with(&["--listen", &host]);
    push(&again.registry(), "os", "three");
    place.ended("app-task", 3);
}

#[test]
fn as_root_a_base_behind_a_login_is_asked_for_with_that_of_the_task() {
    let place = Place::new(OFTEN);
    let registry = DockerRegistry::with_login(&place.sandbox);
    let server = Server::start();
    server.registry().push("busybox", "latest", &testkit::busybox());
    registry.fill(&place.sandbox, &server);
    let host = &registry.host;
    place.create("app-task", &format!("FROM {host}/base:1\nCOPY file /app\n"), "");
    let password = crate::pull_through::PASSWORD;
    let login = format!("--login-server {host} -u me -p {password}");
    place.refit(&format!("task credential add -n app-task {login}")).success();
    place.refit("task run app-task").success();
    let watch = place.watched("that it is asked for", |watch| !watch["lastTime"].is_null());
    assert_eq!(watch["error"], Value::Null, "{watch}");
    let other = Image::new([Layer::new().file("file", 0o644, b"another")]);
    server.registry().push("busybox", "latest", &other);
    registry.fill(&place.sandbox, &server);
    place.ended("app-task", 2);
}

#[test]
fn as_root_triggers_that_are_held_lose_no_move() {
    let place = Place::new("");
    let (registry, host) = (place.server.registry(), place.server.host());
    push(&registry, "os", "one");
    push(&registry, "lib", "one");
    place.task("app-task", &format!("FROM {host}/os:1\nCOPY file /app\n"), "");
    place.task("lib-task", &format!("FROM {host}/lib:1\nCOPY file /lib\n"), "");
    place.refit(&format!("trigger pause --base {host}/os:1 --reason broken-release")).success();
    place.refit("trigger pause -n nobody --reason x").code(4);
    place.refit("trigger pause --all --reason x --until 2001-01-01T00:00:00Z").code(2);
    push(&registry, "os", "two");
    push(&registry, "lib", "two");
    place.ended("lib-task", 2);
    let why = place.refit("trigger why app-task").success();
    assert!(
        why.stdout.contains("Waits") && why.stdout.contains("broken-release"),
        "{}",
        why.stdout
    );
    why.stderr_has("/os:1, by ").stderr_has("broken-release");
    assert_eq!(place.runs("app-task").len(), 1);
    let listed = place.refit("trigger pauses -o json").success().json();
    // As any of the names of the registry.
    let base = listed[0]["base"].as_str().unwrap();
    assert!(base.ends_with("/os:1"), "{base}");
    place.refit(&format!("trigger resume --base {base}")).success();
    place.ended("app-task", 2);
    place.refit("trigger resume --all").code(4).stderr_has("a pause of all triggers");
    // One that ends by itself, over a restart.
    place.refit("trigger pause --all --reason freeze --hours 1").success();
    push(&registry, "os", "three");
    let waits = || {
        let events = place.refit("trigger list -n app-task -o tsv").success().stdout;
        events.contains("freeze").then_some(())
    };
    until("that it waits", waits);
    assert_eq!(place.runs("app-task").len(), 2);
    place.refit("trigger resume --all").success();
    place.ended("app-task", 3);
}

#[test]
fn as_root_a_task_on_two_levels_is_built_once_after_the_one_between() {
    let place = Place::new("");
    let (registry, host) = (place.server.registry(), place.server.host());
    push(&registry, "os", "one");
    // By their names the last would come first.
    place.task("middle-task", &format!("FROM {host}/os:1\nCOPY file /middle\n"), "");
    let dockerfile = format!(
        "FROM {host}/os:1 AS tools\nFROM {host}/middle-task:1\nCOPY --from=tools /file /tool\n"
    );
    place.task("app-task", &dockerfile, "--base-image-trigger-type All");
    let simulate = format!("trigger simulate --base {host}/os:1 -o json");
    let foreseen = place.refit(&simulate).success().json();
    let line =
        |line: &Value| [&line["level"], &line["task"], &line["decision"]].map(Value::to_string);
    let lines: Vec<_> = foreseen.as_array().unwrap().iter().map(line).collect();
    assert_eq!(lines, [["1", "\"middle-task\"", "\"Fired\""], ["2", "\"app-task\"", "\"Fired\""]]);
    assert_eq!(place.runs("middle-task").len(), 1);
    place
        .refit("task update app-task -t os:1")
        .code(2)
        .stderr_has("`app-task` -> `middle-task` -> `app-task`");
    for count in 2..4 {
        push(&registry, "os", &count.to_string());
        let middle = place.ended("middle-task", count);
        let app = place.ended("app-task", count);
        let images = app["properties"]["imageUpdateTrigger"]["images"].as_array().unwrap();
        assert_eq!(images.len(), 2, "{images:?}");
        let built = &middle["properties"]["outputImages"][0]["digest"];
        assert!(images.iter().any(|image| image["digest"] == *built), "{images:?}");
    }
    // Nothing follows later.
    place.refit("trigger list -n app-task -o tsv").success();
    assert_eq!((place.runs("app-task").len(), place.runs("middle-task").len()), (3, 3));
}
