use std::fs::{self, File};
use std::io::{Read as _, copy};
use std::time::Duration;

use testkit::{MemoryBound, peak_memory, validate};

use crate::build::app;
use crate::output::tool;
use crate::sandbox;

const MIB: u64 = 1 << 20;
/// What a server may need for its builds, whatever the size of their layers.
const BOUND: u64 = 200 * MIB;

/// Layers larger than the bound, of bytes that no compressor makes fewer, copied and written.
#[test]
fn as_root_large_layers_are_built_in_little_memory() {
    let sandbox = sandbox();
    let bound = MemoryBound::new(BOUND);
    let server = sandbox.server();
    app(
        &sandbox,
        &server,
        "COPY big /\n\
         RUN dd if=/big of=/other bs=1M 2>&1 && echo end >> /other\n",
    );
    let noise = File::open("/dev/urandom").unwrap();
    let mut big = File::create(sandbox.path("app/big")).unwrap();
    copy(&mut noise.take(BOUND + 56 * MIB), &mut big).unwrap();

    bound.hold(server.id());
    let build = sandbox.refit(["build", "app", "-t", "app:1"]).on(&server).start();
    build.wait().success();
    // Pushed by another client, and pulled.
    let image = validate(&server.registry(), "app", "1");
    let sizes: Vec<u64> = image.manifest.layers.iter().map(|layer| layer.size).collect();
    assert_eq!(sizes.iter().filter(|size| **size > BOUND).count(), 2, "{sizes:?}");
    let peak = peak_memory(server.id());
    println!("the server's peak: {} MiB", peak / MIB);
    assert!(peak < BOUND, "{peak}");
}

/// What a client may need, however many files its context has.
const CLIENT_BOUND: u64 = 40 * MIB;
/// What a server may need that builds from so many files, beside what it has when it starts. The
/// kernel holds it to that: its peak of resident memory has the pages of the program in it, of which
/// one run has some MiB more than another.
const SERVER_BOUND: u64 = 64 * MIB;
/// Many of a folder, and many folders.
const FILES: u64 = 1_000;
const FOLDERS: u64 = 40;

#[test]
fn as_root_a_context_of_very_many_files_is_built_in_little_memory() {
    let sandbox = sandbox();
    let bound = MemoryBound::new(SERVER_BOUND);
    let server = sandbox.server();
    bound.hold(server.id());
    let stages =
        "FROM scratch AS all\nCOPY many /many\nFROM scratch\nCOPY --from=all /many /other\n";
    sandbox.write("app/Dockerfile", stages);
    for folder in 0..FOLDERS {
        let path = sandbox.path(&format!("app/many/{folder}"));
        fs::create_dir_all(&path).unwrap();
        for file in 0..FILES {
            fs::write(path.join(file.to_string()), format!("{folder} {file}")).unwrap();
        }
    }
    let build = |told: &str| {
        let build = sandbox.refit(["build", "app", "-t", "app:1"]).on(&server);
        let build = build.within(Duration::from_secs(600)).start();
        let peak = build.peak_memory();
        build.wait().success().stderr_has(told);
        println!("the client's peak: {} MiB", peak / MIB);
        assert!((MIB..CLIENT_BOUND).contains(&peak), "{peak}");
    };
    let count = FILES * FOLDERS;
    build(&format!("Sent the context: {} files", count + 1));
    build("none of which changed");
    sandbox.write("app/many/99/99", "changed");
    build("(1 new, 7 B)");
    assert_eq!(validate(&server.registry(), "app", "1").text("other/99/99"), "changed");
    println!("the server's peak: {} MiB", peak_memory(server.id()) / MIB);
}

/// What a server may need for a log, however long.
const LOG_BOUND: u64 = 100 * MIB;
/// One line of it, its end included.
const LINE: &str = "this is line x of a log that has so very many of them, to its en";

/// A gibibyte of output of one step is kept whole, and searched.
#[test]
fn as_root_a_log_of_any_size_is_kept_whole_in_little_memory() {
    let sandbox = sandbox();
    let bound = MemoryBound::new(LOG_BOUND);
    let server = sandbox.server();
    server.registry().push("busybox", "latest", &testkit::busybox());
    bound.hold(server.id());
    let (size, line) = (1 << 30, LINE.len() as u64 + 1);
    let script = format!("sh -c 'yes \"{LINE}\" | head -c {size} && echo && echo the end'");
    let command = format!("{}/busybox {script}", server.host());
    let args = ["run", "--no-logs", "-o", "json", "--cmd", &command];
    let run = sandbox.refit(args).on(&server).within(Duration::from_secs(600));
    let run = run.succeeds().json();
    let id = run["name"].as_str().unwrap();
    let socket = sandbox.data().join("refit.sock");
    let count = |query: &str| {
        let url = format!("http://localhost/api/v1/registries/local/runs/{id}/logs{query}");
        let socket = socket.display();
        let counted =
            format!("curl -sS --fail --unix-socket {socket} '{url}' | grep -c '{LINE}.$'");
        // No line is no success for `grep`.
        let counted = tool(&sandbox, "sh", &["-c", &format!("{counted} || true")]);
        counted.map(|count| count.trim().to_owned())
    };
    // Lines end in CR LF; the last one was cut, and `echo` ended it.
    let told = |count: Option<String>, expected: u64| {
        assert!(count.as_ref().is_none_or(|count| *count == expected.to_string()), "{count:?}");
    };
    told(count(""), (size + 1) / line);
    told(count("?grep=the%20end%7Cnone%20of%20it"), 0);
    let end = ["task", "logs", "--run-id", id, "--grep", "^the end$"];
    assert_eq!(sandbox.refit(end).on(&server).succeeds().stdout.lines().count(), 1);
    let peak = peak_memory(server.id());
    println!("the server's peak: {} MiB", peak / MIB);
    assert!(peak < LOG_BOUND, "{peak}");
}
