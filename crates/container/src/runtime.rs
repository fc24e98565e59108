//! Starts containers and sees them to their end.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use tokio::io::{
    AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines, Take,
};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf, pipe};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bundle::{self, Membership, Placement};
use crate::cgroup::{Bound, Group, Hierarchy};
use crate::disk::{self, Disk};
use crate::hosts::Hosts;
use crate::linux::{self, Ending, Message, Report};
use crate::network::{self, Bridge, Endpoint, Namespace, Outlet, Subnet};
use crate::owner::Owner;
use crate::users::{IDS_MAX, Mappings, Range, Ranges};
use crate::{
    Exit, Limits, Network, OutputSink, PeerNetwork, ProcessSpec, Stream, User, output, process,
    rootless,
};

/// How containers are run on this machine.
#[derive(Debug, Clone)]
pub struct RuntimeSettings {
    /// Empty: the embedded runtime.
    pub external: Option<ExternalRuntime>,
    /// The program that becomes the helper: this binary, started with [`HELPER_ARG`] first.
    pub helper: PathBuf,
    /// Folder for bundles and sockets of running containers.
    pub state_dir: PathBuf,
    /// Address range of the bridge that isolated networks hang on.
    pub subnet: String,
    /// Whether root in a container is nobody on the machine, where that is possible. Not with an
    /// external runtime.
    pub user_namespaces: bool,
    /// Bytes that containers leave free where their state is: while there are fewer, the one that has
    /// written the most is ended. At most a twentieth of the file system.
    pub disk_reserve: u64,
}

/// An OCI runtime such as runc or runsc.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ExternalRuntime {
    pub program: PathBuf,
    /// What comes before its command, such as `--platform=ptrace`.
    pub arguments: Vec<String>,
}

/// First argument that makes the binary a helper.
pub const HELPER_ARG: &str = "sandbox-helper";

/// How long a helper may take to end after it was told to.
const HELPER_END_WAIT: Duration = Duration::from_secs(10);

/// The most that a helper reports.
const REPORT_SIZE_MAX: u64 = 64 << 10;

#[derive(Debug, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ContainerError {
    /// The image has no such program, or it cannot be executed.
    #[error("`{program}` cannot be executed: {reason}")]
    CannotExecute { program: String, reason: String },
    /// It is a program for another processor, or damaged.
    #[error("`{program}` is not a program for this machine")]
    NotForThisMachine { program: String },
    /// What is to be mounted does not fit the image's files.
    #[error("nothing can be mounted at `{path}`: {reason}")]
    Image { path: String, reason: String },
    /// Where it may connect to is bounded, and that cannot be had.
    #[error("where the command may connect to is bounded: {reason}")]
    Unbounded { reason: String },
    #[error("could not {doing}: {reason}")]
    Setup { doing: String, reason: String },
}

/// What a container used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    pub cpu: Duration,
    /// Peak memory in bytes, where the kernel tells.
    pub memory_peak: u64,
    /// The kernel killed a process for want of memory, though perhaps not the first one.
    pub out_of_memory: bool,
}

/// Runs containers. Cheap to share by reference; one per server.
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    settings: RuntimeSettings,
    subnet: Subnet,
    hierarchy: Hierarchy,
    /// The helper program, seen through a read-only mount where the kernel can do that.
    helper: Option<OwnedFd>,
    bridge: tokio::sync::OnceCell<Arc<Bridge>>,
    disk: Disk,
    users: tokio::sync::Mutex<Users>,
    /// Whether root here is not root of the machine, with whose rights containers are made.
    is_rootless: bool,
    /// Supervisors that are not at their end.
    supervisors: TaskTracker,
}

/// Whether containers can have user ids of their own.
#[derive(Default)]
enum Users {
    #[default]
    Untried,
    Ours(Arc<Ranges>),
    /// The cause may pass, so it is tried again after a while.
    Refused(Instant),
}

/// How long containers run without ids of their own before that is tried again.
const USERS_RETRY: Duration = Duration::from_secs(60);

