//! `refit scrub`, and what a server reads again by itself.

use testkit::{Image, Layer, Server, until};

use crate::damage::{DAMAGES, flip, layers, places, skopeo};
use crate::sandbox;

fn image() -> Image {
    Image::new([Layer::new().file("file", 0o644, &[7; 100_000])])
}

#[test]
fn what_is_damaged_is_found_told_and_not_served_until_a_push_repairs_it() {
    let sandbox = sandbox();
    let server = sandbox.server();
    server.registry().push("app", "1", &image());
    let layer = layers(&server).remove(0);
    let blob = format!("/v2/app/blobs/{layer}");
    let (remote, folder) = places(&sandbox, &server);
    skopeo(&remote, &folder).expect("the image can be pulled");
    let scrub = || sandbox.refit(["scrub", "-o", "json"]).on(&server).run();
    for damage in DAMAGES {
        let report = scrub().success().json();
        assert_eq!((&report["blobs"], &report["found"]), (&3.into(), &0.into()), "{report}");
        damage(&sandbox, &layer);
        let told = scrub().code(1).stderr_has("error: content of the store is damaged");
        let report = told.json();
        assert_eq!(report["damaged"][0]["digest"], layer.as_str());
        assert_eq!(report["damaged"][0]["repositories"][0]["repository"], "app");
        assert_eq!(server.registry().status(&blob), 404);
        let log = server.log();
        assert!(log.contains("a blob is damaged") && log.contains(layer.as_str()), "{log}");
        let told = sandbox.refit(["scrub", "--report"]).on(&server).run().code(1);
        assert!(told.stdout.contains(layer.as_str()), "{}", told.stdout);
        skopeo(&remote, &format!("dir:{}", sandbox.path("lost").display()))
            .expect_err("the image cannot be pulled");
        skopeo(&folder, &remote).expect("the image can be pushed");
        skopeo(&remote, &folder).expect("the image can be pulled again");
    }
    sandbox.refit(["scrub", "--report"]).on(&server).run().success();
}

#[test]
fn content_is_read_again_by_itself_at_a_bounded_pace_and_on_after_a_restart() {
    let sandbox = sandbox();
    let server = sandbox.server();
    server.registry().push("app", "1", &image());
    let layer = layers(&server).remove(0);
    server.stop();
    sandbox.write("slow.toml", "[store]\nscrub_rate = \"1\"\nscrub_period = \"1ms\"\n");
    let slow = sandbox.server_with(&["--config", "slow.toml"]);
    let pass = |server: &Server| {
        sandbox.refit(["scrub", "--report", "-o", "json"]).on(server).run().json()
    };
    let is_under_way = |pass: &serde_json::Value| {
        pass.get("startedTime").is_some() && pass.get("finishedTime").is_none()
    };
    let begun = until("a pass", || Some(pass(&slow)).filter(is_under_way));
    assert_eq!(begun["blobs"], 0, "one takes minutes");
    slow.kill();
    flip(&sandbox, &layer);
    let server = sandbox.server();
    let report =
        until("its end", || Some(pass(&server)).filter(|pass| pass.get("finishedTime").is_some()));
    assert_eq!(report["startedTime"], begun["startedTime"], "it is the same pass");
    assert_eq!(report["damaged"][0]["digest"], layer.as_str());
}

#[test]
fn a_command_without_a_server_reads_content_too() {
    let sandbox = sandbox();
    let server = sandbox.server();
    server.registry().push("app", "1", &image());
    let layer = layers(&server).remove(0);
    server.stop();
    sandbox.refit(["scrub", "--rate", "0"]).run().success().stderr_has("3 blobs");
    flip(&sandbox, &layer);
    sandbox.refit(["scrub", "--rate", "100m"]).run().code(1);
    sandbox.refit(["scrub", "--rate", "fast"]).run().code(2).stderr_has("is not a size");
}
