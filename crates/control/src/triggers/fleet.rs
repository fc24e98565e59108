//! The tasks of a registry by what they are made of and what they make: what an event would start, before it
//! happens.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::fmt;

use oci::{Digest, RegistryName};
use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;
use store::Millis;

use super::bases::{Base, CHAIN_MAX};
use super::pauses::{self, Pause};
use super::sources::{Told, default_branch, trigger_branch, unfit};
use super::{Decision, OwnRegistry, PullRequest, SourceEvent, TimerTrigger, TriggerKind, Triggers};
use crate::table::column;
use crate::{ControlError, Result, StoredTask, TaskName};

/// A tag of an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ImageTag {
    /// Nothing if it is in the registry itself, whatever name that has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    pub repository: String,
    pub tag: String,
}

/// What an event would come to for a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreseen {
    pub task: TaskName,
    pub kind: TriggerKind,
    /// Of the trigger.
    pub trigger: String,
    /// 1 for what the event itself starts, more for what follows from that.
    pub level: usize,
    pub decision: Decision,
    pub reason: Option<String>,
    /// The images that would have moved.
    pub images: Vec<ImageTag>,
}

/// A commit or a pull request that might come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceGuess {
    /// The branch, or the one that it is to become a part of.
    pub branch: String,
    pub pull_request: Option<u64>,
    pub from_fork: bool,
}

impl fmt::Display for ImageTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, repository, tag } = self;
        match host {
            Some(host) => write!(f, "{host}/{repository}:{tag}"),
            None => write!(f, "{repository}:{tag}"),
        }
    }
}

impl ImageTag {
    /// Of `HOST/REPOSITORY:TAG`; without a host it begins with the slash.
    pub(super) fn of(text: &str) -> Option<Self> {
        let (name, tag) = text.rsplit_once(':')?;
        let (host, repository) = name.split_once('/')?;
        let host = (!host.is_empty()).then(|| host.to_owned());
        Some(Self { host, repository: repository.to_owned(), tag: tag.to_owned() })
    }

    /// As a Dockerfile names it, in a registry that is called `own_host`.
    pub fn named(&self, own_host: &str) -> String {
        let host = self.host.as_deref().unwrap_or(own_host);
        format!("{host}/{}:{}", self.repository, self.tag)
    }

    /// Of the registry itself.
    pub fn own(repository: &str, tag: &str) -> Self {
        Self { host: None, repository: repository.to_owned(), tag: tag.to_owned() }
    }
}

/// The tasks of a registry.
pub(super) struct Fleet {
    /// By their keys. One that cannot be read is none of them.
    pub(super) tasks: BTreeMap<String, StoredTask>,
    /// Which tasks are built on a tag.
    on: HashMap<ImageTag, Vec<(String, Base)>>,
    /// What a task makes, here and elsewhere.
    pub(super) outputs: HashMap<String, Vec<ImageTag>>,
}

impl Triggers {
    /// What would follow if a base became another image, `to` if that is known: what it starts, what that
    /// starts, and what it would not start and why.
    pub async fn foresee_base(
        &self,
        registry: &RegistryName,
        own: OwnRegistry<'_>,
        image: &ImageTag,
        to: Option<(&Digest, &[Digest])>,
    ) -> Result<Vec<Foreseen>> {
        let shared = &self.tasks.runs.shared;
        let failed = "foresee what follows from a base";
        let reads = shared.db.reads().acquire().await;
        let mut reads = reads.map_err(ControlError::database(failed))?;
        let fleet = self.fleet(&mut reads, registry, own).await?;
        let now = shared.clock.now();
        let pauses = pauses::pauses_within(&mut reads, registry, now).await?;
        Ok(Wave { fleet: &fleet, pauses: &pauses, now, by_hand: false }.of(image, to))
    }

