//! What an update of a base touches, level by level, written down before it happens: a plan. It is carried out
//! as it was drawn, or refused if the tasks have changed since, and what it has moved can be put back.
//!
//! A plan is drawn from the same graph as [what would follow](super::Foreseen) from a move: what runs have told
//! that tasks are built on and make.

mod carry_out;

use std::collections::{BTreeMap, HashMap};

use oci::{Digest, RegistryName};
use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use store::{ManifestRef, Millis};

use super::fleet::{Wave, levels};
use super::numbered::NumberedId;
use super::{Decision, ImageTag, OwnRegistry, Triggers};
use crate::table::{column, from_json, known, parsed, to_json};
use crate::{ControlError, Result, RunId, TaskName};

pub(super) const SCHEMA: &[&str] = &[
    "CREATE TABLE plans (
        registry TEXT NOT NULL,
        number BIGINT NOT NULL,
        hash TEXT NOT NULL,
        request TEXT NOT NULL,
        digest_before TEXT,
        status TEXT NOT NULL,
        error TEXT,
        created_by TEXT NOT NULL,
        created_at BIGINT NOT NULL,
        applied_by TEXT,
        applied_at BIGINT,
        updated_at BIGINT NOT NULL,
        attempts BIGINT NOT NULL DEFAULT 0,
        base_move TEXT,
        PRIMARY KEY (registry, number)
    )",
    "CREATE INDEX plans_by_status ON plans (status)",
    "CREATE TABLE plan_items (
        registry TEXT NOT NULL,
        number BIGINT NOT NULL,
        name_key TEXT NOT NULL,
        level BIGINT NOT NULL,
        canary BOOLEAN NOT NULL,
        drawn TEXT NOT NULL,
        state TEXT NOT NULL,
        run BIGINT,
        error TEXT,
        moves TEXT NOT NULL,
        dependencies_before TEXT,
        PRIMARY KEY (registry, number, name_key)
    )",
    "CREATE INDEX plan_items_by_task ON plan_items (registry, name_key)",
    "CREATE INDEX plan_items_by_state ON plan_items (registry, number, state)",
    // Which tasks of a plan are built before which.
    "CREATE TABLE plan_edges (
        registry TEXT NOT NULL,
        number BIGINT NOT NULL,
        child TEXT NOT NULL,
        parent TEXT NOT NULL,
        PRIMARY KEY (registry, number, child, parent)
    )",
];

/// Plans of a registry that are kept, besides those that are not at their end.
const PLANS_MAX: i64 = 50;
/// Runs of a task that tell how long it takes.
const TIMES_MAX: i64 = 10;

/// The name of a plan: `p` and a number.
pub type PlanId = NumberedId<'p'>;

/// What to plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanRequest {
    /// The image that becomes another one.
    pub base: ImageTag,
    /// Which one, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Digest>,
    /// What it lists, if it is an index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Digest>,
    /// The part of each level that is built first, in percent; the rest waits until it has succeeded.
    pub canary: u8,
}

/// How far a plan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanStatus {
    Planned,
    Applying,
    /// Something has failed, or somebody has stopped it: what runs goes on to its end, and nothing else.
    Stopping,
    Stopped,
    Succeeded,
    RollingBack,
    RolledBack,
    /// Given up by somebody.
    Closed,
}

impl PlanStatus {
    const ALL: [Self; 8] = [
        Self::Planned,
        Self::Applying,
        Self::Stopping,
        Self::Stopped,
        Self::Succeeded,
        Self::RollingBack,
        Self::RolledBack,
        Self::Closed,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "Planned",
            Self::Applying => "Applying",
            Self::Stopping => "Stopping",
            Self::Stopped => "Stopped",
            Self::Succeeded => "Succeeded",
            Self::RollingBack => "RollingBack",
            Self::RolledBack => "RolledBack",
            Self::Closed => "Closed",
        }
    }
}

/// How a task of a plan comes to its new image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method {
    /// Commands run again.
    Rebuild,
    /// By its last run it has none: its layers are found where nothing that they depend on has changed.
    Reuse,
    /// Not at all.
    Nothing,
}

impl Method {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rebuild => "Rebuild",
            Self::Reuse => "Reuse",
            Self::Nothing => "Nothing",
        }
    }
}

