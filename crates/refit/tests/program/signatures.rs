//! `build.images` with `signed-by`: images that runs may use only if somebody has signed them, as
//! cosign does it.

use oci::Digest;
use testkit::{Image, Layer, RegistryClient, Sandbox, Server, busybox};

use crate::output::tool;
use crate::sandbox;

/// Makes a key, `NAME.key`, and its public half, `NAME.pub`. `None` where there is no openssl.
pub(crate) fn make_key(sandbox: &Sandbox, name: &str) -> Option<()> {
    let (key, public) = (format!("{name}.key"), format!("{name}.pub"));
    let curve = "ec_paramgen_curve:P-256";
    tool(sandbox, "openssl", &["genpkey", "-algorithm", "EC", "-pkeyopt", curve, "-out", &key])?;
    tool(sandbox, "openssl", &["pkey", "-in", &key, "-pubout", "-out", &public])?;
    Some(())
}

/// Signs `of`, and attaches that to an image, as `cosign sign --key` does for the image itself.
pub(crate) fn sign(
    sandbox: &Sandbox,
    key: &str,
    registry: &RegistryClient,
    (repository, image): (&str, &Digest),
    of: &Digest,
) -> Option<()> {
    let payload = serde_json::json!({
        "critical": {
            "identity": { "docker-reference": format!("registry.example/{repository}") },
            "image": { "docker-manifest-digest": of.to_string() },
            "type": "cosign container image signature",
        },
        "optional": null,
    });
    let payload = payload.to_string();
    sandbox.write("payload", &payload);
    let key = format!("{key}.key");
    let args = ["dgst", "-sha256", "-sign", &key, "-out", "signature", "payload"];
    tool(sandbox, "openssl", &args)?;
    let signature = tool(sandbox, "openssl", &["base64", "-A", "-in", "signature"])?;
    let (config, payload) = ("{}", payload.as_bytes());
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "size": config.len(),
            "digest": registry.push_blob(repository, config.as_bytes()).to_string(),
        },
        "layers": [{
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
            "size": payload.len(),
            "digest": registry.push_blob(repository, payload).to_string(),
            "annotations": { "dev.cosignproject.cosign/signature": signature.trim() },
        }],
    });
    let tag = format!("sha256-{}.sig", image.hex());
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    registry.push_manifest(repository, &tag, manifest.to_string().as_bytes(), media_type);
    Some(())
}

fn image(content: &str) -> Image {
    Image::new([Layer::new().file("f", 0o644, content.as_bytes())])
}

fn settings(sandbox: &Sandbox, images: &[&str], more: &str) -> String {
    let key = sandbox.path("acme.pub").display().to_string();
    let settings =
        format!("[build]\nimages = {images:?}\n[image_key.acme]\nfile = \"{key}\"\n{more}");
    sandbox.write("settings.toml", settings);
    sandbox.path("settings.toml").display().to_string()
}

fn server(sandbox: &Sandbox, images: &[&str], more: &str) -> Server {
    sandbox.server_with(&["--config", &settings(sandbox, images, more)])
}

#[test]
fn a_base_of_another_registry_is_signed_by_the_key_that_is_asked_for() {
    let (sandbox, upstream) = (sandbox(), Server::start());
    let (Some(()), Some(())) = (make_key(&sandbox, "acme"), make_key(&sandbox, "other")) else {
        return;
    };
    let (registry, host) = (upstream.registry(), upstream.host());
    let push = |tag: &str| registry.push("team/app", tag, &image(tag));
    let [good, other, replayed, _] = ["good", "other", "replayed", "unsigned"].map(push);
    for (key, image, of) in
        [("acme", &good, &good), ("other", &other, &other), ("acme", &replayed, &good)]
    {
        sign(&sandbox, key, &registry, ("team/app", image), of).expect("openssl signs");
    }
    let declared = format!("[upstream.\"{host}\"]\n");
    let pattern = format!("{host}/team/* signed-by acme");
    let server = server(&sandbox, &["registry", &pattern], &declared);
    let build = |image: &str| {
        sandbox.write("app/Dockerfile", format!("FROM {host}/team/app{image}\nLABEL a=b\n"));
        sandbox.refit(["build", "app", "-t", "app:1"]).on(&server).run()
    };
    build(":good").success();
    testkit::validate(&server.registry(), "app", "1");
    build(&format!("@{good}")).success();
    for (tag, has) in [
        ("unsigned", "no signature".to_owned()),
        ("other", "a signature by another key".to_owned()),
        ("replayed", format!("a signature by `acme` of another image, {good}")),
    ] {
        build(&format!(":{tag}"))
            .code(1)
            .stderr_has(&format!("image `{host}/team/app:{tag}` is not signed by `acme`"))
            .stderr_has(&format!("hint: it has {has}; `cosign sign --key FILE {host}/team/app@"))
            .stderr_has(&format!("FROM {host}/team/app:{tag}"));
    }
    // The same by a command that works on its own folder.
    let settings = sandbox.path("settings.toml");
    let embedded = |tag: &str| {
        sandbox.write("app/Dockerfile", format!("FROM {host}/team/app:{tag}\nLABEL a=b\n"));
        let build = sandbox.refit(["build", "app", "--data", "own", "--no-push"]);
        build.env("REFIT_CONFIG", settings.display()).run()
    };
    embedded("good").success();
    embedded("other").code(1).stderr_has("is not signed by `acme`");
    upstream.stop();
}

