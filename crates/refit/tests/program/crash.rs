use std::fs;

use testkit::{Sandbox, Server, until, validate};

use crate::sandbox;

/// A step that can be told from those of other tests by its command line.
struct Step {
    mark: String,
}

impl Step {
    fn new(name: &str) -> Self {
        Self { mark: format!("{name}-{}", std::process::id()) }
    }

    /// Queues a build with this step.
    fn queue(&self, sandbox: &Sandbox, server: &Server, seconds: u32) -> String {
        let step = format!("RUN sleep {seconds} && echo {} > /made\n", self.mark);
        let busybox = fs::read("/bin/busybox").expect("busybox-static is installed");
        sandbox
            .write_executable("app/sh", busybox)
            .write("app/Dockerfile", format!("FROM scratch\nCOPY sh /bin/\n{step}"));
        let args = ["build", "app", "-t", "app:1", "--no-wait"];
        sandbox.refit(args).on(server).run().success().stdout.trim().to_owned()
    }

    fn is_under_way(&self) -> bool {
        let processes = fs::read_dir("/proc").expect("proc is mounted").flatten();
        let mut lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        lines.any(|line| String::from_utf8_lossy(&line).contains(&self.mark))
    }

    #[track_caller]
    fn kill(&self, server: Server) {
        until("the step", || self.is_under_way().then_some(()));
        server.kill();
        until("the end of the step", || (!self.is_under_way()).then_some(()));
    }
}

fn run(sandbox: &Sandbox, server: &Server, id: &str) -> serde_json::Value {
    let args = ["task", "show-run", "--run-id", id, "-o", "json"];
    sandbox.refit(args).on(server).run().success().json()["properties"].take()
}

#[test]
fn as_root_a_killed_server_s_build_is_taken_up_again() {
    let sandbox = sandbox();
    let server = sandbox.server();
    let step = Step::new("taken-up");
    let id = step.queue(&sandbox, &server, 2);
    step.kill(server);

    let server = sandbox.server();
    let log = sandbox.refit(["task", "logs", "--run-id", &id]).on(&server).run().success().stdout;
    assert!(log.contains("was successful"), "{log}");
    assert_eq!(run(&sandbox, &server, &id)["status"], "Succeeded");
    let image = validate(&server.registry(), "app", "1");
    assert_eq!(image.text("made").trim(), step.mark);
    // Nothing is left of the attempt that was cut off.
    let workspaces = sandbox.data().join("workspaces/local");
    until("the end of the workspace", || {
        (fs::read_dir(&workspaces).unwrap().count() == 0).then_some(())
    });
}

#[test]
fn as_root_a_build_that_kills_its_server_again_and_again_is_given_up() {
    let sandbox = sandbox();
    let mut server = sandbox.server();
    let step = Step::new("given-up");
    let id = step.queue(&sandbox, &server, 600);
    for _ in 0..3 {
        step.kill(server);
        server = sandbox.server();
    }
    until("the end", || (run(&sandbox, &server, &id)["status"] == "Error").then_some(()));
    assert!(!step.is_under_way());
    let log = sandbox.refit(["task", "logs", "--run-id", &id]).on(&server).run().stdout;
    assert!(log.contains("3 attempts"), "{log}");
}

/// How many runs are queued, and how often the server is killed meanwhile.
const RUNS: usize = 500;
const KILLS: usize = 20;

/// Statuses of the runs that have ended.
fn ended(sandbox: &Sandbox, server: &Server) -> Vec<String> {
    let list = ["task", "list-runs", "--top", "1000", "-o", "json"];
    let listed = sandbox.refit(list).on(server).succeeds().json();
    let runs = listed.as_array().expect("a list").iter();
    let statuses = runs.filter_map(|run| run["properties"]["status"].as_str());
    let is_over = |status: &&str| !matches!(*status, "Queued" | "Started" | "Running");
    statuses.filter(is_over).map(str::to_owned).collect()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test asks another program")]
fn as_root_of_500_runs_none_is_lost_or_published_twice_while_the_server_is_killed() {
    let sandbox = sandbox();
    sandbox.write("settings.toml", "[build]\nconcurrency = 2\n");
    let settings = sandbox.path("settings.toml").display().to_string();
    let start = || sandbox.server_with(&["--config", &settings]);
    let mut server = start();
    server.registry().push("busybox", "latest", &testkit::busybox());
    let queue = |task: &[&str]| {
        let args = ["run", "--no-wait", "-o", "json"].iter().chain(task).copied();
        let queued = sandbox.refit(args).on(&server).succeeds().json();
        queued["name"].as_str().unwrap().to_owned()
    };
    // All of them wait until these are canceled.
    let command = format!("{}/busybox sleep 1000", server.host());
    let first = [(); 2].map(|()| queue(&["--cmd", &command]));
    sandbox.write("app/Dockerfile", "FROM scratch\nARG RUN\nCOPY file /\nLABEL run=$RUN\n");
    sandbox.write("app/file", "content").write(
        "app/acb.yaml",
        "version: v1.1.0
steps:
  - {id: build, build: -t $Registry/many:$ID --build-arg RUN=$ID .}
  - {id: push, push: [$Registry/many:$ID]}
",
    );
    let mut ids: Vec<String> = (0..RUNS).map(|_| queue(&["app"])).collect();
    for id in &first {
        sandbox.refit(["task", "cancel-run", "--run-id", id]).on(&server).succeeds();
    }
    let mut hits = 0;
    for kill in 1..=KILLS {
        let wanted = kill * RUNS / (KILLS + 2);
        until("more runs have ended", || (ended(&sandbox, &server).len() >= wanted).then_some(()));
        server.kill();
        server = start();
        hits += usize::from(ended(&sandbox, &server).len() < first.len() + RUNS);
    }
    assert!(hits > KILLS / 2, "only {hits} kills met runs that had not ended");
    until("all runs have ended", || {
        (ended(&sandbox, &server).len() == first.len() + RUNS).then_some(())
    });
    let statuses = ended(&sandbox, &server);
    assert_eq!(statuses.iter().filter(|status| *status == "Succeeded").count(), RUNS);
    let mut tags = server.registry().tags("many");
    tags.sort();
    ids.sort();
    assert_eq!(tags, ids);
    server.stop();
    // The journal of tags has each of them once.
    let database = sandbox.data().join("refit.db").display().to_string();
    let query = "SELECT COUNT(*) || ' ' || COUNT(DISTINCT tag) FROM tag_moves
                 WHERE repository = 'many'";
    let moves = std::process::Command::new("sqlite3").args([&database, query]).output();
    let moves = String::from_utf8(moves.expect("sqlite3 is installed").stdout).unwrap();
    assert_eq!(moves.trim(), format!("{RUNS} {RUNS}"));
}

#[test]
fn as_root_a_task_that_is_retryable_begins_again() {
    let sandbox = sandbox();
    let server = sandbox.server();
    server.registry().push("busybox", "latest", &testkit::busybox());
    let step = Step::new("retryable");
    let file = "retryable: true
steps:
  - cmd: \"{{.Run.Registry}}/busybox sh -c 'sleep 2 && echo MARK'\"
";
    sandbox.write("app/acb.yaml", file.replace("MARK", &step.mark));
    let queued = sandbox.refit(["run", "app", "--no-wait", "-o", "json"]).on(&server).succeeds();
    let id = queued.json()["name"].as_str().unwrap().to_owned();
    step.kill(server);
    let server = sandbox.server();
    until("the end", || (run(&sandbox, &server, &id)["status"] == "Succeeded").then_some(()));
}
