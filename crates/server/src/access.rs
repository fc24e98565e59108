//! Who may do what: the one place that decides, for the registry protocol and for the API. What is
//! not allowed is refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use control::{Area, ControlError, Identity, Operation, Rights, RunId, attempt_of_user};
use http::{HeaderMap, StatusCode};
use oci::{RegistryName, RepositoryName};
use registry::{
    Access, Actions, Busy, Class, Credentials, Deed, Peer, Proven, RequestContext, Resource,
    is_local,
};

use crate::audit::{Act, Auditor, Route};
use crate::error::ApiError;
use crate::from_api::cut;
use crate::keys::{ADMIN, Keys, Presented};
use crate::rates::Rates;
use crate::run_rights::RunAccess;
use crate::sign_in::Sessions;
use crate::trusted::TrustedIssuers;

const TOO_MANY_REQUESTS: &str = "too many requests within a minute";
const TOO_MANY_GUESSES: &str = "too many credentials that are wrong, or are being checked";

/// Issuers that do not answer are asked again after this.
pub(crate) const KEYS_PAUSE: Duration = Duration::from_secs(10);
const NO_KEYS: &str = "the keys of the token's issuer cannot be fetched now";

/// Begins the name of a token of a registry where it acts.
const TOKEN: &str = "token/";

/// Who makes a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Principal {
    /// Over the socket that only this user can open.
    Owner,
    /// Has the token of the data folder.
    ApiToken,
    Admin,
    Anonymous,
    /// An account, or a token of a registry.
    Known(Identity),
}

impl Principal {
    /// For the journal of tags, and for the tokens of registry clients.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Owner => "owner".to_owned(),
            Self::ApiToken => "token".to_owned(),
            Self::Admin => ADMIN.to_owned(),
            Self::Anonymous => "anonymous".to_owned(),
            Self::Known(Identity::Account(name)) => name.to_string(),
            Self::Known(Identity::Token { registry, name }) => format!("{TOKEN}{registry}/{name}"),
        }
    }

    /// Whom a name means. No account and no token has one of the server's own.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        let own = [Self::Owner, Self::ApiToken, Self::Admin, Self::Anonymous];
        if let Some(own) = own.into_iter().find(|own| own.name() == name) {
            return Some(own);
        }
        if let Some((registry, token)) =
            name.strip_prefix(TOKEN).and_then(|name| name.split_once('/'))
        {
            let (registry, name) = (registry.parse().ok()?, token.parse().ok()?);
            return Some(Self::Known(Identity::Token { registry, name }));
        }
        Some(Self::Known(Identity::Account(name.parse().ok()?)))
    }

    fn proven(&self, credential: String) -> Proven {
        Proven { principal: registry::Principal::new(self.name()), credential }
    }
}

/// What a route asks of whoever uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    May(Operation),
    /// In the repository that the path names.
    Rights(Rights),
    /// The first or the second.
    Either(Rights, Rights),
    /// To see which repositories there are.
    Catalog,
    /// To be the account that the path names, or to see to all of them.
    Own,
    /// To see to the store, which all registries of the server share.
    Store,
}

impl std::fmt::Display for Needs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::May(operation) => write!(f, "the role `{}`", operation.needs()),
            Self::Rights(rights) => f.write_str(&named(*rights)),
            Self::Either(first, second) => write!(f, "{} or {}", named(*first), named(*second)),
            Self::Catalog => f.write_str("the right to see all repositories"),
            Self::Store => write!(f, "{}", Self::May(Operation::Manage)),
            Self::Own => write!(f, "{}, if it is another account,", Self::May(Operation::Govern)),
        }
    }
}

/// What is asked of whoever deletes what is locked, beside what deleting it asks for.
pub(crate) const UNLOCK: Needs = Needs::Rights(Rights::METADATA_WRITE);

/// A server's own credentials may do all; accounts what their roles say, and tokens what their scope
/// maps say; an attempt may use its registry while it holds its run. Requests without any credential
/// may come from this machine only (architecture.md, *Safe by default*).
#[derive(Clone)]
pub(crate) struct ServerAccess {
    pub(crate) keys: Arc<Keys>,
    pub(crate) anonymous_loopback: bool,
    /// What runs may do, and which there are.
    pub(crate) of_runs: RunAccess,
    pub(crate) permissions: control::Access,
    /// Whether the server has one registry.
    pub(crate) only_registry: bool,
    pub(crate) auditor: Auditor,
    pub(crate) rates: Rates,
    pub(crate) trusted: TrustedIssuers,
    pub(crate) sessions: Sessions,
}

