//! Commits and pull requests.

use control::{
    CommitState, ContextSource, Delivered, Head, SourceCause, SourceControl, SourceDelivery,
    SourceEvent, SourceHost, SourceTrigger, TaskContext, TokenType,
};

use super::*;

const ONE: &str = "1111111111111111111111111111111111111111";
const TWO: &str = "2222222222222222222222222222222222222222";
const THREE: &str = "3333333333333333333333333333333333333333";

pub(super) fn source() -> SourceTrigger {
    SourceTrigger {
        name: "source".into(),
        enabled: true,
        commits: true,
        pull_requests: false,
        control_type: SourceControl::Generic,
        branch: None,
        token: None,
        token_type: TokenType::Pat,
        secret: Some("hunter2-of-the-webhook".into()),
        poll: None,
    }
}

/// A task that works on the branch `main`.
pub(super) fn of_source(source: SourceTrigger) -> TaskDefinition {
    let address = "https://example.com/team/app.git#main:web".into();
    TaskDefinition {
        context: Some(TaskContext { address, token: Some("hunter2-of-the-context".into()) }),
        triggers: TaskTriggers { sources: vec![source], ..TaskTriggers::default() },
        ..definition(Vec::new())
    }
}

fn commit(branch: &str, commit: &str) -> SourceEvent {
    SourceEvent::Commit { branch: branch.into(), commit: commit.into(), before: None }
}

fn pull_request(number: u64, commit: &str) -> control::PullRequest {
    control::PullRequest {
        number,
        into: "main".into(),
        commit: commit.into(),
        reference: format!("refs/pull/{number}/head"),
        from_fork: false,
        may_be_known: false,
    }
}

fn delivery(event: SourceEvent) -> SourceDelivery {
    SourceDelivery {
        host: SourceHost::GitHub,
        repositories: vec!["Team/App".into()],
        default_branch: Some("trunk".into()),
        events: vec![event],
    }
}

impl Fixture {
    async fn deliver(&self, key: &str, delivery: SourceDelivery) -> Delivered {
        let name = task_name("build-app");
        self.triggers.deliver(&local(), &name, "Source", &delivery, key).await.unwrap()
    }

    /// The reason why an event has started nothing.
    async fn skipped(&self, key: &str, event: SourceEvent) -> String {
        self.skipped_delivery(key, delivery(event)).await
    }

    async fn skipped_delivery(&self, key: &str, delivery: SourceDelivery) -> String {
        let delivered = self.deliver(key, delivery).await;
        assert_eq!((delivered.decision, delivered.run), (Decision::Skipped, None));
        let line = self.ledger().await.pop().unwrap();
        assert_eq!((line.decision, &line.reason), (Decision::Skipped, &delivered.reason));
        delivered.reason.unwrap()
    }

    async fn status(&self, run: &Run) -> RunStatus {
        self.runs.get(&local(), run.id).await.unwrap().unwrap().status
    }

    async fn fired(&self, key: &str, event: SourceEvent) -> Run {
        let delivered = self.deliver(key, delivery(event)).await;
        assert_eq!(delivered.decision, Decision::Fired, "{delivered:?}");
        self.runs.get(&local(), delivered.run.unwrap()).await.unwrap().unwrap()
    }
}

fn cause(run: &Run) -> &SourceCause {
    let Some(RunCause::Source(cause)) = &run.cause else { panic!("it is of no commit: {run:?}") };
    cause
}

fn address(run: &Run) -> (String, Option<String>) {
    let Some(ContextSource::Remote(remote)) = &run.request.task().unwrap().context else {
        panic!("it has no repository: {run:?}")
    };
    (remote.address.clone(), remote.branch.clone())
}

#[tokio::test]
async fn a_commit_of_the_branch_starts_a_run_of_that_commit() {
    let f = Fixture::new().await;
    f.put("build-app", &of_source(source())).await;
    let run = f.fired("a", commit("main", ONE)).await;
    let expected = (
        format!("https://hunter2-of-the-context@example.com/team/app.git#{ONE}:web"),
        Some("main".to_owned()),
    );
    assert_eq!(address(&run), expected);
    let found = cause(&run);
    assert_eq!((&*found.commit, &*found.branch, found.pull_request), (ONE, "main", None));
    assert_eq!(found.repository, "https://example.com/team/app.git");
    assert_eq!(found.host, Some(SourceHost::GitHub));
    let line = f.ledger().await.pop().unwrap();
    assert_eq!(line.event, "commit `1111111` of branch `main`, told by GitHub");
    assert_eq!((line.decision, line.run), (Decision::Fired, Some(run.id)));
}

