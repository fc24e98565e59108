//! Webhooks: what becomes a delivery, and what becomes of deliveries, with a clock that tests set.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as tests do")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use control::{
    Attempt, BaseImageTrigger, Clock, ControlError, Delivery, DeliveryOutcome, DeliveryState, End,
    Executor, Logs, NewRun, Outcome, PostedAnswer, RunCause, RunSettings, Runs, SecretKeys,
    SigningSecret, TaskDefinition, TaskName, TaskOverrides, TaskStep, TaskText, TaskTriggers,
    Tasks, ToDeliver, Webhook, WebhookFormat, WebhookName, WebhookProperties, Webhooks, Worker,
    WorkerSettings,
};
use oci::{Compression, Digest, Platform, RegistryName};
use serde_json::{Value, json};
use store::{Catalog, Cause, DiskStore, Expected, NewManifest};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const START: i64 = 1_700_000_000_000;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

struct Fixture {
    now: Arc<AtomicI64>,
    runs: Runs,
    tasks: Tasks,
    webhooks: Webhooks,
    catalog: Catalog,
    folder: TempDir,
}

impl Fixture {
    async fn new() -> Self {
        Self::open(tempfile::tempdir().unwrap(), Arc::new(AtomicI64::new(START)), [7; 32]).await
    }

    async fn open(folder: TempDir, now: Arc<AtomicI64>, key: [u8; 32]) -> Self {
        let time = Arc::clone(&now);
        let clock = Clock::new(move || time.load(Ordering::Relaxed));
        let logs = Logs::new(folder.path().join("logs"), 1 << 20, clock.clone());
        let settings = RunSettings {
            concurrency: 2,
            workers: 2,
            attempts_max: 3,
            queue_length_max: 100,
            queue_keep: Duration::from_secs(24 * 3600),
            log_keep: Duration::from_secs(30 * 24 * 3600),
            run_keep: Duration::from_secs(400 * 24 * 3600),
        };
        let db = db::Db::open(&folder.path().join("refit.db")).await.unwrap();
        let keys = SecretKeys::new(key, [[7; 32]]);
        let blobs = DiskStore::open(&folder.path().join("blobs"), db.clone()).await.unwrap();
        let catalog = Catalog::open(db.clone(), Arc::new(blobs)).await.unwrap();
        let runs =
            Runs::open(db, Some(catalog.clone()), logs, clock, keys, settings).await.unwrap();
        let tasks = Tasks::open(runs.clone()).await.unwrap();
        let webhooks = Webhooks::open(runs.clone()).await.unwrap();
        Self { now, runs, tasks, webhooks, catalog, folder }
    }

    /// As another process finds it.
    async fn reopen(self, key: [u8; 32]) -> Self {
        let Self { now, folder, .. } = self;
        Self::open(folder, now, key).await
    }

    fn pass(&self, milliseconds: i64) {
        self.now.fetch_add(milliseconds, Ordering::Relaxed);
    }

    async fn put(&self, name: &str, actions: &[&str], scope: &str) -> Webhook {
        let properties = properties(actions, scope);
        self.webhooks.put(&local(), &webhook_name(name), &properties, None).await.unwrap()
    }

    /// Stores a manifest of its own for each text.
    async fn push(&self, repository: &str, text: &str, tags: &[&str]) -> Digest {
        let bytes = json!({
            "schemaVersion": 2, "mediaType": INDEX, "manifests": [], "annotations": { "a": text },
        });
        let bytes = serde_json::to_vec(&bytes).unwrap();
        let digest = Digest::of(&bytes);
        let manifest = oci::Manifest::parse(&bytes, Some(INDEX)).unwrap();
        let new = NewManifest {
            digest: &digest,
            media_type: INDEX,
            manifest: &manifest,
            bytes: bytes.into(),
        };
        let tags: Vec<_> = tags.iter().map(|tag| (tag.parse().unwrap(), Expected::Any)).collect();
        let repository = repository.parse().unwrap();
        self.catalog.put_manifest(&local(), &repository, new, &tags, &cause()).await.unwrap();
        digest
    }

    async fn follow(&self) {
        self.webhooks.follow(&host_of).await.unwrap();
    }

