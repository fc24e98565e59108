//! Deliveries of git hosts: whose they are, and whether they prove it (triggers.md section 1).

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use control::SourceHost;
use http::HeaderMap;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use oci::Digest;
use ring::hmac;

/// How far the time of a delivery that is signed with one may be off, in seconds.
const TOLERANCE: i64 = 5 * 60;

/// How keys of the Standard Webhooks begin: the rest is in Base64.
const STANDARD_KEY: &str = "whsec_";

/// A delivery that comes from whom it says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Proven {
    /// Tells it from others, whatever is said of it that is not signed.
    pub(crate) key: String,
}

/// Why a delivery is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unproven {
    #[error("the delivery is not signed, and has no token")]
    Nothing,
    #[error("the delivery is not signed with the secret of this trigger")]
    Signature,
    #[error("the token or password of the delivery is not the secret of this trigger")]
    Token,
    #[error("the time of the delivery is not about now")]
    Time,
}

/// Who sends a delivery, and what they call it.
pub(crate) fn sender(headers: &HeaderMap, body: &[u8]) -> (SourceHost, String) {
    let event = |name: &str| text(headers, name).map(str::to_owned);
    // Some say the names of others too.
    for name in ["x-gitea-event", "x-forgejo-event", "x-gogs-event"] {
        match event(name) {
            // It does not tell the commit.
            Some(event) if name == "x-gogs-event" && event == "pull_request" => {
                return (SourceHost::Gitea, "pull_request of Gogs".to_owned());
            }
            Some(event) => return (SourceHost::Gitea, event),
            None => (),
        }
    }
    if let Some(event) = event("x-github-event") {
        return (SourceHost::GitHub, event);
    }
    if let Some(event) = event("x-gitlab-event") {
        return (SourceHost::GitLab, event);
    }
    if let Some(event) = event("x-event-key") {
        let is_cloud = event == "repo:push" || event.starts_with("pullrequest:");
        let is_cloud = is_cloud || headers.contains_key("x-hook-uuid");
        let host = if is_cloud { SourceHost::Bitbucket } else { SourceHost::BitbucketServer };
        return (host, event);
    }
    match is_azure_devops(body) {
        true => (SourceHost::AzureDevOps, String::new()),
        false => (SourceHost::Generic, String::new()),
    }
}

fn is_azure_devops(body: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Publisher {
        publisher_id: String,
    }
    serde_json::from_slice::<Publisher>(body).is_ok_and(|found| found.publisher_id == "tfs")
}

/// What is said, whatever it is wrapped in.
pub(crate) fn content<'a>(headers: &HeaderMap, body: &'a [u8]) -> Cow<'a, [u8]> {
    let kind = text(headers, CONTENT_TYPE.as_str()).unwrap_or_default();
    if !kind.to_ascii_lowercase().starts_with("application/x-www-form-urlencoded") {
        return Cow::Borrowed(body);
    }
    let mut members = url::form_urlencoded::parse(body);
    match members.find(|(name, _)| name == "payload") {
        Some((_, payload)) => Cow::Owned(payload.into_owned().into_bytes()),
        None => Cow::Borrowed(body),
    }
}

