//! Builds for several platforms. Programs for arm64 run under the emulator that Debian's package
//! `qemu-user-static` registers.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::symlink;

use oci::{ImageIndex, Manifest, Platform};
use serde_json::Value;
use testkit::{Sandbox, Server, validate};

use crate::build::{app, scratch_app};
use crate::output::{json, tool};
use crate::sandbox;

const BOTH: &str = "linux/amd64,linux/arm64";

/// Debian's busybox for arm64.
fn foreign_busybox(sandbox: &Sandbox) -> Option<Vec<u8>> {
    let release = fs::read_to_string("/etc/os-release").expect("Debian has it");
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let suite = suite.expect("Debian has a code name");
    let asked = ["--quiet", "--variant=extract", "--architectures=arm64"];
    let wanted = ["--include=busybox-static", suite, "arm64.tar"];
    tool(sandbox, "mmdebstrap", &[asked, wanted].concat())?;
    let file = fs::File::open(sandbox.path("arm64.tar")).expect("it was written");
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries().expect("it is a tar") {
        let mut entry = entry.expect("it is a tar");
        if entry.path().expect("it has a path").ends_with("bin/busybox") {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("it is whole");
            return Some(bytes);
        }
    }
    panic!("the package `busybox-static` has no bin/busybox");
}

/// Pushes `base`, an image with a shell for both platforms.
fn push_base(sandbox: &Sandbox, server: &Server) -> Option<()> {
    let foreign = foreign_busybox(sandbox)?;
    let own = fs::read("/bin/busybox").expect("busybox-static is installed");
    for (architecture, program) in [("amd64", own), ("arm64", foreign)] {
        let folder = format!("base/{architecture}");
        sandbox.write_executable(&format!("{folder}/busybox"), program);
        symlink("busybox", sandbox.path(&format!("{folder}/sh"))).expect("it is new");
    }
    sandbox.write("base/Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /bin/\n");
    let args = ["build", "base", "-t", "base", "--platform", BOTH];
    sandbox.refit(args).on(server).run().success();
    Some(())
}

fn index(server: &Server, repository: &str) -> ImageIndex {
    let (bytes, media_type) = server.registry().manifest(repository, "latest");
    match Manifest::parse(&bytes, Some(&media_type)) {
        Ok(Manifest::Index(index)) => index,
        other => panic!("{repository} is no index: {other:?}"),
    }
}

fn platforms(index: &ImageIndex) -> Vec<String> {
    let of = |platform: &Option<Platform>| platform.as_ref().expect("it is told").to_string();
    index.manifests.iter().map(|manifest| of(&manifest.platform)).collect()
}

#[test]
fn as_root_several_platforms_give_one_index() {
    let sandbox = sandbox();
    let server = sandbox.server();
    let Some(()) = push_base(&sandbox, &server) else { return };
    let base = format!("{}/base", server.host());
    sandbox.write(
        "app/Dockerfile",
        format!(
            "FROM --platform=$BUILDPLATFORM {base} AS tool\n\
             RUN busybox uname -m > /machine\n\
             FROM {base}\n\
             ARG TARGETPLATFORM\n\
             RUN echo \"$TARGETPLATFORM $(busybox uname -m)\" > /own\n\
             COPY --from=tool /machine /built-on\n"
        ),
    );
    let args = ["build", "app", "-t", "app", "--platform", BOTH, "--platform", "linux/arm64/v8"];
    let built = sandbox.refit(args).on(&server).run().success();
    let built = built.stderr_has("[linux/arm64 stage-1 2/3] RUN echo");

    let index = index(&server, "app");
    assert_eq!(platforms(&index), ["linux/amd64", "linux/arm64"]);
    for (manifest, own) in
        index.manifests.iter().zip(["linux/amd64 x86_64\n", "linux/arm64 aarch64\n"])
    {
        let image = validate(&server.registry(), "app", manifest.digest.as_str());
        assert_eq!(Some(image.config.platform()), manifest.platform);
        assert_eq!(image.text("own"), own);
        assert_eq!(image.text("built-on"), "x86_64\n");
    }
    // A stage for the building machine is executed once, and copied from once.
    assert_eq!(built.stderr.matches("CACHED").count(), 2, "{}", built.stderr);

    let again = sandbox.refit(args).on(&server).run().success();
    assert_eq!(again.digest(), built.digest());

    // Without a name it is kept for its run, whole.
    let args = ["build", "app", "--platform", BOTH, "--metadata-file", "meta"];
    let args = [&args[..], &["-o", "type=oci,dest=app.tar"]].concat();
    let unnamed = sandbox.refit(args).on(&server).run().success();
    assert_eq!(unnamed.digest(), built.digest());
    let meta = json(&sandbox.path("meta"));
    assert_eq!(meta["containerimage.descriptor"]["digest"], built.digest());
    assert_eq!(meta["containerimage.config.digest"], Value::Null);
    let copy = ["copy", "--all", "oci-archive:app.tar", "dir:copied"];
    tool(&sandbox, "skopeo", &copy).expect("it was there for the base");
    let copied = fs::read(sandbox.path("copied/manifest.json")).unwrap();
    assert_eq!(oci::Digest::of(&copied).as_str(), built.digest());
}

