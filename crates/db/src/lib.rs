//! The database: pools, migrations, transactions. Knows no table's meaning.
//!
//! Start with [`Db::open`] and [`Db::write`]. Writes of many callers share one commit, since
//! a durable commit costs a disk flush whatever is in it.
//!
//! Invariants:
//! - Only this crate opens a database; only `store` and `control` write SQL, in the form that
//!   SQLite and PostgreSQL share (`$1` parameters, BIGINT milliseconds, TEXT JSON).
//! - When [`Db::write`] answers, what it did is on disk.

mod migrate;
mod write;

use std::fs::{File, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Sqlite, SqliteConnection, Transaction};

use write::Writer;

/// Readers at once; each costs memory for its page cache.
const READERS_MAX: u32 = 4;
/// How often a log that is being read is tried to be emptied, and in between.
const CHECKPOINT_TRIES: u32 = 100;
const CHECKPOINT_PAUSE: Duration = Duration::from_millis(100);
/// How long a statement waits for another process that holds the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// Why the database did not do something.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    #[error(
        "the database was written by a newer Refit: `{owner}` has {found} migrations, this version knows {known}"
    )]
    TooNew { owner: String, found: usize, known: usize },
    #[error("migration {number} of `{owner}` failed")]
    Migration {
        owner: String,
        number: usize,
        #[source]
        source: sqlx::Error,
    },
    #[error("somebody reads the database for too long")]
    Read,
    #[error("the database is closed")]
    Closed,
    /// The commit that this write shared with others failed.
    #[error("the commit failed")]
    Commit(#[source] Arc<sqlx::Error>),
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

impl DbError {
    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Sql(error) | Self::Migration { source: error, .. } => is_full(error),
            Self::Commit(error) => is_full(error),
            _ => false,
        }
    }
}

/// Whether an SQL error means that the disk is full (SQLite's code 13).
pub fn is_full(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(database) if database.code().as_deref() == Some("13"))
}

/// An open database. Cheap to clone.
#[derive(Clone)]
pub struct Db {
    readers: SqlitePool,
    writers: SqlitePool,
    writer: Writer,
}

impl Db {
    /// Opens or creates a database file. Every commit is on disk when it answers.
    pub async fn open(path: &Path) -> Result<Self, DbError> {
        make_private(path).map_err(sqlx::Error::Io)?;
        let options = options(SqliteConnectOptions::new().filename(path).create_if_missing(true))
            .journal_mode(SqliteJournalMode::Wal);
        let writers = pool(1).connect_with(options.clone()).await?;
        // The file exists now, in its journal mode.
        let readers = pool(READERS_MAX).connect_lazy_with(options.read_only(true));
        Ok(Self { writer: Writer::start(writers.clone()), readers, writers })
    }

    /// A database in memory, for tests.
    pub async fn in_memory() -> Result<Self, DbError> {
        let options = options(SqliteConnectOptions::new().in_memory(true));
        // One connection, since each has a memory of its own; it must never be closed.
        let only = pool(1).idle_timeout(None).max_lifetime(None).connect_with(options).await?;
        Ok(Self { writer: Writer::start(only.clone()), readers: only.clone(), writers: only })
    }

    /// Brings one owner's tables up to date: applies the statements after those that were
    /// applied before, all or nothing. Refuses a database of a newer version.
    pub async fn migrate(&self, owner: &str, statements: &[&'static str]) -> Result<(), DbError> {
        migrate::run(self, owner, statements).await
    }

    /// Writes the database anew, so that nothing is left of what was deleted or replaced in it.
    /// Takes as long as it is large, and as much space again.
    pub async fn scrape(&self) -> Result<(), DbError> {
        let mut connection = self.writers.acquire().await?;
        sqlx::query("VACUUM").execute(&mut *connection).await?;
        for _ in 0..CHECKPOINT_TRIES {
            let busy: i64 = sqlx::query_scalar("PRAGMA wal_checkpoint(TRUNCATE)")
                .fetch_one(&mut *connection)
                .await?;
            if busy == 0 {
                return Ok(());
            }
            tokio::time::sleep(CHECKPOINT_PAUSE).await;
        }
        Err(DbError::Read)
    }

    /// For statements that only read.
    pub fn reads(&self) -> &SqlitePool {
        &self.readers
    }

    /// A transaction of one's own, for long sequences; most writes should share commits
    /// through [`Self::write`].
    pub async fn begin(&self) -> Result<Transaction<'static, Sqlite>, DbError> {
        Ok(self.writers.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// Runs `job` inside a transaction that it may share with others, and answers after the
    /// commit. If it fails, what it did is undone, and only that.
    pub async fn write<T, E, F>(&self, job: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
        F: for<'c> FnOnce(
                &'c mut SqliteConnection,
            ) -> futures_util::future::BoxFuture<'c, Result<T, E>>
            + Send
            + 'static,
    {
        self.writer.run(job).await
    }
}

/// Only the owner may read the database, whatever the folder allows: it holds arguments of
/// builds. SQLite gives the files beside it the mode of the database.
fn make_private(path: &Path) -> std::io::Result<()> {
    let private = Permissions::from_mode(0o600);
    File::options().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match std::fs::set_permissions(&name, private.clone()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
    }
    Ok(())
}

fn options(options: SqliteConnectOptions) -> SqliteConnectOptions {
    options
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        // 1 MiB of pages: the catalog keeps its own, smaller memory of what is hot.
        .pragma("cache_size", "-1024")
        .statement_cache_capacity(64)
}

fn pool(connections: u32) -> SqlitePoolOptions {
    // No ping before use: a file does not hang up, and a caller that goes away during the ping
    // would close the connection, which for a database in memory is all there is.
    SqlitePoolOptions::new()
        .min_connections(0)
        .max_connections(connections)
        .test_before_acquire(false)
}