    async fn deliveries(&self, name: &str) -> Vec<Delivery> {
        let mut all = self.webhooks.deliveries(&local(), &webhook_name(name), 100).await.unwrap();
        all.reverse();
        all
    }

    /// What a webhook is told, the oldest first.
    async fn told(&self, name: &str) -> Vec<Value> {
        self.follow().await;
        let all = self.deliveries(name).await.into_iter();
        all.map(|delivery| serde_json::from_str(&delivery.body).unwrap()).collect()
    }

    /// As `action repository:tag`, or `action repository` without one.
    async fn images(&self, name: &str) -> Vec<String> {
        let told = self.told(name).await.into_iter().map(|body| {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let (action, target) = (text(&body["action"]), &body["target"]);
            let tag = target.get("tag").map(|tag| format!(":{}", text(tag))).unwrap_or_default();
            format!("{action} {}{tag}", text(&target["repository"]))
        });
        told.collect()
    }

    async fn claim(&self) -> Vec<ToDeliver> {
        self.webhooks.claim().await.unwrap()
    }

    async fn run(&self, cause: Option<RunCause>) -> control::Run {
        let name: TaskName = "nightly".parse().unwrap();
        let known = self.tasks.get(&local(), &name).await.unwrap();
        self.tasks.put(&local(), &name, &definition(), known.as_ref()).await.unwrap();
        let run = definition().run(&name, TaskOverrides::default(), Compression::default());
        let run = NewRun { cause, ..run.unwrap() };
        self.runs.submit(&local(), run).await.unwrap()
    }

    /// Runs a task as it is, with this end.
    async fn end_run(&self, name: &str, end: End) {
        let name: TaskName = name.parse().unwrap();
        let task = self.tasks.get(&local(), &name).await.unwrap().unwrap();
        let run = task.definition.run(&name, TaskOverrides::default(), Compression::default());
        let run = self.runs.submit(&local(), run.unwrap()).await.unwrap();
        let settings = WorkerSettings {
            concurrency: 1,
            shutdown_grace: Duration::from_secs(10),
            cancel_grace: Duration::from_secs(10),
        };
        let shutdown = CancellationToken::new();
        let worker = Worker::new(Arc::new(self.runs.clone()), Arc::new(Ends(end)), settings);
        let working = tokio::spawn(worker.run(shutdown.clone()));
        let mut ends = self.runs.ends();
        while !self.runs.get(&local(), run.id).await.unwrap().unwrap().status.is_final() {
            ends.changed().await.unwrap();
        }
        shutdown.cancel();
        working.await.unwrap();
    }

    fn database_has(&self, text: &str) -> bool {
        let files = ["refit.db", "refit.db-wal"].map(|name| self.folder.path().join(name));
        let files = files.iter().filter_map(|file| std::fs::read(file).ok());
        let text = text.as_bytes();
        files.into_iter().any(|bytes| bytes.windows(text.len()).any(|part| part == text))
    }
}

/// Each run comes to the same end.
struct Ends(End);

#[async_trait]
impl Executor for Ends {
    async fn execute(&self, attempt: &Attempt) -> Outcome {
        attempt.running(true).await.unwrap().unwrap();
        Outcome::of(self.0.clone())
    }
}

fn local() -> RegistryName {
    RegistryName::default()
}

fn host_of(_: &RegistryName) -> String {
    "registry.example".to_owned()
}

fn webhook_name(name: &str) -> WebhookName {
    name.parse().unwrap()
}

fn cause() -> Cause {
    Cause::Push { principal: "ann".into() }
}

fn properties(actions: &[&str], scope: &str) -> WebhookProperties {
    WebhookProperties {
        address: "https://example.com/hunter2".into(),
        headers: BTreeMap::from([("X-Key".to_owned(), "hunter2-header".to_owned())]),
        signing_secret: Some(SigningSecret::new("hunter2-signing-secret".into()).unwrap()),
        actions: actions.iter().map(|action| action.parse().unwrap()).collect(),
        enabled: true,
        scope: scope.parse().unwrap(),
        format: WebhookFormat::Acr,
        overdue_days: None,
    }
}

