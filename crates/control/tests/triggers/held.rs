//! Triggers that are held, what an event would start, and tasks that would start each other.

use std::sync::atomic::Ordering;

use control::{
    Decision, Foreseen, ImageTag, Pause, PauseScope, SourceGuess, TaskDefinition, TaskStep,
};

use super::sources::{of_source, source};
use super::{Fixture, HOUR, MINUTE, at, definition, every, follows, local, own, pushed, task_name};

fn image(name: &str) -> ImageTag {
    let (repository, tag) = name.split_once(':').unwrap();
    ImageTag { host: None, repository: repository.to_owned(), tag: tag.to_owned() }
}

impl Fixture {
    async fn pause(&self, scope: PauseScope, ends_at: Option<i64>) {
        let (reason, by) = ("broken release".to_owned(), "ann".to_owned());
        let pause = Pause { scope, reason, ends_at, by, since: self.now.load(Ordering::Relaxed) };
        self.triggers.pause(&local(), &pause).await.unwrap();
    }

    async fn resume(&self, scope: &PauseScope) -> bool {
        self.triggers.resume(&local(), scope).await.unwrap()
    }

    async fn paused(&self) -> Vec<PauseScope> {
        let pauses = self.triggers.pauses(&local()).await.unwrap();
        pauses.into_iter().map(|pause| pause.scope).collect()
    }

    /// What is held that concerns a task.
    async fn paused_of(&self, task: &str) -> Vec<PauseScope> {
        let pauses = self.triggers.pauses_of(&local(), &own, &task_name(task)).await.unwrap();
        pauses.into_iter().map(|pause| pause.scope).collect()
    }

    /// Level, task, decision and images of each.
    async fn foreseen(&self, name: &str) -> Vec<String> {
        let image = image(name);
        let all = self.triggers.foresee_base(&local(), &own, &image, None).await.unwrap();
        all.iter().map(shown).collect()
    }
}

fn shown(foreseen: &Foreseen) -> String {
    let images: Vec<_> = foreseen.images.iter().map(ToString::to_string).collect();
    let Foreseen { level, task, decision, .. } = foreseen;
    format!("{level} {task} {} {}", decision.as_str(), images.join(" "))
}

#[tokio::test]
async fn what_is_held_waits_and_is_answered_once() {
    let f = Fixture::new().await;
    for name in ["os:1", "lib:1"] {
        f.push(name, &["a"], pushed()).await;
    }
    f.follow().await;
    f.makes("aaaaa", "app:1", &["os:1", "lib:1"]).await;
    f.makes("bbbbb", "bpp:1", &["os:1"]).await;
    f.waves().await;
    let os = PauseScope::Base(image("os:1"));
    f.pause(os.clone(), None).await;
    f.push("os:1", &["b"], pushed()).await;
    f.push("lib:1", &["b"], pushed()).await;
    // Of one task that is built on both, the other move goes on.
    assert_eq!(f.waves().await, ["aaaaa"]);
    f.push("os:1", &["c"], pushed()).await;
    assert_eq!(f.waves().await, Vec::<String>::new());
    f.push("lib:1", &["c"], pushed()).await;
    assert_eq!(f.waves().await, ["aaaaa"]);
    let reason = "what follows from `os:1` is paused, by ann: broken release";
    let lines = f.ledger().await;
    let waits: Vec<_> = lines.iter().filter(|line| line.decision == Decision::Waits).collect();
    assert!(waits.iter().all(|line| line.reason.as_deref() == Some(reason)), "{waits:?}");
    let f = f.reopen().await;
    assert_eq!(f.follow().await, 0);
    assert!(f.resume(&os).await && !f.resume(&os).await);
    // The first has been built on it meanwhile.
    assert_eq!(f.waves().await, ["bbbbb"]);
    assert_eq!(f.follow().await, 0);
}

