//! `--ssh` of `build` steps: `RUN`s use keys that are secrets of the run.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;

use testkit::{
    GitHost, Invocation, Sandbox, Server, SshKey, SshServer, UserMachine, image_with, ssh_image,
    validate, verify_ssh_signature,
};

use crate::sandbox;

/// A task with a volume that has these keys, mounted at `/keys`, and one build.
fn task(keys: &[&SshKey], build: &str) -> String {
    let files = keys.iter().map(|key| {
        let name = key.file.file_name().unwrap().display().to_string();
        format!("{name}: '{{{{b64enc .Values.{name}}}}}'")
    });
    let files = files.collect::<Vec<_>>().join(", ");
    format!(
        "version: v1.1.0\n\
         volumes: [{{name: vault, secret: {{{files}}}}}]\n\
         steps:\n\
         - {{id: build, build: \"{build}\", volumeMounts: [{{name: vault, mountPath: /keys}}]}}\n"
    )
}

/// `refit run` of the folder `app`, which is given these keys as secret values.
fn run(sandbox: &Sandbox, keys: &[&SshKey]) -> Invocation {
    let values = keys.iter().flat_map(|key| {
        let name = key.file.file_name().unwrap().display().to_string();
        ["--set-secret".to_owned(), format!("{name}={}", fs::read_to_string(&key.file).unwrap())]
    });
    values.fold(sandbox.refit(["run", "app"]), |run, value| run.arg(value))
}

fn server(sandbox: &Sandbox) -> Server {
    let server = sandbox.server();
    server.registry().push("ssh", "latest", &ssh_image());
    server
}

/// What would show a key: lines of its file that are not of the public key, which is in it too.
fn lines(key: &SshKey) -> Vec<String> {
    let text = fs::read_to_string(&key.file).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('-') && line.len() > 20);
    lines.filter(|line| !key.public.contains(line)).map(str::to_owned).collect()
}

#[test]
fn as_root_keys_of_a_volume_and_of_the_workspace_sign_and_stay_secret() {
    const STEPS: &str = "\
RUN --mount=type=ssh,required \\
    --mount=type=ssh,id=deploy,target=/deploy,uid=1000,gid=1001,mode=0640 \\
    ssh-add -L > /default && SSH_AUTH_SOCK=/deploy ssh-add -L > /deploy-keys && \\
    stat -c '%n %u:%g %a' $SSH_AUTH_SOCK /deploy > /seen && echo message > /message && \\
    for n in 1 2 3 4; do \\
      busybox sed -n ${n}p /default > /tmp/key && cp /message /message$n && \\
      ssh-keygen -q -Y sign -n test -f /tmp/key /message$n || exit; \\
    done && rm /tmp/key && ! ssh-add -q -D 2>> /seen && ! ssh-add -q -d /default 2> /dev/null && \\
    for n in $(seq 24); do ssh-add -l >> /all & done; wait
RUN ! test -e /run -o -e /deploy -o -n \"$SSH_AUTH_SOCK\"
RUN --mount=type=ssh,id=none ! test -e /run -o -n \"$SSH_AUTH_SOCK\"
";
    let sandbox = sandbox();
    let server = server(&sandbox);
    let kinds: [(&str, &[&str]); 4] = [
        ("ed25519", &["-t", "ed25519", "-N", ""]),
        ("p256", &["-t", "ecdsa", "-b", "256", "-N", ""]),
        ("p384", &["-t", "ecdsa", "-b", "384", "-N", ""]),
        ("old", &["-t", "rsa", "-b", "2048", "-N", "", "-m", "PEM"]),
    ];
    let keys = kinds.map(|(name, kind)| SshKey::of_kind(&sandbox, name, kind));
    let keys = keys.each_ref();
    let deploy = SshKey::of_kind(&sandbox, "rsa", &["-t", "rsa", "-b", "3072", "-N", ""]);
    let in_workspace = fs::read(&deploy.file).unwrap();
    let dockerfile = format!("FROM {}/ssh\n{STEPS}", server.host());
    sandbox.write("app/Dockerfile", dockerfile).write("app/deploy-key", &in_workspace);
    let build = "-t $Registry/app --network none --ssh deploy=deploy-key \
                 --ssh=default=/keys/ed25519,/keys/p256,/keys/p384,../keys/old .";
    let push = "- push: [$Registry/app]\n";
    sandbox.write("app/acb.yaml", task(&keys, build) + push);
    let ran = run(&sandbox, &keys).on(&server).run().success();

    let image = validate(&server.registry(), "app", "latest");
    let listed = image.text("default");
    for (number, (key, listed)) in keys.iter().zip(listed.lines()).enumerate() {
        // PEM of old has no comment.
        let public = key.public.trim();
        assert!(public.starts_with(listed.trim_end()), "{listed} is not {public}");
        let signature = format!("signature{number}");
        sandbox.write(&signature, image.text(&format!("message{}.sig", number + 1)));
        verify_ssh_signature(&sandbox, key, &sandbox.path(&signature), "message\n");
    }
    assert_eq!(listed.lines().count(), 4);
    assert_eq!(image.text("deploy-keys"), deploy.public);
    assert_eq!(
        image.text("seen"),
        "/run/buildkit/ssh_agent.0 0:0 600\n/deploy 1000:1001 640\n\
         Failed to remove all identities.\n"
    );
    assert_eq!(image.text("all").lines().count(), 24 * 4);

    let log = sandbox.refit(["task", "logs"]).on(&server).run().success().stdout;
    let record = sandbox.refit(["task", "show-run", "-o", "json", "--run-id", "c01"]);
    let mut seen = vec![ran.stderr, log, record.on(&server).run().success().stdout];
    seen.extend(image.layers.iter().map(|layer| String::from_utf8_lossy(layer).into_owned()));
    let secret: Vec<_> = keys.iter().copied().chain([&deploy]).flat_map(lines).collect();
    assert!(secret.len() > 30);
    for text in seen {
        let shown = secret.iter().find(|line| text.contains(line.as_str()));
        assert_eq!(shown, None);
    }
    let left = fs::read_dir(sandbox.data().join("snapshots/changes")).unwrap();
    assert_eq!(left.count(), 0);

    // Other keys are no reason to build again.
    let others = kinds.map(|(name, kind)| {
        for file in [name.to_owned(), format!("{name}.pub")] {
            fs::remove_file(sandbox.path(&file)).unwrap();
        }
        SshKey::of_kind(&sandbox, name, kind)
    });
    run(&sandbox, &others.each_ref()).on(&server).run().success();
    assert_eq!(validate(&server.registry(), "app", "latest").digest, image.digest);
}

