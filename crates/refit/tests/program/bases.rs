//! Base images of other registries.

use testkit::{Image, Layer, Server};

use crate::damage::{last_blob, remove};
use crate::sandbox;

#[test]
fn a_registry_that_names_somebodys_layer_must_have_it() {
    let image = Image::new([Layer::new().file("private", 0o600, b"private")]);
    let (sandbox, elsewhere) = (sandbox(), sandbox());
    let (server, upstream) = (sandbox.server_beside_others(), elsewhere.server());
    server.registry().push("private/app", "1", &image);
    upstream.registry().push("public/app", "1", &image);
    remove(&elsewhere, &last_blob(&upstream, "public/app", "1"));
    let dockerfile = format!("FROM {}/public/app:1\nLABEL a=b\n", upstream.host());
    sandbox.write("app/Dockerfile", dockerfile);
    let build = || sandbox.refit(["build", "app", "-t", "mine:1"]).on(&server).run();
    build().code(1).stderr_has("could not be pulled").stderr_has("does not exist on");
    assert_eq!(server.registry().status("/v2/mine/manifests/1"), 404);
    upstream.registry().push("public/app", "1", &image);
    build().success();
    testkit::validate(&server.registry(), "mine", "1");
    upstream.stop();
}

#[test]
fn registries_of_this_machine_are_for_its_operator_to_name() {
    let upstream = Server::start();
    upstream.registry().push("base", "1", &Image::new([Layer::new().file("f", 0o644, b"f")]));
    let by_name = upstream.host().replace("127.0.0.1", "localhost");
    let sandbox = sandbox();
    let commands = |host: &str| {
        sandbox.write("app/Dockerfile", format!("FROM {host}/base:1\nLABEL a=b\n"));
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        [
            words("build app -t app:1"),
            words(&format!("build oci://{host}/base:1 -t app:1")),
            words(&format!("import {host}/base:1 -t copy:1")),
            words(&format!("import {host}/base --all-tags --repository all")),
        ]
    };
    let server = sandbox.server();
    for host in [&upstream.host(), &by_name] {
        for command in commands(host) {
            let refused = sandbox.refit(command.iter().map(String::as_str)).on(&server).run();
            assert!(matches!(refused.code, Some(1 | 2)), "{command:?}: {}", refused.stderr);
            refused
                .stderr_has(&format!("`{host}` is a loopback address, which users may not reach"))
                .stderr_has(&format!("[upstream.\"{host}\"]"))
                .stderr_has("`build.allow_addresses`");
        }
    }
    server.stop();
    sandbox.write("named.toml", format!("[upstream.\"{}\"]\n", upstream.host()));
    let server = sandbox.server_with(&["--config", "named.toml"]);
    let [build, _, import, ..] = commands(&upstream.host());
    for command in [build, import] {
        sandbox.refit(command.iter().map(String::as_str)).on(&server).run().success();
    }
    // By another name it is another one.
    let [_, _, import, ..] = commands(&by_name);
    let refused = sandbox.refit(import.iter().map(String::as_str)).on(&server).run();
    refused.stderr_has("which users may not reach");
}
