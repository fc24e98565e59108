//! `refit token`, `scope-map`, `account` and `role`, and the clients that they let in.

use serde_json::Value;
use testkit::{Outcome, Sandbox, Server};

use crate::output::tool;
use crate::sandbox;

/// A server that asks everybody who they are, with an image `team/app:1`.
fn serve(sandbox: &Sandbox) -> Server {
    sandbox.write("refit.toml", "[server]\nanonymous_loopback = false\n");
    sandbox.write("app/Dockerfile", "FROM scratch\nCOPY f /f\n").write("app/f", "text\n");
    let settings = sandbox.path("refit.toml").display().to_string();
    let server = sandbox.server_with(&["--config", &settings]);
    sandbox
        .refit(["build", "app", "-t", "team/app:1", "-t", "other:1"])
        .on(&server)
        .run()
        .success();
    server
}

/// A command of somebody who is logged in, or nobody.
pub(crate) fn elsewhere(sandbox: &Sandbox, home: &str, args: &[&str], stdin: &str) -> Outcome {
    sandbox
        .refit(args.iter().copied())
        .env("REFIT_DATA", "")
        .env("XDG_RUNTIME_DIR", sandbox.path("other").display())
        .env("XDG_CONFIG_HOME", sandbox.path(home).display())
        .stdin(stdin)
        .run()
}

#[test]
fn a_token_lets_other_clients_into_its_repositories() {
    let sandbox = sandbox();
    let server = serve(&sandbox);
    let refit = |args: &[&str]| sandbox.refit(args.iter().copied()).on(&server).run();
    let read = ["--repository", "team/*", "content/read", "metadata/read"];
    let made = refit(&[&["token", "create", "robot", "-o", "json"], &read[..]].concat());
    let made = made.success().stderr_has("The passwords are shown this once").json();
    let password = |value: &Value, at: usize| {
        let password = &value["passwords"][at]["value"];
        password.as_str().expect("it is shown").to_owned()
    };
    let [first, second] = [0, 1].map(|at| password(&made["credentials"], at));
    // Whether skopeo may.
    let skopeo = |verb: &str, password: &str| {
        let (host, creds) = (server.host(), format!("robot:{password}"));
        let command = match verb.split_once(' ') {
            Some(("pull", name)) => {
                format!(
                    "copy --src-creds {creds} --src-tls-verify=false docker://{host}/{name} dir:attempt"
                )
            }
            Some(("push", name)) => {
                format!(
                    "copy --dest-creds {creds} --dest-tls-verify=false dir:pulled docker://{host}/{name}"
                )
            }
            _ => format!("{verb} --creds {creds} --tls-verify=false docker://{host}/team/app"),
        };
        let line =
            format!("skopeo {command} > out 2>&1 && echo done || {{ cat out; echo refused; }}");
        tool(&sandbox, "sh", &["-c", &line])
    };
    #[track_caller]
    fn check(told: Option<String>, expected: bool) {
        if let Some(told) = told {
            assert_eq!(told.ends_with("done\n"), expected, "{told}");
        }
    }
    check(skopeo("pull team/app:1", &first), true);
    tool(&sandbox, "cp", &["-r", "attempt", "pulled"]);
    check(skopeo("list-tags", &second), true);
    check(skopeo("pull other:1", &first), false);
    check(skopeo("push team/app:2", &first), false);
    check(skopeo("pull team/app:1", "refit_guess"), false);

    // What the scope map says counts at once, also for what is not there yet (test case N7).
    let write = ["--add-repository", "team/new", "content/read", "content/write"];
    refit(&[&["scope-map", "update", "robot-scope-map"], &write[..]].concat()).success();
    check(skopeo("push team/new:1", &first), true);
    refit(&[
        "scope-map",
        "update",
        "robot-scope-map",
        "--remove-repository",
        "team/new",
        "content/write",
    ])
    .success();
    check(skopeo("push team/new:2", &first), false);
    let shown = refit(&["scope-map", "show", "robot-scope-map"]).success().stdout;
    assert!(shown.contains("team/new") && shown.contains("content/read"), "{shown}");

    // One password is replaced, the other one goes on.
    let made = refit(&["token", "credential", "generate", "robot", "--password1", "-o", "json"]);
    let new = password(&made.success().json(), 0);
    check(skopeo("pull team/app:1", &first), false);
    check(skopeo("pull team/app:1", &new), true);
    check(skopeo("pull team/app:1", &second), true);
    refit(&["token", "credential", "delete", "robot", "--password2", "--yes"]).success();
    check(skopeo("pull team/app:1", &second), false);
    refit(&["token", "update", "robot", "--status", "disabled"]).success();
    check(skopeo("pull team/app:1", &new), false);
    let shown = refit(&["token", "list"]).success().stdout;
    assert!(shown.contains("disabled") && !shown.contains(&new), "{shown}");

    // It is for repositories, and for nothing else.
    refit(&["token", "update", "robot", "--status", "enabled"]).success();
    let login = ["login", server.url(), "-u", "robot", "--password-stdin"];
    elsewhere(&sandbox, "robot", &login, &first).code(3).stderr_has("the credential is not valid");
    elsewhere(&sandbox, "robot", &login, &new).success();
    let refused = elsewhere(&sandbox, "robot", &["task", "list-runs"], "").code(3);
    refused
        .stderr_has("`token/local/robot` needs the role `reader` in registry `local`")
        .stderr_has("a token may do only what its scope map says");
}

