//! Tokens of the identities of tasks: who may have one, and the endpoint at which the commands of a
//! run ask for it (identity-and-secrets.md section 3).
//!
//! A token is good for an hour at most. What the endpoint gives is remembered for the attempt, so that a
//! command that asks in a loop costs neither signatures nor records.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use container::LocalServer;
use control::{AuditEntry, ChosenIdentity, Clock, Run, RunLog, run_user};
use engine::{Identities, SecretError};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::audit::Auditor;
use crate::issuer::{Issuer, RunIdentity};
use crate::listen::{self, ConnectionSettings, Ends, Listener};
use crate::run_rights::RunAccess;

/// Bytes of an audience.
const AUDIENCE_MAX: usize = 1024;
/// Connections of one container at once; further ones wait.
const CONNECTIONS_MAX: usize = 16;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a form.
const FORM_MAX: usize = 16 << 10;
/// Tokens of one attempt: by audience and identity.
const TOKENS_MAX: usize = 64;
/// A token that is good for less than this, in seconds, or than half of its time is not given again.
const LEFT_MIN: i64 = 300;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct TokenWanted {
    /// Whom the token is for, and nobody else.
    pub(crate) audience: String,
    /// Absent: the usual identity.
    pub(crate) client_id: Option<Uuid>,
    /// The commit that the run works on, as whoever executes it says.
    pub(crate) commit: Option<String>,
}

/// A token of an identity; times are seconds since 1970.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct GivenToken {
    pub(crate) token: String,
    pub(crate) client_id: Uuid,
    pub(crate) issued: i64,
    pub(crate) expires: i64,
}

/// A token, and when it came, by the clock of whoever remembers it.
#[derive(Clone)]
struct Remembered {
    token: GivenToken,
    since: i64,
}

impl Remembered {
    /// For how many seconds it is good.
    fn left(&self, now: i64) -> i64 {
        let life = self.token.expires - self.token.issued;
        (life - (now - self.since).max(0)).max(0)
    }

    fn is_fresh(&self, now: i64) -> bool {
        self.left(now) > LEFT_MIN.min((self.token.expires - self.token.issued) / 2)
    }
}

/// Gives the runs of tasks tokens of their identities. Cheap to clone.
#[derive(Clone)]
pub(crate) struct TaskIdentities {
    pub(crate) runs: RunAccess,
    pub(crate) accounts: control::Access,
    pub(crate) issuer: Issuer,
    pub(crate) auditor: Auditor,
}

impl TaskIdentities {
    /// A token for an attempt of a run; whether it is given is written down first.
    pub(crate) async fn token(
        &self,
        attempt: (&Run, i64, &RunLog),
        wanted: &TokenWanted,
    ) -> Result<GivenToken, SecretError> {
        let (run, epoch, log) = attempt;
        let given = self.give(run, wanted).await;
        let who = wanted.client_id.map(|id| format!(" as {id}")).unwrap_or_default();
        let entry = AuditEntry {
            registry: Some(run.registry.clone()),
            principal: run_user(&run.registry, run.id, epoch),
            action: "identity.token".to_owned(),
            target: log.masked(&format!("for {}{who}", wanted.audience)),
            outcome: match &given {
                Ok(_) => "given".to_owned(),
                Err(SecretError::Refused(reason)) => format!("refused: {reason}"),
                Err(SecretError::Unavailable(reason)) => format!("not available: {reason}"),
            },
        };
        if let Err(error) = self.auditor.log.append(entry).await {
            tracing::error!(%error, "the use of an identity is not written to the audit log");
            return Err(SecretError::Unavailable(
                "its use cannot be written to the audit log".to_owned(),
            ));
        }
        let given = given?;
        log.hide([&*given.token]);
        Ok(given)
    }

