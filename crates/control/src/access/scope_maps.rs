//! Scope maps: named lists of what may be done in which repositories (registry.md section 4.1).

use std::collections::BTreeSet;

use oci::{RegistryName, RepositoryName};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use store::Millis;

use super::rights::{BadScope, Scope, rights_of};
use super::{Access, Rights, check_description};
use crate::table::{column, from_json, parsed, to_json};
use crate::{ControlError, Result, ScopeMapName};

pub(super) const SCHEMA: &str = "CREATE TABLE scope_maps (
        registry TEXT NOT NULL,
        name_key TEXT NOT NULL,
        name TEXT NOT NULL,
        description TEXT NOT NULL,
        actions TEXT NOT NULL,
        created_at BIGINT NOT NULL,
        PRIMARY KEY (registry, name_key)
    )";

/// Lines of one scope map.
const SCOPES_MAX: usize = 500;
/// Of one registry.
const MAPS_MAX: i64 = 50_000;

/// What the registry has by itself.
const SYSTEM: [(&str, &str, Rights); 5] = [
    ("_repositories_admin", "All there is to do in every repository", Rights::ALL),
    ("_repositories_pull", "Pull from every repository", Rights::CONTENT_READ),
    (
        "_repositories_pull_metadata_read",
        "Pull from every repository and list what it has",
        PULL_METADATA,
    ),
    ("_repositories_push", "Push to every repository and pull from it", PUSH),
    (
        "_repositories_push_metadata_write",
        "Push to every repository, pull from it, list and change attributes",
        PUSH_METADATA,
    ),
];
const PULL_METADATA: Rights = Rights::CONTENT_READ.with(Rights::METADATA_READ);
const PUSH: Rights = Rights::CONTENT_READ.with(Rights::CONTENT_WRITE);
const PUSH_METADATA: Rights = PUSH.with(Rights::METADATA_READ).with(Rights::METADATA_WRITE);

/// A named list of scopes. Whoever has it may do what any of its lines allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopeMap {
    pub registry: RegistryName,
    pub name: ScopeMapName,
    pub description: String,
    pub scopes: Vec<Scope>,
    /// There without anybody having made it, and not to be changed.
    pub is_system: bool,
    pub created_at: Millis,
}

impl ScopeMap {
    /// What it allows; without a repository: in every one, those to come included.
    pub fn rights(&self, repository: Option<&RepositoryName>) -> Rights {
        rights_of(&self.scopes, repository)
    }

    fn system(registry: &RegistryName, of: &(&str, &str, Rights)) -> Result<Self> {
        let (name, description, rights) = of;
        let scopes = rights.names().map(|right| parsed(&format!("repositories/*/{right}")));
        Ok(Self {
            registry: registry.clone(),
            name: parsed(name)?,
            description: (*description).to_owned(),
            scopes: scopes.collect::<Result<_>>()?,
            is_system: true,
            created_at: 0,
        })
    }
}

/// Reads the lines of a scope map, and leaves those out that repeat another one.
pub fn read_scopes(actions: &[String]) -> Result<Vec<Scope>> {
    let mut seen = BTreeSet::new();
    let mut scopes = Vec::new();
    for action in actions {
        let scope: Scope = action.parse().map_err(|error: BadScope| ControlError::Invalid {
            hint: error.hint(),
            message: error.to_string(),
        })?;
        if seen.insert(scope.to_string()) {
            scopes.push(scope);
        }
    }
    if scopes.len() > SCOPES_MAX {
        let message = format!("a scope map has at most {SCOPES_MAX} actions");
        return Err(ControlError::Invalid { message, hint: Some("use `FOLDER/*`".into()) });
    }
    Ok(scopes)
}

impl Access {
    pub async fn scope_map(
        &self,
        registry: &RegistryName,
        name: &ScopeMapName,
    ) -> Result<Option<ScopeMap>> {
        let mut connection = self.connection().await?;
        find(&mut connection, registry, name).await
    }

    /// By name, those of the system first; those after `after`, at most `limit`.
    pub async fn scope_maps(
        &self,
        registry: &RegistryName,
        after: Option<&ScopeMapName>,
        limit: usize,
    ) -> Result<Vec<ScopeMap>> {
        let after = after.map(ScopeMapName::key).unwrap_or_default();
        let system = SYSTEM.iter().filter(|(name, ..)| *name > &*after);
        let mut maps: Vec<_> =
            system.map(|map| ScopeMap::system(registry, map)).collect::<Result<_>>()?;
        let rows = sqlx::query(
            "SELECT * FROM scope_maps WHERE registry = $1 AND name_key > $2
             ORDER BY name_key LIMIT $3",
        )
        .bind(registry.as_str())
        .bind(&after)
        .bind(limit as i64)
        .fetch_all(self.shared.db.reads())
        .await
        .map_err(ControlError::database("list scope maps"))?;
        for row in &rows {
            maps.push(scope_map_of(row)?);
        }
        maps.sort_by_key(|map| map.name.key());
        maps.truncate(limit);
        Ok(maps)
    }

