//! A tag, of the registry or of another one, moves to an image that is there already, once named checks have
//! passed and, where the tasks that have made the image ask for it, somebody has approved: a promotion.
//!
//! A check is a stored task: its run is given the image by its digest. Each promotion is a row, which says how far
//! it is; whenever the server ends, the next one goes on.

use oci::{Digest, RegistryName};
use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use store::Millis;

use super::numbered::NumberedId;
use super::tags::{last_mover, set_tag};
use super::{ImageTag, Queued, RunCause, Triggers, why_not};
use crate::table::{column, from_json, known, parsed, to_json};
use crate::{
    BuildArgument, ControlError, PromotionRules, Result, RunId, RunStatus, StoredTask, TaskName,
    TaskOverrides, TaskStep, TaskValue,
};

pub(super) const SCHEMA: &[&str] = &[
    "CREATE TABLE promotions (
        registry TEXT NOT NULL,
        number BIGINT NOT NULL,
        request TEXT NOT NULL,
        approval BOOLEAN NOT NULL,
        checks TEXT NOT NULL,
        status TEXT NOT NULL,
        error TEXT,
        digest_before TEXT,
        created_by TEXT NOT NULL,
        created_at BIGINT NOT NULL,
        decided_by TEXT,
        decided_at BIGINT,
        updated_at BIGINT NOT NULL,
        PRIMARY KEY (registry, number)
    )",
    "CREATE INDEX promotions_by_status ON promotions (status)",
];

/// Promotions of a registry that are kept, besides those that are not at their end.
const PROMOTIONS_MAX: i64 = 10_000;
/// Tasks that check one image.
pub const CHECKS_MAX: usize = 20;
/// Tasks that are asked what images of theirs need.
const MAKERS_MAX: usize = 100;

/// What the journal has of a move back, before the promotion.
const RETURNING: &str = "rollback of promotion ";

/// The name of a promotion: `m` and a number.
pub type PromotionId = NumberedId<'m'>;

/// What to promote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromotionRequest {
    pub repository: String,
    /// How the image was named, if it was not by its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    pub digest: Digest,
    pub to: ImageTag,
}

/// A promotion that is to begin.
pub struct NewPromotion<'a> {
    pub request: &'a PromotionRequest,
    /// The name of the image with its digest, as runs can pull it.
    pub image: &'a str,
    /// The image, what it lists, and what lists it: whoever has made one of them is asked.
    pub related: &'a [Digest],
    /// What the tag is.
    pub before: Option<&'a Digest>,
    /// Besides those that the tasks ask for.
    pub checks: &'a [TaskName],
    pub by: &'a str,
}

/// How far a promotion is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromotionStatus {
    Checking,
    AwaitingApproval,
    /// Nothing is in its way any more.
    Moving,
    Succeeded,
    /// A check has, or the tag cannot be moved.
    Failed,
    /// Somebody did not want it.
    Rejected,
    RolledBack,
}

impl PromotionStatus {
    const ALL: [Self; 7] = [
        Self::Checking,
        Self::AwaitingApproval,
        Self::Moving,
        Self::Succeeded,
        Self::Failed,
        Self::Rejected,
        Self::RolledBack,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Checking => "Checking",
            Self::AwaitingApproval => "AwaitingApproval",
            Self::Moving => "Moving",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Rejected => "Rejected",
            Self::RolledBack => "RolledBack",
        }
    }
}

/// A task that looks at the image, and its run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub task: TaskName,
    pub run: RunId,
    /// As far as it was looked at.
    pub status: RunStatus,
}

/// A tag that moves, has moved or could not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promotion {
    pub registry: RegistryName,
    pub id: PromotionId,
    pub request: PromotionRequest,
    /// Whether somebody has to approve it, once its checks have passed.
    pub approval: bool,
    pub checks: Vec<Check>,
    pub status: PromotionStatus,
    pub error: Option<String>,
    /// What the tag was; nothing if there was none.
    pub digest_before: Option<Digest>,
    pub created_by: String,
    pub created_at: Millis,
    /// Who has approved or rejected it.
    pub decided_by: Option<String>,
    pub decided_at: Option<Millis>,
    pub updated_at: Millis,
}

impl Promotion {
    /// What the journal has of the move of its tag.
    fn mover(&self) -> String {
        format!("promotion {} by {}", self.id, self.created_by)
    }

