//! One application with a server of its own that has the base image.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use oci::Digest;
use testkit::{Outcome, Sandbox, Server, ValidImage, validate};

use crate::podman::Podman;
use crate::{base, clients, run};

/// Package clients take their time, the more so beside other tests.
const PATIENCE: Duration = Duration::from_secs(600);

pub(crate) struct World {
    sandbox: Sandbox,
    server: Server,
    secrets: Vec<String>,
    /// Seconds since 1970, as `SOURCE_DATE_EPOCH` has them.
    epoch: Option<u32>,
}

impl World {
    /// A copy of the application in `data/NAME`, in the folder `app`.
    #[track_caller]
    pub(crate) fn new(name: &str) -> Self {
        let base = base::archive();
        let sandbox = Sandbox::new();
        let server = sandbox.server();
        let from = format!("oci-archive:{}", base.display());
        let to = format!("docker://{}/debian", server.host());
        let copy = ["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"];
        run(Command::new("skopeo").args(copy).args([from, to]));
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/realworld/data").join(name);
        run(Command::new("cp").arg("-r").arg(data).arg(sandbox.path("app")));
        let secrets = clients::secrets(&sandbox);
        Self { sandbox, server, secrets, epoch: Some(1_700_000_000) }
    }

    /// Files keep their own times, which compilers compare: for what cache mounts keep.
    pub(crate) fn without_epoch(self) -> Self {
        Self { epoch: None, ..self }
    }

    /// Builds the application as the image `app`.
    #[track_caller]
    pub(crate) fn build(&self) -> Outcome {
        let base = format!("debian:stable-slim=docker-image://{}/debian", self.server.host());
        let args = ["build", "app", "-t", "app", "--progress", "plain", "--build-context", &base];
        let args = args.into_iter().chain(self.secrets.iter().map(String::as_str));
        let build = self.sandbox.refit(args).on(&self.server).within(PATIENCE);
        let built = match self.epoch {
            Some(epoch) => build.env("SOURCE_DATE_EPOCH", epoch),
            None => build,
        };
        let built = built.run();
        assert!(!built.stderr.contains(clients::MARK), "{}", built.stderr);
        built
    }

    #[track_caller]
    pub(crate) fn image(&self) -> ValidImage {
        validate(&self.server.registry(), "app", "latest")
    }

    /// The image is whole, and nothing that only the build was told is in it.
    #[track_caller]
    pub(crate) fn check_image(&self) {
        let image = self.image();
        let holds = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(clients::MARK);
        for (number, layer) in image.layers.iter().enumerate() {
            assert!(!holds(layer), "layer {number} has a secret");
            let mut archive = tar::Archive::new(layer.as_slice());
            for entry in archive.entries().unwrap().map(Result::unwrap) {
                let path = entry.path().unwrap().into_owned();
                let is_mount_point =
                    path.starts_with("run/secrets") || path.ends_with("apt.conf.d/90clients");
                assert!(!is_mount_point, "layer {number} has {}", path.display());
            }
        }
        let config = serde_json::to_string(&image.config).unwrap();
        assert!(!holds(config.as_bytes()), "{config}");
    }

    /// Built again, everything is cached, and the image is the same if its times are.
    #[track_caller]
    pub(crate) fn check_cached(&self) {
        let (manifest, _) = self.server.registry().manifest("app", "latest");
        let digest = Digest::of(&manifest);
        let built = self.check_executed(&[]);
        if self.epoch.is_some() {
            assert_eq!(built.digest(), digest.as_str());
        }
    }

    /// Built again, just these instructions are executed, told by how they begin.
    #[track_caller]
    pub(crate) fn check_executed(&self, expected: &[&str]) -> Outcome {
        let built = self.build().success();
        let executed = executed(&built.stderr);
        let mut unmatched = executed.clone();
        for start in expected {
            let at = unmatched.iter().position(|name| name.starts_with(start));
            let at = at.unwrap_or_else(|| panic!("`{start}` is not in {executed:?}"));
            unmatched.remove(at);
        }
        assert!(unmatched.is_empty(), "{unmatched:?} in {executed:?}");
        built
    }

    /// Podman's own store, with the image.
    #[track_caller]
    pub(crate) fn podman(&self) -> Podman {
        Podman::pull(&self.sandbox, &self.server, "app")
    }

    /// Changes a file of the application.
    #[track_caller]
    pub(crate) fn replace(&self, file: &str, from: &str, to: &str) {
        let file: PathBuf = self.sandbox.path("app").join(file);
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "`{from}` is not in {}", file.display());
        fs::write(file, text.replace(from, to)).unwrap();
    }
}

/// The instructions of plain progress that were not cached, without bases.
fn executed(progress: &str) -> Vec<String> {
    let mut names = BTreeMap::<&str, &str>::new();
    let mut executed = Vec::new();
    for line in progress.lines() {
        let Some((step, rest)) = line.strip_prefix('#').and_then(|line| line.split_once(' '))
        else {
            continue;
        };
        match rest.split_once("] ") {
            Some((_, name)) if rest.starts_with('[') => {
                names.insert(step, name);
            }
            _ if rest.starts_with("DONE ") => executed.extend(names.get(step).copied()),
            _ => (),
        }
    }
    executed.retain(|name| !name.starts_with("FROM "));
    executed.into_iter().map(str::to_owned).collect()
}
