//! What an update of a base touches.

use control::{BuildTime, ImageTag, Plan, PlanItem, PlanMove, TagReturn};
use store::Millis;

use super::time;

/// A plan with its tasks. `own_host`: what the registry is called.
pub(crate) fn plan(plan: &Plan, own_host: &str) -> api::Plan {
    let expected = plan.estimate();
    let expected = api::PlanTime {
        sum: millis(expected.sum),
        critical_path: expected.critical.iter().map(ToString::to_string).collect(),
        critical: api::ExpectedTime {
            min: millis(expected.critical_min),
            median: millis(expected.critical_median),
            max: millis(expected.critical_max),
        },
        unknown: expected.unknown as u64,
    };
    let tasks = plan.items.iter().map(|item| task(item, own_host)).collect();
    api::Plan { expected: Some(expected), tasks: Some(tasks), ..listed_plan(plan, own_host) }
}

/// A plan without its tasks.
pub(crate) fn listed_plan(plan: &Plan, own_host: &str) -> api::Plan {
    api::Plan {
        name: plan.id.to_string(),
        hash: plan.hash.to_string(),
        status: plan.status.as_str().into(),
        error: plan.error.clone(),
        base: plan.request.base.named(own_host),
        base_digest: plan.digest_before.as_ref().map(ToString::to_string),
        digest: plan.request.to.as_ref().map(ToString::to_string),
        canary_percent: plan.request.canary,
        created_by: plan.created_by.clone(),
        create_time: time(plan.created_at),
        applied_by: plan.applied_by.clone(),
        apply_time: plan.applied_at.map(time),
        last_update_time: time(plan.updated_at),
        base_move: plan.base_move.as_ref().map(|moved| plan_move(moved, own_host)),
        expected: None,
        tasks: None,
    }
}

fn task(item: &PlanItem, own_host: &str) -> api::PlanTask {
    let drawn = &item.drawn;
    let named = |images: &[ImageTag]| images.iter().map(|image| image.named(own_host)).collect();
    let expected = |time: BuildTime| api::ExpectedTime {
        min: millis(time.min),
        median: millis(time.median),
        max: millis(time.max),
    };
    api::PlanTask {
        task: drawn.task.to_string(),
        level: drawn.level as u64,
        owner: drawn.owner.clone(),
        method: drawn.method.as_str().into(),
        reason: drawn.reason.clone(),
        canary: drawn.canary,
        bases: named(&drawn.bases),
        depends_on: drawn.parents.iter().map(ToString::to_string).collect(),
        images: named(&drawn.tags),
        expected: drawn.time.map(expected),
        status: item.state.as_str().into(),
        run_id: item.run.map(|run| run.to_string()),
        error: item.error.clone(),
        moves: item.moves.iter().map(|moved| plan_move(moved, own_host)).collect(),
    }
}

fn plan_move(moved: &PlanMove, own_host: &str) -> api::PlanMove {
    let (returned, reason) = match &moved.back {
        None => (None, None),
        Some(TagReturn::Done) => (Some(true), None),
        Some(TagReturn::Kept(why)) => (Some(false), Some(why.clone())),
    };
    api::PlanMove {
        image: ImageTag::own(&moved.repository, &moved.tag).named(own_host),
        old_digest: moved.old.as_ref().map(ToString::to_string),
        digest: moved.new.to_string(),
        returned,
        reason,
    }
}

fn millis(time: Millis) -> u64 {
    u64::try_from(time).unwrap_or_default()
}
