//! What of a context travels to a server.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use testkit::{Invocation, Outcome, Sandbox, Server, until, validate};

use crate::sandbox;

/// Waits until a change would show in the times of files.
fn settle() {
    std::thread::sleep(Duration::from_millis(2_100));
}

fn build(sandbox: &Sandbox, server: &Server) -> Outcome {
    sandbox.refit(["build", "app", "-t", "app:1"]).on(server).run().success()
}

#[test]
fn as_root_only_what_changed_travels_and_nothing_is_ever_stale() {
    let sandbox = sandbox();
    let server = sandbox.server();
    sandbox
        .write("app/Dockerfile", "FROM scratch\nCOPY . /\n")
        .write("app/one", "one")
        .write("app/sub/two", "two");
    let text = |path: &str| validate(&server.registry(), "app", "1").text(path);
    let first = build(&sandbox, &server).stderr_has("Sent the context: 3 files");
    let again = build(&sandbox, &server).stderr_has("none of which changed");
    assert_eq!(again.digest(), first.digest());

    settle();
    let again = build(&sandbox, &server).stderr_has("none of which changed");
    assert_eq!(again.digest(), first.digest());
    // The same size, and the time of before.
    let file = sandbox.path("app/sub/two");
    let found = file.metadata().unwrap();
    fs::write(&file, "TWO").unwrap();
    let mtime = Duration::new(found.mtime() as u64, found.mtime_nsec() as u32);
    File::options().write(true).open(&file).unwrap().set_modified(UNIX_EPOCH + mtime).unwrap();
    assert_eq!(file.metadata().unwrap().mtime_nsec(), found.mtime_nsec());
    build(&sandbox, &server).stderr_has("(1 new, 3 B)");
    assert_eq!((text("one"), text("sub/two")), ("one".into(), "TWO".into()));

    // A change within the tick of the clock in which the file was hashed.
    fs::write(&file, "two").unwrap();
    build(&sandbox, &server);
    fs::write(&file, "tWo").unwrap();
    build(&sandbox, &server);
    assert_eq!(text("sub/two"), "tWo");

    // What has moved is there already, and what was made before comes from elsewhere.
    fs::rename(&file, sandbox.path("app/three")).unwrap();
    build(&sandbox, &server).stderr_has("none of which changed");
    assert_eq!(text("three"), "tWo");
}

/// Of the same user, but written by something else.
#[test]
fn as_root_an_index_that_was_tampered_with_makes_no_wrong_image() {
    let sandbox = sandbox();
    let server = sandbox.server();
    sandbox
        .write("app/Dockerfile", "FROM scratch\nCOPY . /\n")
        .write("app/one", "one")
        .write("app/two", "two");
    settle();
    build(&sandbox, &server);
    let folder = sandbox.path("home/.cache/refit/contexts");
    let index = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let [one, two, none] =
        ["one", "two", "none"].map(|text| oci::Digest::of(text.as_bytes()).sha256_bytes().unwrap());
    let replace = |bytes: &[u8], other: &[u8; 32]| {
        let at = bytes.windows(one.len()).position(|window| window == one).unwrap();
        [&bytes[..at], other, &bytes[at + one.len()..]].concat()
    };
    let bytes = fs::read(&index).unwrap();
    fs::write(&index, replace(&bytes, &two)).unwrap();
    build(&sandbox, &server);
    assert_eq!(validate(&server.registry(), "app", "1").text("one"), "one");
    // Even with a sum that fits: what is not there comes, and is compared.
    let bytes = fs::read(&index).unwrap();
    let sum = oci::Digest::of(b"").as_str().len();
    let mut body = replace(&bytes[..bytes.len() - sum], &none);
    body.extend(oci::Digest::of(&body).as_str().as_bytes());
    fs::write(&index, body).unwrap();
    build(&sandbox, &server);
    assert_eq!(validate(&server.registry(), "app", "1").text("one"), "one");
}

#[test]
fn as_root_an_embedded_build_sends_only_what_changed_too() {
    let sandbox = sandbox();
    sandbox.write("app/Dockerfile", "FROM scratch\nCOPY . /\n").write("app/one", "one");
    let build = || sandbox.refit(["build", "app", "-t", "app:1"]).run().success();
    build();
    build().stderr_has("none of which changed");
    sandbox.write("app/one", "two");
    build().stderr_has("(1 new, 3 B)");
}

/// A way to a server that can be cut.
pub(crate) struct Wire {
    address: String,
    server: Arc<Mutex<String>>,
    /// Bytes that clients may still send.
    left: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
}

