//! Life without root: the whole program in a user namespace of its own.
//!
//! A user may make a user namespace, and is root in it: over mounts, processes and networks that
//! are made there, not over the machine's. [`enter`] makes one and takes this process into it, so
//! that all else goes on as for root. Id 0 is then the user, and the ids from 1 on are those that
//! `/etc/subuid` and `/etc/subgid` give to the user. The process keeps its number, its terminal
//! and its parent.
//!
//! The same holds wherever root is not that of the machine, as in an unprivileged LXC container.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Pid, User, getegid, geteuid};

use crate::linux::{Keeper, start_keeper};
use crate::program::program_files;
use crate::users::{IdMapping, Mappings};

/// The largest `/etc/subuid` that is read.
const SUBORDINATE_SIZE_MAX: u64 = 4 << 20;
/// Ranges of one user that are used; the kernel takes 340 lines.
const RANGES_MAX: usize = 300;

/// What the kernel says of ids that are nothing but the machine's.
const ALL_IDS: &str = "0 0 4294967295";

/// Becomes root of a new user namespace, if this process is not root. Call it before the process
/// has a second thread.
///
/// Where that is not possible nothing changes, and containers do not start.
pub fn enter() {
    if !geteuid().is_root()
        && let Err(error) = enter_new()
    {
        tracing::warn!(%error, "no user namespace can be made: `RUN` is not possible");
    }
}

fn enter_new() -> io::Result<()> {
    program_files()?;
    let (user, group) = (geteuid(), getegid());
    let keeper = match subordinate_namespace(user.as_raw(), group.as_raw()) {
        Ok(keeper) => keeper,
        Err(reason) => {
            tracing::warn!(reason, "files and processes can belong to root only");
            single_namespace(user.as_raw(), group.as_raw())?
        }
    };
    let namespace = File::open(process_file(keeper.process(), "ns/user"))?;
    setns(namespace, CloneFlags::CLONE_NEWUSER)?;
    drop(keeper);
    unshare(CloneFlags::CLONE_NEWNS)?;
    // What the machine mounts later is seen here, but not the other way round.
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    // Changing ids took it away, and with it the right to our own files below `/proc`.
    Ok(nix::sys::prctl::set_dumpable(true)?)
}

/// Whether root here is not root of the machine. What is found at the first call, after [`enter`],
/// holds from then on: this is asked for each attribute of a file.
pub fn is_rootless() -> bool {
    static IS_ROOTLESS: OnceLock<bool> = OnceLock::new();
    *IS_ROOTLESS.get_or_init(|| !ids().is_empty())
}

/// Which ids of the machine those of this process are, as text to compare with; empty if they
/// are the same.
pub fn ids() -> String {
    let map = |file: &str| fs::read_to_string(file).unwrap_or_default();
    ids_of(&map("/proc/self/uid_map"), &map("/proc/self/gid_map"))
}

fn ids_of(uids: &str, gids: &str) -> String {
    let plain = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    };
    let (uids, gids) = (plain(uids), plain(gids));
    if [&uids, &gids].iter().all(|map| map.is_empty() || **map == [ALL_IDS]) {
        return String::new();
    }
    format!("uids {}, gids {}\n", uids.join(" "), gids.join(" "))
}

/// The ids that there are in this process' own user namespace, each standing for itself.
pub(crate) fn own_mappings() -> Mappings {
    let read = |file: &str| same(&fs::read_to_string(file).unwrap_or_default());
    Mappings { uids: read("/proc/self/uid_map"), gids: read("/proc/self/gid_map") }
}

fn same(map: &str) -> Vec<IdMapping> {
    map.lines()
        .filter_map(|line| {
            let mut numbers = line.split_ascii_whitespace().map(|number| number.parse().ok());
            let (first, size) = (numbers.next()??, numbers.nth(1)??);
            Some(IdMapping { container_id: first, host_id: first, size })
        })
        .collect()
}

/// The last of the groups that there are from 0 on.
pub(crate) fn last_group() -> u32 {
    let mut gids = own_mappings().gids;
    gids.sort_by_key(|mapping| mapping.container_id);
    let end = gids.iter().fold(0, |end, mapping| match mapping.container_id == end {
        true => end.saturating_add(mapping.size),
        false => end,
    });
    end.saturating_sub(1)
}

/// Why there are no ids but that of the user, if it is so.
pub(crate) fn lacks_ids() -> Option<String> {
    let own = own_mappings();
    let count = |map: &[IdMapping]| map.iter().map(|mapping| u64::from(mapping.size)).sum::<u64>();
    if count(&own.uids) > 1 && count(&own.gids) > 1 {
        return None;
    }
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let user = map.split_ascii_whitespace().nth(1).and_then(|id| id.parse().ok());
    let missing = user.and_then(|user| subordinate_arguments(user, 0).err());
    Some(missing.unwrap_or_else(|| "`newuidmap` and `newgidmap` did not work".to_owned()))
}

