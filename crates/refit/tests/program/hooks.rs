//! Tasks that start by commits and pull requests of their repository.

use serde_json::{Value, json};
use testkit::{GitHost, GitRepository, Outcome, Sandbox, Server, until, validate};

use crate::output::tool;
use crate::sandbox;

const PASSWORD: &str = "hunter2-of-git";

struct Place {
    sandbox: Sandbox,
    server: Server,
    git: GitHost,
    repository: GitRepository,
}

/// Where deliveries go to, and what they are signed with.
struct Webhook {
    address: String,
    secret: String,
}

impl Place {
    /// `settings` are further ones of the server.
    fn new(settings: &str) -> Self {
        let sandbox = sandbox();
        let settings = format!("[build]\nallow_addresses = [\"127.0.0.1\"]\n{settings}");
        sandbox.write("settings.toml", settings);
        let settings = sandbox.path("settings.toml").display().to_string();
        let server = sandbox.server_with(&["--config", &settings]);
        let git = GitHost::private(PASSWORD);
        let repository = git.repository("app");
        repository.write("web/Dockerfile", "FROM scratch\nCOPY file /\n");
        Self { sandbox, server, git, repository }
    }

    fn refit(&self, command: &str) -> Outcome {
        self.sandbox.refit(command.split_whitespace()).on(&self.server).run()
    }

    fn commit(&self, text: &str) -> String {
        self.repository.write("web/file", text);
        self.repository.commit(text)
    }

    /// A task that builds `app:RUN` of the branch `main`.
    fn task(&self, flags: &str) -> Outcome {
        let url = format!("{}/app.git#main:web", self.git.url());
        let names = "-t app:{{.Run.ID}} -t app:on-{{.Run.Branch}}";
        self.refit(&format!("task create build-app -c {url} -f Dockerfile {names} {flags}"))
    }

    fn webhook(&self) -> Webhook {
        let made = self.refit("task webhook build-app -o json").success().json();
        let text = |name: &str| made[name].as_str().unwrap_or_default().to_owned();
        let address = format!("http://{}{}", self.server.host(), text("webhookPath"));
        Webhook { address, secret: text("secret") }
    }

    /// Sends a delivery as GitHub does, with what curl and openssl make of it; the status and the answer.
    fn deliver(&self, hook: &Webhook, event: &str, body: &Value) -> (String, Value) {
        self.sandbox.write("body.json", body.to_string());
        let hmac = ["dgst", "-sha256", "-hmac", &hook.secret, "-r", "body.json"];
        let signature = tool(&self.sandbox, "openssl", &hmac).expect("openssl is needed");
        let signature = signature.split(' ').next().unwrap_or_default();
        let signature = format!("X-Hub-Signature-256: sha256={signature}");
        let event = format!("X-GitHub-Event: {event}");
        self.post(hook, &["-H", &event, "-H", &signature])
    }

    /// Sends what was written last, with such headers.
    fn post(&self, hook: &Webhook, flags: &[&str]) -> (String, Value) {
        let fixed = ["-s", "-w", "\n%{http_code}", "-H", "Content-Type: application/json"];
        let body = ["--data-binary", "@body.json", &*hook.address];
        let args: Vec<&str> = fixed.iter().chain(flags).chain(&body).copied().collect();
        let answer = tool(&self.sandbox, "curl", &args).expect("curl is needed");
        let (answer, status) = answer.trim_end().rsplit_once('\n').unwrap_or_default();
        (status.to_owned(), serde_json::from_str(answer).unwrap_or_default())
    }

    fn push(&self, hook: &Webhook, branch: &str, commit: &str) -> (String, Value) {
        let repository = json!({ "full_name": "app", "default_branch": "main" });
        let reference = format!("refs/heads/{branch}");
        let body = json!({ "ref": reference, "after": commit, "repository": repository });
        self.deliver(hook, "push", &body)
    }

