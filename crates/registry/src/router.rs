//! From a request to the handler of its endpoint.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::header::{AUTHORIZATION, EXPECT, HeaderName, HeaderValue};
use http::{Method, StatusCode, request};
use oci::{RegistryName, RepositoryName};
use serde_json::json;
use store::{Catalog, Cause, Millis};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::access::{Access, Act, Deed, Peer, Principal, RequestContext, Secure};
use crate::auth::{self, Caller, Gate};
use crate::body::{Buffers, with_rest};
use crate::error::{ApiError, Code};
use crate::hosts::Hosts;
use crate::pull_through::{PullThrough, Source};
use crate::room::Room;
use crate::route::{Metadata, Route};
use crate::token::TokenSigner;
use crate::{blobs, listings, manifests, metadata, referrers, uploads};

/// What the registry needs from the server around it.
pub struct RegistryState {
    pub catalog: Catalog,
    /// Images of other registries, if any are kept.
    pub pull_through: Option<Arc<PullThrough>>,
    pub hosts: Hosts,
    pub access: Arc<dyn Access>,
    pub signer: TokenSigner,
    pub limits: Limits,
    /// The time, for tokens.
    pub clock: Arc<dyn Fn() -> Millis + Send + Sync>,
}

/// The registry's bounds. Each is met with an answer that says so.
#[derive(Debug, Clone)]
pub struct Limits {
    /// A larger blob is refused with 413.
    pub blob_size_max: u64,
    /// Bodies of blobs received at the same time; more wait for `stall`, then get 429.
    pub uploads_max: usize,
    /// Bytes of manifests received and stored at the same time, half of them for small ones;
    /// more wait for `stall`, then get 429.
    pub manifest_bytes_max: usize,
    /// A body that brings nothing for this long is ended; its upload stays resumable.
    pub stall: Duration,
    /// So is one that brings fewer bytes a second than this, over a time of `stall`.
    pub rate_min: u64,
    /// What `OCI-Chunk-Min-Length` advises. Smaller chunks are taken too.
    pub chunk_size_advised: u64,
    /// Entries of one page of the catalog, when the client names no number and at most.
    pub catalog_page: usize,
    pub catalog_page_max: usize,
    /// Entries of one page of a tag list; a longer list continues with `Link`.
    pub tags_page_max: usize,
    pub referrers_page_max: usize,
    /// `tag` parameters of one push by digest.
    pub tags_per_push_max: usize,
    pub access_token_life: Duration,
    pub refresh_token_life: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            blob_size_max: 200 << 30,
            uploads_max: 512,
            manifest_bytes_max: 32 << 20,
            stall: Duration::from_secs(60),
            rate_min: 1024,
            chunk_size_advised: 1 << 20,
            catalog_page: 100,
            catalog_page_max: 1000,
            tags_page_max: 10_000,
            referrers_page_max: 1000,
            tags_per_push_max: 100,
            access_token_life: Duration::from_secs(75 * 60),
            refresh_token_life: Duration::from_secs(3 * 60 * 60),
        }
    }
}

/// Pages of referrers made at the same time; further requests wait.
const REFERRERS_MAX: usize = 4;

/// Serves `/v2/...`, `/acr/v1/...`, `/oauth2/token` and `/oauth2/exchange`.
///
/// The server puts a [`Peer`] into the extensions of each request, and [`Secure`] if it came
/// over TLS.
pub fn router(state: RegistryState) -> Router {
    let server = Arc::new(Server {
        uploads: Arc::new(Semaphore::new(state.limits.uploads_max)),
        manifests: Room::new(state.limits.manifest_bytes_max),
        referrers: Semaphore::new(REFERRERS_MAX),
        buffers: Arc::new(Buffers::default()),
        state,
    });
    Router::new()
        .route("/v2", any(serve))
        .route("/v2/", any(serve))
        .route("/v2/{*path}", any(serve))
        .route("/acr/v1/{*path}", any(serve))
        .route("/oauth2/token", any(auth::serve_token))
        .route("/oauth2/exchange", any(auth::serve_exchange))
        .with_state(server)
}

/// The state plus what lives as long as the router.
pub(crate) struct Server {
    pub(crate) state: RegistryState,
    /// One permit per body of a blob that is being received.
    pub(crate) uploads: Arc<Semaphore>,
    pub(crate) manifests: Room,
    /// One permit per page of referrers that is being made.
    pub(crate) referrers: Semaphore,
    pub(crate) buffers: Arc<Buffers>,
}

impl Server {
    /// Who asks, as far as the connection and the headers tell, and for which registry.
    pub(crate) fn gate<'a>(&'a self, head: &'a request::Parts) -> Result<Gate<'a>, ApiError> {
        let peer = head.extensions.get::<Peer>().copied().unwrap_or_default();
        let context = RequestContext::new(peer, &head.uri, &head.headers);
        let Some(registry) = self.state.hosts.registry(context.host) else {
            return Err(ApiError::new(
                Code::NameUnknown,
                "no registry is served at this host name",
            ));
        };
        let forwarded = head.headers.get("x-forwarded-proto").is_some_and(|proto| proto == "https");
        let secure = forwarded || head.extensions.get::<Secure>().is_some();
        Ok(Gate { server: self, registry, context, secure })
    }
}

