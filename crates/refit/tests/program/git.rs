//! Git repositories and archives at addresses, as contexts and as sources of `ADD`. The git host
//! is git's own, on this machine.

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use testkit::{COMMIT_TIME, GitHost, GitRepository, Invocation, Outcome, Sandbox, validate};

use crate::observe::holding;
use crate::output::tool;
use crate::sandbox;

/// A command that may ask the git host.
fn allowed<'a>(sandbox: &Sandbox, args: impl IntoIterator<Item = &'a str>) -> Invocation {
    sandbox.refit(args).env("REFIT_BUILD_ALLOW_ADDRESSES", "127.0.0.1")
}

fn build(sandbox: &Sandbox, context: &str) -> Outcome {
    allowed(sandbox, ["build", context, "-t", "app"]).run()
}

/// What the image `app` has in a file.
#[track_caller]
fn text(sandbox: &Sandbox, path: &str) -> String {
    let server = sandbox.server();
    validate(&server.registry(), "app", "latest").text(path)
}

/// A repository with a Dockerfile that copies all.
fn app(host: &GitHost) -> GitRepository {
    let repository = host.repository("app");
    repository.write("Dockerfile", "FROM scratch\nCOPY . /\n");
    repository.write("f", "first");
    repository.write("sub/Dockerfile", "FROM scratch\nCOPY . /\n");
    repository.write("sub/f", "in a folder");
    repository
}

#[test]
fn as_root_i1_i12_i13_i14_i15_a_repository_is_built_by_every_kind_of_reference() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    let repository = app(&host);
    let first = repository.commit("first");
    repository.git(&["tag", "v1"]);
    repository.git(&["tag", "--annotate", "--message", "a", "v1a"]);
    repository.write("f", "second");
    let second = repository.commit("second");
    repository.git(&["update-ref", "refs/pull/7/head", &first]);
    repository.git(&["branch", "release/one", &first]);
    let address = format!("{}/app.git", host.url());
    for (reference, commit, expected) in [
        ("", &second, "second"),
        ("#main", &second, "second"),
        ("#refs/heads/main", &second, "second"),
        ("#release/one", &first, "first"),
        ("#v1", &first, "first"),
        ("#v1a", &first, "first"),
        ("#pull/7/head", &first, "first"),
        (&format!("#{first}"), &first, "first"),
        ("?ref=v1", &first, "first"),
        ("#main:sub", &second, "in a folder"),
        ("#:sub/../sub/", &second, "in a folder"),
        ("?tag=v1&subdir=sub", &first, "in a folder"),
    ] {
        let context = format!("{address}{reference}");
        let built = build(&sandbox, &context).success();
        assert!(built.stderr.contains(&format!("commit {commit}")), "{context}: {}", built.stderr);
        assert_eq!(text(&sandbox, "f"), expected, "{context}");
    }
    let missing = build(&sandbox, &format!("{address}#nowhere")).code(1);
    missing.stderr_has(&format!("`{address}` has no branch, tag or commit `nowhere`"));
    build(&sandbox, &format!("{address}#{}", "1".repeat(40))).code(1).stderr_has("has no branch");
    build(&sandbox, &format!("{address}#:none")).code(1).stderr_has("has no folder `none`");
    build(&sandbox, &format!("{address}#main:../x")).code(1).stderr_has("has no folder `../x`");
    build(&sandbox, &format!("{address}#main:Dockerfile")).code(1).stderr_has("it is a file");
    build(&sandbox, &format!("{}/none.git", host.url())).code(1).stderr_has("status 404");
}

#[test]
fn as_root_a_commit_gives_the_same_image_everywhere_and_the_run_names_it() {
    let host = GitHost::start();
    let repository = app(&host);
    let commit = repository.commit("first");
    let address = format!("{}/app.git#main", host.url());
    let digests = [sandbox(), sandbox()].map(|sandbox| {
        let built = allowed(&sandbox, ["build", &address, "-t", "app", "-o", "json"]).run();
        let run = built.success().json();
        assert_eq!(run["properties"]["commitId"], commit.as_str());
        assert_eq!(run["properties"]["branchName"], "main");
        let server = sandbox.server();
        let image = validate(&server.registry(), "app", "latest");
        let created = image.config.created.clone().unwrap_or_default();
        assert!(created.starts_with("2020-09-13T12:26:40"), "{created} is not {COMMIT_TIME}");
        // As a clone has it.
        let head = String::from_utf8_lossy(&image.files()[".git/HEAD"]).into_owned();
        assert_eq!(head, "ref: refs/heads/main\n");
        image.digest
    });
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn as_root_the_kept_git_folder_is_one_for_git() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    let repository = app(&host);
    let commit = repository.commit("first");
    build(&sandbox, &format!("{}/app.git", host.url())).success();
    check_git_folder(&sandbox, &host, &commit);
}

