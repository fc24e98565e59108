//! `refit agent` and `refit agentpool`: runs that another process executes, in a folder of its own.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::time::Duration;

use oci::Digest;
use rustix::process::Signal;
use serde_json::Value;
use testkit::{Outcome, Running, Sandbox, Server, SshKey, busybox, ssh_image, until, validate};

use crate::pull_through::{DockerRegistry, PASSWORD};
use crate::{identity, sandbox, signatures};

/// A server with a pool, and a place for agents.
pub(crate) struct Pool {
    pub(crate) server: Sandbox,
    agents: Sandbox,
}

impl Pool {
    pub(crate) fn new() -> Self {
        Self { server: sandbox(), agents: sandbox() }
    }

    fn serve(&self, count: u32) -> Server {
        self.serve_with(count, "")
    }

    pub(crate) fn serve_with(&self, count: u32, settings: &str) -> Server {
        self.server.write("refit.toml", settings);
        let settings = self.server.path("refit.toml").display().to_string();
        let server = self.server.server_with(&["--config", &settings]);
        server.registry().push("busybox", "latest", &busybox());
        let count = count.to_string();
        self.refit(&server, ["agentpool", "create", "builders", "--count", &count]).success();
        self.write_token(&server);
        server
    }

    fn write_token(&self, server: &Server) {
        let token = self.refit(server, ["agentpool", "token", "builders"]).success().stdout;
        self.agents.write("token", token);
    }

    pub(crate) fn refit<'a>(
        &self,
        server: &Server,
        args: impl IntoIterator<Item = &'a str>,
    ) -> Outcome {
        self.server.refit(args).on(server).run()
    }

    /// Starts an agent, and waits until the server knows it.
    pub(crate) fn agent(&self, server: &Server, name: &str) -> Running {
        let agent = self.start(server, name);
        until("the agent", || self.agents_there(server).contains(&name.to_owned()).then_some(()));
        agent
    }

    fn start(&self, server: &Server, name: &str) -> Running {
        self.start_with(server, name, "")
    }

    fn start_with(&self, server: &Server, name: &str, build: &str) -> Running {
        let data = self.agents.path(name).display().to_string();
        let settings = format!(
            "[build]\nshell_image = \"{}/busybox\"\nallow_addresses = [\"127.0.0.1\"]\n{build}",
            server.host()
        );
        self.agents.write("agent.toml", settings);
        let args = ["agent", "--server", server.url(), "--token-file", "token", "--name", name];
        let more = ["--data", &data, "--concurrency", "4", "--config", "agent.toml"];
        let args = args.into_iter().chain(more);
        self.agents.refit(args).within(Duration::from_secs(300)).start()
    }

    fn agents_there(&self, server: &Server) -> Vec<String> {
        let shown = self.refit(server, ["agentpool", "show", "builders", "-o", "json"]);
        let agents = shown.success().json()["properties"]["agents"].take();
        let agents = agents.as_array().into_iter().flatten();
        agents.filter_map(|agent| Some(agent["name"].as_str()?.to_owned())).collect()
    }

    fn run(&self, server: &Server, id: &str) -> Value {
        let shown = self.refit(server, ["task", "show-run", "--run-id", id, "-o", "json"]);
        shown.success().json()["properties"].take()
    }

    fn log(&self, server: &Server, id: &str) -> String {
        self.refit(server, ["task", "logs", "--run-id", id]).success().stdout
    }

    /// Queues a build of the folder `app`.
    fn queue(&self, server: &Server) -> String {
        let args = ["build", "app", "-t", "app:1", "--agent-pool", "builders", "--no-wait"];
        self.refit(server, args).success().stdout.trim().to_owned()
    }

    fn write_app(&self, server: &Server, steps: &str) {
        let dockerfile = format!("FROM {}/busybox\nCOPY f /f\n{steps}", server.host());
        self.server.write("app/Dockerfile", dockerfile).write("app/f", "from the context\n");
    }
}

fn stop(agent: Running) -> Outcome {
    agent.signal(Signal::TERM);
    agent.wait()
}

