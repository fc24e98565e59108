//! Runs that agents execute: who gets which, what becomes of one whose agent is lost.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as tests do")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use control::{
    AgentClaim, Attempt, BuildRequest, Clock, ContextSource, ControlError, End, EventKind, Lane,
    LogKey, Logs, NewRun, Outcome, Pool, PoolName, PoolProperties, Pools, Queue as _, RunFilter,
    RunId, RunSettings, RunStatus, Runs, SecretKeys, Sent, TaskRequest, TaskText, Tier, WaitReason,
};
use oci::{Digest, Platform, RegistryName};
use tempfile::TempDir;

fn local() -> RegistryName {
    RegistryName::default()
}

struct Server {
    folder: TempDir,
    now: Arc<AtomicI64>,
    runs: Runs,
    pools: Pools,
}

impl Server {
    async fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let now = Arc::new(AtomicI64::new(1_700_000_000_000));
        let (runs, pools) = open(&folder, &now).await;
        Self { folder, now, runs, pools }
    }

    async fn restart(&mut self) {
        (self.runs, self.pools) = open(&self.folder, &self.now).await;
        self.runs.take_over().await.unwrap();
    }

    fn pass(&self, seconds: i64) {
        self.now.fetch_add(seconds * 1000, Ordering::SeqCst);
    }

    async fn pool(&self, name: &str, count: u32) -> Pool {
        let properties = PoolProperties { tier: Tier::S2, subnet: None, tags: BTreeMap::default() };
        self.pools.put(&local(), &name.parse().unwrap(), count, &properties).await.unwrap()
    }

    async fn submit(&self, pool: Option<&str>, lane: Lane) -> RunId {
        let pool = pool.map(|name| name.parse::<PoolName>().unwrap());
        let run = NewRun { pool, lane, ..NewRun::from(request()) };
        self.runs.submit(&local(), run).await.unwrap().id
    }

    async fn claim(&self, pool: &Pool) -> Option<Attempt> {
        self.claim_as(pool, "agent-1", &[]).await
    }

    async fn claim_as(&self, pool: &Pool, agent: &str, waiting: &[String]) -> Option<Attempt> {
        let claim = AgentClaim { pool, agent, platform: "linux/amd64", waiting };
        let has_work = self.runs.has_work_for(&claim).await.unwrap();
        let claimed = self.runs.claim_for(&claim).await.unwrap();
        // What ends at the claim was work, too.
        assert!(has_work || claimed.is_none());
        claimed
    }

    async fn status(&self, id: RunId) -> RunStatus {
        self.runs.get(&local(), id).await.unwrap().unwrap().status
    }

    async fn log(&self, id: RunId) -> String {
        let key = LogKey { registry: local(), run: id };
        let mut reader = self.runs.logs().read_text(&key, 0, true).await.unwrap();
        let mut text = Vec::new();
        while let Some(chunk) = reader.next().await.unwrap() {
            text.extend_from_slice(&chunk);
        }
        String::from_utf8(text).unwrap()
    }
}

async fn open(folder: &TempDir, now: &Arc<AtomicI64>) -> (Runs, Pools) {
    let db = db::Db::open(&folder.path().join("refit.db")).await.unwrap();
    let now = Arc::clone(now);
    let clock = Clock::new(move || now.load(Ordering::SeqCst));
    let logs = Logs::new(folder.path().join("logs"), 1 << 20, clock.clone());
    let settings = RunSettings {
        concurrency: 1,
        workers: 1,
        attempts_max: 2,
        queue_length_max: 100,
        queue_keep: Duration::from_secs(24 * 3600),
        log_keep: Duration::from_secs(24 * 3600),
        run_keep: Duration::from_secs(24 * 3600),
    };
    let runs =
        Runs::open(db, None, logs, clock, SecretKeys::new([7; 32], []), settings).await.unwrap();
    let pools = Pools::new(runs.clone());
    (runs, pools)
}