#[test]
fn images_of_the_own_registry_are_signed_too() {
    let sandbox = sandbox();
    let Some(()) = make_key(&sandbox, "acme") else { return };
    let server = server(&sandbox, &["registry signed-by acme"], "");
    let (registry, host) = (server.registry(), server.host());
    let base = registry.push("base", "1", &image("base"));
    sandbox.write("app/Dockerfile", format!("FROM {host}/base:1\nLABEL a=b\n"));
    let build = || sandbox.refit(["build", "app", "-t", "app:1"]).on(&server).run();
    build().code(1).stderr_has(&format!("image `{host}/base:1` is not signed by `acme`"));
    // A step is refused before any begins, also where its errors would not matter.
    let steps = "steps:
  - {id: first, build: -t other -f Dockerfile .}
  - {id: second, cmd: '{{.Run.Registry}}/base:1', ignoreErrors: true}
";
    sandbox.write("app/acb.yaml", steps);
    let run = || sandbox.refit(["run", "app"]).on(&server).run();
    let refused = run().code(1);
    refused
        .stderr_has("step `second`: image `")
        .stderr_has("/base:1` is not signed by `acme`")
        .stderr_lacks("LABEL");
    sign(&sandbox, "acme", &registry, ("base", &base), &base).expect("openssl signs");
    build().success();
    // What a run builds is its own.
    let steps = "steps:
  - {id: make, build: '-t {{.Run.Registry}}/made -f Dockerfile .'}
  - {id: use, build: -t used -f Again .}
";
    sandbox.write("app/acb.yaml", steps).write("app/Again", format!("FROM {host}/made\n"));
    run().success();
    // In another run it is one of others.
    sandbox.write("app/Dockerfile", format!("FROM {host}/app:1\nLABEL a=b\n"));
    build().code(1).stderr_has(&format!("image `{host}/app:1` is not signed by `acme`"));
}

#[test]
fn as_root_a_command_has_an_image_that_is_signed() {
    let sandbox = sandbox();
    let Some(()) = make_key(&sandbox, "acme") else { return };
    let server = server(&sandbox, &["registry signed-by acme"], "");
    let registry = server.registry();
    let image = registry.push("busybox", "latest", &busybox());
    sandbox.write("app/acb.yaml", "steps:\n  - cmd: '{{.Run.Registry}}/busybox echo it runs'\n");
    let run = || sandbox.refit(["run", "app"]).on(&server).run();
    run().code(1).stderr_has("is not signed by `acme`").stderr_lacks("it runs");
    sign(&sandbox, "acme", &registry, ("busybox", &image), &image).expect("openssl signs");
    run().success().stderr_has("it runs");
}

#[test]
fn keys_that_are_wrong_are_told_before_anything_starts() {
    let sandbox = sandbox();
    let check = |settings: &str| {
        sandbox.write("settings.toml", settings);
        sandbox.refit(["serve", "--check", "--config", "settings.toml"]).run()
    };
    sandbox.write("damaged.pub", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n");
    check(
        "[build]\nimages = [\"* signed-by acme\", \"* signed-by nobody\"]\n\
         [image_key.acme]\nfile = \"damaged.pub\"\n[image_key.empty]\n\
         [image_key.\"a b\"]\nfile = \"/missing\"\n",
    )
    .code(2)
    .stderr_has("`image_key.acme.file`: `damaged.pub` is damaged, or neither ECDSA P-256")
    .stderr_has("`image_key.empty.file` is empty")
    .stderr_has("`a b` cannot name an `image_key`")
    .stderr_has("`* signed-by nobody` names a key, and there is no `[image_key.nobody]`");
}
