//! Signatures of images, as cosign makes them with keys.
//!
//! A signature is a layer of a manifest in the repository of the image: of the one whose tag is
//! `sha256-HEX.sig` (cosign's `SIGNATURE_SPEC.md`), or of one that has the image as its subject
//! (`BUNDLE_SPEC.md`, and simple signing in referrers of OCI 1.1). What kind it is of, the layer's media
//! type says. What is signed names the image by its digest.
//!
//! What is signed may name a repository too, and that is not looked at, as cosign does not: a key
//! says whose image it is, not what it is called. So images keep their signatures where they are copied
//! to.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use oci::{Descriptor, Digest, ImageManifest, Manifest, Reference, Tag};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use store::BlobStore;

use crate::image::{BaseImages, ImageError, store_read};
use crate::image_key::ImageKey;

/// So many are tried of an image.
const SIGNATURES_MAX: usize = 100;
/// Bytes of what is signed, or of a bundle with it.
const SIGNED_SIZE_MAX: u64 = 1 << 20;

/// Simple signing, in a layer.
const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The annotation with the signature of such a layer.
const SIMPLE_SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const SIMPLE_TYPE: &str = "cosign container image signature";
/// A bundle of Sigstore, in a layer; cosign's form since its version 3.
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const BUNDLE_PAYLOAD: &str = "application/vnd.in-toto+json";
const BUNDLE_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";
/// What referrers with signatures are.
const ARTIFACTS: [&str; 2] = ["application/vnd.dev.cosign.artifact.sig.v1+json", BUNDLE];

/// Looks for signatures where images are.
pub(crate) struct Signatures<'a> {
    pub(crate) images: &'a dyn BaseImages,
    pub(crate) blobs: &'a dyn BlobStore,
    /// Those whose signatures count, by name.
    pub(crate) keys: BTreeMap<&'a str, &'a ImageKey>,
}

/// What was found of an image that none of the keys has signed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Search {
    tried: usize,
    /// What is there instead.
    others: Vec<String>,
}

impl Signatures<'_> {
    /// Refuses an image that none of the keys has signed. The digest is that of its manifest or index.
    pub(crate) async fn check(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<(), ImageError> {
        let beside = Reference { tag: None, digest: None, ..reference.clone() };
        let mut search = Search::default();
        let tag = format!("{}-{}.sig", digest.algorithm().name(), digest.hex());
        // Longer digests make no tag.
        if let Ok(tag) = tag.parse::<Tag>() {
            let named = Reference { tag: Some(tag), ..beside.clone() };
            if self.is_signed_in(&named, digest, &mut search).await? {
                return Ok(());
            }
        }
        let referrers = self.images.referrers(&beside, digest, &ARTIFACTS).await;
        let referrers = or_nothing(referrers)?.unwrap_or_default();
        for referrer in referrers.into_iter().take(SIGNATURES_MAX) {
            let named = Reference { digest: Some(referrer.digest), ..beside.clone() };
            if self.is_signed_in(&named, digest, &mut search).await? {
                return Ok(());
            }
        }
        Err(self.refuse(reference, digest, &search))
    }

    /// Tries the signatures of a manifest.
    async fn is_signed_in(
        &self,
        named: &Reference,
        digest: &Digest,
        search: &mut Search,
    ) -> Result<bool, ImageError> {
        let manifest = match self.images.manifest(named).await {
            Err(ImageError::Unusable { reason, .. }) => {
                search.note(&format!("a signature that cannot be read: {reason}"));
                return Ok(false);
            }
            manifest => or_nothing(manifest)?,
        };
        let Some((_, Manifest::Image(manifest))) = manifest else { return Ok(false) };
        for layer in layers(&manifest) {
            if search.is_full() {
                break;
            }
            search.tried += 1;
            if layer.size > SIGNED_SIZE_MAX {
                search.note("a signature of more than 1 MiB");
                continue;
            }
            let Some(bytes) = self.read(named, layer).await? else {
                search.note("a signature that its registry has lost");
                continue;
            };
            match judge(layer, &bytes, digest, &self.keys) {
                Verdict::Signed => return Ok(true),
                Verdict::Other(what) => search.note(&what),
                Verdict::NoSignature => (),
            }
        }
        Ok(false)
    }

    async fn read(
        &self,
        named: &Reference,
        layer: &Descriptor,
    ) -> Result<Option<Vec<u8>>, ImageError> {
        if or_nothing(self.images.fetch(named, layer, &|_| ()).await)?.is_none() {
            return Ok(None);
        }
        let read = store_read(self.blobs, &layer.digest, layer.size).await;
        let reference = named.familiar();
        let bytes = read.map_err(|source| ImageError::Store { reference, source })?;
        match oci::check_blob(layer, &bytes) {
            Ok(()) => Ok(Some(bytes)),
            Err(_) => {
                let (reference, what) = (named.familiar(), format!("signature {}", layer.digest));
                Err(ImageError::Damaged { reference, what })
            }
        }
    }

    fn refuse(&self, reference: &Reference, digest: &Digest, search: &Search) -> ImageError {
        let keys: Vec<_> = self.keys.keys().map(|name| format!("`{name}`")).collect();
        let pinned = Reference { tag: None, digest: Some(digest.clone()), ..reference.clone() };
        let has = match &search.others[..] {
            [] => "no signature".to_owned(),
            _ if search.is_full() => {
                format!("{SIGNATURES_MAX} signatures or more, such as {}", search.others.join(", "))
            }
            others => others.join(", "),
        };
        ImageError::NotSigned {
            reference: reference.familiar(),
            keys: keys.join(" or "),
            hint: format!(
                "it has {has}; `cosign sign --key FILE {pinned}` adds one, and the operator of this \
                 server says in `build.images` which are asked for"
            ),
        }
    }
}

