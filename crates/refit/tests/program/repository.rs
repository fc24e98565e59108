//! `refit repository`, `manifest` and `tag`.

use expect_test::expect;
use testkit::{Image, Layer, Sandbox, Server};

use crate::sandbox;

fn filled() -> (Sandbox, Server) {
    let sandbox = sandbox();
    let server = sandbox.server();
    let image = |text: &str| Image::new([Layer::new().file("file", 0o644, text.as_bytes())]);
    let registry = server.registry();
    registry.push("team/app", "1", &image("one"));
    registry.push("team/app", "latest", &image("one"));
    registry.push("team/app", "2", &image("two"));
    registry.push("other", "1", &image("other"));
    (sandbox, server)
}

#[test]
fn what_the_registry_holds_is_listed() {
    let (sandbox, server) = filled();
    let run = |args: &[&str]| {
        sandbox.refit(args.iter().copied()).on(&server).run().success().filtered_stdout()
    };
    expect![[r#"
        REPOSITORY  TAGS  MANIFESTS  UPDATED
        ----------  ----  ---------  -------
        other       1     1          [TIME]
        team/app    3     2          [TIME]
    "#]]
    .assert_eq(&run(&["repository", "list"]));
    expect![[r#"
        [
          "other",
          "team/app"
        ]
    "#]]
    .assert_eq(&run(&["repository", "list", "-o", "json"]));
    expect![[r#"
        1
        2
        latest
    "#]]
    .assert_eq(&run(&["repository", "show-tags", "team/app"]));
    expect![[r#"
        1	sha256:[DIGEST]	[TIME]
        2	sha256:[DIGEST]	[TIME]
        latest	sha256:[DIGEST]	[TIME]
    "#]]
    .assert_eq(&run(&["tag", "list", "--repository", "team/app", "-o", "tsv"]));
    assert_eq!(run(&["manifest", "list", "team/app", "-o", "tsv"]).lines().count(), 2);
    let shown = run(&["manifest", "show", "team/app:2"]);
    assert!(shown.contains("application/vnd.oci.image.config.v1+json"), "{shown}");
}

#[test]
fn a_tag_goes_alone_and_a_manifest_with_its_tags() {
    let (sandbox, server) = filled();
    let run = |args: &[&str]| sandbox.refit(args.iter().copied()).on(&server).run();
    run(&["tag", "delete", "team/app:latest", "--yes"]).success();
    assert_eq!(server.registry().tags("team/app"), ["1", "2"]);
    expect![[r#"
        exit: 0
        -- stdout --
        MANIFESTS DELETED  TAGS DELETED
        -----------------  ------------
        1                  1
        -- stderr --
    "#]]
    .assert_eq(&run(&["manifest", "delete", "team/app:1", "--yes"]).snapshot());
    assert_eq!(server.registry().tags("team/app"), ["2"]);
    run(&["repository", "delete", "--image", "team/app:2", "-y"]).success();
    run(&["repository", "delete", "other", "-y"]).success();
    assert_eq!(run(&["repository", "list", "-o", "json"]).json(), serde_json::json!([]));
}

#[test]
fn what_is_locked_stays_until_it_is_unlocked() {
    let (sandbox, server) = filled();
    let run = |args: &[&str]| sandbox.refit(args.iter().copied()).on(&server).run();
    let image = ["--image", "team/app:1"];
    expect![[r#"
        exit: 0
        -- stdout --
        NAME        DELETE  WRITE    READ     LIST
        ----        ------  -----    ----     ----
        team/app:1  locked  enabled  enabled  enabled
        -- stderr --
    "#]]
    .assert_eq(
        &run(&[&["repository", "update", "--delete-enabled", "false"][..], &image].concat())
            .snapshot(),
    );
    expect![[r#"
        exit: 5
        -- stdout --
        -- stderr --
        error: tag `team/app:1` is locked: its `deleteEnabled` is false
        hint: `refit repository update --image team/app:1 --delete-enabled true` unlocks it
    "#]]
    .assert_eq(&run(&["tag", "delete", "team/app:1", "--yes"]).snapshot());
    run(&["repository", "delete", "team/app", "--yes"]).code(5);
    let purge = ["purge", "--filter", "team/app:.*", "--ago", "0d", "--yes"];
    assert!(run(&purge).success().stdout.contains("Number of deleted tags: 2\n"));
    assert_eq!(server.registry().tags("team/app"), ["1"]);
    // A build cannot write where nobody may, and its user is told so.
    run(&["repository", "update", "--repository", "team/app", "--write-enabled", "false"])
        .success();
    sandbox.write("context/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let built = run(&["build", "context", "-t", "team/app:1"]).code(1);
    assert!(built.stderr.contains("repository `team/app` is locked"), "{}", built.stderr);
    run(&["repository", "update", "team/app", "--write-enabled", "true"]).success();
    // Nor is anything built upon what is not to be read.
    run(&[&["repository", "update", "--read-enabled", "false"][..], &image].concat()).success();
    let base = format!("FROM {}/team/app:1\n", server.host());
    sandbox.write("context/Dockerfile", base);
    let built = run(&["build", "context", "-t", "other:2"]).code(1);
    assert!(built.stderr.contains("its `readEnabled` is false"), "{}", built.stderr);
    let shown = run(&[&["repository", "show", "-o", "json"][..], &image].concat()).json();
    let attributes = serde_json::json!({
        "deleteEnabled": false, "writeEnabled": true, "readEnabled": false, "listEnabled": true,
    });
    assert_eq!(shown["changeableAttributes"], attributes);
    let purge = [&purge[..], &["--include-locked"]].concat();
    assert!(run(&purge).success().stdout.contains("Number of deleted tags: 1\n"));
    run(&["repository", "update", "team/app"]).code(2);
}

#[test]
fn what_is_not_there_is_exit_code_4() {
    let (sandbox, server) = filled();
    for args in [
        &["repository", "show-tags", "missing"][..],
        &["repository", "delete", "missing", "--yes"],
        &["manifest", "show", "team/app:missing"],
        &["manifest", "delete", "team/app:missing", "--yes"],
        &["tag", "delete", "team/app:missing", "--yes"],
        &["repository", "list", "--registry", "missing"],
    ] {
        let told = sandbox.refit(args.iter().copied()).on(&server).run().code(4);
        assert!(told.stderr.contains("missing"), "{args:?}: {}", told.stderr);
    }
}

#[test]
fn deleting_asks_on_a_terminal() {
    let (sandbox, terminal) = (sandbox(), testkit::Terminal::new());
    let server = sandbox.server();
    server.registry().push("app", "1", &testkit::busybox());
    for (answer, code) in [("n\n", 1), ("y\n", 0)] {
        terminal.write(answer);
        let delete = sandbox.refit(["repository", "delete", "app"]).on(&server);
        delete.on_terminal(&terminal).run().code(code).stderr_has("(y/n): ");
    }
    sandbox.refit(["repository", "show-tags", "app"]).on(&server).run().code(4);
}
