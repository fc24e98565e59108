//! Runs: queued, claimed, cancelled, interrupted, swept. Executors are fakes of what is
//! outside: the builder and the kernel.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as tests do")]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use control::{
    Attempt, BuildArgument, BuildOptions, BuildRequest, BuildSecret, Clock, ContextSource,
    ControlError, End, EventKind, Executor, LogKey, Logs, NewRun, Outcome, OutputImage, Run,
    RunFilter, RunId, RunKind, RunSettings, RunStatus, Runs, SecretChange, SecretKeys, SecretRuns,
    Secrets, Swept, TaskDefinition, TaskName, TaskOverrides, TaskRequest, TaskStep, TaskText,
    TaskValue, Tasks, TimeRange, WaitReason, Worker, WorkerSettings,
};
use oci::{Algorithm, Compression, Digest, Platform, RegistryName};
use store::{Catalog, GcOptions, MemoryStore};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);
const DAY: i64 = 24 * 3600 * 1000;

fn local() -> RegistryName {
    RegistryName::default()
}

fn request() -> BuildRequest {
    BuildRequest {
        image_names: vec!["app:1".into()],
        push: true,
        no_cache: false,
        dockerfile: "Dockerfile".into(),
        dockerfile_name: None,
        target: None,
        arguments: Vec::new(),
        timeout: Duration::from_secs(3600),
        platform: Platform::new("linux", "amd64", None),
        context: ContextSource::Upload(Digest::of(b"context")),
        source_date_epoch: None,
        options: control::BuildOptions::default(),
        network: None,
        archived: false,
        logins: control::Logins::default(),
        egress: Vec::new(),
    }
}

fn task_request() -> TaskRequest {
    TaskRequest {
        file: TaskText::Inline("steps: []".into()),
        values_file: None,
        values: Vec::new(),
        context: Some(ContextSource::Upload(Digest::of(b"context"))),
        timeout: Duration::from_secs(3600),
        platform: Platform::new("linux", "amd64", None),
        archived: false,
        logins: control::Logins::default(),
        egress: Vec::new(),
    }
}

fn settings() -> RunSettings {
    RunSettings {
        concurrency: 2,
        workers: 4,
        attempts_max: 3,
        queue_length_max: 100,
        queue_keep: Duration::from_secs(24 * 3600),
        log_keep: Duration::from_secs(30 * 24 * 3600),
        run_keep: Duration::from_secs(400 * 24 * 3600),
    }
}

/// One data folder, opened by one server after the other.
struct Folder {
    folder: TempDir,
    now: Arc<AtomicI64>,
}

impl Folder {
    fn new() -> Self {
        let now = Arc::new(AtomicI64::new(1_700_000_000_000));
        Self { folder: tempfile::tempdir().unwrap(), now }
    }

    async fn open(&self) -> Runs {
        self.open_with(settings()).await
    }

    async fn open_with(&self, settings: RunSettings) -> Runs {
        let db = testing_db(self.folder.path()).await;
        self.open_on(db, None, settings).await
    }

    async fn open_on(&self, db: db::Db, catalog: Option<Catalog>, settings: RunSettings) -> Runs {
        self.opened(db, catalog, keys(), settings).await.unwrap()
    }

    async fn open_with_keys(&self, keys: SecretKeys) -> Result<Runs, ControlError> {
        let db = testing_db(self.folder.path()).await;
        self.opened(db, None, keys, settings()).await
    }

    async fn opened(
        &self,
        db: db::Db,
        catalog: Option<Catalog>,
        keys: SecretKeys,
        settings: RunSettings,
    ) -> Result<Runs, ControlError> {
        let now = Arc::clone(&self.now);
        let clock = Clock::new(move || now.fetch_add(1, Ordering::Relaxed));
        let logs = Logs::new(self.folder.path().join("logs"), 1 << 20, clock.clone());
        Runs::open(db, catalog, logs, clock, keys, settings).await
    }

    /// Whether a text is anywhere in the files of the database.
    fn database_has(&self, text: &str) -> bool {
        let files = ["refit.db", "refit.db-wal"].map(|name| self.folder.path().join(name));
        let files = files.iter().filter_map(|file| std::fs::read(file).ok());
        let text = text.as_bytes();
        files.into_iter().any(|bytes| bytes.windows(text.len()).any(|part| part == text))
    }

    fn pass(&self, milliseconds: i64) {
        self.now.fetch_add(milliseconds, Ordering::Relaxed);
    }
}

fn keys() -> SecretKeys {
    SecretKeys::new([7; 32], [])
}

async fn testing_db(folder: &std::path::Path) -> db::Db {
    db::Db::open(&folder.join("refit.db")).await.unwrap()
}

/// Executes by a script: each attempt takes the next action.
struct Script {
    actions: Mutex<VecDeque<Action>>,
    begun: AtomicUsize,
    /// Attempts under way, and the most there ever were.
    now: AtomicUsize,
    most: AtomicUsize,
    release: Semaphore,
    /// How often it was asked whether nothing is left.
    asked: AtomicUsize,
}

#[derive(Clone)]
enum Action {
    End(End),
    /// Until cancelled.
    Wait,
    /// Deaf to everything.
    Hang,
    /// Until the test lets it.
    Release,
    Panic,
}

impl Script {
    fn new(actions: impl IntoIterator<Item = Action>) -> Arc<Self> {
        Arc::new(Self {
            actions: Mutex::new(actions.into_iter().collect()),
            begun: AtomicUsize::new(0),
            now: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            release: Semaphore::new(0),
            asked: AtomicUsize::new(0),
        })
    }
}

#[async_trait]
impl Executor for Script {
    async fn execute(&self, attempt: &Attempt) -> Outcome {
        let repeatable =
            attempt.run.request.task().is_none_or(|task| task.file == task_of_builds());
        attempt.running(repeatable).await.unwrap().unwrap();
        self.begun.fetch_add(1, Ordering::SeqCst);
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        let action =
            self.actions.lock().unwrap().pop_front().unwrap_or(Action::End(End::Succeeded));
        let end = match action {
            Action::End(end) => end,
            Action::Wait => {
                attempt.cancel.cancelled().await;
                End::Canceled
            }
            Action::Hang => std::future::pending().await,
            Action::Release => {
                self.release.acquire().await.unwrap().forget();
                End::Succeeded
            }
            Action::Panic => panic!("a bug"),
        };
        self.now.fetch_sub(1, Ordering::SeqCst);
        Outcome::of(end)
    }