impl ServerAccess {
    /// Who uses the API, of a registry if the path names one.
    pub(crate) async fn of_request(
        &self,
        registry: Option<&RegistryName>,
        peer: Peer,
        headers: &HeaderMap,
    ) -> Result<Principal, ApiError> {
        if peer == Peer::Unix {
            return Ok(Principal::Owner);
        }
        let refused = || {
            let hint = match registry {
                Some(_) => {
                    "use `refit login`, or take the token from `keys/api-token` of the data folder"
                }
                None => {
                    "use an account or the server's token; tokens of a registry are for its own routes"
                }
            };
            ApiError::unauthorized("the credential is not valid").hint(hint)
        };
        match Presented::read(headers).map_err(|_| refused())? {
            Presented::Nothing => Err(ApiError::unauthorized("the API needs a token").hint(
                "the server's token lies in `keys/api-token` of its data folder; set `REFIT_TOKEN`, or use `refit login`",
            )),
            Presented::Bearer(token) if self.keys.is_token(&token) => Ok(Principal::ApiToken),
            Presented::Bearer(token) => {
                if let Some(proven) = self.of_session(None, &token).await? {
                    return Ok(Principal::Known(proven.identity));
                }
                if let Some((proven, _)) = self.of_other_issuer(&token).await? {
                    return Ok(Principal::Known(proven.identity));
                }
                self.was_wrong(peer)?;
                Err(refused())
            }
            Presented::Basic(user, password) => {
                if let Some(own) = self.keys.by_password(&user, &password) {
                    return Ok(own);
                }
                let proven = self.authenticate_known(registry, peer, &user, &password).await?;
                Ok(Principal::Known(proven.ok_or_else(refused)?.identity))
            }
        }
    }

    /// Who in the tables a user name and password prove to be. Passwords that people choose are not
    /// compared as often as somebody likes.
    async fn authenticate_known(
        &self,
        registry: Option<&RegistryName>,
        peer: Peer,
        user: &str,
        password: &str,
    ) -> Result<Option<control::Proven>, ApiError> {
        let by_token = self.permissions.authenticate_token(registry, user, password).await?;
        if by_token.is_some() {
            return Ok(by_token);
        }
        if let Some(proven) = self.of_session(Some(user), password).await? {
            return Ok(Some(proven));
        }
        let guess = self.rates.begin_guess(peer, user).await.map_err(too_many_guesses)?;
        let proven = self.permissions.authenticate_account(user, password).await;
        match &proven {
            Ok(Some(_)) => {
                guess.take_back();
                self.rates.was_right(peer, user);
            }
            Err(ControlError::TooManyLogins) => guess.take_back(),
            Ok(None) | Err(_) => (),
        }
        Ok(proven?)
    }

    /// Whose session a text is, if it is one that still holds, of this user.
    async fn of_session(
        &self,
        user: Option<&str>,
        text: &str,
    ) -> Result<Option<control::Proven>, ApiError> {
        let Some((name, credential)) = self.sessions.read(text) else { return Ok(None) };
        if user.is_some_and(|user| !user.eq_ignore_ascii_case(name.as_str())) {
            return Ok(None);
        }
        let proven = self.permissions.proven(&name).await?;
        Ok(proven.filter(|proven| proven.credential == credential))
    }

    /// The account that a token of another issuer proves somebody to be, and for how long.
    async fn of_other_issuer(
        &self,
        token: &str,
    ) -> Result<Option<(control::Proven, Duration)>, ApiError> {
        let found = self.trusted.account_of(token).await.map_err(|error| {
            tracing::error!(%error, "a token cannot be checked");
            ApiError::too_often(NO_KEYS).retry_after(KEYS_PAUSE)
        })?;
        let Some((name, left)) = found else { return Ok(None) };
        Ok(self.permissions.proven(&name).await?.map(|proven| (proven, left)))
    }

    pub(crate) fn was_wrong(&self, peer: Peer) -> Result<(), ApiError> {
        self.rates.was_wrong(peer, Instant::now()).map_err(too_many_guesses)
    }