    /// What a run that a delivery has started is, when it has ended well.
    fn ended(&self, answer: &(String, Value)) -> Value {
        assert_eq!((&*answer.0, &answer.1["decision"]), ("200", &json!("Fired")), "{answer:?}");
        let run = answer.1["runId"].as_str().unwrap_or_default();
        let show = format!("task show-run --run-id {run} -o json");
        until("the end of the run", || {
            let shown = self.refit(&show).success().json()["properties"].clone();
            assert_ne!(shown["status"], "Failed", "{shown}");
            (shown["status"] == "Succeeded").then_some(shown)
        })
    }

    /// Why a delivery has started nothing.
    fn skipped(&self, answer: &(String, Value)) -> String {
        assert_eq!((&*answer.0, &answer.1["decision"]), ("200", &json!("Skipped")), "{answer:?}");
        answer.1["reason"].as_str().unwrap_or_default().to_owned()
    }
}

#[test]
fn as_root_a_commit_starts_a_run_of_it() {
    let place = Place::new("");
    let first = place.commit("one");
    place.task(&format!("--git-access-token {PASSWORD} --poll-seconds 0")).success();
    let hook = place.webhook();
    let run = place.ended(&place.push(&hook, "main", &first));
    assert_eq!((&run["commitId"], &run["branchName"]), (&json!(first), &json!("main")), "{run}");
    let source = &run["sourceTrigger"];
    assert_eq!((&source["eventType"], &source["commitId"]), (&json!("commit"), &json!(first)));
    assert_eq!(source["providerType"], "GitHub");
    assert_eq!(run["cause"]["type"], "Commit");
    let registry = place.server.registry();
    let id = run["runId"].as_str().unwrap();
    assert_eq!(validate(&registry, "app", id).text("file"), "one");
    assert_eq!(validate(&registry, "app", "on-main").text("file"), "one");

    // An older commit is built as it was, though the branch has moved on.
    let second = place.commit("two");
    let third = place.commit("three");
    let run = place.ended(&place.push(&hook, "main", &second));
    let id = run["runId"].as_str().unwrap();
    assert_eq!(validate(&registry, "app", id).text("file"), "two");
    place.ended(&place.push(&hook, "main", &third));

    // What is sent again, what is of another branch, and what others sign.
    let reason = place.skipped(&place.push(&hook, "main", &third));
    assert_eq!(reason, "this delivery was taken before");
    let reason = place.skipped(&place.push(&hook, "dev", &third));
    assert_eq!(reason, "the trigger follows branch `main`, not `dev`");
    let forged = Webhook { address: hook.address.clone(), secret: "guessed".into() };
    let (status, answer) = place.push(&forged, "main", &first);
    assert_eq!(status, "401", "{answer}");
    assert_eq!(place.post(&hook, &["-H", "X-GitHub-Event: push"]).0, "401");
    let address = hook.address.replace("build-app", "other-app");
    let elsewhere = Webhook { address, secret: hook.secret.clone() };
    assert_eq!(place.push(&elsewhere, "main", &first).0, "404");
    let (status, answer) = place.deliver(&hook, "push", &json!({ "ref": 1 }));
    assert_eq!(status, "400", "{answer}");

    // The secret that was before is worth nothing.
    let new = place.webhook();
    assert_eq!(place.push(&hook, "dev", &second).0, "401");
    assert_eq!(place.push(&new, "dev", &second).0, "200");

    let why = place.refit("trigger why build-app").success();
    assert!(why.stdout.contains("`1111111`") || why.stdout.contains(&first[..7]), "{}", why.stdout);
    why.stderr_has("commit of main, told by the host's webhook, never looked for");
    let secrets = [hook.secret, new.secret, PASSWORD.to_owned()];
    for shown in [
        place.refit("task show build-app -o json").success().stdout,
        place.refit("trigger list -o json").success().stdout,
        place.refit("task list-runs -o json").success().stdout,
        place.server.log(),
    ] {
        assert!(!secrets.iter().any(|secret| shown.contains(&**secret)), "{shown}");
    }
    // A run of a commit says what the task is built on, as any other.
    let shown = place.refit("task show build-app -o json").success().json();
    let step = &shown["properties"]["step"];
    assert!(step.get("baseImageDependencies").is_some(), "{shown}");
}

