//! Identity tokens of others: programs prove to be an account by what an issuer says of them that the
//! settings trust, without a stored password (OpenID Connect Discovery 1.0).
//!
//! Only the issuers of the settings are asked for anything, and never where a token says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control::{AccountName, Clock};
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use store::Millis;
use url::Url;

use crate::http_client::{body, client};
use crate::settings::TrustedIssuerSettings;

/// For one request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer.
const ANSWER_MAX: usize = 1 << 20;
/// Bytes of a token.
const TOKEN_MAX: usize = 16 << 10;
/// How long keys are used before they are fetched again.
const KEYS_KEEP: Millis = 60 * 60 * 1000;
/// How long after one try to fetch keys there is no other: tokens with made-up keys cost no more.
const KEYS_PAUSE: Millis = 10_000;
/// How far clocks may differ, in seconds.
const LEEWAY: u64 = 60;

/// Signatures by a key that only the issuer has.
const ALGORITHMS: [Algorithm; 8] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
];

/// The issuers that the settings trust. Cheap to clone.
#[derive(Clone)]
pub(crate) struct TrustedIssuers {
    issuers: Arc<BTreeMap<String, (Arc<Issuer>, Accounts)>>,
    clock: Clock,
}

/// By subject.
type Accounts = BTreeMap<String, AccountName>;

/// Somebody whose signatures are believed.
pub(crate) struct Issuer {
    /// As tokens have it.
    address: String,
    /// Whom tokens have to be for.
    audience: String,
    http: reqwest::Client,
    keys: Mutex<Keys>,
    /// Held by who fetches keys, and waited for only by those for whom there are none.
    fetching: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Keys {
    known: Vec<Jwk>,
    fetched_at: Option<Millis>,
    tried_at: Option<Millis>,
}

/// What there is to check a token with.
struct Found {
    keys: Vec<Jwk>,
    /// Whether there is a key at all, also if it is none that may have signed the token.
    is_any: bool,
    is_old: bool,
    may_try: bool,
}

/// The issuer cannot be asked for its keys.
#[derive(Debug, thiserror::Error)]
#[error("the keys of issuer `{issuer}` cannot be fetched: {reason}")]
pub(crate) struct KeysUnavailable {
    issuer: String,
    reason: String,
}

/// What a token says.
#[derive(Deserialize)]
pub(crate) struct Claims {
    pub(crate) sub: String,
    /// One, or a list; the validation compares it.
    aud: Value,
    #[serde(default)]
    nbf: Option<i64>,
    exp: i64,
    /// All else.
    #[serde(flatten)]
    pub(crate) others: serde_json::Map<String, Value>,
}

#[derive(Deserialize)]
struct Unverified {
    iss: String,
}

#[derive(Deserialize)]
struct Discovered {
    issuer: String,
    jwks_uri: String,
}

impl TrustedIssuers {
    /// `own` is whom tokens are for where the settings of an issuer do not say it.
    pub(crate) fn new(
        settings: &BTreeMap<String, TrustedIssuerSettings>,
        own: Option<&str>,
        clock: Clock,
    ) -> reqwest::Result<Self> {
        let issuer = |(address, settings): (&String, &TrustedIssuerSettings)| {
            let audience = settings.audience.as_deref().or(own).unwrap_or_default();
            let issuer = Issuer::new(address, audience, settings.ca.as_deref())?;
            Ok((address.clone(), (Arc::new(issuer), settings.accounts.clone())))
        };
        let issuers = settings.iter().map(issuer).collect::<reqwest::Result<_>>()?;
        Ok(Self { issuers: Arc::new(issuers), clock })
    }

