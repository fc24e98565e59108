//! Section F: which images come into which registry; and what is left of a volume.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use testkit::validate;

use super::{LOOPBACK, record, run, server, server_with};
use crate::observe::{holding, place};
use crate::sandbox;

#[test]
fn as_root_f11_f12_images_are_pushed_once_each_in_order() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    sandbox.write("app/Dockerfile", "FROM scratch\nLABEL a=b\n");
    // The registry's own name has a port, as `localhost:5000` has.
    let task = "version: v1.1.0
steps:
  - {id: build, build: -t $Registry/a -t $Registry/b .}
  - {id: push, push: [$Registry/a, '$Registry/a:latest', $Registry/b]}
";
    let done = run(&sandbox, &server, task).success();
    let (log, host) = (&done.stderr, server.host().replace("127.0.0.1", "localhost"));
    let pushing = |name: &str| format!("Pushing image: {host}/{name}:latest, attempt 1\n");
    assert!(place(log, &pushing("a")) < place(log, &pushing("b")));
    assert_eq!(log.matches("Pushing image: ").count(), 2, "{log}");
    let digest = validate(&server.registry(), "a", "latest").digest;
    assert_eq!(done.stdout, format!("a@{digest}\nb@{digest}\n"));
    let images = record(&sandbox, &server, &done)["outputImages"].clone();
    let images = images.as_array().unwrap().iter();
    let images: Vec<_> = images.map(|image| (&image["repository"], &image["tag"])).collect();
    let latest = "latest".into();
    assert_eq!(images, [(&"a".into(), &latest), (&"b".into(), &latest)]);
}

/// Passes requests on to a registry, but for the first few of some, which it refuses.
struct Unsteady {
    host: String,
    /// What was asked for, such as `PUT /v2/app/manifests/1`.
    requests: Arc<Mutex<Vec<String>>>,
}

impl Unsteady {
    fn start(registry: String, refused: &'static str, times: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let host = listener.local_addr().expect("a listener has an address").to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, count) = (Arc::clone(&requests), Arc::new(AtomicUsize::new(0)));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (seen, count, registry) =
                    (Arc::clone(&seen), Arc::clone(&count), registry.clone());
                std::thread::spawn(move || {
                    let is_refused = |request: &str| {
                        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                        seen.push(request.to_owned());
                        let is_one = request.starts_with(refused);
                        is_one && count.fetch_add(1, Ordering::Relaxed) < times
                    };
                    // A client may go when it likes.
                    let _ = pass_on(stream, &registry, &is_refused);
                });
            }
        });
        Self { host, requests }
    }

    fn count(&self, begin: &str) -> usize {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.iter().filter(|request| request.starts_with(begin)).count()
    }
}

/// One request, after which the connection ends.
fn pass_on(
    mut client: TcpStream,
    registry: &str,
    is_refused: &dyn Fn(&str) -> bool,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let request = head.lines().next().unwrap_or_default();
    if is_refused(request.trim_end_matches(" HTTP/1.1")) {
        let answer = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n";
        return write!(client, "{answer}Connection: close\r\n\r\n");
    }
    let mut server = TcpStream::connect(registry)?;
    write!(
        server,
        "{}Connection: close\r\n\r\n",
        head.trim_end_matches("\r\n").to_owned() + "\r\n"
    )?;
    let mut answers = server.try_clone()?;
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut reader, &mut server);
    });
    std::io::copy(&mut answers, &mut client)?;
    client.shutdown(Shutdown::Both)
}

#[test]
fn as_root_f13_a_registry_that_fails_twice_has_the_image_in_the_end() {
    let (sandbox, other_sandbox) = (sandbox(), sandbox());
    let other = other_sandbox.server();
    let unsteady = Unsteady::start(other.host(), "PUT /v2/app/manifests/1", 2);
    let settings = format!("{LOOPBACK}[upstream.\"{}\"]\npush = true\n", unsteady.host);
    let server = server_with(&sandbox, &settings);
    sandbox.write("app/Dockerfile", "FROM scratch\nLABEL a=b\n");
    let name = format!("{}/app:1", unsteady.host);
    let task = format!("steps: [{{build: '-t {name} .'}}, {{push: ['{name}']}}]");
    let done = run(&sandbox, &server, &task).success();
    assert_eq!(unsteady.count("PUT /v2/app/manifests/1"), 3);
    let digest = validate(&other.registry(), "app", "1").digest;
    assert!(done.stdout.contains(digest.as_str()), "{}", done.stdout);
}

#[test]
fn as_root_f14_an_image_that_nobody_built_is_not_pushed_after_three_attempts() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let task = "version: v1.1.0\nsteps: [{push: [$Registry/app:1]}]";
    let failed = run(&sandbox, &server, task).code(1);
    let failed = failed.stderr_has("no step of this run has built");
    failed.stderr_has("/app:1, attempt 3\n").stderr_lacks("attempt 4");
}

#[test]
fn as_root_f15_a_name_without_registry_is_one_of_docker_hub() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    sandbox.write("app/Dockerfile", "FROM scratch\nLABEL a=b\n");
    let task = "steps: [{build: -t app:v1 .}, {push: ['app:v1']}]";
    let refused = run(&sandbox, &server, task).code(1);
    refused.stderr_has("this server does not let runs push to `docker.io`");
    sandbox.refit(["repository", "show-tags", "app"]).on(&server).run().code(4);
}

#[test]
fn as_root_f16_what_is_built_is_for_later_steps_and_not_in_the_registry() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    sandbox.write(
        "app/Dockerfile",
        format!("FROM {}/busybox\nRUN echo was built > /made\n", server.host()),
    );
    let task = "version: v1.1.0
steps:
  - {id: build, build: -t $Registry/a .}
  - {id: use, cmd: $Registry/a cat /made}
  - {id: alike, build: '-t $Registry/b -f Again .'}
  - {id: again, cmd: $Registry/b cat /made}
";
    sandbox.write("app/Again", format!("FROM {}/a\nLABEL a=b\n", server.host()));
    let done = run(&sandbox, &server, task).success();
    assert_eq!(done.stderr.matches(" was built\n").count(), 2, "{}", done.stderr);
    for repository in ["a", "b"] {
        sandbox.refit(["repository", "show-tags", repository]).on(&server).run().code(4);
    }
    assert_eq!(record(&sandbox, &server, &done)["outputImages"].as_array().map_or(0, Vec::len), 0);
}

#[test]
fn as_root_f25_a_secret_in_the_workspace_is_there_until_the_run_ends() {
    let sandbox = sandbox();
    let server = server(&sandbox);
    let task = "
volumes: [{name: vault, secret: {key: aHVudGVyLWlzLWhlcmU=}}]
steps:
  - id: copies
    cmd: BUSYBOX cp /run/vault/key copy
    volumeMounts: [{name: vault, mountPath: /run/vault}]
  - {id: reads, cmd: BUSYBOX sh -c 'ls /run/vault || rev copy'}
";
    run(&sandbox, &server, task).success().stderr_has("ereh-si-retnuh");
    let found = holding(&sandbox.data(), b"hunter-is-here");
    assert!(found.is_empty(), "{found:?}");
}
