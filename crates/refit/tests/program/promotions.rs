//! `refit promote`.

use testkit::{Image, Layer, busybox_layer};

use crate::access::elsewhere;
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
        .refit("promote app:good --to other.example.com/app:1")
        .code(2)
        .stderr_has("another registry");
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
    let listed = place.refit("promote list -o json").success().json();
    let listed: Vec<_> = listed.as_array().unwrap().iter().map(|one| &one["status"]).collect();
    assert_eq!(listed, ["Rejected", "RolledBack", "Succeeded", "Failed", "Succeeded"]);
    let audit = place.refit("audit list -o json").success().stdout;
    assert!(audit.contains("approve promotion m4 of maker@"), "{audit}");
}