/// Asks git about the files of the image `app`, which have a `.git` of that commit.
#[track_caller]
fn check_git_folder(sandbox: &Sandbox, host: &GitHost, commit: &str) {
    let server = sandbox.server();
    let files = validate(&server.registry(), "app", "latest").files();
    let copy = host.repository("copy");
    for (path, bytes) in files {
        let path = copy.work().join(path);
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("it can be made");
        fs::write(path, bytes).expect("it can be written");
    }
    let folder = copy.work().join(".git");
    // Empty folders have no files.
    fs::create_dir_all(folder.join("refs/heads")).expect("it can be made");
    let folder = folder.display().to_string();
    let git = |args: &[&str]| copy.git(&[&["--git-dir", &folder], args].concat());
    assert_eq!(git(&["rev-parse", "HEAD"]), commit);
    assert_eq!(git(&["status", "--porcelain"]), "");
    assert_eq!(git(&["log", "--format=%s"]), "first");
    assert_eq!(git(&["show", "HEAD:sub/f"]), "in a folder");
}

#[test]
fn as_root_a_folder_as_a_workspace_has_the_git_folder_and_one_as_a_context_has_not() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    let repository = app(&host);
    repository.write(
        "sub/task.yaml",
        "version: v1.1.0\nsteps:\n- {build: -t $Registry/app:latest .}\n\
         - {push: [$Registry/app:latest]}\n",
    );
    let commit = repository.commit("first");
    let address = format!("{}/app.git#main:sub", host.url());
    allowed(&sandbox, ["run", "-f", "task.yaml", &address]).succeeds();
    check_git_folder(&sandbox, &host, &commit);
    build(&sandbox, &address).success();
    let server = sandbox.server();
    let files = validate(&server.registry(), "app", "latest").files();
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    assert_eq!(names, ["Dockerfile", "f", "task.yaml"]);
}

#[test]
fn as_root_builds_reach_no_host_that_they_may_not() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    app(&host).commit("first");
    let refused = "`127.0.0.1` is a loopback address, which builds may not reach";
    for context in ["app.git", "app.tar.gz"] {
        let context = format!("{}/{context}", host.url());
        let build = sandbox.refit(["build", &context, "-t", "app"]).run().code(1);
        build.stderr_has(refused).stderr_has("`build.allow_addresses`");
    }
    sandbox.write("app/Dockerfile", format!("FROM scratch\nADD {}/app.git /\n", host.url()));
    let build = sandbox.refit(["build", "app", "-t", "app"]).run().code(1);
    build.stderr_has(refused).stderr_has("Dockerfile:2");
    assert!(host.requests().is_empty(), "{:?}", host.requests());
}

#[test]
fn as_root_a_submodule_may_not_lead_where_builds_may_not_reach() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    let repository = app(&host);
    let commit = repository.commit("first");
    for (url, expected) in [
        ("http://127.0.0.2/x.git", "`127.0.0.2` is a loopback address"),
        ("file:///etc", "its address is no address of a repository"),
        ("git://127.0.0.2/x.git", "`127.0.0.2` is a loopback address"),
        ("git@127.0.0.1:x.git", "is reached over SSH, and there is no ssh agent for it"),
    ] {
        repository.write(".gitmodules", format!("[submodule \"m\"]\npath = m\nurl = {url}\n"));
        repository.git(&["add", ".gitmodules"]);
        repository.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{commit},m")]);
        repository.git(&["commit", "--quiet", "--message", "module"]);
        let context = format!("{}/app.git", host.url());
        build(&sandbox, &context).code(1).stderr_has(expected);
        let without = build(&sandbox, &format!("{context}?submodules=false"));
        without.success();
    }
}

#[test]
fn as_root_submodules_come_along() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    let library = host.repository("library");
    library.write("l", "library");
    let used = library.commit("used");
    library.write("l", "later");
    library.commit("later");
    let repository = app(&host);
    repository.write(".gitmodules", "[submodule \"m\"]\npath = libs/m\nurl = ../library.git\n");
    let entry = format!("160000,{used},libs/m");
    repository.git(&["add", "--all"]);
    repository.git(&["update-index", "--add", "--cacheinfo", &entry]);
    repository.git(&["commit", "--quiet", "--message", "first"]);
    build(&sandbox, &format!("{}/app.git", host.url())).success();
    assert_eq!(text(&sandbox, "libs/m/l"), "library");
}