    /// The account that a token proves somebody to be, and for how long it does, if it is good and one
    /// is known for its subject.
    pub(crate) async fn account_of(
        &self,
        token: &str,
    ) -> Result<Option<(AccountName, Duration)>, KeysUnavailable> {
        if self.issuers.is_empty() || token.len() > TOKEN_MAX {
            return Ok(None);
        }
        let Some((issuer, accounts)) = self.issuer_of(token) else { return Ok(None) };
        let claims = issuer.claims(token, &self.clock).await?;
        Ok(claims.and_then(|claims| {
            let left = claims.exp.saturating_sub(self.clock.now().div_euclid(1000));
            let account = accounts.get(&claims.sub)?;
            let left = Duration::from_secs(u64::try_from(left).unwrap_or_default());
            Some((account.clone(), left))
        }))
    }

    /// Who a token says that it is of, if that is somebody to be trusted.
    fn issuer_of(&self, token: &str) -> Option<&(Arc<Issuer>, Accounts)> {
        let claims = jsonwebtoken::dangerous::insecure_decode::<Unverified>(token).ok()?.claims;
        self.issuers.get(&claims.iss)
    }
}

impl Issuer {
    /// `address` is as tokens have it, and `audience` whom they have to be for. `ca` is trusted besides
    /// the system's authorities, PEM.
    pub(crate) fn new(address: &str, audience: &str, ca: Option<&[u8]>) -> reqwest::Result<Self> {
        Ok(Self {
            address: address.to_owned(),
            audience: audience.to_owned(),
            http: client(ca, TIMEOUT)?,
            keys: Mutex::default(),
            fetching: Arc::default(),
        })
    }

    /// What a token says, if it is of this issuer, for the audience, and good now.
    pub(crate) async fn claims(
        self: &Arc<Self>,
        token: &str,
        clock: &Clock,
    ) -> Result<Option<Claims>, KeysUnavailable> {
        let Ok(header) = jsonwebtoken::decode_header(token) else { return Ok(None) };
        if token.len() > TOKEN_MAX || !ALGORITHMS.contains(&header.alg) {
            return Ok(None);
        }
        let keys = self.keys(header.kid.as_deref(), clock).await?;
        let now = clock.now();
        let mut validation = Validation::new(header.alg);
        validation.set_audience(&[&self.audience]);
        validation.set_issuer(&[&self.address]);
        // What is absent would otherwise not be compared.
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        // Ours to check: the time is given.
        (validation.validate_exp, validation.validate_nbf) = (false, false);
        let claims = keys.iter().find_map(|key| {
            let key = DecodingKey::from_jwk(key).ok()?;
            Some(jsonwebtoken::decode::<Claims>(token, &key, &validation).ok()?.claims)
        });
        let leeway = LEEWAY as i64;
        let now = now.div_euclid(1000);
        Ok(claims.filter(|claims| {
            is_audience(&claims.aud, &self.audience)
                && now < claims.exp.saturating_add(leeway)
                && claims.nbf.is_none_or(|nbf| nbf <= now.saturating_add(leeway))
        }))
    }

    /// The keys that may have signed a token which names one, or none. They are fetched once for all
    /// who need them at the same time, and nobody waits for that who can do without.
    async fn keys(
        self: &Arc<Self>,
        id: Option<&str>,
        clock: &Clock,
    ) -> Result<Vec<Jwk>, KeysUnavailable> {
        let found = self.find(id, clock.now());
        let turn = Arc::clone(&self.fetching);
        let turn = match found {
            // Those that are known still say the truth.
            Found { keys, is_old, may_try, .. } if !keys.is_empty() => {
                if !is_old || !may_try {
                    return Ok(keys);
                }
                match turn.try_lock_owned() {
                    Ok(turn) => turn,
                    Err(_) => return Ok(keys),
                }
            }
            _ => turn.lock_owned().await,
        };
        // Others may have fetched them since.
        let now = clock.now();
        let Found { keys, is_any, is_old, may_try } = self.find(id, now);
        if !is_any && !may_try {
            return Err(self.unavailable("they could not be fetched a moment ago".to_owned()));
        }
        if !may_try || !is_old && !keys.is_empty() {
            return Ok(keys);
        }
        // Whoever waits for it no more does not end it for the others.
        let issuer = Arc::clone(self);
        let fetched = tokio::spawn(async move {
            let _turn = turn;
            issuer.renew(now).await
        });
        match fetched.await.unwrap_or_else(|error| Err(error.to_string())) {
            Err(reason) if !is_any => Err(self.unavailable(reason)),
            Err(reason) => {
                tracing::warn!(issuer = self.address, reason, "keys are not fetched");
                Ok(keys)
            }
            Ok(()) => Ok(self.find(id, now).keys),
        }
    }

