//! Tokens: signed statements of who somebody is and what they may do for a while.

use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use oci::RegistryName;
use serde::{Deserialize, Serialize};
use store::Millis;

use crate::access::{Actions, Principal, Resource};

const ISSUER: &str = "refit";

/// Signs tokens and checks them. One key per server; replicas share it.
#[derive(Clone)]
pub struct TokenSigner {
    encoding: EncodingKey,
    decoding: DecodingKey,
}

/// One permission: what may be done with a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    pub resource: Resource,
    pub actions: Actions,
}

impl Scope {
    /// Reads `repository:team/app:pull,push` or `registry:catalog:*`. `None`: not a scope
    /// that we know, so nothing to grant. A name may itself contain colons in other
    /// registries; ours do not, so the first and the last one separate.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        let (name, actions) = rest.rsplit_once(':')?;
        let resource = match (kind, name) {
            ("repository", "*") => Resource::AllRepositories,
            ("repository", name) => Resource::Repository(name.parse().ok()?),
            ("registry", "catalog" | "deleted_catalog") => Resource::Catalog,
            _ => return None,
        };
        Some(Self { resource, actions: Actions::parse(actions) })
    }

    fn allows(&self, resource: &Resource, actions: Actions) -> bool {
        let every = self.resource == Resource::AllRepositories
            && matches!(resource, Resource::Repository(_));
        (every || self.resource == *resource) && self.actions.contains(actions)
    }
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenKind {
    /// Opens `/v2/` for its scopes.
    Access,
    /// Gets access tokens; opens nothing itself.
    Refresh,
}

/// What a token states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub kind: TokenKind,
    pub registry: RegistryName,
    pub principal: Principal,
    /// A fingerprint of what the principal proved itself with ([`crate::Proven`]).
    pub credential: String,
    pub scopes: Vec<Scope>,
}

impl Grant {
    /// Whether the scopes together allow these actions.
    pub fn allows(&self, resource: &Resource, actions: Actions) -> bool {
        actions.names().all(|name| {
            let action = Actions::named(name);
            self.scopes.iter().any(|scope| scope.allows(resource, action))
        })
    }
}

/// Why a token was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("token has expired")]
    Expired,
    #[error("token is not valid")]
    Invalid,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: String,
    kind: TokenKind,
    /// Tokens of earlier versions have none, and end.
    #[serde(default)]
    credential: String,
    iat: i64,
    exp: i64,
    access: Vec<Entry>,
}

/// A scope as the Docker token specification writes it.
#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    actions: Vec<String>,
}

impl TokenSigner {
    /// Signs with HMAC-SHA256; the key should be 32 random bytes.
    pub fn hmac(key: &[u8]) -> Self {
        Self { encoding: EncodingKey::from_secret(key), decoding: DecodingKey::from_secret(key) }
    }

    /// A token that states `grant` from `now` on for `life`.
    pub fn sign(&self, grant: &Grant, now: Millis, life: Duration) -> Result<String, TokenError> {
        let issued = now.div_euclid(1000);
        let life = i64::try_from(life.as_secs()).unwrap_or(i64::MAX);
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: grant.registry.to_string(),
            sub: grant.principal.name().to_owned(),
            kind: grant.kind,
            credential: grant.credential.clone(),
            iat: issued,
            exp: issued.saturating_add(life),
            access: grant.scopes.iter().map(entry).collect(),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.encoding)
            .map_err(|_| TokenError::Invalid)
    }

    /// For how long a token of ours is still good.
    pub fn left(&self, token: &str, now: Millis) -> Option<Duration> {
        #[derive(Deserialize)]
        struct End {
            exp: i64,
        }
        let mut validation = Validation::new(Algorithm::HS256);
        (validation.validate_exp, validation.validate_aud) = (false, false);
        let end = jsonwebtoken::decode::<End>(token, &self.decoding, &validation).ok()?.claims.exp;
        let seconds = end.saturating_sub(now.div_euclid(1000));
        Some(Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
    }

    /// What a token states, if we signed it for this registry and it has not expired.
    pub fn verify(
        &self,
        token: &str,
        registry: &RegistryName,
        kind: TokenKind,
        now: Millis,
    ) -> Result<Grant, TokenError> {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[registry.as_str()]);
        validation.validate_exp = false; // Ours to check: the time is given.
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation)
            .map_err(|_| TokenError::Invalid)?
            .claims;
        if claims.kind != kind {
            return Err(TokenError::Invalid);
        }
        if now.div_euclid(1000) >= claims.exp {
            return Err(TokenError::Expired);
        }
        Ok(Grant {
            kind,
            registry: registry.clone(),
            principal: Principal::new(claims.sub),
            credential: claims.credential,
            scopes: claims.access.iter().filter_map(scope).collect(),
        })
    }
}