fn definition() -> TaskDefinition {
    let step = TaskStep::File {
        file: TaskText::Inline("steps: []".into()),
        values_file: None,
        values: Vec::new(),
    };
    TaskDefinition::new(Platform::new("linux", "amd64", None), Duration::from_secs(3600), step)
}

fn answered(status: u16, retry_after: Option<u64>) -> DeliveryOutcome {
    DeliveryOutcome::Answered(PostedAnswer {
        status,
        headers: vec![("x-echo".into(), "your key is hunter2-header".into())],
        body: format!("hunter2-signing-secret {}", "x".repeat(10_000)),
        retry_after: retry_after.map(Duration::from_secs),
    })
}

#[tokio::test]
async fn manifests_are_told_by_tag_by_digest_and_when_they_are_deleted() {
    let f = Fixture::new().await;
    f.push("app", "before", &["v0"]).await;
    f.put("hook1", &["push", "delete"], "").await;
    let digest = f.push("app", "one", &["v1", "v2"]).await;
    f.push("app", "two", &[]).await;
    let told = f.images("hook1").await;
    assert_eq!(told, ["push app:v1", "push app:v2", "push app"]);
    let body = &f.told("hook1").await[0];
    assert_eq!(body["target"]["digest"], json!(digest));
    assert_eq!(body["target"]["size"], body["target"]["length"]);
    assert_eq!(body["target"]["mediaType"], INDEX);
    assert_eq!(body["request"]["host"], "registry.example");
    assert_eq!(body["actor"]["name"], "ann");
    assert_eq!(body["id"], json!(f.deliveries("hook1").await[0].id));
    // N1: the manifest is still there. N2: it goes with both tags, once.
    let (app, tag) = ("app".parse().unwrap(), "v1".parse().unwrap());
    f.catalog.move_tag(&local(), &app, &tag, &Expected::Any, None, &cause()).await.unwrap();
    assert_eq!(f.images("hook1").await.len(), 3);
    f.push("app", "one", &["v1"]).await;
    f.catalog.delete_manifest(&local(), &app, &digest, &cause()).await.unwrap();
    let told = f.images("hook1").await;
    assert_eq!(told[3..], ["push app:v1", "delete app"]);
    assert_eq!(f.told("hook1").await[4]["target"].get("tag"), None);
    // One for each manifest that is left.
    f.catalog.delete_repository(&local(), &app, &cause()).await.unwrap();
    assert_eq!(f.images("hook1").await[5..], ["delete app", "delete app"]);
}

#[tokio::test]
async fn a_webhook_is_told_what_it_is_about() {
    let f = Fixture::new().await;
    f.put("latest", &["push", "delete"], "foo").await;
    f.put("tagged", &["push", "delete"], "foo:bar").await;
    f.put("whole", &["push"], "foo:*").await;
    f.put("prefix", &["delete"], "fo*").await;
    f.push("foo", "1", &["v2"]).await;
    f.push("foo", "2", &["latest"]).await;
    let bar = f.push("foo", "3", &["bar", "more"]).await;
    f.push("fool", "4", &["latest"]).await;
    let foo = "foo".parse().unwrap();
    f.catalog.delete_manifest(&local(), &foo, &bar, &cause()).await.unwrap();
    // N3.
    assert_eq!(f.images("latest").await, ["push foo:latest"]);
    assert_eq!(f.images("tagged").await, ["push foo:bar", "delete foo"]);
    let whole = ["push foo:v2", "push foo:latest", "push foo:bar", "push foo:more"];
    assert_eq!(f.images("whole").await, whole);
    assert_eq!(f.images("prefix").await, ["delete foo"]);
}

