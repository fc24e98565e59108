//! The init: enters the container, gives up what it shall not have, and executes.
//!
//! The order matters. Mounts need every right; the resource limits, user and capabilities go
//! next; the filter of system calls comes last, since it forbids most of what came before.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::report::Doing as _;
use super::users::Users;
use super::{mounts, sandbox};
use crate::ContainerError;
use crate::bundle::{Config, Process};
use crate::seccomp::{self, Action, Comparison, Profile};
use crate::users::host_id;

const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// System calls from here on may be unknown to the profile because they are newer than it.
const NEWER_CALLS: std::ops::RangeInclusive<i64> = 450..=512;

/// What the init writes to its pipe when nothing is left to do but to execute. If the pipe ends
/// after it, that has been done; JSON may begin with it.
pub(super) const EXECUTES: &[u8] = b"\n";

/// Becomes the container's process. Returns only if that fails.
pub(super) fn become_process(
    config: &Config,
    joins: &[PathBuf],
    rootfs: &Path,
    users: Option<&Users>,
    pipe: &OwnedFd,
) -> ContainerError {
    match enter(config, joins, rootfs, users).and_then(|()| execute(config, users, pipe)) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn enter(
    config: &Config,
    joins: &[PathBuf],
    rootfs: &Path,
    users: Option<&Users>,
) -> Result<(), ContainerError> {
    die_with_helper()?;
    nix::unistd::setsid().doing(|| "start a session".to_owned())?;
    for file in joins {
        join(file).doing(|| format!("join a control group by `{}`", file.display()))?;
    }
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP)
        .doing(|| "make mount and cgroup namespaces".to_owned())?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .doing(|| "make mounts private".to_owned())?;
    // Modes below are meant as they are written.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    mounts::mount_all(config, rootfs, users)?;
    pivot(rootfs).doing(|| "change the root".to_owned())?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    nix::unistd::sethostname(&config.hostname).doing(|| "set the host name".to_owned())?;
    config.linux.readonly_paths.iter().try_for_each(|path| mounts::make_read_only(path))?;
    config.linux.masked_paths.iter().try_for_each(|path| mounts::mask(path))?;
    enter_cwd(&config.process.cwd, users.map_or(0, |users| users.root))
}

fn die_with_helper() -> Result<(), ContainerError> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).doing(|| "bind the process' life".to_owned())
}

fn join(file: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(b"0")
}

/// Makes `rootfs` the root, and lets go of the old one.
fn pivot(rootfs: &Path) -> nix::Result<()> {
    nix::unistd::chdir(rootfs)?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")
}

fn enter_cwd(cwd: &str, owner: u32) -> Result<(), ContainerError> {
    let doing = || format!("enter the working directory `{cwd}`");
    if let Err(Errno::ENOENT) = nix::unistd::chdir(cwd) {
        let folders: Vec<&Path> = Path::new(cwd).ancestors().collect();
        for folder in folders.into_iter().rev().filter(|folder| !folder.exists()) {
            DirBuilder::new().mode(0o755).create(folder).doing(doing)?;
            std::os::unix::fs::lchown(folder, Some(owner), Some(owner)).doing(doing)?;
        }
    }
    nix::unistd::chdir(cwd).doing(doing)?;
    // The kernel's own word: it says where a folder is that the root does not lead to.
    let reached = rustix::process::getcwd(Vec::new()).doing(doing)?;
    if !reached.to_bytes().starts_with(b"/") {
        return Err("it is outside of the container").doing(doing);
    }
    Ok(())
}

/// The type that has no value: what an execution that succeeds returns.
enum Never {}

fn execute(
    config: &Config,
    users: Option<&Users>,
    pipe: &OwnedFd,
) -> Result<Never, ContainerError> {
    let process = &config.process;
    let filters = match &config.linux.seccomp {
        Some(profile) => filters(profile).doing(|| "translate the seccomp profile".to_owned())?,
        None => Vec::new(),
    };
    limit_resources(process)?;
    own_output(config)?;
    if let Some(users) = users {
        // From here on every right is one over the container's own only.
        setns(&users.own, CloneFlags::CLONE_NEWUSER)
            .doing(|| "enter the user namespace".to_owned())?;
    }
    change_identity(process)?;
    // A change of the user forgets it.
    die_with_helper()?;
    sandbox::default_signals().doing(|| "reset signals".to_owned())?;
    sandbox::close_on_exec().doing(|| "close files".to_owned())?;
    if process.no_new_privileges {
        nix::sys::prctl::set_no_new_privs().doing(|| "give up new privileges".to_owned())?;
    }
    let program = Program::new(process)?;
    for filter in &filters {
        seccompiler::apply_filter(filter).doing(|| "load the seccomp filter".to_owned())?;
    }
    nix::unistd::write(pipe, EXECUTES).doing(|| "tell of the execution".to_owned())?;
    Err(program.execute())
}