/// Checks that a delivery comes from somebody who has the secret. `now` is in seconds since 1970.
pub(crate) fn prove(
    headers: &HeaderMap,
    body: &[u8],
    secret: &str,
    now: i64,
) -> Result<Proven, Unproven> {
    let of_body = || Digest::of(body).to_string();
    if let Some(given) = text(headers, "webhook-signature") {
        return standard(headers, body, secret, given, now);
    }
    let hex = |text: &str| text.strip_prefix("sha256=").map(str::to_owned);
    // SHA-1 is not looked at.
    let signature = text(headers, "x-hub-signature-256")
        .and_then(hex)
        .or_else(|| text(headers, "x-hub-signature").and_then(hex))
        .or_else(|| text(headers, "x-gitea-signature").map(str::to_owned))
        .or_else(|| text(headers, "x-gogs-signature").map(str::to_owned));
    if let Some(signature) = signature {
        let tag = decoded_hex(&signature).ok_or(Unproven::Signature)?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        return match hmac::verify(&key, body, &tag) {
            Ok(()) => Ok(Proven { key: of_body() }),
            Err(_) => Err(Unproven::Signature),
        };
    }
    let password = text(headers, AUTHORIZATION.as_str()).and_then(basic_password);
    let token = text(headers, "x-gitlab-token").map(str::to_owned).or(password);
    match token {
        None => Err(Unproven::Nothing),
        Some(token) if !is_secret(&token, secret) => Err(Unproven::Token),
        Some(_) => {
            let id = ["idempotency-key", "x-gitlab-event-uuid"];
            let id = id.iter().find_map(|name| text(headers, name));
            // Some call several deliveries the same.
            let id = id.map(|id| format!("{} of ", id.chars().take(200).collect::<String>()));
            Ok(Proven { key: format!("{}{}", id.unwrap_or_default(), of_body()) })
        }
    }
}

/// The form of the Standard Webhooks: id, time and body are signed.
fn standard(
    headers: &HeaderMap,
    body: &[u8],
    secret: &str,
    given: &str,
    now: i64,
) -> Result<Proven, Unproven> {
    let id = text(headers, "webhook-id").ok_or(Unproven::Signature)?;
    let time = text(headers, "webhook-timestamp").ok_or(Unproven::Signature)?;
    let key = match secret.strip_prefix(STANDARD_KEY).map(|key| STANDARD.decode(key)) {
        Some(Ok(key)) => key,
        _ => secret.as_bytes().to_vec(),
    };
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let mut signed = format!("{id}.{time}.").into_bytes();
    signed.extend_from_slice(body);
    let is_it = given
        .split(' ')
        .filter_map(|one| one.strip_prefix("v1,"))
        .any(|tag| STANDARD.decode(tag).is_ok_and(|tag| hmac::verify(&key, &signed, &tag).is_ok()));
    if !is_it {
        return Err(Unproven::Signature);
    }
    let time: i64 = time.parse().map_err(|_| Unproven::Time)?;
    match now.abs_diff(time) <= TOLERANCE.unsigned_abs() {
        true => Ok(Proven { key: format!("id {}", id.chars().take(200).collect::<String>()) }),
        false => Err(Unproven::Time),
    }
}

/// Takes as long whatever is the same.
fn is_secret(given: &str, secret: &str) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, secret.as_bytes());
    hmac::verify(&key, given.as_bytes(), tag.as_ref()).is_ok()
}

