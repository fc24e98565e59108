//! `refit build --build-context`.

use std::fs;
use std::os::unix::fs::symlink;

use expect_test::expect;
use testkit::{Image, Layer, Sandbox, busybox, validate};

use crate::sandbox;

fn layout_image(text: &str) -> Image {
    Image::new([Layer::new().file("own", 0o644, text.as_bytes())]).env("FROM=layout")
}

#[test]
fn as_root_names_stand_for_folders_images_and_layouts_on_a_server() {
    let sandbox = sandbox();
    let server = sandbox.server();
    server.registry().push("busybox", "latest", &busybox());
    layout_image("in a layout").write_layout(&sandbox.path("layout"), "1");
    sandbox
        .write(
            "app/Dockerfile",
            "FROM no.such/image AS files\nRUN false\n\
             FROM alpine AS run\n\
             RUN --mount=from=files,target=/m cat /m/sub/name > /out && ls -A /m >> /out\n\
             FROM given\nCOPY --from=files sub/name /\nCOPY --from=run /out /\nCOPY main /\n",
        )
        .write("app/main", "main")
        .write("other/sub/name", "named\n")
        .write("other/lost", "x")
        .write("other/.git/config", "x")
        .write("other/.dockerignore", "lost\n");
    let alpine = format!("alpine=docker-image://{}/busybox", server.host());
    let build = || {
        let args = ["build", "app", "-t", "app", "--build-context", "files=other"];
        let contexts =
            ["--build-context", &alpine, "--build-context", "given:latest=oci-layout://layout:1"];
        sandbox.refit(args.into_iter().chain(contexts)).on(&server).run().success()
    };
    let built = build().stderr_has("Sent context `files`: 2 files");
    let image = validate(&server.registry(), "app", "latest");
    assert_eq!(image.text("own"), "in a layout");
    assert_eq!(image.text("name"), "named\n");
    assert_eq!(image.text("out"), "named\n.dockerignore\nsub\n");
    assert_eq!(image.text("main"), "main");
    assert!(image.config.config.env.contains(&"FROM=layout".to_owned()));

    assert_eq!(build().digest(), built.digest());
    sandbox.write("other/sub/name", "renamed\n");
    assert_ne!(build().digest(), built.digest());
    assert_eq!(validate(&server.registry(), "app", "latest").text("name"), "renamed\n");
}

#[test]
fn as_root_names_work_without_a_server() {
    let sandbox = sandbox();
    let blobs = layout_image("embedded").write_layout(&sandbox.path("layout"), "latest");
    let digest = blobs[0].file_name().unwrap().to_str().unwrap().to_owned();
    sandbox
        .write("app/Dockerfile", "FROM given\nCOPY --from=files name /\n")
        .write("other/name", "named");
    let build = |given: &str| {
        let given = format!("given=oci-layout://{given}");
        let args = ["build", "app", "-t", "app", "--build-context", "files=other"];
        sandbox.refit(args.into_iter().chain(["--build-context", &given])).run()
    };
    let one = build("layout").success().digest();
    assert_eq!(build(&format!("layout@sha256:{digest}")).success().digest(), one);
    // The only image of a layout has any tag.
    assert_eq!(build("layout:other").success().digest(), one);
    build("layout@sha256:12").code(2).stderr_has("context `given`");
    let missing = format!("layout@sha256:{}", "0".repeat(64));
    build(&missing).code(1).stderr_has("`given` is not an image").stderr_has("it lacks blob");
    build("nowhere").code(2).stderr_has("`nowhere` is no OCI layout");
    build("layout@sha256:../../x").code(2).stderr_has("is not a digest");
}

/// Builds from a layout to which something was done.
fn hostile(change: impl FnOnce(&Sandbox, &[std::path::PathBuf])) -> testkit::Outcome {
    let sandbox = sandbox();
    let image = layout_image("secret");
    let blobs = image.write_layout(&sandbox.path("layout"), "latest");
    sandbox.write("app/Dockerfile", "FROM given\nENV A=1\n");
    let server = sandbox.server();
    // The store has all of it, so that nothing fails for want of bytes.
    server.registry().push("private", "latest", &image);
    change(&sandbox, &blobs);
    let args = ["build", "app", "-t", "app", "--build-context", "given=oci-layout://layout"];
    sandbox.refit(args).on(&server).run()
}

#[test]
fn as_root_hostile_layouts_are_refused() {
    hostile(|_, _| ()).success();
    // What a layout lacks is not taken from elsewhere, whoever has it.
    for blob in [1, 2] {
        let refused = hostile(|_, blobs| fs::remove_file(&blobs[blob]).unwrap()).code(1);
        refused.stderr_has("it lacks blob sha256:");
    }
    hostile(|_, blobs| fs::remove_file(&blobs[0]).unwrap()).code(1).stderr_has("it lacks blob");
    for blob in [1, 2] {
        let refused = hostile(|_, blobs| fs::write(&blobs[blob], "other bytes").unwrap()).code(1);
        refused.stderr_has("context `given`: blob sha256:").stderr_has("is damaged");
    }
    let linked = hostile(|sandbox, blobs| {
        sandbox.write("outside", "not to be seen");
        fs::remove_file(&blobs[1]).unwrap();
        symlink(sandbox.path("outside"), &blobs[1]).unwrap();
    });
    assert_ne!(linked.code, Some(0));
    assert!(!linked.stderr.contains("not to be seen"), "{}", linked.stderr);
}

#[test]
fn contexts_from_elsewhere_are_refused_by_name() {
    let sandbox = sandbox();
    sandbox.write("app/Dockerfile", "FROM scratch\n");
    let refused = |context: &str| {
        let args = ["build", "app", "--server", "http://127.0.0.1:9", "--build-context", context];
        sandbox.refit(args).run().snapshot()
    };
    expect![[r#"
        exit: 2
        -- stdout --
        -- stderr --
        error: the git address `ssh://***@example.com/src.git` cannot be used: over SSH there are no passwords
    "#]]
    .assert_eq(&refused("src=ssh://user:password@example.com/src.git"));
    expect![[r#"
        exit: 2
        -- stdout --
        -- stderr --
        error: the context `src`: `no/such` is not a folder
    "#]]
    .assert_eq(&refused("src=no/such"));
}
