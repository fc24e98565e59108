//! The REST API: wire to domain, decide, domain to wire.

mod accounts;
mod agents;
mod assignments;
mod attempts;
mod audit;
mod by_rule;
mod content;
mod deleted;
mod health;
mod hooks;
mod import;
mod issuer;
mod lasting;
mod plans;
mod policies;
mod pools;
mod promotions;
mod runs;
mod scrub;
mod secrets;
mod sign_in;
mod sources;
mod task_runs;
mod tasks;
mod tokens;
mod triggers;
mod webhooks;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{
    DefaultBodyLimit, FromRequest, FromRequestParts, MatchedPath, RawPathParams, Request, State,
};
use axum::handler::Handler;
use axum::http::Method;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post, put};
use control::{Operation, Rights};
use oci::RegistryName;
use registry::{Class, Peer};
use serde::de::DeserializeOwned;
use utoipa_axum::PathItemExt as _;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};
use utoipa_axum::routes;

pub(crate) use by_rule::housekept;

use crate::access::Needs;
use crate::audit::{Act, Detail, Route};
use crate::error::ApiError;
use crate::openapi;
use crate::state::Shared;

/// Everything but `/v2/`. `body_size_max` bounds what is not an upload.
pub(crate) fn router(state: Shared, body_size_max: usize) -> Router {
    let Guarded { router, needs } = of_principals::<Guarded>();
    let guard = Guard { state: Shared::clone(&state), needs: Arc::new(needs) };
    router
        .layer(middleware::from_fn_with_state(guard, admit))
        .merge(of_everybody::<Router<Shared>>())
        .nest(&format!("{REGISTRY}/agentPools/{{name}}"), of_agents())
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(body_size_max))
        .layer(middleware::from_fn_with_state(Shared::clone(&state), count))
        .with_state(state)
}

/// What the routes say of themselves.
pub(crate) fn description() -> utoipa::openapi::OpenApi {
    let described = |routes: OpenApiRouter<Shared>| routes.into_openapi();
    crate::openapi::document(described(of_principals()), described(of_everybody()))
}

/// Takes handlers, each with its path and its method, which are written at the handler.
///
/// A router that serves them asks for no more than these two. The description asks for everything,
/// which takes time and memory that a server would otherwise spend whenever it starts.
trait Described: Default {
    /// `described` is what [`routes!`] makes of the same handler.
    fn handler<P, H, T>(
        self,
        handler: H,
        described: fn() -> UtoipaMethodRouter<Shared>,
        needs: Option<Needs>,
    ) -> Self
    where
        P: utoipa::Path,
        H: Handler<T, Shared>,
        T: 'static;

    fn nest(self, path: &str, inner: Self) -> Self;
}

impl Described for OpenApiRouter<Shared> {
    fn handler<P, H, T>(
        self,
        _: H,
        described: fn() -> UtoipaMethodRouter<Shared>,
        needs: Option<Needs>,
    ) -> Self {
        let (schemas, mut paths, router) = described();
        let all = paths.paths.values_mut().flat_map(openapi::operations);
        for (operation, needs) in all.filter_map(|operation| Some((operation, needs?))) {
            let more = operation.description.take().map_or_else(String::new, |text| text + "\n\n");
            operation.description = Some(format!("{more}Needs {needs}."));
        }
        self.routes((schemas, paths, router))
    }

    fn nest(self, path: &str, inner: Self) -> Self {
        OpenApiRouter::nest(self, path, inner)
    }
}

impl Described for Router<Shared> {
    fn handler<P, H, T>(
        self,
        handler: H,
        _: fn() -> UtoipaMethodRouter<Shared>,
        _: Option<Needs>,
    ) -> Self
    where
        P: utoipa::Path,
        H: Handler<T, Shared>,
        T: 'static,
    {
        let methods = P::methods().into_iter().fold(MethodRouter::new(), |methods, method| {
            methods.on(method.to_method_filter(), handler.clone())
        });
        self.route(&P::path(), methods)
    }

    fn nest(self, path: &str, inner: Self) -> Self {
        Router::nest(self, path, inner)
    }
}

/// Routes, and what each asks of whoever uses it. Nothing is behind [`admit`] that is not listed.
#[derive(Default)]
struct Guarded {
    router: Router<Shared>,
    needs: HashMap<(Method, String), Needs>,
}

