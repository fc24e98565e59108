//! `refit build --output type=…`.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use testkit::{ImageTree, Sandbox, validate};

use crate::build::{app, scratch_app};
use crate::sandbox;

/// What another program prints, which has to succeed; none where it is not installed, but never
/// so in CI.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "programs that the tests compare with")]
pub(crate) fn tool(sandbox: &Sandbox, name: &str, args: &[&str]) -> Option<String> {
    let ran = Command::new(name).args(args).current_dir(sandbox.path("")).output();
    let Ok(output) = ran else {
        assert!(std::env::var_os("CI").is_none(), "`{name}` is not installed");
        return None;
    };
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).expect("it prints text"))
}

pub(crate) fn json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).expect("it is there")).expect("it is JSON")
}

/// Names of files that were never finished.
fn leftovers(sandbox: &Sandbox) -> Vec<String> {
    let entries = fs::read_dir(sandbox.path("")).expect("the sandbox can be read");
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(".refit-")).collect()
}

#[test]
fn as_root_other_programs_read_an_oci_archive() {
    let sandbox = sandbox();
    let server = sandbox.server();
    app(&sandbox, &server, "RUN echo one > /one\nRUN rm /one\nCOPY Dockerfile /\n");
    let built = sandbox.refit(["build", "app", "-t", "app:1"]).on(&server).run().success();
    let args = [
        "build",
        "app",
        "-t",
        "other.example/team/app:2",
        "--output",
        "type=oci,dest=image.tar",
        "--metadata-file",
        "meta",
    ];
    let written = sandbox.refit(args).on(&server).run().success().stderr_has("Wrote `image.tar`");
    assert_eq!(written.digest(), built.digest());
    // It went nowhere else.
    assert_eq!(written.stdout.trim(), built.digest());
    let manifest = validate(&server.registry(), "app", "1").manifest;
    let meta = json(&sandbox.path("meta"));
    assert_eq!(meta["containerimage.digest"], built.digest());
    assert_eq!(meta["containerimage.config.digest"], manifest.config.digest.as_str());
    assert_eq!(meta["containerimage.descriptor"]["digest"], built.digest());
    assert_eq!(meta["image.name"], "other.example/team/app:2");
    if let Some(text) = tool(&sandbox, "skopeo", &["inspect", "oci-archive:image.tar:2"]) {
        let told: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(told["Digest"], built.digest());
        let layers = manifest.layers.iter().map(|layer| layer.digest.as_str());
        assert_eq!(told["Layers"].as_array().unwrap(), &layers.collect::<Vec<_>>());
    }
    assert_eq!(leftovers(&sandbox), [""; 0]);
}

#[test]
fn as_root_other_programs_load_a_docker_archive() {
    let sandbox = sandbox();
    let server = sandbox.server();
    app(&sandbox, &server, "RUN echo one > /one\nCMD [\"cat\", \"/one\"]\n");
    let args = ["build", "app", "-t", "app:1", "-t", "app", "-o", "type=docker,dest=image.tar"];
    let written = sandbox.refit(args).on(&server).run().success();
    let config = {
        let args = ["build", "app", "-t", "app"];
        sandbox.refit(args).on(&server).run().success();
        let image = validate(&server.registry(), "app", "latest");
        assert_eq!(image.digest.as_str(), written.digest());
        image.manifest.config.digest
    };
    tool(&sandbox, "skopeo", &["copy", "docker-archive:image.tar:app:1", "oci:copied:1"]);
    let inspect = ["inspect", "--raw", "--config", "docker-archive:image.tar:app:1"];
    if let Some(text) = tool(&sandbox, "skopeo", &inspect) {
        assert_eq!(oci::Digest::of(text.as_bytes()), config);
    }
    let podman = |args: &[&str]| {
        let own = ["--root", "podman/root", "--runroot", "podman/run", "--storage-driver", "vfs"];
        tool(&sandbox, "podman", &[&own, args].concat())
    };
    if let Some(text) = podman(&["load", "-i", "image.tar"]) {
        assert!(text.contains("app:1") && text.contains("app:latest"), "{text}");
        let told = podman(&["image", "inspect", "--format", "{{.Id}}", "app:1"]).unwrap();
        assert_eq!(told.trim(), config.hex());
    }
}