    async fn give(&self, run: &Run, wanted: &TokenWanted) -> Result<GivenToken, SecretError> {
        let TokenWanted { audience, client_id, commit } = wanted;
        let is_fine = (1..=AUDIENCE_MAX).contains(&audience.len())
            && !audience.chars().any(char::is_control)
            && commit.as_ref().is_none_or(|commit| is_commit(commit));
        if !is_fine {
            return refused(format!("an audience has 1 to {AUDIENCE_MAX} printable bytes"));
        }
        let failed = |error: control::ControlError| {
            tracing::error!(%error, "the identities of a run cannot be read");
            SecretError::Unavailable("the identities of the task cannot be read".to_owned())
        };
        let identity = self.runs.identity_of(run).await.map_err(failed)?;
        let Some(chosen) = identity.chosen(*client_id) else {
            return refused(match client_id {
                Some(id) => format!("the task has no identity `{id}`"),
                None if identity.accounts.len() > 1 => {
                    "the task has several identities: say which by `client_id`".to_owned()
                }
                None => "the task has no identity".to_owned(),
            });
        };
        let account = match chosen {
            ChosenIdentity::System(_) => None,
            ChosenIdentity::Account(assigned) => {
                let found = self.accounts.account(&assigned.name).await.map_err(failed)?;
                let is_it = found.is_some_and(|account| account.is_identity(assigned));
                if !is_it {
                    let name = &assigned.name;
                    return refused(format!(
                        "account `{name}` is switched off, or is not there any more"
                    ));
                }
                Some(&assigned.name)
            }
        };
        let run = RunIdentity {
            account,
            commit: commit.as_deref(),
            identity: Some(chosen.id()),
            ..run.into()
        };
        let token = self.issuer.token(&run, audience).await.map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "no identity token");
            SecretError::Unavailable(error.to_string())
        })?;
        let (issued, expires) = (token.issued, token.expires);
        Ok(GivenToken { token: token.text, client_id: chosen.id(), issued, expires })
    }
}

fn refused<T>(reason: String) -> Result<T, SecretError> {
    Err(SecretError::Refused(reason))
}

/// Of git, by either of its hashes.
fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Where an attempt has its tokens from.
#[async_trait]
pub(crate) trait TokenSource: Send + Sync + std::fmt::Debug {
    async fn token(&self, wanted: &TokenWanted) -> Result<GivenToken, SecretError>;
}

/// The tokens of an attempt that the server executes itself.
pub(crate) struct OwnTokens {
    pub(crate) identities: TaskIdentities,
    pub(crate) run: Run,
    pub(crate) epoch: i64,
    pub(crate) log: RunLog,
}

impl std::fmt::Debug for OwnTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "identities of run {}", self.run.id)
    }
}

#[async_trait]
impl TokenSource for OwnTokens {
    async fn token(&self, wanted: &TokenWanted) -> Result<GivenToken, SecretError> {
        self.identities.token((&self.run, self.epoch, &self.log), wanted).await
    }
}

/// The endpoint of one attempt, for all its containers.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint(Arc<Tokens>);

struct Tokens {
    source: Arc<dyn TokenSource>,
    clock: Clock,
    /// Held while one is asked for, so that many who ask at once are given the same.
    given: tokio::sync::Mutex<HashMap<TokenWanted, Remembered>>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.source)
    }
}

impl Endpoint {
    pub(crate) fn new(source: Arc<dyn TokenSource>, clock: Clock) -> Self {
        Self(Arc::new(Tokens { source, clock, given: tokio::sync::Mutex::default() }))
    }

    /// A token, as long as it is good for a while one that was given before.
    pub(crate) async fn token(&self, wanted: TokenWanted) -> Result<GivenToken, SecretError> {
        self.remembered(wanted).await.map(|remembered| remembered.token)
    }

    async fn remembered(&self, wanted: TokenWanted) -> Result<Remembered, SecretError> {
        let now = self.0.clock.now().div_euclid(1000);
        let mut given = self.0.given.lock().await;
        if let Some(known) = given.get(&wanted).filter(|known| known.is_fresh(now)) {
            return Ok(known.clone());
        }
        if given.len() >= TOKENS_MAX {
            given.retain(|_, known| known.is_fresh(now));
        }
        if given.len() >= TOKENS_MAX {
            return refused(format!("a run has tokens for at most {TOKENS_MAX} audiences"));
        }
        let token = self.0.source.token(&wanted).await?;
        let remembered = Remembered { token, since: now };
        given.insert(wanted, remembered.clone());
        Ok(remembered)
    }
}

