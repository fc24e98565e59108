//! What this machine allows, and what to change: the container part of `refit doctor`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::bundle::OverlayLayers;
use crate::cgroup::Hierarchy;
use crate::emulation::Handler;
use crate::rootless::{self, is_rootless};
use crate::{ExternalRuntime, Limits, RuntimeSettings, linux, network};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    /// Something works less well, or not at all for some containers.
    Warning,
    /// Containers do not run.
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Clone)]
pub struct Check {
    pub name: &'static str,
    pub verdict: Verdict,
    /// What was found, and what it means.
    pub meaning: String,
    /// What to change, if anything.
    pub advice: Option<String>,
}

impl Check {
    fn ok(name: &'static str, meaning: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, meaning: meaning.into(), advice: None }
    }

    fn new(
        name: &'static str,
        verdict: Verdict,
        meaning: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { name, verdict, meaning: meaning.into(), advice: Some(advice.into()) }
    }
}

/// Looks at everything that [`Runtime`](crate::Runtime) needs for containers with `limits`.
///
/// An overlay is mounted and a control group made to see whether that works, and both removed.
/// Of version 2 stays what makes groups possible: its controllers are on for groups at the top.
pub async fn diagnose(settings: &RuntimeSettings, limits: &Limits) -> Vec<Check> {
    let (settings, limits) = (settings.clone(), limits.clone());
    let checks = tokio::task::spawn_blocking(move || {
        let mut checks = vec![
            root(),
            namespaces(),
            overlay(&settings.state_dir),
            layers(),
            control_groups(&limits),
            seccomp(),
        ];
        match is_rootless() {
            true => checks.extend([ids(), network_device()]),
            false => checks.extend([iptables(), forwarding(), forward_policy()]),
        }
        checks.extend([
            external(settings.external.as_ref()),
            user_namespaces(&settings),
            foreign_programs(),
        ]);
        checks
    });
    checks.await.unwrap_or_else(|error| {
        let advice = "report this as a bug";
        vec![Check::new("checks", Verdict::Failed, error.to_string(), advice)]
    })
}

/// What else is wrong without root may be right with it.
const RUN_AS_ROOT: &str = "run the server as root";

fn root() -> Check {
    if is_rootless() {
        return Check::ok("root", "an ordinary user, in a user namespace");
    }
    if rustix::process::geteuid().is_root() {
        return Check::ok("root", "runs as root");
    }
    let meaning = "neither root nor in a user namespace: no container starts";
    let advice = "let users make user namespaces (`user.max_user_namespaces`, \
                  `kernel.unprivileged_userns_clone`, AppArmor), or run the server as root";
    Check::new("root", Verdict::Failed, meaning, advice)
}

fn ids() -> Check {
    const NAME: &str = "subordinate ids";
    match rootless::lacks_ids() {
        None => Check::ok(NAME, rootless::ids().trim()),
        Some(reason) => Check::new(
            NAME,
            Verdict::Warning,
            format!("{reason}: images whose files or users are not all root's fail in `RUN`"),
            "install `uidmap`, and give the user a line in `/etc/subuid` and in `/etc/subgid`",
        ),
    }
}

fn network_device() -> Check {
    const NAME: &str = "user network";
    match network::find_uplink() {
        Ok(uplink) => Check::ok(NAME, format!("by `{}`", uplink.program.display())),
        Err(reason) => Check::new(
            NAME,
            Verdict::Warning,
            "no container starts, unless its network is `none` or `host`",
            reason,
        ),
    }
}

fn namespaces() -> Check {
    let missing: Vec<&str> = ["mnt", "pid", "ipc", "uts", "net", "cgroup"]
        .into_iter()
        .filter(|kind| !Path::new("/proc/self/ns").join(kind).exists())
        .collect();
    if missing.is_empty() {
        return Check::ok("namespaces", "the kernel has all that isolate a container");
    }
    let meaning = format!("the kernel lacks {}: no container starts", missing.join(", "));
    Check::new("namespaces", Verdict::Failed, meaning, "use a kernel with namespaces")
}

/// Mounts an overlay in the state folder, in a mount namespace that only one thread is in.
fn overlay(state_dir: &Path) -> Check {
    let folder = state_dir.join(format!("doctor-{}", std::process::id()));
    let tried = std::thread::scope(|scope| {
        scope
            .spawn(|| try_overlay(&folder))
            .join()
            .unwrap_or_else(|_panic| Err("failed".to_owned()))
    });
    let _left_for_the_administrator = fs::remove_dir_all(&folder);
    match tried {
        Ok(()) => Check::ok("overlayfs", "can be mounted over the state folder"),
        Err(reason) => Check::new(
            "overlayfs",
            Verdict::Failed,
            format!("cannot be mounted over `{}`: {reason}", state_dir.display()),
            match rustix::process::geteuid().is_root() {
                true => "load the `overlay` module, and keep the data folder on ext4, xfs or btrfs",
                false => RUN_AS_ROOT,
            },
        ),
    }
}

