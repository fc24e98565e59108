//! Identity tokens of runs: Refit as an OpenID Connect issuer, whose keys others fetch and so trust a
//! task without a stored password.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use control::{AccountName, Clock, Run, RunId, RunKind, TaskName};
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use oci::RegistryName;
use rsa::RsaPrivateKey;
use rsa::pkcs1::{DecodeRsaPrivateKey as _, EncodeRsaPrivateKey as _, LineEnding};
use serde::Serialize;
use store::Millis;
use uuid::Uuid;

use crate::keys::{private_folder, replace};

const KEY_BITS: usize = 2048;
/// The endings of files with keys.
const ENDING: &str = "pem";

const HOUR: Millis = 3_600_000;
const DAY: Millis = 24 * HOUR;

/// A key signs for so long.
const KEY_LIFE: Millis = 90 * DAY;
/// It can be fetched for so long before it signs and after it has signed: others keep what they
/// fetched for a while.
const KEY_MARGIN: Millis = 2 * DAY;
/// For so long nothing is tried again that has failed.
const RETRY: Millis = 10_000;
/// A token is good for so long at most.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);

/// Where its documents are, below its address.
pub(crate) const KEYS: &str = "/.well-known/jwks.json";

/// Makes identity tokens. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Issuer {
    /// Where others reach this server; without it there are no tokens.
    address: Option<String>,
    clock: Clock,
    keys: Arc<Mutex<Keys>>,
}

struct Keys {
    folder: PathBuf,
    /// The oldest first; read when they are first needed.
    known: Arc<[Key]>,
    /// When they could not be read or made; not tried again at once.
    failed_at: Option<Millis>,
}

struct Key {
    created_at: Millis,
    public: Jwk,
    private: EncodingKey,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssuerError {
    #[error("runs have no identity tokens: `server.public_url` is not set")]
    NoAddress,
    #[error("the keys of identity tokens cannot be used")]
    Keys(#[source] io::Error),
}

/// What is said of a run.
pub(crate) struct RunIdentity<'a> {
    pub(crate) registry: &'a RegistryName,
    pub(crate) task: Option<&'a TaskName>,
    pub(crate) run: RunId,
    pub(crate) cause: RunKind,
    pub(crate) started_by: Option<&'a str>,
    /// Whom it acts for; absent: for its task.
    pub(crate) account: Option<&'a AccountName>,
    /// The id of the identity that its task has for that.
    pub(crate) identity: Option<Uuid>,
    /// Of the git repository that it works on.
    pub(crate) commit: Option<&'a str>,
    /// How long the run may take.
    pub(crate) timeout: Duration,
}

impl<'a> From<&'a Run> for RunIdentity<'a> {
    fn from(run: &'a Run) -> Self {
        Self {
            registry: &run.registry,
            task: run.task.as_ref(),
            run: run.id,
            cause: run.kind,
            started_by: run.started_by.as_deref(),
            account: None,
            identity: None,
            commit: run.commit.as_ref().map(|commit| commit.id.as_str()),
            timeout: run.request.timeout(),
        }
    }
}

/// A token, and from when to when it is good, in seconds since 1970.
pub(crate) struct IdentityToken {
    pub(crate) text: String,
    pub(crate) issued: i64,
    pub(crate) expires: i64,
}

/// What a token says of a run. `sub` is what others can compare as a whole.
#[derive(Serialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: String,
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: String,
    registry: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    run: String,
    /// The kind of the run.
    cause: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_by: Option<String>,
    /// Tells an identity from a later one of the same name.
    #[serde(skip_serializing_if = "Option::is_none")]
    oid: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<String>,
}