#[test]
fn mistakes_of_agents_are_told_at_once() {
    let sandbox = sandbox();
    let refused =
        |args: &[&str], code| sandbox.refit(["agent"].iter().chain(args).copied()).run().code(code);
    refused(&[], 2).stderr_has("an agent needs a server").stderr_has("REFIT_SERVER");
    let server = ["--server", "http://127.0.0.1:9"];
    refused(&server, 2).stderr_has("an agent needs the token").stderr_has("REFIT_AGENT_TOKEN");
    let in_the_clear = ["--server", "http://203.0.113.1:9"];
    refused(&in_the_clear, 2).stderr_has("in the clear").stderr_has("--allow-http");
    let missing = [&server[..], &["--token-file", "missing"]].concat();
    refused(&missing, 2).stderr_has("cannot read `missing`");
    sandbox.write("token", "nonsense\n");
    let data = sandbox.path("agent").display().to_string();
    let nonsense = [&server[..], &["--token-file", "token", "--data", &data]].concat();
    refused(&nonsense, 1).stderr_has("could not read the token of the agent pool");
    refused(&["--concurrency", "0"], 2).stderr_has("0 is not in 1..=1000");
}

#[test]
fn pools_are_made_changed_listed_and_deleted() {
    let sandbox = sandbox();
    let server = sandbox.server();
    let pool =
        |args: &[&str]| sandbox.refit(["agentpool"].iter().chain(args).copied()).on(&server).run();
    // As `az acr` has it, too.
    pool(&["create", "--name", "arm", "--tier", "s1", "--count", "2", "--no-wait"]).success();
    pool(&["create", "arm"]).code(5).stderr_has("agent pool `arm` is there already");
    pool(&["create", "a_b"]).code(2).stderr_has("`a_b` cannot name an agent pool");
    pool(&["create", "big", "--tier", "XL"]).code(2).stderr_has("`XL` is not a tier");
    pool(&["update", "-n", "ARM", "--count", "0"]).success();
    let shown = pool(&["show", "arm", "-o", "json"]).success().json();
    let properties = &shown["properties"];
    assert_eq!((&properties["count"], &properties["tier"]), (&0.into(), &"S1".into()));
    assert_eq!((&properties["os"], &shown["name"]), (&"Linux".into(), &"arm".into()));

    // What waits for it says so, and ends with it.
    let args = ["run", "--cmd", "busybox true", "/dev/null", "--agent-pool", "arm", "--no-wait"];
    let id = sandbox.refit(args).on(&server).run().success().stdout.trim().to_owned();
    let count = pool(&["show", "arm", "--queue-count"]).success().stdout;
    assert_eq!(count.trim(), "1");
    let show = ["task", "show-run", "--run-id", &id, "-o", "json"];
    let shown = sandbox.refit(show).on(&server).run().success().stdout;
    assert!(shown.contains("agent pool `arm` has a count of 0"), "{shown}");
    let listed = sandbox.refit(["task", "list-runs", "-o", "json"]).on(&server).run().success();
    let waiting = &listed.json()[0]["properties"]["waiting"];
    let reason = "agent pool `arm` has a count of 0, so that no run of it begins";
    assert_eq!((&waiting["reason"], &waiting["position"]), (&reason.into(), &1.into()));
    let table = sandbox.refit(["task", "list-runs"]).on(&server).run().success().stdout;
    assert!(table.contains("Queued (1st)"), "{table}");
    let missing = ["run", "--cmd", "busybox true", "/dev/null", "--agent-pool", "other"];
    sandbox.refit(missing).on(&server).run().code(4).stderr_has("agent pool `other` not found");
    let missing = ["task", "create", "nightly", "--cmd", "busybox true", "--agent-pool", "other"];
    sandbox.refit(missing).on(&server).run().code(2).stderr_has("there is no agent pool `other`");

    let first = pool(&["token", "arm"]).success().stdout;
    assert_eq!(first, pool(&["token", "arm"]).success().stdout);
    assert_ne!(first, pool(&["token", "arm", "--renew"]).success().stdout);
    pool(&["delete", "arm"]).code(2).stderr_has("nobody is there to ask");
    pool(&["delete", "arm", "--yes"]).success();
    pool(&["show", "arm"]).code(4).stderr_has("agent pool `arm` not found");
    let ended = sandbox.refit(show).on(&server).run().json();
    assert_eq!(ended["properties"]["status"], "Error");
    assert_eq!(ended["properties"]["runErrorMessage"], "its agent pool was deleted");
}