#[test]
fn mistakes_with_tokens_are_told() {
    let sandbox = sandbox();
    let server = sandbox.server();
    let refit = |args: &[&str]| sandbox.refit(args.iter().copied()).on(&server).run();
    refit(&["token", "create", "robot"]).code(2).stderr_has("--scope-map");
    refit(&["token", "create", "bot", "--scope-map", "_repositories_pull"])
        .code(2)
        .stderr_has("`bot` cannot name a token: a name has 5 to 50 letters");
    refit(&["token", "create", "robot", "--scope-map", "missing"])
        .code(4)
        .stderr_has("scope map `missing` not found");
    // Case N6.
    let wrong = ["token", "create", "robot", "--repository", "a*", "content/read"];
    refit(&wrong).code(2).stderr_has("`a*`: `*` stands alone, or once, as the end of a name");
    let wrong = ["token", "create", "robot", "--repository", "app", "content/fly"];
    refit(&wrong).code(2).stderr_has("one of `content/read`, `content/write`");
    refit(&["token", "create", "robot", "--scope-map", "_repositories_pull", "--no-passwords"])
        .success();
    let again = ["token", "create", "robot", "--scope-map", "_repositories_pull"];
    refit(&again).code(5).stderr_has("token `robot` is there already");
    refit(&["scope-map", "create", "_mine_", "--repository", "a", "content/read"])
        .code(2)
        .stderr_has("names that begin with `_` are the system's");
    refit(&["scope-map", "create", "some-map", "--repository", "a", "content/read"]).success();
    refit(&["token", "update", "robot", "--scope-map", "some-map"]).success();
    refit(&["scope-map", "delete", "some-map", "--yes"])
        .code(5)
        .stderr_has("scope map `some-map` is that of token `robot`");
    let past = ["token", "credential", "generate", "robot", "--expiration", "2001-01-01T00:00:00Z"];
    refit(&past).code(2).stderr_has("a password cannot have expired when it is made");
    let both = ["--expiration", "2101-01-01T00:00:00Z", "--expiration-in-days", "3"];
    refit(&[&["token", "credential", "generate", "robot"], &both[..]].concat()).code(2);
    let days = ["token", "credential", "generate", "robot", "--expiration-in-days", "3"];
    let made = refit(&[&days[..], &["-o", "json"]].concat()).success().json();
    assert!(made["passwords"][1]["expiry"].is_string(), "{}", made["passwords"][1]["name"]);
    refit(&["token", "delete", "robot", "--yes"]).success();
    refit(&["token", "show", "robot"]).code(4).stderr_has("token `robot` not found");
    refit(&["token", "credential", "generate", "robot"]).code(4);
    refit(&["scope-map", "delete", "some-map", "--yes"]).success();
}

