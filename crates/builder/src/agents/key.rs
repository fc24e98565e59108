//! A private key: how it is read from its file, and how it signs.
//!
//! Files are those of OpenSSH (its `PROTOCOL.key`), and the PEM forms of before: PKCS #1, SEC 1 and
//! PKCS #8. Keys and signatures look as in RFC 4253, 5656, 8332 and 8709.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ed25519_dalek::pkcs8::DecodePrivateKey as _;
use p256::{NistP256, SecretKey};
use p384::NistP384;
use rsa::pkcs1::DecodeRsaPrivateKey as _;
use rsa::pkcs1v15;
use rsa::sha2::{Sha256, Sha512};
use rsa::signature::{RandomizedSigner as _, SignatureEncoding as _, Signer as _};
use rsa::traits::PublicKeyParts as _;
use rsa::{BigUint, RsaPrivateKey};

/// What OpenSSH's files begin with.
const MAGIC: &[u8] = b"openssh-key-v1\0";

const ED25519: &str = "ssh-ed25519";
const RSA: &str = "ssh-rsa";

/// Bits of an RSA key: fewer are not safe, and with more a signature takes seconds.
const RSA_BITS_MIN: usize = 1024;
const RSA_BITS_MAX: usize = 8192;

/// Of a comment this much is kept, in characters.
const COMMENT_LENGTH_MAX: usize = 100;

/// Why a file is no key that can be used. All but the reason is for the caller to say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SshKeyError {
    #[error("is encrypted, and nobody can be asked for its passphrase")]
    Encrypted,
    #[error("is a public key, and a private one is needed")]
    Public,
    #[error("is no private key in a form of OpenSSH or PEM")]
    Form,
    #[error("is larger than {} bytes", SshKey::FILE_SIZE_MAX)]
    Large,
    #[error("is damaged")]
    Damaged,
    #[error("is of the kind `{0}`, and keys are ed25519, ecdsa (nistp256, nistp384) or rsa")]
    Kind(String),
    #[error("has {0} bits, and an RSA key has {RSA_BITS_MIN} to {RSA_BITS_MAX}")]
    Size(usize),
}

impl SshKeyError {
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Encrypted => {
                "keep a key for builds alone, without a passphrase, in a secret store; \
                 `ssh-keygen -p -N '' -f FILE` takes the passphrase off"
            }
            Self::Public => "the private key is in the file without `.pub`",
            Self::Form | Self::Kind(_) | Self::Size(_) => {
                "`ssh-keygen -t ed25519 -N '' -f FILE` makes a new one"
            }
            Self::Large | Self::Damaged => return None,
        })
    }
}

/// A private key that an agent signs with. It shows its public half only.
pub struct SshKey {
    /// As it goes over the wire.
    public: Vec<u8>,
    comment: String,
    pair: Pair,
}

enum Pair {
    Ed25519(Box<ed25519_dalek::SigningKey>),
    P256(Box<p256::ecdsa::SigningKey>),
    P384(Box<p384::ecdsa::SigningKey>),
    Rsa(Box<RsaPrivateKey>),
}

/// Which hash an RSA key signs. That of old, SHA-1, is not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RsaHash {
    Sha256,
    Sha512,
}

impl SshKey {
    /// Bytes of the file of a key.
    pub const FILE_SIZE_MAX: usize = 16 << 10;

