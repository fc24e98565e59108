//! What decision 12 of the design promises: the same inputs and `SOURCE_DATE_EPOCH` give the same
//! image, whatever the machine.

use testkit::{Sandbox, busybox};

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

#[test]
fn as_root_empty_stores_and_any_number_of_processors_give_the_same_image() {
    let digest = |compression: &str, is_alone: bool| {
        let sandbox = sandbox();
        let server = sandbox.server();
        server.registry().push("busybox", "latest", &busybox());
        server.stop();
        context(&sandbox);
        let output = format!("type=image,compression={compression}");
        let build = sandbox.refit(["build", "app", "-t", "app", "-o", &output]);
        let build = build.env("SOURCE_DATE_EPOCH", "1700000000");
        let build = if is_alone { build.on_one_processor() } else { build };
        build.run().success().digest()
    };
    let digests = ["gzip", "zstd"].map(|compression| {
        let of_one = digest(compression, true);
        assert_eq!(digest(compression, false), of_one, "{compression}");
        of_one
    });
    assert_ne!(digests[0], digests[1]);
}
