use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use api::{SourceEntry, SourceEntryKind};
use oci::Digest;

use super::*;

/// The list of a context.
fn listed(context: &Path, file: Option<&Path>) -> (Source, listing::Listing) {
    let source = Source::find(context.to_str().unwrap(), file).unwrap();
    let listing = listing::list(&source, &index::Index::default(), key::now()).unwrap();
    (source, listing)
}

/// The list itself.
fn text(listing: &listing::Listing) -> String {
    let mut text = Vec::new();
    listing.write_text(&mut text).unwrap();
    assert_eq!(listing.digest, Digest::of(&text));
    String::from_utf8(text).unwrap()
}

/// Entries of a context: path to what it is. The Dockerfile's own name, which differs every
/// time, is `<dockerfile>`; of a file with several names the first has its bytes.
fn entries(context: &Path, file: Option<&Path>) -> BTreeMap<String, String> {
    let (source, listing) = listed(context, file);
    let mut links = BTreeMap::new();
    let mut entries = BTreeMap::new();
    for line in text(&listing).lines() {
        let SourceEntry { path, kind, .. } = serde_json::from_str(line).unwrap();
        let is_dockerfile = path == source.dockerfile_path;
        let text = || match (is_dockerfile, &source.folder) {
            (false, Some(folder)) => fs::read_to_string(folder.join(&path)).unwrap(),
            _ => String::from_utf8(source.dockerfile.clone().unwrap()).unwrap(),
        };
        let kind = match kind {
            SourceEntryKind::Directory { .. } => "folder".to_owned(),
            SourceEntryKind::Symlink { target } => format!("-> {target}"),
            SourceEntryKind::File { mode, size, digest, link } => {
                let first = link.map(|link| links.entry(link).or_insert(path.clone()).clone());
                let text = text();
                assert_eq!(digest, Digest::of(text.as_bytes()).to_string());
                assert_eq!(size, text.len() as u64);
                match first.filter(|first| *first != path) {
                    Some(first) => format!("= {first}"),
                    None => format!("{mode:o} {text}"),
                }
            }
        };
        let path = if is_dockerfile { "<dockerfile>".to_owned() } else { path };
        entries.insert(path, kind);
    }
    entries
}

fn write(folder: &Path, files: &[(&str, &str)]) {
    for (path, text) in files {
        let file = folder.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    }
}

fn names(entries: &BTreeMap<String, String>) -> Vec<&str> {
    entries.keys().map(String::as_str).collect()
}

#[test]
fn i23_a_context_travels_with_modes_and_links_but_without_version_control() {
    let folder = tempfile::tempdir().unwrap();
    write(
        folder.path(),
        &[
            ("Dockerfile", "FROM scratch\n"),
            ("src/main.c", "int main;"),
            (".git/config", "secret"),
            ("src/.gitignore", "x"),
            ("src/.venv/bin/python", "x"),
        ],
    );
    fs::create_dir(folder.path().join("empty")).unwrap();
    fs::set_permissions(folder.path().join("src/main.c"), fs::Permissions::from_mode(0o755))
        .unwrap();
    symlink("/etc/passwd", folder.path().join("link")).unwrap();
    let entries = entries(folder.path(), None);
    let expected = [
        ("<dockerfile>", "644 FROM scratch\n"),
        ("Dockerfile", "644 FROM scratch\n"),
        ("empty", "folder"),
        ("link", "-> /etc/passwd"),
        ("src", "folder"),
        ("src/main.c", "755 int main;"),
    ];
    let expected = expected.map(|(path, kind)| (path.to_owned(), kind.to_owned()));
    assert_eq!(entries, expected.into());
}

#[test]
fn i24_the_ignore_file_decides_and_may_take_back() {
    let folder = tempfile::tempdir().unwrap();
    write(
        folder.path(),
        &[
            ("Dockerfile", "FROM scratch\n"),
            (
                ".dockerignore",
                "\u{feff}# comment\n/build/\n*.o\n!build/keep\n!.git/**\nDockerfile\n",
            ),
            ("build/lost", ""),
            ("build/keep", ""),
            ("other/lost", ""),
            ("a.o", ""),
            (".git/HEAD", ""),
        ],
    );
    let entries = entries(folder.path(), None);
    assert_eq!(
        names(&entries),
        [
            ".dockerignore",
            ".git",
            ".git/HEAD",
            "<dockerfile>",
            "build",
            "build/keep",
            "other",
            "other/lost"
        ]
    );
}