/// A namespace with all ids that the user may have.
fn subordinate_namespace(user: u32, group: u32) -> Result<Keeper, String> {
    let commands = subordinate_arguments(user, group)?;
    let keeper = start_keeper().map_err(|error| error.to_string())?;
    for (program, arguments) in commands {
        let output = command(&program).arg(keeper.process().to_string()).args(arguments).output();
        let output = output.map_err(|error| format!("`{}`: {error}", program.display()))?;
        if !output.status.success() {
            let told = String::from_utf8_lossy(&output.stderr);
            return Err(format!("`{}` failed: {}", program.display(), told.trim()));
        }
    }
    Ok(keeper)
}

#[expect(clippy::disallowed_methods, reason = "only these programs may give a user more ids")]
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().current_dir("/").stdin(Stdio::null());
    command
}

/// The programs that write the maps, with their arguments but for the process.
fn subordinate_arguments(user: u32, group: u32) -> Result<[(PathBuf, Vec<String>); 2], String> {
    let name = User::from_uid(user.into()).ok().flatten().map(|user| user.name);
    let read = |program: &str, own: u32, file: &str| {
        let program = find_program(program).ok_or_else(|| {
            format!("`{program}` is not installed: it is in the package `uidmap`")
        })?;
        let mut text = String::new();
        let opened = File::open(file).map(|file| file.take(SUBORDINATE_SIZE_MAX));
        opened
            .and_then(|mut file| file.read_to_string(&mut text))
            .map_err(|error| format!("`{file}` cannot be read: {error}"))?;
        let ranges = ranges(&text, user, name.as_deref());
        if ranges.is_empty() {
            return Err(format!("`{file}` gives user {user} no ids"));
        }
        Ok((program, arguments(own, &ranges)))
    };
    Ok([read("newuidmap", user, "/etc/subuid")?, read("newgidmap", group, "/etc/subgid")?])
}

/// A program of the system.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let folders = ["/usr/local/bin", "/usr/bin", "/usr/sbin", "/bin", "/sbin"];
    folders.iter().map(|folder| Path::new(folder).join(name)).find(|program| program.is_file())
}

/// First id and count of each range that a file such as `/etc/subuid` gives to a user.
fn ranges(text: &str, user: u32, name: Option<&str>) -> Vec<(u32, u32)> {
    let id = user.to_string();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let owner = fields.next()?;
            let range = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            (owner == id || Some(owner) == name).then_some(range)
        })
        .filter(|(_, count)| *count > 0)
        .take(RANGES_MAX)
        .collect()
}

/// What the programs are told: inside, outside and count of each range.
fn arguments(own: u32, ranges: &[(u32, u32)]) -> Vec<String> {
    let mut all = vec![0, own, 1];
    let mut next: u32 = 1;
    for (first, count) in ranges {
        // Ids end before the highest number, which means none.
        let count = (*count).min(u32::MAX - 1 - next);
        if count > 0 {
            all.extend([next, *first, count]);
        }
        next += count;
    }
    all.iter().map(u32::to_string).collect()
}

/// A namespace with no ids but the user's own, which needs nobody's leave.
fn single_namespace(user: u32, group: u32) -> io::Result<Keeper> {
    let keeper = start_keeper()?;
    let write = |file, text: String| fs::write(process_file(keeper.process(), file), text);
    // Else a user could leave groups that take rights away.
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("0 {user} 1\n"))?;
    write("gid_map", format!("0 {group} 1\n"))?;
    Ok(keeper)
}

fn process_file(process: Pid, file: &str) -> PathBuf {
    Path::new("/proc").join(process.to_string()).join(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_of_the_machine_are_told_from_others() {
        let all = "         0          0 4294967295\n";
        assert_eq!(ids_of(all, all), "");
        assert_eq!(ids_of("", ""), "");
        let some = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!(ids_of(some, all), "uids 0 1000 1 1 100000 65536, gids 0 0 4294967295\n");
    }

    #[test]
    fn a_user_has_the_ranges_under_name_and_number() {
        let text = "ann:100000:65536\nbob:200000:10\n# x\n1001:5:x\n1001:300000:5\nbob:9:0\nbob\n";
        let ranges = ranges(text, 1001, Some("bob"));
        assert_eq!(ranges, [(200_000, 10), (300_000, 5)]);
        let arguments = arguments(1001, &ranges).join(" ");
        assert_eq!(arguments, "0 1001 1 1 200000 10 11 300000 5");
        assert_eq!(super::ranges(text, 7, None), []);
    }

    #[test]
    fn no_id_is_above_those_that_there_are() {
        let arguments = arguments(7, &[(1, u32::MAX), (2, 5)]).join(" ");
        assert_eq!(arguments, "0 7 1 1 1 4294967293");
    }
}
