//! The description of the REST API, in OpenAPI 3.1.
//!
//! Handlers say what is their own, beside the code: what they take and answer. Here is what all of
//! them have in common: parameters of paths, who may ask, and how a request is refused.
//!
//! `docs/openapi.json` is what comes of it, and a test compares the two: whoever changes the API
//! sees there what clients will see.

mod variants;

use std::sync::LazyLock;

use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::{Object, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, Required, Response, ResponseBuilder};
use utoipa::{OpenApi as _, ToResponse, ToSchema};

use crate::error::ApiError;
use crate::routes;

/// This description, for programs that make clients and pages of it.
#[utoipa::path(
    get, path = "/api/v1/openapi.json", operation_id = "getDescription", tag = "Server",
    responses((status = OK, body = inline(Document))),
)]
pub(crate) async fn show() -> Result<impl IntoResponse, ApiError> {
    static TEXT: LazyLock<serde_json::Result<String>> = LazyLock::new(text);
    match &*TEXT {
        Ok(text) => Ok(([(CONTENT_TYPE, "application/json")], text.as_str())),
        Err(error) => Err(ApiError::internal(error)),
    }
}

fn text() -> serde_json::Result<String> {
    Ok(routes::description().to_pretty_json()? + "\n")
}

/// A document of OpenAPI.
#[derive(ToSchema)]
#[schema(value_type = Object)]
struct Document(());

/// Bytes as they are.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
pub(crate) struct Binary(());

/// A request is refused, or fails.
pub(crate) struct Refusal;

impl<'r> ToResponse<'r> for Refusal {
    fn response() -> (&'r str, RefOr<Response>) {
        let body = Ref::from_schema_name(api::ErrorBody::name());
        let content = ContentBuilder::new().schema(Some(body)).build();
        let response = ResponseBuilder::new()
            .description("The request is refused, or failed: `code` tells programs why")
            .content("application/json", content);
        ("Refusal", response.build().into())
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Refit",
        description = "\
A container registry that builds images and runs tasks.

Tasks, runs, task runs and agent pools have the members of the managed service that Refit stands \
in for; *ours* are members that Refit adds. Members are camelCase, times are RFC 3339 in UTC. Texts \
that stand for one of a few words compare without case. Unknown members of answers are to be \
ignored, and so are unknown kinds of records.",
    ),
    servers((url = "/")),
    tags(
        (name = "Runs", description = "Builds and tasks that wait, go on or have ended"),
        (name = "Tasks", description = "Stored definitions of runs"),
        (name = "Triggers", description = "What starts runs without anybody asking"),
        (name = "Plans", description = "What an update of a base touches, carried out and put back"),
        (name = "Promotions", description = "Tags that move after checks, and where a task asks for it an approval"),
        (name = "Task runs", description = "Runs that are declared by name"),
        (name = "Agent pools", description = "Machines that execute runs"),
        (name = "Access", description = "Who may do what"),
        (name = "Secrets", description = "What runs may have and nobody may see"),
        (name = "Webhooks", description = "Who is told of what happens"),
        (name = "Sources", description = "Uploads of what runs read"),
        (name = "Repositories", description = "What a registry holds"),
        (name = "Maintenance", description = "Deleting and annotating by rule, garbage, damage"),
        (name = "Server", description = "What needs no credentials"),
    ),
    components(schemas(api::ErrorBody, api::PackedFile), responses(Refusal)),
)]
struct Common;

/// Collections, and what the part of a path after the name of each is.
const PATH_PARAMETERS: [(&str, &str); 24] = [
    ("hooks", "Name of a registry of this server"),
    // Of the path of a delivery, where one name follows another.
    ("{registry}", "Name of a task"),
    ("{task}", "Name of a source trigger"),
    ("registries", "Name of a registry of this server, such as `local`"),
    ("runs", "Id of a run, such as `cf1`"),
    ("tasks", "Name of a task"),
    ("taskRuns", "Name of a task run"),
    ("plans", "Name of a plan, such as `p1`"),
    ("promotions", "Name of a promotion, such as `m1`"),
    ("agentPools", "Name of an agent pool"),
    ("secrets", "Name of a secret"),
    ("webhooks", "Name of a webhook"),
    ("scopeMaps", "Name of a scope map"),
    ("scopeMapAssignments", "`account:NAME` or `task:NAME`"),
    ("tokens", "Name of a token"),
    ("accounts", "Name of an account"),
    ("roleAssignments", "Name of an account"),
    ("repositories", "Name of a repository, with `/` written as `%2F`"),
    ("tags", "A tag"),
    ("manifests", "A tag, or a digest"),
    ("blobs", "A digest, such as `sha256:...`"),
    ("agents", "Id of an ssh agent that the run's request names"),
    ("sources", "Id of a source"),
    ("upload", "Id of an upload"),
];

