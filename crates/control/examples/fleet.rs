//! What a fleet of tasks costs: `cargo run --release -p control --example fleet DIR`.
//!
//! Fills two registries with 10,000 tasks each, whose images stand on each other in five levels, and prints how long these
//! take, on the disk of `DIR`: a plan over all of them; a push of a base until the run of the one task that stands on it is in
//! the queue, which is what the server does on a push; and what a server that begins does before it knows
//! that nothing is to be done.

#![expect(clippy::print_stdout, reason = "the figures are what it is for")]
#![expect(clippy::unwrap_used, reason = "a measurement that fails is no measurement")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use control::{
    BaseImageTrigger, Clock, ImageTag, Logs, PlanRequest, RunFilter, RunSettings, Runs, SecretKeys,
    TaskDefinition, TaskStep, TaskText, TaskTriggers, Tasks, Triggers, WatchSettings,
};
use db::Db;
use oci::{Compression, Digest, Manifest, Platform, RegistryName};
use store::{Catalog, Cause, DiskStore, Expected, NewManifest};

const TASKS: usize = 10_000;
/// Of the first levels; the rest is of the last one.
const LEVELS: [usize; 4] = [1, 9, 90, 900];
const PUSHES: usize = 300;
const HOST: &str = "localhost:5000";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What a server has of it.
struct Server {
    db: Db,
    runs: Runs,
    tasks: Tasks,
    triggers: Triggers,
    catalog: Catalog,
}

#[tokio::main]
async fn main() {
    let parent = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(parent).unwrap();
    let server = open(folder.path()).await;
    let registries = ["first", "second"].map(|name| name.parse::<RegistryName>().unwrap());
    for registry in &registries {
        fill(&server, registry).await;
    }
    plan(&server, &registries[0]).await;
    pushes(&server, &registries[0]).await;
    drop(server);
    let began = Instant::now();
    let server = open(folder.path()).await;
    let fired = server.triggers.fire_bases(&own).await.unwrap();
    let took = began.elapsed();
    println!("beginning with {} tasks: {took:.0?}, {} runs", TASKS * 2, fired.runs);
}

fn own(host: &str) -> Option<RegistryName> {
    (host == HOST).then(|| "first".parse().unwrap())
}

/// Of the clock: bases start a task only so often within an hour.
static LATER: AtomicI64 = AtomicI64::new(0);
const BETWEEN_PUSHES: Duration = Duration::from_secs(600);

async fn open(folder: &Path) -> Server {
    let now = || jiff::Timestamp::now().as_millisecond() + LATER.load(Ordering::Relaxed);
    let clock = Clock::new(now);
    let logs = Logs::new(folder.join("logs"), 1 << 20, clock.clone());
    let settings = RunSettings {
        concurrency: 2,
        workers: 2,
        attempts_max: 3,
        queue_length_max: 100_000,
        queue_keep: Duration::from_secs(24 * 3600),
        log_keep: Duration::from_secs(24 * 3600),
        run_keep: Duration::from_secs(24 * 3600),
    };
    let db = Db::open(&folder.join("refit.db")).await.unwrap();
    let blobs = DiskStore::open(&folder.join("blobs"), db.clone()).await.unwrap();
    let catalog = Catalog::open(db.clone(), Arc::new(blobs)).await.unwrap();
    let keys = SecretKeys::new([7; 32], []);
    let runs = Runs::open(db.clone(), Some(catalog.clone()), logs, clock, keys, settings);
    let runs = runs.await.unwrap();
    let tasks = Tasks::open(runs.clone()).await.unwrap();
    let (poll, settle) = (Duration::from_secs(300), Duration::from_secs(30));
    let watching = WatchSettings { period: Duration::from_secs(1800), settle };
    let triggers = Triggers::open(tasks.clone(), Compression::default(), poll, watching);
    let triggers = triggers.await.unwrap();
    Server { db, runs, tasks, triggers, catalog }
}

/// The name of a task, and that of the task whose image it stands on.
fn chain() -> impl Iterator<Item = (usize, Option<usize>)> {
    let mut first = 0;
    let mut above = None;
    let counts = LEVELS.into_iter().chain([TASKS - LEVELS.iter().sum::<usize>()]);
    counts.flat_map(move |count| {
        let (begin, parents) = (first, above);
        (first, above) = (first + count, Some((begin, count)));
        (begin..begin + count).map(move |number| {
            let parent = parents.map(|(parent, count)| parent + (number - begin) % count);
            (number, parent)
        })
    })
}

