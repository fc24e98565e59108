//! What others need to trust the identity tokens of runs (OpenID Connect Discovery 1.0).

use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;
use crate::state::Shared;

/// Others may keep the keys for so long; a new one signs only after days.
const KEEP: &str = "public, max-age=3600";

/// The issuer of identity tokens.
#[utoipa::path(
    get, path = "/.well-known/openid-configuration", operation_id = "getIssuer", tag = "Server",
    responses((status = OK, body = Object)),
)]
pub(crate) async fn configuration(State(state): State<Shared>) -> Result<Response, ApiError> {
    let configuration = state.issuer.configuration().ok_or_else(none)?;
    Ok(([(CACHE_CONTROL, KEEP)], axum::Json(configuration)).into_response())
}

/// The public keys of identity tokens.
#[utoipa::path(
    get, path = "/.well-known/jwks.json", operation_id = "getIssuerKeys", tag = "Server",
    responses((status = OK, body = Object)),
)]
pub(crate) async fn keys(State(state): State<Shared>) -> Result<Response, ApiError> {
    let keys = state.issuer.public_keys().await.map_err(|error| ApiError::interrupted(&error))?;
    Ok(([(CACHE_CONTROL, KEEP)], axum::Json(keys.ok_or_else(none)?)).into_response())
}

fn none() -> ApiError {
    ApiError::not_found("an issuer of identity tokens")
        .hint("the server has one when `server.public_url` is set")
}