#[test]
fn as_root_a_repository_is_fetched_by_gits_own_protocol() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    let library = host.repository("library");
    library.write("l", "library");
    let used = library.commit("used");
    let repository = app(&host);
    let first = repository.commit("first");
    repository.git(&["tag", "--annotate", "--message", "a", "v1"]);
    repository.write("f", "second");
    repository.write(".gitmodules", "[submodule \"m\"]\npath = libs/m\nurl = ../library.git\n");
    let entry = format!("160000,{used},libs/m");
    repository.git(&["add", "--all"]);
    repository.git(&["update-index", "--add", "--cacheinfo", &entry]);
    repository.git(&["commit", "--quiet", "--message", "second"]);
    let address = format!("{}/app.git", host.daemon());
    let refused = sandbox.refit(["build", &address]).run().code(1);
    refused.stderr_has("`127.0.0.1` is a loopback address, which builds may not reach");
    for (reference, expected) in [
        ("", "second"),
        ("#v1", "first"),
        (&format!("#{first}"), "first"),
        ("#v1:sub", "in a folder"),
    ] {
        build(&sandbox, &format!("{address}{reference}")).success();
        assert_eq!(text(&sandbox, "f"), expected, "{reference}");
    }
    sandbox.write("add/Dockerfile", format!("FROM scratch\nADD {address} /\n"));
    build(&sandbox, "add").success();
    assert_eq!(
        (text(&sandbox, "f"), text(&sandbox, "libs/m/l")),
        ("second".into(), "library".into())
    );
    build(&sandbox, &format!("{address}#none")).code(1).stderr_has("no branch, tag or commit");
    let none = address.replace("app", "none");
    build(&sandbox, &none).code(1).stderr_has("could not be fetched").stderr_has("not exported");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    build(&sandbox, &format!("git://{closed}/app.git")).code(1).stderr_has("could not be fetched");
    let bounded = allowed(&sandbox, ["build", &address]).env("REFIT_LIMITS_CONTEXT_SIZE_MAX", "9");
    bounded.run().code(1).stderr_has("more than 9 bytes");
}

#[test]
fn as_root_i16_a_private_repository_needs_its_token_and_nobody_sees_it() {
    let (sandbox, host) = (sandbox(), GitHost::private("hunter2secret"));
    app(&host).commit("first");
    let context = |credentials: &str| format!("{}/app.git", host.url_with(credentials));
    let none = build(&sandbox, &format!("{}/app.git", host.url())).code(1);
    none.stderr_has("asks for a user and a password, or a token");
    let wrong = build(&sandbox, &context("wrongsecret")).code(1);
    wrong.stderr_has("refuses the user and password, or the token").stderr_lacks("wrongsecret");
    for credentials in ["hunter2secret", "me:hunter2secret"] {
        let built = build(&sandbox, &context(credentials)).success();
        assert!(!built.stderr.contains("hunter2secret"), "{}", built.stderr);
        assert!(built.stderr.contains("https://***@") || built.stderr.contains("http://***@"));
    }
    // Neither in logs nor in what is stored. The database has forgotten it; the pages of its
    // journal are written over later.
    let mut found = holding(&sandbox.data(), b"hunter2secret");
    found.retain(|path| path.file_name().is_none_or(|name| name != "refit.db-wal"));
    assert!(found.is_empty(), "{found:?}");
    sandbox
        .write("add/Dockerfile", format!("FROM scratch\nADD {} /\n", context("me:hunter2secret")));
    build(&sandbox, "add").success().stderr_lacks("hunter2secret");
    assert_eq!(text(&sandbox, "f"), "first");
}

#[test]
fn as_root_add_takes_a_repository() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    let repository = app(&host);
    std::os::unix::fs::symlink("f", repository.work().join("link")).unwrap();
    let commit = repository.commit("first");
    let address = format!("{}/app.git", host.url());
    let add = |dockerfile: String| {
        sandbox.write("add/Dockerfile", format!("FROM scratch\n{dockerfile}\n"));
        build(&sandbox, "add")
    };
    add(format!("ADD --exclude=sub --chown=7:8 --checksum={commit} {address}#main /to")).success();
    let server = sandbox.server();
    let files = validate(&server.registry(), "app", "latest").files();
    drop(server);
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    assert_eq!(names, ["to/Dockerfile", "to/f"]);
    add(format!("ADD --keep-git-dir {address} /")).success();
    assert_eq!(text(&sandbox, ".git/HEAD"), "ref: refs/heads/main\n");
    add(format!("ADD {address}?subdir=sub /")).success();
    assert_eq!(text(&sandbox, "f"), "in a folder");

    // What is fetched is one commit, however often; another commit is another layer.
    let fetches = || host.requests().iter().filter(|r| r.starts_with("POST")).count();
    let again = || add(format!("ADD {address} /")).success();
    let first = again();
    let before = fetches();
    assert_eq!(again().digest(), first.digest());
    assert_eq!(fetches(), before + 1, "only the list of references: {:?}", host.requests());
    repository.write("f", "second");
    repository.commit("second");
    assert_ne!(again().digest(), first.digest());
    let wrong = add(format!("ADD --checksum={commit} {address}#main /")).code(1);
    wrong.stderr_has("is another commit than expected").stderr_has("Dockerfile:2");
}

