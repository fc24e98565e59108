//! `refit build --ssh`: `RUN`s use the keys of agents where the command is.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use expect_test::expect;
use testkit::{
    GitHost, Invocation, Outcome, Sandbox, Server, SshAgent, SshKey, SshServer, UserMachine,
    ssh_image, until, validate, verify_ssh_signature,
};

use crate::sandbox;
use crate::upload::Wire;

struct World {
    sandbox: Sandbox,
    server: Server,
}

impl World {
    fn new() -> Self {
        let sandbox = sandbox();
        let server = sandbox.server();
        server.registry().push("ssh", "latest", &ssh_image());
        Self { sandbox, server }
    }

    /// A build of these instructions upon the image with ssh's programs.
    fn build(&self, instructions: &str, flags: &[&str]) -> Invocation {
        let base = format!("FROM {}/ssh\n", self.server.host());
        self.sandbox.write("app/Dockerfile", base + instructions);
        let args = ["build", "app", "-t", "app", "--network", "none", "--progress", "plain"];
        self.sandbox.refit(args.into_iter().chain(flags.iter().copied())).on(&self.server)
    }

    #[track_caller]
    fn until_no_socket_is_left(&self) {
        let folder = self.sandbox.data().join("snapshots/changes");
        let is_empty = || fs::read_dir(&folder).unwrap().next().is_none();
        until("the end of the sockets", || is_empty().then_some(()));
    }
}

