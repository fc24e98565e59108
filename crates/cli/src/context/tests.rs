use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use flate2::Compression;
use flate2::read::GzDecoder;

use super::*;

/// Entries of the archive of a context: path to what it is. The Dockerfile's own name,
/// which differs every time, is `<dockerfile>`.
fn packed(context: &Path, file: Option<&Path>) -> BTreeMap<String, String> {
    let source = Source::find(context.to_str().unwrap(), file).unwrap();
    let mut archive = Vec::new();
    pack::pack(&source, Compression::fast(), &mut archive).unwrap();
    let mut entries = BTreeMap::new();
    let mut archive = tar::Archive::new(GzDecoder::new(archive.as_slice()));
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        assert_eq!((entry.header().uid().unwrap(), entry.header().gid().unwrap()), (0, 0));
        let path = entry.path().unwrap().to_string_lossy().into_owned();
        let path = path.replace(&source.dockerfile_path, "<dockerfile>");
        let kind = match entry.header().entry_type() {
            tar::EntryType::Directory => "folder".into(),
            tar::EntryType::Symlink => {
                format!("-> {}", entry.link_name().unwrap().unwrap().display())
            }
            tar::EntryType::Link => {
                format!("= {}", entry.link_name().unwrap().unwrap().display())
            }
            _ => {
                let mode = entry.header().mode().unwrap();
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                format!("{mode:o} {text}")
            }
        };
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
fn a_context_travels_with_modes_and_links_but_without_version_control() {
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
    let entries = packed(folder.path(), None);
    let expected = [
        ("<dockerfile>", "644 FROM scratch\n"),
        ("Dockerfile", "644 FROM scratch\n"),
        ("empty/", "folder"),
        ("link", "-> /etc/passwd"),
        ("src/", "folder"),
        ("src/main.c", "755 int main;"),
    ];
    let expected = expected.map(|(path, kind)| (path.to_owned(), kind.to_owned()));
    assert_eq!(trimmed(entries), trimmed(expected.into()));
}

/// Folder names with or without their final slash are the same.
fn trimmed(entries: BTreeMap<String, String>) -> BTreeMap<String, String> {
    entries.into_iter().map(|(path, kind)| (path.trim_end_matches('/').into(), kind)).collect()
}

#[test]
fn the_ignore_file_decides_and_may_take_back() {
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
    let entries = trimmed(packed(folder.path(), None));
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
    let entries = packed(&context, Some(&file));
    assert_eq!(names(&entries), ["<dockerfile>", "kept"]);
    assert_eq!(entries["<dockerfile>"], "644 FROM x\n");
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
    let source = Source::find(folder.path().to_str().unwrap(), None).unwrap();
    let mut archive = Vec::new();
    pack::pack(&source, Compression::fast(), &mut archive).unwrap();
    let mut archive = tar::Archive::new(GzDecoder::new(archive.as_slice()));
    let found = archive.entries().unwrap().filter_map(|entry| {
        let link = entry.unwrap().link_name_bytes()?.into_owned();
        Some(String::from_utf8(link).unwrap())
    });
    assert_eq!(found.collect::<Vec<_>>(), targets);
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
    let mut entries = trimmed(packed(folder.path(), None));
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
    let source = Source::find(folder.path().to_str().unwrap(), None).unwrap();
    let summary = pack::pack(&source, Compression::fast(), io::sink()).unwrap();
    assert_eq!((summary.files, summary.size), (6, 14));
}

#[test]
fn no_context_is_the_dockerfile_alone() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[("Dockerfile", "FROM scratch\n")]);
    let entries = packed(Path::new("/dev/null"), Some(&folder.path().join("Dockerfile")));
    assert_eq!(names(&entries), ["<dockerfile>"]);
}

#[test]
fn what_is_no_file_is_left_out_and_told() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[("Dockerfile", "FROM scratch\n")]);
    let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
    let source = Source::find(folder.path().to_str().unwrap(), None).unwrap();
    let summary = pack::pack(&source, Compression::fast(), io::sink()).unwrap();
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
