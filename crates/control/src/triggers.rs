//! What starts runs of stored tasks without anybody asking (triggers.md).
//!
//! State decides: when a timer is due, and which base a task was built on, are rows. A decision, its
//! line in the [ledger](LedgerEntry) and the run that follows are written together, so that each event has
//! one run, whenever the server ends.

mod bases;
mod cause;
mod deliveries;
mod fleet;
mod ledger;
mod numbered;
mod pauses;
mod plans;
mod polls;
mod promotions;
mod reports;
mod schedule;
mod sources;
mod tags;
mod timers;
mod watches;
mod waves;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use oci::{Compression, RegistryName};
use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;
use store::Millis;
use tokio::sync::watch;

pub use bases::OwnRegistry;
pub(crate) use bases::learn_within;
pub use cause::{Link, MovedBase, RunCause, SourceCause};
pub use deliveries::{BadDelivery, PullRequest, SourceDelivery, SourceEvent, SourceHost};
pub use fleet::{Foreseen, ImageTag, SourceGuess};
pub use ledger::{Decision, LedgerEntry, LedgerFilter, TriggerKind};
pub use numbered::BadNumberedId;
pub use pauses::{Pause, PauseScope};
pub use plans::{
    BuildTime, Estimate, ItemState, Method, Plan, PlanId, PlanItem, PlanMove, PlanRequest,
    PlanStatus, PlanTask, TagReturn,
};
pub use polls::{Head, Poll};
pub use promotions::{
    CHECKS_MAX, Check, NewPromotion, Promotion, PromotionId, PromotionRequest, PromotionStatus,
};
pub use reports::{CommitReport, CommitState, NotReported, ReportToken};
pub use schedule::{BadSchedule, Schedule};
pub use sources::Delivered;
pub(crate) use sources::pinned;
pub use watches::{Asker, Watch, WatchAnswer, WatchSettings, WatchStatus, WatchedImage};
pub(crate) use waves::note_outputs_within;

use crate::{ControlError, Lane, Result, RunId, StoredTask, TaskDefinition, TaskOverrides, Tasks};

/// What starts runs of a task. Each name is there once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskTriggers {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timers: Vec<TimerTrigger>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceTrigger>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_image: Option<BaseImageTrigger>,
}

impl TaskTriggers {
    pub fn is_empty(&self) -> bool {
        self.timers.is_empty() && self.sources.is_empty() && self.base_image.is_none()
    }

    pub fn source(&self, name: &str) -> Option<&SourceTrigger> {
        self.sources.iter().find(|source| source.name.eq_ignore_ascii_case(name))
    }

    /// Forgets what must not be seen.
    pub(crate) fn hide(&mut self) {
        for source in &mut self.sources {
            (source.token, source.secret) = (None, None);
        }
    }
}

/// Starts a run when the repository of the task's context has other commits.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceTrigger {
    pub name: String,
    pub enabled: bool,
    /// Whether it waits for commits to the branch.
    pub commits: bool,
    /// Whether it waits for pull requests into the branch.
    pub pull_requests: bool,
    /// What whoever made it calls the host.
    pub control_type: SourceControl,
    /// The branch; absent: that of the context, which may be the repository's default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// For the host; absent: that of the context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    #[serde(default)]
    pub token_type: TokenType,
    /// What deliveries prove themselves with; absent: none is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// How often the host is asked for the commit of the branch, none if zero; absent: as the server does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll: Option<Duration>,
}

impl fmt::Debug for SourceTrigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceTrigger").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a host is called where a trigger is made (azure-api.md section 6.1), and by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceControl {
    Github,
    /// Azure DevOps; clients of the managed service call all so that are not GitHub.
    VisualStudioTeamService,
    GitLab,
    Gitea,
    Bitbucket,
    Generic,
}

impl SourceControl {
    pub const ALL: [Self; 6] = [
        Self::Github,
        Self::VisualStudioTeamService,
        Self::GitLab,
        Self::Gitea,
        Self::Bitbucket,
        Self::Generic,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Github => "Github",
            Self::VisualStudioTeamService => "VisualStudioTeamService",
            Self::GitLab => "GitLab",
            Self::Gitea => "Gitea",
            Self::Bitbucket => "Bitbucket",
            Self::Generic => "Generic",
        }
    }
}

/// What kind of token there is for a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenType {
    #[default]
    Pat,
    OAuth,
}

/// Starts a run at each time of a schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerTrigger {
    pub name: String,
    pub enabled: bool,
    pub schedule: Schedule,
}

/// Starts a run when an image is another one that the task was built on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseImageTrigger {
    pub name: String,
    pub enabled: bool,
    /// Also images that only helped to build.
    pub buildtime: bool,
    /// Does not wait until an image of another registry is certain to stay what it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub urgent: bool,
}

/// What a look at triggers came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fired {
    pub runs: usize,
    /// Something is to be done, and cannot be yet.
    pub waits: bool,
}

/// A run that a decision has queued, in a transaction that goes on.
struct Queued {
    registry: RegistryName,
    run: RunId,
    warnings: Vec<String>,
}

/// All triggers of a server. Cheap to clone.
#[derive(Clone)]
pub struct Triggers {
    tasks: Tasks,
    /// Of images that runs build.
    compression: Compression,
    /// How often branches are asked for that do not say it; none if zero.
    poll: Duration,
    watching: WatchSettings,
    /// When timers were looked at last: whether the clock was set back.
    looked_at: Arc<AtomicI64>,
    /// How far the journal of tags was followed, beyond what is written down.
    followed: Arc<AtomicI64>,
    /// Marked whenever something may go on that was held, or another registry's image has moved.
    resumed: watch::Sender<()>,
}

