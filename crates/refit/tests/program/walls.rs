//! The walls around a step, tried from inside, by an instruction of a Dockerfile and by a command.
//!
//! Two more are tried elsewhere: the token of a run for another registry and after its end
//! (`logins.rs`), and the secret of another task (`secrets.rs`).

use std::path::Path;

use testkit::{Image, Layer, Outcome, Sandbox, Server, busybox, busybox_layer, until};

use crate::observe::processes;
use crate::output::tool;
use crate::sandbox;

struct Place {
    sandbox: Sandbox,
    server: Server,
}

impl Place {
    fn new() -> Self {
        Self::with("")
    }

    fn with(settings: &str) -> Self {
        let sandbox = sandbox();
        sandbox.write("settings.toml", settings);
        let settings = sandbox.path("settings.toml").display().to_string();
        let server = sandbox.server_with(&["--config", &settings]);
        server.registry().push("busybox", "latest", &busybox());
        Self { sandbox, server }
    }

    /// Tries a script of a shell with an image of the registry, from an instruction.
    fn instruction(&self, image: &str, script: &str) -> Outcome {
        let host = self.server.host();
        let dockerfile = format!("FROM {host}/{image}\nCOPY . /tried/\nRUN sh /tried/attempt.sh\n");
        self.sandbox.write("app/attempt.sh", script).write("app/Dockerfile", dockerfile);
        self.sandbox.refit(["build", "app", "--no-cache", "--no-push"]).on(&self.server).run()
    }

    /// The same from a command.
    fn command(&self, image: &str, script: &str) -> Outcome {
        let task = format!("steps:\n  - cmd: '{{{{.Run.Registry}}}}/{image} sh attempt.sh'\n");
        self.sandbox.write("app/attempt.sh", script).write("app/acb.yaml", task);
        self.sandbox.refit(["run", "app"]).on(&self.server).run()
    }

    /// Tries what each gives up by itself, having said what it got through.
    fn holds(&self, image: &str, script: &str) {
        for outcome in [self.instruction(image, script), self.command(image, script)] {
            outcome.success().stderr_has("tried it all").stderr_lacks("THROUGH");
        }
        self.serves();
    }

    /// Whether the server is as it was.
    fn serves(&self) {
        assert_eq!(self.server.registry().status("/v2/"), 200);
        self.command("busybox", "echo it goes on").success().stderr_has("it goes on");
        assert!(!self.server.log().contains("panicked"), "{}", self.server.log());
    }
}

/// A script that reports each command that succeeds, though it should not, or that was none.
fn attempts(commands: &[&str]) -> String {
    let one = |command: &&str| {
        let quoted = command.replace('\'', r"'\''");
        format!(
            "if said=$(sh -c '{quoted}' 2>&1 >/dev/null); then echo 'THROUGH: {quoted}'; fi
case $said in *'applet not found'*|*': not found'*) echo 'THROUGH, since not tried: {quoted}';; esac
"
        )
    };
    commands.iter().map(one).collect::<String>() + "echo tried it all\n"
}

#[test]
fn as_root_a_step_finds_no_file_of_the_host() {
    let place = Place::new();
    place.sandbox.write("world-readable", "of the host");
    let (host, data) = (place.sandbox.path("world-readable"), place.sandbox.data());
    let (host, data) = (host.display(), data.display());
    let id = place.server.id();
    let script = attempts(&[
        &format!("cat {host}"),
        &format!("cat /proc/1/root{host}"),
        &format!("cat /proc/self/root/../../../..{host}"),
        &format!("cat /proc/1/cwd/../../../..{host}"),
        &format!("ls {data}"),
        &format!("cat {data}/keys/api-token"),
        &format!("cat {data}/refit.db"),
        "busybox find / -xdev -name api-token | grep .",
        &format!("ls -d /proc/{id}"),
        &format!("busybox kill -0 {id}"),
        "busybox find /proc -maxdepth 1 -name '[0-9]*' | while read p; do cat $p/cmdline; done | grep 'ser[v]e'",
        "for fd in /proc/*/fd/*; do busybox readlink $fd; done | grep -e '/keys/' -e 'refit.db' -e '/blobs/'",
        "busybox mknod /disk b 254 0 && cat /disk | head -c 1 | grep -q .",
        "busybox mknod /mem c 1 1 && cat /mem | head -c 1 | grep -q .",
        "cat /dev/sda /dev/vda /dev/mem /dev/kmsg | head -c 1 | grep -q .",
        "cat /proc/kcore | head -c 1 | grep -q .",
        "echo c > /proc/sysrq-trigger",
        "echo /tmp/x > /proc/sys/kernel/core_pattern",
        "echo 1 > /sys/kernel/mm/ksm/run",
        "mkdir /sys/fs/cgroup/mine || mkdir /sys/fs/cgroup/memory/mine",
    ]);
    place.holds("busybox", &script);
}

