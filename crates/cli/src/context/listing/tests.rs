use std::os::unix::fs::symlink;
use std::time::UNIX_EPOCH;

use proptest::prelude::*;

use super::*;
use crate::context::key::now;
use crate::context::packs::Content;

/// So much later than any change that the index is believed.
fn later() -> Duration {
    now() + Duration::from_secs(3600)
}

/// A context, and a cache folder.
pub(in crate::context) struct Workshop {
    context: tempfile::TempDir,
    cache: tempfile::TempDir,
}

impl Workshop {
    pub(in crate::context) fn new() -> Self {
        let new =
            Self { context: tempfile::tempdir().unwrap(), cache: tempfile::tempdir().unwrap() };
        new.write("Dockerfile", "FROM scratch\n");
        new
    }

    fn path(&self, path: &str) -> PathBuf {
        self.context.path().join(path)
    }

    pub(in crate::context) fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn list_with(&self, index: &Index) -> Listing {
        let source = Source::find(self.context.path().to_str().unwrap(), None).unwrap();
        list(&source, index, later()).unwrap()
    }

    /// With what is remembered, and remembers it.
    pub(in crate::context) fn list(&self) -> Listing {
        let index = Index::load(Some(self.cache.path()), Some(self.context.path()));
        let listing = self.list_with(&index);
        index.save(listing.began, &listing.records);
        listing
    }

    fn list_without_index(&self) -> Listing {
        self.list_with(&Index::default())
    }
}

fn entries(listing: &Listing) -> Vec<SourceEntry> {
    let mut text = Vec::new();
    listing.write_text(&mut text).unwrap();
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
}

/// Paths and digests of the files in a list.
fn files(listing: &Listing) -> Vec<(String, String)> {
    let file = |entry: SourceEntry| match entry.kind {
        SourceEntryKind::File { digest, .. } => Some((entry.path, digest)),
        _ => None,
    };
    entries(listing).into_iter().filter_map(file).collect()
}

/// The files as packs would find them.
fn numbered(listing: &Listing) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let count = files(listing).len() as u64;
    let mut note = |number, content: Content<'_>| {
        assert_eq!(number, all.len() as u64);
        let path = match &content {
            Content::Dockerfile(_) => entries(listing)[0].path.clone(),
            Content::File(record) => record.path.to_str().unwrap().to_owned(),
        };
        all.push((path, content.digest().to_string()));
        Ok(())
    };
    listing.visit(&[(0, count)], &mut note).unwrap();
    all
}

#[derive(Debug, Clone)]
enum Edit {
    Write(String, u8),
    /// Another content, with the size and the time of before.
    Swap(String),
    Remove(String),
    Rename(String, String),
    HardLink(String, String),
    Symlink(String, String),
}

impl Edit {
    /// What is not possible is left.
    fn apply(&self, workshop: &Workshop) -> io::Result<()> {
        let path = |path: &str| workshop.path(path);
        match self {
            Self::Write(to, content) => {
                fs::create_dir_all(path(to).parent().unwrap())?;
                fs::write(path(to), format!("{content:03}"))
            }
            Self::Swap(of) => {
                let modified = fs::metadata(path(of))?.modified()?;
                let mut content = fs::read(path(of))?;
                content.reverse();
                fs::write(path(of), content)?;
                fs::File::options().write(true).open(path(of))?.set_modified(modified)
            }
            Self::Remove(of) => fs::remove_file(path(of)).or_else(|_| fs::remove_dir_all(path(of))),
            Self::Rename(of, to) => fs::rename(path(of), path(to)),
            Self::HardLink(of, to) => fs::hard_link(path(of), path(to)),
            Self::Symlink(to, at) => symlink(to, path(at)),
        }
    }
}

/// Few names, so that edits meet; of those that sort around a slash.
fn some_path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "a-b", "a0", "a.b", "B", "é"]);
    prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

fn some_edit() -> impl Strategy<Value = Edit> {
    let two = || (some_path(), some_path());
    prop_oneof![
        4 => (some_path(), any::<u8>()).prop_map(|(to, content)| Edit::Write(to, content)),
        2 => some_path().prop_map(Edit::Swap),
        1 => some_path().prop_map(Edit::Remove),
        1 => two().prop_map(|(of, to)| Edit::Rename(of, to)),
        1 => two().prop_map(|(of, to)| Edit::HardLink(of, to)),
        1 => two().prop_map(|(to, at)| Edit::Symlink(to, at)),
    ]
}

