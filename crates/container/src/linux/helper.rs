//! The helper's life: prepare the root, start the init, wait, tidy up, report.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::Pid;
use rustix::process::WaitOptions;

use super::overlay::mount_overlay;
use super::points::MountPoints;
use super::report::{Doing as _, Ending, Message, Report, tell};
use super::users::{self, Users};
use super::{external, init, sandbox, uplink};
use crate::ContainerError;
use crate::bundle::{self, Config, Extras, Membership, Placement, RootfsEntry};
use crate::users::host_id;

/// The largest report an init sends.
const REPORT_SIZE_MAX: u64 = 64 << 10;

/// Entry point of the helper process; `args` are those after [`HELPER_ARG`](crate::HELPER_ARG).
/// Never returns.
///
/// The only argument is the folder of the bundle; standard input is the control socket.
pub fn helper_main(args: &[OsString]) -> ! {
    let status = match args {
        [command, folder] if command == users::TRY_ARG => try_users(Path::new(folder)),
        [folder] => serve(Path::new(folder)),
        _ => 2,
    };
    std::process::exit(status)
}

/// Whoever asked reads why not.
fn try_users(folder: &Path) -> i32 {
    let Err(error) = users::try_here(folder) else { return 0 };
    let _asker_gone = writeln!(std::io::stderr(), "{error}");
    1
}

fn serve(folder: &Path) -> i32 {
    let Ok(control) = take_control() else { return 1 };
    let report = run(folder, &control).unwrap_or_else(Report::Failed);
    i32::from(tell(&control, &Message::Over(report)).is_err())
}

/// Takes the control socket from standard input, and leaves `/dev/null` there.
fn take_control() -> std::io::Result<UnixStream> {
    let control = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3)?;
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    Ok(UnixStream::from(control))
}

fn run(folder: &Path, control: &UnixStream) -> Result<Report, ContainerError> {
    let mut config: Config = bundle::read(&Placement::config_file(folder))
        .doing(|| "read the bundle's `config.json`".to_owned())?;
    let extras: Extras = bundle::read(&Placement::extras_file(folder))
        .doing(|| "read the bundle's `refit.json`".to_owned())?;
    unshare(CloneFlags::CLONE_NEWNS).doing(|| "make a mount namespace".to_owned())?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .doing(|| "make mounts private".to_owned())?;
    let rootfs = Placement::rootfs(folder);
    let users = Users::make(&config.linux.uid_mappings, &config.linux.gid_mappings)?;
    let private = take_private(folder, &mut config, &extras, control)
        .doing(|| "take what is private".to_owned())?;
    let users = users.as_ref();
    if let Some(users) = users {
        own_files(folder, users.root).doing(|| "give the container its files".to_owned())?;
    }
    let mounted = mount_roots(&config, &extras, &rootfs, users)?;
    let owner = users.map_or(0, |users| users.root);
    let points = MountPoints::make(&rootfs, &extras.rootfs, &config.mounts, owner)?;
    let mut uplink = start_uplink(&config, &extras, folder)?;
    let ending = match &extras.external {
        Some(runtime) => {
            let bundle = private.as_deref().unwrap_or(folder);
            external::run(runtime, folder, bundle, &extras.name, control)
        }
        None => run_init(&config, &extras, &rootfs, users, &mut uplink, control),
    };
    let (cpu_microseconds, memory_peak) = sandbox::children_usage();
    drop(uplink);
    for path in mounted.iter().rev() {
        if umount2(path, MntFlags::empty()).is_err() {
            // Something still leaves; it will take the mount along.
            let _gone = umount2(path, MntFlags::MNT_DETACH);
        }
    }
    points.remove();
    Ok(Report::Ended { ending: ending?, cpu_microseconds, memory_peak })
}

/// Lets the files that the server made for the container belong to its root.
fn own_files(folder: &Path, owner: u32) -> std::io::Result<()> {
    for file in ["hosts", "resolv.conf"] {
        std::os::unix::fs::chown(folder.join(file), Some(owner), Some(owner))?;
    }
    Ok(())
}

