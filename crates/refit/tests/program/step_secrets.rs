//! Secrets of steps: who reads them, and that nobody else sees them.

use testkit::{Outcome, Sandbox, Server, busybox};

use crate::sandbox;

fn server(sandbox: &Sandbox) -> Server {
    let server = sandbox.server();
    server.registry().push("busybox", "latest", &busybox());
    server
}

fn run(sandbox: &Sandbox, server: &Server, task: &str, flags: &[&str]) -> Outcome {
    sandbox.write("app/acb.yaml", task);
    let args = ["run", "app"].into_iter().chain(flags.iter().copied());
    sandbox.refit(args).on(server).run()
}

#[test]
fn as_root_a_secret_is_hidden_also_when_it_comes_in_pieces() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let task = "version: v1.1.0
steps:
  - cmd: $Registry/busybox sh -c 'for part in \"it is hun\" ter22 \", not hunt\" er23; do printf \"%s\" \"$part\"; sleep 0.4; done'
  - cmd: $Registry/busybox sh -c 'printf user:{{.Values.p}} | base64; echo https://me:word@example.com/x'
";
    let done = run(&sandbox, &server, task, &["--set-secret", "p=hunter22"]).success();
    done.stderr_has("it is ***, not hunter23")
        .stderr_has("dXNlcjp***g==")
        .stderr_has("https://***@example");
    let short = "steps: [{cmd: '{{.Run.Registry}}/busybox echo pin {{.Values.p}}'}]";
    let done = run(&sandbox, &server, short, &["--set-secret", "p=123"]).success();
    done.stderr_has("a secret of fewer than 4 characters is not hidden in the log");
}

#[test]
fn as_root_a_volume_is_readable_by_the_step_s_user_alone() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let task = "version: v1.1.0
volumes:
  - {name: vault, secret: {key: '{{b64enc .Values.p}}'}}
steps:
  - cmd: $Registry/busybox sh -c 'cat /run/vault/key | rev; ls -n /run/vault/key'
    user: 1234:567
    volumeMounts: [{name: vault, mountPath: /run/vault}]
";
    let done = run(&sandbox, &server, task, &["--set-secret", "p=hunter22"]).success();
    done.stderr_has("22retnuh").stderr_has("-r--------").stderr_has("1234     567");
}

#[test]
fn as_root_f23_a_build_step_has_secrets_of_a_volume_and_of_the_workspace() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let dockerfile = format!(
        "FROM {}/busybox\nRUN --mount=type=secret,id=s cat /run/secrets/s | rev\n\
         RUN --mount=type=secret,id=w cat /run/secrets/w | rev\n",
        server.host()
    );
    sandbox.write("app/Dockerfile", dockerfile);
    let task = "version: v1.1.0
volumes:
  - {name: vault, secret: {f: '{{b64enc .Values.p}}'}}
steps:
  - cmd: $Registry/busybox sh -c 'printf made-here > token'
  - build: --secret id=s,src=//m/./f --secret id=w,src=token --no-cache .
    env: [DOCKER_BUILDKIT=1]
    volumeMounts: [{name: vault, mountPath: /m}]
";
    let done = run(&sandbox, &server, task, &["--set-secret", "p=hunter22"]).success();
    done.stderr_has("22retnuh").stderr_has("ereh-edam").stderr_lacks("hunter22");
    let refused = |option: &str, expected: &str| {
        let task = format!("steps: [{{build: '{option} .'}}]");
        run(&sandbox, &server, &task, &[]).code(1).stderr_has(expected);
    };
    refused("--secret src=token", "is not of the form `id=ID,src=FILE`");
    refused(
        "--secret id=x,src=/etc/passwd",
        "neither in a volume of the step nor in the workspace",
    );
    refused("--secret id=x,src=none", "the secret `none` is not in the context");
}