fn build_request() -> BuildRequest {
    BuildRequest {
        image_names: Vec::new(),
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

fn request() -> TaskRequest {
    TaskRequest {
        file: TaskText::Inline("steps: []".into()),
        values_file: None,
        values: Vec::new(),
        context: None,
        timeout: Duration::from_secs(3600),
        platform: Platform::new("linux", "amd64", None),
        archived: false,
        logins: control::Logins::default(),
        egress: Vec::new(),
    }
}

#[tokio::test]
async fn a_pool_can_be_changed_only_where_it_is_not_fixed() {
    let server = Server::new().await;
    let pool = server.pool("arm", 3).await;
    let other = server.pool("ARM", 0).await;
    assert_eq!((other.name.as_str(), other.count, other.token_serial), ("arm", 0, 1));
    let tier = PoolProperties { tier: Tier::S3, ..pool.properties.clone() };
    let error = server.pools.put(&local(), &pool.name, 1, &tier).await.unwrap_err();
    assert!(matches!(error, ControlError::Conflict { .. }), "{error}");
    let renewed = server.pools.renew_token(&local(), &pool.name).await.unwrap();
    assert_eq!((renewed.token_serial, renewed.count), (2, 0));
    server.pool("zoo", 1).await;
    let names =
        |pools: Vec<Pool>| pools.iter().map(|pool| pool.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(server.pools.list(&local(), None, 10).await.unwrap()), ["arm", "zoo"]);
    assert_eq!(names(server.pools.list(&local(), Some(&pool.name), 10).await.unwrap()), ["zoo"]);
    let unknown: PoolName = "none".parse().unwrap();
    let error = server.pools.delete(&local(), &unknown).await.unwrap_err();
    assert!(matches!(error, ControlError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn a_run_goes_to_an_agent_of_its_pool_and_to_nobody_else() {
    let server = Server::new().await;
    let (arm, zoo) = (server.pool("arm", 1).await, server.pool("zoo", 1).await);
    let missing = NewRun { pool: Some("none".parse().unwrap()), ..NewRun::from(request()) };
    let error = server.runs.submit(&local(), missing).await.unwrap_err();
    assert!(error.to_string().contains("agent pool `none` not found"), "{error}");
    let id = server.submit(Some("Arm"), Lane::People).await;
    assert!(server.claim(&zoo).await.is_none());
    assert!(server.runs.claim().await.unwrap().is_none());
    let waiting = server.runs.waiting(&local(), id).await.unwrap().unwrap();
    assert_eq!((waiting.reason, waiting.position), (WaitReason::NoAgent, 1));
    let second = server.submit(Some("arm"), Lane::People).await;
    let attempt = server.claim(&arm).await.unwrap();
    assert_eq!((attempt.run.id, attempt.run.agent.as_deref()), (id, Some("agent-1")));
    // The pool has one place.
    assert!(server.claim(&arm).await.is_none());
    let waiting = server.runs.waiting(&local(), second).await.unwrap().unwrap();
    assert_eq!(waiting.reason, WaitReason::PoolBusy { running: 1 });
    assert_eq!(server.pools.waiting(&arm).await.unwrap(), 1);
    assert_eq!(server.pools.under_way(&arm).await.unwrap(), [(id, "agent-1".to_owned())]);
    let outcome = Outcome::of(End::Succeeded);
    assert!(attempt.queue.finish(&attempt, RunStatus::Succeeded, None, &outcome).await.unwrap());
    assert_eq!(server.claim(&arm).await.unwrap().run.id, second);
    let arm_only = RunFilter { pool: Some(arm.name.clone()), ..RunFilter::default() };
    let found = server.runs.list(&local(), &arm_only, 10).await.unwrap();
    assert_eq!(found.iter().map(|run| run.id).collect::<Vec<_>>(), [second, id]);
}

#[tokio::test]
async fn the_pool_default_helps_the_server() {
    let server = Server::new().await;
    let default = server.pool("default", 1).await;
    let ids = [
        server.submit(None, Lane::People).await,
        server.submit(None, Lane::People).await,
        server.submit(None, Lane::People).await,
    ];
    assert_eq!(server.claim(&default).await.unwrap().run.id, ids[0]);
    // The server's own place does not count those of agents, and theirs not its own.
    let own = server.runs.claim().await.unwrap().unwrap();
    assert_eq!((own.run.id, own.run.agent.as_deref()), (ids[1], None));
    assert!(server.claim(&default).await.is_none());
    assert!(server.runs.claim().await.unwrap().is_none());
    assert_eq!(server.status(ids[2]).await, RunStatus::Queued);
}

#[tokio::test]
async fn people_go_first_and_waves_last() {
    let server = Server::new().await;
    let arm = server.pool("arm", 9).await;
    let mut ids = Vec::new();
    for lane in [Lane::Waves, Lane::Triggers, Lane::People, Lane::Waves] {
        ids.push(server.submit(Some("arm"), lane).await);
        server.pass(1);
    }
    let mut positions = Vec::new();
    for id in &ids {
        positions.push(server.runs.waiting(&local(), *id).await.unwrap().unwrap().position);
    }
    assert_eq!(positions, [3, 2, 1, 4]);
    let mut order = Vec::new();
    while let Some(attempt) = server.claim(&arm).await {
        order.push(attempt.run.id);
    }
    assert_eq!(order, [ids[2], ids[1], ids[0], ids[3]]);
    let [first, second] = [None, None].map(|pool| server.submit(pool, Lane::Waves));
    let (_, second) = (first.await, second.await);
    let person = server.submit(None, Lane::People).await;
    assert_eq!(server.runs.claim().await.unwrap().unwrap().run.id, person);
    assert_eq!(server.runs.waiting(&local(), second).await.unwrap().unwrap().position, 2);
}

#[tokio::test]
async fn what_an_agent_loses_another_begins_again_and_only_that_one_may_end_it() {
    let server = Server::new().await;
    let arm = server.pool("arm", 1).await;
    let id = server.submit(Some("arm"), Lane::People).await;
    let first = server.claim(&arm).await.unwrap();
    first.running(true).await.unwrap().unwrap();
    server.pass(30);
    assert_eq!(first.queue.renew(&first).await.unwrap(), Some(false));
    server.pass(59);
    assert!(server.claim(&arm).await.is_none());
    server.pass(2);
    let second = server.claim(&arm).await.unwrap();
    assert_eq!((second.run.id, second.run.attempts, second.epoch), (id, 2, 2));
    assert_eq!(first.queue.renew(&first).await.unwrap(), None);
    assert!(first.confirm().await.unwrap().is_err());
    let (done, succeeded) = (Outcome::of(End::Succeeded), RunStatus::Succeeded);
    assert!(!first.queue.finish(&first, succeeded, None, &done).await.unwrap());
    assert!(second.queue.finish(&second, succeeded, None, &done).await.unwrap());
    assert!(
        server
            .log(id)
            .await
            .contains("its agent stopped while this run was under way; attempt 2 of 2 begins")
    );
}

#[tokio::test]
async fn the_server_ends_what_no_agent_may_begin_again() {
    let server = Server::new().await;
    let arm = server.pool("arm", 9).await;
    let with_commands = server.submit(Some("arm"), Lane::People).await;
    server.claim(&arm).await.unwrap().running(false).await.unwrap().unwrap();
    let canceled = server.submit(Some("arm"), Lane::People).await;
    server.claim(&arm).await.unwrap().running(true).await.unwrap().unwrap();
    let often = server.submit(Some("arm"), Lane::People).await;
    let attempt = server.claim(&arm).await.unwrap();
    server.runs.cancel(&local(), canceled).await.unwrap();
    // While the leases hold they are nobody's business.
    server.runs.sweep().await.unwrap();
    drop(attempt);
    server.pass(61);
    server.runs.sweep().await.unwrap();
    let lost = server.runs.get(&local(), with_commands).await.unwrap().unwrap();
    assert_eq!(lost.status, RunStatus::Error);
    assert_eq!(
        lost.error.as_deref(),
        Some(
            "its agent stopped while this run was under way, and a task with commands is not begun again"
        )
    );
    assert_eq!(server.status(canceled).await, RunStatus::Canceled);
    assert_eq!(server.status(often).await, RunStatus::Started);
    server.claim(&arm).await.unwrap();
    server.pass(61);
    server.runs.sweep().await.unwrap();
    let ended = server.runs.get(&local(), often).await.unwrap().unwrap();
    let told = "its agent stopped while the run was under way, in each of 2 attempts";
    assert_eq!((ended.status, ended.error.as_deref()), (RunStatus::Error, Some(told)));
}

#[tokio::test]
async fn a_build_waits_a_moment_for_the_agent_that_had_the_last_one() {
    let server = Server::new().await;
    let arm = server.pool("arm", 9).await;
    let build = |image: &str| {
        let request = BuildRequest { image_names: vec![image.into()], ..build_request() };
        NewRun { pool: Some(arm.name.clone()), ..NewRun::from(request) }
    };
    let submit = async |image: &str| server.runs.submit(&local(), build(image)).await.unwrap().id;
    let both = ["agent-1", "agent-2"].map(str::to_owned);
    let first = submit("host:5000/app:1").await;
    assert_eq!(server.claim_as(&arm, "agent-1", &both).await.unwrap().run.id, first);
    let again = submit("host:5000/app:2").await;
    assert!(server.claim_as(&arm, "agent-2", &both).await.is_none());
    assert_eq!(server.claim_as(&arm, "agent-1", &both).await.unwrap().run.id, again);
    // Another image is anybody's, and whoever is busy is not waited for.
    let other = submit("host:5000/api").await;
    assert_eq!(server.claim_as(&arm, "agent-2", &both).await.unwrap().run.id, other);
    let busy = submit("host:5000/app@sha256:x").await;
    assert_eq!(server.claim_as(&arm, "agent-2", &both[1..]).await.unwrap().run.id, busy);
    // The last one counts, and after a second everybody may have it.
    let late = submit("host:5000/app:3").await;
    assert!(server.claim_as(&arm, "agent-1", &both).await.is_none());
    server.pass(1);
    assert_eq!(server.claim_as(&arm, "agent-1", &both).await.unwrap().run.id, late);
    // What has no name, and what another one has lost, waits for nobody.
    let nameless = NewRun { pool: Some(arm.name.clone()), ..NewRun::from(request()) };
    for _ in 0..2 {
        server.runs.submit(&local(), nameless.clone()).await.unwrap();
        assert!(server.claim_as(&arm, "agent-2", &both).await.is_some());
    }
}

#[tokio::test]
async fn a_run_whose_pool_has_no_agents_left_ends_at_last() {
    let server = Server::new().await;
    let arm = server.pool("arm", 1).await;
    let id = server.submit(Some("arm"), Lane::People).await;
    let waits = server.submit(Some("arm"), Lane::People).await;
    server.claim(&arm).await.unwrap();
    server.pass(3600);
    assert_eq!(server.runs.sweep().await.unwrap().overdue, 0);
    server.pass(24 * 3600);
    assert_eq!(server.runs.sweep().await.unwrap().overdue, 2);
    let run = server.runs.get(&local(), id).await.unwrap().unwrap();
    assert_eq!(run.error.as_deref(), Some("its agent was lost, and no other came"));
    assert_eq!(server.status(waits).await, RunStatus::Error);
}

#[tokio::test]
async fn a_deleted_pool_takes_what_waits_with_it() {
    let server = Server::new().await;
    let arm = server.pool("arm", 1).await;
    let under_way = server.submit(Some("arm"), Lane::People).await;
    let attempt = server.claim(&arm).await.unwrap();
    let waits = server.submit(Some("arm"), Lane::People).await;
    server.pools.delete(&local(), &arm.name).await.unwrap();
    let run = server.runs.get(&local(), waits).await.unwrap().unwrap();
    assert_eq!(run.error.as_deref(), Some("its agent pool was deleted"));
    assert!(server.log(waits).await.contains("its agent pool was deleted"));
    let done = Outcome::of(End::Succeeded);
    assert!(attempt.queue.finish(&attempt, RunStatus::Succeeded, None, &done).await.unwrap());
    assert_eq!(server.status(under_way).await, RunStatus::Succeeded);
}

#[tokio::test]
async fn an_agent_goes_on_when_the_server_comes_back() {
    let mut server = Server::new().await;
    let arm = server.pool("arm", 1).await;
    let id = server.submit(Some("arm"), Lane::People).await;
    let attempt = server.claim(&arm).await.unwrap();
    let line = |text: &str| EventKind::Message { text: text.into() };
    let sent = |id| Some(Sent { epoch: 1, id });
    for (number, text) in [(1, "one"), (2, "two"), (2, "two again"), (1, "one again")] {
        attempt.log.append_sent(line(text), sent(number)).await;
    }
    // The files have what a reader sees.
    let key = LogKey { registry: local(), run: id };
    let mut reader = server.runs.logs().read_events(&key, 0, true).await.unwrap();
    let mut seen = 0;
    while seen < 4 {
        seen += reader.next().await.unwrap().unwrap().len();
    }
    drop((attempt, reader));
    server.restart().await;
    assert!(server.runs.attempt_of(&local(), id, 2).await.unwrap().is_none());
    let attempt = server.runs.attempt_of(&local(), id, 1).await.unwrap().unwrap();
    assert_eq!(attempt.log.last_sent(), sent(2));
    assert_eq!(attempt.queue.renew(&attempt).await.unwrap(), Some(false));
    attempt.log.append_sent(line("two once more"), sent(2)).await;
    attempt.log.append_sent(line("three"), sent(3)).await;
    // A later attempt counts anew.
    attempt.log.append_sent(line("four"), Some(Sent { epoch: 2, id: 1 })).await;
    // Who cancels reaches the agent through whoever asks for it.
    server.runs.cancel(&local(), id).await.unwrap();
    assert!(attempt.cancel.is_cancelled());
    let done = Outcome::of(End::Canceled);
    assert!(attempt.queue.finish(&attempt, RunStatus::Canceled, None, &done).await.unwrap());
    assert!(server.runs.attempt_of(&local(), id, 1).await.unwrap().is_none());
    let log = server.log(id).await;
    let told: Vec<&str> =
        log.lines().filter_map(|line| line.get(20..)).filter(|line| !line.contains(' ')).collect();
    assert_eq!(told, ["one", "two", "three", "four"], "{log}");
}

#[tokio::test]
async fn an_agent_that_leaves_gives_back_what_can_be_begun_again() {
    let server = Server::new().await;
    let arm = server.pool("arm", 9).await;
    let id = server.submit(Some("arm"), Lane::People).await;
    let attempt = server.claim(&arm).await.unwrap();
    attempt.queue.give_back(&attempt).await.unwrap();
    // It waits as long as others do.
    server.pass(120);
    server.runs.sweep().await.unwrap();
    let again = server.claim(&arm).await.unwrap();
    assert_eq!((again.run.id, again.run.attempts), (id, 1));
    again.running(false).await.unwrap().unwrap();
    again.queue.give_back(&again).await.unwrap();
    assert_eq!(server.status(id).await, RunStatus::Error);
}

#[tokio::test]
async fn a_run_that_is_lost_after_its_pool_is_gone_ends() {
    let server = Server::new().await;
    let arm = server.pool("arm", 1).await;
    let id = server.submit(Some("arm"), Lane::People).await;
    server.claim(&arm).await.unwrap().running(true).await.unwrap().unwrap();
    server.pools.delete(&local(), &arm.name).await.unwrap();
    server.runs.sweep().await.unwrap();
    assert_eq!(server.status(id).await, RunStatus::Running);
    server.pass(61);
    server.runs.sweep().await.unwrap();
    let run = server.runs.get(&local(), id).await.unwrap().unwrap();
    assert_eq!(run.error.as_deref(), Some("its agent stopped, and its agent pool is gone"));
}

#[tokio::test]
async fn an_agent_of_the_pool_default_gets_what_suits_its_machine() {
    let server = Server::new().await;
    let (default, arm) = (server.pool("default", 9).await, server.pool("arm", 9).await);
    let id = server.submit(None, Lane::People).await;
    let named = server.submit(Some("arm"), Lane::People).await;
    let of = |pool| AgentClaim { pool, agent: "a", platform: "linux/arm64", waiting: &[] };
    assert!(!server.runs.has_work_for(&of(&default)).await.unwrap());
    assert!(server.runs.claim_for(&of(&default)).await.unwrap().is_none());
    // Who names a pool has chosen.
    let attempt = server.runs.claim_for(&of(&arm)).await.unwrap().unwrap();
    assert_eq!(attempt.run.id, named);
    assert_eq!(server.claim(&default).await.unwrap().run.id, id);
}