/// How long runs of a task took that have succeeded lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildTime {
    pub median: Millis,
    pub min: Millis,
    pub max: Millis,
    /// How many there were.
    pub runs: u32,
}

/// A task of a plan, as it was drawn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanTask {
    pub task: TaskName,
    /// Of the definition of the task.
    pub definition: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// 1 for what is built on the base itself; more for what is built on that.
    pub level: usize,
    pub method: Method,
    /// Why nothing is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The tasks that are built before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<TaskName>,
    /// The images that move, and that it is built on.
    pub bases: Vec<ImageTag>,
    /// What its last run has pushed: the tags that move.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<ImageTag>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<BuildTime>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub canary: bool,
}

impl PlanTask {
    pub fn is_built(&self) -> bool {
        self.method != Method::Nothing
    }
}

/// How far a task of a plan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemState {
    Waiting,
    Running,
    Succeeded,
    Failed,
    /// Nothing is to be done.
    Nothing,
    RolledBack,
}

impl ItemState {
    const ALL: [Self; 6] = [
        Self::Waiting,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Nothing,
        Self::RolledBack,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "Waiting",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Nothing => "Nothing",
            Self::RolledBack => "RolledBack",
        }
    }
}

/// A tag that a plan has moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanMove {
    pub repository: String,
    pub tag: String,
    /// What it was; nothing if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<Digest>,
    pub new: Digest,
    /// What became of it when the plan was rolled back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back: Option<TagReturn>,
}

/// Whether a tag was put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TagReturn {
    Done,
    /// It was not, and why.
    Kept(String),
}

/// A task of a plan, as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanItem {
    pub drawn: PlanTask,
    pub state: ItemState,
    pub run: Option<RunId>,
    pub error: Option<String>,
    pub moves: Vec<PlanMove>,
}

/// What an update of a base touches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub registry: RegistryName,
    pub id: PlanId,
    /// Of what was drawn: the same graph has the same.
    pub hash: Digest,
    pub request: PlanRequest,
    /// What the base was, if that was known.
    pub digest_before: Option<Digest>,
    pub status: PlanStatus,
    pub error: Option<String>,
    pub created_by: String,
    pub created_at: Millis,
    pub applied_by: Option<String>,
    pub applied_at: Option<Millis>,
    pub updated_at: Millis,
    /// How often somebody has begun to carry it out.
    pub attempts: i64,
    /// That it has moved the base itself.
    pub base_move: Option<PlanMove>,
    /// By level and name; of a list of plans none.
    pub items: Vec<PlanItem>,
}

/// How long a plan may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Estimate {
    /// One after another.
    pub sum: Millis,
    /// The tasks that follow from each other and take longest together, the first one first, and how long they
    /// take at the least, usually and at the most.
    pub critical: Vec<TaskName>,
    pub critical_min: Millis,
    pub critical_median: Millis,
    pub critical_max: Millis,
    /// Tasks of which it is not known how long they take: no run of them has succeeded.
    pub unknown: usize,
}

impl Plan {
    pub fn estimate(&self) -> Estimate {
        let none = BuildTime { median: 0, min: 0, max: 0, runs: 0 };
        let built = || self.items.iter().map(|item| &item.drawn).filter(|drawn| drawn.is_built());
        // The way to each task that takes longest, up to the end of it: by that, and the one before.
        let mut ways: HashMap<&TaskName, (BuildTime, Option<&TaskName>)> = HashMap::new();
        // Parents are of lower levels, unless they go in a circle.
        for drawn in built() {
            let own = drawn.time.unwrap_or(none);
            let before =
                drawn.parents.iter().filter_map(|parent| Some((parent, ways.get(parent)?.0)));
            let before = before.max_by_key(|(_, way)| way.median);
            let way = before.map_or(own, |(_, way)| BuildTime {
                median: way.median + own.median,
                min: way.min + own.min,
                max: way.max + own.max,
                runs: own.runs,
            });
            ways.insert(&drawn.task, (way, before.map(|(parent, _)| parent)));
        }
        let way_to = |drawn: &PlanTask| ways.get(&drawn.task).map_or(none, |(way, _)| *way);
        let longest = built().max_by_key(|drawn| way_to(drawn).median);
        let mut critical = Vec::new();
        let mut next = longest.map(|drawn| &drawn.task);
        while let Some(task) = next {
            critical.push(task.clone());
            next = ways.get(task).and_then(|(_, before)| *before);
        }
        critical.reverse();
        let way = longest.map_or(none, way_to);
        Estimate {
            sum: built().map(|drawn| drawn.time.map_or(0, |time| time.median)).sum(),
            critical,
            critical_min: way.min,
            critical_median: way.median,
            critical_max: way.max,
            unknown: built().filter(|drawn| drawn.time.is_none()).count(),
        }
    }
}

