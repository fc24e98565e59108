//! Runs log in to registries: their own one, and others that want a user and a password.

use base64::Engine as _;
use testkit::{GitHost, Outcome, Sandbox, Server, busybox, until};

use crate::output::tool;
use crate::pull_through::{DockerRegistry, PASSWORD};
use crate::sandbox;

/// The agent shell's image has a name that the server has before it knows its port.
const SHELL: &str = "[registry.local]\naliases = [\"shell.test\"]\n\
                     [build]\nshell_image = \"shell.test/busybox\"\n";

/// A server, and another registry that its operator knows, with a base image in it.
struct Pair {
    sandbox: Sandbox,
    server: Server,
    other: DockerRegistry,
}

impl Pair {
    fn start() -> Self {
        Self::start_with("")
    }

    /// With settings for builds.
    fn start_with(build: &str) -> Self {
        let sandbox = sandbox();
        let other = DockerRegistry::with_login(&sandbox);
        let declared = format!("[upstream.\"{}\"]\nplain_http = true\n{build}", other.host);
        sandbox.write("settings.toml", declared);
        let server = sandbox.server_with(&["--config", "settings.toml"]);
        server.registry().push("busybox", "latest", &busybox());
        let pair = Self { sandbox, server, other };
        pair.other.fill(&pair.sandbox, &pair.server);
        pair
    }

    /// An image of the other registry, as skopeo names it.
    fn address(&self, image: &str) -> String {
        format!("docker://{}/{image}", self.other.host)
    }

    fn task(&self, args: &[&str]) -> Outcome {
        let args = ["task"].into_iter().chain(args.iter().copied());
        self.sandbox.refit(args).on(&self.server).run()
    }

    /// Stores a task file. `OTHER` in it is the other registry.
    fn store(&self, task: &str) {
        self.sandbox.write("acb.yaml", task.replace("OTHER", &self.other.host));
        let file = self.sandbox.path("acb.yaml").display().to_string();
        self.task(&["create", "nightly", "--context", "/dev/null", "--file", &file]).success();
    }

    fn log_in(&self, verb: &str, password: &str) -> Outcome {
        let args = ["task", "credential", verb, "nightly", "--login-server", &self.other.host];
        let args = args.into_iter().chain(["--username", "me", "--password-stdin"]);
        self.sandbox.refit(args).on(&self.server).stdin(password).run()
    }

    /// The tags of a repository of the other registry.
    fn tags(&self, repository: &str) -> Vec<String> {
        let (login, address) = (format!("me:{PASSWORD}"), self.address(repository));
        let args = ["list-tags", "--tls-verify=false", "--creds", &login, &address];
        let listed = tool(&self.sandbox, "skopeo", &args).expect("skopeo is installed");
        let listed: serde_json::Value = serde_json::from_str(&listed).expect("it prints JSON");
        let mut tags: Vec<String> = serde_json::from_value(listed["Tags"].clone()).expect("texts");
        tags.sort();
        tags
    }
}

const BUILD_AND_PUSH: &str = "version: v1.1.0
steps:
  - cmd: $Registry/busybox sh -c \"printf 'FROM OTHER/base:1\\nLABEL a=b\\n' > Dockerfile\"
  - build: -t OTHER/app:1 -t $Registry/app:1 .
  - push: ['OTHER/app:1', '$Registry/app:1']
  - cmd: $Registry/busybox cat /acb/home/.docker/config.json
  - cmd: OTHER/app:1 echo runs
";

