//! Identities of tasks: whose tokens the commands of a run can ask for.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use testkit::{Outcome, Sandbox, Server, busybox};

use crate::sandbox;

/// Prints what a token says that is asked for with this query.
pub(crate) fn asking(query: &str) -> String {
    format!(
        "wget -q -O - --header Metadata:true \"$$MSI_ENDPOINT?api-version=2018-02-01&{query}\" \
         | busybox sed \"s/.*access_token...//; s/\\\".*//\" | busybox cut -d . -f 2 | busybox tr _- /+ \
         | busybox base64 -d 2>/dev/null; echo"
    )
}

pub(crate) const SETTINGS: &str = "[server]\npublic_url = \"https://refit.example.com\"\n";

struct Place {
    sandbox: Sandbox,
    server: Server,
}

impl Place {
    fn new() -> Self {
        let sandbox = sandbox();
        sandbox.write("refit.toml", SETTINGS);
        let settings = sandbox.path("refit.toml").display().to_string();
        let server = sandbox.server_with(&["--config", &settings]);
        server.registry().push("busybox", "latest", &busybox());
        Self { sandbox, server }
    }

    fn refit(&self, words: &str) -> Outcome {
        self.sandbox.refit(words.split(' ')).on(&self.server).run()
    }

    /// Stores a task that executes lines of a shell.
    fn store(&self, name: &str, lines: &[String], flags: &[&str]) {
        let steps = lines.iter().map(|line| format!("  - cmd: $Registry/busybox sh -c '{line}'\n"));
        let text = format!("version: v1.1.0\nsteps:\n{}", steps.collect::<String>());
        self.sandbox.write("acb.yaml", text);
        let file = self.sandbox.path("acb.yaml").display().to_string();
        let args = ["task", "create", name, "-c", "/dev/null", "-f", &file];
        let args = args.into_iter().chain(flags.iter().copied());
        self.sandbox.refit(args).on(&self.server).run().success();
    }

    /// The ids of a task's identities.
    fn identity(&self, task: &str) -> Value {
        self.refit(&format!("task identity show {task} -o json")).success().json()
    }
}

#[test]
fn as_root_a_command_proves_that_it_is_its_task() {
    let place = Place::new();
    let vault = asking("resource=https://vault.example.com");
    place.store("nightly", std::slice::from_ref(&vault), &["--assign-identity"]);
    let id = place.identity("nightly")["principalId"].as_str().unwrap().to_owned();
    let done = place.refit("task run nightly").success();
    done.stderr_has("\"iss\":\"https://refit.example.com\"")
        .stderr_has("\"sub\":\"registry:local:task:nightly\"")
        .stderr_has("\"aud\":\"https://vault.example.com\"")
        .stderr_has(&format!("\"oid\":\"{id}\""));
    // Whoever prints it shows it to nobody.
    let print =
        "wget -q -O - --header Metadata:true \"$$MSI_ENDPOINT?resource=x\"; echo".to_owned();
    place.store("printer", &[print], &["--assign-identity"]);
    let printed = place.refit("task run printer").success();
    printed.stderr_has("\"access_token\":\"***\"").stderr_has("\"token_type\":\"Bearer\"");
    let audit = place.refit("audit list -o json").success().stdout;
    assert!(audit.contains("identity.token") && audit.contains("for https://vault.example.com"));
    // It is nobody when it has no identity any more, also for a run that waits.
    place.refit("task identity remove nightly").success();
    let refused = place.refit("task run nightly").success();
    refused.stderr_lacks("registry:local:task:nightly");
    place.refit("task identity remove nightly").code(4).stderr_has("no identity of its own");
}

