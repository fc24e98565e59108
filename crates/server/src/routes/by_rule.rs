//! Deleting and annotating by rule.

use std::sync::Arc;

use api::PurgeSummary;
use async_trait::async_trait;
use axum::Extension;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{Stream, stream};
use housekeeping::{
    Annotate, Annotated, HousekeepingError, MayAll, Purge, Purged, Record, Records, Registry,
};
use oci::RegistryName;
use store::Cause;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Json;
use super::runs::{NDJSON, stream_response};
use crate::access::{Principal, UNLOCK};
use crate::error::ApiError;
use crate::state::{Shared, copies_message};
use crate::{from_api, to_api};

/// Records that wait to be sent; a command waits for those that read them.
const RECORDS_MAX: usize = 256;

/// Deletes images by rule, and tells what it deletes while it goes on.
///
/// With `includeLocked` it needs `metadata/write` too, as unlocking does.
/// Whoever leaves before its end stops it.
#[utoipa::path(
    post, path = "/purge", operation_id = "purge", tag = "Maintenance",
    request_body = api::PurgeRequest,
    responses(
        (status = OK, description = "Lines, each a record", body = api::PurgeRecord, content_type = "application/x-ndjson"),
    ),
)]
pub(crate) async fn purge(
    State(state): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path(registry): Path<String>,
    Json(body): Json<api::PurgeRequest>,
) -> Result<Response, ApiError> {
    let (name, own) = state.registry(&registry)?;
    let purge = Purge::new(&from_api::purge_options(body))?;
    if purge.lifts_locks() {
        state.access.require(&principal, Some(&name), None, UNLOCK).await?;
    }
    tracing::info!(registry = %name, principal = principal.name(), "purge");
    let cause = Cause::Purge { run: None, principal: Some(principal.name()) };
    let mut registry = housekept(&state, name, &own.login_server, cause);
    registry.may_unlock = true;
    let login_server = own.login_server.clone();
    Ok(told(&state, login_server, |records, cancel| async move {
        let Purged { dry_run, tags, manifests } =
            housekeeping::purge(&registry, &purge, &records, &cancel).await?;
        Ok(PurgeSummary { dry_run, tags, manifests, locked: 0 })
    }))
}

/// Annotates images by rule, and tells what it annotates while it goes on.
///
/// Whoever leaves before its end stops it.
#[utoipa::path(
    post, path = "/annotate", operation_id = "annotate", tag = "Maintenance",
    request_body = api::AnnotateRequest,
    responses(
        (status = OK, description = "Lines, each a record", body = api::PurgeRecord, content_type = "application/x-ndjson"),
    ),
)]
pub(crate) async fn annotate(
    State(state): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path(registry): Path<String>,
    Json(body): Json<api::AnnotateRequest>,
) -> Result<Response, ApiError> {
    let (name, own) = state.registry(&registry)?;
    let annotate = Annotate::new(&from_api::annotate_options(body))?;
    tracing::info!(registry = %name, principal = principal.name(), "annotate");
    let cause = Cause::Push { principal: principal.name() };
    let registry = housekept(&state, name, &own.login_server, cause);
    let login_server = own.login_server.clone();
    Ok(told(&state, login_server, |records, cancel| async move {
        let Annotated { dry_run, tags, manifests, locked } =
            housekeeping::annotate(&registry, &annotate, &records, &cancel).await?;
        Ok(PurgeSummary { dry_run, tags, manifests, locked })
    }))
}

/// A registry for commands that put it in order.
pub(crate) fn housekept(
    state: &Shared,
    name: RegistryName,
    login_server: &str,
    cause: Cause,
) -> Registry {
    let pull_through = state.pull_through.clone();
    Registry {
        catalog: state.catalog.clone(),
        name,
        login_server: login_server.to_owned(),
        cause,
        may_unlock: false,
        refused: Arc::new(move |name| {
            let holds = pull_through.as_ref().is_some_and(|kept| kept.holds(name));
            holds.then(|| copies_message(name))
        }),
        may: Arc::new(MayAll),
        now: jiff::Timestamp::now().as_millisecond(),
    }
}

/// An answer that goes on as long as the command does.
fn told<F>(
    state: &Shared,
    login_server: String,
    command: impl FnOnce(Sender, CancellationToken) -> F,
) -> Response
where
    F: Future<Output = Result<PurgeSummary, HousekeepingError>> + Send + 'static,
{
    let (sender, records) = mpsc::channel(RECORDS_MAX);
    let running = Box::pin(command(Sender(sender), state.stopping.child_token()));
    stream_response(NDJSON, lines(UnderWay { running, records }, login_server))
}

/// What a command tells, on its way to the client.
struct Sender(mpsc::Sender<Record>);

#[async_trait]
impl Records for Sender {
    async fn take(&self, record: Record) {
        // The receiver is gone only together with the command itself.
        let _ = self.0.send(record).await;
    }
}

struct UnderWay {
    running: BoxFuture<'static, Result<PurgeSummary, HousekeepingError>>,
    records: mpsc::Receiver<Record>,
}

/// The course of a command, one JSON text per line.
fn lines(
    command: UnderWay,
    login_server: String,
) -> impl Stream<Item = serde_json::Result<Bytes>> + Send {
    stream::unfold(Some(command), move |under_way| {
        let login_server = login_server.clone();
        async move {
            let mut command = under_way?;
            let mut records = Vec::new();
            let ended = tokio::select! {
                biased;
                _ = command.records.recv_many(&mut records, RECORDS_MAX) => None,
                ended = &mut command.running => Some(ended),
            };
            if ended.is_some() {
                // What it told last, before it let go of its end.
                while let Ok(record) = command.records.try_recv() {
                    records.push(record);
                }
            }
            let told =
                records.into_iter().map(|record| to_api::purge_record(record, &login_server));
            let (last, rest) = match ended {
                Some(ended) => (Some(ended_record(ended)), None),
                None => (None, Some(command)),
            };
            let mut text = Vec::new();
            for record in told.chain(last) {
                if let Err(error) = serde_json::to_writer(&mut text, &record) {
                    return Some((Err(error), None));
                }
                text.push(b'\n');
            }
            Some((Ok(Bytes::from(text)), rest))
        }
    })
}

fn ended_record(ended: Result<PurgeSummary, HousekeepingError>) -> api::PurgeRecord {
    match ended {
        Ok(summary) => api::PurgeRecord::Finished(summary),
        Err(error) => {
            let error = ApiError::from(error);
            let (status, error) = (error.status.as_u16(), error.into());
            api::PurgeRecord::Failed(api::PurgeFailure { status, error })
        }
    }
}
