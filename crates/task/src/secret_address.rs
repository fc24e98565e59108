//! Where the values of secrets are.

use std::fmt;
use std::str::FromStr;

use crate::vault::{VaultAddressError, VaultSecret};

/// Characters of the parts of an address.
const PART_MAX: usize = 512;

/// Where the value of a secret is. Each kind has a scheme of its own; that of a key vault is `https`
/// (identity-and-secrets.md section 4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretAddress {
    /// `https://VAULT/secrets/NAME[/VERSION]`: in a key vault of the Azure dialect.
    KeyVault(VaultSecret),
    /// `store://NAME`: kept by the run's own registry.
    Stored(String),
    /// `file://PATH`: a file of a folder that the server has for the registry.
    File(String),
    /// `env://NAME`: a variable of the server's environment.
    Environment(String),
    /// `vault://HOST[:PORT]/MOUNT/PATH[?version=N]#FIELD`: in a HashiCorp Vault, version 2 of KV.
    Vault(VaultField),
    /// `kubernetes://NAMESPACE/NAME/KEY`: in a secret of the cluster that the server is in.
    Kubernetes { namespace: String, name: String, key: String },
}

/// A field of a secret in a HashiCorp Vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultField {
    /// With the port, if the address has one.
    pub host: String,
    /// Of the secrets engine; one part.
    pub mount: String,
    pub path: String,
    /// The latest one if absent.
    pub version: Option<u64>,
    pub field: String,
}

/// Why a text is no address of a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretAddressError {
    #[error(transparent)]
    KeyVault(#[from] VaultAddressError),
    #[error("it does not have the form `{0}`")]
    Form(&'static str),
}

impl SecretAddressError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::KeyVault(error) => error.hint(),
            Self::Form(_) => "docs/secrets.md has the kinds of addresses",
        }
    }
}

const STORED: &str = "store://NAME";
const FILE: &str = "file://PATH";
const ENVIRONMENT: &str = "env://NAME";
const VAULT: &str = "vault://HOST/MOUNT/PATH#FIELD";
const KUBERNETES: &str = "kubernetes://NAMESPACE/NAME/KEY";

impl FromStr for SecretAddress {
    type Err = SecretAddressError;

    fn from_str(address: &str) -> Result<Self, SecretAddressError> {
        let address = address.trim();
        let Some((scheme, rest)) = address.split_once("://") else {
            return Ok(Self::KeyVault(VaultSecret::parse(address)?));
        };
        let bad = SecretAddressError::Form;
        match scheme.to_ascii_lowercase().as_str() {
            "store" => part(rest).map(Self::Stored).ok_or(bad(STORED)),
            "file" => path(rest).map(Self::File).ok_or(bad(FILE)),
            "env" => part(rest).map(Self::Environment).ok_or(bad(ENVIRONMENT)),
            "vault" => VaultField::read(rest).map(Self::Vault).ok_or(bad(VAULT)),
            "kubernetes" => {
                let parts: Option<Vec<String>> = rest.split('/').map(part).collect();
                let parts = parts.and_then(|parts| <[String; 3]>::try_from(parts).ok());
                let [namespace, name, key] = parts.ok_or(bad(KUBERNETES))?;
                Ok(Self::Kubernetes { namespace, name, key })
            }
            _ => Ok(Self::KeyVault(VaultSecret::parse(address)?)),
        }
    }
}

impl VaultField {
    fn read(rest: &str) -> Option<Self> {
        let (rest, field) = rest.split_once('#')?;
        let (rest, version) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query.strip_prefix("version=")?.parse().ok()?)),
            None => (rest, None),
        };
        let mut parts = rest.splitn(3, '/');
        let (host, mount, inside) = (parts.next()?, parts.next()?, parts.next()?);
        let is_host = |c: char| c.is_ascii_alphanumeric() || "-.:[]".contains(c);
        let host = host.to_ascii_lowercase();
        (!host.is_empty() && host.len() <= PART_MAX && host.chars().all(is_host)).then_some(())?;
        Some(Self { host, mount: part(mount)?, path: path(inside)?, version, field: part(field)? })
    }
}

/// A name without anything that means something elsewhere.
fn part(text: &str) -> Option<String> {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_name = (1..=PART_MAX).contains(&text.len()) && text.chars().all(is_fine);
    (is_name && text != "." && text != "..").then(|| text.to_owned())
}

/// Names, one inside the other.
fn path(text: &str) -> Option<String> {
    (text.len() <= PART_MAX && text.split('/').all(|name| part(name).is_some()))
        .then(|| text.to_owned())
}

impl fmt::Display for SecretAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyVault(vault) => vault.fmt(f),
            Self::Stored(name) => write!(f, "store://{name}"),
            Self::File(path) => write!(f, "file://{path}"),
            Self::Environment(name) => write!(f, "env://{name}"),
            Self::Vault(VaultField { host, mount, path, version, field }) => {
                write!(f, "vault://{host}/{mount}/{path}")?;
                version.map_or(Ok(()), |version| write!(f, "?version={version}"))?;
                write!(f, "#{field}")
            }
            Self::Kubernetes { namespace, name, key } => {
                write!(f, "kubernetes://{namespace}/{name}/{key}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_scheme() {
        for address in [
            "https://v.example.net/secrets/x/1",
            "store://Signing-Key",
            "file://team/npm_token",
            "env://NPM_TOKEN",
            "vault://vault.example.net:8200/secret/team/app#password",
            "vault://vault.example.net/secret/app?version=3#password",
            "kubernetes://build/registry/token.json",
        ] {
            let read: SecretAddress = address.parse().unwrap();
            assert_eq!(read.to_string(), address);
        }
        let read: SecretAddress = " STORE://a ".parse().unwrap();
        assert_eq!(read, SecretAddress::Stored("a".into()));
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        for (address, error) in [
            ("store://a/b", "it does not have the form `store://NAME`"),
            ("store://", "it does not have the form `store://NAME`"),
            ("file:///etc/passwd", "it does not have the form `file://PATH`"),
            ("file://a/../b", "it does not have the form `file://PATH`"),
            ("file://a//b", "it does not have the form `file://PATH`"),
            ("env://A B", "it does not have the form `env://NAME`"),
            ("vault://h/secret/app", "it does not have the form `vault://HOST/MOUNT/PATH#FIELD`"),
            ("vault://u@h/m/p#f", "it does not have the form `vault://HOST/MOUNT/PATH#FIELD`"),
            ("vault://h/m/../sys#f", "it does not have the form `vault://HOST/MOUNT/PATH#FIELD`"),
            ("vault://h/m/p?x=1#f", "it does not have the form `vault://HOST/MOUNT/PATH#FIELD`"),
            ("kubernetes://a/b", "it does not have the form `kubernetes://NAMESPACE/NAME/KEY`"),
            ("kubernetes://a/../c", "it does not have the form `kubernetes://NAMESPACE/NAME/KEY`"),
            ("http://v.example.net/secrets/x", "it does not begin with `https://`"),
            ("nonsense", "it is no address: relative URL without a base"),
        ] {
            let read = address.parse::<SecretAddress>().unwrap_err();
            assert_eq!(read.to_string(), error, "{address}");
        }
    }
}
