//! The REST API: wire to domain, decide, domain to wire.

mod agents;
mod attempts;
mod by_rule;
mod content;
mod health;
mod import;
mod pools;
mod runs;
mod scrub;
mod sources;
mod task_runs;
mod tasks;

use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Request, State};
use axum::handler::Handler;
use axum::http::request::Parts;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post, put};
use registry::Peer;
use serde::de::DeserializeOwned;
use utoipa_axum::PathItemExt as _;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};
use utoipa_axum::routes;

pub(crate) use by_rule::housekept;

use crate::error::ApiError;
use crate::openapi;
use crate::state::Shared;

/// Everything but `/v2/`. `body_size_max` bounds what is not an upload.
pub(crate) fn router(state: Shared, body_size_max: usize) -> Router {
    of_principals::<Router<Shared>>()
        .layer(middleware::from_fn_with_state(Shared::clone(&state), authenticate))
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
    fn handler<P, H, T>(self, handler: H, described: fn() -> UtoipaMethodRouter<Shared>) -> Self
    where
        P: utoipa::Path,
        H: Handler<T, Shared>,
        T: 'static;

    fn nest(self, path: &str, inner: Self) -> Self;
}

impl Described for OpenApiRouter<Shared> {
    fn handler<P, H, T>(self, _: H, described: fn() -> UtoipaMethodRouter<Shared>) -> Self {
        self.routes(described())
    }

    fn nest(self, path: &str, inner: Self) -> Self {
        OpenApiRouter::nest(self, path, inner)
    }
}

impl Described for Router<Shared> {
    fn handler<P, H, T>(self, handler: H, _: fn() -> UtoipaMethodRouter<Shared>) -> Self
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

/// Adds handlers to what is [`Described`].
macro_rules! handlers {
    ($router:expr; $($module:ident::$name:ident),+ $(,)?) => {{
        let router = $router;
        $(
            let router = pastey::paste! {
                Described::handler::<$module::[<__path_ $name>], _, _>(
                    router,
                    $module::$name,
                    || routes!($module::$name),
                )
            };
        )+
        router
    }};
}

/// Where the routes of a registry are.
const REGISTRY: &str = "/api/v1/registries/{registry}";

/// Routes that ask who somebody is.
fn of_principals<R: Described>() -> R {
    let of_registry = handlers!(
        R::default();
        runs::schedule,
        sources::create,
        sources::create_listed,
        sources::add_pack,
        sources::add_file,
        sources::commit,
        runs::list,
        runs::show, runs::update,
        runs::cancel,
        runs::logs,
        runs::events,
        runs::blob,
        runs::files,
        agents::attach,
        tasks::list,
        tasks::show, tasks::put, tasks::update, tasks::delete,
        tasks::details,
        task_runs::list,
        task_runs::show, task_runs::put, task_runs::update, task_runs::delete,
        task_runs::details,
        pools::list,
        pools::show, pools::put, pools::update, pools::delete,
        pools::queue_status,
        pools::token,
        pools::renew_token,
        content::repositories,
        content::repository, content::delete_repository,
        content::tags,
        content::tag, content::untag,
        content::manifests,
        content::manifest, content::delete_manifest,
        content::build_record,
        content::collect_garbage,
        by_rule::purge,
        by_rule::annotate,
        import::import,
        import::tags,
        scrub::of_registry, scrub::begin_for_registry,
    );
    let with_registry = R::default().nest(REGISTRY, of_registry);
    handlers!(
        with_registry;
        content::collect_garbage_of_server,
        scrub::report, scrub::begin,
    )
}

/// Routes that do not.
fn of_everybody<R: Described>() -> R {
    // The address of an upload is its own permission, as in the managed service.
    let uploads = handlers!(R::default(); sources::upload);
    let with_uploads = R::default().nest(REGISTRY, uploads);
    handlers!(
        with_uploads;
        openapi::show,
        health::version, health::alive, health::ready, health::metrics,
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

async fn authenticate(
    State(state): State<Shared>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let peer = request.extensions().get::<Peer>().copied().unwrap_or_default();
    let principal = state.authenticate(peer, request.headers())?;
    request.extensions_mut().insert(principal);
    Ok(next.run(request).await)
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
