//! What there is to say of repositories, tags and manifests, below `/acr/v1/`: the routes of the
//! managed service's clients (registry.md section 2, azure-api.md section 10.3).

use axum::body::Body;
use axum::response::Response;
use http::header::{CONTENT_TYPE, LINK};
use http::{Method, StatusCode};
use oci::{Digest, Manifest, RepositoryName, Tag, media_type};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::{
    Attributes, AttributesChange, Cause, Expected, ManifestInfo, ManifestRef, Millis, Order,
    TagInfo, ToRestore,
};
use tokio::io::AsyncReadExt;

use crate::blobs::respond;
use crate::body::Incoming;
use crate::error::{ApiError, Code};
use crate::listings::Page;
use crate::route::Metadata;
use crate::router::{Call, Told};

/// Bodies of requests have a few members.
const BODY_SIZE_MAX: u64 = 64 << 10;

/// A request below `/acr/v1/NAME`.
pub(crate) async fn answer(
    call: &Call<'_>,
    name: &RepositoryName,
    what: &Metadata<'_>,
    body: Body,
) -> Result<Response, ApiError> {
    let is_read = matches!(call.head.method, Method::GET | Method::HEAD);
    match (&call.head.method, what) {
        (_, Metadata::Repository) if is_read => repository(call, name).await,
        (&Method::PATCH, Metadata::Repository) => {
            let told = change(call, name, None, body).await?;
            Ok(told.of(repository(call, name).await?))
        }
        (&Method::DELETE, Metadata::Repository) => delete_repository(call, name).await,
        (_, Metadata::Tags) if is_read => tags(call, name).await,
        (_, Metadata::Tag(text)) if is_read => tag(call, name, &find_tag(text)?).await,
        (&Method::PATCH, Metadata::Tag(text)) => {
            let found = find_tag(text)?;
            let told = change(call, name, Some(ManifestRef::Tag(found.clone())), body).await?;
            Ok(told.of(tag(call, name, &found).await?))
        }
        (&Method::DELETE, Metadata::Tag(text)) => untag(call, name, &find_tag(text)?).await,
        (_, Metadata::Manifests) if is_read => manifests(call, name).await,
        (_, Metadata::Manifest(text)) if is_read => manifest(call, name, &text.parse()?).await,
        (&Method::PATCH, Metadata::Manifest(text)) => {
            let digest: Digest = text.parse()?;
            let told = change(call, name, Some(ManifestRef::Digest(digest.clone())), body).await?;
            Ok(told.of(manifest(call, name, &digest).await?))
        }
        (_, Metadata::DeletedTags) if is_read => deleted_tags(call, name).await,
        (_, Metadata::DeletedManifests) if is_read => deleted_manifests(call, name).await,
        (&Method::POST, Metadata::DeletedManifest(text)) => {
            restore(call, name, text.parse()?, body).await
        }
        (method, _) => {
            Err(ApiError::new(Code::Unsupported, format!("method {method} is not supported here")))
        }
    }
}

/// `GET /acr/v1/_deleted/_catalog`: repositories of which something can be restored.
pub(crate) async fn deleted_catalog(call: &Call<'_>) -> Result<Response, ApiError> {
    let page = Page::of(call, call.limits().catalog_page, call.limits().catalog_page_max)?;
    let last = page.last.as_deref();
    let found = call.catalog().deleted_repositories(call.registry, last, page.lookahead()).await;
    let (found, next) = page.cut(found.map_err(failed)?, |found| found.repository.to_string());
    let shown = |found: &store::DeletedRepository| {
        json!({
            "repository": found.repository,
            "manifestCount": found.manifests,
            "tagCount": found.tags,
            "deletedAt": time(found.deleted_at),
        })
    };
    let list = Value::from(found.iter().map(shown).collect::<Vec<_>>());
    let link = next.map(|last| page.link("/acr/v1/_deleted/_catalog", &last, &[]));
    reply(StatusCode::OK, &json!({ "repositories": list }), link)
}

fn failed(error: store::StoreError) -> ApiError {
    ApiError::from_store(error, Code::NameUnknown)
}

fn no_repository(name: &RepositoryName) -> ApiError {
    ApiError::new(Code::NameUnknown, "the registry has no such repository")
        .detail(json!({ "name": name }))
}

/// What cannot be a tag is one that is not there.
fn find_tag(text: &str) -> Result<Tag, ApiError> {
    text.parse().map_err(|_| no_tag(text))
}

