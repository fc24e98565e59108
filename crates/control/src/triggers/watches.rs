//! Bases in other registries: their tags are asked for what they are (triggers.md section 3.4).
//!
//! A tag is asked for once for all tasks of a registry that are built on it. When, and what it was, are
//! rows, so that a restart asks for none sooner and misses no move. A tag that is another image has to
//! stay so for a while before it counts, since releases are pushed piece by piece; and a registry that
//! does not answer, or asks for a pause, is left alone as a whole, and then tried with one question.

use std::time::Duration;

use oci::{Digest, RegistryName, RepositoryName};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use store::Millis;

use super::bases::{Moved, compared, write_move};
use super::polls::millis;
use super::{OwnRegistry, Triggers};
use crate::table::{column, parsed};
use crate::{ControlError, RegistryLogin, Result, StoredTask, TaskName};

pub(super) const SCHEMA: &[&str] = &[
    "CREATE TABLE trigger_watches (
        registry TEXT NOT NULL,
        host TEXT NOT NULL,
        repository TEXT NOT NULL,
        tag TEXT NOT NULL,
        digest TEXT,
        settling TEXT,
        settling_since BIGINT,
        next_at BIGINT NOT NULL,
        asked_at BIGINT,
        failures BIGINT NOT NULL,
        error TEXT,
        PRIMARY KEY (registry, host, repository, tag)
    )",
    "CREATE INDEX trigger_watches_by_time ON trigger_watches (next_at)",
    // Registries that are left alone.
    "CREATE TABLE trigger_watched_hosts (
        host TEXT NOT NULL PRIMARY KEY,
        not_before BIGINT NOT NULL,
        failures BIGINT NOT NULL
    )",
];

/// Tags that are asked for within one look.
const BATCH: i64 = 200;
/// Tasks on one tag that are looked at for who asks, those of them that wait for it, and logins that are tried.
const TASKS_MAX: i64 = 2_000;
const WAITING_MAX: usize = 100;
const LOGINS_MAX: usize = 3;
/// A tag that goes on moving counts as moved after so many times of settling.
const SETTLINGS_MAX: i64 = 10;
/// The first pause after a registry has not answered; twice as long after each next time.
const PAUSE: Duration = Duration::from_secs(30);
/// A registry, or a tag that is refused, is left alone for no longer than this at once.
const PAUSE_MAX: Duration = Duration::from_secs(6 * 60 * 60);

/// How tags of other registries are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchSettings {
    /// How often, on average: each time anew between a third of it and twice as long. Never if zero.
    pub period: Duration,
    /// How long a tag has to stay another image until that counts.
    pub settle: Duration,
}

/// A tag that is to be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    pub registry: RegistryName,
    /// As in references.
    pub host: String,
    pub repository: RepositoryName,
    pub tag: String,
    /// What it was last, if that is known.
    pub digest: Option<Digest>,
    /// Who asks, each to be tried if the one before may not see it.
    pub askers: Vec<Asker>,
    settling: Option<Digest>,
    settling_since: Option<Millis>,
    failures: u32,
}

/// As whom a registry is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asker {
    /// As the server's settings say, or as nobody.
    Server,
    Task {
        name: TaskName,
        login: RegistryLogin,
    },
}

/// What a registry has said of a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchAnswer {
    pub image: WatchedImage,
    /// For how long it wants to be left alone.
    pub rest: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchedImage {
    /// What it was.
    Same,
    Other {
        digest: Digest,
        /// What it lists, if it is an index.
        members: Vec<Digest>,
    },
    /// Nothing that can be used; in words for people why.
    None { why: String, of_host: bool },
}

/// A tag that is watched, as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchStatus {
    pub host: String,
    pub repository: String,
    pub tag: String,
    pub digest: Option<Digest>,
    /// What it is now, as long as it is not certain to stay so.
    pub settling: Option<Digest>,
    pub asked_at: Option<Millis>,
    pub next_at: Millis,
    /// Why it was not told last time.
    pub error: Option<String>,
}

impl Triggers {
    /// When the next tag is to be asked for.
    pub async fn next_watch(&self) -> Result<Option<Millis>> {
        if self.watching.period.is_zero() {
            return Ok(None);
        }
        sqlx::query_scalar(
            "SELECT MIN(CASE WHEN h.not_before > w.next_at THEN h.not_before ELSE w.next_at END)
             FROM trigger_watches w LEFT JOIN trigger_watched_hosts h ON h.host = w.host",
        )
        .fetch_one(self.tasks.runs.shared.db.reads())
        .await
        .map_err(ControlError::database("find the next tag to ask for"))
    }