#[test]
fn as_root_an_agent_builds_and_the_server_has_the_image() {
    let pool = Pool::new();
    let server = pool.serve(2);
    let agent = pool.agent(&server, "one");
    pool.write_app(&server, "RUN echo $((6 * 7)) > /made && cat /f\n");
    let args = ["build", "app", "-t", "app:1", "-t", "team/app:{{.Run.ID}}"];
    let built = pool.refit(&server, args.into_iter().chain(["--agent-pool", "builders"]));
    let built = built.success().stderr_has("from the context").stderr_has("Queued a build");
    assert!(built.stdout.starts_with("app@sha256:"), "{}", built.stdout);
    let image = validate(&server.registry(), "app", "1");
    assert_eq!(
        (image.text("made").as_str(), image.text("f").as_str()),
        ("42\n", "from the context\n")
    );
    let run = pool.run(&server, "c01");
    assert_eq!((&run["agentPoolName"], &run["agentName"]), (&"builders".into(), &"one".into()));
    assert_eq!(run["outputImages"][1]["repository"], "team/app");
    assert_eq!(run["dependencies"][0]["runtime-dependency"]["repository"], "busybox");

    // What is there already is not sent or done again.
    let again = pool.refit(&server, args.into_iter().chain(["--agent-pool", "builders"]));
    again.success().stderr_has("CACHED");
    // Without a name the image is kept for a day all the same.
    let args = ["build", "app", "--agent-pool", "builders", "--output", "type=local,dest=out"];
    pool.refit(&server, args).success();
    assert_eq!(fs::read_to_string(pool.server.path("out/made")).unwrap(), "42\n");

    // The server's folder is none of the agent's business, nor the other way.
    assert!(!pool.server.data().join("snapshots/mounts/x").exists());
    stop(agent).success().stderr_has("stopping");
    until("the agent's absence", || {
        let waits = ["build", "app", "--agent-pool", "builders", "--no-wait"];
        let id = pool.refit(&server, waits).success().stdout.trim().to_owned();
        let reason = pool.run(&server, &id)["waiting"]["reason"].take();
        pool.refit(&server, ["task", "cancel-run", "--run-id", &id]).success();
        (reason == "no agent of agent pool `builders` is free").then_some(())
    });
}

#[test]
fn as_root_an_agent_carries_out_the_steps_of_a_task() {
    let pool = Pool::new();
    let server = pool.serve(2);
    let _agent = pool.agent(&server, "one");
    pool.write_app(&server, "RUN --mount=type=secret,id=none cat /f\n");
    let host = server.host();
    let task = format!(
        "version: v1.1.0\n\
         steps:\n\
         - id: service\n  cmd: {host}/busybox busybox nc -ll -p 80 -e echo served\n  detach: true\n  when: [\"-\"]\n\
         - id: build\n  build: -t {{{{.Run.Registry}}}}/app:{{{{.Run.ID}}}} .\n  when: [\"-\"]\n\
         - id: test\n  cmd: \"{{{{.Run.Registry}}}}/app:{{{{.Run.ID}}}} sh -c 'until busybox nc service 80; do sleep 0.1; done; \
           echo {{{{.Values.password}}}}; seq 1 3000'\"\n  when: [service, build]\n\
         - id: push\n  push: [\"{{{{.Run.Registry}}}}/app:{{{{.Run.ID}}}}\"]\n\
         - id: shell\n  cmd: |\n    {host}/busybox echo in the shell | tr a-z A-Z\n    \
           docker tag $Registry/app:$ID $Registry/app:shell && docker push $Registry/app:shell\n\
         - id: list\n  cmd: acr tag list -r {{{{.Run.RegistryName}}}} --repository app\n\
         - id: bad\n  cmd: acr purge --filter 'app:[' --ago 0d\n  ignoreErrors: true\n"
    );
    pool.server.write("app/acb.yaml", task);
    let args =
        ["run", "app", "--set-secret", "password=hunter22hunter", "--agent-pool", "builders"];
    let ran = pool.refit(&server, args).success();
    assert!(!ran.stderr.contains("hunter22"), "{}", ran.stderr);
    let log = pool.log(&server, "c01");
    assert!(log.contains("served") && log.contains("***"), "{log}");
    let numbers: Vec<u32> = log.lines().filter_map(|line| line.trim().parse().ok()).collect();
    assert_eq!(numbers, (1..=3000).collect::<Vec<_>>());
    let listed = format!("\n{host}/app:c01").replace("127.0.0.1", "localhost");
    assert!(log.replace("\r\n", "\n").contains(&listed), "{log}");
    validate(&server.registry(), "app", "c01");
    let run = pool.run(&server, "c01");
    assert!(log.contains("IN THE SHELL"), "{log}");
    validate(&server.registry(), "app", "shell");
    assert_eq!(run["cost"]["steps"].as_array().unwrap().len(), 7);
    assert_eq!(run["outputImages"][0]["tag"], "c01");
}

