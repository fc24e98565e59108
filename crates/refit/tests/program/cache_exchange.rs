//! `refit build --cache-from` and `--cache-to`: results of one server in builds of another.

use std::net::TcpListener;

use oci::{Descriptor, Digest};
use serde_json::{Value, json};
use testkit::{Outcome, Sandbox, Server, busybox};

use crate::damage::{remove, skopeo};
use crate::pull_through::DockerRegistry;
use crate::sandbox;

/// Whatever the base is called: its layers count.
const DOCKERFILE: &str = "ARG BASE\n\
    FROM $BASE AS build\n\
    RUN echo tool > /tool\n\
    COPY source /source\n\
    RUN cat /tool /source > /made\n\
    FROM $BASE\n\
    COPY --from=build /made /final\n\
    RUN cp /final /copy\n";

/// A server with the base, and the files to build.
struct Site {
    sandbox: Sandbox,
    server: Server,
}

impl Site {
    fn new() -> Self {
        Self::with("")
    }

    /// Builds may have caches of other servers of this machine.
    fn with(settings: &str) -> Self {
        let sandbox = sandbox();
        sandbox.write("app/Dockerfile", DOCKERFILE).write("app/source", "one\n");
        let build = "[build]\nallow_addresses = [\"127.0.0.1\"]\n";
        sandbox.write("settings.toml", format!("{build}{settings}"));
        let server = sandbox.server_with(&["--config", "settings.toml"]);
        server.registry().push("busybox", "latest", &busybox());
        Self { sandbox, server }
    }

    fn cache(&self, name: &str) -> String {
        format!("{}/{name}", self.server.host())
    }

    #[track_caller]
    fn try_build(&self, more: &[&str]) -> Outcome {
        let base = format!("BASE={}", self.cache("busybox"));
        let args = ["build", "app", "-t", "app", "-o", "json", "--build-arg", &base];
        self.sandbox.refit(args.into_iter().chain(more.iter().copied())).on(&self.server).run()
    }

    #[track_caller]
    fn build(&self, more: &[&str]) -> Built {
        let outcome = self.try_build(more).success();
        testkit::validate(&self.server.registry(), "app", "latest");
        let run = outcome.json();
        let count = |name: &str| found(&run, name).and_then(Value::as_u64).expect("it is told");
        Built {
            digest: outcome.digest(),
            hits: count("cacheHits"),
            misses: count("cacheMisses"),
            stderr: outcome.stderr,
        }
    }

    /// The text of the last layer of what was built last.
    #[track_caller]
    fn last_layer(&self) -> String {
        let image = testkit::validate(&self.server.registry(), "app", "latest");
        String::from_utf8_lossy(image.layers.last().expect("it has a layer")).into_owned()
    }

    /// The config and the manifest of a cache.
    #[track_caller]
    fn parts(&self, repository: &str, tag: &str) -> (Value, Value) {
        let registry = self.server.registry();
        let manifest = registry.manifest(repository, tag).0;
        let manifest: Value = serde_json::from_slice(&manifest).expect("a manifest is JSON");
        let config = manifest["config"]["digest"].as_str().expect("it has a config");
        let config = registry.blob(repository, &config.parse().expect("a digest"));
        (serde_json::from_slice(&config).expect("a config is JSON"), manifest)
    }

    /// Pushes a cache with another config, and other layers besides.
    #[track_caller]
    fn push_cache(&self, repository: &str, config: &[u8], manifest: &Value, layers: &[&[u8]]) {
        let registry = self.server.registry();
        let mut manifest = manifest.clone();
        registry.push_blob(repository, config);
        let kind = "application/vnd.buildkit.cacheconfig.v0";
        manifest["config"] = json!(Descriptor::of(kind, config));
        for layer in layers {
            registry.push_blob(repository, layer);
            let layer = Descriptor::of(oci::media_type::OCI_LAYER_GZIP, layer);
            manifest["layers"].as_array_mut().expect("it has layers").push(json!(layer));
        }
        let kind = oci::media_type::OCI_MANIFEST;
        registry.push_manifest(repository, "bad", manifest.to_string().as_bytes(), kind);
    }
}

