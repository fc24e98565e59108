//! Accounts: people and programs that use a server, and their roles in its registries.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use oci::RegistryName;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use store::Millis;
use uuid::Uuid;

use super::scope_maps::too_many;
use super::{Access, Role, check_description, password, refuse_reserved};
use crate::table::{column, parsed};
use crate::{AccountName, AssignedAccount, ControlError, Result, table};

pub(super) const SCHEMA: [&str; 2] = [
    "CREATE TABLE accounts (
        name_key TEXT NOT NULL PRIMARY KEY,
        name TEXT NOT NULL,
        kind TEXT NOT NULL,
        enabled BOOLEAN NOT NULL,
        description TEXT NOT NULL,
        password TEXT NOT NULL,
        password_at BIGINT NOT NULL,
        created_at BIGINT NOT NULL
    )",
    // `registry` is `*` for all of them.
    "CREATE TABLE role_assignments (
        account TEXT NOT NULL,
        registry TEXT NOT NULL,
        role TEXT NOT NULL,
        PRIMARY KEY (account, registry)
    )",
];

/// Of one server.
const ACCOUNTS_MAX: i64 = 50_000;
/// Stands for all registries of a server, those to come included.
const EVERY: &str = "*";

/// Who an account is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccountKind {
    User,
    /// A program.
    ServicePrincipal,
}

impl AccountKind {
    pub const ALL: [Self; 2] = [Self::User, Self::ServicePrincipal];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::ServicePrincipal => "servicePrincipal",
        }
    }
}

impl fmt::Display for AccountKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for AccountKind {
    type Err = BadKind;

    fn from_str(text: &str) -> Result<Self, BadKind> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or(BadKind)
    }
}

/// A text that is no [`AccountKind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an account is a `user` or a `servicePrincipal`")]
pub struct BadKind;

/// Somebody who has a password for this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub name: AccountName,
    pub kind: AccountKind,
    /// It opens nothing while it is not.
    pub enabled: bool,
    pub description: String,
    /// In which registry it has which role; `None`: in all of them. The higher one of both counts.
    pub roles: BTreeMap<Option<RegistryName>, Role>,
    /// When its password was set.
    pub password_at: Millis,
    pub created_at: Millis,
}

impl Account {
    /// Tells it from others, also from an earlier or a later one of the same name.
    pub fn id(&self) -> Uuid {
        let text = format!("account {} {}", self.name.key(), self.created_at);
        let digest = oci::Digest::of(text.as_bytes());
        let bits = u128::from_str_radix(&digest.hex()[..32], 16).unwrap_or_default();
        uuid::Builder::from_custom_bytes(bits.to_be_bytes()).into_uuid()
    }

    /// Whether it is the one that a task was given as an identity, and may be that now.
    pub fn is_identity(&self, assigned: &AssignedAccount) -> bool {
        self.enabled && self.kind == AccountKind::ServicePrincipal && self.id() == assigned.id
    }

    /// What it is in a registry, or of the server as a whole: the higher one of both.
    pub fn role(&self, registry: Option<&RegistryName>) -> Option<Role> {
        let everywhere = self.roles.get(&None);
        let here = registry.and_then(|registry| self.roles.get(&Some(registry.clone())));
        everywhere.max(here).copied()
    }
}

/// What is said of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountProperties {
    pub kind: AccountKind,
    pub enabled: bool,
    pub description: String,
}

/// What each request of an account asks for.
#[derive(Debug)]
pub(super) struct AccountAccess {
    pub(super) account: Account,
    /// Its Argon2id hash, as a PHC string.
    pub(super) password: String,
}

impl Access {
    pub async fn account(&self, name: &AccountName) -> Result<Option<Account>> {
        let mut connection = self.connection().await?;
        Ok(find(&mut connection, name).await?.map(|found| found.account))
    }

    /// By name, those after `after`, at most `limit`.
    pub async fn accounts(
        &self,
        after: Option<&AccountName>,
        limit: usize,
    ) -> Result<Vec<Account>> {
        let mut connection = self.connection().await?;
        let rows =
            sqlx::query("SELECT * FROM accounts WHERE name_key > $1 ORDER BY name_key LIMIT $2")
                .bind(after.map(AccountName::key).unwrap_or_default())
                .bind(limit as i64)
                .fetch_all(&mut *connection)
                .await
                .map_err(ControlError::database("list accounts"))?;
        let mut accounts = Vec::with_capacity(rows.len());
        for row in &rows {
            accounts.push(account_of(&mut connection, row).await?.account);
        }
        Ok(accounts)
    }

