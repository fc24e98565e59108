//! User namespaces, and mounts that translate ids by them.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::overlay::mount_overlay;
use super::report::Doing as _;
use super::sandbox::Keeper;
use crate::ContainerError;
use crate::bundle::OverlayLayers;
use crate::owner::Owner;
use crate::users::{IdMapping, MOUNTER, Mappings};

/// The ids of one container.
pub(crate) struct Users {
    /// What the process enters, last of all: everything is mounted by root of the machine.
    pub(crate) own: OwnedFd,
    /// What files are seen through, unless they have the container's ids. It knows root of the
    /// machine too, by whom an overlay makes what it needs itself.
    pub(crate) files: Option<OwnedFd>,
    /// The container's root.
    pub(crate) root: u32,
}

impl Users {
    /// Makes the namespaces that mappings ask for: none without.
    pub(super) fn make(
        uids: &[IdMapping],
        gids: &[IdMapping],
    ) -> Result<Option<Self>, ContainerError> {
        let Some(root) = uids.first().map(|mapping| mapping.host_id) else { return Ok(None) };
        let (uids, gids) = (map(uids), map(gids));
        let make = || -> io::Result<Self> {
            if root == 0 {
                let own = namespace(&start()?, &uids, &gids)?;
                return Ok(Self { own, files: None, root });
            }
            // Both start before either is needed.
            let keepers = [start()?, start()?];
            let own = namespace(&keepers[0], &uids, &gids)?;
            let mounter = format!("{MOUNTER} 0 1\n");
            let files = namespace(&keepers[1], &(uids + &mounter), &(gids + &mounter))?;
            Ok(Self { own, files: Some(files), root })
        };
        make().doing(|| "make a user namespace".to_owned()).map(Some)
    }
}

/// Mappings in the kernel's words.
fn map(mappings: &[IdMapping]) -> String {
    let lines = mappings.iter().map(|mapping| {
        let (inside, outside) = (mapping.container_id, mapping.host_id);
        format!("{inside} {outside} {}\n", mapping.size)
    });
    lines.collect()
}

pub(crate) fn start() -> io::Result<Keeper> {
    Keeper::start().map_err(|error| match error {
        Errno::ENOSPC => io::Error::other("`user.max_user_namespaces` does not allow more"),
        error => error.into(),
    })
}

/// Gives the keeper's user namespace its maps.
fn namespace(keeper: &Keeper, uids: &str, gids: &str) -> io::Result<OwnedFd> {
    let process = Path::new("/proc").join(keeper.process().to_string());
    fs::write(process.join("uid_map"), uids)?;
    fs::write(process.join("gid_map"), gids)?;
    Ok(File::open(process.join("ns/user"))?.into())
}

/// The argument that makes the helper try whether user namespaces work.
pub(super) const TRY_ARG: &str = "try-users";

/// Says whether containers can have ids of their own: the kernel may lack it, or forbid it, and
/// the file system that holds layers may not know mounts that translate. `helper` is started for
/// it, with a folder of its own on that file system.
pub(crate) fn try_out(helper: &Path, folder: &Path) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    // A process of the same number may have been killed here; the owner tells the next start.
    crate::remove_tree(folder).map_err(text)?;
    fs::create_dir_all(folder).map_err(text)?;
    fs::write(folder.join("owner"), Owner::current().to_string()).map_err(text)?;
    let output = helper_command(helper).arg(TRY_ARG).arg(folder).output();
    let _left_for_the_administrator = crate::remove_tree(folder);
    let output = output.map_err(text)?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

#[expect(clippy::disallowed_methods, reason = "this program itself")]
fn helper_command(helper: &Path) -> Command {
    let mut command = Command::new(helper);
    command.arg(crate::HELPER_ARG).env_clear().current_dir("/").stdin(Stdio::null());
    command
}

/// The helper's part of [`try_out`].
pub(super) fn try_here(folder: &Path) -> Result<(), ContainerError> {
    use std::os::unix::fs::MetadataExt as _;
    const BASE: u32 = 1_000_000_000;
    for name in ["lower", "upper", "work", "root"] {
        fs::create_dir(folder.join(name)).doing(|| format!("make the folder `{name}`"))?;
    }
    unshare(CloneFlags::CLONE_NEWNS).doing(|| "make a mount namespace".to_owned())?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .doing(|| "make mounts private".to_owned())?;
    let Mappings { uids, gids } = Mappings::range(BASE);
    let users = Users::make(&uids, &gids)?;
    let layers = OverlayLayers {
        lowers: vec![folder.join("lower")],
        upper: folder.join("upper"),
        work: folder.join("work"),
    };
    let root = folder.join("root");
    mount_overlay(&layers, &root, false, users.as_ref())?;
    let doing = || "translate ids".to_owned();
    fs::create_dir(root.join("x")).doing(doing)?;
    std::os::unix::fs::chown(root.join("x"), Some(BASE + 1), Some(BASE + 2)).doing(doing)?;
    let made = fs::symlink_metadata(folder.join("upper/x")).doing(doing)?;
    if (made.uid(), made.gid()) != (1, 2) {
        return Err("the file system does not do it").doing(doing);
    }
    Ok(())
}
