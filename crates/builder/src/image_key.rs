//! Public keys of those who sign images.

use std::str::FromStr;

use p256::pkcs8::DecodePublicKey as _;
use rsa::sha2::Sha256;
use rsa::signature::Verifier as _;
use rsa::traits::PublicKeyParts as _;
use rsa::{RsaPublicKey, pkcs1v15};

/// Bits of an RSA key. Larger ones its library does not read.
const RSA_BITS_MIN: usize = 2048;

/// A public key of a kind that cosign makes, or takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageKey(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    P256(p256::ecdsa::VerifyingKey),
    Ed25519(Box<ed25519_dalek::VerifyingKey>),
    Rsa(RsaPublicKey),
}

impl ImageKey {
    /// Whether the key's owner has signed a message: ECDSA and RSA (PKCS #1, version 1.5) sign its
    /// SHA-256, Ed25519 the message itself.
    pub fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.0 {
            Kind::P256(key) => p256::ecdsa::Signature::from_der(signature)
                .is_ok_and(|signature| key.verify(message, &signature).is_ok()),
            Kind::Ed25519(key) => ed25519_dalek::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify_strict(message, &signature).is_ok()),
            Kind::Rsa(key) => {
                let key = pkcs1v15::VerifyingKey::<Sha256>::new(key.clone());
                pkcs1v15::Signature::try_from(signature)
                    .is_ok_and(|signature| key.verify(message, &signature).is_ok())
            }
        }
    }
}

impl FromStr for ImageKey {
    type Err = String;

    /// Reads PEM, as `cosign generate-key-pair` and `openssl pkey -pubout` write it.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.contains("PRIVATE KEY-----") {
            return Err("is a private key: only its public half belongs here".to_owned());
        }
        if !text.contains("-----BEGIN PUBLIC KEY-----") {
            return Err("has no line `-----BEGIN PUBLIC KEY-----`".to_owned());
        }
        let p256 = p256::ecdsa::VerifyingKey::from_public_key_pem(text).map(Kind::P256);
        let ed25519 = || {
            let key = ed25519_dalek::VerifyingKey::from_public_key_pem(text);
            key.map(|key| Kind::Ed25519(Box::new(key)))
        };
        let rsa = || RsaPublicKey::from_public_key_pem(text).map(Kind::Rsa);
        match p256.or_else(|_| ed25519()).or_else(|_| rsa()) {
            Ok(Kind::Rsa(key)) if key.size() * 8 < RSA_BITS_MIN => {
                Err(format!("is an RSA key of less than {RSA_BITS_MIN} bits"))
            }
            Ok(kind) => Ok(Self(kind)),
            Err(_) => {
                Err("is damaged, or neither ECDSA P-256 nor Ed25519 nor RSA of 2048 to 4096 \
                           bits"
                    .to_owned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use p256::pkcs8::{EncodePublicKey as _, LineEnding};
    use rsa::rand_core::OsRng;
    use rsa::signature::{SignatureEncoding as _, Signer as _};

    use super::*;

    #[test]
    fn each_kind_of_key_tells_its_own_signatures() {
        let p256 = p256::ecdsa::SigningKey::random(&mut OsRng);
        let p256_signed: p256::ecdsa::Signature = p256.sign(b"message");
        let ed25519 = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        let ed25519_signed = ed25519.sign(b"message");
        let rsa = rsa::RsaPrivateKey::new(&mut OsRng, 2048).unwrap();
        let rsa_signed = pkcs1v15::SigningKey::<Sha256>::new(rsa.clone()).sign(b"message");
        let pem = |key: Result<String, _>| key.unwrap().parse::<ImageKey>().unwrap();
        let signed = [
            (
                pem(p256.verifying_key().to_public_key_pem(LineEnding::LF)),
                p256_signed.to_der().as_bytes().to_vec(),
            ),
            (
                pem(ed25519.verifying_key().to_public_key_pem(LineEnding::CRLF)),
                ed25519_signed.to_bytes().to_vec(),
            ),
            (pem(rsa.to_public_key().to_public_key_pem(LineEnding::LF)), rsa_signed.to_vec()),
        ];
        for (at, (key, _)) in signed.iter().enumerate() {
            for (of, (_, signature)) in signed.iter().enumerate() {
                assert_eq!(key.has_signed(b"message", signature), at == of, "{at} {of}");
                assert!(!key.has_signed(b"another", signature), "{at} {of}");
                assert!(!key.has_signed(b"message", &signature[1..]), "{at} {of}");
            }
            assert!(!key.has_signed(b"message", b""));
        }
    }

    #[test]
    fn what_is_no_public_key_is_told() {
        let small = rsa::RsaPrivateKey::new(&mut OsRng, 1024).unwrap().to_public_key();
        let small = small.to_public_key_pem(LineEnding::LF).unwrap();
        for (text, told) in [
            ("", "has no line `-----BEGIN PUBLIC KEY-----`"),
            ("-----BEGIN EC PRIVATE KEY-----", "is a private key"),
            ("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----", "is a private key"),
            ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "is damaged"),
            (&small, "is an RSA key of less than 2048 bits"),
        ] {
            let error = text.parse::<ImageKey>().unwrap_err();
            assert!(error.starts_with(told), "{text}: {error}");
        }
    }
}