fn no_tag(text: &str) -> ApiError {
    let tag: String = text.chars().take(160).collect();
    ApiError::new(Code::TagUnknown, "the repository has no such tag").detail(json!({ "tag": tag }))
}

fn no_manifest(digest: &Digest) -> ApiError {
    ApiError::new(Code::ManifestUnknown, "the repository has no such manifest")
        .detail(json!({ "digest": digest }))
}

async fn repository(call: &Call<'_>, name: &RepositoryName) -> Result<Response, ApiError> {
    let found = call.catalog().repository(call.registry, name).await.map_err(failed)?;
    let info = found.ok_or_else(|| no_repository(name))?;
    let shown = json!({
        "registry": call.host(),
        "imageName": name,
        "createdTime": time(info.created_at),
        "lastUpdateTime": time(info.updated_at),
        "manifestCount": info.manifests,
        "tagCount": info.tags,
        "changeableAttributes": attributes(info.attributes),
    });
    reply(StatusCode::OK, &shown, None)
}

async fn delete_repository(call: &Call<'_>, name: &RepositoryName) -> Result<Response, ApiError> {
    let cause = call.delete();
    let removed = call.catalog().delete_repository(call.registry, name, &cause).await;
    let removed = removed.map_err(failed)?;
    let shown = json!({ "manifestsDeleted": removed.manifests, "tagsDeleted": removed.tags });
    reply(StatusCode::ACCEPTED, &shown, None)
}

/// In which order a list is, other than by name.
fn order(call: &Call<'_>) -> Result<Option<Order>, ApiError> {
    match call.parameter("orderby").as_deref() {
        None | Some("" | "none") => Ok(None),
        Some("timeasc") => Ok(Some(Order::OldestFirst)),
        Some("timedesc") => Ok(Some(Order::NewestFirst)),
        Some(_) => {
            let message = "query parameter `orderby` is neither `timeasc` nor `timedesc`";
            Err(ApiError::new(Code::PaginationNumberInvalid, message))
        }
    }
}

/// Where a page of a list in order of time ends.
fn moment(last: &str) -> Result<(Millis, &str), ApiError> {
    let parts = last.split_once('@').and_then(|(at, name)| Some((at.parse().ok()?, name)));
    let message = "query parameter `last` is not that of a `Link` of this list";
    parts.ok_or_else(|| ApiError::new(Code::PaginationNumberInvalid, message))
}

/// Where the next page is, of what else was asked for.
fn next_link(call: &Call<'_>, page: &Page, last: &str) -> String {
    let kept = ["orderby", "digest"];
    let kept: Vec<_> =
        kept.into_iter().filter_map(|key| Some((key, call.parameter(key)?))).collect();
    page.link(call.head.uri.path(), last, &kept)
}

async fn tags(call: &Call<'_>, name: &RepositoryName) -> Result<Response, ApiError> {
    let page = Page::of(call, call.limits().catalog_page, call.limits().catalog_page_max)?;
    let (catalog, registry, many) = (call.catalog(), call.registry, page.lookahead());
    let order = order(call)?;
    let last = page.last.as_deref();
    let found = match (call.parameter("digest"), order) {
        (Some(digest), _) => {
            let mut found =
                catalog.tags_of(registry, name, &digest.parse()?).await.map_err(failed)?;
            let after = last.unwrap_or_default();
            found.retain(|tag| tag.attributes.list_enabled && tag.tag.as_str() > after);
            found
        }
        (None, None) => catalog.tags(registry, name, last, many).await.map_err(failed)?,
        (None, Some(order)) => {
            let after = match last.map(moment).transpose()? {
                Some((at, tag)) => Some((at, find_tag(tag)?)),
                None => None,
            };
            let after = after.as_ref().map(|(at, tag)| (*at, tag));
            catalog.tags_by_age(registry, name, order, after, many).await.map_err(failed)?
        }
    };
    require_repository(call, name, found.is_empty()).await?;
    let by_name = order.is_none() || call.parameter("digest").is_some();
    let key = |tag: &TagInfo| match by_name {
        true => tag.tag.to_string(),
        false => format!("{}@{}", tag.updated_at, tag.tag),
    };
    let (found, next) = page.cut(found, key);
    let mut shown = of(call, name);
    if !found.is_empty() {
        shown.insert("tags".to_owned(), found.iter().map(show_tag).collect());
    }
    let link = next.map(|last| next_link(call, &page, &last));
    reply(StatusCode::OK, &Value::Object(shown), link)
}

