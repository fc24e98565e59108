//! Which manifests are about another one.

use axum::body::Body;
use axum::response::Response;
use http::header::{CONTENT_TYPE, HeaderName, LINK};
use oci::{Digest, RepositoryName, media_type};
use url::form_urlencoded::byte_serialize;

use crate::blobs::respond;
use crate::error::{ApiError, Code};
use crate::router::Call;

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// `GET /v2/<name>/referrers/<digest>`: an index of the manifests whose subject this is, an
/// empty one if there is none. A page is bounded like a manifest, in entries and in bytes.
pub(crate) async fn list(
    call: &Call<'_>,
    name: &RepositoryName,
    subject: &str,
) -> Result<Response, ApiError> {
    let subject: Digest = subject.parse()?;
    let wanted = call.parameter("artifactType").filter(|wanted| !wanted.is_empty());
    let last = call.parameter("last").map(|last| last.parse::<Digest>()).transpose()?;
    let readable = call.catalog().require_readable(call.registry, name, None).await;
    readable.map_err(|error| ApiError::from_store(error, Code::NameUnknown))?;
    // Pages are large: few of them are made at a time.
    let turn = call.server.referrers.acquire().await;
    let (page, next) = call
        .catalog()
        .referrers(
            call.registry,
            name,
            &subject,
            wanted.as_deref(),
            last.as_ref(),
            call.limits().referrers_page_max,
        )
        .await
        .map_err(|error| ApiError::from_store(error, Code::NameUnknown))?;
    let mut head = Response::builder().header(CONTENT_TYPE, media_type::OCI_INDEX);
    if wanted.is_some() {
        head = head.header(FILTERS_APPLIED, "artifactType");
    }
    if let Some(last) = next {
        let filter = wanted.map_or(String::new(), |wanted| {
            format!("&artifactType={}", byte_serialize(wanted.as_bytes()).collect::<String>())
        });
        let path = format!("/v2/{name}/referrers/{subject}?last={last}{filter}");
        head = head.header(LINK, format!("<{path}>; rel=\"next\""));
    }
    let mut index =
        format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":["#, media_type::OCI_INDEX)
            .into_bytes();
    for (position, referrer) in page.into_iter().enumerate() {
        if position > 0 {
            index.push(b',');
        }
        serde_json::to_writer(&mut index, &referrer.descriptor).map_err(|error| {
            tracing::error!(%error, "a referrer could not be written");
            ApiError::new(Code::Unknown, "the list could not be written")
        })?;
    }
    index.extend_from_slice(b"]}");
    drop(turn);
    respond(head, Body::from(index))
}