impl Triggers {
    /// Draws a plan and keeps it. Nothing else is done.
    pub async fn plan(
        &self,
        registry: &RegistryName,
        own: OwnRegistry<'_>,
        request: &PlanRequest,
        by: &str,
    ) -> Result<Plan> {
        let failed = "keep a plan";
        let (drawn, digest_before) = self.draw(registry, own, request).await?;
        let hash = hash(request, digest_before.as_ref(), &drawn)?;
        let rows = rows(&drawn)?;
        let (db, now) = (&self.tasks.runs.shared.db, self.tasks.runs.shared.clock.now());
        let mut transaction = db.begin().await.map_err(ControlError::database(failed))?;
        let number: i64 = sqlx::query_scalar(
            "INSERT INTO plans (registry, number, hash, request, digest_before, status, created_by,
                created_at, updated_at)
             SELECT $1, 1 + COALESCE(MAX(number), 0), $2, $3, $4, $5, $6, $7, $7 FROM plans
             WHERE registry = $1 RETURNING number",
        )
        .bind(registry.as_str())
        .bind(hash.as_str())
        .bind(to_json(request)?)
        .bind(digest_before.as_ref().map(Digest::as_str))
        .bind(PlanStatus::Planned.as_str())
        .bind(by)
        .bind(now)
        .fetch_one(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        for statement in [
            "INSERT INTO plan_items (registry, number, name_key, level, canary, drawn, state, moves)
             SELECT $1, $2, value->>0, value->>1, value->>2, value->>3, value->>4, '[]'
             FROM json_each($3)",
            "INSERT INTO plan_edges (registry, number, child, parent)
             SELECT $1, $2, item.value->>0, parent.value
             FROM json_each($3) item, json_each(item.value->5) parent
             WHERE item.value->>4 = 'Waiting'",
        ] {
            sqlx::query(statement)
                .bind(registry.as_str())
                .bind(number)
                .bind(&rows)
                .execute(&mut *transaction)
                .await
                .map_err(ControlError::database(failed))?;
        }
        forget_old(&mut transaction, registry, number).await?;
        transaction.commit().await.map_err(ControlError::database(failed))?;
        let found = self.find_plan(registry, NumberedId(number)).await?;
        found.ok_or_else(|| not_found(NumberedId(number)))
    }

    /// A plan with its tasks, if there is one.
    pub async fn find_plan(&self, registry: &RegistryName, id: PlanId) -> Result<Option<Plan>> {
        let Some(plan) = self.plan_head(registry, id).await? else { return Ok(None) };
        let items = self.items(registry, id, None).await?;
        Ok(Some(Plan { items, ..plan }))
    }

    /// A plan without its tasks.
    async fn plan_head(&self, registry: &RegistryName, id: PlanId) -> Result<Option<Plan>> {
        let row = sqlx::query("SELECT * FROM plans WHERE registry = $1 AND number = $2")
            .bind(registry.as_str())
            .bind(id.0)
            .fetch_optional(self.tasks.runs.shared.db.reads())
            .await
            .map_err(ControlError::database("read a plan"))?;
        row.as_ref().map(plan_of).transpose()
    }

    /// The tasks of a plan by level and name: all, or those that are in a state.
    async fn items(
        &self,
        registry: &RegistryName,
        id: PlanId,
        state: Option<ItemState>,
    ) -> Result<Vec<PlanItem>> {
        let rows = sqlx::query(
            "SELECT * FROM plan_items WHERE registry = $1 AND number = $2
                AND ($3 IS NULL OR state = $3)
             ORDER BY level, name_key",
        )
        .bind(registry.as_str())
        .bind(id.0)
        .bind(state.map(ItemState::as_str))
        .fetch_all(self.tasks.runs.shared.db.reads())
        .await
        .map_err(ControlError::database("read the tasks of a plan"))?;
        rows.iter().map(item_of).collect()
    }