impl Runtime {
    /// Prepares the state folder, and sweeps what a killed server left behind: processes and
    /// control groups, folders, bridges and firewall rules. The own bridge is made when the first
    /// isolated container starts.
    pub async fn new(settings: RuntimeSettings) -> Result<Self, ContainerError> {
        let subnet = settings
            .subnet
            .parse()
            .map_err(|reason: String| setup("use the setting for the isolated network", reason))?;
        let state_dir = settings.state_dir.clone();
        process::path_text(&state_dir)?;
        process::path_text(&settings.helper)?;
        DirBuilder::new().recursive(true).mode(0o700).create(&state_dir).map_err(|error| {
            setup(format!("make the state folder `{}`", state_dir.display()), error)
        })?;
        let hierarchy = blocking(move || {
            let hierarchy = Hierarchy::detect();
            // Processes first, since they may use the folders.
            hierarchy.sweep();
            sweep_folders(&state_dir, &hierarchy);
            Ok(hierarchy)
        })
        .await?;
        network::sweep().await;
        let helper = linux::read_only_copy(&settings.helper);
        if let Err(error) = &helper {
            tracing::warn!(%error, "the helper is not protected against being overwritten");
        }
        let helper = helper.ok();
        let (bridge, users) = (tokio::sync::OnceCell::new(), tokio::sync::Mutex::default());
        let supervisors = TaskTracker::new();
        let disk = Disk::new(settings.state_dir.clone(), settings.disk_reserve);
        let is_rootless = rootless::is_rootless();
        let inner = Inner {
            settings,
            subnet,
            hierarchy,
            helper,
            bridge,
            disk,
            users,
            is_rootless,
            supervisors,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Why containers run without some of these limits, if they do. Without root that is no
    /// reason to refuse them.
    pub fn unlimited(&self, limits: &Limits) -> Option<String> {
        let mut possible = Limits { pids: None, ..limits.clone() };
        if !self.inner.is_rootless || (possible.memory, possible.cpus) == (None, None) {
            return None;
        }
        let lacking = self.inner.hierarchy.take_lacking(&mut possible);
        match self.inner.hierarchy.try_out(&possible) {
            Err(error) => {
                Some(format!("memory and processor time of containers are not limited: {error}"))
            }
            Ok(()) if lacking.is_empty() => None,
            Ok(()) => Some(format!(
                "some limits of containers do not hold: this user's control groups lack `{}`",
                lacking.join("`, `")
            )),
        }
    }

    /// Makes a bound for containers that are to have memory and processors together, where this user
    /// can have such limits. `name` is one of a folder, without dots.
    pub fn bound(&self, name: &str, limits: &Limits) -> Result<Option<Bound>, ContainerError> {
        let hierarchy = &self.inner.hierarchy;
        if !self.inner.is_rootless {
            return hierarchy.bound(name, limits).map(Some);
        }
        let mut possible = limits.clone();
        hierarchy.take_lacking(&mut possible);
        Ok(hierarchy.bound(name, &possible).ok())
    }

    /// Makes a network for containers that are to reach each other, which no others see.
    pub async fn peer_network(&self) -> Result<PeerNetwork, ContainerError> {
        PeerNetwork::make(self.inner.subnet).await
    }

    /// Runs one process to its end. Dropping the future kills it.
    ///
    /// The container is made, watched and cleared away by a worker of its own, so that this
    /// happens in full also when the future is dropped at any point.
    pub async fn run(
        &self,
        spec: &ProcessSpec,
        output: &dyn OutputSink,
        cancel: &CancellationToken,
    ) -> Result<(Exit, Usage), ContainerError> {
        process::check(spec)?;
        if cancel.is_cancelled() {
            return Ok((Exit::Canceled, Usage::default()));
        }
        let dropped = CancellationToken::new();
        let _canceled_with_this_future = dropped.clone().drop_guard();
        let (started, pipes) = oneshot::channel();
        let worker = Supervisor {
            inner: Arc::clone(&self.inner),
            spec: spec.clone(),
            cancel: cancel.clone(),
            dropped,
        };
        let ended = self.inner.supervisors.spawn(worker.run(started));
        // No pipes: the start failed, and `ended` says why.
        if let Ok(pipes) = pipes.await {
            self.pass_on(pipes, output).await;
        }
        match ended.await {
            Ok(result) => {
                let (exit, usage, refused) = result?;
                if !refused.is_empty() {
                    output.write(Stream::Stderr, refused_names(&refused).into()).await;
                }
                Ok((exit, usage))
            }
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => Err(setup("watch the container", error)),
            },
        }
    }

    /// Tells the start of a container and hands over its output. What another runtime says of the
    /// start is not waited for: it may have something to say itself.
    async fn pass_on(&self, pipes: Pipes, output: &dyn OutputSink) {
        let started = async {
            if pipes.executed.await.is_ok() {
                output.started().await;
            }
        };
        let forwarded = async {
            tokio::join!(
                output::forward(pipes.stdout, Stream::Stdout, output),
                output::forward(pipes.stderr, Stream::Stderr, output),
            );
        };
        match self.inner.settings.external {
            Some(_) => {
                tokio::join!(started, forwarded);
            }
            None => {
                started.await;
                forwarded.await;
            }
        }
    }

    /// Waits until nothing is left of containers whose futures were dropped. A program that
    /// ends before leaves their control groups and folders to its next start.
    pub async fn idle(&self) {
        // Only of what waits here: containers are started as before.
        self.inner.supervisors.close();
        self.inner.supervisors.wait().await;
    }
}

/// The ends of a container's output that we read, and where we hear of its start; nothing comes
/// if there is none.
struct Pipes {
    executed: oneshot::Receiver<()>,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
}

/// Makes, watches and clears away one container.
struct Supervisor {
    inner: Arc<Inner>,
    spec: ProcessSpec,
    cancel: CancellationToken,
    dropped: CancellationToken,
}

/// What one container holds, in the order in which it is given back.
struct Holdings {
    endpoint: Option<Endpoint>,
    group: Option<Group>,
    range: Option<Range>,
    folder: PathBuf,
}

/// Why a container is ended before its time.
#[derive(Debug, Clone, Copy)]
enum Stopped {
    TimedOut,
    Canceled,
    /// For what it wrote.
    Full(Exit),
}

impl Supervisor {
    async fn run(
        mut self,
        started: oneshot::Sender<Pipes>,
    ) -> Result<(Exit, Usage, Vec<String>), ContainerError> {
        let folder = self.make_folder()?;
        let mut holdings = Holdings { endpoint: None, group: None, range: None, folder };
        let result = self.run_in(&mut holdings, started).await;
        let refused = holdings.endpoint.as_ref().map(Endpoint::refused).unwrap_or_default();
        // Given back before the caller hears of the end: then nothing of it is left.
        let external = self.inner.settings.external.is_some();
        let cleared = blocking(move || {
            drop(holdings.endpoint);
            if let Some(group) = holdings.group {
                if external {
                    group.remove_others();
                }
                group.remove();
            }
            remove_folder(&holdings.folder);
            Ok(())
        });
        cleared.await?;
        result.map(|(exit, usage)| (exit, usage, refused))
    }

