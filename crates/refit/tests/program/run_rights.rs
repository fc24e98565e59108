//! What runs may do in a registry that asks for their identity.

use base64::Engine as _;
use serde_json::{Value, json};
use testkit::{Outcome, Sandbox, Server, busybox, until};

use crate::agents::Pool;
use crate::output::tool;
use crate::outputs::with_artifact;
use crate::sandbox;

const PASSWORD: &str = "a-password-of-somebody";

/// A step that tells the login of its run, which as it is would be hidden, and goes on.
const SHOW_LOGIN: &str = "  - cmd: >-\n      $Registry/team/busybox sh -c\n      \
    \"sed 's/./& /g' /acb/home/.docker/config.json; while sleep 1; do :; done\"\n";

struct Place {
    sandbox: Sandbox,
    server: Server,
}

const SETTINGS: &str = "[registry.local]\nruns_by_identity = true\n";

impl Place {
    fn new() -> Self {
        Self::with(SETTINGS)
    }

    fn with(settings: &str) -> Self {
        let sandbox = sandbox();
        sandbox.write("refit.toml", settings);
        let settings = sandbox.path("refit.toml").display().to_string();
        let server = sandbox.server_with(&["--config", &settings]);
        for repository in ["team/busybox", "other/busybox"] {
            server.registry().push(repository, "latest", &busybox());
        }
        sandbox.write("app/Dockerfile", "FROM scratch\nLABEL a=b\n");
        Self { sandbox, server }
    }

    fn refit(&self, words: &str) -> Outcome {
        self.sandbox.refit(words.split(' ')).on(&self.server).run()
    }

    /// Runs a stored task that has this text now.
    fn task(&self, steps: &str) -> Outcome {
        self.sandbox.write("acb.yaml", format!("version: v1.1.0\nsteps:\n{steps}"));
        let file = self.sandbox.path("acb.yaml").display().to_string();
        self.refit(&format!("task update nightly -f {file}")).success();
        self.refit("task run nightly")
    }

    /// A stored task, which is nobody in its registry.
    fn store(&self) {
        self.sandbox.write("acb.yaml", "steps: [{cmd: 'x'}]");
        let file = self.sandbox.path("acb.yaml").display().to_string();
        self.refit(&format!("task create nightly -c /dev/null -f {file}")).success();
    }

    /// A stored task that is itself in its registry.
    fn store_with_identity(&self) {
        self.store();
        self.refit("task identity assign nightly").success();
        self.refit("task update nightly --source-acr-auth-id [system]").success();
    }

    /// The login that the steps of a run have, once one of them has [shown](SHOW_LOGIN) it.
    fn login_of(&self, run: &str) -> String {
        let login = until("the login of the run", || {
            let args = format!("task logs --run-id {run} --no-follow");
            let log = self.refit(&args).success().stdout.replace(' ', "");
            let auth = log.split("\"auth\":\"").nth(1)?.split('"').next()?.to_owned();
            Some(base64::prelude::BASE64_STANDARD.decode(auth).expect("it is Base64"))
        });
        String::from_utf8(login).expect("it is text")
    }

    /// How the registry answers somebody.
    fn status(&self, login: &str, method: &str, path: &str) -> String {
        let url = format!("{}{path}", self.server.url());
        let args = ["-s", "-o", "answer", "-w", "%{http_code}", "-X", method, "-u", login, &url];
        tool(&self.sandbox, "curl", &args).expect("curl is installed")
    }

    fn create_account(&self, name: &str, role: &str) {
        let create = ["account", "create", name, "--role", role, "--password-stdin"];
        self.sandbox.refit(create).on(&self.server).stdin(PASSWORD).run().success();
    }

    /// Somebody logs in.
    fn log_in(&self, name: &str) {
        let url = self.server.url();
        self.as_account(name, &format!("login {url} -u {name} --password-stdin")).success();
    }

    /// A command of somebody who is logged in.
    fn as_account(&self, name: &str, words: &str) -> Outcome {
        as_account(&self.sandbox, name, words)
    }

