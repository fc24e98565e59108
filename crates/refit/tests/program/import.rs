//! `refit import`.

use std::process::Command;

use oci::{Descriptor, Digest, Manifest, media_type};
use testkit::{Image, Layer, Sandbox, Server};

use crate::damage::{last_blob, remove, skopeo};
use crate::sandbox;

fn image(content: u8) -> Image {
    Image::new([
        Layer::new().file("file", 0o644, &[content; 100_000]),
        Layer::new().file("other", 0o644, b"other"),
    ])
}

fn config(server: &Server, repository: &str, reference: &str) -> Digest {
    let (bytes, media_type) = server.registry().manifest(repository, reference);
    match Manifest::parse(&bytes, Some(&media_type)).expect("a manifest") {
        Manifest::Image(image) => image.config.digest,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_image_of_another_registry_is_imported_with_its_name_or_others() {
    let upstream = Server::start();
    let digest = upstream.registry().push("team/app", "1", &image(1));
    let sandbox = sandbox();
    let server = sandbox.server_beside_others();
    let source = format!("{}/team/app:1", upstream.host());
    let import = |args: &[&str]| {
        let all = ["import", source.as_str()].into_iter().chain(args.iter().copied());
        sandbox.refit(all).on(&server).run()
    };
    let told = import(&["-o", "json"]).success().json();
    assert_eq!(told["digest"], digest.as_str());
    assert_eq!(told["images"][0], format!("localhost:{}/team/app:1", port(&server)));
    testkit::validate(&server.registry(), "team/app", "1");
    // It is where it should be.
    import(&[]).success().stderr_has("fetched: 0 B");
    let names = ["-t", "mine:2", "-t", "mine:3", "--repository", "untagged"];
    import(&names).success().stderr_has("fetched: 0 B");
    testkit::validate(&server.registry(), "mine", "3");
    testkit::validate(&server.registry(), "untagged", digest.as_str());
    let moved = upstream.registry().push("team/app", "1", &image(2));
    import(&[]).code(5).stderr_has("there is another `team/app:1` already").stderr_has("--force");
    assert_eq!(Digest::of(&server.registry().manifest("team/app", "1").0), digest);
    import(&["--force"]).success();
    assert_eq!(Digest::of(&server.registry().manifest("team/app", "1").0), moved);
    // Its own images need no network.
    let own = format!("{}/mine:2", server.host());
    sandbox.refit(["import", "--source", &own, "-t", "copy:1"]).on(&server).run().success();
    testkit::validate(&server.registry(), "copy", "1");
    let missing = format!("{}/mine:9", server.host());
    sandbox.refit(["import", &missing, "-t", "copy:2"]).on(&server).run().code(4);
    let missing = format!("{}/team/app:9", upstream.host());
    sandbox.refit(["import", &missing]).on(&server).run().code(4).stderr_has("does not exist on");
    upstream.stop();
    import(&["-t", "late:1"]).code(3).stderr_has("could not reach");
}

#[test]
fn a_registry_that_names_somebodys_layer_must_have_it() {
    let (sandbox, elsewhere) = (sandbox(), sandbox());
    let (server, upstream) = (sandbox.server_beside_others(), elsewhere.server());
    server.registry().push("private/app", "1", &image(1));
    upstream.registry().push("public/app", "1", &image(1));
    remove(&elsewhere, &last_blob(&upstream, "public/app", "1"));
    let source = format!("{}/public/app:1", upstream.host());
    let import = || sandbox.refit(["import", &source, "-t", "mine:1"]).on(&server).run();
    import().code(4).stderr_has("does not exist on");
    assert_eq!(server.registry().status("/v2/mine/manifests/1"), 404);
    upstream.registry().push("public/app", "1", &image(1));
    import().success();
    testkit::validate(&server.registry(), "mine", "1");
}

/// An image manifest that says to belong to another one.
pub(crate) fn push_referrer(server: &Server, repository: &str, subject: &Digest) -> Digest {
    let (bytes, media_type) = server.registry().manifest(repository, subject.as_str());
    let mut manifest: serde_json::Value = serde_json::from_slice(&bytes).expect("it is JSON");
    manifest["artifactType"] = "application/vnd.example.signature".into();
    manifest["subject"] =
        serde_json::json!({ "mediaType": media_type, "digest": subject, "size": bytes.len() });
    let bytes = manifest.to_string().into_bytes();
    let digest = Digest::of(&bytes);
    server.registry().push_manifest(repository, digest.as_str(), &bytes, &media_type)
}

#[test]
fn all_tags_come_and_what_belongs_to_their_images() {
    let upstream = Server::start();
    let digests = [1, 2]
        .map(|content| upstream.registry().push("team/app", &content.to_string(), &image(content)));
    let signature = push_referrer(&upstream, "team/app", &digests[0]);
    let countersignature = push_referrer(&upstream, "team/app", &signature);
    let sandbox = sandbox();
    let server = sandbox.server_beside_others();
    let source = format!("{}/team/app", upstream.host());
    let import = |args: &[&str]| {
        let all = ["import", source.as_str(), "--all-tags"].into_iter();
        sandbox.refit(all.chain(args.iter().copied())).on(&server).run()
    };
    import(&[]).success().stderr_has("Tag 2 of 2").stderr_has("manifests: 1, referrers: 2");
    // Once more is no conflict.
    import(&["--repository", "copy", "--repository", "team/app"]).success();
    for repository in ["team/app", "copy"] {
        assert_eq!(server.registry().tags(repository), ["1", "2"]);
        testkit::validate(&server.registry(), repository, "2");
        for digest in [&digests[0], &signature, &countersignature] {
            server.registry().manifest(repository, digest.as_str());
        }
    }
    let own = format!("{}/copy", server.host());
    let again = ["import", &own, "--all-tags", "--repository", "third"];
    sandbox.refit(again).on(&server).run().success();
    server.registry().manifest("third", countersignature.as_str());
    import(&["-t", "app:1"]).code(2);
    let tagged = ["import", &format!("{own}:1"), "--all-tags"];
    sandbox.refit(tagged).on(&server).run().code(2).stderr_has("without tag and digest");
    let missing = format!("{}/team/none", upstream.host());
    sandbox.refit(["import", &missing, "--all-tags"]).on(&server).run().code(4);
}

fn port(server: &Server) -> String {
    server.host().rsplit(':').next().expect("it has a port").to_owned()
}

/// A layout with an index over two images for different platforms; the digest of the first.
fn index_layout(sandbox: &Sandbox, folder: &str) -> Digest {
    let folder = sandbox.path(folder);
    let descriptor = |image: &Image, architecture: &str| {
        let manifest = image.write_layout(&folder, "x").remove(0);
        let bytes = std::fs::read(manifest).expect("it was just written");
        let mut descriptor = serde_json::json!(Descriptor::of(media_type::OCI_MANIFEST, &bytes));
        descriptor["platform"] = serde_json::json!({ "os": "linux", "architecture": architecture });
        (descriptor, Digest::of(&bytes))
    };
    let (first, digest) = descriptor(&image(1), "amd64");
    let (second, _) = descriptor(&image(2), "s390x");
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [first, second],
    });
    let index = index.to_string().into_bytes();
    let blob = folder.join("blobs/sha256").join(Digest::of(&index).hex());
    std::fs::write(blob, &index).expect("the layout can be written");
    let top = serde_json::json!({
        "schemaVersion": 2, "manifests": [Descriptor::of(media_type::OCI_INDEX, &index)],
    });
    std::fs::write(folder.join("index.json"), top.to_string()).expect("it can be written");
    digest
}