/// Takes private variables and files from the control socket, and keeps them in memory that
/// goes with this process's mount namespace. Gives the folder of a bundle that has all of them,
/// for a runtime that wants to read it.
fn take_private(
    folder: &Path,
    config: &mut Config,
    extras: &Extras,
    mut control: &UnixStream,
) -> Result<Option<PathBuf>, Box<dyn std::error::Error>> {
    if !extras.has_private() {
        return Ok(None);
    }
    let memory = Placement::files(folder);
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), &memory, Some("tmpfs"), flags, Some("mode=0700"))?;
    let mut env = vec![0; extras.private_env];
    control.read_exact(&mut env)?;
    let mut env = env.as_slice();
    while let Some(end) = env.iter().position(|byte| *byte == 0) {
        config.process.env.push(std::str::from_utf8(&env[..end])?.to_owned());
        env = &env[end + 1..];
    }
    for file in &extras.files {
        let mut content = vec![0; file.size];
        control.read_exact(&mut content)?;
        std::fs::write(&file.at, content)?;
        let id = |map, id| host_id(map, id).ok_or("no container has this id");
        let uid = id(&config.linux.uid_mappings, file.uid)?;
        let gid = id(&config.linux.gid_mappings, file.gid)?;
        std::os::unix::fs::chown(&file.at, Some(uid), Some(gid))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(file.mode);
        std::fs::set_permissions(&file.at, mode)?;
    }
    if extras.external.is_none() {
        return Ok(None);
    }
    std::fs::write(Placement::config_file(&memory), serde_json::to_vec(config)?)?;
    Ok(Some(memory))
}

/// Mounts the root and the throw-away overlays below the bundle's folder. Only this process
/// and its children see them.
fn mount_roots(
    config: &Config,
    extras: &Extras,
    rootfs: &Path,
    users: Option<&Users>,
) -> Result<Vec<PathBuf>, ContainerError> {
    let privileged = !config.process.no_new_privileges;
    match &extras.rootfs {
        RootfsEntry::Overlay(layers) => mount_overlay(layers, rootfs, privileged, users)?,
        RootfsEntry::Directory(path) => bind_root(path, rootfs, privileged, users)
            .doing(|| format!("bind the root `{}`", path.display()))?,
    }
    let mut mounted = vec![rootfs.to_owned()];
    for overlay in &extras.overlays {
        mount_overlay(&overlay.layers, &overlay.at, privileged, users)?;
        mounted.push(overlay.at.clone());
        if let Some((path, at)) = &overlay.part {
            let doing = || format!("open `{path}` in the overlay of a mount");
            mount_part(&overlay.at, path, at).doing(doing)?;
            mounted.push(at.clone());
        }
    }
    Ok(mounted)
}

/// Mounts a part of an overlay elsewhere. Whoever wrote into the overlay before may have put links
/// into it: no part of the path is one, so that it leads nowhere else.
fn mount_part(overlay: &Path, path: &str, at: &Path) -> std::io::Result<()> {
    use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
    use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(overlay, flags, Mode::empty())?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let part = rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve)?;
    let found = rustix::fs::statat(&part, "", AtFlags::EMPTY_PATH)?;
    match rustix::fs::FileType::from_raw_mode(found.st_mode) {
        rustix::fs::FileType::Directory => std::fs::create_dir(at)?,
        rustix::fs::FileType::RegularFile => drop(std::fs::File::create_new(at)?),
        _ => return Err(std::io::Error::other("it is neither a folder nor a file")),
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(&part, "", flags)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(&tree, "", rustix::fs::CWD, at, flags)?)
}

fn bind_root(
    path: &Path,
    rootfs: &Path,
    devices: bool,
    users: Option<&Users>,
) -> std::io::Result<()> {
    use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(rustix::fs::CWD, path, flags)?;
    let attributes =
        sandbox::MountAttributes { no_devices: !devices, ..sandbox::MountAttributes::default() };
    sandbox::set_mount_attributes(&tree, attributes)?;
    if let Some(files) = users.and_then(|users| users.files.as_ref()) {
        sandbox::translate_ids(&tree, files)?;
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(&tree, "", rustix::fs::CWD, rootfs, flags)?)
}

