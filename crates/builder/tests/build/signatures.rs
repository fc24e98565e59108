//! Images that runs may use only if somebody has signed them.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use builder::{ImagePolicy, OwnNames, PermittedImages};
use bytes::Bytes;
use oci::{Descriptor, Digest, ImageManifest, Manifest, RegistryName, media_type};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::{EncodePublicKey as _, LineEnding};
use store::{Cause, Expected, NewManifest};

use crate::support::{Fixture, HOST, base_files, put};

const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIMPLE_ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";

/// A key that is the same in every run.
fn key(of: u8) -> SigningKey {
    SigningKey::from_slice(&[of; 32]).unwrap()
}

fn sign(key: &SigningKey, message: &[u8]) -> String {
    let signature: Signature = key.sign(message);
    BASE64_STANDARD.encode(signature.to_der())
}

/// A layer of a signature's manifest.
struct Layer {
    media_type: &'static str,
    bytes: Vec<u8>,
    signature: Option<String>,
}

impl Layer {
    /// As cosign signs an image's digest, with a name that is none of the image's.
    fn simple(key: &SigningKey, digest: &Digest) -> Self {
        let payload = format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"elsewhere.test/app"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
        );
        let signature = Some(sign(key, payload.as_bytes()));
        Self { media_type: SIMPLE, bytes: payload.into_bytes(), signature }
    }

    /// A bundle with a statement about an image.
    fn bundle(key: &SigningKey, digest: &Digest, predicate: &str) -> Self {
        let statement = format!(
            r#"{{"_type":"https://in-toto.io/Statement/v1","subject":[{{"digest":{{"sha256":"{}"}}}}],"predicateType":"{predicate}","predicate":{{}}}}"#,
            digest.hex()
        );
        let kind = "application/vnd.in-toto+json";
        let message = format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len());
        let bundle = serde_json::json!({
            "mediaType": BUNDLE,
            "verificationMaterial": { "publicKey": { "hint": "" } },
            "dsseEnvelope": {
                "payload": BASE64_STANDARD.encode(&statement),
                "payloadType": kind,
                "signatures": [{ "sig": sign(key, message.as_bytes()), "keyid": "" }],
            },
        });
        Self { media_type: BUNDLE, bytes: bundle.to_string().into_bytes(), signature: None }
    }
}

struct Place {
    fixture: Fixture,
    /// Of `registry.test/app`.
    image: Digest,
}

impl Place {
    /// Runs may use images of the registry if `acme` has signed them.
    async fn new() -> Self {
        let mut fixture = Fixture::empty().await;
        let image = fixture.put_image("app", &base_files(), &[], media_type::OCI_LAYER_GZIP).await;
        let public = key(1).verifying_key().to_public_key_pem(LineEnding::LF).unwrap();
        let keys = BTreeMap::from([("acme".to_owned(), public.parse().unwrap())]);
        let patterns = vec!["registry signed-by acme".parse().unwrap()];
        fixture.builder.images = Arc::new(PermittedImages {
            images: Arc::clone(&fixture.builder.images),
            policy: Arc::new(ImagePolicy::new(patterns, keys)),
            own: OwnNames::new([(HOST.to_owned(), RegistryName::default())]),
            blobs: Arc::clone(&fixture.builder.blobs),
        });
        Self { fixture, image }
    }

    /// Stores a signature: under a tag, or as what refers to the image.
    async fn attach(&self, artifact_type: Option<&str>, layers: Vec<Layer>) {
        let (registry, repository) = (RegistryName::default(), "app".parse().unwrap());
        let catalog = &self.fixture.catalog;
        let mut descriptors = Vec::new();
        for layer in &layers {
            let mut descriptor = Descriptor::of(layer.media_type, &layer.bytes);
            if let Some(signature) = &layer.signature {
                let name = "dev.cosignproject.cosign/signature".to_owned();
                descriptor.annotations.insert(name, signature.clone());
            }
            descriptors.push(descriptor);
        }
        for bytes in layers.iter().map(|layer| &layer.bytes[..]).chain([&b"{}"[..]]) {
            let digest = put(catalog.blobs(), bytes).await;
            catalog.link_blob(&registry, &repository, &digest).await.unwrap();
        }
        let subject = Descriptor::new(media_type::OCI_MANIFEST, self.image.clone(), 1);
        let manifest = ImageManifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.to_owned()),
            artifact_type: artifact_type.map(str::to_owned),
            config: Descriptor::of("application/vnd.oci.empty.v1+json", b"{}"),
            layers: descriptors,
            subject: artifact_type.is_some().then_some(subject),
            annotations: BTreeMap::new(),
        };
        let bytes = Bytes::from(serde_json::to_vec(&manifest).unwrap());
        let (digest, manifest) = (Digest::of(&bytes), Manifest::Image(Box::new(manifest)));
        let media_type = media_type::OCI_MANIFEST;
        let new = NewManifest { digest: &digest, media_type, bytes, manifest: &manifest };
        let tag = format!("sha256-{}.sig", self.image.hex()).parse().unwrap();
        let tags = artifact_type.is_none().then_some((tag, Expected::Any));
        let cause = Cause::Push { principal: "test".to_owned() };
        let tags = tags.as_slice();
        catalog.put_manifest(&registry, &repository, new, tags, &cause).await.unwrap();
    }

    async fn builds(&self) {
        self.fixture.build("FROM registry.test/app\nLABEL a=b\n").await;
    }

    /// A build is refused, before its first instruction, and says what the image has instead.
    async fn refuses(&self, told: &str) {
        let dockerfile =
            "FROM scratch AS one\nCOPY . .\nFROM registry.test/app\nCOPY --from=one / /\n";
        let (built, events) = self.fixture.try_build(&self.fixture.request(dockerfile)).await;
        let error = built.unwrap_err().render("Dockerfile", dockerfile);
        let expected = "image `registry.test/app` is not signed by `acme`, and runs may use it here \
                        only if it is";
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("FROM registry.test/app"), "{error}");
        let hint = format!(
            "hint: it has {told}; `cosign sign --key FILE registry.test/app@{}` adds one",
            self.image
        );
        assert!(error.contains(&hint), "{error}\n{hint}");
        assert_eq!(events.render(), "");
    }
}

