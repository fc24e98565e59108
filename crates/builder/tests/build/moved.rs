//! What is used again on a base that has moved, and that the image is the one that a build from
//! nothing makes.

use std::time::{Duration, UNIX_EPOCH};

use builder::{BuildRequest, Built, Proof};
use oci::{ContainerConfig, Digest, media_type};
use proptest::prelude::*;
use proptest::sample::select;

use crate::support::*;

const EPOCH: i64 = 1_600_000_000;

/// Names of the steps with what proves that they need not be done again.
fn proofs(built: &Built) -> Vec<(&str, Option<Proof>)> {
    let steps = built.cost.steps.iter().filter(|step| !step.name.contains(" FROM "));
    steps.map(|step| (step.name.split_once("] ").unwrap().1, step.proof)).collect()
}

#[tokio::test]
async fn what_sees_the_same_is_proven_and_the_base_stays_packed() {
    let fixture = Fixture::with_base().await;
    fixture.write("f", "f");
    let dockerfile = "FROM registry.test/base\nLABEL a=b\nCOPY --chown=app f /lib/\nUSER app\n\
                      WORKDIR /home/app/made\nCOPY f .\nADD f /tmp/\n";
    let first = fixture.build(dockerfile).await.built;
    let steps = ["COPY --chown=app f /lib/", "WORKDIR /home/app/made", "COPY f .", "ADD f /tmp/"];
    assert_eq!(proofs(&first), steps.map(|step| (step, None)));
    let recorded = |built: &Built| -> Vec<_> {
        built.record.steps.iter().map(|step| (step.line, step.proof)).collect()
    };
    assert_eq!(recorded(&first), [3, 5, 6, 7].map(|line| (line, Some(Proof::Seen))));
    let evaluated: Vec<u32> = first.record.evaluated.iter().map(|line| line.line).collect();
    assert_eq!(evaluated, [2, 4]);
    // Nothing has moved.
    let again = fixture.build(dockerfile).await.built;
    assert_eq!(proofs(&again), steps.map(|step| (step, Some(Proof::Layers))));
    assert_eq!(again.record, first.record);

    let patch = [folder("usr/lib", 0o775, (0, 50)), file("usr/lib/new", 0o644, (0, 0), b"new")];
    let (base, gzip) = (base_files(), media_type::OCI_LAYER_GZIP);
    fixture.put_layers("base", &[&base, &patch], &[], gzip).await;
    fixture.forget_snapshots();
    let run = fixture.build(dockerfile).await;
    assert_eq!(proofs(&run.built), steps.map(|step| (step, Some(Proof::Seen))));
    assert_eq!(recorded(&run.built), recorded(&first));
    assert_eq!(run.built.layers[2..], first.layers[1..]);
    assert_eq!((run.built.cost.cache_hits, run.built.cost.cache_misses), (4, 0));
    assert_eq!(fixture.unpacked(), 0);
}

#[tokio::test]
async fn an_archive_is_unpacked_anew_on_a_base_that_has_moved() {
    let fixture = Fixture::with_base().await;
    let archive = tar(&[file("lib/x", 0o644, (0, 0), b"x")]);
    std::fs::write(fixture.context().join("a.tar"), archive).unwrap();
    let dockerfile = "FROM registry.test/base\nADD a.tar /\n";
    let first = fixture.build(dockerfile).await.built;
    assert_eq!(first.record.steps[0].proof, Some(Proof::Layers));
    let patch = [file("unrelated", 0o644, (0, 0), b"new")];
    let base = base_files();
    fixture.put_layers("base", &[&base, &patch], &[], media_type::OCI_LAYER_GZIP).await;
    let run = fixture.build(dockerfile).await;
    assert_eq!(proofs(&run.built), [("ADD a.tar /", None)]);
}

const PATHS: [&str; 9] = ["a", "a/b", "a/b/c", "d", "d/e", "d/e/f", "etc", "etc/extra", "g"];
const WHITEOUTS: [&str; 9] = [
    ".wh.a",
    "a/.wh.b",
    "a/b/.wh.c",
    ".wh.d",
    "d/.wh.e",
    "d/e/.wh.f",
    ".wh.etc",
    "etc/.wh.extra",
    ".wh.g",
];
const OPAQUES: [&str; 3] = ["a/.wh..wh..opq", "d/.wh..wh..opq", "d/e/.wh..wh..opq"];

