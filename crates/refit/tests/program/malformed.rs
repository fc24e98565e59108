//! What is not as it should be is refused: requests of every family, made of the server's own
//! description and spoiled, by the ten thousand.

mod generate;
mod random;
mod wire;

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use generate::{Operation, World, operations};
use random::Random;
use serde_json::Value;
use testkit::{Sandbox, Server, resident_memory};
use wire::{Answer, Client, Sent};

use crate::sandbox;

/// With it, request number such and such of a family is the same as ever, but for what earlier
/// answers told.
const SEED: u64 = 0x5eed_0005;
/// Of each family.
const REQUESTS: u64 = 10_000;
/// Connections that are used at the same time.
const CONNECTIONS: u64 = 4;
/// What a server may have grown by between the first half of the requests and the second: what it
/// keeps for connections and statements differs from one moment to the next.
const GROWTH_MAX: u64 = 24 << 20;
/// Failures that are told.
const TOLD: usize = 12;

const SETTINGS: &str =
    "[limits]\nqueue_length_max = 20\nguess_rate = 0\n[server]\nanonymous_loopback = false\n";

#[test]
fn no_malformed_request_is_a_fault_of_the_server() {
    let sandbox = sandbox();
    sandbox.write("refit.toml", SETTINGS);
    let settings = sandbox.path("refit.toml").display().to_string();
    let server = sandbox.server_with(&["--config", &settings]);
    let world = world(&sandbox, &server);
    let operations = operations(&world.description);
    let mut families: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in &operations {
        families.entry(operation.family).or_default().push(operation);
    }
    println!("seed {SEED:#x}, {REQUESTS} requests of each of {} families", families.len());

    let mut tallies = BTreeMap::new();
    let (mut memory, mut failures) = (Vec::new(), Vec::new());
    for half in 0..2 {
        for (&family, operations) in &families {
            let begun = Instant::now();
            let numbers = half * REQUESTS / 2..(half + 1) * REQUESTS / 2;
            failures.extend(send_all(&world, family, operations, numbers, &mut tallies));
            println!("{family}: {} ms", begun.elapsed().as_millis());
        }
        memory.push(resident_memory(server.id()));
    }
    for ((family, status), count) in &tallies {
        println!("{family}: {status} x {count}");
    }
    println!("resident: {:?} MiB", memory.iter().map(|bytes| bytes >> 20).collect::<Vec<_>>());

    let log = server.log();
    let told = failures.join("\n\n");
    assert!(failures.is_empty(), "seed {SEED:#x}:\n{told}\n\n{log}");
    for word in ["panicked", "ERROR"] {
        let told: Vec<&str> = log.lines().filter(|line| line.contains(word)).take(TOLD).collect();
        assert!(told.is_empty(), "the server's log has:\n{}", told.join("\n"));
    }
    for family in families.keys() {
        let any = |range: std::ops::Range<u16>| {
            tallies.keys().any(|(own, status)| own == family && range.contains(status))
        };
        assert!(any(200..300) && any(400..500), "{family} was not reached");
    }
    assert!(memory[1] < memory[0] + GROWTH_MAX, "{memory:?}");
    // Where nothing was locked or deleted, as somebody may have wanted of `app`.
    sandbox.refit(["build", "app", "-t", "after:1"]).on(&server).succeeds();
    server.stop();
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("{user}:{password}")))
}

/// A server with a few things, and what a client may know of them.
fn world(sandbox: &Sandbox, server: &Server) -> World {
    sandbox.write("app/Dockerfile", "FROM scratch\nCOPY f /f\n").write("app/f", "text\n");
    let refit = |args: &[&str]| sandbox.refit(args.iter().copied()).on(server).succeeds();
    let built = refit(&["build", "app", "-t", "app:1", "-t", "team/app:1", "-o", "json"]).json();
    refit(&["agentpool", "create", "pool-a"]);
    let owner = refit(&["account", "create", "anowner", "--role", "owner", "-o", "json"]).json();
    let password = owner["password"].as_str().expect("it is shown").to_owned();
    let token = std::fs::read_to_string(sandbox.data().join("keys/api-token")).expect("it is kept");
    let token = token.trim();
    let wanted = format!(
        "GET /v2/app/manifests/1 HTTP/1.1\r\nHost: {}\r\nAuthorization: {}\r\n\r\n",
        server.host(),
        basic("anyone", token)
    );
    let wanted = Sent { bytes: wanted.into_bytes(), is_head: false, is_framed: true };
    let manifest = Client::new(&server.host()).send(&wanted).expect("it is answered").body;
    let parsed: Value = serde_json::from_slice(&manifest).expect("a manifest is JSON");
    let text = |value: &Value| value.as_str().expect("it is text").to_owned();
    let mut digests =
        vec![oci::Digest::of(&manifest).to_string(), text(&parsed["config"]["digest"])];
    digests
        .extend(parsed["layers"].as_array().into_iter().flatten().map(|own| text(&own["digest"])));
    World {
        description: serde_json::from_str(include_str!("../../../../docs/openapi.json"))
            .expect("a description is JSON"),
        host: server.host(),
        credentials: vec![
            basic("anyone", token),
            basic("anowner", &password),
            format!("Bearer {token}"),
        ],
        manifest,
        digests,
        runs: vec![text(&built["name"])],
        ids: Mutex::new(HashMap::new()),
    }
}

