//! A control group that bounds the memory of a process.

use std::fs;
use std::path::{Path, PathBuf};

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
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it is under way");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).expect("a peak is told");
    kib.parse::<u64>().expect("a number") << 10
}