impl Server {
    pub(crate) async fn note(&self, head: &request::Parts, known: &Known, status: StatusCode) {
        let registry = self.gate(head).ok().map(|gate| gate.registry);
        let peer = head.extensions.get::<Peer>().copied().unwrap_or_default();
        let (method, path) = (&head.method, head.uri.path());
        let (principal, deed) = (known.principal.as_ref(), known.deed.as_ref());
        let with_credentials = known.with_credentials;
        let act = Act { registry, principal, with_credentials, deed, peer, method, path, status };
        self.state.access.note(act).await;
    }
}

impl Server {
    /// What the repository of a request is a copy of, if it is one. It has its full name from
    /// then on: clients that were told to ask us instead of another registry say so with `ns`,
    /// and names of Docker Hub have a short form.
    fn find_copy<'a>(
        &'a self,
        route: &mut Route<'_>,
        head: &request::Parts,
    ) -> Option<(&'a Arc<PullThrough>, Source)> {
        let pull_through = self.state.pull_through.as_ref()?;
        let name = route.name_mut()?;
        let query = head.uri.query().unwrap_or_default();
        let ns = url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "ns");
        if let Some(mirrored) = ns.and_then(|(_, host)| pull_through.mirrored(&host, name)) {
            *name = mirrored;
        }
        let source = pull_through.source(name)?;
        *name = source.local.clone();
        Some((pull_through, source))
    }

    /// The name that the catalog and permissions know a repository by.
    pub(crate) fn full_name(&self, name: RepositoryName) -> RepositoryName {
        let pull_through = self.state.pull_through.as_ref();
        match pull_through.and_then(|pull_through| pull_through.source(&name)) {
            Some(source) => source.local,
            None => name,
        }
    }
}

/// A request that was let in: what handlers work with.
pub(crate) struct Call<'a> {
    pub(crate) server: &'a Server,
    pub(crate) registry: &'a RegistryName,
    pub(crate) caller: &'a Caller,
    pub(crate) gate: &'a Gate<'a>,
    pub(crate) head: &'a request::Parts,
    /// What its repository is a copy of, and who brings it up to date.
    pub(crate) copy: Option<(&'a Arc<PullThrough>, Source)>,
}

impl Call<'_> {
    pub(crate) fn catalog(&self) -> &Catalog {
        &self.server.state.catalog
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.server.state.limits
    }

    /// A header's text, if it is there and is text.
    pub(crate) fn header(&self, name: HeaderName) -> Option<&str> {
        self.head.headers.get(name)?.to_str().ok()
    }

    /// The query parameters, decoded, in order.
    pub(crate) fn query(
        &self,
    ) -> impl Iterator<Item = (std::borrow::Cow<'_, str>, std::borrow::Cow<'_, str>)> {
        url::form_urlencoded::parse(self.head.uri.query().unwrap_or_default().as_bytes())
    }

    /// The first query parameter of this name.
    pub(crate) fn parameter(&self, name: &str) -> Option<String> {
        self.query().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }

    /// The host as the client wrote it: the login server.
    pub(crate) fn host(&self) -> String {
        self.gate.printable_host()
    }

    pub(crate) fn push(&self) -> Cause {
        Cause::Push { principal: self.caller.name().to_owned() }
    }

    pub(crate) fn delete(&self) -> Cause {
        Cause::Delete { principal: self.caller.name().to_owned() }
    }
}

/// What the audit log is to say besides of what was done, among the extensions of a response.
#[derive(Clone)]
pub(crate) struct Told(pub(crate) String);

impl Told {
    pub(crate) fn of(self, mut response: Response) -> Response {
        response.extensions_mut().insert(self);
        response
    }
}

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// A request that changes something runs as a worker of its own: when the connection breaks,
/// the request is dropped, but what was received must still reach its upload, and a change
/// that was begun must come to its end.
async fn serve(State(server): State<Arc<Server>>, request: Request) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return handle(server, request).await;
    }
    detached(server, request).await.unwrap_or_else(|error| {
        tracing::error!(%error, "a request was interrupted");
        ApiError::new(Code::Unknown, "the request was interrupted").into_response()
    })
}

fn detached(server: Arc<Server>, request: Request) -> JoinHandle<Response> {
    tokio::spawn(handle(server, request))
}

async fn handle(server: Arc<Server>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let (body, rest) = with_rest(body);
    let mut known = Known::default();
    let mut response = match answer(&server, &head, body, &mut known).await {
        Ok(response) => response,
        Err(error) => {
            rest.drain(head.headers.contains_key(EXPECT)).await;
            error.into_response()
        }
    };
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    known.with_credentials = head.headers.contains_key(AUTHORIZATION);
    if let (Some(deed), Some(Told(more))) = (&mut known.deed, response.extensions().get()) {
        deed.tell(more);
    }
    server.note(&head, &known, response.status()).await;
    tracing::debug!(method = %head.method, path = head.uri.path(), status = response.status().as_u16());
    response
}

