//! Garbage collection: deleting what nothing reaches, beside pushes and builds.
//!
//! Whatever may have become unreachable is noted as a *candidate* in the transaction that
//! made it so; collection looks at old candidates only, so its work is proportional to what
//! changed. A candidate that something refers to is struck off (it is noted again when that
//! reference goes); one that nothing refers to is taken off the list of blobs in the same
//! transaction that looked, and its bytes are removed after that. A push that stores the
//! same bytes again lists them again, and then they stay.
//!
//! Roots: manifests and what they refer to, also those that can be restored; leases, cache entries,
//! unfinished uploads.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oci::{Digest, RegistryName, RepositoryName};
use sqlx::{Row, SqliteConnection};

use crate::catalog::{cache, job, manifests, parsed};
use crate::error::database;
use crate::model::{Cause, GcOptions, GcReport, Millis};
use crate::{Catalog, Result, now};

/// Candidates looked at in one transaction, so that writers wait little.
const BATCH: i64 = 100;
/// Unfinished uploads are kept this long after their last chunk.
const UPLOAD_KEEP: Duration = Duration::from_secs(24 * 3600);

/// Notes that a digest may be unreachable from now on.
pub(crate) async fn add_candidate(
    connection: &mut SqliteConnection,
    digest: &str,
    since: Millis,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO gc_candidates (digest, since) VALUES ($1, $2)
         ON CONFLICT (digest) DO UPDATE SET since = excluded.since",
    )
    .bind(digest)
    .bind(since)
    .execute(connection)
    .await
    .map_err(database("note a candidate for collection"))?;
    Ok(())
}

/// When clients were last told that a blob is there. They will not send it again, so it must
/// stay as long as a fresh one.
#[derive(Default)]
pub(crate) struct Seen {
    state: Mutex<SeenState>,
}

#[derive(Default)]
struct SeenState {
    times: HashMap<Digest, Millis>,
    /// What collection is judging at this moment: whoever asks for one of these must ask
    /// behind the judgement, through the one writer.
    judged: HashSet<Digest>,
}

/// Beyond this nothing more is noted, and collection waits until old notes have expired.
const SEEN_MAX: usize = 100_000;

impl Seen {
    /// Notes that a client asks for a blob; says whether collection is judging it now.
    pub(crate) fn note(&self, digest: &Digest, at: Millis) -> bool {
        let mut state = self.lock();
        if let Some(time) = state.times.get_mut(digest) {
            *time = at;
        } else if state.times.len() < SEEN_MAX {
            state.times.insert(digest.clone(), at);
        }
        state.judged.contains(digest)
    }

    fn lock(&self) -> MutexGuard<'_, SeenState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until the value is dropped, who asks for one of `batch` is told to ask behind us.
    fn judging(self: &Arc<Self>, batch: &[Digest]) -> Judging {
        self.lock().judged.extend(batch.iter().cloned());
        Judging { seen: Arc::clone(self), batch: batch.to_vec() }
    }

    /// Forgets what is older than `before`; says whether the memory was full, so that
    /// something may have been missed.
    fn expire(&self, before: Millis) -> bool {
        let times = &mut self.lock().times;
        let full = times.len() >= SEEN_MAX;
        times.retain(|_, at| *at >= before);
        full
    }

    fn is_recent(&self, digest: &Digest, before: Millis) -> bool {
        let times = &self.lock().times;
        // A full memory may have missed it.
        times.len() >= SEEN_MAX || times.get(digest).is_some_and(|at| *at >= before)
    }
}

/// A judgement under way; see [`Seen::judging`].
struct Judging {
    seen: Arc<Seen>,
    batch: Vec<Digest>,
}

impl Drop for Judging {
    fn drop(&mut self) {
        let mut state = self.seen.lock();
        for digest in &self.batch {
            state.judged.remove(digest);
        }
    }
}

