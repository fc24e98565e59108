//! Bases in other registries, with the answers of those registries.

use std::sync::atomic::Ordering;
use std::time::Duration;

use control::{
    Asker, ImageTag, Pause, PauseScope, RegistryLogin, RunCause, TaskDefinition, TaskTriggers,
    Watch, WatchAnswer, WatchedImage,
};
use oci::Digest;
use serde_json::{Value, json};

use super::{Fixture, MINUTE, definition, follows, local, own, task_name};

const IMAGE: &str = "registry.example.com/os:1";
/// Longer than any period that is drawn.
const LONG: i64 = 61 * MINUTE;
const SETTLE: i64 = 30_000;

impl Fixture {
    /// What is due after a time.
    async fn due(&self, after: i64) -> Vec<Watch> {
        self.now.fetch_add(after, Ordering::Relaxed);
        self.triggers.due_watches().await.unwrap()
    }

    async fn only_due(&self, after: i64) -> Watch {
        let mut due = self.due(after).await;
        assert_eq!(due.len(), 1, "{due:?}");
        due.remove(0)
    }

    async fn answer(&self, watch: &Watch, image: WatchedImage) {
        self.triggers.watched(watch, WatchAnswer { image, rest: None }).await.unwrap();
    }

    /// Has what is due answered by one image until it counts; how many runs followed.
    async fn becomes(&self, image: &Digest) -> usize {
        let first = self.only_due(LONG).await;
        self.answer(&first, other(image)).await;
        assert_eq!(self.follow().await, 0);
        let second = self.only_due(SETTLE).await;
        self.answer(&second, other(image)).await;
        self.follow().await
    }

    /// When a registry is asked next, from now.
    async fn next_of(&self, host: &str) -> i64 {
        let watches = self.triggers.watches(&local(), 100).await.unwrap();
        let next = watches.iter().filter(|watch| watch.host == host).map(|watch| watch.next_at);
        next.min().unwrap() - self.now.load(Ordering::Relaxed)
    }

    /// When the next tag is asked for, from now.
    async fn next(&self) -> i64 {
        let next = self.triggers.next_watch().await.unwrap().unwrap();
        next - self.now.load(Ordering::Relaxed)
    }
}

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn other(digest: &Digest) -> WatchedImage {
    WatchedImage::Other { digest: digest.clone(), members: Vec::new() }
}

fn none(of_host: bool) -> WatchedImage {
    WatchedImage::None { why: "it sleeps".to_owned(), of_host }
}

fn on(image: &str, digest: &Digest) -> Value {
    json!({ "runtime-dependency": { "reference": image, "digest": digest } })
}

fn with_login(password: &str) -> TaskDefinition {
    let mut task = follows(false);
    let login = RegistryLogin::of("ann", password);
    task.logins.others.insert("registry.example.com".to_owned(), login);
    task
}

#[tokio::test]
async fn a_tag_is_asked_for_once_for_all_tasks_and_starts_each_when_it_stays_another_image() {
    let f = Fixture::new().await;
    let (one, two) = (digest("one"), digest("two"));
    for name in ["aaaaa", "bbbbb"] {
        f.built(name, &follows(false), on(IMAGE, &one)).await;
    }
    // Nobody waits for these.
    f.built("plain", &definition(Vec::new()), on("registry.example.com/lib:1", &one)).await;
    f.built("fixed", &follows(false), on(&format!("registry.example.com/fixed@{one}"), &one)).await;
    f.follow().await;
    assert_eq!(f.due(0).await, []);
    assert!((10 * MINUTE..=60 * MINUTE).contains(&f.next().await), "{}", f.next().await);
    let watch = f.only_due(LONG).await;
    assert_eq!(
        (&*watch.host, watch.repository.as_str(), &*watch.tag),
        ("registry.example.com", "os", "1")
    );
    assert_eq!((&watch.digest, &*watch.askers), (&Some(one.clone()), &[Asker::Server][..]));
    f.answer(&watch, WatchedImage::Same).await;
    assert_eq!(f.follow().await, 0);
    assert_eq!(f.becomes(&two).await, 2);
    let run = f.all_runs().await.pop().unwrap();
    let Some(RunCause::BaseImages { images, chain, .. }) = run.cause else { panic!("no cause") };
    assert_eq!((&*images[0].registry, &images[0].digest), ("registry.example.com", &two));
    assert_eq!(chain, []);
    // The same again is nothing new, also if the runs have failed to be built on it.
    let watch = f.only_due(LONG).await;
    assert_eq!(watch.digest, Some(two.clone()));
    f.answer(&watch, other(&two)).await;
    f.answer(&watch, other(&two)).await;
    assert_eq!(f.follow().await, 0);
}

