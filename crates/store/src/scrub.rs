//! Scrub: reading stored content again, to find what a disk has damaged before it is needed.
//!
//! A *pass* reads every blob, in the order of their digests and at a bounded pace. How far it
//! is stands in the catalog: after a restart it goes on with the blob that was being read. One
//! that is not whole counts as lost from then on, as whoever else finds one makes it
//! ([`BlobStore::verify`]): it is not served any more, and whole again when somebody stores it.
//!
//! [`BlobStore::verify`]: crate::BlobStore::verify

use std::io::{self, Read};
use std::time::Duration;

use oci::{Digest, Hasher, RegistryName, RepositoryName};
use rustix::fs::Advice;
use sqlx::Row;
use tokio::time::Instant;

use crate::blob::BlobReader;
use crate::catalog::parsed;
use crate::error::database;
use crate::model::{LostBlob, Millis, ScrubPass, StoredSize};
use crate::{Catalog, Result, StoreError, now};

/// Blobs listed at once.
const BATCH: i64 = 100;
/// Bytes read at once.
const READ_SIZE: usize = 1 << 20;
/// How often a pass notes how far it is.
const NOTE_PERIOD: Duration = Duration::from_secs(10);
/// Lost blobs listed at most.
const LOST_MAX: i64 = 10_000;
/// Repositories named of each.
const REPOSITORIES_MAX: usize = 10;

impl ScrubPass {
    /// How long to wait before content is read: not at all while a pass is under way, else until
    /// the last one began a period ago. `None` without a period: until somebody asks for it.
    pub fn wait(pass: Option<&Self>, period: Option<Duration>, now: Millis) -> Option<Duration> {
        let Some(pass) = pass else { return period.map(|_| Duration::ZERO) };
        if pass.finished_at.is_none() {
            return Some(Duration::ZERO);
        }
        let age = u64::try_from(now.saturating_sub(pass.started_at)).unwrap_or(0);
        period.map(|period| period.saturating_sub(Duration::from_millis(age)))
    }
}

impl Catalog {
    /// The pass that is under way, else the last one.
    pub async fn scrub_pass(&self) -> Result<Option<ScrubPass>> {
        let failed = || database("look up the scrub");
        let row = sqlx::query(
            "SELECT number, started_at, finished_at, rate, position, blobs, bytes, damaged
             FROM scrub",
        )
        .fetch_optional(self.db.reads())
        .await
        .map_err(failed())?;
        let Some(row) = row else { return Ok(None) };
        let number = |name: &str| row.try_get::<i64, _>(name).map_err(failed());
        let position: String = row.try_get("position").map_err(failed())?;
        let rate: Option<i64> = row.try_get("rate").map_err(failed())?;
        Ok(Some(ScrubPass {
            number: number("number")?,
            started_at: number("started_at")?,
            finished_at: row.try_get("finished_at").map_err(failed())?,
            rate: rate.map(|rate| rate as u64),
            position,
            blobs: number("blobs")? as u64,
            bytes: number("bytes")? as u64,
            damaged: number("damaged")? as u64,
        }))
    }

    /// Begins a pass in the place of the one that is under way, if one is. `rate` is its own
    /// bound in bytes a second, 0 for none.
    pub async fn begin_scrub(&self, rate: Option<u64>) -> Result<()> {
        let rate = rate.map(|rate| i64::try_from(rate).unwrap_or(i64::MAX));
        self.write(move |connection| {
            Box::pin(async move {
                sqlx::query(
                    "INSERT INTO scrub (id, number, started_at, rate, position, blobs, bytes, damaged)
                     VALUES (1, 1, $1, $2, '', 0, 0, 0)
                     ON CONFLICT (id) DO UPDATE SET started_at = excluded.started_at,
                       finished_at = NULL, rate = excluded.rate, position = '', blobs = 0,
                       bytes = 0, damaged = 0, number = scrub.number + 1",
                )
                .bind(now())
                .bind(rate)
                .execute(connection)
                .await
                .map_err(database("begin a scrub"))?;
                Ok(())
            })
        })
        .await
    }

