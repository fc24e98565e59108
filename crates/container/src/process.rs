//! What to run, in words that have nothing to do with images.

use std::net::{IpAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{Bound, ContainerError, DiskLimit, Egress, PeerNetwork};

/// One process and everything around it.
#[derive(Debug, Clone)]
pub struct ProcessSpec {
    /// Unique name, used for cgroup, network device and error messages: `[a-z0-9-]{1,60}`.
    pub name: String,
    pub rootfs: Rootfs,
    /// The program and its arguments; looked up in `PATH` of `env`, inside the root.
    pub args: Vec<String>,
    /// `NAME=value`; all of it, nothing is inherited.
    pub env: Vec<String>,
    /// `NAME=value`s that are never written to a disk.
    pub private_env: Vec<Private>,
    /// Created if missing, owned by root, as the Dockerfile reference asks of `WORKDIR`.
    pub cwd: String,
    pub user: User,
    pub hostname: String,
    /// In order, after the runtime's own `/proc`, `/dev` and `/sys`.
    pub mounts: Vec<Mount>,
    /// `address name` lines added to `/etc/hosts`.
    pub extra_hosts: Vec<(String, IpAddr)>,
    pub network: Network,
    /// Containers to reach by name, besides what `network` allows.
    pub peers: Option<Peers>,
    /// Answers the process in its own network; only with [`Network::Isolated`].
    pub service: Option<LocalService>,
    pub limits: Limits,
    /// The process sees the whole machine's devices and keeps all capabilities. Callers
    /// check policy before they set it.
    pub privileged: bool,
}

/// Where the root filesystem comes from. Directories hold the image's own uids.
#[derive(Debug, Clone)]
pub enum Rootfs {
    /// Overlay of layers (`lowers`, topmost first, at most 500) with a writable `upper`.
    /// `upper` and `work` are in one folder; after the run `upper` holds exactly the
    /// changes (no stray mount points), ready to be read as a diff.
    Overlay { lowers: Vec<PathBuf>, upper: PathBuf, work: PathBuf },
    /// A plain directory, used as it is.
    Directory(PathBuf),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
}

/// An extra mount; `target` is absolute inside the root and created if missing (and the
/// created mount point is removed again from the upper directory).
#[derive(Debug, Clone)]
pub struct Mount {
    pub target: String,
    pub read_only: bool,
    pub kind: MountKind,
}

#[derive(Debug, Clone)]
pub enum MountKind {
    /// A directory or file of the host.
    Bind { source: PathBuf },
    /// A file of the host that everybody may read, such as a program; read-only. Its owner is the
    /// host's, so that it may be on any file system.
    Shared { source: PathBuf },
    /// Memory, at most `size` bytes.
    Tmpfs { size: u64, mode: u32 },
    /// An overlay over `lowers` (topmost first), or what is at `path` in it: relative, cleaned,
    /// and without links on the way.
    Overlay { lowers: Vec<PathBuf>, upper: PathBuf, work: PathBuf, path: String },
    /// A file that is in memory only.
    File { content: Private, uid: u32, gid: u32, mode: u32 },
}

/// Bytes that are neither shown nor written to a disk.
#[derive(Clone, PartialEq, Eq)]
pub struct Private(Arc<[u8]>);

impl Private {
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// What is not shown.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Private {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("***")
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// Own namespace with outbound access; the host's loopback, link-local and metadata
    /// addresses are not reachable.
    #[default]
    Isolated,
    /// Own namespace with nothing but a loopback device.
    None,
    /// The host's. Callers check policy before they set it.
    Host,
}

/// Other containers that this one reaches, and that reach it; not with [`Network::Host`].
///
/// The container has a device for it: `eth1`, or `eth0` if it has no other. Its `/etc/hosts` has
/// the names of all members, from just before their processes start until they have ended, and is
/// rewritten whenever one comes or goes. What a privileged process changes in that file is lost
/// then.
#[derive(Debug, Clone)]
pub struct Peers {
    pub network: PeerNetwork,
    /// Names under which the others, and the container itself, reach it: at most 100, each of
    /// which [is a host name](is_host_name). A caller whose names may be anything leaves out the
    /// others. A name that another member has already is that one's until it ends; one of
    /// `extra_hosts` means there what is said there.
    pub names: Vec<String>,
}

/// Something of ours that a container reaches over its loopback device, and that nobody else reaches.
#[derive(Debug, Clone)]
pub struct LocalService {
    /// The container has this address for it.
    pub address: SocketAddrV4,
    pub server: Arc<dyn LocalServer>,
}

/// Answers the processes of a container.
#[async_trait]
pub trait LocalServer: Send + Sync + std::fmt::Debug {
    /// Accepts connections until `end`, when the container is gone. Whoever connects is not to be
    /// trusted.
    async fn serve(&self, listener: TcpListener, end: CancellationToken);
}

/// Whether `/etc/hosts` can hold a name: 1 to 253 visible ASCII characters without `#`.
pub fn is_host_name(name: &str) -> bool {
    (1..=HOST_NAME_LENGTH_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

/// Bounds on one container. `None`: no bound of ours.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Limits {
    /// Bytes, without swap.
    pub memory: Option<u64>,
    pub pids: Option<u32>,
    /// Processors' worth of time: 1.5 is one and a half.
    pub cpus: Option<f64>,
    /// What others share with it.
    pub within: Option<Bound>,
    pub timeout: Option<Duration>,
    /// What the container may write to disk. It is ended soon after it has written more.
    pub disk: DiskLimit,
    /// Where it may connect to; not with [`Network::Host`].
    pub egress: Egress,
    /// Size of `/dev/shm` in bytes; 64 MiB by default.
    pub shm_size: Option<u64>,
    /// `RLIMIT_*` by name (`nofile`), soft and hard.
    pub ulimits: Vec<(String, u64, u64)>,
}

impl Limits {
    /// No more processors than this, and than there were.
    pub fn bound_cpus(&mut self, max: f64) {
        self.cpus = Some(self.cpus.map_or(max, |cpus| cpus.min(max)));
    }
}

/// How a container ended. Each way is told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    OutOfMemory,
    /// It had written more than its limit.
    OutOfDisk,
    /// The machine's disk was nearly full, and of all containers this one had written the most.
    DiskFull,
    TimedOut,
    Canceled,
}

/// The kernel's own bound on the lower layers of an overlay.
const LOWERS_MAX: usize = 500;
const MOUNTS_MAX: usize = 500;
/// Arguments and environment together; the kernel allows about 2 MiB by default.
const TEXT_SIZE_MAX: usize = 4 << 20;
/// Files in memory, all together.
const PRIVATE_SIZE_MAX: usize = 64 << 20;
const NAME_LENGTH_MAX: usize = 60;
const HOSTNAME_LENGTH_MAX: usize = 64;
/// Of a name that others are found by, as the domain name system has it.
const HOST_NAME_LENGTH_MAX: usize = 253;
const PEER_NAMES_MAX: usize = 100;

/// Resource limits that a specification may set.
pub(crate) const ULIMITS: [&str; 15] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "sigpending",
    "stack",
];

