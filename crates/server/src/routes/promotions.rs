//! Tags that move to an image after checks and, where a task asks for it, an approval.

use axum::Extension;
use axum::extract::State;
use control::{ImageTag, Promotion, PromotionId, PromotionRequest};
use oci::{Reference, RegistryName, Tag};
use serde::Deserialize;
use store::ManifestRef;
use utoipa::IntoParams;

use super::import::wanted;
use super::{Json, Path, Query};
use crate::access::Principal;
use crate::audit::Detail;
use crate::error::ApiError;
use crate::openapi::Refusal;
use crate::state::Shared;
use crate::{from_api, to_api};

const LISTED_DEFAULT: usize = 50;
const LISTED_MAX: usize = 1_000;
/// Tasks that a request names.
const CHECKS_MAX: usize = 20;

type Shown = (Extension<Detail>, axum::Json<api::Promotion>);

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PromotionsQuery {
    /// How many at most, up to 1000; 50 if absent.
    #[serde(rename = "$top")]
    top: Option<usize>,
}

/// Lists promotions, the newest first.
#[utoipa::path(
    get, path = "/promotions", operation_id = "listPromotions", tag = "Promotions",
    params(PromotionsQuery),
    responses((status = OK, body = api::Page<api::Promotion>)),
)]
pub(crate) async fn list(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Query(query): Query<PromotionsQuery>,
) -> Result<axum::Json<api::Page<api::Promotion>>, ApiError> {
    let (registry, names) = state.registry(&registry)?;
    let top = query.top.unwrap_or(LISTED_DEFAULT).clamp(1, LISTED_MAX);
    let all = state.triggers.promotions(&registry, top).await?;
    let value = all.iter().map(|one| to_api::promotion(one, &names.login_server)).collect();
    Ok(axum::Json(api::Page { value, next_link: None }))
}

/// Begins to promote an image: its checks are queued, and the tag moves when they have passed.
#[utoipa::path(
    post, path = "/promotions", operation_id = "promote", tag = "Promotions",
    request_body = api::PromotionRequest,
    responses((status = OK, body = api::Promotion), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn make(
    State(state): State<Shared>,
    Path(registry): Path<String>,
    Extension(principal): Extension<Principal>,
    Json(body): Json<api::PromotionRequest>,
) -> Result<Shown, ApiError> {
    let (registry, names) = state.registry(&registry)?;
    if body.checks.len() > CHECKS_MAX {
        return Err(ApiError::invalid(format!("more than {CHECKS_MAX} checks")).at("checks"));
    }
    let checks = body.checks.iter().map(|name| from_api::task_name(name));
    let checks = checks.collect::<Result<Vec<_>, _>>().map_err(|error| error.at("checks"))?;
    let image = own_image(&state, &registry, &body.image, "image")?;
    let repository = &image.repository;
    let wanted = wanted(&image);
    let digest = state.catalog.digest_of(&registry, repository, &wanted).await?;
    let digest = digest.ok_or_else(|| ApiError::not_found(format!("image `{}`", body.image)))?;
    let to = match body.to.contains(['/', ':', '@']) {
        false => {
            let refuse = |message: String| ApiError::invalid(message).at("to");
            let tag: Tag =
                body.to.parse().map_err(|error: oci::ReferenceError| refuse(error.to_string()))?;
            if may_be_host(&body.to) {
                let message = format!(
                    "`{tag}` may be a tag, or another registry, where nothing is promoted to"
                );
                return Err(refuse(message).hint(format!("for a tag write `{repository}:{tag}`")));
            }
            ImageTag::own(repository.as_str(), tag.as_str())
        }
        true => {
            let to = own_image(&state, &registry, &body.to, "to")?;
            let (None, Some(tag)) = (&to.digest, to.tag_or_latest()) else {
                return Err(ApiError::invalid("a digest never moves: give a tag").at("to"));
            };
            state.refuse_copy(&to.repository)?;
            ImageTag::own(to.repository.as_str(), tag.as_str())
        }
    };
    let tag = match wanted {
        ManifestRef::Tag(tag) => Some(tag.to_string()),
        ManifestRef::Digest(_) => None,
    };
    let named = format!("{}/{repository}@{digest}", names.login_server);
    let request = PromotionRequest { repository: repository.to_string(), tag, digest, to };
    let by = principal.name();
    let begun = state.triggers.promote(&registry, &named, &request, &checks, &by).await?;
    shown(&state, "begin", &begun)
}

/// A promotion.
#[utoipa::path(
    get, path = "/promotions/{promotion}", operation_id = "getPromotion", tag = "Promotions",
    responses((status = OK, body = api::Promotion)),
)]
pub(crate) async fn show(
    State(state): State<Shared>,
    Path((registry, promotion)): Path<(String, String)>,
) -> Result<axum::Json<api::Promotion>, ApiError> {
    let (registry, names) = state.registry(&registry)?;
    let promotion = state.triggers.promotion(&registry, promotion_id(&promotion)?).await?;
    Ok(axum::Json(to_api::promotion(&promotion, &names.login_server)))
}

