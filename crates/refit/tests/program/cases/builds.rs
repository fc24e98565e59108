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
