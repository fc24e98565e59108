//! Whatever a run is doing when it is canceled, nothing of it is left.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod remains;
mod stalling;

use std::fs::File;
use std::path::Path;

use oci::Digest;
use rustix::process::Signal;
use testkit::{Image, Layer, Running, Sandbox, Server, busybox, until};

use crate::sandbox;
pub(crate) use remains::is_under_way;
use remains::{is_empty, remains, send};
use stalling::Stalling;

/// `ADD` may fetch from the tests' own server, and uploads that stall end soon.
const SETTINGS: &str = "\
[build]
allow_addresses = [\"127.0.0.1\"]
[limits]
body_stall = \"2s\"
";

/// Larger than what is done in the time between two looks.
const LARGE: u64 = 1 << 29;

/// How a build is ended by its user.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// Ctrl-C.
    Interrupt,
    /// `refit task cancel-run` of somebody else.
    Command,
}

struct World {
    sandbox: Sandbox,
    server: Server,
}

impl World {
    fn new() -> Self {
        let sandbox = sandbox();
        sandbox.write("settings.toml", SETTINGS);
        let settings = sandbox.path("settings.toml").display().to_string();
        let server = sandbox.server_with(&["--config", &settings]);
        server.registry().push("busybox", "latest", &busybox());
        Self { sandbox, server }
    }

    /// A build of these instructions; `BASE` is a base image with a shell.
    fn build(&self, dockerfile: &str) -> Running {
        let base = format!("{}/busybox", self.server.host());
        self.sandbox.write("app/Dockerfile", dockerfile.replace("BASE", &base));
        self.sandbox.refit(["build", "app", "-t", "app", "--no-cache"]).on(&self.server).start()
    }

    #[track_caller]
    fn cancel(&self, build: Running, way: Way) {
        match way {
            Way::Interrupt => {
                build.interrupt();
                build.wait().code(130).stderr_has("was canceled");
            }
            Way::Command => {
                let refit = |args: &[&str]| self.sandbox.refit(args.iter().copied());
                let listed = refit(&["task", "list-runs", "-o", "json"]).on(&self.server);
                let listed = listed.succeeds().json();
                let id = listed[0]["properties"]["runId"].as_str().unwrap().to_owned();
                refit(&["task", "cancel-run", "--run-id", &id]).on(&self.server).succeeds();
                build.wait().code(1).stderr_has("was canceled");
            }
        }
    }

    /// Cancels a build in both ways, each time when it has got to where it is to be.
    #[track_caller]
    fn check(&self, start: impl Fn() -> Running, reached: impl Fn() -> bool) {
        for way in [Way::Interrupt, Way::Command] {
            let build = start();
            until("the phase", || reached().then_some(()));
            self.cancel(build, way);
            self.check_nothing_remains();
        }
    }

