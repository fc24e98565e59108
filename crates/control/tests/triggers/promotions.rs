//! Tags that move to an image after checks and an approval.

use control::{
    ControlError, ImageTag, NewPromotion, Promotion, PromotionRequest, PromotionRules,
    PromotionStatus, RunStatus, TaskDefinition, TaskStep,
};
use oci::Digest;

use super::{Fixture, RunCause, definition, follows, local, pushed, task_name};

const IMAGE: &str = "localhost:5000/app@sha256:0";

impl Fixture {
    async fn promote(&self, digest: &Digest, checks: &[&str]) -> Result<Promotion, ControlError> {
        let request = PromotionRequest {
            repository: "app".into(),
            tag: Some("1".into()),
            digest: digest.clone(),
            to: ImageTag::own("app", "prod"),
        };
        let checks: Vec<_> = checks.iter().map(|name| task_name(name)).collect();
        let before = self.tag("app:prod").await;
        let (image, before, by) = (IMAGE, before.as_ref(), "ann");
        let related = std::slice::from_ref(digest);
        let new = NewPromotion { request: &request, image, related, before, checks: &checks, by };
        self.triggers.promote(&local(), &new).await
    }

    async fn put_back(&self, promotion: &Promotion) -> Result<Promotion, ControlError> {
        let found = self.triggers.promotion(&local(), promotion.id).await?;
        found.require_succeeded()?;
        self.triggers.put_back_promoted(&found, "ben").await?;
        self.triggers.promotion_rolled_back(&found).await
    }

    /// Goes on with promotions, moving the tags that are due.
    async fn go_on(&self) {
        for promotion in self.triggers.due_promotions().await.unwrap() {
            self.triggers.move_promoted(&promotion).await.unwrap();
        }
    }

    async fn stands(&self, promotion: &Promotion) -> (PromotionStatus, Option<String>) {
        let found = self.triggers.promotion(&local(), promotion.id).await.unwrap();
        (found.status, found.error)
    }
}

