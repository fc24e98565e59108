//! Secrets of vaults, which runs sign in to by what they are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, Request, State};
use axum::http::StatusCode as Status;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Server, answer};

const ISSUER: &str = "https://refit.example.com";

/// A Vault, a directory with a key vault, and a cluster, on one port.
#[derive(Default)]
struct Vaults {
    keys: Mutex<Option<JwkSet>>,
    /// What was asked of them, with whom for.
    seen: Mutex<Vec<String>>,
}

impl Vaults {
    async fn start() -> (Arc<Self>, String) {
        let vaults = Arc::new(Self::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let routes = Router::new()
            .route("/v1/auth/jwt/login", post(login))
            .route("/v1/auth/token/revoke-self", post(revoke))
            .route("/v1/{mount}/data/{*path}", get(read_field))
            .route("/token", post(exchange))
            .route("/secrets/{name}", get(read_secret))
            .route("/api/v1/namespaces/{namespace}/secrets/{name}", get(read_of_cluster))
            .with_state(Arc::clone(&vaults));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (vaults, host)
    }

    fn note(&self, text: String) {
        self.seen.lock().unwrap().push(text);
    }

    /// Whose a token is, if the issuer has signed it for this audience and it is not over.
    fn subject(&self, token: &str, audience: &str) -> Option<String> {
        let header = jsonwebtoken::decode_header(token).ok()?;
        let keys = self.keys.lock().unwrap();
        let key = DecodingKey::from_jwk(keys.as_ref()?.find(&header.kid?)?).ok()?;
        let mut validation = Validation::new(Algorithm::RS256);
        validation.set_audience(&[audience]);
        validation.set_issuer(&[ISSUER]);
        let claims = jsonwebtoken::decode::<Value>(token, &key, &validation).ok()?.claims;
        Some(claims["sub"].as_str()?.to_owned())
    }
}

type Shared = State<Arc<Vaults>>;

async fn login(State(vaults): Shared, request: Request) -> Result<Json<Value>, Status> {
    let namespace = request.headers().get("x-vault-namespace").cloned();
    let host = request.headers().get("host").cloned().ok_or(Status::BAD_REQUEST)?;
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await;
    let body: Value = serde_json::from_slice(&body.unwrap()).unwrap();
    let audience = format!("http://{}", host.to_str().unwrap());
    let subject = vaults.subject(body["jwt"].as_str().unwrap_or_default(), &audience);
    let subject = subject.ok_or(Status::FORBIDDEN)?;
    vaults.note(format!("{} signs in as {} within {namespace:?}", subject, body["role"]));
    Ok(Json(json!({ "auth": { "client_token": format!("token of {subject}") } })))
}

async fn revoke(State(vaults): Shared, request: Request) {
    vaults.note(format!("{:?} is revoked", request.headers()["x-vault-token"]));
}

async fn read_field(
    State(vaults): Shared,
    Path((mount, path)): Path<(String, String)>,
    request: Request,
) -> axum::response::Response {
    let token = request.headers()["x-vault-token"].to_str().unwrap().to_owned();
    if token != "token of registry:local:run" {
        return Status::FORBIDDEN.into_response();
    }
    let version = request.uri().query().unwrap_or("the latest").to_owned();
    vaults.note(format!("{mount}/{path}, {version}"));
    match path.as_str() {
        "team/app" => {
            let data = json!({ "password": "hunter2-of-vault", "port": 5432, "list": [] });
            Json(json!({ "data": { "data": data, "metadata": { "version": 1 } } })).into_response()
        }
        "broken" => "no JSON".into_response(),
        "down" => Status::SERVICE_UNAVAILABLE.into_response(),
        _ => Status::NOT_FOUND.into_response(),
    }
}

async fn exchange(State(vaults): Shared, body: Bytes) -> Result<Json<Value>, Status> {
    let form: BTreeMap<String, String> = url::form_urlencoded::parse(&body).into_owned().collect();
    let subject = vaults.subject(&form["client_assertion"], "api://AzureADTokenExchange");
    let subject = subject.ok_or(Status::UNAUTHORIZED)?;
    vaults.note(format!("{subject} exchanges as {} for {}", form["client_id"], form["scope"]));
    Ok(Json(json!({ "access_token": "of-the-directory" })))
}

async fn read_secret(Path(name): Path<String>, request: Request) -> Result<Json<Value>, Status> {
    let bearer = &request.headers()["authorization"];
    match (bearer.to_str().unwrap(), name.as_str(), request.uri().query()) {
        ("Bearer of-the-directory", "app", Some("api-version=7.4")) => {
            Ok(Json(json!({ "value": "hunter2-of-key-vault", "id": "x" })))
        }
        _ => Err(Status::NOT_FOUND),
    }
}

async fn read_of_cluster(
    Path((namespace, name)): Path<(String, String)>,
    request: Request,
) -> Result<Json<Value>, Status> {
    let bearer = &request.headers()["authorization"];
    match (bearer.to_str().unwrap(), namespace.as_str(), name.as_str()) {
        ("Bearer of-the-cluster", "build", "npm") => {
            Ok(Json(json!({ "data": { "token": "aHVudGVyMi1vZi1jbHVzdGVy" } })))
        }
        _ => Err(Status::NOT_FOUND),
    }
}

/// A run that an agent has, as the agent sees it.
struct Attempt {
    path: String,
    token: String,
}

impl Attempt {
    async fn begin(server: &Server) -> Self {
        let pool = "/agentPools/builders";
        let made = server.request(Method::PUT, pool).json(&json!({ "properties": { "count": 1 } }));
        answer(made.send().await.unwrap(), StatusCode::OK).await;
        let told = server.request(Method::POST, &format!("{pool}/listAgentToken"));
        let token = answer(told.send().await.unwrap(), StatusCode::OK).await;
        let run = json!({
            "type": "EncodedTaskRunRequest",
            "encodedTaskContent": "c3RlcHM6IFtd",
            "platform": { "os": "Linux" },
            "agentPoolName": "builders",
        });
        let run = server.request(Method::POST, "/scheduleRun").json(&run).send().await.unwrap();
        answer(run, StatusCode::CREATED).await;
        let claim = json!({
            "agent": "one", "platform": "linux/amd64", "version": env!("CARGO_PKG_VERSION"),
        });
        let path = format!("/api/v1/registries/local{pool}");
        let claimed = server.plain(Method::POST, &format!("{path}/claim"));
        let claimed = claimed.bearer_auth(token["token"].as_str().unwrap()).json(&claim);
        let lease = answer(claimed.send().await.unwrap(), StatusCode::OK).await;
        let (id, epoch) = (&lease["run"]["id"], &lease["epoch"]);
        Self {
            path: format!("{path}/attempts/{}/{epoch}/secret", id.as_str().unwrap()),
            token: lease["token"].as_str().unwrap().to_owned(),
        }
    }