impl Search {
    fn is_full(&self) -> bool {
        self.tried >= SIGNATURES_MAX
    }

    /// Notes what is there, each once, and not more than can be read.
    fn note(&mut self, what: &str) {
        if self.others.len() < 3 && !self.others.iter().any(|other| other == what) {
            self.others.push(what.to_owned());
        }
    }
}

/// `None` if a registry says that it does not have something, or not for us.
fn or_nothing<T>(asked: Result<T, ImageError>) -> Result<Option<T>, ImageError> {
    match asked {
        Ok(found) => Ok(Some(found)),
        Err(ImageError::NotFound { .. } | ImageError::Pull { refused: true, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Those that may be signatures.
fn layers(manifest: &ImageManifest) -> impl Iterator<Item = &Descriptor> {
    manifest.layers.iter().filter(|layer| matches!(layer.media_type.as_str(), SIMPLE | BUNDLE))
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// One of the keys has signed the image.
    Signed,
    /// A signature of another key or image, as words after "it has".
    Other(String),
    /// Such as an attestation.
    NoSignature,
}

fn judge(
    layer: &Descriptor,
    bytes: &[u8],
    digest: &Digest,
    keys: &BTreeMap<&str, &ImageKey>,
) -> Verdict {
    let signed = match layer.media_type.as_str() {
        BUNDLE => read_bundle(bytes),
        _ => read_simple(layer, bytes),
    };
    let signed = match signed {
        Ok(Some(signed)) => signed,
        Ok(None) => return Verdict::NoSignature,
        Err(reason) => {
            return Verdict::Other(format!("a signature that cannot be read: {reason}"));
        }
    };
    let has_signed = |key: &ImageKey| key.has_signed(&signed.message, &signed.signature);
    let Some((name, _)) = keys.iter().find(|(_, key)| has_signed(key)) else {
        return Verdict::Other("a signature by another key".to_owned());
    };
    let digest = digest.as_str();
    match signed.digests.iter().any(|signed| signed == digest) {
        true => Verdict::Signed,
        false => {
            let of = signed.digests.first().map_or("nothing", |digest| digest);
            let of: String = of.chars().take(80).collect();
            Verdict::Other(format!(
                "a signature by `{name}` of another image, {}",
                of.escape_debug()
            ))
        }
    }
}

/// What a layer says to be signed, by whomever.
struct Signed {
    message: Vec<u8>,
    signature: Vec<u8>,
    /// The images that the message is about.
    digests: Vec<String>,
}

fn base64(what: &str, text: &str) -> Result<Vec<u8>, String> {
    BASE64_STANDARD.decode(text).map_err(|_| format!("its {what} is not base64"))
}

fn json<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("its {what} is not valid: {error}"))
}

fn read_simple(layer: &Descriptor, bytes: &[u8]) -> Result<Option<Signed>, String> {
    #[derive(Deserialize)]
    struct Payload {
        critical: Critical,
    }
    #[derive(Deserialize)]
    struct Critical {
        image: Image,
        #[serde(rename = "type")]
        kind: String,
    }
    #[derive(Deserialize)]
    struct Image {
        #[serde(rename = "docker-manifest-digest")]
        digest: String,
    }
    let Some(signature) = layer.annotations.get(SIMPLE_SIGNATURE) else {
        return Err(format!("its layer has no annotation `{SIMPLE_SIGNATURE}`"));
    };
    let signature = base64("signature", signature)?;
    let payload: Payload = json("payload", bytes)?;
    match payload.critical.kind.as_str() {
        SIMPLE_TYPE => {
            let digests = vec![payload.critical.image.digest];
            Ok(Some(Signed { message: bytes.to_vec(), signature, digests }))
        }
        _ => Err(format!("its payload is no `{SIMPLE_TYPE}`")),
    }
}

/// A bundle with an in-toto statement in a DSSE envelope: a signature of an image if the statement's
/// predicate is cosign's for that.
fn read_bundle(bytes: &[u8]) -> Result<Option<Signed>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Bundle {
        /// Absent: the bundle is a signature of some file.
        dsse_envelope: Option<Envelope>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Envelope {
        payload: String,
        payload_type: String,
        signatures: Vec<EnvelopeSignature>,
    }
    #[derive(Deserialize)]
    struct EnvelopeSignature {
        sig: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Statement {
        #[serde(rename = "_type")]
        kind: String,
        predicate_type: String,
        subject: Vec<Subject>,
    }
    #[derive(Deserialize)]
    struct Subject {
        #[serde(default)]
        digest: BTreeMap<String, String>,
    }
    let bundle: Bundle = json("bundle", bytes)?;
    let Some(envelope) = bundle.dsse_envelope else { return Ok(None) };
    if envelope.payload_type != BUNDLE_PAYLOAD {
        return Ok(None);
    }
    let payload = base64("statement", &envelope.payload)?;
    let statement: Statement = json("statement", &payload)?;
    let is_statement = statement.kind.starts_with("https://in-toto.io/Statement/");
    if !is_statement || statement.predicate_type != BUNDLE_PREDICATE {
        return Ok(None);
    }
    let [signature] = &envelope.signatures[..] else {
        return Err("its bundle has not one signature".to_owned());
    };
    let digests = statement.subject.iter().flat_map(|subject| &subject.digest);
    Ok(Some(Signed {
        message: envelope_message(&envelope.payload_type, &payload),
        signature: base64("signature", &signature.sig)?,
        digests: digests.map(|(algorithm, hex)| format!("{algorithm}:{hex}")).collect(),
    }))
}

/// What is signed of a DSSE envelope (its *PAE*).
fn envelope_message(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_a_registry_has_is_no_signature(bytes in "\\PC*", signature in "[A-Za-z0-9+/=]{0,20}", is_bundle: bool) {
            let kind = if is_bundle { BUNDLE } else { SIMPLE };
            let mut layer = Descriptor::of(kind, bytes.as_bytes());
            layer.annotations.insert(SIMPLE_SIGNATURE.to_owned(), signature);
            let verdict = judge(&layer, bytes.as_bytes(), &Digest::of(b""), &BTreeMap::new());
            prop_assert!(verdict != Verdict::Signed);
        }
    }
}
