//! Bases that move: which images tasks were built on, and the runs that follow when one of them is
//! another image (triggers.md section 3).
//!
//! The journal of tags is followed by a cursor. What a move concerns is written down with the cursor,
//! one row for each task, and goes when the task has a run or it is decided that it needs none: so no
//! move is lost, and several that are seen together have one run.

use std::collections::{BTreeMap, BTreeSet};

use std::sync::atomic::Ordering;

use oci::{Digest, Reference, RegistryName, RepositoryName};
use serde::Deserialize;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use store::{Catalog, Cause, Millis, TagMove};
use uuid::Uuid;

use super::cause::united;
use super::ledger::{self, Line};
use super::{
    BaseImageTrigger, Decision, Fired, ImageTag, Link, MovedBase, Pause, Queued, RunCause,
    TriggerKind, Triggers, pauses, why_not,
};
use crate::table::{column, from_json, parsed, to_json};
use crate::{ControlError, Result, RunId, StoredTask, TaskName, TaskOverrides, attempt_of_user};

pub(super) const SCHEMA: &[&str] = &[
    // What the last successful run of a task was made of.
    "CREATE TABLE trigger_bases (
        registry TEXT NOT NULL,
        name_key TEXT NOT NULL,
        host TEXT NOT NULL,
        repository TEXT NOT NULL,
        tag TEXT NOT NULL,
        is_runtime BOOLEAN NOT NULL,
        digest TEXT NOT NULL,
        manifests TEXT NOT NULL,
        PRIMARY KEY (registry, name_key, host, repository, tag)
    )",
    "CREATE INDEX trigger_bases_by_tag ON trigger_bases (repository, tag)",
    // How far the journal was followed; one row.
    "CREATE TABLE trigger_cursor (sequence BIGINT NOT NULL)",
    // Bases of tasks that have moved, until it is decided what follows.
    "CREATE TABLE trigger_moves (
        registry TEXT NOT NULL,
        name_key TEXT NOT NULL,
        host TEXT NOT NULL,
        repository TEXT NOT NULL,
        tag TEXT NOT NULL,
        digest TEXT NOT NULL,
        members TEXT NOT NULL,
        moved_by TEXT,
        at BIGINT NOT NULL,
        PRIMARY KEY (registry, name_key, host, repository, tag)
    )",
    // Tasks whose bases are to be compared with what their tags are now: one may have moved while the
    // run went on that has told them.
    "CREATE TABLE trigger_learned (
        registry TEXT NOT NULL,
        name_key TEXT NOT NULL,
        PRIMARY KEY (registry, name_key)
    )",
    // Whether a move is not looked at until a pause ends.
    "ALTER TABLE trigger_moves ADD COLUMN held BOOLEAN NOT NULL DEFAULT FALSE",
    // Since when there is something to answer, whatever moved later.
    "ALTER TABLE trigger_moves ADD COLUMN since BIGINT NOT NULL DEFAULT 0",
    "UPDATE trigger_moves SET since = at",
];

/// Moves that are read from the journal at once.
const MOVES: usize = 500;
/// Tasks for which is decided within one transaction.
const BATCH: i64 = 100;
/// Runs that followed from each other, one of a task each.
pub(super) const CHAIN_MAX: usize = 10;
/// Digests of a task's base, and of an index, that are compared; an index of more is another image
/// whenever it is another index.
const MEMBERS_MAX: usize = 100;
/// Bases of one task.
const BASES_MAX: usize = 1_000;
/// Runs of one task that bases start within an hour; more wait. Digests that change with each run could
/// otherwise make a task start itself, if its pushes do not tell that they are its own.
const HOURLY_MAX: i64 = 20;
const HOUR: Millis = 60 * 60 * 1000;
/// Moves that concern nobody until the cursor is written all the same.
const UNWRITTEN_MAX: i64 = 500;

/// Which registry of the server a host is.
pub type OwnRegistry<'a> = &'a (dyn Fn(&str) -> Option<RegistryName> + Send + Sync);

/// A base of a task as its row has it.
pub(super) struct Base {
    pub(super) is_runtime: bool,
    digest: Digest,
    /// Of the platforms that were built.
    manifests: Vec<Digest>,
}

impl Base {
    pub(super) fn of(row: &SqliteRow) -> Result<Self> {
        Ok(Self {
            is_runtime: column(row, "is_runtime")?,
            digest: parsed(column(row, "digest")?)?,
            manifests: from_json(column(row, "manifests")?)?,
        })
    }

