//! Who may do what: accounts with their roles, tokens with their scope maps (identity-and-secrets.md
//! section 7, registry.md section 4). What is not allowed is refused.
//!
//! Start with [`Access::authenticate`], [`Access::rights`] and [`Access::may`]. Each decision is made
//! by what the database says, a few seconds ago at the earliest, and at once in the process that
//! changed it.

mod accounts;
mod holders;
mod lately;
mod password;
mod rights;
mod role;
mod scope_maps;
mod tokens;

pub use accounts::{Account, AccountKind, AccountProperties, BadKind};
pub use holders::{Assignment, BadHolder, Granted, Holder};
pub use rights::{BadScope, RepositoryPattern, Rights, Scope};
pub use role::{BadRole, Operation, Role};
pub use scope_maps::{ScopeMap, read_scopes};
pub use tokens::{BadSlot, NewPassword, PasswordSlot, Token, TokenPassword, TokenProperties};

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use db::Db;
use oci::{RegistryName, RepositoryName};
use ring::hmac;
use sqlx::Sqlite;
use sqlx::pool::PoolConnection;
use uuid::Uuid;

use crate::{AccountName, ChosenIdentity, Clock, ControlError, Result, TokenName};
use accounts::AccountAccess;
use lately::Lately;
use tokens::TokenAccess;

/// Names that the server itself acts under.
const RESERVED: [&str; 6] = ["admin", "anonymous", "owner", "refit", "server", "token"];

/// Passwords of accounts that were right are remembered for so many accounts.
const VERIFIED_MAX: usize = 10_000;

/// A commit takes no longer.
const COMMIT_TIME: std::time::Duration = std::time::Duration::from_secs(1);

/// Bytes of a description.
const DESCRIPTION_MAX: usize = 256;

/// Somebody who is in the tables.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    Account(AccountName),
    Token { registry: RegistryName, name: TokenName },
}

/// Somebody who has proven who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    pub identity: Identity,
    /// A fingerprint of the password that was used ([`Access::holds`]).
    pub credential: String,
}

/// What rights are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area<'a> {
    Repository(&'a RepositoryName),
    /// Every repository, those to come included.
    AllRepositories,
    /// The list of repositories; reading it is [`Rights::CONTENT_READ`].
    Catalog,
}

/// Everybody's permissions. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    shared: Arc<Shared>,
}

struct Shared {
    db: Db,
    clock: Clock,
    tokens: Lately<(RegistryName, String), Option<Arc<TokenAccess>>>,
    accounts: Lately<String, Option<Arc<AccountAccess>>>,
    /// Scope maps of accounts and tasks, by their ids.
    assigned: Lately<(RegistryName, Uuid), Option<Arc<ScopeMap>>>,
    /// Signs passwords that were right: their hashes take long to compute.
    key: hmac::Key,
    verified: Mutex<HashMap<String, hmac::Tag>>,
}