#[tokio::test]
async fn a_repository_that_begins_as_a_host_does_is_held_too() {
    let f = Fixture::new().await;
    f.push("team.example/os:1", &["a"], pushed()).await;
    f.follow().await;
    f.makes("aaaaa", "app:1", &["team.example/os:1"]).await;
    f.waves().await;
    let own = PauseScope::Base(image("team.example/os:1"));
    let (host, repository) = ("team.example".to_owned(), "os".to_owned());
    let elsewhere =
        PauseScope::Base(ImageTag { host: Some(host), repository, tag: "1".to_owned() });
    f.pause(elsewhere.clone(), None).await;
    f.pause(own.clone(), None).await;
    assert_eq!(f.paused().await, [own.clone(), elsewhere]);
    assert_eq!(f.paused_of("aaaaa").await, std::slice::from_ref(&own));
    f.push("team.example/os:1", &["b"], pushed()).await;
    assert_eq!(f.follow().await, 0);
    assert!(f.resume(&own).await);
    assert_eq!(f.waves().await, ["aaaaa"]);
}

#[tokio::test]
async fn a_pause_ends_by_itself_and_leaves_out_timers() {
    let f = Fixture::new().await;
    f.push("os:1", &["a"], pushed()).await;
    f.follow().await;
    f.makes("aaaaa", "app:1", &["os:1"]).await;
    f.put("nightly", &definition(vec![every("t1", "0 * * * *")])).await;
    let end = f.now.load(Ordering::Relaxed) + 2 * HOUR + 30 * MINUTE;
    f.pause(PauseScope::All, Some(end)).await;
    f.push("os:1", &["b"], pushed()).await;
    assert_eq!(f.follow().await, 0);
    f.now.fetch_add(2 * HOUR, Ordering::Relaxed);
    assert_eq!(f.fire().await, 0);
    assert_eq!(f.triggers.pauses(&local()).await.unwrap().len(), 1);
    f.now.store(end, Ordering::Relaxed);
    assert_eq!(f.triggers.pauses(&local()).await.unwrap(), []);
    assert_eq!(f.follow().await, 1);
    // What was due meanwhile is not made up.
    assert_eq!(f.fire().await, 0);
    f.now.fetch_add(HOUR, Ordering::Relaxed);
    assert_eq!(f.fire().await, 1);
    assert_eq!(f.occurrences_of("nightly").await, [("2024-01-01T03:00:00Z".to_owned(), 0)]);
    // One of a task holds no other.
    f.work().await;
    f.pause(PauseScope::Task(task_name("NIGHTLY")), None).await;
    f.push("os:1", &["c"], pushed()).await;
    assert_eq!(f.follow().await, 1);
    f.now.fetch_add(HOUR, Ordering::Relaxed);
    assert_eq!(f.fire().await, 0);
}

#[tokio::test]
async fn what_a_base_would_start_is_told_level_by_level() {
    let f = Fixture::new().await;
    f.push("os:1", &["a"], pushed()).await;
    f.follow().await;
    f.makes("runtime", "runtime:1", &["os:1"]).await;
    f.makes("front", "front:1", &["runtime:1", "os:1"]).await;
    f.makes("asleep", "asleep:1", &["os:1"]).await;
    f.makes("after-asleep", "after:1", &["asleep:1"]).await;
    f.makes("other", "other:1", &["front:1", "runtime:1"]).await;
    f.waves().await;
    f.put("asleep", &TaskDefinition { enabled: false, ..follows(true) }).await;
    let expected = [
        "1 asleep Skipped os:1",
        "1 runtime Fired os:1",
        "2 front Fired os:1 runtime:1",
        "3 other Fired front:1 runtime:1",
    ];
    assert_eq!(f.foreseen("os:1").await, expected);
    assert_eq!(f.foreseen("front:1").await, ["1 other Fired front:1"]);
    assert_eq!(f.foreseen("other:1").await, Vec::<String>::new());
    f.pause(PauseScope::Task(task_name("front")), None).await;
    let held = f.foreseen("os:1").await;
    assert!(held.contains(&"2 front Waits os:1 runtime:1".to_owned()), "{held:?}");
    assert!(held.contains(&"2 other Fired runtime:1".to_owned()), "{held:?}");
    assert!(f.resume(&PauseScope::Task(task_name("front"))).await);
    // So it comes.
    f.push("os:1", &["b"], pushed()).await;
    assert_eq!(f.waves().await, ["runtime", "front", "other"]);
    // With the image that it becomes, the platforms count.
    let (digest, members) = f.push("os:1", &["b", "c"], pushed()).await;
    f.waves().await;
    let to = Some((&digest, &*members));
    let all = f.triggers.foresee_base(&local(), &own, &image("os:1"), to).await.unwrap();
    assert!(all.iter().all(|foreseen| foreseen.decision != Decision::Fired), "{all:?}");
}

