//! Tables grow by statements that are applied once, in order, per owner.

use crate::{Db, DbError};

const TABLE: &str = "CREATE TABLE IF NOT EXISTS migrations (
    owner TEXT NOT NULL, number BIGINT NOT NULL, PRIMARY KEY (owner, number))";

pub(crate) async fn run(db: &Db, owner: &str, statements: &[&'static str]) -> Result<(), DbError> {
    let mut transaction = db.begin().await?;
    sqlx::query(TABLE).execute(&mut *transaction).await?;
    let found: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM migrations WHERE owner = $1")
        .bind(owner)
        .fetch_one(&mut *transaction)
        .await?;
    let found = usize::try_from(found).unwrap_or(0);
    if found > statements.len() {
        let (owner, known) = (owner.to_owned(), statements.len());
        return Err(DbError::TooNew { owner, found, known });
    }
    for (index, statement) in statements.iter().enumerate().skip(found) {
        let number = index + 1;
        let failed = |source| DbError::Migration { owner: owner.to_owned(), number, source };
        sqlx::raw_sql(*statement).execute(&mut *transaction).await.map_err(failed)?;
        sqlx::query("INSERT INTO migrations (owner, number) VALUES ($1, $2)")
            .bind(owner)
            .bind(i64::try_from(number).unwrap_or(i64::MAX))
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
    }
    transaction.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "CREATE TABLE a (x BIGINT); CREATE INDEX a_x ON a (x);";
    const SECOND: &str = "ALTER TABLE a ADD COLUMN y TEXT;";

    #[tokio::test]
    async fn migrations_are_applied_once_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(&folder.path().join("db")).await.unwrap();
        db.migrate("one", &[FIRST]).await.unwrap();
        db.migrate("one", &[FIRST]).await.unwrap();
        db.migrate("one", &[FIRST, SECOND]).await.unwrap();
        db.migrate("two", &["CREATE TABLE b (x BIGINT)"]).await.unwrap();
        let error = db.migrate("one", &[FIRST]).await.unwrap_err();
        assert!(error.to_string().contains("written by a newer Refit"), "{error}");
    }

    #[tokio::test]
    async fn a_migration_that_fails_leaves_nothing() {
        let db = Db::in_memory().await.unwrap();
        db.migrate("one", &[FIRST, "nonsense"]).await.unwrap_err();
        db.migrate("one", &[FIRST]).await.unwrap();
    }
}