impl Access {
    pub async fn open(db: Db, clock: Clock) -> Result<Self> {
        let failed = "prepare the tables of accounts and tokens";
        let schema: Vec<&'static str> = [scope_maps::SCHEMA]
            .into_iter()
            .chain(tokens::SCHEMA)
            .chain(accounts::SCHEMA)
            .chain(holders::SCHEMA)
            .collect();
        db.migrate("access", &schema).await.map_err(ControlError::database(failed))?;
        let shared = Shared {
            db,
            clock,
            tokens: Lately::new(),
            accounts: Lately::new(),
            assigned: Lately::new(),
            key: hmac::Key::new(hmac::HMAC_SHA256, &password::random_bytes()?),
            verified: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Who a user name and password prove to be: a token of the registry, or an account.
    pub async fn authenticate(
        &self,
        registry: Option<&RegistryName>,
        user: &str,
        password: &str,
    ) -> Result<Option<Proven>> {
        match self.authenticate_token(registry, user, password).await? {
            Some(proven) => Ok(Some(proven)),
            None => self.authenticate_account(user, password).await,
        }
    }

    /// The same for tokens alone, whose passwords are random: nobody guesses them.
    pub async fn authenticate_token(
        &self,
        registry: Option<&RegistryName>,
        user: &str,
        password: &str,
    ) -> Result<Option<Proven>> {
        if let (Some(registry), Ok(name)) = (registry, user.parse::<TokenName>())
            && let Some(found) = self.token_access(registry, &name).await?
            && let Some(opened) = found.opened_by(password, self.shared.clock.now())
        {
            let (registry, name) = (registry.clone(), found.token.name.clone());
            let credential = opened.fingerprint();
            return Ok(Some(Proven { identity: Identity::Token { registry, name }, credential }));
        }
        Ok(None)
    }

    /// The same for accounts alone.
    pub async fn authenticate_account(&self, user: &str, password: &str) -> Result<Option<Proven>> {
        let found = match user.parse::<AccountName>() {
            Ok(name) => self.account_access(&name).await?,
            Err(_) => None,
        };
        let is_right = self.is_password_of(found.as_deref(), password).await?;
        Ok(found.filter(|found| is_right && found.account.enabled).map(|found| Proven {
            identity: Identity::Account(found.account.name.clone()),
            credential: self.fingerprint(&found),
        }))
    }

    /// An account that is proven otherwise than by its password, with the fingerprint of that
    /// ([`Self::holds`]); nobody, if it is switched off.
    pub async fn proven(&self, name: &AccountName) -> Result<Option<Proven>> {
        let found = self.account_access(name).await?;
        let found = found.filter(|found| found.account.enabled);
        Ok(found.map(|found| Proven {
            identity: Identity::Account(found.account.name.clone()),
            credential: self.fingerprint(&found),
        }))
    }

    /// Whether what somebody proved themselves with is good as it ever was.
    pub async fn holds(&self, identity: &Identity, credential: &str) -> Result<bool> {
        match identity {
            Identity::Account(name) => {
                let found = self.account_access(name).await?;
                let found = found.filter(|found| found.account.enabled);
                Ok(found.is_some_and(|found| self.fingerprint(&found) == credential))
            }
            Identity::Token { registry, name } => {
                let found = self.token_access(registry, name).await?;
                let now = self.shared.clock.now();
                Ok(found.is_some_and(|found| found.holds(credential, now)))
            }
        }
    }

    /// What somebody may do there.
    pub async fn rights(
        &self,
        identity: &Identity,
        registry: &RegistryName,
        area: Area<'_>,
    ) -> Result<Rights> {
        Ok(self.granted(identity, registry).await?.rights(area))
    }

    /// What somebody may do in the repositories of a registry: an account by its role and its scope
    /// map, a token by its scope map.
    pub async fn granted(&self, identity: &Identity, registry: &RegistryName) -> Result<Granted> {
        match identity {
            Identity::Account(name) => match self.account_access(name).await? {
                Some(found) => self.granted_to(&found.account, registry).await,
                None => Ok(Granted::default()),
            },
            Identity::Token { registry: own, .. } if own != registry => Ok(Granted::default()),
            Identity::Token { name, .. } => {
                let found = self.token_access(registry, name).await?;
                let scope_map = found.map(|found| Arc::clone(&found.scope_map));
                Ok(Granted { everywhere: Rights::NONE, scope_map })
            }
        }
    }

    /// The same for an identity of a task: the task itself, or a service principal that is that
    /// account still and is switched on.
    pub async fn granted_to_identity(
        &self,
        identity: ChosenIdentity<'_>,
        registry: &RegistryName,
    ) -> Result<Granted> {
        match identity {
            ChosenIdentity::System(id) => {
                let scope_map = self.scope_map_of(registry, id).await?;
                Ok(Granted { everywhere: Rights::NONE, scope_map })
            }
            ChosenIdentity::Account(assigned) => {
                let found = self.account_access(&assigned.name).await?;
                let found = found.filter(|found| found.account.is_identity(assigned));
                match found {
                    Some(found) => self.granted_to(&found.account, registry).await,
                    None => Ok(Granted::default()),
                }
            }
        }
    }

    async fn granted_to(&self, account: &Account, registry: &RegistryName) -> Result<Granted> {
        let everywhere = account.role(Some(registry)).map_or(Rights::NONE, Role::rights);
        let scope_map = self.scope_map_of(registry, account.id()).await?;
        Ok(Granted { everywhere, scope_map })
    }

    /// Whether somebody may ask the API for this, in a registry or of the server as a whole. Tokens are
    /// for what is in repositories, and for nothing else.
    pub async fn may(
        &self,
        identity: &Identity,
        registry: Option<&RegistryName>,
        operation: Operation,
    ) -> Result<bool> {
        let Identity::Account(name) = identity else { return Ok(false) };
        let found = self.account_access(name).await?;
        let role = found.and_then(|found| found.account.role(registry));
        Ok(role.is_some_and(|role| role.may(operation)))
    }

    async fn is_password_of(&self, of: Option<&AccountAccess>, password: &str) -> Result<bool> {
        let Some(found) = of else { return password::is_of(None, password.to_owned()).await };
        let key = found.account.name.key();
        let mut text = found.password.clone().into_bytes();
        text.push(0);
        text.extend_from_slice(password.as_bytes());
        let known = self.verified().get(&key).copied();
        let is_known = known
            .is_some_and(|known| hmac::verify(&self.shared.key, &text, known.as_ref()).is_ok());
        if is_known {
            return Ok(true);
        }
        if !password::is_of(Some(found.password.clone()), password.to_owned()).await? {
            return Ok(false);
        }
        let mut verified = self.verified();
        if verified.len() >= VERIFIED_MAX {
            verified.clear();
        }
        verified.insert(key, hmac::sign(&self.shared.key, &text));
        Ok(true)
    }

    /// Tells one password of an account from the next: its hash, which has a salt of its own, hashed
    /// once more.
    fn fingerprint(&self, of: &AccountAccess) -> String {
        oci::Digest::of(of.password.as_bytes()).hex()[..32].to_owned()
    }

    fn verified(&self) -> std::sync::MutexGuard<'_, HashMap<String, hmac::Tag>> {
        self.shared.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something is about to change: when this is dropped, all is forgotten that was read. Whoever
    /// asked for the change may leave at any moment.
    fn changing(&self) -> Changing {
        Changing(Arc::clone(&self.shared))
    }

    async fn connection(&self) -> Result<PoolConnection<Sqlite>> {
        let connection = self.shared.db.reads().acquire().await;
        connection.map_err(ControlError::database("read who may do what"))
    }
}

struct Changing(Arc<Shared>);

impl Drop for Changing {
    fn drop(&mut self) {
        self.0.forget();
        // A commit that was under way comes to its end, also if nobody waits for it any more.
        let shared = Arc::clone(&self.0);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(COMMIT_TIME).await;
                shared.forget();
            });
        }
    }
}

impl Shared {
    fn forget(&self) {
        self.tokens.forget();
        self.accounts.forget();
        self.assigned.forget();
    }
}

/// Names that are the server's own cannot be somebody else's.
fn refuse_reserved(name: &str) -> Result<()> {
    if !RESERVED.iter().any(|reserved| reserved.eq_ignore_ascii_case(name)) {
        return Ok(());
    }
    let message = format!("`{name}` is a name of the server's own");
    Err(ControlError::Invalid { message, hint: Some("choose another name".into()) })
}

pub(crate) fn check_description(description: &str) -> Result<()> {
    if description.len() <= DESCRIPTION_MAX && !description.chars().any(char::is_control) {
        return Ok(());
    }
    let message = format!("a description has one line of at most {DESCRIPTION_MAX} bytes");
    Err(ControlError::Invalid { message, hint: None })
}
