use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::{Duration, Instant};

use expect_test::expect;
use testkit::{Sandbox, Server, busybox, until, validate};

use crate::sandbox;

/// A context that needs no base image and runs nothing.
pub(crate) fn scratch_app(sandbox: &Sandbox) {
    sandbox
        .write("app/Dockerfile", "FROM scratch\nCOPY file /\nENV A=1\n")
        .write("app/file", "one");
}

/// A context on a base image with a shell, which the server holds.
pub(crate) fn app(sandbox: &Sandbox, server: &Server, instructions: &str) {
    server.registry().push("busybox", "latest", &busybox());
    let from = format!("FROM {}/busybox\n", server.host());
    sandbox.write("app/Dockerfile", format!("{from}{instructions}"));
}

/// An embedded data folder that holds a base image with a shell, as `localhost:5000/busybox`.
fn with_base(sandbox: &Sandbox) {
    let server = sandbox.server();
    server.registry().push("busybox", "latest", &busybox());
    server.stop();
}

const STAGES: &str = "\
ARG GREETING=hello
FROM localhost:5000/busybox AS make
ARG GREETING
WORKDIR /work
COPY src/ .
RUN cat name.txt && echo \"$GREETING $(cat name.txt)\" > out.txt

FROM scratch
COPY --from=make /work/out.txt /greeting.txt
CMD [\"/greeting\"]
";

fn stages(sandbox: &Sandbox) {
    sandbox
        .write("app/Dockerfile", STAGES)
        .write("app/src/name.txt", "world\n")
        .write("app/lost.txt", "x")
        .write("app/.dockerignore", "lost.txt\n");
}

#[test]
fn as_root_stages_are_built_embedded_and_served_later() {
    let sandbox = sandbox();
    with_base(&sandbox);
    stages(&sandbox);
    let args = ["build", "app", "-t", "greeting:1", "-t", "greeting:latest"];
    let built = sandbox.refit(args).run().success();
    expect![[r#"
        greeting@sha256:[DIGEST]
        greeting@sha256:[DIGEST]
    "#]]
    .assert_eq(&built.filtered_stdout());
    assert!(built.stderr.contains("RUN cat name.txt"), "{}", built.stderr);
    assert!(built.stderr.contains(" world\n"), "{}", built.stderr);

    let server = sandbox.server();
    let image = validate(&server.registry(), "greeting", "1");
    assert_eq!(image.digest.as_str(), built.digest());
    assert_eq!(image.text("greeting.txt"), "hello world\n");
    assert_eq!(image.files().len(), 1);
}

#[test]
fn as_root_an_unchanged_context_is_cached_and_a_changed_one_is_not_stale() {
    let sandbox = sandbox();
    with_base(&sandbox);
    stages(&sandbox);
    let build = |flags: &[&str]| {
        let args = ["build", "app", "-t", "greeting"].into_iter().chain(flags.iter().copied());
        sandbox.refit(args).env("SOURCE_DATE_EPOCH", "1700000000").run().success()
    };
    let first = build(&[]);
    let second = build(&[]);
    assert_eq!(first.digest(), second.digest());
    assert!(!second.stderr.contains("world\n"), "nothing ran again: {}", second.stderr);
    assert!(second.stderr.contains("CACHED"), "{}", second.stderr);
    let third = build(&["--no-cache"]);
    assert!(third.stderr.contains("world\n"), "{}", third.stderr);
    assert_eq!(first.digest(), third.digest());
    sandbox.write("app/src/name.txt", "there\n");
    assert_ne!(first.digest(), build(&[]).digest());
    assert_ne!(first.digest(), build(&["--build-arg", "GREETING=bye"]).digest());
}

#[test]
fn as_root_a_served_build_is_pulled_from_its_server() {
    let sandbox = sandbox();
    let server = sandbox.server();
    app(&sandbox, &server, "RUN echo made > /made && rm /etc/group\nLABEL a=b\n");
    sandbox.refit(["build", "app", "-t", "team/app:1"]).on(&server).run().success();
    let image = validate(&server.registry(), "team/app", "1");
    assert_eq!(image.text("made"), "made\n");
    assert!(!image.files().contains_key("etc/group"));
    assert_eq!(image.config.config.labels["a"], "b");
}

#[test]
fn as_root_a_failing_instruction_names_its_place() {
    let sandbox = sandbox();
    let server = sandbox.server();
    app(&sandbox, &server, "COPY Dockerfile /\nRUN echo before; exit 7\n");
    let failed = sandbox.refit(["build", "app", "-t", "app"]).on(&server).run().code(1);
    assert_eq!(failed.stdout, "");
    let failed = failed.stderr_has("before").stderr_has("Dockerfile:3").stderr_has("error: run `");
    assert!(failed.stderr.contains('7'), "{}", failed.stderr);
    sandbox.refit(["repository", "show-tags", "app"]).on(&server).run().code(4);
}

#[test]
fn as_root_a_dockerfile_that_is_wrong_names_its_place() {
    let sandbox = sandbox();
    sandbox.write("app/Dockerfile", "FROM scratch\nCOPPY a b\n");
    let failed = sandbox.refit(["build", "app"]).run().code(1);
    failed.stderr_has("Dockerfile:2").stderr_has("COPPY");
}

#[test]
fn as_root_a_base_image_that_another_registry_does_not_have_fails_the_build() {
    let sandbox = sandbox();
    let (other, server) = (Server::start(), sandbox.server_beside_others());
    let from = format!("FROM {}/no/such:image\n", other.host());
    sandbox.write("app/Dockerfile", from);
    let outcome = sandbox.refit(["build", "app"]).on(&server).run().code(1);
    assert!(outcome.stderr.contains("Run failed after"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("/no/such:image` does not exist"), "{}", outcome.stderr);
}

#[test]
fn as_root_a_dockerfile_from_outside_is_not_in_the_context() {
    let sandbox = sandbox();
    sandbox.write("app/file", "one").write("other", "FROM scratch\nCOPY . /\n");
    let built = sandbox.refit(["build", "app", "-f", "other", "-t", "app"]).run().success();
    let server = sandbox.server();
    let image = validate(&server.registry(), "app", &built.digest());
    assert_eq!(image.files().keys().collect::<Vec<_>>(), ["file"]);
}

#[test]
fn as_root_a_build_without_a_name_prints_its_digest_and_the_run_as_json() {
    let sandbox = sandbox();
    scratch_app(&sandbox);
    let built = sandbox.refit(["build", "app"]).run().success();
    assert_eq!(built.filtered_stdout(), "sha256:[DIGEST]\n");
    let args = ["build", "app", "-t", "app", "-o", "json", "--no-logs", "--metadata-file", "meta"];
    let built = sandbox.refit(args).run().success();
    assert_eq!(built.json()["properties"]["status"], "Succeeded");
    assert!(!built.stderr.contains("COPY"), "{}", built.stderr);
    let metadata = fs::read_to_string(sandbox.path("meta")).unwrap();
    let metadata: serde_json::Value = serde_json::from_str(&metadata).unwrap();
    assert_eq!(metadata["containerimage.digest"], built.json()["properties"]["outputDigest"]);
}

#[test]
fn as_root_what_a_build_was_given_is_private_in_a_folder_that_was_there() {
    let sandbox = sandbox();
    sandbox.write("data/refit.db", "");
    for (path, mode) in [("data", 0o755), ("data/refit.db", 0o644)] {
        fs::set_permissions(sandbox.path(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    scratch_app(&sandbox);
    // Killed servers leave the files beside the database.
    let server = sandbox.server();
    let args = ["build", "app", "--secret-build-arg", "TOKEN=hunter2"];
    sandbox.refit(args).on(&server).run().success();
    server.kill();
    let mut found = Vec::new();
    for entry in fs::read_dir(sandbox.data()).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        let mode = entry.metadata().unwrap().mode();
        // Who has the folder is no secret.
        if !["lock", "owner"].contains(&&*name) {
            assert_eq!(mode & 0o077, 0, "{name} has mode {mode:o}");
            found.push(name);
        }
    }
    for name in ["refit.db", "refit.db-wal", "workspaces", "logs"] {
        assert!(found.iter().any(|found| found == name), "{name} is not in {found:?}");
    }
}

#[test]
fn as_root_a_build_argument_without_value_is_that_of_the_environment_or_none() {
    let sandbox = sandbox();
    let text = "FROM scratch\nARG A=default\nARG B=default\nLABEL a=$A b=$B\n";
    sandbox.write("app/Dockerfile", text);
    let built = |variables: &[(&str, &str)]| {
        let args = ["build", "app", "-t", "app", "--build-arg", "A", "--secret-build-arg", "B"];
        let build = variables.iter().fold(sandbox.refit(args), |build, (n, v)| build.env(n, v));
        build.run().success();
        let server = sandbox.server();
        let labels = validate(&server.registry(), "app", "latest").config.config.labels;
        (labels["a"].clone(), labels["b"].clone())
    };
    assert_eq!(built(&[]), ("default".into(), "default".into()));
    assert_eq!(built(&[("A", ""), ("B", "b")]), (String::new(), "b".into()));
}

#[test]
fn a_metadata_file_that_cannot_be_written_is_told_before_the_build() {
    let sandbox = sandbox();
    scratch_app(&sandbox);
    let build = |args: &[&str]| {
        let all = ["build", "app", "--server", "http://127.0.0.1:9", "--metadata-file"];
        sandbox.refit(all.into_iter().chain(args.iter().copied())).run().code(2)
    };
    build(&["no/such/folder"]).stderr_has("error: could not write `no/such/folder`");
    build(&["app"]).stderr_has("error: could not write `app`");
    build(&["meta", "--no-wait"]).stderr_has("`--metadata-file` needs the end of the run");
    assert!(!sandbox.path("meta").exists());
}

#[test]
fn as_root_an_image_is_kept_out_of_the_registry_on_demand() {
    let sandbox = sandbox();
    scratch_app(&sandbox);
    let built = sandbox.refit(["build", "app", "-t", "app", "--no-push"]).run().success();
    assert_eq!(built.filtered_stdout(), "sha256:[DIGEST]\n");
    sandbox.refit(["repository", "show-tags", "app"]).run().code(4);
}

const SECRETS: &str = "\
RUN --mount=type=secret,id=file --mount=type=secret,id=named,env=NAMED \\
    cat /run/secrets/file && echo \"$NAMED\" && echo \"$NAMED\" | md5sum
RUN ls /run/secrets 2>&1 || true
";

#[test]
fn as_root_secrets_reach_the_command_and_no_log() {
    let sandbox = sandbox();
    let server = sandbox.server();
    app(&sandbox, &server, SECRETS);
    sandbox.write("key", "from a file");
    let args = ["build", "app", "-t", "app", "--secret", "id=file,src=key"];
    let build = || sandbox.refit(args).arg("--secret").arg("id=named,env=TOKEN").on(&server);
    let built = build().env("TOKEN", "of the environment").run().success();
    let output = &built.stderr;
    assert!(!output.contains("from a file") && !output.contains("of the environment"), "{output}");
    // It was there: the digest of it and of a line end.
    assert!(output.contains("649c005ba3e3560762d80789e8719505"), "{output}");
    assert!(output.contains("/run/secrets: No such file"), "{output}");
    let image = validate(&server.registry(), "app", "latest");
    assert!(!format!("{:?}", image.config).contains("environment"));

    build().run().code(2).stderr_has("the variable `TOKEN` of secret `named` is not set");
    let usage =
        |secret: &str| sandbox.refit(["build", "app", "--secret", secret]).on(&server).run();
    usage("id=x,src=absent").code(2).stderr_has("cannot be read from `absent`");
    usage("id=x,\"src=ab,sent\"").code(2).stderr_has("cannot be read from `ab,sent`");
    usage("src=key").code(2).stderr_has("has no id");
    usage("id=x,mode=1").code(2).stderr_has("`mode=1` is no part of a secret");
}

const LANGUAGE: &str = "\
ARG TOOL=tool
RUN <<EOF
mkdir /out
echo \"$TOOL of $(hostname)\" > /out/name
grep -c example.test /etc/hosts
ulimit -n
EOF
COPY --chmod=u=rw,go= <<config <<'script' /etc/app/
tool=$TOOL
config
echo $TOOL
script
COPY --parents --exclude=**/*.md docs/./guide /usr/share/
RUN --mount=type=bind,source=docs,target=/docs --mount=type=cache,target=/cache \\
    ls /docs/guide > /cache/list && wc -l < /cache/list
HEALTHCHECK --interval=5s CMD [\"true\"]
";

#[test]
fn as_root_the_language_is_built_as_people_write_it() {
    let sandbox = sandbox();
    let server = sandbox.server();
    app(&sandbox, &server, LANGUAGE);
    sandbox.write("app/docs/guide/one.txt", "1").write("app/docs/guide/two.md", "2");
    let args = ["build", "app", "-t", "app", "--add-host", "example.test=192.0.2.7"];
    let built = sandbox.refit(args).on(&server);
    let more = ["--ulimit", "nofile=111:222", "--label", "a=b", "--annotation", "c=d"];
    let built = more.into_iter().fold(built, |built, arg| built.arg(arg)).run().success();
    for line in [" 1\n", " 111\n", " 2\n", "RUN <<EOF (mkdir /out...)"] {
        assert!(built.stderr.contains(line), "{line}: {}", built.stderr);
    }
    let image = validate(&server.registry(), "app", "latest");
    assert_eq!(image.text("out/name"), "tool of refit\n");
    assert_eq!(image.text("etc/app/config"), "tool=tool\n");
    assert_eq!(image.text("etc/app/script"), "echo $TOOL\n");
    assert_eq!(image.text("usr/share/guide/one.txt"), "1");
    assert!(!image.files().contains_key("usr/share/guide/two.md"));
    assert_eq!(image.config.config.healthcheck.as_ref().unwrap().test, ["CMD", "true"]);
    assert_eq!(image.config.config.labels["a"], "b");

    let wrong =
        |flag: &str, value: &str| sandbox.refit(["build", "app", flag, value]).on(&server).run();
    wrong("--ulimit", "nofile").code(2).stderr_has("is not of the form `NAME=SOFT[:HARD]`");
    wrong("--add-host", "x=y").code(2).stderr_has("is not of the form `NAME=ADDRESS`");
    wrong("--shm-size", "much").code(2).stderr_has("`--shm-size much` is not a size");
    wrong("--annotation", "x").code(2).stderr_has("has no value");
}

#[test]
fn as_root_ctrl_c_cancels_the_build() {
    let sandbox = sandbox();
    let server = sandbox.server();
    app(&sandbox, &server, "RUN touch /started && sleep 600\n");
    let build = sandbox.refit(["build", "app"]).on(&server).start();
    wait_for_status(&sandbox, &server, "Running");
    let begun = Instant::now();
    build.interrupt();
    build.wait().code(130).stderr_has("was canceled");
    assert!(begun.elapsed() < Duration::from_secs(15));
    wait_for_status(&sandbox, &server, "Canceled");
}

#[test]
fn as_root_ctrl_c_cancels_an_embedded_build() {
    let sandbox = sandbox();
    with_base(&sandbox);
    sandbox.write("app/Dockerfile", "FROM localhost:5000/busybox\nRUN sleep 600\n");
    let build = sandbox.refit(["build", "app"]).start();
    build.until_exists(&sandbox.path("data/refit.sock"));
    let runs = || sandbox.refit(["task", "list-runs", "-o", "json"]).run().success().json();
    until("a running build", || (runs()[0]["properties"]["status"] == "Running").then_some(()));
    build.interrupt();
    build.wait().code(130);
    assert_eq!(runs()[0]["properties"]["status"], "Canceled");
}

#[test]
fn as_root_ctrl_c_ends_ones_own_build_and_not_those_of_others() {
    let sandbox = sandbox();
    with_base(&sandbox);
    let build = |name: &str, step: &str| {
        let text = format!("FROM localhost:5000/busybox\nRUN {step}\n");
        sandbox.write(&format!("{name}/Dockerfile"), text);
        sandbox.refit(["build", name, "-t", name, "--no-cache"])
    };
    let runs = || sandbox.refit(["task", "list-runs", "-o", "json"]).run().success().json();
    let running = |count: usize| {
        until("running builds", || {
            let runs = runs();
            let runs = runs.as_array().expect("a list");
            let running = runs.iter().filter(|run| run["properties"]["status"] == "Running");
            (running.count() == count).then_some(())
        });
    };
    let mine = build("mine", "sleep 600").start();
    mine.until_exists(&sandbox.path("data/refit.sock"));
    running(1);
    let theirs = build("theirs", "sleep 2").start();
    running(2);
    mine.interrupt();
    theirs.wait().success();
    mine.wait().code(130).stderr_has("was canceled").stderr_has("waiting for other commands");

    let mine = build("mine", "sleep 600").start();
    mine.until_exists(&sandbox.path("data/refit.sock"));
    running(1);
    let theirs = build("theirs", "sleep 600").start();
    running(2);
    mine.interrupt();
    until("the end of the first", || {
        let runs = runs();
        let mut runs = runs.as_array().expect("a list").iter();
        runs.all(|run| run["properties"]["status"] != "Running" || run["name"] != "c03")
            .then_some(())
    });
    // Nobody waits for an owner that insists.
    mine.interrupt();
    mine.wait().code(130).stderr_lacks("may go on");
    drop(theirs);
}

#[test]
fn as_root_a_run_goes_on_without_its_client() {
    let sandbox = sandbox();
    let server = sandbox.server();
    app(&sandbox, &server, "RUN sleep 1; echo done > /done\n");
    let queued = sandbox.refit(["build", "app", "-t", "app", "--no-wait"]).on(&server).run();
    let id = queued.success().stdout.trim().to_owned();
    let log = sandbox.refit(["task", "logs", "--run-id", &id]).on(&server).run().success().stdout;
    assert!(log.contains("was successful"), "{log}");
    validate(&server.registry(), "app", "latest");
}

/// Waits for the newest run.
#[track_caller]
pub(crate) fn wait_for_status(sandbox: &Sandbox, server: &Server, status: &str) {
    until(status, || {
        let args = ["task", "list-runs", "-o", "json"];
        let runs = sandbox.refit(args).on(server).run().success().json();
        (runs[0]["properties"]["status"] == status).then_some(())
    });
}

#[test]
fn what_is_seldom_meant_is_told_without_a_server() {
    let sandbox = sandbox();
    sandbox
        .write("app/Dockerfile", "FROM scratch AS Base\nCOPY lost.txt /\nCMD one two\n")
        .write("app/.dockerignore", "lost.txt\n");
    let check = |more: &[&str]| {
        // Nobody is there, and nobody is asked.
        let server = ["--server", "http://127.0.0.1:9"];
        let args = ["build", "app", "--check"].into_iter().chain(server);
        sandbox.refit(args.chain(more.iter().copied())).run()
    };
    expect![[r#"
        exit: 1
        -- stdout --
        warning: Stage name 'Base' should be lowercase (StageNameCasing)
         --> Dockerfile:1:1
          |
        1 | FROM scratch AS Base
          | ^^^^^^^^^^^^^^^^^^^^
        hint: see https://docs.docker.com/go/dockerfile/rule/stage-name-casing/
        warning: Attempting to Copy file "lost.txt" that is excluded by .dockerignore (CopyIgnoredFile)
         --> Dockerfile:2:1
          |
        2 | COPY lost.txt /
          | ^^^^^^^^^^^^^^^
        hint: see https://docs.docker.com/go/dockerfile/rule/copy-ignored-file/
        warning: JSON arguments recommended for CMD to prevent unintended behavior related to OS signals (JSONArgsRecommended)
         --> Dockerfile:3:1
          |
        3 | CMD one two
          | ^^^^^^^^^^^
        hint: see https://docs.docker.com/go/dockerfile/rule/json-args-recommended/
        -- stderr --
        error: 3 warnings
    "#]]
    .assert_eq(&check(&[]).snapshot());
    let told = check(&["--output", "json"]).code(1);
    let told: Vec<serde_json::Value> = serde_json::from_str(&told.stdout).unwrap();
    let rules: Vec<&str> = told.iter().filter_map(|one| one["rule"].as_str()).collect();
    assert_eq!(rules, ["StageNameCasing", "CopyIgnoredFile", "JSONArgsRecommended"]);

    sandbox.write("app/Dockerfile", "# check=skip=all\nFROM scratch AS Base\n");
    check(&[]).success();
    sandbox.write("app/Dockerfile", "FROM scratch AS one\n");
    check(&["--target", "two"]).code(1).stderr_has("`two`");
    sandbox.write("app/Dockerfile", "FROMM scratch\n");
    check(&[]).code(1).stderr_has("did you mean `FROM`?");
}