    /// What a commit or a pull request would start, of one task or of all.
    pub async fn foresee_source(
        &self,
        registry: &RegistryName,
        own: OwnRegistry<'_>,
        task: Option<&TaskName>,
        guess: &SourceGuess,
    ) -> Result<Vec<Foreseen>> {
        let shared = &self.tasks.runs.shared;
        let reads = shared.db.reads().acquire().await;
        let mut reads = reads.map_err(ControlError::database("foresee what a commit starts"))?;
        let fleet = self.fleet(&mut reads, registry, own).await?;
        let now = shared.clock.now();
        let pauses = pauses::pauses_within(&mut reads, registry, now).await?;
        let event = guess.event();
        let mut found = Vec::new();
        for of_fleet in
            fleet.tasks.values().filter(|known| task.is_none_or(|task| known.name == *task))
        {
            for trigger in &of_fleet.definition.triggers.sources {
                let branch = match trigger_branch(of_fleet, trigger) {
                    Some(branch) => Some(branch),
                    None => default_branch(&mut reads, of_fleet, trigger).await?,
                };
                let told = Told {
                    task: of_fleet,
                    trigger,
                    event: &event,
                    host: None,
                    branch: branch.as_deref(),
                };
                let skipped = unfit(&told).or_else(|| {
                    of_fleet.definition.asleep(now).map(|why| format!("the task {why}"))
                });
                let (decision, reason) =
                    decided(skipped, || pauses::paused(&pauses, &of_fleet.name), Decision::Waits);
                found.push(Foreseen {
                    task: of_fleet.name.clone(),
                    kind: TriggerKind::Source,
                    trigger: trigger.name.clone(),
                    level: 1,
                    decision,
                    reason,
                    images: Vec::new(),
                });
            }
        }
        Ok(found)
    }

    /// What timers start between two times, by the time; at most `limit`.
    pub async fn foresee_timers(
        &self,
        registry: &RegistryName,
        own: OwnRegistry<'_>,
        (from, until): (Millis, Millis),
        limit: usize,
    ) -> Result<Vec<Foreseen>> {
        let shared = &self.tasks.runs.shared;
        let reads = shared.db.reads().acquire().await;
        let mut reads = reads.map_err(ControlError::database("foresee what timers start"))?;
        let fleet = self.fleet(&mut reads, registry, own).await?;
        let pauses = pauses::pauses_within(&mut reads, registry, from).await?;
        let timers: Vec<(&StoredTask, &TimerTrigger)> = fleet
            .tasks
            .values()
            .flat_map(|task| task.definition.triggers.timers.iter().map(move |timer| (task, timer)))
            .filter(|(_, timer)| timer.enabled)
            .collect();
        let next = |(place, after): (usize, Millis)| {
            let next = timers.get(place)?.1.schedule.next_after(after)?;
            (next <= until).then_some(Reverse((next, place)))
        };
        // The next time of each timer.
        let mut due: BinaryHeap<_> =
            (0..timers.len()).filter_map(|place| next((place, from - 1))).collect();
        let mut found = Vec::new();
        while let Some(Reverse((time, place))) = due.pop().filter(|_| found.len() < limit) {
            due.extend(next((place, time)));
            let Some((task, timer)) = timers.get(place) else { continue };
            let asleep = task.definition.asleep(time).map(|why| format!("the task {why}"));
            let lasting: Vec<Pause> =
                pauses.iter().filter(|pause| pause.lasts(time)).cloned().collect();
            let paused = || pauses::paused(&lasting, &task.name);
            let (decision, reason) = decided(asleep, paused, Decision::Skipped);
            let reason = reason.map(|reason| format!("; {reason}")).unwrap_or_default();
            found.push(Foreseen {
                task: task.name.clone(),
                kind: TriggerKind::Timer,
                trigger: timer.name.clone(),
                level: 1,
                decision,
                reason: Some(format!("it is due at {}{reason}", super::timers::shown(time))),
                images: Vec::new(),
            });
        }
        Ok(found)
    }

