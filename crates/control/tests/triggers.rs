//! What starts runs of tasks without anybody asking, with a clock that tests set.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as tests do")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use control::{
    Clock, Decision, Fired, LedgerEntry, LedgerFilter, Logins, Logs, Run, RunCause, RunFilter,
    RunSettings, RunStatus, Runs, Schedule, SecretKeys, StoredTask, TaskDefinition, TaskIdentity,
    TaskName, TaskStep, TaskText, TaskTriggers, Tasks, TimerTrigger, Triggers,
};
use oci::{Compression, Platform, RegistryName};
use tempfile::TempDir;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

/// A server's tables, at a time that tests set.
struct Fixture {
    now: Arc<AtomicI64>,
    runs: Runs,
    tasks: Tasks,
    triggers: Triggers,
    folder: TempDir,
}

impl Fixture {
    async fn new() -> Self {
        Self::with_queue(100).await
    }

    async fn with_queue(queue_length_max: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::open(folder, Arc::new(AtomicI64::new(at("2024-01-01T00:00:30Z"))), queue_length_max)
            .await
    }

    async fn open(folder: TempDir, now: Arc<AtomicI64>, queue_length_max: u32) -> Self {
        let time = Arc::clone(&now);
        let clock = Clock::new(move || time.load(Ordering::Relaxed));
        let logs = Logs::new(folder.path().join("logs"), 1 << 20, clock.clone());
        let settings = RunSettings {
            concurrency: 2,
            workers: 2,
            attempts_max: 3,
            queue_length_max,
            queue_keep: Duration::from_secs(24 * 3600),
            log_keep: Duration::from_secs(30 * 24 * 3600),
            run_keep: Duration::from_secs(400 * 24 * 3600),
        };
        let db = db::Db::open(&folder.path().join("refit.db")).await.unwrap();
        let keys = SecretKeys::new([7; 32], []);
        let runs = Runs::open(db, None, logs, clock, keys, settings).await.unwrap();
        let tasks = Tasks::open(runs.clone()).await.unwrap();
        let triggers = Triggers::open(tasks.clone(), Compression::default()).await.unwrap();
        Self { now, runs, tasks, triggers, folder }
    }

    /// As another process finds it.
    async fn reopen(self) -> Self {
        let Self { now, folder, .. } = self;
        Self::open(folder, now, 100).await
    }

    fn set(&self, time: &str) {
        self.now.store(at(time), Ordering::Relaxed);
    }

    async fn put(&self, name: &str, definition: &TaskDefinition) -> StoredTask {
        let name = task_name(name);
        let known = self.tasks.get(&local(), &name).await.unwrap();
        self.tasks.put(&local(), &name, definition, known.as_ref()).await.unwrap()
    }

    async fn fire(&self) -> usize {
        self.triggers.fire_timers().await.unwrap().runs
    }

    /// Of all runs, the oldest first.
    async fn occurrences(&self) -> Vec<(String, usize)> {
        let runs = self.all_runs().await;
        runs.into_iter().map(|run| timer(&run)).collect()
    }

    async fn all_runs(&self) -> Vec<Run> {
        let mut runs = self.runs.list(&local(), &RunFilter::default(), 100).await.unwrap();
        runs.reverse();
        runs
    }

    async fn ledger(&self) -> Vec<LedgerEntry> {
        let filter = LedgerFilter::default();
        let mut lines = self.triggers.ledger(&local(), &filter, 100).await.unwrap();
        lines.reverse();
        lines
    }
}

fn local() -> RegistryName {
    RegistryName::default()
}

fn task_name(name: &str) -> TaskName {
    name.parse().unwrap()
}

fn at(text: &str) -> i64 {
    text.parse::<jiff::Timestamp>().unwrap().as_millisecond()
}

fn timer(run: &Run) -> (String, usize) {
    match run.cause.clone().unwrap() {
        RunCause::Timer { occurrence, missed, .. } => {
            (jiff::Timestamp::from_millisecond(occurrence).unwrap().to_string(), missed)
        }
    }
}

fn every(name: &str, schedule: &str) -> TimerTrigger {
    let schedule = Schedule::parse(schedule, None).unwrap();
    TimerTrigger { name: name.to_owned(), enabled: true, schedule }
}

fn definition(timers: Vec<TimerTrigger>) -> TaskDefinition {
    TaskDefinition {
        enabled: true,
        platform: Platform::new("linux", "amd64", None),
        cpu: None,
        timeout: Duration::from_secs(3600),
        context: None,
        step: TaskStep::File {
            file: TaskText::Inline("steps: []".into()),
            values_file: None,
            values: Vec::new(),
        },
        owner: None,
        description: None,
        expires_at: None,
        tags: BTreeMap::new(),
        pool: None,
        logins: Logins::default(),
        egress: Vec::new(),
        log_template: None,
        output_retention: None,
        identity: TaskIdentity::default(),
        triggers: TaskTriggers { timers },
    }
}