/// Refuses what could not be carried out, or would mean something else to the kernel.
pub(crate) fn check(spec: &ProcessSpec) -> Result<(), ContainerError> {
    check_name(&spec.name)?;
    if spec.args.is_empty() {
        return Err(refuse("the process has no arguments, not even a program"));
    }
    check_texts(spec)?;
    check_target("working directory", &spec.cwd)?;
    let hostname_is_fine = spec.hostname.len() <= HOSTNAME_LENGTH_MAX
        && spec.hostname.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if !hostname_is_fine {
        return Err(refuse(format!("`{}` is not a host name", spec.hostname.escape_debug())));
    }
    check_rootfs(&spec.rootfs)?;
    if spec.mounts.len() > MOUNTS_MAX {
        return Err(refuse(format!("more than {MOUNTS_MAX} mounts")));
    }
    let mut private_size = 0;
    for mount in &spec.mounts {
        check_mount(mount)?;
        if let MountKind::File { content, .. } = &mount.kind {
            private_size += content.reveal().len();
        }
    }
    if private_size > PRIVATE_SIZE_MAX {
        return Err(refuse("private files together are larger than 64 MiB"));
    }
    spec.extra_hosts.iter().try_for_each(|(name, _)| check_host_name(name))?;
    check_peers(spec)?;
    if spec.service.is_some() && spec.network != Network::Isolated {
        return Err(refuse("a service needs a network of the container's own"));
    }
    if !spec.limits.egress.is_open() && (spec.network == Network::Host || spec.privileged) {
        return Err(ContainerError::Unbounded {
            reason: "a container with the host's network or all rights cannot be kept to it"
                .to_owned(),
        });
    }
    check_limits(&spec.limits)
}

fn refuse(reason: impl Into<String>) -> ContainerError {
    ContainerError::Setup { doing: "accept the process".to_owned(), reason: reason.into() }
}

fn check_host_name(name: &str) -> Result<(), ContainerError> {
    match is_host_name(name) {
        true => Ok(()),
        false => Err(refuse(format!("`{}` is not a host name", name.escape_debug()))),
    }
}

fn check_peers(spec: &ProcessSpec) -> Result<(), ContainerError> {
    let Some(Peers { names, .. }) = &spec.peers else { return Ok(()) };
    if spec.network == Network::Host {
        return Err(refuse("a container with the host's network has no peers"));
    }
    if names.len() > PEER_NAMES_MAX {
        return Err(refuse(format!("more than {PEER_NAMES_MAX} names for peers")));
    }
    names.iter().try_for_each(|name| check_host_name(name))
}

