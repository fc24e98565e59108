//! The audit log: who did what, and when. Records are only ever added, and each holds the digest of
//! the one before it, so that none can be changed or taken out unseen.
//!
//! The digest of a record is that of its line, which is JSON without `digest`; the line is kept as it
//! was written, and exported so.

use db::{Db, DbError};
use oci::{Digest, RegistryName};
use serde_json::json;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use store::Millis;

use crate::table::{column, parsed, to_json};
use crate::{Clock, ControlError, Result};

pub(crate) const SCHEMA: &[&str] = &[
    "CREATE TABLE audit (
        number BIGINT NOT NULL PRIMARY KEY,
        at BIGINT NOT NULL,
        record TEXT NOT NULL,
        digest TEXT NOT NULL
    )",
    // The last record that was removed for its age.
    "CREATE TABLE audit_start (number BIGINT NOT NULL, digest TEXT NOT NULL)",
];

/// Characters of one text of a record.
const TEXT_MAX: usize = 1_000;

/// Something that was done, or refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    pub registry: Option<RegistryName>,
    /// Who did it; an address, where nobody knows who it was.
    pub principal: String,
    /// Such as `push`, `login` or `request`.
    pub action: String,
    /// What it was done to.
    pub target: String,
    /// How it ended, such as `201` or `Succeeded`.
    pub outcome: String,
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRecord {
    pub number: i64,
    /// JSON, without the digest.
    pub line: String,
    /// Of the line.
    pub digest: Digest,
}

/// The audit log of a server. Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    db: Db,
    clock: Clock,
}

impl Audit {
    pub async fn open(db: Db, clock: Clock) -> Result<Self> {
        let failed = "prepare the audit log";
        db.migrate("audit", SCHEMA).await.map_err(ControlError::database(failed))?;
        Ok(Self { db, clock })
    }

    /// Adds a record; when this returns it is on disk.
    pub async fn append(&self, entry: AuditEntry) -> Result<()> {
        self.append_all(vec![entry]).await
    }

    /// Adds records in this order, all of them or none.
    pub async fn append_all(&self, entries: Vec<AuditEntry>) -> Result<()> {
        let now = self.clock.now();
        let written = self.db.write(move |connection| {
            Box::pin(async move {
                for entry in &entries {
                    append_within(connection, entry, now).await.map_err(Unwritten)?;
                }
                Ok(())
            })
        });
        written.await.map_err(|Unwritten(error)| error)
    }

    /// Records after a number, at most `limit`, oldest first.
    pub async fn list(&self, after: i64, limit: usize) -> Result<Vec<AuditRecord>> {
        let rows = sqlx::query("SELECT * FROM audit WHERE number > $1 ORDER BY number LIMIT $2")
            .bind(after)
            .bind(limit as i64)
            .fetch_all(self.db.reads())
            .await
            .map_err(ControlError::database("read the audit log"))?;
        rows.iter().map(record_of).collect()
    }

    /// The last `limit` records, oldest first.
    pub async fn last(&self, limit: usize) -> Result<Vec<AuditRecord>> {
        let rows = sqlx::query("SELECT * FROM audit ORDER BY number DESC LIMIT $1")
            .bind(limit as i64)
            .fetch_all(self.db.reads())
            .await
            .map_err(ControlError::database("read the audit log"))?;
        rows.iter().rev().map(record_of).collect()
    }

    /// Removes records that are older; what remains is a chain still.
    pub async fn remove_before(&self, at: Millis) -> Result<u64> {
        let failed = "shorten the audit log";
        let mut transaction = self.db.begin().await.map_err(ControlError::database(failed))?;
        // Only from the beginning: clocks can be set back.
        let first: Option<i64> = sqlx::query_scalar("SELECT MIN(number) FROM audit WHERE at >= $1")
            .bind(at)
            .fetch_one(&mut *transaction)
            .await
            .map_err(ControlError::database(failed))?;
        let bound = first.unwrap_or(i64::MAX);
        let last = sqlx::query(
            "SELECT number, digest FROM audit WHERE number < $1 ORDER BY number DESC LIMIT 1",
        )
        .bind(bound)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        let Some(last) = last else { return Ok(0) };
        let (number, digest): (i64, String) = (column(&last, "number")?, column(&last, "digest")?);
        sqlx::query("DELETE FROM audit_start")
            .execute(&mut *transaction)
            .await
            .map_err(ControlError::database(failed))?;
        sqlx::query("INSERT INTO audit_start (number, digest) VALUES ($1, $2)")
            .bind(number)
            .bind(digest)
            .execute(&mut *transaction)
            .await
            .map_err(ControlError::database(failed))?;
        let removed = sqlx::query("DELETE FROM audit WHERE number <= $1")
            .bind(number)
            .execute(&mut *transaction)
            .await
            .map_err(ControlError::database(failed))?;
        transaction.commit().await.map_err(ControlError::database(failed))?;
        Ok(removed.rows_affected())
    }
}

/// Why a record was not added.
struct Unwritten(ControlError);

impl From<DbError> for Unwritten {
    fn from(error: DbError) -> Self {
        Self(ControlError::database("write the audit log")(error))
    }
}

/// Adds a record in a transaction of the caller, so that it is there if what it tells is.
pub(crate) async fn append_within(
    connection: &mut SqliteConnection,
    entry: &AuditEntry,
    now: Millis,
) -> Result<()> {
    let failed = "write the audit log";
    let last = sqlx::query(
        "SELECT number, digest FROM (
            SELECT number, digest FROM audit UNION ALL SELECT number, digest FROM audit_start
         ) AS known ORDER BY number DESC LIMIT 1",
    )
    .fetch_optional(&mut *connection)
    .await
    .map_err(ControlError::database(failed))?;
    let (number, previous): (i64, Option<String>) = match last {
        Some(row) => (column::<i64>(&row, "number")? + 1, Some(column(&row, "digest")?)),
        None => (1, None),
    };
    let text = |text: &str| -> String { text.chars().take(TEXT_MAX).collect() };
    let time = jiff::Timestamp::from_millisecond(now).unwrap_or_default();
    let line = to_json(&json!({
        "number": number,
        "time": time.to_string(),
        "registry": entry.registry.as_ref().map(RegistryName::as_str),
        "principal": text(&entry.principal),
        "action": text(&entry.action),
        "target": text(&entry.target),
        "outcome": text(&entry.outcome),
        "previous": previous,
    }))?;
    sqlx::query("INSERT INTO audit (number, at, record, digest) VALUES ($1, $2, $3, $4)")
        .bind(number)
        .bind(now)
        .bind(&line)
        .bind(Digest::of(line.as_bytes()).to_string())
        .execute(connection)
        .await
        .map(drop)
        .map_err(ControlError::database(failed))
}

fn record_of(row: &SqliteRow) -> Result<AuditRecord> {
    Ok(AuditRecord {
        number: column(row, "number")?,
        line: column(row, "record")?,
        digest: parsed(column(row, "digest")?)?,
    })
}
