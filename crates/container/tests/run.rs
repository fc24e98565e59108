//! Whole containers, on a root made of busybox. All of them need root and say so.
//!
//! The helper is the example `sandbox`, which Cargo builds together with the tests.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::disallowed_methods, reason = "tests start programs to compare with")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use container::{
    ContainerError, DiskLimit, Exit, ExternalRuntime, Limits, LocalServer, LocalService, Mount,
    MountKind, Network, OutputSink, PeerNetwork, Peers, Private, ProcessSpec, Rootfs, Runtime,
    RuntimeSettings, Stream, Usage, User,
};
use expect_test::{Expect, expect};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tokio_util::sync::CancellationToken;

const APPLETS: [&str; 27] = [
    "cat", "chmod", "chown", "cp", "dd", "echo", "grep", "head", "hostname", "id", "ip", "kill",
    "ln", "ls", "mkdir", "mknod", "mount", "nc", "pwd", "rm", "sed", "sh", "sleep", "stat",
    "touch", "true", "wc",
];

/// The machine's ids for containers, and how many each server has.
const IDS_FIRST: u32 = 1_000_000_000;
const IDS_OF_A_SERVER: u32 = 256 << 16;

/// A folder with one layer, and a runtime over it.
struct Machine {
    folder: tempfile::TempDir,
    runtime: Runtime,
}

#[derive(Default)]
struct Collected {
    stdout: Mutex<Vec<u8>>,
    stderr: Mutex<Vec<u8>>,
    pieces: AtomicUsize,
    largest: AtomicUsize,
    /// How often the start was told, and how many pieces of output had come before.
    starts: AtomicUsize,
    pieces_before_start: AtomicUsize,
    slow: bool,
}

#[async_trait]
impl OutputSink for Collected {
    async fn write(&self, stream: Stream, bytes: Bytes) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
        self.largest.fetch_max(bytes.len(), Ordering::Relaxed);
        if self.slow {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        let target = if stream == Stream::Stdout { &self.stdout } else { &self.stderr };
        target.lock().unwrap().extend_from_slice(&bytes);
    }

