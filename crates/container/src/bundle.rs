//! The OCI bundle: what is handed to the helper, or to `runc`.
//!
//! The structures are the part of the OCI runtime specification that we use, written by the
//! server and read by the helper. What the specification has no words for (overlays, control
//! groups made by the server) stands beside it in [`Extras`].

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::network::Uplink;
use crate::process::{Rootfs, path_text};
use crate::users::{IdMapping, Mappings};
use crate::{ContainerError, ExternalRuntime, MountKind, Network, ProcessSpec, seccomp};

/// The largest bundle file the helper reads. 500 layers and a long environment stay far below.
const BUNDLE_FILE_SIZE_MAX: u64 = 16 << 20;

/// `/dev/shm` unless a limit says otherwise.
const SHM_SIZE_DEFAULT: u64 = 64 << 20;

/// The group `tty`, in images as well as on machines.
const TERMINAL_GROUP: u32 = 5;

/// How many device nodes a privileged process is given at most.
const DEVICES_MAX: usize = 4096;

/// What a process of an ordinary container may do with root's name: Docker's fourteen.
const CAPABILITIES_DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SYS_CHROOT",
    "CAP_MKNOD",
    "CAP_AUDIT_WRITE",
    "CAP_SETFCAP",
];

const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// `config.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Config {
    pub(crate) oci_version: String,
    pub(crate) process: Process,
    pub(crate) root: Root,
    pub(crate) hostname: String,
    pub(crate) mounts: Vec<MountEntry>,
    pub(crate) linux: Linux,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Process {
    pub(crate) terminal: bool,
    pub(crate) user: UserEntry,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    pub(crate) capabilities: Capabilities,
    pub(crate) rlimits: Vec<Rlimit>,
    pub(crate) no_new_privileges: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UserEntry {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) additional_gids: Vec<u32>,
}

