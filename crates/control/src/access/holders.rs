//! Who has a scope map without being a token: accounts, and tasks as themselves
//! (identity-and-secrets.md section 1).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use oci::{RegistryName, RepositoryName};
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::scope_maps::{self, ScopeMap, too_many};
use super::{Access, Area, Rights};
use crate::table::{column, parsed};
use crate::{AccountName, ControlError, Result, ScopeMapName, TaskName, table};

pub(super) const SCHEMA: [&str; 3] = [
    // `principal` is the id of the one that was meant: another one of its name has nothing by this.
    "CREATE TABLE scope_map_assignments (
        registry TEXT NOT NULL,
        holder TEXT NOT NULL,
        principal TEXT NOT NULL,
        name TEXT NOT NULL,
        scope_map TEXT NOT NULL,
        PRIMARY KEY (registry, holder)
    )",
    "CREATE INDEX scope_map_assignments_by_principal
        ON scope_map_assignments (registry, principal)",
    "CREATE INDEX scope_map_assignments_by_map ON scope_map_assignments (registry, scope_map)",
];

/// Of one registry.
const ASSIGNMENTS_MAX: i64 = 50_000;

/// Somebody who can have a scope map; as a text `account:ci` or `task:nightly`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    Account(AccountName),
    /// The task itself, as which its runs act.
    Task(TaskName),
}

impl Holder {
    /// What texts of one holder have in common.
    pub(super) fn key(&self) -> String {
        match self {
            Self::Account(name) => format!("account:{}", name.key()),
            Self::Task(name) => format!("task:{}", name.key()),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account(name) => write!(f, "account:{name}"),
            Self::Task(name) => write!(f, "task:{name}"),
        }
    }
}

impl FromStr for Holder {
    type Err = BadHolder;

    fn from_str(text: &str) -> Result<Self, BadHolder> {
        let found = match text.split_once(':') {
            Some(("account", name)) => name.parse().map(Self::Account).map_err(|e| e.to_string()),
            Some(("task", name)) => name.parse().map(Self::Task).map_err(|e| e.to_string()),
            _ => Err("it is `account:NAME` or `task:NAME`".to_owned()),
        };
        found.map_err(BadHolder)
    }
}

/// A text that is no [`Holder`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("nobody who can have a scope map: {0}")]
pub struct BadHolder(String);

/// The scope map that somebody has in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    pub holder: Holder,
    /// The id of the account, or of the identity of the task. Another one of the same name, also the
    /// same task with an identity that was made anew, has nothing by it.
    pub principal: Uuid,
    pub scope_map: ScopeMapName,
}

/// All that somebody may do in the repositories of a registry, as it was a few seconds ago at the
/// earliest.
#[derive(Debug, Clone, Default)]
pub struct Granted {
    /// In every repository.
    pub(super) everywhere: Rights,
    pub(super) scope_map: Option<Arc<ScopeMap>>,
}

impl Granted {
    /// All in every repository.
    pub const ALL: Self = Self { everywhere: Rights::ALL, scope_map: None };

    pub fn rights(&self, area: Area<'_>) -> Rights {
        let of_map = |repository: Option<&RepositoryName>| {
            self.scope_map.as_ref().map_or(Rights::NONE, |map| map.rights(repository))
        };
        let by_map = match area {
            Area::Repository(repository) => of_map(Some(repository)),
            Area::AllRepositories => of_map(None),
            // Only who may do all may see what there is (registry.md section 4.1).
            Area::Catalog if of_map(None) == Rights::ALL => Rights::ALL,
            Area::Catalog => Rights::NONE,
        };
        self.everywhere | by_map
    }
}