#[test]
fn as_root_a_build_step_of_an_agent_has_ssh_keys() {
    let pool = Pool::new();
    let server = pool.serve(1);
    server.registry().push("ssh", "latest", &ssh_image());
    let key = SshKey::new(&pool.server, "key", "");
    // Whoever runs the client is to read it.
    let owner = fs::metadata(pool.server.path("")).expect("the sandbox is there");
    chown(&key.file, Some(owner.uid()), Some(owner.gid())).expect("it may go");
    let file = key.file.display().to_string();
    pool.refit(&server, ["secret", "set", "key", "--file", &file, "--all-runs"]).success();
    let _agent = pool.agent(&server, "one");
    let task = "version: v1.1.0\nsecrets: [{id: it, keyvault: 'store://key'}]\n\
                volumes: [{name: keys, secret: {key: '{{b64enc .Secrets.it}}'}}]\nsteps:\n\
                - build: -t $Registry/app --network none --ssh default=/keys/key .\n  \
                volumeMounts: [{name: keys, mountPath: /keys}]\n\
                - push: [$Registry/app]\n";
    let dockerfile = "RUN --mount=type=ssh,required ssh-add -L > /keys\n";
    let dockerfile = format!("FROM {}/ssh\n{dockerfile}", server.host());
    pool.server.write("app/acb.yaml", task).write("app/Dockerfile", dockerfile);
    pool.refit(&server, ["run", "app", "--agent-pool", "builders"]).success();
    assert_eq!(validate(&server.registry(), "app", "latest").text("keys"), key.public);

    // The client's agent is at the server.
    let flag = format!("default={file}");
    let refused = pool.refit(&server, ["build", "app", "--ssh", &flag, "--agent-pool", "builders"]);
    let refused = refused.code(2).stderr_has("an agent cannot reach the ssh agents of a client");
    refused.stderr_has("in a `build` step of a task");
}

#[test]
fn as_root_an_agent_asks_for_signatures_as_its_own_settings_say() {
    let pool = Pool::new();
    let Some(()) = signatures::make_key(&pool.agents, "acme") else { return };
    let server = pool.serve(1);
    let registry = server.registry();
    let key = pool.agents.path("acme.pub").display().to_string();
    let images =
        format!("images = [\"registry signed-by acme\"]\n[image_key.acme]\nfile = {key:?}\n");
    let agent = pool.start_with(&server, "one", &images);
    pool.write_app(&server, "");
    let build = || pool.refit(&server, ["build", "app", "--agent-pool", "builders"]);
    build().code(1).stderr_has("/busybox` is not signed by `acme`").stderr_has("no signature");
    let base = Digest::of(&registry.manifest("busybox", "latest").0);
    signatures::sign(&pool.agents, "acme", &registry, ("busybox", &base), &base)
        .expect("openssl signs");
    build().success();
    stop(agent).success();
}

#[test]
fn as_root_an_agent_asks_the_server_for_secrets() {
    let pool = Pool::new();
    let server = pool.serve(1);
    let _agent = pool.agent(&server, "one");
    let set = ["secret", "set", "npm-token", "--all-runs"];
    pool.server.refit(set).on(&server).stdin("hunter2-of-npm").run().success();
    let task = |name: &str| {
        format!(
            "version: v1.1.0\nsecrets: [{{id: it, keyvault: 'store://{name}'}}]\nsteps:\n  \
             - cmd: $Registry/busybox sh -c 'echo {{{{.Secrets.it}}}} | rev; echo {{{{.Secrets.it}}}}'\n"
        )
    };
    let run = |name: &str| {
        pool.server.write("app/acb.yaml", task(name));
        pool.refit(&server, ["run", "app", "--agent-pool", "builders"])
    };
    run("npm-token").success().stderr_has("mpn-fo-2retnuh").stderr_lacks("hunter2");
    run("none").code(1).stderr_has("the registry has no secret `none`");
}