async fn tag(call: &Call<'_>, name: &RepositoryName, tag: &Tag) -> Result<Response, ApiError> {
    let found = call.catalog().tag(call.registry, name, tag).await.map_err(failed)?;
    let found = found.ok_or_else(|| no_tag(tag.as_str()))?;
    let mut shown = of(call, name);
    shown.insert("tag".to_owned(), show_tag(&found));
    reply(StatusCode::OK, &Value::Object(shown), None)
}

async fn untag(call: &Call<'_>, name: &RepositoryName, tag: &Tag) -> Result<Response, ApiError> {
    let cause = call.delete();
    let removed =
        call.catalog().move_tag(call.registry, name, tag, &Expected::Any, None, &cause).await;
    removed.map_err(|error| ApiError::from_store(error, Code::TagUnknown))?;
    reply(StatusCode::ACCEPTED, &Value::Null, None)
}

async fn manifests(call: &Call<'_>, name: &RepositoryName) -> Result<Response, ApiError> {
    let page = Page::of(call, call.limits().catalog_page, call.limits().catalog_page_max)?;
    let (catalog, registry, many) = (call.catalog(), call.registry, page.lookahead());
    let last = page.last.as_deref();
    let order = order(call)?;
    let found = match order {
        None => {
            let last = last.map(|last| last.parse::<Digest>()).transpose()?;
            catalog.manifests(registry, name, last.as_ref(), many).await.map_err(failed)?
        }
        Some(order) => {
            let after = match last.map(moment).transpose()? {
                Some((at, digest)) => Some((at, digest.parse::<Digest>()?)),
                None => None,
            };
            let after = after.as_ref().map(|(at, digest)| (*at, digest));
            catalog.manifests_by_age(registry, name, order, after, many).await.map_err(failed)?
        }
    };
    require_repository(call, name, found.is_empty()).await?;
    let key = |manifest: &ManifestInfo| match order {
        None => manifest.digest.to_string(),
        Some(_) => format!("{}@{}", manifest.updated_at, manifest.digest),
    };
    let (found, next) = page.cut(found, key);
    let mut shown = of(call, name);
    if !found.is_empty() {
        let mut list = Vec::with_capacity(found.len());
        for manifest in &found {
            list.push(show_manifest(call, name, manifest).await);
        }
        shown.insert("manifests".to_owned(), list.into());
    }
    let link = next.map(|last| next_link(call, &page, &last));
    reply(StatusCode::OK, &Value::Object(shown), link)
}

async fn manifest(
    call: &Call<'_>,
    name: &RepositoryName,
    digest: &Digest,
) -> Result<Response, ApiError> {
    let found = call.catalog().manifest_info(call.registry, name, digest).await.map_err(failed)?;
    let found = found.ok_or_else(|| no_manifest(digest))?;
    let mut shown = of(call, name);
    shown.insert("manifest".to_owned(), show_manifest(call, name, &found).await);
    reply(StatusCode::OK, &Value::Object(shown), None)
}

/// Body of `PATCH`. A member that is not known is refused: it may have been meant to lock something.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Change {
    delete_enabled: Option<bool>,
    write_enabled: Option<bool>,
    read_enabled: Option<bool>,
    list_enabled: Option<bool>,
}

/// Locks or unlocks something; what the audit log is to say of it.
async fn change(
    call: &Call<'_>,
    name: &RepositoryName,
    reference: Option<ManifestRef>,
    body: Body,
) -> Result<Told, ApiError> {
    let Change { delete_enabled, write_enabled, read_enabled, list_enabled } =
        read(call, body).await?;
    let change = AttributesChange { delete_enabled, write_enabled, read_enabled, list_enabled };
    let changed =
        call.catalog().change_attributes(call.registry, name, reference.as_ref(), change).await;
    let unknown = match reference {
        None => Code::NameUnknown,
        Some(ManifestRef::Tag(_)) => Code::TagUnknown,
        Some(ManifestRef::Digest(_)) => Code::ManifestUnknown,
    };
    changed.map_err(|error| ApiError::from_store(error, unknown))?;
    let pairs = [
        ("deleteEnabled", delete_enabled),
        ("writeEnabled", write_enabled),
        ("readEnabled", read_enabled),
        ("listEnabled", list_enabled),
    ];
    let told = pairs.iter().filter_map(|(name, value)| Some(format!("{name}: {}", (*value)?)));
    Ok(Told(told.collect::<Vec<_>>().join(", ")))
}