#[test]
fn as_root_layers_are_compressed_as_asked() {
    let sandbox = sandbox();
    let server = sandbox.server();
    // Several frames of zstd.
    app(&sandbox, &server, "RUN seq 1 900000 > /numbers\n");
    let layers = |tag: &str, output: &str| {
        let args = ["build", "app", "-t", &format!("app:{tag}"), "-o", output];
        sandbox.refit(args).on(&server).run().success();
        let image = validate(&server.registry(), "app", tag);
        let kinds = image.manifest.layers.iter();
        let kinds = kinds.map(|layer| layer.media_type.rsplit_once('.').unwrap().1.to_owned());
        (kinds.collect::<Vec<_>>(), image.manifest.layers[1].size)
    };
    let (gzip, zstd) = ("tar+gzip", "tar+zstd");
    assert_eq!(layers("1", "type=image").0, [gzip, gzip]);
    let (kinds, usual) = layers("2", "type=image,compression=zstd");
    assert_eq!(kinds, [gzip, zstd]);
    let (kinds, small) = layers("3", "type=image,compression=zstd,compression-level=19");
    assert_eq!(kinds, [gzip, zstd]);
    assert!(small < usual, "{small} {usual}");
    let forced = "type=image,compression=zstd,force-compression=true";
    assert_eq!(layers("4", forced), (vec![zstd.to_owned(); 2], usual));

    let archive = "type=oci,dest=image.tar,compression=zstd,force-compression=true";
    sandbox.refit(["build", "app", "-t", "app:4", "-o", archive]).on(&server).run().success();
    let own = ["--root", "podman/root", "--runroot", "podman/run", "--storage-driver", "vfs"];
    tool(&sandbox, "podman", &[&own[..], &["load", "-i", "image.tar"]].concat());
}

#[test]
fn as_root_a_setting_says_how_layers_are_compressed_else() {
    let sandbox = sandbox();
    scratch_app(&sandbox);
    let media_type = |output: &str| {
        let build = sandbox.refit(["build", "app", "-o", output]);
        build.env("REFIT_BUILD_COMPRESSION", "zstd").run().success();
        let text = tool(&sandbox, "skopeo", &["inspect", "--raw", "oci:layout"])?;
        let manifest: Value = serde_json::from_str(&text).unwrap();
        std::fs::remove_dir_all(sandbox.path("layout")).unwrap();
        Some(manifest["layers"][0]["mediaType"].as_str().unwrap().to_owned())
    };
    let found = media_type("type=oci,tar=false,dest=layout");
    assert!(found.is_none_or(|found| found.ends_with("tar+zstd")));
    let found = media_type("type=docker,tar=false,dest=layout");
    assert!(found.is_none_or(|found| found.ends_with("tar+gzip")));
}

/// Files with several names, of which an upper layer replaces the first; a folder that is made
/// anew; what is not a file; names and owners.
const FILES: &str = "\
RUN mkdir /d /anew && echo one > /d/a && ln /d/a /d/b && ln /d/a /d/c && echo gone > /anew/x \\
    && chmod 4755 /d/a && mkfifo /pipe && ln -s d /link && seq 1 300000 > /numbers
RUN echo two > /d/new && mv /d/new /d/a && rm -r /anew && mkdir /anew && echo y > /anew/y \\
    && chown 7:8 /anew && chmod 700 /anew && rm /etc/group && ln -s /etc/passwd /d/out
