//! The mounts of a configuration, carried out inside the init's mount namespace.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::points;
use super::report::Doing as _;
use super::root::{self, Missing};
use super::sandbox::{MountAttributes, set_mount_attributes, translate_ids};
use super::users::Users;
use crate::ContainerError;
use crate::bundle::{Config, Device, MountEntry, TRANSLATED};

/// The device files of every container. Each is bound from the host by itself, so that
/// device files which the process makes do not work.
const DEVICE_FILES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

const DEVICE_LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "dev/fd"),
    ("/proc/self/fd/0", "dev/stdin"),
    ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"),
    ("pts/ptmx", "dev/ptmx"),
];

/// Mounts everything below `rootfs`, in order.
pub(super) fn mount_all(
    config: &Config,
    rootfs: &Path,
    users: Option<&Users>,
) -> Result<(), ContainerError> {
    let privileged = !config.linux.devices.is_empty();
    let owner = users.map_or(0, |users| users.root);
    for entry in &config.mounts {
        let mounted = match entry.is_bind() {
            true => bind(entry, rootfs, users),
            false => mount_filesystem(entry, rootfs, privileged, owner),
        };
        mounted.map_err(|error| {
            points::explain(entry, &format!("mount `{}` at", entry.source), error)
        })?;
        if entry.destination == "/dev" {
            fill_dev(rootfs, &config.linux.devices, owner).doing(|| "fill `/dev`".to_owned())?;
        }
    }
    Ok(())
}

fn mount_filesystem(
    entry: &MountEntry,
    rootfs: &Path,
    privileged: bool,
    owner: u32,
) -> io::Result<()> {
    let target = root::find(rootfs, &entry.destination, Missing::Directory, owner)?;
    points::check(entry, &target)?;
    let (mut flags, data) = options(&entry.options);
    if entry.destination == "/dev" && !privileged {
        flags |= MsFlags::MS_NODEV;
    }
    let path = fd_path(&target.file);
    let data = (!data.is_empty()).then_some(data.as_str());
    mount(Some(entry.source.as_str()), path.as_str(), Some(entry.kind.as_str()), flags, data)?;
    Ok(())
}

/// Splits mount options into flags and what the filesystem itself understands.
fn options(options: &[String]) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match option.as_str() {
            "rw" | "dev" => (),
            "ro" => flags |= MsFlags::MS_RDONLY,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "strictatime" => flags |= MsFlags::MS_STRICTATIME,
            other => data.push(other),
        }
    }
    (flags, data.join(","))
}

fn bind(entry: &MountEntry, rootfs: &Path, users: Option<&Users>) -> io::Result<()> {
    let has = |option: &str| entry.options.iter().any(|present| present == option);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, entry.source.as_str(), flags)?;
    let attributes = MountAttributes {
        read_only: has("ro"),
        no_devices: has("nodev"),
        no_setuid: has("nosuid"),
        no_execution: has("noexec"),
    };
    set_mount_attributes(&tree, attributes)?;
    if let Some(files) = users.and_then(|users| users.files.as_ref()).filter(|_| has(TRANSLATED)) {
        translate_ids(&tree, files)?;
    }
    let owner = users.map_or(0, |users| users.root);
    let target = root::find(rootfs, &entry.destination, points::missing_kind(entry), owner)?;
    points::check(entry, &target)?;
    attach(&tree, &target.file)
}

fn attach(tree: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", target, "", flags)?)
}

fn fill_dev(rootfs: &Path, devices: &[Device], owner: u32) -> io::Result<()> {
    for name in DEVICE_FILES {
        let source = format!("/dev/{name}");
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, source.as_str(), flags)?;
        // Writing to a device works all the same; changing its owner or mode does not.
        let read_only = MountAttributes { read_only: true, ..MountAttributes::default() };
        set_mount_attributes(&tree, read_only)?;
        let target = root::find(rootfs, &source, Missing::File, owner)?;
        attach(&tree, &target.file)?;
        if name == "null" {
            // The process may change what it has open too, so this is not the host's. Later the
            // name may lead elsewhere: an image chooses where links below `/etc` point.
            nix::unistd::dup2_stdin(File::open(fd_path(&tree))?)?;
        }
    }
    for device in devices {
        make_device(rootfs, device)?;
    }
    for (target, link) in DEVICE_LINKS {
        std::os::unix::fs::symlink(target, rootfs.join(link))?;
        std::os::unix::fs::lchown(rootfs.join(link), Some(owner), Some(owner))?;
    }
    Ok(())
}

/// Makes a device file of the machine for a privileged process. `/dev` is an empty tmpfs of
/// ours at this point, so its paths can be trusted.
fn make_device(rootfs: &Path, device: &Device) -> io::Result<()> {
    let relative = device.path.trim_start_matches('/');
    let path = rootfs.join(relative);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let kind = if device.kind == "b" { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
    let mode = Mode::from_bits_truncate(device.file_mode);
    let number = nix::sys::stat::makedev(device.major.into(), device.minor.into());
    nix::sys::stat::mknod(&path, kind, mode, number)?;
    std::os::unix::fs::chown(&path, Some(device.uid), Some(device.gid))
}

/// Hides `path` of the new root: an empty directory or `/dev/null` lies over it.
pub(super) fn mask(path: &str) -> Result<(), ContainerError> {
    let doing = || format!("mask `{path}`");
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).doing(doing),
        Ok(metadata) if metadata.is_dir() => {
            let data = Some("size=0,nr_inodes=1");
            mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_RDONLY, data).doing(doing)
        }
        Ok(_) => {
            // That of the container, which is read-only already; a bind is so by itself.
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let tree = open_tree(CWD, "/dev/null", flags).doing(doing)?;
            let read_only = MountAttributes { read_only: true, ..MountAttributes::default() };
            set_mount_attributes(&tree, read_only).doing(doing)?;
            move_mount(&tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).doing(doing)
        }
    }
}

/// Makes `path` of the new root read-only, with all below it.
pub(super) fn make_read_only(path: &str) -> Result<(), ContainerError> {
    let doing = || format!("make `{path}` read-only");
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = match open_tree(CWD, path, flags) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        result => result.doing(doing)?,
    };
    let attributes = MountAttributes { read_only: true, ..MountAttributes::default() };
    set_mount_attributes(&tree, attributes).doing(doing)?;
    move_mount(&tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).doing(doing)
}

fn fd_path(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}
