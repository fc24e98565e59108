//! Contexts that come as a list and packs.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;

use builder::{BuildRequest, ContextFiles, ContextLimits, ContextOptions, LazyFolder, ListedFiles};
use oci::Digest;
use serde_json::{Value, json};
use store::{PackedFile, pack_head};

use crate::run::with_runtime;
use crate::support::*;

/// The list of a folder, and the bytes of its files.
fn list(root: &Path, folder: &Path, lines: &mut Vec<Value>, files: &mut Vec<Vec<u8>>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap()).collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let (path, found) = (entry.path(), entry.path().symlink_metadata().unwrap());
        let name = path.strip_prefix(root).unwrap().to_str().unwrap();
        let (mode, mtime) = (found.permissions().mode() & 0o7777, found.mtime());
        if found.is_dir() {
            let line = json!({ "path": name, "type": "directory", "mode": mode, "mtime": mtime });
            lines.push(line);
            list(root, &path, lines, files);
        } else if found.is_symlink() {
            let target = std::fs::read_link(&path).unwrap();
            lines.push(json!({ "path": name, "type": "symlink", "target": target }));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            let mut line = json!({
                "path": name, "type": "file", "mode": mode, "mtime": mtime,
                "size": bytes.len(), "digest": Digest::of(&bytes),
            });
            if found.nlink() > 1 {
                line["link"] = found.ino().into();
            }
            lines.push(line);
            files.push(bytes);
        }
    }
}

/// The fixture's context, with its files in two packs.
pub(crate) async fn listed(fixture: &Fixture) -> (ContextOptions, Vec<Digest>) {
    let (mut lines, mut files) = (Vec::new(), Vec::new());
    list(&fixture.context(), &fixture.context(), &mut lines, &mut files);
    let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let blobs = fixture.catalog.blobs();
    let list = put(blobs, lines.as_bytes()).await;
    let mut packs = Vec::new();
    for files in files.chunks(files.len().div_ceil(2)) {
        let packed =
            |bytes: &Vec<u8>| PackedFile { digest: Digest::of(bytes), size: bytes.len() as u64 };
        let head = pack_head(&files.iter().map(packed).collect::<Vec<_>>());
        packs.push(put(blobs, &[head, files.concat()].concat()).await);
    }
    let limits = ContextLimits::default();
    let files = Arc::new(ListedFiles::new(Arc::clone(blobs), list, packs.clone(), limits));
    let folder = Arc::new(LazyFolder::new(fixture.context().with_file_name("written")));
    (ContextOptions::of(ContextFiles::Listed { files, folder }), packs)
}

async fn request(fixture: &Fixture, dockerfile: &str) -> BuildRequest {
    let context = Some(listed(fixture).await.0);
    BuildRequest { context, network: container::Network::None, ..fixture.request(dockerfile) }
}

