//! Clients that we did not write push to the registry and pull from it: skopeo, buildah,
//! podman and the docker command line, as Debian ships them. A missing one is a failure.
//!
//! The images are made here, as OCI layouts in a temporary folder, so no network is needed.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod server;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use oci::{Descriptor, Digest, media_type};
use serde_json::{Value, json};
use server::{Kind, Options, TestServer, get};

/// A client's world: a home of its own, the image to push, and a registry.
struct World {
    folder: tempfile::TempDir,
    server: TestServer,
}

impl World {
    async fn new(options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let policy = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;
        fs::write(folder.path().join("policy.json"), policy).unwrap();
        fs::write(folder.path().join("auth.json"), "{}").unwrap();
        Self { folder, server: options.start().await }
    }

    async fn open() -> Self {
        Self::new(Options::open(Kind::Disk)).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// `docker://127.0.0.1:PORT/NAME`.
    fn remote(&self, name: &str) -> String {
        format!("docker://{}", self.image(name))
    }

    fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.server.address)
    }

    /// Runs a client and gives its standard output; it must succeed.
    #[track_caller]
    fn run(&self, command: &str, args: &[&str]) -> impl Future<Output = String> {
        let outcome = self.try_run(command, args);
        let shown = format!("{command} {}", args.join(" "));
        async move {
            let (success, stdout, stderr) = outcome.await;
            assert!(success, "{shown}\n{stdout}{stderr}");
            stdout
        }
    }

    #[expect(clippy::disallowed_methods, reason = "clients are programs")]
    fn try_run(
        &self,
        command: &str,
        args: &[&str],
    ) -> impl Future<Output = (bool, String, String)> {
        let child = tokio::process::Command::new(command)
            .args(args)
            .env("HOME", self.folder.path())
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .env("REGISTRY_AUTH_FILE", self.path("auth.json"))
            .env("DOCKER_CONFIG", self.folder.path())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let command = command.to_owned();
        async move {
            let output = tokio::time::timeout(server::PATIENCE, child).await;
            let output = output.expect("the client ends").unwrap_or_else(|error| {
                panic!("`{command}` could not be started ({error}); install it")
            });
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (output.status.success(), text(&output.stdout), text(&output.stderr))
        }
    }

    async fn skopeo(&self, args: &[&str]) -> String {
        let policy = self.text("policy.json");
        let args = [&["--policy", &policy], args].concat();
        self.run("skopeo", &args).await
    }

    /// What the registry says of a manifest.
    async fn digest(&self, repository: &str, tag: &str) -> String {
        let target = format!("/v2/{repository}/manifests/{tag}");
        let answer = get(self.server.address, &target).await;
        assert_eq!(answer.status, 200, "{target}");
        assert_eq!(
            answer.header("docker-content-digest"),
            Some(&*Digest::of(&answer.body).to_string())
        );
        Digest::of(&answer.body).to_string()
    }
}

/// Writes an image as an OCI layout with the tag `latest` and gives its manifest's digest.
/// With two platforms, `latest` is an index.
fn write_layout(folder: &Path, platforms: &[&str]) -> String {
    fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let manifests: Vec<_> = platforms.iter().map(|arch| write_image(folder, arch)).collect();
    let mut top = match manifests.as_slice() {
        [only] => only.clone(),
        several => {
            let index = json!({
                "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": several,
            });
            write_blob(folder, media_type::OCI_INDEX, index.to_string().as_bytes())
        }
    };
    let digest = top.digest.to_string();
    top.platform = None;
    top.annotations.insert("org.opencontainers.image.ref.name".to_owned(), "latest".to_owned());
    let index = json!({ "schemaVersion": 2, "manifests": [top] });
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
    digest
}

fn write_image(folder: &Path, architecture: &str) -> Descriptor {
    let tar = layer_tar(architecture);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let layer = write_blob(folder, media_type::OCI_LAYER_GZIP, &gzip.finish().unwrap());
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Cmd": ["/hello"] },
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&tar)] },
        "history": [{ "created_by": "a test" }],
    });
    let config = write_blob(folder, media_type::OCI_CONFIG, config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": config,
        "layers": [layer],
    });
    let mut manifest =
        write_blob(folder, media_type::OCI_MANIFEST, manifest.to_string().as_bytes());
    manifest.platform = serde_json::from_value(json!({
        "architecture": architecture, "os": "linux",
    }))
    .unwrap();
    manifest
}

