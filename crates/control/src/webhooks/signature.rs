//! How a receiver knows that a delivery is from this server and from now: the signatures of
//! *Standard Webhooks*, which libraries of many languages verify.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::hmac;
use serde::{Deserialize, Serialize};

/// What such a secret begins with when the rest is Base64.
const PREFIX: &str = "whsec_";

/// What a signed delivery has besides.
pub(super) const SIGNED_HEADERS: [&str; 3] =
    ["webhook-id", "webhook-timestamp", "webhook-signature"];

/// What signatures are made with, as it was given: a text, or `whsec_` and Base64.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SigningSecret(String);

/// Bytes of a secret.
const LEN_MIN: usize = 16;
const LEN_MAX: usize = 256;

/// A text that is no secret to sign with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a signing secret is a text of 16 to 256 bytes, or `whsec_` and as many bytes in Base64")]
pub struct BadSigningSecret;

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl SigningSecret {
    pub fn new(text: String) -> Result<Self, BadSigningSecret> {
        let secret = Self(text);
        let len = secret.bytes().ok_or(BadSigningSecret)?.len();
        if (LEN_MIN..=LEN_MAX).contains(&len) { Ok(secret) } else { Err(BadSigningSecret) }
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }

    fn bytes(&self) -> Option<Vec<u8>> {
        match self.0.strip_prefix(PREFIX) {
            Some(text) => BASE64_STANDARD.decode(text).ok(),
            None => Some(self.0.as_bytes().to_vec()),
        }
    }

    /// The headers of a delivery that is sent at a time, in seconds since 1970.
    pub(super) fn headers(&self, id: &str, at: i64, body: &str) -> [(String, String); 3] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.bytes().unwrap_or_default());
        let tag = hmac::sign(&key, format!("{id}.{at}.{body}").as_bytes());
        let signature = format!("v1,{}", BASE64_STANDARD.encode(tag.as_ref()));
        let [own_id, time, own_signature] = SIGNED_HEADERS.map(str::to_owned);
        [(own_id, id.to_owned()), (time, at.to_string()), (own_signature, signature)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's own libraries.
    #[test]
    fn a_signature_is_what_the_standard_says() {
        let secret = SigningSecret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned());
        let headers = secret.unwrap().headers(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
        );
        assert_eq!(headers[2].1, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_that_is_too_short_or_no_base64_is_refused() {
        for bad in ["", "short", "whsec_c2hvcnQ=", "whsec_not base64 at all!!", &"x".repeat(300)] {
            assert_eq!(SigningSecret::new(bad.to_owned()), Err(BadSigningSecret), "{bad}");
        }
        let fine = SigningSecret::new("0123456789abcdef".to_owned()).unwrap();
        assert_eq!(format!("{fine:?}"), "***");
    }
}