#[tokio::test]
async fn an_image_is_used_once_the_right_key_has_signed_it() {
    let place = Place::new().await;
    place.refuses("no signature").await;
    place.attach(None, vec![Layer::simple(&key(2), &place.image)]).await;
    place.refuses("a signature by another key").await;
    // One that was made for another image is there for everybody to copy.
    let other = Digest::of(b"another image");
    let replayed = vec![Layer::simple(&key(2), &place.image), Layer::simple(&key(1), &other)];
    place.attach(None, replayed).await;
    let told =
        format!("a signature by another key, a signature by `acme` of another image, {other}");
    place.refuses(&told).await;
    // The signature of one text is none of another.
    let mut forged = Layer::simple(&key(2), &place.image);
    forged.signature = Layer::simple(&key(1), &other).signature;
    place.attach(None, vec![forged]).await;
    place.refuses("a signature by another key").await;
    let signed = [&key(2), &key(1)].map(|key| Layer::simple(key, &place.image));
    place.attach(None, signed.into()).await;
    place.builds().await;
}

#[tokio::test]
async fn what_refers_to_an_image_may_be_its_signature() {
    for (artifact_type, good) in [
        (SIMPLE_ARTIFACT, Layer::simple as fn(&SigningKey, &Digest) -> Layer),
        (BUNDLE, |key, digest| Layer::bundle(key, digest, SIGN)),
    ] {
        let place = Place::new().await;
        place.attach(Some(artifact_type), vec![good(&key(2), &place.image)]).await;
        place.refuses("a signature by another key").await;
        let other = Digest::of(b"another image");
        place.attach(Some(artifact_type), vec![good(&key(1), &other)]).await;
        let signatures = place.fixture.error("FROM registry.test/app\n").await;
        assert!(signatures.contains(&format!("of another image, {other}")), "{signatures}");
        place.attach(Some(artifact_type), vec![good(&key(1), &place.image)]).await;
        place.builds().await;
    }
}

#[tokio::test]
async fn an_attestation_is_no_signature() {
    let place = Place::new().await;
    let provenance = "https://slsa.dev/provenance/v1";
    place.attach(Some(BUNDLE), vec![Layer::bundle(&key(1), &place.image, provenance)]).await;
    place.refuses("no signature").await;
    // Nor is what refers to the image in another kind of artifact.
    let signed = Layer::simple(&key(1), &place.image);
    place.attach(Some("application/vnd.example"), vec![signed]).await;
    place.refuses("no signature").await;
}

#[tokio::test]
async fn signatures_that_cannot_be_read_are_told() {
    let place = Place::new().await;
    let good = || Layer::simple(&key(1), &place.image);
    let kind = Layer { bytes: b"{\"critical\":{\"image\":{\"docker-manifest-digest\":\"\"},\"type\":\"atomic container signature\"}}".to_vec(), ..good() };
    for (layer, told) in [
        (
            Layer { signature: None, ..good() },
            "a signature that cannot be read: its layer has no annotation \
             `dev.cosignproject.cosign/signature`",
        ),
        (
            Layer { signature: Some("?".to_owned()), ..good() },
            "a signature that cannot be read: its signature is not base64",
        ),
        (Layer { signature: Some(String::new()), ..good() }, "a signature by another key"),
        (
            Layer { bytes: b"{".to_vec(), ..good() },
            "a signature that cannot be read: its payload is not valid: EOF while parsing an object \
             at line 1 column 1",
        ),
        (
            kind,
            "a signature that cannot be read: its payload is no `cosign container image signature`",
        ),
        (Layer { bytes: vec![b' '; (1 << 20) + 1], ..good() }, "a signature of more than 1 MiB"),
    ] {
        place.attach(None, vec![layer]).await;
        place.refuses(told).await;
    }
}

#[tokio::test]
async fn only_so_many_signatures_are_tried() {
    let place = Place::new().await;
    let bad = |count| (0..count).map(|_| Layer::simple(&key(2), &place.image));
    let good = || Layer::simple(&key(1), &place.image);
    place.attach(None, bad(100).chain([good()]).collect()).await;
    place.refuses("100 signatures or more, such as a signature by another key").await;
    place.attach(None, bad(99).chain([good()]).collect()).await;
    place.builds().await;
}

#[tokio::test]
async fn what_is_copied_from_is_signed_too() {
    let place = Place::new().await;
    let dockerfile = "FROM scratch\nCOPY --from=registry.test/app /etc/passwd /\n";
    let error = place.fixture.error(dockerfile).await;
    assert!(error.contains("image `registry.test/app` is not signed by `acme`"), "{error}");
    place.attach(None, vec![Layer::simple(&key(1), &place.image)]).await;
    place.fixture.build(dockerfile).await;
}
