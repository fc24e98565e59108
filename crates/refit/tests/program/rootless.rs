//! The program as an ordinary user. The tests need root themselves, to become one.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use expect_test::expect;
use testkit::{Outcome, Sandbox, UserMachine, busybox, until, validate};

use crate::sandbox;

/// What needs other ids than the user's, or root's rights over what is in a user namespace.
const EVERYTHING: &str = "\
FROM localhost:5000/busybox AS make
WORKDIR /work
COPY --chown=7:8 src/ .
RUN mkdir -p kept gone/below again shared && touch kept/a gone/below/b again/old && \
    chown 1000:1000 kept/a && chown 12:34 kept && chown 65535 again
RUN rm -r gone again && mkdir again && touch again/new && mv shared moved && \
    echo x > /one && busybox ln /one /two && chmod 4755 /one && chmod 2750 kept && \
    busybox mkfifo /pipe
USER user
RUN id -u > /tmp/me && ! touch /work/denied 2> /dev/null && ! cat /proc/kcore 2> /dev/null
USER root
RUN --mount=type=cache,target=/cache,uid=1000 --mount=type=tmpfs,target=/scratch \
    --mount=type=secret,id=key --mount=type=bind,source=src,target=/context \
    cat /context/name.txt /run/secrets/key > /out && stat -c %u /cache >> /out && \
    touch /cache/x /scratch/y && stat -c %u:%g:%a kept/a kept >> /out && \
    ! busybox mknod /null c 1 3 2> /dev/null && cat /proc/self/uid_map > /dev/null

FROM localhost:5000/busybox AS other
COPY --from=make --chown=1000 /work/kept /kept

FROM make
COPY --from=other / /other
RUN stat -c %u:%g /other/kept/a >> /out
";

fn with_base(sandbox: &Sandbox) {
    let server = sandbox.server();
    server.registry().push("busybox", "latest", &busybox());
    server.stop();
}

fn everything(sandbox: &Sandbox) {
    with_base(sandbox);
    sandbox
        .write("app/Dockerfile", EVERYTHING)
        .write("app/src/name.txt", "world\n")
        .write("key", "secret\n");
}

fn build(sandbox: &Sandbox, flags: &[&str]) -> Outcome {
    let args = ["build", "app", "-t", "app:1", "--network", "none"];
    let args = args.into_iter().chain(flags.iter().copied());
    sandbox.refit(args).env("SOURCE_DATE_EPOCH", 1_700_000_000).run()
}

/// A sandbox of a user, with a base image with a shell and a Dockerfile upon it.
fn user_sandbox(machine: UserMachine, instructions: &str) -> Sandbox {
    let sandbox = Sandbox::of_user(machine);
    with_base(&sandbox);
    sandbox.write("app/Dockerfile", format!("FROM localhost:5000/busybox\n{instructions}"));
    sandbox
}