#[test]
fn as_root_a_named_context_is_a_repository() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    app(&host).commit("first");
    sandbox.write("here/Dockerfile", "FROM scratch\nCOPY --from=src f /\n");
    let named = format!("src={}/app.git#main:sub", host.url());
    let args = ["build", "here", "-t", "app", "--build-context", &named];
    allowed(&sandbox, args).run().success();
    assert_eq!(text(&sandbox, "f"), "in a folder");
}

#[test]
fn as_root_redirects_are_followed() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    app(&host).commit("first");
    build(&sandbox, &format!("{}/moved/app.git", host.url())).success();
    assert_eq!(text(&sandbox, "f"), "first");
}

#[test]
fn as_root_links_of_a_repository_lead_nowhere_else() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    let repository = app(&host);
    let link = |target: &str, name: &str| {
        std::os::unix::fs::symlink(target, repository.work().join(name)).unwrap();
    };
    link("/sub", "absolute");
    link("../../../sub", "climbing");
    link("/etc", "outside");
    link("round", "round");
    repository.commit("first");
    let address = format!("{}/app.git", host.url());
    for folder in ["absolute", "climbing", "absolute/../climbing"] {
        build(&sandbox, &format!("{address}#:{folder}")).success();
        assert_eq!(text(&sandbox, "f"), "in a folder", "{folder}");
    }
    for folder in ["outside", "round", "../../etc"] {
        build(&sandbox, &format!("{address}#:{folder}")).code(1).stderr_has("has no folder");
    }
    // Names that git itself would not make.
    let blob = repository.git_with(&["hash-object", "-w", "--stdin"], b"evil");
    for name in ["..", ".git"] {
        let line = format!("100644 blob {blob}\t{name}\n");
        let tree = repository.git_with(&["mktree"], line.as_bytes());
        let commit = repository.git(&["commit-tree", &tree, "-m", "evil"]);
        repository.git(&["update-ref", "refs/heads/evil", &commit]);
        let refused = build(&sandbox, &format!("{address}#evil")).code(1);
        refused.stderr_has("with a name that cannot be used");
    }
}

#[test]
fn as_root_a_repository_has_bounds() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    let repository = app(&host);
    repository.write("large", vec![0; 3 << 20]);
    repository.commit("first");
    let address = format!("{}/app.git", host.url());
    let bounded = |name: &str, value: &str| {
        let command = allowed(&sandbox, ["build", &address, "-t", "app"]);
        command.env(name, value).run().code(1)
    };
    bounded("REFIT_LIMITS_CONTEXT_SIZE_MAX", "2097152").stderr_has("more than 2097152 bytes");
    bounded("REFIT_LIMITS_CONTEXT_ENTRIES_MAX", "3").stderr_has("more than 3 files and folders");
}

#[test]
fn as_root_i18_i19_an_archive_at_an_address_is_built() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, bytes) in [("dir/Dockerfile", "FROM scratch\nCOPY dir/f /\n"), ("dir/f", "archived")]
    {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes.as_bytes()).unwrap();
    }
    host.file("context.tar.gz", &tar.into_inner().unwrap().finish().unwrap());
    host.file("context.tar.xz", b"\xfd7zXZ\0 and more");
    host.file("page.html", b"<html>");
    let address = format!("{}/context.tar.gz", host.url());
    let args = ["build", &address, "-f", "dir/Dockerfile", "-t", "app"];
    allowed(&sandbox, args).run().success();
    assert_eq!(text(&sandbox, "f"), "archived");
    let broken = build(&sandbox, &format!("{}/context.tar.xz", host.url())).code(1);
    broken.stderr_has("the context's archive is damaged");
    let other = build(&sandbox, &format!("{}/page.html", host.url())).code(1);
    other.stderr_has("is not a tar archive, plain or compressed with gzip, bzip2, xz or zstd");
    build(&sandbox, &format!("{}/none.tar", host.url())).code(1).stderr_has("status 404");
    let outside = allowed(&sandbox, ["build", &address, "-f", "../Dockerfile"]).run().code(2);
    outside.stderr_has("is not in the context, which is remote");
}

#[test]
fn as_root_a_canceled_fetch_leaves_nothing() {
    let sandbox = sandbox();
    for scheme in ["http", "git"] {
        // A host that never answers.
        let host = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("{scheme}://{}/app.git", host.local_addr().unwrap());
        let building = allowed(&sandbox, ["build", &address, "-t", "app"]).start();
        let asked = host.accept().unwrap();
        building.interrupt();
        building.wait().code(130);
        drop(asked);
    }
    let left = fs::read_dir(sandbox.data().join("snapshots/changes")).unwrap();
    assert_eq!(left.count(), 0);
}