#[track_caller]
fn validate_index(server: &Server) {
    let (bytes, media_type) = server.registry().manifest("app", "all");
    let parsed = Manifest::parse(&bytes, Some(&media_type)).expect("a manifest");
    let Manifest::Index(index) = parsed else { panic!("`{media_type}` is no index") };
    assert_eq!(index.manifests.len(), 2);
    for image in &index.manifests {
        testkit::validate(&server.registry(), "app", image.digest.as_str());
    }
}

#[test]
fn all_platforms_come_or_one() {
    let sandbox = sandbox();
    let first = index_layout(&sandbox, "layout");
    let server = sandbox.server();
    let import = |args: &[&str]| {
        let all = ["import", "oci-layout://layout"].into_iter().chain(args.iter().copied());
        sandbox.refit(all).on(&server).run()
    };
    import(&["-t", "app:all"]).success().stderr_has("manifests: 3, referrers: 0");
    validate_index(&server);
    import(&["-t", "app:one", "--platform", "linux/amd64"]).success();
    assert_eq!(Digest::of(&server.registry().manifest("app", "one").0), first);
    import(&["-t", "app:no", "--platform", "linux/arm64"])
        .code(2)
        .stderr_has("the image has none for linux/arm64")
        .stderr_has("it offers linux/amd64, linux/s390x");
    // From this registry to another one, as a registry.
    let other_sandbox = crate::sandbox();
    let other = other_sandbox.server_beside_others();
    let source = format!("{}/app:all", server.host());
    other.refit(["import", &source]).run().success().stderr_has("manifests: 3, referrers: 0");
    validate_index(&other);
    import(&[]).code(2).stderr_has("needs a name here");
}

