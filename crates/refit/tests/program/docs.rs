//! What the documentation shows is what the program takes.

use std::fs;
use std::path::Path;

use testkit::{Sandbox, Server, SshKey, busybox};

use crate::sandbox;

/// The YAML examples of a page.
fn examples(page: &str) -> Vec<String> {
    let mut examples = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if line.trim() == "```yaml" {
            let example: Vec<&str> =
                lines.by_ref().take_while(|line| line.trim() != "```").collect();
            examples.push(example.join("\n") + "\n");
        }
    }
    examples
}

/// The task files that the documentation shows, with the names of their pages.
fn task_files() -> Vec<(&'static str, String)> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let mut files = Vec::new();
    for page in ["tasks.md", "task-reference.md", "purge.md", "agents.md", "build.md"] {
        let text = fs::read_to_string(docs.join(page)).expect("the page is there");
        let of_page = examples(&text).into_iter().filter(|example| example.contains("steps:"));
        files.extend(of_page.map(|example| (page, example)));
    }
    assert!(files.len() >= 4, "{files:?}");
    files
}

#[test]
fn the_task_files_of_the_documentation_are_task_files() {
    let sandbox = sandbox();
    for (page, example) in task_files() {
        sandbox.write("acb.yaml", &example);
        let args = ["render", "-f", "acb.yaml", "--set", "token=x", "--set", "tag=1"];
        let rendered = sandbox.refit(args).run();
        assert_eq!(rendered.code, Some(0), "{page}:\n{example}\n{}", rendered.stderr);
        assert!(!rendered.stderr.contains("warning"), "{page}:\n{example}\n{}", rendered.stderr);
    }
}

/// A server that has the images and secrets which the examples use, and a context for their builds.
fn server(sandbox: &Sandbox) -> Server {
    let settings = "[registry.local]\naliases = [\"shell.test\"]\n\
                    [build]\nshell_image = \"shell.test/busybox\"\n\
                    allow_addresses = [\"127.0.0.1\"]\n\
                    [tasks]\nbash_image = \"shell.test/busybox\"\n";
    sandbox.write("settings.toml", settings);
    let settings = sandbox.path("settings.toml").display().to_string();
    let server = sandbox.server_with(&["--config", &settings]);
    server.registry().push("busybox-base", "latest", &busybox());
    let all_programs = format!(
        "FROM {}/busybox-base\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n",
        server.host()
    );
    sandbox.write("busybox/Dockerfile", all_programs);
    sandbox.refit(["build", "busybox", "-t", "busybox"]).on(&server).succeeds();
    let base = format!("FROM {}/busybox\n", server.host());
    let program = "#!/bin/sh\ncase $1 in --list) printf 'b\\na\\n';; *) echo done: $1;; esac\n";
    sandbox
        .write("web/Dockerfile", format!("{base}COPY page /www/index.html\n"))
        .write("web/page", "a page\n")
        .write("app/Dockerfile", format!("{base}COPY program /app\nENTRYPOINT [\"/app\"]\n"))
        .write_executable("app/program", program);
    sandbox.refit(["build", "web", "-t", "web"]).on(&server).succeeds();
    // That of the user who runs the tests is nobody else's.
    let key = std::fs::read(SshKey::new(sandbox, "key", "").file).expect("it was just made");
    let key = sandbox.write("deploy-key", key).path("deploy-key").display().to_string();
    let set = ["secret", "set", "deploy-key", "--file", &key, "--all-runs"];
    sandbox.refit(set).on(&server).succeeds();
    server
}

#[test]
fn as_root_the_task_files_of_the_documentation_run() {
    let (sandbox, elsewhere) = (sandbox(), sandbox());
    let other = elsewhere.server();
    other.registry().push("base", "3", &busybox());
    let server = server(&sandbox);
    for (page, example) in task_files() {
        sandbox.write("app/acb.yaml", example.replace("registry.example.com", &other.host()));
        let args = ["run", "app", "--set", "token=word", "--set", "tag=1"];
        let done = sandbox.refit(args).on(&server).run();
        assert_eq!(done.code, Some(0), "{page}:\n{example}\n{}", done.stderr);
    }
    // What they say that they do.
    for image in ["app/manifests/1", "mirror/base/manifests/3"] {
        assert_eq!(server.registry().status(&format!("/v2/{image}")), 200, "{image}");
    }
    other.stop();
}
