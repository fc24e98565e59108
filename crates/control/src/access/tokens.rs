//! Tokens: user names of a registry, each with up to two passwords and one scope map (registry.md
//! section 4.1).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use oci::{Digest, RegistryName};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use store::Millis;

use super::password;
use super::scope_maps::{self, ScopeMap, changed_meanwhile, too_many};
use super::{Access, refuse_reserved};
use crate::table::{column, parsed};
use crate::{ControlError, Result, ScopeMapName, TokenName};

pub(super) const SCHEMA: [&str; 3] = [
    "CREATE TABLE tokens (
        registry TEXT NOT NULL,
        name_key TEXT NOT NULL,
        name TEXT NOT NULL,
        scope_map TEXT NOT NULL,
        enabled BOOLEAN NOT NULL,
        created_at BIGINT NOT NULL,
        PRIMARY KEY (registry, name_key)
    )",
    "CREATE INDEX tokens_by_scope_map ON tokens (registry, scope_map)",
    "CREATE TABLE token_passwords (
        registry TEXT NOT NULL,
        name_key TEXT NOT NULL,
        slot BIGINT NOT NULL,
        digest TEXT NOT NULL,
        created_at BIGINT NOT NULL,
        expires_at BIGINT,
        PRIMARY KEY (registry, name_key, slot)
    )",
];

/// Of one registry.
const TOKENS_MAX: i64 = 50_000;

/// A user name of one registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub registry: RegistryName,
    pub name: TokenName,
    pub scope_map: ScopeMapName,
    /// It opens nothing while it is not.
    pub enabled: bool,
    /// By slot.
    pub passwords: Vec<TokenPassword>,
    pub created_at: Millis,
}

/// What is to be true of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenProperties {
    pub scope_map: ScopeMapName,
    pub enabled: bool,
    /// Of its passwords only these stay; absent: all do.
    pub keep: Option<Vec<PasswordSlot>>,
}

/// What is known of one of a token's passwords; itself it is shown once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPassword {
    pub slot: PasswordSlot,
    digest: Digest,
    pub created_at: Millis,
    /// It opens nothing from then on.
    pub expires_at: Option<Millis>,
}

/// Two passwords, so that one can be replaced while the other one is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PasswordSlot {
    First,
    Second,
}

impl PasswordSlot {
    pub const ALL: [Self; 2] = [Self::First, Self::Second];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "password1",
            Self::Second => "password2",
        }
    }

    fn number(self) -> i64 {
        match self {
            Self::First => 1,
            Self::Second => 2,
        }
    }
}

impl fmt::Display for PasswordSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PasswordSlot {
    type Err = BadSlot;

    fn from_str(text: &str) -> Result<Self, BadSlot> {
        Self::ALL.into_iter().find(|slot| slot.as_str() == text).ok_or(BadSlot)
    }
}

/// A text that is no [`PasswordSlot`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token has the passwords `password1` and `password2`")]
pub struct BadSlot;

/// A password that was made; nobody can read it again.
pub struct NewPassword {
    pub slot: PasswordSlot,
    pub password: String,
    pub created_at: Millis,
    pub expires_at: Option<Millis>,
}

/// What each request with a token asks for.
#[derive(Debug)]
pub(super) struct TokenAccess {
    pub(super) token: Token,
    pub(super) scope_map: Arc<ScopeMap>,
}

impl TokenAccess {
    /// The password that opens it now, and is this one.
    pub(super) fn opened_by(&self, password: &str, now: Millis) -> Option<&TokenPassword> {
        let digest = password::digest(password);
        self.open_passwords(now).find(|password| password.digest == digest)
    }

    /// Whether one of its passwords that open it now has this fingerprint.
    pub(super) fn holds(&self, credential: &str, now: Millis) -> bool {
        self.open_passwords(now).any(|password| password.fingerprint() == credential)
    }

    fn open_passwords(&self, now: Millis) -> impl Iterator<Item = &TokenPassword> {
        let passwords = self.token.passwords.iter().filter(|_| self.token.enabled);
        passwords.filter(move |password| password.expires_at.is_none_or(|at| now < at))
    }
}

impl TokenPassword {
    /// Tells it from every other password. The digest of a digest that nobody else has.
    pub(super) fn fingerprint(&self) -> String {
        Digest::of(self.digest.to_string().as_bytes()).hex()[..32].to_owned()
    }
}

impl Access {
    pub async fn token(&self, registry: &RegistryName, name: &TokenName) -> Result<Option<Token>> {
        let mut connection = self.connection().await?;
        find(&mut connection, registry, name).await
    }