    /// Reads the file of a private key without passphrase.
    pub fn parse(file: &[u8]) -> Result<Self, SshKeyError> {
        if file.len() > Self::FILE_SIZE_MAX {
            return Err(SshKeyError::Large);
        }
        let text = str::from_utf8(file).map_err(|_| SshKeyError::Form)?.trim();
        if ["ssh-", "ecdsa-", "sk-"].iter().any(|kind| text.starts_with(kind)) {
            return Err(SshKeyError::Public);
        }
        let (label, body) = pem(text).ok_or(SshKeyError::Form)?;
        // PEM of old has it in a header.
        if label == "ENCRYPTED PRIVATE KEY" || body.contains("4,ENCRYPTED") {
            return Err(SshKeyError::Encrypted);
        }
        let body: String = body.split_whitespace().collect();
        let bytes = BASE64_STANDARD.decode(body).map_err(|_| SshKeyError::Damaged)?;
        let pair = match label {
            "OPENSSH PRIVATE KEY" => return openssh(&bytes),
            "RSA PRIVATE KEY" => {
                let key = RsaPrivateKey::from_pkcs1_der(&bytes);
                Some(Pair::rsa(key.map_err(|_| SshKeyError::Damaged)?)?)
            }
            "EC PRIVATE KEY" => {
                let p256 = SecretKey::from_sec1_der(&bytes).ok().map(Pair::from);
                p256.or_else(|| p384::SecretKey::from_sec1_der(&bytes).ok().map(Pair::from))
            }
            "PRIVATE KEY" => pkcs8(&bytes)?,
            "PUBLIC KEY" | "SSH2 PUBLIC KEY" | "RSA PUBLIC KEY" => return Err(SshKeyError::Public),
            _ => return Err(SshKeyError::Form),
        };
        let pair = pair.ok_or_else(|| SshKeyError::Kind(label.to_owned()))?;
        Ok(Self::new(pair, String::new()))
    }

    fn new(pair: Pair, comment: String) -> Self {
        Self { public: pair.public(), comment, pair }
    }

    /// The public key, as it goes over the wire.
    pub(super) fn public(&self) -> &[u8] {
        &self.public
    }

    pub(super) fn comment(&self) -> &str {
        &self.comment
    }

    /// Signs, as it goes over the wire. An RSA key needs to be told a hash.
    pub(super) fn sign(&self, data: &[u8], hash: Option<RsaHash>) -> Option<Vec<u8>> {
        let (kind, signature) = match &self.pair {
            Pair::Ed25519(key) => (ED25519, key.try_sign(data).ok()?.to_bytes().to_vec()),
            Pair::P256(key) => {
                let signature: p256::ecdsa::Signature = key.try_sign(data).ok()?;
                let (r, s) = signature.split_bytes();
                ("ecdsa-sha2-nistp256", [integer(&r), integer(&s)].concat())
            }
            Pair::P384(key) => {
                let signature: p384::ecdsa::Signature = key.try_sign(data).ok()?;
                let (r, s) = signature.split_bytes();
                ("ecdsa-sha2-nistp384", [integer(&r), integer(&s)].concat())
            }
            // The random numbers blind it: how long it takes tells nothing of the key.
            Pair::Rsa(key) => {
                let (key, mut random) = (RsaPrivateKey::clone(key), rsa::rand_core::OsRng);
                match hash? {
                    RsaHash::Sha256 => {
                        let key = pkcs1v15::SigningKey::<Sha256>::new(key);
                        let signature = key.try_sign_with_rng(&mut random, data).ok()?;
                        ("rsa-sha2-256", signature.to_vec())
                    }
                    RsaHash::Sha512 => {
                        let key = pkcs1v15::SigningKey::<Sha512>::new(key);
                        let signature = key.try_sign_with_rng(&mut random, data).ok()?;
                        ("rsa-sha2-512", signature.to_vec())
                    }
                }
            }
        };
        Some([string(kind.as_bytes()), string(&signature)].concat())
    }
}

impl std::fmt::Debug for SshKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "SshKey({})", BASE64_STANDARD.encode(&self.public))
    }
}

impl Pair {
    fn rsa(key: RsaPrivateKey) -> Result<Self, SshKeyError> {
        match key.n().bits() {
            RSA_BITS_MIN..=RSA_BITS_MAX => Ok(Self::Rsa(Box::new(key))),
            bits => Err(SshKeyError::Size(bits)),
        }
    }

    fn public(&self) -> Vec<u8> {
        let ecdsa = |curve: &str, point: &[u8]| {
            let kind = format!("ecdsa-sha2-{curve}");
            [string(kind.as_bytes()), string(curve.as_bytes()), string(point)].concat()
        };
        match self {
            Self::Ed25519(key) => {
                let public = key.verifying_key();
                [string(ED25519.as_bytes()), string(public.as_bytes())].concat()
            }
            Self::P256(key) => {
                ecdsa("nistp256", key.verifying_key().to_encoded_point(false).as_bytes())
            }
            Self::P384(key) => {
                ecdsa("nistp384", key.verifying_key().to_encoded_point(false).as_bytes())
            }
            Self::Rsa(key) => {
                let (e, n) = (key.e().to_bytes_be(), key.n().to_bytes_be());
                [string(RSA.as_bytes()), integer(&e), integer(&n)].concat()
            }
        }
    }
}