/// Before the helper enters the network namespace: the program works in the machine's.
fn start_uplink(
    config: &Config,
    extras: &Extras,
    folder: &Path,
) -> Result<Option<uplink::Running>, ContainerError> {
    let Some(uplink) = &extras.uplink else { return Ok(None) };
    let mut namespaces = config.linux.namespaces.iter();
    let network = namespaces.find(|namespace| namespace.kind == "network");
    let path = network.and_then(|namespace| namespace.path.as_deref());
    let path = path.ok_or("it has no namespace").doing(|| "find the network".to_owned())?;
    uplink::start(uplink, path, folder).map(Some)
}

fn run_init(
    config: &Config,
    extras: &Extras,
    rootfs: &Path,
    users: Option<&Users>,
    uplink: &mut Option<uplink::Running>,
    control: &UnixStream,
) -> Result<Ending, ContainerError> {
    enter_namespaces(config)?;
    if let Some(uplink) = uplink
        && !uplink.wait(control)?
    {
        return Ok(Ending::Signal(nix::libc::SIGKILL));
    }
    let (failure, failure_writer) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).doing(|| "make a pipe".to_owned())?;
    let (forked, joins) = fork(&extras.group)?;
    let child = match forked {
        sandbox::Forked::Parent(child) => child,
        sandbox::Forked::Child => {
            drop(failure);
            // Before anything of the image is looked at: through `/proc/self/fd` each open
            // folder of ours would be a way out.
            let mut kept = vec![&failure_writer];
            if let Some(users) = users {
                kept.push(&users.own);
                kept.extend(&users.files);
            }
            if sandbox::close_all_but(&kept).is_err() {
                std::process::exit(1);
            }
            let error = init::become_process(config, joins, rootfs, users, &failure_writer);
            tell_failure(failure_writer, error);
            std::process::exit(1);
        }
    };
    drop(failure_writer);
    follow(child, File::from(failure), control)
}

/// Tells when the init has become the container's process, and waits for its end; what comes
/// through `pipe` says what it could not do.
fn follow(child: Pid, mut pipe: File, control: &UnixStream) -> Result<Ending, ContainerError> {
    let doing = || "wait until the process has been executed".to_owned();
    let mut said = Vec::new();
    // Killed before that, it has said nothing.
    if read_to_end(&mut pipe, control, &mut said).doing(doing)? && said == init::EXECUTES {
        tell(control, &Message::Started).doing(doing)?;
    }
    let ending = wait(child, control)?;
    let rest = REPORT_SIZE_MAX.saturating_sub(said.len() as u64);
    pipe.take(rest).read_to_end(&mut said).doing(doing)?;
    match failure_of(&said) {
        Some(error) => Err(error),
        None => Ok(ending),
    }
}

/// Reads what the init writes until it closes the pipe, by its end or because it has become the
/// container's process; `false` if the server asks for its end before.
fn read_to_end(pipe: &mut File, control: &UnixStream, said: &mut Vec<u8>) -> std::io::Result<bool> {
    let mut part = [0; 4096];
    while (said.len() as u64) < REPORT_SIZE_MAX {
        if wait_readable(&*pipe, control)? == Woken::ByServer {
            return Ok(false);
        }
        match pipe.read(&mut part)? {
            0 => break,
            size => said.extend_from_slice(&part[..size]),
        }
    }
    Ok(true)
}

/// Forks, and says through which files the child still has to join its control groups.
fn fork(group: &Membership) -> Result<(sandbox::Forked, &[PathBuf]), ContainerError> {
    if let Some(folder) = &group.born_in {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = nix::fcntl::open(folder, flags, nix::sys::stat::Mode::empty())
            .doing(|| format!("open the control group `{}`", folder.display()))?;
        if let Ok(forked) = sandbox::fork_into(&folder) {
            return Ok((forked, &[]));
        }
    }
    let forked = sandbox::fork().doing(|| "fork".to_owned())?;
    Ok((forked, &group.joins))
}

