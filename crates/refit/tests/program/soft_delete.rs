//! What is deleted, and restored within its days.

use expect_test::expect;
use testkit::{Image, Layer, Outcome, Sandbox, Server};

use crate::damage::skopeo;
use crate::{output, sandbox};

fn image(text: &str) -> Image {
    Image::new([Layer::new().file("file", 0o644, text.as_bytes())])
}

struct Setting {
    sandbox: Sandbox,
    server: Server,
}

impl Setting {
    /// A registry in which what is deleted can be restored.
    fn new() -> Self {
        let sandbox = sandbox();
        let server = sandbox.server();
        let registry = server.registry();
        registry.push("team/app", "1.0", &image("one"));
        registry.push("team/app", "1.1", &image("two"));
        registry.push("other", "1", &image("other"));
        let setting = Self { sandbox, server };
        setting.run(&["config", "soft-delete", "update", "--status", "enabled"]).success();
        setting
    }

    fn run(&self, args: &[&str]) -> Outcome {
        self.sandbox.refit(args.iter().copied()).on(&self.server).run()
    }

    fn digest(&self, image: &str) -> String {
        let shown = self.run(&["manifest", "show", image, "-o", "tsv"]).success();
        shown.stdout.trim().to_owned()
    }

    /// Whether a client of the registry gets an image.
    fn can_be_pulled(&self, name: &str) -> bool {
        let to = self.sandbox.path("pulled");
        let _ = std::fs::remove_dir_all(&to);
        skopeo(&self.docker(name), &format!("dir:{}", to.display())).is_ok()
    }

    fn docker(&self, name: &str) -> String {
        format!("docker://{}/{name}", self.server.host())
    }
}

