//! Limits and accounts of a container: one control group of it own, in version 2 or 1.
//!
//! Groups lie below a folder `refit` and carry their owner in their name, so that a later
//! server finds what a killed one left behind. Those of containers that share a [`Bound`] lie in its
//! group.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bundle::Membership;
use crate::owner::Owner;
use crate::rootless::is_rootless;
use crate::{ContainerError, Limits, Usage};

const FOLDER: &str = "refit";

/// The group that a server moves to where its own has to be empty.
const SERVER_FOLDER: &str = "refit-server";

/// The period over which a processor limit is counted, in microseconds.
const CPU_PERIOD: u64 = 100_000;

/// How long a group may take to become empty after everything in it was killed.
const EMPTY_WAIT_MAX: Duration = Duration::from_secs(5);

/// How near to its limit a group was whose process the kernel killed for it.
const MEMORY_NEAR: u64 = 1 << 20;

const V1_CONTROLLERS: [&str; 4] = ["memory", "pids", "cpu", "cpuacct"];

/// The control groups of this machine.
#[derive(Debug, Clone)]
pub(crate) enum Hierarchy {
    /// One tree with all controllers; the folder that holds ours.
    V2(PathBuf),
    /// A tree per controller; each with the folder that holds ours.
    V1(Vec<(&'static str, PathBuf)>),
    None,
}

/// The control group of one container, or of those that share a bound.
#[derive(Debug)]
pub(crate) struct Group {
    hierarchy: Hierarchy,
    /// Relative to our folder.
    name: String,
}

/// What containers have together, of memory and processors. Gone when nobody holds it any more.
#[derive(Debug, Clone)]
pub struct Bound(Arc<BoundGroup>);

#[derive(Debug)]
struct BoundGroup(Group);

impl Bound {
    fn name(&self) -> &str {
        &self.0.0.name
    }
}

/// It is one and the same.
impl PartialEq for Bound {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Drop for BoundGroup {
    fn drop(&mut self) {
        self.0.remove_folders();
        self.0.remove_others();
    }
}

impl Hierarchy {
    /// Finds the trees, and where in them this process may make groups.
    pub(crate) fn detect() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let memberships = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let v1: Vec<_> = V1_CONTROLLERS
            .into_iter()
            .filter_map(|name| Some((name, v1_folder(name, &mounts, &memberships)?)))
            .collect();
        if v1.iter().any(|(name, _)| *name == "memory") {
            return Self::V1(v1);
        }
        match cgroup_mounts(&mounts).find(|(kind, _, _)| *kind == "cgroup2") {
            Some((_, point, _)) => Self::V2(v2_folder(point, &memberships, is_rootless())),
            None => Self::None,
        }
    }

    /// Makes the group of one container. Without a limit to enforce, a machine that lets us
    /// make none is fine, and there is `None`.
    pub(crate) fn make(
        &self,
        name: &str,
        limits: &Limits,
    ) -> Result<Option<Group>, ContainerError> {
        let wanted = limits.memory.is_some() || limits.pids.is_some() || limits.cpus.is_some();
        let group = self.group(name, limits.within.as_ref());
        match group.create(limits) {
            Ok(()) => Ok(Some(group)),
            Err(error) => {
                group.remove_folders();
                if wanted { Err(error) } else { Ok(None) }
            }
        }
    }

    fn group(&self, name: &str, within: Option<&Bound>) -> Group {
        let name = format!("{name}.{}", Owner::current());
        let name = within.map_or(name.clone(), |bound| format!("{}/{name}", bound.name()));
        Group { hierarchy: self.clone(), name }
    }

    /// Makes a bound.
    pub(crate) fn bound(&self, name: &str, limits: &Limits) -> Result<Bound, ContainerError> {
        // Removed also when that fails half way.
        let bound = Bound(Arc::new(BoundGroup(self.group(name, None))));
        bound.0.0.create(limits)?;
        Ok(bound)
    }

    /// Takes away the limits whose controllers no group can have here; gives these controllers.
    pub(crate) fn take_lacking(&self, limits: &mut Limits) -> Vec<&'static str> {
        let available = match self {
            Self::V2(folder) => {
                let file = folder.parent().unwrap_or(folder).join("cgroup.controllers");
                fs::read_to_string(file).unwrap_or_default()
            }
            Self::V1(folders) => {
                folders.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
            }
            Self::None => String::new(),
        };
        let is_lacking = |name| !available.split_whitespace().any(|available| available == name);
        let mut lacking = Vec::new();
        if limits.memory.is_some() && is_lacking("memory") {
            limits.memory = None;
            lacking.push("memory");
        }
        if limits.pids.is_some() && is_lacking("pids") {
            limits.pids = None;
            lacking.push("pids");
        }
        if limits.cpus.is_some() && is_lacking("cpu") {
            limits.cpus = None;
            lacking.push("cpu");
        }
        lacking
    }

    /// Says whether a group with these limits can be made, and removes what it made to see.
    pub(crate) fn try_out(&self, limits: &Limits) -> Result<(), ContainerError> {
        let absent: Vec<_> = self.folders().into_iter().filter(|folder| !folder.exists()).collect();
        let made = self.make("doctor", limits).map(|group| group.map(Group::remove));
        for folder in absent {
            // Fails where a server has come to use it.
            let _in_use = fs::remove_dir(folder);
        }
        made.map(drop)
    }

    /// Kills and removes the groups of owners that are no more.
    pub(crate) fn sweep(&self) {
        for folder in self.folders() {
            let Ok(entries) = fs::read_dir(folder) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name().into_string().unwrap_or_default();
                let owner = name.split_once('.').and_then(|(_, owner)| owner.parse::<Owner>().ok());
                if owner.is_some_and(|owner| !owner.is_alive()) {
                    empty(&entry.path());
                    remove(&entry.path());
                }
            }
        }
    }