#[test]
fn as_root_a_key_is_hidden_and_kept_out_of_images() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let key = SshKey::new(&sandbox, "key", "");
    sandbox.write("app/id", fs::read(&key.file).unwrap());
    let build = |steps: &str| {
        sandbox.write("app/Dockerfile", format!("FROM {}/ssh\n{steps}", server.host()));
        let task = "steps: [{build: --network none --ssh default=id --no-cache .}]";
        sandbox.write("app/acb.yaml", task);
        run(&sandbox, &[]).on(&server).run()
    };
    let shown = build("RUN --mount=type=bind,target=/c cat /c/id && echo shown\n").success();
    let shown = shown.stderr_has("shown").stderr;
    assert!(lines(&key).iter().all(|line| !shown.contains(line)), "{shown}");
    build("COPY id /id\n").code(1).stderr_has("the layer holds ssh key `id` in `/id`");
}

#[test]
fn as_root_what_is_wrong_with_keys_of_a_build_step_is_told() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let key = SshKey::new(&sandbox, "key", "");
    let locked = SshKey::new(&sandbox, "locked", "hunter2");
    for (name, text) in [
        ("key", fs::read(&key.file).unwrap()),
        ("locked", fs::read(&locked.file).unwrap()),
        ("public", key.public.clone().into_bytes()),
        ("text", b"no key".to_vec()),
        ("large", vec![b'x'; 20_000]),
    ] {
        sandbox.write(&format!("app/{name}"), text);
    }
    let dockerfile = "RUN --mount=type=ssh,id=deploy,required true\n";
    sandbox.write("app/Dockerfile", format!("FROM {}/ssh\n{dockerfile}", server.host()));
    let build = |options: &str| {
        let task = format!("steps: [{{build: '--network none {options} .'}}]");
        sandbox.write("app/acb.yaml", task);
        run(&sandbox, &[]).on(&server).run()
    };
    for (options, expected) in [
        ("--ssh default", "`--ssh default` needs a key, since a run has no agent of its own"),
        ("--ssh default", "`--ssh default=FILE`"),
        ("--ssh =key", "`--ssh =key` is not of the form `ID=KEY[,KEY]`"),
        ("--ssh a=key,", "is not of the form"),
        ("--ssh a=key --ssh a=key", "`--ssh a` is given twice"),
        ("--ssh a=/etc/x", "neither in a volume of the step nor in the workspace"),
        ("--ssh a=none", "the ssh key `none` is not in the context"),
        ("--ssh a=large", "the ssh key `large` is larger than 16384 bytes"),
        ("--ssh a=text", "the ssh key `text` is no private key in a form of OpenSSH or PEM"),
        ("--ssh a=public", "the ssh key `public` is a public key"),
        ("--ssh a=locked", "the ssh key `locked` is encrypted"),
        ("--ssh a=key", "ssh agent `deploy` is required, and the build was given none"),
        ("--ssh a=key", "in a `build` step with `--ssh deploy=` and keys"),
    ] {
        build(options).code(1).stderr_has(expected);
    }
    build("--ssh deploy=key").success();

    // Of a volume before any step begins.
    let begun = "- cmd: $Registry/ssh echo begun\n- {";
    let task = task(&[&locked], "--ssh default=/keys/locked .").replacen("- {", begun, 1);
    let task = task.replace("id: build, ", "id: image, ");
    sandbox.write("app/acb.yaml", task);
    let refused = run(&sandbox, &[&locked]).on(&server).run().code(1);
    refused
        .stderr_has("step `image`: the ssh key `/keys/locked` is encrypted")
        .stderr_has("keep a key for builds alone, without a passphrase")
        .stderr_lacks("begun");
}