    fn rules(&self, actions: &str) {
        self.refit(&format!("scope-map create of-nightly --repository team/* {actions}")).success();
        self.refit("scope-map assign of-nightly --task nightly").success();
    }
}

fn as_account(sandbox: &Sandbox, name: &str, words: &str) -> Outcome {
    let command = sandbox.refit(words.split(' ')).env("REFIT_DATA", "");
    let command = command.env("XDG_RUNTIME_DIR", sandbox.path("other").display());
    command.env("XDG_CONFIG_HOME", sandbox.path(name).display()).stdin(PASSWORD).run()
}

/// Pulls, makes an image, and pushes it.
fn pushing(repository: &str) -> String {
    format!(
        "  - cmd: $Registry/team/busybox sh -c \"printf 'FROM scratch\\nLABEL a=b\\n' > Dockerfile\"\n  \
         - build: -t $Registry/{repository}:1 .\n  \
         - push: ['$Registry/{repository}:1']\n"
    )
}

#[test]
fn as_root_j20_a_task_without_an_identity_may_do_nothing_in_its_registry() {
    let place = Place::new();
    place.store();
    let pulled = place.task("  - cmd: $Registry/team/busybox true\n").code(1);
    pulled
        .stderr_has("the run may not pull from `team/busybox`")
        .stderr_has("task `nightly` names none")
        .stderr_has("`refit task update nightly --source-acr-auth-id [system]`");
    place.sandbox.write("app/acb.yaml", "version: v1.1.0\nsteps:\n  - build: -t $Registry/team/app:1 .\n  - push: ['$Registry/team/app:1']\n");
    let quick = place.refit("run app").code(1);
    quick.stderr_has("may not push to `team/app`").stderr_has("`--source-acr-auth-id [caller]`");
    place.refit("build app -t team/app:1").code(1).stderr_has("may not push to `team/app`");
    place.refit("repository show-tags team/app").code(4);
    // With an identity that has nothing it is the same, and the other way to lose it too.
    place
        .refit("task update nightly --source-acr-auth-id [system]")
        .code(2)
        .stderr_has("no identity of its own");
    place.refit("scope-map assign _repositories_pull --task nightly").code(2);
    place.refit("task identity assign nightly").success();
    place
        .refit("task update nightly --source-acr-auth-id [caller]")
        .code(2)
        .stderr_has("a task has no caller");
    place.refit("task update nightly --source-acr-auth-id [system]").success();
    let shown = place.refit("task show nightly").success().stdout;
    assert!(shown.contains("own registry as") && shown.contains("[system]"), "{shown}");
    let pulled = place.task("  - cmd: $Registry/team/busybox true\n").code(1);
    pulled.stderr_has("refit scope-map assign MAP --task nightly");
}