#[test]
fn an_account_may_what_its_role_says() {
    let sandbox = sandbox();
    let server = serve(&sandbox);
    let refit = |args: &[&str]| sandbox.refit(args.iter().copied()).on(&server).run();
    sandbox.write("chosen", "correct horse battery\n");
    let made = refit(&["account", "create", "ann", "--role", "runner", "-o", "json"]).success();
    let made = made.stderr_has("The password is shown this once").json();
    let password = made["password"].as_str().expect("it is shown").to_owned();
    assert_eq!(made["roles"][0]["role"], "runner");
    refit(&["account", "create", "ann"]).code(5).stderr_has("account `ann` is there already");
    refit(&["account", "create", "admin"]).code(2).stderr_has("a name of the server's own");
    refit(&["account", "create", "a b"]).code(2).stderr_has("cannot name an account");
    let bob = ["account", "create", "bob", "--service-principal", "--password-stdin"];
    sandbox.refit(bob).on(&server).stdin("short").run().code(2).stderr_has("12 to 1024 bytes");
    let stored = ["task", "create", "nightly", "--cmd", "busybox true", "-c", "/dev/null"];
    refit(&stored).success();

    let ann = |args: &[&str]| elsewhere(&sandbox, "ann", args, &password);
    ann(&["login", server.url(), "-u", "ann", "--password-stdin"]).success();
    ann(&["task", "list-runs"]).success();
    ann(&["repository", "list"]).success();
    ann(&["task", "run", "nightly", "--no-wait"]).success();
    let refused = ann(&["task", "run", "nightly", "--no-wait", "--set", "x=y"]).code(3);
    refused.stderr_has("`ann` needs the role `author`");
    let refused = ann(&["build", "app", "-t", "team/app:2"]).code(3);
    refused.stderr_has("`ann` needs the role `author` in registry `local` for this");
    ann(&["repository", "delete", "other", "--yes"]).code(3).stderr_has("content/delete");
    ann(&["token", "list"]).code(3).stderr_has("the role `owner`");
    ann(&["account", "list"]).code(3).stderr_has("in all registries of this server");
    ann(&["gc"]).code(3);

    refit(&["role", "assign", "ann", "king"]).code(2).stderr_has("`king` is not a role");
    refit(&["role", "assign", "nobody", "reader"]).code(4).stderr_has("account `nobody` not found");
    refit(&["role", "assign", "ann", "author"]).success();
    let built = ann(&["build", "app", "-t", "team/app:2", "-o", "json"]).success().json();
    assert_eq!(built["properties"]["cause"]["principal"], "ann");
    ann(&["repository", "delete", "other", "--yes"]).success();
    let listed = refit(&["role", "list"]).success().stdout;
    assert!(listed.contains("ann") && listed.contains("author of local"), "{listed}");
    refit(&["role", "assign", "ann", "reader", "--all-registries"]).success();
    refit(&["role", "remove", "ann"]).success();
    ann(&["build", "app", "-t", "team/app:3"]).code(3);
    ann(&["task", "list-runs"]).success();

    // Everybody sees to their own password; what was known before ends.
    let renewed = ann(&["account", "password", "ann", "-o", "json"]).success().json();
    ann(&["task", "list-runs"]).code(3).stderr_has("the credential is not valid");
    let renewed = renewed["password"].as_str().expect("it is shown").to_owned();
    let login = ["login", server.url(), "-u", "ann", "--password-stdin"];
    elsewhere(&sandbox, "ann", &login, &renewed).success();
    refit(&["account", "update", "ann", "--status", "disabled"]).success();
    ann(&["task", "list-runs"]).code(3);
    refit(&["account", "update", "ann", "--status", "enabled", "--description", "of us"]).success();
    ann(&["task", "list-runs"]).success();
    let shown = refit(&["account", "show", "ann"]).success().stdout;
    assert!(shown.contains("of us") && shown.contains("reader of all registries"), "{shown}");
    refit(&["account", "delete", "ann", "--yes"]).success();
    ann(&["task", "list-runs"]).code(3);
    assert!(!server.log().contains(&renewed) && !server.log().contains(&password));
}