    fn find(&self, id: Option<&str>, now: Millis) -> Found {
        let keys = self.known();
        let is_meant = |key: &&Jwk| id.is_none() || key.common.key_id.as_deref() == id;
        Found {
            keys: keys.known.iter().filter(is_meant).cloned().collect(),
            is_any: !keys.known.is_empty(),
            is_old: keys.fetched_at.is_none_or(|at| !(at..at + KEYS_KEEP).contains(&now)),
            may_try: keys.tried_at.is_none_or(|at| !(at..at + KEYS_PAUSE).contains(&now)),
        }
    }

    fn known(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unavailable(&self, reason: String) -> KeysUnavailable {
        KeysUnavailable { issuer: self.address.clone(), reason }
    }

    async fn renew(&self, now: Millis) -> Result<(), String> {
        self.known().tried_at = Some(now);
        let fetched = self.fetch(&self.address).await?;
        let mut keys = self.known();
        (keys.known, keys.fetched_at) = (fetched, Some(now));
        Ok(())
    }

    async fn fetch(&self, address: &str) -> Result<Vec<Jwk>, String> {
        let base = address.trim_end_matches('/');
        let documents = format!("{base}/.well-known/openid-configuration");
        let found: Discovered = self.get(&documents).await?;
        if found.issuer != address {
            return Err("it says that it is another one".to_owned());
        }
        let place: Url = found.jwks_uri.parse().map_err(|_| "its keys have no address")?;
        let is_local = place.host_str().is_some_and(remote::is_loopback);
        if place.scheme() != "https" && !(is_local && address.starts_with("http://")) {
            return Err("its keys are not at an HTTPS address".to_owned());
        }
        let JwkSet { keys } = self.get(place.as_str()).await?;
        // A key that both sides have proves nothing of the issuer.
        let is_public = |key: &Jwk| !matches!(key.algorithm, AlgorithmParameters::OctetKey(_));
        Ok(keys.into_iter().filter(is_public).collect())
    }

    async fn get<T: DeserializeOwned>(&self, address: &str) -> Result<T, String> {
        let sent = self.http.get(address).timeout(TIMEOUT).send().await;
        let answer = sent.map_err(|error| remote_reason(&error))?;
        if !answer.status().is_success() {
            return Err(format!("`{address}` answered {}", answer.status().as_u16()));
        }
        let bytes = body(answer, ANSWER_MAX).await.map_err(|error| remote_reason(&error))?;
        let bytes =
            bytes.ok_or_else(|| format!("`{address}` sent more than {ANSWER_MAX} bytes"))?;
        serde_json::from_slice(&bytes).map_err(|_| format!("`{address}` sent something else"))
    }
}

/// Compared once more: the library passes over what it cannot read.
fn is_audience(given: &Value, wanted: &str) -> bool {
    match given {
        Value::String(text) => text == wanted,
        Value::Array(texts) => texts.iter().any(|text| text == wanted),
        _ => false,
    }
}

/// Without the address, which the message has already.
fn remote_reason(error: &reqwest::Error) -> String {
    let mut reason = "no answer".to_owned();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        reason = cause.to_string();
        source = cause.source();
    }
    reason
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

    use axum::routing::get;
    use jsonwebtoken::jwk::ThumbprintHash;
    use jsonwebtoken::{EncodingKey, Header};
    use rsa::RsaPrivateKey;
    use rsa::pkcs1::EncodeRsaPrivateKey as _;
    use serde_json::json;
    use tokio::sync::Semaphore;

    use super::*;