fn check_name(name: &str) -> Result<(), ContainerError> {
    let fine = (1..=NAME_LENGTH_MAX).contains(&name.len())
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    if fine {
        return Ok(());
    }
    let name = name.escape_debug();
    Err(refuse(format!("the name `{name}` is not 1 to 60 of lower-case letters, digits and `-`")))
}

fn check_texts(spec: &ProcessSpec) -> Result<(), ContainerError> {
    let mut size = 0;
    for text in spec.args.iter().chain(&spec.env) {
        if text.contains('\0') {
            return Err(refuse("an argument or environment variable contains a NUL byte"));
        }
        size += text.len() + 1;
    }
    for text in &spec.private_env {
        if text.reveal().contains(&0) || std::str::from_utf8(text.reveal()).is_err() {
            return Err(refuse("a private variable is not UTF-8, or contains a NUL byte"));
        }
        size += text.reveal().len() + 1;
    }
    if size > TEXT_SIZE_MAX {
        return Err(refuse("arguments and environment together are larger than 4 MiB"));
    }
    Ok(())
}

fn check_target(what: &str, path: &str) -> Result<(), ContainerError> {
    if path.starts_with('/') && !path.contains('\0') && path.len() < 4096 {
        return Ok(());
    }
    let path = path.escape_debug();
    Err(refuse(format!("the {what} `{path}` is not an absolute path of less than 4096 bytes")))
}

fn check_rootfs(rootfs: &Rootfs) -> Result<(), ContainerError> {
    match rootfs {
        Rootfs::Overlay { lowers, upper, work } => check_overlay(lowers, upper, work),
        Rootfs::Directory(path) => path_text(path).map(drop),
    }
}

fn check_overlay(lowers: &[PathBuf], upper: &Path, work: &Path) -> Result<(), ContainerError> {
    if !(1..=LOWERS_MAX).contains(&lowers.len()) {
        let count = lowers.len();
        return Err(refuse(format!(
            "an overlay of {count} layers; 1 to {LOWERS_MAX} are possible"
        )));
    }
    lowers
        .iter()
        .map(PathBuf::as_path)
        .chain([upper, work])
        .try_for_each(|path| path_text(path).map(drop))
}

fn check_mount(mount: &Mount) -> Result<(), ContainerError> {
    check_target("mount target", &mount.target)?;
    if mount.target.split('/').all(|part| matches!(part, "" | "." | "..")) {
        return Err(refuse("a mount over the whole root"));
    }
    match &mount.kind {
        MountKind::Bind { source } | MountKind::Shared { source } => path_text(source).map(drop),
        MountKind::Tmpfs { .. } | MountKind::File { .. } => Ok(()),
        MountKind::Overlay { lowers, upper, work, path } => {
            let parts_are_names =
                path.is_empty() || path.split('/').all(|part| !matches!(part, "" | "." | ".."));
            if !parts_are_names || path.contains('\0') {
                return Err(refuse("the path in an overlay is not clean"));
            }
            check_overlay(lowers, upper, work)
        }
    }
}

fn check_limits(limits: &Limits) -> Result<(), ContainerError> {
    for (name, soft, hard) in &limits.ulimits {
        if !ULIMITS.contains(&name.as_str()) {
            let known = ULIMITS.join(", ");
            let name = name.escape_debug();
            return Err(refuse(format!("no limit is called `{name}`; there are {known}")));
        }
        if soft > hard {
            return Err(refuse(format!("the soft limit of `{name}` is above the hard one")));
        }
    }
    if limits.cpus.is_some_and(|cpus| !(0.01..=4096.0).contains(&cpus)) {
        return Err(refuse("the processor limit is not between 0.01 and 4096"));
    }
    if limits.memory.is_some_and(|memory| memory < 1 << 20 || memory > i64::MAX.unsigned_abs()) {
        return Err(refuse("the memory limit is below 1 MiB or above what the kernel counts"));
    }
    if limits.pids == Some(0) {
        return Err(refuse("the process limit is zero"));
    }
    Ok(())
}

/// The text of a host path. Bundles are JSON, which holds nothing but Unicode.
pub(crate) fn path_text(path: &Path) -> Result<String, ContainerError> {
    let shown = path.to_string_lossy();
    let shown = shown.escape_debug();
    let Some(text) = path.to_str() else {
        return Err(refuse(format!("the path `{shown}` is not UTF-8")));
    };
    if !path.is_absolute() || text.contains('\0') {
        return Err(refuse(format!("the path `{shown}` is not an absolute path")));
    }
    Ok(text.to_owned())
}
