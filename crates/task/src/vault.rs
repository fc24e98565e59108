//! Addresses of secrets in vaults (identity-and-secrets.md section 4).

use std::fmt;

/// A secret in a vault: `https://VAULT/secrets/NAME[/VERSION]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultSecret {
    /// With the port, if the address has one.
    pub host: String,
    pub name: String,
    /// The latest one if absent.
    pub version: Option<String>,
}

/// Why an address is none of a secret in a vault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VaultAddressError {
    #[error("it does not begin with `https://`")]
    NotHttps,
    #[error("its host has no dot")]
    BareHost,
    #[error("its path has {0} parts, not 2 or 3")]
    Segments(usize),
    #[error("it is of `{0}`, not of `secrets`")]
    Collection(String),
    #[error("it is no address: {0}")]
    Malformed(url::ParseError),
}

impl VaultAddressError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        "it looks like `https://VAULT.example.net/secrets/NAME`, with `/VERSION` for another one \
         than the latest"
    }
}

impl VaultSecret {
    /// Reads an address, in which upper and lower case are the same.
    pub fn parse(address: &str) -> Result<Self, VaultAddressError> {
        let address = address.trim().to_ascii_lowercase();
        let address = address.strip_suffix('/').unwrap_or(&address);
        let url = url::Url::parse(address).map_err(VaultAddressError::Malformed)?;
        if url.scheme() != "https" {
            return Err(VaultAddressError::NotHttps);
        }
        let host = url.host_str().unwrap_or_default();
        if !host.contains('.') {
            return Err(VaultAddressError::BareHost);
        }
        let path = url.path().trim_start_matches('/');
        let parts: Vec<&str> = path.split('/').filter(|_| !path.is_empty()).collect();
        let (collection, name, version) = match parts[..] {
            [collection, name] => (collection, name, None),
            [collection, name, version] => (collection, name, Some(version.to_owned())),
            _ => return Err(VaultAddressError::Segments(parts.len())),
        };
        if collection != "secrets" {
            return Err(VaultAddressError::Collection(collection.chars().take(40).collect()));
        }
        if name.is_empty() || version.as_ref().is_some_and(String::is_empty) {
            return Err(VaultAddressError::Segments(parts.len() - 1));
        }
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        Ok(Self { host: format!("{host}{port}"), name: name.to_owned(), version })
    }

    /// Whom a token for the vault is for: its host without the first label.
    pub fn audience(&self) -> String {
        let host = self.host.split_once('.').map_or("", |(_, rest)| rest);
        format!("https://{host}")
    }
}

impl fmt::Display for VaultSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}/secrets/{}", self.host, self.name)?;
        self.version.as_ref().map_or(Ok(()), |version| write!(f, "/{version}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(address: &str, expected: &str) {
        let read = VaultSecret::parse(address);
        let read = read.map(|secret| format!("{secret} for {}", secret.audience()));
        assert_eq!(read.unwrap_or_else(|error| error.to_string()), expected, "{address}");
    }

    #[test]
    fn j6_a_vault_speaks_https() {
        check("http://v.example.net/secrets/x", "it does not begin with `https://`");
    }

    #[test]
    fn j7_without_a_version_the_latest_is_meant() {
        let secret = VaultSecret::parse("https://v.example.net/secrets/x/").unwrap();
        assert_eq!((&*secret.name, secret.version), ("x", None));
        check(
            "HTTPS://V.example.NET/Secrets/X",
            "https://v.example.net/secrets/x for https://example.net",
        );
    }

    #[test]
    fn j8_the_audience_is_the_host_without_its_first_label() {
        check(
            "https://v.example.net/secrets/x/1",
            "https://v.example.net/secrets/x/1 for https://example.net",
        );
        check("https://v.a:8200/secrets/x", "https://v.a:8200/secrets/x for https://a:8200");
    }

    #[test]
    fn j9_a_path_has_two_or_three_parts() {
        check("https://v.example.net/secrets/x/1/2", "its path has 4 parts, not 2 or 3");
        check("https://v.example.net/secrets", "its path has 1 parts, not 2 or 3");
        check("https://v.example.net", "its path has 0 parts, not 2 or 3");
        check("https://v.example.net/secrets//", "its path has 1 parts, not 2 or 3");
    }

    #[test]
    fn j10_only_secrets_are_fetched() {
        check("https://v.example.net/keys/x", "it is of `keys`, not of `secrets`");
    }

    #[test]
    fn j11_a_host_has_a_dot() {
        check("https://v/secrets/x", "its host has no dot");
        check("nonsense", "it is no address: relative URL without a base");
    }
}
