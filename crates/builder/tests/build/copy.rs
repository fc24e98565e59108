//! `COPY`, `ADD` and `WORKDIR`: what ends up in the image.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use builder::BuildRequest;
use expect_test::expect;
use oci::media_type;
use store::ReadLayer;
use tokio_util::sync::CancellationToken;

use crate::support::*;

/// An archive of a file `hello`, as the usual tools compress it.
const XZ: &str = "\
    /Td6WFoAAATm1rRGAgAhARwAAAAQz1jM4Cf/AGZdADQZSe6N1/i4P8k3Mt7I1YCE//AFhphPv3pS44NGmk2HGwxb\
    zWxX7yA4VWS4WIe/98UoQqqx3ZS1//oBLfq6GBdH+4oFEPu5F1O1v20AsLZLhmAF+jkpmAF1nlLL//rxz0guTq9N\
    AAAAAFqVS2CcRhtqAAGCAYBQAAA10KgsscRn+wIAAAAABFla";
const BZIP2: &str = "\
    QlpoOTFBWSZTWZjcH2AAAHR7hMkQAERAAG+AAAhiRJ4AAACACCAAdQlQaT1AGnqDJ6gkplNNGjQA0aVt5N3QglEB\
    IypgS1hEpBJAymw9Wa4RtAGSCxzig2lFac64KkpFfTp7Fw5GL5WdB3pCCD8XckU4UJCY3B9g";
/// The same, with a dictionary of 1.5 GiB.
const LARGE_XZ: &str = "\
    /Td6WFoAAATm1rRGAgAhASUAAAA7eHtB4Cf/AGZdADQZSe6N1/i4P8k3Mt7I1YCE//AFhphPv3pS44NGmk2HGwxb\
    zWxX7yA4VWS4WIe/98UoQqqx3ZS1//oBLfq6GBdH+4oFEPu5F1O1v20AsLZLhmAF+jkpmAF1nlLL//rxz0guTq9N\
    AAAAAFqVS2CcRhtqAAGCAYBQAAA10KgsscRn+wIAAAAABFla";