COPY Dockerfile /d/LONG
CMD [\"true\"]
";

#[test]
fn as_root_the_files_of_an_image_go_to_a_tar_and_to_a_folder() {
    let sandbox = sandbox();
    let server = sandbox.server();
    app(&sandbox, &server, &FILES.replace("LONG", &"long-".repeat(30)));
    let args = ["build", "app", "-t", "app:1", "-o", "type=tar,dest=files.tar", "-o", "./files"];
    let images = ["-o", "type=oci,tar=false,dest=layout", "-o", "type=docker,dest=image.tar"];
    let build = sandbox.refit(args.into_iter().chain(images)).on(&server);
    build.run().success().stderr_has("Wrote `files.tar`").stderr_has("Wrote `./files`");

    let ours = testkit::tar_nodes(&sandbox.path("files.tar")).unwrap();
    let image = ImageTree::read(&sandbox.path("layout")).unwrap();
    let ours = ImageTree { nodes: ours, config: image.config.clone() };
    assert_eq!(image.differences(&ours), [""; 0]);
    assert_eq!(ours.nodes["d/b"].first_name, ours.nodes["d/c"].first_name);
    let podman = |args: &[&str]| {
        let own = ["--root", "podman/root", "--runroot", "podman/run", "--storage-driver", "vfs"];
        tool(&sandbox, "podman", &[&own, args].concat())
    };
    if podman(&["load", "-i", "image.tar"]).is_some() {
        let container = podman(&["create", "app:1"]).unwrap();
        podman(&["export", "-o", "export.tar", container.trim()]).unwrap();
        let nodes = testkit::tar_nodes(&sandbox.path("export.tar")).unwrap();
        let theirs = ImageTree { nodes, config: image.config };
        assert_eq!(theirs.differences(&ours), [""; 0]);
    }

    let text = |path: &str| fs::read_to_string(sandbox.path("files").join(path)).unwrap();
    assert_eq!((&*text("d/a"), &*text("d/b"), &*text("anew/y")), ("two\n", "one\n", "y\n"));
    let found = |path: &str| fs::symlink_metadata(sandbox.path("files").join(path)).unwrap();
    assert_eq!((found("d/b").mode() & 0o7777, found("d/b").nlink()), (0o755, 2));
    assert_eq!((found("anew").mode() & 0o7777, found("anew").uid()), (0o700, 0));
    assert!(found("link").is_symlink() && found("pipe").file_type().is_fifo());
    assert!(!sandbox.path("files/etc/group").exists());

    let streamed = sandbox.refit(["build", "app", "-o", "-"]).on(&server).run().success();
    assert!(streamed.stdout.contains("ustar"));
    assert_eq!(leftovers(&sandbox), [""; 0]);
}

#[test]
fn as_root_a_command_without_a_server_writes_a_folder_and_adds_to_it() {
    let sandbox = sandbox();
    scratch_app(&sandbox);
    let build = |args: &[&str]| sandbox.refit([&["build", "app"], args].concat()).run();
    let output = ["-o", "type=oci,tar=false,dest=layout"];
    let one = build(&[&output[..], &["-t", "a:1"]].concat()).success().digest();
    sandbox.write("app/file", "two");
    let two = build(&[&output[..], &["-t", "a:2"]].concat()).success().digest();
    assert_ne!(one, two);
    let index = json(&sandbox.path("layout/index.json"));
    let digests: Vec<&str> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["digest"].as_str().unwrap())
        .collect();
    assert_eq!(digests, [&one, &two]);
    for (tag, digest) in [("1", &one), ("2", &two)] {
        if let Some(text) = tool(&sandbox, "skopeo", &["inspect", &format!("oci:layout:{tag}")]) {
            assert_eq!(&serde_json::from_str::<Value>(&text).unwrap()["Digest"], digest);
        }
    }
    // What another build takes it as.
    let context = ["--build-context", "given=oci-layout://layout:1"];
    sandbox.write("next/Dockerfile", "FROM given\nLABEL a=b\n");
    sandbox.refit(["build", "next"].into_iter().chain(context)).run().success();

    sandbox.write("mine/file", "precious");
    build(&["-o", "type=oci,tar=false,dest=mine"]).code(1).stderr_has("neither empty nor");
    assert_eq!(fs::read_dir(sandbox.path("mine")).unwrap().count(), 1);
}

#[test]
fn as_root_an_archive_goes_to_standard_output_and_nothing_else_does() {
    let sandbox = sandbox();
    scratch_app(&sandbox);
    let archive = |args: &[&str]| {
        let args = [&["build", "app", "--progress", "plain"], args].concat();
        sandbox.refit(args).run().success().stderr_has("sha256:").stdout
    };
    let text = archive(&["-o", "type=oci,dest=-", "-o", "json"]);
    assert!(text.starts_with("oci-layout\0"), "{text}");
    // A device is written to, and stays one.
    symlink("/dev/null", sandbox.path("null")).unwrap();
    sandbox.refit(["build", "app", "-o", "type=docker,dest=null"]).run().success();
    assert!(sandbox.path("null").is_symlink());
    assert_eq!(leftovers(&sandbox), [""; 0]);
}

