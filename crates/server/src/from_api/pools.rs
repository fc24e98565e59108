//! Agent pools.

use control::{PoolName, PoolProperties, Tier};

use super::cut;
use crate::error::ApiError;

/// Runs of one pool at once.
const COUNT_MAX: u32 = 10_000;

/// What a request says of a pool: how many runs at once, and the rest.
pub(crate) fn pool(body: api::AgentPool) -> Result<(u32, PoolProperties), ApiError> {
    let given = body.properties;
    let count = given.count.unwrap_or(1);
    if count > COUNT_MAX {
        let message = format!("a pool has at most {COUNT_MAX} runs at once");
        return Err(ApiError::invalid(message).at("count"));
    }
    if let Some(os) = given.os.filter(|os| !os.eq_ignore_ascii_case("linux")) {
        let message = format!("agents run on Linux, not on `{}`", cut(&os));
        return Err(ApiError::invalid(message).at("os"));
    }
    let tier = match given.tier.as_deref().filter(|tier| !tier.is_empty()) {
        None => Tier::S2,
        Some(name) => {
            let mut all = Tier::ALL.into_iter();
            all.find(|tier| tier.as_str().eq_ignore_ascii_case(name)).ok_or_else(|| {
                let message = format!("`{}` is not a tier: S1, S2, S3 or I6", cut(name));
                ApiError::invalid(message).at("tier")
            })?
        }
    };
    let subnet = given.virtual_network_subnet_resource_id.filter(|subnet| !subnet.is_empty());
    Ok((count, PoolProperties { tier, subnet, tags: body.tags.unwrap_or_default() }))
}

/// The pool whose agents are to execute a run; none for those that the server executes, which are
/// also those of the pool `default`.
pub(crate) fn pool_of_run(name: Option<&str>) -> Result<Option<PoolName>, ApiError> {
    let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(None) };
    let name = pool_name(name).map_err(|error| error.at("agentPoolName"))?;
    Ok((!name.is_default()).then_some(name))
}

pub(crate) fn pool_name(text: &str) -> Result<PoolName, ApiError> {
    text.parse().map_err(|error: control::BadPoolName| ApiError::invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    use super::*;

    fn read(properties: Value) -> Result<(u32, PoolProperties), ApiError> {
        pool(serde_json::from_value(json!({ "properties": properties })).unwrap())
    }

    fn check_refused(properties: Value, expected: Expect) {
        let error = read(properties).unwrap_err();
        expected.assert_eq(&format!("{}: {}", error.target.unwrap_or_default(), error.message));
    }

    #[test]
    fn what_is_not_said_of_a_pool_is_as_in_the_managed_service() {
        let (count, properties) = read(json!({})).unwrap();
        assert_eq!((count, properties.tier, properties.subnet), (1, Tier::S2, None));
        let (count, properties) = read(json!({ "count": 0, "tier": "i6", "os": "linux" })).unwrap();
        assert_eq!((count, properties.tier), (0, Tier::I6));
    }

    #[test]
    fn what_cannot_be_a_pool_is_refused() {
        check_refused(
            json!({ "os": "Windows" }),
            expect!["os: agents run on Linux, not on `Windows`"],
        );
        check_refused(
            json!({ "tier": "S9" }),
            expect!["tier: `S9` is not a tier: S1, S2, S3 or I6"],
        );
        check_refused(
            json!({ "count": 10_001 }),
            expect!["count: a pool has at most 10000 runs at once"],
        );
    }

    #[test]
    fn the_server_helps_with_the_pool_default() {
        for none in [None, Some(""), Some("default"), Some("Default")] {
            assert_eq!(pool_of_run(none).unwrap(), None);
        }
        assert_eq!(pool_of_run(Some("arm")).unwrap().unwrap().as_str(), "arm");
        assert!(pool_of_run(Some("a_b")).is_err());
    }
}
