//! What is refused before anything is done, and which server a command talks to.

use expect_test::expect;

use crate::sandbox;

#[test]
fn mistakes_are_usage_errors() {
    for args in [
        &["unknown"][..],
        &["repository"],
        &["manifest", "show"],
        &["build", "--unknown"],
        &["serve", "extra"],
        &["task", "list-runs", "--top", "0"],
    ] {
        let refused = sandbox().refit(args.iter().copied()).run().code(2);
        assert_eq!(refused.stdout, "", "{args:?}");
        assert!(refused.stderr.contains("Usage:") || refused.stderr.contains("error:"), "{args:?}");
    }
}

#[test]
fn flags_that_do_not_go_are_refused_by_name() {
    let sandbox = sandbox();
    sandbox.write("app/Dockerfile", "FROM scratch\n");
    let server = "http://127.0.0.1:9";
    for (flags, name) in [
        (&["--auth-mode", "Sometimes"][..], "--auth-mode"),
        (&["--auth-mode", "default", "--no-format", "--timeout", "5"], "`--timeout 5`"),
        (&["--platform", "linux/amd64,,"], "`` is not a platform"),
        (&["--timeout", "5"], "`--timeout 5`"),
    ] {
        let args = ["build", "app", "--server", server].into_iter().chain(flags.iter().copied());
        sandbox.refit(args).run().code(2).stderr_has(name);
    }
}

#[test]
fn a_context_that_is_none_is_a_usage_error() {
    let sandbox = sandbox();
    sandbox.write("empty/file", "");
    let build = |context: &str| {
        sandbox.refit(["build", context, "--server", "http://127.0.0.1:9"]).run().snapshot()
    };
    expect![[r#"
        exit: 2
        -- stdout --
        -- stderr --
        error: the Dockerfile `empty/Dockerfile` cannot be read: No such file or directory (os error 2)
    "#]]
    .assert_eq(&build("empty"));
    expect![[r#"
        exit: 2
        -- stdout --
        -- stderr --
        error: the git address `ssh://***@example.com/app.git` cannot be used: over SSH there are no passwords
    "#]]
    .assert_eq(&build("ssh://git:pw@example.com/app.git"));
}

#[test]
fn a_server_that_is_not_there_is_exit_code_3() {
    let sandbox = sandbox();
    expect![[r#"
        exit: 3
        -- stdout --
        -- stderr --
        error: cannot reach `http://127.0.0.1:[PORT]`: client error (Connect): tcp connect error: Connection refused (os error 111)
        hint: check the address, or leave `--server` away to work on the local data folder
    "#]]
    .assert_eq(&sandbox.refit(["repository", "list", "--server", "http://127.0.0.1:9"]).run().snapshot());
}

#[test]
fn server_and_data_folder_exclude_each_other() {
    let refused =
        sandbox().refit(["repository", "list", "--server", "http://h", "--data", "d"]).run();
    refused.code(2).stderr_has("two places");
}

#[test]
fn credentials_do_not_travel_in_the_clear() {
    let sandbox = sandbox();
    sandbox
        .refit(["repository", "list", "--server", "http://192.0.2.1:5000"])
        .env("REFIT_TOKEN", "secret-token")
        .run()
        .code(2)
        .stderr_has("in the clear")
        .stderr_lacks("secret-token");
}

#[test]
fn deleting_asks_or_is_told_not_to() {
    let args = ["repository", "delete", "app", "--server", "http://127.0.0.1:9"];
    sandbox().refit(args).run().code(2).stderr_has("--yes");
}

#[test]
fn empty_variables_are_as_if_they_were_not_there() {
    let sandbox = sandbox();
    let list = || {
        let command = sandbox.refit(["repository", "list", "--server", "http://192.0.2.1:5000"]);
        command.env("REFIT_TOKEN", "t").env("REFIT_CA_FILE", "")
    };
    list().env("REFIT_ALLOW_HTTP", "").run().code(2).stderr_has("in the clear");
    list()
        .env("REFIT_ALLOW_HTTP", "maybe")
        .run()
        .code(2)
        .stderr_has("`REFIT_ALLOW_HTTP` is `maybe`");
}