    /// By name, those after `after`, at most `limit`.
    pub async fn tokens(
        &self,
        registry: &RegistryName,
        after: Option<&TokenName>,
        limit: usize,
    ) -> Result<Vec<Token>> {
        let mut connection = self.connection().await?;
        let rows = sqlx::query(
            "SELECT t.*, m.name AS map_name FROM tokens t LEFT JOIN scope_maps m
                ON m.registry = t.registry AND m.name_key = t.scope_map
             WHERE t.registry = $1 AND t.name_key > $2 ORDER BY t.name_key LIMIT $3",
        )
        .bind(registry.as_str())
        .bind(after.map(TokenName::key).unwrap_or_default())
        .bind(limit as i64)
        .fetch_all(&mut *connection)
        .await
        .map_err(ControlError::database("list tokens"))?;
        let mut tokens = Vec::with_capacity(rows.len());
        for row in &rows {
            tokens.push(token_of(&mut connection, row).await?);
        }
        Ok(tokens)
    }

    /// Makes a token without passwords, or gives one that is there another scope map and status.
    /// `known` is what the caller has read: if it has changed since then, this is a `Conflict`.
    pub async fn put_token(
        &self,
        registry: &RegistryName,
        name: &TokenName,
        properties: &TokenProperties,
        known: Option<&Token>,
    ) -> Result<Token> {
        refuse_reserved(name.as_str())?;
        let TokenProperties { scope_map, enabled, keep } = properties;
        let _changing = self.changing();
        let failed = "keep a token";
        let mut transaction =
            self.shared.db.begin().await.map_err(ControlError::database(failed))?;
        if scope_maps::find(&mut transaction, registry, scope_map).await?.is_none() {
            return Err(scope_maps::not_found(scope_map));
        }
        if let Some(known) = known {
            let found = find(&mut transaction, registry, name).await?;
            let is_same = |found: Token| {
                (found.enabled, found.scope_map, found.created_at)
                    == (known.enabled, known.scope_map.clone(), known.created_at)
            };
            if !found.is_some_and(is_same) {
                return Err(changed_meanwhile("token", name));
            }
        }
        let put = sqlx::query(
            "INSERT INTO tokens (registry, name_key, name, scope_map, enabled, created_at)
             SELECT $1, $2, $3, $4, $5, $6
             WHERE (SELECT COUNT(*) FROM tokens WHERE registry = $1 AND name_key <> $2) < $7
             ON CONFLICT (registry, name_key) DO UPDATE SET scope_map = excluded.scope_map,
                enabled = excluded.enabled",
        )
        .bind(registry.as_str())
        .bind(name.key())
        .bind(name.as_str())
        .bind(scope_map.key())
        .bind(enabled)
        .bind(self.shared.clock.now())
        .bind(TOKENS_MAX)
        .execute(&mut *transaction)
        .await
        .map_err(ControlError::database(failed))?;
        if put.rows_affected() == 0 {
            return Err(too_many("tokens", TOKENS_MAX));
        }
        let gone = PasswordSlot::ALL.into_iter();
        for slot in gone.filter(|slot| keep.as_ref().is_some_and(|keep| !keep.contains(slot))) {
            delete_password(&mut transaction, registry, name, slot).await?;
        }
        let token = find(&mut transaction, registry, name).await?;
        transaction.commit().await.map_err(ControlError::database(failed))?;
        token.ok_or_else(|| not_found(name))
    }

    pub async fn delete_token(&self, registry: &RegistryName, name: &TokenName) -> Result<()> {
        let failed = "delete a token";
        let _changing = self.changing();
        let mut transaction =
            self.shared.db.begin().await.map_err(ControlError::database(failed))?;
        for slot in PasswordSlot::ALL {
            delete_password(&mut transaction, registry, name, slot).await?;
        }
        let deleted = sqlx::query("DELETE FROM tokens WHERE registry = $1 AND name_key = $2")
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

    /// Makes new passwords; those that the slots had open nothing any more, nor what was got with
    /// them.
    pub async fn make_passwords(
        &self,
        registry: &RegistryName,
        name: &TokenName,
        slots: &[PasswordSlot],
        expires_at: Option<Millis>,
    ) -> Result<Vec<NewPassword>> {
        let (failed, now) = ("make a password", self.shared.clock.now());
        let _changing = self.changing();
        if expires_at.is_some_and(|at| at <= now) {
            let message = "a password cannot have expired when it is made".to_owned();
            return Err(ControlError::Invalid { message, hint: None });
        }
        let mut transaction =
            self.shared.db.begin().await.map_err(ControlError::database(failed))?;
        if find(&mut transaction, registry, name).await?.is_none() {
            return Err(not_found(name));
        }
        let mut made = Vec::new();
        for slot in PasswordSlot::ALL.into_iter().filter(|slot| slots.contains(slot)) {
            let password = password::random()?;
            delete_password(&mut transaction, registry, name, slot).await?;
            sqlx::query(
                "INSERT INTO token_passwords (registry, name_key, slot, digest, created_at,
                    expires_at) VALUES ($1, $2, $3, $4, $5, $6)",
            )
            .bind(registry.as_str())
            .bind(name.key())
            .bind(slot.number())
            .bind(password::digest(&password).to_string())
            .bind(now)
            .bind(expires_at)
            .execute(&mut *transaction)
            .await
            .map_err(ControlError::database(failed))?;
            made.push(NewPassword { slot, password, created_at: now, expires_at });
        }
        transaction.commit().await.map_err(ControlError::database(failed))?;
        Ok(made)
    }