fn try_overlay(folder: &Path) -> Result<(), String> {
    use nix::mount::{MsFlags, mount};
    let text = |error: &dyn std::fmt::Display| error.to_string();
    for name in ["lower", "upper", "work", "root"] {
        fs::create_dir_all(folder.join(name)).map_err(|error| text(&error))?;
    }
    // A thread shares its working directory with the others, and may not have a mount
    // namespace of its own while it does.
    let flags = nix::sched::CloneFlags::CLONE_NEWNS | nix::sched::CloneFlags::CLONE_FS;
    nix::sched::unshare(flags).map_err(|error| text(&error))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(|error| text(&error))?;
    let layers = OverlayLayers {
        lowers: vec![folder.join("lower")],
        upper: folder.join("upper"),
        work: folder.join("work"),
    };
    linux::mount_overlay(&layers, &folder.join("root"), false, None).map_err(|error| text(&error))
}

fn layers() -> Check {
    match linux::takes_single_layers() {
        Ok(true) => Check::ok("overlay layers", "the kernel stacks up to 500"),
        Ok(false) => Check::new(
            "overlay layers",
            Verdict::Warning,
            "the kernel is older than Linux 6.7 and takes all layers as one text",
            "nothing to change below some 400 layers",
        ),
        Err(error) => no_mount_interface(&error),
    }
}

/// Says whether the kernel does not have it or does not let us.
fn no_mount_interface(error: &std::io::Error) -> Check {
    let (meaning, advice) = match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            (format!("this process may not mount: {error}"), RUN_AS_ROOT)
        }
        _ => {
            (format!("the mount interface of Linux 5.2 is missing: {error}"), "use a newer kernel")
        }
    };
    Check::new("overlay layers", Verdict::Failed, meaning, advice)
}

fn control_groups(configured: &Limits) -> Check {
    const ADVICE: &str = "run as root, or with `Delegate=yes` in the systemd unit";
    const NAME: &str = "control groups";
    let hierarchy = Hierarchy::detect();
    let found = hierarchy.describe();
    let all =
        Limits { memory: Some(64 << 20), pids: Some(64), cpus: Some(1.0), ..Limits::default() };
    match (hierarchy.try_out(&all), hierarchy.try_out(configured)) {
        (Ok(()), _) => Check::ok(NAME, format!("memory, processes and processors: {found}")),
        (Err(error), Ok(())) => {
            let meaning = format!("{found}; {error}: not all limits are possible");
            Check::new(NAME, Verdict::Warning, meaning, ADVICE)
        }
        (_, Err(error)) if is_rootless() => {
            let meaning = format!(
                "{found}; {error}: memory and processor time are not limited, and processes for \
                 each user of a container"
            );
            Check::new(NAME, Verdict::Warning, meaning, ADVICE)
        }
        (_, Err(error)) => {
            let meaning = format!("{found}; {error}: no container starts with the limits set");
            Check::new(NAME, Verdict::Failed, meaning, ADVICE)
        }
    }
}

fn seccomp() -> Check {
    if Path::new("/proc/sys/kernel/seccomp/actions_avail").exists() {
        return Check::ok("seccomp", "system calls can be filtered");
    }
    let meaning = "the kernel cannot filter system calls: no container starts";
    Check::new("seccomp", Verdict::Failed, meaning, "use a kernel with CONFIG_SECCOMP_FILTER")
}