    /// Refuses who asks too often. A class is counted over the API and the registry together.
    pub(crate) fn count(
        &self,
        principal: &Principal,
        peer: Peer,
        class: Class,
    ) -> Result<(), ApiError> {
        let name = principal.name();
        let name = Some(&*name).filter(|_| *principal != Principal::Anonymous);
        let asked = self.rates.ask(name, peer, class, Instant::now());
        asked.map_err(|wait| ApiError::too_often(TOO_MANY_REQUESTS).retry_after(wait))
    }

    /// Refuses who may not use a route. `registry` is that of its path, and `name` what it is about: a
    /// repository, or an account.
    pub(crate) async fn require(
        &self,
        principal: &Principal,
        registry: Option<&RegistryName>,
        name: Option<&str>,
        needs: Needs,
    ) -> Result<(), ApiError> {
        let identity = match principal {
            Principal::Owner | Principal::ApiToken | Principal::Admin => return Ok(()),
            Principal::Anonymous => return Err(ApiError::unauthorized("the API needs a token")),
            Principal::Known(identity) => identity,
        };
        let is_allowed = match needs {
            Needs::May(operation) => self.permissions.may(identity, registry, operation).await?,
            Needs::Catalog => {
                let rights = self.rights(identity, registry, Area::Catalog).await?;
                rights.contains(Rights::CONTENT_READ)
            }
            Needs::Rights(wanted) => {
                self.in_repository(identity, registry, name).await?.contains(wanted)
            }
            Needs::Either(first, second) => {
                let rights = self.in_repository(identity, registry, name).await?;
                rights.contains(first) || rights.contains(second)
            }
            Needs::Store => {
                let registry = registry.filter(|_| self.only_registry);
                self.permissions.may(identity, registry, Operation::Manage).await?
            }
            Needs::Own => {
                let is_own = matches!(identity, Identity::Account(own)
                    if name.is_some_and(|name| name.eq_ignore_ascii_case(own.as_str())));
                is_own || self.permissions.may(identity, registry, Operation::Govern).await?
            }
        };
        if is_allowed {
            return Ok(());
        }
        let place = match (registry, name) {
            (Some(registry), Some(name))
                if matches!(needs, Needs::Rights(_) | Needs::Either(..)) =>
            {
                format!("repository `{}` of registry `{registry}`", cut(name))
            }
            (Some(registry), _) if needs != Needs::Store || self.only_registry => {
                format!("registry `{registry}`")
            }
            _ => "all registries of this server".to_owned(),
        };
        let hint = match (identity, needs) {
            (Identity::Token { .. }, _) => "a token may do only what its scope map says",
            (Identity::Account(_), Needs::Catalog | Needs::Rights(_) | Needs::Either(..)) => {
                "`refit role assign` gives an account a role, `refit scope-map assign` a scope map"
            }
            (Identity::Account(_), _) => "`refit role assign` gives an account a role",
        };
        let who = principal.name();
        Err(ApiError::forbidden(format!("`{who}` needs {needs} in {place} for this")).hint(hint))
    }

    async fn in_repository(
        &self,
        identity: &Identity,
        registry: Option<&RegistryName>,
        repository: Option<&str>,
    ) -> Result<Rights, ApiError> {
        // A name that is none has nothing in it.
        match repository.map(str::parse::<RepositoryName>) {
            Some(Ok(name)) => self.rights(identity, registry, Area::Repository(&name)).await,
            _ => self.rights(identity, registry, Area::AllRepositories).await,
        }
    }

    async fn rights(
        &self,
        identity: &Identity,
        registry: Option<&RegistryName>,
        area: Area<'_>,
    ) -> Result<Rights, ApiError> {
        let Some(registry) = registry else { return Ok(Rights::NONE) };
        Ok(self.permissions.rights(identity, registry, area).await?)
    }
}

/// `content/read` of a right.
fn named(rights: Rights) -> String {
    format!("`{}`", rights.names().collect::<Vec<_>>().join("`, `"))
}