impl Identities for Endpoint {
    fn server(&self, commit: Option<&str>) -> Arc<dyn LocalServer> {
        Arc::new(Answers { endpoint: self.clone(), commit: commit.map(str::to_owned) })
    }
}

/// Answers one container.
#[derive(Debug, Clone)]
struct Answers {
    endpoint: Endpoint,
    commit: Option<String>,
}

#[async_trait]
impl LocalServer for Answers {
    async fn serve(&self, listener: TcpListener, end: CancellationToken) {
        let settings =
            ConnectionSettings { connections_max: CONNECTIONS_MAX, header_timeout: HEADER_TIMEOUT };
        let ends = Ends { close: end.clone(), cut: end };
        listen::serve(Listener::Clear(listener), router(self.clone()), settings, ends).await;
    }
}

/// The paths, members and errors of the metadata services of clouds, for their clients.
fn router(answers: Answers) -> Router {
    Router::new()
        .route("/metadata/identity/oauth2/token", get(by_query).post(by_form))
        .fallback(async || problem(StatusCode::NOT_FOUND, "not_found", "there is nothing here"))
        .layer(DefaultBodyLimit::max(FORM_MAX))
        .with_state(answers)
}

async fn by_query(
    State(answers): State<Answers>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Response {
    answers.answer(&headers, query.unwrap_or_default().as_bytes()).await
}

async fn by_form(State(answers): State<Answers>, headers: HeaderMap, form: Bytes) -> Response {
    answers.answer(&headers, &form).await
}

impl Answers {
    async fn answer(&self, headers: &HeaderMap, form: &[u8]) -> Response {
        let invalid = |text: &str| problem(StatusCode::BAD_REQUEST, "invalid_request", text);
        // No web page and no proxy sends it, so that nobody is led here.
        let asks = headers.get("metadata").is_some_and(|value| value.as_bytes() == b"true");
        if !asks || headers.contains_key("x-forwarded-for") {
            return invalid("the request needs the header `Metadata: true`, and no proxy");
        }
        let (mut audience, mut client_id) = (None, None);
        for (name, value) in url::form_urlencoded::parse(form) {
            match &*name {
                "resource" => audience = Some(value.into_owned()),
                "client_id" | "clientid" | "object_id" | "principal_id" => {
                    let Ok(id) = value.parse::<Uuid>() else {
                        return invalid("the id of an identity is a UUID");
                    };
                    client_id = Some(id);
                }
                "mi_res_id" | "msi_res_id" => return invalid("name the identity by `client_id`"),
                _ => (),
            }
        }
        let Some(audience) = audience.filter(|audience| !audience.is_empty()) else {
            return invalid("`resource` says whom the token is for");
        };
        let wanted =
            TokenWanted { audience: audience.clone(), client_id, commit: self.commit.clone() };
        match self.endpoint.remembered(wanted).await {
            Ok(remembered) => {
                let now = self.endpoint.0.clock.now().div_euclid(1000);
                let left = remembered.left(now).to_string();
                let given = remembered.token;
                axum::Json(json!({
                    "access_token": given.token,
                    "client_id": given.client_id,
                    "expires_in": left,
                    "ext_expires_in": left,
                    "expires_on": given.expires.to_string(),
                    "not_before": given.issued.to_string(),
                    "resource": audience,
                    "token_type": "Bearer",
                }))
                .into_response()
            }
            Err(SecretError::Refused(reason)) => invalid(&reason),
            Err(SecretError::Unavailable(reason)) => {
                problem(StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable", &reason)
            }
        }
    }
}

fn problem(status: StatusCode, error: &str, description: &str) -> Response {
    let body = json!({ "error": error, "error_description": description });
    (status, axum::Json(body)).into_response()
}
