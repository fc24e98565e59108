//! How a plan is carried out, stopped and put back. All state is in its rows: whenever the server ends, the next one
//! goes on.

use std::collections::BTreeSet;

use oci::RegistryName;
use sqlx::SqliteConnection;
use store::{Catalog, Millis};

use super::{
    ImageTag, ItemState, Plan, PlanId, PlanItem, PlanMove, PlanStatus, PlanTask, TagReturn, hash,
    item_of, not_found,
};
use crate::table::{parsed, to_json};
use crate::triggers::bases::{learn_within, moved_by};
use crate::triggers::numbered::NumberedId;
use crate::triggers::tags::set_tag;
use crate::triggers::{Fired, OwnRegistry, Queued, RunCause, Triggers, why_not};
use crate::{ControlError, Decision, Result, Run, RunStatus, TaskOverrides};

/// Runs of one plan that wait or go on at the same time: so people wait for none of its others.
const AT_ONCE: i64 = 50;
/// Tasks that an error names.
const NAMED_MAX: usize = 5;

impl Triggers {
    /// Begins to carry out a plan, or goes on with one that has stopped: what has failed is tried again. Refused
    /// if anything else would be planned now, and while another plan has one of its tasks.
    pub async fn apply_plan(
        &self,
        registry: &RegistryName,
        own: OwnRegistry<'_>,
        id: PlanId,
        by: &str,
    ) -> Result<Plan> {
        let plan = self.plan_head(registry, id).await?.ok_or_else(|| not_found(id))?;
        match plan.status {
            PlanStatus::Planned => {
                let items = self.items(registry, id, None).await?;
                self.require_unchanged(own, &Plan { items, ..plan.clone() }).await?;
            }
            PlanStatus::Stopped => (),
            status => {
                return Err(ControlError::conflict(format!("plan `{id}` is {}", status.as_str())));
            }
        }
        let failed = "apply a plan";
        let shared = &self.tasks.runs.shared;
        let mut transaction = shared.db.begin().await.map_err(ControlError::database(failed))?;
        let other: Option<(i64, String)> = sqlx::query_as(
            "SELECT o.number, o.name_key FROM plan_items i
             JOIN plan_items o ON o.registry = i.registry AND o.name_key = i.name_key
             JOIN plans p ON p.registry = o.registry AND p.number = o.number
             WHERE i.registry = $1 AND i.number = $2 AND o.number != $2 AND i.state != 'Nothing'
               AND o.state != 'Nothing'
               AND p.status IN ('Applying', 'Stopping', 'Stopped', 'RollingBack')
             ORDER BY o.number, o.name_key LIMIT 1",
        )
        .bind(registry.as_str())
        .bind(id.0)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        if let Some((number, task)) = other {
            let other: PlanId = NumberedId(number);
            return Err(ControlError::conflict(format!(
                "plan `{other}` has task `{task}`, and is not at its end"
            )));
        }
        let now = shared.clock.now();
        let begun = sqlx::query(
            "UPDATE plans SET status = 'Applying', error = NULL, attempts = attempts + 1,
                applied_by = $4,
                applied_at = COALESCE(applied_at, $5), updated_at = $5
             WHERE registry = $1 AND number = $2 AND status = $3",
        )
        .bind(registry.as_str())
        .bind(id.0)
        .bind(plan.status.as_str())
        .bind(by)
        .bind(now)
        .execute(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        if begun.rows_affected() == 0 {
            return Err(ControlError::conflict(format!("plan `{id}` has changed meanwhile")));
        }
        sqlx::query(
            "UPDATE plan_items SET state = 'Waiting', run = NULL, error = NULL
             WHERE registry = $1 AND number = $2 AND state = 'Failed'",
        )
        .bind(registry.as_str())
        .bind(id.0)
        .execute(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        transaction.commit().await.map_err(ControlError::database(failed))?;
        self.resumed.send_replace(());
        self.find_plan(registry, id).await?.ok_or_else(|| not_found(id))
    }

    /// Starts no more of a plan; what runs goes on to its end.
    pub async fn stop_plan(&self, registry: &RegistryName, id: PlanId, by: &str) -> Result<Plan> {
        let why = format!("it was stopped by {by}");
        self.turn_plan(registry, id, &[PlanStatus::Applying], PlanStatus::Stopping, Some(&why))
            .await
    }

    /// Gives up a plan that is not carried out: its tasks follow their triggers again.
    pub async fn close_plan(&self, registry: &RegistryName, id: PlanId) -> Result<Plan> {
        let from = [PlanStatus::Planned, PlanStatus::Stopped];
        self.turn_plan(registry, id, &from, PlanStatus::Closed, None).await
    }

    /// Has the tags put back that a plan has moved, those that nobody has moved since; its runs that go on are
    /// canceled.
    pub async fn roll_back_plan(&self, registry: &RegistryName, id: PlanId) -> Result<Plan> {
        let from = [
            PlanStatus::Applying,
            PlanStatus::Stopping,
            PlanStatus::Stopped,
            PlanStatus::Succeeded,
        ];
        let plan = self.turn_plan(registry, id, &from, PlanStatus::RollingBack, None).await?;
        for item in plan.items.iter().filter(|item| item.state == ItemState::Running) {
            if let Some(run) = item.run {
                self.cancel(registry, run).await?;
            }
        }
        Ok(plan)
    }

    async fn turn_plan(
        &self,
        registry: &RegistryName,
        id: PlanId,
        from: &[PlanStatus],
        to: PlanStatus,
        error: Option<&str>,
    ) -> Result<Plan> {
        let plan = self.plan_head(registry, id).await?.ok_or_else(|| not_found(id))?;
        if !from.contains(&plan.status) {
            return Err(ControlError::conflict(format!("plan `{id}` is {}", plan.status.as_str())));
        }
        let statement = sqlx::query(
            "UPDATE plans SET status = $4, error = COALESCE($5, error), updated_at = $6
             WHERE registry = $1 AND number = $2 AND status = $3",
        )
        .bind(registry.as_str())
        .bind(id.0)
        .bind(plan.status.as_str())
        .bind(to.as_str())
        .bind(error)
        .bind(self.tasks.runs.shared.clock.now());
        let db = &self.tasks.runs.shared.db;
        if crate::table::execute(db, "change a plan", statement).await? == 0 {
            return Err(ControlError::conflict(format!("plan `{id}` has changed meanwhile")));
        }
        self.resumed.send_replace(());
        self.find_plan(registry, id).await?.ok_or_else(|| not_found(id))
    }

    /// Refuses a plan that would be another one now.
    async fn require_unchanged(&self, own: OwnRegistry<'_>, plan: &Plan) -> Result<()> {
        let (drawn, before) = self.draw(&plan.registry, own, &plan.request).await?;
        if hash(&plan.request, before.as_ref(), &drawn)? == plan.hash {
            return Ok(());
        }
        let decides = |task: &PlanTask| PlanTask { time: None, ..task.clone() };
        let now: Vec<PlanTask> = drawn.iter().map(decides).collect();
        let then: Vec<PlanTask> = plan.items.iter().map(|item| decides(&item.drawn)).collect();
        let changed = now.iter().filter(|task| !then.contains(task));
        let gone = then.iter().filter(|task| !now.iter().any(|other| other.task == task.task));
        let names: BTreeSet<&str> = changed.chain(gone).map(|task| task.task.as_str()).collect();
        let what = match names.len() {
            0 => "the base has moved".to_owned(),
            count => {
                let named: Vec<String> =
                    names.iter().take(NAMED_MAX).map(|name| format!("`{name}`")).collect();
                let more = count.saturating_sub(NAMED_MAX);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                format!("it concerns {}{more}", named.join(", "))
            }
        };
        let message =
            format!("plan `{}` is not what would be planned now: {what}; make another", plan.id);
        Err(ControlError::conflict(message))
    }

    /// Goes on with all plans that are carried out or put back.
    pub async fn advance_plans(&self) -> Result<Fired> {
        let shared = &self.tasks.runs.shared;
        let Some(catalog) = shared.catalog.clone() else { return Ok(Fired::default()) };
        let failed = "go on with plans";
        let active: Vec<(String, i64)> = sqlx::query_as(
            "SELECT registry, number FROM plans
             WHERE status IN ('Applying', 'Stopping', 'RollingBack') ORDER BY registry, number",
        )
        .fetch_all(shared.db.reads())
        .await
        .map_err(ControlError::database(failed))?;
        let mut fired = Fired::default();
        for (registry, number) in active {
            let place = Place { registry: parsed(&registry)?, id: NumberedId(number) };
            self.take_ends(&catalog, &place).await?;
            let Some(plan) = self.plan_head(&place.registry, place.id).await? else { continue };
            match plan.status {
                PlanStatus::Applying if self.move_base(&catalog, &plan).await? => {
                    let more = self.start_ready(&place, &plan).await?;
                    fired.runs += more.runs;
                    fired.waits |= more.waits;
                }
                PlanStatus::RollingBack => self.put_back(&catalog, &place, &plan).await?,
                _ => (),
            }
            self.settle(&place, plan.status).await?;
        }
        Ok(fired)
    }

    /// Notes the runs of a plan that have ended, with the tags that they have moved.
    async fn take_ends(&self, catalog: &Catalog, place: &Place) -> Result<()> {
        let (db, failed) = (&self.tasks.runs.shared.db, "note the end of a plan's run");
        let running = self.items(&place.registry, place.id, Some(ItemState::Running)).await?;
        for item in running {
            let run = match item.run {
                Some(run) => self.tasks.runs.get(&place.registry, run).await?,
                None => None,
            };
            if run.as_ref().is_some_and(|run| !run.status.is_final()) {
                continue;
            }
            let error = match &run {
                None => Some("its run is gone".to_owned()),
                Some(run) if run.status == RunStatus::Succeeded => None,
                Some(run) => Some(format!("run `{}` is {}", run.id, run.status.as_str())),
            };
            let mut moves = item.moves.clone();
            if let Some(run) = &run {
                moves.extend(moved_tags(catalog, run).await?);
            }
            let state = if error.is_none() { ItemState::Succeeded } else { ItemState::Failed };
            let mut transaction = db.begin().await.map_err(ControlError::database(failed))?;
            sqlx::query(
                "UPDATE plan_items SET state = $4, error = $5, moves = $6
                 WHERE registry = $1 AND number = $2 AND name_key = $3 AND state = 'Running'",
            )
            .bind(place.registry.as_str())
            .bind(place.id.0)
            .bind(item.drawn.task.key())
            .bind(state.as_str())
            .bind(&error)
            .bind(to_json(&moves)?)
            .execute(&mut *transaction)
            .await
            .map_err(ControlError::database(failed))?;
            if let Some(error) = error {
                let error = format!("task `{}`: {error}", item.drawn.task);
                self.stop_within(&mut transaction, place, &error).await?;
            }
            transaction.commit().await.map_err(ControlError::database(failed))?;
        }
        Ok(())
    }

    /// Moves the base itself where it is to be, the first time. Says whether it is there.
    async fn move_base(&self, catalog: &Catalog, plan: &Plan) -> Result<bool> {
        let (None, Some(to)) = (&plan.request.base.host, &plan.request.to) else { return Ok(true) };
        if plan.base_move.is_some() {
            return Ok(true);
        }
        let place = Place { registry: plan.registry.clone(), id: plan.id };
        let before = plan.digest_before.as_ref();
        let by = plan.applied_by.clone().unwrap_or_else(|| plan.created_by.clone());
        let moved =
            set_tag(catalog, &place.registry, &plan.request.base, (before, Some(to)), &by).await;
        let now = self.tasks.runs.shared.clock.now();
        let db = &self.tasks.runs.shared.db;
        let failed = "move the base of a plan";
        let mut transaction = db.begin().await.map_err(ControlError::database(failed))?;
        let is_there = match moved? {
            Ok(()) => {
                let moved = PlanMove {
                    repository: plan.request.base.repository.clone(),
                    tag: plan.request.base.tag.clone(),
                    old: plan.digest_before.clone(),
                    new: to.clone(),
                    back: None,
                };
                sqlx::query(
                    "UPDATE plans SET base_move = $3, updated_at = $4
                     WHERE registry = $1 AND number = $2",
                )
                .bind(place.registry.as_str())
                .bind(place.id.0)
                .bind(to_json(&moved)?)
                .bind(now)
                .execute(&mut *transaction)
                .await
                .map_err(ControlError::database(failed))?;
                true
            }
            Err(why) => {
                let why = format!("`{}` cannot be moved: {why}", plan.request.base);
                self.stop_within(&mut transaction, &place, &why).await?;
                false
            }
        };
        transaction.commit().await.map_err(ControlError::database(failed))?;
        Ok(is_there)
    }

    /// Queues the runs of a plan whose turn it is.
    async fn start_ready(&self, place: &Place, plan: &Plan) -> Result<Fired> {
        let shared = &self.tasks.runs.shared;
        let failed = "start the tasks of a plan";
        let now = shared.clock.now();
        let mut transaction = shared.db.begin().await.map_err(ControlError::database(failed))?;
        let rows = sqlx::query(
            "SELECT * FROM plan_items i WHERE registry = $1 AND number = $2 AND state = 'Waiting'
               AND NOT EXISTS (SELECT 1 FROM plan_edges e
                  JOIN plan_items p ON p.registry = e.registry AND p.number = e.number
                    AND p.name_key = e.parent
                  WHERE e.registry = $1 AND e.number = $2 AND e.child = i.name_key
                    AND p.level < i.level AND p.state IN ('Waiting', 'Running', 'Failed'))
               AND (canary OR NOT EXISTS (SELECT 1 FROM plan_items c
                  WHERE c.registry = $1 AND c.number = $2 AND c.level = i.level AND c.canary
                    AND c.state IN ('Waiting', 'Running', 'Failed')))
               AND EXISTS (SELECT 1 FROM plans WHERE registry = $1 AND number = $2
                  AND status = 'Applying')
             ORDER BY level, canary DESC, name_key
             LIMIT MAX(0, $3 - (SELECT COUNT(*) FROM plan_items
                WHERE registry = $1 AND number = $2 AND state = 'Running'))",
        )
        .bind(place.registry.as_str())
        .bind(place.id.0)
        .bind(AT_ONCE)
        .fetch_all(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        let (mut queued, mut fired) = (Vec::new(), Fired::default());
        for row in &rows {
            let item = item_of(row)?;
            match self.start_item(&mut transaction, place, plan, &item, now).await? {
                Started::Run(run) => queued.push(run),
                Started::Waits => {
                    fired.waits = true;
                    break;
                }
                Started::Not(why) => {
                    let error = format!("task `{}`: {why}", item.drawn.task);
                    self.fail_item(&mut transaction, place, &item, &why).await?;
                    self.stop_within(&mut transaction, place, &error).await?;
                    break;
                }
            }
        }
        transaction.commit().await.map_err(ControlError::database(failed))?;
        fired.runs = queued.len();
        self.after(queued).await;
        Ok(fired)
    }

    async fn start_item(
        &self,
        connection: &mut SqliteConnection,
        place: &Place,
        plan: &Plan,
        item: &PlanItem,
        now: Millis,
    ) -> Result<Started> {
        let name_key = item.drawn.task.key();
        let found = self.read(connection, place.registry.as_str(), &name_key).await?;
        let Ok(Some(task)) = found else {
            return Ok(Started::Not("it is gone, or cannot be read".to_owned()));
        };
        // Whoever goes on with a plan that has stopped may have mended a task before.
        if plan.attempts == 1 && task.definition.digest() != item.drawn.definition {
            return Ok(Started::Not("it has changed since the plan was made".to_owned()));
        }
        let by = plan.applied_by.clone().unwrap_or_default();
        let cause = RunCause::Plan { plan: place.id.to_string(), by };
        match self.queue(connection, &task, (cause, TaskOverrides::default()), None, now).await {
            Ok(queued) => {
                sqlx::query(
                    "UPDATE plan_items SET state = 'Running', run = $4, error = NULL,
                        dependencies_before = COALESCE(dependencies_before,
                           (SELECT dependencies FROM tasks WHERE registry = $1 AND name_key = $3))
                     WHERE registry = $1 AND number = $2 AND name_key = $3",
                )
                .bind(place.registry.as_str())
                .bind(place.id.0)
                .bind(&name_key)
                .bind(queued.run.number())
                .execute(connection)
                .await
                .map_err(ControlError::database("start the tasks of a plan"))?;
                Ok(Started::Run(queued))
            }
            Err(error) => match why_not(error)? {
                (Decision::Waits, _) => Ok(Started::Waits),
                (_, why) => Ok(Started::Not(why)),
            },
        }
    }

    /// Puts back what a plan has moved, once none of its runs goes on: the last level first, the base last.
    async fn put_back(&self, catalog: &Catalog, place: &Place, plan: &Plan) -> Result<()> {
        if !self.items(&place.registry, place.id, Some(ItemState::Running)).await?.is_empty() {
            return Ok(());
        }
        let mut items = self.items(&place.registry, place.id, Some(ItemState::Succeeded)).await?;
        items.extend(self.items(&place.registry, place.id, Some(ItemState::Failed)).await?);
        items.sort_by_key(|item| std::cmp::Reverse(item.drawn.level));
        let by = format!("rollback of plan {}", place.id);
        for item in items {
            let mut moves = Vec::new();
            // The last move of a tag first, if it was moved more than once.
            for moved in item.moves.iter().rev() {
                moves.push(returned(catalog, &place.registry, moved, &by).await?);
            }
            moves.reverse();
            self.note_return(place, &item, &moves).await?;
        }
        if let Some(moved) = plan.base_move.as_ref().filter(|moved| moved.back.is_none()) {
            let moved = returned(catalog, &place.registry, moved, &by).await?;
            let statement =
                sqlx::query("UPDATE plans SET base_move = $3 WHERE registry = $1 AND number = $2")
                    .bind(place.registry.as_str())
                    .bind(place.id.0)
                    .bind(to_json(&moved)?);
            let db = &self.tasks.runs.shared.db;
            crate::table::execute(db, "put back what a plan has moved", statement).await?;
        }
        Ok(())
    }

    /// Notes what became of the tags of a task. If all are what they were, it is built on what it was before.
    async fn note_return(&self, place: &Place, item: &PlanItem, moves: &[PlanMove]) -> Result<()> {
        let failed = "put back what a plan has moved";
        let db = &self.tasks.runs.shared.db;
        let mut transaction = db.begin().await.map_err(ControlError::database(failed))?;
        let name_key = item.drawn.task.key();
        sqlx::query(
            "UPDATE plan_items SET state = 'RolledBack', moves = $4
             WHERE registry = $1 AND number = $2 AND name_key = $3",
        )
        .bind(place.registry.as_str())
        .bind(place.id.0)
        .bind(&name_key)
        .bind(to_json(&moves)?)
        .execute(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        let is_back = moves.iter().all(|moved| moved.back == Some(TagReturn::Done));
        let before: Option<String> = sqlx::query_scalar(
            "UPDATE tasks SET dependencies = i.dependencies_before FROM plan_items i
             WHERE tasks.registry = $1 AND tasks.name_key = $3 AND i.registry = $1 AND i.number = $2
               AND i.name_key = $3 AND i.dependencies_before IS NOT NULL AND $4
             RETURNING tasks.dependencies",
        )
        .bind(place.registry.as_str())
        .bind(place.id.0)
        .bind(&name_key)
        .bind(is_back && !moves.is_empty())
        .fetch_optional(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        if let Some(before) = before {
            let report = crate::table::from_json(&before)?;
            learn_within(&mut transaction, &place.registry, &name_key, &report).await?;
        }
        transaction.commit().await.map_err(ControlError::database(failed))
    }

    /// Ends a plan of which nothing is left to be done. One that is put back only if that was seen before:
    /// otherwise nothing has been put back yet.
    async fn settle(&self, place: &Place, seen: PlanStatus) -> Result<()> {
        let statement = sqlx::query(
            "UPDATE plans SET updated_at = $3, status = CASE
                WHEN status = 'RollingBack' THEN 'RolledBack'
                WHEN status = 'Stopping' THEN 'Stopped' ELSE 'Succeeded' END
             WHERE registry = $1 AND number = $2
               AND status IN ('Applying', 'Stopping', $4)
               AND NOT EXISTS (SELECT 1 FROM plan_items i WHERE i.registry = $1 AND i.number = $2
                  AND (i.state = 'Running' OR (plans.status = 'Applying' AND i.state = 'Waiting')
                    OR (plans.status = 'RollingBack' AND i.state IN ('Succeeded', 'Failed'))))",
        )
        .bind(place.registry.as_str())
        .bind(place.id.0)
        .bind(self.tasks.runs.shared.clock.now())
        .bind(seen.as_str());
        let db = &self.tasks.runs.shared.db;
        if crate::table::execute(db, "end a plan", statement).await? > 0 {
            // Moves that it has held are answered.
            self.resumed.send_replace(());
        }
        Ok(())
    }

    async fn fail_item(
        &self,
        connection: &mut SqliteConnection,
        place: &Place,
        item: &PlanItem,
        why: &str,
    ) -> Result<()> {
        sqlx::query(
            "UPDATE plan_items SET state = 'Failed', error = $4
             WHERE registry = $1 AND number = $2 AND name_key = $3",
        )
        .bind(place.registry.as_str())
        .bind(place.id.0)
        .bind(item.drawn.task.key())
        .bind(why)
        .execute(connection)
        .await
        .map_err(ControlError::database("note how far a plan is"))?;
        Ok(())
    }

    /// Starts no more of a plan.
    async fn stop_within(
        &self,
        connection: &mut SqliteConnection,
        place: &Place,
        why: &str,
    ) -> Result<()> {
        sqlx::query(
            "UPDATE plans SET status = 'Stopping', error = $3, updated_at = $4
             WHERE registry = $1 AND number = $2 AND status = 'Applying'",
        )
        .bind(place.registry.as_str())
        .bind(place.id.0)
        .bind(why)
        .bind(self.tasks.runs.shared.clock.now())
        .execute(connection)
        .await
        .map_err(ControlError::database("stop a plan"))?;
        Ok(())
    }
}

/// Which plan.
struct Place {
    registry: RegistryName,
    id: PlanId,
}

enum Started {
    Run(Queued),
    /// There is no room now.
    Waits,
    /// And why it cannot be.
    Not(String),
}

/// The tags that a run has moved, and nobody since.
async fn moved_tags(catalog: &Catalog, run: &Run) -> Result<Vec<PlanMove>> {
    let mut moves = Vec::new();
    for image in run.images.iter().filter(|image| !image.elsewhere) {
        let Some(tag) = &image.tag else { continue };
        let (Ok(repository), Ok(name)) = (image.repository.parse(), tag.parse()) else { continue };
        let last = catalog.last_move_of(&run.registry, &repository, &name).await?;
        let is_own = |last: &store::TagMove| moved_by(last) == Some(run.id);
        let Some(last) = last.filter(is_own) else { continue };
        let Some(new) = last.new else { continue };
        let repository = image.repository.clone();
        moves.push(PlanMove { repository, tag: tag.clone(), old: last.old, new, back: None });
    }
    Ok(moves)
}

/// Puts a tag back, and says what became of it.
async fn returned(
    catalog: &Catalog,
    registry: &RegistryName,
    moved: &PlanMove,
    by: &str,
) -> Result<PlanMove> {
    let image = ImageTag::own(&moved.repository, &moved.tag);
    let way = (Some(&moved.new), moved.old.as_ref());
    let back = match set_tag(catalog, registry, &image, way, by).await? {
        Ok(()) => TagReturn::Done,
        Err(why) => TagReturn::Kept(why),
    };
    Ok(PlanMove { back: Some(back), ..moved.clone() })
}
