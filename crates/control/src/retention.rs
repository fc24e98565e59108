//! How long what runs pushed stays (architecture.md decision 14).

use std::collections::BTreeSet;

use oci::{Digest, RepositoryName};
use serde::{Deserialize, Serialize};
use store::Millis;

use crate::runs::Output;
use crate::table::{column, from_json};
use crate::{ControlError, Result, Run, Runs, StoredTask, Tasks, table};

const DAY: Millis = 24 * 3600 * 1000;

/// Which images that the runs of a task pushed stay: young ones, and those of the last runs. Of
/// runs that are archived all do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputRetention {
    /// Days after the end of the run.
    pub days: u32,
    /// Of so many of the last runs that pushed any.
    pub keep: u32,
}

impl Tasks {
    /// Tasks that say how long the images of their runs stay, of all registries.
    pub async fn with_output_retention(&self) -> Result<Vec<StoredTask>> {
        let rows = sqlx::query("SELECT * FROM tasks WHERE definition LIKE $1")
            .bind("%\"output_retention\"%")
            .fetch_all(self.runs.shared.db.reads())
            .await
            .map_err(ControlError::database("find tasks whose images go"))?;
        // A text of a task may have these words too.
        let mut tasks = rows.iter().map(|row| self.task_of(row)).collect::<Result<Vec<_>>>()?;
        tasks.retain(|task| task.definition.output_retention.is_some());
        Ok(tasks)
    }
}

impl Runs {
    /// Runs of a task whose images are to go by now, the oldest first, at most `limit`.
    pub async fn expired_outputs(&self, task: &StoredTask, limit: usize) -> Result<Vec<Run>> {
        let Some(rule) = task.definition.output_retention else { return Ok(Vec::new()) };
        let until = self.shared.clock.now() - Millis::from(rule.days) * DAY;
        let rows = sqlx::query(
            "WITH with_images AS (
                SELECT * FROM runs r WHERE registry = $1 AND LOWER(task) = $2 AND outputs_kept
                    AND EXISTS (SELECT 1 FROM run_images i
                        WHERE i.registry = r.registry AND i.number = r.number))
             SELECT * FROM with_images
             WHERE finished_at < $3 AND NOT archived AND number NOT IN (
                SELECT number FROM with_images ORDER BY number DESC LIMIT $4)
             ORDER BY number LIMIT $5",
        )
        .bind(task.registry.as_str())
        .bind(task.name.key())
        .bind(until)
        .bind(i64::from(rule.keep))
        .bind(limit as i64)
        .fetch_all(self.shared.db.reads())
        .await
        .map_err(ControlError::database("find runs whose images go"))?;
        rows.iter().map(|row| self.shared.run_of(row)).collect()
    }

    /// What other runs that keep their images pushed of the same manifest into the same repository:
    /// `None`: nothing; else the tags that they gave it.
    pub async fn kept_by_others(
        &self,
        run: &Run,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<BTreeSet<String>>> {
        // The order of the tables is the one in which few rows are read.
        let rows = sqlx::query(
            "SELECT r.output FROM run_images i CROSS JOIN runs r
             WHERE i.registry = $1 AND i.digest = $4 AND i.repository = $3 AND i.number != $2
                AND r.registry = i.registry AND r.number = i.number AND r.outputs_kept",
        )
        .bind(run.registry.as_str())
        .bind(run.id.number())
        .bind(repository.as_str())
        .bind(digest.to_string())
        .fetch_all(self.shared.db.reads())
        .await
        .map_err(ControlError::database("find who pushed an image too"))?;
        let mut kept = None;
        for row in &rows {
            let output: Output = from_json(column(row, "output")?)?;
            let same = output.images.into_iter().filter(|image| {
                !image.elsewhere
                    && image.repository == repository.as_str()
                    && image.digest == *digest
            });
            for image in same {
                kept.get_or_insert_with(BTreeSet::new).extend(image.tag);
            }
        }
        Ok(kept)
    }

    /// The images of a run are gone, as far as nobody else needs them.
    pub async fn note_outputs_gone(&self, run: &Run) -> Result<()> {
        let statement =
            sqlx::query("UPDATE runs SET outputs_kept = FALSE WHERE registry = $1 AND number = $2")
                .bind(run.registry.as_str())
                .bind(run.id.number());
        table::execute(&self.shared.db, "note that images are gone", statement).await?;
        Ok(())
    }
}
