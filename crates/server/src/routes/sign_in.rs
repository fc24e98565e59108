//! Where people sign in.

use axum::Extension;
use axum::extract::State;
use axum::http::Method;
use registry::{Class, Peer};

use super::Json;
use crate::access::{KEYS_PAUSE, Principal};
use crate::audit::{Act, Route};
use crate::error::ApiError;
use crate::sign_in::{Provider, SignInError};
use crate::state::Shared;
use crate::to_api;

/// Where people sign in, and as which program of that provider.
#[utoipa::path(
    get, path = "/api/v1/signIn", operation_id = "getSignIn", tag = "Access",
    responses((status = OK, body = api::SignInOffer)),
)]
pub(crate) async fn show(
    State(state): State<Shared>,
) -> Result<axum::Json<api::SignInOffer>, ApiError> {
    let settings = &provider(&state)?.settings;
    Ok(axum::Json(api::SignInOffer {
        issuer: settings.issuer.clone(),
        client_id: settings.client_id.clone(),
        scopes: settings.scopes.clone(),
    }))
}

/// Begins a session for whoever an identity token of the provider is about.
///
/// The token of the session is used as the password of the account, or as a bearer token.
#[utoipa::path(
    post, path = "/api/v1/signIn", operation_id = "signIn", tag = "Access",
    request_body = api::SignInRequest,
    responses((status = OK, body = api::SignedIn)),
)]
pub(crate) async fn begin(
    State(state): State<Shared>,
    Extension(peer): Extension<Peer>,
    Json(body): Json<api::SignInRequest>,
) -> Result<axum::Json<api::SignedIn>, ApiError> {
    let provider = provider(&state)?;
    let access = &state.access;
    access.count(&Principal::Anonymous, peer, Class::Login)?;
    let begun = provider.sign_in(&body.id_token, &access.permissions, &access.sessions).await;
    let (principal, answer) = match begun {
        Ok((account, token, until)) => {
            let signed_in = api::SignedIn {
                account: account.to_string(),
                token,
                expires_at: to_api::time(until),
            };
            (Some(account.to_string()), Ok(axum::Json(signed_in)))
        }
        Err(error) => {
            if matches!(error, SignInError::Token) {
                access.was_wrong(peer)?;
            }
            (None, Err(refusal(error)))
        }
    };
    let act = Act {
        registry: None,
        principal,
        peer,
        method: Method::POST,
        path: "/api/v1/signIn".to_owned(),
        route: Route::Login,
        detail: None,
    };
    let status = answer.as_ref().map_or_else(|error| error.status, |_| http::StatusCode::OK);
    state.auditor.note(act, status).await;
    answer
}

fn provider(state: &Shared) -> Result<&Provider, ApiError> {
    state.sign_in.as_ref().ok_or_else(|| {
        ApiError::not_found("a provider where people sign in")
            .hint("the server has one when `sign_in.issuer` is set")
    })
}

fn refusal(error: SignInError) -> ApiError {
    match error {
        SignInError::Token => ApiError::unauthorized(error.to_string()),
        SignInError::NoName(_) => ApiError::forbidden(error.to_string()).hint(
            "`sign_in.claim` of the server names another one, or `sign_in.scopes` asks for it",
        ),
        SignInError::NotVerified(_) | SignInError::Program(_) => {
            ApiError::forbidden(error.to_string())
        }
        SignInError::NoAccount(ref name) => ApiError::forbidden(error.to_string()).hint(format!(
            "`refit account create {name}` makes one, and `refit role assign` lets it do something"
        )),
        SignInError::Keys(error) => {
            tracing::error!(%error, "a token cannot be checked");
            ApiError::too_often("the provider's keys cannot be fetched now").retry_after(KEYS_PAUSE)
        }
        SignInError::Control(error) => error.into(),
        SignInError::Api(error) => error,
    }
}
