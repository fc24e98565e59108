//! Statements that write, each durable when it answers; and what rows hold.

use db::Db;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Row, Sqlite};

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

pub(crate) fn to_json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|source| not_json("write a record", source))
}

pub(crate) fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|source| not_json("read a record", source))
}

pub(crate) fn not_json(doing: &str, source: serde_json::Error) -> ControlError {
    ControlError::Database { doing: doing.into(), source: source.into() }
}

pub(crate) fn column<'r, T>(row: &'r SqliteRow, name: &str) -> Result<T>
where
    T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    row.try_get(name).map_err(ControlError::database("read a record"))
}

pub(crate) fn parsed<T: std::str::FromStr>(text: &str) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().map_err(|source: T::Err| ControlError::Database {
        doing: "read a record".into(),
        source: source.into(),
    })
}

/// Which of all has a name.
pub(crate) fn known<T: Copy, const N: usize>(
    all: [T; N],
    name: fn(T) -> &'static str,
    text: &str,
) -> Result<T> {
    let found = all.into_iter().find(|one| name(*one) == text);
    found.ok_or_else(|| ControlError::Database {
        doing: "read a record".into(),
        source: format!("`{text}` is unknown").into(),
    })
}
