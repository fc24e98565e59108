//! Agent pools.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use control::{Pool, PoolName};
use oci::RegistryName;
use serde_json::Value;

use super::tasks::ListQuery;
use super::{Json, Query};
use crate::error::ApiError;
use crate::openapi::Refusal;
use crate::state::Shared;
use crate::{from_api, to_api};

/// Lists agent pools by name.
#[utoipa::path(
    get, path = "/agentPools", operation_id = "listAgentPools", tag = "Agent pools",
    params(ListQuery),
    responses((status = OK, body = api::Page<api::AgentPool>)),
)]
pub(crate) async fn list(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<api::Page<api::AgentPool>>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let after = query.skip_token.as_deref().map(from_api::pool_name).transpose()?;
    let top = query.page_size();
    let mut pools = state.pools.list(&registry, after.as_ref(), top + 1).await?;
    let more = pools.len() > top;
    pools.truncate(top);
    let next_link = pools.last().filter(|_| more).map(|last| {
        format!("/api/v1/registries/{registry}/agentPools?%24top={top}&%24skiptoken={}", last.name)
    });
    let mut value = Vec::new();
    for pool in &pools {
        value.push(shown(&state, pool).await?);
    }
    Ok(axum::Json(api::Page { value, next_link }))
}

/// A pool with its agents and what they do.
#[utoipa::path(
    get, path = "/agentPools/{name}", operation_id = "getAgentPool", tag = "Agent pools",
    responses((status = OK, body = api::AgentPool)),
)]
pub(crate) async fn show(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
) -> Result<axum::Json<api::AgentPool>, ApiError> {
    let pool = find(&state, &registry, &name).await?;
    Ok(axum::Json(shown(&state, &pool).await?))
}

/// Makes a pool, or changes what can be changed of it.
#[utoipa::path(
    put, path = "/agentPools/{name}", operation_id = "putAgentPool", tag = "Agent pools",
    request_body = api::AgentPool,
    responses((status = OK, body = api::AgentPool), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn put(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
    Json(body): Json<api::AgentPool>,
) -> Result<axum::Json<api::AgentPool>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    save(&state, &registry, &from_api::pool_name(&name)?, body).await
}

/// Changes count and tags.
#[utoipa::path(
    patch, path = "/agentPools/{name}", operation_id = "updateAgentPool", tag = "Agent pools",
    request_body(content = Object, description = "Any members of an `AgentPool`; `null` takes one away", content_type = "application/json"),
    responses((status = OK, body = api::AgentPool), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn update(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
    Json(patch): Json<Value>,
) -> Result<axum::Json<api::AgentPool>, ApiError> {
    let pool = find(&state, &registry, &name).await?;
    if !patch.is_object() {
        return Err(ApiError::invalid("a change of an agent pool is an object"));
    }
    let mut whole = serde_json::to_value(to_api::pool(&pool, Vec::new()))
        .map_err(|error| ApiError::interrupted(&error))?;
    from_api::merge(&mut whole, patch);
    let body = serde_json::from_value(whole)
        .map_err(|error| ApiError::invalid(format!("the change is not right: {error}")))?;
    save(&state, &pool.registry, &pool.name, body).await
}

async fn save(
    state: &Shared,
    registry: &RegistryName,
    name: &PoolName,
    body: api::AgentPool,
) -> Result<axum::Json<api::AgentPool>, ApiError> {
    let (count, properties) = from_api::pool(body)?;
    let pool = state.pools.put(registry, name, count, &properties).await?;
    Ok(axum::Json(shown(state, &pool).await?))
}

/// Deletes a pool that no run needs any more.
#[utoipa::path(
    delete, path = "/agentPools/{name}", operation_id = "deleteAgentPool", tag = "Agent pools",
    responses((status = NO_CONTENT), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn delete(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    state.pools.delete(&registry, &from_api::pool_name(&name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// How many runs wait.
#[utoipa::path(
    post,
    path = "/agentPools/{name}/listQueueStatus",
    operation_id = "getAgentPoolQueueStatus",
    tag = "Agent pools",
    responses((status = OK, body = api::AgentPoolQueueStatus)),
)]
pub(crate) async fn queue_status(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
) -> Result<axum::Json<api::AgentPoolQueueStatus>, ApiError> {
    let pool = find(&state, &registry, &name).await?;
    let count = state.pools.waiting(&pool).await?;
    Ok(axum::Json(api::AgentPoolQueueStatus { count }))
}

/// What agents join with.
#[utoipa::path(
    post,
    path = "/agentPools/{name}/listAgentToken",
    operation_id = "getAgentPoolToken",
    tag = "Agent pools",
    responses((status = OK, body = api::AgentPoolToken)),
)]
pub(crate) async fn token(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
) -> Result<axum::Json<api::AgentPoolToken>, ApiError> {
    let pool = find(&state, &registry, &name).await?;
    Ok(axum::Json(api::AgentPoolToken { token: state.keys.pool_token(&pool) }))
}

/// Another token: those given out before are worth nothing from now on.
#[utoipa::path(
    post,
    path = "/agentPools/{name}/regenerateAgentToken",
    operation_id = "renewAgentPoolToken",
    tag = "Agent pools",
    responses((status = OK, body = api::AgentPoolToken)),
)]
pub(crate) async fn renew_token(
    State(state): State<Shared>,
    Path((registry, name)): Path<(String, String)>,
) -> Result<axum::Json<api::AgentPoolToken>, ApiError> {
    let (registry, _) = state.registry(&registry)?;
    let pool = state.pools.renew_token(&registry, &from_api::pool_name(&name)?).await?;
    Ok(axum::Json(api::AgentPoolToken { token: state.keys.pool_token(&pool) }))
}

async fn find(state: &Shared, registry: &str, name: &str) -> Result<Pool, ApiError> {
    let (registry, _) = state.registry(registry)?;
    let name = from_api::pool_name(name)?;
    let pool = state.pools.get(&registry, &name).await?;
    pool.ok_or_else(|| ApiError::not_found(format!("agent pool `{name}`")))
}

/// A pool with its agents and what they do.
async fn shown(state: &Shared, pool: &Pool) -> Result<api::AgentPool, ApiError> {
    let mut runs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (run, agent) in state.pools.under_way(pool).await? {
        runs.entry(agent).or_default().push(run.to_string());
    }
    let there = state.presence.of(pool, state.clock.now());
    let agents = there.into_iter().map(|(name, seen)| {
        let runs = runs.remove(&name).unwrap_or_default();
        to_api::pool_agent(name, &seen, runs)
    });
    Ok(to_api::pool(pool, agents.collect()))
}