#[test]
fn as_root_a_file_is_replaced_only_by_a_whole_one() {
    let sandbox = sandbox();
    let server = sandbox.server();
    scratch_app(&sandbox);
    sandbox.write("image.tar", "the one before");
    let build = || sandbox.refit(["build", "app", "-o", "type=oci,dest=image.tar"]).on(&server);
    sandbox.write("app/Dockerfile", "FROM scratch\nCOPY nothing /\n");
    build().run().code(1);
    assert_eq!(fs::read_to_string(sandbox.path("image.tar")).unwrap(), "the one before");
    sandbox.write("app/Dockerfile", "FROM scratch\nCOPY file /\n");
    build().run().success();
    assert_ne!(fs::read(sandbox.path("image.tar")).unwrap(), b"the one before");
    assert_eq!(leftovers(&sandbox), [""; 0]);
}

#[test]
fn as_root_the_registry_can_be_one_output_of_several() {
    let sandbox = sandbox();
    let server = sandbox.server();
    scratch_app(&sandbox);
    let outputs = ["-o", "type=registry", "-o", "type=oci,dest=image.tar", "-o", "json"];
    let args = ["build", "app", "-t", "app"].into_iter().chain(outputs);
    let built = sandbox.refit(args).on(&server).run().success();
    assert_eq!(built.json()["properties"]["outputImages"][0]["repository"], "app");
    assert!(sandbox.path("image.tar").is_file());
    let args = ["build", "app", "-t", "other", "-o", "type=image,push=false"];
    assert!(sandbox.refit(args).on(&server).run().success().stdout.starts_with("sha256:"));
}

#[test]
fn outputs_that_cannot_be_are_refused_before_the_build() {
    let sandbox = sandbox();
    scratch_app(&sandbox);
    let refused = |args: &[&str], why: &str| {
        let all = [&["build", "app", "--server", "http://127.0.0.1:9"], args].concat();
        sandbox.refit(all).run().code(2).stderr_has(why);
    };
    refused(&["-o", "type=rar,dest=x"], "`rar` is not a type");
    refused(&["-o", "type=oci,dest=x,compression=lz4"], "`lz4` is not a compression");
    refused(&["-o", "type=docker,dest=x,compression=zstd"], "use `gzip`, or `type=oci`");
    refused(&["-o", "type=local"], "it needs `dest=FOLDER`");
    refused(&["-o", "type=oci,dest=no/such/x"], "could not write `no/such/x`");
    refused(&["-o", "type=oci,dest=app"], "could not write `app`");
    refused(&["-o", "type=oci,tar=false,dest=app/file"], "`app/file` is not a folder");
    refused(&["-o", "type=oci,dest=-", "-o", "type=docker,dest=-"], "only one `--output`");
    refused(&["-o", "type=oci,dest=x", "--no-wait"], "needs the end of the run");
    refused(&["-o", "type=oci,dest=x", "-t", "Not A Name"], "Not A Name");
    assert!(!sandbox.path("x").exists());
    sandbox.refit(["version", "-o", "type=oci,dest=x"]).run().code(2).stderr_has("only a build");
}

#[test]
fn as_root_a_run_gives_out_the_blobs_of_its_own_image_only() {
    let sandbox = sandbox();
    let server = sandbox.server();
    app(&sandbox, &server, "RUN echo one > /one\n");
    let built = sandbox.refit(["build", "app", "-t", "app:1"]).on(&server).run().success();
    let id = built.stderr.split_once("with ID: ").unwrap().1.split_whitespace().next().unwrap();
    let own = validate(&server.registry(), "app", "1").manifest.config.digest.to_string();
    app(&sandbox, &server, "RUN echo two > /two\n");
    sandbox.refit(["build", "app", "-t", "other:1"]).on(&server).run().success();
    let other = validate(&server.registry(), "other", "1").manifest.config.digest.to_string();
    let status = |digest: &str| {
        let url = format!("http://localhost/api/v1/registries/local/runs/{id}/blobs/{digest}");
        let socket = sandbox.data().join("refit.sock");
        let socket = ["--unix-socket", socket.to_str().unwrap()];
        let args = [&["-s", "-o", "out", "-w", "%{http_code}"], &socket[..], &[&url]].concat();
        tool(&sandbox, "curl", &args)
    };
    assert!(matches!(status(&own).as_deref(), Some("200") | None));
    for digest in [&other[..], "sha256:0", "../../logs"] {
        assert!(matches!(status(digest).as_deref(), Some("404") | None), "{digest}");
    }
    // It is no way around a lock.
    let lock = ["repository", "update", "app", "--read-enabled", "false"];
    sandbox.refit(lock).on(&server).run().success();
    assert!(matches!(status(&own).as_deref(), Some("405") | None));
}