    /// Why a task that is built on it needs no run for another image, if it needs none: `to` is that image
    /// with what it lists, or nothing where it is not known.
    pub(super) fn is_fine(
        &self,
        trigger: &BaseImageTrigger,
        to: Option<(&Digest, &[Digest])>,
    ) -> Option<&'static str> {
        if !trigger.enabled {
            return Some("the trigger is disabled");
        }
        self.is_current(trigger.buildtime, to)
    }

    /// The same, where it is not the trigger that decides: `buildtime` says whether images count that only helped.
    pub(super) fn is_current(
        &self,
        buildtime: bool,
        to: Option<(&Digest, &[Digest])>,
    ) -> Option<&'static str> {
        if !buildtime && !self.is_runtime {
            return Some("it only helped to build, which counts for triggers of type `All`");
        }
        let (digest, members) = to?;
        if self.digest == *digest {
            return Some("the task was built on this image already");
        }
        let is_there = |manifest: &Digest| manifest == digest || members.contains(manifest);
        if !self.manifests.is_empty() && self.manifests.iter().all(is_there) {
            return Some("its image for the platform of the task is the same");
        }
        None
    }
}

/// A move that a task has to answer.
struct Move {
    host: String,
    repository: RepositoryName,
    tag: String,
    digest: Digest,
    members: Vec<Digest>,
    moved_by: Option<RunId>,
    at: Millis,
    /// Since when it is to be answered, or one before it.
    since: Millis,
}

/// A member of the report of a run (runs.md section 4.1).
#[derive(Deserialize)]
struct ReportedBase {
    #[serde(default)]
    digest: Option<Digest>,
    reference: String,
    #[serde(default)]
    manifests: Vec<Digest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    #[serde(default)]
    runtime_dependency: Option<ReportedBase>,
    #[serde(default)]
    buildtime_dependency: Option<Vec<ReportedBase>>,
}

impl Triggers {
    /// Follows the journal of tags to its end, and queues a run for each task whose base has moved.
    pub async fn fire_bases(&self, own: OwnRegistry<'_>) -> Result<Fired> {
        let catalog = self.tasks.runs.shared.catalog.clone();
        if let Some(catalog) = &catalog {
            while self.follow(catalog, own).await? {}
            self.compare(catalog, own).await?;
        }
        self.end_pauses().await?;
        let mut fired = Fired::default();
        loop {
            let pass = self.fire_moves(catalog.as_ref(), own).await?;
            fired.runs += pass.fired.runs;
            fired.waits = pass.fired.waits;
            // What has been answered may have held up others.
            if !pass.fired.waits || pass.answered == 0 {
                return Ok(fired);
            }
        }
    }

    /// Writes down the moves that runs have not seen, though they told their bases after them.
    async fn compare(&self, catalog: &Catalog, own: OwnRegistry<'_>) -> Result<()> {
        let (db, failed) = (&self.tasks.runs.shared.db, "compare what tasks are built on");
        let learned: Vec<(String, String)> =
            sqlx::query_as("SELECT registry, name_key FROM trigger_learned")
                .fetch_all(db.reads())
                .await
                .map_err(ControlError::database(failed))?;
        for (registry, name_key) in learned {
            // Whatever moves, or is learned, after this is told otherwise, or waits for its turn.
            let mut transaction = db.begin().await.map_err(ControlError::database(failed))?;
            let bases: Vec<(String, String, String, String)> = sqlx::query_as(
                "SELECT host, repository, tag, digest FROM trigger_bases
                 WHERE registry = $1 AND name_key = $2",
            )
            .bind(&registry)
            .bind(&name_key)
            .fetch_all(&mut *transaction)
            .await
            .map_err(ControlError::database(failed))?;
            let mut moved = Vec::new();
            for (host, repository, tag, digest) in &bases {
                let Some(at) = own(host).filter(|own| own.as_str() == registry) else { continue };
                let last = catalog.last_move_of(&at, &parsed(repository)?, &parsed(tag)?).await?;
                let is_other =
                    |last: &TagMove| last.new.as_ref().is_some_and(|new| new.as_str() != *digest);
                if let Some(last) = last.filter(is_other) {
                    let members = members(catalog, &last).await?;
                    moved.push((host.clone(), last, members));
                }
            }
            let now = self.tasks.runs.shared.clock.now();
            for (host, last, members) in &moved {
                let place = (&*registry, &*name_key, &**host);
                write_move(&mut transaction, &moved_tag(last, members), place, now).await?;
            }
            self.watch_within(&mut transaction, own, &registry, &bases).await?;
            sqlx::query("DELETE FROM trigger_learned WHERE registry = $1 AND name_key = $2")
                .bind(&registry)
                .bind(&name_key)
                .execute(&mut *transaction)
                .await
                .map_err(ControlError::database(failed))?;
            transaction.commit().await.map_err(ControlError::database(failed))?;
        }
        Ok(())
    }