#[test]
fn as_root_a_step_uses_the_keys_of_agents_and_cannot_change_them() {
    const STEPS: &str = "\
RUN --mount=type=ssh,required --mount=type=ssh,id=deploy \\
    ssh-add -L > /default && echo message > /message && \\
    ssh-keygen -q -Y sign -n test -f /default /message 2> /dev/null && \\
    SSH_AUTH_SOCK=/run/buildkit/ssh_agent.1 ssh-add -L > /deploy && \\
    stat -c '%n %u:%g %a' $SSH_AUTH_SOCK /run/buildkit/* > /seen && \\
    ! ssh-add -q -D 2>> /seen && ! ssh-add -q -d /default 2> /dev/null && \\
    ssh-keygen -q -t ed25519 -N '' -f /tmp/new && \\
    ! ssh-add -q /tmp/new 2> /dev/null && rm /tmp/new*
USER 1000
RUN --mount=type=ssh,uid=1000,gid=1001 --mount=type=ssh,id=deploy,target=/open,mode=0666 \\
    --mount=type=ssh,id=deploy,target=/closed --mount=type=ssh,id=none,target=/none \\
    ssh-add -L > /tmp/default && SSH_AUTH_SOCK=/open ssh-add -L > /tmp/open && \\
    ! SSH_AUTH_SOCK=/closed ssh-add -L 2> /dev/null && \\
    stat -c '%n %u:%g %a' $SSH_AUTH_SOCK /open /closed > /tmp/seen && ! ls /none 2> /dev/null
RUN ! test -e /run -o -e /open -o -n \"$SSH_AUTH_SOCK\"
";
    let world = World::new();
    let [one, two] = ["one", "two"].map(|name| SshKey::new(&world.sandbox, name, ""));
    let agents = [("agent", &one), ("other", &two)];
    let [agent, other] = agents.map(|(name, key)| SshAgent::start(&world.sandbox, name, &[key]));
    let deploy = format!("deploy={}", other.socket());
    let flags = ["--ssh", "default", "--ssh", &deploy];
    let build = || world.build(STEPS, &flags);
    let built = build().env("SSH_AUTH_SOCK", agent.socket()).succeeds();
    let image = validate(&world.server.registry(), "app", "latest");
    for (path, key) in
        [("default", &one), ("deploy", &two), ("tmp/default", &one), ("tmp/open", &two)]
    {
        assert_eq!(image.text(path), key.public, "{path}");
    }
    expect![[r#"
        /run/buildkit/ssh_agent.0 0:0 600
        /run/buildkit/ssh_agent.0 0:0 600
        /run/buildkit/ssh_agent.1 0:0 600
        Failed to remove all identities.
    "#]]
    .assert_eq(&image.text("seen"));
    expect![[r#"
        /run/buildkit/ssh_agent.0 1000:1001 600
        /open 0:0 666
        /closed 0:0 600
    "#]]
    .assert_eq(&image.text("tmp/seen"));
    world.sandbox.write("signature", image.text("message.sig"));
    let signature = world.sandbox.path("signature");
    verify_ssh_signature(&world.sandbox, &one, &signature, "message\n");
    // As they were.
    assert_eq!((agent.keys(), other.keys()), (one.public.clone(), two.public.clone()));
    // Nothing but what the steps wrote, not even a folder.
    for layer in &image.layers {
        let mut archive = tar::Archive::new(layer.as_slice());
        let paths =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned());
        let stray: Vec<_> = paths
            .filter(|path| {
                ["run", "open", "closed", "none"].iter().any(|own| path.starts_with(own))
            })
            .collect();
        assert!(stray.is_empty(), "{stray:?}");
    }
    world.until_no_socket_is_left();

    // Other keys are no reason to build again.
    let again = build().env("SSH_AUTH_SOCK", other.socket()).succeeds();
    assert_eq!(again.digest(), built.digest());
}

#[test]
fn as_root_many_connections_at_once_are_answered() {
    let world = World::new();
    let key = SshKey::new(&world.sandbox, "key", "");
    let agent = SshAgent::start(&world.sandbox, "agent", &[&key]);
    let steps = "\
RUN --mount=type=ssh for a in $(seq 24); do ssh-add -l >> /all & done; wait; \\
    for a in $(seq 24); do ssh-add -l >> /all || exit; done
";
    let flag = format!("default={}", agent.socket());
    world.build(steps, &["--ssh", &flag]).succeeds();
    let image = validate(&world.server.registry(), "app", "latest");
    assert_eq!(image.text("all").lines().count(), 48);
}

#[test]
fn as_root_an_agent_that_is_required_has_to_be_given() {
    let world = World::new();
    let steps = "RUN --mount=type=ssh,id=deploy,required true\n";
    let refused = world.build(steps, &[]).run().code(1);
    let shown = refused.stderr.lines().skip_while(|line| !line.starts_with("error: ")).skip(1);
    expect![[r#"
         --> Dockerfile:2:5
          |
        2 | RUN --mount=type=ssh,id=deploy,required true
          |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
        hint: give it with `--ssh deploy`, or `--ssh deploy=` and a socket or keys; in a `build` step with `--ssh deploy=` and keys"#]]
    .assert_eq(&shown.collect::<Vec<_>>().join("\n"));
    refused.stderr_has("ssh agent `deploy` is required, and the build was given none");
}

/// Agents that were started for a build, by their processes; all have this in their arguments.
fn started(folder: &Path) -> Vec<String> {
    let mark = folder.join("refit-ssh-").display().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.starts_with("ssh-agent") && line.contains(&mark)).collect()
}

#[test]
fn as_root_key_files_get_an_agent_that_ends_with_the_command() {
    let world = World::new();
    let keys = [("one", ""), ("two", ""), ("locked", "hunter2")];
    let keys = keys.map(|(name, passphrase)| SshKey::new(&world.sandbox, name, passphrase));
    let temporary = world.sandbox.path("tmp");
    fs::create_dir(&temporary).unwrap();
    let on = |build: Invocation| build.env("TMPDIR", temporary.display());
    let left = || {
        let files = fs::read_dir(&temporary).unwrap().flatten();
        let files = files.map(|entry| entry.path().display().to_string());
        files.chain(started(&temporary)).collect::<Vec<_>>()
    };
    let ends = || until("the agent's end", || left().is_empty().then_some(()));
    let [one, two, locked] = keys.each_ref().map(|key| key.file.display().to_string());
    let list = "RUN --mount=type=ssh ssh-add -L > /keys\n";
    let flag = format!("default={one},{two}");
    on(world.build(list, &["--ssh", &flag])).succeeds();
    let image = validate(&world.server.registry(), "app", "latest");
    assert_eq!(image.text("keys"), format!("{}{}", keys[0].public, keys[1].public));
    ends();

    // Nobody is there to be asked for the passphrase, unless a program answers.
    let flag = format!("default={locked}");
    on(world.build(list, &["--ssh", &flag])).run().code(2).stderr_has("`ssh-add` does not take");
    ends();
    world.sandbox.write_executable("answer", "#!/bin/sh\necho hunter2\n");
    let answer = world.sandbox.path("answer").display().to_string();
    let asked = on(world.build(&format!("{list}RUN true\n"), &["--ssh", &flag, "--no-cache"]));
    asked.env("SSH_ASKPASS", answer).env("SSH_ASKPASS_REQUIRE", "force").succeeds();
    let image = validate(&world.server.registry(), "app", "latest");
    assert_eq!(image.text("keys"), keys[2].public);
    ends();

    let flag = format!("default={one}");
    let mark = format!("49{}", std::process::id());
    let steps = format!("RUN --mount=type=ssh ssh-add -L && sleep {mark}\n");
    for kill in [false, true] {
        let running = on(world.build(&steps, &["--ssh", &flag])).start();
        until("the step", || crate::cancel::is_under_way(&mark).then_some(()));
        assert_eq!(left().len(), 2, "{:?}", left());
        match kill {
            false => running.interrupt(),
            true => running.signal(rustix::process::Signal::KILL),
        }
        drop(running.wait());
        until("the agent's end", || started(&temporary).is_empty().then_some(()));
        if !kill {
            ends();
            world.until_no_socket_is_left();
        }
    }
}

#[test]
fn as_root_an_embedded_build_has_agents_too_with_any_runtime_and_a_long_path() {
    let world = World::new();
    let sandbox = &world.sandbox;
    let (key, data) = (SshKey::new(sandbox, "key", ""), sandbox.path(&"long".repeat(40)));
    let steps = "RUN --mount=type=ssh ssh-add -L > /keys\n";
    let flag = format!("default={}", key.file.display());
    let base = format!("docker-image://{}/ssh", world.server.host());
    sandbox.write("app/Dockerfile", format!("FROM base\n{steps}"));
    let base = format!("base={base}");
    let args = ["build", "app", "--network", "none", "--ssh", &flag, "--build-context", &base];
    let args = args.into_iter().chain(["--output", "type=local,dest=out"]);
    for runtime in ["", "/usr/sbin/runc"] {
        let build = sandbox.refit(args.clone()).arg("--no-cache");
        let build = build.env("REFIT_BUILD_ALLOW_ADDRESSES", "127.0.0.1");
        build.env("REFIT_DATA", data.display()).env("REFIT_BUILD_RUNTIME", runtime).succeeds();
        assert_eq!(fs::read_to_string(sandbox.path("out/keys")).unwrap(), key.public);
        fs::remove_dir_all(sandbox.path("out")).unwrap();
    }
}

#[test]
fn as_root_an_ordinary_user_has_agents_too() {
    let sandbox = Sandbox::of_user(UserMachine::default());
    let server = sandbox.server();
    server.registry().push("ssh", "latest", &ssh_image());
    server.stop();
    let key = SshKey::new(&sandbox, "key", "");
    std::os::unix::fs::chown(&key.file, Some(sandbox.user()), None).unwrap();
    sandbox.write(
        "app/Dockerfile",
        "FROM localhost:5000/ssh\n\
         RUN --mount=type=ssh ssh-add -L > /root-keys\n\
         USER user\n\
         RUN --mount=type=ssh,uid=1000 ssh-add -L > /tmp/keys && stat -c %u $SSH_AUTH_SOCK\n",
    );
    let flag = format!("default={}", key.file.display());
    let args = ["build", "app", "-t", "app:1", "--network", "none", "--ssh", &flag];
    sandbox.refit(args).env("TMPDIR", sandbox.path("").display()).succeeds();
    let image = validate(&sandbox.server().registry(), "app", "1");
    assert_eq!((image.text("root-keys"), image.text("tmp/keys")), (key.public.clone(), key.public));
}

#[test]
fn as_root_a_build_that_outlives_its_server_has_its_agents_again() {
    let mut world = World::new();
    let key = SshKey::new(&world.sandbox, "key", "");
    let agent = SshAgent::start(&world.sandbox, "agent", &[&key]);
    let wire = Wire::to(&world.server);
    let mark = format!("46{}", std::process::id());
    let steps = format!("FROM base\nRUN --mount=type=ssh sleep 2; ssh-add -L > /keys; : {mark}\n");
    world.sandbox.write("app/Dockerfile", steps);
    ssh_image().write_layout(&world.sandbox.path("layout"), "latest");
    let base = "base=oci-layout://layout";
    let flag = format!("default={}", agent.socket());
    let build =
        wire.command(&world.sandbox).arg("--build-context").arg(base).arg("--ssh").arg(flag);
    let build = build.arg("--network").arg("none").start();
    until("the step", || crate::cancel::is_under_way(&mark).then_some(()));
    world.server.kill();
    world.server = world.sandbox.server();
    wire.lead_to(&world.server);
    build.wait().success();
    let image = validate(&world.server.registry(), "app", "1");
    assert_eq!(image.text("keys"), key.public);
}

/// A certificate for this machine, and its key.
#[expect(clippy::disallowed_methods, reason = "a program that is not ours")]
fn certificate(sandbox: &Sandbox) -> [String; 2] {
    let files = ["cert", "tls-key"].map(|name| sandbox.path(name).display().to_string());
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-out", &files[0]])
        .args(["-keyout", &files[1]])
        .output()
        .expect("the package openssl is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    files
}

#[test]
fn as_root_agents_are_reached_over_tls_too() {
    let sandbox = sandbox();
    let [cert, key] = certificate(&sandbox);
    let flags = ["--tls-listen", "127.0.0.1:0", "--tls-cert", &cert, "--tls-key", &key];
    let server = sandbox.server_with(&flags);
    server.registry().push("ssh", "latest", &ssh_image());
    let key = SshKey::new(&sandbox, "key", "");
    let base = format!("FROM {}/ssh\n", server.host());
    sandbox.write("app/Dockerfile", base + "RUN --mount=type=ssh ssh-add -L > /keys\n");
    let log = server.log();
    let url = log.split_whitespace().find(|word| word.starts_with("https://127.0.0.1:")).unwrap();
    let token = fs::read_to_string(sandbox.data().join("keys/api-token")).unwrap();
    let flag = format!("default={}", key.file.display());
    let build = sandbox.refit(["build", "app", "-t", "app", "--network", "none", "--ssh", &flag]);
    let build = build.arg("--server").arg(url).arg("--ca-file").arg(cert);
    build.env("REFIT_TOKEN", token.trim()).succeeds();
    assert_eq!(validate(&server.registry(), "app", "latest").text("keys"), key.public);
}

#[test]
fn mistakes_with_agents_are_told_before_anything_is_done() {
    let sandbox = sandbox();
    sandbox.write("app/Dockerfile", "FROM scratch\n");
    let build = |flags: &[&str]| {
        let args = ["build", "app", "--server", "http://127.0.0.1:9"];
        sandbox.refit(args.into_iter().chain(flags.iter().copied()))
    };
    expect![[r#"
        exit: 2
        -- stdout --
        -- stderr --
        error: `--ssh default` needs an agent, and `SSH_AUTH_SOCK` is not set
        hint: start one, or name its socket or a private key: `--ssh default=PATH`
    "#]]
    .assert_eq(&build(&["--ssh", "default"]).run().snapshot());
    let dead = build(&["--ssh", "default"]).env("SSH_AUTH_SOCK", "/nowhere/agent");
    dead.run().code(2).stderr_has("the ssh agent `default` cannot be reached at `/nowhere/agent`");
    sandbox.write("key", "no key");
    build(&["--ssh", "default=key"]).run().code(2).stderr_has("`ssh-add` does not take");
    build(&["--ssh", "default=key", "--no-wait"]).run().code(2).stderr_has("until the run's end");
    build(&["--ssh", "default=key"])
        .env("PATH", "/nowhere")
        .run()
        .code(2)
        .stderr_has("`ssh-agent`, which is not installed")
        .stderr_has("openssh-client");
}

/// A build that may ask a git host over SSH.
fn fetching(sandbox: &Sandbox, context: &str, flags: &[&str]) -> Invocation {
    let args = ["build", context, "-t", "app"].into_iter().chain(flags.iter().copied());
    sandbox
        .refit(args)
        .env("REFIT_BUILD_ALLOW_ADDRESSES", "127.0.0.1")
        .env("REFIT_BUILD_GIT_KNOWN_HOSTS", sandbox.path("known").display())
        .env("TMPDIR", sandbox.path("").display())
}

/// A host with the repositories `app` and, as a submodule of it, `library`.
fn repositories() -> GitHost {
    let host = GitHost::start();
    let library = host.repository("library");
    library.write("l", "library");
    let used = library.commit("used");
    let app = host.repository("app");
    app.write("Dockerfile", "FROM scratch\nCOPY . /\n");
    app.write("f", "whole");
    app.write("sub/Dockerfile", "FROM scratch\nCOPY . /\n");
    app.write("sub/f", "in a folder");
    app.write(".gitmodules", "[submodule \"m\"]\npath = m\nurl = ../library.git\n");
    app.git(&["add", "--all"]);
    app.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{used},m")]);
    app.git(&["commit", "--quiet", "--message", "first"]);
    host
}

/// What the image `app` has in a file.
#[track_caller]
fn text(sandbox: &Sandbox, path: &str) -> String {
    validate(&sandbox.server().registry(), "app", "latest").text(path)
}

#[test]
fn as_root_i5_a_repository_is_fetched_over_ssh_with_the_agent_of_the_build() {
    let (sandbox, host) = (sandbox(), repositories());
    let [key, other] = ["key", "other"].map(|name| SshKey::new(&sandbox, name, ""));
    let agents = [("agent", &key), ("stranger", &other)];
    let [agent, stranger] = agents.map(|(name, key)| SshAgent::start(&sandbox, name, &[key]));
    let ssh = SshServer::start(&sandbox, &[&key], false);
    sandbox.write("known", ssh.known());
    let address = format!("{}{}/app.git", ssh.url(), host.folder().display());
    let with = |agent: &SshAgent| format!("default={}", agent.socket());
    let flag = with(&agent);
    let build = |context: &str| fetching(&sandbox, context, &["--ssh", &flag]);

    for (reference, expected) in [("", "whole"), ("#main", "whole"), ("#main:sub", "in a folder")] {
        build(&format!("{address}{reference}")).succeeds();
        assert_eq!(text(&sandbox, "f"), expected, "{reference}");
    }
    sandbox.write("add/Dockerfile", format!("FROM scratch\nADD {address} /\n"));
    build("add").succeeds();
    assert_eq!((text(&sandbox, "f"), text(&sandbox, "m/l")), ("whole".into(), "library".into()));
    sandbox.write("named/Dockerfile", "FROM scratch\nCOPY --from=src f /\n");
    let named = format!("src={address}#:sub");
    fetching(&sandbox, "named", &["--ssh", &flag, "--build-context", &named]).succeeds();
    assert_eq!(text(&sandbox, "f"), "in a folder");

    let refused = |told: Outcome, expected: &str| told.code(1).stderr_has(expected);
    refused(build(&format!("{address}#none")).run(), "no branch, tag or commit `none`");
    let none = address.replace("app", "none");
    refused(build(&none).run(), "does not appear to be a git repository");
    let without = "is reached over SSH, and there is no ssh agent for it";
    refused(fetching(&sandbox, &address, &[]).run(), without).stderr_has("`--ssh default`");
    refused(fetching(&sandbox, "add", &[]).run(), without).stderr_has("Dockerfile:2");
    let task = ["run", "--cmd", "x", &address];
    let task = sandbox.refit(task).env("REFIT_BUILD_ALLOW_ADDRESSES", "127.0.0.1");
    refused(task.run(), without);
    let strange = fetching(&sandbox, &address, &["--ssh", &with(&stranger)]).run();
    refused(strange, "takes none of the keys that the ssh agent has");
    let inside = sandbox.refit(["build", &address, "--ssh", &flag]);
    refused(inside.run(), "`127.0.0.1` is a loopback address");

    sandbox.write("known", ssh.known_by(&other));
    refused(build(&address).run(), "is another one than is known");
    for unknown in ["", "[127.0.0.2]:22 x\n"] {
        sandbox.write("known", unknown);
        let told = refused(build(&address).run(), "the host key of `[127.0.0.1]:");
        told.stderr_has("` is not known").stderr_has("`ssh-keyscan -p").stderr_has("/known`");
    }
    let left = fs::read_dir(sandbox.data().join("snapshots/changes")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn as_root_an_ordinary_user_fetches_over_ssh_also_from_old_servers() {
    let (sandbox, host) = (Sandbox::of_user(UserMachine::default()), repositories());
    let key = SshKey::new(&sandbox, "key", "");
    std::os::unix::fs::chown(&key.file, Some(sandbox.user()), None).unwrap();
    let ssh = SshServer::start(&sandbox, &[&key], true);
    sandbox.write("known", ssh.known());
    let address = format!("{}{}/app.git", ssh.url(), host.folder().display());
    let flag = format!("default={}", key.file.display());
    fetching(&sandbox, &address, &["--ssh", &flag]).succeeds();
    assert_eq!((text(&sandbox, "f"), text(&sandbox, "m/l")), ("whole".into(), "library".into()));
}

#[test]
fn as_root_a_canceled_fetch_over_ssh_leaves_nothing() {
    let sandbox = sandbox();
    let key = SshKey::new(&sandbox, "key", "");
    let agent = SshAgent::start(&sandbox, "agent", &[&key]);
    // A host that never answers.
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = host.local_addr().unwrap().port();
    let flag = format!("default={}", agent.socket());
    let address = format!("ssh://127.0.0.1:{port}/app.git");
    let building = fetching(&sandbox, &address, &["--ssh", &flag]).start();
    let asked = host.accept().unwrap();
    let mark = format!("HostKeyAlias=[127.0.0.1]:{port}");
    let processes = || {
        let all = fs::read_dir("/proc").unwrap().flatten();
        let lines = all.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
        lines.filter(|line| line.contains(&mark)).count()
    };
    assert_eq!(processes(), 1);
    building.interrupt();
    building.wait().code(130);
    until("the end of ssh", || (processes() == 0).then_some(()));
    drop(asked);
    let left = fs::read_dir(sandbox.data().join("snapshots/changes")).unwrap();
    assert_eq!(left.count(), 0);
}