    fn make_folder(&self) -> Result<PathBuf, ContainerError> {
        let folder = self.inner.settings.state_dir.join(&self.spec.name);
        let made = DirBuilder::new().mode(0o700).create(&folder);
        let made = made.and_then(|()| {
            fs::write(folder.join("owner"), Owner::current().to_string())?;
            fs::create_dir(Placement::rootfs(&folder))
        });
        match made {
            Ok(()) => Ok(folder),
            Err(error) => {
                Err(setup(format!("make the bundle folder `{}`", folder.display()), error))
            }
        }
    }

    async fn run_in(
        &mut self,
        holdings: &mut Holdings,
        started: oneshot::Sender<Pipes>,
    ) -> Result<(Exit, Usage), ContainerError> {
        if self.inner.is_rootless
            && let Some(ExternalRuntime { program, .. }) = &self.inner.settings.external
        {
            let reason = "without root only the embedded runtime works";
            return Err(setup(format!("use `{}`", program.display()), reason));
        }
        holdings.endpoint = self.attach().await?;
        if self.inner.is_rootless {
            let pids = self.spec.limits.pids;
            let limits = &mut self.spec.limits;
            if self.inner.hierarchy.take_lacking(limits).contains(&"pids") {
                bound_processes(limits, pids)?;
            }
        }
        holdings.group = match self.inner.hierarchy.make(&self.spec.name, &self.spec.limits) {
            Err(_) if self.inner.is_rootless => {
                let pids = self.spec.limits.pids;
                bound_processes(&mut self.spec.limits, pids)?;
                None
            }
            made => made?,
        };
        if let Some(group) = &holdings.group {
            let listed = fs::write(
                holdings.folder.join(GROUPS_FILE),
                group.list(self.inner.settings.external.is_some()),
            );
            listed.map_err(|error| setup("note the control groups".to_owned(), error))?;
        }
        if self.inner.is_rootless
            && let Some(id) = rootless::own_mappings().lacking(&self.spec.user)
        {
            let reason = format!("the id {id} of its user is none of those that there are here");
            return Err(setup("accept the process", reason));
        }
        holdings.range = self.take_range().await?;
        let limit = self.spec.limits.disk.clone();
        let before = match limit.size_max {
            Some(_) => blocking(move || Ok(Disk::before(&limit))).await?,
            None => 0,
        };
        self.write_bundle(holdings)?;
        let (executed, is_executed) = oneshot::channel();
        let (helper, mut control, pipes) = self.start_helper(&holdings.folder, is_executed)?;
        // The receiver is gone if the future was dropped, which `dropped` tells us below.
        let _dropped = started.send(pipes);
        // A helper that is gone says so by the end of the socket, which is watched next.
        let _gone = control.write_all(&bundle::private_bytes(&self.spec)).await;
        let (reports, control) = Reports::new(control, executed);
        let group = holdings.group.as_ref();
        let disk = self.inner.disk.watch(&self.spec, group.and_then(Group::folder), before);
        let (report, stopped) = self.watch(helper, reports, control, group, disk).await?;
        self.conclude(report, stopped, holdings.group.as_ref())
    }

