//! The base image of all applications, made of Debian packages.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use testkit::Sandbox;

use crate::run;

/// Another one is made after that, as packages get updates.
const AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Making it downloads some hundred packages.
const PATIENCE: Duration = Duration::from_secs(300);

/// What Debian's images for containers have and leave out.
const OPTIONS: &[&str] = &[
    "--quiet",
    "--variant=apt",
    "--aptopt=Acquire::Languages \"none\"",
    "--dpkgopt=force-unsafe-io",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/info/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
];

/// An OCI archive of it. It is made once for all tests, whichever comes first.
#[track_caller]
pub(crate) fn archive() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(folder).unwrap();
    let lock = File::create(folder.join("realworld-base.lock")).unwrap();
    lock.lock().unwrap();
    let archive = folder.join("realworld-base.tar");
    let age = fs::metadata(&archive).and_then(|metadata| metadata.modified());
    let is_fresh = age.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < AGE_MAX));
    if !is_fresh {
        let new = make();
        // Whole or not there: the test may be killed.
        fs::copy(new.path("image.tar"), folder.join("realworld-base.new")).unwrap();
        fs::rename(folder.join("realworld-base.new"), &archive).unwrap();
    }
    archive
}

#[track_caller]
fn make() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("base/Dockerfile", "FROM scratch\nADD root.tar /\nCMD [\"bash\"]\n");
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.args(OPTIONS).arg(suite()).arg(sandbox.path("base/root.tar"));
    run(&mut mmdebstrap);
    let args = ["build", "base", "--output", "type=oci,dest=image.tar"];
    sandbox.refit(args).within(PATIENCE).succeeds();
    sandbox
}

/// Debian's release on this machine.
fn suite() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.unwrap_or("stable").trim_matches('"').to_owned()
}
