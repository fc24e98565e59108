//! What an update of a base touches, carried out and put back.

use control::{
    ControlError, ImageTag, ItemState, Method, Plan, PlanRequest, PlanStatus, TagReturn,
    TaskDefinition,
};
use oci::Digest;
use store::ManifestRef;

use super::{Fixture, RunCause, definition, follows, local, own, pushed, task_name};

impl Fixture {
    /// An image of three levels: two runtimes, a framework on one of them, and three applications.
    async fn family(&self) {
        self.push("os:1", &["a"], pushed()).await;
        self.follow().await;
        self.makes("runtime1", "runtime1:1", &["os:1"]).await;
        self.makes("runtime2", "runtime2:1", &["os:1"]).await;
        self.makes("framework", "framework:1", &["runtime1:1"]).await;
        self.makes("apps1", "apps1:1", &["framework:1", "os:1"]).await;
        self.makes("apps2", "apps2:1", &["runtime2:1"]).await;
        self.waves().await;
    }

    async fn plan(&self, to: Option<&Digest>, canary: u8) -> Plan {
        let (base, to) = (os(), to.cloned());
        let request = PlanRequest { base, to, members: Vec::new(), canary };
        self.triggers.plan(&local(), &own, &request, "ann").await.unwrap()
    }

    async fn found(&self, plan: &Plan) -> Plan {
        self.triggers.find_plan(&local(), plan.id).await.unwrap().unwrap()
    }

    async fn apply(&self, plan: &Plan) -> Result<Plan, ControlError> {
        self.triggers.apply_plan(&local(), &own, plan.id, "ben").await
    }

    /// Goes on with plans, and says which tasks have a run that has not begun.
    async fn advance(&self) -> Vec<String> {
        self.triggers.advance_plans().await.unwrap();
        let runs = self.all_runs().await.into_iter().filter(|run| !run.status.is_final());
        runs.map(|run| run.task.unwrap().to_string()).collect()
    }

    /// Goes on until there is nothing to be done; which tasks were built at a time.
    async fn advanced(&self) -> Vec<Vec<String>> {
        let mut all = Vec::new();
        loop {
            let waiting = self.advance().await;
            if waiting.is_empty() {
                return all;
            }
            // Nothing else starts them meanwhile.
            assert_eq!(self.follow().await, 0);
            all.push(waiting);
            self.work().await;
        }
    }

    pub(super) async fn tag(&self, name: &str) -> Option<Digest> {
        let (repository, tag) = name.split_once(':').unwrap();
        let reference = ManifestRef::Tag(tag.parse().unwrap());
        self.catalog.digest_of(&local(), &repository.parse().unwrap(), &reference).await.unwrap()
    }
}

fn os() -> ImageTag {
    ImageTag { host: None, repository: "os".into(), tag: "1".into() }
}

fn shown(plan: &Plan) -> Vec<String> {
    let shown = plan.items.iter().map(|item| {
        let drawn = &item.drawn;
        let list = |names: Vec<String>| names.join(",");
        let parents = list(drawn.parents.iter().map(ToString::to_string).collect());
        let tags = list(drawn.tags.iter().map(ToString::to_string).collect());
        let reason = drawn.reason.as_deref().map(|why| format!(" ({why})")).unwrap_or_default();
        let method = drawn.method.as_str();
        format!("{} {} after [{parents}] moves [{tags}] {method}{reason}", drawn.level, drawn.task)
    });
    shown.collect()
}

fn states(plan: &Plan) -> Vec<(String, ItemState)> {
    plan.items.iter().map(|item| (item.drawn.task.to_string(), item.state)).collect()
}

