//! `refit promote`.

use serde_json::json;
use testkit::{Image, Layer, Server, busybox_layer};

use crate::access::elsewhere;
use crate::import::push_referrer;
use crate::watches::Place;

/// Looks whether the image has a file.
const CHECK: &str = "\
version: v1.1.0
steps:
  - cmd: '{{.Values.image}} /bin/busybox test -e /good'
";

fn push(place: &Place, name: &str, tag: &str, file: &str) -> String {
    let layer = Layer::new().file(file, 0o644, tag.as_bytes());
    place.server.registry().push(name, tag, &Image::new([busybox_layer(), layer])).to_string()
}

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An index of images that a repository has.
fn index_of(place: &Place, name: &str, tags: &[&str]) -> String {
    let entries = tags.iter().map(|tag| {
        let (bytes, media_type) = place.server.registry().manifest(name, tag);
        json!({ "mediaType": media_type, "digest": oci::Digest::of(&bytes), "size": bytes.len() })
    });
    let entries: Vec<_> = entries.collect();
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries }).to_string()
}

fn digest(place: &Place, name: &str, tag: &str) -> String {
    oci::Digest::of(&place.server.registry().manifest(name, tag).0).to_string()
}

#[test]
fn as_root_a_tag_is_promoted_after_checks_and_an_approval() {
    let place = Place::new("");
    place.sandbox.write("check.yaml", CHECK);
    place.refit("task create smoke -f check.yaml -c /dev/null").success();
    let good = push(&place, "app", "good", "good");
    push(&place, "app", "bad", "other");
    let promoted = place.refit("promote app:good --to prod --check smoke").success();
    promoted.stderr_has("m1 Succeeded, smoke");
    assert_eq!(digest(&place, "app", "prod"), good);
    let run = place.runs("smoke").remove(0);
    let properties = &run["properties"];
    assert_eq!(
        (&properties["cause"]["type"], &properties["promotion"]),
        (&"Check".into(), &"m1".into())
    );
    let failed = place.refit("promote app:bad --to prod --check smoke").code(1);
    let failed = failed.stderr_has("check `smoke` has not passed: run `");
    failed.stderr_has("refit task logs --run-id ");
    assert_eq!(digest(&place, "app", "prod"), good);
    place
        .refit("promote app:good --to prod")
        .code(5)
        .stderr_has("`app:prod` is that image already");
    place.refit("promote app:missing --to prod").code(4).stderr_has("app:missing");
    place.refit("promote app:good --to prod.example.com").code(2).stderr_has("may be a tag");
    place
        .refit("promote app:good --to other.example.com/")
        .code(2)
        .stderr_has("nobody has allowed to push to `other.example.com`");
    place.refit("promote app:good --to prod2 --check missing").code(5).stderr_has("no such task");
    let name = format!("app@{good}");
    place.refit(&format!("promote {name} --to released/app:1")).success();
    assert_eq!(digest(&place, "released/app", "1"), good);

    // A task asks for more, and nobody approves what they have asked for.
    let dockerfile = format!("FROM {}/app:good\nCOPY file /file\n", place.server.host());
    place.task("maker", &dockerfile, "--check smoke --approval");
    let shown = place.refit("task show maker").success().stdout;
    assert!(shown.contains("promoted after"), "{shown}");
    let made = digest(&place, "maker", "1");
    let account = |name: &str| {
        let made = place.refit(&format!("account create {name} --role author -o json")).success();
        let password = made.json()["password"].as_str().expect("it is shown").to_owned();
        let login = ["login", place.server.url(), "-u", name, "--password-stdin"];
        elsewhere(&place.sandbox, name, &login, &password).success();
    };
    account("ann");
    account("bob");
    let by = |name: &str, command: &str| {
        let args: Vec<_> = command.split_whitespace().collect();
        elsewhere(&place.sandbox, name, &args, "")
    };
    let waits = by("ann", "promote maker:1 --to released/app:1").success();
    let waits = waits.stderr_has("m4 AwaitingApproval, smoke");
    waits.stderr_has("Somebody else approves it: `refit promote approve m4`");
    by("ann", "promote approve m4").code(3).stderr_has("somebody else approves it");
    assert_eq!(digest(&place, "released/app", "1"), good);
    by("bob", "promote approve m4").success();
    assert_eq!(digest(&place, "released/app", "1"), made);
    let shown = place.refit("promote show m4 -o json").success().json();
    assert_eq!((&shown["createdBy"], &shown["decidedBy"]), (&"ann".into(), &"bob".into()));
    assert_eq!(shown["oldDigest"], good.as_str());
    by("bob", "rollback m4").success();
    assert_eq!(digest(&place, "released/app", "1"), good);
    by("ann", "promote maker:1 --to released/app:2 --no-wait").success();
    by("bob", "promote reject m5").success();
    place.refit("promote approve m5").code(5).stderr_has("promotion `m5` is Rejected");
    // An index does not hide the image, nor one of its images an index.
    let index = index_of(&place, "maker", &["1"]);
    place.server.registry().push_manifest("maker", "all", index.as_bytes(), INDEX);
    let of_index = index_of(&place, "maker", &["all"]);
    place.server.registry().push_manifest("maker", "twice", of_index.as_bytes(), INDEX);
    for tag in ["all", "twice"] {
        let hidden = format!("promote maker:{tag} --to released/app:3 --no-wait -o json");
        assert_eq!(by("ann", &hidden).success().json()["approvalRequired"], true);
    }
    let listed = place.refit("promote list -o json").success().json();
    let listed: Vec<_> = listed.as_array().unwrap().iter().map(|one| &one["status"]).collect();
    assert_eq!(listed[2..], ["Rejected", "RolledBack", "Succeeded", "Failed", "Succeeded"]);
    let audit = place.refit("audit list -o json").success().stdout;
    assert!(audit.contains("approve promotion m4 of maker@"), "{audit}");
}