#[tokio::test]
async fn runs_are_told_when_triggers_queue_them_and_when_they_end() {
    let f = Fixture::new().await;
    f.put("hook1", &["run_fired", "run_finished", "run_failed"], "").await;
    f.put("scoped", &["run_finished"], "app:*").await;
    let timer = RunCause::Timer { name: "t1".into(), occurrence: START, missed: 0 };
    let fired = f.run(Some(timer)).await;
    f.run(None).await;
    f.runs.cancel(&local(), fired.id).await.unwrap();
    // Nobody takes it.
    f.pass(25 * 3600 * 1000);
    f.runs.sweep().await.unwrap();
    let f = f.reopen([7; 32]).await;
    let told = f.told("hook1").await;
    let told: Vec<_> = told
        .iter()
        .map(|body| (body["action"].as_str().unwrap(), body["run"]["status"].as_str().unwrap()))
        .collect();
    let expected = [
        ("run_fired", "Queued"),
        ("run_finished", "Canceled"),
        ("run_finished", "Error"),
        ("run_failed", "Error"),
    ];
    assert_eq!(told, expected);
    let first = &f.told("hook1").await[0]["run"];
    assert_eq!((&first["trigger"], &first["task"]), (&json!("timer"), &json!("nightly")));
    assert_eq!(first["runId"], json!(fired.id));
    assert_eq!(f.told("scoped").await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_task_that_has_not_succeeded_for_long_is_told_once() {
    const DAY: i64 = 24 * 3600 * 1000;
    let f = Fixture::new().await;
    let due = WebhookProperties { overdue_days: Some(3), ..properties(&["task_overdue"], "") };
    f.webhooks.put(&local(), &webhook_name("hook1"), &due, None).await.unwrap();
    let base =
        BaseImageTrigger { name: "b".into(), enabled: true, buildtime: false, urgent: false };
    let triggers = TaskTriggers { base_image: Some(base), ..TaskTriggers::default() };
    let triggered = TaskDefinition { triggers, ..definition() };
    let disabled = TaskDefinition { enabled: false, ..triggered.clone() };
    for (name, definition) in
        [("nightly", &triggered), ("disabled", &disabled), ("manual", &definition())]
    {
        f.tasks.put(&local(), &name.parse().unwrap(), definition, None).await.unwrap();
    }
    let overdue = async |f: &Fixture| {
        f.webhooks.tell_overdue(&host_of).await.unwrap();
        f.told("hook1").await
    };
    f.pass(3 * DAY - 1);
    assert_eq!(overdue(&f).await, Vec::<Value>::new());
    f.pass(1);
    let told = overdue(&f).await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["action"], "task_overdue");
    assert_eq!(told[0]["task"], json!({ "name": "nightly", "lastSuccess": null, "days": 3 }));
    f.pass(DAY);
    let f = f.reopen([7; 32]).await;
    assert_eq!(overdue(&f).await.len(), 1);
    // One that fails changes nothing; one that succeeds begins it anew.
    f.end_run("nightly", End::Failed("it".into())).await;
    assert_eq!(overdue(&f).await.len(), 1);
    f.end_run("nightly", End::Succeeded).await;
    f.pass(3 * DAY - 1);
    assert_eq!(overdue(&f).await.len(), 1);
    f.pass(1);
    let told = overdue(&f).await;
    assert_eq!(told.len(), 2);
    assert!(told[1]["task"]["lastSuccess"].is_string());
}

#[tokio::test]
async fn what_is_not_taken_is_tried_again_and_then_given_up() {
    let f = Fixture::new().await;
    f.put("hook1", &["push"], "").await;
    f.push("app", "one", &["v1"]).await;
    f.follow().await;
    for (outcome, pause) in [
        (answered(503, None), 5_000),
        // A receiver may ask for ten minutes at most.
        (answered(429, Some(100_000)), 600_000),
    ] {
        let due = f.claim().await;
        let [delivery] = &due[..] else { panic!("{} are due", due.len()) };
        // Nobody else has it.
        assert!(f.claim().await.is_empty());
        assert_eq!(f.webhooks.next_delivery().await.unwrap(), None);
        f.webhooks.note(delivery, outcome).await.unwrap();
        drop(due);
        let next = f.webhooks.next_delivery().await.unwrap().unwrap();
        assert_eq!(next - f.now.load(Ordering::Relaxed), pause);
        assert!(f.claim().await.is_empty());
        f.pass(pause);
    }
    let f = f.reopen([7; 32]).await;
    let due = f.claim().await;
    let reason = "`example.com` took longer than 10 s".to_owned();
    let outcome = DeliveryOutcome::Failed { reason, is_final: false };
    f.webhooks.note(&due[0], outcome).await.unwrap();
    drop(due);
    assert_eq!(f.webhooks.next_delivery().await.unwrap(), None);
    let delivery = &f.deliveries("hook1").await[0];
    assert_eq!((delivery.state, delivery.attempts.len()), (DeliveryState::Failed, 3));
    let DeliveryOutcome::Answered(answer) = &delivery.attempts[0].outcome else { panic!() };
    assert_eq!((answer.status, answer.body.len()), (503, 4096));
}

#[tokio::test]
async fn a_delivery_is_signed_and_tells_no_secret_afterwards() {
    let f = Fixture::new().await;
    f.put("hook1", &["push"], "").await;
    f.push("app", "one", &["v1"]).await;
    f.follow().await;
    let due = f.claim().await;
    let delivery = &due[0];
    assert_eq!(delivery.address, "https://example.com/hunter2");
    let header = |name: &str| {
        let found = delivery.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    assert_eq!(header("X-Key"), "hunter2-header");
    assert_eq!(header("webhook-timestamp"), (START / 1000).to_string());
    let signed = format!("{}.{}.{}", header("webhook-id"), START / 1000, delivery.body);
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"hunter2-signing-secret");
    let tag = ring::hmac::sign(&key, signed.as_bytes());
    let tag = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, tag.as_ref());
    assert_eq!(header("webhook-signature"), format!("v1,{tag}"));
    f.webhooks.note(delivery, answered(200, None)).await.unwrap();
    drop(due);
    let all = f.deliveries("hook1").await;
    assert_eq!(all[0].state, DeliveryState::Delivered);
    assert!(!format!("{all:?}").contains("hunter2"), "{all:?}");
    assert_eq!(all[0].attempts[0].headers["X-Key"], "***");
    // Neither does the database, also after its key was changed.
    let f = f.reopen([8; 32]).await;
    let webhook = f.webhooks.get(&local(), &webhook_name("HOOK1")).await.unwrap().unwrap();
    assert_eq!(webhook.properties, properties(&["push"], ""));
    assert!(!format!("{webhook:?}").contains("hunter2"), "{webhook:?}");
    assert!(!f.database_has("hunter2"));
}

