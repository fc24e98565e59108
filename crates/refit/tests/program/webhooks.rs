//! `refit webhook`: a receiver of this machine is told of what happens.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use expect_test::expect;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::Value;
use testkit::{Image, Layer, Outcome, Sandbox, Server, until};

use crate::sandbox;

const SECRET: &str = "hunter2-of-signatures";

/// What came to a receiver.
#[derive(Clone)]
struct Posted {
    headers: Vec<(String, String)>,
    text: String,
}

impl Posted {
    fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }

    fn body(&self) -> Value {
        serde_json::from_str(&self.text).expect("a body is JSON")
    }
}

/// Answers each post with the next of its answers, or with 200.
struct Receiver {
    address: String,
    posted: Arc<Mutex<Vec<Posted>>>,
    answers: Arc<Mutex<VecDeque<&'static str>>>,
}

impl Receiver {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
        let address = format!("http://{}", listener.local_addr().expect("it has one"));
        let posted: Arc<Mutex<Vec<Posted>>> = Arc::default();
        let answers: Arc<Mutex<VecDeque<&str>>> = Arc::default();
        let (noted, given) = (Arc::clone(&posted), Arc::clone(&answers));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Some((post, mut stream)) = read(stream) else { continue };
                let answer = locked(&given).pop_front().unwrap_or("200 OK");
                locked(&noted).push(post);
                let rest =
                    "connection: close\r\ncontent-length: 28\r\n\r\nyour key: hunter2-of-headers";
                let _ = write!(stream, "HTTP/1.1 {answer}\r\n{rest}");
            }
        });
        Self { address, posted, answers }
    }

    /// Waits until so much has come.
    #[track_caller]
    fn posted(&self, count: usize) -> Vec<Posted> {
        until("a post", || {
            let posted = locked(&self.posted);
            (posted.len() >= count).then(|| posted.clone())
        })
    }

    fn answer(&self, answers: &[&'static str]) {
        locked(&self.answers).extend(answers);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(stream: TcpStream) -> Option<(Posted, TcpStream)> {
    let mut reader = BufReader::new(stream);
    let (mut headers, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            match line.trim_end().is_empty() {
                true => break,
                false => continue,
            }
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().ok()?;
        }
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let text = String::from_utf8(body).ok()?;
    Some((Posted { headers, text }, reader.into_inner()))
}

fn refit(sandbox: &Sandbox, server: &Server, args: &[&str]) -> Outcome {
    sandbox.refit(args.iter().copied()).on(server).run()
}

fn image(text: &str) -> Image {
    Image::new([Layer::new().file("it", 0o644, text.as_bytes())])
}

/// `action repository:tag` of each post.
fn told(posted: &[Posted]) -> Vec<String> {
    let told = posted.iter().map(|post| {
        let body = post.body();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (action, target) = (text(&body["action"]), &body["target"]);
        format!("{action} {}:{}", text(&target["repository"]), text(&target["tag"]))
    });
    let mut told: Vec<String> = told.collect();
    told.sort();
    told
}

#[test]
fn a_receiver_is_told_what_is_pushed_and_deleted() {
    let (sandbox, receiver) = (sandbox(), Receiver::start());
    let server = sandbox.server_beside_others();
    let run = |args: &[&str]| refit(&sandbox, &server, args);
    let webhook = |name: &str, scope: &str| {
        let uri = format!("{}/{name}", receiver.address);
        let args = ["webhook", "create", "-n", name, "--uri", &uri, "--scope", scope];
        run(&[&args[..], &["--actions", "push", "delete", "--headers", "X-Hook=it"]].concat())
            .success();
    };
    webhook("hook1", "");
    webhook("latest", "app");
    let digest = server.registry().push("app", "v1", &image("one"));
    let (manifest, media_type) = server.registry().manifest("app", "v1");
    server.registry().push_manifest("app", "v2", &manifest, &media_type);
    server.registry().push_manifest("app", digest.as_str(), &manifest, &media_type);
    assert_eq!(told(&receiver.posted(3)), ["push app:", "push app:v1", "push app:v2"]);
    let first = &receiver.posted(1)[0];
    assert_eq!((first.header("content-type"), first.header("x-hook")), ("application/json", "it"));
    let body = first.body();
    assert_eq!(body["target"]["digest"], digest.to_string());
    assert_eq!(body["request"]["host"], server.host().replace("127.0.0.1", "localhost"));
    // N1: nothing is told of the tag. N2: one event for both tags. N3: `app` is `app:latest`.
    server.registry().push("app", "v3", &image("other"));
    run(&["tag", "delete", "app:v3", "--yes"]).success();
    run(&["manifest", "delete", &format!("app@{digest}"), "--yes"]).success();
    server.registry().push("app", "latest", &image("three"));
    let posted = receiver.posted(7);
    let of_latest = ["push app:latest", "push app:latest"];
    let expected = [&["delete app:", "push app:"], &of_latest[..], &["push app:v1"]].concat();
    assert_eq!(told(&posted), [&expected[..], &["push app:v2", "push app:v3"]].concat());
    let events = run(&["webhook", "list-events", "latest", "-o", "json"]).success().json();
    assert_eq!(events.as_array().map(Vec::len), Some(1));
    assert_eq!(events[0]["eventRequestMessage"]["content"]["target"]["tag"], "latest");
    run(&["webhook", "delete", "hook1", "--yes"]).success();
    run(&["webhook", "show", "hook1"]).code(4).stderr_has("webhook `hook1` not found");
    server.registry().push("app", "v4", &image("four"));
    server.registry().push("app", "latest", &image("five"));
    receiver.posted(8);
    assert_eq!(receiver.posted(8).len(), 8);
}

#[test]
fn what_is_told_is_signed_and_no_secret_is_shown() {
    let (sandbox, receiver) = (sandbox(), Receiver::start());
    let server = sandbox.server_beside_others();
    sandbox.write("secret", format!("{SECRET}\n"));
    let file = sandbox.path("secret").display().to_string();
    let uri = receiver.address.replace("http://", "http://me:hunter2-of-uri@");
    let run = |args: &[&str]| refit(&sandbox, &server, args);
    let all = ["webhook", "create", "hook1", "--uri", &uri, "--actions", "push"];
    let more = ["--headers", "X-Key=hunter2-of-headers", "--signing-secret-file", &file];
    let created = run(&[&all[..], &more].concat()).success();
    expect![[r#"
        exit: 0
        -- stdout --
        WEBHOOK  STATUS   SCOPE  ACTIONS  FORMAT
        -------  ------   -----  -------  ------
        hook1    enabled         push     acr
        -- stderr --
    "#]]
    .assert_eq(&created.snapshot());
    run(&[&all[..], &more].concat()).code(5).stderr_has("there is a webhook `hook1` already");
    run(&["webhook", "ping", "hook1"]).success();
    let post = &receiver.posted(1)[0];
    assert_eq!(post.header("x-key"), "hunter2-of-headers");
    assert!(post.header("authorization").starts_with("Basic "));
    let (id, time) = (post.header("webhook-id"), post.header("webhook-timestamp"));
    let signed = format!("{id}.{time}.{}", post.text);
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let expected = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, Algorithm::HS256);
    // Base64 of another alphabet, and without its end.
    let signature = post.header("webhook-signature").replace('+', "-").replace('/', "_");
    let expected = format!("v1,{}", expected.expect("it is signed"));
    assert_eq!(signature.trim_end_matches('='), expected);
    let delivered = || {
        let events = run(&["webhook", "list-events", "hook1", "-o", "json"]).success();
        (events.json()[0]["state"] == "Delivered").then_some(events)
    };
    let events = until("the end of a delivery", delivered);
    let config = run(&["webhook", "get-config", "hook1", "-o", "json"]).success();
    assert_eq!(config.json()["customHeaders"]["X-Key"], "***");
    let shown = run(&["webhook", "show", "hook1", "-o", "json"]).success();
    assert_eq!(shown.json()["properties"]["isSigned"], true);
    let audit = run(&["audit", "list", "-o", "json"]).success();
    assert!(audit.stdout.contains("/webhooks/hook1/ping"), "{}", audit.stdout);
    let listed = run(&["webhook", "list", "-o", "json"]).success();
    for outcome in [&events, &config, &shown, &audit, &listed, &created] {
        assert!(!outcome.stdout.contains("hunter2"), "{}", outcome.stdout);
        assert!(!outcome.stderr.contains("hunter2"), "{}", outcome.stderr);
    }
    assert!(!server.log().contains("hunter2"), "{}", server.log());
    // Not signed, and as a CloudEvent.
    let update = ["webhook", "update", "hook1", "--no-signing-secret", "--format", "cloudevents"];
    run(&update).success();
    run(&["webhook", "ping", "hook1"]).success();
    let post = &receiver.posted(2)[1];
    assert_eq!(post.header("webhook-signature"), "");
    assert_eq!(post.header("content-type"), "application/cloudevents+json");
    assert_eq!(post.body()["type"], "refit.ping");
}

#[test]
fn a_receiver_that_fails_is_told_again_also_by_the_next_server() {
    let (sandbox, receiver) = (sandbox(), Receiver::start());
    let server = sandbox.server_beside_others();
    let args = ["webhook", "create", "hook1", "--uri", &receiver.address];
    let actions = ["--actions", "push,run_finished,run_failed"];
    refit(&sandbox, &server, &[&args[..], &actions].concat()).success();
    receiver.answer(&["503 Busy\r\nretry-after: 1", "500 Oh\r\nretry-after: 2"]);
    server.registry().push("app", "v1", &image("one"));
    let posted = receiver.posted(2);
    assert_eq!(posted[0].body()["id"], posted[1].body()["id"]);
    let attempts = |server: &Server, count: usize| {
        until("attempts of a delivery", || {
            let args = ["webhook", "list-events", "hook1", "-o", "json"];
            let event = refit(&sandbox, server, &args).success().json()[0].clone();
            let attempts = event["attempts"].as_array().expect("it is a list").iter();
            let statuses: Vec<_> = attempts.map(|attempt| attempt["statusCode"].clone()).collect();
            (statuses.len() == count).then_some((event["state"].clone(), statuses))
        })
    };
    assert_eq!(attempts(&server, 2).1, [503, 500]);
    server.kill();
    let server = sandbox.server_beside_others();
    let posted = receiver.posted(3);
    assert_eq!(posted[2].body()["id"], posted[1].body()["id"]);
    assert_eq!(
        attempts(&server, 3),
        ("Delivered".into(), vec![503.into(), 500.into(), 200.into()])
    );
    // Killed at once, before anybody is told.
    server.registry().push("app", "v2", &image("two"));
    server.kill();
    let server = sandbox.server_beside_others();
    until("what was pushed before", || {
        let posted = receiver.posted(4);
        posted.iter().any(|post| post.body()["target"]["tag"] == "v2").then_some(())
    });
    sandbox.write("app/Dockerfile", "FROM scratch\nCOPY missing /\n");
    refit(&sandbox, &server, &["build", "app"]).code(1);
    let run = until("a run that failed", || {
        let posted = receiver.posted(4);
        let bodies = posted.iter().map(Posted::body);
        let of_runs: Vec<Value> = bodies.filter(|body| body.get("run").is_some()).collect();
        let actions: Vec<&Value> = of_runs.iter().map(|body| &body["action"]).collect();
        let is_all = ["run_finished", "run_failed"].map(Value::from);
        is_all.iter().all(|action| actions.contains(&action)).then(|| of_runs[0]["run"].clone())
    });
    assert_eq!((&run["status"], &run["runType"]), (&"Failed".into(), &"QuickBuild".into()));
}

#[test]
fn what_cannot_be_a_webhook_is_refused() {
    let sandbox = sandbox();
    let server = sandbox.server();
    let create = |args: &[&str]| refit(&sandbox, &server, &[&["webhook", "create"], args].concat());
    let fine = ["--uri", "https://example.com/", "--actions", "push"];
    create(&[&["no"], &fine[..]].concat()).code(2).stderr_has("5 to 50 letters and digits");
    create(&["hook1", "--uri", "http://127.0.0.1:1/", "--actions", "push"])
        .code(2)
        .stderr_has("is a loopback address, which users may not reach")
        .stderr_has("build.allow_addresses");
    create(&["hook1", "--uri", "ftp://x/", "--actions", "push"]).code(2).stderr_has("neither http");
    create(&["hook1", "--uri", "https://x/", "--actions", "ping"]).code(2).stderr_has("`ping`");
    create(&["hook1", "--uri", "https://x/", "--actions", "pull"]).code(2).stderr_has("`pull`");
    create(&[&["hook1"], &fine[..], &["--scope", "*"]].concat()).code(2).stderr_has("no scope");
    create(&[&["hook1"], &fine[..], &["--headers", "Host=x"]].concat())
        .code(2)
        .stderr_has("the header `Host` is set by the server itself");
    create(&[&["hook1"], &fine[..], &["--headers", "hunter2"]].concat())
        .code(2)
        .stderr_has("`NAME=VALUE`")
        .stderr_lacks("hunter2");
    // What nobody may read does not go to another receiver.
    sandbox.write("headers", "Authorization=Bearer hunter2\n\nX-A=b\n");
    let file = sandbox.path("headers").display().to_string();
    create(&[&["hook1"], &fine[..], &["--headers-file", &file]].concat()).success();
    let update = |args: &[&str]| {
        refit(&sandbox, &server, &[&["webhook", "update", "hook1", "--uri"], args].concat())
    };
    update(&["https://example.org/"]).code(2).stderr_has("the headers of the one before");
    update(&["https://example.com/other"]).success();
    update(&["https://example.org/", "--headers", "X-A=b"]).success();
}