/// An entry of a layer, without what decides whether it can be there.
fn entry() -> impl Strategy<Value = File> {
    let mode = select(&[0o755, 0o700, 0o1777, 0o640][..]);
    let owner = select(&[(0, 0), (0, 50), (1000, 1001)][..]);
    let time = select(&[1_000_000_000, 1_500_000_000, 1_700_000_000][..]);
    let number = 0..PATHS.len();
    let folder_entry = (number.clone(), mode.clone(), owner.clone())
        .prop_map(|(at, mode, owner)| folder(PATHS[at], mode, owner));
    let content = select(&["one", "two"][..]);
    let file_entry = (number.clone(), mode, owner, content)
        .prop_map(|(at, mode, owner, text)| file(PATHS[at], mode, owner, text.as_bytes()));
    let target = select(&["/a", "b", "../d", "/d/e", "/g", "/nowhere/x", "etc"][..]);
    let link_entry = (number.clone(), target).prop_map(|(at, target)| link(PATHS[at], target));
    let mark = |path: &'static str| file(path, 0, (0, 0), b"");
    let whiteout = number.prop_map(move |at| mark(WHITEOUTS[at]));
    let opaque = select(&OPAQUES[..]).prop_map(mark);
    let kinds = prop_oneof![
        6 => folder_entry, 4 => file_entry, 3 => link_entry, 1 => whiteout, 1 => opaque,
    ];
    (kinds, time, any::<bool>()).prop_map(|(file, time, attribute)| {
        let file = file.of_time(time);
        match attribute {
            true => file.with_xattr("user.mark", b"yes"),
            false => file,
        }
    })
}

/// Two that differ in what names stand for.
const PASSWD: [&[u8]; 2] = [b"app:x:1000:1001::/home/app:\n", b"app:x:7:8::/home/app:\n"];
const GROUP: [&[u8]; 2] = [b"staff:x:50:\n", b"staff:x:51:\n"];

#[derive(Clone)]
struct Base {
    accounts: (usize, usize),
    layers: Vec<Vec<File>>,
    user: &'static str,
    folder: &'static str,
    trigger: &'static str,
}

impl std::fmt::Debug for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { accounts, layers, user, folder, trigger } = self;
        let entries = layers.iter().map(|layer| Files::of(&tar(layer)).below(""));
        write!(f, "{accounts:?} {user} {folder} {trigger} {:?}", entries.collect::<Vec<_>>())
    }
}

fn layer() -> impl Strategy<Value = Vec<File>> {
    proptest::collection::vec(entry(), 0..6)
}

fn base() -> impl Strategy<Value = Base> {
    let strategies = (
        (0..2_usize, 0..2_usize),
        proptest::collection::vec(layer(), 1..4),
        select(&["", "", "app", "7:9"][..]),
        select(&["", "/a", "/d/new"][..]),
        select(&["", "", "COPY x /triggered/", "WORKDIR sub"][..]),
    );
    strategies.prop_map(|(accounts, layers, user, folder, trigger)| Base {
        accounts,
        layers,
        user,
        folder,
        trigger,
    })
}

/// How a base moves.
#[derive(Debug, Clone)]
enum Move {
    /// A layer comes on top that no instruction sees.
    Unseen,
    Added(Vec<File>),
    Replaced(usize, Vec<File>),
    Other(Base),
    Accounts(usize, usize),
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", Files::of(&tar(std::slice::from_ref(self))).below(""))
    }
}

impl Move {
    fn of(&self, base: &Base) -> Base {
        let mut moved = base.clone();
        match self {
            Self::Unseen => moved.layers.push(vec![
                folder("unseen", 0o700, (3, 4)),
                file("unseen/file", 0o600, (3, 4), b"patched"),
            ]),
            Self::Added(layer) => moved.layers.push(layer.clone()),
            Self::Replaced(at, layer) => {
                let at = at % moved.layers.len();
                moved.layers[at] = layer.clone();
            }
            Self::Other(other) => moved = other.clone(),
            Self::Accounts(user, group) => moved.accounts = (*user, *group),
        }
        moved
    }
}

fn moves() -> impl Strategy<Value = Move> {
    prop_oneof![
        3 => Just(Move::Unseen),
        3 => layer().prop_map(Move::Added),
        3 => (0..3_usize, layer()).prop_map(|(at, layer)| Move::Replaced(at, layer)),
        1 => base().prop_map(Move::Other),
        1 => (0..2_usize, 0..2_usize).prop_map(|(user, group)| Move::Accounts(user, group)),
    ]
}

/// A line of a Dockerfile; archives only where they are wanted.
fn instruction() -> impl Strategy<Value = String> {
    let flags = select(
        &[
            "",
            "",
            "",
            "--chown=app ",
            "--chown=app:staff ",
            "--chown=5:6 ",
            "--chmod=640 ",
            "--chown=staff ",
            "--chmod=go=u-w,+X ",
            "--link ",
            "--link --chown=app ",
            "--parents ",
            "--exclude=*.txt ",
        ][..],
    );
    let sources = select(&["x", "dir", "dir/sub", "x y.txt", "*.txt dir", "up"][..]);
    let destinations = select(
        &["/a", "/a/", "/a/b", "/a/b/", "/d/e/f", "/d/e/", "etc/", "rel", "/", "/g", "$DEST/"][..],
    );
    let copies = (select(&["COPY", "ADD"][..]), flags, sources, destinations);
    let copy =
        copies.prop_map(|(word, flags, sources, to)| format!("{word} {flags}{sources} {to}"));
    let from = select(
        &[
            "COPY --from=one /a /from/",
            "COPY --from=one --chown=app /d /d",
            "COPY --from=registry.test/base /g /d/e /from/",
            "COPY --from=registry.test/base /a/b /a/b",
        ][..],
    );
    let other = select(
        &[
            "WORKDIR /a/b",
            "WORKDIR w",
            "WORKDIR /g/x",
            "WORKDIR /d/e",
            "USER app",
            "USER 7",
            "USER root",
            "USER app:staff",
            "ENV DEST=/d",
            "ENV DEST=/a/b",
            "LABEL a=b",
            "COPY <<one <<two /a/\n1\none\n2\ntwo",
        ][..],
    );
    let archive = select(&["ADD archive.tar /", "ADD archive.tar /a/"][..]);
    prop_oneof![
        8 => copy,
        2 => from.prop_map(str::to_owned),
        4 => other.prop_map(str::to_owned),
        1 => archive.prop_map(str::to_owned),
    ]
}