#[tokio::test]
async fn a_slow_receiver_holds_up_no_other() {
    let f = Fixture::new().await;
    for name in ["slow1", "slow2", "quick"] {
        f.put(name, &["push"], &format!("{name}:*")).await;
    }
    for number in 0..20 {
        f.push("slow1", &format!("a{number}"), &[]).await;
        f.push("slow2", &format!("b{number}"), &[]).await;
    }
    f.follow().await;
    let slow = f.claim().await;
    assert_eq!(slow.len(), 8);
    assert!(f.claim().await.is_empty());
    f.push("quick", "c", &[]).await;
    f.follow().await;
    assert_eq!(f.claim().await.len(), 1);
}

#[tokio::test]
async fn webhooks_take_turns() {
    let f = Fixture::new().await;
    let names: Vec<String> = (0..40).map(|number| format!("hook{number:02}")).collect();
    for name in &names {
        f.put(name, &["push"], &format!("{name}:*")).await;
        for text in ["a", "b", "c"] {
            f.push(name, &format!("{name} {text}"), &[]).await;
        }
    }
    f.follow().await;
    let mut served = std::collections::BTreeSet::new();
    for _ in 0..2 {
        let due = f.claim().await;
        assert_eq!(due.len(), 24);
        served.extend(due.iter().map(|delivery| {
            let body: Value = serde_json::from_str(&delivery.body).unwrap();
            body["target"]["repository"].as_str().unwrap().to_owned()
        }));
    }
    assert_eq!(served.into_iter().collect::<Vec<_>>(), names);
}

#[tokio::test]
async fn what_a_receiver_repeats_is_hidden() {
    let f = Fixture::new().await;
    let mut secret = properties(&["push"], "");
    secret.address = "https://me:hunter2%40x@example.com/".into();
    secret.headers = BTreeMap::from([("Authorization".into(), "Bearer hunter2-token".into())]);
    f.webhooks.put(&local(), &webhook_name("hook1"), &secret, None).await.unwrap();
    f.push("app", "one", &["v1"]).await;
    f.follow().await;
    let due = f.claim().await;
    let basic = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, "me:hunter2@x");
    let outcome = DeliveryOutcome::Answered(PostedAnswer {
        status: 200,
        headers: vec![("x-was".into(), format!("Basic {basic}"))],
        body: format!("no hunter2-token, hunter2@x, hunter2%40x nor {basic}"),
        retry_after: None,
    });
    f.webhooks.note(&due[0], outcome).await.unwrap();
    let told = format!("{:?}", f.deliveries("hook1").await);
    assert!(!told.contains("hunter2") && !told.contains(&basic), "{told}");
}