#[test]
fn an_account_with_a_scope_map_and_no_role_logs_in() {
    let sandbox = sandbox();
    let server = serve(&sandbox);
    let refit = |words: &str| sandbox.refit(words.split(' ')).on(&server).run();
    let made = refit("account create ann -o json").success().json();
    let password = made["password"].as_str().expect("it is shown");
    refit("scope-map create readers --repository team/* content/read metadata/read").success();
    refit("scope-map assign readers --account ann").success();
    let login = format!("login {} -u ann --password-stdin", server.url());
    let ann = |words: &str, stdin: &str| {
        elsewhere(&sandbox, "ann", &words.split(' ').collect::<Vec<_>>(), stdin)
    };
    ann(&login, "a wrong password").code(3).stderr_has("the credential is not valid");
    ann(&login, password).success();
    ann("repository show-tags team/app", "").success();
    let refused = ann("repository show-tags other", "").code(3);
    refused.stderr_has("`refit scope-map assign` a scope map");
    let refused = ann("task list-runs", "").code(3).stderr_has("`refit role assign`");
    refused.stderr_lacks("scope");
    refit("account update ann --status disabled").success();
    ann(&login, password).code(3);
}

#[test]
fn the_audit_log_is_exported_and_what_is_changed_in_it_is_found() {
    let sandbox = sandbox();
    let server = serve(&sandbox);
    let refit = |args: &[&str]| sandbox.refit(args.iter().copied()).on(&server).run();
    refit(&["account", "create", "ann"]).success();
    let listed = refit(&["audit", "list"]).success().stdout;
    for told in ["run.queued", "run.ended", "team/app@sha256:", "PUT /api/v1/accounts/ann"] {
        assert!(listed.contains(told), "{listed}");
    }
    let exported = refit(&["audit", "export"]).success().stdout;
    let count = exported.lines().count();
    let after = refit(&["audit", "export", "--after", "1"]).success().stdout;
    assert!(count >= 3 && exported.ends_with(&after) && after.lines().count() == count - 1);
    sandbox.write("audit.ndjson", &exported);
    let verify = || sandbox.refit(["audit", "verify", "audit.ndjson"]).run();
    let told = verify().success().stdout;
    assert!(told.starts_with(&format!("records 1 to {count} are whole; the last one is sha256:")));
    sandbox.write("audit.ndjson", exported.replace("accounts/ann", "accounts/bob"));
    verify().code(1).stderr_has("is not the one that was written");
    let without: String = exported
        .lines()
        .enumerate()
        .filter(|(at, _)| *at != 1)
        .map(|(_, line)| format!("{line}\n"))
        .collect();
    sandbox.write("audit.ndjson", without);
    verify().code(1).stderr_has("some are missing");
    sandbox.write("audit.ndjson", "");
    verify().code(2).stderr_has("has no records");

    // It goes on where it was, and is nobody else's to see.
    let data = sandbox.path("refit.toml").display().to_string();
    server.stop();
    let server = sandbox.server_with(&["--config", &data]);
    sandbox.refit(["account", "delete", "ann", "--yes"]).on(&server).run().success();
    let exported = sandbox.refit(["audit", "export"]).on(&server).run().success().stdout;
    assert_eq!(exported.lines().count(), count + 1);
    sandbox.write("audit.ndjson", &exported);
    verify().success();
}
