//! Uploaded contexts, honest and hostile.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use engine::{ContextLimits, UnpackError, unpack};
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

/// One entry of an archive, written without any of the checks that honest packers make.
struct Entry<'a> {
    path: &'a str,
    kind: tar::EntryType,
    link: &'a str,
    mode: u32,
    bytes: &'a [u8],
}

fn file<'a>(path: &'a str, bytes: &'a [u8]) -> Entry<'a> {
    Entry { path, kind: tar::EntryType::Regular, link: "", mode: 0o640, bytes }
}

fn folder(path: &str, mode: u32) -> Entry<'_> {
    Entry { path, kind: tar::EntryType::Directory, link: "", mode, bytes: b"" }
}

fn link<'a>(path: &'a str, target: &'a str) -> Entry<'a> {
    Entry { path, kind: tar::EntryType::Symlink, link: target, mode: 0o777, bytes: b"" }
}

fn hard_link<'a>(path: &'a str, target: &'a str) -> Entry<'a> {
    Entry { kind: tar::EntryType::Link, ..link(path, target) }
}

fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        let mut header = tar::Header::new_ustar();
        let fields = header.as_ustar_mut().unwrap();
        fields.name[..entry.path.len()].copy_from_slice(entry.path.as_bytes());
        fields.linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_mtime(1_000_000_000);
        header.set_uid(77);
        header.set_gid(77);
        header.set_size(entry.bytes.len() as u64);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(entry.bytes);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn unpack_into(folder: &Path, bytes: &[u8]) -> Result<(), UnpackError> {
    unpack(bytes, folder, ContextLimits::default(), &CancellationToken::new()).map(|_| ())
}

/// Unpacks below a folder whose neighbours are looked at afterwards: nothing may be there.
#[track_caller]
fn check_refused(entries: &[Entry<'_>], expected: &str) {
    let outer = tempfile::tempdir().unwrap();
    let inner = outer.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let error = unpack_into(&inner, &archive(entries)).unwrap_err();
    assert_eq!(error.to_string(), expected);
    let names: Vec<_> =
        std::fs::read_dir(outer.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["inner"], "something was written outside");
}

#[test]
fn files_folders_and_links_come_out_as_they_were_packed() {
    let folder_ = tempfile::tempdir().unwrap();
    let bytes = archive(&[
        folder("./", 0o755),
        folder("dir/", 0o511),
        file("dir/deep/file", b"hello"),
        link("link", "../anywhere"),
        hard_link("twin", "dir/deep/file"),
        file("twice", b"old"),
        file("twice", b"new"),
    ]);
    unpack_into(folder_.path(), &gzip(&bytes)).unwrap();
    let path = |name: &str| folder_.path().join(name);
    assert_eq!(std::fs::read(path("dir/deep/file")).unwrap(), b"hello");
    assert_eq!(std::fs::read(path("twice")).unwrap(), b"new");
    assert_eq!(std::fs::read_link(path("link")).unwrap().to_str(), Some("../anywhere"));
    let metadata = std::fs::metadata(path("dir/deep/file")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o640);
    assert_eq!(metadata.mtime(), 1_000_000_000);
    assert_eq!(metadata.ino(), std::fs::metadata(path("twin")).unwrap().ino());
    assert_eq!(std::fs::metadata(path("dir")).unwrap().permissions().mode() & 0o7777, 0o511);
}

#[test]
fn archives_are_told_by_their_content() {
    let bytes = archive(&[file("a", b"a")]);
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&bytes).unwrap();
    let bzip2 = bzip2.finish().unwrap();
    for packed in [bytes.clone(), zstd::encode_all(&bytes[..], 1).unwrap(), bzip2] {
        let folder = tempfile::tempdir().unwrap();
        unpack_into(folder.path(), &packed).unwrap();
        assert_eq!(std::fs::read(folder.path().join("a")).unwrap(), b"a");
    }
}

#[test]
fn i20_nothing_is_written_outside() {
    check_refused(&[file("../x", b"x")], "`../x` of the context leads out of it");
    let dots = "`../evil` of the context leads out of it";
    check_refused(&[file("../evil", b"x")], dots);
    check_refused(&[folder("../evil", 0o755)], dots);
    check_refused(&[file("a/../../evil", b"x")], "`a/../../evil` of the context leads out of it");
    check_refused(&[file("/evil", b"x")], "`/evil` of the context leads out of it");
    let through = "`up` of the context leads out of it";
    check_refused(&[link("up", ".."), file("up/evil", b"x")], through);
    check_refused(
        &[link("up", ".."), folder("up/evil", 0o755)],
        "`up/evil` of the context leads out of it",
    );
    check_refused(&[link("up", "/tmp"), file("up/evil", b"x")], through);
    check_refused(
        &[hard_link("passwd", "/etc/passwd")],
        "`/etc/passwd` of the context leads out of it",
    );
    check_refused(&[hard_link("x", "../inner")], "`../inner` of the context leads out of it");
    check_refused(
        &[link("up", ".."), hard_link("x", "up/victim")],
        "`up/victim` of the context leads out of it",
    );
}

