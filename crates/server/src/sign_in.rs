//! People sign in with an OpenID Connect provider: what it says of somebody becomes a session of an
//! account here. A session opens what the password of the account would, until it is over, the
//! account is switched off or its password is another one.

use std::sync::Arc;
use std::time::Duration;

use control::{Account, AccountKind, AccountName, AccountProperties, Clock, ControlError};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::Millis;

use crate::error::ApiError;
use crate::settings::SignInSettings;
use crate::trusted::{Claims, Issuer, KeysUnavailable};

const ISSUER: &str = "refit";
const AUDIENCE: &str = "refit sessions";
/// A token of the provider is of somebody who signed in at most so long ago, in seconds.
const AGE_MAX: i64 = 15 * 60;

/// Signs sessions and reads them. Replicas of a server share the key.
#[derive(Clone)]
pub(crate) struct Sessions {
    encoding: EncodingKey,
    decoding: DecodingKey,
    clock: Clock,
}

/// What a session states. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Session {
    iss: String,
    aud: String,
    /// An account.
    sub: String,
    /// A fingerprint of its password ([`control::Access::holds`]).
    credential: String,
    iat: i64,
    exp: i64,
}

impl Sessions {
    pub(crate) fn new(key: &[u8], clock: Clock) -> Self {
        let (encoding, decoding) = (EncodingKey::from_secret(key), DecodingKey::from_secret(key));
        Self { encoding, decoding, clock }
    }

    /// A session of an account, and when it is over.
    fn begin(
        &self,
        proven: &control::Proven,
        name: &AccountName,
        life: Duration,
    ) -> Result<(String, Millis), ApiError> {
        let iat = self.clock.now().div_euclid(1000);
        let exp = iat.saturating_add(i64::try_from(life.as_secs()).unwrap_or(i64::MAX));
        let session = Session {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: name.to_string(),
            credential: proven.credential.clone(),
            iat,
            exp,
        };
        let text = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &session, &self.encoding);
        let text = text.map_err(|error| ApiError::interrupted(&error))?;
        Ok((text, exp.saturating_mul(1000)))
    }

    /// Whose session a text is, if it is one of ours and not over; and the fingerprint of the password
    /// that the account had.
    pub(crate) fn read(&self, text: &str) -> Option<(AccountName, String)> {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        // Ours to check: the time is given.
        validation.validate_exp = false;
        let session = jsonwebtoken::decode::<Session>(text, &self.decoding, &validation).ok()?;
        let Session { sub, credential, exp, .. } = session.claims;
        let is_over = self.clock.now().div_euclid(1000) >= exp;
        (!is_over).then_some(())?;
        Some((sub.parse().ok()?, credential))
    }
}

/// The provider. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Provider {
    issuer: Arc<Issuer>,
    pub(crate) settings: Arc<SignInSettings>,
    clock: Clock,
}

/// Why nobody is signed in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignInError {
    #[error("the token is not one of this server's provider, or not from just now")]
    Token,
    #[error("the provider does not say a `{0}` that can name an account")]
    NoName(String),
    #[error("the provider has not verified the address `{0}`")]
    NotVerified(AccountName),
    #[error("there is no account `{0}` on this server, or it is switched off")]
    NoAccount(AccountName),
    #[error("account `{0}` is a program's")]
    Program(AccountName),
    #[error(transparent)]
    Keys(#[from] KeysUnavailable),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("{}", .0.message)]
    Api(ApiError),
}

impl Provider {
    pub(crate) fn new(settings: SignInSettings, clock: Clock) -> reqwest::Result<Self> {
        let SignInSettings { issuer, client_id, ca, .. } = &settings;
        let issuer = Arc::new(Issuer::new(issuer, client_id, ca.as_deref())?);
        Ok(Self { issuer, settings: Arc::new(settings), clock })
    }

    /// Begins a session of whoever an identity token of the provider is about; when it is over.
    pub(crate) async fn sign_in(
        &self,
        token: &str,
        permissions: &control::Access,
        sessions: &Sessions,
    ) -> Result<(AccountName, String, Millis), SignInError> {
        let claims = self.issuer.claims(token, &self.clock).await?.ok_or(SignInError::Token)?;
        let name = self.name(&claims)?;
        let account = match permissions.account(&name).await? {
            Some(account) => account,
            None => self.make(&name, permissions).await?,
        };
        if account.kind != AccountKind::User {
            return Err(SignInError::Program(account.name));
        }
        let proven = permissions.proven(&account.name).await?;
        let proven = proven.ok_or_else(|| SignInError::NoAccount(account.name.clone()))?;
        let begun = sessions.begin(&proven, &account.name, self.settings.session);
        let (text, until) = begun.map_err(SignInError::Api)?;
        Ok((account.name, text, until))
    }