/// A host with a repository that whoever has the key gets.
fn repository() -> GitHost {
    let host = GitHost::start();
    let app = host.repository("app");
    app.write("Dockerfile", "FROM scratch\nCOPY f /\n");
    app.write("f", "from far away");
    app.commit("first");
    host
}

/// A run that may ask a host on this machine.
fn local(sandbox: &Sandbox, run: Invocation) -> Invocation {
    run.env("REFIT_BUILD_ALLOW_HOST_NETWORK", "true")
        .env("REFIT_BUILD_ALLOW_ADDRESSES", "127.0.0.1")
        .env("REFIT_BUILD_GIT_KNOWN_HOSTS", sandbox.path("known").display())
}

/// `RUN git clone` in a build of a task without a server, whose image is `app:1`.
fn clone(sandbox: &Sandbox, runtime: &str) {
    let host = repository();
    let key = SshKey::of_kind(sandbox, "key", &["-t", "rsa", "-b", "2048", "-N", ""]);
    let ssh = SshServer::start(sandbox, &[&key], false);
    let programs = ["/usr/bin/ssh", "/usr/bin/git"];
    let serving = sandbox.server();
    serving.registry().push("git", "latest", &image_with(&programs));
    serving.stop();
    let address = format!("{}{}/app.git", ssh.url(), host.folder().display());
    let known = ssh.known();
    let clone = format!(
        "FROM localhost:5000/git\nCOPY known /etc/ssh/ssh_known_hosts\n\
         RUN --mount=type=ssh git clone {address} /app 2>&1\n\
         RUN ! git clone {address} /other 2> /refused\n"
    );
    sandbox.write("app/known", known).write("app/Dockerfile", clone);
    let build = "-t $Registry/app:1 --network host --ssh default=/keys/key .";
    sandbox.write("app/acb.yaml", task(&[&key], build) + "- push: [$Registry/app:1]\n");
    let run = run(sandbox, &[&key]).env("REFIT_BUILD_RUNTIME", runtime);
    local(sandbox, run).succeeds();
    let image = validate(&sandbox.server().registry(), "app", "1");
    assert_eq!(image.text("app/f"), "from far away");
    let refused = image.text("refused");
    assert!(refused.contains("Permission denied (publickey)"), "{refused}");
}

#[test]
fn as_root_git_in_a_step_clones_over_ssh() {
    clone(&sandbox(), "");
}

#[test]
fn as_root_git_in_a_step_clones_over_ssh_with_another_runtime() {
    clone(&sandbox(), "/usr/sbin/runc");
}

#[test]
fn as_root_git_in_a_step_of_an_ordinary_user_clones_over_ssh() {
    clone(&Sandbox::of_user(UserMachine::default()), "");
}

#[test]
fn as_root_the_context_of_a_build_step_is_fetched_over_ssh() {
    let (sandbox, host) = (sandbox(), repository());
    let [key, other] = ["key", "other"].map(|name| SshKey::new(&sandbox, name, ""));
    let ssh = SshServer::start(&sandbox, &[&key], false);
    sandbox.write("known", ssh.known());
    let address = format!("{}{}/app.git", ssh.url(), host.folder().display());
    let build = |options: &str| {
        let keys = [&key, &other];
        let task = task(&keys, &format!("-t $Registry/app {options} {address}"));
        sandbox.write("app/acb.yaml", task + "- push: [$Registry/app]\n");
        local(&sandbox, run(&sandbox, &keys)).run()
    };
    build("--ssh default=/keys/key").success();
    let image = validate(&sandbox.server().registry(), "app", "latest");
    assert_eq!(image.text("f"), "from far away");
    build("--ssh default=/keys/other").code(1).stderr_has("takes none of the keys");
    build("--ssh other=/keys/key").code(1).stderr_has("there is no ssh agent for it");
}