#[tokio::test]
async fn what_timers_and_commits_would_start_is_told() {
    let f = Fixture::new().await;
    f.put("nightly", &definition(vec![every("t1", "0 1 * * *"), every("t2", "30 * * * *")])).await;
    let span = (at("2024-01-01T00:00:30Z"), at("2024-01-01T02:00:00Z"));
    let all = f.triggers.foresee_timers(&local(), &own, span, 10).await.unwrap();
    let lines: Vec<_> = all
        .iter()
        .map(|one| format!("{} {}", one.trigger, one.reason.as_deref().unwrap()))
        .collect();
    assert_eq!(
        lines,
        [
            "t2 it is due at 2024-01-01T00:30:00Z",
            "t1 it is due at 2024-01-01T01:00:00Z",
            "t2 it is due at 2024-01-01T01:30:00Z",
        ]
    );
    assert_eq!(f.triggers.foresee_timers(&local(), &own, span, 2).await.unwrap().len(), 2);
    f.put("sourced", &of_source(source())).await;
    let guess = |branch: &str, pull_request| SourceGuess {
        branch: branch.to_owned(),
        pull_request,
        from_fork: true,
    };
    let told = async |guess: SourceGuess| {
        let all = f.triggers.foresee_source(&local(), &own, None, &guess).await.unwrap();
        assert_eq!(all.len(), 1);
        (all[0].decision, all[0].reason.clone())
    };
    assert_eq!(told(guess("main", None)).await, (Decision::Fired, None));
    let (decision, reason) = told(guess("other", None)).await;
    assert_eq!(decision, Decision::Skipped);
    assert!(reason.unwrap().contains("follows branch `main`"));
    let (_, reason) = told(guess("main", Some(7))).await;
    assert!(reason.unwrap().contains("pull requests"));
}

#[tokio::test]
async fn tasks_that_would_start_each_other_are_found() {
    let f = Fixture::new().await;
    for name in ["os:1", "right:1"] {
        f.push(name, &["a"], pushed()).await;
    }
    f.follow().await;
    f.makes("task-one", "left:1", &["right:1"]).await;
    f.makes("task-two", "middle:1", &["left:1"]).await;
    f.makes("task-three", "end:1", &["middle:1"]).await;
    f.waves().await;
    let circle = async |name: &str, definition: &TaskDefinition| {
        let found = f.triggers.circle_of(&local(), &own, &task_name(name), definition).await;
        let found = found.unwrap().unwrap_or_default();
        found.iter().map(|task| task.to_string()).collect::<Vec<_>>().join(" -> ")
    };
    let makes = |output: &str| TaskDefinition {
        step: TaskStep::Docker {
            image_names: vec![output.to_owned()],
            push: true,
            no_cache: false,
            dockerfile: "Dockerfile".to_owned(),
            target: None,
            arguments: Vec::new(),
        },
        ..follows(true)
    };
    assert_eq!(circle("task-three", &makes("end:1")).await, "");
    assert_eq!(
        circle("task-three", &makes("right:1")).await,
        "task-three -> task-one -> task-two -> task-three"
    );
    assert_eq!(
        circle("task-three", &makes("localhost:5000/right:1")).await,
        "task-three -> task-one -> task-two -> task-three"
    );
    assert_eq!(circle("task-three", &makes("elsewhere.example.com/right:1")).await, "");
    assert_eq!(circle("task-three", &makes("right:{{.Run.ID}}")).await, "");
    // One that makes its own base does not start itself, and one that bases do not start starts nothing.
    assert_eq!(circle("task-three", &makes("middle:1")).await, "");
    assert_eq!(
        circle("task-three", &TaskDefinition { enabled: false, ..makes("right:1") }).await,
        ""
    );
    f.put("task-two", &definition(Vec::new())).await;
    assert_eq!(circle("task-three", &makes("right:1")).await, "");
}