    /// Carries the pass that is under way on to its end, reading at most `rate` bytes a second,
    /// 0 for no bound, unless the pass has a bound of its own. It may be dropped: how far it is
    /// was noted a short time ago.
    pub async fn scrub(&self, rate: u64) -> Result<()> {
        let Some(mut pass) = self.scrub_pass().await? else { return Ok(()) };
        if pass.finished_at.is_some() {
            return Ok(());
        }
        let mut pace = Pace::new(pass.rate.unwrap_or(rate));
        let mut noted = Instant::now();
        loop {
            let batch = self.blobs_after(&pass.position).await?;
            if batch.is_empty() {
                break;
            }
            for (digest, size) in batch {
                let is_whole = self.is_still_whole(&digest, &mut pace).await?;
                pass.position = digest.to_string();
                pass.blobs += 1;
                pass.bytes += size;
                pass.damaged += u64::from(!is_whole);
                if !is_whole || noted.elapsed() >= NOTE_PERIOD {
                    self.note_scrub(&pass).await?;
                    noted = Instant::now();
                }
                if !is_whole {
                    // Who asks for it must not be told from memory that it is there.
                    self.forget_blobs();
                    self.forget_manifests();
                }
            }
        }
        pass.finished_at = Some(now());
        self.note_scrub(&pass).await
    }

    async fn blobs_after(&self, position: &str) -> Result<Vec<(Digest, u64)>> {
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "SELECT digest, size FROM blobs WHERE digest > $1 AND location <> 'lost'
             ORDER BY digest LIMIT $2",
        )
        .bind(position)
        .bind(BATCH)
        .fetch_all(self.db.reads())
        .await
        .map_err(database("list blobs"))?;
        rows.iter().map(|(digest, size)| Ok((parsed(digest)?, *size as u64))).collect()
    }

    /// Reads a blob; one that is gone was collected meanwhile, if it was not lost.
    async fn is_still_whole(&self, digest: &Digest, pace: &mut Pace) -> Result<bool> {
        let is_same = match self.blobs.open(digest, 0).await {
            Ok(reader) => Reading::new(reader, digest).digest(pace).await.as_ref() == Some(digest),
            Err(StoreError::NotFound { .. }) => false,
            Err(error) => return Err(error),
        };
        // The store decides: it looks again while nobody else stores or deletes it.
        if is_same || self.blobs.verify(digest).await? {
            return Ok(true);
        }
        let lost: Option<i64> =
            sqlx::query_scalar("SELECT 1 FROM blobs WHERE digest = $1 AND location = 'lost'")
                .bind(digest.as_str())
                .fetch_optional(self.db.reads())
                .await
                .map_err(database("look up a blob"))?;
        Ok(lost.is_none())
    }

    /// Notes how far a pass is, unless another one was begun.
    async fn note_scrub(&self, pass: &ScrubPass) -> Result<()> {
        let pass = pass.clone();
        self.write(move |connection| {
            Box::pin(async move {
                sqlx::query(
                    "UPDATE scrub SET finished_at = $2, position = $3, blobs = $4, bytes = $5,
                       damaged = $6 WHERE number = $1",
                )
                .bind(pass.number)
                .bind(pass.finished_at)
                .bind(pass.position)
                .bind(pass.blobs as i64)
                .bind(pass.bytes as i64)
                .bind(pass.damaged as i64)
                .execute(connection)
                .await
                .map_err(database("note how far a scrub is"))?;
                Ok(())
            })
        })
        .await
    }

    /// How much there is to read.
    pub async fn stored_size(&self) -> Result<StoredSize> {
        let (blobs, bytes): (i64, i64) = sqlx::query_as(
            "SELECT COUNT(*), COALESCE(SUM(size), 0) FROM blobs WHERE location <> 'lost'",
        )
        .fetch_one(self.db.reads())
        .await
        .map_err(database("count blobs"))?;
        Ok(StoredSize { blobs: blobs as u64, bytes: bytes as u64 })
    }

    /// How many blobs are lost: found damaged, by whomever, and not stored again.
    pub async fn lost_count(&self) -> Result<u64> {
        let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM blobs WHERE location = 'lost'")
            .fetch_one(self.db.reads())
            .await
            .map_err(database("count lost blobs"))?;
        Ok(count as u64)
    }

    /// These blobs, and some of the repositories that miss them.
    pub async fn lost_blobs(&self) -> Result<Vec<LostBlob>> {
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "SELECT digest, size FROM blobs WHERE location = 'lost' ORDER BY digest LIMIT $1",
        )
        .bind(LOST_MAX)
        .fetch_all(self.db.reads())
        .await
        .map_err(database("list lost blobs"))?;
        let mut lost = Vec::with_capacity(rows.len());
        for (digest, size) in rows {
            let digest = parsed(&digest)?;
            let repositories = self.repositories_of(&digest).await?;
            lost.push(LostBlob { digest, size: size as u64, repositories });
        }
        Ok(lost)
    }

    /// Some of the repositories, of all registries, that have a blob or manifest, or would have if what
    /// was deleted in them is restored.
    pub async fn repositories_of(
        &self,
        digest: &Digest,
    ) -> Result<Vec<(RegistryName, RepositoryName)>> {
        let rows: Vec<(String, String)> = sqlx::query_as(
            "SELECT registry, repository FROM repository_blobs WHERE digest = $1
             UNION SELECT registry, repository FROM manifests WHERE digest = $1
             UNION SELECT registry, repository FROM deleted_references WHERE target = $1
             UNION SELECT registry, repository FROM deleted_manifests WHERE digest = $1
             ORDER BY registry, repository LIMIT $2",
        )
        .bind(digest.as_str())
        .bind(REPOSITORIES_MAX as i64)
        .fetch_all(self.db.reads())
        .await
        .map_err(database("list repositories of a blob"))?;
        rows.iter()
            .map(|(registry, repository)| Ok((parsed(registry)?, parsed(repository)?)))
            .collect()
    }
}

