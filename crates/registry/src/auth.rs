//! Who asks and whether they may; and the Docker token flow, in which clients exchange
//! credentials for short-lived tokens (registry.md section 4).

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, Method, StatusCode, request};
use oci::{RegistryName, RepositoryName};
use serde_json::json;

use crate::access::{
    Actions, Class, Credentials, Deed, Principal, Proven, RequestContext, Resource,
};
use crate::error::{ApiError, Code};
use crate::route::{Metadata, Route};
use crate::router::{Known, Server};
use crate::token::{Grant, Scope, TokenError, TokenKind};

/// What stands between a request and the registry it asks for.
pub(crate) struct Gate<'a> {
    pub(crate) server: &'a Server,
    pub(crate) registry: &'a RegistryName,
    pub(crate) context: RequestContext<'a>,
    /// Whether the client reached us over TLS.
    pub(crate) secure: bool,
}

/// Who was let in, and by what.
pub(crate) struct Caller {
    pub(crate) principal: Principal,
    /// The token it came with; [`crate::Access`] is asked each time besides.
    grant: Option<Grant>,
}

impl Caller {
    pub(crate) fn name(&self) -> &str {
        self.principal.name()
    }
}

/// A permission that a request needs.
struct Need {
    resource: Resource,
    actions: Actions,
    /// What does as well; nothing, if it is empty.
    or: Actions,
}

impl Need {
    /// `None`: any principal will do.
    fn of(route: &Route<'_>, method: &Method) -> Option<Self> {
        let (resource, upload) = match route {
            Route::Base => return None,
            Route::Metadata(name, what) => return Some(Self::of_metadata(name, what, method)),
            Route::Catalog | Route::DeletedCatalog => (Resource::Catalog, false),
            Route::Uploads(name) | Route::Upload(name, _) => {
                (Resource::Repository(name.clone()), true)
            }
            Route::Tags(name)
            | Route::Manifest(name, _)
            | Route::Blob(name, _)
            | Route::Referrers(name, _) => (Resource::Repository(name.clone()), false),
        };
        let actions = match *method {
            _ if upload => Actions::PUSH,
            Method::GET | Method::HEAD => Actions::PULL,
            Method::DELETE => Actions::DELETE,
            _ => Actions::PUSH,
        };
        Some(Self { resource, actions, or: Actions::NONE })
    }

    fn of_metadata(name: &RepositoryName, what: &Metadata<'_>, method: &Method) -> Self {
        let resource = Resource::Repository(name.clone());
        let (actions, or) = match (method, what) {
            (&Method::GET | &Method::HEAD, _) => (Actions::METADATA_READ, Actions::NONE),
            // As the API has it.
            (&Method::DELETE, Metadata::Tag(_)) => (Actions::DELETE, Actions::METADATA_WRITE),
            (&Method::DELETE, _) => (Actions::DELETE, Actions::NONE),
            (&Method::POST, _) => (Actions::PUSH | Actions::DELETE, Actions::NONE),
            _ => (Actions::METADATA_WRITE, Actions::NONE),
        };
        Self { resource, actions, or }
    }

    /// The scope to ask a token for. Clients that push also look what is there already.
    fn scope(&self) -> String {
        match self.resource {
            Resource::Catalog => format!("{}:*", self.resource),
            _ if self.actions == Actions::PUSH => format!("{}:pull,push", self.resource),
            _ => format!("{}:{}", self.resource, self.actions),
        }
    }
}

/// How a challenge says why a token did not do (RFC 6750 section 3.1).
const INVALID_TOKEN: &str = "invalid_token";
const INSUFFICIENT_SCOPE: &str = "insufficient_scope";