#[test]
fn as_root_who_has_no_identity_reaches_no_endpoint() {
    let place = Place::new();
    let probe = "wget -q -T 2 -O - --header Metadata:true \
                 http://169.254.169.254/metadata/identity/oauth2/token?resource=x || echo nothing is there";
    place.store("nobody", &[probe.to_owned()], &[]);
    place.refit("task run nobody").success().stderr_has("nothing is there");
    // The one of another task's container is not in this one's network.
    let wait = format!("echo it is there; sleep 8; {}", asking("resource=x"));
    place.store("somebody", &[wait], &["--assign-identity"]);
    let other = ["task", "run", "somebody"];
    let other = place.sandbox.refit(other).on(&place.server).start();
    other.wait_for_stderr("it is there");
    place.refit("task run nobody").success().stderr_has("nothing is there");
    other.wait().success().stderr_has("registry:local:task:somebody");
    // A step without a network has none, and an instruction of a Dockerfile is not a command.
    let file = format!(
        "version: v1.1.0\nsteps:\n  - cmd: $Registry/busybox sh -c '{probe}'\n    network: none\n"
    );
    place.sandbox.write("none.yaml", file);
    let path = place.sandbox.path("none.yaml").display().to_string();
    place.refit("task identity assign nobody").success();
    place.refit(&format!("task update nobody -f {path}")).success();
    place.refit("task run nobody").success().stderr_has("nothing is there");
}

#[test]
fn as_root_a_command_is_one_of_its_accounts_and_no_other() {
    let place = Place::new();
    place.refit("account create deployer --service-principal").success();
    place.refit("account create other --service-principal").success();
    place.refit("account create ann").success();
    place.store("nightly", &[asking("resource=x")], &[]);
    place.refit("task identity assign nightly --identities deployer").success();
    place.refit("task run nightly").success().stderr_has("\"sub\":\"account:deployer\"");
    let person = place.refit("task identity assign nightly --identities ann").code(2);
    person.stderr_has("is a person's");
    place
        .refit("task identity assign nightly --identities nobody")
        .code(2)
        .stderr_has("no account");
    // With several it has to be said which.
    place.refit("task identity assign nightly --identities other").success();
    let asked = place.refit("task run nightly").success();
    asked.stderr_has("400 Bad Request").stderr_lacks("account:");
    let shown = place.identity("nightly");
    let id =
        |name: &str| shown["userAssignedIdentities"][name]["clientId"].as_str().unwrap().to_owned();
    let (deployer, foreign) = (id("deployer"), "00000000-0000-4000-8000-000000000000");
    let by_id = |id: &str| asking(&format!("resource=x&client_id={id}"));
    let lines = [by_id(&id("other")), by_id(foreign)];
    place.store("chooser", &lines, &["--assign-identity", "other", "[system]"]);
    let chosen = place.refit("task run chooser").success();
    chosen.stderr_has("\"sub\":\"account:other\"").stderr_has("400 Bad Request");
    // An account that is switched off is nobody, and a new one of its name is another one.
    place.refit("task identity remove nightly --identities other").success();
    place.refit("account update deployer --status disabled").success();
    place.refit("task run nightly").success().stderr_lacks("account:deployer");
    place.refit("account delete deployer --yes").success();
    place.refit("account create deployer --service-principal").success();
    place.refit("task run nightly").success().stderr_lacks("account:deployer");
    place.refit("task identity remove nightly --identities deployer").success();
    place.refit("task identity assign nightly --identities deployer").success();
    assert_ne!(
        place.identity("nightly")["userAssignedIdentities"]["deployer"]["clientId"],
        deployer
    );
    place.refit("task run nightly").success().stderr_has("\"sub\":\"account:deployer\"");
    // Who writes tasks does not say whom they may be.
    let made = place.refit("account create author -o json").success().json();
    let password = made["password"].as_str().or(made["properties"]["password"].as_str());
    let password = password.expect("it is shown once").to_owned();
    place.refit("role assign author author").success();
    let home = place.sandbox.path("author").display().to_string();
    let author = |args: &[&str]| {
        let other = place.sandbox.path("other").display().to_string();
        let invocation = place.sandbox.refit(args.iter().copied()).env("REFIT_DATA", "");
        invocation.env("XDG_RUNTIME_DIR", other).env("XDG_CONFIG_HOME", &home)
    };
    let login = ["login", place.server.url(), "-u", "author", "--password-stdin"];
    author(&login).stdin(password).run().success();
    let file = place.sandbox.path("acb.yaml").display().to_string();
    let create = ["task", "create", "theirs", "-c", "/dev/null", "-f", &file];
    author(&create).run().success();
    author(&["task", "identity", "assign", "theirs"]).run().success();
    let take = ["task", "identity", "assign", "theirs", "--identities", "deployer"];
    author(&take).run().code(3).stderr_has("needs the role `admin`");
    // What the task is already, it stays.
    author(&["task", "update", "nightly", "--description", "x"]).run().success();
    assert_eq!(place.identity("nightly")["type"], "UserAssigned");
}

