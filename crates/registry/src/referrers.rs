//! Which manifests are about another one.

use axum::body::Body;
use axum::response::Response;
use http::header::{CONTENT_TYPE, HeaderName, LINK};
use oci::{Descriptor, Digest, MANIFEST_SIZE_MAX, RepositoryName, media_type};
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
    let found = call.catalog().referrers(call.registry, name, &subject).await;
    let found = found.map_err(|error| ApiError::from_store(error, Code::NameUnknown))?;
    let wanted = call.parameter("artifactType").filter(|wanted| !wanted.is_empty());
    let last = call.parameter("last");
    let mut all: Vec<_> = found.into_iter().map(|referrer| referrer.descriptor).collect();
    if let Some(last) = &last
        && let Some(position) = all.iter().position(|found| found.digest.as_str() == last)
    {
        all.drain(..=position);
    }
    all.retain(|found| wanted.is_none() || found.artifact_type == wanted);
    let (page, is_cut) = cut(&all, call.limits().referrers_page_max);
    let mut head = Response::builder().header(CONTENT_TYPE, media_type::OCI_INDEX);
    if wanted.is_some() {
        head = head.header(FILTERS_APPLIED, "artifactType");
    }
    if let Some(last) = all.get(page.len().wrapping_sub(1)).filter(|_| is_cut) {
        let filter = wanted.map_or(String::new(), |wanted| {
            format!("&artifactType={}", byte_serialize(wanted.as_bytes()).collect::<String>())
        });
        let path = format!("/v2/{name}/referrers/{subject}?last={}{filter}", last.digest);
        head = head.header(LINK, format!("<{path}>; rel=\"next\""));
    }
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{}]}}"#,
        media_type::OCI_INDEX,
        page.join(",")
    );
    respond(head, Body::from(index))
}

/// The descriptors that fit into a page, written out, and whether some did not.
fn cut(all: &[Descriptor], entries_max: usize) -> (Vec<String>, bool) {
    let mut left = MANIFEST_SIZE_MAX - 1024; // Room for what is around them.
    let mut page = Vec::new();
    for descriptor in all {
        let text = serde_json::to_string(descriptor).unwrap_or_default();
        // One is always shown, or a list would never end.
        if page.len() >= entries_max || (text.len() + 1 > left && !page.is_empty()) {
            return (page, true);
        }
        left = left.saturating_sub(text.len() + 1);
        page.push(text);
    }
    (page, false)
}
