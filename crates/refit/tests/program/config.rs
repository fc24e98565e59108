//! `refit config`.

use expect_test::expect;
use testkit::{Image, Layer};

use crate::sandbox;

#[test]
fn soft_delete_is_shown_and_changed() {
    let sandbox = sandbox();
    let server = sandbox.server();
    let run = |args: &[&str]| {
        let args = ["config"].iter().chain(args).copied();
        sandbox.refit(args).on(&server).run()
    };
    expect![[r#"
        exit: 0
        -- stdout --
        STATUS    DAYS  UPDATED
        ------    ----  -------
        disabled  7
        -- stderr --
    "#]]
    .assert_eq(&run(&["soft-delete", "show"]).snapshot());
    run(&["soft-delete", "update"]).code(2);
    for days in ["0", "91"] {
        let told = run(&["soft-delete", "update", "--days", days]).code(2);
        assert!(told.stderr.contains("days are 1 to 90"), "{}", told.stderr);
    }
    run(&["retention", "update", "--status", "enabled"]).success();
    expect![[r#"
        exit: 5
        -- stdout --
        -- stderr --
        error: soft delete cannot be enabled while retention of untagged manifests is
        hint: `refit config retention update --status disabled` comes first
    "#]]
    .assert_eq(&run(&["soft-delete", "update", "--status", "enabled", "--days", "3"]).snapshot());
    run(&["retention", "update", "--status", "disabled"]).success();
    run(&["soft-delete", "update", "--status", "enabled", "--days", "3"]).success();
    run(&["retention", "update", "--status", "enabled"]).code(5);
    let shown = run(&["soft-delete", "show", "-o", "json"]).json();
    assert_eq!((&shown["status"], &shown["retentionDays"]), (&"enabled".into(), &3.into()));
}

#[test]
fn retention_is_shown_and_changed() {
    let sandbox = sandbox();
    let server = sandbox.server();
    let run = |args: &[&str]| sandbox.refit(args.iter().copied()).on(&server).run();
    expect![[r#"
        exit: 0
        -- stdout --
        TYPE               STATUS    DAYS  UPDATED
        ----               ------    ----  -------
        UntaggedManifests  disabled  7
        -- stderr --
    "#]]
    .assert_eq(&run(&["config", "retention", "show"]).snapshot());
    run(&["config", "retention", "update"]).code(2);
    let told = run(&["config", "retention", "update", "--days", "366"]).code(2);
    assert!(told.stderr.contains("days are 0 to 365"), "{}", told.stderr);
    let enable = ["--status", "enabled", "--days", "0", "--type", "UntaggedManifests"];
    run(&[&["config", "retention", "update"][..], &enable].concat()).success();
    let shown = run(&["config", "retention", "show", "-o", "json"]).json();
    assert_eq!((&shown["status"], &shown["days"]), (&"enabled".into(), &0.into()));
    let image = |text: &str| Image::new([Layer::new().file("file", 0o644, text.as_bytes())]);
    server.registry().push("app", "1", &image("one"));
    // The second one takes its tag.
    server.registry().push("app", "1", &image("two"));
    let manifests = || {
        let listed = run(&["manifest", "list", "app", "-o", "json"]).json();
        listed.as_array().map_or(0, Vec::len)
    };
    let begun = std::time::Instant::now();
    while manifests() > 1 {
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "it stays");
    }
}