#[test]
fn as_root_a_pull_request_starts_a_run_of_it() {
    let place = Place::new("");
    place.commit("one");
    let flags = "--commit-trigger-enabled false --pull-request-trigger-enabled true";
    place.task(&format!("--git-access-token {PASSWORD} {flags}")).success();
    let hook = place.webhook();
    place.repository.git(&["checkout", "--quiet", "-b", "feature"]);
    let commit = place.commit("of the request");
    place.repository.git(&["update-ref", "refs/pull/7/head", "feature"]);
    place.repository.git(&["checkout", "--quiet", "main"]);
    let side = |branch: &str, of: &str| json!({ "ref": branch, "sha": commit, "repo": { "full_name": of } });
    let request = |action: &str, into: &str, from: &str| {
        json!({
            "action": action,
            "repository": { "full_name": "app", "default_branch": "main" },
            "pull_request": {
                "number": 7, "head": side("feature", from), "base": side(into, "app"),
            },
        })
    };
    let run = place.ended(&place.deliver(&hook, "pull_request", &request("opened", "main", "app")));
    assert_eq!(run["commitId"], commit.as_str());
    let source = &run["sourceTrigger"];
    let found = (&source["eventType"], &source["pullRequestId"]);
    assert_eq!(found, (&json!("pullrequest"), &json!("7")));
    let id = run["runId"].as_str().unwrap();
    assert_eq!(validate(&place.server.registry(), "app", id).text("file"), "of the request");
    for (action, into, from, reason) in [
        ("closed", "main", "app", "it starts no runs"),
        ("synchronize", "dev", "app", "the trigger follows branch `main`, not `dev`"),
        ("synchronize", "main", "stranger/app", "pull requests from forks start no runs"),
    ] {
        let answer = place.deliver(&hook, "pull_request", &request(action, into, from));
        assert_eq!(place.skipped(&answer), reason);
    }
    let push = place.push(&hook, "main", &commit);
    assert_eq!(place.skipped(&push), "the trigger does not wait for commits");
    // It teaches nothing of what the task itself is built on.
    let shown = place.refit("task show build-app -o json").success().json();
    assert!(shown["properties"]["step"].get("baseImageDependencies").is_none(), "{shown}");
}

#[test]
fn as_root_a_repository_is_asked_where_its_host_does_not_call() {
    let place = Place::new("[triggers]\npoll_period = \"1s\"\n");
    place.commit("one");
    place.task(&format!("--git-access-token {PASSWORD}")).success();
    let looks = || place.git.requests().iter().filter(|line| line.contains("/info/refs")).count();
    // What the first has found is noted when there is another.
    until("looks at the branch", || (looks() > 5).then_some(()));
    // A host that fails for a while costs time, and no commit.
    place.git.fail("/info/refs", "503 Service Unavailable");
    until("a line of the ledger", || {
        let lines = place.refit("trigger list --decision Waits -o json").success().json();
        lines.as_array().filter(|lines| !lines.is_empty()).map(|_| ())
    });
    // No look is under way now, so that the run does not meet the host while it fails.
    let commit = place.commit("two");
    place.git.work_again("/info/refs");
    let run = until("the run of the commit", || {
        let runs = place.refit("task list-runs -n build-app -o json").success().json();
        let run = runs.get(0)?["properties"].clone();
        assert_ne!(run["status"], "Failed", "{run}");
        (run["status"] == "Succeeded").then_some(run)
    });
    assert_eq!((&run["commitId"], &run["branchName"]), (&json!(commit), &json!("main")));
    assert_eq!(run["sourceTrigger"].get("providerType"), None);
}