    /// `Conflict` if there is nothing to be put back.
    pub fn require_succeeded(&self) -> Result<()> {
        require_status(self, &[PromotionStatus::Succeeded])
    }
}

impl Triggers {
    /// Begins a promotion: its checks are queued, those that it names and those that the tasks ask for that have made
    /// the image.
    pub async fn promote(
        &self,
        registry: &RegistryName,
        new: &NewPromotion<'_>,
    ) -> Result<Promotion> {
        let NewPromotion { request, image, related, before, checks, by } = *new;
        let failed = "begin a promotion";
        let shared = &self.tasks.runs.shared;
        let now = shared.clock.now();
        if before == Some(&request.digest) {
            return Err(ControlError::conflict(format!("`{}` is that image already", request.to)));
        }
        let mut transaction = shared.db.begin().await.map_err(ControlError::database(failed))?;
        let number: i64 = sqlx::query_scalar(
            "SELECT 1 + COALESCE(MAX(number), 0) FROM promotions WHERE registry = $1",
        )
        .bind(registry.as_str())
        .fetch_one(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        let id: PromotionId = NumberedId(number);
        let rules = self.rules_of(&mut transaction, registry, related).await?;
        let mut names = rules.checks;
        for name in checks {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        if names.len() > CHECKS_MAX {
            return Err(ControlError::conflict(format!(
                "an image has at most {CHECKS_MAX} checks"
            )));
        }
        let cause = RunCause::Check { promotion: id.to_string(), by: by.to_owned() };
        let (mut queued, mut begun) = (Vec::new(), Vec::new());
        for name in names {
            let run = self.queue_check(&mut transaction, registry, &name, image, &cause).await?;
            begun.push(Check { task: name, run: run.run, status: RunStatus::Queued });
            queued.push(run);
        }
        let status = PromotionStatus::Checking.as_str();
        sqlx::query(
            "INSERT INTO promotions (registry, number, request, approval, checks, status, digest_before,
                created_by, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)",
        )
        .bind(registry.as_str())
        .bind(number)
        .bind(to_json(request)?)
        .bind(rules.approval)
        .bind(to_json(&begun)?)
        .bind(status)
        .bind(before.map(Digest::as_str))
        .bind(by)
        .bind(now)
        .execute(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        sqlx::query(
            "DELETE FROM promotions WHERE registry = $1 AND number <= $2
                AND status IN ('Succeeded', 'Failed', 'Rejected', 'RolledBack')",
        )
        .bind(registry.as_str())
        .bind(number - PROMOTIONS_MAX)
        .execute(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        transaction.commit().await.map_err(ControlError::database(failed))?;
        self.after(queued).await;
        self.resumed.send_replace(());
        self.promotion(registry, id).await
    }

    pub async fn promotion(&self, registry: &RegistryName, id: PromotionId) -> Result<Promotion> {
        let row = sqlx::query("SELECT * FROM promotions WHERE registry = $1 AND number = $2")
            .bind(registry.as_str())
            .bind(id.0)
            .fetch_optional(self.tasks.runs.shared.db.reads())
            .await
            .map_err(ControlError::database("read a promotion"))?;
        let row =
            row.ok_or_else(|| ControlError::NotFound { what: format!("promotion `{id}`") })?;
        promotion_of(&row)
    }

    /// The promotions of a registry, the newest first.
    pub async fn promotions(
        &self,
        registry: &RegistryName,
        limit: usize,
    ) -> Result<Vec<Promotion>> {
        let rows = sqlx::query(
            "SELECT * FROM promotions WHERE registry = $1 ORDER BY number DESC LIMIT $2",
        )
        .bind(registry.as_str())
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(self.tasks.runs.shared.db.reads())
        .await
        .map_err(ControlError::database("list promotions"))?;
        rows.iter().map(promotion_of).collect()
    }

    /// Approves a promotion whose checks have passed.
    pub async fn approve_promotion(
        &self,
        registry: &RegistryName,
        id: PromotionId,
        by: &str,
    ) -> Result<Promotion> {
        let promotion = self.promotion(registry, id).await?;
        self.turn_promotion(
            &promotion,
            &[PromotionStatus::AwaitingApproval],
            (PromotionStatus::Moving, None),
            Some(by),
        )
        .await
    }

    /// Ends a promotion before its tag moves; its checks are canceled.
    pub async fn reject_promotion(
        &self,
        registry: &RegistryName,
        id: PromotionId,
        by: &str,
    ) -> Result<Promotion> {
        let promotion = self.promotion(registry, id).await?;
        let from = [PromotionStatus::Checking, PromotionStatus::AwaitingApproval];
        let rejected = (PromotionStatus::Rejected, None);
        let promotion = self.turn_promotion(&promotion, &from, rejected, Some(by)).await?;
        let mut canceled = Ok(());
        for check in promotion.checks.iter().filter(|check| !check.status.is_final()) {
            canceled = canceled.and(self.cancel(registry, check.run).await);
        }
        canceled.map(|()| promotion)
    }

    /// Puts back the tag of this registry that a promotion has moved. `Conflict` if somebody has moved it since.
    pub async fn put_back_promoted(&self, promotion: &Promotion, by: &str) -> Result<()> {
        let Some(catalog) = &self.tasks.runs.shared.catalog else { return Ok(()) };
        let Promotion { registry, id, request, .. } = promotion;
        let refuse =
            |why: &str| ControlError::conflict(format!("`{}` is not put back: {why}", request.to));
        let returning = format!("{RETURNING}{id} by ");
        match last_mover(catalog, registry, &request.to).await? {
            // The server ended before this was noted.
            Some(last) if last.starts_with(&returning) => return Ok(()),
            // Later ones were put back to it.
            Some(last) if last == promotion.mover() || last.starts_with(RETURNING) => (),
            _ => return Err(refuse("it has moved since")),
        }
        let way = (Some(&request.digest), promotion.digest_before.as_ref());
        let moved = set_tag(catalog, registry, &request.to, way, &(returning + by)).await?;
        moved.map_err(|why| refuse(&why))
    }

    /// Notes that the tag of a promotion was put back.
    pub async fn promotion_rolled_back(&self, promotion: &Promotion) -> Result<Promotion> {
        let from = [PromotionStatus::Succeeded];
        self.turn_promotion(promotion, &from, (PromotionStatus::RolledBack, None), None).await
    }

    /// Looks at the checks of all promotions, and gives those whose tags are to be moved now.
    pub async fn due_promotions(&self) -> Result<Vec<Promotion>> {
        let rows = sqlx::query(
            "SELECT * FROM promotions WHERE status IN ('Checking', 'Moving')
             ORDER BY registry, number",
        )
        .fetch_all(self.tasks.runs.shared.db.reads())
        .await
        .map_err(ControlError::database("go on with promotions"))?;
        let mut due = Vec::new();
        for row in &rows {
            match self.looked_at(row).await {
                Ok(promotion) if promotion.status == PromotionStatus::Moving => due.push(promotion),
                Ok(_) => (),
                // Others go on.
                Err(error) => tracing::error!(%error, "a promotion cannot go on"),
            }
        }
        Ok(due)
    }

    /// Moves the tag of a promotion, whose image is in the repository of the tag.
    pub async fn move_promoted(&self, promotion: &Promotion) -> Result<()> {
        let Some(catalog) = &self.tasks.runs.shared.catalog else { return Ok(()) };
        let (registry, request) = (&promotion.registry, &promotion.request);
        let way = (promotion.digest_before.as_ref(), Some(&request.digest));
        let (by, mut moved) = (promotion.mover(), Ok(()));
        if last_mover(catalog, registry, &request.to).await?.as_ref() != Some(&by) {
            moved = set_tag(catalog, registry, &request.to, way, &by).await?;
            let last = last_mover(catalog, registry, &request.to).await?;
            if moved.is_ok() && last != Some(by) {
                moved = Err("somebody else has moved the tag to this image meanwhile".to_owned());
            }
        }
        self.promoted(promotion, moved).await
    }

    /// Ends a promotion: its tag has moved, or in words for people why it has not.
    pub async fn promoted(
        &self,
        promotion: &Promotion,
        moved: std::result::Result<(), String>,
    ) -> Result<()> {
        let (status, error) = match &moved {
            Ok(()) => (PromotionStatus::Succeeded, None),
            Err(why) => (PromotionStatus::Failed, Some(&**why)),
        };
        let from = [PromotionStatus::Moving];
        self.turn_promotion(promotion, &from, (status, error), None).await.map(drop)
    }

    async fn looked_at(&self, row: &SqliteRow) -> Result<Promotion> {
        let promotion = promotion_of(row)?;
        match promotion.status {
            PromotionStatus::Checking => self.look_at_checks(promotion).await,
            _ => Ok(promotion),
        }
    }

    async fn look_at_checks(&self, promotion: Promotion) -> Result<Promotion> {
        let mut checks = promotion.checks.clone();
        for check in checks.iter_mut().filter(|check| !check.status.is_final()) {
            let run = self.tasks.runs.get(&promotion.registry, check.run).await?;
            // One that is gone has proven nothing.
            check.status = run.map_or(RunStatus::Error, |run| run.status);
        }
        let mut promotion = promotion;
        if checks != promotion.checks {
            let statement = sqlx::query(
                "UPDATE promotions SET checks = $3, updated_at = $4
                 WHERE registry = $1 AND number = $2 AND status = 'Checking'",
            )
            .bind(promotion.registry.as_str())
            .bind(promotion.id.0)
            .bind(to_json(&checks)?)
            .bind(self.tasks.runs.shared.clock.now());
            let db = &self.tasks.runs.shared.db;
            crate::table::execute(db, "note the checks of a promotion", statement).await?;
            promotion.checks = checks;
        }
        if promotion.checks.iter().any(|check| !check.status.is_final()) {
            return Ok(promotion);
        }
        let is_passed = |check: &&Check| check.status == RunStatus::Succeeded;
        let failed = promotion.checks.iter().find(|check| !is_passed(check));
        let error = failed.map(|check| {
            let Check { task, run, status } = check;
            format!("check `{task}` has not passed: run `{run}` is {}", status.as_str())
        });
        let status = match &error {
            Some(_) => PromotionStatus::Failed,
            None if promotion.approval => PromotionStatus::AwaitingApproval,
            None => PromotionStatus::Moving,
        };
        let from = [PromotionStatus::Checking];
        match self.turn_promotion(&promotion, &from, (status, error.as_deref()), None).await {
            // It was rejected meanwhile.
            Err(ControlError::Conflict { .. }) => Ok(promotion),
            turned => turned,
        }
    }

    async fn turn_promotion(
        &self,
        promotion: &Promotion,
        from: &[PromotionStatus],
        (to, error): (PromotionStatus, Option<&str>),
        decided_by: Option<&str>,
    ) -> Result<Promotion> {
        require_status(promotion, from)?;
        let statement = sqlx::query(
            "UPDATE promotions SET status = $4, error = $5, updated_at = $6,
                decided_by = COALESCE($7, decided_by),
                decided_at = CASE WHEN $7 IS NULL THEN decided_at ELSE $6 END
             WHERE registry = $1 AND number = $2 AND status = $3 RETURNING *",
        )
        .bind(promotion.registry.as_str())
        .bind(promotion.id.0)
        .bind(promotion.status.as_str())
        .bind(to.as_str())
        .bind(error)
        .bind(self.tasks.runs.shared.clock.now())
        .bind(decided_by);
        let db = &self.tasks.runs.shared.db;
        let rows = crate::table::returning(db, "change a promotion", statement).await?;
        let Some(row) = rows.first() else {
            return Err(ControlError::conflict(format!(
                "promotion `{}` has changed meanwhile",
                promotion.id
            )));
        };
        self.resumed.send_replace(());
        promotion_of(row)
    }

    /// What the tasks ask for that have made an image, in whatever repository: all of them, so that nobody who
    /// builds it once more with a task of their own is asked for less.
    async fn rules_of(
        &self,
        connection: &mut SqliteConnection,
        registry: &RegistryName,
        related: &[Digest],
    ) -> Result<PromotionRules> {
        let mut rules = PromotionRules::default();
        for task in self.makers_within(connection, registry, related).await? {
            let asked = task.definition.promotion;
            rules.approval |= asked.approval;
            for check in asked.checks {
                if !rules.checks.contains(&check) {
                    rules.checks.push(check);
                }
            }
        }
        Ok(rules)
    }

    /// The tasks that have made an image, in whatever repository, as far as they are still there.
    pub async fn makers(
        &self,
        registry: &RegistryName,
        digest: &Digest,
    ) -> Result<Vec<StoredTask>> {
        let reads = self.tasks.runs.shared.db.reads().acquire().await;
        let mut reads = reads.map_err(ControlError::database("find what has made an image"))?;
        self.makers_within(&mut reads, registry, std::slice::from_ref(digest)).await
    }

    async fn makers_within(
        &self,
        connection: &mut SqliteConnection,
        registry: &RegistryName,
        digests: &[Digest],
    ) -> Result<Vec<StoredTask>> {
        let names: Vec<String> = sqlx::query_scalar(
            "SELECT DISTINCT LOWER(r.task) FROM run_images i
             JOIN runs r ON r.registry = i.registry AND r.number = i.number
             WHERE i.registry = $1 AND i.digest IN (SELECT value FROM json_each($2))
               AND r.task IS NOT NULL
             ORDER BY 1 LIMIT $3",
        )
        .bind(registry.as_str())
        .bind(to_json(&digests)?)
        .bind(MAKERS_MAX as i64 + 1)
        .fetch_all(&mut *connection)
        .await
        .map_err(ControlError::database("find what has made an image"))?;
        if names.len() > MAKERS_MAX {
            let message = format!("more than {MAKERS_MAX} tasks have made the image");
            return Err(ControlError::conflict(message));
        }
        let mut makers = Vec::new();
        for name in names {
            let found = self.read(connection, registry.as_str(), &name).await?;
            makers.extend(found.map_err(|_| {
                let message = format!("task `{name}`, which has made the image, cannot be read");
                ControlError::conflict(message)
            })?);
        }
        Ok(makers)
    }

    async fn queue_check(
        &self,
        connection: &mut SqliteConnection,
        registry: &RegistryName,
        name: &TaskName,
        image: &str,
        cause: &RunCause,
    ) -> Result<Queued> {
        let refuse = |why: &str| ControlError::conflict(format!("check `{name}`: {why}"));
        let found = self.read(connection, registry.as_str(), &name.key()).await?;
        let Ok(task) = found else { return Err(refuse("the task cannot be read")) };
        let task = task.ok_or_else(|| refuse("there is no such task"))?;
        let now = self.tasks.runs.shared.clock.now();
        if let Some(why) = task.definition.asleep(now) {
            return Err(refuse(&format!("the task {why}")));
        }
        let with_image = (cause.clone(), check_overrides(&task, image));
        match self.queue(connection, &task, with_image, None, now).await {
            Ok(queued) => Ok(queued),
            Err(full @ ControlError::QueueFull { .. }) => Err(full),
            Err(error) => Err(refuse(&why_not(error)?.1)),
        }
    }
}

/// A check knows the image as the value `image`; one that builds a Dockerfile, as the argument `IMAGE`.
fn check_overrides(task: &StoredTask, image: &str) -> TaskOverrides {
    let (value, secret) = (image.to_owned(), false);
    match &task.definition.step {
        TaskStep::Docker { .. } => TaskOverrides {
            arguments: vec![BuildArgument { name: "IMAGE".into(), value, secret }],
            ..TaskOverrides::default()
        },
        TaskStep::File { .. } | TaskStep::System => TaskOverrides {
            values: vec![TaskValue { name: "image".into(), value, secret }],
            ..TaskOverrides::default()
        },
    }
}

fn require_status(promotion: &Promotion, allowed: &[PromotionStatus]) -> Result<()> {
    match allowed.contains(&promotion.status) {
        true => Ok(()),
        false => {
            let Promotion { id, status, .. } = promotion;
            Err(ControlError::conflict(format!("promotion `{id}` is {}", status.as_str())))
        }
    }
}

fn promotion_of(row: &SqliteRow) -> Result<Promotion> {
    let before: Option<&str> = column(row, "digest_before")?;
    Ok(Promotion {
        registry: parsed(column(row, "registry")?)?,
        id: NumberedId(column(row, "number")?),
        request: from_json(column(row, "request")?)?,
        approval: column(row, "approval")?,
        checks: from_json(column(row, "checks")?)?,
        status: known(PromotionStatus::ALL, PromotionStatus::as_str, column(row, "status")?)?,
        error: column(row, "error")?,
        digest_before: before.map(parsed).transpose()?,
        created_by: column(row, "created_by")?,
        created_at: column(row, "created_at")?,
        decided_by: column(row, "decided_by")?,
        decided_at: column(row, "decided_at")?,
        updated_at: column(row, "updated_at")?,
    })
}
