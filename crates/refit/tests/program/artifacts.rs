//! Artifacts of registries as contexts (contexts.md section 4).

use flate2::Compression;
use flate2::write::GzEncoder;
use oci::{Digest, media_type};
use serde_json::{Value, json};
use testkit::{RegistryClient, Sandbox, Server, validate};

use crate::sandbox;

/// One file or packed folder of an artifact.
fn layer(title: Option<&str>, content: &[u8], is_archive: bool) -> (Value, Vec<u8>) {
    let mut annotations = serde_json::Map::new();
    if let Some(title) = title {
        annotations.insert("org.opencontainers.image.title".to_owned(), title.into());
    }
    if is_archive {
        annotations.insert("io.deis.oras.content.unpack".to_owned(), "true".into());
    }
    let (digest, size) = (Digest::of(content).to_string(), content.len());
    let descriptor = json!({
        "mediaType": "application/octet-stream",
        "digest": digest,
        "size": size,
        "annotations": annotations,
    });
    (descriptor, content.to_vec())
}

/// Pushes an artifact as ORAS does; its digest.
fn push(registry: &RegistryClient, tag: &str, layers: &[(Value, Vec<u8>)]) -> Digest {
    for (_, content) in layers {
        registry.push_blob("contexts/app", content);
    }
    registry.push_blob("contexts/app", b"{}");
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "artifactType": "application/vnd.example.context",
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": Digest::of(b"{}").to_string(),
            "size": 2,
        },
        "layers": layers.iter().map(|(descriptor, _)| descriptor).collect::<Vec<_>>(),
    });
    let manifest = serde_json::to_vec(&manifest).expect("it is JSON");
    registry.push_manifest("contexts/app", tag, &manifest, media_type::OCI_MANIFEST)
}

/// A folder `assets`, packed.
fn assets() -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o640);
    header.set_size(5);
    tar.append_data(&mut header, "assets/icon", &b"icon\n"[..]).expect("memory takes it");
    tar.into_inner().and_then(GzEncoder::finish).expect("memory takes it")
}

fn push_app(registry: &RegistryClient) -> Digest {
    let layers = [
        layer(Some("Dockerfile"), b"FROM scratch\nCOPY . /\n", false),
        layer(Some("src/note"), b"a note\n", false),
        layer(Some("assets"), &assets(), true),
        layer(None, b"no file", false),
    ];
    push(registry, "1", &layers)
}

fn build<'a>(
    sandbox: &Sandbox,
    server: &Server,
    args: impl IntoIterator<Item = &'a str>,
) -> testkit::Outcome {
    sandbox.refit(["build"].into_iter().chain(args)).on(server).run()
}

#[test]
fn i10_an_artifact_of_the_own_registry_is_a_context() {
    let sandbox = sandbox();
    let server = sandbox.server();
    let digest = push_app(&server.registry());
    let by_tag = format!("OCI://{}/contexts/app:1", server.host());
    let built = build(&sandbox, &server, [&*by_tag, "-t", "app"]);
    built.success().stderr_has(&format!("@{digest}`: 3 files"));
    let image = validate(&server.registry(), "app", "latest");
    assert_eq!(image.text("src/note"), "a note\n");
    assert_eq!(image.text("assets/icon"), "icon\n");
    // As a named context, by digest; and in a step of a task.
    let by_digest = format!("oci://{}/contexts/app@{digest}", server.host());
    sandbox.write("app/Dockerfile", "FROM scratch\nCOPY --from=other assets /\n");
    let named = format!("other={by_digest}");
    build(&sandbox, &server, ["app", "-t", "named", "--build-context", &named]).success();
    assert_eq!(validate(&server.registry(), "named", "latest").text("icon"), "icon\n");
    sandbox.write(
        "acb.yaml",
        format!(
            "version: v1.1.0\nsteps:\n  - {{id: build, build: -t $Registry/step {by_digest}}}\n  \
             - push: [$Registry/step]\n"
        ),
    );
    sandbox.refit(["run", "-f", "acb.yaml", "/dev/null"]).on(&server).succeeds();
    assert_eq!(validate(&server.registry(), "step", "latest").text("src/note"), "a note\n");
}

#[test]
fn an_artifact_of_another_registry_is_a_context() {
    let (sandbox, elsewhere) = (sandbox(), sandbox());
    let (server, other) = (sandbox.server_beside_others(), elsewhere.server());
    push_app(&other.registry());
    let address = format!("oci://{}/contexts/app:1", other.host());
    build(&sandbox, &server, [&*address, "-t", "app"]).success();
    assert_eq!(validate(&server.registry(), "app", "latest").text("src/note"), "a note\n");
    let missing = format!("oci://{}/contexts/app:none", other.host());
    build(&sandbox, &server, [&*missing]).code(1).stderr_has("contexts/app:none");
    other.stop();
}

#[test]
fn an_artifact_that_is_no_context_is_refused() {
    let sandbox = sandbox();
    let server = sandbox.server();
    let registry = server.registry();
    push(&registry, "untitled", &[layer(None, b"x", false)]);
    push(&registry, "outside", &[layer(Some("../x"), b"x", false)]);
    push(&registry, "nameless", &[layer(Some("."), b"x", false)]);
    push(&registry, "broken", &[layer(Some("x"), b"no archive", true)]);
    for (reference, expected) in [
        ("contexts/app:untitled", "has no files"),
        ("contexts/app:outside", "`../x` of the context leads out of it"),
        ("contexts/app:nameless", "has a name that cannot be used"),
        ("contexts/app:broken", "is not a tar archive"),
        ("contexts/app:missing", "is not in this registry"),
    ] {
        let address = format!("oci://{}/{reference}", server.host());
        build(&sandbox, &server, [&*address]).code(1).stderr_has(expected);
    }
    build(&sandbox, &server, ["oci://app"]).code(2).stderr_has("names no registry");
}
