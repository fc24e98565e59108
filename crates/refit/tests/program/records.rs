//! What is kept of runs and images about how they were made (architecture.md decision 1).

use oci::Digest;
use testkit::busybox;

use crate::sandbox;

#[test]
fn as_root_a_run_of_a_task_keeps_what_it_was_made_of() {
    let sandbox = sandbox();
    let server = sandbox.server();
    let image = server.registry().push("busybox", "latest", &busybox());
    let file = "version: v1.1.0
steps:
  - cmd: $Registry/busybox echo {{.Values.word}}
    env: [A={{.Values.p | toJson}}, B={{.Values.p | quote}}, C={{.Values.p}}]
";
    sandbox.write("app/acb.yaml", file).write("app/values.yaml", "word: hello\n");
    let args = ["run", "app", "--values", "app/values.yaml", "--set-secret", "p=hunter&22\"x"];
    let run = sandbox.refit(args.into_iter().chain(["-o", "json"])).on(&server).succeeds().json();
    let id = run["name"].as_str().unwrap();
    let show = ["task", "show-run", "--run-id", id, "-o", "json"];
    let shown = sandbox.refit(show).on(&server).succeeds().json();
    let plan = &shown["properties"]["plan"];
    assert_eq!(plan["taskFile"], Digest::of(file.as_bytes()).as_str());
    assert_eq!(plan["valuesFile"], Digest::of(b"word: hello\n").as_str());
    assert!(plan["context"].as_str().unwrap().starts_with("sha256:"), "{plan}");
    let [used] = plan["images"].as_array().unwrap().as_slice() else { panic!("{plan}") };
    assert!(used["reference"].as_str().unwrap().ends_with("/busybox:latest"), "{plan}");
    assert_eq!(used["digest"], image.as_str());
    let text = plan["text"].as_str().unwrap();
    assert!(text.contains("/busybox echo hello\n"), "{text}");
    assert!(text.contains("C=***]"), "{text}");
    assert!(!shown.to_string().contains("hunter"), "{shown}");
    // Lists stay short.
    let list = sandbox.refit(["task", "list-runs", "-o", "json"]).on(&server).succeeds().json();
    assert_eq!(list[0]["name"], id);
    assert!(list[0]["properties"]["plan"].is_null(), "{list}");
}

#[test]
fn as_root_an_image_tells_how_it_was_built() {
    let sandbox = sandbox();
    let server = sandbox.server();
    let base = server.registry().push("busybox", "latest", &busybox());
    sandbox.write("app/Dockerfile", format!("FROM {}/busybox\nCOPY f /f\n", server.host()));
    sandbox.write("app/f", "f");
    let args = ["build", "app", "-t", "app:1", "-o", "json"];
    let built = sandbox.refit(args).on(&server).succeeds().json();
    let id = built["name"].as_str().unwrap();
    let show = ["task", "show-run", "--run-id", id, "-o", "json"];
    let shown = sandbox.refit(show).on(&server).succeeds().json();
    let args = ["manifest", "show", "--record", "--name", "app:1", "-o", "json"];
    let record = sandbox.refit(args).on(&server).succeeds().json();
    assert_eq!(record["bases"][0]["digest"], base.as_str());
    assert_eq!(record["steps"].as_array().unwrap().len(), 1);
    let plan = &shown["properties"]["plan"];
    assert!(record["context"].as_str().unwrap().starts_with("sha256:"), "{record}");
    assert_eq!(plan["context"], record["context"]);
    assert_eq!(plan["images"][0]["digest"], base.as_str());
    let platform = record["platform"].as_str().unwrap();
    assert!(record["definition"].as_str().unwrap().starts_with("sha256:"), "{record}");
    assert_eq!(plan["definitions"][platform], record["definition"]);
    // What came of the run outlives the run.
    let (run, properties) = (&record["run"], &shown["properties"]);
    assert_eq!((&run["id"], &run["plan"]), (&built["name"], plan));
    assert_eq!(run["logDigest"], properties["logDigest"]);
    assert_eq!((&run["type"], &run["task"]), (&"QuickBuild".into(), &serde_json::Value::Null));
    // Of several platforms each image has its own.
    sandbox.write("app/Dockerfile", "FROM scratch\nCOPY f /f\n");
    let args =
        ["build", "app", "-t", "app:2", "--platform", "linux/amd64,linux/arm64", "-o", "json"];
    let built = sandbox.refit(args).on(&server).succeeds().json();
    let (index, _) = server.registry().manifest("app", "2");
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    for entry in index["manifests"].as_array().unwrap() {
        let name = format!("app@{}", entry["digest"].as_str().unwrap());
        let args = ["manifest", "show", "--record", "--name", &name, "-o", "json"];
        let record = sandbox.refit(args).on(&server).succeeds().json();
        assert_eq!(record["run"]["id"], built["name"]);
    }
    let args = ["manifest", "show", "--record", "--name", "busybox"];
    let none = sandbox.refit(args).on(&server).run().code(4);
    none.stderr_has("the build record of").stderr_has("only what was built here has one");
}