type Tallies<'a> = BTreeMap<(&'a str, u16), usize>;

/// Sends some of the requests of a family; what went wrong.
fn send_all<'a>(
    world: &World,
    family: &'a str,
    operations: &[&Operation],
    numbers: std::ops::Range<u64>,
    tallies: &mut Tallies<'a>,
) -> Vec<String> {
    let (failures, tallied) = (Mutex::new(Vec::new()), Mutex::new(std::mem::take(tallies)));
    std::thread::scope(|scope| {
        for connection in 0..CONNECTIONS {
            let (failures, tallied) = (&failures, &tallied);
            let own = numbers.clone().filter(move |number| number % CONNECTIONS == connection);
            scope.spawn(move || {
                let mut client = Client::new(&world.host);
                for number in own {
                    let named = oci::Digest::of(family.as_bytes());
                    let mut random = Random(
                        SEED ^ named
                            .hex()
                            .bytes()
                            .map(u64::from)
                            .fold(number, |mix, byte| mix.rotate_left(7) ^ byte),
                    );
                    let mut operation = *random.pick(operations);
                    // Or there would soon be nothing to ask for.
                    if operation.is_deletion() && !random.once_in(8) {
                        operation = *random.pick(operations);
                    }
                    let sent = world.request(operation, &mut random);
                    let answer = client.send(&sent);
                    let status = answer.as_ref().map_or(0, |answer| answer.status);
                    *tallied.lock().expect("nobody panics").entry((family, status)).or_default() +=
                        1;
                    let mut failures = failures.lock().expect("nobody panics");
                    if let Some(what) = failure(operation, &sent, &answer) {
                        let id = &operation.id;
                        failures.push(format!("{id}, number {number}: {what}\n  {}", sent.shown()));
                    }
                    if failures.len() >= TOLD {
                        return;
                    }
                    drop(failures);
                    if let Ok(answer) = answer {
                        learn(world, operation, &answer);
                    }
                }
            });
        }
    });
    *tallies = tallied.into_inner().expect("nobody panics");
    failures.into_inner().expect("nobody panics")
}

/// What is wrong with an answer, if something is.
fn failure(operation: &Operation, sent: &Sent, answer: &std::io::Result<Answer>) -> Option<String> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) if sent.is_framed || is_late(error) => {
            return Some(format!("no answer: {error}"));
        }
        // Closed, or half of an answer before the connection was.
        Err(_) => return None,
    };
    if answer.status >= 500 && !operation.faults.contains(&answer.status) {
        return Some(answer.shown());
    }
    // What is no HTTP is refused without words.
    let has_words = sent.is_framed && !sent.is_head && !answer.body.is_empty();
    let told = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
    let is_told = told["error"]["code"].is_string() || told["errors"][0]["code"].is_string();
    if answer.status >= 400 && has_words && !is_told {
        return Some(format!("not in the form of errors: {}", answer.shown()));
    }
    None
}

fn is_late(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

/// Later requests are about what earlier ones began.
fn learn(world: &World, operation: &Operation, answer: &Answer) {
    if !(200..300).contains(&answer.status) {
        return;
    }
    if operation.id == "POST /v2/{name}/blobs/uploads/" {
        let id = answer.location.as_deref().and_then(|location| location.rsplit('/').next());
        world.learn("upload", id.unwrap_or_default().to_owned());
    }
    let body = || serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
    match operation.id.as_str() {
        "createSource" => {
            let id = body()["id"].as_str().unwrap_or_default().to_owned();
            world.learn("source", id);
        }
        "createSourceUpload" => {
            let url = body()["uploadUrl"].as_str().unwrap_or_default().to_owned();
            let id = url.split(['/', '?']).find(|part| part.len() > 20).unwrap_or_default();
            world.learn("source", id.to_owned());
        }
        _ => (),
    }
}