#[test]
fn as_root_a_task_pulls_and_pushes_with_its_own_login() {
    let pair = Pair::start();
    pair.store(BUILD_AND_PUSH);
    let refused = pair.task(&["run", "nightly"]).code(1);
    refused.stderr_has("refuses access to `").stderr_has("base:1`");
    let listed = pair.log_in("add", PASSWORD).success();
    assert!(listed.stdout.contains(&pair.other.host) && listed.stdout.contains("me"));
    pair.log_in("add", PASSWORD).code(5).stderr_has("has a login to");
    let done = pair.task(&["run", "nightly"]).success();
    // A step has shown the login as docker keeps it.
    let done = done
        .stderr_has(&format!("Logging in to registry: {}", pair.other.host))
        .stderr_has("runs\n")
        .stderr_has("\"auth\": \"");
    let encoded = base64::prelude::BASE64_STANDARD.encode(format!("me:{PASSWORD}"));
    for secret in [PASSWORD, &encoded, &encoded[4..20]] {
        assert!(!done.stderr.contains(secret), "{}", done.stderr);
    }
    assert_eq!(pair.tags("app"), ["1"]);
    let shown = pair.task(&["show", "nightly", "-o", "json"]).success();
    assert!(!shown.stdout.contains(PASSWORD) && !shown.stdout.contains(&encoded));
    let runs = pair.task(&["list-runs", "-o", "json"]).success();
    let last = &runs.json()[0]["properties"];
    assert_eq!(last["customRegistries"][0], pair.other.host.as_str());
    assert_eq!(last["sourceRegistryAuth"], "Default");
    // What is not given stays; what is removed is gone.
    pair.task(&["update", "nightly", "--owner", "us"]).success();
    let server = ["--login-server", &*pair.other.host, "--username", "nobody"];
    let renamed = [&["credential", "update", "nightly"][..], &server].concat();
    pair.task(&renamed).success();
    pair.task(&["run", "nightly"]).code(1).stderr_has("could not log in");
    let named = [&["credential", "update", "nightly"][..], &server[..2], &["-u", "me"]].concat();
    let listed = pair.task(&named).success();
    assert!(!listed.stdout.contains("nobody"), "{}", listed.stdout);
    let own = pair.server.host();
    let own = ["credential", "add", "nightly", "--login-server", &*own, "-u", "a", "-p", "b"];
    pair.task(&own).code(2).stderr_has("is a registry of this server");
    let shown = pair.task(&["show", "nightly", "-o", "json"]).success().stdout;
    assert!(!shown.contains("\"me\""), "{shown}");
    pair.task(&["run", "nightly"]).success();
    let remove = ["credential", "remove", "nightly", "--login-server", &pair.other.host];
    pair.task(&remove).success();
    pair.task(&remove).code(4);
    pair.task(&["run", "nightly"]).code(1);
}

#[test]
fn as_root_f26_a_login_that_fails_ends_the_run_before_its_steps() {
    let pair = Pair::start();
    pair.store("steps: [{cmd: '{{.Run.Registry}}/busybox echo begun'}]");
    pair.log_in("add", "wrong-wrong").success();
    let failed = pair.task(&["run", "nightly"]).code(1);
    let failed = failed.stderr_has(&format!("could not log in to `{}`", pair.other.host));
    assert_eq!(failed.stderr.matches("is tried again").count(), 3, "{}", failed.stderr);
    assert!(!failed.stderr.contains("Executing step"), "{}", failed.stderr);
    let place = |text: &str| failed.stderr.find(text).expect(text);
    assert!(place("Creating network: ") < place("Logging in to registry: "));
    pair.log_in("update", PASSWORD).success();
    pair.task(&["run", "nightly"]).success().stderr_has("begun\n");
}

#[test]
fn as_root_docker_login_of_a_step_is_for_the_steps_after_it() {
    // A login that a step makes is no reason to push where the operator has a say.
    let refused = Pair::start_with(SHELL);
    refused.sandbox.write(
        "app/acb.yaml",
        "version: v1.1.0
alias: {values: {sh: '{{.Run.Registry}}/busybox'}}
steps:
  - cmd: $sh sh -c \"printf 'FROM scratch\\nLABEL a=b\\n' > Dockerfile\"
  - cmd: $sh echo x | docker login -u me --password-stdin OTHER
  - {build: -t OTHER/app:1 .}
  - {push: ['OTHER/app:1']}
"
        .replace("OTHER", &refused.other.host),
    );
    let run = refused.sandbox.refit(["run", "app"]).on(&refused.server).run();
    run.code(1).stderr_has("does not let runs push").stderr_has("`refit task credential add`");

    let pair = Pair::start_with(&format!("push = true\n{SHELL}"));
    let task = "version: v1.1.0
alias: {values: {sh: '{{.Run.Registry}}/busybox'}}
steps:
  - cmd: $sh sh -c \"printf 'FROM OTHER/base:1\\nLABEL a=b\\n' > Dockerfile\"
  - cmd: $sh echo {{.Values.pw}} | docker login -u me --password-stdin OTHER
  - {build: -t OTHER/app:2 .}
  - {push: ['OTHER/app:2']}
  - cmd: $sh true && docker tag OTHER/app:2 OTHER/app:3 && docker push OTHER/app:3
  - cmd: $sh true && docker logout OTHER && docker tag OTHER/app:2 OTHER/app:4
  - {push: ['OTHER/app:4'], ignoreErrors: true}
";
    pair.sandbox.write("app/acb.yaml", task.replace("OTHER", &pair.other.host));
    let secret = format!("pw={PASSWORD}");
    let args = ["run", "app", "--set-secret", &secret];
    let done = pair.sandbox.refit(args).on(&pair.server).run().success();
    assert!(!done.stderr.contains(PASSWORD), "{}", done.stderr);
    assert_eq!(pair.tags("app"), ["2", "3"]);
    let last = done.stderr_has("(ignored)");
    last.stderr_has("refuses access to `");
}