    /// Makes a scope map, or gives one that is there other scopes. What is taken away ends at once;
    /// registry clients have what is added with the next token that they ask for. `known` is what the
    /// caller has read: if it has changed since then, this is a `Conflict`.
    pub async fn put_scope_map(
        &self,
        registry: &RegistryName,
        name: &ScopeMapName,
        description: &str,
        scopes: &[Scope],
        known: Option<&ScopeMap>,
    ) -> Result<ScopeMap> {
        refuse_system(name)?;
        let _changing = self.changing();
        check_description(description)?;
        let failed = "keep a scope map";
        let mut transaction =
            self.shared.db.begin().await.map_err(ControlError::database(failed))?;
        if known.is_some() && find(&mut transaction, registry, name).await?.as_ref() != known {
            return Err(changed_meanwhile("scope map", name));
        }
        let actions: Vec<String> = scopes.iter().map(Scope::to_string).collect();
        let row = sqlx::query(
            "INSERT INTO scope_maps (registry, name_key, name, description, actions, created_at)
             SELECT $1, $2, $3, $4, $5, $6
             WHERE (SELECT COUNT(*) FROM scope_maps WHERE registry = $1 AND name_key <> $2) < $7
             ON CONFLICT (registry, name_key) DO UPDATE SET description = excluded.description,
                actions = excluded.actions
             RETURNING *",
        )
        .bind(registry.as_str())
        .bind(name.key())
        .bind(name.as_str())
        .bind(description)
        .bind(to_json(&actions)?)
        .bind(self.shared.clock.now())
        .bind(MAPS_MAX)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        transaction.commit().await.map_err(ControlError::database(failed))?;
        row.map_or_else(|| Err(too_many("scope maps", MAPS_MAX)), |row| scope_map_of(&row))
    }

    /// Deletes a scope map that nobody has any more.
    pub async fn delete_scope_map(
        &self,
        registry: &RegistryName,
        name: &ScopeMapName,
    ) -> Result<()> {
        refuse_system(name)?;
        let failed = "delete a scope map";
        let mut transaction =
            self.shared.db.begin().await.map_err(ControlError::database(failed))?;
        let tokens: Vec<String> = sqlx::query_scalar(
            "SELECT name FROM tokens WHERE registry = $1 AND scope_map = $2 ORDER BY name_key LIMIT 4",
        )
        .bind(registry.as_str())
        .bind(name.key())
        .fetch_all(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        if let Some((first, others)) = tokens.split_first() {
            let others = if others.is_empty() { "" } else { " and others" };
            let message = format!("scope map `{name}` is that of token `{first}`{others}");
            return Err(ControlError::Conflict { message });
        }
        let holder: Option<String> = sqlx::query_scalar(
            "SELECT name FROM scope_map_assignments WHERE registry = $1 AND scope_map = $2 LIMIT 1",
        )
        .bind(registry.as_str())
        .bind(name.key())
        .fetch_optional(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        if let Some(holder) = holder {
            let message = format!("scope map `{name}` is that of `{holder}`");
            return Err(ControlError::Conflict { message });
        }
        let deleted = sqlx::query("DELETE FROM scope_maps WHERE registry = $1 AND name_key = $2")
            .bind(registry.as_str())
            .bind(name.key())
            .execute(&mut *transaction)
            .await
            .map_err(ControlError::database(failed))?;
        transaction.commit().await.map_err(ControlError::database(failed))?;
        match deleted.rows_affected() {
            0 => Err(not_found(name)),
            _ => Ok(()),
        }
    }
}

/// One of the system's, or one of the table's.
pub(super) async fn find(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    name: &ScopeMapName,
) -> Result<Option<ScopeMap>> {
    let key = name.key();
    if let Some(map) = SYSTEM.iter().find(|(name, ..)| *name == key) {
        return ScopeMap::system(registry, map).map(Some);
    }
    let row = sqlx::query("SELECT * FROM scope_maps WHERE registry = $1 AND name_key = $2")
        .bind(registry.as_str())
        .bind(key)
        .fetch_optional(connection)
        .await
        .map_err(ControlError::database("read a scope map"))?;
    row.map(|row| scope_map_of(&row)).transpose()
}

/// Names of the system begin so.
fn refuse_system(name: &ScopeMapName) -> Result<()> {
    if !name.as_str().starts_with('_') {
        return Ok(());
    }
    let message = format!("`{name}`: names that begin with `_` are the system's");
    Err(ControlError::Invalid { message, hint: Some("choose another name".into()) })
}

pub(super) fn not_found(name: &ScopeMapName) -> ControlError {
    ControlError::NotFound { what: format!("scope map `{name}`") }
}

/// What was read before is not there any more as it was.
pub(super) fn changed_meanwhile(kind: &str, name: &impl std::fmt::Display) -> ControlError {
    let message = format!("{kind} `{name}` was changed meanwhile; try again");
    ControlError::Conflict { message }
}

pub(super) fn too_many(what: &str, max: i64) -> ControlError {
    ControlError::Conflict { message: format!("there are at most {max} {what}") }
}

fn scope_map_of(row: &SqliteRow) -> Result<ScopeMap> {
    let actions: Vec<String> = from_json(column(row, "actions")?)?;
    Ok(ScopeMap {
        registry: parsed(column(row, "registry")?)?,
        name: parsed(column(row, "name")?)?,
        description: column(row, "description")?,
        scopes: actions.iter().map(|action| parsed(action)).collect::<Result<_>>()?,
        is_system: false,
        created_at: column(row, "created_at")?,
    })
}