#[test]
fn as_root_an_image_is_promoted_to_another_registry_and_put_back() {
    let other = Server::start();
    let host = other.host();
    let place = Place::new(&format!("[upstream.\"{host}\"]\npush = true\n"));
    let there = |name: &str, tag: &str| {
        oci::Digest::of(&other.registry().manifest(name, tag).0).to_string()
    };
    let one = push(&place, "app", "1", "one");
    let two = push(&place, "app", "2", "two");
    push(&place, "app", "3", "three");
    place.refit(&format!("promote app:1 --to {host}/")).success();
    assert_eq!(there("app", "1"), one);
    place.refit(&format!("promote app:1 --to {host}/team/app:prod")).success();
    place.refit(&format!("promote app:2 --to {host}/team/app:prod")).success();
    assert_eq!(there("team/app", "prod"), two);
    place.refit(&format!("promote app:2 --to {host}/team/app:prod")).code(5).stderr_has("already");
    // What somebody has moved since stays.
    place.refit(&format!("promote app:3 --to {host}/team/app:prod")).success();
    place.refit("rollback m3").code(5).stderr_has("has moved meanwhile");
    place.refit("rollback m4").success();
    assert_eq!(there("team/app", "prod"), two);
    place.refit("rollback m3").success();
    assert_eq!(there("team/app", "prod"), one);
    place.refit("rollback m2").code(5).stderr_has("there was none before");
    let by_digest = format!("promote app@{one} --to {host}/");
    place.refit(&by_digest).code(2).stderr_has(&format!("write `{host}/app:TAG`"));
    // All platforms come, and what belongs to each.
    let registry = place.server.registry();
    let index = index_of(&place, "app", &["1", "2"]);
    let index = registry.push_manifest("app", "all", index.as_bytes(), INDEX);
    let signature = push_referrer(&place.server, "app", &two.parse().unwrap());
    place.refit(&format!("promote app:all --to {host}/")).success();
    assert_eq!(there("app", "all"), index.to_string());
    let found = other.registry().referrers("app", &two.parse().unwrap());
    assert_eq!(found[0]["digest"], signature.to_string());
    testkit::validate(&other.registry(), "app", &two);
}