    const NOW: i64 = 1_700_000_000;
    const AUDIENCE: &str = "https://registry.example.net";

    struct Signer {
        key: EncodingKey,
        public: Jwk,
    }

    impl Signer {
        fn new() -> Self {
            let key = RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap();
            let key = EncodingKey::from_rsa_der(key.to_pkcs1_der().unwrap().as_bytes());
            let mut public = Jwk::from_encoding_key(&key, Algorithm::RS256).unwrap();
            public.common.key_id = Some(public.thumbprint(ThumbprintHash::SHA256).unwrap());
            Self { key, public }
        }

        fn sign(&self, claims: &Value) -> String {
            let kid = self.public.common.key_id.clone();
            let header = Header { kid, ..Header::new(Algorithm::RS256) };
            jsonwebtoken::encode(&header, claims, &self.key).unwrap()
        }
    }

    /// Serves the documents of an issuer, which says that it is `issuer`, or what it is.
    async fn serve(signer: &Signer, issuer: Option<&str>) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let issuer = issuer.unwrap_or(&address);
        let configuration = json!({ "issuer": issuer, "jwks_uri": format!("{address}/keys") });
        let keys = json!({ "keys": [signer.public] });
        let routes = axum::Router::new()
            .route(
                "/.well-known/openid-configuration",
                get(async move || axum::Json(configuration)),
            )
            .route("/keys", get(async move || axum::Json(keys)));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        address
    }

    fn trusting(address: &str) -> TrustedIssuers {
        trusting_at(address, Clock::new(|| NOW * 1000))
    }

    fn trusting_at(address: &str, clock: Clock) -> TrustedIssuers {
        let settings = TrustedIssuerSettings {
            accounts: [("job".to_owned(), "deployer".parse().unwrap())].into(),
            audience: Some(AUDIENCE.to_owned()),
            ca: None,
        };
        let settings = [(address.to_owned(), settings)].into();
        TrustedIssuers::new(&settings, None, clock).unwrap()
    }

    #[tokio::test]
    async fn a_token_is_believed_when_all_of_it_is_right() {
        let signer = Signer::new();
        let address = serve(&signer, None).await;
        let trusted = trusting(&address);
        let claims = |change: Value| {
            let mut claims =
                json!({ "iss": address, "sub": "job", "aud": AUDIENCE, "exp": NOW + 600 });
            crate::from_api::merge(&mut claims, change);
            claims
        };
        let account = async |token: &str| trusted.account_of(token).await.unwrap();
        let (name, left) = account(&signer.sign(&claims(json!({})))).await.unwrap();
        assert_eq!((name.as_str(), left), ("deployer", Duration::from_secs(600)));
        let listed = json!({ "aud": ["x", AUDIENCE], "nbf": NOW + 30 });
        assert!(account(&signer.sign(&claims(listed))).await.is_some());
        for wrong in [
            json!({ "aud": null }),
            json!({ "aud": 5 }),
            json!({ "aud": {} }),
            json!({ "aud": "https://registry.example.net.evil" }),
            json!({ "aud": ["x"] }),
            json!({ "sub": "another" }),
            json!({ "sub": null }),
            json!({ "exp": NOW - 61 }),
            json!({ "exp": null }),
            json!({ "nbf": NOW + 61 }),
            json!({ "iss": "https://other.example.com" }),
            json!({ "iss": null }),
        ] {
            assert_eq!(account(&signer.sign(&claims(wrong.clone()))).await, None, "{wrong}");
        }
        // By another key, with its name and with that of the right one.
        let mut other = Signer::new();
        assert_eq!(account(&other.sign(&claims(json!({})))).await, None);
        other.public.common.key_id = signer.public.common.key_id.clone();
        assert_eq!(account(&other.sign(&claims(json!({})))).await, None);
        // What everybody knows is no secret to sign with.
        let public = serde_json::to_vec(&signer.public).unwrap();
        let header = Header { kid: signer.public.common.key_id.clone(), ..Header::default() };
        let key = EncodingKey::from_secret(&public);
        let forged = jsonwebtoken::encode(&header, &claims(json!({})), &key).unwrap();
        for text in [&*forged, "", "a.b.c", "x", &"a".repeat(TOKEN_MAX + 1)] {
            assert_eq!(account(text).await, None, "{text}");
        }
    }