impl Gate<'_> {
    /// Finds out who asks and refuses those who may not.
    pub(crate) async fn admit(
        &self,
        route: &Route<'_>,
        method: &Method,
        headers: &HeaderMap,
        known: &mut Option<Principal>,
    ) -> Result<Caller, ApiError> {
        let need = Need::of(route, method);
        let caller = self.identify(headers, need.as_slice()).await?;
        *known = Some(caller.principal.clone());
        self.count(&caller.principal, Class::of(method))?;
        if matches!(route, Route::Referrers(..)) {
            self.count(&caller.principal, Class::Referrers)?;
        }
        match need {
            Some(need) if self.meets(&caller, &need).await => Ok(caller),
            Some(need) => Err(self.refusal(&caller, &need).await),
            None if self.needs_login(&caller).await => Err(self.challenge(&[], None)),
            None => Ok(caller),
        }
    }

    async fn meets(&self, caller: &Caller, need: &Need) -> bool {
        self.may(caller, &need.resource, need.actions).await
            || !need.or.is_empty() && self.may(caller, &need.resource, need.or).await
    }

    /// Whether a caller who pushes to `target` may also pull from `source`. When only its
    /// token keeps it from that, the answer asks for one that has both scopes.
    pub(crate) async fn may_mount(
        &self,
        caller: &Caller,
        target: &RepositoryName,
        source: &RepositoryName,
    ) -> Result<bool, ApiError> {
        let need = |name: &RepositoryName, actions| {
            let resource = Resource::Repository(name.clone());
            Need { resource, actions, or: Actions::NONE }
        };
        let pull = need(source, Actions::PULL);
        if self.may(caller, &pull.resource, pull.actions).await {
            return Ok(true);
        }
        let permitted = self.permitted(&caller.principal, &pull.resource, pull.actions).await;
        match caller.grant.is_some() && permitted.contains(pull.actions) {
            true => {
                let needs = [need(target, Actions::PUSH), pull];
                Err(self.challenge(&needs, Some(INSUFFICIENT_SCOPE)))
            }
            false => Ok(false),
        }
    }

    /// Whether the caller may do this as well. A token opens no more than its principal may by now:
    /// its run may have ended, or its role been taken away.
    pub(crate) async fn may(&self, caller: &Caller, resource: &Resource, actions: Actions) -> bool {
        let is_granted = caller.grant.as_ref().is_none_or(|grant| grant.allows(resource, actions));
        is_granted && self.permitted(&caller.principal, resource, actions).await.contains(actions)
    }

    async fn permitted(
        &self,
        principal: &Principal,
        resource: &Resource,
        wanted: Actions,
    ) -> Actions {
        let access = &self.server.state.access;
        access.permitted(principal, self.registry, resource, wanted).await & wanted
    }

    async fn identify(&self, headers: &HeaderMap, need: &[Need]) -> Result<Caller, ApiError> {
        let state = &self.server.state;
        let Some(header) = headers.get(AUTHORIZATION) else {
            let principal = state.access.anonymous(&self.context);
            let principal = principal.ok_or_else(|| self.challenge(need, None))?;
            return Ok(Caller { principal, grant: None });
        };
        let header = header.to_str().unwrap_or_default();
        if let Some(token) = scheme(header, "bearer") {
            let grant = self.verify(token, TokenKind::Access).await?;
            let grant = grant.ok_or_else(|| self.challenge(need, Some(INVALID_TOKEN)))?;
            return Ok(Caller { principal: grant.principal.clone(), grant: Some(grant) });
        }
        let proven = self.authenticate(basic(header)).await?;
        let proven = proven.ok_or_else(|| self.challenge(need, None))?;
        Ok(Caller { principal: proven.principal, grant: None })
    }

    /// What a token states, if it is one of ours, has not expired, and what it was given for
    /// still lets its principal in.
    async fn verify(&self, token: &str, kind: TokenKind) -> Result<Option<Grant>, ApiError> {
        let state = &self.server.state;
        let grant = match state.signer.verify(token, self.registry, kind, (state.clock)()) {
            Ok(grant) => grant,
            // All tokens come to that.
            Err(TokenError::Expired) => return Ok(None),
            Err(TokenError::Invalid) => {
                state.access.wrong_token(self.context.peer)?;
                return Ok(None);
            }
        };
        let is_good = match grant.principal == Principal::anonymous() {
            true => state.access.anonymous(&self.context).is_some(),
            false => state.access.holds(&grant.principal, &grant.credential).await,
        };
        Ok(is_good.then_some(grant))
    }

    async fn authenticate(
        &self,
        credentials: Option<Credentials>,
    ) -> Result<Option<Proven>, ApiError> {
        let Some(credentials) = credentials else { return Ok(None) };
        if credentials.user == TOKEN_USER {
            let grant = self.verify(&credentials.password, TokenKind::Refresh).await?;
            let proven = |Grant { principal, credential, .. }| Proven { principal, credential };
            return Ok(grant.map(proven));
        }
        let access = &self.server.state.access;
        Ok(access.authenticate(self.registry, &self.context, &credentials).await?)
    }

    fn count(&self, principal: &Principal, class: Class) -> Result<(), ApiError> {
        Ok(self.server.state.access.admit(principal, self.context.peer, class)?)
    }

    /// Whether `/v2/` should ask an anonymous caller to log in. Clients take their whole
    /// behaviour from that answer: told 200, they would never ask for a token.
    async fn needs_login(&self, caller: &Caller) -> bool {
        let wanted = Actions::PULL | Actions::PUSH;
        caller.grant.is_none()
            && caller.principal == Principal::anonymous()
            && !self.may(caller, &Resource::AllRepositories, wanted).await
    }

    /// 401 when other credentials or another token can help, else 403.
    async fn refusal(&self, caller: &Caller, need: &Need) -> ApiError {
        if caller.principal == Principal::anonymous() {
            return self.challenge(std::slice::from_ref(need), None);
        }
        let permitted = self.permitted(&caller.principal, &need.resource, need.actions).await;
        if caller.grant.is_some() && permitted.contains(need.actions) {
            return self.challenge(std::slice::from_ref(need), Some(INSUFFICIENT_SCOPE));
        }
        let name = caller.name();
        let message = format!("`{name}` may not {} {}", need.actions, need.resource);
        ApiError::new(Code::Denied, message).detail(json!({ "scope": need.scope() }))
    }

    fn challenge(&self, needs: &[Need], error: Option<&str>) -> ApiError {
        let host = self.printable_host();
        let scheme = if self.secure { "https" } else { "http" };
        let mut challenge =
            format!("Bearer realm=\"{scheme}://{host}/oauth2/token\",service=\"{host}\"");
        let scopes = needs.iter().map(Need::scope).collect::<Vec<_>>().join(" ");
        for (key, value) in [("scope", &*scopes), ("error", error.unwrap_or_default())] {
            if !value.is_empty() {
                challenge.push_str(&format!(",{key}=\"{value}\""));
            }
        }
        let message = match error {
            Some(INVALID_TOKEN) => "the token is not valid or has expired",
            Some(_) => "the token does not carry the needed scope",
            None => "authentication is required",
        };
        ApiError::new(Code::Unauthorized, message).header(WWW_AUTHENTICATE, &challenge)
    }

    /// The host as the client wrote it, without what could leave its quotes.
    pub(crate) fn printable_host(&self) -> String {
        let plain = |c: &char| c.is_ascii_alphanumeric() || ".-_:[]".contains(*c);
        self.context.host.chars().filter(plain).collect()
    }
}