#[tokio::test]
async fn what_is_old_or_disabled_or_deleted_is_not_told() {
    let f = Fixture::new().await;
    let webhook = f.put("hook1", &["push"], "").await;
    f.push("app", "one", &["v1"]).await;
    f.follow().await;
    let disabled = WebhookProperties { enabled: false, ..webhook.properties.clone() };
    let name = webhook_name("hook1");
    let put = f.webhooks.put(&local(), &name, &disabled, Some(&webhook)).await;
    let webhook_now = put.unwrap();
    assert!(f.claim().await.is_empty());
    let delivery = &f.deliveries("hook1").await[0];
    let DeliveryOutcome::Failed { reason, .. } = &delivery.attempts[0].outcome else { panic!() };
    assert_eq!(reason, "the webhook was disabled");
    f.push("app", "two", &["v2"]).await;
    assert_eq!(f.told("hook1").await.len(), 1);
    // Somebody else has changed it.
    let late = f.webhooks.put(&local(), &name, &disabled, Some(&webhook)).await;
    assert!(matches!(late, Err(ControlError::Conflict { .. })));
    // Asked for, it is told all the same.
    f.webhooks.ping(&webhook_now, &host_of).await.unwrap();
    assert_eq!(f.claim().await.len(), 1);
    assert_eq!(f.told("hook1").await[1]["action"], "ping");
    f.pass(8 * 24 * 3600 * 1000);
    f.webhooks.sweep().await.unwrap();
    assert!(f.deliveries("hook1").await.is_empty());
    f.webhooks.delete(&local(), &name).await.unwrap();
    let again = f.webhooks.delete(&local(), &name).await;
    assert!(matches!(again, Err(ControlError::NotFound { .. })));
}

#[tokio::test]
async fn a_cloud_event_says_what_it_is_about() {
    let f = Fixture::new().await;
    let properties =
        WebhookProperties { format: WebhookFormat::CloudEvents, ..properties(&["push"], "") };
    f.webhooks.put(&local(), &webhook_name("hook1"), &properties, None).await.unwrap();
    f.push("app", "one", &["v1"]).await;
    let event = &f.told("hook1").await[0];
    for (name, expected) in [
        ("specversion", "1.0"),
        ("source", "https://registry.example"),
        ("type", "refit.push"),
        ("subject", "app:v1"),
        ("datacontenttype", "application/json"),
    ] {
        assert_eq!(event[name], expected, "{event}");
    }
    assert_eq!(event["id"], event["data"]["id"]);
    assert_eq!(event["time"], event["data"]["timestamp"]);
    assert_eq!(event["data"]["target"]["tag"], "v1");
    let due = f.claim().await;
    let form = ("Content-Type".to_owned(), "application/cloudevents+json".to_owned());
    assert!(due[0].headers.contains(&form));
}

#[tokio::test]
async fn a_webhook_that_cannot_be_right_is_refused() {
    let f = Fixture::new().await;
    let put = async |properties: WebhookProperties| {
        let result = f.webhooks.put(&local(), &webhook_name("hook1"), &properties, None).await;
        result.map(drop).unwrap_err().to_string()
    };
    assert!(put(properties(&[], "")).await.contains("needs actions"));
    assert!(put(properties(&["push", "ping"], "")).await.contains("`ping`"));
    assert!(put(properties(&["run_fired"], "app:*")).await.contains("no scope holds it"));
    assert!(put(properties(&["task_overdue"], "app:*")).await.contains("no scope holds it"));
    let never = WebhookProperties { overdue_days: Some(0), ..properties(&["task_overdue"], "") };
    assert!(put(never).await.contains("1 to 365 days"));
    let mut own = properties(&["push"], "");
    own.headers.insert("Webhook-Id".into(), "1".into());
    assert!(put(own).await.contains("itself"));
}
