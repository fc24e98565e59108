//! People sign in with a provider.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Redirect;
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use oci::Digest;
use rsa::RsaPrivateKey;
use rsa::pkcs1::EncodeRsaPrivateKey as _;
use serde_json::{Value, json};
use testkit::{Invocation, Outcome, Running, Sandbox, Server};

use crate::output::tool;
use crate::sandbox;

type Fields = HashMap<String, String>;

/// A provider, where one person is signed in already.
struct Provider {
    address: String,
    shared: Arc<Shared>,
}

struct Shared {
    address: String,
    key: EncodingKey,
    public: Jwk,
    /// What it says of that person.
    claims: Mutex<Value>,
    /// By code, what was asked for.
    asked: Mutex<HashMap<String, Fields>>,
    /// How often a device has asked.
    polls: Mutex<u32>,
}

impl Provider {
    fn start(claims: Value) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("there is a port");
        let address = format!("http://{}", listener.local_addr().expect("it is bound"));
        let key = RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).expect("a key is made");
        let key = key.to_pkcs1_der().expect("it is written");
        let key = EncodingKey::from_rsa_der(key.as_bytes());
        let public = Jwk::from_encoding_key(&key, Algorithm::RS256).expect("it has a public half");
        let shared = Arc::new(Shared {
            address: address.clone(),
            key,
            public,
            claims: Mutex::new(claims),
            asked: Mutex::default(),
            polls: Mutex::default(),
        });
        let routes = Router::new()
            .route("/.well-known/openid-configuration", get(configuration))
            .route("/keys", get(keys))
            .route("/authorize", get(authorize))
            .route("/device", post(device))
            .route("/token", post(token))
            .with_state(Arc::clone(&shared));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime starts").block_on(async move {
                listener.set_nonblocking(true).expect("it can be");
                let listener = tokio::net::TcpListener::from_std(listener).expect("it can be");
                axum::serve(listener, routes).await
            })
        });
        Self { address, shared }
    }

    /// What it says of the person from now on.
    fn says(&self, claims: Value) {
        *self.shared.claims.lock().expect("nobody panics") = claims;
    }
}

async fn configuration(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let at = |path: &str| format!("{}{path}", shared.address);
    Json(json!({
        "issuer": shared.address,
        "authorization_endpoint": at("/authorize"),
        "token_endpoint": at("/token"),
        "device_authorization_endpoint": at("/device"),
        "jwks_uri": at("/keys"),
    }))
}

async fn keys(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({ "keys": [shared.public] }))
}

/// RFC 6749 section 4.1, with PKCE.
async fn authorize(
    State(shared): State<Arc<Shared>>,
    Query(asked): Query<Fields>,
) -> Result<Redirect, StatusCode> {
    let is = |name: &str, value: &str| asked.get(name).is_some_and(|given| given == value);
    let is_fine = is("response_type", "code")
        && is("client_id", "refit-cli")
        && is("scope", "openid email")
        && is("code_challenge_method", "S256");
    if !is_fine {
        return Err(StatusCode::BAD_REQUEST);
    }
    let place = format!("{}?code=the-code&state={}", asked["redirect_uri"], asked["state"]);
    shared.asked.lock().expect("nobody panics").insert("the-code".to_owned(), asked);
    Ok(Redirect::to(&place))
}

/// RFC 8628.
async fn device(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({
        "device_code": "the-device", "user_code": "WDJB-MJHT", "interval": 1, "expires_in": 60,
        "verification_uri": format!("{}/type-it", shared.address),
    }))
}

