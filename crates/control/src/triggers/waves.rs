//! The order in which tasks answer a base that moves: whatever makes an image comes before what is built
//! on it, so that one move makes one wave, and each task is built once in it.
//!
//! Which task makes which image is told by its runs, as its bases are. A task is held back while one that
//! its bases come from, near or far, has still to answer a move or is being built for one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use oci::RegistryName;
use sqlx::SqliteConnection;
use store::Millis;

use super::{ImageTag, OwnRegistry, RunCause, Triggers, plans};
use crate::table::{column, from_json};
use crate::{
    ControlError, OutputImage, Result, RunId, StoredTask, TaskDefinition, TaskName, TaskStep,
};

pub(super) const SCHEMA: &[&str] = &[
    // What the last successful run of a task has pushed to its own registry.
    "CREATE TABLE trigger_outputs (
        registry TEXT NOT NULL,
        repository TEXT NOT NULL,
        tag TEXT NOT NULL,
        name_key TEXT NOT NULL,
        PRIMARY KEY (registry, repository, tag, name_key)
    )",
    "CREATE INDEX trigger_outputs_by_task ON trigger_outputs (registry, name_key)",
    // And to others; the host is empty for its own.
    "ALTER TABLE trigger_outputs RENAME TO trigger_own_outputs",
    "CREATE TABLE trigger_outputs (
        registry TEXT NOT NULL,
        repository TEXT NOT NULL,
        tag TEXT NOT NULL,
        host TEXT NOT NULL,
        name_key TEXT NOT NULL,
        digest TEXT NOT NULL,
        PRIMARY KEY (registry, repository, tag, host, name_key)
    )",
    "INSERT INTO trigger_outputs SELECT registry, repository, tag, '', name_key, ''
     FROM trigger_own_outputs",
    "DROP TABLE trigger_own_outputs",
    "CREATE INDEX trigger_outputs_by_task ON trigger_outputs (registry, name_key)",
];

/// Tags of one task that are remembered.
const OUTPUTS_MAX: usize = 1_000;
/// How long a task waits for those that its bases come from.
const WAIT_MAX: Millis = 2 * 60 * 60 * 1000;
/// Tasks that are looked at above one; of more, the nearest ones count.
const ABOVE_MAX: usize = 1_000;

impl Triggers {
    /// Why a task is not built yet for the bases that have moved, if it is not. `waited`: for how long they have
    /// had no answer.
    pub(super) async fn held_back(
        &self,
        connection: &mut SqliteConnection,
        own: OwnRegistry<'_>,
        task: &StoredTask,
        waited: Millis,
    ) -> Result<Option<String>> {
        let (registry, name_key) = (&task.registry, task.name.key());
        if let Some((run, true)) = built_for_bases(connection, registry, &name_key).await? {
            // It may see the move or not, and its end tells.
            return Ok(Some(format!("run `{run}` of it goes on, which bases have started too")));
        }
        if let Some(why) = plans::held_by(connection, registry, &name_key).await? {
            return Ok(Some(why));
        }
        // What comes first may move again and again, or never be built.
        if waited >= WAIT_MAX {
            return Ok(None);
        }
        for above in above(connection, own, registry, &name_key).await? {
            let Some(why) = self.comes_first(connection, registry, &above).await? else { continue };
            // In a circle nobody is first.
            let is_circle = above == name_key
                || self::above(connection, own, registry, &above).await?.contains(&name_key);
            if !is_circle {
                return Ok(Some(why));
            }
        }
        Ok(None)
    }

