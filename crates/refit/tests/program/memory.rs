use std::fs::{self, File};
use std::io::{Read as _, copy};
use std::time::Duration;

use testkit::{MemoryBound, peak_memory, validate};

use crate::build::app;
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
/// What a server may need that builds from so many files.
const SERVER_BOUND: u64 = 80 * MIB;
/// Many of a folder, and many folders.
const FILES: u64 = 1_000;
const FOLDERS: u64 = 40;

#[test]
fn as_root_a_context_of_very_many_files_is_built_in_little_memory() {
    let sandbox = sandbox();
    let server = sandbox.server();
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
    let peak = peak_memory(server.id());
    println!("the server's peak: {} MiB", peak / MIB);
    assert!(peak < SERVER_BOUND, "{peak}");
}
