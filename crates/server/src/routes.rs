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
use axum::http::request::Parts;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use registry::Peer;
use serde::de::DeserializeOwned;

use crate::error::ApiError;
use crate::state::Shared;

/// Everything but `/v2/`. `body_size_max` bounds what is not an upload.
pub(crate) fn router(state: Shared, body_size_max: usize) -> Router {
    let of_registry = Router::new()
        .route("/scheduleRun", post(runs::schedule))
        .route("/listBuildSourceUploadUrl", post(sources::create))
        .route("/sources", post(sources::create_listed))
        .route("/sources/{id}/packs", post(sources::add_pack))
        .route("/sources/{id}/blobs/{digest}", put(sources::add_file))
        .route("/sources/{id}/commit", post(sources::commit))
        .route("/runs", get(runs::list))
        .route("/runs/{id}", get(runs::show).patch(runs::update))
        .route("/runs/{id}/cancel", post(runs::cancel))
        .route("/runs/{id}/logs", get(runs::logs))
        .route("/runs/{id}/events", get(runs::events))
        .route("/runs/{id}/blobs/{digest}", get(runs::blob))
        .route("/runs/{id}/files", get(runs::files))
        .route("/runs/{id}/agents/{agent}", get(agents::attach))
        .route("/tasks", get(tasks::list))
        .route(
            "/tasks/{name}",
            get(tasks::show).put(tasks::put).patch(tasks::update).delete(tasks::delete),
        )
        .route("/tasks/{name}/listDetails", post(tasks::show))
        .route("/taskRuns", get(task_runs::list))
        .route(
            "/taskRuns/{name}",
            get(task_runs::show)
                .put(task_runs::put)
                .patch(task_runs::update)
                .delete(task_runs::delete),
        )
        .route("/taskRuns/{name}/listDetails", post(task_runs::show))
        .route("/agentPools", get(pools::list))
        .route(
            "/agentPools/{name}",
            get(pools::show).put(pools::put).patch(pools::update).delete(pools::delete),
        )
        .route("/agentPools/{name}/listQueueStatus", post(pools::queue_status))
        .route("/agentPools/{name}/listAgentToken", post(pools::token))
        .route("/agentPools/{name}/regenerateAgentToken", post(pools::renew_token))
        .route("/repositories", get(content::repositories))
        .route("/repositories/{name}", get(content::repository))
        .route("/repositories/{name}", delete(content::delete_repository))
        .route("/repositories/{name}/tags", get(content::tags))
        .route("/repositories/{name}/tags/{tag}", get(content::tag))
        .route("/repositories/{name}/tags/{tag}", delete(content::untag))
        .route("/repositories/{name}/manifests", get(content::manifests))
        .route("/repositories/{name}/manifests/{reference}", get(content::manifest))
        .route("/repositories/{name}/manifests/{reference}", delete(content::delete_manifest))
        .route("/repositories/{name}/manifests/{reference}/record", get(content::build_record))
        .route("/gc", post(content::collect_garbage))
        .route("/purge", post(by_rule::purge))
        .route("/annotate", post(by_rule::annotate))
        .route("/import", post(import::import))
        .route("/import/tags", post(import::tags))
        .route("/scrub", get(scrub::of_registry).post(scrub::begin_for_registry))
        .layer(middleware::from_fn_with_state(Shared::clone(&state), authenticate));
    let of_server = Router::new()
        .route("/api/v1/gc", post(content::collect_garbage_of_server))
        .route("/api/v1/scrub", get(scrub::report).post(scrub::begin))
        .layer(middleware::from_fn_with_state(Shared::clone(&state), authenticate));
    // Agents have the token of their pool, and no other.
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
    let of_agents = Router::new()
        .route("/claim", post(attempts::claim))
        .route("/queue", get(attempts::queue))
        .nest("/attempts/{run}/{epoch}", attempts);
    // The address of an upload is its own permission, as in the managed service.
    let uploads = Router::new().route("/sources/upload/{id}", put(sources::upload));
    Router::new()
        .nest(
            "/api/v1/registries/{registry}",
            of_registry.merge(uploads).nest("/agentPools/{name}", of_agents),
        )
        .merge(of_server)
        .route("/api/v1/version", get(health::version))
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(health::metrics))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(body_size_max))
        .layer(middleware::from_fn_with_state(Shared::clone(&state), count))
        .with_state(state)
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
