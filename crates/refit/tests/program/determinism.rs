//! What decision 12 of the design promises: the same inputs and `SOURCE_DATE_EPOCH` give the same
//! image, whatever the machine.

use testkit::{Invocation, Outcome, Sandbox, busybox};

use crate::sandbox;

/// Several blocks of data that compress well and less well, in one file and in many.
fn context(sandbox: &Sandbox) {
    let mut state = 7_u64;
    let mut noise = |size: usize| {
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            b"0123456789abcdef"[(state >> 60) as usize] as char
        };
        (0..size).map(next).collect::<String>()
    };
    sandbox.write("app/src/big", noise(5 << 20));
    for number in 0..300 {
        sandbox.write(&format!("app/src/many/{number}"), noise(10_000 + 97 * number));
    }
    let dockerfile = "FROM localhost:5000/busybox AS made\n\
                      RUN cp -r /bin /made && seq 1 900000 > /numbers\n\
                      FROM localhost:5000/busybox\n\
                      COPY src /src\n\
                      COPY --from=made /numbers /made /\n\
                      RUN cat /src/big /src/big > /twice && rm /src/many/7\n";
    sandbox.write("app/Dockerfile", dockerfile);
}

/// A data folder that holds a base image with a shell, and a context for it.
fn prepared() -> Sandbox {
    let sandbox = sandbox();
    let server = sandbox.server();
    server.registry().push("busybox", "latest", &busybox());
    server.stop();
    context(&sandbox);
    sandbox
}

fn build(sandbox: &Sandbox, compression: &str) -> Invocation {
    let output = format!("type=image,compression={compression}");
    let build = sandbox.refit(["build", "app", "-t", "app", "-o", &output, "-o", "json"]);
    build.env("SOURCE_DATE_EPOCH", "1700000000")
}

fn digest(built: &Outcome) -> String {
    built.json()["properties"]["outputDigest"].as_str().expect("it was built").to_owned()
}

#[test]
fn as_root_blocks_that_are_used_again_change_no_byte() {
    for compression in ["gzip", "zstd"] {
        let sandbox = prepared();
        build(&sandbox, compression).run().success();
        let change = |sandbox: &Sandbox| {
            sandbox.write("app/src/many/7", "another text");
            sandbox.write("app/src/many/new", "one more");
        };
        change(&sandbox);
        let changed = build(&sandbox, compression).run().success();
        let cost = &changed.json()["properties"]["cost"];
        let (written, reused) = (cost["written"].as_u64(), cost["reused"].as_u64());
        assert!(reused.unwrap() * 2 > written.unwrap(), "{reused:?} of {written:?}");
        let alone = prepared();
        change(&alone);
        let alone = build(&alone, compression).run().success();
        assert_eq!(alone.json()["properties"]["cost"]["reused"], 0);
        assert_eq!(digest(&alone), digest(&changed), "{compression}");
    }
}

#[test]
fn as_root_empty_stores_and_any_number_of_processors_give_the_same_image() {
    let built = |compression: &str, is_alone: bool| {
        let sandbox = prepared();
        let build = build(&sandbox, compression);
        let build = if is_alone { build.on_one_processor() } else { build };
        digest(&build.run().success())
    };
    let digests = ["gzip", "zstd"].map(|compression| {
        let of_one = built(compression, true);
        assert_eq!(built(compression, false), of_one, "{compression}");
        of_one
    });
    assert_ne!(digests[0], digests[1]);
}