impl From<ed25519_dalek::SigningKey> for Pair {
    fn from(key: ed25519_dalek::SigningKey) -> Self {
        Self::Ed25519(Box::new(key))
    }
}

impl From<SecretKey> for Pair {
    fn from(key: SecretKey) -> Self {
        Self::P256(Box::new(key.into()))
    }
}

impl From<p384::SecretKey> for Pair {
    fn from(key: p384::SecretKey) -> Self {
        Self::P384(Box::new(key.into()))
    }
}

/// What is between the lines `BEGIN` and `END` of PEM, and what they call it.
fn pem(text: &str) -> Option<(&str, &str)> {
    let (label, rest) = text.strip_prefix("-----BEGIN ")?.split_once("-----")?;
    let body = rest.strip_suffix("-----")?.strip_suffix(label)?.strip_suffix("-----END ")?;
    Some((label, body))
}

fn pkcs8(bytes: &[u8]) -> Result<Option<Pair>, SshKeyError> {
    if let Ok(key) = RsaPrivateKey::from_pkcs8_der(bytes) {
        return Pair::rsa(key).map(Some);
    }
    let ed25519 = || ed25519_dalek::SigningKey::from_pkcs8_der(bytes).ok().map(Pair::from);
    let p256 = || SecretKey::from_pkcs8_der(bytes).ok().map(Pair::from);
    let p384 = || p384::SecretKey::from_pkcs8_der(bytes).ok().map(Pair::from);
    Ok(ed25519().or_else(p256).or_else(p384))
}

/// The form of OpenSSH. The public key is in it twice, and follows from the private one.
fn openssh(bytes: &[u8]) -> Result<SshKey, SshKeyError> {
    use SshKeyError::Damaged;
    let mut fields = Fields(bytes.strip_prefix(MAGIC).ok_or(Damaged)?);
    let cipher = fields.string().ok_or(Damaged)?;
    let _derivation = (fields.string().ok_or(Damaged)?, fields.string().ok_or(Damaged)?);
    let keys = fields.number().ok_or(Damaged)?;
    let public = fields.string().ok_or(Damaged)?;
    if cipher != b"none" {
        return Err(SshKeyError::Encrypted);
    }
    let mut fields = Fields(fields.string().ok_or(Damaged)?);
    let checks = (fields.number().ok_or(Damaged)?, fields.number().ok_or(Damaged)?);
    if keys != 1 || checks.0 != checks.1 {
        return Err(Damaged);
    }
    let kind = String::from_utf8_lossy(fields.string().ok_or(Damaged)?).into_owned();
    let pair = match kind.as_str() {
        ED25519 => ed25519(&mut fields).ok_or(Damaged)?,
        "ecdsa-sha2-nistp256" => {
            let scalar = scalar::<NistP256>(&mut fields).ok_or(Damaged)?;
            SecretKey::from_bytes(&scalar).map_err(|_| Damaged)?.into()
        }
        "ecdsa-sha2-nistp384" => {
            let scalar = scalar::<NistP384>(&mut fields).ok_or(Damaged)?;
            p384::SecretKey::from_bytes(&scalar).map_err(|_| Damaged)?.into()
        }
        RSA => Pair::rsa(rsa_key(&mut fields).ok_or(Damaged)?)?,
        _ => return Err(SshKeyError::Kind(kind)),
    };
    let comment = String::from_utf8_lossy(fields.string().ok_or(Damaged)?);
    let comment = comment.chars().take(COMMENT_LENGTH_MAX).collect();
    let key = SshKey::new(pair, comment);
    match key.public == public {
        true => Ok(key),
        false => Err(Damaged),
    }
}

fn ed25519(fields: &mut Fields<'_>) -> Option<Pair> {
    let _public = fields.string()?;
    let pair = fields.string()?.try_into().ok()?;
    ed25519_dalek::SigningKey::from_keypair_bytes(pair).ok().map(Pair::from)
}

