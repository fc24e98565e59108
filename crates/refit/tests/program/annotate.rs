//! `refit annotate`, and `acr annotate` in steps of tasks.

use expect_test::expect;
use serde_json::{Value, json};
use testkit::{Image, Layer, Sandbox, Server};

use crate::sandbox;

const NOTE: &str = "application/vnd.example.note";
const LIFECYCLE: &str = "application/vnd.microsoft.artifact.lifecycle";

fn image(text: &str) -> Image {
    Image::new([Layer::new().file("file", 0o644, text.as_bytes())])
}

fn said(text: &str, server: &Server) -> String {
    let local = server.host().replace("127.0.0.1", "localhost");
    testkit::filtered(&text.replace(&local, "HOST").replace(&server.host(), "HOST"))
}

fn run_task(sandbox: &Sandbox, server: &Server, steps: &str) -> testkit::Outcome {
    sandbox.write("app/acb.yaml", format!("version: v1.1.0\nsteps:\n{steps}"));
    sandbox.refit(["run", "app"]).on(server).run()
}

#[test]
fn annotations_are_referrers_of_the_images_they_are_about() {
    let sandbox = sandbox();
    let server = sandbox.server();
    let one = server.registry().push("team/app", "1.0", &image("one"));
    let two = server.registry().push("team/app", "2.0", &image("two"));
    let args = ["annotate", "-f", "team/.*:^1", "--artifact-type", NOTE, "-a", "a=1,b=x=y"];
    let dry = args.into_iter().chain(["--dry-run"]);
    expect![[r#"
        Would annotate: HOST/team/app:1.0
        Number of tags to be annotated: 1
        Number of manifests to be annotated: 0
        Number of locked tags skipped: 0
    "#]]
    .assert_eq(&said(&sandbox.refit(dry).on(&server).run().success().stdout, &server));
    assert_eq!(server.registry().referrers("team/app", &one), [] as [Value; 0]);
    expect![[r#"
        Annotated HOST/team/app:1.0
        Number of annotated tags: 1
        Number of annotated manifests: 0
        Number of locked tags skipped: 0
    "#]]
    .assert_eq(&said(&sandbox.refit(args).on(&server).run().success().stdout, &server));
    server.stop();

    // A server that starts again still knows them.
    let server = sandbox.server();
    let found = server.registry().referrers("team/app", &one);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["artifactType"], NOTE);
    assert_eq!(found[0]["annotations"], json!({ "a": "1", "b": "x=y" }));
    let digest = found[0]["digest"].as_str().unwrap();
    let (bytes, media_type) = server.registry().manifest("team/app", digest);
    let manifest: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(media_type, "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.oci.empty.v1+json");
    assert_eq!(manifest["subject"]["digest"], one.to_string());
    let config = manifest["config"]["digest"].as_str().unwrap().parse().unwrap();
    assert_eq!(server.registry().blob("team/app", &config), b"{}");
    assert_eq!(server.registry().referrers("team/app", &two), [] as [Value; 0]);
}

#[test]
fn the_end_of_a_life_is_told_once() {
    let sandbox = sandbox();
    let server = sandbox.server();
    let one = server.registry().push("app", "1.0", &image("one"));
    for (kind, date, tags) in [(LIFECYCLE, 1, 1), (LIFECYCLE, 2, 0), (NOTE, 1, 1), (NOTE, 2, 1)] {
        let date = format!("date={date}");
        let args = ["annotate", "-f", "app:.*", "--artifact-type", kind, "-a", &date, "-o", "json"];
        let report = sandbox.refit(args).on(&server).run().success().json();
        assert_eq!((&report["tags"], &report["manifests"]), (&tags.into(), &0.into()), "{report}");
        assert_eq!(report["items"].as_array().unwrap().len(), tags, "{report}");
    }
    assert_eq!(server.registry().referrers("app", &one).len(), 3);
}

#[test]
fn annotations_that_cannot_be_are_refused() {
    let sandbox = sandbox();
    let server = sandbox.server();
    for (args, words) in [
        (&["--artifact-type", NOTE, "-a", "k=v"][..], "there is no `--filter`"),
        (&["-f", "app:.*", "-a", "k=v"], "there is no `--artifact-type`"),
        (&["-f", "app:.*", "--artifact-type", NOTE], "there is no `--annotations`"),
        (&["-f", "app:.*", "--artifact-type", NOTE, "-a", "k=v,w"], "`w` is not `KEY=VALUE`"),
        (&["-f", "app:[", "--artifact-type", NOTE, "-a", "k=v"], "app:["),
    ] {
        let args = ["annotate"].into_iter().chain(args.iter().copied());
        let refused = sandbox.refit(args).on(&server).run();
        assert!(
            refused.code != Some(0) && refused.stderr.contains(words),
            "{words}: {}",
            refused.stderr
        );
    }
}

#[test]
fn a_step_annotates_if_its_environment_asks_for_it() {
    let sandbox = sandbox();
    let server = sandbox.server();
    let one = server.registry().push("app", "1.0", &image("one"));
    let command = format!("acr annotate -f 'app:.*' --artifact-type {NOTE} -a k=v");
    for env in ["", ", env: [ACR_EXPERIMENTAL_ANNOTATE=false]"] {
        let refused = run_task(&sandbox, &server, &format!("  - {{cmd: \"{command}\"{env}}}\n"));
        assert_eq!(refused.code, Some(1));
        refused.stderr_has("ACR_EXPERIMENTAL_ANNOTATE=true");
    }
    assert_eq!(server.registry().referrers("app", &one), [] as [Value; 0]);
    let env = "env: [ACR_EXPERIMENTAL_ANNOTATE=true]";
    let done = run_task(&sandbox, &server, &format!("  - {{cmd: \"{command}\", {env}}}\n"));
    let log = said(&done.success().stderr, &server);
    for line in ["Annotated HOST/app:1.0\n", "Number of annotated tags: 1\n"] {
        assert!(log.contains(line), "`{line}` is not in:\n{log}");
    }
    let found = server.registry().referrers("app", &one);
    assert_eq!(found[0]["annotations"], json!({ "k": "v" }), "{found:?}");
}