    /// An issuer that answers as long as there are permits, and counts who asks for its keys.
    struct Slow {
        address: String,
        permits: Arc<Semaphore>,
        asked: Arc<AtomicUsize>,
    }

    async fn serve_slowly(signer: &Signer) -> Slow {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (permits, asked) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let configuration = json!({ "issuer": address, "jwks_uri": format!("{address}/keys") });
        let keys = json!({ "keys": [signer.public] });
        let (gate, counted) = (Arc::clone(&permits), Arc::clone(&asked));
        let answer = async move || {
            counted.fetch_add(1, Ordering::SeqCst);
            gate.acquire().await.unwrap().forget();
            axum::Json(keys)
        };
        let routes = axum::Router::new()
            .route(
                "/.well-known/openid-configuration",
                get(async move || axum::Json(configuration)),
            )
            .route("/keys", get(answer));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Slow { address, permits, asked }
    }

    impl Slow {
        async fn was_asked(&self, times: usize) {
            while self.asked.load(Ordering::SeqCst) < times {
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn keys_are_fetched_once_and_waited_for_only_by_who_lacks_them() {
        let signer = Signer::new();
        let slow = serve_slowly(&signer).await;
        let now = Arc::new(AtomicI64::new(NOW * 1000));
        let clock = Arc::clone(&now);
        let trusted = trusting_at(&slow.address, Clock::new(move || clock.load(Ordering::SeqCst)));
        let claims =
            json!({ "iss": slow.address, "sub": "job", "aud": AUDIENCE, "exp": NOW + 99_999 });
        let (right, unknown) = (signer.sign(&claims), Signer::new().sign(&claims));
        let account = |token: &str| {
            let (trusted, token) = (trusted.clone(), token.to_owned());
            tokio::spawn(async move { trusted.account_of(&token).await.unwrap().is_some() })
        };
        // All at once, of whom one does not wait for the end.
        let first = account(&right);
        slow.was_asked(1).await;
        let all: Vec<_> = (0..8).map(|_| account(&right)).collect();
        tokio::task::yield_now().await;
        first.abort();
        slow.permits.add_permits(1);
        for one in all {
            assert!(one.await.unwrap());
        }
        assert_eq!(slow.asked.load(Ordering::SeqCst), 1);
        // Somebody makes up the name of a key, and the issuer does not answer.
        now.fetch_add(KEYS_PAUSE, Ordering::SeqCst);
        let made_up = [account(&unknown), account(&unknown)];
        slow.was_asked(2).await;
        assert!(account(&right).await.unwrap());
        assert!(made_up.iter().all(|one| !one.is_finished()));
        slow.permits.add_permits(1);
        for one in made_up {
            assert!(!one.await.unwrap());
        }
        // Old ones are good as long as others are on their way.
        now.fetch_add(KEYS_KEEP, Ordering::SeqCst);
        let renews = account(&right);
        slow.was_asked(3).await;
        assert!(account(&right).await.unwrap());
        slow.permits.add_permits(1);
        assert!(renews.await.unwrap());
        assert_eq!(slow.asked.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn an_issuer_that_cannot_be_asked_says_nothing_of_a_token() {
        let signer = Signer::new();
        let claims = |issuer: &str| json!({ "iss": issuer, "sub": "job", "aud": AUDIENCE, "exp": NOW + 600 });
        let other = serve(&signer, Some("https://other.example.com")).await;
        for address in ["http://127.0.0.1:1", &other] {
            let trusted = trusting(address);
            // Also when it was asked a moment ago.
            for _ in 0..2 {
                trusted.account_of(&signer.sign(&claims(address))).await.unwrap_err();
            }
        }
    }
}