impl Described for Guarded {
    fn handler<P, H, T>(
        self,
        handler: H,
        described: fn() -> UtoipaMethodRouter<Shared>,
        needs: Option<Needs>,
    ) -> Self
    where
        P: utoipa::Path,
        H: Handler<T, Shared>,
        T: 'static,
    {
        let Self { router, needs: mut all } = self;
        let methods = P::methods().into_iter().filter_map(|method| {
            let text = serde_json::to_value(method).ok()?;
            Method::from_bytes(text.as_str()?.to_ascii_uppercase().as_bytes()).ok()
        });
        all.extend(methods.filter_map(|method| Some(((method, P::path()), needs?))));
        let router = Described::handler::<P, H, T>(router, handler, described, needs);
        Self { router, needs: all }
    }

    fn nest(self, path: &str, inner: Self) -> Self {
        let Self { router, needs: mut all } = self;
        let inner_needs = inner.needs.into_iter();
        all.extend(
            inner_needs.map(|((method, below), needs)| ((method, format!("{path}{below}")), needs)),
        );
        Self { router: Described::nest(router, path, inner.router), needs: all }
    }
}

/// Adds handlers to what is [`Described`], each with what it asks of whoever uses it.
macro_rules! handlers {
    ($router:expr; $($($module:ident::$name:ident),+ => $needs:expr;)+) => {{
        let router = $router;
        $($(
            let router = pastey::paste! {
                Described::handler::<$module::[<__path_ $name>], _, _>(
                    router,
                    $module::$name,
                    || routes!($module::$name),
                    $needs,
                )
            };
        )+)+
        router
    }};
}

const READ: Option<Needs> = Some(Needs::May(Operation::Read));
const RUN: Option<Needs> = Some(Needs::May(Operation::Run));
const WRITE: Option<Needs> = Some(Needs::May(Operation::Write));
const MANAGE: Option<Needs> = Some(Needs::May(Operation::Manage));
const GOVERN: Option<Needs> = Some(Needs::May(Operation::Govern));
const CATALOG: Option<Needs> = Some(Needs::Catalog);
const OWN: Option<Needs> = Some(Needs::Own);
const STORE: Option<Needs> = Some(Needs::Store);
const METADATA: Option<Needs> = Some(Needs::Rights(Rights::METADATA_READ));
const ATTRIBUTES: Option<Needs> = Some(Needs::Rights(Rights::METADATA_WRITE));
const DELETE: Option<Needs> = Some(Needs::Rights(Rights::CONTENT_DELETE));
const RESTORE: Option<Needs> =
    Some(Needs::Rights(Rights::CONTENT_WRITE.with(Rights::CONTENT_DELETE)));
const UNTAG: Option<Needs> = Some(Needs::Either(Rights::CONTENT_DELETE, Rights::METADATA_WRITE));
/// For everybody.
const NOTHING: Option<Needs> = None;

/// Where the routes of a registry are.
const REGISTRY: &str = "/api/v1/registries/{registry}";