/// Approves a promotion whose checks have passed. Somebody else has to than whoever has begun it.
#[utoipa::path(
    post, path = "/promotions/{promotion}/approve", operation_id = "approvePromotion", tag = "Promotions",
    responses((status = OK, body = api::Promotion), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn approve(
    State(state): State<Shared>,
    Path((registry, promotion)): Path<(String, String)>,
    Extension(principal): Extension<Principal>,
) -> Result<Shown, ApiError> {
    let (registry, id) = place(&state, &registry, &promotion)?;
    let by = principal.name();
    // The server's own credentials are not one person's.
    if matches!(principal, Principal::Known(_))
        && state.triggers.promotion(&registry, id).await?.created_by == by
    {
        let message = format!("`{by}` has begun promotion `{id}`, and somebody else approves it");
        return Err(ApiError::forbidden(message));
    }
    shown(&state, "approve", &state.triggers.approve_promotion(&registry, id, &by).await?)
}

/// Ends a promotion before its tag moves. Its checks are canceled.
#[utoipa::path(
    post, path = "/promotions/{promotion}/reject", operation_id = "rejectPromotion", tag = "Promotions",
    responses((status = OK, body = api::Promotion), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn reject(
    State(state): State<Shared>,
    Path((registry, promotion)): Path<(String, String)>,
    Extension(principal): Extension<Principal>,
) -> Result<Shown, ApiError> {
    let (registry, id) = place(&state, &registry, &promotion)?;
    let by = principal.name();
    shown(&state, "reject", &state.triggers.reject_promotion(&registry, id, &by).await?)
}

/// Puts back the tag that a promotion has moved, unless somebody has moved it since.
#[utoipa::path(
    post, path = "/promotions/{promotion}/rollback", operation_id = "rollBackPromotion", tag = "Promotions",
    responses((status = OK, body = api::Promotion), (status = CONFLICT, response = Refusal)),
)]
pub(crate) async fn roll_back(
    State(state): State<Shared>,
    Path((registry, promotion)): Path<(String, String)>,
    Extension(principal): Extension<Principal>,
) -> Result<Shown, ApiError> {
    let (registry, id) = place(&state, &registry, &promotion)?;
    let by = principal.name();
    shown(&state, "roll back", &state.triggers.roll_back_promotion(&registry, id, &by).await?)
}

/// An image of the registry itself, with its host before it or without.
fn own_image(
    state: &Shared,
    registry: &RegistryName,
    text: &str,
    member: &str,
) -> Result<Reference, ApiError> {
    let refuse = |message: String| ApiError::invalid(message).at(member);
    let parse = |text: &str| text.parse::<Reference>().map_err(|error| refuse(error.to_string()));
    let reference = parse(text)?;
    if !reference.has_host {
        let (_, names) = state.registry(registry.as_str())?;
        return parse(&format!("{}/{text}", names.login_server));
    }
    match state.own_names().registry(&reference) == Some(registry) {
        true => Ok(reference),
        false => Err(refuse(format!("`{}` is in another registry", from_api::cut(text)))),
    }
}

/// Whether a text without `/` and `:` looks like `r.example.com`.
fn may_be_host(text: &str) -> bool {
    text.rsplit_once('.').is_some_and(|(_, last)| {
        last.len() > 1 && last.bytes().all(|byte| byte.is_ascii_lowercase())
    })
}

fn place(
    state: &Shared,
    registry: &str,
    promotion: &str,
) -> Result<(RegistryName, PromotionId), ApiError> {
    let (registry, _) = state.registry(registry)?;
    Ok((registry, promotion_id(promotion)?))
}

fn promotion_id(text: &str) -> Result<PromotionId, ApiError> {
    text.parse().map_err(|error| {
        let message = format!("`{}` is no promotion: {error}", from_api::cut(text));
        ApiError::invalid(message).at("promotion")
    })
}

/// The answer about a promotion, and what the audit log has of it.
fn shown(state: &Shared, what: &str, promotion: &Promotion) -> Result<Shown, ApiError> {
    let (_, names) = state.registry(promotion.registry.as_str())?;
    let PromotionRequest { repository, digest, to, .. } = &promotion.request;
    let detail =
        Detail(format!("{what} promotion {} of {repository}@{digest} to {to}", promotion.id));
    Ok((Extension(detail), axum::Json(to_api::promotion(promotion, &names.login_server))))
}