#[test]
fn as_root_an_ordinary_user_builds_the_same_image_as_root() {
    let (root, user) = (sandbox(), Sandbox::of_user(UserMachine::default()));
    let built = [&root, &user].map(|sandbox| {
        everything(sandbox);
        build(sandbox, &["--secret", "id=key,src=key"]).success().digest()
    });
    let server = user.server();
    let image = validate(&server.registry(), "app", "1");
    assert_eq!(image.text("tmp/me"), "1000\n");
    expect![[r#"
        world
        secret
        1000
        1000:1000:644
        12:34:2750
        1000:1000
    "#]]
    .assert_eq(&image.text("out"));
    assert_eq!(built[0], built[1], "the digests differ");
    drop(server);
    // Unpacked anew, marks and owners are as the layers say.
    fs::remove_dir_all(user.data().join("snapshots/layers")).unwrap();
    user.write(
        "app/Dockerfile",
        "FROM localhost:5000/app:1\nRUN ls -A /work /work/again > /seen\n",
    );
    build(&user, &["-t", "next:1"]).success();
    let image = validate(&user.server().registry(), "next", "1");
    assert_eq!(image.text("seen"), "/work:\nagain\nkept\nmoved\nname.txt\n\n/work/again:\nnew\n");
}

#[test]
fn as_root_other_programs_use_the_registry_of_an_ordinary_user() {
    let sandbox = user_sandbox(UserMachine::default(), "RUN chown 5:6 /tmp && id > /who\n");
    build(&sandbox, &[]).success();
    let server = sandbox.server();
    let at = |name: &str| format!("docker://{}/{name}", server.host());
    let copy = |from: &str, to: &str| {
        let flags = ["copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false", from, to];
        tool("skopeo", &flags);
    };
    copy(&at("app:1"), &at("copied:1"));
    let [one, two] = ["app", "copied"].map(|name| validate(&server.registry(), name, "1").digest);
    assert_eq!(one, two);
}

#[expect(clippy::disallowed_methods, reason = "a program that is not ours")]
fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect("the program is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Processes whose arguments hold a text, by their ids.
fn processes(mark: &str) -> Vec<String> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let marked = all.filter(|process| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(mark)
    });
    marked.map(|process| process.file_name().into_string().unwrap()).collect()
}

fn left_over(sandbox: &Sandbox) -> Vec<String> {
    let folders = ["containers", "snapshots/changes", "snapshots/partial", "workspaces/local"];
    let entries = folders.iter().filter_map(|name| fs::read_dir(sandbox.data().join(name)).ok());
    entries.flatten().map(|entry| entry.unwrap().path().display().to_string()).collect()
}

#[test]
fn as_root_an_interrupted_build_of_an_ordinary_user_leaves_nothing() {
    let mark = format!("interrupted-{}", std::process::id());
    let run = format!("RUN touch /a && chown 9 /a && sleep 600 && echo {mark}\n");
    let sandbox = user_sandbox(UserMachine::default(), &run);
    let running = sandbox.refit(["build", "app", "-t", "app:1", "--network", "none"]).start();
    until("the step", || (!processes(&mark).is_empty()).then_some(()));
    running.interrupt();
    running.wait().code(130);
    assert_eq!(processes(&mark), [""; 0]);
    assert_eq!(left_over(&sandbox), [""; 0]);
}

#[test]
fn as_root_a_killed_server_of_an_ordinary_user_goes_on_after_its_start() {
    let mark = format!("killed-{}", std::process::id());
    let run = format!("RUN touch /a && chown 9 /a && sleep 2 && echo {mark} > /made\n");
    let sandbox = Sandbox::of_user(UserMachine::default());
    let shell = fs::read("/bin/busybox").unwrap();
    sandbox.write_executable("app/sh", shell);
    sandbox.write("app/Dockerfile", format!("FROM scratch\nCOPY sh /bin/\n{run}"));
    let server = sandbox.server();
    let args = ["build", "app", "-t", "app:1", "--no-wait", "--network", "none"];
    let id = sandbox.refit(args).on(&server).run().success().stdout.trim().to_owned();
    until("the step", || (!processes(&mark).is_empty()).then_some(()));
    server.kill();
    until("the end of the step", || processes(&mark).is_empty().then_some(()));

    let server = sandbox.server();
    let log = sandbox.refit(["task", "logs", "--run-id", &id]).on(&server).run().success();
    assert!(log.stdout.contains("was successful"), "{}", log.stdout);
    assert_eq!(validate(&server.registry(), "app", "1").text("made").trim(), mark);
    assert_eq!(left_over(&sandbox), [""; 0]);
}

#[test]
fn as_root_a_user_without_a_network_device_is_told_what_to_do() {
    let sandbox = user_sandbox(UserMachine::default(), "RUN true\n");
    sandbox.refit(["build", "app"]).run().code(1).stderr_has("/dev/net/tun").stderr_has("none");
    build(&sandbox, &[]).success();
}

/// A neighbour of the machine, in network and mount namespaces of the test's own.
const NETWORK: &str = r#"
set -e
mount -t tmpfs tmpfs /run && mkdir -p /run/netns
mount --bind /run/netns /run/netns && mount --make-shared /run/netns
ip link set lo up
ip netns add outside
ip link add up0 type veth peer name up1 netns outside
ip addr add 192.168.77.1/24 dev up0 && ip link set up0 up
ip route add default via 192.168.77.2
ip -n outside addr add 192.168.77.2/24 dev up1
ip -n outside addr add 169.254.169.254/32 dev up1
ip -n outside link set up1 up && ip -n outside link set lo up
ip netns exec outside busybox nc -ll -p 8000 -e echo 'the neighbour answers' & one=$!
busybox nc -ll -p 8001 -e echo 'the host answers' & two=$!
trap 'kill $one $two' EXIT
until grep -q ':1F41 .* 0A ' /proc/net/tcp6 /proc/net/tcp; do sleep 0.01; done
until ip netns exec outside cat /proc/net/tcp6 /proc/net/tcp | grep -q ':1F40 .* 0A '; do sleep 0.01; done
"$@"
"#;

#[test]
fn as_root_a_step_of_a_user_with_a_network_device_reaches_what_the_user_does() {
    // Some versions of pasta lose the beginning or the end of a connection.
    const STEP: &str = "RUN nc() { busybox timeout 3 busybox nc -w 2 \"$@\" < /dev/null; }; \
        for try in 1 2 3 4 5; do \
            nc 192.168.77.2 8000 | busybox head -n 1 > /answers; [ -s /answers ] && break; \
        done; \
        for at in 192.168.77.1:8001 127.0.0.1:8001 10.0.2.2:8001 169.254.169.254:8000; do \
            nc ${at%:*} ${at#*:} >> /answers 2> /dev/null || echo $at is silent >> /answers; \
        done\n";
    for program in ["pasta", "slirp4netns"] {
        let machine = UserMachine { uplink: Some(program), ..UserMachine::default() };
        let sandbox = user_sandbox(machine, STEP);
        sandbox.refit(["build", "app", "-t", "app:1"]).in_namespaces(NETWORK).run().success();
        expect![[r#"
            the neighbour answers
            192.168.77.1:8001 is silent
            127.0.0.1:8001 is silent
            10.0.2.2:8001 is silent
            169.254.169.254:8000 is silent
        "#]]
        .assert_eq(&validate(&sandbox.server().registry(), "app", "1").text("answers"));
        let mark = sandbox.data().display().to_string();
        assert_eq!(processes(&mark), [""; 0]);
    }
}

#[test]
fn as_root_a_user_without_subordinate_ids_builds_what_belongs_to_root() {
    let machine = UserMachine { without_ids: true, ..UserMachine::default() };
    let sandbox = user_sandbox(machine, "RUN mkdir /a && id -u > /a/me && touch /a/b\n");
    build(&sandbox, &[]).success();
    assert_eq!(validate(&sandbox.server().registry(), "app", "1").text("a/me"), "0\n");

    sandbox.write("app/Dockerfile", "FROM localhost:5000/busybox\nRUN chown 5 /tmp\n");
    build(&sandbox, &[]).code(1).stderr_has("Invalid argument");
    // Nothing has to be made for this one but a layer.
    let copy = "FROM localhost:5000/busybox\nCOPY --chown=5 Dockerfile /\n";
    sandbox.write("app/Dockerfile", copy);
    build(&sandbox, &[]).success();
    sandbox.write("app/Dockerfile", format!("{copy}RUN true\n"));
    build(&sandbox, &[]).code(1).stderr_has("belongs to 5:5").stderr_has("refit doctor");
    sandbox.write("app/Dockerfile", "FROM localhost:5000/busybox\nUSER user\nRUN true\n");
    build(&sandbox, &[]).code(1).stderr_has("the id 1000 of its user");
}

fn verdicts(sandbox: &Sandbox) -> BTreeMap<String, String> {
    let told = sandbox.refit(["doctor", "-o", "json"]).run().success().json();
    let text = |check: &serde_json::Value, key: &str| check[key].as_str().unwrap().to_owned();
    let checks = told.as_array().unwrap().iter();
    checks.map(|check| (text(check, "name"), text(check, "verdict"))).collect()
}

#[test]
fn as_root_the_doctor_tells_an_ordinary_user_what_does_not_work() {
    let machine = |without_ids, uplink| UserMachine { without_ids, uplink };
    let told = verdicts(&Sandbox::of_user(machine(false, None)));
    let of = |name: &str| told[name].as_str();
    assert_eq!((of("root"), of("overlayfs"), of("subordinate ids")), ("ok", "ok", "ok"));
    assert_eq!((of("user network"), of("user namespaces")), ("warning", "ok"));
    assert!(!told.contains_key("iptables"));
    let told = verdicts(&Sandbox::of_user(machine(true, Some("pasta"))));
    let of = |name: &str| told[name].as_str();
    assert_eq!((of("subordinate ids"), of("user network")), ("warning", "ok"));
}

#[test]
fn as_root_what_other_ids_have_unpacked_is_made_anew() {
    let sandbox = user_sandbox(UserMachine::default(), "RUN chown 5:6 /tmp\n");
    build(&sandbox, &[]).success();
    sandbox.change_ids();
    let next = "FROM localhost:5000/app:1\nRUN stat -c %u:%g /tmp > /owner\n";
    sandbox.write("app/Dockerfile", next);
    build(&sandbox, &["-t", "next:1"]).success();
    assert_eq!(validate(&sandbox.server().registry(), "next", "1").text("owner"), "5:6\n");
}