/// What became of a batch of candidates.
#[derive(Default)]
struct Judged {
    manifests: Vec<(RegistryName, RepositoryName, Digest)>,
    /// What was unlisted, with its size.
    blobs: Vec<(Digest, u64)>,
    /// Some repository does not have some blob any more.
    unlinked: bool,
}

impl Catalog {
    /// Deletes what nothing reaches. Runs beside pushes and builds.
    pub async fn collect_garbage(&self, options: &GcOptions) -> Result<GcReport> {
        let grace = i64::try_from(options.grace.as_millis()).unwrap_or(i64::MAX);
        let before = now().saturating_sub(grace);
        let mut report = GcReport::default();
        if self.seen.expire(before) {
            tracing::warn!("very many blobs were asked for; collection waits for the next pass");
            return Ok(report);
        }
        if !options.dry_run {
            self.blobs.make_room().await?;
            self.finish_deletions().await?;
        }
        self.expire_uploads(options, &mut report).await?;
        self.expire_leases(options).await?;
        let (size_max, dry_run) = (options.cache_size_max, options.dry_run);
        report.cache_entries = self
            .write(move |connection| Box::pin(cache::evict(connection, size_max, dry_run)))
            .await?;
        let mut after = String::new();
        loop {
            let batch = self.candidates(before, &after).await?;
            let Some(last) = batch.last() else { break };
            after = last.to_string();
            self.judge(batch, before, dry_run, &mut report).await?;
        }
        self.blobs.keep_room().await?;
        Ok(report)
    }

    /// Removes bytes that an earlier pass unlisted and then could not remove.
    async fn finish_deletions(&self) -> Result<()> {
        let digests: Vec<String> = sqlx::query_scalar("SELECT digest FROM unlisted_blobs")
            .fetch_all(self.db.reads())
            .await
            .map_err(database("list deleted blobs"))?;
        for digest in digests {
            self.blobs.delete(&parsed(&digest)?).await?;
        }
        Ok(())
    }

    async fn candidates(&self, before: Millis, after: &str) -> Result<Vec<Digest>> {
        let digests: Vec<String> = sqlx::query_scalar(
            "SELECT digest FROM gc_candidates WHERE since < $1 AND digest > $2
             ORDER BY digest LIMIT $3",
        )
        .bind(before)
        .bind(after)
        .bind(BATCH)
        .fetch_all(self.db.reads())
        .await
        .map_err(database("list candidates for collection"))?;
        digests.iter().map(|digest| parsed(digest)).collect()
    }

    /// Strikes off what is in use and unlists what is not, in one transaction; then removes
    /// the bytes of what was unlisted.
    async fn judge(
        &self,
        batch: Vec<Digest>,
        before: Millis,
        dry_run: bool,
        report: &mut GcReport,
    ) -> Result<()> {
        let seen = Arc::clone(&self.seen);
        let judging = self.seen.judging(&batch);
        let job = job(move |connection| {
            Box::pin(async move {
                let mut judged = Judged::default();
                for digest in batch {
                    if seen.is_recent(&digest, before) {
                        continue;
                    }
                    let orphans = remove_orphans(connection, &digest, before, dry_run).await?;
                    judged.manifests.extend(
                        orphans
                            .into_iter()
                            .map(|(registry, name)| (registry, name, digest.clone())),
                    );
                    judge_one(connection, digest, before, dry_run, &mut judged).await?;
                }
                Ok(judged)
            })
        });
        let judged = self.write_then(job, move |catalog, judged: &Judged| {
            if !dry_run && !judged.manifests.is_empty() {
                catalog.forget_manifests();
            }
            if !dry_run && (judged.unlinked || !judged.blobs.is_empty()) {
                catalog.forget_blobs();
            }
            drop(judging);
        });
        let judged = judged.await?;
        report.manifests.extend(judged.manifests);
        for (digest, size) in judged.blobs {
            if !dry_run {
                self.blobs.delete(&digest).await?;
            }
            report.bytes += size;
            report.blobs.push((digest, size));
        }
        Ok(())
    }