#[test]
fn n11_what_a_client_deletes_is_restored_and_not_pushed() {
    let setting = Setting::new();
    let digest = setting.digest("team/app:1.0");
    let kept = format!("dir:{}", setting.sandbox.path("kept").display());
    skopeo(&setting.docker("team/app:1.0"), &kept).expect("it can be pulled");
    let image = setting.docker("team/app:1.0");
    output::tool(&setting.sandbox, "skopeo", &["delete", "--tls-verify=false", &image]);
    assert!(!setting.can_be_pulled("team/app:1.0"));
    assert!(!setting.can_be_pulled(&format!("team/app@{digest}")));
    assert_eq!(setting.server.registry().tags("team/app"), ["1.1"]);
    expect![[r#"
        exit: 0
        -- stdout --
        REPOSITORY  TAGS  MANIFESTS
        ----------  ----  ---------
        team/app    1     1
        -- stderr --
    "#]]
    .assert_eq(&setting.run(&["repository", "list-deleted"]).snapshot());
    let listed = setting.run(&["manifest", "list-deleted", "--name", "team/app", "-o", "json"]);
    let listed = listed.success().json();
    assert_eq!(
        (&listed[0]["digest"], &listed[0]["tags"][0]),
        (&digest.as_str().into(), &"1.0".into())
    );
    let tags = ["manifest", "list-deleted-tags", "-n", "team/app", "-o", "tsv"];
    let tags = setting.run(&tags).success().filtered_stdout();
    assert_eq!(tags, "1.0\tsha256:[DIGEST]\t[TIME]\t[TIME]\n");
    for (name, lines) in [("team/app:1.0", 1), ("team/app:1.1", 0)] {
        let of_one = ["manifest", "list-deleted-tags", name, "-o", "tsv"];
        assert_eq!(setting.run(&of_one).success().stdout.lines().count(), lines, "{name}");
    }
    // The same again, under whatever tag.
    let refused = skopeo(&kept, &setting.docker("team/app:again")).expect_err("it is refused");
    let hint = format!("`refit manifest restore team/app@{digest}` brings it back");
    assert!(refused.contains("is soft-deleted") && refused.contains(&hint), "{refused}");
    // An import of it, too.
    skopeo(&kept, &setting.docker("elsewhere:1")).expect("another repository takes it");
    let source = format!("{}/elsewhere:1", setting.server.host());
    let refused = setting.run(&["import", &source, "-t", "team/app:again"]).code(5);
    assert!(refused.stderr.contains(&hint), "{}", refused.stderr);
    let restore = ["manifest", "restore", "--name", "team/app:1.0", "-y", "-o", "tsv"];
    let restored = setting.run(&restore).success().filtered_stdout();
    assert_eq!(restored, "1.0\tsha256:[DIGEST]\trestored\n");
    assert!(setting.can_be_pulled("team/app:1.0"));
    assert_eq!(setting.digest("team/app:1.0"), digest);
    skopeo(&kept, &setting.docker("team/app:again")).expect("it is there");
    let gone = setting.run(&["manifest", "restore", "team/app:1.0"]).code(4);
    assert!(gone.stderr.contains("deleted tag `team/app:1.0` not found"), "{}", gone.stderr);
}

#[test]
fn whoever_deletes_it_can_be_restored() {
    let setting = Setting::new();
    let digests = ["1.0", "1.1"].map(|tag| setting.digest(&format!("team/app:{tag}")));
    let task = "version: v1.1.0
steps:
  - cmd: acr purge --filter 'team/app:^1' --ago 0d --untagged
  - cmd: acr manifest delete --repository other {{.Values.digest}}
";
    setting.sandbox.write("acb.yaml", task);
    let value = format!("digest={}", setting.digest("other:1"));
    setting.run(&["run", "-f", "acb.yaml", "--set", &value, "/dev/null"]).success();
    assert_eq!(setting.run(&["repository", "list", "-o", "json"]).json(), serde_json::json!([]));
    // Collection takes nothing of it.
    setting.run(&["gc"]).success();
    for (tag, digest) in ["1.0", "1.1"].iter().zip(&digests) {
        setting.run(&["manifest", "restore", &format!("team/app:{tag}")]).success();
        assert_eq!(setting.digest(&format!("team/app:{tag}")), *digest);
        assert!(setting.can_be_pulled(&format!("team/app:{tag}")));
    }
    setting.run(&["manifest", "restore", "other:1"]).success();
    // By commands.
    setting.run(&["tag", "delete", "team/app:1.0", "--yes"]).success();
    setting.run(&["repository", "delete", "other", "--yes"]).success();
    setting.run(&["manifest", "delete", "team/app:1.1", "--yes"]).success();
    let [first, second] = &digests;
    for (args, code) in [
        (&["team/app:1.0"][..], 0),
        (&["team/app:1.1", "--digest", first], 4),
        (&["team/app:1.1", "--digest", second], 0),
        (&["other:1"], 0),
        (&["other"], 2),
        (&["other", "--digest", first], 4),
        (&[&format!("team/app@{first}"), "--digest", second], 2),
    ] {
        setting.run(&[&["manifest", "restore"][..], args].concat()).code(code);
    }
    // A tag that points at something else by now.
    setting.run(&["tag", "delete", "team/app:1.0", "--yes"]).success();
    setting.server.registry().push("team/app", "1.0", &image("three"));
    expect![[r#"
        exit: 5
        -- stdout --
        -- stderr --
        error: there is a `team/app:1.0` by now
        hint: `--force` moves it; what it points at now can then be restored in turn
    "#]]
    .assert_eq(&setting.run(&["manifest", "restore", "team/app:1.0"]).snapshot());
    setting.run(&["manifest", "restore", "team/app:1.0", "--force"]).success();
    assert_eq!(setting.digest("team/app:1.0"), *first);
    // Without the policy it is gone.
    setting.run(&["config", "soft-delete", "update", "--status", "disabled"]).success();
    setting.run(&["repository", "delete", "other", "--yes"]).success();
    setting.run(&["manifest", "restore", "other:1"]).code(4);
    setting.run(&["manifest", "restore", "team/app:1.0", "--force"]).success();
}

#[test]
fn a_build_of_what_is_soft_deleted_fails_by_its_users_doing() {
    let setting = Setting::new();
    setting.sandbox.write("context/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let build = || {
        let args = ["build", "context", "-t", "app:1"];
        let build = setting.sandbox.refit(args).on(&setting.server);
        build.env("SOURCE_DATE_EPOCH", "1700000000").run()
    };
    let built = build().success();
    setting.run(&["manifest", "delete", "app:1", "--yes"]).success();
    let refused = build().code(1);
    let hint = format!("`refit manifest restore app@{}` brings it back", built.digest());
    assert!(refused.stderr.contains(&hint), "{}", refused.stderr);
    assert!(!refused.stderr.contains("error of the server"), "{}", refused.stderr);
    setting.run(&["manifest", "restore", "app:1"]).success();
    assert_eq!(build().success().digest(), built.digest());
    let record = setting.run(&["manifest", "show", "app:1", "--record"]).success();
    assert!(record.stdout.contains("\"run\""), "{}", record.stdout);
}

#[test]
fn an_index_tells_what_of_it_is_still_deleted() {
    let setting = Setting::new();
    setting.sandbox.write("context/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let platforms = ["--platform", "linux/amd64", "--platform", "linux/arm64"];
    let built =
        setting.run(&[&["build", "context", "-t", "app:1"][..], &platforms].concat()).success();
    let index: serde_json::Value = setting.run(&["manifest", "show", "app:1"]).json();
    let member = index["manifests"][0]["digest"].as_str().expect("it has members").to_owned();
    setting.run(&["repository", "delete", "app", "--yes"]).success();
    let restored = setting.run(&["manifest", "restore", "app:1"]).success();
    let note = format!("still deleted: `refit manifest restore app@{member}`");
    assert!(restored.stderr.contains(&note), "{}", restored.stderr);
    assert_eq!(setting.digest("app:1"), built.digest());
    for platform in index["manifests"].as_array().expect("it has members") {
        let member = platform["digest"].as_str().expect("it has a digest");
        let restored = setting.run(&["manifest", "restore", &format!("app@{member}")]);
        assert_eq!(restored.success().stderr, "");
    }
    let to = format!("dir:{}", setting.sandbox.path("all").display());
    let all = ["copy", "--all", "--src-tls-verify=false", &setting.docker("app:1"), &to];
    output::tool(&setting.sandbox, "skopeo", &[&["--insecure-policy"][..], &all].concat());
    assert!(setting.sandbox.path("all").join("manifest.json").exists());
}