    /// Writes down what a part of the journal concerns. Says whether there may be more.
    async fn follow(&self, catalog: &Catalog, own: OwnRegistry<'_>) -> Result<bool> {
        let (db, failed) = (&self.tasks.runs.shared.db, "follow the journal of tags");
        let cursor: Option<i64> = sqlx::query_scalar("SELECT sequence FROM trigger_cursor")
            .fetch_optional(db.reads())
            .await
            .map_err(ControlError::database(failed))?;
        let Some(cursor) = cursor else {
            // What moved before anybody followed is not looked at.
            let last = catalog.last_move().await?;
            let statement = sqlx::query(
                "INSERT INTO trigger_cursor (sequence) SELECT $1
                 WHERE NOT EXISTS (SELECT 1 FROM trigger_cursor)",
            );
            crate::table::execute(db, failed, statement.bind(last)).await?;
            return Ok(true);
        };
        let reads = db.reads().acquire().await;
        let mut reads = reads.map_err(ControlError::database(failed))?;
        let Some(part) = self.unseen(&mut reads, catalog, own, cursor).await? else {
            return Ok(false);
        };
        drop(reads);
        if part.concerned.is_empty() && part.last - cursor < UNWRITTEN_MAX {
            self.followed.store(part.last, Ordering::Relaxed);
            return Ok(part.is_full);
        }
        let mut transaction = db.begin().await.map_err(ControlError::database(failed))?;
        // Or somebody else was faster.
        if !self.take_within(&mut transaction, &part, cursor).await? {
            return Ok(true);
        }
        transaction.commit().await.map_err(ControlError::database(failed))?;
        Ok(part.is_full)
    }

    /// Follows the journal to its end in a transaction of the caller: no run can end while that goes on, so
    /// what those have pushed that have ended is known then.
    async fn follow_within(
        &self,
        connection: &mut SqliteConnection,
        catalog: &Catalog,
        own: OwnRegistry<'_>,
    ) -> Result<()> {
        let mut cursor: Option<i64> = sqlx::query_scalar("SELECT sequence FROM trigger_cursor")
            .fetch_optional(&mut *connection)
            .await
            .map_err(ControlError::database("follow the journal of tags"))?;
        while let Some(from) = cursor {
            let part = self.unseen(connection, catalog, own, from).await?;
            // With nobody concerned, the next look does as well.
            let part = part.filter(|part| part.is_full || !part.concerned.is_empty());
            cursor = match part {
                Some(part) if self.take_within(connection, &part, from).await? => Some(part.last),
                _ => None,
            };
        }
        Ok(())
    }

    /// The next part of the journal, and what it concerns; nothing at the end.
    async fn unseen(
        &self,
        connection: &mut SqliteConnection,
        catalog: &Catalog,
        own: OwnRegistry<'_>,
        cursor: i64,
    ) -> Result<Option<JournalPart>> {
        let seen = self.followed.load(Ordering::Relaxed).max(cursor);
        let moves = catalog.tag_moves(seen, MOVES).await?;
        let Some(last) = moves.last() else { return Ok(None) };
        // Of a tag that moved again, only what it is now matters.
        let latest: BTreeMap<_, _> = moves
            .iter()
            .map(|moved| ((&moved.registry, &moved.repository, &moved.tag), moved))
            .collect();
        let mut concerned = Vec::new();
        for moved in latest.into_values().filter(|moved| moved.new.is_some()) {
            let rows = standing_on(connection, moved, own).await?;
            if !rows.is_empty() {
                concerned.push((moved.clone(), rows, members(catalog, moved).await?));
            }
        }
        Ok(Some(JournalPart { last: last.sequence, is_full: moves.len() == MOVES, concerned }))
    }

    /// Writes down what a part of the journal concerns; `false` if somebody else has.
    async fn take_within(
        &self,
        connection: &mut SqliteConnection,
        part: &JournalPart,
        cursor: i64,
    ) -> Result<bool> {
        let advanced = sqlx::query("UPDATE trigger_cursor SET sequence = $1 WHERE sequence = $2")
            .bind(part.last)
            .bind(cursor)
            .execute(&mut *connection)
            .await
            .map_err(ControlError::database("follow the journal of tags"))?;
        if advanced.rows_affected() == 0 {
            return Ok(false);
        }
        let now = self.tasks.runs.shared.clock.now();
        for (moved, rows, members) in &part.concerned {
            for (registry, name_key, host) in rows {
                let moved = moved_tag(moved, members);
                write_move(connection, &moved, (registry, name_key, host), now).await?;
            }
        }
        Ok(true)
    }