    /// What a request with a token asks for, as it was a few seconds ago at the earliest.
    pub(super) async fn token_access(
        &self,
        registry: &RegistryName,
        name: &TokenName,
    ) -> Result<Option<Arc<TokenAccess>>> {
        let (key, now) = ((registry.clone(), name.key()), self.shared.clock.now());
        let began = match self.shared.tokens.get(&key, now) {
            Ok(known) => return Ok(known),
            Err(began) => began,
        };
        let mut connection = self.connection().await?;
        let token = find(&mut connection, registry, name).await?;
        let access = match token {
            None => None,
            Some(token) => {
                let map = scope_maps::find(&mut connection, registry, &token.scope_map).await?;
                map.map(|map| Arc::new(TokenAccess { token, scope_map: Arc::new(map) }))
            }
        };
        self.shared.tokens.put(key, access.clone(), began, now);
        Ok(access)
    }
}

async fn delete_password(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    name: &TokenName,
    slot: PasswordSlot,
) -> Result<()> {
    let deleted = sqlx::query(
        "DELETE FROM token_passwords WHERE registry = $1 AND name_key = $2 AND slot = $3",
    )
    .bind(registry.as_str())
    .bind(name.key())
    .bind(slot.number())
    .execute(connection)
    .await;
    deleted.map(drop).map_err(ControlError::database("delete a password"))
}

async fn find(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    name: &TokenName,
) -> Result<Option<Token>> {
    let row = sqlx::query(
        "SELECT t.*, m.name AS map_name FROM tokens t LEFT JOIN scope_maps m
            ON m.registry = t.registry AND m.name_key = t.scope_map
         WHERE t.registry = $1 AND t.name_key = $2",
    )
    .bind(registry.as_str())
    .bind(name.key())
    .fetch_optional(&mut *connection)
    .await
    .map_err(ControlError::database("read a token"))?;
    match row {
        None => Ok(None),
        Some(row) => token_of(connection, &row).await.map(Some),
    }
}

async fn token_of(connection: &mut SqliteConnection, row: &SqliteRow) -> Result<Token> {
    let key: &str = column(row, "name_key")?;
    let registry: &str = column(row, "registry")?;
    let passwords = sqlx::query(
        "SELECT * FROM token_passwords WHERE registry = $1 AND name_key = $2 ORDER BY slot",
    )
    .bind(registry)
    .bind(key)
    .fetch_all(connection)
    .await
    .map_err(ControlError::database("read the passwords of a token"))?;
    Ok(Token {
        registry: parsed(registry)?,
        name: parsed(column(row, "name")?)?,
        // The system's are in no table.
        scope_map: match column::<Option<&str>>(row, "map_name")? {
            Some(name) => parsed(name)?,
            None => parsed(column(row, "scope_map")?)?,
        },
        enabled: column(row, "enabled")?,
        passwords: passwords.iter().map(password_of).collect::<Result<_>>()?,
        created_at: column(row, "created_at")?,
    })
}

fn password_of(row: &SqliteRow) -> Result<TokenPassword> {
    let slot = match column::<i64>(row, "slot")? {
        1 => PasswordSlot::First,
        _ => PasswordSlot::Second,
    };
    Ok(TokenPassword {
        slot,
        digest: parsed(column(row, "digest")?)?,
        created_at: column(row, "created_at")?,
        expires_at: column(row, "expires_at")?,
    })
}

fn not_found(name: &TokenName) -> ControlError {
    ControlError::NotFound { what: format!("token `{name}`") }
}