#[test]
fn a_dockerfile_outside_travels_with_its_own_ignore_file() {
    let folder = tempfile::tempdir().unwrap();
    let context = folder.path().join("context");
    write(&context, &[(".dockerignore", "kept\n"), ("kept", ""), ("lost", "")]);
    write(
        folder.path(),
        &[("other.Dockerfile", "FROM x\n"), ("other.Dockerfile.dockerignore", "lost\n")],
    );
    let file = folder.path().join("other.Dockerfile");
    let entries = entries(&context, Some(&file));
    assert_eq!(names(&entries), ["<dockerfile>", "kept"]);
    assert_eq!(entries["<dockerfile>"], "644 FROM x\n");
}

#[test]
fn i25_of_two_ignore_files_only_that_of_the_dockerfile_counts() {
    let folder = tempfile::tempdir().unwrap();
    let ignored = [(".dockerignore", "one\n"), ("Dockerfile.dockerignore", "two\n")];
    write(folder.path(), &ignored);
    write(folder.path(), &[("Dockerfile", "FROM scratch\n"), ("one", ""), ("two", "")]);
    let entries = entries(folder.path(), None);
    assert_eq!(names(&entries), ["<dockerfile>", "Dockerfile", "Dockerfile.dockerignore", "one"]);
}

#[test]
fn targets_of_links_travel_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[("Dockerfile", "FROM scratch\n")]);
    let long = "./long//".repeat(30);
    let targets = ["/a//b/./c/", "./x", "..//..", &long];
    for (number, target) in targets.iter().enumerate() {
        symlink(target, folder.path().join(format!("{number}"))).unwrap();
    }
    let entries = entries(folder.path(), None);
    for (number, target) in targets.iter().enumerate() {
        assert_eq!(entries[&number.to_string()], format!("-> {target}"));
    }
}

#[test]
fn a_file_with_several_names_travels_once() {
    let folder = tempfile::tempdir().unwrap();
    let long = "long/".repeat(40) + "name";
    write(
        folder.path(),
        &[("Dockerfile", "FROM scratch\n"), (".dockerignore", "a\n.dockerignore\n"), ("a", "1")],
    );
    fs::create_dir_all(folder.path().join(&long).parent().unwrap()).unwrap();
    for name in ["b", "d/c", "z", &long] {
        fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
        fs::hard_link(folder.path().join("a"), folder.path().join(name)).unwrap();
    }
    fs::hard_link(folder.path().join("Dockerfile"), folder.path().join("e")).unwrap();
    symlink("b", folder.path().join("link")).unwrap();
    fs::hard_link(folder.path().join("link"), folder.path().join("link2")).unwrap();
    let mut entries = entries(folder.path(), None);
    entries.retain(|_, kind| kind != "folder");
    // The name that stays here is not the one that the others link to.
    let expected = [
        ("<dockerfile>", "644 FROM scratch\n"),
        ("Dockerfile", "644 FROM scratch\n"),
        ("b", "644 1"),
        ("d/c", "= b"),
        ("e", "= Dockerfile"),
        ("link", "-> b"),
        ("link2", "-> b"),
        (&long, "= b"),
        ("z", "= b"),
    ];
    let expected = expected.map(|(path, kind)| (path.to_owned(), kind.to_owned()));
    assert_eq!(entries, expected.into());
    let summary = listed(folder.path(), None).1.summary;
    assert_eq!((summary.files, summary.size), (6, 14));
}

#[test]
fn no_context_is_the_dockerfile_alone() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[("Dockerfile", "FROM scratch\n")]);
    let entries = entries(Path::new("/dev/null"), Some(&folder.path().join("Dockerfile")));
    assert_eq!(names(&entries), ["<dockerfile>"]);
}

#[test]
fn what_is_no_file_is_left_out_and_told() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[("Dockerfile", "FROM scratch\n")]);
    let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
    let summary = listed(folder.path(), None).1.summary;
    assert_eq!(summary.skipped, ["socket"]);
    assert_eq!((summary.files, summary.size), (1, 13));
}

#[test]
fn a_context_that_cannot_be_used_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[("sub/Dockerfile", ""), ("file", "")]);
    let root = folder.path().to_str().unwrap();
    let file = format!("{root}/file");
    for (context, dockerfile, expected) in [
        (root, None, "cannot be read"),
        (&*file, None, "is not a folder"),
        ("/nonexistent", None, "cannot be used"),
        ("/dev/null", None, "needs a Dockerfile"),
        (root, Some(Path::new("sub/Dockerfile")), "cannot be read"),
    ] {
        let Err(error) = Source::find(context, dockerfile) else { panic!("{context} was taken") };
        assert!(error.to_string().contains(expected), "{context}: {error}");
        assert_eq!(error.kind(), crate::ErrorKind::Usage);
    }
    let Err(error) = Source::find(root, Some(Path::new("sub/Dockerfile"))) else { panic!() };
    assert!(error.hint().unwrap().contains("did you mean"));
}
