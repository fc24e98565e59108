//! Repositories that are asked for the commits of their branches, for hosts that do not call.
//!
//! When a branch is asked for is a row, so that a restart asks for none sooner. What a delivery has told
//! meanwhile is newer than an answer that was on its way.

use std::time::Duration;

use oci::RegistryName;
use sqlx::SqliteConnection;
use store::Millis;

use super::ledger::{self, Line};
use super::sources::{Noted, Told, note_seen, seen, shown_place};
use super::{Decision, Fired, SourceEvent, SourceTrigger, TriggerKind, Triggers};
use crate::run::{ContextSource, RemoteSource};
use crate::table::parsed;
use crate::{ControlError, Result, StoredTask, TaskContext, TaskName};

/// Branches that are asked for at once.
const BATCH: i64 = 200;

/// Between two attempts at a repository that does not answer, at most.
const PAUSE_MAX: Duration = Duration::from_secs(60 * 60);

/// A branch that is to be asked for.
#[derive(Debug, Clone)]
pub struct Poll {
    pub registry: RegistryName,
    pub task: TaskName,
    pub trigger: String,
    /// The repository at the branch, or without one at its default branch, with what it asks for.
    pub source: RemoteSource,
    /// What was the last commit when this was read.
    seen: Option<String>,
}

/// What a repository says of a branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub commit: String,
    /// Its name.
    pub branch: Option<String>,
}

impl Triggers {
    /// When the next branch is to be asked for.
    pub async fn next_poll(&self) -> Result<Option<Millis>> {
        sqlx::query_scalar("SELECT MIN(next_at) FROM trigger_polls")
            .fetch_one(self.tasks.runs.shared.db.reads())
            .await
            .map_err(ControlError::database("find the next branch to ask for"))
    }

    /// The branches that are to be asked for now.
    pub async fn due_polls(&self) -> Result<Vec<Poll>> {
        let failed = "list the branches to ask for";
        let now = self.tasks.runs.shared.clock.now();
        let db = &self.tasks.runs.shared.db;
        let rows: Vec<(String, String, String)> = sqlx::query_as(
            "SELECT registry, name_key, trigger_name FROM trigger_polls
             WHERE next_at <= $1 ORDER BY next_at LIMIT $2",
        )
        .bind(now)
        .bind(BATCH)
        .fetch_all(db.reads())
        .await
        .map_err(ControlError::database(failed))?;
        let mut polls = Vec::with_capacity(rows.len());
        for (registry, name_key, name) in rows {
            let task = self.tasks.get(&parsed(&registry)?, &parsed(&name_key)?).await;
            let poll = match task.ok().flatten() {
                Some(task) if task.definition.asleep(now).is_none() => {
                    self.poll(&task, &name).await?
                }
                _ => None,
            };
            match poll {
                Some(poll) => polls.push(poll),
                // Later it may be another matter.
                None => self.postpone(&registry, &name_key, &name, now).await?,
            }
        }
        Ok(polls)
    }

    async fn poll(&self, task: &StoredTask, name: &str) -> Result<Option<Poll>> {
        let Some(trigger) = task.definition.triggers.source(name) else { return Ok(None) };
        let Some(context) = &task.definition.context else { return Ok(None) };
        if self.every(trigger).is_none() || !trigger.enabled || !trigger.commits {
            return Ok(None);
        }
        let branch = trigger.branch_of(context);
        let address = match &branch {
            // Without the folder: whoever follows the branch asks the same.
            Some(branch) => format!("{}#refs/heads/{branch}", context.place()),
            None => context.place().to_owned(),
        };
        let token = trigger.token.clone().or_else(|| context.token.clone());
        let ContextSource::Remote(source) = (TaskContext { address, token }).source() else {
            return Ok(None);
        };
        let reads = self.tasks.runs.shared.db.reads().acquire().await;
        let mut reads = reads.map_err(ControlError::database("read the commit of a branch"))?;
        let branch = match branch {
            Some(branch) => Some(branch),
            None => super::sources::default_branch(&mut reads, task, trigger).await?,
        };
        let seen = match branch {
            Some(branch) => seen(&mut reads, task, trigger, &format!("branch {branch}")).await?.0,
            None => None,
        };
        let (registry, trigger) = (task.registry.clone(), trigger.name.clone());
        Ok(Some(Poll { registry, task: task.name.clone(), trigger, source, seen }))
    }