#[test]
fn as_root_a_step_finds_nothing_of_another_run() {
    let place = Place::new();
    let mark = format!("mark-of-{}", place.server.id());
    let task = format!(
        "steps:
  - cmd: >-
      {{{{.Run.Registry}}}}/busybox sh -c
      'echo {mark} > mine; echo {mark} > /acb/home/mine; echo it is there; sleep 600'
"
    );
    place.sandbox.write("other/acb.yaml", task);
    let other = place.sandbox.refit(["run", "other"]).on(&place.server).start();
    other.wait_for_stderr("it is there");
    // The one that looks does not find its own words.
    let halves = mark.split_at(5);
    let script = attempts(&[
        &format!(
            "m={}; busybox grep -r \"$m{}\" /workspace /acb /tmp /run /var /mnt",
            halves.0, halves.1
        ),
        &format!("m={}; cat /proc/*/cmdline /proc/*/environ | grep \"$m{}\"", halves.0, halves.1),
        "busybox find / -xdev -name mine | grep .",
        "busybox ps | grep 'sleep 60[0]'",
    ]);
    place.holds("busybox", &script);
    other.interrupt();
    other.wait().code(130);
}

#[test]
fn as_root_a_step_does_not_reach_the_server() {
    let place = Place::new();
    let port = place.server.host();
    let port = port.rsplit(':').next().unwrap_or_default();
    // By its loopback address, by the bridge, and by names for these.
    let script = format!(
        "gateway=$(busybox ip route | busybox sed -n 's/^default via \\([^ ]*\\).*/\\1/p')
for host in 127.0.0.1 localhost 0.0.0.0 $gateway 169.254.169.254; do
  for path in v2/ api/v1/registries healthz; do
    busybox wget -q -T 2 -O - http://$host:{port}/$path && echo THROUGH: $host
  done
done
echo tried it all
"
    );
    place.holds("busybox", &script);
}

/// Asks the kernel for what only a machine's root may have, and tells what it got.
const SYSTEM_CALLS: &str = r#"
my %calls = CALLS;
my $text = sub { my $copy = "$_[0]\0"; $copy };
my ($none, $proc, $there, $root) = map { $text->($_) } ('none', 'proc', '/mnt', '/');
my %arguments = (
    mount => [$none, $there, $proc, 0, 0], umount2 => [$text->('/proc'), 2],
    pivot_root => [$root, $root], unshare => [0x10000000], setns => [0, 0],
    init_module => [$none, 4, $none], finit_module => [0, $none, 0],
    delete_module => [$none, 0], kexec_load => [0, 0, 0, 0],
    reboot => [0xfee1dead, 672274793, 0, 0], swapon => [$none, 0],
    sethostname => [$none, 4], settimeofday => [pack('q2', 0, 0), 0],
    bpf => [0, pack('L4', 1, 4, 4, 1) . "\0" x 100, 116],
    perf_event_open => ["\0" x 120, 0, -1, -1, 0], keyctl => [0, -3, 0],
    add_key => [$text->('user'), $none, $none, 4, -3],
    open_by_handle_at => [0, pack('LLa128', 8, 1, ''), 0], acct => [0],
    quotactl => [0x800002, $none, 0, 0], syslog => [3, "\0" x 100, 100],
    userfaultfd => [0], ptrace => [16, SERVER, 0, 0],
    kill => [SERVER, 0],
);
for my $name (sort keys %calls) {
    my @given = map { $_ } @{ $arguments{$name} };
    my $result = syscall($calls{$name}, @given);
    # Not allowed, no such process, not allowed to look, no such call.
    my $is_held = $result == -1 && grep { $! + 0 == $_ } (1, 3, 13, 38);
    print "$name: ", $is_held ? "held" : "THROUGH ($result, $!)", "\n";
}
"#;

