//! What a Dockerfile must give, told by another builder: file tree and config are compared
//! with those of buildah. Needs root, buildah and skopeo.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "runs buildah and skopeo on images of our own")]

mod family;

use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use testkit::{ImageTree, Server};

struct Case {
    name: &'static str,
    dockerfile: &'static str,
}

const CASES: &[Case] = &[
    Case {
        name: "copy",
        dockerfile: r#"
FROM BASE
COPY file /plain
COPY file /new/parent/
COPY dir /dir
COPY dir/ /dir2/
COPY dir/sub/*.txt /globbed/
COPY file link /several/
COPY --chown=1000:1001 file /owned
COPY --chown=app:staff file /named
COPY --chmod=0751 file /moded
COPY . /all/
WORKDIR /work/here
COPY file relative
COPY file ./dot/
"#,
    },
    Case {
        name: "destinations",
        dockerfile: r#"
FROM BASE
RUN mkdir -p /real/dir && ln -s /real/dir /linked && ln -s dir /real/relative
COPY file /linked/through
COPY file /real/relative/too
COPY dir /linked/tree
COPY file /real/dir
"#,
    },
    Case {
        name: "run",
        dockerfile: r#"
FROM BASE
RUN echo hello > /hello && mkdir -p /a/b/c && echo x > /a/b/c/x
RUN rm /hello && rm -r /a/b && mkdir /a/b && echo new > /a/b/new
RUN chmod 4755 /bin/busybox && ln -s /bin/busybox /usr/link && ln /hello2 /none 2>/dev/null || true
RUN echo one > /one && ln /one /two && mkfifo /fifo && chown 12:34 /one
RUN mv /a/b /a/moved && rm -r /etc/removed
SHELL ["/bin/sh", "-ec"]
RUN echo "$0" > /shell
USER app
RUN id -u > /tmp/uid && id -g > /tmp/gid && pwd > /tmp/pwd && echo "$HOME" > /tmp/home
USER 1234:56
RUN id -u > /tmp/uid2 && id -g > /tmp/gid2
"#,
    },
    Case {
        name: "stages",
        dockerfile: r#"
ARG VERSION=1
FROM BASE AS one
ARG VERSION
ARG UNSET
RUN echo "v=$VERSION u=$UNSET" > /version
FROM BASE AS two
COPY --from=one /version /from/one
RUN mkdir -p /tree/sub && echo t > /tree/sub/t && ln -s sub /tree/link
FROM two AS unused
RUN exit 1
FROM scratch
COPY --from=two /tree /tree
COPY --from=0 /version /v
COPY --from=two /from/ /
"#,
    },
    Case {
        name: "links",
        dockerfile: r#"
FROM BASE AS made
RUN mkdir /many && echo x > /many/m && ln /many/m /many/a && ln /many/m /many/z
RUN mkdir /many/sub && echo y > /many/sub/y && ln /many/sub/y /many/y && rm /many/m
RUN rm /many/z && echo new > /many/z && ln -s m /many/link && ln /many/link /many/link2
FROM BASE
COPY --from=made /many /copied
COPY --from=made --chown=5:6 /many/sub /many/y /apart/
COPY linked /context
COPY --chown=1:2 linked/sub linked/b /context2/
ADD linked.tar /added
"#,
    },
    Case {
        name: "config",
        dockerfile: r#"
FROM BASE
ENV A=1 B="two words" C=$A-${MISSING:-default}
ENV OLD style value
LABEL one=1 two="2 3" "three"=$A
EXPOSE 80 443/tcp 53/udp
VOLUME /data ["/more"]
USER app:staff
WORKDIR /srv
WORKDIR deeper
STOPSIGNAL SIGINT
ENTRYPOINT ["/bin/echo", "hi"]
CMD there $A
"#,
    },
    Case {
        name: "ignore",
        dockerfile: r#"
FROM scratch
COPY . /
"#,
    },
];

/// The context that all cases share.
fn context(at: &Path) -> PathBuf {
    let context = at.join("context");
    let write = |name: &str, text: &str| {
        let path = context.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("file", "content\n");
    write("dir/one", "1\n");
    write("dir/sub/a.txt", "a\n");
    write("dir/sub/b.txt", "b\n");
    write("dir/sub/c.bin", "c\n");
    write("ignored/x", "x\n");
    write("ignored/kept", "kept\n");
    write("deep/er/y.tmp", "y\n");
    write(".dockerignore", "Dockerfile*\nignored\n!ignored/kept\n**/*.tmp\n.dockerignore\n");
    std::os::unix::fs::symlink("file", context.join("link")).unwrap();
    write("linked/sub/a", "several names\n");
    for name in ["linked/b", "linked/c", "linked/sub/d"] {
        std::fs::hard_link(context.join("linked/sub/a"), context.join(name)).unwrap();
    }
    let tar = context.join("linked.tar");
    let mut pack = Command::new("tar");
    pack.args(["--owner=0", "--group=0", "--sort=name", "--mtime=@0", "-C"]);
    run(pack.arg(&context).arg("-cf").arg(&tar).arg("linked"));
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(context.join("dir/one"), executable).unwrap();
    context
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}\n{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// A base with a shell and users, as a plain tar that both builders start from.
fn base(at: &Path) -> PathBuf {
    let root = at.join("base");
    for folder in ["bin", "etc/removed", "tmp", "usr", "root", "home/app"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox"))
        .expect("the package busybox-static is needed");
    let sticky = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    std::fs::set_permissions(root.join("tmp"), sticky).unwrap();
    for applet in
        ["sh", "echo", "mkdir", "rm", "ln", "mv", "chmod", "chown", "id", "mkfifo", "pwd", "true"]
    {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n";
    std::fs::write(root.join("etc/passwd"), passwd).unwrap();
    std::fs::write(root.join("etc/group"), "root:x:0:\napp:x:1000:\nstaff:x:50:app\n").unwrap();
    std::fs::write(root.join("etc/removed/file"), "x").unwrap();
    let tar = at.join("base.tar");
    run(Command::new("tar")
        .args(["--owner=0", "--group=0", "--numeric-owner", "-C"])
        .arg(&root)
        .arg("-cf")
        .arg(&tar)
        .arg("."));
    tar
}

struct Buildah {
    folder: PathBuf,
}

impl Buildah {
    fn command(&self) -> Command {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(self.folder.join("root"));
        command.arg("--runroot").arg(self.folder.join("run"));
        command.args(["--storage-driver", "vfs"]);
        command.env("TMPDIR", self.folder.parent().unwrap());
        command
    }

    /// Makes the image `localhost/base` of a tar.
    fn base(&self, tar: &Path) {
        let container = run(self.command().args(["from", "scratch"]));
        let container = container.trim();
        run(self.command().args(["add", "-q", container]).arg(tar).arg("/"));
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        run(self.command().args(["config", "--env", path, container]));
        run(self.command().args(["commit", "-q", container, "localhost/base"]));
    }

    /// The image, or what buildah says.
    fn build(&self, dockerfile: &Path, context: &Path, layout: &Path) -> Result<ImageTree, String> {
        let policy = self.folder.join("policy.json");
        std::fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
        let mut build = self.command();
        build.args(["build", "-q", "--isolation", "chroot", "--pull-never", "-t", "localhost/out"]);
        let build = build.arg("--signature-policy").arg(&policy).arg("-f").arg(dockerfile);
        let built = build.arg(context).output().unwrap();
        if !built.status.success() {
            return Err(String::from_utf8_lossy(&built.stderr).into_owned());
        }
        let mut push = self.command();
        push.args(["push", "-q"]).arg("--signature-policy").arg(&policy);
        run(push.arg("localhost/out").arg(format!("oci:{}:out", layout.display())));
        Ok(ImageTree::read(layout).unwrap())
    }
}

/// What we refuse, as BuildKit does, and buildah does not: replacing a folder by a file and the
/// other way round.
const REFUSED: &[&str] =
    &["is a folder in the image, a file cannot take its place", "is in the image and not a folder"];

/// What the two builders write differently although it means the same.
fn normalise(tree: &mut ImageTree) {
    // Mount points that builders leave behind or not.
    for path in ["dev", "proc", "sys", "run"] {
        tree.nodes.remove(path);
    }
    // buildah leaves them in `/etc`, and copies them with it.
    let left = ["hosts", "resolv.conf", "hostname"];
    tree.nodes.retain(|path, _| !left.contains(&path.rsplit('/').next().unwrap_or(path)));
    // buildah makes the folders of volumes.
    for path in ["data", "more data"] {
        tree.nodes.remove(path);
    }
    let config = &mut tree.config;
    config.created = None;
    config.author = None;
    config.history.clear();
    config.rootfs = oci::RootFs::default();
    config.other.clear();
    config.config.other.clear();
    config.config.labels.retain(|name, _| !name.starts_with("io.buildah."));
    config.config.env.sort();
    if config.config.working_dir == "/" {
        config.config.working_dir.clear();
    }
    // buildah writes no `Shell` into an OCI config, Docker and we do.
    config.config.shell = None;
}

/// Both builders, with one base and one context.
struct Builders {
    folder: tempfile::TempDir,
    context: PathBuf,
    buildah: Buildah,
    server: Server,
}

impl Builders {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Our client may be an ordinary user's.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).unwrap();
        let context = context(folder.path());
        let tar = base(folder.path());
        let buildah = Buildah { folder: folder.path().join("buildah") };
        std::fs::create_dir_all(&buildah.folder).unwrap();
        buildah.base(&tar);

        let server = Server::start();
        let image = format!("{}/base:1", server.host());
        let ours = folder.path().join("ours");
        std::fs::create_dir_all(&ours).unwrap();
        std::fs::copy(&tar, ours.join("base.tar")).unwrap();
        let path = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let dockerfile = format!("FROM scratch\nADD base.tar /\n{path}\n");
        std::fs::write(ours.join("Dockerfile"), dockerfile).unwrap();
        server.refit(["build", "-t", &image, ours.to_str().unwrap()]).succeeds();
        Self { folder, context, buildah, server }
    }

    /// Writes the Dockerfile for a builder that has the base under this name.
    fn dockerfile(&self, text: &str, base: &str) -> PathBuf {
        let file = self.folder.path().join("Dockerfile");
        std::fs::write(&file, text.trim_start().replace("BASE", base)).unwrap();
        file
    }

    /// A new folder for an image.
    fn layout(&self, name: &str) -> PathBuf {
        let layout = self.folder.path().join(name);
        let _ = std::fs::remove_dir_all(&layout);
        layout
    }

    /// What buildah makes of a Dockerfile, or what it says.
    fn theirs(&self, text: &str) -> Result<ImageTree, String> {
        let dockerfile = self.dockerfile(text, "localhost/base");
        self.buildah.build(&dockerfile, &self.context, &self.layout("theirs"))
    }

    fn ours(&self, text: &str) -> Result<ImageTree, String> {
        let host = self.server.host();
        let dockerfile = self.dockerfile(text, &format!("{host}/base:1"));
        let image = format!("{host}/out:1");
        let (file, from) = (dockerfile.to_str().unwrap(), self.context.to_str().unwrap());
        let built = self.server.refit(["build", "-t", &image, "-f", file, from]).run();
        if built.code != Some(0) {
            return Err(built.stderr);
        }
        let layout = self.layout("ours-out");
        run(Command::new("skopeo")
            .args(["--insecure-policy", "copy", "-q", "--src-tls-verify=false"])
            .args([&format!("docker://{image}"), &format!("oci:{}:out", layout.display())]));
        Ok(ImageTree::read(&layout).unwrap())
    }

    /// How the two images of a Dockerfile differ, a line each: ours, then theirs.
    fn differences(&self, text: &str) -> Vec<String> {
        let (mut ours, mut theirs) = match (self.ours(text), self.theirs(text)) {
            (Ok(ours), Ok(theirs)) => (ours, theirs),
            (Err(_), Err(_)) => return Vec::new(),
            (Err(error), _) if REFUSED.iter().any(|refused| error.contains(refused)) => {
                return Vec::new();
            }
            (Ok(_), Err(error)) => return vec![format!("only we build it | {error}")],
            (Err(error), Ok(_)) => return vec![format!("{error} | only they build it")],
        };
        normalise(&mut ours);
        normalise(&mut theirs);
        let mut different = ours.differences(&theirs);
        if ours.config != theirs.config {
            different.push(format!("config\n  {:?}\n  {:?}", ours.config, theirs.config));
        }
        different
    }
}

#[test]
fn root_builds_give_the_tree_and_config_that_buildah_gives() {
    let builders = Builders::new();
    let mut problems = Vec::new();
    for case in CASES {
        assert!(builders.ours(case.dockerfile).is_ok(), "{} does not build", case.name);
        let different = builders.differences(case.dockerfile);
        problems.extend(different.into_iter().map(|line| format!("{}: {line}", case.name)));
    }
    assert!(problems.is_empty(), "ours | theirs\n{}", problems.join("\n"));
}

/// Dockerfiles of the family that are compared.
const FAMILY_CASES: u32 = 12;

/// `REFIT_FAMILY_CASES` compares more of them, `REFIT_FAMILY_SEED` other ones.
#[test]
fn root_a_family_of_dockerfiles_gives_what_buildah_gives() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u32>().unwrap());
    let config = Config {
        cases: number("REFIT_FAMILY_CASES").unwrap_or(FAMILY_CASES),
        max_shrink_iters: 60,
        failure_persistence: None,
        ..Config::default()
    };
    let mut seed = [0; 32];
    seed[..4].copy_from_slice(&number("REFIT_FAMILY_SEED").unwrap_or(1).to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let builders = Builders::new();
    let outcome = TestRunner::new_with_rng(config, random).run(&family::stages(), |stages| {
        let text = family::text(&stages);
        let different = builders.differences(&text);
        let shown = || format!("{text}\nours | theirs\n{}", different.join("\n"));
        match different.is_empty() {
            true => Ok(()),
            false => Err(TestCaseError::fail(shown())),
        }
    });
    if let Err(TestError::Fail(reason, _)) = outcome {
        panic!("{reason}");
    }
}
