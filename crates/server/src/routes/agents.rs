//! Connections to the ssh agents of clients.

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::http::header::{CONNECTION, UPGRADE};
use axum::response::{IntoResponse as _, Response};
use control::ControlError;
use hyper_util::rt::TokioIo;

use super::runs;
use crate::error::ApiError;
use crate::from_api;
use crate::openapi::Refusal;
use crate::state::Shared;

/// The connection becomes one to the client's ssh agent, and waits until a `RUN` needs it.
///
/// Ask with `Upgrade: refit-ssh-agent`, over HTTP/1.1.
#[utoipa::path(
    get, path = "/runs/{id}/agents/{agent}", operation_id = "attachSshAgent", tag = "Runs",
    responses((status = SWITCHING_PROTOCOLS), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn attach(
    State(state): State<Shared>,
    Path((registry, id, agent)): Path<(String, String, String)>,
    request: Request,
) -> Result<Response, ApiError> {
    let run = runs::find(&state, &registry, &id).await?;
    let is_named = run.request.build().is_some_and(|build| build.options.ssh.contains(&agent));
    if !is_named {
        let agent = from_api::cut(&agent);
        return Err(ApiError::not_found(format!("ssh agent `{agent}` of run `{}`", run.id)));
    }
    if run.status.is_final() {
        let message = format!("run `{}` has ended already: {}", run.id, run.status);
        return Err(ControlError::Conflict { message }.into());
    }
    if request.headers().get(UPGRADE).is_none_or(|to| to != api::AGENT_PROTOCOL) {
        let message = format!("this needs a connection with `Upgrade: {}`", api::AGENT_PROTOCOL);
        let hint = "a proxy between must speak HTTP/1.1 and pass upgrades on";
        return Err(ApiError::invalid(message).hint(hint));
    }
    let agents = state.agents.of(&run);
    let upgrading = hyper::upgrade::on(request);
    tokio::spawn(async move {
        match upgrading.await {
            Ok(connection) => agents.offer(&agent, TokioIo::new(connection)),
            Err(error) => tracing::debug!(%error, "a connection to an ssh agent was not made"),
        }
    });
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, api::AGENT_PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}