#[tokio::test]
async fn what_does_not_fit_starts_nothing_and_says_why() {
    let f = Fixture::new().await;
    f.put("build-app", &of_source(source())).await;
    f.fired("a", commit("main", ONE)).await;
    assert_eq!(f.skipped("a", commit("main", TWO)).await, "this delivery was taken before");
    let seen = "the trigger has seen this commit already";
    assert_eq!(f.skipped("b", commit("main", ONE)).await, seen);
    let other = f.skipped("c", commit("dev", TWO)).await;
    assert_eq!(other, "the trigger follows branch `main`, not `dev`");
    let event = SourceEvent::PullRequest(pull_request(7, TWO));
    assert_eq!(f.skipped("d", event).await, "the trigger does not wait for pull requests");
    let tag = f.skipped("e", SourceEvent::Other("tag `v1` was pushed".into())).await;
    assert_eq!(tag, "it starts no runs");
    let repositories = vec!["other/app".into()];
    let elsewhere = SourceDelivery { repositories, ..delivery(commit("main", TWO)) };
    let reason = f.skipped_delivery("f", elsewhere).await;
    assert_eq!(reason, "it is about another repository, `other/app`");
    f.put("build-app", &TaskDefinition { enabled: false, ..of_source(source()) }).await;
    assert_eq!(f.skipped("g", commit("main", TWO)).await, "the task is disabled");
    f.put("build-app", &of_source(SourceTrigger { enabled: false, ..source() })).await;
    assert_eq!(f.skipped("h", commit("main", TWO)).await, "the trigger is disabled");
    assert_eq!(f.all_runs().await.len(), 1);
    let gone = task_name("other-app");
    let event = delivery(commit("main", TWO));
    let none = f.triggers.deliver(&local(), &gone, "source", &event, "i").await;
    assert!(matches!(none, Err(control::ControlError::NotFound { .. })), "{none:?}");
}

#[tokio::test]
async fn of_several_branches_the_one_counts_that_is_followed() {
    let f = Fixture::new().await;
    f.put("build-app", &of_source(source())).await;
    let events = vec![SourceEvent::Other("x".into()), commit("dev", TWO), commit("main", ONE)];
    let several = SourceDelivery { events, ..delivery(commit("main", ONE)) };
    let delivered = f.deliver("a", several).await;
    assert_eq!(delivered.decision, Decision::Fired);
    assert_eq!(cause(&f.all_runs().await[0]).commit, ONE);
}

#[tokio::test]
async fn without_a_branch_the_default_one_is_followed() {
    let f = Fixture::new().await;
    let mut task = of_source(source());
    task.context.as_mut().unwrap().address = "https://example.com/team/app.git#:web".into();
    f.put("build-app", &task).await;
    let reason = f.skipped("a", commit("main", ONE)).await;
    assert_eq!(reason, "the trigger follows branch `trunk`, not `main`");
    let run = f.fired("b", commit("trunk", ONE)).await;
    assert!(address(&run).0.ends_with(&format!("#{ONE}:web")), "{run:?}");
    // What a host does not tell is known from asking the repository.
    let silent = |event| SourceDelivery { default_branch: None, ..delivery(event) };
    let reason = f.skipped_delivery("c", silent(commit("trunk", TWO))).await;
    assert!(reason.contains("does not tell which branch is the default one"), "{reason}");
    let poll = f.triggers.due_polls().await.unwrap().remove(0);
    assert_eq!(poll.source.shown, "https://***@example.com/team/app.git");
    let head = Head { commit: ONE.into(), branch: Some("trunk".into()) };
    f.triggers.polled(&poll, Ok(head)).await.unwrap();
    let delivered = f.deliver("d", silent(commit("trunk", TWO))).await;
    assert_eq!(delivered.decision, Decision::Fired);
}