/// The private number of a curve. It is written without zeros in front.
fn scalar<C: p256::elliptic_curve::Curve>(
    fields: &mut Fields<'_>,
) -> Option<p256::elliptic_curve::FieldBytes<C>> {
    let _curve_and_point = (fields.string()?, fields.string()?);
    let written = positive(fields.string()?);
    let mut scalar = p256::elliptic_curve::FieldBytes::<C>::default();
    let from = scalar.len().checked_sub(written.len())?;
    scalar[from..].copy_from_slice(written);
    Some(scalar)
}

fn rsa_key(fields: &mut Fields<'_>) -> Option<RsaPrivateKey> {
    let mut next = || fields.string().map(BigUint::from_bytes_be);
    let (n, e, d, _, p, q) = (next()?, next()?, next()?, next()?, next()?, next()?);
    RsaPrivateKey::from_components(n, e, d, vec![p, q]).ok()
}

/// A positive number without zeros in front.
fn positive(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..]
}

/// Bytes, with their length before them.
pub(super) fn string(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("all that is written is small");
    [&length.to_be_bytes()[..], bytes].concat()
}

/// A positive number, with its length before it.
fn integer(bytes: &[u8]) -> Vec<u8> {
    let bytes = positive(bytes);
    match bytes.first() {
        // Its first bit would be that of a sign.
        Some(0x80..) => string(&[&[0], bytes].concat()),
        _ => string(bytes),
    }
}