/// A branch `bomb` of a repository: the folder `part` and those files, and beside them trees that
/// stand for 10^10 files.
fn bomb(repository: &GitRepository, files: &[&str]) {
    repository.commit("first");
    let id = |name: &str| repository.git(&["rev-parse", &format!("HEAD:{name}")]);
    let part = id("part");
    let mut tree = part.clone();
    for _ in 0..10 {
        let ten: String = (0..10).map(|n| format!("040000 tree {tree}\t{n}\n")).collect();
        tree = repository.git_with(&["mktree"], ten.as_bytes());
    }
    let mut root = format!("040000 tree {part}\tpart\n040000 tree {tree}\tz\n");
    root.extend(files.iter().map(|file| format!("100644 blob {}\t{file}\n", id(file))));
    let root = repository.git_with(&["mktree"], root.as_bytes());
    let commit = repository.git(&["commit-tree", "-m", "second", &root]);
    repository.git(&["update-ref", "refs/heads/bomb", &commit]);
}

#[test]
fn a_run_is_started_while_its_context_is_fetched() {
    let (sandbox, host) = (sandbox(), TcpListener::bind("127.0.0.1:0").unwrap());
    sandbox.write("settings.toml", "[build]\nallow_addresses = [\"127.0.0.1\"]\n");
    let settings = sandbox.path("settings.toml").display().to_string();
    let server = sandbox.server_with(&["--config", &settings]);
    let context = format!("http://{}/app.git", host.local_addr().unwrap());
    let asked = ["build", "run"].map(|kind| {
        let queue = [kind, &context, "--no-wait", "-o", "json"];
        let queued = sandbox.refit(queue).on(&server).succeeds().json();
        (queued["name"].as_str().unwrap().to_owned(), host.accept().unwrap())
    });
    for (id, _connection) in &asked {
        let show = ["task", "show-run", "--run-id", id, "-o", "json"];
        let run = sandbox.refit(show).on(&server).succeeds().json();
        assert_eq!(run["properties"]["status"], "Started");
        sandbox.refit(["task", "cancel-run", "--run-id", id]).on(&server).succeeds();
    }
}

#[test]
fn a_few_trees_that_stand_for_very_many_files_are_refused() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    let settings =
        "[build]\nallow_addresses = [\"127.0.0.1\"]\n[limits]\ncontext_entries_max = 1000\n";
    sandbox.write("settings.toml", settings);
    let settings = sandbox.path("settings.toml").display().to_string();
    let server = sandbox.server_with(&["--config", &settings]);
    let repository = host.repository("bomb");
    repository.write("part/acb.yaml", "steps: []\n");
    bomb(&repository, &[]);
    // All of it, and a part beside which the rest is.
    for folder in ["", ":part"] {
        let context = format!("{}/bomb.git#bomb{folder}", host.url());
        let args = ["run", "-f", "part/acb.yaml", &context];
        let file = if folder.is_empty() { "part/acb.yaml" } else { "acb.yaml" };
        let args = args.map(|arg| if arg == "part/acb.yaml" { file } else { arg });
        let refused = sandbox.refit(args).on(&server).run().code(1);
        refused.stderr_has("has more than 1000 files and folders");
    }
    let file = repository.git(&["rev-parse", "HEAD:part/acb.yaml"]).trim().to_owned();
    let long = format!("100644 blob {file}\t{}\n", "x".repeat(256));
    let long = repository.git_with(&["mktree"], long.as_bytes()).trim().to_owned();
    let commit = repository.git(&["commit-tree", "-m", "long", &long]).trim().to_owned();
    repository.git(&["update-ref", "refs/heads/long", &commit]);
    let refused = sandbox.refit(["build", &format!("{}/bomb.git#long", host.url())]).on(&server);
    refused.run().code(1).stderr_has("has a file with a name that cannot be used: `xxx");
}

/// What stands for a file in Git LFS.
fn pointer(content: &str, size: usize) -> String {
    let digest = oci::Digest::of(content.as_bytes());
    format!("version https://git-lfs.github.com/spec/v1\noid {digest}\nsize {size}\n")
}

/// Where the host has the file.
fn lfs_file(content: &str) -> String {
    format!("lfs-{}", oci::Digest::of(content.as_bytes()).hex())
}

/// How often a host was asked where files are.
fn batches(host: &GitHost) -> usize {
    host.requests().iter().filter(|request| request.ends_with("/batch")).count()
}

const BATCH: &str = "/info/lfs/objects/batch";

