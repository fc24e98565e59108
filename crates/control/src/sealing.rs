//! Secrets at rest: records keep them sealed, with keys that are not in the database.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use json_patch::Patch;
use oci::Digest;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::table::not_json;
use crate::{ControlError, Result};

/// Bytes of what makes the key of each sealed text another one.
const SALT_LEN: usize = 16;
/// The form of sealed texts, should there ever be another one.
const FORM: &str = "1";

/// The keys that seal secrets in the database. The first one seals, all of them open.
///
/// Each text is sealed by AES-256-GCM with a key of its own (HKDF-SHA256 over a random salt), and
/// can be opened only in the place that it was sealed for, beside what it was sealed with: nobody who
/// can write into the database gives the secrets of one task to another, or sends them elsewhere.
pub struct SecretKeys {
    keys: Vec<SecretKey>,
}

struct SecretKey {
    /// Tells keys apart, and nothing else of them.
    id: String,
    bytes: [u8; 32],
}

impl fmt::Debug for SecretKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| &key.id)).finish()
    }
}

impl SecretKeys {
    /// `sealing` seals from now on; what `older` ones sealed can be opened too.
    pub fn new(sealing: [u8; 32], older: impl IntoIterator<Item = [u8; 32]>) -> Self {
        let keys = std::iter::once(sealing).chain(older);
        Self { keys: keys.map(|bytes| SecretKey { id: id_of(&bytes), bytes }).collect() }
    }

    /// Seals a text for the place that it is kept in.
    pub(crate) fn seal(&self, place: &str, text: &[u8]) -> Result<String> {
        let key = &self.keys[0];
        let mut salt = [0; SALT_LEN];
        SystemRandom::new().fill(&mut salt).map_err(|_| failed("seal a secret"))?;
        let mut sealed = text.to_vec();
        let cipher = key.cipher(&salt, place)?;
        // The key is for this one text.
        let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
        cipher
            .seal_in_place_append_tag(nonce, Aad::from(place), &mut sealed)
            .map_err(|_| failed("seal a secret"))?;
        let bytes = [&salt[..], &sealed].concat();
        Ok(format!("{FORM}:{}:{}", key.id, BASE64_STANDARD_NO_PAD.encode(bytes)))
    }

    /// Opens what was sealed for a place.
    pub(crate) fn open(&self, place: &str, sealed: &str) -> Result<Vec<u8>> {
        // The digest says nothing to people.
        let shown = place.split_once(" sha256:").map_or(place, |(place, _)| place);
        let damaged = || ControlError::Unsealable { place: shown.to_owned(), key: None };
        let mut parts = sealed.splitn(3, ':');
        let (Some(FORM), Some(id), Some(text)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(damaged());
        };
        let key = self.keys.iter().find(|key| key.id == id);
        let key = key.ok_or_else(|| ControlError::Unsealable {
            place: shown.to_owned(),
            key: Some(id.chars().take(40).collect()),
        })?;
        let bytes = BASE64_STANDARD_NO_PAD.decode(text).map_err(|_| damaged())?;
        let (salt, sealed) = bytes.split_at_checked(SALT_LEN).ok_or_else(damaged)?;
        let mut text = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
        let opened = key.cipher(salt, place)?.open_in_place(nonce, Aad::from(place), &mut text);
        let len = opened.map_err(|_| damaged())?.len();
        text.truncate(len);
        Ok(text)
    }

    /// Whether a text is sealed with the key that seals now.
    pub(crate) fn is_current(&self, sealed: &str) -> bool {
        let start = format!("{FORM}:{}:", self.keys[0].id);
        sealed.starts_with(&start)
    }

    /// Takes the secrets out of a record: what may be read, and the rest sealed if there is any.
    /// `open` is the record without its secrets.
    pub(crate) fn divide<T: Serialize + PartialEq>(
        &self,
        place: &str,
        record: &T,
        open: &T,
    ) -> Result<(String, Option<String>)> {
        let text = serde_json::to_string(open).map_err(writing)?;
        if record == open {
            return Ok((text, None));
        }
        let record = serde_json::to_value(record).map_err(writing)?;
        let open = serde_json::to_value(open).map_err(writing)?;
        let secrets = serde_json::to_vec(&json_patch::diff(&open, &record)).map_err(writing)?;
        let sealed = self.seal(&beside(place, &text), &secrets)?;
        Ok((text, Some(sealed)))
    }

