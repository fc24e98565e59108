//! One writer that puts the writes of many callers into one commit.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use sqlx::sqlite::SqlitePool;
use sqlx::{Connection, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use crate::DbError;

/// Writes that may wait; further callers wait before they queue.
const QUEUE_MAX: usize = 256;
/// Writes in one commit at most, so that the first of them does not wait for ever.
const BATCH_MAX: usize = 64;

/// A write, its outcome kept inside until the commit is known.
trait Job: Send {
    fn run<'c>(&'c mut self, connection: &'c mut SqliteConnection) -> BoxFuture<'c, Ran>;
    fn answer(self: Box<Self>, committed: Result<(), DbError>);
}

/// What a write did to the transaction that it shares.
enum Ran {
    Done,
    /// It failed, and what it did is undone.
    Undone,
    /// It failed and took the whole transaction with it: SQLite rolls back on a full disk.
    Lost(sqlx::Error),
}

struct Pending<F, T, E> {
    job: Option<F>,
    outcome: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
}

impl<F, T, E> Job for Pending<F, T, E>
where
    T: Send,
    E: From<DbError> + Send,
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>> + Send,
{
    fn run<'c>(&'c mut self, connection: &'c mut SqliteConnection) -> BoxFuture<'c, Ran> {
        Box::pin(async move {
            let Some(job) = self.job.take() else { return Ran::Undone };
            let (outcome, ran) = in_savepoint(connection, job).await;
            self.outcome = Some(outcome);
            ran
        })
    }

    fn answer(self: Box<Self>, committed: Result<(), DbError>) {
        let outcome = match (self.outcome, committed) {
            (Some(Ok(_)) | None, Err(error)) => Err(error.into()),
            (Some(outcome), _) => outcome,
            (None, Ok(())) => Err(DbError::Closed.into()),
        };
        // The caller may have gone away; the write stands all the same.
        let _ = self.reply.send(outcome);
    }
}

/// Runs a job so that its failure undoes what it did, and nothing of the others.
async fn in_savepoint<T, E, F>(connection: &mut SqliteConnection, job: F) -> (Result<T, E>, Ran)
where
    E: From<DbError>,
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>>,
{
    let mut savepoint = match connection.begin().await {
        Ok(savepoint) => savepoint,
        Err(error) => return (Err(DbError::from(error).into()), Ran::Undone),
    };
    match job(&mut savepoint).await {
        Ok(value) => match savepoint.commit().await {
            Ok(()) => (Ok(value), Ran::Done),
            Err(error) => {
                let error = Arc::new(error);
                let lost = sqlx::Error::Io(std::io::Error::other(Arc::clone(&error)));
                (Err(DbError::Commit(error).into()), Ran::Lost(lost))
            }
        },
        Err(error) => match savepoint.rollback().await {
            Ok(()) => (Err(error), Ran::Undone),
            Err(lost) => (Err(error), Ran::Lost(lost)),
        },
    }
}

#[derive(Clone)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Box<dyn Job>>,
}

impl Writer {
    pub(crate) fn start(pool: SqlitePool) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(serve(pool, jobs));
        Self { queue }
    }

    pub(crate) async fn run<T, E, F>(&self, job: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let pending = Pending { job: Some(job), outcome: None, reply };
        if self.queue.send(Box::new(pending)).await.is_err() {
            return Err(DbError::Closed.into());
        }
        answer.await.unwrap_or_else(|_| Err(DbError::Closed.into()))
    }
}

/// Takes what waits, runs it in one transaction, commits, answers.
async fn serve(pool: SqlitePool, mut jobs: mpsc::Receiver<Box<dyn Job>>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while jobs.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let committed = commit(&pool, &mut batch).await;
        // One failure for all of them: the commit was one.
        let failed = committed.err().map(Arc::new);
        for job in batch.drain(..) {
            let committed = failed.as_ref().map_or(Ok(()), |e| Err(DbError::Commit(Arc::clone(e))));
            job.answer(committed);
        }
    }
}

/// Runs a batch in one transaction. A connection whose transaction failed as a whole is
/// closed: it no longer knows where it stands, and every later write would fail.
async fn commit(pool: &SqlitePool, batch: &mut [Box<dyn Job>]) -> sqlx::Result<()> {
    let mut connection = pool.acquire().await?;
    let committed = commit_on(&mut connection, batch).await;
    if committed.is_err() {
        connection.close_on_drop();
    }
    committed
}

async fn commit_on(
    connection: &mut SqliteConnection,
    batch: &mut [Box<dyn Job>],
) -> sqlx::Result<()> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let mut any = false;
    for job in batch.iter_mut() {
        match job.run(&mut transaction).await {
            Ran::Done => any = true,
            Ran::Undone => (),
            Ran::Lost(error) => return Err(error),
        }
    }
    match any {
        true => transaction.commit().await,
        false => transaction.rollback().await,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use crate::{Db, DbError};

    #[tokio::test]
    async fn many_writes_share_commits_and_a_failed_one_undoes_only_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let db = Db::open(&path).await.unwrap();
        db.migrate("t", &["CREATE TABLE t (x BIGINT PRIMARY KEY)"]).await.unwrap();
        let insert = |x: i64| {
            db.write::<_, DbError, _>(move |connection| {
                Box::pin(async move {
                    let insert = sqlx::query("INSERT INTO t (x) VALUES ($1)");
                    insert.bind(x).execute(&mut *connection).await?;
                    match x % 10 {
                        0 => Err(DbError::Closed),
                        _ => Ok(x),
                    }
                })
            })
        };
        let results = join_all((1..=200).map(insert)).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 180);
        assert!(insert(1).await.is_err(), "a duplicate key is an error");
        drop(db);
        let db = Db::open(&path).await.unwrap();
        let count = sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM t");
        assert_eq!(count.fetch_one(db.reads()).await.unwrap(), 180);
    }
}