    /// The plans of a registry without their tasks, the newest first.
    pub async fn plans(&self, registry: &RegistryName, limit: usize) -> Result<Vec<Plan>> {
        let rows =
            sqlx::query("SELECT * FROM plans WHERE registry = $1 ORDER BY number DESC LIMIT $2")
                .bind(registry.as_str())
                .bind(limit as i64)
                .fetch_all(self.tasks.runs.shared.db.reads())
                .await
                .map_err(ControlError::database("list plans"))?;
        rows.iter().map(plan_of).collect()
    }

    /// What an update touches now, by level and name; and what the base is.
    async fn draw(
        &self,
        registry: &RegistryName,
        own: OwnRegistry<'_>,
        request: &PlanRequest,
    ) -> Result<(Vec<PlanTask>, Option<Digest>)> {
        let shared = &self.tasks.runs.shared;
        let reads = shared.db.reads().acquire().await;
        let mut reads = reads.map_err(ControlError::database("draw a plan"))?;
        let fleet = self.fleet(&mut reads, registry, own).await?;
        let to = request.to.as_ref().map(|to| (to, &*request.members));
        // Whoever plans decides by that: what is paused, or has no trigger, is not left out.
        let wave = Wave { fleet: &fleet, pauses: &[], now: shared.clock.now(), by_hand: true };
        let reached = wave.reached(&request.base, to);
        let levels = levels(&reached);
        let keys: Vec<&str> = reached.keys().copied().collect();
        let times = build_times(&mut reads, registry, &keys).await?;
        let commands = without_commands(&mut reads, registry, &keys).await?;
        let mut drawn = Vec::new();
        for (key, reached) in reached {
            let Some(task) = fleet.tasks.get(key) else { continue };
            let is_built = reached.decision == Decision::Fired;
            let parents = reached.parents.iter();
            let parents = parents.filter_map(|parent| Some(fleet.tasks.get(*parent)?.name.clone()));
            drawn.push(PlanTask {
                task: task.name.clone(),
                definition: task.definition.digest(),
                owner: task.definition.owner.clone(),
                level: levels.get(key).copied().unwrap_or(1),
                method: match (is_built, commands.contains(key)) {
                    (false, _) => Method::Nothing,
                    (true, true) => Method::Reuse,
                    (true, false) => Method::Rebuild,
                },
                reason: reached.reason,
                parents: parents.collect(),
                bases: reached.images.into_iter().cloned().collect(),
                tags: fleet.outputs.get(key).cloned().unwrap_or_default(),
                time: times.get(key).copied(),
                canary: false,
            });
        }
        drawn.sort_by(|one, other| {
            (one.level, one.task.as_str()).cmp(&(other.level, other.task.as_str()))
        });
        choose_canaries(&mut drawn, request.canary);
        let digest_before = self.base_digest(&mut reads, registry, &request.base).await?;
        Ok((drawn, digest_before))
    }

    /// What a base is, as far as it is known.
    async fn base_digest(
        &self,
        connection: &mut SqliteConnection,
        registry: &RegistryName,
        base: &ImageTag,
    ) -> Result<Option<Digest>> {
        let Some(host) = &base.host else {
            let Some(catalog) = &self.tasks.runs.shared.catalog else { return Ok(None) };
            let (Ok(repository), Ok(tag)) = (base.repository.parse(), base.tag.parse()) else {
                return Ok(None);
            };
            return Ok(catalog.digest_of(registry, &repository, &ManifestRef::Tag(tag)).await?);
        };
        let known: Option<Option<String>> = sqlx::query_scalar(
            "SELECT digest FROM trigger_watches
             WHERE registry = $1 AND host = $2 AND repository = $3 AND tag = $4",
        )
        .bind(registry.as_str())
        .bind(host)
        .bind(&base.repository)
        .bind(&base.tag)
        .fetch_optional(connection)
        .await
        .map_err(ControlError::database("draw a plan"))?;
        known.flatten().as_deref().map(parsed).transpose()
    }
}