#[test]
fn as_root_an_agent_asks_the_server_for_tokens_of_identities() {
    let pool = Pool::new();
    let server = pool.serve_with(1, identity::SETTINGS);
    let _agent = pool.agent(&server, "one");
    let print = "wget -q -O - --header Metadata:true \"$$MSI_ENDPOINT?resource=y\"";
    let task = format!(
        "version: v1.1.0\nsteps:\n  - cmd: $Registry/busybox sh -c '{}'\n  \
         - cmd: $Registry/busybox sh -c '{print}'\n",
        identity::asking("resource=x")
    );
    pool.server.write("acb.yaml", task);
    let file = pool.server.path("acb.yaml").display().to_string();
    let create = ["task", "create", "nightly", "-c", "/dev/null", "-f", &file];
    let create = create.into_iter().chain(["--agent-pool", "builders", "--assign-identity"]);
    pool.refit(&server, create).success();
    let done = pool.refit(&server, ["task", "run", "nightly"]).success();
    done.stderr_has("\"sub\":\"registry:local:task:nightly\"")
        .stderr_has("\"access_token\":\"***\"");
}

#[test]
fn as_root_an_agent_uses_the_logins_of_a_task() {
    let pool = Pool::new();
    let server = pool.serve(1);
    let other = DockerRegistry::with_login(&pool.server);
    other.fill(&pool.server, &server);
    let task = "steps: [{cmd: 'OTHER/base:1 cat /acb/home/.docker/config.json'}]";
    pool.server.write("acb.yaml", task.replace("OTHER", &other.host));
    let file = pool.server.path("acb.yaml").display().to_string();
    let create = ["task", "create", "nightly", "-c", "/dev/null", "-f", &file];
    let create = create.into_iter().chain(["--agent-pool", "builders"]);
    pool.refit(&server, create).success();
    let agent = pool.agent(&server, "one");
    let run = ["task", "run", "nightly"];
    pool.refit(&server, run).code(1).stderr_has("refuses access to");
    let add = ["task", "credential", "add", "nightly", "--login-server", &other.host];
    let add = add.into_iter().chain(["-u", "me", "--password-stdin"]);
    pool.server.refit(add).on(&server).stdin(PASSWORD).run().success();
    let done = pool.refit(&server, run).success().stderr_has("\"auth\": \"");
    assert!(!done.stderr.contains(PASSWORD), "{}", done.stderr);
    // Without a login of its own it can use its own registry no more than on the server.
    pool.server.write("app/Dockerfile", "FROM scratch\nLABEL a=b\n");
    let args = ["build", "app", "-t", "a:1", "--auth-mode", "None", "--agent-pool", "builders"];
    pool.refit(&server, args).code(1).stderr_has("not logged in to its own registry");
    stop(agent).success();
}

#[test]
fn as_root_a_cancel_reaches_an_agent_at_once() {
    let pool = Pool::new();
    let server = pool.serve(1);
    let _agent = pool.agent(&server, "one");
    pool.write_app(&server, "RUN sleep 600\n");
    let args = ["build", "app", "--agent-pool", "builders"];
    let building = pool.server.refit(args).on(&server).start();
    building.wait_for_stderr("RUN sleep 600");
    let begun = std::time::Instant::now();
    building.interrupt();
    building.wait().code(130).stderr_has("was canceled");
    // Leases are renewed every ten seconds, which would do, but late.
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    assert_eq!(pool.run(&server, "c01")["status"], "Canceled");
}

#[test]
fn as_root_a_run_goes_on_while_its_server_is_away() {
    let pool = Pool::new();
    let server = pool.serve(1);
    let _agent = pool.agent(&server, "one");
    pool.write_app(&server, "RUN for i in $(seq 1 40); do echo line $i of 40; sleep 0.1; done\n");
    let id = pool.queue(&server);
    until("the first lines", || {
        let shown = pool.refit(&server, ["task", "logs", "--run-id", &id, "--no-follow"]);
        shown.stdout.contains("line 5 of 40").then_some(())
    });
    let listen = server.host();
    server.kill();
    std::thread::sleep(Duration::from_secs(1));
    let server = pool.server.server_with(&["--listen", &listen]);
    let log = pool.log(&server, &id);
    let lines: Vec<&str> =
        log.lines().map(str::trim).filter(|line| line.starts_with("line ")).collect();
    let expected: Vec<String> = (1..=40).map(|number| format!("line {number} of 40")).collect();
    assert_eq!(lines, expected, "{log}");
    let run = pool.run(&server, &id);
    assert_eq!((&run["status"], &run["cost"]["attempts"]), (&"Succeeded".into(), &1.into()));
    validate(&server.registry(), "app", "1");
}