    /// Decides for each task whose bases have moved.
    async fn fire_moves(&self, catalog: Option<&Catalog>, own: OwnRegistry<'_>) -> Result<Pass> {
        let failed = "answer moves of bases";
        let mut pass = Pass::default();
        let any: Option<i64> =
            sqlx::query_scalar("SELECT 1 FROM trigger_moves WHERE NOT held LIMIT 1")
                .fetch_optional(self.tasks.runs.shared.db.reads())
                .await
                .map_err(ControlError::database(failed))?;
        if any.is_none() {
            return Ok(pass);
        }
        let mut last = (String::new(), String::new());
        loop {
            let now = self.tasks.runs.shared.clock.now();
            let db = &self.tasks.runs.shared.db;
            let mut transaction = db.begin().await.map_err(ControlError::database(failed))?;
            // Whoever has ended has nothing before it any more, but may have pushed meanwhile.
            if let Some(catalog) = catalog {
                self.follow_within(&mut transaction, catalog, own).await?;
            }
            let tasks: Vec<(String, String)> = sqlx::query_as(
                "SELECT DISTINCT registry, name_key FROM trigger_moves
                 WHERE NOT held AND (registry, name_key) > ($1, $2)
                 ORDER BY registry, name_key LIMIT $3",
            )
            .bind(&last.0)
            .bind(&last.1)
            .bind(BATCH)
            .fetch_all(&mut *transaction)
            .await
            .map_err(ControlError::database(failed))?;
            let Some(end) = tasks.last() else { return Ok(pass) };
            last = end.clone();
            let mut queued = Vec::new();
            for (registry, name_key) in &tasks {
                match self.answer(&mut transaction, own, (registry, name_key), now).await? {
                    Answer::Queued(run) => queued.push(run),
                    Answer::Waits => pass.fired.waits = true,
                    Answer::Nothing => pass.answered += 1,
                }
            }
            transaction.commit().await.map_err(ControlError::database(failed))?;
            pass.fired.runs += queued.len();
            self.after(queued).await;
        }
    }

    async fn answer(
        &self,
        connection: &mut SqliteConnection,
        own: OwnRegistry<'_>,
        (registry, name_key): (&str, &str),
        now: Millis,
    ) -> Result<Answer> {
        let moves = moves_of(connection, registry, name_key).await?;
        let Ok(task) = self.read(connection, registry, name_key).await? else {
            return Ok(Answer::Waits);
        };
        let trigger = task.as_ref().and_then(|task| task.definition.triggers.base_image.clone());
        let (Some(task), Some(trigger)) = (task, trigger) else {
            forget_moves(connection, registry, name_key).await?;
            return Ok(Answer::Nothing);
        };
        let (mut images, mut chain, mut depth) = (Vec::new(), Vec::new(), 0);
        let pauses = pauses::pauses_within(connection, &task.registry, now).await?;
        for moved in &moves {
            let base = base_of(connection, registry, name_key, moved).await?;
            let (by, by_depth) = chain_of(connection, &task.registry, moved).await?;
            match undisturbed(&task, &trigger, base.as_ref(), moved, (&by, by_depth), now) {
                Some((decision, reason)) => {
                    let line = line(&task, &trigger, moved, decision, Some(reason), None);
                    ledger::append_within(connection, &line, now).await?;
                    forget_move(connection, registry, name_key, moved).await?;
                }
                None => match paused(&pauses, &task, moved, own) {
                    Some(why) => {
                        let line = line(&task, &trigger, moved, Decision::Waits, Some(why), None);
                        ledger::append_within(connection, &line, now).await?;
                        hold(connection, registry, name_key, moved).await?;
                    }
                    None => {
                        (chain, depth) = (united(&chain, &by), depth.max(by_depth));
                        images.push(moved);
                    }
                },
            }
        }
        let held = match images.is_empty() {
            true => None,
            false => {
                let since = images.iter().map(|moved| moved.since).min().unwrap_or(now);
                self.held_back(connection, own, &task, now - since).await?
            }
        };
        let answer = match (images.is_empty(), held) {
            (true, _) => Answer::Nothing,
            (false, Some(why)) => {
                for moved in &images {
                    let why = Some(why.clone());
                    let line = line(&task, &trigger, moved, Decision::Waits, why, None);
                    ledger::append_within(connection, &line, now).await?;
                }
                Answer::Waits
            }
            (false, None) => {
                let chain = (chain, depth);
                self.start(connection, &task, &trigger, &images, chain, now).await?
            }
        };
        if !matches!(answer, Answer::Waits) {
            for moved in images {
                forget_move(connection, registry, name_key, moved).await?;
            }
        }
        Ok(answer)
    }

