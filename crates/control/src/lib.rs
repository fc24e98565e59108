//! What a server decides and remembers: tasks, runs, their queue, their logs, uploaded sources,
//! webhooks.
//!
//! A *run* is one execution with an id, a status and a log. Every run enters through
//! [`Runs::submit`]; the table of runs is the queue, so that a restart loses nothing. A
//! [`Worker`] claims runs under a lease and hands each to an [`Executor`]; on other machines agents
//! do, from a pool ([`Runs::claim_for`]).
//!
//! A *task* is a definition that is stored by name; each time it is started it makes a run
//! ([`TaskDefinition::run`]).
//!
//! Start with [`Runs`] and [`Worker`].
//!
//! Invariants:
//! - A run is durable before its submission is answered.
//! - The status of a run moves forward only, and the end of an attempt is recorded only
//!   under the epoch of its lease.
//! - Secret values are sealed in the record, gone from it when the run has ended, and never in the
//!   log.
//! - No HTTP, no JSON of the API. SQL is written only here and in `store`.

mod access;
mod audit;
mod clock;
mod error;
mod executor;
mod leases;
mod log;
mod logins;
mod names;
mod pools;
mod queue;
mod request;
mod retention;
mod run;
mod runs;
mod sealing;
mod secrets;
mod sources;
mod table;
mod task;
mod task_runs;
mod tasks;
mod triggers;
mod waiting;
mod webhooks;

pub use access::{
    Access, Account, AccountKind, AccountProperties, Area, Assignment, BadHolder, BadKind, BadRole,
    BadScope, BadSlot, Granted, Holder, Identity, NewPassword, Operation, PasswordSlot, Proven,
    RepositoryPattern, Rights, Role, Scope, ScopeMap, Token, TokenPassword, TokenProperties,
    read_scopes,
};
pub use audit::{Audit, AuditEntry, AuditRecord};
pub use clock::Clock;
pub use error::{ControlError, Result};
pub use executor::{Attempt, End, Executor, LeaseLost, Outcome};
pub use leases::{AgentClaim, WARM_WAIT};
pub use log::{
    Event, EventKind, EventReader, LogKey, Logs, Mask, Proof, RunLog, Sent, Stream, TextReader,
};
pub use logins::{LoginText, Logins, OwnIdentity, RegistryLogin};
pub use names::{
    AccountName, BadAccountName, BadPoolName, BadScopeMapName, BadSecretName, BadTaskName,
    BadTaskRunName, BadTokenName, BadWebhookName, PoolName, ScopeMapName, SecretName, TaskName,
    TaskRunName, TokenName, WebhookName,
};
pub use pools::{Pool, PoolProperties, Pools, Tier};
pub use queue::{Queue, Worker, WorkerSettings};
pub use request::{Lane, NewRun, RunRequest, TaskRequest, TaskText, TaskValue};
pub use retention::OutputRetention;
pub use run::{
    BuildArgument, BuildOptions, BuildRequest, BuildSecret, CacheExport, Commit, ContextSource,
    LogArtifact, NamedContext, OutputImage, RemoteSource, Run, RunId, RunKind, RunStatus,
    UnknownKind, UnknownStatus, attempt_of_user, run_user,
};
pub use runs::{RunFilter, RunSettings, Runs, Swept, TimeRange};
pub use sealing::SecretKeys;
pub use secrets::{SecretChange, SecretRuns, Secrets, StoredSecret};
pub use sources::{ListedSource, NewSource, SourceSettings, Sources};
pub use task::{
    AssignedAccount, ChosenIdentity, NoRun, PromotionRules, StoredTask, TaskContext,
    TaskDefinition, TaskIdentity, TaskOverrides, TaskStep,
};
pub use task_runs::{TaskRun, TaskRunDeclaration, TaskRuns};
pub use tasks::Tasks;
pub use triggers::{
    Asker, BadDelivery, BadNumberedId, BadSchedule, BaseImageTrigger, BuildTime, CHECKS_MAX, Check,
    CommitReport, CommitState, Decision, Delivered, Estimate, Fired, Foreseen, Head, ImageTag,
    ItemState, LedgerEntry, LedgerFilter, Link, Method, MovedBase, NewPromotion, NotReported,
    OwnRegistry, Pause, PauseScope, Plan, PlanId, PlanItem, PlanMove, PlanRequest, PlanStatus,
    PlanTask, Poll, Promotion, PromotionId, PromotionRequest, PromotionStatus, PullRequest,
    ReportToken, RunCause, Schedule, SourceCause, SourceControl, SourceDelivery, SourceEvent,
    SourceGuess, SourceHost, SourceTrigger, TagReturn, TaskTriggers, TimerTrigger, TokenType,
    TriggerKind, Triggers, Watch, WatchAnswer, WatchSettings, WatchStatus, WatchedImage,
};
pub use waiting::{WaitReason, Waiting};
pub use webhooks::{
    BadSigningSecret, BadWebhookAction, BadWebhookScope, Delivery, DeliveryAttempt,
    DeliveryOutcome, DeliveryState, HostOf, PostedAnswer, SigningSecret, ToDeliver, Webhook,
    WebhookAction, WebhookFormat, WebhookProperties, WebhookScope, Webhooks,
};