fn dockerfile() -> impl Strategy<Value = String> {
    let first = proptest::collection::vec(instruction(), 0..2);
    let last = proptest::collection::vec(instruction(), 1..6);
    let below = select(&["registry.test/base", "registry.test/base", "one", "scratch"][..]);
    (first, below, last).prop_map(|(first, below, last)| {
        let first = first.into_iter().filter(|line| !line.contains("--from=one"));
        let first = first.collect::<Vec<_>>().join("\n");
        format!("FROM registry.test/base AS one\n{first}\nFROM {below}\n{}\n", last.join("\n"))
    })
}

/// The same in every store.
fn write_context(fixture: &Fixture) {
    fixture.write("x", "x");
    fixture.write("y.txt", "y");
    fixture.write("dir/one.txt", "1");
    fixture.write("dir/sub/two", "2");
    fixture.chmod("dir/sub", 0o711);
    std::os::unix::fs::symlink("dir/sub/two", fixture.context().join("up")).unwrap();
    let archive =
        [folder("a", 0o750, (2, 2)), file("a/b/packed", 0o600, (2, 3), b"p"), link("d", "a")];
    std::fs::write(fixture.context().join("archive.tar"), tar(&archive)).unwrap();
    for (path, age) in [("x", 7), ("dir/one.txt", -7), ("dir/sub/two", 70)] {
        let time = UNIX_EPOCH + Duration::from_secs((EPOCH - age).try_into().unwrap());
        let file = std::fs::File::options().append(true).open(fixture.context().join(path));
        file.unwrap().set_modified(time).unwrap();
    }
}

async fn put_base(fixture: &Fixture, base: &Base) {
    let (user, group) = base.accounts;
    let accounts = [
        file("etc/passwd", 0o644, (0, 0), PASSWD[user]),
        file("etc/group", 0o644, (0, 0), GROUP[group]),
    ];
    let layers: Vec<&[File]> =
        std::iter::once(&accounts[..]).chain(base.layers.iter().map(Vec::as_slice)).collect();
    let diff_ids = layers.iter().map(|files| Digest::of(&tar(files))).collect();
    let change = |config: &mut ContainerConfig| {
        config.user = base.user.to_owned();
        config.working_dir = base.folder.to_owned();
        let triggers = [base.trigger.to_owned()].into_iter();
        config.on_build = triggers.filter(|trigger| !trigger.is_empty()).collect();
    };
    let gzip = media_type::OCI_LAYER_GZIP;
    fixture.put_config("base", &layers, diff_ids, &["DEST=/dest"], gzip, change).await;
}

/// What a build came to: the image with its record, or the error.
async fn outcome(fixture: &Fixture, request: &BuildRequest) -> Result<Built, String> {
    let (built, _) = fixture.try_build(request).await;
    match built {
        Ok(built) => {
            validate(&fixture.catalog, &built).await;
            Ok(built)
        }
        Err(error) => Err(error.render("Dockerfile", &request.dockerfile)),
    }
}

async fn check(dockerfile: &str, base: &Base, step: &Move) -> Result<(), TestCaseError> {
    let (used, fresh) = (Fixture::empty().await, Fixture::empty().await);
    write_context(&used);
    write_context(&fresh);
    let request = |fixture: &Fixture| BuildRequest {
        source_date_epoch: Some(EPOCH),
        ..fixture.request(dockerfile)
    };
    put_base(&used, base).await;
    let before = outcome(&used, &request(&used)).await;
    let moved = step.of(base);
    put_base(&used, &moved).await;
    put_base(&fresh, &moved).await;
    used.forget_snapshots();
    let reused = outcome(&used, &request(&used)).await;
    let packed = used.unpacked() == 0;
    let made = outcome(&fresh, &BuildRequest { no_cache: true, ..request(&fresh) }).await;
    let image = |built: &Result<Built, String>| match built {
        Ok(built) => Ok((built.descriptor.clone(), built.record.clone())),
        Err(error) => Err(error.clone()),
    };
    prop_assert_eq!(image(&reused), image(&made));
    if let (Ok(_), Ok(reused), Move::Unseen) = (before, reused, step)
        && !dockerfile.contains("archive")
    {
        prop_assert_eq!(reused.cost.cache_misses, 0);
        prop_assert!(packed, "the base was unpacked");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_moved_base_gives_the_image_of_a_build_from_nothing(
        dockerfile in dockerfile(), base in base(), step in moves(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check(&dockerfile, &base, &step))?;
    }
}