#[test]
fn as_root_a_source_trigger_is_made_and_changed_by_flags() {
    let place = Place::new("");
    place.commit("one");
    // As `az acr` has it: without a token there is no trigger by commits.
    place
        .task("--commit-trigger-enabled true")
        .code(2)
        .stderr_has("a commit trigger needs a token for the repository")
        .stderr_has("--poll-seconds");
    place.task("").success().stderr_has("No commit starts the task");
    let sources = || {
        let shown = place.refit("task show build-app -o json").success().json();
        shown["properties"]["trigger"]["sourceTriggers"].clone()
    };
    assert_eq!(sources(), Value::Null);
    place.refit("task update build-app --poll-seconds 60").code(2).stderr_has("no source trigger");
    place.refit("task webhook build-app").code(4).stderr_has("source trigger not found");
    let update = |flags: &str| place.refit(&format!("task update build-app {flags}"));
    update("--commit-trigger-enabled true --poll-seconds 60").success();
    let trigger = &sources()[0];
    assert_eq!(trigger["name"], "defaultSourceTriggerName");
    assert_eq!(trigger["sourceTriggerEvents"], json!(["commit"]));
    assert_eq!(trigger["sourceRepository"]["branch"], "main");
    assert_eq!(trigger["pollSeconds"], 60);
    update("--pull-request-trigger-enabled true").success();
    assert_eq!(sources()[0]["sourceTriggerEvents"], json!(["commit", "pullrequest"]));
    // It follows the context.
    update(&format!("-c {}/app.git#dev", place.git.url())).success();
    assert_eq!(sources()[0]["sourceRepository"]["branch"], "dev");
    update("--commit-trigger-enabled false --pull-request-trigger-enabled false").success();
    assert_eq!(sources()[0]["status"], "Disabled");
    update("--poll-seconds 5").code(2).stderr_has("neither 0 nor 30 to 86400");
    // Without a repository it cannot be on, and is switched off.
    update("--commit-trigger-enabled true").success();
    update("-c /dev/null --cmd app").success();
    assert_eq!(sources()[0]["status"], "Disabled");
    update("--commit-trigger-enabled true").code(2).stderr_has("no git repository as its context");
    // No context, no commits.
    let none = "task create other-app --cmd app -c /dev/null --commit-trigger-enabled true";
    place.refit(none).success();
    let shown = place.refit("task show other-app -o json").success().json();
    assert_eq!(shown["properties"]["trigger"].get("sourceTriggers"), None);
    assert_eq!(shown["properties"]["trigger"]["baseImageTrigger"]["status"], "Enabled");
}

#[test]
fn as_root_a_host_is_told_how_the_run_of_a_commit_stands() {
    let place = Place::new("");
    let git = GitHost::start();
    let repository = git.repository("team/app");
    repository.write("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let first = repository.commit("one");
    let statuses = "api/v3/repos/team/app/statuses";
    let folder = git.folder().join(statuses);
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    std::fs::write(folder.join(&first), "{}").expect("a file can be written");
    let url = format!("{}/team/app.git#main", git.url());
    let flags = "-f Dockerfile -t app:1 --git-access-token hunter2-of-host --poll-seconds 0";
    place.refit(&format!("task create build-app -c {url} {flags}")).success();
    let hook = place.webhook();
    place.ended(&place.push(&hook, "main", &first));
    let end = format!("{statuses}/{first}");
    let bodies = until("the end of the run is told", || {
        let bodies = git.bodies(&end);
        bodies.last()?.contains("success").then_some(bodies)
    });
    let told: Value = serde_json::from_str(&bodies[bodies.len() - 1]).unwrap();
    assert_eq!((&told["state"], &told["context"]), (&json!("success"), &json!("refit/build-app")));
    let headers = git.headers(&end);
    assert!(headers.contains(&("authorization".into(), "Bearer hunter2-of-host".into())));

    // A host that refuses is not asked again, and the ledger says so.
    let second = repository.commit("two");
    place.ended(&place.push(&hook, "main", &second));
    let listed = until("a line of the ledger", || {
        let listed = place.refit("trigger list -n build-app").success().stdout;
        listed.contains("was to hear of run").then_some(listed)
    });
    assert!(listed.contains("it answers with status 404: the token may lack"), "{listed}");
    assert!(!listed.contains("hunter2"), "{listed}");
}
