//! Tags that move after checks.

use control::{Check, ImageTag, Promotion, PromotionRules};

use super::time;

/// `own_host`: what the registry is called.
pub(crate) fn promotion(promotion: &Promotion, own_host: &str) -> api::Promotion {
    let request = &promotion.request;
    let image = match &request.tag {
        Some(tag) => ImageTag::own(&request.repository, tag).named(own_host),
        None => format!("{own_host}/{}@{}", request.repository, request.digest),
    };
    let check = |check: &Check| api::PromotionCheck {
        task: check.task.to_string(),
        run_id: check.run.to_string(),
        status: check.status.as_str().into(),
    };
    api::Promotion {
        name: promotion.id.to_string(),
        status: promotion.status.as_str().into(),
        error: promotion.error.clone(),
        image,
        digest: request.digest.to_string(),
        to: request.to.named(own_host),
        old_digest: promotion.digest_before.as_ref().map(ToString::to_string),
        checks: promotion.checks.iter().map(check).collect(),
        approval_required: promotion.approval,
        created_by: promotion.created_by.clone(),
        create_time: time(promotion.created_at),
        decided_by: promotion.decided_by.clone(),
        decide_time: promotion.decided_at.map(time),
        last_update_time: time(promotion.updated_at),
    }
}

/// What a task asks for, if it does.
pub(super) fn rules(rules: &PromotionRules) -> Option<api::PromotionRules> {
    let PromotionRules { checks, approval } = rules;
    let is_told = *approval || !checks.is_empty();
    is_told.then(|| api::PromotionRules {
        checks: checks.iter().map(ToString::to_string).collect(),
        approval_required: *approval,
    })
}
