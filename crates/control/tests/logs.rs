//! Logs: followed while they grow, resumed, compressed, put right after a crash.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as tests do")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use control::{Clock, Event, EventKind, LogKey, Logs, Mask, RunLog, RunStatus, Stream};
use expect_test::expect;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

struct Fixture {
    folder: TempDir,
    logs: Logs,
    key: LogKey,
}

fn clock() -> Clock {
    let now = Arc::new(AtomicI64::new(1_700_000_000_000));
    Clock::new(move || now.fetch_add(1000, Ordering::Relaxed))
}

fn fixture(size_max: u64) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let logs = Logs::new(folder.path().to_owned(), size_max, clock());
    let key = LogKey { registry: "local".parse().unwrap(), run: "c01".parse().unwrap() };
    Fixture { folder, logs, key }
}

impl Fixture {
    async fn open(&self) -> RunLog {
        self.logs.open(&self.key, Mask::default()).await.unwrap()
    }

    fn file(&self, end: &str) -> PathBuf {
        self.folder.path().join("local").join(format!("c01.{end}"))
    }

    async fn text(&self, offset: u64, follow: bool) -> String {
        let mut reader = self.logs.read_text(&self.key, offset, follow).await.unwrap();
        let mut text = Vec::new();
        while let Some(chunk) = bounded(reader.next()).await.unwrap() {
            text.extend_from_slice(&chunk);
        }
        String::from_utf8(text).unwrap()
    }

    async fn events(&self, after: u64, follow: bool) -> Vec<Event> {
        let mut reader = self.logs.read_events(&self.key, after, follow).await.unwrap();
        let mut all = Vec::new();
        while let Some(events) = bounded(reader.next()).await.unwrap() {
            all.extend(events);
        }
        all
    }

    /// Waits until the log is compressed and the plain files are gone.
    async fn compressed(&self) {
        wait_for(|| self.file("log.zst").exists() && !self.file("events").exists()).await;
    }
}

async fn bounded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