#[async_trait]
impl Access for ServerAccess {
    async fn authenticate(
        &self,
        registry: &RegistryName,
        request: &RequestContext<'_>,
        credentials: &Credentials,
    ) -> Result<Option<Proven>, Busy> {
        let Credentials { user, password } = credentials;
        if attempt_of_user(user).is_some() {
            let is_its = self.keys.is_run_password(user, password);
            return Ok(is_its.then(|| Proven {
                principal: registry::Principal::new(user.clone()),
                credential: self.credential_of_attempt(user),
            }));
        }
        if let Some(own) = self.keys.by_password(user, password) {
            return Ok(self.keys.fingerprint(&own).map(|credential| own.proven(credential)));
        }
        match self.authenticate_known(Some(registry), request.peer, user, password).await {
            Ok(proven) => {
                Ok(proven.map(|proven| Principal::Known(proven.identity).proven(proven.credential)))
            }
            Err(ApiError { retry_after: Some(retry_after), .. }) => {
                Err(Busy { what: TOO_MANY_GUESSES, retry_after })
            }
            // It is in the log.
            Err(_) => Ok(None),
        }
    }

    fn anonymous(&self, request: &RequestContext<'_>) -> Option<registry::Principal> {
        let allowed = match request.peer {
            // Only its owner can open the socket, and no web page.
            Peer::Unix => true,
            Peer::Tcp(_) => self.anonymous_loopback && is_local(request),
            Peer::Unknown => false,
        };
        allowed.then(registry::Principal::anonymous)
    }

    async fn holds(&self, principal: &registry::Principal, credential: &str) -> bool {
        if attempt_of_user(principal.name()).is_some() {
            // Whether it still holds its run is asked with every request.
            return self.credential_of_attempt(principal.name()) == credential;
        }
        match Principal::by_name(principal.name()) {
            Some(Principal::Known(identity)) => {
                let holds = self.permissions.holds(&identity, credential).await;
                holds.inspect_err(failed).unwrap_or_default()
            }
            Some(own) => self.keys.fingerprint(&own).is_some_and(|known| known == credential),
            None => false,
        }
    }

    async fn exchange(
        &self,
        _: &RegistryName,
        peer: Peer,
        token: &str,
    ) -> Result<Option<(Proven, Duration)>, Busy> {
        match self.of_other_issuer(token).await {
            Ok(Some((proven, left))) => {
                let control::Proven { identity, credential } = proven;
                Ok(Some((Principal::Known(identity).proven(credential), left)))
            }
            Ok(None) => self.wrong_token(peer).map(|()| None),
            Err(ApiError { retry_after: Some(retry_after), .. }) => {
                Err(Busy { what: NO_KEYS, retry_after })
            }
            // It is in the log.
            Err(_) => Ok(None),
        }
    }

    fn admit(&self, principal: &registry::Principal, peer: Peer, class: Class) -> Result<(), Busy> {
        let name = Some(principal.name());
        let name = name.filter(|_| *principal != registry::Principal::anonymous());
        let asked = self.rates.ask(name, peer, class, Instant::now());
        asked.map_err(|retry_after| Busy { what: TOO_MANY_REQUESTS, retry_after })
    }

    fn wrong_token(&self, peer: Peer) -> Result<(), Busy> {
        let wrong = self.rates.was_wrong(peer, Instant::now());
        wrong.map_err(|retry_after| Busy { what: TOO_MANY_GUESSES, retry_after })
    }

    async fn note(&self, act: registry::Act<'_>) {
        // Clients ask without credentials first, to be told how to show them.
        if !act.with_credentials && act.status == StatusCode::UNAUTHORIZED {
            return;
        }
        let route = match act.deed {
            Some(Deed::Push(image)) => Route::Registry("push", image.clone()),
            Some(Deed::Delete(image)) => Route::Registry("delete", image.clone()),
            Some(Deed::Update(target)) => Route::Registry("update", target.clone()),
            Some(Deed::Restore(image)) => Route::Registry("restore", image.clone()),
            Some(Deed::Login) => Route::Login,
            None => Route::Other,
        };
        let noted = Act {
            registry: act.registry.cloned(),
            principal: act.principal.map(|principal| principal.name().to_owned()),
            peer: act.peer,
            method: act.method.clone(),
            path: act.path.to_owned(),
            route,
            detail: None,
        };
        self.auditor.note(noted, act.status).await;
    }

