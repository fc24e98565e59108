//! Lists in pages: the tags of a repository, the repositories of a registry.

use axum::body::Body;
use axum::response::Response;
use http::header::{CONTENT_TYPE, LINK};
use oci::RepositoryName;
use serde_json::{Value, json};
use url::form_urlencoded::byte_serialize;

use crate::blobs::respond;
use crate::error::{ApiError, Code};
use crate::router::Call;

/// Which part of a list is asked for.
pub(crate) struct Page {
    size: usize,
    pub(crate) last: Option<String>,
}

impl Page {
    /// Reads `n` and `last`. Without `n` a page has `default` entries, and never more than
    /// `max`: `Link` leads to the rest.
    pub(crate) fn of(call: &Call<'_>, default: usize, max: usize) -> Result<Self, ApiError> {
        let size = match call.parameter("n") {
            None => default,
            Some(n) if !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()) => {
                n.parse().unwrap_or(max) // Only too many digits.
            }
            Some(_) => {
                let message = "query parameter `n` is not a number of entries";
                return Err(ApiError::new(Code::PaginationNumberInvalid, message));
            }
        };
        Ok(Self { size: size.min(max), last: call.parameter("last") })
    }

    /// One more than is shown, to know whether there is more.
    pub(crate) fn lookahead(&self) -> usize {
        if self.size == 0 { 0 } else { self.size + 1 }
    }

    /// Cuts what was found to the page; the second value is the `last` of the next one.
    pub(crate) fn cut<T>(
        &self,
        mut found: Vec<T>,
        key: impl Fn(&T) -> String,
    ) -> (Vec<T>, Option<String>) {
        let has_more = found.len() > self.size;
        found.truncate(self.size);
        let next = found.last().filter(|_| has_more).map(key);
        (found, next)
    }

    /// `more` are parameters that are asked for with the next page too.
    pub(crate) fn link(&self, path: &str, last: &str, more: &[(&str, String)]) -> String {
        let escaped = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
        let more = more.iter().map(|(key, value)| format!("&{key}={}", escaped(value)));
        let more: String = more.collect();
        format!("<{path}?n={}&last={}{more}>; rel=\"next\"", self.size, escaped(last))
    }
}

/// `GET /v2/<name>/tags/list`, in byte order.
pub(crate) async fn tags(call: &Call<'_>, name: &RepositoryName) -> Result<Response, ApiError> {
    let max = call.limits().tags_page_max;
    let page = Page::of(call, max, max)?;
    let (catalog, registry) = (call.catalog(), call.registry);
    let failed = |error| ApiError::from_store(error, Code::NameUnknown);
    let found = catalog.tags(registry, name, page.last.as_deref(), page.lookahead()).await;
    let found = found.map_err(failed)?;
    if found.is_empty() && !catalog.repository_exists(registry, name).await.map_err(failed)? {
        return Err(ApiError::new(Code::NameUnknown, "the registry has no such repository")
            .detail(json!({ "name": name })));
    }
    let tags: Vec<String> = found.into_iter().map(|found| found.tag.into()).collect();
    let (tags, next) = page.cut(tags, String::clone);
    let link = next.map(|last| page.link(&format!("/v2/{name}/tags/list"), &last, &[]));
    list(json!({ "name": name, "tags": tags }), link)
}

/// `GET /v2/_catalog` and `/acr/v1/_catalog`, in byte order.
pub(crate) async fn catalog(call: &Call<'_>) -> Result<Response, ApiError> {
    let page = Page::of(call, call.limits().catalog_page, call.limits().catalog_page_max)?;
    let last = page.last.as_deref();
    let found = call.catalog().repositories(call.registry, last, page.lookahead()).await;
    let found = found.map_err(|error| ApiError::from_store(error, Code::NameUnknown))?;
    let names: Vec<String> = found.into_iter().map(String::from).collect();
    let (repositories, next) = page.cut(names, String::clone);
    let link = next.map(|last| page.link(call.head.uri.path(), &last, &[]));
    list(json!({ "repositories": repositories }), link)
}

fn list(value: Value, link: Option<String>) -> Result<Response, ApiError> {
    let mut head = Response::builder().header(CONTENT_TYPE, "application/json");
    if let Some(link) = link {
        head = head.header(LINK, link);
    }
    respond(head, Body::from(value.to_string()))
}