#[tokio::test]
async fn files_and_folders_are_copied_from_the_context() {
    let fixture = Fixture::with_base().await;
    fixture.write("app/main", "main");
    fixture.write("app/lib/a.so", "a");
    fixture.chmod("app/main", 0o755);
    fixture.chmod("app/lib", 0o711);
    fixture.write("notes.txt", "notes");
    std::os::unix::fs::symlink("main", fixture.context().join("app/start")).unwrap();
    let run = fixture
        .build(
            "FROM registry.test/base\n\
             COPY app /srv/app\n\
             COPY notes.txt /lib/\n\
             COPY --chown=app:staff --chmod=600 notes.txt /home/app/\n\
             COPY --chown=55 app/lib /made/here/",
        )
        .await;
    let files = fixture.files(&run.built).await;
    expect![[r#"
        srv 755 0:0 folder
        srv/app 755 0:0 folder
        srv/app/lib 711 0:0 folder
        srv/app/lib/a.so 644 0:0 "a"
        srv/app/main 755 0:0 "main"
        srv/app/start 777 0:0 -> main
    "#]]
    .assert_eq(&files.below("srv"));
    expect![[r#"
        usr 755 0:0 folder
        usr/lib 775 0:50 folder
        usr/lib/notes.txt 644 0:0 "notes"
        usr/lib/old 600 1000:50 "old"
    "#]]
    .assert_eq(&files.below("usr"));
    expect![[r#"
        home 755 0:0 folder
        home/app 750 1000:1001 folder
        home/app/notes.txt 600 1000:50 "notes"
    "#]]
    .assert_eq(&files.below("home"));
    expect![[r#"
        made 755 55:55 folder
        made/here 755 55:55 folder
        made/here/a.so 644 55:55 "a"
    "#]]
    .assert_eq(&files.below("made"));
    expect![[r#"
        [1/5] FROM registry.test/base: done
        [2/5] COPY app /srv/app: done
        [3/5] COPY notes.txt /lib/: done
        [4/5] COPY --chown=app:staff --chmod=600 notes.txt /home/app/: done
        [5/5] COPY --chown=55 app/lib /made/here/: done
        load build context: done
    "#]]
    .assert_eq(&run.steps());
}

#[tokio::test]
async fn layers_hold_the_folders_above_as_the_image_has_them() {
    let fixture = Fixture::with_base().await;
    fixture.write("x", "x");
    let time = std::fs::File::open(fixture.context().join("x")).unwrap();
    let second = std::time::Duration::from_secs(1_234_567_890);
    time.set_modified(std::time::UNIX_EPOCH + second).unwrap();
    let run = fixture.build("FROM registry.test/base\nCOPY x /lib/new/").await;
    let entries = fixture.last_layer(&run.built).await;
    expect![[r#"
        usr/ 755 0:0 315532800
        usr/lib/ 775 0:50 315532800
        usr/lib/new/ 755 0:0 315532800
        usr/lib/new/x 644 0:0 1234567890"#]]
    .assert_eq(&entries.join("\n"));
}

#[tokio::test]
async fn a_stage_is_copied_with_its_owners() {
    let fixture = Fixture::with_base().await;
    fixture.write("x", "x");
    let run = fixture
        .build(
            "FROM registry.test/base AS made\n\
             COPY --chown=app x /out/\n\
             FROM scratch\n\
             COPY --from=made /out /from/stage/\n\
             COPY --from=registry.test/base /lib/old /home/app/ /from/image/\n\
             COPY --from=made --chown=3:4 /lib /from/link",
        )
        .await;
    expect![[r#"
        from 755 0:0 folder
        from/image 755 0:0 folder
        from/image/old 600 1000:50 "old"
        from/link 755 3:4 folder
        from/link/old 600 3:4 "old"
        from/stage 755 0:0 folder
        from/stage/x 644 1000:1001 "x"
    "#]]
    .assert_eq(&fixture.files(&run.built).await.below(""));
    let bases: Vec<_> = run.built.record.bases.iter().map(|b| (b.stage, b.role)).collect();
    assert_eq!(bases.len(), 2, "{bases:?}");
    assert!(bases.iter().all(|(_, role)| *role == builder::BaseRole::Buildtime));
}

#[tokio::test]
async fn ignored_files_are_not_seen() {
    let fixture = Fixture::empty().await;
    fixture.write(".dockerignore", "*.log\nsecret\n!secret/public\n");
    fixture.write("a.log", "log");
    fixture.write("b.txt", "b");
    fixture.write("secret/key", "key");
    fixture.write("secret/public", "public");
    let run = fixture.build("FROM scratch\nCOPY . /").await;
    expect![[r#"
        .dockerignore 644 0:0 "*.log\nsecret\n!secret/public\n"
        b.txt 644 0:0 "b"
        secret 755 0:0 folder
        secret/public 644 0:0 "public"
    "#]]
    .assert_eq(&fixture.files(&run.built).await.below(""));
    expect![[r#"
        error: `a.log` not found
         --> Dockerfile:2:1
          |
        2 | COPY a.log /
          | ^^^^^^^^^^^^
        hint: `.dockerignore` excludes it from the context
    "#]]
    .assert_eq(&fixture.error("FROM scratch\nCOPY a.log /").await);
    expect![[r#"
        error: `b.text` not found
         --> Dockerfile:2:1
          |
        2 | COPY b.text /
          | ^^^^^^^^^^^^^
        hint: did you mean `b.txt`?
    "#]]
    .assert_eq(&fixture.error("FROM scratch\nCOPY b.text /").await);
}

#[tokio::test]
async fn a_dockerfile_from_outside_is_never_visible() {
    let fixture = Fixture::empty().await;
    fixture.write("travels", "FROM scratch");
    fixture.write("x", "x");
    let mut request = fixture.request("FROM scratch\nCOPY . /");
    request.context.as_mut().unwrap().hidden.push("travels".to_owned());
    let run = fixture.build_request(&request).await;
    assert_eq!(fixture.files(&run.built).await.below(""), "x 644 0:0 \"x\"\n");
}

#[tokio::test]
async fn add_unpacks_archives_by_their_content() {
    let fixture = Fixture::with_base().await;
    let files = [
        folder("lib", 0o700, (9, 9)),
        file("lib/inside", 0o640, (9, 8), b"inside"),
        link("lib/also", "inside"),
        file("top", 0o755, (0, 0), b"top"),
    ];
    let archive = tar(&files);
    std::fs::write(fixture.context().join("plain"), &archive).unwrap();
    std::fs::write(fixture.context().join("packed.bin"), gzip(&archive)).unwrap();
    let zstd = zstd::encode_all(&archive[..], 1).unwrap();
    std::fs::write(fixture.context().join("packed.zst"), zstd).unwrap();
    std::fs::write(fixture.context().join("only.gz"), gzip(b"no archive")).unwrap();
    for (name, packed) in [("x.tar.xz", XZ), ("x.tar.bz2", BZIP2), ("large.tar.xz", LARGE_XZ)] {
        let packed = BASE64_STANDARD.decode(packed).unwrap();
        std::fs::write(fixture.context().join(name), packed).unwrap();
    }
    std::fs::write(fixture.context().join("only.xz"), b"\xfd7zXZ\0....").unwrap();
    let run = fixture
        .build(
            "FROM registry.test/base\n\
             ADD plain /a\n\
             ADD packed.bin packed.zst /b/\n\
             ADD only.gz only.xz /c/\n\
             ADD x.tar.xz /e/\n\
             ADD x.tar.bz2 /f/\n\
             COPY packed.bin /d/",
        )
        .await;
    let files = fixture.files(&run.built).await;
    expect![[r#"
        a 755 0:0 folder
        a/lib 700 9:9 folder
        a/lib/also 777 0:0 -> inside
        a/lib/inside 640 9:8 "inside"
        a/top 755 0:0 "top"
    "#]]
    .assert_eq(&files.below("a"));
    assert_eq!(files.at("b/lib/inside"), "640 9:8 \"inside\"");
    assert!(files.at("c/only.gz").starts_with("644 0:0"));
    assert!(files.at("c/only.xz").starts_with("644 0:0"));
    assert!(files.at("d/packed.bin").starts_with("644 0:0"));
    let error = fixture.error("FROM scratch\nADD large.tar.xz /").await;
    assert!(error.contains("asks for more than 128 MiB of memory"), "{error}");
    assert_eq!(files.at("e/hello"), "644 0:0 \"hello\\n\"");
    assert_eq!(files.at("f/hello"), "644 0:0 \"hello\\n\"");
}

#[tokio::test]
async fn a_file_of_the_context_with_many_names_is_written_once() {
    let fixture = Fixture::empty().await;
    fixture.write(".dockerignore", "many/a\n");
    let bytes = "x".repeat(200_000);
    fixture.write("many/a", &bytes);
    fixture.write("many/other", &bytes);
    let (context, time) = (fixture.context(), 1_234_567_890);
    for name in ["many/a", "many/other"] {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(time);
        std::fs::File::open(context.join(name)).unwrap().set_modified(time).unwrap();
    }
    for name in ["many/b", "many/c", "outside"] {
        std::fs::hard_link(context.join("many/a"), context.join(name)).unwrap();
    }
    let dockerfile = "FROM scratch\nCOPY --chown=3 many outside /m/";
    let run = fixture.build(dockerfile).await;
    // The name that is left out is no target, and each source stands by itself.
    expect![[r#"
        m/ 755 3:3 315532800
        m/b 644 3:3 1234567890
        m/c 644 3:3 1234567890 = m/b
        m/other 644 3:3 1234567890
        m/outside 644 3:3 1234567890"#]]
    .assert_eq(&fixture.last_layer(&run.built).await.join("\n"));
    // Another file with the same bytes is another image.
    std::fs::remove_file(context.join("many/c")).unwrap();
    std::fs::copy(context.join("many/b"), context.join("many/c")).unwrap();
    let run = fixture.build(dockerfile).await;
    assert_eq!(run.built.cost.cache_hits, 0);
    let entries = fixture.last_layer(&run.built).await;
    assert!(!entries.iter().any(|entry| entry.contains('=')), "{entries:?}");
}

#[tokio::test]
async fn hard_links_of_an_image_and_of_an_archive_are_kept() {
    let fixture = Fixture::empty().await;
    let root = (0, 0);
    let below = [
        folder("d", 0o755, root),
        file("d/m", 0o644, root, b"one file"),
        hard_link("d/a", "d/m"),
        hard_link("d/z", "d/a"),
        file("d/twice", 0o644, root, b"replaced"),
        hard_link("d/old", "d/twice"),
        file("d/twice", 0o644, root, b"new"),
    ];
    let archive = tar(&below);
    std::fs::write(fixture.context().join("x.tar"), archive).unwrap();
    // In the layer above, one name is gone and another one is a file of its own.
    let above = [
        folder("d", 0o755, root),
        file("d/.wh.a", 0, root, b""),
        file("d/n", 0o644, root, b"one file"),
        hard_link("d/o", "d/n"),
    ];
    fixture.put_layers("linked", &[&below, &above], &[], media_type::OCI_LAYER_GZIP).await;
    let dockerfile = "FROM scratch\nCOPY --from=registry.test/linked /d /c\nADD x.tar /e/";
    let run = fixture.build(dockerfile).await;
    expect![[r#"
        e/ 755 0:0 315532800
        e/d/ 755 0:0 1000000000
        e/d/a 644 0:0 1000000000
        e/d/m 644 0:0 1000000000 = e/d/a
        e/d/old 644 0:0 1000000000
        e/d/twice 644 0:0 1000000000
        e/d/z 644 0:0 1000000000 = e/d/a"#]]
    .assert_eq(&fixture.last_layer(&run.built).await.join("\n"));
    let dockerfile = "FROM scratch\nADD x.tar /e/\nCOPY --from=registry.test/linked /d /c";
    let run = fixture.build(dockerfile).await;
    expect![[r#"
        c/ 755 0:0 315532800
        c/m 644 0:0 1000000000
        c/n 644 0:0 1000000000
        c/o 644 0:0 1000000000 = c/n
        c/old 644 0:0 1000000000
        c/twice 644 0:0 1000000000
        c/z 644 0:0 1000000000 = c/m"#]]
    .assert_eq(&fixture.last_layer(&run.built).await.join("\n"));
    let files = fixture.files(&run.built).await;
    for path in ["c/m", "c/n", "c/o", "c/z", "e/d/a", "e/d/m", "e/d/z"] {
        assert_eq!(files.at(path), "644 0:0 \"one file\"", "{path}");
    }
    for path in ["c/old", "e/d/old"] {
        assert_eq!(files.at(path), "644 0:0 \"replaced\"", "{path}");
    }
}

#[tokio::test]
async fn an_archive_may_have_names_that_are_no_text() {
    let fixture = Fixture::empty().await;
    let archive = tar(&[
        file(b"caf\xe9", 0o644, (0, 0), b"x"),
        hard_link(b"twin\xff", b"caf\xe9"),
        link("link", b"to\xff"),
    ]);
    std::fs::write(fixture.context().join("x.tar"), archive).unwrap();
    let run = fixture.build("FROM scratch\nADD x.tar /").await;
    let tar = fixture.last_tar(&run.built).await;
    for name in [&b"path=caf\xe9\n"[..], b"path=twin\xff\n", b"linkpath=caf\xe9\n", b"=to\xff\n"] {
        assert!(tar.windows(name.len()).any(|bytes| bytes == name), "{}", name.escape_ascii());
    }
}

#[tokio::test]
async fn an_index_of_another_version_is_made_anew() {
    let fixture = Fixture::empty().await;
    let files = [file("a", 0o644, (0, 0), b"a"), hard_link("b", "a")];
    fixture.put_image("base", &files, &[], media_type::OCI_LAYER_TAR).await;
    let layer = oci::Digest::of(&tar(&files));
    let old = r#"{"entries":[{"n":{"path":"a","node":{"kind":"Fifo","mode":0,"uid":0,"gid":0,"mtime":0}}}]}"#;
    let old = put(fixture.catalog.blobs(), &zstd::encode_all(old.as_bytes(), 1).unwrap()).await;
    let old = ReadLayer { index: old, diff_id: layer.clone() };
    fixture.catalog.put_read_layer(&layer, &old).await.unwrap();
    let run = fixture.build("FROM scratch\nCOPY --from=registry.test/base / /").await;
    let expected = ["a 644 0:0 1000000000", "b 644 0:0 1000000000 = a"];
    assert_eq!(fixture.last_layer(&run.built).await, expected);
    assert_ne!(fixture.catalog.read_layer(&layer).await.unwrap(), Some(old));
}

#[tokio::test]
async fn an_archive_that_leads_outside_is_refused() {
    let fixture = Fixture::empty().await;
    let mut bytes = tar(&[file("..-evil", 0o644, (0, 0), b"x")]);
    bytes[2] = b'/';
    let sum: u32 = bytes[..512]
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
        .sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    std::fs::write(fixture.context().join("evil.tar"), bytes).unwrap();
    let error = fixture.error("FROM scratch\nADD evil.tar /x/").await;
    assert!(error.contains("`../evil` leads out of its folder"), "{error}");
}

#[tokio::test]
async fn workdir_makes_a_layer_only_where_the_folder_is_missing() {
    let fixture = Fixture::with_base().await;
    let run = fixture
        .build(
            "FROM registry.test/base\nWORKDIR /tmp\nUSER app\nWORKDIR /home/app/src\nWORKDIR sub",
        )
        .await;
    let files = fixture.files(&run.built).await;
    assert_eq!(files.at("home/app/src"), "755 1000:1001 folder");
    assert_eq!(files.at("home/app/src/sub"), "755 1000:1001 folder");
    assert_eq!(files.at("home/app"), "750 1000:1001 folder");
    assert_eq!(run.built.layers.len(), 3);
    assert_eq!(run.config().config.working_dir, "/home/app/src/sub");
}

#[tokio::test]
async fn users_that_the_image_does_not_have_are_named() {
    let fixture = Fixture::with_base().await;
    fixture.write("x", "x");
    expect![[r#"
        error: there is no user `ghost` in the image's /etc/passwd
         --> Dockerfile:2:1
          |
        2 | COPY --chown=ghost x /
          | ^^^^^^^^^^^^^^^^^^^^^^
        hint: create it with `RUN adduser`, or give a numeric uid
    "#]]
    .assert_eq(&fixture.error("FROM registry.test/base\nCOPY --chown=ghost x /").await);
}

#[test]
fn links_that_change_under_a_copy_never_lead_outside() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fixture = runtime.block_on(Fixture::empty());
    let outside = fixture.folder.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "SECRET").unwrap();
    fixture.write("inside/file", "open");
    let context = fixture.context();
    let stop = CancellationToken::new();
    std::thread::scope(|scope| {
        // Also when a check fails: the thread below would go on for ever.
        let _stop = stop.clone().drop_guard();
        // Swaps a folder for a link that leads outside, as fast as it can.
        scope.spawn(|| {
            let (real, away) = (context.join("inside"), context.join("away"));
            while !stop.is_cancelled() {
                std::fs::rename(&real, &away).unwrap();
                std::os::unix::fs::symlink(&outside, &real).unwrap();
                std::fs::remove_file(&real).unwrap();
                std::fs::rename(&away, &real).unwrap();
            }
        });
        runtime.block_on(async {
            let mut built = 0;
            for round in 0..100 {
                let mut request = fixture.request(&format!("FROM scratch\nCOPY . /{round}/"));
                request.no_cache = true;
                if let Ok(result) = fixture.try_build(&request).await.0 {
                    built += 1;
                    let files = fixture.files(&result).await.below("");
                    assert!(!files.contains("SECRET"), "{files}");
                }
            }
            assert!(built > 0, "every build met the swap, so nothing was checked");
        });
    });
}

#[tokio::test]
async fn names_of_owners_need_no_unpacked_layers() {
    let mut fixture = Fixture::with_base().await;
    fixture.write("f", "f");
    let dockerfile = "FROM registry.test/base\nCOPY --chown=app:staff f /f\n";
    let built = fixture.build(dockerfile).await.built;
    assert_eq!(fixture.files(&built).await.at("f"), "644 1000:50 \"f\"");
    // The users of the new base are asked, wherever its layers have them.
    let passwd = file("usr/lib/passwd", 0o644, (0, 0), b"app:x:7:8::/:\n");
    let links = [hard_link("etc/other", "usr/lib/passwd"), link("etc/passwd", "../etc/other")];
    let moved: Vec<File> = [passwd].into_iter().chain(links).collect();
    let (base, gzip) = (base_files(), media_type::OCI_LAYER_GZIP);
    fixture.put_layers("base", &[&base, &moved], &[], gzip).await;
    let owned = async |fixture: &Fixture, owner: &str| {
        let request = fixture.request(&dockerfile.replace("app:staff", owner));
        let built = fixture.build_request(&BuildRequest { no_cache: true, ..request }).await.built;
        fixture.files(&built).await.at("f").to_owned()
    };
    assert_eq!(owned(&fixture, "app:staff").await, "644 7:50 \"f\"");
    fixture.restart().await;
    assert_eq!(owned(&fixture, "app").await, "644 7:8 \"f\"");
    // A layer of ours tells of its users too.
    let dockerfile = "FROM registry.test/base\nCOPY <<passwd /etc/\napp:x:3:4::/:\npasswd\n\
                      COPY --chown=app f /f\n";
    let built = fixture.build(dockerfile).await.built;
    assert_eq!(fixture.files(&built).await.at("f"), "644 3:4 \"f\"");
    assert_eq!(fixture.unpacked(), 0);
    // Under another name they are where the other files are.
    let moved = [file("etc/real", 0o644, (0, 0), b"app:x:5:6::/:\n"), link("etc/passwd", "real")];
    fixture.put_layers("base", &[&base, &moved], &[], gzip).await;
    assert_eq!(owned(&fixture, "7").await, "644 7:7 \"f\"");
    assert_eq!(fixture.unpacked(), 0);
    assert_eq!(owned(&fixture, "app").await, "644 5:6 \"f\"");
    assert_eq!(fixture.unpacked(), 1);
}