#[tokio::test]
async fn a_release_that_goes_on_counts_once_and_one_that_is_withdrawn_not_at_all() {
    let f = Fixture::new().await;
    let one = digest("one");
    f.built("aaaaa", &follows(false), on(IMAGE, &one)).await;
    f.follow().await;
    let mut wait = LONG;
    for part in 0..5 {
        let watch = f.only_due(wait).await;
        f.answer(&watch, other(&digest(&part.to_string()))).await;
        assert_eq!((f.follow().await, f.next().await), (0, SETTLE));
        wait = SETTLE;
    }
    // A server that ends meanwhile goes on with it.
    let f = f.reopen().await;
    let watch = f.only_due(wait).await;
    f.answer(&watch, other(&digest("4"))).await;
    assert_eq!(f.follow().await, 1);
    f.builds.reports.lock().unwrap().insert("aaaaa".into(), json!([on(IMAGE, &digest("4"))]));
    f.work().await;
    f.follow().await;
    let watch = f.only_due(LONG).await;
    f.answer(&watch, other(&digest("wrong"))).await;
    let watch = f.only_due(SETTLE).await;
    f.answer(&watch, WatchedImage::Same).await;
    assert_eq!(f.follow().await, 0);
    // One that never stays the same counts all the same, after a while.
    let mut wait = LONG;
    for part in 10..20 {
        let watch = f.only_due(wait).await;
        f.answer(&watch, other(&digest(&part.to_string()))).await;
        assert_eq!(f.follow().await, 0);
        wait = SETTLE;
    }
    let watch = f.only_due(wait).await;
    f.answer(&watch, other(&digest("20"))).await;
    assert_eq!(f.follow().await, 1);
}