    async fn expire_uploads(&self, options: &GcOptions, report: &mut GcReport) -> Result<()> {
        let keep = i64::try_from(UPLOAD_KEEP.as_millis()).unwrap_or(i64::MAX);
        let rows = sqlx::query("SELECT id, registry, repository FROM uploads WHERE used_at < $1")
            .bind(now() - keep)
            .fetch_all(self.db.reads())
            .await
            .map_err(database("list uploads"))?;
        for row in rows {
            report.uploads += 1;
            if options.dry_run {
                continue;
            }
            let text =
                |name: &str| row.try_get::<String, _>(name).map_err(database("list uploads"));
            let registry: RegistryName = parsed(&text("registry")?)?;
            let repository: RepositoryName = parsed(&text("repository")?)?;
            // One that is being used right now is not expired after all.
            let _ = self.abort_session(&registry, &repository, &text("id")?).await;
        }
        Ok(())
    }

    /// Ends leases whose time is over; what they kept becomes a candidate.
    async fn expire_leases(&self, options: &GcOptions) -> Result<()> {
        if options.dry_run {
            return Ok(());
        }
        self.write(|connection| {
            Box::pin(async move {
                let at = now();
                let digests: Vec<String> =
                    sqlx::query_scalar("DELETE FROM leases WHERE ends_at < $1 RETURNING digest")
                        .bind(at)
                        .fetch_all(&mut *connection)
                        .await
                        .map_err(database("expire leases"))?;
                for digest in digests {
                    add_candidate(connection, &digest, at).await?;
                }
                Ok(())
            })
        })
        .await
    }
}

/// What keeps a blob, apart from being young. `$1` is the digest.
const IN_USE: &str = "
    SELECT 1 FROM manifest_references WHERE target = $1
    UNION ALL SELECT 1 FROM manifests WHERE digest = $1
    UNION ALL SELECT 1 FROM deleted_references WHERE target = $1
    UNION ALL SELECT 1 FROM deleted_manifests WHERE digest = $1
    UNION ALL SELECT 1 FROM leases WHERE digest = $1
    UNION ALL SELECT 1 FROM cache_blobs WHERE digest = $1
    UNION ALL SELECT 1 FROM layer_indexes WHERE path_index = $1
    LIMIT 1";

/// Unlists a blob if nothing refers to it; else takes it out of the repositories in which no
/// manifest needs it.
async fn judge_one(
    connection: &mut SqliteConnection,
    digest: Digest,
    before: Millis,
    dry_run: bool,
    judged: &mut Judged,
) -> Result<()> {
    let failed = || database("judge a candidate for collection");
    let text = digest.as_str();
    let row = sqlx::query(
        "SELECT b.size, b.stored_at, g.since FROM gc_candidates g
         LEFT JOIN blobs b USING (digest) WHERE g.digest = $1",
    )
    .bind(text)
    .fetch_optional(&mut *connection)
    .await
    .map_err(failed())?;
    let Some(row) = row else { return Ok(()) };
    let since: Millis = row.try_get("since").map_err(failed())?;
    let stored_at: Option<Millis> = row.try_get("stored_at").map_err(failed())?;
    let young = since >= before || stored_at.is_some_and(|at| at >= before);
    if young {
        return Ok(());
    }
    let used: Option<i64> = sqlx::query_scalar(IN_USE)
        .bind(text)
        .fetch_optional(&mut *connection)
        .await
        .map_err(failed())?;
    let size: Option<i64> = row.try_get("size").map_err(failed())?;
    if !dry_run {
        sqlx::query("DELETE FROM gc_candidates WHERE digest = $1")
            .bind(text)
            .execute(&mut *connection)
            .await
            .map_err(failed())?;
    }
    match (used, size) {
        (Some(_), _) if !dry_run => judged.unlinked |= unlink(connection, text, before).await?,
        (None, Some(size)) => {
            if !dry_run {
                unlist(connection, text).await?;
            }
            judged.blobs.push((digest, size as u64));
        }
        _ => (),
    }
    Ok(())
}