async fn token(
    State(shared): State<Arc<Shared>>,
    form: String,
) -> Result<Json<Value>, (StatusCode, Json<Value>)> {
    let refused = |error: &str| Err((StatusCode::BAD_REQUEST, Json(json!({ "error": error }))));
    let uri = format!("/?{form}").parse().expect("it is a form");
    let Query(fields) = Query::<Fields>::try_from_uri(&uri).expect("it is a form");
    let given = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default();
    let mut claims = shared.claims.lock().expect("nobody panics").clone();
    match given("grant_type") {
        "authorization_code" => {
            let asked = shared.asked.lock().expect("nobody panics").remove(given("code"));
            let Some(asked) = asked else { return refused("invalid_grant") };
            let hash = Digest::of(given("code_verifier").as_bytes());
            let challenge = BASE64_URL_SAFE_NO_PAD.encode(bytes(hash.hex()));
            let is_same = asked["redirect_uri"] == given("redirect_uri");
            if asked["code_challenge"] != challenge || !is_same {
                return refused("invalid_grant");
            }
            claims["nonce"] = json!(asked["nonce"]);
        }
        "urn:ietf:params:oauth:grant-type:device_code" => {
            let mut polls = shared.polls.lock().expect("nobody panics");
            *polls += 1;
            if given("device_code") != "the-device" {
                return refused("invalid_grant");
            }
            if *polls < 2 {
                return refused("authorization_pending");
            }
        }
        _ => return refused("unsupported_grant_type"),
    }
    let now = jsonwebtoken::get_current_timestamp();
    let mut whole = json!({
        "iss": shared.address, "aud": "refit-cli", "sub": "id-of-ann", "iat": now, "exp": now + 300
    });
    let members = whole.as_object_mut().expect("it is one");
    members.extend(claims.as_object().expect("it is one").clone());
    let header = Header::new(Algorithm::RS256);
    let id_token = jsonwebtoken::encode(&header, &whole, &shared.key).expect("it is signed");
    Ok(Json(json!({ "access_token": "x", "token_type": "Bearer", "id_token": id_token })))
}

fn bytes(hex: &str) -> Vec<u8> {
    let pairs = (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16));
    pairs.collect::<Result<_, _>>().expect("a digest is hexadecimal")
}

struct Place {
    sandbox: Sandbox,
    server: Server,
    provider: Provider,
}

impl Place {
    fn new(settings: &str) -> Self {
        let sandbox = sandbox();
        let provider = Provider::start(json!({ "email": "ann@example.org" }));
        let text = format!(
            "[sign_in]\nissuer = \"{}\"\nclient_id = \"refit-cli\"\n{settings}",
            provider.address
        );
        sandbox.write("refit.toml", text);
        let file = sandbox.path("refit.toml").display().to_string();
        let server = sandbox.server_with(&["--config", &file]);
        Self { sandbox, server, provider }
    }

    fn refit(&self, words: &str) -> Outcome {
        self.sandbox.refit(words.split(' ')).on(&self.server).run()
    }

    /// The same by somebody who has nothing but what they log in with.
    fn ann(&self, words: &str) -> Invocation {
        let command = self.sandbox.refit(words.split(' ')).env("REFIT_DATA", "");
        let command = command.env("XDG_RUNTIME_DIR", self.sandbox.path("other").display());
        command.env("XDG_CONFIG_HOME", self.sandbox.path("ann").display())
    }

    /// Begins to sign in, and says where a browser is to go.
    fn begin(&self) -> (Running, String) {
        let words = format!("login {} --oidc", self.server.url());
        let running = self.ann(&words).start();
        let place = running.line_of_stderr(&self.provider.address);
        (running, place)
    }

    fn browse(&self, place: &str) -> String {
        tool(&self.sandbox, "curl", &["-s", "-L", place]).expect("curl is installed")
    }
}