async fn wait_for(condition: impl Fn() -> bool) {
    bounded(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

fn output(text: &str) -> EventKind {
    EventKind::Output { step: 1, stream: Stream::Stdout, text: text.into() }
}

fn finished() -> EventKind {
    EventKind::Finished { status: RunStatus::Succeeded, error: None, milliseconds: 5000 }
}

fn ids(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.id).collect()
}

#[tokio::test]
async fn many_readers_follow_a_log_to_its_end() {
    let fixture = Arc::new(fixture(1 << 20));
    let log = fixture.open().await;
    log.message("begins").await;
    let readers: Vec<_> = (0..20)
        .map(|_| {
            let fixture = Arc::clone(&fixture);
            tokio::spawn(async move {
                (fixture.text(0, true).await, ids(&fixture.events(0, true).await))
            })
        })
        .collect();
    for line in 0..50 {
        log.append(output(&format!("line {line}\n"))).await;
    }
    log.append(finished()).await;
    for reader in readers {
        let (text, ids) = bounded(reader).await.unwrap();
        assert!(text.contains(" begins\r\n") && text.contains("line 49\r\n"));
        assert!(text.ends_with("Run ID: c01 was successful after 5s\r\n"));
        assert_eq!(ids, (1..=52).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_reader_resumes_where_it_stopped_before_and_after_the_end() {
    let fixture = fixture(1 << 20);
    let log = fixture.open().await;
    log.append(output("one\n")).await;
    log.append(output("two\n")).await;
    log.append(finished()).await;
    let live = fixture.text(0, true).await;
    fixture.compressed().await;
    let archived = fixture.text(0, false).await;
    assert_eq!(live, archived);
    expect![[r#"
        two
        Run ID: c01 was successful after 5s
    "#]]
    .assert_eq(&fixture.text("one\r\n".len() as u64, true).await.replace('\r', ""));
    assert_eq!(ids(&fixture.events(2, true).await), [3]);
    assert_eq!(fixture.text(1 << 40, true).await, "");
    assert!(fixture.events(99, true).await.is_empty());
}

#[tokio::test]
async fn a_reader_resumes_within_a_long_log_before_and_after_the_end() {
    const COUNT: u64 = 3000;
    let fixture = fixture(16 << 20);
    let log = fixture.open().await;
    for line in 0..COUNT {
        log.append(output(&format!("{line} {}\n", "x".repeat(1000)))).await;
    }
    log.append(finished()).await;
    let all = fixture.text(0, true).await;
    let at = all.find("2000 ").unwrap();
    let check = async || {
        for after in [0, 1, 1234, COUNT] {
            let expected: Vec<u64> = (after + 1..=COUNT + 1).collect();
            assert_eq!(ids(&fixture.events(after, true).await), expected);
        }
        assert_eq!(fixture.text(at as u64, true).await, all[at..]);
    };
    check().await;
    fixture.compressed().await;
    check().await;
}

#[tokio::test]
async fn without_follow_a_reader_gets_what_is_there() {
    let fixture = fixture(1 << 20);
    let log = fixture.open().await;
    log.append(output("one\n")).await;
    wait_for(|| std::fs::metadata(fixture.file("log")).is_ok_and(|file| file.len() == 5)).await;
    bounded(async {
        // The file comes a moment before the news of it.
        while fixture.text(0, false).await.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(fixture.text(0, false).await, "one\r\n");
}

#[tokio::test]
async fn nothing_follows_the_end() {
    let fixture = fixture(1 << 20);
    let log = fixture.open().await;
    log.append(finished()).await;
    log.append(output("late\n")).await;
    assert_eq!(fixture.events(0, true).await.len(), 1);
}

#[tokio::test]
async fn a_log_larger_than_its_bound_says_so_and_still_ends() {
    let fixture = fixture(4096);
    let log = fixture.open().await;
    for _ in 0..1000 {
        log.append(output("0123456789012345678901234567890123456789\n")).await;
    }
    log.append(finished()).await;
    let text = fixture.text(0, true).await;
    assert!(text.len() < 8192, "{}", text.len());
    assert_eq!(text.matches("further output is dropped").count(), 1);
    assert!(text.ends_with("Run ID: c01 was successful after 5s\r\n"));
}

#[tokio::test]
async fn secrets_are_masked_in_both_forms() {
    let fixture = fixture(1 << 20);
    let log = fixture.logs.open(&fixture.key, Mask::new(["hunter22"])).await.unwrap();
    log.append(output("the password is hunter22\n")).await;
    for part in ["it is hun", "ter", "22, or hunt"] {
        log.append(output(part)).await;
    }
    log.append(EventKind::StepStarted { step: 1, name: "RUN login hunter22".into() }).await;
    log.append(finished()).await;
    let text = fixture.text(0, true).await;
    let events = serde_json::to_string(&fixture.events(0, true).await).unwrap();
    assert!(text.contains("the password is ***"));
    assert!(text.contains("it is ***, or hunt\r\n"), "{text}");
    assert!(!text.contains("hunter22") && !events.contains("hunter22"));
}

#[tokio::test]
async fn a_torn_log_is_put_right_and_goes_on() {
    let fixture = fixture(1 << 20);
    let log = fixture.open().await;
    log.message("first").await;
    log.append(output("kept\n")).await;
    wait_for(|| std::fs::read_to_string(fixture.file("log")).is_ok_and(|log| log.contains("kept")))
        .await;

    // A crash: the last record is torn, and the text is behind or beyond.
    let crashed = tempfile::tempdir().unwrap();
    let local = crashed.path().join("local");
    std::fs::create_dir_all(&local).unwrap();
    let mut events = std::fs::read(fixture.file("events")).unwrap();
    events.extend_from_slice(b"{\"id\":3,\"at\":1,\"kind\":\"out");
    for text in [&b""[..], b"2023/11/14 22", &b"x".repeat(9000)] {
        let run = local.join("c01.events");
        std::fs::write(&run, &events).unwrap();
        std::fs::write(local.join("c01.log"), text).unwrap();
        let logs = Logs::new(crashed.path().to_owned(), 1 << 20, clock());
        let again = Fixture {
            folder: tempfile::tempdir_in(crashed.path()).unwrap(),
            logs,
            key: fixture.key.clone(),
        };
        let log = again.open().await;
        log.append(output("after\n")).await;
        log.append(finished()).await;
        assert_eq!(ids(&again.events(0, true).await), [1, 2, 3, 4]);
        expect![[r#"
            2023/11/14 22:13:20 first
            kept
            after
            Run ID: c01 was successful after 5s
        "#]]
        .assert_eq(&again.text(0, true).await.replace('\r', ""));
        wait_for(|| local.join("c01.log.zst").exists() && !run.exists()).await;
        for end in ["log.zst", "events.zst"] {
            std::fs::remove_file(local.join(format!("c01.{end}"))).unwrap();
        }
    }
}

#[tokio::test]
async fn what_a_reader_sees_is_in_the_file_within_a_second() {
    let fixture = fixture(1 << 20);
    let log = fixture.open().await;
    let begun = std::time::Instant::now();
    log.message("there").await;
    wait_for(|| contains(&fixture.file("events"), "there")).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
}

fn contains(file: &Path, text: &str) -> bool {
    std::fs::read_to_string(file).is_ok_and(|found| found.contains(text))
}

#[tokio::test]
async fn a_deleted_log_is_not_found() {
    let fixture = fixture(1 << 20);
    fixture.open().await.append(finished()).await;
    fixture.compressed().await;
    fixture.logs.delete(&fixture.key).await.unwrap();
    fixture.logs.delete(&fixture.key).await.unwrap();
    let error = fixture.logs.read_text(&fixture.key, 0, true).await.err().unwrap();
    assert_eq!(error.to_string(), "the log of run `c01` not found");
}

#[tokio::test]
async fn a_log_that_is_deleted_while_it_is_compressed_is_gone() {
    let fixture = fixture(64 << 20);
    let log = fixture.open().await;
    let lines = "one line of many\n".repeat(8 << 10);
    for _ in 0..64 {
        log.append(output(&lines)).await;
    }
    log.append(finished()).await;
    fixture.text(64 * lines.len() as u64, true).await;
    fixture.logs.delete(&fixture.key).await.unwrap();
    let left = std::fs::read_dir(fixture.folder.path().join("local")).unwrap();
    assert_eq!(left.count(), 0);
}