/// What the issuer says of itself (OpenID Connect Discovery 1.0).
#[derive(Serialize)]
pub(crate) struct Configuration {
    issuer: String,
    jwks_uri: String,
    response_types_supported: [&'static str; 1],
    subject_types_supported: [&'static str; 1],
    id_token_signing_alg_values_supported: [&'static str; 1],
    claims_supported: [&'static str; 14],
}

impl Issuer {
    /// Its keys are in a folder of the data folder.
    pub(crate) fn new(data: &Path, address: Option<String>, clock: Clock) -> Self {
        let folder = data.join("keys").join("identity");
        let keys = Keys { folder, known: Arc::default(), failed_at: None };
        Self { address, clock, keys: Arc::new(Mutex::new(keys)) }
    }

    /// `None`: there are no tokens.
    pub(crate) fn configuration(&self) -> Option<Configuration> {
        let address = self.address.as_ref()?;
        Some(Configuration {
            issuer: address.clone(),
            jwks_uri: format!("{address}{KEYS}"),
            response_types_supported: ["id_token"],
            subject_types_supported: ["public"],
            id_token_signing_alg_values_supported: ["RS256"],
            claims_supported: [
                "iss",
                "sub",
                "aud",
                "iat",
                "nbf",
                "exp",
                "jti",
                "registry",
                "task",
                "run",
                "cause",
                "started_by",
                "oid",
                "commit",
            ],
        })
    }

    /// The keys that tokens are or were signed with, and the next one. `None`: there are no tokens.
    pub(crate) async fn public_keys(&self) -> Result<Option<JwkSet>, IssuerError> {
        if self.address.is_none() {
            return Ok(None);
        }
        let keys = self.ready().await?;
        Ok(Some(JwkSet { keys: keys.iter().map(|key| key.public.clone()).collect() }))
    }

    /// A token that says to `audience` which run it is.
    pub(crate) async fn token(
        &self,
        run: &RunIdentity<'_>,
        audience: &str,
    ) -> Result<IdentityToken, IssuerError> {
        let issuer = self.address.as_deref().ok_or(IssuerError::NoAddress)?;
        let now = self.clock.now();
        let issued = now.div_euclid(1000);
        let life = TOKEN_LIFE.min(run.timeout).as_secs() as i64;
        let claims = Claims {
            iss: issuer.to_owned(),
            sub: subject(run),
            aud: audience.to_owned(),
            iat: issued,
            nbf: issued,
            exp: issued + life,
            jti: Uuid::new_v4().to_string(),
            registry: run.registry.to_string(),
            task: run.task.map(|task| task.as_str().to_ascii_lowercase()),
            run: run.run.to_string(),
            cause: run.cause.as_str(),
            started_by: run.started_by.map(str::to_owned),
            oid: run.identity,
            commit: run.commit.map(str::to_owned),
        };
        let expires = claims.exp;
        let keys = self.ready().await?;
        // Signing takes a while.
        let signed = tokio::task::spawn_blocking(move || {
            let key = signing(&keys, now)?;
            let header =
                Header { kid: key.public.common.key_id.clone(), ..Header::new(Algorithm::RS256) };
            jsonwebtoken::encode(&header, &claims, &key.private).ok()
        });
        let failed = || IssuerError::Keys(io::Error::other("a token cannot be signed"));
        let text = signed.await.ok().flatten().ok_or_else(failed)?;
        Ok(IdentityToken { text, issued, expires })
    }

    /// Makes keys in time for others to fetch them, and removes old ones. To be called now and then.
    pub(crate) async fn renew(&self) -> Result<(), IssuerError> {
        match self.address {
            Some(_) => self.ready().await.map(drop),
            None => Ok(()),
        }
    }

    /// The keys there are at this time, the oldest first; never none.
    async fn ready(&self) -> Result<Arc<[Key]>, IssuerError> {
        let (keys, now) = (Arc::clone(&self.keys), self.clock.now());
        // Whoever waits for it may go: what is begun ends.
        let ready = tokio::task::spawn_blocking(move || {
            let mut keys = keys.lock().unwrap_or_else(PoisonError::into_inner);
            keys.ready(now)
        });
        ready.await.map_err(io::Error::other).flatten().map_err(IssuerError::Keys)
    }
}

impl Keys {
    fn ready(&mut self, now: Millis) -> io::Result<Arc<[Key]>> {
        let times: Vec<Millis> = self.known.iter().map(|key| key.created_at).collect();
        let has_failed = self.failed_at.is_some_and(|at| (at..at + RETRY).contains(&now));
        if is_due(&times, now) && !has_failed {
            self.failed_at = None;
            match renew(&self.folder, now) {
                Ok(keys) => self.known = keys.into(),
                Err(error) => {
                    self.failed_at = Some(now);
                    tracing::error!(%error, "the keys of identity tokens cannot be renewed");
                }
            }
        }
        // Those that others trust go on.
        match self.known.is_empty() {
            true => Err(io::Error::other("they could not be read or made")),
            false => Ok(Arc::clone(&self.known)),
        }
    }
}

/// Whom a token is of, in a form that is compared as a whole.
fn subject(run: &RunIdentity<'_>) -> String {
    if let Some(account) = run.account {
        return format!("account:{}", account.as_str().to_ascii_lowercase());
    }
    match run.task {
        Some(task) => {
            format!("registry:{}:task:{}", run.registry, task.as_str().to_ascii_lowercase())
        }
        None => format!("registry:{}:run", run.registry),
    }
}

/// Whether a key is to be made or removed, by when those there are were made, the oldest first.
fn is_due(times: &[Millis], now: Millis) -> bool {
    needs_new(times, now) || count_over(times, now) > 0
}

/// Whether the last one is old, or there is none. Those of the future were made by a wrong clock, and
/// do not count.
fn needs_new(times: &[Millis], now: Millis) -> bool {
    let last = times.iter().rfind(|time| **time - HOUR <= now);
    last.is_none_or(|time| *time + KEY_LIFE <= now)
}

/// How many of the oldest have a successor that has signed for a while.
fn count_over(times: &[Millis], now: Millis) -> usize {
    times.iter().skip(1).filter(|next| **next + 2 * KEY_MARGIN <= now).count()
}

/// The newest that others had time to fetch, else the oldest.
fn signing(keys: &[Key], now: Millis) -> Option<&Key> {
    let ready = keys.iter().rev().find(|key| key.created_at + KEY_MARGIN <= now);
    ready.or_else(|| keys.first())
}

/// Reads the keys, makes one if the last one is old, and removes those that are over.
fn renew(folder: &Path, now: Millis) -> io::Result<Vec<Key>> {
    private_folder(folder)?;
    let mut keys = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == ENDING) && time_of(&path).is_some() {
            keys.push((read_key(&path)?, path));
        }
    }
    keys.sort_by_key(|(key, _)| key.created_at);
    let times = |keys: &[(Key, PathBuf)]| -> Vec<Millis> {
        keys.iter().map(|(key, _)| key.created_at).collect()
    };
    if needs_new(&times(&keys), now) {
        let path = folder.join(format!("{now}.{ENDING}"));
        keys.push((make_key(&path)?, path));
        keys.sort_by_key(|(key, _)| key.created_at);
    }
    let over = count_over(&times(&keys), now);
    for (_, path) in keys.drain(..over) {
        fs::remove_file(path)?;
    }
    Ok(keys.into_iter().map(|(key, _)| key).collect())
}

/// When a key was made, by the name of its file.
fn time_of(path: &Path) -> Option<Millis> {
    path.file_stem()?.to_str()?.parse().ok()
}

fn make_key(path: &Path) -> io::Result<Key> {
    let key = RsaPrivateKey::new(&mut rsa::rand_core::OsRng, KEY_BITS).map_err(io::Error::other)?;
    let pem = key.to_pkcs1_pem(LineEnding::LF).map_err(io::Error::other)?;
    replace(path, pem.trim_end())?;
    read_key(path)
}

/// Its name says when it was made, in milliseconds.
fn read_key(path: &Path) -> io::Result<Key> {
    let damaged = || {
        let path = path.display();
        io::Error::other(format!("`{path}` is no key of identity tokens; remove it for a new one"))
    };
    let created_at = time_of(path).ok_or_else(damaged)?;
    let pem = fs::read_to_string(path)?;
    let key = RsaPrivateKey::from_pkcs1_pem(&pem).map_err(|_| damaged())?;
    let der = key.to_pkcs1_der().map_err(|_| damaged())?;
    let private = EncodingKey::from_rsa_der(der.as_bytes());
    let mut public = Jwk::from_encoding_key(&private, Algorithm::RS256).map_err(|_| damaged())?;
    public.common.public_key_use = Some(PublicKeyUse::Signature);
    public.common.key_id = Some(public.thumbprint(ThumbprintHash::SHA256).map_err(|_| damaged())?);
    Ok(Key { created_at, public, private })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use jsonwebtoken::{DecodingKey, Validation};

    use super::*;

    const ADDRESS: &str = "https://refit.example.com";

    struct Place {
        registry: RegistryName,
        task: TaskName,
    }

    impl Place {
        fn new() -> Self {
            Self { registry: RegistryName::default(), task: "Nightly".parse().unwrap() }
        }

        fn run(&self, task: bool) -> RunIdentity<'_> {
            RunIdentity {
                registry: &self.registry,
                task: task.then_some(&self.task),
                run: "c01".parse().unwrap(),
                cause: RunKind::QuickRun,
                started_by: Some("ann"),
                account: None,
                identity: None,
                commit: None,
                timeout: Duration::from_secs(600),
            }
        }
    }

    fn issuer(folder: &Path, now: &Arc<AtomicI64>) -> Issuer {
        let now = Arc::clone(now);
        let clock = Clock::new(move || now.load(Ordering::SeqCst));
        Issuer::new(folder, Some(ADDRESS.to_owned()), clock)
    }

    /// The claims of a token, if one of the keys has signed it.
    fn verified(keys: &JwkSet, token: &str) -> Option<serde_json::Value> {
        let header = jsonwebtoken::decode_header(token).unwrap();
        let key = DecodingKey::from_jwk(keys.find(&header.kid.unwrap())?).unwrap();
        let mut validation = Validation::new(Algorithm::RS256);
        validation.set_audience(&["vault"]);
        validation.validate_exp = false;
        Some(jsonwebtoken::decode(token, &key, &validation).unwrap().claims)
    }

    #[tokio::test]
    async fn a_token_tells_what_run_it_is_of() {
        let (folder, place) = (tempfile::tempdir().unwrap(), Place::new());
        let now = Arc::new(AtomicI64::new(1_700_000_000_000));
        let issuer = issuer(folder.path(), &now);
        let keys = issuer.public_keys().await.unwrap().unwrap();
        let token = issuer.token(&place.run(true), "vault").await.unwrap().text;
        let claims = verified(&keys, &token).unwrap();
        assert_eq!(claims["iss"], ADDRESS);
        assert_eq!(claims["sub"], "registry:local:task:nightly");
        assert_eq!((&claims["task"], &claims["cause"]), (&"nightly".into(), &"QuickRun".into()));
        // No longer than the run may take.
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 600);
        let quick = issuer.token(&place.run(false), "vault").await.unwrap().text;
        assert_eq!(verified(&keys, &quick).unwrap()["sub"], "registry:local:run");
        let account = "Deployer".parse().unwrap();
        let other =
            RunIdentity { account: Some(&account), commit: Some("c0ffee"), ..place.run(true) };
        let other = issuer.token(&other, "vault").await.unwrap();
        let claims = verified(&keys, &other.text).unwrap();
        assert_eq!(
            (&claims["sub"], &claims["task"]),
            (&"account:deployer".into(), &"nightly".into())
        );
        assert_eq!((&claims["commit"], &claims["exp"]), (&"c0ffee".into(), &other.expires.into()));
        let text = serde_json::to_string(&keys).unwrap();
        assert!(text.contains("\"use\":\"sig\"") && !text.contains("\"d\":"), "{text}");
        let configuration = serde_json::to_value(issuer.configuration().unwrap()).unwrap();
        assert_eq!(configuration["jwks_uri"], format!("{ADDRESS}{KEYS}"));
    }

