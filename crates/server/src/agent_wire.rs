//! What agents and servers say to one another, over routes that nobody else uses.
//!
//! Both are of one version, which the first request makes sure of; so the forms are those that the
//! version's own tables have, and nothing of them is promised to anybody.

use control::{Outcome, Run, RunId, RunKind, RunRequest, RunStatus, TaskName};
use oci::{Digest, RegistryName};
use serde::{Deserialize, Serialize};
use store::Millis;

use crate::identity::GivenToken;

/// How long an agent waits for news in one request, in seconds.
pub(crate) const WAIT_SECONDS: u64 = 20;

/// The version that both must have.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Body of `POST .../claim`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub(crate) agent: String,
    /// Such as `linux/amd64`.
    pub(crate) platform: String,
    pub(crate) version: String,
}

/// A run, handed out under a lease.
#[derive(Serialize, Deserialize)]
pub(crate) struct Lease {
    pub(crate) run: LeasedRun,
    pub(crate) epoch: i64,
    pub(crate) started_at: Millis,
    /// What random texts begin from, in hexadecimal.
    pub(crate) seed: String,
    /// Own names of the server with their registries, login servers first.
    pub(crate) hosts: Vec<(String, RegistryName)>,
    /// What the run may have: processors, and memory in bytes.
    pub(crate) limits: (u32, u64),
    /// For the run's registry.
    pub(crate) user: String,
    pub(crate) password: String,
    /// What the agent proves itself with.
    pub(crate) token: String,
    /// Whether its task has an identity, whose tokens its commands can ask for.
    pub(crate) has_identity: bool,
}

/// What an agent needs of a run.
#[derive(Serialize, Deserialize)]
pub(crate) struct LeasedRun {
    registry: RegistryName,
    id: String,
    kind: RunKind,
    status: RunStatus,
    /// As the table has it.
    request: String,
    task: Option<TaskName>,
    definition: Option<Digest>,
    pool: Option<control::PoolName>,
    agent: Option<String>,
    created_at: Millis,
    updated_at: Millis,
    started_at: Option<Millis>,
    attempts: u32,
    repeatable: bool,
}

/// Why a lease cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the server sent a run that this agent cannot read")]
pub(crate) struct BadLease;

impl LeasedRun {
    pub(crate) fn of(run: &Run) -> serde_json::Result<Self> {
        Ok(Self {
            registry: run.registry.clone(),
            id: run.id.to_string(),
            kind: run.kind,
            status: run.status,
            request: run.request.to_json()?,
            task: run.task.clone(),
            definition: run.definition.clone(),
            pool: run.pool.clone(),
            agent: run.agent.clone(),
            created_at: run.created_at,
            updated_at: run.updated_at,
            started_at: run.started_at,
            attempts: run.attempts,
            repeatable: run.repeatable,
        })
    }

    pub(crate) fn id(&self) -> Option<RunId> {
        self.id.parse().ok()
    }

    pub(crate) fn into_run(self) -> Result<Run, BadLease> {
        Ok(Run {
            id: self.id.parse().map_err(|_| BadLease)?,
            request: RunRequest::from_json(self.kind, &self.request).map_err(|_| BadLease)?,
            registry: self.registry,
            kind: self.kind,
            status: self.status,
            task: self.task,
            definition: self.definition,
            update_trigger_token: None,
            pool: self.pool,
            agent: self.agent,
            started_by: None,
            cause: None,
            cpu: None,
            log_template: None,
            log_artifact: None,
            archived: false,
            created_at: self.created_at,
            updated_at: self.updated_at,
            started_at: self.started_at,
            finished_at: None,
            attempts: self.attempts,
            repeatable: self.repeatable,
            error: None,
            images: Vec::new(),
            digest: None,
            commit: None,
            dependencies: None,
            log_digest: None,
            cost: None,
        })
    }
}

/// Answer of `GET .../queue`: whether a claim may find something.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct QueueNews {
    pub(crate) has_work: bool,
}

/// Answer of `POST .../renew` and `GET .../canceled`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct LeaseNews {
    pub(crate) canceled: bool,
}

/// Body of `POST .../running`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct RunningSteps {
    pub(crate) repeatable: bool,
}

/// Answer of `POST .../events`: the last one that the server has.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct EventsTaken {
    pub(crate) last: u64,
}

/// Body of `POST .../blobs`, and its answer: those that the server lacks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Blobs {
    pub(crate) digests: Vec<Digest>,
}

/// A line of the answer of `POST .../acr`; the last one is an end.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AcrRecord {
    Stdout(String),
    Stderr(String),
    Done,
    Canceled,
    Refused { message: String, hint: Option<String> },
    Failed(String),
}

/// Body of `POST .../finish`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Finish {
    pub(crate) status: RunStatus,
    pub(crate) error: Option<String>,
    pub(crate) outcome: Outcome,
}
/// A secret that a task file lists.
#[derive(Serialize, Deserialize)]
pub(crate) struct SecretWanted {
    pub(crate) id: String,
    pub(crate) address: String,
    pub(crate) client_id: Option<String>,
}

impl SecretWanted {
    pub(crate) fn of(secret: &task::Secret) -> Self {
        Self {
            id: secret.id.clone(),
            address: secret.address.to_string(),
            client_id: secret.client_id.map(|id| id.to_string()),
        }
    }

    pub(crate) fn read(self) -> Option<task::Secret> {
        let client_id = self.client_id.map(|id| id.parse()).transpose().ok()?;
        Some(task::Secret { id: self.id, address: self.address.parse().ok()?, client_id })
    }
}

/// A token of an identity, or why there is none.
#[derive(Serialize, Deserialize)]
pub(crate) enum TokenAnswer {
    Given(GivenToken),
    Refused(String),
    Unavailable(String),
}

/// What it is, or why it is not told.
#[derive(Serialize, Deserialize)]
pub(crate) enum SecretAnswer {
    Value(String),
    Refused(String),
    Unavailable(String),
}