    async fn permitted(
        &self,
        principal: &registry::Principal,
        registry: &RegistryName,
        resource: &Resource,
        wanted: Actions,
    ) -> Actions {
        if let Some((own, run, epoch)) = attempt_of_user(principal.name()) {
            let runs = &self.of_runs.runs;
            let held =
                own == *registry && runs.holds_lease(&own, run, epoch).await.unwrap_or_default();
            if !held {
                return Actions::NONE;
            }
            let allowed = Actions::PULL | Actions::PUSH | Actions::DELETE | Actions::METADATA_READ;
            return wanted & allowed & self.rights_of_run(registry, run, resource).await;
        }
        match Principal::by_name(principal.name()) {
            Some(Principal::Known(identity)) => {
                let rights = self.permissions.rights(&identity, registry, area(resource)).await;
                let rights = rights.inspect_err(failed).unwrap_or_default();
                wanted & actions(rights)
            }
            Some(Principal::Anonymous) => match resource {
                Resource::Catalog => wanted,
                Resource::Repository(_) | Resource::AllRepositories => {
                    let metadata = Actions::METADATA_READ;
                    wanted & (Actions::PULL | Actions::PUSH | Actions::DELETE | metadata)
                }
            },
            Some(own) if self.keys.fingerprint(&own).is_some() => wanted,
            Some(_) | None => Actions::NONE,
        }
    }
}

impl ServerAccess {
    /// What a run may do in its registry, while it holds it.
    async fn rights_of_run(
        &self,
        registry: &RegistryName,
        run: RunId,
        resource: &Resource,
    ) -> Actions {
        if !self.of_runs.is_by_identity(registry) {
            return Actions::ALL;
        }
        let run = self.of_runs.runs.get(registry, run).await;
        let Some(run) = run.inspect_err(failed).unwrap_or_default() else { return Actions::NONE };
        match self.of_runs.of(&run).await.inspect_err(failed) {
            Ok(Some(own)) => actions(own.rights(area(resource))),
            Ok(None) => Actions::ALL,
            Err(_) => Actions::NONE,
        }
    }

    fn credential_of_attempt(&self, user: &str) -> String {
        self.keys.run_password(user)[..32].to_owned()
    }
}

fn area(resource: &Resource) -> Area<'_> {
    match resource {
        Resource::Repository(name) => Area::Repository(name),
        Resource::AllRepositories => Area::AllRepositories,
        Resource::Catalog => Area::Catalog,
    }
}

/// What the registry protocol calls rights.
fn actions(rights: Rights) -> Actions {
    let pairs = [
        (Rights::CONTENT_READ, Actions::PULL),
        (Rights::CONTENT_WRITE, Actions::PUSH),
        (Rights::CONTENT_DELETE, Actions::DELETE),
        (Rights::METADATA_READ, Actions::METADATA_READ),
        (Rights::METADATA_WRITE, Actions::METADATA_WRITE),
    ];
    let allowed = pairs.into_iter().filter(|(right, _)| rights.contains(*right));
    allowed.fold(Actions::NONE, |all, (_, action)| all | action)
}

fn too_many_guesses(wait: Duration) -> ApiError {
    ApiError::too_often(TOO_MANY_GUESSES).retry_after(wait)
}