    /// Runs of a task that bases have started within an hour.
    async fn hourly(
        &self,
        connection: &mut SqliteConnection,
        task: &StoredTask,
        trigger: &BaseImageTrigger,
        now: Millis,
    ) -> Result<i64> {
        sqlx::query_scalar(
            "SELECT COUNT(DISTINCT run) FROM (
                SELECT run, at FROM trigger_ledger WHERE registry = $1 AND task_key = $2
                   AND kind = $3 AND name = $4 ORDER BY number DESC LIMIT 1000
             ) AS last WHERE at > $5",
        )
        .bind(task.registry.as_str())
        .bind(task.name.key())
        .bind(TriggerKind::BaseImage.as_str())
        .bind(&trigger.name)
        .bind(now - HOUR)
        .fetch_one(connection)
        .await
        .map_err(ControlError::database("count the runs that bases have started"))
    }

    /// Adds moved bases to a run of the task that waits for them too, or queues one.
    async fn start(
        &self,
        connection: &mut SqliteConnection,
        task: &StoredTask,
        trigger: &BaseImageTrigger,
        images: &[&Move],
        (chain, depth): (Vec<Link>, usize),
        now: Millis,
    ) -> Result<Answer> {
        let moved = images.iter().map(|moved| MovedBase {
            registry: moved.host.clone(),
            repository: moved.repository.to_string(),
            tag: moved.tag.clone(),
            digest: moved.digest.clone(),
        });
        let moved: Vec<MovedBase> = moved.collect();
        let first = images.iter().map(|moved| moved.at).min().unwrap_or(now);
        let (decision, reason, run, answer) =
            match self.join(connection, task, &moved, (&chain, depth)).await? {
                Some(run) => {
                    let reason = format!("run `{run}` waits to be built, with them too");
                    (Decision::Joined, Some(reason), Some(run), Answer::Nothing)
                }
                None if self.hourly(connection, task, trigger, now).await? >= HOURLY_MAX => {
                    let reason =
                        format!("bases have started {HOURLY_MAX} runs of it within an hour");
                    (Decision::Waits, Some(reason), None, Answer::Waits)
                }
                None => {
                    let cause = RunCause::BaseImages {
                        id: Uuid::new_v4(),
                        at: first,
                        images: moved,
                        chain,
                        depth,
                    };
                    let run = (cause, TaskOverrides::default());
                    match self.queue(connection, task, run, None, now).await {
                        Ok(queued) => {
                            let run = Some(queued.run);
                            (Decision::Fired, None, run, Answer::Queued(queued))
                        }
                        Err(error) => {
                            let (decision, reason) = why_not(error)?;
                            let waits = decision == Decision::Waits;
                            let answer = if waits { Answer::Waits } else { Answer::Nothing };
                            (decision, Some(reason), None, answer)
                        }
                    }
                }
            };
        for moved in images {
            let line = line(task, trigger, moved, decision, reason.clone(), run);
            ledger::append_within(connection, &line, now).await?;
        }
        Ok(answer)
    }

    /// A run of the task that bases have started and that has not begun: it builds on these as well.
    async fn join(
        &self,
        connection: &mut SqliteConnection,
        task: &StoredTask,
        moved: &[MovedBase],
        (chain, depth): (&[Link], usize),
    ) -> Result<Option<RunId>> {
        let rows = sqlx::query(
            "SELECT number, cause FROM runs
             WHERE registry = $1 AND LOWER(task) = $2 AND status = 'Queued' AND cause IS NOT NULL
               AND definition = $3 ORDER BY number DESC",
        )
        .bind(task.registry.as_str())
        .bind(task.name.key())
        .bind(task.definition.digest().to_string())
        .fetch_all(&mut *connection)
        .await
        .map_err(ControlError::database("find a run that waits"))?;
        for row in &rows {
            let (number, cause): (i64, &str) = (column(row, "number")?, column(row, "cause")?);
            let known = from_json(cause)?;
            let RunCause::BaseImages { id, at, mut images, chain: links, depth: known } = known
            else {
                continue;
            };
            images.retain(|known| !moved.iter().any(|moved| moved.is_same_tag(known)));
            images.extend_from_slice(moved);
            let (chain, depth) = (united(&links, chain), known.max(depth));
            let cause = RunCause::BaseImages { id, at, images, chain, depth };
            sqlx::query("UPDATE runs SET cause = $3 WHERE registry = $1 AND number = $2")
                .bind(task.registry.as_str())
                .bind(number)
                .bind(to_json(&cause)?)
                .execute(&mut *connection)
                .await
                .map_err(ControlError::database("add to a run that waits"))?;
            return Ok(Some(RunId::from_number(number as u64)));
        }
        Ok(None)
    }
}

/// Part of the journal of tags.
struct JournalPart {
    /// Where it ends.
    last: i64,
    /// There may be more.
    is_full: bool,
    /// What concerns tasks, with those; and what the tag lists now.
    concerned: Vec<(TagMove, Vec<StandsOn>, Vec<Digest>)>,
}

/// Registry and name of a task that was built on a tag, and the host that this was called by.
type StandsOn = (String, String, String);

