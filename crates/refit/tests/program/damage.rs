//! Blobs that are damaged in the data folder: what is built, pulled and pushed then.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use oci::{Digest, Manifest};
use testkit::{Image, Layer, Sandbox, Server, busybox};

use crate::sandbox;

pub(crate) fn blob_file(sandbox: &Sandbox, digest: &Digest) -> PathBuf {
    let (folder, hex) = (sandbox.data().join("blobs/sha256"), digest.hex());
    folder.join(&hex[..2]).join(hex)
}

pub(crate) fn remove(sandbox: &Sandbox, digest: &Digest) {
    fs::remove_file(blob_file(sandbox, digest)).expect("the blob is there");
}

pub(crate) fn truncate(sandbox: &Sandbox, digest: &Digest) {
    let file = fs::File::options().write(true).open(blob_file(sandbox, digest));
    file.and_then(|file| file.set_len(20)).expect("the blob is there");
}

pub(crate) fn flip(sandbox: &Sandbox, digest: &Digest) {
    let mut bytes = fs::read(blob_file(sandbox, digest)).expect("the blob is there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(blob_file(sandbox, digest), bytes).expect("the blob can be written");
}

/// The digest of an image's last layer.
pub(crate) fn last_blob(server: &Server, repository: &str, reference: &str) -> Digest {
    let (bytes, media_type) = server.registry().manifest(repository, reference);
    let manifest = Manifest::parse(&bytes, Some(&media_type)).expect("a manifest");
    manifest.references().blobs.last().expect("it has a layer").digest.clone()
}

pub(crate) const DAMAGES: [fn(&Sandbox, &Digest); 3] = [remove, truncate, flip];

/// Copies an image with a client that checks all digests and is none of ours.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "a test runs another client")]
pub(crate) fn skopeo(from: &str, to: &str) -> Result<(), String> {
    let output = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false"])
        .args([from, to])
        .output()
        .expect("skopeo is installed");
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// The image in a server, and a folder outside of it, as skopeo names them.
pub(crate) fn places(sandbox: &Sandbox, server: &Server) -> (String, String) {
    let folder = format!("dir:{}", sandbox.path("pulled").display());
    (format!("docker://{}/app:1", server.host()), folder)
}

/// Pulls what was built embedded, and tells of which layers it is made.
#[track_caller]
fn pull(sandbox: &Sandbox) -> Vec<Digest> {
    let server = sandbox.server();
    let (image, folder) = places(sandbox, &server);
    skopeo(&image, &folder).expect("the image can be pulled");
    let layers = layers(&server);
    server.stop();
    layers
}

pub(crate) fn layers(server: &Server) -> Vec<Digest> {
    let (bytes, media_type) = server.registry().manifest("app", "1");
    let manifest = Manifest::parse(&bytes, Some(&media_type)).expect("a manifest");
    let Manifest::Image(manifest) = manifest else { panic!("an image manifest") };
    manifest.layers.iter().map(|layer| layer.digest.clone()).collect()
}

/// A context with a layer of a `RUN` and one of a `COPY`.
fn app(sandbox: &Sandbox, base: &str) {
    let dockerfile = format!("FROM {base}\nRUN echo x > /d1\nCOPY a /d2\n");
    sandbox.write("app/Dockerfile", dockerfile).write("app/a", "a");
}

#[test]
fn as_root_damaged_layers_are_made_again() {
    let sandbox = sandbox();
    let server = sandbox.server();
    server.registry().push("busybox", "latest", &busybox());
    server.stop();
    app(&sandbox, "localhost:5000/busybox");
    let build = || sandbox.refit(["build", "app", "-t", "app:1"]).run().success();
    build();
    for damage in DAMAGES {
        let layers = pull(&sandbox);
        for layer in &layers[1..] {
            damage(&sandbox, layer);
        }
        let built = build();
        assert!(!built.stderr.contains("CACHED") || built.stderr.contains("beginning again"));
        pull(&sandbox);
        build().stderr_has("CACHED").stderr_lacks("beginning again");
    }
}

#[test]
fn as_root_a_damaged_base_of_another_registry_is_fetched_again() {
    let upstream = Server::start();
    upstream.registry().push("busybox", "latest", &busybox());
    let sandbox = sandbox();
    app(&sandbox, &format!("{}/busybox", upstream.host()));
    let build = || {
        let build = sandbox.refit(["build", "app", "-t", "app:1"]);
        build.env("REFIT_BUILD_ALLOW_ADDRESSES", "127.0.0.1").run().success()
    };
    build();
    for damage in DAMAGES {
        let layers = pull(&sandbox);
        damage(&sandbox, &layers[0]);
        build().stderr_has("CACHED");
        assert_eq!(pull(&sandbox), layers);
    }
}

#[test]
fn as_root_a_damaged_base_of_the_own_registry_is_named() {
    let sandbox = sandbox();
    app(&sandbox, "localhost:5000/busybox");
    let push = || {
        let server = sandbox.server();
        server.registry().push("busybox", "latest", &busybox());
        server.stop();
    };
    let build = || sandbox.refit(["build", "app", "-t", "app:1"]).run();
    push();
    build().success();
    for damage in DAMAGES {
        let layers = pull(&sandbox);
        damage(&sandbox, &layers[0]);
        build()
            .code(1)
            .stderr_has("image `localhost:5000/busybox` is damaged")
            .stderr_has(layers[0].as_str())
            .stderr_has("hint: push that image again");
        push();
        build().success();
        pull(&sandbox);
    }
}

#[test]
fn a_damaged_blob_is_not_found_and_a_push_repairs_it() {
    let sandbox = sandbox();
    let server = sandbox.server();
    let image = Image::new([Layer::new().file("file", 0o644, &[7; 10_000])]);
    server.registry().push("app", "1", &image);
    let layer = layers(&server).remove(0);
    let blob = format!("/v2/app/blobs/{layer}");
    let (remote, folder) = places(&sandbox, &server);
    skopeo(&remote, &folder).expect("the image can be pulled");
    for damage in [remove, truncate] {
        assert_eq!(server.registry().status(&blob), 200);
        damage(&sandbox, &layer);
        assert_eq!(server.registry().status(&blob), 404);
        let log = server.log();
        assert!(log.contains("a blob is damaged") && log.contains(layer.as_str()), "{log}");
        skopeo(&remote, &format!("dir:{}", sandbox.path("lost").display()))
            .expect_err("the image cannot be pulled");
        skopeo(&folder, &remote).expect("the image can be pushed");
        skopeo(&remote, &folder).expect("the image can be pulled again");
        // Also when nobody has noticed before.
        damage(&sandbox, &layer);
        skopeo(&folder, &remote).expect("the image can be pushed");
        skopeo(&remote, &folder).expect("the image can be pulled again");
    }
}