    /// Removes groups of an owner that is no more, wherever it was when it made them; `list`
    /// is what [`Group::list`] gave.
    pub(crate) fn sweep_listed(&self, list: &str) {
        for group in list.lines().map(Path::new).filter(|group| group.is_dir()) {
            // One that shares a bound lies in its group.
            let mut folders = group.ancestors().skip(1).take(2);
            let Some(folder) = folders.find(|folder| folder.ends_with(FOLDER)) else { continue };
            empty(group);
            remove(group);
            if let Some(bound) = group.parent().filter(|parent| *parent != folder) {
                // Fails while others are in it.
                let _in_use = fs::remove_dir(bound);
            }
            let is_ours = match self {
                Self::V2(own) => own == folder,
                Self::V1(own) => own.iter().any(|(_, own)| own == folder),
                Self::None => false,
            };
            if !is_ours {
                // Fails while others have groups there.
                let _in_use = fs::remove_dir(folder);
            }
        }
    }

    /// The folders that hold the groups of all servers here.
    fn folders(&self) -> Vec<&PathBuf> {
        match self {
            Self::V2(folder) => vec![folder],
            Self::V1(folders) => folders.iter().map(|(_, folder)| folder).collect(),
            Self::None => Vec::new(),
        }
    }

    /// The version in words, for people.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::V2(folder) => {
                let controllers = fs::read_to_string(
                    folder.parent().unwrap_or(folder).join("cgroup.controllers"),
                );
                format!("version 2 with {}", controllers.unwrap_or_default().trim())
            }
            Self::V1(folders) => {
                let names: Vec<_> = folders.iter().map(|(name, _)| *name).collect();
                format!("version 1 with {}", names.join(", "))
            }
            Self::None => "none mounted".to_owned(),
        }
    }
}

/// Kind, mount point and options of each control group tree.
fn cgroup_mounts(mounts: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    mounts.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut filesystem = filesystem.split(' ');
        let kind = filesystem.next().filter(|kind| kind.starts_with("cgroup"))?;
        Some((kind, mount.split(' ').nth(4)?, filesystem.nth(1)?))
    })
}

/// Where we make version 2 groups: at the top of the tree, or without root in this process' own
/// group, which is the user's if any is.
fn v2_folder(point: &str, memberships: &str, rootless: bool) -> PathBuf {
    let own = memberships.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    // Where an earlier server went, to leave its group to others.
    let own = own.strip_suffix(SERVER_FOLDER).unwrap_or(own);
    let base = if rootless { Path::new(point).join(own) } else { PathBuf::from(point) };
    base.join(FOLDER)
}

/// Where we make version 1 groups of a controller: below this process' own group where that
/// is visible, so that a limit of the whole service stays in force.
fn v1_folder(controller: &str, mounts: &str, memberships: &str) -> Option<PathBuf> {
    let (_, point, _) = cgroup_mounts(mounts).find(|(kind, _, options)| {
        *kind == "cgroup" && options.split(',').any(|option| option == controller)
    })?;
    let own = memberships.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|name| name == controller).then_some(path)
    })?;
    let inside = Path::new(point).join(own.trim_start_matches('/'));
    let base = if inside.is_dir() { inside } else { PathBuf::from(point) };
    Some(base.join(FOLDER))
}