    /// The tasks that would start each other for ever if a task were this: each makes what the next one is built
    /// on, and the first is there again at the end.
    pub async fn circle_of(
        &self,
        registry: &RegistryName,
        own: OwnRegistry<'_>,
        name: &TaskName,
        definition: &TaskDefinition,
    ) -> Result<Option<Vec<TaskName>>> {
        let failed = "look for tasks that start each other";
        let reads = self.tasks.runs.shared.db.reads().acquire().await;
        let mut reads = reads.map_err(ControlError::database(failed))?;
        let first = name.key();
        // Whoever changes something else is not told of it.
        let known = self.read(&mut reads, registry.as_str(), &first).await?.ok().flatten();
        let is_same = |known: &TaskDefinition| {
            known.enabled == definition.enabled
                && known.triggers.base_image == definition.triggers.base_image
                && known.digest() == definition.digest()
        };
        if known.is_none_or(|known| is_same(&known.definition)) {
            return Ok(None);
        }
        let is_written_out = matches!(&definition.step, TaskStep::Docker { image_names, .. }
            if image_names.iter().all(|name| !name.contains("{{")));
        // What it is to make by its new definition, as far as that is written out.
        let made: BTreeSet<ImageTag> = match &definition.step {
            TaskStep::Docker { image_names, .. } => {
                let written = image_names.iter().filter(|name| !name.contains("{{"));
                written.filter_map(|name| named_output(name, registry, own)).collect()
            }
            _ => BTreeSet::new(),
        };
        // Which task each has led to, which is built on it.
        let mut above: BTreeMap<String, (String, TaskName)> = BTreeMap::new();
        let mut open = VecDeque::from([(first.clone(), name.clone(), definition.clone())]);
        while let Some((key, shown, definition)) = open.pop_front() {
            let trigger = definition.triggers.base_image.as_ref().filter(|base| base.enabled);
            let Some(trigger) = trigger.filter(|_| definition.enabled) else { continue };
            let rows = sqlx::query(
                "SELECT b.host, b.repository, b.tag, b.is_runtime, o.name_key AS maker
                 FROM trigger_bases b LEFT JOIN trigger_outputs o ON o.registry = b.registry
                   AND o.repository = b.repository AND o.tag = b.tag AND o.host = ''
                 WHERE b.registry = $1 AND b.name_key = $2 ORDER BY o.name_key",
            )
            .bind(registry.as_str())
            .bind(&key)
            .fetch_all(&mut *reads)
            .await
            .map_err(ControlError::database(failed))?;
            for row in &rows {
                let is_own = own(column(row, "host")?).as_ref() == Some(registry);
                if !is_own || !(trigger.buildtime || column(row, "is_runtime")?) {
                    continue;
                }
                let image = ImageTag::own(column(row, "repository")?, column(row, "tag")?);
                let maker: Option<String> = column(row, "maker")?;
                // One that makes its own base does not start itself.
                let has_made = !is_written_out && maker.as_ref() == Some(&first);
                if key != first && (has_made || made.contains(&image)) {
                    let mut path = vec![name.clone(), shown];
                    let mut last = &key;
                    while let Some((next, shown)) = above.get(last) {
                        path.push(shown.clone());
                        last = next;
                    }
                    return Ok(Some(path));
                }
                let Some(maker) = maker.filter(|maker| *maker != key && *maker != first) else {
                    continue;
                };
                if above.contains_key(&maker) || above.len() >= ABOVE_MAX {
                    continue;
                }
                let task = self.read(&mut reads, registry.as_str(), &maker).await?.ok().flatten();
                if let Some(task) = task {
                    above.insert(maker.clone(), (key.clone(), shown.clone()));
                    open.push_back((maker, task.name, task.definition));
                }
            }
        }
        Ok(None)
    }

    /// What is still to be done for moves of the bases of a task.
    async fn comes_first(
        &self,
        connection: &mut SqliteConnection,
        registry: &RegistryName,
        name_key: &str,
    ) -> Result<Option<String>> {
        let built = built_for_bases(connection, registry, name_key).await?;
        if let Some((run, _)) = built {
            return Ok(Some(format!(
                "run `{run}` of task `{name_key}`, whose image it is built on, comes first"
            )));
        }
        let moves: Option<i64> = sqlx::query_scalar(
            "SELECT 1 FROM trigger_moves WHERE registry = $1 AND name_key = $2 AND NOT held LIMIT 1",
        )
        .bind(registry.as_str())
        .bind(name_key)
        .fetch_optional(&mut *connection)
        .await
        .map_err(ControlError::database("find what comes first"))?;
        if moves.is_none() {
            return Ok(None);
        }
        // One that cannot be read answers nothing, and holds nobody up.
        let is_readable = self.read(connection, registry.as_str(), name_key).await?.is_ok();
        Ok(is_readable
            .then(|| format!("task `{name_key}`, whose image it is built on, comes first")))
    }
}

