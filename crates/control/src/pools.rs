//! Agent pools: named groups of agents that execute the runs which name them (runs.md section 9).

use std::collections::BTreeMap;

use oci::RegistryName;
use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use store::Millis;

use crate::leases::DEFAULT_POOL;
use crate::table::{column, from_json, parsed, to_json};
use crate::{ControlError, PoolName, Result, RunId, Runs, table};

pub(crate) const SCHEMA: &[&str] = &["CREATE TABLE agent_pools (
        registry TEXT NOT NULL,
        name_key TEXT NOT NULL,
        name TEXT NOT NULL,
        count BIGINT NOT NULL,
        properties TEXT NOT NULL,
        token_serial BIGINT NOT NULL,
        created_at BIGINT NOT NULL,
        updated_at BIGINT NOT NULL,
        PRIMARY KEY (registry, name_key)
    )"];

/// Pools of one registry.
const POOLS_MAX: i64 = 1_000;

/// A group of agents.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    pub registry: RegistryName,
    pub name: PoolName,
    /// Runs that its agents execute at once, at most; none: all of them wait.
    pub count: u32,
    pub properties: PoolProperties,
    /// Of the token that agents join with: another one makes all earlier ones useless.
    pub token_serial: i64,
    pub created_at: Millis,
}

/// What is fixed when a pool is made, besides its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolProperties {
    pub tier: Tier,
    /// A text of whoever manages it, which means nothing here.
    pub subnet: Option<String>,
    pub tags: BTreeMap<String, String>,
}

/// What one run may have of an agent's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tier {
    S1,
    S2,
    S3,
    I6,
}

impl Tier {
    pub const ALL: [Self; 4] = [Self::S1, Self::S2, Self::S3, Self::I6];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::S1 => "S1",
            Self::S2 => "S2",
            Self::S3 => "S3",
            Self::I6 => "I6",
        }
    }

    /// Processors, and memory in bytes.
    pub fn limits(self) -> (u32, u64) {
        let (cpus, gigabytes) = match self {
            Self::S1 => (2, 3),
            Self::S2 => (4, 8),
            Self::S3 => (8, 16),
            Self::I6 => (64, 216),
        };
        (cpus, gigabytes << 30)
    }
}

/// All agent pools of a server. Cheap to clone.
#[derive(Clone)]
pub struct Pools {
    runs: Runs,
}

impl Pools {
    /// Their table is there since the runs are.
    pub fn new(runs: Runs) -> Self {
        Self { runs }
    }

    pub async fn get(&self, registry: &RegistryName, name: &PoolName) -> Result<Option<Pool>> {
        let row = sqlx::query("SELECT * FROM agent_pools WHERE registry = $1 AND name_key = $2")
            .bind(registry.as_str())
            .bind(name.key())
            .fetch_optional(self.runs.shared.db.reads())
            .await
            .map_err(ControlError::database("read an agent pool"))?;
        row.map(|row| pool_of(&row)).transpose()
    }

    /// By name, those after `after`, at most `limit`.
    pub async fn list(
        &self,
        registry: &RegistryName,
        after: Option<&PoolName>,
        limit: usize,
    ) -> Result<Vec<Pool>> {
        let rows = sqlx::query(
            "SELECT * FROM agent_pools WHERE registry = $1 AND name_key > $2
             ORDER BY name_key LIMIT $3",
        )
        .bind(registry.as_str())
        .bind(after.map(PoolName::key).unwrap_or_default())
        .bind(limit as i64)
        .fetch_all(self.runs.shared.db.reads())
        .await
        .map_err(ControlError::database("list agent pools"))?;
        rows.iter().map(pool_of).collect()
    }

