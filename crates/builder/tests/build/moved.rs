//! What is used again on a base that has moved, and that the image is the one that a build from
//! nothing makes.

use std::cell::Cell;

use builder::{BuildRequest, Built, Proof};
use oci::{ContainerConfig, Digest, media_type};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestRunner;

use crate::listed::listed;
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

/// Moves `registry.test/base` in a way that no test sees.
async fn move_base(fixture: &Fixture) {
    let patch = [file("unrelated", 0o644, (0, 0), b"new")];
    let base = base_files();
    fixture.put_layers("base", &[&base, &patch], &[], media_type::OCI_LAYER_GZIP).await;
}

#[tokio::test]
async fn an_archive_is_unpacked_anew_on_a_base_that_has_moved() {
    let fixture = Fixture::with_base().await;
    let archive = tar(&[file("lib/x", 0o644, (0, 0), b"x")]);
    std::fs::write(fixture.context().join("a.tar"), archive).unwrap();
    let dockerfile = "FROM registry.test/base\nADD a.tar /\nADD --link a.tar /x/\n";
    let first = fixture.build(dockerfile).await.built;
    let recorded = first.record.steps.iter().map(|step| step.proof).collect::<Vec<_>>();
    assert_eq!(recorded, [Some(Proof::Layers), Some(Proof::Nothing)]);
    move_base(&fixture).await;
    let run = fixture.build(dockerfile).await;
    let expected = [("ADD a.tar /", None), ("ADD --link a.tar /x/", Some(Proof::Nothing))];
    assert_eq!(proofs(&run.built), expected);
}

#[tokio::test]
async fn what_is_seen_of_other_images_and_what_sees_none_is_told_apart() {
    let fixture = Fixture::with_base().await;
    fixture.write("f", "f");
    let dockerfile = "FROM scratch\nCOPY --from=registry.test/base /etc/passwd /p\n\
                      COPY --link --from=registry.test/base /etc/group /g\nCOPY --link f /f\n\
                      COPY --link --chown=7 f /h\nCOPY f /i\n\
                      FROM registry.test/base\nCOPY --from=0 /p /f /o/\nCOPY --link --chown=app f /f\n";
    let proofs_of = async || {
        let built = fixture.build(dockerfile).await.built;
        proofs(&built).iter().map(|(_, proof)| proof.unwrap()).collect::<Vec<_>>()
    };
    fixture.build(dockerfile).await;
    let (nothing, seen, layers) = (Proof::Nothing, Proof::Seen, Proof::Layers);
    let mut same = proofs_of().await;
    let mut moved = {
        move_base(&fixture).await;
        proofs_of().await
    };
    // Steps of the two stages may end in any order.
    same.sort_by_key(|proof| format!("{proof:?}"));
    moved.sort_by_key(|proof| format!("{proof:?}"));
    assert_eq!(same, [layers, layers, layers, layers, layers, nothing, nothing]);
    assert_eq!(moved, [layers, nothing, nothing, seen, seen, seen, seen]);
}

#[tokio::test]
async fn triggers_of_a_base_have_no_lines_of_their_own() {
    let fixture = Fixture::with_base().await;
    let parent = "FROM registry.test/base\nONBUILD ENV A=1\nONBUILD LABEL b=2\n";
    fixture.publish("parent", &fixture.build(parent).await.built).await;
    let built = fixture.build("FROM registry.test/parent\nLABEL c=3\n").await.built;
    assert_eq!(built.record.evaluated.iter().map(|line| line.line).collect::<Vec<_>>(), [2]);
}

/// The last ones are there as folders, or not at all.
const PATHS: [&str; 10] =
    ["a", "a/b", "a/b/c", "d", "d/e", "d/e/f", "etc/extra", "g", "etc", "rel"];