/// The numbers of the calls on this machine.
#[cfg(target_arch = "x86_64")]
const NUMBERS: &str = "(mount => 165, umount2 => 166, pivot_root => 155, unshare => 272, setns => 308, \
    init_module => 175, finit_module => 313, delete_module => 176, kexec_load => 246, reboot => 169, \
    swapon => 167, sethostname => 170, settimeofday => 164, bpf => 321, perf_event_open => 298, \
    keyctl => 250, add_key => 248, open_by_handle_at => 304, acct => 163, quotactl => 179, \
    syslog => 103, userfaultfd => 323, ptrace => 101, kill => 62)";
#[cfg(target_arch = "aarch64")]
const NUMBERS: &str = "(mount => 40, umount2 => 39, pivot_root => 41, unshare => 97, setns => 268, \
    init_module => 105, finit_module => 273, delete_module => 106, kexec_load => 104, reboot => 142, \
    swapon => 224, sethostname => 161, settimeofday => 170, bpf => 280, perf_event_open => 241, \
    keyctl => 219, add_key => 217, open_by_handle_at => 265, acct => 89, quotactl => 60, \
    syslog => 116, userfaultfd => 282, ptrace => 117, kill => 129)";

/// This machine's Perl, which can make any system call, beside busybox.
fn with_perl(sandbox: &Sandbox) -> Option<Image> {
    let program = "/usr/bin/perl";
    let libraries = tool(sandbox, "ldd", &[program])?;
    let words = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    let mut layer = Layer::new();
    for path in words.chain([program]) {
        let content = std::fs::read(Path::new(path)).expect("it is installed");
        layer = layer.file(path.trim_start_matches('/'), 0o755, &content);
    }
    Some(Image::new([busybox_layer(), layer]).env("PATH=/usr/bin:/bin"))
}

#[test]
fn as_root_the_kernel_gives_a_step_nothing_of_the_machine() {
    let place = Place::new();
    let Some(image) = with_perl(&place.sandbox) else { return };
    place.server.registry().push("perl", "latest", &image);
    let id = place.server.id().to_string();
    let calls = SYSTEM_CALLS.replace("CALLS", NUMBERS).replace("SERVER", &id);
    place.sandbox.write("app/calls.pl", calls);
    let script = "cd \"$(busybox dirname \"$0\")\" && perl calls.pl && echo tried it all\n";
    place.holds("perl", script);
    let tools = attempts(&[
        "mkdir -p /m && busybox mount -t proc proc /m",
        "mkdir -p /m && busybox mount -t tmpfs none /m",
        "mkdir -p /m && busybox mount --bind / /m",
        "busybox mount -o remount,rw /proc/sys",
        "busybox umount -l /proc",
        "busybox unshare -m true",
        "busybox unshare -r true",
        "busybox nsenter -t 1 -m -p true && test -e /no-such-file",
        "busybox insmod /bin/busybox",
        "busybox hostname other",
        "busybox ip link set lo down",
        "busybox ip addr add 10.1.2.3/32 dev eth0",
        "busybox ip route add 10.1.2.3 dev eth0",
        "busybox swapoff -a",
        "busybox dmesg | grep .",
        "busybox date -s 2001-01-01; busybox date +%Y | grep 2001",
        "busybox chroot /proc/1/root test -d /var/lib/dpkg",
    ]);
    place.holds("busybox", &tools);
}

