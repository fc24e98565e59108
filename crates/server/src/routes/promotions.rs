//! Tags that move to an image after checks and, where a task asks for it, an approval.

use axum::Extension;
use axum::extract::State;
use control::{CHECKS_MAX, ImageTag, NewPromotion, Promotion, PromotionId, PromotionRequest};
use futures_util::FutureExt as _;
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
use crate::{from_api, promote, to_api};

const LISTED_DEFAULT: usize = 50;
const LISTED_MAX: usize = 1_000;

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
    let image = own_image(&state, &registry, &body.image)?;
    let repository = &image.repository;
    let wanted = wanted(&image);
    let digest = state.catalog.digest_of(&registry, repository, &wanted).await?;
    let digest = digest.ok_or_else(|| ApiError::not_found(format!("image `{}`", body.image)))?;
    let to = target(&state, &registry, &image, &body.to)?;
    let before = match &to {
        Target::Own(to) => {
            let reference = ManifestRef::Tag(to.tag.parse().map_err(malformed)?);
            let repository = to.repository.parse().map_err(malformed)?;
            state.catalog.digest_of(&registry, &repository, &reference).await?
        }
        Target::Other(to) => promote::digest_before(&state, &registry, &digest, to).await?,
    };
    let tag = match wanted {
        ManifestRef::Tag(tag) => Some(tag.to_string()),
        ManifestRef::Digest(_) => None,
    };
    let named = format!("{}/{repository}@{digest}", names.login_server);
    let related = promote::related(&state, &registry, repository, &digest).await?;
    let to = to.image_tag();
    let request = PromotionRequest { repository: repository.to_string(), tag, digest, to };
    let new = NewPromotion {
        request: &request,
        image: &named,
        related: &related,
        before: before.as_ref(),
        checks: &checks,
        by: &principal.name(),
    };
    let begun = state.triggers.promote(&registry, &new).await?;
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
    let promotion = state.triggers.promotion(&registry, id).await?;
    promotion.require_succeeded()?;
    match promotion.request.to.host {
        Some(_) => promote::put_back(&state, &promotion).boxed().await?,
        None => state.triggers.put_back_promoted(&promotion, &principal.name()).await?,
    }
    shown(&state, "roll back", &state.triggers.promotion_rolled_back(&promotion).await?)
}

/// What moves.
enum Target {
    Own(ImageTag),
    Other(Reference),
}

impl Target {
    fn image_tag(self) -> ImageTag {
        match self {
            Self::Own(tag) => tag,
            Self::Other(reference) => ImageTag {
                tag: reference.tag_or_latest().unwrap_or_else(Tag::latest).to_string(),
                repository: reference.repository.to_string(),
                host: Some(reference.host),
            },
        }
    }
}

/// A tag of the image's repository; a name with a tag; or a registry, `HOST/`, where the image has the same name.
fn target(
    state: &Shared,
    registry: &RegistryName,
    image: &Reference,
    text: &str,
) -> Result<Target, ApiError> {
    let refuse = |message: String| ApiError::invalid(message).at("to");
    let repository = &image.repository;
    if !text.contains(['/', ':', '@']) {
        let tag: Tag = text.parse().map_err(malformed)?;
        if may_be_host(text) {
            let message = format!("`{tag}` may be a tag or a registry");
            let hint = format!("write `{repository}:{tag}` for the tag, `{tag}/` for the registry");
            return Err(refuse(message).hint(hint));
        }
        state.refuse_copy(repository)?;
        return Ok(Target::Own(ImageTag::own(repository.as_str(), tag.as_str())));
    }
    let whole = match (text.ends_with('/'), &image.digest, image.tag_or_latest()) {
        (false, ..) => text.to_owned(),
        (true, None, Some(tag)) => format!("{text}{repository}:{tag}"),
        (true, ..) => {
            let message = format!("an image that is named by its digest has no tag in `{text}`");
            return Err(refuse(message).hint(format!("write `{text}{repository}:TAG`")));
        }
    };
    let to = named(state, registry, &whole).map_err(|error| error.at("to"))?;
    let (None, Some(tag)) = (&to.digest, to.tag_or_latest()) else {
        return Err(refuse("a digest never moves: give a tag".to_owned()));
    };
    match state.own_names().registry(&to) {
        Some(own) if own == registry => {
            state.refuse_copy(&to.repository)?;
            Ok(Target::Own(ImageTag::own(to.repository.as_str(), tag.as_str())))
        }
        Some(_) => Err(refuse(format!(
            "`{}` is in another registry of this server: import it there",
            from_api::cut(text)
        ))),
        None => Ok(Target::Other(Reference { tag: Some(tag), ..to })),
    }
}

fn malformed(error: oci::ReferenceError) -> ApiError {
    ApiError::invalid(error.to_string()).at("to")
}

/// An image of the registry itself.
fn own_image(state: &Shared, registry: &RegistryName, text: &str) -> Result<Reference, ApiError> {
    let reference = named(state, registry, text).map_err(|error| error.at("image"))?;
    match state.own_names().registry(&reference) == Some(registry) {
        true => Ok(reference),
        false => {
            let message = format!("`{}` is in another registry", from_api::cut(text));
            Err(ApiError::invalid(message).at("image").hint("`refit import` brings it here"))
        }
    }
}

/// An image by its name, which is of the registry itself if there is no host.
fn named(state: &Shared, registry: &RegistryName, text: &str) -> Result<Reference, ApiError> {
    let parse = |text: &str| {
        text.parse::<Reference>().map_err(|error| ApiError::invalid(error.to_string()))
    };
    let reference = parse(text)?;
    if reference.has_host {
        return Ok(reference);
    }
    let (_, names) = state.registry(registry.as_str())?;
    parse(&format!("{}/{text}", names.login_server))
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
