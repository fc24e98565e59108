//! What starts runs of tasks without anybody asking, with a clock that tests set.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as tests do")]

mod held;
mod plans;
mod promotions;
mod sources;
mod watches;
mod waves;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use control::{
    Attempt, BaseImageTrigger, Clock, Decision, End, Executor, Fired, LedgerEntry, LedgerFilter,
    Logs, Outcome, OutputImage, Run, RunCause, RunFilter, RunSettings, RunStatus, Runs, Schedule,
    SecretKeys, StoredTask, TaskDefinition, TaskName, TaskOverrides, TaskStep, TaskText,
    TaskTriggers, Tasks, TimerTrigger, Triggers, WatchSettings, Worker, WorkerSettings,
};
use oci::{Compression, Digest, Platform, Reference, RegistryName};
use serde_json::{Value, json};
use store::{Catalog, Cause, DiskStore, Expected, ManifestRef, NewManifest};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

/// A server's tables, at a time that tests set.
struct Fixture {
    now: Arc<AtomicI64>,
    runs: Runs,
    tasks: Tasks,
    triggers: Triggers,
    catalog: Catalog,
    builds: Arc<Builds>,
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
        let blobs = DiskStore::open(&folder.path().join("blobs"), db.clone()).await.unwrap();
        let catalog = Catalog::open(db.clone(), Arc::new(blobs)).await.unwrap();
        let runs =
            Runs::open(db, Some(catalog.clone()), logs, clock, keys, settings).await.unwrap();
        let tasks = Tasks::open(runs.clone()).await.unwrap();
        let poll = Duration::from_secs(300);
        let watching =
            WatchSettings { period: Duration::from_secs(1800), settle: Duration::from_secs(30) };
        let opened = Triggers::open(tasks.clone(), Compression::default(), poll, watching);
        let triggers = opened.await.unwrap();
        let builds = Builds {
            reports: Mutex::default(),
            outputs: Mutex::default(),
            failing: Mutex::default(),
            catalog: catalog.clone(),
        };
        Self { now, runs, tasks, triggers, catalog, builds: Arc::new(builds), folder }
    }

    /// As another process finds it.
    async fn reopen(self) -> Self {
        self.reopen_with_queue(100).await
    }

    async fn reopen_with_queue(self, queue_length_max: u32) -> Self {
        let Self { now, folder, builds, .. } = self;
        let reports = std::mem::take(&mut *builds.reports.lock().unwrap());
        let outputs = std::mem::take(&mut *builds.outputs.lock().unwrap());
        let f = Self::open(folder, now, queue_length_max).await;
        *f.builds.reports.lock().unwrap() = reports;
        *f.builds.outputs.lock().unwrap() = outputs;
        f
    }

    fn set(&self, time: &str) {
        self.now.store(at(time), Ordering::Relaxed);
    }

    /// The same tables, with other registries asked so often.
    async fn triggers_with(&self, period: Duration) -> Triggers {
        let watching = WatchSettings { period, settle: Duration::from_secs(30) };
        let (tasks, poll) = (self.tasks.clone(), Duration::from_secs(300));
        Triggers::open(tasks, Compression::default(), poll, watching).await.unwrap()
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

    /// The same, of one task.
    async fn occurrences_of(&self, task: &str) -> Vec<(String, usize)> {
        let mut runs = self.all_runs().await;
        runs.retain(|run| run.task == Some(task_name(task)));
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
        cause => panic!("it is of no timer: {cause:?}"),
    }
}

fn every(name: &str, schedule: &str) -> TimerTrigger {
    let schedule = Schedule::parse(schedule, None).unwrap();
    TimerTrigger { name: name.to_owned(), enabled: true, schedule }
}