#[test]
fn as_root_a_task_may_do_in_its_registry_what_its_scope_map_says() {
    let place = Place::new();
    place.store();
    place.refit("task identity assign nightly").success();
    place.refit("task update nightly --source-acr-auth-id [system]").success();
    place.rules("content/read content/write metadata/read");
    place.task(&pushing("team/app")).success();
    let runs = place.refit("task list-runs -o json").success().json();
    assert_eq!(runs[0]["properties"]["sourceRegistryAuth"], "[system]");
    place.task(&pushing("other/app")).code(1).stderr_has("may not push to `other/app`");
    place.refit("repository show-tags other/app").code(4);
    for pull in [
        "  - cmd: $Registry/other/busybox true\n",
        "  - cmd: $Registry/team/busybox sh -c \"echo FROM $Registry/other/busybox > Dockerfile\"\n  \
         - build: -t $Registry/team/app:2 .\n",
        "  - cmd: $Registry/team/busybox sh -c \"printf 'FROM scratch\\nCOPY --from=$Registry/other/busybox / /\\n' > Dockerfile\"\n  \
         - build: -t $Registry/team/app:2 .\n",
    ] {
        place.task(pull).code(1).stderr_has("may not pull from `other/busybox`");
    }
    // `acr` neither lists what the run may not see, nor deletes what it may not delete.
    let listed =
        place.task("  - cmd: acr tag list -r $Registry --repository other/busybox\n").code(1);
    listed.stderr_has("`other/busybox`").stderr_lacks("other/busybox:latest");
    place
        .task("  - cmd: acr tag delete -r $Registry --repository team/app 1\n")
        .code(1)
        .stderr_has("may not delete from `team/app`");
    let purged = place.task("  - cmd: acr purge --filter '.*:.*' --ago 0d\n").success();
    purged.stderr_has("may not delete from `team/app`").stderr_lacks("other/busybox");
    place.refit("scope-map update of-nightly --add-repository team/* content/delete").success();
    place
        .task("  - cmd: acr purge --filter '.*/app:.*' --ago 0d --untagged\n")
        .success()
        .stderr_lacks("other");
    place.refit("repository show-tags team/busybox").success();
    place.refit("repository show-tags team/app").code(4);
    // What is taken away is gone.
    place.refit("scope-map delete of-nightly -y").code(5).stderr_has("is that of `task:nightly`");
    let listed = place.refit("scope-map list-assigned").success();
    assert!(listed.stdout.contains("task:nightly") && listed.stdout.contains("of-nightly"));
    place.refit("scope-map unassign --task nightly").success();
    place.task(&pushing("team/app")).code(1).stderr_has("may not pull from `team/busybox`");
    // Another identity of the same name has nothing by it.
    place.refit("scope-map assign of-nightly --task nightly").success();
    place.refit("task update nightly --source-acr-auth-id none").success();
    place.refit("task identity remove nightly").success();
    let listed = place.refit("scope-map list-assigned").success();
    assert!(!listed.stdout.contains("nightly"), "{}", listed.stdout);
    place.refit("task identity assign nightly").success();
    place.refit("task update nightly --source-acr-auth-id [system]").success();
    place.task(&pushing("team/app")).code(1).stderr_has("may not pull from `team/busybox`");
}

#[test]
fn as_root_a_run_uses_its_registry_as_an_account_or_its_caller() {
    let place = Place::new();
    place.store();
    place.refit("account create builder --service-principal").success();
    place.refit("task identity assign nightly --identities builder").success();
    let shown = place.refit("task identity show nightly -o json").success().json();
    let accounts = shown["userAssignedIdentities"].as_object().unwrap();
    let id = accounts["builder"]["clientId"].as_str().unwrap().to_owned();
    place.refit(&format!("task update nightly --source-acr-auth-id {id}")).success();
    place.task(&pushing("team/app")).code(1).stderr_has("account `builder` may not");
    place.refit("role assign builder reader").success();
    place.task(&pushing("team/app")).code(1).stderr_has("may not push to `team/app`");
    place
        .refit("scope-map create pushers --repository team/* content/read content/write")
        .success();
    place.refit("scope-map assign pushers --account builder").success();
    place.task(&pushing("team/app")).success();
    place.refit("account update builder --status disabled").success();
    place.task(&pushing("team/app")).code(1).stderr_has("may not pull from `team/busybox`");

    // Whoever builds as themselves pushes where they may, for as long as they may.
    place.create_account("ann", "author");
    place.log_in("ann");
    let ann = |words: &str| place.as_account("ann", words);
    ann("build app -t team/app:2").code(1).stderr_has("may not push to `team/app`");
    ann("build app -t team/app:2 --source-acr-auth-id [caller]").success();
    place.refit("build app -t team/app:3 --source-acr-auth-id [caller]").success();
    let refused = ann("build app -t team/app:4 --source-acr-auth-id [system]").code(2);
    refused.stderr_has("say `[caller]`");
    ann("build app -t team/app:4 --source-acr-auth-id [caller] --auth-mode None").code(2);
    let host = place.server.host();
    place.sandbox.write("app/Dockerfile", format!("FROM {host}/team/busybox\nRUN sleep 5\n"));
    let queued = ann("build app -t team/app:5 --source-acr-auth-id [caller] --no-wait").success();
    let id = queued.stdout.trim().to_owned();
    until("the step", || {
        let log = place.refit(&format!("task logs --run-id {id} --no-follow"));
        log.stdout.contains("sleep 5").then_some(())
    });
    place.refit("role assign ann runner").success();
    let log = place.refit(&format!("task logs --run-id {id}")).stdout;
    assert!(log.contains("`ann`, who started it, may not"), "{log}");
    let tags = place.refit("repository show-tags team/app").success().stdout;
    assert!(tags.contains('3') && !tags.contains('5'), "{tags}");
}