#[test]
fn as_root_annotations_go_where_their_type_says() {
    let sandbox = sandbox();
    let server = sandbox.server();
    scratch_app(&sandbox);
    let annotations = ["index:a=1", "manifest[linux/arm64]:b=2", "manifest-descriptor:c=3", "d=4"];
    let flags = annotations.into_iter().flat_map(|text| ["--annotation", text]);
    let args = ["build", "app", "-t", "app", "--platform", BOTH].into_iter().chain(flags);
    sandbox.refit(args).on(&server).run().success();
    let index = index(&server, "app");
    assert_eq!(format!("{:?}", index.annotations), r#"{"a": "1"}"#);
    for (descriptor, own) in
        index.manifests.iter().zip([r#"{"d": "4"}"#, r#"{"b": "2", "d": "4"}"#])
    {
        assert_eq!(format!("{:?}", descriptor.annotations), r#"{"c": "3"}"#);
        let image = validate(&server.registry(), "app", descriptor.digest.as_str());
        assert_eq!(format!("{:?}", image.manifest.annotations), own);
    }
    for (annotation, why) in [
        ("index:a=1", "need several platforms"),
        ("index-descriptor:a=1", "`index-descriptor` is not one of"),
    ] {
        let args = ["build", "app", "--annotation", annotation];
        sandbox.refit(args).on(&server).run().code(2).stderr_has(why);
    }
}

#[test]
fn as_root_an_error_names_the_platform() {
    let sandbox = sandbox();
    let server = sandbox.server();
    app(&sandbox, &server, "ARG TARGETARCH\nRUN test \"$TARGETARCH\" != riscv64\n");
    let args = ["build", "app", "--platform", "linux/amd64,linux/riscv64"];
    let failed = sandbox.refit(args).on(&server).run().code(1);
    failed.stderr_has("failed: linux/riscv64: `test").stderr_has("Dockerfile:3");
}

#[test]
fn as_root_a_program_for_another_processor_is_told_with_a_hint() {
    let sandbox = sandbox();
    let server = sandbox.server();
    sandbox.write_executable("app/program", "\x7fELF, or nearly so");
    app(&sandbox, &server, "COPY program /\nRUN [\"/program\"]\n");
    let failed = sandbox.refit(["build", "app"]).on(&server).run().code(1);
    let failed = failed.stderr_has("`/program` is not a program for this machine");
    failed.stderr_has("qemu-user-static");
}

#[test]
fn as_root_the_files_of_each_platform_have_a_folder() {
    let sandbox = sandbox();
    let server = sandbox.server();
    sandbox.write("app/linux_amd64", "one");
    sandbox.write("app/linux_arm64", "other");
    sandbox
        .write("app/Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY linux_$TARGETARCH /etc/app\n");
    let args =
        ["build", "app", "--platform", BOTH, "-o", "type=tar,dest=app.tar", "-o", "./folder"];
    sandbox.refit(args).on(&server).run().success();
    let folder = sandbox.path("folder");
    for (platform, text) in [("linux_amd64", "one"), ("linux_arm64", "other")] {
        let file = folder.join(platform).join("etc/app");
        assert_eq!(fs::read_to_string(file).unwrap(), text);
    }
    let tar = tool(&sandbox, "tar", &["-tf", "app.tar"]).expect("tar is there");
    let names = [
        "linux_amd64/",
        "linux_amd64/etc/",
        "linux_amd64/etc/app",
        "linux_arm64/",
        "linux_arm64/etc/",
        "linux_arm64/etc/app",
    ];
    assert_eq!(tar.lines().collect::<Vec<_>>(), names);
}

#[test]
fn a_docker_archive_has_room_for_one_platform() {
    let sandbox = sandbox();
    scratch_app(&sandbox);
    let args = ["build", "app", "--platform", BOTH, "-o", "type=docker,dest=app.tar"];
    sandbox.refit(args).run().code(2).stderr_has("no room for several platforms");
}