const FILES: usize = 8;
const WHITEOUTS: [&str; 9] = [
    ".wh.a",
    "a/.wh.b",
    "a/b/.wh.c",
    ".wh.d",
    "d/.wh.e",
    "d/e/.wh.f",
    "etc/.wh.extra",
    ".wh.g",
    ".wh.etc",
];
const OPAQUES: [&str; 3] = ["a/.wh..wh..opq", "d/.wh..wh..opq", "d/e/.wh..wh..opq"];

/// An entry of a layer, without what decides whether it can be there.
fn entry() -> impl Strategy<Value = File> {
    let mode = select(&[0o755, 0o700, 0o1777, 0o640][..]);
    let owner = select(&[(0, 0), (0, 50), (1000, 1001)][..]);
    let time = select(&[1_000_000_000, 1_500_000_000, 1_700_000_000][..]);
    let number = 0..FILES;
    let folder_entry = (0..PATHS.len(), mode.clone(), owner.clone())
        .prop_map(|(at, mode, owner)| folder(PATHS[at], mode, owner));
    let content = select(&["one", "two"][..]);
    let file_entry = (number.clone(), mode, owner, content)
        .prop_map(|(at, mode, owner, text)| file(PATHS[at], mode, owner, text.as_bytes()));
    let target = select(&["/a", "b", "../d", "/d/e", "/g", "/nowhere/x", "etc"][..]);
    let link_entry = (number.clone(), target).prop_map(|(at, target)| link(PATHS[at], target));
    let mark = |path: &'static str| file(path, 0, (0, 0), b"");
    let whiteout = (0..WHITEOUTS.len()).prop_map(move |at| mark(WHITEOUTS[at]));
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

/// How a base or the context moves.
#[derive(Debug, Clone)]
enum Move {
    /// A layer comes on top that no instruction sees.
    Unseen,
    Added(Vec<File>),
    Replaced(usize, Vec<File>),
    Other(Base),
    Accounts(usize, usize),
    /// A file of the context gets this time.
    Touched(&'static str, i64),
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
            Self::Touched(..) => (),
        }
        moved
    }
}