#[tokio::test]
async fn pull_requests_are_built_from_where_the_host_keeps_them() {
    let f = Fixture::new().await;
    let both = SourceTrigger { pull_requests: true, commits: false, ..source() };
    f.put("build-app", &of_source(both)).await;
    let run = f.fired("a", SourceEvent::PullRequest(pull_request(7, ONE))).await;
    assert!(address(&run).0.ends_with("app.git#refs/pull/7/head:web"), "{run:?}");
    assert_eq!((&*cause(&run).commit, cause(&run).pull_request), (ONE, Some(7)));
    // It is opened again: the host has said that there is something to build.
    f.fired("b", SourceEvent::PullRequest(pull_request(7, ONE))).await;
    // Another host says also when nothing has come.
    let told = control::PullRequest { may_be_known: true, ..pull_request(7, ONE) };
    let reason = f.skipped("c", SourceEvent::PullRequest(told)).await;
    assert_eq!(reason, "the trigger has seen this commit already");
    let fork = control::PullRequest { from_fork: true, ..pull_request(8, TWO) };
    let reason = f.skipped("d", SourceEvent::PullRequest(fork)).await;
    assert_eq!(reason, "pull requests from forks start no runs");
    assert_eq!(f.skipped("e", commit("main", TWO)).await, "the trigger does not wait for commits");
}

#[tokio::test]
async fn a_newer_commit_takes_the_place_of_one_that_waits() {
    let f = Fixture::new().await;
    let both = SourceTrigger { pull_requests: true, ..source() };
    f.put("build-app", &of_source(both)).await;
    let first = f.fired("a", commit("main", ONE)).await;
    let request = f.fired("b", SourceEvent::PullRequest(pull_request(7, ONE))).await;
    let second = f.fired("c", commit("main", TWO)).await;
    assert_eq!(f.status(&first).await, RunStatus::Canceled);
    assert_eq!(f.status(&request).await, RunStatus::Queued);
    assert_eq!(f.status(&second).await, RunStatus::Queued);
    let first = f.runs.get(&local(), first.id).await.unwrap().unwrap();
    assert_eq!(first.error, Some(format!("run `{}` does it with a newer commit", second.id)));
    let line = f.ledger().await.pop().unwrap();
    let reason = format!("in place of run `{}`, which had not begun", first.id);
    assert_eq!((line.decision, line.reason), (Decision::Fired, Some(reason)));
    // What was superseded is not forgotten: it may become the newest again.
    f.fired("d", commit("main", ONE)).await;
}

#[tokio::test]
async fn a_full_queue_loses_no_commit() {
    let f = Fixture::with_queue(1).await;
    f.put("build-app", &of_source(source())).await;
    f.put("other-app", &definition(vec![every("t1", "0 1 * * *")])).await;
    f.set("2024-01-01T01:00:00Z");
    assert_eq!(f.fire().await, 1);
    let delivered = f.deliver("a", delivery(commit("main", ONE))).await;
    assert_eq!((delivered.decision, delivered.run), (Decision::Waits, None));
    assert_eq!(f.triggers.fire_sources().await.unwrap(), Fired { runs: 0, waits: true });
    // Of two the newer one is built, also if the server was started anew.
    f.deliver("b", delivery(commit("main", TWO))).await;
    let f = f.reopen_with_queue(1).await;
    let first = f.all_runs().await.remove(0);
    f.runs.cancel(&local(), first.id).await.unwrap();
    assert_eq!(f.triggers.fire_sources().await.unwrap(), Fired { runs: 1, waits: false });
    assert_eq!(f.triggers.fire_sources().await.unwrap(), Fired::default());
    let run = f.all_runs().await.pop().unwrap();
    assert_eq!(cause(&run).commit, TWO);
    // What waits when its trigger is switched off starts nothing.
    f.deliver("c", delivery(commit("main", THREE))).await;
    f.put("build-app", &of_source(SourceTrigger { enabled: false, ..source() })).await;
    f.runs.cancel(&local(), run.id).await.unwrap();
    assert_eq!(f.triggers.fire_sources().await.unwrap(), Fired::default());
    assert_eq!(f.all_runs().await.len(), 2);
}