    /// Has the tags watched that nobody watches and that tasks are built on: an older version's tasks, or those of
    /// a time when nothing was asked for. Moves of them are looked for with the next look at bases.
    pub async fn watch_again(&self, own: OwnRegistry<'_>) -> Result<()> {
        if self.watching.period.is_zero() {
            return Ok(());
        }
        let failed = "find bases that are not watched";
        let db = &self.tasks.runs.shared.db;
        let hosts: Vec<(String,)> = sqlx::query_as("SELECT DISTINCT host FROM trigger_bases")
            .fetch_all(db.reads())
            .await
            .map_err(ControlError::database(failed))?;
        for (host,) in hosts.into_iter().filter(|(host,)| own(host).is_none()) {
            let statement = sqlx::query(
                "INSERT INTO trigger_learned (registry, name_key)
                 SELECT DISTINCT b.registry, b.name_key FROM trigger_bases b
                 WHERE b.host = $1 AND NOT EXISTS (
                    SELECT 1 FROM trigger_watches w WHERE w.registry = b.registry
                       AND w.host = b.host AND w.repository = b.repository AND w.tag = b.tag)
                 ON CONFLICT DO NOTHING",
            );
            crate::table::execute(db, failed, statement.bind(host)).await?;
        }
        Ok(())
    }

    /// The tags that are to be asked for now, of a registry that did not answer one.
    pub async fn due_watches(&self) -> Result<Vec<Watch>> {
        let failed = "list the tags to ask for";
        if self.watching.period.is_zero() {
            return Ok(Vec::new());
        }
        let now = self.tasks.runs.shared.clock.now();
        let rows = sqlx::query(
            "SELECT w.*, COALESCE(h.failures, 0) AS host_failures FROM trigger_watches w
             LEFT JOIN trigger_watched_hosts h ON h.host = w.host
             WHERE w.next_at <= $1 AND COALESCE(h.not_before, 0) <= $1
             ORDER BY w.next_at LIMIT $2",
        )
        .bind(now)
        .bind(BATCH)
        .fetch_all(self.tasks.runs.shared.db.reads())
        .await
        .map_err(ControlError::database(failed))?;
        let mut watches: Vec<Watch> = Vec::new();
        for row in &rows {
            let watch = watch_of(row)?;
            let is_probe = column::<i64>(row, "host_failures")? > 0;
            if is_probe && watches.iter().any(|other| other.host == watch.host) {
                continue;
            }
            match self.askers(&watch, now).await? {
                Some(askers) => watches.push(Watch { askers, ..watch }),
                None => self.look_later(&watch, now).await?,
            }
        }
        Ok(watches)
    }