#[tokio::test]
async fn an_urgent_task_does_not_wait() {
    let f = Fixture::new().await;
    let (one, two) = (digest("one"), digest("two"));
    let mut urgent = follows(false);
    let trigger = urgent
        .triggers
        .base_image
        .take()
        .map(|trigger| control::BaseImageTrigger { urgent: true, ..trigger });
    urgent.triggers = TaskTriggers { base_image: trigger, ..TaskTriggers::default() };
    f.built("aaaaa", &follows(false), on(IMAGE, &one)).await;
    f.built("hurry", &urgent, on(IMAGE, &one)).await;
    f.follow().await;
    let watch = f.only_due(LONG).await;
    f.answer(&watch, other(&two)).await;
    assert_eq!(f.follow().await, 1);
    f.builds.reports.lock().unwrap().insert("hurry".into(), json!([on(IMAGE, &two)]));
    f.work().await;
    let watch = f.only_due(SETTLE).await;
    f.answer(&watch, other(&two)).await;
    assert_eq!(f.follow().await, 1);
    let tasks: Vec<_> = f.updates().await.into_iter().map(|(task, _)| task).collect();
    assert_eq!(tasks, ["hurry", "aaaaa"]);
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_left_alone_and_misses_nothing() {
    let f = Fixture::new().await;
    let (one, two) = (digest("one"), digest("two"));
    for number in 0..4 {
        let image = format!("registry.example.com/os{number}:1");
        f.built(&format!("task{number}"), &follows(false), on(&image, &one)).await;
    }
    f.built("other", &follows(false), on("other.example.com/os:1", &one)).await;
    f.follow().await;
    let due = f.due(LONG).await;
    assert_eq!(due.len(), 5);
    let (others, watches): (Vec<_>, Vec<_>) =
        due.into_iter().partition(|watch| watch.host == "other.example.com");
    f.answer(&others[0], WatchedImage::Same).await;
    f.answer(&watches[0], none(true)).await;
    assert_eq!(f.due(0).await, []);
    // Longer and longer, and then by one question only, also after a restart.
    let mut pauses = Vec::new();
    let f = f.reopen().await;
    for _ in 0..12 {
        let pause = f.next_of("registry.example.com").await;
        let probes: Vec<_> = f.due(pause).await;
        let probes: Vec<_> =
            probes.iter().filter(|watch| watch.host != "other.example.com").collect();
        assert_eq!(probes.len(), 1);
        f.answer(probes[0], none(true)).await;
        for watch in f.due(0).await {
            f.answer(&watch, WatchedImage::Same).await;
        }
        pauses.push(pause);
    }
    assert!(pauses[0] < 40_000 && pauses.iter().max().unwrap() <= &(7 * 60 * MINUTE), "{pauses:?}");
    f.now.fetch_add(7 * 60 * MINUTE, Ordering::Relaxed);
    let probe = f.due(0).await.into_iter().find(|watch| watch.host != "other.example.com").unwrap();
    f.answer(&probe, other(&two)).await;
    let rest: Vec<_> =
        f.due(0).await.into_iter().filter(|watch| watch.host != "other.example.com").collect();
    assert_eq!(rest.len(), 3);
    for watch in rest {
        f.answer(&watch, other(&two)).await;
    }
    for watch in f.due(SETTLE).await {
        f.answer(&watch, other(&two)).await;
    }
    assert_eq!(f.follow().await, 4);
}

#[tokio::test]
async fn what_is_put_back_before_it_is_answered_starts_nothing() {
    let f = Fixture::new().await;
    let (one, two) = (digest("one"), digest("two"));
    f.built("aaaaa", &follows(false), on(IMAGE, &one)).await;
    f.follow().await;
    let image = ImageTag {
        host: Some("registry.example.com".to_owned()),
        repository: "os".to_owned(),
        tag: "1".to_owned(),
    };
    let scope = PauseScope::Base(image);
    let (reason, by) = ("broken".to_owned(), "ann".to_owned());
    let pause = Pause { scope: scope.clone(), reason, ends_at: None, by, since: 0 };
    f.triggers.pause(&local(), &pause).await.unwrap();
    assert_eq!(f.becomes(&two).await, 0);
    assert_eq!(f.becomes(&one).await, 0);
    assert!(f.triggers.resume(&local(), &scope).await.unwrap());
    assert_eq!(f.follow().await, 0);
    // A run that was built on what is withdrawn while it settles is built again.
    let watch = f.only_due(LONG).await;
    f.answer(&watch, other(&two)).await;
    f.builds.reports.lock().unwrap().insert("aaaaa".into(), json!([on(IMAGE, &two)]));
    f.built("aaaaa", &follows(false), on(IMAGE, &two)).await;
    f.follow().await;
    let watch = f.only_due(SETTLE).await;
    assert_eq!(watch.digest, None);
    f.answer(&watch, other(&one)).await;
    let watch = f.only_due(SETTLE).await;
    f.answer(&watch, other(&one)).await;
    assert_eq!(f.follow().await, 1);
}

#[tokio::test]
async fn a_task_does_not_start_itself_by_what_it_pushes_elsewhere() {
    let f = Fixture::new().await;
    f.builds.outputs.lock().unwrap().insert("aaaaa".to_owned(), IMAGE.to_owned());
    f.built("aaaaa", &follows(false), on(IMAGE, &digest("one"))).await;
    f.built("bbbbb", &follows(false), on(IMAGE, &digest("one"))).await;
    f.follow().await;
    let run = f.all_runs().await.into_iter().find(|run| run.task == Some(task_name("aaaaa")));
    let pushed = digest(&format!("by {}", run.unwrap().id));
    assert_eq!(f.becomes(&pushed).await, 1);
    assert_eq!(f.updates().await.last().unwrap().0, "bbbbb");
    // What somebody else pushes there starts it as ever.
    assert_eq!(f.becomes(&digest("two")).await, 1);
    assert_eq!(f.updates().await.last().unwrap().0, "aaaaa");
}

#[tokio::test]
async fn nothing_is_asked_for_where_that_is_off_and_what_was_not_is_found_later() {
    let f = Fixture::new().await;
    let one = digest("one");
    f.built("aaaaa", &follows(false), on(IMAGE, &one)).await;
    f.follow().await;
    let mut off = f.triggers_with(Duration::ZERO).await;
    f.now.fetch_add(LONG, Ordering::Relaxed);
    assert_eq!((off.due_watches().await.unwrap(), off.next_watch().await.unwrap()), (vec![], None));
    // Learned while it was off.
    off.fire_bases(&own).await.unwrap();
    f.built("bbbbb", &follows(false), on("registry.example.com/lib:1", &one)).await;
    off.fire_bases(&own).await.unwrap();
    assert_eq!(f.triggers.watches(&local(), 10).await.unwrap().len(), 1);
    off = f.triggers_with(Duration::from_secs(60)).await;
    off.watch_again(&own).await.unwrap();
    off.fire_bases(&own).await.unwrap();
    assert_eq!(f.triggers.watches(&local(), 10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_registry_that_asks_for_a_pause_gets_it() {
    let f = Fixture::new().await;
    let one = digest("one");
    f.built("aaaaa", &follows(false), on(IMAGE, &one)).await;
    f.built("bbbbb", &follows(false), on("registry.example.com/lib:1", &one)).await;
    f.follow().await;
    let due = f.due(LONG).await;
    let rest = Some(Duration::from_secs(3 * 3600));
    f.triggers.watched(&due[0], WatchAnswer { image: WatchedImage::Same, rest }).await.unwrap();
    assert_eq!(f.next().await, 180 * MINUTE);
    assert_eq!(f.due(179 * MINUTE).await, []);
    // It has answered, so all may be asked.
    assert_eq!(f.due(MINUTE).await.len(), 2);
    let status = f.triggers.watches(&local(), 10).await.unwrap();
    let asked: Vec<_> =
        status.iter().map(|watch| (&*watch.repository, watch.asked_at.is_some())).collect();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked.iter().filter(|(_, asked)| *asked).count(), 1);
}

#[tokio::test]
async fn a_tag_that_may_not_be_seen_is_asked_for_less_and_less() {
    let f = Fixture::new().await;
    let one = digest("one");
    f.built("aaaaa", &follows(false), on(IMAGE, &one)).await;
    f.built("bbbbb", &follows(false), on("registry.example.com/lib:1", &one)).await;
    f.follow().await;
    let due = f.due(LONG).await;
    f.answer(&due[0], none(false)).await;
    // The others of its registry are asked for as ever.
    assert_eq!(f.due(0).await.len(), 1);
    let status = f.triggers.watches(&local(), 10).await.unwrap();
    let errors: Vec<_> = status.iter().filter_map(|watch| watch.error.as_deref()).collect();
    assert_eq!(errors, ["it sleeps"]);
}

#[tokio::test]
async fn who_asks_is_who_waits() {
    let f = Fixture::new().await;
    let (one, two) = (digest("one"), digest("two"));
    f.built("aaaaa", &with_login("first"), on(IMAGE, &one)).await;
    f.built("bbbbb", &with_login("first"), on(IMAGE, &one)).await;
    f.built("ccccc", &with_login("second"), on(IMAGE, &one)).await;
    f.follow().await;
    let watch = f.only_due(LONG).await;
    let asker = |name: &str, password: &str| Asker::Task {
        name: task_name(name),
        login: RegistryLogin::of("ann", password),
    };
    assert_eq!(watch.askers, [asker("aaaaa", "first"), asker("ccccc", "second")]);
    // Nobody asks for tasks that sleep; one that is gone is forgotten.
    for name in ["aaaaa", "bbbbb", "ccccc"] {
        f.put(name, &TaskDefinition { enabled: false, ..with_login("first") }).await;
    }
    assert_eq!(f.due(0).await, []);
    assert_eq!(f.triggers.watches(&local(), 10).await.unwrap().len(), 1);
    f.put("aaaaa", &with_login("first")).await;
    // What moved meanwhile is not missed.
    assert_eq!(f.becomes(&two).await, 1);
    for name in ["aaaaa", "bbbbb", "ccccc"] {
        f.tasks.delete(&local(), &task_name(name)).await.unwrap();
    }
    assert_eq!(f.due(LONG).await, []);
    assert_eq!(f.triggers.watches(&local(), 10).await.unwrap(), []);
}

#[tokio::test]
async fn a_run_that_has_seen_something_else_says_when_to_ask() {
    let f = Fixture::new().await;
    let (one, two) = (digest("one"), digest("two"));
    f.built("aaaaa", &follows(false), on(IMAGE, &one)).await;
    f.follow().await;
    f.built("bbbbb", &follows(false), on(IMAGE, &two)).await;
    f.follow().await;
    let watch = f.only_due(0).await;
    assert_eq!(watch.digest, None);
    f.answer(&watch, other(&two)).await;
    let watch = f.only_due(SETTLE).await;
    f.answer(&watch, other(&two)).await;
    // The other was built on it.
    assert_eq!(f.follow().await, 1);
    assert_eq!(f.updates().await[0].0, "aaaaa");
}
