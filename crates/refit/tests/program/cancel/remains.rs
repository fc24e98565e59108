//! What a server has that it should not have when no run is under way.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use testkit::Server;

/// Folders of the data folder that are empty between runs.
const TEMPORARY: &[&str] =
    &["containers", "snapshots/changes", "snapshots/partial", "uploads", "workspaces/local"];

/// Leases that end by their time: of uploaded contexts as long as their addresses are valid, of
/// what came along for a day, and of what was pulled.
const KEPT: &[&str] = &["source/", "sent-by/", "layouts"];

/// A line for each thing: processes, mounts, control groups, networks, files and leases.
pub(crate) fn remains(server: &Server, data: &Path) -> Vec<String> {
    let mut left = Vec::new();
    left.extend(children(server.id()).map(|line| format!("process {line}")));
    left.extend(mounts(server.id(), data).map(|line| format!("mount {line}")));
    left.extend(groups(server.id()).map(|name| format!("control group {name}")));
    left.extend(networks(server.id()));
    left.extend(TEMPORARY.iter().flat_map(|folder| files(&data.join(folder))));
    left.extend(leases(data).map(|owner| format!("lease of {owner}")));
    left
}

pub(crate) fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Whether a process has this in its command line.
pub(crate) fn is_under_way(mark: &str) -> bool {
    processes().any(|process| command_line(process).contains(mark))
}

pub(crate) fn send(process: u32, signal: Signal) {
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, signal).unwrap();
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn command_line(process: u32) -> String {
    let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

/// Whatever the server has started, zombies too. The tree below it goes with its first process.
fn children(server: u32) -> impl Iterator<Item = String> {
    let parent = |process: u32| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    let children = processes().filter(move |process| parent(*process) == Some(server));
    children.map(|process| format!("{process} {}", command_line(process)))
}

fn mounts(server: u32, data: &Path) -> impl Iterator<Item = String> {
    let mounts = fs::read_to_string(format!("/proc/{server}/mountinfo")).unwrap();
    let data = data.display().to_string();
    let own = mounts.lines().filter(|line| line.contains(&data)).map(str::to_owned);
    own.collect::<Vec<_>>().into_iter()
}

/// Control groups that carry the server's number in their name.
fn groups(server: u32) -> impl Iterator<Item = String> {
    let mark = format!(".{server}.");
    let mut folders = vec![Path::new("/sys/fs/cgroup").to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.path().is_dir() && !entry.path().is_symlink()) {
            match entry.file_name().to_string_lossy().contains(&mark) {
                true => found.push(entry.path().display().to_string()),
                false => folders.push(entry.path()),
            }
        }
    }
    found.into_iter()
}

/// Namespaces that the server holds, and devices on its bridge.
fn networks(server: u32) -> Vec<String> {
    let open = fs::read_dir(format!("/proc/{server}/fd")).unwrap().flatten();
    let open = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    let open: Vec<String> = open.map(|target| target.display().to_string()).collect();
    let namespaces = open.iter().filter(|target| target.starts_with("net:["));
    let mut left: Vec<String> =
        namespaces.map(|namespace| format!("network namespace {namespace}")).collect();
    let bridge =
        open.iter().find_map(|target| target.split_once("/bridge-")?.1.strip_suffix(".lock"));
    if let Some(number) = bridge {
        let start = format!("refit{number}v");
        let devices = fs::read_dir("/sys/class/net").unwrap().flatten();
        let names = devices.map(|device| device.file_name().to_string_lossy().into_owned());
        left.extend(names.filter(|name| name.starts_with(&start)));
    }
    left
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| format!("file {}", entry.path().display())).collect()
}

/// Owners of leases in the database, but for those that are to outlive runs.
#[expect(clippy::disallowed_methods, reason = "looks into the database by other means")]
fn leases(data: &Path) -> impl Iterator<Item = String> {
    let mut sqlite = Command::new("sqlite3");
    sqlite
        .arg("-readonly")
        .args([data.join("refit.db").as_os_str(), OsStr::new("SELECT owner FROM leases")]);
    let output = sqlite.output().expect("the package sqlite3 is needed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let owners = String::from_utf8_lossy(&output.stdout).into_owned();
    let is_kept = |owner: &&str| KEPT.iter().any(|kept| owner.starts_with(kept));
    let left: Vec<String> =
        owners.lines().filter(|owner| !is_kept(owner)).map(str::to_owned).collect();
    left.into_iter()
}