#[test]
fn as_root_files_in_git_lfs_are_fetched_with_the_credentials_of_the_context() {
    let (sandbox, host) = (sandbox(), GitHost::private("hunter2secret"));
    let repository = app(&host);
    repository.write(".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n");
    repository.write("sub/a.bin", pointer("large", 5));
    repository.write("a.txt", pointer("large", 5));
    repository.commit("first");
    let address = format!("{}/app.git", host.url_with("hunter2secret"));
    let missing = "has files in Git LFS that are pointers only, since its server";
    // A server that has none of it, and one that has not all.
    for (name, expected) in
        [("other", "answered with status 404"), ("lfs-other", "has not all of them: code 404")]
    {
        host.file(name, b"");
        let built = build(&sandbox, &address).success();
        built.stderr_has(missing).stderr_has(expected).stderr_lacks("hunter2secret");
        assert_eq!(text(&sandbox, "sub/a.bin"), pointer("large", 5));
    }
    host.file(&lfs_file("large"), b"large");
    build(&sandbox, &address).success().stderr_lacks("LFS");
    assert_eq!(text(&sandbox, "sub/a.bin"), "large");
    assert_eq!(text(&sandbox, "a.txt"), pointer("large", 5), "`.gitattributes` does not name it");
    // To git nothing has changed.
    let output = format!("type=local,dest={}", sandbox.path("out").display());
    allowed(&sandbox, ["build", &address, "-o", &output]).run().success();
    let folder = sandbox.path("out").display().to_string();
    let status = ["-c", "safe.directory=*", "-C", &folder, "status", "--porcelain"];
    assert_eq!(tool(&sandbox, "git", &status).as_deref(), Some(""));
    // As it was fetched.
    let before = batches(&host);
    build(&sandbox, &address).success();
    assert_eq!(batches(&host), before);
    let built = build(&sandbox, &format!("{}/app.git", host.daemon())).success();
    built.stderr_has("since they are fetched over `https://` and `http://` only");

    for (number, damaged) in ["larg", "large and more", "LARGE"].iter().enumerate() {
        host.file(&lfs_file("large"), damaged.as_bytes());
        repository.write("f", number.to_string());
        repository.commit("more");
        build(&sandbox, &address).code(1).stderr_has("`sub/a.bin` of `").stderr_has("is damaged");
    }
    // Nothing is asked for what there is no space for.
    repository.write("sub/a.bin", pointer("large", 1 << 40));
    repository.commit("huge");
    let before = batches(&host);
    build(&sandbox, &address).code(1).stderr_has("has more than");
    assert_eq!(batches(&host), before);
}

#[test]
fn as_root_which_files_are_in_git_lfs_the_attributes_of_all_folders_above_say() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    let repository = app(&host);
    host.file(&lfs_file("large"), b"large");
    repository.write(".gitattributes", "[attr]large filter=lfs -text\n*.bin large\n");
    repository.write("sub/.gitattributes", "*.txt filter=lfs\n/b.bin -filter\n");
    repository.write("sub/deep/.gitattributes", "*.txt !filter\n*.bin\n");
    let files = ["a.bin", "a.txt", "sub/a.bin", "sub/b.bin", "sub/a.txt"];
    for file in files.iter().chain(&["sub/deep/a.bin", "sub/deep/b.bin", "sub/deep/a.txt"]) {
        repository.write(file, pointer("large", 5));
    }
    repository.commit("first");
    let check = |folder: &str, expected: &[(&str, bool)]| {
        build(&sandbox, &format!("{}/app.git{folder}", host.url())).success().stderr_lacks("LFS");
        for (file, is_lfs) in expected {
            let expected = if *is_lfs { "large".to_owned() } else { pointer("large", 5) };
            assert_eq!(text(&sandbox, file), expected, "{file} of `{folder}`");
        }
    };
    check(
        "",
        &[
            ("a.bin", true),
            ("a.txt", false),
            ("sub/a.bin", true),
            ("sub/b.bin", false),
            ("sub/a.txt", true),
            ("sub/deep/a.bin", true),
            ("sub/deep/b.bin", true),
            ("sub/deep/a.txt", false),
        ],
    );
    let below = [("a.bin", true), ("b.bin", false), ("a.txt", true), ("deep/a.txt", false)];
    check("#:sub", &below);

    repository.write("sub/.gitattributes", "x".repeat((1 << 20) + 1));
    repository.commit("large attributes");
    let built = build(&sandbox, &format!("{}/app.git", host.url())).success();
    built.stderr_has("since `sub/.gitattributes` is larger than 1048576 bytes");
    assert_eq!(text(&sandbox, "a.bin"), "large");
    assert_eq!(text(&sandbox, "sub/a.bin"), pointer("large", 5));
    // That commit never has more.
    let fetches = || host.requests().iter().filter(|request| request.starts_with("POST")).count();
    let before = fetches();
    let again = build(&sandbox, &format!("{}/app.git", host.url())).success();
    again.stderr_has("since `sub/.gitattributes` is larger than 1048576 bytes");
    assert_eq!(fetches(), before + 1, "only the list of references: {:?}", host.requests());
}

