//! `ADD` of addresses.

use std::sync::{Arc, Mutex};

use expect_test::expect;
use oci::Digest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

/// A server with one file at every path.
struct Site {
    url: String,
    content: Arc<Mutex<Content>>,
    requests: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone, Default)]
struct Content {
    body: Vec<u8>,
    /// Lines of the head.
    headers: String,
    /// The head's line that a client sends who knows the file.
    known_by: Option<String>,
}

impl Site {
    async fn start(body: &[u8], headers: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let site = Self { url, content: Arc::default(), requests: Arc::default() };
        site.set(body, headers);
        let (content, requests) = (Arc::clone(&site.content), Arc::clone(&site.requests));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let content = content.lock().unwrap().clone();
                tokio::spawn(answer(stream, content, Arc::clone(&requests)));
            }
        });
        site
    }

    fn set(&self, body: &[u8], headers: &str) {
        let known_by = headers.lines().find_map(|line| {
            let etag = line.strip_prefix("etag: ")?;
            Some(format!("if-none-match: {etag}"))
        });
        let headers = headers.lines().map(|line| format!("{line}\r\n")).collect();
        *self.content.lock().unwrap() = Content { body: body.to_vec(), headers, known_by };
    }

    /// Requests since the last time: their path, and whether they came with a condition.
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

async fn answer(mut stream: TcpStream, content: Content, requests: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap_or_default();
    let is_known = content.known_by.is_some_and(|line| head.contains(&line));
    requests.lock().unwrap().push(format!("{path}{}", if is_known { " known" } else { "" }));
    let (status, body) = match is_known {
        true => ("304 Not Modified", Vec::new()),
        false => ("200 OK", content.body),
    };
    let (headers, length) = (content.headers, body.len());
    let answer = format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n");
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.write_all(&body).await;
}

const DATED: &str = "etag: \"1\"\nlast-modified: Sun, 06 Nov 1994 08:49:37 GMT";

