//! Deleting by rule.

use async_trait::async_trait;
use axum::Extension;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{Stream, stream};
use housekeeping::{HousekeepingError, Purge, Purged, Record, Records, Registry};
use store::Cause;
use tokio::sync::mpsc;

use super::Json;
use super::runs::{NDJSON, stream_response};
use crate::error::ApiError;
use crate::keys::Principal;
use crate::state::{Shared, copies_message};
use crate::{from_api, to_api};

/// Records that wait to be sent; a purge waits for those that read them.
const RECORDS_MAX: usize = 256;

/// `POST .../purge` tells what it deletes while it goes on. Whoever leaves before its end stops it.
pub(crate) async fn purge(
    State(state): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path(registry): Path<String>,
    Json(body): Json<api::PurgeRequest>,
) -> Result<Response, ApiError> {
    let (name, own) = state.registry(&registry)?;
    let purge = Purge::new(&from_api::purge_options(body))?;
    tracing::info!(registry = %name, principal = principal.name(), "purge");
    let login_server = own.login_server.clone();
    let pull_through = state.pull_through.clone();
    let registry = Registry {
        catalog: state.catalog.clone(),
        name,
        login_server: login_server.clone(),
        cause: Cause::Purge { run: None, principal: Some(principal.name().to_owned()) },
        refused: std::sync::Arc::new(move |name| {
            let holds = pull_through.as_ref().is_some_and(|kept| kept.holds(name));
            holds.then(|| copies_message(name))
        }),
        now: jiff::Timestamp::now().as_millisecond(),
    };
    let cancel = state.stopping.child_token();
    let (sender, records) = mpsc::channel(RECORDS_MAX);
    let purging = Box::pin(async move {
        let records = Sender(sender);
        housekeeping::purge(&registry, &purge, &records, &cancel).await
    });
    Ok(stream_response(NDJSON, lines(UnderWay { purging, records }, login_server)))
}

/// What a purge tells, on its way to the client.
struct Sender(mpsc::Sender<Record>);

#[async_trait]
impl Records for Sender {
    async fn take(&self, record: Record) {
        // The receiver is gone only together with the purge itself.
        let _ = self.0.send(record).await;
    }
}

struct UnderWay {
    purging: BoxFuture<'static, Result<Purged, HousekeepingError>>,
    records: mpsc::Receiver<Record>,
}

/// The course of a purge, one JSON text per line.
fn lines(
    purge: UnderWay,
    login_server: String,
) -> impl Stream<Item = serde_json::Result<Bytes>> + Send {
    stream::unfold(Some(purge), move |under_way| {
        let login_server = login_server.clone();
        async move {
            let mut purge = under_way?;
            let mut records = Vec::new();
            let ended = tokio::select! {
                biased;
                _ = purge.records.recv_many(&mut records, RECORDS_MAX) => None,
                ended = &mut purge.purging => Some(ended),
            };
            if ended.is_some() {
                // What it told last, before it let go of its end.
                while let Ok(record) = purge.records.try_recv() {
                    records.push(record);
                }
            }
            let told =
                records.into_iter().map(|record| to_api::purge_record(record, &login_server));
            let (last, rest) = match ended {
                Some(ended) => (Some(ended_record(ended)), None),
                None => (None, Some(purge)),
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

fn ended_record(ended: Result<Purged, HousekeepingError>) -> api::PurgeRecord {
    match ended {
        Ok(Purged { dry_run, tags, manifests }) => {
            api::PurgeRecord::Finished(api::PurgeSummary { dry_run, tags, manifests })
        }
        Err(error) => {
            let error = ApiError::from(error);
            let (status, error) = (error.status.as_u16(), error.into());
            api::PurgeRecord::Failed(api::PurgeFailure { status, error })
        }
    }
}