/// What follows the name of an authentication scheme.
fn scheme<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let (scheme, rest) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case(name).then(|| rest.trim())
}

fn basic(header: &str) -> Option<Credentials> {
    let bytes = STANDARD.decode(scheme(header, "basic")?).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Credentials { user: user.to_owned(), password: password.to_owned() })
}

/// As whom one logs in with a refresh token in place of a password, as the managed service has it.
const TOKEN_USER: &str = "00000000-0000-0000-0000-000000000000";

/// Form bodies of the token endpoint are this small.
const FORM_SIZE_MAX: usize = 64 << 10;
/// A client asks for a scope per repository it touches.
const SCOPES_MAX: usize = 100;

/// What a client asks the token endpoint for.
#[derive(Default)]
struct TokenRequest {
    scopes: Vec<Scope>,
    wants_refresh: bool,
    grant_type: Option<String>,
    user: Option<String>,
    password: Option<String>,
    refresh_token: Option<String>,
    /// Of another issuer.
    access_token: Option<String>,
}

impl TokenRequest {
    fn parse(form: &[u8]) -> Self {
        let mut request = Self::default();
        for (key, value) in url::form_urlencoded::parse(form) {
            match &*key {
                "scope" => request.scopes.extend(value.split(' ').filter_map(Scope::parse)),
                "offline_token" => request.wants_refresh |= value == "true",
                "access_type" => request.wants_refresh |= value == "offline",
                "grant_type" => request.grant_type = Some(value.into_owned()),
                "username" => request.user = Some(value.into_owned()),
                "password" => request.password = Some(value.into_owned()),
                "refresh_token" => request.refresh_token = Some(value.into_owned()),
                "access_token" => request.access_token = Some(value.into_owned()),
                _ => (),
            }
        }
        request.scopes.truncate(SCOPES_MAX);
        request
    }

