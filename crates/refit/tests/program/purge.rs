//! `refit purge`, and `acr` in steps of tasks: the same commands over the same registry.

use expect_test::expect;
use testkit::{Image, Layer, Outcome, Sandbox, Server, until};

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

fn run_task(sandbox: &Sandbox, server: &Server, task: &str) -> Outcome {
    sandbox.write("app/acb.yaml", task);
    sandbox.refit(["run", "app"]).on(server).run()
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

#[test]
fn a_step_that_is_acr_purges_the_registry_of_its_run() {
    let (sandbox, server) = filled();
    let task = "version: v1.1.0
steps:
  - id: dry
    cmd: acr purge --filter 'team/app:^1' --ago 0d --untagged --dry-run
  - id: purge
    cmd: >
      acr purge --registry $Registry --filter 'team/app:^1' --ago 0d --untagged
  - cmd: acr tag list --repository team/app -r {{.Run.RegistryName}}
";
    let done = run_task(&sandbox, &server, task).success();
    let log = said(&done.stderr, &server);
    for line in [
        "Would delete: HOST/team/app:1.1\n",
        "Number of manifests to be deleted: 2\n",
        "Deleted HOST/team/app:1.0\n",
        "Deleted HOST/team/app:1.1\n",
        "Number of deleted tags: 2\n",
        "Number of deleted manifests: 2\n",
        "Listing tags for the \"team/app\" repository:\n",
        "HOST/team/app:old\n",
    ] {
        assert!(log.contains(line), "`{line}` is not in:\n{log}");
    }
    assert!(!log.contains("Launching container"), "{log}");
    assert_eq!(server.registry().tags("team/app"), ["old"]);
    assert_eq!(manifests(&sandbox, &server, "team/app"), 1);
    assert_eq!(server.registry().tags("other"), ["old"]);
    // Who it was is known for as long as the audit log is kept.
    let listed = || sandbox.refit(["audit", "export"]).on(&server).run().success().stdout;
    let told = until("the audit log tells what went", || {
        let log = listed();
        (log.matches(r#""action":"removed""#).count() == 4).then_some(log)
    });
    for target in ["team/app:1.0", "team/app:1.1", "team/app@sha256:"] {
        let line = format!(r#""principal":"run/local/c01","action":"removed","target":"{target}"#);
        assert!(told.contains(&line), "{told}");
    }
}

#[test]
fn a_step_that_is_acr_fails_as_others_do() {
    let (sandbox, server) = filled();
    for (step, words) in [
        ("cmd: acr purge --filter 'team/app:.*'", "there is no `--ago`"),
        ("cmd: acr purge --filter team/app:.* --ago 0d", "put the word in quotes"),
        ("cmd: acr tag delete --repository team/app 9.9", "tag `9.9` of repository `team/app`"),
        ("{cmd: acr version, env: [ACR_DEFAULT_REGISTRY=else.example.com]}", "else.example.com"),
        ("{cmd: acr version, detach: true}", "takes no `detach`"),
        ("{cmd: acr version, entryPoint: sh}", "takes no `entryPoint`"),
        ("cmd: acr login example.com", "`acr login` is not built in"),
        ("{cmd: acr purge --fliter x, retries: 1, retryDelay: 1}", "is tried again in 1 s"),
    ] {
        let failed = run_task(&sandbox, &server, &format!("version: v1.1.0\nsteps:\n  - {step}\n"));
        assert_eq!(failed.code, Some(1), "{step}");
        assert!(failed.stderr.contains(words), "{step}: {}", failed.stderr);
    }
    let ignored = "version: v1.1.0
steps:
  - {cmd: acr tag delete --repository team/app 9.9, ignoreErrors: true}
  - cmd: acr tag delete --repository team/app old
";
    run_task(&sandbox, &server, ignored).success();
    assert_eq!(server.registry().tags("team/app"), ["1.0", "1.1"]);
}

#[test]
fn an_image_of_the_settings_takes_the_place_of_acr() {
    let sandbox = sandbox();
    sandbox.write("settings.toml", "[tasks]\nacr_image = \"127.0.0.1:1/my-acr:1\"\n");
    let settings = sandbox.path("settings.toml").display().to_string();
    let server = sandbox.server_with(&["--config", &settings]);
    let failed = run_task(&sandbox, &server, "version: v1.1.0\nsteps:\n  - cmd: acr version\n");
    assert_eq!(failed.code, Some(1));
    assert!(failed.stderr.contains("127.0.0.1:1"), "{}", failed.stderr);
}