async fn deleted_tags(call: &Call<'_>, name: &RepositoryName) -> Result<Response, ApiError> {
    let page = Page::of(call, call.limits().catalog_page, call.limits().catalog_page_max)?;
    let last = match page.last.as_deref() {
        None => None,
        Some(last) => {
            let (at, rest) = moment(last)?;
            let (tag, digest) = rest.split_once('@').ok_or_else(|| no_tag(rest))?;
            Some((find_tag(tag)?, at, digest.parse::<Digest>()?))
        }
    };
    let last = last.as_ref().map(|(tag, at, digest)| (tag, *at, digest));
    let found = call.catalog().deleted_tags(call.registry, name, last, page.lookahead()).await;
    let key =
        |found: &store::DeletedTag| format!("{}@{}@{}", found.deleted_at, found.tag, found.digest);
    let (found, next) = page.cut(found.map_err(failed)?, key);
    let show = |found: &store::DeletedTag| {
        json!({
            "tag": found.tag,
            "digest": found.digest,
            "createdAt": time(found.created_at),
            "deletedAt": time(found.deleted_at),
        })
    };
    let mut shown = of(call, name);
    shown.insert("tags".to_owned(), found.iter().map(show).collect());
    let link = next.map(|last| next_link(call, &page, &last));
    reply(StatusCode::OK, &Value::Object(shown), link)
}

async fn deleted_manifests(call: &Call<'_>, name: &RepositoryName) -> Result<Response, ApiError> {
    let page = Page::of(call, call.limits().catalog_page, call.limits().catalog_page_max)?;
    let last = page.last.as_deref().map(|last| last.parse::<Digest>()).transpose()?;
    let many = page.lookahead();
    let found = call.catalog().deleted_manifests(call.registry, name, last.as_ref(), many).await;
    let (found, next) = page.cut(found.map_err(failed)?, |found| found.digest.to_string());
    let show = |found: &store::DeletedManifest| {
        json!({
            "digest": found.digest,
            "mediaType": found.media_type,
            "artifactType": found.artifact_type,
            "imageSize": found.image_size,
            "createdAt": time(found.pushed_at),
            "deletedAt": time(found.deleted_at),
            "tags": found.tags,
        })
    };
    let mut shown = of(call, name);
    shown.insert("manifests".to_owned(), found.iter().map(show).collect());
    let link = next.map(|last| next_link(call, &page, &last));
    reply(StatusCode::OK, &Value::Object(shown), link)
}

/// Body of `POST /acr/v1/_deleted/NAME/_manifests/DIGEST`; `force` is in its query.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Restore {
    tag: Option<String>,
}

async fn restore(
    call: &Call<'_>,
    name: &RepositoryName,
    digest: Digest,
    body: Body,
) -> Result<Response, ApiError> {
    let Restore { tag } = read(call, body).await?;
    let force = call.parameter("force").is_some_and(|force| force.eq_ignore_ascii_case("true"));
    let wanted = match tag {
        None => ToRestore::Manifest(digest),
        Some(text) => ToRestore::Tag { tag: find_tag(&text)?, digest: Some(digest), force },
    };
    let cause = Cause::Restore { principal: call.caller.name().to_owned() };
    let restored = call.catalog().restore(call.registry, name, &wanted, &cause).await;
    let restored = restored.map_err(|error| ApiError::from_store(error, Code::ManifestUnknown))?;
    let tag = restored.tag.as_ref().map(|tag| format!("tag {tag}"));
    let mut shown = of(call, name);
    shown.insert("digest".to_owned(), json!(restored.digest));
    shown.insert("tag".to_owned(), json!(restored.tag));
    Ok(Told(tag.unwrap_or_default()).of(reply(StatusCode::OK, &Value::Object(shown), None)?))
}

/// An empty list is one of a repository that is there.
async fn require_repository(
    call: &Call<'_>,
    name: &RepositoryName,
    is_empty: bool,
) -> Result<(), ApiError> {
    let exists = call.catalog().repository_exists(call.registry, name);
    match is_empty && !exists.await.map_err(failed)? {
        true => Err(no_repository(name)),
        false => Ok(()),
    }
}