    /// The refresh token that the client proves itself with, if it does.
    fn used_refresh_token(&self) -> Option<&str> {
        let is_used = self.grant_type.as_deref() == Some("refresh_token");
        self.refresh_token.as_deref().filter(|_| is_used)
    }
}

/// `GET /oauth2/token` with basic authentication, `POST` with a form: exchanges credentials
/// for a token. Scopes that the principal does not have are left out, not refused.
pub(crate) async fn serve_token(State(server): State<Arc<Server>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let mut known = Known::default();
    let answer = issue(&server, &head, body, &mut known).await;
    let response = answer.unwrap_or_else(ApiError::into_response);
    // With a refresh token somebody is who they were before.
    if known.with_credentials {
        known.deed = Some(Deed::Login);
        server.note(&head, &known, response.status()).await;
    }
    response
}

/// `POST /oauth2/exchange`: a token of an issuer that the registry trusts becomes a refresh token,
/// which is good no longer (identity-and-secrets.md section 2).
pub(crate) async fn serve_exchange(
    State(server): State<Arc<Server>>,
    request: Request,
) -> Response {
    let (head, body) = request.into_parts();
    let mut known = Known { with_credentials: true, ..Known::default() };
    let answer = exchange(&server, &head, body, &mut known).await;
    let response = answer.unwrap_or_else(ApiError::into_response);
    known.deed = Some(Deed::Login);
    server.note(&head, &known, response.status()).await;
    response
}

async fn exchange(
    server: &Server,
    head: &request::Parts,
    body: Body,
    known: &mut Known,
) -> Result<Response, ApiError> {
    let gate = server.gate(head)?;
    if head.method != Method::POST {
        return Err(ApiError::new(Code::Unsupported, "use POST"));
    }
    let request = read_form(body).await?;
    let grant_type = request.grant_type.as_deref().unwrap_or_default();
    if !matches!(grant_type, "access_token" | "access_token_refresh_token") {
        let message = format!("grant_type `{grant_type}` is not supported");
        return Err(ApiError::new(Code::Unsupported, message).status(StatusCode::BAD_REQUEST));
    }
    let state = &server.state;
    let token = request.access_token.unwrap_or_default();
    let found = state.access.exchange(gate.registry, gate.context.peer, &token).await?;
    let (proven, left) = found.ok_or_else(|| gate.wrong_credentials())?;
    known.principal = Some(proven.principal.clone());
    gate.count(&proven.principal, Class::Login)?;
    let grant = Grant {
        kind: TokenKind::Refresh,
        registry: gate.registry.clone(),
        principal: proven.principal,
        credential: proven.credential,
        scopes: Vec::new(),
    };
    let life = state.limits.refresh_token_life.min(left);
    let answer = json!({ "refresh_token": gate.sign(&grant, (state.clock)(), life)? });
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
    Ok((StatusCode::OK, headers, answer.to_string()).into_response())
}

/// A refresh token that is shown in place of a password.
fn shown_refresh_token(head: &request::Parts, request: &TokenRequest) -> Option<String> {
    let header = head.headers.get(AUTHORIZATION).and_then(|header| header.to_str().ok());
    let credentials = match head.method {
        Method::GET => basic(header?)?,
        _ => Credentials { user: request.user.clone()?, password: request.password.clone()? },
    };
    (credentials.user == TOKEN_USER).then_some(credentials.password)
}

async fn read_form(body: Body) -> Result<TokenRequest, ApiError> {
    let form = axum::body::to_bytes(body, FORM_SIZE_MAX).await.map_err(|_| {
        ApiError::new(Code::Unsupported, "form is too large or broken")
            .status(StatusCode::BAD_REQUEST)
    })?;
    Ok(TokenRequest::parse(&form))
}