async fn fill(server: &Server, registry: &RegistryName) {
    let base = push(server, registry, "os", 0).await;
    for (number, _) in chain() {
        let name = format!("task{number:05}").parse().unwrap();
        server.tasks.put(registry, &name, &definition(), None).await.unwrap();
    }
    // What runs would tell.
    let mut transaction = server.db.begin().await.unwrap();
    for (number, parent) in chain() {
        let task = format!("task{number:05}");
        let repository = parent.map_or("os".to_owned(), |parent| format!("app{parent:05}"));
        for (statement, values) in [
            (
                "INSERT INTO trigger_bases (registry, name_key, host, repository, tag, is_runtime,
                    digest, manifests) VALUES ($1, $2, $3, $4, '1', TRUE, $5, '[]')",
                [task.clone(), HOST.to_owned(), repository, base.to_string()],
            ),
            (
                "INSERT INTO trigger_outputs (registry, name_key, host, repository, tag, digest)
                 VALUES ($1, $2, '', $3, '1', $4 || $5)",
                [task.clone(), format!("app{number:05}"), base.to_string(), String::new()],
            ),
        ] {
            let [second, third, fourth, fifth] = values;
            sqlx::query(statement)
                .bind(registry.as_str())
                .bind(second)
                .bind(third)
                .bind(fourth)
                .bind(fifth)
                .execute(&mut *transaction)
                .await
                .unwrap();
        }
    }
    transaction.commit().await.unwrap();
    server.triggers.fire_bases(&own).await.unwrap();
}

async fn plan(server: &Server, registry: &RegistryName) {
    let base = ImageTag::own("os", "1");
    let request = PlanRequest { base, to: None, members: Vec::new(), canary: 10 };
    let mut took = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        let plan = server.triggers.plan(registry, &own, &request, "somebody").await.unwrap();
        took.push(began.elapsed());
        let levels = plan.items.iter().map(|item| item.drawn.level).max();
        assert_eq!((plan.items.len(), levels), (TASKS, Some(LEVELS.len() + 1)));
    }
    took.sort();
    println!("a plan over {TASKS} tasks in {} levels: median {:.0?}", LEVELS.len() + 1, took[2]);
}

/// The base moves again and again: one task stands on it itself.
async fn pushes(server: &Server, registry: &RegistryName) {
    let mut took = Vec::new();
    for number in 1..=PUSHES {
        LATER.fetch_add(BETWEEN_PUSHES.as_millis() as i64, Ordering::Relaxed);
        let began = Instant::now();
        push(server, registry, "os", number).await;
        let fired = server.triggers.fire_bases(&own).await.unwrap();
        took.push(began.elapsed());
        assert_eq!(fired.runs, 1);
        let runs = server.runs.list(registry, &RunFilter::default(), 1).await.unwrap();
        server.runs.cancel(registry, runs[0].id).await.unwrap();
    }
    took.sort();
    let (median, late) = (took[PUSHES / 2], took[PUSHES * 99 / 100]);
    println!("push until the run is queued, {TASKS} tasks: median {median:.1?}, p99 {late:.1?}");
}

async fn push(server: &Server, registry: &RegistryName, name: &str, number: usize) -> Digest {
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[],"annotations":{{"n":"{number}"}}}}"#
    );
    let bytes = text.into_bytes();
    let digest = Digest::of(&bytes);
    let manifest = Manifest::parse(&bytes, Some(INDEX)).unwrap();
    let (tag, by) = ("1".parse().unwrap(), Cause::Push { principal: "somebody".into() });
    let new = NewManifest {
        digest: &digest,
        media_type: INDEX,
        manifest: &manifest,
        bytes: bytes.into(),
    };
    let tags = [(tag, Expected::Any)];
    let repository = name.parse().unwrap();
    server.catalog.put_manifest(registry, &repository, new, &tags, &by).await.unwrap();
    digest
}

fn definition() -> TaskDefinition {
    let trigger =
        BaseImageTrigger { name: "base".into(), enabled: true, buildtime: false, urgent: false };
    let step = TaskStep::File {
        file: TaskText::Inline("steps: []".into()),
        values_file: None,
        values: Vec::new(),
    };
    TaskDefinition {
        triggers: TaskTriggers { base_image: Some(trigger), ..TaskTriggers::default() },
        ..TaskDefinition::new(
            Platform::new("linux", "amd64", None),
            Duration::from_secs(3600),
            step,
        )
    }
}