    /// Some of it goes a moment after the run's end.
    #[track_caller]
    fn check_nothing_remains(&self) {
        let mut left = Vec::new();
        for _ in 0..500 {
            left = remains(&self.server, &self.sandbox.data());
            if left.is_empty() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("left: {left:#?}\n{}", self.server.log());
    }
}

/// A file that takes no room in the context.
fn large_file(file: &Path) {
    File::create(file).unwrap().set_len(LARGE).unwrap();
}

#[test]
fn as_root_an_upload_that_ends_early_leaves_nothing() {
    let world = World::new();
    let begin = || {
        let build = world.build("FROM scratch\nCOPY large /\n");
        until("an upload", || (!is_empty(&world.sandbox.data().join("uploads"))).then_some(()));
        build
    };
    world.sandbox.write("app/file", "");
    large_file(&world.sandbox.path("app/large"));
    for signal in [Signal::INT, Signal::KILL] {
        let build = begin();
        // So that it is not over before the signal comes.
        send(world.server.id(), Signal::STOP);
        build.signal(signal);
        let ended = build.wait();
        assert_eq!(ended.code, if signal == Signal::INT { Some(130) } else { None });
        send(world.server.id(), Signal::CONT);
        world.check_nothing_remains();
    }
    let build = begin();
    build.signal(Signal::STOP);
    world.check_nothing_remains();
    // The server has given it up by now; the client takes it up again.
    build.signal(Signal::CONT);
    build.wait().success();
}

#[test]
fn as_root_a_canceled_pull_leaves_nothing() {
    let world = World::new();
    let noise: Vec<u8> =
        (0..1u32 << 20).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    let image = Image::new([Layer::new().file("file", 0o644, &noise)]);
    let layout = world.sandbox.path("layout");
    let blobs = image.write_layout(&layout, "latest");
    let layer = Digest::of(&std::fs::read(&blobs[1]).unwrap());
    for stalls_at in ["/manifests/".to_owned(), format!("/blobs/{layer}")] {
        let registry = Stalling::start(&layout, &blobs[0], &stalls_at);
        let dockerfile = format!("FROM {}/app\nRUN true\n", registry.host());
        world.check(|| world.build(&dockerfile), || registry.is_stalled());
        until("the end of the connection", || (!registry.is_stalled()).then_some(()));
    }
}

#[test]
fn as_root_a_canceled_download_leaves_nothing() {
    let world = World::new();
    world.sandbox.write("site/blobs/file", vec![7; 8 << 20]);
    let site = Stalling::start(&world.sandbox.path("site"), Path::new("none"), "/blobs/file");
    let dockerfile = format!("FROM scratch\nADD http://{}/blobs/file /\n", site.host());
    world.check(|| world.build(&dockerfile), || site.is_stalled());
    until("the end of the connection", || (!site.is_stalled()).then_some(()));
}

#[test]
fn as_root_canceled_unpacking_leaves_nothing() {
    let world = World::new();
    world.sandbox.write("large/Dockerfile", "FROM scratch\nCOPY bin /bin\nCOPY large /\n");
    world.sandbox.write_executable("large/bin/sh", std::fs::read("/bin/busybox").unwrap());
    large_file(&world.sandbox.path("large/large"));
    world.sandbox.refit(["build", "large", "-t", "large"]).on(&world.server).succeeds();
    std::fs::remove_file(world.sandbox.path("large/large")).unwrap();
    let partial = world.sandbox.data().join("snapshots/partial");
    let dockerfile = format!("FROM {}/large\nRUN sleep 600\n", world.server.host());
    world.check(
        || world.build(&dockerfile),
        || {
            // The second layer, by the room that it takes.
            let layers = std::fs::read_dir(&partial).unwrap().flatten();
            layers.map(|layer| layer.path().join("large")).any(|file| file.exists())
        },
    );
}

#[test]
fn as_root_a_canceled_step_leaves_nothing() {
    let world = World::new();
    let mark = format!("47{}", std::process::id());
    for network in ["default", "none"] {
        let step = format!(
            "FROM BASE\nRUN --network={network} --mount=type=cache,target=/c --mount=type=tmpfs,target=/t \
             sleep {mark} & echo x > /c/x; sleep {mark}\n"
        );
        world.check(|| world.build(&step), || is_under_way(&mark));
    }
}

#[test]
fn as_root_canceling_while_a_layer_is_written_leaves_nothing() {
    let world = World::new();
    let mark = format!("48{}", std::process::id());
    // One file that nobody reads to its end.
    let step = format!("FROM BASE\nRUN : {mark}; sleep 0.5; busybox truncate -s 1024G /large\n");
    let start = || {
        let build = world.build(&step);
        until("the step", || is_under_way(&mark).then_some(()));
        build
    };
    world.check(start, || !is_under_way(&mark));
}

#[test]
fn as_root_a_cancel_while_tags_move_leaves_no_lease() {
    const NAMES: usize = 300;
    let world = World::new();
    world.sandbox.write("app/Dockerfile", "FROM scratch\nENV A=1\n");
    let names: Vec<String> = (0..NAMES).map(|number| format!("app/{number:03}")).collect();
    let tags = names.iter().flat_map(|name| ["-t", name.as_str()]);
    let build = world.sandbox.refit(["build", "app"].into_iter().chain(tags)).on(&world.server);
    let build = build.start();
    let registry = world.server.registry();
    until("the first tag", || (registry.status("/v2/app/000/tags/list") == 200).then_some(()));
    world.cancel(build, Way::Interrupt);
    world.check_nothing_remains();
    assert_ne!(registry.status(&format!("/v2/app/{}/tags/list", NAMES - 1)), 200);
}