#[tokio::test]
async fn a_branch_is_asked_for_where_no_host_calls() {
    let f = Fixture::new().await;
    f.put("build-app", &of_source(source())).await;
    let due = || async { f.triggers.due_polls().await.unwrap() };
    let head = |commit: &str| Ok(Head { commit: commit.into(), branch: Some("main".into()) });
    let poll = due().await.remove(0);
    let shown = "https://***@example.com/team/app.git#refs/heads/main";
    assert_eq!(poll.source.shown, shown);
    // What was there before the trigger starts nothing.
    assert_eq!(f.triggers.polled(&poll, head(ONE)).await.unwrap(), Fired::default());
    assert_eq!(due().await.len(), 0);
    assert_eq!(f.all_runs().await.len(), 0);
    let next = f.triggers.next_poll().await.unwrap().unwrap() - at("2024-01-01T00:00:30Z");
    assert!((150_000..450_000).contains(&next), "{next}");
    f.set("2024-01-01T00:08:30Z");
    let poll = due().await.remove(0);
    assert_eq!(f.triggers.polled(&poll, head(TWO)).await.unwrap().runs, 1);
    let run = f.all_runs().await.remove(0);
    assert_eq!((&*cause(&run).commit, cause(&run).host), (TWO, None));
    let line = f.ledger().await.pop().unwrap();
    let found = "commit `2222222` of branch `main`, found at https://example.com/team/app.git";
    assert_eq!(line.event, found);
    // A delivery of the same commit is too late, and one that overtakes an answer is not undone by it.
    let seen = "the trigger has seen this commit already";
    assert_eq!(f.skipped("a", commit("main", TWO)).await, seen);
    f.set("2024-01-01T00:20:30Z");
    let poll = due().await.remove(0);
    f.fired("b", commit("main", THREE)).await;
    assert_eq!(f.triggers.polled(&poll, head(TWO)).await.unwrap(), Fired::default());
    assert_eq!(f.all_runs().await.len(), 2);
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_asked_less_often_and_loses_nothing() {
    let f = Fixture::new().await;
    f.put("build-app", &of_source(source())).await;
    let head = |commit: &str| Ok(Head { commit: commit.into(), branch: None });
    let poll = f.triggers.due_polls().await.unwrap().remove(0);
    f.triggers.polled(&poll, head(ONE)).await.unwrap();
    let mut waits = Vec::new();
    for _ in 0..5 {
        let now = f.triggers.next_poll().await.unwrap().unwrap();
        f.now.store(now, Ordering::Relaxed);
        let poll = f.triggers.due_polls().await.unwrap().remove(0);
        let why = "it answers with status 503".to_owned();
        assert_eq!(f.triggers.polled(&poll, Err(why)).await.unwrap(), Fired::default());
        waits.push((f.triggers.next_poll().await.unwrap().unwrap() - now) / MINUTE);
    }
    assert!(waits[0] < 12 && waits[1] > waits[0] && (53..=66).contains(&waits[4]), "{waits:?}");
    let lines = f.ledger().await;
    assert_eq!((lines.len(), lines[0].decision, lines[0].count), (1, Decision::Waits, 1));
    assert_eq!(lines[0].reason.as_deref(), Some("it answers with status 503"));
    f.now.fetch_add(2 * HOUR, Ordering::Relaxed);
    let poll = f.triggers.due_polls().await.unwrap().remove(0);
    assert_eq!(f.triggers.polled(&poll, head(TWO)).await.unwrap().runs, 1);
}

#[tokio::test]
async fn nothing_is_known_of_what_a_trigger_did_not_follow() {
    let f = Fixture::new().await;
    f.put("build-app", &of_source(source())).await;
    let head = |commit: &str| Ok(Head { commit: commit.into(), branch: Some("main".into()) });
    let poll = f.triggers.due_polls().await.unwrap().remove(0);
    f.triggers.polled(&poll, head(ONE)).await.unwrap();
    // Asleep, it is not asked for; awake again, what has come meanwhile starts nothing.
    f.put("build-app", &TaskDefinition { enabled: false, ..of_source(source()) }).await;
    f.now.fetch_add(2 * HOUR, Ordering::Relaxed);
    assert_eq!(f.triggers.due_polls().await.unwrap().len(), 0);
    f.put("build-app", &of_source(source())).await;
    let poll = f.triggers.due_polls().await.unwrap().remove(0);
    assert_eq!(f.triggers.polled(&poll, head(TWO)).await.unwrap(), Fired::default());
    // A change that has nothing to do with it leaves what is known.
    f.now.fetch_add(2 * HOUR, Ordering::Relaxed);
    let owner = Some("team".to_owned());
    f.put("build-app", &TaskDefinition { owner, ..of_source(source()) }).await;
    let poll = f.triggers.due_polls().await.unwrap().remove(0);
    assert_eq!(f.triggers.polled(&poll, head(THREE)).await.unwrap().runs, 1);
    // Switched off, no host is asked; neither for a task that is gone.
    let never = SourceTrigger { poll: Some(Duration::ZERO), ..source() };
    f.put("build-app", &of_source(never)).await;
    assert_eq!(f.triggers.next_poll().await.unwrap(), None);
    f.put("build-app", &of_source(source())).await;
    f.tasks.delete(&local(), &task_name("build-app")).await.unwrap();
    assert_eq!(f.triggers.next_poll().await.unwrap(), None);
}

#[tokio::test]
async fn secrets_of_sources_are_sealed() {
    let f = Fixture::new().await;
    let with_token = SourceTrigger { token: Some("hunter2-of-the-host".into()), ..source() };
    let task = of_source(with_token);
    f.put("build-app", &task).await;
    let known = f.tasks.get(&local(), &task_name("build-app")).await.unwrap().unwrap();
    assert_eq!(known.definition, task);
    assert!(!format!("{task:?}").contains("hunter2"), "{task:?}");
    let file = std::fs::read(f.folder.path().join("refit.db")).unwrap();
    let wal = std::fs::read(f.folder.path().join("refit.db-wal")).unwrap_or_default();
    let all = [file, wal].concat();
    assert!(!all.windows(7).any(|part| part == b"hunter2"));
    // The token of the trigger is for the host before that of the context.
    let poll = f.triggers.due_polls().await.unwrap().remove(0);
    assert!(poll.source.address.starts_with("https://hunter2-of-the-host@example.com/"));
}

#[tokio::test]
async fn what_waits_is_neither_lost_nor_built_when_it_is_gone() {
    let f = Fixture::with_queue(1).await;
    f.put("build-app", &of_source(source())).await;
    f.put("other-app", &definition(vec![every("t1", "0 1 * * *")])).await;
    f.set("2024-01-01T01:00:00Z");
    assert_eq!(f.fire().await, 1);
    let head = |commit: &str| Ok(Head { commit: commit.into(), branch: Some("main".into()) });
    let poll = f.triggers.due_polls().await.unwrap().remove(0);
    // The first look at the branch comes after a delivery that waits.
    assert_eq!(f.deliver("a", delivery(commit("main", ONE))).await.decision, Decision::Waits);
    f.triggers.polled(&poll, head(ONE)).await.unwrap();
    let other = f.all_runs().await.remove(0);
    f.runs.cancel(&local(), other.id).await.unwrap();
    assert_eq!(f.triggers.fire_sources().await.unwrap(), Fired { runs: 1, waits: false });
    // A second commit waits, and the branch is set back to the first.
    assert_eq!(f.deliver("b", delivery(commit("main", TWO))).await.decision, Decision::Waits);
    f.skipped("c", commit("main", ONE)).await;
    let run = f.all_runs().await.pop().unwrap();
    f.runs.cancel(&local(), run.id).await.unwrap();
    assert_eq!(f.triggers.fire_sources().await.unwrap(), Fired::default());
    assert_eq!(f.all_runs().await.len(), 2);
}

#[tokio::test]
async fn a_trigger_is_the_same_however_its_name_is_written() {
    let f = Fixture::new().await;
    f.put("build-app", &of_source(source())).await;
    f.fired("a", commit("main", ONE)).await;
    let other = SourceTrigger { name: "SOURCE".into(), ..source() };
    f.put("build-app", &of_source(other.clone())).await;
    assert_eq!(f.skipped("a", commit("main", TWO)).await, "this delivery was taken before");
    let poll = f.triggers.due_polls().await.unwrap().remove(0);
    let head = Head { commit: TWO.into(), branch: Some("main".into()) };
    assert_eq!(f.triggers.polled(&poll, Ok(head)).await.unwrap().runs, 1);
    assert_eq!(f.triggers.due_polls().await.unwrap().len(), 0);
    // How often it is asked changes nothing of what is known.
    let often = SourceTrigger { poll: Some(Duration::from_secs(30)), ..other };
    f.put("build-app", &of_source(often)).await;
    let seen = "the trigger has seen this commit already";
    assert_eq!(f.skipped("b", commit("main", TWO)).await, seen);
    assert_eq!(f.triggers.due_polls().await.unwrap().len(), 1);
}

#[tokio::test]
async fn commits_that_are_told_out_of_order_have_the_branch_looked_at() {
    let f = Fixture::new().await;
    f.put("build-app", &of_source(source())).await;
    let head = |commit: &str| Ok(Head { commit: commit.into(), branch: Some("main".into()) });
    let poll = f.triggers.due_polls().await.unwrap().remove(0);
    f.triggers.polled(&poll, head(ONE)).await.unwrap();
    let told = |commit: &str, before: &str| SourceEvent::Commit {
        branch: "main".into(),
        commit: commit.into(),
        before: Some(before.into()),
    };
    f.fired("a", told(TWO, ONE)).await;
    assert_eq!(f.triggers.due_polls().await.unwrap().len(), 0);
    // The second push is told after the third.
    f.fired("b", told(THREE, "4444444444444444444444444444444444444444")).await;
    let poll = f.triggers.due_polls().await.unwrap().remove(0);
    f.fired("c", told("4444444444444444444444444444444444444444", TWO)).await;
    assert_eq!(f.triggers.polled(&poll, head(THREE)).await.unwrap().runs, 0);
    // What was asked before says nothing of the last one; it is asked again.
    f.now.fetch_add(HOUR, Ordering::Relaxed);
    let poll = f.triggers.due_polls().await.unwrap().remove(0);
    assert_eq!(f.triggers.polled(&poll, head(THREE)).await.unwrap().runs, 1);
    assert_eq!(cause(f.all_runs().await.last().unwrap()).commit, THREE);
}

#[tokio::test]
async fn hosts_are_told_how_the_runs_of_their_commits_stand() {
    let f = Fixture::new().await;
    f.put("build-app", &of_source(source())).await;
    let run = f.fired("a", commit("main", ONE)).await;
    let due = || async { f.triggers.due_reports().await.unwrap() };
    let first = due().await.remove(0);
    assert_eq!((first.run, &*first.commit, first.state), (run.id, ONE, CommitState::Pending));
    assert_eq!((first.host, &*first.token.0), (SourceHost::GitHub, "hunter2-of-the-context"));
    assert!(!format!("{first:?}").contains("hunter2"), "{first:?}");
    f.triggers.reported(&first, Ok(())).await.unwrap();
    assert_eq!(due().await, []);
    f.runs.cancel(&local(), run.id).await.unwrap();
    let last = due().await.remove(0);
    assert_eq!(last.state, CommitState::Canceled);
    // A host that does not answer is told later, and one that refuses has its line.
    let why = |is_final| control::NotReported {
        reason: "it answers with status 503".into(),
        is_final,
        pause: None,
    };
    f.triggers.reported(&last, Err(why(false))).await.unwrap();
    assert_eq!(due().await, []);
    f.now.fetch_add(MINUTE, Ordering::Relaxed);
    let last = due().await.remove(0);
    // It waits for the end there, and is told again for a while.
    for _ in 0..7 {
        f.triggers.reported(&last, Err(why(true))).await.unwrap();
    }
    f.now.fetch_add(HOUR, Ordering::Relaxed);
    assert_eq!(due().await, []);
    let line = f.ledger().await.pop().unwrap();
    assert_eq!(line.event, format!("GitHub was to hear of run `{}`", run.id));
    assert_eq!(line.reason.as_deref(), Some("it answers with status 503"));
    // The token is for its own repository, and others hear nothing.
    let run = f.fired("b", commit("main", TWO)).await;
    let mut elsewhere = of_source(source());
    elsewhere.context.as_mut().unwrap().address = "https://example.org/team/app.git#main".into();
    f.put("build-app", &elsewhere).await;
    assert_eq!(due().await, []);
    f.runs.cancel(&local(), run.id).await.unwrap();
    assert_eq!(due().await, []);
    let generic = SourceDelivery { host: SourceHost::Generic, ..delivery(commit("main", THREE)) };
    assert_eq!(f.deliver("c", generic).await.decision, Decision::Fired);
    assert_eq!(due().await, []);
}