#[test]
fn somebody_signs_in_with_a_browser_and_is_their_account() {
    let place = Place::new("");
    // Whom nobody knows is nobody, whatever the provider says.
    let (running, address) = place.begin();
    // What has not the state of this sign-in is not listened to.
    let back = address.split("redirect_uri=").nth(1).expect("it is told");
    let back = back.split('&').next().expect("it is told").replace("%3A", ":").replace("%2F", "/");
    assert!(place.browse(&format!("{back}?code=evil&state=x")).contains("not signed in"));
    assert!(place.browse(&address).contains("You are signed in"));
    let refused = running.wait().code(3);
    refused
        .stderr_has("there is no account `ann@example.org` on this server")
        .stderr_has("`refit account create ann@example.org`");
    place.refit("account create ann@example.org --role reader").success();
    let (running, address) = place.begin();
    place.browse(&address);
    running.wait().success().stderr_has("You are `ann@example.org` until");
    place.ann("task list-runs").run().success();
    place.ann("task run nightly").run().code(3);
    place.ann("token list").run().code(3).stderr_has("`ann@example.org` needs the role `owner`");
    let audit = place.refit("audit list -o json").success().stdout;
    assert!(audit.contains("POST /api/v1/signIn") && audit.contains("ann@example.org"), "{audit}");
    assert!(!place.server.log().contains("eyJ"));
    // The session is good for the registry as well, in the place of a password.
    let logins = std::fs::read_to_string(place.sandbox.path("ann/refit/logins.json")).unwrap();
    let logins: Value = serde_json::from_str(&logins).unwrap();
    let login = logins["servers"].as_object().unwrap().values().next().unwrap();
    let session = login["secret"].as_str().unwrap().to_owned();
    let status = |user: &str| {
        let (login, url) = (format!("{user}:{session}"), format!("{}/v2/", place.server.url()));
        let args = ["-s", "-o", "answer", "-w", "%{http_code}", "-u", &login, &url];
        tool(&place.sandbox, "curl", &args).expect("curl is installed")
    };
    assert_eq!(status("ann@example.org"), "200");
    place.refit("account create bob@example.org --role owner").success();
    assert_eq!(status("bob@example.org"), "401");
    // It ends with the password that the account had, or when the account is switched off.
    place.refit("account password ann@example.org").success();
    assert_eq!(status("ann@example.org"), "401");
    place.ann("task list-runs").run().code(3);
    place.refit("account update ann@example.org --status disabled").success();
    let (running, address) = place.begin();
    place.browse(&address);
    running.wait().code(3).stderr_has("or it is switched off");
}

#[test]
fn somebody_signs_in_by_a_code_and_gets_an_account() {
    let place = Place::new("role = \"runner\"\nsession = \"1h\"\n");
    let login = format!("login {} --device", place.server.url());
    let done = place.ann(&login).run().success();
    done.stderr_has(&format!("Open {}/type-it in a browser", place.provider.address))
        .stderr_has("type the code WDJB-MJHT");
    place.ann("task list-runs").run().success();
    let shown = place.refit("account show ann@example.org").success().stdout;
    assert!(shown.contains("runner of all registries"), "{shown}");
    // A role that somebody gave since stays.
    place.refit("role remove ann@example.org --all-registries").success();
    place.ann(&login).run().success();
    place.ann("task list-runs").run().code(3).stderr_has("needs the role `reader`");
    for (claims, expected) in [
        (json!({ "email": "eve@example.org", "email_verified": false }), "has not verified"),
        (json!({ "name": "Eve" }), "does not say a `email`"),
        (
            json!({ "email": "eve@example.org", "aud": "another" }),
            "not one of this server's provider",
        ),
        (json!({ "email": "eve@example.org", "iat": 1_000 }), "not from just now"),
        (json!({ "email": "eve@example.org", "exp": 1_000 }), "not one of this server's provider"),
        (json!({ "email": "eve@example.org", "iss": "https://other" }), "not one of this server's"),
        (json!({ "email": "admin" }), "is a name of the server's own"),
    ] {
        place.provider.says(claims);
        let refused = place.ann(&login).run();
        assert_ne!(refused.code, Some(0));
        refused.stderr_has(expected);
    }
    place.refit("account create robot --service-principal").success();
    place.provider.says(json!({ "email": "robot" }));
    place.ann(&login).run().code(3).stderr_has("account `robot` is a program's");
    place.refit("account show eve@example.org").code(4);
}

#[test]
fn a_server_without_a_provider_says_so() {
    let sandbox = sandbox();
    let server = sandbox.server();
    let words = ["login", server.url(), "--oidc"];
    let refused = sandbox.refit(words).on(&server).run().code(4);
    refused.stderr_has("a provider where people sign in").stderr_has("`sign_in.issuer`");
    let args = ["login", server.url(), "--oidc", "-u", "ann"];
    sandbox.refit(args).on(&server).run().code(2);
}