/// The login that the steps of a run have is bounded as all else is.
#[test]
fn as_root_the_token_of_a_run_is_for_the_repositories_of_its_identity() {
    let place = Place::new();
    place.store();
    place.refit("task identity assign nightly").success();
    place.refit("task update nightly --source-acr-auth-id [system]").success();
    place.rules("content/read");
    place.sandbox.write("acb.yaml", format!("version: v1.1.0\nsteps:\n{SHOW_LOGIN}"));
    let file = place.sandbox.path("acb.yaml").display().to_string();
    place.refit(&format!("task update nightly -f {file}")).success();
    let queued = place.refit("task run nightly --no-wait").success();
    let id = queued.stdout.trim().to_owned();
    let login = place.login_of(&id);
    let status = |method: &str, path: &str| place.status(&login, method, path);
    assert_eq!(status("GET", "/v2/team/busybox/manifests/latest"), "200");
    assert_eq!(status("GET", "/v2/other/busybox/manifests/latest"), "403");
    assert_eq!(status("POST", "/v2/team/busybox/blobs/uploads/"), "403");
    assert_eq!(status("DELETE", "/v2/team/busybox/manifests/latest"), "403");
    place.refit("scope-map unassign --task nightly").success();
    assert_eq!(status("GET", "/v2/team/busybox/manifests/latest"), "403");
    place.refit(&format!("task cancel-run --run-id {id}")).success();
}

#[test]
fn as_root_what_an_agent_does_for_a_run_is_bounded_as_well() {
    let pool = Pool::new();
    let server = pool.serve_with(1, SETTINGS);
    let _agent = pool.agent(&server, "one");
    server.registry().push("team/busybox", "latest", &busybox());
    pool.server.write("app/Dockerfile", "FROM scratch\nLABEL a=b\n");
    let build = |words: &[&str]| {
        let args = ["build", "app", "-t", "team/app:1", "--agent-pool", "builders"];
        pool.refit(&server, args.into_iter().chain(words.iter().copied()))
    };
    build(&[]).code(1).stderr_has("may not push to `team/app`");
    build(&["--source-acr-auth-id", "[caller]"]).success();
    let run = |task: &str| {
        pool.server.write("app/acb.yaml", format!("version: v1.1.0\nsteps:\n{task}"));
        pool.refit(&server, ["run", "app", "--agent-pool", "builders"])
    };
    run("  - cmd: $Registry/team/busybox true\n").code(1);
    let deleted = run("  - cmd: acr tag delete -r $Registry --repository team/app 1\n").code(1);
    deleted.stderr_lacks("deleted");
    pool.refit(&server, ["repository", "show-tags", "team/app"]).success();
}

#[test]
fn as_root_a_log_is_stored_where_the_identity_of_its_run_may_push() {
    let place = Place::new();
    place.store();
    // The run comes to nothing, and has a log nevertheless.
    let log_of_run = |template: &str| {
        place
            .refit(&format!("task update nightly --log-template {template}:{{{{.Run.ID}}}}"))
            .success();
        place.task("  - cmd: $Registry/other/busybox true\n").code(1);
        let runs = place.refit("task list-runs -o json").success().json();
        let id = runs[0]["properties"]["runId"].as_str().expect("it has one").to_owned();
        (with_artifact(&place.sandbox, &place.server, &id), id)
    };
    let refused = |template: &str, who: &str| {
        let (run, _) = log_of_run(template);
        let why = run["logArtifactError"].as_str().unwrap_or_default();
        let told = format!("the run may not push to `{template}`");
        assert!(why.contains(&told) && why.contains(who), "{run}");
        assert!(run["logArtifact"].is_null() && !why.contains("hint"), "{run}");
        place.refit(&format!("repository show-tags {template}")).code(4);
    };
    refused("team/logs", "task `nightly` names none");
    place.refit("task identity assign nightly").success();
    place.refit("task update nightly --source-acr-auth-id [system]").success();
    place.rules("content/read metadata/read");
    refused("team/logs", "task `nightly` may not");
    place.refit("scope-map update of-nightly --add-repository team/* content/write").success();
    refused("other/logs", "task `nightly` may not");
    let (run, id) = log_of_run("team/logs");
    assert_eq!(run["logArtifact"]["tag"], id, "{run}");
    let tags = place.refit("repository show-tags team/logs").success().stdout;
    assert!(tags.contains(&id), "{tags}");
}