    #[tokio::test]
    async fn without_an_address_there_are_no_tokens() {
        let (folder, place) = (tempfile::tempdir().unwrap(), Place::new());
        let issuer = Issuer::new(folder.path(), None, Clock::new(|| 0));
        assert!(issuer.configuration().is_none());
        assert!(issuer.public_keys().await.unwrap().is_none());
        let error =
            issuer.token(&place.run(false), "vault").await.map(|token| token.text).unwrap_err();
        assert!(error.to_string().contains("`server.public_url` is not set"), "{error}");
        assert!(!folder.path().join("keys").exists());
    }

    #[tokio::test]
    async fn keys_are_known_before_they_sign_and_after_they_have() {
        let (folder, place) = (tempfile::tempdir().unwrap(), Place::new());
        let now = Arc::new(AtomicI64::new(1_700_000_000_000));
        let first = issuer(folder.path(), &now);
        let before = first.public_keys().await.unwrap().unwrap();
        assert_eq!(before.keys.len(), 1);
        // A restart changes nothing.
        let issuer = issuer(folder.path(), &now);
        assert_eq!(issuer.public_keys().await.unwrap().unwrap(), before);
        now.fetch_add(KEY_LIFE, Ordering::SeqCst);
        let both = issuer.public_keys().await.unwrap().unwrap();
        assert_eq!(both.keys.len(), 2);
        // Others have not had the time to fetch the new one.
        let token = issuer.token(&place.run(false), "vault").await.unwrap().text;
        assert!(verified(&before, &token).is_some());
        now.fetch_add(KEY_MARGIN, Ordering::SeqCst);
        let token = issuer.token(&place.run(false), "vault").await.unwrap().text;
        assert!(verified(&before, &token).is_none() && verified(&both, &token).is_some());
        assert_eq!(issuer.public_keys().await.unwrap().unwrap(), both);
        now.fetch_add(KEY_MARGIN, Ordering::SeqCst);
        let after = issuer.public_keys().await.unwrap().unwrap();
        assert_eq!(after.keys, both.keys[1..]);
        assert_eq!(fs::read_dir(folder.path().join("keys/identity")).unwrap().count(), 1);
    }
    #[tokio::test]
    async fn a_key_that_is_late_has_its_time_to_be_fetched_too() {
        let (folder, place) = (tempfile::tempdir().unwrap(), Place::new());
        let now = Arc::new(AtomicI64::new(1_700_000_000_000));
        let issuer = issuer(folder.path(), &now);
        let before = issuer.public_keys().await.unwrap().unwrap();
        // Nobody has asked for long.
        now.fetch_add(10 * KEY_LIFE, Ordering::SeqCst);
        let token = issuer.token(&place.run(false), "vault").await.unwrap().text;
        assert!(verified(&before, &token).is_some());
        assert_eq!(issuer.public_keys().await.unwrap().unwrap().keys.len(), 2);
        // A clock that was ahead keeps nothing from being renewed.
        now.fetch_sub(20 * KEY_LIFE, Ordering::SeqCst);
        for _ in 0..3 {
            assert_eq!(issuer.public_keys().await.unwrap().unwrap().keys.len(), 3);
        }
        issuer.renew().await.unwrap();
        assert_eq!(fs::read_dir(folder.path().join("keys/identity")).unwrap().count(), 3);
    }

    #[tokio::test]
    async fn keys_go_on_when_none_can_be_made() {
        let (folder, place) = (tempfile::tempdir().unwrap(), Place::new());
        let now = Arc::new(AtomicI64::new(1_700_000_000_000));
        let issuer = issuer(folder.path(), &now);
        let before = issuer.public_keys().await.unwrap().unwrap();
        let keys = folder.path().join("keys/identity");
        fs::write(keys.join("backup.pem"), "no key").unwrap();
        fs::write(keys.join("1700000000001.pem"), "no key").unwrap();
        now.fetch_add(KEY_LIFE, Ordering::SeqCst);
        let token = issuer.token(&place.run(false), "vault").await.unwrap().text;
        assert!(verified(&before, &token).is_some());
        fs::remove_file(keys.join("1700000000001.pem")).unwrap();
        now.fetch_add(RETRY, Ordering::SeqCst);
        assert_eq!(issuer.public_keys().await.unwrap().unwrap().keys.len(), 2);
    }
}
