//! Section G: which Dockerfile, target and context the arguments of a `build` step mean.

use testkit::GitHost;

use super::{LOOPBACK, run, server_with};
use crate::observe::place;
use crate::sandbox;

#[test]
fn as_root_g1_g2_g3_g4_g5_g6_g7_g8_g9_builds_use_the_files_that_their_arguments_mean() {
    let sandbox = sandbox();
    let server = server_with(&sandbox, LOOPBACK);
    // Each says which file it is of which context.
    let dockerfile = |name: &str| {
        format!(
            "FROM {}/busybox AS t\nARG A=-\nCOPY where /where\n\
             RUN echo {name} in $(cat /where), $A > /made\nFROM t\nRUN echo more >> /made\n",
            server.host()
        )
    };
    for (path, name) in [
        ("Dockerfile", "plain"),
        ("d/Dockerfile", "d"),
        ("app/Dockerfile", "app"),
        ("x.df", "x.df"),
    ] {
        sandbox.write(&format!("app/{path}"), dockerfile(name));
    }
    sandbox.write("app/where", "root").write("app/app/where", "sub");
    let git = GitHost::start();
    let repository = git.repository("r");
    repository.write("sub/x/D", dockerfile("remote"));
    repository.write("sub/where", "repository");
    repository.commit("one");
    repository.git(&["branch", "dev"]);
    let remote = format!("{}/r.git#dev:sub -f x/D -t $Registry/g6", git.url());
    let builds = [
        ("g1", "-t $Registry/g1 -f d/Dockerfile .", "d in root, -"),
        ("g2", ". -t $Registry/g2", "plain in root, -"),
        ("g3", "--no-cache -t $Registry/g3 ./app", "app in sub, -"),
        ("g4", "-t $Registry/g4 --no-cache ./app", "app in sub, -"),
        ("g5", "-t $Registry/g5 --file=x.df --target=t .", "x.df in root, -"),
        ("g6", &remote, "remote in repository, -"),
        ("g7", "-t $Registry/g7", "plain in root, -"),
        ("g8", "-t $Registry/g8 --build-arg \"A=b c\" .", "plain in root, b c"),
        ("g9", "--image $Registry/g9 .", "plain in root, -"),
    ];
    let mut task = "version: v1.1.0\nsteps:\n".to_owned();
    for (case, arguments, _) in &builds {
        task += &format!("  - {{id: {case}, build: '{arguments}'}}\n");
        task += &format!("  - cmd: $Registry/{case} sh -c 'echo {case} is $(cat /made)'\n");
    }
    let done = run(&sandbox, &server, &task).success();
    for (case, _, made) in builds {
        let more = if case == "g5" { "" } else { " more" };
        place(&done.stderr, &format!(" {case} is {made}{more}\n"));
    }
}

#[test]
fn as_root_f17_f18_a_build_cache_is_kept_beside_the_image_for_other_servers() {
    let (sandbox, other_sandbox) = (sandbox(), sandbox());
    let (server, other) = (server_with(&sandbox, ""), server_with(&other_sandbox, LOOPBACK));
    let host = server.host();
    let dockerfile = format!(
        "FROM {host}/busybox AS one\nRUN cat /proc/sys/kernel/random/uuid > /made\n\
         FROM {host}/busybox\nCOPY --from=one /made /made\n"
    );
    for sandbox in [&sandbox, &other_sandbox] {
        sandbox.write("app/Dockerfile", &dockerfile);
    }
    let build = format!("{{id: b, build: -t {host}/app:1 ., cache: Enabled}}");
    let first = run(&sandbox, &server, &format!("steps: [{build}]")).success();
    let name = format!("{host}/app:cache_quickrun_b");
    let first = first.stderr_has(&format!("There is no build cache `{name}` yet"));
    let first = first.stderr_has(&format!("results into build cache `{name}`"));
    let tags = sandbox.refit(["repository", "show-tags", "app"]).on(&server).run().success();
    assert_eq!(tags.stdout.trim(), "cache_quickrun_b", "only a push step pushes the image");
    let built = |log: &str| {
        let digest = log.split("Step `b` built ").nth(1).expect("it was built");
        digest.lines().next().expect("a line has an end").to_owned()
    };
    let task = format!("steps: [{build}, {{cmd: '{host}/app:1 cat /made'}}]");
    let second = run(&other_sandbox, &other, &task).success();
    assert_eq!(built(&first.stderr), built(&second.stderr), "{}", second.stderr);
    // It may not put anything there.
    second.stderr_has(&format!("build cache `{name}` is not kept: this server does not let runs"));
    let task = "version: v1.1.0
steps:
  - {id: b, build: -t $Registry/app:1 ., cache: enabled}
  - {push: [$Registry/app:1]}
";
    let pushed = run(&sandbox, &server, task).success().stderr_lacks("There is no build cache");
    assert_eq!(built(&pushed.stderr), built(&first.stderr));
    let plain = "steps: [{id: b, build: -f Dockerfile ., cache: enabled}]";
    run(&sandbox, &server, plain).success().stderr_lacks("build cache");
}