#[expect(clippy::disallowed_methods, reason = "a test makes archives")]
fn tar(sandbox: &Sandbox, args: &[&str]) {
    let status = Command::new("tar").current_dir(sandbox.path("")).args(args).status();
    assert!(status.expect("tar is installed").success());
}

#[test]
fn archives_are_imported_with_and_without_a_server() {
    let sandbox = sandbox();
    let server = sandbox.server();
    server.registry().push("app", "1", &image(1));
    let docker = format!("docker://{}/app:1", server.host());
    let config_digest = config(&server, "app", "1");
    let saved = format!("docker-archive:{}:app:1", sandbox.path("saved.tar").display());
    skopeo(&docker, &saved).expect("it can be saved");
    server.stop();
    image(1).write_layout(&sandbox.path("layout"), "1");
    tar(&sandbox, &["-C", "layout", "-cf", "layout.tar", "."]);
    tar(&sandbox, &["-C", "layout", "-czf", "layout.tar.gz", "index.json", "oci-layout", "blobs"]);
    for (file, name) in [("saved.tar", "s:1"), ("layout.tar", "l:1"), ("./layout.tar.gz", "z:1")] {
        sandbox.refit(["import", file, "-t", name]).run().success();
    }
    let server = sandbox.server();
    for name in ["s", "l", "z"] {
        testkit::validate(&server.registry(), name, "1");
        assert_eq!(config(&server, name, "1"), config_digest, "{name}");
    }
}

#[test]
fn archives_that_lie_are_refused() {
    let sandbox = sandbox();
    let server = sandbox.server();
    let import = |file: &str| sandbox.refit(["import", file, "-t", "app:1"]).on(&server).run();
    sandbox.write("text.tar", "no archive at all");
    import("text.tar").code(2).stderr_has("it is no tar archive");
    import("none.tar").code(2).stderr_has("there is no `none.tar`");
    sandbox.write("empty/file", "x");
    tar(&sandbox, &["-cf", "empty.tar", "empty"]);
    import("empty.tar").code(2).stderr_has("neither an OCI layout nor of `docker save`");
    let blobs = image(1).write_layout(&sandbox.path("layout"), "1");
    let layer = &blobs[1];
    let bytes = std::fs::read(layer).expect("it was just written");
    let mut flipped = bytes.clone();
    flipped[9] ^= 1;
    std::fs::write(layer, flipped).expect("it can be written");
    tar(&sandbox, &["-C", "layout", "-cf", "flipped.tar", "."]);
    import("flipped.tar").code(2).stderr_has("is damaged");
    std::fs::remove_file(layer).expect("it is there");
    tar(&sandbox, &["-C", "layout", "-cf", "lacking.tar", "."]);
    import("lacking.tar").code(2).stderr_has("the image lacks blob");
    sandbox.write("lie/a.json", r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:0000000000000000000000000000000000000000000000000000000000000000"]}}"#);
    sandbox.write(
        "lie/manifest.json",
        r#"[{"Config":"a.json","RepoTags":[],"Layers":["l/layer.tar"]}]"#,
    );
    sandbox.write("lie/l/layer.tar", [0; 1024]);
    tar(&sandbox, &["-C", "lie", "-cf", "lie.tar", "."]);
    import("lie.tar").code(2).stderr_has("is not the layer sha256:0000");
    assert!(server.registry().status("/v2/app/tags/list") == 404, "nothing was imported");
}