/// Enters the namespaces that the init is born into, or that can be shared with the helper.
fn enter_namespaces(config: &Config) -> Result<(), ContainerError> {
    let mut flags = CloneFlags::empty();
    let mut new_network = false;
    for namespace in &config.linux.namespaces {
        match (namespace.kind.as_str(), &namespace.path) {
            ("pid", None) => flags |= CloneFlags::CLONE_NEWPID,
            ("ipc", None) => flags |= CloneFlags::CLONE_NEWIPC,
            ("uts", None) => flags |= CloneFlags::CLONE_NEWUTS,
            ("network", None) => {
                flags |= CloneFlags::CLONE_NEWNET;
                new_network = true;
            }
            ("network", Some(path)) => {
                let doing = || "enter the network namespace".to_owned();
                let file = File::open(path).doing(doing)?;
                setns(file, CloneFlags::CLONE_NEWNET).doing(doing)?;
            }
            // The init makes these itself, or enters what is there.
            ("mount" | "cgroup" | "user", None) => (),
            (kind, _) => {
                return Err(format!("the namespace `{kind}` is not supported"))
                    .doing(|| "make namespaces".to_owned());
            }
        }
    }
    unshare(flags).doing(|| "make namespaces".to_owned())?;
    if new_network {
        sandbox::loopback_up().doing(|| "set up the loopback device".to_owned())?;
        crate::network::allow_users().doing(|| "set up the network namespace".to_owned())?;
    }
    Ok(())
}

/// Waits for the end of `child`, and brings it about when the server asks or is gone.
fn wait(child: Pid, control: &UnixStream) -> Result<Ending, ContainerError> {
    let doing = || "wait for the process".to_owned();
    let process =
        rustix::process::Pid::from_raw(child.as_raw()).ok_or("no process").doing(doing)?;
    let handle =
        rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty()).doing(doing)?;
    if wait_readable(&handle, control).doing(doing)? == Woken::ByServer {
        let _ended = rustix::process::pidfd_send_signal(&handle, rustix::process::Signal::KILL);
    }
    loop {
        let status = match rustix::process::waitpid(Some(process), WaitOptions::empty()) {
            Ok(Some((_, status))) => status,
            Ok(None) | Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error).doing(doing),
        };
        if let Some(code) = status.exit_status() {
            return Ok(Ending::Code(code));
        }
        if let Some(signal) = status.terminating_signal() {
            return Ok(Ending::Signal(signal));
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Woken {
    ByProcess,
    ByServer,
}

/// Waits until the process behind `handle` ends or the control socket closes.
pub(super) fn wait_readable(handle: impl AsFd, control: &UnixStream) -> nix::Result<Woken> {
    loop {
        if let Some(woken) = look_readable(&handle, control, PollTimeout::NONE)? {
            return Ok(woken);
        }
    }
}

/// Waits so too, but not longer than some time, and perhaps less.
pub(super) fn look_readable(
    handle: impl AsFd,
    control: &UnixStream,
    wait: impl Into<PollTimeout>,
) -> nix::Result<Option<Woken>> {
    let mut files = [
        PollFd::new(handle.as_fd(), PollFlags::POLLIN),
        PollFd::new(control.as_fd(), PollFlags::POLLIN),
    ];
    match poll(&mut files, wait) {
        Err(nix::errno::Errno::EINTR) => return Ok(None),
        result => result?,
    };
    Ok(match files.map(|file| file.any() == Some(true)) {
        [true, _] => Some(Woken::ByProcess),
        [_, true] => Some(Woken::ByServer),
        _ => None,
    })
}

fn tell_failure(pipe: OwnedFd, error: ContainerError) {
    if let Ok(report) = serde_json::to_vec(&Report::Failed(error)) {
        // If even this fails, the helper sees an init that ended with 1.
        let _lost = File::from(pipe).write_all(&report);
    }
}

/// What the init could not do, by what it wrote; nothing once it has become the container's
/// process.
fn failure_of(said: &[u8]) -> Option<ContainerError> {
    if said.is_empty() || said == init::EXECUTES {
        return None;
    }
    Some(match serde_json::from_slice(said) {
        Ok(Report::Failed(error)) => error,
        _ => ContainerError::Setup {
            doing: "start the process".to_owned(),
            reason: "the helper does not understand its own report".to_owned(),
        },
    })
}