    /// Puts a record together again.
    pub(crate) fn join<T: DeserializeOwned>(
        &self,
        place: &str,
        open: &str,
        secrets: Option<&str>,
    ) -> Result<T> {
        let Some(secrets) = secrets else { return serde_json::from_str(open).map_err(reading) };
        let secrets: Patch =
            serde_json::from_slice(&self.open(&beside(place, open), secrets)?).map_err(reading)?;
        let mut record: Value = serde_json::from_str(open).map_err(reading)?;
        json_patch::patch(&mut record, &secrets)
            .map_err(|_| ControlError::Unsealable { place: place.to_owned(), key: None })?;
        serde_json::from_value(record).map_err(reading)
    }
}

/// The place of secrets beside what may be read: those of one record are for no other one, nor for
/// the same with another address in it.
pub(crate) fn beside(place: &str, open: &str) -> String {
    format!("{place} {}", Digest::of(open.as_bytes()))
}

impl SecretKey {
    fn cipher(&self, salt: &[u8], place: &str) -> Result<LessSafeKey> {
        let key = Salt::new(HKDF_SHA256, salt).extract(&self.bytes);
        let info = [place.as_bytes()];
        let key = key.expand(&info, &AES_256_GCM).map_err(|_| failed("seal a secret"))?;
        Ok(LessSafeKey::new(UnboundKey::from(key)))
    }
}

fn id_of(key: &[u8; 32]) -> String {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key);
    let tag = ring::hmac::sign(&key, b"id of a key of secrets");
    tag.as_ref()[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn failed(doing: &str) -> ControlError {
    ControlError::Database { doing: doing.into(), source: "the system cannot".into() }
}

fn writing(source: serde_json::Error) -> ControlError {
    not_json("write a record", source)
}

fn reading(source: serde_json::Error) -> ControlError {
    not_json("read a record", source)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: &str = "task local/nightly";

    fn keys() -> SecretKeys {
        SecretKeys::new([7; 32], [])
    }

    #[test]
    fn a_secret_is_opened_where_it_was_sealed_and_nowhere_else() {
        let sealed = keys().seal(PLACE, b"hunter2").unwrap();
        assert!(!sealed.contains("hunter2"));
        assert_eq!(keys().open(PLACE, &sealed).unwrap(), b"hunter2");
        assert!(keys().open("task local/other", &sealed).is_err());
        assert_ne!(sealed, keys().seal(PLACE, b"hunter2").unwrap());
    }

    #[test]
    fn an_older_key_opens_and_a_new_one_seals() {
        let sealed = keys().seal(PLACE, b"hunter2").unwrap();
        let rotated = SecretKeys::new([8; 32], [[7; 32]]);
        assert_eq!(rotated.open(PLACE, &sealed).unwrap(), b"hunter2");
        assert!(keys().is_current(&sealed) && !rotated.is_current(&sealed));
        let error = SecretKeys::new([8; 32], []).open(PLACE, &sealed).unwrap_err();
        let key = sealed.split(':').nth(1).unwrap();
        assert!(error.to_string().contains(key), "{error}");
        assert_eq!(format!("{:?}", keys()), format!("[\"{key}\"]"));
    }

    #[test]
    fn what_was_changed_is_not_opened() {
        let sealed = keys().seal(PLACE, b"hunter2").unwrap();
        for at in 0..sealed.len() {
            let mut bytes = sealed.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(keys().open(PLACE, &changed).is_err(), "{changed}");
            assert!(keys().open(PLACE, &sealed[..at]).is_err(), "{at}");
        }
    }

    #[test]
    fn a_record_is_divided_and_joined() {
        let record = serde_json::json!({
            "arguments": [{ "name": "a", "value": "1" }, { "name": "b", "value": "hunter2" }],
            "context": { "token": "hunter3", "shown": "x" }, "more": ["hunter4"],
        });
        let open = serde_json::json!({
            "arguments": [{ "name": "a", "value": "1" }, { "name": "b", "value": "" }],
            "context": { "token": null, "shown": "x" },
        });
        let (text, secrets) = keys().divide(PLACE, &record, &open).unwrap();
        assert!(!text.contains("hunter"), "{text}");
        let joined: Value = keys().join(PLACE, &text, secrets.as_deref()).unwrap();
        assert_eq!(joined, record);
        let (text, secrets) = keys().divide(PLACE, &open, &open).unwrap();
        assert_eq!(secrets, None);
        assert_eq!(keys().join::<Value>(PLACE, &text, None).unwrap(), open);
    }
}