impl Access {
    /// Gives somebody a scope map in a registry, instead of the one that they have there.
    pub async fn assign_scope_map(
        &self,
        registry: &RegistryName,
        assignment: &Assignment,
    ) -> Result<()> {
        let failed = "assign a scope map";
        let Assignment { holder, principal, scope_map } = assignment;
        let _changing = self.changing();
        let mut transaction =
            self.shared.db.begin().await.map_err(ControlError::database(failed))?;
        if scope_maps::find(&mut transaction, registry, scope_map).await?.is_none() {
            return Err(scope_maps::not_found(scope_map));
        }
        let put = sqlx::query(
            "INSERT INTO scope_map_assignments (registry, holder, principal, name, scope_map)
             SELECT $1, $2, $3, $4, $5
             WHERE (SELECT COUNT(*) FROM scope_map_assignments
                WHERE registry = $1 AND holder <> $2) < $6
             ON CONFLICT (registry, holder) DO UPDATE SET principal = excluded.principal,
                name = excluded.name, scope_map = excluded.scope_map",
        )
        .bind(registry.as_str())
        .bind(holder.key())
        .bind(principal.to_string())
        .bind(holder.to_string())
        .bind(scope_map.key())
        .bind(ASSIGNMENTS_MAX)
        .execute(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        transaction.commit().await.map_err(ControlError::database(failed))?;
        match put.rows_affected() {
            0 => Err(too_many("accounts and tasks with scope maps", ASSIGNMENTS_MAX)),
            _ => Ok(()),
        }
    }

    /// Takes the scope map away that somebody has in a registry; whether they had one.
    pub async fn unassign_scope_map(
        &self,
        registry: &RegistryName,
        holder: &Holder,
    ) -> Result<bool> {
        let _changing = self.changing();
        let statement =
            sqlx::query("DELETE FROM scope_map_assignments WHERE registry = $1 AND holder = $2")
                .bind(registry.as_str())
                .bind(holder.key());
        let removed = table::execute(&self.shared.db, "take a scope map away", statement).await?;
        Ok(removed > 0)
    }

    /// The same for a task, unless its scope map is that of this identity.
    pub async fn forget_task(
        &self,
        registry: &RegistryName,
        task: &TaskName,
        keep: Option<Uuid>,
    ) -> Result<()> {
        let key = Holder::Task(task.clone()).key();
        let keep = keep.map(|id| id.to_string()).unwrap_or_default();
        let others: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM scope_map_assignments
             WHERE registry = $1 AND holder = $2 AND principal <> $3",
        )
        .bind(registry.as_str())
        .bind(&key)
        .bind(&keep)
        .fetch_one(self.shared.db.reads())
        .await
        .map_err(ControlError::database("read the scope map of a task"))?;
        if others == 0 {
            return Ok(());
        }
        let _changing = self.changing();
        // The one of the identity that it has by now stays.
        let statement = sqlx::query(
            "DELETE FROM scope_map_assignments
             WHERE registry = $1 AND holder = $2 AND principal <> $3",
        )
        .bind(registry.as_str())
        .bind(key)
        .bind(keep);
        table::execute(&self.shared.db, "forget the scope map of a task", statement).await?;
        Ok(())
    }

    /// Who has which scope map in a registry, by their texts; those after `after`, at most `limit`.
    pub async fn scope_map_assignments(
        &self,
        registry: &RegistryName,
        after: Option<&Holder>,
        limit: usize,
    ) -> Result<Vec<Assignment>> {
        let rows = sqlx::query(
            "SELECT a.*, m.name AS map_name FROM scope_map_assignments a
             LEFT JOIN scope_maps m ON m.registry = a.registry AND m.name_key = a.scope_map
             WHERE a.registry = $1 AND a.holder > $2 ORDER BY a.holder LIMIT $3",
        )
        .bind(registry.as_str())
        .bind(after.map(Holder::key).unwrap_or_default())
        .bind(limit as i64)
        .fetch_all(self.shared.db.reads())
        .await
        .map_err(ControlError::database("list who has scope maps"))?;
        rows.iter().map(assignment_of).collect()
    }

    /// What the one with this id may do by a scope map in a registry.
    pub(super) async fn scope_map_of(
        &self,
        registry: &RegistryName,
        principal: Uuid,
    ) -> Result<Option<Arc<ScopeMap>>> {
        let (key, now) = ((registry.clone(), principal), self.shared.clock.now());
        let began = match self.shared.assigned.get(&key, now) {
            Ok(known) => return Ok(known),
            Err(began) => began,
        };
        let mut connection = self.connection().await?;
        let name: Option<String> = sqlx::query_scalar(
            "SELECT scope_map FROM scope_map_assignments WHERE registry = $1 AND principal = $2",
        )
        .bind(registry.as_str())
        .bind(principal.to_string())
        .fetch_optional(&mut *connection)
        .await
        .map_err(ControlError::database("read who has a scope map"))?;
        let map = match name {
            Some(name) => scope_maps::find(&mut connection, registry, &parsed(&name)?).await?,
            None => None,
        };
        let map = map.map(Arc::new);
        self.shared.assigned.put(key, map.clone(), began, now);
        Ok(map)
    }
}

fn assignment_of(row: &SqliteRow) -> Result<Assignment> {
    Ok(Assignment {
        holder: parsed(column(row, "name")?)?,
        principal: parsed(column(row, "principal")?)?,
        scope_map: match column::<Option<&str>>(row, "map_name")? {
            Some(name) => parsed(name)?,
            // One of the system's.
            None => parsed(column(row, "scope_map")?)?,
        },
    })
}