#[test]
fn as_root_many_files_in_git_lfs_are_asked_for_together() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    let repository = app(&host);
    repository.write(".gitattributes", "*.bin filter=lfs\n");
    let content = |number: u32| format!("large {number}");
    for number in 0..250 {
        // What is lost is beside what is there.
        if number % 100 != 7 {
            host.file(&lfs_file(&content(number)), content(number).as_bytes());
        }
        let size = content(number).len();
        repository.write(&format!("{number}.bin"), pointer(&content(number), size));
        repository.write(&format!("{number}.txt"), "small");
    }
    repository.commit("first");
    let built = build(&sandbox, &format!("{}/app.git", host.url())).success();
    built.stderr_has("/app.git` has files in Git LFS that are pointers only, since its server has");
    assert_eq!(batches(&host), 3);
    let server = sandbox.server();
    let files = validate(&server.registry(), "app", "latest").files();
    for number in 0..250 {
        let expected = match number % 100 {
            7 => pointer(&content(number), content(number).len()),
            _ => content(number),
        };
        assert_eq!(files[&format!("{number}.bin")], expected.as_bytes(), "{number}");
    }
}

#[test]
fn as_root_what_git_lfs_lacks_of_a_submodule_says_nothing_of_the_others() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    host.file(&lfs_file("large"), b"large");
    let with_files = |repository: &GitRepository, content: &str| {
        repository.write(".gitattributes", "*.bin filter=lfs\n");
        repository.write("a.bin", pointer(content, 5));
        repository.commit("files")
    };
    let elsewhere = with_files(&host.repository("elsewhere"), "large");
    let lost = with_files(&host.repository("lost"), "other");
    let repository = app(&host);
    repository.write("z/z.bin", pointer("large", 5));
    with_files(&repository, "large");
    let modules = [
        ("elsewhere", elsewhere, format!("{}/elsewhere.git", host.daemon())),
        ("lost", lost, "../lost.git".to_owned()),
    ];
    for (name, commit, url) in &modules {
        let module = format!("[submodule \"{name}\"]\npath = {name}\nurl = {url}\n");
        repository.write(".gitmodules", module);
        repository.git(&["add", ".gitmodules"]);
        let entry = format!("160000,{commit},{name}");
        repository.git(&["update-index", "--add", "--cacheinfo", &entry]);
        repository.git(&["commit", "--quiet", "--message", name]);
        let built = build(&sandbox, &format!("{}/app.git", host.url())).success();
        built.stderr_has(&format!("/{name}.git` has files in Git LFS that are pointers only"));
        for (file, expected) in [("a.bin", "large"), ("z/z.bin", "large")] {
            assert_eq!(text(&sandbox, file), expected, "{file} with {name}");
        }
        assert!(text(&sandbox, &format!("{name}/a.bin")).starts_with("version "), "{name}");
        repository.git(&["rm", "--quiet", "--cached", name]);
    }
}

#[test]
fn as_root_what_git_lfs_never_has_of_a_commit_is_not_fetched_again() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    let repository = app(&host);
    repository.write(".gitattributes", "*.bin filter=lfs\n");
    repository.write("a.bin", pointer("large", 5));
    repository.commit("first");
    let address = format!("{}/app.git", host.daemon());
    let expected = "since they are fetched over `https://` and `http://` only";
    build(&sandbox, &address).success().stderr_has(expected);
    // Whoever wants more than the list of references gets an error.
    let tree = repository.git(&["rev-parse", "HEAD^{tree}"]);
    let object = format!("app.git/objects/{}/{}", &tree[..2], &tree[2..]);
    fs::remove_file(host.folder().join(object)).unwrap();
    build(&sandbox, &address).success().stderr_has(expected);
    assert_eq!(text(&sandbox, "a.bin"), pointer("large", 5));
    allowed(&sandbox, ["build", &address, "--no-cache"]).run().code(1);
}

#[test]
fn as_root_pointers_that_are_not_understood_stay_and_a_warning_says_so() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    let repository = app(&host);
    host.file(&lfs_file("large"), b"large");
    repository.write(".gitattributes", "*.bin filter=lfs\n");
    let odd = pointer("large", 5).replace("oid", "ext-0-case sha256:0\noid");
    repository.write("a.txt", &odd);
    repository.write("b.bin", pointer("large", 5));
    repository.commit("first");
    let address = format!("{}/app.git", host.url());
    build(&sandbox, &address).success().stderr_lacks("LFS");
    let name = format!("a\n{}.bin", "b".repeat(245));
    repository.write(&format!("{}/{name}", "c".repeat(200)), &odd);
    repository.commit("second");
    let built = build(&sandbox, &address).success();
    let built = built.stderr_has("pointers only, since the pointer `cccc");
    built.stderr_has("/a\u{fffd}bbb").stderr_has("b…` is not understood");
    assert_eq!(text(&sandbox, "b.bin"), "large");
}