fn basic_password(header: &str) -> Option<String> {
    let (kind, encoded) = header.split_once(' ')?;
    let decoded = STANDARD.decode(encoded.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (_, password) = text.split_once(':')?;
    kind.eq_ignore_ascii_case("basic").then(|| password.to_owned())
}

fn decoded_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(pair, 16).ok()
    });
    (text.len() == 64).then(|| pairs.collect()).flatten()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const SECRET: &str = "It's a Secret to Everybody";
    const BODY: &[u8] = b"Hello, World!";

    fn headers(given: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        given.iter().map(pair).collect()
    }

    #[test]
    fn signatures_are_those_that_hosts_make() {
        // The example of GitHub's documentation.
        let tag = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let github = format!("sha256={tag}");
        for (name, value) in [
            ("x-hub-signature-256", &*github),
            ("x-hub-signature", &*github),
            ("x-gitea-signature", tag),
            ("x-gogs-signature", tag),
        ] {
            let proven = prove(&headers(&[(name, value)]), BODY, SECRET, 0).unwrap();
            assert_eq!(proven.key, Digest::of(BODY).to_string(), "{name}");
            let given = headers(&[(name, value)]);
            assert_eq!(prove(&given, b"Hello, World?", SECRET, 0), Err(Unproven::Signature));
            assert_eq!(prove(&given, BODY, "other", 0), Err(Unproven::Signature));
        }
        let old = headers(&[("x-hub-signature", "sha1=0000")]);
        assert_eq!(prove(&old, BODY, SECRET, 0), Err(Unproven::Nothing));
        let cut = headers(&[("x-hub-signature-256", "sha256=75")]);
        assert_eq!(prove(&cut, BODY, SECRET, 0), Err(Unproven::Signature));
        assert_eq!(prove(&headers(&[]), BODY, SECRET, 0), Err(Unproven::Nothing));
    }

    #[test]
    fn tokens_are_the_secret_itself() {
        let told = headers(&[("x-gitlab-token", SECRET), ("x-gitlab-event-uuid", "7")]);
        let key = format!("7 of {}", Digest::of(BODY));
        assert_eq!(prove(&told, BODY, SECRET, 0).unwrap().key, key);
        let other = headers(&[("x-gitlab-token", "It's")]);
        assert_eq!(prove(&other, BODY, SECRET, 0), Err(Unproven::Token));
        let basic = format!("Basic {}", STANDARD.encode(format!("refit:{SECRET}")));
        let told = headers(&[("authorization", &basic)]);
        assert_eq!(prove(&told, BODY, SECRET, 0).unwrap().key, Digest::of(BODY).to_string());
        let basic = format!("Basic {}", STANDARD.encode("refit:other"));
        let told = headers(&[("authorization", &basic)]);
        assert_eq!(prove(&told, BODY, SECRET, 0), Err(Unproven::Token));
        let told = headers(&[("authorization", "Bearer It's a Secret to Everybody")]);
        assert_eq!(prove(&told, BODY, SECRET, 0), Err(Unproven::Nothing));
    }

    #[test]
    fn standard_webhooks_have_their_time_signed() {
        // The example of the specification's reference implementations.
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let body = br#"{"test": 2432232314}"#;
        let told = [
            ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
            ("webhook-timestamp", "1614265330"),
            ("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
        ];
        let told = headers(&told);
        let proven = prove(&told, body, secret, 1_614_265_400).unwrap();
        assert_eq!(proven.key, "id msg_p5jXN8AQM9LWM0D4loKWxJek");
        assert_eq!(prove(&told, body, secret, 1_614_265_931), Err(Unproven::Time));
        assert_eq!(prove(&told, b"{}", secret, 1_614_265_400), Err(Unproven::Signature));
    }

    #[test]
    fn a_delivery_says_whose_it_is() {
        let of = |given: &[(&'static str, &str)]| sender(&headers(given), b"{}");
        let gitea = [("x-github-event", "push"), ("x-gitea-event", "push")];
        assert_eq!(of(&gitea), (SourceHost::Gitea, "push".into()));
        assert_eq!(of(&gitea[..1]), (SourceHost::GitHub, "push".into()));
        assert_eq!(of(&[("x-event-key", "repo:push")]).0, SourceHost::Bitbucket);
        assert_eq!(of(&[("x-event-key", "repo:refs_changed")]).0, SourceHost::BitbucketServer);
        assert_eq!(of(&[]).0, SourceHost::Generic);
        let azure = br#"{"publisherId": "tfs", "eventType": "git.push"}"#;
        assert_eq!(sender(&headers(&[]), azure).0, SourceHost::AzureDevOps);
    }

    #[test]
    fn a_form_has_the_delivery_in_a_member() {
        let form = headers(&[("content-type", "application/x-www-form-urlencoded")]);
        assert_eq!(&*content(&form, b"payload=%7B%22a%22%3A1%7D"), br#"{"a":1}"#);
        let json = headers(&[("content-type", "application/json")]);
        assert_eq!(&*content(&json, b"{}"), b"{}");
    }
}