    /// The container's network, unless it is the machine's, or so empty that the helper makes it.
    async fn attach(&self) -> Result<Option<Endpoint>, ContainerError> {
        let egress = &self.spec.limits.egress;
        let is_isolated = self.spec.network == Network::Isolated && !egress.is_closed();
        if !is_isolated && self.spec.peers.is_none() && self.spec.service.is_none() {
            return Ok(None);
        }
        let namespace = network::make_namespace().await?;
        let (outlet, device) = match is_isolated {
            true => (Some(self.lead_out(&namespace).await?), "eth1"),
            false => (None, "eth0"),
        };
        let member = match &self.spec.peers {
            Some(peers) => Some(peers.network.join(&namespace, device).await?),
            None => None,
        };
        let service = match &self.spec.service {
            Some(service) => Some(network::start(service, &namespace).await?),
            None => None,
        };
        Ok(Some(Endpoint::new(namespace, outlet, member, service)))
    }

    async fn lead_out(&self, namespace: &Namespace) -> Result<Outlet, ContainerError> {
        let egress = &self.spec.limits.egress;
        if self.inner.is_rootless && !egress.is_open() {
            let reason = "a server without root has only the bound `none`".to_owned();
            return Err(ContainerError::Unbounded { reason });
        }
        if self.inner.is_rootless {
            return network::attach_user(namespace).await;
        }
        let bridge = self
            .inner
            .bridge
            .get_or_try_init(|| async { Bridge::open(self.inner.subnet).await.map(Arc::new) });
        bridge.await?.attach(namespace, egress).await
    }

    fn has_user_namespace(&self) -> bool {
        let settings = &self.inner.settings;
        settings.user_namespaces && settings.external.is_none() && !self.spec.privileged
    }