#[test]
fn as_root_the_server_of_git_lfs_chooses_no_headers_that_others_rely_on() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    let repository = app(&host);
    host.file(&lfs_file("large"), b"large");
    let headers = r#"{
        "Authorization": "Bearer given", "X-Given": "1", "Host": "other", "Content-Length": "7",
        "Transfer-Encoding": "chunked", "Connection": "x-given", "Cookie": "a=b", "Range": "bytes=1-"
    }"#;
    host.file("lfs-headers", headers.as_bytes());
    repository.write(".gitattributes", "*.bin filter=lfs\n");
    repository.write("a.bin", pointer("large", 5));
    repository.commit("first");
    build(&sandbox, &format!("{}/app.git", host.url())).success().stderr_lacks("LFS");
    assert_eq!(text(&sandbox, "a.bin"), "large");
    let sent = host.headers("?sign=signed2secret");
    let value = |name: &str| sent.iter().find(|(n, _)| n == name).map(|(_, value)| &**value);
    assert_eq!((value("authorization"), value("x-given")), (Some("Bearer given"), Some("1")));
    assert_eq!(value("host"), host.url().strip_prefix("http://"));
    for name in ["content-length", "transfer-encoding", "connection", "cookie", "range"] {
        assert_eq!(value(name), None, "{name}");
    }
}

#[test]
fn as_root_trouble_of_the_server_of_git_lfs_ends_the_build() {
    let (sandbox, host) = (sandbox(), GitHost::private("hunter2secret"));
    let repository = app(&host);
    host.file(&lfs_file("large"), b"large");
    repository.write(".gitattributes", "*.bin filter=lfs\n");
    repository.write("sub/a.bin", pointer("large", 5));
    repository.commit("first");
    let address = format!("{}/app.git", host.url_with("hunter2secret"));
    let object = lfs_file("large");
    for (end, status, attempts) in [
        (BATCH, "503 Service Unavailable", 3),
        (BATCH, "429 Too Many Requests", 3),
        (BATCH, "400 Bad Request", 1),
        (BATCH, "401 Unauthorized", 1),
        (BATCH, "403 Forbidden", 1),
        (object.as_str(), "500 Internal Server Error", 3),
        (object.as_str(), "404 Not Found", 1),
    ] {
        let before = batches(&host);
        // Only what is asked for last fails.
        if end == object {
            host.work_again(BATCH);
        }
        host.fail(end, status);
        let failed = build(&sandbox, &address).code(1);
        let failed = failed.stderr_has("`sub/a.bin` of `");
        let failed = failed.stderr_has("could not be fetched from Git LFS");
        let failed = failed.stderr_has(&format!("status {}", &status[..3]));
        let failed = failed.stderr_lacks("hunter2secret").stderr_lacks("signed2secret");
        let hint = "the token may lack the right to read Git LFS";
        let is_hinted = matches!(&status[..3], "401" | "403");
        assert_eq!(failed.stderr.contains(hint), is_hinted, "{status}");
        assert_eq!(batches(&host) - before, attempts, "{end}: {status}");
    }
    // As long as it asks for.
    host.fail(BATCH, "429 Too Many Requests\r\nRetry-After: 2");
    let asked = Instant::now();
    build(&sandbox, &address).code(1).stderr_has("status 429");
    assert!(asked.elapsed() >= Duration::from_secs(4), "{:?}", asked.elapsed());
    host.work_again(BATCH);
    host.work_again(&object);
    build(&sandbox, &address).success().stderr_lacks("LFS");
    assert_eq!(text(&sandbox, "sub/a.bin"), "large");
}

#[test]
fn as_root_git_lfs_is_asked_for_where_a_repository_has_moved_to() {
    let (sandbox, old, new) = (sandbox(), GitHost::private("hunter2secret"), GitHost::start());
    let repository = app(&new);
    new.file(&lfs_file("large"), b"large");
    repository.write(".gitattributes", "*.bin filter=lfs\n");
    repository.write("a.bin", pointer("large", 5));
    repository.commit("first");
    let other = new.url().strip_prefix("http:").unwrap();
    let address = format!("{}/moved{other}/app.git", old.url_with("hunter2secret"));
    build(&sandbox, &address).success().stderr_lacks("LFS");
    assert_eq!(text(&sandbox, "a.bin"), "large");
    assert_eq!((batches(&old), batches(&new)), (0, 1));
    for end in [BATCH, "?sign=signed2secret"] {
        let sent = new.headers(end);
        assert!(sent.iter().all(|(name, _)| name != "authorization"), "{sent:?}");
    }
}

#[test]
fn as_root_very_many_files_beside_a_context_keep_its_files_in_git_lfs_from_nobody() {
    let (sandbox, host) = (sandbox(), GitHost::start());
    let repository = host.repository("bomb");
    host.file(&lfs_file("large"), b"large");
    repository.write(".gitattributes", "*.bin filter=lfs\n");
    repository.write("part/Dockerfile", "FROM scratch\nCOPY . /\n");
    repository.write("part/a.bin", pointer("large", 5));
    bomb(&repository, &[".gitattributes"]);
    let context = format!("{}/bomb.git#bomb:part", host.url());
    build(&sandbox, &context).success().stderr_lacks("LFS");
    assert_eq!(text(&sandbox, "a.bin"), "large");
}