#[tokio::test]
async fn each_time_of_a_schedule_starts_a_run_once() {
    let f = Fixture::new().await;
    f.put("nightly", &definition(vec![every("t1", "*/10 * * * *"), every("t2", "0 1 * * *")]))
        .await;
    assert_eq!(f.fire().await, 0);
    assert_eq!(f.triggers.next_timer().await.unwrap(), Some(at("2024-01-01T00:10:00Z")));
    f.set("2024-01-01T00:10:00.020Z");
    // Whoever looks at the same time finds nothing left.
    let both = tokio::join!(f.triggers.fire_timers(), f.triggers.fire_timers());
    assert_eq!(both.0.unwrap().runs + both.1.unwrap().runs, 1);
    assert_eq!(f.fire().await, 0);
    f.set("2024-01-01T00:20:00Z");
    assert_eq!(f.fire().await, 1);
    f.set("2024-01-01T01:00:59Z");
    // Both are due, and each starts a run of its own.
    assert_eq!(f.fire().await, 2);
    let runs = f.all_runs().await;
    assert_eq!(runs.len(), 4);
    let first = &runs[0];
    let cause =
        RunCause::Timer { name: "t1".into(), occurrence: at("2024-01-01T00:10:00Z"), missed: 0 };
    assert_eq!(first.cause, Some(cause));
    assert_eq!((&first.task, first.status), (&Some(task_name("nightly")), RunStatus::Queued));
    assert_eq!(first.started_by, None);
    let lines = f.ledger().await;
    assert_eq!(lines.len(), 4);
    assert!(lines.iter().all(|line| line.decision == Decision::Fired), "{lines:?}");
    assert_eq!(lines[0].run, Some(first.id));
    assert_eq!(lines[0].event, "*/10 * * * * UTC was due at 2024-01-01T00:10:00Z");
    assert_eq!(lines[0].reason, None);
}

#[tokio::test]
async fn what_was_missed_is_made_up_by_one_run_that_says_so() {
    let f = Fixture::new().await;
    f.put("nightly", &definition(vec![every("t1", "0 * * * *")])).await;
    f.set("2024-01-01T05:30:00Z");
    let f = f.reopen().await;
    assert_eq!(f.fire().await, 1);
    assert_eq!(f.fire().await, 0);
    assert_eq!(f.occurrences().await, [("2024-01-01T05:00:00Z".to_owned(), 4)]);
    let lines = f.ledger().await;
    let reason =
        "it was due at 2024-01-01T05:00:00Z, and 4 times before that, for which no run is made up";
    assert_eq!(lines[0].reason.as_deref(), Some(reason));
    assert_eq!(f.triggers.next_timer().await.unwrap(), Some(at("2024-01-01T06:00:00Z")));
    // Clocks that are set back repeat nothing.
    f.set("2024-01-01T03:00:00Z");
    assert_eq!(f.fire().await, 0);
    f.set("2024-01-01T06:00:00Z");
    assert_eq!(f.fire().await, 1);
}

#[tokio::test]
async fn a_task_that_sleeps_starts_nothing_and_has_one_line() {
    let f = Fixture::new().await;
    let awake = definition(vec![every("t1", "* * * * *")]);
    f.put("often", &TaskDefinition { enabled: false, ..awake.clone() }).await;
    for minute in 1..=5 {
        f.now.store(at("2024-01-01T00:00:00Z") + minute * MINUTE, Ordering::Relaxed);
        assert_eq!(f.fire().await, 0);
    }
    let lines = f.ledger().await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!((lines[0].decision, lines[0].count), (Decision::Skipped, 5));
    assert_eq!(lines[0].reason.as_deref(), Some("the task is disabled"));
    assert_eq!(lines[0].since, at("2024-01-01T00:01:00Z"));
    assert_eq!(lines[0].event, "* * * * * UTC was due at 2024-01-01T00:05:00Z");
    // Awake, it begins with the next time; what it slept through is not made up.
    f.put("often", &awake).await;
    assert_eq!(f.fire().await, 0);
    f.set("2024-01-01T00:06:00Z");
    assert_eq!(f.fire().await, 1);
    assert_eq!(f.occurrences().await, [("2024-01-01T00:06:00Z".to_owned(), 0)]);
    f.put("often", &TaskDefinition { expires_at: Some(at("2024-01-01T00:06:30Z")), ..awake }).await;
    f.set("2024-01-01T00:07:00Z");
    assert_eq!(f.fire().await, 0);
    assert_eq!(f.ledger().await.pop().unwrap().reason.as_deref(), Some("the task has expired"));
}