    /// Takes what a registry has said of a tag.
    pub async fn watched(&self, watch: &Watch, answer: WatchAnswer) -> Result<()> {
        let failed = "note what a tag is";
        let db = &self.tasks.runs.shared.db;
        let now = self.tasks.runs.shared.clock.now();
        let mut transaction = db.begin().await.map_err(ControlError::database(failed))?;
        let of_host = matches!(answer.image, WatchedImage::None { of_host: true, .. });
        let failed_for = of_host.then(|| PAUSE.min(self.watching.period));
        rest_of_host(&mut transaction, &watch.host, failed_for, answer.rest, now).await?;
        let mut next = Watch { failures: 0, ..watch.clone() };
        (next.settling, next.settling_since) = (None, None);
        let (mut next_at, mut error) = (now + millis(drawn(self.watching.period)), None);
        let is_told = matches!(answer.image, WatchedImage::Other { .. });
        match answer.image {
            WatchedImage::Same => (),
            WatchedImage::Other { digest, members } => {
                let since = watch.settling_since.unwrap_or(now);
                let settle = millis(self.watching.settle);
                let members = compared(members);
                let stays = watch.settling.as_ref() == Some(&digest) || settle == 0;
                let moved = Seen { digest: &digest, members: &members, at: now };
                if stays || now - since >= settle.saturating_mul(SETTLINGS_MAX) {
                    // The others were told of it when it was seen first.
                    let was_told = watch.settling.as_ref() == Some(&digest);
                    let to = if was_told { Told::Patient } else { Told::All };
                    self.tell(&mut transaction, watch, &moved, to).await?;
                    next.digest = Some(digest);
                } else {
                    self.tell(&mut transaction, watch, &moved, Told::Urgent).await?;
                    (next.settling, next.settling_since) = (Some(digest), Some(since));
                    next_at = now + settle;
                }
            }
            WatchedImage::None { why, of_host } => {
                (next.settling, next.settling_since) =
                    (watch.settling.clone(), watch.settling_since);
                next.failures = watch.failures.saturating_add(1);
                // When a registry is asked again is one matter for all of its tags.
                next_at =
                    if of_host { now } else { now + backoff(self.watching.period, next.failures) };
                error = Some(why);
            }
        }
        sqlx::query(
            "UPDATE trigger_watches SET digest = $5, settling = $6, settling_since = $7, next_at = $8,
                asked_at = $9, failures = $10, error = $11
             WHERE registry = $1 AND host = $2 AND repository = $3 AND tag = $4",
        )
        .bind(watch.registry.as_str())
        .bind(&watch.host)
        .bind(watch.repository.as_str())
        .bind(&watch.tag)
        .bind(next.digest.as_ref().map(Digest::as_str))
        .bind(next.settling.as_ref().map(Digest::as_str))
        .bind(next.settling_since)
        .bind(next_at)
        .bind(now)
        .bind(i64::from(next.failures))
        .bind(error.map(|error| error.chars().take(ERROR_MAX).collect::<String>()))
        .execute(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        transaction.commit().await.map_err(ControlError::database(failed))?;
        if is_told {
            self.resumed.send_replace(());
        }
        Ok(())
    }

    /// The tags that are watched for a registry, in the order of their names.
    pub async fn watches(&self, registry: &RegistryName, limit: usize) -> Result<Vec<WatchStatus>> {
        let rows = sqlx::query(
            "SELECT w.*, CASE WHEN h.not_before > w.next_at THEN h.not_before ELSE w.next_at END
                AS due_at
             FROM trigger_watches w LEFT JOIN trigger_watched_hosts h ON h.host = w.host
             WHERE w.registry = $1 ORDER BY w.host, w.repository, w.tag LIMIT $2",
        )
        .bind(registry.as_str())
        .bind(limit as i64)
        .fetch_all(self.tasks.runs.shared.db.reads())
        .await
        .map_err(ControlError::database("list what is watched"))?;
        let status = |row: &SqliteRow| {
            Ok(WatchStatus {
                host: column(row, "host")?,
                repository: column(row, "repository")?,
                tag: column(row, "tag")?,
                digest: digest_of(row, "digest")?,
                settling: digest_of(row, "settling")?,
                asked_at: column(row, "asked_at")?,
                next_at: column(row, "due_at")?,
                error: column(row, "error")?,
            })
        };
        rows.iter().map(status).collect()
    }

    /// Writes the move down for the tasks on a tag that were built on something else, or have still to answer an
    /// earlier one; not for one that has pushed it itself.
    async fn tell(
        &self,
        connection: &mut SqliteConnection,
        watch: &Watch,
        seen: &Seen<'_>,
        to: Told,
    ) -> Result<()> {
        let rows: Vec<(String,)> = sqlx::query_as(
            "SELECT name_key FROM trigger_bases b
             WHERE registry = $1 AND host = $2 AND repository = $3 AND tag = $4 AND (digest != $5
                OR EXISTS (SELECT 1 FROM trigger_moves m WHERE m.registry = b.registry
                   AND m.name_key = b.name_key AND m.host = b.host
                   AND m.repository = b.repository AND m.tag = b.tag))
               AND NOT EXISTS (SELECT 1 FROM trigger_outputs o WHERE o.registry = b.registry
                  AND o.repository = b.repository AND o.tag = b.tag AND o.host = b.host
                  AND o.name_key = b.name_key AND o.digest = $5)",
        )
        .bind(watch.registry.as_str())
        .bind(&watch.host)
        .bind(watch.repository.as_str())
        .bind(&watch.tag)
        .bind(seen.digest.as_str())
        .fetch_all(&mut *connection)
        .await
        .map_err(ControlError::database("find the tasks on a base"))?;
        let moved = Moved {
            repository: watch.repository.as_str(),
            tag: &watch.tag,
            digest: Some(seen.digest),
            members: seen.members,
            moved_by: None,
            at: seen.at,
        };
        for (name_key,) in rows {
            let registry = watch.registry.as_str();
            if to != Told::All {
                let task = self.read(connection, registry, &name_key).await?.ok().flatten();
                let trigger = task.and_then(|task| task.definition.triggers.base_image);
                let is_urgent = trigger.is_some_and(|trigger| trigger.urgent);
                if is_urgent != (to == Told::Urgent) {
                    continue;
                }
            }
            write_move(connection, &moved, (registry, &name_key, &watch.host), seen.at).await?;
        }
        Ok(())
    }

    /// As whom a tag is asked for; nothing if no task waits for it. A tag that no task is built on any more
    /// is forgotten.
    async fn askers(&self, watch: &Watch, now: Millis) -> Result<Option<Vec<Asker>>> {
        let db = &self.tasks.runs.shared.db;
        let rows = sqlx::query(
            "SELECT t.*, b.is_runtime FROM trigger_bases b
             JOIN tasks t ON t.registry = b.registry AND t.name_key = b.name_key
             WHERE b.registry = $1 AND b.host = $2 AND b.repository = $3 AND b.tag = $4
             ORDER BY b.name_key LIMIT $5",
        )
        .bind(watch.registry.as_str())
        .bind(&watch.host)
        .bind(watch.repository.as_str())
        .bind(&watch.tag)
        .bind(TASKS_MAX)
        .fetch_all(db.reads())
        .await
        .map_err(ControlError::database("find the tasks on a tag"))?;
        let mut askers: Vec<Asker> = Vec::new();
        let mut waiting = 0;
        for row in &rows {
            // Of many that wait for it, those beyond have most likely no other login.
            if askers.len() == LOGINS_MAX || waiting == WAITING_MAX {
                break;
            }
            // One that cannot be read is told elsewhere, and waits for nothing.
            let Ok(task) = self.tasks.task_of(row) else { continue };
            if !waits_for(&task, column(row, "is_runtime")?, now) {
                continue;
            }
            waiting += 1;
            let login = task.definition.logins.others.get(&watch.host).cloned();
            let is_known = |known: &Asker| match (known, &login) {
                (Asker::Server, None) => true,
                (Asker::Task { login: known, .. }, Some(login)) => known == login,
                _ => false,
            };
            if askers.len() < LOGINS_MAX && !askers.iter().any(is_known) {
                askers.push(
                    login.map_or(Asker::Server, |login| Asker::Task { name: task.name, login }),
                );
            }
        }
        Ok(Some(askers).filter(|askers| !askers.is_empty()))
    }

    /// Looks at a tag later that nobody waits for, unless nobody is built on it any more.
    async fn look_later(&self, watch: &Watch, now: Millis) -> Result<()> {
        let (db, failed) = (&self.tasks.runs.shared.db, "ask for a tag later");
        let mut transaction = db.begin().await.map_err(ControlError::database(failed))?;
        let gone = sqlx::query(
            "DELETE FROM trigger_watches
             WHERE registry = $1 AND host = $2 AND repository = $3 AND tag = $4
               AND NOT EXISTS (SELECT 1 FROM trigger_bases b WHERE b.registry = $1 AND b.host = $2
                  AND b.repository = $3 AND b.tag = $4)",
        );
        let later = sqlx::query(
            "UPDATE trigger_watches SET next_at = $5
             WHERE registry = $1 AND host = $2 AND repository = $3 AND tag = $4",
        );
        let next_at = now + millis(drawn(self.watching.period));
        for (statement, next_at) in [(gone, None), (later, Some(next_at))] {
            let statement = statement
                .bind(watch.registry.as_str())
                .bind(&watch.host)
                .bind(watch.repository.as_str())
                .bind(&watch.tag);
            let statement = match next_at {
                Some(next_at) => statement.bind(next_at),
                None => statement,
            };
            statement.execute(&mut *transaction).await.map_err(ControlError::database(failed))?;
        }
        transaction.commit().await.map_err(ControlError::database(failed))
    }

    /// Has the tags watched that a task is built on, and that are none of this server.
    pub(super) async fn watch_within(
        &self,
        connection: &mut SqliteConnection,
        own: OwnRegistry<'_>,
        registry: &str,
        bases: &[(String, String, String, String)],
    ) -> Result<()> {
        if self.watching.period.is_zero() {
            return Ok(());
        }
        let now = self.tasks.runs.shared.clock.now();
        for (host, repository, tag, digest) in bases {
            if own(host).is_some() {
                continue;
            }
            // A run that has seen something else than was known says that it is time to ask.
            sqlx::query(
                "INSERT INTO trigger_watches (registry, host, repository, tag, digest, next_at, failures)
                 VALUES ($1, $2, $3, $4, $5, $6, 0)
                 ON CONFLICT (registry, host, repository, tag) DO UPDATE
                 SET digest = NULL, next_at = CASE WHEN trigger_watches.settling IS NULL THEN $7
                    ELSE trigger_watches.next_at END
                 WHERE trigger_watches.digest != excluded.digest",
            )
            .bind(registry)
            .bind(host)
            .bind(repository)
            .bind(tag)
            .bind(digest)
            .bind(now + millis(drawn(self.watching.period)))
            .bind(now)
            .execute(&mut *connection)
            .await
            .map_err(ControlError::database("have a tag watched"))?;
        }
        Ok(())
    }
}

/// Whom a move is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    All,
    /// Those that do not wait until it is certain.
    Urgent,
    /// The others.
    Patient,
}