fn definition(timers: Vec<TimerTrigger>) -> TaskDefinition {
    let step = TaskStep::File {
        file: TaskText::Inline("steps: []".into()),
        values_file: None,
        values: Vec::new(),
    };
    TaskDefinition {
        triggers: TaskTriggers { timers, ..TaskTriggers::default() },
        ..TaskDefinition::new(
            Platform::new("linux", "amd64", None),
            Duration::from_secs(3600),
            step,
        )
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
    assert_eq!((lines[1].decision, lines[1].count), (Decision::Waits, 1));
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

/// Executes nothing, says what a task was built on, and pushes another image each time.
struct Builds {
    reports: Mutex<BTreeMap<String, Value>>,
    /// `repository:tag` that a task makes, after a host if it is in another registry.
    outputs: Mutex<BTreeMap<String, String>>,
    /// Tasks that cannot be built.
    failing: Mutex<BTreeSet<String>>,
    catalog: Catalog,
}

impl Builds {
    /// Bases without a digest are what their tags are now.
    async fn resolve(&self, base: &mut Value) {
        let Some(reference) = base["reference"].as_str().filter(|_| base["digest"].is_null())
        else {
            return;
        };
        let reference: Reference = reference.parse().unwrap();
        let tag = ManifestRef::Tag(reference.tag.unwrap());
        let digest = self.catalog.digest_of(&local(), &reference.repository, &tag).await.unwrap();
        base["digest"] = json!(digest);
    }
}

#[async_trait]
impl Executor for Builds {
    async fn execute(&self, attempt: &Attempt) -> Outcome {
        attempt.running(true).await.unwrap().unwrap();
        let task = attempt.run.task.clone().unwrap();
        let mut report = self.reports.lock().unwrap().get(task.as_str()).cloned();
        for entry in report.iter_mut().filter_map(Value::as_array_mut).flatten() {
            if let Some(base) = entry.get_mut("runtime-dependency") {
                self.resolve(base).await;
            }
            let others = entry.get_mut("buildtime-dependency").and_then(Value::as_array_mut);
            for base in others.into_iter().flatten() {
                self.resolve(base).await;
            }
        }
        if self.failing.lock().unwrap().contains(task.as_str()) {
            return Outcome::of(End::Failed("it cannot be built".to_owned()));
        }
        let output = self.outputs.lock().unwrap().get(task.as_str()).cloned();
        let mut images = Vec::new();
        if let Some(name) = output {
            let run = attempt.run.id.to_string();
            let text = format!("by {run}");
            let elsewhere = name.strip_prefix("registry.example.com/");
            let (registry, name) = match elsewhere {
                Some(name) => ("registry.example.com", name),
                None => (HOST, &*name),
            };
            let digest = match elsewhere {
                Some(_) => Digest::of(text.as_bytes()),
                None => put_index(&self.catalog, name, &text, &[], Cause::Build { run }).await.0,
            };
            let (repository, tag) = name.split_once(':').unwrap();
            images.push(OutputImage {
                registry: registry.to_owned(),
                repository: repository.to_owned(),
                tag: Some(tag.to_owned()),
                digest,
                elsewhere: elsewhere.is_some(),
            });
        }
        Outcome { dependencies: report, images, ..Outcome::of(End::Succeeded) }
    }
}

const HOST: &str = "localhost:5000";

fn own(host: &str) -> Option<RegistryName> {
    (host == HOST).then(local)
}

fn base(name: &str, digest: &Digest, manifests: &[&Digest]) -> Value {
    json!({ "digest": digest, "reference": format!("{HOST}/{name}"), "manifests": manifests })
}

/// What a tag is when the run begins.
fn current(name: &str) -> Value {
    json!({ "reference": format!("{HOST}/{name}") })
}

fn follows(buildtime: bool) -> TaskDefinition {
    let trigger = BaseImageTrigger { name: "base".into(), enabled: true, buildtime, urgent: false };
    let triggers = TaskTriggers { base_image: Some(trigger), ..TaskTriggers::default() };
    TaskDefinition { triggers, ..definition(Vec::new()) }
}

impl Fixture {
    /// Pushes an index of such members, and says what each is.
    async fn push(&self, name: &str, members: &[&str], cause: Cause) -> (Digest, Vec<Digest>) {
        put_index(&self.catalog, name, "", members, cause).await
    }

    /// A task that was built on bases once.
    async fn built(&self, name: &str, definition: &TaskDefinition, report: Value) {
        let task = self.put(name, definition).await;
        self.builds.reports.lock().unwrap().insert(task.name.to_string(), json!([report]));
        let run = definition.run(&task.name, TaskOverrides::default(), Compression::default());
        self.runs.submit(&local(), run.unwrap()).await.unwrap();
        self.work().await;
    }

    /// Lets all runs that wait go to their end.
    async fn work(&self) {
        let settings = WorkerSettings {
            concurrency: 2,
            shutdown_grace: Duration::ZERO,
            cancel_grace: Duration::from_millis(100),
        };
        let executor = Arc::clone(&self.builds) as Arc<dyn Executor>;
        let worker = Worker::new(Arc::new(self.runs.clone()), executor, settings);
        let shutdown = CancellationToken::new();
        let working = tokio::spawn(worker.run(shutdown.clone()));
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.all_runs().await.iter().all(|run| run.status.is_final()) {
            assert!(Instant::now() < deadline, "{:?}", self.all_runs().await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        shutdown.cancel();
        working.await.unwrap();
    }

    async fn follow(&self) -> usize {
        self.triggers.fire_bases(&own).await.unwrap().runs
    }

    /// What was decided, the oldest first: the task, the decision and the reason.
    async fn decisions(&self) -> Vec<String> {
        let lines = self.ledger().await.into_iter().map(|line| {
            let reason = line.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            format!("{} {}{reason}", line.task, line.decision.as_str())
        });
        lines.collect()
    }

    /// The runs that bases have started: of which task, and for which images.
    async fn updates(&self) -> Vec<(String, Vec<String>)> {
        let runs = self.all_runs().await.into_iter().filter_map(|run| {
            let Some(RunCause::BaseImages { images, .. }) = run.cause else { return None };
            let images = images.iter().map(|image| format!("{}:{}", image.repository, image.tag));
            Some((run.task.unwrap().to_string(), images.collect()))
        });
        runs.collect()
    }
}

/// Puts an index with a text and members, and says what each is.
async fn put_index(
    catalog: &Catalog,
    name: &str,
    text: &str,
    members: &[&str],
    cause: Cause,
) -> (Digest, Vec<Digest>) {
    let (repository, tag) = name.split_once(':').unwrap();
    let index = |text: &str, members: &[(Digest, usize)]| {
        let members = members
            .iter()
            .map(|(digest, size)| json!({ "mediaType": INDEX, "digest": digest, "size": size }));
        let members: Vec<_> = members.collect();
        let index = json!({
            "schemaVersion": 2, "mediaType": INDEX, "manifests": members,
            "annotations": { "text": text },
        });
        serde_json::to_vec(&index).unwrap()
    };
    let put = async |bytes: Vec<u8>, tag: Option<&str>| {
        let (digest, size) = (Digest::of(&bytes), bytes.len());
        let manifest = oci::Manifest::parse(&bytes, Some(INDEX)).unwrap();
        let new = NewManifest {
            digest: &digest,
            media_type: INDEX,
            manifest: &manifest,
            bytes: bytes.into(),
        };
        let tags: Vec<_> =
            tag.map(|tag| (tag.parse().unwrap(), Expected::Any)).into_iter().collect();
        let repository = repository.parse().unwrap();
        catalog.put_manifest(&local(), &repository, new, &tags, &cause).await.unwrap();
        (digest, size)
    };
    let mut all = Vec::new();
    for member in members {
        all.push(put(index(member, &[]), None).await);
    }
    let (digest, _) = put(index(text, &all), Some(tag)).await;
    (digest, all.into_iter().map(|(digest, _)| digest).collect())
}

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn pushed() -> Cause {
    Cause::Push { principal: "ann".into() }
}

#[tokio::test]
async fn a_base_that_moves_starts_each_task_that_stands_on_it() {
    let f = Fixture::new().await;
    f.push("os:1", &["a"], pushed()).await;
    f.push("tool:1", &["t"], pushed()).await;
    assert_eq!(f.follow().await, 0);
    let report = json!({
        "runtime-dependency": current("os:1"),
        "buildtime-dependency": [current("tool:1")],
    });
    f.built("aaaaa", &follows(false), report.clone()).await;
    f.built("bbbbb", &follows(true), report.clone()).await;
    f.built("untriggered", &definition(Vec::new()), report).await;
    // K17 to K22: the same again, another tag, what only helps, and by type.
    f.push("os:1", &["a"], pushed()).await;
    f.push("os:1.1", &["b"], pushed()).await;
    assert_eq!(f.follow().await, 0);
    let (moved, _) = f.push("os:1", &["b"], pushed()).await;
    assert_eq!(f.follow().await, 2);
    assert_eq!(f.follow().await, 0);
    let os_1 = || vec!["os:1".to_owned()];
    assert_eq!(f.updates().await, [("aaaaa".to_owned(), os_1()), ("bbbbb".to_owned(), os_1())]);
    let run = f.all_runs().await.pop().unwrap();
    let Some(RunCause::BaseImages { images, chain, .. }) = run.cause else { panic!("no cause") };
    assert_eq!((&images[0].registry, &images[0].digest), (&HOST.to_owned(), &moved));
    assert_eq!(chain, []);
    f.work().await;
    f.push("tool:1", &["u"], pushed()).await;
    assert_eq!(f.follow().await, 1);
    assert_eq!(
        f.decisions().await,
        [
            "aaaaa Fired",
            "bbbbb Fired",
            "aaaaa Skipped: it only helped to build, which counts for triggers of type `All`",
            "bbbbb Fired",
        ]
    );
    let event = &f.ledger().await[0].event;
    assert_eq!(*event, format!("{HOST}/os:1 moved to {moved}"));
}

#[tokio::test]
async fn an_index_that_is_the_same_for_the_platform_starts_nothing() {
    let f = Fixture::new().await;
    let (os, members) = f.push("os:1", &["amd64", "arm64"], pushed()).await;
    f.follow().await;
    let report = json!({ "runtime-dependency": base("os:1", &os, &[&members[0]]) });
    f.built("aaaaa", &follows(false), report).await;
    f.push("os:1", &["amd64", "arm64 patched"], pushed()).await;
    assert_eq!(f.follow().await, 0);
    f.push("os:1", &["amd64 patched", "arm64 patched"], pushed()).await;
    assert_eq!(f.follow().await, 1);
    assert_eq!(
        f.decisions().await,
        ["aaaaa Skipped: its image for the platform of the task is the same", "aaaaa Fired",]
    );
}

#[tokio::test]
async fn moves_that_are_seen_before_a_run_begins_have_one_run() {
    let f = Fixture::new().await;
    f.push("os:1", &["a"], pushed()).await;
    f.push("lib:1", &["l"], pushed()).await;
    f.follow().await;
    let report = json!({
        "runtime-dependency": current("os:1"),
        "buildtime-dependency": [current("lib:1")],
    });
    f.built("aaaaa", &follows(true), report).await;
    // Twice before anybody looks, and once more before the run begins.
    f.push("os:1", &["b"], pushed()).await;
    f.push("os:1", &["c"], pushed()).await;
    assert_eq!(f.follow().await, 1);
    f.push("lib:1", &["m"], pushed()).await;
    let (last, _) = f.push("os:1", &["d"], pushed()).await;
    assert_eq!(f.follow().await, 0);
    let both = vec!["lib:1".to_owned(), "os:1".to_owned()];
    assert_eq!(f.updates().await, [("aaaaa".to_owned(), both)]);
    let Some(RunCause::BaseImages { images, .. }) = f.all_runs().await.pop().unwrap().cause else {
        panic!("no cause")
    };
    assert_eq!(images[1].digest, last);
    f.work().await;
    // A run that has ended may have been built before it moved.
    f.push("os:1", &["e"], pushed()).await;
    assert_eq!(f.follow().await, 1);
    let decisions = f.decisions().await;
    assert_eq!(decisions[0], "aaaaa Fired");
    assert!(decisions[1].starts_with("aaaaa Joined: run `c02` waits to be built"), "{decisions:?}");
    assert_eq!(decisions.len(), 4);
}

#[tokio::test]
async fn what_follows_from_a_task_does_not_start_it_again() {
    let f = Fixture::new().await;
    f.push("os:1", &["a"], pushed()).await;
    f.push("app:1", &["x"], pushed()).await;
    f.follow().await;
    // aaaaa makes `app` of `os`, and bbbbb makes `os` of `app`.
    let on = |name: &str| json!({ "runtime-dependency": current(name) });
    f.built("aaaaa", &follows(false), on("os:1")).await;
    f.built("bbbbb", &follows(false), on("app:1")).await;
    f.push("os:1", &["b"], pushed()).await;
    assert_eq!(f.follow().await, 1);
    f.work().await;
    let first = f.all_runs().await.pop().unwrap();
    f.push("app:1", &["y"], Cause::Build { run: first.id.to_string() }).await;
    assert_eq!(f.follow().await, 1);
    f.work().await;
    let second = f.all_runs().await.pop().unwrap();
    let Some(RunCause::BaseImages { chain, .. }) = &second.cause else { panic!("no cause") };
    let names: Vec<_> = chain.iter().map(|link| (link.task.as_str(), link.run)).collect();
    assert_eq!(names, [("aaaaa", first.id)]);
    // A step of it pushes with the name of its attempt.
    let principal = format!("run/{}/{}/1", local(), second.id);
    f.push("os:1", &["c"], Cause::Push { principal }).await;
    assert_eq!(f.follow().await, 0);
    f.push("app:1", &["z"], Cause::Build { run: second.id.to_string() }).await;
    assert_eq!(f.follow().await, 0);
    assert_eq!(
        f.decisions().await[2..],
        [
            "aaaaa Suppressed: it would start again what it follows from: aaaaa -> bbbbb -> aaaaa",
            &format!("bbbbb Suppressed: run `{}` of the task has pushed it itself", second.id),
        ]
    );
    // Somebody else's push starts it as ever.
    f.push("os:1", &["d"], pushed()).await;
    assert_eq!(f.follow().await, 1);
}

#[tokio::test]
async fn no_move_is_lost_while_nobody_follows_or_the_queue_is_full() {
    let f = Fixture::with_queue(1).await;
    f.push("os:1", &["a"], pushed()).await;
    f.follow().await;
    let report = json!({ "runtime-dependency": current("os:1") });
    for name in ["aaaaa", "bbbbb", "sleepy"] {
        f.built(name, &follows(false), report.clone()).await;
    }
    f.put("sleepy", &TaskDefinition { enabled: false, ..follows(false) }).await;
    f.push("os:1", &["b"], pushed()).await;
    let f = f.reopen_with_queue(1).await;
    let both = tokio::join!(f.triggers.fire_bases(&own), f.triggers.fire_bases(&own));
    let (first, second) = (both.0.unwrap(), both.1.unwrap());
    assert_eq!((first.runs + second.runs, first.waits || second.waits), (1, true));
    f.work().await;
    assert_eq!(f.follow().await, 1);
    f.work().await;
    assert_eq!(f.follow().await, 0);
    let names: Vec<_> = f.updates().await.into_iter().map(|(task, _)| task).collect();
    assert_eq!(names, ["aaaaa", "bbbbb"]);
    let decisions = f.decisions().await;
    assert!(decisions.contains(&"bbbbb Waits: the queue is full".to_owned()), "{decisions:?}");
    assert!(decisions.contains(&"sleepy Skipped: the task is disabled".to_owned()));
    // A task that is deleted is forgotten.
    f.tasks.delete(&local(), &task_name("aaaaa")).await.unwrap();
    f.push("os:1", &["c"], pushed()).await;
    assert_eq!(f.follow().await, 1);
}

#[tokio::test]
async fn a_clock_that_was_wrong_holds_up_no_timer() {
    let f = Fixture::new().await;
    f.put("nightly", &definition(vec![every("t1", "0 5 * * *")])).await;
    f.set("2099-01-01T05:00:00Z");
    assert_eq!(f.fire().await, 1);
    f.set("2024-01-02T00:00:00Z");
    assert_eq!(f.fire().await, 0);
    assert_eq!(f.triggers.next_timer().await.unwrap(), Some(at("2024-01-02T05:00:00Z")));
    // Also if it was set right while no server ran.
    f.set("2099-01-01T05:00:00Z");
    assert_eq!(f.fire().await, 1);
    f.set("2024-01-03T00:00:00Z");
    let f = f.reopen().await;
    f.fire().await;
    assert_eq!(f.triggers.next_timer().await.unwrap(), Some(at("2024-01-03T05:00:00Z")));
}

#[tokio::test]
async fn what_moves_while_a_run_goes_on_is_not_lost() {
    let f = Fixture::new().await;
    let (one, _) = f.push("os:1", &["a"], pushed()).await;
    f.follow().await;
    let on = |digest: &Digest| json!({ "runtime-dependency": base("os:1", digest, &[]) });
    // The first run of a task: nobody knows yet that the move concerns it.
    let (two, _) = f.push("os:1", &["b"], pushed()).await;
    f.follow().await;
    f.built("aaaaa", &follows(false), on(&one)).await;
    assert_eq!(f.follow().await, 1);
    let Some(RunCause::BaseImages { images, .. }) = f.all_runs().await.pop().unwrap().cause else {
        panic!("no cause")
    };
    assert_eq!(images[0].digest, two);
    // It is put back while the run goes on that has seen the other one.
    f.push("os:1", &["a"], pushed()).await;
    assert_eq!(f.follow().await, 0);
    f.builds.reports.lock().unwrap().insert("aaaaa".into(), json!([on(&two)]));
    f.work().await;
    assert_eq!(f.follow().await, 1);
    f.builds.reports.lock().unwrap().insert("aaaaa".into(), json!([on(&one)]));
    f.work().await;
    assert_eq!(f.follow().await, 0);
}

#[tokio::test]
async fn a_full_queue_and_a_move_that_starts_nothing_fill_no_ledger() {
    let f = Fixture::with_queue(1).await;
    f.push("os:1", &["a"], pushed()).await;
    f.push("tool:1", &["t"], pushed()).await;
    f.follow().await;
    let report = json!({
        "runtime-dependency": current("os:1"),
        "buildtime-dependency": [current("tool:1")],
    });
    f.built("aaaaa", &follows(false), report.clone()).await;
    f.built("bbbbb", &follows(false), report).await;
    f.push("tool:1", &["u"], pushed()).await;
    f.push("os:1", &["b"], pushed()).await;
    assert_eq!(f.follow().await, 1);
    let lines = f.ledger().await;
    for _ in 0..5 {
        assert_eq!(f.follow().await, 0);
    }
    assert_eq!(f.ledger().await, lines);
    f.work().await;
    assert_eq!(f.follow().await, 1);
}

#[tokio::test]
async fn a_wide_chain_is_no_long_one() {
    let f = Fixture::new().await;
    f.push("os:1", &["a"], pushed()).await;
    let on = |names: &[String]| {
        let bases: Vec<_> = names.iter().map(|name| current(name)).collect();
        json!({ "buildtime-dependency": bases })
    };
    let mut parts = Vec::new();
    for number in 0..12 {
        parts.push(format!("part{number}:1"));
        f.push(&parts[number], &["x"], pushed()).await;
    }
    f.follow().await;
    for number in 0..12 {
        f.built(&format!("task{number}"), &follows(true), on(&["os:1".to_owned()])).await;
    }
    f.built("bundle", &follows(true), on(&parts)).await;
    f.push("os:1", &["b"], pushed()).await;
    assert_eq!(f.follow().await, 12);
    f.work().await;
    for run in f.all_runs().await.iter().skip(13) {
        let number = run.task.as_ref().unwrap().as_str().trim_start_matches("task").to_owned();
        let cause = Cause::Build { run: run.id.to_string() };
        f.push(&format!("part{number}:1"), &["y"], cause).await;
    }
    assert_eq!(f.follow().await, 1);
    let last = f.all_runs().await.pop().unwrap();
    let Some(RunCause::BaseImages { chain, depth, images, .. }) = last.cause else {
        panic!("no cause")
    };
    assert_eq!((chain.len(), depth, images.len()), (12, 1, 12));
}
