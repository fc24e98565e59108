use std::fs::File;
use std::io::{Read as _, copy};

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