/// Characters of a reason.
const ERROR_MAX: usize = 500;

/// What a tag is now.
struct Seen<'a> {
    digest: &'a Digest,
    members: &'a [Digest],
    at: Millis,
}

/// Whether a task starts when one of its bases moves.
fn waits_for(task: &StoredTask, is_runtime: bool, now: Millis) -> bool {
    let trigger = task.definition.triggers.base_image.as_ref();
    task.definition.asleep(now).is_none()
        && trigger.is_some_and(|trigger| trigger.enabled && (trigger.buildtime || is_runtime))
}

/// Notes how a registry answers, and for how long it is left alone. `failed_for`: that it has not answered, and
/// the pause for that the first time.
async fn rest_of_host(
    connection: &mut SqliteConnection,
    host: &str,
    failed_for: Option<Duration>,
    rest: Option<Duration>,
    now: Millis,
) -> Result<()> {
    let failed = "note how a registry answers";
    let known: Option<i64> =
        sqlx::query_scalar("SELECT failures FROM trigger_watched_hosts WHERE host = $1")
            .bind(host)
            .fetch_optional(&mut *connection)
            .await
            .map_err(ControlError::database(failed))?;
    if failed_for.is_none() && rest.is_none() {
        if known.is_some() {
            sqlx::query("DELETE FROM trigger_watched_hosts WHERE host = $1")
                .bind(host)
                .execute(connection)
                .await
                .map_err(ControlError::database(failed))?;
        }
        return Ok(());
    }
    let failures = failed_for.map_or(0, |_| known.unwrap_or_default().saturating_add(1));
    let own =
        failed_for.map_or(0, |first| backoff(first, u32::try_from(failures).unwrap_or(u32::MAX)));
    let asked = millis(rest.unwrap_or_default().min(PAUSE_MAX));
    sqlx::query(
        "INSERT INTO trigger_watched_hosts (host, not_before, failures) VALUES ($1, $2, $3)
         ON CONFLICT (host) DO UPDATE SET failures = excluded.failures,
            not_before = CASE WHEN trigger_watched_hosts.not_before > excluded.not_before
               THEN trigger_watched_hosts.not_before ELSE excluded.not_before END",
    )
    .bind(host)
    .bind(now + own.max(asked))
    .bind(failures)
    .execute(connection)
    .await
    .map_err(ControlError::database(failed))?;
    Ok(())
}

/// How long to wait after something has failed so often.
fn backoff(first: Duration, failures: u32) -> Millis {
    let longer = first.saturating_mul(1 << failures.saturating_sub(1).min(12));
    millis(super::polls::spread(longer.min(PAUSE_MAX)))
}

/// A time between a third of the period and twice as long.
fn drawn(period: Duration) -> Duration {
    period.mul_f64(1.0 / 3.0 + 5.0 / 3.0 * super::polls::random())
}

fn watch_of(row: &SqliteRow) -> Result<Watch> {
    Ok(Watch {
        registry: parsed(column(row, "registry")?)?,
        host: column(row, "host")?,
        repository: parsed(column(row, "repository")?)?,
        tag: column(row, "tag")?,
        digest: digest_of(row, "digest")?,
        askers: Vec::new(),
        settling: digest_of(row, "settling")?,
        settling_since: column(row, "settling_since")?,
        failures: u32::try_from(column::<i64>(row, "failures")?).unwrap_or(u32::MAX),
    })
}

fn digest_of(row: &SqliteRow, name: &str) -> Result<Option<Digest>> {
    column::<Option<&str>>(row, name)?.map(parsed).transpose()
}