    async fn started(&self) {
        self.starts.fetch_add(1, Ordering::Relaxed);
        self.pieces_before_start.store(self.pieces.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Collected {
    fn text(&self) -> String {
        String::from_utf8(self.stdout.lock().unwrap().clone()).unwrap()
    }
}

fn helper() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let helper = tests.parent().unwrap().parent().unwrap().join("examples/sandbox");
    assert!(helper.is_file(), "`{}` is missing: build the examples", helper.display());
    helper
}

/// Of another runtime, its program and arguments.
fn settings(state_dir: PathBuf, external: Option<&str>) -> RuntimeSettings {
    let external = external.map(|command| {
        let mut words = command.split(' ').map(str::to_owned);
        let program = PathBuf::from(words.next().unwrap());
        ExternalRuntime { program, arguments: words.collect() }
    });
    RuntimeSettings {
        external,
        helper: helper(),
        state_dir,
        subnet: "10.89.0.0/24".to_owned(),
        user_namespaces: true,
        disk_reserve: 0,
    }
}

impl Machine {
    async fn new() -> Self {
        Self::with(None).await
    }

    async fn with(external: Option<&str>) -> Self {
        assert!(geteuid().is_root(), "these tests need root");
        let folder = tempfile::tempdir().unwrap();
        make_root(&folder.path().join("lower"));
        for name in ["upper", "work"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let runtime = Runtime::new(settings(folder.path().join("state"), external)).await.unwrap();
        Self { folder, runtime }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn spec(&self, script: &str) -> ProcessSpec {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        ProcessSpec {
            name: format!("test-{}-{count}", std::process::id()),
            rootfs: Rootfs::Overlay {
                lowers: vec![self.path("lower")],
                upper: self.path("upper"),
                work: self.path("work"),
            },
            args: ["sh", "-c", script].map(str::to_owned).into(),
            env: vec!["PATH=/bin".to_owned()],
            cwd: "/".to_owned(),
            user: User::default(),
            hostname: "box".to_owned(),
            mounts: Vec::new(),
            private_env: Vec::new(),
            extra_hosts: Vec::new(),
            network: Network::None,
            peers: None,
            service: None,
            limits: Limits::default(),
            privileged: false,
        }
    }

    /// A container with changes of its own, and with the folder `/meeting` in common with others.
    fn apart(&self, script: &str) -> ProcessSpec {
        let mut spec = self.spec(script);
        let [upper, work] = ["upper", "work"].map(|part| self.path(&spec.name).join(part));
        for folder in [&upper, &work, &self.path("meeting")] {
            fs::create_dir_all(folder).unwrap();
        }
        spec.rootfs = Rootfs::Overlay { lowers: vec![self.path("lower")], upper, work };
        let kind = MountKind::Bind { source: self.path("meeting") };
        spec.mounts = vec![Mount { target: "/meeting".to_owned(), read_only: false, kind }];
        spec
    }

    fn member(&self, network: &PeerNetwork, name: &str, script: &str) -> ProcessSpec {
        let mut spec = self.apart(script);
        spec.peers = Some(Peers { network: network.clone(), names: vec![name.to_owned()] });
        spec
    }

    async fn run(&self, spec: &ProcessSpec) -> Result<(Exit, Usage, String), ContainerError> {
        let output = Collected::default();
        let (exit, usage) = self.runtime.run(spec, &output, &CancellationToken::new()).await?;
        let mut text = output.text();
        let stderr = output.stderr.into_inner().unwrap();
        for line in String::from_utf8_lossy(&stderr).lines() {
            text.push_str(&format!("stderr: {line}\n"));
        }
        Ok((exit, usage, text))
    }

    async fn check(&self, spec: &ProcessSpec, expected: Expect) {
        let shown = match self.run(spec).await {
            Ok((exit, _, text)) => format!("{text}{exit:?}\n"),
            Err(error) => format!("{error}\n"),
        };
        expected.assert_eq(&shown);
    }

    /// What lies in the upper directory, with the kind of each.
    fn changes(&self) -> Vec<String> {
        fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let metadata = fs::symlink_metadata(&path).unwrap();
                let name = path.strip_prefix(root).unwrap().display().to_string();
                let kind = metadata.file_type();
                if kind.is_dir() {
                    found.push(format!("{name}/"));
                    walk(root, &path, found);
                } else if kind.is_char_device() && metadata.rdev() == 0 {
                    found.push(format!("{name} gone"));
                } else {
                    found.push(name);
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.path("upper"), &self.path("upper"), &mut found);
        found.sort();
        found
    }
}

fn make_root(root: &Path) {
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("not-a-program"), "nothing\n").unwrap();
    fs::create_dir_all(root.join("old")).unwrap();
    fs::write(root.join("old/file"), "old\n").unwrap();
}

/// The processes `sleep MARK` of this machine.
fn sleepers(mark: &str) -> Vec<Pid> {
    let wanted = format!("sleep\0{mark}\0");
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter(|entry| {
        fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == wanted.as_bytes())
    })
    .filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
    .collect()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(20), "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn as_root_each_end_is_told_apart() {
    let machine = Machine::new().await;
    machine
        .check(
            &machine.spec("echo out; echo err >&2; exit 7"),
            expect![[r#"
                out
                stderr: err
                Code(7)
            "#]],
        )
        .await;
    machine
        .check(
            &machine.spec("sh -c 'kill -9 $$'"),
            expect![[r#"
        Code(0)
    "#]],
        )
        .await;
    let mut missing = machine.spec("");
    missing.args = vec!["no-such-program".to_owned()];
    machine
        .check(
            &missing,
            expect![[r#"
                `no-such-program` cannot be executed: it is not in `PATH`, or its interpreter is missing
            "#]],
        )
        .await;
    missing.args = vec!["/not-a-program".to_owned()];
    machine
        .check(&missing, expect!["`/not-a-program` cannot be executed: permission denied\n"])
        .await;
}

/// The kernel keeps signals from the first process of a pid namespace, except those from
/// outside and those that it causes itself.
#[tokio::test]
async fn as_root_a_signal_from_outside_is_reported() {
    let machine = Machine::new().await;
    let mark = format!("33{}", std::process::id());
    let spec = machine.spec(&format!("exec sleep {mark}"));
    let killed = tokio::task::spawn_blocking(move || {
        wait_until("it runs", || sleepers(&mark).len() == 1);
        let pid = sleepers(&mark)[0];
        kill_process(pid, Signal::KILL).unwrap();
    });
    let (exit, _, _) = machine.run(&spec).await.unwrap();
    killed.await.unwrap();
    assert_eq!(exit, Exit::Signal(9));
}

#[tokio::test]
async fn as_root_the_start_of_a_process_is_told_while_it_runs() {
    // The order in which another runtime tells things is its own.
    for (machine, is_ours) in machines().await.into_iter().zip([true, true, false, false]) {
        let (output, cancel) = (Collected::default(), CancellationToken::new());
        // Only the end of the test ends it.
        let spec = machine.spec("echo first; exec sleep 1000");
        let seen = async {
            while output.starts.load(Ordering::Relaxed) == 0 || output.text().is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            cancel.cancel();
        };
        let running = async { tokio::join!(machine.runtime.run(&spec, &output, &cancel), seen) };
        let (ended, ()) = tokio::time::timeout(Duration::from_secs(20), running).await.unwrap();
        assert_eq!(ended.unwrap().0, Exit::Canceled);
        assert_eq!(output.starts.load(Ordering::Relaxed), 1);
        let before = output.pieces_before_start.load(Ordering::Relaxed);
        assert!(before == 0 || !is_ours, "{before} pieces of output came before");
        // One that ends at once, and one that there is not.
        for (program, starts) in [("true", 1), ("no-such-program", 0)] {
            let mut spec = machine.spec("");
            spec.args = vec![format!("/bin/{program}")];
            let output = Collected::default();
            let ended = machine.runtime.run(&spec, &output, &CancellationToken::new()).await;
            assert_eq!(ended.is_ok(), starts == 1, "{ended:?}");
            assert_eq!(output.starts.load(Ordering::Relaxed), starts, "{program}");
        }
    }
}

/// Nothing is executed in a container that is refused, or whose start fails or is given up.
#[tokio::test]
async fn as_root_no_start_is_told_of_a_process_that_there_was_not() {
    let machine = Machine::new().await;
    let output = Collected::default();
    let mut spec = machine.spec("true");
    spec.args = vec!["/not-a-program".to_owned()];
    machine.runtime.run(&spec, &output, &CancellationToken::new()).await.unwrap_err();
    let mut spec = machine.spec("true");
    spec.cwd = "/old/file".to_owned();
    machine.runtime.run(&spec, &output, &CancellationToken::new()).await.unwrap_err();
    let canceled = CancellationToken::new();
    canceled.cancel();
    machine.runtime.run(&machine.spec("true"), &output, &canceled).await.unwrap();
    assert_eq!(output.starts.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_a_time_out_a_cancel_and_a_drop_kill_the_whole_tree() {
    let machine = Machine::new().await;
    let mark = format!("31{}", std::process::id());
    let script = format!("trap '' TERM; (sleep {mark} & sleep {mark} &) ; sleep {mark}");

    let mut spec = machine.spec(&script);
    spec.limits.timeout = Some(Duration::from_millis(300));
    machine.check(&spec, expect!["TimedOut\n"]).await;
    assert_eq!(sleepers(&mark), []);

    let spec = machine.spec(&script);
    let cancel = CancellationToken::new();
    let sink = Collected::default();
    let seen = async {
        let mark = mark.clone();
        let seen = tokio::task::spawn_blocking(move || {
            wait_until("it runs", || sleepers(&mark).len() == 3);
        });
        seen.await.unwrap();
        cancel.cancel();
    };
    let (ended, ()) = tokio::join!(machine.runtime.run(&spec, &sink, &cancel), seen);
    assert_eq!(ended.unwrap().0, Exit::Canceled);
    assert_eq!(sleepers(&mark), []);

    let spec = machine.spec(&script);
    let never = CancellationToken::new();
    let running = machine.runtime.run(&spec, &sink, &never);
    assert!(tokio::time::timeout(Duration::from_millis(300), running).await.is_err());
    tokio::time::timeout(Duration::from_secs(20), machine.runtime.idle()).await.unwrap();
    assert_eq!(sleepers(&mark), []);
    assert_eq!(fs::read_dir(machine.path("state")).unwrap().count(), 0);
}

#[tokio::test]
async fn as_root_limits_hold_and_are_accounted() {
    let machine = Machine::new().await;
    let mut spec = machine.spec("exec dd if=/dev/zero of=/dev/null bs=200M count=1");
    spec.limits.memory = Some(32 << 20);
    let (exit, usage, _) = machine.run(&spec).await.unwrap();
    assert_eq!(exit, Exit::OutOfMemory);
    // The kernel lets a process that it kills go a little over.
    assert!((16 << 20..=40 << 20).contains(&usage.memory_peak), "{usage:?}");
    let theirs = Machine::with(Some("/usr/sbin/runc")).await;
    let mut spec = theirs.spec("exec dd if=/dev/zero of=/dev/null bs=200M count=1");
    spec.limits.memory = Some(32 << 20);
    theirs.check(&spec, expect!["OutOfMemory\n"]).await;

    let mut spec = machine.spec("for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; echo never");
    spec.limits.pids = Some(5);
    let (_, _, text) = machine.run(&spec).await.unwrap();
    assert!(text.contains("can't fork"), "{text}");

    let mut spec = machine.spec("i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done");
    spec.limits.cpus = Some(0.25);
    let started = Instant::now();
    let (exit, usage, _) = machine.run(&spec).await.unwrap();
    assert_eq!(exit, Exit::Code(0));
    assert!(usage.cpu > Duration::from_millis(20), "{usage:?}");
    assert!(started.elapsed() > usage.cpu * 2, "{usage:?} in {:?}", started.elapsed());

    let mut spec = machine.spec("ulimit -n; grep 'Max core' /proc/self/limits | sed 's/  */ /g'");
    spec.limits.ulimits = vec![("nofile".to_owned(), 99, 100), ("core".to_owned(), 0, 0)];
    machine.check(&spec, expect!["99\nMax core file size 0 0 bytes \nCode(0)\n"]).await;
}

#[tokio::test]
async fn as_root_a_container_that_writes_too_much_is_ended() {
    const SCRIPTS: [&str; 4] = [
        "dd if=/dev/zero of=/large bs=1M count=40; sleep 20",
        // In a folder that several have.
        "dd if=/dev/zero of=/meeting/large bs=1M count=40; sleep 20",
        // Without a name.
        "exec 3>/gone; rm /gone; dd if=/dev/zero bs=1M count=40 >&3; sleep 20",
        // Files that are empty.
        "i=0; while [ $i -lt 9000 ]; do : > /f$i; i=$((i+1)); done; sleep 20",
    ];
    for external in [None, Some("/usr/sbin/runc")] {
        let machine = Machine::with(external).await;
        for script in SCRIPTS {
            let mut spec = machine.apart(script);
            let besides = vec![machine.path("meeting")];
            spec.limits.disk = DiskLimit { size_max: Some(32 << 20), besides };
            let started = Instant::now();
            let (exit, _, text) = machine.run(&spec).await.unwrap();
            assert_eq!(exit, Exit::OutOfDisk, "{script}: {text}");
            assert!(started.elapsed() < Duration::from_secs(15), "{script}");
            fs::remove_dir_all(machine.path("meeting")).unwrap();
            fs::remove_dir_all(machine.path(&spec.name)).unwrap();
        }
        let mut spec = machine.apart("dd if=/dev/zero of=/large bs=1M count=20; sleep 3");
        spec.limits.disk = DiskLimit { size_max: Some(32 << 20), besides: Vec::new() };
        assert_eq!(machine.run(&spec).await.unwrap().0, Exit::Code(0));
    }
}

/// A file system of its own, on which there is room for 200 MiB.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir(&at).unwrap();
        let none = None::<&str>;
        nix::mount::mount(
            none,
            &at,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some("size=200m"),
        )
        .unwrap();
        Self(at)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[tokio::test]
async fn as_root_a_disk_is_not_filled_and_only_who_fills_it_is_ended() {
    let machine = Machine::new().await;
    let disk = SmallDisk::mount(machine.path("disk"));
    let mut settings = settings(disk.0.join("state"), None);
    settings.disk_reserve = 1 << 40;
    // Not all kernels translate ids on this file system.
    settings.user_namespaces = false;
    let runtime = Runtime::new(settings).await.unwrap();
    let on_disk = |script: &str| {
        let mut spec = machine.apart(script);
        let [upper, work] = ["upper", "work"].map(|part| disk.0.join(&spec.name).join(part));
        for folder in [&upper, &work] {
            fs::create_dir_all(folder).unwrap();
        }
        spec.rootfs = Rootfs::Overlay { lowers: vec![machine.path("lower")], upper, work };
        spec
    };
    let modest = on_disk("dd if=/dev/zero of=/some bs=1M count=20 2>/dev/null; sleep 8; echo well");
    // In portions: what is written in an instant fills any disk.
    let greedy = on_disk(
        "i=0; while sleep 0.05; do dd if=/dev/zero of=/f$i bs=1M count=3 2>/dev/null; i=$((i+1)); done",
    );
    let never = CancellationToken::new();
    let (kept, sink) = (Collected::default(), Collected::default());
    // Whoever runs a container removes what it left.
    let greedy = async {
        let ended = runtime.run(&greedy, &sink, &never).await;
        fs::remove_dir_all(disk.0.join(&greedy.name)).unwrap();
        ended
    };
    let (modest, greedy) = tokio::join!(runtime.run(&modest, &kept, &never), greedy);
    assert_eq!(greedy.unwrap().0, Exit::DiskFull);
    assert_eq!(modest.unwrap().0, Exit::Code(0));
    assert_eq!(kept.text(), "well\n");
}

/// Whatever makes the second one of them; only of our own it is known why it was killed.
#[tokio::test]
async fn as_root_containers_share_what_bounds_them_together() {
    for (runtime, end) in [(None, Exit::OutOfMemory), (Some("/usr/sbin/runc"), Exit::Code(137))] {
        let (first, second) = (Machine::new().await, Machine::with(runtime).await);
        let name = format!("bound-{}", std::process::id());
        let limits = Limits { memory: Some(48 << 20), cpus: Some(0.5), ..Limits::default() };
        let bound = first.runtime.bound(&name, &limits).unwrap();
        let within = |machine: &Machine, script: &str| {
            let mut spec = machine.spec(script);
            spec.limits.within = bound.clone();
            spec
        };
        let meet = first.path("meet");
        fs::create_dir(&meet).unwrap();
        fs::set_permissions(&meet, PermissionsExt::from_mode(0o777)).unwrap();
        let meeting = |machine: &Machine, script: &str| {
            let mut spec = within(machine, script);
            let (target, kind) = ("/meet".to_owned(), MountKind::Bind { source: meet.clone() });
            spec.mounts = vec![Mount { target, read_only: false, kind }];
            spec
        };
        let holds = meeting(
            &first,
            "dd if=/dev/zero of=/dev/shm/x bs=1M count=30 && touch /meet/full &&
             until [ -e /meet/over ]; do sleep 0.1; done",
        );
        let wants = meeting(
            &second,
            "until [ -e /meet/full ]; do sleep 0.1; done
             exec dd if=/dev/zero of=/dev/null bs=30M count=1",
        );
        let wanting = async {
            let ended = second.run(&wants).await;
            fs::write(meet.join("over"), "").unwrap();
            ended
        };
        let (held, wanted) = tokio::join!(first.run(&holds), wanting);
        assert_eq!(held.unwrap().0, Exit::Code(0));
        assert_eq!(wanted.unwrap().0, end);

        let busy = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
        let (one, other) = (within(&first, busy), within(&second, busy));
        let started = Instant::now();
        let (first, second) = tokio::join!(first.run(&one), second.run(&other));
        let used = first.unwrap().1.cpu + second.unwrap().1.cpu;
        assert!(used > Duration::from_millis(40), "{used:?}");
        assert!(started.elapsed() > used.mul_f64(1.4), "{used:?} in {:?}", started.elapsed());

        drop((bound, holds, wants, one, other));
        let trees = fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
        let groups = trees.filter_map(|tree| fs::read_dir(tree.path().join("refit")).ok());
        let mut left = groups.flatten().flatten().map(|group| group.file_name());
        assert!(left.all(|group| !group.to_str().unwrap().starts_with(&name)));
    }
}

#[tokio::test]
async fn as_root_the_upper_directory_holds_the_changes_and_nothing_else() {
    let machine = Machine::new().await;
    let cache = machine.path("cache");
    fs::create_dir(&cache).unwrap();
    // As in images of systems that run a resolver: a link into nowhere.
    fs::create_dir(machine.path("lower/etc")).unwrap();
    symlink("../run/stub/resolv.conf", machine.path("lower/etc/resolv.conf")).unwrap();
    let mut spec = machine.spec("cat /etc/resolv.conf > /dev/null && touch /root/.cache/x");
    spec.mounts = vec![
        Mount {
            target: "/root/.cache".to_owned(),
            read_only: false,
            kind: MountKind::Bind { source: cache.clone() },
        },
        Mount {
            target: "/old/deep/tmp".to_owned(),
            read_only: false,
            kind: MountKind::Tmpfs { size: 1 << 20, mode: 0o1777 },
        },
    ];
    machine.check(&spec, expect!["Code(0)\n"]).await;
    assert_eq!(machine.changes(), Vec::<String>::new());
    assert!(cache.join("x").is_file());

    let mut spec = machine.spec("echo new > new; rm /old/file; touch /etc/passwd; pwd");
    spec.cwd = "/made/here".to_owned();
    machine.check(&spec, expect!["/made/here\nCode(0)\n"]).await;
    let changes =
        ["etc/", "etc/passwd", "made/", "made/here/", "made/here/new", "old/", "old/file gone"];
    assert_eq!(machine.changes(), changes);
}

#[tokio::test]
async fn as_root_a_link_in_the_image_leads_no_mount_outside() {
    let machine = Machine::new().await;
    let outside = machine.path("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, machine.path("lower/away")).unwrap();
    symlink("../../../../../..", machine.path("lower/up")).unwrap();
    let mut spec = machine.spec("touch /away/here/x; echo done");
    let tmpfs = |target: String| Mount {
        target,
        read_only: false,
        kind: MountKind::Tmpfs { size: 1 << 20, mode: 0o755 },
    };
    spec.mounts =
        vec![tmpfs("/away/here".to_owned()), tmpfs(format!("/up{}/there", outside.display()))];
    machine.check(&spec, expect!["done\nCode(0)\n"]).await;
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(machine.changes(), Vec::<String>::new());
}

/// What the image is to blame for is told apart from what this machine is.
#[tokio::test]
async fn as_root_an_image_that_nothing_can_be_mounted_in_is_named() {
    for runtime in [None, Some("/usr/sbin/runc")] {
        let machine = Machine::with(runtime).await;
        let spec = machine.spec("true");
        let path = |name: &str| machine.path("lower").join(name);
        let refused = async || {
            let error = machine.run(&spec).await.unwrap_err();
            assert!(matches!(error, ContainerError::Image { .. }), "{error}");
            // Of a container that does not start, what was made stays; the caller throws it away.
            fs::remove_dir_all(machine.path("upper")).unwrap();
            fs::create_dir(machine.path("upper")).unwrap();
            error.to_string()
        };
        let mut told = String::new();
        for name in ["proc", "sys", "dev"] {
            symlink("/old", path(name)).unwrap();
            told.push_str(&format!("{}\n", refused().await));
            fs::remove_file(path(name)).unwrap();
        }
        fs::write(path("proc"), "").unwrap();
        told.push_str(&format!("{}\n", refused().await));
        fs::remove_file(path("proc")).unwrap();
        fs::create_dir_all(path("etc/hosts")).unwrap();
        told.push_str(&format!("{}\n", refused().await));
        fs::remove_dir(path("etc/hosts")).unwrap();
        symlink("hosts", path("etc/hosts")).unwrap();
        told.push_str(&format!("{}\n", refused().await));
        expect![[r#"
            nothing can be mounted at `/proc`: the image has a symbolic link there
            nothing can be mounted at `/sys`: the image has a symbolic link there
            nothing can be mounted at `/dev`: the image has a symbolic link there
            nothing can be mounted at `/proc`: the image has a file there
            nothing can be mounted at `/etc/hosts`: the image has a directory there
            nothing can be mounted at `/etc/hosts`: the image has too many symbolic links there
        "#]]
        .assert_eq(&told);
    }
}

/// A folder of the host that is open while the process starts must not be a way out.
#[tokio::test]
async fn as_root_no_open_file_leads_out() {
    let machine = Machine::new().await;
    for number in 3..40 {
        let folder = format!("/proc/self/fd/{number}");
        let mut spec = machine.spec("");
        spec.cwd.clone_from(&folder);
        spec.args = ["/bin/busybox", "ls", "../../../../../.."].map(str::to_owned).into();
        let error = machine.run(&spec).await.unwrap_err().to_string();
        assert!(error.contains("working directory"), "{folder}: {error}");
        let mut spec = machine.spec("");
        spec.args = vec![format!("{folder}/../../../../../../bin/busybox"), "true".to_owned()];
        let error = machine.run(&spec).await.unwrap_err();
        assert!(matches!(error, ContainerError::CannotExecute { .. }), "{folder}: {error}");
    }
}

#[tokio::test]
async fn as_root_the_host_s_device_files_stay_as_they_are() {
    let machine = Machine::new().await;
    let before = fs::metadata("/dev/full").unwrap();
    machine
        .check(
            &machine.spec("exec 2>&1; chmod 0640 /dev/full; touch /dev/null; echo x > /dev/null"),
            expect![[r#"
                chmod: /dev/full: Read-only file system
                touch: /dev/null: Read-only file system
                Code(0)
            "#]],
        )
        .await;
    let after = fs::metadata("/dev/full").unwrap();
    assert_eq!((before.mode(), before.uid()), (after.mode(), after.uid()));
    // Also not through what is open when the process starts, wherever the image lets the file of
    // host names lie. What is asked for here is what is.
    fs::create_dir(machine.path("lower/etc")).unwrap();
    symlink("/dev/null", machine.path("lower/etc/hosts")).unwrap();
    machine
        .check(
            &machine.spec("exec 2>&1; chmod 0666 /dev/stdin; chown 0 /proc/self/fd/0; cat"),
            expect![[r#"
                chmod: /dev/stdin: Read-only file system
                chown: /proc/self/fd/0: Read-only file system
                Code(0)
            "#]],
        )
        .await;
}

#[tokio::test]
async fn as_root_the_process_has_few_rights() {
    let machine = Machine::new().await;
    machine
        .check(
            &machine.spec(
                "exec 2>&1
                 mount -t tmpfs none /old
                 mknod /old/disk b 254 0
                 (echo 1 > /proc/sys/kernel/panic)
                 touch /sys/x
                 hostname other; hostname
                 (echo x > /etc/hosts)
                 ls /sys/firmware | wc -l
                 grep -E '^(NoNewPrivs|Seccomp:|CapEff|CapBnd|CapInh)' /proc/self/status
                 ip -o link | wc -l",
            ),
            expect![[r#"
                mount: permission denied (are you root?)
                mknod: /old/disk: Operation not permitted
                sh: can't create /proc/sys/kernel/panic: Read-only file system
                touch: /sys/x: Read-only file system
                hostname: sethostname: Operation not permitted
                box
                sh: can't create /etc/hosts: Read-only file system
                0
                CapInh:	0000000000000000
                CapEff:	00000000a80425fb
                CapBnd:	00000000a80425fb
                NoNewPrivs:	1
                Seccomp:	2
                1
                Code(0)
            "#]],
        )
        .await;
    let mut spec = machine.spec("id; grep -E '^(CapEff|CapPrm)' /proc/self/status; touch /x 2>&1");
    spec.user = User { uid: 1000, gid: 1001, additional_gids: vec![5, 1002] };
    machine
        .check(
            &spec,
            expect![[r#"
        uid=1000 gid=1001 groups=5,1002
        CapPrm:	0000000000000000
        CapEff:	0000000000000000
        touch: /x: Permission denied
        Code(1)
    "#]],
        )
        .await;
    let mut spec = machine
        .spec("mount -t tmpfs none /old && grep -E ^Seccomp: /proc/self/status; ls /dev/null");
    spec.privileged = true;
    machine
        .check(
            &spec,
            expect![[r#"
        Seccomp:	0
        /dev/null
        Code(0)
    "#]],
        )
        .await;
}

/// Everything that a step can do to files comes to lie in the upper directory as it does without
/// a user namespace.
#[tokio::test]
async fn as_root_the_machine_s_ids_are_not_the_container_s() {
    let script = "exec 2>&1
        grep -E '^ *0' /proc/self/uid_map | wc -l
        id -u; touch /made; chown 33:44 /old/file; chown 1234567:70000 /old/deep; ls -ln / | wc -l
        mkdir -p /a/b; chmod 2755 /a; touch /a/b/c; ln /a/b/c /a/hard; ln -s c /a/b/soft
        cp /bin/busybox /a/setuid; chmod 4755 /a/setuid; rm -r /gone; mkdir /gone; touch /gone/new
        rm /old/lost; touch /dev/shm/x /tmp/t /cache/from-root; chown 5 /cache/from-root
        stat -c '%n %u:%g %a' /cache /cache/* /dev/shm /dev/pts /dev/stdin /key /etc/hosts /work
        cat /key; echo to stdout > /dev/stdout; pwd";
    let mut seen = Vec::new();
    for user_namespaces in [true, false] {
        let mut machine = Machine::new().await;
        let mut settings = settings(machine.path("state"), None);
        settings.user_namespaces = user_namespaces;
        machine.runtime = Runtime::new(settings).await.unwrap();
        let lower = machine.path("lower");
        for folder in ["gone/x", "old/deep", "tmp"] {
            fs::create_dir_all(lower.join(folder)).unwrap();
        }
        fs::write(lower.join("old/lost"), "").unwrap();
        chown(lower.join("old"), Some(7), Some(2_000_000)).unwrap();
        fs::create_dir(machine.path("cache")).unwrap();
        fs::write(machine.path("cache/old"), "").unwrap();
        chown(machine.path("cache/old"), Some(9), Some(9)).unwrap();
        let mut spec = machine.spec(script);
        spec.cwd = "/work/here".to_owned();
        let content = Private::new(b"the key\n");
        let file = MountKind::File { content, uid: 5, gid: 6, mode: 0o440 };
        let bind = MountKind::Bind { source: machine.path("cache") };
        spec.mounts = vec![
            Mount { target: "/key".to_owned(), read_only: true, kind: file },
            Mount { target: "/cache".to_owned(), read_only: false, kind: bind },
        ];
        let (_, _, text) = machine.run(&spec).await.unwrap();
        let mut listing = String::new();
        for folder in ["upper", "cache"] {
            let find = Command::new("find")
                .arg(machine.path(folder))
                .args(["-type", "c", "-printf", "%y %P\n", "-o"])
                .args(["-printf", "%y %P %U:%G %m %n %l\n"])
                .output()
                .unwrap();
            let mut lines: Vec<_> = std::str::from_utf8(&find.stdout).unwrap().lines().collect();
            lines.sort_unstable();
            listing.push_str(&format!("{}\n", lines.join("\n")));
        }
        seen.push((text, listing));
        // As the machine sees it, root of the container is one of many.
        let mark = format!("35{}", std::process::id());
        let spec = machine.spec(&format!("exec sleep {mark}"));
        let owner = tokio::task::spawn_blocking(move || {
            wait_until("it runs", || sleepers(&mark).len() == 1);
            let process = sleepers(&mark)[0];
            let owner = fs::metadata(format!("/proc/{}", process.as_raw_nonzero())).unwrap().uid();
            kill_process(process, Signal::KILL).unwrap();
            owner
        });
        machine.run(&spec).await.unwrap();
        assert_eq!(owner.await.unwrap() >= IDS_FIRST, user_namespaces);
    }
    let [with, without] = seen.as_slice() else { unreachable!() };
    assert_eq!(with.1, without.1);
    expect![[r#"
        1
        0
        14
        /cache 0:0 755
        /cache/from-root 5:0 644
        /cache/old 9:9 644
        /dev/shm 0:0 1777
        /dev/pts 65534:65534 755
        /dev/stdin 0:0 777
        /key 5:6 440
        /etc/hosts 0:0 644
        /work 0:0 755
        the key
        to stdout
        /work/here
    "#]]
    .assert_eq(&with.0);
    // An id that no container has.
    let machine = Machine::new().await;
    let mut spec = machine.spec("true");
    spec.user.gid = 1 << 31;
    machine
        .check(
            &spec,
            expect![[r#"
        could not accept the process: the id 2147483648 of its user is above 2147483647
    "#]],
        )
        .await;
    machine
        .check(
            &machine.spec("chown 2147483648 /old 2>&1"),
            expect![[r#"
        chown: /old: Invalid argument
        Code(1)
    "#]],
        )
        .await;
}

#[tokio::test]
async fn as_root_no_two_containers_have_the_same_ids() {
    let (ours, theirs) = (Machine::new().await, Machine::new().await);
    // Left by a server that was killed while it tried user namespaces, and had our number.
    fs::create_dir_all(ours.path(&format!("state/try-{}/lower", std::process::id()))).unwrap();
    let meeting = ours.path("meeting");
    fs::create_dir(&meeting).unwrap();
    let spec = |machine: &Machine, name: &str| {
        let mut spec = machine.spec(&format!(
            "touch /meeting/{name}; while [ $(ls /meeting | wc -l) -lt 3 ]; do sleep 0.01; done
             cat /proc/self/uid_map /proc/self/gid_map"
        ));
        let [upper, work] = ["upper", "work"].map(|folder| machine.path(name).join(folder));
        fs::create_dir_all(&upper).unwrap();
        fs::create_dir_all(&work).unwrap();
        spec.rootfs = Rootfs::Overlay { lowers: vec![machine.path("lower")], upper, work };
        let kind = MountKind::Bind { source: meeting.clone() };
        spec.mounts = vec![Mount { target: "/meeting".to_owned(), read_only: false, kind }];
        spec
    };
    let of_map = |run: Result<(Exit, Usage, String), ContainerError>| -> u32 {
        let (_, _, text) = run.unwrap();
        let words: Vec<u32> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
        let [0, first, 65536, 65536, high, rest, groups @ ..] = words.as_slice() else {
            panic!("{text}")
        };
        assert_eq!((*high, *rest), (2_000_065_536, 2_147_418_112));
        assert_eq!(groups, &words[..6]);
        *first
    };
    let specs = [spec(&ours, "a"), spec(&ours, "b"), spec(&theirs, "c")];
    let [a, b, c] = &specs;
    let (a, b, c) = tokio::join!(ours.run(a), ours.run(b), theirs.run(c));
    let (a, b, c) = (of_map(a), of_map(b), of_map(c));
    assert_eq!(a.abs_diff(b), 65536);
    let server = |first: u32| (first - IDS_FIRST) / IDS_OF_A_SERVER;
    assert_eq!(server(a), server(b));
    assert_ne!(server(a), server(c));
    assert_eq!(of_map(ours.run(&specs[1]).await), a.min(b), "free again");

    let mut spec = ours.spec("cat /proc/self/uid_map | sed 's/  */ /g'");
    spec.privileged = true;
    ours.check(
        &spec,
        expect![[r#"
         0 0 4294967295
        Code(0)
    "#]],
    )
    .await;
}

/// A shell opens `/dev/stdout` by its name, and that is a pipe of ours.
#[tokio::test]
async fn as_root_another_user_writes_to_its_output_by_name() {
    for runtime in [None, Some("/usr/sbin/runc")] {
        let machine = Machine::with(runtime).await;
        let mut spec = machine.spec("echo out > /dev/stdout; echo err > /dev/stderr");
        spec.user = User { uid: 1000, gid: 1001, additional_gids: Vec::new() };
        machine.check(&spec, expect!["out\nstderr: err\nCode(0)\n"]).await;
    }
}

#[tokio::test]
async fn as_root_a_slow_reader_slows_the_process_and_loses_nothing() {
    let machine = Machine::new().await;
    let output = Collected { slow: true, ..Collected::default() };
    let spec = machine.spec("dd if=/dev/zero bs=1M count=50 2>/dev/null; echo end >&2");
    let cancel = CancellationToken::new();
    let (exit, _) = machine.runtime.run(&spec, &output, &cancel).await.unwrap();
    assert_eq!(exit, Exit::Code(0));
    assert_eq!(output.stdout.lock().unwrap().len(), 50 << 20);
    assert!(output.largest.load(Ordering::Relaxed) <= 64 << 10);
    // A prompt without an end arrives while the process waits.
    let spec = machine.spec("echo -n 'a prompt: '; sleep 1; echo one; echo two");
    let output = Collected::default();
    machine.runtime.run(&spec, &output, &cancel).await.unwrap();
    assert_eq!(output.text(), "a prompt: one\ntwo\n");
    assert!(output.pieces.load(Ordering::Relaxed) >= 2);
}

#[tokio::test]
async fn as_root_hundreds_of_layers_and_a_throw_away_overlay_mount() {
    let machine = Machine::new().await;
    let mut layers = Vec::new();
    for number in (0..300).rev() {
        let layer = machine.path(&format!("layer-{number}-{}", "x".repeat(200)));
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join(format!("file-{number}")), "").unwrap();
        layers.push(layer);
    }
    layers.push(machine.path("lower"));
    let mut spec = machine.spec("ls / | grep -c file-; touch /data/new; ls /data");
    for name in ["data-upper", "data-work"] {
        fs::create_dir(machine.path(name)).unwrap();
    }
    spec.mounts = vec![Mount {
        target: "/data".to_owned(),
        read_only: false,
        kind: MountKind::Overlay {
            lowers: vec![machine.path("lower/old")],
            upper: machine.path("data-upper"),
            work: machine.path("data-work"),
            path: String::new(),
        },
    }];
    let Rootfs::Overlay { lowers, .. } = &mut spec.rootfs else { unreachable!() };
    *lowers = layers;
    machine.check(&spec, expect!["300\nfile\nnew\nCode(0)\n"]).await;
    assert!(!machine.path("lower/old/new").exists());
}

#[tokio::test]
async fn as_root_private_files_and_variables_are_in_memory_only() {
    for runtime in [None, Some("/usr/sbin/runc")] {
        let machine = Machine::with(runtime).await;
        let mut spec = machine.spec(
            "cat /run/a/key /one; stat -c '%a %u:%g' /run/a/key /one; echo $TOKEN; \
             echo x 2>/dev/null > /one || echo read-only",
        );
        let file = |target: &str, content: &str, mode| Mount {
            target: target.to_owned(),
            read_only: true,
            kind: MountKind::File {
                content: Private::new(content.as_bytes()),
                uid: 5,
                gid: 6,
                mode,
            },
        };
        let part = |path: &str| MountKind::Overlay {
            lowers: vec![machine.path("lower")],
            upper: machine.path("data-upper"),
            work: machine.path("data-work"),
            path: path.to_owned(),
        };
        for name in ["data-upper", "data-work"] {
            fs::create_dir(machine.path(name)).unwrap();
        }
        let one = Mount { target: "/one".to_owned(), read_only: true, kind: part("old/file") };
        spec.mounts = vec![file("/run/a/key", "the key\n", 0o440), one];
        spec.private_env = vec![Private::new(b"TOKEN=the token\nof two lines")];
        fs::write(machine.path("lower/old/file"), "a part\n").unwrap();
        machine
            .check(
                &spec,
                expect![[r#"
                    the key
                    a part
                    440 5:6
                    644 0:0
                    the token of two lines
                    read-only
                    Code(0)
                "#]],
            )
            .await;
        assert_eq!(machine.changes(), Vec::<String>::new());
        assert!(!format!("{spec:?}").contains("the "), "{spec:?}");
    }
}

/// What a step has written into an overlay before, another mount of it does not follow.
#[tokio::test]
async fn as_root_a_part_of_an_overlay_that_a_link_leads_to_is_not_mounted() {
    for runtime in [None, Some("/usr/sbin/runc")] {
        for (link, path) in [("old", "old/etc"), ("old", "old"), ("link", "link/passwd")] {
            let machine = Machine::with(runtime).await;
            for name in ["data-upper", "data-work"] {
                fs::create_dir(machine.path(name)).unwrap();
            }
            let to = if link == "link" { "/etc" } else { "/" };
            std::os::unix::fs::symlink(to, machine.path("data-upper").join(link)).unwrap();
            let mut spec = machine.spec("ls /one");
            let kind = MountKind::Overlay {
                lowers: vec![machine.path("lower")],
                upper: machine.path("data-upper"),
                work: machine.path("data-work"),
                path: path.to_owned(),
            };
            spec.mounts = vec![Mount { target: "/one".to_owned(), read_only: false, kind }];
            let told = machine.run(&spec).await.unwrap_err().to_string();
            let begin = format!("could not open `{path}` in the overlay of a mount: ");
            let reason = told.strip_prefix(&begin).unwrap_or_else(|| panic!("{told}"));
            // A link on the way, and one at its end.
            let expected = ["symbolic links", "it is neither a folder nor a file"];
            assert!(expected.iter().any(|text| reason.contains(text)), "{path}: {reason}");
        }
    }
}

#[tokio::test]
async fn as_root_what_cannot_be_meant_is_refused() {
    let machine = Machine::new().await;
    let mut spec = machine.spec("true");
    spec.name = "../x".to_owned();
    machine
        .check(
            &spec,
            expect![[r#"
                could not accept the process: the name `../x` is not 1 to 60 of lower-case letters, digits and `-`
            "#]],
        )
        .await;
    let mut spec = machine.spec("true");
    spec.cwd = "relative".to_owned();
    machine
        .check(
            &spec,
            expect![[r#"
                could not accept the process: the working directory `relative` is not an absolute path of less than 4096 bytes
            "#]],
        )
        .await;
    let mut spec = machine.spec("true");
    spec.env.push("A=b\0c".to_owned());
    machine
        .check(
            &spec,
            expect![[r#"
        could not accept the process: an argument or environment variable contains a NUL byte
    "#]],
        )
        .await;
}

/// What runc makes of the same specification is what we want to make of it.
#[tokio::test]
async fn as_root_runc_gives_the_same_rights() {
    let script = "grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid|Gid|Groups)' /proc/self/status
        cat /proc/self/limits | sed 's/  */ /g'
        hostname; pwd; echo $PATH";
    let mounts = "sed 's/^[^ ]* [^ ]* [^ ]* [^ ]* //; s/ .*//' /proc/self/mountinfo";
    let (ours, theirs) = (Machine::new().await, Machine::with(Some("/usr/sbin/runc")).await);
    let run = async |machine: &Machine, script: &str, user: u32| {
        let mut spec = machine.spec(script);
        spec.user = User { uid: user, gid: user, additional_gids: vec![7, 8] };
        spec.cwd = "/old".to_owned();
        spec.limits.memory = Some(64 << 20);
        spec.limits.ulimits = vec![("nofile".to_owned(), 512, 1024)];
        let (exit, _, text) = machine.run(&spec).await.unwrap();
        assert_eq!(exit, Exit::Code(0), "{text}");
        text
    };
    let targets = async |machine: &Machine| {
        let mut counted: BTreeMap<String, usize> = BTreeMap::new();
        for target in run(machine, mounts, 0).await.lines() {
            // We bind device files one by one, runc makes them.
            let is_device_file = Path::new(target).parent() == Some(Path::new("/dev"))
                && !["/dev/pts", "/dev/shm", "/dev/mqueue"].contains(&target);
            if !is_device_file {
                *counted.entry(target.to_owned()).or_default() += 1;
            }
        }
        counted
    };
    for user in [0, 1000] {
        assert_eq!(run(&ours, script, user).await, run(&theirs, script, user).await);
    }
    assert_eq!(targets(&ours).await, targets(&theirs).await);
    let mut spec = theirs.spec("");
    spec.args = vec!["no-such-program".to_owned()];
    let error = theirs.run(&spec).await.unwrap_err();
    assert!(matches!(error, ContainerError::CannotExecute { .. }), "{error}");
    let mut spec = theirs.spec("exec sleep 1000");
    spec.limits.timeout = Some(Duration::from_millis(500));
    theirs.check(&spec, expect!["TimedOut\n"]).await;
    assert_eq!(theirs.changes(), Vec::<String>::new());
    // runc makes groups in trees that we do not use.
    let own = format!("test-{}-", std::process::id());
    let trees = fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
    let groups = trees.filter_map(|tree| fs::read_dir(tree.path().join("refit")).ok());
    let left = groups.flatten().flatten().map(|group| group.file_name());
    let left: Vec<_> = left.filter(|name| name.to_str().unwrap().starts_with(&own)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn as_root_a_killed_server_leaves_no_process_and_the_next_sweeps() {
    let machine = Machine::new().await;
    let mark = format!("32{}", std::process::id());
    // In version 1 groups lie below the server's own: that of another session.
    let session = format!("/sys/fs/cgroup/memory/refit-test-session-{}", std::process::id());
    let session = Path::new(&session);
    let join = match session.parent().unwrap().is_dir() {
        true => {
            fs::create_dir(session).unwrap();
            format!("echo $$ > {}/cgroup.procs && ", session.display())
        }
        false => String::new(),
    };
    let mut server = Command::new("sh")
        .args(["-c", &format!("{join}exec \"$0\" \"$@\"")])
        .arg(helper())
        .arg(machine.path("lower"))
        .arg(machine.path("state"))
        .args(["none", "sh", "-c", &format!("sleep {mark} & sleep {mark}")])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the container runs", || sleepers(&mark).len() == 2);
    let process = format!("/proc/{}", sleepers(&mark)[0].as_raw_nonzero());
    let ranges = (fs::metadata(process).unwrap().uid() - IDS_FIRST) / IDS_OF_A_SERVER;
    server.kill().unwrap();
    server.wait().unwrap();
    wait_until("its processes are gone", || sleepers(&mark).is_empty());
    // Another test may take its ids, but ends.
    let lock = fs::File::open(format!("/run/refit/users-{ranges}.lock")).unwrap();
    wait_until("its ids are free", || lock.try_lock().is_ok());
    assert_eq!(fs::read_dir(machine.path("state")).unwrap().count(), 1);
    Runtime::new(settings(machine.path("state"), None)).await.unwrap();
    assert_eq!(fs::read_dir(machine.path("state")).unwrap().count(), 0);
    if session.is_dir() {
        // What is killed leaves its group a moment later.
        wait_until("no group is left below the session's", || fs::remove_dir(session).is_ok());
    }
}

/// What a build needs of gVisor. Its own network does not work on every kernel: it is told to use
/// that of the namespace.
const GVISOR: &str = "/usr/bin/runsc --platform=ptrace --network=host";

#[tokio::test]
async fn as_root_gvisor_runs_steps() {
    let machine = Machine::with(Some(GVISOR)).await;
    fs::create_dir_all(machine.path("lower/tmp")).unwrap();
    let mut spec = machine.spec("echo out; echo err >&2; exit 7");
    machine.check(&spec, expect!["out\nstderr: err\nCode(7)\n"]).await;
    spec.args = vec!["/no-such-program".to_owned()];
    let error = machine.run(&spec).await.unwrap_err();
    assert!(matches!(error, ContainerError::CannotExecute { .. }), "{error}");

    // Another kernel than the machine's, and the layer of a build.
    let mut spec = machine.spec(
        "busybox uname -r; echo new > new; rm /old/file; touch /tmp/kept /data/x; id; \
         cat /key; echo $TOKEN; ls /sys/class/net",
    );
    spec.user = User { uid: 0, gid: 7, additional_gids: Vec::new() };
    spec.private_env = vec![Private::new(b"TOKEN=the token")];
    fs::create_dir(machine.path("data")).unwrap();
    let mount =
        |target: &str, read_only, kind| Mount { target: target.to_owned(), read_only, kind };
    let (content, uid, gid, mode) = (Private::new(b"the key\n"), 0, 7, 0o440);
    spec.mounts = vec![
        mount("/data", false, MountKind::Bind { source: machine.path("data") }),
        mount("/key", true, MountKind::File { content, uid, gid, mode }),
        mount("/memory", false, MountKind::Tmpfs { size: 1 << 20, mode: 0o700 }),
    ];
    let expected = expect![[r#"
        4.4.0
        uid=0 gid=7
        the key
        the token
        lo
        Code(0)
    "#]];
    machine.check(&spec, expected).await;
    assert_eq!(machine.changes(), ["new", "old/", "old/file gone", "tmp/", "tmp/kept"]);
    assert!(machine.path("data/x").is_file());
    assert_eq!(fs::read_dir(machine.path("state")).unwrap().count(), 0);
}

#[tokio::test]
async fn as_root_a_step_in_gvisor_is_bounded_and_ends() {
    let machine = Machine::with(Some(GVISOR)).await;
    let mut spec = machine.spec("exec dd if=/dev/zero of=/dev/null bs=400M count=1");
    spec.limits.memory = Some(128 << 20);
    let (exit, _, _) = machine.run(&spec).await.unwrap();
    assert_eq!(exit, Exit::OutOfMemory);
    let mut spec = machine.spec("trap '' TERM; sleep 1000 & sleep 1000");
    spec.limits.timeout = Some(Duration::from_secs(2));
    machine.check(&spec, expect!["TimedOut\n"]).await;
    let left = fs::read_dir("/proc").unwrap().flatten().filter(|process| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("runsc") && line.contains(&spec.name)
    });
    assert_eq!(left.count(), 0);
    assert_eq!(fs::read_dir(machine.path("state")).unwrap().count(), 0);
}

/// runc makes groups in trees that we do not use; they are found by what is noted of them.
#[tokio::test]
async fn as_root_groups_of_runc_are_swept_after_a_killed_server() {
    let machine = Machine::new().await;
    let mark = format!("34{}", std::process::id());
    let mut server = Command::new(helper())
        .arg(machine.path("lower"))
        .arg(machine.path("state"))
        .args(["none:/usr/sbin/runc", "sleep", &mark])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let name = format!("sandbox-{}.", server.id());
    let groups = || -> Vec<PathBuf> {
        let trees = fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
        let folders = trees.map(|tree| tree.path()).chain([PathBuf::from("/sys/fs/cgroup")]);
        let groups = folders.filter_map(|folder| fs::read_dir(folder.join("refit")).ok()).flatten();
        let groups = groups.flatten().map(|group| group.path());
        groups.filter(|group| group.to_str().unwrap().contains(&name)).collect()
    };
    wait_until("the container runs", || sleepers(&mark).len() == 1);
    // Helper and runtime as well, so that nobody is left to clear away.
    let state = machine.path("state");
    let state = state.to_str().unwrap().as_bytes();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let id = process.file_name().to_str().and_then(|name| name.parse().ok());
        if line.windows(state.len()).any(|part| part == state) {
            let _ended_with_another =
                kill_process(Pid::from_raw(id.unwrap()).unwrap(), Signal::KILL);
        }
    }
    server.wait().unwrap();
    assert_ne!(groups(), Vec::<PathBuf>::new());
    Runtime::new(settings(machine.path("state"), None)).await.unwrap();
    assert_eq!(groups(), Vec::<PathBuf>::new());
    assert_eq!(sleepers(&mark), []);
}

/// In network and mount namespaces of its own, with a firewall that drops what it forwards and
/// a name server on loopback.
#[test]
fn as_root_an_isolated_container_reaches_others_but_not_the_host() {
    let folder = tempfile::tempdir().unwrap();
    make_root(&folder.path().join("root"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/isolated.sh");
    let output = Command::new("timeout")
        .args(["60", "unshare", "--net", "--mount", "sh"])
        .arg(script)
        .arg(helper())
        .arg(folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    expect![[r#"
        the neighbour answers
        10.89.0.1 is silent
        192.168.77.1 is silent
        127.0.0.1 is silent
        169.254.169.254 is silent
        status 0
        -P INPUT ACCEPT
        -P FORWARD DROP
        -P OUTPUT ACCEPT
        -P POSTROUTING ACCEPT
        bridges: 0
        Who is bounded reaches what it may, and hears of nothing else.
        nc: can't connect to remote host (192.168.77.2): Connection refused
        not yet
        the neighbour answers
        the neighbour answers
        nc: bad address 'other.example'
        nc: timed out
        not the host
        CapBnd:	00000000a80405fb
        refit: not let through to other.example: it is not among what this run may connect to
        the neighbour answers
        nc: can't connect to remote host (192.168.77.2): Connection refused
        not that port
        the host answers
        the neighbour answers
        nc: bad address 'name.example'
        refit: not let through to name.example: it is not among what this run may connect to
        1
        nc: can't connect to remote host (192.168.77.2): Network is unreachable
        0
        A killed server leaves a bridge and rules; the next removes them.
        bridges: 1
        What a container says about addresses changes nothing.
        10.89.0.3 lladdr 02:42:0a:59:00:03 PERMANENT 
        02:42:0a:59:00:03 dev refit0v3 master refit0 static
        learning off
        isolated on
        -P INPUT ACCEPT
        -P FORWARD DROP
        -P OUTPUT ACCEPT
        bridges: 0
        Another name server has the port on all addresses.
        the neighbour answers
        -P PREROUTING ACCEPT
        -P INPUT ACCEPT
        -P OUTPUT ACCEPT
        -P POSTROUTING ACCEPT
    "#]]
    .assert_eq(&format!("{}{errors}", String::from_utf8_lossy(&output.stdout)));
}

/// In the ways in which a container comes to its `/etc/hosts`.
async fn machines() -> [Machine; 4] {
    let mut without = Machine::new().await;
    let mut settings = settings(without.path("state"), None);
    settings.user_namespaces = false;
    without.runtime = Runtime::new(settings).await.unwrap();
    [
        Machine::new().await,
        without,
        Machine::with(Some("/usr/sbin/runc")).await,
        Machine::with(Some(GVISOR)).await,
    ]
}

#[tokio::test]
async fn as_root_peers_reach_each_other_by_name() {
    for machine in machines().await {
        let network = machine.runtime.peer_network().await.unwrap();
        let member = |own: &str, other: &str| {
            let script = format!(
                "nc -ll -p 80 -e echo 'this is {own}' &
                 until nc {other} 80 2>/dev/null; do sleep 0.01; done
                 until nc {own} 80 2>/dev/null; do sleep 0.01; done
                 touch /meeting/{own}; until [ -e /meeting/{other} ]; do sleep 0.01; done"
            );
            machine.member(&network, own, &script)
        };
        let (app, db) = (member("app", "db"), member("db", "app"));
        let (app, db) = tokio::join!(machine.run(&app), machine.run(&db));
        let ((app_exit, _, app), (db_exit, _, db)) = (app.unwrap(), db.unwrap());
        assert_eq!((app_exit, app.as_str()), (Exit::Code(0), "this is db\nthis is app\n"));
        assert_eq!((db_exit, db.as_str()), (Exit::Code(0), "this is app\nthis is db\n"));
    }
}

#[tokio::test]
async fn as_root_a_running_container_sees_peers_come_and_go() {
    for machine in machines().await {
        let network = machine.runtime.peer_network().await.unwrap();
        let app = machine.member(
            &network,
            "app",
            "touch /meeting/runs
             until grep -q db /etc/hosts; do sleep 0.01; done
             sed '/^127/!s/^1[0-9.]*[.]/NETWORK./' /etc/hosts; touch /meeting/seen
             while grep -q db /etc/hosts; do sleep 0.01; done
             echo later; sed '/^127/!s/^1[0-9.]*[.]/NETWORK./' /etc/hosts",
        );
        let mut db =
            machine.member(&network, "db", "until [ -e /meeting/seen ]; do sleep 0.01; done");
        // The first of this name is another.
        db.peers.as_mut().unwrap().names.push("App".to_owned());
        let later = async {
            let runs = machine.path("meeting/runs");
            let waited = tokio::task::spawn_blocking(move || {
                wait_until("the first runs", || runs.exists());
            });
            waited.await.unwrap();
            machine.run(&db).await.unwrap().0
        };
        let (app, db) = tokio::join!(machine.run(&app), later);
        let ((exit, _, app), db) = (app.unwrap(), db);
        assert_eq!((exit, db), (Exit::Code(0), Exit::Code(0)));
        expect![[r#"
            127.0.0.1	localhost
            ::1	localhost ip6-localhost ip6-loopback
            127.0.0.1	box
            NETWORK.2	app
            NETWORK.3	db
            later
            127.0.0.1	localhost
            ::1	localhost ip6-localhost ip6-loopback
            127.0.0.1	box
            NETWORK.2	app
        "#]]
        .assert_eq(&app);
    }
}

/// The containers of both networks have the same addresses.
#[tokio::test]
async fn as_root_networks_of_peers_do_not_see_each_other() {
    let machine = Machine::new().await;
    let network = machine.runtime.peer_network().await.unwrap();
    let other = machine.runtime.peer_network().await.unwrap();
    let wait = "until [ -e /meeting/asked ]; do sleep 0.01; done";
    // The second address of its network.
    let first = machine.member(&network, "first", &format!("touch /meeting/first; {wait}"));
    let asked = machine.member(
        &network,
        "asked",
        &format!(
            "nc -ll -p 80 -e echo 'this is the neighbour' & touch /meeting/asked-runs; {wait}"
        ),
    );
    let asking = machine.member(
        &network,
        "asking",
        "until nc asked 80 2>/dev/null; do sleep 0.01; done
         grep -c . /etc/hosts; sed -n 's/\tasked//p' /etc/hosts > /meeting/address",
    );
    let stranger = machine.member(
        &other,
        "stranger",
        "ip -o -4 addr show eth0 | grep -o 'inet [0-9.]*[.]' | grep -c $(sed 's/[0-9]*$//' /meeting/address)
         nc -w 1 asked 80 2>&1
         nc -w 1 $(cat /meeting/address) 80 2>/dev/null || echo the address is silent
         touch /meeting/asked",
    );
    let exists = async |name: &str| {
        let file = machine.path("meeting").join(name);
        let waited = tokio::task::spawn_blocking(move || wait_until("it runs", || file.exists()));
        waited.await.unwrap();
    };
    let then = async {
        exists("first").await;
        exists("asked-runs").await;
        let near = machine.run(&asking).await.unwrap();
        (near, machine.run(&stranger).await.unwrap())
    };
    let second = async {
        exists("first").await;
        machine.run(&asked).await.unwrap();
    };
    let (_, (), (near, far)) = tokio::join!(machine.run(&first), second, then);
    assert_eq!(near.2, "this is the neighbour\n6\n");
    assert_eq!(far.2, "1\nnc: bad address 'asked'\nthe address is silent\n");
}

#[tokio::test]
async fn as_root_a_network_of_peers_is_no_way_out() {
    let machine = Machine::new().await;
    let network = machine.runtime.peer_network().await.unwrap();
    let show = "ls /sys/class/net; ip -o -4 addr show | grep -vc ' lo '
        ip route | sed -n 's/^default .* dev \\(eth.\\).*/default by \\1/p'
        echo passes on: $(cat /proc/sys/net/ipv4/ip_forward)";
    let inside = machine.member(
        &network,
        "inside",
        &format!(
            "{show}
             nc -w 1 192.0.2.1 80 2>&1 | grep -o 'Network is unreachable'
             until nc outside 80 2>/dev/null; do sleep 0.01; done; touch /meeting/done"
        ),
    );
    let mut outside = machine.member(
        &network,
        "outside",
        &format!(
            "{show}
             nc -ll -p 80 -e echo 'this is outside' &
             until [ -e /meeting/done ]; do sleep 0.01; done"
        ),
    );
    outside.network = Network::Isolated;
    let (inside, outside) = tokio::join!(machine.run(&inside), machine.run(&outside));
    expect![[r#"
        eth0
        lo
        1
        passes on: 0
        Network is unreachable
        this is outside
    "#]]
    .assert_eq(&inside.unwrap().2);
    expect![[r#"
        eth0
        eth1
        lo
        2
        default by eth0
        passes on: 0
    "#]]
    .assert_eq(&outside.unwrap().2);
}

#[tokio::test]
async fn as_root_peers_that_cannot_be_meant_are_refused() {
    let machine = Machine::new().await;
    let network = machine.runtime.peer_network().await.unwrap();
    let mut spec = machine.member(&network, "a b", "true");
    machine
        .check(
            &spec,
            expect![[r#"
                could not accept the process: `a b` is not a host name
            "#]],
        )
        .await;
    spec.peers.as_mut().unwrap().names = vec!["a".to_owned(); 101];
    machine
        .check(
            &spec,
            expect![[r#"
                could not accept the process: more than 100 names for peers
            "#]],
        )
        .await;
    spec.network = Network::Host;
    machine
        .check(
            &spec,
            expect![[r#"
                could not accept the process: a container with the host's network has no peers
            "#]],
        )
        .await;
    let long = "a".repeat(253);
    assert!(["db", "db_1.example", &long].iter().all(|name| container::is_host_name(name)));
    let wrong = ["", "a b", "a#b", "ä", "a\tb", &format!("{long}a")];
    assert!(!wrong.iter().any(|name| container::is_host_name(name)));
}

/// Says the same to all who connect, and notes when it is to end.
#[derive(Debug, Default)]
struct Greeter {
    ended: CancellationToken,
}

#[async_trait]
impl LocalServer for Greeter {
    async fn serve(&self, listener: tokio::net::TcpListener, end: CancellationToken) {
        use tokio::io::AsyncWriteExt as _;
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    accepted.unwrap().0.write_all(b"it is the service\n").await.unwrap();
                }
                () = end.cancelled() => break,
            }
        }
        self.ended.cancel();
    }
}

#[tokio::test]
async fn as_root_a_container_reaches_its_own_service_and_nobody_elses() {
    const SCRIPT: &str = "nc -w 1 169.254.169.254 80 </dev/null 2>/dev/null || echo nothing";
    // Of the last one the network is its own, down to the loopback device.
    let [one, two, three, _] = machines().await;
    for machine in [one, two, three] {
        let wait = "until [ -e /meeting/done ]; do sleep 0.01; done";
        let mut with = machine.apart(&format!("{SCRIPT}; touch /meeting/there; {wait}"));
        with.network = Network::Isolated;
        let greeter = Arc::new(Greeter::default());
        let address = "169.254.169.254:80".parse().unwrap();
        with.service = Some(LocalService { address, server: greeter.clone() });
        let wait = "until [ -e /meeting/there ]; do sleep 0.01; done";
        let mut without = machine.apart(&format!("{wait}; {SCRIPT}; touch /meeting/done"));
        without.network = Network::Isolated;
        let (with, without) = tokio::join!(machine.run(&with), machine.run(&without));
        assert_eq!(with.unwrap().2, "it is the service\n");
        assert_eq!(without.unwrap().2, "nothing\n");
        // With its container it is over.
        greeter.ended.cancelled().await;
    }
    let machine = Machine::new().await;
    let mut spec = machine.spec("true");
    let server = Arc::new(Greeter::default());
    spec.service = Some(LocalService { address: "169.254.169.254:80".parse().unwrap(), server });
    machine
        .check(
            &spec,
            expect![[r#"
                could not accept the process: a service needs a network of the container's own
            "#]],
        )
        .await;
}

/// Without root of the machine, in a user namespace.
#[tokio::test]
async fn as_root_peers_need_no_root_of_the_machine() {
    for network in ["none", "isolated"] {
        let machine = Machine::new().await;
        let output = Command::new("timeout")
            .args(["60", "unshare", "--user", "--map-root-user", "--mount"])
            .arg(helper())
            .arg("peers")
            .args([machine.path("lower"), machine.path("state-2")])
            .arg(network)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "the server answers\n", "{errors}");
        assert!(output.status.success(), "{errors}");
    }
}

#[tokio::test]
async fn as_root_the_doctor_finds_this_machine_fit() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { pids: Some(4096), ..Limits::default() };
    let checks = container::diagnose(&settings(folder.path().to_owned(), None), &limits).await;
    let bad: Vec<_> =
        checks.iter().filter(|check| check.verdict != container::Verdict::Ok).collect();
    assert!(bad.is_empty(), "{bad:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// In a mount namespace that has a version 2 tree only, as most machines do.
#[tokio::test]
async fn as_root_a_process_is_born_in_its_group_of_version_2() {
    let machine = Machine::new().await;
    let script = "umount /sys/fs/cgroup/* && umount /sys/fs/cgroup
        mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit 1
        \"$0\" \"$1\" \"$2\" none sh -c 'echo there; sleep 1000 & exec sleep 1000' & server=$!
        until cat /sys/fs/cgroup/refit/sandbox-$server.*/cgroup.procs 2>/dev/null | grep -q .; do :; done
        cd /sys/fs/cgroup/refit/sandbox-$server.*
        until [ $(wc -l <cgroup.procs) = 2 ]; do :; done
        for process in $(cat cgroup.procs); do tr '\\0' ' ' </proc/$process/cmdline; echo; done
        cd /
        kill -9 $server
        \"$0\" \"$1\" \"$2\" none true
        echo \"status $?, groups: $(ls -d /sys/fs/cgroup/refit/sandbox-$server.* 2>&- | wc -l)\"";
    let output = Command::new("timeout")
        .args(["60", "unshare", "--mount", "sh", "-c", script])
        .arg(helper())
        .args([machine.path("lower"), machine.path("state-2")])
        .output()
        .unwrap();
    let expected = "there\nsleep 1000 \nsleep 1000 \nstatus 0, groups: 0\n";
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{errors}");
}

/// On machines that lack something, by mounts and rights of the doctor's own.
#[tokio::test]
async fn as_root_the_doctor_tells_what_keeps_containers_from_starting() {
    let folder = tempfile::tempdir().unwrap();
    let told = |script: &str| {
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-c", script])
            .arg(helper())
            .arg(folder.path())
            .output()
            .unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let read_only = "for tree in /sys/fs/cgroup /sys/fs/cgroup/*; do
        mountpoint -q $tree && mount -o remount,bind,ro $tree; done; exec \"$0\" doctor \"$1\"";
    let text = told(read_only);
    assert!(text.starts_with("control groups: Failed: version"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    let no_firewall = "for program in iptables iptables-restore; do
        mount --bind /etc/passwd $(readlink -f /usr/sbin/$program); done
        exec \"$0\" doctor \"$1\"";
    let text = told(no_firewall);
    assert!(text.starts_with("iptables: Failed: does not work: Permission denied"), "{text}");
    assert!(text.contains("FORWARD policy: Warning: not known"), "{text}");
    let no_mounts = "exec setpriv --bounding-set -sys_admin --inh-caps -sys_admin \
        \"$0\" doctor \"$1\"";
    let text = told(no_mounts);
    let lacking = "overlay layers: Failed: this process may not mount";
    assert!(text.contains(lacking), "{text}");
    for program in ["/etc/passwd", "/bin/false", "/nowhere"] {
        let settings = settings(folder.path().to_owned(), Some(program));
        let checks = container::diagnose(&settings, &Limits::default()).await;
        let check = checks.iter().find(|check| check.name == "runtime").unwrap();
        assert_eq!(check.verdict, container::Verdict::Failed, "{check:?}");
    }
}

/// Prints what starting costs; asserts only what a loaded machine can keep.
#[tokio::test]
async fn as_root_starting_is_quick() {
    let machine = Machine::new().await;
    let mut settings = settings(machine.path("other-state"), None);
    settings.user_namespaces = false;
    let without = Runtime::new(settings).await.unwrap();
    for network in [Network::None, Network::Host, Network::Isolated] {
        // In turn, so that what else the machine does befalls both.
        let mut times = [("with", &machine.runtime), ("without", &without)].map(|of| (of, vec![]));
        for _ in 0..41 {
            for ((_, runtime), times) in &mut times {
                let mut spec = machine.spec("");
                spec.args = vec!["true".to_owned()];
                spec.network = network;
                let (output, started) = (Collected::default(), Instant::now());
                let run = runtime.run(&spec, &output, &CancellationToken::new()).await;
                times.push(started.elapsed());
                assert_eq!(run.unwrap().0, Exit::Code(0));
            }
        }
        for ((how, _), mut times) in times {
            let first = times.remove(0);
            times.sort();
            let (best, median) = (times[0], times[times.len() / 2]);
            println!(
                "{network:?} {how} user namespace: first {first:?}, median {median:?}, best {best:?}"
            );
            assert!(median < Duration::from_secs(1), "{times:?}");
        }
    }
}
