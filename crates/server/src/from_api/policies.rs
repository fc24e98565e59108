//! What a registry does by itself, from the wire.

use store::{RETENTION_DAYS_MAX, RetentionChange};

use super::cut;
use crate::error::ApiError;
use crate::to_api::UNTAGGED_MANIFESTS;

pub(crate) fn retention(policy: &api::UpdateRetentionPolicy) -> Result<RetentionChange, ApiError> {
    let refused = |member: &str, message: String| {
        Err(ApiError::invalid(message).at(format!("retentionPolicy.{member}")))
    };
    if let Some(kind) = &policy.kind
        && !kind.eq_ignore_ascii_case(UNTAGGED_MANIFESTS)
    {
        let kind = cut(kind);
        return refused("type", format!("`{kind}` is not `{UNTAGGED_MANIFESTS}`"));
    }
    let enabled = match policy.status.as_deref() {
        None => None,
        Some(text) if text.eq_ignore_ascii_case("enabled") => Some(true),
        Some(text) if text.eq_ignore_ascii_case("disabled") => Some(false),
        Some(text) => {
            return refused("status", format!("`{}` is not `enabled` or `disabled`", cut(text)));
        }
    };
    let days = policy.days.map(u32::try_from);
    match days.transpose() {
        Ok(days) if days.is_none_or(|days| days <= RETENTION_DAYS_MAX) => {
            Ok(RetentionChange { enabled, days })
        }
        _ => refused("days", format!("days are 0 to {RETENTION_DAYS_MAX}")),
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
}