#[test]
fn as_root_a_step_that_takes_too_much_is_ended_and_told_so() {
    let place = Place::with("[build]\nmemory = \"64MiB\"\npids = 64\n");
    let scripts = [
        "busybox dd if=/dev/zero of=/dev/null bs=200M count=1",
        // In memory that has the form of files.
        "busybox dd if=/dev/zero of=/dev/shm/large bs=1M count=63
         busybox dd if=/dev/zero of=/dev/null bs=60M count=1",
    ];
    for script in scripts {
        for outcome in [place.instruction("busybox", script), place.command("busybox", script)] {
            outcome.code(1).stderr_has("ran out of memory, its limit is 64 MiB");
        }
        place.serves();
    }
    // Doubles until it may not any more; who waits for it gets an answer meanwhile.
    let bomb = "bomb() { bomb | bomb & }\nbomb\nsleep 3\necho tried it all\n";
    for outcome in [place.instruction("busybox", bomb), place.command("busybox", bomb)] {
        assert!(outcome.stderr.contains("can't fork"), "{}", outcome.stderr);
    }
    place.serves();
}

#[test]
fn as_root_a_step_that_fills_the_disk_is_ended_and_told_so() {
    let place = Place::with("[build]\ndisk = \"64MiB\"\n");
    let fill = |file: &str| {
        format!("busybox dd if=/dev/zero of={file} bs=1M count=100 2>/dev/null; sleep 60")
    };
    let told = "wrote more to disk than its limit of 64 MiB";
    let instruction = place.instruction("busybox", &fill("/large")).code(1);
    instruction.stderr_has(told).stderr_has("raise `build.disk` of the server");
    for file in ["/large", "large", "/acb/home/large"] {
        place.command("busybox", &fill(file)).code(1).stderr_has(told);
    }
    place.serves();
}

#[test]
fn as_root_nothing_goes_on_after_a_cancel() {
    let place = Place::new();
    let long = format!("sleep {}.77", 200_000 + place.server.id());
    // Deaf to what asks it to end, and in a session of its own.
    let script = format!(
        "trap '' TERM INT HUP QUIT\n(trap '' TERM INT HUP; busybox setsid {long} &)\n\
         echo under way\n{long}\n{long}\n"
    );
    let dockerfile =
        format!("FROM {}/busybox\nCOPY attempt.sh /\nRUN sh /attempt.sh\n", place.server.host());
    let task = "steps:\n  - cmd: '{{.Run.Registry}}/busybox sh attempt.sh'\n";
    place.sandbox.write("app/attempt.sh", script).write("app/Dockerfile", dockerfile);
    place.sandbox.write("app/acb.yaml", task);
    for args in [&["build", "app", "--no-push"][..], &["run", "app"]] {
        let run = place.sandbox.refit(args.iter().copied()).on(&place.server).start();
        run.wait_for_stderr("under way");
        until("its processes", || (processes(&long) >= 2).then_some(()));
        run.interrupt();
        run.wait().code(130).stderr_has("was canceled");
        until("the end of its processes", || (processes(&long) == 0).then_some(()));
    }
    place.serves();
}

/// Without an internet: the name server says which names it did not even ask for.
#[test]
fn as_root_a_step_connects_to_what_its_task_and_its_server_let_it() {
    let place = Place::with("[build]\negress = [\"192.0.2.0/24:80\", \"*.example\"]\n");
    let script = "busybox nc -w 1 198.51.100.1 80 2>&1
busybox nc -w 1 192.0.2.1 81 2>&1
for name in a.example b.example files.test; do busybox nslookup $name 2>&1; done
echo tried it all
";
    for outcome in [place.instruction("busybox", script), place.command("busybox", script)] {
        outcome
            .success()
            .stderr_has("(198.51.100.1): Connection refused")
            .stderr_has("(192.0.2.1): Connection refused")
            .stderr_has("tried it all")
            .stderr_has("refit: not let through to files.test: it is not among");
    }
    // A run may take away, and not add.
    let run = |egress: &str| {
        let args = ["run", "app", "--egress", egress];
        place.sandbox.refit(args).on(&place.server).run()
    };
    run("open").success().stderr_has("not let through to files.test: ");
    run("a.example:443").success().stderr_has("not let through to b.example, files.test: ");
    let added = run("files.test,198.51.100.1:80").success();
    added
        .stderr_has("not let through to a.example, b.example, files.test: ")
        .stderr_has("(198.51.100.1): Connection refused");
    // Without any place there is no way out.
    let routes = "busybox ip route | grep default || echo there is no way out";
    place.sandbox.write("app/attempt.sh", routes);
    run("none").success().stderr_has("there is no way out");
    run("registry").success().stderr_has("there is no way out");
    run("https://a.example").code(2).stderr_has("`https://a.example` is no destination");
    let steps =
        format!("steps:\n  - cmd: >-\n      {{{{.Run.Registry}}}}/busybox sh -c '{routes}'\n");
    place.sandbox.write("closed.yaml", steps);
    let task = place.sandbox.path("closed.yaml").display().to_string();
    let create = ["task", "create", "closed", "-c", "/dev/null", "-f", &task, "--egress", "none"];
    place.sandbox.refit(create).on(&place.server).run().success();
    let show = ["task", "show", "closed", "-o", "json"];
    let shown = place.sandbox.refit(show).on(&place.server).run().success().json();
    let egress = |shown: &serde_json::Value| shown["properties"]["agentConfiguration"].clone();
    assert_eq!(egress(&shown), serde_json::json!({ "egress": ["none"] }));
    let started = place.sandbox.refit(["task", "run", "closed"]).on(&place.server).run();
    started.success().stderr_has("there is no way out");
    let update = ["task", "update", "closed", "--cpu", "1", "--egress", ""];
    place.sandbox.refit(update).on(&place.server).run().success();
    let shown = place.sandbox.refit(show).on(&place.server).run().success().json();
    assert_eq!(egress(&shown), serde_json::json!({ "cpu": 1 }));
}

