//! The order in which tasks answer a base that moves.

use std::sync::atomic::Ordering;

use control::{End, Outcome, Queue as _, RunStatus, TaskDefinition};
use serde_json::{Value, json};

use super::{Fixture, MINUTE, base, current, follows, local, pushed, task_name};

impl Fixture {
    /// A task that makes an image of others, and has done so once.
    pub(super) async fn makes(&self, name: &str, output: &str, bases: &[&str]) {
        self.builds.outputs.lock().unwrap().insert(name.to_owned(), output.to_owned());
        self.built(name, &follows(true), on(bases)).await;
    }

    /// Lets waves go to their end; which tasks were built, in their order.
    pub(super) async fn waves(&self) -> Vec<String> {
        let before = self.updates().await.len();
        while self.follow().await > 0 {
            self.work().await;
        }
        self.updates().await.into_iter().skip(before).map(|(task, _)| task).collect()
    }
}

fn on(bases: &[&str]) -> Value {
    let others: Vec<_> = bases[1..].iter().map(|name| current(name)).collect();
    json!({ "runtime-dependency": current(bases[0]), "buildtime-dependency": others })
}

#[tokio::test]
async fn a_task_is_built_once_and_after_those_whose_images_it_is_built_on() {
    let f = Fixture::new().await;
    f.push("os:1", &["a"], pushed()).await;
    f.follow().await;
    // By their names the last comes first.
    f.makes("task3", "runtime:1", &["os:1"]).await;
    f.makes("task2", "framework:1", &["runtime:1"]).await;
    f.makes("task1", "app:1", &["framework:1", "os:1"]).await;
    f.waves().await;
    f.push("os:1", &["b"], pushed()).await;
    assert_eq!(f.follow().await, 1);
    let lines = f.decisions().await;
    let reason = "task1 Waits: task `task3`, whose image it is built on, comes first";
    assert!(lines.contains(&reason.to_owned()), "{lines:?}");
    // What is not reached yet counts too: nothing has told the second one of the move.
    f.work().await;
    assert_eq!(f.waves().await, ["task2", "task1"]);
    let updates = f.updates().await;
    let all: Vec<&str> = updates[updates.len() - 1].1.iter().map(String::as_str).collect();
    assert_eq!(all, ["os:1", "framework:1"]);
    // The server may end at any time in between.
    f.push("os:1", &["c"], pushed()).await;
    assert_eq!(f.follow().await, 1);
    let f = f.reopen().await;
    assert_eq!(f.follow().await, 0);
    f.work().await;
    let f = f.reopen().await;
    assert_eq!(f.waves().await, ["task2", "task1"]);
}

#[tokio::test]
async fn whatever_answers_nothing_holds_nobody_up() {
    let f = Fixture::new().await;
    f.push("os:1", &["a"], pushed()).await;
    f.follow().await;
    f.makes("task2", "runtime:1", &["os:1"]).await;
    f.makes("task1", "app:1", &["runtime:1", "os:1"]).await;
    f.waves().await;
    f.put("task2", &TaskDefinition { enabled: false, ..follows(true) }).await;
    f.push("os:1", &["b"], pushed()).await;
    // At once, and not when it is looked at next.
    assert_eq!(f.follow().await, 1);
    assert_eq!(f.updates().await.last().unwrap().0, "task1");
    f.work().await;
    // Nor do those that make each other's bases.
    f.makes("task4", "left:1", &["os:1"]).await;
    f.makes("task5", "right:1", &["left:1", "os:1"]).await;
    f.makes("task4", "left:1", &["os:1", "right:1"]).await;
    f.waves().await;
    f.push("os:1", &["c"], pushed()).await;
    let built = f.waves().await;
    assert!(
        built.contains(&"task4".to_owned()) && built.contains(&"task5".to_owned()),
        "{built:?}"
    );
    // A task that is gone makes nothing.
    f.tasks.delete(&local(), &task_name("task2")).await.unwrap();
    f.push("os:1", &["d"], pushed()).await;
    assert!(f.waves().await.contains(&"task1".to_owned()));
}

#[tokio::test]
async fn nobody_waits_for_ever_for_what_comes_first() {
    let f = Fixture::new().await;
    f.push("os:1", &["a"], pushed()).await;
    f.follow().await;
    f.makes("task2", "runtime:1", &["os:1"]).await;
    f.makes("task1", "app:1", &["runtime:1", "os:1"]).await;
    f.waves().await;
    // The base moves more often than what comes first is built.
    for part in 0..8 {
        f.push("os:1", &[&part.to_string()], pushed()).await;
        assert_eq!(f.follow().await, usize::from(part == 0));
        f.now.fetch_add(15 * MINUTE, Ordering::Relaxed);
    }
    assert_eq!(f.follow().await, 1);
    assert_eq!(f.updates().await.last().unwrap().0, "task1");
}

#[tokio::test]
async fn a_release_that_is_pushed_piece_by_piece_fires_once() {
    let f = Fixture::new().await;
    f.push("os:1", &["amd64", "arm64"], pushed()).await;
    f.follow().await;
    f.makes("task1", "app:1", &["os:1"]).await;
    let all = ["amd64 patched", "arm64 patched", "s390x", "riscv64", "arm"];
    let (first, members) = f.push("os:1", &all[..1], pushed()).await;
    assert_eq!(f.follow().await, 1);
    let attempt = f.runs.claim().await.unwrap().unwrap();
    f.runs.set_running(&attempt, false).await.unwrap();
    for count in 2..=all.len() {
        f.push("os:1", &all[..count], pushed()).await;
        assert_eq!(f.follow().await, 0);
    }
    let report = json!([{ "runtime-dependency": base("os:1", &first, &[&members[0]]) }]);
    let outcome = Outcome { dependencies: Some(report), ..Outcome::of(End::Succeeded) };
    f.runs.finish(&attempt, RunStatus::Succeeded, None, &outcome).await.unwrap();
    assert_eq!(f.follow().await, 0);
    let run = &attempt.run.id;
    assert_eq!(
        f.decisions().await,
        [
            "task1 Fired".to_owned(),
            format!("task1 Waits: run `{run}` of it goes on, which bases have started too"),
            "task1 Skipped: its image for the platform of the task is the same".to_owned(),
        ]
    );
    // One that has failed has not been built on what came meanwhile.
    f.push("os:1", &["amd64 patched again"], pushed()).await;
    assert_eq!(f.follow().await, 1);
    let attempt = f.runs.claim().await.unwrap().unwrap();
    f.runs.set_running(&attempt, false).await.unwrap();
    f.push("os:1", &["amd64 patched better"], pushed()).await;
    assert_eq!(f.follow().await, 0);
    let outcome = Outcome::of(End::Failed("no".to_owned()));
    f.runs.finish(&attempt, RunStatus::Failed, Some("no"), &outcome).await.unwrap();
    assert_eq!(f.follow().await, 1);
}
