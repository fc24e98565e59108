//! `refit purge`.

use expect_test::expect;
use testkit::{Image, Layer, Sandbox, Server};

use crate::sandbox;

fn image(text: &str) -> Image {
    Image::new([Layer::new().file("file", 0o644, text.as_bytes())])
}

fn filled() -> (Sandbox, Server) {
    let sandbox = sandbox();
    let server = sandbox.server();
    let registry = server.registry();
    registry.push("team/app", "old", &image("one"));
    registry.push("team/app", "1.0", &image("two"));
    registry.push("team/app", "1.1", &image("three"));
    registry.push("other", "old", &image("other"));
    (sandbox, server)
}

/// What was said, with one name for the server whatever its port.
fn said(text: &str, server: &Server) -> String {
    let local = server.host().replace("127.0.0.1", "localhost");
    testkit::filtered(&text.replace(&local, "HOST").replace(&server.host(), "HOST"))
}

fn manifests(sandbox: &Sandbox, server: &Server, name: &str) -> usize {
    let list = sandbox.refit(["manifest", "list", name, "-o", "tsv"]).on(server).run();
    list.success().stdout.lines().count()
}

#[test]
fn a_dry_run_tells_what_the_purge_then_deletes() {
    let (sandbox, server) = filled();
    let purge = ["purge", "-f", "team/.*:^1", "--ago", "0d", "--keep", "1", "--untagged"];
    let dry = purge.into_iter().chain(["--dry-run"]);
    let dry = sandbox.refit(dry).on(&server).run().success();
    expect![[r#"
        Would delete: HOST/team/app:1.0
        Number of tags to be deleted: 1
        Number of manifests to be deleted: 0
    "#]]
    .assert_eq(&said(&dry.stdout, &server));
    assert_eq!(server.registry().tags("team/app"), ["1.0", "1.1", "old"]);
    let done = sandbox.refit(purge.into_iter().chain(["--yes"])).on(&server).run().success();
    expect![[r#"
        Deleted HOST/team/app:1.0
        Number of deleted tags: 1
        Number of deleted manifests: 0
    "#]]
    .assert_eq(&said(&done.stdout, &server));
    assert_eq!(server.registry().tags("team/app"), ["1.1", "old"]);
    // Of what nobody needs the newest is kept too.
    assert_eq!(manifests(&sandbox, &server, "team/app"), 3);
    let only = ["purge", "--untagged-only", "-y", "-o", "json"];
    let report = sandbox.refit(only).on(&server).run().success().json();
    assert_eq!((&report["tags"], &report["manifests"]), (&0.into(), &1.into()), "{report}");
    assert_eq!(report["items"][0]["repository"], "team/app");
    assert_eq!(manifests(&sandbox, &server, "team/app"), 2);
}

#[test]
fn a_purge_that_cannot_be_is_refused_before_anything_is_deleted() {
    let (sandbox, server) = filled();
    for (args, words) in [
        (&["-f", "team/app:.*"][..], "there is no `--ago`"),
        (&["--ago", "0d"], "there is no `--filter`"),
        (&["-f", "team/app:.*", "--ago", "bad"], "`bad` is not a duration"),
        (&["-f", "team/app", "--ago", "0d"], "does not part a repository from a tag"),
        (&["-f", "a:.*", "--ago", "0d", "--registry", "none"], "registry `none` not found"),
    ] {
        let args = ["purge", "--yes"].into_iter().chain(args.iter().copied());
        let refused = sandbox.refit(args).on(&server).run();
        assert!(
            refused.code != Some(0) && refused.stderr.contains(words),
            "{words}: {}",
            refused.stderr
        );
    }
    assert_eq!(server.registry().tags("team/app").len(), 3);
    let unasked = sandbox.refit(["purge", "-f", "team/app:.*", "--ago", "0d"]).on(&server).run();
    assert!(unasked.stderr.contains("--yes"), "{}", unasked.stderr);
    assert_eq!(server.registry().tags("team/app").len(), 3);
}
