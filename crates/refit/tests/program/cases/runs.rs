//! Sections E, H and L: how runs begin, and what is kept of them.

use serde_json::Value;
use testkit::{until, validate};

use super::{long_sleep, record, run, server};
use crate::observe::processes;
use crate::output::tool;
use crate::sandbox;

#[test]
fn h12_an_image_from_scratch_tells_so() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    sandbox.write("app/Dockerfile", "FROM scratch\nLABEL a=b\n");
    let done = run(&sandbox, &server, "steps: [{build: -t a .}]").success();
    let dependencies = record(&sandbox, &server, &done)["dependencies"].clone();
    let base = &dependencies[0]["runtime-dependency"];
    assert_eq!((&base["reference"], &base["digest"]), (&"scratch:latest".into(), &Value::Null));
}

#[test]
fn as_root_h3_h13_a_run_tells_each_image_that_it_used_once() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    for (name, label) in [("tools", "t"), ("below", "b")] {
        sandbox.write(
            &format!("{name}/Dockerfile"),
            format!("FROM scratch\nLABEL a={label}\nCOPY f /{name}\n"),
        );
        sandbox.write(&format!("{name}/f"), name);
        sandbox.refit(["build", name, "-t", name]).on(&server).succeeds();
    }
    let dockerfile = "FROM R/tools AS x\nFROM R/tools:latest AS y\nFROM R/below AS one\n\
                      FROM one AS two\nFROM two\nCOPY --from=x /tools /x\nCOPY --from=y /tools /y\n";
    sandbox.write("app/Dockerfile", dockerfile.replace("R/", &format!("{}/", server.host())));
    let task = "version: v1.1.0\nsteps: [{build: -t $Registry/app:1 .}]";
    let done = run(&sandbox, &server, task).success();
    let dependencies = record(&sandbox, &server, &done)["dependencies"].clone();
    let name = |image: &Value| format!("{}:{}", image["repository"], image["tag"]).replace('"', "");
    assert_eq!(name(&dependencies[0]["runtime-dependency"]), "below:latest", "{dependencies}");
    let others = dependencies[0]["buildtime-dependency"].as_array().unwrap().iter();
    assert_eq!(others.map(name).collect::<Vec<_>>(), ["tools:latest"]);
}

#[test]
fn as_root_e30_e31_image_names_are_templates() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    sandbox.write("app/Dockerfile", "FROM scratch\nLABEL a=b\n");
    let build = |name: &str| sandbox.refit(["build", "app", "-t", name]).on(&server).run();
    let built = build("app:{{.Run.ID}}").success();
    let record = record(&sandbox, &server, &built);
    let id = record["runId"].as_str().unwrap();
    let digest = validate(&server.registry(), "app", id).digest;
    assert_eq!(built.stdout, format!("app@{digest}\n"));
    let host = server.host().replace("127.0.0.1", "localhost");
    let image = &record["outputImages"][0];
    assert_eq!((&image["registry"], &image["tag"]), (&host.into(), &id.into()));
    let refused = build("app:{{.Values.x}}").code(1);
    refused.stderr_has("`app:`");
    assert_eq!(server.registry().tags("app"), [id]);
}

#[test]
fn as_root_l8_a_build_without_a_name_is_not_pushed_and_says_so() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    sandbox.write("app/Dockerfile", "FROM scratch\nLABEL a=b\n");
    let built = sandbox.refit(["build", "app"]).on(&server).succeeds();
    let built = built.stderr_has("The image gets no name (`-t`), so it is not pushed");
    let record = record(&sandbox, &server, &built);
    assert_eq!(record["status"], "Succeeded");
    assert_eq!(record["outputImages"].as_array().map_or(0, Vec::len), 0, "{record}");
    let listed = sandbox.refit(["repository", "list", "-o", "json"]).on(&server).succeeds();
    assert_eq!(listed.json(), serde_json::json!(["busybox"]));
}

#[test]
fn as_root_l13_l14_the_name_of_a_file_says_whether_it_is_a_task() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let task = "{\"steps\": [{\"id\": \"s\", \"cmd\": \"BUSYBOX echo from json\"}]}";
    sandbox.write("app/task.json", task.replace("BUSYBOX", "{{.Run.Registry}}/busybox"));
    let done = sandbox.refit(["run", "-f", "task.json", "app"]).on(&server).run();
    done.success().stderr_has(" from json\n");
    let git = "https://example.com/app.git";
    for (case, file, kind, member) in [
        ("l13", "task.json", "FileTask", "taskFilePath"),
        ("l14", "build.txt", "Docker", "dockerFilePath"),
    ] {
        let name = format!("case-{case}");
        let create = ["task", "create", &name, "-c", git, "-f", file, "-o", "json"];
        let created = sandbox.refit(create).on(&server).succeeds().json();
        let step = &created["properties"]["step"];
        assert_eq!((&step["type"], &step[member]), (&kind.into(), &file.into()), "{case}");
    }
}

#[test]
fn as_root_l2_the_limit_of_a_run_ends_it_before_that_of_its_step() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let queue = |sleep: &str| {
        let task = format!("steps: [{{cmd: BUSYBOX {sleep}, timeout: 600}}]");
        sandbox.write("app/acb.yaml", task.replace("BUSYBOX", "{{.Run.Registry}}/busybox"));
        let args = ["run", "app", "--timeout", "300", "--no-wait", "-o", "json"];
        let queued = sandbox.refit(args).on(&server).succeeds().json();
        queued["name"].as_str().unwrap().to_owned()
    };
    let others = [1, 2].map(|_| queue(&long_sleep(4)));
    until("the others run", || (processes(&long_sleep(4)) == 2).then_some(()));
    let id = queue(&long_sleep(5));
    // No request may ask for less than five minutes, so one that waits is changed.
    let database = sandbox.data().join("refit.db").display().to_string();
    let shorter = "UPDATE runs SET request = replace(request, '\"secs\":300', '\"secs\":2') \
                   WHERE status = 'Queued'; SELECT changes();";
    let change = ["-cmd", ".timeout 10000", &database, shorter];
    let Some(changed) = tool(&sandbox, "sqlite3", &change) else { return };
    assert_eq!(changed, "1\n");
    for other in others {
        sandbox.refit(["task", "cancel-run", "--run-id", &other]).on(&server).succeeds();
    }
    until("its command runs", || (processes(&long_sleep(5)) == 1).then_some(()));
    let followed = sandbox.refit(["task", "logs", "--run-id", &id]).on(&server).run();
    assert!(followed.stdout.contains("the run reached its time limit of 2 s"), "{followed:?}");
    let show = ["task", "show-run", "--run-id", &id, "-o", "json"];
    let run = sandbox.refit(show).on(&server).succeeds().json();
    assert_eq!(run["properties"]["status"], "Timeout");
    until("its command is gone", || (processes(&long_sleep(5)) == 0).then_some(()));
}