/// The tasks that were built on a tag.
async fn standing_on(
    connection: &mut SqliteConnection,
    moved: &TagMove,
    own: OwnRegistry<'_>,
) -> Result<Vec<StandsOn>> {
    let mut rows: Vec<StandsOn> = sqlx::query_as(
        "SELECT registry, name_key, host FROM trigger_bases
         WHERE repository = $1 AND tag = $2 ORDER BY registry, name_key",
    )
    .bind(moved.repository.as_str())
    .bind(moved.tag.as_str())
    .fetch_all(connection)
    .await
    .map_err(ControlError::database("find the tasks on a base"))?;
    // A run finds only what its own registry has.
    rows.retain(|(registry, _, host)| {
        registry == moved.registry.as_str() && own(host).as_ref() == Some(&moved.registry)
    });
    Ok(rows)
}

/// What one look at all moves came to.
#[derive(Default)]
struct Pass {
    fired: Fired,
    /// Tasks whose moves need no run of their own.
    answered: usize,
}

enum Answer {
    Queued(Queued),
    Waits,
    Nothing,
}

/// The runs that a move follows from, of one task each: that which made it, and those before.
/// And how many of them followed from each other.
async fn chain_of(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    moved: &Move,
) -> Result<(Vec<Link>, usize)> {
    let Some(run) = moved.moved_by else { return Ok((Vec::new(), 0)) };
    let row = sqlx::query(
        "SELECT task, cause FROM runs WHERE registry = $1 AND number = $2 AND task IS NOT NULL",
    )
    .bind(registry.as_str())
    .bind(run.number())
    .fetch_optional(connection)
    .await
    .map_err(ControlError::database("find what a move follows from"))?;
    let Some(row) = row else { return Ok((Vec::new(), 0)) };
    let cause: Option<&str> = column(&row, "cause")?;
    let (chain, depth) = match cause.map(from_json).transpose()? {
        Some(RunCause::BaseImages { chain, depth, .. }) => (chain, depth),
        Some(
            RunCause::Timer { .. }
            | RunCause::Source(_)
            | RunCause::Plan { .. }
            | RunCause::Check { .. },
        )
        | None => (Vec::new(), 0),
    };
    let task: TaskName = parsed(column(&row, "task")?)?;
    let last = Link { registry: registry.clone(), task, run };
    Ok((united(&chain, &[last]), depth + 1))
}

/// Why a move starts nothing, if it does not.
fn undisturbed(
    task: &StoredTask,
    trigger: &BaseImageTrigger,
    base: Option<&Base>,
    moved: &Move,
    (chain, depth): (&[Link], usize),
    now: Millis,
) -> Option<(Decision, String)> {
    let skipped = |reason: &str| Some((Decision::Skipped, reason.to_owned()));
    let Some(base) = base else { return skipped("the task is not built on it any more") };
    if let Some(why) = task.definition.asleep(now) {
        return skipped(&format!("the task {why}"));
    }
    if let Some(why) = base.is_fine(trigger, Some((&moved.digest, &moved.members))) {
        return skipped(why);
    }
    let is_own = |link: &&Link| link.registry == task.registry && link.task == task.name;
    if chain.iter().any(|link| is_own(&link)) {
        let path = chain.iter().map(|link| link.task.as_str()).chain([task.name.as_str()]);
        let path = path.collect::<Vec<_>>().join(" -> ");
        let reason = match chain.last().filter(is_own) {
            Some(link) => format!("run `{}` of the task has pushed it itself", link.run),
            None => format!("it would start again what it follows from: {path}"),
        };
        return Some((Decision::Suppressed, reason));
    }
    if depth >= CHAIN_MAX {
        let reason = format!("it follows from {CHAIN_MAX} runs, one of another");
        return Some((Decision::Suppressed, reason));
    }
    None
}

fn line<'a>(
    task: &'a StoredTask,
    trigger: &'a BaseImageTrigger,
    moved: &Move,
    decision: Decision,
    reason: Option<String>,
    run: Option<RunId>,
) -> Line<'a> {
    let Move { host, repository, tag, digest, .. } = moved;
    let by = moved.moved_by.map(|run| format!(", by run `{run}`")).unwrap_or_default();
    Line {
        registry: &task.registry,
        task: &task.name,
        kind: TriggerKind::BaseImage,
        name: &trigger.name,
        event: format!("{host}/{repository}:{tag} moved to {digest}{by}"),
        decision,
        reason,
        run,
    }
}

/// What an index lists that a tag is now.
async fn members(catalog: &Catalog, moved: &TagMove) -> Result<Vec<Digest>> {
    let Some(new) = &moved.new else { return Ok(Vec::new()) };
    Ok(compared(catalog.members(&moved.registry, &moved.repository, new).await?))
}

/// What an index lists, as far as it is compared.
pub(super) fn compared(members: Vec<Digest>) -> Vec<Digest> {
    if members.len() > MEMBERS_MAX { Vec::new() } else { members }
}