/// The image of the registry itself that a task names as one that it makes.
fn named_output(name: &str, registry: &RegistryName, own: OwnRegistry<'_>) -> Option<ImageTag> {
    let (host, rest) = match name.split_once('/') {
        Some((host, rest)) if host == "localhost" || host.contains(['.', ':']) => {
            (Some(host), rest)
        }
        _ => (None, name),
    };
    if host.is_some_and(|host| own(host).as_ref() != Some(registry)) {
        return None;
    }
    let (repository, tag) = rest.rsplit_once(':').unwrap_or((rest, "latest"));
    Some(ImageTag::own(repository, tag))
}

/// The run of a task that bases have started and that has not ended, and whether it has begun.
async fn built_for_bases(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    name_key: &str,
) -> Result<Option<(RunId, bool)>> {
    let rows = sqlx::query(
        "SELECT number, status, cause FROM runs
         WHERE registry = $1 AND LOWER(task) = $2 AND finished_at IS NULL AND cause IS NOT NULL
         ORDER BY number",
    )
    .bind(registry.as_str())
    .bind(name_key)
    .fetch_all(connection)
    .await
    .map_err(ControlError::database("find what is built for bases"))?;
    let mut found = None;
    for row in &rows {
        let is_for_bases = matches!(
            from_json(column(row, "cause")?)?,
            RunCause::BaseImages { .. } | RunCause::Plan { .. }
        );
        if is_for_bases {
            let run = RunId::from_number(column::<i64>(row, "number")? as u64);
            let has_begun = column::<&str>(row, "status")? != "Queued";
            found = match found {
                Some((_, true)) => found,
                _ => Some((run, has_begun)),
            };
        }
    }
    Ok(found)
}

/// The tasks that the bases of a task come from, and those of theirs, the nearest first.
async fn above(
    connection: &mut SqliteConnection,
    own: OwnRegistry<'_>,
    registry: &RegistryName,
    name_key: &str,
) -> Result<Vec<String>> {
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut found = Vec::new();
    let mut open = VecDeque::from([name_key.to_owned()]);
    while let Some(task) = open.pop_front() {
        let makers: Vec<(String, String)> = sqlx::query_as(
            "SELECT DISTINCT b.host, o.name_key FROM trigger_bases b
             JOIN trigger_outputs o ON o.registry = b.registry AND o.repository = b.repository
               AND o.tag = b.tag AND o.host = ''
             WHERE b.registry = $1 AND b.name_key = $2 ORDER BY o.name_key",
        )
        .bind(registry.as_str())
        .bind(&task)
        .fetch_all(&mut *connection)
        .await
        .map_err(ControlError::database("find what makes the bases of a task"))?;
        for (host, maker) in makers {
            let is_new = own(&host).as_ref() == Some(registry) && known.insert(maker.clone());
            if is_new && found.len() < ABOVE_MAX {
                found.push(maker.clone());
                open.push_back(maker);
            }
        }
    }
    Ok(found)
}

/// Replaces what a task makes by what a run of it has pushed.
pub(crate) async fn note_outputs_within(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    name_key: &str,
    images: &[OutputImage],
) -> Result<()> {
    forget_within(connection, registry, name_key).await?;
    let tagged = images.iter().filter_map(|image| Some((image, image.tag.as_ref()?)));
    for (image, tag) in tagged.take(OUTPUTS_MAX) {
        sqlx::query(
            "INSERT INTO trigger_outputs (registry, repository, tag, host, name_key, digest)
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
        )
        .bind(registry.as_str())
        .bind(&image.repository)
        .bind(tag)
        .bind(if image.elsewhere { image.registry.as_str() } else { "" })
        .bind(name_key)
        .bind(image.digest.as_str())
        .execute(&mut *connection)
        .await
        .map_err(ControlError::database("note what a task makes"))?;
    }
    Ok(())
}

/// Forgets what a task makes.
pub(super) async fn forget_within(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    name_key: &str,
) -> Result<()> {
    sqlx::query("DELETE FROM trigger_outputs WHERE registry = $1 AND name_key = $2")
        .bind(registry.as_str())
        .bind(name_key)
        .execute(connection)
        .await
        .map_err(ControlError::database("forget what a task makes"))?;
    Ok(())
}