/// The first of each level, by their names: at least one of those that are built.
fn choose_canaries(drawn: &mut [PlanTask], percent: u8) {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for task in drawn.iter().filter(|task| task.is_built()) {
        *counts.entry(task.level).or_default() += 1;
    }
    for count in counts.values_mut() {
        *count = (*count * usize::from(percent.min(100))).div_ceil(100);
    }
    for task in drawn.iter_mut().filter(|task| task.is_built()) {
        if let Some(left) = counts.get_mut(&task.level).filter(|left| **left > 0) {
            *left -= 1;
            task.canary = true;
        }
    }
}

/// The rows of a plan's tasks, as the statements want them: key, level, canary, what was drawn, state, and the keys of
/// the tasks before.
fn rows(drawn: &[PlanTask]) -> Result<String> {
    let row = |task: &PlanTask| {
        let state = if task.is_built() { ItemState::Waiting } else { ItemState::Nothing };
        let parents: Vec<String> = task.parents.iter().map(TaskName::key).collect();
        let (key, drawn) = (task.task.key(), to_json(task)?);
        Ok((key, task.level, task.canary, drawn, state.as_str(), parents))
    };
    to_json(&drawn.iter().map(row).collect::<Result<Vec<_>>>()?)
}

/// Of all that decides what a plan does: not how long it may take, nor whether layers can be reused. What the base
/// was counts where the plan moves it from there.
fn hash(request: &PlanRequest, before: Option<&Digest>, drawn: &[PlanTask]) -> Result<Digest> {
    let before = before.filter(|_| request.to.is_some() && request.base.host.is_none());
    let decides = |task: &PlanTask| {
        let method = if task.is_built() { Method::Rebuild } else { Method::Nothing };
        PlanTask { time: None, method, ..task.clone() }
    };
    let drawn: Vec<PlanTask> = drawn.iter().map(decides).collect();
    Ok(Digest::of(to_json(&(request, before.map(Digest::as_str), drawn))?.as_bytes()))
}

/// How long the last successful runs of tasks took.
async fn build_times(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    keys: &[&str],
) -> Result<BTreeMap<String, BuildTime>> {
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "SELECT k.value, r.finished_at - r.started_at FROM json_each($2) k
         JOIN runs r ON r.registry = $1 AND r.number IN (
            SELECT number FROM runs WHERE registry = $1 AND LOWER(task) = k.value
               AND status = 'Succeeded' AND started_at IS NOT NULL
            ORDER BY number DESC LIMIT $3)",
    )
    .bind(registry.as_str())
    .bind(to_json(&keys)?)
    .bind(TIMES_MAX)
    .fetch_all(connection)
    .await
    .map_err(ControlError::database("read how long runs took"))?;
    let mut took: BTreeMap<String, Vec<Millis>> = BTreeMap::new();
    for (key, time) in rows {
        took.entry(key).or_default().push(time.max(0));
    }
    let time = |mut all: Vec<Millis>| {
        all.sort_unstable();
        let (min, max) = (*all.first()?, *all.last()?);
        let median = *all.get(all.len() / 2)?;
        Some(BuildTime { median, min, max, runs: u32::try_from(all.len()).unwrap_or(u32::MAX) })
    };
    Ok(took.into_iter().filter_map(|(key, all)| Some((key, time(all)?))).collect())
}

/// What the cost of a build says of its instructions.
#[derive(Deserialize)]
struct BuildCost {
    #[serde(default)]
    steps: Vec<BuildStep>,
}

#[derive(Deserialize)]
struct BuildStep {
    #[serde(default)]
    name: String,
}

/// The tasks whose last build had no commands.
async fn without_commands(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    keys: &[&str],
) -> Result<std::collections::BTreeSet<String>> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "SELECT k.value, r.cost FROM json_each($2) k
         JOIN runs r ON r.registry = $1 AND r.cost IS NOT NULL AND r.kind IN ('QuickBuild', 'AutoBuild')
           AND r.number = (SELECT MAX(number) FROM runs WHERE registry = $1
              AND LOWER(task) = k.value AND status = 'Succeeded')",
    )
    .bind(registry.as_str())
    .bind(to_json(&keys)?)
    .fetch_all(connection)
    .await
    .map_err(ControlError::database("read what builds have done"))?;
    let is_copied = |cost: &str| {
        let cost: Option<BuildCost> = serde_json::from_str(cost).ok();
        let is_command = |step: &BuildStep| {
            // `[build 2/5] RUN make`.
            let text = step.name.split_once("] ").map_or(&*step.name, |(_, text)| text);
            text.get(..3).is_some_and(|word| word.eq_ignore_ascii_case("run"))
        };
        cost.is_some_and(|cost| !cost.steps.is_empty() && !cost.steps.iter().any(is_command))
    };
    Ok(rows.into_iter().filter(|(_, cost)| is_copied(cost)).map(|(key, _)| key).collect())
}