#[test]
fn as_root_a_stored_build_pushes_where_its_task_is_logged_in() {
    let pair = Pair::start_with("[build]\nallow_addresses = [\"127.0.0.1\"]\n");
    let git = GitHost::start();
    let repository = git.repository("r");
    repository.write("Dockerfile", format!("FROM {}/base:1\nLABEL c=d\n", pair.other.host));
    repository.commit("one");
    let (context, image) = (format!("{}/r.git", git.url()), format!("{}/app:4", pair.other.host));
    let create =
        ["create", "nightly", "-c", &context, "-f", "Dockerfile", "-t", &image, "-t", "app:4"];
    pair.task(&create).success();
    let refused = pair.task(&["run", "nightly"]).code(1);
    refused.stderr_has("which the run is not logged in to");
    pair.log_in("add", PASSWORD).success();
    pair.task(&["run", "nightly"]).success();
    assert_eq!(pair.tags("app"), ["4"]);
    testkit::validate(&pair.server.registry(), "app", "4");
    let runs = pair.task(&["list-runs", "-o", "json"]).success().json();
    let images = runs[0]["properties"]["outputImages"].as_array().unwrap().clone();
    let registries: Vec<_> = images.iter().map(|image| image["registry"].clone()).collect();
    assert!(registries.contains(&pair.other.host.as_str().into()), "{registries:?}");
}

#[test]
fn as_root_j19_a_run_without_login_cannot_use_its_own_registry() {
    let sandbox = sandbox();
    let server = sandbox.server();
    server.registry().push("busybox", "latest", &busybox());
    let run = |task: &str| {
        sandbox.write("app/acb.yaml", task);
        sandbox.refit(["run", "app", "--auth-mode", "None"]).on(&server).run()
    };
    sandbox.write("app/Dockerfile", "FROM scratch\nLABEL a=b\n");
    let pushed = run("version: v1.1.0\nsteps: [{build: -t $Registry/a .}, {push: [$Registry/a]}]");
    pushed.code(1).stderr_has("the run is not logged in to its own registry");
    let purged = run("version: v1.1.0\nsteps: [{cmd: acr purge --filter 'a:.*' --ago 0d}]");
    purged.code(1).stderr_has("the run is not logged in to its own registry");
    let pulled = run("steps: [{cmd: '{{.Run.Registry}}/busybox true'}]");
    pulled.code(1).stderr_has("the run is not logged in to its own registry");
    // Nor by another name of this machine.
    let other = format!("127.0.0.2:{}", server.host().rsplit_once(':').unwrap().1);
    let pulled = run(&format!("steps: [{{cmd: '{other}/busybox true'}}]"));
    pulled.code(1).stderr_has("the run is not logged in to its own registry");
    let args = ["build", "app", "-t", "a:1", "--auth-mode", "none"];
    let built = sandbox.refit(args).on(&server).run();
    built.code(1).stderr_has("the run is not logged in to its own registry");
    sandbox.refit(["repository", "show-tags", "a"]).on(&server).run().code(4);
    let args = ["build", "app", "-t", "a:1", "--auth-mode", "Default"];
    sandbox.refit(args).on(&server).run().success();
}

#[test]
fn as_root_the_token_of_a_run_is_for_its_registry_and_ends_with_it() {
    let sandbox = sandbox();
    let server = sandbox.server();
    server.registry().push("busybox", "latest", &busybox());
    // As it is it would be hidden.
    let task = "steps:
  - cmd: >-
      {{.Run.Registry}}/busybox sh -c
      \"sed 's/./& /g' /acb/home/.docker/config.json; while sleep 1; do :; done\"
";
    sandbox.write("app/acb.yaml", task);
    let queued = sandbox.refit(["run", "app", "--no-wait"]).on(&server).run().success();
    let id = queued.stdout.trim().to_owned();
    let login = until("the login of the run", || {
        let args = ["task", "logs", "--run-id", &id, "--no-follow"];
        let log = sandbox.refit(args).on(&server).run().success().stdout.replace(' ', "");
        let auth = log.split("\"auth\":\"").nth(1)?.split('"').next()?.to_owned();
        Some(base64::prelude::BASE64_STANDARD.decode(auth).expect("it is Base64"))
    });
    let login = String::from_utf8(login).expect("it is text");
    let status = |path: &str| {
        let url = format!("{}{path}", server.url());
        let args = ["-s", "-o", "answer", "-w", "%{http_code}", "-u", &login, &url];
        tool(&sandbox, "curl", &args).expect("curl is installed")
    };
    assert_eq!(status("/v2/busybox/manifests/latest"), "200");
    assert_eq!(status("/api/v1/registries/local/runs"), "401");
    sandbox.refit(["task", "cancel-run", "--run-id", &id]).on(&server).run().success();
    until("the end of the token", || {
        (status("/v2/busybox/manifests/latest") == "403").then_some(())
    });
}