    pub(super) async fn fleet(
        &self,
        connection: &mut SqliteConnection,
        registry: &RegistryName,
        own: OwnRegistry<'_>,
    ) -> Result<Fleet> {
        let failed = "read the tasks of a registry";
        let rows = sqlx::query("SELECT * FROM tasks WHERE registry = $1 ORDER BY name_key")
            .bind(registry.as_str())
            .fetch_all(&mut *connection)
            .await
            .map_err(ControlError::database(failed))?;
        let mut tasks = BTreeMap::new();
        for row in &rows {
            // One that cannot be read starts nothing, which is told where it should.
            if let Ok(task) = self.tasks.task_of(row) {
                tasks.insert(task.name.key(), task);
            }
        }
        let rows = sqlx::query("SELECT * FROM trigger_bases WHERE registry = $1")
            .bind(registry.as_str())
            .fetch_all(&mut *connection)
            .await
            .map_err(ControlError::database(failed))?;
        let mut on: HashMap<ImageTag, Vec<(String, Base)>> = HashMap::new();
        let mut hosts: HashMap<String, bool> = HashMap::new();
        for row in &rows {
            let host: String = column(row, "host")?;
            let is_own =
                *hosts.entry(host.clone()).or_insert_with(|| own(&host).as_ref() == Some(registry));
            let image = ImageTag {
                host: (!is_own).then_some(host),
                repository: column(row, "repository")?,
                tag: column(row, "tag")?,
            };
            on.entry(image).or_default().push((column(row, "name_key")?, Base::of(row)?));
        }
        let rows: Vec<(String, String, String, String)> = sqlx::query_as(
            "SELECT name_key, host, repository, tag FROM trigger_outputs WHERE registry = $1
             ORDER BY name_key, host, repository, tag",
        )
        .bind(registry.as_str())
        .fetch_all(connection)
        .await
        .map_err(ControlError::database(failed))?;
        let mut outputs: HashMap<String, Vec<ImageTag>> = HashMap::new();
        for (name_key, host, repository, tag) in rows {
            let host = (!host.is_empty()).then_some(host);
            outputs.entry(name_key).or_default().push(ImageTag { host, repository, tag });
        }
        Ok(Fleet { tasks, on, outputs })
    }
}

impl SourceGuess {
    fn event(&self) -> SourceEvent {
        let (branch, commit) = (self.branch.clone(), "0".repeat(40));
        match self.pull_request {
            None => SourceEvent::Commit { branch, commit, before: None },
            Some(number) => SourceEvent::PullRequest(PullRequest {
                number,
                into: branch,
                commit,
                reference: String::new(),
                from_fork: self.from_fork,
                may_be_known: false,
            }),
        }
    }
}

/// A decision for reasons of which the first one counts.
fn decided(
    skipped: Option<String>,
    paused: impl FnOnce() -> Option<String>,
    when_paused: Decision,
) -> (Decision, Option<String>) {
    match skipped {
        Some(why) => (Decision::Skipped, Some(why)),
        None => match paused() {
            Some(why) => (when_paused, Some(why)),
            None => (Decision::Fired, None),
        },
    }
}

impl Fleet {
    /// The tasks that a task would start, and the images by which.
    fn children<'a>(
        &'a self,
        task: &str,
    ) -> impl Iterator<Item = (&'a ImageTag, &'a str, &'a Base)> {
        let images = self.outputs.get(task).into_iter().flatten();
        images.flat_map(move |image| {
            let on = self.on.get(image).into_iter().flatten();
            on.map(move |(child, base)| (image, child.as_str(), base))
        })
    }
}

/// What follows from a base that moves.
pub(super) struct Wave<'a> {
    pub(super) fleet: &'a Fleet,
    pub(super) pauses: &'a [Pause],
    pub(super) now: Millis,
    /// Somebody starts the tasks, and no trigger: those count too that have none, or a disabled one.
    pub(super) by_hand: bool,
}

/// What is known of a task while a wave goes on.
pub(super) struct Reached<'a> {
    pub(super) decision: Decision,
    pub(super) reason: Option<String>,
    pub(super) images: BTreeSet<&'a ImageTag>,
    /// The tasks that have made them.
    pub(super) parents: BTreeSet<&'a str>,
}

impl<'a> Wave<'a> {
    fn of(&self, image: &'a ImageTag, to: Option<(&Digest, &[Digest])>) -> Vec<Foreseen> {
        let reached = self.reached(image, to);
        let levels = levels(&reached);
        let mut all: Vec<Foreseen> = reached
            .into_iter()
            .filter_map(|(key, reached)| {
                let stored = self.fleet.tasks.get(key)?;
                let trigger = stored.definition.triggers.base_image.as_ref()?;
                let level = levels.get(key).copied().unwrap_or(1);
                let (decision, reason) = match reached.decision {
                    Decision::Fired if level > CHAIN_MAX => {
                        let reason = format!("it follows from {CHAIN_MAX} runs, one of another");
                        (Decision::Suppressed, Some(reason))
                    }
                    decision => (decision, reached.reason),
                };
                Some(Foreseen {
                    task: stored.name.clone(),
                    kind: TriggerKind::BaseImage,
                    trigger: trigger.name.clone(),
                    level,
                    decision,
                    reason,
                    images: reached.images.into_iter().cloned().collect(),
                })
            })
            .collect();
        all.sort_by(|one, other| {
            (one.level, one.task.as_str()).cmp(&(other.level, other.task.as_str()))
        });
        all
    }