    async fn idle(&self) {
        self.asked.fetch_add(1, Ordering::SeqCst);
    }
}

struct Working {
    shutdown: CancellationToken,
    worker: tokio::task::JoinHandle<()>,
}

impl Working {
    fn start<E: Executor + 'static>(runs: &Runs, executor: &Arc<E>) -> Self {
        let settings = WorkerSettings {
            concurrency: 4,
            shutdown_grace: Duration::ZERO,
            cancel_grace: Duration::from_millis(100),
        };
        let worker = Worker::new(
            Arc::new(runs.clone()),
            Arc::clone(executor) as Arc<dyn Executor>,
            settings,
        );
        let shutdown = CancellationToken::new();
        let worker = tokio::spawn(worker.run(shutdown.clone()));
        Self { shutdown, worker }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        bounded(self.worker).await.unwrap();
    }

    /// As a `kill -9` would: nothing more is written.
    async fn kill(self) {
        self.worker.abort();
        let _ = self.worker.await;
    }
}

async fn bounded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

async fn wait_for<F: Future<Output = bool>>(condition: impl Fn() -> F) {
    bounded(async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn status(runs: &Runs, id: RunId) -> RunStatus {
    runs.get(&local(), id).await.unwrap().unwrap().status
}

async fn ended(runs: &Runs, id: RunId) -> Run {
    wait_for(|| async { status(runs, id).await.is_final() }).await;
    runs.get(&local(), id).await.unwrap().unwrap()
}

async fn log_text(runs: &Runs, id: RunId) -> String {
    let key = LogKey { registry: local(), run: id };
    let mut reader = runs.logs().read_text(&key, 0, true).await.unwrap();
    let mut text = Vec::new();
    while let Some(chunk) = bounded(reader.next()).await.unwrap() {
        text.extend_from_slice(&chunk);
    }
    String::from_utf8(text).unwrap()
}

/// Of the text up to its last line, which says how the run ended.
fn digest_of_log(text: &str) -> Digest {
    let end = text.rfind("Run ID: ").unwrap();
    Digest::of(&text.as_bytes()[..end])
}

#[tokio::test]
async fn ids_are_issued_in_order_and_survive_a_restart() {
    let folder = Folder::new();
    let runs = folder.open().await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(runs.submit(&local(), request()).await.unwrap().id.to_string());
    }
    let other: RegistryName = "other".parse().unwrap();
    ids.push(runs.submit(&other, request()).await.unwrap().id.to_string());
    drop(runs);
    let runs = folder.open().await;
    ids.push(runs.submit(&local(), request()).await.unwrap().id.to_string());
    assert_eq!(ids, ["c01", "c02", "c03", "c01", "c04"]);
    assert_eq!(runs.list(&local(), &RunFilter::default(), 10).await.unwrap().len(), 4);
}

#[tokio::test]
async fn submissions_at_the_same_time_get_different_ids() {
    let runs = Folder::new();
    let runs = Arc::new(runs.open().await);
    let submissions: Vec<_> = (0..20)
        .map(|_| {
            let runs = Arc::clone(&runs);
            tokio::spawn(async move { runs.submit(&local(), request()).await.unwrap().id })
        })
        .collect();
    let mut ids = Vec::new();
    for submission in submissions {
        ids.push(submission.await.unwrap());
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 20);
}

#[tokio::test]
async fn a_run_goes_from_queued_to_its_end() {
    let folder = Folder::new();
    let runs = folder.open().await;
    let executor = Script::new([Action::Release]);
    let run = runs.submit(&local(), request()).await.unwrap();
    assert_eq!(run.status, RunStatus::Queued);
    let working = Working::start(&runs, &executor);
    wait_for(|| async { status(&runs, run.id).await == RunStatus::Running }).await;
    executor.release.add_permits(1);
    let run = ended(&runs, run.id).await;
    assert_eq!(run.status, RunStatus::Succeeded);
    assert!(run.created_at < run.started_at.unwrap());
    assert!(run.started_at.unwrap() < run.finished_at.unwrap());
    assert!(run.cost.unwrap()["queueMilliseconds"].as_i64().unwrap() > 0);
    let text = log_text(&runs, run.id).await;
    assert!(text.ends_with("Run ID: c01 was successful after 0s\r\n"), "{text}");
    assert_eq!(run.log_digest, Some(digest_of_log(&text)));
    working.stop().await;
}

#[tokio::test]
async fn ends_become_statuses() {
    let cases = [
        (End::Succeeded, RunStatus::Succeeded, None),
        (End::Failed("`make` ended with 2".into()), RunStatus::Failed, Some("`make` ended with 2")),
        (End::Error("no disk".into()), RunStatus::Error, Some("no disk")),
    ];
    let folder = Folder::new();
    let runs = folder.open_with(RunSettings { concurrency: 1, ..settings() }).await;
    let executor = Script::new(cases.iter().map(|(end, ..)| Action::End(end.clone())));
    let mut submitted = Vec::new();
    for _ in &cases {
        submitted.push(runs.submit(&local(), request()).await.unwrap().id);
    }
    let working = Working::start(&runs, &executor);
    for ((_, status, error), id) in cases.iter().zip(submitted) {
        let run = ended(&runs, id).await;
        assert_eq!((run.status, run.error.as_deref()), (*status, *error));
    }
    working.stop().await;
}

#[tokio::test]
async fn a_panic_ends_the_run_as_our_error() {
    let folder = Folder::new();
    let runs = folder.open().await;
    let working = Working::start(&runs, &Script::new([Action::Panic]));
    let run = runs.submit(&local(), request()).await.unwrap();
    assert_eq!(ended(&runs, run.id).await.status, RunStatus::Error);
    working.stop().await;
}

#[tokio::test]
async fn no_more_runs_at_once_than_the_registry_may() {
    let folder = Folder::new();
    let runs = folder.open().await;
    let executor = Script::new(vec![Action::Release; 6]);
    for _ in 0..6 {
        runs.submit(&local(), request()).await.unwrap();
    }
    let working = Working::start(&runs, &executor);
    wait_for(|| async { executor.begun.load(Ordering::SeqCst) == 2 }).await;
    executor.release.add_permits(6);
    bounded(runs.idle()).await.unwrap();
    assert_eq!(executor.most.load(Ordering::SeqCst), 2);
    working.stop().await;
}

#[tokio::test]
async fn l4_a_queued_run_is_cancelled_at_once() {
    let folder = Folder::new();
    let runs = folder.open().await;
    let run = runs.submit(&local(), request()).await.unwrap();
    let run = runs.cancel(&local(), run.id).await.unwrap();
    assert_eq!((run.status, run.started_at), (RunStatus::Canceled, None));
    assert!(log_text(&runs, run.id).await.contains("Error: Canceled"));
    let error = runs.cancel(&local(), run.id).await.unwrap_err();
    assert!(matches!(error, ControlError::Conflict { .. }), "{error}");
    let missing = runs.cancel(&local(), "czz".parse().unwrap()).await.unwrap_err();
    assert!(matches!(missing, ControlError::NotFound { .. }), "{missing}");
    // It is not executed any more.
    let executor = Script::new([]);
    let working = Working::start(&runs, &executor);
    bounded(runs.idle()).await.unwrap();
    assert_eq!(executor.begun.load(Ordering::SeqCst), 0);
    working.stop().await;
}

#[tokio::test]
async fn a_running_run_is_cancelled() {
    let folder = Folder::new();
    let runs = folder.open().await;
    let working = Working::start(&runs, &Script::new([Action::Wait]));
    let run = runs.submit(&local(), request()).await.unwrap();
    wait_for(|| async { status(&runs, run.id).await == RunStatus::Running }).await;
    runs.cancel(&local(), run.id).await.unwrap();
    assert_eq!(ended(&runs, run.id).await.status, RunStatus::Canceled);
    working.stop().await;
}

#[tokio::test]
async fn l2_a_run_that_takes_too_long_ends_as_timeout_even_if_it_does_not_listen() {
    let folder = Folder::new();
    let runs = folder.open().await;
    let working = Working::start(&runs, &Script::new([Action::Wait, Action::Hang]));
    for _ in 0..2 {
        let run = runs
            .submit(&local(), BuildRequest { timeout: Duration::from_millis(20), ..request() })
            .await
            .unwrap();
        let run = ended(&runs, run.id).await;
        assert_eq!(run.status, RunStatus::Timeout);
        assert_eq!(run.error.as_deref(), Some("the run reached its time limit of 0 s"));
    }
    working.stop().await;
}

#[tokio::test]
async fn a_run_whose_server_died_is_begun_again_and_says_so() {
    let folder = Folder::new();
    let id = {
        let runs = folder.open().await;
        let working = Working::start(&runs, &Script::new([Action::Hang]));
        let run = runs.submit(&local(), request()).await.unwrap();
        wait_for(|| async { status(&runs, run.id).await == RunStatus::Running }).await;
        working.kill().await;
        run.id
    };
    let runs = folder.open().await;
    let taken: Vec<_> = runs.take_over().await.unwrap().iter().map(|run| run.id).collect();
    assert_eq!(taken, [id]);
    assert_eq!(status(&runs, id).await, RunStatus::Running);
    let working = Working::start(&runs, &Script::new([]));
    let run = ended(&runs, id).await;
    assert_eq!((run.status, run.attempts), (RunStatus::Succeeded, 2));
    let text = log_text(&runs, id).await;
    assert!(text.contains("attempt 2 of 3 begins"), "{text}");
    working.stop().await;
}

#[tokio::test]
async fn after_three_attempts_a_run_ends_as_error() {
    let folder = Folder::new();
    let id = folder.open().await.submit(&local(), request()).await.unwrap().id;
    for attempt in 1..=3 {
        let runs = folder.open().await;
        runs.take_over().await.unwrap();
        let executor = Script::new([Action::Hang]);
        let working = Working::start(&runs, &executor);
        wait_for(|| async { executor.begun.load(Ordering::SeqCst) == 1 }).await;
        assert_eq!(runs.get(&local(), id).await.unwrap().unwrap().attempts, attempt);
        working.kill().await;
    }
    let runs = folder.open().await;
    runs.take_over().await.unwrap();
    let executor = Script::new([]);
    let working = Working::start(&runs, &executor);
    let run = ended(&runs, id).await;
    assert_eq!(run.status, RunStatus::Error);
    assert_eq!(executor.begun.load(Ordering::SeqCst), 0);
    assert!(run.error.unwrap().contains("in each of 3 attempts"));
    working.stop().await;
}

#[tokio::test]
async fn an_orderly_stop_is_not_an_attempt() {
    let folder = Folder::new();
    let runs = folder.open().await;
    let id = runs.submit(&local(), request()).await.unwrap().id;
    for _ in 0..5 {
        let executor = Script::new([Action::Hang]);
        let working = Working::start(&runs, &executor);
        wait_for(|| async { executor.begun.load(Ordering::SeqCst) == 1 }).await;
        working.stop().await;
        // A worker that leaves waits for what dropped attempts still clear away.
        assert_eq!(executor.asked.load(Ordering::SeqCst), 1);
    }
    let working = Working::start(&runs, &Script::new([]));
    assert_eq!(ended(&runs, id).await.status, RunStatus::Succeeded);
    working.stop().await;
}

const LOST_TASK: &str = "the server stopped while this run was under way, and a task with \
                         commands is not begun again";

#[tokio::test]
async fn a_task_whose_server_died_is_not_begun_again_and_says_so() {
    let folder = Folder::new();
    let runs = folder.open().await;
    let working = Working::start(&runs, &Script::new([Action::Hang]));
    let id = runs.submit(&local(), task_request()).await.unwrap().id;
    wait_for(|| async { status(&runs, id).await == RunStatus::Running }).await;
    working.kill().await;
    let runs = folder.open().await;
    runs.take_over().await.unwrap();
    let executor = Script::new([]);
    let working = Working::start(&runs, &executor);
    let run = ended(&runs, id).await;
    assert_eq!((run.status, run.error.as_deref()), (RunStatus::Error, Some(LOST_TASK)));
    assert_eq!(executor.begun.load(Ordering::SeqCst), 0);
    assert!(log_text(&runs, id).await.contains(LOST_TASK));
    working.stop().await;
}

/// The file of a task that the script takes to build and push only.
fn task_of_builds() -> control::TaskText {
    control::TaskText::Inline("steps: [{build: .}]".to_owned())
}

#[tokio::test]
async fn a_task_of_builds_begins_again_when_its_server_died_or_stopped() {
    let folder = Folder::new();
    let task = TaskRequest { file: task_of_builds(), ..task_request() };
    let id = folder.open().await.submit(&local(), task).await.unwrap().id;
    for dies in [false, true] {
        let runs = folder.open().await;
        runs.take_over().await.unwrap();
        let working = Working::start(&runs, &Script::new([Action::Hang]));
        wait_for(|| async { status(&runs, id).await == RunStatus::Running }).await;
        match dies {
            true => working.kill().await,
            false => working.stop().await,
        }
    }
    let runs = folder.open().await;
    runs.take_over().await.unwrap();
    let working = Working::start(&runs, &Script::new([]));
    assert_eq!(ended(&runs, id).await.status, RunStatus::Succeeded);
    working.stop().await;
}

#[tokio::test]
async fn a_task_that_a_stop_interrupts_ends_with_it() {
    let folder = Folder::new();
    let runs = folder.open().await;
    let working = Working::start(&runs, &Script::new([Action::Hang]));
    let id = runs.submit(&local(), task_request()).await.unwrap().id;
    wait_for(|| async { status(&runs, id).await == RunStatus::Running }).await;
    working.stop().await;
    let run = runs.get(&local(), id).await.unwrap().unwrap();
    assert_eq!((run.status, run.error.as_deref()), (RunStatus::Error, Some(LOST_TASK)));
}

/// Prepares its run and never gets to its steps.
struct Preparing(AtomicUsize);

#[async_trait]
impl Executor for Preparing {
    async fn execute(&self, _: &Attempt) -> Outcome {
        self.0.fetch_add(1, Ordering::SeqCst);
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_task_that_had_not_come_to_its_steps_begins_again() {
    let folder = Folder::new();
    let id = folder.open().await.submit(&local(), task_request()).await.unwrap().id;
    for dies in [false, true] {
        let runs = folder.open().await;
        runs.take_over().await.unwrap();
        let executor = Arc::new(Preparing(AtomicUsize::new(0)));
        let working = Working::start(&runs, &executor);
        wait_for(|| async { executor.0.load(Ordering::SeqCst) == 1 }).await;
        match dies {
            true => working.kill().await,
            false => working.stop().await,
        }
        assert_eq!(status(&runs, id).await, RunStatus::Started);
    }
    let runs = folder.open().await;
    runs.take_over().await.unwrap();
    let working = Working::start(&runs, &Script::new([]));
    assert_eq!(ended(&runs, id).await.status, RunStatus::Succeeded);
    let text = log_text(&runs, id).await;
    assert!(text.contains("attempt 2 of 3 begins"), "{text}");
    let run = runs.get(&local(), id).await.unwrap().unwrap();
    // Also of what an earlier process has written.
    assert_eq!(run.log_digest, Some(digest_of_log(&text)));
    working.stop().await;
}

/// Hands its attempt to the test.
struct Capture(tokio::sync::mpsc::UnboundedSender<bool>, Semaphore);

#[async_trait]
impl Executor for Capture {
    async fn execute(&self, attempt: &Attempt) -> Outcome {
        self.0.send(attempt.confirm().await.unwrap().is_ok()).unwrap();
        self.1.acquire().await.unwrap().forget();
        self.0.send(attempt.confirm().await.unwrap().is_ok()).unwrap();
        Outcome::of(End::Succeeded)
    }
}

#[tokio::test]
async fn a_late_attempt_can_publish_nothing() {
    let folder = Folder::new();
    let (sender, mut confirmed) = tokio::sync::mpsc::unbounded_channel();
    let late = Arc::new(Capture(sender, Semaphore::new(0)));
    let runs = folder.open().await;
    let settings =
        WorkerSettings { concurrency: 1, shutdown_grace: PATIENCE, cancel_grace: PATIENCE };
    let worker =
        Worker::new(Arc::new(runs.clone()), Arc::clone(&late) as Arc<dyn Executor>, settings);
    let shutdown = CancellationToken::new();
    let worker = tokio::spawn(worker.run(shutdown.clone()));
    let id = runs.submit(&local(), request()).await.unwrap().id;
    assert_eq!(confirmed.recv().await, Some(true));

    // Its machine sleeps longer than the lease; another server takes the run over.
    folder.pass(DAY);
    let other = folder.open().await;
    let working = Working::start(&other, &Script::new([Action::End(End::Failed("other".into()))]));
    let run = ended(&other, id).await;
    assert_eq!(run.error.as_deref(), Some("other"));

    late.1.add_permits(1);
    assert_eq!(confirmed.recv().await, Some(false));
    shutdown.cancel();
    bounded(worker).await.unwrap();
    let run = runs.get(&local(), id).await.unwrap().unwrap();
    assert_eq!((run.status, run.error.as_deref()), (RunStatus::Failed, Some("other")));
    working.stop().await;
}

#[tokio::test]
async fn a_machine_that_slept_goes_on_with_its_runs() {
    let folder = Folder::new();
    let runs = folder.open().await;
    let executor = Script::new([Action::Release, Action::Release]);
    let working = Working::start(&runs, &executor);
    let first = runs.submit(&local(), request()).await.unwrap().id;
    wait_for(|| async { status(&runs, first).await == RunStatus::Running }).await;
    folder.pass(DAY);
    // The next claim is where the first run would have been taken for lost.
    let second = runs.submit(&local(), request()).await.unwrap().id;
    wait_for(|| async { status(&runs, second).await == RunStatus::Running }).await;
    executor.release.add_permits(2);
    for id in [first, second] {
        assert_eq!(ended(&runs, id).await.status, RunStatus::Succeeded);
    }
    assert!(!log_text(&runs, first).await.contains("attempt"));
    working.stop().await;
}

#[tokio::test]
async fn secrets_are_forgotten_when_a_run_ends() {
    let folder = Folder::new();
    let runs = folder.open().await;
    let secret = BuildArgument { name: "TOKEN".into(), value: "hunter22".into(), secret: true };
    let open = BuildArgument { name: "A".into(), value: "b".into(), secret: false };
    let with_secret =
        || BuildRequest { arguments: vec![secret.clone(), open.clone()], ..request() };
    let cancelled = runs.submit(&local(), with_secret()).await.unwrap();
    runs.cancel(&local(), cancelled.id).await.unwrap();
    let working =
        Working::start(&runs, &Script::new([Action::End(End::Failed("hunter22!".into()))]));
    let failed = runs.submit(&local(), with_secret()).await.unwrap();
    for id in [cancelled.id, failed.id] {
        let run = ended(&runs, id).await;
        wait_for(|| async {
            let run = runs.get(&local(), id).await.unwrap().unwrap();
            run.request.build().unwrap().arguments[0].value.is_empty()
        })
        .await;
        assert_eq!(run.request.build().unwrap().arguments[1].value, "b");
    }
    assert!(log_text(&runs, failed.id).await.contains("Error: ***!"));
    working.stop().await;
}

#[tokio::test]
async fn secret_values_of_a_task_are_masked_and_forgotten() {
    let folder = Folder::new();
    let runs = folder.open().await;
    let value = |name: &str, value: &str, secret| TaskValue {
        name: name.into(),
        value: value.into(),
        secret,
    };
    let values = vec![value("token", "hunter22", true), value("a", "b", false)];
    let with_secret = || TaskRequest { values: values.clone(), ..task_request() };
    let cancelled = runs.submit(&local(), with_secret()).await.unwrap();
    runs.cancel(&local(), cancelled.id).await.unwrap();
    let working =
        Working::start(&runs, &Script::new([Action::End(End::Failed("hunter22!".into()))]));
    let failed = runs.submit(&local(), with_secret()).await.unwrap();
    for id in [cancelled.id, failed.id] {
        ended(&runs, id).await;
        wait_for(|| async {
            let run = runs.get(&local(), id).await.unwrap().unwrap();
            run.request.task().unwrap().values == [value("token", "", true), value("a", "b", false)]
        })
        .await;
    }
    assert!(log_text(&runs, failed.id).await.contains("Error: ***!"));
    working.stop().await;
}

#[tokio::test]
async fn a_run_is_what_it_was_submitted_as() {
    let folder = Folder::new();
    let runs = folder.open().await;
    let build = runs.submit(&local(), request()).await.unwrap();
    let task = runs.submit(&local(), task_request()).await.unwrap();
    assert_eq!((build.kind, task.kind), (RunKind::QuickBuild, RunKind::QuickRun));
    drop(runs);
    let runs = folder.open().await;
    assert_eq!(runs.get(&local(), build.id).await.unwrap().unwrap().request, request().into());
    let task = runs.get(&local(), task.id).await.unwrap().unwrap();
    assert_eq!((task.kind, task.request), (RunKind::QuickRun, task_request().into()));
}

#[tokio::test]
async fn a_task_has_a_time_limit_too() {
    let folder = Folder::new();
    let runs = folder.open().await;
    let working = Working::start(&runs, &Script::new([Action::Wait]));
    let short = TaskRequest { timeout: Duration::from_millis(20), ..task_request() };
    let run = runs.submit(&local(), short).await.unwrap();
    assert_eq!(ended(&runs, run.id).await.status, RunStatus::Timeout);
    working.stop().await;
}

#[tokio::test]
async fn listings_are_newest_first_and_filtered() {
    let folder = Folder::new();
    let runs = folder.open().await;
    for _ in 0..4 {
        runs.submit(&local(), request()).await.unwrap();
    }
    runs.cancel(&local(), "c02".parse().unwrap()).await.unwrap();
    let ids = async |filter: RunFilter, limit| {
        let found = runs.list(&local(), &filter, limit).await.unwrap();
        found.iter().map(|run| run.id.to_string()).collect::<Vec<_>>().join(" ")
    };
    let all = RunFilter::default();
    assert_eq!(ids(all.clone(), 10).await, "c04 c03 c02 c01");
    assert_eq!(ids(all.clone(), 2).await, "c04 c03");
    let before = Some("c03".parse().unwrap());
    assert_eq!(ids(RunFilter { before, ..all.clone() }, 10).await, "c02 c01");
    let status = Some(RunStatus::Canceled);
    assert_eq!(ids(RunFilter { status, ..all.clone() }, 10).await, "c02");
    let id = Some("c04".parse().unwrap());
    assert_eq!(ids(RunFilter { id, ..all }, 10).await, "c04");
}

#[tokio::test]
async fn the_queue_has_a_bound() {
    let folder = Folder::new();
    let runs = folder.open_with(RunSettings { queue_length_max: 2, ..settings() }).await;
    for _ in 0..2 {
        runs.submit(&local(), request()).await.unwrap();
    }
    let error = runs.submit(&local(), request()).await.unwrap_err();
    assert_eq!(error.to_string(), "2 runs are waiting already");
    assert_eq!(error.hint().unwrap(), "try again later, or raise `limits.queue_length_max`");
}

#[tokio::test]
async fn old_logs_go_before_old_runs() {
    let folder = Folder::new();
    let runs = folder.open().await;
    let kept = BuildRequest { archived: true, ..request() };
    let ids = [
        runs.submit(&local(), request()).await.unwrap().id,
        runs.submit(&local(), kept).await.unwrap().id,
        runs.submit(&local(), request()).await.unwrap().id,
    ];
    for id in &ids[..2] {
        runs.cancel(&local(), *id).await.unwrap();
    }
    assert_eq!(runs.sweep().await.unwrap(), Swept::default());
    folder.pass(2 * DAY);
    assert_eq!(runs.sweep().await.unwrap(), Swept { overdue: 1, logs: 0, runs: 0 });
    assert_eq!(status(&runs, ids[2]).await, RunStatus::Error);
    folder.pass(29 * DAY);
    assert_eq!(runs.sweep().await.unwrap().logs, 1);
    let key = LogKey { registry: local(), run: ids[0] };
    assert!(runs.logs().read_text(&key, 0, false).await.is_err());
    folder.pass(400 * DAY);
    assert_eq!(runs.sweep().await.unwrap().runs, 2);
    let left = runs.list(&local(), &RunFilter::default(), 10).await.unwrap();
    assert_eq!(left.iter().map(|run| run.id).collect::<Vec<_>>(), [ids[1]]);
}

#[tokio::test]
async fn a_log_that_missed_its_end_gets_it() {
    let folder = Folder::new();
    let runs = folder.open().await;
    let id = runs.submit(&local(), request()).await.unwrap().id;
    let key = LogKey { registry: local(), run: id };
    let log = runs.logs().open(&key, control::Mask::default()).await.unwrap();
    log.append(EventKind::Message { text: "under way".into() }).await;
    let file = folder.folder.path().join("logs/local/c01.events");
    wait_for(|| async {
        std::fs::read_to_string(&file).is_ok_and(|text| text.contains("under way"))
    })
    .await;
    // The end was recorded, and then the server died.
    let copy = std::fs::read(&file).unwrap();
    runs.cancel(&local(), id).await.unwrap();
    wait_for(|| async { !file.exists() }).await;
    std::fs::write(&file, copy).unwrap();
    let runs = folder.open().await;
    runs.take_over().await.unwrap();
    let text = log_text(&runs, id).await;
    assert!(text.contains("under way") && text.contains("Run ID: c01 failed"), "{text}");
}

#[tokio::test]
async fn the_context_of_a_run_is_kept_until_its_end() {
    let folder = Folder::new();
    let db = testing_db(folder.folder.path()).await;
    let blobs = Arc::new(MemoryStore::open(db.clone()).await.unwrap());
    let catalog = Catalog::open(db.clone(), blobs).await.unwrap();
    let runs = folder.open_on(db, Some(catalog.clone()), settings()).await;

    let error = runs.submit(&local(), request()).await.unwrap_err();
    assert!(error.to_string().contains("not found"), "{error}");
    assert_eq!(runs.list(&local(), &RunFilter::default(), 10).await.unwrap().len(), 0);

    let mut upload = catalog.blobs().begin_upload(Algorithm::Sha256).await.unwrap();
    upload.write("context".into()).await.unwrap();
    let context = upload.commit(None).await.unwrap().digest;
    // A task keeps its context as a build does.
    let run = runs.submit(&local(), task_request()).await.unwrap();
    let is_there = async || {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let at_once = GcOptions { dry_run: false, grace: Duration::ZERO, cache_size_max: u64::MAX };
        catalog.collect_garbage(&at_once).await.unwrap();
        catalog.blobs().size(&context).await.unwrap().is_some()
    };
    assert!(is_there().await);
    runs.cancel(&local(), run.id).await.unwrap();
    assert!(!is_there().await);
}

fn task_definition() -> TaskDefinition {
    let step = TaskStep::File {
        file: TaskText::Inline("steps: []".into()),
        values_file: None,
        values: Vec::new(),
    };
    TaskDefinition::new(Platform::new("linux", "amd64", None), Duration::from_secs(3600), step)
}

fn task_run(name: &TaskName) -> NewRun {
    task_definition().run(name, TaskOverrides::default(), Compression::default()).unwrap()
}

#[tokio::test]
async fn a_task_is_changed_only_by_who_has_seen_it() {
    let folder = Folder::new();
    let tasks = Tasks::open(folder.open().await).await.unwrap();
    let name: TaskName = "nightly".parse().unwrap();
    let first = tasks.put(&local(), &name, &task_definition(), None).await.unwrap();
    assert_eq!(first.revision, 1);
    // Somebody else was as fast.
    let again = tasks.put(&local(), &name, &task_definition(), None).await.unwrap_err();
    assert!(matches!(again, ControlError::Conflict { .. }), "{again}");
    let other = TaskDefinition { enabled: false, ..task_definition() };
    let second = tasks.put(&local(), &name, &other, Some(&first)).await.unwrap();
    assert_eq!((second.revision, second.definition.enabled), (2, false));
    let late = tasks.put(&local(), &name, &task_definition(), Some(&first)).await.unwrap_err();
    assert!(matches!(late, ControlError::Conflict { .. }), "{late}");
    // A restart loses nothing.
    drop(tasks);
    let tasks = Tasks::open(folder.open().await).await.unwrap();
    assert_eq!(tasks.get(&local(), &name).await.unwrap(), Some(second));
    let elsewhere: RegistryName = "other".parse().unwrap();
    assert_eq!(tasks.get(&elsewhere, &name).await.unwrap(), None);
}

fn secret_task() -> TaskDefinition {
    let value = TaskValue { name: "pin".into(), value: "hunter2-of-task".into(), secret: true };
    let step = TaskStep::File {
        file: TaskText::Inline("steps: []".into()),
        values_file: None,
        values: vec![value],
    };
    TaskDefinition { step, ..task_definition() }
}

fn secret_run() -> BuildRequest {
    let value = "hunter2-of-run".into();
    let argument = BuildArgument { name: "TOKEN".into(), value, secret: true };
    BuildRequest { arguments: vec![argument], ..request() }
}

#[tokio::test]
async fn secrets_are_sealed_in_the_database() {
    let folder = Folder::new();
    let runs = folder.open().await;
    let tasks = Tasks::open(runs.clone()).await.unwrap();
    let name: TaskName = "nightly".parse().unwrap();
    let stored = tasks.put(&local(), &name, &secret_task(), None).await.unwrap();
    let run = runs.submit(&local(), secret_run()).await.unwrap();
    assert!(folder.database_has("TOKEN") && !folder.database_has("hunter2"));
    assert_eq!(run.request.build(), Some(&secret_run()));
    assert_eq!(stored.definition, secret_task());
    drop((runs, tasks));
    // Another key opens nothing, and changes nothing.
    let error = folder.open_with_keys(SecretKeys::new([8; 32], [])).await.err().unwrap();
    assert!(error.to_string().starts_with("what is sealed of run local/c01 cannot be"), "{error}");
    assert!(error.hint().unwrap().contains("put the key back"));
    // One that is put before it seals what the old one did.
    for keys in [SecretKeys::new([8; 32], [[7; 32]]), SecretKeys::new([8; 32], [])] {
        let runs = folder.open_with_keys(keys).await.unwrap();
        let tasks = Tasks::open(runs.clone()).await.unwrap();
        assert_eq!(tasks.get(&local(), &name).await.unwrap().unwrap(), stored);
        assert_eq!(runs.get(&local(), run.id).await.unwrap().unwrap(), run);
    }
    assert!(!folder.database_has("hunter2"));
}

/// Runs of the table that still have secrets.
async fn with_secrets(folder: &Folder) -> i64 {
    let db = testing_db(folder.folder.path()).await;
    let count = sqlx::query_scalar("SELECT COUNT(*) FROM runs WHERE secrets IS NOT NULL");
    count.fetch_one(db.reads()).await.unwrap()
}

#[tokio::test]
async fn secrets_are_gone_with_the_end_however_a_run_ends() {
    let folder = Folder::new();
    let runs = folder.open().await;
    // No text, and large.
    let secret = BuildSecret { id: "store".into(), value: vec![0xfe; 400 << 10] };
    let options = BuildOptions { secrets: vec![secret], ..BuildOptions::default() };
    let binary = || BuildRequest { options: options.clone(), ..request() };
    let cancelled = runs.submit(&local(), binary()).await.unwrap();
    assert_eq!(cancelled.request.build(), Some(&binary()));
    assert_eq!(with_secrets(&folder).await, 1);
    runs.cancel(&local(), cancelled.id).await.unwrap();
    assert_eq!(with_secrets(&folder).await, 0);
    runs.submit(&local(), binary()).await.unwrap();
    folder.pass(2 * DAY);
    assert_eq!(runs.sweep().await.unwrap().overdue, 1);
    assert_eq!(with_secrets(&folder).await, 0);
    let working = Working::start(&runs, &Script::new([]));
    let ended_well = runs.submit(&local(), binary()).await.unwrap();
    ended(&runs, ended_well.id).await;
    assert_eq!(with_secrets(&folder).await, 0);
    working.stop().await;
}

#[tokio::test]
async fn a_secret_is_for_whom_it_was_made_for() {
    let folder = Folder::new();
    let secrets = Secrets::open(folder.open().await).await.unwrap();
    let name = "signing".parse().unwrap();
    let value = |text: &str| SecretChange {
        value: Some(task::SecretText::new(text)),
        ..SecretChange::default()
    };
    let refused = secrets.put(&local(), &name, value("hunter2")).await.unwrap_err();
    assert_eq!(refused.to_string(), "secret `signing` is not there yet, and nobody may have it");
    let nightly: TaskName = "nightly".parse().unwrap();
    let runs = Some(SecretRuns::Of(vec![nightly.clone()]));
    let made = SecretChange { runs, ..value("hunter2-first") };
    secrets.put(&local(), &name, made).await.unwrap();
    // Another value is for the same runs.
    let changed = secrets.put(&local(), &name, value("hunter2-second")).await.unwrap();
    assert!(changed.is_for(Some(&"NIGHTLY".parse().unwrap())) && !changed.is_for(None));
    let all = SecretChange { runs: Some(SecretRuns::All), ..SecretChange::default() };
    assert!(secrets.put(&local(), &name, all).await.unwrap().is_for(None));
    let (_, revealed) = secrets.reveal(&local(), &name).await.unwrap().unwrap();
    assert_eq!(revealed.expose(), "hunter2-second");
    assert!(!folder.database_has("hunter2"));
    // Nobody opens it to others in the database.
    let db = testing_db(folder.folder.path()).await;
    let mut transaction = db.begin().await.unwrap();
    let widened = sqlx::query("UPDATE secrets SET tasks = '[\"nightly\"]'");
    widened.execute(&mut *transaction).await.unwrap();
    transaction.commit().await.unwrap();
    assert!(secrets.reveal(&local(), &name).await.is_err());
    for bad in ["", &"x".repeat((64 << 10) + 1)] {
        assert!(secrets.put(&local(), &name, value(bad)).await.is_err());
    }
}

#[tokio::test]
async fn secrets_from_before_they_were_sealed_are_sealed() {
    let folder = Folder::new();
    let runs = folder.open().await;
    let tasks = Tasks::open(runs.clone()).await.unwrap();
    let name: TaskName = "nightly".parse().unwrap();
    let stored = tasks.put(&local(), &name, &secret_task(), None).await.unwrap();
    let run = runs.submit(&local(), secret_run()).await.unwrap();
    let db = testing_db(folder.folder.path()).await;
    let mut transaction = db.begin().await.unwrap();
    for (statement, text) in [
        ("UPDATE tasks SET secrets = NULL, definition = $1", serde_json::to_string(&secret_task())),
        ("UPDATE runs SET secrets = NULL, request = $1", run.request.to_json()),
    ] {
        sqlx::query(statement).bind(text.unwrap()).execute(&mut *transaction).await.unwrap();
    }
    transaction.commit().await.unwrap();
    assert!(folder.database_has("hunter2-of-task") && folder.database_has("hunter2-of-run"));
    drop((db, runs, tasks));
    let runs = folder.open().await;
    let tasks = Tasks::open(runs.clone()).await.unwrap();
    assert_eq!(tasks.get(&local(), &name).await.unwrap().unwrap(), stored);
    assert_eq!(runs.get(&local(), run.id).await.unwrap().unwrap(), run);
    // Nor is it left where the rows were.
    assert!(!folder.database_has("hunter2"));
}

#[tokio::test]
async fn a_run_needs_its_task() {
    let folder = Folder::new();
    let runs = folder.open().await;
    let tasks = Tasks::open(runs.clone()).await.unwrap();
    let name: TaskName = "nightly".parse().unwrap();
    let missing = runs.submit(&local(), task_run(&name)).await.unwrap_err();
    assert_eq!(missing.to_string(), "task `nightly` not found");
    tasks.put(&local(), &name, &task_definition(), None).await.unwrap();
    let run = runs.submit(&local(), task_run(&name)).await.unwrap();
    assert_eq!((run.kind, run.task), (RunKind::AutoRun, Some(name.clone())));
    assert_eq!(run.definition, Some(task_definition().digest()));
    tasks.delete(&local(), &name).await.unwrap();
    let run = runs.get(&local(), run.id).await.unwrap().unwrap();
    assert_eq!((run.status, run.started_at), (RunStatus::Canceled, None));
    assert!(log_text(&runs, run.id).await.contains("the task was deleted"));
}

#[tokio::test]
async fn l10_a_run_that_is_archived_outlives_others_with_its_log() {
    let folder = Folder::new();
    let runs = folder.open().await;
    let working = Working::start(&runs, &Script::new([]));
    let archived = runs.submit(&local(), request()).await.unwrap().id;
    let other = runs.submit(&local(), request()).await.unwrap().id;
    for id in [archived, other] {
        ended(&runs, id).await;
    }
    assert!(runs.set_archived(&local(), archived, true).await.unwrap().archived);
    folder.pass(31 * DAY);
    assert_eq!(runs.sweep().await.unwrap().logs, 1);
    assert!(!log_text(&runs, archived).await.is_empty());
    folder.pass(400 * DAY);
    assert_eq!(runs.sweep().await.unwrap().runs, 1);
    assert!(runs.get(&local(), other).await.unwrap().is_none());
    assert!(!log_text(&runs, archived).await.is_empty());
    // Until nobody wants it any more.
    runs.set_archived(&local(), archived, false).await.unwrap();
    assert_eq!(runs.sweep().await.unwrap(), Swept { overdue: 0, logs: 1, runs: 1 });
    working.stop().await;
}

/// Pushes one image, which stands on another.
struct Pushing;

#[async_trait]
impl Executor for Pushing {
    async fn execute(&self, attempt: &Attempt) -> Outcome {
        attempt.running(true).await.unwrap().unwrap();
        let id = attempt.run.id.to_string();
        let image = OutputImage {
            registry: "localhost:5000".into(),
            repository: "app".into(),
            tag: Some(id.clone()),
            digest: Digest::of(id.as_bytes()),
            elsewhere: false,
        };
        Outcome {
            images: vec![image.clone(), image],
            dependencies: Some(serde_json::json!([{ "runtime-dependency": { "tag": id } }])),
            ..Outcome::of(End::Succeeded)
        }
    }
}

#[tokio::test]
async fn runs_are_found_by_what_they_pushed_and_tasks_know_what_they_stand_on() {
    let folder = Folder::new();
    let runs = folder.open().await;
    let tasks = Tasks::open(runs.clone()).await.unwrap();
    let name: TaskName = "nightly".parse().unwrap();
    tasks.put(&local(), &name, &task_definition(), None).await.unwrap();
    let working = Working::start(&runs, &Arc::new(Pushing));
    let id = runs.submit(&local(), task_run(&name)).await.unwrap().id;
    let other = runs.submit(&local(), request()).await.unwrap().id;
    let (run, _) = (ended(&runs, id).await, ended(&runs, other).await);
    let by = async |filter: RunFilter| -> Vec<RunId> {
        let found = runs.list(&local(), &filter, 10).await.unwrap();
        found.into_iter().map(|run| run.id).collect()
    };
    let image = |repository: &str, digest: &Digest| {
        let image = Some((repository.parse().unwrap(), digest.clone()));
        RunFilter { image, ..RunFilter::default() }
    };
    let digest = Digest::of(id.to_string().as_bytes());
    assert_eq!(by(image("app", &digest)).await, [id]);
    assert_eq!(by(image("other", &digest)).await, []);
    assert_eq!(
        by(RunFilter { task: Some("NIGHTLY".parse().unwrap()), ..RunFilter::default() }).await,
        [id]
    );
    assert_eq!(
        by(RunFilter { kind: Some(RunKind::QuickBuild), ..RunFilter::default() }).await,
        [other]
    );
    let times = |from, until| TimeRange { from: Some(from), until: Some(until) };
    let created =
        RunFilter { created: times(run.created_at, run.created_at + 1), ..RunFilter::default() };
    assert_eq!(by(created).await, [id]);
    let finished = RunFilter { finished: times(0, 1), ..RunFilter::default() };
    assert_eq!(by(finished).await, []);
    let task = tasks.get(&local(), &name).await.unwrap().unwrap();
    assert_eq!(task.dependencies, run.dependencies);
    working.stop().await;
}

#[tokio::test]
async fn a_run_that_waits_says_why_and_for_how_long() {
    let folder = Folder::new();
    let runs = folder.open_with(RunSettings { workers: 3, ..settings() }).await;
    let other: RegistryName = "other".parse().unwrap();
    let executor = Script::new((0..5).map(|_| Action::Release));
    let working = Working::start(&runs, &executor);
    let first = runs.submit(&local(), request()).await.unwrap().id;
    wait_for(|| async { status(&runs, first).await == RunStatus::Running }).await;
    folder.pass(10_000);
    executor.release.add_permits(1);
    ended(&runs, first).await;
    assert_eq!(runs.waiting(&local(), first).await.unwrap(), None);
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(runs.submit(&local(), request()).await.unwrap().id);
    }
    wait_for(|| async { status(&runs, ids[1]).await == RunStatus::Running }).await;
    // Two places, a run takes ten seconds and something.
    let waiting = runs.waiting(&local(), ids[2]).await.unwrap().unwrap();
    assert_eq!((waiting.reason, waiting.position), (WaitReason::RegistryBusy { running: 2 }, 1));
    assert_eq!(waiting.expected.unwrap().as_secs(), 5);
    let waiting = runs.waiting(&local(), ids[3]).await.unwrap().unwrap();
    assert_eq!((waiting.position, waiting.expected.unwrap().as_secs()), (2, 10));
    // Another registry has a place left, and then the workers are busy.
    let elsewhere = runs.submit(&other, request()).await.unwrap().id;
    wait_for(|| async {
        runs.get(&other, elsewhere).await.unwrap().unwrap().status == RunStatus::Running
    })
    .await;
    working.kill().await;
    let last = runs.submit(&other, request()).await.unwrap().id;
    let waiting = runs.waiting(&other, last).await.unwrap().unwrap();
    // Those of the busy registry, too, are in front of it.
    assert_eq!((waiting.reason, waiting.position), (WaitReason::WorkersBusy { running: 3 }, 3));
    assert_eq!(waiting.expected, None);
}