/// Sets of capability names. The inheritable and ambient sets stay empty, as Docker has had
/// it since CVE-2022-24769.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Capabilities {
    pub(crate) bounding: Vec<String>,
    pub(crate) effective: Vec<String>,
    pub(crate) permitted: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Rlimit {
    #[serde(rename = "type")]
    pub(crate) name: String,
    pub(crate) hard: u64,
    pub(crate) soft: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Root {
    pub(crate) path: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MountEntry {
    pub(crate) destination: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) source: String,
    #[serde(default)]
    pub(crate) options: Vec<String>,
}

/// The option of a bind whose files hold the image's own ids.
pub(crate) const TRANSLATED: &str = "idmap";

impl MountEntry {
    pub(crate) fn new(destination: &str, kind: &str, source: &str, options: &[&str]) -> Self {
        Self {
            destination: destination.to_owned(),
            kind: kind.to_owned(),
            source: source.to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    pub(crate) fn is_bind(&self) -> bool {
        self.options.iter().any(|option| option == "bind" || option == "rbind")
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Linux {
    pub(crate) namespaces: Vec<Namespace>,
    /// Empty: the machine's own ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) uid_mappings: Vec<IdMapping>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) gid_mappings: Vec<IdMapping>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) devices: Vec<Device>,
    pub(crate) masked_paths: Vec<String>,
    pub(crate) readonly_paths: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) seccomp: Option<seccomp::Profile>,
    pub(crate) resources: Resources,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cgroups_path: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Namespace {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Device {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) path: String,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) file_mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Only `runc` reads these: for the embedded runtime the server makes the control group.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Resources {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) devices: Vec<DeviceRule>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DeviceRule {
    pub(crate) allow: bool,
    pub(crate) access: String,
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<String>,
}

/// `refit.json`: what the OCI specification has no words for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Extras {
    pub(crate) rootfs: RootfsEntry,
    pub(crate) overlays: Vec<OverlayEntry>,
    /// Files in memory. Their bytes come through the control socket, in this order.
    pub(crate) files: Vec<FileEntry>,
    /// How many bytes of private variables come before those of the files: each variable ends
    /// with a NUL byte.
    pub(crate) private_env: usize,
    pub(crate) group: Membership,
    /// A program to start for the network namespace.
    pub(crate) uplink: Option<Uplink>,
    /// An OCI runtime to execute instead of doing it ourselves.
    pub(crate) external: Option<ExternalRuntime>,
    /// The container's name, for the external runtime.
    pub(crate) name: String,
}

impl Extras {
    /// Whether something comes through the control socket.
    pub(crate) fn has_private(&self) -> bool {
        self.private_env > 0 || !self.files.is_empty()
    }
}

/// How the process gets into its control group, in each tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Membership {
    /// Folder of a version 2 group that it is born in, where the kernel can do that.
    pub(crate) born_in: Option<PathBuf>,
    /// Files through which it joins otherwise, before it is executed.
    pub(crate) joins: Vec<PathBuf>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum RootfsEntry {
    Overlay(OverlayLayers),
    Directory(PathBuf),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OverlayLayers {
    /// Topmost first.
    pub(crate) lowers: Vec<PathBuf>,
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
}

/// A throw-away overlay, mounted at a folder of the bundle and bound from there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OverlayEntry {
    pub(crate) at: PathBuf,
    pub(crate) layers: OverlayLayers,
    /// What of it is bound, and where below the bundle's folder that is mounted first: what a step
    /// wrote before may lead anywhere by now. `None`: all of it.
    pub(crate) part: Option<(String, PathBuf)>,
}

/// A file of a tmpfs that the helper mounts at [`Placement::files`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    pub(crate) at: PathBuf,
    pub(crate) size: usize,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
}

/// What goes through the control socket before the container starts.
pub(crate) fn private_bytes(spec: &ProcessSpec) -> Vec<u8> {
    let mut bytes = Vec::new();
    for variable in &spec.private_env {
        bytes.extend_from_slice(variable.reveal());
        bytes.push(0);
    }
    for mount in &spec.mounts {
        if let MountKind::File { content, .. } = &mount.kind {
            bytes.extend_from_slice(content.reveal());
        }
    }
    bytes
}

/// What the server decided about one container besides its specification.
pub(crate) struct Placement {
    pub(crate) folder: PathBuf,
    pub(crate) external: Option<ExternalRuntime>,
    /// Path of the network namespace to join.
    pub(crate) network_namespace: Option<String>,
    pub(crate) group: Membership,
    /// For the external runtime, relative to the control group mounts.
    pub(crate) cgroups_path: Option<String>,
    /// What gives the network namespace its way out, if it needs a program for it.
    pub(crate) uplink: Option<Uplink>,
    /// The container's ids.
    pub(crate) ids: Mappings,
    /// Whether the process has them in a user namespace of its own.
    pub(crate) user_namespace: bool,
    /// Whether root here is not root of the machine.
    pub(crate) rootless: bool,
}

impl Placement {
    pub(crate) fn config_file(folder: &Path) -> PathBuf {
        folder.join("config.json")
    }

    pub(crate) fn extras_file(folder: &Path) -> PathBuf {
        folder.join("refit.json")
    }

    pub(crate) fn rootfs(folder: &Path) -> PathBuf {
        folder.join("rootfs")
    }

    /// Where the helper mounts memory, for what must not be on a disk.
    pub(crate) fn files(folder: &Path) -> PathBuf {
        folder.join("private")
    }
}

/// Translates a specification into a bundle. The specification has been checked before.
pub(crate) fn describe(
    spec: &ProcessSpec,
    place: &Placement,
) -> Result<(Config, Extras), ContainerError> {
    let mut mounts = system_mounts(spec, place);
    let (mut overlays, mut files) = (Vec::new(), Vec::new());
    for file in ["resolv.conf", "hosts"] {
        let source = path_text(&place.folder.join(file))?;
        mounts.push(MountEntry::new(
            &format!("/etc/{file}"),
            "bind",
            &source,
            &["bind", "ro", "nosuid", "nodev", "noexec"],
        ));
    }
    for (number, mount) in spec.mounts.iter().enumerate() {
        mounts.push(extra_mount(spec, place, number, mount, &mut overlays, &mut files)?);
    }
    let capabilities =
        if spec.privileged { all_capabilities() } else { default_capabilities(spec) };
    let hidden = |paths: &[&str]| -> Vec<String> {
        if spec.privileged { Vec::new() } else { paths.iter().map(ToString::to_string).collect() }
    };
    let namespace_ids = if place.user_namespace { place.ids.clone() } else { Mappings::default() };
    let config = Config {
        oci_version: "1.0.2".to_owned(),
        process: Process {
            terminal: false,
            user: UserEntry {
                uid: spec.user.uid,
                gid: spec.user.gid,
                additional_gids: spec.user.additional_gids.clone(),
            },
            args: spec.args.clone(),
            env: spec.env.clone(),
            cwd: spec.cwd.clone(),
            capabilities: Capabilities {
                bounding: capabilities.clone(),
                effective: capabilities.clone(),
                permitted: capabilities,
            },
            rlimits: rlimits(spec),
            no_new_privileges: !spec.privileged,
        },
        root: Root { path: path_text(&Placement::rootfs(&place.folder))? },
        hostname: spec.hostname.clone(),
        mounts,
        linux: Linux {
            namespaces: namespaces(spec, place),
            uid_mappings: namespace_ids.uids,
            gid_mappings: namespace_ids.gids,
            // Nobody but root of the machine can make them.
            devices: match spec.privileged && !place.rootless {
                true => machine_devices(),
                false => Vec::new(),
            },
            masked_paths: hidden(&MASKED_PATHS),
            readonly_paths: hidden(&READ_ONLY_PATHS),
            seccomp: (!spec.privileged).then(seccomp::Profile::standard),
            resources: Resources { devices: device_rules(spec) },
            cgroups_path: place.cgroups_path.clone(),
        },
    };
    let rootfs = match &spec.rootfs {
        Rootfs::Overlay { lowers, upper, work } => RootfsEntry::Overlay(OverlayLayers {
            lowers: lowers.clone(),
            upper: upper.clone(),
            work: work.clone(),
        }),
        Rootfs::Directory(path) => RootfsEntry::Directory(path.clone()),
    };
    let private_env = spec.private_env.iter().map(|text| text.reveal().len() + 1).sum();
    let extras = Extras {
        rootfs,
        overlays,
        files,
        private_env,
        group: place.group.clone(),
        uplink: place.uplink.clone(),
        external: place.external.clone(),
        name: spec.name.clone(),
    };
    Ok((config, extras))
}

/// Whose a file system in memory is, if not root's.
fn owner_options(place: &Placement) -> Vec<String> {
    match place.ids.root() {
        0 => Vec::new(),
        root => vec![format!("uid={root}"), format!("gid={root}")],
    }
}

/// `/proc`, `/dev` and `/sys`, in the order in which they are mounted.
fn system_mounts(spec: &ProcessSpec, place: &Placement) -> Vec<MountEntry> {
    let owner = owner_options(place);
    let owner = owner.iter().map(String::as_str);
    let terminals = place.ids.group(TERMINAL_GROUP).map(|group| format!("gid={group}"));
    let mut terminal_options =
        vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    terminal_options.extend(terminals.as_deref());
    let shm_size = format!("size={}", spec.limits.shm_size.unwrap_or(SHM_SIZE_DEFAULT));
    let sys_mode = if spec.privileged { "rw" } else { "ro" };
    let mut dev_options = vec!["nosuid", "strictatime", "mode=755", "size=65536k"];
    dev_options.extend(owner.clone());
    let mut shm_options = vec!["nosuid", "noexec", "nodev", "mode=1777", &*shm_size];
    shm_options.extend(owner);
    vec![
        MountEntry::new("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        MountEntry::new("/dev", "tmpfs", "tmpfs", &dev_options),
        MountEntry::new("/dev/pts", "devpts", "devpts", &terminal_options),
        MountEntry::new("/dev/shm", "tmpfs", "shm", &shm_options),
        MountEntry::new("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        match place.rootless && spec.network == Network::Host {
            false => {
                MountEntry::new("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys_mode])
            }
            // It shows the network's devices, and whoever mounts it needs rights over those.
            true => {
                let options = ["rbind", "nosuid", "noexec", "nodev", "ro"];
                MountEntry::new("/sys", "bind", "/sys", &options)
            }
        },
    ]
}

fn extra_mount(
    spec: &ProcessSpec,
    place: &Placement,
    number: usize,
    mount: &crate::Mount,
    overlays: &mut Vec<OverlayEntry>,
    files: &mut Vec<FileEntry>,
) -> Result<MountEntry, ContainerError> {
    let mode = if mount.read_only { "ro" } else { "rw" };
    let device_files = if spec.privileged { "dev" } else { "nodev" };
    Ok(match &mount.kind {
        MountKind::Bind { source } => {
            let mut options = vec!["rbind", mode, "nosuid", device_files];
            if place.user_namespace {
                options.push(TRANSLATED);
            }
            MountEntry::new(&mount.target, "bind", &path_text(source)?, &options)
        }
        MountKind::Shared { source } => {
            let options = ["bind", "ro", "nosuid", "nodev"];
            MountEntry::new(&mount.target, "bind", &path_text(source)?, &options)
        }
        MountKind::Tmpfs { size, mode: permissions } => {
            let size = format!("size={size}");
            let permissions = format!("mode={:o}", permissions & 0o7777);
            let owner = owner_options(place);
            let mut options = vec!["nosuid", "nodev", mode, &size, &permissions];
            options.extend(owner.iter().map(String::as_str));
            MountEntry::new(&mount.target, "tmpfs", "tmpfs", &options)
        }
        MountKind::File { content, uid, gid, mode: permissions } => {
            let at = Placement::files(&place.folder).join(number.to_string());
            let source = path_text(&at)?;
            let (uid, gid, mode) = (*uid, *gid, permissions & 0o7777);
            files.push(FileEntry { at, size: content.reveal().len(), uid, gid, mode });
            let options = ["bind", "ro", "nosuid", "nodev"];
            MountEntry::new(&mount.target, "bind", &source, &options)
        }
        MountKind::Overlay { lowers, upper, work, path } => {
            let at = place.folder.join(format!("overlay-{number}"));
            let part = place.folder.join(format!("overlay-{number}-part"));
            let part = (!path.is_empty()).then(|| (path.clone(), part));
            let source = path_text(part.as_ref().map_or(&at, |(_, at)| at))?;
            let layers =
                OverlayLayers { lowers: lowers.clone(), upper: upper.clone(), work: work.clone() };
            overlays.push(OverlayEntry { at, layers, part });
            MountEntry::new(
                &mount.target,
                "bind",
                &source,
                &["rbind", mode, "nosuid", device_files],
            )
        }
    })
}

fn namespaces(spec: &ProcessSpec, place: &Placement) -> Vec<Namespace> {
    let mut namespaces: Vec<Namespace> = ["mount", "pid", "ipc", "uts", "cgroup"]
        .map(|kind| Namespace { kind: kind.to_owned(), path: None })
        .into();
    if place.user_namespace {
        namespaces.push(Namespace { kind: "user".to_owned(), path: None });
    }
    if spec.network != Network::Host {
        let path = place.network_namespace.clone();
        namespaces.push(Namespace { kind: "network".to_owned(), path });
    }
    namespaces
}

fn rlimits(spec: &ProcessSpec) -> Vec<Rlimit> {
    spec.limits
        .ulimits
        .iter()
        .map(|(name, soft, hard)| Rlimit {
            name: format!("RLIMIT_{}", name.to_ascii_uppercase()),
            hard: *hard,
            soft: *soft,
        })
        .collect()
}

fn device_rules(spec: &ProcessSpec) -> Vec<DeviceRule> {
    let rule = |allow, kind: Option<&str>, access: &str| DeviceRule {
        allow,
        access: access.to_owned(),
        kind: kind.map(ToOwned::to_owned),
    };
    if spec.privileged {
        return vec![rule(true, None, "rwm")];
    }
    vec![rule(false, None, "rwm"), rule(true, Some("c"), "m"), rule(true, Some("b"), "m")]
}

fn default_capabilities(spec: &ProcessSpec) -> Vec<String> {
    // Who writes packets itself has them come from another container.
    let is_kept = |name: &&str| *name != "CAP_NET_RAW" || spec.limits.egress.is_open();
    CAPABILITIES_DEFAULT.into_iter().filter(is_kept).map(str::to_owned).collect()
}

/// All that this process itself has: a capability that the server lacks cannot be given.
fn all_capabilities() -> Vec<String> {
    let mut names: Vec<String> = caps::read(None, caps::CapSet::Bounding)
        .unwrap_or_default()
        .into_iter()
        .map(|capability| capability.to_string())
        .collect();
    names.sort();
    names
}

/// The device nodes of this machine, for a privileged process.
fn machine_devices() -> Vec<Device> {
    let mut devices = Vec::new();
    let mut folders = vec![PathBuf::from("/dev")];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            if devices.len() >= DEVICES_MAX {
                return devices;
            }
            let path = entry.path();
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                let own = ["/dev/pts", "/dev/shm", "/dev/mqueue"];
                if !own.iter().any(|own| path == Path::new(own)) {
                    folders.push(path);
                }
            } else if let Some(device) = device(&path, &metadata) {
                devices.push(device);
            }
        }
    }
    devices
}

fn device(path: &Path, metadata: &std::fs::Metadata) -> Option<Device> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        _ => return None,
    };
    // These are always there, or are links of the container's own terminals.
    const OWN: [&str; 8] = ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"];
    if OWN.iter().any(|name| path == Path::new("/dev").join(name)) {
        return None;
    }
    Some(Device {
        kind: kind.to_owned(),
        path: path.to_str()?.to_owned(),
        major: rustix::fs::major(metadata.rdev()),
        minor: rustix::fs::minor(metadata.rdev()),
        file_mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}

/// Reads a file of a bundle, refusing one that is larger than any we write.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let mut bytes = Vec::new();
    File::open(path)?.take(BUNDLE_FILE_SIZE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > BUNDLE_FILE_SIZE_MAX {
        return Err(io::Error::other("the bundle is larger than 16 MiB"));
    }
    parse(&bytes)
}

/// Parses a file of a bundle.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    serde_json::from_slice(bytes).map_err(io::Error::other)
}