fn refused(result: Result<Plan, ControlError>) -> String {
    match result.unwrap_err() {
        ControlError::Conflict { message } => message,
        error => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn a_plan_lists_what_follows_level_by_level() {
    let f = Fixture::new().await;
    f.family().await;
    // Whoever plans decides by that, and not the trigger; a task that is switched off stays so.
    f.makes("apps3", "apps3:1", &["runtime1:1"]).await;
    f.put("apps3", &definition(Vec::new())).await;
    f.put("apps2", &TaskDefinition { enabled: false, ..follows(true) }).await;
    let plan = f.plan(None, 10).await;
    assert_eq!(
        shown(&plan),
        [
            "1 runtime1 after [] moves [runtime1:1] Rebuild",
            "1 runtime2 after [] moves [runtime2:1] Rebuild",
            "2 apps2 after [runtime2] moves [apps2:1] Nothing (the task is disabled)",
            "2 apps3 after [runtime1] moves [apps3:1] Rebuild",
            "2 framework after [runtime1] moves [framework:1] Rebuild",
            "3 apps1 after [framework] moves [apps1:1] Rebuild",
        ]
    );
    assert_eq!((plan.id.to_string().as_str(), plan.status), ("p1", PlanStatus::Planned));
    assert_eq!(plan.digest_before, f.tag("os:1").await);
    let canaries = plan.items.iter().filter(|item| item.drawn.canary);
    let canaries: Vec<_> = canaries.map(|item| item.drawn.task.as_str()).collect();
    assert_eq!(canaries, ["runtime1", "apps3", "apps1"]);
    // All runs took no time; each has one.
    let expected = plan.estimate();
    let critical: Vec<_> = expected.critical.iter().map(|task| task.as_str()).collect();
    assert_eq!((critical.last(), expected.unknown), (Some(&"apps1"), 0));
    // The same has the same hash, and nothing was started.
    let again = f.plan(None, 10).await;
    assert_eq!((&again.hash, again.id.to_string().as_str()), (&plan.hash, "p2"));
    assert_ne!(f.plan(None, 20).await.hash, plan.hash);
    assert_eq!(f.advance().await, [""; 0]);
    let listed = f.triggers.plans(&local(), 2).await.unwrap();
    let listed: Vec<_> = listed.iter().map(|plan| plan.id.to_string()).collect();
    assert_eq!(listed, ["p3", "p2"]);
}

#[tokio::test]
async fn a_plan_moves_its_base_and_builds_in_order_canaries_first() {
    let f = Fixture::new().await;
    f.family().await;
    let before = f.tag("os:1").await;
    let (patched, _) = f.push("os:patched", &["b"], pushed()).await;
    f.follow().await;
    let plan = f.plan(Some(&patched), 50).await;
    f.apply(&plan).await.unwrap();
    // A server that ends in between is no matter.
    assert_eq!(f.advance().await, ["runtime1"]);
    let f = f.reopen().await;
    assert_eq!(f.advance().await, ["runtime1"]);
    assert_eq!(f.tag("os:1").await, Some(patched.clone()));
    // What the move of the base would start is the plan's to do.
    assert_eq!(f.follow().await, 0);
    f.work().await;
    let f = f.reopen().await;
    let rest = f.advanced().await;
    assert_eq!(rest, [["runtime2"], ["apps2"], ["framework"], ["apps1"]]);
    let plan = f.found(&plan).await;
    assert_eq!((plan.status, plan.error.as_deref()), (PlanStatus::Succeeded, None));
    assert!(plan.items.iter().all(|item| item.state == ItemState::Succeeded), "{plan:?}");
    let moved = plan.base_move.unwrap();
    assert_eq!((moved.old, moved.new, moved.back), (before, patched, None));
    for item in &plan.items {
        let [moved] = &*item.moves else { panic!("{item:?}") };
        let name = format!("{}:{}", moved.repository, moved.tag);
        assert_eq!(f.tag(&name).await.as_ref(), Some(&moved.new));
    }
    let run = f.all_runs().await.pop().unwrap();
    assert_eq!(run.cause, Some(RunCause::Plan { plan: "p1".into(), by: "ben".into() }));
    // Each is on the new base now, and nothing follows once more.
    assert_eq!(f.waves().await, [""; 0]);
    assert_eq!(f.updates().await, []);
}

#[tokio::test]
async fn a_failure_stops_a_plan_that_can_go_on() {
    let f = Fixture::new().await;
    f.family().await;
    let (patched, _) = f.push("os:patched", &["b"], pushed()).await;
    f.follow().await;
    f.builds.failing.lock().unwrap().insert("runtime1".into());
    let plan = f.plan(Some(&patched), 0).await;
    f.apply(&plan).await.unwrap();
    assert_eq!(f.advanced().await, [["runtime1", "runtime2"]]);
    let stopped = f.found(&plan).await;
    assert_eq!(stopped.status, PlanStatus::Stopped);
    let failed = stopped.items[0].run.unwrap();
    assert_eq!(stopped.error, Some(format!("task `runtime1`: run `{failed}` is Failed")));
    let of = |task: &str, state| (task.to_owned(), state);
    assert_eq!(
        states(&stopped),
        [
            of("runtime1", ItemState::Failed),
            of("runtime2", ItemState::Succeeded),
            of("apps2", ItemState::Waiting),
            of("framework", ItemState::Waiting),
            of("apps1", ItemState::Waiting),
        ]
    );
    // Their triggers wait, and say for what.
    assert_eq!(f.follow().await, 0);
    let why = "plan `p1` has stopped: `refit apply p1` goes on, `refit rollback p1` puts back, \
               `refit plan close p1` gives it up";
    let decisions = f.decisions().await;
    assert!(decisions.contains(&format!("runtime1 Waits: {why}")), "{decisions:?}");
    assert_eq!(refused(f.apply(&f.plan(Some(&patched), 0).await).await), {
        "plan `p1` has task `apps1`, and is not at its end"
    });
    // Mended, it goes on where it was.
    f.builds.failing.lock().unwrap().clear();
    let mended = TaskDefinition { description: Some("mended".into()), ..follows(true) };
    f.put("runtime1", &mended).await;
    let again = f.apply(&plan).await.unwrap();
    assert_eq!((again.error, again.attempts), (None, 2));
    assert_eq!(f.advanced().await, [vec!["runtime1", "apps2"], vec!["framework"], vec!["apps1"]]);
    assert_eq!(f.found(&plan).await.status, PlanStatus::Succeeded);
    assert_eq!(refused(f.apply(&plan).await), "plan `p1` is Succeeded");
}

#[tokio::test]
async fn a_plan_that_is_given_up_leaves_its_tasks_to_their_triggers() {
    let f = Fixture::new().await;
    f.family().await;
    let (patched, _) = f.push("os:patched", &["b"], pushed()).await;
    f.follow().await;
    let plan = f.plan(Some(&patched), 0).await;
    f.apply(&plan).await.unwrap();
    assert_eq!(f.advance().await, ["runtime1", "runtime2"]);
    let stopping = f.triggers.stop_plan(&local(), plan.id, "eve").await.unwrap();
    assert_eq!(stopping.error.as_deref(), Some("it was stopped by eve"));
    assert_eq!(refused(f.triggers.close_plan(&local(), plan.id).await), "plan `p1` is Stopping");
    assert_eq!(f.advanced().await, [["runtime1", "runtime2"]]);
    assert_eq!(f.found(&plan).await.status, PlanStatus::Stopped);
    assert_eq!(f.follow().await, 0);
    f.triggers.close_plan(&local(), plan.id).await.unwrap();
    // Those that were built have moved their images; the rest follows as without a plan.
    assert_eq!(f.waves().await, ["apps2", "framework", "apps1"]);
}

#[tokio::test]
async fn a_plan_is_refused_if_another_one_would_be_made() {
    let f = Fixture::new().await;
    f.family().await;
    let (patched, _) = f.push("os:patched", &["b"], pushed()).await;
    let plan = f.plan(Some(&patched), 0).await;
    let changed = TaskDefinition { description: Some("another".into()), ..follows(true) };
    f.put("runtime1", &changed).await;
    f.makes("apps3", "apps3:1", &["runtime1:1"]).await;
    assert_eq!(
        refused(f.apply(&plan).await),
        "plan `p1` is not what would be planned now: it concerns `apps3`, `runtime1`; make another"
    );
    let plan = f.plan(Some(&patched), 0).await;
    f.push("os:1", &["c"], pushed()).await;
    let why = "plan `p2` is not what would be planned now: the base has moved; make another";
    assert_eq!(refused(f.apply(&plan).await), why);
    // Also while it is carried out: of a task that has changed there is another plan to be made.
    let plan = f.plan(Some(&patched), 0).await;
    f.apply(&plan).await.unwrap();
    assert_eq!(f.advance().await, ["runtime1", "runtime2"]);
    f.put("framework", &changed).await;
    f.advanced().await;
    let plan = f.found(&plan).await;
    assert_eq!(plan.status, PlanStatus::Stopped);
    let why = "task `framework`: it has changed since the plan was made";
    assert_eq!(plan.error.as_deref(), Some(why));
}

#[tokio::test]
async fn a_rollback_puts_back_what_nobody_has_moved_since() {
    let f = Fixture::new().await;
    f.family().await;
    let names = ["os:1", "runtime1:1", "runtime2:1", "framework:1", "apps1:1", "apps2:1"];
    let mut before = Vec::new();
    for name in names {
        before.push(f.tag(name).await);
    }
    let (patched, _) = f.push("os:patched", &["b"], pushed()).await;
    f.follow().await;
    let plan = f.plan(Some(&patched), 0).await;
    f.apply(&plan).await.unwrap();
    f.advanced().await;
    let (theirs, _) = f.push("apps2:1", &["theirs"], pushed()).await;
    f.follow().await;
    f.triggers.roll_back_plan(&local(), plan.id).await.unwrap();
    let f = f.reopen().await;
    assert_eq!(f.advance().await, [""; 0]);
    let back = f.found(&plan).await;
    assert_eq!(back.status, PlanStatus::RolledBack);
    for (name, before) in names.iter().zip(&before) {
        let expected = if *name == "apps2:1" { Some(&theirs) } else { before.as_ref() };
        assert_eq!(f.tag(name).await.as_ref(), expected, "{name}");
    }
    let kept = back.items.iter().flat_map(|item| &item.moves);
    let kept: Vec<_> = kept.filter(|moved| moved.back != Some(TagReturn::Done)).collect();
    let [moved] = &*kept else { panic!("{kept:?}") };
    assert_eq!(moved.repository, "apps2");
    assert!(
        matches!(&moved.back, Some(TagReturn::Kept(why)) if why.contains("has moved meanwhile")),
        "{moved:?}"
    );
    // They are built on what they were before: going back is no move that anything follows from. Only
    // the task of the image that was kept stands on what is gone.
    assert_eq!(f.waves().await, ["apps2"]);
    assert_eq!(refused(f.triggers.roll_back_plan(&local(), plan.id).await), {
        "plan `p1` is RolledBack"
    });
}

#[tokio::test]
async fn a_rollback_cancels_what_has_not_ended() {
    let f = Fixture::new().await;
    f.family().await;
    let before = (f.tag("os:1").await, f.tag("runtime1:1").await);
    let (patched, _) = f.push("os:patched", &["b"], pushed()).await;
    f.follow().await;
    let plan = f.plan(Some(&patched), 0).await;
    f.apply(&plan).await.unwrap();
    f.advance().await;
    f.work().await;
    assert_eq!(f.advance().await, ["apps2", "framework"]);
    f.triggers.roll_back_plan(&local(), plan.id).await.unwrap();
    assert_eq!(f.advance().await, [""; 0]);
    assert_eq!(f.found(&plan).await.status, PlanStatus::RolledBack);
    assert_eq!((f.tag("os:1").await, f.tag("runtime1:1").await), before);
    assert_eq!(f.waves().await, [""; 0]);
}

#[tokio::test]
async fn a_base_that_cannot_be_moved_stops_the_plan_before_anything_is_built() {
    let f = Fixture::new().await;
    f.family().await;
    let (patched, _) = f.push("os:patched", &["b"], pushed()).await;
    let plan = f.plan(Some(&patched), 0).await;
    f.apply(&plan).await.unwrap();
    let (theirs, _) = f.push("os:1", &["c"], pushed()).await;
    assert_eq!(f.advance().await, [""; 0]);
    let stopped = f.found(&plan).await;
    assert_eq!((stopped.status, &stopped.base_move), (PlanStatus::Stopped, &None));
    assert!(stopped.error.unwrap().starts_with("`os:1` cannot be moved: "));
    assert_eq!(f.tag("os:1").await, Some(theirs));
    // Nothing has moved, so there is nothing to be put back.
    f.triggers.roll_back_plan(&local(), plan.id).await.unwrap();
    f.advance().await;
    assert_eq!(f.found(&plan).await.status, PlanStatus::RolledBack);
    f.tasks.delete(&local(), &task_name("apps1")).await.unwrap();
}

#[tokio::test]
async fn plans_know_what_takes_no_command_and_how_long_it_takes() {
    let f = Fixture::new().await;
    f.family().await;
    let plan = f.plan(None, 0).await;
    assert!(plan.items.iter().all(|item| item.drawn.method == Method::Rebuild));
    assert!(plan.items.iter().all(|item| item.drawn.time.is_some_and(|time| time.runs >= 1)));
    assert!(!plan.items.iter().any(|item| item.drawn.canary));
}