    /// The value of a secret, or why it is not told.
    async fn secret(&self, server: &Server, address: &str) -> String {
        let body = json!({ "id": "it", "address": address, "client_id": null });
        let asked = server.plain(Method::POST, &self.path).bearer_auth(&self.token).json(&body);
        let told = answer(asked.send().await.unwrap(), StatusCode::OK).await;
        let (_, text) = told.as_object().unwrap().iter().next().unwrap();
        text.as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn runs_sign_in_to_vaults_by_what_they_are() {
    let (vaults, host) = Vaults::start().await;
    let folder = tempfile::tempdir().unwrap();
    let cluster_token = folder.path().join("token");
    std::fs::write(&cluster_token, "of-the-cluster\n").unwrap();
    let settings = format!(
        "[server]\npublic_url = \"{ISSUER}/\"\n\
         [vault.\"{host}\"]\nplain_http = true\nrole = \"refit\"\nnamespace = \"team\"\n\
         token_url = \"http://{host}/token\"\nclient_id = \"the-client\"\n\
         [kubernetes]\napi = \"http://{host}\"\ntoken_file = \"{}\"\n\
         [registry.local]\nsecret_namespaces = [\"build\"]\n",
        cluster_token.display()
    );
    let server = Server::start_with(&settings, &[]).await;
    let known = server.plain(Method::GET, "/.well-known/openid-configuration").send().await;
    let known = answer(known.unwrap(), StatusCode::OK).await;
    assert_eq!(known["issuer"], ISSUER);
    assert_eq!(known["jwks_uri"], format!("{ISSUER}/.well-known/jwks.json"));
    let keys = server.plain(Method::GET, "/.well-known/jwks.json").send().await.unwrap();
    *vaults.keys.lock().unwrap() = Some(keys.json().await.unwrap());
    let attempt = Attempt::begin(&server).await;

    let vault = |rest: &str| format!("vault://{host}/secret/{rest}");
    for (address, expected) in [
        (vault("team/app#password"), "hunter2-of-vault"),
        (vault("team/app?version=3#port"), "5432"),
        (vault("team/app#list"), "field `list` is no text"),
        (vault("team/app#none"), "it has no field `none`"),
        (vault("none#x"), "the vault: there is none (404)"),
        (vault("broken#x"), "the vault: the answer cannot be read"),
        (vault("down#x"), "the vault: status 503"),
        (
            "vault://other.example.net/a/b#c".into(),
            "the settings have no `[vault.\"other.example.net\"]` for registry `local`",
        ),
        (format!("https://{host}/secrets/app"), "hunter2-of-key-vault"),
        (format!("https://{host}/secrets/none"), "the vault: there is none (404)"),
        ("kubernetes://build/npm/token".into(), "hunter2-of-cluster"),
        ("kubernetes://build/npm/none".into(), "it has no key `none`"),
        (
            "kubernetes://kube-system/npm/token".into(),
            "namespace `kube-system` is not in `registry.local.secret_namespaces`",
        ),
    ] {
        assert_eq!(attempt.secret(&server, &address).await, expected, "{address}");
    }
    let seen = vaults.seen.lock().unwrap().clone();
    assert_eq!(
        seen[..3],
        [
            "registry:local:run signs in as \"refit\" within Some(\"team\")",
            "secret/team/app, the latest",
            "\"token of registry:local:run\" is revoked",
        ]
    );
    assert!(seen.contains(&"secret/team/app, version=3".to_owned()), "{seen:?}");
    let audience = format!("https://{}", host.split_once('.').unwrap().1);
    let exchanged = format!("registry:local:run exchanges as the-client for {audience}/.default");
    assert!(seen.contains(&exchanged), "{seen:?}");
    server.stop().await;
}

#[tokio::test]
async fn an_attempt_gets_secrets_only_with_its_own_token() {
    let server = Server::start().await;
    let attempt = Attempt::begin(&server).await;
    let body = json!({ "id": "it", "address": "store://x", "client_id": null });
    let asked = server.plain(Method::POST, &attempt.path).bearer_auth(server.token()).json(&body);
    answer(asked.send().await.unwrap(), StatusCode::UNAUTHORIZED).await;
    let told = attempt.secret(&server, "store://x").await;
    assert_eq!(told, "the registry has no secret `x` for runs that are of no task");
    assert_eq!(
        attempt.secret(&server, "vault://v.example.net/a/b#c").await,
        "the settings have no `[vault.\"v.example.net\"]` for registry `local`"
    );
    // Nor once it has given the run back.
    let back = attempt.path.replace("/secret", "/giveBack");
    let back = server.plain(Method::POST, &back).bearer_auth(&attempt.token).json(&json!(null));
    assert!(back.send().await.unwrap().status().is_success());
    let asked = server.plain(Method::POST, &attempt.path).bearer_auth(&attempt.token).json(&body);
    answer(asked.send().await.unwrap(), StatusCode::GONE).await;
    for path in ["/.well-known/openid-configuration", "/.well-known/jwks.json"] {
        let none = server.plain(Method::GET, path).send().await.unwrap();
        answer(none, StatusCode::NOT_FOUND).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn who_may_have_a_secret_is_said_and_its_value_is_not() {
    let server = Server::start().await;
    let put = async |name: &str, properties: Value, expected: StatusCode| {
        let request = server.request(Method::PUT, &format!("/secrets/{name}"));
        let sent = request.json(&json!({ "properties": properties })).send().await.unwrap();
        answer(sent, expected).await
    };
    let value = || json!({ "value": "hunter2" });
    let error = put("signing", value(), StatusCode::BAD_REQUEST).await;
    assert_eq!(
        error["error"]["message"],
        "secret `signing` is not there yet, and nobody may have it"
    );
    let made = json!({ "value": "hunter2", "tasks": ["nightly"], "description": "a key" });
    put("signing", made, StatusCode::OK).await;
    let changed = put("signing", value(), StatusCode::OK).await;
    assert_eq!(changed["properties"]["tasks"], json!(["nightly"]));
    assert_eq!(changed["properties"]["allRuns"], false);
    assert_eq!(changed["properties"]["description"], "a key");
    assert!(!changed.to_string().contains("hunter2"));
    for bad in [
        json!({ "task": ["nightly"], "value": "hunter2" }),
        json!({ "tasks": ["nightly"], "allRuns": true }),
        json!({ "tasks": [] }),
        json!({ "tasks": ["no"] }),
    ] {
        put("signing", bad, StatusCode::BAD_REQUEST).await;
    }
    put("other", json!({ "allRuns": true, "value": "x" }), StatusCode::OK).await;
    let first = server.get("/secrets?$top=1").await;
    assert_eq!(first["value"][0]["name"], "other");
    let next = first["nextLink"].as_str().unwrap();
    let next = server.plain(Method::GET, next).bearer_auth(server.token()).send().await.unwrap();
    assert_eq!(answer(next, StatusCode::OK).await["value"][0]["name"], "signing");
    let gone = server.request(Method::DELETE, "/secrets/other").send().await.unwrap();
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    let shown = server.request(Method::GET, "/secrets/other").send().await.unwrap();
    answer(shown, StatusCode::NOT_FOUND).await;
    server.stop().await;
}
