//! Git repositories and archives at addresses, as contexts and as sources of `ADD`. The git host
//! is git's own, on this machine.

use std::fs;
use std::net::TcpListener;

use flate2::Compression;
use flate2::write::GzEncoder;
use testkit::{COMMIT_TIME, GitHost, GitRepository, Invocation, Outcome, Sandbox, validate};

use crate::observe::holding;
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
    repository.commit("first");
    let part = repository.git(&["rev-parse", "HEAD:part"]).trim().to_owned();
    let mut tree = part.clone();
    for _ in 0..10 {
        let ten: String = (0..10).map(|n| format!("040000 tree {tree}\t{n}\n")).collect();
        tree = repository.git_with(&["mktree"], ten.as_bytes()).trim().to_owned();
    }
    let root = format!("040000 tree {part}\tpart\n040000 tree {tree}\tz\n");
    let root = repository.git_with(&["mktree"], root.as_bytes()).trim().to_owned();
    let commit = repository.git(&["commit-tree", "-m", "second", &root]).trim().to_owned();
    repository.git(&["update-ref", "refs/heads/bomb", &commit]);
    // All of it, and a part beside which the rest is.
    for folder in ["", ":part"] {
        let context = format!("{}/bomb.git#bomb{folder}", host.url());
        let args = ["run", "-f", "part/acb.yaml", &context];
        let file = if folder.is_empty() { "part/acb.yaml" } else { "acb.yaml" };
        let args = args.map(|arg| if arg == "part/acb.yaml" { file } else { arg });
        let refused = sandbox.refit(args).on(&server).run().code(1);
        refused.stderr_has("has more than 1000 files and folders");
    }
}