    /// User ids for a container that is not to have the machine's.
    async fn take_range(&self) -> Result<Option<Range>, ContainerError> {
        let settings = &self.inner.settings;
        if self.inner.is_rootless || !self.has_user_namespace() {
            return Ok(None);
        }
        let mut users = self.inner.users.lock().await;
        let is_due = match &*users {
            Users::Untried => true,
            Users::Ours(_) => false,
            Users::Refused(at) => at.elapsed() >= USERS_RETRY,
        };
        if is_due {
            let folder = settings.state_dir.join(format!("try-{}", std::process::id()));
            let helper = settings.helper.clone();
            let claimed = blocking(move || {
                let tried = linux::try_users(&helper, &folder);
                Ok(tried.and_then(|()| Ranges::claim().map_err(|error| error.to_string())))
            });
            *users = match claimed.await? {
                Ok(ranges) => Users::Ours(Arc::new(ranges)),
                Err(reason) => {
                    tracing::warn!(reason, "containers run without user namespaces");
                    Users::Refused(Instant::now())
                }
            };
        }
        let Users::Ours(ranges) = &*users else { return Ok(None) };
        let User { uid, gid, additional_gids } = &self.spec.user;
        match [uid, gid].into_iter().chain(additional_gids).find(|id| **id >= IDS_MAX) {
            Some(id) => {
                let reason = format!("the id {id} of its user is above {}", IDS_MAX - 1);
                Err(setup("accept the process", reason))
            }
            None => ranges.take().map(Some),
        }
    }

    fn write_bundle(&self, holdings: &Holdings) -> Result<(), ContainerError> {
        let folder = &holdings.folder;
        let group = holdings.group.as_ref();
        let external = self.inner.settings.external.clone();
        let ids = match &holdings.range {
            Some(range) => Mappings::range(range.base()),
            // A user's ids are too few to divide, and their files cannot be seen through others.
            None if self.inner.is_rootless => rootless::own_mappings(),
            None => Mappings::default(),
        };
        let place = Placement {
            folder: folder.clone(),
            network_namespace: holdings.endpoint.as_ref().map(Endpoint::namespace_path),
            // An external runtime joins by itself, below our group.
            group: match external {
                None => group.map(Group::membership).unwrap_or_default(),
                Some(_) => Membership::default(),
            },
            user_namespace: holdings.range.is_some()
                || (self.inner.is_rootless && self.has_user_namespace()),
            uplink: holdings.endpoint.as_ref().and_then(|endpoint| endpoint.uplink().cloned()),
            ids,
            rootless: self.inner.is_rootless,
            cgroups_path: external.as_ref().and(group).map(Group::path_for_external),
            external,
        };
        let (config, extras) = bundle::describe(&self.spec, &place)?;
        let doing = || format!("write the bundle `{}`", folder.display());
        let written = || -> io::Result<()> {
            for overlay in &extras.overlays {
                fs::create_dir(&overlay.at)?;
            }
            if extras.has_private() {
                fs::create_dir(Placement::files(folder))?;
            }
            self.write_hosts(holdings)?;
            fs::write(folder.join("resolv.conf"), name_servers(holdings.endpoint.as_ref()))?;
            fs::write(Placement::config_file(folder), serde_json::to_vec(&config)?)?;
            fs::write(Placement::extras_file(folder), serde_json::to_vec(&extras)?)
        };
        written().map_err(|error| setup(doing(), error))
    }

    /// The container's `/etc/hosts`; from now on its peers know of it.
    fn write_hosts(&self, holdings: &Holdings) -> io::Result<()> {
        let endpoint = holdings.endpoint.as_ref();
        let hosts = Hosts::new(&self.spec, endpoint.and_then(Endpoint::address));
        let file = holdings.folder.join("hosts");
        match (endpoint.and_then(Endpoint::member), &self.spec.peers) {
            (Some(member), Some(peers)) => member.announce(&peers.names, hosts, &file),
            _ => fs::write(file, hosts.text(&[])),
        }
    }