    /// The tasks that it reaches, by their keys.
    pub(super) fn reached(
        &self,
        image: &'a ImageTag,
        to: Option<(&Digest, &[Digest])>,
    ) -> BTreeMap<&'a str, Reached<'a>> {
        let mut reached: BTreeMap<&str, Reached<'_>> = BTreeMap::new();
        let mut open = VecDeque::new();
        for (task, base) in self.fleet.on.get(image).into_iter().flatten() {
            if self.reach(&mut reached, (image, None), (task, base), to) {
                open.push_back(task.as_str());
            }
        }
        while let Some(parent) = open.pop_front() {
            for (image, task, base) in self.fleet.children(parent) {
                let by = (image, Some(parent));
                if self.reach(&mut reached, by, (task, base), None) {
                    open.push_back(task);
                }
            }
        }
        reached
    }

    /// Adds what a move comes to for a task. Says whether it starts the task, which nothing did before.
    fn reach(
        &self,
        reached: &mut BTreeMap<&'a str, Reached<'a>>,
        (image, parent): (&'a ImageTag, Option<&'a str>),
        (key, base): (&'a str, &'a Base),
        to: Option<(&Digest, &[Digest])>,
    ) -> bool {
        let Some(task) = self.fleet.tasks.get(key) else { return false };
        let trigger = task.definition.triggers.base_image.as_ref();
        if trigger.is_none() && !self.by_hand {
            return false;
        }
        // One that makes its own base does not start itself.
        if parent == Some(key) {
            return false;
        }
        let skipped = match task.definition.asleep(self.now) {
            Some(why) => Some(format!("the task {why}")),
            None => {
                let why = match trigger {
                    Some(trigger) if !self.by_hand => base.is_fine(trigger, to),
                    _ => base.is_current(trigger.is_some_and(|trigger| trigger.buildtime), to),
                };
                why.map(str::to_owned)
            }
        };
        let paused = || {
            pauses::paused(self.pauses, &task.name)
                .or_else(|| pauses::paused_base(self.pauses, image))
        };
        let (decision, reason) = decided(skipped, paused, Decision::Waits);
        let known = reached.get(key).map(|known| known.decision);
        let is_new = decision == Decision::Fired && known != Some(Decision::Fired);
        let entry = reached.entry(key).or_insert_with(|| Reached {
            decision,
            reason: reason.clone(),
            images: BTreeSet::new(),
            parents: BTreeSet::new(),
        });
        if is_new {
            (entry.decision, entry.reason) = (decision, None);
            entry.images.clear();
        }
        if entry.decision == decision {
            entry.images.insert(image);
        }
        entry.parents.extend(parent);
        is_new
    }
}

/// How many runs follow from each other until a task is reached, by the longest way: it is built after all that
/// make its bases. Of tasks in a circle the first by name begins.
pub(super) fn levels<'a>(reached: &BTreeMap<&'a str, Reached<'a>>) -> BTreeMap<&'a str, usize> {
    let mut levels: BTreeMap<&str, usize> = BTreeMap::new();
    let mut waits: BTreeMap<&str, usize> = BTreeMap::new();
    let mut children: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (key, entry) in reached {
        waits.insert(*key, entry.parents.len());
        for parent in &entry.parents {
            children.entry(*parent).or_default().push(*key);
        }
    }
    let mut open: VecDeque<&str> =
        waits.iter().filter(|(_, count)| **count == 0).map(|(key, _)| *key).collect();
    loop {
        let Some(key) = open.pop_front() else {
            // What is left goes in a circle.
            let Some(left) = waits.keys().find(|key| !levels.contains_key(*key)).copied() else {
                return levels;
            };
            open.push_back(left);
            continue;
        };
        if levels.contains_key(key) {
            continue;
        }
        let parents = reached.get(key).into_iter().flat_map(|entry| &entry.parents);
        let above = parents.filter_map(|parent| levels.get(parent)).max().copied();
        levels.insert(key, above.unwrap_or_default() + 1);
        for child in children.get(key).into_iter().flatten() {
            if let Some(count) = waits.get_mut(child) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    open.push_back(child);
                }
            }
        }
    }
}