/// Routes that ask who somebody is.
fn of_principals<R: Described>() -> R {
    let of_registry = handlers!(
        R::default();
        // What is no stored task as it is needs more, which the handler sees to.
        runs::schedule => RUN;
        sources::create, sources::create_listed, sources::add_pack, sources::add_file,
        sources::commit => WRITE;
        runs::list, runs::show, runs::logs, runs::events, runs::blob, runs::files => READ;
        runs::update, runs::cancel => RUN;
        agents::attach => WRITE;
        tasks::list, tasks::show => READ;
        tasks::put, tasks::update, tasks::delete, tasks::details => WRITE;
        hooks::generate => WRITE;
        triggers::list, triggers::watches, triggers::pauses, triggers::simulate => READ;
        triggers::pause, triggers::resume => WRITE;
        plans::list, plans::show => READ;
        plans::make, plans::apply, plans::stop, plans::close, plans::roll_back => WRITE;
        promotions::list, promotions::show => READ;
        promotions::make, promotions::approve, promotions::reject, promotions::roll_back => WRITE;
        task_runs::list, task_runs::show => READ;
        task_runs::put, task_runs::update, task_runs::delete, task_runs::details => WRITE;
        policies::show => READ;
        policies::update => MANAGE;
        pools::list, pools::show, pools::queue_status => READ;
        pools::put, pools::update, pools::delete, pools::token, pools::renew_token => MANAGE;
        content::repositories, deleted::repositories => CATALOG;
        content::repository, content::tags, content::tag, content::manifests,
        content::manifest => METADATA;
        // It tells of the run, and of other repositories.
        content::build_record => READ;
        content::delete_repository, content::delete_manifest => DELETE;
        content::untag => UNTAG;
        deleted::manifests, deleted::tags => METADATA;
        deleted::restore => RESTORE;
        content::update_repository, content::update_tag, content::update_manifest => ATTRIBUTES;
        content::collect_garbage => STORE;
        by_rule::purge, by_rule::annotate => WRITE;
        import::import, import::tags => WRITE;
        scrub::of_registry, scrub::begin_for_registry => STORE;
        tokens::list_maps, tokens::show_map, tokens::put_map, tokens::update_map,
        tokens::delete_map => MANAGE;
        tokens::list, tokens::show, tokens::put, tokens::update, tokens::delete,
        tokens::generate => MANAGE;
        secrets::list, secrets::show, secrets::put, secrets::delete => WRITE;
        webhooks::list, webhooks::show => READ;
        webhooks::put, webhooks::update, webhooks::delete, webhooks::ping, webhooks::list_events,
        webhooks::callback_config => MANAGE;
        assignments::list, assignments::put, assignments::delete => MANAGE;
        accounts::list_roles, accounts::assign, accounts::remove => GOVERN;
    );
    let with_registry = R::default().nest(REGISTRY, of_registry);
    handlers!(
        with_registry;
        content::collect_garbage_of_server, scrub::report, scrub::begin => STORE;
        accounts::show, accounts::set_password => OWN;
        accounts::list, accounts::put, accounts::update, accounts::delete,
        accounts::assign_everywhere, accounts::remove_everywhere, audit::show => GOVERN;
    )
}

/// Routes that do not.
fn of_everybody<R: Described>() -> R {
    // The address of an upload is its own permission, as in the managed service.
    let uploads = handlers!(R::default(); sources::upload => NOTHING;);
    let with_uploads = R::default().nest(REGISTRY, uploads);
    handlers!(
        with_uploads;
        issuer::configuration, issuer::keys => NOTHING;
        sign_in::show, sign_in::begin => NOTHING;
        // A delivery proves itself by the secret of its trigger.
        hooks::deliver => NOTHING;
        openapi::show, health::version, health::alive, health::ready, health::metrics => NOTHING;
    )
}

/// What agents and servers say to each other: it changes with every version, and is not described.
/// Agents have the token of their pool, and no other.
fn of_agents() -> Router<Shared> {
    let attempts = Router::new()
        .route("/renew", post(attempts::renew))
        .route("/canceled", get(attempts::canceled))
        .route("/lease", get(attempts::holds))
        .route("/running", post(attempts::running))
        .route("/events", post(attempts::events))
        .route("/context/{digest}", get(attempts::context))
        .route("/blobs", post(attempts::missing))
        .route("/blobs/{digest}", put(attempts::put_blob))
        .route("/publish", post(attempts::publish))
        .route("/acr", post(attempts::acr))
        .route("/secret", post(attempts::secret))
        .route("/identityToken", post(attempts::identity_token))
        .route("/giveBack", post(attempts::give_back))
        .layer(DefaultBodyLimit::max(attempts::BODY_SIZE_MAX))
        .merge(
            Router::new()
                .route("/finish", post(attempts::finish))
                .layer(DefaultBodyLimit::max(attempts::FINISH_SIZE_MAX)),
        );
    Router::new()
        .route("/claim", post(attempts::claim))
        .route("/queue", get(attempts::queue))
        .nest("/attempts/{run}/{epoch}", attempts)
}

/// What [`admit`] knows.
#[derive(Clone)]
struct Guard {
    state: Shared,
    /// By method and path.
    needs: Arc<HashMap<(Method, String), Needs>>,
}

