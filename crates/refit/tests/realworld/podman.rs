//! A runtime that is not ours: podman with a store of its own.

use std::path::PathBuf;
use std::process::Command;

use testkit::{Sandbox, Server};

use crate::{attempt, run};

/// Limits that any machine allows: podman's own default is more than some do.
const LIMITS: &[&str] = &["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];

/// One image in podman's store.
pub(crate) struct Podman {
    folder: PathBuf,
    image: String,
}

impl Podman {
    /// Pulls an image from a server.
    #[track_caller]
    pub(crate) fn pull(sandbox: &Sandbox, server: &Server, name: &str) -> Self {
        sandbox.write("podman/policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
        let image = format!("{}/{name}", server.host());
        let podman = Self { folder: sandbox.path("podman"), image };
        let policy = podman.folder.join("policy.json");
        let mut pull = podman.command();
        pull.args(["pull", "--quiet", "--tls-verify=false", "--signature-policy"]).arg(policy);
        run(pull.arg(&podman.image));
        podman
    }

    fn command(&self) -> Command {
        let mut command = Command::new("podman");
        command.arg("--root").arg(self.folder.join("root"));
        command.arg("--runroot").arg(self.folder.join("run"));
        command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
        command.args(["--events-backend", "none", "--runtime", "/usr/sbin/runc"]);
        command.env("TMPDIR", &self.folder);
        command
    }

    /// What a container of the image prints.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> String {
        let mut command = self.command();
        command.args(["run", "--rm", "--network", "none"]).args(LIMITS);
        run(command.arg(&self.image).args(args))
    }

    /// Starts the image's own command, which serves on port 8080 of the container's loopback.
    #[track_caller]
    pub(crate) fn start(&self) -> Container<'_> {
        let mut command = self.command();
        command.args(["run", "--detach", "--network", "none"]).args(LIMITS);
        let id = run(command.arg(&self.image)).trim().to_owned();
        Container { podman: self, id }
    }

    /// The image's config, as podman shows it.
    #[track_caller]
    pub(crate) fn config(&self) -> String {
        let mut command = self.command();
        run(command.args(["image", "inspect", "--format", "{{json .Config}}", &self.image]))
    }
}

/// A container under way; removed when dropped.
pub(crate) struct Container<'a> {
    podman: &'a Podman,
    id: String,
}

impl Container<'_> {
    #[track_caller]
    fn process(&self) -> String {
        let mut command = self.podman.command();
        let process = run(command.args(["inspect", "--format", "{{.State.Pid}}", &self.id]));
        let process = process.trim().to_owned();
        assert_ne!(process, "0", "the container ended:\n{}", self.log());
        process
    }

    /// What the container has written, in both of its streams.
    fn log(&self) -> String {
        let output = self.podman.command().args(["logs", &self.id]).output();
        let output = output.map(|output| [output.stdout, output.stderr].concat());
        String::from_utf8_lossy(&output.unwrap_or_default()).into_owned()
    }

    /// The body that a GET of a path gives, once the server listens.
    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> String {
        let network = format!("--net=/proc/{}/ns/net", self.process());
        let mut curl = Command::new("nsenter");
        curl.args([&network, "curl", "--silent", "--show-error", "--fail", "--noproxy", "*"]);
        curl.args(["--retry", "30", "--retry-delay", "1", "--retry-connrefused"]);
        let answer = attempt(curl.arg(format!("http://127.0.0.1:8080{path}")));
        answer.unwrap_or_else(|told| panic!("{told}{}", self.log()))
    }

    /// The user of the container's first process.
    #[track_caller]
    pub(crate) fn uid(&self) -> u32 {
        let process = self.process();
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let _ = self.podman.command().args(["rm", "--force", "--time", "0", &self.id]).output();
    }
}