impl Triggers {
    pub async fn open(
        tasks: Tasks,
        compression: Compression,
        poll: Duration,
        watching: WatchSettings,
    ) -> Result<Self> {
        let db = &tasks.runs.shared.db;
        let failed = ControlError::database("prepare the tables of triggers");
        db.migrate("ledger", ledger::SCHEMA).await.map_err(failed)?;
        db.migrate("reports to git hosts", reports::SCHEMA)
            .await
            .map_err(ControlError::database("prepare the tables of triggers"))?;
        tasks.learn_again().await?;
        let (looked_at, followed) = (Arc::new(AtomicI64::new(i64::MAX)), Arc::default());
        let resumed = watch::Sender::default();
        Ok(Self { tasks, compression, poll, watching, looked_at, followed, resumed })
    }

    /// Changes whenever a task has other triggers than before.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.tasks.triggers_changed.subscribe()
    }

    /// A task in a transaction of the caller. One that cannot be read is told in the server's log, and keeps
    /// no other from its runs.
    async fn read(
        &self,
        connection: &mut SqliteConnection,
        registry: &str,
        name_key: &str,
    ) -> Result<std::result::Result<Option<StoredTask>, Unreadable>> {
        let found = sqlx::query("SELECT * FROM tasks WHERE registry = $1 AND name_key = $2")
            .bind(registry)
            .bind(name_key)
            .fetch_optional(connection)
            .await
            .map_err(ControlError::database("read a task"))?;
        Ok(found.map(|row| self.tasks.task_of(&row)).transpose().map_err(|error| {
            tracing::error!(%error, %registry, task = %name_key, "a task cannot be read");
            Unreadable
        }))
    }

    /// Begins the logs of runs that are queued, and lets them be claimed. They are durable by now: an
    /// error is only told.
    async fn after(&self, queued: Vec<Queued>) {
        for Queued { registry, run, warnings } in queued {
            if let Err(error) = self.tasks.runs.after_insert(&registry, run, warnings).await {
                tracing::error!(%error, %run, "the log of a run could not be begun");
            }
        }
    }

    /// Stops a run, unless it has ended by itself.
    async fn cancel(&self, registry: &RegistryName, run: RunId) -> Result<()> {
        match self.tasks.runs.cancel(registry, run).await {
            Err(ControlError::NotFound { .. } | ControlError::Conflict { .. }) => Ok(()),
            canceled => canceled.map(drop),
        }
    }

    /// Queues a run of a task in a transaction of the caller. `late`: why it does not begin in time.
    async fn queue(
        &self,
        connection: &mut SqliteConnection,
        task: &StoredTask,
        (cause, overrides): (RunCause, TaskOverrides),
        late: Option<&str>,
        now: Millis,
    ) -> Result<Queued> {
        let run = task.definition.run(&task.name, overrides, self.compression);
        let mut run = run.map_err(|why| ControlError::Conflict { message: why.to_string() })?;
        // Somebody waits for a check.
        let is_check = matches!(cause, RunCause::Check { .. });
        run.lane = if is_check { Lane::People } else { Lane::Triggers };
        run.cause = Some(cause);
        run.warnings.extend(late.map(|late| format!("This run is late: {late}")));
        let runs = &self.tasks.runs;
        let id = runs.insert_within(connection, &task.registry, &run, now).await?;
        Ok(Queued { registry: task.registry.clone(), run: id, warnings: run.warnings })
    }
}

/// A task whose row means nothing to this version, or whose secrets cannot be opened.
struct Unreadable;

/// What it comes to that a run cannot be queued. An error of the server's own stays one.
fn why_not(error: ControlError) -> Result<(Decision, String)> {
    match error {
        // The reason does not tell the number, so that it stays one line of the ledger.
        ControlError::QueueFull { .. } => Ok((Decision::Waits, "the queue is full".to_owned())),
        ControlError::Conflict { message } => Ok((Decision::Skipped, message)),
        ControlError::NotFound { what } => Ok((Decision::Skipped, format!("there is no {what}"))),
        other => Err(other),
    }
}

/// The schemas of what is written together with tasks.
pub(crate) const OF_TASKS: [(&str, &[&str]); 8] = [
    ("timers", timers::SCHEMA),
    ("bases", bases::SCHEMA),
    ("source triggers", sources::SCHEMA),
    ("outputs of tasks", waves::SCHEMA),
    ("watched images", watches::SCHEMA),
    ("pauses of triggers", pauses::SCHEMA),
    ("plans", plans::SCHEMA),
    ("promotions", promotions::SCHEMA),
];

/// Brings what is written down of a task's triggers in step with its definition.
pub(crate) async fn write_within(
    connection: &mut SqliteConnection,
    task: &StoredTask,
    before: Option<&TaskDefinition>,
    now: Millis,
) -> Result<()> {
    timers::write_within(connection, task, before, now).await?;
    sources::write_within(connection, task, before, now).await
}

/// Forgets all of a task that is deleted.
pub(crate) async fn forget_within(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    name_key: &str,
) -> Result<()> {
    timers::forget_within(connection, registry, name_key).await?;
    sources::forget_within(connection, registry, name_key).await?;
    waves::forget_within(connection, registry, name_key).await?;
    bases::forget_within(connection, registry, name_key).await
}