#[test]
fn a_file_never_goes_through_a_link_that_has_its_name() {
    let outer = tempfile::tempdir().unwrap();
    let inner = outer.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    std::fs::write(outer.path().join("victim"), b"safe").unwrap();
    let bytes = archive(&[link("name", "../victim"), file("name", b"evil")]);
    unpack_into(&inner, &bytes).unwrap();
    assert_eq!(std::fs::read(outer.path().join("victim")).unwrap(), b"safe");
    assert_eq!(std::fs::read(inner.join("name")).unwrap(), b"evil");
}

#[test]
fn a_hard_link_leads_to_what_came_before_it() {
    let damaged = "the context's archive is damaged: ";
    let missing = format!("{damaged}`x` is another name of `y`, which does not come before it");
    check_refused(&[hard_link("x", "y")], &missing);
    check_refused(&[hard_link("x", "y"), file("y", b"y")], &missing);
    let missing = format!("{damaged}`x` is another name of `d/y`, which does not come before it");
    check_refused(&[hard_link("x", "d/y")], &missing);
    let folder_ = format!("{damaged}`x` is another name of `d`, which is a folder");
    check_refused(&[folder("d", 0o755), hard_link("x", "d")], &folder_);
    let itself = format!("{damaged}`x` is another name of `x`, which does not come before it");
    check_refused(&[hard_link("x", "x")], &itself);
}

#[test]
fn another_name_of_a_link_is_a_link_and_a_file_that_takes_a_name_leaves_the_others() {
    let outer = tempfile::tempdir().unwrap();
    let inner = outer.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    std::fs::write(outer.path().join("victim"), b"safe").unwrap();
    let bytes = archive(&[
        link("link", "../victim"),
        hard_link("twin", "link"),
        file("a", b"a"),
        hard_link("b", "a"),
        file("a", b"new"),
    ]);
    unpack_into(&inner, &bytes).unwrap();
    assert_eq!(std::fs::metadata(outer.path().join("victim")).unwrap().nlink(), 1);
    assert_eq!(std::fs::read_link(inner.join("twin")).unwrap().to_str(), Some("../victim"));
    assert_eq!(std::fs::read(inner.join("b")).unwrap(), b"a");
    assert_eq!(std::fs::read(inner.join("a")).unwrap(), b"new");
}

#[test]
fn devices_are_refused() {
    for kind in [tar::EntryType::Char, tar::EntryType::Block, tar::EntryType::Fifo] {
        let entry = Entry { kind, ..file("dev", b"") };
        check_refused(&[entry], "`dev` of the context is a device or the like");
    }
}

#[test]
fn what_is_no_archive_is_an_error_and_not_an_empty_context() {
    let folder = tempfile::tempdir().unwrap();
    for bytes in [&b"hello"[..], b"", &[0x1f, 0x8b, 8, 0, 1], b"PK\x03\x04"] {
        assert!(unpack_into(folder.path(), bytes).is_err(), "{bytes:?}");
    }
    let mut cut = gzip(&archive(&[file("a", &[7; 4096])]));
    cut.truncate(cut.len() / 2);
    assert!(matches!(
        unpack_into(folder.path(), &cut),
        Err(UnpackError::Damaged(_) | UnpackError::Io { .. })
    ));
}

#[test]
fn bombs_meet_their_bounds() {
    let folder_ = tempfile::tempdir().unwrap();
    let limits = ContextLimits { bytes_max: 100_000, entries_max: 10 };
    let never = CancellationToken::new();
    let bomb = gzip(&archive(&[file("zeros", &vec![0; 1 << 20])]));
    let error = unpack(&bomb[..], folder_.path(), limits, &never).unwrap_err();
    assert_eq!(error.to_string(), "the context unpacks to more than 100000 bytes");
    let names: Vec<String> = (0..20).map(|number| format!("d{number}")).collect();
    let many: Vec<_> = names.iter().map(|name| folder(name, 0o755)).collect();
    let error = unpack(&archive(&many)[..], folder_.path(), limits, &never).unwrap_err();
    assert_eq!(error.to_string(), "the context has more than 10 files and folders");
}

#[test]
fn a_name_has_a_bound() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = Vec::new();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(4 << 20);
    header.set_cksum();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + (4 << 20), b'a');
    bytes.extend(archive(&[file("a", b"a")]));
    let error = unpack_into(folder.path(), &bytes).unwrap_err();
    assert!(error.to_string().contains("take more than 1048576 bytes"), "{error}");
}

#[test]
fn a_canceled_run_stops_unpacking() {
    let folder = tempfile::tempdir().unwrap();
    let canceled = CancellationToken::new();
    canceled.cancel();
    let bytes = archive(&[file("a", b"a")]);
    let error = unpack(&bytes[..], folder.path(), ContextLimits::default(), &canceled).unwrap_err();
    assert!(matches!(error, UnpackError::Canceled));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_archive_writes_outside(recipe in proptest::collection::vec(any::<u8>(), 0..90)) {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let _ = unpack_into(&inner, &builder::fuzz::archive(&recipe));
        prop_assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 1);
    }

    #[test]
    fn no_list_of_entries_writes_outside(
        entries in proptest::collection::vec(("[./ab]{1,8}", 0..4_u8, "[./ab]{1,8}"), 0..12)
    ) {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let entries: Vec<_> = entries.iter().map(|(path, kind, target)| match kind {
            0 => file(path, b"x"),
            1 => folder(path, 0o755),
            2 => link(path, target),
            _ => hard_link(path, target),
        }).collect();
        let _ = unpack_into(&inner, &archive(&entries));
        prop_assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 1);
    }
}