fn limit_resources(process: &Process) -> Result<(), ContainerError> {
    for limit in &process.rlimits {
        let doing = || format!("set the limit `{}`", limit.name);
        let resource = resource(&limit.name).ok_or("unknown limit").doing(doing)?;
        setrlimit(resource, limit.soft, limit.hard)
            .map_err(|error| match getrlimit(resource) {
                Ok((_, hard)) if error == Errno::EPERM && limit.hard > hard => {
                    format!("only root of the machine may raise it above {hard}")
                }
                _ => error.to_string(),
            })
            .doing(doing)?;
    }
    Ok(())
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "RLIMIT_AS" => Resource::RLIMIT_AS,
        "RLIMIT_CORE" => Resource::RLIMIT_CORE,
        "RLIMIT_CPU" => Resource::RLIMIT_CPU,
        "RLIMIT_DATA" => Resource::RLIMIT_DATA,
        "RLIMIT_FSIZE" => Resource::RLIMIT_FSIZE,
        "RLIMIT_LOCKS" => Resource::RLIMIT_LOCKS,
        "RLIMIT_MEMLOCK" => Resource::RLIMIT_MEMLOCK,
        "RLIMIT_MSGQUEUE" => Resource::RLIMIT_MSGQUEUE,
        "RLIMIT_NICE" => Resource::RLIMIT_NICE,
        "RLIMIT_NOFILE" => Resource::RLIMIT_NOFILE,
        "RLIMIT_NPROC" => Resource::RLIMIT_NPROC,
        "RLIMIT_RSS" => Resource::RLIMIT_RSS,
        "RLIMIT_RTPRIO" => Resource::RLIMIT_RTPRIO,
        "RLIMIT_SIGPENDING" => Resource::RLIMIT_SIGPENDING,
        "RLIMIT_STACK" => Resource::RLIMIT_STACK,
        _ => return None,
    })
}

/// Takes the user, groups and capabilities of the specification.
fn change_identity(process: &Process) -> Result<(), ContainerError> {
    let owned = caps::read(None, CapSet::Permitted).doing(|| "read capabilities".to_owned())?;
    let wanted = |names: &[String]| -> Result<CapsHashSet, ContainerError> {
        let parsed = names.iter().map(|name| name.parse::<Capability>());
        let all: CapsHashSet =
            parsed.collect::<Result<_, _>>().doing(|| "read the capabilities".to_owned())?;
        Ok(all.intersection(&owned).copied().collect())
    };
    let bounding = wanted(&process.capabilities.bounding)?;
    let effective = wanted(&process.capabilities.effective)?;
    let permitted = wanted(&process.capabilities.permitted)?;

    let doing = || "drop capabilities".to_owned();
    let bound = caps::read(None, CapSet::Bounding).doing(doing)?;
    for capability in bound.difference(&bounding) {
        caps::drop(None, CapSet::Bounding, *capability).doing(doing)?;
    }
    nix::sys::prctl::set_keepcaps(true).doing(doing)?;
    let (uid, gid) = (Uid::from_raw(process.user.uid), Gid::from_raw(process.user.gid));
    let gids: Vec<Gid> = process.user.additional_gids.iter().copied().map(Gid::from_raw).collect();
    if !(gids.iter().all(|other| *other == gid) && groups_are_fixed()) {
        nix::unistd::setgroups(&gids).doing(|| "set the groups".to_owned())?;
    }
    nix::unistd::setresgid(gid, gid, gid).doing(|| format!("become group {gid}"))?;
    nix::unistd::setresuid(uid, uid, uid).doing(|| format!("become user {uid}"))?;
    nix::sys::prctl::set_keepcaps(false).doing(doing)?;
    caps::clear(None, CapSet::Ambient).doing(doing)?;
    caps::clear(None, CapSet::Inheritable).doing(doing)?;
    caps::set(None, CapSet::Effective, &effective).doing(doing)?;
    caps::set(None, CapSet::Permitted, &permitted).doing(doing)
}

/// Whether groups cannot be left: so it is for a user who has no other ids.
fn groups_are_fixed() -> bool {
    let allowed = std::fs::read_to_string("/proc/self/setgroups");
    allowed.is_ok_and(|text| text.trim() == "deny")
}

/// Gives the pipes of the output to the user, who may then open them by their names. Standard
/// input is a device file, which stays as it is.
fn own_output(config: &Config) -> Result<(), ContainerError> {
    let doing = || "give the user its output".to_owned();
    let user = host_id(&config.linux.uid_mappings, config.process.user.uid);
    let user = rustix::fs::Uid::from_raw(user.ok_or("no container has its id").doing(doing)?);
    let owned = rustix::fs::fchown(io::stdout(), Some(user), None)
        .and_then(|()| rustix::fs::fchown(io::stderr(), Some(user), None));
    owned.doing(doing)
}