impl Wire {
    pub(crate) fn to(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let to = Arc::new(Mutex::new(server.host()));
        let (left, sent) = (Arc::new(AtomicU64::new(u64::MAX)), Arc::default());
        let wire = Self { address, server: to, left, sent };
        let (to, left, sent) =
            (Arc::clone(&wire.server), Arc::clone(&wire.left), Arc::clone(&wire.sent));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let to = to.lock().unwrap().clone();
                let Ok(server) = TcpStream::connect(to) else { continue };
                let (left, sent) = (Arc::clone(&left), Arc::clone(&sent));
                std::thread::spawn(move || pass(client, server, &left, &sent));
            }
        });
        wire
    }

    /// From now on connections lead to another server.
    pub(crate) fn lead_to(&self, server: &Server) {
        *self.server.lock().unwrap() = server.host();
    }

    /// Cuts the connection after so many more bytes; the next one holds.
    fn cut_after(&self, bytes: u64) {
        self.left.store(bytes, Ordering::SeqCst);
    }

    pub(crate) fn command(&self, sandbox: &Sandbox) -> Invocation {
        let token = fs::read_to_string(sandbox.data().join("keys/api-token")).unwrap();
        let command = sandbox.refit(["build", "app", "-t", "app:1"]);
        let command = command.env("REFIT_SERVER", format!("http://{}", self.address));
        command.env("REFIT_TOKEN", token.trim())
    }
}

fn pass(client: TcpStream, server: TcpStream, left: &AtomicU64, sent: &AtomicU64) {
    let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    let (mut client, mut server) = (client, server);
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = client.read(&mut buffer) {
        let (read, rest) = (read as u64, left.load(Ordering::SeqCst));
        if read > rest {
            left.store(u64::MAX, Ordering::SeqCst);
            break;
        }
        left.fetch_sub(read, Ordering::SeqCst);
        sent.fetch_add(read, Ordering::SeqCst);
        if server.write_all(&buffer[..read as usize]).is_err() {
            break;
        }
    }
    let _ = (server.shutdown(Shutdown::Both), client.shutdown(Shutdown::Both));
}

const MIB: usize = 1 << 20;
/// Two of them are more than a pack takes.
const LARGE: usize = 40 * MIB;

fn noise(sandbox: &Sandbox, path: &str) {
    let mut bytes = vec![0; LARGE];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    sandbox.write(path, bytes);
}

/// A context of two packs, and a wire that breaks in the second.
fn to_be_cut() -> (Sandbox, Server, Wire) {
    let sandbox = sandbox();
    let server = sandbox.server();
    sandbox.write("app/Dockerfile", "FROM scratch\nCOPY a /\n");
    noise(&sandbox, "app/a");
    noise(&sandbox, "app/b");
    let wire = Wire::to(&server);
    wire.cut_after((LARGE + LARGE / 2) as u64);
    (sandbox, server, wire)
}

#[test]
fn as_root_of_an_upload_that_was_cut_only_the_rest_travels() {
    let (sandbox, server, wire) = to_be_cut();
    wire.command(&sandbox).run().success();
    let sent = wire.sent.load(Ordering::SeqCst) as usize;
    println!("{} MiB travelled", sent / MIB);
    assert!(sent > 2 * LARGE && sent < 3 * LARGE - MIB, "{sent}");
    let image = validate(&server.registry(), "app", "1");
    assert_eq!(image.files()["a"], fs::read(sandbox.path("app/a")).unwrap());
}

#[test]
fn as_root_what_came_before_the_server_was_killed_need_not_come_again() {
    let (sandbox, server, wire) = to_be_cut();
    let before = || wire.sent.load(Ordering::SeqCst) as usize;
    let building = wire.command(&sandbox).start();
    // The first pack is there when the second has begun.
    until("the second pack", || (before() > LARGE + MIB).then_some(()));
    server.kill();
    wire.cut_after(0);
    building.signal(rustix::process::Signal::KILL);
    building.wait();

    let server = sandbox.server();
    wire.lead_to(&server);
    wire.cut_after(u64::MAX);
    let sent = before();
    wire.command(&sandbox).run().success();
    let sent = before() - sent;
    println!("{} MiB travelled", sent / MIB);
    assert!(sent < LARGE + LARGE / 2, "{sent}");
    let image = validate(&server.registry(), "app", "1");
    assert_eq!(image.files()["a"], fs::read(sandbox.path("app/a")).unwrap());
}

#[test]
fn as_root_what_travels_to_another_machine_is_compressed() {
    let sandbox = sandbox();
    let server = sandbox.server();
    sandbox.write("app/Dockerfile", "FROM scratch\nCOPY . /\n");
    sandbox.write("app/zeros", vec![0; LARGE]);
    let wire = Wire::to(&server);
    // Clients do not see that this is their own machine.
    let address = wire.address.replace("127.0.0.1", "[::ffff:127.0.0.1]");
    let build = || {
        let build = wire.command(&sandbox).env("REFIT_SERVER", format!("http://{address}"));
        build.arg("--allow-http")
    };
    build().run().success().stderr_has("Sent the context: 2 files");
    let sent = wire.sent.load(Ordering::SeqCst) as usize;
    assert!(sent < MIB, "{sent} bytes travelled");
    for index in 0..2_000 {
        sandbox.write(&format!("app/many/{index}"), format!("{index}"));
    }
    build().run().success().stderr_has("(2000 new");
    let image = validate(&server.registry(), "app", "1");
    assert_eq!(image.files()["zeros"], vec![0; LARGE]);
    assert_eq!(image.text("many/1999"), "1999");
}