/// How credentials are told.
const BEARER: &str = "token";
const BASIC: &str = "password";
const BASIC_DESCRIPTION: &str = "An account or `admin` with its password, a token of the registry with \
     one of its passwords, or any name with the server's token";

/// The whole description: of routes for whoever says who they are, and of those for everybody.
pub(crate) fn document(of_principals: OpenApi, of_everybody: OpenApi) -> OpenApi {
    let mut document = Common::openapi();
    document.merge(of_principals);
    for item in document.paths.paths.values_mut() {
        operations(item).for_each(protect);
    }
    document.merge(of_everybody);
    for (path, item) in &mut document.paths.paths {
        for operation in operations(item) {
            complete(path, operation);
        }
    }
    if let Some(components) = &mut document.components {
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("The server's token, from `keys/api-token` in its data folder"));
        let basic =
            HttpBuilder::new().scheme(HttpAuthScheme::Basic).description(Some(BASIC_DESCRIPTION));
        components.add_security_scheme(BEARER, SecurityScheme::Http(bearer.build()));
        components.add_security_scheme(BASIC, SecurityScheme::Http(basic.build()));
        variants::spread(components);
        variants::name(components);
    }
    document
}

pub(crate) fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, patch, delete, .. } = item;
    [get, put, post, patch, delete].into_iter().flatten()
}

fn protect(operation: &mut Operation) {
    let by = |scheme| SecurityRequirement::new(scheme, [""; 0]);
    operation.security = Some(vec![by(BEARER), by(BASIC)]);
    refuse(operation, StatusCode::UNAUTHORIZED.as_str());
    refuse(operation, StatusCode::TOO_MANY_REQUESTS.as_str());
    refuse(operation, StatusCode::FORBIDDEN.as_str());
}

/// Adds what follows from an operation's path and body.
fn complete(path: &str, operation: &mut Operation) {
    let mut segments = path.split('/').peekable();
    let mut parameters = Vec::new();
    while let Some(segment) = segments.next() {
        let name = segments.peek().and_then(|next| next.strip_prefix('{')?.strip_suffix('}'));
        let description = PATH_PARAMETERS.iter().find(|(collection, _)| *collection == segment);
        parameters.extend(name.map(|name| {
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Path)
                .required(Required::True)
                .description(description.map(|(_, description)| *description))
                .schema(Some(Object::with_type(Type::String)))
                .build()
                .into()
        }));
    }
    for response in operation.responses.responses.iter_mut() {
        describe(response);
    }
    if !parameters.is_empty() {
        refuse(operation, StatusCode::NOT_FOUND.as_str());
        parameters.extend(operation.parameters.take().unwrap_or_default());
        operation.parameters = Some(parameters);
    }
    if operation.parameters.is_some() || operation.request_body.is_some() {
        refuse(operation, StatusCode::BAD_REQUEST.as_str());
    }
    if operation.request_body.is_some() {
        refuse(operation, StatusCode::REQUEST_TIMEOUT.as_str());
        refuse(operation, StatusCode::PAYLOAD_TOO_LARGE.as_str());
    }
    refuse(operation, "default");
}

fn refuse(operation: &mut Operation, status: &str) {
    let (name, _) = Refusal::response();
    let refusal = RefOr::Ref(Ref::from_response_name(name));
    operation.responses.responses.entry(status.to_owned()).or_insert(refusal);
}