fn moves() -> impl Strategy<Value = Move> {
    let touched = select(&["x", "y.txt", "dir/one.txt"][..]);
    let times = select(&[EPOCH - 9, EPOCH - 8, EPOCH + 9][..]);
    prop_oneof![
        3 => (touched, times).prop_map(|(path, time)| Move::Touched(path, time)),
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
            "--chown=:staff ",
            "--chmod=go=u-w,+X ",
            "--link ",
            "--link --chown=app ",
            "--parents ",
            "--exclude=*.txt ",
        ][..],
    );
    let sources = select(&["x", "dir", "dir/sub", "x y.txt ", "*.txt dir ", "up"][..]);
    let destinations = select(
        &["/a", "/a/", "/a/b", "/a/b/", "/d/e/f", "/d/e/", "etc/", "rel", "/", "/g", "$DEST/"][..],
    );
    let copies = (select(&["COPY", "ADD"][..]), flags, sources, destinations);
    let copy = copies.prop_map(|(word, flags, sources, to)| {
        // `ADD` has no `--parents`, and several sources go into a folder.
        let word = if flags.contains("--parents") { "COPY" } else { word };
        let slash = if sources.ends_with(' ') && !to.ends_with('/') { "/" } else { "" };
        format!("{word} {flags}{sources} {to}{slash}")
    });
    let from = select(
        &[
            "COPY --from=one /a* /etc/passwd /from/",
            "COPY --from=one --chown=app /d* /etc /d/",
            "COPY --from=registry.test/base /g* /d* /etc/group /from/",
            "COPY --link --from=registry.test/base /etc /a/b",
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
    let archive = select(
        &["ADD archive.tar /", "ADD archive.tar /a/", "ADD --link --chown=7 archive.tar /a/"][..],
    );
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
    for (path, age) in [("x", 7), ("y.txt", 9), ("dir/one.txt", -7), ("dir/sub/two", 70)] {
        fixture.touch(path, EPOCH - age);
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
    outcome_with(fixture, request).await.0
}

/// The same, with what the build said.
async fn outcome_with(
    fixture: &Fixture,
    request: &BuildRequest,
) -> (Result<Built, String>, Recorder) {
    let (built, events) = fixture.try_build(request).await;
    let built = match built {
        Ok(built) => {
            validate(&fixture.catalog, &built).await;
            Ok(built)
        }
        Err(error) => Err(error.render("Dockerfile", &request.dockerfile)),
    };
    (built, events)
}

/// What became of the cases.
#[derive(Default)]
struct Counts {
    built: Cell<usize>,
    /// Of those, on a base that moved and gave no reason to make anything.
    unseen: Cell<usize>,
    /// Of those, without a look at the context's list the second time.
    remembered: Cell<usize>,
}

fn add_one(count: &Cell<usize>) {
    count.set(count.get() + 1);
}

/// As `refit build` asks for it if the context is listed.
async fn request(fixture: &Fixture, dockerfile: &str, is_listed: bool) -> BuildRequest {
    let mut request = fixture.request(dockerfile);
    if is_listed {
        request.context = Some(listed(fixture).await.0);
    }
    request.source_date_epoch = Some(EPOCH);
    request
}

async fn check(
    dockerfile: &str,
    base: &Base,
    step: &Move,
    is_listed: bool,
    counts: &Counts,
) -> Result<(), TestCaseError> {
    let (used, fresh) = (Fixture::empty().await, Fixture::empty().await);
    write_context(&used);
    write_context(&fresh);
    put_base(&used, base).await;
    let _ = outcome(&used, &request(&used, dockerfile, is_listed).await).await;
    let moved = step.of(base);
    put_base(&used, &moved).await;
    put_base(&fresh, &moved).await;
    if let Move::Touched(path, time) = step {
        used.touch(path, *time);
        fresh.touch(path, *time);
    }
    used.forget_snapshots();
    let reused = outcome(&used, &request(&used, dockerfile, is_listed).await).await;
    let packed = used.unpacked() == 0;
    let again = request(&used, dockerfile, is_listed).await;
    let (again, events) = outcome_with(&used, &again).await;
    let anew = BuildRequest { no_cache: true, ..request(&fresh, dockerfile, is_listed).await };
    let made = outcome(&fresh, &anew).await;
    // If both stages fail, which of the two errors is told depends on who is first.
    let image = |built: &Result<Built, String>| {
        let image = built.as_ref().map(|built| (built.descriptor.clone(), built.record.clone()));
        image.map_err(|_| "it failed")
    };
    prop_assert_eq!(image(&reused), image(&made));
    prop_assert_eq!(image(&again), image(&made));
    let (Ok(reused), Ok(again)) = (reused, again) else { return Ok(()) };
    add_one(&counts.built);
    prop_assert_eq!(again.cost.cache_misses, 0);
    if is_listed && again.record.context.is_some() && !events.render().contains("load build") {
        add_one(&counts.remembered);
    }
    if let Move::Unseen = step
        && !dockerfile.contains("ADD archive")
    {
        add_one(&counts.unseen);
        prop_assert_eq!(reused.cost.cache_misses, 0);
        prop_assert!(packed, "the base was unpacked");
    }
    Ok(())
}

#[test]
fn a_moved_base_gives_the_image_of_a_build_from_nothing() {
    const CASES: u32 = 200;
    let config = ProptestConfig { source_file: Some(file!()), ..ProptestConfig::with_cases(CASES) };
    let counts = Counts::default();
    let cases = (dockerfile(), base(), moves(), any::<bool>());
    let checked = TestRunner::new(config).run(&cases, |(dockerfile, base, step, is_listed)| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check(&dockerfile, &base, &step, is_listed, &counts))
    });
    checked.unwrap();
    let Counts { built, unseen, remembered } = counts;
    let counted = [built, unseen, remembered].map(Cell::into_inner);
    // Far less than usual: so much is proven at least.
    let least = [CASES / 2, CASES / 50, CASES / 20].map(|count| count as usize);
    assert!(counted.iter().zip(least).all(|(count, least)| *count >= least), "{counted:?}");
}