/// A blob on its way through a hasher.
struct Reading {
    source: Box<dyn Read + Send>,
    hasher: Hasher,
    buffer: Vec<u8>,
}

impl Reading {
    fn new(reader: BlobReader, digest: &Digest) -> Self {
        let source: Box<dyn Read + Send> = match reader.into_file() {
            Ok(file) => {
                // What is in memory says nothing of the disk. Only a hint.
                let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
                Box::new(file)
            }
            Err(reader) => reader.into_blocking(),
        };
        Self { source, hasher: Hasher::new(digest.algorithm()), buffer: vec![0; READ_SIZE] }
    }

    /// Reads to the end. None if that fails: the store will look why.
    async fn digest(mut self, pace: &mut Pace) -> Option<Digest> {
        loop {
            let read = tokio::task::spawn_blocking(move || self.step()).await;
            match read {
                Ok(Ok((reading, 0))) => return Some(reading.hasher.finish()),
                Ok(Ok((reading, count))) => {
                    self = reading;
                    tokio::time::sleep_until(pace.due(count as u64, Instant::now())).await;
                }
                Ok(Err(_)) | Err(_) => return None,
            }
        }
    }

    fn step(mut self) -> io::Result<(Self, usize)> {
        let count = self.source.read(&mut self.buffer)?;
        self.hasher.update(&self.buffer[..count]);
        Ok((self, count))
    }
}

/// Holds a reader to a number of bytes a second. Time that it did not use is not made up for.
struct Pace {
    rate: u64,
    due: Instant,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self { rate, due: Instant::now() }
    }

    /// When more may be read after these bytes.
    fn due(&mut self, bytes: u64, now: Instant) -> Instant {
        if self.rate > 0 {
            let time = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
            self.due = self.due.max(now) + time;
        }
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_due_a_period_after_the_last_one_began() {
        let hour = Duration::from_secs(3600);
        let pass =
            |finished_at| ScrubPass { started_at: 1000, finished_at, ..ScrubPass::default() };
        let wait = |pass: Option<ScrubPass>, period| ScrubPass::wait(pass.as_ref(), period, 61_000);
        assert_eq!(wait(None, Some(hour)), Some(Duration::ZERO));
        assert_eq!(wait(None, None), None);
        assert_eq!(wait(Some(pass(None)), None), Some(Duration::ZERO));
        assert_eq!(wait(Some(pass(Some(2000))), Some(hour)), Some(Duration::from_secs(3540)));
        assert_eq!(wait(Some(pass(Some(2000))), Some(Duration::ZERO)), Some(Duration::ZERO));
        assert_eq!(wait(Some(pass(Some(2000))), None), None);
    }

    #[test]
    fn a_pace_is_kept_and_not_made_up_for() {
        let (mut pace, start) = (Pace::new(1000), Instant::now());
        let second = Duration::from_secs(1);
        pace.due = start;
        for _ in 0..4 {
            pace.due(500, start);
        }
        assert_eq!(pace.due(0, start), start + 2 * second);
        let later = start + 60 * second;
        assert_eq!(pace.due(3000, later), later + 3 * second);
        let mut none = Pace::new(0);
        none.due = start;
        assert_eq!(none.due(u64::MAX, later), start);
    }
}