#[test]
fn as_root_what_a_killed_agent_had_another_one_does() {
    let pool = Pool::new();
    let server = pool.serve(1);
    let first = pool.agent(&server, "first");
    pool.write_app(&server, "RUN sleep 5; echo made > /made\n");
    let id = pool.queue(&server);
    until("the step", || pool.run(&server, &id)["status"].eq("Running").then_some(()));
    first.signal(Signal::KILL);
    drop(first);
    let _second = pool.agent(&server, "second");
    // As long as the lease of the first one, a minute, and what the build takes.
    let args = ["task", "logs", "--run-id", &id];
    let log = pool.server.refit(args).on(&server).within(Duration::from_secs(180)).run();
    let log = log.success().stdout;
    assert!(
        log.contains("its agent stopped while this run was under way; attempt 2 of 3"),
        "{log}"
    );
    let run = pool.run(&server, &id);
    assert_eq!((&run["status"], &run["agentName"]), (&"Succeeded".into(), &"second".into()));
    assert_eq!(validate(&server.registry(), "app", "1").text("made"), "made\n");
}

#[test]
fn as_root_a_build_goes_to_the_agent_that_has_its_snapshots_and_does_not_wait_for_it() {
    let pool = Pool::new();
    let server = pool.serve(2);
    let first = pool.agent(&server, "first");
    pool.write_app(&server, "RUN echo made > /made\n");
    let args = ["build", "app", "-t", "app:1", "--agent-pool", "builders"];
    let build = || pool.refit(&server, args).success();
    build();
    let second = pool.agent(&server, "second");
    for run in 2..8 {
        build().stderr_has("CACHED");
        assert_eq!(pool.run(&server, &format!("c0{run}"))["agentName"], "first");
    }
    // One that is away, or busy, is nobody to wait for.
    stop(first).success();
    build();
    assert_eq!(pool.run(&server, "c08")["agentName"], "second");
    build().stderr_has("CACHED");
    stop(second).success();
}

#[test]
fn as_root_an_agent_that_stops_gives_its_run_back() {
    let pool = Pool::new();
    pool.agents.write("refit.toml", "[server]\nshutdown_grace = \"0s\"\n");
    let server = pool.serve(1);
    let config = pool.agents.path("refit.toml").display().to_string();
    let data = pool.agents.path("hasty").display().to_string();
    let args = ["agent", "--server", server.url(), "--token-file", "token", "--name", "hasty"];
    let args = args.into_iter().chain(["--data", &data, "--config", &config]);
    let hasty = pool.agents.refit(args).start();
    pool.write_app(&server, "RUN sleep 3; echo made > /made\n");
    let id = pool.queue(&server);
    until("the step", || pool.run(&server, &id)["status"].eq("Running").then_some(()));
    stop(hasty).success();
    let _patient = pool.agent(&server, "patient");
    let log = pool.log(&server, &id);
    assert!(log.contains("the agent stops; the run begins again with the next one"), "{log}");
    let run = pool.run(&server, &id);
    assert_eq!((&run["status"], &run["cost"]["attempts"]), (&"Succeeded".into(), &1.into()));
}

#[test]
fn as_root_who_has_an_old_token_is_shut_out() {
    let pool = Pool::new();
    let server = pool.serve(1);
    pool.refit(&server, ["agentpool", "token", "builders", "--renew"]).success();
    let agent = pool.start(&server, "late");
    agent.wait_for_stderr("this is not the token of the agent pool");
    assert!(pool.agents_there(&server).is_empty());
    stop(agent).success();
    // Nor does it open anything else.
    let token = fs::read_to_string(pool.agents.path("token")).unwrap();
    let listed = pool.server.refit(["task", "list-runs", "--server", server.url()]);
    listed.env("REFIT_TOKEN", token.trim()).run().code(3).stderr_has("not valid");
}
