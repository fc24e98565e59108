//! The few kernel calls that no crate wraps.
#![expect(unsafe_code, reason = "raw system calls; each block says why it is sound")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

/// Attributes to add to a mount and all mounts below it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct MountAttributes {
    pub(super) read_only: bool,
    pub(super) no_devices: bool,
    pub(super) no_setuid: bool,
    pub(super) no_execution: bool,
}

/// `mount_setattr(2)` on a detached mount tree.
pub(super) fn set_mount_attributes(tree: &OwnedFd, wanted: MountAttributes) -> io::Result<()> {
    let flag = |on: bool, flag: u64| if on { flag } else { 0 };
    let attributes = libc::mount_attr {
        attr_set: flag(wanted.read_only, libc::MOUNT_ATTR_RDONLY)
            | flag(wanted.no_devices, libc::MOUNT_ATTR_NODEV)
            | flag(wanted.no_setuid, libc::MOUNT_ATTR_NOSUID)
            | flag(wanted.no_execution, libc::MOUNT_ATTR_NOEXEC),
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    mount_setattr(tree, libc::AT_RECURSIVE, &attributes)
}

/// Lets files of a detached mount be seen with the ids that a user namespace has for those
/// stored. What is mounted below it stays as it is.
pub(super) fn translate_ids(tree: &OwnedFd, users: &OwnedFd) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(users.as_raw_fd().unsigned_abs()),
    };
    mount_setattr(tree, 0, &attributes)
}

fn mount_setattr(
    tree: &OwnedFd,
    flags: libc::c_int,
    attributes: &libc::mount_attr,
) -> io::Result<()> {
    // SAFETY: the path is a NUL-terminated constant, and the structure and its size are what
    // the kernel expects; it only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A view of the helper program through which it cannot be written.
///
/// A container can make the kernel execute the helper inside it (a script whose interpreter is
/// `/proc/self/exe`) and then open that program for writing, as CVE-2019-5736 showed. Started
/// through a read-only mount, the helper stays what it is.
pub(crate) fn read_only_copy(program: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, program, flags)?;
    let attributes =
        MountAttributes { read_only: true, no_devices: true, ..MountAttributes::default() };
    set_mount_attributes(&tree, attributes)?;
    Ok(tree)
}

/// Sets the loopback device of this network namespace up.
pub(super) fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the socket is open, and `SIOCSIFFLAGS` reads an `ifreq`, which this is.
    let result =
        unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets a child end when the helper does.
pub(super) fn die_with_parent(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt as _;
    let parent = nix::unistd::getpid();
    // SAFETY: the closure makes two system calls and touches no memory but its own; besides, the
    // helper has a single thread.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            match nix::unistd::getppid() == parent {
                true => Ok(()),
                false => Err(Errno::ESRCH.into()),
            }
        });
    }
}

/// A child made by [`fork`].
pub(super) enum Forked {
    Parent(Pid),
    Child,
}

/// Forks the helper; the child is born in the version 2 control group whose folder this is.
///
/// An error where the kernel is older than 5.7, or something keeps processes from this call.
pub(super) fn fork_into(group: &OwnedFd) -> nix::Result<Forked> {
    // What `libc` has of this name does not fit the type that it gives it.
    const CLONE_INTO_CGROUP: u64 = 1 << 33;
    // SAFETY: all-zero bytes are a valid `clone_args`.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    arguments.cgroup = u64::from(group.as_raw_fd().unsigned_abs());
    let size = size_of::<libc::clone_args>();
    // SAFETY: the kernel only reads the structure, whose size it is told. Without a stack and
    // flags that share something, the child goes on in a copy of this memory, as after `fork`;
    // what is said there of threads holds here.
    let child = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) };
    match Errno::result(child)? {
        0 => Ok(Forked::Child),
        child => {
            let child = libc::pid_t::try_from(child).map_err(|_too_large| Errno::ERANGE)?;
            Ok(Forked::Parent(Pid::from_raw(child)))
        }
    }
}

/// Forks the helper.
pub(super) fn fork() -> nix::Result<Forked> {
    // SAFETY: the helper has a single thread (it has just been executed and starts none), so
    // no lock can be held by a thread that the child lacks.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(Forked::Parent(child)),
        nix::unistd::ForkResult::Child => Ok(Forked::Child),
    }
}

