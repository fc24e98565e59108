use testkit::{Terminal, until};

use crate::sandbox;

#[test]
fn a_login_is_proven_remembered_and_forgotten() {
    let sandbox = sandbox();
    let server = sandbox.server();
    let password = std::fs::read_to_string(sandbox.path("data/keys/admin-password")).unwrap();
    let elsewhere = |args: &[&str]| {
        // No token of the server lies in this user's folder.
        sandbox
            .refit(args.iter().copied())
            .env("REFIT_DATA", "")
            .env("XDG_RUNTIME_DIR", sandbox.path("other").display())
    };
    let login = ["login", server.url(), "--username", "admin", "--password-stdin"];
    elsewhere(&login).stdin("wrong").run().code(3);
    elsewhere(&["repository", "list", "--server", server.url()]).run().code(3);
    let told = elsewhere(&login).stdin(&password).run().success();
    assert!(!told.stderr.contains(password.trim()));
    elsewhere(&["repository", "list"]).run().success();

    elsewhere(&["logout"]).run().success();
    elsewhere(&["logout"]).run().code(4);
    elsewhere(&["repository", "list", "--server", server.url()]).run().code(3);
}

#[test]
fn a_client_of_the_same_user_finds_the_servers_token() {
    let sandbox = sandbox();
    let server = sandbox.server();
    sandbox.refit(["repository", "list"]).on(&server).run().success();
    let refused = sandbox.refit(["repository", "list"]).on(&server).env("REFIT_TOKEN", "wrong");
    refused.run().code(3).stderr_has("error: ");
}

#[test]
fn ctrl_c_ends_a_question_and_the_terminal_echoes_again() {
    let (sandbox, terminal) = (sandbox(), Terminal::new());
    let login = sandbox.refit(["login", "http://127.0.0.1:9"]).on_terminal(&terminal).start();
    until("a hidden answer", || (!terminal.echoes()).then_some(()));
    login.interrupt();
    login.wait().code(130).stderr_has("The token for http://127.0.0.1:9/: \n");
    assert!(terminal.echoes());
}
