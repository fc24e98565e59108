//! What runs may do in a registry that asks for their identity.

use base64::Engine as _;
use testkit::{Outcome, Sandbox, Server, busybox, until};

use crate::agents::Pool;
use crate::output::tool;
use crate::sandbox;

struct Place {
    sandbox: Sandbox,
    server: Server,
}

const SETTINGS: &str = "[registry.local]\nruns_by_identity = true\n";

impl Place {
    fn new() -> Self {
        let sandbox = sandbox();
        sandbox.write("refit.toml", SETTINGS);
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

    fn rules(&self, actions: &str) {
        self.refit(&format!("scope-map create of-nightly --repository team/* {actions}")).success();
        self.refit("scope-map assign of-nightly --task nightly").success();
    }
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
    let password = "a-password-of-ann";
    let create = ["account", "create", "ann", "--role", "author", "--password-stdin"];
    place.sandbox.refit(create).on(&place.server).stdin(password).run().success();
    let ann = |words: &str| {
        let command = place.sandbox.refit(words.split(' ')).env("REFIT_DATA", "");
        let command = command.env("XDG_RUNTIME_DIR", place.sandbox.path("other").display());
        command.env("XDG_CONFIG_HOME", place.sandbox.path("ann").display()).stdin(password).run()
    };
    ann(&format!("login {} -u ann --password-stdin", place.server.url())).success();
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
    // As it is it would be hidden.
    let show = "  - cmd: >-\n      $Registry/team/busybox sh -c\n      \
                \"sed 's/./& /g' /acb/home/.docker/config.json; while sleep 1; do :; done\"\n";
    place.sandbox.write("acb.yaml", format!("version: v1.1.0\nsteps:\n{show}"));
    let file = place.sandbox.path("acb.yaml").display().to_string();
    place.refit(&format!("task update nightly -f {file}")).success();
    let queued = place.refit("task run nightly --no-wait").success();
    let id = queued.stdout.trim().to_owned();
    let login = until("the login of the run", || {
        let args = format!("task logs --run-id {id} --no-follow");
        let log = place.refit(&args).success().stdout.replace(' ', "");
        let auth = log.split("\"auth\":\"").nth(1)?.split('"').next()?.to_owned();
        Some(base64::prelude::BASE64_STANDARD.decode(auth).expect("it is Base64"))
    });
    let login = String::from_utf8(login).expect("it is text");
    let status = |method: &str, path: &str| {
        let url = format!("{}{path}", place.server.url());
        let args = ["-s", "-o", "answer", "-w", "%{http_code}", "-X", method, "-u", &login, &url];
        tool(&place.sandbox, "curl", &args).expect("curl is installed")
    };
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
