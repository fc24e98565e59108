//! Agent pools (runs.md section 9).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A pool as the managed service shows it: an id envelope around `properties`. Requests leave the
/// envelope out, except for `tags`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AgentPool {
    #[serde(default)]
    #[schema(read_only)]
    pub id: String,
    #[serde(default)]
    #[schema(read_only)]
    pub name: String,
    #[serde(rename = "type", default)]
    #[schema(read_only)]
    pub kind: String,
    /// Inert.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// Texts of whoever manages the pool.
    #[serde(default)]
    pub tags: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub properties: AgentPoolProperties,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentPoolProperties {
    /// Runs that its agents execute at once, at most; 1 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// `S1`, `S2`, `S3` or `I6`: what a run may have of an agent's machine. `S2` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// Only `Linux`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// Inert.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_network_subnet_resource_id: Option<String>,
    /// Read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub provisioning_state: Option<String>,
    /// Ours, read-only: the agents that were there in the last minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agents: Option<Vec<PoolAgent>>,
}

/// An agent that has joined a pool.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolAgent {
    pub name: String,
    /// Such as `linux/amd64`.
    pub platform: String,
    pub version: String,
    /// A time in RFC 3339.
    #[schema(format = DateTime)]
    pub last_seen: String,
    /// The runs that it executes, by id.
    pub runs: Vec<String>,
}

/// How many runs of a pool wait.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
pub struct AgentPoolQueueStatus {
    pub count: u64,
}

/// What agents join a pool with.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct AgentPoolToken {
    pub token: String,
}