    /// Those that have a role in a registry, in all registries or in this one; else as
    /// [`Self::accounts`].
    pub async fn accounts_of(
        &self,
        registry: &RegistryName,
        after: Option<&AccountName>,
        limit: usize,
    ) -> Result<Vec<Account>> {
        let mut connection = self.connection().await?;
        let rows = sqlx::query(
            "SELECT * FROM accounts WHERE name_key > $1 AND name_key IN
                (SELECT account FROM role_assignments WHERE registry = $2 OR registry = $3)
             ORDER BY name_key LIMIT $4",
        )
        .bind(after.map(AccountName::key).unwrap_or_default())
        .bind(registry.as_str())
        .bind(EVERY)
        .bind(limit as i64)
        .fetch_all(&mut *connection)
        .await
        .map_err(ControlError::database("list the accounts of a registry"))?;
        let mut accounts = Vec::with_capacity(rows.len());
        for row in &rows {
            accounts.push(account_of(&mut connection, row).await?.account);
        }
        Ok(accounts)
    }

    /// Makes an account with a password, or else a random one, which is returned. `Conflict` if it is
    /// there already.
    pub async fn create_account(
        &self,
        name: &AccountName,
        properties: &AccountProperties,
        password: Option<String>,
    ) -> Result<(Account, Option<String>)> {
        refuse_reserved(name.as_str())?;
        check_description(&properties.description)?;
        let (password, made) = chosen_or_made(password)?;
        let _changing = self.changing();
        let hash = password::hash(password).await?;
        let statement = sqlx::query(
            "INSERT INTO accounts (name_key, name, kind, enabled, description, password,
                password_at, created_at)
             SELECT $1, $2, $3, $4, $5, $6, $7, $7
             WHERE (SELECT COUNT(*) FROM accounts) < $8
             ON CONFLICT DO NOTHING",
        )
        .bind(name.key())
        .bind(name.as_str())
        .bind(properties.kind.as_str())
        .bind(properties.enabled)
        .bind(&properties.description)
        .bind(hash)
        .bind(self.shared.clock.now())
        .bind(ACCOUNTS_MAX);
        let created = table::execute(&self.shared.db, "make an account", statement).await?;
        match (created, self.account(name).await?) {
            (1, Some(account)) => Ok((account, made)),
            (_, Some(_)) => {
                let message = format!("account `{name}` is there already");
                Err(ControlError::Conflict { message })
            }
            _ => Err(too_many("accounts", ACCOUNTS_MAX)),
        }
    }

    /// Changes what is given of what is said of an account.
    pub async fn update_account(
        &self,
        name: &AccountName,
        enabled: Option<bool>,
        description: Option<&str>,
    ) -> Result<Account> {
        check_description(description.unwrap_or_default())?;
        let _changing = self.changing();
        let statement = sqlx::query(
            "UPDATE accounts SET enabled = COALESCE($2, enabled),
                description = COALESCE($3, description) WHERE name_key = $1",
        )
        .bind(name.key())
        .bind(enabled)
        .bind(description);
        table::execute(&self.shared.db, "change an account", statement).await?;
        self.account(name).await?.ok_or_else(|| not_found(name))
    }

    /// Gives an account another password, or else a random one, which is returned. What was got with
    /// the one before opens nothing any more.
    pub async fn set_password(
        &self,
        name: &AccountName,
        password: Option<String>,
    ) -> Result<Option<String>> {
        let (password, made) = chosen_or_made(password)?;
        let _changing = self.changing();
        let hash = password::hash(password).await?;
        let statement =
            sqlx::query("UPDATE accounts SET password = $2, password_at = $3 WHERE name_key = $1")
                .bind(name.key())
                .bind(hash)
                .bind(self.shared.clock.now());
        let changed = table::execute(&self.shared.db, "set a password", statement).await?;
        if changed == 0 { Err(not_found(name)) } else { Ok(made) }
    }

    pub async fn delete_account(&self, name: &AccountName) -> Result<()> {
        let failed = "delete an account";
        let _changing = self.changing();
        let mut transaction =
            self.shared.db.begin().await.map_err(ControlError::database(failed))?;
        sqlx::query("DELETE FROM role_assignments WHERE account = $1")
            .bind(name.key())
            .execute(&mut *transaction)
            .await
            .map_err(ControlError::database(failed))?;
        sqlx::query("DELETE FROM scope_map_assignments WHERE holder = $1")
            .bind(super::Holder::Account(name.clone()).key())
            .execute(&mut *transaction)
            .await
            .map_err(ControlError::database(failed))?;
        let deleted = sqlx::query("DELETE FROM accounts WHERE name_key = $1")
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

    /// Gives an account a role in a registry, or in all; none takes the one away that it has there.
    pub async fn assign_role(
        &self,
        name: &AccountName,
        registry: Option<&RegistryName>,
        role: Option<Role>,
    ) -> Result<Account> {
        let failed = "assign a role";
        let _changing = self.changing();
        let mut transaction =
            self.shared.db.begin().await.map_err(ControlError::database(failed))?;
        if find(&mut transaction, name).await?.is_none() {
            return Err(not_found(name));
        }
        let registry = registry.map_or(EVERY, RegistryName::as_str);
        sqlx::query("DELETE FROM role_assignments WHERE account = $1 AND registry = $2")
            .bind(name.key())
            .bind(registry)
            .execute(&mut *transaction)
            .await
            .map_err(ControlError::database(failed))?;
        if let Some(role) = role {
            sqlx::query(
                "INSERT INTO role_assignments (account, registry, role) VALUES ($1, $2, $3)",
            )
            .bind(name.key())
            .bind(registry)
            .bind(role.as_str())
            .execute(&mut *transaction)
            .await
            .map_err(ControlError::database(failed))?;
        }
        let account = find(&mut transaction, name).await?;
        transaction.commit().await.map_err(ControlError::database(failed))?;
        account.map(|found| found.account).ok_or_else(|| not_found(name))
    }

    /// What a request of an account asks for, as it was a few seconds ago at the earliest.
    pub(super) async fn account_access(
        &self,
        name: &AccountName,
    ) -> Result<Option<Arc<AccountAccess>>> {
        let (key, now) = (name.key(), self.shared.clock.now());
        let began = match self.shared.accounts.get(&key, now) {
            Ok(known) => return Ok(known),
            Err(began) => began,
        };
        let mut connection = self.connection().await?;
        let access = find(&mut connection, name).await?.map(Arc::new);
        self.shared.accounts.put(key, access.clone(), began, now);
        Ok(access)
    }
}