/// Finds out who asks, and refuses those who may not.
async fn admit(
    State(guard): State<Guard>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    let params = RawPathParams::from_request_parts(&mut parts, &()).await;
    let params = params.map_err(|error| ApiError::invalid(error.body_text()))?;
    let param = |name| params.iter().find(|(known, _)| *known == name).map(|(_, value)| value);
    // One that no registry can have is nobody's.
    let registry = param("registry").map(str::parse::<RegistryName>);
    let registry = registry.as_ref().and_then(|registry| registry.as_ref().ok());
    let peer = parts.extensions.get::<Peer>().copied().unwrap_or_default();
    let path = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    // Contexts are sent in many requests, and are bounded otherwise.
    let is_upload = path.strip_prefix(REGISTRY).is_some_and(|below| below.starts_with("/sources"));
    let (access, auditor) = (&guard.state.access, &guard.state.auditor);
    let mut act = Act {
        registry: registry.cloned(),
        principal: None,
        peer,
        method: parts.method.clone(),
        path: parts.uri.path().to_owned(),
        route: Route::Api(path.clone()),
        detail: None,
    };
    let principal = match access.of_request(registry, peer, &parts.headers).await {
        Ok(principal) => principal,
        Err(error) => {
            if parts.headers.contains_key(AUTHORIZATION) {
                auditor.note(act, error.status).await;
            }
            return Err(error);
        }
    };
    act.principal = Some(principal.name());
    // Whoever may read may also ask whether there is something to read.
    let method = if parts.method == Method::HEAD { Method::GET } else { parts.method.clone() };
    let Some(needs) = guard.needs.get(&(method, path)) else {
        return Ok(no_method().await);
    };
    if !is_upload {
        access.count(&principal, peer, Class::of(&parts.method))?;
    }
    let noting = auditor.begin(act);
    if let Err(error) = access.require(&principal, registry, param("name"), *needs).await {
        noting.ended(error.status, None).await;
        return Err(error);
    }
    let permission = lasting::Permission {
        state: Arc::clone(&guard.state),
        principal: principal.clone(),
        registry: registry.cloned(),
        name: param("name").map(str::to_owned),
        needs: *needs,
    };
    parts.extensions.insert(principal);
    let response = next.run(Request::from_parts(parts, body)).await;
    let mut detail = response.extensions().get::<Detail>().cloned();
    if response.headers().get(CONTENT_TYPE).is_some_and(|form| form == runs::NDJSON) {
        // What becomes of it is told in lines that are still to come.
        let begun = Detail("begun, told in lines".to_owned());
        detail = detail.map(|Detail(text)| Detail(format!("{text}, {}", begun.0))).or(Some(begun));
    }
    noting.ended(response.status(), detail).await;
    Ok(permission.bound(response))
}

async fn count(State(state): State<Shared>, request: Request, next: Next) -> Response {
    state.metrics.requests.fetch_add(1, Ordering::Relaxed);
    let response = next.run(request).await;
    if response.status().is_server_error() {
        state.metrics.errors.fetch_add(1, Ordering::Relaxed);
    }
    response
}

async fn no_route() -> ApiError {
    ApiError::not_found("this route").hint("the API begins at `/api/v1/registries/REGISTRY/`")
}

async fn no_method() -> Response {
    let mut response = ApiError::invalid("this route does not know that method").into_response();
    *response.status_mut() = axum::http::StatusCode::METHOD_NOT_ALLOWED;
    response
}

/// A JSON body, read within bounds; what is wrong with it is told in our envelope.
pub(crate) struct Json<T>(pub(crate) T);

impl<T> FromRequest<Shared> for Json<T>
where
    axum::Json<T>: FromRequest<Shared, Rejection = JsonRejection>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Shared) -> Result<Self, ApiError> {
        let read = axum::Json::<T>::from_request(request, state);
        match tokio::time::timeout(state.body_stall, read).await {
            Ok(Ok(axum::Json(body))) => Ok(Self(body)),
            Ok(Err(JsonRejection::BytesRejection(error))) => {
                Err(ApiError::too_large(error.body_text()))
            }
            Ok(Err(error)) => Err(ApiError::invalid(error.body_text())),
            Err(_) => Err(ApiError::late("nothing came for too long")),
        }
    }
}

/// What a path names; what is wrong with it is told in our envelope. Behind [`admit`] no name is wrong
/// that is to be text.
pub(crate) struct Path<T>(pub(crate) T);

impl<T, S> FromRequestParts<S> for Path<T>
where
    T: DeserializeOwned + Send,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(named)) => Ok(Self(named)),
            Err(error) => Err(ApiError::invalid(error.body_text())),
        }
    }
}

/// Query parameters; what is wrong with them is told in our envelope.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        match axum::extract::Query::<T>::try_from_uri(&parts.uri) {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(error) => Err(ApiError::invalid(error.body_text())),
        }
    }
}