/// A process that does nothing, in a user namespace of its own, until this is dropped.
///
/// It lives in our memory: to copy that, and clear the copy away, takes longer than all the rest.
pub(crate) struct Keeper {
    process: Pid,
    _stack: Vec<u8>,
}

impl Keeper {
    pub(super) fn start() -> nix::Result<Self> {
        const STACK_SIZE: usize = 64 << 10;
        let mut stack = vec![0_u8; STACK_SIZE];
        let flags = libc::CLONE_NEWUSER | libc::CLONE_VM | libc::SIGCHLD;
        let helper = std::ptr::without_provenance_mut(Pid::this().as_raw().unsigned_abs() as usize);
        // SAFETY: the end of the stack is aligned down to 16 bytes, and the stack is there until
        // `drop` has seen the end of the process. That one writes to nothing else: `keep` calls
        // what cannot fail, so not even `errno` is touched.
        let process = unsafe {
            let end = stack.as_mut_ptr().add(STACK_SIZE);
            libc::clone(keep, end.sub(end.addr() % 16).cast(), flags, helper)
        };
        Ok(Self { process: Pid::from_raw(Errno::result(process)?), _stack: stack })
    }

    pub(crate) fn process(&self) -> Pid {
        self.process
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ended_already = nix::sys::signal::kill(self.process, Signal::SIGKILL);
        while nix::sys::wait::waitpid(self.process, None) == Err(Errno::EINTR) {}
    }
}

/// Waits to be killed, by the helper or by its end.
extern "C" fn keep(helper: *mut libc::c_void) -> libc::c_int {
    // SAFETY: these calls take and give numbers only.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid().unsigned_abs() as usize == helper.addr() {
            libc::pause();
        }
    }
    0
}

/// Processor time of ended children, and the largest of them in bytes.
pub(super) fn children_usage() -> (u64, u64) {
    let Ok(usage) = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN)
    else {
        return (0, 0);
    };
    let microseconds = |time: nix::sys::time::TimeVal| {
        time.tv_sec().unsigned_abs() * 1_000_000 + time.tv_usec().unsigned_abs()
    };
    let cpu = microseconds(usage.user_time()) + microseconds(usage.system_time());
    (cpu, usage.max_rss().unsigned_abs() * 1024)
}

/// Gives signals their default meaning again: Rust programs ignore SIGPIPE, and a process
/// inherits what is ignored or blocked.
pub(super) fn default_signals() -> nix::Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        if !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            // SAFETY: the default action runs no code of ours.
            unsafe { sigaction(signal, &default) }?;
        }
    }
    SigSet::empty().thread_set_mask()
}

/// Closes every file above the standard three, except some. For a process that has just been
/// forked and lets nothing else go out of scope: the owners of these files are in its parent.
pub(super) fn close_all_but(kept: &[&OwnedFd]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept.iter().map(|file| file.as_raw_fd().unsigned_abs()).collect();
    kept.sort_unstable();
    let starts = std::iter::once(3).chain(kept.iter().map(|kept| kept + 1));
    let ends = kept.iter().map(|kept| kept - 1).chain([u32::MAX]);
    for (first, last) in starts.zip(ends) {
        if first > last {
            continue;
        }
        // SAFETY: the files' owners in this process are never used or dropped after a fork.
        let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Marks every open file above the standard three to be closed on execution.
pub(super) fn close_on_exec() -> io::Result<()> {
    // SAFETY: this flag closes nothing now, so no owner of a file is surprised.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// On the version 2 tree that the machine has, if only beside one of version 1.
    #[test]
    fn as_root_a_child_is_born_in_its_group() {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "));
        let point = mount.and_then(|line| line.split(' ').nth(4)).expect("a tree of version 2");
        let folder = Path::new(point).join(format!("refit-test-birth-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let group = OwnedFd::from(fs::File::open(&folder).unwrap());
        let child = match fork_into(&group).unwrap() {
            Forked::Parent(child) => child,
            // There are other threads: nothing else is safe here.
            Forked::Child => loop {
                nix::unistd::pause();
            },
        };
        let members = fs::read_to_string(folder.join("cgroup.procs")).unwrap();
        nix::sys::signal::kill(child, Signal::SIGKILL).unwrap();
        nix::sys::wait::waitpid(child, None).unwrap();
        fs::remove_dir(&folder).unwrap();
        assert_eq!(members, format!("{child}\n"));
    }
}