    /// Takes what a repository has said, or in words for people why it has said nothing.
    pub async fn polled(
        &self,
        poll: &Poll,
        answer: std::result::Result<Head, String>,
    ) -> Result<Fired> {
        let failed = "note the commit of a branch";
        let now = self.tasks.runs.shared.clock.now();
        let db = &self.tasks.runs.shared.db;
        let mut transaction = db.begin().await.map_err(ControlError::database(failed))?;
        let (registry, name_key) = (poll.registry.as_str(), poll.task.key());
        let Ok(Some(task)) = self.read(&mut transaction, registry, &name_key).await? else {
            return Ok(Fired::default());
        };
        let Some(trigger) = task.definition.triggers.source(&poll.trigger) else {
            return Ok(Fired::default());
        };
        let default = answer.as_ref().ok().and_then(|head| head.branch.clone());
        let wait = self.every(trigger).unwrap_or(PAUSE_MAX);
        let is_there = match &answer {
            Ok(_) => {
                let next = next_slot(&poll.source.address, wait, now);
                schedule(&mut transaction, (&task, trigger), next, 0, default).await?
            }
            Err(_) => self.put_off(&mut transaction, (&task, trigger), wait, now).await?,
        };
        // The trigger follows something else by now.
        if !is_there {
            return Ok(Fired::default());
        }
        let mut fired = Fired::default();
        match answer {
            Ok(head) => {
                let decided =
                    self.compare_head(&mut transaction, (&task, trigger), poll, head, now);
                let decided = decided.await?;
                transaction.commit().await.map_err(ControlError::database(failed))?;
                if let Some(decided) = decided {
                    let delivered = self.after_decision(decided).await;
                    fired.runs = usize::from(delivered.run.is_some());
                    fired.waits = delivered.decision == Decision::Waits;
                }
            }
            Err(why) => {
                let line = Line {
                    registry: &task.registry,
                    task: &task.name,
                    kind: TriggerKind::Source,
                    name: &trigger.name,
                    event: format!("{} was asked for the commit of a branch", shown_place(&task)),
                    decision: Decision::Waits,
                    reason: Some(why),
                    run: None,
                };
                ledger::append_within(&mut transaction, &line, now).await?;
                transaction.commit().await.map_err(ControlError::database(failed))?;
            }
        }
        Ok(fired)
    }

    /// Decides on the commit of a branch, if it is another one.
    async fn compare_head(
        &self,
        connection: &mut SqliteConnection,
        (task, trigger): (&StoredTask, &SourceTrigger),
        poll: &Poll,
        head: Head,
        now: Millis,
    ) -> Result<Option<super::sources::Decided>> {
        let context = task.definition.context.as_ref();
        let branch = context.and_then(|context| trigger.branch_of(context));
        let Some(branch) = branch.or(head.branch) else { return Ok(None) };
        let subject = format!("branch {branch}");
        let (known, is_waiting) = seen(connection, task, trigger, &subject).await?;
        if known != poll.seen || (known.is_none() && is_waiting) {
            return Ok(None);
        }
        let is_same = known.as_deref() == Some(&*head.commit);
        if is_same && !is_waiting {
            return Ok(None);
        }
        // It was there before the trigger was; or what waits is gone again.
        if known.is_none() || is_same {
            let note = Noted { commit: Some(&head.commit), waiting: None };
            note_seen(connection, (task, trigger), &subject, note, now).await?;
            return Ok(None);
        }
        let event =
            SourceEvent::Commit { branch: branch.clone(), commit: head.commit, before: known };
        let told = Told { task, trigger, event: &event, host: None, branch: Some(&branch) };
        Ok(Some(self.decide(connection, &told, now).await?))
    }