/// A server, at a place that its settings name: below the ports that are given out to whoever asks
/// for any, and another one for each process of the tests.
fn serve(sandbox: &Sandbox, settings: impl Fn(&str) -> String) -> Server {
    static SERVED: AtomicU32 = AtomicU32::new(0);
    let number = std::process::id().wrapping_mul(4) + SERVED.fetch_add(1, Ordering::Relaxed);
    let host = format!("127.0.0.1:{}", 20_000 + number % 12_000);
    sandbox.write("refit.toml", settings(&host));
    let file = sandbox.path("refit.toml").display().to_string();
    sandbox.server_with(&["--listen", &host, "--config", &file])
}

/// One server trusts the other's tasks, and nobody has a password.
#[test]
fn as_root_a_task_logs_in_to_another_registry_by_what_it_is() {
    let (here, there) = (sandbox(), sandbox());
    let server = serve(&here, |host| format!("[server]\npublic_url = \"http://{host}\"\n"));
    let issuer = server.url().to_owned();
    let other = serve(&there, |host| {
        format!(
            "[server]\nanonymous_loopback = false\n[trusted_issuer.\"{issuer}\"]\n\
             audience = \"https://{host}\"\naccounts = [\"registry:local:task:nightly=deployer\"]\n"
        )
    });
    let elsewhere = |words: &str| there.refit(words.split(' ')).on(&other).run();
    elsewhere("account create deployer --service-principal --role author").success();
    drop(server);
    // Its own machine only the operator can have meant.
    let settings = format!(
        "[server]\npublic_url = \"{issuer}\"\n[upstream.\"{}\"]\nplain_http = true\n",
        other.host()
    );
    here.write("refit.toml", settings);
    let file = here.path("refit.toml").display().to_string();
    let listen = issuer.trim_start_matches("http://");
    let server = here.server_with(&["--listen", listen, "--config", &file]);
    server.registry().push("busybox", "latest", &busybox());
    let refit = |words: &str| here.refit(words.split(' ')).on(&server).run();
    let text = format!(
        "version: v1.1.0\nsteps:\n  - cmd: $Registry/busybox sh -c 'printf \"FROM scratch\\nLABEL a=b\\n\" > Dockerfile'\n  \
         - build: -t {0}/team/app:1 .\n  - push: ['{0}/team/app:1']\n",
        other.host()
    );
    here.write("acb.yaml", text);
    let file = here.path("acb.yaml").display().to_string();
    for task in ["nightly", "weekly"] {
        refit(&format!("task create {task} -c /dev/null -f {file}")).success();
        let add =
            format!("task credential add {task} --login-server {} --use-identity", other.host());
        refit(&format!("{add} [system]")).code(2).stderr_has("no identity of its own");
        refit(&format!("task identity assign {task}")).success();
        refit(&format!("{add} [system]")).success();
    }
    refit("task run nightly").success();
    assert_eq!(elsewhere("tag list team/app -o json").success().json()[0]["name"], "1");
    let audit = elsewhere("audit list -o json").success().stdout;
    assert!(audit.contains("\"deployer\""), "{audit}");
    // It does not trust the other one's.
    let refused = refit("task run weekly").code(1);
    refused.stderr_has("gives nothing for an identity token");
    // What it may is what its account may.
    elsewhere("role assign deployer reader").success();
    refit("task run nightly").code(1).stderr_lacks("panicked");
    elsewhere("role assign deployer author").success();
    elsewhere("account update deployer --status disabled").success();
    refit("task run nightly").code(1).stderr_has("gives nothing for an identity token");
}