async fn read<T: serde::de::DeserializeOwned>(call: &Call<'_>, body: Body) -> Result<T, ApiError> {
    let bytes = Incoming::new(body, BODY_SIZE_MAX, call.limits()).whole().await?;
    serde_json::from_slice(&bytes).map_err(|error| {
        ApiError::new(Code::Unsupported, format!("the body is not understood: {error}"))
            .status(StatusCode::BAD_REQUEST)
    })
}

/// What every answer about a repository begins with.
fn of(call: &Call<'_>, name: &RepositoryName) -> Map<String, Value> {
    let members = [("registry", json!(call.host())), ("imageName", json!(name))];
    members.into_iter().map(|(member, value)| (member.to_owned(), value)).collect()
}

fn show_tag(tag: &TagInfo) -> Value {
    json!({
        "name": tag.tag,
        "digest": tag.digest,
        "createdTime": time(tag.created_at),
        "lastUpdateTime": time(tag.updated_at),
        "signed": false,
        "changeableAttributes": attributes(tag.attributes),
    })
}

/// Image configs are small; what is larger is not looked at.
const CONFIG_SIZE_MAX: u64 = 1 << 20;

/// What an image runs on, as its config has it.
#[derive(Deserialize)]
struct Platform {
    architecture: Option<String>,
    os: Option<String>,
}

/// `None` for what is no image, and where it cannot be read.
async fn platform(
    call: &Call<'_>,
    name: &RepositoryName,
    manifest: &ManifestInfo,
) -> Option<Platform> {
    let kind = manifest.config_media_type.as_deref()?;
    if !matches!(kind, media_type::OCI_CONFIG | media_type::DOCKER_CONFIG) {
        return None;
    }
    let reference = ManifestRef::Digest(manifest.digest.clone());
    let entry = call.catalog().manifest(call.registry, name, &reference).await.ok()??;
    let Ok(Manifest::Image(image)) = Manifest::parse(&entry.bytes, Some(&entry.media_type)) else {
        return None;
    };
    // Nothing is told of what the repository does not have, whatever its manifest names.
    let config = &image.config.digest;
    call.catalog().blob_size(call.registry, name, config).await.ok()??;
    let reader = call.catalog().blobs().open(config, 0).await.ok()?;
    let mut bytes = Vec::new();
    reader.into_async().take(CONFIG_SIZE_MAX).read_to_end(&mut bytes).await.ok()?;
    serde_json::from_slice(&bytes).ok()
}

async fn show_manifest(call: &Call<'_>, name: &RepositoryName, manifest: &ManifestInfo) -> Value {
    let platform = platform(call, name, manifest).await;
    let (architecture, os) =
        platform.map_or((None, None), |platform| (platform.architecture, platform.os));
    let mut shown = json!({
        "digest": manifest.digest,
        "imageSize": manifest.image_size,
        "createdTime": time(manifest.pushed_at),
        "lastUpdateTime": time(manifest.updated_at),
        "architecture": architecture,
        "os": os,
        "mediaType": manifest.media_type,
        "configMediaType": manifest.config_media_type,
        "artifactType": manifest.artifact_type,
        "changeableAttributes": attributes(manifest.attributes),
    });
    if !manifest.tags.is_empty() {
        shown["tags"] = json!(manifest.tags);
    }
    shown
}

fn attributes(attributes: Attributes) -> Value {
    let Attributes { delete_enabled, write_enabled, read_enabled, list_enabled } = attributes;
    json!({
        "deleteEnabled": delete_enabled,
        "writeEnabled": write_enabled,
        "readEnabled": read_enabled,
        "listEnabled": list_enabled,
    })
}

/// RFC 3339 with seven digits of the second, as the clients of the managed service read it.
fn time(at: Millis) -> String {
    let time = jiff::Timestamp::from_millisecond(at).unwrap_or_default();
    format!("{time:.7}")
}

fn reply(status: StatusCode, value: &Value, link: Option<String>) -> Result<Response, ApiError> {
    let mut head = Response::builder().status(status);
    if let Some(link) = link {
        head = head.header(LINK, link);
    }
    match value.is_null() {
        true => respond(head, Body::empty()),
        false => {
            let head = head.header(CONTENT_TYPE, "application/json; charset=utf-8");
            respond(head, Body::from(value.to_string()))
        }
    }
}