/// Forgets plans that are at their end, if there are many.
async fn forget_old(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    last: i64,
) -> Result<()> {
    for table in [
        "DELETE FROM plan_items WHERE registry = $1 AND number <= $2 AND number IN (
            SELECT number FROM plans WHERE registry = $1 AND number <= $2
               AND status IN ('Planned', 'Succeeded', 'RolledBack', 'Closed'))",
        "DELETE FROM plan_edges WHERE registry = $1 AND number <= $2 AND number IN (
            SELECT number FROM plans WHERE registry = $1 AND number <= $2
               AND status IN ('Planned', 'Succeeded', 'RolledBack', 'Closed'))",
        "DELETE FROM plans WHERE registry = $1 AND number <= $2
            AND status IN ('Planned', 'Succeeded', 'RolledBack', 'Closed')",
    ] {
        sqlx::query(table)
            .bind(registry.as_str())
            .bind(last - PLANS_MAX)
            .execute(&mut *connection)
            .await
            .map_err(ControlError::database("forget old plans"))?;
    }
    Ok(())
}

/// Why a task is not started by its bases, if a plan has it.
pub(super) async fn held_by(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    name_key: &str,
) -> Result<Option<String>> {
    let row: Option<(i64, String)> = sqlx::query_as(
        "SELECT p.number, p.status FROM plan_items i
         JOIN plans p ON p.registry = i.registry AND p.number = i.number
         WHERE i.registry = $1 AND i.name_key = $2 AND i.state != 'Nothing'
           AND (p.status = 'RollingBack' OR (p.status IN ('Applying', 'Stopping', 'Stopped')
              AND i.state != 'Succeeded'))
         ORDER BY p.number LIMIT 1",
    )
    .bind(registry.as_str())
    .bind(name_key)
    .fetch_optional(connection)
    .await
    .map_err(ControlError::database("find the plan of a task"))?;
    Ok(row.map(|(number, status)| {
        let id: PlanId = NumberedId(number);
        match &*status {
            "Stopped" => format!(
                "plan `{id}` has stopped: `refit apply {id}` goes on, `refit rollback {id}` puts \
                 back, `refit plan close {id}` gives it up"
            ),
            "RollingBack" => format!("plan `{id}` is rolled back"),
            _ => format!("plan `{id}` builds it"),
        }
    }))
}

pub(super) fn not_found(id: PlanId) -> ControlError {
    ControlError::NotFound { what: format!("plan `{id}`") }
}

fn plan_of(row: &SqliteRow) -> Result<Plan> {
    let digest = |name| column::<Option<&str>>(row, name)?.map(parsed).transpose();
    let status: &str = column(row, "status")?;
    let base_move: Option<&str> = column(row, "base_move")?;
    Ok(Plan {
        registry: parsed(column(row, "registry")?)?,
        id: NumberedId(column(row, "number")?),
        hash: parsed(column(row, "hash")?)?,
        request: from_json(column(row, "request")?)?,
        digest_before: digest("digest_before")?,
        status: known(PlanStatus::ALL, PlanStatus::as_str, status)?,
        error: column(row, "error")?,
        created_by: column(row, "created_by")?,
        created_at: column(row, "created_at")?,
        applied_by: column(row, "applied_by")?,
        applied_at: column(row, "applied_at")?,
        updated_at: column(row, "updated_at")?,
        attempts: column(row, "attempts")?,
        base_move: base_move.map(from_json).transpose()?,
        items: Vec::new(),
    })
}

fn item_of(row: &SqliteRow) -> Result<PlanItem> {
    let run: Option<i64> = column(row, "run")?;
    Ok(PlanItem {
        drawn: from_json(column(row, "drawn")?)?,
        state: known(ItemState::ALL, ItemState::as_str, column(row, "state")?)?,
        run: run.map(|number| RunId::from_number(number as u64)),
        error: column(row, "error")?,
        moves: from_json(column(row, "moves")?)?,
    })
}