/// Waits until the clock of files has gone on.
pub(in crate::context) fn tick(workshop: &Workshop) {
    let probe = workshop.cache.path().join("probe");
    let time = || {
        fs::write(&probe, "").unwrap();
        fs::metadata(&probe).unwrap().modified().unwrap().duration_since(UNIX_EPOCH).unwrap()
    };
    let before = time();
    while time() == before {}
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_list_is_the_same_with_and_without_an_index(
        rounds in prop::collection::vec(prop::collection::vec(some_edit(), 0..25), 1..4),
    ) {
        let workshop = Workshop::new();
        for edits in rounds {
            for edit in edits {
                let _ = edit.apply(&workshop);
            }
            let expected = workshop.list_without_index();
            let listing = workshop.list();
            prop_assert_eq!(entries(&listing), entries(&expected));
            prop_assert_eq!(&listing.digest, &expected.digest);
            prop_assert_eq!(&listing.summary, &expected.summary);
            prop_assert_eq!(numbered(&listing), files(&expected));
            // All is known now.
            let again = workshop.list();
            prop_assert_eq!((again.hashed, &again.digest), (0, &expected.digest));
            tick(&workshop);
        }
    }
}

#[test]
fn names_that_sort_around_a_slash_are_known() {
    let workshop = Workshop::new();
    for path in ["a/b", "a/b0/c", "a/b-/c", "a-b", "a0/x", "a!", "a.b/c", "A", "ab"] {
        workshop.write(path, path);
    }
    assert_eq!(workshop.list().hashed, 10);
    assert_eq!(workshop.list().hashed, 0);
    // Only what is new: what comes after it, and after what is gone, is still known.
    workshop.write("a/a", "new");
    fs::remove_file(workshop.path("a/b0/c")).unwrap();
    let listing = workshop.list();
    assert_eq!(listing.hashed, 1);
    assert_eq!(listing.digest, workshop.list_without_index().digest);
}

#[test]
fn a_file_with_names_in_several_batches_is_read_once() {
    let workshop = Workshop::new();
    workshop.write("a", "of several names");
    for number in 0..3 * BATCH_MAX {
        workshop.write(&format!("m{number}"), &number.to_string());
    }
    for name in ["b", "m5-", "z"] {
        fs::hard_link(workshop.path("a"), workshop.path(name)).unwrap();
    }
    let listing = workshop.list();
    assert_eq!(listing.hashed, 2 + 3 * BATCH_MAX);
    let mut names = Vec::new();
    for SourceEntry { path, kind, .. } in entries(&listing) {
        if let SourceEntryKind::File { link: Some(0), digest, .. } = kind {
            assert_eq!(digest, Digest::of(b"of several names").to_string());
            names.push(path);
        }
    }
    assert_eq!(names, ["a", "b", "m5-", "z"]);
    assert_eq!(numbered(&listing), files(&listing));
    assert_eq!(workshop.list().hashed, 0);
}

#[test]
fn what_stays_behind_is_told_up_to_a_bound() {
    let mut summary = Summary::default();
    for number in 0..1000 {
        summary.skip(Path::new(&number.to_string()));
    }
    assert_eq!((summary.skipped.len() as u64) + summary.skipped_more, 1000);
    assert_eq!(summary.skipped[99], "99");
}

#[test]
fn a_name_that_is_no_text_ends_the_walk() {
    use std::os::unix::ffi::OsStrExt as _;
    let workshop = Workshop::new();
    for number in 0..10 * BATCH_MAX {
        workshop.write(&format!("m{number}"), "");
    }
    let name = workshop.context.path().join(std::ffi::OsStr::from_bytes(b"A\xff"));
    fs::write(name, "").unwrap();
    let source = Source::find(workshop.context.path().to_str().unwrap(), None).unwrap();
    let Err(error) = list(&source, &Index::default(), now()) else { panic!("it was listed") };
    assert!(error.to_string().contains("not UTF-8"), "{error}");
}