impl Group {
    fn create(&self, limits: &Limits) -> Result<(), ContainerError> {
        match &self.hierarchy {
            Hierarchy::V2(folder) => self.create_v2(folder, limits),
            Hierarchy::V1(folders) => self.create_v1(folders, limits),
            Hierarchy::None => Err(cannot("limit the process", "no control groups are mounted")),
        }
    }

    fn create_v2(&self, folder: &Path, limits: &Limits) -> Result<(), ContainerError> {
        let parent = folder.parent().unwrap_or(folder);
        make_folder(folder)?;
        for level in [parent, folder] {
            delegate(level, limits)?;
        }
        if let Some(bound) = self.bound_of() {
            delegate(&folder.join(bound), limits)?;
        }
        let group = folder.join(&self.name);
        make_folder(&group)?;
        if let Some(memory) = limits.memory {
            write(&group.join("memory.max"), &memory.to_string(), "memory")?;
            write_if_there(&group.join("memory.swap.max"), "0", "memory")?;
        }
        if let Some(pids) = limits.pids {
            write(&group.join("pids.max"), &pids.to_string(), "number of processes")?;
        }
        if let Some(quota) = quota(limits) {
            write(&group.join("cpu.max"), &format!("{quota} {CPU_PERIOD}"), "processor time")?;
        }
        Ok(())
    }