struct Built {
    digest: String,
    hits: u64,
    misses: u64,
    stderr: String,
}

impl Built {
    #[track_caller]
    fn counts(self, hits: u64, misses: u64) -> Self {
        assert_eq!((self.hits, self.misses), (hits, misses), "{}", self.stderr);
        self
    }

    #[track_caller]
    fn told(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "`{text}` is not in:\n{}", self.stderr);
        self
    }
}

/// The first member of that name, wherever it is.
fn found<'v>(value: &'v Value, name: &str) -> Option<&'v Value> {
    match value {
        Value::Object(members) => {
            members.get(name).or_else(|| members.values().find_map(|value| found(value, name)))
        }
        Value::Array(values) => values.iter().find_map(|value| found(value, name)),
        _ => None,
    }
}

#[test]
fn as_root_a_second_server_executes_nothing_that_the_cache_has() {
    let (one, two) = (Site::new(), Site::new());
    let to = format!("type=registry,ref={},mode=max", one.cache("cache:1"));
    let first = one.build(&["--cache-to", &to]).counts(0, 5);
    let first = first.told("Put 5 results into cache").digest;
    let manifest = one.server.registry().manifest("cache", "1").0;
    let from = format!("type=registry,ref={}", one.cache("cache:1"));
    let build = |more: &[&str]| two.build(&[&["--cache-from", &from], more].concat());

    let again = build(&["--cache-explain"]).counts(5, 0);
    let explained = format!("hit: imported from `{}`, made at 2", one.cache("cache:1"));
    let again = again.told(&explained).told(&format!("import cache from {}", one.cache("cache:1")));
    assert_eq!(again.digest, first);
    assert_eq!(again.stderr.matches("CACHED").count(), 5, "{}", again.stderr);
    build(&["--no-cache"]).counts(0, 5);
    // What was just made is the own cache's; what was imported is not.
    let three = Site::new();
    three.build(&["--cache-from", &from]).counts(5, 0);
    three.build(&["--cache-explain"]).counts(0, 5).told("miss: never built before");

    // What was found is put into caches as what was made; the same results give the same cache.
    let four = Site::new();
    four.sandbox.write("app/source", "two\n");
    let to = format!("type=registry,ref={},mode=max", four.cache("again:1"));
    four.build(&["--cache-from", &from, "--cache-to", &to]).counts(1, 4);
    four.sandbox.write("app/source", "one\n");
    four.build(&["--cache-from", &from, "--cache-to", &to]).counts(5, 0);
    assert_eq!(four.server.registry().manifest("again", "1").0, manifest);
    // A cache of the own registry, after a good one of which nothing is there.
    four.server.registry();
    let five = Site::new();
    let copied = five.cache("copied:1");
    let (from, to) = (four.cache("again:1"), format!("docker://{copied}"));
    skopeo(&format!("docker://{from}"), &to).expect("a cache can be copied");
    drop(four);
    let built = five.build(&["--cache-from", &from, "--cache-from", &copied]).counts(5, 0);
    built.told(&format!("cache `{from}` is not used: "));
    five.sandbox.write("app/Dockerfile", "FROM scratch\nCOPY source /other\n");
    let built = five.build(&["--cache-from", &copied]).counts(0, 1);
    let unused = "holds 5 results, none of which this build could use";
    built.told(&format!("cache `{copied}` {unused}"));
}