async fn issue(
    server: &Server,
    head: &request::Parts,
    body: Body,
    known: &mut Known,
) -> Result<Response, ApiError> {
    let gate = server.gate(head)?;
    let (request, proven) = match head.method {
        Method::GET => {
            let request = TokenRequest::parse(head.uri.query().unwrap_or_default().as_bytes());
            known.with_credentials = head.headers.contains_key(AUTHORIZATION);
            (request, gate.by_header(&head.headers).await?)
        }
        Method::POST => {
            let request = read_form(body).await?;
            known.with_credentials = request.grant_type.as_deref() == Some("password");
            let proven = gate.by_form(&request).await?;
            (request, proven)
        }
        _ => return Err(ApiError::new(Code::Unsupported, "use GET or POST")),
    };
    known.principal = Some(proven.principal.clone());
    gate.count(&proven.principal, Class::Login)?;
    let access = gate.grant(&request, proven).await;
    let state = &server.state;
    let refresh = request.used_refresh_token().map(str::to_owned);
    let refresh = refresh.or_else(|| shown_refresh_token(head, &request));
    let now = (state.clock)();
    // No token outlives the one that it was given for.
    let left = refresh.as_ref().and_then(|token| state.signer.left(token, now));
    let life = state.limits.access_token_life.min(left.unwrap_or(Duration::MAX));
    let token = gate.sign(&access, now, life)?;
    let mut answer = json!({
        "token": &token,
        "access_token": &token,
        "expires_in": life.as_secs(),
        "token_type": "Bearer",
    });
    if let Some(refresh) = refresh {
        // The same one: a new one would let it live for ever.
        answer["refresh_token"] = refresh.into();
    } else if request.wants_refresh || head.method == Method::POST {
        let refresh = Grant { kind: TokenKind::Refresh, scopes: Vec::new(), ..access };
        answer["refresh_token"] = gate.sign(&refresh, now, state.limits.refresh_token_life)?.into();
    }
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
    Ok((StatusCode::OK, headers, answer.to_string()).into_response())
}

impl Gate<'_> {
    /// Who asks for a token with basic authentication, or with nothing.
    async fn by_header(&self, headers: &HeaderMap) -> Result<Proven, ApiError> {
        let access = &self.server.state.access;
        let Some(header) = headers.get(AUTHORIZATION) else {
            let principal = access.anonymous(&self.context);
            let proven = |principal| Proven { principal, ..Proven::anonymous() };
            return principal.map(proven).ok_or_else(|| self.wrong_credentials());
        };
        let credentials = header.to_str().ok().and_then(basic);
        self.by_credentials(credentials).await
    }

    async fn by_form(&self, request: &TokenRequest) -> Result<Proven, ApiError> {
        match request.grant_type.as_deref() {
            Some("password") => {
                let pair = request.user.clone().zip(request.password.clone());
                let credentials = pair.map(|(user, password)| Credentials { user, password });
                self.by_credentials(credentials).await
            }
            Some("refresh_token") => {
                let token = request.used_refresh_token().unwrap_or_default();
                let grant = self.verify(token, TokenKind::Refresh).await?;
                let Grant { principal, credential, .. } =
                    grant.ok_or_else(|| self.wrong_credentials())?;
                Ok(Proven { principal, credential })
            }
            other => {
                let message =
                    format!("grant_type `{}` is not supported", other.unwrap_or_default());
                Err(ApiError::new(Code::Unsupported, message).status(StatusCode::BAD_REQUEST))
            }
        }
    }

    async fn by_credentials(&self, credentials: Option<Credentials>) -> Result<Proven, ApiError> {
        self.authenticate(credentials).await?.ok_or_else(|| self.wrong_credentials())
    }

    fn wrong_credentials(&self) -> ApiError {
        let challenge = format!("Basic realm=\"{}\"", self.printable_host());
        ApiError::new(Code::Unauthorized, "user name, password or token is wrong or missing")
            .header(WWW_AUTHENTICATE, &challenge)
    }

    /// The requested scopes, cut down to what the principal may do. Repositories have their full
    /// names, as requests have when they are let in: some clients make scopes of what was typed.
    async fn grant(&self, request: &TokenRequest, proven: Proven) -> Grant {
        let Proven { principal, credential } = proven;
        let mut scopes = Vec::with_capacity(request.scopes.len());
        for scope in &request.scopes {
            let resource = match scope.resource.clone() {
                Resource::Repository(name) => Resource::Repository(self.server.full_name(name)),
                resource => resource,
            };
            let actions = self.permitted(&principal, &resource, scope.actions).await;
            if !actions.is_empty() {
                scopes.push(Scope { resource, actions });
            }
        }
        let (kind, registry) = (TokenKind::Access, self.registry.clone());
        Grant { kind, registry, principal, credential, scopes }
    }

    fn sign(
        &self,
        grant: &Grant,
        now: store::Millis,
        life: std::time::Duration,
    ) -> Result<String, ApiError> {
        let token = self.server.state.signer.sign(grant, now, life);
        token.map_err(|_| ApiError::new(Code::Unknown, "the token could not be signed"))
    }
}