#[tokio::test]
async fn a_full_queue_loses_no_time() {
    let f = Fixture::with_queue(1).await;
    f.put("aaaaa", &definition(vec![every("t1", "0 1 * * *")])).await;
    f.put("bbbbb", &definition(vec![every("t1", "0 1 * * *")])).await;
    f.set("2024-01-01T01:00:00Z");
    assert_eq!(f.triggers.fire_timers().await.unwrap(), Fired { runs: 1, waits: true });
    assert_eq!(f.triggers.fire_timers().await.unwrap(), Fired { runs: 0, waits: true });
    let lines = f.ledger().await;
    assert_eq!((lines[1].decision, lines[1].count), (Decision::Waits, 2));
    assert_eq!(lines[1].reason.as_deref(), Some("the queue is full"));
    let first = f.all_runs().await.remove(0);
    f.runs.cancel(&local(), first.id).await.unwrap();
    f.set("2024-01-01T01:05:00Z");
    assert_eq!(f.triggers.fire_timers().await.unwrap(), Fired { runs: 1, waits: false });
    let last = f.all_runs().await.pop().unwrap();
    assert_eq!(last.task, Some(task_name("bbbbb")));
    assert_eq!(timer(&last), ("2024-01-01T01:00:00Z".to_owned(), 0));
    let line = f.ledger().await.pop().unwrap();
    assert_eq!(line.reason.as_deref(), Some("it was due at 2024-01-01T01:00:00Z"));
}

#[tokio::test]
async fn timers_follow_their_task() {
    let f = Fixture::new().await;
    let both = vec![every("t1", "0 * * * *"), every("t2", "30 * * * *")];
    f.put("nightly", &definition(both.clone())).await;
    f.set("2024-01-01T00:59:00Z");
    assert_eq!(f.fire().await, 1);
    // One is changed, the other stays due when it was, though the task is put again.
    let changed = vec![both[0].clone(), every("t2", "45 * * * *")];
    f.put("nightly", &definition(changed.clone())).await;
    assert_eq!(f.triggers.next_timer().await.unwrap(), Some(at("2024-01-01T01:00:00Z")));
    f.set("2024-01-01T01:50:00Z");
    assert_eq!(f.fire().await, 2);
    let disabled = TimerTrigger { enabled: false, ..changed[0].clone() };
    f.put("nightly", &definition(vec![disabled, changed[1].clone()])).await;
    assert_eq!(f.triggers.next_timer().await.unwrap(), Some(at("2024-01-01T02:45:00Z")));
    // Switched on again, it begins from now on.
    f.set("2024-01-01T05:10:00Z");
    f.put("nightly", &definition(changed)).await;
    assert_eq!(f.fire().await, 1);
    let task = f.tasks.get(&local(), &task_name("nightly")).await.unwrap().unwrap();
    let mut next = f.triggers.next_of(&task).await.unwrap();
    next.sort();
    let expected = [("t1", "2024-01-01T06:00:00Z"), ("t2", "2024-01-01T05:45:00Z")];
    assert_eq!(next, expected.map(|(name, time)| (name.to_owned(), at(time))));
    f.tasks.delete(&local(), &task_name("nightly")).await.unwrap();
    assert_eq!(f.triggers.next_timer().await.unwrap(), None);
    // A later task of the same name has its own.
    f.put("nightly", &definition(Vec::new())).await;
    f.now.fetch_add(24 * HOUR, Ordering::Relaxed);
    assert_eq!(f.fire().await, 0);
}

#[tokio::test]
async fn lines_are_kept_as_long_as_runs() {
    let f = Fixture::new().await;
    f.put("nightly", &definition(vec![every("t1", "0 * * * *")])).await;
    f.set("2024-01-01T01:00:00Z");
    f.fire().await;
    f.now.fetch_add(400 * 24 * HOUR - MINUTE, Ordering::Relaxed);
    assert_eq!(f.triggers.sweep().await.unwrap(), 0);
    f.now.fetch_add(2 * MINUTE, Ordering::Relaxed);
    assert_eq!(f.triggers.sweep().await.unwrap(), 1);
    assert_eq!(f.ledger().await, []);
}

#[tokio::test]
async fn what_starts_a_task_changes_nothing_of_what_it_does() {
    let plain = definition(Vec::new());
    let timed = definition(vec![every("t1", "0 * * * *")]);
    assert_eq!(plain.digest(), timed.digest());
}
