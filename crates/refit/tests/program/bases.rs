//! Base images of other registries.

use testkit::{Image, Layer};

use crate::damage::{last_blob, remove};
use crate::sandbox;

#[test]
fn a_registry_that_names_somebodys_layer_must_have_it() {
    let image = Image::new([Layer::new().file("private", 0o600, b"private")]);
    let (sandbox, elsewhere) = (sandbox(), sandbox());
    let (server, upstream) = (sandbox.server(), elsewhere.server());
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