/// Who asks for what, as far as it is known.
#[derive(Default)]
pub(crate) struct Known {
    pub(crate) principal: Option<Principal>,
    pub(crate) with_credentials: bool,
    pub(crate) deed: Option<Deed>,
}

/// What a request changes, if it succeeds.
fn deed(route: &Route<'_>, head: &request::Parts) -> Option<Deed> {
    let image = |name: &RepositoryName, reference: &str| match reference.contains(':') {
        true => format!("{name}@{reference}"),
        false => format!("{name}:{reference}"),
    };
    match (&head.method, route) {
        (&Method::PUT, Route::Manifest(name, reference)) => {
            let query = head.uri.query().unwrap_or_default();
            let tags = url::form_urlencoded::parse(query.as_bytes());
            let tags = tags.filter(|(key, _)| key == "tag").map(|(_, tag)| format!(" :{tag}"));
            Some(Deed::Push(image(name, reference) + &tags.collect::<String>()))
        }
        (&Method::DELETE, Route::Manifest(name, reference) | Route::Blob(name, reference)) => {
            Some(Deed::Delete(image(name, reference)))
        }
        (&Method::DELETE, Route::Metadata(name, what)) => Some(Deed::Delete(what.target(name))),
        (&Method::PATCH, Route::Metadata(name, what)) => Some(Deed::Update(what.target(name))),
        (&Method::POST, Route::Metadata(name, what @ Metadata::DeletedManifest(_))) => {
            Some(Deed::Restore(what.target(name)))
        }
        _ => None,
    }
}

async fn answer(
    server: &Server,
    head: &request::Parts,
    body: Body,
    known: &mut Known,
) -> Result<Response, ApiError> {
    let mut route = Route::parse(head.uri.path())?;
    let copy = server.find_copy(&mut route, head);
    known.deed = deed(&route, head);
    let gate = server.gate(head)?;
    let principal = &mut known.principal;
    let caller = gate.admit(&route, &head.method, &head.headers, principal).await?;
    if let Some((_, source)) = &copy
        && !matches!(head.method, Method::GET | Method::HEAD | Method::DELETE)
        && !matches!(route, Route::Metadata(..))
    {
        let (local, host) = (&source.local, &source.host);
        let message = format!("repository `{local}` holds copies of `{host}` and takes no pushes");
        return Err(ApiError::new(Code::Unsupported, message)
            .detail(json!({ "hint": format!("push to `{host}`, or under another name") })));
    }
    let call = Call { server, registry: gate.registry, caller: &caller, gate: &gate, head, copy };
    match (&head.method, route) {
        (&Method::GET | &Method::HEAD, Route::Base) => Ok(base()),
        (&Method::GET | &Method::HEAD, Route::Catalog) => listings::catalog(&call).await,
        (&Method::GET | &Method::HEAD, Route::DeletedCatalog) => {
            metadata::deleted_catalog(&call).await
        }
        (_, Route::Metadata(name, what)) => metadata::answer(&call, &name, &what, body).await,
        (&Method::GET | &Method::HEAD, Route::Tags(name)) => listings::tags(&call, &name).await,
        (&Method::GET | &Method::HEAD, Route::Referrers(name, subject)) => {
            referrers::list(&call, &name, &subject).await
        }
        (&Method::GET | &Method::HEAD, Route::Manifest(name, reference)) => {
            manifests::get(&call, &name, &reference).await
        }
        (&Method::PUT, Route::Manifest(name, reference)) => {
            manifests::put(&call, &name, &reference, body).await
        }
        (&Method::DELETE, Route::Manifest(name, reference)) => {
            manifests::delete(&call, &name, &reference).await
        }
        (&Method::GET | &Method::HEAD, Route::Blob(name, digest)) => {
            blobs::get(&call, &name, &digest).await
        }
        (&Method::DELETE, Route::Blob(name, digest)) => blobs::delete(&call, &name, &digest).await,
        (&Method::POST, Route::Uploads(name)) => uploads::start(&call, &name, body).await,
        (&Method::GET | &Method::HEAD, Route::Upload(name, id)) => {
            uploads::status(&call, &name, &id).await
        }
        (&Method::PATCH, Route::Upload(name, id)) => uploads::append(&call, &name, &id, body).await,
        (&Method::PUT, Route::Upload(name, id)) => uploads::finish(&call, &name, &id, body).await,
        (&Method::DELETE, Route::Upload(name, id)) => uploads::cancel(&call, &name, &id).await,
        (method, _) => {
            Err(ApiError::new(Code::Unsupported, format!("method {method} is not supported here")))
        }
    }
}

/// `GET /v2/`: this is such a registry, and you are let in.
fn base() -> Response {
    (StatusCode::OK, [("content-type", "application/json")], "{}").into_response()
}