/// An answer that has nothing to say for itself is called by its status.
fn describe((status, response): (&String, &mut RefOr<Response>)) {
    let RefOr::T(response) = response else { return };
    let status = status.parse().ok().and_then(|status| StatusCode::from_u16(status).ok());
    if let Some(reason) = status.and_then(|status| status.canonical_reason())
        && response.description.is_empty()
    {
        response.description = reason.to_owned();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use expect_test::expect_file;
    use serde_json::Value;

    use super::*;

    fn description() -> Value {
        serde_json::to_value(routes::description()).unwrap()
    }

    /// All operations: path, method and what is said of them.
    fn each(description: &Value) -> Vec<(&str, &str, &Value)> {
        let paths = description["paths"].as_object().unwrap().iter();
        let operations = paths.flat_map(|(path, item)| {
            let item = item.as_object().unwrap().iter();
            item.map(move |(method, operation)| (path.as_str(), method.as_str(), operation))
        });
        operations.collect()
    }

    /// Renewed with `UPDATE_EXPECT=1 cargo test -p server openapi`.
    #[test]
    fn the_document_says_what_the_routes_say() {
        expect_file!["../../../docs/openapi.json"].assert_eq(&text().unwrap());
    }

    #[test]
    fn operations_have_ids_of_their_own_and_known_tags() {
        let description = description();
        let tags = description["tags"].as_array().unwrap();
        let tags: Vec<&Value> = tags.iter().map(|tag| &tag["name"]).collect();
        let mut ids = BTreeSet::new();
        for (path, method, operation) in each(&description) {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id), "{method} {path}: `{id}` is another one's");
            let of = operation["tags"].as_array().unwrap();
            assert!(of.len() == 1 && tags.contains(&&of[0]), "{method} {path}: {of:?}");
            let summary = operation["summary"].as_str().unwrap_or_default();
            assert!(!summary.is_empty() && !summary.contains('\n'), "{method} {path}: {summary}");
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                assert!(parameter["description"].is_string(), "{method} {path}: {parameter}");
            }
        }
    }

    #[test]
    fn what_agents_ask_for_is_not_described() {
        let description = description();
        let paths: Vec<&str> = each(&description).into_iter().map(|(path, ..)| path).collect();
        let of_agents = ["/claim", "/queue", "/attempts"];
        let found = paths.iter().find(|path| of_agents.iter().any(|part| path.contains(part)));
        assert_eq!(found, None);
        assert!(paths.contains(&"/api/v1/registries/{registry}/agentPools/{name}"));
    }

    #[test]
    fn only_what_is_for_everybody_needs_no_credentials() {
        let description = description();
        let open = each(&description).into_iter().filter(|(.., operation)| {
            let needs = operation["security"].as_array().is_some_and(|ways| !ways.is_empty());
            assert_eq!(needs, operation["responses"]["401"].is_object(), "{operation}");
            !needs
        });
        let open: Vec<&str> = open.map(|(path, ..)| path).collect();
        let expected = [
            "/.well-known/jwks.json",
            "/.well-known/openid-configuration",
            "/api/v1/openapi.json",
            "/api/v1/registries/{registry}/sources/upload/{id}",
            "/api/v1/signIn",
            "/api/v1/signIn",
            "/api/v1/version",
            "/healthz",
            "/hooks/{registry}/{task}/{trigger}",
            "/metrics",
            "/readyz",
        ];
        assert_eq!(open, expected);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
            match value {
                Value::Array(items) => items.iter().for_each(|item| references(item, found)),
                Value::Object(members) => {
                    found.extend(members.get("$ref").and_then(Value::as_str));
                    let mapping = members.get("mapping").and_then(Value::as_object);
                    found.extend(mapping.into_iter().flatten().filter_map(|(_, to)| to.as_str()));
                    members.values().for_each(|member| references(member, found));
                }
                _ => (),
            }
        }
        let description = description();
        let mut found = BTreeSet::new();
        references(&description, &mut found);
        assert!(found.len() > 50, "{found:?}");
        for reference in found {
            let target = reference.strip_prefix('#').and_then(|at| description.pointer(at));
            assert!(target.is_some(), "{reference}");
        }
    }

    /// Not every attribute of serde is known to those who make schemas.
    #[test]
    fn members_are_named_in_camel_case() {
        fn check(name: &str, value: &Value) {
            if let Value::Object(members) = value {
                let own = members.get("properties").and_then(Value::as_object);
                let other =
                    own.into_iter().flat_map(|own| own.keys()).find(|key| key.contains('_'));
                assert_eq!(other, None, "{name}");
                members.values().for_each(|member| check(name, member));
            } else if let Value::Array(items) = value {
                items.iter().for_each(|item| check(name, item));
            }
        }
        let description = description();
        for (name, schema) in description["components"]["schemas"].as_object().unwrap() {
            check(name, schema);
        }
    }

    #[test]
    fn variants_are_told_apart_by_a_member() {
        let description = description();
        let schemas = &description["components"]["schemas"];
        for (name, member) in [
            ("RunRequest", "type"),
            ("TaskStep", "type"),
            ("SourceEntry", "type"),
            ("NamedContext", "kind"),
            ("Event", "kind"),
        ] {
            let discriminator = &schemas[name]["discriminator"];
            assert_eq!(discriminator["propertyName"], member, "{name}");
            let variants = schemas[name]["oneOf"].as_array().unwrap().len();
            assert_eq!(discriminator["mapping"].as_object().unwrap().len(), variants, "{name}");
        }
    }
}
