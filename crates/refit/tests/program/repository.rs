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
