//! What a registry does by itself, from the wire.

use store::{
    PoliciesChange, RETENTION_DAYS_MAX, RetentionChange, SOFT_DELETE_DAYS, SoftDeleteChange,
};

use super::cut;
use crate::error::ApiError;
use crate::to_api::UNTAGGED_MANIFESTS;

pub(crate) fn policies(body: &api::UpdatePolicies) -> Result<PoliciesChange, ApiError> {
    Ok(PoliciesChange {
        retention: body.retention_policy.as_ref().map(retention).transpose()?,
        soft_delete: body.soft_delete_policy.as_ref().map(soft_delete).transpose()?,
    })
}

fn retention(policy: &api::UpdateRetentionPolicy) -> Result<RetentionChange, ApiError> {
    let refused = |member: &str, message: String| {
        Err(ApiError::invalid(message).at(format!("retentionPolicy.{member}")))
    };
    if let Some(kind) = &policy.kind
        && !kind.eq_ignore_ascii_case(UNTAGGED_MANIFESTS)
    {
        let kind = cut(kind);
        return refused("type", format!("`{kind}` is not `{UNTAGGED_MANIFESTS}`"));
    }
    let enabled = enabled(policy.status.as_deref(), "retentionPolicy.status")?;
    let days = policy.days.map(u32::try_from);
    match days.transpose() {
        Ok(days) if days.is_none_or(|days| days <= RETENTION_DAYS_MAX) => {
            Ok(RetentionChange { enabled, days })
        }
        _ => refused("days", format!("days are 0 to {RETENTION_DAYS_MAX}")),
    }
}

fn soft_delete(policy: &api::UpdateSoftDeletePolicy) -> Result<SoftDeleteChange, ApiError> {
    let enabled = enabled(policy.status.as_deref(), "softDeletePolicy.status")?;
    let days = policy.retention_days.map(u32::try_from);
    match days.transpose() {
        Ok(days) if days.is_none_or(|days| SOFT_DELETE_DAYS.contains(&days)) => {
            Ok(SoftDeleteChange { enabled, days })
        }
        _ => {
            let (first, last) = SOFT_DELETE_DAYS.into_inner();
            let message = format!("days are {first} to {last}");
            Err(ApiError::invalid(message).at("softDeletePolicy.retentionDays"))
        }
    }
}

fn enabled(status: Option<&str>, target: &str) -> Result<Option<bool>, ApiError> {
    match status {
        None => Ok(None),
        Some(text) if text.eq_ignore_ascii_case("enabled") => Ok(Some(true)),
        Some(text) if text.eq_ignore_ascii_case("disabled") => Ok(Some(false)),
        Some(text) => {
            let message = format!("`{}` is not `enabled` or `disabled`", cut(text));
            Err(ApiError::invalid(message).at(target))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(
        kind: Option<&str>,
        status: Option<&str>,
        days: Option<i64>,
    ) -> Option<RetentionChange> {
        let (kind, status) = (kind.map(str::to_owned), status.map(str::to_owned));
        retention(&api::UpdateRetentionPolicy { kind, status, days }).ok()
    }

    #[test]
    fn n12_days_are_within_a_year() {
        for (days, expected) in
            [(0, Some(0)), (365, Some(365)), (366, None), (-1, None), (i64::MAX, None)]
        {
            let found = read(None, None, Some(days)).map(|change| change.days);
            assert_eq!(found, expected.map(Some), "{days}");
        }
        let change = RetentionChange { enabled: Some(true), days: None };
        assert_eq!(read(Some("untaggedManifests"), Some("Enabled"), None), Some(change));
        assert_eq!(read(Some("Everything"), None, None), None);
        assert_eq!(read(None, Some("on"), None), None);
    }

    #[test]
    fn n12_deleted_things_can_be_restored_for_up_to_90_days() {
        let read = |status: Option<&str>, retention_days| {
            let status = status.map(str::to_owned);
            soft_delete(&api::UpdateSoftDeletePolicy { status, retention_days }).ok()
        };
        for (days, expected) in
            [(1, Some(1)), (90, Some(90)), (0, None), (91, None), (-1, None), (i64::MIN, None)]
        {
            let found = read(None, Some(days)).map(|change| change.days);
            assert_eq!(found, expected.map(Some), "{days}");
        }
        let change = SoftDeleteChange { enabled: Some(true), days: None };
        assert_eq!(read(Some("Enabled"), None), Some(change));
        assert_eq!(read(Some("on"), None), None);
    }
}
