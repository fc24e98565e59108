//! Statements that write, each durable when it answers.

use db::Db;
use sqlx::Sqlite;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};

use crate::{ControlError, Result};

/// Runs one statement; says how many rows it changed.
pub(crate) async fn execute(
    db: &Db,
    doing: &'static str,
    statement: Query<'_, Sqlite, SqliteArguments>,
) -> Result<u64> {
    let mut transaction = db.begin().await.map_err(ControlError::database(doing))?;
    let done = statement.execute(&mut *transaction).await.map_err(ControlError::database(doing))?;
    transaction.commit().await.map_err(ControlError::database(doing))?;
    Ok(done.rows_affected())
}

/// Runs one statement that returns the rows it changed.
pub(crate) async fn returning(
    db: &Db,
    doing: &'static str,
    statement: Query<'_, Sqlite, SqliteArguments>,
) -> Result<Vec<SqliteRow>> {
    let mut transaction = db.begin().await.map_err(ControlError::database(doing))?;
    let rows =
        statement.fetch_all(&mut *transaction).await.map_err(ControlError::database(doing))?;
    transaction.commit().await.map_err(ControlError::database(doing))?;
    Ok(rows)
}