    fn create_v1(
        &self,
        folders: &[(&'static str, PathBuf)],
        limits: &Limits,
    ) -> Result<(), ContainerError> {
        for (controller, folder) in folders.iter().filter(|(name, _)| needed(name, limits)) {
            let group = folder.join(&self.name);
            make_folder(folder)?;
            if let Some(bound) = self.bound_of() {
                make_folder(&folder.join(bound))?;
            }
            make_folder(&group)?;
            match *controller {
                "memory" => limit_memory_v1(&group, limits)?,
                "pids" => {
                    if let Some(pids) = limits.pids {
                        write(&group.join("pids.max"), &pids.to_string(), "number of processes")?;
                    }
                }
                "cpu" => limit_cpu_v1(&group, limits)?,
                _ => (),
            }
        }
        let missing = |name| !folders.iter().any(|(present, _)| *present == name);
        for (wanted, name) in [
            (limits.memory.is_some(), "memory"),
            (limits.pids.is_some(), "pids"),
            (limits.cpus.is_some(), "cpu"),
        ] {
            if wanted && missing(name) {
                let reason = format!("the control group controller `{name}` is not mounted");
                return Err(cannot("limit the process", reason));
            }
        }
        Ok(())
    }

    /// The group of the bound that it shares.
    fn bound_of(&self) -> Option<&str> {
        self.name.split_once('/').map(|(bound, _)| bound)
    }

    /// The folders of this group, one a line; with those that an external runtime makes.
    pub(crate) fn list(&self, external: bool) -> String {
        let mut folders = self.folders();
        if external {
            folders.extend(self.others());
        }
        folders.iter().map(|folder| format!("{}\n", folder.display())).collect()
    }

    /// Where it lists its processes; each tree has the same ones.
    pub(crate) fn folder(&self) -> Option<PathBuf> {
        self.folders().into_iter().next()
    }

    /// The folders of this group that exist.
    fn folders(&self) -> Vec<PathBuf> {
        let all: Vec<PathBuf> = match &self.hierarchy {
            Hierarchy::V2(folder) => vec![folder.join(&self.name)],
            Hierarchy::V1(folders) => {
                folders.iter().map(|(_, folder)| folder.join(&self.name)).collect()
            }
            Hierarchy::None => Vec::new(),
        };
        all.into_iter().filter(|folder| folder.is_dir()).collect()
    }

    fn folder_of(&self, controller: &str) -> Option<PathBuf> {
        match &self.hierarchy {
            Hierarchy::V2(folder) => Some(folder.join(&self.name)),
            Hierarchy::V1(folders) => {
                let (_, folder) = folders.iter().find(|(name, _)| *name == controller)?;
                Some(folder.join(&self.name))
            }
            Hierarchy::None => None,
        }
    }

    /// How a process of one thread gets into the group.
    ///
    /// Before a process moves, the kernel waits for the end of all forks and executions on the
    /// machine, which takes it 10 to 20 ms. It spares that a thread that moves (in version 1)
    /// and a process that is born in the group (in version 2).
    pub(crate) fn membership(&self) -> Membership {
        let folders = self.folders();
        let joins = |file| folders.iter().map(|folder| folder.join(file)).collect();
        match self.hierarchy {
            Hierarchy::V1(_) => Membership { born_in: None, joins: joins("tasks") },
            Hierarchy::V2(_) | Hierarchy::None => {
                Membership { born_in: folders.first().cloned(), joins: joins("cgroup.procs") }
            }
        }
    }

    /// The path of a group below this one, as an external runtime wants it: relative to the
    /// mounts of the trees.
    pub(crate) fn path_for_external(&self) -> String {
        let root = if matches!(self.hierarchy, Hierarchy::V2(_)) { "/" } else { "" };
        format!("{root}{FOLDER}/{}/runtime", self.name)
    }

    /// Whether the kernel killed something in this group for want of memory.
    ///
    /// Groups that an external runtime makes count for themselves in version 1, and are gone by
    /// now; that all of the limit was ever used is then the best sign.
    pub(crate) fn ran_out_of_memory(&self, external: bool) -> bool {
        let Some(folder) = self.folder_of("memory") else { return false };
        let killed = |file: &str| field(&folder.join(file), "oom_kill").is_some_and(|n| n > 0);
        match self.hierarchy {
            Hierarchy::V2(_) => killed("memory.events"),
            _ if external => {
                let read = |file: &str| number(&folder.join(file));
                let used = read("memory.max_usage_in_bytes").zip(read("memory.limit_in_bytes"));
                used.is_some_and(|(used, limit)| used + MEMORY_NEAR > limit)
            }
            _ => killed("memory.oom_control"),
        }
    }

    pub(crate) fn usage(&self) -> Usage {
        let read = |controller: &str, file: &str| {
            self.folder_of(controller).and_then(|folder| number(&folder.join(file)))
        };
        match self.hierarchy {
            Hierarchy::V2(_) => {
                let folder = self.folder_of("cpu").unwrap_or_default();
                let microseconds = field(&folder.join("cpu.stat"), "usage_usec").unwrap_or(0);
                Usage {
                    cpu: Duration::from_micros(microseconds),
                    memory_peak: read("memory", "memory.peak").unwrap_or(0),
                    out_of_memory: false,
                }
            }
            _ => Usage {
                cpu: Duration::from_nanos(read("cpuacct", "cpuacct.usage").unwrap_or(0)),
                memory_peak: read("memory", "memory.max_usage_in_bytes").unwrap_or(0),
                out_of_memory: false,
            },
        }
    }

    /// Kills every process of the group.
    pub(crate) fn kill(&self) {
        self.folders().iter().for_each(|folder| kill_once(folder));
    }

    /// Kills what is left, and removes the group.
    pub(crate) fn remove(self) {
        self.remove_folders();
    }

    /// Removes what an external runtime has made of the group in trees that we do not use.
    pub(crate) fn remove_others(&self) {
        for folder in self.others().iter().filter(|folder| folder.is_dir()) {
            empty(folder);
            remove(folder);
        }
    }

    fn others(&self) -> Vec<PathBuf> {
        let Hierarchy::V1(_) = self.hierarchy else { return Vec::new() };
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let memberships = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let bases = cgroup_mounts(&mounts).filter_map(|(kind, point, options)| match kind {
            "cgroup" => options.split(',').find_map(|name| v1_folder(name, &mounts, &memberships)),
            // Of a machine with both: without controllers, but used.
            _ => {
                let own = memberships.lines().find_map(|line| line.strip_prefix("0::/"))?;
                Some(Path::new(point).join(own).join(FOLDER))
            }
        });
        bases.map(|base| base.join(&self.name)).collect()
    }

    fn remove_folders(&self) {
        for folder in self.folders() {
            empty(&folder);
            remove(&folder);
        }
    }
}

/// The processes of a group and of those that an external runtime made below it.
pub(crate) fn processes(group: &Path) -> Vec<String> {
    let groups = subfolders(group).into_iter().chain([group.to_owned()]);
    let members = groups.map(|group| fs::read_to_string(group.join("cgroup.procs")));
    // A group that is gone has none.
    members
        .flat_map(|text| text.unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

/// Joining a version 1 tree costs milliseconds; so only what is asked for, and what accounts.
fn needed(controller: &str, limits: &Limits) -> bool {
    match controller {
        "pids" => limits.pids.is_some(),
        "cpu" => limits.cpus.is_some() || limits.within.is_some(),
        _ => true,
    }
}

fn limit_memory_v1(group: &Path, limits: &Limits) -> Result<(), ContainerError> {
    let Some(memory) = limits.memory else { return Ok(()) };
    let memory = memory.to_string();
    // What is below counts too. It does anyway, or the kernel says that it is too late to ask.
    let _is_so = write_if_there(&group.join("memory.use_hierarchy"), "1", "memory");
    write(&group.join("memory.limit_in_bytes"), &memory, "memory")?;
    // Memory and swap together: without it, swap would be on top.
    write_if_there(&group.join("memory.memsw.limit_in_bytes"), &memory, "memory")
}

fn limit_cpu_v1(group: &Path, limits: &Limits) -> Result<(), ContainerError> {
    let Some(quota) = quota(limits) else { return Ok(()) };
    write(&group.join("cpu.cfs_period_us"), &CPU_PERIOD.to_string(), "processor time")?;
    write(&group.join("cpu.cfs_quota_us"), &quota.to_string(), "processor time")
}

/// Microseconds of processor time per period.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the limit was checked to lie between 0.01 and 4096"
)]
fn quota(limits: &Limits) -> Option<u64> {
    limits.cpus.map(|cpus| ((cpus * CPU_PERIOD as f64) as u64).max(1000))
}

/// Lets groups below `folder` use the controllers we limit and account with.
fn delegate(folder: &Path, limits: &Limits) -> Result<(), ContainerError> {
    let available = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
    for (controller, needed) in [
        ("memory", limits.memory.is_some()),
        ("pids", limits.pids.is_some()),
        ("cpu", limits.cpus.is_some()),
    ] {
        // A user is often given some of them only.
        if available.split_whitespace().any(|name| name == controller) {
            delegate_one(folder, controller)?;
        } else if needed {
            let reason = format!(
                "the control group controller `{controller}` is not available in `{}`",
                folder.display()
            );
            return Err(cannot("limit the process", reason));
        }
    }
    Ok(())
}

fn delegate_one(folder: &Path, controller: &str) -> Result<(), ContainerError> {
    let file = folder.join("cgroup.subtree_control");
    let wanted = format!("+{controller}");
    match fs::write(&file, &wanted) {
        Ok(()) => Ok(()),
        // Inside a container the visible root holds processes, which forbids it.
        Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => {
            leave(folder)?;
            write(&file, &wanted, "use of control groups")
        }
        Err(error) => {
            let reason = format!("{error} on `{}`", file.display());
            Err(cannot("delegate control groups", reason))
        }
    }
}

/// Moves this server from `folder` to a group below it.
fn leave(folder: &Path) -> Result<(), ContainerError> {
    let own = folder.join(SERVER_FOLDER);
    make_folder(&own)?;
    write(&own.join("cgroup.procs"), &std::process::id().to_string(), "move of the server")
}

fn make_folder(folder: &Path) -> Result<(), ContainerError> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            let doing = format!("make the control group `{}`", folder.display());
            Err(cannot(doing, error.to_string()))
        }
        _ => Ok(()),
    }
}