    fn start_helper(
        &self,
        folder: &Path,
        executed: oneshot::Receiver<()>,
    ) -> Result<(Child, UnixStream, Pipes), ContainerError> {
        let doing = || format!("start the helper `{}`", self.inner.settings.helper.display());
        let start = || -> io::Result<_> {
            let (control, helper_control) = std::os::unix::net::UnixStream::pair()?;
            control.set_nonblocking(true)?;
            let (stdout, stdout_writer) = io::pipe()?;
            let (stderr, stderr_writer) = io::pipe()?;
            let mut command = self.helper_command();
            command.arg(folder);
            command
                .stdin(OwnedFd::from(helper_control))
                .stdout(stdout_writer)
                .stderr(stderr_writer);
            let child = command.spawn()?;
            let receiver = |pipe: io::PipeReader| pipe::Receiver::from_owned_fd(pipe.into());
            let pipes = Pipes { executed, stdout: receiver(stdout)?, stderr: receiver(stderr)? };
            Ok((child, UnixStream::from_std(control)?, pipes))
        };
        start().map_err(|error| setup(doing(), error))
    }

    #[expect(clippy::disallowed_methods, reason = "this is how `container` runs untrusted code")]
    fn helper_command(&self) -> Command {
        let settings = &self.inner.settings;
        let mut command = match &self.inner.helper {
            // Still open in the child until it is executed.
            Some(file) => Command::new(format!("/proc/self/fd/{}", file.as_raw_fd())),
            None => Command::new(&settings.helper),
        };
        command.as_std_mut().arg(HELPER_ARG).env_clear().current_dir("/");
        // Keys pressed at the server's terminal are the server's.
        command.process_group(0);
        std::os::unix::process::CommandExt::arg0(command.as_std_mut(), "refit-sandbox");
        command
    }

    /// Waits for the helper's report, telling it to end the container if something asks for it.
    async fn watch(
        &self,
        mut helper: Child,
        mut reports: Reports,
        mut control: OwnedWriteHalf,
        group: Option<&Group>,
        disk: Option<disk::Watch>,
    ) -> Result<(Report, Option<Stopped>), ContainerError> {
        let timeout = async {
            match self.spec.limits.timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        let full = async {
            match &disk {
                Some(disk) => disk.full().await,
                None => std::future::pending().await,
            }
        };
        let mut last = None;
        let stopped = tokio::select! {
            biased;
            report = reports.last() => {
                last = Some(report);
                None
            }
            () = self.cancel.cancelled() => Some(Stopped::Canceled),
            () = self.dropped.cancelled() => Some(Stopped::Canceled),
            () = timeout => Some(Stopped::TimedOut),
            exit = full => Some(Stopped::Full(exit)),
        };
        if stopped.is_some() {
            // The helper sees the end of its input, and kills. Its report still comes back.
            let _helper_gone = control.shutdown().await;
        }
        let report = tokio::time::timeout(HELPER_END_WAIT, async {
            let report = match last {
                Some(report) => report,
                None => reports.last().await,
            };
            let _status = helper.wait().await;
            report
        });
        let report = report.await;
        if !matches!(report, Ok(Some(_))) {
            let _gone_already = helper.start_kill();
            if let Some(group) = group {
                group.kill();
            }
            let _status = helper.wait().await;
        }
        match report {
            Ok(Some(report)) => Ok((report, stopped)),
            _ => Err(setup("watch the container", "its helper died")),
        }
    }

    fn conclude(
        &self,
        report: Report,
        stopped: Option<Stopped>,
        group: Option<&Group>,
    ) -> Result<(Exit, Usage), ContainerError> {
        let external = self.inner.settings.external.is_some();
        let (ending, mut usage) = match report {
            Report::Failed(error) => return Err(error),
            Report::Ended { ending, cpu_microseconds, memory_peak } => {
                let cpu = Duration::from_micros(cpu_microseconds);
                (ending, Usage { cpu, memory_peak, out_of_memory: false })
            }
        };
        if let Some(counted) = group.map(Group::usage) {
            usage.cpu = usage.cpu.max(counted.cpu);
            usage.memory_peak = usage.memory_peak.max(counted.memory_peak);
        }
        usage.out_of_memory = group.is_some_and(|group| group.ran_out_of_memory(external));
        const KILLED: i32 = nix::libc::SIGKILL;
        // A shell reports the death of its child as a code.
        let killed = matches!(ending, Ending::Signal(KILLED) | Ending::Code(137));
        let exit = match (stopped, ending) {
            (Some(Stopped::TimedOut), _) => Exit::TimedOut,
            (Some(Stopped::Canceled), _) => Exit::Canceled,
            (Some(Stopped::Full(exit)), _) => exit,
            _ if killed && usage.out_of_memory => Exit::OutOfMemory,
            (None, Ending::Code(code)) => Exit::Code(code),
            (None, Ending::Signal(signal)) => Exit::Signal(signal),
        };
        Ok((exit, usage))
    }
}

/// What comes from a helper.
struct Reports {
    lines: Lines<BufReader<Take<OwnedReadHalf>>>,
    executed: Option<oneshot::Sender<()>>,
}

impl Reports {
    /// The other half tells the helper to end the container when it is shut down.
    fn new(control: UnixStream, executed: oneshot::Sender<()>) -> (Self, OwnedWriteHalf) {
        let (reading, writing) = control.into_split();
        let lines = BufReader::new(reading.take(REPORT_SIZE_MAX)).lines();
        (Self { lines, executed: Some(executed) }, writing)
    }