fn fill(fixture: &Fixture) {
    fixture.write("a/script", "#!/bin/sh\n");
    fixture.chmod("a/script", 0o755);
    fixture.write("a/b/c", "text");
    fixture.write("a-b", "beside");
    fixture.write("out/kept", "kept");
    fixture.write("out/lost", "lost");
    fixture.write(".dockerignore", "out\n!out/kept\n");
    symlink("../a-b", fixture.context().join("a/link")).unwrap();
    let one = fixture.context().join("a/b/c");
    std::fs::hard_link(one, fixture.context().join("a/twin")).unwrap();
    std::fs::create_dir(fixture.context().join("empty")).unwrap();
    fixture.chmod("empty", 0o700);
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_a_listed_context_is_the_same_to_the_cache_as_a_folder() {
    let fixture = with_runtime().await;
    fill(&fixture);
    let dockerfile = "FROM registry.test/busybox\nCOPY . /all\nCOPY a/link /one\nCOPY a* /some/\n\
         RUN --mount=target=/m cd /m && find . | sort && cat a/link a/twin && ls -l a/twin";
    let mut of_folder = fixture.request(dockerfile);
    of_folder.network = container::Network::None;
    let of_folder = fixture.build_request(&of_folder).await;
    let of_list = fixture.build_request(&request(&fixture, dockerfile).await).await;
    assert_eq!(of_list.built.cost.cache_misses, 0, "{}", of_list.steps());
    assert_eq!(of_list.built.record.context, of_folder.built.record.context);
    assert!(of_folder.events.output().contains("./out/kept"));
    assert!(!fixture.context().with_file_name("written").exists(), "nothing needed a folder");

    // And so it is when it makes the layers itself.
    let mut anew = request(&fixture, dockerfile).await;
    anew.no_cache = true;
    let anew = fixture.build_request(&anew).await;
    assert_eq!(anew.events.output(), of_folder.events.output());
    let (ours, theirs) = (fixture.files(&anew.built).await, fixture.files(&of_folder.built).await);
    for folder in ["all", "some"] {
        assert_eq!(ours.below(folder), theirs.below(folder));
    }
    assert_eq!(ours.at("one"), "644 0:0 \"beside\"");
}

/// As those for several platforms do.
#[tokio::test(flavor = "multi_thread")]
async fn as_root_builds_at_the_same_time_share_the_folder_of_a_list() {
    let fixture = with_runtime().await;
    fill(&fixture);
    let one = request(
        &fixture,
        "FROM registry.test/busybox\nRUN --mount=target=/m find /m | sort && cat /m/a/link",
    )
    .await;
    let two = BuildRequest { dockerfile: format!("{} /m/a-b", one.dockerfile), ..one.clone() };
    let (one, two) = tokio::join!(fixture.build_request(&one), fixture.build_request(&two));
    assert_eq!(format!("{}beside", one.events.output()), two.events.output());
    assert!(one.events.output().contains("/m/out/kept"));
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_a_pack_that_is_damaged_makes_no_layer() {
    for damage in [Damage::Gone, Damage::Cut] {
        let fixture = with_runtime().await;
        fixture.write("a/script", "#!/bin/sh\n");
        fixture.write("b", "text");
        let (context, packs) = listed(&fixture).await;
        let request =
            BuildRequest { context: Some(context), ..fixture.request("FROM scratch\nCOPY a /\n") };
        // After it was found to be there.
        let Some(ContextFiles::Listed { files, .. }) =
            request.context.as_ref().map(|context| &context.files)
        else {
            panic!("a list was asked for")
        };
        let files = Arc::clone(files);
        tokio::task::spawn_blocking(move || files.size()).await.unwrap().unwrap();
        for pack in packs {
            fixture.damage(&pack, damage).await;
        }
        let error = fixture.try_build(&request).await.0.unwrap_err().to_string();
        assert!(error.contains("`a/"), "{error}");
    }
}

/// Whether a build read a context's list.
fn has_read_context(run: &Run) -> bool {
    run.steps().contains("load build context")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_has_not_changed_is_not_read_again() {
    let fixture = Fixture::with_base().await;
    fill(&fixture);
    let dockerfile = "FROM registry.test/base\nCOPY a /a\nCOPY --chmod=600 out/* /out/\n\
        COPY --link --exclude=b a /b\nCOPY <<end a-b /c/\ntext\nend\nADD a-b /d\n";
    let build =
        async |dockerfile: &str| fixture.build_request(&request(&fixture, dockerfile).await).await;
    let first = build(dockerfile).await;
    assert!(has_read_context(&first));
    let again = build(dockerfile).await;
    assert!(!has_read_context(&again), "{}", again.steps());
    assert_eq!(again.built.descriptor, first.built.descriptor);
    assert_eq!(again.built.record, first.built.record);
    assert_eq!(again.built.cost.cache_hits, 5);

    // Whatever an instruction says is looked at.
    for (one, other) in [
        ("a /a", "a /e"),
        ("COPY a /a", "COPY --chown=1:2 a /a"),
        ("chmod=600", "chmod=644"),
        ("--exclude=b", "--exclude=script"),
        ("--link --exclude", "--exclude"),
        ("\ntext", "\nother"),
        ("a-b /d", "a/b /d"),
    ] {
        let changed = build(&dockerfile.replace(one, other)).await;
        assert!(has_read_context(&changed), "{other}");
        let mut anew = request(&fixture, &dockerfile.replace(one, other)).await;
        anew.no_cache = true;
        let anew = fixture.build_request(&anew).await;
        assert!(has_read_context(&anew));
        let (changed, anew) =
            (fixture.files(&changed.built).await, fixture.files(&anew.built).await);
        assert_eq!(changed.below(""), anew.below(""), "{other}");
    }
    // And so is the context.
    fixture.write("a/b/c", "other");
    let changed = build(dockerfile).await;
    assert!(has_read_context(&changed));
    assert_eq!(fixture.files(&changed.built).await.at("a/b/c"), "644 0:0 \"other\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_below_a_copy_is_looked_at_unless_it_stands_by_itself() {
    let fixture = Fixture::with_base().await;
    fill(&fixture);
    for (copy, looks_below) in [
        ("COPY a /x/y", true),
        ("COPY --link a /x/z", false),
        ("COPY --link --chown=1 a /q", false),
        // There may be a group of that name.
        ("COPY --link --chown=1:2 a /q", true),
    ] {
        for (base, is_known) in [("registry.test/base", false), ("scratch", !looks_below)] {
            let dockerfile = format!("FROM {base}\n{copy}\n");
            let run = fixture.build_request(&request(&fixture, &dockerfile).await).await;
            assert_eq!(has_read_context(&run), !is_known, "{dockerfile}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_plan_has_to_tell_is_told_each_time() {
    let fixture = Fixture::with_base().await;
    fill(&fixture);
    let dockerfile = "FROM registry.test/base\nCOPY a none* /x/\n";
    for _ in 0..3 {
        let run = fixture.build_request(&request(&fixture, dockerfile).await).await;
        assert!(run.events.warnings().iter().any(|text| text.contains("none*")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_gone_is_made_again_whatever_is_remembered() {
    let fixture = Fixture::with_base().await;
    fill(&fixture);
    let request = request(&fixture, "FROM registry.test/base\nCOPY a /a\n").await;
    let first = fixture.build_request(&request).await;
    fixture.damage(&first.built.layers.last().unwrap().descriptor.digest, Damage::Gone).await;
    let again = fixture.build_request(&request).await;
    assert!(has_read_context(&again));
    assert_eq!(again.built.cost.cache_misses, 1);
    assert_eq!(again.built.descriptor, first.built.descriptor);
    assert!(fixture.is_whole(&again.built.layers.last().unwrap().descriptor.digest).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_base_only_claims_to_be_finds_nothing_that_is_remembered() {
    let fixture = Fixture::with_base().await;
    fill(&fixture);
    let other = [folder("bin", 0o700, (7, 7))];
    let claimed = vec![Digest::of(&tar(&base_files()))];
    let layer_type = oci::media_type::OCI_LAYER_GZIP;
    fixture.put_claiming("liar", &[&other], claimed, &[], layer_type).await;
    let copy = "COPY a /bin/a";
    let dockerfile = format!("FROM registry.test/base\n{copy}\n");
    fixture.build_request(&request(&fixture, &dockerfile).await).await;
    let lie = request(&fixture, &dockerfile.replace("base", "liar")).await;
    let error = fixture.try_build(&lie).await.0.unwrap_err().to_string();
    assert!(error.contains("it unpacks to sha256:"), "{error}");
}
