//! `ADD` of addresses. The server under test is also the one that files come from.

use oci::Digest;
use testkit::{Image, Layer, Server, validate};

use crate::sandbox;

/// A server that has a file, and the file's address and bytes.
fn site() -> (Server, String, Vec<u8>) {
    let server = Server::start();
    let image = Image::new([Layer::new().file("f", 0o644, b"text")]);
    let digest = server.registry().push("site", "latest", &image);
    let (bytes, _) = server.registry().manifest("site", "latest");
    let address = format!("{}/v2/site/manifests/{digest}", server.url());
    (server, address, bytes)
}

#[test]
fn as_root_a_file_is_fetched_where_that_is_allowed() {
    let sandbox = sandbox();
    let (_site, address, bytes) = site();
    let digest = Digest::of(&bytes);
    sandbox.write(
        "app/Dockerfile",
        format!(
            "FROM scratch\nADD --chmod=644 {address} /\nADD --checksum={digest} {address} /two\n"
        ),
    );
    let refused = sandbox.refit(["build", "app", "-t", "app"]).run().code(1);
    refused
        .stderr_has("`127.0.0.1` is a loopback address, which builds may not reach")
        .stderr_has("`build.allow_addresses`")
        .stderr_has("Dockerfile:2");
    let build = || {
        let command = sandbox.refit(["build", "app", "-t", "app"]);
        command.env("REFIT_BUILD_ALLOW_ADDRESSES", "127.0.0.1, ::1").run().success()
    };
    let first = build();
    let again = build();
    assert_eq!(first.digest(), again.digest());
    assert!(again.stderr.contains("CACHED"), "{}", again.stderr);

    let server = sandbox.server();
    let image = validate(&server.registry(), "app", "latest");
    assert_eq!(image.files()["two"], bytes);
    assert_eq!(image.files()[digest.as_str()], bytes);
}

#[test]
fn as_root_another_file_than_the_checksum_says_fails_the_build() {
    let sandbox = sandbox();
    let (_site, address, bytes) = site();
    let expected = Digest::of(b"other");
    let build = |address: &str| {
        let dockerfile = format!("FROM scratch\nADD --checksum={expected} {address} /\n");
        sandbox.write("app/Dockerfile", dockerfile);
        let build = sandbox.refit(["build", "app", "-t", "app"]);
        build.env("REFIT_BUILD_ALLOW_ADDRESSES", "127.0.0.1").run().code(1)
    };
    build(&address)
        .stderr_has(Digest::of(&bytes).as_str())
        .stderr_has(expected.as_str())
        .stderr_has("Dockerfile:2");

    // Whatever fails, nobody sees a password; the log is kept too.
    let address = address.replace("http://", "http://me:hunter2@");
    build(&address).stderr_has("Dockerfile:2").stderr_lacks("hunter2");
    let logs = sandbox.refit(["task", "logs"]).run();
    assert!(!format!("{}{}", logs.stdout, logs.stderr).contains("hunter2"));
}
