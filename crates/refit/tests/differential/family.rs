//! A family of Dockerfiles: random mixes of instructions over few paths, so that they get in
//! each other's way.
//!
//! Left out is what buildah is known to do otherwise than BuildKit and we: it keeps ranges in
//! `EXPOSE`, drops `SHELL` in OCI images, and gives the mode of `COPY --chmod` to no folder that
//! it makes.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// One stage: its instructions after `FROM`.
pub(crate) type Stage = Vec<String>;

/// A Dockerfile as text; `BASE` stands for the base image, and `PREVIOUS` in a stage for the one
/// before it, or the base image.
pub(crate) fn text(stages: &[Stage]) -> String {
    let mut text = String::new();
    let mut previous = "BASE".to_owned();
    for (number, stage) in stages.iter().enumerate() {
        text += &format!("FROM BASE AS s{number}\n");
        for instruction in stage {
            text += &instruction.replace("PREVIOUS", &previous);
            text.push('\n');
        }
        previous = format!("s{number}");
    }
    text
}

pub(crate) fn stages() -> impl Strategy<Value = Vec<Stage>> {
    vec(vec(instruction(), 1..8), 1..3)
}

fn instruction() -> impl Strategy<Value = String> {
    prop_oneof![
        5 => copy(),
        // To where no folder has to be made: buildah does not give the mode to those.
        1 => select(SOURCES)
            .prop_map(|source| format!("COPY --chmod=751 {source} /tmp/")),
        1 => path().prop_map(|to| format!("ADD linked.tar {to}")),
        4 => vec(command(), 1..4).prop_map(|commands| format!("RUN {} || true", commands.join("; "))),
        2 => stage_copy(),
        1 => prop_oneof![path(), select(NAMES).prop_map(str::to_owned)]
            .prop_map(|to| format!("WORKDIR {to}")),
        1 => select(USERS).prop_map(|user| format!("USER {user}")),
        3 => select(METADATA).prop_map(str::to_owned),
    ]
}

fn copy() -> impl Strategy<Value = String> {
    let flags = select(&["", "--chown=5:6 ", "--chown=app ", "--chown=app:staff "]);
    let sources = prop_oneof![
        6 => select(SOURCES).prop_map(str::to_owned),
        // Several need a folder; buildah makes one, we refuse.
        1 => vec(select(SOURCES), 2..4).prop_map(|sources| sources.join(" ")),
    ];
    (flags, sources, destination()).prop_map(|(flags, sources, to)| {
        let is_several = sources.contains([' ', '*', '?', '[']);
        let to = if is_several { format!("{to}/") } else { to };
        format!("COPY {flags}{sources} {to}")
    })
}

fn stage_copy() -> impl Strategy<Value = String> {
    let from = prop_oneof![path(), select(IN_BASE).prop_map(str::to_owned)];
    (from, destination()).prop_map(|(from, to)| match from.contains('*') {
        true => format!("COPY --from=PREVIOUS {from} {to}/"),
        false => format!("COPY --from=PREVIOUS {from} {to}"),
    })
}

fn destination() -> impl Strategy<Value = String> {
    let end = select(&["", "/"]);
    prop_oneof![
        4 => (path(), end).prop_map(|(path, end)| format!("{path}{end}")),
        1 => select(&[".", "./", "/", "/x/../y/"]).prop_map(str::to_owned),
        1 => select(NAMES).prop_map(str::to_owned),
    ]
}

const IN_BASE: &[&str] =
    &["/etc/passwd", "/etc", "/tmp", "/home/", "/bin/sh", "/*c", "/etc/removed/*"];
const NAMES: &[&str] = &["a", "b", "c"];
const USERS: &[&str] = &["app", "root", "1234:56", "app:staff", "0"];
const SOURCES: &[&str] = &[
    "file",
    "dir",
    "dir/",
    "dir/sub",
    "dir/sub/*.txt",
    "dir/*",
    "link",
    "linked",
    "linked/sub",
    "linked.tar",
    "deep",
    "dir/o?e",
    "ignored",
    "fil[a-f]",
    "./dir/../file",
    "/file",
];
const METADATA: &[&str] = &[
    "ENV A=1",
    "ENV A=$A-more B=\"two words\"",
    "ENV C=${A:-none}${B:+some}",
    "ARG V=x",
    "ENV D=$V",
    "LABEL one=$A \"two words\"='three $A'",
    "EXPOSE 80 53/udp",
    "STOPSIGNAL SIGINT",
    "ENTRYPOINT [\"/bin/echo\", \"$A\"]",
    "ENTRYPOINT echo $A",
    "CMD echo $A",
    "CMD [\"a\", \"b c\"]",
    "VOLUME /data",
    "VOLUME [\"/data\", \"/more data\"]",
];

/// Few paths, below each other.
fn path() -> impl Strategy<Value = String> {
    vec(select(NAMES), 1..4).prop_map(|names| format!("/{}", names.join("/")))
}

fn command() -> impl Strategy<Value = String> {
    let mode = select(&["755", "4711", "000", "1777", "u+s,o-r"]);
    let owner = select(&["5", "1000:50", "70000:70000"]);
    let target = prop_oneof![path(), select(NAMES).prop_map(str::to_owned)];
    prop_oneof![
        3 => path().prop_map(|path| format!("mkdir -p {path}")),
        3 => path().prop_map(|path| format!("echo {} > {path}", path.len())),
        1 => path().prop_map(|path| format!("echo more >> {path}")),
        2 => path().prop_map(|path| format!("rm -rf {path}")),
        2 => (target, path()).prop_map(|(target, path)| format!("ln -s {target} {path}")),
        1 => (path(), path()).prop_map(|(from, to)| format!("ln {from} {to}")),
        2 => (path(), path()).prop_map(|(from, to)| format!("mv {from} {to}")),
        1 => (mode, path()).prop_map(|(mode, path)| format!("chmod {mode} {path}")),
        1 => (owner, path()).prop_map(|(owner, path)| format!("chown -R {owner} {path}")),
        1 => path().prop_map(|path| format!("mkfifo {path}")),
        1 => path().prop_map(|path| format!("id -u > {path}; pwd >> {path}; echo $A$HOME >> {path}")),
    ]
}