    /// The last report, or nothing if the helper has none; tells the start when it hears of it.
    /// Nothing is lost if this is given up and called again.
    async fn last(&mut self) -> Option<Report> {
        loop {
            match serde_json::from_str(&self.lines.next_line().await.ok()??).ok()? {
                Message::Over(report) => return Some(report),
                Message::Started => {
                    // The receiver is gone if the future was dropped.
                    let _dropped = self.executed.take().map(|executed| executed.send(()));
                }
            }
        }
    }
}

/// Bounds the number of processes where there is no control group for it: for each of the
/// container's users, since that is how the kernel counts then.
fn bound_processes(limits: &mut Limits, pids: Option<u32>) -> Result<(), ContainerError> {
    let Some(pids) = pids else { return Ok(()) };
    if limits.ulimits.iter().any(|(name, ..)| name == "nproc") {
        return Ok(());
    }
    let (_, own) = getrlimit(Resource::RLIMIT_NPROC)
        .map_err(|error| setup("read the limit of processes", error))?;
    let pids = u64::from(pids).min(own);
    limits.ulimits.push(("nproc".to_owned(), pids, pids));
    Ok(())
}

/// Why a container did not find some names.
fn refused_names(names: &[String]) -> String {
    format!(
        "refit: not let through to {}: it is not among what this run may connect to\n",
        names.join(", ")
    )
}

/// The container's `/etc/resolv.conf`.
fn name_servers(endpoint: Option<&Endpoint>) -> String {
    let mut host = network::host_configuration();
    // Of names that were to be looked for elsewhere too, none is let through.
    if endpoint.is_some_and(Endpoint::is_bounded) {
        host.clear();
    }
    match endpoint.and_then(Endpoint::name_server) {
        Some(server) => network::configuration_for(server, &host),
        None => host,
    }
}

/// Where a bundle folder says which control groups its container has.
const GROUPS_FILE: &str = "groups";

/// Removes bundle folders whose owner is no more, and the control groups of their containers.
fn sweep_folders(state_dir: &Path, hierarchy: &Hierarchy) {
    let Ok(entries) = fs::read_dir(state_dir) else { return };
    for folder in entries.flatten().map(|entry| entry.path()) {
        let owner = fs::read_to_string(folder.join("owner")).ok();
        let owner = owner.and_then(|text| text.parse::<Owner>().ok());
        if owner.is_some_and(|owner| !owner.is_alive()) {
            let groups = fs::read_to_string(folder.join(GROUPS_FILE)).unwrap_or_default();
            hierarchy.sweep_listed(&groups);
            remove_folder(&folder);
        }
    }
}

fn remove_folder(folder: &Path) {
    if let Err(error) = crate::remove_tree(folder) {
        tracing::warn!(folder = %folder.display(), %error, "a bundle folder was left behind");
    }
}

/// Runs what blocks where blocking is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ContainerError> + Send + 'static,
) -> Result<T, ContainerError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(setup("finish before the program ends", error)),
        },
    }
}

fn setup(doing: impl Into<String>, reason: impl std::fmt::Display) -> ContainerError {
    ContainerError::Setup { doing: doing.into(), reason: reason.to_string() }
}