fn entry(scope: &Scope) -> Entry {
    let (kind, name) = match &scope.resource {
        Resource::Repository(name) => ("repository", name.as_str()),
        Resource::AllRepositories => ("repository", "*"),
        Resource::Catalog => ("registry", "catalog"),
    };
    Entry {
        kind: kind.to_owned(),
        name: name.to_owned(),
        actions: scope.actions.names().map(str::to_owned).collect(),
    }
}

fn scope(entry: &Entry) -> Option<Scope> {
    Scope::parse(&format!("{}:{}:{}", entry.kind, entry.name, entry.actions.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = 1_700_000_000_000;
    const LIFE: Duration = Duration::from_secs(60);

    fn grant(scopes: &[&str]) -> Grant {
        Grant {
            kind: TokenKind::Access,
            registry: RegistryName::default(),
            principal: Principal::new("alice"),
            credential: "of alice".to_owned(),
            scopes: scopes.iter().filter_map(|text| Scope::parse(text)).collect(),
        }
    }

    fn repository(name: &str) -> Resource {
        Resource::Repository(name.parse().unwrap())
    }

    #[test]
    fn a_token_states_what_was_signed() {
        let signer = TokenSigner::hmac(b"key");
        let grant = grant(&["repository:team/app:pull,push", "registry:catalog:*"]);
        let token = signer.sign(&grant, NOW, LIFE).unwrap();
        let verify = |signer: &TokenSigner, registry: &RegistryName, kind, now| {
            signer.verify(&token, registry, kind, now)
        };
        let local = RegistryName::default();
        assert_eq!(verify(&signer, &local, TokenKind::Access, NOW), Ok(grant));
        let later = NOW + 60_000;
        assert_eq!(verify(&signer, &local, TokenKind::Access, later), Err(TokenError::Expired));
        let wrong = Err(TokenError::Invalid);
        assert_eq!(verify(&signer, &local, TokenKind::Refresh, NOW), wrong);
        let other = "other".parse().unwrap();
        assert_eq!(verify(&signer, &other, TokenKind::Access, NOW), wrong);
        assert_eq!(verify(&TokenSigner::hmac(b"yek"), &local, TokenKind::Access, NOW), wrong);
        assert_eq!(signer.verify("a.b.c", &local, TokenKind::Access, NOW), wrong);
    }

    #[test]
    fn an_unsigned_token_is_refused() {
        let signer = TokenSigner::hmac(b"key");
        let token = signer.sign(&grant(&[]), NOW, LIFE).unwrap();
        let claims = token.split('.').nth(1).unwrap();
        let unsigned = format!("eyJhbGciOiJub25lIn0.{claims}."); // {"alg":"none"}
        let local = RegistryName::default();
        let refused = signer.verify(&unsigned, &local, TokenKind::Access, NOW);
        assert_eq!(refused, Err(TokenError::Invalid));
    }

    #[test]
    fn scopes_add_up_and_never_reach_further() {
        let grant = grant(&["repository:app:pull", "repository:app:push", "repository:x:fly"]);
        assert!(grant.allows(&repository("app"), Actions::PULL | Actions::PUSH));
        assert!(!grant.allows(&repository("app"), Actions::DELETE));
        assert!(!grant.allows(&repository("app/other"), Actions::PULL));
        assert!(!grant.allows(&repository("x"), Actions::PULL));
        assert!(!grant.allows(&Resource::Catalog, Actions::ALL));
    }

    #[test]
    fn every_repository_is_not_the_catalog() {
        let grant = grant(&["repository:*:*"]);
        assert!(grant.allows(&repository("app"), Actions::ALL));
        assert!(!grant.allows(&Resource::Catalog, Actions::ALL));
    }

    #[test]
    fn what_is_not_a_scope_is_none() {
        for text in ["", "repository", "repository:app", "repository:../x:pull", "plugin:x:pull"] {
            assert_eq!(Scope::parse(text), None, "{text}");
        }
    }
}