/// Translates a profile into filters, in the order in which they are loaded.
///
/// One filter answers all its matches alike, so allowing and "no such call" are two. Where
/// both answer with an error, the kernel takes that of the filter loaded last.
fn filters(profile: &Profile) -> Result<Vec<BpfProgram>, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut allowed: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut refused: BTreeMap<u32, BTreeMap<i64, Vec<SeccompRule>>> = BTreeMap::new();
    for rule in &profile.syscalls {
        for number in rule.names.iter().filter_map(|name| seccomp::number(name)) {
            match rule.action {
                Action::Allow => {
                    let rules = allowed.entry(number).or_default();
                    if !rule.args.is_empty() {
                        rules.push(conditions(rule).map_err(|error| text(&error))?);
                    }
                }
                Action::Errno => {
                    let errno = rule.errno_ret.unwrap_or(profile.default_errno_ret);
                    refused.entry(errno).or_default().insert(number, Vec::new());
                    // The first filter must let it pass to the second.
                    allowed.entry(number).or_default();
                }
            }
        }
    }
    let unknown = refused.entry(libc::ENOSYS.unsigned_abs()).or_default();
    for number in NEWER_CALLS.filter(|number| !allowed.contains_key(number)) {
        unknown.insert(number, Vec::new());
    }
    let mut programs = vec![compile(
        allowed,
        SeccompAction::Errno(profile.default_errno_ret),
        SeccompAction::Allow,
    )?];
    for (errno, calls) in refused {
        programs.push(compile(calls, SeccompAction::Allow, SeccompAction::Errno(errno))?);
    }
    Ok(programs)
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matching: SeccompAction,
) -> Result<BpfProgram, String> {
    let architecture = std::env::consts::ARCH.try_into();
    let architecture =
        architecture.map_err(|error: seccompiler::BackendError| error.to_string())?;
    let filter = SeccompFilter::new(rules, otherwise, matching, architecture);
    filter.and_then(BpfProgram::try_from).map_err(|error| error.to_string())
}

fn conditions(rule: &seccomp::Rule) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions = rule.args.iter().map(|argument| {
        let (operator, value) = match argument.op {
            Comparison::Equal => (SeccompCmpOp::Eq, argument.value),
            Comparison::NotEqual => (SeccompCmpOp::Ne, argument.value),
            Comparison::MaskedEqual => (SeccompCmpOp::MaskedEq(argument.value), argument.value_two),
        };
        // The kernel looks at an `int` only, and so does the filter then.
        let length = if rule.names == ["socket"] {
            SeccompCmpArgLen::Dword
        } else {
            SeccompCmpArgLen::Qword
        };
        SeccompCondition::new(argument.index, length, operator, value)
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

/// A program with its arguments, ready to be executed without another allocation that could
/// need a forbidden system call.
struct Program {
    name: String,
    candidates: Vec<CString>,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    fn new(process: &Process) -> Result<Self, ContainerError> {
        let texts = |texts: &[String]| -> Result<Vec<CString>, ContainerError> {
            let texts = texts.iter().map(|text| CString::new(text.as_str()));
            texts.collect::<Result<_, _>>().doing(|| "read arguments".to_owned())
        };
        let name = process.args.first().cloned().unwrap_or_default();
        let path = process.env.iter().rev().find_map(|variable| variable.strip_prefix("PATH="));
        let candidates: Vec<String> = if name.contains('/') {
            vec![name.clone()]
        } else {
            let folders = path.unwrap_or(PATH_DEFAULT).split(':');
            let folders = folders.map(|folder| if folder.is_empty() { "." } else { folder });
            folders.map(|folder| format!("{folder}/{name}")).collect()
        };
        let (args, env) = (texts(&process.args)?, texts(&process.env)?);
        Ok(Self { name, candidates: texts(&candidates)?, args, env })
    }

    /// Tries each place of the search path, as a shell does.
    fn execute(self) -> ContainerError {
        let mut worst = Errno::ENOENT;
        if !self.name.is_empty() {
            for candidate in &self.candidates {
                let Err(error) = nix::unistd::execve(candidate, &self.args, &self.env);
                match error {
                    Errno::ENOENT | Errno::ENOTDIR => (),
                    Errno::EACCES => worst = error,
                    _ => {
                        worst = error;
                        break;
                    }
                }
            }
        }
        let reason = match worst {
            Errno::ENOEXEC => return ContainerError::NotForThisMachine { program: self.name },
            Errno::ENOENT if self.name.contains('/') => {
                "no such file, or its interpreter is missing".to_owned()
            }
            Errno::ENOENT => "it is not in `PATH`, or its interpreter is missing".to_owned(),
            Errno::EACCES => "permission denied".to_owned(),
            Errno::E2BIG => "arguments and environment are too long".to_owned(),
            other => other.desc().to_lowercase(),
        };
        ContainerError::CannotExecute { program: self.name, reason }
    }
}