fn iptables() -> Check {
    match network::firewall_listing("nat") {
        Ok(_) => Check::ok("iptables", "rules can be read"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Check::new(
            "iptables",
            Verdict::Failed,
            "is not installed: no container starts, unless its network is `none` or `host`",
            "install the package `iptables`",
        ),
        Err(error) => Check::new(
            "iptables",
            Verdict::Failed,
            format!(
                "does not work: {error}; no container starts, unless its network is `none` or \
                 `host`"
            ),
            "run as root, with the capability CAP_NET_ADMIN",
        ),
    }
}

fn forwarding() -> Check {
    const FILE: &str = "/proc/sys/net/ipv4/ip_forward";
    match fs::read_to_string(FILE) {
        Ok(value) if value.trim() == "1" => Check::ok("ip_forward", "is on"),
        Ok(_) => Check::ok("ip_forward", "is off; the first isolated container turns it on"),
        Err(error) => Check::new(
            "ip_forward",
            Verdict::Warning,
            format!("cannot be read: {error}"),
            "set `net.ipv4.ip_forward = 1` with sysctl",
        ),
    }
}

fn forward_policy() -> Check {
    let listing = match network::firewall_listing("filter") {
        Ok(listing) => listing,
        Err(error) => {
            let meaning = format!("not known: {error}");
            return Check::new("FORWARD policy", Verdict::Warning, meaning, "see `iptables`");
        }
    };
    if listing.lines().any(|line| line == "-P FORWARD DROP") {
        let meaning = "another firewall drops forwarded packets; our own rules come first";
        return Check::ok("FORWARD policy", meaning);
    }
    Check::ok("FORWARD policy", "nothing is dropped by default")
}

fn external(chosen: Option<&ExternalRuntime>) -> Check {
    let Some(ExternalRuntime { program, .. }) = chosen else {
        return Check::ok("runtime", "the embedded one");
    };
    let shown = program.display();
    if is_rootless() {
        let meaning = format!("`{shown}` needs root: no container starts");
        return Check::new("runtime", Verdict::Failed, meaning, "leave the setting empty");
    }
    match version(program) {
        Ok(()) => Check::ok("runtime", format!("`{shown}`")),
        Err(error) => Check::new(
            "runtime",
            Verdict::Failed,
            format!("`{shown}` does not work: {error}"),
            "install it, or leave the setting empty for the embedded runtime",
        ),
    }
}

#[expect(clippy::disallowed_methods, reason = "the runtime that the administrator has chosen")]
fn version(program: &Path) -> std::io::Result<()> {
    let null = std::process::Stdio::null;
    let mut command = std::process::Command::new(program);
    let status = command.arg("--version").stdin(null()).stdout(null()).stderr(null()).status()?;
    if status.success() {
        return Ok(());
    }
    Err(std::io::Error::other(format!("`--version` ends with {status}")))
}

/// Whether programs for other processors can be executed, as builds for several platforms do.
fn foreign_programs() -> Check {
    const NAME: &str = "other processors";
    let handlers = match crate::emulation::handlers(Path::new("/proc/sys/fs/binfmt_misc")) {
        Ok(handlers) => handlers,
        Err(error) => {
            let meaning = format!("cannot be told: {error}");
            let advice = "mount `binfmt_misc` at /proc/sys/fs/binfmt_misc";
            return Check::new(NAME, Verdict::Warning, meaning, advice);
        }
    };
    let (fixed, loose): (Vec<_>, Vec<_>) = handlers.into_iter().partition(|one| one.is_fixed);
    let names = |handlers: &[Handler]| {
        let names: BTreeSet<&str> = handlers.iter().map(|handler| handler.processor).collect();
        names.into_iter().collect::<Vec<_>>().join(", ")
    };
    if !fixed.is_empty() {
        return Check::ok(NAME, format!("programs can be executed for {}", names(&fixed)));
    }
    if !loose.is_empty() {
        let meaning = format!("the emulators of {} are not found in images", names(&loose));
        let advice = "register them with the flag `F`, as the package `qemu-user-static` does";
        return Check::new(NAME, Verdict::Warning, meaning, advice);
    }
    Check::new(
        NAME,
        Verdict::Warning,
        "no emulator is registered: a `RUN` for another platform does not start",
        "install the package `qemu-user-static`, if you build for other platforms",
    )
}

fn user_namespaces(settings: &RuntimeSettings) -> Check {
    const NAME: &str = "user namespaces";
    if settings.external.is_some() {
        return Check::ok(NAME, "not used with another runtime");
    }
    if !settings.user_namespaces {
        return Check::ok(NAME, "switched off by the settings: root in a container is root");
    }
    if is_rootless() {
        return Check::ok(NAME, "root in a container is this user, with few rights");
    }
    let folder = settings.state_dir.join(format!("doctor-{}", std::process::id()));
    match linux::try_users(&settings.helper, &folder) {
        Ok(()) => Check::ok(NAME, "root in a container is nobody on the machine"),
        Err(error) => Check::new(
            NAME,
            Verdict::Warning,
            format!("cannot be used: {error}; root in a container is root, with few rights"),
            "Linux 5.19 or later, and the data folder on ext4, xfs or btrfs",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Error;

    use super::*;

    #[test]
    fn a_kernel_that_refuses_is_not_an_old_one() {
        let refused = no_mount_interface(&Error::from(rustix::io::Errno::PERM));
        assert_eq!(
            refused.meaning,
            "this process may not mount: Operation not permitted (os error 1)"
        );
        assert_eq!(refused.advice.as_deref(), Some("run the server as root"));
        let missing = no_mount_interface(&Error::from(rustix::io::Errno::NOSYS));
        assert_eq!(missing.advice.as_deref(), Some("use a newer kernel"));
    }
}