    /// How often a branch is asked for, if it is.
    fn every(&self, trigger: &SourceTrigger) -> Option<Duration> {
        Some(trigger.poll.unwrap_or(self.poll)).filter(|every| !every.is_zero())
    }

    /// Looks at a branch later that nothing is to be asked of now.
    async fn postpone(
        &self,
        registry: &str,
        name_key: &str,
        name: &str,
        now: Millis,
    ) -> Result<()> {
        let statement = sqlx::query(
            "UPDATE trigger_polls SET next_at = $4
             WHERE registry = $1 AND name_key = $2 AND trigger_name = $3",
        )
        .bind(registry)
        .bind(name_key)
        .bind(name)
        .bind(now + millis(PAUSE_MAX));
        crate::table::execute(&self.tasks.runs.shared.db, "ask for a branch later", statement)
            .await?;
        Ok(())
    }

    /// Asks a repository that does not answer less and less often.
    async fn put_off(
        &self,
        connection: &mut SqliteConnection,
        (task, trigger): (&StoredTask, &SourceTrigger),
        wait: Duration,
        now: Millis,
    ) -> Result<bool> {
        let failures: Option<i64> = sqlx::query_scalar(
            "SELECT failures FROM trigger_polls
             WHERE registry = $1 AND name_key = $2 AND trigger_name = $3",
        )
        .bind(task.registry.as_str())
        .bind(task.name.key())
        .bind(trigger.key())
        .fetch_optional(&mut *connection)
        .await
        .map_err(ControlError::database("find how often a repository did not answer"))?;
        let failures = failures.unwrap_or_default().saturating_add(1);
        let longer = wait.saturating_mul(1 << failures.clamp(0, 10)).min(PAUSE_MAX.max(wait));
        schedule(connection, (task, trigger), now + millis(spread(longer)), failures, None).await
    }
}

/// Writes when a branch is asked for next; says whether it still is.
async fn schedule(
    connection: &mut SqliteConnection,
    (task, trigger): (&StoredTask, &SourceTrigger),
    next: Millis,
    failures: i64,
    default_branch: Option<String>,
) -> Result<bool> {
    let updated = sqlx::query(
        "UPDATE trigger_polls SET next_at = $4, failures = $5,
            default_branch = COALESCE($6, default_branch)
         WHERE registry = $1 AND name_key = $2 AND trigger_name = $3",
    )
    .bind(task.registry.as_str())
    .bind(task.name.key())
    .bind(trigger.key())
    .bind(next)
    .bind(failures)
    .bind(default_branch)
    .execute(connection)
    .await
    .map_err(ControlError::database("write when a repository is asked"))?;
    Ok(updated.rows_affected() == 1)
}

/// When a branch is asked for next: at the same times for all that ask the same, and at others for others.
fn next_slot(address: &str, wait: Duration, now: Millis) -> Millis {
    let period = millis(wait).max(1);
    let digest = oci::Digest::of(address.as_bytes());
    let offset = i64::from_str_radix(&digest.hex()[..12], 16).unwrap_or_default() % period;
    // No sooner than after half of the time.
    let earliest = now + period / 2;
    earliest + (offset - earliest).rem_euclid(period)
}

/// A little more or less, so that not all are asked at once for ever.
pub(super) fn spread(wait: Duration) -> Duration {
    wait.mul_f64(0.9 + 0.2 * random())
}

/// Not less than 0, and less than 1.
pub(super) fn random() -> f64 {
    let random = uuid::Uuid::new_v4().as_u128() % 1_000;
    f64::from(u32::try_from(random).unwrap_or_default()) / 1_000.0
}

pub(super) fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX / 2)
}