#[test]
fn as_root_only_images_that_the_policy_has_are_used() {
    let place = Place::with("[build]\nimages = [\"registry\", \"docker.io/library/*\"]\n");
    let host = place.server.host();
    // Told before the first instruction, and before anybody is asked.
    let stages = format!(
        "FROM {host}/busybox AS one\nRUN echo it has begun\nFROM evil.example/team/app\nCOPY --from=one / /\n"
    );
    place.sandbox.write("app/Dockerfile", stages);
    let refused = place.sandbox.refit(["build", "app", "--no-push"]).on(&place.server).run();
    refused
        .code(1)
        .stderr_has("image `evil.example/team/app` is not one that runs may use here")
        .stderr_has("these are `registry`, `docker.io/library/*`")
        .stderr_has("FROM evil.example/team/app")
        .stderr_lacks("it has begun");
    let steps = "steps:
  - {id: first, cmd: '{{.Run.Registry}}/busybox echo it has begun'}
  - {id: second, cmd: evil.example/team/app, ignoreErrors: true}
";
    place.sandbox.write("app/acb.yaml", steps);
    let run = |place: &Place| place.sandbox.refit(["run", "app"]).on(&place.server).run();
    run(&place)
        .code(1)
        .stderr_has("step `second`: image `evil.example/team/app` is not one that runs may use")
        .stderr_lacks("it has begun");
    // What a run builds is its own, and copies and caches are images too.
    let dockerfile = format!("FROM {host}/busybox\nRUN echo made > /made\n");
    let steps = "steps:
  - {id: make, build: -t evil.example/team/app -f Dockerfile .}
  - {id: use, cmd: evil.example/team/app cat /made}
";
    place.sandbox.write("app/Dockerfile", dockerfile).write("app/acb.yaml", steps);
    run(&place).success().stderr_has("made");
    let copies = format!("FROM {host}/busybox\nCOPY --from=evil.example/x / /\n");
    place.sandbox.write("app/Dockerfile", copies);
    let refused = place.sandbox.refit(["build", "app", "--no-push"]).on(&place.server).run();
    refused.code(1).stderr_has("image `evil.example/x` is not one that runs may use here");
    // The other rights are told before the first step too.
    for (property, told) in [
        ("privileged: true", "`privileged` is not allowed by this server"),
        ("network: host", "the host's network is not allowed by this server"),
    ] {
        let steps = format!(
            "steps:
  - {{id: first, cmd: '{{{{.Run.Registry}}}}/busybox echo it has begun'}}
  - {{id: second, cmd: '{{{{.Run.Registry}}}}/busybox id', {property}}}
"
        );
        place.sandbox.write("app/acb.yaml", steps);
        run(&place).code(1).stderr_has(told).stderr_lacks("it has begun");
    }
}