fn write(file: &Path, value: &str, what: &str) -> Result<(), ContainerError> {
    fs::write(file, value).map_err(|error| {
        cannot(format!("limit the {what}"), format!("{error} on `{}`", file.display()))
    })
}

fn write_if_there(file: &Path, value: &str, what: &str) -> Result<(), ContainerError> {
    if file.exists() { write(file, value, what) } else { Ok(()) }
}

fn cannot(doing: impl Into<String>, reason: impl Into<String>) -> ContainerError {
    ContainerError::Setup { doing: doing.into(), reason: reason.into() }
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The number after `key` in a file of `key number` lines.
fn field(file: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(name, _)| *name == key)?.1.trim().parse().ok()
}

fn kill_once(folder: &Path) {
    if fs::write(folder.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    for child in subfolders(folder) {
        kill_once(&child);
    }
    let members = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    for pid in members.lines().filter_map(|line| line.parse().ok()) {
        let _ended_already = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn is_empty(folder: &Path) -> bool {
    fs::read_to_string(folder.join("cgroup.procs")).is_ok_and(|members| members.is_empty())
        && subfolders(folder).iter().all(|child| is_empty(child))
}

/// Kills until nothing is left; forking goes on meanwhile, but not as fast.
fn empty(folder: &Path) {
    let started = Instant::now();
    while !is_empty(folder) && started.elapsed() < EMPTY_WAIT_MAX {
        kill_once(folder);
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn remove(folder: &Path) {
    for child in subfolders(folder) {
        remove(&child);
    }
    let started = Instant::now();
    // The last process leaves its group a moment after it was waited for.
    while let Err(error) = fs::remove_dir(folder) {
        if error.kind() == io::ErrorKind::NotFound || started.elapsed() > EMPTY_WAIT_MAX {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_root_groups_are_made_where_the_user_may() {
        let own = "12:misc:/\n0::/user.slice/user@1000.service/app.slice/refit.service\n";
        let place = |memberships, rootless| v2_folder("/sys/fs/cgroup", memberships, rootless);
        let expected = "/sys/fs/cgroup/user.slice/user@1000.service/app.slice/refit.service/refit";
        assert_eq!(place(own, true), Path::new(expected));
        assert_eq!(place(own, false), Path::new("/sys/fs/cgroup/refit"));
        assert_eq!(place("0::/a/refit-server\n", true), Path::new("/sys/fs/cgroup/a/refit"));
        assert_eq!(place("", true), Path::new("/sys/fs/cgroup/refit"));
    }

    /// On a copy of what systemd gives its users, since few test machines have version 2.
    #[test]
    fn a_user_without_all_controllers_gets_the_limits_that_are_there() {
        let tree = tempfile::tempdir().unwrap();
        let folder = tree.path().join(FOLDER);
        let group = folder.join("box");
        fs::create_dir_all(&group).unwrap();
        for level in [tree.path(), &folder] {
            fs::write(level.join("cgroup.controllers"), "memory pids\n").unwrap();
        }
        fs::write(group.join("memory.swap.max"), "max\n").unwrap();
        let read = |file: &str| fs::read_to_string(group.join(file)).unwrap_or_default();

        let made = Group { hierarchy: Hierarchy::V2(folder.clone()), name: "box".to_owned() };
        let limits = Limits { memory: Some(64 << 20), pids: Some(100), ..Limits::default() };
        made.create(&limits).unwrap();
        assert_eq!(read("memory.max"), "67108864");
        assert_eq!(read("memory.swap.max"), "0");
        assert_eq!(read("pids.max"), "100");
        assert_eq!(read("cpu.max"), "");
        let limits = Limits { cpus: Some(1.5), ..Limits::default() };
        let error = made.create(&limits).unwrap_err().to_string();
        assert!(error.contains("the control group controller `cpu` is not available"), "{error}");
        let mut possible =
            Limits { memory: Some(1), pids: Some(2), cpus: Some(1.5), ..Limits::default() };
        assert_eq!(made.hierarchy.take_lacking(&mut possible), ["cpu"]);
        assert_eq!((possible.memory, possible.pids, possible.cpus), (Some(1), Some(2), None));
        assert_eq!(Hierarchy::None.take_lacking(&mut possible), ["memory", "pids"]);

        for level in [tree.path(), &folder] {
            fs::write(level.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        }
        made.create(&limits).unwrap();
        assert_eq!(read("cpu.max"), "150000 100000");
        // In what it shares with others, which hands the controllers on.
        let bound = Group { hierarchy: Hierarchy::V2(folder.clone()), name: "run".to_owned() };
        bound.create(&limits).unwrap();
        fs::write(folder.join("run/cgroup.controllers"), "cpu memory pids\n").unwrap();
        let inner = Group { hierarchy: bound.hierarchy.clone(), name: "run/box".to_owned() };
        inner.create(&Limits { memory: Some(1 << 20), ..Limits::default() }).unwrap();
        let read_in = |file: &str| fs::read_to_string(folder.join("run").join(file)).unwrap();
        assert_eq!(read_in("cpu.max"), "150000 100000");
        assert_eq!(read_in("box/memory.max"), "1048576");
        assert_eq!(read_in("cgroup.subtree_control"), "+cpu");
        let joins = vec![group.join("cgroup.procs")];
        assert_eq!(made.membership(), Membership { born_in: Some(group.clone()), joins });
    }
}