/// The run that has moved a tag.
pub(super) fn moved_by(moved: &TagMove) -> Option<RunId> {
    match &moved.cause {
        Cause::Build { run } => run.parse().ok(),
        // Its steps push as it does, with the name of one of its attempts.
        Cause::Push { principal } => {
            let (registry, run, _) = attempt_of_user(principal)?;
            (registry == moved.registry).then_some(run)
        }
        _ => None,
    }
}

/// What has moved, and who has seen to that.
pub(super) struct Moved<'a> {
    pub(super) repository: &'a str,
    pub(super) tag: &'a str,
    pub(super) digest: Option<&'a Digest>,
    pub(super) members: &'a [Digest],
    pub(super) moved_by: Option<RunId>,
    pub(super) at: Millis,
}

fn moved_tag<'a>(moved: &'a TagMove, members: &'a [Digest]) -> Moved<'a> {
    Moved {
        repository: moved.repository.as_str(),
        tag: moved.tag.as_str(),
        digest: moved.new.as_ref(),
        members,
        moved_by: moved_by(moved),
        at: moved.at,
    }
}

/// Writes down that a task has to answer a move. A later one takes the place of an earlier one.
pub(super) async fn write_move(
    connection: &mut SqliteConnection,
    moved: &Moved<'_>,
    (registry, name_key, host): (&str, &str, &str),
    now: Millis,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO trigger_moves (registry, name_key, host, repository, tag, digest, members,
            moved_by, at, since)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
         ON CONFLICT (registry, name_key, host, repository, tag) DO UPDATE
         SET digest = excluded.digest, members = excluded.members, moved_by = excluded.moved_by,
            at = excluded.at, held = FALSE",
    )
    .bind(registry)
    .bind(name_key)
    .bind(host)
    .bind(moved.repository)
    .bind(moved.tag)
    .bind(moved.digest.map(Digest::as_str))
    .bind(to_json(&moved.members)?)
    .bind(moved.moved_by.map(|run| run.to_string()))
    .bind(moved.at)
    .bind(now)
    .execute(connection)
    .await
    .map_err(ControlError::database("write down a move"))?;
    Ok(())
}

async fn moves_of(
    connection: &mut SqliteConnection,
    registry: &str,
    name_key: &str,
) -> Result<Vec<Move>> {
    let rows = sqlx::query(
        "SELECT * FROM trigger_moves WHERE registry = $1 AND name_key = $2 AND NOT held
         ORDER BY at, host, repository, tag",
    )
    .bind(registry)
    .bind(name_key)
    .fetch_all(connection)
    .await
    .map_err(ControlError::database("read moves of bases"))?;
    let moved = |row: &SqliteRow| {
        let moved_by: Option<&str> = column(row, "moved_by")?;
        Ok(Move {
            host: column(row, "host")?,
            repository: parsed(column(row, "repository")?)?,
            tag: column(row, "tag")?,
            digest: parsed(column(row, "digest")?)?,
            members: from_json(column(row, "members")?)?,
            moved_by: moved_by.map(parsed).transpose()?,
            at: column(row, "at")?,
            since: column(row, "since")?,
        })
    };
    rows.iter().map(moved).collect()
}

async fn forget_move(
    connection: &mut SqliteConnection,
    registry: &str,
    name_key: &str,
    moved: &Move,
) -> Result<()> {
    sqlx::query(
        "DELETE FROM trigger_moves WHERE registry = $1 AND name_key = $2 AND host = $3
           AND repository = $4 AND tag = $5",
    )
    .bind(registry)
    .bind(name_key)
    .bind(&moved.host)
    .bind(moved.repository.as_str())
    .bind(&moved.tag)
    .execute(connection)
    .await
    .map_err(ControlError::database("forget a move of a base"))?;
    Ok(())
}

/// Lets a move rest until a pause ends.
async fn hold(
    connection: &mut SqliteConnection,
    registry: &str,
    name_key: &str,
    moved: &Move,
) -> Result<()> {
    sqlx::query(
        "UPDATE trigger_moves SET held = TRUE WHERE registry = $1 AND name_key = $2 AND host = $3
           AND repository = $4 AND tag = $5",
    )
    .bind(registry)
    .bind(name_key)
    .bind(&moved.host)
    .bind(moved.repository.as_str())
    .bind(&moved.tag)
    .execute(connection)
    .await
    .map_err(ControlError::database("hold a move of a base"))?;
    Ok(())
}

/// Why a task does not answer a move now, if it is held.
fn paused(
    pauses: &[Pause],
    task: &StoredTask,
    moved: &Move,
    own: OwnRegistry<'_>,
) -> Option<String> {
    let is_own = own(&moved.host).as_ref() == Some(&task.registry);
    let host = (!is_own).then(|| moved.host.clone());
    let (repository, tag) = (moved.repository.to_string(), moved.tag.clone());
    let base = ImageTag { host, repository, tag };
    pauses::paused(pauses, &task.name).or_else(|| pauses::paused_base(pauses, &base))
}

