//! Programs run as an ordinary user that this machine does not have.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use crate::sandbox::program;

/// The number of the user, and of the only group.
pub(crate) const USER: u32 = 70_001;

/// Programs that connect the networks of users.
const UPLINKS: [&str; 2] = ["pasta", "slirp4netns"];

/// What an ordinary user's machine has.
#[derive(Debug, Clone, Copy, Default)]
pub struct UserMachine {
    /// `/etc/subuid` and `/etc/subgid` give the user no ids.
    pub without_ids: bool,
    /// Everybody may make network devices, and there is this program to use them.
    pub uplink: Option<&'static str>,
}

/// Where a sandbox has the script that runs a program as its user.
const SCRIPT: &str = "as-user";

/// Gives the folder of a sandbox to a user. Programs are started in a mount namespace of their
/// own, where the files that name users say that there is this one; so nothing of the machine
/// changes, and no id of it has to be free.
pub(crate) fn give(root: &Path, machine: UserMachine) {
    let etc = root.join("etc");
    fs::create_dir(&etc).expect("the sandbox can be written");
    let ids = if machine.without_ids { "" } else { "tester:2000000:65536\n" };
    let user = format!("root:x:0:0::/root:/bin/sh\ntester:x:{USER}:{USER}::/:/bin/sh\n");
    for (name, text) in [("passwd", user.as_str()), ("subuid", ids), ("subgid", ids)] {
        fs::write(etc.join(name), text).expect("the sandbox can be written");
    }
    let mut network = String::new();
    if let Some(program) = machine.uplink {
        network.push_str("mount -t tmpfs tmpfs /dev/net\nmknod -m 666 /dev/net/tun c 10 200\n");
        for other in UPLINKS.iter().filter(|other| **other != program) {
            network.push_str(&format!("mount --bind /dev/null /usr/bin/{other}\n"));
        }
    }
    let (folder, program) = (root.display(), program().display().to_string());
    // The tests' own binaries may lie where only root gets to.
    let script = format!(
        "set -e\n\
         for file in passwd subuid subgid; do mount --bind {folder}/etc/$file /etc/$file; done\n\
         {network}\
         mount --bind '{program}' {folder}/refit\n\
         exec setpriv --reuid {USER} --regid {USER} --clear-groups -- {folder}/refit \"$@\"\n"
    );
    fs::write(root.join(SCRIPT), script).expect("the sandbox can be written");
    fs::write(root.join("refit"), "").expect("the sandbox can be written");
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).expect("modes can be set");
    chown(root, Some(USER), Some(USER)).expect("tests of ordinary users are run as root");
}

/// Gives the user other ids than before.
pub(crate) fn change_ids(root: &Path) {
    for name in ["subuid", "subgid"] {
        let file = root.join("etc").join(name);
        fs::write(file, "tester:3000000:65536\n").expect("the sandbox can be written");
    }
}

/// The program under test with its first arguments, as the sandbox's user if it has one.
pub(crate) fn launcher(root: &Path) -> Vec<String> {
    let script = root.join(SCRIPT);
    if !script.exists() {
        return vec![program().display().to_string()];
    }
    let words = ["unshare", "--mount", "--propagation", "private", "sh"];
    words.map(str::to_owned).into_iter().chain([script.display().to_string()]).collect()
}
