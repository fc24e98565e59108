//! Mounting overlays, with any number of layers that the kernel can stack.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use nix::mount::MsFlags;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::report::Doing as _;
use super::sandbox::translate_ids;
use super::users::Users;
use crate::ContainerError;
use crate::bundle::OverlayLayers;

/// What a directory that becomes a layer relies on: a changed file holds its data, and a
/// renamed directory its content. Kernels are configured differently, so nothing is left open.
fn fixed_options() -> [(&'static str, &'static str); 4] {
    // With marks of users only this is allowed.
    let redirect = if crate::is_rootless() { "nofollow" } else { "off" };
    [("metacopy", "off"), ("redirect_dir", redirect), ("index", "off"), ("xino", "off")]
}

/// Options without a value. Marks of an overlay are attributes that only root of the machine can
/// set, or else those of users.
fn flags() -> impl Iterator<Item = &'static str> {
    ["volatile"].into_iter().chain(crate::is_rootless().then_some("userxattr"))
}

/// Mounts an overlay of `layers` at `target`.
///
/// Device files do not work in it unless `devices`: an image may hold any.
///
/// Layers are handed over as names below `/proc/self/fd`, because the kernel bounds the length
/// of an option, and before Linux 6.5 that of all options together. This changes the working
/// directory of the process, which is why only the helper may call it.
pub(crate) fn mount_overlay(
    layers: &OverlayLayers,
    target: &Path,
    devices: bool,
    users: Option<&Users>,
) -> Result<(), ContainerError> {
    let files = users.and_then(|users| users.files.as_ref());
    let open = |path: &Path| {
        let opened = match files {
            None => open_layer(path),
            Some(files) => attach_layer(path, files, target),
        };
        opened.doing(|| format!("open layer `{}`", path.display()))
    };
    forget_volatile(&layers.work);
    let lowers = layers.lowers.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
    let name = |file: &OwnedFd| file.as_raw_fd().to_string();
    let mut names: Vec<String> = lowers.iter().map(name).collect();
    if let [only] = names.as_slice() {
        // A single layer without `lowerdir+` would be fine; the kernel wants no special case.
        names = vec![only.clone()];
    }
    let (_change, upper_and_work) = match files {
        None => {
            let (upper, work) = (open(&layers.upper)?, open(&layers.work)?);
            let names = [name(&upper), name(&work)];
            (vec![upper, work], names)
        }
        // The kernel wants both on one mount, and each copy is one of its own.
        Some(_) => {
            let (folder, upper, work) = siblings(layers).doing(|| "open the change".to_owned())?;
            let folder = open(folder)?;
            let names = [upper, work].map(|file| format!("{}/{file}", name(&folder)));
            (vec![folder], names)
        }
    };
    nix::unistd::chdir("/proc/self/fd").doing(|| "enter `/proc/self/fd`".to_owned())?;
    let mounted = takes_single_layers().and_then(|single| match single {
        true => mount_by_parts(&names, &upper_and_work, target, devices),
        false => mount_by_text(&names, &upper_and_work, target, devices),
    });
    nix::unistd::chdir("/").doing(|| "enter `/`".to_owned())?;
    let count = layers.lowers.len();
    mounted.doing(|| format!("mount an overlay of {count} layers at `{}`", target.display()))
}

fn open_layer(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens a copy of the mount that a layer is on, which translates ids. Before Linux 6.15 it has to
/// be attached somewhere to be taken; where the overlay comes to lie over it, nobody sees it.
fn attach_layer(path: &Path, files: &OwnedFd, target: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let layer = open_tree(rustix::fs::CWD, path, flags)?;
    translate_ids(&layer, files)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&layer, "", rustix::fs::CWD, target, flags)?;
    Ok(layer)
}

/// The folder of upper and work directory, and their names in it.
fn siblings(layers: &OverlayLayers) -> io::Result<(&Path, &str, &str)> {
    fn split(path: &Path) -> Option<(&Path, &str)> {
        Some((path.parent()?, path.file_name()?.to_str()?))
    }
    match (split(&layers.upper), split(&layers.work)) {
        (Some((folder, upper)), Some((other, work))) if folder == other => {
            Ok((folder, upper, work))
        }
        _ => Err(io::Error::other("upper and work directory are not in one folder")),
    }
}

/// A volatile overlay refuses a work directory that another one has used. After a clean end
/// the data is as good as any other; after a crash the caller throws upper and work away.
fn forget_volatile(work: &Path) {
    let _absent = std::fs::remove_dir_all(work.join("work/incompat"));
}

/// The new interface, Linux 6.7 and later: one option per layer.
fn mount_by_parts(
    lowers: &[String],
    [upper, work]: &[String; 2],
    target: &Path,
    devices: bool,
) -> io::Result<()> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let explain = |error: rustix::io::Errno| explained(&context, error);
    for lower in lowers {
        fsconfig_set_string(&context, "lowerdir+", lower).map_err(explain)?;
    }
    fsconfig_set_string(&context, "upperdir", upper).map_err(explain)?;
    fsconfig_set_string(&context, "workdir", work).map_err(explain)?;
    for (key, value) in fixed_options() {
        fsconfig_set_string(&context, key, value).map_err(explain)?;
    }
    for flag in flags() {
        fsconfig_set_flag(&context, flag).map_err(explain)?;
    }
    fsconfig_create(&context).map_err(explain)?;
    let attributes =
        if devices { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_NODEV };
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(&mount, "", rustix::fs::CWD, target, flags)?)
}

/// What the kernel wrote about a refused option, which says more than its number.
fn explained(context: &OwnedFd, error: rustix::io::Errno) -> io::Error {
    let mut message = [0; 512];
    match rustix::io::read(context, &mut message) {
        Ok(length) => {
            let message = String::from_utf8_lossy(&message[..length]);
            io::Error::other(format!("{error}: {}", message.trim().trim_start_matches("e ")))
        }
        Err(_) => error.into(),
    }
}

/// The interface of older kernels: all options in one page of text.
fn mount_by_text(
    lowers: &[String],
    [upper, work]: &[String; 2],
    target: &Path,
    devices: bool,
) -> io::Result<()> {
    let lowers = lowers.join(":");
    let mut options = format!("lowerdir={lowers},upperdir={upper},workdir={work}");
    for (key, value) in fixed_options() {
        options.push_str(&format!(",{key}={value}"));
    }
    for flag in flags() {
        options.push_str(&format!(",{flag}"));
    }
    if options.len() >= 4096 {
        return Err(io::Error::other("too many layers for a kernel before Linux 6.7"));
    }
    let flags = if devices { MsFlags::empty() } else { MsFlags::MS_NODEV };
    nix::mount::mount(Some("overlay"), target, Some("overlay"), flags, Some(options.as_str()))?;
    Ok(())
}

/// Says whether this kernel takes layers one by one.
pub(crate) fn takes_single_layers() -> io::Result<bool> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // Before Linux 6.5 any option is taken at first, and refused when it is mounted.
    if fsconfig_set_string(&context, "no-such-option", "0").is_ok() {
        return Ok(false);
    }
    let layer = File::open("/")?;
    let name = format!("/proc/self/fd/{}", layer.as_raw_fd());
    Ok(fsconfig_set_string(&context, "lowerdir+", name).is_ok())
}