#[tokio::test(flavor = "multi_thread")]
async fn a_file_has_the_name_and_time_that_its_server_gives_it() {
    let fixture = Fixture::with_base().await;
    let site = Site::start(b"text", DATED).await;
    let url = &site.url;
    let layer = async |instruction: &str| {
        let run = fixture.build(&format!("FROM registry.test/base\n{instruction}")).await;
        fixture.last_layer(&run.built).await.join("\n") + "\n"
    };
    expect![[r#"
        tmp/ 1777 0:0 315532800
        tmp/b c.txt 600 0:0 784111777
    "#]]
    .assert_eq(&layer(&format!("ADD {url}/a/b%20c.txt?x=/y#z /tmp")).await);
    expect![[r#"
        new/ 755 0:0 315532800
        new/__unnamed__ 600 0:0 784111777
    "#]]
    .assert_eq(&layer(&format!("ADD {url}/ /new/")).await);
    expect![[r#"
        new 640 1000:1001 784111777
    "#]]
    .assert_eq(&layer(&format!("ADD --link --chown=1000:1001 --chmod=640 {url}/x new")).await);
    fixture.write("local", "local");
    let both = layer(&format!("ADD {url}/[a] local {url}/*.txt /new/")).await;
    let names: Vec<&str> = both.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, ["new/", "new/*.txt", "new/[a]", "new/local"]);
    let several = format!("FROM scratch\nADD {url}/a {url}/b /new");
    assert!(fixture.error(&several).await.contains("several files cannot be copied"));

    // A server that says nothing of a time.
    site.set(b"text", "");
    assert_eq!(layer(&format!("ADD {url}/y /old")).await, "old 600 0:0 0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_unpacked_only_if_the_instruction_says_so() {
    let fixture = Fixture::with_base().await;
    let site = Site::start(&gzip(&tar(&[file("in/it", 0o600, (1, 2), b"x")])), "").await;
    let url = &site.url;
    let files = async |flag: &str| {
        let run = fixture.build(&format!("FROM scratch\nADD {flag} {url}/a.tar.gz /to/")).await;
        fixture.files(&run.built).await.below("to/")
    };
    assert!(files("").await.starts_with("to/a.tar.gz 600 0:0 "));
    assert!(files("--unpack=false").await.starts_with("to/a.tar.gz 600 0:0 "));
    assert_eq!(files("--unpack=true").await, "to/in 755 0:0 folder\nto/in/it 600 1:2 \"x\"\n");
    // It begins as an archive does, and has no end.
    site.set(&tar(&[file("in/it", 0o600, (1, 2), b"x")])[..600], "");
    let error = fixture.error(&format!("FROM scratch\nADD --unpack {url}/b.tar?k=hidden /")).await;
    assert!(error.contains(&format!("archive `{url}/b.tar` cannot be unpacked")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_file_costs_a_request_and_a_changed_one_is_not_stale() {
    let fixture = Fixture::with_base().await;
    let site = Site::start(b"one", "etag: \"1\"").await;
    let dockerfile = format!("FROM registry.test/base\nADD {}/file /", site.url);
    let first = fixture.build(&dockerfile).await;
    assert_eq!((site.take(), first.built.cost.pulled), (vec!["/file".to_owned()], 3));
    let second = fixture.build(&dockerfile).await;
    assert_eq!((site.take(), second.built.cost.pulled), (vec!["/file known".to_owned()], 0));
    assert_eq!(second.built.cost.cache_misses, 0);
    assert_eq!(second.built.descriptor.digest, first.built.descriptor.digest);

    // Another answer with the same bytes is the same file, whatever it says of times.
    site.set(b"one", "etag: \"2\"\nlast-modified: Sun, 06 Nov 1994 08:49:37 GMT");
    let same = fixture.build(&dockerfile).await;
    assert_eq!(site.take(), ["/file"]);
    assert_eq!(same.built.cost.cache_misses, 0);
    assert_eq!(same.built.descriptor.digest, first.built.descriptor.digest);

    site.set(b"two", "etag: \"3\"");
    let changed = fixture.build(&dockerfile).await;
    assert_eq!(fixture.files(&changed.built).await.at("file"), "600 0:0 \"two\"");
    let mut request = fixture.request(&dockerfile);
    request.no_cache = true;
    site.take();
    fixture.build_request(&request).await;
    assert_eq!(site.take(), ["/file"]);

    // Another address with the same file gives the same layer.
    let other = Site::start(b"two", "").await;
    let moved = fixture.build(&format!("FROM registry.test/base\nADD {}/file /", other.url)).await;
    assert_eq!(moved.built.cost.cache_misses, 0);
    // What the store has lost is fetched again.
    fixture.damage(&Digest::of(b"two"), Damage::Gone).await;
    site.take();
    fixture.build(&dockerfile).await;
    assert_eq!(site.take(), ["/file"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_files_make_equal_images_whatever_their_server_says_of_time() {
    let mut digests = Vec::new();
    for headers in ["", DATED] {
        let fixture = Fixture::empty().await;
        let site = Site::start(b"text", headers).await;
        let args = [("URL".to_owned(), format!("{}/file", site.url))];
        let mut request = fixture.request("ARG URL\nFROM scratch\nARG URL\nADD $URL /file");
        request.build_args = args.into();
        request.source_date_epoch = Some(1_600_000_000);
        let run = fixture.build_request(&request).await;
        assert_eq!(fixture.last_layer(&run.built).await, ["file 600 0:0 1600000000"]);
        digests.push(run.built.layers[0].diff_id.clone());
    }
    assert_eq!(digests[0], digests[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checksum_is_what_the_file_must_have() {
    let fixture = Fixture::empty().await;
    let site = Site::start(b"text", "").await;
    let checked =
        |digest: &Digest| format!("FROM scratch\nADD --checksum={digest} {}/file /", site.url);
    let dockerfile = checked(&Digest::of(b"text"));
    let first = fixture.build(&dockerfile).await;
    site.take();
    // What it must be is known, so nobody is asked.
    let second = fixture.build(&dockerfile).await;
    assert_eq!(site.take(), [""; 0]);
    assert_eq!(second.built.descriptor.digest, first.built.descriptor.digest);

    let error = fixture.error(&checked(&Digest::of(b"other"))).await;
    let error = error.replace(&site.url, "http://site");
    let (actual, expected) = (Digest::of(b"text"), Digest::of(b"other"));
    assert!(
        error.starts_with("error: `http://site/file` is another file than expected"),
        "{error}"
    );
    assert!(error.contains(&format!("its digest is {actual}, not {expected}\n")), "{error}");
    assert!(error.contains("Dockerfile:2:1"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_and_signatures_stay_out_of_all_that_is_kept_or_shown() {
    let fixture = Fixture::empty().await;
    let site = Site::start(b"text", "").await;
    let address = site.url.replace("http://", "http://me:secret@");
    let run = fixture.build(&format!("FROM scratch\nADD {address}/file?sign=hidden /")).await;
    let record = serde_json::to_string(&run.built.record).unwrap();
    let config = String::from_utf8(run.built.config.to_vec()).unwrap();
    for kept in [&record, &config, &run.steps()] {
        assert!(!kept.contains("secret"), "{kept}");
    }
    assert!(!record.contains("hidden"), "{record}");
    assert_eq!(
        run.built.record.downloads[0].address,
        format!("{}/file", site.url).replace("http://", "http://***@")
    );
    assert!(config.contains("ADD http://***@"), "{config}");
    // A password with a `#` makes another address of it, and is hidden all the same.
    for wrong in ["http://me:secret@127.0.0.1:1/x", "http://me:se#cret@127.0.0.1/x"] {
        let dockerfile = format!("FROM scratch\nADD {wrong} /");
        let (failed, events) = fixture.try_build(&fixture.request(&dockerfile)).await;
        let shown = failed.unwrap_err().render("Dockerfile", &dockerfile) + &events.render();
        assert!(!shown.contains("secret") && !shown.contains("cret@"), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn this_machine_is_not_reached_unless_it_is_allowed() {
    let mut fixture = Fixture::empty().await;
    let site = Site::start(b"text", "").await;
    fixture.builder.downloads = Arc::new(downloads(|settings| settings.reach.allowed.clear()));
    let error = fixture.error(&format!("FROM scratch\nADD {}/x /", site.url)).await;
    let sentence = "error: `127.0.0.1` is a loopback address, which builds may not reach\n";
    assert!(error.starts_with(&format!("{sentence} --> Dockerfile:2:1\n")), "{error}");
    let hint = "\nhint: the server's operator can allow it with `build.allow_addresses`\n";
    assert!(error.ends_with(hint), "{error}");
    assert_eq!(site.take(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_too_large_is_refused() {
    let mut fixture = Fixture::empty().await;
    let site = Site::start(&[0; 2000], "").await;
    fixture.builder.downloads = Arc::new(downloads(|settings| settings.size_max = 1000));
    let error = fixture.error(&format!("FROM scratch\nADD {}/x /", site.url)).await;
    assert!(error.contains("is larger than 1000 bytes"), "{error}");
    assert!(error.contains("`limits.download_size_max`"), "{error}");
}
