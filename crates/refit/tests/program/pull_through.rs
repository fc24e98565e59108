//! Images of other registries, kept by a server and pulled by clients that are not ours.

use std::process::{Child, Command, Stdio};

use testkit::{Image, Layer, RegistryClient, Sandbox, Server, until};

use crate::damage::{flip, last_blob, skopeo};
use crate::output::tool;
use crate::sandbox;

fn image() -> Image {
    Image::new([Layer::new().file("file", 0o644, &[7; 3_000_000])])
}

fn keeping(sandbox: &Sandbox, host: &str) -> Server {
    let settings = format!(
        "[upstream.\"{host}\"]\npull_through = \"kept\"\ntag_keep = \"0s\"\n\
         [store]\ngarbage_period = \"1s\"\n"
    );
    sandbox.write("keeping.toml", settings);
    sandbox.server_with(&["--config", "keeping.toml"])
}

/// The password of a registry that wants one, and its bcrypt hash.
pub(crate) const PASSWORD: &str = "hunter2-hunter2";
const PASSWORD_HASH: &str = "$2y$05$abcdefghijklmnopqrstuuM6LdIRFtSO2kPdsnQR8QqPt6tFqthsy";

/// Debian's registry, the one that Docker wrote.
pub(crate) struct DockerRegistry {
    child: Child,
    pub(crate) host: String,
}

impl DockerRegistry {
    pub(crate) fn start(sandbox: &Sandbox) -> Self {
        Self::with(sandbox, "")
    }

    /// One that only `me` may use, with a password.
    pub(crate) fn with_login(sandbox: &Sandbox) -> Self {
        sandbox.write("htpasswd", format!("me:{PASSWORD_HASH}\n"));
        let file = sandbox.path("htpasswd").display().to_string();
        Self::with(sandbox, &format!("auth:\n  htpasswd:\n    realm: test\n    path: {file}\n"))
    }

    #[expect(clippy::disallowed_methods, reason = "a test runs another registry")]
    fn with(sandbox: &Sandbox, settings: &str) -> Self {
        let free = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("there is a free port");
        let host = free.local_addr().expect("it is bound").to_string();
        drop(free);
        let settings = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n{settings}",
            sandbox.path("docker-registry").display()
        );
        sandbox.write("registry.yml", settings);
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(sandbox.path("registry.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let registry = Self { child, host };
        let is_up = || std::net::TcpStream::connect(&registry.host).ok().map(drop);
        until("docker-registry", is_up);
        registry
    }
}

impl DockerRegistry {
    /// Gives one that wants a login the `busybox` of a server, as `base:1`.
    pub(crate) fn fill(&self, sandbox: &Sandbox, server: &Server) {
        let from = format!("docker://{}/busybox", server.host());
        let to = format!("docker://{}/base:1", self.host);
        let login = format!("me:{PASSWORD}");
        let copy = ["copy", "--src-tls-verify=false", "--dest-tls-verify=false", "--dest-creds"];
        let args: Vec<&str> = copy.into_iter().chain([&*login, &*from, &*to]).collect();
        tool(sandbox, "skopeo", &args).expect("skopeo is installed");
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn images_of_another_refit_outlive_it() {
    let upstream = Server::start();
    upstream.registry().push("team/app", "1", &image());
    let sandbox = sandbox();
    let server = keeping(&sandbox, &upstream.host());
    let remote = format!("docker://{}/kept/team/app:1", server.host());
    let pulled = format!("dir:{}", sandbox.path("pulled").display());
    skopeo(&remote, &pulled).expect("the image can be pulled");
    testkit::validate(&server.registry(), "kept/team/app", "1");
    skopeo(&pulled, &format!("docker://{}/kept/mine:1", server.host())).expect_err("no pushes");
    skopeo(&remote, &format!("docker://{}/mine:1", server.host())).expect("it can be copied");
    // As a base, and as the source of an import, it is the image that it is a copy of.
    sandbox.write("app/Dockerfile", format!("FROM {}/kept/team/other:1\n", server.host()));
    let build = || sandbox.refit(["build", "app", "-t", "built:1"]).on(&server).run();
    build().code(1).stderr_has("team/other:1").stderr_has("does not exist on");
    upstream.registry().push("team/other", "1", &image());
    build().success();
    let source = format!("{}/kept/team/fresh:1", server.host());
    upstream.registry().push("team/fresh", "1", &image());
    sandbox.refit(["import", &source, "-t", "imported:1"]).on(&server).run().success();
    // A damaged layer is fetched again by the scrub.
    flip(&sandbox, &last_blob(&server, "mine", "1"));
    // Its exit code says whether that was done when it ended.
    sandbox.refit(["scrub"]).on(&server).run();
    until("it to be fetched again", || server.log().contains("fetched again").then_some(()));
    sandbox.refit(["scrub"]).on(&server).run().success();
    upstream.stop();
    skopeo(&remote, &pulled).expect("the image can be pulled from the copy");
    let log = server.log();
    assert!(log.contains("served as it was when last asked for"), "{log}");
    sandbox.write("app/Dockerfile", format!("FROM {}/kept/team/app:1\n", server.host()));
    build().success();
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test runs another client")]
fn as_root_podman_pulls_images_of_docker_registry_through() {
    let sandbox = sandbox();
    let upstream = DockerRegistry::start(&sandbox);
    let pushed = RegistryClient::new(&format!("http://{}", upstream.host));
    pushed.push("team/app", "1", &image());
    let server = keeping(&sandbox, &upstream.host);
    // As a mirror, and by its name here.
    let mirror = format!(
        "[[registry]]\nprefix = \"upstream.example\"\nlocation = \"upstream.example\"\n\
         [[registry.mirror]]\nlocation = \"{}/kept\"\ninsecure = true\n",
        server.host()
    );
    sandbox.write("registries.conf", mirror);
    let podman = |image: &str| {
        let output = Command::new("podman")
            .args(["--storage-driver", "vfs", "--root"])
            .arg(sandbox.path("podman/root"))
            .arg("--runroot")
            .arg(sandbox.path("podman/run"))
            .args(["pull", "--tls-verify=false", image])
            .env("CONTAINERS_REGISTRIES_CONF", sandbox.path("registries.conf"))
            .output()
            .expect("podman is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    podman("upstream.example/team/app:1");
    drop(upstream);
    podman(&format!("{}/kept/team/app:1", server.host()));
}
