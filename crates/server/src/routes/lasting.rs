//! Answers that go on for long, and end with the permission to read them.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes, HttpBody};
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::{Stream, StreamExt, stream};
use oci::RegistryName;

use crate::access::{Needs, Principal};
use crate::error::ApiError;
use crate::state::Shared;

/// How often it is asked again whether somebody still may.
const PERIOD: Duration = Duration::from_secs(5);

/// What somebody was allowed.
pub(super) struct Permission {
    pub(super) state: Shared,
    pub(super) principal: Principal,
    pub(super) registry: Option<RegistryName>,
    /// What it is about: a repository, or an account.
    pub(super) name: Option<String>,
    pub(super) needs: Needs,
}

impl Permission {
    /// An answer that is broken off when this does not hold any longer.
    pub(super) fn bound(self, response: Response) -> Response {
        // What is there already is sent as it is, and who has the server's own keys keeps them.
        let is_whole = response.body().size_hint().exact().is_some();
        if is_whole || !matches!(self.principal, Principal::Known(_)) {
            return response;
        }
        response.map(|body| Body::from_stream(until(body.into_data_stream(), self.ends())))
    }

    async fn ends(self) {
        let (registry, name) = (self.registry.as_ref(), self.name.as_deref());
        loop {
            tokio::time::sleep(PERIOD).await;
            let access = &self.state.access;
            let required = access.require(&self.principal, registry, name, self.needs).await;
            // That it cannot be looked up just now is no refusal.
            let is_refusal = |error: ApiError| {
                matches!(error.status, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED)
            };
            if required.is_err_and(is_refusal) {
                return;
            }
        }
    }
}

/// The chunks of a body until `end`, which is an error: whoever reads knows that something is missing.
fn until(
    chunks: BodyDataStream,
    end: impl Future<Output = ()> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, axum::Error>> + Send {
    let end: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(end);
    stream::unfold(Some((chunks, end)), async |state| {
        let (mut chunks, mut end) = state?;
        tokio::select! {
            // However many chunks there are.
            biased;
            () = &mut end => {
                let refused = io::Error::from(io::ErrorKind::PermissionDenied);
                Some((Err(axum::Error::new(refused)), None))
            }
            chunk = chunks.next() => Some((chunk?, Some((chunks, end)))),
        }
    })
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn chunks_come_until_the_end_which_is_an_error() {
        let endless = || {
            let chunks = stream::repeat_with(|| Ok::<_, io::Error>(Bytes::from_static(b"x")));
            Body::from_stream(chunks).into_data_stream()
        };
        let (end, ended) = oneshot::channel::<()>();
        let mut chunks = std::pin::pin!(until(endless(), async { drop(ended.await) }));
        for _ in 0..3 {
            assert_eq!(chunks.next().await.unwrap().unwrap(), "x");
        }
        end.send(()).unwrap();
        assert!(chunks.next().await.unwrap().is_err());
        assert!(chunks.next().await.is_none());
        let whole = Body::from("all").into_data_stream();
        let whole: Vec<_> = until(whole, std::future::pending()).collect().await;
        assert_eq!(whole.into_iter().map(Result::unwrap).collect::<Vec<_>>(), ["all"]);
    }
}