/// Whoever cannot be looked up is refused.
pub(crate) fn failed(error: &control::ControlError) {
    tracing::error!(%error, "a permission could not be looked up");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rates::RateSettings;

    #[test]
    fn each_principal_is_found_by_its_name() {
        let account = Identity::Account("ann@example.org".parse().unwrap());
        let (registry, name) = (RegistryName::default(), "robot".parse().unwrap());
        let token = Identity::Token { registry, name };
        for principal in [
            Principal::Owner,
            Principal::ApiToken,
            Principal::Admin,
            Principal::Anonymous,
            Principal::Known(account),
            Principal::Known(token),
        ] {
            assert_eq!(Principal::by_name(&principal.name()), Some(principal));
        }
        for nobody in ["", "token/", "token/local", "token/local/a/b", "a b", "run/local/c01/1"] {
            assert_eq!(Principal::by_name(nobody), None, "{nobody}");
        }
    }

    /// A run that was claimed, with access to its registry.
    async fn claimed(data: &std::path::Path) -> (ServerAccess, control::Attempt) {
        let clock = control::Clock::new(|| 1_700_000_000_000);
        let db = db::Db::in_memory().await.unwrap();
        let logs = control::Logs::new(data.join("logs"), 1 << 20, clock.clone());
        let day = std::time::Duration::from_secs(24 * 3600);
        let settings = control::RunSettings {
            concurrency: 1,
            workers: 1,
            attempts_max: 1,
            queue_length_max: 1,
            queue_keep: day,
            log_keep: day,
            run_keep: day,
        };
        let secret_keys = control::SecretKeys::new([7; 32], []);
        let runs =
            control::Runs::open(db.clone(), None, logs, clock.clone(), secret_keys, settings)
                .await
                .unwrap();
        let request = control::TaskRequest {
            file: control::TaskText::Inline("steps: []".into()),
            values_file: None,
            values: Vec::new(),
            context: None,
            timeout: day,
            platform: oci::Platform::new("linux", "amd64", None),
            archived: false,
            logins: control::Logins::default(),
            egress: Vec::new(),
        };
        runs.submit(&RegistryName::default(), request).await.unwrap();
        let attempt = control::Queue::claim(&runs).await.unwrap().unwrap();
        let permissions = control::Access::open(db.clone(), clock.clone()).await.unwrap();
        let log = control::Audit::open(db, clock.clone()).await.unwrap();
        let auditor = Auditor::new(log, clock.clone());
        let keys = Arc::new(Keys::open(data, true).unwrap());
        let access = ServerAccess {
            keys: Arc::clone(&keys),
            anonymous_loopback: false,
            of_runs: RunAccess {
                by_identity: Arc::default(),
                tasks: control::Tasks::open(runs.clone()).await.unwrap(),
                runs,
                permissions: permissions.clone(),
                keys,
            },
            permissions,
            only_registry: true,
            auditor,
            rates: Rates::new(RateSettings::default()),
            trusted: TrustedIssuers::new(&Default::default(), None, clock.clone()).unwrap(),
            sessions: Sessions::new(b"key", clock),
        };
        (access, attempt)
    }

    #[tokio::test]
    async fn what_a_run_may_ends_with_it_and_with_its_attempt() {
        let data = tempfile::tempdir().unwrap();
        let (access, attempt) = claimed(data.path()).await;
        let registry = RegistryName::default();
        let user = control::run_user(&registry, attempt.run.id, attempt.epoch);
        let context = RequestContext {
            peer: Peer::Unknown,
            host: "localhost",
            origin: None,
            fetch_site: None,
            forwarded: false,
        };
        let log_in = async |user: &str, password: String| {
            let credentials = Credentials { user: user.to_owned(), password };
            access.authenticate(&registry, &context, &credentials).await.unwrap()
        };
        let password = access.keys.run_password(&user);
        let proven = log_in(&user, password.clone()).await.unwrap();
        let app = Resource::Repository("app".parse().unwrap());
        let permitted = async |registry: &RegistryName| {
            access.permitted(&proven.principal, registry, &app, Actions::ALL).await
        };
        let all = Actions::PULL | Actions::PUSH | Actions::DELETE | Actions::METADATA_READ;
        assert_eq!(permitted(&registry).await, all);
        assert_eq!(permitted(&"other".parse().unwrap()).await, Actions::NONE);
        // Nobody else is it, nor is it anybody else.
        let next = control::run_user(&registry, attempt.run.id, attempt.epoch + 1);
        for (user, password) in [
            (&*next, password.clone()),
            (&*user, access.keys.attempt_token(&user)),
            ("admin", password.clone()),
            (&*user, String::new()),
        ] {
            assert_eq!(log_in(user, password).await, None, "{user}");
        }
        let outcome = control::Outcome::of(control::End::Succeeded);
        let status = control::RunStatus::Succeeded;
        assert!(attempt.queue.finish(&attempt, status, None, &outcome).await.unwrap());
        assert_eq!(permitted(&registry).await, Actions::NONE);
    }

    #[test]
    fn every_right_is_an_action() {
        assert_eq!(actions(Rights::ALL), Actions::ALL);
        assert_eq!(actions(Rights::NONE), Actions::NONE);
        let push = actions(Rights::CONTENT_READ | Rights::CONTENT_WRITE);
        assert_eq!(push, Actions::PULL | Actions::PUSH);
    }
}