#[test]
fn as_root_the_least_mode_has_what_is_in_the_image() {
    let (one, two) = (Site::new(), Site::new());
    let cache = one.cache("app:cache");
    // A short name means the own registry, as with `-t`.
    one.build(&["--cache-to", "app:cache"]).counts(0, 5).told("Put 2 results into cache");
    two.build(&["--cache-from", &cache]).counts(2, 3);
    // It is in the cache as well if it was there before.
    let all = "type=registry,ref=app:cache,mode=max";
    one.build(&["--cache-to", all]).counts(5, 0).told("Put 5 results into cache");
    let three = Site::new();
    three.build(&["--cache-from", &cache]).counts(5, 0);
}

#[test]
fn other_registries_and_other_kinds_of_caches_are_refused_by_name() {
    let sandbox = sandbox();
    sandbox.write("app/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let build = |flag: &str, value: &str| sandbox.refit(["build", "app", flag, value]).run();
    build("--cache-to", "registry.example/app:cache")
        .code(1)
        .stderr_has("builds put caches only into their own")
        .stderr_lacks("COPY");
    let same = ["build", "app", "-t", "app:1", "--cache-to", "app:1"];
    sandbox.refit(same).run().code(1).stderr_has("cannot name both the image and a cache");
    for flag in ["--cache-from", "--cache-to"] {
        build(flag, "type=gha").code(2).stderr_has("use `type=registry`");
        build(flag, "type=registry,rev=app").code(2).stderr_has("did you mean `ref`?");
        build(flag, "NOT A NAME").code(2);
    }
}

#[test]
fn a_build_without_server_for_several_platforms_leaves_a_cache() {
    let (one, two) = (sandbox(), Site::new());
    let dockerfile = "FROM scratch\nCOPY source /\nARG TARGETARCH\nADD $TARGETARCH /for\n";
    let platforms = ["--platform", "linux/amd64,linux/arm64"];
    for sandbox in [&one, &two.sandbox] {
        sandbox.write("app/Dockerfile", dockerfile).write("app/source", "source");
        sandbox.write("app/amd64", "a").write("app/arm64", "b");
    }
    let build = ["build", "app", "--cache-to", "app:cache"].into_iter().chain(platforms);
    one.refit(build).run().success().stderr_has("Put 3 results into cache");
    let server = one.server();
    let from = format!("{}/app:cache", server.host());
    let args = ["build", "app", "-t", "app", "-o", "json", "--cache-from", &from];
    let built = two.sandbox.refit(args.into_iter().chain(platforms)).on(&two.server).run();
    let run = built.success().json();
    assert_eq!(found(&run, "cacheMisses"), Some(&json!(0)), "{run}");
}

#[test]
fn as_root_what_a_secret_argument_had_a_part_in_stays_here() {
    let one = Site::new();
    let dockerfile = "ARG BASE\nFROM $BASE AS build\nCOPY source /source\nARG TOKEN\n\
        RUN echo $TOKEN > /token\nWORKDIR /after\n\
        FROM $BASE AS clean\nCOPY source /clean\n\
        FROM build\nRUN true > /upon\n\
        FROM clean\nRUN --mount=from=build,target=/build cp /build/source /mounted\n\
        COPY --from=build /source /copied\n";
    one.sandbox.write("app/Dockerfile", dockerfile);
    let to = "type=registry,ref=app:cache,mode=max";
    let secret = ["--secret-build-arg", "TOKEN=1234", "--cache-to", to];
    one.build(&secret).told("Put 2 results into cache");
    let (config, _) = one.parts("app", "cache");
    assert_eq!(config["records"].as_array().map(Vec::len), Some(2), "{config}");
    // The same argument, no secret.
    let known = ["--build-arg", "TOKEN=1234", "--cache-to", to];
    one.build(&known).told("Put 6 results into cache");
    // Nothing but that.
    one.sandbox.write("app/Dockerfile", "FROM scratch\nARG TOKEN\nCOPY source /$TOKEN\n");
    one.build(&["--secret-build-arg", "TOKEN=1", "--cache-to", "none:1"])
        .told("no step has a result for cache");
    assert_eq!(one.server.registry().status("/v2/none/manifests/1"), 404);
}

#[test]
fn as_root_lies_about_content_are_found_out_and_others_stay_with_the_build_that_believed_them() {
    let (one, evil) = (Site::new(), Site::new());
    let dockerfile = "ARG BASE\nFROM $BASE\nCOPY source /source\nRUN cat /source > /made\n";
    one.sandbox.write("app/Dockerfile", dockerfile);
    one.build(&["--cache-to", "cache:1"]).counts(0, 2);
    let (config, manifest) = one.parts("cache", "1");
    let pull = format!("docker://{}", one.cache("cache:1"));
    let push = format!("docker://{}", evil.cache("cache:1"));
    skopeo(&pull, &push).expect("a cache can be copied");
    // What the cache has for the COPY becomes an evil file.
    let layer = testkit::Layer::new().file("source", 0o644, b"evil\n");
    let image = testkit::Image::new([layer]);
    evil.server.registry().push("image", "1", &image);
    let image = testkit::validate(&evil.server.registry(), "image", "1");
    let digest = image.manifest.layers[0].digest.clone();
    let bytes = evil.server.registry().blob("image", &digest);
    let honest = testkit::validate(&one.server.registry(), "app", "latest");
    let copied = honest.manifest.layers[1].digest.to_string();
    let lying = |diff_id: &str| {
        let mut config = config.clone();
        for layer in config["layers"].as_array_mut().expect("it has layers") {
            if layer["blob"] == copied.as_str() {
                layer["blob"] = json!(digest);
                if !diff_id.is_empty() {
                    layer["annotations"]["diffID"] = json!(diff_id);
                }
            }
        }
        config.to_string()
    };
    let from = evil.cache("cache:bad");
    let site = || {
        let site = Site::new();
        site.sandbox.write("app/Dockerfile", dockerfile);
        // Of another time than at the first site: the honest layer of one is not that of the other.
        let source = std::fs::File::options().write(true).open(site.sandbox.path("app/source"));
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        source.unwrap().set_modified(time).unwrap();
        site
    };

    // Under the diff ID of the true layer it would be found by all builds.
    let two = site();
    evil.push_cache("cache", lying("").as_bytes(), &manifest, &[&bytes]);
    let built = two.build(&["--cache-from", &from]).counts(0, 2);
    let built = built.told(&format!("layer {digest} of cache `{from}` is not used"));
    built.told("it unpacks to ");
    assert!(two.last_layer().contains("one\n"));
    two.build(&[]).counts(2, 0);
    assert!(two.last_layer().contains("one\n"));

    // Under its own one it is what that cache has for the key: only who names the cache gets it.
    let two = site();
    let own = &image.config.rootfs.diff_ids[0];
    evil.push_cache("cache", lying(own.as_str()).as_bytes(), &manifest, &[&bytes]);
    two.build(&["--cache-from", &from]).counts(1, 1);
    assert!(two.last_layer().contains("evil\n"), "it was asked for");
    two.build(&[]).counts(0, 2);
    assert!(two.last_layer().contains("one\n"));
    two.build(&[]).counts(2, 0);
    assert!(two.last_layer().contains("one\n"));
}

#[test]
fn a_cache_that_is_none_costs_time_and_nothing_else() {
    let (evil, two) = (Site::new(), Site::new());
    for site in [&evil, &two] {
        site.sandbox.write("app/Dockerfile", "FROM scratch\nCOPY source /\n");
    }
    evil.build(&["--cache-to", "good:1"]).counts(0, 1);
    let (config, manifest) = evil.parts("good", "1");
    let layer: Digest = manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
    let bytes = evil.server.registry().blob("good", &layer);
    let refused = |from: &str, reason: &str| {
        let built = two.build(&["--cache-from", from, "--no-cache-filter", "nothing"]);
        built.told(&format!("cache `{from}` is not used: ")).told(reason);
        assert!(two.last_layer().contains("one\n"));
        // Always made anew, since only what is missed is asked for.
        let source = std::fs::read_to_string(two.sandbox.path("app/source")).unwrap();
        two.sandbox.write("app/source", source + "more\n");
    };
    let push = |name: &str, config: &[u8]| {
        evil.server.registry().push_blob(name, &bytes);
        evil.push_cache(name, config, &manifest, &[]);
        format!("{}:bad", evil.cache(name))
    };
    refused(&push("text", b"not JSON"), "its config cannot be read");
    let huge = format!("{}{}", config, " ".repeat(2 << 20));
    refused(&push("huge", huge.as_bytes()), "its config has more than 1048576 bytes");
    let many = format!("{{\"layers\":[{}]}}", vec!["{}"; 300_000].join(","));
    let from = push("many", many.as_bytes());
    two.build(&["--cache-from", &from]).counts(0, 1).told("holds 0 results");
    two.sandbox.write("app/source", "one\nagain\n");
    refused(&evil.cache("missing:1"), "does not exist on");
    refused(&evil.cache("app:latest"), "it is not a build cache");
    refused("127.0.0.1:1/app:cache", "could not reach");
    let stalling = TcpListener::bind("127.0.0.1:0").unwrap();
    let from = format!("{}/app:cache", stalling.local_addr().unwrap());
    refused(&from, "its registry took longer than 20 s");

    // Somebody's layer, which the registry has only named.
    two.sandbox.write("app/source", "one\n");
    let three = Site::new();
    three.sandbox.write("app/Dockerfile", "FROM scratch\nCOPY source /\n");
    three.server.registry().push_blob("private", &bytes);
    remove(&evil.sandbox, &layer);
    let from = evil.cache("good:1");
    let built = three.build(&["--cache-from", &from]).counts(0, 1);
    built.told(&format!("layer {layer} of cache `{from}` is not used: "));
    assert!(three.last_layer().contains("one\n"));
}

#[test]
fn a_cache_keeps_its_layers_as_long_as_it_is_there() {
    let one = Site::with("[store]\ngarbage_grace = \"0s\"\ncache_size_max = \"1\"\n");
    one.sandbox.write("app/Dockerfile", "FROM scratch\nCOPY source /\n");
    one.build(&["--cache-to", "cache:1"]);
    let (_, manifest) = one.parts("cache", "1");
    let layer = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
    let refit = |args: &[&str]| {
        one.sandbox.refit(args.iter().copied()).on(&one.server).run().success();
    };
    refit(&["manifest", "delete", "app:latest", "--yes"]);
    refit(&["gc"]);
    let status = || one.server.registry().status(&format!("/v2/cache/blobs/{layer}"));
    assert_eq!(status(), 200);
    let two = Site::new();
    two.sandbox.write("app/Dockerfile", "FROM scratch\nCOPY source /\n");
    two.build(&["--cache-from", &one.cache("cache:1")]).counts(1, 0);
    refit(&["manifest", "delete", "cache:1", "--yes"]);
    refit(&["gc"]);
    assert_eq!(status(), 404);
}

#[test]
fn another_registry_holds_a_cache() {
    let (one, two) = (Site::new(), Site::new());
    for site in [&one, &two] {
        site.sandbox.write("app/Dockerfile", "FROM scratch\nCOPY source /\nCOPY source /b\n");
    }
    let first = one.build(&["--cache-to", "cache:1"]).counts(0, 2).digest;
    let other = DockerRegistry::start(&two.sandbox);
    let copied = format!("{}/team/cache:1", other.host);
    let (from, to) = (format!("docker://{}", one.cache("cache:1")), format!("docker://{copied}"));
    skopeo(&from, &to).expect("it takes a cache");
    drop(one);
    assert_eq!(two.build(&["--cache-from", &copied]).counts(2, 0).digest, first);
}