#[test]
fn as_root_a_run_has_nothing_once_its_caller_is_switched_off_or_somebody_else() {
    let place = Place::new();
    let task = format!("version: v1.1.0\nsteps:\n{SHOW_LOGIN}");
    place.sandbox.write("app/acb.yaml", task);
    place.create_account("ann", "author");
    place.log_in("ann");
    let queued =
        place.as_account("ann", "run app --source-acr-auth-id [caller] --no-wait").success();
    let id = queued.stdout.trim().to_owned();
    let login = place.login_of(&id);
    let pulled = || place.status(&login, "GET", "/v2/team/busybox/manifests/latest");
    assert_eq!(pulled(), "200");
    place.refit("account update ann --status disabled").success();
    assert_eq!(pulled(), "403");
    place.refit("account update ann --status enabled").success();
    assert_eq!(pulled(), "200");
    place.refit("account delete ann -y").success();
    assert_eq!(pulled(), "403");
    place.create_account("ann", "author");
    assert_eq!(pulled(), "403");
    place.refit(&format!("task cancel-run --run-id {id}")).success();
}

#[test]
fn as_root_a_run_that_waited_has_what_its_caller_may_when_it_begins() {
    let pool = Pool::new();
    let server = pool.serve_with(1, SETTINGS);
    pool.server.write("app/Dockerfile", "FROM scratch\nLABEL a=b\n");
    let refit = |words: &str| pool.refit(&server, words.split(' '));
    let create = |name: &str| {
        let create = ["account", "create", name, "--role", "author", "--password-stdin"];
        pool.server.refit(create).on(&server).stdin(PASSWORD).run().success();
    };
    let queued = ["ann", "bob", "eve"].map(|name| {
        create(name);
        let login = format!("login {} -u {name} --password-stdin", server.url());
        as_account(&pool.server, name, &login).success();
        let build = format!(
            "build app -t team/{name}:1 --agent-pool builders --source-acr-auth-id [caller] --no-wait"
        );
        let queued = as_account(&pool.server, name, &build).success();
        (name, queued.stdout.trim().to_owned())
    });
    refit("account update ann --status disabled").success();
    refit("account delete bob -y").success();
    create("bob");
    let _agent = pool.agent(&server, "one");
    for (name, id) in queued {
        let log = refit(&format!("task logs --run-id {id}")).stdout;
        let is_refused = log.contains(&format!("`{name}`, who started it, may not"));
        assert_eq!(is_refused, name != "eve", "{log}");
        let tags = refit(&format!("repository show-tags team/{name}"));
        tags.code(if is_refused { 4 } else { 0 });
    }
}

#[test]
fn as_root_an_image_is_brought_from_and_to_where_the_identity_of_a_run_may() {
    let other_sandbox = sandbox();
    let other = other_sandbox.server();
    other.registry().push("tools/base", "3", &busybox().env("FROM=elsewhere"));
    let place = Place::with(
        "[registry.local]\nruns_by_identity = true\naliases = [\"shell.test\"]\n\
         [build]\nshell_image = \"shell.test/team/busybox\"\nallow_addresses = [\"127.0.0.1\"]\n",
    );
    place.store_with_identity();
    place.rules("content/read content/write metadata/read");
    let import = |source: &str, name: &str| {
        place.task(&format!(
            "  - cmd: |\n      $Registry/team/busybox true\n      docker pull {source}\n      docker tag {source} $Registry/{name}\n\
             \x20 - push: ['$Registry/{name}']\n"
        ))
    };
    let elsewhere = format!("{}/tools/base:3", other.host());
    import(&elsewhere, "other/base:3").code(1).stderr_has("may not push to `other/base`");
    place.refit("repository show-tags other/base").code(4);
    import(&elsewhere, "team/base:3").success();
    let own = "$Registry/other/busybox:latest";
    import(own, "team/copy:1").code(1).stderr_has("may not pull from `other/busybox`");
    place.refit("repository show-tags team/copy").code(4);
    import("$Registry/team/busybox:latest", "team/copy:1").success();
}