    /// Which account a token is about.
    fn name(&self, claims: &Claims) -> Result<AccountName, SignInError> {
        let claim = &self.settings.claim;
        // Those that were given to another program, or kept, are nobody's sign-in.
        let is_ours = claims.others.get("azp").is_none_or(|azp| *azp == *self.settings.client_id);
        let now = self.clock.now().div_euclid(1000);
        let issued = claims.others.get("iat").and_then(Value::as_i64);
        if !is_ours || !issued.is_some_and(|at| (now - AGE_MAX..=now + AGE_MAX).contains(&at)) {
            return Err(SignInError::Token);
        }
        let text = match claim.as_str() {
            "sub" => Some(claims.sub.as_str()),
            claim => claims.others.get(claim).and_then(Value::as_str),
        };
        let name = text.and_then(|text| text.parse::<AccountName>().ok());
        let name = name.ok_or_else(|| SignInError::NoName(claim.clone()))?;
        // Some providers say it as a text; those that say nothing know their people.
        let verified = claims.others.get("email_verified");
        match verified.is_none_or(|verified| *verified == true || *verified == "true") {
            false if claim == "email" => Err(SignInError::NotVerified(name)),
            _ => Ok(name),
        }
    }

    /// An account for somebody who signs in for the first time.
    async fn make(
        &self,
        name: &AccountName,
        permissions: &control::Access,
    ) -> Result<Account, SignInError> {
        let Some(role) = self.settings.role else {
            return Err(SignInError::NoAccount(name.clone()));
        };
        let properties = AccountProperties {
            kind: AccountKind::User,
            enabled: true,
            description: "made by the first sign-in".to_owned(),
        };
        match permissions.create_account(name, &properties, None).await {
            Ok(_) => Ok(permissions.assign_role(name, None, Some(role)).await?),
            // By another request of the same moment.
            Err(ControlError::Conflict { .. }) => {
                let found = permissions.account(name).await?;
                found.ok_or_else(|| SignInError::NoAccount(name.clone()))
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = 1_700_000_000_000;
    const HOUR: Duration = Duration::from_secs(3600);

    fn sessions(key: &[u8], now: Millis) -> Sessions {
        Sessions::new(key, Clock::new(move || now))
    }

    #[test]
    fn a_session_is_read_with_its_key_until_it_is_over() {
        let name: AccountName = "ann@example.org".parse().unwrap();
        let identity = control::Identity::Account(name.clone());
        let proven = control::Proven { identity, credential: "abc".to_owned() };
        let (text, until) = sessions(b"key", NOW).begin(&proven, &name, HOUR).unwrap();
        assert_eq!(until, NOW + 3_600_000);
        let read = |key: &[u8], now| sessions(key, now).read(&text);
        assert_eq!(read(b"key", NOW), Some((name.clone(), "abc".to_owned())));
        assert_eq!(read(b"key", until - 1), Some((name, "abc".to_owned())));
        assert_eq!(read(b"key", until), None);
        assert_eq!(read(b"yek", NOW), None);
        // A token of a registry is no session, though it is the same server's.
        let signer = registry::TokenSigner::hmac(b"key");
        let grant = registry::Grant {
            kind: registry::TokenKind::Refresh,
            registry: oci::RegistryName::default(),
            principal: registry::Principal::new("ann@example.org"),
            credential: "abc".to_owned(),
            scopes: Vec::new(),
        };
        let token = signer.sign(&grant, NOW, HOUR).unwrap();
        assert_eq!(sessions(b"key", NOW).read(&token), None);
        for text in ["", "a.b.c", "eyJhbGciOiJub25lIn0.e30."] {
            assert_eq!(sessions(b"key", NOW).read(text), None);
        }
    }

    #[test]
    fn an_account_is_named_by_what_is_fresh_verified_and_for_this_program() {
        let settings = SignInSettings {
            issuer: "https://login.example.com".to_owned(),
            client_id: "refit".to_owned(),
            claim: "email".to_owned(),
            scopes: Vec::new(),
            session: HOUR,
            role: None,
            ca: None,
        };
        let of = |settings: SignInSettings, claims: Value| {
            let provider = Provider::new(settings, Clock::new(|| NOW)).unwrap();
            let mut whole = serde_json::json!({
                "sub": "id-of-ann", "aud": "refit", "exp": NOW / 1000 + 60, "iat": NOW / 1000,
                "email": "ann@example.org"
            });
            crate::from_api::merge(&mut whole, claims);
            let claims: Claims = serde_json::from_value(whole).unwrap();
            provider.name(&claims).map(|name| name.to_string()).map_err(|error| error.to_string())
        };
        let named = |claims: Value| of(settings.clone(), claims);
        let ann = Ok("ann@example.org".to_owned());
        for fine in [
            serde_json::json!({}),
            serde_json::json!({ "email_verified": true, "azp": "refit" }),
            serde_json::json!({ "email_verified": "true" }),
        ] {
            assert_eq!(named(fine.clone()), ann, "{fine}");
        }
        for wrong in [
            serde_json::json!({ "email_verified": false }),
            serde_json::json!({ "email_verified": "false" }),
            serde_json::json!({ "email_verified": 1 }),
            serde_json::json!({ "azp": "another" }),
            serde_json::json!({ "iat": null }),
            serde_json::json!({ "iat": NOW / 1000 - AGE_MAX - 1 }),
            serde_json::json!({ "iat": NOW / 1000 + AGE_MAX + 1 }),
            serde_json::json!({ "email": null }),
            serde_json::json!({ "email": ["ann@example.org"] }),
            serde_json::json!({ "email": "a b" }),
        ] {
            assert!(named(wrong.clone()).is_err(), "{wrong}");
        }
        let by_id = SignInSettings { claim: "sub".to_owned(), ..settings.clone() };
        let unverified = serde_json::json!({ "email_verified": false });
        assert_eq!(of(by_id, unverified), Ok("id-of-ann".to_owned()));
    }
}