    /// Makes a pool, or gives one that is there another count and other tags; the rest of it is
    /// fixed.
    pub async fn put(
        &self,
        registry: &RegistryName,
        name: &PoolName,
        count: u32,
        properties: &PoolProperties,
    ) -> Result<Pool> {
        if let Some(pool) = self.get(registry, name).await?
            && (pool.properties.tier, &pool.properties.subnet)
                != (properties.tier, &properties.subnet)
        {
            let message = format!(
                "agent pool `{name}` is there already, and only its count and tags can be changed"
            );
            return Err(ControlError::Conflict { message });
        }
        let statement = sqlx::query(
            "INSERT INTO agent_pools (registry, name_key, name, count, properties, token_serial,
                created_at, updated_at)
             SELECT $1, $2, $3, $4, $5, 1, $6, $6
             WHERE (SELECT COUNT(*) FROM agent_pools WHERE registry = $1 AND name_key <> $2) < $7
             ON CONFLICT (registry, name_key) DO UPDATE SET count = excluded.count,
                properties = excluded.properties, updated_at = excluded.updated_at
             RETURNING *",
        )
        .bind(registry.as_str())
        .bind(name.key())
        .bind(name.as_str())
        .bind(i64::from(count))
        .bind(to_json(properties)?)
        .bind(self.runs.shared.clock.now())
        .bind(POOLS_MAX);
        let rows = table::returning(&self.runs.shared.db, "make an agent pool", statement).await?;
        self.runs.queue_has_changed();
        rows.first().map_or_else(
            || {
                let message = format!("a registry has at most {POOLS_MAX} agent pools");
                Err(ControlError::Conflict { message })
            },
            pool_of,
        )
    }

    /// Makes the tokens that agents of a pool have joined with useless.
    pub async fn renew_token(&self, registry: &RegistryName, name: &PoolName) -> Result<Pool> {
        let statement = sqlx::query(
            "UPDATE agent_pools SET token_serial = token_serial + 1, updated_at = $3
             WHERE registry = $1 AND name_key = $2 RETURNING *",
        )
        .bind(registry.as_str())
        .bind(name.key())
        .bind(self.runs.shared.clock.now());
        let rows = table::returning(&self.runs.shared.db, "renew a token", statement).await?;
        rows.first().map_or_else(|| Err(not_found(name)), pool_of)
    }

    /// Deletes a pool. Its runs that wait end; those under way may still be finished.
    pub async fn delete(&self, registry: &RegistryName, name: &PoolName) -> Result<()> {
        let failed = "delete an agent pool";
        let mut transaction =
            self.runs.shared.db.begin().await.map_err(ControlError::database(failed))?;
        let deleted = sqlx::query("DELETE FROM agent_pools WHERE registry = $1 AND name_key = $2")
            .bind(registry.as_str())
            .bind(name.key())
            .execute(&mut *transaction)
            .await
            .map_err(ControlError::database(failed))?;
        if deleted.rows_affected() == 0 {
            return Err(not_found(name));
        }
        let ended = sqlx::query(
            "UPDATE runs SET status = 'Error', error = 'its agent pool was deleted',
                updated_at = $3, finished_at = $3
             WHERE registry = $1 AND LOWER(pool) = $2 AND status = 'Queued' RETURNING *",
        )
        .bind(registry.as_str())
        .bind(name.key())
        .bind(self.runs.shared.clock.now())
        .fetch_all(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        self.runs.shared.note_ends(&mut transaction, &ended, self.runs.shared.clock.now()).await?;
        transaction.commit().await.map_err(ControlError::database(failed))?;
        self.runs.after_ends(&ended).await
    }

    /// How many runs of a pool wait.
    pub async fn waiting(&self, pool: &Pool) -> Result<u64> {
        let count: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM runs WHERE registry = $1 AND status = 'Queued'
                AND COALESCE(LOWER(pool), 'default') = $2",
        )
        .bind(pool.registry.as_str())
        .bind(pool.name.key())
        .fetch_one(self.runs.shared.db.reads())
        .await
        .map_err(ControlError::database("count the queue of a pool"))?;
        Ok(count.max(0) as u64)
    }

    /// The runs of a pool that agents have, by id, with the agent of each.
    pub async fn under_way(&self, pool: &Pool) -> Result<Vec<(RunId, String)>> {
        let rows = sqlx::query(
            "SELECT * FROM runs WHERE registry = $1 AND status IN ('Started', 'Running')
                AND agent IS NOT NULL AND COALESCE(LOWER(pool), 'default') = $2
             ORDER BY number",
        )
        .bind(pool.registry.as_str())
        .bind(pool.name.key())
        .fetch_all(self.runs.shared.db.reads())
        .await
        .map_err(ControlError::database("list the runs of a pool"))?;
        let runs = rows.iter().map(|row| {
            let run = self.runs.shared.run_of(row)?;
            Ok((run.id, run.agent.unwrap_or_default()))
        });
        runs.collect()
    }
}

/// That a pool is there, where a run of it is queued.
pub(crate) async fn check(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    name: &PoolName,
) -> Result<()> {
    let found: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM agent_pools WHERE registry = $1 AND name_key = $2",
    )
    .bind(registry.as_str())
    .bind(name.key())
    .fetch_one(connection)
    .await
    .map_err(ControlError::database("find an agent pool"))?;
    if found == 1 { Ok(()) } else { Err(not_found(name)) }
}

impl PoolName {
    /// The pool whose agents help the server with what names no pool.
    pub fn is_default(&self) -> bool {
        self.key() == DEFAULT_POOL
    }
}

fn not_found(name: &PoolName) -> ControlError {
    ControlError::NotFound { what: format!("agent pool `{name}`") }
}

fn pool_of(row: &SqliteRow) -> Result<Pool> {
    Ok(Pool {
        registry: parsed(column(row, "registry")?)?,
        name: parsed(column(row, "name")?)?,
        count: column::<i64>(row, "count")?.clamp(0, i64::from(u32::MAX)) as u32,
        properties: from_json(column(row, "properties")?)?,
        token_serial: column(row, "token_serial")?,
        created_at: column(row, "created_at")?,
    })
}