#[test]
fn as_root_locks_are_lifted_by_runs_whose_identity_may_unlock_everywhere() {
    let place = Place::new();
    place.store_with_identity();
    place.rules("content/read content/delete metadata/read metadata/write");
    let purge =
        || place.task("  - cmd: acr purge --filter 'team/app:.*' --ago 0d --include-locked\n");
    let lock = || {
        place.server.registry().push("team/app", "1", &busybox());
        place.refit("repository update --image team/app:1 --delete-enabled false").success();
    };
    lock();
    purge().code(1).stderr_has("`--include-locked` needs the right to unlock");
    place.refit("repository show-tags team/app").success();
    place.refit("scope-map update of-nightly --add-repository * metadata/write").success();
    purge().success();
    assert!(place.server.registry().tags("team/app").is_empty());
}

/// An agent is told only of blobs that it need not send since the run could read them.
#[test]
fn an_agent_does_not_learn_which_blobs_its_run_may_not_read() {
    let pool = Pool::new();
    let server = pool.serve_with(3, SETTINGS);
    let refit = |words: &str| pool.refit(&server, words.split(' '));
    let [seen, hidden] = ["team/app", "other/app"].map(|repository| {
        server.registry().push_blob(repository, format!("of {repository}").as_bytes())
    });
    let absent = oci::Digest::of(b"nowhere");
    pool.server.write("acb.yaml", "version: v1.1.0\nsteps: [{cmd: 'x'}]");
    let file = pool.server.path("acb.yaml").display().to_string();
    refit(&format!("task create nightly -c /dev/null -f {file} --agent-pool builders")).success();
    refit("task identity assign nightly").success();
    refit("task update nightly --source-acr-auth-id [system]").success();
    refit("scope-map create of-nightly --repository team/* content/read").success();
    let token = refit("agentpool token builders").success().stdout;
    let base = format!("{}/api/v1/registries/local/agentPools/builders", server.url());
    let post = |url: &str, token: &str, body: Value| {
        let authorization = format!("Authorization: Bearer {}", token.trim());
        let body = body.to_string();
        let args = ["-s", "-f", "-H", &authorization, "-H", "Content-Type: application/json"];
        let args = [&args[..], &["-d", &body, url]].concat();
        let answer = tool(&pool.server, "curl", &args).expect("curl is installed");
        serde_json::from_str::<Value>(&answer).expect("it is JSON")
    };
    let missing = || {
        refit("task run nightly --no-wait").success();
        let version = refit("version -o json").success().json();
        let claim = json!({
            "agent": "one", "platform": "linux/amd64", "version": version["version"],
        });
        let lease = post(&format!("{base}/claim"), &token, claim);
        let run = lease["run"]["id"].as_str().expect("it has one");
        let attempt = format!("{base}/attempts/{run}/{}", lease["epoch"]);
        let wanted = json!({ "digests": [&seen, &hidden, &absent] });
        let token = lease["token"].as_str().expect("it has one");
        post(&format!("{attempt}/blobs"), token, wanted)["digests"].clone()
    };
    assert_eq!(missing(), json!([&seen, &hidden, &absent]));
    refit("scope-map assign of-nightly --task nightly").success();
    assert_eq!(missing(), json!([&hidden, &absent]));
    refit("scope-map update of-nightly --add-repository other/* content/read").success();
    assert_eq!(missing(), json!([&absent]));
}