/// Takes a blob out of repositories that got it before the grace period and need it no more.
/// Says whether there was one.
async fn unlink(connection: &mut SqliteConnection, digest: &str, before: Millis) -> Result<bool> {
    let removed = sqlx::query(
        "DELETE FROM repository_blobs WHERE digest = $1 AND linked_at < $2
         AND NOT EXISTS (SELECT 1 FROM manifest_references r
             WHERE r.registry = repository_blobs.registry
             AND r.repository = repository_blobs.repository
             AND r.target = repository_blobs.digest)",
    )
    .bind(digest)
    .bind(before)
    .execute(connection)
    .await
    .map_err(database("take a blob out of repositories"))?;
    Ok(removed.rows_affected() > 0)
}

/// Takes a blob off the list, with everything that only hangs on it.
async fn unlist(connection: &mut SqliteConnection, digest: &str) -> Result<()> {
    let failed = || database("unlist a blob");
    let index: Option<String> =
        sqlx::query_scalar("DELETE FROM layer_indexes WHERE layer = $1 RETURNING path_index")
            .bind(digest)
            .fetch_optional(&mut *connection)
            .await
            .map_err(failed())?;
    if let Some(index) = index {
        add_candidate(connection, &index, now()).await?;
    }
    for query in [
        "DELETE FROM repository_blobs WHERE digest = $1",
        "DELETE FROM build_records WHERE manifest = $1",
        "DELETE FROM blobs WHERE digest = $1",
        "INSERT INTO unlisted_blobs (digest) VALUES ($1) ON CONFLICT DO NOTHING",
    ] {
        sqlx::query(query).bind(digest).execute(&mut *connection).await.map_err(failed())?;
    }
    Ok(())
}

/// Removes the manifests of this digest that are referrers of a deleted subject, have no tag,
/// stand in no index and are not locked. Gives their repositories.
async fn remove_orphans(
    connection: &mut SqliteConnection,
    digest: &Digest,
    before: Millis,
    dry_run: bool,
) -> Result<Vec<(RegistryName, RepositoryName)>> {
    let failed = || database("collect referrers");
    let rows = sqlx::query(
        "SELECT registry, repository FROM orphans o WHERE digest = $1
         AND EXISTS (SELECT 1 FROM gc_candidates g WHERE g.digest = o.digest AND g.since < $2)
         AND NOT EXISTS (SELECT 1 FROM manifests m WHERE m.registry = o.registry
             AND m.repository = o.repository AND m.digest = o.digest AND (m.locked & 3) <> 0)
         AND NOT EXISTS (SELECT 1 FROM repository_locks l WHERE l.registry = o.registry
             AND l.repository = o.repository AND (l.locked & 2) <> 0)
         AND NOT EXISTS (SELECT 1 FROM tags t WHERE t.registry = o.registry
             AND t.repository = o.repository AND t.digest = o.digest)
         AND NOT EXISTS (SELECT 1 FROM manifest_references r WHERE r.registry = o.registry
             AND r.repository = o.repository AND r.target = o.digest)
         AND NOT EXISTS (SELECT 1 FROM manifests own JOIN manifests s
             ON s.registry = own.registry AND s.repository = own.repository AND s.digest = own.subject
             WHERE own.registry = o.registry AND own.repository = o.repository AND own.digest = o.digest)",
    )
    .bind(digest.as_str())
    .bind(before)
    .fetch_all(&mut *connection)
    .await
    .map_err(failed())?;
    let mut orphans = Vec::new();
    for row in rows {
        let registry: RegistryName = parsed(row.try_get("registry").map_err(failed())?)?;
        let repository: RepositoryName = parsed(row.try_get("repository").map_err(failed())?)?;
        if !dry_run {
            let cause = Cause::Purge { run: None, principal: None };
            let digest = digest.as_str();
            manifests::remove(connection, &registry, &repository, digest, &[], &cause).await?;
        }
        orphans.push((registry, repository));
    }
    Ok(orphans)
}