fn refused(result: Result<Promotion, ControlError>) -> String {
    match result.unwrap_err() {
        ControlError::Conflict { message } => message,
        error => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn a_tag_moves_when_all_checks_have_passed_and_can_be_put_back() {
    let f = Fixture::new().await;
    let (one, _) = f.push("app:1", &["a"], pushed()).await;
    f.put("smoke", &definition(Vec::new())).await;
    f.put("scan1", &definition(Vec::new())).await;
    let begun = f.promote(&one, &["smoke", "scan1"]).await.unwrap();
    assert_eq!((begun.id.to_string().as_str(), begun.status), ("m1", PromotionStatus::Checking));
    let runs = f.all_runs().await;
    let cause = RunCause::Check { promotion: "m1".into(), by: "ann".into() };
    assert!(runs.iter().all(|run| run.cause.as_ref() == Some(&cause)), "{runs:?}");
    let values: Vec<_> =
        runs.iter().map(|run| run.request.task().unwrap().values.clone()).collect();
    assert_eq!(values[0][0].name, "image");
    assert_eq!(values[0][0].value, IMAGE);
    f.go_on().await;
    assert_eq!(
        (f.stands(&begun).await.0, f.tag("app:prod").await),
        (PromotionStatus::Checking, None)
    );
    // Whatever the tag is meanwhile, and whoever goes on.
    let (two, _) = f.push("app:1", &["b"], pushed()).await;
    f.work().await;
    let f = f.reopen().await;
    f.go_on().await;
    assert_eq!(f.stands(&begun).await, (PromotionStatus::Succeeded, None));
    assert_eq!(f.tag("app:prod").await.as_ref(), Some(&one));
    assert_eq!(refused(f.promote(&one, &[]).await), "`app:prod` is that image already");
    // Without checks it moves at once.
    let second = f.promote(&two, &[]).await.unwrap();
    f.go_on().await;
    assert_eq!(f.stands(&second).await.0, PromotionStatus::Succeeded);
    // A later one is put back before an earlier one.
    let early = f.put_back(&begun).await;
    let why = "`app:prod` is not put back: it has moved since";
    assert_eq!(refused(early), why);
    f.put_back(&second).await.unwrap();
    assert_eq!(f.tag("app:prod").await, Some(one));
    f.put_back(&begun).await.unwrap();
    assert_eq!(f.tag("app:prod").await, None);
    let again = f.put_back(&begun).await;
    assert_eq!(refused(again), "promotion `m1` is RolledBack");
    let listed = f.triggers.promotions(&local(), 10).await.unwrap();
    let listed: Vec<_> = listed.iter().map(|one| one.id.to_string()).collect();
    assert_eq!(listed, ["m2", "m1"]);
}

#[tokio::test]
async fn a_check_that_fails_keeps_the_tag() {
    let f = Fixture::new().await;
    let (one, _) = f.push("app:1", &["a"], pushed()).await;
    f.put("smoke", &definition(Vec::new())).await;
    f.put("scan1", &definition(Vec::new())).await;
    f.builds.failing.lock().unwrap().insert("scan1".into());
    let begun = f.promote(&one, &["smoke", "scan1"]).await.unwrap();
    f.work().await;
    f.go_on().await;
    let (status, error) = f.stands(&begun).await;
    assert_eq!(status, PromotionStatus::Failed);
    let why = "check `scan1` has not passed: run `c02` is Failed";
    assert_eq!(error.as_deref(), Some(why));
    assert_eq!(f.tag("app:prod").await, None);
    // Nothing is queued if one of them cannot be.
    f.put("off-duty", &TaskDefinition { enabled: false, ..definition(Vec::new()) }).await;
    let system = TaskDefinition { step: TaskStep::System, ..definition(Vec::new()) };
    f.put("quicktask", &system).await;
    for (check, why) in [
        ("off-duty", "the task is disabled"),
        ("missing", "there is no such task"),
        ("quicktask", "a system task has no runs: it says how quick runs are carried out"),
    ] {
        let message = refused(f.promote(&one, &["smoke", check]).await);
        assert_eq!(message, format!("check `{check}`: {why}"));
    }
    assert_eq!(f.all_runs().await.len(), 2);
    // Who has moved the tag meanwhile keeps it, to whatever image.
    let same = f.promote(&one, &["smoke"]).await.unwrap();
    f.push("app:prod", &["a"], pushed()).await;
    f.work().await;
    f.go_on().await;
    let (status, error) = f.stands(&same).await;
    let why = "somebody else has moved the tag to this image meanwhile";
    assert_eq!((status, error.as_deref()), (PromotionStatus::Failed, Some(why)));
    assert_eq!(refused(f.put_back(&same).await), format!("promotion `{}` is Failed", same.id));
    f.push("app:prod", &["c"], pushed()).await;
    let late = f.promote(&one, &["smoke"]).await.unwrap();
    let (other, _) = f.push("app:prod", &["b"], pushed()).await;
    f.work().await;
    f.go_on().await;
    let (status, error) = f.stands(&late).await;
    assert_eq!(status, PromotionStatus::Failed);
    assert!(error.unwrap().contains("has moved"));
    assert_eq!(f.tag("app:prod").await, Some(other));
}

#[tokio::test]
async fn what_tasks_ask_for_that_have_made_the_image_cannot_be_left_out() {
    let f = Fixture::new().await;
    f.push("os:1", &["a"], pushed()).await;
    f.follow().await;
    f.put("smoke", &definition(Vec::new())).await;
    f.makes("maker", "app:1", &["os:1"]).await;
    let promotion = PromotionRules { checks: vec![task_name("smoke")], approval: true };
    f.put("maker", &TaskDefinition { promotion, ..follows(true) }).await;
    let made = f.tag("app:1").await.unwrap();
    let begun = f.promote(&made, &["smoke"]).await.unwrap();
    let checks: Vec<_> = begun.checks.iter().map(|check| check.task.as_str()).collect();
    assert_eq!((checks, begun.approval), (vec!["smoke"], true));
    let early = f.triggers.approve_promotion(&local(), begun.id, "ben").await;
    assert_eq!(refused(early), "promotion `m1` is Checking");
    f.work().await;
    f.go_on().await;
    assert_eq!(f.stands(&begun).await.0, PromotionStatus::AwaitingApproval);
    assert_eq!(f.tag("app:prod").await, None);
    let f = f.reopen().await;
    f.go_on().await;
    let approved = f.triggers.approve_promotion(&local(), begun.id, "ben").await.unwrap();
    assert_eq!(approved.decided_by.as_deref(), Some("ben"));
    f.go_on().await;
    assert_eq!(f.stands(&begun).await.0, PromotionStatus::Succeeded);
    assert_eq!(f.tag("app:prod").await, Some(made));
    // Whoever does not want it ends it, with its checks.
    let (other, _) = f.push("app:2", &["b"], pushed()).await;
    let begun = f.promote(&other, &["smoke"]).await.unwrap();
    let rejected = f.triggers.reject_promotion(&local(), begun.id, "ben").await.unwrap();
    assert_eq!(rejected.status, PromotionStatus::Rejected);
    let check = f.all_runs().await.pop().unwrap();
    assert_eq!(check.status, RunStatus::Canceled);
    f.go_on().await;
    assert_eq!(f.stands(&begun).await.0, PromotionStatus::Rejected);
}
