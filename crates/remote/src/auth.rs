//! The Docker token flow, from the client's side.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use serde::Deserialize;

use crate::Credentials;

/// What a registry asks for in a `401`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

impl Challenge {
    /// The strongest challenge that we can answer: bearer before basic.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter();
        let all: Vec<Self> = values.filter_map(|value| Self::parse(value.to_str().ok()?)).collect();
        let bearer = all.iter().find(|challenge| matches!(challenge, Self::Bearer { .. }));
        bearer.or(all.first()).cloned()
    }

    fn parse(text: &str) -> Option<Self> {
        let (scheme, parameters) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let parameters = parameters_of(parameters);
        let find = |name: &str| {
            let found = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.clone())
        };
        Some(Self::Bearer { realm: find("realm")?, service: find("service") })
    }
}

/// `a="b, c",d=e` as pairs; quotes and backslashes as in RFC 9110, *Quoted Strings*.
fn parameters_of(text: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start_matches([',', ' ']);
    while let Some((key, after)) = rest.split_once('=') {
        let (value, tail) = match after.strip_prefix('"') {
            Some(quoted) => take_quoted(quoted),
            None => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        pairs.push((key.trim().to_owned(), value));
        rest = tail.trim_start_matches([',', ' ']);
    }
    pairs
}

fn take_quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

/// The `Authorization` value in a token service's answer.
pub(crate) fn bearer(body: &[u8]) -> Option<String> {
    let answer: TokenAnswer = serde_json::from_slice(body).ok()?;
    let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token)?;
    Some(format!("Bearer {token}"))
}

/// What an exchange gave.
pub(crate) fn refresh(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Exchanged {
        refresh_token: String,
    }
    let answer: Exchanged = serde_json::from_slice(body).ok()?;
    Some(answer.refresh_token).filter(|token| !token.is_empty())
}

pub(crate) fn basic(credentials: &Credentials) -> String {
    use base64::Engine;
    let pair = format!("{}:{}", credentials.username, credentials.password);
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_with_quotes_and_without() {
        let bearer = |realm: &str, service: Option<&str>| Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
        };
        let cases = [
            (
                r#"Bearer realm="https://a/t",service="s, x",scope="repository:r:pull""#,
                Some(bearer("https://a/t", Some("s, x"))),
            ),
            (r#"bearer service=s, realm=https://a/t"#, Some(bearer("https://a/t", Some("s")))),
            (r#"Bearer realm="a\"b""#, Some(bearer("a\"b", None))),
            (r#"Basic realm="x""#, Some(Challenge::Basic)),
            ("Bearer service=s", None),
            ("Negotiate", None),
            ("Bearer realm=\"", Some(bearer("", None))),
        ];
        for (text, expected) in cases {
            assert_eq!(Challenge::parse(text), expected, "{text}");
        }
    }
}
