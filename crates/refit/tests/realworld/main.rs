//! Dockerfiles as people write them, with package clients that fetch from their registries: each
//! application under `data` is built, run by a runtime that is not ours, and built again.
//!
//! Needs root, podman, mmdebstrap, skopeo, curl and nsenter, Debian's package mirror and the
//! registries of pip, npm and Cargo. How this machine reaches those is told by [`clients`].

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "makes bases and runs images by other programs")]

mod base;
mod clients;
mod podman;
mod world;

use std::process::Command;

use world::World;

/// Runs a program to its end, which is a success; what it printed.
#[track_caller]
fn run(command: &mut Command) -> String {
    attempt(command).unwrap_or_else(|told| panic!("{told}"))
}

/// What a program printed, or how it failed.
fn attempt(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    match output.status.success() {
        true => Ok(stdout),
        false => Err(format!("{command:?}\n{stdout}{stderr}")),
    }
}

#[test]
fn as_root_a_c_project_becomes_a_small_image() {
    let world = World::new("c");
    world.build().success();
    world.check_image();
    assert_eq!(world.image().files().keys().collect::<Vec<_>>(), ["wordcount"]);
    let podman = world.podman();
    assert_eq!(podman.run(&["two words"]), "2 words\n");
    world.check_cached();

    world.replace("src/main.c", "%lu words", "words: %lu");
    world.replace("Makefile", "3 words", "words: 3");
    world.check_executed(&["COPY Makefile", "COPY src", "RUN make", "COPY --from=build"]);
    assert_eq!(world.podman().run(&["a", "b c"]), "words: 3\n");
}

#[test]
fn as_root_a_python_application_has_its_packages() {
    let world = World::new("python");
    world.build().success();
    world.check_image();
    let podman = world.podman();
    let server = podman.start();
    assert_eq!(server.get("/hello/you"), "Hello, you!\n");
    assert_eq!(server.uid(), 990);
    world.check_cached();

    world.replace("app.py", "Hello", "Bye");
    world.check_executed(&["COPY app.py"]);
    assert_eq!(world.podman().start().get("/hello/you"), "Bye, you!\n");
}

#[test]
fn as_root_a_node_application_has_the_packages_of_its_lock_file() {
    let world = World::new("node");
    world.build().success();
    world.check_image();
    let podman = world.podman();
    let server = podman.start();
    assert_eq!(server.get("/2%20days"), "2 days is 172800000 ms\n");
    assert_eq!(server.uid(), 33);
    world.check_cached();

    world.replace("server.js", "} ms", "} milliseconds");
    world.check_executed(&["COPY . ."]);
    let served = world.podman().start().get("/1s");
    assert_eq!(served, "1s is 1000 milliseconds\n");
}

#[test]
fn as_root_a_rust_application_is_compiled_with_what_a_cache_mount_kept() {
    let world = World::new("rust").without_epoch();
    let built = world.build().success();
    let compiled = |name: &str| format!(" Compiling {name} v");
    let built = built.stderr_has(&compiled("itoa")).stderr_has(&compiled("numbers"));
    built.stderr_has(" Downloaded itoa");
    world.check_image();
    assert_eq!(world.podman().run(&[]), "the sum is 5050\n");
    world.check_cached();

    world.replace("src/main.rs", "the sum", "a sum");
    let built = world.check_executed(&["COPY . .", "RUN --mount", "COPY --from=build"]);
    // The mounts brought the crate, and what the compiler made of it.
    let built = built.stderr_has(&compiled("numbers")).stderr_lacks(&compiled("itoa"));
    built.stderr_lacks(" Downloaded ");
    assert_eq!(world.podman().run(&[]), "a sum is 5050\n");
}

#[test]
fn as_root_generated_pages_are_served_by_nginx() {
    let world = World::new("static");
    world.build().success();
    world.check_image();
    let podman = world.podman();
    let server = podman.start();
    let page = "<!doctype html>\n<title>index</title>\n<p>Welcome.</p>\n";
    assert_eq!(server.get("/"), page);
    assert!(server.get("/about.html").contains("nobody in particular"));
    assert_eq!(server.uid(), 33);
    world.check_cached();

    world.replace("pages/index.txt", "Welcome", "Hello");
    world.check_executed(&["COPY pages", "RUN sh /generate.sh", "COPY --from=pages"]);
    assert_eq!(world.podman().start().get("/"), page.replace("Welcome", "Hello"));
}

#[test]
fn as_root_a_program_and_its_libraries_are_all_of_an_image() {
    let world = World::new("distroless");
    world.build().success();
    world.check_image();
    assert!(!world.image().files().keys().any(|path| path.contains("bin/sh")));
    let podman = world.podman();
    assert!(podman.run(&[]).starts_with("OpenSSL 3."));
    // The certificates are there, and readable for the user that the image names.
    let file = "/etc/ssl/certs/ca-certificates.crt";
    let certificate = podman.run(&["x509", "-noout", "-subject", "-in", file]);
    assert!(certificate.starts_with("subject="), "{certificate}");
    assert!(podman.config().contains("nonroot"));
    world.check_cached();

    world.replace("collect.sh", "Copies", "Brings");
    world.check_executed(&["COPY collect.sh", "RUN sh /collect.sh"]);
}