/// The password to keep, and once more if it was made here.
fn chosen_or_made(password: Option<String>) -> Result<(String, Option<String>)> {
    match password {
        Some(chosen) => {
            password::check(&chosen)?;
            Ok((chosen, None))
        }
        None => {
            let made = password::random()?;
            Ok((made.clone(), Some(made)))
        }
    }
}

async fn find(
    connection: &mut SqliteConnection,
    name: &AccountName,
) -> Result<Option<AccountAccess>> {
    let row = sqlx::query("SELECT * FROM accounts WHERE name_key = $1")
        .bind(name.key())
        .fetch_optional(&mut *connection)
        .await
        .map_err(ControlError::database("read an account"))?;
    match row {
        None => Ok(None),
        Some(row) => account_of(connection, &row).await.map(Some),
    }
}

async fn account_of(connection: &mut SqliteConnection, row: &SqliteRow) -> Result<AccountAccess> {
    let assigned = sqlx::query("SELECT registry, role FROM role_assignments WHERE account = $1")
        .bind(column::<&str>(row, "name_key")?)
        .fetch_all(connection)
        .await
        .map_err(ControlError::database("read the roles of an account"))?;
    let mut roles = BTreeMap::new();
    for row in &assigned {
        let registry = match column(row, "registry")? {
            EVERY => None,
            name => Some(parsed(name)?),
        };
        roles.insert(registry, parsed(column(row, "role")?)?);
    }
    let account = Account {
        name: parsed(column(row, "name")?)?,
        kind: parsed(column(row, "kind")?)?,
        enabled: column(row, "enabled")?,
        description: column(row, "description")?,
        roles,
        password_at: column(row, "password_at")?,
        created_at: column(row, "created_at")?,
    };
    Ok(AccountAccess { account, password: column(row, "password")? })
}

fn not_found(name: &AccountName) -> ControlError {
    ControlError::NotFound { what: format!("account `{name}`") }
}