#[test]
fn as_root_a_build_is_tried_again_for_what_it_prints() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    sandbox.write(
        "app/Dockerfile",
        format!("FROM {}/busybox\nRUN echo we are throttled && false\n", server.host()),
    );
    let task = |text: &str| {
        format!("steps: [{{build: ., retries: 2, retryDelay: 1, retryOnErrors: [{text}]}}]")
    };
    let throttled = run(&sandbox, &server, &task("throttled"), &[]).code(1);
    assert_eq!(throttled.stderr.matches("is tried again in 1 s").count(), 2);
    let other = run(&sandbox, &server, &task("reset"), &[]).code(1);
    other.stderr_has("is not tried again").stderr_lacks("is tried again in");
}

#[test]
fn as_root_what_is_wrong_with_a_build_is_found_before_any_step() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let task = "version: v1.1.0
steps:
  - cmd: $Registry/busybox echo begun
  - {id: image, build: -t UPPER .}
";
    let refused = run(&sandbox, &server, task, &[]).code(1);
    refused.stderr_has("step `image`: repository name `UPPER`").stderr_lacks("begun");
}

#[test]
fn as_root_the_record_tells_what_each_step_used() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let dockerfile = format!("FROM {}/busybox\nRUN echo x > /x\n", server.host());
    sandbox.write("app/Dockerfile", dockerfile);
    let task = "version: v1.1.0
steps:
  - id: work
    cmd: $Registry/busybox sh -c 'i=0; while [ $$i -lt 200000 ]; do i=$$((i+1)); done'
    when: ['-']
  - {id: build, build: ., when: ['-']}
  - {id: bad, cmd: $Registry/busybox sh -c 'sleep 0.5; false', when: [work, build]}
  - {id: long, cmd: $Registry/busybox sleep 1000, when: [work, build]}
  - {id: never, cmd: $Registry/busybox true, when: [long]}
";
    sandbox.write("app/acb.yaml", task);
    let failed = sandbox.refit(["run", "app", "-o", "json"]).on(&server).run().code(1);
    let run = failed.json();
    let steps = run["properties"]["cost"]["steps"].as_array().unwrap().clone();
    let step = |id: &str| steps.iter().find(|step| step["id"] == id).unwrap().clone();
    assert!(step("work")["cpuMilliseconds"].as_u64().unwrap() > 0, "{steps:?}");
    assert!(step("work")["memoryPeak"].as_u64().unwrap() > 0, "{steps:?}");
    assert!(step("build")["written"].as_u64().unwrap() > 0, "{steps:?}");
    assert_eq!(step("build")["cacheMisses"], 1);
    assert_eq!(step("bad")["state"], "failed");
    assert_eq!(step("long")["state"], "failed");
    assert!(step("long")["milliseconds"].as_u64().unwrap() > 0, "{steps:?}");
    assert_eq!(step("never")["state"], "skipped");
}

#[test]
fn as_root_no_image_of_a_run_gets_a_secret_of_it() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    sandbox.write("app/Dockerfile", "FROM scratch\nCOPY conf /conf\n");
    let task = "version: v1.1.0
volumes:
  - {name: vault, secret: {f: '{{b64enc \"only-in-a-volume\"}}'}}
steps:
  - cmd: $Registry/busybox sh -c 'mkdir -p conf && printf \"key=%s\" WHAT > conf/app.ini'
    env: ['KEY={{.Values.p}}']
  - build: -t $Registry/app .
  - push: [$Registry/app]
";
    let copied = |what: &str| {
        let task = task.replace("WHAT", what);
        run(&sandbox, &server, &task, &["--set-secret", "p=hunter22-hunter22"])
    };
    let failed = copied("$KEY").code(1);
    failed
        .stderr_has("the layer holds value `p` in `/conf/app.ini`, and an image must not have it")
        .stderr_has("2 | COPY conf /conf")
        .stderr_lacks("hunter22");
    copied("only-in-a-volume").code(1).stderr_has("the layer holds file `f` of volume `vault`");
    copied("nothing").success();
}
