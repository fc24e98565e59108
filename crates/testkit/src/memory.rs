//! A control group that bounds the memory of a process.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Running;

/// Removed when dropped; the processes in it must be gone by then.
pub struct MemoryBound {
    folder: PathBuf,
}

impl MemoryBound {
    /// A group of at most `bytes`, page cache included. Needs root.
    #[track_caller]
    pub fn new(bytes: u64) -> Self {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let (parent, limit) = match v1.is_dir() {
            true => (v1, "memory.limit_in_bytes"),
            false => (Path::new("/sys/fs/cgroup"), "memory.max"),
        };
        let folder = parent.join(format!("refit-test-{}", std::process::id()));
        fs::create_dir(&folder).expect("root can make a control group");
        let bound = Self { folder };
        fs::write(bound.folder.join(limit), bytes.to_string()).expect("memory can be bounded");
        bound
    }

    /// Moves a process into the group. What it already has is not counted.
    #[track_caller]
    pub fn hold(&self, process: u32) {
        fs::write(self.folder.join("cgroup.procs"), process.to_string())
            .expect("a process can be moved");
    }
}

impl Drop for MemoryBound {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}

/// The most bytes that a process had resident so far.
#[track_caller]
pub fn peak_memory(process: u32) -> u64 {
    peak_so_far(process).expect("it is under way")
}

impl Running {
    /// The most bytes that it had resident, looked at until it ends.
    pub fn peak_memory(&self) -> u64 {
        let mut peak = 0;
        while let Some(bytes) = peak_so_far(self.id()) {
            peak = bytes;
            std::thread::sleep(Duration::from_millis(5));
        }
        peak
    }
}

/// The bytes that a process has resident.
#[track_caller]
pub fn resident_memory(process: u32) -> u64 {
    told(process, "VmRSS:").expect("it is under way")
}

/// Nothing when it has ended.
fn peak_so_far(process: u32) -> Option<u64> {
    told(process, "VmHWM:")
}

fn told(process: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib = line.trim().strip_suffix(" kB").expect("memory is told");
    Some(kib.parse::<u64>().expect("a number") << 10)
}
