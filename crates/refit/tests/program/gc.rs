use testkit::{Image, Layer};

use crate::sandbox;

#[test]
fn a_dry_run_deletes_nothing() {
    let sandbox = sandbox();
    let server = sandbox.server();
    let image = Image::new([Layer::new().file("file", 0o644, b"one")]);
    server.registry().push("app", "1", &image);
    let told = sandbox.refit(["gc", "--dry-run", "-o", "json"]).on(&server).run().success();
    assert_eq!(told.json()["dryRun"], true);
    sandbox.refit(["gc"]).on(&server).run().success().stderr_has("Deleted ");
    testkit::validate(&server.registry(), "app", "1");
}