async fn forget_moves(
    connection: &mut SqliteConnection,
    registry: &str,
    name_key: &str,
) -> Result<()> {
    sqlx::query("DELETE FROM trigger_moves WHERE registry = $1 AND name_key = $2")
        .bind(registry)
        .bind(name_key)
        .execute(connection)
        .await
        .map_err(ControlError::database("forget moves of bases"))?;
    Ok(())
}

async fn base_of(
    connection: &mut SqliteConnection,
    registry: &str,
    name_key: &str,
    moved: &Move,
) -> Result<Option<Base>> {
    let row = sqlx::query(
        "SELECT * FROM trigger_bases WHERE registry = $1 AND name_key = $2 AND host = $3
           AND repository = $4 AND tag = $5",
    )
    .bind(registry)
    .bind(name_key)
    .bind(&moved.host)
    .bind(moved.repository.as_str())
    .bind(&moved.tag)
    .fetch_optional(connection)
    .await
    .map_err(ControlError::database("read a base of a task"))?;
    row.as_ref().map(Base::of).transpose()
}

/// Replaces what a task is built on by what the report of a run says.
pub(crate) async fn learn_within(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    name_key: &str,
    report: &serde_json::Value,
) -> Result<()> {
    let failed = "note what a task is built on";
    sqlx::query("DELETE FROM trigger_bases WHERE registry = $1 AND name_key = $2")
        .bind(registry.as_str())
        .bind(name_key)
        .execute(&mut *connection)
        .await
        .map_err(ControlError::database(failed))?;
    let bases = bases(report);
    for ((host, repository, tag), base) in bases.iter().take(BASES_MAX) {
        sqlx::query(
            "INSERT INTO trigger_bases (registry, name_key, host, repository, tag, is_runtime,
                digest, manifests)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(registry.as_str())
        .bind(name_key)
        .bind(host)
        .bind(repository)
        .bind(tag)
        .bind(base.is_runtime)
        .bind(base.digest.as_str())
        .bind(to_json(&base.manifests)?)
        .execute(&mut *connection)
        .await
        .map_err(ControlError::database(failed))?;
    }
    if bases.is_empty() {
        return Ok(());
    }
    let statement = sqlx::query(
        "INSERT INTO trigger_learned (registry, name_key) VALUES ($1, $2) ON CONFLICT DO NOTHING",
    );
    let learned = statement.bind(registry.as_str()).bind(name_key).execute(connection).await;
    learned.map_err(ControlError::database(failed))?;
    Ok(())
}

/// Host, repository and tag of each base of a report. One that is named by its digest never moves.
fn bases(report: &serde_json::Value) -> BTreeMap<(String, String, String), Base> {
    let entries = report.as_array().into_iter().flatten();
    let entries = entries.filter_map(|entry| Report::deserialize(entry).ok());
    let mut bases: BTreeMap<_, Base> = BTreeMap::new();
    for Report { runtime_dependency, buildtime_dependency } in entries {
        let buildtime = buildtime_dependency.into_iter().flatten().map(|base| (false, base));
        for (is_runtime, reported) in
            runtime_dependency.map(|base| (true, base)).into_iter().chain(buildtime)
        {
            let Some(digest) = reported.digest else { continue };
            let Ok(reference) = reported.reference.parse::<Reference>() else { continue };
            let Some(tag) = reference.tag.clone().filter(|_| reference.digest.is_none()) else {
                continue;
            };
            let key = (reference.host, reference.repository.to_string(), tag.to_string());
            let base = bases.entry(key).or_insert_with(|| Base {
                is_runtime: false,
                digest: digest.clone(),
                manifests: Vec::new(),
            });
            base.is_runtime |= is_runtime;
            let mut manifests: BTreeSet<Digest> = base.manifests.drain(..).collect();
            match reported.manifests.is_empty() {
                true => manifests.insert(digest),
                false => {
                    manifests.extend(reported.manifests);
                    true
                }
            };
            base.manifests = manifests.into_iter().take(MEMBERS_MAX).collect();
        }
    }
    bases
}

/// Forgets the bases of a task that is deleted.
pub(super) async fn forget_within(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    name_key: &str,
) -> Result<()> {
    sqlx::query("DELETE FROM trigger_learned WHERE registry = $1 AND name_key = $2")
        .bind(registry.as_str())
        .bind(name_key)
        .execute(&mut *connection)
        .await
        .map_err(ControlError::database("forget the bases of a task"))?;
    sqlx::query("DELETE FROM trigger_bases WHERE registry = $1 AND name_key = $2")
        .bind(registry.as_str())
        .bind(name_key)
        .execute(&mut *connection)
        .await
        .map_err(ControlError::database("forget the bases of a task"))?;
    forget_moves(connection, registry.as_str(), name_key).await
}