/// Reads what is written one after the other.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn number(&mut self) -> Option<u32> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*number))
    }

    pub(super) fn string(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (string, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(string)
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::pkcs8::EncodePrivateKey as _;
    use p256::elliptic_curve::PrimeField as _;
    use proptest::prelude::*;
    use rsa::pkcs1::{EncodeRsaPrivateKey as _, LineEnding};
    use rsa::rand_core::OsRng;
    use rsa::signature::Verifier as _;
    use rsa::traits::PrivateKeyParts as _;

    use super::*;

    /// The file of OpenSSH for what comes after the two checks.
    fn file(cipher: &str, public: &[u8], private: &[Vec<u8>]) -> Vec<u8> {
        let private = [&[0; 8][..], &private.concat(), &[1, 2, 3]].concat();
        let head = [string(cipher.as_bytes()), string(b"none"), string(b"")].concat();
        let bytes =
            [MAGIC, &head, &1_u32.to_be_bytes(), &string(public), &string(&private)].concat();
        let text = BASE64_STANDARD.encode(bytes);
        let lines: Vec<_> = text.as_bytes().chunks(70).map(String::from_utf8_lossy).collect();
        let label = "OPENSSH PRIVATE KEY";
        format!("-----BEGIN {label}-----\r\n{}\n-----END {label}-----\n", lines.join("\r\n"))
            .into_bytes()
    }

    /// The private fields of a key, as OpenSSH has them.
    fn fields(pair: &Pair) -> Vec<Vec<u8>> {
        let ecdsa = |curve: &str, point: &[u8], scalar: &[u8]| {
            let kind = string(format!("ecdsa-sha2-{curve}").as_bytes());
            vec![kind, string(curve.as_bytes()), string(point), integer(scalar)]
        };
        let mut fields = match pair {
            Pair::Ed25519(key) => {
                let public = string(key.verifying_key().as_bytes());
                vec![string(ED25519.as_bytes()), public, string(&key.to_keypair_bytes())]
            }
            Pair::P256(key) => {
                let point = key.verifying_key().to_encoded_point(false);
                ecdsa("nistp256", point.as_bytes(), &key.to_bytes())
            }
            Pair::P384(key) => {
                let point = key.verifying_key().to_encoded_point(false);
                ecdsa("nistp384", point.as_bytes(), &key.to_bytes())
            }
            Pair::Rsa(key) => {
                let numbers =
                    [key.n(), key.e(), key.d(), key.d(), &key.primes()[0], &key.primes()[1]];
                let numbers = numbers.map(|number| integer(&number.to_bytes_be()));
                [vec![string(RSA.as_bytes())], numbers.to_vec()].concat()
            }
        };
        fields.push(string(b"me@here"));
        fields
    }

    fn pairs() -> [Pair; 4] {
        [
            ed25519_dalek::SigningKey::from_bytes(&[7; 32]).into(),
            SecretKey::random(&mut OsRng).into(),
            p384::SecretKey::random(&mut OsRng).into(),
            Pair::rsa(RsaPrivateKey::new(&mut OsRng, 1024).unwrap()).unwrap(),
        ]
    }

    fn read(pair: &Pair) -> SshKey {
        SshKey::parse(&file("none", &pair.public(), &fields(pair))).unwrap()
    }

    /// The kind of a signature, and its bytes.
    fn signed(key: &SshKey, hash: Option<RsaHash>) -> (String, Vec<u8>) {
        let signature = key.sign(b"data", hash).unwrap();
        let mut fields = Fields(&signature);
        let kind = String::from_utf8(fields.string().unwrap().to_vec()).unwrap();
        (kind, fields.string().unwrap().to_vec())
    }

    /// The two numbers of a signature of a curve, each of so many bytes.
    fn numbers(signature: &[u8], size: usize) -> Vec<u8> {
        let mut fields = Fields(signature);
        let both = [fields.string().unwrap(), fields.string().unwrap()].map(|number| {
            let number = positive(number);
            [&vec![0; size - number.len()], number].concat()
        });
        both.concat()
    }

    #[test]
    fn keys_of_all_kinds_are_read_and_sign() {
        let pairs = pairs();
        for pair in &pairs {
            let key = read(pair);
            assert_eq!((key.public(), key.comment()), (&*pair.public(), "me@here"));
            let (kind, signature) = signed(&key, Some(RsaHash::Sha256));
            match pair {
                Pair::Ed25519(pair) => {
                    let signature = ed25519_dalek::Signature::from_slice(&signature).unwrap();
                    pair.verifying_key().verify(b"data", &signature).unwrap();
                    assert_eq!(kind, "ssh-ed25519");
                }
                Pair::P256(pair) => {
                    let signature = p256::ecdsa::Signature::from_slice(&numbers(&signature, 32));
                    pair.verifying_key().verify(b"data", &signature.unwrap()).unwrap();
                    assert_eq!(kind, "ecdsa-sha2-nistp256");
                }
                Pair::P384(pair) => {
                    let signature = p384::ecdsa::Signature::from_slice(&numbers(&signature, 48));
                    pair.verifying_key().verify(b"data", &signature.unwrap()).unwrap();
                    assert_eq!(kind, "ecdsa-sha2-nistp384");
                }
                Pair::Rsa(pair) => {
                    let public = pair.to_public_key();
                    let check =
                        |signature: &[u8]| pkcs1v15::Signature::try_from(signature).unwrap();
                    let sha256 = pkcs1v15::VerifyingKey::<Sha256>::new(public.clone());
                    sha256.verify(b"data", &check(&signature)).unwrap();
                    assert_eq!(kind, "rsa-sha2-256");
                    let (kind, signature) = signed(&key, Some(RsaHash::Sha512));
                    let sha512 = pkcs1v15::VerifyingKey::<Sha512>::new(public);
                    sha512.verify(b"data", &check(&signature)).unwrap();
                    assert_eq!(kind, "rsa-sha2-512");
                    // SHA-1 is not made.
                    assert_eq!(key.sign(b"data", None), None);
                }
            }
        }
    }

    #[test]
    fn a_number_with_zeros_in_front_is_written_shorter() {
        let scalar = p256::Scalar::from_repr(p256::FieldBytes::from_iter(
            std::iter::repeat_n(0, 3).chain(std::iter::repeat_n(0x90, 29)),
        ));
        let pair = Pair::from(SecretKey::new(scalar.unwrap().into()));
        assert_eq!(read(&pair).public(), pair.public());
    }

    #[test]
    fn other_forms_of_files_are_read() {
        let [ed25519, p256, p384, rsa] = pairs();
        let mut files = Vec::new();
        if let Pair::Ed25519(key) = &ed25519 {
            files.push((&ed25519, key.to_pkcs8_pem(LineEnding::LF).unwrap()));
        }
        if let Pair::P256(key) = &p256 {
            let key = SecretKey::from(&**key);
            files.push((&p256, key.to_sec1_pem(LineEnding::LF).unwrap()));
            files.push((&p256, key.to_pkcs8_pem(LineEnding::LF).unwrap()));
        }
        if let Pair::P384(key) = &p384 {
            let key = p384::SecretKey::from(&**key);
            files.push((&p384, key.to_sec1_pem(LineEnding::LF).unwrap()));
            files.push((&p384, key.to_pkcs8_pem(LineEnding::LF).unwrap()));
        }
        if let Pair::Rsa(key) = &rsa {
            files.push((&rsa, key.to_pkcs1_pem(LineEnding::LF).unwrap()));
            files.push((&rsa, key.to_pkcs8_pem(LineEnding::LF).unwrap()));
        }
        assert_eq!(files.len(), 7);
        for (pair, file) in files {
            assert_eq!(SshKey::parse(file.as_bytes()).unwrap().public(), pair.public());
        }
    }

    #[test]
    fn what_is_no_key_that_can_be_used_says_why() {
        use SshKeyError::{Damaged, Encrypted, Form, Kind, Large, Public, Size};
        let pair = Pair::from(ed25519_dalek::SigningKey::from_bytes(&[7; 32]));
        let other = ed25519_dalek::SigningKey::from_bytes(&[8; 32]);
        let small = Pair::Rsa(Box::new(RsaPrivateKey::new(&mut OsRng, 512).unwrap()));
        let pem = |label: &str, body: &str| {
            format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----").into_bytes()
        };
        let file = |pair: &Pair, cipher| file(cipher, &pair.public(), &fields(pair));
        let cases = [
            (file(&pair, "aes256-ctr"), Encrypted),
            (pem("ENCRYPTED PRIVATE KEY", "AAAA"), Encrypted),
            (pem("RSA PRIVATE KEY", "Proc-Type: 4,ENCRYPTED\nDEK-Info: x\n\nAAAA"), Encrypted),
            (b"ssh-ed25519 AAAA me".to_vec(), Public),
            (pem("PUBLIC KEY", "AAAA"), Public),
            (b"".to_vec(), Form),
            (vec![0xff], Form),
            (b"PuTTY-User-Key-File-3: ssh-ed25519".to_vec(), Form),
            (pem("CERTIFICATE", "AAAA"), Form),
            (pem("OPENSSH PRIVATE KEY", "?"), Damaged),
            (pem("OPENSSH PRIVATE KEY", "AAAA"), Damaged),
            (pem("RSA PRIVATE KEY", "AAAA"), Damaged),
            (super::tests::file("none", &Pair::from(other).public(), &fields(&pair)), Damaged),
            (super::tests::file("none", b"", &[string(b"ssh-dss")]), Kind("ssh-dss".to_owned())),
            (pem("EC PRIVATE KEY", "AAAA"), Kind("EC PRIVATE KEY".to_owned())),
            (file(&small, "none"), Size(512)),
            (vec![b'x'; SshKey::FILE_SIZE_MAX + 1], Large),
        ];
        for (file, expected) in cases {
            let refused = SshKey::parse(&file).unwrap_err();
            assert_eq!(refused, expected, "{}", String::from_utf8_lossy(&file));
        }
    }

    #[test]
    fn a_key_is_not_shown() {
        let pair = Pair::from(ed25519_dalek::SigningKey::from_bytes(&[7; 32]));
        let key = read(&pair);
        assert_eq!(format!("{key:?}"), format!("SshKey({})", BASE64_STANDARD.encode(key.public())));
    }

    proptest! {
        #[test]
        fn whatever_is_in_a_file_it_is_read_or_refused(
            kind in prop::sample::select(&[ED25519, RSA, "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384"][..]),
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..8),
            rest: Vec<u8>,
        ) {
            let mut private: Vec<_> = parts.iter().map(|part| string(part)).collect();
            private.insert(0, string(kind.as_bytes()));
            private.push(rest.clone());
            prop_assert!(SshKey::parse(&file("none", &rest, &private)).is_err());
            let _refused = openssh(&[MAGIC, &rest].concat());
        }

        #[test]
        fn a_file_that_was_changed_is_not_another_key(at in 0_usize..400, bit in 0_u32..8) {
            let pair = Pair::from(ed25519_dalek::SigningKey::from_bytes(&[7; 32]));
            let mut file = file("none", &pair.public(), &fields(&pair));
            let at = at % file.len();
            file[at] ^= 1_u8 << bit;
            if let Ok(key) = SshKey::parse(&file) {
                prop_assert_eq!(key.public(), pair.public());
            }
        }
    }
}