fn write_blob(folder: &Path, media_type: &str, bytes: &[u8]) -> Descriptor {
    let descriptor = Descriptor::of(media_type, bytes);
    fs::write(folder.join("blobs/sha256").join(descriptor.digest.hex()), bytes).unwrap();
    descriptor
}

fn layer_tar(content: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    // Large enough for clients that push in several pieces.
    let bytes = content.repeat(300_000);
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o755);
    header.set_cksum();
    tar.append_data(&mut header, "hello", bytes.as_bytes()).unwrap();
    tar.into_inner().unwrap()
}

/// The digest of the manifest of a `dir:` image.
fn dir_digest(folder: &Path) -> String {
    Digest::of(&fs::read(folder.join("manifest.json")).unwrap()).to_string()
}

/// The digest of the one manifest of an OCI layout.
fn layout_digest(folder: &Path) -> String {
    let index: Value =
        serde_json::from_slice(&fs::read(folder.join("index.json")).unwrap()).unwrap();
    index["manifests"][0]["digest"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn skopeo_copies_oci_images_with_equal_digests() {
    let world = World::open().await;
    let digest = write_layout(&world.path("in"), &["amd64"]);
    let (from, to) = (format!("oci:{}:latest", world.text("in")), world.remote("team/app:oci"));
    world.skopeo(&["copy", "--dest-tls-verify=false", &from, &to]).await;
    assert_eq!(world.digest("team/app", "oci").await, digest);
    let out = format!("oci:{}:latest", world.text("out"));
    world.skopeo(&["copy", "--src-tls-verify=false", &to, &out]).await;
    assert_eq!(layout_digest(&world.path("out")), digest);
    // From one repository to another: skopeo mounts the blobs.
    let other = world.remote("other:oci");
    world.skopeo(&["copy", "--src-tls-verify=false", "--dest-tls-verify=false", &to, &other]).await;
    assert_eq!(world.digest("other", "oci").await, digest);
    let tags = world.skopeo(&["list-tags", "--tls-verify=false", &world.remote("team/app")]).await;
    assert!(tags.contains("\"oci\""), "{tags}");
    world.skopeo(&["delete", "--tls-verify=false", &to]).await;
    let target = format!("/v2/team/app/manifests/{digest}");
    assert_eq!(get(world.server.address, &target).await.status, 404);
}

#[tokio::test]
async fn skopeo_copies_docker_images_with_equal_digests() {
    let world = World::open().await;
    write_layout(&world.path("in"), &["amd64"]);
    let (from, to) = (format!("oci:{}:latest", world.text("in")), world.remote("app:v2s2"));
    world.skopeo(&["copy", "--dest-tls-verify=false", "--format", "v2s2", &from, &to]).await;
    let digest = world.digest("app", "v2s2").await;
    let dir = format!("dir:{}", world.text("dir"));
    world.skopeo(&["copy", "--src-tls-verify=false", &to, &dir]).await;
    assert_eq!(dir_digest(&world.path("dir")), digest);
    let manifest = fs::read_to_string(world.path("dir").join("manifest.json")).unwrap();
    assert!(manifest.contains(media_type::DOCKER_MANIFEST), "{manifest}");
    let again = world.remote("app:again");
    world.skopeo(&["copy", "--dest-tls-verify=false", &dir, &again]).await;
    assert_eq!(world.digest("app", "again").await, digest);
}

#[tokio::test]
async fn skopeo_copies_images_of_several_platforms() {
    let world = World::open().await;
    let digest = write_layout(&world.path("in"), &["amd64", "arm64"]);
    let (from, to) = (format!("oci:{}:latest", world.text("in")), world.remote("app:all"));
    world.skopeo(&["copy", "--all", "--dest-tls-verify=false", &from, &to]).await;
    assert_eq!(world.digest("app", "all").await, digest);
    let out = format!("oci:{}:latest", world.text("out"));
    world.skopeo(&["copy", "--all", "--src-tls-verify=false", &to, &out]).await;
    assert_eq!(layout_digest(&world.path("out")), digest);
    let (list, dir) = (world.remote("app:list"), format!("dir:{}", world.text("dir")));
    let as_list = ["copy", "--all", "--format", "v2s2", "--dest-tls-verify=false", &from, &list];
    world.skopeo(&as_list).await;
    world.skopeo(&["copy", "--all", "--src-tls-verify=false", &list, &dir]).await;
    assert_eq!(dir_digest(&world.path("dir")), world.digest("app", "list").await);
}

#[tokio::test]
async fn skopeo_logs_in_for_a_token() {
    let world = World::new(Options::guarded(Kind::Disk)).await;
    write_layout(&world.path("in"), &["amd64"]);
    let from = format!("oci:{}:latest", world.text("in"));
    let policy = world.text("policy.json");
    let push = async |credentials: &str, name: &str| {
        let to = world.remote(name);
        let mut args = vec!["--policy", &policy, "copy", "--dest-tls-verify=false"];
        if !credentials.is_empty() {
            args.extend(["--dest-creds", credentials]);
        }
        args.extend([from.as_str(), &to]);
        world.try_run("skopeo", &args).await.0
    };
    assert!(push("alice:alice-secret", "team/app:1").await);
    assert!(!push("alice:wrong", "team/app:2").await);
    assert!(!push("bob:bob-secret", "team/app:2").await);
    assert!(!push("alice:alice-secret", "elsewhere:2").await);
    assert!(!push("", "team/app:2").await);
    let (image, out) = (world.remote("team/app:1"), format!("dir:{}", world.text("out")));
    let pull = ["copy", "--src-tls-verify=false", "--src-creds", "bob:bob-secret", &image, &out];
    world.skopeo(&pull).await;
}

/// buildah and podman keep images in a store of their own, which needs root.
async fn store_client_pulls_and_pushes(client: &str) {
    let world = World::open().await;
    let digest = write_layout(&world.path("in"), &["amd64"]);
    let (from, to) = (format!("oci:{}:latest", world.text("in")), world.remote("app:1"));
    world.skopeo(&["copy", "--dest-tls-verify=false", &from, &to]).await;
    let (root, runroot) = (world.text("root"), world.text("runroot"));
    let store = ["--root", &root, "--runroot", &runroot, "--storage-driver", "vfs"];
    let policy = world.text("policy.json");
    let options = ["--tls-verify=false", "--signature-policy", &policy];
    let image = world.image("app:1");
    world.run(client, &[&store[..], &["pull"], &options, &[&image]].concat()).await;
    for format in ["oci", "v2s2"] {
        let (name, file) = (format!("pushed:{format}"), world.text("digest"));
        let to = world.remote(&name);
        let more = ["--format", format, "--digestfile", &file, &image, &to];
        world.run(client, &[&store[..], &["push"], &options, &more].concat()).await;
        let told = fs::read_to_string(&file).unwrap();
        assert_eq!(world.digest("pushed", format).await, told.trim());
    }
    // Pulled by digest, the image is verified by the client.
    let image = world.image(&format!("app@{digest}"));
    world.run(client, &[&store[..], &["pull"], &options, &[&image]].concat()).await;
}

#[tokio::test]
async fn buildah_as_root_pulls_and_pushes() {
    store_client_pulls_and_pushes("buildah").await;
}

#[tokio::test]
async fn podman_as_root_pulls_and_pushes() {
    store_client_pulls_and_pushes("podman").await;
}

#[tokio::test]
async fn the_docker_command_line_reads_manifests() {
    let world = World::open().await;
    write_layout(&world.path("in"), &["amd64", "arm64"]);
    let (from, to) = (format!("oci:{}:latest", world.text("in")), world.remote("app:list"));
    let copy = ["copy", "--all", "--format", "v2s2", "--dest-tls-verify=false", &from, &to];
    world.skopeo(&copy).await;
    let image = world.image("app:list");
    let shown = world.run("docker", &["manifest", "inspect", "--insecure", &image]).await;
    assert!(shown.contains("arm64") && shown.contains(media_type::DOCKER_MANIFEST), "{shown}");
}

/// A docker daemon of its own, without networks and firewall rules; asked to end when dropped.
struct DockerDaemon {
    child: std::process::Child,
    socket: String,
}

impl DockerDaemon {
    #[expect(clippy::disallowed_methods, reason = "clients are programs")]
    async fn start(world: &World) -> Self {
        assert!(rustix::process::geteuid().is_root(), "a docker daemon needs root");
        fs::write(world.path("daemon.json"), "{}").unwrap();
        let socket = format!("unix://{}", world.text("docker.sock"));
        let child = std::process::Command::new("dockerd")
            .args(["--config-file", &world.text("daemon.json"), "--host", &socket])
            .args(["--data-root", &world.text("docker"), "--exec-root", &world.text("docker-run")])
            .args(["--pidfile", &world.text("docker.pid"), "--storage-driver", "vfs"])
            .args(["--bridge", "none", "--iptables=false", "--ip6tables=false"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(world.path("docker.log")).unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("`dockerd` could not be started ({error}); install it"));
        let daemon = Self { child, socket };
        let started = std::time::Instant::now();
        while !world.try_run("docker", &["-H", &daemon.socket, "version"]).await.0 {
            let log = fs::read_to_string(world.path("docker.log")).unwrap();
            assert!(started.elapsed() < server::PATIENCE, "dockerd does not answer:\n{log}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        daemon
    }

    async fn run(&self, world: &World, args: &[&str]) -> String {
        world.run("docker", &[&["-H", &self.socket], args].concat()).await
    }
}

impl Drop for DockerDaemon {
    fn drop(&mut self) {
        if let Some(pid) =
            i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw)
        {
            // Killed at once, it would leave its containerd behind.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn docker_as_root_pulls_and_pushes_after_a_login() {
    let world = World::new(Options::guarded(Kind::Disk)).await;
    let digest = write_layout(&world.path("in"), &["amd64"]);
    let (from, to) = (format!("oci:{}:latest", world.text("in")), world.remote("team/app:oci"));
    let credentials = ["--dest-creds", "alice:alice-secret"];
    let copy = [&["copy", "--dest-tls-verify=false"], &credentials[..], &[&from, &to]].concat();
    world.skopeo(&copy).await;

    let docker = DockerDaemon::start(&world).await;
    let host = world.server.address.to_string();
    let image = world.image("team/app:oci");
    let (refused, _, told) = world.try_run("docker", &["-H", &docker.socket, "pull", &image]).await;
    assert!(!refused && told.contains("unauthorized"), "{told}");
    docker.run(&world, &["login", "-u", "alice", "-p", "alice-secret", &host]).await;
    let told = docker.run(&world, &["pull", &image]).await;
    assert!(told.contains(&digest), "{told}");

    // Docker's own manifest, pulled and pushed again, stays what it is.
    let (first, second) = (world.image("team/docker:1"), world.image("team/docker:2"));
    docker.run(&world, &["tag", &image, &first]).await;
    let told = docker.run(&world, &["push", &first]).await;
    docker.run(&world, &["image", "rm", &image, &first]).await;
    docker.run(&world, &["pull", &first]).await;
    docker.run(&world, &["tag", &first, &second]).await;
    let again = docker.run(&world, &["push", &second]).await;
    let pushed = told.rsplit("digest: ").next().unwrap().split_whitespace().next().unwrap();
    assert!(pushed.starts_with("sha256:") && again.contains(pushed), "{told}{again}");
    let target = world.remote("team/docker:2");
    let inspect =
        ["inspect", "--tls-verify=false", "--creds", "alice:alice-secret", "--raw", &target];
    let raw = world.skopeo(&inspect).await;
    assert_eq!(Digest::of(raw.as_bytes()).to_string(), pushed);
    assert!(raw.contains(media_type::DOCKER_MANIFEST), "{raw}");
}
